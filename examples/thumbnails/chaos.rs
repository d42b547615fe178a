//! Kills a random worker every 200 ms, from outside, as the kernel would when memory runs out.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};

use hatchery::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

const EVERY: Duration = Duration::from_millis(200);

/// Kills until it is dropped, and notes whom.
pub(crate) async fn chaos(killed: &mut BTreeSet<u32>) -> Infallible {
    let dice = RandomState::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.tick().await; // the first one comes at once
    loop {
        let now = ticks.tick().await;
        let workers = hatchery::active_children();
        // All may be between two lives: then nobody is killed this time.
        let Some(chosen) = (dice.hash_one(now) as usize).checked_rem(workers.len()) else { continue };
        let pid = workers[chosen].pid();
        let dead = Pid::from_raw(pid as i32).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
        if dead {
            killed.insert(pid);
        }
    }
}
