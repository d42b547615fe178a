//! Descriptors over real sockets: each arrives once, with its message, and none is left open, whatever is sent.

use std::fs::File;
use std::future::Future;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use hatchery_wire::{
    Connection, Envelope, Fd, Kind, Limits, MAX_FDS, MIN_FRAME, UNFINISHED_FDS, WireError, decode_owned,
    encode,
};
use proptest::prelude::*;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};

const SMALL: Limits = Limits { frame: MIN_FRAME, message: 200_000, budget: 400_000 };

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    files: Vec<Fd<File>>,
}

impl Message {
    /// One with so many files, whose content says where they belong.
    fn new(mark: &str, id: u64, files: usize, len: usize) -> Message {
        let file = |n: usize| {
            let file = file(mark);
            file.write_all_at(content(id, n).as_bytes(), 0).unwrap();
            Fd::new(file)
        };
        Message { bytes: vec![id as u8; len], files: (0..files).map(file).collect() }
    }

    fn check(&self, id: u64, files: usize, len: usize) {
        assert!(self.bytes == vec![id as u8; len] && self.files.len() == files, "message {id}");
        for (n, file) in self.files.iter().enumerate() {
            let mut text = [0; 64];
            let read = file.read_at(&mut text, 0).unwrap();
            assert_eq!(std::str::from_utf8(&text[..read]), Ok(&*content(id, n)));
            assert!(rustix::io::fcntl_getfd(file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
}

fn content(id: u64, n: usize) -> String {
    format!("{n} of message {id}")
}

fn file(mark: &str) -> File {
    rustix::fs::memfd_create(mark, MemfdFlags::CLOEXEC).unwrap().into()
}

/// How many descriptors of files of this mark this process has open; other tests have others.
fn open(mark: &str) -> usize {
    let link = format!("/memfd:{mark} (deleted)");
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    entries.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == &*link)).count()
}

/// Runs on a runtime of its own, which a proptest has not.
fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
}

/// Polls a future once and drops it.
fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Sends bytes with descriptors at the first of them, as a peer that keeps no rules.
fn send_raw(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()));
}

/// A frame of these parts, which announces so many descriptors.
fn frame(kind: u8, flags: u8, fds: u8, target: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    let mut frame = vec![0x99, kind, flags, fds, 1, target, 0xc0, 0xc0, 0xc0, 0xc5, length[0], length[1]];
    frame.extend_from_slice(body);
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), &frame[..]].concat()
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

