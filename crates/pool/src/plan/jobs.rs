//! Jobs: how they begin, what they are given, and how they and their pool end.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use tokio::time::Instant;

use super::choice::{AHEAD, MOST_AHEAD};
use super::lines::{Given, runs_alone};
use super::{Chunk, Delivery, Job, JobId, Order, Plan, Wants, What};
use crate::row::Load;

/// How long a chunk should take: long against the way to a worker and back, short against the patience of people.
const CHUNK_TIME: Duration = Duration::from_millis(1);
/// Tasks of one chunk at most.
const LARGEST_CHUNK: u32 = 4096;
/// Tasks of the first chunks of a job at most, however quick its task was in other jobs: these may have had other arguments.
const TRUSTED_AT_FIRST: u32 = 16;
/// How much larger a chunk may be than one that was quick.
const GROWTH: u32 = 8;

impl Plan {
    /// A new job, whose tasks [`enter`](Plan::enter).
    ///
    /// # Errors
    /// No job begins any more, or its task borrows state that no worker has.
    pub(crate) fn begin(&mut self, wants: Wants) -> Result<JobId, TaskFault> {
        self.begin_one(wants, false)
    }

    /// A new job of a single task, which waits for a worker from now on.
    ///
    /// # Errors
    /// No job begins any more, or its task borrows state that no worker has.
    pub(crate) fn submit(&mut self, wants: Wants, load: Load, now: Instant) -> Result<JobId, TaskFault> {
        let id = self.begin_one(wants, true)?;
        self.outside.insert((Reverse(wants.priority), id), load);
        self.hand_out(now);
        Ok(id)
    }

    pub(super) fn begin_one(&mut self, wants: Wants, single: bool) -> Result<JobId, TaskFault> {
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        if self.closed {
            return Err(TaskFault::Fault(Fault::Closed { why: "its pool was closed".to_owned() }));
        }
        wants.entry.suits(self.state).map_err(TaskFault::Fault)?;
        let id = self.next_job;
        self.next_job += 1;
        let inbox = VecDeque::new();
        let (waker, ended, failed) = Default::default();
        let pace = self.paces.get(&std::ptr::from_ref(wants.entry).addr()).copied();
        let trusted = TRUSTED_AT_FIRST;
        let (cancelled, over) = (false, false);
        let job = Job { wants, inbox, waker, pace, trusted, cancelled, single, over, ended, failed };
        self.jobs.insert(id, job);
        self.open += 1;
        Ok(id)
    }

    /// What it wants from now on. If its task has failed already, and would have been tried again, it is.
    pub(crate) fn change(&mut self, job: JobId, wants: Wants, now: Instant) {
        let Some(of) = self.jobs.get_mut(&job) else { return };
        // Not of one that is closed: it may be on its way out, with no job left.
        if let Some(task) = of.failed.take_if(|task| !self.closed && wants.tries_again(task)) {
            of.inbox.clear();
            of.over = false;
            self.open += 1;
            self.failed -= 1;
            self.put_off(task, now);
        }
        let Some(of) = self.jobs.get_mut(&job) else { return };
        let before = std::mem::replace(&mut of.wants, wants);
        if before.priority != wants.priority {
            if let Some(load) = self.outside.remove(&(Reverse(before.priority), job)) {
                self.outside.insert((Reverse(wants.priority), job), load);
            }
            let queue = std::mem::take(&mut self.ready[before.priority as usize]);
            let (moves, stays) = queue.into_iter().partition(|chunk| chunk.job == job);
            self.ready[before.priority as usize] = stays;
            let moves: VecDeque<Chunk> = moves;
            self.ready[wants.priority as usize].extend(moves);
        }
        // Its time may be over earlier than whoever looks after it thinks.
        self.calls.extend(0..self.places.len());
    }

    /// Tasks of a job: from now on they wait for a worker.
    pub(crate) fn enter(&mut self, job: JobId, first: u64, load: Load, now: Instant) {
        let Some(of) = self.jobs.get(&job).filter(|job| !job.cancelled) else { return };
        if let Some(ended) = of.ended.clone() {
            let failed = What::Failed(ended, None);
            for number in first..first + u64::from(load.count()) {
                self.deliver(job, Delivery { first: number, what: failed.clone() });
            }
            return;
        }
        let queue = of.wants.priority as usize;
        self.ready[queue].push_back(Chunk::new(job, first, load));
        self.hand_out(now);
    }

    /// What has come for a job, and a waker that is not needed any more: to be dropped where nothing is locked, since that is
    /// foreign code. `waker` is woken when something more comes.
    pub(crate) fn take(&mut self, job: JobId, waker: Waker) -> (VecDeque<Delivery>, Option<Waker>) {
        let Some(job) = self.jobs.get_mut(&job) else { return (VecDeque::new(), Some(waker)) };
        // Also if something has: it need not be what is waited for.
        let old = match &job.waker {
            Some(known) if known.will_wake(&waker) => Some(waker),
            _ => job.waker.replace(waker),
        };
        (std::mem::take(&mut job.inbox), old)
    }

    /// Why all further tasks of the job fail at once, if its pool has ended.
    pub(crate) fn ended(&self, job: JobId) -> Option<TaskFault> {
        self.jobs.get(&job)?.ended.clone()
    }

