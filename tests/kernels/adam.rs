//! `kernels/adam.cu`

use crosstune::cuda::ops::adam::{Layout, Step, Trainable, copy_halves, step};
use crosstune::cuda::{DevicePtr, Result};

use crate::rig::*;

const OP: &str = "adam";
/// Steps taken before.
const TAKEN: f32 = 4.0;
const FLAT: [&str; 4] = ["values", "grads", "m", "v"];

/// Several blocks and odd tails, with and without copies, and one number.
#[derive(Clone, Copy, Debug)]
struct Optimiser {
    tensors: &'static [Trainable],
    /// The member whose gradient is not finite.
    broken: Option<usize>,
}

const fn tensor(rows: usize, cols: usize, half_rows: Option<usize>) -> Trainable {
    Trainable {
        rows,
        cols,
        half_rows,
        split: false,
        is_head: false,
    }
}

const fn split(rows: usize, cols: usize, half_rows: usize) -> Trainable {
    Trainable {
        split: true,
        ..tensor(rows, cols, Some(half_rows))
    }
}

const fn head(rows: usize, cols: usize) -> Trainable {
    Trainable {
        is_head: true,
        ..tensor(rows, cols, None)
    }
}

const TENSORS: &[Trainable] = &[
    split(5, 37, 8),
    tensor(1, 4103, None),
    tensor(1, 1, Some(1)),
    tensor(16, 8, Some(16)),
    split(9, 512, 9),
    head(3, 5),
];

const FINITE: Optimiser = Optimiser {
    tensors: TENSORS,
    broken: None,
};

impl Optimiser {
    fn layout(&self, w: &World) -> Layout {
        Layout::new(w.seeds.len(), self.tensors)
    }

    /// Numbers of a tensor: (G, len).
    fn data(&self, w: &World, name: &str, i: usize) -> Vec<f32> {
        let len = self.tensors[i].rows * self.tensors[i].cols;
        let x = w.param(&format!("{name}{i}"), true, len, (0.0, 1.0));
        let scaled = x.iter().enumerate().map(|(k, x)| match name {
            "grads" if self.broken == Some(k / len) && i == 1 && k % len == 77 => f32::INFINITY,
            "grads" => x * w.steps[k / len].loss_scale,
            "v" => x * x,
            _ => *x,
        });
        scaled.collect()
    }

    /// Places of member `g`'s copies in a flat buffer, tensor by tensor.
    fn spans(&self, layout: &Layout, g: usize) -> Vec<std::ops::Range<usize>> {
        let span = |i: usize| {
            let len = self.tensors[i].rows * self.tensors[i].cols;
            layout.at(i) + g * len..layout.at(i) + (g + 1) * len
        };
        (0..self.tensors.len()).map(span).collect()
    }

    /// The f16 copies of a member, and those with a second one added to it, without their padding,
    /// which must be zero.
    fn halves(&self, layout: &Layout, data: &[f32], g: usize) -> [Vec<f32>; 2] {
        let (mut high, mut sums) = (vec![], vec![]);
        for (i, t) in self.tensors.iter().enumerate() {
            let Some(rows) = t.half_rows else { continue };
            let ld = t.cols.next_multiple_of(8);
            let copy = |at: usize| {
                let mut out = vec![];
                let own = &data[at + g * rows * ld..][..rows * ld];
                for (r, row) in own.chunks(ld).enumerate() {
                    let (true_part, padding) = row.split_at(if r < t.rows { t.cols } else { 0 });
                    assert!(padding.iter().all(|x| *x == 0.0), "padding of tensor {i}");
                    out.extend_from_slice(true_part);
                }
                out
            };
            let own = layout.half_at(i).map(copy).expect("a copy");
            if let Some(low) = layout.low_at(i).map(copy) {
                sums.extend(own.iter().zip(low).map(|(h, l)| h + l));
            }
            high.extend(own);
        }
        [high, sums]
    }
}

impl Case for Optimiser {
    fn fill(&self, d: &Device, w: &World) {
        let (layout, members) = (self.layout(w), w.seeds.len());
        for name in FLAT {
            let mut flat = vec![f32::NAN; layout.len()];
            for i in 0..self.tensors.len() {
                let data = self.data(w, name, i);
                flat[layout.at(i)..][..data.len()].copy_from_slice(&data);
            }
            d.f32(name, 0, layout.len(), &flat);
        }
        d.weight(
            "halves",
            0,
            layout.half_len(),
            &vec![0.0; layout.half_len()],
        );
        d.f32("norm", members, 1, &vec![f32::NAN; members]);
        d.f32("n", members, 1, &vec![TAKEN; members]);
        d.f32("factors", members, 4, &vec![f32::NAN; members * 4]);
        let chunks = layout.n_chunks();
        d.f32(
            "partials",
            members,
            chunks,
            &vec![f32::NAN; members * chunks],
        );
        d.bytes("table", &layout.table());
    }

    fn launch(&self, d: &Device) -> Result<()> {
        let layout = Layout::new(d.step().bucket().members, self.tensors);
        let table = d.get("table").ptr;
        let (values, halves) = (d.get("values"), d.get("halves"));
        copy_halves(d.context(), &layout, table, (halves, values))?;
        let op = Step {
            layout: &layout,
            table,
            values,
            grads: d.get("grads"),
            m: d.get("m"),
            v: d.get("v"),
            halves,
            norm: d.get("norm"),
            n: d.get("n"),
            factors: d.get("factors"),
            partials: d.get("partials"),
        };
        step(d.context(), &op)
    }

