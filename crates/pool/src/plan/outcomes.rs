//! What workers say that became of tasks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::exit::Panic;
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use hatchery_wire::{Body, decode_slice};
use tokio::time::Instant;

use super::lines::{Given, Line};
use super::{Chunk, Delivery, Found, Nonsense, Order, Plan, What, one_of};
use crate::row::Row;
use crate::terms::{FAULT, PANIC, SKIPPED, STOPPED, VALUE};

/// How long the first retry of a task waits; each further one twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Plan {
    /// Outcomes that a worker has left in a lane, in their order; `bytes` is what they lie in. Says how many were taken: the
    /// next one comes behind one that has still to come alone.
    pub(crate) fn results(
        &mut self,
        index: usize,
        lane: u16,
        found: &[Found],
        bytes: &Bytes,
        now: Instant,
    ) -> Result<usize, Nonsense> {
        let mut rest = found;
        while let Some(first) = rest.first() {
            if self.is_early(index, lane, first.number)? {
                break;
            }
            let given = self.front(index, lane, first.number)?;
            let (job, number) = (given.chunk.job, given.chunk.first + u64::from(given.done));
            let open = (given.chunk.load.count() - given.done) as usize;
            let values = rest.iter().take(open).zip(0_u32..);
            let values = values
                .take_while(|(one, at)| one.kind == VALUE && one.number == first.number.wrapping_add(*at));
            let count = values.count();
            if count == 0 {
                self.outcome(index, lane, first, bytes, now)?;
                rest = &rest[1..];
                continue;
            }
            let row = Row { bytes: bytes.slice(first.from..rest[count - 1].to), count: count as u32 };
            self.advance(index, lane, count as u32, now);
            self.done += count as u64;
            self.deliver(job, Delivery { first: number, what: What::Row(row) });
            rest = &rest[count..];
        }
        Ok(found.len() - rest.len())
    }

    /// Whether another outcome has to come before that of this number.
    pub(super) fn is_early(&self, index: usize, lane: u16, number: u32) -> Result<bool, Nonsense> {
        let up = self.places[index].up.as_ref().ok_or(Nonsense)?;
        let line = up.lines.get(usize::from(lane)).ok_or(Nonsense)?;
        let next = line.given.front().ok_or(Nonsense)?.next();
        if number == next {
            return Ok(false);
        }
        let open = |given: &Given| {
            let ahead = number.wrapping_sub(given.next());
            ahead < given.chunk.load.count() - given.done
        };
        if line.given.iter().any(open) { Ok(true) } else { Err(Nonsense) }
    }

    /// A single outcome that is no value.
    pub(super) fn outcome(
        &mut self,
        index: usize,
        lane: u16,
        found: &Found,
        bytes: &Bytes,
        now: Instant,
    ) -> Result<(), Nonsense> {
        // Its length comes first.
        let content = bytes.get(found.from + 4..found.to).ok_or(Nonsense)?;
        match found.kind {
            PANIC => {
                let panic: Panic = decode_slice(content).map_err(|_| Nonsense)?;
                self.attempt_failed(index, lane, TaskFault::Panicked(panic), now)
            }
            FAULT => {
                let fault: Fault = decode_slice(content).map_err(|_| Nonsense)?;
                self.faulty(index, lane, fault, now)
            }
            kind => self.not_run(index, lane, found.number, kind, now),
        }
    }

    /// A task was not begun, or not run to its end, since that was asked for.
    pub(super) fn not_run(
        &mut self,
        index: usize,
        lane: u16,
        number: u32,
        kind: u8,
        now: Instant,
    ) -> Result<(), Nonsense> {
        let withdrawn = self.front(index, lane, number)?.withdrawn;
        let asked = self.line(index, lane)?.asked.is_some_and(|(asked, _)| asked == number);
        match kind {
            SKIPPED | STOPPED if withdrawn => {
                self.advance(index, lane, 1, now);
                Ok(())
            }
            STOPPED if asked => {
                let why = TaskFault::Fault(Fault::Timeout { maybe_executed: true });
                self.attempt_failed(index, lane, why, now)
            }
            _ => Err(Nonsense),
        }
    }

    /// The outcome of a task that came alone.
    pub(crate) fn alone(
        &mut self,
        index: usize,
        lane: u16,
        number: u32,
        kind: u8,
        body: Body,
        now: Instant,
    ) -> Result<(), Nonsense> {
        let given = self.front(index, lane, number)?;
        let (job, first) = (given.chunk.job, given.chunk.first + u64::from(given.done));
        match kind {
            VALUE => {
                self.advance(index, lane, 1, now);
                self.done += 1;
                self.deliver(job, Delivery { first, what: What::Alone(body) });
                Ok(())
            }
            PANIC => {
                let panic: Panic = hatchery_wire::decode(&body).map_err(|_| Nonsense)?;
                self.attempt_failed(index, lane, TaskFault::Panicked(panic), now)
            }
            FAULT => {
                let fault: Fault = hatchery_wire::decode(&body).map_err(|_| Nonsense)?;
                self.faulty(index, lane, fault, now)
            }
            kind => self.not_run(index, lane, number, kind, now),
        }
    }

    pub(super) fn line(&mut self, index: usize, lane: u16) -> Result<&mut Line, Nonsense> {
        let up = self.places[index].up.as_mut().ok_or(Nonsense)?;
        up.lines.get_mut(usize::from(lane)).ok_or(Nonsense)
    }

    /// What a worker works on in a line, if that is the task of this number.
    pub(super) fn front(&mut self, index: usize, lane: u16, number: u32) -> Result<&mut Given, Nonsense> {
        let given = self.line(index, lane)?.given.front_mut().ok_or(Nonsense)?;
        if given.next() != number {
            return Err(Nonsense);
        }
        Ok(given)
    }

    /// A worker has done so many tasks of the first chunk that it has in a line.
    pub(super) fn advance(&mut self, index: usize, lane: u16, count: u32, now: Instant) {
        let place = &mut self.places[index];
        let Some(up) = &mut place.up else { return };
        place.tasks += u64::from(count);
        let Some(line) = up.lines.get_mut(usize::from(lane)) else { return };
        (line.seen, line.asked) = (None, None);
        let Some(given) = line.given.front_mut() else { return };
        given.done += count;
        line.last = Some(given.next().wrapping_sub(1));
        if given.done < given.chunk.load.count() {
            return;
        }
        let took = now.saturating_duration_since(line.began);
        line.began = now;
        place.busy += now.saturating_duration_since(up.counted);
        up.counted = now;
        let done = line.given.pop_front();
        if line.given.is_empty() && lane > 0 {
            up.idle.push(lane);
        }
        if let Some(Given { chunk, withdrawn: false, .. }) = done {
            self.paced(chunk.job, chunk.load.count(), took);
        }
        let Some(up) = &mut self.places[index].up else { return };
        if up.left == 0 && up.busy() == 0 && !up.leaving {
            up.leaving = true;
            up.orders.push(Order::Leave);
            self.calls.push(index);
        }
        self.hand_out(now);
    }

    /// The task that a worker works on has no result, and would have none if it were tried again.
    pub(super) fn faulty(
        &mut self,
        index: usize,
        lane: u16,
        fault: Fault,
        now: Instant,
    ) -> Result<(), Nonsense> {
        let given = self.line(index, lane)?.given.front().ok_or(Nonsense)?;
        let (job, first) = (given.chunk.job, given.chunk.first + u64::from(given.done));
        self.advance(index, lane, 1, now);
        self.failed += 1;
        let what = What::Failed(TaskFault::Fault(fault), Some(index));
        self.deliver(job, Delivery { first, what });
        Ok(())
    }

    /// The task that a worker works on has failed, and the worker goes on.
    pub(super) fn attempt_failed(
        &mut self,
        index: usize,
        lane: u16,
        why: TaskFault,
        now: Instant,
    ) -> Result<(), Nonsense> {
        let given = self.line(index, lane)?.given.front().ok_or(Nonsense)?;
        let task = one_of(&given.chunk, given.done);
        self.advance(index, lane, 1, now);
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
        let poisoned = wants.poison_after.is_some_and(|most| task.deaths >= most);
        if task.tried < wants.retries && !poisoned {
            self.retried += 1;
            let pause = FIRST_PAUSE.saturating_mul(1 << task.tried.min(16)).min(LONGEST_PAUSE);
            task.tried += 1;
            self.next_later += 1;
            self.later.insert((now + pause, self.next_later), task);
            // Somebody has to look at the clock.
            self.calls.extend(0..self.places.len());
            return;
        }
        self.failed += 1;
        let what = match died {
            Some(last) if task.deaths >= 2 || poisoned => {
                What::Failed(TaskFault::Poisoned { deaths: task.deaths, last }, Some(index))
            }
            _ => What::Failed(why, Some(index)),
        };
        self.deliver(task.job, Delivery { first: task.first, what });
    }
}
