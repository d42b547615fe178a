//! Frames to messages: joins what came in parts, within the limits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;

use crate::descriptors::{Arrivals, Descriptors};
use crate::envelope::Head;
use crate::limits::{MIN_PART, UNFINISHED_FDS};
use crate::{Body, Envelope, Limits, Origin, WireError, byte_string};

/// Most bytes by which a body grows ahead of what has arrived, within the frame that is arriving.
const AHEAD: usize = 256 * 1024;

/// The unfinished messages of one connection, at most one for each target.
///
/// It holds what has arrived, and of a large frame that is arriving the rest at most: neither a length nor a flag
/// makes it go further ahead. It does reserve as much as the last message of several frames needed, since the next one
/// is likely to be as large; that costs addresses, and memory only as bytes arrive.
#[derive(Debug)]
pub struct Assembler {
    limits: Limits,
    unfinished: HashMap<u32, Unfinished>,
    /// Bytes held by all of them.
    held: usize,
    /// Descriptors held by them, but for those of a message whose only frame is arriving in pieces.
    held_fds: usize,
    /// The frame that is arriving in pieces, if one is.
    arriving: Option<Arriving>,
    /// Descriptors for frames that are still to come.
    pub(crate) arrivals: Arrivals,
    /// How large the last message of several frames was.
    expected: usize,
}

#[derive(Debug)]
struct Unfinished {
    envelope: Envelope,
    /// What comes before the body: the head of a byte string, if it began with one.
    before: Option<[u8; byte_string::HEAD]>,
    /// Of these, `filled` have arrived; the rest is room.
    body: Vec<u8>,
    filled: usize,
    /// How large the body was when its memory was last asked for.
    advised: usize,
    descriptors: Descriptors,
    /// It is one of several frames.
    several: bool,
}

/// A frame of which the head has been read.
#[derive(Clone, Copy, Debug)]
struct Arriving {
    target: u32,
    /// Bytes of it that are still to come; more than 0.
    left: usize,
    more: bool,
}

impl Assembler {
    /// Nothing has arrived yet.
    pub fn new(limits: Limits) -> Self {
        Assembler {
            limits: limits.settled(),
            unfinished: HashMap::new(),
            held: 0,
            held_fds: 0,
            arriving: None,
            arrivals: Arrivals::default(),
            expected: 0,
        }
    }

    /// Takes one frame without its length prefix; gives back the message that it completes.
    ///
    /// # Errors
    ///
    /// Any [`WireError`] that names what is wrong with the frame. The connection cannot go on then.
    #[inline]
    pub fn push(&mut self, frame: impl AsRef<[u8]>) -> Result<Option<Envelope>, WireError> {
        let frame = frame.as_ref();
        let (head, start) = Head::read(frame, frame.len())?;
        let body = &frame[start..];
        if self.is_whole(&head)? {
            let mut envelope = header(&head, Body::from_bytes(copied(body)));
            if head.fds > 0 {
                envelope.body.attach(self.arrivals.take(head.fds)?);
            }
            return Ok(Some(envelope));
        }
        let unfinished = self.begin_part(&head)?;
        unfinished.fill(body);
        Ok(if head.more { None } else { self.finish(head.target) })
    }

    /// Takes the head of a frame whose body, which has some bytes, comes in pieces.
    ///
    /// `body` is what of that is there already; says how much of it was taken. That is the head of a byte string, if the message
    /// begins with one: so its bytes lie where a vector has them, and need not be moved there.
    pub(crate) fn begin(&mut self, head: &Head<'_>, body: &[u8]) -> Result<usize, WireError> {
        // A whole message as well: it is an unfinished one for a while.
        if self.is_whole(head)? && head.kind.is_control() {
            return Err(WireError::Malformed("a control message is short"));
        }
        let unfinished = self.begin_part(head)?;
        let is_first = unfinished.filled == 0 && unfinished.before.is_none();
        let mut taken = 0;
        if let Some(before) = byte_string::head(body).filter(|_| is_first && head.body > byte_string::HEAD) {
            unfinished.before = Some(before);
            taken = before.len();
        }
        self.arriving = Some(Arriving { target: head.target, left: head.body - taken, more: head.more });
        Ok(taken)
    }

