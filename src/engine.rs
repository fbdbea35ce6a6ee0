//! The engine: an opened text model on this machine's cores. It encodes texts; trainers borrow it.
//!
//! Several may live in one process: each has its own pool of threads and nothing is global.

mod home;
pub mod memory;
pub mod vision;

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::home::Home;
use crate::adapter::Adapter;
use crate::adapter::file::AdapterFile;
use crate::adapter_set::AdapterSet;
use crate::bad_input;
#[cfg(feature = "cuda")]
use crate::cuda::device::Device;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::exec::cpu::CpuExecutor;
#[cfg(feature = "cuda")]
use crate::exec::cuda::CudaExecutor;
use crate::exec::state::TrainState;
use crate::exec::{Executor, MemberStep};
use crate::graph::Graph;
#[cfg(feature = "cuda")]
use crate::graph::Role;
use crate::graph::cost::Numbers;
use crate::profile::report::{Place, Report};
use crate::profile::{Phase, PhaseGuard, Profiler, ceiling};
use crate::text::pack::{Batch, MemberTexts, Text};
use crate::text::tokenizer::Tokenizer;
use crate::train::program::{EncodeProgram, TextModel};
use crate::weights::inspect::scan;
use crate::weights::text_model::TextModelFiles;

/// Packed tokens of one pass when encoding: enough to fill the cores, small enough for the caches.
const ENCODE_TOKENS: usize = 2048;

/// How to open an [`Engine`].
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineOptions {
    /// Threads; all cores where not set. Results do not depend on it.
    pub threads: Option<usize>,
    /// Where it computes; the CPU where not said otherwise.
    pub device: DeviceChoice,
}

/// A pool of so many threads, or one for each core.
pub(crate) fn pool(threads: Option<usize>) -> Result<Arc<rayon::ThreadPool>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or(cores);
    if threads == 0 {
        return Err(bad_input!("threads: found 0, expected at least 1"));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::Run(format!("{threads} threads can't be started: {e}")))?;
    Ok(Arc::new(pool))
}

/// The thread that loads a tokenizer, and how long that took.
type Loader = JoinHandle<(Result<Tokenizer>, Duration)>;

/// A tokenizer that is being loaded beside everything else.
struct Loading {
    handle: Mutex<Option<Loader>>,
    ready: OnceLock<(Tokenizer, Duration)>,
}

/// An opened text model.
pub struct Engine {
    model: TextModel,
    tokenizer: Loading,
    pool: Arc<rayon::ThreadPool>,
    threads: usize,
    home: Home,
    device: DeviceChoice,
    profiler: Option<Profiler>,
}

impl Engine {
    /// Opens a model folder: maps its weights and begins to load its tokenizer in the background.
    ///
    /// # Errors
    /// See [`TextModelFiles::open`]. A tokenizer that can't be read is reported by the first call
    /// that needs it.
    pub fn open(folder: &Path, options: EngineOptions) -> Result<Engine> {
        Engine::load(folder, options, Home::open)
    }

    /// The same on a device that is open already, whose name is that of `options`. Engines of one model
    /// may share it.
    ///
    /// # Errors
    /// As [`Engine::open`].
    #[cfg(feature = "cuda")]
    pub fn open_on(folder: &Path, options: EngineOptions, device: Device) -> Result<Engine> {
        let home = |choice| Ok((Home::Cuda(device), choice));
        Engine::load(folder, options, home)
    }

