//! Tasks over the items of a stream, as they come.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use hatchery::TaskError;
use hatchery::prelude::*;
use hatchery_tests::ends;
use tokio::sync::mpsc::{Receiver, channel};

use crate::pool_results::square;

/// What others send, as a stream.
struct Received(Receiver<u64>);

impl Stream for Received {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        self.0.poll_recv(cx)
    }
}

async fn pool() -> Pool {
    Pool::builder().workers(2).start().await.unwrap()
}

#[hatchery::test]
async fn an_item_is_worked_on_before_the_next_one_has_come() {
    let pool = pool().await;
    let (sends, come) = channel(1);
    let mut ordered = pool.map_stream(square, Received(come)).stream();
    for x in 0..100 {
        sends.send(x).await.unwrap();
        assert_eq!(ends("next", ordered.next()).await.unwrap().unwrap(), x * x);
    }
    drop(sends);
    assert!(ends("the end", ordered.next()).await.is_none());
}

#[hatchery::test]
async fn items_that_come_now_and_then_have_all_their_results_in_order() {
    let pool = pool().await;
    let (sends, come) = channel(64);
    let sender = tokio::spawn(async move {
        for x in 0..5_000 {
            sends.send(x).await.unwrap();
            if x % 97 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let results = ends("map", pool.map_stream(square, Received(come)).into_future()).await.unwrap();
    assert_eq!(results, (0..5_000).map(|x| x * x).collect::<Vec<u64>>());
    sender.await.unwrap();
}

#[hatchery::test]
async fn a_stream_is_polled_no_further_ahead_than_there_are_workers_for() {
    let pool = pool().await;
    let (sends, come) = channel(100_000);
    for x in 0..100_000 {
        sends.try_send(x).unwrap();
    }
    let mut results = pool.map_stream(square, Received(come)).chunk_size(1).unordered();
    ends("next", results.next()).await.unwrap().unwrap();
    // 64 chunks for each of two workers at most, and as many again that wait.
    assert!(sends.capacity() <= 256 + 1, "{} were taken", sends.capacity());
}

#[hatchery::test]
async fn a_stream_of_items_ends_when_its_pool_does_and_is_dropped_with_its_results() {
    let pool = pool().await;
    let (sends, come) = channel(10);
    let mut results = pool.map_stream(square, Received(come)).stream();
    sends.send(3).await.unwrap();
    assert_eq!(ends("next", results.next()).await.unwrap().unwrap(), 9);
    ends("terminate", pool.terminate()).await.unwrap();
    // Although nothing more has come, and more may: nobody is to take this for the end.
    assert!(ends("next", results.next()).await.unwrap().is_err_and(|error: TaskError| error.is_closed()));
    assert!(ends("the end", results.next()).await.is_none());
    drop(results);
    assert!(sends.is_closed());
}

/// Ends its pool while it is asked for its first item, of which there is none.
struct Ends(Option<Pool>);

impl Stream for Ends {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u64>> {
        if let Some(pool) = self.0.take() {
            // It has ended when that has been polled; and nobody is woken for its sake.
            let mut ends = Box::pin(pool.terminate());
            let _ = ends.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
        Poll::Pending
    }
}

#[hatchery::test]
async fn an_end_of_the_pool_is_heard_while_inputs_are_waited_for() {
    let pool = pool().await;
    let mut results = pool.map_stream(square, Ends(Some(pool.clone()))).stream();
    assert!(ends("next", results.next()).await.unwrap().is_err_and(|error| error.is_closed()));
    assert!(ends("the end", results.next()).await.is_none());
}
