//! The place of a child in the tree, in which incarnations sit one after another.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use hatchery_wire::Body;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::busy::{self, is_busy};
use crate::child::{Child, Shutdown};
use crate::exit::Exit;
use crate::fault::Fault;
use crate::outlet::{Answer, Left, Line, Outlet, TooManyReleases, WINDOW};

/// A child's place: its path, who sits there now, and the requests before it.
///
/// The supervisor writes it ([`occupy`](Seat::occupy), [`close`](Seat::close)); whoever started the incarnation
/// reports its end ([`ended`](Seat::ended)); handles read it.
pub struct Seat {
    path: String,
    actor: &'static str,
    shutdown: Shutdown,
    outlet: Outlet,
    occupancy: watch::Sender<Occupancy>,
    /// The actor that sits here, if only it itself knows this seat.
    own: Option<busy::Id>,
}

/// Who sits in a seat.
#[derive(Clone)]
pub enum Occupancy {
    /// Nobody, for now.
    Vacant,
    /// This incarnation.
    Occupied(Occupant),
    /// Nobody, ever again; with the reason.
    Closed(String),
}

/// The incarnation that sits in a seat.
#[derive(Clone)]
pub struct Occupant {
    /// Counts from 1.
    pub incarnation: u64,
    /// What can be stopped.
    pub child: Arc<dyn Child>,
}

impl Seat {
    /// A vacant seat for an actor of this registered name.
    pub fn new(path: String, actor: &'static str) -> Arc<Seat> {
        Seat::with(path, actor, WINDOW, Shutdown::default())
    }

    /// The same, with how many requests may be under way to it and how it is stopped.
    pub fn with(path: String, actor: &'static str, window: u32, shutdown: Shutdown) -> Arc<Seat> {
        Seat::of(path, actor, window, shutdown, None)
    }

    /// A vacant seat that only one incarnation itself knows, with a window of its own.
    pub(crate) fn own(path: String, actor: &'static str, id: busy::Id) -> Arc<Seat> {
        Seat::of(path, actor, WINDOW, Shutdown::default(), Some(id))
    }

    fn of(
        path: String,
        actor: &'static str,
        window: u32,
        shutdown: Shutdown,
        own: Option<busy::Id>,
    ) -> Arc<Seat> {
        Arc::new(Seat {
            path,
            actor,
            shutdown,
            outlet: Outlet::new(window),
            occupancy: watch::Sender::new(Occupancy::Vacant),
            own,
        })
    }

    /// Whether this thread is in a handler of the very actor that sits here.
    pub(crate) fn would_wait_for_itself(&self) -> bool {
        self.own.is_some_and(is_busy)
    }

    /// Where it is in the tree, e.g. `/shop/web`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How an incarnation that sits here is stopped.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown
    }

    /// The registered name of the actor that sits here.
    pub fn actor(&self) -> &'static str {
        self.actor
    }

    /// An incarnation is ready: requests in line go to it now. One that has already ended does not sit down.
    pub fn occupy(&self, incarnation: u64, child: Arc<dyn Child>, line: Arc<dyn Line>) {
        // First the watch, then the line: `ended` may come in between and must find the watch to clear.
        self.occupancy.send_modify(|now| {
            if !matches!(now, Occupancy::Closed(_)) {
                *now = Occupancy::Occupied(Occupant { incarnation, child });
            }
        });
        if !self.outlet.open(incarnation, line) {
            self.stand_up(incarnation);
        }
    }

    /// An incarnation has ended, and everything it said before has been delivered through this seat.
    pub fn ended(&self, incarnation: u64, exit: &Exit) {
        self.outlet.ended(incarnation, exit);
        self.stand_up(incarnation);
    }

    fn stand_up(&self, incarnation: u64) {
        self.occupancy.send_if_modified(|now| match now {
            Occupancy::Occupied(occupant) if occupant.incarnation == incarnation => {
                *now = Occupancy::Vacant;
                true
            }
            _ => false,
        });
    }

    /// Nobody will sit here again. Requests in line, and all later ones, are told why.
    pub fn close(&self, why: &str) {
        self.outlet.close(Fault::Closed { why: why.to_owned() });
        self.occupancy.send_replace(Occupancy::Closed(why.to_owned()));
    }

    /// Who sits here now.
    pub fn occupancy(&self) -> Occupancy {
        self.occupancy.borrow().clone()
    }

    /// An answer of this incarnation.
    ///
    /// # Errors
    /// The peer gave back more places than it was given: it does not keep to the protocol.
    pub fn answered(
        &self,
        incarnation: u64,
        id: u64,
        answer: Answer,
        release: bool,
    ) -> Result<(), TooManyReleases> {
        self.outlet.answered(incarnation, id, answer, release)
    }

    /// This incarnation gave back places in its window.
    ///
    /// # Errors
    /// The peer gave back more places than it was given: it does not keep to the protocol.
    pub fn released(&self, incarnation: u64, places: u32) -> Result<(), TooManyReleases> {
        self.outlet.released(incarnation, places)
    }

    pub(crate) fn submit(&self, ask: bool, deadline: Option<Instant>, body: Body) -> u64 {
        self.outlet.submit(ask, deadline, body)
    }

    pub(crate) fn poll(&self, id: u64, cx: &mut Context<'_>) -> Poll<Answer> {
        self.outlet.poll(id, cx)
    }

    pub(crate) fn cancel(&self, id: u64) -> Left {
        self.outlet.cancel(id)
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("path", &self.path).field("actor", &self.actor).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::{BoxFuture, Rung};
    use crate::exit::Status;
    use crate::outlet::Request;

    struct Fake;

    impl Child for Fake {
        fn stop(&self, _: Rung) {}

        fn pid(&self) -> Option<u32> {
            None
        }

        fn exited(&self) -> BoxFuture<Arc<Exit>> {
            Box::pin(std::future::pending())
        }
    }

    impl Line for Fake {
        fn send(&self, _: Request) -> Result<(), Fault> {
            Ok(())
        }

        fn withdraw(&self, _: u64) {}
    }

    fn sits(seat: &Seat) -> Option<u64> {
        match seat.occupancy() {
            Occupancy::Occupied(occupant) => Some(occupant.incarnation),
            _ => None,
        }
    }

    fn exit() -> Exit {
        Exit::new(Status::Signal(9))
    }

    #[test]
    fn incarnations_sit_one_after_another() {
        let seat = Seat::new("/a".to_owned(), "A");
        for incarnation in 1..4 {
            assert_eq!(sits(&seat), None);
            seat.occupy(incarnation, Arc::new(Fake), Arc::new(Fake));
            assert_eq!(sits(&seat), Some(incarnation));
            seat.ended(incarnation, &exit());
        }
    }

    #[test]
    fn one_that_ended_before_it_could_sit_down_does_not_sit_down() {
        let seat = Seat::new("/a".to_owned(), "A");
        seat.ended(1, &exit());
        seat.occupy(1, Arc::new(Fake), Arc::new(Fake));
        assert_eq!(sits(&seat), None);
        seat.occupy(2, Arc::new(Fake), Arc::new(Fake));
        seat.ended(1, &exit());
        assert_eq!(sits(&seat), Some(2), "the late end of an earlier one changes nothing");
    }

    #[test]
    fn a_closed_seat_stays_closed() {
        let seat = Seat::new("/a".to_owned(), "A");
        seat.close("it was stopped");
        seat.occupy(1, Arc::new(Fake), Arc::new(Fake));
        seat.ended(1, &exit());
        assert!(matches!(seat.occupancy(), Occupancy::Closed(why) if why == "it was stopped"));
    }
}
