//! `kernels/mse.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::mse;
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "mse";

#[derive(Clone, Copy, Debug)]
pub struct Mse {
    pub e: usize,
}

impl Case for Mse {
    fn fill(&self, d: &Device, w: &World) {
        let text = w.rows("text", Rows::Seqs, self.e, 1.0);
        d.rows("text", Rows::Seqs, self.e, &text);
        d.poison_rows("dtext", Rows::Seqs, self.e);
        let members = w.seeds.len();
        d.f32("loss", members, 1, &vec![f32::NAN; members]);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let (text, loss) = (d.get("text"), d.get("loss"));
        mse::forward(d.context(), &mse::Forward { loss, text })?;
        let dtext = d.get("dtext");
        mse::backward(d.context(), &mse::Backward { dtext, text })
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        vec![
            d.out_members(OP, "loss"),
            d.out_rows(OP, "dtext", Rows::Seqs, w),
        ]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let e = self.e;
        let text = doubles(&w.rows("text", Rows::Seqs, e, 1.0));
        let (mut loss, mut dtext) = (vec![0.0; w.seeds.len()], vec![0.0; text.len()]);
        for (g, (m, step)) in w.batch.members.iter().zip(&w.steps).enumerate() {
            let n = (m.partners().len() * e) as f64;
            let scale = 2.0 * f64::from(step.weights.mse) * f64::from(step.loss_scale) / n;
            for (a, p) in m.anchors().zip(m.partners()) {
                for (i, j) in (a * e..(a + 1) * e).zip(p * e..) {
                    let apart = text[i] - text[j];
                    loss[g] += apart * apart / n;
                    dtext[i] = scale * apart;
                    if !step.weights.stop_partner {
                        dtext[j] = -scale * apart;
                    }
                }
            }
        }
        vec![loss, dtext]
    }
}

/// One whose partners take no gradient, one without a use for it, one without partners.
const MEMBERS: &[Member] = &[
    Member(9, true, 2, 1),
    Member(3, true, 1, 4),
    Member(2, false, 1, 6),
    Member(1, true, 1, 7),
];

#[test]
fn mse_agrees_with_the_loops() {
    for (e, members) in [(1, ONE), (37, MEMBERS), (512, SEVERAL), (1032, ALONE)] {
        agrees(&Mse { e }, members);
    }
}

#[test]
fn mse_is_the_same_again_alone_and_replayed() {
    let case = Mse { e: 37 };
    repeats(&case, MEMBERS);
    alone_as_in_company(&case, MEMBERS);
    replays(&case, &[ALONE, MEMBERS, REAL].map(|m| &m[..1]));
}
