//! The sweeps of the original (PECTVLM's `scripts/`) and of its other settings, as TOML.

/// The languages of XTD10.
const XTD10: &str = r#"["de", "en", "es", "fr", "it", "jp", "ko", "pl", "ru", "tr", "zh"]"#;

/// The same without English, which has no partner.
const WITHOUT_ENGLISH: &str = r#"["de", "es", "fr", "it", "jp", "ko", "pl", "ru", "tr", "zh"]"#;

/// What all of the original's grids have in common.
const FEW_SHOT: &str = r#"lr = [5e-5, 1e-4, 2e-4]
shots = 50
epochs = 50
batch = 5
eval-every = 5
seed = 1
# The layout of its run_cross.py. It trains the pooler too, which no feature depends on.
method = "cross"
rank = 1
"#;

/// Names of all presets, in the order of `--help`.
pub const NAMES: [&str; 8] = [
    "grid_baseline1",
    "grid_baseline2",
    "grid_method1",
    "grid_method2",
    "grid_method3",
    "zero-shot",
    "full",
    "joint",
];

/// The options of a preset, with a comment that says what it is; `None` for another name.
pub fn preset(name: &str) -> Option<String> {
    let grid = |strategy: &str, languages: &str, runs: &str, more: &str| {
        format!(
            "# PECTVLM's scripts/{name}: {runs}. Needs XTD10.\n\
             strategy = \"{strategy}\"\nlang = {languages}\n{more}{FEW_SHOT}"
        )
    };
    let baseline = |strategy| {
        grid(
            strategy,
            XTD10,
            "11 languages, 3 learning rates, 33 runs",
            "",
        )
    };
    let routine = |strategy| {
        let runs = "10 languages, 3 learning rates, 5 ratios, 150 runs";
        let more = "text-loss = \"mse\"\nratio = [0.003, 0.01, 0.03, 0.1, 0.3]\n";
        grid(strategy, WITHOUT_ENGLISH, runs, more)
    };
    Some(match name {
        "grid_baseline1" => baseline("baseline1"),
        "grid_baseline2" => baseline("baseline2"),
        "grid_method1" => routine("routine1"),
        "grid_method2" => routine("routine2"),
        "grid_method3" => routine("routine3"),
        "zero-shot" => format!(
            "# The model as it is, in every language of XTD10; trains nothing.\n\
             strategy = \"baseline1\"\nlang = {XTD10}\nshots = \"zero\"\n"
        ),
        "full" => FULL.to_string(),
        "joint" => JOINT.to_string(),
        _ => return None,
    })
}

/// The original's settings for whole data sets are those of its parser.
const FULL: &str = r#"# All of Multi30K's training items, with the defaults of PECTVLM's parser; evaluated once an epoch.
strategy = ["baseline1", "baseline2", "routine1", "routine2", "routine3"]
lang = ["de", "fr", "cs"]
shots = "full"
text-loss = "mse"
ratio = 1.0
lr = 1e-3
rank = 8
epochs = 50
batch = 4
seed = 1
"#;

/// The preliminary study trains on all of Multi30K's languages at once.
const JOINT: &str = r#"# One adapter for all languages of Multi30K, with the defaults of PECTVLM's parser (its
# run_preliminary_task1.py); the loss is the mean of the languages'. Evaluated once an epoch.
strategy = "baseline1"
lang = ["en", "de", "fr", "cs"]
joint = true
shots = "full"
lr = 1e-3
rank = 1
epochs = 50
batch = 4
seed = 1
"#;
