//! One tower under the names of all who publish such, in their formats.

use std::collections::BTreeMap;
use std::path::Path;

use crosstune::ops::gelu::Gelu;
use crosstune::tensor::Dtype;
use crosstune::weights::pickle_write::write_pytorch;
use crosstune::weights::vision::VisionFiles;
use crosstune::weights::write::{OutTensor, write_safetensors};
use half::f16;
use serde_json::{Value, json};

use super::rig::{LEAST, Tensors, Tower, bare, encode, folder, golden, out};
use crate::common::golden::floats;
use crate::common::max_diff;

/// Hugging Face's names, OpenAI's.
const RENAMED: [(&str, &str); 12] = [
    (
        "vision_model.encoder.layers.",
        "visual.transformer.resblocks.",
    ),
    (
        "vision_model.embeddings.class_embedding",
        "visual.class_embedding",
    ),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    (
        "vision_model.embeddings.position_embedding.weight",
        "visual.positional_embedding",
    ),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("visual_projection.weight", "visual.proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
];

/// The name and shape of a tensor in OpenAI's files; none where it is in another one.
fn openai_tensor(name: &str, shape: &[usize]) -> Option<(String, Vec<usize>)> {
    if let Some((block, part)) = name.split_once("self_attn.q_proj.") {
        let name = format!("{block}attn.in_proj_{part}");
        let (_, shape) = openai_tensor(&name, shape)?;
        let fused = [&[3 * shape[0]], &shape[1..]].concat();
        return Some((
            RENAMED[0].1.to_string() + &name[RENAMED[0].0.len()..],
            fused,
        ));
    }
    if name.contains("self_attn.k_proj") || name.contains("self_attn.v_proj") {
        return None;
    }
    let rename = |name: String, (from, to): &(&str, &str)| name.replace(from, to);
    let renamed = RENAMED.iter().fold(name.to_string(), rename);
    let mut shape = shape.to_vec();
    if renamed == "visual.proj" {
        shape.reverse();
    }
    Some((renamed, shape))
}

/// A tower under OpenAI's names: fused, and the projection transposed.
pub fn openai(tensors: &Tensors) -> Tensors {
    let renamed = tensors.iter().filter_map(|(name, (shape, values))| {
        let (renamed, to) = openai_tensor(name, shape)?;
        let values = if name.contains("q_proj") {
            let all = ["q_proj", "k_proj", "v_proj"].map(|w| name.replace("q_proj", w));
            all.iter().flat_map(|n| tensors[n].1.clone()).collect()
        } else if renamed == "visual.proj" {
            let (e, c) = (shape[0], shape[1]);
            (0..c * e).map(|i| values[i % e * c + i / e]).collect()
        } else {
            values.clone()
        };
        Some((renamed, (to, values)))
    });
    renamed.collect()
}

/// OpenCLIP's settings of a tower with heads of so many channels.
fn open_clip(heads: usize, quick: bool) -> Value {
    json!({"model_cfg": {"quick_gelu": quick, "vision_cfg": {"head_width": heads}}})
}

#[test]
fn published_names_give_the_same_bytes() {
    let Some(golden) = golden() else { return };
    let pixels = floats(&golden.io, "pixel_values");
    let config = golden.config.clone();
    let count = |field: &str| config[field].as_u64().expect("a count") as usize;
    let width = count("hidden_size") / count("num_attention_heads");
    let quick = config["hidden_act"] == "quick_gelu";
    let own = folder(&[("config.json", config.clone())], &golden.tensors);
    let want = encode(own.path(), &pixels);
    // A whole CLIP, whose text tower is of no interest here; what its part says of the joint space is
    // not read.
    let mut both = golden.tensors.clone();
    both.insert("text_model.embeddings.x".into(), (vec![1], vec![0.0]));
    both.insert("logit_scale".into(), (vec![], vec![4.6]));
    let mut part = config.clone();
    part["projection_dim"] = json!(512);
    let all = json!({"projection_dim": count("projection_dim"), "vision_config": part});
    let whole = folder(&[("config.json", all)], &both);
    assert_eq!(encode(whole.path(), &pixels), want);
    let names = openai(&golden.tensors);
    let as_open_clip = |quick: bool| {
        let dir = folder(
            &[("open_clip_config.json", open_clip(width, quick))],
            &names,
        );
        encode(dir.path(), &pixels)
    };
    assert_eq!(as_open_clip(quick), want);
    let other = as_open_clip(!quick);
    assert!(
        max_diff(&other, &want) > 1e-5,
        "the other GELU is another function"
    );
}

/// OpenAI's files have no settings beside them.
#[test]
fn openai_has_heads_of_64_channels_and_the_quick_gelu() {
    let tower = Tower {
        hidden: 128,
        heads: 2,
        ..LEAST
    };
    let own = folder(&[("config.json", tower.config())], &tower.tensors());
    let dir = folder(&[], &openai(&tower.tensors()));
    let config = VisionFiles::open(dir.path(), None).expect("opens").config;
    assert_eq!((config.heads, config.gelu), (2, Gelu::Quick));
    let pixels = tower.pixels(2);
    assert_eq!(encode(dir.path(), &pixels), encode(own.path(), &pixels));
    let file = dir.path().join("model.safetensors");
    assert_eq!(encode(&file, &pixels), encode(own.path(), &pixels));
}

/// The tensors in f16.
fn halves(tensors: &Tensors) -> Vec<(String, Vec<usize>, Vec<f16>)> {
    let half = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
        let values = values.iter().map(|x| f16::from_f32(*x)).collect();
        (name.clone(), shape.clone(), values)
    };
    tensors.iter().map(half).collect()
}

