//! The objective: which text meets the image, which text meets that text, and how much it counts.
//!
//! Zhang, Wang and Wang, Findings of EMNLP 2023; the names of their scripts are accepted beside ours.

use std::fmt;
use std::str::FromStr;

use crate::data::Role;
use crate::error::Error;
use crate::exec::LossWeights;

/// Which texts are trained on, and against what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The target caption meets the image.
    Baseline1,
    /// The target caption translated to English meets the image.
    Baseline2,
    /// The target caption meets the image; the English caption meets it.
    Routine1,
    /// The target caption meets the image; the English caption translated to the target meets it.
    Routine2,
    /// The target caption translated to English meets the image; the English caption meets it.
    Routine3,
}

/// How anchor and partner are drawn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextLoss {
    /// Mean squared error of the features, not normalised.
    Mse,
    /// itc(partner, anchor).
    Contrastive,
    /// itc(image, partner).
    ContrastiveWithImage,
}

impl Strategy {
    /// All, in the order of the paper.
    pub const ALL: [Strategy; 5] = [
        Strategy::Baseline1,
        Strategy::Baseline2,
        Strategy::Routine1,
        Strategy::Routine2,
        Strategy::Routine3,
    ];

    /// The text that is paired with the image; evaluation uses it too.
    pub fn anchor(self) -> Role {
        match self {
            Strategy::Baseline1 | Strategy::Routine1 | Strategy::Routine2 => Role::Target,
            Strategy::Baseline2 | Strategy::Routine3 => Role::ToEnglish,
        }
    }

    /// The text that the anchor is drawn to.
    pub fn partner(self) -> Option<Role> {
        match self {
            Strategy::Baseline1 | Strategy::Baseline2 => None,
            Strategy::Routine1 | Strategy::Routine3 => Some(Role::English),
            Strategy::Routine2 => Some(Role::FromEnglish),
        }
    }

    /// Weights of the objective's terms.
    pub fn weights(self, text_loss: TextLoss, ratio: f32, stop_partner: bool) -> LossWeights {
        let mut w = LossWeights {
            image_anchor: 1.0,
            stop_partner,
            ..LossWeights::default()
        };
        if self.partner().is_some() {
            match text_loss {
                TextLoss::Mse => w.mse = ratio,
                TextLoss::Contrastive => w.partner_anchor = ratio,
                TextLoss::ContrastiveWithImage => w.image_partner = ratio,
            }
        }
        w
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strategy::Baseline1 => "baseline1",
            Strategy::Baseline2 => "baseline2",
            Strategy::Routine1 => "routine1",
            Strategy::Routine2 => "routine2",
            Strategy::Routine3 => "routine3",
        })
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(s: &str) -> Result<Strategy, Error> {
        let plain: String = s
            .to_lowercase()
            .chars()
            .filter(|c| !"_- ".contains(*c))
            .collect();
        let name = plain.replace("method", "routine");
        Strategy::ALL
            .into_iter()
            .find(|k| k.to_string() == name)
            .ok_or_else(|| {
                crate::bad_input!(
                    "strategy: found `{s}`, expected baseline1, baseline2, routine1, routine2 or \
                 routine3 (method1 to method3 are the routines)"
                )
            })
    }
}

impl fmt::Display for TextLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TextLoss::Mse => "mse",
            TextLoss::Contrastive => "contrastive",
            TextLoss::ContrastiveWithImage => "contrastive-with-image",
        })
    }
}

impl FromStr for TextLoss {
    type Err = Error;

    fn from_str(s: &str) -> Result<TextLoss, Error> {
        match s.to_lowercase().replace('_', "-").as_str() {
            "mse" => Ok(TextLoss::Mse),
            "contrastive" => Ok(TextLoss::Contrastive),
            "contrastive-with-image" => Ok(TextLoss::ContrastiveWithImage),
            _ => Err(crate::bad_input!(
                "text loss: found `{s}`, expected mse, contrastive or contrastive-with-image"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_original_are_accepted() {
        for (name, want) in [
            ("method1", Strategy::Routine1),
            ("method_2", Strategy::Routine2),
            ("routine_3", Strategy::Routine3),
            ("baseline_1", Strategy::Baseline1),
            ("Baseline2", Strategy::Baseline2),
        ] {
            assert_eq!(name.parse::<Strategy>().ok(), Some(want), "{name}");
        }
        assert!("method4".parse::<Strategy>().is_err());
        let loss = "contrastive_with_image".parse::<TextLoss>().ok();
        assert_eq!(loss, Some(TextLoss::ContrastiveWithImage));
        assert!("cosine_mse".parse::<TextLoss>().is_err());
    }
}
