//! The table of a sweep, as the paper lays it out: a row a strategy, a column a language, and the
//! disparity between the languages.

use std::fmt::Write;

use serde::Serialize;

use super::result::{MemberResult, Tested};
use super::run::Measured;
use crate::data::Role;
use crate::error::Result;
use crate::eval::disparity::{Disparity, LanguageScore, disparity};
use crate::eval::retrieval::Recall;

/// The table. Numbers are mean R@1 on the test items, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// The columns.
    pub languages: Vec<String>,
    /// Zero-shot recall of English, where the data set has it.
    pub english: Option<f64>,
    /// After the last step.
    pub last: Vec<Row>,
    /// With the values of the best evaluation.
    pub best: Vec<Row>,
    /// The winner of each language.
    pub winners: Vec<Winner>,
}

/// One row: of each language the member with the best validation score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its strategy, and its method where there are several.
    pub name: String,
    /// By language; none where no member finished.
    pub cells: Vec<Option<f64>>,
    /// Between the languages, where all have a number and English is known.
    pub disparity: Option<Disparity>,
}

/// The member of a language with the best validation score; the first of equals. Members of several
/// languages do not compete with those of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Winner {
    /// The language.
    pub language: String,
    /// The member.
    pub name: String,
    /// Its validation score.
    pub score: f64,
    /// Other members of the language with the same score.
    pub ties: usize,
    /// When it had it.
    pub best_step: Option<usize>,
    /// On the test items after the last step.
    pub last: Option<Recall>,
    /// On the test items with the values of the best evaluation.
    pub best: Option<Recall>,
    /// Of the model as it was, on the same texts.
    pub zero_shot: Option<Recall>,
}

/// Which of a member's two adapters.
type Pick = fn(&Tested) -> Option<&Recall>;

impl Table {
    /// Lays out what a sweep measured.
    ///
    /// # Errors
    /// If a recall is not a number.
    pub fn new(measured: &Measured, languages: &[String]) -> Result<Table> {
        let english = measured.zero_shot.english.as_ref().map(Recall::mean_r1);
        let rows = |pick| table_rows(measured, languages, english, pick);
        let winner = |language: &String| winner_of(measured, language);
        Ok(Table {
            languages: languages.to_vec(),
            english,
            last: rows(|m| m.last.as_ref())?,
            best: rows(|m| m.best.as_ref())?,
            winners: languages.iter().filter_map(winner).collect(),
        })
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text =
            String::from("Mean of image-to-text and text-to-image R@1 on the test items");
        if self.winners.is_empty() {
            text.push_str(", without training.\n\n");
            self.block(&mut text, &self.last);
            return text;
        }
        text.push_str(
            ";\nof each row and language, the member with the best validation score.\n\n\
             After its last step:\n\n",
        );
        self.block(&mut text, &self.last);
        text.push_str("\nAt its best evaluation:\n\n");
        self.block(&mut text, &self.best);
        text.push_str(
            "\n| language | winner by validation score | score | ties | zero-shot | last step | best \
             step | at step |\n|---|---|---|---|---|---|---|---|\n",
        );
        for w in &self.winners {
            let mean = |r: &Option<Recall>| cell(r.as_ref().map(Recall::mean_r1));
            let step = w.best_step.map_or("-".into(), |s| s.to_string());
            let _ = writeln!(
                text,
                "| {} | {} | {:.4} | {} | {} | {} | {} | {step} |",
                w.language,
                w.name,
                w.score,
                w.ties,
                mean(&w.zero_shot),
                mean(&w.last),
                mean(&w.best),
            );
        }
        text
    }

