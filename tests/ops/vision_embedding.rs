//! Class token, patches and positions; there is no gradient.

use crosstune::graph::Dim;
use crosstune::ops::vision_embedding::VisionEmbedding;
use crosstune::text::pack::Rows;

use super::rig::{ALONE, Built, Members, ONE, Rig, THREE};

fn rig(members: &Members, longest: usize, c: usize, wanted: bool) -> Built {
    let mut rig = Rig::new(members, longest);
    let patches = match wanted {
        true => rig.input("patches", Rows::Tokens, c, 1.0),
        false => {
            let rows = rig.batch.tokens();
            let shape = vec![Dim::Tokens, Dim::N(c)];
            rig.given("patches", shape, rows * c, 1.0)
        }
    };
    let class = rig.param("class", &[c], false, (0.0, 1.0));
    let position = rig.param("position", &[longest, c], false, (0.0, 1.0));
    let name = "out";
    let out = VisionEmbedding::push(&mut rig.graph, name, patches, (class, position));
    rig.weigh(out, Rows::Tokens);
    rig.build()
}

#[test]
fn cpu_agrees() {
    for members in [ONE, ALONE, THREE] {
        for (longest, c) in [(1, 1), (5, 13), (50, 35)] {
            rig(members, longest, c, false).cpu_agrees("vision_embedding");
        }
    }
}

#[test]
#[should_panic(expected = "nothing below may be trained")]
fn a_gradient_is_a_mistake() {
    rig(ALONE, 5, 3, true);
}
