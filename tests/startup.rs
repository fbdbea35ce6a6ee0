//! A checkpoint of a gigabyte is mapped, not read: binding it and planning a step take no time and
//! no memory to speak of. The file is sparse, so the test needs no disk either.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crosstune::adapter::Adapter;
use crosstune::exec::Frozen;
use crosstune::graph::Bucket;
use crosstune::graph::plan::{Plan, Reuse};
use crosstune::model::text::DropoutRates;
use crosstune::train::program::{TextModel, TrainProgram};
use crosstune::weights::config::TextConfig;
use crosstune::weights::text_model::{HEAD_BIAS, HEAD_WEIGHT, TextModelFiles, encoder_tensors};

/// XLM-R base with a head of 512, all zeros: 1.1 GB in f32.
fn write_model(folder: &Path) -> u64 {
    let sizes = crosstune::weights::config::TensorSizes {
        vocab: 250_002,
        hidden: 768,
        layers: 12,
        ffn: 3072,
        max_positions: 514,
        token_types: 1,
        head: Some(512),
    };
    let mut tensors: Vec<(String, Vec<usize>)> = encoder_tensors(&sizes)
        .into_iter()
        .map(|(name, shape)| (format!("transformer.{name}"), shape))
        .collect();
    tensors.push((HEAD_WEIGHT.into(), vec![512, 768]));
    tensors.push((HEAD_BIAS.into(), vec![512]));
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
        header.insert(name, entry);
        at = end;
    }
    let mut text = serde_json::to_string(&header).expect("JSON");
    text.extend(std::iter::repeat_n(
        ' ',
        text.len().next_multiple_of(8) - text.len(),
    ));
    let mut file = File::create(folder.join("model.safetensors")).expect("created");
    file.write_all(&(text.len() as u64).to_le_bytes())
        .expect("written");
    file.write_all(text.as_bytes()).expect("written");
    let bytes = 8 + text.len() as u64 + at as u64;
    file.set_len(bytes).expect("sparse");
    let config = serde_json::json!({
        "model_type": "M-CLIP", "modelBase": "xlm-roberta-base", "transformerDimensions": 768,
        "numDims": 512,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    std::fs::write(folder.join("tokenizer.json"), "{}").expect("written");
    bytes
}

/// Anonymous memory of this process in bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux process");
    let line = status
        .lines()
        .find(|l| l.starts_with("RssAnon:"))
        .expect("RssAnon");
    line.split_whitespace()
        .nth(1)
        .expect("a number")
        .parse::<u64>()
        .expect("a number")
        * 1024
}

#[test]
fn a_gigabyte_is_bound_at_once_and_not_copied() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bytes = write_model(dir.path());
    assert!(bytes > 1_000_000_000);
    let before = anonymous();
    let start = Instant::now();
    let model = TextModel::new(TextModelFiles::open(dir.path()).expect("a model"));
    let config: &TextConfig = &model.config;
    let rates = DropoutRates {
        hidden: 0.1,
        attention: 0.1,
    };
    let adapter = Adapter::lora(8);
    let program = TrainProgram::new(config, model.head, &adapter, rates);
    let frozen: Frozen = model.bind(&program.graph).expect("bound");
    let state = model.init(&program.graph, &adapter, &[1]).expect("state");
    let bucket = Bucket {
        tokens: 1056,
        seqs: 64,
        items: 32,
        members: 1,
    };
    let plan = Plan::new(&program.graph, bucket, Reuse::Packed);
    let seconds = start.elapsed().as_secs_f64();
    let grown = anonymous().saturating_sub(before);
    println!(
        "{bytes} bytes bound and {} nodes planned in {seconds:.3} s; {grown} bytes of anonymous \
         memory, arena {} bytes",
        program.graph.nodes.len(),
        plan.arena_len * 4
    );
    assert!(frozen.copies().is_empty(), "a weight was copied");
    assert_eq!(state.parameters(), 12 * 2 * 8 * (768 + 768) + 12 * 4 * 768);
    assert!(seconds < 0.5, "took {seconds} s");
    assert!(grown < bytes / 10, "{grown} bytes of anonymous memory");
}
