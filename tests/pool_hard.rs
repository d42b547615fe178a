//! Pools in hard times: starts that are given up, tasks that hang, leave or misbehave, and workers that say nonsense.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use hatchery::prelude::*;
use hatchery::{Restart, TreeEvent};
use hatchery_tests::{
    another, becomes_true, ends, eventually, open_sockets, own_channel, runs, send, send_raw,
};
use rustix::process::Signal;

use crate::pool_deaths::{acts, note, runs_in, times};
use crate::pool_ends::{hangs, workers};
use crate::pool_results::{over, own_pid, pool, square};

/// Says that it has begun, and goes on for ever.
#[hatchery::task]
fn begins_and_hangs(dir: PathBuf) {
    note(&dir, 0);
    loop {
        std::thread::park();
    }
}

#[hatchery::test]
async fn a_start_that_is_dropped_leaves_no_worker_however_long_initializers_take() {
    for in_a_tree in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let builder = Pool::builder().workers(2).initializer(begins_and_hangs, dir.path().to_owned());
        let builder = builder.start_timeout(Duration::from_secs(3600));
        let start = async {
            if in_a_tree {
                drop(Supervisor::new(Strategy::OneForOne).child(builder.spec("pool")).start().await);
            } else {
                drop(builder.start().await);
            }
        };
        tokio::select! {
            () = start => panic!("they hang"),
            () = becomes_true("both have begun", || times(dir.path(), 0) == 2) => {}
        }
        becomes_true("no worker is left", || workers().is_empty()).await;
    }
}

#[hatchery::test]
async fn the_first_worker_that_does_not_start_ends_the_start_of_all() {
    let dir = tempfile::tempdir().unwrap();
    // The first one that gets there fails, the other one hangs.
    let builder = Pool::builder().workers(2).initializer(fails_or_hangs, dir.path().to_owned());
    let start = builder.start_timeout(Duration::from_secs(3600)).start();
    assert!(ends("start", start).await.unwrap_err().to_string().contains("no luck"));
    assert!(workers().is_empty());
}

#[hatchery::task]
fn fails_or_hangs(dir: PathBuf) -> hatchery::Result<()> {
    if fs::File::create_new(dir.join("first")).is_err() {
        hang(&dir);
    }
    // Not before the other one hangs.
    eventually("the other one is there", || times(&dir, 0) == 1);
    Err(hatchery::Error::msg("no luck"))
}

fn hang(dir: &Path) -> ! {
    note(dir, 0);
    loop {
        std::thread::park();
    }
}

/// Waits for the gate if it is the first one.
#[hatchery::task]
fn first_waits(number: u64, dir: PathBuf) -> u64 {
    note(&dir, number);
    if number == 0 {
        eventually("the gate opens", || dir.join("gate").exists());
    }
    number
}

#[hatchery::test]
async fn what_is_behind_a_task_that_takes_long_runs_elsewhere_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    for chunk in [50, 100] {
        let _ = fs::remove_file(dir.path().join("gate"));
        let inputs = (0..100).map(|number| (number, dir.path().to_owned()));
        let mut results = pool.map(first_waits, inputs).chunk_size(chunk).unordered();
        let mut seen = BTreeSet::new();
        while seen.len() < 99 {
            assert!(seen.insert(ends("one of the others", results.next()).await.unwrap().unwrap()));
        }
        assert!(!seen.contains(&0));
        fs::write(dir.path().join("gate"), "").unwrap();
        assert_eq!(ends("the first", results.next()).await.unwrap().unwrap(), 0);
        assert!(ends("the end", results.next()).await.is_none());
        for number in 0..100 {
            assert_eq!(times(dir.path(), number), chunk as usize / 50, "runs of {number}");
        }
    }
    // All of it by the same two workers.
    assert_eq!(pool.stats().workers.iter().map(|worker| worker.restarts).sum::<u64>(), 0);
    over(pool).await;
}

#[hatchery::task]
fn takes_a_while(number: u64, dir: PathBuf) -> u64 {
    note(&dir, number);
    std::thread::sleep(Duration::from_millis(number % 7 * 8));
    number
}

