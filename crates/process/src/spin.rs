//! Whether an end of a channel looks out for what is due before it sleeps: what is decided, with time as an argument.
//!
//! It is decided by a purse of time. What a wait was shorter than those that are slept through is put in; what it was
//! longer is taken out. Who cannot pay for a look in vain sleeps, and a small share of what he sleeps is put in, so that
//! he tries again once in a while: the more seldom, the more often it was in vain. So whatever makes looking useless
//! (both ends on one CPU, others who want it, slow handlers, a caller who takes his time), it costs that small share and
//! no more, and nobody has to know which of them it is.

use std::time::{Duration, Instant};

/// For how long it looks before it sleeps after all. A wake-up across CPUs takes 20 to 40 µs; what is not there after
/// this time does not come quickly.
const BOUND: Duration = Duration::from_micros(50);

/// Waits longer than this say nothing about spinning: it is the other side that takes its time.
const QUICK: Duration = Duration::from_micros(200);

/// So many quick waits are slept through first: few of them are no habit.
const FIRST: u32 = 32;

/// The price of a look in vain.
const LOOK: i64 = nanos(BOUND);

/// What is in the purse at first: some looks in vain, since both ends have to begin before either gains much.
const AT_FIRST: i64 = 4 * LOOK;

/// With so much in the purse it tries again. One look may be in vain by chance.
const AGAIN: i64 = 2 * LOOK;

/// More than this the purse does not hold: after so many looks in vain it is over.
const FULL: i64 = 8 * LOOK;

/// One part in so many of the time slept in quick waits goes into the purse: first, and after many vain trials.
const SHARES: (i64, i64) = (128, 1024);

/// Every so many waits one is slept through, to see how long that takes by now.
const COMPARE: u32 = 256;

/// Of a time that has been cut to [`QUICK`], or is a constant.
const fn nanos(time: Duration) -> i64 {
    time.as_nanos() as i64
}

