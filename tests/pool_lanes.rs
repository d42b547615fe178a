//! Several asynchronous tasks at a time in a worker of a pool.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use hatchery::prelude::*;
use hatchery_tests::{Dice, becomes_true, ends, runs, send};
use rustix::process::Signal;
use tokio::sync::Barrier;

use crate::pool_results::{over, own_pid, square};

async fn pool(workers: usize, concurrency: usize) -> Pool {
    ends("start", Pool::builder().workers(workers).concurrency(concurrency).start()).await.unwrap()
}

/// Ends when as many of them run in this process.
#[hatchery::task]
async fn meets(of: usize) -> u32 {
    static BARRIER: OnceLock<Barrier> = OnceLock::new();
    BARRIER.get_or_init(|| Barrier::new(of)).wait().await;
    std::process::id()
}

#[hatchery::test]
async fn as_many_asynchronous_tasks_run_in_a_worker_at_the_same_time_as_it_may_run() {
    let pool = pool(1, 16).await;
    for _ in 0..3 {
        let map = pool.map(meets, std::iter::repeat_n(16, 32)).chunk_size(1);
        let pids: BTreeSet<u32> = ends("map", map.into_future()).await.unwrap().into_iter().collect();
        assert_eq!(pids.len(), 1);
    }
    let jobs: Vec<_> = (0..16).map(|_| pool.submit(meets, 16)).collect();
    for job in jobs {
        ends("job", job).await.unwrap();
    }
    over(pool).await;
}

/// The most of them that ran in this process at the same time.
#[hatchery::task]
async fn crowd(_: u32) -> usize {
    static HERE: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let here = HERE.fetch_add(1, Ordering::Relaxed) + 1;
    MOST.fetch_max(here, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(2)).await;
    HERE.fetch_sub(1, Ordering::Relaxed);
    MOST.load(Ordering::Relaxed)
}

#[hatchery::test]
async fn no_more_of_them_run_at_the_same_time_than_may_and_one_unless_told_otherwise() {
    for concurrency in [1, 3] {
        let pool = pool(2, concurrency).await;
        let most = ends("map", pool.map(crowd, 0..60).into_future()).await.unwrap();
        assert!(most.iter().all(|most| *most <= concurrency), "{most:?}");
        over(pool).await;
    }
}

/// Says so when it is dropped, and does as it is told then.
struct Guard {
    dir: PathBuf,
    number: u64,
    panics: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        note(&self.dir, &format!("{} is dropped", self.number));
        if self.panics && !std::thread::panicking() {
            // Without a backtrace, which takes a busy machine seconds.
            std::panic::resume_unwind(Box::new("on its way out"));
        }
    }
}

fn note(dir: &Path, name: &str) {
    let mut file = fs::File::options().append(true).create(true).open(dir.join(name)).unwrap();
    file.write_all(b"1").unwrap();
}

fn notes(dir: &tempfile::TempDir, name: &str) -> usize {
    fs::read(dir.path().join(name)).unwrap_or_default().len()
}