    fn load(
        folder: &Path,
        options: EngineOptions,
        home: impl FnOnce(DeviceChoice) -> Result<(Home, DeviceChoice)>,
    ) -> Result<Engine> {
        let files = TextModelFiles::open(folder)?;
        let (path, config) = (files.tokenizer.clone(), files.config.clone());
        let load = move || {
            let start = Instant::now();
            (Tokenizer::load(&path, &config), start.elapsed())
        };
        let handle = std::thread::Builder::new()
            .name("tokenizer".into())
            .spawn(load)
            .map_err(|e| Error::Run(format!("a thread for the tokenizer can't be started: {e}")))?;
        let tokenizer = Loading {
            handle: Mutex::new(Some(handle)),
            ready: OnceLock::new(),
        };
        let pool = pool(options.threads)?;
        let (home, device) = home(options.device)?;
        Ok(Engine {
            model: TextModel::new(files),
            tokenizer,
            threads: pool.current_num_threads(),
            pool,
            home,
            device,
            profiler: None,
        })
    }

    /// The same, recording where time goes from here on.
    pub fn profiled(mut self) -> Engine {
        self.profiler = Some(Profiler::new(match &self.home {
            Home::Cpu => Numbers::F32,
            #[cfg(feature = "cuda")]
            Home::Cuda(_) => Numbers::F16,
        }));
        self
    }

    /// A phase of a profiled run, until it is dropped.
    pub fn phase(&self, phase: Phase) -> Option<PhaseGuard> {
        self.profiler.as_ref().map(|p| p.phase(phase))
    }

    /// What a profiled run recorded so far, beside ceilings that are measured now, and who writes
    /// its files.
    pub fn profile(&self) -> Option<(Report, &Profiler)> {
        let profiler = self.profiler.as_ref()?;
        let ceilings = || match &self.home {
            Home::Cpu => Ok(ceiling::of_pool(&self.pool)),
            #[cfg(feature = "cuda")]
            Home::Cuda(device) => ceiling::of_device(device).map_err(Error::from),
        };
        let place = Place {
            device: self.device_name(),
            threads: self.threads,
            virtual_machine: self.is_virtual(),
        };
        Some((profiler.report(place, ceilings), profiler))
    }

    /// The model.
    pub fn model(&self) -> &TextModel {
        &self.model
    }

    /// E, the width of the joint space.
    pub fn embed_dim(&self) -> usize {
        self.model.config.embed_dim
    }

    /// Threads of its pool.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Its pool of threads.
    pub fn pool(&self) -> Arc<rayon::ThreadPool> {
        self.pool.clone()
    }

    /// Where it computes. Never [`DeviceChoice::Auto`], but what that took.
    pub fn device(&self) -> DeviceChoice {
        self.device
    }

    /// Where it computes, for people: the CPU, a card, the virtual machine.
    pub fn device_name(&self) -> String {
        match &self.home {
            Home::Cpu => "CPU".into(),
            #[cfg(feature = "cuda")]
            Home::Cuda(device) => device.name(),
        }
    }

    /// Whether it computes in the virtual machine.
    fn is_virtual(&self) -> bool {
        match &self.home {
            Home::Cpu => false,
            #[cfg(feature = "cuda")]
            Home::Cuda(device) => device.is_virtual(),
        }
    }

    /// What the loss gradient is multiplied by at first, a power of two: activations in f16 need it.
    pub fn first_loss_scale(&self) -> f32 {
        match &self.home {
            Home::Cpu => 1.0,
            #[cfg(feature = "cuda")]
            Home::Cuda(_) => 1024.0,
        }
    }

    /// What runs a graph of this model, with the trainable tensors of `state`.
    ///
    /// # Errors
    /// If the checkpoint lacks a weight of the graph; if the device has no room for it.
    pub fn executor(
        &self,
        graph: &Arc<Graph>,
        state: &TrainState,
    ) -> Result<Box<dyn Executor + Send>> {
        let mut exec = self.unobserved(graph, state)?;
        if let Some(profiler) = &self.profiler {
            exec.observe(profiler.observer(graph));
        }
        Ok(exec)
    }

