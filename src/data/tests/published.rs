//! The readers on the published files, where they lie beside the checkout.

use super::*;

/// The shared data folder, or `None` with a note.
fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("CROSSTUNE_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let data = root.join("data");
    if data.is_dir() {
        return Some(data);
    }
    eprintln!("skipped: no {}", data.display());
    None
}

fn real_multi30k(data: &Path, task: Task) -> Source {
    Source::Multi30k {
        root: data.to_path_buf(),
        task,
        translations: Some(data.join("multi30k/PECTVLM")),
    }
}

fn real_xtd10(data: &Path) -> Source {
    Source::Xtd10 {
        root: data.join("xtd10"),
        translations: Some(data.join("xtd10/PECTVLM")),
    }
}

#[test]
fn multi30k_counts() {
    let Some(data) = shared() else { return };
    let source = real_multi30k(&data, Task::Translation);
    assert_eq!(languages(&source).unwrap(), ["cs", "de", "en", "fr"]);
    for language in ["de", "fr", "cs", "en"] {
        let needs = Needs {
            train: &Role::ALL,
            eval: &Role::ALL,
        };
        let full = load(&source, language, &shots(Shots::Full), needs).unwrap();
        assert_eq!(
            [full.train.len(), full.validation.len(), full.test.len()],
            [29000, 1014, 1000]
        );
        for split in [&full.train, &full.validation, &full.test] {
            assert!(
                Role::ALL
                    .iter()
                    .all(|&r| split.text(r).unwrap().len() == split.len())
            );
        }
    }
    for (name, n, all) in [
        ("train", 29000, true),
        ("val", 1014, true),
        ("test_2016_flickr", 1000, true),
        ("test_2017_flickr", 1000, false),
        ("test_2017_mscoco", 461, false),
        ("test_2018_flickr", 1071, true),
    ] {
        let (split, _) = load_split(&source, name, "de", &[Role::Target, Role::English]).unwrap();
        assert_eq!(split.len(), n, "{name}");
        assert!(split.images.iter().all(|image| image.ends_with(".jpg")));
        let czech = load_split(&source, name, "cs", EVAL);
        match all {
            true => assert_eq!(czech.unwrap().0.len(), n),
            false => failure(czech, &[name, "`cs`", "de, en, fr"]),
        }
    }
    for caption in 1..=5 {
        let source = real_multi30k(&data, Task::Description { caption });
        let full = load(&source, "de", &shots(Shots::Full), needs(EVAL)).unwrap();
        assert_eq!(
            [full.train.len(), full.validation.len(), full.test.len()],
            [29000, 1014, 1000]
        );
        assert_eq!(languages(&source).unwrap(), ["de", "en"]);
    }
    let task2 = real_multi30k(&data, Task::Description { caption: 1 });
    assert_eq!(
        load_split(&task2, "test_2016_flickr", "de", EVAL)
            .unwrap()
            .0
            .len(),
        1000
    );
    failure(
        load_split(&task2, "test_2017", "de", EVAL),
        &["test_2017", "none at all"],
    );
    failure(
        load_split(&source, "test_2019", "de", EVAL),
        &["test_2019", "test_2018_flickr, train"],
    );
}

#[test]
fn multi30k_text_is_as_published() {
    let Some(data) = shared() else { return };
    let source = real_multi30k(&data, Task::Translation);
    let (train, warnings) = load_split(&source, "train", "de", &Role::ALL).unwrap();
    let german = train.text(Role::Target).unwrap();
    assert_eq!(
        german
            .iter()
            .map(|t| t.matches('\u{a0}').count())
            .sum::<usize>(),
        47
    );
    assert!(german[7365].contains('\t'));
    assert!(train.text(Role::English).unwrap()[560].contains("&amp;"));
    for role in Role::ALL {
        let texts = train.text(role).unwrap();
        assert!(
            texts
                .iter()
                .all(|t| !t.contains('\r') && captions::strip_ascii(t) == t)
        );
    }
    let junk = Warning::Junk {
        split: "train".into(),
        role: Role::Target,
        lines: vec![16510, 16664],
        count: 2,
    };
    assert!(warnings.contains(&junk), "{warnings:?}");
    let duplicates = Warning::Duplicates {
        split: "train".into(),
        role: Role::English,
        count: 9,
    };
    assert!(warnings.contains(&duplicates), "{warnings:?}");
    let few = load(&source, "de", &shots(Shots::Few(50)), needs(EVAL)).unwrap();
    assert_eq!(few.train.items[..3], [7542, 27041, 20502]);
    assert_eq!(few.train.text(Role::Target).unwrap()[0], german[7542]);
    assert_eq!(few.train.images[0], train.images[7542]);
    let zero = load(&source, "de", &shots(Shots::Zero), needs(&Role::ALL)).unwrap();
    assert_eq!((zero.train.len(), &zero.test), (0, &few.test));
}

