//! The tasks of an actor, which end with it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tracing::Instrument;

use crate::child::BoxFuture;
use crate::exit::Panic;
use crate::panics;
use crate::trace::TraceContext;

/// What one incarnation has spawned.
pub(crate) struct Tasks {
    /// The runtime that the actor runs on; none only in tests that run no actor.
    runtime: Option<Handle>,
    state: Mutex<State>,
    /// The last one is gone.
    gone: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Without a handle while it is being spawned.
    running: HashMap<u64, Option<AbortHandle>>,
    /// What those need to be told that hold the incarnation, when it is killed.
    on_kill: HashMap<u64, Arc<dyn Fn() + Send + Sync>>,
    ended: bool,
    /// The first panic, as long as nobody has been told.
    panic: Option<Panic>,
    watcher: Option<oneshot::Sender<Panic>>,
}

impl Tasks {
    pub(crate) fn new() -> Arc<Tasks> {
        Arc::new(Tasks { runtime: Handle::try_current().ok(), state: Mutex::default(), gone: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a future beside the actor, from any thread. After the actor's end it is dropped instead.
    pub(crate) fn spawn(self: &Arc<Tasks>, future: impl Future<Output = ()> + Send + 'static) -> u64 {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let Some(runtime) = self.runtime.as_ref().filter(|_| !state.ended) else { return id };
        state.running.insert(id, None);
        drop(state);
        let presence = Presence { tasks: self.clone(), id };
        let task = Task { future: Box::pin(panics::catch(future)), presence };
        // Not under the lock: a runtime that is ending drops the task here and now.
        let handle = runtime.spawn(task).abort_handle();
        let mut state = self.lock();
        if state.ended {
            drop(state);
            handle.abort();
        } else if let Some(entry) = state.running.get_mut(&id) {
            *entry = Some(handle);
        }
        id
    }

    /// The incarnation is not gone before this is dropped; if it is killed, that is said here.
    pub(crate) fn hold(self: &Arc<Tasks>, on_kill: impl Fn() + Send + Sync + 'static) -> Hold {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.running.insert(id, None);
        state.on_kill.insert(id, Arc::new(on_kill));
        drop(state);
        Hold { _presence: Presence { tasks: self.clone(), id } }
    }

    /// The incarnation is killed: so is what is held.
    pub(crate) fn kill(&self) {
        let kills: Vec<_> = self.lock().on_kill.values().cloned().collect();
        kills.iter().for_each(|kill| kill());
    }

    /// The same, in the trace that the caller is in, and then in its span as well.
    pub(crate) fn spawn_in_trace(
        self: &Arc<Tasks>,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> u64 {
        match TraceContext::current() {
            None => self.spawn(future),
            Some(trace) => self.spawn(trace.scope(future.in_current_span())),
        }
    }

    /// Ends one of them at its next await, if it still runs.
    pub(crate) fn abort(&self, id: u64) {
        let handle = self.lock().running.get_mut(&id).and_then(Option::take);
        if let Some(handle) = handle {
            handle.abort();
        }
    }

    /// Ends them all, each at its next await; there will be no others.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let handles: Vec<_> = state.running.values_mut().filter_map(Option::take).collect();
        drop(state);
        handles.iter().for_each(AbortHandle::abort);
    }

    /// Resolves when none is left, but for what only [holds](Tasks::hold) the incarnation. Cancel safe.
    pub(crate) async fn gone(&self) {
        self.when(|state| state.running.len() == state.on_kill.len()).await;
    }

    /// Resolves when nothing of the incarnation is left at all. Cancel safe.
    pub(crate) async fn released(&self) {
        self.when(|state| state.running.is_empty()).await;
    }

    async fn when(&self, holds: impl Fn(&State) -> bool) {
        loop {
            // Before the look, so that whatever happens after it is noticed.
            let gone = self.gone.notified();
            if holds(&self.lock()) {
                return;
            }
            gone.await;
        }
    }

    /// The first panic of a task, or of whatever else ends the actor by [`crash`](Tasks::crash).
    pub(crate) fn watch(&self) -> oneshot::Receiver<Panic> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        match state.panic.take() {
            Some(panic) => drop(sender.send(panic)),
            None => state.watcher = Some(sender),
        }
        receiver
    }

    /// Ends the actor as a panic of a handler does.
    pub(crate) fn crash(&self, panic: Panic) {
        let mut state = self.lock();
        let unheard = match state.watcher.take() {
            Some(watcher) => watcher.send(panic).err(),
            None => Some(panic),
        };
        if state.panic.is_none() {
            state.panic = unheard;
        }
    }
}

/// Something of an incarnation that has to be gone before the next one starts.
pub struct Hold {
    _presence: Presence,
}

/// One task. Its fields are dropped in this order: it counts as gone only when its future is.
struct Task {
    future: BoxFuture<Result<(), Panic>>,
    presence: Presence,
}

struct Presence {
    tasks: Arc<Tasks>,
    id: u64,
}

impl Future for Task {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Task { future, presence } = self.get_mut();
        future.as_mut().poll(cx).map(|ended| {
            if let Err(panic) = ended {
                presence.tasks.crash(panic);
            }
        })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut state = self.tasks.lock();
        let handle = state.running.remove(&self.id);
        let on_kill = state.on_kill.remove(&self.id);
        let is_last = state.running.len() == state.on_kill.len();
        drop(state);
        drop((handle, on_kill));
        if is_last {
            self.tasks.gone.notify_waiters();
        }
    }
}
