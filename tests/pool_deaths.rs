//! What a death costs in a pool: the one task that ran.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use hatchery::TaskError;
use hatchery::prelude::*;
use hatchery_tests::{Dice, becomes_true, ends, eventually, runs, send};
use rustix::process::Signal;

use crate::pool_results::{over, own_pid, pool, square};

/// Writes down that it runs, and does as it is told.
#[hatchery::task]
pub(crate) fn acts(number: u64, how: String, dir: PathBuf) -> u64 {
    note(&dir, number);
    match &*how {
        "ok" => {}
        "kill" => {
            send(std::process::id(), Signal::KILL);
            loop {
                std::thread::park();
            }
        }
        "abort" => std::process::abort(),
        "exit" => std::process::exit(0),
        "hang" => loop {
            std::thread::park();
        },
        "once" => {
            if times(&dir, number) == 1 {
                std::process::abort()
            }
        }
        "panics once" => assert!(times(&dir, number) > 1, "the first time"),
        "hangs once" => {
            while times(&dir, number) == 1 {
                std::thread::park();
            }
        }
        other => panic!("{other}"),
    }
    number
}

/// One more run of this number.
pub(crate) fn note(dir: &Path, number: u64) {
    let mut file = fs::File::options().append(true).create(true).open(dir.join(number.to_string())).unwrap();
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).unwrap();
}

pub(crate) fn times(dir: &Path, number: u64) -> usize {
    fs::read_to_string(dir.join(number.to_string())).unwrap_or_default().lines().count()
}

/// The process that ran it last.
fn runner(dir: &Path, number: u64) -> Option<u32> {
    fs::read_to_string(dir.join(number.to_string())).ok()?.lines().last()?.parse().ok()
}

/// Waits until it runs, and says in which process.
pub(crate) async fn runs_in(dir: &Path, number: u64) -> u32 {
    becomes_true("it runs", || runner(dir, number).is_some()).await;
    runner(dir, number).unwrap()
}

fn inputs(
    dir: &tempfile::TempDir,
    how: impl Fn(u64) -> &'static str,
    count: u64,
) -> Vec<(u64, String, PathBuf)> {
    (0..count).map(|number| (number, how(number).to_owned(), dir.path().to_owned())).collect()
}

/// Everything ran exactly once, and just those that were to fail have failed.
fn check(results: Vec<Result<u64, TaskError>>, dir: &tempfile::TempDir, fails: impl Fn(u64) -> bool) {
    for (number, result) in (0..).zip(results) {
        match result {
            Ok(value) => assert!(value == number && !fails(number), "{number}"),
            Err(error) => assert!(fails(number) && error.is_worker_died(), "{number}: {error}"),
        }
        assert_eq!(times(dir.path(), number), 1, "runs of {number}");
    }
}

#[hatchery::test]
async fn one_death_costs_the_one_task_that_ran() {
    let pool = pool(2).await;
    for how in ["kill", "abort", "exit"] {
        let dir = tempfile::tempdir().unwrap();
        let fails = |number: u64| number % 40 == 7;
        let inputs = inputs(&dir, |number| if fails(number) { how } else { "ok" }, 200);
        let results = ends("each", pool.map(acts, inputs).chunk_size(20).each()).await;
        let exit = results[7].as_ref().unwrap_err().exit().unwrap().clone();
        match how {
            "kill" => assert_eq!(exit.signal(), Some(9)),
            "abort" => assert_eq!(exit.signal(), Some(6)),
            _ => assert_eq!(exit.code(), Some(0)),
        }
        check(results, &dir, fails);
    }
    assert_eq!(ends("map", pool.map(square, 0..10).into_future()).await.unwrap().len(), 10);
    over(pool).await;
}