    /// How many bytes of a frame are still to come in pieces.
    pub(crate) fn arriving(&self) -> usize {
        self.arriving.map_or(0, |arriving| arriving.left)
    }

    /// Room for bytes of the frame that is arriving, to be read into directly; say by
    /// [`arrived`](Assembler::arrived) how many came. Empty if none is arriving.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let Some(Arriving { target, left, more }) = self.arriving else { return &mut [] };
        let Some(unfinished) = self.unfinished.get_mut(&target) else { return &mut [] };
        unfinished.room(left, more)
    }

    /// So many bytes of the room have been filled; gives back the message that they complete.
    pub(crate) fn arrived(&mut self, n: usize) -> Option<Envelope> {
        let arriving = self.arriving.as_mut()?;
        let Arriving { target, more, .. } = *arriving;
        self.unfinished.get_mut(&target)?.filled += n;
        arriving.left -= n;
        if arriving.left > 0 {
            return None;
        }
        self.arriving = None;
        if more { None } else { self.finish(target) }
    }

    /// Whether no message is unfinished.
    pub fn is_idle(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// Bytes of unfinished messages.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether this frame is a message by itself; checks what every frame has to keep to.
    #[inline]
    fn is_whole(&self, head: &Head<'_>) -> Result<bool, WireError> {
        let (size, limit) = (head.body, self.limits.message);
        if size > limit {
            return Err(WireError::MessageTooLarge { size, limit });
        }
        if head.kind.is_control() {
            return if head.more {
                Err(WireError::Malformed("a control message must fit one frame"))
            } else {
                Ok(true)
            };
        }
        if head.more && size < MIN_PART {
            return Err(WireError::Malformed("a frame with more to follow carries less than 1024 bytes"));
        }
        Ok(!head.more && (self.unfinished.is_empty() || !self.unfinished.contains_key(&head.target)))
    }

    /// Begins or goes on with the unfinished message that this frame belongs to.
    fn begin_part(&mut self, head: &Head<'_>) -> Result<&mut Unfinished, WireError> {
        // For one at a time, so that a peer which sends a large one cannot have as much reserved for many.
        let expected = if head.more && self.unfinished.is_empty() { self.expected } else { 0 };
        match self.unfinished.entry(head.target) {
            Entry::Vacant(entry) => {
                let size = head.chain.len() + head.trace.len() + head.body;
                self.held = charge(self.held, size, self.limits.budget)?;
                let descriptors =
                    if head.fds > 0 { self.arrivals.take(head.fds)? } else { Descriptors::default() };
                if head.more {
                    self.held_fds += descriptors.len();
                    if self.held_fds > UNFINISHED_FDS {
                        return Err(WireError::Descriptors("unfinished messages have more than 64"));
                    }
                }
                let envelope = header(head, Body::default());
                let mut body = Vec::new();
                // Where there is not that much, it grows as it has to.
                let _ = body.try_reserve_exact(expected.max(head.body.min(AHEAD)));
                let several = head.more;
                Ok(entry.insert(Unfinished {
                    envelope,
                    before: None,
                    body,
                    filled: 0,
                    advised: 0,
                    descriptors,
                    several,
                }))
            }
            Entry::Occupied(entry) => {
                let unfinished = entry.into_mut();
                if (head.kind, head.id) != (unfinished.envelope.kind, unfinished.envelope.id) {
                    return Err(WireError::Malformed(
                        "another message begins before the target's last one ended",
                    ));
                }
                let plain = head.chain.is_empty() && head.trace.is_empty() && head.deadline.is_none();
                if !plain || head.release || head.fds > 0 {
                    return Err(WireError::Malformed(
                        "a continuation repeats what only a first frame carries",
                    ));
                }
                let size = unfinished.size() + head.body;
                if size > self.limits.message {
                    return Err(WireError::MessageTooLarge { size, limit: self.limits.message });
                }
                self.held = charge(self.held, head.body, self.limits.budget)?;
                Ok(unfinished)
            }
        }
    }

    fn finish(&mut self, target: u32) -> Option<Envelope> {
        let unfinished = self.unfinished.remove(&target)?;
        let size = unfinished.size();
        let Unfinished { mut envelope, before, mut body, filled, descriptors, several, .. } = unfinished;
        if several {
            self.expected = filled;
            self.held_fds -= descriptors.len();
        }
        self.held -= envelope.size() + size;
        body.truncate(filled);
        // Doubling left up to as much again unused; giving it back is cheap, large blocks shrink in place.
        body.shrink_to_fit();
        let body = Bytes::from(body);
        envelope.body = match before {
            None => Body::from_bytes(body),
            Some(before) => Body::from_pieces(vec![Bytes::copy_from_slice(&before), body]),
        };
        if !descriptors.are_none() {
            envelope.body.attach(descriptors);
        }
        Some(envelope)
    }
}

