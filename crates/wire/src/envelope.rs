//! One message as a value, and its frames as bytes.
//!
//! ```text
//! u32 length | [ kind, flags, fds, id, target, deadline|nil, chain|nil, trace|nil, body ]
//! ▲ `fds` descriptors travel with the first byte of a first frame
//! ```

use std::cmp::Ordering;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::chunks::{Chunks, SHARED_FROM};
use crate::limits::{CHAIN, HEAD, MAX_FDS, TRACE};
use crate::pack::{self, Put, Reader, Short};
use crate::{Body, WireError};

/// More frames of the same message follow.
const MORE: u8 = 1;
/// One place of the sender's window is given back.
const RELEASE: u8 = 2;

/// What an envelope is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The arguments of the actor or task that the process was started for.
    Start = 0,
    /// A request that wants an answer.
    Ask = 1,
    /// A request without an answer.
    Tell = 2,
    /// The value a request was answered with.
    Reply = 3,
    /// The handler's own error.
    Error = 4,
    /// The library's reason why there is no answer.
    Fault = 5,
    /// The caller of this id has left.
    Withdraw = 6,
    /// Gives back `id` places of the window of `target`.
    Release = 7,
    /// One item of a streamed answer.
    Item = 8,
    /// The end of a streamed answer.
    End = 9,
    /// The caller has taken items of a streamed answer; how many is the body.
    Credit = 10,
    /// From here on `target` is the actor that the body names.
    Bind = 11,
    /// There will be no more about `target`.
    Unbind = 12,
    /// Looks for a circle of those who wait for one another, along this request; what it has found is the chain.
    Probe = 13,
    /// Behind all requests to `target`: it shall handle what has arrived by now, and then stop.
    Drain = 14,
}

impl Kind {
    /// Control overtakes other messages and always fits one frame.
    pub(crate) fn is_control(self) -> bool {
        matches!(self, Kind::Withdraw | Kind::Release | Kind::Credit | Kind::Probe)
    }

    /// Whether its body is a value of the user's, which may have descriptors.
    fn has_a_value(self) -> bool {
        matches!(self, Kind::Start | Kind::Ask | Kind::Tell | Kind::Reply | Kind::Error | Kind::Item)
    }

    /// What a caller sends and may take back.
    pub(crate) fn is_request(self) -> bool {
        matches!(self, Kind::Start | Kind::Ask | Kind::Tell)
    }
}

impl TryFrom<u8> for Kind {
    type Error = WireError;

    #[inline]
    fn try_from(byte: u8) -> Result<Self, WireError> {
        Ok(match byte {
            0 => Kind::Start,
            1 => Kind::Ask,
            2 => Kind::Tell,
            3 => Kind::Reply,
            4 => Kind::Error,
            5 => Kind::Fault,
            6 => Kind::Withdraw,
            7 => Kind::Release,
            8 => Kind::Item,
            9 => Kind::End,
            10 => Kind::Credit,
            11 => Kind::Bind,
            12 => Kind::Unbind,
            13 => Kind::Probe,
            14 => Kind::Drain,
            unknown => return Err(WireError::UnknownKind(unknown)),
        })
    }
}

/// One message between two processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What it is for.
    pub kind: Kind,
    /// Also gives back one place of the window, on answers.
    pub release: bool,
    /// The request it makes or belongs to; for [`Kind::Release`] the number of places.
    pub id: u64,
    /// The receiver inside the process; messages to one target keep their order.
    pub target: u32,
    /// Time left for the answer, in whole microseconds on the wire.
    pub deadline: Option<Duration>,
    /// Where it comes from, if that is known. In a box, since most have none, and an envelope is moved often.
    pub origin: Option<Box<Origin>>,
    /// The encoded value; empty for none.
    pub body: Body,
}

/// Where a message comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The requests that led to this one; opaque here, empty for none, at most [`CHAIN`] bytes.
    pub chain: Bytes,
    /// Trace context; opaque here, empty for none, at most [`TRACE`] bytes.
    pub trace: Bytes,
}

