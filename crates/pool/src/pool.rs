//! A pool, and how it ends.

use std::fmt;
use std::sync::Arc;

use futures_core::Stream;
use hatchery_actor::error::{Error, Result};
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use hatchery_process::state::RunsInPool;
use hatchery_supervisor::errors::StartError;
use hatchery_supervisor::tree::Tree;
use tokio::time::Instant;

use crate::builder::PoolBuilder;
use crate::job::Job;
use crate::map::{Map, Streamed};
use crate::plan::{Priority, Wants};
use crate::progress::ProgressStream;
use crate::shared::Shared;
use crate::stats::{PoolStats, WorkerStats};
use crate::{keeper, memory, staff};

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

impl Pool {
    pub(crate) fn new(shared: Arc<Shared>, tree: Tree) -> Pool {
        Pool { inner: Arc::new(Inner { shared, tree }) }
    }

    /// A pool to be.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
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
    pub fn submit<T: RunsInPool>(&self, task: T, args: T::Args) -> Job<T::Output> {
        Job::new(self, &task, args, wants(&task))
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
        T: RunsInPool,
        I: IntoIterator<Item = T::Args>,
    {
        let wants = wants(&task);
        Map::new(self, &task, inputs.into_iter(), wants)
    }

    /// Has a task run over the items of a stream, as they come. All else is as with [`map`](Pool::map).
    ///
    /// Any `futures_core::Stream` will do: one that `futures` builds, `tokio_stream::wrappers::ReceiverStream` around a tokio
    /// channel, or one of this library, as the items of a method that streams. An item goes to a worker as soon as one is free; those that come together travel together. The stream is polled by
    /// whoever polls the results, and no further ahead than there are workers for. If it never ends, neither do the results.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let pool = Pool::builder().workers(2).start().await?;
    ///     let (numbers, come) = tokio::sync::mpsc::channel(10);
    ///     let sends = tokio::spawn(async move {
    ///         for n in 0..100 {
    ///             let _ = numbers.send(n).await;
    ///         }
    ///     });
    ///     let squares = pool.map_stream(square, Received(come)).await?; // all of them, in order
    ///     assert_eq!(squares.len(), 100);
    ///     sends.await?;
    ///     pool.shutdown().await
    /// }
    /// # use std::{pin::Pin, task::{Context, Poll}};
    /// # struct Received(tokio::sync::mpsc::Receiver<u64>);
    /// # impl futures_core::Stream for Received {
    /// #     type Item = u64;
    /// #     fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u64>> { self.0.poll_recv(cx) }
    /// # }
    /// ```
    pub fn map_stream<T, S>(&self, task: T, inputs: S) -> Map<Streamed<S>, T::Output>
    where
        T: RunsInPool,
        S: Stream<Item = T::Args>,
    {
        let wants = wants(&task);
        Map::new(self, &task, Streamed::new(inputs), wants)
    }

    /// No more tasks: what is submitted from now on fails with `is_closed`. What was begun goes on. A pool that is a child
    /// opens again when its parent starts it again.
    pub fn close(&self) {
        self.inner.shared.with(|plan| plan.close());
    }

    /// Waits until every job that was begun is over, and stops the workers. A [`Job`] is over when its outcome is there, and
    /// can be awaited later, or when it was cancelled. Streams count until their end, or until they are dropped: one that
    /// nobody reads holds this up. To be called after [`close`](Pool::close), or by whoever knows that there
    /// will be no more.
    ///
    /// A pool that is a child ends as any child that leaves in order: its parent starts it again, and its handles reach the
    /// next one, unless its spec says otherwise ([`Restart::Transient`](hatchery_supervisor::policy::Restart::Transient)), or
    /// the parent is asked to end it ([`terminate_child`](Tree::terminate_child)). The same goes for
    /// [`shutdown`](Pool::shutdown) and [`terminate`](Pool::terminate).
    ///
    /// # Errors
    /// It had ended before: its workers could not be started any more.
    ///
    /// # Cancel safety
    /// Dropped early, the pool goes on.
    pub async fn join(&self) -> Result<()> {
        tokio::select! {
            () = self.inner.shared.idle() => {}
            ended = self.inner.tree.ended() => ended?,
        }
        self.inner.tree.stop().await?;
        // Where there is no worker, its supervisor has nothing to give up.
        match self.inner.shared.look(|plan| plan.starved()) {
            Some(why) => Err(Error::msg(format!("{} gave up: its workers do not start: {why}", self.path()))),
            None => Ok(()),
        }
    }

    /// [`close`](Pool::close) and [`join`](Pool::join). A pool that is a child is started again by its parent.
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

    /// Has it be so many workers from now on, and resolves when it is so many.
    ///
    /// Where more are wanted, they start. Where fewer are, those with the least to do leave, in order: the task that such a
    /// worker is at goes on to its end, what else it was given goes to others, it runs its finaliser, and is gone. Nothing is
    /// lost, killed or run twice, and this takes as long as those tasks do.
    ///
    /// Of a pool with [`min_workers`](PoolBuilder::min_workers) it is the number that there may be; the least is
    /// lowered to it, if it is above. Places of workers that were given up are filled again. Several calls take their
    /// turns, so the last one counts. A pool of a tree that is started again by its parent has the size of its spec again.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let pool = Pool::builder().workers(1).start().await?;
    ///     pool.resize(3).await?;
    ///     assert_eq!(pool.stats().workers.len(), 3);
    ///     pool.resize(2).await?;
    ///     assert_eq!(pool.stats().workers.len(), 2);
    ///     pool.shutdown().await
    /// }
    /// ```
    ///
    /// # Errors
    /// No workers are wanted. One does not start, as in [`start`](PoolBuilder::start): then those that had started with it
    /// leave again, and the pool has the size that it had. The pool has ended, or ends meanwhile (`is_closed`).
    ///
    /// # Cancel safety
    /// Dropped early, the pool goes on to that size; dropped while another call has its turn, this one has done nothing.
    pub async fn resize(&self, workers: usize) -> std::result::Result<(), StartError> {
        let refused = |why: TaskFault| staff::ended(self.path(), why);
        if workers == 0 {
            return Err(refused(TaskFault::Fault(Fault::Refused(
                "a pool without workers runs nothing: ask for 1 at least, or `shutdown`".to_owned(),
            ))));
        }
        let shared = self.shared();
        let _turn = shared.resizing.lock().await;
        let watcher = shared.watch();
        let run = shared.with(|plan| plan.resize(workers).map(|()| plan.runs())).map_err(refused)?;
        loop {
            let changed = watcher.changed();
            let state = shared.look(|plan| {
                let over = plan.over().cloned();
                let over = over.or_else(|| (plan.runs() != run).then(|| TaskFault::Fault(started_again())));
                plan.resized().or_else(|| over.map(|why| Err(refused(why))))
            });
            match state {
                Some(outcome) => return outcome,
                None => changed.await,
            }
        }
    }

    /// What it has done, and does. It is plain data that can be serialised, and drawn as a table when it is printed.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let pool = Pool::builder().workers(2).start().await?;
    ///     pool.map(square, 0..100).await?;
    ///     let stats = pool.stats();
    ///     assert_eq!(stats.done, 100);
    ///     println!("{stats}");
    ///     pool.shutdown().await
    /// }
    /// ```
    pub fn stats(&self) -> PoolStats {
        let shared = self.shared();
        let (mut stats, told) = shared.look(|plan| {
            let told = plan.workers(Instant::now());
            let (done, failed, retried, waiting) = (plan.done, plan.failed, plan.retried, plan.waiting());
            let stats =
                PoolStats { done, failed, retried, waiting, given: plan.given(), workers: Vec::new() };
            (stats, told)
        });
        let workers = told.into_iter().map(|told| {
            let pid = shared.pid(told.index);
            WorkerStats {
                name: keeper::name(told.index),
                is_up: told.is_up || pid.is_some(),
                is_leaving: told.is_leaving,
                pid,
                memory: pid.and_then(memory::resident),
                tasks: told.tasks,
                busy: told.busy,
                running: told.running,
                given: told.given,
                restarts: told.starts.saturating_sub(1),
            }
        });
        stats.workers = workers.collect();
        stats
    }

    /// How it gets on: a stream, of the latest state after something has changed. See [`ProgressStream`].
    pub fn progress(&self) -> ProgressStream {
        ProgressStream::new(self.inner.shared.clone())
    }
}

fn started_again() -> Fault {
    Fault::Closed { why: "its pool was started again meanwhile, with the size of its spec".to_owned() }
}

/// What a job wants unless it says otherwise.
fn wants<T: RunsInPool>(task: &T) -> Wants {
    Wants { entry: task.entry(), timeout: None, retries: 0, poison_after: None, priority: Priority::Normal }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("path", &self.path()).finish_non_exhaustive()
    }
}
