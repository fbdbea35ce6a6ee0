//! How unequal languages are served, from their recalls.

use serde::{Deserialize, Serialize};

use crate::bad_input;
use crate::error::Result;

/// A language and its mean R@1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LanguageScore {
    /// The language's code.
    pub language: String,
    /// Mean of image-to-text and text-to-image R@1, 0 to 1.
    pub mean_r1: f64,
}

/// Distances between languages, in units of R@1 (0 to 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disparity {
    /// Largest minus smallest mean R@1; English counts when it is among the languages.
    pub spread: f64,
    /// sqrt(mean((r_l - r_en)^2)) over the languages other than English.
    pub std_to_english: f64,
    /// The language with the smallest mean R@1, the first of equals.
    pub worst: LanguageScore,
    /// The language with the largest mean R@1, the first of equals.
    pub best: LanguageScore,
}

/// The disparity of `scores` against `english`, the mean R@1 of English on the same images.
///
/// # Errors
/// When no score is of a language other than English (`en`), or a score is not a number.
pub fn disparity(scores: &[LanguageScore], english: f64) -> Result<Disparity> {
    let others: Vec<f64> = scores
        .iter()
        .filter(|s| s.language != "en")
        .map(|s| s.mean_r1)
        .collect();
    let ([first, rest @ ..], false) = (scores, others.is_empty()) else {
        return Err(bad_input!(
            "disparity: expected the recall of a language other than English, found none; evaluate \
             one"
        ));
    };
    let unsound = scores.iter().find(|s| !s.mean_r1.is_finite());
    if let Some(score) = unsound {
        return Err(bad_input!(
            "disparity: the recall of `{}` is not a number",
            score.language
        ));
    }
    if !english.is_finite() {
        return Err(bad_input!(
            "disparity: the recall of English is not a number"
        ));
    }
    let (mut worst, mut best) = (first, first);
    for score in rest {
        if score.mean_r1 < worst.mean_r1 {
            worst = score;
        }
        if score.mean_r1 > best.mean_r1 {
            best = score;
        }
    }
    let squares: f64 = others.iter().map(|r| (r - english).powi(2)).sum();
    Ok(Disparity {
        spread: best.mean_r1 - worst.mean_r1,
        std_to_english: (squares / others.len() as f64).sqrt(),
        worst: worst.clone(),
        best: best.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(list: &[(&str, f64)]) -> Vec<LanguageScore> {
        let score = |&(language, mean_r1): &(&str, f64)| LanguageScore {
            language: language.to_owned(),
            mean_r1,
        };
        list.iter().map(score).collect()
    }

    #[test]
    fn by_hand() {
        let list = scores(&[("de", 0.5), ("en", 0.75), ("fr", 0.5), ("jp", 0.25)]);
        let found = disparity(&list, 0.75).unwrap();
        assert_eq!(found.spread, 0.5);
        assert_eq!(found.std_to_english, (0.375f64 / 3.0).sqrt());
        assert_eq!(
            (found.worst, found.best),
            (list[3].clone(), list[1].clone())
        );
        let one = disparity(&scores(&[("de", 0.5)]), 0.5).unwrap();
        assert_eq!((one.spread, one.std_to_english), (0.0, 0.0));
    }

    #[test]
    fn faults_are_named() {
        for list in [scores(&[]), scores(&[("en", 0.5)])] {
            assert!(
                disparity(&list, 0.5)
                    .unwrap_err()
                    .to_string()
                    .contains("other than English")
            );
        }
        let error = disparity(&scores(&[("de", f64::NAN)]), 0.5)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`de`"), "{error}");
    }
}
