//! `crosstune plan`.

use anyhow::Result;
use clap::ValueEnum;
use crosstune::adapter::Adapter;
use crosstune::bad_input;
use crosstune::device::DeviceChoice;
use crosstune::engine::{Engine, EngineOptions};
use crosstune::exec::Frozen;
use crosstune::graph::plan::shape_text;
use crosstune::graph::{Bucket, Graph, Role, ValueId};
use crosstune::train::config::Shared;
use crosstune::train::cost::{Cost, Load, is_the_papers};
use crosstune::train::program::TrainProgram;
use crosstune::weights::config::TextConfig;
use crosstune::weights::{hub, published};
use serde_json::{Value, json};

use super::Output;
use super::data::required;
use super::method::{Method, MethodArgs};
use super::plan_time::Time;
use super::train::model_parameters;

/// Options of planning.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  What LoRA of rank 8 costs for a step of 64 captions:
    crosstune plan --model m-clip --rank 8 --texts 64 --tokens 1280
  A batch of 4,096 captions, in pieces:
    crosstune plan --model m-clip --texts 4096 --tokens 82000 --max-tokens 2048
  How long the paper's step takes at least on a GPU:
    crosstune plan --arch xlm-roberta-large-vit-l-14 --tokens 4224 --texts 211 --time
  What each method costs on a published model, which need not be here:
    crosstune plan --arch xlm-roberta-large-vit-l-14 --methods")]
pub struct Args {
    /// The model: a folder, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME", conflicts_with = "arch")]
    model: Option<String>,
    /// A published M-CLIP instead, of which no file is needed: xlm-roberta-large-vit-l-14,
    /// xlm-roberta-large-vit-b-32, xlm-roberta-large-vit-b-16plus or labse-vit-l-14.
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Packed tokens of a step.
    #[arg(long, default_value_t = 1056)]
    tokens: usize,
    /// Texts of a step.
    #[arg(long, default_value_t = 64)]
    texts: usize,
    /// Most packed tokens of a pass, as `train --max-tokens` has it [default: no limit].
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Print a table of all methods, each at its defaults.
    #[arg(long, conflicts_with_all = ["nodes", "values", "MethodArgs"])]
    methods: bool,
    /// Print the nodes in order.
    #[arg(long)]
    nodes: bool,
    /// Print the values with their places in the arena, largest first.
    #[arg(long)]
    values: bool,
    /// Print how long the step takes at least on an H100, an A100 and an L4, by a model.
    #[arg(long, conflicts_with_all = ["methods", "max_tokens"])]
    time: bool,
    #[command(flatten)]
    method: MethodArgs,
}

