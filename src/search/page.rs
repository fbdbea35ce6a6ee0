//! Answers as one page: nothing outside the file is asked for, pictures are in it as thumbnails.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;

use super::thumbnail::thumbnail;
use crate::error::Result;
use crate::html::{STYLE as BASE, escape};
use crate::weights::write::write_atomic;

/// A query or an answer as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A sentence.
    Text(String),
    /// A picture of the folder, by name.
    Picture(String),
}

impl Shown {
    /// The sentence or the name.
    pub fn text(&self) -> &str {
        match self {
            Shown::Text(text) | Shown::Picture(text) => text,
        }
    }
}

/// A query with what was found, best first.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The query.
    pub asked: Shown,
    /// Answers with their cosines.
    pub found: Vec<(Shown, f32)>,
}

/// Pictures by name: addresses that hold them, or why there are none.
type Pictures<'a> = HashMap<&'a str, std::result::Result<String, String>>;

/// Writes the page; `about` says in a few words what was searched. Pictures come from `folder`: small
/// files as they are, others shrunk; a frame says so where there is none.
///
/// # Errors
/// [`Error::Write`](crate::error::Error::Write).
pub fn write_page(path: &Path, about: &str, answers: &[Answer], folder: &Path) -> Result<()> {
    let shown = answers
        .iter()
        .flat_map(|a| std::iter::once(&a.asked).chain(a.found.iter().map(|(s, _)| s)));
    let names: BTreeSet<&str> = shown
        .filter_map(|s| match s {
            Shown::Picture(name) => Some(name.as_str()),
            Shown::Text(_) => None,
        })
        .collect();
    let pictures = names.into_par_iter().map(|n| (n, thumbnail(folder, n)));
    let html = page(about, answers, &pictures.collect());
    write_atomic(path, |out| out.write_all(html.as_bytes()))
}

fn page(about: &str, answers: &[Answer], pictures: &Pictures<'_>) -> String {
    let scores = answers.iter().flat_map(|a| a.found.iter().map(|(_, s)| *s));
    let highest = scores.fold(f32::MIN_POSITIVE, f32::max);
    let title = match answers {
        [one] => escape(one.asked.text()),
        _ => format!("{} queries", answers.len()),
    };
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} - crosstune search</title>\n<style>{BASE}{STYLE}</style>\n</head>\n<body>\n\
         <main>\n<p class=\"kicker\">crosstune search &middot; {}</p>\n",
        escape(about)
    );
    for answer in answers {
        section(&mut html, answer, highest, pictures);
    }
    html.push_str(
        "<footer>Scores are cosines between features. A bar begins at 0; the longest is the \
         highest score on this page.</footer>\n</main>\n</body>\n</html>\n",
    );
    html
}

fn section(html: &mut String, answer: &Answer, highest: f32, pictures: &Pictures<'_>) {
    html.push_str("<section>\n");
    if let Shown::Picture(name) = &answer.asked {
        frame(html, name, pictures);
    }
    let asked = escape(answer.asked.text());
    let _ = writeln!(html, "<h1 dir=\"auto\">{asked}</h1>");
    let of_pictures = |(shown, _): &(Shown, f32)| matches!(shown, Shown::Picture(_));
    let class = match answer.found.iter().any(of_pictures) {
        true => "pictures",
        false => "texts",
    };
    let _ = writeln!(html, "<ol class=\"{class}\">");
    for (i, (shown, score)) in answer.found.iter().enumerate() {
        html.push_str("<li>");
        if let Shown::Picture(name) = shown {
            frame(html, name, pictures);
        }
        let share = 100.0 * (score / highest).clamp(0.0, 1.0);
        let _ = writeln!(
            html,
            "<p class=\"line\"><b>{}</b><span class=\"bar\"><i style=\"width:{share:.1}%\"></i>\
             </span><span class=\"score\">{score:.4}</span></p><p class=\"name\" dir=\"auto\">{}\
             </p></li>",
            i + 1,
            escape(shown.text())
        );
    }
    html.push_str("</ol>\n</section>\n");
}

