//! Actors: state owned by one task, a bounded mailbox, typed handles, and the seats in which incarnations follow one
//! another. Nothing here knows of processes; `hatchery-process` puts actors into them, `hatchery-supervisor` restarts
//! them, and both meet in what this crate owns.
//!
//! The modules in reading order, each using only those before it (and `seat`, `far`, `child` and `exchange`,
//! which name each other, as `mailbox` and `flow`, and `ask`, `handle`, `context` and `actor` do):

#![forbid(unsafe_code)]

pub mod address;
pub mod exit;
pub mod fault;
pub mod error;
pub mod panics;
pub mod trace;
pub mod heartbeat;
pub mod watchdog;
pub mod chain;
pub mod probe;
pub mod busy;
mod incarnation;
pub mod hold;
pub mod streams;
mod slots;
pub mod outlet;
pub mod monitor;
pub mod seat;
mod far;
mod deadlines;
pub mod output;
pub mod spin;
pub mod settings;
pub mod child;
pub mod exchange;
pub mod mailbox;
pub mod directory;
pub mod root;
mod handlers;
pub mod ask;
pub mod items;
pub mod handle;
pub mod near;
mod tasks;
pub mod timer;
pub mod watch;
mod me;
pub mod context;
pub mod reply;
pub mod flow;
pub mod actor;
pub mod runner;
pub mod local;
pub mod task_handle;
pub mod local_task;
