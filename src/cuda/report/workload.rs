//! What the kernels are counted over: whole steps of small models, which together launch all of
//! them. Weights, texts and images follow from names; the counts depend on sizes alone.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Line, Work};
use crate::adapter::{Adapter, LINEAR_LAYERS, LoraConfig};
use crate::cuda::device::Device;
use crate::cuda::embedded::FILES;
use crate::cuda::vm::VmDriver;
use crate::engine::vision::{VisionProgram, batch as vision_batch};
use crate::error::Result;
use crate::exec::cuda::CudaExecutor;
use crate::exec::state::TrainState;
use crate::exec::{Executor, LossWeights, MemberStep};
use crate::graph::plan::Reuse;
use crate::graph::{Bucket, Graph, Role};
use crate::model::text::DropoutRates;
use crate::ops::gelu::Gelu;
use crate::ops::philox::Stream;
use crate::tensor::Dtype;
use crate::text::pack::{Batch, MemberTexts, Text};
use crate::train::program::{EncodeProgram, TrainProgram};
use crate::weights::config::{Encoder, TextConfig};
use crate::weights::view::TensorView;
use crate::weights::vision::VisionConfig;

/// A step of a tower of one layer.
#[derive(Clone, Debug)]
pub struct Case {
    /// A word, for tables.
    pub name: &'static str,
    /// What it is, in a line.
    pub what: &'static str,
    of: Of,
}

#[derive(Clone, Debug)]
enum Of {
    Texts(Texts),
    Pictures(VisionConfig, usize),
}

/// Training or encoding of texts: 128 channels, 512 in the FFN, 64 in common with images.
#[derive(Clone, Debug)]
struct Texts {
    encoder: Encoder,
    adapter: Adapter,
    /// 128 channels in so many heads.
    heads: usize,
    members: usize,
    /// Of each member.
    items: usize,
    /// Tokens of the shortest and of the longest text.
    lengths: (usize, usize),
    dropout: f32,
    trains: bool,
}

/// LoRA of rank 8 beside every linear layer, its input dropped, with norms and head.
fn everywhere() -> Adapter {
    let lora = LoraConfig {
        dropout: 0.1,
        targets: LINEAR_LAYERS.map(String::from).to_vec(),
        ..LoraConfig::default()
    };
    Adapter {
        lora: Some(lora),
        head: true,
        ..Adapter::lora(8)
    }
}

/// All of them.
pub fn cases() -> Vec<Case> {
    let lora = Texts {
        encoder: Encoder::XlmRoberta,
        adapter: Adapter::lora(8),
        heads: 2,
        members: 2,
        items: 6,
        lengths: (3, 20),
        dropout: 0.0,
        trains: true,
    };
    let alone = Texts {
        members: 1,
        items: 8,
        ..lora.clone()
    };
    let long = Texts {
        lengths: (10, 40),
        ..alone.clone()
    };
    let with = |adapter: Adapter, texts: &Texts| Texts {
        adapter,
        ..texts.clone()
    };
    let texts = |name, what, texts| Case {
        name,
        what,
        of: Of::Texts(texts),
    };
    let norms = Adapter {
        layer_norms: true,
        head: true,
        ..Adapter::default()
    };
    vec![
        texts(
            "lora",
            "LoRA on query and value, norms; two members of six captions each and their partners",
            lora,
        ),
        texts(
            "dropout",
            "LoRA everywhere with dropout, norms, head; heads of 32, texts to 40 tokens",
            Texts {
                heads: 4,
                dropout: 0.1,
                ..with(everywhere(), &long)
            },
        ),
        texts(
            "large",
            "LoRA on query and value; more than 1,024 tokens, so tiles of 128",
            Texts {
                items: 48,
                lengths: (8, 20),
                ..alone.clone()
            },
        ),
        texts(
            "bottleneck",
            "bottlenecks of 24, norms",
            with(Adapter::bottleneck(24), &alone),
        ),
        texts(
            "compacter",
            "Compacters of 32 in 4 blocks, norms",
            with(Adapter::compacter(4), &alone),
        ),
        texts(
            "prompt",
            "8 trained slots a text, texts to 40 tokens",
            with(Adapter::prompt(8), &long),
        ),
        texts(
            "full",
            "every tensor; one head of 128, texts to 40 tokens",
            Texts {
                heads: 1,
                ..with(Adapter::full(), &long)
            },
        ),
        texts("layer_norm", "norms and head", with(norms, &alone)),
        texts("bitfit", "every bias", with(Adapter::bitfit(), &alone)),
        texts(
            "clip",
            "CLIP's text tower: LoRA on query and value, norms; texts to 40 tokens",
            Texts {
                encoder: Encoder::Clip(Gelu::Quick),
                ..long
            },
        ),
        texts(
            "encode",
            "LoRA on query and value, forward alone",
            Texts {
                trains: false,
                ..alone
            },
        ),
        Case {
            name: "vision",
            what: "three pictures of 50 tokens by CLIP's vision tower, 128 channels",
            of: Of::Pictures(vision(128, 7), 3),
        },
        Case {
            name: "wide",
            what: "a picture of 10 tokens by the same of 1,280 channels",
            of: Of::Pictures(vision(1280, 3), 1),
        },
    ]
}

/// Patches of 8 by 8 pixels, heads of 64 or 80.
fn vision(hidden: usize, grid: usize) -> VisionConfig {
    VisionConfig {
        hidden,
        layers: 1,
        heads: if hidden == 128 { 2 } else { 16 },
        ffn: 512,
        patch: 8,
        grid,
        embed_dim: 64,
        gelu: Gelu::Quick,
        layer_norm_eps: 1e-5,
        patch_bias: false,
        pre_norm: true,
        projection: true,
    }
}

