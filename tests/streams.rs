//! Streamed answers of actors in workers and in this process.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use hatchery::prelude::*;
use hatchery::{CallError, Items, Stream};
use hatchery_tests::{becomes_true, ends, own_channel, runs, send};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::tree;

/// An actor that answers with streams, and knows how far they have got.
#[derive(Default)]
struct Source {
    made: Arc<AtomicU64>,
    open: Arc<AtomicU64>,
}

#[hatchery::actor]
impl Source {
    fn start() -> Self {
        Source::default()
    }

    /// The numbers from 0, and then what is asked for.
    fn count(&self, to: u64, then: Then) -> impl Stream<Item = u64> {
        self.numbers(to, then)
    }

    async fn checked(&mut self, to: i64) -> Result<impl Stream<Item = u64>, String> {
        let to = u64::try_from(to).map_err(|_| format!("{to} is negative"))?;
        Ok(self.numbers(to, Then::End))
    }

    fn blocks(&self, size: usize, n: u64) -> impl Stream<Item = Vec<u8>> {
        Mapped(self.numbers(n, Then::End), move |_| vec![7; size])
    }

    /// The items are results themselves, of which an `Err` ends nothing.
    fn halves(&self, to: u64) -> impl Stream<Item = Result<u64, String>> {
        Mapped(
            self.numbers(to, Then::End),
            |n| if n % 2 == 0 { Ok(n / 2) } else { Err(format!("{n} is odd")) },
        )
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    fn open(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    async fn hangs(&self) {
        std::future::pending().await
    }

    /// Writes items of a request to its own channel, between its messages.
    fn forges(&mut self, id: u8, items: usize) {
        let item = [0, 0, 0, 12, 0x99, 8, 0, 0, id, 0, 0xc0, 0xc0, 0xc0, 0xc4, 1, 5];
        rustix::net::send(own_channel(), &item.repeat(items), rustix::net::SendFlags::empty())
            .expect("room for it");
    }
}

impl Source {
    fn numbers(&self, to: u64, then: Then) -> Numbers {
        self.open.fetch_add(1, Ordering::SeqCst);
        Numbers { next: 0, to, then, made: self.made.clone(), open: self.open.clone() }
    }
}

/// What a stream does when it has counted as far as it should.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Then {
    End,
    Stall,
    Panic,
    Die,
}

struct Numbers {
    next: u64,
    to: u64,
    then: Then,
    made: Arc<AtomicU64>,
    open: Arc<AtomicU64>,
}

impl Stream for Numbers {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<u64>> {
        if self.next < self.to {
            self.next += 1;
            self.made.fetch_add(1, Ordering::SeqCst);
            return Poll::Ready(Some(self.next - 1));
        }
        match self.then {
            Then::End => Poll::Ready(None),
            Then::Stall => Poll::Pending,
            Then::Panic => panic!("at {}", self.next),
            Then::Die => {
                send(std::process::id(), Signal::KILL);
                Poll::Pending
            }
        }
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Mapped<F>(Numbers, F);

impl<T, F: FnMut(u64) -> T + Unpin> Stream for Mapped<F> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<T>> {
        let next = Pin::new(&mut self.0).poll_next(cx);
        next.map(|number| number.map(&mut self.1))
    }
}

/// The same actor in a worker and in this process.
async fn far_and_near(tree: &Tree) -> [SourceHandle; 2] {
    [
        tree.start_child(worker::<Source>("far", ())).await.unwrap(),
        tree.start_child(local::<Source>("near", ())).await.unwrap(),
    ]
}

/// All items, and the error at the end if there is one. After that, there is nothing.
async fn rest(items: &mut Items<u64>) -> (Vec<u64>, Option<CallError>) {
    let mut all = Vec::new();
    let error = loop {
        match ends("the next item", items.next()).await {
            Some(Ok(item)) => all.push(item),
            Some(Err(error)) => break Some(error),
            None => break None,
        }
    };
    for _ in 0..2 {
        assert!(ends("nothing", items.next()).await.is_none());
    }
    (all, error)
}

async fn none_open(source: &SourceHandle) {
    // An ask may still meet a kill that was sent before.
    ends("the streams", async { while !matches!(source.open().await, Ok(0)) {} }).await;
}

#[hatchery::test]
async fn a_hundred_thousand_items_arrive_in_order() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let (all, error) = rest(&mut source.count(100_000, Then::End)).await;
        assert!(error.is_none() && all.iter().copied().eq(0..100_000), "{} of 100000", all.len());
        none_open(&source).await;
    }
}

