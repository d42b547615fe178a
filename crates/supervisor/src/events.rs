//! What happens in a tree, as a stream: in order, bounded, told to whoever listens.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use hatchery_actor::exit::Exit;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio_util::sync::ReusableBoxFuture;

/// How many events are kept for a listener that does not take them.
const KEPT: usize = 512;

/// Something that happened in a tree. See [`Tree::events`](crate::tree::Tree::events).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TreeEvent {
    /// An incarnation is ready.
    #[non_exhaustive]
    Started {
        /// Whose, e.g. `/shop/web`.
        path: String,
        /// Counted from 1.
        incarnation: u64,
        /// The process it lives in.
        pid: Option<u32>,
    },
    /// A start has failed, or was stopped half-way. What follows is another event.
    #[non_exhaustive]
    StartFailed {
        /// Whose, e.g. `/shop/web`.
        path: String,
        /// Counted from 1.
        incarnation: u64,
        /// In words.
        why: String,
    },
    /// An incarnation that was ready has ended. What follows is another event.
    #[non_exhaustive]
    Exited {
        /// Whose, e.g. `/shop/web`.
        path: String,
        /// Counted from 1.
        incarnation: u64,
        /// How.
        exit: Exit,
    },
    /// The next incarnation will be started: after this delay, or, with none, at once or when its turn has come in its
    /// group.
    #[non_exhaustive]
    RestartScheduled {
        /// Whose, e.g. `/shop/web`.
        path: String,
        /// The next incarnation, if no start in between fails.
        incarnation: u64,
        /// The backoff; zero if there is none.
        delay: Duration,
    },
    /// A child is stopped and its spec is kept: somebody asked for it, or it left in order and is
    /// [`Restart::Transient`](crate::policy::Restart::Transient).
    #[non_exhaustive]
    Stopped {
        /// Who, e.g. `/shop/web`.
        path: String,
    },
    /// A child will not be started again by itself: it said not to try again (exit code 125), was restarted too often,
    /// or cannot be killed.
    #[non_exhaustive]
    GivenUp {
        /// Who, e.g. `/shop/web`.
        path: String,
        /// In words: how it ended at last.
        why: String,
    },
    /// A process is still there 10 s after SIGKILL; its child is given up, since nobody may be started beside it. If it ends
    /// after all, `Exited` tells of that, unless it had never been ready.
    #[non_exhaustive]
    Unkillable {
        /// Who, e.g. `/shop/web`.
        path: String,
        /// Counted from 1.
        incarnation: u64,
        /// The process, if it has one of its own.
        pid: Option<u32>,
    },
    /// A child is forgotten, and its name is free. Not told of those that end with their supervisor.
    #[non_exhaustive]
    Removed {
        /// Who, e.g. `/shop/web`.
        path: String,
    },
    /// A supervisor has ended, and all its children before it. Of the one that was asked for its events this is the last
    /// event, unless it is a child that may be started again.
    #[non_exhaustive]
    Ended {
        /// Which one, e.g. `/shop`.
        path: String,
        /// That it gave up, and why, in words, if it did.
        gave_up: Option<String>,
    },
    /// So many events have been left out here, because nobody took them and 512 were waiting.
    EventsLost(u64),
}

impl TreeEvent {
    /// Who it is about, e.g. `/shop/web`; `None` for events that were lost.
    pub fn path(&self) -> Option<&str> {
        match self {
            TreeEvent::Started { path, .. }
            | TreeEvent::StartFailed { path, .. }
            | TreeEvent::Exited { path, .. }
            | TreeEvent::RestartScheduled { path, .. }
            | TreeEvent::Stopped { path }
            | TreeEvent::GivenUp { path, .. }
            | TreeEvent::Unkillable { path, .. }
            | TreeEvent::Removed { path }
            | TreeEvent::Ended { path, .. } => Some(path),
            TreeEvent::EventsLost(_) => None,
        }
    }
}

impl fmt::Display for TreeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TreeEvent::Started { path, incarnation, pid: Some(pid) } => {
                write!(f, "{path} started (incarnation {incarnation}, process {pid})")
            }
            TreeEvent::Started { path, incarnation, pid: None } => {
                write!(f, "{path} started (incarnation {incarnation})")
            }
            TreeEvent::StartFailed { path, why, .. } => write!(f, "{path} did not start: {why}"),
            TreeEvent::Exited { path, incarnation, exit } => {
                write!(f, "{path} ended (incarnation {incarnation}): {exit}")
            }
            TreeEvent::RestartScheduled { path, incarnation, delay } if delay.is_zero() => {
                write!(f, "{path} will be started again (incarnation {incarnation})")
            }
            TreeEvent::RestartScheduled { path, incarnation, delay } => {
                write!(f, "{path} will be started again in {delay:.1?} (incarnation {incarnation})")
            }
            TreeEvent::Stopped { path } => write!(f, "{path} is stopped"),
            TreeEvent::GivenUp { path, why } => write!(f, "{path} is given up: {why}"),
            TreeEvent::Unkillable { path, pid: Some(pid), .. } => {
                write!(f, "{path} cannot be killed (process {pid})")
            }
            TreeEvent::Unkillable { path, pid: None, .. } => write!(f, "{path} cannot be killed"),
            TreeEvent::Removed { path } => write!(f, "{path} is removed"),
            TreeEvent::Ended { gave_up: Some(why), .. } => f.write_str(why),
            TreeEvent::Ended { path, gave_up: None } => write!(f, "{path} has ended"),
            TreeEvent::EventsLost(events) => write!(f, "{events} events were lost"),
        }
    }
}

