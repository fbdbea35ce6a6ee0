//! The demo's own vision tower: it is taught to see what the hand-made map sees, and from then on the
//! pictures' features are its own.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::event::{DemoEvent, Phase, Teller};
use super::model::Tensors;
use super::recipe::Stage;
use super::render::Picture;
use super::run::DemoOptions;
use super::tower;
use super::world::World;
use crate::data::batches::Batches;
use crate::engine::vision::{batch, patches};
use crate::error::Result;
use crate::exec::cpu::CpuExecutor;
use crate::exec::state::TrainState;
use crate::exec::{Adam, Executor, Frozen, FrozenTensor, MemberStep, Pass};
use crate::graph::backward::backward_from;
use crate::graph::{Graph, Role, ValueId};
use crate::image::preprocess::Preprocess;
use crate::model::vision::vision_tower;
use crate::ops::adam::{AdamStep, GradNorm, ZeroGrads};
use crate::ops::add::Add;
use crate::text::pack::Batch;
use crate::train::schedule::cosine;
use crate::train::trainer::StepReport;
use crate::weights::vision::VisionConfig;

/// Pictures that the patches' embedding is scaled by.
const N_CALIBRATION: usize = 256;

/// Length of a target: that of 64 numbers of unit variance, which is what a new tower gives.
const GAIN: f32 = 8.0;

/// The graph of a step: tower, objective, backward and optimiser.
struct Program {
    graph: Arc<Graph>,
    /// From patches to features. Only these nodes read the patches.
    tower: Range<usize>,
    /// From features to the update. Only these nodes read the targets.
    rest: Range<usize>,
    /// (S, E) features less their targets.
    error: ValueId,
    norm: ValueId,
}

impl Program {
    fn new(config: &VisionConfig) -> Program {
        let mut g = Graph::new();
        g.nodes.push(ZeroGrads.into());
        let features = vision_tower(&mut g, config, &tower::trained);
        // A later pass reads them.
        g.get_mut(features).role = Role::Output;
        let split = g.nodes.len();
        let shape = g.get(features).shape.clone();
        let negated = g.value("targets.negated", shape, Role::Input);
        let error = Add::push(&mut g, "error", (features, negated));
        g.get_mut(error).role = Role::Output;
        // Of half the squared error, the gradient is the error.
        backward_from(&mut g, &[(features, error)], &[]);
        let norm = GradNorm::push(&mut g, "grad_norm");
        g.nodes.push(AdamStep { norm }.into());
        g.check();
        Program {
            tower: 0..split,
            rest: split..g.nodes.len(),
            graph: Arc::new(g),
            error,
            norm,
        }
    }
}

/// A tower that learns.
struct Pupil {
    config: VisionConfig,
    program: Program,
    exec: CpuExecutor,
    state: TrainState,
}

impl Pupil {
    fn new(config: VisionConfig, tensors: &Tensors, pool: Arc<rayon::ThreadPool>) -> Pupil {
        let program = Program::new(&config);
        let mut state = TrainState::new(&program.graph, 1);
        let mut frozen = Frozen::default();
        for (name, _, values) in tensors {
            match state.find(name) {
                Some(tensor) => state.set_value(tensor, 0, values),
                None => frozen.insert(name, FrozenTensor::Owned(Arc::new(values.clone()))),
            }
        }
        let exec = CpuExecutor::new(program.graph.clone(), Arc::new(frozen), &state, pool);
        Pupil {
            config,
            program,
            exec,
            state,
        }
    }

    /// One step on patches (N tokens, 3 P P) of pictures and their targets (N, E); gives the loss and
    /// the gradient's norm.
    fn step(
        &mut self,
        patches: Vec<f32>,
        negated: Vec<f32>,
        step: MemberStep,
    ) -> Result<(f32, f32)> {
        let n = negated.len() / self.config.embed_dim;
        let steps = [step];
        let pictures = batch(&self.config, n, patches);
        let (tower, rest) = (self.program.tower.clone(), self.program.rest.clone());
        self.pass(tower, &pictures, &steps)?;
        // Patches are read no more: nothing below the blocks is trained.
        let targets = Batch {
            images: negated,
            ..pictures
        };
        self.pass(rest, &targets, &steps)?;
        let error = self.exec.output(self.program.error);
        let squares = error.iter().map(|x| x * x).sum::<f32>();
        let norm = self.exec.output(self.program.norm);
        Ok((
            squares / error.len() as f32,
            norm.first().copied().unwrap_or(f32::NAN),
        ))
    }

    fn pass(&mut self, nodes: Range<usize>, batch: &Batch, steps: &[MemberStep]) -> Result<()> {
        let pass = Pass {
            nodes,
            batch,
            steps,
            given: &[],
        };
        self.exec.pass(&mut self.state, &pass)
    }

