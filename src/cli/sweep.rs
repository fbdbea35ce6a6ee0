//! `crosstune sweep`.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use crosstune::adapter::file::AdapterFile;
use crosstune::bad_input;
use crosstune::data::{self, Shots};
use crosstune::engine::Engine;
use crosstune::engine::memory::gib;
use crosstune::error::Error;
use crosstune::eval::retrieval::Recall;
use crosstune::sweep::grid::{self, Options};
use crosstune::sweep::pack::{self, Group, Limits};
use crosstune::sweep::result::{MemberResult, Tested};
use crosstune::sweep::run::{Event, Measured, Sweep};
use crosstune::sweep::table::Table;
use crosstune::sweep::{Spec, result};
use crosstune::train::languages::{Languages, Reader};
use crosstune::train::objective::Strategy;
use crosstune::weights::write::write_atomic;
use serde_json::{Value, json};

use super::Output;
use super::data::required;
use super::options;
use super::run_folder::RunFolder;
pub use super::sweep_args::Args;
use super::sweep_args::{Point, Settings};
use super::term::{Interrupt, Progress, warn};
use super::train::{model_parameters, peak_memory};

/// Everything that a sweep reads.
struct Inputs {
    engine: Engine,
    model: String,
    languages: Languages,
    codes: Vec<String>,
    specs: Vec<Spec>,
    limits: Limits,
    save_every: usize,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let mut settings = args.settings()?;
    if args.print {
        print!("{}", settings.toml()?);
        return Ok(());
    }
    let out = settings.common()?.out;
    if !args.dry_run {
        check_folder(&required(&out, "out", "DIR for the sweep")?, &settings)?;
    }
    // A sweep goes on where it was begun, unless it is told otherwise.
    if let Some(device) = out.as_deref().and_then(|out| begun_on(out, &settings)) {
        settings.options.entry("device").or_insert(device);
    }
    let inputs = open_inputs(&settings, output)?;
    settings
        .options
        .insert("device".into(), json!(inputs.engine.device()));
    inputs.languages.warnings.iter().for_each(warn);
    let folder = out.unwrap_or_default();
    let sweep = inputs.sweep(&folder);
    if args.dry_run {
        let groups = match folder.as_os_str().is_empty() {
            true => inputs.all_groups()?,
            false => sweep.left()?,
        };
        return dry_run(&inputs, &groups, output);
    }
    // Members that don't fit in memory are refused before anything is written.
    let left = sweep.left()?;
    let held = open_folder(&folder, &settings)?;
    if left.is_empty() && held.file("summary.json").exists() {
        return finished(&held, output);
    }
    go(&inputs, &held, output)
}

impl Inputs {
    fn sweep<'a>(&'a self, folder: &'a Path) -> Sweep<'a> {
        Sweep {
            engine: &self.engine,
            folder,
            model: &self.model,
            specs: &self.specs,
            languages: &self.languages,
            limits: self.limits,
            save_every: self.save_every,
        }
    }

    fn all_groups(&self) -> Result<Vec<Group>, Error> {
        let all: Vec<usize> = (0..self.specs.len()).collect();
        pack::pack(
            &self.engine,
            (&self.specs, &all),
            &self.languages,
            self.limits,
        )
    }
}

/// Refuses a folder that is not this sweep's, before anything is read.
fn check_folder(out: &Path, settings: &Settings) -> Result<()> {
    let config = out.join("config.toml");
    if !config.is_file() {
        if out.is_dir() && RunFolder::holds_files(out)? {
            return Err(bad_input!(
                "{}: already exists, is not empty and holds no sweep; choose another --out",
                out.display()
            )
            .into());
        }
        return RunFolder::check(out);
    }
    if settings.same(&kept(&config)?) {
        return Ok(());
    }
    let origin = config.display();
    Err(bad_input!(
        "{}: holds another sweep, or a run; its settings are in {origin}; go on with it by \
         `crosstune sweep {origin}`, or choose another --out",
        out.display()
    )
    .into())
}

/// The options that a sweep was begun with.
fn kept(config: &Path) -> Result<Options> {
    let origin = config.display().to_string();
    let mut kept = Options::new();
    for (key, value) in options::read(config)? {
        let value = options::value(&origin, &key, value)?;
        kept.insert(key, value);
    }
    Ok(kept)
}

