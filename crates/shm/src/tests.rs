//! The ledger in real memory, mapped twice as two processes do: what is refused, what fits, and what a worker that
//! writes anything at all can do to its pool.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::map::{self, Map};
use crate::{Bell, Cursor, Lane, Ledger, LedgerError, MemoryError, NotKept, Shape, ShapeError, Wake};

fn pair(lanes: u32, ring: u32) -> (Ledger, Vec<Lane>) {
    let ledger = Ledger::create(Shape::new(lanes, ring).unwrap()).unwrap();
    let lanes = Lane::open(ledger.share().unwrap(), ledger.shape()).unwrap();
    (ledger, lanes)
}

fn drained(ledger: &mut Ledger) -> Vec<(u32, u8, Vec<u8>)> {
    let mut all = Vec::new();
    let count = ledger.drain(|record| all.push((record.task, record.kind, record.bytes.to_vec()))).unwrap();
    assert_eq!(count, all.len());
    all
}

#[test]
fn a_shape_is_within_its_limits_and_travels_as_two_numbers() {
    assert_eq!(Shape::new(0, 16), Err(ShapeError::Lanes { asked: 0, limit: 1024 }));
    assert_eq!(Shape::new(1025, 16), Err(ShapeError::Lanes { asked: 1025, limit: 1024 }));
    assert_eq!(Shape::new(1, (1 << 20) + 1), Err(ShapeError::Ring { asked: (1 << 20) + 1, limit: 1 << 20 }));
    let shape = Shape::new(3, 1000).unwrap();
    assert_eq!((shape.ring(), shape.size()), (1024, 3 * (256 + 1024)));
    assert_eq!((Shape::new(1, 0).unwrap().ring(), Shape::new(1, u32::MAX).is_err()), (16, true));
    assert_eq!(<(u32, u32)>::from(shape), (3, 1024));
    assert_eq!(Shape::try_from((3, 1024)), Ok(shape));
    assert!(Shape::try_from((u32::MAX, u32::MAX)).is_err());
}

#[test]
fn a_descriptor_of_anything_else_is_refused() {
    let shape = Shape::new(1, 4096).unwrap();
    let refused = |fd: OwnedFd| Lane::open(fd, shape).map(|lanes| lanes.len()).unwrap_err();
    let memory = |seals: SealFlags, size: usize| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("other", flags).unwrap();
        rustix::fs::ftruncate(&fd, size as u64).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    };
    assert_eq!(refused(File::open("/dev/null").unwrap().into()), MemoryError::NotMemory);
    assert_eq!(refused(File::open("/proc/self/exe").unwrap().into()), MemoryError::NotMemory);
    assert_eq!(refused(UnixStream::pair().unwrap().0.into()), MemoryError::NotMemory);
    let (all, size) = (SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL, shape.size());
    for lacks in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
        assert_eq!(refused(memory(all - lacks, size)), MemoryError::Unsealed, "without {lacks:?}");
    }
    assert_eq!(refused(memory(all | SealFlags::WRITE, size)), MemoryError::Unsealed);
    for is in [size - 1, size + 1, 0] {
        assert_eq!(refused(memory(all, is)), MemoryError::Size { said: size as u64, is: is as u64 });
    }
    assert!(Lane::open(memory(all, size), shape).is_ok());
}

#[test]
fn nobody_can_change_the_size_of_the_memory_or_seal_it() {
    let (ledger, _lanes) = pair(1, 4096);
    let fd = ledger.share().unwrap();
    assert!(rustix::fs::ftruncate(&fd, 0).is_err());
    assert!(rustix::fs::ftruncate(&fd, 1 << 20).is_err());
    assert!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).is_err());
}

#[test]
fn memory_over_the_limit_for_files_is_an_error_and_no_signal() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Fsize);
    // Nothing else in this process comes near it.
    setrlimit(Resource::Fsize, Rlimit { current: Some(1 << 29), maximum: before.maximum }).unwrap();
    let shape = Shape::new(Shape::MAX_LANES, Shape::MAX_RING).unwrap();
    let error = Ledger::create(shape).map(drop).unwrap_err();
    setrlimit(Resource::Fsize, before).unwrap();
    assert_eq!(error, MemoryError::FileLimit { size: shape.size() as u64, limit: 1 << 29 });
}

#[test]
fn the_memory_is_freed_with_its_last_user() {
    let (ledger, mut lanes) = pair(2, 4096);
    let inode = rustix::fs::fstat(ledger.share().unwrap()).unwrap().st_ino;
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let same = |line: &&str| line.split_whitespace().nth(4) == Some(&inode.to_string());
        maps.lines().filter(same).count()
    };
    assert_eq!(mapped(), 2);
    drop(ledger);
    lanes.pop();
    assert_eq!(mapped(), 1, "a lane is left");
    lanes[0].begin(1).unwrap();
    drop(lanes);
    assert_eq!(mapped(), 0);
}

