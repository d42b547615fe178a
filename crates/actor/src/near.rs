//! The way of requests into a mailbox of this process, and of the answers back.

use std::sync::Arc;

use hatchery_wire::Body;

use crate::fault::Fault;
use crate::mailbox::{Mailbox, Parcel, ReturnPath};
use crate::outlet::{Answer, Line, Request};
use crate::probe::Probe;
use crate::seat::Seat;

/// The way of requests before this seat into a mailbox of this process, whose answers are those of that incarnation.
pub fn line(mailbox: Arc<Mailbox>, seat: Arc<Seat>, incarnation: u64) -> Arc<dyn Line> {
    Arc::new(NearLine::new(mailbox, seat, incarnation))
}

/// The way of requests into a mailbox of this process.
pub(crate) struct NearLine {
    mailbox: Arc<Mailbox>,
    back: Arc<dyn ReturnPath>,
}

impl NearLine {
    pub(crate) fn new(mailbox: Arc<Mailbox>, seat: Arc<Seat>, incarnation: u64) -> NearLine {
        NearLine { mailbox, back: Arc::new(NearReturn { seat, incarnation }) }
    }
}

impl Line for NearLine {
    fn send(&self, request: Request) -> Result<(), Fault> {
        let Request { id, ask, deadline, trace, chain, body, .. } = request;
        self.mailbox.admit(chain.as_ref())?;
        // No `refuse` here: this runs under the outlet's lock, which an answer would take again.
        let parcel = Parcel { id, ask, deadline, trace, chain, body, from: self.back.clone() };
        self.mailbox.push(parcel).map_err(|_| Fault::Stopping)
    }

    fn withdraw(&self, id: u64) {
        self.mailbox.withdraw(id, &self.back);
    }

    fn probe(&self, id: u64, probe: Probe) {
        self.mailbox.probe(id, &self.back, probe);
    }

    fn drain(&self) -> bool {
        self.mailbox.drain();
        true
    }

    fn credit(&self, id: u64, items: usize) {
        let kept = self.mailbox.credit(id, &self.back, items);
        debug_assert!(kept.is_ok(), "an outlet gives back each item once");
    }
}

/// The way of the answers back to the seat.
struct NearReturn {
    seat: Arc<Seat>,
    incarnation: u64,
}

impl ReturnPath for NearReturn {
    fn answer(&self, id: u64, answer: Answer) {
        let kept = self.seat.answered(self.incarnation, id, answer, true);
        debug_assert!(kept.is_ok(), "a local actor answers each request once");
    }

    fn reply(&self, id: u64, answer: Answer) {
        let kept = self.seat.answered(self.incarnation, id, answer, false);
        debug_assert!(kept.is_ok(), "no place comes back with it");
    }

    fn item(&self, id: u64, item: Body) {
        let kept = self.seat.item(self.incarnation, id, item);
        debug_assert!(kept.is_ok(), "a flow keeps to its credit");
    }

    fn release(&self, places: u32) {
        let kept = self.seat.released(self.incarnation, places);
        debug_assert!(kept.is_ok(), "a local actor releases each place once");
    }
}