#[hatchery::test]
async fn of_10_000_tasks_those_fail_that_were_killed_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |number: u64| number % 100 == 42;
    let pool = pool(2).await;
    let killer = tokio::task::spawn_blocking({
        let dir = dir.path().to_owned();
        move || {
            let mut to_kill: Vec<u64> = (0..10_000).filter(|number| fails(*number)).collect();
            // In whatever order they run: those that hang keep others from it until they are killed.
            while !to_kill.is_empty() {
                eventually("one of them runs", || {
                    to_kill.iter().any(|number| runner(&dir, *number).is_some())
                });
                to_kill.retain(|number| {
                    runner(&dir, *number).is_none_or(|pid| {
                        send(pid, Signal::KILL);
                        false
                    })
                });
            }
        }
    });
    let inputs = inputs(&dir, |number| if fails(number) { "hang" } else { "ok" }, 10_000);
    let results =
        tokio::time::timeout(Duration::from_secs(120), pool.map(acts, inputs).each()).await.unwrap();
    killer.await.unwrap();
    check(results, &dir, fails);
    over(pool).await;
}

#[hatchery::test]
async fn of_10_000_tasks_of_which_100_are_killed_once_all_results_are_there_with_one_retry() {
    let dir = tempfile::tempdir().unwrap();
    let dies = |number: u64| number % 100 == 42;
    let pool = pool(2).await;
    let inputs = inputs(&dir, |number| if dies(number) { "once" } else { "ok" }, 10_000);
    let results = tokio::time::timeout(Duration::from_secs(120), pool.map(acts, inputs).retries(1).each());
    for (number, result) in (0..).zip(results.await.unwrap()) {
        assert_eq!(result.unwrap(), number);
        assert_eq!(times(dir.path(), number), 1 + usize::from(dies(number)), "runs of {number}");
    }
    over(pool).await;
}

/// The same; the second one not before the first has begun.
#[hatchery::task]
fn acts_in_turn(number: u64, how: String, dir: PathBuf) -> u64 {
    if number == 1 {
        eventually("the first one runs", || times(&dir, 0) > 0);
    }
    acts(number, how, dir)
}

#[hatchery::test]
async fn where_an_error_ends_all_it_ends_what_runs_and_nothing_more_begins() {
    for how in ["abort", "other"] {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(2).await;
        let hows = |number: u64| match number {
            0 => "hang",
            1 => how,
            _ => "ok",
        };
        let inputs = inputs(&dir, hows, 1_000);
        let mut results = pool.map(acts_in_turn, inputs).chunk_size(1).cancel_on_error(true).unordered();
        // The first one runs on the one worker; on the other one the second fails.
        let mut error = None;
        while let Some(result) = ends("next", results.next()).await {
            error = result.err().or(error);
        }
        let error = error.unwrap();
        assert!(if how == "abort" { error.is_worker_died() } else { error.is_panic() }, "{error}");
        let first = runner(dir.path(), 0).unwrap();
        becomes_true("the one that ran has ended", || !runs(first)).await;
        let ran = (0..1_000).filter(|number| times(dir.path(), *number) > 0).count();
        over(pool).await;
        assert_eq!((0..1_000).filter(|number| times(dir.path(), *number) > 0).count(), ran);
        assert!(ran < 1_000, "all of them ran");
    }
}

/// The lowest rank, the limit of open files and a variable of this process.
#[hatchery::task]
fn limits() -> (i32, u64, String) {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(0);
    let rank = rustix::process::getpriority_process(None).unwrap();
    (rank, files, std::env::var("GREETING").unwrap_or_default())
}

#[hatchery::test]
async fn what_workers_may_have_holds_for_those_that_take_their_place_as_well() {
    let builder = Pool::builder().workers(1).nice(7).open_files_limit(300).env("GREETING", "hello");
    let pool = ends("start", builder.start()).await.unwrap();
    for _ in 0..2 {
        let of = ends("limits", pool.submit(limits, ())).await.unwrap();
        assert_eq!(of, (7, 300, "hello".to_owned()));
        let pid = ends("pid", pool.submit(own_pid, ())).await.unwrap();
        send(pid, Signal::KILL);
        becomes_true("it is gone", || !runs(pid)).await;
    }
    over(pool).await;
}

#[hatchery::test]
async fn with_retries_all_results_are_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    let how = |number: u64| match number % 10 {
        3 => "once",
        6 => "panics once",
        9 => "hangs once",
        _ => "ok",
    };
    let map = pool.map(acts, inputs(&dir, how, 60)).chunk_size(10).retries(1).timeout(Duration::from_secs(2));
    let results = ends("map", map.into_future()).await.unwrap();
    assert_eq!(results, (0..60).collect::<Vec<_>>());
    for number in 0..60 {
        assert_eq!(times(dir.path(), number), 1 + usize::from(how(number) != "ok"), "runs of {number}");
    }
    assert_eq!(pool.stats().retried, 18);
    over(pool).await;
}