impl Origin {
    /// In its box; `None` if there is nothing to say.
    #[inline]
    pub fn new(chain: &[u8], trace: &[u8]) -> Option<Box<Origin>> {
        if chain.is_empty() && trace.is_empty() {
            return None;
        }
        Some(Box::new(Origin { chain: Bytes::copy_from_slice(chain), trace: Bytes::copy_from_slice(trace) }))
    }

    fn len(&self) -> usize {
        self.chain.len() + self.trace.len()
    }
}

impl Envelope {
    /// An envelope without deadline, origin or release.
    ///
    /// ```
    /// use hatchery_wire::{Envelope, Kind, encode};
    ///
    /// let ask = Envelope::new(Kind::Ask, 7, 1, encode("hello")?);
    /// assert_eq!((ask.target, ask.id, ask.deadline), (7, 1, None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn new(kind: Kind, target: u32, id: u64, body: Body) -> Self {
        Envelope { kind, release: false, id, target, deadline: None, origin: None, body }
    }

    /// Bytes that this message takes while it is unfinished, the same on both sides.
    pub(crate) fn size(&self) -> usize {
        self.body.len() + self.context()
    }

    /// Bytes of its chain and trace.
    pub(crate) fn context(&self) -> usize {
        self.origin.as_ref().map_or(0, |origin| origin.len())
    }

    /// That chain and trace are within their limits.
    pub(crate) fn check(&self) -> Result<(), WireError> {
        self.origin.as_ref().map_or(Ok(()), |origin| check_context(&origin.chain, &origin.trace))
    }

    /// Whether it may need more than one frame of `limit` bytes.
    pub(crate) fn is_large(&self, limit: usize) -> bool {
        self.size() + HEAD > limit
    }

    /// Whether it fits one frame that is copied rather than shared, without descriptors: then
    /// [`encode_into`](Envelope::encode_into) is the short way out.
    #[inline]
    pub fn is_small(&self) -> bool {
        self.size() < SHARED_FROM && self.body.descriptors() == 0
    }

    /// Appends the one frame of a message that [is small](Envelope::is_small).
    ///
    /// # Errors
    /// [`WireError::Malformed`] for a chain or trace over its limit. Nothing is written then.
    pub fn encode_into(&self, out: &mut BytesMut) -> Result<(), WireError> {
        debug_assert_eq!(self.body.descriptors(), 0, "there is no way for them here");
        self.check()?;
        let start = self.put_head(out, 0, self.body.len());
        self.body.pieces().for_each(|piece| out.put_slice(piece));
        close_frame(out, start, 0);
        Ok(())
    }

    /// Appends one frame with the body from `offset` on, as much as fits into `limit` bytes; gives back how far the
    /// body is written now. The chain must be within [`CHAIN`], the trace within [`TRACE`].
    pub(crate) fn put_frame(&self, out: &mut Chunks, offset: usize, limit: usize) -> usize {
        let extra = if offset == 0 { self.context() } else { 0 };
        if let Some(descriptors) = self.body.descriptors_of().filter(|_| offset == 0) {
            out.attach(descriptors);
        }
        let part = (self.body.len() - offset).min(limit - HEAD - extra);
        let end = offset + part;
        let start = self.put_head(&mut out.tail, offset, part);
        close_frame(&mut out.tail, start, part);
        let (mut skip, mut left) = (offset, part);
        for piece in self.body.pieces() {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let n = left.min(piece.len() - skip);
            if n == 0 {
                break;
            }
            out.put(&piece.slice(skip..skip + n));
            (skip, left) = (0, left - n);
        }
        end
    }

    /// Everything of a frame but its body's `part` bytes from `offset` on; gives where it starts.
    fn put_head(&self, out: &mut BytesMut, offset: usize, part: usize) -> usize {
        let first = offset == 0;
        let mut flags = 0;
        if offset + part < self.body.len() {
            flags |= MORE;
        }
        if first && self.release {
            flags |= RELEASE;
        }
        out.reserve(HEAD + part.min(SHARED_FROM) + if first { self.context() } else { 0 });
        let start = out.len();
        // There are so few that this is an integer of one byte.
        let fds = if first { self.body.descriptors() as u8 } else { 0 };
        let mut head = Short::<HEAD>::new();
        head.put(&[0, 0, 0, 0, pack::array::<9>(), self.kind as u8, flags, fds]);
        pack::put_uint(&mut head, self.id);
        pack::put_uint(&mut head, u64::from(self.target));
        match self.deadline.filter(|_| first) {
            Some(left) => pack::put_uint(&mut head, u64::try_from(left.as_micros()).unwrap_or(u64::MAX)),
            None => head.put(&[pack::NIL]),
        }
        match self.origin.as_ref().filter(|_| first) {
            Some(origin) => {
                for bytes in [&origin.chain, &origin.trace] {
                    if bytes.is_empty() {
                        head.put(&[pack::NIL]);
                    } else {
                        pack::put_bin_head(&mut head, bytes.len());
                        head.move_to(out);
                        out.put_slice(bytes);
                    }
                }
            }
            None => head.put(&[pack::NIL, pack::NIL]),
        }
        pack::put_bin_head(&mut head, part);
        head.move_to(out);
        start
    }
}

