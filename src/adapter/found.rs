//! Tensors of another program's adapter by our names, and from them an adapter.

use std::collections::{BTreeMap, BTreeSet};

use super::file::AdapterFile;
use super::prompt::{PromptConfig, SOFT_EMBEDS};
use super::{Adapter, LINEAR_LAYERS, LoraConfig, deltas, ends_with, initial};
use crate::bad_input;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::train::program::{EncodeProgram, TextModel};
use crate::weights::checkpoint::{Checkpoint, shape_text};

/// What PEFT puts in front of every name.
pub(super) const PEFT_PREFIX: &str = "base_model.model.";
/// The end of the name that only full training saves.
const WORDS: &str = "embeddings.word_embeddings.weight";
/// What may stand in front of encoder names: M-CLIP, BERT and RoBERTa with a task head, and none.
const MODULE_PREFIXES: [&str; 4] = ["transformer.", "bert.", "roberta.", ""];

/// An adapter that came from elsewhere, and what its user should know.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The adapter.
    pub adapter: AdapterFile,
    /// Sentences about what is not quite as it was.
    pub notes: Vec<String>,
}

/// Who named the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `base_model.model.MODULE.lora_A.weight`.
    Peft,
    /// `MODULE.lora.lora_A`.
    OpenDelta,
}

impl Dialect {
    /// Module and factor of a branch's tensor.
    fn lora_name(self, own: &str) -> Option<(&str, &str)> {
        let (module, factor) = match self {
            Dialect::Peft => own.strip_suffix(".weight")?.rsplit_once('.')?,
            Dialect::OpenDelta => own.rsplit_once(".lora.")?,
        };
        ["lora_A", "lora_B"]
            .contains(&factor)
            .then_some((module, factor))
    }

    fn example(self) -> String {
        let module = "transformer.encoder.layer.0.attention.self.query";
        match self {
            Dialect::Peft => format!("{PEFT_PREFIX}{module}.lora_A.weight"),
            Dialect::OpenDelta => format!("{module}.lora.lora_A"),
        }
    }
}

/// The tensors of a file by our names.
pub(super) struct Found {
    /// Our name to the file's.
    pub names: BTreeMap<String, String>,
    /// Modules with a branch: our name to the name inside the wrapped module.
    pub modules: BTreeMap<String, String>,
    /// Biases that OpenDelta before 0.3 adds to what a layer norm gives: our name of the norm's bias,
    /// to which they come, to the file's.
    added: BTreeMap<String, String>,
}

impl Found {
    /// Finds our name for each tensor; what has none is an error, the pooler a note.
    pub fn read(file: &Checkpoint, dialect: Dialect, notes: &mut Vec<String>) -> Result<Found> {
        let mut found = Found {
            names: BTreeMap::new(),
            modules: BTreeMap::new(),
            added: BTreeMap::new(),
        };
        let full = file.names().any(|n| n.ends_with(WORDS));
        for (full_name, view) in file.tensors() {
            let bad = |why: &str| bad_input!("{}: tensor {full_name} {why}", file.path().display());
            let inner = match dialect {
                Dialect::OpenDelta => full_name,
                Dialect::Peft => full_name.strip_prefix(PEFT_PREFIX).ok_or_else(|| {
                    bad("does not begin with base_model.model., as PEFT's names do")
                })?,
            };
            if !matches!(view.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
                return Err(bad(&format!(
                    "is {}, expected F32, F16 or BF16",
                    view.dtype
                )));
            }
            let Some(own) = own_name(inner) else {
                return Err(bad(&format!(
                    "belongs to no BERT, XLM-R or M-CLIP; expected names such as {}",
                    dialect.example()
                )));
            };
            if own.starts_with("transformer.pooler.") {
                notes.push(format!(
                    "{inner} is left out: M-CLIP does not use the pooler"
                ));
                continue;
            }
            if dialect == Dialect::OpenDelta && own.contains(".lora.lin.") {
                // OpenDelta's branch has a linear layer that nothing computes with.
                continue;
            }
            if let (Dialect::OpenDelta, Some(name)) = (dialect, deltas::own_name(&own)) {
                let name = name.map_err(&bad)?;
                // Both modules of a parallel adapter's pair hold it, as one or as equal copies.
                match found.names.insert(name, full_name.into()) {
                    Some(former) if file.tensor(&former)?.bytes != view.bytes => {
                        return Err(bad(&format!("is another one than {former}")));
                    }
                    _ => continue,
                }
            }
            let added = own
                .strip_suffix(".bitfit.bias")
                .map(|m| format!("{m}.bias"));
            if let Some(name) = added.filter(|name| is_saved(name, dialect)) {
                if found.added.insert(name, full_name.into()).is_some() {
                    return Err(bad("stands in it twice under different prefixes"));
                }
                continue;
            }
            let name = match dialect.lora_name(&own) {
                Some((module, factor)) if is_linear(module) => {
                    let inner_module = inner.split(".lora").next().unwrap_or(inner);
                    found.modules.insert(module.into(), inner_module.into());
                    format!("{module}.lora.{factor}")
                }
                Some(_) => return Err(bad("is a branch beside no linear layer of a block")),
                None if is_saved(&own, dialect) => own,
                None if dialect == Dialect::OpenDelta && (full || own == SOFT_EMBEDS) => own,
                None => {
                    let more = match dialect {
                        Dialect::Peft => "",
                        Dialect::OpenDelta => "biases, ",
                    };
                    return Err(bad(&format!(
                        "cannot be represented: beside LoRA and OpenDelta's adapters, compacters and \
                         soft prompts, crosstune reads the blocks' {more}output.LayerNorm and \
                         LinearTransformation alone",
                    )));
                }
            };
            if found.names.insert(name, full_name.into()).is_some() {
                return Err(bad("stands in it twice under different prefixes"));
            }
        }
        Ok(found)
    }

