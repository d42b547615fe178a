//! What tasks of a pool return, in which order, and what becomes of what cannot travel.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use hatchery::prelude::*;
use hatchery::{Fd, Priority};
use hatchery_tests::ends;
use serde::{Deserialize, Serialize};

#[hatchery::task]
pub(crate) fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::task]
pub(crate) fn multiply(x: u64, y: u64) -> u64 {
    x * y
}

#[hatchery::task]
pub(crate) fn own_pid() -> u32 {
    std::process::id()
}

#[hatchery::task]
async fn later(x: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(1)).await;
    x + 1
}

#[hatchery::task]
fn halve(x: u64) -> Result<u64, String> {
    if x % 2 == 0 { Ok(x / 2) } else { Err(format!("{x} is odd")) }
}

#[hatchery::task]
fn panics_at(x: u64, at: u64) -> u64 {
    assert!(x != at, "at {x}");
    x
}

#[hatchery::task]
fn reversed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

#[hatchery::task]
fn text(length: usize) -> String {
    "x".repeat(length)
}

#[hatchery::task]
fn contents(mut file: Fd<UnixStream>) -> String {
    let mut read = String::new();
    file.read_to_string(&mut read).unwrap();
    read
}

#[hatchery::task]
fn opened(path: String) -> Result<Fd<File>, String> {
    File::open(path).map(Fd::new).map_err(|error| error.to_string())
}

/// Refuses to be encoded, or to be decoded again.
#[derive(Debug)]
struct Picky(u8);

impl Serialize for Picky {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == 1 {
            return Err(serde::ser::Error::custom("it does not want to leave"));
        }
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Picky, D::Error> {
        match u8::deserialize(deserializer)? {
            2 => Err(serde::de::Error::custom("it does not want to arrive")),
            other => Ok(Picky(other)),
        }
    }
}

#[hatchery::task]
fn picky(number: u8) -> Picky {
    Picky(number)
}

#[hatchery::task]
fn takes(what: Picky) -> u8 {
    what.0
}

pub(crate) async fn pool(workers: usize) -> Pool {
    ends("start", Pool::builder().workers(workers).start()).await.unwrap()
}

pub(crate) async fn over(pool: Pool) {
    ends("shutdown", pool.shutdown()).await.unwrap();
}

#[hatchery::test]
async fn results_come_in_the_order_of_their_inputs() {
    let pool = pool(2).await;
    let squares = ends("map", pool.map(square, 0..10_000).into_future()).await.unwrap();
    assert_eq!(squares, (0..10_000).map(|x| x * x).collect::<Vec<_>>());
    for size in [1, 7, 5_000] {
        let squares = ends("map", pool.map(square, 0..2_000).chunk_size(size).into_future()).await.unwrap();
        assert_eq!(squares, (0..2_000).map(|x| x * x).collect::<Vec<_>>(), "chunks of {size}");
    }
    assert_eq!(ends("map", pool.map(multiply, vec![(2, 3), (4, 5)]).into_future()).await.unwrap(), [6, 20]);
    assert!(ends("map", pool.map(square, []).into_future()).await.unwrap().is_empty());
    assert_eq!(ends("submit", pool.submit(multiply, (7, 7))).await.unwrap(), 49);
    assert_ne!(ends("submit", pool.submit(own_pid, ())).await.unwrap(), std::process::id());
    over(pool).await;
}

#[hatchery::test]
async fn streams_give_each_result_once_in_order_or_as_they_come() {
    let pool = pool(3).await;
    let mut ordered = pool.map(square, 0..1_000).stream();
    for x in 0..1_000 {
        assert_eq!(ends("next", ordered.next()).await.unwrap().unwrap(), x * x);
    }
    assert!(ends("next", ordered.next()).await.is_none());
    let mut any = pool.map(later, 0..300).chunk_size(2).unordered();
    let mut seen = Vec::new();
    while let Some(result) = ends("next", any.next()).await {
        seen.push(result.unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=300).collect::<Vec<_>>());
    over(pool).await;
}

