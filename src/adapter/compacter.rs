//! Compacter adapters (Karimi Mahabadi et al., "Compacter: efficient low-rank hypercomplex adapter
//! layers", 2021).
//!
//! On what both sub-layers of a block give, before dropout, residual and layer norm:
//! `y = d + up(relu(down(d)))`, where `down` and `up` are hypercomplex layers of rank one, each with
//! a rule of its own, as OpenDelta computes it.

use crate::bad_input;
use crate::error::Result;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::ops::activation::{Activation, Kind};
use crate::ops::add::Add;
use crate::ops::philox::Stream;
use crate::ops::phm::{Phm, Weights};

/// Standard deviation of the initial rules; biases begin at 0.
const INITIAL_STD: f32 = 0.01;

/// A Compacter after `attention.output.dense` and `output.dense` of every block.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CompacterConfig {
    /// The bottleneck has this many times fewer channels than the model, rounded down.
    pub reduction: usize,
    /// n: blocks of a hypercomplex layer, and its terms.
    pub phm_dim: usize,
}

impl Default for CompacterConfig {
    /// OpenDelta's: a 16th of the channels, n = 4.
    fn default() -> CompacterConfig {
        CompacterConfig {
            reduction: 16,
            phm_dim: 4,
        }
    }
}

impl CompacterConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// A reduction or an n of 0.
    pub fn check(&self) -> Result<()> {
        for (name, n) in [("reduction", self.reduction), ("phm-dim", self.phm_dim)] {
            if n == 0 {
                return Err(bad_input!("{name}: found 0, expected at least 1"));
            }
        }
        Ok(())
    }

    /// Checks that a model of `hidden` channels and its bottleneck fall into n blocks.
    ///
    /// # Errors
    /// If they don't, and those of [`CompacterConfig::check`].
    pub fn check_width(&self, hidden: usize) -> Result<()> {
        self.check()?;
        let (n, bottleneck) = (self.phm_dim, hidden / self.reduction);
        if !hidden.is_multiple_of(n) {
            return Err(bad_input!(
                "phm-dim: {n} does not divide the model's {hidden} channels; choose a divisor"
            ));
        }
        if bottleneck == 0 || !bottleneck.is_multiple_of(n) {
            return Err(bad_input!(
                "reduction: {hidden} channels over {} make a bottleneck of {bottleneck}; expected a \
                 multiple of phm-dim, {n}",
                self.reduction
            ));
        }
        Ok(())
    }

    /// Adds the adapter of `module` to its result (T, C); returns the new result.
    pub fn push(&self, g: &mut Graph, module: &str, inp: ValueId) -> ValueId {
        let name = format!("{module}.compactor");
        let c = g.channels(inp);
        let b = c / self.reduction;
        let down = self.layer(g, &format!("{name}.down_sampler"), inp, b);
        let act = Activation::push(g, &format!("{name}.act"), Kind::Relu, down);
        let up = self.layer(g, &format!("{name}.up_sampler"), act, c);
        Add::push(g, &name, (inp, up))
    }

    /// A trainable layer from (T, K) to (T, OC).
    fn layer(&self, g: &mut Graph, name: &str, inp: ValueId, oc: usize) -> ValueId {
        let (n, k) = (self.phm_dim, g.channels(inp));
        let mut param = |which: &str, shape: &[usize]| {
            let dims = shape.iter().map(|n| Dim::N(*n));
            let dims = std::iter::once(Dim::Members).chain(dims).collect();
            g.value(format!("{name}.{which}"), dims, Role::Trainable)
        };
        let weights = Weights {
            rule: param("phm_rule", &[n, n, n]),
            left: param("W_left", &[n, k / n, 1]),
            right: param("W_right", &[n, 1, oc / n]),
            bias: param("b", &[oc]),
        };
        Phm::push(g, name, inp, weights)
    }
}

/// Initial values of a tensor of a Compacter: OpenDelta's. Rules are normal, `W_left` and `W_right`
/// uniform after Glorot with the gain of ReLU, slice by slice.
pub fn initial(name: &str, shape: &[usize], seed: u64) -> Option<Vec<f32>> {
    let (_, rest) = name.rsplit_once(".compactor.")?;
    let (_, which) = rest.rsplit_once('.')?;
    let len = shape.iter().product();
    let stream = Stream::named(seed, name);
    match (which, shape) {
        ("phm_rule", _) => Some(stream.normal(len, INITIAL_STD)),
        ("W_left" | "W_right", [_, rows, columns]) => {
            let bound = 2f32.sqrt() * (6.0 / (rows + columns) as f32).sqrt();
            Some(stream.uniform(len, bound))
        }
        ("b", _) => Some(vec![0.0; len]),
        _ => None,
    }
}