#[test]
fn every_format_gives_the_same_bytes() {
    let config = LEAST.config();
    let pixels = LEAST.pixels(3);
    let rounded: Tensors = halves(&LEAST.tensors())
        .into_iter()
        .map(|(name, shape, v)| (name, (shape, v.iter().map(|x| x.to_f32()).collect())))
        .collect();
    let own = folder(&[("config.json", config.clone())], &rounded);
    let want = encode(own.path(), &pixels);
    let files = [
        (
            rounded.clone(),
            ("config.json", config),
            "pytorch_model.bin",
        ),
        (
            openai(&rounded),
            ("open_clip_config.json", open_clip(4, true)),
            "open_clip_pytorch_model.bin",
        ),
    ];
    for (tensors, file, bin) in files {
        let own = [file];
        let dir = bare(&own);
        write_pytorch(&dir.path().join(bin), &out(&tensors), &BTreeMap::new()).expect("written");
        assert_eq!(encode(dir.path(), &pixels), want, "{bin}");
        let dir = bare(&own);
        let halves = halves(&tensors);
        let all: Vec<OutTensor<'_>> = halves
            .iter()
            .map(|(name, shape, values)| OutTensor {
                name,
                dtype: Dtype::F16,
                shape: shape.clone(),
                bytes: bytemuck::cast_slice(values).into(),
            })
            .collect();
        let file = match bin {
            "pytorch_model.bin" => "model.safetensors",
            _ => "open_clip_model.safetensors",
        };
        write_safetensors(&dir.path().join(file), &all, &BTreeMap::new()).expect("written");
        assert_eq!(encode(dir.path(), &pixels), want, "{file}");
    }
}

/// A file of F16 tensors whose values take no room on a disk that knows holes.
fn hollow(path: &Path, shapes: &[(String, Vec<usize>)]) {
    let mut end = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    std::fs::write(path, &bytes).expect("written");
    let file = std::fs::OpenOptions::new().write(true).open(path);
    let len = (bytes.len() + end) as u64;
    file.expect("opens").set_len(len).expect("lengthened");
}

/// The towers that M-CLIP's text towers were made for, and OpenCLIP's largest here: their sizes, and their
/// settings as published.
#[test]
fn published_towers_open_with_their_settings() {
    let tower = |hidden, layers, heads, patch, grid, embed_dim| Tower {
        hidden,
        layers,
        heads,
        ffn: 4 * hidden,
        patch,
        grid,
        embed_dim,
    };
    let clip = [
        tower(768, 12, 12, 32, 7, 512),
        tower(768, 12, 12, 16, 14, 512),
        tower(1024, 24, 16, 14, 16, 768),
        tower(1024, 24, 16, 14, 24, 768),
    ];
    for tower in clip {
        let mut part = tower.config();
        part["hidden_act"] = json!("quick_gelu");
        part["layer_norm_eps"] = json!(1e-5);
        part["projection_dim"] = json!(512);
        let config = json!({"projection_dim": tower.embed_dim, "vision_config": part});
        let dir = bare(&[("config.json", config)]);
        opens(&dir, tower.shapes(), &tower, Gelu::Quick);
        opens(&bare(&[]), openai_shapes(&tower), &tower, Gelu::Quick);
    }
    let plus = json!({"image_size": 240, "layers": 12, "width": 896, "patch_size": 16});
    let huge = json!({
        "image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14,
    });
    let clip = [
        (tower(896, 12, 14, 16, 15, 640), plus),
        (tower(1280, 32, 16, 14, 16, 1024), huge),
    ];
    for (tower, vision) in clip {
        let config = json!({"model_cfg": {"embed_dim": tower.embed_dim, "vision_cfg": vision}});
        let dir = bare(&[("open_clip_config.json", config)]);
        opens(&dir, openai_shapes(&tower), &tower, Gelu::Exact);
    }
}

fn openai_shapes(tower: &Tower) -> Vec<(String, Vec<usize>)> {
    let shapes = tower.shapes();
    let renamed = shapes
        .iter()
        .filter_map(|(name, shape)| openai_tensor(name, shape));
    renamed.collect()
}

fn opens(dir: &tempfile::TempDir, shapes: Vec<(String, Vec<usize>)>, t: &Tower, gelu: Gelu) {
    hollow(&dir.path().join("model.safetensors"), &shapes);
    let c = VisionFiles::open(dir.path(), None).expect("opens").config;
    let got = [
        c.hidden,
        c.layers,
        c.heads,
        c.ffn,
        c.patch,
        c.grid,
        c.embed_dim,
    ];
    let want = [
        t.hidden,
        t.layers,
        t.heads,
        t.ffn,
        t.patch,
        t.grid,
        t.embed_dim,
    ];
    assert_eq!((got, c.gelu, c.layer_norm_eps), (want, gelu, 1e-5));
}
