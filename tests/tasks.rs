//! Tasks under a supervisor: until when they run, and what becomes of what they return, wherever they die.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hatchery::prelude::*;
use hatchery::{ChildState, Exhausted, Fd, Output, TaskHandle, TreeEvent};
use hatchery_tests::{becomes_true, ends, runs, send, stands_still, state};
use rustix::process::Signal;

/// A supervisor that restarts at once, up to so many times, and gives up who needs more.
async fn tree(restarts: u32) -> Tree {
    let supervisor = Supervisor::new(Strategy::OneForOne).intensity(restarts, Duration::from_secs(600));
    let supervisor = supervisor.backoff(Duration::ZERO, Duration::ZERO).exhausted(Exhausted::GiveUpChild);
    supervisor.start().await.unwrap()
}

async fn state_of(tree: &Tree, name: &str) -> ChildState {
    let children = ends("children", tree.children()).await;
    children.iter().find(|child| child.name == name).expect("it is a child").state
}

/// Resolves when nobody will sit there any more.
async fn is_over<R>(task: &TaskHandle<R>) {
    becomes_true("its seat is closed", || task.actor_ref().seat().is_closed()).await;
}

/// Counts its attempts, and does at each what the script says; the last line is for all further ones.
#[hatchery::task]
fn acts(dir: PathBuf, script: Vec<String>) -> Result<usize, String> {
    let attempt = begin(&dir);
    match &*script[(attempt - 1).min(script.len() - 1)] {
        "error" => Err(format!("attempt {attempt}")),
        "panic" => panic!("attempt {attempt}"),
        "abort" => std::process::abort(),
        "stay" => loop {
            std::thread::park()
        },
        "kill" => {
            send(std::process::id(), Signal::KILL);
            unreachable!()
        }
        "ok" => Ok(attempt),
        code => std::process::exit(code.parse().expect("a code")),
    }
}

fn script(dir: &tempfile::TempDir, script: &[&str]) -> (PathBuf, Vec<String>) {
    (dir.path().to_owned(), script.iter().map(|&line| line.to_owned()).collect())
}

/// Writes down that an attempt begins, and gives its number.
fn begin(dir: &std::path::Path) -> usize {
    let mut file = fs::File::options().append(true).create(true).open(dir.join("attempts")).unwrap();
    file.write_all(b"1").unwrap();
    attempts(dir)
}

fn attempts(dir: &std::path::Path) -> usize {
    fs::read(dir.join("attempts")).unwrap_or_default().len()
}

#[hatchery::test]
async fn a_task_is_started_again_until_it_has_succeeded_and_its_result_stays() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(5).await;
    let args = script(&dir, &["error", "panic", "abort", "kill", "3", "ok"]);
    let task = ends("start", tree.start_child(task("six", acts, args))).await.unwrap();
    assert_eq!(ends("join", task.join()).await.unwrap(), Ok(6));
    is_over(&task).await;
    assert_eq!(state_of(&tree, "six").await, ChildState::Stopped);
    assert_eq!((task.is_alive(), task.pid(), task.incarnation()), (false, None, None));
    assert_eq!(ends("join", task.clone().join()).await.unwrap(), Ok(6));
    // It may be asked to run again; what it returned first stays what it returned.
    ends("restart", tree.restart_child("six")).await.unwrap();
    is_over(&task).await;
    assert_eq!(attempts(dir.path()), 7);
    assert_eq!(ends("join", task.join()).await.unwrap(), Ok(6));
    ends("stop", tree.stop()).await.unwrap();
    assert_eq!(ends("join", task.join()).await.unwrap(), Ok(6));
}

#[hatchery::test]
async fn a_task_that_never_succeeds_is_given_up_with_what_its_last_attempt_left() {
    let dir = tempfile::tempdir().unwrap();
    let errors = tree(2).await;
    let args = script(&dir, &["panic", "abort", "error"]);
    let failing = ends("start", errors.start_child(task("failing", acts, args))).await.unwrap();
    assert_eq!(ends("join", failing.join()).await.unwrap(), Err("attempt 3".to_owned()));
    assert_eq!(state_of(&errors, "failing").await, ChildState::GivenUp);
    ends("stop", errors.stop()).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let tree = tree(2).await;
    let args = script(&dir, &["error", "error", "panic"]);
    let panicking = ends("start", tree.start_child(task("panicking", acts, args))).await.unwrap();
    let error = ends("join", panicking.join()).await.unwrap_err();
    assert!(error.is_crash() && error.is_panic() && error.maybe_executed(), "{error}");
    assert!(error.to_string().ends_with("attempt 3"), "{error}");
    assert!(hatchery::Error::from(error).is_crash());
    ends("stop", tree.stop()).await.unwrap();
}