#[test]
fn results_of_all_lengths_come_out_as_they_went_in() {
    let (mut ledger, mut lanes) = pair(1, 64);
    let lane = &mut lanes[0];
    for round in 0..100_u32 {
        for length in 0..=56 {
            let result: Vec<u8> = (0..length).map(|at| at as u8 ^ round as u8).collect();
            lane.begin(round).unwrap();
            let _ = lane.finish(round as u8, &result, None).unwrap();
            assert_eq!(drained(&mut ledger), [(round, round as u8, result)]);
        }
    }
    lane.begin(1).unwrap();
    assert_eq!(lane.finish(0, &[0; 57], None), Err(NotKept::Full), "57 bytes never fit");
    assert_eq!(lane.running(), Some(1), "it still counts as running");
    assert_eq!(lane.finish_elsewhere(Some(2)), Ok(Bell::Quiet));
    assert_eq!(ledger.cursor(0), Cursor { running: Some(2), closed: false });
    assert_eq!(drained(&mut ledger), []);
}

#[test]
fn a_full_ring_takes_more_once_it_has_been_read() {
    let (mut ledger, mut lanes) = pair(1, 64);
    lanes[0].begin(0).unwrap();
    for task in 0..4 {
        assert_eq!(lanes[0].finish(0, &[task; 8], Some(u32::from(task) + 1)), Ok(Bell::Quiet));
    }
    assert_eq!(lanes[0].finish(0, &[], None), Err(NotKept::Full));
    assert_eq!(drained(&mut ledger).len(), 4);
    assert_eq!(lanes[0].finish(0, &[], None), Ok(Bell::Quiet));
    assert_eq!(drained(&mut ledger), [(4, 0, vec![])]);
}

#[test]
fn a_pool_that_sleeps_is_woken_once_and_when_it_wants_to_be() {
    let (mut ledger, mut lanes) = pair(1, 128);
    let lane = &mut lanes[0];
    lane.begin(1).unwrap();
    assert!(ledger.arm(Wake::Each));
    assert_eq!(lane.finish(0, &[], Some(2)), Ok(Bell::Ring));
    assert_eq!(lane.finish(0, &[], Some(3)), Ok(Bell::Quiet), "it has been told");
    assert!(!ledger.arm(Wake::Each), "something has come");
    assert_eq!(drained(&mut ledger).len(), 2);
    assert!(ledger.arm(Wake::Idle));
    assert_eq!(lane.finish(0, &[], Some(4)), Ok(Bell::Quiet));
    assert_eq!(lane.finish(0, &[], None), Ok(Bell::Ring), "nothing more to do");
    assert_eq!(drained(&mut ledger).len(), 2);
    assert!(ledger.arm(Wake::Idle));
    lane.begin(5).unwrap();
    assert_eq!(lane.finish(0, &[0; 56], Some(6)), Ok(Bell::Quiet), "half full and not more");
    assert_eq!(lane.finish(0, &[], Some(7)), Ok(Bell::Ring));
}

#[test]
fn a_closed_lane_begins_and_finishes_nothing() {
    let (mut ledger, mut lanes) = pair(2, 64);
    assert_eq!(ledger.close_running(0, 7), Ok(false), "it is idle");
    lanes[0].begin(7).unwrap();
    assert_eq!((ledger.close_running(1, 7), ledger.close_running(0, 8)), (Ok(false), Ok(false)));
    assert_eq!(ledger.close_running(0, 7), Ok(true));
    assert_eq!(ledger.close_running(0, 7), Ok(false), "only once");
    assert_eq!(lanes[0].finish(0, b"late", None), Err(NotKept::Closed(crate::Closed)));
    assert!(lanes[0].finish_elsewhere(None).is_err());
    assert_eq!(ledger.cursor(0), Cursor { running: Some(7), closed: true });

    lanes[1].begin(10).unwrap();
    let _ = lanes[1].finish(1, b"in time", Some(11)).unwrap();
    assert_eq!(ledger.close_running(1, 10), Ok(false), "too late");
    assert_eq!(ledger.cursor(1), Cursor { running: Some(11), closed: false });
    assert_eq!(drained(&mut ledger), [(10, 1, b"in time".to_vec())]);
}

#[test]
fn a_lane_that_its_worker_calls_closed_is_none_and_can_be_closed() {
    let (mut ledger, mut lanes) = pair(1, 64);
    let memory = Map::new(&ledger.share().unwrap(), ledger.shape().words()).unwrap();
    lanes[0].begin(7).unwrap();
    memory.words()[0].fetch_or(crate::cursor::CLOSE, Relaxed);
    assert!(!ledger.cursor(0).closed);
    assert_eq!((ledger.close_running(0, 7), ledger.close_running(0, 7)), (Ok(true), Ok(false)));
}

