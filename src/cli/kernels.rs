//! `crosstune kernels`.

use std::path::PathBuf;

use anyhow::Result;

use super::Output;

/// Options of looking at the kernels.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example: what did a change do?
  crosstune kernels --json > before.json    # with the old binary
  crosstune kernels --against before.json   # with the new one")]
pub struct Args {
    /// Only the kernels of this file of kernels/ (its stem), or those whose names hold this.
    name: Option<String>,
    /// The counts of this kernel by source line.
    #[arg(long, value_name = "KERNEL", conflicts_with_all = ["name", "against", "write"])]
    lines: Option<String>,
    /// Only what differs from a report that `--json` or `--write` made with another binary.
    #[arg(long, value_name = "FILE", conflicts_with = "write")]
    against: Option<PathBuf>,
    /// What the counts come to on an H100, an A100 and an L4, by a model of the card.
    #[arg(long, conflicts_with_all = ["lines", "against", "write"])]
    time: bool,
    /// Write all of it as kernels.md and kernels.json into this folder, replacing them.
    #[arg(long, value_name = "FOLDER", conflicts_with = "name")]
    write: Option<PathBuf>,
}

/// Runs the command.
#[cfg(not(feature = "cuda"))]
pub fn run(_: Args, _: Output) -> Result<()> {
    use crosstune::error::Error;
    Err(Error::Input(format!("kernels: {}", super::doctor::NO_FEATURE)).into())
}

/// Runs the command.
#[cfg(feature = "cuda")]
pub fn run(args: Args, output: Output) -> Result<()> {
    with_cuda::run(args, output)
}

#[cfg(feature = "cuda")]
mod with_cuda {
    use std::path::Path;

    use crosstune::bad_input;
    use crosstune::cuda::report::table::{self, Style};
    use crosstune::cuda::report::{Line, Report, changes, time};
    use crosstune::error::Error;
    use crosstune::weights::write::write_atomic;

    use super::{Args, Output, Result};

    pub fn run(args: Args, output: Output) -> Result<()> {
        // A mistake is told before the workload runs.
        if let Some(name) = args.name.as_ref() {
            let known = Report::new(vec![]).keep(name);
            known.then_some(()).ok_or_else(|| unknown(name))?;
        }
        let kernel = args.lines.as_deref().map(whole_name).transpose()?;
        args.write.as_deref().map_or(Ok(()), writable)?;
        let old = args.against.as_deref().map(read).transpose()?;
        let mut report = Report::make()?;
        if let Some(name) = &args.name {
            report.keep(name);
        }
        match (&args.write, kernel, old) {
            (Some(folder), ..) => write(&report, folder),
            (_, Some(kernel), _) => lines(&report, &kernel, output),
            (.., Some(mut old)) => {
                if let Some(name) = &args.name {
                    old.keep(name);
                }
                against(&old, &report, output)
            }
            _ if args.time => times(&report, output),
            _ => show(&report, output),
        }
    }

    /// The kernel of that name, or the one whose name holds it.
    fn whole_name(name: &str) -> Result<String, Error> {
        let mut kernels: Vec<String> = Report::new(vec![])
            .code
            .into_iter()
            .map(|c| c.kernel)
            .collect();
        kernels.sort();
        kernels.dedup();
        let holds = |kernel: &&String| kernel.contains(name);
        let held: Vec<&String> = kernels.iter().filter(holds).collect();
        match held[..] {
            [one] => Ok(one.clone()),
            _ if held.iter().any(|kernel| *kernel == name) => Ok(name.into()),
            _ => {
                let all = kernels.join(", ");
                Err(bad_input!("lines: found `{name}`, expected one of {all}"))
            }
        }
    }

    /// What [`write`] puts into a folder.
    const WRITTEN: [&str; 2] = ["kernels.json", "kernels.md"];

    /// Fails unless [`write`] can put its files there.
    fn writable(folder: &Path) -> Result<(), Error> {
        let at = folder.display();
        if !folder.is_dir() {
            return Err(bad_input!("write: {at} is not a folder; make it first"));
        }
        tempfile::tempfile_in(folder).map_err(|e| bad_input!("write: {at}: {e}"))?;
        match WRITTEN.iter().find(|name| folder.join(name).is_dir()) {
            Some(name) => Err(bad_input!(
                "write: {at}/{name} is a folder, expected a file"
            )),
            None => Ok(()),
        }
    }

    fn show(report: &Report, output: Output) -> Result<()> {
        if output.json {
            println!("{}", report.to_json()?);
        } else {
            print!("{}", table::render(report, Style::Text));
            print!("\n{}", table::legend(report, Style::Text));
        }
        Ok(())
    }

    fn times(report: &Report, output: Output) -> Result<()> {
        if output.json {
            println!("{}", serde_json::to_string_pretty(&time::times(report))?);
        } else {
            print!("{}", time::table(report));
        }
        Ok(())
    }

    fn unknown(name: &str) -> Error {
        let files = crosstune::cuda::embedded::FILES.iter();
        let files: Vec<&str> = files.map(|f| f.name).collect();
        bad_input!(
            "kernels: found `{name}`, expected part of a kernel's name or one of the files {}",
            files.join(", ")
        )
    }

    fn read(path: &Path) -> Result<Report, Error> {
        let file = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| bad_input!("{file}: {e}"))?;
        serde_json::from_str(&text)
            .map_err(|e| bad_input!("{file}: is no report of `crosstune kernels --json`: {e}"))
    }

    fn against(old: &Report, new: &Report, output: Output) -> Result<()> {
        let changes = changes::changes(old, new);
        if output.json {
            println!("{}", serde_json::to_string_pretty(&changes)?);
            return Ok(());
        }
        changes.iter().for_each(|change| println!("{change}"));
        if changes.is_empty() {
            println!("no figure differs");
        }
        Ok(())
    }

    fn lines(report: &Report, kernel: &str, output: Output) -> Result<()> {
        let lines = report.lines(kernel);
        if output.json {
            println!("{}", serde_json::to_string_pretty(&lines)?);
            return Ok(());
        }
        println!("{kernel}, all cases together:");
        print!("{}", table::lines(&lines, source));
        Ok(())
    }

    /// The text of a line, run from the checkout that the kernels were compiled in.
    fn source(line: &Line) -> Option<String> {
        let text = std::fs::read_to_string(&line.file).ok()?;
        let text = text.lines().nth((line.line as usize).checked_sub(1)?)?;
        Some(text.into())
    }

    fn write(report: &Report, folder: &Path) -> Result<()> {
        let (json, document) = (report.to_json()? + "\n", table::document(report));
        for (name, text) in WRITTEN.into_iter().zip([json, document]) {
            write_atomic(&folder.join(name), |f| f.write_all(text.as_bytes()))?;
        }
        Ok(())
    }
}