/// What is planned for.
struct Subject {
    config: TextConfig,
    head: bool,
    parameters: usize,
    /// With its weights, if they are here.
    engine: Option<Engine>,
    /// The whole step of one member, and its bucket.
    step: Load,
    bucket: Bucket,
    max_tokens: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let subject = Subject::new(&args)?;
    if args.methods {
        return table(&subject, output);
    }
    let mut shared = Shared {
        max_tokens: args.max_tokens,
        ..args.method.shared()?
    };
    shared.check()?;
    if let Some(engine) = &subject.engine {
        shared
            .adapter
            .read_words(|words| engine.encode_words(words))?;
    } else if args.method.prompt_text.is_some() {
        return Err(bad_input!(
            "prompt-text: needs the tokenizer of a --model; with --arch give --prompt-length"
        )
        .into());
    }
    let (program, cost) = subject.cost(&shared)?;
    let graph = &*program.graph;
    let frozen = subject.engine.as_ref().map(|e| e.model().bind(graph));
    let frozen = frozen.transpose()?;
    let copies = frozen.as_ref().map(Frozen::copies);
    let values = args.values.then(|| {
        subject
            .step
            .largest_pass(graph, 1, subject.max_tokens)
            .table(graph)
    });
    let time = args.time.then(|| Time::new(graph, subject.bucket));
    if output.json {
        let mut all = subject.json(&program, &shared.adapter, &cost);
        all["private_copies"] = json!(copies.unwrap_or_default());
        if args.nodes {
            all["node_list"] = json!(node_lines(graph));
        }
        if let Some(time) = time {
            all["time"] = time.json();
        }
        if let Some(values) = values {
            all["value_list"] = json!(values.lines().collect::<Vec<_>>());
        }
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    subject.print(&program, &shared.adapter, &cost);
    if let Some(copies) = copies {
        print_copies(&copies);
    }
    if let Some(time) = time {
        print!("{}", time.table());
    }
    if args.nodes {
        node_lines(graph).iter().for_each(|l| println!("{l}"));
    }
    if let Some(values) = values {
        print!("{values}");
    }
    Ok(())
}

impl Subject {
    fn new(args: &Args) -> Result<Subject> {
        let step = Load {
            tokens: args.tokens,
            seqs: args.texts,
            items: args.texts,
            shortest: args.tokens / args.texts.max(1),
            longest: args.tokens.div_ceil(args.texts.max(1)),
        };
        let bucket = Bucket::holding(step.tokens, step.seqs, step.items, 1);
        let max_tokens = args.max_tokens;
        if let Some(name) = &args.arch {
            let Some(config) = published::find(name) else {
                let names: Vec<_> = published::names().collect();
                let names = names.join(", ");
                return Err(bad_input!("arch: found `{name}`, expected one of {names}").into());
            };
            return Ok(Subject {
                parameters: config.parameters(),
                config,
                head: true,
                engine: None,
                step,
                bucket,
                max_tokens,
            });
        }
        let model = required(
            &args.model,
            "model",
            "DIR of an M-CLIP model (or --arch NAME)",
        )?;
        // A plan computes nothing.
        let options = EngineOptions {
            threads: Some(1),
            device: DeviceChoice::Cpu,
        };
        let engine = Engine::open(&hub::resolve(&model)?, options)?;
        Ok(Subject {
            config: engine.model().config.clone(),
            head: engine.model().head,
            parameters: model_parameters(&engine),
            engine: Some(engine),
            step,
            bucket,
            max_tokens,
        })
    }

    fn cost(&self, shared: &Shared) -> Result<(TrainProgram, Cost)> {
        shared.adapter.check_model(&self.config)?;
        let rates = shared.dropout(&self.config);
        let program = TrainProgram::new(&self.config, self.head, &shared.adapter, rates);
        let pass = self.step.largest_pass(&program.graph, 1, self.max_tokens);
        let cost = Cost::new(&program, &shared.adapter, self.bucket, &pass);
        Ok((program, cost))
    }

    /// Tokens of a text, all being equally long.
    fn text_length(&self) -> f64 {
        self.bucket.tokens as f64 / self.bucket.seqs as f64
    }

    fn json(&self, program: &TrainProgram, adapter: &Adapter, cost: &Cost) -> Value {
        let graph = &*program.graph;
        let tensor = |id: ValueId| {
            let v = graph.get(id);
            let shape = v.shape[1..].iter().map(|d| d.size(&self.bucket));
            json!({"name": v.name, "shape": shape.collect::<Vec<_>>()})
        };
        let tensors: Vec<Value> = graph.with_role(Role::Trainable).map(tensor).collect();
        let mut all = json!(cost);
        let more = json!({
            "config": self.config,
            "model_parameters": self.parameters,
            "trainable_share": cost.share(self.parameters),
            "the_papers": is_the_papers(adapter, &self.config),
            "trainable_tensors": tensors,
            "bucket": {"tokens": self.bucket.tokens, "texts": self.bucket.seqs},
            "max_tokens": self.max_tokens,
            "nodes": graph.nodes.len(),
            "forward_nodes": program.forward_nodes,
        });
        if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
            all.extend(more);
        }
        all
    }

