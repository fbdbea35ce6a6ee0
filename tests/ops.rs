//! Every op: finite differences in f64 prove the reference, the reference proves the CPU code.
//!
//! Shapes are one token, primes, odd tails and real sizes; one member and three of unequal sizes;
//! parameters frozen and trainable; parameter gradients are added to what was there.

mod common;

mod limits {
    /// Largest error of a finite difference over the largest entry of its tensor. Measured: 7.9e-10.
    pub const FINITE_DIFFERENCE: f64 = 4e-9;

    /// Limits of an op's f32 CPU code against the reference in f64.
    pub struct Limit {
        stem: &'static str,
        /// |got - want| / (level + |want|), level the larger of 1 and the tensor's root mean square.
        pub error: f64,
        /// Squared error over squared length of a tensor.
        pub nmse: f64,
    }

    /// stem, error (measured), NMSE (measured): AVX2, all shapes of these tests.
    #[rustfmt::skip]
    const LIMITS: [Limit; 12] = [
        Limit { stem: "activation",  error: 1e-6, nmse: 5e-14 }, // 1.7e-7, 5.6e-15
        Limit { stem: "add",         error: 4e-6, nmse: 6e-14 }, // 4.5e-7, 6.0e-15
        Limit { stem: "linear",      error: 1e-5, nmse: 1e-12 }, // 2.6e-6, 1.7e-13
        Limit { stem: "phm",         error: 9e-6, nmse: 2e-12 }, // 9.2e-7, 2.0e-13
        Limit { stem: "layer_norm",  error: 9e-6, nmse: 6e-13 }, // 9.1e-7, 6.2e-14
        Limit { stem: "attention",   error: 1e-5, nmse: 1e-12 }, // 1.3e-6, 1.1e-13
        Limit { stem: "embedding",   error: 1e-5, nmse: 2e-12 }, // 1.7e-6, 1.5e-12
        Limit { stem: "vision_embedding", error: 4e-7, nmse: 2e-14 }, // 4.3e-8, 2.6e-15
        Limit { stem: "pool",        error: 1e-6, nmse: 8e-14 }, // 1.1e-7, 8.7e-15
        Limit { stem: "l2_norm",     error: 2e-6, nmse: 1e-13 }, // 2.8e-7, 1.7e-14
        Limit { stem: "contrastive", error: 9e-6, nmse: 4e-12 }, // 9.3e-7, 4.2e-13
        Limit { stem: "mse",         error: 3e-7, nmse: 3e-14 }, // 3.7e-8, 3.6e-15
    ];

    pub fn limit(stem: &str) -> &'static Limit {
        let row = LIMITS.iter().find(|l| l.stem == stem);
        row.expect("a limit of that stem")
    }
}

mod ops {
    mod activation;
    mod add;
    mod attention;
    mod contrastive;
    mod embedding;
    mod l2_norm;
    mod layer_norm;
    mod linear;
    mod mse;
    mod phm;
    mod pool;
    pub mod rig;
    mod vision_embedding;
}
