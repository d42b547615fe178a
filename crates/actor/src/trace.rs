//! Trace contexts: which chain of requests something belongs to, in the way of the W3C's `traceparent`.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;

use bytes::Bytes;

tokio::task_local! {
    /// The context of the handler, or of the scope, that this task is in.
    static CURRENT: TraceContext;
}

/// On the wire: trace id, span id, flags.
const LENGTH: usize = 16 + 8 + 1;

/// The trace that a request belongs to, and the span in it that makes the request.
///
/// Asks and tells that are first polled inside [`scope`](TraceContext::scope) carry it to their actor. There
/// [`Context::trace`](crate::context::Context::trace) gives the same trace with a span of the handler's own, whose parent
/// is the asker's; what the handler asks in turn goes on from there. So a → b → c is one trace. It is bound to the task,
/// and to those of the handler's actor that it begins there: with [`Context::spawn`](crate::context::Context::spawn) or
/// [`after`](crate::context::Context::after), or as a streamed answer. A task in a process of its own goes on with it, too,
/// in a span of its own. What is spawned otherwise has none unless it is put into a `scope`, too.
///
/// The text form is the header `traceparent`:
///
/// ```
/// use hatchery_actor::trace::TraceContext;
///
/// let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let trace: TraceContext = header.parse()?;
/// assert!(trace.is_sampled());
/// assert_eq!(trace.to_string(), header);
/// assert_eq!(trace.child().trace_id(), trace.trace_id());
/// # Ok::<(), hatchery_actor::trace::NoTraceparent>(())
/// ```
#[doc(alias = "traceparent")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    parent: u64,
    flags: u8,
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no traceparent: it reads 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case, ids not zero"
)]
pub struct NoTraceparent;

impl TraceContext {
    /// Begins a trace, with random ids, to be recorded.
    #[expect(clippy::new_without_default, reason = "each one is another")]
    pub fn new() -> TraceContext {
        let trace = u128::from(random()) << 64 | u128::from(random());
        TraceContext { trace, span: random(), parent: 0, flags: 1 }
    }

    /// A new span of the same trace, below this one.
    #[must_use]
    pub fn child(&self) -> TraceContext {
        TraceContext { span: random(), parent: self.span, ..*self }
    }

    /// The context of this task: of its handler, or of the innermost [`scope`](TraceContext::scope).
    pub fn current() -> Option<TraceContext> {
        CURRENT.try_with(|current| *current).ok()
    }

    /// Runs a future in this context.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Runs a function in this context.
    pub fn sync_scope<T>(self, f: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, f)
    }

    /// The whole trace; never 0.
    pub fn trace_id(&self) -> u128 {
        self.trace
    }

    /// This span of it; never 0.
    pub fn span_id(&self) -> u64 {
        self.span
    }

    /// The span above, where it is known here: in a handler that of the asker.
    pub fn parent_id(&self) -> Option<u64> {
        Some(self.parent).filter(|parent| *parent != 0)
    }

    /// The flags of the header. Bit 0 says that it is recorded.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the asker records this trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// As an envelope carries it.
    #[doc(hidden)]
    pub fn to_wire(&self) -> Bytes {
        let mut bytes = [0; LENGTH];
        bytes[..16].copy_from_slice(&self.trace.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.span.to_be_bytes());
        bytes[24] = self.flags;
        Bytes::copy_from_slice(&bytes)
    }

    /// From an envelope. What is no context is none: a trace is a help, nothing that a request could fail for.
    #[doc(hidden)]
    pub fn of_wire(bytes: &[u8]) -> Option<TraceContext> {
        let (trace, rest) = bytes.split_first_chunk::<16>()?;
        let (span, flags) = rest.split_first_chunk::<8>()?;
        let [flags] = flags else { return None };
        TraceContext::checked(u128::from_be_bytes(*trace), u64::from_be_bytes(*span), *flags)
    }

    fn checked(trace: u128, span: u64, flags: u8) -> Option<TraceContext> {
        (trace != 0 && span != 0).then_some(TraceContext { trace, span, parent: 0, flags })
    }
}

impl fmt::Display for TraceContext {
    /// The header `traceparent`, version 00.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceContext({self})")
    }
}

impl FromStr for TraceContext {
    type Err = NoTraceparent;

    /// Reads the header `traceparent`. Of a version to come, the part that version 00 knows is read, as the W3C asks.
    fn from_str(text: &str) -> Result<TraceContext, NoTraceparent> {
        let mut parts = text.splitn(5, '-');
        let mut part = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits).ok_or(NoTraceparent)?;
            let hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            hex.then(|| u128::from_str_radix(part, 16).map_err(|_| NoTraceparent)).ok_or(NoTraceparent)?
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return Err(NoTraceparent);
        }
        // Each of them has as many digits as its type.
        TraceContext::checked(trace, span as u64, flags as u8).ok_or(NoTraceparent)
    }
}

/// 64 random bits that are not all zero: `RandomState` is seeded by the system once a thread and differs at every call.
fn random() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_goes_both_ways_and_anything_else_is_refused() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace: TraceContext = good.parse().unwrap();
        assert_eq!(trace.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((trace.span_id(), trace.flags(), trace.parent_id()), (0x00f0_67aa_0ba9_02b7, 1, None));
        assert_eq!(trace.to_string(), good);
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more-to-come";
        assert_eq!(later.parse(), Ok(trace));
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ] {
            assert_eq!(wrong.parse::<TraceContext>(), Err(NoTraceparent), "{wrong}");
        }
    }

    #[test]
    fn the_wire_carries_trace_span_and_flags_and_nonsense_is_no_trace() {
        let trace = TraceContext::new();
        let wire = trace.to_wire();
        assert_eq!(TraceContext::of_wire(&wire), Some(trace));
        for cut in 0..wire.len() {
            assert_eq!(TraceContext::of_wire(&wire[..cut]), None);
        }
        assert_eq!(TraceContext::of_wire(&[0; LENGTH]), None);
        assert_eq!(TraceContext::of_wire(&[7; 256]), None);
    }

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let (one, other) = (TraceContext::new(), TraceContext::new());
        assert_ne!(one.trace_id(), other.trace_id());
        let child = one.child();
        assert_eq!((child.trace_id(), child.parent_id()), (one.trace_id(), Some(one.span_id())));
        assert_ne!(child.span_id(), one.span_id());
    }

    #[tokio::test]
    async fn a_scope_holds_for_its_own_task() {
        assert_eq!(TraceContext::current(), None);
        let trace = TraceContext::new();
        let (here, there) = trace
            .scope(async {
                let there = tokio::spawn(async { TraceContext::current() }).await;
                (TraceContext::current(), there.unwrap_or(Some(TraceContext::new())))
            })
            .await;
        assert_eq!((here, there, TraceContext::current()), (Some(trace), None, None));
    }
}
