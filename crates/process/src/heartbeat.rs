//! Whether a child still stands: what is decided, with time as an argument. The warden carries it out.
//!
//! ```text
//!             the period is over: ping
//!   Quiet ─────────────────────────────▶ Waiting ─── no answer for its patience ──▶ hung
//!     ▲                                     │
//!     └─────────────────────────────────────┘
//!          its answer, or it is paused
//! ```
//!
//! One ping at a time is under way: a second one could only be answered after the first. While it waits, the child is
//! looked at every quarter of a period. The time between two looks counts against the child only if it is at most half
//! a period: else it was the *parent* that was away (stopped, suspended, starved), and the child gets at least one full
//! period more. So whatever stops both of them, the child is judged by time in which the parent certainly ran. The same
//! holds for one that has closed link or channel, and so should be about to end.
//!
//! All children of a warden are pinged at multiples of their period since the same moment: those with equal periods,
//! which is mostly all, cost one wake-up together.

use std::time::{Duration, Instant};

use hatchery_actor::heartbeat::Heartbeat;
use hatchery_actor::watchdog::Progress;
use rustix::process::Pid;

/// The heartbeat of one child, from its hello on.
#[derive(Debug)]
pub(crate) struct Pulse {
    every: Duration,
    patience: Duration,
    /// What the periods of all children are counted from.
    epoch: Instant,
    /// How many pings have been sent; also the number of the last one.
    sent: u64,
    state: State,
    /// How its handlers get on, if that is watched.
    progress: Option<Progress>,
}

#[derive(Debug)]
enum State {
    /// The next ping is due then; never, if that is beyond the clock.
    Quiet { until: Option<Instant> },
    /// The last ping has no answer yet.
    Waiting(Grace),
    /// It has been given up.
    Hung,
}

/// What is to be done about a child.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    Nothing,
    /// Send it a ping of this number.
    Ping(u64),
    /// It does not answer: end it. Said once.
    Hung,
}

impl Pulse {
    /// The heartbeat of a child that has just said hello; `None` if it shall have none. One of its handlers may take as
    /// long as `watchdog` says.
    pub(crate) fn new(
        heartbeat: Heartbeat,
        watchdog: Option<Duration>,
        epoch: Instant,
        now: Instant,
    ) -> Option<Pulse> {
        // `Heartbeat::check` has refused a period of zero long before; here it must not even divide by it.
        let every = heartbeat.period().filter(|every| !every.is_zero())?;
        let state = State::Quiet { until: None };
        let progress = watchdog.map(|limit| Progress::new(limit, every));
        let mut pulse = Pulse { every, patience: heartbeat.patience(), epoch, sent: 0, state, progress };
        pulse.rest(now);
        Some(pulse)
    }

    /// Looks at the child. `paused`: it stands still because this side wants it to. `examined`: somebody else holds it,
    /// asked only when an answer is missing.
    pub(crate) fn poll(&mut self, now: Instant, paused: bool, examined: impl FnOnce() -> bool) -> Beat {
        if matches!(self.state, State::Hung) {
            return Beat::Nothing;
        }
        if paused {
            // A ping under way is forgotten, so that afterwards everything begins anew.
            self.rest(now);
            if let Some(progress) = &mut self.progress {
                progress.forget();
            }
            return Beat::Nothing;
        }
        match &mut self.state {
            State::Quiet { until: Some(at) } if *at <= now => {
                self.sent += 1;
                self.state = State::Waiting(Grace::new(self.patience, self.every, now));
                Beat::Ping(self.sent)
            }
            State::Waiting(grace) => {
                if !grace.is_over(now, examined) {
                    return Beat::Nothing;
                }
                self.state = State::Hung;
                Beat::Hung
            }
            _ => Beat::Nothing,
        }
    }