    fn unobserved(
        &self,
        graph: &Arc<Graph>,
        state: &TrainState,
    ) -> Result<Box<dyn Executor + Send>> {
        match &self.home {
            Home::Cpu => {
                let frozen = Arc::new(self.model.bind(graph)?);
                let exec = CpuExecutor::new(graph.clone(), frozen, state, self.pool());
                Ok(Box::new(exec))
            }
            #[cfg(feature = "cuda")]
            Home::Cuda(device) => {
                let source = |name: &str| self.model.frozen(name);
                let exec = CudaExecutor::new(device, &source, graph.clone(), state)?;
                // What is on the device now is not read here again.
                for id in graph.with_role(Role::Frozen) {
                    self.model.release(&graph.get(id).name);
                }
                Ok(Box::new(exec))
            }
        }
    }

    /// The tokenizer, once it is loaded, and how long that took.
    ///
    /// # Errors
    /// If it can't be read or does not fit the model.
    pub fn tokenizer(&self) -> Result<(&Tokenizer, Duration)> {
        if self.tokenizer.ready.get().is_none() {
            let mut slot = self
                .tokenizer
                .handle
                .lock()
                .unwrap_or_else(|e| e.into_inner());
            if let Some(handle) = slot.take() {
                let (tokenizer, took) = handle.join().map_err(|_| {
                    Error::Run("the tokenizer's loader stopped unexpectedly".into())
                })?;
                let _ = self.tokenizer.ready.set((tokenizer?, took));
            }
        }
        match self.tokenizer.ready.get() {
            Some((tokenizer, took)) => Ok((tokenizer, *took)),
            None => Err(Error::Run(
                "the tokenizer could not be loaded; see the first error".into(),
            )),
        }
    }

    /// Token ids of texts, special tokens included.
    ///
    /// # Errors
    /// An empty text, or one that is longer than the position table.
    pub fn tokenize<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>> {
        let _phase = self.phase(Phase::Tokenise);
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        if let Some(i) = texts.iter().position(|t| t.trim().is_empty()) {
            return Err(bad_input!("text {} is empty", i + 1));
        }
        let limit = self.model.config.max_tokens();
        self.tokenizer()?.0.encode_batch(&texts, Some(limit))
    }

    /// Token ids of words without special tokens, as a prompt has them.
    ///
    /// # Errors
    /// As [`Engine::tokenizer`].
    pub fn encode_words(&self, words: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.0.encode_words(words)
    }

    /// Features (N, E) of texts, not normalised.
    ///
    /// # Errors
    /// As [`Engine::tokenize`]; an adapter of another model; features that are not finite.
    pub fn encode<S: AsRef<str>>(
        &self,
        texts: &[S],
        adapter: Option<&AdapterFile>,
    ) -> Result<Vec<f32>> {
        let ids = self.tokenize(texts)?;
        AdapterSet::new(self, &[adapter])?.encode(self, &ids, &vec![0; ids.len()], &mut |_| {})
    }

    /// Why numbers are not finite: the first bad weight of the checkpoint, or else the largest value
    /// that a member has trained.
    pub(crate) fn blame(&self, state: &TrainState, member: usize) -> String {
        let file = self.model.weights().path().display();
        if let Some(bad) = scan(self.model.weights()).first() {
            return format!(
                "{file}: {} holds {} at element {}",
                bad.tensor, bad.value, bad.index
            );
        }
        #[cfg(feature = "cuda")]
        if matches!(self.home, Home::Cuda(_)) {
            return format!(
                "every weight of {file} is finite, but activations are f16 on this device and hold \
                 no more than 65504: try --device cpu, or a smaller learning rate"
            );
        }
        match state.largest(member) {
            Some((tensor, value)) => format!(
                "every weight of {file} is finite, but {tensor} was trained to {value:e}: try a \
                 smaller learning rate"
            ),
            None => format!("every weight of {file} is finite, but they overflow when multiplied"),
        }
    }
}

/// The tower alone, bound to memory, with the values of one adapter or of several of one kind.
pub struct TextEncoder {
    program: EncodeProgram,
    exec: Box<dyn Executor + Send>,
    /// Values of the trainable tensors, one member an adapter.
    pub state: TrainState,
    adapter: Adapter,
}

