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
    use crosstune::cuda::report::{Line, Report, changes};
    use crosstune::error::Error;

    use super::{Args, Output, Result};

    pub fn run(args: Args, output: Output) -> Result<()> {
        // A mistake is told before the workload runs.
        let name = args.name.as_ref().or(args.lines.as_ref());
        if let Some(name) = name.filter(|name| !Report::new(vec![]).keep(name)) {
            return Err(unknown(name).into());
        }
        if let Some(folder) = args.write.as_ref().filter(|folder| !folder.is_dir()) {
            let folder = folder.display();
            return Err(bad_input!("write: {folder} is not a folder; make it first").into());
        }
        let old = args.against.as_deref().map(read).transpose()?;
        let mut report = Report::make()?;
        if let Some(name) = name {
            report.keep(name);
        }
        match (&args.write, &args.lines, old) {
            (Some(folder), ..) => write(&report, folder),
            (_, Some(kernel), _) => lines(&report, kernel, output),
            (.., Some(mut old)) => {
                if let Some(name) = name {
                    old.keep(name);
                }
                against(&old, &report, output)
            }
            _ => show(&report, output),
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
        let mut kernels: Vec<&str> = report.work.iter().map(|w| &*w.kernel).collect();
        kernels.dedup();
        // A whole name, or the one that holds it.
        let kernel = match kernels[..] {
            _ if kernels.contains(&kernel) => kernel,
            [one] => one,
            _ => {
                let all = kernels.join(", ");
                return Err(bad_input!("lines: found `{kernel}`, expected one of {all}").into());
            }
        };
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
        let put = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|e| bad_input!("{}: {e}", path.display()))
        };
        put("kernels.json", report.to_json()? + "\n")?;
        put("kernels.md", table::document(report))?;
        Ok(())
    }
}
