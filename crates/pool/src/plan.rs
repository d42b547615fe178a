//! What is decided: which worker runs what and when, and what becomes of tasks. Pure: time is an argument, nothing waits,
//! and all that follows is written down for others to do.
//!
//! ```text
//!        enter, submit        hand_out                 results
//!  a job ───────────▶ ready ───────────▶ given to a worker ───────▶ the job's inbox
//!                     ▲   ▲                │ died, ended
//!                     │   └── not begun ───┤
//!                   later ◀─ to be tried ──┴─ failed ─────────────▶ the job's inbox
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::exit::{Exit, Panic};
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use hatchery_process::task::TaskEntry;
use hatchery_wire::{Body, decode_slice};
use tokio::time::Instant;

use crate::row::{Load, Row};
use crate::terms::{FAULT, PANIC, SKIPPED, VALUE};

/// How long the first retry of a task waits; each further one twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a chunk should take: long against the way to a worker and back, short against the patience of people.
const CHUNK_TIME: Duration = Duration::from_millis(1);
/// Tasks of one chunk at most.
const LARGEST_CHUNK: u32 = 4096;
/// A chunk is given to a worker before it has finished the one before only if it should come to it within this time.
const SOON: Duration = Duration::from_millis(5);
/// How often a worker is looked at whose task is to end.
const OFTEN: Duration = Duration::from_millis(1);
/// From so many chunks on that wait for a worker, tasks that were submitted one by one do not get in line behind them, but
/// wait outside: so what goes through the line never has far to go.
pub(crate) const QUEUE: usize = 1024;

/// What goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// When nothing else waits.
    Low,
    /// In its turn.
    #[default]
    Normal,
    /// Before what waits already, and has not been given to a worker.
    High,
}

/// What a job wants for its tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wants {
    pub(crate) entry: &'static TaskEntry,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: u32,
    pub(crate) poison_after: Option<u32>,
    pub(crate) priority: Priority,
}

/// What a pool goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Chunks that a worker has at most besides the one that it works on.
    pub(crate) prefetch: usize,
    /// Tasks that a worker runs before another one takes its place.
    pub(crate) max_tasks: Option<u64>,
}

pub(crate) type JobId = u64;

/// What a job gets: the outcome of the task of this number, or of many from there on.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) first: u64,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// Results of so many tasks.
    Row(Row),
    /// The result of one.
    Alone(Body),
    /// Why one has none, and which worker ran it, if one did.
    Failed(TaskFault, Option<usize>),
}

/// Some tasks of one job, which go to a worker together.
#[derive(Clone, Debug)]
struct Chunk {
    job: JobId,
    first: u64,
    load: Load,
    /// Of a task that was tried before, which is alone in its chunk.
    tried: u32,
    deaths: u32,
}

#[derive(Debug)]
struct Job {
    wants: Wants,
    inbox: VecDeque<Delivery>,
    waker: Option<Waker>,
    /// How long a task takes, as far as known.
    pace: Option<Duration>,
    cancelled: bool,
    /// It has one task, whose outcome is all there will be.
    single: bool,
    /// Nothing more will come of it, whether or not that has been taken.
    over: bool,
    /// The pool has ended since it began, and why; also if it has begun again.
    ended: Option<TaskFault>,
}

/// A worker's place.
#[derive(Debug, Default)]
struct Place {
    up: Option<Up>,
    /// It is gone for good.
    gone: bool,
    tasks: u64,
    busy: Duration,
    starts: u64,
}

/// A worker that is there.
#[derive(Debug)]
struct Up {
    given: VecDeque<Given>,
    /// The number of the next task that it is given.
    next: u32,
    /// Tasks it may still be given.
    left: u64,
    /// What it is to be told.
    orders: Vec<Order>,
    leaving: bool,
    /// A task that was ended from outside, and why: the worker dies of that.
    ended: Option<(u32, End)>,
    /// What ran when it was looked at, and since when at least.
    seen: Option<(u32, Instant)>,
    /// When it began with the first of what it was given.
    began: Instant,
}

#[derive(Debug)]
struct Given {
    chunk: Chunk,
    number: u32,
    done: u32,
    withdrawn: bool,
}

/// Why a task was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    TimedOut,
    Cancelled,
}

/// What a worker is to be told.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Run these, of which the first has this number.
    Run { entry: &'static TaskEntry, number: u32, load: Load },
    /// Do not begin those of which the first has this number.
    Skip { number: u32 },
    /// There will be no more: leave.
    Leave,
}

