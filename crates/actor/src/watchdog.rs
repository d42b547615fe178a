//! Whether an actor gets on: what can be told of its mailbox, and what follows from that, with time as an argument.
//!
//! ```text
//!            the same handler runs as at the last look
//!   Idle ─────────────────────────────────────────────▶ At it ─── for its limit ──▶ stuck
//!     ▲                                                   │
//!     └───────────────────────────────────────────────────┘
//!       another one runs, or none; or it is spared
//! ```
//!
//! The same handler runs at two looks: so it ran all the time in between. Of that, a period counts at most, for if a look
//! comes late, the one who looks, or the one who is looked at, was away (stopped, suspended, starved). If it comes more
//! than half a period late, nothing is counted, and a full period is left at least.

use std::time::{Duration, Instant};

use crate::fault::Fault;
use crate::heartbeat::Heartbeat;

/// What can be told of a mailbox from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MailboxInfo {
    /// How many requests wait in it; one that runs is not among them.
    pub depth: usize,
    /// Which request a handler works on, counted from 1; `None` if none does.
    pub running: Option<u64>,
}

impl MailboxInfo {
    /// So many wait, and this one runs.
    pub fn new(depth: usize, running: Option<u64>) -> MailboxInfo {
        MailboxInfo { depth, running }
    }
}

/// How long the present handler of an actor has been at it.
#[derive(Debug)]
pub struct Progress {
    limit: Duration,
    every: Duration,
    running: Option<u64>,
    looked: Option<Instant>,
    waited: Duration,
}

impl Progress {
    /// A handler may take so long; it is looked at so often.
    pub fn new(limit: Duration, every: Duration) -> Progress {
        Progress { limit, every, running: None, looked: None, waited: Duration::ZERO }
    }

    /// This request runs now; whether it has for too long. `spared` is only asked if it did so at the last look, too.
    pub fn look(&mut self, running: Option<u64>, now: Instant, spared: impl FnOnce() -> bool) -> bool {
        let looked = self.looked.replace(now).filter(|_| running.is_some() && running == self.running);
        self.running = running;
        let Some(looked) = looked.filter(|_| !spared()) else {
            self.waited = Duration::ZERO;
            return false;
        };
        let since = now.saturating_duration_since(looked);
        if since > self.every + self.every / 2 {
            self.waited = self.waited.min(self.limit.saturating_sub(self.every));
        } else {
            self.waited += since.min(self.every);
        }
        self.waited >= self.limit
    }

    /// Everything begins anew: it stood still on purpose.
    pub fn forget(&mut self) {
        *self = Progress::new(self.limit, self.every);
    }

    /// What is said of one that is stuck.
    pub fn reason(&self) -> String {
        format!("no progress for {:?}: one handler has run since", self.limit)
    }
}

/// A shorter patience would end actors that are well on any busy machine.
const SHORTEST: Duration = Duration::from_millis(20);

/// How often an actor of this process is looked at.
#[must_use]
pub fn period(limit: Duration) -> Duration {
    (limit / 8).clamp(SHORTEST / 2, Duration::from_secs(1))
}

/// Finds contradictions before anything starts.
///
/// # Errors
/// It is too short.
pub fn check(limit: Duration) -> Result<(), Fault> {
    if limit < SHORTEST {
        return Err(Fault::Refused(format!(
            "a watchdog of {limit:?}: it has to be at least {SHORTEST:?}; to have none, leave it out"
        )));
    }
    Ok(())
}

