//! `crosstune search` from end to end: its table, its lines of JSON, its page, and what it refuses.

mod common;

use common::shared;
use common::world::{Ran, World};
use crosstune::data::features::Features;
use crosstune::demo::recipe::Recipe;
use crosstune::demo::run::{DemoOptions, run};
use crosstune::ops::philox::Stream;
use serde_json::Value;
use std::collections::HashSet;
use std::ops::ControlFlow;

const SEARCH: [&str; 3] = ["search", "--model=model", "--features=features.safetensors"];

fn search(w: &World, more: &[&str]) -> Ran {
    w.run(SEARCH.iter().chain(more))
}

/// A line of JSON a query.
fn answers(ran: &Ran) -> Vec<Value> {
    let lines = ran.stdout.lines();
    lines
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect()
}

fn names_of(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().expect("results");
    let name = |r: &Value| r["name"].as_str().expect("a name").to_string();
    results.iter().map(name).collect()
}

/// What follows each `before` in a page, up to `after`.
fn between<'a>(page: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    let parts = page.split(before).skip(1);
    parts.filter_map(|p| Some(p.split_once(after)?.0)).collect()
}

/// What the page calls its answers, in its order.
fn shown(page: &str) -> Vec<&str> {
    between(page, "<p class=\"name\" dir=\"auto\">", "</p>")
}

#[test]
fn sentences_find_the_rows_that_their_features_are_nearest_to() {
    let w = World::new();
    let texts = ["a red circle", "ein blaues Quadrat", "빨간 원"];
    w.write("more.txt", format!("{}\n", texts[2]));
    let ran = search(&w, &[texts[0], texts[1], "--queries=more.txt", "--json"]).ok();
    let answers = answers(&ran);
    assert_eq!(answers.len(), 3);

    w.write("texts.txt", texts.map(|t| format!("{t}\n")).concat());
    w.run([
        "encode",
        "--model=model",
        "--texts=texts.txt",
        "--out=t.safetensors",
    ])
    .ok();
    let [images, queries] =
        ["features", "t"].map(|f| Features::load(&w.path(format!("{f}.safetensors"))).expect("f"));
    for (q, answer) in answers.iter().enumerate() {
        assert_eq!(answer["query"], texts[q]);
        let cosine = |row: usize| {
            let pairs = images.row(row).iter().zip(queries.row(q));
            let dot: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let length = |x: &[f32]| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            dot / length(images.row(row)) / length(queries.row(q))
        };
        let mut rows: Vec<usize> = (0..images.len()).collect();
        rows.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)));
        let want: Vec<&String> = rows[..10].iter().map(|r| &images.names[*r]).collect();
        assert_eq!(names_of(answer).iter().collect::<Vec<_>>(), want);
        for (i, row) in rows[..10].iter().enumerate() {
            let result = &answer["results"][i];
            assert_eq!(
                (&result["rank"], &result["row"]),
                (&(i + 1).into(), &(*row).into())
            );
            let score = result["score"].as_f64().expect("a score");
            assert!((score - cosine(*row)).abs() < 1e-6, "{score}");
        }
    }

    let table = search(&w, &[texts[0], "--top=3"]).ok().stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines.len(), lines[0]), (5, texts[0]));
    for (line, name) in lines[2..].iter().zip(names_of(&answers[0])) {
        assert!(line.ends_with(&name), "{line}");
    }
    let stdin = [&SEARCH[..], &["--queries=-", "--json", "--threads=1"]].concat();
    let ran = w.run_with_stdin(stdin, format!("{}\n", texts[2]).as_bytes());
    assert_eq!(
        ran.ok().stdout.lines().next(),
        ran_line(&answers[2]).as_deref()
    );
}

fn ran_line(answer: &Value) -> Option<String> {
    serde_json::to_string(answer).ok()
}

#[test]
fn an_image_finds_captions_from_lines_and_from_their_features() {
    let w = World::new();
    let captions = "--captions=xtd10/XTD10/test_1kcaptions_de.txt";
    let image = [
        "--image=scene_00003.png",
        "--image=scene_00050.png",
        "--json",
        "--top=4",
    ];
    let from_lines = search(&w, &[&image[..], &[captions]].concat()).ok();
    let found = answers(&from_lines);
    assert_eq!(found.len(), 2);
    assert_eq!(found[1]["query"], "scene_00050.png");
    let lines = w.text("xtd10/XTD10/test_1kcaptions_de.txt");
    for answer in &found {
        for (name, result) in names_of(answer)
            .iter()
            .zip(answer["results"].as_array().expect("r"))
        {
            let row = result["row"].as_u64().expect("a row") as usize;
            assert_eq!(lines.lines().nth(row), Some(name.as_str()));
        }
    }
    let texts = "--texts=xtd10/XTD10/test_1kcaptions_de.txt";
    w.run(["encode", "--model=model", texts, "--out=c.safetensors"])
        .ok();
    let bare = [
        "search",
        "--features=features.safetensors",
        "--caption-features=c.safetensors",
    ];
    let with = |more: &[&str]| w.run(bare.iter().chain(&image).chain(more)).ok().stdout;
    assert_eq!(with(&[captions]), from_lines.stdout);
    // Without lines, and without names in the file, rows are numbers.
    let row = &found[0]["results"][0]["row"];
    assert!(with(&[]).contains(&format!("\"name\":\"row {row}\"")));
}

