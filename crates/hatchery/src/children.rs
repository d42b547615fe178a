//! What a supervisor can be given: an actor or a task, in a process of its own or in this one.

use std::future::Future;

use hatchery_actor::actor::{Actor, AnyActor};
use hatchery_actor::error::Result;
use hatchery_actor::local::Local;
use hatchery_actor::local_task::{LocalOutcome, LocalTask};
use hatchery_process::task::Runs;
use hatchery_process::task_child::TaskChild;
use hatchery_process::worker::Worker;
use hatchery_supervisor::policy::Restart;
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

/// A `#[hatchery::task]` function in a process of its own, under a supervisor: it runs until it has succeeded.
///
/// The arguments are those of [`Process::spawn`](crate::Process::spawn): nothing is `()`, one is itself, several are a
/// tuple. They are kept encoded, for restarts. The child has started when its function begins. The
/// [handle](crate::TaskHandle) gives what it returned.
///
/// It is [`Restart::Transient`] unless its [`ChildSpec`] says otherwise: `.restart(Restart::Permanent)` is for functions
/// that shall never end, `.restart(Restart::Temporary)` for one attempt and no more.
///
/// | the function | that is | a `Transient` task |
/// |---|---|---|
/// | returned, no matter what but an `Err` | clean, exit code 0 | stays stopped, its spec is kept |
/// | returned an `Err` | exit code 1 | is started again, in a new process |
/// | panicked, aborted, was killed, exited with another code | abnormal | is started again |
/// | exited with code 125 | "do not try again" | is given up |
///
/// It has no mailbox, so whoever stops it sends SIGTERM at once, and again when the time of
/// [`Shutdown::graceful`](crate::Shutdown::graceful) is over; two seconds later SIGKILL. Unless it handles that signal it ends
/// in the middle of its work. A `main` that returns stops it like any other child of a tree: whoever wants its result
/// waits for that.
///
/// ```no_run
/// use hatchery::prelude::*;
///
/// #[hatchery::task]
/// fn convert(file: String) -> hatchery::Result<u64> {
///     Ok(std::fs::copy(&file, file.clone() + ".new")?)
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).intensity(3, Duration::from_secs(60))
///         .exhausted(hatchery::Exhausted::GiveUpChild)
///         .start().await?;
///     let copy = tree.start_child(task("copy", convert, "picture".to_owned()).memory_limit(1 << 30)).await?;
///     let bytes = copy.join().await??;         // the first success, or the error of the fourth attempt
///     println!("{bytes} bytes");
///     tree.stop().await
/// }
/// ```
///
/// A `#[hatchery::task]` is a constant of its function's name, so where it is in scope no variable can be called so: write
/// `let counted = tree.start_child(task("count", count, ()))`, and not `let count = ..`.
pub fn task<T, A, R>(name: impl Into<String>, function: T, args: A) -> ChildSpec<TaskChild<R>>
where
    T: Runs<Args = A, Output = R>,
    R: 'static,
{
    ChildSpec::new(TaskChild::new(name, &function, &args)).restart(Restart::Transient)
}

/// A future of this process under a supervisor, for work that belongs to an actor or a tree but needs no process: a
/// timer, a listener, a pump between two channels.
///
/// The closure is called for the first incarnation and again at each restart; a panic in it is a failed start. The
/// child has started when there is a future, which then runs as a task of the runtime. It has ended cleanly when the
/// future returns, and abnormally when that returns an `Err` or panics. It is [`Restart::Transient`] unless its
/// [`ChildSpec`] says otherwise: it runs until it has succeeded. The [handle](crate::TaskHandle)'s `join` waits for that.
///
/// Whoever stops or kills it has it dropped where it awaits, at once; what it spawned itself goes on. Code that blocks and
/// never awaits cannot be ended: it holds up its thread, and after 17 s (unless its spec says otherwise) it is given up as
/// unkillable. Put that into a [`task()`].
///
/// ```
/// use std::sync::Arc;
/// use hatchery::prelude::*;
/// use tokio::sync::Notify;
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let (bell, rung) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
///     let (waits, answers) = (bell.clone(), rung.clone());
///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
///     let porter = tree.start_child(local_task("porter", move || {
///         let (waits, answers) = (waits.clone(), answers.clone());
///         async move {
///             loop {
///                 waits.notified().await;
///                 answers.notify_one();
///             }
///         }
///     })).await?;
///     bell.notify_one();
///     rung.notified().await;
///     porter.stop().await?;                    // dropped where it waits
///     tree.stop().await
/// }
/// ```
pub fn local_task<F, Fut>(name: impl Into<String>, make: F) -> ChildSpec<LocalTask>
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: LocalOutcome,
{
    ChildSpec::new(LocalTask::new(name, make)).restart(Restart::Transient)
}
