//! An opened vision tower on this machine's cores or a device: it encodes pictures.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::EngineOptions;
use super::home::Home;
use crate::bad_input;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::exec::cpu::CpuExecutor;
#[cfg(feature = "cuda")]
use crate::exec::cuda::CudaExecutor;
use crate::exec::state::TrainState;
use crate::exec::{Executor, MemberStep};
use crate::graph::{Graph, Role, ValueId};
use crate::model::vision::vision_tower;
use crate::text::pack::{Batch, Layout, MemberTexts, Text};
use crate::weights::inspect::scan;
use crate::weights::vision::{VisionConfig, VisionFiles};

/// Tokens of one pass on the CPU: enough to fill the cores, small enough for the caches.
const PASS_TOKENS: usize = 2048;
/// On a device: tiles of products for each of its multiprocessors.
const DEVICE_PASS_TOKENS: usize = 8192;

/// The graph of a vision tower alone.
pub struct VisionProgram {
    /// The tower.
    pub graph: Arc<Graph>,
    /// (N, E) features, not normalised.
    pub features: ValueId,
}

impl VisionProgram {
    /// The tower, frozen.
    pub fn new(config: &VisionConfig) -> VisionProgram {
        let mut g = Graph::new();
        let features = vision_tower(&mut g, config, &|_| false);
        g.get_mut(features).role = Role::Output;
        g.check();
        VisionProgram {
            graph: Arc::new(g),
            features,
        }
    }
}

/// An opened vision tower.
pub struct VisionEngine {
    files: VisionFiles,
    program: VisionProgram,
    exec: Box<dyn Executor + Send>,
    state: TrainState,
    pool: Arc<rayon::ThreadPool>,
    device: DeviceChoice,
}

impl VisionEngine {
    /// Binds a tower.
    ///
    /// # Errors
    /// If the device can't be used or has no room.
    pub fn new(files: VisionFiles, options: EngineOptions) -> Result<VisionEngine> {
        let pool = super::pool(options.threads)?;
        let (home, device) = Home::open(options.device)?;
        let program = VisionProgram::new(&files.config);
        let state = TrainState::new(&program.graph, 1);
        let graph = program.graph.clone();
        let exec: Box<dyn Executor + Send> = match &home {
            Home::Cpu => {
                let frozen = Arc::new(files.weights.bind(&graph)?);
                Box::new(CpuExecutor::new(graph, frozen, &state, pool.clone()))
            }
            #[cfg(feature = "cuda")]
            Home::Cuda(device) => {
                let source = |name: &str| files.weights.view(name);
                let exec = CudaExecutor::new(device, &source, graph.clone(), &state)?;
                // What is on the device now is not read here again.
                for id in graph.with_role(Role::Frozen) {
                    files.weights.release(&graph.get(id).name);
                }
                Box::new(exec)
            }
        };
        Ok(VisionEngine {
            files,
            program,
            exec,
            state,
            pool,
            device,
        })
    }

    /// Opens a folder and binds its tower; see [`VisionFiles::open`].
    ///
    /// # Errors
    /// Those of [`VisionFiles::open`] and [`VisionEngine::new`].
    pub fn open(path: &Path, side: Option<usize>, options: EngineOptions) -> Result<VisionEngine> {
        VisionEngine::new(VisionFiles::open(path, side)?, options)
    }

    /// Sizes and settings.
    pub fn config(&self) -> &VisionConfig {
        &self.files.config
    }

    /// The opened files.
    pub fn files(&self) -> &VisionFiles {
        &self.files
    }

    /// Its pool of threads.
    pub fn pool(&self) -> Arc<rayon::ThreadPool> {
        self.pool.clone()
    }

    /// Where it computes. Never [`DeviceChoice::Auto`], but what that took.
    pub fn device(&self) -> DeviceChoice {
        self.device
    }

    /// Pictures of one pass, at least 1: as many are encoded at once, whoever asks for more.
    pub fn pass(&self) -> usize {
        let tokens = match self.device {
            DeviceChoice::Cpu | DeviceChoice::Auto => PASS_TOKENS,
            DeviceChoice::Cuda(_) | DeviceChoice::Vm(_) => DEVICE_PASS_TOKENS,
        };
        (tokens / self.config().tokens()).max(1)
    }

    /// Features (N, E), not normalised, of pictures (N, 3, side, side) that were normalised as the tower
    /// wants it. A picture's feature does not depend on its company.
    ///
    /// # Errors
    /// Pixels of another number; a feature that is not finite; a device that fails.
    pub fn encode(&mut self, pixels: &[f32]) -> Result<Vec<f32>> {
        let config = self.config().clone();
        let picture = 3 * config.image_size() * config.image_size();
        if !pixels.len().is_multiple_of(picture) {
            return Err(bad_input!(
                "pixels: found {}, expected a multiple of {picture}: 3 x {} x {} each",
                pixels.len(),
                config.image_size(),
                config.image_size()
            ));
        }
        let mut features = Vec::with_capacity(pixels.len() / picture * config.embed_dim);
        for some in pixels.chunks(picture * self.pass()) {
            let n = some.len() / picture;
            let batch = batch(&config, n, self.pool.install(|| patches(&config, some)));
            let steps = [MemberStep::default()];
            self.exec.run(&mut self.state, &batch, &steps)?;
            let out = self.exec.output(self.program.features)?;
            features.extend_from_slice(&out[..n * config.embed_dim]);
        }
        match features.iter().position(|x| !x.is_finite()) {
            None => Ok(features),
            Some(at) => Err(self.blame(at / config.embed_dim)),
        }
    }

    /// Why a feature is not finite.
    fn blame(&self, picture: usize) -> Error {
        let file = self.files.weights.checkpoint();
        let path = file.path().display();
        let why = match scan(file).first() {
            Some(bad) => format!("{path}: {} holds {}", bad.tensor, bad.value),
            None => format!("every weight of {path} is finite, but they overflow when multiplied"),
        };
        Error::Run(format!(
            "picture {}: its feature is not finite; {why}",
            picture + 1
        ))
    }
}

/// A batch of `n` pictures: segments of as many tokens each, whose patches stand where images of a
/// training step would.
pub fn batch(config: &VisionConfig, n: usize, patches: Vec<f32>) -> Batch {
    let ids = vec![0; config.tokens()];
    let picture = |item: usize| Text {
        ids: &ids,
        role: 0,
        item: item as u32,
    };
    let member = MemberTexts {
        anchors: (0..n).map(picture).collect(),
        partners: vec![],
    };
    Batch::pack(&[member], Layout::default(), patches)
}

/// Pictures (N, 3, side, side) as rows of patches (N tokens, 3 P P): a row of zeros for the class token,
/// then patches by row and column.
pub fn patches(config: &VisionConfig, pixels: &[f32]) -> Vec<f32> {
    let (side, p, len) = (config.image_size(), config.patch, config.patch_len());
    let mut out = vec![0f32; pixels.len() / (3 * side * side) * config.tokens() * len];
    let pictures = pixels.par_chunks_exact(3 * side * side);
    let rows = out.par_chunks_exact_mut(config.tokens() * len);
    rows.zip(pictures).for_each(|(rows, pixels)| {
        for (i, row) in rows.chunks_exact_mut(len).skip(1).enumerate() {
            let (top, left) = (i / config.grid * p, i % config.grid * p);
            for (line, out) in row.chunks_exact_mut(p).enumerate() {
                let (channel, y) = (line / p, top + line % p);
                let at = (channel * side + y) * side + left;
                out.copy_from_slice(&pixels[at..at + p]);
            }
        }
    });
    out
}
