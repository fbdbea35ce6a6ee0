//! Draws a scene as a small RGB picture, with a jitter of place, size, tilt and light.

use std::f32::consts::{PI, TAU};

use super::rng::Rng;
use super::scene::{Background, Colour, Object, Relation, Scene, Shape, Size};
use crate::error::Result;
use crate::image;

/// Width and height of a picture in pixels.
pub const SIDE: usize = 64;

/// A colour with components in 0..=255.
pub type Rgb = [f32; 3];

/// An RGB picture of [`SIDE`] x [`SIDE`] pixels, rows from top to bottom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pixels: Vec<u8>,
}

impl Picture {
    /// The samples, `(SIDE, SIDE, 3)`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// As a decoded picture, which a tower's preprocessing takes.
    ///
    /// # Errors
    /// None: the sides fit the samples.
    pub fn to_image(&self) -> Result<image::Picture> {
        image::Picture::new(SIDE, SIDE, self.pixels.clone())
    }
}

/// The paint of an object.
pub fn colour_rgb(colour: Colour) -> Rgb {
    match colour {
        Colour::Red => [220.0, 30.0, 35.0],
        Colour::Orange => [250.0, 140.0, 20.0],
        Colour::Yellow => [245.0, 220.0, 30.0],
        Colour::Green => [35.0, 150.0, 55.0],
        Colour::Turquoise => [30.0, 200.0, 190.0],
        Colour::Blue => [35.0, 65.0, 215.0],
        Colour::Purple => [130.0, 40.0, 165.0],
        Colour::Pink => [250.0, 125.0, 190.0],
        Colour::Brown => [120.0, 70.0, 30.0],
    }
}

/// The paint of a background.
pub fn background_rgb(background: Background) -> Rgb {
    match background {
        Background::White => [250.0, 250.0, 250.0],
        Background::Black => [15.0, 15.0, 18.0],
        Background::Grey => [128.0, 128.0, 130.0],
        Background::LightBlue => [170.0, 210.0, 245.0],
        Background::Beige => [228.0, 210.0, 175.0],
    }
}

/// Draws `scene`; `seed` decides the jitter and the grain.
pub fn render(scene: &Scene, seed: u64) -> Picture {
    let rng = &mut Rng::stream(seed, 0x70_69_63);
    let mut canvas = vec![background_rgb(scene.background); SIDE * SIDE];
    for (object, centre) in scene.objects().zip(places(scene)) {
        draw(&mut canvas, object, centre, rng);
    }
    let light = 1.0 + 0.05 * rng.symmetric();
    let sample = |value: f32| {
        (value * light + 4.0 * rng.symmetric())
            .round()
            .clamp(0.0, 255.0)
    };
    Picture {
        pixels: canvas
            .into_iter()
            .flatten()
            .map(sample)
            .map(|v| v as u8)
            .collect(),
    }
}

/// Centres of the pair and of the third object.
fn places(scene: &Scene) -> [[f32; 2]; 3] {
    let crowded = scene.third.is_some();
    let across = if crowded { 19.0 } else { 32.0 };
    let (near, far) = (16.5, 47.5);
    let (first, second, third) = if scene.relation.is_horizontal() {
        ([near, across], [far, across], [32.0, 47.0])
    } else {
        ([across, near], [across, far], [47.0, 32.0])
    };
    match scene.relation {
        Relation::LeftOf | Relation::Above => [first, second, third],
        Relation::RightOf | Relation::Below => [second, first, third],
    }
}

fn draw(canvas: &mut [Rgb], object: &Object, centre: [f32; 2], rng: &mut Rng) {
    let radius = match object.size {
        Size::Small => 8.0,
        Size::Large => 14.0,
    } * (1.0 + 0.07 * rng.symmetric());
    let centre = centre.map(|c| c + 1.5 * rng.symmetric());
    let (sin, cos) = (0.12 * rng.symmetric()).sin_cos();
    let outline = Outline::new(object.shape);
    let paint = colour_rgb(object.colour);
    let reach = |c: f32| {
        let low = (c - 1.3 * radius).floor().max(0.0) as usize;
        let high = (c + 1.3 * radius).ceil().clamp(0.0, SIDE as f32) as usize;
        low..high
    };
    for y in reach(centre[1]) {
        for x in reach(centre[0]) {
            let (dx, dy) = (x as f32 + 0.5 - centre[0], y as f32 + 0.5 - centre[1]);
            let point = [
                (cos * dx + sin * dy) / radius,
                (cos * dy - sin * dx) / radius,
            ];
            let mut cover = (0.5 - radius * outline.distance(point)).clamp(0.0, 1.0);
            if object.striped {
                // Diagonal stripes with a period of 5 pixels; between them the paint is thin.
                let wave = ((dx + dy) * TAU / (5.0 * std::f32::consts::SQRT_2)).sin();
                cover *= 0.62 + (1.6 * wave).clamp(-0.38, 0.38);
            }
            let pixel = &mut canvas[y * SIDE + x];
            for (value, paint) in pixel.iter_mut().zip(paint) {
                *value += cover * (paint - *value);
            }
        }
    }
}

/// The border of a shape of about unit radius, y pointing down.
enum Outline {
    Disc,
    Ring,
    Moon,
    Polygon(Vec<[f32; 2]>),
}

