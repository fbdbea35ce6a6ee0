//! Words and sentence patterns of the six languages.
//!
//! A pattern's `{a}` and `{b}` are the pair, `{c}` the third object, `{rel}` the relation and
//! `{bg}` the background; what follows a dot is the form that the [grammar](super::grammar) gives
//! the phrase. A part in square brackets is left out with its slot. The first word of each list and
//! the first pattern are the ones that a translator uses.

use super::captions::Language;

/// Grammatical gender, where the language has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gender {
    /// Masculine, and every noun of English, Turkish and Korean.
    M,
    /// Feminine.
    F,
    /// Neuter (German).
    N,
}

/// A noun.
#[derive(Clone, Copy, Debug)]
pub struct Noun {
    /// Dictionary form.
    pub base: &'static str,
    /// German dative or Turkish genitive; elsewhere the base.
    pub oblique: &'static str,
    /// Its gender.
    pub gender: Gender,
}

/// An adjective.
#[derive(Clone, Copy, Debug)]
pub enum Adjective {
    /// The same in every form.
    Fixed(&'static str),
    /// Masculine and feminine (French, Spanish).
    Gendered(&'static str, &'static str),
    /// A German stem that takes endings.
    Declined(&'static str),
}

/// Synonyms, the commonest first.
type Words<T> = &'static [T];

/// What one language needs for its captions.
#[derive(Debug)]
pub struct Lexicon {
    /// By [`Shape`](super::scene::Shape).
    pub nouns: [Words<Noun>; 8],
    /// By [`Colour`](super::scene::Colour).
    pub colours: [Words<Adjective>; 9],
    /// By [`Size`](super::scene::Size).
    pub sizes: [Words<Adjective>; 2],
    /// For striped objects.
    pub striped: Words<Adjective>,
    /// By [`Relation`](super::scene::Relation).
    pub relations: [Words<&'static str>; 4],
    /// By [`Background`](super::scene::Background).
    pub backgrounds: [&'static str; 5],
    /// Sentence patterns.
    pub patterns: [&'static str; 4],
}

/// The words of a language.
pub fn lexicon(language: Language) -> &'static Lexicon {
    match language {
        Language::En => &ENGLISH,
        Language::De => &GERMAN,
        Language::Fr => &FRENCH,
        Language::Es => &SPANISH,
        Language::Tr => &TURKISH,
        Language::Ko => &KOREAN,
    }
}

use Adjective::{Declined, Fixed, Gendered};

const fn plain(base: &'static str) -> Noun {
    Noun {
        base,
        oblique: base,
        gender: Gender::M,
    }
}

const fn fem(base: &'static str) -> Noun {
    Noun {
        base,
        oblique: base,
        gender: Gender::F,
    }
}

const fn neut(base: &'static str) -> Noun {
    Noun {
        base,
        oblique: base,
        gender: Gender::N,
    }
}

const fn with(base: &'static str, oblique: &'static str) -> Noun {
    Noun {
        base,
        oblique,
        gender: Gender::M,
    }
}

static ENGLISH: Lexicon = Lexicon {
    nouns: [
        &[plain("circle"), plain("disc")],
        &[plain("square"), plain("box")],
        &[plain("triangle")],
        &[plain("star")],
        &[plain("heart")],
        &[plain("cross"), plain("plus sign")],
        &[plain("ring"), plain("hoop")],
        &[plain("moon"), plain("crescent")],
    ],
    colours: [
        &[Fixed("red")],
        &[Fixed("orange")],
        &[Fixed("yellow")],
        &[Fixed("green")],
        &[Fixed("turquoise"), Fixed("teal")],
        &[Fixed("blue")],
        &[Fixed("purple"), Fixed("violet")],
        &[Fixed("pink")],
        &[Fixed("brown")],
    ],
    sizes: [
        &[Fixed("small"), Fixed("little")],
        &[Fixed("large"), Fixed("big")],
    ],
    striped: &[Fixed("striped"), Fixed("stripy")],
    relations: [
        &["to the left of", "left of"],
        &["to the right of", "right of"],
        &["above", "over"],
        &["below", "under"],
    ],
    backgrounds: ["white", "black", "grey", "light blue", "beige"],
    patterns: [
        "{a} {rel} {b}[ with {c}][ on a {bg} background].",
        "There is {a} {rel} {b}[ and also {c}][; the background is {bg}].",
        "[On a {bg} background, ]{a} sits {rel} {b}[, together with {c}].",
        "The picture shows {a} {rel} {b}[ and {c}][ on {bg}].",
    ],
};

static GERMAN: Lexicon = Lexicon {
    nouns: [
        &[plain("Kreis"), fem("Scheibe")],
        &[neut("Quadrat"), neut("Viereck")],
        &[neut("Dreieck")],
        &[plain("Stern")],
        &[Noun {
            base: "Herz",
            oblique: "Herzen",
            gender: Gender::N,
        }],
        &[neut("Kreuz"), neut("Pluszeichen")],
        &[plain("Ring"), plain("Reif")],
        &[plain("Mond"), fem("Mondsichel")],
    ],
    colours: [
        &[Declined("rot")],
        &[Declined("orangefarben"), Fixed("orange")],
        &[Declined("gelb")],
        &[Declined("grün")],
        &[Declined("türkisfarben"), Fixed("türkis")],
        &[Declined("blau")],
        &[Declined("violett"), Fixed("lila")],
        &[Fixed("rosa"), Declined("rosafarben")],
        &[Declined("braun")],
    ],
    sizes: [
        &[Declined("klein"), Declined("winzig")],
        &[Declined("groß")],
    ],
    striped: &[Declined("gestreift")],
    relations: [
        &["links von"],
        &["rechts von"],
        &["über", "oberhalb von"],
        &["unter", "unterhalb von"],
    ],
    backgrounds: ["weiß", "schwarz", "grau", "hellblau", "beigefarben"],
    patterns: [
        "{a} {rel} {b.dat}[ mit {c.dat}][ auf {bg}em Grund].",
        "Das Bild zeigt {a.acc} {rel} {b.dat}[ sowie {c.acc}][ auf {bg}em Hintergrund].",
        "{a} befindet sich {rel} {b.dat}[, dazu {c}][; der Hintergrund ist {bg}].",
        "[Vor {bg}em Hintergrund: ]{a} {rel} {b.dat}[ und {c}].",
    ],
};

static FRENCH: Lexicon = Lexicon {
    nouns: [
        &[plain("cercle"), plain("disque"), plain("rond")],
        &[plain("carré")],
        &[plain("triangle")],
        &[fem("étoile")],
        &[plain("cœur")],
        &[fem("croix")],
        &[plain("anneau")],
        &[fem("lune"), plain("croissant de lune")],
    ],
    colours: [
        &[Fixed("rouge")],
        &[Fixed("orange")],
        &[Fixed("jaune")],
        &[Gendered("vert", "verte")],
        &[Fixed("turquoise")],
        &[Gendered("bleu", "bleue")],
        &[Gendered("violet", "violette")],
        &[Fixed("rose")],
        &[Fixed("marron"), Gendered("brun", "brune")],
    ],
    sizes: [
        &[Gendered("petit", "petite")],
        &[Gendered("grand", "grande")],
    ],
    striped: &[Gendered("rayé", "rayée"), Fixed("à rayures")],
    relations: [
        &["à gauche"],
        &["à droite"],
        &["au-dessus"],
        &["en dessous", "au-dessous"],
    ],
    backgrounds: ["blanc", "noir", "gris", "bleu clair", "beige"],
    patterns: [
        "{a} {rel} {b.de}[ avec {c}][ sur fond {bg}].",
        "Il y a {a} {rel} {b.de}[ ainsi qu'{c}][ sur un fond {bg}].",
        "{a} se trouve {rel} {b.de}[ ; on voit aussi {c}][ ; le fond est {bg}].",
        "[Sur fond {bg}, ]on voit {a} {rel} {b.de}[ et {c}].",
    ],
};

static SPANISH: Lexicon = Lexicon {
    nouns: [
        &[plain("círculo"), plain("disco")],
        &[plain("cuadrado")],
        &[plain("triángulo")],
        &[fem("estrella")],
        &[plain("corazón")],
        &[fem("cruz")],
        &[plain("anillo"), plain("aro")],
        &[fem("luna"), fem("media luna")],
    ],
    colours: [
        &[Gendered("rojo", "roja")],
        &[Fixed("naranja"), Gendered("anaranjado", "anaranjada")],
        &[Gendered("amarillo", "amarilla")],
        &[Fixed("verde")],
        &[Fixed("turquesa")],
        &[Fixed("azul")],
        &[Gendered("morado", "morada"), Fixed("violeta")],
        &[Fixed("rosa"), Gendered("rosado", "rosada")],
        &[Fixed("marrón"), Fixed("café")],
    ],
    sizes: [&[Gendered("pequeño", "pequeña")], &[Fixed("grande")]],
    striped: &[Gendered("rayado", "rayada"), Fixed("a rayas")],
    relations: [
        &["a la izquierda"],
        &["a la derecha"],
        &["encima", "por encima"],
        &["debajo", "por debajo"],
    ],
    backgrounds: ["blanco", "negro", "gris", "azul claro", "beige"],
    patterns: [
        "{a} {rel} de {b}[ con {c}][ sobre fondo {bg}].",
        "Hay {a} {rel} de {b}[ y también {c}][; el fondo es {bg}].",
        "La imagen muestra {a} {rel} de {b}[ y {c}][ sobre un fondo {bg}].",
        "[Sobre fondo {bg}, ]{a} está {rel} de {b}[, junto con {c}].",
    ],
};

static TURKISH: Lexicon = Lexicon {
    nouns: [
        &[with("daire", "dairenin")],
        &[with("kare", "karenin")],
        &[with("üçgen", "üçgenin")],
        &[with("yıldız", "yıldızın")],
        &[with("kalp", "kalbin")],
        &[
            with("haç", "haçın"),
            with("artı işareti", "artı işaretinin"),
        ],
        &[with("halka", "halkanın"), with("çember", "çemberin")],
        &[with("ay", "ayın"), with("hilal", "hilalin")],
    ],
    colours: [
        &[Fixed("kırmızı")],
        &[Fixed("turuncu")],
        &[Fixed("sarı")],
        &[Fixed("yeşil")],
        &[Fixed("turkuaz")],
        &[Fixed("mavi")],
        &[Fixed("mor")],
        &[Fixed("pembe")],
        &[Fixed("kahverengi")],
    ],
    sizes: [
        &[Fixed("küçük"), Fixed("ufak")],
        &[Fixed("büyük"), Fixed("kocaman")],
    ],
    striped: &[Fixed("çizgili")],
    relations: [
        &["solunda"],
        &["sağında"],
        &["üstünde", "üzerinde"],
        &["altında"],
    ],
    backgrounds: ["beyaz", "siyah", "gri", "açık mavi", "bej"],
    patterns: [
        "[{bg} bir arka planda ]{b.gen} {rel} {a} var[, ayrıca {c} var].",
        "{a} {b.gen} {rel} duruyor[, ayrıca {c} görülüyor][; arka plan {bg}].",
        "Resimde {b.gen} {rel} {a} görülüyor[; yanlarında {c} yer alıyor][; zemin {bg}].",
        "[{bg} zeminde ]{b.gen} {rel} duran {a}[ ile {c}].",
    ],
};

static KOREAN: Lexicon = Lexicon {
    nouns: [
        &[plain("원"), plain("동그라미")],
        &[plain("정사각형"), plain("네모")],
        &[plain("삼각형"), plain("세모")],
        &[plain("별")],
        &[plain("하트")],
        &[plain("십자가"), plain("십자 모양")],
        &[plain("고리")],
        &[plain("달"), plain("초승달")],
    ],
    colours: [
        &[Fixed("빨간색"), Fixed("빨간")],
        &[Fixed("주황색")],
        &[Fixed("노란색"), Fixed("노란")],
        &[Fixed("초록색"), Fixed("녹색")],
        &[Fixed("청록색")],
        &[Fixed("파란색"), Fixed("파란")],
        &[Fixed("보라색")],
        &[Fixed("분홍색")],
        &[Fixed("갈색")],
    ],
    sizes: [
        &[Fixed("작은"), Fixed("조그만")],
        &[Fixed("큰"), Fixed("커다란")],
    ],
    striped: &[Fixed("줄무늬")],
    relations: [&["왼쪽"], &["오른쪽"], &["위"], &["아래", "밑"]],
    backgrounds: ["흰색", "검은색", "회색", "하늘색", "베이지색"],
    patterns: [
        "[{bg} 배경에 ]{b.gen} {rel}에 {a.subj} 있습니다[. 그리고 {c.also} 있습니다].",
        "{a.subj} {b} {rel}에 놓여 있다[. {c.also} 보인다][. 배경은 {bg}이다].",
        "[{bg} 바탕에 ][{c.and} 함께 ]{b} {rel}에 있는 {a}.",
        "그림에는 {b} {rel}에 {a.subj} 그려져 있다[. {c.also} 있다][. 배경은 {bg}이다].",
    ],
};
