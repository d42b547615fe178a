//! Tasks whose time is over, and workers that have ended.

use std::time::Duration;

use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use tokio::time::Instant;

use super::{Chunk, End, Plan, Stand, one_of};

/// How often a worker is looked at whose task is to end.
const OFTEN: Duration = Duration::from_millis(1);

impl Plan {
    /// Which running task of a worker is to be ended, and why.
    pub(crate) fn due_to_end(
        &mut self,
        index: usize,
        running: Option<u32>,
        now: Instant,
    ) -> Option<(u32, End)> {
        let up = self.places[index].up.as_mut().filter(|up| up.ended.is_none())?;
        let number = running?;
        let given =
            up.given.front().filter(|given| number.wrapping_sub(given.number) < given.chunk.load.count())?;
        if given.withdrawn {
            return Some((number, End::Cancelled));
        }
        let since = match up.seen {
            Some((seen, since)) if seen == number => since,
            _ => {
                up.seen = Some((number, now));
                now
            }
        };
        let timeout = self.jobs.get(&given.chunk.job)?.wants.timeout?;
        (now.saturating_duration_since(since) >= timeout).then_some((number, End::TimedOut))
    }

    /// It was ended: no outcome of it comes any more, and its worker is being killed.
    pub(crate) fn was_ended(&mut self, index: usize, number: u32, why: End) {
        if let Some(up) = &mut self.places[index].up {
            up.ended = Some((number, why));
        }
    }

    /// How soon a worker is to be looked at again, if nothing comes before.
    pub(crate) fn next_look(&self, index: usize, now: Instant) -> Option<Duration> {
        let up = self.places[index].up.as_ref()?;
        let first = up.given.front();
        let due =
            self.later.first_key_value().filter(|_| first.is_none() || up.given.len() <= self.rules.prefetch);
        let due = due.map(|((at, _), _)| at.saturating_duration_since(now).max(OFTEN));
        let watched = first.and_then(|given| {
            if given.withdrawn {
                return Some(OFTEN);
            }
            let timeout = self.jobs.get(&given.chunk.job)?.wants.timeout?;
            Some((timeout / 16).clamp(OFTEN, Duration::from_millis(100)))
        });
        [due, watched, up.until_late(now)].into_iter().flatten().min()
    }

    /// Whether a worker has something to do.
    pub(crate) fn is_busy(&self, index: usize) -> bool {
        self.places[index].up.as_ref().is_some_and(|up| !up.given.is_empty())
    }

    /// Whether what it does is over so quickly that its outcomes had better be taken many at a time.
    pub(crate) fn is_quick(&self, index: usize) -> bool {
        let first = self.places[index].up.as_ref().and_then(|up| up.given.front());
        let pace = first.and_then(|given| self.jobs.get(&given.chunk.job)?.pace);
        pace.is_some_and(|pace| pace < Duration::from_micros(100))
    }

    /// The task of which a worker has to say something next, if it has one.
    pub(crate) fn next_of(&self, index: usize) -> Option<u32> {
        let first = self.places[index].up.as_ref()?.given.front()?;
        Some(first.number.wrapping_add(first.done))
    }

    /// A worker has ended; `running` is what its ledger says that it was at, after all outcomes were taken out of it.
    pub(crate) fn died(&mut self, index: usize, running: Option<u32>, exit: &Exit, now: Instant) {
        let Some(up) = self.places[index].up.take() else { return };
        let mut given = up.given;
        let mut lost = None;
        if let Some(first) = given.front_mut() {
            let next = first.number.wrapping_add(first.done);
            // It can be at that one alone; or at the one before, whose result had come by the socket already. What else it
            // may say is as good as that.
            if running.is_some() && running != up.last {
                lost = Some((one_of(&first.chunk, first.done), next));
                first.done += 1;
            }
        }
        for given in given.into_iter().rev().filter(|given| !given.withdrawn) {
            self.put_back(given.rest());
        }
        if let Some((task, number)) = lost {
            let why = match up.ended.filter(|(ended, _)| *ended == number) {
                Some((_, End::TimedOut)) => TaskFault::Fault(Fault::Timeout { maybe_executed: true }),
                Some((_, End::Cancelled)) => TaskFault::Cancelled,
                None => TaskFault::Fault(Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: true }),
            };
            self.try_again(task, why, index, now);
        }
        self.staff_called |= self.places[index].stand == Stand::Leaving || !self.later.is_empty();
        self.hand_out(now);
    }

    /// To the front of what waits.
    pub(super) fn put_back(&mut self, chunk: Chunk) {
        let job = self.jobs.get(&chunk.job).filter(|job| !job.cancelled);
        if let Some(job) = job.filter(|_| chunk.load.count() > 0) {
            self.ready[job.wants.priority as usize].push_front(chunk);
        }
    }
}
