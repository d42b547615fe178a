//! Whether the ends of a worker's channel look out for each other before they sleep.

use serde::{Deserialize, Serialize};

/// What an end of a channel does when it waits for something that is due at once: the answer to a request, or the next
/// request after an answer.
///
/// To wake a process that sleeps on another CPU takes longer than everything else of a small ask together. Who does
/// not sleep need not be woken, and keeps a CPU busy meanwhile: for 50 µs a wait at most, and only as long as that
/// shortens waits. Where both ends share a CPU, or others want it, it does not; each end of each channel finds that out
/// for itself, and tries again now and then.
///
/// It concerns what is asked with few requests under way and answered in microseconds, by a process whose runtime has
/// one thread: a worker, or a root of that flavor. With several threads it is always off. Nobody spins while nothing is
/// due.
#[doc(alias = "busy_poll")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spin {
    /// It sleeps at once.
    #[default]
    Off,
    /// It keeps looking for up to 50 µs while that pays.
    Adaptive,
}
