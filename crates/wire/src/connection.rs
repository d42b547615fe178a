//! Envelopes over one Unix socket, driven by a tokio runtime.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio_util::codec::{Decoder, LengthDelimitedCodec};
use tokio_util::io::poll_read_buf;

use crate::{Assembler, Envelope, Limits, Outbox, WireError};

/// Room made in the read buffer when little is left.
const READ: usize = 64 * 1024;
/// Less room than this is not worth a system call.
const ROOM: usize = 4 * 1024;
/// Frames are encoded up to about here before they are written.
const WRITE: usize = 64 * 1024;
/// A write buffer that grew beyond this around a large frame is given back when it is empty.
const KEPT: usize = 128 * 1024;

/// A socket for messages between two processes.
///
/// One task owns it and drives both directions with [`poll_recv`](Connection::poll_recv) and
/// [`poll_flush`](Connection::poll_flush). All state lives in here, so every future of its methods may be dropped at
/// any point: nothing is lost, cut short or sent twice.
///
/// The directions fail apart. After a failed write what the peer had sent can still be received; after a malformed
/// frame every receive gives the same error again.
///
/// ```
/// use hatchery_wire::{Connection, Envelope, Kind, Limits, encode};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (here, there) = tokio::net::UnixStream::pair()?;
/// let (mut here, mut there) =
///     (Connection::new(here, Limits::default()), Connection::new(there, Limits::default()));
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
    stream: UnixStream,
    reader: FrameReader,
    ended: bool,
    read_failed: Option<WireError>,
    outbox: Outbox,
    write_buf: BytesMut,
    write_failed: Option<WireError>,
}

impl Connection {
    /// A connection over a connected stream; it must be used inside the runtime that the stream belongs to.
    pub fn new(stream: UnixStream, limits: Limits) -> Self {
        Connection {
            stream,
            reader: FrameReader::new(limits),
            ended: false,
            read_failed: None,
            outbox: Outbox::new(limits),
            write_buf: BytesMut::new(),
            write_failed: None,
        }
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

    /// Takes back a queued request of which no frame has been written; says whether it did.
    ///
    /// If not, the peer may have it: queue a [`Kind::Withdraw`](crate::Kind::Withdraw).
    pub fn withdraw(&mut self, target: u32, id: u64) -> bool {
        self.outbox.withdraw(target, id)
    }

    /// Takes all queued requests of which no frame has been written, in order per target.
    ///
    /// They were certainly not executed, so they may be sent again elsewhere. Everything else that was still queued
    /// is dropped; this is for a connection that is over.
    pub fn take_unsent(&mut self) -> Vec<Envelope> {
        self.outbox.take_unsent()
    }

    /// Whether messages or bytes of them wait for a flush that can still succeed.
    pub fn has_queued(&self) -> bool {
        self.write_failed.is_none() && (!self.outbox.is_empty() || !self.write_buf.is_empty())
    }

    /// Bytes that wait for a flush, frame heads of messages not yet encoded left out.
    pub fn queued_bytes(&self) -> usize {
        self.outbox.bytes() + self.write_buf.len()
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
            self.reader.make_room();
            match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.reader.buf)) {
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
            match self.reader.read_now(self.stream.as_fd()) {
                Ok(n) => self.ended = n == 0,
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
            if self.write_buf.is_empty() {
                if self.outbox.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                self.outbox.fill(&mut self.write_buf, WRITE);
            }
            match ready!(self.poll_write(cx)) {
                Ok(n) => self.write_buf.advance(n),
                Err(error) => {
                    self.write_buf = BytesMut::new();
                    let error = WireError::from(error);
                    self.write_failed = Some(error.clone());
                    return Poll::Ready(Err(error));
                }
            }
            if self.write_buf.is_empty() && self.write_buf.capacity() > KEPT {
                self.write_buf = BytesMut::new();
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

    /// Like the stream's own write, but a peer that is gone raises no SIGPIPE, whatever its disposition.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let wrote = self.stream.try_io(Interest::WRITABLE, || {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(rustix::net::send(&self.stream, &self.write_buf, flags)?)
            });
            match wrote {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                wrote => return Poll::Ready(wrote),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The read buffer, the codec that cuts frames from it, and the messages these make.
#[derive(Debug)]
struct FrameReader {
    limits: Limits,
    codec: LengthDelimitedCodec,
    /// The codec has taken a length prefix whose frame is not complete.
    inside_frame: bool,
    buf: BytesMut,
    assembler: Assembler,
}

impl FrameReader {
    fn new(limits: Limits) -> Self {
        let limits = limits.settled();
        FrameReader {
            limits,
            codec: LengthDelimitedCodec::builder().max_frame_length(limits.frame).new_codec(),
            inside_frame: false,
            buf: BytesMut::new(),
            assembler: Assembler::new(limits),
        }
    }

    /// The next message out of the buffer.
    fn next(&mut self) -> Result<Option<Envelope>, WireError> {
        loop {
            let had_prefix = self.inside_frame || self.buf.len() >= 4;
            let Ok(frame) = self.codec.decode(&mut self.buf) else {
                // The only refusal: a prefix over the limit, which is still in the buffer.
                let claimed = self.buf.first_chunk::<4>().map_or(0, |prefix| u32::from_be_bytes(*prefix));
                return Err(WireError::Oversized { claimed: claimed as usize, limit: self.limits.frame });
            };
            self.inside_frame = frame.is_none() && had_prefix;
            let Some(frame) = frame else { return Ok(None) };
            if let Some(envelope) = self.assembler.push(frame.freeze())? {
                return Ok(Some(envelope));
            }
        }
    }

    fn is_between_messages(&self) -> bool {
        !self.inside_frame && self.buf.is_empty() && self.assembler.is_idle()
    }

    fn make_room(&mut self) {
        let room = self.buf.capacity() - self.buf.len();
        // Inside a frame the codec has made room for exactly the rest of it; more would move what is here.
        if room < ROOM && !(self.inside_frame && room > 0) {
            self.buf.reserve(READ);
        }
    }

    /// One read that never waits.
    fn read_now(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let len = self.buf.len();
        self.buf.resize(len + READ, 0);
        let read = rustix::net::recv(fd, &mut self.buf[len..], RecvFlags::DONTWAIT);
        self.buf.truncate(len + read.as_ref().map_or(0, |(n, _)| *n));
        Ok(read?.0)
    }
}
