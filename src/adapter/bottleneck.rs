//! Bottleneck adapters (Houlsby et al., "Parameter-efficient transfer learning for NLP", 2019), and
//! parallel ones (He et al., "Towards a unified view of parameter-efficient transfer learning",
//! 2022).
//!
//! On what both sub-layers of a block give, before dropout, residual and layer norm:
//! `y = d + up(gelu_tanh(down(d)))`, as OpenDelta computes it. A parallel one stands beside the
//! sub-layer: it reads what the sub-layer read, `y = d + up(gelu_tanh(down(x)))`, with a scale of 1.
//! That is OpenDelta's `ParallelAdapterModel` with `modified_modules` of `attention.self`,
//! `attention.output.dense`, `intermediate.dense` and `output.dense`; its default for the first pair
//! is `attention` as a whole, which adds after the layer norm.

use crate::bad_input;
use crate::error::Result;
use crate::graph::{Dim, Graph, Role, ValueId};
use crate::ops::activation::{Activation, Kind};
use crate::ops::add::Add;
use crate::ops::linear::{Layer, Linear};
use crate::ops::philox::Stream;
use crate::text::pack::Rows;

/// Standard deviation of the initial weights; biases begin at 0.
const INITIAL_STD: f32 = 0.01;

/// A bottleneck at `attention.output.dense` and `output.dense` of every block.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BottleneckConfig {
    /// Channels of the bottleneck.
    pub channels: usize,
    /// Whether it reads what the sub-layer reads, and not what it gives.
    #[serde(default)]
    pub parallel: bool,
}

impl Default for BottleneckConfig {
    /// OpenDelta's: 24 channels, after the sub-layer.
    fn default() -> BottleneckConfig {
        BottleneckConfig {
            channels: 24,
            parallel: false,
        }
    }
}

impl BottleneckConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// No channels.
    pub fn check(&self) -> Result<()> {
        match self.channels {
            0 => Err(bad_input!("bottleneck: found 0, expected at least 1")),
            _ => Ok(()),
        }
    }

    /// What OpenDelta calls it.
    fn kind(&self) -> &'static str {
        match self.parallel {
            true => "parallel_adapter",
            false => "adapter",
        }
    }

    /// Adds the adapter of `module`, the last linear layer of a sub-layer, to its result `out`
    /// (T, C); `inp` (T, C) is what the sub-layer read. Returns the new result.
    pub fn push(&self, g: &mut Graph, module: &str, out: ValueId, inp: ValueId) -> ValueId {
        let adapter = format!("{module}.{}", self.kind());
        let name = format!("{adapter}.modulelist");
        let inp = if self.parallel { inp } else { out };
        let (c, b) = (g.channels(out), self.channels);
        let down = layer(g, &format!("{name}.down_proj"), [b, c]);
        let down = Linear::push(
            g,
            &format!("{name}.down"),
            (inp, Rows::Tokens),
            &[down],
            None,
        );
        let act = Activation::push(g, &format!("{name}.act"), Kind::GeluTanh, down);
        let up = layer(g, &format!("{name}.up_proj"), [c, b]);
        let up = Linear::push(g, &format!("{name}.up"), (act, Rows::Tokens), &[up], None);
        Add::push(g, &adapter, (out, up))
    }
}

/// A trainable linear layer (OC, K).
fn layer(g: &mut Graph, name: &str, [oc, k]: [usize; 2]) -> Layer {
    let weight = vec![Dim::Members, Dim::N(oc), Dim::N(k)];
    let bias = vec![Dim::Members, Dim::N(oc)];
    Layer {
        weight: g.value(format!("{name}.weight"), weight, Role::Trainable),
        bias: Some(g.value(format!("{name}.bias"), bias, Role::Trainable)),
        lora: None,
    }
}

/// Initial values of a tensor of a bottleneck: OpenDelta's.
pub fn initial(name: &str, len: usize, seed: u64) -> Option<Vec<f32>> {
    let (module, rest) = name.rsplit_once(".modulelist.")?;
    let kinds = [".adapter", ".parallel_adapter"];
    kinds.iter().find(|kind| module.ends_with(*kind))?;
    match rest.ends_with(".weight") {
        true => Some(Stream::named(seed, name).normal(len, INITIAL_STD)),
        false => Some(vec![0.0; len]),
    }
}
