//! Taking back what a worker has been given and has not begun, for another one that has nothing to do, or that comes to it
//! first.
//!
//! The keeper has the ledger held behind the task that runs. From then on nothing else begins there until the worker has
//! read [`Order::Back`], so what is behind that task can be given away at once, and never runs twice.

use std::time::Duration;

use tokio::time::Instant;

use super::choice::UNKNOWN;
use super::lines::{Given, Line, Up};
use super::{Chunk, Order, Plan};

/// How long a worker is at a chunk before what it has not begun is others' who have nothing to do: long against the way there
/// and back, and against what chunks take when their size adapts itself.
pub(super) const LONG: Duration = Duration::from_millis(20);
/// How long a single task runs before what stands behind it is put back to the front of what waits, though nobody has nothing
/// to do: as long as others always have something, it would else stand there until that task ends.
pub(super) const STUCK: Duration = Duration::from_millis(100);

impl Plan {
    /// The task that runs, if nothing is to begin behind it.
    pub(crate) fn due_to_hold(&self, index: usize, running: Option<u32>, now: Instant) -> Option<u32> {
        let number = running?;
        let up = self.places[index].up.as_ref()?;
        let line = up.only()?;
        let is_late = up.until_late(now).is_some() && now.saturating_duration_since(line.began) >= LONG;
        if !is_late || up.ending || up.leaving || self.over.is_some() {
            return None;
        }
        let at = line.position(number)?;
        // It is about to be ended: then everything comes back.
        if line.given[at].withdrawn {
            return None;
        }
        let is_last = number.wrapping_sub(line.given[at].number) + 1 == line.given[at].chunk.load.count();
        let has_more = !is_last || line.given.iter().skip(at + 1).any(|given| !given.withdrawn);
        let is_stuck = line
            .seen
            .is_some_and(|(seen, since)| seen == number && now.saturating_duration_since(since) >= STUCK);
        (has_more && (is_stuck || self.free_line(UNKNOWN, true, now).is_some())).then_some(number)
    }

    /// The lane of a worker is held behind the task that runs: what it has not begun goes to others.
    pub(crate) fn take_back(&mut self, index: usize, number: u32, now: Instant) {
        let is_free = |up: &&Up| up.can_take_more() && up.busy() == 0;
        let free = self.places.iter().filter_map(|place| place.up.as_ref()).filter(is_free).count();
        let Some(up) = &mut self.places[index].up else { return };
        // Whatever has become of the task: the worker waits for this.
        up.orders.push(Order::Back);
        self.calls.push(index);
        let Up { lines, held, left, .. } = up;
        let [line] = &mut lines[..] else { return };
        let Some(at) = line.position(number) else { return };
        *held = Some(number);
        let behind = line.given.split_off(at + 1);
        let given = &mut line.given[at];
        let mut rest = Given { chunk: given.chunk.clone(), ..*given };
        let begun = number.wrapping_sub(given.number) + 1;
        given.chunk.load = rest.chunk.load.split_to(begun);
        rest.chunk.first += u64::from(begun);
        // Something for each of those who have nothing, and for this one when it is done.
        let open = std::iter::once(&rest).chain(&behind).filter(|given| !given.withdrawn);
        let open: u32 = open.map(|given| given.chunk.load.count()).sum();
        let each = open.div_ceil(u32::try_from(free + 1).unwrap_or(u32::MAX)).max(1);
        let mut back = Vec::new();
        for Given { mut chunk, withdrawn, .. } in std::iter::once(rest).chain(behind) {
            *left = left.saturating_add(u64::from(chunk.load.count()));
            while !withdrawn && chunk.load.count() > 0 {
                let load = chunk.load.split_to(each);
                let count = u64::from(load.count());
                back.push(Chunk { load, ..chunk.clone() });
                chunk.first += count;
            }
        }
        back.into_iter().rev().for_each(|chunk| self.put_back(chunk));
        self.hand_out(now);
    }
}

impl Up {
    /// Its line, if it has one only. Of several lines each has one chunk, as long as there is one that is idle, and what runs in
    /// one keeps nobody waiting in another; what is behind it in its own chunk is not taken back, since a worker that is told
    /// to drop what it has drops that of all its lines.
    fn only(&self) -> Option<&Line> {
        match &self.lines[..] {
            [line] => Some(line),
            _ => None,
        }
    }

    /// When it is to be looked at again, because by then others may get what it has not begun.
    pub(super) fn until_late(&self, now: Instant) -> Option<Duration> {
        let line = self.only().filter(|_| self.held.is_none() && self.open() > 1)?;
        let left = LONG.saturating_sub(now.saturating_duration_since(line.began));
        Some(if left.is_zero() { LONG } else { left })
    }
}

impl Line {
    /// Which of what it was given has the task of this number, unless the outcome of that is known.
    fn position(&self, number: u32) -> Option<usize> {
        self.given.iter().position(|given| {
            let at = number.wrapping_sub(given.number);
            at >= given.done && at < given.chunk.load.count()
        })
    }
}
