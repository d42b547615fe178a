//! How pools and their workers begin and end.

use std::fs;
use std::path::PathBuf;

use hatchery::prelude::*;
use hatchery::{TaskError, TreeEvent};
use hatchery_tests::{becomes_true, ends, runs};

use crate::pool_results::{multiply, over, own_pid, pool, square};

#[hatchery::task]
fn begins(dir: PathBuf, how: String) -> Result<(), String> {
    let file = fs::File::options().append(true).create(true).open(dir.join("begun"));
    std::io::Write::write_all(&mut file.unwrap(), b"1").unwrap();
    match &*how {
        "ok" => Ok(()),
        "panic" => panic!("no luck"),
        "exit" => std::process::exit(3),
        "hang" => loop {
            std::thread::park();
        },
        other => Err(other.to_owned()),
    }
}

#[hatchery::task]
pub(crate) fn hangs() {
    loop {
        std::thread::park();
    }
}

/// The workers of this test.
pub(crate) fn workers() -> Vec<u32> {
    hatchery::active_children().iter().map(|child| child.pid()).collect()
}

fn begun(dir: &tempfile::TempDir) -> usize {
    fs::read(dir.path().join("begun")).unwrap_or_default().len()
}

#[hatchery::test]
async fn each_worker_runs_the_initializer_once_and_the_finaliser_once() {
    let dir = tempfile::tempdir().unwrap();
    let args = || (dir.path().to_owned(), "ok".to_owned());
    let pool = Pool::builder().workers(3).initializer(begins, args()).finaliser(begins, args());
    let pool = ends("start", pool.start()).await.unwrap();
    assert_eq!(begun(&dir), 3);
    assert_eq!(ends("map", pool.map(square, 0..100).into_future()).await.unwrap().len(), 100);
    assert_eq!(begun(&dir), 3);
    over(pool).await;
    assert_eq!(begun(&dir), 6);
}

#[hatchery::task]
fn has_no_database() -> Result<(), String> {
    Err("no database main.db".to_owned())
}

#[hatchery::test]
async fn what_an_initializer_says_is_in_the_error_of_the_start() {
    let start = Pool::builder().workers(1).initializer(has_no_database, ()).start();
    let error = ends("start", start).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("no database main.db"), "{error}");
    let error = ends("start", Pool::builder().workers(0).start()).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("ask for 1 at least"), "{error}");
}

