//! `crosstune train`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use crosstune::adapter::file::AdapterFile;
use crosstune::bad_input;
use crosstune::data::{self, Needs, Role, Shots};
use crosstune::engine::{Engine, EngineOptions};
use crosstune::error::Error;
use crosstune::eval::retrieval::Recall;
use crosstune::train::config::MemberConfig;
use crosstune::train::examples::Examples;
use crosstune::train::objective::Strategy;
use crosstune::train::trainer::{Event, Member, Outcome, SavePolicy, StepReport, Trainer};
use crosstune::weights::hub;
use serde::Serialize;
use serde_json::json;

use super::Output;
use super::data::required;
use super::run_folder::RunFolder;
use super::term::{Interrupt, Progress, warn};
pub use super::train_args::Args;

/// Everything that a run reads.
struct Inputs {
    engine: Engine,
    train: Arc<Examples>,
    validation: Arc<Examples>,
    test: Examples,
    warnings: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let (args, folder) = settings(args)?;
    let shared = args.method.shared()?;
    let lang = required(&args.lang, "lang", "LANGUAGE, such as de")?;
    let strategy = args.member(|_| 1)?.strategy;
    let out = match &args.resume {
        Some(path) => path.clone(),
        None => required(&args.out, "out", "DIR for the run")?,
    };
    if folder.is_none() {
        RunFolder::check(&out)?;
    }
    let inputs = open_inputs(&args, &lang, strategy)?;
    inputs.warnings.iter().for_each(warn);
    let items = inputs.train.len();
    let config = args.member(|batch| items.div_ceil(batch))?;
    let member = Member {
        config: config.clone(),
        train: inputs.train.clone(),
        validation: Some(inputs.validation.clone()),
    };
    let mut trainer = Trainer::new(&inputs.engine, shared, vec![member])?;
    if let Some(file) = &args.recipe.init {
        trainer.start_from(0, &AdapterFile::load(file)?)?;
    }
    let every = args.recipe.save_every.unwrap_or(100);
    let path = out.join("checkpoint.safetensors");
    if folder.is_some() && path.exists() {
        let step = trainer.resume(&path)?;
        if step == trainer.total_steps(0) && out.join("summary.json").exists() {
            return finished(&out, step, output);
        }
        if !output.quiet {
            eprintln!("going on after step {step} of {}", trainer.total_steps(0));
        }
    }
    let run = Run {
        args: &args,
        lang: &lang,
        config: &config,
        inputs: &inputs,
        output,
    };
    // It reads every weight and every test item: nothing is written before.
    let before = run.zero_shot()?;
    let mut folder = match folder {
        Some(folder) => folder,
        None => {
            let folder = RunFolder::create(&out)?;
            folder.write_config(&args.resolved(&config, every))?;
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
    resumed.recipe.threads = args.recipe.threads;
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

fn open_inputs(args: &Args, lang: &str, strategy: Strategy) -> Result<Inputs> {
    let model = required(&args.model, "model", "DIR of an M-CLIP model")?;
    let options = EngineOptions {
        threads: args.recipe.threads,
    };
    let engine = Engine::open(&hub::resolve(&model)?, options)?;
    let source = args.data.source()?;
    let protocol = args.data.protocol()?;
    if protocol.shots == Shots::Zero {
        return Err(
            bad_input!("shots: zero trains nothing; `crosstune eval` measures zero-shot").into(),
        );
    }
    let anchor = [strategy.anchor()];
    let train: Vec<Role> = anchor.iter().copied().chain(strategy.partner()).collect();
    let needs = Needs {
        train: &train,
        eval: &anchor,
    };
    let loaded = data::load(&source, lang, &protocol, needs)?;
    let (features, file) = args.data.image_features()?;
    let examples = |split| Examples::new(&engine, split, &features, &file);
    let (train, validation) = (examples(&loaded.train)?, examples(&loaded.validation)?);
    let test = examples(&loaded.test)?;
    let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
    Ok(Inputs {
        engine,
        train: Arc::new(train),
        validation: Arc::new(validation),
        test,
        warnings,
    })
}

struct Run<'a> {
    args: &'a Args,
    lang: &'a str,
    config: &'a MemberConfig,
    inputs: &'a Inputs,
    output: Output,
}

impl Run<'_> {
    fn go(&self, trainer: &mut Trainer<'_>, folder: &mut RunFolder, before: Recall) -> Result<()> {
        let interrupt = Interrupt::listen()?;
        let config = &self.inputs.engine.model().config;
        let model_parameters = model_parameters(&self.inputs.engine);
        let share = trainer.parameters() as f64 / model_parameters as f64;
        let total = trainer.total_steps(0);
        let mut progress = Progress::new(total as u64, self.output.quiet);
        progress.line(format_args!(
            "{}: {} items, {} validation, {} test; {} layers of {}; {} trainable parameters \
             ({:.4} %); zero-shot test R@1 {:.4}",
            self.lang,
            self.inputs.train.len(),
            self.inputs.validation.len(),
            self.inputs.test.len(),
            config.layers,
            config.hidden,
            trainer.parameters(),
            100.0 * share,
            before.mean_r1()
        ));
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
        let outcome = match done {
            Ok(outcomes) => outcomes.into_iter().next(),
            Err(Error::Cancelled) => {
                eprintln!(
                    "stopped after step {} of {total}; go on with: crosstune train --resume {}",
                    trainer.step(),
                    folder.path().display()
                );
                return Err(Error::Cancelled.into());
            }
            Err(e) => return Err(e.into()),
        };
        let Some(outcome) = outcome else {
            return Ok(());
        };
        let after = self.finish(folder, outcome)?;
        let summary = json!({
            "language": self.lang,
            "strategy": self.config.strategy,
            "text_loss": self.config.text_loss,
            "shots": self.inputs.train.len(),
            "test_items": self.inputs.test.len(),
            "zero_shot": before,
            "last": after.last,
            "best": after.best,
            "trainable_parameters": trainer.parameters(),
            "model_parameters": model_parameters,
            "trainable_share": share,
            "steps": total,
            "skipped_steps": after.skipped,
            "tokens_per_second": speed.tokens_per_second(),
            "seconds": start.elapsed().as_secs_f64(),
            "peak_memory_bytes": peak_memory(),
            "threads": self.inputs.engine.threads(),
            "warnings": self.inputs.warnings,
        });
        folder.write_json("summary.json", &summary)?;
        if self.output.json {
            println!("{}", serde_json::to_string_pretty(&summary)?);
        } else {
            self.table(&before, &after, &speed, share, trainer.parameters());
        }
        Ok(())
    }

    fn zero_shot(&self) -> Result<Recall> {
        let e = &self.inputs.engine;
        let mut encoder = crosstune::engine::TextEncoder::new(e, &Default::default())?;
        let role = self.config.strategy.anchor();
        let test = &self.inputs.test;
        Ok(crosstune::train::trainer::evaluate(
            e,
            &mut encoder,
            test,
            role,
        )?)
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
                    "step": s.step, "loss": s.loss, "image_loss": s.image_loss,
                    "text_loss": s.text_loss, "lr": s.lr, "grad_norm": s.grad_norm,
                    "skipped": s.skipped, "tokens": s.tokens,
                }))
            }
            Event::Evaluated {
                step, recall, best, ..
            } => {
                let mark = if *best { ", the best so far" } else { "" };
                progress.line(format_args!(
                    "step {step}: validation {}{mark}",
                    line(recall)
                ));
                Some(json!({"step": step, "validation": recall, "best": best}))
            }
            Event::Saved { .. } => None,
        }
    }

    /// Saves the adapters and measures them on the test items.
    fn finish(&self, folder: &RunFolder, outcome: Outcome) -> Result<After> {
        let model = self.args.model.clone().unwrap_or_default();
        let describe = |mut file: AdapterFile| {
            file.origin.extend(BTreeMap::from([
                ("language".to_string(), self.lang.to_string()),
                ("model".to_string(), model.clone()),
            ]));
            file
        };
        let last = describe(outcome.last);
        last.save(&folder.file("adapter_last.safetensors"))?;
        let last = self.test(&last, None)?;
        let best = match outcome.best {
            Some((file, score, step)) => {
                let file = describe(file);
                file.save(&folder.file("adapter_best.safetensors"))?;
                Some(self.test(&file, Some((score, step)))?)
            }
            None => None,
        };
        Ok(After {
            last,
            best,
            skipped: outcome.skipped,
        })
    }

    fn test(&self, file: &AdapterFile, chosen: Option<(f64, usize)>) -> Result<Tested> {
        let e = &self.inputs.engine;
        let mut encoder = crosstune::engine::TextEncoder::new(e, &file.config)?;
        file.load_into(&mut encoder.state, 0)?;
        let role = self.config.strategy.anchor();
        let test = &self.inputs.test;
        let recall = crosstune::train::trainer::evaluate(e, &mut encoder, test, role)?;
        Ok(Tested {
            test: recall,
            validation_score: chosen.map(|c| c.0),
            step: chosen.map(|c| c.1),
        })
    }

    fn table(&self, before: &Recall, after: &After, speed: &Speed, share: f64, parameters: usize) {
        println!("{} on {} test items", self.lang, before.n);
        println!("                    image to text            text to image          mean");
        println!("              R@1    R@5    R@10     R@1    R@5    R@10     R@1    ties");
        let row = |name: &str, r: &Recall| {
            let [a, b, c] = r.i2t;
            let [d, e, f] = r.t2i;
            let ties = r.ties_i2t + r.ties_t2i;
            println!(
                "{name:12} {a:.4} {b:.4} {c:.4}   {d:.4} {e:.4} {f:.4}   {:.4}  {ties:4}",
                r.mean_r1()
            );
        };
        row("zero-shot", before);
        row("last step", &after.last.test);
        if let Some(best) = &after.best {
            row(&format!("best, {}", best.step.unwrap_or(0)), &best.test);
        }
        println!(
            "{parameters} parameters trained, {:.4} % of the model; {:.0} tokens/s",
            100.0 * share,
            speed.tokens_per_second()
        );
    }
}

/// What a finished run measured.
struct After {
    last: Tested,
    best: Option<Tested>,
    skipped: u32,
}

/// An adapter on the test items.
#[derive(Serialize)]
struct Tested {
    test: Recall,
    validation_score: Option<f64>,
    step: Option<usize>,
}

/// Tokens and seconds of all steps.
#[derive(Default)]
struct Speed {
    tokens: f64,
    seconds: f64,
}

impl Speed {
    fn add(&mut self, s: &StepReport) {
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