/// Writes the length of the frame that starts here, and of which so much is still to come.
fn close_frame(out: &mut BytesMut, start: usize, to_come: usize) {
    let length = (out.len() - start - 4 + to_come) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// The head of a frame taken apart; nothing is copied.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) kind: Kind,
    pub(crate) more: bool,
    pub(crate) release: bool,
    /// Descriptors that came with it.
    pub(crate) fds: usize,
    pub(crate) id: u64,
    pub(crate) target: u32,
    pub(crate) deadline: Option<Duration>,
    pub(crate) chain: &'a [u8],
    pub(crate) trace: &'a [u8],
    /// Bytes that follow the head.
    pub(crate) body: usize,
}

/// Most bytes that a head may have.
pub(crate) const LONGEST_HEAD: usize = HEAD + CHAIN + TRACE;

impl<'a> Head<'a> {
    /// Reads the head of a frame of `length` bytes from its beginning, its length prefix left out; gives also how many
    /// bytes the head has. The rest of the frame is its body.
    #[inline]
    pub(crate) fn read(frame: &'a [u8], length: usize) -> Result<(Self, usize), WireError> {
        let mut reader = Reader::new(frame);
        if reader.byte()? != pack::array::<9>() {
            return Err(WireError::Malformed("an array of nine elements is expected"));
        }
        let kind = u8::try_from(reader.uint()?).map_err(|_| WireError::Malformed("the kind is no byte"))?;
        let kind = Kind::try_from(kind)?;
        let flags = reader.uint()?;
        if flags > u64::from(MORE | RELEASE) {
            return Err(WireError::Malformed("unknown flags are set"));
        }
        let fds = reader.uint()?;
        if fds > MAX_FDS as u64 {
            return Err(WireError::Descriptors("a frame announces more than 16"));
        }
        if fds > 0 && !kind.has_a_value() {
            return Err(WireError::Descriptors("a frame announces some whose kind has none"));
        }
        let fds = fds as usize;
        let id = reader.uint()?;
        let target =
            u32::try_from(reader.uint()?).map_err(|_| WireError::Malformed("the target is over 32 bits"))?;
        let deadline = reader.uint_or_nil()?.map(Duration::from_micros);
        let chain = reader.bin_or_nil()?;
        let trace = reader.bin_or_nil()?;
        check_context(chain, trace)?;
        let body = reader.bin_head()?;
        let head = frame.len() - reader.left();
        match (length - head.min(length)).cmp(&body) {
            Ordering::Less => return Err(WireError::Malformed("the frame ends early")),
            Ordering::Greater => return Err(WireError::Malformed("bytes follow the frame's array")),
            Ordering::Equal => {}
        }
        let (more, release) = (flags & u64::from(MORE) != 0, flags & u64::from(RELEASE) != 0);
        Ok((Head { kind, more, release, fds, id, target, deadline, chain, trace, body }, head))
    }
}

