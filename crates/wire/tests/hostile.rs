//! What a hostile peer may try: claims that would allocate, nesting that would overflow a stack, descriptors that do
//! not fit the table. One binary, because the claims need an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::thread;

use bytes::Bytes;
use hatchery_wire::{
    Assembler, Body, Connection, DEPTH, Kind, Limits, LinkFrame, LinkSocket, WireError, decode, encode,
};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// Counts what each thread holds, so tests beside each other do not mix.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    HELD.set(HELD.get() + bytes);
    PEAK.set(PEAK.get().max(HELD.get()));
}

// SAFETY: every call goes to the system's allocator unchanged. Counting touches only const-initialised thread locals
// without destructors, which neither allocate nor unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the block came from `alloc` or `realloc` above, so from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as for `dealloc`; the caller promises a valid new size.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that this thread held at once during `f`, beyond what it held before.
fn peak_of<R>(f: impl FnOnce() -> R) -> (R, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    (result, (PEAK.get() - before) as usize)
}

const KIB: usize = 1024;

fn body(parts: &[&[u8]]) -> Body {
    Body::from_bytes(parts.concat().into())
}

/// One channel frame without its prefix.
fn frame(kind: u8, flags: u8, target: u32, tail: &[u8]) -> Bytes {
    let mut frame = vec![0x99, kind, flags, 0, 1, 0xce];
    frame.extend_from_slice(&target.to_be_bytes());
    frame.extend_from_slice(tail);
    frame.into()
}

/// `[deadline, chain, trace]` as nil and a body of `len` bytes.
fn plain_tail(len: usize) -> Vec<u8> {
    let mut tail = vec![0xc0, 0xc0, 0xc0, 0xc5];
    tail.extend_from_slice(&(len as u16).to_be_bytes());
    tail.resize(tail.len() + len, 7);
    tail
}

