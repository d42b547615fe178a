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

/// Bytes asked for in one read; most frames are far smaller, and a worker's first read pays for each fresh page.
const READ: usize = 4 * 1024;
/// No more is read while this much waits in the buffer; it holds at least one whole frame.
const BUFFERED: usize = 2 * (LINK_FRAME + 4);

/// One frame of a link. What its kinds mean is up to those who use the link.
#[derive(Debug)]
pub struct LinkFrame {
    /// What the frame is for.
    pub kind: u8,
    /// Its content, opaque here.
    pub body: Bytes,
    /// Descriptors that belong to it; at most [`MAX_FDS`]. Dropping the frame closes them. A frame that was received is
    /// without any if this process had not enough free ones left for them.
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
    /// How many frames are still to come whose descriptors found no room in this process.
    short: usize,
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
            short: 0,
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

    /// Reads what is there, up to about two frames, or to one with descriptors: take the frames out, then wait for
    /// readiness again.
    ///
    /// # Errors
    ///
    /// [`WireError::Descriptors`] when descriptors belong to no frame, [`WireError::Io`] from the
    /// system. All descriptors received so far are closed then.
    pub fn fill(&mut self) -> Result<Filled, WireError> {
        if let Some(error) = &self.read_failed {
            return Err(error.clone());
        }
        while !self.ended && self.buf.len() < BUFFERED && !self.has_descriptors_to_take() {
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

    /// Whether a whole frame is there, and descriptors are. No more are received then: a peer that sends many such
    /// frames would fill this process's table with them before the first is looked at.
    fn has_descriptors_to_take(&self) -> bool {
        let whole = |length| self.buf.len() >= 4 + length;
        (!self.fds.is_empty() || self.short > 0)
            && matches!(prefix(&self.buf), Ok(Some(length)) if whole(length))
    }

    /// One read; `None` when it would wait.
    fn read(&mut self) -> Result<Option<usize>, WireError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // What stays is as long as what came: a link is quiet most of its life, and there is one for every worker.
        let mut room = [0; READ];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut room)];
        let received = rustix::net::recvmsg(&self.fd, &mut parts, &mut control, flags);

        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(None),
            // A peer that died with our bytes unread: an end like any other.
            Err(rustix::io::Errno::CONNRESET) => return Ok(Some(0)),
            Err(error) => return Err(error.into()),
        };
        self.buf.extend_from_slice(&room[..received.bytes]);
        let before = self.fds.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        let came = self.fds.len() - before;
        if received.flags.contains(ReturnFlags::CTRUNC) {
            if came >= MAX_FDS {
                return Err(WireError::Descriptors("the peer sent more than 16 at once"));
            }
            // The kernel has closed those for which this process had no number left.
            self.short += 1;
        } else if came > 0 && self.short > 0 {
            // They belong to a later frame, but would be taken by the one that is short.
            self.short += 1;
        }
        if self.short > 0 {
            self.fds.truncate(before);
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
        if count > self.fds.len() && self.short > 0 {
            self.short -= 1;
            self.buf.advance(4 + length);
            return Ok(Some(LinkFrame { kind, body, fds: Vec::new() }));
        }
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::thread;

    use proptest::prelude::*;
    use rustix::fs::MemfdFlags;

    use super::*;

    fn pair() -> (LinkSocket, LinkSocket) {
        let (one, two) = LinkSocket::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&one, 1).unwrap();
        (LinkSocket::new(one), LinkSocket::new(two))
    }

    fn memfd() -> OwnedFd {
        rustix::fs::memfd_create("link", MemfdFlags::CLOEXEC).unwrap()
    }

    fn inode(fd: &OwnedFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    /// Descriptors of this process that are open on `inode`; other tests' descriptors have other inodes.
    fn open_copies(inode: u64) -> usize {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        let is_it = |path: std::path::PathBuf| {
            let link = std::fs::read_link(&path).unwrap_or_default();
            let memfd = link.to_string_lossy().starts_with("/memfd:link");
            memfd
                && std::fs::metadata(&path)
                    .is_ok_and(|meta| std::os::unix::fs::MetadataExt::ino(&meta) == inode)
        };
        entries.filter(|entry| is_it(entry.as_ref().unwrap().path())).count()
    }

    /// Sends raw bytes with descriptors, as a peer that keeps no rules.
    fn send_raw(socket: &LinkSocket, bytes: &[u8], fds: &[OwnedFd]) {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
        let sent =
            rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(sent, bytes.len());
    }

    fn encoded(kind: u8, fds: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, 0, 5 + body.len() as u8, 0x93, kind, fds, 0xc4, body.len() as u8];
        frame.extend_from_slice(body);
        frame
    }

    fn fail(link: &mut LinkSocket) -> WireError {
        loop {
            match link.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => {
                    if let Err(error) = link.fill() {
                        return error;
                    }
                }
                Err(error) => return error,
            }
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let (mut one, two) = pair();
        one.queue(LinkFrame::new(3, Bytes::from_static(b"hi"))).unwrap();
        assert!(one.wants_write());
        assert_eq!(one.flush(), Ok(true));
        assert!(!one.wants_write());
        let mut got = [0; 64];
        let (n, _) = rustix::net::recv(&two, &mut got, RecvFlags::empty()).unwrap();
        assert_eq!(&got[..n], encoded(3, 0, b"hi"));
    }

    #[test]
    fn descriptors_stay_with_their_frames_through_partial_writes() {
        let (mut one, mut two) = pair();
        let mut expected = Vec::new();
        for kind in 0..30u8 {
            let body = Bytes::from(vec![kind; usize::from(kind) * 2000]);
            let fds: Vec<OwnedFd> = (0..usize::from(kind) % (MAX_FDS + 1)).map(|_| memfd()).collect();
            expected.push((kind, body.clone(), fds.iter().map(inode).collect::<Vec<_>>()));
            one.queue(LinkFrame { kind, body, fds }).unwrap();
        }
        let mut got = Vec::new();
        let mut partial = 0;
        while got.len() < expected.len() {
            partial += usize::from(!one.flush().unwrap());
            assert_eq!(two.fill(), Ok(Filled::Open));
            while let Some(LinkFrame { kind, body, fds }) = two.next_frame().unwrap() {
                for fd in &fds {
                    let flags = rustix::io::fcntl_getfd(fd).unwrap();
                    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
                }
                got.push((kind, body, fds.iter().map(inode).collect::<Vec<_>>()));
            }
        }
        assert!(partial > 5, "the send buffer was too large to test anything");
        assert!(got == expected);
        for inode in expected.into_iter().flat_map(|(_, _, inodes)| inodes) {
            assert_eq!(open_copies(inode), 0);
        }
    }

    #[test]
    fn fewer_descriptors_than_announced_is_an_error_that_closes_them() {
        let (one, mut two) = pair();
        let fd = memfd();
        let inode = inode(&fd);
        send_raw(&one, &encoded(1, 2, b""), &[fd]);
        two.fill().unwrap();
        assert_eq!(open_copies(inode), 1);
        assert_eq!(fail(&mut two), WireError::Descriptors("fewer arrived than the frame announces"));
        assert_eq!(open_copies(inode), 0);
        assert!(two.fill().is_err() && two.next_frame().is_err(), "given again");
    }

    #[test]
    fn descriptors_nobody_announced_are_an_error_that_closes_them() {
        let (one, mut two) = pair();
        let fd = memfd();
        let inode = inode(&fd);
        send_raw(&one, &encoded(1, 0, b""), &[fd]);
        assert_eq!(fail(&mut two), WireError::Descriptors("more arrived than the frames announce"));
        assert_eq!(open_copies(inode), 0);
    }

    #[test]
    fn a_frame_that_arrives_slowly_cannot_hoard_descriptors() {
        let (one, mut two) = pair();
        let frame = encoded(1, 16, &[0; 100]);
        let sixteen = || (0..16).map(|_| memfd()).collect::<Vec<_>>();
        send_raw(&one, &frame[..1], &sixteen());
        two.fill().unwrap();
        assert_eq!(two.fds.len(), 16);
        send_raw(&one, &frame[1..2], &sixteen());
        assert_eq!(fail(&mut two), WireError::Descriptors("more arrived than the frames announce"));
        assert_eq!(two.fds.len(), 0);
    }

    #[test]
    fn descriptors_of_frames_that_wait_stay_in_the_socket() {
        let (one, two) = LinkSocket::pair().unwrap();
        let (mut one, mut two) = (LinkSocket::new(one), LinkSocket::new(two));
        for kind in 0..20 {
            let fds = (0..MAX_FDS).map(|_| memfd()).collect();
            one.queue(LinkFrame { kind, body: Bytes::new(), fds }).unwrap();
        }
        assert!(one.flush().unwrap(), "the send buffer was too small to test anything");
        let mut kinds = Vec::new();
        while kinds.len() < 20 {
            two.fill().unwrap();
            assert!(two.fds.len() <= 2 * MAX_FDS, "{} at once", two.fds.len());
            while let Some(frame) = two.next_frame().unwrap() {
                assert_eq!(frame.fds.len(), MAX_FDS);
                kinds.push(frame.kind);
            }
        }
        assert_eq!(kinds, (0..20).collect::<Vec<u8>>());
    }

    #[test]
    fn more_than_sixteen_at_once_is_an_error_that_closes_them() {
        for (count, named) in [(17, "more arrived than"), (40, "more than 16 at once")] {
            let (one, mut two) = pair();
            let fds: Vec<OwnedFd> = (0..count).map(|_| memfd()).collect();
            let inodes: Vec<u64> = fds.iter().map(inode).collect();
            send_raw(&one, &encoded(1, 16, b""), &fds);
            drop(fds);
            let error = fail(&mut two).to_string();
            assert!(error.contains(named), "{error}");
            assert!(inodes.into_iter().all(|inode| open_copies(inode) == 0));
        }

        let (mut one, _two) = pair();
        let fds = (0..17).map(|_| memfd()).collect();
        assert!(matches!(
            one.queue(LinkFrame { kind: 1, body: Bytes::new(), fds }),
            Err(WireError::Descriptors(_))
        ));
        assert!(!one.wants_write());
    }

    #[test]
    fn unsent_descriptors_are_closed_with_the_link() {
        let (mut one, two) = pair();
        let fd = memfd();
        let inode = inode(&fd);
        one.queue(LinkFrame { kind: 1, body: Bytes::new(), fds: vec![fd] }).unwrap();
        drop(two);
        let error = one.flush().unwrap_err();
        assert!(matches!(error, WireError::Io { kind: io::ErrorKind::BrokenPipe, .. }), "{error}");
        assert!(!one.wants_write());
        assert_eq!(open_copies(inode), 0);
    }

    #[test]
    fn oversized_frames_are_refused_on_both_sides() {
        let (mut one, mut two) = pair();
        let body = Bytes::from(vec![0; LINK_FRAME]);
        assert!(matches!(one.queue(LinkFrame::new(1, body)), Err(WireError::Oversized { .. })));
        send_raw(&one, &[0, 1, 0, 1], &[]);
        assert_eq!(fail(&mut two), WireError::Oversized { claimed: 65_537, limit: LINK_FRAME });
    }

    #[test]
    fn an_end_inside_a_frame_is_truncated_and_between_frames_clean() {
        let (one, mut two) = pair();
        send_raw(&one, &encoded(7, 0, b"x"), &[]);
        drop(one);
        assert_eq!(two.fill(), Ok(Filled::Ended));
        assert_eq!(two.next_frame().unwrap().unwrap().kind, 7);
        assert!(two.next_frame().unwrap().is_none());
        assert!(two.recv_blocking(None).unwrap().is_none());
        for cut in 1..10 {
            let (one, mut two) = pair();
            send_raw(&one, &encoded(7, 0, b"x")[..cut], &[]);
            drop(one);
            assert_eq!(fail(&mut two), WireError::Truncated);
        }
    }

    #[test]
    fn blocking_calls_wait_for_the_peer_or_the_time() {
        let (mut one, mut two) = pair();
        let soon = Some(Duration::from_millis(1));
        assert_eq!(two.recv_blocking(soon).unwrap_err(), WireError::TimedOut);
        for kind in 0..20 {
            one.queue(LinkFrame::new(kind, vec![kind; 60_000].into())).unwrap();
        }
        assert_eq!(one.flush_blocking(soon), Err(WireError::TimedOut));
        let reader = thread::spawn(move || {
            let mut kinds = Vec::new();
            while let Some(frame) = two.recv_blocking(None).unwrap() {
                kinds.push(frame.kind);
            }
            kinds
        });
        one.flush_blocking(None).unwrap();
        drop(one);
        assert_eq!(reader.join().unwrap(), (0..20).collect::<Vec<u8>>());
    }

    #[test]
    fn the_buffer_stays_bounded_when_frames_are_not_taken() {
        let (mut one, mut two) = pair();
        for _ in 0..20 {
            one.queue(LinkFrame::new(1, vec![0; 60_000].into())).unwrap();
        }
        for _ in 0..1000 {
            one.flush().unwrap();
            two.fill().unwrap();
        }
        assert!(two.buf.len() < BUFFERED + READ);
        assert!(one.wants_write());
        assert!(one.as_fd().as_raw_fd() >= 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 1..300), fds in 0usize..4) {
            let (one, mut two) = pair();
            let fds: Vec<OwnedFd> = (0..fds).map(|_| memfd()).collect();
            let inodes: Vec<u64> = fds.iter().map(inode).collect();
            send_raw(&one, &bytes, &fds);
            drop((one, fds));
            while let Ok(Some(_)) = two.recv_blocking(None) {}
            drop(two);
            for inode in inodes {
                prop_assert_eq!(open_copies(inode), 0);
            }
        }
    }
}
