//! Envelopes over one Unix socket, driven by a tokio runtime.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::assembler::Assembler;
use crate::chunks::Chunks;
use crate::descriptors::{Descriptors, MORE_CAME};
use crate::envelope::{Head, LONGEST_HEAD};
use crate::limits::MAX_FDS;
use crate::{Envelope, Limits, Outbox, WireError};

/// Bytes of the read buffer, which are also the most that one read takes of small messages.
const READ: usize = 64 * 1024;
/// Bytes of it until a read fills them. Most channels are quiet, there are two ends of each, and a page that was never
/// needed is a page less of every worker, and of its parent for every worker.
const FIRST_READ: usize = 8 * 1024;
/// The body of a frame longer than this is read to where it stays; shorter ones are copied out of the read buffer,
/// which must hold one of them.
const DIRECT_FROM: usize = 4 * 1024;
/// Frames are encoded up to about here before they are written.
const WRITE: usize = 64 * 1024;

/// A socket for messages between two processes.
///
/// One task owns it and drives both directions with [`poll_recv`](Connection::poll_recv) and
/// [`poll_flush`](Connection::poll_flush). All state lives in here, so every future of its methods may be dropped at
/// any point: nothing is lost, cut short or sent twice.
///
/// The descriptors of a message are sent with the first byte of its first frame. What arrives of descriptors and belongs
/// to no frame is closed, and is an error of the peer's.
///
/// The directions fail apart. After a failed write what the peer had sent can still be received; after a malformed
/// frame every receive gives the same error again.
///
/// ```
/// use hatchery_wire::{Connection, Envelope, Kind, Limits, encode};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (here, there) = std::os::unix::net::UnixStream::pair()?;
/// let (mut here, mut there) =
///     (Connection::new(here, Limits::default())?, Connection::new(there, Limits::default())?);
///
/// here.send(Envelope::new(Kind::Ask, 7, 1, encode("hello")?)).await?;
/// let ask = there.recv().await?.ok_or("closed")?;
/// assert_eq!(hatchery_wire::decode::<String>(&ask.body)?, "hello");
///
/// drop(here);
/// assert_eq!(there.recv().await?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    reader: FrameReader,
    ended: bool,
    read_failed: Option<WireError>,
    outbox: Outbox,
    out: Chunks,
    write_failed: Option<WireError>,
}

impl Connection {
    /// A connection over a connected stream, which is set to non-blocking; it belongs to the runtime it is made in.
    ///
    /// # Errors
    ///
    /// The runtime cannot watch the stream.
    ///
    /// # Panics
    ///
    /// Outside of a runtime with IO.
    pub fn new(stream: UnixStream, limits: Limits) -> io::Result<Self> {
        Ok(Connection {
            socket: Socket::new(stream)?,
            reader: FrameReader::new(limits),
            ended: false,
            read_failed: None,
            outbox: Outbox::new(limits),
            out: Chunks::default(),
            write_failed: None,
        })
    }

    /// Takes over frames that [`Envelope::encode_into`] has made, for the next flush; what they were in is empty then.
    /// They go out before everything that is queued and not yet encoded.
    ///
    /// # Errors
    ///
    /// The error of an earlier write.
    pub fn queue_encoded(&mut self, frames: &mut BytesMut) -> Result<(), WireError> {
        if let Some(error) = &self.write_failed {
            frames.clear();
            return Err(error.clone());
        }
        self.out.append(frames);
        Ok(())
    }

    /// Queues a message for the next flush, without any IO.
    ///
    /// # Errors
    ///
    /// [`WireError::MessageTooLarge`] or [`WireError::Malformed`] when this message is over a limit (the connection
    /// is fine), or the error of an earlier write.
    pub fn queue(&mut self, envelope: Envelope) -> Result<(), WireError> {
        match &self.write_failed {
            Some(error) => Err(error.clone()),
            None => self.outbox.push(envelope),
        }
    }