#[test]
fn adapters_encode_the_sentences_of_their_languages() {
    let w = World::new();
    w.train("de", &["--lr=5e-2"]).ok();
    let file = "de/adapter_last.safetensors";
    let [own, all] = ["de=", ""].map(|l| format!("--adapter={l}{file}"));
    let texts = ["ein roter Kreis", "a red circle", "--json"];
    let found = |more: &[&str]| answers(&search(&w, &[&texts[..], more].concat()).ok());
    let bare = found(&[]);
    let adapted = found(&[&all]);
    assert!(bare[0] != adapted[0] && bare[1] != adapted[1]);
    let each = found(&[&own, "--adapter=en=none", "--lang=de,en"]);
    assert_eq!(each, [adapted[0].clone(), bare[1].clone()]);
    assert_eq!(found(&[&own, "--lang=de"]), adapted);
}

#[test]
fn a_page_shows_what_was_found() {
    let w = World::new();
    let png = crosstune::demo::png::to_png(&crosstune::demo::render::render(
        &crosstune::demo::scene::Scene::random(1, 0),
        1,
    ));
    std::fs::create_dir(w.path("pictures")).expect("made");
    let png = png.expect("written");
    for i in (0..60).filter(|i| i % 3 > 0) {
        w.write(format!("pictures/scene_{i:05}.png"), &png);
    }
    w.write("pictures/scene_00001.png", "no picture");
    let page = [
        "--html=page.html",
        "--images=pictures",
        "--top=60",
        "--json",
        "<i>x",
    ];
    let answer = &answers(&search(&w, &page).ok())[0];
    let html = w.text("page.html");
    assert_eq!(shown(&html), names_of(answer));
    assert_eq!(html.matches("src=\"data:image/png;base64,").count(), 39);
    assert_eq!(html.matches("No picture: no such file").count(), 20);
    assert_eq!(html.matches("No picture: is neither a JPEG").count(), 1);
    assert!(html.contains("&lt;i&gt;x") && !html.contains("<i>x"));
    let again = search(&w, &page);
    assert_eq!(again.code, 2);
    assert!(
        again
            .stderr
            .contains("page.html: already exists; give --force")
    );
    search(&w, &[&page[..], &["--force"]].concat()).ok();

    let image = [
        "--image=scene_00002.png",
        "--captions=xtd10/XTD10/test_1kcaptions_ko.txt",
    ];
    search(
        &w,
        &[&image[..], &["--html=i.html", "--images=pictures"]].concat(),
    )
    .ok();
    assert_eq!(w.text("i.html").matches("src=\"data:image/png").count(), 1);
}

