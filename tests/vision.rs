//! Vision towers: PyTorch's numbers, published names, real weights, gradients, and files that are not
//! as they should be.

mod common;

mod vision {
    mod dino;
    mod gradients;
    mod input;
    mod names;
    mod numbers;
    pub mod rig;
}
