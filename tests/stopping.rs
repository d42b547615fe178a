//! How children are stopped, with real processes: in which order, how long a stubborn one can hold that up, and what is
//! left of starts that are given up.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use hatchery::prelude::*;
use hatchery::{ChildInfo, ChildSpec, ChildState};
use hatchery_tests::{becomes_true, ends, own_link, send, stands_still, state};
use rustix::process::Signal;

/// Writes down when it starts and when it stops, and who of the others is there then.
struct Witness {
    name: String,
    dir: PathBuf,
}

#[hatchery::actor]
impl Witness {
    async fn start(name: String, dir: PathBuf) -> hatchery::Result<Self> {
        note(&dir, &format!("{name} starts {}", std::process::id()));
        // What it shall do with its start, if anything.
        match std::fs::read_to_string(dir.join(&name)).as_deref() {
            Ok("hang") => std::future::pending().await,
            Ok("block") => blocks(),
            Ok("be deaf and block") => {
                ignore_sigterm();
                blocks()
            }
            _ => Ok(Witness { name, dir }),
        }
    }

    fn is_there(&self) {}

    fn blocks_without_ears(&self) {
        ignore_sigterm();
        note(&self.dir, &format!("{} blocks", self.name));
        blocks()
    }

    /// Aborts as soon as it hears SIGTERM, and hears nothing else until then.
    fn blocks_and_aborts_on_sigterm(&self) {
        let (listening, listens) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let kind = tokio::signal::unix::SignalKind::terminate();
                let mut signal = tokio::signal::unix::signal(kind).expect("signals can be heard");
                listening.send(()).expect("somebody waits for it");
                signal.recv().await;
                std::process::abort()
            })
        });
        listens.recv().expect("the thread lives");
        note(&self.dir, &format!("{} blocks", self.name));
        blocks()
    }

    /// So that its parent hears nothing of it any more, and it nothing of its parent in the end.
    fn closes_its_link(&self) {
        rustix::net::shutdown(own_link(), rustix::net::Shutdown::Write).expect("it is open");
        blocks()
    }

    /// Lives on as another program, which knows of no link.
    fn becomes_another(&self) {
        use std::os::unix::process::CommandExt;
        let why = std::process::Command::new("sleep").arg("1000").exec();
        panic!("there is no such program: {why}");
    }

    fn stopped(&mut self) {
        let own = std::process::id();
        let mut others: Vec<_> =
            starts(&self.dir).into_iter().filter(|(_, pid)| *pid != own && state(*pid).is_some()).collect();
        others.sort();
        let beside: Vec<_> = others.into_iter().map(|(name, _)| name).collect();
        note(&self.dir, &format!("{} stops beside {}", self.name, beside.join(" ")));
    }
}

fn blocks() -> ! {
    loop {
        std::thread::park()
    }
}

/// A signal that tokio listens to no longer ends the process, and nobody reads what it heard.
fn ignore_sigterm() {
    let kind = tokio::signal::unix::SignalKind::terminate();
    std::mem::forget(tokio::signal::unix::signal(kind).expect("signals can be heard"));
}

/// One line more, whole even beside others'.
fn note(dir: &Path, line: &str) {
    let file = File::options().append(true).create(true).open(dir.join("notes"));
    file.expect("a file").write_all(format!("{line}\n").as_bytes()).expect("room for it");
}

