//! The actor that adds up what was done, each file once however often it was sent.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::picture::{Failure, Thumbnail};

/// What became of each file.
#[derive(Default)]
pub(crate) struct Totals {
    files: BTreeMap<String, (Result<Thumbnail, Failure>, Duration)>,
}

/// The sums.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) thumbnails: usize,
    pub(crate) failures: Vec<(String, Failure)>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// What the pictures took together, each from sending to answer.
    pub(crate) time: Duration,
}

#[hatchery::actor]
impl Totals {
    fn start() -> Self {
        Totals::default()
    }

    /// A file is done; said again, the later word counts.
    pub(crate) fn done(&mut self, name: String, outcome: Result<Thumbnail, Failure>, time: Duration) {
        self.files.insert(name, (outcome, time));
    }

    pub(crate) fn summary(&self) -> Summary {
        let made = || self.files.values().filter_map(|(outcome, _)| outcome.as_ref().ok());
        let failed = |(name, (outcome, _)): (&String, &(Result<Thumbnail, Failure>, Duration))| {
            outcome.as_ref().err().map(|reason| (name.clone(), reason.clone()))
        };
        Summary {
            thumbnails: made().count(),
            failures: self.files.iter().filter_map(failed).collect(),
            bytes_in: made().map(|thumbnail| thumbnail.bytes_in).sum(),
            bytes_out: made().map(|thumbnail| thumbnail.bytes_out).sum(),
            time: self.files.values().map(|(_, time)| *time).sum(),
        }
    }
}
