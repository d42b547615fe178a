//! Why a connection or a link failed.

use std::io;

/// Why bytes could not be sent to, or not be understood from, a peer.
///
/// An error of reading ends that peer: every later read gives the same error again. An error of writing leaves
/// reading alone, so what arrived before it can still be read. It can be cloned because every request waiting on
/// the connection gets it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The operating system refused; its kind and its words.
    #[error("{text}")]
    Io {
        /// The kind of the error, for programs.
        kind: io::ErrorKind,
        /// The error's text, for people.
        text: String,
    },
    /// A frame's length prefix claims, or a frame to be sent has, more than the limit.
    #[error("a frame of {claimed} bytes is over the limit of {limit}")]
    Oversized {
        /// Bytes the frame claims to have.
        claimed: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A frame is not what the format says.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// A frame has a kind that this version does not know.
    #[error("unknown frame kind {0}; the peer may speak a newer protocol")]
    UnknownKind(u8),
    /// A message's body is over the limit, whether ours or the peer's.
    #[error(
        "a message of {size} bytes or more is over the limit of {limit}; raise the message limit on both sides"
    )]
    MessageTooLarge {
        /// Bytes the message has at least.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The peer's unfinished messages together take more than the connection's budget.
    #[error("unfinished messages of {size} bytes are over the connection's budget of {limit}")]
    OverBudget {
        /// Bytes the unfinished messages would take.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Descriptors and the frames that announce them do not match.
    #[error("descriptors do not match their frames: {0}")]
    Descriptors(&'static str),
    /// The stream ended inside a frame or inside a message of several frames.
    #[error("the stream ended inside a message")]
    Truncated,
    /// A blocking call on a link did not finish in its time.
    #[error("the link's peer did not answer in time")]
    TimedOut,
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        WireError::Io { kind: error.kind(), text: error.to_string() }
    }
}

impl From<rustix::io::Errno> for WireError {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}
