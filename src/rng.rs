//! The random permutation that the published splits are drawn with.
//!
//! The split of a data set must be the original's to the item, so this is `torch.randperm` on the
//! CPU: Mersenne Twister 19937 (Matsumoto and Nishimura 1998, `init_genrand` and
//! `genrand_int32` of their mt19937ar.c) driving a forward Fisher-Yates shuffle.

/// Words of state.
const N: usize = 624;
/// Distance between the two words that a twist combines.
const M: usize = 397;

/// A permutation of `0..n`, equal to `torch.randperm(n)` on the CPU after
/// `torch.manual_seed(seed)`.
///
/// For `i` in `0..n - 1`, item `i` is swapped with item `i + word % (n - i)`. PyTorch draws so for
/// every `n` below `u32::MAX / 20`; the remainder's bias is part of the definition.
pub fn randperm(n: usize, seed: u32) -> Vec<usize> {
    let mut twister = Mt19937::new(seed);
    let mut perm: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        let j = i + twister.next_u32() as usize % (n - i);
        perm.swap(i, j);
    }
    perm
}

struct Mt19937 {
    state: [u32; N],
    /// The next word to give out; `N` asks for a twist.
    next: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [0; N];
        let mut word = seed;
        for (i, slot) in state.iter_mut().enumerate() {
            if i > 0 {
                word = 1_812_433_253u32
                    .wrapping_mul(word ^ (word >> 30))
                    .wrapping_add(i as u32);
            }
            *slot = word;
        }
        Mt19937 { state, next: N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn first_words_are_those_of_mt19937ar() {
        let mut twister = Mt19937::new(5489);
        assert_eq!(twister.next_u32(), 3_499_211_612);
        for _ in 2..10_000 {
            twister.next_u32();
        }
        // The 10,000th word that the C++ standard states for std::mt19937.
        assert_eq!(twister.next_u32(), 4_123_659_995);
    }

    #[test]
    fn small_permutations() {
        assert_eq!(randperm(0, 42), Vec::<usize>::new());
        assert_eq!(randperm(1, 42), [0]);
        assert_eq!(randperm(10, 42), [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]);
        assert_eq!(randperm(1000, 42)[..5], [542, 618, 816, 68, 94]);
    }

    #[test]
    fn equals_torch() {
        let folder = std::env::var_os("CROSSTUNE_GOLDENS").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/goldens/open"),
            PathBuf::from,
        );
        let Ok(text) = std::fs::read_to_string(folder.join("scalars.json")) else {
            eprintln!("skipped: no scalars.json in {}", folder.display());
            return;
        };
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let list = |v: &serde_json::Value| -> Vec<usize> {
            v.as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_u64().unwrap() as usize)
                .collect()
        };
        for case in golden["randperm"].as_array().unwrap() {
            let n = case["n"].as_u64().unwrap() as usize;
            let seed = case["seed"].as_u64().unwrap() as u32;
            assert_eq!(randperm(n, seed), list(&case["perm"]), "n {n}, seed {seed}");
        }
        let perm = randperm(29_000, 42);
        let case = &golden["randperm_29000_seed42"];
        assert_eq!(perm[..100], list(&case["first_100"]));
        assert_eq!(perm[28_990..], list(&case["last_10"]));
    }
}