/// The outcome of a task, as it was found in a ledger: which bytes of what was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) number: u32,
    pub(crate) kind: u8,
    /// Where its length begins.
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// A worker says what no worker in its right mind says. It is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonsense;

/// The state of a pool.
#[derive(Debug)]
pub(crate) struct Plan {
    rules: Rules,
    jobs: HashMap<JobId, Job>,
    next_job: JobId,
    /// Jobs that are not over.
    open: usize,
    /// Single tasks that wait for room in the line, what goes first first: no more than there are jobs that somebody keeps.
    outside: BTreeMap<(Reverse<Priority>, JobId), Load>,
    /// By priority, lowest first.
    ready: [VecDeque<Chunk>; 3],
    /// What is tried again, by when.
    later: BTreeMap<(Instant, u64), Chunk>,
    next_later: u64,
    places: Vec<Place>,
    /// No new jobs.
    closed: bool,
    /// Nothing runs any more, and why.
    over: Option<TaskFault>,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) retried: u64,
    /// To be woken, and workers to be looked after, once nobody holds this any more.
    pub(crate) wakes: Vec<Waker>,
    pub(crate) calls: Vec<usize>,
}

impl Plan {
    pub(crate) fn new(rules: Rules, workers: usize) -> Plan {
        Plan {
            rules,
            jobs: HashMap::new(),
            next_job: 0,
            open: 0,
            outside: BTreeMap::new(),
            ready: Default::default(),
            later: BTreeMap::new(),
            next_later: 0,
            places: (0..workers).map(|_| Place::default()).collect(),
            closed: false,
            over: None,
            done: 0,
            failed: 0,
            retried: 0,
            wakes: Vec::new(),
            calls: Vec::new(),
        }
    }

    // ---- jobs ----

    /// A new job, whose tasks [`enter`](Plan::enter).
    ///
    /// # Errors
    /// No job begins any more.
    pub(crate) fn begin(&mut self, wants: Wants) -> Result<JobId, TaskFault> {
        self.begin_one(wants, false)
    }

    /// A new job of a single task, which waits for a worker from now on.
    ///
    /// # Errors
    /// No job begins any more.
    pub(crate) fn submit(&mut self, wants: Wants, load: Load, now: Instant) -> Result<JobId, TaskFault> {
        let id = self.begin_one(wants, true)?;
        self.outside.insert((Reverse(wants.priority), id), load);
        self.hand_out(now);
        Ok(id)
    }

    fn begin_one(&mut self, wants: Wants, single: bool) -> Result<JobId, TaskFault> {
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        if self.closed {
            return Err(TaskFault::Fault(Fault::Closed { why: "its pool was closed".to_owned() }));
        }
        let id = self.next_job;
        self.next_job += 1;
        let inbox = VecDeque::new();
        let (waker, pace, ended) = Default::default();
        let job = Job { wants, inbox, waker, pace, cancelled: false, single, over: false, ended };
        self.jobs.insert(id, job);
        self.open += 1;
        Ok(id)
    }

    /// What it wants from now on.
    pub(crate) fn change(&mut self, job: JobId, wants: Wants) {
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
        self.ready[queue].push_back(Chunk { job, first, load, tried: 0, deaths: 0 });
        self.hand_out(now);
    }

    /// What has come for a job; `waker` is woken when something more comes.
    pub(crate) fn take(&mut self, job: JobId, waker: &Waker) -> VecDeque<Delivery> {
        let Some(job) = self.jobs.get_mut(&job) else { return VecDeque::new() };
        // Also if something has: it need not be what is waited for.
        match &job.waker {
            Some(known) if known.will_wake(waker) => {}
            _ => job.waker = Some(waker.clone()),
        }
        std::mem::take(&mut job.inbox)
    }