    /// Whether messages or bytes of them wait for a flush that can still succeed.
    pub fn has_queued(&self) -> bool {
        self.write_failed.is_none() && (!self.outbox.is_empty() || !self.out.is_empty())
    }

    /// Whether messages wait that are not encoded yet, which later ones to the same target must not overtake.
    pub fn is_crowded(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The next message; `None` when the peer has closed its end.
    ///
    /// Every whole frame of one read is given out before the next read. A peer that died while our bytes were on
    /// their way (connection reset) counts as closed.
    ///
    /// # Errors
    ///
    /// [`WireError::Truncated`] when the stream ends inside a message, any other error for what a peer may not send.
    /// The same error is given again by every later call.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Envelope>, WireError>> {
        loop {
            if let Some(next) = self.next_whole() {
                return Poll::Ready(next);
            }
            match ready!(self.socket.poll_read(cx, |fd| self.reader.read(fd))) {
                Ok(n) => self.ended = n == 0,
                Err(error) => self.read_error(error),
            }
        }
    }

    /// The next message of those that have arrived, without waiting for any; `None` when there is none.
    ///
    /// For the time after a peer's death, when whatever arrived completely still counts. Works outside of a runtime.
    ///
    /// # Errors
    ///
    /// As [`poll_recv`](Connection::poll_recv).
    pub fn drain(&mut self) -> Result<Option<Envelope>, WireError> {
        loop {
            if let Some(next) = self.next_whole() {
                return next;
            }
            // Asked directly: tokio would say "not ready" until its driver has run.
            match self.socket.watched().and_then(|fd| self.reader.read(fd.as_fd())) {
                Ok(read) => self.ended = read.bytes == 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => self.read_error(error),
            }
        }
    }

