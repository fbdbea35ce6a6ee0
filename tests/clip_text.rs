//! CLIP's own text tower: PyTorch's numbers, published names, and runs with it.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::towers::{Tensors, write};
use common::world::World;
use common::{max_diff, tiny};
use crosstune::adapter::Adapter;
use crosstune::exec::cpu::CpuExecutor;
use crosstune::exec::{Executor, MemberStep};
use crosstune::model::text::DropoutRates;
use crosstune::ops::gelu::Gelu;
use crosstune::text::pack::{Batch, Layout, MemberTexts, Text};
use crosstune::train::program::{EncodeProgram, TextModel};
use crosstune::weights::config::Encoder;
use crosstune::weights::text_model::TextModelFiles;
use serde_json::{Value, json};

/// Of features up to 1.8; measured 6.6e-7.
const LIMIT: f32 = 6e-6;

/// Features of transformers' `CLIPTextModelWithProjection`, version 4.46, whose weights are [`wave`],
/// by the ids of a text.
const GOLDEN: [(&[u32], [f32; 12]); 3] = [
    (
        &[38, 5, 7, 11, 39],
        [
            -1.039849, 0.748719, 1.343836, -0.203108, -1.4263, -0.375984, 1.273647, 0.893097,
            -0.911041, -1.262988, 0.398256, 1.424684,
        ],
    ),
    (
        &[38, 1, 39],
        [
            -1.063529, 1.271484, 1.579764, -0.630085, -1.835584, -0.11518, 1.78882, 0.841459,
            -1.447179, -1.429028, 0.86698, 1.78103,
        ],
    ),
    (
        &[38, 2, 3, 4, 5, 6, 7, 8, 9, 39],
        [
            -0.737523, 0.989969, 1.13946, -0.527337, -1.353565, -0.022223, 1.344542, 0.56812,
            -1.113879, -1.020366, 0.699601, 1.304411,
        ],
    ),
];

/// A tensor by a formula: `0.3 sin(0.7 i + k)`, k by its name, about 1 for weights of norms.
fn wave(name: &str, shape: &[usize]) -> (Vec<usize>, Vec<f32>) {
    let k = name.bytes().map(u32::from).sum::<u32>() % 97;
    let about = f64::from(u8::from(name.contains("norm") && name.ends_with("weight")));
    let n: usize = shape.iter().product();
    let value = |i: usize| (((i as f64 * 0.7 + f64::from(k)).sin() * 0.3) as f32) + about as f32;
    (shape.to_vec(), (0..n).map(value).collect())
}

/// A tower under Hugging Face's names.
fn tower([vocab, positions, c, ffn, e]: [usize; 5]) -> Tensors {
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        (
            "text_model.embeddings.token_embedding.weight".into(),
            vec![vocab, c],
        ),
        (
            "text_model.embeddings.position_embedding.weight".into(),
            vec![positions, c],
        ),
        ("text_projection.weight".into(), vec![e, c]),
    ];
    let mut linear = |name: &str, shape: &[usize]| {
        shapes.push((format!("text_model.{name}.weight"), shape.to_vec()));
        shapes.push((format!("text_model.{name}.bias"), shape[..1].to_vec()));
    };
    linear("final_layer_norm", &[c]);
    for layer in 0..2 {
        let block = format!("encoder.layers.{layer}");
        for norm in ["layer_norm1", "layer_norm2"] {
            linear(&format!("{block}.{norm}"), &[c]);
        }
        for which in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            linear(&format!("{block}.self_attn.{which}"), &[c, c]);
        }
        linear(&format!("{block}.mlp.fc1"), &[ffn, c]);
        linear(&format!("{block}.mlp.fc2"), &[c, ffn]);
    }
    let shapes = shapes.into_iter();
    shapes
        .map(|(name, shape)| (name.clone(), wave(&name, &shape)))
        .collect()
}

/// The same under OpenAI's names, with what stands in front of them.
fn openai(tensors: &Tensors, prefix: &str) -> Tensors {
    let mut out = Tensors::new();
    let mut put = |name: String, shape: &[usize], values: Vec<f32>| {
        out.insert(format!("{prefix}{name}"), (shape.to_vec(), values));
    };
    for (name, (shape, values)) in tensors {
        let simple = match name.as_str() {
            "text_model.embeddings.token_embedding.weight" => Some("token_embedding.weight"),
            "text_model.embeddings.position_embedding.weight" => Some("positional_embedding"),
            "text_model.final_layer_norm.weight" => Some("ln_final.weight"),
            "text_model.final_layer_norm.bias" => Some("ln_final.bias"),
            _ => None,
        };
        if let Some(simple) = simple {
            put(simple.into(), shape, values.clone());
            continue;
        }
        if name == "text_projection.weight" {
            let (e, c) = (shape[0], shape[1]);
            let t = (0..c * e).map(|i| values[i % e * c + i / e]).collect();
            put("text_projection".into(), &[c, e], t);
            continue;
        }
        let own = name
            .strip_prefix("text_model.encoder.layers.")
            .expect("a block");
        let (layer, rest) = own.split_once('.').expect("a number");
        let to = format!("transformer.resblocks.{layer}");
        let names = [
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ];
        let (module, part) = rest.rsplit_once('.').expect("a part");
        if let Some((_, module)) = names.iter().find(|(from, _)| *from == module) {
            put(format!("{to}.{module}.{part}"), shape, values.clone());
        } else if module == "self_attn.q_proj" {
            let all = ["q_proj", "k_proj", "v_proj"].map(|w| name.replace("q_proj", w));
            let fused = all
                .iter()
                .flat_map(|name| tensors[name].1.clone())
                .collect();
            let mut shape = shape.clone();
            shape[0] *= 3;
            put(format!("{to}.attn.in_proj_{part}"), &shape, fused);
        }
    }
    out
}