#[test]
fn xtd10_counts_and_split() {
    let Some(data) = shared() else { return };
    let source = real_xtd10(&data);
    let all = [
        "de", "en", "es", "fr", "it", "jp", "ko", "pl", "ru", "tr", "zh",
    ];
    assert_eq!(languages(&source).unwrap(), all);
    for language in all.into_iter().chain(["ja"]) {
        let (split, _) = load_split(&source, "all", language, &Role::ALL).unwrap();
        assert_eq!(split.len(), 1000, "{language}");
        for role in Role::ALL {
            let texts = split.text(role).unwrap();
            assert_eq!(texts.len(), 1000);
            assert!(texts.iter().all(|t| !t.contains('\r')));
        }
    }
    let few = load(
        &source,
        "de",
        &shots(Shots::Few(50)),
        needs(&[Role::ToEnglish]),
    )
    .unwrap();
    assert_eq!(
        [few.train.len(), few.validation.len(), few.test.len()],
        [50, 50, 900]
    );
    assert_eq!(few.train.items[..5], [542, 618, 816, 68, 94]);
    assert_eq!(few.validation.items[..5], [820, 440, 338, 327, 562]);
    assert_eq!(few.test.items[..5], [83, 664, 471, 642, 137]);
    assert!(few.train.text(Role::Target).is_none() && few.test.text(Role::ToEnglish).is_none());
    let (german, warnings) = load_split(&source, "all", "de", EVAL).unwrap();
    assert_eq!(
        few.test.text(Role::Target).unwrap()[0],
        german.text(Role::Target).unwrap()[83]
    );
    let junk = Warning::Junk {
        split: "all".into(),
        role: Role::Target,
        lines: vec![148, 241, 262, 727, 768],
        count: 6,
    };
    assert_eq!(
        warnings,
        [
            junk,
            Warning::Duplicates {
                split: "all".into(),
                role: Role::Target,
                count: 3
            }
        ]
    );
    failure(
        load_split(&source, "test", "de", EVAL),
        &["`all`", "`test`"],
    );
    failure(
        load(&source, "cs", &Protocol::default(), needs(EVAL)),
        &["`cs`", "de, en, es"],
    );
    // Given the folder XTD10/ itself, its siblings are found.
    let root = data.join("xtd10/Cross-lingual-Test-Dataset-XTD10/XTD10");
    assert_eq!(
        languages(&Source::Xtd10 {
            root,
            translations: None
        })
        .unwrap(),
        all
    );
}

#[test]
fn korean_translations_are_italian() {
    let Some(data) = shared() else { return };
    let source = real_xtd10(&data);
    let same = |language: &str, role: Role| -> Vec<String> {
        let (_, warnings) = load_split(&source, "all", language, &[role]).unwrap();
        let same = warnings
            .iter()
            .filter(|w| matches!(w, Warning::SameTranslation { .. }));
        same.map(ToString::to_string).collect()
    };
    for language in ["ko", "it"] {
        let found = same(language, Role::FromEnglish);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("ko.txt") && found[0].contains("it.txt"),
            "{found:?}"
        );
    }
    assert!(same("de", Role::FromEnglish).is_empty());
    assert!(same("ko", Role::ToEnglish).is_empty());
}
