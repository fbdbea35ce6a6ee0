//! The demo's data: items with pictures' features and captions, and a pool of translated captions
//! that is large for some languages and small for others.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};

use super::captions::{Language, Plan, Style};
use super::features::FeatureMap;
use super::grammar::realise;
use super::render::{Picture, render};
use super::rng::Rng;
use super::scene::{Scene, scenes};
use super::translate::translate_plan;
use crate::error::{Error, Result};

const N_LANGUAGES: usize = Language::ALL.len();

/// How large a world is.
#[derive(Clone, Copy, Debug)]
pub struct WorldConfig {
    /// Decides everything.
    pub seed: u64,
    /// Scenes of the pre-training pool.
    pub n_pool: usize,
    /// Items to adapt on.
    pub n_train: usize,
    /// Items to choose a step on.
    pub n_val: usize,
    /// Items to report recall on.
    pub n_test: usize,
}

/// What an item is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Split {
    Train,
    Val,
    Test,
}

/// One scene of the pre-training pool, told in English and told again in every language.
#[derive(Clone, Debug)]
pub struct PoolItem {
    /// What the picture shows.
    pub scene: Scene,
    /// The picture's features, `(D)`: the map's, of unit length, until a tower's take their place.
    pub features: Vec<f32>,
    picture_seed: u64,
    native: [String; N_LANGUAGES],
    translated: [String; N_LANGUAGES],
}

impl PoolItem {
    /// The picture that the features were taken from.
    pub fn picture(&self) -> Picture {
        render(&self.scene, self.picture_seed)
    }
}

/// One pair for distillation: the same content in English and in another language.
#[derive(Clone, Copy, Debug)]
pub struct PoolPair<'a> {
    /// The picture's features, `(D)`.
    pub features: &'a [f32],
    /// The English caption.
    pub en: &'a str,
    /// What a person makes of it in the language.
    pub native: &'a str,
    /// What a machine makes of it in the language.
    pub translated: &'a str,
}

/// One picture with its captions, for adaptation and for evaluation.
#[derive(Clone, Debug)]
pub struct Item {
    /// The picture's file name.
    pub image: String,
    /// What the picture shows.
    pub scene: Scene,
    /// The picture's features, `(D)`: the map's, of unit length, until a tower's take their place.
    pub features: Vec<f32>,
    /// What the item is for.
    pub split: Split,
    picture_seed: u64,
    captions: [String; N_LANGUAGES],
    from_en: [String; N_LANGUAGES],
    to_en: [String; N_LANGUAGES],
}

impl Item {
    /// A person's caption in `language`.
    pub fn caption(&self, language: Language) -> &str {
        &self.captions[language as usize]
    }

    /// What a machine makes of the English caption in `language` (in English: the caption itself).
    pub fn translated_from_en(&self, language: Language) -> &str {
        &self.from_en[language as usize]
    }

    /// What a machine makes of the caption in `language` in English (of English: the same).
    pub fn translated_to_en(&self, language: Language) -> &str {
        &self.to_en[language as usize]
    }

    /// The picture that the features were taken from.
    pub fn picture(&self) -> Picture {
        render(&self.scene, self.picture_seed)
    }

    /// Every text of the item.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.captions
            .iter()
            .chain(&self.from_en)
            .chain(&self.to_en)
            .map(String::as_str)
    }
}

/// Share of the pool that has captions in `language`.
pub fn pool_share(language: Language) -> f64 {
    match language {
        Language::En => 1.0,
        Language::De => 0.6,
        Language::Fr => 0.45,
        Language::Es => 0.2,
        Language::Tr => 0.16,
        Language::Ko => 0.12,
    }
}

/// All data of a demo. No two scenes, in the pool or in the items, have the same content.
#[derive(Clone, Debug)]
pub struct World {
    /// The map that every picture's features come from at first; a tower learns from them.
    pub features: FeatureMap,
    /// The pre-training pool.
    pub pool: Vec<PoolItem>,
    /// Train, validation and test items, in that order.
    pub items: Vec<Item>,
}

