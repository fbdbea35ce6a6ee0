
pub mod disparity;