#[test]
fn heads_that_claim_four_gigabytes_allocate_nothing() {
    fn refused<T: DeserializeOwned>(bytes: &[u8]) {
        let body = body(&[bytes]);
        let (result, peak) = peak_of(|| decode::<T>(&body).map(drop));
        assert!(result.is_err());
        assert!(peak < 2 * KIB, "{peak} bytes for {bytes:x?}");
    }
    let array = [0xdd, 0xff, 0xff, 0xff, 0xff, 1];
    refused::<Vec<u8>>(&array);
    refused::<Vec<[u64; 16]>>(&array);
    refused::<Vec<String>>(&array);
    refused::<IgnoredAny>(&array);
    let map = [0xdf, 0xff, 0xff, 0xff, 0xff, 1, 1];
    refused::<HashMap<u32, u32>>(&map);
    refused::<BTreeMap<u32, u32>>(&map);
    refused::<Vec<(u32, u32)>>(&map);
    for head in [0xc6, 0xdb, 0xc9] {
        let bytes = [head, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        refused::<serde_bytes::ByteBuf>(&bytes);
        refused::<String>(&bytes);
        refused::<IgnoredAny>(&bytes);
        refused::<Vec<u8>>(&bytes);
    }
}

#[test]
fn nested_heads_that_claim_much_allocate_by_what_arrived() {
    // Each level alone would make serde reserve a mebibyte.
    type Five = Vec<Vec<Vec<Vec<Vec<u64>>>>>;
    let heads = [0xdd, 0xff, 0xff, 0xff, 0xff].repeat(5);
    let body = body(&[&heads, &[0; 1000]]);
    let (result, peak) = peak_of(|| decode::<Five>(&body).map(drop));
    assert!(result.is_err());
    assert!(peak < 64 * KIB, "{peak} bytes");
}

#[test]
fn honest_sequences_are_still_reserved_in_one_go() {
    let value: Vec<Vec<u64>> = vec![(0..1000).collect(); 20];
    let body = encode(&value).unwrap();
    let (got, peak) = peak_of(|| decode::<Vec<Vec<u64>>>(&body).unwrap());
    assert_eq!(got, value);
    let exact = 20 * (1000 * 8 + 24);
    assert!(peak < exact + 2 * KIB, "{peak} bytes instead of {exact}");
}

#[test]
fn lengths_inside_a_frame_that_claim_four_gigabytes_allocate_nothing() {
    let four = [0xc6, 0xff, 0xff, 0xff, 0xff];
    let tails = [
        [&[0xc0, 0xc0, 0xc0][..], &four].concat(),
        [&[0xc0, 0xc0][..], &four].concat(),
        [&[0xc0][..], &four].concat(),
    ];
    for tail in tails {
        let frame = frame(1, 0, 1, &tail);
        let (result, peak) = peak_of(|| Assembler::new(Limits::default()).push(frame).map(drop));
        assert!(matches!(result, Err(WireError::Malformed(_))));
        assert!(peak < KIB, "{peak} bytes");
    }
}

#[test]
fn a_flood_of_unfinished_messages_is_held_within_the_budget() {
    let limits = Limits { message: 1024 * KIB, budget: 2048 * KIB, ..Limits::default() };
    let tail = plain_tail(2000);
    let (sent, peak) = peak_of(|| {
        let mut assembler = Assembler::new(limits);
        (0u32..).find(|target| assembler.push(frame(1, 1, *target, &tail)).is_err())
    });
    assert!(sent.is_some_and(|sent| sent > 1000));
    assert!(peak < 2 * limits.budget, "{peak} bytes");
}

#[test]
fn unfinished_messages_of_nothing_are_refused() {
    let mut assembler = Assembler::new(Limits::default());
    let refused = assembler.push(frame(1, 1, 1, &plain_tail(0)));
    assert!(matches!(refused, Err(WireError::Malformed(_))));
    assembler.push(frame(1, 1, 1, &plain_tail(2000))).unwrap();
    assert!(assembler.push(frame(1, 1, 1, &plain_tail(0))).is_err());
}

#[test]
fn one_endless_message_stops_at_the_limit() {
    let limits = Limits { message: 1024 * KIB, budget: 8192 * KIB, ..Limits::default() };
    let part = frame(1, 1, 1, &plain_tail(32 * KIB));
    let (result, peak) = peak_of(|| {
        let mut assembler = Assembler::new(limits);
        (0..1000).find_map(|_| assembler.push(part.clone()).err())
    });
    assert!(matches!(result, Some(WireError::MessageTooLarge { .. })));
    assert!(peak < 3 * limits.message, "{peak} bytes");
}

#[test]
fn a_length_prefix_reserves_one_frame_at_most() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let limits = Limits::default();
    for (claim, expected) in [(u32::MAX, true), (limits.frame as u32, false)] {
        let (here, mut there) = std::os::unix::net::UnixStream::pair().unwrap();
        there.write_all(&claim.to_be_bytes()).unwrap();
        there.write_all(&[0x99]).unwrap();
        let mut here = runtime.block_on(async { Connection::new(here, limits).unwrap() });
        let (result, peak) = peak_of(|| here.drain());
        assert_eq!(matches!(result, Err(WireError::Oversized { claimed: 0xffff_ffff, .. })), expected);
        assert!(peak < limits.frame + 128 * KIB, "{peak} bytes");
    }
}

#[test]
fn a_link_never_buffers_by_claim() {
    let (one, two) = LinkSocket::pair().unwrap();
    std::fs::File::from(one).write_all(&[0, 1, 0, 0, 0x93, 1, 0, 0xc6, 0xff, 0xff, 0xff, 0xff]).unwrap();
    let mut link = LinkSocket::new(two);
    let (result, peak) = peak_of(|| {
        link.fill()?;
        link.next_frame()
    });
    assert_eq!(result.unwrap_err(), WireError::Truncated);
    assert!(peak < 64 * KIB, "{peak} bytes");
}

/// Runs `f` on a thread with a stack of 1 MiB; an overflow would kill the whole binary.
fn on_a_small_stack(f: impl FnOnce() + Send + 'static) {
    thread::Builder::new().stack_size(1024 * KIB).spawn(f).unwrap().join().unwrap();
}

macro_rules! nested_types {
    ($($item:item)*) => {$(
        #[derive(Debug, Serialize, Deserialize)]
        $item
    )*};
}

nested_types! {
    struct Maybe(Option<Box<Maybe>>);
    struct Newtype(Box<Newtype>);
    struct Tuple(Box<Tuple>, u8);
    struct Struct { next: Option<Box<Struct>> }
    struct Tree(Vec<Tree>);
    struct Table(BTreeMap<String, Table>);
    enum Variants { Leaf, Newtype(Box<Variants>), Tuple(Box<Variants>, u8), Struct { next: Box<Variants> } }
}

