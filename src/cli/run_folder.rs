//! The folder of a run: resolved settings, metrics, adapters, checkpoint, summary.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use crosstune::bad_input;
use crosstune::error::Error;
use crosstune::weights::write::write_atomic;
use serde::Serialize;

/// A run's folder. No second process may use it at the same time.
pub struct RunFolder {
    path: PathBuf,
    metrics: Option<File>,
    /// Held open: its lock ends with the process.
    _lock: File,
}

impl RunFolder {
    /// Checks that a new folder can be made at `path`, before anything is read, and makes nothing.
    pub fn check(path: &Path) -> Result<()> {
        let file = path.display();
        if path.exists() && !path.is_dir() {
            return Err(bad_input!("{file}: is a file, expected a folder").into());
        }
        if path.is_dir() && Self::holds_files(path)? {
            return Err(bad_input!(
                "{file}: already exists and is not empty; choose another --out, or go on with the \
                 run in it by --resume"
            )
            .into());
        }
        let parents = path.ancestors().filter(|p| !p.as_os_str().is_empty());
        let above = parents.into_iter().find(|p| p.exists());
        // A file without a name: it leaves nothing, whatever happens.
        tempfile::tempfile_in(above.unwrap_or(Path::new("."))).map_err(|e| cannot_make(path, e))?;
        Ok(())
    }

    /// Whether a folder holds more than what had been half written.
    pub fn holds_files(path: &Path) -> Result<bool> {
        let mut entries = fs::read_dir(path).map_err(Error::read(path))?;
        Ok(entries.any(|entry| !entry.is_ok_and(|e| is_temporary(&e.file_name()))))
    }

    /// Makes a new folder; one that holds a run already is refused.
    pub fn create(path: &Path) -> Result<RunFolder> {
        Self::check(path)?;
        fs::create_dir_all(path).map_err(|e| cannot_make(path, e))?;
        Ok(RunFolder {
            path: path.to_path_buf(),
            metrics: None,
            _lock: lock(path)?,
        })
    }

    /// Opens the folder of a run that was stopped, and removes what it had half written.
    pub fn open(path: &Path) -> Result<RunFolder> {
        if !path.join("config.toml").is_file() {
            let what = if path.is_dir() {
                "it has no config.toml"
            } else {
                "it is no folder"
            };
            return Err(bad_input!("{}: there is no run to resume; {what}", path.display()).into());
        }
        let folder = RunFolder {
            path: path.to_path_buf(),
            metrics: None,
            _lock: lock(path)?,
        };
        remove_temporary(path)?;
        for entry in fs::read_dir(path).map_err(Error::read(path))?.flatten() {
            if entry.path().is_dir() {
                remove_temporary(&entry.path())?;
            }
        }
        Ok(folder)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The folder of one of several members, which is made; of the only one, that of the run.
    pub fn member_folder(&self, member: Option<&str>) -> Result<PathBuf, Error> {
        let folder = member.map_or_else(|| self.path.clone(), |member| self.path.join(member));
        fs::create_dir_all(&folder).map_err(Error::write(&folder))?;
        Ok(folder)
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
            // In one piece: a line is there or it is not, whenever the process is killed.
            Some(file) => file
                .write_all(format!("{row}\n").as_bytes())
                .map_err(Error::write(&path)),
            None => Ok(()),
        }
    }
}

fn cannot_make(path: &Path, e: io::Error) -> Error {
    let path = path.display();
    bad_input!("{path}: cannot be made or written to: {e}; choose another --out")
}

/// Removes what a killed process had half written into a folder.
fn remove_temporary(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::read(folder))?.flatten() {
        if is_temporary(&entry.file_name()) {
            fs::remove_file(entry.path()).map_err(Error::write(entry.path()))?;
        }
    }
    Ok(())
}

/// Whether a name is that of a file that [`write_atomic`] had not finished.
fn is_temporary(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(".crosstune-") && name.ends_with(".tmp")
}

/// Locks a folder for this process. A file system that knows no locks is taken as it is.
fn lock(path: &Path) -> Result<File, Error> {
    let folder = File::open(path).map_err(Error::read(path))?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => Err(bad_input!(
            "{}: another process is running in it; wait for it, or end it first",
            path.display()
        )),
        _ => Ok(folder),
    }
}
