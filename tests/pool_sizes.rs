//! How many workers a pool has, how large they are, and what it tells of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use hatchery::TreeEvent;
use hatchery::prelude::*;
use hatchery_tests::{Dice, becomes_true, ends, runs, send};
use rustix::process::Signal;

use crate::pool_results::{over, own_pid, pool, square};

/// The workers of this test.
fn workers() -> BTreeSet<u32> {
    hatchery::active_children().iter().map(|child| child.pid()).collect()
}

/// What workers of a pool are called that are there.
fn names(pool: &Pool) -> Vec<String> {
    pool.stats().workers.into_iter().map(|worker| worker.name).collect()
}

/// Writes down that it runs, and takes a while.
#[hatchery::task]
fn takes(number: u64, millis: u64, dir: PathBuf) -> u32 {
    let mut file = fs::File::options().append(true).create(true).open(dir.join(number.to_string())).unwrap();
    file.write_all(b"1").unwrap();
    std::thread::sleep(Duration::from_millis(millis));
    std::process::id()
}

/// How often one of these has run.
fn times(dir: &Path, number: u64) -> usize {
    fs::read(dir.join(number.to_string())).unwrap_or_default().len()
}

/// Ends when there is a file of that name.
#[hatchery::task]
fn waits(gate: PathBuf) -> u32 {
    while fs::metadata(&gate).is_err() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    std::process::id()
}

/// Keeps so much memory.
#[hatchery::task]
fn hoards(mebibytes: usize) -> u32 {
    std::mem::forget(std::hint::black_box(vec![1_u8; mebibytes << 20]));
    std::process::id()
}

/// Counts its runs, and fails when the gate is closed.
#[hatchery::task]
fn needs(dir: PathBuf) -> hatchery::Result<()> {
    let file = fs::File::options().append(true).create(true).open(dir.join("begun"));
    file.unwrap().write_all(b"1").unwrap();
    fs::metadata(dir.join("gate")).map(drop).map_err(|_| hatchery::Error::msg("the gate is closed"))
}

#[hatchery::test]
async fn a_pool_takes_the_size_that_it_is_given_and_refuses_to_have_none() {
    let pool = pool(1).await;
    let first = workers();
    ends("three", pool.resize(3)).await.unwrap();
    assert_eq!(names(&pool), ["worker-0", "worker-1", "worker-2"]);
    assert!(workers().len() == 3 && workers().is_superset(&first));
    assert!(pool.stats().workers.iter().all(|worker| worker.pid.is_some()));
    ends("two", pool.resize(2)).await.unwrap();
    assert_eq!(workers().len(), 2);
    ends("the same", pool.resize(2)).await.unwrap();
    ends("four", pool.resize(4)).await.unwrap();
    assert_eq!(names(&pool), ["worker-0", "worker-1", "worker-2", "worker-3"]);
    let error = ends("none", pool.resize(0)).await.unwrap_err();
    assert!(error.to_string().contains("ask for 1 at least"), "{error}");
    assert_eq!(ends("map", pool.map(square, 0..100).into_future()).await.unwrap().len(), 100);
    ends("one", pool.resize(1)).await.unwrap();
    assert_eq!(ends("map", pool.map(square, 0..100).into_future()).await.unwrap().len(), 100);
    assert_eq!(workers().len(), 1);
    let another = pool.clone();
    over(pool).await;
    assert!(ends("too late", another.resize(2)).await.unwrap_err().is_closed());
    assert!(workers().is_empty());
}

#[hatchery::test]
async fn sizes_that_change_under_load_lose_no_task_and_run_none_twice() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    let inputs = (0..2_000).map(|number| (number, number % 7 / 6, dir.path().to_owned()));
    let work = pool.map(takes, inputs).chunk_size(8).each();
    let sizes = async {
        for size in [4, 1, 3, 2, 5, 1, 2, 4, 3, 1, 2] {
            pool.resize(size).await.unwrap();
            assert_eq!(pool.stats().workers.len(), size);
        }
    };
    let (results, ()) = ends("both", async { tokio::join!(work, sizes) }).await;
    for (number, result) in (0..).zip(results) {
        assert!(result.is_ok(), "{number}: {result:?}");
        assert_eq!(times(dir.path(), number), 1, "runs of {number}");
    }
    assert_eq!(workers().len(), 2);
    over(pool).await;
}

