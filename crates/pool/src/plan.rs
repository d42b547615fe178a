//! What is decided: which worker runs what and when, and what becomes of tasks. Pure: time is an argument, nothing waits,
//! and all that follows is written down for others to do.
//!
//! ```text
//!        enter, submit        hand_out                 results
//!  a job ───────────▶ ready ───────────▶ given to a worker ───────▶ the job's inbox
//!                     ▲   ▲                │ died, ended, taken back
//!                     │   └── not begun ───┤
//!                   later ◀─ to be tried ──┴─ failed ─────────────▶ the job's inbox
//! ```

mod back;
mod choice;
mod deaths;
mod jobs;
mod lines;
mod outcomes;
mod staffing;
mod suspects;
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

use self::lines::{Line, Up};
pub(crate) use self::staffing::{Size, Staffing};
use self::staffing::{Stand, Wanted};
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
    /// It ran in a worker of several lines when that ended, and runs alone from now on.
    suspect: bool,
}

impl Chunk {
    /// Of tasks that were never tried.
    fn new(job: JobId, first: u64, load: Load) -> Chunk {
        Chunk { job, first, load, tried: 0, deaths: 0, suspect: false }
    }
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
    /// Its single task, which has failed for good: unless it gets more retries before anybody looks.
    failed: Option<Chunk>,
}

/// A worker's place.
#[derive(Debug, Default)]
struct Place {
    up: Option<Up>,
    stand: Stand,
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
    /// Begin nothing more of the chunk that runs.
    PutDown,
    /// Do not begin anything that it was told before this, and go on: its lane is held.
    Back,
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
    /// What waits for a worker that has nothing to do, to run there alone.
    suspects: VecDeque<Chunk>,
    /// A worker that is given nothing until it has nothing left, and then one of these.
    cleared: Option<usize>,
    /// What is tried again, by when.
    later: BTreeMap<(Instant, u64), Chunk>,
    next_later: u64,
    places: Vec<Place>,
    /// How many workers there are to be, and how many there were to be when it began.
    size: Size,
    first_size: Size,
    wanted: Option<Wanted>,
    /// Starts that have failed since one has succeeded, and when the next one may begin.
    failed_starts: u32,
    next_start: Option<Instant>,
    /// Why it has given up, if it has because starts failed.
    starved: Option<String>,
    /// When those who start and remove workers look again by themselves.
    looks_at: Option<Instant>,
    /// How often it has begun.
    runs: u64,
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
    /// There may be workers to be started or removed.
    pub(crate) staff_called: bool,
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
            suspects: VecDeque::new(),
            cleared: None,
            later: BTreeMap::new(),
            next_later: 0,
            places: (0..workers).map(|_| Place::default()).collect(),
            size: Size::fixed(workers),
            first_size: Size::fixed(workers),
            wanted: None,
            failed_starts: 0,
            next_start: None,
            starved: None,
            looks_at: None,
            runs: 1,
            closed: false,
            over: None,
            done: 0,
            failed: 0,
            retried: 0,
            wakes: Vec::new(),
            calls: Vec::new(),
            staff_called: false,
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
        let ready = self.ready.iter().flatten().chain(&self.suspects).chain(self.later.values());
        ready.map(|chunk| u64::from(chunk.load.count())).sum::<u64>() + self.outside.len() as u64
    }

    /// Tasks that workers have and have not finished.
    pub(crate) fn given(&self) -> u64 {
        self.places.iter().flat_map(|place| &place.up).map(Up::open).sum()
    }

    /// Workers that are up.
    pub(crate) fn up(&self) -> usize {
        self.places.iter().filter(|place| place.up.is_some()).count()
    }

    /// The workers: those that are there, that are about to be, and that are leaving.
    pub(crate) fn workers(&self, now: Instant) -> Vec<Told> {
        let places = self.places.iter().enumerate().filter(|(_, place)| place.is_taken());
        let told = places.map(|(index, place)| {
            let up = place.up.as_ref();
            let works = up.filter(|up| up.busy() > 0);
            let since = |since: Instant| now.saturating_duration_since(since);
            Told {
                index,
                is_up: up.is_some(),
                is_leaving: place.is_leaving() || up.is_some_and(|up| up.leaving),
                tasks: place.tasks,
                busy: place.busy + works.map_or(Duration::ZERO, |up| since(up.counted)),
                running: works.and_then(|up| up.lines.iter().filter_map(Line::since).min()).map(since),
                given: up.map_or(0, Up::open),
                starts: place.starts,
            }
        });
        told.collect()
    }
}

/// A worker as the plan knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) index: usize,
    pub(crate) is_up: bool,
    pub(crate) is_leaving: bool,
    pub(crate) tasks: u64,
    pub(crate) busy: Duration,
    /// How long the task that it runs has run.
    pub(crate) running: Option<Duration>,
    pub(crate) given: u64,
    pub(crate) starts: u64,
}

impl Wants {
    /// Whether a task that failed is tried once more.
    fn tries_again(&self, task: &Chunk) -> bool {
        let poisoned = self.is_poisoned(task);
        task.tried < self.retries && !poisoned
    }

    /// Whether it has killed as many workers as it may. At least one, so 0 is as good as 1.
    fn is_poisoned(&self, task: &Chunk) -> bool {
        self.poison_after.is_some_and(|most| task.deaths >= most.max(1))
    }
}

/// One task of a chunk, alone.
fn one_of(chunk: &Chunk, at: u32) -> Chunk {
    let mut load = chunk.load.clone();
    drop(load.split_to(at));
    Chunk { first: chunk.first + u64::from(at), load: load.split_to(1), ..chunk.clone() }
}
