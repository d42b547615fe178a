//! How actors leave: refusing what waits, working it off, or cut off; in real processes. In virtual time the same is tested
//! in `crates/actor/tests/by_hand.rs`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use hatchery::prelude::*;
use hatchery::{ChildSpec, Stop};
use hatchery_tests::{becomes_true, ends, eventually, send, stands_still};
use rustix::process::Signal;

/// Writes down what it is told, each in a line of a file.
struct Clerk {
    file: File,
    name: PathBuf,
}

#[hatchery::actor]
impl Clerk {
    fn start(file: PathBuf) -> hatchery::Result<Self> {
        Ok(Clerk { file: File::options().append(true).create(true).open(&file)?, name: file })
    }

    fn note(&mut self, n: u64, _: Vec<u8>) {
        writeln!(self.file, "{n}").expect("a file");
    }

    async fn note_slowly(&mut self, n: u64) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        writeln!(self.file, "{n}").expect("a file");
    }

    /// Blocks the whole worker until a file is there.
    fn blocks(&mut self, go: PathBuf) {
        std::fs::write(self.name.with_extension("begun"), "").expect("a file");
        eventually("it may go on", || go.exists());
    }

    /// The same, but others have their turn.
    async fn waits_for(&mut self, go: PathBuf) {
        std::fs::write(self.name.with_extension("begun"), "").expect("a file");
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        while !go.exists() {
            ticks.tick().await;
        }
    }

    fn is_there(&self) {}

    async fn hangs(&mut self) {
        std::future::pending().await
    }

    fn panics(&mut self) {
        panic!("no such luck")
    }

    async fn tells_itself(&mut self, n: u64, cx: &Context) -> bool {
        cx.me::<ClerkHandle>().note(n, Vec::new()).tell().await.is_err_and(|error| error.is_stopping())
    }

    fn stopped(&mut self) {
        writeln!(self.file, "stopped").expect("a file");
    }
}

async fn tree() -> Tree {
    let supervisor = Supervisor::new(Strategy::OneForOne).intensity(100, Duration::from_secs(60));
    supervisor.backoff(Duration::ZERO, Duration::ZERO).start().await.unwrap()
}

/// As long as a test may take: nothing is to be cut off that drains.
const PATIENT: Shutdown = Shutdown::graceful(hatchery_tests::BOUND);

fn far(name: &str, dir: &Path) -> ChildSpec<impl hatchery::Start<Handle = ClerkHandle> + use<>> {
    worker::<Clerk>(name, dir.join(name)).shutdown(PATIENT).restart(Restart::Temporary)
}

fn near(name: &str, dir: &Path) -> ChildSpec<impl hatchery::Start<Handle = ClerkHandle> + use<>> {
    local::<Clerk>(name, dir.join(name)).shutdown(PATIENT).restart(Restart::Temporary)
}

/// What it wrote down, with "stopped" behind that if it stopped in order.
fn notes(dir: &Path, name: &str) -> Vec<String> {
    std::fs::read_to_string(dir.join(name)).unwrap().lines().map(str::to_owned).collect()
}

fn all(n: u64) -> Vec<String> {
    (0..n).map(|n| n.to_string()).chain(["stopped".to_owned()]).collect()
}

/// The promise: what was acknowledged before is not lost, large messages and the overtaking link notwithstanding.
#[hatchery::test]
async fn every_tell_that_was_acknowledged_before_is_handled_by_an_actor_that_drains() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    for round in 0..10 {
        let names = [format!("far-{round}"), format!("near-{round}"), format!("as-its-spec-says-{round}")];
        let actors = [
            tree.start_child(far(&names[0], dir.path())).await.unwrap(),
            tree.start_child(near(&names[1], dir.path())).await.unwrap(),
            tree.start_child(far(&names[2], dir.path()).on_stop(Stop::Drain)).await.unwrap(),
        ];
        for (actor, name) in actors.into_iter().zip(&names) {
            for n in 0..200 {
                // Some go in several frames.
                let bytes = if n % 50 == 13 { vec![0; 1 << 20] } else { Vec::new() };
                actor.note(n, bytes).tell().await.unwrap();
            }
            if name.starts_with("as") {
                ends("stop", actor.stop()).await.unwrap();
            } else {
                ends("stop", actor.stop_with(Stop::Drain)).await.unwrap();
            }
            assert_eq!(notes(dir.path(), name), all(200), "{name}");
        }
    }
}

