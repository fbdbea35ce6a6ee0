//! What a picture shows: two or three objects with attributes, a relation and a background.

use std::collections::HashSet;

use super::rng::Rng;

/// The outline of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Heart,
    Cross,
    Ring,
    Moon,
}

impl Shape {
    /// Every shape, in the order of its index.
    pub const ALL: [Shape; 8] = [
        Shape::Circle,
        Shape::Square,
        Shape::Triangle,
        Shape::Star,
        Shape::Heart,
        Shape::Cross,
        Shape::Ring,
        Shape::Moon,
    ];

    /// The shape that a careless translator takes this one for.
    pub fn confused_with(self) -> Shape {
        match self {
            Shape::Circle => Shape::Ring,
            Shape::Ring => Shape::Circle,
            Shape::Square => Shape::Triangle,
            Shape::Triangle => Shape::Square,
            Shape::Star => Shape::Moon,
            Shape::Moon => Shape::Star,
            Shape::Heart => Shape::Cross,
            Shape::Cross => Shape::Heart,
        }
    }
}

/// The colour of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Turquoise,
    Blue,
    Purple,
    Pink,
    Brown,
}

impl Colour {
    /// Every colour, in the order of its index.
    pub const ALL: [Colour; 9] = [
        Colour::Red,
        Colour::Orange,
        Colour::Yellow,
        Colour::Green,
        Colour::Turquoise,
        Colour::Blue,
        Colour::Purple,
        Colour::Pink,
        Colour::Brown,
    ];

    /// The colour that a careless translator takes this one for.
    pub fn confused_with(self) -> Colour {
        match self {
            Colour::Red => Colour::Pink,
            Colour::Pink => Colour::Red,
            Colour::Orange => Colour::Yellow,
            Colour::Yellow => Colour::Orange,
            Colour::Green => Colour::Turquoise,
            Colour::Turquoise => Colour::Blue,
            Colour::Blue => Colour::Green,
            Colour::Purple => Colour::Brown,
            Colour::Brown => Colour::Purple,
        }
    }
}

/// How large an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Size {
    Small,
    Large,
}

impl Size {
    /// Both sizes, in the order of their indices.
    pub const ALL: [Size; 2] = [Size::Small, Size::Large];
}

/// Where the first object lies, seen from the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Relation {
    LeftOf,
    RightOf,
    Above,
    Below,
}

impl Relation {
    /// Every relation, in the order of its index.
    pub const ALL: [Relation; 4] = [
        Relation::LeftOf,
        Relation::RightOf,
        Relation::Above,
        Relation::Below,
    ];

    /// The relation of the second object to the first.
    pub fn inverse(self) -> Relation {
        match self {
            Relation::LeftOf => Relation::RightOf,
            Relation::RightOf => Relation::LeftOf,
            Relation::Above => Relation::Below,
            Relation::Below => Relation::Above,
        }
    }

    /// True for left and right.
    pub fn is_horizontal(self) -> bool {
        matches!(self, Relation::LeftOf | Relation::RightOf)
    }
}

/// The colour behind the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Background {
    White,
    Black,
    Grey,
    LightBlue,
    Beige,
}

impl Background {
    /// Every background, in the order of its index.
    pub const ALL: [Background; 5] = [
        Background::White,
        Background::Black,
        Background::Grey,
        Background::LightBlue,
        Background::Beige,
    ];
}

/// One object of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Its outline.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its size.
    pub size: Size,
    /// Striped rather than filled.
    pub striped: bool,
}

impl Object {
    fn random(rng: &mut Rng) -> Self {
        Self {
            shape: rng.pick(&Shape::ALL),
            colour: rng.pick(&Colour::ALL),
            size: rng.pick(&Size::ALL),
            striped: rng.chance(0.3),
        }
    }

    fn looks_like(&self, other: &Object) -> bool {
        self.shape == other.shape && self.colour == other.colour
    }
}

/// The content of one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    /// The two objects that `relation` speaks of.
    pub pair: [Object; 2],
    /// A third object, below a horizontal pair and to the right of a vertical one.
    pub third: Option<Object>,
    /// Where `pair[0]` lies, seen from `pair[1]`.
    pub relation: Relation,
    /// What lies behind.
    pub background: Background,
}

impl Scene {
    /// The scene numbered `index` under `seed`. Its objects differ in shape or colour.
    pub fn random(seed: u64, index: u64) -> Self {
        let rng = &mut Rng::stream(seed, index);
        let first = Object::random(rng);
        let second = draw_unlike(rng, &[first]);
        let third = rng.chance(0.4).then(|| draw_unlike(rng, &[first, second]));
        Self {
            pair: [first, second],
            third,
            relation: rng.pick(&Relation::ALL),
            background: rng.pick(&Background::ALL),
        }
    }

    /// The same content with the first object on the left or above: equal for equal pictures.
    pub fn canonical(&self) -> Self {
        match self.relation {
            Relation::LeftOf | Relation::Above => *self,
            relation => Self {
                pair: [self.pair[1], self.pair[0]],
                relation: relation.inverse(),
                ..*self
            },
        }
    }

    /// The objects, the pair first.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.pair.iter().chain(self.third.as_ref())
    }
}

/// `n` scenes no two of which have the same content (there are over two million).
pub fn scenes(seed: u64, n: usize) -> Vec<Scene> {
    let mut seen = HashSet::with_capacity(n);
    (0..)
        .map(|i| Scene::random(seed, i))
        .filter(|s| seen.insert(s.canonical()))
        .take(n)
        .collect()
}

fn draw_unlike(rng: &mut Rng, others: &[Object]) -> Object {
    loop {
        let object = Object::random(rng);
        if !others.iter().any(|other| object.looks_like(other)) {
            return object;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_are_distinct_and_repeatable() {
        let drawn = scenes(5, 3000);
        assert_eq!(drawn, scenes(5, 3000));
        let canonical: HashSet<Scene> = drawn.iter().map(Scene::canonical).collect();
        assert_eq!(canonical.len(), 3000);
        assert_ne!(drawn[..10], scenes(6, 10)[..]);
    }

    #[test]
    fn canonical_undoes_a_swapped_pair() {
        let scene = Scene::random(1, 1);
        let swapped = Scene {
            pair: [scene.pair[1], scene.pair[0]],
            relation: scene.relation.inverse(),
            ..scene
        };
        assert_eq!(scene.canonical(), swapped.canonical());
    }

    #[test]
    fn confusions_change_the_attribute() {
        assert!(Shape::ALL.iter().all(|s| s.confused_with() != *s));
        assert!(Colour::ALL.iter().all(|c| c.confused_with() != *c));
    }
}