fn notes(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("notes")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Who has started so far: name and process.
fn starts(dir: &Path) -> Vec<(String, u32)> {
    let start = |line: &String| {
        let (name, pid) = line.split_once(" starts ")?;
        Some((name.to_owned(), pid.parse().expect("a number")))
    };
    notes(dir).iter().filter_map(start).collect()
}

/// The latest process of this name, once so many have started.
async fn started(dir: &Path, name: &str, times: usize) -> u32 {
    let mut pids = Vec::new();
    becomes_true("it starts", || {
        pids = starts(dir).into_iter().filter(|start| start.0 == name).map(|start| start.1).collect();
        pids.len() >= times
    })
    .await;
    pids[times - 1]
}

fn stops(dir: &Path) -> Vec<String> {
    notes(dir).into_iter().filter(|line| line.contains(" stops ")).collect()
}

fn witness(name: &str, dir: &Path) -> ChildSpec<impl hatchery::Start<Handle = WitnessHandle> + use<>> {
    worker::<Witness>(name, (name.to_owned(), dir.to_owned()))
}

async fn child(tree: &Tree, name: &str) -> ChildInfo {
    let mut children = ends("children", tree.children()).await;
    let place = children.iter().position(|child| child.name == name).expect("it is there");
    children.swap_remove(place)
}

/// Stop order, as the workers themselves see it: at the end, and in the restart of a group.
#[hatchery::test]
async fn children_stop_newest_first_and_each_is_gone_before_the_next_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::new(Strategy::OneForAll);
    for name in ["a", "b", "c", "d"] {
        supervisor = supervisor.child(witness(name, dir.path()));
    }
    let tree = ends("start", supervisor.start()).await.unwrap();
    let all = ["a", "b", "c", "d"].map(|name| tree.get::<Witness>(name).unwrap());
    // It answers, so that its death is no early one.
    ends("ask", all[1].is_there()).await.unwrap();
    send(all[1].pid().unwrap(), Signal::KILL);
    becomes_true("all are new", || all.iter().all(|one| one.incarnation() == Some(2))).await;
    let bounce = ["d stops beside a c", "c stops beside a", "a stops beside "];
    assert_eq!(stops(dir.path()), bounce);
    ends("stop", tree.stop()).await.unwrap();
    let end = ["d stops beside a b c", "c stops beside a b", "b stops beside a", "a stops beside "];
    assert_eq!(stops(dir.path())[bounce.len()..], end);
}

/// A stubborn child: one that ignores SIGTERM, and one that stands still besides.
#[hatchery::test]
async fn stubborn_children_are_killed_in_their_turn_and_the_others_stop_in_order_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let quick = Shutdown::graceful(Duration::from_millis(50));
    let spec = |name| witness(name, dir.path()).shutdown(quick).heartbeat(Heartbeat::off());
    let supervisor = Supervisor::new(Strategy::OneForOne);
    let supervisor = supervisor.child(witness("first", dir.path())).child(spec("deaf")).child(spec("asleep"));
    let supervisor = supervisor.child(witness("last", dir.path()));
    let tree = ends("start", supervisor.start()).await.unwrap();
    let [deaf, asleep] = ["deaf", "asleep"].map(|name| tree.get::<Witness>(name).unwrap());
    let asks = [&deaf, &asleep].map(|child| tokio::spawn(child.blocks_without_ears()));
    becomes_true("both block", || {
        notes(dir.path()).iter().filter(|line| line.ends_with(" blocks")).count() == 2
    })
    .await;
    let still = asleep.pid().unwrap();
    send(still, Signal::STOP);
    becomes_true("it stands still", || stands_still(still)).await;
    ends("stop", tree.stop()).await.unwrap();
    assert_eq!(stops(dir.path()), ["last stops beside asleep deaf first", "first stops beside "]);
    for ask in asks {
        assert_eq!(ends("ask", ask).await.unwrap().unwrap_err().exit().unwrap().signal(), Some(9));
    }
}

#[hatchery::test]
async fn while_a_child_takes_its_time_to_stop_its_siblings_work_and_calls_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let tree = ends("start", Supervisor::new(Strategy::OneForOne).start()).await.unwrap();
    let deaf = witness("deaf", dir.path()).shutdown(Shutdown::infinity());
    let deaf = ends("start", tree.start_child(deaf)).await.unwrap();
    let other = ends("start", tree.start_child(witness("other", dir.path()))).await.unwrap();
    let pid = deaf.pid().unwrap();
    let ask = tokio::spawn(deaf.blocks_without_ears());
    becomes_true("it blocks", || notes(dir.path()).iter().any(|line| line == "deaf blocks")).await;
    let mut terminating = std::pin::pin!(tree.terminate_child("deaf"));
    tokio::select! {
        biased;
        outcome = &mut terminating => panic!("it does not stop: {outcome:?}"),
        // Behind the other call in line.
        deaf = child(&tree, "deaf") => assert_eq!(deaf.state, ChildState::Running),
    }
    for round in 0..3 {
        ends("ask", other.is_there()).await.unwrap();
        ends("start", tree.start_child(witness(&format!("new-{round}"), dir.path()))).await.unwrap();
        let error = ends("restart", tree.restart_child("deaf")).await.unwrap_err();
        assert!(error.is_running(), "{error}");
    }
    assert!(state(pid).is_some());
    send(pid, Signal::KILL);
    ends("terminate", terminating).await.unwrap();
    assert_eq!(state(pid), None);
    assert_eq!(ends("ask", ask).await.unwrap().unwrap_err().exit().unwrap().signal(), Some(9));
    assert_eq!(child(&tree, "deaf").await.state, ChildState::Stopped);
    ends("stop", tree.stop()).await.unwrap();
}

