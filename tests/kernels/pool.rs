//! `kernels/pool.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::pool;
use crosstune::ops::pool::Pooling;
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "pool";
const POOLINGS: [Pooling; 3] = [Pooling::Mean, Pooling::First, Pooling::Last];

#[derive(Clone, Copy, Debug)]
pub struct Pool {
    pub pooling: Pooling,
    pub c: usize,
}

impl Case for Pool {
    fn fill(&self, d: &Device, w: &World) {
        for (name, rows) in [("inp", Rows::Tokens), ("dout", Rows::Seqs)] {
            d.rows(name, rows, self.c, &w.rows(name, rows, self.c, 1.0));
        }
        d.poison_rows("out", Rows::Seqs, self.c);
        d.poison_rows("dinp", Rows::Tokens, self.c);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let op = pool::Forward {
            pooling: self.pooling,
            out: d.get("out"),
            inp: d.get("inp"),
        };
        pool::forward(d.context(), &op)?;
        let op = pool::Backward {
            pooling: self.pooling,
            dinp: d.get("dinp"),
            dout: d.get("dout"),
        };
        pool::backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        vec![
            d.out_rows(OP, "out", Rows::Seqs, w),
            d.out_rows(OP, "dinp", Rows::Tokens, w),
        ]
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let c = self.c;
        let inp = doubles(&w.rows("inp", Rows::Tokens, c, 1.0));
        let dout = doubles(&w.rows("dout", Rows::Seqs, c, 1.0));
        let (mut out, mut dinp) = (vec![0.0; dout.len()], vec![0.0; inp.len()]);
        for s in 0..w.count(Rows::Seqs) {
            let text = w.batch.segment(s);
            let counted = match self.pooling {
                Pooling::Mean => text,
                Pooling::First => text.start..text.start + 1,
                Pooling::Last => text.end - 1..text.end,
            };
            let n = counted.len() as f64;
            for (t, j) in counted.flat_map(|t| (0..c).map(move |j| (t, j))) {
                out[s * c + j] += inp[t * c + j] / n;
                dinp[t * c + j] = dout[s * c + j] / n;
            }
        }
        vec![out, dinp]
    }
}

#[test]
fn pool_agrees_with_the_loops() {
    for (c, members) in [(1, ONE), (37, SEVERAL), (768, ALONE), (1032, ONE)] {
        POOLINGS
            .iter()
            .for_each(|&pooling| agrees(&Pool { pooling, c }, members));
    }
}

#[test]
fn pool_is_the_same_again_alone_and_replayed() {
    for case in POOLINGS.map(|pooling| Pool { pooling, c: 37 }) {
        repeats(&case, SEVERAL);
        alone_as_in_company(&case, SEVERAL);
        replays(&case, &[ALONE, ONE, REAL]);
    }
}