/// One end of one channel.
#[derive(Debug)]
pub(crate) struct Spinner {
    wait: Option<Wait>,
    /// Whether it is trying.
    tries: bool,
    /// Nanoseconds.
    purse: i64,
    share: i64,
    /// How long quick waits take asleep, smoothed, in nanoseconds; meaningless before the first.
    asleep: i64,
    /// How many quick waits have been slept through.
    slept: u32,
    /// How many waits have not, since the last that has.
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
        Spinner { wait: None, tries: true, purse: AT_FIRST, share: SHARES.0, asleep: 0, slept: 0, awake: 0 }
    }

    /// There is nothing to do. Whether to look again at once, since something is due, rather than to sleep.
    pub(crate) fn looks_again(&mut self, due: bool, now: Instant) -> bool {
        if !due {
            // Whoever waited has left.
            if self.wait.take().is_some_and(|wait| wait.way != Way::Asleep) {
                self.change(-LOOK);
            }
            return false;
        }
        let tries = self.tries && self.slept >= FIRST && self.awake < COMPARE;
        let way = if tries { Way::Awake } else { Way::Asleep };
        let wait = self.wait.get_or_insert(Wait { since: now, way });
        if wait.way == Way::Awake && now.saturating_duration_since(wait.since) >= BOUND {
            wait.way = Way::Both;
        }
        wait.way == Way::Awake
    }

    /// Something came.
    pub(crate) fn arrived(&mut self, now: Instant) {
        let Some(Wait { since, way }) = self.wait.take() else { return };
        let took = now.saturating_duration_since(since);
        let is_quick = took <= QUICK;
        let took = nanos(took.min(QUICK));
        match way {
            Way::Asleep => {
                self.awake = 0;
                if is_quick {
                    self.asleep = if self.slept == 0 { took } else { self.asleep + (took - self.asleep) / 4 };
                    self.slept = self.slept.saturating_add(1);
                    self.change(took / self.share);
                }
            }
            Way::Awake => {
                self.awake += 1;
                self.change(self.asleep - took);
                if self.purse == FULL {
                    self.share = SHARES.0;
                }
            }
            Way::Both => {
                self.awake += 1;
                // It may have kept the other end from its CPU.
                self.change((self.asleep - took).min(-LOOK));
            }
        }
    }

    fn change(&mut self, by: i64) {
        self.purse = (self.purse + by).clamp(0, FULL);
        if self.tries && self.purse < LOOK {
            self.tries = false;
            self.share = (2 * self.share).min(SHARES.1);
        } else if self.purse >= AGAIN {
            self.tries = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A channel's end in virtual time. `looks` counts how often it looked in vain for nothing.
    struct End {
        spinner: Spinner,
        now: Instant,
        looks: u32,
    }

    /// A look takes so long.
    const STEP: Duration = Duration::from_micros(1);

    impl End {
        fn new() -> End {
            End { spinner: Spinner::new(), now: Instant::now(), looks: 0 }
        }

        /// A wait for something that comes after this long if this end is awake, and after that long if it sleeps; so
        /// much later, if it has looked in vain before. Gives whether it was awake to the end.
        fn waits(&mut self, awake: Duration, asleep: Duration) -> bool {
            let begun = self.now;
            while self.spinner.looks_again(true, self.now) {
                self.looks += 1;
                self.now += STEP;
                if self.now - begun >= awake {
                    self.spinner.arrived(self.now);
                    return true;
                }
            }
            self.now += asleep;
            self.spinner.arrived(self.now);
            false
        }

        fn waits_often(&mut self, times: u32, awake: Duration, asleep: Duration) -> u32 {
            (0..times).map(|_| u32::from(self.waits(awake, asleep))).sum()
        }
    }

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn it_never_looks_while_nothing_is_due() {
        let mut end = End::new();
        end.waits_often(1000, us(5), us(40));
        for _ in 0..1000 {
            assert!(!end.spinner.looks_again(false, end.now));
            end.now += us(10);
        }
    }

    #[test]
    fn it_sleeps_first_and_then_looks_while_that_is_quicker() {
        let mut end = End::new();
        assert_eq!(end.waits_often(FIRST, us(5), us(40)), 0);
        let awake = end.waits_often(100 * COMPARE, us(5), us(40));
        assert!(awake > 99 * COMPARE, "all but those that compare: {awake}");
    }

    #[test]
    fn one_wait_is_bounded_and_comes_to_an_end_in_sleep() {
        let mut end = End::new();
        end.waits_often(1000, us(5), us(40));
        let before = end.looks;
        assert!(!end.waits(us(1_000_000), us(1_000_000)));
        assert_eq!(end.looks - before, 50);
        // However often it is woken for something else meanwhile.
        assert!(end.spinner.looks_again(true, end.now));
        end.now += BOUND;
        for _ in 0..100 {
            assert!(!end.spinner.looks_again(true, end.now));
            end.now += us(1);
        }
    }

    #[test]
    fn where_looking_is_in_vain_it_costs_a_small_share() {
        // Both ends on one CPU: the other one cannot run meanwhile.
        let mut end = End::new();
        let begun = end.now;
        assert_eq!(end.waits_often(100_000, us(1_000), us(15)), 0);
        let more = (end.now - begun).as_secs_f64() / (us(15) * 100_000).as_secs_f64();
        assert!(more < 1.005, "{more}");
        assert!(end.looks > 500, "it never gives up for good");
    }

    #[test]
    fn looking_that_is_no_quicker_than_sleep_ends() {
        // The kernel takes the CPU from this end as soon as the other wants it, which is not better than to sleep.
        let mut end = End::new();
        end.waits_often(1000, us(20), us(15));
        let awake = end.waits_often(10_000, us(20), us(15));
        assert!(awake < 200, "{awake} of 10,000");
    }

    #[test]
    fn slow_answers_and_seldom_requests_are_slept_through() {
        let mut end = End::new();
        assert_eq!(end.waits_often(10_000, us(300), us(340)), 0);
        assert_eq!(end.looks, 0);
    }

    #[test]
    fn it_begins_again_when_it_pays_again_and_ends_when_it_does_not() {
        let mut end = End::new();
        end.waits_often(1000, us(5), us(40));
        end.waits_often(100_000, us(1_000), us(15));
        let awake = end.waits_often(20_000, us(5), us(40));
        assert!(awake > 15_000, "{awake}");
        assert_eq!(end.waits_often(1, us(5), us(40)), 1);
        let before = end.looks;
        end.waits_often(100, us(1_000), us(15));
        assert!(end.looks - before <= 8 * 50, "a full purse at most: {}", end.looks - before);
    }

    #[test]
    fn who_leaves_while_it_looks_is_paid_for() {
        let mut end = End::new();
        end.waits_often(1000, us(5), us(40));
        for _ in 0..8 {
            assert!(end.spinner.looks_again(true, end.now));
            assert!(!end.spinner.looks_again(false, end.now));
        }
        assert!(!end.spinner.looks_again(true, end.now));
    }
}
