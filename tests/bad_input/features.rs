//! Image features.

use crate::{NOTHING, Row};

pub const ROWS: &[Row] = &[
    Row {
        name: "a NaN image feature",
        spoil: |w| w.edit_features(|f| f.values[16 * 54 + 2] = f32::NAN),
        args: &[],
        says: &[
            "features.safetensors: image features: row 54 (scene_00054.png) has NaN at place 2",
        ],
    },
    Row {
        name: "an all-zero image feature",
        spoil: |w| w.edit_features(|f| f.values[16 * 41..16 * 42].fill(0.0)),
        args: &[],
        says: &["features.safetensors: image features: row 41 (scene_00041.png) is all zero"],
    },
    Row {
        name: "a missing image feature",
        spoil: |w| w.edit_features(|f| f.names[45] = "other.png".into()),
        args: &[],
        says: &["features.safetensors: no feature for image scene_00045.png (1 of 10 are missing"],
    },
    Row {
        name: "features of another model",
        spoil: |w| {
            w.edit_features(|f| {
                f.dim = 8;
                f.values.truncate(60 * 8);
            });
        },
        args: &[],
        says: &["features.safetensors: features are 8 wide, the model's are 16"],
    },
    Row {
        name: "no features",
        spoil: NOTHING,
        args: &["--features=none.safetensors"],
        says: &["none.safetensors: cannot be read: No such file or directory (os error 2)\n"],
    },
];
