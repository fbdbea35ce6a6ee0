//! `crosstune search`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use crosstune::bad_input;
use crosstune::data::captions::read_lines;
use crosstune::data::feature_file::FeatureFile;
use crosstune::data::features::Features;
use crosstune::engine::Engine;
use crosstune::error::Error;
use crosstune::search::mapped::Mapped;
use crosstune::search::page::{Answer, Shown, write_page};
use crosstune::search::top::{Hit, top};
use serde::Serialize;

use super::adapters::{AdapterArgs, Adapters};
use super::compute::ComputeArgs;
use super::data::{lines_or_stdin, required};
use super::term::Progress;
use super::{Output, check_target};

/// From so many texts on their encoding takes long enough to be watched.
const MANY: u64 = 100;

/// Options of a search.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example: the images nearest to a sentence, as a table and as a page:
  crosstune search --model m-clip --features images.safetensors \"ein Hund am Strand\" \\
    --html page.html --images pictures/
Example: the captions nearest to an image:
  crosstune search --model m-clip --features images.safetensors --image 1.jpg \\
    --captions captions.txt"
)]
pub struct Args {
    /// What to look for: a sentence in any language. Several are answered one after another.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// More sentences, one a line, plain or gzipped; `-` for standard input.
    #[arg(long, value_name = "FILE|-")]
    queries: Option<PathBuf>,
    /// The model: a folder, or a name in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|NAME")]
    model: Option<String>,
    /// Image features: .safetensors (tensor image_features, metadata names) or .npy, f32 or f16.
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
    /// Look for captions of this image of --features instead; may be given several times.
    #[arg(long, value_name = "NAME")]
    image: Vec<String>,
    /// The captions to choose from, one a line; the model encodes them.
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// The same as features that `encode` made; --captions then says what to call them.
    #[arg(long, value_name = "FILE")]
    caption_features: Option<PathBuf>,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// With --adapter LANG=FILE: the language of all sentences or captions, or one for each.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    lang: Vec<String>,
    /// How many to find.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Write the answers as one page too, with thumbnails in it.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The images' folder, for --html: a name in --features is a path in it.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Write over a page that exists.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What is looked for.
enum Asked {
    /// Images, by sentences.
    Texts(Vec<String>),
    /// Captions, by rows of the feature file. A picture that has no row yet would come in here.
    Images(Vec<usize>),
}

/// Queries (Q, E) and what they and their answers are called.
struct Task {
    queries: Vec<f32>,
    asked: Vec<Shown>,
    /// What is chosen from are captions: their lines, or none where they are not given.
    captions: Option<Vec<String>>,
}

/// Runs the command.
pub fn run(args: Args, output: Output) -> Result<()> {
    check(&args)?;
    let path = required(&args.features, "features", "FILE with image features")?;
    let images = FeatureFile::open(&path)?;
    let asked = asked(&args, &images)?;
    let (engine, pool) = places(&args, &asked)?;
    let (task, among) = match asked {
        Asked::Texts(texts) => for_texts(&args, engine.as_ref(), texts, images, output)?,
        Asked::Images(rows) => for_images(&args, engine.as_ref(), &rows, &images, output)?,
    };
    let (among, hits) = pool.install(|| -> Result<_, Error> {
        let among = Mapped::new(among)?;
        let hits = top(&among, &task.queries, args.top)?;
        Ok((among, hits))
    })?;
    let answers = hits.into_iter().zip(&task.asked).map(|(hits, asked)| {
        let shown = hits
            .iter()
            .map(|h| (task.shown(among.file(), h.row), h.score));
        let answer = Answer {
            asked: asked.clone(),
            found: shown.collect(),
        };
        (answer, hits)
    });
    let answers: Vec<(Answer, Vec<Hit>)> = answers.collect();
    if let (Some(html), Some(folder)) = (&args.html, &args.images) {
        let what = if task.captions.is_some() {
            "captions"
        } else {
            "images"
        };
        let about = format!(
            "{} {what} of {}",
            among.rows(),
            among.file().path().display()
        );
        let pages: Vec<Answer> = answers.iter().map(|(a, _)| a.clone()).collect();
        pool.install(|| write_page(html, &about, &pages, folder))?;
    }
    print(&answers, output)
}

/// What can be seen to be wrong before any file is opened.
fn check(args: &Args) -> Result<(), Error> {
    if args.top == 0 {
        return Err(bad_input!("top: found 0, expected at least 1"));
    }
    match (&args.html, &args.images) {
        (Some(html), Some(folder)) => {
            check_target(html, args.force)?;
            if !folder.is_dir() {
                let folder = folder.display();
                return Err(bad_input!(
                    "{folder}: is not a folder; --images DIR holds the images"
                ));
            }
        }
        (Some(_), None) => {
            return Err(bad_input!(
                "images: missing; --html needs --images DIR, the images' folder"
            ));
        }
        (None, Some(_)) => return Err(bad_input!("images: is of no use without --html FILE")),
        (None, None) => {}
    }
    let has_captions = args.captions.is_some() || args.caption_features.is_some();
    let has_texts = !args.texts.is_empty() || args.queries.is_some();
    match (args.image.is_empty(), has_captions) {
        (true, false) => Ok(()),
        (true, true) => Err(bad_input!(
            "captions: are chosen for --image NAME, which is missing"
        )),
        (false, false) => Err(bad_input!(
            "captions: missing; --image needs --captions FILE or --caption-features FILE"
        )),
        (false, true) if has_texts => Err(bad_input!(
            "image: asks for captions, a sentence asks for images; give one or the other"
        )),
        (false, true) if args.caption_features.is_some() && args.adapters.is_given() => Err(
            bad_input!("adapter: is of no use with --caption-features, which are encoded already"),
        ),
        (false, true) => Ok(()),
    }
}

/// What is asked for; images are looked up.
fn asked(args: &Args, images: &FeatureFile) -> Result<Asked> {
    if !args.image.is_empty() {
        let rows = args.image.iter().map(|name| images.find(name));
        return Ok(Asked::Images(rows.collect::<Result<_, Error>>()?));
    }
    let mut texts = args.texts.clone();
    if let Some(i) = texts.iter().position(|t| t.trim().is_empty()) {
        return Err(bad_input!("query {} is empty; write what to look for", i + 1).into());
    }
    if let Some(file) = &args.queries {
        texts.extend(lines_or_stdin(file)?.0);
    }
    if texts.is_empty() {
        return Err(bad_input!(
            "search: nothing is asked for; give a sentence, --queries FILE, or --image NAME"
        )
        .into());
    }
    Ok(Asked::Texts(texts))
}

/// The model, where something is to be encoded, and the threads of the search.
fn places(args: &Args, asked: &Asked) -> Result<(Option<Engine>, Arc<rayon::ThreadPool>)> {
    if matches!(asked, Asked::Images(_)) && args.caption_features.is_some() {
        let threads = args.compute.threads.unwrap_or(0);
        if args.compute.threads == Some(0) {
            return Err(bad_input!("threads: found 0, expected at least 1").into());
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        return Ok((None, Arc::new(pool)));
    }
    let model = required(&args.model, "model", "DIR of an M-CLIP model")?;
    let engine = args.compute.open(&model)?;
    let pool = engine.pool();
    Ok((Some(engine), pool))
}

fn for_texts(
    args: &Args,
    engine: Option<&Engine>,
    texts: Vec<String>,
    among: FeatureFile,
    output: Output,
) -> Result<(Task, FeatureFile)> {
    if let Some(engine) = engine {
        check_width(&among, engine.embed_dim(), "the model's")?;
    }
    let task = Task {
        queries: encode(args, engine, &texts, output)?,
        asked: texts.into_iter().map(Shown::Text).collect(),
        captions: None,
    };
    Ok((task, among))
}

fn for_images(
    args: &Args,
    engine: Option<&Engine>,
    rows: &[usize],
    images: &FeatureFile,
    output: Output,
) -> Result<(Task, FeatureFile)> {
    let mut queries = Vec::with_capacity(rows.len() * images.dim());
    for row in rows {
        images.length(*row)?;
        queries.extend_from_slice(images.block(*row..row + 1, &mut Vec::new()));
    }
    let asked = rows
        .iter()
        .map(|r| Shown::Picture(images.names()[*r].clone()));
    let lines = args.captions.as_deref().map(read_lines).transpose()?;
    let among = match &args.caption_features {
        Some(file) => FeatureFile::open(file)?,
        None => captions(args, engine, lines.as_deref().unwrap_or_default(), output)?,
    };
    check_width(images, among.dim(), "those of the captions")?;
    if let (Some(lines), Some(file)) = (&lines, &args.captions)
        && lines.len() != among.rows()
    {
        return Err(bad_input!(
            "{}: has {} captions, but {} has {} rows",
            file.display(),
            lines.len(),
            among.path().display(),
            among.rows()
        )
        .into());
    }
    let task = Task {
        queries,
        asked: asked.collect(),
        captions: Some(lines.unwrap_or_default()),
    };
    Ok((task, among))
}

/// The features of captions, as if they had been read from a file.
fn captions(
    args: &Args,
    engine: Option<&Engine>,
    lines: &[String],
    output: Output,
) -> Result<FeatureFile> {
    let file = args.captions.as_deref().unwrap_or(Path::new("captions"));
    let values = encode(args, engine, lines, output)?;
    let features = Features {
        names: vec![],
        dim: values.len() / lines.len().max(1),
        values,
    };
    Ok(FeatureFile::in_memory(file, features)?)
}

/// Features (N, E) of texts by the model and its adapters.
fn encode(
    args: &Args,
    engine: Option<&Engine>,
    texts: &[String],
    output: Output,
) -> Result<Vec<f32>> {
    let engine = engine.ok_or_else(|| bad_input!("model: missing; give --model DIR"))?;
    let adapters = args.adapters.load()?;
    let slots = slots(&adapters, &args.lang, texts.len())?;
    let mut set = adapters.bind(engine)?;
    let ids = engine.tokenize(texts)?;
    let total = ids.len() as u64;
    let mut progress = Progress::new(total, output.quiet || total < MANY);
    let values = set.encode(engine, &ids, &slots, &mut |done| {
        progress.at(done as u64, total, "texts");
    })?;
    progress.finish();
    Ok(values)
}

/// The adapter of each text.
fn slots(adapters: &Adapters, langs: &[String], n_texts: usize) -> Result<Vec<usize>> {
    match (langs, adapters.by_language()) {
        ([], false) => Ok(vec![adapters.slot_of_all(); n_texts]),
        ([], true) => Err(bad_input!(
            "lang: missing; --adapter LANG=FILE needs --lang with the texts' language"
        )
        .into()),
        (_, false) => Err(bad_input!("lang: is of no use without an --adapter LANG=FILE").into()),
        ([all], true) => Ok(vec![adapters.slot(all)?; n_texts]),
        (each, true) if each.len() == n_texts => each.iter().map(|l| adapters.slot(l)).collect(),
        (each, true) => Err(bad_input!(
            "lang: has {} languages for {n_texts} texts, expected one for all or one for each",
            each.len()
        )
        .into()),
    }
}

fn check_width(images: &FeatureFile, dim: usize, whose: &str) -> Result<(), Error> {
    if images.dim() == dim {
        return Ok(());
    }
    Err(bad_input!(
        "{}: features are {} wide, {whose} are {dim}: they come from another model",
        images.path().display(),
        images.dim()
    ))
}

impl Task {
    /// What an answer is called.
    fn shown(&self, among: &FeatureFile, row: usize) -> Shown {
        let name = among.names().get(row).cloned();
        let number = || format!("row {row}");
        match (&self.captions, name) {
            (Some(lines), name) => {
                let line = lines.get(row).cloned().or(name);
                Shown::Text(line.unwrap_or_else(number))
            }
            (None, Some(name)) => Shown::Picture(name),
            (None, None) => Shown::Text(number()),
        }
    }
}

/// Answers to a query.
#[derive(Serialize)]
struct Found<'a> {
    query: &'a str,
    results: Vec<Ranked>,
}

/// An answer.
#[derive(Serialize)]
struct Ranked {
    rank: usize,
    row: usize,
    name: String,
    score: f32,
}

/// A table a query, or with --json a line.
fn print(answers: &[(Answer, Vec<Hit>)], output: Output) -> Result<()> {
    for (i, (answer, hits)) in answers.iter().enumerate() {
        let query = answer.asked.text();
        if output.json {
            let results = hits.iter().zip(&answer.found).enumerate();
            let results = results.map(|(i, (hit, (shown, _)))| Ranked {
                rank: i + 1,
                row: hit.row,
                name: shown.text().into(),
                score: hit.score,
            });
            let results = results.collect();
            println!("{}", serde_json::to_string(&Found { query, results })?);
            continue;
        }
        let gap = if i > 0 { "\n" } else { "" };
        println!("{gap}{query}\nrank   score  found");
        for (i, (shown, score)) in answer.found.iter().enumerate() {
            println!("{:4}  {score:6.4}  {}", i + 1, shown.text());
        }
    }
    Ok(())
}
