//! Runs a sweep's groups in turn.
//!
//! Whenever it is killed, the folder says what is left: a member with a `result.json` is finished;
//! `running.json` names the group that was trained, and `checkpoint.safetensors` beside it is where
//! that group stood. Which members share a step changes no byte of them, so what is left may be
//! packed anew; a checkpoint is given up by no one but the user.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Spec;
use super::pack::{self, Group, Limits};
use super::result::{self, MemberResult, Tested, ZeroShot, ZeroShotRow};
use crate::adapter::Adapter;
use crate::adapter::file::AdapterFile;
use crate::bad_input;
use crate::data::Role;
use crate::engine::memory::Share;
use crate::engine::{Engine, TextEncoder};
use crate::error::{Error, Result};
use crate::eval::retrieval::Recall;
use crate::train::languages::Languages;
use crate::train::trainer::{
    self, Member, OnFailure, Outcome, SavePolicy, StepReport, Trainer, evaluate, weights_hash,
};
use crate::weights::write::write_atomic;

/// Everything that a sweep needs.
pub struct Sweep<'a> {
    /// Runs it.
    pub engine: &'a Engine,
    /// Where it goes; exists.
    pub folder: &'a Path,
    /// The model's name, for the adapters' metadata.
    pub model: &'a str,
    /// All members.
    pub specs: &'a [Spec],
    /// Their data.
    pub languages: &'a Languages,
    /// How large a group may become.
    pub limits: Limits,
    /// Steps between checkpoints.
    pub save_every: usize,
}

