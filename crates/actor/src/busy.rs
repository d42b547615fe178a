//! Which actor's handler this thread is in: whoever waits for that very actor there would wait for itself.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;

/// Tells actors of this process apart; it is the address of the actor's mailbox, so never 0.
pub(crate) type Id = usize;

thread_local! {
    /// The actor whose handler this thread polls right now, 0 if none.
    static BUSY: Cell<Id> = const { Cell::new(0) };
}

/// Whether this thread is in a handler of that actor.
pub(crate) fn is_busy(actor: Id) -> bool {
    BUSY.get() == actor
}

/// Runs a handler of that actor. What the handler spawns is not in it.
pub(crate) async fn handling<F: Future>(actor: Id, handler: F) -> F::Output {
    let mut handler = pin!(handler);
    poll_fn(|cx| within(actor, || handler.as_mut().poll(cx))).await
}

/// Does something as a part of a handler of that actor.
pub(crate) fn within<T>(actor: Id, part: impl FnOnce() -> T) -> T {
    let _busy = Busy { before: BUSY.replace(actor) };
    part()
}

/// Goes back on every way out of a poll, a panic included.
struct Busy {
    before: Id,
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.set(self.before);
    }
}