/// Writes down that it runs, and does as it is told.
#[hatchery::task]
async fn acts(number: u64, how: String, dir: PathBuf) -> (u64, u32) {
    note(&dir, &format!("{number} runs"));
    let times = fs::read(dir.join(format!("{number} runs"))).unwrap().len();
    let guard = Guard { dir: dir.clone(), number, panics: how == "panics when dropped" };
    match &*how {
        "waits" => {
            while !dir.join("go").exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        "hangs" | "panics when dropped" => std::future::pending().await,
        "blocks" => loop {
            std::thread::park();
        },
        "pauses" => tokio::time::sleep(Duration::from_millis(2)).await,
        "aborts" => {
            tokio::task::yield_now().await;
            std::process::abort()
        }
        "panics" => {
            tokio::task::yield_now().await;
            panic!("no luck")
        }
        "panics once" => assert!(times > 1, "the first time"),
        "hangs once" if times == 1 => std::future::pending().await,
        "ok" | "hangs once" => tokio::task::yield_now().await,
        other => panic!("{other}"),
    }
    drop(guard);
    (number, std::process::id())
}

fn job(pool: &Pool, dir: &tempfile::TempDir, number: u64, how: &str) -> hatchery::Job<(u64, u32)> {
    pool.submit(acts, (number, how.to_owned(), dir.path().to_owned()))
}

fn inputs(
    dir: &tempfile::TempDir,
    how: impl Fn(u64) -> &'static str,
    count: u64,
) -> Vec<(u64, String, PathBuf)> {
    (0..count).map(|number| (number, how(number).to_owned(), dir.path().to_owned())).collect()
}

/// Waits until all of these run.
async fn run(dir: &tempfile::TempDir, numbers: std::ops::Range<u64>) {
    let all = || numbers.clone().all(|number| notes(dir, &format!("{number} runs")) > 0);
    becomes_true("they run", all).await;
}

#[hatchery::test]
async fn one_that_takes_too_long_is_dropped_and_the_others_go_on_in_the_same_process() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1, 8).await;
    let others: Vec<_> = (0..6).map(|number| job(&pool, &dir, number, "waits")).collect();
    let late = job(&pool, &dir, 6, "hangs");
    let panics = job(&pool, &dir, 7, "panics when dropped");
    run(&dir, 0..8).await;
    for (number, late) in [(6, late), (7, panics)] {
        let error = ends("the late one", late.timeout(Duration::from_millis(50))).await.unwrap_err();
        assert!(error.is_timeout() && error.maybe_executed() && !error.is_crash(), "{error}");
        assert_eq!(notes(&dir, &format!("{number} is dropped")), 1, "when its outcome is there");
    }
    let worker = ends("pid", pool.submit(own_pid, ())).await.unwrap();
    note(dir.path(), "go");
    for (number, other) in (0..).zip(others) {
        assert_eq!(ends("another", other).await.unwrap(), (number, worker));
    }
    assert_eq!(pool.stats().workers[0].restarts, 0);
    over(pool).await;
}

#[hatchery::test]
async fn one_that_is_cancelled_is_dropped_and_the_others_go_on_in_the_same_process() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1, 4).await;
    let other = job(&pool, &dir, 1_000, "waits");
    run(&dir, 1_000..1_001).await;
    for round in 0..50 {
        let first = round * 3;
        let [mut hangs, again, queued] =
            [0, 1, 2].map(|at| job(&pool, &dir, first + at, if at == 2 { "ok" } else { "hangs" }));
        run(&dir, first..first + 2).await;
        // Four run with it, or it waits for a moment more; then it is over.
        ends("the short one", queued).await.unwrap();
        if round % 2 == 0 {
            hangs.cancel();
            assert!(ends("cancelled", hangs).await.unwrap_err().is_cancelled());
            drop(again);
        } else {
            drop((hangs, again));
        }
        let dropped = || [0, 1].iter().all(|at| notes(&dir, &format!("{} is dropped", first + at)) == 1);
        becomes_true("they are dropped", dropped).await;
    }
    note(dir.path(), "go");
    let worker = ends("pid", pool.submit(own_pid, ())).await.unwrap();
    assert_eq!(ends("the other one", other).await.unwrap(), (1_000, worker));
    assert_eq!(pool.stats().workers[0].restarts, 0);
    over(pool).await;
}

#[hatchery::test]
async fn a_stream_that_is_dropped_ends_what_runs_of_it_begins_nothing_more_and_costs_no_worker() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1, 3).await;
    let before = ends("pid", pool.submit(own_pid, ())).await.unwrap();
    let how = |number| if number == 0 { "ok" } else { "hangs" };
    let mut results = pool.map(acts, inputs(&dir, how, 12)).chunk_size(4).unordered();
    assert_eq!(ends("next", results.next()).await.unwrap().unwrap(), (0, before));
    let running = [1, 4, 8];
    becomes_true("they run", || running.iter().all(|number| notes(&dir, &format!("{number} runs")) == 1))
        .await;
    drop(results);
    let dropped = || running.iter().all(|number| notes(&dir, &format!("{number} is dropped")) == 1);
    becomes_true("they are dropped", dropped).await;
    becomes_true("nothing is under way", || pool.stats().given == 0).await;
    for number in (2..12).filter(|number| !running.contains(number)) {
        assert_eq!(notes(&dir, &format!("{number} runs")), 0, "{number}");
    }
    assert_eq!(ends("pid", pool.submit(own_pid, ())).await.unwrap(), before);
    over(pool).await;
}

