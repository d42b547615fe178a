//! What a supervisor can be given: an actor in a process of its own, or in this one.

use hatchery_actor::actor::{Actor, AnyActor};
use hatchery_actor::error::Result;
use hatchery_actor::local::Local;
use hatchery_process::worker::Worker;
use hatchery_supervisor::spec::ChildSpec;
use hatchery_supervisor::tree::Tree;
use hatchery_wire::encode;

/// An actor in a process of its own.
///
/// The arguments are those of its `start`: nothing is `()`, one is itself, several are a tuple. They are encoded here
/// and kept so, for restarts; arguments that cannot be encoded are an error of the start. Descriptors in them
/// ([`Fd`](crate::Fd)) stay open here as long as the spec is kept: until its supervisor has ended. The name is unique among the
/// children of its supervisor: 100 bytes at most, no `/`, no control characters, not beginning with `~`.
///
/// It may take 30 s to start, and is stopped by [`Shutdown::graceful`](crate::Shutdown::graceful) with 5 s; the
/// [`ChildSpec`] changes both.
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
pub fn worker<A: AnyActor>(name: impl Into<String>, args: A::Args) -> ChildSpec<Worker<A>> {
    ChildSpec::new(Worker::new(name, &args))
}

/// An actor in a process of its own whose arguments are made anew at each start, from the tree that it is a child of: so it
/// can be handed its siblings, or a configuration as it is now.
///
/// The closure runs in this process, beside its supervisor, which goes on meanwhile. Its error, or a panic in it, is a
/// failed start. What it does takes the time of one of the runtime's threads, so it should not block. A child can only be found
/// ([`Tree::get`]) once the children before it in the list have been added.
///
/// ```
/// use hatchery::prelude::*;
///
/// struct Store { items: u64 }
///
/// #[hatchery::actor]
/// impl Store {
///     fn start() -> Self { Store { items: 0 } }
///     fn add(&mut self) -> u64 { self.items += 1; self.items }
/// }
///
/// struct Server { store: StoreHandle }
///
/// #[hatchery::actor]
/// impl Server {
///     fn start(store: StoreHandle) -> Self { Server { store } }
///     async fn serve(&self) -> hatchery::Result<u64> { Ok(self.store.add().await?) }
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::RestForOne).name("shop")
///         .child(worker::<Store>("store", ()))
///         .child(worker_with::<Server>("web", |tree| tree.get::<Store>("store")))
///         .start().await?;
///     assert_eq!(tree.get::<Server>("web")?.serve().await?, 1);
///     tree.stop().await
/// }
/// ```
pub fn worker_with<A: AnyActor>(
    name: impl Into<String>,
    args: impl Fn(&Tree) -> Result<A::Args> + Send + Sync + 'static,
) -> ChildSpec<Worker<A>> {
    ChildSpec::new(Worker::to_be_given(name)).args_from(move |tree| Ok(encode(&args(tree)?)?))
}

/// An actor in this process, as a task of the current runtime: the same handle, the same window, the same errors.
///
/// Messages and arguments are encoded here as well, so moving an actor between [`worker`] and `local` changes one word.
/// A panic ends this actor alone; an abort takes this process with it, and a handler that blocks holds up its thread.
///
/// The actor's futures must be `Send`, so one that is `#[hatchery::actor(not_send)]` cannot be had here:
///
/// ```compile_fail,E0277
/// use std::rc::Rc;
///
/// use hatchery::prelude::*;
///
/// struct Shared(Rc<u64>);
///
/// #[hatchery::actor(not_send)]
/// impl Shared {
///     fn start(n: u64) -> Self { Shared(Rc::new(n)) }
///     fn get(&self) -> u64 { *self.0 }
/// }
///
/// let spec = local::<Shared>("shared", 1); // in a `worker` it can
/// ```
pub fn local<A: Actor>(name: impl Into<String>, args: A::Args) -> ChildSpec<Local<A>> {
    ChildSpec::new(Local::new(name, &args))
}

/// An actor in this process that a closure makes, for state that cannot be serialised: a connection, a channel, an
/// `Arc`. The closure is called for the first incarnation and again at each restart, where the actor lives: a panic in
/// it is a failed start. The actor's `start` is not called; if there is no other way to make it, let `start` take a
/// [`Never`](crate::Never), of which there is no value.
///
/// ```no_run
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use hatchery::prelude::*;
///
/// struct Gauge { shared: Arc<AtomicU64> }
///
/// #[hatchery::actor]
/// impl Gauge {
///     fn start(never: hatchery::Never) -> Self { match never {} }
///     fn raise(&mut self, by: u64) -> u64 { self.shared.fetch_add(by, Ordering::Relaxed) + by }
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let shared = Arc::new(AtomicU64::new(0));
///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
///     let seen = shared.clone();
///     let gauge = tree.start_child(local_with("gauge", move || Gauge { shared: shared.clone() })).await?;
///     gauge.raise(2).await?;
///     assert_eq!(seen.load(Ordering::Relaxed), 2);
///     tree.stop().await
/// }
/// ```
pub fn local_with<A: Actor>(
    name: impl Into<String>,
    make: impl FnMut() -> A + Send + 'static,
) -> ChildSpec<Local<A>> {
    ChildSpec::new(Local::with(name, make))
}
