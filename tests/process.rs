//! One function in one process: results, deaths, signals, and starts that fail.

use std::collections::BTreeSet;
use std::time::Duration;

use hatchery::prelude::*;
use hatchery_tests::{BOUND, becomes_true, ends, runs, send, state};
use rustix::process::Signal;

// Files of their own, but fewer binaries to link.
mod limits;
mod rogue;
mod tasks;

#[hatchery::task]
fn length(text: String) -> usize {
    text.len()
}

#[hatchery::task]
async fn later(a: u32, b: u32) -> u32 {
    tokio::task::yield_now().await;
    a + b
}

#[hatchery::task]
fn reversed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

#[hatchery::task]
fn parsed(text: String) -> hatchery::Result<i32> {
    Ok(text.parse::<i32>()?)
}

#[hatchery::task]
fn panics(why: String) {
    panic!("because of {why}")
}

#[hatchery::task]
async fn panics_later(why: String) {
    tokio::task::yield_now().await;
    panic!("because of {why}")
}

#[hatchery::task]
fn exits(code: i32) -> u32 {
    eprintln!("leaving with {code}");
    std::process::exit(code)
}

#[hatchery::task]
fn aborts() {
    std::process::abort()
}

#[hatchery::task]
fn stays() {
    loop {
        std::thread::park()
    }
}

#[hatchery::task]
fn ignores_sigterm() {
    // `trap ''` makes the shell ignore it, and hands that down to what it executes; the shell says when.
    let script = "trap '' TERM; kill -TERM $PPID; echo deaf >&2; exec sleep 1000";
    let mut shell = std::process::Command::new("sh").args(["-c", script]).spawn().expect("a shell");
    let _ = shell.wait();
}

#[hatchery::task]
fn surroundings(name: String) -> (Option<String>, String) {
    (std::env::var(name).ok(), std::env::current_dir().expect("a directory").display().to_string())
}

#[hatchery::task]
fn who() -> (String, String, u8, Option<u32>) {
    let me = hatchery::current();
    (me.name().to_owned(), me.path().to_owned(), me.depth(), hatchery::parent())
}

#[hatchery::task]
async fn nests(levels: u32) -> hatchery::Result<Vec<String>> {
    let mut path = vec![hatchery::current().path().to_owned()];
    if levels > 0 {
        let inner = Process::builder(self::nests, levels - 1).name("inner").spawn().await?;
        path.extend(inner.join().await??);
    }
    Ok(path)
}

#[hatchery::task]
async fn recurses() -> hatchery::Result<u32> {
    let inner = match Process::spawn(self::recurses, ()).await {
        Ok(inner) => inner,
        Err(error) => return Err(hatchery::Error::from(error)),
    };
    inner.join().await?.map(|depth| depth + 1)
}

#[hatchery::task]
fn unencodable() -> std::collections::HashMap<Vec<u8>, Unencodable> {
    std::collections::HashMap::from([(vec![1], Unencodable)])
}

#[derive(serde::Deserialize)]
struct Unencodable;

impl serde::Serialize for Unencodable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not this one"))
    }
}

#[hatchery::test]
async fn a_function_gives_its_result_and_join_may_be_asked_again() {
    let process = Process::spawn(length, "text".to_owned()).await.unwrap();
    assert_eq!(ends("join", process.join()).await.unwrap(), 4);
    assert_eq!(process.join().await.unwrap(), 4);
    assert_eq!(process.exitcode(), Some(0));
    assert!(process.wait().await.success());
    assert_eq!(length("text".to_owned()), 4);
}

#[hatchery::test]
async fn several_parameters_async_functions_and_bytes() {
    let sum = Process::spawn(later, (2, 3)).await.unwrap();
    let bytes = Process::spawn(reversed, vec![1; 3_000_000]).await.unwrap();
    assert_eq!(ends("join", sum.join()).await.unwrap(), 5);
    assert_eq!(ends("join", bytes.join()).await.unwrap().len(), 3_000_000);
}

#[hatchery::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_on_a_multi_threaded_root() {
    let mut processes = Vec::new();
    for n in 0..20 {
        processes.push(Process::spawn(later, (n, n)).await.unwrap());
    }
    for (n, process) in (0..).zip(&processes) {
        assert_eq!(ends("join", process.join()).await.unwrap(), 2 * n);
    }
    let pids: BTreeSet<_> = processes.iter().map(Process::pid).collect();
    assert_eq!(pids.len(), 20);
}

