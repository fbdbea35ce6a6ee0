//! `crosstune sweep`: mistakes in its file, on its command line and in its folder.

mod common;

use common::sweep::{FILE, sweep, world};
use common::world::Ran;

#[test]
fn mistakes_are_named() {
    let w = world(FILE);
    let cases: [(&str, &str, &str); 17] = [
        (
            "lr = [1e-3, 3e-3]",
            "learnig-rate = 1",
            "sweep.toml: unknown option `learnig-rate`; the options are",
        ),
        (
            "epochs = 2",
            "epoch = 2",
            "sweep.toml: unknown option `epoch`; did you mean `epochs`?",
        ),
        (
            "lr = [1e-3, 3e-3]",
            "lr = []",
            "sweep.toml: `lr`: the list is empty",
        ),
        (
            "lr = [1e-3, 3e-3]",
            "lr = [1e-3, 'fast']",
            "sweep.toml: `lr`: ",
        ),
        (
            "lr = [1e-3, 3e-3]",
            "lr = [nan]",
            "sweep.toml: `lr`: found nan, expected a finite number",
        ),
        (
            "model = 'model'",
            "model = ['model', 'other']",
            "sweep.toml: `model`: all members of a sweep have it in common",
        ),
        (
            "strategy = ['baseline1', 'routine1']",
            "strategy = 'baseline1'",
            "ratio: no member has a use for it",
        ),
        (
            "rank = 2",
            "rank = 2\nbottleneck = 3",
            "bottleneck: no member has a use for it",
        ),
        ("lang = ['de', 'ko']", "lang = ['de', 'xx']", "xx"),
        ("lang = ['de', 'ko']", "", "lang: missing"),
        (
            "shots = 20",
            "shots = 'zero'",
            "trains nothing; drop one of the two",
        ),
        (
            "strategy = ['baseline1', 'routine1']",
            "strategy = ['baseline1', 'routine9']",
            "strategy: found `routine9`",
        ),
        (
            "rank = 2",
            "rank = 2\nmax-members = 0",
            "sweep.toml: `max-members`: found 0, expected a number above 0",
        ),
        (
            "rank = 2",
            "rank = 2\nmax-tokens = [64, 96]",
            "sweep.toml: `max-tokens`: all members of a sweep have it in common",
        ),
        (
            "rank = 2",
            "rank = 2\nmax-tokens = 0",
            "max-tokens: found 0, expected at least 1",
        ),
        (
            "rank = 2",
            "rank = 2\nmax-tokens = 3",
            "max-tokens: found 3, but the longest text to train on has",
        ),
        (
            "rank = 2",
            "rank = 2\nmemory = 1e-6",
            "memory: de-baseline1-lr0.001-seed3 needs ",
        ),
    ];
    for (from, to, says) in cases {
        w.write("sweep.toml", FILE.replace(from, to));
        let before = w.snapshot();
        let ran = sweep(&w, &["--out=out"]);
        assert_eq!(ran.code, 2, "{to}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{to}: {}", ran.stderr);
        assert!(w.snapshot() == before, "{to}: something was written");
    }
    w.write("sweep.toml", FILE);
    for (args, says) in [
        (
            &["sweep"][..],
            "give a FILE with its options, or --preset NAME",
        ),
        (&["sweep", "none.toml"], "none.toml: cannot be read"),
        (&["sweep", "sweep.toml"], "out: missing; give --out"),
        (
            &["sweep", "sweep.toml", "--out=model"],
            "model: already exists, is not empty and holds no sweep",
        ),
        (
            &["sweep", "sweep.toml", "--out=o", "--set=lr"],
            "--set lr: is not TOML",
        ),
        (
            &["sweep", "sweep.toml", "--out=o", "--set=rnak=1"],
            "--set: unknown option `rnak`; did you mean `rank`?",
        ),
        (&["sweep", "--preset=grid_method9"], "grid_method1"),
    ] {
        let ran = w.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn a_folder_belongs_to_one_sweep() {
    let w = world(&FILE.replace("lang = ['de', 'ko']", "lang = 'de'"));
    sweep(&w, &["--out=out", "--set=lr=1e-3"]).ok();
    let before = w.snapshot();
    let refused = |ran: Ran, says: &str| {
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
        assert!(w.snapshot() == before);
    };
    refused(
        sweep(&w, &["--out=out"]),
        "out: holds another sweep, or a run; its settings are in out/config.toml",
    );
    // What changes no result may differ.
    let same = [
        "--out=./out",
        "--set=lr=1e-3",
        "--threads=2",
        "--max-members=3",
        "--set=save-every=7",
    ];
    sweep(&w, &same).ok();
    w.run(["sweep", "out/config.toml"]).ok();
    assert!(w.snapshot() == before);
    w.train("run", &[]).ok();
    let ran = sweep(&w, &["--out=run"]);
    assert!(
        ran.stderr.contains("run: holds another sweep, or a run"),
        "{}",
        ran.stderr
    );
    // Other data under the same settings.
    std::fs::remove_dir_all(w.path("out/de-baseline1-lr0.001-seed3")).expect("removed");
    w.edit_features(|f| f.values.iter_mut().for_each(|x| *x += 1e-3));
    let ran = sweep(&w, &["--out=out", "--set=lr=1e-3"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr
            .contains("out: belongs to a sweep of another model or of other data"),
        "{}",
        ran.stderr
    );
}
