//! The names that a vision tower's tensors have in published files.

use std::collections::HashSet;

use super::{Sizes, VisionConfig, dims, grid_of};
use crate::bad_input;
use crate::error::Result;
use crate::model::vision::names;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::stored::{How, Place};

/// Whose names they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::weights) enum Layout {
    /// Hugging Face's CLIP: `vision_model.encoder.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// OpenAI's CLIP and OpenCLIP: `visual.transformer.resblocks.0.attn.in_proj_weight`.
    OpenAi,
    /// Hugging Face's DINOv2: `encoder.layer.0.attention.attention.query.weight`.
    Dino,
}

/// The three linear layers of attention side by side, in the order of OpenAI's fused tensor.
const QKV: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
/// The same as DINOv2 calls them.
const DINO_QKV: [&str; 3] = ["query", "key", "value"];

impl Layout {
    /// Recognises a checkpoint by its patches' embedding.
    pub(super) fn of(weights: &Checkpoint) -> Result<Layout> {
        let all = [Layout::HuggingFace, Layout::OpenAi, Layout::Dino];
        let known = all.into_iter().find(|l| weights.get(l.patch()).is_some());
        known.ok_or_else(|| {
            let first: Vec<_> = weights.names().take(3).collect();
            bad_input!(
                "{}: is no vision tower: it has none of {}; its names begin with {}",
                weights.path().display(),
                all.map(Layout::patch).join(", "),
                first.join(", ")
            )
        })
    }

