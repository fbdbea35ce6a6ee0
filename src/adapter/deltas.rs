//! Bottlenecks and Compacters of OpenDelta: their names, and their settings from tensors and
//! what is said beside them.

use serde_json::json;

use super::bottleneck::BottleneckConfig;
use super::compacter::CompacterConfig;
use super::delta_config::{Said, compacter_kind};
use super::found::Found;
use crate::bad_input;
use crate::error::Result;
use crate::weights::checkpoint::Checkpoint;

const PARALLEL: &str = ".parallel_adapter.modulelist.";
/// What stands between module and tensor.
const KINDS: [&str; 3] = [".adapter.modulelist.", PARALLEL, ".compactor."];

/// Our name for a tensor of a bottleneck or a Compacter; `None` for one of something else. A parallel
/// one has the name of the first module of its pair, of the last, or both: ours is the last.
///
/// The error is the rest of a sentence: an adapter at another place.
pub(super) fn own_name(name: &str) -> Option<std::result::Result<String, &'static str>> {
    let (kind, (module, rest)) = KINDS
        .iter()
        .find_map(|kind| Some((*kind, name.split_once(kind)?)))?;
    let block = module.strip_prefix("transformer.encoder.layer.");
    let place = match block.and_then(|b| b.split_once('.')) {
        Some((n, "attention.self")) if kind == PARALLEL => Some((n, "attention.output.dense")),
        Some((n, "intermediate.dense")) if kind == PARALLEL => Some((n, "output.dense")),
        Some((n, place @ ("attention.output.dense" | "output.dense"))) => Some((n, place)),
        _ => None,
    };
    Some(match place {
        Some((n, place)) => Ok(format!("transformer.encoder.layer.{n}.{place}{kind}{rest}")),
        None => Err(
            "is of an adapter at another place than attention.output.dense and output.dense, before \
             the layer norms, where crosstune has its own",
        ),
    })
}

/// OpenDelta's name for a tensor of ours. A parallel adapter has that of the first module of its pair,
/// which comes first where parameters are named.
pub(super) fn their_name(own: &str) -> String {
    match own.split_once(PARALLEL) {
        Some((module, rest)) => {
            let attention = module.strip_suffix("attention.output.dense");
            let block = attention.or(module.strip_suffix("output.dense"));
            let first = match attention {
                Some(_) => "attention.self",
                None => "intermediate.dense",
            };
            format!("{}{first}{PARALLEL}{rest}", block.unwrap_or(module))
        }
        None => own.into(),
    }
}

/// Settings of the bottlenecks, if there are any.
pub(super) fn bottleneck(
    found: &Found,
    file: &Checkpoint,
    said: &mut Said,
) -> Result<Option<BottleneckConfig>> {
    let first = found.names.iter();
    let mut first = first.filter(|(own, _)| own.ends_with(".modulelist.down_proj.weight"));
    let Some((own, name)) = first.next() else {
        return Ok(None);
    };
    said.expect_activation("gelu_new", "OpenDelta's and PECTVLM's")?;
    said.expect("scaled", &json!(1))?;
    Ok(Some(BottleneckConfig {
        channels: extent(file, name)?,
        parallel: own.contains(PARALLEL),
    }))
}

/// Settings of the Compacters, if there are any, in a model of `hidden` channels.
pub(super) fn compacter(
    found: &Found,
    file: &Checkpoint,
    said: &mut Said,
    hidden: usize,
) -> Result<Option<CompacterConfig>> {
    let mut rules = found.names.iter().filter_map(|(own, name)| {
        let module = own.strip_suffix(".down_sampler.phm_rule")?;
        Some((module, name))
    });
    let Some((module, rule)) = rules.next() else {
        return Ok(None);
    };
    // CompacterModel has another default than CompacterConfig, which PECTVLM goes through.
    said.expect_activation("relu", "PECTVLM's")?;
    for (field, want) in compacter_kind() {
        said.expect(field, &want)?;
    }
    let bias = format!("{module}.down_sampler.b");
    let Some(name) = found.names.get(&bias) else {
        return Err(bad_input!(
            "{}: has no tensor for {bias}",
            file.path().display()
        ));
    };
    let saved = said.saved.as_ref().and_then(|s| s.compacter.as_ref());
    let config = said.number("reduction_factor")?;
    let reduction = config.map(|n| n as usize).or(saved.map(|s| s.reduction));
    let width = extent(file, name)?;
    // Of all that give this width, the largest.
    let least = hidden.checked_div(width).unwrap_or(0);
    Ok(Some(CompacterConfig {
        reduction: reduction.unwrap_or(least),
        phm_dim: extent(file, rule)?,
    }))
}

/// The first extent of a tensor.
fn extent(file: &Checkpoint, name: &str) -> Result<usize> {
    let view = file.tensor(name)?;
    match view.shape.first() {
        Some(n) => Ok(*n),
        None => Err(bad_input!(
            "{}: {name} is a single number",
            file.path().display()
        )),
    }
}