/// The device that this sweep was begun on, if it was begun in that folder.
fn begun_on(out: &Path, settings: &Settings) -> Option<Value> {
    let mut kept = kept(&out.join("config.toml")).ok()?;
    let same = settings.same(&kept);
    kept.shift_remove("device").filter(|_| same)
}

/// Makes the folder, or opens it to go on.
fn open_folder(out: &Path, settings: &Settings) -> Result<RunFolder> {
    if !out.join("config.toml").is_file() {
        let folder = RunFolder::create(out)?;
        let text = settings.toml()?;
        write_atomic(&folder.file("config.toml"), |f| {
            f.write_all(text.as_bytes())
        })?;
        return Ok(folder);
    }
    RunFolder::open(out)
}

fn open_inputs(settings: &Settings, output: Output) -> Result<Inputs> {
    let common = settings.common()?;
    let model = required(&common.model, "model", "DIR of an M-CLIP model")?;
    let source = common.data.source()?;
    let points = settings.points(&source)?;
    let engine = common.recipe.compute.open(&model)?;
    let protocol = common.data.protocol()?;
    let mut wanted: Vec<(String, Vec<Strategy>)> = Vec::new();
    for (point, language) in points
        .iter()
        .flat_map(|p| p.languages.iter().map(move |l| (p, l)))
    {
        match wanted.iter_mut().find(|(l, _)| l == language) {
            Some((_, strategies)) => strategies.push(point.strategy),
            None => wanted.push((language.clone(), vec![point.strategy])),
        }
    }
    let names = || {
        let english = data::languages(&source)?.into_iter().filter(|l| l == "en");
        let languages = wanted.iter().map(|(l, _)| l.clone()).chain(english);
        common.data.images_of(&languages.collect::<Vec<_>>())
    };
    let how = (&common.recipe.compute, output);
    let (features, file) = common.data.image_features(names, how)?;
    let reader = Reader {
        engine: &engine,
        source: &source,
        protocol: &protocol,
        features: &features,
        file: &file,
    };
    let languages = reader.read(&wanted)?;
    let mut specs = Vec::new();
    if protocol.shots != Shots::Zero {
        for point in points {
            specs.push(spec(point, &engine, &languages)?);
        }
    }
    grid::check_names(specs.iter().map(|s| s.name.as_str()))?;
    Ok(Inputs {
        codes: wanted.into_iter().map(|(l, _)| l).collect(),
        limits: Limits {
            members: settings.max_members(),
            memory: engine.training_memory(settings.memory_bytes())?,
        },
        save_every: common.recipe.save_every.unwrap_or(100),
        engine,
        model,
        languages,
        specs,
    })
}

fn spec(point: Point, engine: &Engine, languages: &Languages) -> Result<Spec> {
    let mut items = 0;
    for language in &point.languages {
        items = items.max(languages.get(language)?.train.len());
    }
    let mut shared = point.args.shared()?;
    shared
        .adapter
        .read_words(|words| engine.encode_words(words))?;
    shared.adapter.check_model(&engine.model().config)?;
    if let Some(file) = &point.args.recipe.init {
        AdapterFile::load(file)?.check_model(engine.model())?;
    }
    let config = point.args.member(|batch| items.div_ceil(batch))?;
    config.check_with(&shared)?;
    Ok(Spec {
        name: grid::name(&point.languages, &config, &point.more),
        row: point.row,
        languages: point.languages,
        shared,
        config,
        init: point.args.recipe.init,
    })
}