    fn patch(self) -> &'static str {
        match self {
            Layout::HuggingFace => "vision_model.embeddings.patch_embedding.weight",
            Layout::OpenAi => "visual.conv1.weight",
            Layout::Dino => "embeddings.patch_embeddings.projection.weight",
        }
    }

    /// What stands in front of a block's number.
    fn blocks(self) -> &'static str {
        match self {
            Layout::HuggingFace => "vision_model.encoder.layers.",
            Layout::OpenAi => "visual.transformer.resblocks.",
            Layout::Dino => "encoder.layer.",
        }
    }

    fn up(self) -> &'static str {
        match self {
            Layout::OpenAi => "mlp.c_fc",
            Layout::HuggingFace | Layout::Dino => "mlp.fc1",
        }
    }

    fn position(self) -> &'static str {
        match self {
            Layout::HuggingFace => "vision_model.embeddings.position_embedding.weight",
            Layout::OpenAi => "visual.positional_embedding",
            Layout::Dino => "embeddings.position_embeddings",
        }
    }

    /// DINOv2's table for pictures of that side, which lies beside the one it was trained with.
    fn table(self, weights: &Checkpoint, side: Option<usize>) -> String {
        let own = side.map(|side| format!("{}_{side}", self.position()));
        own.filter(|own| self == Layout::Dino && weights.get(own).is_some())
            .unwrap_or_else(|| self.position().into())
    }

    /// Patches of a side of the pictures that a table is for.
    fn table_grid(self, weights: &Checkpoint, table: &str) -> Result<usize> {
        let rows = match self {
            Layout::Dino => dims::<3>(weights, table)?[1],
            _ => dims::<2>(weights, table)?[0],
        };
        grid_of(weights, table, rows)
    }

    /// What the tensors say.
    pub(super) fn sizes(self, weights: &Checkpoint, side: Option<usize>) -> Result<Sizes> {
        let [hidden, channels, patch, width] = dims(weights, self.patch())?;
        if channels != 3 || patch != width {
            return Err(bad_input!(
                "{}: {} has patches of {patch} x {width} in {channels} channels, expected squares in 3",
                weights.path().display(),
                self.patch()
            ));
        }
        let table = self.table(weights, side);
        let own = self.table_grid(weights, &table)?;
        let grid = match side {
            // DINOv2 resamples its table, as Hugging Face's does.
            Some(side) if self == Layout::Dino && side > 0 && side.is_multiple_of(patch) => {
                side / patch
            }
            Some(side) if side != own * patch => {
                let expected = match self {
                    Layout::Dino => format!("a multiple of {patch}"),
                    _ => "pictures of that size: CLIP resamples no table".into(),
                };
                return Err(bad_input!(
                    "{}: {table} is for pictures of {} x {}, but its preprocessing makes {side} x \
                     {side}, expected {expected}",
                    weights.path().display(),
                    own * patch,
                    own * patch,
                ));
            }
            _ => own,
        };
        let projection = match self {
            Layout::HuggingFace if weights.get(names::PROJECTION).is_some() => {
                Some(dims::<2>(weights, names::PROJECTION)?[0])
            }
            Layout::OpenAi if weights.get("visual.proj").is_some() => {
                Some(dims::<2>(weights, "visual.proj")?[1])
            }
            _ => None,
        };
        let up = format!("{}0.{}.weight", self.blocks(), self.up());
        Ok(Sizes {
            hidden,
            layers: self.count_layers(weights)?,
            ffn: dims::<2>(weights, &up)?[0],
            patch,
            grid,
            projection,
        })
    }

    /// One more than the highest block; a gap shows as a missing tensor.
    fn count_layers(self, weights: &Checkpoint) -> Result<usize> {
        let number = |name: &str| {
            let rest = name.strip_prefix(self.blocks())?;
            rest.split('.').next()?.parse::<usize>().ok()
        };
        let highest = weights.names().filter_map(number).max();
        // A block has at least 12 tensors: a number beyond their count is damage, not a deep tower.
        match highest {
            Some(highest) if highest < weights.len() => Ok(highest + 1),
            _ => Err(bad_input!(
                "{}: has no blocks; expected tensors called {}0.{}.weight and so on",
                weights.path().display(),
                self.blocks(),
                self.up()
            )),
        }
    }

    /// Where each value of the tower lies.
    pub(super) fn places(self, c: &VisionConfig, weights: &Checkpoint) -> Vec<Place> {
        let mut out = self.embeddings(c, weights);
        let dims = [c.hidden];
        let [pre_norm, post_norm] = match self {
            Layout::HuggingFace => [names::PRE_NORM, names::POST_NORM],
            Layout::OpenAi => ["visual.ln_pre", "visual.ln_post"],
            Layout::Dino => ["", "layernorm"],
        };
        if c.pre_norm {
            out.extend(module(names::PRE_NORM, pre_norm, &dims, How::Whole));
        }
        out.extend(module(names::POST_NORM, post_norm, &dims, How::Whole));
        for layer in 0..c.layers {
            let from = format!("{}{layer}", self.blocks());
            self.block((c.hidden, c.ffn), (&from, &names::block(layer)), &mut out);
        }
        if c.projection {
            let own = Place::whole(
                names::PROJECTION,
                names::PROJECTION,
                &[c.embed_dim, c.hidden],
            );
            out.push(match self {
                Layout::OpenAi => Place {
                    tensor: "visual.proj".into(),
                    shape: vec![c.hidden, c.embed_dim],
                    how: How::Transposed,
                    ..own
                },
                _ => own,
            });
        }
        out
    }

    /// Patches, class token and places.
    fn embeddings(self, c: &VisionConfig, weights: &Checkpoint) -> Vec<Place> {
        let patch = [c.hidden, 3, c.patch, c.patch];
        let table = self.table(weights, Some(c.image_size()));
        // Where it has no grid, the sizes could not be read, and nothing comes here.
        let own = self.table_grid(weights, &table).unwrap_or(c.grid);
        let how = match own == c.grid {
            true => How::Whole,
            false => How::Resampled(own, c.grid),
        };
        let rows = own * own + 1;
        let (class, class_dims, table_dims) = match self {
            Layout::HuggingFace => (names::CLASS, vec![c.hidden], vec![rows, c.hidden]),
            Layout::OpenAi => (
                "visual.class_embedding",
                vec![c.hidden],
                vec![rows, c.hidden],
            ),
            Layout::Dino => (
                "embeddings.cls_token",
                vec![1, 1, c.hidden],
                vec![1, rows, c.hidden],
            ),
        };
        let mut out = vec![
            Place::whole(names::PATCH, self.patch(), &patch),
            Place::whole(names::CLASS, class, &class_dims),
            Place {
                how,
                ..Place::whole(names::POSITION, table, &table_dims)
            },
        ];
        if c.patch_bias {
            let bias = "embeddings.patch_embeddings.projection.bias";
            out.push(Place::whole(names::PATCH_BIAS, bias, &[c.hidden]));
        }
        out
    }

    /// Where the values of a pre-LN block lie: those of a block called `to` in one called `from`.
    pub(in crate::weights) fn block(
        self,
        (hidden, ffn): (usize, usize),
        (from, to): (&str, &str),
        out: &mut Vec<Place>,
    ) {
        let dense = match self {
            Layout::HuggingFace => "self_attn.out_proj",
            Layout::OpenAi => "attn.out_proj",
            Layout::Dino => "attention.output.dense",
        };
        let [norm1, norm2, up, down] = match self {
            Layout::HuggingFace => ["layer_norm1", "layer_norm2", self.up(), "mlp.fc2"],
            Layout::OpenAi => ["ln_1", "ln_2", self.up(), "mlp.c_proj"],
            Layout::Dino => ["norm1", "norm2", self.up(), "mlp.fc2"],
        };
        // A scale of what a sub-layer gives is one of its last linear layer's rows.
        let scaled = |by: &str| match self {
            Layout::Dino => How::Scaled(format!("{from}.{by}.lambda1")),
            _ => How::Whole,
        };
        let square = [hidden, hidden];
        let modules: [(&str, &str, &[usize], How); 5] = [
            ("layer_norm1", norm1, &[hidden], How::Whole),
            ("layer_norm2", norm2, &[hidden], How::Whole),
            ("self_attn.out_proj", dense, &square, scaled("layer_scale1")),
            ("mlp.fc1", up, &[ffn, hidden], How::Whole),
            ("mlp.fc2", down, &[hidden, ffn], scaled("layer_scale2")),
        ];
        for (value, tensor, dims, how) in modules {
            let (value, tensor) = (format!("{to}.{value}"), format!("{from}.{tensor}"));
            out.extend(module(&value, &tensor, dims, how));
        }
        for (i, which) in QKV.into_iter().enumerate() {
            let value = format!("{to}.self_attn.{which}");
            let own = match self {
                Layout::HuggingFace => format!("{from}.self_attn.{which}"),
                Layout::Dino => format!("{from}.attention.attention.{}", DINO_QKV[i]),
                Layout::OpenAi => {
                    out.extend(fused(i, &value, &format!("{from}.attn.in_proj"), hidden));
                    continue;
                }
            };
            out.extend(module(&value, &own, &square, How::Whole));
        }
    }

    /// A tensor inside the tower that is not computed with would make a silently different one.
    pub(super) fn check_unknown(self, weights: &Checkpoint, c: &VisionConfig) -> Result<()> {
        let mut known = HashSet::new();
        for place in self.places(c, weights) {
            if let How::Scaled(by) = place.how {
                known.insert(by);
            }
            known.insert(place.tensor);
        }
        let ours = |name: &&str| match self {
            Layout::HuggingFace => name.starts_with("vision_model."),
            Layout::OpenAi => name.starts_with("visual."),
            Layout::Dino => true,
        };
        let buffer = |name: &str| {
            name.ends_with("position_ids")
                || name == "embeddings.mask_token"
                || name.starts_with("embeddings.position_embeddings")
        };
        let mut all = weights.names().filter(ours);
        match all.find(|name| !known.contains(*name) && !buffer(name)) {
            None => Ok(()),
            Some(name) => Err(bad_input!(
                "{}: has the tensor {name}, which is no part of a vision tower that is known here",
                weights.path().display()
            )),
        }
    }
}

/// Weight and bias of a module of that weight, which both lie in the same way.
fn module(value: &str, tensor: &str, dims: &[usize], how: How) -> [Place; 2] {
    ["weight", "bias"].map(|part| {
        let shape = if part == "weight" { dims } else { &dims[..1] };
        let place = Place::whole(format!("{value}.{part}"), format!("{tensor}.{part}"), shape);
        Place {
            how: how.clone(),
            ..place
        }
    })
}

/// Weight and bias of the `i`th of three linear layers in one tensor.
fn fused(i: usize, value: &str, tensor: &str, hidden: usize) -> [Place; 2] {
    let parts = [
        ("weight", vec![3 * hidden, hidden]),
        ("bias", vec![3 * hidden]),
    ];
    parts.map(|(part, shape)| Place {
        value: format!("{value}.{part}"),
        tensor: format!("{tensor}_{part}"),
        shape,
        how: How::Rows(i * hidden..(i + 1) * hidden),
    })
}