/// An error that has only `Debug`, and one that has nothing to say.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct OutOf(String);

#[derive(serde::Serialize, serde::Deserialize)]
struct Silent;

#[hatchery::task]
async fn says(text: String) -> hatchery::Result<()> {
    Err(hatchery::Error::msg(text))
}

#[hatchery::task]
fn shows() -> Result<(), OutOf> {
    Err(OutOf("stock".to_owned()))
}

/// An error that cannot say what it is.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stammers;

impl std::fmt::Display for Stammers {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words")
    }
}

#[hatchery::task]
fn stammers() -> Result<(), Stammers> {
    Err(Stammers)
}

#[hatchery::task]
fn is_silent() -> Result<(), Silent> {
    Err(Silent)
}

/// However much it says, there is room for it.
#[hatchery::test]
async fn what_a_task_returns_as_its_error_is_told_in_events_and_snapshots() {
    let tree = tree(0).await;
    let mut events = tree.events();
    let long = "no stock ".repeat(100_000);
    ends("start", tree.start_child(task("says", says, "no stock".to_owned()))).await.unwrap();
    ends("start", tree.start_child(task("says much", says, long.clone()))).await.unwrap();
    ends("start", tree.start_child(task("shows", shows, ()))).await.unwrap();
    ends("start", tree.start_child(task("is silent", is_silent, ()))).await.unwrap();
    let silenced = ends("start", tree.start_child(task("stammers", stammers, ()))).await.unwrap();
    let said = long[..1024].to_owned();
    ends(
        "start",
        tree.start_child(local_task("here", move || std::future::ready(Err::<(), _>(long.clone())))),
    )
    .await
    .unwrap();
    let mut told = std::collections::BTreeMap::new();
    while told.len() < 6 {
        if let Some(TreeEvent::Exited { path, exit, .. }) = ends("event", events.next()).await {
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            told.insert(name, exit.reason().map(str::to_owned));
        }
    }
    let much = format!("{said} […]");
    let reason = |name: &str| told[name].as_deref();
    assert_eq!((reason("says"), reason("shows")), (Some("no stock"), Some("OutOf(\"stock\")")));
    assert_eq!((reason("says much"), reason("here")), (Some(&*much), Some(&*much)));
    assert_eq!((reason("is silent"), reason("stammers")), (None, None));
    assert!(matches!(ends("join", silenced.join()).await, Ok(Err(Stammers))));
    becomes_true("all are given up", || tree.count().active == 0).await;
    for child in ends("snapshot", tree.snapshot()).await.unwrap().children {
        let last = child.last.expect("it has ended");
        assert!(last.starts_with("returned an error"), "{last}");
        let is_without_words = ["is silent", "stammers"].contains(&&*child.name);
        assert_eq!(last.contains("stock"), !is_without_words, "{last}");
    }
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_temporary_task_has_one_attempt_and_its_name_is_free_afterwards() {
    let tree = tree(0).await;
    for how in ["ok", "error", "panic", "kill", "0", "125"] {
        let dir = tempfile::tempdir().unwrap();
        let spec = task("once", acts, script(&dir, &[how])).restart(Restart::Temporary);
        let once = ends("start", tree.start_child(spec)).await.unwrap();
        let result = ends("join", once.join()).await;
        match how {
            "ok" => assert_eq!(result.unwrap(), Ok(1)),
            "error" => assert_eq!(result.unwrap(), Err("attempt 1".to_owned())),
            "panic" => assert_eq!(result.unwrap_err().panic().unwrap().message, "attempt 1"),
            "kill" => assert_eq!(result.unwrap_err().exit().unwrap().signal(), Some(9)),
            // Without a result, also a clean end is none.
            code => assert_eq!(result.unwrap_err().exit().unwrap().exitcode(), Some(code.parse().unwrap())),
        }
        is_over(&once).await;
        if how == "125" {
            assert_eq!(state_of(&tree, "once").await, ChildState::GivenUp);
        } else {
            assert_eq!(tree.count().specs, 0, "{how}");
        }
        assert_eq!(attempts(dir.path()), 1);
    }
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_permanent_task_is_started_again_however_it_ends_and_gives_its_first_success() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(1000).await;
    let args = script(&dir, &["error", "ok", "panic", "ok", "0", "ok", "stay"]);
    let spec = task("always", acts, args).restart(Restart::Permanent);
    let always = ends("start", tree.start_child(spec)).await.unwrap();
    assert_eq!(ends("join", always.join()).await.unwrap(), Ok(2));
    becomes_true("the seventh sits", || always.incarnation() == Some(7)).await;
    assert_eq!(ends("join", always.join()).await.unwrap(), Ok(2));
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn exit_code_125_of_a_task_says_not_to_try_again() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(5).await;
    let spec = task("stubborn", acts, script(&dir, &["error", "125", "ok"]));
    let stubborn = ends("start", tree.start_child(spec)).await.unwrap();
    let error = ends("join", stubborn.join()).await.unwrap_err();
    assert_eq!(error.exit().unwrap().code(), Some(125));
    assert_eq!(state_of(&tree, "stubborn").await, ChildState::GivenUp);
    // Whoever asks again after it was started again waits for that.
    ends("restart", tree.restart_child("stubborn")).await.unwrap();
    assert_eq!(ends("join", stubborn.join()).await.unwrap(), Ok(3));
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_task_that_is_stopped_at_work_has_no_result_and_may_be_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(0).await;
    let spec = task("worker", acts, script(&dir, &["stay", "stay", "stay", "ok"]));
    let task = ends("start", tree.start_child(spec)).await.unwrap();
    let began = async |number| becomes_true("it is at it", || attempts(dir.path()) == number).await;
    let pid = task.pid().unwrap();
    began(1).await;
    let waits = tokio::spawn({
        let task = task.clone();
        async move { task.join().await }
    });
    ends("terminate", tree.terminate_child("worker")).await.unwrap();
    let error = ends("join", waits).await.unwrap().unwrap_err();
    assert_eq!((error.exit().unwrap().signal(), state(pid)), (Some(15), None), "{error}");
    assert_eq!(ends("join", task.join()).await.unwrap_err(), error);

    // By its own handle it is the same: nobody else wanted another attempt.
    ends("restart", tree.restart_child("worker")).await.unwrap();
    began(2).await;
    ends("stop", task.stop()).await.unwrap();
    assert!(ends("join", task.join()).await.unwrap_err().is_crash());
    assert_eq!(state_of(&tree, "worker").await, ChildState::Stopped);

    // A kill is no wish for its end, and here it is one restart too many.
    ends("restart", tree.restart_child("worker")).await.unwrap();
    began(3).await;
    task.kill();
    assert_eq!(ends("join", task.join()).await.unwrap_err().exit().unwrap().signal(), Some(9));
    assert_eq!(state_of(&tree, "worker").await, ChildState::GivenUp);
    ends("stop", tree.stop()).await.unwrap();
}

/// Returns as soon as it gets SIGTERM, and says when it listens.
#[hatchery::task]
async fn heeds(begun: PathBuf) -> String {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    fs::write(begun, "").unwrap();
    term.recv().await;
    "in order".to_owned()
}

/// Takes no notice of SIGTERM, and says when.
#[hatchery::task]
async fn is_deaf(begun: PathBuf) {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    fs::write(begun, "").unwrap();
    loop {
        term.recv().await;
    }
}

#[hatchery::test]
async fn a_task_is_asked_to_end_by_sigterm_and_killed_if_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (heard, deaf) = (dir.path().join("heard"), dir.path().join("deaf"));
    let tree = tree(0).await;
    // There is no other rung here than the first one.
    let spec = task("heeds", heeds, heard.clone()).shutdown(Shutdown::infinity());
    let heeding = ends("start", tree.start_child(spec)).await.unwrap();
    let quick = Shutdown::graceful(Duration::from_millis(50));
    let spec = task("deaf", is_deaf, deaf.clone()).shutdown(quick);
    let ignoring = ends("start", tree.start_child(spec)).await.unwrap();
    becomes_true("both listen", || heard.exists() && deaf.exists()).await;
    let pids = [heeding.pid().unwrap(), ignoring.pid().unwrap()];
    // One that stands still is woken up for it.
    heeding.pause().unwrap();
    becomes_true("it stands still", || stands_still(pids[0])).await;
    ends("stop", tree.stop()).await.unwrap();
    assert!(!pids.into_iter().any(runs));
    assert_eq!(ends("join", heeding.join()).await.unwrap(), "in order");
    assert_eq!(ends("join", ignoring.join()).await.unwrap_err().exit().unwrap().signal(), Some(9));
}