    /// Its weights: `tensors` with what was trained.
    fn tensors(&self, tensors: Tensors) -> Tensors {
        let learnt = |(name, shape, values): (String, Vec<usize>, Vec<f32>)| {
            let own = self.state.find(&name);
            let values = own.map_or(values, |tensor| self.state.value(tensor, 0).to_vec());
            (name, shape, values)
        };
        tensors.into_iter().map(learnt).collect()
    }
}

/// Pictures (N, 3, side, side) as the tower reads them.
pub(super) fn pixels<'p>(
    preprocess: &Preprocess,
    pictures: impl IntoParallelIterator<Item = &'p Picture>,
) -> Result<Vec<f32>> {
    let one = |picture: &Picture| {
        let square = preprocess.crop(&picture.to_image()?)?;
        Ok(preprocess.normalise(&square))
    };
    let all: Result<Vec<Vec<f32>>> = pictures.into_par_iter().map(one).collect();
    all.map(|all| all.concat())
}

/// Teaches a tower the features that the pool's pictures have now; gives its weights.
pub(super) fn teach(
    options: &DemoOptions,
    (world, pictures): (&World, &[Picture]),
    pool: &Arc<rayon::ThreadPool>,
    teller: &mut Teller<'_>,
) -> Result<(VisionConfig, Tensors)> {
    let recipe = &options.recipe.vision;
    let config = tower::config(recipe);
    let preprocess = tower::preprocess();
    let few = &pictures[..pictures.len().min(N_CALIBRATION)];
    let tensors = pool.install(|| -> Result<Tensors> {
        let pixels = pixels(&preprocess, few)?;
        Ok(tower::initial(&config, &pixels, options.seed))
    })?;
    let mut pupil = Pupil::new(config.clone(), &tensors, pool.clone());
    let stage = recipe.stage;
    let mut batches = Batches::new(pictures.len(), stage.batch, options.seed)?;
    let total = batches.steps_per_epoch() * stage.epochs;
    for step in 0..total {
        let start = Instant::now();
        let items = batches.items(step);
        let own = items.iter().map(|i| &world.pool[*i as usize].features);
        let targets = own.flatten().map(|x| -GAIN * x).collect();
        let some: Vec<&Picture> = items.iter().map(|i| &pictures[*i as usize]).collect();
        let patches = pool.install(|| -> Result<Vec<f32>> {
            Ok(patches(&config, &pixels(&preprocess, some)?))
        })?;
        let tokens = patches.len() / config.patch_len();
        let settings = settings(&stage, (step, total), options.seed);
        let (loss, grad_norm) = pupil.step(patches, targets, settings)?;
        let step = StepReport {
            member: 0,
            step: step + 1,
            total,
            loss,
            image_loss: loss,
            text_loss: 0.0,
            lr: settings.adam.lr,
            grad_norm,
            skipped: !grad_norm.is_finite(),
            tokens,
            seconds: start.elapsed().as_secs_f64(),
        };
        let phase = Phase::Vision;
        teller.tell(DemoEvent::Step { phase, step })?;
    }
    Ok((config, pupil.tensors(tensors)))
}

/// Settings of a step.
fn settings(stage: &Stage, (step, total): (usize, usize), seed: u64) -> MemberStep {
    let adam = Adam {
        lr: cosine(stage.lr, step, stage.warmup, total),
        ..Adam::default()
    };
    MemberStep {
        seed,
        step: step as u32,
        adam,
        ..MemberStep::default()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::demo::recipe::Recipe;
    use crate::demo::world::WorldConfig;

    /// Losses of all steps, and the tower.
    fn taught(threads: usize) -> (Vec<f32>, Tensors) {
        let mut options = DemoOptions::new("unused");
        options.recipe = Recipe::quick();
        let vision = &mut options.recipe.vision;
        (vision.hidden, vision.ffn, vision.stage.epochs) = (32, 48, 6);
        vision.stage.warmup = 5;
        let world = World::new(&WorldConfig {
            seed: 4,
            n_pool: 150,
            n_train: 0,
            n_val: 0,
            n_test: 0,
        });
        let pictures: Vec<Picture> = world.pool.iter().map(|item| item.picture()).collect();
        let pool = crate::engine::pool(Some(threads)).unwrap();
        let mut losses = vec![];
        let mut teller = Teller {
            on_event: &mut |event| {
                if let DemoEvent::Step { step, .. } = event {
                    losses.push(step.loss);
                }
                ControlFlow::Continue(())
            },
        };
        let taught = teach(&options, (&world, &pictures), &pool, &mut teller).unwrap();
        (losses, taught.1)
    }

    #[test]
    fn a_tower_learns_the_same_with_any_number_of_threads() {
        let (losses, tensors) = taught(1);
        let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
        let (first, last) = (mean(&losses[..5]), mean(&losses[25..]));
        assert_eq!(losses.len(), 30);
        assert!(last < 0.9 * first, "{first} to {last}");
        assert!((losses.clone(), tensors) == taught(3));
    }
}
