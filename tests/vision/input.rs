//! Towers that are not as they should be: each mistake is named.

use std::path::Path;

use crosstune::engine::EngineOptions;
use crosstune::engine::vision::VisionEngine;
use crosstune::tensor::Dtype;
use crosstune::weights::vision::VisionFiles;
use crosstune::weights::write::{OutTensor, write_safetensors};
use serde_json::{Value, json};

use super::names::openai;
use super::rig::{LEAST, Tensors, bare, folder, out};

/// What is said of the least tower with these settings and tensors.
fn said(file: &str, config: Value, tensors: &Tensors) -> String {
    let dir = folder(&[(file, config)], tensors);
    let error = VisionFiles::open(dir.path(), None).expect_err("a mistake");
    error.to_string()
}

fn config_with(field: &str, value: Value) -> Value {
    let mut config = LEAST.config();
    config[field] = value;
    config
}

#[test]
fn settings() {
    let good = folder(&[("config.json", LEAST.config())], &LEAST.tensors());
    let files = VisionFiles::open(good.path(), None).expect("opens");
    assert_eq!(files.config.tokens(), 5);
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
        // No multiple of a patch.
        (
            "image_size",
            json!(9),
            "image_size is 9, but the tensors say 8",
        ),
        (
            "projection_dim",
            json!(512),
            "projection_dim is 512, but the tensors say 6",
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
        (
            "layer_norm_eps",
            json!("x"),
            "layer_norm_eps is \"x\", expected a number",
        ),
    ] {
        let text = said("config.json", config_with(field, value), &LEAST.tensors());
        assert!(
            text.contains("config.json: ") && text.contains(says),
            "{text}"
        );
    }
    let text = said("config.json", json!([1]), &LEAST.tensors());
    assert!(
        text.contains("config.json: expected a JSON object"),
        "{text}"
    );
}

#[test]
fn settings_of_open_clip() {
    let tensors = openai(&LEAST.tensors());
    for (model, says) in [
        (json!({}), "has no model_cfg.vision_cfg"),
        (
            json!({"vision_cfg": {"timm_model_name": "vit_base"}}),
            "vision_cfg.timm_model_name is \"vit_base\", expected null",
        ),
        (
            json!({"vision_cfg": {"pool_type": "avg"}}),
            "vision_cfg.pool_type is \"avg\", expected \"tok\"",
        ),
        (
            json!({"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}}),
            "vision_cfg.norm_kwargs is {\"eps\":1e-6}, expected {}",
        ),
        (
            json!({"vision_cfg": {"head_width": 64}}),
            "found heads of 64 channels, expected a divisor of the width 8",
        ),
        (
            json!({"vision_cfg": {"image_size": [224, 224]}}),
            "image_size is [224,224], expected a count",
        ),
    ] {
        let config = json!({"model_cfg": model});
        let text = said("open_clip_config.json", config, &tensors);
        assert!(
            text.contains("open_clip_config.json: ") && text.contains(says),
            "{text}"
        );
    }
}

#[test]
fn tensors() {
    let said = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = LEAST.tensors();
        change(&mut tensors);
        said("config.json", LEAST.config(), &tensors)
    };
    let without = |name: &str| said(&|t| assert!(t.remove(name).is_some()));
    let shaped = |name: &str, shape: &[usize]| {
        let values = vec![0.0; shape.iter().product()];
        said(&|t| {
            t.insert(name.into(), (shape.to_vec(), values.clone()));
        })
    };
    let block = "vision_model.encoder.layers.0";
    let embeddings = "vision_model.embeddings";
    for (text, says) in [
        (
            without(&format!("{block}.self_attn.k_proj.bias")),
            "has no tensor vision_model.encoder.layers.0.self_attn.k_proj.bias, expected one of \
             shape (8)",
        ),
        (
            without(&format!("{embeddings}.class_embedding")),
            "has no tensor vision_model.embeddings.class_embedding",
        ),
        (
            shaped(&format!("{embeddings}.position_embedding.weight"), &[6, 8]),
            "has 6 rows, expected one for a class token and those of a square",
        ),
        (
            shaped(
                &format!("{embeddings}.patch_embedding.weight"),
                &[8, 1, 4, 4],
            ),
            "has patches of 4 x 4 in 1 channels",
        ),
        (
            shaped(&format!("{embeddings}.patch_embedding.weight"), &[8, 48]),
            "patch_embedding.weight is (8, 48), expected 4 dims",
        ),
        (
            shaped("visual_projection.weight", &[6, 9]),
            "visual_projection.weight is (6, 9), expected (6, 8)",
        ),
        (
            shaped(&format!("{block}.lora"), &[1]),
            "has the tensor vision_model.encoder.layers.0.lora, which is no part",
        ),
    ] {
        assert!(
            text.contains("model.safetensors: ") && text.contains(says),
            "{text}"
        );
    }
}

#[test]
fn a_tensor_of_whole_numbers() {
    let dir = bare(&[("config.json", LEAST.config())]);
    let tensors = LEAST.tensors();
    let mut all = out(&tensors);
    let bytes = [0u8; 8 * 8];
    let class = all.iter_mut().find(|t| t.name.ends_with("class_embedding"));
    *class.expect("a class token") = OutTensor {
        name: "vision_model.embeddings.class_embedding",
        dtype: Dtype::I64,
        shape: vec![8],
        bytes: bytes[..].into(),
    };
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, &all, &Default::default()).expect("written");
    let text = VisionFiles::open(dir.path(), None)
        .expect_err("a mistake")
        .to_string();
    let says = "class_embedding has dtype I64, expected F32, F16, BF16 or F64";
    assert!(text.contains(says), "{text}");
}

