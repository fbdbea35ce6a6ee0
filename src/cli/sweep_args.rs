//! The options of `crosstune sweep`: lists of what `crosstune train` takes.

use std::path::PathBuf;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use crosstune::bad_input;
use crosstune::data::{self, Shots, Source};
use crosstune::error::Error;
use crosstune::sweep::grid::{self, Axis, Options};
use crosstune::sweep::presets;
use crosstune::train::objective::Strategy;
use serde_json::{Value, json};

use super::compute::ComputeArgs;
use super::data::DataArgs;
use super::method::{Method, MethodArgs};
use super::{finite, options, train_args};

/// Options of a sweep.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(
    after_help = "A sweep's file holds options of `crosstune train`; a list of values makes a \
member of each:
  model = \"m-clip\"
  xtd10 = \"XTD10/\"
  features = \"images.safetensors\"
  lang = [\"ko\", \"tr\"]
  strategy = [\"baseline1\", \"routine1\"]
  lr = [1e-4, 3e-4]
  ratio = [0.1, 1.0]      # has no meaning for baseline1, which is not repeated for it
  rank = 1
  out = \"sweeps/first\"

Examples:
  What would run, in which groups, with how much memory:
    crosstune sweep first.toml --dry-run
  Run it; stopped in any way, the same command goes on:
    crosstune sweep first.toml
  The original's grid for one language:
    crosstune sweep --preset grid_method1 --lang de --model m-clip --xtd10 XTD10/ \\
      --features images.safetensors --out sweeps/de
  A preset as a file, to be changed:
    crosstune sweep --preset grid_method1 --print > mine.toml"
)]
pub struct Args {
    /// A TOML file with options of `crosstune train`, each a value or a list of values.
    #[arg(value_name = "FILE", conflicts_with = "preset")]
    file: Option<PathBuf>,
    /// A sweep of the original instead of a file.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(presets::NAMES))]
    preset: Option<String>,
    /// Print the sweep's file and end.
    #[arg(long)]
    pub print: bool,
    /// Print members, groups, steps and memory, and end.
    #[arg(long)]
    pub dry_run: bool,
    /// Sets any option, as in the file: --set 'lr=[1e-4,3e-4]'. May be repeated.
    #[arg(long, value_name = "OPTION=VALUE")]
    set: Vec<String>,
    /// The model: a folder, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<String>,
    /// Languages, comma-separated, or `all`.
    #[arg(long, value_delimiter = ',', value_name = "A,B|all")]
    lang: Vec<String>,
    /// Where the sweep goes: a new folder, or one that it was begun in.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Most members of a group, which share each step [default: 16]. Results do not depend on it.
    #[arg(long, value_name = "N")]
    max_members: Option<usize>,
    /// Most memory of a group's step, beside the model's weights [default: half of this machine's; on
    /// a device nine tenths of what is free without the weights, which is always the limit there].
    /// Results do not depend on it.
    #[arg(long, value_name = "GIB", value_parser = finite::<f64>)]
    memory: Option<f64>,
    /// Most packed tokens of a pass through the model, as `train --max-tokens` has it, for all members
    /// [default: no limit].
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    #[command(flatten)]
    data: DataArgs,
}

/// Options of a sweep alone.
const OWN: [&str; 2] = ["max-members", "memory"];

/// Options that all members have in common, beside those of the data: they decide what is compared.
const COMMON: [&str; 7] = [
    "model",
    "out",
    "threads",
    "device",
    "save-every",
    "select-by",
    "max-tokens",
];

/// Options that may differ when a sweep goes on: they change no result, but for the device, which each
/// result names.
const FREE: [&str; 6] = [
    "out",
    "threads",
    "device",
    "save-every",
    "max-members",
    "memory",
];

/// Options that stand in every name, and so need no mention.
const NAMED: [&str; 6] = ["lang", "joint", "strategy", "lr", "ratio", "seed"];

/// The options of a sweep, lists and all.
pub struct Settings {
    /// By name.
    pub options: Options,
    /// The comment above a preset.
    comment: String,
}

/// A member before its data are read.
pub struct Point {
    /// Its options, as those of a run.
    pub args: train_args::Args,
    /// Its language; with several, jointly.
    pub languages: Vec<String>,
    /// Its strategy.
    pub strategy: Strategy,
    /// What its name says beside language, strategy, learning rate, ratio and seed.
    pub more: Vec<String>,
    /// Its row of the table.
    pub row: String,
}

