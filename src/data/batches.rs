//! The order in which items are trained on.
//!
//! A batch depends on the member's seed and the step only: a run that resumes at step s, or shares
//! its steps with other members, sees the batches of a run alone.

use crate::bad_input;
use crate::error::Result;

/// The odd constant of SplitMix64 (Steele, Lea and Flood 2014).
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The order of items in an epoch: a Fisher-Yates shuffle of `0..n_items`.
///
/// Word `k` (from 0) of its random numbers is `mix(key + (k + 1) * GAMMA)` with
/// `key = mix(mix(seed) + epoch * GAMMA)`, which is SplitMix64 started at `key`; nothing else is
/// state. For `i` from `n_items - 1` down to 1, item `i` is swapped with item
/// `word * (i + 1) >> 64`.
pub fn epoch_order(n_items: usize, seed: u64, epoch: u32) -> Vec<u32> {
    let key = mix(mix(seed).wrapping_add(u64::from(epoch).wrapping_mul(GAMMA)));
    let mut order: Vec<u32> = (0..n_items as u32).collect();
    let mut state = key;
    for i in (1..n_items).rev() {
        state = state.wrapping_add(GAMMA);
        let j = (u128::from(mix(state)) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// The items of a step, counted from 0; the last batch of an epoch holds what is left.
///
/// Shuffles a whole epoch on every call; [`Batches`] keeps the order. Empty when `n_items` is 0.
pub fn batch_items(n_items: usize, batch: usize, seed: u64, step: usize) -> Vec<u32> {
    let (epoch, range) = locate(n_items, batch.max(1), step);
    epoch_order(n_items, seed, epoch)[range].to_vec()
}

/// The batches of one member's run.
#[derive(Clone, Debug)]
pub struct Batches {
    n_items: usize,
    batch: usize,
    seed: u64,
    /// The epoch whose order is at hand.
    cached: Option<(u32, Vec<u32>)>,
}

impl Batches {
    /// Batches of `batch` of `n_items` items.
    ///
    /// # Errors
    /// When either is 0, or there are more items than 32 bits count.
    pub fn new(n_items: usize, batch: usize, seed: u64) -> Result<Self> {
        if batch == 0 {
            return Err(bad_input!("batch: expected at least 1, found 0"));
        }
        if n_items == 0 {
            return Err(bad_input!(
                "training set: expected at least 1 item, found 0; choose a number of shots"
            ));
        }
        if u32::try_from(n_items).is_err() {
            return Err(bad_input!(
                "training set: expected at most {} items, found {n_items}; split it",
                u32::MAX
            ));
        }
        Ok(Batches {
            n_items,
            batch,
            seed,
            cached: None,
        })
    }

    /// ceil(items / batch).
    pub fn steps_per_epoch(&self) -> usize {
        self.n_items.div_ceil(self.batch)
    }

    /// The items of a step, counted from 0 over the whole run.
    pub fn items(&mut self, step: usize) -> &[u32] {
        let (epoch, range) = locate(self.n_items, self.batch, step);
        let cached = self.cached.take().filter(|(cached, _)| *cached == epoch);
        let order = match cached {
            Some((_, order)) => order,
            None => epoch_order(self.n_items, self.seed, epoch),
        };
        let (_, order) = self.cached.insert((epoch, order));
        &order[range]
    }
}

/// The epoch of a step and its place in that epoch's order.
fn locate(n_items: usize, batch: usize, step: usize) -> (u32, std::ops::Range<usize>) {
    let per_epoch = n_items.div_ceil(batch).max(1);
    let start = (step % per_epoch * batch).min(n_items);
    (
        (step / per_epoch) as u32,
        start..(start + batch).min(n_items),
    )
}

/// SplitMix64's output function, a bijection of 64-bit words.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_splitmix64() {
        // The reference generator's first words from state 1234567.
        let words: Vec<u64> = (1..=3u64)
            .map(|k| mix(1_234_567u64.wrapping_add(k.wrapping_mul(GAMMA))))
            .collect();
        let want = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(words, want);
    }

    #[test]
    fn an_epoch_holds_every_item_once() {
        for n in [1, 2, 7, 50, 1000] {
            let mut order = epoch_order(n, 3, 2);
            order.sort_unstable();
            assert!(order.iter().copied().eq(0..n as u32));
        }
        assert_ne!(epoch_order(50, 1, 0), epoch_order(50, 1, 1));
        assert_ne!(epoch_order(50, 1, 0), epoch_order(50, 2, 0));
        // (seed, epoch) are not confused with one another.
        assert_ne!(epoch_order(50, 1, 2), epoch_order(50, 2, 1));
    }

    #[test]
    fn first_places_are_uniform() {
        let mut counts = [0; 5];
        for seed in 0..5000 {
            counts[epoch_order(5, seed, 0)[0] as usize] += 1;
        }
        assert!(
            counts.iter().all(|&c| (880..1120).contains(&c)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_only() {
        let mut batches = Batches::new(11, 4, 9).unwrap();
        assert_eq!(batches.steps_per_epoch(), 3);
        let sizes: Vec<usize> = (0..6).map(|s| batches.items(s).len()).collect();
        assert_eq!(sizes, [4, 4, 3, 4, 4, 3]);
        for step in [5, 0, 3, 7, 1] {
            assert_eq!(
                batches.items(step),
                batch_items(11, 4, 9, step),
                "step {step}"
            );
        }
        assert_eq!(batch_items(3, 8, 9, 1).len(), 3);
        assert!(batch_items(0, 8, 9, 1).is_empty());
    }

    #[test]
    fn bad_sizes_are_named() {
        for (n, batch, part) in [(5, 0, "batch"), (0, 5, "training set")] {
            let error = Batches::new(n, batch, 0).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