#[hatchery::task]
async fn never() {
    std::future::pending().await
}

#[hatchery::test]
async fn what_was_not_begun_is_told_also_where_the_ledger_has_no_room_for_that() {
    // Rings of 4 KiB.
    let pool = pool(1, 300).await;
    let before = ends("pid", pool.submit(own_pid, ())).await.unwrap();
    for _ in 0..5 {
        let mut results = pool.map(never, std::iter::repeat_n((), 20_000)).chunk_size(4_000).stream();
        let polled = std::future::poll_fn(|cx| {
            use std::future::Future;
            std::task::Poll::Ready(std::pin::pin!(results.next()).poll(cx).is_pending())
        });
        assert!(polled.await);
        becomes_true("it has some", || pool.stats().given > 0).await;
        drop(results);
        becomes_true("nothing is under way", || pool.stats().given == 0).await;
    }
    assert_eq!(ends("pid", pool.submit(own_pid, ())).await.unwrap(), before);
    over(pool).await;
}

#[hatchery::test]
async fn one_that_does_not_yield_costs_its_worker_and_those_beside_it_are_tried_again_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1, 4).await;
    let once = job(&pool, &dir, 0, "waits");
    let again = job(&pool, &dir, 1, "waits").retries(1);
    run(&dir, 0..2).await;
    let blocks = job(&pool, &dir, 2, "blocks");
    run(&dir, 2..3).await;
    let waits = job(&pool, &dir, 3, "waits");
    let behind: Vec<_> = (4..8).map(|number| job(&pool, &dir, number, "waits")).collect();
    let before = hatchery::active_children()[0].pid();
    let error = ends("it", blocks.timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(!runs(before));
    assert!(ends("beside it", once).await.unwrap_err().is_worker_died());
    note(dir.path(), "go");
    let (number, worker) = ends("tried again", again).await.unwrap();
    assert!(number == 1 && worker != before);
    // It was given to the worker, and had not begun.
    assert_eq!(ends("not begun", waits).await.unwrap(), (3, worker));
    for (number, job) in (4..).zip(behind) {
        assert_eq!(ends("behind", job).await.unwrap(), (number, worker));
    }
    let counts = (0..8).map(|number| notes(&dir, &format!("{number} runs")));
    assert_eq!(counts.collect::<Vec<_>>(), [1, 2, 1, 1, 1, 1, 1, 1]);
    over(pool).await;
}

#[hatchery::test]
async fn a_death_costs_those_that_ran_and_no_others() {
    for round in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(1, 4).await;
        let map = pool.map(acts, inputs(&dir, |_| "waits", 60)).chunk_size(1 + round).each();
        let killing = async {
            let running =
                || (0..60).filter(|number| notes(&dir, &format!("{number} runs")) > 0).collect::<Vec<_>>();
            becomes_true("as many run as may", || running().len() == 4).await;
            let ran = running();
            send(hatchery::active_children()[0].pid(), Signal::KILL);
            note(dir.path(), "go");
            ran
        };
        let (results, ran) = ends("both", async { tokio::join!(map, killing) }).await;
        for (number, result) in (0..).zip(results) {
            match result {
                Ok((result, _)) => assert!(result == number && !ran.contains(&number), "{number}"),
                Err(error) => assert!(ran.contains(&number) && error.is_worker_died(), "{number}: {error}"),
            }
            assert_eq!(notes(&dir, &format!("{number} runs")), 1, "runs of {number}");
        }
        over(pool).await;
    }
}

