//! Taking back what a worker has been given and has not begun, for another one that has nothing to do.
//!
//! The keeper has the ledger held behind the task that runs. From then on nothing else begins there until the worker has
//! read [`Order::Back`], so what is behind that task can be given away at once, and never runs twice.

use std::time::Duration;

use tokio::time::Instant;

use super::choice::UNKNOWN;
use super::{Chunk, Given, Order, Plan, Up};

/// How long a worker is at a chunk before what it has not begun is others' who have nothing to do: long against the way there
/// and back, and against what chunks take when their size adapts itself.
pub(super) const LONG: Duration = Duration::from_millis(20);

impl Plan {
    /// The task that runs, if nothing is to begin behind it.
    pub(crate) fn due_to_hold(&self, index: usize, running: Option<u32>, now: Instant) -> Option<u32> {
        let number = running?;
        let up = self.places[index].up.as_ref()?;
        let is_late = up.until_late(now).is_some() && now.saturating_duration_since(up.began) >= LONG;
        if !is_late || up.ended.is_some() || self.over.is_some() {
            return None;
        }
        let at = up.position(number)?;
        // It is about to be ended, or puts down what it has: then everything comes back.
        if up.given[at].withdrawn || up.leaving {
            return None;
        }
        let is_last = number.wrapping_sub(up.given[at].number) + 1 == up.given[at].chunk.load.count();
        let has_more = !is_last || up.given.iter().skip(at + 1).any(|given| !given.withdrawn);
        (has_more && self.free_worker(UNKNOWN).is_some()).then_some(number)
    }

    /// The lane of a worker is held behind the task that runs: what it has not begun goes to others.
    pub(crate) fn take_back(&mut self, index: usize, number: u32, now: Instant) {
        let is_free = |up: &Up| up.can_take_more() && up.given.is_empty();
        let free = self.places.iter().filter_map(|place| place.up.as_ref()).filter(|up| is_free(up)).count();
        let Some(up) = &mut self.places[index].up else { return };
        // Whatever has become of the task: the worker waits for this.
        up.orders.push(Order::Back);
        self.calls.push(index);
        let Some(at) = up.position(number) else { return };
        up.held = Some(number);
        let behind = up.given.split_off(at + 1);
        let given = &mut up.given[at];
        let mut rest = Given { chunk: given.chunk.clone(), withdrawn: given.withdrawn, ..*given };
        let begun = number.wrapping_sub(given.number) + 1;
        given.chunk.load = rest.chunk.load.split_to(begun);
        rest.chunk.first += u64::from(begun);
        // Something for each of those who have nothing, and for this one when it is done.
        let each = rest.chunk.load.count().div_ceil(u32::try_from(free + 1).unwrap_or(u32::MAX)).max(1);
        let mut back = Vec::new();
        for Given { mut chunk, withdrawn, .. } in std::iter::once(rest).chain(behind) {
            up.left = up.left.saturating_add(u64::from(chunk.load.count()));
            while !withdrawn && chunk.load.count() > 0 {
                let load = chunk.load.split_to(each);
                let count = u64::from(load.count());
                back.push(Chunk { load, ..chunk.clone() });
                chunk.first += count;
            }
        }
        for chunk in back.into_iter().rev() {
            if let Some(job) = self.jobs.get(&chunk.job).filter(|job| !job.cancelled) {
                self.ready[job.wants.priority as usize].push_front(chunk);
            }
        }
        self.hand_out(now);
    }
}

impl Up {
    /// Whether it may be given something, if it has not too much already.
    pub(super) fn can_take_more(&self) -> bool {
        !self.leaving && self.ended.is_none() && self.held.is_none() && self.left > 0
    }

    /// Which of what it was given has the task of this number, unless the outcome of that is known.
    fn position(&self, number: u32) -> Option<usize> {
        self.given.iter().position(|given| {
            let at = number.wrapping_sub(given.number);
            at >= given.done && at < given.chunk.load.count()
        })
    }

    /// When it is to be looked at again, because by then others may get what it has not begun.
    pub(super) fn until_late(&self, now: Instant) -> Option<Duration> {
        let open: u64 = self.given.iter().map(|given| u64::from(given.chunk.load.count() - given.done)).sum();
        let left = LONG.saturating_sub(now.saturating_duration_since(self.began));
        (open > 1 && self.held.is_none()).then_some(if left.is_zero() { LONG } else { left })
    }
}
