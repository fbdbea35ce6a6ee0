//! The small world of `crosstune demo`: pictures, captions in six languages and uneven machine
//! translations, all made from a seed, so that the demo needs no download and no data folder.
//!
//! A [`scene::Scene`] is drawn and rendered ([`render`]). A small vision tower is taught to give the
//! picture the feature that a hand-made map ([`features`]) has for it. A [`grammar`] over a [`lexicon`] describes it ([`captions`]), and the same
//! grammar with mistakes ([`translate`]) stands in for machine translation. [`world::World`] puts
//! these together and [`tokenizer`] gives the captions a sub-word vocabulary.

mod adapt;
pub mod captions;
pub mod event;
pub mod features;
pub mod grammar;
mod html;
pub mod lexicon;
mod model;
pub mod png;
mod pretrain;
pub mod recipe;
pub mod render;
pub mod report;
pub mod rng;
pub mod run;
pub mod scene;
pub mod sight;
pub mod tokenizer;
mod tower;
pub mod translate;
mod vision;
pub mod world;