    /// Writes everything queued in as few writes as possible; ready when all of it is with the kernel.
    ///
    /// # Errors
    ///
    /// [`WireError::Io`] when the peer is gone; given again by every later call.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        if let Some(error) = &self.write_failed {
            return Poll::Ready(Err(error.clone()));
        }
        loop {
            if self.out.len() < WRITE && !self.outbox.is_empty() {
                self.outbox.fill(&mut self.out, WRITE);
            }
            if self.out.is_empty() {
                return Poll::Ready(self.socket.watch(false, cx).map_err(WireError::from));
            }
            match ready!(self.socket.poll_write(cx, |stream| write(stream, &self.out))) {
                Ok(n) => self.out.advance(n),
                Err(error) => {
                    self.out = Chunks::default();
                    let error = WireError::from(error);
                    self.write_failed = Some(error.clone());
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// The next message; see [`poll_recv`](Connection::poll_recv). Cancel safe.
    pub async fn recv(&mut self) -> Result<Option<Envelope>, WireError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Sends everything queued; see [`poll_flush`](Connection::poll_flush). Cancel safe: what is left goes with the
    /// next flush.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Queues a message and sends everything queued.
    ///
    /// Cancel safe in this sense: once polled the message is queued and goes with the next flush, whole and once,
    /// even if this future is dropped.
    pub async fn send(&mut self, envelope: Envelope) -> Result<(), WireError> {
        self.queue(envelope)?;
        self.flush().await
    }

    /// What can be said without reading: a message that is here already, a clean or unclean end, an old error.
    fn next_whole(&mut self) -> Option<Result<Option<Envelope>, WireError>> {
        if let Some(error) = &self.read_failed {
            return Some(Err(error.clone()));
        }
        let failed = match self.reader.next() {
            Ok(Some(envelope)) => return Some(Ok(Some(envelope))),
            Ok(None) if !self.ended => return None,
            Ok(None) if self.reader.is_between_messages() => return Some(Ok(None)),
            Ok(None) => WireError::Truncated,
            Err(error) => error,
        };
        self.fail_reading(failed.clone());
        Some(Err(failed))
    }

    fn read_error(&mut self, error: io::Error) {
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            // A peer that died with our bytes unread: an end like any other, the exit says the rest.
            io::ErrorKind::ConnectionReset => self.ended = true,
            _ => self.fail_reading(error.into()),
        }
    }

    /// Nothing more is read; the memory of unfinished messages is given back at once.
    fn fail_reading(&mut self, error: WireError) {
        self.read_failed = Some(error);
        self.reader = FrameReader::new(self.reader.limits);
    }
}

/// The stream, and what the runtime watches it for: always for something to read, for room to write only while there
/// is none. Watched for both, it would wake the runtime for every message that the peer takes out.
#[derive(Debug)]
struct Socket {
    /// `None` only after changing what it is watched for has failed.
    watched: Option<AsyncFd<UnixStream>>,
    for_room: bool,
}

impl Socket {
    fn new(stream: UnixStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket { watched: Some(watch(stream, Interest::READABLE)?), for_room: false })
    }

    fn watched(&self) -> io::Result<&AsyncFd<UnixStream>> {
        self.watched.as_ref().ok_or_else(|| io::Error::other("the runtime cannot watch the channel any more"))
    }

    /// Begins or ends to watch for room as well.
    fn watch(&mut self, for_room: bool, cx: &mut Context<'_>) -> io::Result<()> {
        if self.for_room == for_room {
            return Ok(());
        }
        let interest = if for_room { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let Some(watched) = self.watched.take() else { return self.watched().map(drop) };
        let watched = watch(watched.into_inner(), interest)?;
        self.for_room = for_room;
        // Whoever waits for something to read waited for it where it is no longer watched.
        if watched.poll_read_ready(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.watched = Some(watched);
        Ok(())
    }

    /// Reads once; `read` says how many bytes came, and whether there was room for more.
    fn poll_read(
        &self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<Read>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let watched = self.watched()?;
            let mut guard = ready!(watched.poll_read_ready(cx))?;
            match read(watched.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(Read { bytes, short }) => {
                    // All there was: the next read would say so, and cost a system call.
                    if short && bytes > 0 {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(bytes));
                }
            }
        }
    }

    /// Writes once, by `write`.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&UnixStream) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            // Taken before the write: room that is made after it failed is news that must not be cleared with the old.
            let room = if self.for_room { Some(ready!(self.watched()?.poll_write_ready(cx))?) } else { None };
            match write(self.watched()?.get_ref()) {
                Err(Errno::INTR) => {}
                Err(Errno::TOOMANYREFS) => return Poll::Ready(Err(io::Error::other(TOO_MANY_UNDER_WAY))),
                Err(Errno::AGAIN) => match room {
                    Some(mut room) => room.clear_ready(),
                    None => self.watch(true, cx)?,
                },
                sent => return Poll::Ready(Ok(sent?)),
            }
        }
    }
}

/// Writes once to a stream. A peer that is gone raises no SIGPIPE, whatever its disposition.
fn write(stream: &UnixStream, out: &Chunks) -> Result<usize, Errno> {
    let mut room = Chunks::room();
    let used = out.slices(&mut room);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    // One slice is the rule, and takes the shorter way through the kernel.
    match (&room[..used], out.descriptors()) {
        (all, Some(descriptors)) => send_with(stream.as_fd(), all, descriptors, flags),
        ([only], None) => rustix::net::send(stream, only, flags),
        (all, None) => rustix::net::sendmsg(stream, all, &mut SendAncillaryBuffer::default(), flags),
    }
}

#[expect(
    deprecated,
    reason = "what replaces it asks for a promise that the descriptor stays the same, which a UnixStream's always does"
)]
fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

const TOO_MANY_UNDER_WAY: &str = "more descriptors of this user are on their way, to processes that do not read, than \
                                  its limit of open files allows: raise that, or send fewer at a time";

/// Sends descriptors along with the first of these bytes.
fn send_with(
    stream: BorrowedFd<'_>,
    bytes: &[IoSlice<'_>],
    descriptors: &Descriptors,
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    let fds: Vec<BorrowedFd<'_>> = descriptors.borrowed().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // No value is encoded with more than MAX_FDS, so they fit.
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::INVAL);
    }
    rustix::net::sendmsg(stream, bytes, &mut control, flags)
}