#[hatchery::test]
async fn random_kills_cost_no_more_than_all_that_ran_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2, 4).await;
    let kills = std::cell::Cell::new(0);
    let work = pool.map(acts, inputs(&dir, |_| "ok", 2_000)).chunk_size(8).each();
    let killing = async {
        let mut dice = Dice::new(11);
        for _ in 0..15 {
            tokio::time::sleep(Duration::from_millis(1 + dice.throw(10))).await;
            let workers = hatchery::active_children();
            if let Some(victim) = workers.get(dice.throw(2) as usize).filter(|worker| runs(worker.pid())) {
                send(victim.pid(), Signal::KILL);
                kills.set(kills.get() + 1);
            }
        }
    };
    let (results, ()) = ends("both", async { tokio::join!(work, killing) }).await;
    let failed = results.iter().filter(|result| result.is_err()).count();
    assert!(failed <= 4 * kills.get(), "{failed} failures after {} kills", kills.get());
    for (number, result) in (0..).zip(results) {
        match result {
            Ok((value, _)) => assert_eq!(value, number),
            Err(error) => assert!(error.is_worker_died(), "{error}"),
        }
        assert!(notes(&dir, &format!("{number} runs")) <= 1, "{number} ran twice");
    }
    over(pool).await;
}

#[hatchery::test]
async fn with_retries_all_results_are_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2, 5).await;
    let how = |number: u64| match number % 10 {
        3 => "panics once",
        6 => "hangs once",
        _ => "ok",
    };
    let map = pool.map(acts, inputs(&dir, how, 100)).chunk_size(7).retries(1);
    let results = ends("map", map.timeout(Duration::from_secs(2)).into_future()).await.unwrap();
    assert!(results.iter().map(|(number, _)| *number).eq(0..100));
    for number in 0..100 {
        let runs = notes(&dir, &format!("{number} runs"));
        assert_eq!(runs, 1 + usize::from(how(number) != "ok"), "runs of {number}");
    }
    let stats = pool.stats();
    assert_eq!(stats.retried, 20);
    assert!(stats.workers.iter().all(|worker| worker.restarts == 0), "nobody had to be killed: {stats:?}");
    over(pool).await;
}

#[hatchery::test]
async fn tasks_that_kill_each_worker_cost_those_beside_them_one_try_at_most() {
    for workers in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(workers, 4).await;
        let is_deadly = |number: u64| number % 20 == 7;
        let how = |number| if is_deadly(number) { "aborts" } else { "pauses" };
        let results = pool.map(acts, inputs(&dir, how, 54)).chunk_size(3).retries(1).each();
        let results = ends("all", results).await;
        assert_eq!(results.len(), 54);
        for (number, result) in (0..).zip(results) {
            let runs = notes(&dir, &format!("{number} runs"));
            match result {
                Ok((value, _)) => assert!(value == number && !is_deadly(number) && runs <= 2, "{number}"),
                Err(error) => {
                    assert!(is_deadly(number) && error.is_poisoned(), "{number}: {error}");
                    assert_eq!((error.deaths(), runs), (Some(2), 2), "{number}");
                }
            }
        }
        let restarts: u64 = pool.stats().workers.iter().map(|worker| worker.restarts).sum();
        assert!(
            (4..=6).contains(&restarts),
            "three were deadly, twice, and the first time side by side at best"
        );
        over(pool).await;
    }
}

#[hatchery::test]
async fn one_that_does_not_yield_costs_those_beside_it_one_try_however_often_it_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1, 4).await;
    let blocks = job(&pool, &dir, 100, "blocks").timeout(Duration::from_millis(20)).retries(2);
    run(&dir, 100..101).await;
    // They begin when the worker has been killed, and when another one has it; or run beside it.
    let others = pool.map(acts, inputs(&dir, |_| "pauses", 40)).retries(1).poison_after(1).into_future();
    let (others, blocks) = ends("both", async { tokio::join!(others, blocks) }).await;
    assert!(others.unwrap().iter().map(|(number, _)| *number).eq(0..40));
    assert!(blocks.unwrap_err().is_timeout());
    assert_eq!(notes(&dir, "100 runs"), 3);
    over(pool).await;
}

#[hatchery::test]
async fn a_panic_fails_its_task_alone() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1, 4).await;
    let others: Vec<_> = (0..3).map(|number| job(&pool, &dir, number, "waits")).collect();
    run(&dir, 0..3).await;
    let error = ends("it", job(&pool, &dir, 3, "panics")).await.unwrap_err();
    assert_eq!(error.panic().unwrap().message, "no luck");
    note(dir.path(), "go");
    let worker = ends("pid", pool.submit(own_pid, ())).await.unwrap();
    for (number, other) in (0..).zip(others) {
        assert_eq!(ends("another", other).await.unwrap(), (number, worker));
    }
    over(pool).await;
}

