//! The readers on handmade files; `published` has those on the real ones.

mod published;

use super::*;
use std::fs;
use tempfile::TempDir;

const EVAL: &[Role] = &[Role::Target];

fn needs(train: &[Role]) -> Needs<'_> {
    Needs { train, eval: EVAL }
}

fn shots(shots: Shots) -> Protocol {
    Protocol {
        shots,
        ..Protocol::default()
    }
}

/// Writes `(path, text)` pairs under a fresh folder.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn failure<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let error = error.to_string();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

const TASK1: &[(&str, &str)] = &[
    ("data/task1/image_splits/train.txt", "1.jpg\n2.jpg\n3.jpg\n"),
    ("data/task1/image_splits/val.txt", "4.jpg\n"),
    (
        "data/task1/image_splits/test_2016_flickr.txt",
        "5.jpg#12\n6.jpg#13\n",
    ),
    ("data/task1/raw/train.de", "eins\nzwei\ndrei\n"),
    ("data/task1/raw/val.de", "vier"),
    ("data/task1/raw/test_2016_flickr.de", "fuenf\r\nsechs\r\n"),
    ("data/task1/raw/train.en", "one\ntwo\nthree\n"),
    ("data/task1/raw/val.en", "four\n"),
    ("data/task1/raw/test_2016_flickr.en", "five\nsix\n"),
    ("tr/translated_from_en/train.de", "EINS\nZWEI\nDREI"),
    ("tr/translated_from_en/val.fr", "QUATRE"),
];

fn handmade(folder: &TempDir, translations: Option<&str>) -> Source {
    Source::Multi30k {
        root: folder.path().to_path_buf(),
        task: Task::Translation,
        translations: translations.map(|name| folder.path().join(name)),
    }
}

#[test]
fn multi30k_by_hand() {
    let folder = folder(TASK1);
    let source = handmade(&folder, Some("tr"));
    let roles = [Role::Target, Role::English, Role::FromEnglish];
    let full = load(&source, "de", &shots(Shots::Full), needs(&roles)).unwrap();
    assert_eq!(
        full.train.text(Role::FromEnglish).unwrap(),
        ["EINS", "ZWEI", "DREI"]
    );
    assert_eq!(
        full.train.text(Role::English).unwrap(),
        ["one", "two", "three"]
    );
    assert_eq!(full.test.text(Role::Target).unwrap(), ["fuenf", "sechs"]);
    assert_eq!(full.test.images, ["5.jpg", "6.jpg"]);
    assert_eq!(full.warnings, []);
    let english = load(
        &handmade(&folder, None),
        "en",
        &shots(Shots::Full),
        needs(&Role::ALL),
    );
    let english = english.unwrap();
    assert_eq!(
        english.train.text(Role::FromEnglish),
        english.train.text(Role::English)
    );
}

#[test]
fn multi30k_faults_are_named() {
    let mut files = TASK1.to_vec();
    files.push(("data/task1/raw/train.fr", "un\ndeux\n"));
    let folder = folder(&files);
    let full = shots(Shots::Full);
    let source = handmade(&folder, None);
    failure(
        load(&source, "fr", &full, needs(EVAL)),
        &["train.fr has 2 lines", "train.txt names 3 images"],
    );
    failure(
        load(&source, "cs", &full, needs(EVAL)),
        &["`train`", "`cs`", "de, en, fr"],
    );
    failure(
        load(&source, "de", &full, needs(&[Role::FromEnglish])),
        &["translations", "no folder was given"],
    );
    failure(
        load(
            &handmade(&folder, Some("nowhere")),
            "de",
            &full,
            needs(&[Role::FromEnglish]),
        ),
        &["nowhere", "translated_from_en", "datasets/Multi30K"],
    );
    let translated = handmade(&folder, Some("tr"));
    failure(
        load_split(&translated, "val", "de", &[Role::FromEnglish]),
        &["translated_from_en", "expected val.de", "found val.* of fr"],
    );
    failure(
        load(&source, "de", &shots(Shots::Few(4)), needs(EVAL)),
        &["4", "3 items"],
    );
    let task2 = Source::Multi30k {
        root: folder.path().to_path_buf(),
        task: Task::Description { caption: 1 },
        translations: None,
    };
    failure(
        languages(&task2),
        &["data/task2/raw", "https://github.com/multi30k/dataset"],
    );
}