#[hatchery::test]
async fn an_iterator_without_end_is_taken_from_as_workers_ask_for_it() {
    let pool = pool(2).await;
    let taken = AtomicU32::new(0);
    let inputs = std::iter::repeat_with(|| u64::from(taken.fetch_add(1, Ordering::Relaxed)));
    let mut results = pool.map(square, inputs).chunk_size(5).stream();
    assert_eq!(ends("next", results.next()).await.unwrap().unwrap(), 0);
    // Two workers, 64 quick chunks each, and as many that wait; once more, if some were given before.
    assert!(taken.load(Ordering::Relaxed) <= 2 * 2 * 2 * 64 * 5, "{taken:?}");
    drop(results);
    assert_eq!(ends("submit", pool.submit(square, 3)).await.unwrap(), 9);
    over(pool).await;
}

#[hatchery::test]
async fn however_much_is_to_be_prefetched_inputs_without_end_are_taken_within_bounds() {
    let pool = ends("start", Pool::builder().workers(2).prefetch(usize::MAX).start()).await.unwrap();
    let taken = AtomicU32::new(0);
    let inputs = std::iter::repeat_with(|| u64::from(taken.fetch_add(1, Ordering::Relaxed)));
    let mut results = pool.map(square, inputs).chunk_size(5).stream();
    assert_eq!(ends("next", results.next()).await.unwrap().unwrap(), 0);
    // Two workers, 65 chunks each, and as many that wait; once more, if some were given before.
    assert!(taken.load(Ordering::Relaxed) <= 2 * 2 * 2 * 65 * 5, "{taken:?}");
    drop(results);
    over(pool).await;
}

#[hatchery::test]
async fn an_iterator_that_panics_is_the_callers_panic_alone() {
    let pool = pool(1).await;
    let mapped = {
        let pool = pool.clone();
        tokio::spawn(async move {
            let inputs = (0..100_u64).inspect(|x| assert_ne!(*x, 50, "no more"));
            pool.map(square, inputs).await
        })
    };
    assert!(ends("map", mapped).await.unwrap_err().is_panic());
    assert_eq!(ends("submit", pool.submit(square, 3)).await.unwrap(), 9);
    over(pool).await;
}

#[hatchery::test]
async fn an_err_is_a_result_and_a_panic_fails_its_task_alone() {
    let pool = pool(2).await;
    let halves = ends("map", pool.map(halve, 0..4).retries(3).into_future()).await.unwrap();
    assert_eq!(halves, [Ok(0), Err("1 is odd".to_owned()), Ok(1), Err("3 is odd".to_owned())]);

    let before = ends("pids", pool.map(own_pid, std::iter::repeat_n((), 50)).chunk_size(1).into_future())
        .await
        .unwrap();
    let all = ends("each", pool.map(panics_at, (0..100).map(|x| (x, 50))).chunk_size(100).each()).await;
    for (x, result) in (0..).zip(all) {
        match (x, result) {
            (50, Err(error)) => {
                assert!(error.is_panic() && !error.is_worker_died() && error.maybe_executed(), "{error}");
                let panic = error.panic().unwrap();
                assert_eq!(panic.message, "at 50");
                assert!(panic.place.as_ref().unwrap().contains("pool_results.rs"), "{panic}");
                assert!(
                    error.to_string().contains("panics_at in /") && error.to_string().contains("/worker-"),
                    "{error}"
                );
            }
            (x, result) => assert_eq!(result.unwrap(), x),
        }
    }
    let error = ends("map", pool.map(panics_at, (0..100).map(|x| (x, 50))).into_future()).await.unwrap_err();
    assert!(error.is_panic());
    let after = ends("pids", pool.map(own_pid, std::iter::repeat_n((), 50)).chunk_size(1).into_future())
        .await
        .unwrap();
    assert!(after.iter().all(|pid| before.contains(pid)), "a panic has cost a worker");
    let stats = pool.stats();
    assert_eq!(stats.workers.iter().map(|worker| worker.restarts).sum::<u64>(), 0);
    over(pool).await;
}