    fn read(&self, d: &Device, w: &World) -> Vec<Out> {
        let layout = self.layout(w);
        let members = 0..w.seeds.len();
        let mut outs = vec![d.out_members(OP, "norm"), d.out_members(OP, "n")];
        for name in ["values", "m", "v"] {
            let flat = d.read(name).1;
            let own = |g| {
                self.spans(&layout, g)
                    .into_iter()
                    .flat_map(|s| flat[s].to_vec())
            };
            outs.push(Device::out(
                OP,
                name,
                members.clone().flat_map(own).collect(),
            ));
        }
        let (layout, halves) = (&layout, &d.read("halves").1);
        let own = |g| self.halves(layout, halves, g);
        let all = |i: usize| members.clone().flat_map(|g| own(g)[i].clone()).collect();
        outs.push(Device::out(OP, "halves", all(0)));
        outs.push(Device::out(OP, "split", all(1)));
        outs
    }

    fn want(&self, w: &World) -> Vec<Vec<f64>> {
        let (mut norms, mut taken) = (vec![], vec![]);
        let (mut values, mut ms, mut vs, mut halves) = (vec![], vec![], vec![], vec![]);
        let mut sums = vec![];
        for (g, s) in w.steps.iter().enumerate() {
            let own = |name: &str, i: usize| {
                let all = doubles(&self.data(w, name, i));
                let len = all.len() / w.steps.len();
                all[g * len..][..len].to_vec()
            };
            let scale = f64::from(s.loss_scale);
            let grads = (0..self.tensors.len()).flat_map(|i| own("grads", i));
            let norm = grads.map(|d| d * d).sum::<f64>().sqrt() / scale;
            norms.push(norm);
            let moves = s.active && norm.is_finite();
            taken.push(f64::from(TAKEN) + f64::from(u8::from(moves)));
            let (a, n) = (&s.adam, i32::from(TAKEN as u8) + 1);
            let clip = (a.clip_norm / (norm + 1e-6)).min(1.0);
            for (i, t) in self.tensors.iter().enumerate() {
                let lr = a.head_lr.filter(|_| t.is_head).unwrap_or(a.lr);
                let (mut x, mut m, mut v) = (own("values", i), own("m", i), own("v", i));
                for (j, d) in own("grads", i).into_iter().enumerate() {
                    if !moves {
                        break;
                    }
                    let d = d * clip / scale + a.weight_decay * x[j];
                    m[j] = a.beta1 * m[j] + (1.0 - a.beta1) * d;
                    v[j] = a.beta2 * v[j] + (1.0 - a.beta2) * d * d;
                    let root = (v[j] / (1.0 - a.beta2.powi(n))).sqrt() + a.eps;
                    x[j] -= lr / (1.0 - a.beta1.powi(n)) * m[j] / root;
                }
                if t.half_rows.is_some() {
                    halves.extend_from_slice(&x);
                }
                if t.split {
                    sums.extend_from_slice(&x);
                }
                values.extend(x);
                ms.extend(m);
                vs.extend(v);
            }
        }
        vec![norms, taken, values, ms, vs, halves, sums]
    }
}

#[test]
fn adam_agrees_with_the_loops() {
    for members in [ONE, SEVERAL] {
        agrees(&FINITE, members);
    }
}

#[test]
fn adam_is_the_same_again_alone_and_replayed() {
    repeats(&FINITE, SEVERAL);
    alone_as_in_company(&FINITE, SEVERAL);
    replays(&FINITE, &[ALONE, ONE, REAL]);
}

/// The third overflows: it stays as it is, and the others take the very step they take without it.
#[test]
fn adam_leaves_a_member_that_overflows() {
    let broken = Optimiser {
        broken: Some(2),
        ..FINITE
    };
    let world = World::new(SEVERAL);
    let (got, fine) = (outputs(&broken, SEVERAL), outputs(&FINITE, SEVERAL));
    let still = broken.want(&world);
    for ((got, fine), still) in got.iter().zip(&fine).zip(&still).skip(1) {
        for g in [0, 1, 3] {
            assert_eq!(got.of_member(&world, g), fine.of_member(&world, g));
        }
        let len = still.len() / SEVERAL.len();
        let values = &got.values()[2 * len..3 * len];
        let expected = &still[2 * len..3 * len];
        let same = |(a, b): (&f32, &f64)| f64::from(*a) == *b;
        assert!(values.iter().zip(expected).all(same));
    }
    assert!(!got[0].values()[2].is_finite());
}

#[test]
fn adam_refuses_what_does_not_fit() {
    let world = World::new(ONE);
    let d = Device::of(&world, None);
    load(&FINITE, &d, &world);
    let layout = Layout::new(1, &TENSORS[..1]);
    let (halves, values) = (d.get("halves"), d.get("values"));
    let error = copy_halves(d.context(), &layout, d.get("table").ptr, (halves, values));
    let error = error.expect_err("halves of four").to_string();
    assert!(error.contains("adam_copy: halves is"), "{error}");
    let layout = FINITE.layout(&world);
    for at in [DevicePtr::NULL, d.get("table").ptr.offset(8)] {
        let error = copy_halves(d.context(), &layout, at, (halves, values));
        let error = error.expect_err("a table at 16 bytes").to_string();
        assert!(error.contains("adam_copy: table is at"), "{error}");
    }
}
