//! Actors: state owned by one task, a bounded mailbox, typed handles, and the seats in which incarnations follow one
//! another. Nothing here knows of processes; `hatchery-process` puts actors into them, `hatchery-supervisor` restarts
//! them, and both meet in what this crate owns.
//!
//! The modules in reading order, each using only those before it (and `seat` and `child`, which name each other):

#![forbid(unsafe_code)]

pub mod exit;
pub mod fault;
pub mod error;
pub mod panics;
pub mod trace;
pub mod heartbeat;
pub mod outlet;
pub mod seat;
pub mod output;
pub mod settings;
pub mod child;
pub mod mailbox;
pub mod context;
pub mod actor;
pub mod runner;
pub mod ask;
pub mod handle;
pub mod local;
pub mod root;
