//! What a vision tower's settings say that its tensors do not: heads, activation, eps.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::layout::Layout;
use super::{Sizes, VisionConfig};
use crate::bad_input;
use crate::error::{Error, Result};
use crate::ops::gelu::Gelu;
use crate::weights::checkpoint::Checkpoint;

/// The file of a folder of Hugging Face's.
const CONFIG: &str = "config.json";
/// That of OpenCLIP's.
pub(in crate::weights) const OPEN_CLIP: &str = "open_clip_config.json";

/// Settings of OpenCLIP's that make another tower of the same tensors, or of others, and the value with
/// which they do not.
const OTHER_TOWERS: [(&str, &str); 10] = [
    ("timm_model_name", "null"),
    ("ls_init_value", "null"),
    ("pool_type", "\"tok\""),
    ("global_average_pool", "false"),
    ("attentional_pool", "false"),
    ("no_ln_pre", "false"),
    ("input_patchnorm", "false"),
    ("act_kwargs", "{}"),
    ("norm_kwargs", "{}"),
    ("qk_norm", "false"),
];

/// Heads, activation and eps, and the sizes that were said with them.
pub(super) struct Settings {
    /// Who says so; the checkpoint where nothing else does.
    file: Option<PathBuf>,
    layout: Layout,
    heads: Heads,
    gelu: Gelu,
    layer_norm_eps: f32,
    /// Field, value.
    stated: Vec<(&'static str, u64)>,
}

enum Heads {
    /// So many.
    Are(u64),
    /// As many as there are of so many channels.
    Of(u64),
}

impl Settings {
    /// Reads the settings beside a checkpoint. OpenAI published none: its towers have heads of 64
    /// channels, the quick GELU, and an eps of 1e-5.
    pub(super) fn read(path: &Path, layout: Layout) -> Result<Settings> {
        let beside = |name: &str| {
            path.is_dir()
                .then(|| path.join(name))
                .filter(|p| p.is_file())
        };
        match layout {
            Layout::OpenAi => match beside(OPEN_CLIP) {
                Some(file) => open_clip(file),
                None => Ok(Settings {
                    file: None,
                    layout,
                    heads: Heads::Of(64),
                    gelu: Gelu::Quick,
                    layer_norm_eps: 1e-5,
                    stated: vec![],
                }),
            },
            Layout::HuggingFace | Layout::Dino => match beside(CONFIG) {
                Some(file) => hugging_face(file, layout),
                None => Err(Error::Read {
                    path: path.join(CONFIG),
                    source: std::io::Error::new(
                        std::io::ErrorKind::NotFound,
                        "no such file; copy the config.json that was published with the tower here",
                    ),
                }),
            },
        }
    }

    /// Joins settings and tensors.
    pub(super) fn join(&self, s: Sizes, weights: &Checkpoint) -> Result<VisionConfig> {
        let file = self.file.as_deref().unwrap_or(weights.path());
        self.check_stated(&s, file)?;
        let heads = self.heads(s.hidden, file)?;
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return Err(bad_input!(
                "{}: layer_norm_eps is {}, expected a small positive number such as 1e-5",
                file.display(),
                self.layer_norm_eps
            ));
        }
        Ok(VisionConfig {
            hidden: s.hidden,
            layers: s.layers,
            heads,
            ffn: s.ffn,
            patch: s.patch,
            grid: s.grid,
            embed_dim: s.projection.unwrap_or(s.hidden),
            gelu: self.gelu,
            layer_norm_eps: self.layer_norm_eps,
            patch_bias: self.layout == Layout::Dino,
            pre_norm: self.layout != Layout::Dino,
            projection: s.projection.is_some(),
        })
    }

    /// Fails where a size that was said is not that of the tensors.
    fn check_stated(&self, s: &Sizes, file: &Path) -> Result<()> {
        for (field, value) in &self.stated {
            let found = match *field {
                "hidden_size" | "width" => s.hidden,
                "num_hidden_layers" | "layers" => s.layers,
                "intermediate_size" => s.ffn,
                "patch_size" => s.patch,
                "projection_dim" | "embed_dim" => match s.projection {
                    Some(projection) => projection,
                    None => continue,
                },
                // DINOv2's is that of its first table.
                _ if self.layout == Layout::Dino => continue,
                _ => s.grid * s.patch,
            };
            if *value != found as u64 {
                return Err(bad_input!(
                    "{}: {field} is {value}, but the tensors say {found}; the files belong to \
                     different models",
                    file.display()
                ));
            }
        }
        Ok(())
    }

    fn heads(&self, hidden: usize, file: &Path) -> Result<usize> {
        match self.heads {
            Heads::Are(n) if n > 0 && (hidden as u64).is_multiple_of(n) => Ok(n as usize),
            Heads::Are(n) => Err(bad_input!(
                "{}: found {n} attention heads, expected a divisor of the width {hidden}",
                file.display()
            )),
            Heads::Of(n) if n > 0 && (hidden as u64).is_multiple_of(n) => Ok(hidden / n as usize),
            Heads::Of(n) => Err(bad_input!(
                "{}: found heads of {n} channels, expected a divisor of the width {hidden}",
                file.display()
            )),
        }
    }
}

/// A file of settings.
pub(in crate::weights) fn read_json(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).map_err(Error::read(file))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| bad_input!("{}: is not valid JSON: {e}", file.display()))?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(bad_input!(
            "{}: expected a JSON object of settings",
            file.display()
        )),
    }
}

