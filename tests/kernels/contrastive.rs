//! `kernels/contrastive.cu`

use crosstune::cuda::Result;
use crosstune::cuda::ops::contrastive::{Backward, Forward, backward, forward};
use crosstune::exec::LossWeights;
use crosstune::ops::contrastive::Pair;
use crosstune::text::pack::Rows;

use crate::rig::*;

const OP: &str = "contrastive";
const PAIRS: [Pair; 3] = [Pair::ImageAnchor, Pair::PartnerAnchor, Pair::ImagePartner];

/// More items than a tile, a baseline, and one of a single item.
const BATCHES: &[Member] = &[
    Member(3, true, 2, 1),
    Member(70, false, 1, 2),
    Member(0, false, 1, 3),
    Member(1, true, 1, 4),
    Member(129, true, 1, 5),
];

#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub pair: Pair,
    pub e: usize,
    pub dimage: bool,
}

impl Loss {
    /// Unit rows, texts near their images and all of them near one another, as CLIP's are.
    fn features(&self, w: &World) -> (Vec<f32>, Vec<f32>) {
        let e = self.e;
        let mut image = w.rows("image", Rows::Items, e, 1.0);
        let mut text = w.rows("text", Rows::Seqs, e, 1.0);
        for m in &w.batch.members {
            for s in m.seqs.clone() {
                let item = m.items.start + (s - m.seqs.start) % m.items.len();
                for j in 0..e {
                    text[s * e + j] += 0.3 * image[item * e + j];
                }
            }
        }
        let mean = w.param("mean", false, e, (0.0, 1.5));
        for row in image.chunks_mut(e).chain(text.chunks_mut(e)) {
            row.iter_mut().zip(&mean).for_each(|(x, m)| *x += m);
        }
        (unit(image, e), unit(text, e))
    }

    fn weight(&self, w: &LossWeights) -> f64 {
        f64::from(match self.pair {
            Pair::ImageAnchor => w.image_anchor,
            Pair::PartnerAnchor => w.partner_anchor,
            Pair::ImagePartner => w.image_partner,
        })
    }
}

fn unit(mut x: Vec<f32>, e: usize) -> Vec<f32> {
    for row in x.chunks_mut(e) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    split(x)
}

