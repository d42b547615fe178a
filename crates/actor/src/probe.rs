//! Finds circles of handlers that wait for one another, where no request's chain tells of them: a asks b while b asks a.
//!
//! A handler that has waited for a while for one answer, and for nothing else, sends a probe along that ask. Where the
//! request waits or runs, the probe goes on if the handler there waits for one answer in turn, and ends if not. A probe
//! that comes back has seen a circle, though not all of it at once: whoever let it pass may have given up since. So it is
//! sent round again. If it then finds everyone at the very same wait, all of them were waiting at the moment in
//! between, and none of them can go on by a message of another.
//!
//! ```text
//!        a waits for b ────────▶ b waits for c
//!             ▲                        │
//!             └───── c waits for a ◀───┘          first round:  a, b, c;  second round:  a, b, c: the ask of a fails
//! ```
//!
//! Of a circle's members, the one with the smallest life finds it: it lets nobody else's probe pass.

use std::sync::{Arc, Weak};

use bytes::{BufMut, Bytes, BytesMut};
use hatchery_wire::CHAIN;

use crate::chain::{Life, NoChain, take_path, take_u64};

/// Most handlers that a probe visits. Without words they have room in an envelope.
const MOST: usize = 128;

/// On the wire, before the path: life, number, wait, whether the request runs, length of the path.
const HEAD: usize = 8 + 8 + 8 + 1 + 2;

/// On the wire, before all of them: the serial number.
const SERIAL: usize = 8;

const _: () = assert!(SERIAL + MOST * HEAD <= CHAIN);

/// Travels along what handlers wait for, and notes whom it finds waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The how manyth of whoever sent it.
    serial: u64,
    /// Whoever sent it, and those it has found; never empty.
    trail: Vec<Stop>,
}

/// A handler that waits for one answer and nothing else.
#[derive(Clone, Debug)]
struct Stop {
    life: Life,
    /// The request that it works on.
    number: u64,
    /// The how manyth wait of that incarnation.
    wait: u64,
    /// Whether the request along which the probe came was the one that it works on, rather than one behind that.
    runs: bool,
    /// Where the actor sits; empty where there was no room for words.
    path: Arc<str>,
}

impl PartialEq for Stop {
    /// Words may get lost on the way.
    fn eq(&self, other: &Stop) -> bool {
        let key = |stop: &Stop| (stop.life, stop.number, stop.wait, stop.runs);
        key(self) == key(other)
    }
}

impl Eq for Stop {}

/// Handlers that wait for one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Circle {
    /// Their paths, each waiting for the next one.
    pub(crate) paths: Vec<String>,
    /// Whether the request that the first one waits for has begun.
    pub(crate) runs: bool,
}

/// What becomes of a probe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<A> {
    Ends,
    /// It goes along this ask.
    Goes(A, Probe),
    /// The handler here waits for itself: this ask of it has to be given up.
    Circle(A, Circle),
}

/// What an actor knows of its handler's waiting; decides on probes. `A` is what tells asks apart.
#[derive(Debug)]
pub(crate) struct Station<A> {
    life: Life,
    /// What the handler waits for, or waited for when it was looked at last.
    wait: Option<Wait<A>>,
    /// Nothing has happened to the handler since.
    still: bool,
    waits: u64,
    /// Of the latest probe that was sent from here.
    serial: u64,
    /// What the first round found.
    found: Option<Vec<Stop>>,
}

#[derive(Debug)]
struct Wait<A> {
    ask: A,
    stop: Stop,
}

impl<A: Clone + PartialEq> Station<A> {
    pub(crate) fn new(life: Life) -> Station<A> {
        Station { life, wait: None, still: false, waits: 0, serial: 0, found: None }
    }

    /// The handler is about to take a step.
    pub(crate) fn stirs(&mut self) {
        self.still = false;
    }

    /// The handler has returned, or is not looked at any more.
    pub(crate) fn over(&mut self) {
        (self.wait, self.still, self.found) = (None, false, None);
    }

    /// The handler of this request waits for the answer to one ask, and can go on by nothing else.
    pub(crate) fn waits(&mut self, number: u64, path: &Arc<str>, ask: A) {
        self.still = true;
        // After a step that led nowhere it is the same wait.
        if self.wait.as_ref().is_some_and(|wait| wait.stop.number == number && wait.ask == ask) {
            return;
        }
        self.waits += 1;
        let stop = Stop { life: self.life, number, wait: self.waits, runs: false, path: path.clone() };
        (self.wait, self.found) = (Some(Wait { ask, stop }), None);
    }

    /// A probe to be sent along what the handler waits for.
    pub(crate) fn begins(&mut self) -> Option<(A, Probe)> {
        let Wait { ask, stop } = self.wait.as_ref().filter(|_| self.still)?;
        self.serial += 1;
        Some((ask.clone(), Probe { serial: self.serial, trail: vec![stop.clone()] }))
    }