#[test]
#[should_panic(expected = "a task runs in this lane")]
fn to_begin_twice_is_the_callers_mistake() {
    let (_ledger, mut lanes) = pair(1, 64);
    lanes[0].begin(1).unwrap();
    let _ = lanes[0].begin(2);
}

#[test]
fn two_threads_lose_and_double_nothing() {
    const TASKS: u32 = 100_000;
    let (mut ledger, mut lanes) = pair(1, 256);
    let mut lane = lanes.pop().unwrap();
    let worker = std::thread::spawn(move || {
        let mut elsewhere = Vec::new();
        lane.begin(0).unwrap();
        for task in 0..TASKS {
            let next = (task + 1 < TASKS).then_some(task + 1);
            let result = task.to_le_bytes().repeat(task as usize % 9);
            if lane.finish(task as u8, &result, next) == Err(NotKept::Full) {
                elsewhere.push(task);
                let _ = lane.finish_elsewhere(next).unwrap();
            }
        }
        elsewhere
    });
    let mut seen = Vec::new();
    while !worker.is_finished() {
        ledger.drain(|record| take(&mut seen, record)).unwrap();
        std::thread::yield_now();
    }
    fn take(seen: &mut Vec<u32>, record: crate::Record<'_>) {
        let expected = record.task.to_le_bytes().repeat(record.task as usize % 9);
        assert_eq!((record.kind, record.bytes), (record.task as u8, &expected[..]));
        seen.push(record.task);
    }
    ledger.drain(|record| take(&mut seen, record)).unwrap();
    assert!(seen.is_sorted(), "in order");
    seen.extend(worker.join().unwrap());
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..TASKS), "each once");
}

/// What a worker and its pool do, one after the other.
#[derive(Clone, Debug)]
enum Step {
    Begin,
    Finish(usize, bool),
    Drain,
    Arm(bool),
    Hold,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Begin),
        8 => (0..80_usize, any::<bool>()).prop_map(|(length, next)| Step::Finish(length, next)),
        3 => Just(Step::Drain),
        2 => any::<bool>().prop_map(Step::Arm),
        1 => Just(Step::Hold),
        1 => Just(Step::Close),
    ]
}

