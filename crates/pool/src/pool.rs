//! A pool, and how it starts.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hatchery_actor::ask::deadline;
use hatchery_actor::child::{BoxFuture, Order, Rung, Shutdown, Start, Started, Supervised};
use hatchery_actor::error::Result;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::{ActorRef, AnyHandle};
use hatchery_actor::settings;
use hatchery_actor::settings::Settings;
use hatchery_actor::task_handle::TaskFault;
use hatchery_process::task::Runs;
use hatchery_supervisor::builder::Supervisor;
use hatchery_supervisor::errors::StartError;
use hatchery_supervisor::nested::Nested;
use hatchery_supervisor::policy::CountDeaths;
use hatchery_supervisor::spec::ChildSpec;
use hatchery_supervisor::tree::Tree;
use tokio::task::JoinHandle;
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

/// Chunks that a worker has at most besides the one that it works on. As they take about a millisecond each, these are far
/// more than it takes to bring the next one; and as many are taken from inputs that may be without end.
const MOST_PREFETCH: usize = 64;

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

    /// Starts it, and resolves when all its workers are ready.
    ///
    /// # Errors
    /// A worker does not start: its initializer fails, or takes too long; then the others are stopped, and nothing is tried
    /// again. The program did not come through the door, or the name is taken.
    ///
    /// # Cancel safety
    /// Dropped early, it stops what it has started, in the background.
    pub async fn start(self) -> std::result::Result<Pool, StartError> {
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
        Ok(Pool { inner: Arc::new(Inner { shared, tree }) })
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

    fn supervisor(&self) -> Supervisor {
        let usual = || (u32::try_from(2 * self.count() + 4).unwrap_or(u32::MAX), Duration::from_secs(60));
        let (max, within) = self.intensity.unwrap_or_else(usual);
        Supervisor::dynamic().count_deaths(CountDeaths::Early).intensity(max, within)
    }

    fn shared(&self) -> Arc<Shared> {
        Shared::new(Rules { prefetch: self.prefetch, max_tasks: self.max_tasks }, self.count())
    }

    /// Starts the workers, all at once, and those who look after them.
    async fn begin(
        &self,
        tree: &Tree,
        shared: &Arc<Shared>,
    ) -> std::result::Result<Vec<JoinHandle<()>>, StartError> {
        let starts: Vec<_> = (0..self.count())
            .map(|index| {
                let (tree, spec) = (tree.clone(), self.worker(index, shared));
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
        let keep = |(index, seat)| tokio::spawn(keeper::keep(shared.clone(), index, seat));
        Ok(seats.into_iter().enumerate().map(keep).collect())
    }

    /// The worker of this number.
    fn worker(&self, index: usize, shared: &Arc<Shared>) -> std::result::Result<ChildSpec<Post>, StartError> {
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

/// What starts a pool as a child of a supervisor. See [`PoolBuilder::spec`].
pub struct PoolChild {
    name: String,
    builder: Arc<PoolBuilder>,
    nested: Nested,
    shared: Arc<Shared>,
    /// Those who look after the workers of the latest incarnation.
    keepers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What seats of pools say in place of an actor's name.
const POOL: &str = "hatchery::Pool";

impl PoolChild {
    fn new(name: String, builder: PoolBuilder) -> PoolChild {
        let (nested, shared) = (Nested::new(name.clone(), builder.supervisor()), builder.shared());
        PoolChild { name, builder: Arc::new(builder), nested, shared, keepers: Arc::default() }
    }
}

impl Supervised for Pool {
    type Handle = Pool;

    fn kind() -> &'static str {
        POOL
    }
}

impl Start for PoolChild {
    type Handle = Pool;

    fn name(&self) -> &str {
        &self.name
    }

    fn actor(&self) -> &'static str {
        POOL
    }

    fn check(&self) -> std::result::Result<(), Fault> {
        if self.builder.name.is_some() {
            return Err(Fault::Refused(
                "a pool that is a child has the name of its spec: leave out `PoolBuilder::name`".to_owned(),
            ));
        }
        let once = [&self.builder.initializer, &self.builder.finaliser].into_iter().flatten();
        once.cloned().try_for_each(|once| once.map(drop))?;
        self.nested.check()
    }

    fn check_settings(&self, settings: &Settings) -> std::result::Result<(), Fault> {
        if *settings == Settings::default() {
            return Ok(());
        }
        Err(Fault::Refused(
            "an environment, a directory and limits belong to the workers of a pool: write them on its builder, before \
             `spec`"
                .to_owned(),
        ))
    }

    fn gone_within(&self) -> Option<Duration> {
        self.nested.gone_within()
    }

    fn has_mailbox(&self) -> bool {
        false
    }

    fn is_process(&self) -> bool {
        false
    }

    fn handle(&self, reference: ActorRef) -> Pool {
        let tree = self.nested.handle(reference);
        Pool { inner: Arc::new(Inner { shared: self.shared.clone(), tree }) }
    }

    fn start(&self, order: Order) -> BoxFuture<std::result::Result<Started, Fault>> {
        let tree = self.nested.handle(ActorRef::new(order.seat.clone()));
        let (timeout, deadline) = (order.timeout, deadline(order.timeout));
        let starts = self.nested.start(order);
        let (builder, shared, keepers) = (self.builder.clone(), self.shared.clone(), self.keepers.clone());
        Box::pin(async move {
            shared.set_path(tree.path());
            // Those of the incarnation before have ended, or are about to: their seats are closed.
            let before = std::mem::take(&mut *keepers.lock().unwrap_or_else(PoisonError::into_inner));
            for keeper in before {
                let _ = keeper.await;
            }
            shared.begin_again();
            let mut started = Unless(Some(starts.await?));
            let begun = tokio::time::timeout_at(deadline, builder.begin(&tree, &shared)).await;
            let Some(Started { child, line }) = started.0.take() else { return Err(Fault::Stopping) };
            if let Ok(Ok(now)) = begun {
                *keepers.lock().unwrap_or_else(PoisonError::into_inner) = now;
                return Ok(Started { child, line });
            }
            child.stop(Rung::Kill);
            let exit = child.exited().await;
            Err(match begun {
                Ok(Err(error)) => Fault::StartFailed(error.to_string()),
                _ => {
                    let what = format!("its workers were not ready within {timeout:?}");
                    Fault::Late { what, exit: Box::new((*exit).clone()) }
                }
            })
        })
    }
}

/// Ends what has been started, if its start is given up.
struct Unless(Option<Started>);

impl Drop for Unless {
    fn drop(&mut self) {
        if let Some(started) = &self.0 {
            started.child.stop(Rung::Kill);
        }
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

    /// Waits until every job that was begun is over, and stops the workers. A [`Job`] is over when its outcome is there, and
    /// can be awaited later, or when it was cancelled. Streams count until their end, or until they are dropped: one that
    /// nobody reads holds this up. To be called after [`close`](Pool::close), or by whoever knows that there
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
