//! Several adapters of one model in use at once: each text is encoded by the one chosen for it.
//!
//! Adapters of one configuration share a pass, as members of one batch: the frozen products run once
//! over all their texts. A text's feature is the same to the byte as with its adapter alone.

use crate::adapter::Adapter;
use crate::adapter::file::AdapterFile;
use crate::engine::{Engine, TextEncoder};
use crate::error::Result;

/// Adapters of one model, bound to memory.
pub struct AdapterSet {
    encoders: Vec<TextEncoder>,
    /// Encoder and member of each adapter.
    places: Vec<(usize, usize)>,
}

impl AdapterSet {
    /// Binds them; `None` stands for the model as it is.
    ///
    /// # Errors
    /// An adapter of another model.
    pub fn new(engine: &Engine, adapters: &[Option<&AdapterFile>]) -> Result<AdapterSet> {
        let bare = Adapter::default();
        let mut groups: Vec<(&Adapter, Vec<usize>)> = Vec::new();
        let mut places = Vec::new();
        for (i, file) in adapters.iter().enumerate() {
            let config = file.map_or(&bare, |f| &f.config);
            let group = match groups.iter().position(|(c, _)| *c == config) {
                Some(group) => group,
                None => {
                    groups.push((config, vec![]));
                    groups.len() - 1
                }
            };
            places.push((group, groups[group].1.len()));
            groups[group].1.push(i);
        }
        let mut encoders = Vec::new();
        for (config, own) in groups {
            let mut encoder = TextEncoder::with_members(engine, config, own.len())?;
            for (member, i) in own.iter().enumerate() {
                if let Some(file) = adapters[*i] {
                    file.load_into(&mut encoder.state, member)?;
                }
            }
            encoders.push(encoder);
        }
        Ok(AdapterSet { encoders, places })
    }

    /// Features (N, E) of tokenised texts, not normalised; `which` is the adapter of each.
    /// `progress` is told how many are done.
    ///
    /// # Errors
    /// If a feature is not finite.
    ///
    /// # Panics
    /// If `which` has another length than `ids`, or names no adapter.
    pub fn encode(
        &mut self,
        engine: &Engine,
        ids: &[Vec<u32>],
        which: &[usize],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        assert_eq!(ids.len(), which.len(), "an adapter for each text");
        let width = engine.embed_dim();
        let mut features = vec![0f32; ids.len() * width];
        let mut done = 0;
        for (e, encoder) in self.encoders.iter_mut().enumerate() {
            let chosen = |i: usize| {
                let (encoder, member) = self.places[which[i]];
                (encoder == e).then_some((i, member))
            };
            let own: Vec<(usize, usize)> = (0..ids.len()).filter_map(chosen).collect();
            let tell = &mut |n| progress(done + n);
            encoder.encode_into(&mut features, engine, ids, &own, tell)?;
            done += own.len();
        }
        Ok(features)
    }
}
