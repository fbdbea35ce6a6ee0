//! M-CLIP's published models, as far as counting needs them: no file is read.

use super::config::{Encoder, TensorSizes, TextConfig};
use super::preset::{PRESET_DROPOUT, PRESETS};

/// The model of the paper.
pub const PAPERS: &str = "xlm-roberta-large-vit-l-14";

/// Name, encoder (as `modelBase` says it) and width of the joint space.
const MODELS: [(&str, &str, usize); 4] = [
    (PAPERS, "xlm-roberta-large", 768),
    ("xlm-roberta-large-vit-b-32", "xlm-roberta-large", 512),
    ("xlm-roberta-large-vit-b-16plus", "xlm-roberta-large", 640),
    ("labse-vit-l-14", "LaBSE", 768),
];

/// Names of the models, in no matter what case.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|m| m.0)
}

/// The settings of a published model.
pub fn find(name: &str) -> Option<TextConfig> {
    let (_, base, embed_dim) = MODELS.iter().find(|m| m.0.eq_ignore_ascii_case(name))?;
    let preset = PRESETS.iter().find(|p| p.names.contains(base))?;
    let (vocab, max_positions, token_types) = match preset.encoder {
        Encoder::XlmRoberta => (250_002, 514, 1),
        Encoder::Bert | Encoder::Clip(_) => (501_153, 512, 2),
    };
    Some(TextConfig {
        encoder: preset.encoder,
        vocab,
        hidden: preset.hidden,
        layers: preset.layers,
        heads: preset.heads,
        ffn: 4 * preset.hidden,
        max_positions,
        token_types,
        layer_norm_eps: preset.layer_norm_eps as f32,
        pad_id: preset.pad_id as u32,
        hidden_dropout: PRESET_DROPOUT as f32,
        attention_dropout: PRESET_DROPOUT as f32,
        embed_dim: *embed_dim,
    })
}

impl TextConfig {
    /// The sizes that a checkpoint of it says.
    pub fn sizes(&self) -> TensorSizes {
        TensorSizes {
            vocab: self.vocab,
            hidden: self.hidden,
            layers: self.layers,
            ffn: self.ffn,
            max_positions: self.max_positions,
            token_types: self.token_types,
            head: Some(self.embed_dim),
        }
    }

    /// Parameters of a model with a head, and with the pooler that M-CLIP's files have and no
    /// feature uses.
    pub fn parameters(&self) -> usize {
        let (c, ffn) = (self.hidden, self.ffn);
        let norm = 2 * c;
        let linear = |oc: usize, k: usize| oc * k + oc;
        let tables = (self.vocab + self.max_positions + self.token_types) * c;
        let block = 4 * linear(c, c) + linear(ffn, c) + linear(c, ffn) + 2 * norm;
        if let Encoder::Clip(_) = self.encoder {
            // A last norm, and a projection without a bias.
            return tables + self.layers * block + norm + self.embed_dim * c;
        }
        tables + norm + self.layers * block + linear(c, c) + linear(self.embed_dim, c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_published_files() {
        // Counted by PyTorch on M-CLIP/XLM-Roberta-Large-Vit-L-14, the encoder alone before.
        let large = find("XLM-Roberta-Large-Vit-L-14").unwrap();
        assert_eq!(large.parameters() - (768 * 1024 + 768), 559_890_432);
        assert_eq!(large.parameters(), 560_677_632);
        assert!(names().all(|name| find(name).is_some()));
        assert!(find("xlm-roberta-base").is_none());
    }
}