/// What one read brought.
struct Read {
    bytes: usize,
    /// Less than there was room for, and so all there was.
    short: bool,
}

/// The read buffer, and the messages that its frames make.
#[derive(Debug)]
struct FrameReader {
    limits: Limits,
    /// `buf[start..end]` has been read and not yet taken apart; empty until the first read.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    assembler: Assembler,
    /// A message that was completed by what was read to where it stays.
    completed: Option<Envelope>,
}

impl FrameReader {
    fn new(limits: Limits) -> Self {
        let limits = limits.settled();
        let assembler = Assembler::new(limits);
        FrameReader { limits, buf: Vec::new(), start: 0, end: 0, assembler, completed: None }
    }

    /// The next message out of what has been read.
    fn next(&mut self) -> Result<Option<Envelope>, WireError> {
        loop {
            if self.completed.is_some() {
                return Ok(self.completed.take());
            }
            let read = &self.buf[self.start..self.end];
            if self.assembler.arriving() > 0 {
                if read.is_empty() {
                    return self.needs_more(0);
                }
                let room = self.assembler.room();
                let n = room.len().min(read.len());
                room[..n].copy_from_slice(&read[..n]);
                self.start += n;
                self.completed = self.assembler.arrived(n);
                continue;
            }
            let Some((prefix, rest)) = read.split_first_chunk::<4>() else {
                return self.needs_more(usize::from(!read.is_empty()));
            };
            let length = u32::from_be_bytes(*prefix) as usize;
            if length > self.limits.frame {
                return Err(WireError::Oversized { claimed: length, limit: self.limits.frame });
            }
            if length <= DIRECT_FROM {
                let Some(frame) = rest.get(..length) else { return self.needs_more(1) };
                self.start += 4 + length;
                if let Some(envelope) = self.assembler.push(frame)? {
                    return Ok(Some(envelope));
                }
            } else {
                if rest.len() < length.min(LONGEST_HEAD) {
                    return self.needs_more(1);
                }
                let (head, bytes) = Head::read(&rest[..rest.len().min(length)], length)?;
                let taken = self.assembler.begin(&head, &rest[bytes..rest.len().min(length)])?;
                self.start += 4 + bytes + taken;
            }
        }
    }

    /// Nothing whole is left. Whatever descriptors are, they are those of the frame whose beginning is here, if one is:
    /// so there are never more than came with two sends.
    fn needs_more(&self, begun: usize) -> Result<Option<Envelope>, WireError> {
        if self.assembler.arrivals.len() > begun { Err(MORE_CAME) } else { Ok(None) }
    }

    fn is_between_messages(&self) -> bool {
        self.start == self.end && self.assembler.is_idle() && self.completed.is_none()
    }