/// Says that it is there, and leaves when it may.
#[hatchery::task]
fn leaves_when_it_may(dir: PathBuf) -> usize {
    let attempt = begin(&dir);
    while !dir.join("may").exists() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    attempt
}

/// Fault: killed anywhere from its first instruction on, before it is ready and after.
#[hatchery::test]
async fn a_task_killed_before_it_begins_or_at_work_is_started_again_until_it_has_succeeded() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor =
        Supervisor::new(Strategy::OneForOne).name("fragile").intensity(10_000, Duration::from_secs(600));
    let tree = supervisor.backoff(Duration::ZERO, Duration::ZERO).start().await.unwrap();
    let spec = || task("task", leaves_when_it_may, dir.path().to_owned());
    let task = ends("start", tree.start_child(spec())).await.unwrap();
    let killed = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let killer = std::thread::spawn({
        let (killed, done) = (killed.clone(), done.clone());
        move || {
            let mut last = None;
            while !done.load(Ordering::Relaxed) {
                for pid in super::children_called("/fragile/task") {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                    if last.replace(pid) != Some(pid) {
                        killed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    becomes_true("it was killed often", || killed.load(Ordering::Relaxed) >= 30).await;
    done.store(true, Ordering::Relaxed);
    killer.join().unwrap();
    let begun = attempts(dir.path());
    fs::write(dir.path().join("may"), "").unwrap();
    let attempt = ends("join", task.join()).await.unwrap();
    println!("{begun} of {} had begun; attempt {attempt} succeeded", killed.load(Ordering::Relaxed));
    assert!(begun < 30, "none was killed before it began");
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_task_that_is_not_ready_in_time_or_cannot_start_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(2).await;
    let late = task("late", acts, script(&dir, &["ok"])).start_timeout(Duration::from_nanos(1));
    let error = ends("start", tree.start_child(late)).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    let nowhere = task("nowhere", acts, script(&dir, &["ok"])).current_dir(dir.path().join("none"));
    let error = ends("start", tree.start_child(nowhere)).await.unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
    let watched = task("watched", acts, script(&dir, &["ok"])).watchdog(Duration::from_secs(10));
    let error = ends("start", tree.start_child(watched)).await.unwrap_err();
    assert!(error.to_string().contains("no handlers"), "{error}");
    let large = task("large", super::reversed, vec![0; (256 << 20) + 1]);
    let error = ends("start", tree.start_child(large)).await.unwrap_err();
    assert!(error.to_string().contains("over the limit"), "{error}");
    assert_eq!(tree.count().specs, 0);

    // A restart that fails counts as any other, and why the last one did is the outcome.
    let place = dir.path().join("place");
    fs::create_dir(&place).unwrap();
    let spec = task("uprooted", acts, script(&dir, &["stay"])).current_dir(&place);
    let uprooted = ends("start", tree.start_child(spec)).await.unwrap();
    fs::remove_dir(&place).unwrap();
    uprooted.kill();
    let error = ends("join", uprooted.join()).await.unwrap_err();
    assert!(error.exit().is_none() && error.to_string().contains("No such file"), "{error}");
    assert_eq!(state_of(&tree, "uprooted").await, ChildState::GivenUp);
    ends("stop", tree.stop()).await.unwrap();
}

/// Says by its end that the function has returned.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns, but at its first attempt does not exit: a process of its own keeps it, and once its result has been sent it is
/// killed.
#[hatchery::task]
async fn returns_and_dies(dir: PathBuf) -> usize {
    let attempt = begin(&dir);
    if attempt > 1 {
        return attempt;
    }
    let over = Over(Arc::default());
    let returned = over.0.clone();
    let kept = Process::spawn(super::stays, ()).await.unwrap();
    tokio::spawn(async move {
        while !returned.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        // Of the tasks of this one thread each has its turn: the channel's has had many when this is over.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        drop(kept);
        send(std::process::id(), Signal::KILL);
    });
    attempt
}

/// Fault: killed between result and exit.
#[hatchery::test]
async fn a_task_killed_between_its_result_and_its_exit_has_not_succeeded_but_its_result_is_not_lost() {
    let tree = tree(1).await;
    let dir = tempfile::tempdir().unwrap();
    let spec = task("again", returns_and_dies, dir.path().to_owned());
    let again = ends("start", tree.start_child(spec)).await.unwrap();
    let mut downs = again.monitor().downs();
    assert_eq!(ends("join", again.join()).await.unwrap(), 2);
    let first = ends("end", downs.next()).await;
    // Unless its end came before it had sat down.
    if let Some(first) = first.filter(|down| down.incarnation() == Some(1)) {
        assert_eq!(first.exit().unwrap().signal(), Some(9));
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = task("once", returns_and_dies, dir.path().to_owned()).restart(Restart::Temporary);
    let once = ends("start", tree.start_child(spec)).await.unwrap();
    assert_eq!(ends("join", once.join()).await.unwrap(), 1);
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::task]
fn is_large(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| index as u8).collect()
}

#[hatchery::test]
async fn a_large_result_reaches_a_hundred_who_wait_while_others_leave() {
    let tree = tree(0).await;
    let large = ends("start", tree.start_child(task("large", is_large, 16 << 20))).await.unwrap();
    let waiters: Vec<_> = (0..200)
        .map(|index| {
            let large = large.clone();
            tokio::spawn(async move {
                if index % 2 == 0 {
                    return large.join().await.map(|bytes| bytes.len());
                }
                // It leaves where it waits, and asks again.
                let _ = tokio::time::timeout(Duration::ZERO, large.join()).await;
                large.join().await.map(|bytes| usize::from(bytes[1 << 20 | 7]))
            })
        })
        .collect();
    for (index, waiter) in waiters.into_iter().enumerate() {
        let expected = if index % 2 == 0 { 16 << 20 } else { 7 };
        assert_eq!(ends("join", waiter).await.unwrap().unwrap(), expected);
    }
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_result_that_can_not_be_encoded_is_an_end_with_a_reason() {
    let tree = tree(1).await;
    let wrong = ends("start", tree.start_child(task("wrong", super::unencodable, ()))).await.unwrap();
    let error = ends("join", wrong.join()).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("not this one") && error.maybe_executed(), "{error}");
    assert_eq!(state_of(&tree, "wrong").await, ChildState::GivenUp);
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::task]
fn speaks(mut into: Fd<UnixStream>, dir: PathBuf) -> Fd<UnixStream> {
    let attempt = begin(&dir);
    into.write_all(format!("{attempt}").as_bytes()).unwrap();
    if attempt < 3 {
        std::process::abort();
    }
    into
}

#[hatchery::test]
async fn descriptors_of_arguments_reach_every_incarnation_and_those_of_a_result_everyone_who_asks() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(2).await;
    let (mut here, there) = UnixStream::pair().unwrap();
    let args = (Fd::new(there), dir.path().to_owned());
    let speaking = ends("start", tree.start_child(task("speaks", speaks, args))).await.unwrap();
    for word in ["a", "b"] {
        let mut back = ends("join", speaking.join()).await.unwrap();
        back.write_all(word.as_bytes()).unwrap();
    }
    ends("delete", tree.delete_child("speaks")).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
    drop(speaking);
    let mut heard = String::new();
    here.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "123ab");
}

#[hatchery::task]
fn tells(dir: PathBuf, name: String) -> hatchery::Result<(String, String, Option<u64>)> {
    println!("attempt {}", begin(&dir));
    if attempts(&dir) < 2 {
        return Err(hatchery::Error::msg("once more"));
    }
    let open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    Ok((std::env::var(name)?, hatchery::current().path().to_owned(), open))
}

#[hatchery::test]
async fn every_incarnation_of_a_task_gets_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor =
        Supervisor::new(Strategy::OneForOne).name("settings").backoff(Duration::ZERO, Duration::ZERO);
    let args = (dir.path().to_owned(), "LEVEL".to_owned());
    let spec = task("tells", tells, args).env("LEVEL", "3").open_files_limit(100).stdout(Output::Capture);
    let tree = ends("start", supervisor.start()).await.unwrap();
    let told = ends("start", tree.start_child(spec)).await.unwrap();
    let (level, path, open) = ends("join", told.join()).await.unwrap().unwrap();
    assert_eq!((&*level, &*path, open), ("3", "/settings/tells", Some(100)));
    assert_eq!(told.path(), path);
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn the_handle_of_a_task_tells_and_does_what_handles_do_but_for_a_mailbox() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(10).await;
    let spec =
        task("stays", acts, script(&dir, &["stay"])).heartbeat(Heartbeat::every(Duration::from_millis(300)));
    let stays = ends("start", tree.start_child(spec)).await.unwrap();
    let pid = stays.pid().unwrap();
    assert!(stays.is_alive() && stays.incarnation() == Some(1) && !stays.is_paused());
    stays.pause().unwrap();
    becomes_true("it stands still", || stands_still(pid)).await;
    assert!(stays.is_paused());
    stays.resume().unwrap();
    becomes_true("it goes on", || !stands_still(pid)).await;
    let error = ends("suspend", stays.suspend()).await.unwrap_err();
    assert!(error.to_string().contains("no mailbox"), "{error}");

    let mut downs = stays.monitor().downs();
    stays.kill();
    let down = ends("end", downs.next()).await.unwrap();
    assert_eq!((down.incarnation(), down.exit().unwrap().signal()), (Some(1), Some(9)));
    becomes_true("the next one sits", || stays.incarnation() == Some(2)).await;
    // Who is stopped by somebody else misses its heartbeat.
    send(stays.pid().unwrap(), Signal::STOP);
    let down = ends("end", downs.next()).await.unwrap();
    assert!(down.exit().unwrap().reason().unwrap().contains("no heartbeat"), "{down}");
    ends("stop", tree.stop()).await.unwrap();
}

struct Other;

#[hatchery::actor]
impl Other {
    fn start() -> Self {
        Other
    }
    fn pid(&self) -> u32 {
        std::process::id()
    }
    /// What it is told when it takes somebody else for one of its kind.
    async fn mistakes(&self, path: String) -> hatchery::Result<String> {
        let error = hatchery::lookup::<Other>(&path)?.pid().await.unwrap_err();
        Ok(format!("{} {error}", error.is_closed()))
    }
}

#[hatchery::test]
async fn whoever_takes_a_task_for_an_actor_is_told_so_from_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(Strategy::OneForOne).name("mixed");
    let supervisor = supervisor.child(task("task", acts, script(&dir, &["stay"])));
    let supervisor = supervisor.child(local_task("local", std::future::pending::<()>));
    let tree = ends("start", supervisor.start()).await.unwrap();
    let found = tree.get::<TaskHandle<Result<usize, String>>>("task").unwrap();
    assert!(found.is_alive() && tree.get::<TaskHandle<()>>("local").unwrap().is_alive());
    for mistaken in [tree.get::<Other>("task").map(drop), tree.get::<TaskHandle<u8>>("task").map(drop)] {
        assert!(mistaken.unwrap_err().to_string().contains("/mixed/task is a task"));
    }
    let other = ends("start", tree.start_child(worker::<Other>("other", ()))).await.unwrap();
    for path in ["/mixed/task", "/mixed/local"] {
        let here = ends("ask", hatchery::lookup::<Other>(path).unwrap().pid()).await.unwrap_err();
        assert!(here.is_closed() && here.to_string().contains("is a task, and was taken for a"), "{here}");
        let there = ends("ask", other.mistakes(path.to_owned())).await.unwrap();
        assert!(there.starts_with("true") && there.contains("is a task, and was taken for a"), "{there}");
    }
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_task_that_has_succeeded_is_revived_with_its_group_and_keeps_its_first_result() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(Strategy::OneForAll).backoff(Duration::ZERO, Duration::ZERO);
    let tree = ends("start", supervisor.start()).await.unwrap();
    let spec = task("task", acts, script(&dir, &["ok"]));
    let counted = ends("start", tree.start_child(spec)).await.unwrap();
    let other = ends("start", tree.start_child(worker::<Other>("other", ()))).await.unwrap();
    assert_eq!(ends("join", counted.join()).await.unwrap(), Ok(1));
    is_over(&counted).await;
    other.kill();
    becomes_true("it ran again", || attempts(dir.path()) == 2).await;
    assert_eq!(ends("join", counted.join()).await.unwrap(), Ok(1));
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_task_may_start_workers_of_its_own_and_they_end_with_it() {
    let tree = tree(0).await;
    let nests = ends("start", tree.start_child(task("nests", super::nests, 2))).await.unwrap();
    let path = ends("join", nests.join()).await.unwrap().unwrap();
    assert_eq!(path.len(), 3);
    assert!(path[2].ends_with("/nests/inner/inner"), "{path:?}");
    ends("stop", tree.stop()).await.unwrap();
}

/// Counts those of its kind that are there.
struct Present(Arc<AtomicUsize>);

impl Present {
    fn new(count: &Arc<AtomicUsize>) -> Present {
        count.fetch_add(1, Ordering::SeqCst);
        Present(count.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[hatchery::test]
async fn a_local_task_is_started_again_until_it_has_succeeded() {
    let tree = tree(2).await;
    let mut attempt = 0;
    let spec = local_task("third", move || {
        attempt += 1;
        async move {
            tokio::task::yield_now().await;
            match attempt {
                1 => panic!("not yet"),
                2 => Err("nor now"),
                _ => Ok(()),
            }
        }
    });
    let third = ends("start", tree.start_child(spec)).await.unwrap();
    let mut downs = third.monitor().downs();
    ends("join", third.join()).await.unwrap();
    is_over(&third).await;
    let mut told = Vec::new();
    while let Some(down) = ends("end", downs.next()).await {
        told.push(down.exit().unwrap().to_string());
    }
    assert!(told[0].contains("not yet") && told[1].ends_with("(nor now)"), "{told:?}");
    assert_eq!((told.len(), &*told[2]), (3, "exited with code 0"));
    assert_eq!(state_of(&tree, "third").await, ChildState::Stopped);
    ends("join", third.join()).await.unwrap();
    assert_eq!((third.pid(), third.is_alive()), (None, false));
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_local_task_is_dropped_where_it_waits_when_it_is_stopped_or_killed() {
    let tree = tree(1).await;
    let present = Arc::new(AtomicUsize::new(0));
    let spec = local_task("waits", {
        let present = present.clone();
        move || {
            let here = Present::new(&present);
            async move {
                let _here = here;
                loop {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                }
            }
        }
    });
    let waits = ends("start", tree.start_child(spec)).await.unwrap();
    assert_eq!((waits.pid(), waits.incarnation()), (Some(std::process::id()), Some(1)));
    assert_eq!(present.load(Ordering::SeqCst), 1);
    let mut downs = waits.monitor().downs();
    waits.kill();
    let down = ends("end", downs.next()).await.unwrap();
    assert_eq!(down.exit().unwrap().reason(), Some("its task was aborted"));
    becomes_true("the next one sits", || waits.incarnation() == Some(2)).await;
    assert_eq!(present.load(Ordering::SeqCst), 1);

    for refused in [ends("suspend", waits.suspend()).await, waits.pause()] {
        assert!(refused.unwrap_err().to_string().contains("stop it instead"));
    }
    ends("stop", waits.stop()).await.unwrap();
    assert_eq!(present.load(Ordering::SeqCst), 0);
    let error = ends("join", waits.join()).await.unwrap_err();
    assert!(error.to_string().ends_with("(it was stopped)"), "{error}");
    assert_eq!(state_of(&tree, "waits").await, ChildState::Stopped);

    ends("restart", tree.restart_child("waits")).await.unwrap();
    assert_eq!(present.load(Ordering::SeqCst), 1);
    ends("stop", tree.stop()).await.unwrap();
    assert_eq!(present.load(Ordering::SeqCst), 0);
    assert!(ends("join", waits.join()).await.is_err());
}

#[hatchery::test]
async fn a_local_task_whose_closure_panics_or_that_has_settings_does_not_start() {
    let tree = tree(1).await;
    let spec = local_task("panics", || -> std::future::Ready<()> { panic!("no future") });
    let error = ends("start", tree.start_child(spec)).await.unwrap_err();
    assert!(error.is_crash() && error.to_string().contains("no future"), "{error}");
    let error =
        ends("start", tree.start_child(local_task("set", async || ()).env("A", "B"))).await.unwrap_err();
    assert!(error.to_string().contains("use `task`"), "{error}");
    assert_eq!(tree.count().specs, 0);

    // At a restart it is a restart that fails, and counts.
    let mut attempt = 0;
    let spec = local_task("later", move || {
        attempt += 1;
        assert!(attempt == 1, "no second future");
        async { Err::<(), _>("no first success") }
    });
    let later = ends("start", tree.start_child(spec)).await.unwrap();
    let error = ends("join", later.join()).await.unwrap_err();
    assert!(error.to_string().contains("no second future"), "{error}");
    assert_eq!(state_of(&tree, "later").await, ChildState::GivenUp);
    ends("stop", tree.stop()).await.unwrap();
}