fn frame(html: &mut String, name: &str, pictures: &Pictures<'_>) {
    let _ = match pictures.get(name) {
        Some(Ok(uri)) => write!(
            html,
            "<div class=\"frame\"><img alt=\"{}\" src=\"{uri}\"></div>",
            escape(name)
        ),
        Some(Err(why)) => write!(
            html,
            "<div class=\"frame none\"><span>No picture: {}</span></div>",
            escape(why)
        ),
        None => Ok(()),
    };
}

const STYLE: &str = "
:root { --bar: #5b8def; --frame: #f0eee9; }
@media (prefers-color-scheme: dark) { :root { --bar: #6f9bf2; --frame: #111315; } }
main { max-width: 1080px; }
section { margin-bottom: 48px; }
h1 { font-size: 26px; overflow-wrap: anywhere; }
section > .frame { width: 256px; margin: 16px 0 12px; border-radius: 8px; }
ol { margin: 0; padding: 0; list-style: none; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(184px, 1fr));
  gap: 16px; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; }
.frame { position: relative; display: grid; place-items: center; aspect-ratio: 1;
  background: var(--frame); }
.frame img { position: absolute; width: 100%; height: 100%; object-fit: contain; }
section > .frame img { border-radius: 8px; }
.none { color: var(--soft); font-size: 13px; text-align: center; }
.none span { padding: 16px; overflow-wrap: anywhere; }
.line { display: flex; align-items: center; gap: 10px; margin: 12px 14px 0;
  font-variant-numeric: tabular-nums; }
.line b { min-width: 1.2em; }
.bar { flex: 1; height: 6px; background: var(--line); border-radius: 3px; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--bar); }
.score { font-size: 14px; }
.name { margin: 4px 14px 12px; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.texts li { display: flex; margin-bottom: 8px; }
.texts .line { flex: 0 0 200px; margin: 10px 0 10px 14px; }
.texts .name { flex: 1; margin: 8px 14px; color: var(--ink); font-size: 15px; }
@media (max-width: 560px) { .texts li { display: block; }
  .texts .line { margin-right: 14px; } }
";

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Vec<Answer> {
        let found = vec![
            (Shown::Picture("a&b.png".into()), 0.5),
            (Shown::Picture("\"><script>.png".into()), 0.25),
            (Shown::Picture("gone.png".into()), -0.125),
        ];
        vec![Answer {
            asked: Shown::Text("<b> & \"it's\"".into()),
            found,
        }]
    }

    #[test]
    fn a_page_stands_alone_and_escapes_what_it_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.html");
        write_page(&path, "3 images <in> x", &answers(), dir.path()).unwrap();
        let html = std::fs::read_to_string(&path).unwrap();
        assert!(html.contains("<h1 dir=\"auto\">&lt;b&gt; &amp; &quot;it&#39;s&quot;</h1>"));
        assert!(html.contains("3 images &lt;in&gt; x"));
        assert!(html.contains("a&amp;b.png") && html.contains("&quot;&gt;&lt;script&gt;.png"));
        for not in ["<script", "http", "url(", "@import", "<link"] {
            assert!(!html.contains(not), "{not}");
        }
        assert_eq!(html.matches("No picture: no such file in /").count(), 3);
        // The highest fills its bar; below 0 there is none.
        let widths: Vec<&str> = html
            .split("width:")
            .filter_map(|s| s.split_once("%\""))
            .map(|s| s.0)
            .collect();
        assert_eq!(widths, ["100.0", "50.0", "0.0"]);
        assert!(html.contains("<b>3</b>") && html.contains("-0.1250"));
    }

    #[test]
    fn captions_of_a_picture_are_a_list() {
        let answer = Answer {
            asked: Shown::Picture("a.png".into()),
            found: vec![(Shown::Text("ein Hund".into()), 0.3)],
        };
        let pictures = HashMap::from([("a.png", Ok("data:image/png;base64,AAAA".to_string()))]);
        let html = page("", &[answer.clone(), answer], &pictures);
        assert!(html.contains("<title>2 queries"));
        assert_eq!(
            html.matches("src=\"data:image/png;base64,AAAA\"").count(),
            2
        );
        assert_eq!(html.matches("<ol class=\"texts\">").count(), 2);
        assert!(html.contains("<p class=\"name\" dir=\"auto\">ein Hund</p>"));
    }
}
