//! A worker that is there, and its lines: what it does one after the other, and beside each other.
//!
//! ```text
//!  line 0 ── synchronous tasks, and those that borrow state: one at a time; others when no line has less to do
//!  line 1 ─┐
//!   ..     ├ asynchronous tasks, one of each line at the same time
//!  line n ─┘
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use hatchery_process::task::{TaskEntry, TaskRun};
use tokio::time::Instant;

use super::suspects::Turn;
use super::{Chunk, End, Order};

/// A worker that is there.
#[derive(Debug)]
pub(super) struct Up {
    /// One for each lane of its ledger.
    pub(super) lines: Vec<Line>,
    /// Lines that have nothing to do, but for the first one.
    pub(super) idle: Vec<u16>,
    /// The number of the next task that it is given.
    pub(super) next: u32,
    /// Tasks it may still be given.
    pub(super) left: u64,
    /// What it is to be told.
    pub(super) orders: Vec<Order>,
    /// It is given nothing more.
    pub(super) leaving: bool,
    /// It is to be told to leave once it has nothing more to do.
    pub(super) replaced: bool,
    /// The task behind which its lane is held. Only that of a worker with one lane is.
    pub(super) held: Option<u32>,
    /// A task of it was ended from outside: it dies of that.
    pub(super) ending: bool,
    pub(super) turn: Turn,
    /// Up to when the time that it was busy is counted.
    pub(super) counted: Instant,
}

/// What a worker does one after the other.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) given: VecDeque<Given>,
    /// The last task that has ended here.
    pub(super) last: Option<u32>,
    /// What ran when it was looked at, and since when at least.
    pub(super) seen: Option<(u32, Instant)>,
    /// What the worker was asked to end, and since when it could have done so.
    pub(super) asked: Option<(u32, Instant)>,
    /// A task that was ended from outside, and why.
    pub(super) ended: Option<(u32, End)>,
    /// When it began with the first of what it was given.
    pub(super) began: Instant,
}

#[derive(Debug)]
pub(super) struct Given {
    pub(super) chunk: Chunk,
    pub(super) number: u32,
    pub(super) done: u32,
    pub(super) withdrawn: bool,
    /// What of it has not begun is for others.
    pub(super) returned: bool,
    /// Nothing else of its worker runs while it does.
    pub(super) alone: bool,
    /// How long it should take, judged when it was given.
    pub(super) expected: Duration,
}

impl Given {
    /// The number of the task that is the next one of these to end.
    pub(super) fn next(&self) -> u32 {
        self.number.wrapping_add(self.done)
    }

    /// Whether the task of this number is one of them.
    pub(super) fn has(&self, number: u32) -> bool {
        number.wrapping_sub(self.number) < self.chunk.load.count()
    }

    /// What has not ended of it.
    pub(super) fn rest(self) -> Chunk {
        let mut chunk = self.chunk;
        drop(chunk.load.split_to(self.done));
        chunk.first += u64::from(self.done);
        chunk
    }
}

/// Whether nothing else of a worker runs while this task does.
pub(super) fn runs_alone(entry: &TaskEntry) -> bool {
    !matches!(entry.run, TaskRun::Async(_))
}

impl Line {
    /// Since when the task that runs has run, at least.
    pub(super) fn since(&self) -> Option<Instant> {
        let number = self.given.front()?.next();
        let seen = self.seen.filter(|(seen, _)| *seen == number);
        Some(seen.map_or(self.began, |(_, since)| since))
    }
}

impl Up {
    pub(super) fn new(lanes: u16, left: u64, now: Instant) -> Up {
        let line =
            |_| Line { given: VecDeque::new(), last: None, seen: None, asked: None, ended: None, began: now };
        Up {
            lines: (0..lanes.max(1)).map(line).collect(),
            idle: (1..lanes).collect(),
            next: 0,
            left,
            orders: Vec::new(),
            leaving: false,
            replaced: false,
            held: None,
            ending: false,
            turn: Turn::All,
            counted: now,
        }
    }

    /// Whether it may be given something, if it has not too much already.
    pub(super) fn can_take_more(&self) -> bool {
        !self.leaving && !self.ending && self.held.is_none() && self.left > 0
    }

    /// Tasks that it was given and has not finished.
    pub(super) fn open(&self) -> u64 {
        let given = self.lines.iter().flat_map(|line| &line.given);
        given.map(|given| u64::from(given.chunk.load.count() - given.done)).sum()
    }

    /// How many lines have something to do.
    pub(super) fn busy(&self) -> usize {
        self.lines.len() - self.idle.len() - usize::from(self.lines[0].given.is_empty())
    }

    /// The line that has least to do; for tasks that run alone, the one there is.
    pub(super) fn shortest(&self, alone: bool) -> u16 {
        if alone || self.lines[0].given.is_empty() && self.idle.is_empty() {
            return 0;
        }
        // The first line is left to those that can go nowhere else, as long as there is another one.
        let lines = (0..).zip(&self.lines).map(|(lane, line)| (line.given.len(), lane == 0, lane));
        self.idle.last().copied().or_else(|| lines.min().map(|(.., lane)| lane)).unwrap_or(0)
    }

    /// How much of the worker's time others want, by what they are in: a task that runs alone takes all of it.
    pub(super) fn crowd(&self, lane: u16) -> usize {
        let stands = lane > 0 && self.lines[0].given.iter().any(|given| given.alone);
        self.busy() + if stands { self.lines.len() } else { 0 }
    }

    /// Takes all that it was given.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Given> + '_ {
        self.idle = (1..).take(self.lines.len() - 1).collect();
        self.turn = Turn::All;
        self.lines.iter_mut().flat_map(|line| std::mem::take(&mut line.given))
    }
}
