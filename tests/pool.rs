//! Pools with real processes and real signals: what tasks return, what a death costs, and how pools begin and end.

mod pool_deaths;
mod pool_ends;
mod pool_hard;
mod pool_lanes;
mod pool_results;
mod pool_sizes;
mod pool_state;
mod pool_streams;
