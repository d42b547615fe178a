//! What a supervisor is told about a child: what to start, and how to stop it.

use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::child::{BoxFuture, Order, Shutdown, Start, Started};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;

/// A child to be: something that can be started, and what its supervisor needs to know of it.
#[must_use = "a spec starts nothing: give it to a supervisor"]
pub struct ChildSpec<S> {
    start: Arc<S>,
    shutdown: Shutdown,
    start_timeout: Duration,
}

impl<S: Start> ChildSpec<S> {
    /// A child with the usual settings.
    pub fn new(start: S) -> ChildSpec<S> {
        ChildSpec {
            start: Arc::new(start),
            shutdown: Shutdown::default(),
            start_timeout: Duration::from_secs(30),
        }
    }

    /// How it is stopped; [`Shutdown::graceful`] with 5 s unless told otherwise.
    pub fn shutdown(mut self, shutdown: Shutdown) -> Self {
        self.shutdown = shutdown;
        self
    }

    /// How long a start may take until the actor is ready, instead of 30 s. One that takes longer is ended, and has
    /// failed.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    pub(crate) fn handle(&self, reference: ActorRef) -> S::Handle {
        self.start.handle(reference)
    }

    pub(crate) fn erase(&self) -> ErasedSpec {
        ErasedSpec { start: self.start.clone(), shutdown: self.shutdown, start_timeout: self.start_timeout }
    }
}

/// The same without the type of its handle.
#[derive(Clone)]
pub(crate) struct ErasedSpec {
    pub(crate) start: Arc<dyn Startable>,
    pub(crate) shutdown: Shutdown,
    pub(crate) start_timeout: Duration,
}

/// [`Start`] without the type of its handle.
pub(crate) trait Startable: Send + Sync {
    fn name(&self) -> &str;
    fn actor(&self) -> &'static str;
    fn check(&self) -> Result<(), Fault>;
    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>>;
}

impl<S: Start> Startable for S {
    fn name(&self) -> &str {
        Start::name(self)
    }
    fn actor(&self) -> &'static str {
        Start::actor(self)
    }
    fn check(&self) -> Result<(), Fault> {
        Start::check(self)
    }
    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        Start::start(self, order)
    }
}
