//! A pool to be, and how it starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::child::Shutdown;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::AnyHandle;
use hatchery_actor::settings;
use hatchery_actor::settings::Settings;
use hatchery_process::task::Runs;
use hatchery_supervisor::builder::Supervisor;
use hatchery_supervisor::errors::StartError;
use hatchery_supervisor::policy::CountDeaths;
use hatchery_supervisor::spec::ChildSpec;
use hatchery_supervisor::tree::Tree;
use tokio::task::JoinHandle;

use crate::child::PoolChild;
use crate::plan::{Rules, Size};
use crate::pool::Pool;
use crate::post::Postings;
use crate::shared::Shared;
use crate::staff::Staff;
use crate::terms::{Named, Once};

/// Chunks that a worker has at most besides the one that it works on. As they take about a millisecond each, these are far
/// more than it takes to bring the next one; and as many are taken from inputs that may be without end.
const MOST_PREFETCH: usize = 64;

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
    pub(crate) initializer: Option<Prepared>,
    pub(crate) finaliser: Option<Prepared>,
    prefetch: usize,
    max_tasks: Option<u64>,
    intensity: Option<(u32, Duration)>,
    start_timeout: Option<Duration>,
    settings: Settings,
}

/// A task with its arguments, or why they cannot be encoded.
type Prepared = std::result::Result<Once, Fault>;

fn prepared<T: Runs>(task: &T, args: &T::Args) -> Prepared {
    let entry = task.entry();
    let args = task.encode_args(args).map_err(|error| Fault::NotSent(error.to_string()))?;
    if args.descriptors() > 0 {
        return Err(Fault::NotSent(
            "an initializer runs in many workers, and takes no descriptors".to_owned(),
        ));
    }
    let task = Named { name: entry.name.to_owned(), place: entry.place.to_string() };
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
            finaliser: None,
            prefetch: 1,
            max_tasks: None,
            intensity: None,
            start_timeout: None,
            settings: Settings::default(),
        }
    }

    /// How many workers; as many as there are processors for this process unless told otherwise. With
    /// [`min_workers`](PoolBuilder::min_workers) it is how many there may be. [`Pool::resize`] changes it.
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
    /// time there is a hard limit ([`memory_limit`](PoolBuilder::memory_limit)). Where `/proc` is not mounted, nobody knows how much a worker
    /// has, and none is replaced.
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
        self.initializer = Some(prepared(&task, &args));
        self
    }

    /// A task that each worker runs when it leaves in order: at the end of the pool, or when it has run its
    /// [`max_tasks_per_worker`](PoolBuilder::max_tasks_per_worker). A worker that has not left 5 s after it was told to is
    /// killed.
    pub fn finaliser<T: Runs>(mut self, task: T, args: T::Args) -> Self {
        self.finaliser = Some(prepared(&task, &args));
        self
    }

    /// How many tasks a worker runs before another one takes its place; without end unless told otherwise.
    #[doc(alias = "maxtasksperchild")]
    pub fn max_tasks_per_worker(mut self, tasks: u64) -> Self {
        self.max_tasks = Some(tasks.max(1));
        self
    }

    /// How many chunks a worker has at most besides the one that it works on, so that it need not wait for the next one; 1
    /// unless told otherwise, and 64 at most: more is taken for 64. Only chunks that are over within milliseconds are given away before their turn.
    pub fn prefetch(mut self, chunks: usize) -> Self {
        self.prefetch = chunks.min(MOST_PREFETCH);
        self
    }

    /// How many deaths of workers that have not begun a task yet, and failed restarts, within how much time are still normal;
    /// one more, and the pool ends, and its tasks fail with `is_init_failed`. Twice as many as there are workers, and four,
    /// in 60 s unless told otherwise. Deaths while a task runs do not count: they are charged to that task.
    pub fn intensity(mut self, max: u32, within: Duration) -> Self {
        self.intensity = Some((max, within));
        self
    }

    /// How long a worker may take until its initializer has ended, instead of 30 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    settings!();

    /// Starts it, and resolves when all its workers are ready; those that there are at least, with
    /// [`min_workers`](PoolBuilder::min_workers).
    ///
    /// # Errors
    /// More workers at least than there may be.     /// A worker does not start: its initializer fails, or takes too long; then the others are stopped, and nothing is tried
    /// again. The program did not come through the door, or the name is taken.
    ///
    /// # Cancel safety
    /// Dropped early, it stops what it has started, in the background.
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
    /// error, and its parent starts it again or gives up in turn; the handle reaches its successor. What its workers may
    /// have is said here, not on the [`ChildSpec`].
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
        Supervisor::dynamic().count_deaths(CountDeaths::Early).intensity(max, within)
    }

    /// Whether it wants what cannot be had together.
    pub(crate) fn check(&self) -> std::result::Result<(), Fault> {
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
        let rules = Rules { prefetch: self.prefetch, max_tasks: self.max_tasks };
        Shared::new(rules, self.size(), self.most_memory)
    }

    /// Starts the workers that there are at least, all at once, and those who look after them.
    pub(crate) async fn begin(
        &self,
        tree: &Tree,
        shared: &Arc<Shared>,
    ) -> std::result::Result<JoinHandle<()>, StartError> {
        let postings = Arc::new(Postings {
            initializer: self.initializer.clone(),
            finaliser: self.finaliser.clone(),
            settings: self.settings.clone(),
            start_timeout: self.start_timeout,
        });
        let starts: Vec<_> = (0..self.size().min)
            .map(|index| {
                let (tree, spec) = (tree.clone(), postings.spec(index, shared));
                tokio::spawn(async move { tree.start_child(spec?).await })
            })
            .collect();
        let mut seats = Vec::new();
        let mut failed = None;
        for start in starts {
            match start.await {
                Ok(Ok(worker)) => seats.push(worker.actor_ref().seat().clone()),
                Ok(Err(error)) => failed = failed.or(Some(error)),
                // It panicked, or the runtime ends.
                Err(error) => {
                    let fault = Fault::StartFailed(error.to_string());
                    failed = failed.or(Some(StartError::refused("a worker".to_owned(), fault)));
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let staff = Staff { shared: shared.clone(), tree: tree.downgrade(), postings };
        Ok(tokio::spawn(staff.run(seats)))
    }
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("workers", &self.workers).finish_non_exhaustive()
    }
}
