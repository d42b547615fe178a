//! The socket between a worker and its parent: small frames that may carry descriptors, without any runtime.
//!
//! ```text
//! u32 length | [ kind, fds, body ]
//!              ▲ `fds` descriptors travel with the first byte of the prefix
//! ```
//!
//! A stream glues the bytes of several sends together, so where descriptors arrive does not say which frame owns
//! them. Every frame announces its number, received ones queue up, and each frame takes its own from the front.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::WireError;
use crate::limits::{HEAD, LINK_FRAME, MAX_FDS};
use crate::pack::{self, Reader};

/// Bytes asked for in one read.
const READ: usize = 16 * 1024;
/// No more is read while this much waits in the buffer; it holds at least one whole frame.
const BUFFERED: usize = 2 * (LINK_FRAME + 4);

/// One frame of a link. What its kinds mean is up to those who use the link.
#[derive(Debug)]
pub struct LinkFrame {
    /// What the frame is for.
    pub kind: u8,
    /// Its content, opaque here.
    pub body: Bytes,
    /// Descriptors that belong to it; at most [`MAX_FDS`]. Dropping the frame closes them.
    pub fds: Vec<OwnedFd>,
}

impl LinkFrame {
    /// A frame without descriptors.
    pub fn new(kind: u8, body: Bytes) -> Self {
        LinkFrame { kind, body, fds: Vec::new() }
    }
}

/// Whether the peer can still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The peer may send more.
    Open,
    /// The peer has closed its end; frames may be left in the buffer.
    Ended,
}

/// A stream socket for [`LinkFrame`]s, meant for a poll loop.
///
/// No method but the `_blocking` ones ever waits, whether or not the descriptor is in non-blocking mode. As with
/// [`Connection`](crate::Connection), the directions fail apart, and an error of reading is given again.
///
/// ```
/// use hatchery_wire::{LinkFrame, LinkSocket};
///
/// let (up, down) = LinkSocket::pair()?;
/// let (mut up, mut down) = (LinkSocket::new(up), LinkSocket::new(down));
/// up.queue(LinkFrame { kind: 1, body: "hello".into(), fds: vec![std::fs::File::open("/dev/null")?.into()] })?;
/// assert!(up.flush()?);
///
/// down.fill()?;
/// let frame = down.next_frame()?.ok_or("nothing came")?;
/// assert_eq!((frame.kind, &frame.body[..], frame.fds.len()), (1, &b"hello"[..], 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LinkSocket {
    fd: OwnedFd,
    out: VecDeque<Batch>,
    buf: BytesMut,
    fds: VecDeque<OwnedFd>,
    ended: bool,
    read_failed: Option<WireError>,
    write_failed: Option<WireError>,
}

/// Encoded frames, of which only the first may have descriptors: these go with the batch's first byte.
#[derive(Debug, Default)]
struct Batch {
    bytes: BytesMut,
    fds: Vec<OwnedFd>,
}

impl LinkSocket {
    /// A link over a connected stream socket.
    pub fn new(fd: OwnedFd) -> Self {
        LinkSocket {
            fd,
            out: VecDeque::new(),
            buf: BytesMut::new(),
            fds: VecDeque::new(),
            ended: false,
            read_failed: None,
            write_failed: None,
        }
    }