    /// Where the next bytes go. To be asked only when [`next`](FrameReader::next) has nothing more.
    fn room(&mut self) -> &mut [u8] {
        if self.assembler.arriving() > 0 {
            return self.assembler.room();
        }
        if self.buf.is_empty() {
            self.buf = vec![0; FIRST_READ];
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buf.len() {
            // The beginning of a frame, whose rest needs the room.
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buf[self.end..]
    }

    /// So many bytes have come into the room.
    fn arrived(&mut self, n: usize) {
        if self.assembler.arriving() > 0 {
            self.completed = self.assembler.arrived(n);
        } else {
            self.end += n;
            if self.end == self.buf.len() && self.buf.len() < READ {
                // There was more than it takes.
                self.buf.resize(READ, 0);
            }
        }
    }

    /// One read that never waits.
    fn read(&mut self, fd: BorrowedFd<'_>) -> io::Result<Read> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = self.room();
        let asked = room.len();
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(fd, &mut [IoSliceMut::new(room)], &mut control, flags)?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                fds.extend(some);
            }
        }
        let cut = received.flags.contains(ReturnFlags::CTRUNC);
        // A read also ends behind bytes that came with descriptors, whatever comes after them.
        let ended_by_descriptors = cut || !fds.is_empty();
        if ended_by_descriptors {
            self.assembler.arrivals.came(fds, cut);
        }
        self.arrived(received.bytes);
        Ok(Read { bytes: received.bytes, short: received.bytes < asked && !ended_by_descriptors })
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::Waker;

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;
    use tokio::task::yield_now;

    use super::*;
    use crate::limits::{CHAIN, MIN_FRAME};
    use crate::{Body, ByteString, Kind, Origin, decode, decode_byte_string, encode};

    const SMALL: Limits = Limits { frame: MIN_FRAME, message: 200_000, budget: 400_000 };

    fn message(id: u64, len: usize) -> Envelope {
        let mut body = (0..len).map(|i| (i as u64 ^ id) as u8).collect::<Vec<u8>>();
        // Every other one begins as a large byte string does.
        body.iter_mut().take(1).filter(|_| id % 2 == 0).for_each(|first| *first = 0xc6);
        Envelope::new(Kind::Ask, (id % 3) as u32, id, Body::from_bytes(body.into()))
    }

    fn written(messages: &[Envelope]) -> Vec<u8> {
        let mut outbox = Outbox::new(SMALL);
        messages.iter().for_each(|message| outbox.push(message.clone()).unwrap());
        let mut out = Chunks::default();
        outbox.fill(&mut out, usize::MAX);
        out.flat().to_vec()
    }

    /// Two ends of which the first has as little room to send as the kernel grants.
    fn pair() -> (Connection, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&here, 1).unwrap();
        (connect(here), there)
    }

    fn connect(stream: UnixStream) -> Connection {
        Connection::new(stream.into_std().unwrap(), SMALL).unwrap()
    }

    /// What the kernel says last is what counts, also if it says so while the write before fails.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn room_that_is_made_just_after_a_write_found_none_is_not_overlooked() {
        let (here, there) = UnixStream::pair().unwrap();
        let (here, there) = (here.into_std().unwrap(), there.into_std().unwrap());
        let mut socket = Socket::new(here).unwrap();
        let fill = |stream: &std::os::unix::net::UnixStream| -> Result<usize, Errno> {
            rustix::net::send(stream, &[0; 4096], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        };
        let drain = || while matches!(rustix::io::read(&there, &mut [0; 4096]), Ok(1..)) {};
        // As often as the runtime says that there is room, until it has said so for the last time.
        let (mut failed, mut sent) = (0, 0);
        let all = poll_fn(|cx| {
            while sent < 2_000 {
                ready!(socket.poll_write(cx, |stream| {
                    let outcome = fill(stream);
                    if outcome == Err(Errno::AGAIN) {
                        failed += 1;
                        drain();
                        seen_by_the_driver();
                    }
                    outcome
                }))
                .unwrap();
                sent += 1;
            }
            Poll::Ready(())
        });
        tokio::time::timeout(std::time::Duration::from_secs(30), all).await.expect("it goes on");
        assert!(failed > 1, "{failed}");
    }

    /// Returns when another thread has been told by the kernel of all that has happened before.
    fn seen_by_the_driver() {
        let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let (tells, told) = std::sync::mpsc::channel();
        tokio::spawn(async move {
            let there = UnixStream::from_std(there).unwrap();
            tells.send(()).unwrap();
            there.readable().await.unwrap();
            tells.send(()).unwrap();
        });
        told.recv().unwrap();
        std::io::Write::write_all(&mut here, b".").unwrap();
        told.recv().unwrap();
    }

    fn read_all(reader: &mut FrameReader, mut bytes: &[u8]) -> Result<Vec<Envelope>, WireError> {
        let mut got = Vec::new();
        loop {
            while let Some(envelope) = reader.next()? {
                got.push(envelope);
            }
            if bytes.is_empty() {
                return Ok(got);
            }
            let room = reader.room();
            let n = room.len().min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            reader.arrived(n);
            bytes = &bytes[n..];
        }
    }

