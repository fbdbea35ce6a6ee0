//! Which pictures: all of a folder, or those that a list names, wherever a data set's convention puts
//! them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bad_input;
use crate::error::{Error, Result};

/// Endings of files that a folder's listing takes for pictures.
const ENDINGS: [&str; 3] = ["jpg", "jpeg", "png"];
/// Folders that hold pictures in what COCO and Flickr30K publish, beside those that names tell.
const FOLDERS: [&str; 4] = ["images", "flickr30k-images", "flickr30k_images", "test2017"];
/// How many missing names a message lists.
const TOLD: usize = 3;

/// A picture by its name in lists and feature files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
}

/// All pictures in a folder and below it, by their paths in it with `/` between, sorted.
///
/// # Errors
/// A folder that can't be read, or has none.
pub fn in_folder(folder: &Path) -> Result<Vec<Named>> {
    let mut found = Vec::new();
    walk(folder, "", &mut found)?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    if found.is_empty() {
        return Err(bad_input!(
            "{}: has no pictures; expected files that end in .jpg, .jpeg or .png",
            folder.display()
        ));
    }
    Ok(found)
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<Named>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::read(folder))? {
        let entry = entry.map_err(Error::read(folder))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(bad_input!(
                "{}: is no UTF-8 name; rename it",
                path.display()
            ));
        };
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            walk(&path, &format!("{name}/"), found)?;
            continue;
        }
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        if ENDINGS.iter().any(|e| ending.eq_ignore_ascii_case(e)) {
            found.push(Named { name, path });
        }
    }
    Ok(())
}

/// The pictures of a list, in its order. A name is looked for in `folder` itself, in the folder that
/// COCO's names tell (`COCO_val2014_000000127510.jpg` in `val2014`) and in those of Flickr30K; what
/// stands behind a `#`, a caption's id, is no part of a file's name.
///
/// # Errors
/// Names that stand nowhere, the first few of which are told; a name that stands twice in the list.
pub fn by_names(folder: &Path, names: &[String]) -> Result<Vec<Named>> {
    if !folder.is_dir() {
        return Err(bad_input!(
            "images: {} is not a folder; expected one with pictures",
            folder.display()
        ));
    }
    let mut seen = std::collections::HashSet::new();
    let (mut found, mut missing) = (Vec::with_capacity(names.len()), Vec::new());
    for name in names {
        if !seen.insert(name) {
            return Err(bad_input!("images: {name} stands twice in the list"));
        }
        match places(folder, name).into_iter().find(|p| p.is_file()) {
            Some(path) => found.push(Named {
                name: name.clone(),
                path,
            }),
            None => missing.push(name.as_str()),
        }
    }
    if missing.is_empty() {
        return Ok(found);
    }
    let more = match missing.len() - missing.len().min(TOLD) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let first = missing[0];
    let tried = places(folder, first);
    let tried: Vec<String> = tried.iter().map(|p| p.display().to_string()).collect();
    Err(bad_input!(
        "{}: lacks {} of {} pictures: {}{more}; looked for the first at {}",
        folder.display(),
        missing.len(),
        names.len(),
        missing[..missing.len().min(TOLD)].join(", "),
        tried.join(", ")
    ))
}

/// Where a picture may lie.
fn places(folder: &Path, name: &str) -> Vec<PathBuf> {
    let name = name.split('#').next().unwrap_or(name);
    let mut fields = name.split('_');
    let coco = (fields.next() == Some("COCO")).then(|| fields.next());
    let own = coco.flatten().into_iter().chain(FOLDERS);
    let below = own.map(|below| folder.join(below).join(name));
    std::iter::once(folder.join(name)).chain(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_convention() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        };
        put("val2014/COCO_val2014_000000000001.jpg");
        put("flickr30k-images/1000.jpg");
        put("b.PNG");
        put("notes.txt");
        let names = ["COCO_val2014_000000000001.jpg#42", "1000.jpg", "b.PNG"].map(String::from);
        let found = by_names(dir.path(), &names).unwrap();
        let ends = found
            .iter()
            .map(|n| n.path.strip_prefix(dir.path()).unwrap());
        assert_eq!(
            ends.collect::<Vec<_>>(),
            [
                Path::new("val2014/COCO_val2014_000000000001.jpg"),
                Path::new("flickr30k-images/1000.jpg"),
                Path::new("b.PNG")
            ]
        );
        assert_eq!(found[0].name, names[0]);
        let all = in_folder(dir.path()).unwrap();
        let all: Vec<&str> = all.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(
            all,
            [
                "b.PNG",
                "flickr30k-images/1000.jpg",
                "val2014/COCO_val2014_000000000001.jpg"
            ]
        );
        let gone = ["a.jpg", "b.jpg", "b.PNG", "c.jpg", "d.jpg"].map(String::from);
        let text = by_names(dir.path(), &gone).unwrap_err().to_string();
        assert!(
            text.contains("lacks 4 of 5 pictures: a.jpg, b.jpg, c.jpg and 1 more"),
            "{text}"
        );
        let twice = ["b.PNG", "b.PNG"].map(String::from);
        let text = by_names(dir.path(), &twice).unwrap_err().to_string();
        assert!(text.contains("b.PNG stands twice"), "{text}");
        let empty = tempfile::tempdir().unwrap();
        assert!(
            in_folder(empty.path())
                .unwrap_err()
                .to_string()
                .contains("has no pictures")
        );
    }
}
