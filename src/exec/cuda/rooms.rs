//! What an executor keeps for each room, and how it gives it back.

use std::collections::HashMap;

use super::memory::{Arena, Layout, Memory, Room};
use crate::cuda::step_params::StepBuffer;
use crate::cuda::{DevicePtr, Driver, DriverError, GraphId, Result};
use crate::graph::Graph;
use crate::graph::plan::Reuse;

/// The rooms of an executor, and the arena that they share.
#[derive(Default)]
pub struct Rooms {
    arena: Arena,
    prepared: HashMap<Room, Prepared>,
}

/// What is made once for a room.
pub struct Prepared {
    /// Where values lie.
    pub memory: Memory,
    /// What changes per step.
    pub step: StepBuffer,
    /// By the nodes of a pass.
    replays: HashMap<(usize, usize), Replay>,
    /// Allocations of this room alone.
    owned: Vec<DevicePtr>,
}

/// A list of launches.
#[derive(Clone, Copy)]
pub enum Replay {
    /// It ran once: kernels are loaded, and it may come again.
    Seen,
    /// It is noted on the device.
    Captured(GraphId),
    /// The device had no room to note it.
    Launched,
}

impl Prepared {
    /// What is known of a pass over these nodes.
    pub fn replay(&self, nodes: (usize, usize)) -> Option<Replay> {
        self.replays.get(&nodes).copied()
    }
}

impl Rooms {
    /// A room, if it is prepared still.
    pub fn get(&self, room: &Room) -> Option<&Prepared> {
        self.prepared.get(room)
    }

    /// A room that is prepared.
    ///
    /// # Panics
    /// If it is not.
    pub fn at(&self, room: &Room) -> &Prepared {
        match self.prepared.get(room) {
            Some(prepared) => prepared,
            None => unreachable!("{room:?} is not prepared"),
        }
    }

    /// Notes what is known of a pass from now on.
    pub fn note(&mut self, room: &Room, nodes: (usize, usize), replay: Replay) {
        if let Some(prepared) = self.prepared.get_mut(room) {
            prepared.replays.insert(nodes, replay);
        }
    }

    /// Size in bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// Plans and places a room, unless that was done.
    ///
    /// # Errors
    /// If the device has no room for it, even without the others.
    pub fn prepare(
        &mut self,
        driver: &dyn Driver,
        graph: &Graph,
        (room, reuse): (&Room, Reuse),
    ) -> Result<()> {
        if self.prepared.contains_key(room) {
            return Ok(());
        }
        let mut placed = self.place(driver, graph, (room, reuse));
        if let (Err(DriverError::OutOfMemory { .. }), false) = (&placed, self.prepared.is_empty()) {
            self.clear(driver)?;
            placed = self.place(driver, graph, (room, reuse));
        }
        self.prepared.insert(*room, placed?);
        Ok(())
    }

    /// A room with its memory; nothing of it stays allocated if that fails.
    fn place(
        &mut self,
        driver: &dyn Driver,
        graph: &Graph,
        (room, reuse): (&Room, Reuse),
    ) -> Result<Prepared> {
        let mut owned = Vec::new();
        let placed = match reuse {
            Reuse::Packed => self.pack(driver, &Layout::new(graph, room)),
            Reuse::Spread => Memory::spread(driver, graph, room, &mut owned),
        };
        let with_step = placed.and_then(|memory| {
            let ptr = driver.alloc(StepBuffer::bytes(&room.bucket), "step")?;
            owned.push(ptr);
            let step = StepBuffer::new(ptr, room.bucket, room.longest).with_prompt(room.prompt);
            Ok((memory, step))
        });
        match with_step {
            Ok((memory, step)) => Ok(Prepared {
                memory,
                step,
                replays: HashMap::new(),
                owned,
            }),
            Err(error) => {
                // The error that is told is the one that came first.
                let _ = free_all(driver, owned);
                Err(error)
            }
        }
    }

    fn pack(&mut self, driver: &dyn Driver, layout: &Layout<'_>) -> Result<Memory> {
        let base = match self.arena.holding(layout.bytes()) {
            Some(base) => base,
            None => {
                // What was placed and captured before names memory that goes.
                self.clear(driver)?;
                self.arena.grow(driver, layout.bytes())?
            }
        };
        Ok(layout.place(base))
    }

    /// Gives back all that belongs to single rooms; the arena stays.
    ///
    /// # Errors
    /// The first call that failed; the others were made.
    pub fn clear(&mut self, driver: &dyn Driver) -> Result<()> {
        let mut done = Ok(());
        for (_, prepared) in self.prepared.drain() {
            for replay in prepared.replays.into_values() {
                if let Replay::Captured(graph) = replay {
                    done = done.and(driver.drop_graph(graph));
                }
            }
            done = done.and(free_all(driver, prepared.owned));
        }
        done
    }

    /// Gives back everything.
    ///
    /// # Errors
    /// As [`Rooms::clear`].
    pub fn free(&mut self, driver: &dyn Driver) -> Result<()> {
        self.clear(driver).and(self.arena.free(driver))
    }
}

/// Gives allocations back.
///
/// # Errors
/// The first call that failed; the others were made.
pub fn free_all(driver: &dyn Driver, owned: impl IntoIterator<Item = DevicePtr>) -> Result<()> {
    let mut done = Ok(());
    for ptr in owned {
        done = done.and(driver.free(ptr));
    }
    done
}