impl Unfinished {
    fn fill(&mut self, part: &[u8]) {
        self.body.truncate(self.filled);
        self.body.extend_from_slice(part);
        self.filled = self.body.len();
    }

    /// Bytes of its body that have arrived.
    fn size(&self) -> usize {
        self.filled + self.before.map_or(0, |before| before.len())
    }

    /// Room for up to this many more bytes, and at least one; whether a frame follows them.
    fn room(&mut self, left: usize, more: bool) -> &mut [u8] {
        if self.body.len() == self.filled {
            let ahead = left.min(AHEAD);
            if more {
                self.body.reserve(ahead);
            } else {
                // All there will be.
                self.body.reserve_exact(ahead);
            }
            if self.body.capacity() != self.advised {
                self.advised = self.body.capacity();
                hatchery_shm::will_fill(&mut self.body);
            }
            // Doubles at most, so that no byte is moved often; zeroed once, since nothing else is safe to read into.
            self.body.resize(self.filled + ahead, 0);
        }
        let end = self.body.len().min(self.filled + left);
        &mut self.body[self.filled..end]
    }
}

fn charge(held: usize, more: usize, limit: usize) -> Result<usize, WireError> {
    let size = held.saturating_add(more);
    if size > limit { Err(WireError::OverBudget { size, limit }) } else { Ok(size) }
}

#[inline]
fn header(head: &Head<'_>, body: Body) -> Envelope {
    Envelope {
        kind: head.kind,
        release: head.release,
        id: head.id,
        target: head.target,
        deadline: head.deadline,
        origin: Origin::new(head.chain, head.trace),
        body,
    }
}

