//! Captions and image features as they are published or made beforehand.

pub mod features;
