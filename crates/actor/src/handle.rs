//! References to actors: the untyped one inside every handle, and what all handles can do.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hatchery_wire::{Body, DecodeError, Travels, decode_owned, encode};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::actor::AnyActor;
use crate::address::Address;
use crate::ask::Ask;
use crate::child::{self, Rung, Stop};
use crate::error::Error;
use crate::exchange::Command;
use crate::fault::Fault;
use crate::incarnation::Incarnation;
use crate::items::Items;
use crate::monitor::Monitor;
use crate::root::{Root, wrong_actor};
use crate::seat::{Occupancy, Occupant, Seat};

/// An untyped reference to whoever sits in a seat, or to one incarnation alone.
#[derive(Clone, Debug)]
pub struct ActorRef {
    seat: Arc<Seat>,
    pin: Option<Incarnation>,
}

impl ActorRef {
    /// A reference to the actor of this seat.
    #[doc(hidden)]
    pub fn new(seat: Arc<Seat>) -> ActorRef {
        ActorRef { seat, pin: None }
    }

    /// A request to it. The message is encoded here and now.
    #[doc(hidden)]
    pub fn ask<M: Serialize, T: Travels, E: Travels>(&self, method: &'static str, message: &M) -> Ask<T, E> {
        self.ask_with(method, message, decode_owned)
    }

    /// A request whose answer is decoded in a way of its own.
    #[doc(hidden)]
    pub fn ask_with<M: Serialize, T, E>(
        &self,
        method: &'static str,
        message: &M,
        decode: fn(Body) -> Result<T, DecodeError>,
    ) -> Ask<T, E> {
        Ask::new(self.clone(), method, encode(message), decode)
    }

    /// A request that is answered with a stream.
    #[doc(hidden)]
    pub fn items<M: Serialize, T: Travels, E: Travels>(
        &self,
        method: &'static str,
        message: &M,
        decode: fn(Body) -> Result<T, DecodeError>,
    ) -> Items<T, E> {
        Items::new(self.clone(), method, encode(message), decode)
    }

    /// A reference to whoever has this address.
    ///
    /// # Errors
    /// This thread belongs to no program, or it is the address of another kind of actor.
    fn at(address: &Address, actor: &'static str) -> Result<ActorRef, Fault> {
        let root = Root::current()?;
        if address.actor != actor {
            return Err(Fault::Refused(wrong_actor(&address.path, actor, &address.actor)));
        }
        let seat = root.find(address, actor);
        // A seat of this process is shared by all its incarnations; one that stands for another is of that one alone.
        let pin = address.only.filter(|_| seat.far_address().is_none()).map(|only| seat.pin(only));
        Ok(ActorRef { seat, pin })
    }

    /// What it is when it travels.
    ///
    /// # Errors
    /// This thread belongs to no program.
    fn address(&self) -> Result<Address, Fault> {
        if let (Some(far), None) = (self.seat.far_address(), &self.pin) {
            return Ok(far.clone());
        }
        Ok(Address {
            tree: Root::current()?.tree(),
            path: self.seat.path().to_owned(),
            actor: self.seat.actor().to_owned(),
            only: self.pin.as_ref().map(|pin| pin.tenure),
        })
    }

    /// The reference that comes out of [`Serialize`].
    ///
    /// # Errors
    /// It is none, or one to another kind of actor, or this thread belongs to no program.
    #[doc(hidden)]
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        actor: &'static str,
    ) -> Result<ActorRef, D::Error> {
        let address = Address::deserialize(deserializer)?;
        ActorRef::at(&address, actor).map_err(D::Error::custom)
    }

    /// The one incarnation that requests may go to, if there is but one.
    pub(crate) fn pin(&self) -> Option<&Incarnation> {
        self.pin.as_ref()
    }

    /// Who sits there now, of those it is about.
    fn occupant(&self) -> Option<Occupant> {
        match self.seat.occupancy() {
            Occupancy::Occupied(occupant) => {
                let meant = self.pin.as_ref().is_none_or(|pin| pin.number == occupant.incarnation);
                meant.then_some(occupant)
            }
            _ => None,
        }
    }

    /// The seat it names.
    #[doc(hidden)]
    pub fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Serialize for ActorRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.address().map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

