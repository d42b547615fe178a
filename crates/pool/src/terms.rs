//! What is said between a pool and a worker of it: on which kinds of envelopes, and with which numbers.
//!
//! | from the pool | |
//! |---|---|
//! | `Bind` | from here on the task number in an `id` stands for the task that the body names |
//! | `Tell` | a row of tasks, for one lane; the lower half of its `id` is the number of the first one, the next ones count on |
//! | `Ask` | one task, whose arguments are the body |
//! | `Unbind` | nobody wants the row, or the task, of this number any more: it is not to be begun, and what of it can be ended is |
//! | `Withdraw` | the task of this number has run for too long, and is to be ended if it can be |
//! | `Drain` | what came before this, and had not begun when the pool held the lane, is not to be begun any more, and nothing is said of it |
//! | `End` | there will be no more |
//!
//! | from the worker | |
//! |---|---|
//! | `Release` | there is something in the ledger |
//! | `Reply`, `Error`, `Fault`, `Withdraw` | the outcome of the task of this number, for which the ledger had no room; `Withdraw`: it was ended |
//! | `Unbind` | neither the task of this number nor what comes behind it in its row was begun; if the ledger had no room for that |
//!
//! An `id` is the number of a task in its upper 20 bits, a lane in the 12 behind them, and in the lower half the number of a run.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hatchery_shm::Shape;
use hatchery_wire::{Fd, Kind};
use serde::{Deserialize, Serialize};

/// The kinds of outcomes in a ledger.
pub(crate) const VALUE: u8 = 0;
/// The body is a `Panic`.
pub(crate) const PANIC: u8 = 1;
/// The body is a `Fault`.
pub(crate) const FAULT: u8 = 2;
/// Neither it nor what comes behind it in its row was begun, nor will it be.
pub(crate) const SKIPPED: u8 = 3;
/// It had begun, and was ended as it was asked for; the worker goes on.
pub(crate) const STOPPED: u8 = 4;

/// Everything goes to one target, so it stays in its order.
pub(crate) const TARGET: u32 = 0;

/// The most tasks that a worker can run at the same time.
pub(crate) const MOST_LANES: u16 = Shape::MAX_LANES as u16;

/// A number of a task, a lane, and the number of the first of its runs. No program has a million tasks.
pub(crate) fn id(task: u32, lane: u16, first: u32) -> u64 {
    u64::from(task) << 44 | u64::from(lane) << 32 | u64::from(first)
}

/// The same back.
pub(crate) fn numbers(id: u64) -> (u32, u16, u32) {
    ((id >> 44) as u32, (id >> 32) as u16 & 0xfff, id as u32)
}

/// The kind of outcome that a kind of envelope brings.
pub(crate) fn outcome(kind: Kind) -> Option<u8> {
    match kind {
        Kind::Reply => Some(VALUE),
        Kind::Error => Some(PANIC),
        Kind::Fault => Some(FAULT),
        Kind::Unbind => Some(SKIPPED),
        Kind::Withdraw => Some(STOPPED),
        _ => None,
    }
}

/// And back.
pub(crate) fn kind_of(outcome: u8) -> Kind {
    match outcome {
        VALUE => Kind::Reply,
        PANIC => Kind::Error,
        SKIPPED => Kind::Unbind,
        STOPPED => Kind::Withdraw,
        _ => Kind::Fault,
    }
}

/// A task, or a function that builds state, as it is named to a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) place: String,
}

/// The same with its arguments, to be run once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Once {
    pub(crate) task: Named,
    #[serde(with = "as_bytes")]
    pub(crate) args: Vec<u8>,
}

mod as_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hatchery_wire::ByteString::deserialize(deserializer).map(hatchery_wire::ByteString::into_vec)
    }
}

/// What a worker is told of its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Recipe {
    /// The function that builds it, and its arguments.
    pub(crate) build: Once,
    /// How long that may take when it is built anew.
    pub(crate) within: Duration,
}

/// What a worker is started with.
#[derive(Serialize, Deserialize)]
pub(crate) struct WorkerArgs {
    /// Which start of its place it is.
    pub(crate) start: u64,
    pub(crate) socket: Fd<OwnedFd>,
    pub(crate) memory: Fd<OwnedFd>,
    pub(crate) shape: Shape,
    pub(crate) initializer: Option<Once>,
    pub(crate) state: Option<Recipe>,
    pub(crate) finaliser: Option<Once>,
}