#[test]
fn xtd10_flat_layout() {
    let files = [
        ("all/test_image_names.txt", "1.jpg\n2.jpg\n3.jpg\n4.jpg"),
        ("all/en.txt", "one\ntwo\nthree\nfour"),
        ("all/jp.txt", "一\r\n二\r\n三\r\n四"),
        ("all/de.txt", "eins\nzwei\ndrei"),
    ];
    let folder = folder(&files);
    for root in [folder.path().to_path_buf(), folder.path().join("all")] {
        let source = Source::Xtd10 {
            root,
            translations: None,
        };
        assert_eq!(languages(&source).unwrap(), ["de", "en", "jp"]);
        let loaded = load(
            &source,
            "ja",
            &shots(Shots::Few(1)),
            needs(&[Role::English]),
        )
        .unwrap();
        let item = loaded.validation.items[0] as usize;
        assert_eq!(
            loaded.validation.text(Role::Target).unwrap(),
            [["一", "二", "三", "四"][item]]
        );
        failure(
            load_split(&source, "all", "de", EVAL),
            &["de.txt has 3 lines", "test_image_names.txt names 4 images"],
        );
        failure(
            load(&source, "ja", &shots(Shots::Few(2)), needs(EVAL)),
            &["2 of XTD10", "4 items"],
        );
    }
    let source = Source::Xtd10 {
        root: folder.path().join("none"),
        translations: None,
    };
    failure(languages(&source), &["none", "test_image_names.txt"]);
}

fn jsonl(text: &str) -> (TempDir, Source) {
    let folder = folder(&[("data.jsonl", text)]);
    let source = Source::Jsonl(JsonlFiles::One(folder.path().join("data.jsonl")));
    (folder, source)
}

#[test]
fn jsonl_by_field() {
    let (_folder, source) = jsonl(concat!(
        r#"{"image": "1.jpg", "captions": {"de": "eins ", "en": ["one", "1"]}, "split": "train"}"#,
        "\r\n\n",
        r#"{"image": "2.jpg", "captions": {"de": "zwei"}, "split": "val", "licence": 3}"#,
        "\n",
        r#"{"image": "3.jpg", "captions": {"de": "drei", "ja": "三"}, "split": "test"}"#,
    ));
    assert_eq!(languages(&source).unwrap(), ["de", "en", "ja"]);
    let full = load(
        &source,
        "de",
        &shots(Shots::Full),
        needs(&[Role::Target, Role::English]),
    )
    .unwrap();
    assert_eq!(full.train.text(Role::Target).unwrap(), ["eins"]);
    assert_eq!(full.train.text(Role::English).unwrap(), ["one"]);
    assert_eq!(full.validation.images, ["2.jpg"]);
    assert_eq!(full.test.items, [3]);
    assert_eq!(
        load_split(&source, "test", "jp", EVAL).unwrap().0.texts[0],
        Some(vec!["三".into()])
    );
    failure(
        load(&source, "fr", &shots(Shots::Full), needs(EVAL)),
        &["data.jsonl: line 1", "`fr`", "de, en"],
    );
    failure(
        load(
            &source,
            "de",
            &shots(Shots::Full),
            needs(&[Role::ToEnglish]),
        ),
        &["line 1", "translated_to_en", "`de`", "none"],
    );
    failure(
        load_split(&source, "dev", "de", EVAL),
        &["`dev`", "train, validation or test"],
    );
}

