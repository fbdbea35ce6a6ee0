//! The memory plan: lifetimes become offsets in one arena.

use std::fmt::Write as _;

use super::{Bucket, Dim, Graph, Role, ValueId};

/// Alignment of every value in the arena, in elements: one cache line.
const ALIGN: usize = 16;

/// Where a value of the arena lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset in the arena, in elements.
    pub offset: usize,
    /// Length, in elements.
    pub len: usize,
    /// Node that writes it.
    pub first: usize,
    /// Last node that reads it.
    pub last: usize,
}

/// Offsets of all values that live in the arena, for one bucket.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Extents that the plan was made for.
    pub bucket: Bucket,
    /// By value id; `None` where the memory is not the arena's.
    pub spans: Vec<Option<Span>>,
    /// Size of the arena, in elements.
    pub arena_len: usize,
    /// The most that is alive at any node, in elements: a lower bound of the arena.
    pub peak_len: usize,
}

/// How values are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Space is reused as soon as its value has died.
    Packed,
    /// Every value has a place of its own: to find reads of what is dead.
    Spread,
}

impl Plan {
    /// Plans `graph` for `bucket`: biggest value first, at the lowest offset that is free during
    /// its whole life. An output may take the place of an input that dies at its node, where the
    /// op allows it.
    pub fn new(graph: &Graph, bucket: Bucket, reuse: Reuse) -> Plan {
        Plan::sized(graph, bucket, reuse, |id| graph.get(id).elements(&bucket))
    }

    /// The same where a value takes as many elements of four bytes as `size` tells.
    pub fn sized(
        graph: &Graph,
        bucket: Bucket,
        reuse: Reuse,
        size: impl Fn(ValueId) -> usize,
    ) -> Plan {
        let (mut spans, homes) = lifetimes(graph, &size, reuse);
        let mut order: Vec<usize> = (0..spans.len())
            .filter(|&i| spans[i].is_some() && homes[i] == i)
            .collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(spans[i].map_or(0, |s| s.len)), i));
        let mut placed: Vec<Span> = Vec::new();
        let mut arena_len = 0;
        for i in order {
            let Some(mut span) = spans[i] else { continue };
            span.offset = match reuse {
                Reuse::Packed => lowest_free(&placed, &span),
                Reuse::Spread => arena_len,
            };
            arena_len = arena_len.max(span.offset + span.len.next_multiple_of(ALIGN));
            placed.push(span);
            spans[i] = Some(span);
        }
        for i in 0..spans.len() {
            let offset = spans[homes[i]].map_or(0, |s| s.offset);
            if let Some(span) = &mut spans[i] {
                span.offset = offset;
            }
        }
        let peak_len = peak(&spans, &homes, graph.nodes.len());
        Plan {
            bucket,
            spans,
            arena_len,
            peak_len,
        }
    }

    /// The span of a value, if it lives in the arena.
    pub fn span(&self, id: ValueId) -> Option<Span> {
        self.spans[id.idx()]
    }

    /// A table of what lives where, largest first: `crosstune plan --values`.
    pub fn table(&self, graph: &Graph) -> String {
        let mut rows: Vec<(usize, Span)> = self
            .spans
            .iter()
            .enumerate()
            .filter_map(|(i, s)| s.map(|s| (i, s)))
            .collect();
        rows.sort_by_key(|(i, s)| (std::cmp::Reverse(s.len), *i));
        let mut text = String::from("offset (KiB)   size (KiB)   nodes         value\n");
        for (i, s) in rows {
            let life = format!("{}..{}", s.first, s.last);
            let name = &graph.values[i].name;
            let kib = |n: usize| n as f64 * 4.0 / 1024.0;
            let _ = writeln!(
                text,
                "{:12.1} {:12.1}   {life:12}  {name}",
                kib(s.offset),
                kib(s.len)
            );
        }
        text
    }
}

/// Lifetimes, and for each value the value whose place it takes (itself, as a rule).
fn lifetimes(
    graph: &Graph,
    size: &dyn Fn(ValueId) -> usize,
    reuse: Reuse,
) -> (Vec<Option<Span>>, Vec<usize>) {
    let n = graph.values.len();
    let mut spans: Vec<Option<Span>> = vec![None; n];
    let mut homes: Vec<usize> = (0..n).collect();
    for (at, node) in graph.nodes.iter().enumerate() {
        for w in node.writes() {
            let value = graph.get(w);
            if matches!(value.role, Role::Temp | Role::Output) {
                let len = size(w).max(1);
                spans[w.idx()] = Some(Span {
                    offset: 0,
                    len,
                    first: at,
                    last: at,
                });
            }
        }
        for r in node.reads() {
            if let Some(span) = &mut spans[r.idx()] {
                span.last = at;
            }
        }
    }
    for (i, value) in graph.values.iter().enumerate() {
        if let (Role::Output, Some(span)) = (value.role, &mut spans[i]) {
            span.last = graph.nodes.len();
        }
    }
    if reuse == Reuse::Spread {
        return (spans, homes);
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        for (out, inp) in node.inplace() {
            let (Some(o), Some(i)) = (spans[out.idx()], spans[inp.idx()]) else {
                continue;
            };
            if i.last == at && i.len == o.len {
                let home = homes[inp.idx()];
                homes[out.idx()] = home;
                if let Some(h) = &mut spans[home] {
                    h.last = h.last.max(o.last);
                }
            }
        }
    }
    (spans, homes)
}

/// The lowest offset at which `span` meets nothing that is alive with it.
fn lowest_free(placed: &[Span], span: &Span) -> usize {
    let mut rivals: Vec<&Span> = placed
        .iter()
        .filter(|p| p.first <= span.last && span.first <= p.last)
        .collect();
    rivals.sort_by_key(|p| p.offset);
    let mut offset = 0;
    for p in rivals {
        if offset + span.len <= p.offset {
            break;
        }
        offset = offset.max((p.offset + p.len).next_multiple_of(ALIGN));
    }
    offset
}

fn peak(spans: &[Option<Span>], homes: &[usize], nodes: usize) -> usize {
    let mut change = vec![0isize; nodes + 2];
    for (i, span) in spans.iter().enumerate() {
        if let (true, Some(s)) = (homes[i] == i, span) {
            change[s.first] += s.len as isize;
            change[s.last + 1] -= s.len as isize;
        }
    }
    let mut alive = 0;
    let mut peak = 0;
    for c in change {
        alive += c;
        peak = peak.max(alive);
    }
    peak as usize
}

/// A human-readable shape: `(T, 768)`.
pub fn shape_text(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape
        .iter()
        .map(|d| match d {
            Dim::N(n) => n.to_string(),
            Dim::Tokens => "T".into(),
            Dim::Seqs => "S".into(),
            Dim::Items => "N".into(),
            Dim::Members => "G".into(),
        })
        .collect();
    format!("({})", dims.join(", "))
}