#[hatchery::test]
async fn kills_while_the_size_changes_cost_no_more_tasks_than_there_are_kills() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Pool::builder().workers(2).intensity(1_000, Duration::from_secs(60));
    let pool = ends("start", builder.start()).await.unwrap();
    let inputs = (0..1_500).map(|number| (number, number % 5 / 4, dir.path().to_owned()));
    let work = pool.map(takes, inputs).chunk_size(8).each();
    let kills = std::cell::Cell::new(0);
    let changes = async {
        let mut dice = Dice::new(11);
        for _ in 0..12 {
            let killing = async {
                tokio::time::sleep(Duration::from_millis(dice.throw(10))).await;
                let workers: Vec<_> = workers().into_iter().filter(|worker| runs(*worker)).collect();
                if !workers.is_empty() {
                    send(workers[dice.throw(workers.len() as u64) as usize], Signal::KILL);
                    kills.set(kills.get() + 1);
                }
            };
            // One that is killed while it starts has not started.
            let size = 1 + kills.get() % 4;
            let (_, ()) = tokio::join!(pool.resize(size), killing);
        }
        pool.resize(2).await.unwrap();
    };
    let (results, ()) = ends("both", async { tokio::join!(work, changes) }).await;
    let failed = results.iter().filter(|result| result.is_err()).count();
    assert!(failed <= kills.get(), "{failed} failures after {} kills", kills.get());
    for (number, result) in (0..).zip(results) {
        match result {
            Ok(_) => assert_eq!(times(dir.path(), number), 1, "runs of {number}"),
            Err(error) => assert!(error.is_worker_died() && times(dir.path(), number) <= 1, "{error}"),
        }
    }
    assert_eq!(pool.stats().workers.len(), 2);
    assert_eq!(ends("map", pool.map(square, 0..100).into_future()).await.unwrap().len(), 100);
    over(pool).await;
}

#[hatchery::test]
async fn who_leaves_ends_its_task_and_has_others_run_the_rest_of_its_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    let before = workers();
    let inputs = (0..100).map(|number| (number, 20, dir.path().to_owned()));
    let work = tokio::spawn(pool.map(takes, inputs.collect::<Vec<_>>()).chunk_size(50).into_future());
    becomes_true("both work", || pool.stats().workers.iter().all(|worker| worker.tasks > 0)).await;
    ends("one leaves", pool.resize(1)).await.unwrap();
    let left: Vec<_> = before.difference(&workers()).copied().collect();
    assert_eq!(left.len(), 1);
    let mut counts = BTreeMap::new();
    for runner in ends("the others", work).await.unwrap().unwrap() {
        *counts.entry(runner).or_insert(0) += 1;
    }
    assert!((1..50).contains(&counts[&left[0]]), "{counts:?}");
    assert!((0..100).all(|number| times(dir.path(), number) == 1));
    over(pool).await;
}

#[hatchery::test]
async fn a_size_that_cannot_be_had_is_an_error_and_the_pool_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    fs::write(&gate, "").unwrap();
    let builder = Pool::builder().workers(1).initializer(needs, dir.path().to_owned());
    let pool = ends("start", builder.start()).await.unwrap();
    let before = workers();
    fs::remove_file(&gate).unwrap();
    let error = ends("more", pool.resize(3)).await.unwrap_err();
    assert!(error.to_string().contains("the gate is closed"), "{error}");
    assert_eq!(workers(), before);
    assert_eq!(fs::read(dir.path().join("begun")).unwrap().len(), 3, "nothing is tried again");
    assert_eq!(ends("map", pool.map(square, 0..100).into_future()).await.unwrap().len(), 100);
    fs::write(&gate, "").unwrap();
    ends("more", pool.resize(3)).await.unwrap();
    assert_eq!(workers().len(), 3);
    over(pool).await;
}

#[hatchery::test]
async fn of_sizes_that_are_asked_for_at_once_the_last_one_counts() {
    let pool = pool(2).await;
    let all = async { tokio::join!(pool.resize(4), pool.resize(1), pool.resize(3)) };
    let (one, two, three) = ends("all", all).await;
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    assert_eq!(workers().len(), 3);
    // Given up half-way, it comes about all the same.
    drop(tokio::time::timeout(Duration::ZERO, pool.resize(1)).await);
    becomes_true("one is left", || workers().len() == 1).await;
    over(pool).await;
}