#[hatchery::test]
async fn nothing_happens_before_the_first_poll() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        drop(source.count(100, Then::End));
        assert_eq!(ends("ask", source.made()).await.unwrap(), 0);
        assert_eq!(rest(&mut source.count(0, Then::End)).await.0, []);
    }
}

#[hatchery::test]
async fn an_error_instead_of_a_stream_is_the_only_thing_that_comes() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut items = source.checked(-3);
        let error = ends("the error", items.next()).await.unwrap().unwrap_err();
        assert_eq!(error.handler_error().unwrap(), "-3 is negative");
        assert!(ends("nothing", items.next()).await.is_none());
        let mut items = source.checked(2);
        for n in 0..2 {
            assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), n);
        }
        assert!(ends("the end", items.next()).await.is_none());
        let mut halves = source.halves(3);
        for half in [Ok(0), Err("1 is odd".to_owned()), Ok(1)] {
            assert_eq!(ends("an item", halves.next()).await.unwrap().unwrap(), half);
        }
        assert!(ends("the end", halves.next()).await.is_none());
    }
}

/// Fault: a consumer that is slow. The producer waits, and the actor goes on.
#[hatchery::test]
async fn a_slow_consumer_stops_the_producer_at_64_items() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut items = source.count(1_000, Then::End);
        for n in 0..10 {
            assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), n);
        }
        // What was taken comes back by the quarter, so not yet.
        ends("the window", async { while source.made().await.unwrap() < 64 {} }).await;
        for _ in 0..100 {
            assert_eq!(ends("ask", source.made()).await.unwrap(), 64);
        }
        for n in 10..16 {
            assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), n);
        }
        ends("the window", async { while source.made().await.unwrap() < 80 {} }).await;
        for _ in 0..100 {
            assert_eq!(ends("ask", source.made()).await.unwrap(), 80);
        }
        let (all, error) = rest(&mut items).await;
        assert!(error.is_none() && all.into_iter().eq(16..1_000));
    }
}

#[hatchery::test]
async fn large_items_stop_the_producer_at_a_mebibyte() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut items = source.blocks(200_000, 40);
        assert_eq!(ends("an item", items.next()).await.unwrap().unwrap().len(), 200_000);
        // One is taken and not given back yet; with the sixth it is over a mebibyte.
        ends("the window", async { while source.made().await.unwrap() < 6 {} }).await;
        for _ in 0..20 {
            assert_eq!(ends("ask", source.made()).await.unwrap(), 6);
        }
        for _ in 1..40 {
            assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), vec![7; 200_000]);
        }
        assert!(ends("the end", items.next()).await.is_none());
        // Larger than the whole window: they go one by one.
        let mut items = source.blocks(3_000_000, 4);
        for _ in 0..4 {
            assert_eq!(ends("an item", items.next()).await.unwrap().unwrap().len(), 3_000_000);
        }
        assert!(ends("the end", items.next()).await.is_none());
    }
}

/// Promise "caller gone", for streams.
#[hatchery::test]
async fn dropping_the_items_ends_the_producer() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        // Without an end, full of items, stalled, and given up many times over.
        for (take, to, then) in [(1, u64::MAX, Then::End), (500, 1_000, Then::End), (10, 10, Then::Stall)] {
            let mut items = source.count(to, then);
            for n in 0..take {
                assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), n);
            }
            assert_eq!(ends("ask", source.open()).await.unwrap(), 1);
            drop(items);
            none_open(&source).await;
        }
        for _ in 0..500 {
            let mut items = source.count(u64::MAX, Then::End);
            assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), 0);
        }
        none_open(&source).await;
        // A withdrawal may cross the end, and nobody minds.
        for to in 0..200 {
            let mut items = source.count(to % 20, Then::End);
            let _ = ends("an item", items.next()).await;
        }
        none_open(&source).await;
        assert_eq!(source.incarnation(), Some(1));
    }
}

#[hatchery::test]
async fn two_streams_and_ordinary_asks_go_on_beside_each_other() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut streams = [source.count(u64::MAX, Then::End), source.count(u64::MAX, Then::End)];
        for n in 0..1_000 {
            for items in &mut streams {
                assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), n);
            }
            if n % 10 == 0 {
                assert_eq!(ends("ask", source.open()).await.unwrap(), 2);
            }
        }
    }
}