    /// Whether all further tasks of the job fail at once, since its pool has ended.
    pub(crate) fn has_ended(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|job| job.ended.is_some())
    }

    pub(crate) fn has_mail(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|job| !job.inbox.is_empty())
    }

    /// How many tasks a chunk of the job should have, by what is known of them.
    pub(crate) fn chunk_size(&self, job: JobId) -> u32 {
        let pace = self.jobs.get(&job).and_then(|job| job.pace);
        pace.map_or(1, |pace| {
            let fits = CHUNK_TIME.as_nanos() / pace.as_nanos().max(1);
            u32::try_from(fits).unwrap_or(LARGEST_CHUNK).clamp(1, LARGEST_CHUNK)
        })
    }

    /// How many workers there are, and how many chunks each may have.
    pub(crate) fn breadth(&self) -> (usize, usize) {
        (self.places.iter().filter(|place| !place.gone).count().max(1), 1 + self.rules.prefetch)
    }

    /// Nobody wants the job any more: what has not begun never will, and what runs is ended.
    pub(crate) fn cancel(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.cancelled = true;
        job.inbox.clear();
        self.outside.remove(&(Reverse(job.wants.priority), id));
        if !std::mem::replace(&mut job.over, true) {
            self.open -= 1;
        }
        self.ready.iter_mut().for_each(|queue| queue.retain(|chunk| chunk.job != id));
        self.later.retain(|_, chunk| chunk.job != id);
        for (index, place) in self.places.iter_mut().enumerate() {
            let Some(up) = &mut place.up else { continue };
            let mut concerned = false;
            for given in up.given.iter_mut().filter(|given| given.chunk.job == id && !given.withdrawn) {
                given.withdrawn = true;
                concerned = true;
                up.orders.push(Order::Skip { number: given.number });
            }
            if concerned {
                self.calls.push(index);
            }
        }
        self.forget(id);
        self.let_in();
    }

    /// The job is over for whoever began it.
    pub(crate) fn leave(&mut self, job: JobId) {
        self.cancel(job);
        if let Some(job) = self.jobs.remove(&job) {
            self.wakes.extend(job.waker);
        }
    }

    /// Whether all jobs are over: those of a single task when they have its outcome, whether or not somebody has taken it,
    /// others when they are left; and all that were cancelled.
    pub(crate) fn is_idle(&self) -> bool {
        self.open == 0
    }

    fn forget(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            self.wakes.extend(job.waker.take());
        }
    }

    // ---- workers ----

    /// A worker is there.
    pub(crate) fn arrived(&mut self, index: usize, now: Instant) {
        let left = self.rules.max_tasks.unwrap_or(u64::MAX);
        let place = &mut self.places[index];
        place.starts += 1;
        place.up = Some(Up {
            given: VecDeque::new(),
            next: 0,
            left,
            orders: Vec::new(),
            leaving: false,
            ended: None,
            seen: None,
            began: now,
        });
        self.hand_out(now);
    }

    /// Gives what is ready to workers that can take it.
    pub(crate) fn hand_out(&mut self, now: Instant) {
        while let Some(due) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let chunk = due.remove();
            let queue = self.jobs.get(&chunk.job).map_or(1, |job| job.wants.priority as usize);
            self.ready[queue].push_front(chunk);
        }
        loop {
            self.let_in();
            let Some(queue) = self.ready.iter().rposition(|queue| !queue.is_empty()) else { break };
            let Some(chunk) = self.ready[queue].front() else { return };
            let soon = self.is_soon(chunk);
            let Some(index) = self.free_worker(soon) else { break };
            let Some(mut chunk) = self.ready[queue].pop_front() else { return };
            let Some(up) = &mut self.places[index].up else { return };
            let most = u32::try_from(up.left).unwrap_or(u32::MAX);
            if chunk.load.count() > most {
                // The rest is for others.
                let load = chunk.load.split_to(most);
                let rest = Chunk { first: chunk.first + u64::from(most), ..chunk.clone() };
                self.ready[queue].push_front(rest);
                chunk.load = load;
            }
            let Some(job) = self.jobs.get(&chunk.job) else { continue };
            let count = chunk.load.count();
            let number = up.next;
            up.next = up.next.wrapping_add(count);
            up.left -= u64::from(count);
            if up.given.is_empty() {
                up.began = now;
            }
            up.orders.push(Order::Run { entry: job.wants.entry, number, load: chunk.load.clone() });
            up.given.push_back(Given { chunk, number, done: 0, withdrawn: false });
            self.calls.push(index);
        }
    }

    /// Has those who wait outside get in line, as far as there is room.
    fn let_in(&mut self) {
        while !self.outside.is_empty() && self.ready.iter().map(VecDeque::len).sum::<usize>() < QUEUE {
            let Some(((Reverse(priority), job), load)) = self.outside.pop_first() else { return };
            self.ready[priority as usize].push_back(Chunk { job, first: 0, load, tried: 0, deaths: 0 });
        }
    }

    /// Whether this chunk is over so quickly that a worker may have it before its turn.
    fn is_soon(&self, chunk: &Chunk) -> bool {
        let pace = self.jobs.get(&chunk.job).and_then(|job| job.pace);
        pace.is_some_and(|pace| pace.saturating_mul(chunk.load.count()) <= SOON)
    }

    /// Who has least to do, and can take more.
    fn free_worker(&self, soon: bool) -> Option<usize> {
        let able = self.places.iter().enumerate().filter_map(|(index, place)| {
            let up = place.up.as_ref().filter(|up| !up.leaving && up.ended.is_none() && up.left > 0)?;
            let given = up.given.len();
            let may = given == 0
                || (soon
                    && given <= self.rules.prefetch
                    && up.given.iter().all(|other| self.is_soon(&other.chunk)));
            may.then_some((given, index))
        });
        able.min().map(|(_, index)| index)
    }

    /// What a worker is to be told.
    pub(crate) fn orders(&mut self, index: usize) -> Vec<Order> {
        self.places[index].up.as_mut().map(|up| std::mem::take(&mut up.orders)).unwrap_or_default()
    }

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
    fn is_early(&self, index: usize, number: u32) -> Result<bool, Nonsense> {
        let up = self.places[index].up.as_ref().ok_or(Nonsense)?;
        let given = up.given.front().ok_or(Nonsense)?;
        let ahead = number.wrapping_sub(given.number.wrapping_add(given.done));
        let open = up.next.wrapping_sub(given.number.wrapping_add(given.done));
        if ahead < open { Ok(ahead > 0) } else { Err(Nonsense) }
    }

    /// A single outcome that is no value.
    fn outcome(&mut self, index: usize, found: &Found, bytes: &Bytes, now: Instant) -> Result<(), Nonsense> {
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
            SKIPPED => {
                let given = self.front(index, found.number)?;
                if !given.withdrawn {
                    return Err(Nonsense);
                }
                self.advance(index, 1, now);
                Ok(())
            }
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
            _ => {
                let fault: Fault = hatchery_wire::decode(&body).map_err(|_| Nonsense)?;
                self.faulty(index, fault, now)
            }
        }
    }

    /// What a worker works on, if that is the task of this number.
    fn front(&mut self, index: usize, number: u32) -> Result<&mut Given, Nonsense> {
        let up = self.places[index].up.as_mut().ok_or(Nonsense)?;
        let given = up.given.front_mut().ok_or(Nonsense)?;
        if given.number.wrapping_add(given.done) != number {
            return Err(Nonsense);
        }
        Ok(given)
    }

    /// A worker has done so many tasks of the first chunk that it has.
    fn advance(&mut self, index: usize, count: u32, now: Instant) {
        let place = &mut self.places[index];
        let Some(up) = &mut place.up else { return };
        place.tasks += u64::from(count);
        up.seen = None;
        let Some(given) = up.given.front_mut() else { return };
        given.done += count;
        if given.done < given.chunk.load.count() {
            return;
        }
        let took = now.saturating_duration_since(up.began);
        up.began = now;
        place.busy += took;
        let done = up.given.pop_front();
        if let Some(Given { chunk, withdrawn: false, .. }) = done {
            if let Some(job) = self.jobs.get_mut(&chunk.job) {
                let pace = took / chunk.load.count().max(1);
                job.pace = Some(job.pace.map_or(pace, |before| (before + pace) / 2));
            }
        }
        if up.left == 0 && up.given.is_empty() && !up.leaving {
            up.leaving = true;
            up.orders.push(Order::Leave);
            self.calls.push(index);
        }
        self.hand_out(now);
    }

    /// The task that a worker works on has no result, and would have none if it were tried again.
    fn faulty(&mut self, index: usize, fault: Fault, now: Instant) -> Result<(), Nonsense> {
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
    fn attempt_failed(&mut self, index: usize, why: TaskFault, now: Instant) -> Result<(), Nonsense> {
        let up = self.places[index].up.as_ref().ok_or(Nonsense)?;
        let given = up.given.front().ok_or(Nonsense)?;
        let task = one_of(&given.chunk, given.done);
        self.advance(index, 1, now);
        self.try_again(task, why, index, now);
        Ok(())
    }

    /// Has a task tried again, or says that it failed.
    fn try_again(&mut self, mut task: Chunk, why: TaskFault, index: usize, now: Instant) {
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
        let timeout = self.jobs.get(&given.chunk.job)?.wants.timeout?;
        let since = match up.seen {
            Some((seen, since)) if seen == number => since,
            _ => {
                up.seen = Some((number, now));
                now
            }
        };
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
        [due, watched].into_iter().flatten().min()
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

    /// A worker has ended; `running` is what its ledger says that it was at, after all outcomes were taken out of it.
    pub(crate) fn died(&mut self, index: usize, running: Option<u32>, exit: &Exit, now: Instant) {
        let Some(up) = self.places[index].up.take() else { return };
        let mut given = up.given;
        let mut lost = None;
        if let Some(first) = given.front_mut() {
            let next = first.number.wrapping_add(first.done);
            // Whatever number it names: with tasks one after the other it can be at that one alone.
            if running.is_some() {
                lost = Some((one_of(&first.chunk, first.done), next));
                first.done += 1;
            }
        }
        for given in given.into_iter().rev().filter(|given| !given.withdrawn) {
            let mut chunk = given.chunk;
            drop(chunk.load.split_to(given.done));
            chunk.first += u64::from(given.done);
            if chunk.load.count() == 0 {
                continue;
            }
            let Some(job) = self.jobs.get(&chunk.job).filter(|job| !job.cancelled) else { continue };
            self.ready[job.wants.priority as usize].push_front(chunk);
        }
        if let Some((task, number)) = lost {
            let why = match up.ended.filter(|(ended, _)| *ended == number) {
                Some((_, End::TimedOut)) => TaskFault::Fault(Fault::Timeout { maybe_executed: true }),
                Some((_, End::Cancelled)) => TaskFault::Cancelled,
                None => TaskFault::Fault(Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: true }),
            };
            self.try_again(task, why, index, now);
        }
        self.hand_out(now);
    }

    /// No worker will be at this place any more.
    pub(crate) fn gone(&mut self, index: usize, why: &TaskFault) {
        self.places[index].gone = true;
        if self.places.iter().all(|place| place.gone) {
            self.end(why);
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
        let waiting = self.ready.iter_mut().flat_map(std::mem::take);
        let mut all: Vec<Chunk> = waiting.chain(std::mem::take(&mut self.later).into_values()).collect();
        let outside = std::mem::take(&mut self.outside).into_iter();
        all.extend(outside.map(|((_, job), load)| Chunk { job, first: 0, load, tried: 0, deaths: 0 }));
        for place in &mut self.places {
            let Some(up) = &mut place.up else { continue };
            for mut given in std::mem::take(&mut up.given) {
                drop(given.chunk.load.split_to(given.done));
                given.chunk.first += u64::from(given.done);
                all.push(given.chunk);
            }
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
        self.places.iter_mut().for_each(|place| place.gone = false);
    }

    /// Why nothing runs any more, if that is so.
    pub(crate) fn over(&self) -> Option<&TaskFault> {
        self.over.as_ref()
    }

    fn deliver(&mut self, job: JobId, delivery: Delivery) {
        let Some(job) = self.jobs.get_mut(&job).filter(|job| !job.cancelled) else { return };
        job.inbox.push_back(delivery);
        if job.single && !std::mem::replace(&mut job.over, true) {
            self.open -= 1;
        }
        self.wakes.extend(job.waker.take());
    }

    // ---- what it says of itself ----

    /// Tasks that wait for a worker.
    pub(crate) fn waiting(&self) -> u64 {
        let ready = self.ready.iter().flatten().chain(self.later.values());
        ready.map(|chunk| u64::from(chunk.load.count())).sum::<u64>() + self.outside.len() as u64
    }

    /// Of each worker: whether it is there, tasks it has done, time it was busy, since when it is at what it has, how many
    /// tasks it has, and how many were started at its place.
    pub(crate) fn workers(&self) -> Vec<(bool, u64, Duration, Option<Instant>, u64, u64)> {
        let told = self.places.iter().map(|place| {
            let given = place.up.iter().flat_map(|up| &up.given);
            let has = given.map(|given| u64::from(given.chunk.load.count() - given.done)).sum();
            let since = place.up.as_ref().filter(|_| has > 0).map(|up| up.began);
            (place.up.is_some(), place.tasks, place.busy, since, has, place.starts)
        });
        told.collect()
    }
}

/// One task of a chunk, alone.
fn one_of(chunk: &Chunk, at: u32) -> Chunk {
    let mut load = chunk.load.clone();
    drop(load.split_to(at));
    Chunk { first: chunk.first + u64::from(at), load: load.split_to(1), ..chunk.clone() }
}
