//! Worker processes: the door through which a program becomes its own workers, starting and stopping them, the warden
//! that owns their links, and the channels over which actors are asked.
//!
//! The modules in reading order, lowest first:

#![deny(unsafe_code)]

mod os;
pub mod byte_strings;
pub mod task;
pub mod state;
mod frames;
mod printer;
mod filter;
mod forward;
mod callsites;
mod collector;
mod resources;
mod questions;
mod routes;
pub mod program;
mod failing;
mod spawner;
mod outputs;
mod ward;
mod heartbeat;
mod pipe;
mod watched;
mod wishes;
mod answers;
mod crossing;
mod warden;
mod spin;
mod channel;
mod calls_in;
mod calls_out;
mod exchange;
pub mod launch;
pub mod logs;
pub mod worker;
pub mod process;
pub mod task_child;
pub mod registry;
pub mod inside;
pub mod door;
pub mod test;
