//! DINOv2's shape: layer scale, a bias of the patches, tables for several sizes of pictures.

use crosstune::engine::EngineOptions;
use crosstune::engine::vision::VisionEngine;
use crosstune::ops::gelu::Gelu;
use crosstune::weights::vision::VisionFiles;
use serde_json::{Value, json};

use super::rig::{LEAST, Tensors, encode, folder};
use crate::common::max_diff;
use crate::common::tiny::random;

/// Hugging Face's names of CLIP, of DINOv2.
const RENAMED: [(&str, &str); 10] = [
    (
        "embeddings.patch_embedding.",
        "embeddings.patch_embeddings.projection.",
    ),
    ("embeddings.class_embedding", "embeddings.cls_token"),
    (
        "embeddings.position_embedding.weight",
        "embeddings.position_embeddings",
    ),
    ("post_layernorm", "layernorm"),
    ("encoder.layers.", "encoder.layer."),
    ("layer_norm", "norm"),
    ("self_attn.q_proj", "attention.attention.query"),
    ("self_attn.k_proj", "attention.attention.key"),
    ("self_attn.v_proj", "attention.attention.value"),
    ("self_attn.out_proj", "attention.output.dense"),
];

fn config() -> Value {
    let mut config = LEAST.config();
    config["hidden_act"] = json!("gelu");
    config
}

/// The least tower in DINOv2's shape; its scales are about 1.
fn tower() -> Tensors {
    let mut out = Tensors::new();
    let mut put = |name: &str, shape: &[usize], mean: f32| {
        let values = random(4, name, shape).iter().map(|x| x + mean).collect();
        out.insert(name.to_string(), (shape.to_vec(), values));
    };
    for (name, mut shape) in LEAST.shapes() {
        let Some(name) = name.strip_prefix("vision_model.") else {
            continue;
        };
        if name.starts_with("pre_layrnorm") {
            continue;
        }
        let rename = |name: String, (from, to): &(&str, &str)| name.replace(from, to);
        let renamed = RENAMED.iter().fold(name.to_string(), rename);
        match renamed.as_str() {
            "embeddings.cls_token" => shape = vec![1, 1, LEAST.hidden],
            "embeddings.position_embeddings" => shape.insert(0, 1),
            _ => {}
        }
        put(&renamed, &shape, 0.0);
    }
    let c = LEAST.hidden;
    put("embeddings.patch_embeddings.projection.bias", &[c], 0.0);
    put("embeddings.mask_token", &[1, c], 0.0);
    put("encoder.layer.0.layer_scale1.lambda1", &[c], 1.0);
    put("encoder.layer.0.layer_scale2.lambda1", &[c], 1.0);
    out
}

/// A scale of what a sub-layer gives is in its last layer's rows.
#[test]
fn layer_scale_is_folded() {
    let scaled = tower();
    let mut folded = scaled.clone();
    for (scale, module) in [
        ("layer_scale1", "attention.output.dense"),
        ("layer_scale2", "mlp.fc2"),
    ] {
        let scale = format!("encoder.layer.0.{scale}.lambda1");
        let by = scaled[&scale].1.clone();
        folded.insert(scale, (vec![by.len()], vec![1.0; by.len()]));
        for part in ["weight", "bias"] {
            let name = format!("encoder.layer.0.{module}.{part}");
            let (_, values) = folded.get_mut(&name).expect("a tensor");
            let width = values.len() / by.len();
            for (row, by) in values.chunks_mut(width).zip(&by) {
                row.iter_mut().for_each(|x| *x *= by);
            }
        }
    }
    let pixels = LEAST.pixels(3);
    let encoded = |tensors: &Tensors| {
        let dir = folder(&[("config.json", config())], tensors);
        encode(dir.path(), &pixels)
    };
    let want = encoded(&scaled);
    assert_eq!(encoded(&folded), want);
    let mut without = scaled.clone();
    for name in [
        "encoder.layer.0.layer_scale1.lambda1",
        "embeddings.patch_embeddings.projection.bias",
    ] {
        without.get_mut(name).expect("a tensor").1.fill(0.0);
        assert!(max_diff(&encoded(&without), &want) > 1e-3, "{name}");
        without.clone_from(&scaled);
    }
    let dir = folder(&[("config.json", config())], &scaled);
    let c = VisionFiles::open(dir.path(), None).expect("opens").config;
    assert_eq!((c.gelu, c.embed_dim), (Gelu::Exact, LEAST.hidden));
    assert!(!c.pre_norm && !c.projection && c.patch_bias);
}

