//! Files of the golden cases.

use std::path::Path;

use crosstune::text::pack::Text;
use crosstune::train::program::TextModel;
use crosstune::weights::checkpoint::Checkpoint;
use crosstune::weights::text_model::TextModelFiles;

/// A tensor of i32 and its shape.
pub fn ints(c: &Checkpoint, name: &str) -> (Vec<i32>, Vec<usize>) {
    let t = c.tensor(name).expect("tensor");
    let values = t
        .bytes
        .chunks(4)
        .map(|b| i32::from_le_bytes(b.try_into().expect("4 bytes")));
    (values.collect(), t.shape.to_vec())
}

/// A tensor of floats.
pub fn floats(c: &Checkpoint, name: &str) -> Vec<f32> {
    c.tensor(name).expect("tensor").to_f32()
}

/// Rows of ids without their padding.
fn rows(c: &Checkpoint, name: &str) -> Vec<Vec<u32>> {
    let (ids, shape) = ints(c, &format!("{name}.ids"));
    let (mask, _) = ints(c, &format!("{name}.mask"));
    let width = shape[1];
    ids.chunks(width)
        .zip(mask.chunks(width))
        .map(|(ids, mask)| {
            ids.iter()
                .zip(mask)
                .filter(|(_, m)| **m == 1)
                .map(|(i, _)| *i as u32)
                .collect()
        })
        .collect()
}

/// Names of an item's texts, by role.
pub const TEXTS: [&str; 4] = ["tgt", "en", "from", "to"];

/// A batch of the golden cases.
pub struct GoldenBatch {
    /// Token ids by role.
    pub texts: [Vec<Vec<u32>>; 4],
    /// Image features.
    pub image: Vec<f32>,
}

/// The batches that all cases share.
pub fn batches(folder: &Path) -> Vec<GoldenBatch> {
    let c = Checkpoint::open(&folder.join("batches.safetensors")).expect("batches");
    (0..)
        .take_while(|k| c.get(&format!("b{k}.image")).is_some())
        .map(|k| GoldenBatch {
            texts: TEXTS.map(|t| rows(&c, &format!("b{k}.{t}"))),
            image: floats(&c, &format!("b{k}.image")),
        })
        .collect()
}

/// Texts of one role, in their items' order.
pub fn texts(rows: &[Vec<u32>], role: u8) -> Vec<Text<'_>> {
    rows.iter()
        .enumerate()
        .map(|(i, ids)| Text {
            ids,
            role,
            item: i as u32,
        })
        .collect()
}

/// The golden folder has no tokenizer, and needs none.
pub fn open_model(folder: &Path) -> TextModel {
    let file = |name: &str| folder.join(name);
    let files = TextModelFiles::from_parts(
        &file("config.json"),
        &file("model.safetensors"),
        &file("tokenizer.json"),
    );
    TextModel::new(files.expect("a text model"))
}
