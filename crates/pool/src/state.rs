//! The state of a worker: built once, lent to the tasks that borrow it, and built anew after one of them has panicked.
//!
//! It lives on the thread that runs tasks, and is built, lent and dropped there.

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::error::Error;
use hatchery_actor::fault::Fault;
use hatchery_actor::panics;
use hatchery_process::registry;
use hatchery_process::state::{Build, StateEntry};
use hatchery_process::task::TaskEntry;
use hatchery_wire::Body;

use crate::terms::{Once, Recipe};
use crate::thread::{Thread, complain, is_ended};

/// The state of this worker, if its pool has any.
pub(crate) struct Kept {
    recipe: Option<(&'static StateEntry, Recipe)>,
    /// Nothing after a panic, until it is built anew.
    state: Option<Box<dyn Any>>,
}

impl Kept {
    /// Builds it.
    ///
    /// # Errors
    /// It cannot be built, or the function panics.
    pub(crate) fn new(recipe: Option<Recipe>, thread: &Thread) -> Result<Kept, Error> {
        let Some(recipe) = recipe else { return Ok(Kept { recipe: None, state: None }) };
        let entry = registry::state(&recipe.build.task.name, &recipe.build.task.place)?;
        let state = built(entry, &recipe.build, thread)?;
        Ok(Kept { recipe: Some((entry, recipe)), state: Some(state) })
    }

    /// Whether this task can run here.
    ///
    /// # Errors
    /// It borrows another type.
    pub(crate) fn suits(&self, task: &TaskEntry) -> Result<(), Fault> {
        task.suits(self.recipe.as_ref().map(|(entry, _)| entry.state))
    }

    /// Whether it has to be built anew before anybody can borrow it.
    pub(crate) fn is_missing(&self) -> bool {
        self.state.is_none()
    }

    /// Lends it. It was found to suit, and is not missing.
    #[inline]
    pub(crate) fn lend(&mut self) -> Option<&mut dyn Any> {
        self.state.as_deref_mut()
    }

    /// Builds it anew, if it is missing. If that fails, or takes longer than a start may, this worker ends, and says why.
    pub(crate) fn renew(&mut self, thread: &Thread) {
        let (None, Some((entry, recipe))) = (&self.state, &self.recipe) else { return };
        let rebuilt = within(recipe.within, thread, || built(entry, &recipe.build, thread));
        match rebuilt {
            Ok(state) => self.state = Some(state),
            Err(error) => {
                thread.end(&error.context("its state could not be built anew after a panic"));
                is_ended()
            }
        }
    }

    /// A task that borrowed it has panicked, and may have left it half changed: it is dropped.
    #[cold]
    pub(crate) fn discard(&mut self, thread: &Thread) {
        let limit = self.recipe.as_ref().map_or(Duration::MAX, |(_, recipe)| recipe.within);
        if let Some(state) = self.state.take() {
            within(limit, thread, || dropped(state));
        }
    }

    /// The worker leaves.
    pub(crate) fn leave(self) {
        if let Some(state) = self.state {
            dropped(state);
        }
    }
}

fn built(entry: &StateEntry, build: &Once, thread: &Thread) -> Result<Box<dyn Any>, Error> {
    let args = Body::from_bytes(Bytes::copy_from_slice(&build.args));
    let built = match entry.build {
        Build::Sync(build) => panics::catch_call(|| build(args)),
        Build::Async(build) => thread.actors.block_on(panics::catch(async move { build(args).await })),
    };
    built.map_err(Error::msg)?
}

/// Its `drop` is foreign code, and may panic.
fn dropped(state: Box<dyn Any>) {
    if let Err(panic) = panics::catch_call(|| drop(state)) {
        complain(&Error::msg(panic).context("the state of a pool's worker was dropped"));
    }
}

/// Does something that is to end within this time: if it does not, the worker ends, and the pool has another one take its place.
fn within<T>(limit: Duration, thread: &Thread, what: impl FnOnce() -> T) -> T {
    let watched = thread.clone();
    let watch = thread.actors.spawn(async move {
        tokio::time::sleep(limit).await;
        watched.end(&Error::msg(format!("its state was not built anew within {limit:?} after a panic")));
    });
    let done = what();
    watch.abort();
    done
}