#[hatchery::test]
async fn an_initializer_that_fails_fails_the_start_and_nothing_is_tried_again() {
    for (how, said) in [
        ("no such file", "initializer failed"),
        ("panic", "no luck"),
        ("exit", "code 3"),
        ("hang", "not ready"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let builder = Pool::builder().workers(2).initializer(begins, (dir.path().to_owned(), how.to_owned()));
        let error = ends("start", builder.start_timeout(Duration::from_secs(2)).start()).await.unwrap_err();
        assert!(error.to_string().contains(said), "{how}: {error}");
        assert!(begun(&dir) <= 2, "{} starts", begun(&dir));
    }
    becomes_true("no worker is left", || workers().is_empty()).await;
}

#[hatchery::test]
async fn a_worker_is_replaced_when_it_has_run_as_many_tasks_as_it_may() {
    let builder = Pool::builder().workers(2).max_tasks_per_worker(2);
    let pool = ends("start", builder.start()).await.unwrap();
    let pids = ends("pids", pool.map(own_pid, std::iter::repeat_n((), 10)).chunk_size(5).into_future())
        .await
        .unwrap();
    let mut counts = std::collections::BTreeMap::new();
    pids.iter().for_each(|worker| *counts.entry(worker).or_insert(0) += 1);
    assert!(counts.values().all(|count| *count <= 2) && counts.len() >= 5, "{counts:?}");
    over(pool).await;
}

#[hatchery::test]
async fn a_closed_pool_takes_nothing_more_and_finishes_what_it_has() {
    let pool = pool(2).await;
    let before = pool.submit(multiply, (6, 7));
    let mapped = tokio::spawn(pool.map(square, 0..1_000).into_future());
    // It has begun.
    becomes_true("some are done", || pool.stats().done > 0).await;
    pool.close();
    let error = ends("refused", pool.submit(square, 1)).await.unwrap_err();
    assert!(error.is_closed() && !error.maybe_executed(), "{error}");
    assert!(ends("refused", pool.map(square, 0..2).into_future()).await.unwrap_err().is_closed());
    assert_eq!(ends("before", before).await.unwrap(), 42);
    ends("join", pool.join()).await.unwrap();
    assert_eq!(ends("map", mapped).await.unwrap().unwrap().len(), 1_000);
    assert!(workers().is_empty());
    ends("join", pool.join()).await.unwrap();
}

#[hatchery::test]
async fn join_waits_for_no_job_to_be_awaited() {
    let pool = pool(2).await;
    let mut cancelled = pool.submit(hangs, ());
    becomes_true("it runs", || pool.stats().given == 1).await;
    // More than have a place in the line, and nobody polls them.
    let jobs: Vec<_> = (0..1_500).map(|x| pool.submit(square, x)).collect();
    cancelled.cancel();
    pool.close();
    ends("join", pool.join()).await.unwrap();
    assert!(workers().is_empty());
    for (x, job) in (0..).zip(jobs) {
        assert!(job.is_finished(), "{x}");
        assert_eq!(ends("job", job).await.unwrap(), x * x);
    }
    assert!(ends("cancelled", cancelled).await.unwrap_err().is_cancelled());
}

#[hatchery::test]
async fn a_pool_that_is_terminated_ends_every_job_and_its_workers() {
    let pool = pool(2).await;
    let jobs: Vec<_> = (0..10_000).map(|_| pool.submit(hangs, ())).collect();
    becomes_true("some run", || pool.stats().given == 2).await;
    let pids = workers();
    assert_eq!(pids.len(), 2);
    ends("terminate", pool.terminate()).await.unwrap();
    assert!(!pids.iter().any(|worker| runs(*worker)));
    for job in jobs {
        assert!(ends("job", job).await.unwrap_err().is_closed());
    }
    assert!(ends("refused", pool.submit(square, 1)).await.unwrap_err().is_closed());
}

#[hatchery::test]
async fn a_stream_over_inputs_without_end_ends_when_its_pool_does() {
    let pool = pool(2).await;
    let mut ordered = pool.map(square, 0..).stream();
    let mut any = pool.map(square, 0..).unordered();
    for _ in 0..10 {
        ends("next", ordered.next()).await.unwrap().unwrap();
        ends("next", any.next()).await.unwrap().unwrap();
    }
    // One that has taken nothing yet, and one whose results are all there, and some inputs are not taken.
    let mut fresh = pool.map(square, 0..).stream();
    let mut whole = pool.map(square, 0..10_000).chunk_size(1).stream();
    ends("next", whole.next()).await.unwrap().unwrap();
    becomes_true("nothing is under way", || pool.stats().given == 0 && pool.stats().waiting == 0).await;
    ends("terminate", pool.terminate()).await.unwrap();
    for results in [&mut ordered, &mut any, &mut fresh] {
        let rest = ends("the rest", drained(results)).await;
        assert!(rest.last().unwrap().as_ref().is_err_and(TaskError::is_closed));
    }
    let rest = ends("the rest", drained(&mut whole)).await;
    assert!(rest.len() < 9_999 && rest.last().unwrap().as_ref().is_err_and(TaskError::is_closed));
    assert_eq!(rest.iter().filter(|result| result.is_err()).count(), 1);
}

/// What a stream gives until its end.
async fn drained<I: Iterator>(results: &mut hatchery::Results<I, u64>) -> Vec<Result<u64, TaskError>> {
    let mut all = Vec::new();
    while let Some(result) = results.next().await {
        all.push(result);
    }
    all
}

#[hatchery::test]
async fn a_pool_whose_last_handle_is_dropped_stops() {
    let pool = pool(2).await;
    let job = pool.submit(square, 3);
    drop(pool);
    assert_eq!(ends("a job keeps it", job).await.unwrap(), 9);
    becomes_true("it has stopped", || workers().is_empty()).await;
}

/// Has a pool of its own.
#[hatchery::task]
async fn sums_squares(up_to: u64) -> hatchery::Result<u64> {
    let pool = Pool::builder().workers(1).start().await?;
    let squares: Vec<u64> = pool.map(square, 0..up_to).await?;
    pool.shutdown().await?;
    Ok(squares.iter().sum())
}

#[hatchery::test]
async fn a_task_of_a_pool_may_have_a_pool() {
    let pool = pool(2).await;
    let sums = ends("map", pool.map(sums_squares, [3, 4]).chunk_size(1).into_future()).await.unwrap();
    assert_eq!(sums.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [5, 14]);
    over(pool).await;
}

#[hatchery::test]
async fn a_detached_job_runs_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1).await;
    pool.submit(begins, (dir.path().to_owned(), "ok".to_owned())).detach();
    becomes_true("it has run", || begun(&dir) == 1).await;
    over(pool).await;
}

#[hatchery::test]
async fn a_pool_in_a_tree_is_started_again_and_its_handle_reaches_the_next_one() {
    let pool = Pool::builder().workers(2).spec("pool");
    let tree = Supervisor::new(Strategy::OneForOne).name("works").child(pool).start();
    let tree = ends("start", tree).await.unwrap();
    let pool = tree.get::<Pool>("pool").unwrap();
    assert_eq!(pool.path(), "/works/pool");
    assert_eq!(ends("map", pool.map(square, 1..4).into_future()).await.unwrap(), [1, 4, 9]);

    // It ends, and its parent does not leave it at that.
    let mut events = tree.events();
    let busy = pool.submit(hangs, ());
    becomes_true("it runs", || pool.stats().given == 1).await;
    let before = workers();
    ends("terminate", pool.terminate()).await.unwrap();
    assert!(ends("its job", busy).await.unwrap_err().is_closed());
    let again = |event: &TreeEvent| matches!(event, TreeEvent::Started { path, incarnation: 2, .. } if path == "/works/pool");
    while !again(&ends("event", events.next()).await.unwrap()) {}
    assert_eq!(ends("map", pool.map(square, 1..4).into_future()).await.unwrap(), [1, 4, 9]);
    assert!(!before.iter().any(|worker| runs(*worker)));
    ends("stop", tree.stop()).await.unwrap();
    assert!(ends("refused", pool.submit(square, 1)).await.unwrap_err().is_closed());
    assert!(workers().is_empty());
}