    fn print(&self, program: &TrainProgram, adapter: &Adapter, cost: &Cost) {
        let mib = |n: usize| n as f64 / (1 << 20) as f64;
        println!(
            "trainable parameters   {} of {} ({:.4} %){}\n\
             values, gradients, moments {:.1} MiB\n\
             arena                  {:.1} MiB for {} tokens and {} texts ({:.1} KiB a token; at \
             least {:.1} MiB are alive at once)\n\
             operations a token     {:.1} MFLOP forward, {:.1} backward (products; texts of {:.1} \
             tokens)\n\
             graph                  {} nodes forward, {} backward and optimiser",
            cost.trainable_parameters,
            self.parameters + cost.added_parameters,
            100.0 * cost.share(self.parameters),
            mark(adapter, &self.config),
            mib(cost.optimiser_bytes),
            mib(cost.arena_bytes),
            self.bucket.tokens,
            self.bucket.seqs,
            cost.arena_bytes as f64 / 1024.0 / self.bucket.tokens as f64,
            mib(cost.peak_bytes),
            cost.forward_flops / 1e6,
            cost.backward_flops / 1e6,
            self.text_length(),
            program.forward_nodes,
            program.graph.nodes.len() - program.forward_nodes,
        );
        if !is_the_papers(adapter, &self.config) {
            println!(
                "the paper's 0.16 %      --method lora --rank 8 --arch {}",
                published::PAPERS
            );
        }
    }
}

fn mark(adapter: &Adapter, config: &TextConfig) -> &'static str {
    match is_the_papers(adapter, config) {
        true => ": this is the paper's 0.16 %",
        false => "",
    }
}

/// One line a method.
fn table(subject: &Subject, output: Output) -> Result<()> {
    let mut rows = Vec::new();
    for method in Method::value_variants() {
        let args = MethodArgs {
            method: Some(*method),
            ..MethodArgs::default()
        };
        let shared = args.shared()?;
        if shared.adapter.head && !subject.head {
            continue;
        }
        let (_, cost) = subject.cost(&shared)?;
        rows.push((method.to_string(), shared.adapter, cost));
    }
    if output.json {
        let row = |(name, adapter, cost): &(String, Adapter, Cost)| {
            let mut row = json!(cost);
            row["method"] = json!(name);
            row["trainable_share"] = json!(cost.share(subject.parameters));
            row["the_papers"] = json!(is_the_papers(adapter, &subject.config));
            row
        };
        let rows: Vec<Value> = rows.iter().map(row).collect();
        let all = json!({"model_parameters": subject.parameters, "methods": rows});
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!(
        "{} parameters; {} tokens in texts of {:.1}\n\
         method        trained     share, %   arena, MiB   MFLOP a token: forward   backward",
        subject.parameters,
        subject.bucket.tokens,
        subject.text_length()
    );
    for (name, adapter, cost) in &rows {
        println!(
            "{name:10} {:10}  {:11.4}   {:10.1}   {:22.1}   {:8.1}{}",
            cost.trainable_parameters,
            100.0 * cost.share(subject.parameters),
            cost.arena_bytes as f64 / (1 << 20) as f64,
            cost.forward_flops / 1e6,
            cost.backward_flops / 1e6,
            mark(adapter, &subject.config),
        );
    }
    Ok(())
}

fn print_copies(copies: &[(&str, usize)]) {
    if copies.is_empty() {
        println!("private copies         none: every frozen weight is read in the memory map");
        return;
    }
    let bytes: usize = copies.iter().map(|c| c.1).sum();
    println!(
        "private copies         {} weights, {:.1} MiB, since they are not f32",
        copies.len(),
        bytes as f64 / (1 << 20) as f64
    );
    for (name, bytes) in copies {
        println!("  {:10.1} KiB  {name}", *bytes as f64 / 1024.0);
    }
}

fn node_lines(graph: &Graph) -> Vec<String> {
    let name = |id: &ValueId| {
        let v = graph.get(*id);
        format!("{} {}", v.name, shape_text(&v.shape))
    };
    let list = |ids: Vec<ValueId>| ids.iter().map(name).collect::<Vec<_>>().join(", ");
    let nodes = graph.nodes.iter().enumerate();
    let line = nodes.map(|(i, node)| {
        let (writes, reads) = (list(node.writes()), list(node.reads()));
        format!("{i:4} {:16} {writes} <- {reads}", node.name())
    });
    line.collect()
}
