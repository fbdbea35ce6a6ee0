//! Groups: members that share a step, as many as memory and the user allow.

use super::Spec;
use crate::bad_input;
use crate::device::DeviceChoice;
use crate::engine::Engine;
use crate::engine::memory::{Share, TrainingMemory, gib};
use crate::error::{Error, Result};
use crate::train::config::Shared;
use crate::train::cost::Load;
use crate::train::languages::Languages;
use crate::train::program::TrainProgram;

/// How large a group may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Members of a group.
    pub members: usize,
    /// For [`Engine::training_bytes`] of a group.
    pub memory: TrainingMemory,
}

impl Limits {
    /// Why a group that was packed before is too large for that share of memory, and what helps; none
    /// if it is not.
    pub fn refusal(&self, group: &Group, share: Share) -> Option<String> {
        let (n, allowed) = (group.members.len(), self.memory.bytes(share));
        if n > self.members {
            let most = self.members;
            return Some(format!(
                "its group has {n} members, and --max-members allows {most}; allow as many"
            ));
        }
        if group.bytes <= allowed {
            return None;
        }
        let more = match self.memory.is_wanted(share) {
            true => "give a larger --memory",
            false => "free memory, or go on where there is more",
        };
        Some(format!(
            "its group of {n} members needs {}, and {} are allowed ({}); {more}",
            gib(group.bytes),
            gib(allowed),
            self.memory.source(share)
        ))
    }
}

/// Members that train in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Indices of the members, in the order in which they are packed.
    pub members: Vec<usize>,
    /// Steps of the longest.
    pub steps: usize,
    /// The most tokens that a step can hold.
    pub tokens: usize,
    /// Bytes of [`Engine::training_bytes`] for that step.
    pub bytes: u64,
}

/// A member: its index, its steps, and the most that it brings to a step's rounds, one a language.
type Queued = (usize, usize, Vec<Load>);

/// Sizes groups of one kind of adapter.
struct Sizer<'a> {
    engine: &'a Engine,
    shared: &'a Shared,
    program: TrainProgram,
}

/// Steps of a member: epochs times batches an epoch, of the language with the most items.
///
/// # Errors
/// If a language was not read.
pub fn steps(spec: &Spec, languages: &Languages) -> Result<usize> {
    let mut most = 0;
    for language in &spec.languages {
        most = most.max(languages.get(language)?.train.len());
    }
    Ok(spec.config.epochs * most.div_ceil(spec.config.batch.max(1)))
}

/// Packs `chosen` members (indices into `specs`): those with equal [`Shared`] together, longer runs
/// first, so that few wait for one; full training alone. The order is that of `specs` otherwise.
///
/// # Errors
/// A member that does not fit in `limits` even alone; a text of more than its `max_tokens`.
pub fn pack(
    engine: &Engine,
    (specs, chosen): (&[Spec], &[usize]),
    languages: &Languages,
    limits: Limits,
) -> Result<Vec<Group>> {
    if limits.members == 0 {
        return Err(bad_input!("max-members: found 0, expected at least 1"));
    }
    let mut kinds: Vec<(&Shared, Vec<usize>)> = Vec::new();
    for &i in chosen {
        let shared = &specs[i].shared;
        match kinds.iter_mut().find(|(kind, _)| *kind == shared) {
            Some((_, members)) => members.push(i),
            None => kinds.push((shared, vec![i])),
        }
    }
    let mut groups = Vec::new();
    for (shared, members) in kinds {
        let sizer = Sizer::new(engine, shared);
        let most = if shared.adapter.full {
            1
        } else {
            limits.members
        };
        let mut queue = enqueue(specs, &members, languages)?;
        queue.sort_by_key(|(_, steps, _)| std::cmp::Reverse(*steps));
        let mut rest = &queue[..];
        while let [(first, ..), ..] = rest {
            let bytes = limits.memory.bytes(Share::Planned);
            let fits = |n: &usize| sizer.bytes(&rest[..*n]) <= bytes;
            let Some(n) = largest(rest.len().min(most), fits) else {
                return Err(too_large(
                    &specs[*first].name,
                    sizer.bytes(&rest[..1]),
                    &limits.memory,
                ));
            };
            groups.push(sizer.group(&rest[..n]));
            rest = &rest[n..];
        }
    }
    Ok(groups)
}

/// The group of given members, as they were packed once; none if they may not share a step.
///
/// # Errors
/// If a language was not read.
pub fn regroup(
    engine: &Engine,
    (specs, members): (&[Spec], &[usize]),
    languages: &Languages,
) -> Result<Option<Group>> {
    let [first, ..] = members else {
        return Ok(None);
    };
    let shared = &specs[*first].shared;
    if members.iter().any(|i| specs[*i].shared != *shared) {
        return Ok(None);
    }
    let queue = enqueue(specs, members, languages)?;
    Ok(Some(Sizer::new(engine, shared).group(&queue)))
}

