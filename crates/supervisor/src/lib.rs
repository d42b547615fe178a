//! Supervision: a pure policy that decides, and a supervisor above it that starts, stops and restarts children. It
//! knows nothing of processes; children are whatever implements `hatchery_actor::child::Start`.
//!
//! The modules in reading order, lowest first:

#![forbid(unsafe_code)]

pub mod rules;
pub mod policy;
#[cfg(test)]
mod model;
pub mod errors;
pub mod events;
pub mod spec;
mod office;
mod holds;
mod supervisor;
mod signals;
mod usage;
pub mod snapshot;
pub mod tree;
pub mod overseer;
pub mod nested;
pub mod builder;