/// Three hundred streams are more than the window of 256: they hold no place in it.
#[hatchery::test]
async fn open_streams_take_no_places_in_the_window() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut streams: Vec<_> = (0..300).map(|_| source.count(1, Then::Stall)).collect();
        for items in &mut streams {
            assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), 0);
        }
        assert_eq!(ends("ask", source.open()).await.unwrap(), 300);
    }
}

#[hatchery::test]
async fn an_actor_opens_a_bounded_number_of_streams() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut streams: Vec<_> = (0..1_024).map(|_| source.count(1, Then::Stall)).collect();
        for items in &mut streams {
            assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), 0);
        }
        let (none, error) = rest(&mut source.count(1, Then::End)).await;
        assert!(none.is_empty() && error.unwrap().to_string().contains("1024 streams open"));
        drop(streams);
        none_open(&source).await;
        assert_eq!(rest(&mut source.count(3, Then::End)).await.0, [0, 1, 2]);
    }
}

/// Promise "worker killed in mid-request", for streams: what arrived comes first, then the crash, once.
#[hatchery::test]
async fn a_worker_killed_in_the_middle_of_a_stream_is_a_crash_behind_the_items() {
    let tree = tree().await;
    let source = tree.start_child(worker::<Source>("victim", ())).await.unwrap();
    // From inside, with items on their way.
    let (all, error) = rest(&mut source.count(200, Then::Die)).await;
    assert!(all.iter().copied().eq(0..all.len() as u64), "{all:?}");
    let error = error.unwrap();
    assert!(error.is_crash() && error.maybe_executed(), "{error}");
    assert_eq!(error.exit().unwrap().signal(), Some(9));
    // From outside: with all of them here and nobody looking.
    becomes_true("the next one sits", || source.incarnation() == Some(2)).await;
    let mut items = source.count(50, Then::Stall);
    assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), 0);
    ends("all of them", async { while source.made().await.unwrap() < 50 {} }).await;
    let pid = source.pid().unwrap();
    send(pid, Signal::KILL);
    becomes_true("the next one sits", || source.incarnation() == Some(3)).await;
    assert!(!runs(pid));
    let (all, error) = rest(&mut items).await;
    assert!(all.into_iter().eq(1..50));
    assert_eq!(error.unwrap().exit().unwrap().signal(), Some(9));
    assert_eq!(rest(&mut source.count(3, Then::End)).await.0, [0, 1, 2]);
}

/// Streams come and go on all sides, also by their actor's end: each ends once, behind a beginning in order.
#[hatchery::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_ends_exactly_once_under_random_kills() {
    let tree =
        Supervisor::new(Strategy::OneForOne).intensity(1000, Duration::from_secs(60)).start().await.unwrap();
    for source in far_and_near(&tree).await {
        let consumers: Vec<_> = (0..4_u64)
            .map(|consumer| {
                let source = source.clone();
                tokio::spawn(async move {
                    let (mut whole, mut crashed) = (0, 0);
                    for round in 0..150 {
                        let (to, take) = (round * 7 % 400, (round * 11 + consumer) % 500);
                        let mut items = source.count(to, Then::End);
                        for n in 0..take {
                            match ends("the next item", items.next()).await {
                                Some(Ok(item)) => assert_eq!(item, n),
                                Some(Err(error)) => {
                                    assert!(error.is_crash(), "{error}");
                                    assert!(ends("nothing", items.next()).await.is_none());
                                    crashed += 1;
                                    break;
                                }
                                None => {
                                    assert_eq!(n, to);
                                    whole += 1;
                                    break;
                                }
                            }
                        }
                    }
                    (whole, crashed)
                })
            })
            .collect();
        let killer = tokio::spawn({
            let source = source.clone();
            async move {
                let mut ticks = tokio::time::interval(Duration::from_millis(5));
                loop {
                    ticks.tick().await;
                    source.kill();
                }
            }
        });
        let (mut whole, mut crashed) = (0, 0);
        for consumer in consumers {
            let ended = ends("the consumers", consumer).await.unwrap();
            (whole, crashed) = (whole + ended.0, crashed + ended.1);
        }
        killer.abort();
        assert!(whole > 0 && crashed > 0, "{whole} whole, {crashed} crashed");
        none_open(&source).await;
    }
}