/// Features of the golden texts by the files in a folder.
fn features(folder: &Path) -> Vec<f32> {
    let files = TextModelFiles::from_parts(&folder.join("config.json"), folder, Path::new(""));
    let model = TextModel::new(files.expect("opens"));
    let program = EncodeProgram::new(&model.config, model.head, &Adapter::default());
    let mut state = model
        .init(&program.graph, &Adapter::default(), &[0])
        .expect("state");
    let frozen = Arc::new(model.bind(&program.graph).expect("bound"));
    let mut exec = CpuExecutor::new(program.graph.clone(), frozen, &state, tiny::pool(2));
    let anchors = GOLDEN.iter().enumerate().map(|(i, (ids, _))| Text {
        ids,
        role: 0,
        item: i as u32,
    });
    let member = MemberTexts {
        anchors: anchors.collect(),
        partners: vec![],
    };
    let batch = Batch::pack(&[member], Layout::default(), vec![]);
    exec.run(&mut state, &batch, &[MemberStep::default()])
        .expect("ran");
    exec.output(program.features)
}

fn config() -> Value {
    json!({"text_config": {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 40}})
}

#[test]
fn features_agree_with_pytorch_under_every_name() {
    let tensors = tower([40, 10, 16, 24, 12]);
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), &[("config.json", config())], &tensors);
    let got = features(dir.path());
    let want: Vec<f32> = GOLDEN.iter().flat_map(|(_, want)| *want).collect();
    println!("CLIP's text tower: {:.1e}", max_diff(&got, &want));
    assert!(max_diff(&got, &want) <= LIMIT);
    for prefix in ["", "text."] {
        let dir = tempfile::tempdir().expect("a folder");
        let text = json!({"width": 16, "heads": 2, "layers": 2, "context_length": 10});
        let open_clip = json!({"model_cfg": {"quick_gelu": true, "text_cfg": text}});
        let files = [("open_clip_config.json", open_clip)];
        write(dir.path(), &files, &openai(&tensors, prefix));
        assert_eq!(features(dir.path()), got, "{prefix}");
    }
}

#[test]
fn mistakes_are_named() {
    let tensors = tower([40, 10, 16, 24, 12]);
    let message = |config: Value, tensors: &Tensors| {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), &[("config.json", config)], tensors);
        TextModelFiles::open(dir.path()).unwrap_err().to_string()
    };
    let with = |field: &str, value: Value| {
        let mut config = config();
        config["text_config"][field] = value;
        config
    };
    for (field, value, says) in [
        (
            "hidden_size",
            json!(8),
            "hidden_size is 8, but the tensors say 16",
        ),
        (
            "num_hidden_layers",
            json!(3),
            "num_hidden_layers is 3, but the tensors say 2",
        ),
        (
            "hidden_act",
            json!("relu"),
            "hidden_act is \"relu\", expected",
        ),
        (
            "num_attention_heads",
            json!(3),
            "num_attention_heads is 3, expected a divisor",
        ),
    ] {
        let text = message(with(field, value), &tensors);
        assert!(
            text.contains(says) && text.contains("config.json"),
            "{text}"
        );
    }
    let mut lacking = tensors.clone();
    lacking.remove("text_model.encoder.layers.1.mlp.fc2.bias");
    let text = message(config(), &lacking);
    assert!(
        text.contains("has no tensor text_model.encoder.layers.1.mlp.fc2.bias"),
        "{text}"
    );
    let mut added = tensors.clone();
    added.insert(
        "text_model.encoder.layers.0.extra".into(),
        (vec![1], vec![0.0]),
    );
    let text = message(config(), &added);
    assert!(
        text.contains("extra, which is no part of CLIP's text tower"),
        "{text}"
    );
    // All is there but a tokenizer.
    let text = message(config(), &tensors);
    assert!(
        text.contains("tokenizer.json") && text.contains("no such file"),
        "{text}"
    );
}

