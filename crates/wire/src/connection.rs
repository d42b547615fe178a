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

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::Waker;

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::task::yield_now;

    use super::*;
    use crate::limits::MIN_FRAME;
    use crate::{Body, Kind};

    const SMALL: Limits = Limits { frame: MIN_FRAME, message: 200_000, budget: 400_000 };

    fn message(id: u64, len: usize) -> Envelope {
        let body = (0..len).map(|i| (i as u64 ^ id) as u8).collect::<Vec<u8>>();
        Envelope::new(Kind::Ask, (id % 3) as u32, id, Body::from_bytes(body.into()))
    }

    fn written(messages: &[Envelope]) -> Vec<u8> {
        let mut outbox = Outbox::new(SMALL);
        messages.iter().for_each(|message| outbox.push(message.clone()).unwrap());
        let mut out = BytesMut::new();
        outbox.fill(&mut out, usize::MAX);
        out.to_vec()
    }

    /// Two ends of which the first has as little room to send as the kernel grants.
    fn pair() -> (Connection, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&here, 1).unwrap();
        (Connection::new(here, SMALL), there)
    }

    fn read_all(reader: &mut FrameReader, bytes: &[u8]) -> Result<Vec<Envelope>, WireError> {
        reader.buf.extend_from_slice(bytes);
        let mut got = Vec::new();
        while let Some(envelope) = reader.next()? {
            got.push(envelope);
        }
        Ok(got)
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
        let mut there = Connection::new(there, SMALL);
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
        let mut there = Connection::new(there, SMALL);
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
            assert_eq!(here.queued_bytes(), 0);
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
        let mut here = Connection::new(here, SMALL);
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
        assert_eq!(error.io_kind(), Some(io::ErrorKind::BrokenPipe));
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
            prop_assert!(reader.buf.capacity() <= 2 * (bytes.len() + MIN_FRAME) + 64);
            prop_assert!(reader.assembler.held() <= bytes.len());
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
