//! How often a worker is asked whether it still stands, and how many answers it may miss.

use std::time::Duration;

use crate::fault::Fault;

/// How a worker process that stands still as a whole is noticed: its parent asks, and a thread of the worker that runs
/// no user code answers.
///
/// The default, [`every`](Heartbeat::every) second with 3 [`misses`](Heartbeat::misses), ends a worker that has not
/// answered for 3 s, 3 to 4 s after it fell silent. Its exit says "no heartbeat for 3s", its callers get `is_crash()`,
/// and its supervisor goes on as after any crash.
///
/// What falls silent is a worker that somebody else stopped (SIGSTOP, a frozen cgroup), that hangs in the kernel, or
/// whose machine is out of breath. What does *not*: a handler that blocks, spins, or never returns (a deadline
/// answers its caller, and a `watchdog` ends its actor), or a worker that floods its output. Spared, for as long as
/// it lasts, is a worker that a debugger holds (`strace` and `gdb` count), one that is writing its core dump, and one
/// that its parent has paused. A parent that was itself away (stopped, suspended, starved) does not count that time
/// against its workers.
///
/// **On choosing numbers.** An answer takes some ten microseconds of processor time. On a machine with far more
/// runnable threads than processors it waits for its turn: a few milliseconds for each thread that competes for that
/// processor, so the default holds out against hundreds. It may not against a worker at `nice` 19 beside busy
/// neighbours, a cgroup with a tiny processor quota, or memory that has to come back from a swap disk first. Be
/// generous there: `every(1 s).misses(30)`. Below some 100 ms of patience, an ordinary busy machine kills workers that
/// are well.
///
/// A local actor has no process of its own, and no heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    every: Duration,
    misses: u32,
}

/// A shorter period would keep the parent busy with asking.
const SHORTEST: Duration = Duration::from_millis(10);

impl Heartbeat {
    /// Asks this often, 10 ms at the shortest. A worker may miss 3 answers unless [`misses`](Heartbeat::misses) says
    /// otherwise.
    pub const fn every(period: Duration) -> Heartbeat {
        Heartbeat { every: period, misses: 3 }
    }

    /// How many periods may pass without an answer; at least 1.
    #[must_use]
    pub const fn misses(self, misses: u32) -> Heartbeat {
        Heartbeat { misses, ..self }
    }

    /// Never asks: a worker that stands still stays until somebody else notices.
    pub const fn off() -> Heartbeat {
        Heartbeat { every: Duration::MAX, misses: u32::MAX }
    }

    /// How often it asks; `None` when it never does.
    #[doc(hidden)]
    pub fn period(self) -> Option<Duration> {
        (self != Heartbeat::off()).then_some(self.every)
    }

    /// How long a worker may be silent.
    #[doc(hidden)]
    pub fn patience(self) -> Duration {
        self.every.saturating_mul(self.misses)
    }

    /// Finds contradictions before anything starts.
    ///
    /// # Errors
    /// The period is too short, or not one miss is allowed.
    #[doc(hidden)]
    pub fn check(self) -> Result<(), Fault> {
        let Heartbeat { every, misses } = self;
        if every < SHORTEST {
            return Err(Fault::Refused(format!(
                "a heartbeat every {every:?}: it has to be at least {SHORTEST:?}; to have none, say Heartbeat::off()"
            )));
        }
        if misses == 0 {
            return Err(Fault::Refused(
                "a heartbeat that may be missed 0 times: it has to be at least 1; to have none, say Heartbeat::off()"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

impl Default for Heartbeat {
    fn default() -> Heartbeat {
        Heartbeat::every(Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_named_and_none_is_no_contradiction() {
        let wrong = |heartbeat: Heartbeat| heartbeat.check().unwrap_err().to_string();
        assert!(wrong(Heartbeat::every(Duration::ZERO)).contains("every 0ns: it has to be at least 10ms"));
        assert!(wrong(Heartbeat::every(Duration::from_millis(9))).contains("every 9ms"));
        assert!(wrong(Heartbeat::default().misses(0)).contains("missed 0 times"));
        for fine in [Heartbeat::off(), Heartbeat::default(), Heartbeat::every(SHORTEST).misses(1)] {
            assert_eq!(fine.check(), Ok(()));
        }
    }

    #[test]
    fn patience_is_the_period_as_often_as_it_may_be_missed() {
        assert_eq!(Heartbeat::default().patience(), Duration::from_secs(3));
        assert_eq!(
            Heartbeat::every(Duration::from_millis(200)).misses(10).patience(),
            Duration::from_secs(2)
        );
        assert_eq!((Heartbeat::off().period(), Heartbeat::default().period().is_some()), (None, true));
    }
}