/// What becomes of a connection that is sent these bytes, each with so many descriptors at its first byte: how many
/// messages arrived, and how it ended.
fn fate(mark: &str, sends: &[(&[u8], usize)]) -> (usize, Option<WireError>) {
    on_a_runtime(async {
        let (here, there) = pair();
        let mut here = Connection::new(here, SMALL).unwrap();
        let mut arrived = 0;
        for (bytes, fds) in sends {
            let files: Vec<File> = (0..*fds).map(|_| file(mark)).collect();
            send_raw(&there, bytes, &files.iter().map(AsFd::as_fd).collect::<Vec<_>>());
            drop(files);
            loop {
                match here.drain() {
                    Ok(Some(_)) => arrived += 1,
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(open(mark), 0, "{error}");
                        return (arrived, Some(error));
                    }
                }
            }
            assert!(open(mark) <= UNFINISHED_FDS + 2 * (MAX_FDS + 1));
        }
        drop(there);
        let end = here.drain().err();
        drop(here);
        assert_eq!(open(mark), 0);
        (arrived, end)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Promise "descriptors": each arrives once, with its message, however writes and reads are cut.
    #[test]
    fn every_descriptor_arrives_once_with_its_message_and_none_is_left(
        sent in prop::collection::vec(
            (
                prop_oneof![3 => Just(0), 2 => 1..4_usize, 1 => 4..=MAX_FDS],
                prop_oneof![4 => 0..100_usize, 1 => 3_000..9_000_usize, 1 => 0..100_000_usize],
                0..4_u32,
                any::<bool>(),
            ),
            1..30,
        ),
        turns in prop::collection::vec(any::<bool>(), 1..50),
        room in prop_oneof![Just(1), Just(100_000)],
    ) {
        const MARK: &str = "arrives once";
        on_a_runtime(async {
            let (here, there) = pair();
            rustix::net::sockopt::set_socket_send_buffer_size(&here, room).unwrap();
            let (mut here, mut there) =
                (Connection::new(here, SMALL).unwrap(), Connection::new(there, SMALL).unwrap());
            let (mut got, mut left) = (0, sent.iter().enumerate());
            let mut turns = turns.into_iter().chain([true, false].into_iter().cycle());
            let mut encoded = BytesMut::new();
            while got < sent.len() {
                if turns.next() == Some(true) {
                    if let Some((id, (files, len, target, short))) = left.next() {
                        let body = encode(&Message::new(MARK, id as u64, *files, *len)).unwrap();
                        let envelope = Envelope::new(Kind::Tell, *target, id as u64, body);
                        if *short && envelope.is_small() && !here.is_crowded() {
                            envelope.encode_into(&mut encoded).unwrap();
                            here.queue_encoded(&mut encoded).unwrap();
                        } else {
                            here.queue(envelope).unwrap();
                        }
                    }
                    if let Some(flushed) = poll_once(here.flush()) {
                        flushed.unwrap();
                    }
                } else {
                    while let Some(envelope) = there.drain().unwrap() {
                        let (files, len, _, _) = sent[envelope.id as usize];
                        assert_eq!(envelope.body.descriptors(), files);
                        decode_owned::<Message>(envelope.body).unwrap().check(envelope.id, files, len);
                        got += 1;
                    }
                    tokio::task::yield_now().await;
                }
            }
            assert!(!here.has_queued());
            assert_eq!(open(MARK), 0);
        });
    }

    #[test]
    fn a_stream_may_be_cut_anywhere_but_where_descriptors_begin(
        sent in prop::collection::vec((0..4_usize, 0..9_000_usize), 1..12),
        cuts in prop::collection::vec(1..5_000_usize, 1..20),
    ) {
        const MARK: &str = "cut anywhere";
        on_a_runtime(async {
            let (here, there) = pair();
            let mut here = Connection::new(here, Limits::default()).unwrap();
            let (mut got, mut cuts) = (Vec::new(), cuts.into_iter().cycle());
            for (fds, len) in &sent {
                let files: Vec<File> = (0..*fds).map(|_| file(MARK)).collect();
                let mut fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
                let bytes = frame(2, 0, fds.len() as u8, 1, &vec![7; *len]);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                    send_raw(&there, now, &std::mem::take(&mut fds));
                    rest = later;
                    // Some of it is read at once, and the rest in one piece with what follows.
                    if now.len() % 2 == 0 {
                        got.extend(here.drain().unwrap());
                    }
                }
            }
            while let Some(envelope) = here.drain().unwrap() {
                got.push(envelope);
            }
            let got: Vec<_> = got.iter().map(|e| (e.body.descriptors(), e.body.len())).collect();
            assert_eq!(got, sent);
        });
        prop_assert_eq!(open(MARK), 0);
    }

    #[test]
    fn arbitrary_bytes_and_descriptors_never_panic_and_leave_none_open(
        sends in prop::collection::vec(
            (
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 1..50),
                    (0..12_u8, 0..4_u8, 0..20_u8, 0..3_u8, 0..3_000_usize)
                        .prop_map(|(kind, flags, fds, target, len)| frame(kind, flags, fds, target, &vec![0; len])),
                ],
                0..20_usize,
            ),
            1..20,
        ),
    ) {
        let sends: Vec<_> = sends.iter().map(|(bytes, fds)| (&bytes[..], *fds)).collect();
        fate("arbitrary", &sends);
    }
}