#[hatchery::test]
async fn what_cannot_be_encoded_or_decoded_fails_its_task_and_the_same_workers_go_on() {
    let pool = pool(1).await;
    let worker = ends("pid", pool.submit(own_pid, ())).await.unwrap();
    let results = ends("each", pool.map(picky, 0..4).chunk_size(4).each()).await;
    for (number, result) in (0..).zip(results) {
        match (number, result) {
            (1, Err(error)) => assert!(error.to_string().contains("does not want to leave"), "{error}"),
            (2, Err(error)) => assert!(error.to_string().contains("does not want to arrive"), "{error}"),
            (_, result) => assert_eq!(result.unwrap().0, number),
        }
    }
    let results = ends("each", pool.map(takes, (0..4).map(Picky)).chunk_size(4).each()).await;
    for (number, result) in (0..).zip(results) {
        match (number, result) {
            (1, Err(error)) => {
                assert!(!error.maybe_executed() && error.to_string().contains("leave"), "{error}")
            }
            (2, Err(error)) => {
                assert!(!error.maybe_executed() && error.to_string().contains("arrive"), "{error}")
            }
            (_, result) => assert_eq!(result.unwrap(), number),
        }
    }
    let error = ends("submit", pool.submit(takes, Picky(1))).await.unwrap_err();
    assert!(error.to_string().contains("leave"), "{error}");
    assert_eq!(ends("pid", pool.submit(own_pid, ())).await.unwrap(), worker);
    over(pool).await;
}

/// Large, so that it travels by itself, and refuses to be decoded.
#[hatchery::task]
fn picky_at_length(number: u8) -> (Picky, String) {
    (Picky(number), "x".repeat(200_000))
}

#[hatchery::test]
async fn an_error_of_many_tasks_says_which_input_it_was() {
    let pool = pool(2).await;
    let inputs = (0..100_u8).map(|number| if number % 10 == 3 { 2 } else { 0 });
    for chunk in [1, 7, 100] {
        let mut results = pool.map(picky, inputs.clone()).chunk_size(chunk).unordered();
        let mut failed = Vec::new();
        while let Some(result) = ends("next", results.next()).await {
            failed.extend(result.err().map(|error| (error.input(), error.to_string())));
        }
        failed.sort();
        let numbers: Vec<_> = failed.iter().map(|(input, _)| input.unwrap()).collect();
        assert_eq!(numbers, (0..10).map(|ten| ten * 10 + 3).collect::<Vec<u64>>());
        assert!(failed[1].1.contains(", input 13: "), "{failed:?}");
    }
    let error = ends("map", pool.map(picky, inputs).into_future()).await.unwrap_err();
    assert_eq!(error.input(), Some(3));
    over(pool).await;
}

#[hatchery::test]
async fn where_an_error_ends_all_so_does_a_result_that_cannot_be_decoded() {
    let pool = pool(1).await;
    // The third of them is 2.
    let inputs = || [0, 0, 2].into_iter().chain(std::iter::repeat_n(0, 20));
    for chunk in [1, 23] {
        let all = pool.map(picky, inputs()).chunk_size(chunk).cancel_on_error(true);
        let all = ends("each", all.each()).await;
        assert_eq!(all.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false]);
        let all = pool.map(picky_at_length, inputs()).chunk_size(chunk).cancel_on_error(true);
        let all = ends("each", all.each()).await;
        assert_eq!(all.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false]);
    }
    assert_eq!(ends("each", pool.map(picky, inputs()).each()).await.len(), 23);
    over(pool).await;
}

#[hatchery::test]
async fn large_arguments_and_results_travel_among_small_ones() {
    let pool = pool(2).await;
    for size in [0, 10, 20_000, 200_000, 5 << 20] {
        let sent: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let mut expected = sent.clone();
        expected.reverse();
        assert!(ends("submit", pool.submit(reversed, sent)).await.unwrap() == expected, "{size} bytes");
    }
    let lengths: Vec<usize> = (0..200).map(|at| if at % 10 == 3 { 100_000 } else { at }).collect();
    for chunk in [1, 40] {
        let texts =
            ends("map", pool.map(text, lengths.clone()).chunk_size(chunk).into_future()).await.unwrap();
        assert_eq!(texts.iter().map(String::len).collect::<Vec<_>>(), lengths);
    }
    over(pool).await;
}