#[hatchery::test]
async fn a_supervisor_and_the_end_of_a_tree_drain_a_child_whose_spec_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    let spec = |name: &str| far(name, dir.path()).on_stop(Stop::Drain);
    let (one, other) =
        (tree.start_child(spec("one")).await.unwrap(), tree.start_child(spec("other")).await.unwrap());
    let refusing = tree.start_child(far("refusing", dir.path())).await.unwrap();
    for actor in [&one, &other, &refusing] {
        for n in 0..200 {
            actor.note_slowly(n).tell().await.unwrap();
        }
    }
    ends("terminate", tree.terminate_child("one")).await.unwrap();
    assert_eq!(notes(dir.path(), "one"), all(200));
    ends("the end of the tree", tree.stop()).await.unwrap();
    assert_eq!(notes(dir.path(), "other"), all(200));
    assert_eq!(notes(dir.path(), "refusing").last().unwrap(), "stopped");
}

#[hatchery::test]
async fn an_actor_that_drains_leaves_no_caller_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    for (name, spec) in [("far", far("far", dir.path())), ("alike", far("alike", dir.path()).window(16))] {
        let actor = tree.start_child(spec).await.unwrap();
        let asks: Vec<_> = (0..600).map(|n| (n, tokio::spawn(actor.note(n, Vec::new())))).collect();
        tokio::task::yield_now().await;
        let stop = tokio::spawn({
            let actor = actor.clone();
            async move { actor.stop_with(Stop::Drain).await }
        });
        let late: Vec<_> = (600..900).map(|n| (n, tokio::spawn(actor.note(n, Vec::new())))).collect();
        ends("stop", stop).await.unwrap().unwrap();
        let mut answered = Vec::new();
        for (n, ask) in asks.into_iter().chain(late) {
            match ends("ask", ask).await.unwrap() {
                Ok(()) => answered.push(n.to_string()),
                // Nobody comes after it, so what is in line when it has ended is told so.
                Err(error) => {
                    assert!((error.is_stopping() || error.is_closed()) && !error.maybe_executed(), "{error}");
                }
            }
        }
        let mut noted = notes(dir.path(), name);
        assert_eq!(noted.pop().as_deref(), Some("stopped"));
        noted.sort();
        answered.sort();
        assert_eq!(noted, answered, "what was answered ran, and nothing else did");
    }
}

#[hatchery::test]
async fn a_paused_or_suspended_worker_goes_on_to_work_off_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    let paused = tree.start_child(far("paused", dir.path())).await.unwrap();
    let suspended = tree.start_child(far("suspended", dir.path())).await.unwrap();
    paused.pause().unwrap();
    let pid = paused.pid().unwrap();
    becomes_true("it stands still", || stands_still(pid)).await;
    ends("suspend", suspended.suspend()).await.unwrap();
    for (name, actor) in [("paused", paused), ("suspended", suspended)] {
        for n in 0..100 {
            actor.note(n, Vec::new()).tell().await.unwrap();
        }
        assert!(actor.is_paused());
        ends("stop", actor.stop_with(Stop::Drain)).await.unwrap();
        assert_eq!(notes(dir.path(), name), all(100), "{name}");
    }
}