    /// Whether every tensor was trained: the words' embeddings were.
    pub fn full(&self) -> bool {
        self.names.keys().any(|own| own.ends_with(WORDS))
    }

    /// Whether biases of linear layers were trained, or added: BitFit.
    pub fn biases(&self) -> bool {
        let is = |own: &String| own.strip_suffix(".bias").is_some_and(is_linear);
        !self.added.is_empty() || self.names.keys().any(is)
    }

    /// Whether the blocks' layer norms were trained as a whole, and not as biases among others.
    pub fn layer_norms(&self) -> bool {
        let weight = |own: &String| own.ends_with("output.LayerNorm.weight");
        match self.biases() {
            true => self.names.keys().any(weight),
            false => self.saved("output.LayerNorm"),
        }
    }

    /// Whether modules of that ending were trained themselves.
    pub fn saved(&self, module: &str) -> bool {
        let is = |name: &String| {
            name.rsplit_once('.')
                .is_some_and(|(m, _)| ends_with(m, module))
        };
        self.names.keys().any(is)
    }

    /// The soft prompt, if there is one: it has a vector a row.
    pub fn prompt(&self, file: &Checkpoint) -> Option<PromptConfig> {
        let view = file.get(self.names.get(SOFT_EMBEDS)?)?;
        Some(PromptConfig::random(*view.shape.first()?))
    }

    /// Targets that name exactly the modules with a branch: PEFT's own list if it does, else layers'
    /// endings, else each by its number.
    pub fn targets(
        &self,
        listed: Option<&[String]>,
        layers: usize,
        path: &str,
    ) -> Result<Vec<String>> {
        let every: Vec<(usize, &str)> = (0..layers)
            .flat_map(|n| LINEAR_LAYERS.map(|linear| (n, linear)))
            .collect();
        let module =
            |(n, linear): &(usize, &str)| format!("transformer.encoder.layer.{n}.{linear}");
        let modules: BTreeSet<String> = every.iter().map(module).collect();
        if let Some(alien) = self.modules.keys().find(|m| !modules.contains(*m)) {
            let inner = &self.modules[alien];
            return Err(bad_input!(
                "{path}: has a branch beside {inner}, but the model has {layers} layers; it was \
                 trained for another model"
            ));
        }
        let has = |at: &&(usize, &str)| self.modules.contains_key(&module(at));
        let uniform = LINEAR_LAYERS
            .iter()
            .filter(|l| every.iter().filter(|e| e.1 == **l).all(|e| has(&e)))
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        let numbered = every.iter().filter(has);
        let numbered = numbered.map(|(n, linear)| format!("layer.{n}.{linear}"));
        let covers = |targets: &Vec<String>| {
            let adapter = Adapter {
                lora: Some(LoraConfig {
                    targets: targets.clone(),
                    ..LoraConfig::default()
                }),
                ..Adapter::default()
            };
            let hit = |module: &String| {
                adapter.lora_at(module).is_some() == self.modules.contains_key(module)
            };
            adapter.check().is_ok() && modules.iter().all(hit)
        };
        let candidates = [listed.map(<[String]>::to_vec), Some(uniform)];
        let best = candidates.into_iter().flatten().find(covers);
        Ok(best.unwrap_or_else(|| numbered.collect()))
    }

