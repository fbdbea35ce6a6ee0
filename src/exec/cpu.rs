//! The CPU executor: one arena, one pool of threads, each op's fast version in node order.

use std::sync::Arc;

use super::state::TrainState;
use super::{Executor, Frozen, MemberStep, Observer, Pass, watched};
use crate::error::Result;
use crate::graph::plan::{Plan, Reuse};
use crate::graph::{Bucket, Graph, Role, ValueId};
use crate::text::pack::Batch;

/// Where a value's memory is.
#[derive(Clone, Copy, Debug)]
enum Home {
    Arena,
    Frozen,
    Images,
    Value(usize),
    Grad(usize),
}

/// Memory of a CPU run. Ops ask for slices by value; what they get never overlaps.
pub struct CpuMem<'a> {
    /// The graph that runs.
    pub graph: &'a Graph,
    /// The structure of the step.
    pub batch: &'a Batch,
    /// What changes from step to step.
    pub steps: &'a [MemberStep],
    /// The trainable state, for the optimiser.
    pub state: &'a mut TrainState,
    homes: &'a [Home],
    plan: &'a Plan,
    arena: &'a mut [f32],
    frozen: &'a Frozen,
}

type Raw = (*mut f32, usize);

impl CpuMem<'_> {
    /// The last extent of a value.
    pub fn channels(&self, id: ValueId) -> usize {
        self.graph.channels(id)
    }

    /// Whether a value has a copy for each member.
    pub fn per_member(&self, id: ValueId) -> bool {
        matches!(self.graph.get(id).role, Role::Trainable | Role::Grad)
    }

    fn raw(&mut self, id: ValueId) -> Raw {
        let whole = |x: &mut [f32]| (x.as_mut_ptr(), x.len());
        match self.homes[id.idx()] {
            Home::Arena => {
                let span = self.plan.spans[id.idx()].map_or(0..0, |s| s.offset..s.offset + s.len);
                whole(&mut self.arena[span])
            }
            Home::Frozen => {
                let data = self.frozen.get(&self.graph.get(id).name).unwrap_or(&[]);
                (data.as_ptr().cast_mut(), data.len())
            }
            Home::Images => (
                self.batch.images.as_ptr().cast_mut(),
                self.batch.images.len(),
            ),
            Home::Value(t) => {
                let t = &self.state.tensors[t];
                whole(&mut self.state.values[t.offset..t.offset + t.len * self.state.members])
            }
            Home::Grad(t) => {
                let t = &self.state.tensors[t];
                whole(&mut self.state.grads[t.offset..t.offset + t.len * self.state.members])
            }
        }
    }

    /// Slices of what an op reads and writes; `None` gives an empty slice.
    ///
    /// # Panics
    /// If something written overlaps anything else, or is a weight: the plan is wrong.
    #[allow(unsafe_code)]
    pub fn bind(
        &mut self,
        reads: &[Option<ValueId>],
        writes: &[Option<ValueId>],
    ) -> (Vec<&[f32]>, Vec<&mut [f32]>) {
        let empty = (std::ptr::NonNull::dangling().as_ptr(), 0);
        let mut all: Vec<Raw> = Vec::with_capacity(reads.len() + writes.len());
        for id in reads.iter().chain(writes) {
            all.push(id.map_or(empty, |id| self.raw(id)));
        }
        for (w, id) in writes
            .iter()
            .enumerate()
            .filter_map(|(i, id)| Some((i, (*id)?)))
        {
            assert!(
                matches!(self.homes[id.idx()], Home::Arena | Home::Grad(_)),
                "{} may not be written",
                self.graph.get(id).name
            );
            let (start, len) = all[reads.len() + w];
            let end = start.wrapping_add(len);
            for (i, &(other, n)) in all.iter().enumerate() {
                let apart = other.wrapping_add(n) <= start || end <= other || n == 0 || len == 0;
                assert!(
                    i == reads.len() + w || apart,
                    "{} overlaps",
                    self.graph.get(id).name
                );
            }
        }
        let (r, w) = all.split_at(reads.len());
        // SAFETY: every pointer covers live memory of its length (the arena, the trainable state,
        // the map or the batch), all of it borrowed for the life of the result; nothing written
        // overlaps anything else, which was checked above.
        unsafe {
            (
                r.iter()
                    .map(|&(p, n)| std::slice::from_raw_parts(p, n))
                    .collect(),
                w.iter()
                    .map(|&(p, n)| std::slice::from_raw_parts_mut(p, n))
                    .collect(),
            )
        }
    }

    /// Makes `out` hold what `inp` holds: nothing to do where the plan gave them one place.
    pub fn carry(&mut self, out: ValueId, inp: ValueId) {
        if self.raw(out).0 != self.raw(inp).0 {
            let (r, mut w) = self.bind(&[Some(inp)], &[Some(out)]);
            w[0].copy_from_slice(r[0]);
        }
    }
}

