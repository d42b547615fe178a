//! Handles as plain data: which seat of which tree, and perhaps which incarnation alone.

use std::hash::{BuildHasher, Hasher, RandomState};

use serde::{Deserialize, Serialize};

/// What a handle says of itself when it travels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The tree, by a number that each run of a program makes up: paths of another run mean nothing here.
    pub tree: u64,
    /// The seat, e.g. `/shop/web`.
    pub path: String,
    /// The registered name of the actor.
    pub actor: String,
    /// The one incarnation it is about, if it is about one.
    pub only: Option<Tenure>,
}

/// One incarnation of one seat. A seat whose path was used before is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tenure {
    /// The seat's own number, made up when it was.
    pub seat: u64,
    /// Counts from 1.
    pub incarnation: u64,
}

/// One process of a tree. A process at a path that was used before is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its place in the tree; empty for the root.
    pub path: String,
    /// Its own number, made up when it was started.
    pub birth: u64,
}

/// 64 random bits: `RandomState` is seeded by the system once a thread and differs at every call.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
