//! Weights and learning rates that leave no number finite.

use crate::common::world::World;
use crate::edit_caption;

#[test]
fn a_nan_weight_ends_the_run_before_it_began() {
    let w = World::new();
    w.spoil_weight("transformer.encoder.layer.1.output.dense.bias", 5, f32::NAN);
    let before = w.snapshot();
    let ran = w.train("run", &[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let says = "error: text 1: its feature is not finite; model/model.safetensors: \
                transformer.encoder.layer.1.output.dense.bias holds NaN at element 5\n";
    assert!(ran.stderr.ends_with(says), "{}", ran.stderr);
    assert!(w.snapshot() == before);
    let encode = [
        "encode",
        "--model=model",
        "--texts=-",
        "--out=f.safetensors",
    ];
    let ran = w.run_with_stdin(encode, b"a red circle\n");
    assert!(
        ran.code == 1 && ran.stderr.ends_with(says),
        "{}",
        ran.stderr
    );
    assert!(w.snapshot() == before);
}

#[test]
fn a_nan_weight_of_the_training_texts_alone_is_named() {
    let w = World::new();
    // The unknown token, which no text but those of the training items holds.
    w.spoil_weight(
        "transformer.embeddings.word_embeddings.weight",
        3 * 32 + 1,
        f32::NAN,
    );
    (1..=40).for_each(|line| edit_caption(&w, line, "ein ж Kreis"));
    let ran = w.train("run", &["--eval-every=0", "--save-every=1"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let says = "word_embeddings.weight holds NaN at element 97";
    assert!(
        ran.stderr
            .contains("is not finite for 3 steps in a row, since step 1"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
    assert!(!w.path("run/adapter_last.safetensors").exists());
}

#[test]
fn a_learning_rate_that_explodes_names_what_it_ruined() {
    for eval_every in ["--eval-every=0", "--eval-every=1"] {
        let w = World::new();
        let more = [
            eval_every,
            "--lr=1e30",
            "--warmup=0",
            "--clip-norm=1e30",
            "--save-every=1",
        ];
        let ran = w.train("run", &more);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        let error = ran.stderr.lines().last().expect("an error");
        assert!(
            error.starts_with("error: ") && error.contains("is not finite"),
            "{error}"
        );
        assert!(
            error.contains("every weight of model/model.safetensors is finite, but transformer.")
        );
        assert!(error.ends_with("try a smaller learning rate"), "{error}");
        assert!(!w.path("run/adapter_last.safetensors").exists());
        assert!(!w.path("run/summary.json").exists());
        let kept = w.path("run/checkpoint.safetensors");
        if kept.exists() {
            w.run(["inspect", "run/checkpoint.safetensors"]).ok();
        }
        assert!(
            w.snapshot()
                .keys()
                .all(|p| !p.to_string_lossy().contains(".tmp"))
        );
    }
}
