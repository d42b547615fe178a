//! What workers say that became of tasks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::exit::Panic;
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use hatchery_wire::{Body, decode_slice};
use tokio::time::Instant;

use super::{Chunk, Delivery, Found, Given, Nonsense, Order, Plan, Stand, What, one_of};
use crate::row::Row;
use crate::terms::{FAULT, PANIC, SKIPPED, VALUE};

/// How long the first retry of a task waits; each further one twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Plan {
    /// Outcomes that a worker has left, in their order; `bytes` is what they lie in. Says how many were taken: the next one
    /// comes behind one that has still to come alone.
    pub(crate) fn results(
        &mut self,
        index: usize,
        found: &[Found],
        bytes: &Bytes,
        now: Instant,
    ) -> Result<usize, Nonsense> {
        let mut rest = found;
        while let Some(first) = rest.first() {
            if self.is_early(index, first.number)? {
                break;
            }
            let given = self.front(index, first.number)?;
            let (job, number) = (given.chunk.job, given.chunk.first + u64::from(given.done));
            let open = (given.chunk.load.count() - given.done) as usize;
            let values = rest.iter().take(open).zip(0_u32..);
            let values = values
                .take_while(|(one, at)| one.kind == VALUE && one.number == first.number.wrapping_add(*at));
            let count = values.count();
            if count == 0 {
                self.outcome(index, first, bytes, now)?;
                rest = &rest[1..];
                continue;
            }
            let row = Row { bytes: bytes.slice(first.from..rest[count - 1].to), count: count as u32 };
            self.advance(index, count as u32, now);
            self.done += count as u64;
            self.deliver(job, Delivery { first: number, what: What::Row(row) });
            rest = &rest[count..];
        }
        Ok(found.len() - rest.len())
    }

    /// Whether another outcome has to come before that of this number.
    pub(super) fn is_early(&self, index: usize, number: u32) -> Result<bool, Nonsense> {
        let up = self.places[index].up.as_ref().ok_or(Nonsense)?;
        let given = up.given.front().ok_or(Nonsense)?;
        let ahead = number.wrapping_sub(given.number.wrapping_add(given.done));
        let open = up.next.wrapping_sub(given.number.wrapping_add(given.done));
        if ahead < open { Ok(ahead > 0) } else { Err(Nonsense) }
    }

    /// A single outcome that is no value.
    pub(super) fn outcome(
        &mut self,
        index: usize,
        found: &Found,
        bytes: &Bytes,
        now: Instant,
    ) -> Result<(), Nonsense> {
        // Its length comes first.
        let content = bytes.get(found.from + 4..found.to).ok_or(Nonsense)?;
        match found.kind {
            PANIC => {
                let panic: Panic = decode_slice(content).map_err(|_| Nonsense)?;
                self.attempt_failed(index, TaskFault::Panicked(panic), now)
            }
            FAULT => {
                let fault: Fault = decode_slice(content).map_err(|_| Nonsense)?;
                self.faulty(index, fault, now)
            }
            SKIPPED => self.put_down(index, found.number, now),
            _ => Err(Nonsense),
        }
    }

    /// The outcome of a task that came alone.
    pub(crate) fn alone(
        &mut self,
        index: usize,
        number: u32,
        kind: u8,
        body: Body,
        now: Instant,
    ) -> Result<(), Nonsense> {
        let given = self.front(index, number)?;
        let (job, first) = (given.chunk.job, given.chunk.first + u64::from(given.done));
        match kind {
            VALUE => {
                self.advance(index, 1, now);
                self.done += 1;
                self.deliver(job, Delivery { first, what: What::Alone(body) });
                Ok(())
            }
            PANIC => {
                let panic: Panic = hatchery_wire::decode(&body).map_err(|_| Nonsense)?;
                self.attempt_failed(index, TaskFault::Panicked(panic), now)
            }
            SKIPPED => self.put_down(index, number, now),
            _ => {
                let fault: Fault = hatchery_wire::decode(&body).map_err(|_| Nonsense)?;
                self.faulty(index, fault, now)
            }
        }
    }

    /// What a worker works on, if that is the task of this number.
    pub(super) fn front(&mut self, index: usize, number: u32) -> Result<&mut Given, Nonsense> {
        let up = self.places[index].up.as_mut().ok_or(Nonsense)?;
        let given = up.given.front_mut().ok_or(Nonsense)?;
        if given.number.wrapping_add(given.done) != number {
            return Err(Nonsense);
        }
        Ok(given)
    }

    /// A worker has done so many tasks of the first chunk that it has.
    pub(super) fn advance(&mut self, index: usize, count: u32, now: Instant) {
        let place = &mut self.places[index];
        let Some(up) = &mut place.up else { return };
        place.tasks += u64::from(count);
        up.seen = None;
        let Some(given) = up.given.front_mut() else { return };
        given.done += count;
        up.last = Some(given.number.wrapping_add(given.done).wrapping_sub(1));
        up.held = up.held.filter(|held| Some(*held) != up.last);
        if given.done < given.chunk.load.count() {
            return;
        }
        let took = now.saturating_duration_since(up.began);
        up.began = now;
        place.busy += took;
        let done = up.given.pop_front();
        if let Some(Given { chunk, withdrawn: false, .. }) = done {
            self.paced(chunk.job, chunk.load.count(), took);
        }
        self.finished_chunk(index, now);
    }

    /// A worker has come to the end of a chunk, or has put it down.
    fn finished_chunk(&mut self, index: usize, now: Instant) {
        let place = &mut self.places[index];
        let Some(up) = place.up.as_mut().filter(|up| up.given.is_empty()) else { return self.hand_out(now) };
        if up.replaced || (up.left == 0 && !up.leaving) {
            (up.leaving, up.replaced) = (true, false);
            up.orders.push(Order::Leave);
            self.calls.push(index);
        }
        self.staff_called |= place.stand == Stand::Leaving;
        self.hand_out(now);
        self.may_be_idle(index);
    }

    /// A worker has begun neither the task of this number nor what comes behind it in its chunk, and will not.
    fn put_down(&mut self, index: usize, number: u32, now: Instant) -> Result<(), Nonsense> {
        let given = self.front(index, number)?;
        if !given.withdrawn && !given.returned {
            return Err(Nonsense);
        }
        let place = &mut self.places[index];
        let Some(up) = &mut place.up else { return Ok(()) };
        let given = up.given.pop_front();
        place.busy += now.saturating_duration_since(up.began);
        (up.began, up.seen) = (now, None);
        if let Some(given) = given.filter(|given| !given.withdrawn) {
            self.put_back(given.rest());
        }
        self.finished_chunk(index, now);
        Ok(())
    }

    /// The task that a worker works on has no result, and would have none if it were tried again.
    pub(super) fn faulty(&mut self, index: usize, fault: Fault, now: Instant) -> Result<(), Nonsense> {
        let up = self.places[index].up.as_ref().ok_or(Nonsense)?;
        let given = up.given.front().ok_or(Nonsense)?;
        let (job, first) = (given.chunk.job, given.chunk.first + u64::from(given.done));
        self.advance(index, 1, now);
        self.failed += 1;
        let what = What::Failed(TaskFault::Fault(fault), Some(index));
        self.deliver(job, Delivery { first, what });
        Ok(())
    }

    /// The task that a worker works on has failed, and the worker goes on.
    pub(super) fn attempt_failed(
        &mut self,
        index: usize,
        why: TaskFault,
        now: Instant,
    ) -> Result<(), Nonsense> {
        let up = self.places[index].up.as_ref().ok_or(Nonsense)?;
        let given = up.given.front().ok_or(Nonsense)?;
        let task = one_of(&given.chunk, given.done);
        self.advance(index, 1, now);
        self.try_again(task, why, index, now);
        Ok(())
    }

    /// Has a task tried again, or says that it failed.
    pub(super) fn try_again(&mut self, mut task: Chunk, why: TaskFault, index: usize, now: Instant) {
        let Some(job) = self.jobs.get(&task.job).filter(|job| !job.cancelled) else { return };
        let wants = job.wants;
        let died = match &why {
            TaskFault::Fault(Fault::Ended { exit, .. }) => Some(Arc::new((**exit).clone())),
            _ => None,
        };
        task.deaths += u32::from(died.is_some());
        if wants.tries_again(&task) {
            return self.put_off(task, now);
        }
        self.failed += 1;
        let what = match died {
            Some(last) if task.deaths >= 2 || wants.is_poisoned(&task) => {
                What::Failed(TaskFault::Poisoned { deaths: task.deaths, last }, Some(index))
            }
            _ => What::Failed(why, Some(index)),
        };
        self.deliver(task.job, Delivery { first: task.first, what });
        if let Some(job) = self.jobs.get_mut(&task.job).filter(|job| job.single) {
            job.failed = Some(task);
        }
    }

    /// Has a task tried once more, after a pause.
    pub(super) fn put_off(&mut self, mut task: Chunk, now: Instant) {
        self.retried += 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << task.tried.min(16)).min(LONGEST_PAUSE);
        task.tried += 1;
        self.next_later += 1;
        self.later.insert((now + pause, self.next_later), task);
        // Somebody has to look at the clock.
        self.calls.extend(0..self.places.len());
    }
}
