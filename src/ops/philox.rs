//! Random numbers by name: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
//! 3", SC 2011).
//!
//! The key is a member's seed; the counter names what the number is for. So the same numbers come
//! out on a CPU, in the virtual machine and on a GPU, with any thread count, and a member draws the
//! same in company as alone.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Blocks of four words that are made together: one a lane of a vector.
const BLOCKS: usize = 8;

/// Four random words of a counter.
#[inline(always)]
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(c0);
        let p1 = u64::from(M1) * u64::from(c2);
        (c0, c1, c2, c3) = (
            (p1 >> 32) as u32 ^ c1 ^ k0,
            p1 as u32,
            (p0 >> 32) as u32 ^ c3 ^ k1,
            p0 as u32,
        );
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// Uniform in [0, 1) from the upper 24 bits of a word.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Numbers that are not part of a step (initial values), named by a stream and an index.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    seed: u64,
    stream: u32,
}

impl Stream {
    /// The stream of that name, by a hash of the name (FNV-1a).
    pub fn named(seed: u64, name: &str) -> Stream {
        let hash = name.bytes().fold(0x811C_9DC5u32, |h, b| {
            (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
        });
        Stream { seed, stream: hash }
    }

    fn words(&self, index: u64) -> [u32; 4] {
        philox(
            self.seed,
            [index as u32, (index >> 32) as u32, self.stream, u32::MAX],
        )
    }

    /// `n` numbers uniform in +-bound.
    pub fn uniform(&self, n: usize, bound: f32) -> Vec<f32> {
        (0..n)
            .map(|i| (unit(self.words(i as u64)[0]) * 2.0 - 1.0) * bound)
            .collect()
    }

    /// `n` normal numbers (Box and Muller).
    pub fn normal(&self, n: usize, std: f32) -> Vec<f32> {
        (0..n)
            .map(|i| {
                let w = self.words(i as u64);
                let u = 1.0 - f64::from(unit(w[0]));
                let angle = std::f64::consts::TAU * f64::from(unit(w[1]));
                ((-2.0 * u.ln()).sqrt() * angle.cos()) as f32 * std
            })
            .collect()
    }
}

/// Dropout of one site of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that a number is dropped.
    pub p: f32,
    /// Names the layer and the place in it.
    pub site: u32,
}

/// Names a row of random numbers: everything but the column.
#[derive(Clone, Copy, Debug)]
pub struct RowKey {
    /// The member's seed.
    pub seed: u64,
    /// Token in its text; for attention `head << 16 | query`.
    pub place: u32,
    /// Site, text role and item: `site << 22 | role << 20 | item`.
    pub what: u32,
    /// Training step.
    pub step: u32,
}

impl RowKey {
    /// The row of a text of a member at a step.
    pub fn new(seed: u64, step: u32, site: u32, role: u8, item: u32, place: u32) -> RowKey {
        RowKey {
            seed,
            place,
            what: site << 22 | u32::from(role) << 20 | (item & 0xF_FFFF),
            step,
        }
    }

    /// Four words for columns `4 * block ..`.
    #[inline(always)]
    fn words(&self, block: u32) -> [u32; 4] {
        philox(self.seed, [block, self.place, self.what, self.step])
    }

