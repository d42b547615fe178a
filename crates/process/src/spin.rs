//! Whether an end of a channel looks out for what is due before it sleeps: what is decided, with time as an argument.
//!
//! It is decided by a purse of time. What a wait was shorter than one that sleeps is put in; what it was longer, and
//! what was spent looking in vain, is taken out; and a small share of all waits that sleep is put in, so that it is
//! tried again once in a while. Who cannot pay for one more look in vain sleeps. So whatever makes looking useless (both
//! ends on one CPU, others who want it, slow handlers, a caller who takes his time), it costs that small share and no
//! more, and nobody has to know which of them it is.

use std::time::{Duration, Instant};

/// For how long it looks before it sleeps after all. A wake-up across CPUs takes 20 to 40 µs; what is not there after
/// this time does not come quickly.
const BOUND: Duration = Duration::from_micros(50);

/// Waits longer than this say nothing about spinning: it is the other side that takes its time.
const QUICK: Duration = Duration::from_micros(200);

/// So many quick waits are slept through first: few of them are no habit.
const FIRST: u32 = 32;

/// What is in the purse at first: some looks in vain, since both ends have to begin before either gains much.
const AT_FIRST: i64 = 4 * nanos(BOUND);

/// The purse is full: after so many looks in vain it is over.
const FULL: i64 = 8 * nanos(BOUND);

/// One part in so many of the time slept in quick waits goes into the purse.
const SHARE: i64 = 128;

/// Every so many waits one is slept through, to see how long that takes by now.
const COMPARE: u32 = 256;

const fn nanos(time: Duration) -> i64 {
    // Whatever is measured here is cut to `QUICK` first, or is a constant.
    time.as_nanos() as i64
}

/// One end of one channel.
#[derive(Debug)]
pub(crate) struct Spinner {
    wait: Option<Wait>,
    /// Nanoseconds.
    purse: i64,
    /// How long quick waits take asleep, smoothed, in nanoseconds; meaningless before the first.
    asleep: i64,
    /// How many quick waits have been slept through.
    slept: u32,
    /// How many have not, since the last that has.
    awake: u32,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Instant,
    way: Way,
}

/// How a wait is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Asleep,
    Awake,
    /// Awake first, in vain.
    Both,
}

impl Spinner {
    pub(crate) fn new() -> Spinner {
        Spinner { wait: None, purse: AT_FIRST, asleep: 0, slept: 0, awake: 0 }
    }

    /// There is nothing to do. Whether to look again at once, since something is due, rather than to sleep.
    pub(crate) fn looks_again(&mut self, due: bool, now: Instant) -> bool {
        if !due {
            // Whoever waited has left.
            self.wait = None;
            return false;
        }
        let way = if self.is_worth_it() { Way::Awake } else { Way::Asleep };
        let wait = self.wait.get_or_insert(Wait { since: now, way });
        if wait.way != Way::Awake {
            return false;
        }
        let took = now.saturating_duration_since(wait.since);
        if took < BOUND {
            return true;
        }
        wait.way = Way::Both;
        // Longer than the bound: others had the CPU.
        self.change(-nanos(took.min(QUICK)));
        false
    }

    /// Something came.
    pub(crate) fn arrived(&mut self, now: Instant) {
        let Some(Wait { since, way }) = self.wait.take() else { return };
        let took = now.saturating_duration_since(since);
        let nanos = nanos(took.min(QUICK));
        match way {
            Way::Awake => {
                self.awake += 1;
                self.change(self.asleep - nanos);
            }
            Way::Asleep if took <= QUICK => {
                self.asleep = if self.slept == 0 { nanos } else { self.asleep + (nanos - self.asleep) / 8 };
                self.slept = self.slept.saturating_add(1);
                self.awake = 0;
                self.change(nanos / SHARE);
            }
            Way::Asleep => self.awake = 0,
            // How long it would have been asleep, nobody knows.
            Way::Both => self.awake += 1,
        }
    }

    fn is_worth_it(&self) -> bool {
        self.slept >= FIRST && self.awake < COMPARE && self.purse >= nanos(BOUND)
    }

    fn change(&mut self, by: i64) {
        self.purse = (self.purse + by).clamp(0, FULL);
    }
}
