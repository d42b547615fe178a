//! Worker processes as supervised actors: Python's `multiprocessing`, rebuilt for async Rust.
//!
//! Start with the README of the repository; `ARCHITECTURE.md` says where everything lives. This crate only gathers
//! what users need from the crates below it:
//!
//! | for | see |
//! |---|---|
//! | the door every program comes through | [`main`], [`program()`], [`test`] |
//! | a function in a process of its own | [`macro@task`], [`Process`] |
//! | the same under a supervisor, and a future of this process | [`task()`], [`local_task()`], [`TaskHandle`] |
//! | an actor, in a worker process or here | [`actor`], [`worker()`], [`local()`], [`local_with()`], [`Ask`], [`Items`], [`AnyHandle`], [`Context`], [`Reply`] |
//! | open files and sockets in messages | [`Fd`] |
//! | an actor elsewhere in the tree | any handle, and [`lookup()`] |
//! | who has ended, and how | [`Monitor`], [`Down`] |
//! | many tasks on a few workers | [`Pool`], [`Job`], [`Map`], [`Results`], [`TaskError`] |
//! | state in those workers, which their tasks borrow | [`macro@state`], [`PoolBuilder::state`], [`TaskOn`] |
//! | keeping them alive | [`Supervisor`], [`Strategy`], [`Restart`], [`Tree`] |
//! | what a worker may have, and how it is watched and stopped | [`ChildSpec`], [`ProcessBuilder`], [`Output`], [`Heartbeat`], [`Shutdown`], [`Stop`] |
//! | what workers log | [`logs`], [`TraceContext`] |
//! | what went wrong | [`Error`], [`CallError`], [`ProcessError`], [`Exit`] |

#![forbid(unsafe_code)]

pub use hatchery_macros::{actor, main, state, task, test};

pub use hatchery_pool::builder::PoolBuilder;
pub use hatchery_pool::child::PoolChild;
pub use hatchery_pool::job::Job;
pub use hatchery_pool::map::{All, Inputs, Map, Results, Streamed};
pub use hatchery_pool::plan::Priority;
pub use hatchery_pool::pool::Pool;
pub use hatchery_pool::progress::{Progress, ProgressStream};
pub use hatchery_pool::stats::{PoolStats, WorkerStats};
pub use hatchery_process::door::{Door, Flavor, Outcome, program};
pub use hatchery_process::logs;
pub use hatchery_process::process::{Builder as ProcessBuilder, Process, ProcessError};
pub use hatchery_process::program::{ActiveChild, Current, active_children, config, current, parent};
pub use hatchery_process::state::{BuildsState, State, TaskOn};
pub use hatchery_process::task::{Runs, RunsInPool, Task};

pub use hatchery_actor::actor::{Actor, AnyActor};
pub use hatchery_actor::ask::{Ask, Tell};
pub use hatchery_actor::child::{Shutdown, Start, Stop, Supervised};
pub use hatchery_actor::context::Context;
pub use hatchery_actor::error::{CallError, Error, Never, Result, SendError};
pub use hatchery_actor::exit::{Exit, Limit, Panic, Status};
pub use hatchery_actor::handle::{ActorRef, AnyHandle, lookup};
pub use hatchery_actor::heartbeat::Heartbeat;
pub use hatchery_actor::items::Items;
pub use hatchery_actor::local_task::LocalOutcome;
pub use hatchery_actor::monitor::{Down, Downs, Monitor};
pub use hatchery_actor::output::Output;
pub use hatchery_actor::reply::Reply;
pub use hatchery_actor::spin::Spin;
pub use hatchery_actor::task_handle::{TaskError, TaskHandle};
pub use hatchery_actor::timer::Timer;
pub use hatchery_actor::trace::{NoTraceparent, TraceContext};
pub use hatchery_actor::watch::Watch;
pub use hatchery_supervisor::builder::Supervisor;
pub use hatchery_supervisor::errors::{ChildError, StartError};
pub use hatchery_supervisor::events::{Events, TreeEvent};
pub use hatchery_supervisor::nested::Nested;
pub use hatchery_supervisor::overseer::SupervisorHandle;
pub use hatchery_supervisor::policy::{AutoShutdown, CountDeaths, Exhausted, Restart, Strategy};
pub use hatchery_supervisor::snapshot::{ChildSnapshot, Snapshot};
pub use hatchery_supervisor::spec::ChildSpec;
pub use hatchery_supervisor::tree::{ChildInfo, ChildState, Count, Tree};