/// Counts, and fails when the gate is closed.
#[hatchery::task]
fn needs(dir: PathBuf) -> hatchery::Result<()> {
    let file = fs::File::options().append(true).create(true).open(dir.join("begun"));
    std::io::Write::write_all(&mut file?, b"1")?;
    fs::metadata(dir.join("gate")).map(drop).map_err(|error| hatchery::Error::from(error).context("the gate"))
}

#[hatchery::task]
pub(crate) fn aborts() {
    std::process::abort()
}

#[hatchery::test]
async fn when_workers_cannot_be_started_again_the_jobs_that_wait_learn_why() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("gate"), "").unwrap();
    let builder = Pool::builder().workers(1).initializer(needs, dir.path().to_owned());
    let pool = ends("start", builder.intensity(2, Duration::from_secs(60)).start()).await.unwrap();
    fs::remove_file(dir.path().join("gate")).unwrap();
    let killer = pool.submit(aborts, ());
    let waits = pool.submit(square, 3);
    assert!(ends("killer", killer).await.unwrap_err().is_worker_died());
    let error = ends("waits", waits).await.unwrap_err();
    assert!(error.is_init_failed() && !error.maybe_executed(), "{error}");
    assert!(error.to_string().contains("the gate: "), "{error}");
    assert!(ends("later", pool.submit(square, 3)).await.unwrap_err().is_init_failed());
    assert!(begun(&dir) <= 4, "{} starts", begun(&dir));
    assert!(ends("join", pool.join()).await.is_err());
}

/// Fails where nobody can be told: saying so panics.
#[hatchery::task]
fn fails_without_a_voice() -> Result<(), String> {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    rustix::stdio::dup2_stderr(&writer).unwrap();
    Err("nobody hears this".to_owned())
}

#[hatchery::test]
async fn a_worker_whose_thread_for_tasks_unwinds_dies_and_is_replaced() {
    let builder = Pool::builder().workers(1).max_tasks_per_worker(1).finaliser(fails_without_a_voice, ());
    let pool = ends("start", builder.start()).await.unwrap();
    let mut events = pool.tree().events();
    assert_eq!(ends("map", pool.map(square, 0..2).into_future()).await.unwrap(), [0, 1]);
    let exit = loop {
        if let TreeEvent::Exited { exit, .. } = ends("event", events.next()).await.unwrap() {
            break exit;
        }
    };
    assert_eq!(exit.signal(), Some(6), "{exit}");
    over(pool).await;
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("again")
    }
}

#[hatchery::task]
fn panics_twice() {
    std::panic::panic_any(Bomb)
}

#[hatchery::test]
async fn a_panic_whose_payload_panics_fails_its_task_alone() {
    let pool = pool(1).await;
    let before = ends("pid", pool.submit(own_pid, ())).await.unwrap();
    let error = ends("it", pool.submit(panics_twice, ())).await.unwrap_err();
    assert!(error.to_string().contains("a panic whose payload is no text"), "{error}");
    assert_eq!(ends("pid", pool.submit(own_pid, ())).await.unwrap(), before);
    over(pool).await;
}

#[hatchery::test]
async fn a_worker_that_hangs_in_its_finaliser_is_killed_and_replaced() {
    let builder = Pool::builder().workers(1).max_tasks_per_worker(1).finaliser(hangs, ());
    let pool = ends("start", builder.start()).await.unwrap();
    assert_eq!(ends("map", pool.map(square, 0..2).into_future()).await.unwrap(), [0, 1]);
    ends("terminate", pool.terminate()).await.unwrap();
}

/// Fails the second time.
#[hatchery::task]
fn fails_once(dir: PathBuf) -> Result<(), String> {
    let file = fs::File::options().append(true).create(true).open(dir.join("begun"));
    std::io::Write::write_all(&mut file.unwrap(), b"1").unwrap();
    if fs::metadata(dir.join("begun")).unwrap().len() == 2 { Err("bad luck".to_owned()) } else { Ok(()) }
}

#[hatchery::test]
async fn a_start_that_failed_is_forgotten_once_another_one_succeeded() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Pool::builder().workers(1).initializer(fails_once, dir.path().to_owned());
    let pool = ends("start", builder.start()).await.unwrap();
    assert!(ends("killer", pool.submit(aborts, ())).await.unwrap_err().is_worker_died());
    assert_eq!(ends("next", pool.submit(square, 3)).await.unwrap(), 9);
    assert_eq!(begun(&dir), 3);
    let _busy = pool.submit(hangs, ());
    becomes_true("it runs", || pool.stats().given == 1).await;
    let waits = pool.submit(square, 3);
    ends("stop", pool.tree().stop()).await.unwrap();
    let error = ends("waits", waits).await.unwrap_err();
    assert!(error.is_closed() && !error.is_init_failed(), "{error}");
}