/// The same for one that asks with the heartbeat.
///
/// # Errors
/// It is too short, or nobody asks.
pub fn check_with(limit: Duration, heartbeat: Heartbeat) -> Result<(), Fault> {
    check(limit)?;
    let Some(period) = heartbeat.period() else {
        return Err(Fault::Refused(format!(
            "a watchdog of {limit:?} without a heartbeat, which is what asks for it: leave out one of `watchdog(..)` and \
             Heartbeat::off()"
        )));
    };
    if limit < period.saturating_mul(2) {
        return Err(Fault::Refused(format!(
            "a watchdog of {limit:?} beside a heartbeat every {period:?}: it has to be at least two periods long, so \
             wait longer or ask more often with Heartbeat::every(..)"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(10);

    fn progress() -> (Progress, Instant) {
        (Progress::new(LIMIT, SECOND), Instant::now())
    }

    /// Looks each second at one and the same handler until it is stuck.
    fn look_until_stuck(progress: &mut Progress, now: &mut Instant, running: u64) {
        for _ in 0..1000 {
            *now += SECOND;
            if progress.look(Some(running), *now, || false) {
                return;
            }
        }
        panic!("never stuck");
    }

    #[test]
    fn a_handler_that_runs_for_the_limit_is_stuck_and_not_before() {
        let (mut progress, begun) = progress();
        let mut now = begun;
        assert!(!progress.look(Some(7), now, || panic!("nothing is known of it yet")));
        look_until_stuck(&mut progress, &mut now, 7);
        assert_eq!(now, begun + LIMIT);
        assert_eq!(progress.reason(), "no progress for 10s: one handler has run since");
    }

    #[test]
    fn an_actor_that_is_idle_or_finishes_handlers_never_is() {
        let (mut progress, mut now) = progress();
        for n in 0..1000_u64 {
            // None, and each time another one, for almost as long as it may take.
            for running in [None, Some(n)] {
                for _ in 0..10 {
                    now += SECOND;
                    assert!(!progress.look(running, now, || false));
                }
            }
        }
    }

    #[test]
    fn who_was_away_for_however_long_leaves_a_full_period() {
        for looks in 0..20 {
            let (mut progress, mut now) = progress();
            progress.look(Some(1), now, || false);
            for _ in 0..looks.min(9) {
                now += SECOND;
                assert!(!progress.look(Some(1), now, || false));
            }
            now += 1000 * SECOND;
            assert!(!progress.look(Some(1), now, || false));
            let back = now;
            look_until_stuck(&mut progress, &mut now, 1);
            assert_eq!(now, back + (LIMIT - looks.min(9) * SECOND).max(SECOND));
        }
    }

    #[test]
    fn who_is_spared_has_all_the_time_afterwards() {
        let (mut progress, mut now) = progress();
        for _ in 0..1000 {
            now += SECOND;
            assert!(!progress.look(Some(1), now, || true));
        }
        let released = now;
        look_until_stuck(&mut progress, &mut now, 1);
        assert_eq!(now, released + LIMIT);
    }

    #[test]
    fn what_stood_still_on_purpose_begins_anew() {
        let (mut progress, mut now) = progress();
        for _ in 0..10 {
            now += SECOND;
            assert!(!progress.look(Some(1), now, || false));
        }
        progress.forget();
        assert!(!progress.look(Some(1), now, || panic!("nothing is known of it any more")));
        let resumed = now;
        look_until_stuck(&mut progress, &mut now, 1);
        assert_eq!(now, resumed + LIMIT);
    }

    #[test]
    fn contradictions_are_named() {
        let wrong = |limit, heartbeat| check_with(limit, heartbeat).unwrap_err().to_string();
        assert!(wrong(Duration::ZERO, Heartbeat::default()).contains("at least 20ms"));
        assert!(wrong(LIMIT, Heartbeat::off()).contains("a watchdog of 10s without a heartbeat"));
        assert!(wrong(SECOND, Heartbeat::default()).contains("every 1s: it has to be at least two periods"));
        assert_eq!(check_with(2 * SECOND, Heartbeat::default()), Ok(()));
        assert_eq!(check(SHORTEST), Ok(()), "without a heartbeat there is no period to miss");
        assert!(check(SHORTEST / 2).is_err());
        for limit in [SHORTEST, SECOND, Duration::MAX] {
            assert!(2 * period(limit) <= limit && !period(limit).is_zero());
        }
    }

    proptest! {
        /// Handlers follow one another, the machine stops and goes on as it likes, and looks come late by that: one that
        /// takes less than the limit, of the time in which the machine runs, is never taken for stuck.
        #[test]
        fn handlers_that_finish_in_time_are_never_stuck(
            takes in prop::collection::vec(0_u64..10_000, 1..50),
            lates in prop::collection::vec(prop_oneof![3 => 0_u64..100, 1 => 0_u64..1_000, 1 => 0_u64..30_000], 1..300),
        ) {
            let (mut progress, mut now) = progress();
            let mut takes = takes.into_iter();
            let (mut number, mut left) = (1, takes.next());
            for late in lates {
                now += SECOND + Duration::from_millis(late);
                let mut spent = 1000;
                while let Some(rest) = left {
                    if rest > spent {
                        left = Some(rest - spent);
                        break;
                    }
                    spent -= rest;
                    number += 1;
                    left = takes.next();
                }
                prop_assert!(!progress.look(left.map(|_| number), now, || false));
            }
        }
    }
}
