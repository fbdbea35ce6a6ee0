//! What a run leaves: adapters, their recall on the test items, a summary and a table.

use anyhow::Result;
use crosstune::adapter::Adapter;
use crosstune::data::Role;
use crosstune::engine::TextEncoder;
use crosstune::error::Error;
use crosstune::eval::retrieval::Recall;
use crosstune::train::languages::LanguageData;
use crosstune::train::trainer::{Outcome, Trainer, evaluate};
use serde::Serialize;

use super::run_folder::RunFolder;
use super::train_inputs::Inputs;

/// An adapter on the test items of a language.
#[derive(Serialize)]
pub struct Tested {
    test: Recall,
    validation_score: Option<f64>,
    step: Option<usize>,
}

/// A language before and after.
#[derive(Serialize)]
pub struct LanguageResult {
    language: String,
    shots: usize,
    test_items: usize,
    zero_shot: Recall,
    last: Tested,
    best: Option<Tested>,
    skipped_steps: u32,
}

/// Recall of the model as it is, by language.
pub fn zero_shot(inputs: &Inputs, role: Role) -> Result<Vec<Recall>> {
    let engine = &inputs.engine;
    let mut encoder = TextEncoder::new(engine, &Adapter::default())?;
    let languages = inputs.languages.iter();
    let all = languages.map(|l| evaluate(engine, &mut encoder, &l.test, role));
    Ok(all.collect::<Result<_, Error>>()?)
}

/// Saves each member's adapters and measures them on the test items of its languages.
///
/// The files of a run of several members lie in a folder of the language each.
pub fn finish(
    trainer: &mut Trainer<'_>,
    inputs: &Inputs,
    model: &str,
    folder: &RunFolder,
    (outcomes, before): (Vec<Outcome>, Vec<Recall>),
) -> Result<Vec<LanguageResult>> {
    let members = inputs.members();
    let mut before = before.into_iter();
    let mut results = Vec::new();
    for (g, (outcome, languages)) in outcomes.into_iter().zip(&members).enumerate() {
        let below = (members.len() > 1).then(|| languages[0].language.as_str());
        let place = folder.member_folder(below)?;
        let own: Vec<&LanguageData> = languages.iter().collect();
        let kept = trainer.keep(g, &outcome, (&place, model), &own)?;
        let mut best = kept.best.into_iter().flatten();
        let found = outcome.best.as_ref();
        for ((l, test), zero_shot) in languages.iter().zip(kept.last).zip(before.by_ref()) {
            results.push(LanguageResult {
                language: l.language.clone(),
                shots: l.train.len(),
                test_items: l.test.len(),
                zero_shot,
                last: Tested {
                    test,
                    validation_score: None,
                    step: None,
                },
                best: best.next().map(|test| Tested {
                    test,
                    validation_score: found.map(|(_, score, _)| *score),
                    step: found.map(|(.., step)| *step),
                }),
                skipped_steps: outcome.skipped,
            });
        }
    }
    Ok(results)
}

/// The summary's fields of the languages: those of the only one, or a list.
pub fn summarise(results: &[LanguageResult]) -> Result<serde_json::Map<String, serde_json::Value>> {
    let all = match results {
        [one] => serde_json::to_value(one)?,
        many => serde_json::json!({ "languages": many }),
    };
    match all {
        serde_json::Value::Object(fields) => Ok(fields),
        _ => Ok(serde_json::Map::new()),
    }
}

/// Prints recall before and after, language by language.
pub fn table(results: &[LanguageResult]) {
    for r in results {
        println!("{} on {} test items", r.language, r.test_items);
        println!("                    image to text            text to image          mean");
        println!("              R@1    R@5    R@10     R@1    R@5    R@10     R@1    ties");
        row("zero-shot", &r.zero_shot);
        row("last step", &r.last.test);
        if let Some(best) = &r.best {
            row(&format!("best, {}", best.step.unwrap_or(0)), &best.test);
        }
    }
    if results.len() < 2 {
        return;
    }
    let mean = |recall: &dyn Fn(&LanguageResult) -> &Recall| {
        let sum: f64 = results.iter().map(|r| recall(r).mean_r1()).sum();
        sum / results.len() as f64
    };
    println!(
        "mean R@1 of {} languages: zero-shot {:.4}, last step {:.4}, best {:.4}",
        results.len(),
        mean(&|r| &r.zero_shot),
        mean(&|r| &r.last.test),
        mean(&|r| &r.best.as_ref().unwrap_or(&r.last).test),
    );
}

fn row(name: &str, r: &Recall) {
    let [a, b, c] = r.i2t;
    let [d, e, f] = r.t2i;
    let ties = r.ties_i2t + r.ties_t2i;
    println!(
        "{name:12} {a:.4} {b:.4} {c:.4}   {d:.4} {e:.4} {f:.4}   {:.4}  {ties:4}",
        r.mean_r1()
    );
}
