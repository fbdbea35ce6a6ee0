//! `crosstune train`.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use crosstune::adapter::file::AdapterFile;
use crosstune::bad_input;
use crosstune::engine::Engine;
use crosstune::error::Error;
use crosstune::eval::retrieval::Recall;
use crosstune::train::config::MemberConfig;
use crosstune::train::trainer::{Event, SavePolicy, StepReport, Trainer};
use serde_json::json;

use super::data::required;
use super::run_folder::RunFolder;
use super::term::{Interrupt, Progress, warn};
pub use super::train_args::Args;
use super::train_inputs::Inputs;
use super::train_results::{finish, summarise, table, zero_shot};
use super::{Output, profile};

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let (args, folder) = settings(args)?;
    let shared = args.shared()?;
    let lang = required(&args.lang, "lang", "LANGUAGE, such as de")?;
    let strategy = args.member(|_| 1)?.strategy;
    let out = match &args.resume {
        Some(path) => path.clone(),
        None => required(&args.out, "out", "DIR for the run")?,
    };
    if folder.is_none() {
        RunFolder::check(&out)?;
    }
    let inputs = Inputs::open(&args, &lang, strategy, output)?;
    inputs.warnings.iter().for_each(warn);
    let items = inputs.most_items();
    let config = args.member(|batch| items.div_ceil(batch))?;
    let members = inputs.train_members(&config);
    let n_members = members.len();
    let mut trainer = Trainer::new(&inputs.engine, shared, members)?;
    if let Some(file) = &args.recipe.init {
        let adapter = AdapterFile::load(file)?;
        (0..n_members).try_for_each(|g| trainer.start_from(g, &adapter))?;
    }
    let every = args.recipe.save_every.unwrap_or(100);
    let path = out.join("checkpoint.safetensors");
    if folder.is_some() && path.exists() {
        let (step, total) = (trainer.resume(&path)?, trainer.last_step());
        if step == total && out.join("summary.json").exists() {
            return finished(&out, step, output);
        }
        if !output.quiet {
            eprintln!("going on after step {step} of {total}");
        }
    }
    let run = Run {
        args: &args,
        config: &config,
        inputs: &inputs,
        output,
    };
    // It reads every weight and every test item: nothing is written before.
    let before = zero_shot(&inputs, config.strategy.anchor())?;
    let mut folder = match folder {
        Some(folder) => folder,
        None => {
            let folder = RunFolder::create(&out)?;
            let found = (inputs.names(), inputs.engine.device());
            folder.write_config(&args.resolved(found, &config, every))?;
            folder
        }
    };
    folder.open_metrics(trainer.step())?;
    trainer.save_to(SavePolicy { path, every });
    run.go(&mut trainer, &mut folder, before)
}

/// The options with those of --config under them, or those of the run to be resumed and its folder.
fn settings(args: Args) -> Result<(Args, Option<RunFolder>)> {
    let Some(path) = args.resume.clone() else {
        let args = match args.config.clone() {
            Some(file) => args.over(&file)?,
            None => args,
        };
        return Ok((args, None));
    };
    if let [first, ..] = &args.beside_resume()?[..] {
        return Err(bad_input!(
            "{first}: cannot be given with --resume, which goes on with the settings in {}; drop \
             --{first}, or start a new run",
            path.join("config.toml").display()
        )
        .into());
    }
    let folder = RunFolder::open(&path)?;
    let mut resumed = Args::default().over(&folder.file("config.toml"))?;
    let (here, then) = (args.recipe.compute, &mut resumed.recipe.compute);
    then.threads = here.threads;
    then.device = here.device.or(then.device);
    resumed.profile = args.profile;
    resumed.resume = Some(path);
    Ok((resumed, Some(folder)))
}

/// Says what a run measured that has nothing left to do.
fn finished(out: &Path, steps: usize, output: Output) -> Result<()> {
    let path = out.join("summary.json");
    if output.json {
        let text = std::fs::read_to_string(&path).map_err(Error::read(&path))?;
        println!("{}", text.trim_end());
    } else {
        println!(
            "{}: this run is finished, all {steps} steps of it; its results are in {}",
            out.display(),
            path.display()
        );
    }
    Ok(())
}

struct Run<'a> {
    args: &'a Args,
    config: &'a MemberConfig,
    inputs: &'a Inputs,
    output: Output,
}