    /// The child answered this ping while this request ran; gives why it is hung, if one of its handlers does not get on.
    /// `spared` is only asked if the same one ran at its last answer.
    ///
    /// # Errors
    /// There never was such a ping.
    pub(crate) fn pong(
        &mut self,
        number: u64,
        running: Option<u64>,
        now: Instant,
        spared: impl FnOnce() -> bool,
    ) -> Result<Option<String>, String> {
        if !(1..=self.sent).contains(&number) {
            return Err(format!("an answer to ping {number}, of {} that were sent", self.sent));
        }
        // An answer to an earlier one, from before a pause, says nothing about this one: it follows at once.
        if number == self.sent && matches!(self.state, State::Waiting(_)) {
            self.rest(now);
            if let Some(progress) = &mut self.progress {
                if progress.look(running, now, spared) {
                    self.state = State::Hung;
                    return Ok(Some(progress.reason()));
                }
            }
        }
        Ok(None)
    }

    /// When to look at it again; `None` when there is nothing to come.
    pub(crate) fn next(&self) -> Option<Instant> {
        match &self.state {
            State::Quiet { until } => *until,
            State::Waiting(grace) => grace.next(),
            State::Hung => None,
        }
    }

    /// Whether an answer is missing.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }

    /// How long it may be silent.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    fn rest(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.epoch).as_nanos() / self.every.as_nanos();
        let next =
            (passed + 1).checked_mul(self.every.as_nanos()).and_then(|nanos| u64::try_from(nanos).ok());
        let until = next.and_then(|nanos| self.epoch.checked_add(Duration::from_nanos(nanos)));
        self.state = State::Quiet { until };
    }
}

/// How long a child may go on as it does, counted in time in which its parent certainly ran.
#[derive(Debug)]
pub(crate) struct Grace {
    limit: Duration,
    /// What the child has left at least when its parent comes back; the looks are a quarter of it apart.
    period: Duration,
    looked: Instant,
    waited: Duration,
}

impl Grace {
    pub(crate) fn new(limit: Duration, period: Duration, now: Instant) -> Grace {
        Grace { limit, period, looked: now, waited: Duration::ZERO }
    }

    /// Whether it is over. `examined` as in [`Pulse::poll`].
    pub(crate) fn is_over(&mut self, now: Instant, examined: impl FnOnce() -> bool) -> bool {
        let since = now.saturating_duration_since(self.looked);
        if since < self.step() {
            return false;
        }
        self.looked = now;
        if examined() {
            self.waited = Duration::ZERO;
        } else if since > self.period / 2 {
            self.waited = self.waited.min(self.limit.saturating_sub(self.period));
        } else {
            self.waited += since;
        }
        self.waited >= self.limit
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.looked.checked_add(self.step())
    }

    fn step(&self) -> Duration {
        self.period / 4
    }
}

/// Whether somebody else holds this process for now: a debugger traces it, or the kernel writes its core dump. A
/// process that cannot be looked at is not held.
pub(crate) fn is_examined(pid: Pid) -> bool {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    std::fs::read_to_string(path).is_ok_and(|status| tells_of_examination(&status))
}