impl Args {
    /// The file or preset, with what the command line says over it.
    pub fn settings(&self) -> Result<Settings> {
        let (origin, table, comment) = self.base()?;
        let mut all = Options::new();
        for (key, value) in table {
            put(&mut all, &origin, &key, value)?;
        }
        if let Value::Object(data) = serde_json::to_value(&self.data)? {
            all.extend(data.into_iter().filter(|(_, v)| !v.is_null()));
        }
        let mine = [
            ("model", json!(self.model)),
            ("out", json!(self.out)),
            ("threads", json!(self.compute.threads)),
            ("device", json!(self.compute.device)),
            ("max-members", json!(self.max_members)),
            ("memory", json!(self.memory)),
            ("max-tokens", json!(self.max_tokens)),
            ("lang", json!((!self.lang.is_empty()).then_some(&self.lang))),
        ];
        for (name, value) in mine.into_iter().filter(|(_, v)| !v.is_null()) {
            all.insert(name.into(), value);
        }
        for set in &self.set {
            for (key, value) in options::parse(&format!("--set {set}"), set)? {
                put(&mut all, "--set", &key, value)?;
            }
        }
        Ok(Settings {
            options: all,
            comment,
        })
    }

    /// What errors call the file or preset, its options, and the comment above them.
    fn base(&self) -> Result<(String, toml::Table, String)> {
        if let Some(path) = &self.file {
            let origin = path.display().to_string();
            return Ok((origin, options::read(path)?, String::new()));
        }
        let Some(name) = &self.preset else {
            return Err(bad_input!(
                "sweep: give a FILE with its options, or --preset NAME; `crosstune sweep --help` \
                 shows one"
            )
            .into());
        };
        let text = presets::preset(name).unwrap_or_default();
        let comment: Vec<&str> = text.lines().take_while(|l| l.starts_with('#')).collect();
        Ok((
            name.clone(),
            options::parse(name, &text)?,
            comment.join("\n"),
        ))
    }
}

/// Checks an option, each value of a list on its own, and adds it.
fn put(all: &mut Options, origin: &str, key: &str, value: toml::Value) -> Result<()> {
    let mut names = options::names();
    names.extend(OWN.map(String::from));
    let name = options::known(origin, key, &names, "crosstune sweep")?;
    let value = options::value(origin, key, value)?;
    if OWN.contains(&name.as_str()) {
        let sound = match name.as_str() {
            "max-members" => value.as_u64().is_some_and(|n| n > 0),
            _ => value.as_f64().is_some_and(|x| x > 0.0),
        };
        if !sound {
            return Err(
                bad_input!("{origin}: `{key}`: found {value}, expected a number above 0").into(),
            );
        }
    } else {
        let values = values(&name, &value);
        if values.is_empty() {
            return Err(bad_input!(
                "{origin}: `{key}`: the list is empty; give a value, or drop it"
            )
            .into());
        }
        if value.is_array() && is_common(&name) && values.len() != 1 {
            return Err(bad_input!(
                "{origin}: `{key}`: all members of a sweep have it in common; found a list, expected \
                 one value"
            )
            .into());
        }
        for one in &values {
            options::check(origin, key, &name, one)?;
        }
    }
    all.insert(name, value);
    Ok(())
}

/// The values of an option. A list that is itself one value (`targets`) is that.
fn values(name: &str, value: &Value) -> Vec<Value> {
    match value {
        Value::Array(list) if options::check("", name, name, value).is_err() => list.clone(),
        Value::Array(list) if list.is_empty() => Vec::new(),
        one => vec![one.clone()],
    }
}

fn is_common(name: &str) -> bool {
    COMMON.contains(&name) || has::<DataArgs>(name)
}

/// Whether an option is one of a family's.
fn has<A: clap::Args>(name: &str) -> bool {
    let family = A::augment_args(clap::Command::new(""));
    family.get_arguments().any(|a| a.get_long() == Some(name))
}

impl Settings {
    /// The file that gives this sweep.
    pub fn toml(&self) -> Result<String> {
        let text = toml::to_string_pretty(&self.options)?;
        Ok(match self.comment.as_str() {
            "" => text,
            comment => format!("{comment}\n{text}"),
        })
    }

