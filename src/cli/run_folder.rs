//! The folder of a run: resolved settings, metrics, adapters, checkpoint, summary.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use crosstune::bad_input;
use crosstune::error::Error;
use crosstune::weights::write::write_atomic;
use serde::Serialize;

/// A run's folder.
pub struct RunFolder {
    path: PathBuf,
    metrics: Option<File>,
}

impl RunFolder {
    /// Makes a new folder; one that holds a run already is refused.
    pub fn create(path: &Path) -> Result<RunFolder> {
        if path.exists() && !path.is_dir() {
            return Err(bad_input!("{}: is a file, expected a folder", path.display()).into());
        }
        let taken = path.is_dir()
            && fs::read_dir(path)
                .map_err(Error::read(path))?
                .next()
                .is_some();
        if taken {
            return Err(bad_input!(
                "{}: already exists and is not empty; choose another --out, or go on with the run \
                 in it by --resume",
                path.display()
            )
            .into());
        }
        let bad = |e| {
            bad_input!(
                "{}: cannot be made: {e}; choose another --out",
                path.display()
            )
        };
        fs::create_dir_all(path).map_err(bad)?;
        // A folder that exists may still be read-only: told before hours of training.
        tempfile::tempfile_in(path).map_err(|e| {
            bad_input!(
                "{}: cannot be written to: {e}; choose another --out",
                path.display()
            )
        })?;
        Ok(RunFolder {
            path: path.to_path_buf(),
            metrics: None,
        })
    }

    /// Opens the folder of a run that was stopped.
    pub fn open(path: &Path) -> Result<RunFolder> {
        let folder = RunFolder {
            path: path.to_path_buf(),
            metrics: None,
        };
        if !folder.file("config.toml").is_file() {
            return Err(bad_input!(
                "{}: there is no run to resume; it has no config.toml",
                path.display()
            )
            .into());
        }
        Ok(folder)
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The resolved settings.
    pub fn write_config(&self, settings: &impl Serialize) -> Result<()> {
        let text = toml::to_string_pretty(settings)?;
        let path = self.file("config.toml");
        Ok(write_atomic(&path, |f| f.write_all(text.as_bytes()))?)
    }

    /// A JSON file, whole or not at all.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        Ok(write_atomic(&self.file(name), |f| writeln!(f, "{text}"))?)
    }

    /// Opens metrics.jsonl for appending, without the lines past `step`: a run that goes on writes
    /// them again.
    pub fn open_metrics(&mut self, step: usize) -> Result<()> {
        let path = self.file("metrics.jsonl");
        if path.exists() {
            let file = File::open(&path).map_err(Error::read(&path))?;
            let mut kept = Vec::new();
            for line in BufReader::new(file).lines() {
                let line = line.map_err(Error::read(&path))?;
                let row: Option<serde_json::Value> = serde_json::from_str(&line).ok();
                if row.is_some_and(|v| v["step"].as_u64().is_some_and(|s| s as usize <= step)) {
                    kept.push(line);
                }
            }
            write_atomic(&path, |f| kept.iter().try_for_each(|l| writeln!(f, "{l}")))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        self.metrics = Some(file.map_err(Error::write(&path))?);
        Ok(())
    }

    /// Appends one line to metrics.jsonl.
    pub fn metric(&mut self, row: &serde_json::Value) -> Result<(), Error> {
        let path = self.file("metrics.jsonl");
        match &mut self.metrics {
            Some(file) => writeln!(file, "{row}").map_err(Error::write(&path)),
            None => Ok(()),
        }
    }
}
