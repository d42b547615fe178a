//! Which actor's handler this thread is in: what it asks is waited for by the request that the handler works on, and
//! whoever waits for that very actor there would wait for itself.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use crate::chain::{Chain, Life, Link};

/// Tells actors of this process apart; it is the address of the actor's mailbox, so never 0.
pub(crate) type Id = usize;

thread_local! {
    /// The handler that this thread polls right now.
    static HERE: Cell<Option<Box<Here>>> = const { Cell::new(None) };
}

/// What a handler, and what it asks, are known by.
pub(crate) struct Here {
    actor: Id,
    life: Life,
    path: Arc<str>,
    /// The request that it works on, counted from 1; 0 for a start.
    number: u64,
    /// Whose running requests wait for that one.
    before: Option<Chain>,
    /// The same with that one behind them, once it has asked.
    chain: Option<Chain>,
}

/// The handlers of one actor, one after another.
pub(crate) struct Handlers {
    /// With the thread while it polls one.
    here: Option<Box<Here>>,
}

impl Handlers {
    /// Of the actor that sits there.
    pub(crate) fn new(actor: Id, life: Life, path: &str) -> Handlers {
        let here = Here { actor, life, path: path.into(), number: 0, before: None, chain: None };
        Handlers { here: Some(Box::new(here)) }
    }

    /// The actor works on another request, behind this chain.
    pub(crate) fn begin(&mut self, before: Option<Chain>) {
        if let Some(here) = &mut self.here {
            here.number += 1;
            here.before = before;
            here.chain = None;
        }
    }

    /// Runs the handler of the present request. What it spawns is not in it.
    pub(crate) async fn run<F: Future>(&mut self, handler: F) -> F::Output {
        let mut handler = pin!(handler);
        poll_fn(|cx| {
            let _inside = Inside { before: HERE.replace(self.here.take()), handlers: &mut *self };
            handler.as_mut().poll(cx)
        })
        .await
    }
}

/// Goes back on every way out of a poll, a panic included.
struct Inside<'a> {
    before: Option<Box<Here>>,
    handlers: &'a mut Handlers,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.handlers.here = HERE.replace(self.before.take());
    }
}

/// Looks at the handler that this thread is in.
fn here<T>(look: impl FnOnce(&mut Here) -> T) -> Option<T> {
    // A thread that ends is in none.
    HERE.try_with(|cell| {
        let mut here = cell.take()?;
        let seen = look(&mut here);
        cell.set(Some(here));
        Some(seen)
    })
    .ok()
    .flatten()
}

/// Whether this thread is in a handler of that actor.
pub(crate) fn is_busy(actor: Id) -> bool {
    here(|here| here.actor == actor).unwrap_or(false)
}

/// What a request carries that is asked here: who waits for it. None outside of all handlers.
pub(crate) fn chain() -> Option<Chain> {
    here(|Here { life, path, number, before, chain, .. }| {
        if *number == 0 {
            // Nobody can reach an actor that starts.
            return None;
        }
        let link = || Link { life: *life, number: *number, path: path.clone() };
        Some(chain.get_or_insert_with(|| Chain::behind(before.as_ref(), link())).clone())
    })
    .flatten()
}
