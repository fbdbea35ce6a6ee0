//! Uneven machine translation: the grammar once more, with the mistakes of a worse system.
//!
//! A translator says things the same way every time ([`Style::Translated`]), takes some words for
//! their neighbours, loses some and now and then puts two in the wrong order. How often depends on
//! the language: rarely in German, often in Korean.

use super::captions::{Language, Mention, Plan, Style};
use super::grammar::realise;
use super::rng::Rng;
use super::scene::{Background, Scene};

/// Chances of a mistake, each between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// That an attribute (shape, colour, background) is taken for another.
    pub confuse: f32,
    /// That an attribute goes unsaid.
    pub forget: f32,
    /// That the relation is turned round.
    pub turn: f32,
    /// That a word is lost.
    pub drop: f32,
    /// That a word trades places with the next.
    pub swap: f32,
}

/// How badly this language is translated, in either direction.
pub fn noise(language: Language) -> Noise {
    let [confuse, forget, turn, drop, swap] = match language {
        Language::En => [0.0; 5],
        Language::De => [0.01, 0.02, 0.01, 0.005, 0.005],
        Language::Fr => [0.02, 0.03, 0.01, 0.01, 0.01],
        Language::Es => [0.04, 0.05, 0.03, 0.02, 0.02],
        Language::Tr => [0.12, 0.12, 0.10, 0.05, 0.06],
        Language::Ko => [0.16, 0.15, 0.15, 0.07, 0.08],
    };
    Noise {
        confuse,
        forget,
        turn,
        drop,
        swap,
    }
}

/// What a machine makes in `language` of an English caption of `scene`.
pub fn translate_from_en(scene: &Scene, language: Language, rng: &mut Rng) -> String {
    let plan = Plan::draw(scene, rng);
    translate_plan(&plan, language, language, rng)
}

/// What a machine makes in English of a caption of `scene` in `language`.
pub fn translate_to_en(scene: &Scene, language: Language, rng: &mut Rng) -> String {
    let plan = Plan::draw(scene, rng);
    translate_plan(&plan, language, Language::En, rng)
}

/// Says `plan` in `into` with the mistakes that are usual for `language`.
pub fn translate_plan(plan: &Plan, language: Language, into: Language, rng: &mut Rng) -> String {
    let noise = noise(language);
    let garbled = garble(plan, noise, rng);
    let text = realise(&garbled, into, Style::Translated, rng);
    shuffle_words(&text, noise, rng)
}

fn garble(plan: &Plan, noise: Noise, rng: &mut Rng) -> Plan {
    let pair = plan.pair.map(|mention| garble_mention(mention, noise, rng));
    let third = plan.third.filter(|_| !rng.chance(noise.forget));
    let third = third.map(|mention| garble_mention(mention, noise, rng));
    let relation = if rng.chance(noise.turn) {
        plan.relation.inverse()
    } else {
        plan.relation
    };
    let background = plan.background.filter(|_| !rng.chance(noise.forget));
    let background = background.map(|bg| {
        if rng.chance(noise.confuse) {
            rng.pick(&Background::ALL)
        } else {
            bg
        }
    });
    Plan {
        pair,
        third,
        relation,
        background,
    }
}

fn garble_mention(mention: Mention, noise: Noise, rng: &mut Rng) -> Mention {
    let Mention {
        shape,
        colour,
        size,
        striped,
    } = mention;
    let colour = colour.filter(|_| !rng.chance(noise.forget));
    Mention {
        shape: if rng.chance(noise.confuse) {
            shape.confused_with()
        } else {
            shape
        },
        colour: colour.map(|c| {
            if rng.chance(noise.confuse) {
                c.confused_with()
            } else {
                c
            }
        }),
        size: size.filter(|_| !rng.chance(noise.forget)),
        striped: striped && !rng.chance(noise.forget),
    }
}

fn shuffle_words(text: &str, noise: Noise, rng: &mut Rng) -> String {
    let mut words: Vec<&str> = text
        .split(' ')
        .filter(|_| !rng.chance(noise.drop))
        .collect();
    for i in 1..words.len() {
        if rng.chance(noise.swap) {
            words.swap(i - 1, i);
        }
    }
    if words.is_empty() {
        text.to_owned()
    } else {
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::scene::scenes;

    /// Share of translations that differ from a faultless one.
    fn faults(language: Language) -> f32 {
        let differs = |(i, scene): (u64, &Scene)| {
            let plan = Plan::draw(scene, &mut Rng::stream(1, i));
            let got = translate_plan(&plan, language, language, &mut Rng::stream(2, i));
            got != realise(&plan, language, Style::Translated, &mut Rng::new(0))
        };
        let scenes = scenes(1, 500);
        (0..).zip(&scenes).filter(|pair| differs(*pair)).count() as f32 / 500.0
    }

    #[test]
    fn scarce_languages_are_translated_worse() {
        let [en, de, fr, es, tr, ko] = Language::ALL.map(faults);
        assert_eq!(en, 0.0);
        assert!(
            de < fr && fr < es && es < tr && tr < ko,
            "{:?}",
            [de, fr, es, tr, ko]
        );
        assert!(de < 0.4 && ko > 0.8, "{de} {ko}");
    }

    #[test]
    fn a_seed_repeats() {
        let scene = scenes(1, 1)[0];
        let once = |seed| translate_to_en(&scene, Language::Ko, &mut Rng::new(seed));
        assert_eq!(once(3), once(3));
        let from = |seed| translate_from_en(&scene, Language::Tr, &mut Rng::new(seed));
        assert_eq!(from(3), from(3));
    }
}