#[hatchery::test]
async fn a_task_that_kills_each_worker_is_poisoned_when_its_retries_are_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1).await;
    let act = |number: u64, how: &str| pool.submit(acts, (number, how.to_owned(), dir.path().to_owned()));
    let error = ends("poison", act(1, "abort").retries(2)).await.unwrap_err();
    assert!(error.is_poisoned() && error.is_worker_died(), "{error}");
    assert_eq!(error.exit().unwrap().signal(), Some(6), "how the last one ended");
    assert_eq!((error.deaths(), times(dir.path(), 1)), (Some(3), 3));
    let error = ends("early", act(2, "abort").retries(9).poison_after(2)).await.unwrap_err();
    assert_eq!((error.deaths(), times(dir.path(), 2)), (Some(2), 2));
    let error = ends("once", act(3, "abort")).await.unwrap_err();
    assert!(error.is_worker_died() && !error.is_poisoned());
    assert_eq!(ends("next", act(4, "ok")).await.unwrap(), 4);
    over(pool).await;
}

#[hatchery::test]
async fn a_task_that_takes_too_long_is_ended_and_the_others_are_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    let fails = |number: u64| number == 5;
    let inputs = inputs(&dir, |number| if fails(number) { "hang" } else { "ok" }, 20);
    let map = pool.map(acts, inputs).chunk_size(10).timeout(Duration::from_millis(300));
    for (number, result) in (0..).zip(ends("each", map.each()).await) {
        match result {
            Ok(value) => assert_eq!(value, number),
            Err(error) => {
                assert!(fails(number) && error.is_timeout() && !error.is_crash(), "{number}: {error}")
            }
        }
        assert_eq!(times(dir.path(), number), 1, "runs of {number}");
    }
    assert!(!runs(runner(dir.path(), 5).unwrap()), "its worker is gone");
    over(pool).await;
}

#[hatchery::test]
async fn cancelling_or_dropping_a_job_ends_its_task_and_the_next_one_runs_once() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1).await;
    let act = |number: u64, how: &str| pool.submit(acts, (number, how.to_owned(), dir.path().to_owned()));
    for round in 0..100 {
        let (first, waits, next) = (round * 3, round * 3 + 1, round * 3 + 2);
        let mut hangs = act(first, "hang");
        let queued = act(waits, "ok");
        let job = act(next, "ok");
        let worker = runs_in(dir.path(), first).await;
        drop(queued);
        if round % 2 == 0 {
            hangs.cancel();
            assert!(ends("cancelled", hangs).await.unwrap_err().is_cancelled());
        } else {
            drop(hangs);
        }
        assert_eq!(ends("the next one", job).await.unwrap(), next);
        assert!(!runs(worker));
        let counts = [first, waits, next].map(|number| times(dir.path(), number));
        assert_eq!(counts, [1, 0, 1]);
    }
    over(pool).await;
}

#[hatchery::test]
async fn a_stream_that_is_dropped_half_read_ends_what_runs_and_begins_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1).await;
    let inputs = inputs(&dir, |number| if number == 3 { "hang" } else { "ok" }, 100);
    let mut results = pool.map(acts, inputs).chunk_size(2).stream();
    assert_eq!(ends("next", results.next()).await.unwrap().unwrap(), 0);
    let worker = runs_in(dir.path(), 3).await;
    drop(results);
    becomes_true("its worker ends", || !runs(worker)).await;
    assert_eq!(ends("next", pool.submit(square, 3)).await.unwrap(), 9);
    assert_eq!(times(dir.path(), 4), 0);
    over(pool).await;
}

#[hatchery::test]
async fn nobody_notices_when_idle_workers_are_killed() {
    let pool = pool(2).await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let pids = ends("pids", pool.map(own_pid, std::iter::repeat_n((), 20)).chunk_size(1).into_future())
            .await
            .unwrap();
        let pids: BTreeSet<u32> = pids.into_iter().collect();
        assert!(pids.is_disjoint(&seen));
        for worker in &pids {
            send(*worker, Signal::KILL);
        }
        seen.extend(&pids);
        // Perhaps before their ends are known.
        becomes_true("they are gone", || !pids.iter().any(|worker| runs(*worker))).await;
    }
    assert_eq!(ends("map", pool.map(square, 0..100).into_future()).await.unwrap().len(), 100);
    over(pool).await;
}

