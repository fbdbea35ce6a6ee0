//! Pictures: from the bytes of a JPEG or PNG file to what a vision tower reads, as CLIP's own
//! preprocessing by Pillow gives it.

pub mod cache;
pub mod decode;
pub mod encode;
pub mod list;
pub mod preprocess;
mod resize;

use crate::bad_input;
use crate::error::Result;

pub use resize::{Filter, PassOrder, Window};

/// A decoded picture: 8-bit RGB without alpha.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// A picture of `rgb` (height, width, 3).
    ///
    /// # Errors
    /// When a side is 0 or the values are not as many as the sides say.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Picture> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(rgb.len()) {
            return Err(bad_input!(
                "picture: {} values given for {width} x {height} in RGB",
                rgb.len()
            ));
        }
        Ok(Picture { width, height, rgb })
    }

    /// Pixels a row, at least 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows, at least 1.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values (height, width, 3).
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// What `window` shows of the picture resized to `size` (width, height). Nothing else of the
    /// resized picture is computed, so a strip of 12,000 x 30 costs no more than any other.
    ///
    /// # Errors
    /// When `size` or `window` has a side of 0, or the window reaches beyond the resized picture.
    pub fn resize(
        &self,
        size: (usize, usize),
        window: Window,
        filter: Filter,
        order: PassOrder,
    ) -> Result<Picture> {
        resize::resize(self, size, window, filter, order)
    }
}
