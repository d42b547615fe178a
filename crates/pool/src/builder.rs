//! A pool to be, and how it starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::actor::Place;
use hatchery_actor::child::Shutdown;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::AnyHandle;
use hatchery_actor::settings;
use hatchery_actor::settings::Settings;
use hatchery_process::launch::START_TIMEOUT;
use hatchery_process::state::BuildsState;
use hatchery_process::task::{Runs, RunsInPool, StateType, TaskEntry};
use hatchery_supervisor::builder::Supervisor;
use hatchery_supervisor::errors::StartError;
use hatchery_supervisor::policy::CountDeaths;
use hatchery_supervisor::spec::ChildSpec;
use hatchery_supervisor::tree::Tree;
use hatchery_wire::{Body, EncodeError};
use tokio::task::{JoinError, JoinHandle, JoinSet};

use crate::child::PoolChild;
use crate::keeper;
use crate::memory;
use crate::plan::{Rules, Size};
use crate::pool::Pool;
use crate::post::{Life, Postings};
use crate::shared::Shared;
use crate::staff::Staff;
use crate::terms::{MOST_LANES, Named, Once, Recipe};

/// Chunks that a worker has at most besides the one that it works on. As they take about a millisecond each, these are far
/// more than it takes to bring the next one; and as many are taken from inputs that may be without end.
const MOST_PREFETCH: usize = 64;
/// How long the place of a worker stays empty that has died within a second of being ready, without a task: the first time
/// this long, each further time twice as long, up to the other one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a worker has nothing to do before it leaves, unless told otherwise.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A pool to be. See [`Pool::builder`].
#[must_use = "nothing starts before `start`"]
pub struct PoolBuilder {
    workers: Option<usize>,
    min_workers: Option<usize>,
    idle_timeout: Option<Duration>,
    most_memory: Option<u64>,
    pub(crate) name: Option<String>,
    initializer: Option<Prepared>,
    state: Option<(StateType, Prepared)>,
    finaliser: Option<(&'static TaskEntry, Prepared)>,
    prefetch: usize,
    max_tasks: Option<u64>,
    lanes: u16,
    intensity: Option<(u32, Duration)>,
    start_timeout: Option<Duration>,
    settings: Settings,
}

/// A function with its arguments, or why they cannot be encoded.
type Prepared = std::result::Result<Once, Fault>;

fn prepared(name: &str, place: Place, args: std::result::Result<Body, EncodeError>) -> Prepared {
    let args = args.map_err(|error| Fault::NotSent(error.to_string()))?;
    if args.descriptors() > 0 {
        return Err(Fault::NotSent(format!("{name} runs in many workers, and takes no descriptors")));
    }
    let task = Named { name: name.to_owned(), place: place.to_string() };
    Ok(Once { task, args: args.to_bytes().to_vec() })
}

impl PoolBuilder {
    pub(crate) fn new() -> PoolBuilder {
        PoolBuilder {
            workers: None,
            min_workers: None,
            idle_timeout: None,
            most_memory: None,
            name: None,
            initializer: None,
            state: None,
            finaliser: None,
            prefetch: 1,
            max_tasks: None,
            lanes: 1,
            intensity: None,
            start_timeout: None,
            settings: Settings::default(),
        }
    }

    /// How many workers; as many as there are processors for this process unless told otherwise. With
    /// [`min_workers`](PoolBuilder::min_workers) it is how many there may be. [`Pool::resize`] changes it. A start with 0 is
    /// refused.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// How many workers there are at least; as many as there may be unless told otherwise. It starts so many. Another one
    /// starts when a task waits and no worker is free, up to [`workers`](PoolBuilder::workers); and one that has had nothing to
    /// do for the [`idle_timeout`](PoolBuilder::idle_timeout) leaves in order.
    ///
    /// 0 is allowed: then nothing is started before the first task, and [`start`](PoolBuilder::start) does not find out
    /// whether an initializer succeeds. A start that fails is tried again after 100 ms, and after twice as long each further
    /// time, up to 30 s. If there is no worker at all, and more starts in a row have failed than the
    /// [`intensity`](PoolBuilder::intensity) allows, the pool ends, and its tasks fail with `is_init_failed`.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let pool = Pool::builder().workers(8).min_workers(0).idle_timeout(Duration::from_secs(10)).start().await?;
    ///     assert_eq!(pool.stats().workers.len(), 0);
    ///     assert_eq!(pool.submit(square, 7).await?, 49);
    ///     assert_eq!(pool.stats().workers.len(), 1);
    ///     pool.shutdown().await
    /// }
    /// ```
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.min_workers = Some(workers);
        self
    }