#[test]
fn pictures_of_another_size_have_a_table_of_their_own() {
    let mut tensors = tower();
    let shape = [1, 10, LEAST.hidden];
    let other = random(5, "embeddings.other", &shape);
    let name = "embeddings.position_embeddings_12";
    tensors.insert(name.into(), (shape.to_vec(), other.clone()));
    let dir = folder(&[("config.json", config())], &tensors);
    let opened = |side: Option<usize>| {
        let files = VisionFiles::open(dir.path(), side)?;
        Ok::<_, crosstune::error::Error>(files.config.image_size())
    };
    assert_eq!(opened(None).expect("opens"), 8);
    assert_eq!(opened(Some(8)).expect("opens"), 8);
    assert_eq!(opened(Some(12)).expect("opens"), 12);
    assert_eq!(opened(Some(16)).expect("opens"), 16);
    let text = opened(Some(15)).unwrap_err().to_string();
    let says = "position_embeddings is for pictures of 8 x 8, but its preprocessing makes 15 x 15, \
                expected a multiple of 4";
    assert!(text.contains(says), "{text}");
    // The same tower whose only table is that one.
    tensors.remove(name);
    let only = "embeddings.position_embeddings";
    tensors.insert(only.into(), (shape.to_vec(), other));
    let pixels: Vec<f32> = (0..2 * 3 * 12 * 12).map(|i| (i as f32).cos()).collect();
    let mut engine = VisionEngine::open(dir.path(), Some(12), EngineOptions::default());
    let got = engine.as_mut().expect("opens").encode(&pixels);
    let dir = folder(&[("config.json", config())], &tensors);
    assert_eq!(got.expect("encodes"), encode(dir.path(), &pixels));
}

/// Where all places are alike, they are so in a table of any size.
#[test]
fn a_table_is_resampled_for_pictures_of_another_size() {
    let mut tensors = tower();
    let c = LEAST.hidden;
    let (class, place) = (random(5, "class", &[c]), random(5, "place", &[c]));
    let alike = |places: usize| {
        let rows = std::iter::once(&class).chain(std::iter::repeat_n(&place, places));
        (vec![1, places + 1, c], rows.flatten().copied().collect())
    };
    let name = "embeddings.position_embeddings";
    tensors.insert(name.into(), alike(4));
    let pixels: Vec<f32> = (0..2 * 3 * 20 * 20).map(|i| (i as f32).cos()).collect();
    let encoded = |tensors: &Tensors| {
        let dir = folder(&[("config.json", config())], tensors);
        let engine = VisionEngine::open(dir.path(), Some(20), EngineOptions::default());
        engine.expect("opens").encode(&pixels).expect("encodes")
    };
    let got = encoded(&tensors);
    tensors.insert(name.into(), alike(25));
    assert!(max_diff(&got, &encoded(&tensors)) < 1e-5);
}

#[test]
fn mistakes_are_named() {
    let said = |config: &Value, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tower();
        change(&mut tensors);
        let dir = folder(&[("config.json", config.clone())], &tensors);
        let error = VisionFiles::open(dir.path(), None).expect_err("a mistake");
        error.to_string()
    };
    let scale = "encoder.layer.0.layer_scale2.lambda1";
    let mut swiglu = config();
    swiglu["use_swiglu_ffn"] = json!(true);
    for (text, says) in [
        (
            said(&config(), &|t| assert!(t.remove(scale).is_some())),
            format!("has no tensor {scale}, expected one of shape (8)"),
        ),
        (
            said(&config(), &|t| {
                let tokens = (vec![1, 4, 8], vec![0.0; 32]);
                t.insert("embeddings.register_tokens".into(), tokens);
            }),
            "has the tensor embeddings.register_tokens, which is no part".into(),
        ),
        (
            said(&swiglu, &|_| {}),
            "config.json: use_swiglu_ffn is true; towers with SwiGLU are not supported".into(),
        ),
    ] {
        assert!(text.contains(&says), "{text}");
    }
}