/// A handle of the actor at this path, e.g. `/shop/web`, wherever in the tree it lives.
///
/// Nothing is looked for yet: that begins with the first use, so a handle may be given away before there is anybody of
/// that name. If nobody is called so when it is used, or a worker above it is gone for good, its requests fail at once
/// (`is_closed`); if somebody is but does not sit there right now, they wait within their deadlines.
///
/// ```
/// # use hatchery::prelude::*;
/// # struct Cache;
/// # #[hatchery::actor]
/// # impl Cache {
/// #     fn start() -> Self { Cache }
/// #     fn get(&self, key: String) -> usize { key.len() }
/// # }
/// struct Web { cache: CacheHandle }
///
/// #[hatchery::actor]
/// impl Web {
///     fn start() -> hatchery::Result<Self> { Ok(Web { cache: hatchery::lookup::<Cache>("/shop/cache")? }) }
///
///     async fn page(&self, key: String) -> hatchery::Result<String> {
///         Ok(format!("{} found", self.cache.get(key).await?))      // from one worker to the other
///     }
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).name("shop")
///         .child(worker::<Web>("web", ()))
///         .child(worker::<Cache>("cache", ()))
///         .start().await?;
///     assert_eq!(tree.get::<Web>("web")?.page("pears".to_owned()).await?, "5 found");
///     tree.stop().await
/// }
/// ```
///
/// # Errors
/// The path does not begin with a slash, ends with one or has two of them side by side, or this thread belongs to no
/// program.
#[doc(alias = "whereis")]
pub fn lookup<A: AnyActor>(path: &str) -> Result<A::Handle, Error> {
    if !path.starts_with('/') || path.ends_with('/') || path.contains("//") {
        return Err(Error::msg(format!(
            "{path:?} is no path of an actor: it begins with a slash and names a segment after each, as `/shop/web`"
        )));
    }
    let tree = Root::current()?.tree();
    let address = Address { tree, path: path.to_owned(), actor: A::name().to_owned(), only: None };
    Ok(ActorRef::at(&address, A::name())?.into())
}

/// What every handle can do, whatever its actor. A method of the same name on the actor wins.
///
/// They go by what this process knows. Of an actor that another process has started it knows nothing until the handle
/// is used, or any other of that actor: the first use, one of these methods or a request, has it looked for, and
/// until it is found it is as if nobody sat there: `pid` is `None` then, and `pause` an error. `stop`, `stop_with`
/// and `suspend` wait until it is found, for 30 s at most, and `kill` is passed on to its parent. A request waits:
/// after its answer they all say what they should. Of an actor elsewhere it is not known whether it is paused, and
/// what is asked of its parent by `kill`, `pause` and `resume` is not answered.
pub trait AnyHandle {
    /// The untyped reference inside.
    fn actor_ref(&self) -> &ActorRef;

    /// The seat's place in the tree, e.g. `/shop/web`.
    fn path(&self) -> &str {
        self.actor_ref().seat.path()
    }

    /// The process that the actor lives in now; `None` between two incarnations.
    fn pid(&self) -> Option<u32> {
        self.actor_ref().occupant()?.child.pid()
    }

    /// Whether an incarnation sits there now. One that has just died may still count until its death is noticed.
    fn is_alive(&self) -> bool {
        self.actor_ref().occupant().is_some()
    }

    /// Which incarnation sits there now, counted from 1; `None` between two.
    fn incarnation(&self) -> Option<u64> {
        Some(self.actor_ref().occupant()?.incarnation)
    }