/// Crash between TERM and KILL. That is still the supervisor's own stop: it costs nothing, and nobody is started again
/// for it.
#[hatchery::test]
async fn a_child_that_crashes_between_sigterm_and_sigkill_was_stopped_and_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let quick = Shutdown::graceful(Duration::from_millis(50));
    let supervisor = Supervisor::new(Strategy::OneForAll).intensity(1, Duration::from_secs(600));
    let supervisor = supervisor.child(witness("frail", dir.path()).shutdown(quick));
    let supervisor = supervisor.child(witness("other", dir.path()));
    let tree = ends("start", supervisor.start()).await.unwrap();
    let [frail, other] = ["frail", "other"].map(|name| tree.get::<Witness>(name).unwrap());
    let blocks = async |times| {
        becomes_true("it blocks", || {
            notes(dir.path()).iter().filter(|line| *line == "frail blocks").count() == times
        })
        .await;
    };
    let ask = tokio::spawn(frail.blocks_and_aborts_on_sigterm());
    blocks(1).await;
    ends("terminate", tree.terminate_child("frail")).await.unwrap();
    let crash = ends("ask", ask).await.unwrap().unwrap_err();
    assert_eq!(crash.exit().unwrap().signal(), Some(6), "{crash}");
    let stopped = child(&tree, "frail").await;
    assert_eq!((stopped.state, stopped.incarnation), (ChildState::Stopped, 1));
    assert!(stopped.last.unwrap().contains("SIGABRT"));
    ends("restart", tree.restart_child("frail")).await.unwrap();

    // The same to one that is taken along: only the death of the other one counts, and that is allowed once.
    let ask = tokio::spawn(frail.blocks_and_aborts_on_sigterm());
    blocks(2).await;
    ends("ask", other.is_there()).await.unwrap();
    send(other.pid().unwrap(), Signal::KILL);
    let crash = ends("ask", ask).await.unwrap().unwrap_err();
    assert_eq!(crash.exit().unwrap().signal(), Some(6), "{crash}");
    ends("ask", frail.is_there()).await.unwrap();
    ends("ask", other.is_there()).await.unwrap();
    assert_eq!((frail.incarnation(), other.incarnation()), (Some(3), Some(2)));
    ends("stop", tree.stop()).await.unwrap();
}

/// Stop during a slow start, however that spends its time: nothing of it is left when the stop is answered.
#[hatchery::test]
async fn a_slow_start_that_is_terminated_leaves_no_process_and_a_free_name() {
    let dir = tempfile::tempdir().unwrap();
    let tree = ends("start", Supervisor::new(Strategy::OneForOne).start()).await.unwrap();
    for (round, how) in ["hang", "block", "be deaf and block"].into_iter().enumerate() {
        std::fs::write(dir.path().join("slow"), how).unwrap();
        let starting = tokio::spawn({
            let (tree, spec) = (tree.clone(), witness("slow", dir.path()));
            async move { tree.start_child(spec).await.map(drop) }
        });
        let pid = started(dir.path(), "slow", round + 1).await;
        assert_eq!(child(&tree, "slow").await.state, ChildState::Starting);
        ends("terminate", tree.terminate_child("slow")).await.unwrap();
        assert_eq!(state(pid), None, "{how}");
        let error = ends("start", starting).await.unwrap().unwrap_err();
        assert!(error.is_closed(), "{how}: {error}");
        assert_eq!(tree.count().specs, 0);
    }
    std::fs::remove_file(dir.path().join("slow")).unwrap();
    let slow = ends("start", tree.start_child(witness("slow", dir.path()))).await.unwrap();
    ends("ask", slow.is_there()).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
}

