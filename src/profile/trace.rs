//! Spans as a chrome trace: JSON for chrome://tracing and Perfetto.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Phase;
use crate::graph::cost::Cost;

/// Spans that are kept: a file of this many is 40 MB, which viewers still open.
const MOST: usize = 200_000;

/// One call.
pub struct Span {
    /// Of the op or the phase.
    pub name: &'static str,
    /// Where it belongs.
    pub phase: Phase,
    /// Index of the node; none for a phase of the host's.
    pub node: Option<usize>,
    /// When it began.
    pub start: Instant,
    /// How long it took.
    pub time: Duration,
    /// What it cost at least.
    pub cost: Cost,
}

/// The first spans of a run, in the order in which they ended.
pub struct Trace {
    begin: Instant,
    spans: Vec<Span>,
    left_out: u64,
}

impl Trace {
    /// Of a run that begins now.
    pub fn new(begin: Instant) -> Trace {
        Trace {
            begin,
            spans: vec![],
            left_out: 0,
        }
    }

    /// Keeps a span, if there is room.
    pub fn add(&mut self, span: Span) {
        if self.spans.len() < MOST {
            self.spans.push(span);
        } else {
            self.left_out += 1;
        }
    }

    /// Spans for which there was no room.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Writes all, `device` being the name of what ran the nodes.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, to: &mut dyn Write, device: &str) -> io::Result<()> {
        writeln!(to, "{{\"displayTimeUnit\": \"ms\", \"traceEvents\": [")?;
        for (thread, name) in [(HOST, "host"), (NODES, device)] {
            let named = json!({
                "ph": "M", "pid": 1, "tid": thread, "name": "thread_name", "args": {"name": name},
            });
            writeln!(to, "{named},")?;
        }
        for (i, span) in self.spans.iter().enumerate() {
            let end = if i + 1 < self.spans.len() { "," } else { "" };
            writeln!(to, "{}{end}", self.event(span))?;
        }
        writeln!(to, "]}}")
    }

    fn event(&self, span: &Span) -> serde_json::Value {
        let us = |d: Duration| d.as_nanos() as f64 / 1e3;
        let mut event = json!({
            "ph": "X", "pid": 1, "tid": HOST, "name": span.name, "cat": span.phase.name(),
            "ts": us(span.start.saturating_duration_since(self.begin)), "dur": us(span.time),
        });
        if let Some(node) = span.node {
            event["tid"] = json!(NODES);
            let cost = &span.cost;
            event["args"] = json!({"node": node, "bytes": cost.bytes(), "flops": cost.flops});
        }
        event
    }
}

/// Rows of the viewer.
const HOST: u32 = 1;
const NODES: u32 = 2;