/// A field that must be a count where it is there.
pub(in crate::weights) fn count(file: &Path, value: &Value, field: &str) -> Result<Option<u64>> {
    match value.get(field).filter(|v| !v.is_null()) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or_else(|| bad_input!("{}: {field} is {value}, expected a count", file.display())),
    }
}

fn stated(file: &Path, value: &Value, fields: &[&'static str]) -> Result<Vec<(&'static str, u64)>> {
    let mut out = Vec::new();
    for field in fields {
        if let Some(n) = count(file, value, field)? {
            out.push((*field, n));
        }
    }
    Ok(out)
}

/// `CLIPConfig`'s part for pictures, `CLIPVisionConfig`, or `Dinov2Config`. What a file leaves out is as
/// transformers has it: those of OpenAI's models leave out what is the default.
fn hugging_face(file: PathBuf, layout: Layout) -> Result<Settings> {
    let whole = read_json(&file)?;
    let nested = whole.get("vision_config").filter(|v| v.is_object());
    let value = nested.unwrap_or(&whole);
    let at = file.display();
    let gelu = activation(&file, value, layout)?;
    if value.get("use_swiglu_ffn").and_then(Value::as_bool) == Some(true) {
        return Err(bad_input!(
            "{at}: use_swiglu_ffn is true; towers with SwiGLU are not supported"
        ));
    }
    let default_eps = if layout == Layout::Dino { 1e-6 } else { 1e-5 };
    let eps = number(&file, value, "layer_norm_eps", default_eps)?;
    let heads = count(&file, value, "num_attention_heads")?.unwrap_or(12);
    let mut fields = vec![
        "hidden_size",
        "num_hidden_layers",
        "patch_size",
        "image_size",
    ];
    // What Dinov2Config calls so is no field of its own.
    if layout == Layout::HuggingFace {
        fields.push("intermediate_size");
    }
    let mut all = stated(&file, value, &fields)?;
    // Both towers of a CLIPModel project to one space: what its parts say of it is not read there, and
    // may be left at 512.
    if layout == Layout::HuggingFace {
        all.extend(stated(&file, &whole, &["projection_dim"])?);
    }
    Ok(Settings {
        file: Some(file),
        layout,
        heads: Heads::Are(heads),
        gelu,
        layer_norm_eps: eps as f32,
        stated: all,
    })
}

/// A field that must be a number where it is there.
pub(in crate::weights) fn number(
    file: &Path,
    value: &Value,
    field: &str,
    default: f64,
) -> Result<f64> {
    match value.get(field).filter(|v| !v.is_null()) {
        None => Ok(default),
        Some(found) => found
            .as_f64()
            .ok_or_else(|| bad_input!("{}: {field} is {found}, expected a number", file.display())),
    }
}

/// The `hidden_act` of Hugging Face's settings.
pub(in crate::weights) fn activation(file: &Path, value: &Value, layout: Layout) -> Result<Gelu> {
    let act = value.get("hidden_act").and_then(Value::as_str);
    match (act, layout) {
        (Some("quick_gelu"), _) | (None, Layout::HuggingFace) => Ok(Gelu::Quick),
        (Some("gelu"), _) | (None, _) => Ok(Gelu::Exact),
        (Some(other), _) => Err(bad_input!(
            "{}: hidden_act is \"{other}\", expected \"gelu\" or \"quick_gelu\"",
            file.display()
        )),
    }
}

/// OpenCLIP's settings: heads of 64 channels unless they say otherwise, the exact GELU unless it is the
/// quick one.
fn open_clip(file: PathBuf) -> Result<Settings> {
    let whole = read_json(&file)?;
    let model = whole.get("model_cfg").unwrap_or(&whole);
    let Some(vision) = model.get("vision_cfg").filter(|v| v.is_object()) else {
        return Err(bad_input!(
            "{}: has no model_cfg.vision_cfg, expected the settings of a ViT",
            file.display()
        ));
    };
    refuse_others(&file, "vision_cfg", vision, &OTHER_TOWERS)?;
    let mut all = stated(
        &file,
        vision,
        &["width", "layers", "patch_size", "image_size"],
    )?;
    all.extend(stated(&file, model, &["embed_dim"])?);
    Ok(Settings {
        heads: Heads::Of(count(&file, vision, "head_width")?.unwrap_or(64)),
        file: Some(file),
        layout: Layout::OpenAi,
        gelu: open_clip_gelu(model),
        layer_norm_eps: 1e-5,
        stated: all,
    })
}

/// Fails where OpenCLIP's settings of a tower ask for what is not `plain`.
pub(in crate::weights) fn refuse_others(
    file: &Path,
    part: &str,
    own: &Value,
    others: &[(&str, &str)],
) -> Result<()> {
    for (field, plain) in others {
        let found = own.get(field).filter(|v| !v.is_null());
        let found = found.map_or_else(|| plain.to_string(), Value::to_string);
        if found != *plain {
            return Err(bad_input!(
                "{}: {part}.{field} is {found}, expected {plain}; such towers are not supported",
                file.display()
            ));
        }
    }
    Ok(())
}

/// The activation of both of OpenCLIP's towers: the exact GELU unless it is the quick one.
pub(in crate::weights) fn open_clip_gelu(model: &Value) -> Gelu {
    match model.get("quick_gelu").and_then(Value::as_bool) {
        Some(true) => Gelu::Quick,
        _ => Gelu::Exact,
    }
}
