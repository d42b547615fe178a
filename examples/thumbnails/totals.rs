//! Adds up what was done.
//!
//! Under chaos every picture may be done several times. That does no harm: files are counted by their names, each once.

use std::collections::BTreeMap;

use crate::picture::{Failure, Thumbnail};

/// What became of each file.
#[derive(Default)]
pub(crate) struct Totals {
    files: BTreeMap<String, Result<Thumbnail, Failure>>,
}

/// The sums.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) thumbnails: usize,
    pub(crate) failures: Vec<(String, Failure)>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

impl Totals {
    /// A file is done. Said again the later word counts; but a thumbnail that was made once is there, whatever became of
    /// later attempts.
    pub(crate) fn done(&mut self, name: String, outcome: Result<Thumbnail, Failure>) {
        if !(matches!(outcome, Err(Failure::Undone(_))) && self.files.contains_key(&name)) {
            self.files.insert(name, outcome);
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        let made = || self.files.values().filter_map(|outcome| outcome.as_ref().ok());
        let failed = |(name, outcome): (&String, &Result<Thumbnail, Failure>)| {
            outcome.as_ref().err().map(|reason| (name.clone(), reason.clone()))
        };
        Summary {
            thumbnails: made().count(),
            failures: self.files.iter().filter_map(failed).collect(),
            bytes_in: made().map(|thumbnail| thumbnail.bytes_in).sum(),
            bytes_out: made().map(|thumbnail| thumbnail.bytes_out).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> (String, Result<Thumbnail, Failure>) {
        (name.into(), Ok(Thumbnail { from: (2, 2), to: (1, 1), bytes_in: 100, bytes_out: 10 }))
    }

    fn undone(name: &str) -> (String, Result<Thumbnail, Failure>) {
        (name.into(), Err(Failure::Undone("tried 20 times".into())))
    }

    fn sums(words: impl IntoIterator<Item = (String, Result<Thumbnail, Failure>)>) -> Summary {
        let mut totals = Totals::default();
        words.into_iter().for_each(|(name, outcome)| totals.done(name, outcome));
        totals.summary()
    }

    #[test]
    fn a_file_counts_once_however_often_it_was_said() {
        let sums = sums([made("a"), made("b"), made("a"), undone("c"), undone("c")]);
        assert_eq!((sums.thumbnails, sums.bytes_in, sums.bytes_out), (2, 200, 20));
        assert_eq!(sums.failures.len(), 1);
    }

    #[test]
    fn a_thumbnail_that_was_made_stays_made_in_whatever_order_that_is_heard() {
        assert_eq!(sums([made("a"), undone("a")]), sums([made("a")]));
        assert_eq!(sums([undone("a"), made("a")]), sums([made("a")]));
    }
}
