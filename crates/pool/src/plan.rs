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

mod choice;
mod deaths;
mod jobs;
mod lines;
mod outcomes;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

use hatchery_actor::task_handle::TaskFault;
use hatchery_process::task::{StateType, TaskEntry};
use hatchery_wire::Body;
use tokio::time::Instant;

use self::lines::Up;
use crate::row::{Load, Row};

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
    /// Asynchronous tasks that a worker runs at the same time: it has as many lines, and its ledger as many lanes.
    pub(crate) lanes: u16,
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
    /// Tasks of its next chunk at most, until such a chunk has shown that it is as quick as was thought.
    trusted: u32,
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

/// Why a task was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    TimedOut,
    Cancelled,
}

/// What a worker is to be told.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Run these in this lane; the first has this number.
    Run { entry: &'static TaskEntry, lane: u16, number: u32, load: Load },
    /// Nobody wants those any more of which the first has this number.
    Skip { lane: u16, number: u32 },
    /// End the task of this number, if it runs and can be ended.
    Stop { lane: u16, number: u32 },
    /// There will be no more: leave.
    Leave,
}

/// A task that is to be ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) lane: u16,
    pub(crate) number: u32,
    pub(crate) why: End,
    /// Whether the worker is to be killed for it. Else it was asked to end it, and has some time left for that.
    pub(crate) now: bool,
}

/// The outcome of a task, as it was found in a ledger: which bytes of what was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) number: u32,
    pub(crate) lane: u16,
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
    /// What its workers have that tasks may borrow.
    pub(crate) state: Option<StateType>,
    jobs: HashMap<JobId, Job>,
    next_job: JobId,
    /// How long tasks take, as far as known, by where their entries are.
    paces: HashMap<usize, Duration>,
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
            state: None,
            jobs: HashMap::new(),
            next_job: 0,
            paces: HashMap::new(),
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

    fn deliver(&mut self, job: JobId, delivery: Delivery) {
        let Some(job) = self.jobs.get_mut(&job).filter(|job| !job.cancelled) else { return };
        job.inbox.push_back(delivery);
        if job.single && !std::mem::replace(&mut job.over, true) {
            self.open -= 1;
        }
        self.wakes.extend(job.waker.take());
    }

    /// Tasks that wait for a worker.
    pub(crate) fn waiting(&self) -> u64 {
        let ready = self.ready.iter().flatten().chain(self.later.values());
        ready.map(|chunk| u64::from(chunk.load.count())).sum::<u64>() + self.outside.len() as u64
    }

    /// Of each worker: whether it is there, tasks it has done, time it was busy, since when it is at what it has, how many
    /// tasks it has, and how many were started at its place.
    pub(crate) fn workers(&self) -> Vec<(bool, u64, Duration, Option<Instant>, u64, u64)> {
        let told = self.places.iter().map(|place| {
            let lines = || place.up.iter().flat_map(|up| &up.lines);
            let given = lines().flat_map(|line| &line.given);
            let has = given.map(|given| u64::from(given.chunk.load.count() - given.done)).sum();
            let since = lines().filter(|line| !line.given.is_empty()).map(|line| line.began).min();
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