/// Gives back all three, but not the first time.
#[hatchery::task]
fn joined_at_second(first: Vec<u8>, number: u8, mut second: Vec<u8>, mark: String) -> Vec<u8> {
    if !std::path::Path::new(&mark).exists() {
        File::create(&mark).unwrap();
        std::process::abort();
    }
    second.insert(0, number);
    second.splice(0..0, first);
    second
}

#[hatchery::test]
async fn byte_strings_are_there_again_for_a_second_try_though_they_were_moved() {
    let pool = pool(1).await;
    let dir = tempfile::tempdir().unwrap();
    for (index, (first, second)) in
        [(4_095, 4_096), (65_535, 0), (1, 65_536), (1 << 20, 300_000), (100, 9 << 20)].into_iter().enumerate()
    {
        let bytes =
            |size: usize, step: usize| (0..size).map(|at| (at / step % 253) as u8).collect::<Vec<_>>();
        let (first, second) = (bytes(first, 1), bytes(second, 100));
        let expected = [&first[..], &[7], &second].concat();
        let mark = dir.path().join(index.to_string()).display().to_string();
        let args = (first, 7, second, mark);
        let joined = ends("both", pool.submit(joined_at_second, args.clone()).retries(1)).await.unwrap();
        assert!(joined == expected, "{index}");
        let joined = ends("both", pool.map(joined_at_second, [args]).into_future()).await.unwrap();
        assert!(joined == [expected], "{index}");
    }
    let large: Vec<u8> = (0..20 << 20).map(|at| (at / 4096) as u8).collect();
    for _ in 0..2 {
        let mut expected = large.clone();
        expected.reverse();
        assert!(ends("large", pool.submit(reversed, large.clone())).await.unwrap() == expected);
    }
    over(pool).await;
}

#[hatchery::test]
async fn descriptors_travel_in_arguments_and_results() {
    use std::io::Write;
    let pool = pool(1).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a file").display().to_string();
    std::fs::write(&path, "here").unwrap();
    for _ in 0..20 {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"hello").unwrap();
        drop(here);
        assert_eq!(ends("contents", pool.submit(contents, Fd::new(there))).await.unwrap(), "hello");
        let mut file = ends("opened", pool.submit(opened, path.clone())).await.unwrap().unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "here");
    }
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open =
        links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|to| to.to_string_lossy() == path));
    assert_eq!(open.count(), 0, "they are closed");
    over(pool).await;
}

#[hatchery::task]
fn waits(path: String) {
    while !std::path::Path::new(&path).exists() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[hatchery::test]
async fn a_task_that_blocks_keeps_no_finished_result_from_being_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: u64| dir.path().join(name.to_string()).display().to_string();
    let pool = pool(1).await;
    std::fs::write(path(0), "").unwrap();
    // All in one chunk, of which only the first can finish.
    let mut results = pool.map(waits, (0..3).map(path)).chunk_size(3).stream();
    for next in 1..=3 {
        ends("next", results.next()).await.unwrap().unwrap();
        std::fs::write(path(next), "").unwrap();
    }
    assert!(ends("next", results.next()).await.is_none());
    over(pool).await;
}

#[hatchery::test]
async fn what_has_priority_goes_before_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let pool = pool(1).await;
    let first = pool.submit(waits, gate.display().to_string());
    let low = pool.submit(order, dir.path().display().to_string()).priority(Priority::Low);
    let normal = pool.submit(order, dir.path().display().to_string());
    let high = pool.submit(order, dir.path().display().to_string()).priority(Priority::High);
    std::fs::write(&gate, "").unwrap();
    ends("first", first).await.unwrap();
    let (low, normal, high) = ends("all", async { tokio::join!(low, normal, high) }).await;
    assert_eq!((high.unwrap(), normal.unwrap(), low.unwrap()), (1, 2, 3));
    over(pool).await;
}

/// Counts those that have come here.
#[hatchery::task]
fn order(dir: String) -> u64 {
    use std::io::Write;
    let path = std::path::Path::new(&dir).join("order");
    File::options().append(true).create(true).open(&path).unwrap().write_all(b"1").unwrap();
    std::fs::metadata(path).unwrap().len()
}