#[test]
fn descriptors_nobody_expects_end_the_peer_and_are_closed() {
    let tell = |fds: u8| frame(2, 0, fds, 1, &[0xc0]);
    let large = frame(2, 0, 0, 1, &[7; 6_000]);
    let (first, last) = large.split_at(5_500);
    let part = |fds: u8, target: u8| frame(2, 1, fds, target, &[7; 2_000]);
    let more = "more arrived than the frames announce";
    let fewer = "fewer arrived than the frame announces";
    for (what, sends, arrives, named) in [
        ("unannounced", vec![(&tell(0)[..], 1)], 1, more),
        ("too many", vec![(&tell(1)[..], 2)], 0, more),
        ("far too many", vec![(&tell(16)[..], 253)], 0, more),
        ("too few", vec![(&tell(2)[..], 1)], 0, fewer),
        ("none", vec![(&tell(2)[..], 0)], 0, fewer),
        ("behind their frame", vec![(&tell(1)[..], 0), (&tell(1)[..], 1)], 0, fewer),
        ("twice in one frame", vec![(&tell(1)[..3], 1), (&tell(1)[3..6], 1)], 0, more),
        ("on and on in one frame", vec![(&large[..1], 16), (&large[1..2], 16), (&large[2..3], 16)], 0, more),
        ("in the middle of a body", vec![(first, 0), (last, 1)], 1, more),
        ("with a frame that announces none", vec![(&large[..2], 1), (&large[2..], 0)], 1, more),
        ("over the limit", vec![(&tell(17)[..], 17)], 0, "a frame announces more than 16"),
        (
            "with a withdrawal",
            vec![(&frame(6, 0, 1, 1, &[])[..], 1)],
            0,
            "a frame announces some whose kind has none",
        ),
        (
            "with a fault",
            vec![(&frame(5, 0, 1, 1, &[0xc0])[..], 1)],
            0,
            "a frame announces some whose kind has none",
        ),
    ] {
        let (arrived, end) = fate(what, &sends);
        assert_eq!(arrived, arrives, "{what}");
        let end = end.expect(what).to_string();
        assert!(end.contains(named), "{what}: {end}");
    }
    let (_, end) = fate("with a continuation", &[(&part(1, 1), 1), (&part(1, 1), 1)]);
    assert_eq!(end, Some(WireError::Malformed("a continuation repeats what only a first frame carries")));
}

#[test]
fn unfinished_messages_hold_no_more_descriptors_than_the_limit() {
    let parts: Vec<_> = (1..=5).map(|target| frame(2, 1, 16, target, &[7; 2_000])).collect();
    let sends: Vec<_> = parts.iter().map(|part| (&part[..], 16)).collect();
    let (_, end) = fate("unfinished", &sends[..4]);
    assert_eq!(end, Some(WireError::Truncated));
    let (_, end) = fate("unfinished", &sends);
    assert_eq!(end, Some(WireError::Descriptors("unfinished messages have more than 64")));
}

#[test]
fn an_honest_sender_keeps_to_that_limit() {
    const MARK: &str = "honest";
    on_a_runtime(async {
        let (here, there) = pair();
        let (mut here, mut there) =
            (Connection::new(here, SMALL).unwrap(), Connection::new(there, SMALL).unwrap());
        for target in 0..10 {
            let body = encode(&Message::new(MARK, u64::from(target), MAX_FDS, 30_000)).unwrap();
            here.queue(Envelope::new(Kind::Ask, target, u64::from(target), body)).unwrap();
        }
        let sending = async { here.flush().await.unwrap() };
        let receiving = async {
            for _ in 0..10 {
                let ask = there.recv().await.unwrap().unwrap();
                decode_owned::<Message>(ask.body).unwrap().check(ask.id, MAX_FDS, 30_000);
            }
        };
        tokio::join!(sending, receiving);
    });
    assert_eq!(open(MARK), 0);
}

#[test]
fn what_is_not_sent_or_not_read_is_closed() {
    const MARK: &str = "not sent";
    on_a_runtime(async {
        let (here, there) = pair();
        let mut here = Connection::new(here, SMALL).unwrap();
        let ask = |id: u64, len: usize| {
            Envelope::new(Kind::Ask, 1, id, encode(&Message::new(MARK, id, 3, len)).unwrap())
        };
        let mut never = Connection::new(pair().0, SMALL).unwrap();
        never.queue(ask(1, 10)).unwrap();
        never.queue(ask(2, 50_000)).unwrap();
        assert_eq!(open(MARK), 6);
        drop(never);
        assert_eq!(open(MARK), 0);

        // With the kernel, and nobody reads it.
        here.send(ask(3, 10)).await.unwrap();
        assert_eq!(open(MARK), 0, "they are the socket's now");
        drop(there);
        here.queue(ask(4, 10)).unwrap();
        assert!(here.flush().await.is_err());
        assert_eq!(open(MARK), 0);
    });
}