#[test]
fn other_towers_of_openclips_are_refused() {
    let tensors = openai(&tower([40, 10, 16, 24, 12]), "");
    for (field, value, plain) in [
        ("no_causal_mask", json!(true), "false"),
        ("pool_type", json!("last"), "\"argmax\""),
        ("hf_model_name", json!("xlm-roberta-base"), "null"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let text = json!({"width": 16, "heads": 2, field: value});
        let settings = json!({"model_cfg": {"text_cfg": text}});
        write(dir.path(), &[("open_clip_config.json", settings)], &tensors);
        let text = TextModelFiles::open(dir.path()).unwrap_err().to_string();
        let says = format!("text_cfg.{field} is {value}, expected {plain}");
        assert!(text.contains(&says), "{text}");
    }
}

/// A tower for the bytes of a text, in a world.
fn world() -> World {
    let world = World::new();
    let tensors = tower([514, 300, 32, 48, 16]);
    let config = json!({"text_config": {"hidden_size": 32, "num_attention_heads": 4}});
    write(&world.path("clip"), &[("config.json", config)], &tensors);
    world.write("clip/merges.txt", "#version: 0.2\n");
    world
}

#[test]
fn it_is_trained_and_measured_like_any_other() {
    let world = world();
    let train = [
        "train",
        "--model=clip",
        "--jsonl=world.jsonl",
        "--features=features.safetensors",
        "--lang=en",
        "--strategy=baseline1",
        "--shots=20",
        "--batch=5",
        "--epochs=2",
        "--lr=1e-2",
        "--eval-every=0",
        "--seed=3",
        "--quiet",
    ];
    for (method, more) in [
        ("lora", "--rank=2"),
        ("adapter", "--bottleneck=4"),
        ("compacter", "--reduction=4"),
        ("prompt", "--prompt-length=2"),
        ("bitfit", "--warmup=0"),
        ("layernorm", "--warmup=0"),
        ("head", "--warmup=0"),
        ("cross", "--rank=2"),
        ("full", "--warmup=0"),
    ] {
        let (out, method) = (format!("--out={method}"), format!("--method={method}"));
        world
            .run([&train[..], &[&out, &method, more]].concat())
            .ok();
    }
    let lora = world.path("lora/adapter_last.safetensors");
    let file = crosstune::adapter::file::AdapterFile::load(&lora).expect("loads");
    let names: Vec<&str> = file
        .tensors
        .iter()
        .map(|(name, ..)| name.as_str())
        .collect();
    for name in [
        "text_model.encoder.layers.0.self_attn.q_proj.lora.lora_A",
        "text_model.encoder.layers.1.self_attn.v_proj.lora.lora_B",
        "text_model.encoder.layers.1.layer_norm2.weight",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!(names.len(), 2 * (4 + 4));
    let encode = |more: &[&str]| {
        let texts = [
            "encode",
            "--model=clip",
            "--texts=texts.txt",
            "--force",
            "--quiet",
            "--out=x.safetensors",
        ];
        world.run([&texts[..], more].concat()).ok();
        let path = world.path("x.safetensors");
        crosstune::data::features::Features::load(&path)
            .expect("loads")
            .values
    };
    world.write("texts.txt", "a red star\nA  RED star\nq&amp;a\n");
    let bare = encode(&[]);
    // Case and blanks are nothing to CLIP.
    assert_eq!(bare[..16], bare[16..32]);
    let adapted = encode(&["--adapter=lora/adapter_last.safetensors"]);
    assert!(max_diff(&bare, &adapted) > 1e-3);
    // Folded in, it gives the same.
    let merge = [
        "merge",
        "--model=clip",
        "--adapter=lora/adapter_last.safetensors",
        "--out=merged",
        "--quiet",
    ];
    world.run(merge).ok();
    let args = [
        "encode",
        "--model=merged",
        "--texts=texts.txt",
        "--force",
        "--quiet",
        "--out=y.safetensors",
    ];
    world.run(args).ok();
    let path = world.path("y.safetensors");
    let merged = crosstune::data::features::Features::load(&path)
        .expect("loads")
        .values;
    assert!(max_diff(&merged, &adapted) < 1e-4);
    // Other programs' formats are M-CLIP's.
    for (args, says) in [
        (
            [
                "export",
                "--to=peft",
                "--adapter=lora/adapter_last.safetensors",
                "--out=peft",
            ],
            "is one of CLIP's own text tower",
        ),
        (
            ["import", "--from=peft", "--adapter=peft", "--model=clip"],
            "clip is CLIP's own text tower",
        ),
    ] {
        let more: &[&str] = if args[0] == "import" {
            &["--out=z"]
        } else {
            &[]
        };
        let ran = world.run([&args[..], more].concat());
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
}

#[test]
fn dropout_of_attention_is_its_own() {
    let mut config = tiny::config();
    config.encoder = Encoder::Clip(Gelu::Quick);
    let rates = DropoutRates {
        hidden: 0.0,
        attention: 0.5,
    };
    let adapter = Adapter::lora(2);
    let program = crosstune::train::program::TrainProgram::new(&config, true, &adapter, rates);
    let dropped = program.graph.nodes.iter().filter(|op| match op {
        crosstune::ops::Op::Attention(op) => op.dropout.is_some(),
        _ => false,
    });
    assert_eq!(dropped.count(), config.layers);
}