    /// How long a worker has nothing to do before it leaves, where there are more than
    /// [`min_workers`](PoolBuilder::min_workers); 60 s unless told otherwise. Without `min_workers`, one stays.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// How much memory a worker may have, in bytes, before another one takes its place; as much as it likes unless told
    /// otherwise. What counts is the memory of its process that is present, shared pages included (RSS, as in
    /// [`WorkerStats::memory`](crate::stats::WorkerStats::memory)): a worker that has done nothing has some MiB.
    ///
    /// It is looked at after tasks, every 10 ms at most, and every 250 ms while a long task runs. Nothing is killed for it: the
    /// task that runs goes on, and its result counts. What else the worker was given goes to others, it runs its finaliser and
    /// leaves, and another one starts. So this is for tasks that leave memory behind; against one that takes too much at a
    /// time there is a hard limit ([`memory_limit`](PoolBuilder::memory_limit)). Where a process does not find
    /// its own memory in `/proc`, the start of the pool fails.
    pub fn max_rss(mut self, bytes: u64) -> Self {
        self.most_memory = Some(bytes);
        self
    }

    /// A name, unique among the trees and processes of this process; it begins the paths of its workers.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A task that each worker runs once, before its first one, on the thread that runs its tasks. If it fails, so does
    /// the start of the worker.
    pub fn initializer<T: Runs>(mut self, task: T, args: T::Args) -> Self {
        let entry = task.entry();
        self.initializer = Some(prepared(entry.name, entry.place, task.encode_args(&args)));
        self
    }

    /// State that each worker has, and that its tasks borrow: what a `#[hatchery::state]` function builds. A task whose first
    /// parameter is `&mut S` or `&S` borrows it, one at a time.
    ///
    /// Each worker builds it once, after its initializer and before it is ready, on the thread that runs its tasks, where it
    /// stays: it need neither be `Send` nor encodable. If building fails, panics, or takes longer than the
    /// [`start_timeout`](PoolBuilder::start_timeout), so does the start of the worker, and says so. A worker that takes
    /// another one's place builds its own.
    ///
    /// A task that panics may leave it half changed. So it is dropped then, and built anew before the next task that borrows
    /// it begins. If that fails, or takes longer than a start may, the worker ends, with the reason as its panic, and another
    /// one takes its place; no task is charged with that. A task that is ended from outside takes its worker along, state and
    /// all.
    ///
    /// It is dropped when the worker leaves in order, after the [`finaliser`](PoolBuilder::finaliser), which may borrow it. A
    /// worker that is killed drops nothing.
    ///
    /// A pool has state of one type: a second call replaces the first. A task that borrows another type fails at once, and is
    /// not sent.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// struct Model { weights: Vec<f64> }
    ///
    /// #[hatchery::state]
    /// fn load(weights: String) -> hatchery::Result<Model> {
    ///     let weights = weights.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    ///     Ok(Model { weights })
    /// }
    ///
    /// #[hatchery::task]
    /// fn weigh(model: &Model, inputs: Vec<f64>) -> f64 {
    ///     model.weights.iter().zip(inputs).map(|(weight, input)| weight * input).sum()
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let pool = Pool::builder().workers(2).state(load, "0.5 2".to_owned()).start().await?;
    ///     assert_eq!(pool.map(weigh, [vec![2.0, 1.0], vec![4.0, 4.0]]).await?, [3.0, 10.0]);
    ///     pool.shutdown().await?;
    ///
    ///     let error = Pool::builder().workers(1).state(load, "none".to_owned()).start().await.unwrap_err();
    ///     assert!(error.to_string().contains("its state could not be built: invalid float"), "{error}");
    ///     Ok(())
    /// }
    /// ```
    pub fn state<T: BuildsState>(mut self, build: T, args: T::Args) -> Self {
        let entry = build.entry();
        self.state = Some((entry.state, prepared(entry.name, entry.place, build.encode_args(&args))));
        self
    }

    /// A task that each worker runs when it leaves in order: at the end of the pool, or when it has run its
    /// [`max_tasks_per_worker`](PoolBuilder::max_tasks_per_worker). A worker that has not left 5 s after it was told to is
    /// killed. It may borrow the [`state`](PoolBuilder::state), which is dropped after it. A worker that dies does not run it, nor
    /// one that has lost its connection to the pool.
    pub fn finaliser<T: RunsInPool>(mut self, task: T, args: T::Args) -> Self {
        let entry = task.entry();
        self.finaliser = Some((entry, prepared(entry.name, entry.place, task.encode_args(&args))));
        self
    }

    /// How many tasks a worker runs before another one takes its place; without end unless told otherwise. 0 is taken for 1.
    #[doc(alias = "maxtasksperchild")]
    pub fn max_tasks_per_worker(mut self, tasks: u64) -> Self {
        self.max_tasks = Some(tasks.max(1));
        self
    }

