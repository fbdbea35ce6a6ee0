//! Adapters in use beside one another: a mixed file of texts, an evaluation of several languages.

mod common;

use common::world::World;
use crosstune::data::features::Features;
use serde_json::Value;

const DE: &str = "de/adapter_last.safetensors";
const KO: &str = "ko/adapter_last.safetensors";
const FR: &str = "fr/adapter_last.safetensors";

/// Texts in the order of [`LANGS`].
const TEXTS: &str = "ein roter Ball\na red ball\nun ballon rouge\nein Hund\n빨간 공\nthe dog\n";
const LANGS: &str = "de\nen\nfr\nde\nko\nen\n";

/// German and Korean share a configuration, French has another one.
fn world() -> World {
    let w = World::new();
    w.train("de", &["--lr=1e-2"]).ok();
    w.train("ko", &["--lr=1e-2", "--lang=ko", "--seed=5"]).ok();
    let args = [
        "train",
        "--model=model",
        "--jsonl=world.jsonl",
        "--features=features.safetensors",
        "--lang=fr",
        "--strategy=baseline1",
        "--shots=20",
        "--epochs=1",
        "--method=adapter",
        "--bottleneck=3",
        "--lr=1e-2",
        "--out=fr",
    ];
    w.run(args).ok();
    w.write("texts.txt", TEXTS);
    w.write("langs.txt", LANGS);
    w
}

fn encode(w: &World, out: &str, more: &[String]) -> Vec<f32> {
    let mut args = vec![
        "encode".to_string(),
        "--model=model".into(),
        "--texts=texts.txt".into(),
        format!("--out={out}"),
    ];
    args.extend_from_slice(more);
    w.run(args).ok();
    Features::load(&w.path(out)).expect("features").values
}

#[test]
fn each_line_is_encoded_by_its_language_s_adapter() {
    let w = world();
    let mixed = [
        "--langs=langs.txt".to_string(),
        format!("--adapter=de={DE}"),
        format!("--adapter=ko={KO}"),
        format!("--adapter=fr={FR}"),
        "--adapter=en=none".into(),
    ];
    let got = encode(&w, "mixed.safetensors", &mixed);
    let alone = |file: &str| {
        encode(
            &w,
            &format!("{}.f", file.replace('/', "_")),
            &[format!("--adapter={file}")],
        )
    };
    let by = [
        ("de", alone(DE)),
        ("ko", alone(KO)),
        ("fr", alone(FR)),
        ("en", encode(&w, "bare.f", &[])),
    ];
    let width = got.len() / LANGS.lines().count();
    for (i, lang) in LANGS.lines().enumerate() {
        let own = |values: &[f32]| -> Vec<u32> {
            values[i * width..][..width]
                .iter()
                .map(|x| x.to_bits())
                .collect()
        };
        for (of, want) in &by {
            assert_eq!(
                own(&got) == own(want),
                *of == lang,
                "line {i}, {lang} by {of}"
            );
        }
    }
    // One without a language serves the rest.
    let rest = [
        mixed[0].clone(),
        mixed[1].clone(),
        format!("--adapter={KO}"),
    ];
    let got = encode(&w, "rest.safetensors", &rest);
    assert_eq!(got[..width], by[0].1[..width]);
    assert_eq!(got[width..3 * width], by[1].1[width..3 * width]);
}

#[test]
fn eval_takes_each_language_s_adapter() {
    let w = world();
    let eval = |more: &[&str]| -> Value {
        let args = [
            "eval",
            "--model=model",
            "--json",
            "--jsonl=world.jsonl",
            "--features=features.safetensors",
        ];
        w.run(args.iter().chain(more)).ok().json()["languages"].clone()
    };
    let [de, ko] = [DE, KO].map(|file| eval(&[&format!("--adapter={file}"), "--lang=de,ko,en"]));
    let both = eval(&[
        "--lang=de,ko,en",
        &format!("--adapter={DE}"),
        &format!("--adapter=ko={KO}"),
    ]);
    assert_eq!(
        both,
        Value::Array(vec![de[0].clone(), ko[1].clone(), de[2].clone()])
    );
    let bare = eval(&["--lang=de,ko,en"]);
    let none = eval(&[
        "--lang=de,ko,en",
        &format!("--adapter=de={DE}"),
        "--adapter=ko=none",
        "--adapter=en=none",
    ]);
    assert_eq!(
        none,
        Value::Array(vec![de[0].clone(), bare[1].clone(), bare[2].clone()])
    );
    assert_eq!(none[1]["adapter"], Value::Null);
}

#[test]
fn mistakes_are_told_in_one_sentence() {
    let w = world();
    let encode = [
        "encode",
        "--model=model",
        "--texts=texts.txt",
        "--out=out.safetensors",
    ];
    let de = format!("--adapter=de={DE}");
    let langs = "--langs=langs.txt";
    w.write("short.txt", "de\nen\n");
    let rows: [(&[&str], &str); 6] = [
        (
            &[&de],
            "langs: missing; --adapter LANG=FILE needs --langs FILE",
        ),
        (
            &[langs],
            "langs: is of no use without an --adapter LANG=FILE",
        ),
        (
            &[langs, &de],
            "langs.txt: line 2: adapter: none for `en`; give --adapter en=FILE, or en=none",
        ),
        (
            &[&de, "--langs=short.txt"],
            "short.txt: has 2 languages, but texts.txt has 6 texts",
        ),
        (&[langs, &de, &de], "is the second for its language"),
        (
            &[langs, "--adapter=de=nowhere.safetensors"],
            "nowhere.safetensors",
        ),
    ];
    for (more, says) in rows {
        let ran = w.run(encode.iter().chain(more));
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.stderr);
        assert!(
            ran.stderr.contains(says) && ran.stderr.lines().count() == 1,
            "{}",
            ran.stderr
        );
        assert!(!w.path("out.safetensors").exists());
    }
}