    /// Polls a future once and drops it.
    fn poll_once<F: Future>(future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_stream_may_be_split_anywhere() {
        let sent = [message(1, 0), message(2, 10), message(3, 9000), message(4, 3)];
        let bytes = written(&sent);
        let whole = read_all(&mut FrameReader::new(SMALL), &bytes).unwrap();
        assert_eq!(whole.len(), sent.len());
        for at in 0..bytes.len() {
            let mut reader = FrameReader::new(SMALL);
            let mut got = read_all(&mut reader, &bytes[..at]).unwrap();
            got.extend(read_all(&mut reader, &bytes[at..]).unwrap());
            assert_eq!(got, whole, "split at {at}");
            assert!(reader.is_between_messages());
        }
        let mut reader = FrameReader::new(SMALL);
        let mut got = Vec::new();
        for byte in bytes {
            got.extend(read_all(&mut reader, &[byte]).unwrap());
        }
        assert_eq!(got, whole);
    }

    #[test]
    fn a_large_byte_string_that_has_arrived_is_not_moved_and_one_that_is_not_as_long_as_it_says_is_none() {
        // In one frame, and in several, also if its head comes with the first read and the rest byte by byte.
        for len in [100, 5_000, MIN_FRAME - 100, 3 * MIN_FRAME] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let body = encode(&ByteString::from(bytes.clone())).unwrap();
            let sent = Envelope::new(Kind::Reply, 1, 1, body.clone());
            for step in [1, 64, usize::MAX] {
                let mut reader = FrameReader::new(SMALL);
                let mut got = Vec::new();
                for part in written(std::slice::from_ref(&sent)).chunks(step.min(100_000)) {
                    got.extend(read_all(&mut reader, part).unwrap());
                }
                assert_eq!(got, std::slice::from_ref(&sent));
                let came = got.remove(0).body;
                assert_eq!(decode::<ByteString>(&came).unwrap().into_vec(), bytes, "by reference");
                let at = came.pieces().last().unwrap().as_ptr();
                let moved = decode_byte_string(came).unwrap();
                assert!(moved == bytes);
                assert!(len < MIN_FRAME / 2 || step == 1 || moved.as_ptr() == at, "{len} bytes were moved");
            }
        }
        for (said, is) in [(70_000_usize, 60_000), (60_000, 70_000)] {
            let mut wrong = vec![0xc6];
            wrong.extend_from_slice(&(said as u32).to_be_bytes());
            wrong.resize(5 + is, 7);
            let sent = Envelope::new(Kind::Reply, 1, 1, Body::from_bytes(wrong.into()));
            let got = read_all(&mut FrameReader::new(SMALL), &written(&[sent])).unwrap();
            let error = decode_byte_string(got[0].body.clone()).unwrap_err().to_string();
            let expected = if said > is { "the bytes end early" } else { "bytes follow the value" };
            assert_eq!(error, expected);
            assert!(decode::<ByteString>(&got[0].body).is_err());
        }
    }

    #[test]
    fn a_message_that_is_no_more_than_the_head_of_a_byte_string_arrives() {
        let mut sent = Envelope::new(Kind::Tell, 1, 1, Body::from_bytes(vec![0xc6, 0, 1, 0, 0].into()));
        sent.origin = Origin::new(&vec![b'x'; CHAIN], b"");
        let frame = written(std::slice::from_ref(&sent));
        assert!(frame.len() - 4 > DIRECT_FROM, "it is read to where it stays");
        assert_eq!(read_all(&mut FrameReader::new(SMALL), &frame), Ok(vec![sent]));
    }

    #[test]
    fn an_end_anywhere_inside_a_message_is_truncated() {
        let bytes = written(&[message(1, 9000)]);
        for at in 1..bytes.len() {
            let mut reader = FrameReader::new(SMALL);
            assert_eq!(read_all(&mut reader, &bytes[..at]), Ok(Vec::new()));
            assert!(!reader.is_between_messages(), "cut at {at}");
        }
    }