#[hatchery::test]
async fn a_returned_error_is_a_value_and_the_exit_says_failed() {
    let process = Process::spawn(parsed, "no number".to_owned()).await.unwrap();
    let error = ends("join", process.join()).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "invalid digit found in string");
    let exit = process.wait().await;
    assert!(exit.failed());
    assert_eq!(exit.exitcode(), Some(1));
}

#[hatchery::test]
async fn a_panic_comes_with_message_and_place() {
    for process in [
        // A backtrace is longer than the tail of stderr that an exit keeps.
        Process::builder(panics, "rain".to_owned()).env("RUST_BACKTRACE", "0").spawn().await.unwrap(),
        Process::builder(panics_later, "rain".to_owned()).env("RUST_BACKTRACE", "0").spawn().await.unwrap(),
    ] {
        let error = ends("join", process.join()).await.unwrap_err();
        let panic = error.panic().unwrap();
        assert_eq!(panic.message, "because of rain");
        assert!(panic.place.as_ref().unwrap().contains("process.rs:"), "{panic}");
        assert_eq!(process.exitcode(), Some(101));
        assert!(error.exit().unwrap().stderr_tail().iter().any(|line| line.contains("because of rain")));
    }
}

#[hatchery::test]
async fn exit_and_abort_inside_a_task_are_told_apart() {
    for code in [0, 3] {
        let process = Process::spawn(exits, code).await.unwrap();
        let error = ends("join", process.join()).await.unwrap_err();
        assert!(error.is_crash() && !error.is_panic());
        let exit = error.exit().unwrap();
        assert_eq!(exit.exitcode(), Some(code));
        assert_eq!(exit.stderr_tail(), [format!("leaving with {code}")]);
    }
    let process = Process::spawn(aborts, ()).await.unwrap();
    assert_eq!(ends("join", process.join()).await.unwrap_err().exit().unwrap().exitcode(), Some(-6));
}

#[hatchery::test]
async fn signals_do_what_their_names_say() {
    type Send = fn(&Process<()>) -> Result<(), hatchery::ProcessError>;
    let expected: [(Send, i32); 3] =
        [(Process::terminate, -15), (Process::kill, -9), (Process::interrupt, -2)];
    for (signal, exitcode) in expected {
        let process = Process::spawn(stays, ()).await.unwrap();
        assert!(process.is_alive() && process.try_wait().is_none() && process.exitcode().is_none());
        signal(&process).unwrap();
        assert_eq!(ends("wait", process.wait()).await.exitcode(), Some(exitcode));
        assert!(!process.is_alive());
        // Nobody else gets it once the process is gone.
        signal(&process).unwrap();
    }
}

#[hatchery::test]
async fn a_paused_process_stands_still_is_alive_and_can_be_terminated() {
    let process = Process::spawn(stays, ()).await.unwrap();
    process.pause().unwrap();
    becomes_true("it is stopped", || state(process.pid()) == Some('T')).await;
    assert!(process.is_alive());
    process.resume().unwrap();
    becomes_true("it runs", || state(process.pid()) != Some('T')).await;
    process.pause().unwrap();
    process.terminate().unwrap();
    assert_eq!(ends("wait", process.wait()).await.exitcode(), Some(-15));
}

/// Quick to lose patience, but not so quick that a busy machine makes it do so.
const IMPATIENT: Heartbeat = Heartbeat::every(Duration::from_millis(100)).misses(10);

#[hatchery::test]
async fn a_process_may_be_paused_for_longer_than_its_heartbeat_but_not_be_stopped_by_others() {
    let process = Process::builder(stays, ()).heartbeat(IMPATIENT).spawn().await.unwrap();
    process.pause().unwrap();
    assert!(process.is_paused());
    assert!(process.wait_timeout(Duration::from_secs(2)).await.is_none());
    process.resume().unwrap();
    assert!(!process.is_paused());
    becomes_true("it runs", || state(process.pid()) != Some('T')).await;
    send(process.pid(), Signal::STOP);
    let error = ends("join", process.join()).await.unwrap_err();
    assert!(error.is_crash(), "{error}");
    assert_eq!(error.exit().unwrap().reason(), Some("no heartbeat for 1s"));
    assert!(!process.is_paused());
}

