//! What a profile says: as a table, as JSON, as a trace.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::card::Card;
use super::ceiling::Ceilings;
use super::{Phase, Profiler, Tally};
use crate::error::{Error, Result};
use crate::graph::cost::Numbers;
use crate::weights::write::write_atomic;

/// Where a run ran.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// Name of the device.
    pub device: String,
    /// Threads of the pool.
    pub threads: usize,
    /// Whether the device is the virtual machine.
    pub virtual_machine: bool,
}

/// A line of a profile: a phase, or an op in a phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The phase.
    pub phase: Phase,
    /// The op; none for a whole phase.
    pub op: Option<&'static str>,
    /// Nodes run, or times that the host was in the phase.
    pub calls: u64,
    /// Launches on a device.
    pub launches: u64,
    /// Time of its own.
    pub seconds: f64,
    /// That over the time of all phases.
    pub share: f64,
    /// Bytes read and written at least.
    pub bytes: f64,
    /// Operations of products.
    pub flops: f64,
    /// The least time by the ceilings over the time taken; none where nothing was counted.
    pub of_ceiling: Option<f64>,
    /// Seconds by the model of time, where the card is known to it.
    pub predicted_seconds: Option<f64>,
}

/// A whole profile.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    #[serde(flatten)]
    pub place: Place,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// What was measured in this run to compare with.
    pub ceilings: Option<Ceilings>,
    /// From the first phase to the report.
    pub seconds: f64,
    /// In the order of a run.
    pub phases: Vec<Line>,
    /// The longest first.
    pub ops: Vec<Line>,
}

impl Profiler {
    /// What was recorded so far. `measure` gives ceilings, or says why there are none; its time is not
    /// the run's.
    pub fn report(&self, place: Place, measure: impl FnOnce() -> Result<Ceilings>) -> Report {
        let seconds = self.log().begin.elapsed().as_secs_f64();
        let ceilings = measure();
        let log = self.log();
        let mut notes = notes(&place, self);
        if let Err(why) = &ceilings {
            notes.push(format!("no ceilings, so no shares of them: {why}"));
        }
        match log.trace.left_out() {
            0 => {}
            n => notes.push(format!(
                "trace.json holds the first spans; {n} more are left out"
            )),
        }
        let of = Of {
            all: log.recorded.as_secs_f64(),
            ceilings: ceilings.ok(),
            card: Card::find(&place.device).filter(|_| self.numbers == Numbers::F16),
        };
        let ops = log.ops.iter();
        let ops = ops.map(|((p, op), t)| of.line((*p, Some(*op)), t, &[t]));
        let mut ops: Vec<Line> = ops.collect();
        let phases = log.phases.iter().map(|(p, t)| {
            let own = log.ops.iter().filter(|((phase, _), _)| phase == p);
            let parts: Vec<&Tally> = own.map(|(_, t)| t).collect();
            of.line((*p, None), t, &parts)
        });
        ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Report {
            phases: phases.collect(),
            ops,
            notes,
            ceilings: of.ceilings,
            seconds,
            place,
        }
    }

    /// Writes `profile.txt`, `profile.json` and `trace.json` into a folder, which is made.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn save(&self, report: &Report, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::write(folder))?;
        let text = report.table();
        write_atomic(&folder.join("profile.txt"), |f| {
            f.write_all(text.as_bytes())
        })?;
        let json = serde_json::to_string_pretty(report)
            .map_err(|e| Error::Run(format!("a profile that is no JSON: {e}")))?;
        write_atomic(&folder.join("profile.json"), |f| writeln!(f, "{json}"))?;
        let log = self.log();
        let device = &report.place.device;
        write_atomic(&folder.join("trace.json"), |f| log.trace.write(f, device))
    }
}

fn notes(place: &Place, profiler: &Profiler) -> Vec<String> {
    let mut notes = Vec::new();
    if place.virtual_machine {
        notes.push(
            "times are the virtual machine's, which runs kernels on one core: they say nothing \
             about a GPU"
                .into(),
        );
    }
    if profiler.numbers == Numbers::F16 {
        notes.push(
            "nodes were launched one by one, each between two events; a run without --profile \
             replays them captured and is faster"
                .into(),
        );
    }
    if profiler.has_nvtx() {
        notes.push("phases and nodes are NVTX ranges too".into());
    }
    notes
}

