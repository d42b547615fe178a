//! What a pool has done, and does: as data, and drawn.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A pool at one moment. See [`Pool::stats`](crate::pool::Pool::stats).
///
/// Printed, it is a table:
///
/// ```text
/// 1204 done, 2 failed, 1 retried, 12 waiting, 3 given to workers
/// worker    process  state      tasks  busy   this task  has  memory    restarts
/// worker-0  70113    busy       801    4.2 s  35 ms      2    31.5 MiB  1
/// worker-1  70114    busy       403    3.1 s  812 ms     1    12.0 MiB  0
/// worker-2  -        starting   0      0 ms   -          0    -         0
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The workers, those on the way and on the way out included.
    pub workers: Vec<WorkerStats>,
}

/// A worker of a pool at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its name, e.g. `worker-0`.
    pub name: String,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether it is given nothing more: it leaves, or makes room for another one.
    pub is_leaving: bool,
    /// Its process, if it is up.
    pub pid: Option<u32>,
    /// Bytes of memory of its process that are present, shared ones included (RSS); of a process that allocates right now it
    /// may be some pages behind. `None` if it is not up, or `/proc` is not mounted.
    pub memory: Option<u64>,
    /// Tasks that have ended there, those of earlier incarnations included.
    pub tasks: u64,
    /// How long it and its earlier incarnations have worked.
    pub busy: Duration,
    /// How long the task that it runs has run; the oldest one, of several. Of tasks of less than 2 ms it may be as if the one before still ran.
    pub running: Option<Duration>,
    /// Tasks that it has and has not finished.
    pub given: u64,
    /// How often another one has taken its place.
    pub restarts: u64,
}

impl WorkerStats {
    fn state(&self) -> &'static str {
        match self {
            WorkerStats { is_leaving: true, .. } => "leaving",
            WorkerStats { is_up: false, .. } => "starting",
            WorkerStats { given: 0, .. } => "idle",
            WorkerStats { .. } => "busy",
        }
    }

    fn row(&self) -> [String; COLUMNS] {
        let or_none = |shown: Option<String>| shown.unwrap_or_else(|| "-".to_owned());
        [
            self.name.clone(),
            or_none(self.pid.map(|pid| pid.to_string())),
            self.state().to_owned(),
            self.tasks.to_string(),
            Time(self.busy).to_string(),
            or_none(self.running.map(|running| Time(running).to_string())),
            self.given.to_string(),
            or_none(self.memory.map(|bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)))),
            self.restarts.to_string(),
        ]
    }
}

const COLUMNS: usize = 9;
const HEADS: [&str; COLUMNS] =
    ["worker", "process", "state", "tasks", "busy", "this task", "has", "memory", "restarts"];

impl fmt::Display for PoolStats {
    /// Draws it: a line about the whole, and a table of the workers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PoolStats { done, failed, retried, waiting, given, workers } = self;
        write!(
            f,
            "{done} done, {failed} failed, {retried} retried, {waiting} waiting, {given} given to workers"
        )?;
        let heads = HEADS.map(str::to_owned);
        let rows: Vec<_> = std::iter::once(heads).chain(workers.iter().map(WorkerStats::row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..COLUMNS).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            write!(f, "\n{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A time as people say it.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            millis @ 0..1_000 => write!(f, "{millis} ms"),
            1_000..120_000 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            millis @ 120_000..7_200_000 => write!(f, "{} min", millis / 60_000),
            millis => write!(f, "{} h", millis / 3_600_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_drawn_as_a_table() {
        let busy = WorkerStats {
            name: "worker-0".to_owned(),
            is_up: true,
            is_leaving: false,
            pid: Some(70_113),
            memory: Some(33_030_144),
            tasks: 801,
            busy: Duration::from_millis(4_200),
            running: Some(Duration::from_millis(35)),
            given: 2,
            restarts: 1,
        };
        let idle = WorkerStats { name: "worker-1".to_owned(), given: 0, running: None, ..busy.clone() };
        let leaving = WorkerStats { name: "worker-2".to_owned(), is_leaving: true, ..busy.clone() };
        let starting = WorkerStats {
            name: "worker-3".to_owned(),
            is_up: false,
            pid: None,
            memory: None,
            tasks: 0,
            busy: Duration::from_secs(90_000),
            restarts: 0,
            ..idle.clone()
        };
        let stats = PoolStats {
            done: 1204,
            failed: 2,
            retried: 1,
            waiting: 12,
            given: 3,
            workers: vec![busy, idle, leaving, starting],
        };
        let drawn = "\
1204 done, 2 failed, 1 retried, 12 waiting, 3 given to workers
worker    process  state     tasks  busy   this task  has  memory    restarts
worker-0  70113    busy      801    4.2 s  35 ms      2    31.5 MiB  1
worker-1  70113    idle      801    4.2 s  -          0    31.5 MiB  1
worker-2  70113    leaving   801    4.2 s  35 ms      2    31.5 MiB  1
worker-3  -        starting  0      25 h   -          0    -         0";
        assert_eq!(stats.to_string(), drawn);
    }
}