    /// A probe has come along a request that waits here, or runs here and has not had its answer put off.
    pub(crate) fn arrives(&mut self, probe: Probe, runs: bool) -> Verdict<A> {
        let Some(Wait { ask, stop }) = self.wait.as_ref().filter(|_| self.still) else {
            return Verdict::Ends;
        };
        let Probe { serial, mut trail } = probe;
        let Some(first) = trail.first() else { return Verdict::Ends };
        if first.life != self.life {
            let passed = trail.iter().any(|stop| stop.life == self.life);
            if first.life > self.life || passed || trail.len() >= MOST {
                return Verdict::Ends;
            }
            trail.push(Stop { runs, ..stop.clone() });
            return Verdict::Goes(ask.clone(), Probe { serial, trail });
        }
        // An earlier one does not count: the second round must begin after the first one has ended.
        if serial != self.serial || first != stop {
            return Verdict::Ends;
        }
        let ask = ask.clone();
        if self.found.as_ref() == Some(&trail) {
            let runs = trail.get(1).map_or(runs, |next| next.runs);
            let paths = trail.iter().map(|stop| stop.path.to_string()).collect();
            return Verdict::Circle(ask, Circle { paths, runs });
        }
        self.found = Some(trail);
        self.begins().map_or(Verdict::Ends, |(ask, probe)| Verdict::Goes(ask, probe))
    }
}

impl Probe {
    /// As an envelope carries it. One that would be too long goes without words.
    #[doc(hidden)]
    pub fn to_wire(&self) -> Bytes {
        let words: usize = self.trail.iter().map(|stop| stop.path.len()).sum();
        let length = SERIAL + self.trail.len() * HEAD + words;
        let mut out = BytesMut::with_capacity(length.min(CHAIN));
        out.put_u64(self.serial);
        for Stop { life, number, wait, runs, path } in &self.trail {
            out.put_u64(*life);
            out.put_u64(*number);
            out.put_u64(*wait);
            out.put_u8(u8::from(*runs));
            let path = if length <= CHAIN { &**path } else { "" };
            // Shorter than the whole.
            out.put_u16(path.len() as u16);
            out.put_slice(path.as_bytes());
        }
        out.freeze()
    }

    /// From an envelope.
    ///
    /// # Errors
    /// It is none that a probe is written as.
    #[doc(hidden)]
    pub fn of_wire(mut rest: &[u8]) -> Result<Probe, NoProbe> {
        Probe::read(&mut rest).map_err(|NoChain| NoProbe)
    }

    fn read(rest: &mut &[u8]) -> Result<Probe, NoChain> {
        let serial = take_u64(rest)?;
        let mut trail = Vec::new();
        while trail.is_empty() || !rest.is_empty() {
            let (life, number, wait) = (take_u64(rest)?, take_u64(rest)?, take_u64(rest)?);
            let runs = match rest.split_first() {
                Some((runs @ (0 | 1), after)) => {
                    *rest = after;
                    *runs == 1
                }
                _ => return Err(NoChain),
            };
            trail.push(Stop { life, number, wait, runs, path: take_path(rest)? });
        }
        if trail.len() > MOST { Err(NoChain) } else { Ok(Probe { serial, trail }) }
    }
}

/// Bytes that are no probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a malformed probe")]
pub struct NoProbe;

/// The seat of an ask, as a probe knows it.
pub(crate) trait Way: Send + Sync {
    /// Takes a probe along this ask, if it still waits for its answer.
    fn go_on(&self, id: u64, probe: Probe);

    /// This ask, if it still waits for its answer, fails, since whoever is to give it waits for whoever asks.
    fn give_up(&self, id: u64, circle: Circle);
}

/// An ask that a handler waits for.
#[derive(Clone)]
pub(crate) struct Awaited {
    pub(crate) way: Weak<dyn Way>,
    pub(crate) id: u64,
}

impl PartialEq for Awaited {
    fn eq(&self, other: &Awaited) -> bool {
        self.id == other.id && std::ptr::addr_eq(self.way.as_ptr(), other.way.as_ptr())
    }
}

