//! Which pictures: all of a folder, or those that a list names, wherever a data set's convention puts
//! them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::bad_input;
use crate::error::{Error, Result};

/// Endings of files that a folder's listing takes for pictures. The last are of pictures that are not
/// read: whoever has some is told, and nothing is left out in silence.
const ENDINGS: [&str; 13] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "heic", "heif",
    "avif",
];
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

/// All pictures in a folder and below it, by their paths in it with `/` between, sorted. Files and
/// folders whose names begin with a dot are none.
///
/// # Errors
/// A folder that can't be read, or has none.
pub fn in_folder(folder: &Path) -> Result<Vec<Named>> {
    let mut found = Vec::new();
    walk(folder, "", &mut HashSet::new(), &mut found)?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    if found.is_empty() {
        return Err(bad_input!(
            "{}: has no pictures; expected files that end in .jpg, .jpeg or .png",
            folder.display()
        ));
    }
    Ok(found)
}

fn walk(
    folder: &Path,
    prefix: &str,
    seen: &mut HashSet<PathBuf>,
    found: &mut Vec<Named>,
) -> Result<()> {
    // Links may lead back to where they lie.
    if !seen.insert(fs::canonicalize(folder).map_err(Error::read(folder))?) {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(Error::read(folder))? {
        let entry = entry.map_err(Error::read(folder))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(bad_input!(
                "{}: is no UTF-8 name; rename it",
                path.display()
            ));
        };
        if name.starts_with('.') {
            continue;
        }
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            walk(&path, &format!("{name}/"), seen, found)?;
            continue;
        }
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        if ENDINGS.iter().any(|e| ending.eq_ignore_ascii_case(e)) {
            found.push(Named { name, path });
        }
    }
    Ok(())
}

/// A name without what COCO's lists put behind it: `NAME#CAPTION_ID`.
pub fn without_id(name: &str) -> &str {
    match name.rsplit_once('#') {
        Some((file, id)) if !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()) => file,
        _ => name,
    }
}

/// The pictures of a list, in its order; a name that stands again is skipped. A name, less a caption's
/// id, is a path in `folder`, or else that of one file below it: COCO's names tell which folder's
/// (`COCO_val2014_000000127510.jpg` is `val2014`'s) where several have it.
///
/// # Errors
/// Names that no file has, or several have; the first few are told.
pub fn by_names(folder: &Path, names: &[String]) -> Result<Vec<Named>> {
    if !folder.is_dir() {
        return Err(bad_input!(
            "images: {} is not a folder; expected one with pictures",
            folder.display()
        ));
    }
    let mut seen = HashSet::new();
    let once: Vec<&String> = names.iter().filter(|name| seen.insert(*name)).collect();
    let mut below = Below::new(folder);
    let (mut found, mut missing) = (Vec::with_capacity(once.len()), Vec::new());
    for &name in &once {
        let direct = [name, without_id(name)].map(|name| folder.join(name));
        let path = match direct.into_iter().find(|path| path.is_file()) {
            Some(path) => Some(path),
            None => below.find(without_id(name))?,
        };
        match path {
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
    let told = &missing[..missing.len().min(TOLD)];
    let more = match missing.len() - told.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Err(bad_input!(
        "{}: lacks {} of {} pictures, in it or in folders below: {}{more}",
        folder.display(),
        missing.len(),
        once.len(),
        told.join(", ")
    ))
}

/// The pictures in folders below one, by their files' names; listed when first asked for.
struct Below<'a> {
    folder: &'a Path,
    by_file: Option<HashMap<String, Vec<Named>>>,
}

impl<'a> Below<'a> {
    fn new(folder: &'a Path) -> Self {
        Below {
            folder,
            by_file: None,
        }
    }

    fn find(&mut self, name: &str) -> Result<Option<PathBuf>> {
        let by_file = match &mut self.by_file {
            Some(by_file) => by_file,
            none => none.insert(by_file(self.folder)?),
        };
        let file = name.rsplit('/').next().unwrap_or(name);
        let all = by_file.get(file).map_or(&[][..], Vec::as_slice);
        let mut fits: Vec<&Named> = all
            .iter()
            .filter(|one| Path::new(&one.name).ends_with(name))
            .collect();
        if fits.len() > 1 {
            let coco = file
                .strip_prefix("COCO_")
                .and_then(|rest| rest.split('_').next());
            let told = |one: &&Named| {
                coco.is_some_and(|own| one.path.parent().is_some_and(|p| p.ends_with(own)))
            };
            if fits.iter().filter(|one| told(one)).count() == 1 {
                fits.retain(|one| told(one));
            }
        }
        match fits[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.path.clone())),
            [a, b, ..] => Err(bad_input!(
                "{}: has {name} as {} and as {}; give the folder of one of them",
                self.folder.display(),
                a.name,
                b.name
            )),
        }
    }
}

fn by_file(folder: &Path) -> Result<HashMap<String, Vec<Named>>> {
    let mut all = Vec::new();
    walk(folder, "", &mut HashSet::new(), &mut all)?;
    let mut by_file: HashMap<String, Vec<Named>> = HashMap::new();
    for one in all {
        let file = one.name.rsplit('/').next().unwrap_or_default().to_owned();
        by_file.entry(file).or_default().push(one);
    }
    Ok(by_file)
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
        put("copies/COCO_val2014_000000000001.jpg");
        put("flickr30k-images/1000.jpg");
        put("b.PNG");
        put("c/d.gif");
        put("notes.txt");
        put(".hidden/e.jpg");
        put("c/.e.jpg");
        #[cfg(unix)]
        std::os::unix::fs::symlink(dir.path(), dir.path().join("c/back")).unwrap();
        let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let asked = names(&[
            "COCO_val2014_000000000001.jpg#42",
            "1000.jpg",
            "b.PNG",
            "1000.jpg",
        ]);
        let found = by_names(dir.path(), &asked).unwrap();
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
        assert_eq!(found[0].name, asked[0]);
        let all = in_folder(dir.path()).unwrap();
        let all: Vec<&str> = all.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(
            all,
            [
                "b.PNG",
                "c/d.gif",
                "copies/COCO_val2014_000000000001.jpg",
                "flickr30k-images/1000.jpg",
                "val2014/COCO_val2014_000000000001.jpg"
            ]
        );
        let says = |asked: &[&str]| by_names(dir.path(), &names(asked)).unwrap_err().to_string();
        let text = says(&["a.jpg", "b.jpg", "b.PNG", "c.jpg", "e.jpg"]);
        assert!(
            text.contains(
                "lacks 4 of 5 pictures, in it or in folders below: a.jpg, b.jpg, c.jpg and 1 more"
            ),
            "{text}"
        );
        put("x/1000.jpg");
        let text = says(&["1000.jpg"]);
        assert!(text.contains("has 1000.jpg as "), "{text}");
        assert!(text.contains("x/1000.jpg") && text.contains("flickr30k-images/1000.jpg"));
        // A path says which.
        assert_eq!(
            by_names(dir.path(), &names(&["x/1000.jpg"])).unwrap().len(),
            1
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(
            in_folder(empty.path())
                .unwrap_err()
                .to_string()
                .contains("has no pictures")
        );
    }

    #[test]
    fn caption_ids_are_stripped_from_names() {
        assert_eq!(
            without_id("COCO_train2014_000000117071.jpg#367178"),
            "COCO_train2014_000000117071.jpg"
        );
        assert_eq!(without_id("1000092795.jpg"), "1000092795.jpg");
        assert_eq!(without_id("a#b.jpg"), "a#b.jpg");
    }
}