#[derive(Debug, Deserialize)]
struct Known {
    #[expect(dead_code, reason = "only the unknown field matters")]
    known: u8,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Tree(#[expect(dead_code, reason = "only how deep it nests matters")] Vec<Untagged>),
    Number(#[expect(dead_code, reason = "only how deep it nests matters")] u64),
}

#[test]
fn depth_bombs_are_refused_on_a_stack_of_one_mebibyte() {
    fn refused<T: DeserializeOwned + 'static>(bytes: Vec<u8>) {
        on_a_small_stack(move || {
            let error = decode::<T>(&Body::from_bytes(bytes.into())).map(drop).unwrap_err();
            assert_eq!(error.to_string(), "the value nests deeper than allowed");
        });
    }
    const LEVELS: usize = 100_000;

    // One byte, whose marker is looked at again and again.
    refused::<Maybe>(vec![1]);
    refused::<Newtype>(vec![1]);

    let arrays = [0x91].repeat(LEVELS);
    refused::<Tree>(arrays.clone());
    refused::<IgnoredAny>(arrays.clone());
    refused::<Vec<IgnoredAny>>(arrays.clone());
    refused::<Tuple>([0x92].repeat(LEVELS));
    refused::<Table>([0x81, 0xa1, b'k'].repeat(LEVELS));
    refused::<IgnoredAny>([0x81, 0xa1, b'k'].repeat(LEVELS));
    refused::<Struct>([&[0x81, 0xa4][..], b"next"].concat().repeat(LEVELS));
    refused::<Variants>([&[0x81, 0xa7][..], b"Newtype"].concat().repeat(LEVELS));
    refused::<Variants>([&[0x81, 0xa5][..], b"Tuple", &[0x92]].concat().repeat(LEVELS));
    refused::<Variants>([&[0x81, 0xa6][..], b"Struct", &[0x81, 0xa4], b"next"].concat().repeat(LEVELS));
    // In a field that the type does not know.
    refused::<Known>([&[0x82, 0xa7][..], b"unknown", &arrays].concat());
    refused::<Known>([&[0x82, 0xa7][..], b"unknown", &[0x81, 0xc0].repeat(LEVELS)].concat());
    // In serde's own buffer.
    refused::<Untagged>(arrays);
}

#[test]
fn honest_nesting_within_the_limit_decodes() {
    let mut tree = Tree(Vec::new());
    for _ in 1..DEPTH / 2 {
        tree = Tree(vec![tree]);
    }
    let bytes = encode(&tree).unwrap();
    on_a_small_stack(move || drop(decode::<Tree>(&bytes).unwrap()));
}

/// Set for the process that may ruin its own descriptor table.
const ALONE: &str = "HATCHERY_WIRE_TEST_ALONE";

#[test]
fn running_out_of_descriptors_costs_a_frame_its_own_and_nothing_else() {
    if std::env::var_os(ALONE).is_none() {
        let name = "running_out_of_descriptors_costs_a_frame_its_own_and_nothing_else";
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--test-threads=1"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
        return;
    }
    let (one, two) = LinkSocket::pair().unwrap();
    let (mut one, mut two) = (LinkSocket::new(one), LinkSocket::new(two));
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    for (kind, fds) in [(1, vec![null()]), (2, Vec::new()), (3, vec![null(), null()])] {
        one.queue(LinkFrame { kind, body: Bytes::new(), fds }).unwrap();
    }
    assert!(one.flush().unwrap());
    let mut taken: Vec<std::os::fd::OwnedFd> = Vec::new();
    let full = loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) if taken.len() < 1_000_000 => taken.push(file.into()),
            Ok(_) => break false,
            Err(_) => break true,
        }
    };
    assert!(full, "the limit is too high to be reached");
    let mut next = || {
        two.fill().unwrap();
        two.next_frame().unwrap().map(|frame| (frame.kind, frame.fds.len()))
    };
    assert_eq!(next(), Some((1, 0)), "its descriptor found no room");
    drop(taken);
    assert_eq!((next(), next(), next()), (Some((2, 0)), Some((3, 2)), None));
}

#[test]
fn unknown_kinds_are_named() {
    let refused = Assembler::new(Limits::default()).push(frame(100, 0, 1, &plain_tail(0)));
    assert_eq!(refused, Err(WireError::UnknownKind(100)));
    assert_eq!(Kind::try_from(9), Ok(Kind::End));
}