#[hatchery::test]
async fn a_pool_of_a_tree_has_the_size_of_its_spec_again_when_it_is_started_again() {
    let pool = Pool::builder().workers(2).spec("pool");
    let tree = Supervisor::new(Strategy::OneForOne).name("works").child(pool).start();
    let tree = ends("start", tree).await.unwrap();
    let pool = tree.get::<Pool>("pool").unwrap();
    for size in [4, 1] {
        ends("resize", pool.resize(size)).await.unwrap();
        assert_eq!(workers().len(), size);
        let mut events = tree.events();
        ends("terminate", pool.terminate()).await.unwrap();
        let again =
            |event: &TreeEvent| matches!(event, TreeEvent::Started { path, .. } if path == "/works/pool");
        while !again(&ends("event", events.next()).await.unwrap()) {}
        assert_eq!((workers().len(), names(&pool).len()), (2, 2));
        assert_eq!(ends("map", pool.map(square, 1..4).into_future()).await.unwrap(), [1, 4, 9]);
    }
    ends("stop", tree.stop()).await.unwrap();
    assert!(ends("too late", pool.resize(2)).await.unwrap_err().is_closed());
    assert!(workers().is_empty());
}

#[hatchery::test]
async fn workers_start_when_tasks_wait_and_leave_when_there_is_nothing_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let builder = Pool::builder().workers(3).min_workers(0).idle_timeout(Duration::from_millis(50));
    let pool = ends("start", builder.start()).await.unwrap();
    assert!(workers().is_empty());
    let have_left = || workers().is_empty() && pool.stats().workers.is_empty();
    let jobs: Vec<_> = (0..7).map(|_| pool.submit(waits, gate.clone())).collect();
    becomes_true("all are busy", || pool.stats().given == 3).await;
    assert_eq!((workers().len(), pool.stats().waiting), (3, 4));
    fs::write(&gate, "").unwrap();
    for job in jobs {
        ends("job", job).await.unwrap();
    }
    becomes_true("all have left", have_left).await;
    assert_eq!(ends("another one", pool.submit(square, 3)).await.unwrap(), 9);
    becomes_true("it has left, too", have_left).await;
    over(pool).await;

    let builder = Pool::builder().workers(2).idle_timeout(Duration::ZERO);
    let pool = ends("start", builder.start()).await.unwrap();
    let first = workers();
    assert_eq!(first.len(), 1);
    assert_eq!(ends("map", pool.map(square, 0..1_000).into_future()).await.unwrap().len(), 1_000);
    becomes_true("one stays", || pool.stats().workers.len() == 1 && workers().len() == 1).await;
    ends("terminate", pool.terminate()).await.unwrap();

    let error = ends("start", Pool::builder().workers(2).min_workers(3).start()).await.unwrap_err();
    assert!(error.to_string().contains("lower `min_workers`"), "{error}");
}

#[hatchery::test]
async fn a_pool_without_workers_whose_starts_all_fail_ends_and_there_is_no_storm() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Pool::builder().workers(2).min_workers(0).intensity(2, Duration::from_secs(60));
    let pool = builder.initializer(needs, dir.path().to_owned()).start();
    let pool = ends("start", pool).await.unwrap();
    let error = ends("job", pool.submit(square, 3)).await.unwrap_err();
    assert!(error.is_init_failed() && error.to_string().contains("the gate is closed"), "{error}");
    assert_eq!(fs::read(dir.path().join("begun")).unwrap().len(), 3);
    assert!(ends("join", pool.join()).await.is_err());
    assert!(workers().is_empty());
}

#[hatchery::test]
async fn a_pool_without_workers_ends_when_it_is_stopped() {
    let tree = Supervisor::new(Strategy::OneForOne).name("works");
    let tree = tree.child(Pool::builder().min_workers(0).spec("pool"));
    let tree = ends("start", tree.start()).await.unwrap();
    let pool = tree.get::<Pool>("pool").unwrap();
    ends("stop", tree.stop()).await.unwrap();
    assert!(ends("too late", pool.submit(square, 3)).await.unwrap_err().is_closed());
}

#[hatchery::test]
async fn a_worker_that_has_too_much_memory_is_replaced_after_its_task_and_nothing_is_lost() {
    let small = pool(1).await;
    let usual = small.stats().workers[0].memory.unwrap();
    over(small).await;
    let builder = Pool::builder().workers(1).max_rss(usual + (64 << 20));
    let pool = ends("start", builder.start()).await.unwrap();
    // Some is not too much.
    let first = ends("hoards", pool.submit(hoards, 8)).await.unwrap();
    assert_eq!(ends("pid", pool.submit(own_pid, ())).await.unwrap(), first);
    let mut events = pool.tree().events();
    assert_eq!(ends("hoards", pool.submit(hoards, 100)).await.unwrap(), first);
    let exit = loop {
        if let TreeEvent::Exited { exit, .. } = ends("event", events.next()).await.unwrap() {
            break exit;
        }
    };
    assert!(exit.signal().is_none() && exit.reason().is_none(), "{exit}");
    becomes_true("another one is there", || pool.stats().workers[0].pid.is_some_and(|pid| pid != first))
        .await;
    assert_eq!(pool.stats().workers[0].restarts, 1);

    // It has too much from the first task of its chunk on, and is at the second one when that is seen.
    let dir = tempfile::tempdir().unwrap();
    let hoard = pool.submit(hoards, 100);
    let inputs = (0..40).map(|number| (number, 50, dir.path().to_owned()));
    let work = pool.map(takes, inputs).chunk_size(40).into_future();
    let (hoarder, runners) = ends("both", async { tokio::join!(hoard, work) }).await;
    let (hoarder, runners) = (hoarder.unwrap(), runners.unwrap());
    let there = runners.iter().filter(|runner| **runner == hoarder).count();
    assert!(there < 40, "{there} tasks");
    assert!((0..40).all(|number| times(dir.path(), number) == 1));
    assert!(!runs(hoarder));
    over(pool).await;
}