proptest! {
    /// The ledger against a queue and two numbers.
    #[test]
    fn it_does_what_a_queue_would(steps in vec(step(), 0..200), ring in 0..7_u32) {
        let (mut ledger, mut lanes) = pair(1, 16 << ring);
        let (lane, room) = (&mut lanes[0], 2_usize << ring);
        let (mut queue, mut used) = (VecDeque::new(), 0);
        let (mut running, mut next, mut closed, mut armed, mut held) = (None, 0_u32, false, None, None);
        for step in steps {
            match step {
                Step::Begin if running.is_none() => {
                    next += 1;
                    prop_assert_eq!(lane.begin(next).is_err(), closed);
                    running = (!closed).then_some(next);
                }
                Step::Finish(length, asked) if running.is_some() => {
                    let more = asked && held.is_none();
                    let (task, result) = (running.unwrap(), vec![next as u8; length]);
                    let then = asked.then_some(next + 1);
                    let words = 1 + length.div_ceil(8);
                    let expected = if used + words > room {
                        Err(NotKept::Full)
                    } else if closed {
                        Err(NotKept::Closed(crate::Closed))
                    } else {
                        queue.push_back((task, length as u8, result.clone()));
                        used += words;
                        next += u32::from(more);
                        running = more.then_some(next);
                        let rings = match armed {
                            Some(Wake::Each) => true,
                            Some(Wake::Idle) => !more || used > room / 2,
                            None => false,
                        };
                        armed = armed.filter(|_| !rings);
                        Ok(if rings { Bell::Ring } else { Bell::Quiet })
                    };
                    let finished = expected.is_ok();
                    prop_assert_eq!(lane.finish(length as u8, &result, then), expected);
                    let was_held = finished && held.take().is_some();
                    prop_assert_eq!((lane.is_held(), lane.take_held()), (was_held, was_held));
                }
                Step::Drain => {
                    prop_assert_eq!(drained(&mut ledger), queue.drain(..).collect::<Vec<_>>());
                    used = 0;
                }
                Step::Arm(each) => {
                    let wake = if each { Wake::Each } else { Wake::Idle };
                    prop_assert_eq!(ledger.arm(wake), queue.is_empty());
                    if queue.is_empty() && armed != Some(Wake::Each) {
                        armed = Some(wake);
                    }
                }
                Step::Hold => {
                    let task = running.unwrap_or(next);
                    let holds = running.is_some() && held.is_none() && !closed;
                    prop_assert_eq!(ledger.hold(0, task), Ok(holds));
                    prop_assert_eq!(ledger.hold(0, task + 1), Ok(false));
                    held = held.or(running.filter(|_| holds));
                }
                Step::Close => {
                    let closes = running.is_some() && !closed;
                    prop_assert_eq!(ledger.close_running(0, running.unwrap_or(next)), Ok(closes));
                    closed |= closes;
                }
                _ => {}
            }
            prop_assert_eq!(ledger.cursor(0), Cursor { running, closed });
        }
    }

    /// Whatever is in the memory, the pool gets results or an error, and no result is larger than a ring.
    #[test]
    fn a_worker_that_writes_anything_harms_nobody(
        writes in vec(vec((0..200_usize, hostile()), 0..20), 1..20),
        tasks in vec(0..5_u32, 20),
    ) {
        let mut ledger = Ledger::create(Shape::new(2, 128).unwrap()).unwrap();
        let memory = Map::new(&ledger.share().unwrap(), ledger.shape().words()).unwrap();
        let (mut wrong, mut ever) = (None, false);
        for (batch, task) in writes.into_iter().zip(tasks) {
            for (at, value) in batch {
                let words = memory.words();
                words[at % words.len()].store(value, Relaxed);
            }
            let mut largest = 0;
            let drained = ledger.drain(|record| largest = largest.max(record.bytes.len()));
            prop_assert!(largest <= ledger.shape().ring() as usize - 8);
            if let Some(wrong) = wrong {
                prop_assert!(drained.is_err(), "after {wrong}");
            }
            wrong = drained.err().or(wrong);
            let _ = (ledger.cursor(0), ledger.arm(Wake::Each), ledger.arm(Wake::Idle));
            let closed = ledger.close_running(1, task) == Ok(true);
            prop_assert!(!closed || ledger.close_running(1, task) != Ok(true), "only once");
            ever |= closed;
            prop_assert_eq!(ledger.cursor(1).closed, ever, "whatever the memory says");
        }
    }

    /// The same for the worker, whose pool has no reason to, and for the numbers that it counts by.
    #[test]
    fn a_lane_in_any_memory_works_or_says_that_it_is_closed(
        words in vec(hostile(), 48), results in vec((any::<bool>(), 0..200_usize), 0..20),
    ) {
        let shape = Shape::new(1, 128).unwrap();
        let fd = map::create(shape.size()).unwrap();
        let memory = Map::new(&fd, shape.words()).unwrap();
        for (at, value) in words.into_iter().enumerate() {
            memory.words()[at].store(value, Relaxed);
        }
        let mut lane = Lane::open(fd, shape).unwrap().pop().unwrap();
        for (next, length) in results {
            if lane.running().is_none() && lane.begin(1).is_err() {
                break;
            }
            let _ = lane.finish(0, &vec![1; length], next.then_some(2));
        }
    }
}

/// Words that come near what is written there, and others.
fn hostile() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..5_u64, 0..32_u64, 0..64_u64).prop_map(|(task, bits, head)| task << 32 | bits << 27 | head),
        (0..5_u64, 0..200_u64, any::<u8>())
            .prop_map(|(task, length, kind)| task << 32 | length << 8 | u64::from(kind)),
    ]
}

#[test]
fn a_worker_that_writes_all_the_time_cannot_hold_its_pool() {
    let mut ledger = Ledger::create(Shape::new(1, 128).unwrap()).unwrap();
    let memory = Arc::new(Map::new(&ledger.share().unwrap(), ledger.shape().words()).unwrap());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let worker = std::thread::spawn({
        let (memory, stop) = (memory.clone(), stop.clone());
        move || {
            let mut value = 1_u64;
            while !stop.load(Relaxed) {
                for word in memory.words() {
                    value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Small numbers, so that much of it is believed for a while.
                    word.store(value >> 59 | (value >> 40 & 3) << 32 | (value & 0xf000_0000), Relaxed);
                }
            }
        }
    });
    let (began, mut error) = (Instant::now(), None::<LedgerError>);
    while error.is_none() && began.elapsed() < Duration::from_secs(30) {
        error = ledger.drain(|record| assert!(record.bytes.len() <= 120)).err();
        let _ = (ledger.arm(Wake::Each), ledger.close_running(0, 1), ledger.cursor(0));
        std::thread::yield_now();
    }
    stop.store(true, Relaxed);
    worker.join().unwrap();
    assert!(error.is_some(), "it was found out");
    assert_eq!(ledger.drain(|_| ()).err(), error, "and is not forgotten");
}

#[test]
fn both_sides_go_from_thread_to_thread() {
    fn goes<T: Send + Sync>() {}
    goes::<Ledger>();
    goes::<Lane>();
}

#[test]
fn descriptors_are_close_on_exec() {
    let (ledger, _lanes) = pair(1, 64);
    let flags = rustix::io::fcntl_getfd(ledger.share().unwrap().as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}
