//! The one word in which a lane says how far it is.
//!
//! ```text
//!  63            32 31           27 26                 0
//! ┌────────────────┬──┬──┬──┬──┬──┬─────────────────────┐
//! │ number of task │WI│WE│ C│ R│ H│words written to ring│
//! └────────────────┴──┴──┴──┴──┴──┴─────────────────────┘
//! H  nothing follows it      WE  ring at each result
//! R  that task runs          WI  ring when idle, or when the ring is half full
//! C  closed
//! ```
//!
//! How far its results reach and what runs are one word so that they change together: a task's result is there from the
//! very moment at which it runs no longer, and never if the lane was closed while it ran. The worker moves the word by
//! compare-exchange, so it notices when the pool has closed the lane or wants to be woken.

/// Words that a position counts before it begins at 0 again: far more than any ring has.
const POSITIONS: u32 = 1 << 27;

/// Nothing begins at once behind the task that runs: the pool has given the next one to somebody else.
pub(crate) const HOLD: u64 = 1 << 27;
const RUNNING: u64 = 1 << 28;
const CLOSED: u64 = 1 << 29;
/// The pool sleeps, and wants to be woken by the next result.
pub(crate) const WAKE_EACH: u64 = 1 << 30;
/// The pool sleeps, and wants to be woken when the lane is idle or its ring is half full.
pub(crate) const WAKE_IDLE: u64 = 1 << 31;

/// What runs in a lane, or ran when it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The number of the task that runs there; none if it is idle.
    pub running: Option<u32>,
    /// Whether it was closed: no task begins or finishes there any more.
    pub closed: bool,
}

/// The word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed(pub(crate) u64);

impl Packed {
    /// How many words of results were written, counted on and on.
    #[inline]
    pub(crate) fn head(self) -> u32 {
        self.0 as u32 & (POSITIONS - 1)
    }

    #[inline]
    pub(crate) fn running(self) -> Option<u32> {
        (self.0 & RUNNING != 0).then_some((self.0 >> 32) as u32)
    }

    #[inline]
    pub(crate) fn closed(self) -> bool {
        self.0 & CLOSED != 0
    }

    #[inline]
    pub(crate) fn wakes_each(self) -> bool {
        self.0 & WAKE_EACH != 0
    }

    #[inline]
    pub(crate) fn wakes_idle(self) -> bool {
        self.0 & WAKE_IDLE != 0
    }

    #[inline]
    pub(crate) fn held(self) -> bool {
        self.0 & HOLD != 0
    }

    /// The same lane with its results up to there, and that task running or none. Who wants to be woken stays; it is held no
    /// longer.
    #[inline]
    pub(crate) fn moved(self, head: u32, running: Option<u32>) -> Packed {
        let kept = self.0 & (CLOSED | WAKE_EACH | WAKE_IDLE);
        let task = running.map_or(0, |task| u64::from(task) << 32 | RUNNING);
        Packed(task | kept | u64::from(head & (POSITIONS - 1)))
    }

    /// The same, and nobody wants to be woken.
    #[inline]
    pub(crate) fn woken(self) -> Packed {
        Packed(self.0 & !(WAKE_EACH | WAKE_IDLE))
    }

    #[inline]
    pub(crate) fn with(self, bits: u64) -> Packed {
        Packed(self.0 | bits)
    }

    /// Bits of which the pool sets some at any time: closed, held, and wanting to be woken.
    #[inline]
    pub(crate) fn differs_by_the_pool_alone(self, other: Packed) -> bool {
        (self.0 ^ other.0) & !(HOLD | CLOSED | WAKE_EACH | WAKE_IDLE) == 0
    }

    pub(crate) fn cursor(self) -> Cursor {
        Cursor { running: self.running(), closed: self.closed() }
    }
}

/// What closing sets.
pub(crate) const CLOSE: u64 = CLOSED;

/// How far a position is behind another one.
#[inline]
pub(crate) fn distance(head: u32, tail: u32) -> u32 {
    head.wrapping_sub(tail) & (POSITIONS - 1)
}

/// A position so much further.
#[inline]
pub(crate) fn advanced(position: u32, words: u32) -> u32 {
    position.wrapping_add(words) & (POSITIONS - 1)
}

/// The word before a result: the number of its task, how many bytes it has, what kind it is.
#[inline]
pub(crate) fn header(task: u32, bytes: usize, kind: u8) -> u64 {
    u64::from(task) << 32 | (bytes as u64 & 0xff_ffff) << 8 | u64::from(kind)
}

/// The same back.
#[inline]
pub(crate) fn read_header(word: u64) -> (u32, u32, u8) {
    ((word >> 32) as u32, (word >> 8) as u32 & 0xff_ffff, word as u8)
}
