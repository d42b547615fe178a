//! An actor's queue: requests in order of arrival, with control that overtakes them.
//!
//! It is bounded by what its senders' windows add up to: a channel counts its own places and a peer that takes more
//! is refused by that channel, so nothing here needs to wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hatchery_wire::Body;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::outlet::Answer;

/// Where the answer to a request goes, and the places in its sender's window.
pub trait ReturnPath: Send + Sync + 'static {
    /// Answers a request; this gives its place back, too.
    fn answer(&self, id: u64, answer: Answer);

    /// Gives back the places of requests that want no answer.
    fn release(&self, places: u32);
}

/// A request that has arrived.
pub struct Parcel {
    /// The sender's number for it.
    pub id: u64,
    /// Whether an answer is wanted.
    pub ask: bool,
    /// When its caller stops waiting, by this process's clock.
    pub deadline: Option<Instant>,
    /// The encoded message.
    pub body: Body,
    /// Where the answer goes.
    pub from: Arc<dyn ReturnPath>,
}

/// What the actor does next.
pub(crate) enum Next {
    Parcel(Parcel),
    /// The mailbox is empty: a good moment to settle what is owed.
    Idle,
    Stop,
}

/// The queue itself.
#[derive(Default)]
pub struct Mailbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Parcel>,
    running: Option<Running>,
    stopping: bool,
    closed: bool,
    waker: Option<Waker>,
}

/// The request that a handler works on right now.
struct Running {
    id: u64,
    from: Arc<dyn ReturnPath>,
    caller_left: bool,
    watcher: Option<Waker>,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> Arc<Mailbox> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request arrives.
    ///
    /// # Errors
    /// The request back if the actor has stopped: [`refuse`](Parcel::refuse) it, or answer it another way.
    pub fn push(&self, parcel: Parcel) -> Result<(), Parcel> {
        let mut state = self.lock();
        if state.closed {
            return Err(parcel);
        }
        state.queue.push_back(parcel);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// A caller has left. If its request has not begun it never will; if it runs, the handler can see it.
    pub fn withdraw(&self, id: u64, from: &Arc<dyn ReturnPath>) {
        let mut state = self.lock();
        if let Some(running) = &mut state.running {
            if running.id == id && Arc::ptr_eq(&running.from, from) {
                running.caller_left = true;
                let watcher = running.watcher.take();
                drop(state);
                if let Some(watcher) = watcher {
                    watcher.wake();
                }
                return;
            }
        }
        let found = state.queue.iter().position(|p| p.id == id && Arc::ptr_eq(&p.from, from));
        if let Some(parcel) = found.and_then(|index| state.queue.remove(index)) {
            drop(state);
            // The caller is gone, but its place in the window has to come back.
            parcel.from.answer(id, Answer::Fault(Fault::Withdrawn));
        }
        // Not found: it has been answered, and the answer and the withdrawal have crossed.
    }

    /// The actor shall stop after the message it is at.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What to do next; `idle` asks to be told once when there is nothing.
    pub(crate) fn poll_next(&self, idle: bool, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.lock();
        if state.stopping {
            return Poll::Ready(Next::Stop);
        }
        if let Some(parcel) = state.queue.pop_front() {
            state.running =
                Some(Running { id: parcel.id, from: parcel.from.clone(), caller_left: false, watcher: None });
            return Poll::Ready(Next::Parcel(parcel));
        }
        if idle {
            return Poll::Ready(Next::Idle);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The request that was running is over.
    pub(crate) fn finished(&self) {
        let running = self.lock().running.take();
        drop(running);
    }

    /// Resolves when the caller of the running request has left; never if nothing runs.
    pub(crate) fn poll_caller_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.lock().running {
            Some(running) if running.caller_left => Poll::Ready(()),
            Some(running) => {
                running.watcher = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    /// The actor is gone: what is left, and all that still arrives, is answered `Stopping`.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let rest = std::mem::take(&mut state.queue);
        drop(state);
        rest.into_iter().for_each(Parcel::refuse);
    }
}

impl Parcel {
    /// Answers it `Stopping`, and gives its place back.
    pub fn refuse(self) {
        if self.ask {
            self.from.answer(self.id, Answer::Fault(Fault::Stopping));
        } else {
            self.from.release(1);
        }
    }
}