#[hatchery::test]
async fn chunks_that_move_to_and_fro_lose_nothing_and_nothing_runs_twice() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(3).await;
    let inputs = (0..150).map(|number| (number, dir.path().to_owned()));
    let all = ends("map", pool.map(takes_a_while, inputs).chunk_size(150).into_future()).await.unwrap();
    assert_eq!(all, (0..150).collect::<Vec<_>>());
    assert!((0..150).all(|number| times(dir.path(), number) == 1));
    assert!(pool.stats().workers.iter().all(|worker| worker.tasks > 0), "somebody had nothing");
    over(pool).await;
}

#[hatchery::test]
async fn idle_workers_may_be_killed_more_often_than_starts_may_fail() {
    let builder = Pool::builder().workers(1).intensity(1, Duration::from_secs(3600));
    let pool = ends("start", builder.start()).await.unwrap();
    let mut events = pool.tree().events();
    for _ in 0..4 {
        send(workers()[0], Signal::KILL);
        let again = |event: &TreeEvent| matches!(event, TreeEvent::Started { .. });
        while !again(&ends("event", events.next()).await.expect("the pool has ended")) {}
        becomes_true("another one is there", || workers().len() == 1).await;
    }
    assert_eq!(ends("submit", pool.submit(square, 3)).await.unwrap(), 9);
    over(pool).await;
}

#[hatchery::test]
async fn what_is_behind_a_task_that_hangs_is_run_though_others_never_have_nothing_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    let other = tempfile::tempdir().unwrap();
    let stuck = ["hang", "ok", "ok", "ok"].map(str::to_owned).into_iter().zip(0..);
    let stuck = stuck.map(|(how, number)| (number, how, other.path().to_owned()));
    let mut all = pool.map(acts, stuck).chunk_size(4).unordered();
    let mut endless =
        pool.map(takes_a_while, (1..).map(|number| (number, dir.path().to_owned()))).unordered();
    let driven = async {
        let mut came = 0;
        while came < 3 {
            tokio::select! {
                one = all.next() => came += one.unwrap().map(|_| 1).unwrap(),
                other = endless.next() => assert!(other.unwrap().is_ok()),
            }
        }
    };
    ends("all that is behind it", driven).await;
    drop((endless, all));
    over(pool).await;
}

/// Ends its worker as soon as that is ready.
#[hatchery::task]
fn leaves_a_bomb(dir: PathBuf) {
    note(&dir, 0);
    let begun = times(&dir, 0);
    if begun > 1 {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            std::process::abort()
        });
    }
}

#[hatchery::test]
async fn workers_that_end_as_soon_as_they_are_ready_are_started_more_and_more_seldom() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Pool::builder().workers(1).initializer(leaves_a_bomb, dir.path().to_owned());
    let pool = ends("start", builder.start()).await.unwrap();
    let mut events = pool.tree().events();
    send(workers()[0], Signal::KILL);
    let mut delays = Vec::new();
    while delays.len() < 5 {
        if let TreeEvent::RestartScheduled { delay, .. } = ends("event", events.next()).await.unwrap() {
            delays.push(delay);
        }
    }
    // 20 % more or less, of 100 ms and twice as much each time, up to 1 s.
    for (delay, planned) in delays.iter().zip([100, 200, 400, 800, 1000]) {
        let planned = Duration::from_millis(planned);
        assert!(*delay >= planned * 8 / 10 && *delay <= planned * 12 / 10, "{delays:?}");
    }
    ends("terminate", pool.terminate()).await.unwrap();
}

#[hatchery::test]
async fn retries_that_are_said_after_the_first_try_has_failed_count() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1).await;
    let job = pool.submit(acts, (1, "once".to_owned(), dir.path().to_owned()));
    becomes_true("it has failed", || job.is_finished()).await;
    let job = job.retries(1);
    assert!(!job.is_finished() || times(dir.path(), 1) == 2);
    assert_eq!(ends("the job", job).await.unwrap(), 1);
    assert_eq!((times(dir.path(), 1), pool.stats().failed), (2, 0));
    over(pool).await;
}