impl Outline {
    fn new(shape: Shape) -> Self {
        let polar = |radius: f32, turn: f32| {
            let angle = turn * TAU - PI / 2.0;
            [radius * angle.cos(), radius * angle.sin()]
        };
        match shape {
            Shape::Circle => Outline::Disc,
            Shape::Ring => Outline::Ring,
            Shape::Moon => Outline::Moon,
            Shape::Square => Outline::Polygon(corners(&[[0.85, 0.85]])),
            Shape::Cross => Outline::Polygon(corners(&[[0.95, 0.3], [0.3, 0.3], [0.3, 0.95]])),
            Shape::Triangle => Outline::Polygon(
                (0..3)
                    .map(|i| polar(1.15, i as f32 / 3.0))
                    .map(|[x, y]| [x, y + 0.2])
                    .collect(),
            ),
            Shape::Star => Outline::Polygon(
                (0..10)
                    .map(|i| polar(if i % 2 == 0 { 1.15 } else { 0.48 }, i as f32 / 10.0))
                    .collect(),
            ),
            Shape::Heart => Outline::Polygon((0..24).map(|i| heart(i as f32 / 24.0)).collect()),
        }
    }

    /// Signed distance to the border, negative inside.
    fn distance(&self, [x, y]: [f32; 2]) -> f32 {
        match self {
            Outline::Disc => x.hypot(y) - 1.0,
            Outline::Ring => (x.hypot(y) - 0.76).abs() - 0.2,
            Outline::Moon => (x.hypot(y) - 1.05).max(0.85 - (x - 0.55).hypot(y + 0.1)),
            Outline::Polygon(corners) => polygon_distance(corners, [x, y]),
        }
    }
}

/// The corners of the lower right quarter, turned four times.
fn corners(quarter: &[[f32; 2]]) -> Vec<[f32; 2]> {
    let turned = |&[x, y]: &[f32; 2]| [[x, y], [-y, x], [-x, -y], [y, -x]];
    (0..4)
        .flat_map(|turn| quarter.iter().map(move |corner| turned(corner)[turn]))
        .collect()
}

/// The usual heart curve at `turn` of its way round.
fn heart(turn: f32) -> [f32; 2] {
    let t = turn * TAU;
    let y = 13.0 * t.cos() - 5.0 * (2.0 * t).cos() - 2.0 * (3.0 * t).cos() - (4.0 * t).cos();
    [16.0 * t.sin().powi(3) / 15.5, -(y + 2.0) / 15.5]
}

fn polygon_distance(corners: &[[f32; 2]], [x, y]: [f32; 2]) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    let edges = corners.iter().zip(corners.iter().cycle().skip(1));
    for (&[ax, ay], &[bx, by]) in edges {
        let (ex, ey) = (bx - ax, by - ay);
        let along = ((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey);
        let along = along.clamp(0.0, 1.0);
        let (dx, dy) = (x - ax - along * ex, y - ay - along * ey);
        nearest = nearest.min(dx * dx + dy * dy);
        inside ^= (ay > y) != (by > y) && x < ax + ex * (y - ay) / ey;
    }
    if inside {
        -nearest.sqrt()
    } else {
        nearest.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> Scene {
        let object = |shape, colour| Object {
            shape,
            colour,
            size: Size::Large,
            striped: false,
        };
        Scene {
            pair: [
                object(Shape::Circle, Colour::Red),
                object(Shape::Square, Colour::Blue),
            ],
            third: None,
            relation: Relation::LeftOf,
            background: Background::White,
        }
    }

    fn nearly(picture: &Picture, [x, y]: [usize; 2], want: Rgb) -> bool {
        let at = 3 * (y * SIDE + x);
        let pixel = &picture.pixels()[at..at + 3];
        pixel
            .iter()
            .zip(want)
            .all(|(&got, want)| (f32::from(got) - want).abs() < 20.0)
    }

    #[test]
    fn objects_lie_where_the_relation_says() {
        let picture = render(&scene(), 1);
        assert!(nearly(&picture, [16, 32], colour_rgb(Colour::Red)));
        assert!(nearly(&picture, [47, 32], colour_rgb(Colour::Blue)));
        assert!(nearly(&picture, [2, 2], background_rgb(Background::White)));
        let above = render(
            &Scene {
                relation: Relation::Below,
                ..scene()
            },
            1,
        );
        assert!(nearly(&above, [32, 16], colour_rgb(Colour::Blue)));
    }

    #[test]
    fn a_seed_repeats_and_another_jitters() {
        assert_eq!(render(&scene(), 1), render(&scene(), 1));
        assert_ne!(render(&scene(), 1), render(&scene(), 2));
    }

    #[test]
    fn every_outline_has_an_inside_and_ends_within_reach() {
        for shape in Shape::ALL {
            let outline = Outline::new(shape);
            let angles = (0..64).map(|i| (i as f32 / 64.0 * TAU).sin_cos());
            assert!(
                angles
                    .clone()
                    .all(|(s, c)| outline.distance([1.3 * c, 1.3 * s]) > 0.0)
            );
            let inner = angles.filter(|(s, c)| outline.distance([0.7 * c, 0.7 * s]) < 0.0);
            assert!(inner.count() > 5, "{shape:?}");
        }
    }
}
