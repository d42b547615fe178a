//! Who wants to know of the ends in a seat: exactly one [`Down`] for each incarnation that sat there.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use crate::exit::{Exit, Status};
use crate::incarnation::Incarnation;

/// How many ends are kept for a monitor that nobody polls. Restarts come by the dozen at worst before a supervisor
/// gives up; an exit holds up to a hundred lines of text.
const KEPT: usize = 128;

/// What a monitor of one incarnation says after it has told of its end.
const ENDED: &str = "that incarnation has ended";

/// An incarnation has ended, or the seat is closed.
#[derive(Clone, Debug)]
pub struct Down {
    path: Arc<str>,
    what: What,
    missed: u64,
}

#[derive(Clone, Debug)]
enum What {
    Ended { incarnation: u64, exit: Arc<Exit> },
    Closed { why: Arc<str> },
}

impl Down {
    /// The seat, e.g. `/shop/web`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Which incarnation has ended, counted from 1; `None` if nobody sat there and nobody will.
    pub fn incarnation(&self) -> Option<u64> {
        match self.what {
            What::Ended { incarnation, .. } => Some(incarnation),
            What::Closed { .. } => None,
        }
    }

    /// How it ended; `None` if nobody sat there and nobody will.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.what {
            What::Ended { exit, .. } => Some(exit),
            What::Closed { .. } => None,
        }
    }

    /// Whether it is not about an incarnation: nobody sat there, and nobody will sit there again.
    pub fn is_closed(&self) -> bool {
        matches!(self.what, What::Closed { .. })
    }

    /// How many ends between this one and the one before it were left out, because nobody took them and 128 were
    /// waiting: 0 unless the monitor lagged that far behind.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Ended { incarnation, exit } => {
                write!(f, "{} (incarnation {incarnation}): {exit}", self.path)
            }
            What::Closed { why } => write!(f, "{} is gone: {why}", self.path),
        }
    }
}

/// Tells of the end of an incarnation: a future. [`downs`](Monitor::downs) makes it a stream of all ends.
///
/// It is about the incarnation that sat there when it was made, or the next one if nobody did. Unlike an ask it does
/// not depend on being polled: an end that nobody waits for is kept. If the seat is closed and nothing is left to tell,
/// it says that ([`Down::is_closed`]), at once and however often it is asked.
///
/// # Cancel safety
/// Cancel safe: dropped inside a `select!` by reference, it goes on where it was.
#[doc(alias = "sentinel")]
#[must_use = "it tells only those who ask"]
pub struct Monitor {
    inbox: Arc<Inbox>,
    /// What has to be there for it to be told.
    _keeps: Option<Arc<dyn Any + Send + Sync>>,
}

/// One [`Down`] for each incarnation, in order, until the seat is closed. Made by [`Monitor::downs`].
///
/// None is missed, also if nobody polls while several end. Only if 128 are waiting already, further ones push out
/// those in the middle: the first and the latest are always there, and [`Down::missed`] counts what is not.
#[must_use = "it tells only those who ask"]
pub struct Downs {
    monitor: Monitor,
}

impl Monitor {
    fn new(path: &str, state: State) -> Monitor {
        Monitor { inbox: Arc::new(Inbox { path: path.into(), state: Mutex::new(state) }), _keeps: None }
    }

    /// The same, which keeps this.
    pub(crate) fn keeping(mut self, what: Arc<dyn Any + Send + Sync>) -> Monitor {
        self._keeps = Some(what);
        self
    }

    /// Of a seat in which nobody will sit any more.
    pub(crate) fn of_closed(path: &str, why: &str) -> Monitor {
        Monitor::new(path, State { closed: Some(why.into()), ..State::default() })
    }

    /// Of one incarnation that has ended.
    pub(crate) fn of_past(path: &str, pin: &Incarnation) -> Monitor {
        let monitor = Monitor::new(path, State { once: true, ..State::default() });
        let exit = Arc::new(pin.exit.get().cloned().unwrap_or_else(|| Exit::new(Status::Unknown)));
        let what = What::Ended { incarnation: pin.number, exit };
        monitor.inbox.push(Down { path: path.into(), what, missed: 0 });
        monitor
    }

    /// All ends from here on, in order.
    pub fn downs(self) -> Downs {
        Downs { monitor: self }
    }
}

impl Future for Monitor {
    type Output = Down;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Down> {
        self.inbox.poll(cx).map(|next| next.unwrap_or_else(|closed| closed))
    }
}

impl Downs {
    /// The next end; `None` when the seat is closed.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost.
    pub async fn next(&mut self) -> Option<Down> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Down>> {
        self.monitor.inbox.poll(cx).map(Result::ok)
    }
}

impl Stream for Downs {
    type Item = Down;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Down>> {
        self.get_mut().poll(cx)
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("path", &self.inbox.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for Downs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Downs").field("path", &self.monitor.inbox.path).finish_non_exhaustive()
    }
}

/// What waits for one monitor.
struct Inbox {
    path: Arc<str>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Down>,
    /// Why there will be no more.
    closed: Option<Arc<str>>,
    /// It is about one incarnation only.
    once: bool,
    waker: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next end, or that there will be none.
    fn poll(&self, cx: &Context<'_>) -> Poll<Result<Down, Down>> {
        let mut state = self.lock();
        if let Some(down) = state.waiting.pop_front() {
            return Poll::Ready(Ok(down));
        }
        if let Some(why) = state.closed.clone() {
            return Poll::Ready(Err(Down { path: self.path.clone(), what: What::Closed { why }, missed: 0 }));
        }
        let old = state.waker.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }

