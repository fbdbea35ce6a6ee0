//! From a path or a Hugging Face id to a folder on disk. Nothing is downloaded.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::bad_input;
use crate::error::{Error, Result};

/// An existing path as it is, or the folder of `org/name` in the Hugging Face cache.
///
/// # Errors
/// [`Error::Input`] that says where was looked and how to download the model.
pub fn resolve(path_or_id: &str) -> Result<PathBuf> {
    resolve_in(
        path_or_id,
        &cache_folder(|name| env::var_os(name).map(PathBuf::from)),
    )
}

/// [`resolve`] in a given cache folder (the one with `models--ORG--NAME` in it).
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(path_or_id: &str, cache: &Path) -> Result<PathBuf> {
    let path = Path::new(path_or_id);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let Some((org, name)) = hub_id(path_or_id) else {
        return Err(bad_input!("{path_or_id}: there is no such file or folder"));
    };
    let repo = cache.join(format!("models--{org}--{name}"));
    let download = format!("download it: hf download {path_or_id}");
    if !repo.is_dir() {
        return Err(bad_input!(
            "{path_or_id}: is neither a path here nor in the Hugging Face cache ({}); give the \
             path, or {download}",
            repo.display()
        ));
    }
    let reference = repo.join("refs").join("main");
    let revision = fs::read_to_string(&reference).map_err(Error::read(&reference))?;
    let snapshot = repo.join("snapshots").join(revision.trim());
    if revision.trim().is_empty() || !snapshot.is_dir() {
        return Err(bad_input!(
            "{}: points to {}, which does not exist; {download}",
            reference.display(),
            snapshot.display()
        ));
    }
    Ok(snapshot)
}

/// `ORG/NAME` with nothing that could only be a path.
fn hub_id(text: &str) -> Option<(&str, &str)> {
    let (org, name) = text.split_once('/')?;
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    (plain(org) && plain(name)).then_some((org, name))
}

/// As huggingface_hub does it: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME, ~/.cache.
fn cache_folder(var: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let set = |name: &str| var(name).filter(|v| !v.as_os_str().is_empty());
    set("HF_HUB_CACHE")
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/huggingface/hub")))
        .unwrap_or_else(|| PathBuf::from(".cache/huggingface/hub"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_wins_and_an_id_is_found_in_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let here = cache.path().to_str().unwrap();
        assert_eq!(resolve_in(here, cache.path()).unwrap(), cache.path());
        let repo = cache
            .path()
            .join("models--M-CLIP--XLM-Roberta-Large-Vit-L-14");
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), "abc123\n").unwrap();
        let id = "M-CLIP/XLM-Roberta-Large-Vit-L-14";
        let text = resolve_in(id, cache.path()).unwrap_err().to_string();
        assert!(
            text.contains("snapshots/abc123, which does not exist; download it"),
            "{text}"
        );
        fs::create_dir_all(repo.join("snapshots/abc123")).unwrap();
        assert_eq!(
            resolve_in(id, cache.path()).unwrap(),
            repo.join("snapshots/abc123")
        );
    }

    #[test]
    fn what_is_found_nowhere_says_both_places() {
        let cache = tempfile::tempdir().unwrap();
        let text = resolve_in("org/model", cache.path())
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("org/model: is neither a path here nor in the Hugging Face cache")
        );
        assert!(text.contains("models--org--model") && text.contains("hf download org/model"));
        for path in ["no/such/folder", "/no/such", "./x", "../x", "nothing", "a/"] {
            let text = resolve_in(path, cache.path()).unwrap_err().to_string();
            assert!(text.ends_with("there is no such file or folder"), "{text}");
        }
    }

    #[test]
    fn the_cache_is_where_hugging_face_puts_it() {
        let at = |pairs: &[(&str, &str)]| {
            let find = |name: &str| pairs.iter().find(|p| p.0 == name).map(|p| p.1.into());
            cache_folder(find).to_str().unwrap().to_string()
        };
        assert_eq!(at(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(at(&[("HOME", "/h"), ("HF_HOME", "/f")]), "/f/hub");
        assert_eq!(at(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]), "/c");
        assert_eq!(at(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/f")]), "/f/hub");
    }
}