    /// One value for all branches and, by `layer.3.attention.self.query`, those of the modules that
    /// have another. The one is `usual` where any module has it; `all` is by our names.
    pub fn with_pattern<T: Copy + PartialEq>(
        usual: T,
        all: &[(&str, T)],
    ) -> (T, BTreeMap<String, T>) {
        let has_it = all.is_empty() || all.iter().any(|(_, x)| *x == usual);
        let one = if has_it { usual } else { all[0].1 };
        let others = all.iter().filter(|(_, x)| *x != one);
        let key = |module: &str| {
            module
                .trim_start_matches("transformer.encoder.")
                .to_string()
        };
        (one, others.map(|(module, x)| (key(module), *x)).collect())
    }

    /// The values in the engine's order.
    pub fn into_adapter(
        self,
        file: &Checkpoint,
        config: Adapter,
        origin: BTreeMap<String, String>,
        model: &TextModel,
        notes: &mut Vec<String>,
    ) -> Result<AdapterFile> {
        let path = file.path().display();
        if config.head && !model.head {
            return Err(bad_input!(
                "{path}: has a trained LinearTransformation, but the model has none"
            ));
        }
        config.check()?;
        config.check_model(&model.config)?;
        let program = EncodeProgram::new(&model.config, model.head, &config);
        let mut state = model.init(&program.graph, &config, &[0])?;
        let mut missing = Vec::new();
        for t in 0..state.tensors.len() {
            let (own, want) = (&state.tensors[t].name, &state.tensors[t].shape);
            let (name, added) = (self.names.get(own), self.added.get(own));
            if name.is_none() && initial(own, want, 0).is_some() {
                return Err(bad_input!("{path}: has no tensor for {own}"));
            }
            if name.is_none() && added.is_none() {
                missing.push(own.clone());
                continue;
            }
            let mut values = match name {
                Some(name) => read(file, name, want)?,
                None => state.value(t, 0).to_vec(),
            };
            if let Some(name) = added {
                let more = read(file, name, want)?;
                values.iter_mut().zip(more).for_each(|(v, x)| *v += x);
            }
            state.set_value(t, 0, &values);
        }
        match &missing[..] {
            [] => {}
            [one] => notes.push(format!("{one} is not in it: the model's is taken")),
            [first, others @ ..] => notes.push(format!(
                "{first} and {} more tensors are not in it: the model's are taken",
                others.len()
            )),
        }
        let mut all = self.names.iter().chain(&self.added);
        match all.find(|(own, _)| state.find(own).is_none()) {
            Some((_, name)) => Err(bad_input!("{path}: {name} is no part of the model")),
            None => Ok(AdapterFile::from_state(&config, &state, 0, origin)),
        }
    }
}

/// The values of a tensor, which must have that shape.
fn read(file: &Checkpoint, name: &str, want: &[usize]) -> Result<Vec<f32>> {
    let view = file.tensor(name)?;
    if view.shape != want {
        return Err(bad_input!(
            "{}: {name} is {}, expected {}: it was trained for another model",
            file.path().display(),
            shape_text(view.shape),
            shape_text(want)
        ));
    }
    Ok(view.to_f32())
}

/// A name inside the wrapped module by M-CLIP's names.
fn own_name(inner: &str) -> Option<String> {
    if inner.starts_with("LinearTransformation.") {
        return Some(inner.into());
    }
    let encoder = |prefix: &str| {
        let rest = inner.strip_prefix(prefix)?;
        let parts = ["encoder.", "embeddings.", "pooler.", "soft_prompt_layer."];
        parts.iter().any(|p| rest.starts_with(p)).then_some(rest)
    };
    let rest = MODULE_PREFIXES.iter().find_map(|p| encoder(p))?;
    Some(format!("transformer.{rest}"))
}

fn is_linear(module: &str) -> bool {
    let block = module.strip_prefix("transformer.encoder.layer.");
    let layer = block.and_then(|b| b.split_once('.'));
    layer.is_some_and(|(_, linear)| LINEAR_LAYERS.contains(&linear))
}

fn is_saved(own: &str, dialect: Dialect) -> bool {
    let saved = Adapter {
        layer_norms: true,
        head: true,
        biases: dialect == Dialect::OpenDelta,
        ..Adapter::default()
    };
    let parameter = own.rsplit('.').next();
    saved.trains(own) && matches!(parameter, Some("weight" | "bias"))
}
