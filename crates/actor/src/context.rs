//! What a handler can ask about the request it works on and the actor it belongs to.

use std::future::poll_fn;
use std::sync::Arc;

use tokio::time::Instant;

use crate::mailbox::Mailbox;

/// Given to every handler that has a parameter `&Context`.
#[derive(Clone)]
pub struct Context {
    path: Arc<str>,
    incarnation: u64,
    mailbox: Arc<Mailbox>,
    deadline: Option<Instant>,
}

impl Context {
    /// The context of one incarnation.
    pub fn new(path: &str, incarnation: u64, mailbox: Arc<Mailbox>) -> Context {
        Context { path: path.into(), incarnation, mailbox, deadline: None }
    }

    /// Where the actor sits, e.g. `/shop/web`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Which incarnation of its seat this is, counted from 1.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// When the caller of this request stops waiting, by this process's clock.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Resolves when the caller of this request has left (its future was dropped, or its deadline passed). The
    /// handler is not torn down by that: it may use this to stop early.
    ///
    /// Cancel safe.
    pub async fn cancelled(&self) {
        poll_fn(|cx| self.mailbox.poll_caller_left(cx)).await;
    }

    /// Stops this actor in order after the current message. Its supervisor decides what comes then.
    pub fn stop(&self) {
        self.mailbox.stop();
    }

    pub(crate) fn begin(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
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
