//! How a pool gets on, as a stream: the latest state, and only when something has changed.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use hatchery_actor::child::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::plan::Plan;
use crate::shared::Shared;

/// How far items are apart unless told otherwise.
const EVERY: Duration = Duration::from_millis(50);

/// How far a pool has got, at one moment. See [`Pool::progress`](crate::pool::Pool::progress).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// Tasks that have a result, since the pool began.
    pub done: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Tries that followed another one.
    pub retried: u64,
    /// Tasks that wait for a worker.
    pub waiting: u64,
    /// Tasks that workers have and have not finished.
    pub given: u64,
    /// Workers that are up.
    pub workers: usize,
}

impl Progress {
    fn of(plan: &Plan) -> Progress {
        Progress {
            done: plan.done,
            failed: plan.failed,
            retried: plan.retried,
            waiting: plan.waiting(),
            given: plan.given(),
            workers: plan.up(),
        }
    }

    /// Tasks that have a result, or have failed for good. Not those that were cancelled, nor those whose arguments could not be
    /// encoded, which never were tasks of the pool.
    pub fn finished(&self) -> u64 {
        self.done + self.failed
    }
}

/// The longest time between two items: none has to be added to a moment that is later than any clock goes.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How a pool gets on: a stream, for progress bars and logs.
///
/// The first item comes at once, and another one when something has changed, 50 ms after the one before at the earliest
/// ([`every`](ProgressStream::every)). It leaves out what was in between: an item is the state at its moment, and what changed
/// last is always told. While nothing happens, nothing is done. It ends when the pool has ended, with the state at its end, of which
/// it learns as late as of any change; of one in a tree, also when its parent has started it again. It does not keep the
/// pool alive.
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
///     let mut progress = pool.progress().every(Duration::from_millis(10));
///     let bar = tokio::spawn(async move {
///         let mut last = 0;
///         while let Some(now) = progress.next().await {
///             println!("{} done, {} waiting", now.done, now.waiting);
///             last = now.done;
///         }
///         last
///     });
///     pool.map(square, 0..1_000).await?;
///     pool.shutdown().await?;
///     assert_eq!(bar.await.unwrap(), 1_000);
///     Ok(())
/// }
/// ```
///
/// # Cancel safety
/// [`next`](ProgressStream::next) loses nothing but what is left out anyway.
#[must_use = "it does nothing until it is polled"]
pub struct ProgressStream {
    shared: Arc<Shared>,
    every: Duration,
    run: u64,
    /// What was told last, and when.
    last: Option<(Progress, Instant)>,
    waits: Option<BoxFuture<Option<Progress>>>,
    is_over: bool,
}

impl ProgressStream {
    pub(crate) fn new(shared: Arc<Shared>) -> ProgressStream {
        let run = shared.look(|plan| plan.runs());
        ProgressStream { shared, every: EVERY, run, last: None, waits: None, is_over: false }
    }

    /// How far items are apart at least; 50 ms unless told otherwise.
    pub fn every(mut self, pause: Duration) -> Self {
        self.every = pause.min(LONGEST);
        self.waits = None;
        self
    }

    /// The next state; `None` when the pool has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Progress> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

/// Waits until there is something else to tell than before, or nothing any more.
async fn news(
    shared: Arc<Shared>,
    every: Duration,
    run: u64,
    last: Option<(Progress, Instant)>,
) -> Option<Progress> {
    let mut not_before = last.map(|(_, at)| at + every);
    let watcher = shared.watch();
    loop {
        if let Some(at) = not_before {
            tokio::time::sleep_until(at).await;
        }
        let changed = watcher.changed();
        let (now, is_over) =
            shared.look(|plan| (Progress::of(plan), plan.over().is_some() || plan.runs() != run));
        if last.is_none_or(|(last, _)| last != now) {
            return Some(now);
        }
        if is_over {
            return None;
        }
        // However often it is told of changes that are none, it looks this often at most.
        not_before = Some(Instant::now() + every);
        changed.await;
    }
}

impl Stream for ProgressStream {
    type Item = Progress;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Progress>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        let waits = this
            .waits
            .get_or_insert_with(|| Box::pin(news(this.shared.clone(), this.every, this.run, this.last)));
        let next = std::task::ready!(waits.as_mut().poll(cx));
        this.waits = None;
        match next {
            Some(progress) => this.last = Some((progress, Instant::now())),
            None => this.is_over = true,
        }
        Poll::Ready(next)
    }
}

impl fmt::Debug for ProgressStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressStream").field("every", &self.every).finish_non_exhaustive()
    }
}