/// The limits of chain and trace, which sender and receiver both check.
pub(crate) fn check_context(chain: &[u8], trace: &[u8]) -> Result<(), WireError> {
    if chain.len() > CHAIN {
        return Err(WireError::Malformed("the caller chain is over 4096 bytes"));
    }
    if trace.len() > TRACE {
        return Err(WireError::Malformed("the trace context is over 256 bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(envelope: &Envelope) -> BytesMut {
        let mut out = Chunks::default();
        assert_eq!(envelope.put_frame(&mut out, 0, 8192), envelope.body.len());
        out.flat().split_off(4)
    }

    fn read(frame: &[u8]) -> Result<(), WireError> {
        Head::read(frame, frame.len()).map(drop)
    }

    fn ask() -> Envelope {
        Envelope::new(Kind::Ask, 5, 300, Body::from_bytes(Bytes::from_static(&[0xc0])))
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut out = Chunks::default();
        ask().put_frame(&mut out, 0, 8192);
        let out = out.flat();
        let expected = [0, 0, 0, 14, 0x99, 1, 0, 0, 0xcd, 1, 44, 5, 0xc0, 0xc0, 0xc0, 0xc4, 1, 0xc0];
        assert_eq!(&out[..], &expected);
    }

    #[test]
    fn the_longest_head_stays_within_what_is_reserved_for_it() {
        let mut envelope = ask();
        envelope.id = u64::MAX;
        envelope.target = u32::MAX;
        envelope.deadline = Some(Duration::MAX);
        envelope.origin = Origin::new(&[1; CHAIN], &[2; TRACE]);
        envelope.body = Body::from_bytes(vec![3; 70_000].into());
        let mut out = Chunks::default();
        envelope.put_frame(&mut out, 0, 256 * 1024);
        assert!(out.len() - envelope.size() <= HEAD);
    }

    #[test]
    fn every_kind_survives_its_byte() {
        for byte in 0..=13 {
            assert_eq!(Kind::try_from(byte).unwrap() as u8, byte);
        }
        assert_eq!(Kind::try_from(15), Err(WireError::UnknownKind(15)));
    }

    #[test]
    fn malformed_frames_are_refused_by_name() {
        let good = frame(&ask());
        read(&good).unwrap();
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            read(&bad).unwrap_err()
        };
        assert_eq!(with(0, 0x98), WireError::Malformed("an array of nine elements is expected"));
        assert_eq!(with(1, 99), WireError::UnknownKind(99));
        assert_eq!(with(2, 4), WireError::Malformed("unknown flags are set"));
        assert_eq!(with(3, 17), WireError::Descriptors("a frame announces more than 16"));
        assert_eq!(with(12, 2), WireError::Malformed("the frame ends early"));
        assert_eq!(with(12, 0), WireError::Malformed("bytes follow the frame's array"));
        for cut in 0..good.len() {
            read(&good[..cut]).unwrap_err();
        }
    }

    #[test]
    fn chain_and_trace_are_limited() {
        let mut envelope = ask();
        envelope.origin = Origin::new(&[0; CHAIN], &[0; TRACE]);
        read(&frame(&envelope)).unwrap();
        envelope.origin = Origin::new(&[0; CHAIN + 1], &[]);
        read(&frame(&envelope)).unwrap_err();
        envelope.origin = Origin::new(&[], &[0; TRACE + 1]);
        read(&frame(&envelope)).unwrap_err();
    }
}
