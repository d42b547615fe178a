//! A pool, and how it starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::child::Shutdown;
use hatchery_actor::error::Result;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::AnyHandle;
use hatchery_actor::settings;
use hatchery_actor::settings::Settings;
use hatchery_actor::task_handle::TaskFault;
use hatchery_process::task::Runs;
use hatchery_supervisor::builder::Supervisor;
use hatchery_supervisor::errors::StartError;
use hatchery_supervisor::policy::CountDeaths;
use hatchery_supervisor::spec::ChildSpec;
use hatchery_supervisor::tree::Tree;
use tokio::time::Instant;

use crate::job::Job;
use crate::keeper;
use crate::map::Map;
use crate::plan::{Priority, Rules, Wants};
use crate::post::Post;
use crate::shared::Shared;
use crate::stats::{PoolStats, WorkerStats};
use crate::terms::{Named, Once};

/// Worker processes that run tasks. Cloneable; when the last handle, job and stream is gone, it is stopped in order, in the
/// background.
///
/// A task is run by one worker after the other that is free. When a worker dies, the one task that ran fails, or is tried
/// again as asked; all others go to other workers, and another worker takes its place.
///
/// ```
/// use hatchery::prelude::*;
///
/// #[hatchery::task]
/// fn square(x: u64) -> u64 { x * x }
///
/// #[hatchery::task]
/// fn multiply(x: u64, y: u64) -> u64 { x * y }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let pool = Pool::builder().workers(2).start().await?;
///     assert_eq!(pool.map(square, 0..5).await?, [0, 1, 4, 9, 16]);
///     assert_eq!(pool.submit(multiply, (7, 7)).await?, 49);
///     pool.shutdown().await
/// }
/// ```
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    tree: Tree,
}