#[hatchery::test]
async fn a_worker_that_drains_and_crashes_is_killed_or_runs_out_of_time_is_a_crash_for_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    for name in ["panics", "killed", "terminated", "impatient"] {
        let mut spec = far(name, dir.path());
        if name == "impatient" {
            spec = spec.shutdown(Shutdown::graceful(Duration::from_secs(1)));
        }
        let actor = tree.start_child(spec).await.unwrap();
        let go = dir.path().join(format!("{name} may go on"));
        let blocks = tokio::spawn(actor.blocks(go.clone()));
        let begun = dir.path().join(format!("{name}.begun"));
        becomes_true("it blocks", || begun.exists()).await;
        let fatal = if name == "panics" { actor.panics() } else { actor.hangs() };
        let fatal = tokio::spawn(fatal.without_deadline());
        tokio::task::yield_now().await;
        let rest = tokio::spawn(actor.note(1, Vec::new()).without_deadline());
        tokio::task::yield_now().await;
        let (stops, pid) = (actor.clone(), actor.pid().unwrap());
        let stop = tokio::spawn(async move { stops.stop_with(Stop::Drain).await });
        std::fs::write(go, "").unwrap();
        ends("what it was at", blocks).await.unwrap().unwrap();
        match name {
            "killed" => actor.kill(),
            "terminated" => send(pid, Signal::TERM),
            _ => {}
        }
        let expected = match name {
            "panics" => None,
            "killed" => Some(9),
            _ => Some(15),
        };
        for ask in [fatal, rest] {
            let error = ends("ask", ask).await.unwrap().unwrap_err();
            assert!(error.is_crash() && error.maybe_executed(), "{name}: {error}");
            assert_eq!(error.exit().unwrap().signal(), expected, "{name}: {error}");
        }
        ends("stop", stop).await.unwrap().unwrap();
        assert_eq!(notes(dir.path(), name), [""; 0], "{name}");
    }
}

#[hatchery::test]
async fn a_handler_that_sends_to_itself_while_its_actor_drains_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    let actor = tree.start_child(far("itself", dir.path())).await.unwrap();
    let go = dir.path().join("go");
    let waits = tokio::spawn(actor.waits_for(go.clone()));
    becomes_true("it waits", || dir.path().join("itself.begun").exists()).await;
    let refused = tokio::spawn(actor.tells_itself(7));
    tokio::task::yield_now().await;
    let stops = actor.clone();
    let stop = tokio::spawn(async move { stops.stop_with(Stop::Drain).await });
    ends("the stop has arrived", async {
        let late = async || actor.is_there().timeout(Duration::from_millis(10)).await;
        while !late().await.is_err_and(|error| error.is_stopping() && !error.maybe_executed()) {}
    })
    .await;
    std::fs::write(go, "").unwrap();
    ends("what it was at", waits).await.unwrap().unwrap();
    assert!(ends("ask", refused).await.unwrap().unwrap());
    ends("stop", stop).await.unwrap().unwrap();
    assert_eq!(notes(dir.path(), "itself"), ["stopped"]);
}

#[hatchery::test]
async fn a_child_that_is_to_be_killed_is_not_asked_before() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    for (name, by_handle) in [("by its supervisor", false), ("by its handle", true)] {
        let mut spec = far(name, dir.path());
        if !by_handle {
            spec = spec.on_stop(Stop::Kill);
        }
        let actor = tree.start_child(spec).await.unwrap();
        let hangs = tokio::spawn(actor.waits_for(dir.path().join("never")).without_deadline());
        let begun = dir.path().join(name).with_extension("begun");
        becomes_true("it is at that", || begun.exists()).await;
        actor.note(0, Vec::new()).tell().await.unwrap();
        if by_handle {
            ends("stop", actor.stop_with(Stop::Kill)).await.unwrap();
        } else {
            ends("terminate", tree.terminate_child(name)).await.unwrap();
        }
        let error = ends("ask", hangs).await.unwrap().unwrap_err();
        assert_eq!(error.exit().unwrap().signal(), Some(9), "{error}");
        assert_eq!(notes(dir.path(), name), [""; 0], "{name}");
    }
}

#[hatchery::test]
async fn to_drain_without_any_time_for_it_is_a_contradiction() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    let spec = far("hasty", dir.path()).on_stop(Stop::Drain).shutdown(Shutdown::kill());
    let error = tree.start_child(spec).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("leaves no time for that"), "{error}");
    assert!(!dir.path().join("hasty").exists(), "nothing was started");
}