    #[test]
    fn an_oversized_claim_is_named_with_its_size() {
        let error = read_all(&mut FrameReader::new(SMALL), &[0xff; 20]).unwrap_err();
        assert_eq!(error, WireError::Oversized { claimed: 0xffff_ffff, limit: MIN_FRAME });
    }

    #[tokio::test]
    async fn dropping_recv_at_every_poll_loses_nothing() {
        let (mut here, there) = pair();
        let mut there = connect(there);
        let sent: Vec<_> = (0..40).map(|id| message(id, (id as usize * 997) % 30_000)).collect();
        let mut got = Vec::new();
        let sending = async {
            for message in &sent {
                here.send(message.clone()).await.unwrap();
            }
            drop(here);
        };
        let receiving = async {
            loop {
                match poll_once(there.recv()) {
                    None => yield_now().await,
                    Some(Ok(Some(message))) => got.push(message),
                    Some(end) => return assert_eq!(end, Ok(None)),
                }
            }
        };
        tokio::join!(sending, receiving);
        got.sort_by_key(|message| message.id);
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn dropping_send_at_every_poll_sends_everything_once() {
        let (mut here, there) = pair();
        let mut there = connect(there);
        let sent: Vec<_> = (0..40).map(|id| message(id, (id as usize * 997) % 30_000)).collect();
        let sending = async {
            for message in &sent {
                // Queued with the first poll; what it could not write goes with the flushes below.
                let _ = poll_once(here.send(message.clone()));
            }
            while here.has_queued() {
                match poll_once(here.flush()) {
                    None => yield_now().await,
                    Some(done) => done.unwrap(),
                }
            }
            drop(here);
        };
        let mut got = Vec::new();
        let receiving = async {
            while let Some(message) = there.recv().await.unwrap() {
                got.push(message);
            }
        };
        tokio::join!(sending, receiving);
        got.sort_by_key(|message| message.id);
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn everything_queued_goes_out_in_one_write() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut here = connect(here);
        for id in 0..50 {
            here.queue(message(id, 10)).unwrap();
        }
        here.flush().await.unwrap();
        assert!(!here.has_queued());
        there.readable().await.unwrap();
        let mut first_read = vec![0; 64 * 1024];
        let n = there.try_read(&mut first_read).unwrap();
        assert_eq!(read_all(&mut FrameReader::new(SMALL), &first_read[..n]).unwrap().len(), 50);
    }

    #[tokio::test]
    async fn end_of_file_is_clean_between_messages_and_truncated_inside() {
        let (mut here, mut there) = pair();
        there.write_all(&written(&[message(1, 10)])).await.unwrap();
        drop(there);
        assert_eq!(here.recv().await, Ok(Some(message(1, 10))));
        assert_eq!(here.recv().await, Ok(None));
        assert_eq!(here.recv().await, Ok(None));

        for cut in [3, 4, 5, 100] {
            let (mut here, mut there) = pair();
            there.write_all(&written(&[message(1, 10_000)])[..cut]).await.unwrap();
            drop(there);
            assert_eq!(here.recv().await, Err(WireError::Truncated));
            assert_eq!(here.recv().await, Err(WireError::Truncated), "given again");
        }
    }

    #[tokio::test]
    async fn a_failed_write_leaves_reading_alone() {
        let (mut here, mut there) = pair();
        there.write_all(&written(&[message(1, 10), message(2, 20)])).await.unwrap();
        drop(there);
        let error = here.send(message(9, 10)).await.unwrap_err();
        assert!(matches!(error, WireError::Io { kind: io::ErrorKind::BrokenPipe, .. }), "{error}");
        assert!(!here.has_queued());
        assert_eq!(here.queue(message(9, 10)), Err(error.clone()));
        assert_eq!(here.flush().await, Err(error));
        assert_eq!(here.recv().await, Ok(Some(message(1, 10))));
        assert_eq!(here.recv().await, Ok(Some(message(2, 20))));
        assert_eq!(here.recv().await, Ok(None));
    }

    #[tokio::test]
    async fn a_reset_by_a_dead_peer_is_an_end() {
        let (mut here, mut there) = pair();
        here.send(message(1, 10)).await.unwrap();
        there.write_all(&written(&[message(2, 10)])).await.unwrap();
        drop(there); // with our message unread, which resets
        assert_eq!(here.recv().await, Ok(Some(message(2, 10))));
        assert_eq!(here.recv().await, Ok(None));
    }

    #[test]
    fn drain_takes_what_arrived_and_never_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (mut here, there) = runtime.block_on(async { pair() });
        assert_eq!(here.drain(), Ok(None));
        let bytes = written(&[message(1, 10), message(2, 9000), message(3, 10)]);
        let (sent, held) = bytes.split_at(bytes.len() - 5);
        rustix::net::send(&there, sent, SendFlags::empty()).unwrap();
        let mut ids = Vec::new();
        while let Some(message) = here.drain().unwrap() {
            ids.push(message.id);
        }
        assert_eq!(ids.len(), 2);
        rustix::net::send(&there, held, SendFlags::empty()).unwrap();
        drop(there);
        assert!(here.drain().unwrap().is_some());
        assert_eq!(here.drain(), Ok(None));
    }

