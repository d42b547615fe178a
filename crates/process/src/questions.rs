//! What the processes of a tree ask each other along their links, as values.

use std::os::fd::OwnedFd;

use hatchery_actor::address::{ProcessId, Tenure};
use hatchery_actor::exchange::{Command, Found};
use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::hold::Hold;
use serde::{Deserialize, Serialize};

/// Asked of whoever owns the seat at a path, or of the nearest process above both ends of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Who sits there now, or next? Of those that have to be gone before, all is known under this number.
    Resolve { seat: String, actor: String, only: Option<Tenure>, after: Option<Tenure>, held: u64 },
    /// How did this one end? Answered when he has.
    Verdict { seat: String, tenure: Tenure },
    /// Do this to him, or to whoever sits there.
    Command { seat: String, actor: String, tenure: Option<Tenure>, command: Command },
    /// Make a channel between these processes.
    Open { to: ProcessId, from: ProcessId },
}

impl Question {
    /// The path that says where it goes, and whether that is a process's own (or a seat, which its parent owns).
    pub(crate) fn destination(&self) -> (&str, bool) {
        match self {
            Question::Resolve { seat, .. }
            | Question::Verdict { seat, .. }
            | Question::Command { seat, .. } => (seat, false),
            Question::Open { to, .. } => (&to.path, true),
        }
    }
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Answer {
    Said(Said),
    /// An end of the channel that was asked for.
    Channel(OwnedFd),
}

/// An answer that is plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Said {
    Sits(Found),
    /// Nobody sits there, and nobody will.
    Closed(String),
    /// Nobody sits there before these are gone.
    Held(Hold),
    /// He has ended so.
    Over(Box<Exit>),
    Done,
    Refused(Fault),
    /// A process on the way has ended, and all below it: ask again.
    Broken,
    /// Somebody on the way can do no more for now: ask again later.
    Busy,
}

/// Whether this path lies below that process.
pub(crate) fn is_below(path: &str, process: &str) -> bool {
    path.strip_prefix(process).is_some_and(|rest| rest.starts_with('/'))
}
