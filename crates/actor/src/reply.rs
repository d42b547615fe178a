//! An answer that is given later than its handler returns.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, caller_left, is_over};
use crate::fault::Fault;
use crate::mailbox::{Mailbox, Ticket};
use crate::outlet::Answer;

/// The right to answer a request later: the parameter `reply: Reply<T>` of a method that returns nothing. A
/// `Reply<Result<T, E>>` answers as a method that returns a `Result` does.
///
/// The handle's method is an `Ask<T>` (or `Ask<T, E>`) as of any other method, but waits as long as it takes unless
/// `.timeout(d)` says otherwise. The handler may return before there is an answer: the reply can be kept in the actor's
/// state, or move to a task of it. The request's place in its sender's window comes back when the handler returns, so
/// however many callers wait, others are heard; an actor may owe 65,536 answers at once, and further requests of that
/// kind are refused.
///
/// Every caller gets one outcome: the answer; or an error that says that the reply was dropped unanswered, or that the
/// actor stopped while it was open (`maybe_executed()` is true of both); or, if the worker dies, `is_crash()`.
///
/// Of a [`tell`](crate::ask::Ask::tell), nobody waits for the answer, and nobody leaves: `send` gives the value back, and
/// `closed` never resolves.
///
/// A lock that many may wait for, none of whom keeps it from being released:
///
/// ```
/// use std::collections::VecDeque;
///
/// use hatchery::prelude::*;
///
/// struct Lock { held: bool, waiting: VecDeque<Reply<()>> }
///
/// #[hatchery::actor]
/// impl Lock {
///     fn start() -> Self { Lock { held: false, waiting: VecDeque::new() } }
///
///     /// Answers when the caller has the lock.
///     fn acquire(&mut self, reply: Reply<()>) {
///         self.waiting.push_back(reply);
///         self.next();
///     }
///
///     fn release(&mut self) {
///         self.held = false;
///         self.next();
///     }
/// }
///
/// impl Lock {
///     fn next(&mut self) {
///         while !self.held {
///             let Some(reply) = self.waiting.pop_front() else { return };
///             // Not for one who has left meanwhile.
///             self.held = reply.send(()).is_ok();
///         }
///     }
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
///     let lock = tree.start_child(worker::<Lock>("lock", ())).await?;
///     lock.acquire().await?;
///     assert!(lock.acquire().timeout(Duration::from_millis(10)).await.unwrap_err().is_timeout());
///     lock.release().await?;
///     lock.acquire().await?;
///     tree.stop().await
/// }
/// ```
#[doc(alias = "GenServer.reply")]
#[doc(alias = "noreply")]
#[must_use = "dropped, it answers with an error that says so"]
pub struct Reply<T> {
    encode: fn(bool, &T) -> Answer,
    /// None if nobody wants an answer.
    due: Option<Due>,
}

/// An answer that is still to come.
struct Due {
    mailbox: Arc<Mailbox>,
    ticket: Ticket,
    deadline: Option<Instant>,
    /// Cancelled when the caller leaves, or when the actor is gone.
    left: CancellationToken,
}

impl<T> Reply<T> {
    /// Puts off the answer to the request of this context; `encode` is [`Answer::value`] or [`Answer::result`]. What the
    /// handler answers itself is not looked at then.
    ///
    /// # Errors
    /// The answer for the caller, if the actor owes too many already.
    #[doc(hidden)]
    pub fn new(cx: &Context, asked: bool, encode: fn(bool, &T) -> Answer) -> Result<Reply<T>, Answer> {
        if !asked {
            return Ok(Reply { encode, due: None });
        }
        let (mailbox, ticket, left) = cx.put_off().map_err(Answer::Fault)?;
        Ok(Reply { encode, due: Some(Due { mailbox, ticket, deadline: cx.deadline(), left }) })
    }

    /// Answers the caller. A value that cannot be encoded, or is too large to travel, is an error at the caller.
    ///
    /// A caller in another process who leaves at this very moment may miss an answer that was sent.
    ///
    /// # Errors
    /// The value back, as of tokio's oneshot channel: the caller has left as far as this process knows, or never
    /// wanted an answer, or the actor is gone.
    pub fn send(mut self, value: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(value);
        }
        let Some(due) = self.due.take() else { return Err(value) };
        if due.mailbox.reply(due.ticket, (self.encode)(true, &value)) { Ok(()) } else { Err(value) }
    }

    /// Resolves when the caller has left: its future was dropped, its deadline has passed by this process's clock, or it
    /// was told that the actor is gone.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn closed(&self) {
        match &self.due {
            Some(due) => caller_left(&due.left, due.deadline).await,
            None => std::future::pending().await,
        }
    }

    /// Whether [`closed`](Reply::closed) would resolve at once.
    pub fn is_closed(&self) -> bool {
        self.due.as_ref().is_some_and(|due| due.left.is_cancelled() || is_over(due.deadline))
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        // After an answer there is nothing left to say, and all of these know.
        if std::thread::panicking() {
            self.mailbox.lost(self.ticket);
        } else if is_over(self.deadline) {
            // The caller may hear this before its own timer.
            self.mailbox.reply(self.ticket, Answer::Fault(Fault::Timeout { maybe_executed: true }));
        } else {
            self.mailbox.unanswered(self.ticket);
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("is_closed", &self.is_closed()).finish_non_exhaustive()
    }
}
