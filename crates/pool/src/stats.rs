//! What a pool has done, and does.

use std::time::Duration;

/// A pool at one moment. See [`Pool::stats`](crate::pool::Pool::stats).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Tasks that have a result.
    pub done: u64,
    /// Tasks that failed for good.
    pub failed: u64,
    /// Tries that followed another one.
    pub retried: u64,
    /// Tasks that wait for a worker.
    pub waiting: u64,
    /// Tasks that workers have and have not finished.
    pub given: u64,
    /// The workers.
    pub workers: Vec<WorkerStats>,
}

/// A worker of a pool at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its name, e.g. `worker-0`.
    pub name: String,
    /// Whether it is up.
    pub is_up: bool,
    /// Tasks that have ended there, those of earlier incarnations included.
    pub tasks: u64,
    /// How long it has worked, in chunks that have ended.
    pub busy: Duration,
    /// How long it has been at the chunk that it works on; at the oldest one, of several.
    pub running: Option<Duration>,
    /// Tasks that it has and has not finished.
    pub given: u64,
    /// How often another one has taken its place.
    pub restarts: u64,
}