/// What comes of it; nothing if it panics, and then it can be polled again.
async fn caught<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    let poll = |cx: &mut std::task::Context<'_>| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.map_or(Poll::Ready(None), |polled| polled.map(Some))
    };
    std::future::poll_fn(poll).await
}

#[hatchery::test]
async fn a_stream_whose_iterator_has_panicked_gives_an_error_and_ends() {
    let pool = pool(1).await;
    let inputs = || (0..100_u64).inspect(|x| assert_ne!(*x, 10, "no more"));
    let mut results = pool.map(square, inputs()).chunk_size(4).stream();
    let mut panicked = 0;
    let mut rest = Vec::new();
    loop {
        match ends("next", caught(pin!(results.next()))).await {
            None => panicked += 1,
            Some(Some(result)) => rest.push(result),
            Some(None) => break,
        }
    }
    assert_eq!(panicked, 1);
    let (last, before) = rest.split_last().unwrap();
    assert!(last.as_ref().unwrap_err().to_string().contains("panicked"), "{last:?}");
    assert!(before.iter().all(Result::is_ok));

    let mut all = pin!(pool.map(square, inputs()).into_future());
    assert!(ends("the panic", caught(all.as_mut())).await.is_none());
    assert!(ends("the error", caught(all)).await.unwrap().is_err(), "some of it is not all of it");
    assert_eq!(ends("submit", pool.submit(square, 3)).await.unwrap(), 9);
    over(pool).await;
}

#[hatchery::test]
async fn however_large_chunks_may_be_inputs_without_end_are_taken_within_bounds() {
    let pool = pool(2).await;
    let taken = AtomicU32::new(0);
    let count = || taken.fetch_add(1, Ordering::Relaxed);
    let mut results = pool
        .map(
            square,
            (0..).inspect(|_| {
                count();
            }),
        )
        .chunk_size(u32::MAX)
        .stream();
    assert_eq!(ends("next", results.next()).await.unwrap().unwrap(), 0);
    // Two workers, two chunks each, as many that wait, each with no more than 64 KiB; and once more, if some were given.
    assert!(taken.swap(0, Ordering::Relaxed) <= 2 * 8 * 65_536 / 5);
    drop(results);
    // And so are large ones.
    let large = || vec![0; 1 << 20 | (count() & 1) as usize];
    let mut results = pool.map(length, std::iter::repeat_with(large)).chunk_size(u32::MAX).stream();
    assert_eq!(ends("next", results.next()).await.unwrap().unwrap(), 1 << 20);
    assert!(taken.load(Ordering::Relaxed) <= 16, "{taken:?}");
    drop(results);
    over(pool).await;
}

#[hatchery::task]
fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

#[hatchery::test]
async fn a_pool_that_is_a_child_and_shut_down_is_started_again_unless_its_spec_says_otherwise() {
    let always = Pool::builder().workers(1).spec("always");
    let once = Pool::builder().workers(1).spec("once").restart(Restart::Transient);
    let tree = Supervisor::new(Strategy::OneForOne).name("house").child(always).child(once).start();
    let tree = ends("start", tree).await.unwrap();
    let mut events = tree.events();
    let (always, once) = (tree.get::<Pool>("always").unwrap(), tree.get::<Pool>("once").unwrap());
    ends("shutdown", always.shutdown()).await.unwrap();
    let again = |event: &TreeEvent| matches!(event, TreeEvent::Started { path, incarnation: 2, .. } if path == "/house/always");
    while !again(&ends("event", events.next()).await.unwrap()) {}
    assert_eq!(ends("open again", always.submit(square, 3)).await.unwrap(), 9);

    ends("shutdown", once.shutdown()).await.unwrap();
    let rests = |event: &TreeEvent| matches!(event, TreeEvent::Stopped { path, .. } if path == "/house/once");
    while !rests(&ends("event", events.next()).await.unwrap()) {}
    assert!(ends("refused", once.submit(square, 3)).await.unwrap_err().is_closed());
    ends("stop", tree.stop()).await.unwrap();
    assert!(workers().is_empty());
}