    /// Whether both give the same results.
    pub fn same(&self, other: &Options) -> bool {
        let matters = |all: &Options| -> Options {
            let all = all
                .iter()
                .filter(|(name, _)| !FREE.contains(&name.as_str()));
            all.map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        matters(&self.options) == matters(other)
    }

    /// The options that all members have in common.
    pub fn common(&self) -> Result<train_args::Args> {
        let common = self.options.iter().filter(|(name, _)| is_common(name));
        let one = |(name, value): (&String, &Value)| {
            let value = values(name, value).into_iter().next();
            (name.clone(), value.unwrap_or_default())
        };
        let common: Options = common.map(one).collect();
        Ok(serde_json::from_value(Value::Object(common))?)
    }

    /// Most members of a group.
    pub fn max_members(&self) -> usize {
        let given = self.options.get("max-members").and_then(Value::as_u64);
        given.map_or(16, |n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// Most bytes of a group's step, where they are given.
    pub fn memory_bytes(&self) -> Option<u64> {
        let given = self.options.get("memory").and_then(Value::as_f64);
        given.map(|gib| (gib * (1u64 << 30) as f64) as u64)
    }

    /// The languages, `all` being those of the data set.
    fn languages(&self, source: &Source) -> Result<Vec<String>> {
        let given = self.options.get("lang").map(|v| values("lang", v));
        let given =
            given.ok_or_else(|| bad_input!("lang: missing; give --lang A,B or --lang all"))?;
        let mut names: Vec<String> = Vec::new();
        for name in given.iter().filter_map(Value::as_str) {
            if name.contains(',') {
                return Err(bad_input!(
                    "lang: found `{name}`, expected one language; several are a list of them"
                )
                .into());
            }
            match name {
                "all" => names.extend(data::languages(source)?),
                one => names.push(one.to_string()),
            }
        }
        Ok(names)
    }

    /// The options that differ from member to member.
    fn axes(&self, languages: &[String]) -> Vec<Axis> {
        let mut axes = Vec::new();
        for name in options::names() {
            if let Some(value) = self.options.get(&name).filter(|_| !is_common(&name)) {
                let values = match name.as_str() {
                    "lang" => languages.iter().map(|l| json!(l)).collect(),
                    _ => values(&name, value),
                };
                axes.push(Axis { name, values });
            }
        }
        axes
    }

    /// Every combination of the lists. Options that a member has no use for do not count for it, so
    /// combinations that differ in these alone are one member. A joint member has all languages.
    pub fn points(&self, source: &Source) -> Result<Vec<Point>> {
        let languages = self.languages(source)?;
        let axes = self.axes(&languages);
        let common = self.common()?;
        if common.data.protocol()?.shots == Shots::Zero {
            check_idle(&axes)?;
        }
        let mut unused: Vec<&str> = axes.iter().map(|a| a.name.as_str()).collect();
        let (mut points, mut seen) = (Vec::new(), Vec::new());
        for mut options in grid::product(&axes) {
            let strategy = drop_unused(&mut options)?;
            unused.retain(|name| !options.contains_key(*name));
            let joint = options.get("joint") == Some(&json!(true));
            if joint {
                options.insert("lang".into(), json!(languages.join(",")));
            }
            if !seen.contains(&options) {
                points.push(point(&options, strategy, &axes, &common)?);
                seen.push(options);
            }
        }
        match unused.first() {
            Some(name) => Err(bad_input!(
                "{name}: no member has a use for it, by its strategy or method; drop it"
            )
            .into()),
            None => Ok(points),
        }
    }
}

/// Refuses options of training beside `shots = "zero"`.
fn check_idle(axes: &[Axis]) -> Result<()> {
    let trains = |a: &&Axis| !["lang", "strategy"].contains(&a.name.as_str());
    match axes.iter().find(trains) {
        Some(axis) => Err(bad_input!(
            "{}: `shots = \"zero\"` trains nothing; drop one of the two",
            axis.name
        )
        .into()),
        None => Ok(()),
    }
}

fn point(
    options: &Options,
    strategy: Strategy,
    axes: &[Axis],
    common: &train_args::Args,
) -> Result<Point> {
    let mut args: train_args::Args = serde_json::from_value(Value::Object(options.clone()))?;
    args.data = common.data.clone();
    args.recipe.select_by = common.recipe.select_by.clone();
    args.recipe.max_tokens = common.recipe.max_tokens;
    let lang = args.lang.clone().unwrap_or_default();
    let languages: Vec<String> = lang.split(',').map(String::from).collect();
    let (mut more, mut row) = (Vec::new(), vec![strategy.to_string()]);
    if args.recipe.joint == Some(true) {
        if languages.len() < 2 {
            return Err(bad_input!("joint: found one language, `{lang}`; expected several").into());
        }
        more.push("joint".into());
        row.push("joint".into());
    }
    let varied = axes.iter().filter(|a| a.values.len() > 1);
    let varied = varied.filter(|a| !NAMED.contains(&a.name.as_str()));
    for axis in varied {
        if let Some(value) = options.get(&axis.name) {
            more.push(grid::label(&axis.name, value));
            if has::<MethodArgs>(&axis.name) {
                row.push(grid::label(&axis.name, value));
            }
        }
    }
    Ok(Point {
        languages,
        args,
        strategy,
        more,
        row: row.join(", "),
    })
}

/// Removes what a member has no use for: a baseline has no text loss, a method no other's options.
fn drop_unused(options: &mut Options) -> Result<Strategy, Error> {
    let read = serde_json::from_value(Value::Object(options.clone()));
    let args: train_args::Args = read.map_err(|e| bad_input!("sweep: {e}"))?;
    let given = args.recipe.strategy.as_deref();
    let strategy = given.map_or(Ok(Strategy::Routine1), str::parse)?;
    let method = args.method.method.unwrap_or(Method::Lora);
    for (name, _) in args.method.unused(method) {
        options.shift_remove(name);
    }
    if strategy.partner().is_none() {
        for name in ["ratio", "text-loss", "stop-partner"] {
            options.shift_remove(name);
        }
    }
    Ok(strategy)
}
