//! Which actor's handler this thread is in: what it asks is waited for by the request that the handler works on, and
//! whoever waits for that very actor there would wait for itself.

use std::cell::Cell;
use std::sync::Arc;
use std::task::Waker;

use crate::chain::{Chain, Life, Link, is_at_or_below};
use crate::fault::Fault;
use crate::probe::Awaited;

/// Tells actors of this process apart; it is the address of the actor's mailbox, so never 0.
pub(crate) type Id = usize;

const NOBODY: Id = 0;

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
    look: Option<Look>,
}

/// A look at what a handler waits for.
struct Look {
    /// What the handler is polled with.
    waker: Waker,
    /// The asks that it has found unanswered, and that will wake it.
    asks: Vec<Awaited>,
}

impl Here {
    /// Of the actor that sits there.
    pub(crate) fn new(actor: Id, life: Life, path: &str) -> Here {
        Here { actor, life, path: path.into(), number: 0, before: None, chain: None, look: None }
    }

    /// The actor works on another request, behind this chain.
    pub(crate) fn begin(&mut self, before: Option<Chain>) {
        self.number += 1;
        self.before = before;
        self.chain = None;
    }

    /// The actor leaves: it has something to do yet, but no mailbox any more in which it could wait for itself.
    pub(crate) fn leave(&mut self) {
        self.actor = NOBODY;
        self.begin(None);
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn path(&self) -> &Arc<str> {
        &self.path
    }

    /// Whether the handler has asked anybody.
    pub(crate) fn has_asked(&self) -> bool {
        self.chain.is_some()
    }

    /// From now on, note the asks that the handler waits for when it is polled with this.
    pub(crate) fn look(&mut self, waker: Waker) {
        self.look = Some(Look { waker, asks: Vec::new() });
    }

    /// Those that have been noted.
    pub(crate) fn seen(&mut self) -> Vec<Awaited> {
        self.look.take().map_or_else(Vec::new, |look| look.asks)
    }
}

/// While it lives, this thread is in that handler. It goes back on every way out of a poll, a panic included.
pub(crate) struct Inside<'a> {
    before: Option<Box<Here>>,
    here: &'a mut Option<Box<Here>>,
}

impl Inside<'_> {
    pub(crate) fn enter(here: &mut Option<Box<Here>>) -> Inside<'_> {
        Inside { before: HERE.replace(here.take()), here }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        *self.here = HERE.replace(self.before.take());
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

/// Refuses what ends only when the actor at this path has: a handler there, or below it, would wait for that, directly or
/// through others, and so it never would.
///
/// # Errors
/// Who waits for whom, if this thread is in such a handler, or in one that such a handler waits for.
#[doc(hidden)]
pub fn waits_for_no_end_of(path: &str) -> Result<(), Fault> {
    let circle = here(|Here { path: own, number, before, .. }| {
        // A start is given up where an actor is stopped.
        let own = (*number > 0).then(|| own.to_string());
        let paths = before.iter().flat_map(Chain::paths).map(str::to_owned).chain(own);
        paths.skip_while(|waiting| !is_at_or_below(waiting, path)).collect::<Vec<_>>()
    });
    match circle {
        Some(circle) if !circle.is_empty() => Err(Fault::Deadlock { circle, maybe_executed: false }),
        _ => Ok(()),
    }
}

/// An ask that is polled here with this waker is still to be answered.
pub(crate) fn waits(waker: &Waker, ask: impl FnOnce() -> Awaited) {
    here(|here| {
        if let Some(look) = here.look.as_mut().filter(|look| look.waker.will_wake(waker)) {
            let ask = ask();
            if !look.asks.contains(&ask) {
                look.asks.push(ask);
            }
        }
    });
}
