//! The demo's results as one page: a chart, the table and a few pictures with their captions. All
//! of it is inside the file; it follows the reader's choice of light or dark.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::captions::Language;
use super::report::{DemoReport, Scores};
use crate::error::{Error, Result};
use crate::html::{STYLE as BASE, data_uri, escape};
use crate::weights::write::write_atomic;

/// A picture with its captions.
pub(super) struct Sample {
    pub(super) image: String,
    pub(super) captions: Vec<(Language, String)>,
}

/// Writes the page.
pub(super) fn write_html(folder: &Path, report: &DemoReport, samples: &[Sample]) -> Result<()> {
    let mut pictures = String::new();
    for sample in samples {
        let path = folder.join("pictures").join(&sample.image);
        let png = fs::read(&path).map_err(Error::read(&path))?;
        figure(&mut pictures, sample, &png);
    }
    let page = page(report, &pictures);
    write_atomic(&folder.join("report.html"), |out| {
        out.write_all(page.as_bytes())
    })
}

/// A language's English name.
fn name(language: Language) -> &'static str {
    match language {
        Language::En => "English",
        Language::De => "German",
        Language::Fr => "French",
        Language::Es => "Spanish",
        Language::Tr => "Turkish",
        Language::Ko => "Korean",
    }
}

fn page(report: &DemoReport, pictures: &str) -> String {
    let (chart, table, facts) = (chart(report), table(report), facts(report));
    let headline = headline(report);
    let share = report.trainable_share * 100.0;
    let (train, test) = (report.world.train, report.world.test);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>crosstune demo</title>\n<style>{BASE}{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header><p class=\"kicker\">crosstune demo &middot; seed {}</p>\n<h1>{headline}</h1>\n\
         <p class=\"lead\">A small vision tower learnt to see, and a small multilingual text tower to \
         describe what it sees, English \
         first and the other languages from uneven translations. It was then frozen, and the \
         languages that it knew least got an adapter each, of {} parameters ({share:.2}&nbsp;% of the model), trained on \
         {train} captioned pictures.</p></header>\n\
         <section><h2>Recall before and after</h2>\n{LEGEND}{chart}\n\
         <p class=\"note\">R@1 among {test} pictures that no training saw: the mean of finding the \
         caption of a picture and the picture of a caption. By chance it would be {:.1}&nbsp;%.\
         </p></section>\n\
         <section><h2>In numbers</h2>\n<div class=\"scroll\">{table}</div></section>\n\
         <section><h2>The world</h2>\n<div class=\"pictures\">{pictures}</div></section>\n\
         <section><h2>The run</h2>\n{facts}</section>\n\
         <footer>Made by <code>crosstune demo</code>. The numbers of a seed are the same on any number of \
         threads; times are this machine's.</footer>\n</main>\n</body>\n</html>\n",
        report.seed,
        thousands(report.trainable),
        100.0 / test as f64,
    )
}

fn headline(report: &DemoReport) -> String {
    let Some(row) = report.weakest() else {
        return "A small world".into();
    };
    match row.routine1.or(row.baseline1) {
        Some(after) => format!(
            "{} recall from {:.1}&nbsp;% to {:.1}&nbsp;%",
            name(row.language),
            row.before.mean_r1 * 100.0,
            after.mean_r1 * 100.0
        ),
        None => format!("{} stays as it was", name(row.language)),
    }
}

const LEGEND: &str = "<p class=\"legend\"><span class=\"before\">before</span>\
    <span class=\"baseline1\">baseline1: caption and picture</span>\
    <span class=\"routine1\">routine1: and the English caption</span></p>\n";

/// Grouped horizontal bars. The scale ends at the next tenth above the highest.
fn chart(report: &DemoReport) -> String {
    const LEFT: f64 = 86.0;
    const WIDTH: f64 = 560.0;
    const BAR: f64 = 11.0;
    const GAP: f64 = 16.0;
    let scores = |r: &super::report::LanguageRow| [Some(r.before), r.baseline1, r.routine1];
    let highest = report.rows.iter().flat_map(scores).flatten();
    let highest = highest.map(|s| s.mean_r1).fold(0.1, f64::max);
    let ticks = (highest * 10.0).ceil() as usize;
    let x = |r1: f64| LEFT + WIDTH * r1 * 10.0 / ticks as f64;
    let height = report.rows.iter().fold(6.0, |y, row| {
        y + BAR * scores(row).iter().flatten().count() as f64 + GAP
    });
    let mut svg = format!(
        "<svg viewBox=\"0 0 700 {:.0}\" role=\"img\" aria-label=\"R@1 by language\">\n",
        height + 18.0
    );
    for tick in 0..=ticks {
        let at = x(tick as f64 / 10.0);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{height:.0}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{:.0}\">{} %</text>",
            height + 14.0,
            tick * 10
        );
    }
    let mut y = 6.0;
    for row in &report.rows {
        let bars = scores(row);
        let n = bars.iter().flatten().count() as f64;
        let _ = writeln!(
            svg,
            "<text class=\"label\" x=\"{:.0}\" y=\"{:.1}\">{}</text>",
            LEFT - 10.0,
            y + BAR * n / 2.0 + 4.5,
            name(row.language)
        );
        for (class, score) in ["before", "baseline1", "routine1"].iter().zip(bars) {
            let Some(Scores { mean_r1, .. }) = score else {
                continue;
            };
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" \
                 height=\"{:.1}\" rx=\"2\"/><text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{:.1}\
                 </text>",
                x(mean_r1) - LEFT,
                BAR - 1.5,
                x(mean_r1) + 5.0,
                y + BAR - 2.0,
                mean_r1 * 100.0
            );
            y += BAR;
        }
        y += GAP;
    }
    svg.push_str("</svg>");
    svg
}

