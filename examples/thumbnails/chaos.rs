//! Kills a random resizer every 200 ms, from outside, as the kernel would when memory runs out.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hatchery::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

use crate::ResizerHandle;

const EVERY: Duration = Duration::from_millis(200);

/// Chaos under way.
pub(crate) struct Chaos {
    kills: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Chaos {
    pub(crate) fn begin(resizers: Vec<ResizerHandle>) -> Chaos {
        let kills = Arc::<AtomicU64>::default();
        let counter = kills.clone();
        let dice = RandomState::new();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.tick().await; // the first one comes at once
            for throw in 0_u64.. {
                ticks.tick().await;
                let victim = &resizers[dice.hash_one(throw) as usize % resizers.len()];
                // The seat may be between two incarnations: then nobody is killed this time.
                let pid = victim.pid().and_then(|pid| Pid::from_raw(pid as i32));
                if pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()) {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Chaos { kills, task }
    }

    /// Ends it; how many it has killed.
    pub(crate) fn end(self) -> u64 {
        self.task.abort();
        self.kills.load(Ordering::Relaxed)
    }
}