#[hatchery::test]
async fn a_pool_tells_of_its_workers_what_they_do_and_what_they_use() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    let job = pool.submit(waits, dir.path().join("gate"));
    becomes_true("it runs", || pool.stats().given == 1).await;
    let busy = |worker: &hatchery::WorkerStats| worker.running.is_some_and(|age| age.as_millis() >= 20);
    becomes_true("it has run for a while", || pool.stats().workers.iter().any(busy)).await;
    let stats = pool.stats();
    let pids: BTreeSet<u32> = stats.workers.iter().filter_map(|worker| worker.pid).collect();
    assert_eq!(pids, workers());
    assert!(stats.workers.iter().all(|worker| worker.memory.is_some_and(|bytes| bytes > 1 << 20)));
    let works: Vec<_> = stats.workers.iter().filter(|worker| worker.given == 1).collect();
    assert!(works.len() == 1 && works[0].busy.as_millis() >= 20, "{stats}");
    let drawn = stats.to_string();
    assert!(drawn.starts_with("0 done, 0 failed, 0 retried, 0 waiting, 1 given"), "{drawn}");
    assert!(drawn.lines().count() == 4 && drawn.contains("busy") && drawn.contains("idle"), "{drawn}");
    fs::write(dir.path().join("gate"), "").unwrap();
    ends("job", job).await.unwrap();
    let stats = pool.stats();
    assert!(stats.workers.iter().all(|worker| worker.running.is_none()) && stats.done == 1, "{stats}");
    // It may be given to anybody.
    assert_eq!(ends("echo", pool.submit(echo, stats.clone())).await.unwrap(), stats);
    over(pool).await;
}

#[hatchery::task]
fn echo(stats: hatchery::PoolStats) -> hatchery::PoolStats {
    stats
}

#[hatchery::test]
async fn progress_is_told_when_something_has_changed_and_not_too_often_and_ends_with_the_pool() {
    let pool = pool(2).await;
    let every = Duration::from_millis(20);
    let mut progress = pool.progress().every(every);
    let begun = std::time::Instant::now();
    let first = ends("the first", progress.next()).await.unwrap();
    assert_eq!((first.done, first.waiting, first.given), (0, 0, 0));
    let follows = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(now) = progress.next().await {
            all.push((now, begun.elapsed()));
        }
        all
    });
    let dir = tempfile::tempdir().unwrap();
    let inputs = (0..100).map(|number| (number, 2, dir.path().to_owned()));
    assert_eq!(ends("map", pool.map(takes, inputs).chunk_size(1).into_future()).await.unwrap().len(), 100);
    over(pool).await;
    let all = ends("its end", follows).await.unwrap();
    let (last, _) = all.last().unwrap();
    assert_eq!((last.done, last.finished(), last.workers), (100, 100, 0));
    assert!(all.windows(2).all(|pair| pair[0].0 != pair[1].0 && pair[0].0.done <= pair[1].0.done));
    for (before, (_, at)) in (0_u32..).zip(&all) {
        assert!(*at >= every * before, "item {before} came after {at:?}");
    }
    assert!(all.iter().any(|(now, _)| now.given > 0), "{all:?}");
}

#[hatchery::test]
async fn whoever_follows_the_progress_of_a_pool_keeps_it_from_nothing() {
    let pool = pool(1).await;
    let mut progress = pool.progress().every(Duration::from_millis(1));
    drop(pool);
    let mut last = None;
    while let Some(now) = ends("an item", progress.next()).await {
        last = Some(now);
    }
    assert_eq!(last.unwrap().workers, 0);
    assert!(workers().is_empty());
    assert_eq!(ends("the end", progress.next()).await, None);
}
