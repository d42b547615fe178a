//! How much a peer may send, in one place.

/// Levels of nesting that a body may have; see [`decode`](crate::decode) for what counts as one.
pub const DEPTH: usize = 64;

/// Most bytes of one link frame, without its length prefix.
pub const LINK_FRAME: usize = 64 * 1024;

/// Most descriptors that one message, or one link frame, may carry.
pub const MAX_FDS: usize = 16;

/// Most descriptors of all unfinished incoming messages of one connection. A sender begins no large message that would
/// exceed it.
pub const UNFINISHED_FDS: usize = 64;

/// Most bytes of an envelope's caller chain.
pub const CHAIN: usize = 4 * 1024;

/// Most bytes of an envelope's trace context.
pub const TRACE: usize = 256;

/// Most bytes of a log record, its length prefix included: what a pipe takes whole or not at all (`PIPE_BUF`).
pub const LOG_RECORD: usize = 4096;

/// Least value of [`Limits::frame`]: a first frame must hold a full chain and trace and still make progress.
pub const MIN_FRAME: usize = 8 * 1024;

/// Fewest body bytes of a frame that announces more frames. It keeps a peer from opening many unfinished messages
/// for next to nothing, and our own frames are always full.
pub const MIN_PART: usize = 1024;

/// Most bytes that the head of a frame takes besides chain and trace: length prefix, array, integers, bin heads.
pub(crate) const HEAD: usize = 64;

/// The limits of one connection, for what it reads as well as for what it sends.
///
/// Both ends must agree on them: a sender keeps its own limits, a receiver enforces its own. Values that
/// contradict each other are raised to the least that works: `frame` to [`MIN_FRAME`], `budget` to one message.
///
/// ```
/// use hatchery_wire::Limits;
///
/// let limits = Limits { message: 1024 * 1024, ..Limits::default() };
/// assert_eq!(limits.frame, 256 * 1024);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one frame, without its length prefix. Default 256 KiB.
    pub frame: usize,
    /// Most bytes of one message's body, over all its frames. Default 256 MiB.
    pub message: usize,
    /// Most bytes of all unfinished incoming messages of one connection. Default 512 MiB. A sender does not begin
    /// another large message while those it has begun would exceed it.
    pub budget: usize,
}

impl Limits {
    /// These limits with contradictions raised to the least that works.
    pub(crate) fn settled(self) -> Self {
        let frame = self.frame.clamp(MIN_FRAME, u32::MAX as usize);
        let message = self.message;
        Limits { frame, message, budget: self.budget.max(message.saturating_add(CHAIN + TRACE)) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { frame: 256 * 1024, message: 256 * 1024 * 1024, budget: 512 * 1024 * 1024 }
    }
}