    fn push(&self, mut down: Down) -> Option<Waker> {
        let mut state = self.lock();
        if state.closed.is_some() {
            return None;
        }
        if state.once {
            state.closed = Some(ENDED.into());
        }
        if state.waiting.len() == KEPT {
            // The first one stays: the future is about that one.
            if let Some(lost) = state.waiting.remove(1) {
                let next = state.waiting.get_mut(1).unwrap_or(&mut down);
                next.missed += lost.missed + 1;
            }
        }
        state.waiting.push_back(down);
        state.waker.take()
    }

    fn close(&self, why: Arc<str>) -> Option<Waker> {
        let mut state = self.lock();
        state.closed.get_or_insert(why);
        state.waker.take()
    }
}

/// The monitors of one seat.
///
/// They are found by weak references, so that dropping a monitor takes no lock: it may happen in the drop of a waker.
#[derive(Default)]
pub(crate) struct Monitors {
    all: Vec<Weak<Inbox>>,
}

impl Monitors {
    /// One more, of the next end only or of all.
    pub(crate) fn add(&mut self, path: &str, once: bool) -> Monitor {
        let monitor = Monitor::new(path, State { once, ..State::default() });
        if self.all.len() == self.all.capacity() {
            self.all.retain(|inbox| inbox.strong_count() > 0);
        }
        self.all.push(Arc::downgrade(&monitor.inbox));
        monitor
    }

    /// An incarnation has ended. What is returned is to be told without any lock.
    pub(crate) fn ended(&mut self, path: &str, incarnation: u64, exit: &Arc<Exit>) -> Told {
        let path: Arc<str> = path.into();
        self.tell(|inbox| {
            let what = What::Ended { incarnation, exit: exit.clone() };
            inbox.push(Down { path: path.clone(), what, missed: 0 })
        })
    }

    /// Nobody will sit there again.
    pub(crate) fn closed(&mut self, why: &str) -> Told {
        let why: Arc<str> = why.into();
        let told = self.tell(|inbox| inbox.close(why.clone()));
        self.all = Vec::new();
        told
    }

    fn tell(&mut self, mut tell: impl FnMut(&Inbox) -> Option<Waker>) -> Told {
        let mut told = Told::default();
        self.all.retain(|inbox| {
            let Some(inbox) = inbox.upgrade() else { return false };
            told.wakers.extend(tell(&inbox));
            told.held.push(inbox);
            true
        });
        told
    }
}

/// Whom to wake when no lock is held. The inboxes are held as long, since they may be the last ones, with wakers.
#[derive(Default)]
#[must_use = "somebody waits"]
pub(crate) struct Told {
    wakers: Vec<Waker>,
    held: Vec<Arc<Inbox>>,
}

impl Told {
    pub(crate) fn wake(self) {
        self.wakers.into_iter().for_each(Waker::wake);
        drop(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> Arc<Exit> {
        Arc::new(Exit::new(Status::Signal(9)))
    }

    fn now(downs: &mut Downs) -> Option<Option<Down>> {
        match downs.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }

    #[test]
    fn ends_are_kept_in_order_and_told_once() {
        let mut monitors = Monitors::default();
        let mut downs = monitors.add("/a", false).downs();
        assert!(now(&mut downs).is_none());
        for incarnation in 1..=50 {
            monitors.ended("/a", incarnation, &exit()).wake();
        }
        for incarnation in 1..=50 {
            let down = now(&mut downs).unwrap().unwrap();
            assert_eq!((down.path(), down.incarnation(), down.missed()), ("/a", Some(incarnation), 0));
            assert_eq!(down.exit().unwrap().signal(), Some(9));
        }
        assert!(now(&mut downs).is_none());
        monitors.closed("over").wake();
        assert!(now(&mut downs).unwrap().is_none());
        assert!(now(&mut downs).unwrap().is_none());
    }

    #[test]
    fn who_lags_too_far_behind_is_told_how_many_it_missed() {
        let mut monitors = Monitors::default();
        let mut downs = monitors.add("/a", false).downs();
        let all = 10 * KEPT as u64;
        for incarnation in 1..=all {
            monitors.ended("/a", incarnation, &exit()).wake();
        }
        monitors.closed("over").wake();
        let mut seen = Vec::new();
        while let Some(Some(down)) = now(&mut downs) {
            seen.push((down.incarnation().unwrap(), down.missed()));
        }
        assert_eq!(seen.len(), KEPT);
        assert_eq!(seen[0], (1, 0));
        assert_eq!(seen[1], (2 + all - KEPT as u64, all - KEPT as u64));
        assert_eq!(seen.last(), Some(&(all, 0)));
    }

    #[test]
    fn monitors_that_come_and_go_leave_nothing_behind() {
        let mut monitors = Monitors::default();
        let _stays = monitors.add("/a", false);
        for _ in 0..10_000 {
            drop(monitors.add("/a", false));
        }
        assert!(monitors.all.len() < 100);
    }
}
