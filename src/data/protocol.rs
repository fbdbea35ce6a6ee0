//! How a data set becomes training, validation and test items.

use super::{Loaded, Split};
use crate::bad_input;
use crate::error::Result;
use crate::rng::randperm;

/// How many items to train on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shots {
    /// None: the model as it is.
    Zero,
    /// The first so many of the seeded permutation.
    Few(usize),
    /// The whole training split.
    Full,
}

/// The rule of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Items to train on.
    pub shots: Shots,
    /// Seed of the permutation; 42 in the paper.
    pub split_seed: u32,
    /// What a zero-shot run on a set without splits (XTD10) leaves out, so that it is tested on the
    /// items of a run with so many shots; 50 in the paper.
    pub xtd_shots: usize,
}

impl Default for Protocol {
    fn default() -> Self {
        Protocol {
            shots: Shots::Few(50),
            split_seed: 42,
            xtd_shots: 50,
        }
    }
}

/// A data set as its files have it.
pub(super) enum Table {
    /// One list; the protocol cuts it.
    Whole(Split),
    /// Its own training, validation and test split.
    Parts(Box<[Split; 3]>),
}

impl Protocol {
    /// Cuts `table`; `label` names the data set in errors.
    ///
    /// A whole list of N is permuted by `randperm(N, split_seed)`: the first n train, the next n
    /// validate, the rest test. Of a list with its own splits, the training split alone is
    /// permuted, and cut after n.
    pub(super) fn divide(&self, label: &str, table: Table) -> Result<Loaded> {
        if self.shots == Shots::Few(0) {
            return Err(bad_input!(
                "shots: expected at least 1, found 0; zero-shot is `zero`"
            ));
        }
        match table {
            Table::Whole(all) => self.divide_whole(label, &all),
            Table::Parts(splits) => {
                let [train, validation, test] = *splits;
                let train = self.pick_train(label, train)?;
                Ok(Loaded {
                    train,
                    validation,
                    test,
                    warnings: Vec::new(),
                })
            }
        }
    }

    fn divide_whole(&self, label: &str, all: &Split) -> Result<Loaded> {
        let total = all.len();
        let n = match self.shots {
            Shots::Few(n) => n,
            Shots::Zero => self.xtd_shots,
            Shots::Full => {
                return Err(bad_input!(
                    "shots: `full` needs a training split, and {label} has none (its {total} items \
                     are cut into train, validation and test); give a number of shots"
                ));
            }
        };
        if n == 0 || n.saturating_mul(2) >= total {
            return Err(bad_input!(
                "shots: {n} of {label} need {n} items to train, {n} to validate and at least 1 to \
                 test, of {total} items; give a number from 1 to {}",
                total.saturating_sub(1) / 2
            ));
        }
        let perm = randperm(total, self.split_seed);
        let train = if self.shots == Shots::Zero {
            &[]
        } else {
            &perm[..n]
        };
        Ok(Loaded {
            train: all.pick(train),
            validation: all.pick(&perm[n..2 * n]),
            test: all.pick(&perm[2 * n..]),
            warnings: Vec::new(),
        })
    }

    fn pick_train(&self, label: &str, train: Split) -> Result<Split> {
        match self.shots {
            Shots::Full => Ok(train),
            Shots::Zero => Ok(train.pick(&[])),
            Shots::Few(n) if n > train.len() => Err(bad_input!(
                "shots: {n} asked for, but the training split of {label} has {} items; give at \
                 most so many, or `full`",
                train.len()
            )),
            Shots::Few(n) => Ok(train.pick(&randperm(train.len(), self.split_seed)[..n])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Role;

    fn split(n: usize) -> Split {
        let mut split = Split::new((0..n).map(|i| format!("{i}.jpg")).collect());
        split.texts[Role::Target.index()] = Some((0..n).map(|i| format!("caption {i}")).collect());
        split
    }

    fn protocol(shots: Shots) -> Protocol {
        Protocol {
            shots,
            ..Protocol::default()
        }
    }

    #[test]
    fn a_whole_list_is_cut_as_published() {
        let few = protocol(Shots::Few(50))
            .divide("x", Table::Whole(split(1000)))
            .unwrap();
        assert_eq!(
            [few.train.len(), few.validation.len(), few.test.len()],
            [50, 50, 900]
        );
        assert_eq!(few.train.items[..5], [542, 618, 816, 68, 94]);
        assert_eq!(few.validation.items[..5], [820, 440, 338, 327, 562]);
        assert_eq!(few.test.items[..5], [83, 664, 471, 642, 137]);
        assert_eq!(few.test.images[0], "83.jpg");
        assert_eq!(few.test.text(Role::Target).unwrap()[0], "caption 83");
        let zero = protocol(Shots::Zero)
            .divide("x", Table::Whole(split(1000)))
            .unwrap();
        assert!(zero.train.is_empty());
        assert_eq!(zero.validation, few.validation);
        assert_eq!(zero.test, few.test);
    }

    #[test]
    fn own_splits_keep_their_order() {
        let table = || Table::Parts(Box::new([split(20), split(7), split(9)]));
        let few = protocol(Shots::Few(3)).divide("x", table()).unwrap();
        assert_eq!(
            few.train.items,
            randperm(20, 42)[..3]
                .iter()
                .map(|&i| i as u32)
                .collect::<Vec<_>>()
        );
        assert_eq!([few.validation.len(), few.test.len()], [7, 9]);
        let full = protocol(Shots::Full).divide("x", table()).unwrap();
        assert_eq!(full.train, split(20));
        let zero = protocol(Shots::Zero).divide("x", table()).unwrap();
        assert!(zero.train.is_empty());
    }

    #[test]
    fn too_many_shots_name_both_numbers() {
        for (shots, table, parts) in [
            (
                Shots::Few(500),
                Table::Whole(split(1000)),
                ["500", "1000", "499"],
            ),
            (
                Shots::Full,
                Table::Whole(split(1000)),
                ["full", "no", "1000"],
            ),
            (
                Shots::Few(21),
                Table::Parts(Box::new([split(20), split(7), split(9)])),
                ["21", "20", "full"],
            ),
            (
                Shots::Few(0),
                Table::Whole(split(1000)),
                ["0", "zero", "shots"],
            ),
        ] {
            let error = protocol(shots)
                .divide("XTD10", table)
                .unwrap_err()
                .to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