#[hatchery::test]
async fn random_kills_cost_no_more_tasks_than_there_are_kills() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    let kills = std::cell::Cell::new(0);
    let work = pool.map(acts, inputs(&dir, |_| "ok", 4_000)).chunk_size(16).each();
    let killing = async {
        let mut dice = Dice::new(7);
        for _ in 0..25 {
            tokio::time::sleep(Duration::from_millis(1 + dice.throw(10))).await;
            let workers = hatchery::active_children();
            if !workers.is_empty() {
                let victim = dice.throw(workers.len() as u64) as usize;
                if runs(workers[victim].pid()) {
                    send(workers[victim].pid(), Signal::KILL);
                    kills.set(kills.get() + 1);
                }
            }
        }
    };
    let (results, ()) = ends("both", async { tokio::join!(work, killing) }).await;
    let failed = results.iter().filter(|result| result.is_err()).count();
    assert!(failed <= kills.get(), "{failed} failures after {} kills", kills.get());
    for (number, result) in (0..).zip(results) {
        match result {
            Ok(value) => assert_eq!(value, number),
            Err(error) => assert!(error.is_worker_died(), "{error}"),
        }
        assert!(times(dir.path(), number) <= 1, "{number} ran twice");
    }
    over(pool).await;
}

/// Starts a helper that would outlive it, and hangs where only SIGKILL helps.
#[hatchery::task]
fn clings(dir: PathBuf) {
    let mut helper = std::process::Command::new("sh");
    let mut helper = helper.args(["-c", "trap '' TERM; while :; do sleep 1; done"]).spawn().unwrap();
    fs::write(dir.join("helper.new"), helper.id().to_string()).unwrap();
    fs::rename(dir.join("helper.new"), dir.join("helper")).unwrap();
    let _ = helper.wait();
}

#[hatchery::test]
async fn a_task_that_takes_too_long_takes_its_helpers_along() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1).await;
    let job = pool.submit(clings, dir.path().to_owned());
    let helper = || fs::read_to_string(dir.path().join("helper")).ok()?.parse::<u32>().ok();
    becomes_true("it has a helper", || helper().is_some()).await;
    let job = job.timeout(Duration::from_millis(50));
    assert!(ends("the job", job).await.unwrap_err().is_timeout());
    assert_eq!(ends("the next one", pool.submit(square, 3)).await.unwrap(), 9);
    becomes_true("the helper is gone", || !runs(helper().unwrap())).await;
    over(pool).await;
}

/// Reads what it is handed, but dies the first time.
#[hatchery::task]
fn reads(mut file: hatchery::Fd<fs::File>, many: Vec<u8>, dir: PathBuf) -> usize {
    use std::io::{Read, Seek};
    note(&dir, 0);
    if times(&dir, 0) == 1 {
        std::process::abort()
    }
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text.len() + many.len()
}

#[hatchery::test]
async fn large_arguments_and_descriptors_are_there_again_at_the_next_attempt_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text");
    fs::write(&path, "hello").unwrap();
    let pool = pool(1).await;
    for (retries, size) in [(0, 100_000), (1, 100_000), (1, 10)] {
        let _ = fs::remove_file(dir.path().join("0"));
        let file = hatchery::Fd::new(fs::File::open(&path).unwrap());
        let job = pool.submit(reads, (file, vec![0; size], dir.path().to_owned())).retries(retries);
        let result = ends("job", job).await;
        match retries {
            0 => assert!(result.unwrap_err().is_crash()),
            _ => assert_eq!(result.unwrap(), 5 + size),
        }
        // Something else comes behind it, so that whatever there is more of it has its turn.
        assert_eq!(ends("another", pool.submit(square, 3)).await.unwrap(), 9);
        assert_eq!(times(dir.path(), 0), 1 + retries as usize);
    }
    ends("shutdown", pool.shutdown()).await.unwrap();
}