impl World {
    /// Makes the world that `config.seed` stands for.
    pub fn new(config: &WorldConfig) -> Self {
        let WorldConfig {
            seed,
            n_pool,
            n_train,
            n_val,
            n_test,
        } = *config;
        let features = FeatureMap::new(Rng::stream(seed, 0).next_u64());
        let all = scenes(
            Rng::stream(seed, 1).next_u64(),
            n_pool + n_train + n_val + n_test,
        );
        let (pool, items) = all.split_at(n_pool);
        let pool = pool.par_iter().enumerate();
        let pool = pool
            .map(|(i, scene)| pool_item(&features, *scene, seed, i))
            .collect();
        let items = items.par_iter().enumerate();
        let items = items.map(|(i, scene)| {
            let split = match i {
                i if i < n_train => Split::Train,
                i if i < n_train + n_val => Split::Val,
                _ => Split::Test,
            };
            item(&features, *scene, split, seed, n_pool + i)
        });
        let items = items.collect();
        Self {
            pool,
            items,
            features,
        }
    }

    /// Puts a tower's features of the pool's pictures (n_pool, dim) and of the items' (n_items, dim) in
    /// the place of those that were there.
    pub fn replace_features(&mut self, dim: usize, pool: &[f32], items: &[f32]) {
        let rows = self.pool.iter_mut().zip(pool.chunks_exact(dim));
        rows.for_each(|(item, row)| item.features = row.to_vec());
        let rows = self.items.iter_mut().zip(items.chunks_exact(dim));
        rows.for_each(|(item, row)| item.features = row.to_vec());
    }

    /// The items of one split.
    pub fn split(&self, split: Split) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |item| item.split == split)
    }

    /// The part of the pool that exists in `language`; a scarcer language's part lies inside a
    /// commoner one's.
    pub fn pool_pairs(&self, language: Language) -> impl Iterator<Item = PoolPair<'_>> {
        let n = (pool_share(language) * self.pool.len() as f64).round() as usize;
        self.pool.iter().take(n).map(move |item| PoolPair {
            features: &item.features,
            en: &item.native[Language::En as usize],
            native: &item.native[language as usize],
            translated: &item.translated[language as usize],
        })
    }

    /// Every text of the world, for the vocabulary.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let pool = self
            .pool
            .iter()
            .flat_map(|p| p.native.iter().chain(&p.translated));
        pool.map(String::as_str)
            .chain(self.items.iter().flat_map(Item::texts))
    }
}

fn pool_item(features: &FeatureMap, scene: Scene, seed: u64, index: usize) -> PoolItem {
    let rng = &mut Rng::stream(seed ^ 0x706f_6f6c, index as u64);
    let picture_seed = rng.next_u64();
    let features = features.features(&render(&scene, picture_seed));
    let plan = Plan::draw(&scene, rng);
    let native = Language::ALL.map(|language| realise(&plan, language, Style::Native, rng));
    let mut translated =
        Language::ALL.map(|language| translate_plan(&plan, language, language, rng));
    translated[Language::En as usize].clone_from(&native[Language::En as usize]);
    PoolItem {
        scene,
        features,
        picture_seed,
        native,
        translated,
    }
}

fn item(features: &FeatureMap, scene: Scene, split: Split, seed: u64, index: usize) -> Item {
    let rng = &mut Rng::stream(seed ^ 0x6974_656d, index as u64);
    let picture_seed = rng.next_u64();
    // Each language describes the picture anew, as the annotators of Multi30K did.
    let plans = Language::ALL.map(|_| Plan::draw(&scene, rng));
    let english = plans[Language::En as usize];
    let captions = Language::ALL
        .map(|language| realise(&plans[language as usize], language, Style::Native, rng));
    let mut from_en =
        Language::ALL.map(|language| translate_plan(&english, language, language, rng));
    let mut to_en = Language::ALL
        .map(|language| translate_plan(&plans[language as usize], language, Language::En, rng));
    for same in [&mut from_en, &mut to_en] {
        same[Language::En as usize].clone_from(&captions[Language::En as usize]);
    }
    Item {
        image: format!("scene_{index:05}.png"),
        scene,
        features: features.features(&render(&scene, picture_seed)),
        split,
        picture_seed,
        captions,
        from_en,
        to_en,
    }
}