    #[test]
    fn the_read_buffer_grows_when_a_read_fills_it() {
        let mut reader = FrameReader::new(SMALL);
        for id in 0..1000 {
            read_all(&mut reader, &written(&[message(id, 100)])).unwrap();
        }
        assert_eq!(reader.buf.len(), FIRST_READ);
        let many: Vec<_> = (0..1000).map(|id| message(id, 100)).collect();
        assert_eq!(read_all(&mut reader, &written(&many)).unwrap(), many);
        assert_eq!(reader.buf.len(), READ);
    }

    #[tokio::test]
    async fn a_malformed_frame_ends_reading_for_good() {
        let (mut here, mut there) = pair();
        there.write_all(&written(&[message(1, 10)])).await.unwrap();
        there.write_all(&[0, 0, 0, 2, 0x99, 77]).await.unwrap();
        there.write_all(&written(&[message(2, 10)])).await.unwrap();
        assert_eq!(here.recv().await, Ok(Some(message(1, 10))));
        assert_eq!(here.recv().await, Err(WireError::UnknownKind(77)));
        assert_eq!(here.recv().await, Err(WireError::UnknownKind(77)));
        here.send(message(3, 10)).await.unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn arbitrary_streams_never_panic_or_hoard(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut reader = FrameReader::new(SMALL);
            let _ = read_all(&mut reader, &bytes);
            prop_assert!(reader.buf.len() <= READ);
            prop_assert!(reader.assembler.held() <= bytes.len() + MIN_FRAME);
        }

        #[test]
        fn damaged_streams_never_panic(
            lens in prop::collection::vec(0usize..20_000, 1..6),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            chunk in 1usize..5000,
        ) {
            let sent: Vec<_> = lens.iter().enumerate().map(|(id, len)| message(id as u64, *len)).collect();
            let mut bytes = written(&sent);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let mut reader = FrameReader::new(SMALL);
            for chunk in bytes.chunks(chunk) {
                if read_all(&mut reader, chunk).is_err() {
                    break;
                }
            }
        }

        #[test]
        fn any_split_of_any_messages_reads_the_same(
            lens in prop::collection::vec(0usize..30_000, 1..8),
            chunks in prop::collection::vec(1usize..10_000, 1..20),
        ) {
            let sent: Vec<_> = lens.iter().enumerate().map(|(id, len)| message(id as u64, *len)).collect();
            let bytes = written(&sent);
            let mut rest = &bytes[..];
            let mut reader = FrameReader::new(SMALL);
            let mut got = Vec::new();
            for chunk in chunks.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(rest.len().min(*chunk));
                got.extend(read_all(&mut reader, now).unwrap());
                rest = later;
            }
            got.sort_by_key(|message| message.id);
            prop_assert_eq!(got, sent);
            prop_assert!(reader.is_between_messages());
        }
    }
}
