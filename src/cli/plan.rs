//! `crosstune plan`.

use anyhow::Result;
use crosstune::engine::{Engine, EngineOptions};
use crosstune::exec::state::TrainState;
use crosstune::graph::plan::{Plan, Reuse, shape_text};
use crosstune::graph::{Bucket, Graph, ValueId};
use crosstune::train::config::Shared;
use crosstune::train::program::TrainProgram;
use crosstune::weights::hub;
use serde_json::json;

use super::Output;
use super::data::required;
use super::method::MethodArgs;
use super::train::model_parameters;

/// Options of planning.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example: what LoRA of rank 8 costs for a step of 64 captions:
  crosstune plan --model m-clip --rank 8 --texts 64 --tokens 1280
A batch of 4,096 captions, in pieces:
  crosstune plan --model m-clip --texts 4096 --tokens 82000 --max-tokens 2048"
)]
pub struct Args {
    /// The model: a folder, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<String>,
    /// Packed tokens of a step.
    #[arg(long, default_value_t = 1056)]
    tokens: usize,
    /// Texts of a step.
    #[arg(long, default_value_t = 64)]
    texts: usize,
    /// Most packed tokens of a pass, as `train --max-tokens` has it [default: no limit].
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Print the nodes in order.
    #[arg(long)]
    nodes: bool,
    /// Print the values with their places in the arena, largest first.
    #[arg(long)]
    values: bool,
    #[command(flatten)]
    method: MethodArgs,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let model = required(&args.model, "model", "DIR of an M-CLIP model")?;
    let shared = Shared {
        max_tokens: args.max_tokens,
        ..args.method.shared()?
    };
    shared.check()?;
    let engine = Engine::open(&hub::resolve(&model)?, EngineOptions { threads: Some(1) })?;
    let m = engine.model();
    shared.adapter.check_model(&m.config)?;
    let rates = shared.dropout(&m.config);
    let program = TrainProgram::new(&m.config, m.head, &shared.adapter, rates);
    let graph = &*program.graph;
    let plan = largest_pass(&args, graph);
    let bucket = plan.bucket;
    let state = TrainState::new(graph, 1);
    let frozen = m.bind(graph)?;
    let copies = frozen.copies();
    let total = model_parameters(&engine);
    let trained = state.parameters();
    if output.json {
        let tensors: Vec<_> = state
            .tensors
            .iter()
            .map(|t| json!({"name": t.name, "shape": t.shape}))
            .collect();
        let mut all = json!({
            "config": m.config,
            "trainable_parameters": trained,
            "model_parameters": total,
            "trainable_share": trained as f64 / total as f64,
            "trainable_tensors": tensors,
            "optimiser_bytes": trained * 16,
            "bucket": {"tokens": bucket.tokens, "texts": bucket.seqs},
            "arena_bytes": plan.arena_len * 4,
            "peak_bytes": plan.peak_len * 4,
            "max_tokens": args.max_tokens,
            "nodes": graph.nodes.len(),
            "forward_nodes": program.forward_nodes,
            "private_copies": copies,
        });
        if args.nodes {
            all["node_list"] = json!(node_lines(graph));
        }
        if args.values {
            all["value_list"] = json!(plan.table(graph).lines().collect::<Vec<_>>());
        }
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let mib = |n: usize| n as f64 / (1 << 20) as f64;
    println!(
        "trainable parameters   {trained} of {total} ({:.4} %)\n\
         values, gradients, moments {:.1} MiB\n\
         arena                  {:.1} MiB for {} tokens and {} texts ({:.1} KiB a token; at least \
         {:.1} MiB are alive at once)\n\
         graph                  {} nodes forward, {} backward and optimiser\n\
         private copies         {}",
        100.0 * trained as f64 / total as f64,
        mib(trained * 16),
        mib(plan.arena_len * 4),
        bucket.tokens,
        bucket.seqs,
        plan.arena_len as f64 * 4.0 / 1024.0 / bucket.tokens as f64,
        mib(plan.peak_len * 4),
        program.forward_nodes,
        graph.nodes.len() - program.forward_nodes,
        if copies.is_empty() {
            "none: every frozen weight is read in the memory map".to_string()
        } else {
            let bytes = copies.iter().map(|c| c.1).sum();
            format!(
                "{} weights, {:.1} MiB, since they are not f32",
                copies.len(),
                mib(bytes)
            )
        }
    );
    for (name, bytes) in &copies {
        println!("  {:10.1} KiB  {name}", *bytes as f64 / 1024.0);
    }
    if args.nodes {
        node_lines(graph).iter().for_each(|l| println!("{l}"));
    }
    if args.values {
        print!("{}", plan.table(graph));
    }
    Ok(())
}

/// The plan of the pass that needs most: the whole step, or with --max-tokens either a piece of it in
/// the tower or the objective over all its texts.
fn largest_pass(args: &Args, graph: &Graph) -> Plan {
    let plan = |tokens: usize, texts: usize, items: usize| {
        let bucket = Bucket {
            tokens: tokens.next_multiple_of(32).max(32),
            seqs: texts.next_multiple_of(8),
            items: items.next_multiple_of(8),
            members: 1,
        };
        Plan::new(graph, bucket, Reuse::Packed)
    };
    let (tokens, texts) = (args.tokens, args.texts);
    match args.max_tokens.filter(|n| *n < tokens) {
        None => plan(tokens, texts, texts),
        Some(n) => {
            let piece = plan(n, (texts * n).div_ceil(tokens), 0);
            let objective = plan(0, texts, texts);
            match objective.arena_len > piece.arena_len {
                true => objective,
                false => piece,
            }
        }
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