/// Writes one JSON object a line: image, captions, translations, split.
///
/// # Errors
/// [`Error::Write`] when the file cannot be written.
pub fn write_jsonl(path: &Path, items: &[Item]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for item in items {
            serde_json::to_writer(&mut file, &Row::new(item))?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    write().map_err(Error::write(path))
}

#[derive(Serialize)]
struct Row<'a> {
    image: &'a str,
    captions: Map<String, Value>,
    translated_from_en: Map<String, Value>,
    translated_to_en: Map<String, Value>,
    split: Split,
}

impl<'a> Row<'a> {
    fn new(item: &'a Item) -> Self {
        let texts = |texts: &[String; N_LANGUAGES], languages: &[Language]| {
            let entry = |&l: &Language| (l.code().to_owned(), texts[l as usize].clone().into());
            languages.iter().map(entry).collect()
        };
        let others = &Language::ALL[1..];
        Self {
            image: &item.image,
            captions: texts(&item.captions, &Language::ALL),
            translated_from_en: texts(&item.from_en, others),
            translated_to_en: texts(&item.to_en, others),
            split: item.split,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::features::D;

    const CONFIG: WorldConfig = WorldConfig {
        seed: 11,
        n_pool: 100,
        n_train: 20,
        n_val: 10,
        n_test: 15,
    };

    #[test]
    fn has_the_sizes_asked_for_and_repeats() {
        let world = World::new(&CONFIG);
        let sizes = [Split::Train, Split::Val, Split::Test].map(|s| world.split(s).count());
        assert_eq!(sizes, [20, 10, 15]);
        assert_eq!(
            Language::ALL.map(|l| world.pool_pairs(l).count()),
            [100, 60, 45, 20, 16, 12]
        );
        assert!(world.items.iter().all(|item| item.features.len() == D));
        let again = World::new(&CONFIG);
        assert!(world.texts().eq(again.texts()));
        let bits = |w: &World| -> Vec<u32> {
            w.items
                .iter()
                .flat_map(|item| &item.features)
                .map(|x| x.to_bits())
                .collect()
        };
        assert_eq!(bits(&world), bits(&again));
    }

    #[test]
    fn features_are_those_of_the_picture() {
        let world = World::new(&CONFIG);
        let item = &world.items[3];
        assert_eq!(world.features.features(&item.picture()), item.features);
    }

    #[test]
    fn a_towers_features_take_the_place_of_the_maps() {
        let mut world = World::new(&CONFIG);
        let pool: Vec<f32> = (0..300).map(|x| x as f32).collect();
        let items: Vec<f32> = (0..135).map(|x| -(x as f32)).collect();
        let pictures = [world.pool[7].picture(), world.items[7].picture()];
        world.replace_features(3, &pool, &items);
        let pair = world.pool_pairs(Language::Ko).nth(7);
        assert_eq!(pair.map(|p| p.features), Some(&[21.0, 22.0, 23.0][..]));
        assert_eq!(world.items[44].features, [-132.0, -133.0, -134.0]);
        assert_eq!(
            pictures,
            [world.pool[7].picture(), world.items[7].picture()]
        );
    }

    #[test]
    fn jsonl_has_a_row_an_item() {
        let world = World::new(&CONFIG);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("world.jsonl");
        write_jsonl(&path, &world.items).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(rows.len(), 45);
        assert_eq!(rows[0]["image"], "scene_00100.png");
        assert_eq!(rows[0]["split"], "train");
        assert_eq!(rows[44]["split"], "test");
        assert_eq!(
            rows[7]["captions"]["ko"],
            world.items[7].caption(Language::Ko)
        );
        assert_eq!(rows[7]["translated_to_en"]["tr"], world.items[7].to_en[4]);
        assert!(rows[7]["translated_from_en"].get("en").is_none());
        let missing = folder.path().join("none").join("world.jsonl");
        assert!(matches!(
            write_jsonl(&missing, &world.items),
            Err(Error::Write { .. })
        ));
    }
}