static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// Runs by itself, if it does.
#[hatchery::task]
fn by_itself(x: u64) -> u64 {
    assert_eq!(INSIDE.fetch_add(1, Ordering::SeqCst), 0, "another one runs");
    std::thread::yield_now();
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    x
}

/// Comes and goes, between those that run by themselves.
#[hatchery::task]
async fn between(x: u64) -> u64 {
    for _ in 0..3 {
        assert_eq!(INSIDE.load(Ordering::SeqCst), 0, "a synchronous one runs");
        tokio::task::yield_now().await;
    }
    x + 1
}

#[hatchery::test]
async fn synchronous_tasks_run_one_at_a_time_beside_asynchronous_ones() {
    let pool = pool(2, 6).await;
    for chunk in [1, 20] {
        let sync = pool.map(by_itself, 0..400).chunk_size(chunk).into_future();
        let more = pool.map(by_itself, 0..400).into_future();
        let others = pool.map(between, 0..400).chunk_size(chunk).into_future();
        let all = async { tokio::join!(sync, more, others) };
        let (sync, more, others) = ends("all", all).await;
        assert!(sync.unwrap().into_iter().eq(0..400) && more.unwrap().into_iter().eq(0..400));
        assert!(others.unwrap().into_iter().eq(1..401));
    }
    over(pool).await;
}

/// What a worker has counted since its state was built.
struct Count {
    here: u64,
    lent: bool,
}

#[hatchery::state]
fn nothing_counted() -> Count {
    Count { here: 0, lent: false }
}

/// Has the state for itself, also while it waits.
#[hatchery::task]
async fn one_more(tally: &mut Count, x: u64) -> u64 {
    assert!(!std::mem::replace(&mut tally.lent, true), "somebody else has it");
    tokio::time::sleep(Duration::from_micros(100)).await;
    assert!(x % 50 != 49, "at {x}");
    tally.lent = false;
    tally.here += 1;
    tally.here
}

#[hatchery::test]
async fn tasks_that_borrow_state_run_one_at_a_time_beside_others_and_it_is_built_anew_after_a_panic() {
    let pool = ends("start", Pool::builder().workers(1).concurrency(4).state(nothing_counted, ()).start())
        .await
        .unwrap();
    let counted = pool.map(one_more, 0..100).chunk_size(10).each();
    let others = pool.map(between, 0..200).into_future();
    let (counted, others) = ends("both", async { tokio::join!(counted, others) }).await;
    assert!(others.unwrap().into_iter().eq(1..201));
    let (lost, counted): (Vec<_>, Vec<_>) = counted.into_iter().partition(Result::is_err);
    assert_eq!(lost.len(), 2);
    assert!(lost.into_iter().all(|lost| lost.unwrap_err().to_string().contains("at ")));
    let counted: Vec<_> = counted.into_iter().map(Result::unwrap).collect();
    assert!(counted.iter().copied().eq((1..=49).chain(1..=49)), "{counted:?}");
    assert_eq!(pool.stats().workers[0].restarts, 0);
    over(pool).await;
}

#[hatchery::task]
async fn text(length: usize) -> String {
    tokio::task::yield_now().await;
    "x".repeat(length)
}

#[hatchery::test]
async fn large_results_travel_among_small_ones_of_all_lanes() {
    for concurrency in [2, 300] {
        let pool = pool(1, concurrency).await;
        let lengths: Vec<usize> = (0..400)
            .map(|at| match at % 10 {
                3 => 100_000,
                5 => 5_000,
                _ => at,
            })
            .collect();
        for chunk in [1, 30] {
            let texts = pool.map(text, lengths.clone()).chunk_size(chunk).into_future();
            let texts = ends("map", texts).await.unwrap();
            assert!(texts.iter().map(String::len).eq(lengths.iter().copied()), "chunks of {chunk}");
        }
        over(pool).await;
    }
}

struct Adder(u64);

#[hatchery::actor]
impl Adder {
    fn start(sum: u64) -> Adder {
        Adder(sum)
    }

    fn add(&mut self, x: u64) -> u64 {
        self.0 += x;
        self.0
    }
}

