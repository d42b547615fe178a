//! The figures of hatchery, each beside a ruler measured in the same run.
//!
//! ```text
//! cargo bench -p hatchery-benches                 # all of them
//! cargo bench -p hatchery-benches --bench ask     # one
//! cargo bench -p hatchery-benches -- --test       # one short round: do they still run?
//! ```

#![forbid(unsafe_code)]

pub mod cpu;
pub mod placement;
pub mod multiplex;
pub mod ruler;
pub mod table;
pub mod footprint;