/// What an actor's method returns to answer with many items, one after the other: `-> impl Stream<Item = T>`. It is the
/// trait of the crate `futures-core`, the same one everywhere.
pub use futures_core::Stream;

/// ```
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// use hatchery::Fd;
/// use hatchery::prelude::*;
///
/// struct Greeter;
///
/// #[hatchery::actor]
/// impl Greeter {
///     fn start() -> Self { Greeter }
///     fn greet(&self, mut whom: Fd<UnixStream>) -> std::result::Result<(), String> {
///         whom.write_all(b"hello").map_err(|error| error.to_string())
///     }
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
///     let greeter = tree.start_child(worker::<Greeter>("greeter", ())).await?;
///
///     let (mut here, there) = UnixStream::pair()?;
///     greeter.greet(Fd::new(there)).await?;
///
///     let mut heard = String::new();
///     here.read_to_string(&mut heard)?; // to its end: nobody has the other end any more
///     assert_eq!(heard, "hello");
///     tree.stop().await
/// }
/// ```
pub use hatchery_wire::Fd;

mod children;

pub use crate::children::{local, local_task, local_with, task, worker, worker_with};

/// Hosts actors by hand, as generic ones need: `hatchery::hosts!(Cache<u64>);`, an item beside any function.
///
/// Actors that are not generic are hosted already. The same by a call, before the program goes through the door, is
/// `hatchery::program().hosts::<Cache<u64>>()`; tests have no such place.
///
/// ```
/// use hatchery::prelude::*;
///
/// struct Last<T>(T);
///
/// #[hatchery::actor]
/// impl<T> Last<T>
/// where
///     T: Clone + serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static,
/// {
///     fn start(first: T) -> Self { Last(first) }
///     fn swap(&mut self, next: T) -> T { std::mem::replace(&mut self.0, next) }
/// }
///
/// hatchery::hosts!(Last<u64>, Last<String>);
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
///     let last = tree.start_child(worker::<Last<u64>>("last", 1)).await?;
///     assert_eq!(last.swap(2).await?, 1);
///     tree.stop().await
/// }
/// ```
#[macro_export]
macro_rules! hosts {
    ($($actor:ty),+ $(,)?) => {
        $($crate::__private::inventory::submit! { $crate::__private::HostedActor::of::<$actor>() })+
    };
}

/// What almost every program of hatchery uses, for `use hatchery::prelude::*`.
pub mod prelude {
    pub use std::time::Duration;

    pub use crate::{
        AnyHandle, AutoShutdown, ChildState, Context, CountDeaths, Exhausted, Heartbeat, Pool, Priority,
        Process, Reply, Restart, Shutdown, Stop, Strategy, Supervisor, SupervisorHandle, TaskError,
        TaskHandle, Tree, TreeEvent, local, local_task, local_with, worker, worker_with,
    };
    // The function alone: the attribute of the same name is written `#[hatchery::task]`.
    pub use crate::children::task;
}

/// What the macros write; no part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use hatchery_actor::actor::{
        Actor, AnyActor, IntoStarted as Started, Place, ResultParts, SendUnlessItSaysNotSend,
    };
    pub use hatchery_actor::child::BoxFuture;
    pub use hatchery_actor::context::Context;
    pub use hatchery_actor::error::Error;
    pub use hatchery_actor::flow::begin as begin_stream;
    pub use hatchery_actor::handle::{ActorRef, AnyHandle};
    pub use hatchery_actor::outlet::Answer;
    pub use hatchery_process::byte_strings::ByteSlice;
    pub use hatchery_process::registry::{HostedActor, HostedState, HostedTask};
    pub use hatchery_process::state::{Build, Built, StateEntry, built, not_built};
    pub use hatchery_process::task::{
        Caller, InWords, InWordsByDebug, InWordsByDisplay, LocalFuture, OnState, PackedOutcome, RunOnState,
        StateType, TaskEntry, TaskOutcome, TaskRun, WithoutWords,
    };
    pub use hatchery_process::test::{TestOptions, test};
    pub use hatchery_wire::decode_byte_string as take_bytes;
    pub use hatchery_wire::{Body, ByteString, DecodeError, EncodeError, decode_owned, encode};
    pub use hatchery_wire::{CannotDecode, CannotEncode, Decodes, Decoding, Encodes, Encoding, must_travel};
    pub use {inventory, serde, serde_bytes};
}

/// The programs of the README, as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}

/// The programs of the guide, as doc tests.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/guide/supervision.md")]
    mod supervision {}
    #[doc = include_str!("../../../docs/guide/pools.md")]
    mod pools {}
}