fn copied(bytes: &[u8]) -> Bytes {
    if bytes.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(bytes) }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, BytesMut};
    use proptest::prelude::*;
    use std::time::Duration;

    use super::*;
    use crate::chunks::Chunks;
    use crate::limits::MIN_FRAME;
    use crate::{Kind, Outbox};

    const SMALL: Limits = Limits { frame: MIN_FRAME, message: 100_000, budget: 150_000 };

    fn envelope(kind: Kind, target: u32, id: u64, len: usize) -> Envelope {
        Envelope::new(kind, target, id, Body::from_bytes(vec![id as u8; len].into()))
    }

    /// All frames that the outbox would write, without their prefixes.
    fn frames(outbox: &mut Outbox) -> Vec<Bytes> {
        let mut out = Chunks::default();
        outbox.fill(&mut out, usize::MAX);
        assert!(outbox.is_empty());
        assert_eq!(outbox.bytes(), 0);
        cut(out.flat())
    }

    fn cut(mut out: BytesMut) -> Vec<Bytes> {
        let mut frames = Vec::new();
        while out.has_remaining() {
            let len = out.get_u32() as usize;
            assert!(len <= MIN_FRAME);
            frames.push(out.split_to(len).freeze());
        }
        frames
    }

    fn refusal(frames: &[Bytes]) -> WireError {
        let mut assembler = Assembler::new(SMALL);
        frames.iter().find_map(|frame| assembler.push(frame.clone()).err()).expect("a frame is refused")
    }

    fn frames_of(envelope: Envelope) -> Vec<Bytes> {
        // A sender without the receiver's limits.
        let mut outbox = Outbox::new(Limits { frame: MIN_FRAME, ..Limits::default() });
        outbox.push(envelope).unwrap();
        frames(&mut outbox)
    }

    #[test]
    fn small_messages_overtake_a_large_one_to_another_target() {
        let mut outbox = Outbox::new(SMALL);
        outbox.push(envelope(Kind::Ask, 1, 1, 50_000)).unwrap();
        outbox.push(envelope(Kind::Ask, 2, 2, 10)).unwrap();
        outbox.push(envelope(Kind::Ask, 1, 3, 10)).unwrap();
        outbox.push(envelope(Kind::Release, 1, 4, 0)).unwrap();
        let mut assembler = Assembler::new(SMALL);
        let ids: Vec<u64> = frames(&mut outbox)
            .into_iter()
            .filter_map(|f| assembler.push(f).unwrap())
            .map(|e| e.id)
            .collect();
        assert_eq!(ids, [4, 2, 1, 3]);
        assert!(assembler.is_idle());
        assert_eq!(assembler.held(), 0);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_on_both_sides() {
        let mut outbox = Outbox::new(SMALL);
        let refused = outbox.push(envelope(Kind::Ask, 1, 1, SMALL.message + 1));
        assert!(matches!(refused, Err(WireError::MessageTooLarge { size: 100_001, limit: 100_000 })));
        assert!(outbox.is_empty());
        outbox.push(envelope(Kind::Ask, 1, 1, SMALL.message)).unwrap();
        let mut assembler = Assembler::new(SMALL);
        let whole = frames(&mut outbox).into_iter().filter_map(|f| assembler.push(f).unwrap()).count();
        assert_eq!(whole, 1);
        let error = refusal(&frames_of(envelope(Kind::Ask, 1, 1, SMALL.message + 1)));
        assert!(matches!(error, WireError::MessageTooLarge { .. }));
    }

    #[test]
    fn room_is_reserved_as_the_last_large_message_needed_it_for_one_at_a_time() {
        let mut assembler = Assembler::new(SMALL);
        let reserved = |assembler: &Assembler, target: u32| assembler.unfinished[&target].body.capacity();
        let of = |target| frames_of(envelope(Kind::Ask, target, 1, 90_000));
        assembler.push(&of(1)[0]).unwrap();
        assert!(reserved(&assembler, 1) <= MIN_FRAME, "nothing was large so far");
        for frame in &of(1)[1..] {
            assembler.push(frame).unwrap();
        }
        assembler.push(&of(1)[0]).unwrap();
        assembler.push(&of(2)[0]).unwrap();
        assert_eq!(reserved(&assembler, 1), 90_000);
        assert!(reserved(&assembler, 2) <= MIN_FRAME, "one is unfinished already");
        assert!(assembler.held() <= 2 * MIN_FRAME, "what is reserved does not count, only what has arrived");
    }

    #[test]
    fn unfinished_messages_share_a_budget() {
        let mut many = Vec::new();
        for target in 0..3 {
            let mut frames = frames_of(envelope(Kind::Ask, target, 1, 90_000));
            frames.pop();
            many.extend(frames);
        }
        assert!(matches!(refusal(&many), WireError::OverBudget { limit: 150_000, .. }));
    }

    #[test]
    fn an_honest_sender_stays_within_the_budget() {
        let mut outbox = Outbox::new(SMALL);
        for target in 0..10 {
            outbox.push(envelope(Kind::Ask, target, u64::from(target), 70_000)).unwrap();
            outbox.push(envelope(Kind::Ask, target, u64::from(target) + 100, 10)).unwrap();
        }
        let mut assembler = Assembler::new(SMALL);
        let mut whole = 0;
        for frame in frames(&mut outbox) {
            whole += usize::from(assembler.push(frame).unwrap().is_some());
            assert!(assembler.held() <= 140_000);
        }
        assert_eq!(whole, 20);
    }

    #[test]
    fn two_messages_to_one_target_may_not_interleave() {
        let first = frames_of(envelope(Kind::Ask, 1, 1, 20_000));
        let second = frames_of(envelope(Kind::Ask, 1, 2, 20_000));
        let error = refusal(&[first[0].clone(), second[0].clone()]);
        assert_eq!(error, WireError::Malformed("another message begins before the target's last one ended"));
        let other_kind = frames_of(envelope(Kind::Tell, 1, 1, 20_000));
        refusal(&[first[0].clone(), other_kind[1].clone()]);
    }

    #[test]
    fn a_continuation_carries_nothing_but_its_part() {
        let mut first = envelope(Kind::Ask, 1, 1, 20_000);
        first.deadline = Some(Duration::from_secs(1));
        let first = frames_of(first);
        let error = refusal(&[first[0].clone(), first[0].clone()]);
        assert_eq!(error, WireError::Malformed("a continuation repeats what only a first frame carries"));
    }

    #[test]
    fn frames_with_more_to_follow_must_carry_something() {
        let mut out = BytesMut::new();
        envelope(Kind::Ask, 1, 1, 10).encode_into(&mut out).unwrap();
        out[6] = 1;
        let frame = out.freeze().slice(4..);
        assert!(matches!(refusal(&[frame]), WireError::Malformed(_)));
    }

    #[test]
    fn a_withdrawal_overtakes_or_follows_its_request() {
        let mut outbox = Outbox::new(SMALL);
        outbox.push(envelope(Kind::Ask, 1, 1, 50_000)).unwrap();
        outbox.push(envelope(Kind::Ask, 1, 2, 10)).unwrap();
        outbox.push(envelope(Kind::Reply, 1, 3, 10)).unwrap();
        let mut out = Chunks::default();
        outbox.fill(&mut out, 1);
        outbox.push(envelope(Kind::Withdraw, 1, 1, 0)).unwrap();
        outbox.push(envelope(Kind::Withdraw, 1, 99, 0)).unwrap();
        outbox.fill(&mut out, usize::MAX);
        let mut assembler = Assembler::new(SMALL);
        let got: Vec<_> = cut(out.flat())
            .into_iter()
            .filter_map(|f| assembler.push(f).unwrap())
            .map(|e| (e.kind, e.id))
            .collect();
        assert_eq!(
            got,
            [(Kind::Withdraw, 99), (Kind::Ask, 1), (Kind::Withdraw, 1), (Kind::Ask, 2), (Kind::Reply, 3)]
        );
    }

    fn any_envelope() -> impl Strategy<Value = Envelope> {
        let kind = (0u8..15).prop_map(|byte| Kind::try_from(byte).unwrap());
        let len = prop_oneof![4 => 0usize..100, 1 => 0usize..50_000, 1 => 7_900usize..8_200];
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
        let deadline = any::<Option<u64>>().prop_map(|micros| micros.map(Duration::from_micros));
        (kind, any::<bool>(), any::<u64>(), 0u32..5, deadline, bytes(4096), bytes(256), len).prop_map(
            |(kind, release, id, target, deadline, chain, trace, len)| {
                let len = if kind.is_control() { len.min(100) } else { len };
                let body = Body::from_bytes(vec![id as u8; len].into());
                let origin = Origin::new(&chain, &trace);
                Envelope { kind, release, id, target, deadline, origin, body }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_arrive_whole_once_and_in_order_per_target(
            sent in prop::collection::vec((any_envelope(), 0usize..3), 1..40),
        ) {
            let (mut outbox, mut assembler) = (Outbox::new(SMALL), Assembler::new(SMALL));
            let mut out = Chunks::default();
            for (envelope, fills) in &sent {
                outbox.push(envelope.clone()).unwrap();
                // Some frames leave between the pushes.
                for _ in 0..*fills {
                    let more = out.len() + 1;
                    outbox.fill(&mut out, more);
                }
            }
            outbox.fill(&mut out, usize::MAX);
            prop_assert!(outbox.is_empty());
            prop_assert_eq!(outbox.bytes(), 0);
            let mut got = Vec::new();
            for frame in cut(out.flat()) {
                got.extend(assembler.push(frame).unwrap());
            }
            prop_assert!(assembler.is_idle());
            prop_assert_eq!(got.len(), sent.len());
            let lane = |all: &mut dyn Iterator<Item = Envelope>, target: u32, control: bool| -> Vec<Envelope> {
                all.filter(|e| e.target == target && e.kind.is_control() == control).collect()
            };
            for target in 0..5 {
                for control in [false, true] {
                    let sent = lane(&mut sent.iter().map(|(e, _)| e.clone()), target, control);
                    prop_assert_eq!(lane(&mut got.iter().cloned(), target, control), sent);
                }
            }
        }

        #[test]
        fn arbitrary_frames_never_panic(frame in prop::collection::vec(any::<u8>(), 0..100), flags in 0u8..4) {
            let mut frame = frame;
            let mut assembler = Assembler::new(SMALL);
            let _ = assembler.push(&frame);
            // Once more with a plausible head, which gets further.
            let head = [0x99, frame.len() as u8 % 10, flags, 0];
            frame.splice(0..0, head);
            let _ = assembler.push(frame);
        }
    }
}
