//! From a plan to a sentence: fills a pattern of the lexicon with noun phrases in the form that the
//! language asks for.

use super::captions::{Language, Mention, Plan, Style};
use super::lexicon::{Adjective, Gender, Lexicon, Noun, lexicon};
use super::rng::Rng;
use super::scene::Size;

/// Says `plan` in one sentence, or a few in Korean.
pub fn realise(plan: &Plan, language: Language, style: Style, rng: &mut Rng) -> String {
    let words = lexicon(language);
    let pattern = match style {
        Style::Native => rng.pick(&words.patterns),
        Style::Translated => words.patterns[0],
    };
    let mut grammar = Grammar {
        language,
        words,
        style,
        rng,
    };
    let mut sentence = String::new();
    for part in parts(pattern, plan) {
        let mut rest = part;
        while let Some((before, slot, after)) = split_around(rest, '{', '}') {
            sentence.push_str(before);
            sentence.push_str(&grammar.fill(slot, plan));
            rest = after;
        }
        sentence.push_str(rest);
    }
    capitalise(&sentence)
}

/// The pieces of a pattern outside and inside brackets, without those whose slot is empty.
fn parts<'p>(pattern: &'p str, plan: &Plan) -> Vec<&'p str> {
    let mut kept = Vec::new();
    let mut rest = pattern;
    while let Some((before, inner, after)) = split_around(rest, '[', ']') {
        kept.push(before);
        let empty = (inner.contains("{c") && plan.third.is_none())
            || (inner.contains("{bg") && plan.background.is_none());
        if !empty {
            kept.push(inner);
        }
        rest = after;
    }
    kept.push(rest);
    kept
}

fn split_around(text: &str, open: char, close: char) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once(open)?;
    let (inner, after) = rest.split_once(close)?;
    Some((before, inner, after))
}

fn capitalise(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

/// The form that a pattern asks of a noun phrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Accusative,
    Dative,
    Genitive,
    /// French, after "de".
    De,
    /// Korean particles.
    Subject,
    Also,
    And,
}

impl Form {
    fn parse(name: &str) -> Self {
        match name {
            "acc" => Form::Accusative,
            "dat" => Form::Dative,
            "gen" => Form::Genitive,
            "de" => Form::De,
            "subj" => Form::Subject,
            "also" => Form::Also,
            "and" => Form::And,
            _ => Form::Plain,
        }
    }
}

struct Grammar<'a> {
    language: Language,
    words: &'static Lexicon,
    style: Style,
    rng: &'a mut Rng,
}

/// The chosen words of a noun phrase.
struct Choice {
    noun: Noun,
    size: Option<(Size, Adjective)>,
    colour: Option<Adjective>,
    striped: Option<Adjective>,
}