/// Does what was decided. No lock may be held: it goes along all asks within this process.
pub(crate) fn follow(verdict: Verdict<Awaited>) {
    match verdict {
        Verdict::Ends => {}
        Verdict::Goes(Awaited { way, id }, probe) => {
            if let Some(way) = way.upgrade() {
                way.go_on(id, probe);
            }
        }
        Verdict::Circle(Awaited { way, id }, circle) => {
            if let Some(way) = way.upgrade() {
                way.give_up(id, circle);
            }
        }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stop(life: Life, path: &str) -> Stop {
        Stop { life, number: 2, wait: 3, runs: life % 2 == 0, path: path.into() }
    }

    /// Two actors of which each waits for the other, and what the first one's probe has found.
    #[test]
    fn a_circle_is_one_after_two_rounds() {
        let (mut a, mut b) = (Station::new(1), Station::new(2));
        a.waits(7, &"/a".into(), "a asks b");
        b.waits(4, &"/b".into(), "b asks a");
        let (ask, first) = a.begins().unwrap();
        assert_eq!(ask, "a asks b");
        let Verdict::Goes("b asks a", first) = b.arrives(first, false) else { panic!("it waits") };
        // That of the other one is not let through.
        let (_, others) = b.begins().unwrap();
        assert_eq!(a.arrives(others, false), Verdict::Ends);
        let Verdict::Goes("a asks b", second) = a.arrives(first.clone(), false) else {
            panic!("once is not enough")
        };
        assert_eq!(a.arrives(first, false), Verdict::Ends, "it has been here");
        let Verdict::Goes("b asks a", second) = b.arrives(second, false) else { panic!("it waits") };
        let circle = Circle { paths: vec!["/a".to_owned(), "/b".to_owned()], runs: false };
        assert_eq!(a.arrives(second, false), Verdict::Circle("a asks b", circle));
    }

    #[test]
    fn a_wait_that_ended_in_between_is_another_one() {
        let (mut a, mut b) = (Station::new(1), Station::new(2));
        a.waits(7, &"/a".into(), 0);
        b.waits(4, &"/b".into(), 1);
        let round = |a: &mut Station<i32>, b: &mut Station<i32>, probe| match b.arrives(probe, false) {
            Verdict::Goes(_, probe) => a.arrives(probe, false),
            other => other,
        };
        let (_, probe) = a.begins().unwrap();
        let Verdict::Goes(_, second) = round(&mut a, &mut b, probe) else { panic!("both wait") };
        // It has got its answer, and asks the same one again.
        b.stirs();
        assert_eq!(b.arrives(second.clone(), false), Verdict::Ends, "it takes a step");
        b.waits(4, &"/b".into(), 2);
        let Verdict::Goes(_, third) = round(&mut a, &mut b, second) else { panic!("not the same") };
        // A step that leads nowhere changes nothing.
        b.stirs();
        b.waits(4, &"/b".into(), 2);
        assert!(matches!(round(&mut a, &mut b, third), Verdict::Circle(..)));
        a.over();
        assert!(a.begins().is_none());
    }

    #[test]
    fn a_probe_ends_where_it_has_been_and_after_many() {
        let mut station = Station::new(9);
        let probe =
            |lives: Vec<Life>| Probe { serial: 1, trail: lives.into_iter().map(|l| stop(l, "/")).collect() };
        assert_eq!(station.arrives(probe(vec![1]), false), Verdict::Ends, "nobody waits here");
        station.waits(1, &"/x".into(), 0);
        assert!(matches!(station.arrives(probe(vec![1]), false), Verdict::Goes(0, _)));
        assert_eq!(station.arrives(probe(vec![1, 9, 2]), false), Verdict::Ends);
        assert_eq!(station.arrives(probe(vec![10]), false), Verdict::Ends, "its own comes round");
        assert_eq!(station.arrives(probe((1..=8).cycle().take(MOST).collect()), false), Verdict::Ends);
    }

    #[test]
    fn a_long_trail_goes_without_words() {
        let path = "/".repeat(100);
        let probe = |n: u64| Probe { serial: 5, trail: (0..n).map(|life| stop(life, &path)).collect() };
        let words = |probe: &Probe| Probe::of_wire(&probe.to_wire()).unwrap().trail[0].path.len();
        assert_eq!((words(&probe(32)), words(&probe(33)), words(&probe(MOST as u64))), (100, 0, 0));
        assert!(probe(MOST as u64).to_wire().len() <= CHAIN);
        assert_eq!(Probe::of_wire(&probe(MOST as u64 + 1).to_wire()), Err(NoProbe));
    }

    proptest! {
        #[test]
        fn probes_survive_the_wire_and_bytes_never_panic(
            serial in any::<u64>(),
            trail in prop::collection::vec((any::<u64>(), "[/a-zä0-9]{0,12}"), 1..40),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let trail: Vec<Stop> = trail.iter().map(|(life, path)| stop(*life, path)).collect();
            let probe = Probe { serial, trail };
            let wire = probe.to_wire();
            prop_assert_eq!(Probe::of_wire(&wire), Ok(probe.clone()));
            prop_assert_eq!(Probe::of_wire(&wire[..wire.len() - 1]), Err(NoProbe));
            let read = Probe::of_wire(&wire).unwrap();
            let paths = |probe: &Probe| probe.trail.iter().map(|stop| stop.path.clone()).collect::<Vec<_>>();
            prop_assert_eq!(paths(&read), paths(&probe));
            let _ = Probe::of_wire(&noise);
        }
    }
}
