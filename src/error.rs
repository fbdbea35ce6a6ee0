//! One error type for the library; the binary adds nothing but the exit code.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, in one sentence a user can act on.
///
/// A message names the file or field, what was expected, what was found and what to do. The
/// variant decides the exit code of the program: 2 for bad input, 1 for a failure at run time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A mistake in what the user gave: a file, an option, a configuration.
    #[error("{0}")]
    Input(String),
    /// A failure while running: a loss that is not finite, a worker that died.
    #[error("{0}")]
    Run(String),
    /// A device that failed: no room left, lost, a launch that it refused. No member's fault.
    #[error("{0}")]
    Device(String),
    /// A file that could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file that could not be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The caller's progress callback asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// 2 for bad input, 1 for a failure at run time, 130 for a cancelled run.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input(_) | Error::Read { .. } => 2,
            Error::Run(_) | Error::Device(_) | Error::Write { .. } => 1,
            Error::Cancelled => 130,
        }
    }

    /// For `map_err` where `path` was being read.
    pub fn read(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Read { path, source }
    }

    /// For `map_err` where `path` was being written.
    pub fn write(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Write { path, source }
    }
}

/// `bad_input!("...")` is an [`Error::Input`] with a formatted message.
#[macro_export]
macro_rules! bad_input {
    ($($arg:tt)*) => { $crate::error::Error::Input(format!($($arg)*)) };
}