impl Grammar<'_> {
    fn fill(&mut self, slot: &str, plan: &Plan) -> String {
        let (name, form) = slot.split_once('.').unwrap_or((slot, ""));
        let form = Form::parse(form);
        match name {
            "a" => self.noun_phrase(&plan.pair[0], form),
            "b" => self.noun_phrase(&plan.pair[1], form),
            "c" => plan
                .third
                .map_or_else(String::new, |third| self.noun_phrase(&third, form)),
            "rel" => self
                .choose(self.words.relations[plan.relation as usize], "")
                .to_owned(),
            _ => plan
                .background
                .map_or("", |bg| self.words.backgrounds[bg as usize])
                .to_owned(),
        }
    }

    fn choose<T: Copy>(&mut self, synonyms: &[T], none: T) -> T {
        let index = match self.style {
            // The commonest word is as likely as all the others together.
            Style::Native if self.rng.chance(0.5) => self.rng.below(synonyms.len()),
            _ => 0,
        };
        synonyms.get(index).copied().unwrap_or(none)
    }

    fn noun_phrase(&mut self, mention: &Mention, form: Form) -> String {
        const NO_WORD: Adjective = Adjective::Fixed("");
        let words = self.words;
        let no_noun = Noun {
            base: "",
            oblique: "",
            gender: Gender::M,
        };
        let choice = Choice {
            noun: self.choose(words.nouns[mention.shape as usize], no_noun),
            size: mention
                .size
                .map(|s| (s, self.choose(words.sizes[s as usize], NO_WORD))),
            colour: mention
                .colour
                .map(|c| self.choose(words.colours[c as usize], NO_WORD)),
            striped: mention.striped.then(|| self.choose(words.striped, NO_WORD)),
        };
        match self.language {
            Language::En => english(&choice),
            Language::De => german(&choice, form),
            Language::Fr => french(&choice, form),
            Language::Es => self.spanish(&choice),
            Language::Tr => turkish(&choice, form),
            Language::Ko => korean(&choice, form),
        }
    }

    /// Size before the noun or after the colour.
    fn spanish(&mut self, choice: &Choice) -> String {
        let feminine = choice.noun.gender == Gender::F;
        let before = self.style == Style::Native && self.rng.chance(0.5);
        let size = choice.size.map(|(size, word)| match (before, size) {
            (true, Size::Large) => "gran",
            _ => agree(word, feminine),
        });
        let mut phrase = vec![if feminine { "una" } else { "un" }];
        phrase.extend(size.filter(|_| before));
        phrase.push(choice.noun.base);
        phrase.extend(choice.colour.map(|word| agree(word, feminine)));
        phrase.extend(choice.striped.map(|word| agree(word, feminine)));
        phrase.extend(size.filter(|_| !before));
        phrase.join(" ")
    }
}

/// "a small striped red circle"
fn english(choice: &Choice) -> String {
    let size = choice.size.map(|(_, word)| word);
    let mut phrase: Vec<&str> = [size, choice.striped, choice.colour]
        .into_iter()
        .flatten()
        .map(base)
        .collect();
    phrase.push(choice.noun.base);
    let vowel = phrase[0].starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {}", if vowel { "an" } else { "a" }, phrase.join(" "))
}

/// "einem kleinen gestreiften roten Kreis": mixed declension after the indefinite article.
fn german(choice: &Choice, form: Form) -> String {
    let (article, ending) = match (form, choice.noun.gender) {
        (Form::Dative, Gender::F) => ("einer", "en"),
        (Form::Dative, _) => ("einem", "en"),
        (Form::Accusative, Gender::M) => ("einen", "en"),
        (_, Gender::M) => ("ein", "er"),
        (_, Gender::F) => ("eine", "e"),
        (_, Gender::N) => ("ein", "es"),
    };
    let mut phrase = vec![article.to_owned()];
    let size = choice.size.map(|(_, word)| word);
    for word in [size, choice.striped, choice.colour].into_iter().flatten() {
        phrase.push(match word {
            Adjective::Declined(stem) => format!("{stem}{ending}"),
            fixed => base(fixed).to_owned(),
        });
    }
    let noun = choice.noun;
    phrase.push(
        if form == Form::Dative {
            noun.oblique
        } else {
            noun.base
        }
        .to_owned(),
    );
    phrase.join(" ")
}

/// "un petit cercle rouge rayé"
fn french(choice: &Choice, form: Form) -> String {
    let feminine = choice.noun.gender == Gender::F;
    let mut phrase = vec![if feminine { "une" } else { "un" }];
    phrase.extend(choice.size.map(|(_, word)| agree(word, feminine)));
    phrase.push(choice.noun.base);
    phrase.extend(choice.colour.map(|word| agree(word, feminine)));
    phrase.extend(choice.striped.map(|word| agree(word, feminine)));
    let elided = if form == Form::De { "d'" } else { "" };
    format!("{elided}{}", phrase.join(" "))
}