/// Runs a graph on this machine's cores.
pub struct CpuExecutor {
    graph: Arc<Graph>,
    frozen: Arc<Frozen>,
    homes: Vec<Home>,
    plan: Option<Plan>,
    arena: Vec<f32>,
    pool: Arc<rayon::ThreadPool>,
    reuse: Reuse,
    least: Bucket,
    true_rows: Bucket,
    observer: Option<Observer>,
}

impl CpuExecutor {
    /// Binds the frozen weights and the trainable tensors of `state`. The arena is made at the
    /// first step and grows with the largest bucket.
    ///
    /// # Panics
    /// If a value is bound to nothing.
    pub fn new(
        graph: Arc<Graph>,
        frozen: Arc<Frozen>,
        state: &TrainState,
        pool: Arc<rayon::ThreadPool>,
    ) -> CpuExecutor {
        frozen.check(&graph);
        let slot = |name: &str| {
            state
                .find(name)
                .unwrap_or_else(|| panic!("trainable value {name} has no state"))
        };
        let homes = graph
            .values
            .iter()
            .map(|v| match v.role {
                Role::Temp | Role::Output => Home::Arena,
                Role::Frozen => Home::Frozen,
                Role::Input => Home::Images,
                Role::Trainable => Home::Value(slot(&v.name)),
                Role::Grad => Home::Grad(slot(v.name.trim_start_matches("d."))),
            })
            .collect();
        let empty = Bucket {
            tokens: 0,
            seqs: 0,
            items: 0,
            members: 0,
        };
        CpuExecutor {
            graph,
            frozen,
            homes,
            plan: None,
            arena: Vec::new(),
            pool,
            reuse: Reuse::Packed,
            least: empty,
            true_rows: empty,
            observer: None,
        }
    }

    /// Gives every value a place of its own, filled with NaN before each step: to find reads of
    /// what nobody wrote.
    pub fn spread(mut self) -> CpuExecutor {
        self.reuse = Reuse::Spread;
        self
    }

    /// Plans every step for at least this bucket, so that steps of a known largest size share one
    /// plan.
    pub fn with_bucket(mut self, least: Bucket) -> CpuExecutor {
        self.least = least;
        self
    }

    /// Size of the arena in bytes, 0 before the first step.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len() * 4
    }

    /// The content of an output of the last pass, true rows only.
    pub fn output(&self, id: ValueId) -> Vec<f32> {
        let len = self.graph.get(id).elements(&self.true_rows);
        let offset = self
            .plan
            .as_ref()
            .and_then(|p| p.span(id))
            .map_or(0, |s| s.offset);
        self.arena[offset..offset + len].to_vec()
    }

    /// Plans for a bucket; `fresh` where a step begins and nothing in the arena is wanted any more.
    fn prepare(&mut self, bucket: Bucket, fresh: bool) {
        if self.plan.as_ref().is_none_or(|p| p.bucket != bucket) {
            self.plan = Some(Plan::new(&self.graph, bucket, self.reuse));
        }
        let len = self.plan.as_ref().map_or(0, |p| p.arena_len);
        if len > self.arena.len() {
            // A fresh allocation: the old content is dead, and growing in place would copy it.
            self.arena = Vec::new();
            self.arena = vec![0.0; len];
        }
        if self.reuse == Reuse::Spread && fresh {
            self.arena.fill(f32::NAN);
        }
    }
}

impl Executor for CpuExecutor {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn load(&mut self, _: &TrainState) -> Result<()> {
        Ok(())
    }

    fn store(&self, _: &mut TrainState) -> Result<()> {
        Ok(())
    }

    fn pass(&mut self, state: &mut TrainState, pass: &Pass<'_>) -> Result<()> {
        let batch = pass.batch;
        self.prepare(batch.bucket().max(&self.least), pass.nodes.start == 0);
        self.true_rows = Bucket {
            tokens: batch.tokens(),
            seqs: batch.seqs(),
            items: batch.items(),
            members: batch.members.len(),
        };
        let Some(plan) = &self.plan else {
            return Ok(());
        };
        for (id, values) in pass.given {
            let place = plan.span(*id).map_or(0..0, |s| s.offset..s.offset + s.len);
            self.arena[place][..values.len()].copy_from_slice(values);
        }
        let mut mem = CpuMem {
            graph: &self.graph,
            batch,
            steps: pass.steps,
            state,
            homes: &self.homes,
            plan,
            arena: &mut self.arena,
            frozen: &self.frozen,
        };
        let observer = &mut self.observer;
        self.pool.install(|| {
            for node in pass.nodes.clone() {
                let op = &mem.graph.nodes[node];
                watched(observer, node, pass, || op.cpu(&mut mem));
            }
        });
        Ok(())
    }

    fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    fn output(&self, id: ValueId) -> Result<Vec<f32>> {
        Ok(CpuExecutor::output(self, id))
    }

    fn arena_bytes(&self) -> usize {
        CpuExecutor::arena_bytes(self)
    }
}
