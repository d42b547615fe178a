//! What a supervisor can be given: an actor in a process of its own, or in this one.

use hatchery_actor::actor::Actor;
use hatchery_actor::local::Local;
use hatchery_process::worker::Worker;
use hatchery_supervisor::spec::ChildSpec;

/// An actor in a process of its own. Its arguments are kept encoded, for restarts.
///
/// ```no_run
/// use hatchery::prelude::*;
///
/// struct Counter { total: u64 }
///
/// #[hatchery::actor]
/// impl Counter {
///     fn start(total: u64) -> Self { Counter { total } }
///     async fn add(&mut self, n: u64) -> u64 { self.total += n; self.total }
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
///     let counter = tree.start_child(worker::<Counter>("counter", 0)).await?;
///     assert_eq!(counter.add(2).await?, 2);
///     tree.stop().await
/// }
/// ```
pub fn worker<A: Actor>(name: impl Into<String>, args: A::Args) -> ChildSpec<Worker<A>> {
    ChildSpec::new(Worker::new(name, &args))
}

/// An actor in this process: the same handle, the same bounds, the same errors, but an abort in it takes this
/// process with it.
pub fn local<A: Actor>(name: impl Into<String>, args: A::Args) -> ChildSpec<Local<A>> {
    ChildSpec::new(Local::new(name, &args))
}