    /// How many chunks a worker has at most besides the one that it works on, so that it need not wait for the next one; 1
    /// unless told otherwise, and 64 at most: more is taken for 64. Only chunks that are over within milliseconds are given
    /// away before their turn; of those that are over within microseconds a worker has up to 64 in any case, since it costs
    /// more to bring each by itself.
    pub fn prefetch(mut self, chunks: usize) -> Self {
        self.prefetch = chunks.min(MOST_PREFETCH);
        self
    }

    /// How many asynchronous tasks a worker runs at the same time; 1 unless told otherwise, and 1,024 at most: more is taken
    /// for 1,024, and 0 for 1.
    ///
    /// They take turns on one thread, as tasks of a runtime of one thread do. A synchronous task has that thread for itself:
    /// a worker runs one of them at a time, and its asynchronous ones stand still meanwhile. So does one that borrows the
    /// worker's state, be it asynchronous or not.
    ///
    /// A task of several that is cancelled or takes too long is dropped, at the point where it waits, and the others go on. If
    /// it does not come to such a point within a second, or is a synchronous one, its worker is killed.
    ///
    /// What travels in one chunk (see [`chunk_size`](crate::map::Map::chunk_size)) runs one after the other, as everywhere; here
    /// it also waits where one of it takes long, though another worker has nothing to do.
    ///
    /// A death costs all tasks that ran in the worker: as many as this at most. Those that are tried again run alone from then
    /// on, each in a worker where nothing runs beside it, so that a task that kills its worker each time costs others one
    /// try at most; without retries they fail with it. They have half of the workers for that at most, or the one there is,
    /// where others have their turn between two of them. If the pool killed the worker for a task that did not yield, those
    /// beside it are not charged with a death (`poison_after`).
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::task]
    /// async fn fetched(url: String) -> usize {
    ///     tokio::time::sleep(Duration::from_millis(10)).await; // waits for somebody else, mostly
    ///     url.len()
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let pool = Pool::builder().workers(1).concurrency(50).start().await?;
    ///     let urls = (0..100).map(|page| format!("https://example.org/{page}"));
    ///     assert_eq!(pool.map(fetched, urls).await?.len(), 100);
    ///     pool.shutdown().await
    /// }
    /// ```
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.lanes = u16::try_from(tasks).unwrap_or(MOST_LANES).clamp(1, MOST_LANES);
        self
    }

    /// How many restarts of workers that fail, within how much time, are still normal; one more, and the pool ends, and its
    /// tasks fail with `is_init_failed`. Twice as many as there are workers at first, and four, in 60 s unless told otherwise.
    ///
    /// Workers that were ready do not count when they die: a death while a task runs is charged to that task, and another
    /// one to nobody. One that dies within a second of being ready, and without having been given a task, is started again
    /// after 100 ms, the next time after twice as long, up to 1 s; all others at once.
    pub fn intensity(mut self, max: u32, within: Duration) -> Self {
        self.intensity = Some((max, within));
        self
    }

    /// How long a worker may take until its initializer has ended, and its state is built, instead of 30 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    settings!();

    /// Starts it, and resolves when all its workers are ready; those that there are at least, with
    /// [`min_workers`](PoolBuilder::min_workers).
    ///
    /// # Errors
    /// More workers are wanted at least than there may be. A worker does not start: its initializer fails, its state cannot be
    /// built, or they take too long; then the others are stopped at once, and nothing is tried again. The finaliser borrows a type that
    /// is not the state's. The program did not come through the door, or the name is taken.
    ///
    /// # Cancel safety
    /// Dropped early, it stops what it has started, in the background: workers whose initializer still runs are killed.
    pub async fn start(self) -> std::result::Result<Pool, StartError> {
        self.check().map_err(|fault| StartError::refused("a pool".to_owned(), fault))?;
        let supervisor = self.supervisor();
        let supervisor = match &self.name {
            Some(name) => supervisor.name(name.clone()),
            None => supervisor,
        };
        let shared = self.shared();
        let tree = supervisor.start().await?;
        shared.set_path(tree.path());
        if let Err(error) = self.begin(&tree, &shared).await {
            let _ = tree.stop().await;
            return Err(error);
        }
        Ok(Pool::new(shared, tree))
    }

    /// Makes it a child of a supervisor, under this name; the child's handle is the [`Pool`].
    ///
    /// It starts when its workers have started, and is stopped when they have stopped. When it gives up, its jobs end with an
    /// error, and its parent starts it again or gives up in turn; the handle reaches its successor. So it does when it is
    /// [shut down](Pool::shutdown) by its handle, unless it is [`Restart::Transient`](hatchery_supervisor::policy::Restart::Transient)
    /// or temporary. What its workers may have is said here, not on the [`ChildSpec`].
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::new(Strategy::OneForOne).name("shop")
    ///         .child(Pool::builder().workers(2).spec("pool"))
    ///         .start().await?;
    ///     let pool = tree.get::<Pool>("pool")?;
    ///     assert_eq!(pool.map(square, 1..4).await?, [1, 4, 9]);
    ///     tree.stop().await
    /// }
    /// ```
    pub fn spec(self, name: impl Into<String>) -> ChildSpec<PoolChild> {
        let child = PoolChild::new(name.into(), self);
        ChildSpec::new(child).shutdown(Shutdown::infinity()).start_timeout(Duration::MAX)
    }

    fn count(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.workers.unwrap_or_else(processors).max(1)
    }

    fn limits(&self) -> (u32, Duration) {
        let usual = || (u32::try_from(2 * self.count() + 4).unwrap_or(u32::MAX), Duration::from_secs(60));
        self.intensity.unwrap_or_else(usual)
    }

    pub(crate) fn supervisor(&self) -> Supervisor {
        let (max, within) = self.limits();
        // A worker that was ready and is killed is no failed start. One that ends at once again and again waits.
        let supervisor = Supervisor::dynamic().count_deaths(CountDeaths::FailedStarts).intensity(max, within);
        supervisor.backoff(FIRST_PAUSE, LONGEST_PAUSE)
    }

    /// Whether it wants what cannot be had together.
    pub(crate) fn check(&self) -> std::result::Result<(), Fault> {
        if self.workers == Some(0) {
            return Err(Fault::Refused(
                "a pool without workers runs nothing: ask for 1 at least; with `min_workers(0)` they come when tasks wait"
                    .to_owned(),
            ));
        }
        let (least, most) = (self.min_workers.unwrap_or(0), self.count());
        if least > most {
            return Err(Fault::Refused(format!(
                "{least} workers at least and {most} at most: raise `workers`, or lower `min_workers`"
            )));
        }
        Ok(())
    }

    fn size(&self) -> Size {
        let max = self.count();
        let min = self.min_workers.unwrap_or(if self.idle_timeout.is_some() { 1 } else { max });
        let idle = self.idle_timeout.unwrap_or(IDLE_TIMEOUT);
        Size { min: min.min(max), max, idle, failures: self.limits().0 }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        let rules = Rules { prefetch: self.prefetch, max_tasks: self.max_tasks, lanes: self.lanes };
        let shared = Shared::new(rules, self.size(), self.most_memory);
        shared.with(|plan| plan.state = self.state.as_ref().map(|(state, _)| *state));
        shared
    }

    /// Starts the workers that there are at least, all at once, and those who look after them.
    pub(crate) async fn begin(
        &self,
        tree: &Tree,
        shared: &Arc<Shared>,
    ) -> std::result::Result<JoinHandle<()>, StartError> {
        let life = self.life().map_err(|fault| StartError::refused(keeper::name(0), fault))?;
        let start_timeout = self.start_timeout.unwrap_or(START_TIMEOUT);
        let postings =
            Arc::new(Postings { lanes: self.lanes, life, settings: self.settings.clone(), start_timeout });
        // Dropped, it gives them up, and with them the handles that keep the supervisor.
        let mut starts = JoinSet::new();
        for index in 0..self.size().min {
            let (tree, spec) = (tree.clone(), postings.spec(index, shared));
            starts.spawn(async move {
                let worker = tree.start_child(spec).await?;
                Ok((index, worker.actor_ref().seat().clone()))
            });
        }
        let mut seats = Vec::new();
        while let Some(start) = starts.join_next().await {
            // It panicked, or the runtime ends.
            let lost = |error: JoinError| {
                StartError::refused("a worker".to_owned(), Fault::StartFailed(error.to_string()))
            };
            seats.push(start.map_err(lost)??);
        }
        let staff = Staff { shared: shared.clone(), tree: tree.downgrade(), postings };
        Ok(tokio::spawn(staff.run(seats)))
    }

    /// What its workers run besides tasks.
    ///
    /// # Errors
    /// Arguments cannot be encoded, the finaliser borrows what is not there, or a limit for memory could not be kept.
    pub(crate) fn life(&self) -> std::result::Result<Life, Fault> {
        memory::can_be_weighed(self.most_memory, memory::resident(std::process::id()))?;
        let initializer = self.initializer.clone().transpose()?;
        let within = self.start_timeout.unwrap_or(START_TIMEOUT);
        let recipe = |build: Prepared| build.map(|build| Recipe { build, within });
        let state = self.state.as_ref().map(|(_, build)| recipe(build.clone())).transpose()?;
        if let Some((entry, _)) = &self.finaliser {
            entry.suits(self.state.as_ref().map(|(state, _)| *state))?;
        }
        let finaliser = self.finaliser.as_ref().map(|(_, once)| once.clone()).transpose()?;
        Ok(Life { initializer, state, finaliser })
    }
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("workers", &self.workers).finish_non_exhaustive()
    }
}