    /// Two connected ends, both close-on-exec.
    ///
    /// # Errors
    ///
    /// When the process or the system is out of descriptors.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
    }

    /// Queues a frame for the next flush, without any IO.
    ///
    /// # Errors
    ///
    /// [`WireError::Oversized`] over [`LINK_FRAME`], [`WireError::Descriptors`] over [`MAX_FDS`] (the link is fine,
    /// the frame's descriptors are closed), or the error of an earlier write.
    pub fn queue(&mut self, frame: LinkFrame) -> Result<(), WireError> {
        if let Some(error) = &self.write_failed {
            return Err(error.clone());
        }
        let LinkFrame { kind, body, fds } = frame;
        if fds.len() > MAX_FDS {
            return Err(WireError::Descriptors("a frame may carry 16 at most"));
        }
        if body.len() > LINK_FRAME - HEAD {
            return Err(WireError::Oversized { claimed: body.len() + HEAD, limit: LINK_FRAME });
        }
        let announced = fds.len() as u64;
        if !fds.is_empty() || self.out.is_empty() {
            self.out.push_back(Batch { bytes: BytesMut::new(), fds });
        }
        // A batch was pushed above unless there was one.
        let Some(Batch { bytes, .. }) = self.out.back_mut() else { return Ok(()) };
        let start = bytes.len();
        bytes.reserve(HEAD + body.len());
        bytes.put_slice(&[0, 0, 0, 0, pack::array::<3>()]);
        pack::put_uint(bytes, u64::from(kind));
        pack::put_uint(bytes, announced);
        pack::put_bin_head(bytes, body.len());
        bytes.put_slice(&body);
        let length = (bytes.len() - start - 4) as u32;
        bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// Whether frames or parts of them wait for a flush that can still succeed.
    pub fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Bytes that wait for a flush.
    pub fn queued_bytes(&self) -> usize {
        self.out.iter().map(|batch| batch.bytes.len()).sum()
    }

    /// Writes what the socket takes; `true` when nothing is left.
    ///
    /// # Errors
    ///
    /// [`WireError::Io`] when the peer is gone; given again by every later call.
    pub fn flush(&mut self) -> Result<bool, WireError> {
        if let Some(error) = &self.write_failed {
            return Err(error.clone());
        }
        while let Some(batch) = self.out.front_mut() {
            match batch.send(self.fd.as_fd()) {
                Ok(n) => {
                    // The kernel has taken its copies with the first byte; sending them again would double them.
                    batch.fds = Vec::new();
                    batch.bytes.advance(n);
                    if batch.bytes.is_empty() {
                        self.out.pop_front();
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => {
                    let error = WireError::from(error);
                    self.out.clear();
                    self.write_failed = Some(error.clone());
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// Reads what is there, up to about two frames: take the frames out, then wait for readiness again.
    ///
    /// # Errors
    ///
    /// [`WireError::Descriptors`] when descriptors were lost or belong to no frame, [`WireError::Io`] from the
    /// system. All descriptors received so far are closed then.
    pub fn fill(&mut self) -> Result<Filled, WireError> {
        if let Some(error) = &self.read_failed {
            return Err(error.clone());
        }
        while !self.ended && self.buf.len() < BUFFERED {
            match self.read() {
                Ok(Some(0)) => self.ended = true,
                // Even a short read may not be the last: it also ends behind descriptors.
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return Err(self.fail_reading(error)),
            }
        }
        Ok(if self.ended { Filled::Ended } else { Filled::Open })
    }

    /// The next whole frame of what was read; `None` when more must be read first.
    ///
    /// # Errors
    ///
    /// [`WireError::Truncated`] when the peer ended inside a frame, any other error for what a peer may not send.
    /// All descriptors received so far are closed then.
    pub fn next_frame(&mut self) -> Result<Option<LinkFrame>, WireError> {
        if let Some(error) = &self.read_failed {
            return Err(error.clone());
        }
        self.take_frame().map_err(|error| self.fail_reading(error))
    }

    /// Writes everything queued, waiting for room.
    ///
    /// # Errors
    ///
    /// [`WireError::TimedOut`] after `timeout` (the link is fine, the rest stays queued), else as
    /// [`flush`](LinkSocket::flush).
    pub fn flush_blocking(&mut self, timeout: Option<Duration>) -> Result<(), WireError> {
        let deadline = deadline_after(timeout);
        while !self.flush()? {
            self.wait(PollFlags::OUT, deadline)?;
        }
        Ok(())
    }

    /// The next frame, waiting for it; `None` when the peer has closed its end.
    ///
    /// # Errors
    ///
    /// [`WireError::TimedOut`] after `timeout` (the link is fine), else as [`fill`](LinkSocket::fill) and
    /// [`next_frame`](LinkSocket::next_frame).
    pub fn recv_blocking(&mut self, timeout: Option<Duration>) -> Result<Option<LinkFrame>, WireError> {
        let deadline = deadline_after(timeout);
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(Some(frame));
            }
            if self.ended {
                return Ok(None);
            }
            self.wait(PollFlags::IN, deadline)?;
            self.fill()?;
        }
    }

    /// One read; `None` when it would wait.
    fn read(&mut self) -> Result<Option<usize>, WireError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let len = self.buf.len();
        self.buf.resize(len + READ, 0);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut self.buf[len..])];
        let received = rustix::net::recvmsg(&self.fd, &mut parts, &mut control, flags);
        self.buf.truncate(len + received.as_ref().map_or(0, |received| received.bytes));

        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(None),
            // A peer that died with our bytes unread: an end like any other.
            Err(rustix::io::Errno::CONNRESET) => return Ok(Some(0)),
            Err(error) => return Err(error.into()),
        };
        let before = self.fds.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(WireError::Descriptors(
                "some were lost: either the peer sent more than 16 at once, or this process has no free \
                 descriptors left and its limit must be raised",
            ));
        }
        if self.fds.len() > before && self.fds.len() > announced(&self.buf)? {
            return Err(WireError::Descriptors("more arrived than the frames announce"));
        }
        Ok(Some(received.bytes))
    }

    fn take_frame(&mut self) -> Result<Option<LinkFrame>, WireError> {
        let Some(length) = prefix(&self.buf)? else {
            let inside = !self.buf.is_empty();
            return if self.ended && inside { Err(WireError::Truncated) } else { Ok(None) };
        };
        if self.buf.len() < 4 + length {
            return if self.ended { Err(WireError::Truncated) } else { Ok(None) };
        }
        let mut reader = Reader::new(&self.buf[4..4 + length]);
        let (kind, count) = read_head(&mut reader)?;
        let body = Bytes::copy_from_slice(reader.bin()?);
        reader.end()?;
        if count > self.fds.len() {
            return Err(WireError::Descriptors("fewer arrived than the frame announces"));
        }
        let fds = self.fds.drain(..count).collect();
        self.buf.advance(4 + length);
        if self.buf.is_empty() && !self.fds.is_empty() {
            return Err(WireError::Descriptors("some are left over after the last frame"));
        }
        Ok(Some(LinkFrame { kind, body, fds }))
    }

    fn fail_reading(&mut self, error: WireError) -> WireError {
        self.fds.clear();
        self.buf = BytesMut::new();
        self.read_failed = Some(error.clone());
        error
    }

    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> Result<(), WireError> {
        loop {
            let left = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    // Nanoseconds always fit; a time beyond the kernel's range is as good as none.
                    Some(left) => Timespec::try_from(left).ok(),
                    None => return Err(WireError::TimedOut),
                },
            };
            match rustix::event::poll(&mut [PollFd::new(&self.fd, what)], left.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for LinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Batch {
    fn send(&self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if self.fds.is_empty() {
            return rustix::net::send(socket, &self.bytes, flags);
        }
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // `queue` lets no more than MAX_FDS in, so they fit.
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(rustix::io::Errno::INVAL);
        }
        rustix::net::sendmsg(socket, &[IoSlice::new(&self.bytes)], &mut control, flags)
    }
}

