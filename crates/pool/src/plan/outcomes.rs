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
use super::suspects::Turn;
use super::{Chunk, Delivery, Found, Nonsense, Order, Plan, Stand, What, one_of};
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

    /// A task, with what is behind it in its chunk, was not begun, or it was not run to its end, since that was asked for.
    pub(super) fn not_run(
        &mut self,
        index: usize,
        lane: u16,
        number: u32,
        kind: u8,
        now: Instant,
    ) -> Result<(), Nonsense> {
        let given = self.front(index, lane, number)?;
        let (withdrawn, returned) = (given.withdrawn, given.returned);
        let asked = self.line(index, lane)?.asked.is_some_and(|(asked, _)| asked == number);
        match kind {
            SKIPPED if withdrawn || returned => {
                self.put_down(index, lane, now);
                Ok(())
            }
            STOPPED if withdrawn => {
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
        up.held = up.held.filter(|held| Some(*held) != line.last);
        if given.done < given.chunk.load.count() {
            return;
        }
        let took = now.saturating_duration_since(line.began);
        let done = self.take_first(index, lane, now);
        if let Some(Given { chunk, withdrawn: false, .. }) = done {
            self.paced(chunk.job, chunk.load.count(), took);
        }
        self.finished_chunk(index, now);
    }

    /// Takes the chunk out of a line with which its worker is through, and counts how long it was busy.
    fn take_first(&mut self, index: usize, lane: u16, now: Instant) -> Option<Given> {
        let place = &mut self.places[index];
        let up = place.up.as_mut()?;
        place.busy += now.saturating_duration_since(up.counted);
        up.counted = now;
        let line = up.lines.get_mut(usize::from(lane))?;
        (line.began, line.seen, line.asked) = (now, None, None);
        let given = line.given.pop_front();
        if line.given.is_empty() && lane > 0 {
            up.idle.push(lane);
        }
        if given.as_ref().is_some_and(|given| given.chunk.suspect) {
            up.turn = Turn::Others;
        }
        given
    }

    /// A worker has come to the end of a chunk, or has put it down.
    fn finished_chunk(&mut self, index: usize, now: Instant) {
        let place = &mut self.places[index];
        let Some(up) = place.up.as_mut().filter(|up| up.busy() == 0) else { return self.hand_out(now) };
        if up.replaced || (up.left == 0 && !up.leaving) {
            (up.leaving, up.replaced) = (true, false);
            up.orders.push(Order::Leave);
            self.calls.push(index);
        }
        self.staff_called |= place.stand == Stand::Leaving;
        self.hand_out(now);
        self.may_be_idle(index);
    }

    /// A worker has begun neither the task that is next in a line nor what comes behind that in its chunk, and will not.
    fn put_down(&mut self, index: usize, lane: u16, now: Instant) {
        if let Some(given) = self.take_first(index, lane, now).filter(|given| !given.withdrawn) {
            self.put_back(given.rest());
        }
        self.finished_chunk(index, now);
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
    pub(super) fn try_again(&mut self, task: Chunk, why: TaskFault, index: usize, now: Instant) {
        let Some(job) = self.jobs.get(&task.job).filter(|job| !job.cancelled) else { return };
        let wants = job.wants;
        let died = match &why {
            TaskFault::Fault(Fault::Ended { exit, .. }) => Some(Arc::new((**exit).clone())),
            _ => None,
        };
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
        // Somebody has to look at the clock; and if nobody is there, has to be started.
        self.calls.extend(0..self.places.len());
        self.staff_called = true;
    }
}