#[hatchery::test]
async fn a_heartbeat_that_contradicts_itself_is_refused() {
    let never = Heartbeat::every(Duration::ZERO);
    let error = Process::builder(stays, ()).heartbeat(never).spawn().await.unwrap_err();
    assert!(error.to_string().contains("a heartbeat every 0ns: it has to be at least 10ms"), "{error}");
    let tree = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    let spec = worker::<Nobody>("nobody", ()).heartbeat(Heartbeat::default().misses(0));
    let error = tree.start_child(spec).await.unwrap_err();
    assert!(error.to_string().contains("missed 0 times"), "{error}");
}

struct Nobody;

#[hatchery::actor]
impl Nobody {
    fn start() -> Self {
        Nobody
    }
}

#[hatchery::test]
async fn waiting_can_be_bounded() {
    let process = Process::spawn(stays, ()).await.unwrap();
    assert!(process.wait_timeout(Duration::from_millis(20)).await.is_none());
    process.kill().unwrap();
    assert_eq!(process.wait_timeout(BOUND).await.unwrap().signal(), Some(9));
}

#[hatchery::test]
async fn a_process_killed_with_kill_on_drop_ends_and_a_dropped_one_goes_on() {
    let kept = Process::builder(stays, ()).daemon(true).spawn().await.unwrap();
    let killed = Process::builder(stays, ()).kill_on_drop(true).spawn().await.unwrap();
    let (kept_pid, killed_pid) = (kept.pid(), killed.pid());
    drop((kept, killed));
    becomes_true("it ends", || !runs(killed_pid)).await;
    assert!(runs(kept_pid));
    assert_eq!(hatchery::active_children().iter().filter(|child| child.pid() == kept_pid).count(), 1);
    send(kept_pid, Signal::KILL);
}

#[hatchery::test]
async fn environment_and_directory_are_the_builders() {
    let plain = Process::spawn(surroundings, "PATH".to_owned()).await.unwrap();
    assert_eq!(ends("join", plain.join()).await.unwrap().0, std::env::var("PATH").ok());
    let dressed = Process::builder(surroundings, "PATH".to_owned())
        .env("PATH", "/nowhere")
        .current_dir("/")
        .spawn()
        .await
        .unwrap();
    assert_eq!(ends("join", dressed.join()).await.unwrap(), (Some("/nowhere".to_owned()), "/".to_owned()));
    let bare = Process::builder(surroundings, "PATH".to_owned()).env_remove("PATH").spawn().await.unwrap();
    assert_eq!(ends("join", bare.join()).await.unwrap().0, None);
    let nowhere =
        Process::builder(surroundings, "PATH".to_owned()).current_dir("/no/such/place").spawn().await;
    let error = nowhere.unwrap_err().to_string();
    assert!(error.contains("in /no/such/place: No such file or directory"), "{error}");
}

#[hatchery::test]
async fn names_are_unique_among_the_living_and_free_again_afterwards() {
    let first = Process::builder(stays, ()).name("unique").spawn().await.unwrap();
    let second = Process::builder(stays, ()).name("unique").spawn().await.unwrap_err();
    assert!(second.to_string().contains("taken"), "{second}");
    first.kill().unwrap();
    ends("wait", first.wait()).await;
    let third = Process::builder(who, ()).name("unique").spawn().await.unwrap();
    let (name, path, depth, parent) = ends("join", third.join()).await.unwrap();
    assert_eq!(
        (name.as_str(), path.as_str(), depth, parent),
        ("unique", "/unique", 1, Some(std::process::id()))
    );
    for bad in ["", "a/b", "~x", "a\nb"] {
        assert!(Process::builder(stays, ()).name(bad).spawn().await.is_err(), "{bad:?}");
    }
}

#[hatchery::test]
async fn workers_start_workers_and_know_where_they_are() {
    let process = Process::builder(nests, 2).name("outer").spawn().await.unwrap();
    let paths = ends("join", process.join()).await.unwrap().unwrap();
    assert_eq!(paths, ["/outer", "/outer/inner", "/outer/inner/inner"]);
}