/// Uses what a runtime has, and asks an actor of another process.
#[hatchery::task]
async fn at_home(adder: AdderHandle, x: u64) -> u64 {
    let (here, there) = tokio::net::UnixStream::pair().unwrap();
    let other = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        there.writable().await.unwrap();
        assert_eq!(there.try_write(&x.to_le_bytes()).unwrap(), 8);
    });
    let mut read = [0; 8];
    other.await.unwrap();
    here.readable().await.unwrap();
    assert_eq!(here.try_read(&mut read).unwrap(), 8);
    adder.add(u64::from_le_bytes(read)).await.unwrap()
}

#[hatchery::test]
async fn tasks_beside_each_other_have_timers_sockets_tasks_and_handles() {
    let tree = Supervisor::new(Strategy::OneForOne).name("sums").child(local::<Adder>("adder", 0)).start();
    let tree = ends("start", tree).await.unwrap();
    let adder = tree.get::<Adder>("adder").unwrap();
    let pool = pool(2, 10).await;
    let sums = pool.map(at_home, (0..100).map(|x| (adder.clone(), x))).into_future();
    let sums = ends("map", sums).await.unwrap();
    assert_eq!(sums.into_iter().max(), Some(99 * 100 / 2));
    over(pool).await;
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_worker_of_several_lanes_is_replaced_when_it_has_run_as_many_tasks_as_it_may() {
    let builder = Pool::builder().workers(2).concurrency(3).max_tasks_per_worker(4);
    let pool = ends("start", builder.start()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let results = ends("map", pool.map(acts, inputs(&dir, |_| "ok", 30)).into_future()).await.unwrap();
    let mut counts = BTreeMap::new();
    results.iter().for_each(|(_, worker)| *counts.entry(worker).or_insert(0) += 1);
    assert!(counts.values().all(|count| *count <= 4) && counts.len() >= 8, "{counts:?}");
    over(pool).await;
}

#[hatchery::test]
async fn those_that_run_when_their_pool_ends_run_to_their_end_or_are_ended() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1, 4).await;
    let jobs: Vec<_> = (0..4).map(|number| job(&pool, &dir, number, "waits")).collect();
    let waits = job(&pool, &dir, 4, "waits");
    run(&dir, 0..4).await;
    pool.close();
    note(dir.path(), "go");
    ends("join", pool.join()).await.unwrap();
    for (number, job) in (0..).zip(jobs.into_iter().chain([waits])) {
        assert_eq!(ends("job", job).await.unwrap().0, number);
    }

    let pool = self::pool(1, 4).await;
    let jobs: Vec<_> = (10..16).map(|number| job(&pool, &dir, number, "hangs")).collect();
    run(&dir, 10..14).await;
    ends("terminate", pool.terminate()).await.unwrap();
    for job in jobs {
        assert!(ends("job", job).await.unwrap_err().is_closed());
    }
    assert!(hatchery::active_children().is_empty());
}

#[hatchery::test]
async fn a_worker_that_is_told_to_stop_begins_nothing_more_and_finishes_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::builder().workers(1).concurrency(3).spec("pool");
    let tree =
        ends("start", Supervisor::new(Strategy::OneForOne).name("lanes").child(pool).start()).await.unwrap();
    let pool = tree.get::<Pool>("pool").unwrap();
    let map = pool.map(acts, inputs(&dir, |_| "waits", 9)).chunk_size(3).each();
    let stopping = async {
        becomes_true("they run", || [0, 3, 6].iter().all(|at| notes(&dir, &format!("{at} runs")) == 1)).await;
        let go = async { note(dir.path(), "go") };
        // The stop is on its way when they can end.
        tokio::join!(biased; tree.stop(), go).0.unwrap();
    };
    let (results, ()) = ends("both", async { tokio::join!(map, stopping) }).await;
    for (number, result) in (0..9).zip(results) {
        let ran = notes(&dir, &format!("{number} runs")) == 1;
        match result {
            Ok((result, _)) => assert!(ran && result == number),
            Err(error) => assert!(!ran && error.is_closed(), "{number}: {error}"),
        }
    }
    assert!(ends("square", pool.submit(square, 3)).await.unwrap_err().is_closed());
}
