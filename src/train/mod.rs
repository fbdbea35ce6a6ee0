//! Training: the program of a step, the objective, the schedule, the loop, what it saves.

pub mod objective;
pub mod program;
pub mod schedule;