fn tells_of_examination(status: &str) -> bool {
    let fields = ["TracerPid:", "CoreDumping:"];
    let values = status.lines().filter_map(|line| fields.iter().find_map(|field| line.strip_prefix(field)));
    values.into_iter().any(|value| value.trim() != "0")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pulse(heartbeat: Heartbeat, start: Instant) -> Pulse {
        Pulse::new(heartbeat, None, start, start).unwrap()
    }

    /// It answers, while nothing is known of its handlers.
    fn pong(pulse: &mut Pulse, number: u64, now: Instant) -> Result<(), String> {
        pulse.pong(number, None, now, || panic!("no handler runs")).map(|hung| assert_eq!(hung, None))
    }

    /// Looks when it asks to be looked at, each time so much later, until something is to be done.
    fn look(pulse: &mut Pulse, now: &mut Instant, late: Duration) -> Beat {
        *now = pulse.next().unwrap() + late;
        pulse.poll(*now, false, || false)
    }

    /// The parent is there all the time now, and the child stays silent.
    fn look_until_hung(pulse: &mut Pulse, now: &mut Instant) {
        for _ in 0..1000 {
            match look(pulse, now, Duration::ZERO) {
                Beat::Nothing => {}
                beat => return assert_eq!(beat, Beat::Hung),
            }
        }
        panic!("never given up");
    }

    fn pinged(heartbeat: Heartbeat) -> (Pulse, Instant) {
        let mut now = Instant::now();
        let mut pulse = pulse(heartbeat, now);
        assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Ping(1));
        (pulse, now)
    }

    #[test]
    fn a_child_that_answers_is_pinged_once_a_period() {
        let start = Instant::now();
        let (mut pulse, mut now) = (pulse(Heartbeat::default(), start), start);
        for number in 1..10_u64 {
            assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Ping(number));
            assert_eq!(now, start + SECOND * u32::try_from(number).unwrap());
            assert_eq!(pong(&mut pulse, number, now + Duration::from_micros(50)), Ok(()));
            assert_eq!(pulse.poll(now + SECOND / 2, false, || panic!("nothing is missing")), Beat::Nothing);
        }
    }

    #[test]
    fn children_that_came_at_different_times_are_pinged_together() {
        let epoch = Instant::now();
        let came = |after: u64| {
            let now = epoch + Duration::from_millis(after);
            Pulse::new(Heartbeat::default(), None, epoch, now).unwrap().next().unwrap()
        };
        assert_eq!([came(0), came(17), came(999)], [epoch + SECOND; 3]);
        assert_eq!(came(1000), epoch + 2 * SECOND);
    }

    #[test]
    fn a_child_that_does_not_answer_is_hung_after_its_patience_and_that_is_said_once() {
        let (mut pulse, sent) = pinged(Heartbeat::default());
        let mut now = sent;
        look_until_hung(&mut pulse, &mut now);
        assert_eq!((now, pulse.next()), (sent + 3 * SECOND, None));
        assert_eq!(pulse.poll(now + 9 * SECOND, false, || false), Beat::Nothing);
    }

    #[test]
    fn an_answer_at_the_last_moment_counts() {
        let (mut pulse, sent) = pinged(Heartbeat::default());
        let mut now = sent;
        while now < sent + 3 * SECOND - SECOND / 4 {
            assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Nothing);
        }
        pong(&mut pulse, 1, now).unwrap();
        assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Ping(2));
    }

    #[test]
    fn looks_that_come_too_early_change_nothing() {
        let (mut pulse, sent) = pinged(Heartbeat::default());
        for n in 1..1000 {
            let now = sent + n * Duration::from_micros(200);
            assert_eq!(pulse.poll(now, false, || panic!("too early to ask")), Beat::Nothing);
        }
        assert_eq!(pulse.next(), Some(sent + SECOND / 4));
    }

    /// The self-lag rule.
    #[test]
    fn a_parent_that_was_away_leaves_its_child_a_full_period() {
        for misses in 1..5 {
            for waited in 0..4 * misses {
                let (mut pulse, sent) = pinged(Heartbeat::default().misses(misses));
                let mut now = sent;
                for _ in 0..waited {
                    assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Nothing);
                }
                assert_eq!(look(&mut pulse, &mut now, 10 * SECOND), Beat::Nothing);
                let back = now;
                look_until_hung(&mut pulse, &mut now);
                let left = (misses * SECOND - waited * SECOND / 4).max(SECOND);
                assert_eq!(now, back + left, "{misses} misses, {waited} quarters waited");
            }
        }
    }

    /// The same rule, for a child that should be about to end.
    #[test]
    fn a_grace_begins_anew_when_the_parent_was_away_and_is_over_when_it_was_there() {
        let mut now = Instant::now();
        let mut grace = Grace::new(SECOND, SECOND, now);
        for late in [0, 0, 1, 0, 20] {
            now = grace.next().unwrap() + late * SECOND;
            assert!(!grace.is_over(now, || false));
        }
        let back = now;
        while !grace.is_over(now, || false) {
            now = grace.next().unwrap();
        }
        assert_eq!(now, back + SECOND);
    }

    #[test]
    fn a_child_that_is_examined_is_spared_and_has_all_its_patience_afterwards() {
        let (mut pulse, mut now) = pinged(Heartbeat::default());
        for _ in 0..1000 {
            now = pulse.next().unwrap();
            assert_eq!(pulse.poll(now, false, || true), Beat::Nothing);
        }
        let released = now;
        look_until_hung(&mut pulse, &mut now);
        assert_eq!(now, released + 3 * SECOND);
    }

    #[test]
    fn a_paused_child_is_not_pinged_and_begins_anew() {
        let (mut pulse, mut now) = pinged(Heartbeat::default());
        for _ in 0..1000 {
            now = pulse.next().unwrap();
            assert_eq!(pulse.poll(now, true, || panic!("there is no need to ask")), Beat::Nothing);
        }
        assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Ping(2));
        // It goes on, and first answers what it was asked before.
        assert_eq!(pong(&mut pulse, 1, now), Ok(()));
        assert!(pulse.is_waiting());
        assert_eq!(pong(&mut pulse, 2, now), Ok(()));
        assert!(!pulse.is_waiting());
    }

    #[test]
    fn an_answer_to_what_was_never_asked_is_an_error() {
        let (mut pulse, now) = pinged(Heartbeat::default());
        assert_eq!(pong(&mut pulse, 2, now).unwrap_err(), "an answer to ping 2, of 1 that were sent");
        assert!(pong(&mut pulse, 0, now).is_err());
        assert_eq!((pong(&mut pulse, 1, now), pong(&mut pulse, 1, now)), (Ok(()), Ok(())), "twice is once");
    }

    /// A child that answers at once, with this request running, until it is hung; when that is.
    fn answer_until_hung(pulse: &mut Pulse, now: &mut Instant, running: Option<u64>) -> String {
        for _ in 0..1000 {
            let number = match look(pulse, now, Duration::ZERO) {
                Beat::Ping(number) => number,
                other => panic!("a ping was due, not {other:?}"),
            };
            if let Some(why) = pulse.pong(number, running, *now, || false).unwrap() {
                return why;
            }
        }
        panic!("never hung");
    }

    #[test]
    fn a_child_that_answers_with_the_same_handler_for_its_limit_is_hung_and_that_is_said_once() {
        let start = Instant::now();
        let mut pulse = Pulse::new(Heartbeat::default(), Some(5 * SECOND), start, start).unwrap();
        let mut now = start;
        let why = answer_until_hung(&mut pulse, &mut now, Some(1));
        assert_eq!(why, "no progress for 5s: one handler has run since");
        // First seen with the first ping.
        assert_eq!((now, pulse.next()), (start + 6 * SECOND, None));
        assert_eq!(pulse.poll(now + 9 * SECOND, false, || false), Beat::Nothing);
        assert_eq!(pulse.pong(6, Some(1), now, || false), Ok(None));
    }

    #[test]
    fn a_child_without_a_watchdog_may_have_a_handler_run_for_ever() {
        let start = Instant::now();
        let (mut pulse, mut now) = (pulse(Heartbeat::default(), start), start);
        for number in 1..1000 {
            assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Ping(number));
            assert_eq!(pulse.pong(number, Some(1), now, || panic!("nobody looks")), Ok(None));
        }
    }

    #[test]
    fn a_pause_has_the_watchdog_begin_anew_and_an_answer_from_before_it_says_nothing() {
        let start = Instant::now();
        let mut pulse = Pulse::new(Heartbeat::default(), Some(5 * SECOND), start, start).unwrap();
        let mut now = start;
        for number in 1..=5 {
            assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Ping(number));
            assert_eq!(pulse.pong(number, Some(1), now, || false), Ok(None));
        }
        assert_eq!(look(&mut pulse, &mut now, Duration::ZERO), Beat::Ping(6));
        assert_eq!(pulse.poll(now, true, || false), Beat::Nothing);
        // It is answered when it goes on: that was before the pause, as far as anybody knows.
        assert_eq!(pulse.pong(6, Some(1), now, || panic!("it says nothing")), Ok(None));
        let resumed = now;
        answer_until_hung(&mut pulse, &mut now, Some(1));
        assert_eq!(now, resumed + 6 * SECOND);
    }

    #[test]
    fn no_heartbeat_and_one_beyond_the_clock_never_beat() {
        let now = Instant::now();
        assert!(Pulse::new(Heartbeat::off(), Some(SECOND), now, now).is_none());
        assert!(Pulse::new(Heartbeat::every(Duration::ZERO), None, now, now).is_none());
        assert_eq!(pulse(Heartbeat::every(Duration::MAX), now).next(), None);
    }

    #[test]
    fn tracers_and_core_dumps_are_found_in_a_status() {
        let status = |tracer: u32, dumping: u32| {
            format!("Name:\tTracerPid: 7\nTracerPid:\t{tracer}\nCoreDumping:\t{dumping}\nThreads:\t1\n")
        };
        assert!(!tells_of_examination(&status(0, 0)));
        assert!(tells_of_examination(&status(4711, 0)));
        assert!(tells_of_examination(&status(0, 1)));
        assert!(!tells_of_examination(""));
    }

    /// The real thing, seen by the kernel's own word.
    #[test]
    fn a_process_is_examined_while_it_is_traced() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let before = is_examined(pid);
        let traced = crate::os::trace(pid, || is_examined(pid));
        let after = is_examined(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((before, traced.unwrap(), after), (false, true, false));
        assert!(!is_examined(pid), "one that is gone is not held");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        /// The machine stops and goes on as it likes, and looks come late: a child that answers within half a period
        /// of time in which it runs is never given up.
        #[test]
        fn a_child_that_answers_is_never_given_up(
            misses in 1_u32..5,
            delay in 0_u64..500,
            lates in prop::collection::vec(prop_oneof![3 => 0_u64..100, 1 => 0_u64..20_000], 1..200),
        ) {
            let start = Instant::now();
            let (mut pulse, mut now) = (pulse(Heartbeat::default().misses(misses), start), start);
            // How long it still takes to answer, of the time in which the machine runs.
            let mut answers_in = None;
            for late in lates {
                let planned = pulse.next().unwrap();
                let ran = planned - now;
                let whole = planned + Duration::from_millis(late) - now;
                now = planned + Duration::from_millis(late);
                // The machine stood still for as long as the look is late.
                match answers_in {
                    Some(left) if left <= ran => {
                        {
                            let sent = pulse.sent;
                            pong(&mut pulse, sent, now - whole + left)
                        }.unwrap();
                        answers_in = None;
                    }
                    Some(left) => answers_in = Some(left - ran),
                    None => {}
                }
                match pulse.poll(now, false, || false) {
                    Beat::Ping(_) => answers_in = Some(Duration::from_millis(delay)),
                    Beat::Nothing => {}
                    Beat::Hung => prop_assert!(false, "given up, {answers_in:?} before its answer"),
                }
            }
        }

        /// However the parent sways: a silent child is not given up before its patience is over, and is when the
        /// parent has been there for that long.
        #[test]
        fn a_silent_child_is_given_up_in_time(
            misses in 1_u32..5,
            lates in prop::collection::vec(prop_oneof![3 => 0_u64..100, 1 => 0_u64..20_000], 0..30),
        ) {
            let (mut pulse, sent) = pinged(Heartbeat::default().misses(misses));
            let mut now = sent;
            for late in lates {
                if look(&mut pulse, &mut now, Duration::from_millis(late)) == Beat::Hung {
                    prop_assert!(now >= sent + misses * SECOND);
                    return Ok(());
                }
            }
            let mut looks = 0;
            while look(&mut pulse, &mut now, Duration::ZERO) == Beat::Nothing {
                looks += 1;
                prop_assert!(looks < 4 * misses);
            }
            prop_assert!(now >= sent + misses * SECOND);
        }
    }
}