    /// The words of [`BLOCKS`] blocks from `first` on.
    #[inline(always)]
    fn blocks(&self, first: u32) -> [[u32; 4]; BLOCKS] {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            #[allow(unsafe_code)]
            // SAFETY: AVX2 was detected.
            return unsafe { self.blocks_avx2(first) };
        }
        std::array::from_fn(|i| self.words(first + i as u32))
    }

    /// One block a lane; left to itself the compiler computes them one by one.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    #[inline]
    fn blocks_avx2(&self, first: u32) -> [[u32; 4]; BLOCKS] {
        use std::arch::x86_64::*;
        let all = |x: u32| _mm256_set1_epi32(x as i32);
        let (m0, m1) = (all(M0), all(M1));
        // Low and high halves of the products of all lanes: even ones, then odd ones.
        let product = |x, m| {
            let even = _mm256_mul_epu32(x, m);
            let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(x), m);
            let low = _mm256_blend_epi32::<0xAA>(even, _mm256_slli_epi64::<32>(odd));
            (
                low,
                _mm256_blend_epi32::<0xAA>(_mm256_srli_epi64::<32>(even), odd),
            )
        };
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let mut c0 = _mm256_add_epi32(all(first), lanes);
        let (mut c1, mut c2, mut c3) = (all(self.place), all(self.what), all(self.step));
        let (mut k0, mut k1) = (self.seed as u32, (self.seed >> 32) as u32);
        for _ in 0..10 {
            let ((low0, high0), (low1, high1)) = (product(c0, m0), product(c2, m1));
            c0 = _mm256_xor_si256(_mm256_xor_si256(high1, c1), all(k0));
            c2 = _mm256_xor_si256(_mm256_xor_si256(high0, c3), all(k1));
            (c1, c3) = (low1, low0);
            k0 = k0.wrapping_add(W0);
            k1 = k1.wrapping_add(W1);
        }
        // From a word a vector to a block a half.
        let (a, b) = (_mm256_unpacklo_epi32(c0, c1), _mm256_unpackhi_epi32(c0, c1));
        let (c, d) = (_mm256_unpacklo_epi32(c2, c3), _mm256_unpackhi_epi32(c2, c3));
        let (b04, b15) = (_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c));
        let (b26, b37) = (_mm256_unpacklo_epi64(b, d), _mm256_unpackhi_epi64(b, d));
        bytemuck::cast([
            _mm256_permute2x128_si256::<0x20>(b04, b15),
            _mm256_permute2x128_si256::<0x20>(b26, b37),
            _mm256_permute2x128_si256::<0x31>(b04, b15),
            _mm256_permute2x128_si256::<0x31>(b26, b37),
        ])
    }
}

impl Dropout {
    /// A number is kept where its word is at least this.
    #[inline(always)]
    pub(crate) fn threshold(&self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0) as u32
    }

    /// What a kept number is multiplied by.
    #[inline(always)]
    pub fn scale(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }

    /// The factor of one column: 0 or [`Dropout::scale`]. The plain version.
    pub fn factor(&self, key: &RowKey, col: usize) -> f32 {
        let word = key.words(col as u32 / 4)[col % 4];
        if word >= self.threshold() {
            self.scale()
        } else {
            0.0
        }
    }

    /// Multiplies a row by its factors.
    #[inline(always)]
    pub fn apply(&self, key: &RowKey, row: &mut [f32]) {
        self.apply_from(key, 0, row);
    }

    /// Multiplies columns `col ..` of a row by their factors; `col` is a multiple of 4.
    #[inline(always)]
    pub fn apply_from(&self, key: &RowKey, col: usize, run: &mut [f32]) {
        debug_assert!(col.is_multiple_of(4), "words come in fours");
        let (threshold, scale) = (self.threshold(), self.scale());
        for (b, run) in run.chunks_mut(4 * BLOCKS).enumerate() {
            let words = key.blocks((col / 4 + b * BLOCKS) as u32);
            for (x, w) in run.iter_mut().zip(words.as_flattened()) {
                *x *= if *w >= threshold { scale } else { 0.0 };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_published_vectors() {
        // Known answers of Random123's kat_vectors for philox4x32-10.
        assert_eq!(
            philox(0, [0; 4]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox(u64::MAX, [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn a_row_is_the_same_as_its_columns_and_drops_about_p() {
        let drop = Dropout { p: 0.1, site: 3 };
        let key = RowKey::new(7, 5, 3, 1, 9, 11);
        let mut row = vec![1.0; 1003];
        drop.apply(&key, &mut row);
        let want: Vec<f32> = (0..1003).map(|c| drop.factor(&key, c)).collect();
        assert_eq!(row, want);
        let mut part = vec![1.0; 77];
        drop.apply_from(&key, 260, &mut part);
        assert_eq!(part, want[260..337]);
        let dropped = row.iter().filter(|x| **x == 0.0).count();
        assert!((60..140).contains(&dropped), "{dropped}");
    }

    #[test]
    fn streams_have_the_moments_they_should() {
        let x = Stream::named(1, "a").normal(20_000, 2.0);
        let mean = x.iter().sum::<f32>() / 20_000.0;
        let var = x.iter().map(|v| v * v).sum::<f32>() / 20_000.0;
        assert!(
            mean.abs() < 0.05 && (var - 4.0).abs() < 0.15,
            "{mean} {var}"
        );
        let u = Stream::named(1, "b").uniform(1000, 0.5);
        assert!(u.iter().all(|v| v.abs() <= 0.5) && u != Stream::named(1, "c").uniform(1000, 0.5));
    }
}