impl TextEncoder {
    /// Binds the tower; trainable tensors begin as an untrained adapter's.
    ///
    /// # Errors
    /// Those of [`Adapter::check_model`]; if the checkpoint lacks a tensor.
    pub fn new(engine: &Engine, adapter: &Adapter) -> Result<TextEncoder> {
        TextEncoder::with_members(engine, adapter, 1)
    }

    /// The same for several adapters of one configuration.
    ///
    /// # Errors
    /// If the checkpoint lacks a tensor.
    pub fn with_members(engine: &Engine, adapter: &Adapter, members: usize) -> Result<TextEncoder> {
        let model = engine.model();
        adapter.check_model(&model.config)?;
        let program = EncodeProgram::new(&model.config, model.head, adapter);
        let state = model.init(&program.graph, adapter, &vec![0; members])?;
        let exec = engine.executor(&program.graph, &state)?;
        Ok(TextEncoder {
            program,
            exec,
            state,
            adapter: adapter.clone(),
        })
    }

    /// The adapter that it was made for.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Features (N, E) of tokenised texts by the first adapter; `progress` is told how many are
    /// done.
    ///
    /// # Errors
    /// Those of [`Adapter::check_lengths`]; a feature that is not finite.
    pub fn encode(
        &mut self,
        engine: &Engine,
        ids: &[Vec<u32>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        let all: Vec<(usize, usize)> = (0..ids.len()).map(|i| (i, 0)).collect();
        let mut features = vec![0f32; ids.len() * engine.embed_dim()];
        self.encode_into(&mut features, engine, ids, &all, progress)?;
        Ok(features)
    }

    /// Writes the features of some of the texts into their rows of `features` (N, E); beside each
    /// text stands the number of its adapter. A feature does not depend on a text's company.
    ///
    /// # Errors
    /// Those of [`Adapter::check_lengths`]; a feature that is not finite.
    pub(crate) fn encode_into(
        &mut self,
        features: &mut [f32],
        engine: &Engine,
        ids: &[Vec<u32>],
        texts: &[(usize, usize)],
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let config = &engine.model().config;
        let mine = texts.iter().map(|(text, _)| (*text, &ids[*text][..]));
        self.adapter.check_lengths(mine, config)?;
        // Values may have been set since the last time.
        self.exec.load(&self.state)?;
        let layout = self.adapter.layout(config);
        let width = engine.embed_dim();
        let mut start = 0;
        while start < texts.len() {
            let mut end = start;
            let mut tokens = 0;
            while end < texts.len() {
                let more = ids[texts[end].0].len() + layout.prompt;
                if end > start && tokens + more > ENCODE_TOKENS {
                    break;
                }
                tokens += more;
                end += 1;
            }
            // Rows of a member lie together.
            let mut pass = texts[start..end].to_vec();
            pass.sort_by_key(|(_, member)| *member);
            let mut members = vec![MemberTexts::default(); self.state.members];
            for (text, member) in &pass {
                members[*member].anchors.push(Text {
                    ids: &ids[*text],
                    role: 0,
                    item: 0,
                });
            }
            let batch = Batch::pack(&members, layout, vec![]);
            let steps = vec![MemberStep::default(); members.len()];
            self.exec.run(&mut self.state, &batch, &steps)?;
            let out = self.exec.output(self.program.features)?;
            for ((text, member), row) in pass.iter().zip(out.chunks_exact(width)) {
                if row.iter().any(|x| !x.is_finite()) {
                    return Err(Error::Run(format!(
                        "text {}: its feature is not finite; {}",
                        text + 1,
                        engine.blame(&self.state, *member)
                    )));
                }
                features[text * width..][..width].copy_from_slice(row);
            }
            start = end;
            progress(start);
        }
        Ok(())
    }
}
