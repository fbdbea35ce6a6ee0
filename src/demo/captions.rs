//! Captions: a language, a plan of what is said, then a sentence by the
//! [grammar](super::grammar).

use serde::{Deserialize, Serialize};

use super::grammar::realise;
use super::rng::Rng;
use super::scene::{Background, Colour, Object, Relation, Scene, Shape, Size};

/// A language of the demo; all six are languages of XTD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Language {
    En,
    De,
    Fr,
    Es,
    Tr,
    Ko,
}

impl Language {
    /// Every language, English first and the scarcest last.
    pub const ALL: [Language; 6] = [
        Language::En,
        Language::De,
        Language::Fr,
        Language::Es,
        Language::Tr,
        Language::Ko,
    ];

    /// The two-letter code.
    pub fn code(self) -> &'static str {
        match self {
            Language::En => "en",
            Language::De => "de",
            Language::Fr => "fr",
            Language::Es => "es",
            Language::Tr => "tr",
            Language::Ko => "ko",
        }
    }

    /// The language with that two-letter code.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|language| language.code() == code)
    }
}

/// How varied the words are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A person's: any pattern and any synonym.
    Native,
    /// A machine translator's: always the first pattern and the commonest word.
    Translated,
}

/// What a caption says of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mention {
    /// The shape is always named.
    pub shape: Shape,
    /// The colour, if named.
    pub colour: Option<Colour>,
    /// The size, if named.
    pub size: Option<Size>,
    /// Whether the stripes are named.
    pub striped: bool,
}

/// What a caption says, before any language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The pair in the order in which the relation reads.
    pub pair: [Mention; 2],
    /// The third object, if named.
    pub third: Option<Mention>,
    /// Where the first lies, seen from the second.
    pub relation: Relation,
    /// The background, if named.
    pub background: Option<Background>,
}

impl Plan {
    /// Chooses which object comes first and what goes unsaid.
    pub fn draw(scene: &Scene, rng: &mut Rng) -> Self {
        let pair = scene.pair.map(|object| mention(&object, rng));
        let third = scene.third.map(|object| mention(&object, rng));
        let background = (!rng.chance(0.1)).then_some(scene.background);
        let straight = Self {
            pair,
            third,
            relation: scene.relation,
            background,
        };
        if rng.chance(0.5) {
            straight.swapped()
        } else {
            straight
        }
    }

    fn swapped(self) -> Self {
        let [first, second] = self.pair;
        Self {
            pair: [second, first],
            relation: self.relation.inverse(),
            ..self
        }
    }
}

fn mention(object: &Object, rng: &mut Rng) -> Mention {
    Mention {
        shape: object.shape,
        colour: (!rng.chance(0.03)).then_some(object.colour),
        size: (!rng.chance(0.15)).then_some(object.size),
        striped: object.striped && !rng.chance(0.1),
    }
}

/// A person's caption of `scene`.
pub fn caption(scene: &Scene, language: Language, rng: &mut Rng) -> String {
    let plan = Plan::draw(scene, rng);
    realise(&plan, language, Style::Native, rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::scene::scenes;

    #[test]
    fn captions_are_clean_and_rarely_collide() {
        let scenes = scenes(3, 1000);
        for language in Language::ALL {
            let mut all: Vec<String> = (0..)
                .zip(&scenes)
                .map(|(i, scene)| caption(scene, language, &mut Rng::stream(9, i)))
                .collect();
            for text in &all {
                assert!(!text.contains(['{', '}', '[', ']']), "{text}");
                assert!(!text.contains("  ") && text.ends_with('.'), "{text}");
            }
            all.sort();
            all.dedup();
            assert!(all.len() > 990, "{language:?}: {}", all.len());
        }
    }

    #[test]
    fn one_scene_has_many_captions() {
        let scene = scenes(3, 1)[0];
        for language in Language::ALL {
            let mut rng = Rng::new(4);
            let mut all: Vec<String> = (0..20)
                .map(|_| caption(&scene, language, &mut rng))
                .collect();
            all.sort();
            all.dedup();
            assert!(all.len() >= 10, "{language:?}: {}", all.len());
        }
    }
}