/// The same when it is a restart that is slow.
#[hatchery::test]
async fn a_slow_restart_is_given_up_by_a_stop_of_the_child_and_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let tree = ends("start", Supervisor::new(Strategy::OneForOne).start()).await.unwrap();
    let slow = ends("start", tree.start_child(witness("slow", dir.path()))).await.unwrap();
    let held = async |times| {
        std::fs::write(dir.path().join("slow"), "block").unwrap();
        ends("ask", slow.is_there()).await.unwrap();
        send(slow.pid().unwrap(), Signal::KILL);
        started(dir.path(), "slow", times).await
    };
    let pid = held(2).await;
    assert_eq!(child(&tree, "slow").await.state, ChildState::Restarting);
    // What is asked meanwhile waits for the start, and is told when there will be none.
    let ask = tokio::spawn(slow.is_there());
    ends("terminate", tree.terminate_child("slow")).await.unwrap();
    assert_eq!(state(pid), None);
    assert_eq!(child(&tree, "slow").await.state, ChildState::Stopped);
    assert!(ends("ask", ask).await.unwrap().unwrap_err().is_closed());
    std::fs::remove_file(dir.path().join("slow")).unwrap();
    ends("restart", tree.restart_child("slow")).await.unwrap();

    let pid = held(4).await;
    ends("stop", tree.stop()).await.unwrap();
    assert_eq!(state(pid), None);
}

/// Dropped futures: that of a child's start leaves it starting, that of the supervisor's stops what had started.
#[hatchery::test]
async fn a_start_whose_future_is_dropped_goes_on_and_one_of_a_whole_supervisor_ends_with_all_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let tree = ends("start", Supervisor::new(Strategy::OneForOne).start()).await.unwrap();
    let gate = dir.path().join("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let spec = worker::<Gated>("gated", (dir.path().to_owned(), gate.clone()));
    tokio::select! {
        biased;
        outcome = tree.start_child(spec) => panic!("it was not let in: {:?}", outcome.map(drop)),
        _ = started(dir.path(), "gated", 1) => {}
    }
    let gated = tree.get::<Gated>("gated").unwrap();
    // Opened for both, it lets nobody wait, and the byte is there for whoever reads.
    File::options().read(true).write(true).open(&gate).unwrap().write_all(b"!").unwrap();
    ends("ask", gated.is_there()).await.unwrap();
    assert_eq!(gated.incarnation(), Some(1));
    ends("stop", tree.stop()).await.unwrap();

    std::fs::write(dir.path().join("slow"), "block").unwrap();
    let supervisor = Supervisor::new(Strategy::OneForOne);
    let supervisor = supervisor.child(witness("a", dir.path())).child(witness("slow", dir.path()));
    let slow = tokio::select! {
        biased;
        outcome = supervisor.start() => panic!("it hangs: {:?}", outcome.map(drop)),
        pid = started(dir.path(), "slow", 1) => pid,
    };
    let a = started(dir.path(), "a", 1).await;
    becomes_true("both are gone", || state(slow).is_none() && state(a).is_none()).await;
    assert_eq!(stops(dir.path()), ["a stops beside "]);
}

/// Does not start before it has read a byte from a pipe.
struct Gated;

#[hatchery::actor]
impl Gated {
    fn start(dir: PathBuf, gate: PathBuf) -> hatchery::Result<Self> {
        use std::io::Read;
        note(&dir, &format!("gated starts {}", std::process::id()));
        File::open(gate)?.read_exact(&mut [0])?;
        Ok(Gated)
    }

    fn is_there(&self) {}
}

/// A child that closes its link but lives: its supervisor cannot know what it is up to, so it is ended within its grace,
/// and the next one starts when it is gone.
#[hatchery::test]
async fn a_child_that_closes_its_link_but_lives_is_ended_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let tree = ends("start", Supervisor::new(Strategy::OneForOne).start()).await.unwrap();
    let rogue = ends("start", tree.start_child(witness("rogue", dir.path()))).await.unwrap();
    for round in 1..=2 {
        ends("ask", rogue.is_there()).await.unwrap();
        let pid = rogue.pid().unwrap();
        let ask = if round == 1 { rogue.closes_its_link() } else { rogue.becomes_another() };
        let crash = ends("ask", ask).await.unwrap_err();
        let exit = crash.exit().unwrap();
        assert!(crash.is_crash() && exit.signal() == Some(9), "{crash}");
        // The library in it ends the one that is still a worker.
        let ended_by_its_parent = exit.reason().is_some_and(|reason| reason.contains("but lived on"));
        assert!(ended_by_its_parent || round == 1, "{exit:?}");
        ends("ask", rogue.is_there()).await.unwrap();
        assert_eq!((state(pid), rogue.incarnation()), (None, Some(round + 1)));
    }
    ends("stop", tree.stop()).await.unwrap();
}