/// "küçük çizgili kırmızı bir daire"
fn turkish(choice: &Choice, form: Form) -> String {
    let size = choice.size.map(|(_, word)| word);
    let mut phrase: Vec<&str> = [size, choice.striped, choice.colour]
        .into_iter()
        .flatten()
        .map(base)
        .collect();
    phrase.push("bir");
    phrase.push(if form == Form::Genitive {
        choice.noun.oblique
    } else {
        choice.noun.base
    });
    phrase.join(" ")
}

/// "작은 빨간 줄무늬 원이"; the particle depends on whether the last syllable is closed.
fn korean(choice: &Choice, form: Form) -> String {
    let size = choice.size.map(|(_, word)| word);
    let mut phrase: Vec<&str> = [size, choice.colour, choice.striped]
        .into_iter()
        .flatten()
        .map(base)
        .collect();
    phrase.push(choice.noun.base);
    let closed = choice
        .noun
        .base
        .chars()
        .last()
        .is_some_and(ends_in_consonant);
    let particle = match (form, closed) {
        (Form::Genitive, _) => "의",
        (Form::Subject, true) => "이",
        (Form::Subject, false) => "가",
        (Form::Also, _) => "도",
        (Form::And, true) => "과",
        (Form::And, false) => "와",
        _ => "",
    };
    format!("{}{particle}", phrase.join(" "))
}

/// Hangul syllables are ordered so that every 28th has no final consonant.
fn ends_in_consonant(syllable: char) -> bool {
    ('가'..='힣').contains(&syllable) && (u32::from(syllable) - 0xac00) % 28 != 0
}

fn base(word: Adjective) -> &'static str {
    agree(word, false)
}

fn agree(word: Adjective, feminine: bool) -> &'static str {
    match word {
        Adjective::Gendered(_, form) if feminine => form,
        Adjective::Fixed(form) | Adjective::Gendered(form, _) | Adjective::Declined(form) => form,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::captions::Mention;
    use crate::demo::scene::{Background, Colour, Relation, Shape};

    fn plan() -> Plan {
        let mention = |shape, colour, size, striped| Mention {
            shape,
            colour: Some(colour),
            size: Some(size),
            striped,
        };
        Plan {
            pair: [
                mention(Shape::Circle, Colour::Red, Size::Small, false),
                mention(Shape::Star, Colour::Blue, Size::Large, false),
            ],
            third: Some(mention(Shape::Heart, Colour::Green, Size::Small, true)),
            relation: Relation::LeftOf,
            background: Some(Background::White),
        }
    }

    #[test]
    fn says_it_properly_in_every_language() {
        let want = [
            "A small red circle to the left of a large blue star with a small striped green heart \
             on a white background.",
            "Ein kleiner roter Kreis links von einem großen blauen Stern mit einem kleinen \
             gestreiften grünen Herzen auf weißem Grund.",
            "Un petit cercle rouge à gauche d'une grande étoile bleue avec un petit cœur vert \
             rayé sur fond blanc.",
            "Un círculo rojo pequeño a la izquierda de una estrella azul grande con un corazón \
             verde rayado pequeño sobre fondo blanco.",
            "Beyaz bir arka planda büyük mavi bir yıldızın solunda küçük kırmızı bir daire var, \
             ayrıca küçük çizgili yeşil bir kalp var.",
            "흰색 배경에 큰 파란색 별의 왼쪽에 작은 빨간색 원이 있습니다. 그리고 작은 초록색 \
             줄무늬 하트도 있습니다.",
        ];
        for (language, want) in Language::ALL.into_iter().zip(want) {
            let got = realise(&plan(), language, Style::Translated, &mut Rng::new(1));
            assert_eq!(got, want);
        }
    }

    #[test]
    fn leaves_out_what_is_not_planned() {
        let bare = Plan {
            third: None,
            background: None,
            ..plan()
        };
        let got = realise(&bare, Language::De, Style::Translated, &mut Rng::new(1));
        assert_eq!(
            got,
            "Ein kleiner roter Kreis links von einem großen blauen Stern."
        );
    }
}
