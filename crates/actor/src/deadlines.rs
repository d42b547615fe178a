//! Watches over the deadlines of the requests before a seat.
//!
//! One task for all of them: a timer for each would cost every ask more than its way through the outlet. Deadlines are
//! almost always met, so nothing is kept in order; at the first one that may have passed, all are looked at.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep};

use crate::seat::Seat;

/// Has the deadlines of this seat watched over, by a task of the current runtime, or of the one on which a seat
/// elsewhere is followed.
///
/// # Panics
/// Outside of a runtime with timers.
pub(crate) fn watch(seat: &Arc<Seat>) {
    let mut watcher = Watcher { seat: Arc::downgrade(seat), timer: None, over: false };
    let elsewhere = seat.exchange().and_then(|exchange| exchange.runtime());
    let _entered = elsewhere.as_ref().map(Handle::enter);
    // Where there are no timers this panics, here rather than in the task.
    watcher.timer = Some(Box::pin(tokio::time::sleep_until(Instant::now())));
    tokio::spawn(watcher);
}

struct Watcher {
    seat: Weak<Seat>,
    timer: Option<Pin<Box<Sleep>>>,
    /// It has ended because there was nothing left to watch.
    over: bool,
}

impl Future for Watcher {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let watcher = self.get_mut();
        loop {
            // Without the seat there is nobody left who waits.
            let (Some(seat), Some(timer)) = (watcher.seat.upgrade(), &mut watcher.timer) else {
                return Poll::Ready(());
            };
            let Some(next) = seat.look(Instant::now(), cx) else {
                watcher.over = true;
                return Poll::Ready(());
            };
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let (false, Some(seat)) = (self.over, self.seat.upgrade()) {
            seat.unwatched();
        }
    }
}