/// The events of a tree, from the moment at which it was asked for them: a stream.
///
/// They are in order: what happens to one child comes as it happened (`Exited`, `RestartScheduled`, `Started`), and so
/// does what one supervisor does to its children. A listener that does not keep up loses the oldest, and is told how
/// many ([`TreeEvent::EventsLost`]); nobody ever waits for it.
#[must_use = "it tells only those who ask"]
pub struct Events {
    next: ReusableBoxFuture<'static, (Result<TreeEvent, RecvError>, Receiver<TreeEvent>)>,
}

async fn receive(mut from: Receiver<TreeEvent>) -> (Result<TreeEvent, RecvError>, Receiver<TreeEvent>) {
    (from.recv().await, from)
}

impl Events {
    /// The next event; `None` when the supervisor has ended for good and its last one was taken.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Option<TreeEvent> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Events {
    type Item = TreeEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TreeEvent>> {
        let this = self.get_mut();
        let Poll::Ready((received, from)) = this.next.poll(cx) else { return Poll::Pending };
        this.next.set(receive(from));
        Poll::Ready(match received {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(lost)) => Some(TreeEvent::EventsLost(lost)),
            Err(RecvError::Closed) => None,
        })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// Where a supervisor tells what happens. What happens below is told above, too.
#[derive(Default)]
pub(crate) struct News {
    state: Mutex<State>,
    above: OnceLock<Arc<News>>,
}

#[derive(Default)]
struct State {
    /// None before anybody listens, since it takes room.
    listeners: Option<Sender<TreeEvent>>,
    over: bool,
}

impl News {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Wakers of listeners run under this lock; they only wake.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on.
    pub(crate) fn listen(&self) -> Events {
        let mut state = self.lock();
        let over = state.over;
        let from = state.listeners.get_or_insert_with(|| broadcast::channel(KEPT).0).subscribe();
        if over {
            state.listeners = None;
        }
        Events { next: ReusableBoxFuture::new(receive(from)) }
    }

    /// What is told here is told there as well.
    pub(crate) fn rise_to(&self, above: Arc<News>) {
        // The first word counts: a supervisor has one parent.
        let _ = self.above.set(above);
    }

    /// Tells an event, which is made only if anybody listens.
    pub(crate) fn tell(&self, event: impl FnOnce() -> TreeEvent) {
        if self.is_heard() {
            self.pass_on(&event());
        }
    }

    fn is_heard(&self) -> bool {
        let here = self.lock().listeners.as_ref().is_some_and(|sender| sender.receiver_count() > 0);
        here || self.above.get().is_some_and(|above| above.is_heard())
    }

    fn pass_on(&self, event: &TreeEvent) {
        let state = self.lock();
        if let Some(sender) = &state.listeners {
            // Fails if the last listener has just left.
            let _ = sender.send(event.clone());
        }
        drop(state);
        if let Some(above) = self.above.get() {
            above.pass_on(event);
        }
    }

    /// There will be no others.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        let listeners = state.listeners.take();
        drop(state);
        drop(listeners);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(number: u64) -> TreeEvent {
        TreeEvent::Removed { path: format!("/tree/{number}") }
    }

    #[tokio::test]
    async fn a_listener_hears_in_order_and_is_told_how_much_it_missed() {
        let news = News::default();
        news.tell(|| unreachable!("nobody listens"));
        let mut events = news.listen();
        let told = KEPT as u64 + 10;
        (0..told).for_each(|number| news.tell(|| removed(number)));
        news.end();
        assert_eq!(events.next().await, Some(TreeEvent::EventsLost(10)));
        for number in 10..told {
            assert_eq!(events.next().await, Some(removed(number)));
        }
        assert_eq!(events.next().await, None);
        assert_eq!(events.next().await, None);
        assert_eq!(news.listen().next().await, None, "it is over");
    }

    #[tokio::test]
    async fn what_happens_below_is_heard_above() {
        let (above, below) = (Arc::new(News::default()), News::default());
        below.rise_to(above.clone());
        let (mut high, mut low) = (above.listen(), below.listen());
        below.tell(|| removed(1));
        above.tell(|| removed(2));
        below.end();
        assert_eq!((high.next().await, high.next().await), (Some(removed(1)), Some(removed(2))));
        assert_eq!((low.next().await, low.next().await), (Some(removed(1)), None));
    }
}