#[hatchery::test]
async fn endless_nesting_is_refused_sixteen_deep() {
    let process = Process::spawn(recurses, ()).await.unwrap();
    let error = ends("join", process.join()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("nested 16 deep"), "{error}");
}

#[hatchery::test]
async fn a_result_that_can_not_be_encoded_is_an_error_that_says_so() {
    let process = Process::spawn(unencodable, ()).await.unwrap();
    let error = ends("join", process.join()).await.map(|map| map.len()).unwrap_err();
    assert!(error.to_string().contains("not this one"), "{error}");
}

#[hatchery::test]
async fn the_pidfd_is_readable_once_the_process_has_ended() {
    use std::os::fd::AsFd;
    let process = Process::spawn(stays, ()).await.unwrap();
    let ready = || {
        let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).unwrap() > 0
    };
    let _fd = process.as_fd();
    assert!(!ready());
    process.kill().unwrap();
    ends("wait", process.wait()).await;
    assert!(ready());
}

/// Promise "stop": what ignores SIGTERM is not ended by it, and is by SIGKILL; its helper program goes with it.
#[hatchery::test]
async fn a_worker_whose_helper_ignores_sigterm_ends_with_it_all_the_same() {
    let process = Process::spawn(ignores_sigterm, ()).await.unwrap();
    assert_eq!(ends("wait", process.wait()).await.exitcode(), Some(-15));
}

/// Fault: killed before hello. The error of the start has the exit, at once, not after a timeout.
#[hatchery::test]
async fn a_worker_killed_before_hello_is_an_error_of_the_start_with_its_exit() {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = stop.clone();
    let killer = std::thread::spawn(move || {
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            for pid in children_called("/early") {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    });
    let mut before_hello = 0;
    for _ in 0..200 {
        match ends("spawn", Process::builder(stays, ()).name("early").spawn()).await {
            Err(error) => {
                assert_eq!(error.exit().unwrap().signal(), Some(9), "{error}");
                before_hello += 1;
            }
            Ok(process) => assert_eq!(ends("wait", process.wait()).await.signal(), Some(9)),
        }
        if before_hello == 5 {
            break;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    killer.join().unwrap();
    assert!(before_hello >= 5, "only {before_hello} of 200 were killed before their hello");
}

/// The children of this process whose `argv[0]` ends like this; other tests of this binary have children, too.
fn children_called(end: &str) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children.split_whitespace() {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let argv0 = line.split(|byte| *byte == 0).next().unwrap_or_default();
            if argv0.ends_with(end.as_bytes()) {
                found.extend(pid.parse().ok().and_then(rustix::process::Pid::from_raw));
            }
        }
    }
    found
}

#[hatchery::test]
async fn a_start_may_take_for_ever() {
    let process =
        Process::builder(length, "x".to_owned()).start_timeout(Duration::MAX).spawn().await.unwrap();
    assert_eq!(ends("join", process.join()).await.unwrap(), 1);
}

#[hatchery::test]
async fn a_process_is_started_from_threads_of_the_runtime() {
    let process = tokio::task::spawn_blocking(|| {
        tokio::runtime::Handle::current().block_on(Process::spawn(length, "blocking".to_owned()))
    });
    assert_eq!(ends("join", process.await.unwrap().unwrap().join()).await.unwrap(), 8);
}

#[tokio::test]
async fn a_start_without_the_door_is_an_immediate_and_clear_error() {
    let error = Process::spawn(length, String::new()).await.unwrap_err();
    assert!(error.to_string().contains("#[hatchery::main]"), "{error}");
    let error = Supervisor::new(Strategy::OneForOne).start().await.unwrap_err();
    assert!(error.to_string().contains("#[hatchery::test]"), "{error}");
}

mod deeper {
    use super::*;

    #[hatchery::test]
    async fn a_test_in_a_module_finds_its_way_back() -> hatchery::Result<()> {
        let process = Process::spawn(length, "module".to_owned()).await?;
        assert_eq!(process.join().await?, 6);
        Ok(())
    }
}

#[hatchery::test]
#[should_panic(expected = "as it should")]
async fn a_test_that_should_panic_may_start_workers() {
    let process = Process::spawn(length, "x".to_owned()).await.unwrap();
    assert_eq!(process.join().await.unwrap(), 1);
    panic!("as it should");
}