impl Case for Loss {
    fn fill(&self, d: &Device, w: &World) {
        let (image, text) = self.features(w);
        d.unit_rows("image", Rows::Items, self.e, &image);
        d.unit_rows("text", Rows::Seqs, self.e, &text);
        d.poison_rows("dtext", Rows::Seqs, self.e);
        d.poison_rows("dimage", Rows::Items, self.e);
        for name in ["lse", "low", "terms"] {
            d.poison_f32(name, d.step().rows(Rows::Items), 2);
        }
        let members = w.seeds.len();
        d.f32("loss", members, 1, &vec![f32::NAN; members]);
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let (pair, image, text, lse) = (self.pair, d.get("image"), d.get("text"), d.get("lse"));
        let (loss, low, terms) = (d.get("loss"), d.get("low"), d.get("terms"));
        let op = Forward {
            pair,
            loss,
            lse,
            low,
            terms,
            image,
            text,
        };
        forward(d.context(), &op)?;
        let op = Backward {
            pair,
            dtext: d.get("dtext"),
            dimage: self.dimage.then(|| d.get("dimage")),
            image,
            text,
            lse,
            low,
        };
        backward(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let mut outs = vec![
            d.out_members(OP, "loss"),
            d.out_rows(OP, "lse", Rows::Items, w),
            d.out_rows(OP, "dtext", Rows::Seqs, w),
        ];
        if self.dimage {
            outs.push(d.out_rows(OP, "dimage", Rows::Items, w));
        }
        outs
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let e = self.e;
        let (image, text) = self.features(w);
        let (image, text) = (doubles(&image), doubles(&text));
        let mut loss = vec![0.0; w.seeds.len()];
        let mut lse = vec![0.0; w.count(Rows::Items) * 2];
        let (mut dtext, mut dimage) = (vec![0.0; text.len()], vec![0.0; image.len()]);
        for (g, (m, step)) in w.batch.members.iter().zip(&w.steps).enumerate() {
            let (anchor, partner) = (m.seqs.start, m.partners().start);
            let (a_is_text, a0, b0, n) = match self.pair {
                Pair::ImageAnchor => (false, m.items.start, anchor, m.items.len()),
                Pair::PartnerAnchor => (true, partner, anchor, m.partners().len()),
                Pair::ImagePartner => (false, m.items.start, partner, m.partners().len()),
            };
            let used = self.weight(&step.weights) != 0.0;
            let n = if used { n } else { 0 };
            let a = if a_is_text { &text } else { &image };
            let row = |x: &[f64], i: usize| x[i * e..][..e].to_vec();
            let logit = |i: usize, j: usize| {
                let (a, b) = (row(a, a0 + i), row(&text, b0 + j));
                100.0 * a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()
            };
            let l: Vec<Vec<f64>> = (0..n)
                .map(|i| (0..n).map(|j| logit(i, j)).collect())
                .collect();
            let log_sum = |x: Vec<f64>| {
                let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
            };
            let rows: Vec<f64> = (0..n).map(|i| log_sum(l[i].clone())).collect();
            let cols: Vec<f64> = (0..n)
                .map(|j| log_sum((0..n).map(|i| l[i][j]).collect()))
                .collect();
            let stop = step.weights.stop_partner;
            let (to_a, to_b) = match self.pair {
                Pair::ImageAnchor => (true, true),
                Pair::PartnerAnchor => (!stop, true),
                Pair::ImagePartner => (true, !stop),
            };
            let scale = 100.0 * self.weight(&step.weights) * f64::from(step.loss_scale);
            for i in 0..n {
                lse[2 * (m.items.start + i)] = rows[i];
                lse[2 * (m.items.start + i) + 1] = cols[i];
                loss[g] += (rows[i] + cols[i] - 2.0 * l[i][i]) / (2.0 * n as f64);
                for j in 0..n {
                    let target = if i == j { 2.0 } else { 0.0 };
                    let both = (l[i][j] - rows[i]).exp() + (l[i][j] - cols[j]).exp() - target;
                    let d = scale / (2.0 * n as f64) * both;
                    for k in 0..e {
                        if to_b {
                            dtext[(b0 + j) * e + k] += d * a[(a0 + i) * e + k];
                        }
                        let da = if a_is_text { &mut dtext } else { &mut dimage };
                        if to_a {
                            da[(a0 + i) * e + k] += d * text[(b0 + j) * e + k];
                        }
                    }
                }
            }
        }
        let mut want = vec![loss, lse, dtext];
        if self.dimage {
            want.push(dimage);
        }
        want
    }
}

fn cases(e: usize) -> impl Iterator<Item = Loss> {
    PAIRS.into_iter().map(move |pair| Loss {
        pair,
        e,
        dimage: pair != Pair::PartnerAnchor,
    })
}

#[test]
fn contrastive_agrees_with_the_loops() {
    for (e, members) in [(1, ONE), (37, SEVERAL), (40, BATCHES), (520, REAL)] {
        cases(e).for_each(|case| agrees(&case, members));
    }
}

#[test]
fn contrastive_repeats_its_bits() {
    cases(37).for_each(|case| repeats(&case, BATCHES));
}

#[test]
fn contrastive_of_a_member_is_the_same_alone() {
    cases(37).for_each(|case| alone_as_in_company(&case, BATCHES));
}

#[test]
fn contrastive_replays_with_other_sizes() {
    let steps: [&[Member]; 3] = [ALONE, &[Member(70, true, 1, 8)], ONE];
    cases(37).for_each(|case| replays(&case, &steps));
}
