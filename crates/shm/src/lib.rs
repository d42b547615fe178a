//! Memory that two processes share: a worker's ledger of tasks and results.
//!
//! A pool sends tasks to its workers in chunks, and yet a worker's death costs only the task that ran. So it has to be
//! known, whenever a worker dies, which of its tasks have finished with which results, and which one was running. A
//! [`Ledger`] is that knowledge, in memory that outlives the worker: the pool makes it, the worker [opens](Lane::open)
//! it and notes there what it does, without a system call.
//!
//! What is in the memory is, for the pool, untrusted input: the worker can write into it whatever and whenever it
//! likes. Any contents whatever lead to results, or to a typed error.
//!
//! The modules in reading order, lowest first:

#![deny(unsafe_code)]

// Why there is no shared memory, or what is wrong with it.
mod error;

// Memory of several processes: made, checked, mapped. Unsafe, as is the next one, and nothing else here.
mod map;

// Memory of one process that will be filled with a large message.
mod advice;

// Memory as numbered words, so that a model of memory can stand in its place.
mod words;

// How many lanes a ledger has and how large their rings are; what lies where.
mod shape;

// The one word in which a lane says how far it is.
mod cursor;

// A lane as the worker knows it, which runs the tasks.
mod lane;

// The lanes as the pool knows them, which takes the results and learns what was lost.
mod ledger;

#[cfg(test)]
mod tests;

// Every order of their steps, with a death at every step.
#[cfg(all(test, model))]
mod model;

pub use crate::advice::will_fill;
pub use crate::cursor::Cursor;
pub use crate::error::{LedgerError, MemoryError, ShapeError};
pub use crate::lane::{Bell, Closed, Lane, NotKept, Then};
pub use crate::ledger::{Ledger, Record, Wake};
pub use crate::shape::Shape;
