//! Which worker runs what, and when.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::back::LONG;
use super::lines::{Given, Up, runs_alone};
use super::{Chunk, Order, Plan};

/// A chunk is given to a worker before it has finished the one before only if it should come to it within this time.
const SOON: Duration = Duration::from_millis(5);
/// What a chunk is expected to take of which nothing is known: it is not soon over.
pub(super) const UNKNOWN: Duration = Duration::from_secs(3600);
/// A worker is given more chunks than it is to prefetch as long as all of them are over within this time: to bring each by
/// itself would take longer.
pub(super) const AHEAD: Duration = Duration::from_micros(500);
/// And no more than so many.
pub(super) const MOST_AHEAD: usize = 64;
/// From so many chunks on that wait for a worker, tasks that were submitted one by one do not get in line behind them, but
/// wait outside: so what goes through the line never has far to go.
pub(crate) const QUEUE: usize = 1024;

/// A chunk that waits, and where it goes.
struct Next {
    /// Where it is in which queue.
    queue: usize,
    at: usize,
    expected: Duration,
    alone: bool,
    /// The line of a worker that gets it.
    index: usize,
    lane: u16,
}

impl Plan {
    /// A worker is there.
    pub(crate) fn arrived(&mut self, index: usize, now: Instant) {
        let left = self.rules.max_tasks.unwrap_or(u64::MAX);
        let place = &mut self.places[index];
        place.starts += 1;
        let leaving = place.is_leaving();
        place.up = Some(Up { leaving, ..Up::new(self.rules.lanes, left, now) });
        self.hand_out(now);
        self.may_be_idle(index);
    }

    /// Gives what is ready to workers that can take it.
    pub(crate) fn hand_out(&mut self, now: Instant) {
        while let Some(due) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let chunk = due.remove();
            self.put_back(chunk);
        }
        loop {
            self.let_in();
            if self.ready.iter().all(VecDeque::is_empty) {
                break;
            }
            let Some(Next { queue, at, expected, alone, index, lane }) = self.next_chunk(now) else {
                // Another worker might take one.
                self.staff_called |= self.may_start();
                break;
            };
            let Some(mut chunk) = self.ready[queue].remove(at) else { return };
            // In its place, so that nobody waits outside for ever while others keep the line full.
            self.let_one_in();
            let Some(up) = &mut self.places[index].up else { return };
            let most = u32::try_from(up.left).unwrap_or(u32::MAX);
            if chunk.load.count() > most {
                // The rest is for others.
                let load = chunk.load.split_to(most);
                let rest = Chunk { first: chunk.first + u64::from(most), ..chunk.clone() };
                self.ready[queue].insert(at, rest);
                chunk.load = load;
            }
            let Some(job) = self.jobs.get(&chunk.job) else { continue };
            let count = chunk.load.count();
            let number = up.next;
            up.next = up.next.wrapping_add(count);
            up.left -= u64::from(count);
            if up.busy() == 0 {
                up.counted = now;
            }
            let line = &mut up.lines[usize::from(lane)];
            if line.given.is_empty() {
                line.began = now;
                // It is the last of the idle ones, or the first line, which is not among them.
                if up.idle.last() == Some(&lane) {
                    up.idle.pop();
                }
            }
            up.orders.push(Order::Run { entry: job.wants.entry, lane, number, load: chunk.load.clone() });
            line.given.push_back(Given {
                chunk,
                number,
                done: 0,
                withdrawn: false,
                returned: false,
                alone,
                expected,
            });
            self.calls.push(index);
        }
    }

    /// What can be given to somebody: what goes first, mostly. Where workers have several lines, tasks that run alone, for which
    /// there is no room, let others pass, and the other way round.
    fn next_chunk(&self, now: Instant) -> Option<Next> {
        let alone = |chunk: &Chunk| self.jobs.get(&chunk.job).is_none_or(|job| runs_alone(job.wants.entry));
        let several = self.rules.lanes > 1;
        for (queue, chunks) in self.ready.iter().enumerate().rev() {
            let Some(first) = chunks.front() else { continue };
            let is_alone = alone(first);
            let other = || chunks.iter().position(|chunk| alone(chunk) != is_alone);
            for at in [Some(0), several.then(other).flatten()].into_iter().flatten() {
                let (expected, alone) = (self.expected(&chunks[at]), is_alone == (at == 0));
                if let Some((index, lane)) = self.free_line(expected, alone, now) {
                    return Some(Next { queue, at, expected, alone, index, lane });
                }
            }
            if !several {
                return None;
            }
        }
        None
    }

    /// Has those who wait outside get in line, as far as there is room.
    pub(super) fn let_in(&mut self) {
        while !self.outside.is_empty() && self.ready.iter().map(VecDeque::len).sum::<usize>() < QUEUE {
            self.let_one_in();
        }
    }

    /// Has the first one of those who wait outside get in line.
    fn let_one_in(&mut self) {
        let Some(((Reverse(priority), job), load)) = self.outside.pop_first() else { return };
        self.ready[priority as usize].push_back(Chunk { job, first: 0, load, tried: 0, deaths: 0 });
    }

    /// How long a chunk should take.
    fn expected(&self, chunk: &Chunk) -> Duration {
        let pace = self.jobs.get(&chunk.job).and_then(|job| job.pace);
        pace.map_or(UNKNOWN, |pace| pace.saturating_mul(chunk.load.count()))
    }

    /// Which line of which worker has least to do, and can take a chunk that should take so long.
    pub(super) fn free_line(&self, expected: Duration, alone: bool, now: Instant) -> Option<(usize, u16)> {
        let able = self.places.iter().enumerate().filter_map(|(index, place)| {
            let up = place.up.as_ref().filter(|up| up.can_take_more())?;
            let lane = up.shortest(alone);
            let line = &up.lines[usize::from(lane)];
            let others = &line.given;
            let given = others.len();
            // Of several lines the others keep the worker at work; and what is given before its turn may stand behind one that
            // waits for long, while another line comes free.
            let queues = || up.lines.len() == 1 || alone && others.iter().all(|other| other.alone);
            let soon = || expected <= SOON && others.iter().all(|other| other.expected <= SOON);
            let ahead = || others.iter().map(|other| other.expected).sum::<Duration>() + expected;
            let more = || given <= self.rules.prefetch || (given < MOST_AHEAD && ahead() <= AHEAD);
            // However quick it was thought to be: whoever stood behind it now might do so for ever.
            let is_late = || now.saturating_duration_since(line.began) >= LONG;
            (given == 0 || (queues() && soon() && more() && !is_late()))
                .then(|| (given, up.crowd(lane), index, lane))
        });
        able.min().map(|(.., index, lane)| (index, lane))
    }

    /// What a worker is to be told.
    pub(crate) fn orders(&mut self, index: usize) -> Vec<Order> {
        self.places[index].up.as_mut().map(|up| std::mem::take(&mut up.orders)).unwrap_or_default()
    }
}