#[test]
fn jsonl_cut_by_the_protocol() {
    let text: String = (0..10)
        .map(|i| format!("{{\"image\": \"{i}.jpg\", \"captions\": {{\"de\": \"Nummer {i}\"}}}}\n"))
        .collect();
    let (_folder, source) = jsonl(&text);
    let few = load(&source, "de", &shots(Shots::Few(2)), needs(EVAL)).unwrap();
    assert_eq!(few.train.images, ["2.jpg", "6.jpg"]);
    assert_eq!(few.validation.images, ["1.jpg", "8.jpg"]);
    assert_eq!(few.test.len(), 6);
    failure(
        load(&source, "de", &shots(Shots::Full), needs(EVAL)),
        &["full", "data.jsonl", "10"],
    );
    failure(
        load_split(&source, "test", "de", EVAL),
        &["`split`", "choose `all`"],
    );
    assert_eq!(load_split(&source, "all", "de", EVAL).unwrap().0.len(), 10);
}

#[test]
fn jsonl_in_three_files() {
    let line = |i: u8| format!("{{\"image\": \"{i}.jpg\", \"captions\": {{\"de\": \"{i}\"}}}}\n");
    let (train, test) = (line(1) + &line(2), line(4));
    let folder = folder(&[("a", &train), ("b", &line(3)), ("c", &test)]);
    let [train, validation, test] = ["a", "b", "c"].map(|name| folder.path().join(name));
    let source = Source::Jsonl(JsonlFiles::Three {
        train,
        validation,
        test,
    });
    let full = load(&source, "de", &shots(Shots::Full), needs(EVAL)).unwrap();
    assert_eq!(full.train.images, ["1.jpg", "2.jpg"]);
    assert_eq!(full.test.images, ["4.jpg"]);
    assert_eq!(
        load_split(&source, "validation", "de", EVAL)
            .unwrap()
            .0
            .images,
        ["3.jpg"]
    );
}

#[test]
fn jsonl_faults_name_file_and_line() {
    let good = r#"{"image": "1.jpg", "captions": {"de": "eins"}, "split": "train"}"#;
    for (line, parts) in [
        (
            r#"{"image": "2.jpg", "captions": {"de": 3}}"#,
            vec!["line 2", "a list of strings"],
        ),
        (r#"{"captions": {"de": "x"}}"#, vec!["line 2", "`image`"]),
        (r#"{"image": "2.jpg"}"#, vec!["line 2", "`captions`"]),
        (r#"{"image": "2.jpg", "#, vec!["line 2", "EOF"]),
        (
            r#"{"image": "2.jpg", "captions": {"de": "x"}}"#,
            vec!["line 2", "`split`", "none"],
        ),
        (
            r#"{"image": "2.jpg", "captions": {"de": "x"}, "split": "dev"}"#,
            vec!["line 2", "`dev`", "validation"],
        ),
        (
            r#"{"image": "2.jpg", "captions": {"de": "x"}, "split": "val"}"#,
            vec!["no line of test"],
        ),
    ] {
        let (_folder, source) = jsonl(&format!("{good}\n{line}\n"));
        let mut parts = parts;
        parts.push("data.jsonl");
        failure(
            load(&source, "de", &shots(Shots::Full), needs(EVAL)),
            &parts,
        );
    }
    for (line, part) in [
        (
            r#"{"image": "2.jpg", "captions": {"de": " "}}"#,
            "`de` is empty",
        ),
        (
            r#"{"image": "2.jpg", "captions": {"de": []}}"#,
            "`de` is empty",
        ),
        (r#"{"image": " ", "captions": {"de": "x"}}"#, "`image`"),
    ] {
        let (_folder, source) = jsonl(line);
        failure(
            load_split(&source, "all", "de", EVAL),
            &["data.jsonl", "line 1", part],
        );
    }
    let (_folder, source) = jsonl("\n\n");
    failure(languages(&source), &["data.jsonl", "empty"]);
}
