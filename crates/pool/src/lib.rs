//! Pools: worker processes that run named tasks, in chunks, and of which one death costs one task.
//!
//! A pool is a supervisor, its workers, and a plan that says which worker runs what. A worker has a socket, over which
//! chunks of tasks come to it, and a ledger in shared memory, in which it notes what it runs and what that returned.
//!
//! The modules in reading order, lowest first:

#![forbid(unsafe_code)]

// Arguments or results of many tasks in a row.
mod row;

// What is decided: which worker runs what, and what becomes of tasks.
#[doc(hidden)]
pub mod plan;

// What is said between a pool and a worker of it.
mod terms;

// What the thread that runs tasks knows of the rest of its process.
mod thread;

// The state of a worker, which its tasks borrow.
mod state;

// The inside of a worker.
mod worker;

// What starts a worker, with a socket and a ledger of its own each time.
mod post;

// What the handles of a pool, its jobs and the keepers of its workers share.
mod shared;

// The task that looks after one worker.
mod keeper;

/// One task and its result.
pub mod job;

/// A task over many inputs.
pub mod map;

/// What a pool has done, and does.
pub mod stats;

/// A pool to be, and how it starts.
pub mod builder;

/// A pool as a child of a supervisor.
pub mod child;

/// A pool, and how it ends.
pub mod pool;
