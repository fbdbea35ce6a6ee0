//! Published encoders whose M-CLIP config.json says no more than a name.

use crate::weights::config::Encoder;

/// A published encoder, by the name that M-CLIP's config.json gives in modelBase.
pub(crate) struct Preset {
    pub names: &'static [&'static str],
    pub encoder: Encoder,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub layer_norm_eps: f64,
    pub pad_id: u64,
}

/// All presets have GELU and both dropouts at 0.1.
pub(crate) const PRESET_DROPOUT: f64 = 0.1;

pub(crate) const PRESETS: [Preset; 4] = [
    Preset {
        names: &["xlm-roberta-base", "FacebookAI/xlm-roberta-base"],
        encoder: Encoder::XlmRoberta,
        hidden: 768,
        layers: 12,
        heads: 12,
        layer_norm_eps: 1e-5,
        pad_id: 1,
    },
    Preset {
        names: &["xlm-roberta-large", "FacebookAI/xlm-roberta-large"],
        encoder: Encoder::XlmRoberta,
        hidden: 1024,
        layers: 24,
        heads: 16,
        layer_norm_eps: 1e-5,
        pad_id: 1,
    },
    Preset {
        names: &["LaBSE", "sentence-transformers/LaBSE"],
        encoder: Encoder::Bert,
        hidden: 768,
        layers: 12,
        heads: 12,
        layer_norm_eps: 1e-12,
        pad_id: 0,
    },
    Preset {
        names: &[
            "bert-base-multilingual-cased",
            "google-bert/bert-base-multilingual-cased",
        ],
        encoder: Encoder::Bert,
        hidden: 768,
        layers: 12,
        heads: 12,
        layer_norm_eps: 1e-12,
        pad_id: 0,
    },
];
