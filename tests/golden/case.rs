//! A golden case: what its file holds, and the run that it asks for.

use std::path::Path;
use std::sync::Arc;

use crosstune::adapter::{Adapter, LoraConfig};
use crosstune::data::Role;
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Adam, Executor, MemberStep};
use crosstune::graph::ValueId;
use crosstune::text::pack::{Batch, MemberTexts};
use crosstune::train::objective::{Strategy, TextLoss};
use crosstune::train::program::{EncodeProgram, Losses, TextModel};
use crosstune::train::schedule::cosine;
use crosstune::weights::checkpoint::Checkpoint;
use crosstune::weights::config::TextConfig;
use serde_json::Value;

use crate::common::golden::{GoldenBatch, texts};

/// The adapter of a golden case, or what is not built yet.
pub fn adapter(pet: &Value) -> Result<Adapter, String> {
    let kind = pet["type"].as_str().expect("type");
    let names = |key: &str| -> Vec<String> {
        let list = pet[key].as_array().cloned().unwrap_or_default();
        list.iter()
            .filter_map(|v| v.as_str().map(String::from))
            .collect()
    };
    let head = names("also_unfreeze")
        .iter()
        .any(|n| n == "LinearTransformation");
    match kind {
        "lora" => {
            let mut lora = LoraConfig {
                rank: pet["lora_r"].as_u64().expect("rank") as usize,
                ..LoraConfig::default()
            };
            if let Some(alpha) = pet["lora_alpha"].as_f64() {
                lora.alpha = alpha as f32;
            }
            let targets = names("modified_modules");
            if !targets.is_empty() {
                lora.targets = targets;
            }
            Ok(Adapter {
                lora: Some(lora),
                layer_norms: true,
                head,
                ..Adapter::default()
            })
        }
        "adapter" => {
            let channels = pet["bottleneck_dim"].as_u64().expect("channels") as usize;
            Ok(Adapter {
                head,
                ..Adapter::bottleneck(channels)
            })
        }
        "compacter" => {
            let reduction = pet["reduction_factor"].as_u64().expect("reduction") as usize;
            Ok(Adapter {
                head,
                ..Adapter::compacter(reduction)
            })
        }
        "prompt" => {
            let k = pet["soft_token_num"].as_u64().expect("vectors") as usize;
            Ok(Adapter {
                head,
                ..Adapter::prompt(k)
            })
        }
        "layernorm" => Ok(Adapter {
            layer_norms: true,
            head,
            ..Adapter::default()
        }),
        "full" => Ok(Adapter::full()),
        other => Err(format!("adapter type `{other}` is not built yet")),
    }
}

pub fn pool(threads: usize) -> Arc<rayon::ThreadPool> {
    Arc::new(
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads"),
    )
}

pub fn set_initial(state: &mut TrainState, case: &Checkpoint) {
    for t in 0..state.tensors.len() {
        if let Some(init) = case.get(&format!("init.{}", state.tensors[t].name)) {
            state.set_value(t, 0, &init.to_f32());
        }
    }
}

pub fn encode(
    model: &TextModel,
    adapter: &Adapter,
    state: &mut TrainState,
    batch: &GoldenBatch,
) -> Vec<Vec<f32>> {
    let program = EncodeProgram::new(&model.config, model.head, adapter);
    let frozen = Arc::new(model.bind(&program.graph).expect("bound"));
    let mut exec = CpuExecutor::new(program.graph.clone(), frozen, state, pool(2));
    features(&mut exec, program.features, (model, adapter), state, batch)
}

/// Features of the four texts of a batch.
pub fn features(
    exec: &mut dyn Executor,
    id: ValueId,
    (model, adapter): (&TextModel, &Adapter),
    state: &mut TrainState,
    batch: &GoldenBatch,
) -> Vec<Vec<f32>> {
    exec.load(state).expect("loaded");
    let mut of = |ids: &Vec<Vec<u32>>| {
        let member = MemberTexts {
            anchors: texts(ids, 0),
            partners: vec![],
        };
        let packed = Batch::pack(&[member], adapter.layout(&model.config), vec![]);
        exec.run(state, &packed, &[MemberStep::default()])
            .expect("ran");
        exec.output(id).expect("read")
    };
    batch.texts.iter().map(&mut of).collect()
}

pub struct Case<'a> {
    pub entry: &'a Value,
    pub file: Checkpoint,
    pub adapter: Adapter,
    strategy: Strategy,
    text_loss: TextLoss,
}

impl<'a> Case<'a> {
    pub fn open(folder: &Path, entry: &'a Value) -> Result<Case<'a>, String> {
        let adapter = adapter(&entry["pet"])?;
        let file = folder.join(entry["file"].as_str().expect("file"));
        Ok(Case {
            entry,
            file: Checkpoint::open(&file).expect("case file"),
            adapter,
            strategy: entry["strategy"]
                .as_str()
                .expect("strategy")
                .parse()
                .expect("strategy"),
            text_loss: entry["text_loss"]
                .as_str()
                .expect("loss")
                .parse()
                .expect("text loss"),
        })
    }

    pub fn batch(&self, b: &GoldenBatch, config: &TextConfig) -> Batch {
        let side = |role: Role| texts(&b.texts[role.index()], role.index() as u8);
        let member = MemberTexts {
            anchors: side(self.strategy.anchor()),
            partners: self.strategy.partner().map_or(vec![], side),
        };
        Batch::pack(&[member], self.adapter.layout(config), b.image.clone())
    }

    pub fn step(&self, s: usize) -> MemberStep {
        let h = &self.entry["hyper"];
        let num = |key: &str| h[key].as_f64().expect("number");
        let lr = cosine(
            num("lr"),
            s,
            num("num_warmup_steps") as usize,
            num("num_training_steps") as usize,
        );
        MemberStep {
            seed: 1,
            step: s as u32,
            weights: self
                .strategy
                .weights(self.text_loss, num("text_loss_ratio") as f32, false),
            loss_scale: 1.0,
            active: true,
            adam: Adam {
                lr,
                beta1: h["betas"][0].as_f64().expect("beta"),
                beta2: h["betas"][1].as_f64().expect("beta"),
                eps: num("eps"),
                weight_decay: num("weight_decay"),
                ..Adam::default()
            },
        }
    }
}

/// The objective's two parts and the objective.
pub fn losses(exec: &dyn Executor, l: &Losses, step: &MemberStep) -> ([f32; 2], f32) {
    let terms = [l.image_anchor, l.mse, l.partner_anchor, l.image_partner];
    Losses::combine(
        &step.weights,
        terms.map(|id| exec.output(id).expect("read")[0]),
    )
}