/// The largest of 1 to `most` that `fits`, where all smaller ones of a fitting one fit.
fn largest(most: usize, fits: impl Fn(&usize) -> bool) -> Option<usize> {
    if fits(&most) {
        return Some(most);
    }
    let (mut good, mut bad) = (0, most);
    while good + 1 < bad {
        let middle = (good + bad) / 2;
        if fits(&middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    (good > 0).then_some(good)
}

fn too_large(name: &str, bytes: u64, memory: &TrainingMemory) -> Error {
    let (share, cpu) = (Share::Planned, memory.device == DeviceChoice::Cpu);
    if !cpu && memory.free <= memory.weights {
        let source = memory.source(Share::Begun);
        return bad_input!("memory: {source}; free some there, or use --device cpu");
    }
    let source = memory.source(share);
    let more = match (memory.is_wanted(share), cpu) {
        (true, _) | (_, true) => "or a larger --memory",
        _ => "or free memory there",
    };
    bad_input!(
        "memory: {name} needs {} for its largest step, even alone, and {} are allowed ({source}); give \
         a smaller batch, --max-tokens, {more}",
        gib(bytes),
        gib(memory.bytes(share))
    )
}

fn enqueue(specs: &[Spec], members: &[usize], languages: &Languages) -> Result<Vec<Queued>> {
    let one = |i: &usize| {
        let spec = &specs[*i];
        let rounds = spec.languages.iter();
        let rounds = rounds.map(|language| largest_round(spec, language, languages));
        Ok((*i, steps(spec, languages)?, rounds.collect::<Result<_>>()?))
    };
    members.iter().map(one).collect()
}

/// The most that a member can bring to a round: its `batch` longest items of a language.
fn largest_round(spec: &Spec, language: &str, languages: &Languages) -> Result<Load> {
    let train = &languages.get(language)?.train;
    spec.shared.check_texts(train)?;
    let mut tokens = vec![0; train.len()];
    let roles = [
        Some(spec.config.strategy.anchor()),
        spec.config.strategy.partner(),
    ];
    let slots = spec.shared.adapter.prompt.as_ref().map_or(0, |p| p.length);
    let (mut texts, mut shortest, mut longest) = (0, usize::MAX, 0);
    for role in roles.into_iter().flatten() {
        texts += 1;
        for (sum, ids) in tokens.iter_mut().zip(train.text(role)?) {
            let len = ids.len() + slots;
            *sum += len;
            (shortest, longest) = (shortest.min(len), longest.max(len));
        }
    }
    tokens.sort_unstable_by_key(|n| std::cmp::Reverse(*n));
    let items = spec.config.batch.min(train.len());
    Ok(Load {
        tokens: tokens[..items].iter().sum(),
        seqs: texts * items,
        items,
        shortest,
        longest,
    })
}

impl<'a> Sizer<'a> {
    fn new(engine: &'a Engine, shared: &'a Shared) -> Sizer<'a> {
        let model = engine.model();
        let rates = shared.dropout(&model.config);
        let program = TrainProgram::new(&model.config, model.head, &shared.adapter, rates);
        Sizer {
            engine,
            shared,
            program,
        }
    }

    /// What the members together bring to each round.
    fn rounds(members: &[Queued]) -> Vec<Load> {
        let mut sums: Vec<Load> = Vec::new();
        for (_, _, rounds) in members {
            for (i, load) in rounds.iter().enumerate() {
                match sums.get_mut(i) {
                    Some(sum) => *sum = sum.plus(load),
                    None => sums.push(*load),
                }
            }
        }
        sums
    }

    /// What a group of them takes where the engine computes.
    fn bytes(&self, members: &[Queued]) -> u64 {
        let rounds = Self::rounds(members);
        let passes = rounds.iter().flat_map(|l| l.passes(self.shared.max_tokens));
        let passes: Vec<Load> = passes.collect();
        let trained = (&*self.program.graph, &self.shared.adapter);
        self.engine.training_bytes(trained, members.len(), &passes)
    }

    fn group(&self, members: &[Queued]) -> Group {
        Group {
            members: members.iter().map(|(i, ..)| *i).collect(),
            steps: members
                .iter()
                .map(|(_, steps, _)| *steps)
                .max()
                .unwrap_or(0),
            tokens: Self::rounds(members).iter().map(|l| l.tokens).sum(),
            bytes: self.bytes(members),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::largest;

    #[test]
    fn the_largest_that_fits() {
        for most in 1..20 {
            for limit in 0..25 {
                let found = largest(most, |n| *n <= limit);
                assert_eq!(
                    found,
                    (limit > 0).then_some(limit.min(most)),
                    "{most} {limit}"
                );
            }
        }
    }
}
