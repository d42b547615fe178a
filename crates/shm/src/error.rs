//! Why there is no shared memory, or what is wrong with it.

use std::io;

/// Why memory could not be made or mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// There is not that much memory: of the machine, of the control group, or of the address space.
    #[error("no memory for {size} bytes to share; ask for less, or raise the limit")]
    NoMemory {
        /// Bytes that were asked for.
        size: u64,
    },
    /// This process, or the system, has as many descriptors open as it may.
    #[error("no descriptor left for memory to share; raise the limit of open files")]
    NoDescriptor,
    /// This process may not make files of that size, and memory to share counts as one (`RLIMIT_FSIZE`).
    #[error("{size} bytes to share are over this process's limit of {limit} for the size of files")]
    FileLimit {
        /// Bytes that were asked for.
        size: u64,
        /// Bytes that are allowed.
        limit: u64,
    },
    /// A descriptor that was received is no memory to share: a file, a socket, huge pages.
    #[error("the descriptor is not one of memory to share")]
    NotMemory,
    /// Memory that was received could become smaller or larger, or be sealed against writing, under whoever uses it.
    #[error(
        "the memory is not sealed as it has to be: it lacks or has too many of F_SEAL_SHRINK, GROW and SEAL"
    )]
    Unsealed,
    /// Memory that was received is not as large as it was said to be.
    #[error("the memory has {is} bytes and should have {said}")]
    Size {
        /// Bytes that it should have.
        said: u64,
        /// Bytes that it has.
        is: u64,
    },
    /// The operating system refused for another reason; its kind and its words.
    #[error("{text}")]
    Io {
        /// The kind of the error, for programs.
        kind: io::ErrorKind,
        /// The error's text, for people.
        text: String,
    },
}

/// What cannot be the shape of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// None, or too many lanes.
    #[error("a ledger has 1 to {limit} lanes, not {asked}")]
    Lanes {
        /// Lanes that were asked for.
        asked: u32,
        /// Lanes that there can be.
        limit: u32,
    },
    /// A ring that is too large.
    #[error("a ring has at most {limit} bytes, not {asked}; what does not fit travels otherwise")]
    Ring {
        /// Bytes that were asked for.
        asked: u32,
        /// Bytes that there can be.
        limit: u32,
    },
}

/// What a worker has written into its ledger that no worker in its right mind does.
///
/// Whoever gets it ends that worker: nothing that it says from then on can be believed, and its lane gives the same
/// error again. What was drained before it is as good as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// A lane claims more bytes of results than its ring can hold, or takes some back.
    #[error("lane {lane} claims {claimed} bytes of results, and its ring has {ring}; end the worker")]
    Claim {
        /// Which lane, from 0.
        lane: u32,
        /// Bytes that it claims to have written.
        claimed: u32,
        /// Bytes of its ring.
        ring: u32,
    },
    /// A result claims more bytes than its lane has written.
    #[error("a result in lane {lane} claims {claimed} bytes, and {written} are written; end the worker")]
    Result {
        /// Which lane, from 0.
        lane: u32,
        /// Bytes that the result claims to have.
        claimed: u32,
        /// Bytes that were written since the result before it.
        written: u32,
    },
    /// A lane's cursor has moved without the lane having done anything that it may do.
    #[error("the cursor of lane {lane} has moved as no worker moves it; end the worker")]
    Cursor {
        /// Which lane, from 0.
        lane: u32,
    },
}
