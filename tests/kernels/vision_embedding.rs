//! `kernels/vision_embedding.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::vision_embedding::{Forward, check_places, forward};
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "vision_embedding";
/// Rows of the table of positions.
const PLACES: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Picture {
    c: usize,
    /// Whether `out` takes the place of `patches`.
    in_place: bool,
}

impl Picture {
    fn out(&self) -> &'static str {
        if self.in_place { "patches" } else { "out" }
    }

    fn forward(&self, d: &Device) -> Forward {
        Forward {
            out: d.get(self.out()),
            patches: d.get("patches"),
            class: d.get("class"),
            position: d.get("position"),
        }
    }
}

impl Case for Picture {
    fn fill(&self, d: &Device, w: &World) {
        let c = self.c;
        let patches = w.rows("patches", Rows::Tokens, c, 1.0);
        d.rows("patches", Rows::Tokens, c, &patches);
        d.poison_rows("out", Rows::Tokens, c);
        for (name, rows) in [("class", 1), ("position", PLACES)] {
            d.weight(name, 0, c, &w.param(name, false, rows * c, (0.0, 1.0)));
        }
    }

    fn launch(&self, d: &Device) -> Result<()> {
        forward(d.context(), &self.forward(d))
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut out = d.out_rows(OP, self.out(), Rows::Tokens, w);
        out.rename(OP, "out");
        vec![out]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let c = self.c;
        let patches = doubles(&w.rows("patches", Rows::Tokens, c, 1.0));
        let class = doubles(&w.param("class", false, c, (0.0, 1.0)));
        let position = doubles(&w.param("position", false, PLACES * c, (0.0, 1.0)));
        let mut out = vec![];
        for (t, place) in w.batch.places.iter().enumerate() {
            for j in 0..c {
                let token = match place {
                    0 => class[j],
                    _ => patches[t * c + j],
                };
                out.push(token + position[*place as usize * c + j]);
            }
        }
        vec![out]
    }
}

#[test]
fn vision_embedding_agrees_with_the_loops() {
    for (c, in_place, members) in [
        (1, false, ONE),
        (37, true, SEVERAL),
        (768, false, ALONE),
        (1032, true, ONE),
    ] {
        agrees(&Picture { c, in_place }, members);
    }
}

#[test]
fn vision_embedding_is_the_same_again_alone_and_replayed() {
    let case = Picture {
        c: 37,
        in_place: false,
    };
    repeats(&case, SEVERAL);
    alone_as_in_company(&case, SEVERAL);
    replays(&case, &[ALONE, ONE, REAL]);
}

/// A token reads the row of its place.
#[test]
fn vision_embedding_refuses_more_tokens_than_places() {
    let case = Picture {
        c: 8,
        in_place: false,
    };
    let world = World::new(&[Member(1, false, 80, 80)]);
    let d = Device::of(&world, None);
    load(&case, &d, &world);
    let checked = check_places(&d.get("position"), &world.batch);
    let error = checked.expect_err("too few positions").to_string();
    let expected = "a picture has 80 tokens, expected at most one for each of 64 positions";
    assert!(error.contains(expected), "{error}");
}