/// What lines are compared with.
struct Of {
    /// Seconds of all phases.
    all: f64,
    ceilings: Option<Ceilings>,
    card: Option<&'static Card>,
}

impl Of {
    /// A line of what `t` tells. Some ops of a phase are bound by bytes, others by products: it takes
    /// at least the sum of what its `parts` take.
    fn line(
        &self,
        (phase, op): (Phase, Option<&'static str>),
        t: &Tally,
        parts: &[&Tally],
    ) -> Line {
        let (seconds, bytes, flops) = (t.time.as_secs_f64(), t.cost.bytes(), t.cost.flops);
        let counted = |x: f64| (bytes > 0.0 && seconds > 0.0).then_some(x);
        let sum = |of: &dyn Fn(&Tally) -> f64| parts.iter().map(|t| of(t)).sum::<f64>();
        let least = self
            .ceilings
            .map(|c| sum(&|t| c.seconds(t.cost.bytes(), t.cost.flops)));
        let card = self.card;
        let predicted = card.map(|c| sum(&|t| c.seconds(&t.cost, t.launches as usize)));
        Line {
            phase,
            op,
            calls: t.calls,
            launches: t.launches,
            seconds,
            share: if self.all > 0.0 {
                seconds / self.all
            } else {
                0.0
            },
            bytes,
            flops,
            of_ceiling: least.and_then(|least| counted(least / seconds)),
            predicted_seconds: predicted.and_then(counted),
        }
    }
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut out = self.head();
        out.push_str("\nphase             calls       ms      %   of ceiling\n");
        for line in &self.phases {
            let _ = writeln!(
                out,
                "{:12} {:10} {:8.1} {:6.1}   {}",
                line.phase.name(),
                line.calls,
                line.seconds * 1e3,
                line.share * 100.0,
                percent(line.of_ceiling)
            );
        }
        let predicted = self.ops.iter().any(|l| l.predicted_seconds.is_some());
        let model = if predicted { "   model, ms" } else { "" };
        let _ = writeln!(
            out,
            "\nphase      op                  calls       ms      %        MB      GFLOP     GB/s  \
             GFLOP/s   of ceiling{model}"
        );
        for line in &self.ops {
            op_line(&mut out, line);
        }
        out
    }

    /// Where it ran, what that place can, what a reader must know.
    fn head(&self) -> String {
        let place = &self.place;
        let mut out = format!(
            "profile of {:.2} s on {}, {} threads\n",
            self.seconds, place.device, place.threads
        );
        if let Some(c) = &self.ceilings {
            let _ = writeln!(
                out,
                "ceilings, measured in this run: {:.1} GB/s (a copy of {} MiB), {:.1} GFLOP/s (a \
                 product of {} cubed)",
                c.copy / 1e9,
                c.copy_bytes >> 20,
                c.product / 1e9,
                c.product_side
            );
        }
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        out
    }
}

fn op_line(out: &mut String, line: &Line) {
    let rate = |x: f64| {
        if line.seconds > 0.0 {
            x / line.seconds / 1e9
        } else {
            0.0
        }
    };
    let _ = write!(
        out,
        "{:10} {:16} {:8} {:8.1} {:6.1} {:9.1} {:10.3} {:8.2} {:8.1}   {}",
        line.phase.name(),
        line.op.unwrap_or_default(),
        line.calls,
        line.seconds * 1e3,
        line.share * 100.0,
        line.bytes / 1e6,
        line.flops / 1e9,
        rate(line.bytes),
        rate(line.flops),
        percent(line.of_ceiling)
    );
    if let Some(seconds) = line.predicted_seconds {
        let _ = write!(out, " {:11.3}", seconds * 1e3);
    }
    out.push('\n');
}

fn percent(share: Option<f64>) -> String {
    share.map_or("         -".into(), |x| format!("{:8.1} %", x * 100.0))
}