#[hatchery::test]
async fn whenever_a_task_is_cancelled_the_next_one_runs_once() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1).await;
    for round in 0..1000_u64 {
        let (this, next) = (2 * round, 2 * round + 1);
        let mut first = pool.submit(acts, (this, "ok".to_owned(), dir.path().to_owned()));
        let job = pool.submit(acts, (next, "ok".to_owned(), dir.path().to_owned()));
        // Before it begins, while it runs, or when it has finished.
        for _ in 0..round % 20 {
            tokio::task::yield_now().await;
        }
        first.cancel();
        match ends("the first", first).await {
            Ok(value) => assert_eq!(value, this),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
        assert_eq!(ends("the next", job).await.unwrap(), next);
        assert!(times(dir.path(), this) <= 1);
        assert_eq!(times(dir.path(), next), 1, "round {round}");
    }
    over(pool).await;
}

/// Gives so many bytes, or ends its process.
#[hatchery::task]
fn gives_or_leaves(bytes: Option<usize>) -> Vec<u8> {
    match bytes {
        Some(bytes) => vec![7; bytes],
        None => std::process::exit(0),
    }
}

#[hatchery::test]
async fn a_result_counts_whatever_its_worker_does_next() {
    let pool = pool(1).await;
    for round in 0..200 {
        // Small ones in the ledger, large ones by the socket.
        let bytes = if round % 2 == 0 { 8 } else { 100_000 };
        let both = pool.map(gives_or_leaves, [Some(bytes), None]).chunk_size(2).each();
        let [first, second]: [_; 2] = ends("both", both).await.try_into().unwrap();
        assert_eq!(first.unwrap().len(), bytes);
        assert_eq!(second.unwrap_err().exit().unwrap().code(), Some(0));
    }
    assert_eq!(pool.stats().done, 200);
    over(pool).await;
}

/// Takes no notice of SIGTERM, and never ends.
#[hatchery::task]
async fn hears_nothing(dir: PathBuf) {
    let _deaf = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    hang(&dir)
}

#[hatchery::test]
async fn a_task_that_hangs_and_hears_no_sigterm_ends_by_its_timeout_or_with_its_pool() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(1).await;
    let job = pool.submit(hears_nothing, dir.path().to_owned());
    let worker = runs_in(dir.path(), 0).await;
    send(worker, Signal::TERM);
    let error = ends("the job", job.timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    let job = pool.submit(hears_nothing, dir.path().to_owned());
    becomes_true("it runs again", || times(dir.path(), 0) == 2).await;
    ends("terminate", pool.terminate()).await.unwrap();
    assert!(workers().is_empty() && ends("the job", job).await.unwrap_err().is_closed());
}

/// Leaves somebody behind who holds its output, in a group of its own.
#[hatchery::task]
fn leaves_a_helper() -> u32 {
    use std::os::unix::process::CommandExt;
    let mut helper = Command::new("sleep");
    #[expect(clippy::zombie_processes, reason = "it is to outlive its worker, and the test ends it")]
    let helper = helper.arg("1000").stdin(Stdio::null()).process_group(0).spawn().unwrap();
    helper.id()
}

#[hatchery::test]
async fn a_helper_that_holds_the_output_of_a_worker_does_not_hold_up_the_pool() {
    let pool = pool(1).await;
    let helper = ends("helper", pool.submit(leaves_a_helper, ())).await.unwrap();
    over(pool).await;
    assert!(runs(helper), "it holds nothing any more");
    send(helper, Signal::KILL);
    becomes_true("it is gone", || !runs(helper)).await;
}

/// Has a pool with one that dives deeper.
#[hatchery::task]
async fn dives(levels: u32) -> hatchery::Result<u32> {
    let pool = Pool::builder().workers(1).start().await?;
    let below = pool.submit(dives_on, levels - 1).await??;
    pool.shutdown().await?;
    Ok(below + 1)
}

#[hatchery::task]
async fn dives_on(levels: u32) -> hatchery::Result<u32> {
    if levels == 0 {
        return Ok(0);
    }
    let pool = Pool::builder().workers(1).start().await?;
    let below = pool.submit(dives, levels).await??;
    pool.shutdown().await?;
    Ok(below + 1)
}

