//! References to actors: the untyped one inside every handle, and what all handles can do.

use std::future::Future;
use std::sync::Arc;

use hatchery_wire::{Body, DecodeError, Travels, decode, encode};
use serde::Serialize;

use crate::ask::Ask;
use crate::child::{self, Rung};
use crate::error::Error;
use crate::fault::Fault;
use crate::seat::{Occupancy, Occupant, Seat};

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

    /// Suspends the present incarnation: the message that runs is finished, then nothing new begins until
    /// [`resume`](AnyHandle::resume). Requests wait, within their deadlines, and tells wait at the window; a stop and a
    /// withdrawal still get through. Resolves when nothing new begins any more; what runs may still be running then.
    ///
    /// If it dies and is started again, the next incarnation is not suspended.
    ///
    /// # Errors
    /// Nobody sits there, or it ended first.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, it may be suspended all the same.
    #[doc(alias = "sys:suspend")]
    fn suspend(&self) -> impl Future<Output = Result<(), Error>> + Send {
        let occupant = occupant(self);
        async move { Ok(occupant?.child.suspend().await?) }
    }

    /// Has the worker process of the present incarnation stand still wherever it is, with SIGSTOP to its process group,
    /// until [`resume`](AnyHandle::resume). Requests wait within their deadlines, and no heartbeat is expected. Any way
    /// to stop it works as ever: it is woken up for that.
    ///
    /// If it dies and is started again, the next incarnation is not paused. A worker that somebody else stops is ended
    /// when its [`Heartbeat`](crate::heartbeat::Heartbeat) runs out of patience.
    ///
    /// # Errors
    /// Nobody sits there, or it is a local actor: that one can be [suspended](AnyHandle::suspend).
    fn pause(&self) -> Result<(), Error> {
        Ok(occupant(self)?.child.pause()?)
    }

    /// Undoes [`suspend`](AnyHandle::suspend) and [`pause`](AnyHandle::pause): what waits goes on in its order. Nothing
    /// happens if it is neither, or nobody sits there.
    ///
    /// # Errors
    /// It could not be told, since this process is overloaded.
    #[doc(alias = "sys:resume")]
    fn resume(&self) -> Result<(), Error> {
        match self.actor_ref().seat.occupancy() {
            Occupancy::Occupied(occupant) => Ok(occupant.child.resume()?),
            _ => Ok(()),
        }
    }

    /// Whether the present incarnation is suspended or paused, and not resumed.
    fn is_paused(&self) -> bool {
        occupant(self).is_ok_and(|occupant| occupant.child.is_paused())
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

/// Who sits there now.
fn occupant<H: AnyHandle + ?Sized>(handle: &H) -> Result<Occupant, Fault> {
    let seat = &handle.actor_ref().seat;
    match seat.occupancy() {
        Occupancy::Occupied(occupant) => Ok(occupant),
        Occupancy::Vacant => Err(Fault::Refused(format!("nobody sits at {} right now", seat.path()))),
        Occupancy::Closed(why) => Err(Fault::Closed { why }),
    }
}