impl Case {
    /// Runs it once in a machine that has counted nothing yet; gives what each kernel did, sorted
    /// by name.
    ///
    /// # Errors
    /// If a kernel is at fault.
    pub fn run(&self, vm: &VmDriver) -> Result<Vec<Work>> {
        let (graph, batch, members) = match &self.of {
            Of::Texts(texts) => (texts.graph(), texts.batch(), texts.members),
            Of::Pictures(config, n) => {
                let len = n * config.tokens() * config.patch_len();
                let patches = Stream::named(0, "patches").normal(len, 1.0);
                let graph = VisionProgram::new(config).graph;
                (graph, vision_batch(config, *n, patches), 1)
            }
        };
        let device = Device::new(Box::new(vm.clone()), Reuse::Packed);
        let mut state = state(&graph, members);
        let mut exec = executor(&device, &graph, &state)?;
        exec.load(&state)?;
        exec.run(&mut state, &batch, &vec![member(); members])?;
        Ok(self.work(vm))
    }

    fn work(&self, vm: &VmDriver) -> Vec<Work> {
        let counted = vm.take_counters().into_iter();
        let work = counted.map(|(kernel, counters)| {
            let line = |(loc, counts): (&ptxvm::Loc, &ptxvm::Counts)| {
                let (file, line) = vm.place(&kernel, *loc);
                Line {
                    file,
                    line,
                    counted: (*counts).into(),
                }
            };
            Work {
                file: file_of(&kernel).into(),
                case: self.name.into(),
                launches: counters.launches,
                counted: counters.total.into(),
                lines: counters.lines.iter().map(line).collect(),
                kernel,
            }
        });
        work.collect()
    }
}

impl Texts {
    fn config(&self) -> TextConfig {
        TextConfig {
            encoder: self.encoder,
            vocab: 96,
            hidden: 128,
            layers: 1,
            heads: self.heads,
            ffn: 512,
            max_positions: 64,
            token_types: 1,
            layer_norm_eps: 1e-5,
            pad_id: 1,
            hidden_dropout: 0.1,
            attention_dropout: 0.1,
            embed_dim: 64,
        }
    }

    fn graph(&self) -> Arc<Graph> {
        let (config, rates) = (
            self.config(),
            DropoutRates {
                hidden: self.dropout,
                attention: self.dropout,
            },
        );
        match self.trains {
            true => TrainProgram::new(&config, true, &self.adapter, rates).graph,
            false => EncodeProgram::new(&config, true, &self.adapter).graph,
        }
    }

    /// Each item has a caption and, in training, a partner; lengths take turns.
    fn batch(&self) -> Batch {
        let config = self.config();
        let (least, most) = self.lengths;
        let n_texts = self.members * self.items * 2;
        let ids = |t: usize| {
            let len = least + t * 7 % (most - least + 1);
            (0..len).map(move |i| ((t * 37 + i * 11) % config.vocab) as u32)
        };
        let all: Vec<Vec<u32>> = (0..n_texts).map(|t| ids(t).collect()).collect();
        let texts = |g: usize, role: u8| -> Vec<Text<'_>> {
            let text = |item: usize| Text {
                ids: &all[(g * self.items + item) * 2 + usize::from(role)],
                role,
                item: item as u32,
            };
            (0..self.items).map(text).collect()
        };
        let members = (0..self.members).map(|g| MemberTexts {
            anchors: texts(g, 0),
            partners: if self.trains { texts(g, 1) } else { vec![] },
        });
        let n_images = if self.trains { n_texts / 2 } else { 0 };
        let images = Stream::named(0, "images").normal(n_images * config.embed_dim, 1.0);
        let members: Vec<MemberTexts<'_>> = members.collect();
        Batch::pack(&members, self.adapter.layout(&config), images)
    }
}

/// The stem of the file that has a kernel.
fn file_of(kernel: &str) -> &'static str {
    let entry = format!(".entry {kernel}(");
    let file = FILES.iter().find(|f| f.ptx.contains(&entry));
    file.map_or("", |f| f.name)
}

/// All four losses.
fn member() -> MemberStep {
    MemberStep {
        weights: LossWeights {
            image_anchor: 1.0,
            mse: 0.5,
            partner_anchor: 0.25,
            image_partner: 0.125,
            stop_partner: false,
        },
        loss_scale: 256.0,
        ..MemberStep::default()
    }
}

fn executor(device: &Device, graph: &Arc<Graph>, state: &TrainState) -> Result<CudaExecutor> {
    let none = Bucket {
        tokens: 0,
        seqs: 0,
        items: 0,
        members: 0,
    };
    let frozen: HashMap<&str, Vec<f32>> = graph
        .with_role(Role::Frozen)
        .map(|id| {
            let value = graph.get(id);
            (&*value.name, random(&value.name, value.elements(&none)))
        })
        .collect();
    let source = |name: &str| {
        Ok(TensorView {
            dtype: Dtype::F32,
            shape: &[],
            bytes: bytemuck::cast_slice(&frozen[name]),
        })
    };
    CudaExecutor::new(device, &source, graph.clone(), state)
}

fn state(graph: &Graph, members: usize) -> TrainState {
    let mut state = TrainState::new(graph, members);
    for t in 0..state.tensors.len() {
        let values = random(&state.tensors[t].name, state.tensors[t].len);
        (0..members).for_each(|g| state.set_value(t, g, &values));
    }
    state
}

fn random(name: &str, len: usize) -> Vec<f32> {
    let is_norm = name.contains("norm") || name.contains("Norm");
    match is_norm && name.ends_with("weight") {
        true => vec![1.0; len],
        false => Stream::named(0, name).uniform(len, 0.1),
    }
}