    pub(crate) fn has_mail(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|job| !job.inbox.is_empty())
    }

    /// How many tasks a chunk of the job should have, by what is known of them.
    pub(crate) fn chunk_size(&self, job: JobId) -> u32 {
        let paced = self.jobs.get(&job).and_then(|job| Some((job.pace?, job.trusted)));
        paced.map_or(1, |(pace, trusted)| {
            let fits = CHUNK_TIME.as_nanos() / pace.as_nanos().max(1);
            u32::try_from(fits).unwrap_or(LARGEST_CHUNK).clamp(1, LARGEST_CHUNK.min(trusted))
        })
    }

    /// How many may work on the job at the same time, and how many chunks of so many tasks each may have.
    pub(crate) fn breadth(&self, job: JobId, size: u32) -> (usize, usize) {
        let workers = self.most().max(1);
        let of = self.jobs.get(&job);
        let alone = of.is_none_or(|job| runs_alone(job.wants.entry));
        let lanes = if alone { 1 } else { usize::from(self.rules.lanes) };
        let quick = of.and_then(|job| job.pace).map_or(0, |pace| {
            let one = pace.saturating_mul(size).as_nanos().max(1);
            usize::try_from(AHEAD.as_nanos() / one).unwrap_or(MOST_AHEAD).min(MOST_AHEAD)
        });
        (workers * lanes, quick.max(1 + self.rules.prefetch))
    }

    /// A chunk of so many tasks of a job has taken so long.
    pub(super) fn paced(&mut self, job: JobId, count: u32, took: Duration) {
        let Some(job) = self.jobs.get_mut(&job) else { return };
        let now = took / count.max(1);
        // What is longer may be an exception, and what is shorter too, but less so: most of what a small chunk takes is
        // its way.
        let pace = job
            .pace
            .map_or(now, |before| if now < before { now.max(before / GROWTH) } else { (before + now) / 2 });
        job.pace = Some(pace);
        if took <= CHUNK_TIME {
            job.trusted = job.trusted.max(count.saturating_mul(GROWTH));
        }
        self.paces.insert(std::ptr::from_ref(job.wants.entry).addr(), pace);
    }

    /// Nobody wants the job any more: what has not begun never will, and what runs is ended.
    pub(crate) fn cancel(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.cancelled = true;
        job.inbox.clear();
        job.failed = None;
        self.outside.remove(&(Reverse(job.wants.priority), id));
        if !std::mem::replace(&mut job.over, true) {
            self.open -= 1;
        }
        self.ready.iter_mut().for_each(|queue| queue.retain(|chunk| chunk.job != id));
        self.later.retain(|_, chunk| chunk.job != id);
        self.suspects.retain(|chunk| chunk.job != id);
        // Whoever is being cleared need not be any more.
        self.calls.extend(self.cleared_in_vain());
        for (index, place) in self.places.iter_mut().enumerate() {
            let Some(up) = &mut place.up else { continue };
            let before = up.orders.len();
            for (lane, line) in (0..).zip(&mut up.lines) {
                for given in line.given.iter_mut().filter(|given| given.chunk.job == id && !given.withdrawn) {
                    given.withdrawn = true;
                    up.orders.push(Order::Skip { lane, number: given.number });
                }
            }
            if up.orders.len() > before {
                self.calls.push(index);
            }
        }
        self.forget(id);
        self.let_in();
    }

    /// The job is over for whoever began it.
    pub(crate) fn leave(&mut self, job: JobId) {
        // A single task that is over waits and runs nowhere, so nothing has to be looked through for it.
        if !self.jobs.get(&job).is_some_and(|job| job.single && job.over) {
            self.cancel(job);
        }
        if let Some(job) = self.jobs.remove(&job) {
            self.wakes.extend(job.waker);
        }
    }

    /// Whether all jobs are over: those of a single task when they have its outcome, whether or not somebody has taken it,
    /// others when they are left; and all that were cancelled.
    pub(crate) fn is_idle(&self) -> bool {
        self.open == 0
    }

    pub(super) fn forget(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            self.wakes.extend(job.waker.take());
        }
    }

    /// No new jobs.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Nothing runs any more: what has no outcome yet fails with this.
    pub(crate) fn end(&mut self, why: &TaskFault) {
        if self.over.is_some() {
            return;
        }
        self.over = Some(why.clone());
        self.closed = true;
        for job in self.jobs.values_mut() {
            job.ended.get_or_insert_with(|| why.clone());
            // Whoever takes inputs is to learn it, also if nothing is under way.
            self.wakes.extend(job.waker.take());
        }
        let waiting = self.ready.iter_mut().chain([&mut self.suspects]).flat_map(std::mem::take);
        let mut all: Vec<Chunk> = waiting.chain(std::mem::take(&mut self.later).into_values()).collect();
        let outside = std::mem::take(&mut self.outside).into_iter();
        all.extend(outside.map(|((_, job), load)| Chunk::new(job, 0, load)));
        for place in &mut self.places {
            let Some(up) = &mut place.up else { continue };
            all.extend(up.take_all().map(Given::rest));
        }
        for chunk in all {
            for number in chunk.first..chunk.first + u64::from(chunk.load.count()) {
                self.failed += 1;
                self.deliver(chunk.job, Delivery { first: number, what: What::Failed(why.clone(), None) });
            }
        }
        self.calls.extend(0..self.places.len());
    }

    /// It begins anew, after its end.
    pub(crate) fn begin_again(&mut self) {
        self.over = None;
        self.closed = false;
        self.runs += 1;
        self.begin_staffing();
    }

    /// Why nothing runs any more, if that is so.
    pub(crate) fn over(&self) -> Option<&TaskFault> {
        self.over.as_ref()
    }
}