/// A pool to be. See [`Pool::builder`].
#[must_use = "nothing starts before `start`"]
pub struct PoolBuilder {
    workers: Option<usize>,
    name: Option<String>,
    initializer: Option<Prepared>,
    finaliser: Option<Prepared>,
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
    /// How many workers; as many as there are processors for this process unless told otherwise.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
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
    /// [`max_tasks_per_worker`](PoolBuilder::max_tasks_per_worker).
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
    /// unless told otherwise. Only chunks that are over within milliseconds are given away before their turn.
    pub fn prefetch(mut self, chunks: usize) -> Self {
        self.prefetch = chunks;
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

    /// Starts it, and resolves when all its workers are ready.
    ///
    /// # Errors
    /// A worker does not start: its initializer fails, or takes too long; then the others are stopped, and nothing is tried
    /// again. The program did not come through the door, or the name is taken.
    ///
    /// # Cancel safety
    /// Dropped early, it stops what it has started, in the background.
    pub async fn start(self) -> std::result::Result<Pool, StartError> {
        let workers = self
            .workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let workers = workers.max(1);
        let (max, within) = self
            .intensity
            .unwrap_or_else(|| (u32::try_from(2 * workers + 4).unwrap_or(u32::MAX), Duration::from_secs(60)));
        let supervisor = Supervisor::dynamic().count_deaths(CountDeaths::Early).intensity(max, within);
        let supervisor = match &self.name {
            Some(name) => supervisor.name(name.clone()),
            None => supervisor,
        };
        let rules = Rules { prefetch: self.prefetch, max_tasks: self.max_tasks };
        let shared = Shared::new(rules, workers);
        let tree = supervisor.start().await?;
        shared.set_path(tree.path());
        let starts: Vec<_> = (0..workers)
            .map(|index| {
                let (tree, spec) = (tree.clone(), self.spec(index, &shared));
                tokio::spawn(async move { tree.start_child(spec?).await })
            })
            .collect();
        let mut seats = Vec::new();
        let mut failed = None;
        for start in starts {
            match start.await {
                Ok(Ok(worker)) => seats.push(worker.actor_ref().seat().clone()),
                Ok(Err(error)) => failed = failed.or(Some(error)),
                // It panicked, or the runtime ends; there is nothing to tell.
                Err(_) => {}
            }
        }
        if let Some(error) = failed {
            let _ = tree.stop().await;
            return Err(error);
        }
        for (index, seat) in seats.into_iter().enumerate() {
            tokio::spawn(keeper::keep(shared.clone(), index, seat));
        }
        Ok(Pool { inner: Arc::new(Inner { shared, tree }) })
    }

    /// The worker of this number.
    fn spec(&self, index: usize, shared: &Arc<Shared>) -> std::result::Result<ChildSpec<Post>, StartError> {
        let prepared = |once: &Option<Prepared>| once.clone().transpose();
        let once = prepared(&self.initializer).and_then(|first| Ok((first, prepared(&self.finaliser)?)));
        let (first, last) = once.map_err(|fault| StartError::refused(format!("worker-{index}"), fault))?;
        let post = Post::new(index, shared.clone(), first, last);
        let mut spec = ChildSpec::new(post).settings(self.settings.clone()).shutdown(Shutdown::default());
        if let Some(timeout) = self.start_timeout {
            spec = spec.start_timeout(timeout);
        }
        Ok(spec)
    }
}

impl Pool {
    /// A pool to be.
    pub fn builder() -> PoolBuilder {
        PoolBuilder {
            workers: None,
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

    /// Where it is in the tree of the program; its workers are below it.
    pub fn path(&self) -> &str {
        self.inner.tree.path()
    }

    /// The supervisor of its workers, to look at: its events, its snapshot.
    pub fn tree(&self) -> &Tree {
        &self.inner.tree
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// Gives a task to a worker that is free, or the next one that will be. The arguments are encoded here and now: nothing
    /// is `()`, one is itself, several are a tuple. See [`Job`].
    #[doc(alias = "apply")]
    #[doc(alias = "apply_async")]
    pub fn submit<T: Runs>(&self, task: T, args: T::Args) -> Job<T::Output> {
        Job::new(self, &task, &args, wants(&task))
    }

    /// Has a task run over many inputs. See [`Map`].
    ///
    /// Inputs are taken as workers ask for them, and travel in chunks; still, the death of a worker costs the one task that
    /// ran. Several parameters are tuples.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::task]
    /// fn collatz(mut n: u64) -> u32 {
    ///     let mut steps = 0;
    ///     while n > 1 {
    ///         n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
    ///         steps += 1;
    ///     }
    ///     steps
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let pool = Pool::builder().workers(2).start().await?;
    ///     let mut results = pool.map(collatz, 1..).stream(); // without end
    ///     while let Some(steps) = results.next().await {
    ///         if steps? > 100 { break }
    ///     }
    ///     drop(results);
    ///     pool.shutdown().await
    /// }
    /// ```
    #[doc(alias = "starmap")]
    pub fn map<T, I>(&self, task: T, inputs: I) -> Map<I::IntoIter, T::Output>
    where
        T: Runs,
        I: IntoIterator<Item = T::Args>,
    {
        let wants = wants(&task);
        Map::new(self, &task, inputs.into_iter(), wants)
    }

    /// No more tasks: what is submitted from now on fails with `is_closed`. What was begun goes on.
    pub fn close(&self) {
        self.inner.shared.with(|plan| plan.close());
    }

    /// Waits until every job that was begun is over, and stops the workers. Streams count until their end, or until they are
    /// dropped: one that nobody reads holds this up. To be called after [`close`](Pool::close), or by whoever knows that there
    /// will be no more.
    ///
    /// # Errors
    /// It had ended before: its workers could not be started any more.
    ///
    /// # Cancel safety
    /// Dropped early, the pool goes on.
    pub async fn join(&self) -> Result<()> {
        tokio::select! {
            () = self.inner.shared.idle() => {}
            ended = self.inner.tree.ended() => return ended,
        }
        self.inner.tree.stop().await
    }

    /// [`close`](Pool::close) and [`join`](Pool::join).
    ///
    /// # Errors
    /// It had ended before: its workers could not be started any more.
    pub async fn shutdown(&self) -> Result<()> {
        self.close();
        self.join().await
    }

    /// Kills the workers and ends all jobs, with `is_closed`; waits for no task. Resolves when the workers are gone.
    ///
    /// # Errors
    /// It had ended before: its workers could not be started any more.
    ///
    /// # Cancel safety
    /// Dropped early, it goes on.
    pub async fn terminate(&self) -> Result<()> {
        let why = TaskFault::Fault(Fault::Closed { why: "its pool was terminated".to_owned() });
        self.inner.shared.with(|plan| plan.end(&why));
        self.inner.shared.kill();
        self.inner.tree.stop().await
    }

    /// What it has done, and does.
    pub fn stats(&self) -> PoolStats {
        let now = Instant::now();
        let told = |plan: &mut crate::plan::Plan| {
            let workers = plan.workers().into_iter().enumerate().map(|(index, worker)| {
                let (is_up, tasks, busy, since, given, starts) = worker;
                WorkerStats {
                    name: format!("worker-{index}"),
                    is_up,
                    tasks,
                    busy,
                    running: since.map(|since| now.saturating_duration_since(since)),
                    given,
                    restarts: starts.saturating_sub(1),
                }
            });
            let workers: Vec<_> = workers.collect();
            PoolStats {
                done: plan.done,
                failed: plan.failed,
                retried: plan.retried,
                waiting: plan.waiting(),
                given: workers.iter().map(|worker| worker.given).sum(),
                workers,
            }
        };
        self.inner.shared.with(told)
    }
}

/// What a job wants unless it says otherwise.
fn wants<T: Runs>(task: &T) -> Wants {
    Wants { entry: task.entry(), timeout: None, retries: 0, poison_after: None, priority: Priority::Normal }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("workers", &self.workers).finish_non_exhaustive()
    }
}