fn table(report: &DemoReport) -> String {
    let mut html = String::from(
        "<table><thead><tr><th>Language</th><th>Captions in pre-training</th><th>Before</th>\
         <th>baseline1</th><th>routine1</th><th>Its gain</th></tr></thead>\n<tbody>\n",
    );
    for row in &report.rows {
        let cell = |score: Option<Scores>| match score {
            None => "<td class=\"none\">&ndash;</td>".to_string(),
            Some(s) => format!(
                "<td title=\"picture to caption {:.1} %, caption to picture {:.1} %\">{:.1}</td>",
                s.i2t_r1 * 100.0,
                s.t2i_r1 * 100.0,
                s.mean_r1 * 100.0
            ),
        };
        let gain = row
            .routine1
            .map_or("<td class=\"none\">&ndash;</td>".into(), |after| {
                let gain = (after.mean_r1 - row.before.mean_r1) * 100.0;
                format!("<td class=\"gain\">{gain:+.1}</td>")
            });
        let _ = writeln!(
            html,
            "<tr><th>{}</th><td>{}</td>{}{}{}{gain}</tr>",
            name(row.language),
            thousands(row.captions),
            cell(Some(row.before)),
            cell(row.baseline1),
            cell(row.routine1)
        );
    }
    html.push_str("</tbody></table>");
    html
}

fn facts(report: &DemoReport) -> String {
    let (world, speed) = (&report.world, &report.speed);
    let [make, vision, english, distillation, zero_shot, adaptation] = speed.seconds;
    let model = match speed.cached {
        true => "from an earlier run",
        false => "now",
    };
    format!(
        "<dl>\n<div><dt>Vision tower</dt><dd>{} parameters, taught by a hand-made map; for {:.1} % of {} \
         pictures that it never saw its feature finds the map's vector first</dd></div>\n<div><dt>Model</dt><dd>{} parameters, {} pieces of vocabulary; made {model}</dd>\
         </div>\n\
         <div><dt>Adapters</dt><dd>{} of {} parameters ({:.2} %), all in one run</dd></div>\n\
         <div><dt>Speed</dt><dd>{} tokens a second on {} threads</dd></div>\n\
         <div><dt>World</dt><dd>{} scenes to pre-train on, {} to adapt on, {} to test on</dd></div>\n\
         <div><dt>Seconds</dt><dd>world {make:.0}, vision {vision:.0}, English {english:.0}, distillation \
         {distillation:.0}, zero-shot {zero_shot:.0}, adaptation {adaptation:.0}</dd></div>\n</dl>",
        thousands(report.tower.parameters),
        report.tower.map_r1 * 100.0,
        thousands(report.tower.pictures),
        thousands(report.parameters),
        world.vocab,
        report.adapters,
        thousands(report.trainable),
        report.trainable_share * 100.0,
        thousands(speed.tokens_per_second as usize),
        speed.threads,
        thousands(world.pool),
        world.train,
        world.test,
    )
}

fn figure(html: &mut String, sample: &Sample, png: &[u8]) {
    let alt = sample.captions.first().map_or("", |(_, text)| text);
    let _ = writeln!(
        html,
        "<figure><img width=\"128\" height=\"128\" alt=\"{}\" \
         src=\"{}\"><figcaption>",
        escape(alt),
        data_uri("image/png", png)
    );
    for (language, text) in &sample.captions {
        let code = language.code();
        let _ = writeln!(html, "<p lang=\"{code}\"><b>{code}</b>{}</p>", escape(text));
    }
    html.push_str("</figcaption></figure>\n");
}

/// 12,345 for 12345.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const STYLE: &str = "
:root { --before: #b9bec7; --baseline1: #5b8def; --routine1: #1f9d76; }
@media (prefers-color-scheme: dark) { :root { --before: #5a616b; --baseline1: #6f9bf2;
  --routine1: #35b98f; } }
main { max-width: 780px; }
.note, .legend { color: var(--soft); font-size: 14px; }
.legend span { margin-right: 20px; }
.legend span::before { content: ''; display: inline-block; width: 10px; height: 10px;
  margin-right: 7px; border-radius: 2px; background: var(--c); }
.legend .before { --c: var(--before); } .legend .baseline1 { --c: var(--baseline1); }
.legend .routine1 { --c: var(--routine1); }
svg { display: block; width: 100%; height: auto; }
rect.before { fill: var(--before); } rect.baseline1 { fill: var(--baseline1); }
rect.routine1 { fill: var(--routine1); }
svg text { fill: var(--ink); font-size: 12.5px; }
svg .tick, svg .value { fill: var(--soft); font-size: 10px; }
svg .tick { text-anchor: middle; } svg .label { text-anchor: end; }
svg .grid { stroke: var(--line); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child { padding-left: 0; text-align: left; } tbody th { font-weight: 500; }
thead th { color: var(--soft); font-size: 13px; font-weight: 500; }
.gain { color: var(--routine1); font-weight: 600; } .none { color: var(--soft); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
figure img { display: block; border-radius: 4px; image-rendering: pixelated; }
figcaption p { margin: 8px 0 0; font-size: 13.5px; line-height: 1.4; }
figcaption b { margin-right: 7px; color: var(--soft); font-size: 11px; font-weight: 600;
  text-transform: uppercase; }
dl { margin: 0; } dl div { display: flex; padding: 7px 0; border-bottom: 1px solid var(--line); }
dt { flex: 0 0 110px; color: var(--soft); } dd { margin: 0; }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
