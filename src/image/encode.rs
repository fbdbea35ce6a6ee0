//! Pictures' features, each computed once: files are read, decoded and cropped beside the tower, and
//! what it gives goes to the cache.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::thread;

use rayon::prelude::*;

use super::cache::{Digest, FeatureCache, digest};
use super::decode::decode;
use super::list::Named;
use super::preprocess::Preprocess;
use crate::engine::vision::VisionEngine;
use crate::error::{Error, Result};

/// Parts of a pass that wait for the tower.
const QUEUE: usize = 2;

/// Pictures and their features.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// Names of the pictures that could be read, in the order asked for.
    pub names: Vec<String>,
    /// Their features (N, E), not normalised.
    pub values: Vec<f32>,
    /// Those that could not be read, and why.
    pub unreadable: Vec<Unreadable>,
    /// How many features were computed now; copies of one picture count once.
    pub computed: usize,
}

/// A picture that could not be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// What is the matter with it.
    pub why: String,
}

/// What reading made of a picture.
enum Read {
    /// It was in the cache when this began.
    Known(Digest),
    /// To be computed: digest, pixels (3, side, side).
    New(Digest, Vec<f32>),
    Bad(String),
}

/// The features of pictures, from the cache or computed now. `progress` is told how many are done,
/// and may stop it: what was computed is kept.
///
/// # Errors
/// [`Error::Cancelled`]; a tower or a disk that fails. A picture that can't be read is none.
pub fn encode(
    engine: &mut VisionEngine,
    preprocess: &Preprocess,
    cache: &mut FeatureCache,
    pictures: &[Named],
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Encoded> {
    let (pool, pass) = (engine.pool(), engine.pass());
    let known: HashSet<Digest> = cache.digests().collect();
    let mut found: Vec<std::result::Result<Digest, String>> = Vec::with_capacity(pictures.len());
    let before = cache.len();
    thread::scope(|scope| -> Result<()> {
        let (send, receive) = sync_channel::<Vec<Read>>(QUEUE);
        let readers = pool.clone();
        scope.spawn(move || {
            for part in pictures.chunks(pass) {
                let read = readers.install(|| read_part(part, preprocess, &known));
                // Who was to take them has failed, and says so.
                if send.send(read).is_err() {
                    return;
                }
            }
        });
        for part in receive {
            let mut pixels = Vec::new();
            let mut new = Vec::new();
            for read in part {
                found.push(match read {
                    Read::Known(digest) => Ok(digest),
                    Read::Bad(why) => Err(why),
                    Read::New(digest, own) => {
                        new.push(digest);
                        pixels.extend(own);
                        Ok(digest)
                    }
                });
            }
            let features = engine.encode(&pixels)?;
            let width = engine.config().embed_dim;
            let rows: Vec<(Digest, &[f32])> =
                new.into_iter().zip(features.chunks_exact(width)).collect();
            if !rows.is_empty() {
                cache.add(&rows)?;
            }
            if progress(found.len()).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    })?;
    let mut out = Encoded {
        computed: cache.len() - before,
        ..Encoded::default()
    };
    for (picture, found) in pictures.iter().zip(found) {
        match found {
            Ok(digest) => {
                let row = cache.get(&digest).ok_or_else(|| {
                    Error::Run(format!("{}: its feature was lost", picture.path.display()))
                })?;
                out.names.push(picture.name.clone());
                out.values.extend_from_slice(row);
            }
            Err(why) => out.unreadable.push(Unreadable {
                name: picture.name.clone(),
                path: picture.path.clone(),
                why,
            }),
        }
    }
    Ok(out)
}

/// Reads some pictures; those in the cache are not decoded.
fn read_part(part: &[Named], preprocess: &Preprocess, known: &HashSet<Digest>) -> Vec<Read> {
    let read = |picture: &Named| {
        let bytes = match fs::read(&picture.path) {
            Ok(bytes) => bytes,
            Err(e) => return Read::Bad(format!("cannot be read: {e}")),
        };
        let digest = digest(&bytes);
        if known.contains(&digest) {
            return Read::Known(digest);
        }
        let square = decode(&bytes).and_then(|picture| preprocess.crop(&picture));
        match square {
            Ok(square) => Read::New(digest, preprocess.normalise(&square)),
            Err(e) => Read::Bad(e.to_string()),
        }
    };
    part.par_iter().map(read).collect()
}