#[test]
fn mistakes_are_named() {
    let w = World::new();
    w.write("none", "");
    w.write("two.txt", "a\nb\n");
    let narrow = Features {
        names: vec![],
        dim: 8,
        values: Stream::named(1, "narrow").normal(80, 1.0),
    };
    narrow.save(&w.path("narrow.safetensors")).expect("saved");
    let cases: [(&[&str], &str); 17] = [
        (
            &["--image=scene_0003.png", "--captions=two.txt"],
            "features.safetensors: has no row `scene_0003.png`; the nearest name in it is `scene_00003.png`",
        ),
        (
            &["a", "--features=narrow.safetensors"],
            "narrow.safetensors: features are 8 wide, the model's are 16",
        ),
        (
            &[
                "--image=scene_00003.png",
                "--caption-features=narrow.safetensors",
            ],
            "features.safetensors: features are 16 wide, those of the captions are 8",
        ),
        (
            &[
                "--image=a",
                "--captions=two.txt",
                "--features=narrow.safetensors",
            ],
            "narrow.safetensors: has no names, so none is `a`",
        ),
        (
            &[
                "--image=scene_00003.png",
                "--caption-features=features.safetensors",
                "--captions=two.txt",
            ],
            "two.txt: has 2 captions, but features.safetensors has 60 rows",
        ),
        (&["a", " "], "query 2 is empty"),
        (&["--queries=none"], "none: the file is empty"),
        (&["a", "--top=0"], "top: found 0, expected at least 1"),
        (&["a", "--model="], "model: missing; give --model DIR"),
        (
            &["a", "--features="],
            "features: missing; give --features FILE",
        ),
        (
            &["a", "--html=p.html"],
            "images: missing; --html needs --images DIR",
        ),
        (
            &["a", "--html=p.html", "--images=none"],
            "none: is not a folder",
        ),
        (
            &["a", "--images=model"],
            "images: is of no use without --html",
        ),
        (&[], "search: nothing is asked for"),
        (
            &["a", "--image=scene_00003.png", "--captions=two.txt"],
            "a sentence asks for images; give one or the other",
        ),
        (
            &["--image=scene_00003.png"],
            "captions: missing; --image needs --captions FILE",
        ),
        (
            &["a", "--lang=de"],
            "lang: is of no use without an --adapter LANG=FILE",
        ),
    ];
    let before = w.snapshot();
    for (more, says) in cases {
        let given = |a: &&&str| {
            !more
                .iter()
                .any(|m| m.split('=').next() == a.split('=').next())
        };
        let args = SEARCH.iter().filter(|a| !a.starts_with("--") || given(a));
        let ran = w.run(args.chain(more.iter().filter(|m| !m.ends_with('='))));
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{more:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
    }
    assert!(before == w.snapshot(), "something was written");
    w.edit_features(|f| f.values[16 * 9 + 1] = f32::NAN);
    let ran = search(&w, &["a"]);
    let says = "features.safetensors: row 9 (scene_00009.png) has NaN at place 1";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
}

/// By chance it would be 2.5 %; measured 68 % in English, 52 % in German, 54 % in French.
#[test]
fn the_right_picture_of_the_demo_is_among_the_first_five() {
    let w = World::new();
    let options = DemoOptions {
        recipe: Recipe::quick(),
        ..DemoOptions::new(w.path("demo"))
    };
    run(&options, &mut |_| ControlFlow::Continue(())).expect("the demo");
    let rows = w.text("demo/world.jsonl");
    let items: Vec<Value> = rows
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let test: Vec<&Value> = items.iter().filter(|r| r["split"] == "test").collect();
    // Among pictures that no training saw.
    let all = Features::load(&w.path("demo/features.safetensors")).expect("features");
    let index = all.index();
    let image = |r: &&Value| r["image"].as_str().expect("a name").to_string();
    let names: Vec<String> = test.iter().map(image).collect();
    let rows = names.iter().flat_map(|n| all.row(index[n.as_str()]));
    let values = rows.copied().collect();
    let seen = Features {
        dim: all.dim,
        values,
        names,
    };
    seen.save(&w.path("test.safetensors")).expect("saved");
    for language in ["en", "de", "fr"] {
        let texts = test
            .iter()
            .map(|r| r["captions"][language].as_str().expect("text"));
        let texts: Vec<String> = texts.map(|t| format!("{t}\n")).collect();
        w.write("queries.txt", texts.concat());
        let args = [
            "search",
            "--model=demo/model",
            "--features=test.safetensors",
            "--queries=queries.txt",
            "--top=5",
            "--json",
            "--quiet",
        ];
        let found = answers(&w.run(args).ok());
        let hits = found
            .iter()
            .zip(&test)
            .filter(|(answer, item)| names_of(answer).iter().any(|n| item["image"] == n.as_str()));
        let share = hits.count() as f64 / test.len() as f64;
        println!("{language}: {share:.3} of {}", test.len());
        assert!(share > 0.3, "{language}: {share}");
    }
}

/// Nothing here aligns texts and photographs, so features are random: the page must follow them.
#[test]
fn photographs_stand_in_the_order_of_their_scores() {
    let Some(folder) = shared().map(|s| s.join("data/images")) else {
        return;
    };
    let w = World::new();
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("a folder")
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .filter(|n| n.ends_with(".jpg"))
        .collect();
    names.sort();
    let n = names.len();
    let features = Features {
        dim: 16,
        values: Stream::named(5, "photographs").normal(n * 16, 1.0),
        names,
    };
    let path = w.path("photos.safetensors");
    features
        .save_as(&path, crosstune::tensor::Dtype::F16)
        .expect("saved");
    let images = format!("--images={}", folder.display());
    let args = [
        "search",
        "--model=model",
        "--features=photos.safetensors",
        "--html=p.html",
    ];
    let more = ["--top=100", "--json", "a dog on a beach", &images];
    let answer = &answers(&w.run(args.iter().chain(&more)).ok())[0];
    let html = w.text("p.html");
    assert_eq!(shown(&html).len(), n);
    assert_eq!(shown(&html), names_of(answer));
    let scores = between(&html, "class=\"score\">", "</span>");
    let scores: Vec<f64> = scores
        .iter()
        .map(|s| s.parse().expect("a number"))
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b));
    for (score, result) in scores.iter().zip(answer["results"].as_array().expect("r")) {
        assert!((score - result["score"].as_f64().expect("a score")).abs() <= 5.1e-5);
    }
    let frames: HashSet<&str> = between(&html, "src=\"", "\"").into_iter().collect();
    assert_eq!(frames.len(), n, "each photograph once");
    assert!(!html.contains("No picture"));
}
