//! What a handler can ask about the request it works on and the actor it belongs to.

use std::sync::Arc;

use tokio::time::Instant;

use crate::mailbox::Mailbox;
use crate::trace::TraceContext;

/// Given to every handler that has a parameter `&Context`.
#[derive(Clone)]
pub struct Context {
    path: Arc<str>,
    incarnation: u64,
    mailbox: Arc<Mailbox>,
    /// Which of the mailbox's requests this is about, counted from 1.
    request: u64,
    deadline: Option<Instant>,
    trace: Option<Box<TraceContext>>,
}

impl Context {
    /// The context of one incarnation.
    #[doc(hidden)]
    pub fn new(path: &str, incarnation: u64, mailbox: Arc<Mailbox>) -> Context {
        Context { path: path.into(), incarnation, mailbox, request: 0, deadline: None, trace: None }
    }

    /// Where the actor sits, e.g. `/shop/web`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Which incarnation of its seat this is, counted from 1.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// When the caller of this request stops waiting, by this process's clock; `None` for a tell, and outside of a
    /// request.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The trace that this request belongs to, with a span of the handler's own whose parent is the caller's; `None` if
    /// it belongs to none, and outside of a request. What the handler asks goes on from there by itself.
    #[doc(alias = "traceparent")]
    pub fn trace(&self) -> Option<TraceContext> {
        self.trace.as_deref().copied()
    }

    /// Resolves when the caller of this request has left (its future was dropped, or its deadline passed). The
    /// handler is not torn down by that: it may use this to stop early. Never resolves outside of a request: in
    /// `start`, in `stopped`, or in a clone that has outlived the request.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn cancelled(&self) {
        match self.mailbox.caller_left(self.request) {
            Some(left) => left.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Stops this actor in order after the current message: what waits behind it is answered `is_stopping()`, and
    /// `stopped` runs. Its supervisor decides what comes then.
    pub fn stop(&self) {
        self.mailbox.stop();
    }

    /// The next request is taken out of the mailbox.
    pub(crate) fn begin(&mut self, deadline: Option<Instant>, trace: Option<&TraceContext>) {
        self.request += 1;
        self.deadline = deadline;
        self.trace = trace.map(|trace| Box::new(trace.child()));
    }

    /// The last request is over.
    pub(crate) fn rest(&mut self) {
        self.deadline = None;
        self.trace = None;
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("path", &self.path)
            .field("incarnation", &self.incarnation)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