    fn block(&self, text: &mut String, rows: &[Row]) {
        let _ = writeln!(
            text,
            "| | {} | spread | deviation from English |",
            self.languages.join(" | ")
        );
        text.push_str("|---|");
        text.push_str(&"---|".repeat(self.languages.len() + 2));
        text.push('\n');
        for row in rows {
            let _ = write!(text, "| {} |", row.name);
            let d = row.disparity.as_ref();
            let extra = [d.map(|d| d.spread), d.map(|d| d.std_to_english)];
            for x in row.cells.iter().chain(&extra) {
                let _ = write!(text, " {} |", cell(*x));
            }
            text.push('\n');
        }
        if let Some(english) = self.english {
            let _ = writeln!(text, "\nEnglish, zero-shot: {english:.4}.");
        }
    }
}

fn cell(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| format!("{x:.4}"))
}

/// Zero-shot rows first, then a row for each kind of member, in the order in which they first come.
fn table_rows(
    measured: &Measured,
    languages: &[String],
    english: Option<f64>,
    pick: Pick,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, role) in [
        ("zero-shot", Role::Target),
        ("zero-shot, translated to English", Role::ToEnglish),
    ] {
        let of = |l: &String| measured.zero_shot.of(l, role).map(Recall::mean_r1);
        let cells: Vec<Option<f64>> = languages.iter().map(of).collect();
        if cells.iter().any(Option::is_some) {
            rows.push((name.to_string(), cells));
        }
    }
    let mut names: Vec<&String> = Vec::new();
    for member in &measured.members {
        if !names.contains(&&member.row) {
            names.push(&member.row);
        }
    }
    for name in names {
        let of = |language: &String| {
            let rivals = measured.members.iter();
            let rivals = rivals.filter(|m| m.row == *name && m.of(language).is_some());
            let tested = best_of(rivals).and_then(|m| m.of(language));
            tested.and_then(pick).map(Recall::mean_r1)
        };
        rows.push((name.clone(), languages.iter().map(of).collect()));
    }
    let row = |(name, cells): (String, Vec<Option<f64>>)| {
        Ok(Row {
            disparity: between(languages, &cells, english)?,
            name,
            cells,
        })
    };
    rows.into_iter().map(row).collect()
}

/// The disparity of a full row. English is the row's own where it is a column.
fn between(
    languages: &[String],
    cells: &[Option<f64>],
    english: Option<f64>,
) -> Result<Option<Disparity>> {
    let score = |(language, mean): (&String, &Option<f64>)| {
        Some(LanguageScore {
            language: language.clone(),
            mean_r1: (*mean)?,
        })
    };
    let scores: Option<Vec<_>> = languages.iter().zip(cells).map(score).collect();
    let others = languages.iter().any(|l| l != "en");
    let (Some(scores), Some(english), true) = (scores, english, others) else {
        return Ok(None);
    };
    let own = scores.iter().find(|s| s.language == "en");
    let english = own.map_or(english, |s| s.mean_r1);
    disparity(&scores, english).map(Some)
}

/// The member with the best validation score, the first of equals; none of those that failed.
fn best_of<'m>(members: impl Iterator<Item = &'m MemberResult>) -> Option<&'m MemberResult> {
    let sound = members.filter(|m| m.failed.is_none() && m.score.is_some());
    sound.fold(None, |best: Option<&MemberResult>, m| match best {
        Some(b) if b.score >= m.score => Some(b),
        _ => Some(m),
    })
}

fn winner_of(measured: &Measured, language: &str) -> Option<Winner> {
    let all = || measured.members.iter().filter(|m| m.of(language).is_some());
    // The score of several languages is not that of one.
    let alone = all().any(|m| m.languages.len() == 1);
    let rivals = || all().filter(|m| !alone || m.languages.len() == 1);
    let winner = best_of(rivals())?;
    let tested = winner.of(language)?;
    let equal = |m: &&MemberResult| m.failed.is_none() && m.score == winner.score;
    let role = winner.config.strategy.anchor();
    Some(Winner {
        language: language.to_string(),
        name: winner.name.clone(),
        score: winner.score?,
        ties: rivals().filter(equal).count() - 1,
        best_step: winner.best_step,
        last: tested.last.clone(),
        best: tested.best.clone(),
        zero_shot: measured.zero_shot.of(language, role).cloned(),
    })
}