/// A text model's folder, one that is not there, one without settings, and pictures of another size.
#[test]
fn other_folders() {
    let said = |path: &Path, side: Option<usize>| {
        let error = VisionFiles::open(path, side).expect_err("a mistake");
        error.to_string()
    };
    let words = "transformer.embeddings.word_embeddings.weight";
    let text = Tensors::from([(words.to_string(), (vec![1, 1], vec![0.0]))]);
    let text = said(folder(&[], &text).path(), None);
    let says = format!(
        "is no vision tower: it has none of vision_model.embeddings.patch_embedding.\
         weight, visual.conv1.weight, embeddings.patch_embeddings.projection.weight; its names begin \
         with {words}"
    );
    assert!(text.contains(&says), "{text}");
    let text = said(Path::new("/no/such"), None);
    assert!(text.contains("/no/such: no such folder"), "{text}");
    let text = said(folder(&[], &LEAST.tensors()).path(), None);
    assert!(
        text.contains("config.json") && text.contains("no such file"),
        "{text}"
    );
    let good = folder(&[("config.json", LEAST.config())], &LEAST.tensors());
    let text = said(good.path(), Some(16));
    assert!(
        text.contains("is for pictures of 8 x 8, but its preprocessing makes 16 x 16"),
        "{text}"
    );
}

#[test]
fn pixels() {
    let encode = |tensors: &Tensors, pixels: &[f32]| {
        let dir = folder(&[("config.json", LEAST.config())], tensors);
        let engine = VisionEngine::open(dir.path(), None, EngineOptions::default());
        engine.expect("opens").encode(pixels)
    };
    let text = encode(&LEAST.tensors(), &[0.0; 100]).unwrap_err();
    let says = "pixels: found 100, expected a multiple of 192: 3 x 8 x 8 each";
    assert_eq!(text.to_string(), says);
    assert!(encode(&LEAST.tensors(), &[]).expect("nothing").is_empty());
    let mut tensors = LEAST.tensors();
    let bias = "vision_model.post_layernorm.bias";
    tensors.get_mut(bias).expect("a bias").1[3] = f32::NAN;
    let text = encode(&tensors, &LEAST.pixels(2)).unwrap_err().to_string();
    assert!(
        text.contains("picture 1: its feature is not finite") && text.contains(bias),
        "{text}"
    );
}
