//! `crosstune demo`.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use crosstune::demo::event::{DemoEvent, Phase};
use crosstune::demo::report::{DemoReport, Scores};
use crosstune::demo::run::{DemoOptions, run as run_demo};

use super::Output;
use super::term::{Interrupt, Progress};

/// Options of the demo.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example: the demo with another world, then its page in a browser:
  crosstune demo --seed 2 --out demo2
  xdg-open demo2/report.html
The folder's model/, world.jsonl and features.safetensors serve every other command too; its vision/ made the
features of its pictures/, and makes those of others:
  crosstune eval --model crosstune-demo/model --jsonl crosstune-demo/world.jsonl \\
    --features crosstune-demo/features.safetensors --lang all
  crosstune features --vision crosstune-demo/vision --images crosstune-demo/pictures \\
    --out again.safetensors"
)]
pub struct Args {
    /// The demo's folder; a model that an earlier demo left there is used again.
    #[arg(long, value_name = "DIR", default_value = "crosstune-demo")]
    out: PathBuf,
    /// Decides the world, the model and every random number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads [default: all cores]. Results do not depend on it.
    #[arg(long)]
    threads: Option<usize>,
}

/// What a phase is called on the screen.
fn title(phase: Phase) -> &'static str {
    match phase {
        Phase::World => "rendering pictures, writing captions in six languages",
        Phase::Vision => "teaching a small vision tower to see",
        Phase::English => "training the text tower on English captions",
        Phase::Distillation => "teaching it the other languages, from uneven data",
        Phase::ZeroShot => "measuring what it knows of each language",
        Phase::Adaptation => "adapting the weak languages with LoRA",
    }
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let options = DemoOptions {
        seed: args.seed,
        threads: args.threads,
        ..DemoOptions::new(args.out)
    };
    let mut progress = Progress::new(1, output.quiet);
    let report = run_demo(&options, &mut |event| {
        match event {
            DemoEvent::Cached { folder } => progress.line(format_args!(
                "using the world and the model that an earlier demo left in {}",
                folder.display()
            )),
            DemoEvent::Began(phase) => progress.line(title(*phase)),
            DemoEvent::Step { step, .. } => {
                progress.length(step.total as u64);
                progress.at(
                    step.step as u64,
                    step.total as u64,
                    format_args!("loss {:.3}", step.loss),
                );
            }
            DemoEvent::Recall { .. } | DemoEvent::Ended(..) => {}
        }
        if interrupt.stopped() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    progress.finish();
    let report = report?;
    if output.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        table(&report);
        println!(
            "a page with pictures: {}",
            options.folder.join("report.html").display()
        );
    }
    Ok(())
}

fn table(r: &DemoReport) {
    println!();
    println!(
        "mean R@1 of image-to-text and text-to-image, {} test pictures",
        r.world.test
    );
    println!("lang  captions seen   zero-shot   baseline1        routine1");
    for row in &r.rows {
        let before = row.before.mean_r1;
        let gain = |s: &Option<Scores>| match s {
            Some(s) => format!("{:.3} ({:+.3})", s.mean_r1, s.mean_r1 - before),
            None => "-".to_string(),
        };
        println!(
            "{:4}  {:13}   {before:9.3}   {:15}  {}",
            row.language.code(),
            row.captions,
            gain(&row.baseline1),
            gain(&row.routine1)
        );
    }
    println!(
        "the vision tower ({} parameters) finds the vector that it was taught first for {:.1} % of {} \
         pictures that it never saw",
        r.tower.parameters,
        100.0 * r.tower.map_r1,
        r.tower.pictures
    );
    let seconds: f64 = r.speed.seconds.iter().sum();
    println!(
        "{} of {} parameters trained for each language and strategy ({:.2} %), {} adapters in one \
         run from {} items each; {:.0} tokens/s on {} threads; {seconds:.0} s in all{}",
        r.trainable,
        r.parameters,
        100.0 * r.trainable_share,
        r.adapters,
        r.world.train,
        r.speed.tokens_per_second,
        r.speed.threads,
        if r.speed.cached {
            ", the model's part in an earlier run"
        } else {
            ""
        }
    );
}
