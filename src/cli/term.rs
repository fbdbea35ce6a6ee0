//! Progress: a bar on a terminal, plain lines elsewhere, nothing with --quiet.

use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Shortest time between two plain lines.
const EVERY: Duration = Duration::from_secs(5);

/// Shows how far something has come.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    last: Instant,
    /// Where the last plain line stood: members that end with the same step share one.
    shown: u64,
}

impl Progress {
    /// A progress over `total` units.
    pub fn new(total: u64, quiet: bool) -> Progress {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} (eta {eta})");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress {
            bar,
            quiet,
            last: Instant::now(),
            shown: 0,
        }
    }

    /// Changes the total: another phase began.
    pub fn length(&self, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// Moves to `done`; `message` goes beside the bar, or on a line of its own now and then.
    pub fn at(&mut self, done: u64, total: u64, message: impl Display) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(message.to_string());
                bar.set_position(done);
            }
            None if !self.quiet
                && done != self.shown
                && (self.last.elapsed() >= EVERY || done == total) =>
            {
                eprintln!("{done}/{total} {message}");
                self.shown = done;
                self.last = Instant::now();
            }
            None => {}
        }
    }

    /// A line that stays; what comes after it is counted afresh.
    pub fn line(&mut self, text: impl Display) {
        self.shown = 0;
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None if !self.quiet => eprintln!("{text}"),
            None => {}
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints a warning, also with --quiet: it says that results may not be what they seem.
pub fn warn(text: impl Display) {
    eprintln!("warning: {text}");
}

/// Set by the first Ctrl-C or SIGTERM; a second one ends the program at once.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Begins to listen.
    pub fn listen() -> anyhow::Result<Interrupt> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())?;
            signal_hook::flag::register(signal, flag.clone())?;
        }
        Ok(Interrupt(flag))
    }

    /// Whether to stop.
    pub fn stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