/// The length of the first frame in `buf`, checked against the limit.
fn prefix(buf: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(prefix) = buf.first_chunk::<4>() else { return Ok(None) };
    let claimed = u32::from_be_bytes(*prefix) as usize;
    if claimed > LINK_FRAME {
        return Err(WireError::Oversized { claimed, limit: LINK_FRAME });
    }
    Ok(Some(claimed))
}

/// Kind and number of descriptors.
fn read_head(reader: &mut Reader<'_>) -> Result<(u8, usize), WireError> {
    if reader.byte()? != pack::array::<3>() {
        return Err(WireError::Malformed("an array of three elements is expected"));
    }
    let kind = u8::try_from(reader.uint()?).map_err(|_| WireError::Malformed("the kind is no byte"))?;
    let fds = reader.uint()?;
    if fds > MAX_FDS as u64 {
        return Err(WireError::Descriptors("a frame announces more than 16"));
    }
    Ok((kind, fds as usize))
}

/// How many descriptors the frames in `buf` can own: what they announce, and the most for a head not complete yet.
///
/// Without it a peer could pass any number of descriptors while one frame slowly arrives.
fn announced(buf: &[u8]) -> Result<usize, WireError> {
    let mut rest = buf;
    let mut total = 0;
    while !rest.is_empty() {
        let head = prefix(rest)?.map(|length| (length, &rest[4..rest.len().min(4 + length)]));
        let Some((length, frame)) = head else { return Ok(total + MAX_FDS) };
        let complete = frame.len() == length;
        match read_head(&mut Reader::new(frame)) {
            Ok((_, fds)) => total += fds,
            Err(WireError::Malformed(_)) if !complete => total += MAX_FDS,
            Err(error) => return Err(error),
        }
        rest = &rest[4 + frame.len()..];
    }
    Ok(total)
}

/// `None` for no timeout, or one too far away to be named.
fn deadline_after(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}