    /// A handle of the incarnation that sits there now, and of no later one; `None` if nobody sits there.
    ///
    /// Its requests never reach another incarnation and never wait at a vacant seat: once that incarnation has ended
    /// they fail at once with its exit (`is_crash`; what was not sent has `maybe_executed` false). Its `pid`,
    /// `is_alive`, `incarnation`, `stop`, `kill` and `monitor` are about that incarnation only, too.
    ///
    /// For requests that must meet the same state, such as the steps of a login:
    ///
    /// ```
    /// # use hatchery::prelude::*;
    /// # struct Shell { user: Option<String> }
    /// # #[hatchery::actor]
    /// # impl Shell {
    /// #     fn start() -> Self { Shell { user: None } }
    /// #     fn login(&mut self, user: String) { self.user = Some(user) }
    /// #     fn run(&mut self, what: String) -> bool { self.user.is_some() && what == "make" }
    /// # }
    /// # #[hatchery::main]
    /// # async fn main() -> hatchery::Result<()> {
    /// #     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    /// let shell = tree.start_child(worker::<Shell>("shell", ())).await?;
    /// let session = shell.pinned().ok_or(hatchery::Error::msg("nobody sits there"))?;
    /// session.login("ada".to_owned()).await?;
    /// session.run("make".to_owned()).await?;
    ///
    /// let monitor = session.monitor();
    /// shell.kill();
    /// println!("{}", monitor.await);           // /…/shell (incarnation 1): killed by SIGKILL (signal 9)
    /// let error = session.run("make".to_owned()).await.unwrap_err();
    /// assert!(error.is_crash() && !error.maybe_executed());
    /// #     tree.stop().await
    /// # }
    /// ```
    fn pinned(&self) -> Option<Self>
    where
        Self: Sized + From<ActorRef>,
    {
        let actor = self.actor_ref();
        let pin = actor.occupant()?.pin;
        Some(Self::from(ActorRef { seat: actor.seat.clone(), pin: Some(pin) }))
    }

    /// Tells of the end of the incarnation that sits there now, or of the next one if nobody does: a future, and by
    /// [`Monitor::downs`] a stream of all ends, exactly one for each incarnation that sat there. If the seat is closed,
    /// it says so at once. It works from here on, polled or not.
    #[doc(alias = "sentinel")]
    fn monitor(&self) -> Monitor {
        let actor = self.actor_ref();
        let monitor = actor.seat.monitor(actor.pin());
        // Who sits elsewhere is followed for as long as somebody holds the seat that stands for his.
        if actor.seat.far_address().is_some() { monitor.keeping(actor.seat.clone()) } else { monitor }
    }

    /// Stops the present incarnation in order: it finishes its message and answers the rest `is_stopping()`, unless its
    /// spec says otherwise by `on_stop`. If that takes longer than its [`Shutdown`](crate::child::Shutdown) says (5 s unless its spec says otherwise) it gets
    /// SIGTERM, two seconds later SIGKILL. Resolves when it has ended; at once if nobody sits there. Its supervisor
    /// decides whether another one follows, and counts the end as any other.
    ///
    /// # Errors
    /// It cannot be killed.
    ///
    /// # Cancel safety
    /// Dropped early, the request to stop stands, but the harder ways are not tried.
    fn stop(&self) -> impl Future<Output = Result<(), Error>> + Send {
        stop(self.actor_ref(), None)
    }

    /// Stops the present incarnation in this way, whatever its spec says of that; as long as its
    /// [`Shutdown`](crate::child::Shutdown) says, then harder. Otherwise as [`stop`](AnyHandle::stop). See [`Stop`].
    ///
    /// With [`Stop::Drain`], all requests that this process had sent when this was first polled are handled before it stops.
    /// A [`stop`](AnyHandle::stop) meanwhile ends that after the message it is at.
    ///
    /// # Errors
    /// It cannot be killed; or it is to drain its mailbox, and its shutdown is
    /// [`Shutdown::kill`](crate::child::Shutdown::kill).
    ///
    /// # Cancel safety
    /// As [`stop`](AnyHandle::stop).
    fn stop_with(&self, how: Stop) -> impl Future<Output = Result<(), Error>> + Send {
        stop(self.actor_ref(), Some(how))
    }