/// What a sweep tells its caller.
pub enum Event<'a> {
    /// A language was measured without an adapter.
    ZeroShot(&'a ZeroShotRow),
    /// A group begins, or goes on.
    Group {
        /// It.
        group: &'a Group,
        /// Steps of it that are done already.
        step: usize,
    },
    /// A member's part of a finished step.
    Step {
        /// Steps done, summed over all members.
        done: usize,
        /// Steps to do, summed over all members.
        total: usize,
        /// The step.
        report: &'a StepReport,
    },
    /// A member was tested and its files are written.
    Finished(&'a MemberResult),
}

/// Told of every event; breaking ends the sweep after a checkpoint.
pub type Tell<'t> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 't;

/// What was measured.
pub struct Measured {
    /// The model as it is.
    pub zero_shot: ZeroShot,
    /// The members, in the order of the specs.
    pub members: Vec<MemberResult>,
}

impl Sweep<'_> {
    /// Runs what is left to do.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the callback broke; a file that can't be read or written; a folder
    /// that was begun with another model or other data.
    pub fn run(&self, tell: &mut Tell<'_>) -> Result<Measured> {
        let zero_shot = self.zero_shot(tell)?;
        let mut done = 0;
        for (spec, result) in self.specs.iter().zip(self.results()?) {
            if result.is_some() {
                done += pack::steps(spec, self.languages)?;
            }
        }
        for group in self.left()? {
            done = self.group(&group, done, tell)?;
            self.write_results()?;
        }
        let members: Vec<MemberResult> = self.results()?.into_iter().flatten().collect();
        Ok(Measured { zero_shot, members })
    }

    /// The groups that are not finished, in the order in which they run.
    ///
    /// # Errors
    /// A member that does not fit in memory alone; a checkpoint whose group does not fit any more; a
    /// file that can't be read.
    pub fn left(&self) -> Result<Vec<Group>> {
        let results = self.results()?;
        let mut left: Vec<usize> = (0..results.len())
            .filter(|i| results[*i].is_none())
            .collect();
        let mut groups = Vec::new();
        if let Some(group) = self.running()? {
            left.retain(|i| !group.members.contains(i));
            groups.push(group);
        }
        let chosen = (self.specs, &left[..]);
        groups.extend(pack::pack(
            self.engine,
            chosen,
            self.languages,
            self.limits,
        )?);
        Ok(groups)
    }

    /// The group that was trained when the sweep was stopped; none if it is too large by now and no
    /// step of it is kept.
    fn running(&self) -> Result<Option<Group>> {
        let names = result::read::<Vec<String>>(&self.file("running.json"))?.unwrap_or_default();
        let place = |name: &String| self.specs.iter().position(|s| s.name == *name);
        let members = names.iter().map(place).collect::<Option<Vec<_>>>();
        let chosen = (self.specs, &members.unwrap_or_default()[..]);
        let group = pack::regroup(self.engine, chosen, self.languages)?;
        let checkpoint = self.file("checkpoint.safetensors");
        let kept = checkpoint.exists();
        let share = if kept { Share::Begun } else { Share::Planned };
        let refusal = match &group {
            Some(group) => self.limits.refusal(group, share),
            None => {
                Some("running.json beside it names no group of this sweep; bring it back".into())
            }
        };
        match refusal {
            None => Ok(group),
            Some(_) if !kept => Ok(None),
            Some(why) => Err(bad_input!(
                "{}: {why}, or remove the file, and what it holds is trained again",
                checkpoint.display()
            )),
        }
    }

    /// Each member's result, if it is finished.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn results(&self) -> Result<Vec<Option<MemberResult>>> {
        let one = |spec: &Spec| result::read(&self.member_file(spec, "result.json"));
        self.specs.iter().map(one).collect()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn member_file(&self, spec: &Spec, name: &str) -> PathBuf {
        self.folder.join(&spec.name).join(name)
    }

    /// The finished members, a line each.
    fn write_results(&self) -> Result<()> {
        let mut text = String::new();
        for member in self.results()?.into_iter().flatten() {
            let line = serde_json::to_string(&member)
                .map_err(|e| Error::Run(format!("{}: {e}", member.name)))?;
            text.push_str(&line);
            text.push('\n');
        }
        write_atomic(&self.file("results.jsonl"), |f| {
            f.write_all(text.as_bytes())
        })
    }

    /// Recall of the model as it is, measured once.
    fn zero_shot(&self, tell: &mut Tell<'_>) -> Result<ZeroShot> {
        let path = self.file("zero_shot.json");
        let model = weights_hash(self.engine.model().weights());
        let inputs = format!("model {model:016x} data {:016x}", self.languages.hash());
        if let Some(known) = result::read::<ZeroShot>(&path)? {
            if known.inputs != inputs {
                return Err(bad_input!(
                    "{}: belongs to a sweep of another model or of other data; bring back what it \
                     was begun with, or choose another --out",
                    self.folder.display()
                ));
            }
            return Ok(known);
        }
        let mut encoder = TextEncoder::new(self.engine, &Adapter::default())?;
        let mut found = ZeroShot {
            inputs,
            english: None,
            rows: Vec::new(),
        };
        if let Some(english) = &self.languages.english {
            let recall = evaluate(self.engine, &mut encoder, english, Role::Target)?;
            found.english = Some(recall);
        }
        for language in self.languages.iter() {
            for role in &language.anchors {
                let row = ZeroShotRow {
                    language: language.language.clone(),
                    texts: role.name().into(),
                    recall: evaluate(self.engine, &mut encoder, &language.test, *role)?,
                };
                go_on(tell(Event::ZeroShot(&row)))?;
                found.rows.push(row);
            }
        }
        result::write(&path, &found)?;
        Ok(found)
    }

    /// Trains and tests one group; `done` steps of all members were done before. Returns how many are
    /// now.
    fn group(&self, group: &Group, done: usize, tell: &mut Tell<'_>) -> Result<usize> {
        let start = Instant::now();
        let finished = self.results()?;
        let mut trainer = self.open(group)?;
        let n = group.members.len();
        let ends: Vec<usize> = (0..n).map(|g| trainer.total_steps(g)).collect();
        // What a finished member of this group has done is counted already.
        let counts: Vec<bool> = group
            .members
            .iter()
            .map(|i| finished[*i].is_none())
            .collect();
        let done_by = |step: usize| {
            let ends = ends.iter().zip(&counts).filter(|(_, counts)| **counts);
            done + ends.map(|(end, _)| step.min(*end)).sum::<usize>()
        };
        let step = trainer.step();
        go_on(tell(Event::Group { group, step }))?;
        let mut done = done_by(step);
        let total = self.total_steps()?;
        let outcomes = trainer.run(&mut |event| match event {
            trainer::Event::Step(report) => {
                done += usize::from(counts[report.member]);
                tell(Event::Step {
                    done,
                    total,
                    report,
                })
            }
            _ => ControlFlow::Continue(()),
        })?;
        for (g, outcome) in outcomes.into_iter().enumerate().filter(|(g, _)| counts[*g]) {
            let spec = &self.specs[group.members[g]];
            let mut member = self.finish(&mut trainer, (g, spec), outcome)?;
            member.seconds = start.elapsed().as_secs_f64() / n as f64;
            result::write(&self.member_file(spec, "result.json"), &member)?;
            go_on(tell(Event::Finished(&member)))?;
        }
        for name in ["checkpoint.safetensors", "running.json"] {
            remove(&self.file(name))?;
        }
        Ok(done_by(usize::MAX))
    }

    fn total_steps(&self) -> Result<usize> {
        let steps = |spec| pack::steps(spec, self.languages);
        self.specs.iter().map(steps).sum()
    }

    /// The trainer of a group, where its checkpoint left it, and `running.json`.
    fn open(&self, group: &Group) -> Result<Trainer<'_>> {
        let specs = || group.members.iter().map(|i| &self.specs[*i]);
        let members = specs().map(|spec| self.member(spec));
        let members = members.collect::<Result<_>>()?;
        let shared = self.specs[group.members[0]].shared.clone();
        let mut trainer = Trainer::new(self.engine, shared, members)?;
        trainer.on_failure(OnFailure::Retire);
        for (g, spec) in specs().enumerate() {
            if let Some(file) = &spec.init {
                trainer.start_from(g, &AdapterFile::load(file)?)?;
            }
            let folder = self.folder.join(&spec.name);
            std::fs::create_dir_all(&folder).map_err(Error::write(&folder))?;
        }
        let names: Vec<&String> = specs().map(|s| &s.name).collect();
        let (running, path) = (
            self.file("running.json"),
            self.file("checkpoint.safetensors"),
        );
        let known: Option<Vec<String>> = result::read(&running)?;
        if !known.is_some_and(|known| known.iter().eq(names.iter().copied())) {
            result::write(&running, &names)?;
        }
        if path.exists() {
            trainer.resume(&path)?;
        }
        trainer.save_to(SavePolicy {
            path,
            every: self.save_every,
        });
        Ok(trainer)
    }

    fn member(&self, spec: &Spec) -> Result<Member> {
        let set = |language: &String| Ok(self.languages.get(language)?.set());
        Ok(Member {
            config: spec.config.clone(),
            languages: spec.languages.iter().map(set).collect::<Result<_>>()?,
        })
    }

    /// What a member reached; its adapters are saved.
    fn finish(
        &self,
        trainer: &mut Trainer<'_>,
        (g, spec): (usize, &Spec),
        outcome: Outcome,
    ) -> Result<MemberResult> {
        let untested = |language: &String| Tested {
            language: language.clone(),
            last: None,
            best: None,
        };
        let mut member = MemberResult {
            name: spec.name.clone(),
            row: spec.row.clone(),
            shared: spec.shared.clone(),
            config: spec.config.clone(),
            steps: trainer.total_steps(g),
            parameters: outcome.last.parameters(),
            score: outcome.best.as_ref().map(|(_, score, _)| *score),
            best_step: outcome.best.as_ref().map(|(.., step)| *step),
            languages: spec.languages.iter().map(untested).collect(),
            skipped: outcome.skipped,
            failed: outcome.failed.clone(),
            device: self.engine.device().to_string(),
            seconds: 0.0,
        };
        if member.failed.is_some() {
            return Ok(member);
        }
        match self.test(trainer, (g, spec), &outcome) {
            Ok(tested) => member.languages = tested,
            Err(Error::Run(why)) => member.failed = Some(why),
            Err(error) => return Err(error),
        }
        Ok(member)
    }

    fn test(
        &self,
        trainer: &mut Trainer<'_>,
        (g, spec): (usize, &Spec),
        outcome: &Outcome,
    ) -> Result<Vec<Tested>> {
        let languages = spec.languages.iter().map(|l| self.languages.get(l));
        let languages = languages.collect::<Result<Vec<_>>>()?;
        let folder = self.folder.join(&spec.name);
        let kept = trainer.keep(g, outcome, (&folder, self.model), &languages)?;
        let mut best = kept.best.into_iter().flatten();
        let tested = |(language, last): (&String, Recall)| Tested {
            language: language.clone(),
            last: Some(last),
            best: best.next(),
        };
        let each = spec.languages.iter().zip(kept.last);
        Ok(each.map(tested).collect())
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::write(path)(e)),
        _ => Ok(()),
    }
}