fn dry_run(inputs: &Inputs, groups: &[Group], output: Output) -> Result<()> {
    let steps = |spec| pack::steps(spec, &inputs.languages);
    let total: usize = inputs.specs.iter().map(steps).sum::<Result<_, Error>>()?;
    let left: usize = groups.iter().map(|g| g.members.len()).sum();
    let names = |g: &Group| -> Vec<&str> {
        g.members
            .iter()
            .map(|i| inputs.specs[*i].name.as_str())
            .collect()
    };
    if output.json {
        let list: Vec<Value> = groups
            .iter()
            .map(|g| {
                json!({"members": names(g), "steps": g.steps, "tokens": g.tokens,
                       "memory_bytes": g.bytes})
            })
            .collect();
        let all = json!({"members": inputs.specs.len(), "left": left, "steps": total,
                         "languages": inputs.codes, "groups": list,
                         "warnings": inputs.languages.warnings});
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!(
        "{} members, {left} of them to run, in {} groups; {total} steps in all; {} languages: {}",
        inputs.specs.len(),
        groups.len(),
        inputs.codes.len(),
        inputs.codes.join(", ")
    );
    for (i, group) in groups.iter().enumerate() {
        println!(
            "group {}: {} members, {} steps of at most {} tokens, {}",
            i + 1,
            group.members.len(),
            group.steps,
            group.tokens,
            gib(group.bytes)
        );
        names(group).iter().for_each(|name| println!("  {name}"));
    }
    Ok(())
}

/// Shows what a sweep measured that has nothing left to do.
fn finished(folder: &RunFolder, output: Output) -> Result<()> {
    let name = if output.json {
        "summary.json"
    } else {
        "table.md"
    };
    let path = folder.file(name);
    let text = std::fs::read_to_string(&path).map_err(Error::read(&path))?;
    print!("{text}");
    Ok(())
}

fn go(inputs: &Inputs, folder: &RunFolder, output: Output) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let start = Instant::now();
    let mut progress = Progress::new(0, output.quiet);
    let done = inputs.sweep(folder.path()).run(&mut |event| {
        show(&event, inputs, &mut progress);
        match interrupt.stopped() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    progress.finish();
    let measured = match done {
        Err(Error::Cancelled) => {
            eprintln!(
                "stopped; go on with: crosstune sweep {}",
                folder.file("config.toml").display()
            );
            return Err(Error::Cancelled.into());
        }
        other => other?,
    };
    for m in &measured.members {
        if let Some(why) = &m.failed {
            warn(format_args!("{}: {why}", m.name));
        }
    }
    let table = Table::new(&measured, &inputs.codes)?;
    let text = table.markdown();
    write_atomic(&folder.file("table.md"), |f| f.write_all(text.as_bytes()))?;
    let Measured { zero_shot, members } = &measured;
    let summary = json!({
        "table": table,
        "zero_shot": zero_shot,
        "members": members,
        "model_parameters": model_parameters(&inputs.engine),
        "seconds": start.elapsed().as_secs_f64(),
        "peak_memory_bytes": peak_memory(),
        "threads": inputs.engine.threads(),
        "warnings": inputs.languages.warnings,
    });
    result::write(&folder.file("summary.json"), &summary)?;
    if output.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print!("{text}");
    }
    Ok(())
}

fn show(event: &Event<'_>, inputs: &Inputs, progress: &mut Progress) {
    match event {
        Event::ZeroShot(row) => progress.line(format_args!(
            "{}, {}: zero-shot test R@1 {:.4}",
            row.language,
            row.texts,
            row.recall.mean_r1()
        )),
        Event::Group { group, step } => progress.line(format_args!(
            "{} members share a step from step {step} of {} on, at most {} tokens, {}: {}, ...",
            group.members.len(),
            group.steps,
            group.tokens,
            gib(group.bytes),
            inputs.specs[group.members[0]].name
        )),
        Event::Step {
            done,
            total,
            report,
        } => {
            progress.length(*total as u64);
            let speed = report.tokens as f64 / report.seconds.max(1e-9);
            let message = format!(
                "step {} of {}, {} tokens, {speed:.0} tokens/s",
                report.step, report.total, report.tokens
            );
            progress.at(*done as u64, *total as u64, message);
        }
        Event::Finished(member) => progress.line(line(member)),
    }
}

fn line(m: &MemberResult) -> String {
    if let Some(why) = &m.failed {
        return format!("{}: given up: {why}", m.name);
    }
    let score = m.score.map_or("-".into(), |s| format!("{s:.4}"));
    let mean = |pick: fn(&Tested) -> &Option<Recall>| {
        let recalls = m
            .languages
            .iter()
            .map(|t| pick(t).as_ref().map(Recall::mean_r1));
        let sum: Option<f64> = recalls.sum();
        sum.map_or("-".into(), |sum| {
            format!("{:.4}", sum / m.languages.len() as f64)
        })
    };
    format!(
        "{}: validation {score} at step {}, test R@1 {} then and {} after the last step",
        m.name,
        m.best_step.unwrap_or(m.steps),
        mean(|t| &t.best),
        mean(|t| &t.last)
    )
}