    /// Suspends the present incarnation: the message that runs is finished, then nothing new begins until
    /// [`resume`](AnyHandle::resume). Requests wait, within their deadlines, and tells wait at the window; a stop and a
    /// withdrawal still get through. Resolves when nothing new begins any more; what runs may still be running then.
    ///
    /// If it dies and is started again, the next incarnation is not suspended.
    ///
    /// # Errors
    /// Nobody sits there, it ended first, or it is a task, which has no mailbox.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, it may be suspended all the same.
    #[doc(alias = "sys:suspend")]
    fn suspend(&self) -> impl Future<Output = Result<(), Error>> + Send {
        let suspended = occupant(self).map(|occupant| occupant.child.suspend());
        let actor = self.actor_ref().clone();
        async move {
            if actor.seat.is_unheard_of() {
                actor.seat.heard_of(LOOKED_FOR).await;
                return Ok(occupant_of(&actor)?.child.suspend().await?);
            }
            Ok(suspended?.await?)
        }
    }

    /// Has the worker process of the present incarnation stand still wherever it is, with SIGSTOP to its process group,
    /// until [`resume`](AnyHandle::resume). Requests wait within their deadlines, and no heartbeat is expected. Any way
    /// to stop it works as ever: it is woken up for that. The signal is sent when this returns; it takes hold a moment
    /// later, and until then a request may still be answered.
    ///
    /// If it dies and is started again, the next incarnation is not paused. A worker that somebody else stops is ended
    /// when its [`Heartbeat`](crate::heartbeat::Heartbeat) runs out of patience.
    ///
    /// # Errors
    /// Nobody sits there, or it is a local actor, which can be [suspended](AnyHandle::suspend), or a local task.
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
    /// A local actor, or task, is ended where it next awaits.
    fn kill(&self) {
        if let Some(occupant) = self.actor_ref().occupant() {
            occupant.child.stop(Rung::Kill);
        } else {
            self.actor_ref().seat.command_unheard_of(Command::Stop(Rung::Kill));
        }
    }
}

/// Stops who sits there now, in this way, or as his spec says.
fn stop(actor: &ActorRef, how: Option<Stop>) -> impl Future<Output = Result<(), Error>> + Send + use<> {
    let actor = actor.clone();
    let unheard_of = actor.seat.is_unheard_of();
    let mut occupant = actor.occupant();
    async move {
        if unheard_of {
            actor.seat.heard_of(LOOKED_FOR).await;
            occupant = actor.occupant();
        }
        let Some(occupant) = occupant else { return Ok(()) };
        let mut shutdown = actor.seat.shutdown();
        if let Some(how) = how {
            shutdown = shutdown.by(how);
            shutdown.check()?;
        }
        child::stop(&*occupant.child, shutdown).await.map(drop)
    }
}

/// How long an actor elsewhere is looked for that is to be stopped and was never heard of.
const LOOKED_FOR: Duration = Duration::from_secs(30);

/// Who sits there now.
fn occupant<H: AnyHandle + ?Sized>(handle: &H) -> Result<Occupant, Fault> {
    occupant_of(handle.actor_ref())
}

fn occupant_of(actor: &ActorRef) -> Result<Occupant, Fault> {
    let seat = &actor.seat;
    match seat.occupancy() {
        Occupancy::Occupied(occupant) => Ok(occupant),
        Occupancy::Vacant => Err(Fault::Refused(format!(
            "nobody sits at {} right now: try again when the next incarnation does, after any ask has been answered",
            seat.path()
        ))),
        Occupancy::Closed(why) => Err(Fault::Closed { why }),
    }
}