#[hatchery::test]
async fn pools_in_workers_of_pools_begin_and_end_with_their_tasks() {
    let pool = pool(1).await;
    assert_eq!(ends("dive", pool.submit(dives, 2)).await.unwrap().unwrap(), 3);
    over(pool).await;
    assert!(workers().is_empty());
}

/// Misuses one of the sockets of its process, whose number is as given, counted from the last one; whether there is one.
#[hatchery::task]
fn writes_nonsense(which: usize, bytes: Vec<u8>) -> bool {
    let Some(number) = open_sockets().into_iter().rev().nth(which) else { return false };
    if let Some(socket) = another(number) {
        send_raw(socket, &bytes, &[]);
    }
    true
}

#[hatchery::test]
async fn nonsense_in_the_sockets_of_a_worker_is_its_own_end_at_worst() {
    let pool = pool(2).await;
    for bytes in [vec![0xff; 100], vec![0; 100]] {
        let mut which = 0;
        loop {
            // Its own outcome may be lost with the worker, and no other one.
            let misdeed = ends("the misdeed", pool.submit(writes_nonsense, (which, bytes.clone()))).await;
            let results = ends("others", pool.map(square, 0..50).retries(1).into_future()).await.unwrap();
            assert_eq!(results.len(), 50);
            if misdeed.is_ok_and(|there_is_one| !there_is_one) {
                break;
            }
            which += 1;
        }
        assert!(which >= 3, "a link, a channel, and a socket for tasks");
    }
    over(pool).await;
}

/// Writes over the memory in which it says what it does.
#[hatchery::task]
fn spoils_the_ledger(byte: u8, dir: PathBuf) -> u8 {
    note(&dir, 0);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let memory = fs::File::options().write(true).open("/proc/self/mem").unwrap();
    let mut spoiled = 0;
    for line in maps.lines().filter(|line| line.contains("memfd:")) {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).unwrap());
        if rest.starts_with("rw-s") {
            memory.write_all_at(&vec![byte; (to - from) as usize], from).unwrap();
            spoiled += 1;
        }
    }
    assert!(spoiled > 0, "it has none");
    byte
}

#[hatchery::test]
async fn nonsense_in_the_ledger_of_a_worker_is_its_own_end_at_worst() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(2).await;
    for byte in [0xff, 0x55, 1] {
        let before = times(dir.path(), 0);
        let misdeed = pool.submit(spoils_the_ledger, (byte, dir.path().to_owned()));
        let error = ends("the misdeed", misdeed.timeout(Duration::from_secs(5))).await.unwrap_err();
        assert!(error.is_crash() || error.is_worker_died() || error.is_timeout(), "{byte:x}: {error}");
        assert_eq!(times(dir.path(), 0), before + 1);
        let results = ends("others", pool.map(square, 0..50).into_future()).await.unwrap();
        assert_eq!(results.len(), 50);
    }
    over(pool).await;
}

/// Cuts the socket by which its pool gives it tasks.
#[hatchery::task]
fn hangs_up(dir: PathBuf) {
    note(&dir, 0);
    // Of those that its parent has made, it is the youngest.
    rustix::net::shutdown(own_channel(), rustix::net::Shutdown::Both).unwrap();
}

#[hatchery::test]
async fn a_worker_that_has_lost_its_pool_leaves_without_its_finaliser() {
    let dir = tempfile::tempdir().unwrap();
    let pool = ends("start", Pool::builder().workers(1).finaliser(hangs, ()).start()).await.unwrap();
    let before = ends("pid", pool.submit(own_pid, ())).await.unwrap();
    let job = pool.submit(hangs_up, dir.path().to_owned());
    assert!(ends("the job", job).await.is_ok(), "its result is in the ledger");
    assert_ne!(ends("pid", pool.submit(own_pid, ())).await.unwrap(), before);
    assert!(!runs(before) && times(dir.path(), 0) == 1);
    ends("terminate", pool.terminate()).await.unwrap();
}
