//! What lies between a handle and an actor of another process: to be asked where somebody sits, to be led there, and to
//! learn how he ended. The processes implement it; here it is only used.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::address::{Address, ProcessId, Tenure};
use crate::child::{BoxFuture, Rung, Shutdown};
use crate::exit::Exit;
use crate::fault::Fault;
use crate::hold::Hold;
use crate::outlet::Line;
use crate::seat::Seat;

/// The way to seats of other processes.
///
/// What its methods ask is asked when they are called, whether or not the future is polled. Dropping the future ends
/// the waiting.
pub trait Exchange: Send + Sync + 'static {
    /// The runtime on which others are followed and reached, whoever asks for them.
    fn runtime(&self) -> Option<Handle>;

    /// Who sits there now, or next if nobody does, or if who sits there is no later than `after`. Resolves when
    /// somebody does, or when others than those of the [`Hold`] of number `held` have to be gone before.
    fn resolve(&self, address: &Address, after: Option<Tenure>, held: u64) -> BoxFuture<Result<Found, Lost>>;

    /// A way for the requests of this seat to the one who was found; their answers go to the seat, as those of its
    /// incarnation `number`.
    fn open(&self, seat: &Arc<Seat>, number: u64, found: &Found) -> BoxFuture<Result<Opened, Lost>>;

    /// How this incarnation ended. Resolves when it has.
    fn verdict(&self, path: &str, tenure: Tenure) -> BoxFuture<Result<Exit, Lost>>;

    /// Has its parent do this to it, or to whoever sits there.
    fn command(
        &self,
        path: &str,
        actor: &str,
        tenure: Option<Tenure>,
        command: Command,
    ) -> BoxFuture<Result<(), Fault>>;
}

/// Who was found in a seat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Which incarnation it is.
    pub tenure: Tenure,
    /// The process it lives in.
    pub process: ProcessId,
    /// That process's id, as the system counts.
    pub pid: Option<u32>,
    /// How many requests of a process may be under way to it.
    pub window: u32,
    /// How it is stopped.
    pub shutdown: Shutdown,
}

/// Why nobody was found, reached, or told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nobody sits there, and nobody will.
    Closed(String),
    /// The one incarnation that was asked for has ended.
    Over(Box<Exit>),
    /// A process on the way has ended, and with it who was asked for, if he sat there.
    Broken,
    /// Nobody sits there before these are gone, if there are any: ask again, with its number.
    Held(Hold),
    /// Somebody on the way can do no more for now.
    Busy,
}

/// A way that has been opened.
pub struct Opened {
    /// For the requests.
    pub line: Arc<dyn Line>,
    /// Resolves when nothing more will come from there.
    pub over: BoxFuture<Over>,
}

/// Why nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nothing was under way, and the room was needed: the next request opens another one.
    Idle,
    /// The actor has ended, and all that it had to say has arrived.
    Said,
    /// The other side has ended, perhaps in the middle of what it had to say.
    Ended,
}

/// What a process wants of an actor elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// As [`Child::stop`](crate::child::Child::stop).
    Stop(Rung),
    /// As [`Child::suspend`](crate::child::Child::suspend).
    Suspend,
    /// As [`Child::pause`](crate::child::Child::pause).
    Pause,
    /// As [`Child::resume`](crate::child::Child::resume).
    Resume,
}
