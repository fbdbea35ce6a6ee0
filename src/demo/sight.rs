//! Pictures' features by the demo's own vision tower, read back from its folder as anybody's would be.

use std::ops::ControlFlow;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::event::Teller;
use super::model::Tensors;
use super::render::{Picture, SIDE};
use super::run::DemoOptions;
use super::vision::teach;
use super::world::{PoolItem, World};
use super::{tower, vision};
use crate::data::features::Features;
use crate::engine::vision::VisionEngine;
use crate::engine::{EngineOptions, pool};
use crate::error::{Error, Result};
use crate::eval::retrieval::retrieval;
use crate::image::cache::{Digest, FeatureCache, key, origin};
use crate::image::encode::encode;
use crate::image::list;
use crate::image::preprocess::Preprocess;
use crate::tensor::Dtype;
use crate::weights::vision::VisionFiles;

/// What became of the vision tower.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TowerReport {
    /// Its parameters.
    pub parameters: usize,
    /// Those of them that were trained: all but the embeddings.
    pub trained: usize,
    /// Pictures that it was not taught, which are those of the folder.
    pub pictures: usize,
    /// R@1 among them of the hand-made map's vector of a picture by the tower's feature of it.
    pub map_r1: f64,
}

/// The tower of a demo's folder.
struct Sight {
    engine: VisionEngine,
    preprocess: Preprocess,
    key: Digest,
}

impl Sight {
    fn open(folder: &Path, options: EngineOptions) -> Result<Sight> {
        let path = folder.join("vision");
        let preprocess = Preprocess::read(&path, || Ok(SIDE))?;
        let files = VisionFiles::open(&path, Some(preprocess.crop))?;
        let engine = VisionEngine::new(files, options)?;
        let key = key(&engine, &preprocess)?;
        Ok(Sight {
            engine,
            preprocess,
            key,
        })
    }

    /// Features (N, E) of pictures that are on no disk.
    fn of_memory(&mut self, pictures: &[Picture]) -> Result<Vec<f32>> {
        let pool = self.engine.pool();
        let mut all = Vec::new();
        for some in pictures.chunks(self.engine.pass()) {
            let pixels = pool.install(|| vision::pixels(&self.preprocess, some))?;
            all.extend(self.engine.encode(&pixels)?);
        }
        Ok(all)
    }

    /// Features of the folder's pictures, as `crosstune features` makes them.
    fn of_folder(&mut self, folder: &Path, names: &[String]) -> Result<Features> {
        let pictures = list::by_names(&folder.join("pictures"), names)?;
        let dim = self.engine.config().embed_dim;
        let mut cache = FeatureCache::open(&folder.join("cache"), &self.key, dim, |_| ())?;
        let go_on = &mut |_| ControlFlow::Continue(());
        let encoded = encode(
            &mut self.engine,
            &self.preprocess,
            &mut cache,
            &pictures,
            go_on,
        )?;
        if let Some(bad) = encoded.unreadable.first() {
            let path = bad.path.display();
            return Err(Error::Run(format!(
                "{path}: was just written, but {}",
                bad.why
            )));
        }
        Ok(Features {
            names: encoded.names,
            dim,
            values: encoded.values,
        })
    }
}

/// Whether a folder has a tower that can be opened.
pub(super) fn is_whole(folder: &Path) -> bool {
    let path = folder.join("vision");
    VisionFiles::open(&path, None).is_ok() && Preprocess::read(&path, || Ok(SIDE)).is_ok()
}

/// Teaches a tower what the map sees in the pool's pictures, writes it, and gives every picture of the
/// world the feature that the written tower has for it.
pub(super) fn give_sight(
    options: &DemoOptions,
    engine: EngineOptions,
    world: &mut World,
    teller: &mut Teller<'_>,
) -> Result<TowerReport> {
    let folder = &options.folder;
    let threads = pool(engine.threads)?;
    let pictures: Vec<Picture> =
        threads.install(|| world.pool.par_iter().map(PoolItem::picture).collect());
    let (config, tensors) = teach(options, (world, &pictures), &threads, teller)?;
    tower::write(&folder.join("vision"), &config, &tensors)?;

    let mut sight = Sight::open(folder, engine)?;
    let of_pool = sight.of_memory(&pictures)?;
    let names: Vec<String> = world.items.iter().map(|item| item.image.clone()).collect();
    let items = sight.of_folder(folder, &names)?;
    let metadata = origin(sight.engine.files(), &sight.preprocess, &sight.key)?;
    items.save_with(&folder.join("features.safetensors"), Dtype::F32, metadata)?;
    let report = measure(world, &items, &tensors)?;
    world.replace_features(items.dim, &of_pool, &items.values);
    Ok(report)
}

/// What the tower's features of the items are worth beside the map's, which the world still has.
fn measure(world: &World, items: &Features, tensors: &Tensors) -> Result<TowerReport> {
    let rows = world.items.iter().flat_map(|item| &item.features);
    let map: Vec<f32> = rows.copied().collect();
    let recall = retrieval(&map, &items.values, items.len(), items.dim)?;
    let elements = |keep: fn(&str) -> bool| {
        let kept = tensors.iter().filter(|(name, ..)| keep(name));
        kept.map(|(_, _, values)| values.len()).sum()
    };
    Ok(TowerReport {
        parameters: elements(|_| true),
        trained: elements(tower::trained),
        pictures: items.len(),
        map_r1: recall.i2t[0],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::png::to_png;
    use crate::demo::recipe::Recipe;

    /// What a picture is seen as depends neither on its way to the tower nor on its company.
    #[test]
    fn pictures_in_memory_and_in_files_look_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = DemoOptions::new(dir.path());
        let recipe = &mut options.recipe;
        *recipe = Recipe::quick();
        (recipe.n_pool, recipe.n_train, recipe.n_val, recipe.n_test) = (40, 9, 0, 3);
        (recipe.vision.hidden, recipe.vision.stage.epochs) = (16, 1);
        let mut world = World::new(&recipe.world(2));
        let map = world.items[5].features.clone();
        std::fs::create_dir(dir.path().join("pictures")).unwrap();
        for item in &world.items {
            let path = dir.path().join("pictures").join(&item.image);
            std::fs::write(path, to_png(&item.picture()).unwrap()).unwrap();
        }
        let teller = &mut Teller {
            on_event: &mut |_| ControlFlow::Continue(()),
        };
        let engine = EngineOptions::default();
        let report = give_sight(&options, engine, &mut world, teller).unwrap();
        assert_eq!(report.pictures, 12);
        assert!(world.items[5].features != map && is_whole(dir.path()));

        let features = Features::load(&dir.path().join("features.safetensors")).unwrap();
        let mut sight = Sight::open(dir.path(), engine).unwrap();
        for (i, item) in world.items.iter().enumerate() {
            assert_eq!(features.names[i], item.image);
            assert_eq!(features.row(i), item.features);
            assert_eq!(sight.of_memory(&[item.picture()]).unwrap(), item.features);
        }
        let item = &world.pool[17];
        assert_eq!(sight.of_memory(&[item.picture()]).unwrap(), item.features);
    }
}
