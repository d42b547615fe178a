//! Suspects: tasks that ran in a worker of several lines when that ended. Any of them may be what it ended of, so from then on
//! each of them runs alone: nothing runs beside it, and the next death is its own.
//!
//! ```text
//!                             somebody has nothing to do
//!  it died ─▶ later ─▶ suspects ───────────────────────▶ runs alone ─▶ others may come again
//!                          │  nobody                        ▲
//!                          └──────▶ a worker is cleared ────┘
//! ```
//!
//! Where others would always keep all workers at work, suspects would wait for ever: so one worker at a time is cleared for
//! them, which means that it is given nothing until it has nothing left. Others do not wait for ever either: suspects have half
//! of the workers at most, and where there is only one, others have their turn between two suspects.

use std::cmp::Reverse;

use tokio::time::Instant;

use super::choice::Next;
use super::lines::{Up, runs_alone};
use super::{Chunk, Plan};

/// Whose turn it is in a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Turn {
    /// Everybody's.
    #[default]
    All,
    /// A suspect's, which runs there.
    Suspect,
    /// A suspect's was the last one.
    Others,
}

impl Plan {
    /// Workers that stay: one that leaves may do so in an hour, and until then does nothing for those that wait.
    fn staying(&self) -> impl Iterator<Item = &Up> {
        self.places.iter().filter_map(|place| place.up.as_ref()).filter(|up| !up.leaving)
    }

    /// Whether one waits that may have a worker.
    fn has_suspect(&self) -> bool {
        self.next_suspects() > 0
    }

    /// How many of them may have a worker now, if there is one that has nothing to do.
    pub(super) fn next_suspects(&self) -> usize {
        if self.suspects.is_empty() {
            return 0;
        }
        let running = self.staying().filter(|up| up.turn == Turn::Suspect).count();
        (self.staying().count() / 2).max(1).saturating_sub(running).min(self.suspects.len())
    }

    fn priority_of(&self, chunk: &Chunk) -> usize {
        self.jobs.get(&chunk.job).map_or(0, |job| job.wants.priority as usize)
    }

    /// The first suspect of this priority, and a worker for it that has nothing to do. Unless it comes `last`, there is none
    /// where it is others' turn.
    pub(super) fn next_suspect(&self, queue: usize, last: bool) -> Option<Next> {
        if !self.has_suspect() {
            return None;
        }
        let at = self.suspects.iter().position(|chunk| self.priority_of(chunk) == queue)?;
        let is_only = self.staying().count() == 1;
        let is_idle = |up: &Up| {
            let waits = is_only && !last && up.turn == Turn::Others;
            up.can_take_more() && up.busy() == 0 && !waits
        };
        let index = self.places.iter().position(|place| place.up.as_ref().is_some_and(is_idle))?;
        let chunk = &self.suspects[at];
        let alone = self.jobs.get(&chunk.job).is_none_or(|job| runs_alone(job.wants.entry));
        let lane = self.places[index].up.as_ref()?.shortest(alone);
        Some(Next { queue: None, at, expected: self.expected(chunk), alone, index, lane })
    }

    /// Whether a worker is for suspects alone, because it runs one or is being cleared for one.
    pub(super) fn is_for_suspects(&self, index: usize, up: &Up) -> bool {
        up.turn == Turn::Suspect || self.cleared == Some(index)
    }

    /// A worker that is being cleared, and need not be.
    pub(super) fn cleared_in_vain(&self) -> Option<usize> {
        let can_take_more = |index: &usize| self.places[*index].up.as_ref().is_some_and(Up::can_take_more);
        self.cleared.filter(|index| !self.has_suspect() || !can_take_more(index))
    }

    /// Has a worker cleared, if a suspect waits, nobody is cleared yet, and nothing waits that goes before it. Not one with a
    /// task that has run for long already, if there is another one: it may do so for longer.
    pub(super) fn clear_one(&mut self) {
        if self.cleared.is_some() || !self.has_suspect() {
            return;
        }
        let first = self.suspects.iter().map(|chunk| self.priority_of(chunk)).max().unwrap_or(0);
        if self.ready.iter().skip(first + 1).any(|queue| !queue.is_empty()) {
            return;
        }
        let able = self.places.iter().enumerate().filter_map(|(index, place)| {
            let up = place.up.as_ref().filter(|up| up.can_take_more() && up.turn != Turn::Suspect)?;
            let since = up.lines.iter().filter(|line| !line.given.is_empty()).map(|line| line.began);
            let since: Option<Instant> = since.min();
            Some((since, Reverse(up.busy()), Reverse(index)))
        });
        self.cleared = able.max().map(|(.., Reverse(index))| index);
    }
}
