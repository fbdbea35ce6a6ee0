//! A tower whose blocks, norms and projection are trained, above embeddings that are not.

use std::sync::Arc;

use crosstune::engine::vision::{batch, patches};
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::reference::RefExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, Frozen, FrozenTensor, MemberStep};
use crosstune::graph::backward::backward_from;
use crosstune::graph::{Dim, Graph, Role, ValueId};
use crosstune::model::vision::vision_tower;
use crosstune::ops::Op;
use crosstune::ops::gelu::Gelu;
use crosstune::text::pack::Batch;
use crosstune::weights::vision::VisionConfig;

use crate::common::tiny;

/// Largest error over the largest entry of its tensor. Measured: 4.4e-11.
const LIMIT: f64 = 4e-10;
/// Of the CPU's f32 gradients against the reference's f64. Measured: 6.6e-7.
const CPU: f64 = 6e-6;
/// Entries of a tensor that are differenced.
const ENTRIES: usize = 12;
const H: f64 = 1e-4;
const PICTURES: usize = 3;

/// CLIP's shape, or DINOv2's.
fn config(pre_norm: bool) -> VisionConfig {
    VisionConfig {
        hidden: 6,
        layers: 2,
        heads: 3,
        ffn: 11,
        patch: 3,
        grid: 2,
        embed_dim: if pre_norm { 5 } else { 6 },
        gelu: if pre_norm { Gelu::Quick } else { Gelu::Exact },
        layer_norm_eps: 1e-5,
        patch_bias: !pre_norm,
        pre_norm,
        projection: pre_norm,
    }
}

/// A tower with its gradients, whose objective weights every feature.
struct Trained {
    graph: Arc<Graph>,
    frozen: Arc<Frozen>,
    state: TrainState,
    features: ValueId,
    seed: ValueId,
    /// Trained tensors and their gradients.
    pairs: Vec<(ValueId, ValueId)>,
    batch: Batch,
}

impl Trained {
    fn new(config: &VisionConfig, trains: &dyn Fn(&str) -> bool) -> Trained {
        let side = config.image_size();
        let pixels = tiny::random(9, "pixels", &[PICTURES * 3 * side * side]);
        let batch = batch(config, PICTURES, patches(config, &pixels));
        let mut g = Graph::new();
        let features = vision_tower(&mut g, config, trains);
        let frozen = tiny::frozen(&g);
        let shape = vec![Dim::Seqs, Dim::N(config.embed_dim)];
        let seed = g.value("seed", shape, Role::Frozen);
        let grads = backward_from(&mut g, &[(features, seed)], &[]);
        g.check();
        let mut frozen = (*frozen).clone();
        let rows = g.rows(seed, &batch.bucket());
        let data = tiny::random(9, "seed", &[rows * config.embed_dim]);
        frozen.insert("seed", FrozenTensor::Owned(Arc::new(data)));
        let mut pairs: Vec<_> = grads.into_iter().collect();
        pairs.sort_unstable();
        Trained {
            state: tiny::state(&g, &[1]),
            graph: Arc::new(g),
            frozen: Arc::new(frozen),
            features,
            seed,
            pairs,
            batch,
        }
    }

    fn objective(&self, exec: &mut RefExecutor<f64>) -> f64 {
        exec.step(&self.batch, &[MemberStep::default()]);
        let pairs = exec.value(self.features).iter().zip(exec.value(self.seed));
        pairs.map(|(x, w)| x * w).sum()
    }

    /// The worst error of a gradient against differences, and of the CPU's against it.
    fn errors(&self) -> (f64, f64) {
        let mut exec = RefExecutor::<f64>::new(self.graph.clone(), &self.frozen, &self.state);
        for (_, d) in &self.pairs {
            *exec.value_mut(*d) = vec![0.0; self.graph.get(*d).elements(&self.batch.bucket())];
        }
        let level = self.objective(&mut exec).abs();
        let cpu = self.cpu();
        let (mut worst, mut cpu_worst) = (0f64, 0f64);
        let analytic: Vec<Vec<f64>> = self
            .pairs
            .iter()
            .map(|(_, d)| exec.value(*d).to_vec())
            .collect();
        for (&(id, _), want) in self.pairs.iter().zip(&analytic) {
            let name = &self.graph.get(id).name;
            let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
            if name.ends_with("k_proj.bias") {
                // It shifts all scores of a query alike: it has no gradient.
                assert!(largest <= 1e-10 * level, "d.{name} is {largest:e}");
                continue;
            }
            assert!(
                largest > 1e-3 * level,
                "d.{name} is {largest:e} of {level:e}"
            );
            let t = &cpu.tensors[cpu.find(name).expect("a tensor")];
            let got = &cpu.grads[t.offset..t.offset + t.len];
            for (got, want) in got.iter().zip(want) {
                cpu_worst = cpu_worst.max((f64::from(*got) - want).abs() / largest);
            }
            for i in (0..want.len()).step_by(want.len().div_ceil(ENTRIES)) {
                let x = exec.value(id)[i];
                let mut at = |k: f64| {
                    exec.value_mut(id)[i] = x + k * H;
                    self.objective(&mut exec)
                };
                let (near, far) = (at(1.0) - at(-1.0), at(2.0) - at(-2.0));
                exec.value_mut(id)[i] = x;
                let got = (8.0 * near - far) / (12.0 * H);
                worst = worst.max((got - want[i]).abs() / (largest + 1e-3 * level));
            }
        }
        (worst, cpu_worst)
    }

    fn cpu(&self) -> TrainState {
        let mut state = self.state.clone();
        let (graph, frozen) = (self.graph.clone(), self.frozen.clone());
        let exec = CpuExecutor::new(graph, frozen, &state, tiny::pool(2));
        let steps = [MemberStep::default()];
        exec.spread()
            .run(&mut state, &self.batch, &steps)
            .expect("ran");
        state
    }
}

fn is_embedding(name: &str) -> bool {
    name.contains(".embeddings.")
}

#[test]
fn the_whole_gradient_is_that_of_finite_differences() {
    for pre_norm in [true, false] {
        let tower = Trained::new(&config(pre_norm), &|name| !is_embedding(name));
        let (worst, cpu) = tower.errors();
        println!("pre-norm {pre_norm}: within {worst:.1e}, the CPU's within {cpu:.1e}");
        assert!(worst <= LIMIT && cpu <= CPU);
    }
}

/// Gradients end at the lowest trained tensor.
#[test]
fn nothing_is_computed_below_what_is_trained() {
    let count = |trains: &dyn Fn(&str) -> bool| {
        let tower = Trained::new(&config(true), trains);
        let (worst, _) = tower.errors();
        assert!(worst <= LIMIT, "{worst:e}");
        let nodes = tower.graph.nodes.iter();
        nodes
            .filter(|op| matches!(op, Op::AttentionGrad(_)))
            .count()
    };
    assert_eq!(count(&|name| name.contains("layers.1.self_attn.q_proj")), 1);
    assert_eq!(count(&|name| name.contains("layers.0.layer_norm2")), 1);
    assert_eq!(count(&|name| name.contains("layers.1.layer_norm2")), 0);
    assert_eq!(count(&|name| name == "visual_projection.weight"), 0);
}
