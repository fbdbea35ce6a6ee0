//! Training: the program of a step, the objective, the schedule, the loop, what it saves.

pub mod checkpoint;
pub mod config;
pub mod cost;
pub mod examples;
pub mod languages;
pub mod objective;
pub mod program;
pub mod schedule;
pub mod step;
pub mod trainer;