/// As in a handler: a panic ends the actor.
#[hatchery::test]
async fn a_panic_in_a_stream_is_a_crash_of_its_actor_behind_the_items() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut items = source.count(200, Then::Panic);
        assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), 0);
        // A handler that runs meanwhile is cut off.
        let hanging = tokio::spawn(source.hangs());
        tokio::task::yield_now().await;
        let (all, error) = rest(&mut items).await;
        assert!(all.into_iter().eq(1..200));
        for error in [error.unwrap(), ends("ask", hanging).await.unwrap().unwrap_err()] {
            let panic = error.exit().unwrap().panic().unwrap();
            assert!(error.is_crash() && panic.message == "at 200", "{error}");
            assert!(panic.place.as_ref().unwrap().contains("streams.rs:"), "{panic}");
        }
        assert_eq!(rest(&mut source.count(3, Then::End)).await.0, [0, 1, 2]);
        assert_eq!(source.incarnation(), Some(2));
    }
}

#[hatchery::test]
async fn an_orderly_stop_ends_open_streams_behind_their_items() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut items = source.count(30, Then::Stall);
        let mut silent = source.count(0, Then::Stall);
        assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), 0);
        assert!(tokio::time::timeout(Duration::from_millis(1), silent.next()).await.is_err());
        ends("all of them", async { while source.made().await.unwrap() < 30 {} }).await;
        assert_eq!(ends("ask", source.open()).await.unwrap(), 2);
        ends("stop", source.stop()).await.unwrap();
        let (all, error) = rest(&mut items).await;
        assert!(all.into_iter().eq(1..30));
        for error in [error.unwrap(), rest(&mut silent).await.1.unwrap()] {
            assert!(error.maybe_executed() && error.exit().unwrap().is_orderly(), "{error}");
        }
    }
}

#[hatchery::test]
async fn the_deadline_is_for_each_wait() {
    let tree = tree().await;
    for source in far_and_near(&tree).await {
        let mut items = source.count(5, Then::Stall).timeout(Duration::from_millis(50));
        let (all, error) = rest(&mut items).await;
        assert_eq!(all, [0, 1, 2, 3, 4]);
        let error = error.unwrap();
        assert!(error.is_timeout() && error.maybe_executed());
        none_open(&source).await;
    }
}

/// Promise "malformed … input": items that nobody asked for, or beyond what was allowed, end that peer with a reason.
#[hatchery::test]
async fn a_worker_that_sends_items_beyond_its_credit_is_ended_with_a_reason() {
    async fn reason(rogue: &SourceHandle, id: u8, items: usize) -> String {
        let error = match ends("ask", rogue.forges(id, items)).await {
            Err(error) => error,
            // Its answer was faster than its forgeries; the next ask meets the end.
            Ok(()) => ends("ask", rogue.hangs()).await.unwrap_err(),
        };
        assert_eq!(error.exit().unwrap().signal(), Some(9));
        error.exit().unwrap().reason().unwrap().to_owned()
    }
    let tree = tree().await;
    let bystander = tree.start_child(worker::<Source>("bystander", ())).await.unwrap();
    // Request 0 is the forgery itself, which is no stream.
    let rogue = tree.start_child(worker::<Source>("no-stream", ())).await.unwrap();
    assert!(reason(&rogue, 0, 1).await.contains("not open"));
    let rogue = tree.start_child(worker::<Source>("unknown", ())).await.unwrap();
    assert!(reason(&rogue, 99, 1).await.contains("not open"));

    let rogue = tree.start_child(worker::<Source>("greedy", ())).await.unwrap();
    let mut items = rogue.count(1, Then::Stall);
    assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), 0);
    assert!(reason(&rogue, 0, 64).await.contains("beyond its credit"));
    // The 63 that it had credit for count.
    let (forged, error) = rest(&mut items).await;
    assert_eq!(forged, [5; 63]);
    assert!(error.unwrap().is_crash());

    // For a caller who has left, items are ignored as long as they can be under way, and not when its end has come.
    let rogue = tree.start_child(worker::<Source>("late", ())).await.unwrap();
    let mut items = rogue.count(1, Then::Stall);
    assert_eq!(ends("an item", items.next()).await.unwrap().unwrap(), 0);
    drop(items);
    none_open(&rogue).await;
    assert!(reason(&rogue, 0, 1).await.contains("not open"));
    assert_eq!(bystander.incarnation(), Some(1));
}