impl Run<'_> {
    fn go(
        &self,
        trainer: &mut Trainer<'_>,
        folder: &mut RunFolder,
        before: Vec<Recall>,
    ) -> Result<()> {
        let interrupt = Interrupt::listen()?;
        let model_parameters = model_parameters(&self.inputs.engine);
        let share = trainer.parameters() as f64 / model_parameters as f64;
        let total = trainer.last_step();
        let mut progress = Progress::new(total as u64, self.output.quiet);
        self.announce(&mut progress, trainer.parameters(), share, &before);
        let start = Instant::now();
        let mut speed = Speed::default();
        let mut failed = None;
        let done = trainer.run(&mut |event| {
            let row = self.report(event, &mut progress, &mut speed);
            if let Some(Err(e)) = row.map(|row| folder.metric(&row)) {
                failed = Some(e);
                return ControlFlow::Break(());
            }
            if interrupt.stopped() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        progress.finish();
        if let Some(e) = failed {
            return Err(e.into());
        }
        if let Err(Error::Cancelled) = done {
            eprintln!(
                "stopped after step {} of {total}; go on with: crosstune train --resume {}",
                trainer.step(),
                folder.path().display()
            );
            profile::finish(&self.inputs.engine, &folder.file("profile"), self.output)?;
        }
        let model = self.args.model.clone().unwrap_or_default();
        let results = finish(trainer, self.inputs, &model, folder, (done?, before))?;
        let mut summary = json!({
            "strategy": self.config.strategy,
            "text_loss": self.config.text_loss,
            "joint": self.inputs.joint,
            "trainable_parameters": trainer.parameters(),
            "model_parameters": model_parameters,
            "trainable_share": share,
            "steps": total,
            "tokens_per_second": speed.tokens_per_second(),
            "seconds": start.elapsed().as_secs_f64(),
            "peak_memory_bytes": peak_memory(),
            "device": self.inputs.engine.device_name(),
            "threads": self.inputs.engine.threads(),
            "warnings": self.inputs.warnings,
        });
        if let Some(fields) = summary.as_object_mut() {
            fields.extend(summarise(&results)?);
        }
        folder.write_json("summary.json", &summary)?;
        profile::finish(&self.inputs.engine, &folder.file("profile"), self.output)?;
        if self.output.json {
            println!("{}", serde_json::to_string_pretty(&summary)?);
        } else {
            table(&results);
            println!(
                "{} parameters trained, {:.4} % of the model; {:.0} tokens/s on {}",
                trainer.parameters(),
                100.0 * share,
                speed.tokens_per_second(),
                self.inputs.engine.device_name()
            );
        }
        Ok(())
    }

    /// Says what is about to be trained.
    fn announce(&self, progress: &mut Progress, parameters: usize, share: f64, before: &[Recall]) {
        let config = &self.inputs.engine.model().config;
        for (l, before) in self.inputs.languages.iter().zip(before) {
            let validation = l.validation.len();
            progress.line(format_args!(
                "{}: {} items, {validation} validation, {} test; {} layers of {}; {parameters} \
                 trainable parameters ({:.4} %); zero-shot test R@1 {:.4}",
                l.language,
                l.train.len(),
                l.test.len(),
                config.layers,
                config.hidden,
                100.0 * share,
                before.mean_r1()
            ));
        }
    }

    /// Shows an event; returns its line for metrics.jsonl.
    fn report(
        &self,
        event: &Event,
        progress: &mut Progress,
        speed: &mut Speed,
    ) -> Option<serde_json::Value> {
        match event {
            Event::Step(s) => {
                speed.add(s);
                let message = format!(
                    "loss {:.4} lr {:.2e} {:.0} tokens/s",
                    s.loss,
                    s.lr,
                    speed.tokens_per_second()
                );
                progress.at(s.step as u64, s.total as u64, message);
                Some(json!({
                    "step": s.step, "language": self.inputs.label(s.member), "loss": s.loss,
                    "image_loss": s.image_loss, "text_loss": s.text_loss, "lr": s.lr,
                    "grad_norm": s.grad_norm, "skipped": s.skipped, "tokens": s.tokens,
                }))
            }
            Event::Evaluated {
                member,
                language,
                step,
                recall,
                best,
            } => {
                let mark = if *best { ", the best so far" } else { "" };
                let members = self.inputs.members();
                let name = &members.get(*member)?.get(*language)?.language;
                progress.line(format_args!(
                    "step {step}: {name}: validation {}{mark}",
                    line(recall)
                ));
                Some(json!({"step": step, "language": name, "validation": recall, "best": best}))
            }
            Event::Saved { .. } => None,
        }
    }
}

/// Tokens and seconds of all steps.
#[derive(Default)]
struct Speed {
    tokens: f64,
    seconds: f64,
    /// The last step that was counted: each member reports it, with the tokens and seconds of all.
    step: usize,
}

impl Speed {
    fn add(&mut self, s: &StepReport) {
        if s.step == self.step {
            return;
        }
        self.step = s.step;
        self.tokens += s.tokens as f64;
        self.seconds += s.seconds;
    }

    fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.tokens / self.seconds
        } else {
            0.0
        }
    }
}

/// One line of recalls.
pub fn line(r: &Recall) -> String {
    let [a, b, c] = r.i2t;
    let [d, e, f] = r.t2i;
    format!(
        "i2t {a:.4} {b:.4} {c:.4}, t2i {d:.4} {e:.4} {f:.4}, mean R@1 {:.4}",
        r.mean_r1()
    )
}

/// Parameters of the model without what it does not use.
pub fn model_parameters(engine: &Engine) -> usize {
    let weights = engine.model().weights();
    let floats = weights.tensors().filter(|(name, t)| {
        !name.ends_with("position_ids") && t.dtype != crosstune::tensor::Dtype::I64
    });
    floats.map(|(_, t)| t.elements()).sum()
}

/// Highest resident memory of this process so far, from the kernel's VmHWM.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
