//! References to actors: the untyped one inside every handle, and what all handles can do.

use std::future::Future;
use std::sync::Arc;

use hatchery_wire::{Body, DecodeError, Travels, decode, encode};
use serde::Serialize;

use crate::ask::Ask;
use crate::child::{self, Rung};
use crate::error::Error;
use crate::seat::{Occupancy, Seat};

/// An untyped reference to whoever sits in a seat.
#[derive(Clone, Debug)]
pub struct ActorRef {
    seat: Arc<Seat>,
}

impl ActorRef {
    /// A reference to the actor of this seat.
    #[doc(hidden)]
    pub fn new(seat: Arc<Seat>) -> ActorRef {
        ActorRef { seat }
    }

    /// A request to it. The message is encoded here and now.
    #[doc(hidden)]
    pub fn ask<M: Serialize, T: Travels, E: Travels>(&self, method: &'static str, message: &M) -> Ask<T, E> {
        self.ask_with(method, message, decode)
    }

    /// A request whose answer is decoded in a way of its own.
    #[doc(hidden)]
    pub fn ask_with<M: Serialize, T, E>(
        &self,
        method: &'static str,
        message: &M,
        decode: fn(&Body) -> Result<T, DecodeError>,
    ) -> Ask<T, E> {
        Ask::new(self.seat.clone(), method, encode(message), decode)
    }

    /// The seat it names.
    #[doc(hidden)]
    pub fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

/// What every handle can do, whatever its actor. A method of the same name on the actor wins.
pub trait AnyHandle {
    /// The untyped reference inside.
    fn actor_ref(&self) -> &ActorRef;

    /// The seat's place in the tree, e.g. `/shop/web`.
    fn path(&self) -> &str {
        self.actor_ref().seat.path()
    }

    /// The process that the actor lives in now; `None` between two incarnations.
    fn pid(&self) -> Option<u32> {
        match self.actor_ref().seat.occupancy() {
            Occupancy::Occupied(occupant) => occupant.child.pid(),
            _ => None,
        }
    }

    /// Whether an incarnation sits there now. One that has just died may still count until its death is noticed.
    fn is_alive(&self) -> bool {
        matches!(self.actor_ref().seat.occupancy(), Occupancy::Occupied(_))
    }

    /// Which incarnation sits there now, counted from 1; `None` between two.
    fn incarnation(&self) -> Option<u64> {
        match self.actor_ref().seat.occupancy() {
            Occupancy::Occupied(occupant) => Some(occupant.incarnation),
            _ => None,
        }
    }

    /// Stops the present incarnation in order: it finishes its message and answers the rest `is_stopping()`. If that
    /// takes longer than its [`Shutdown`](crate::child::Shutdown) says (5 s unless its spec says otherwise) it gets
    /// SIGTERM, two seconds later SIGKILL. Resolves when it has ended; at once if nobody sits there. Its supervisor
    /// decides whether another one follows, and counts the end as any other.
    ///
    /// # Errors
    /// It cannot be killed.
    ///
    /// # Cancel safety
    /// Dropped early, the request to stop stands, but the harder ways are not tried.
    fn stop(&self) -> impl Future<Output = Result<(), Error>> + Send {
        let seat = &self.actor_ref().seat;
        let (occupancy, shutdown) = (seat.occupancy(), seat.shutdown());
        async move {
            match occupancy {
                Occupancy::Occupied(occupant) => child::stop(&*occupant.child, shutdown).await.map(drop),
                _ => Ok(()),
            }
        }
    }

    /// Kills the present incarnation, with SIGKILL: for one that hangs. Its callers get `is_crash()`, and its
    /// supervisor decides whether another one follows. Nothing happens if nobody sits there.
    ///
    /// A local actor is ended where it next awaits.
    fn kill(&self) {
        if let Occupancy::Occupied(occupant) = self.actor_ref().seat.occupancy() {
            occupant.child.stop(Rung::Kill);
        }
    }
}
