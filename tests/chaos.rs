//! Random kills and calls all over a tree of supervisors, in this process and in a worker.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hatchery::prelude::*;
use hatchery::{ChildSpec, ChildState, Start, SupervisorHandle};
use hatchery_tests::{BOUND, Dice, becomes_true, children, ends, state};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;

/// Writes down that it starts, and whether somebody who sat in its seat is still there.
struct Leaf;

#[hatchery::actor]
impl Leaf {
    fn start(seat: String, dir: PathBuf) -> hatchery::Result<Self> {
        let book = dir.join(&seat);
        let mut line = std::process::id().to_string();
        for before in std::fs::read_to_string(&book).unwrap_or_default().lines() {
            let pid = before.split(' ').next().unwrap_or_default().parse()?;
            if let Some(state) = state(pid) {
                line += &format!(" beside {pid} ({state})");
            }
        }
        let mut book = File::options().append(true).create(true).open(book)?;
        book.write_all(format!("{line}\n").as_bytes())?;
        Ok(Leaf)
    }

    fn is_there(&self) {}
}

fn leaf(seat: &str, dir: &Path) -> ChildSpec<impl Start<Handle = LeafHandle> + use<>> {
    let name = seat.rsplit('.').next().expect("a name");
    worker::<Leaf>(name, (seat.to_owned(), dir.to_owned()))
}

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Soon has enough, and has three children.
fn impatient(strategy: Strategy, name: &str, dir: &Path) -> Supervisor {
    let supervisor = Supervisor::new(strategy)
        .intensity(3, Duration::from_secs(1))
        .backoff(Duration::from_millis(5), Duration::from_millis(50));
    NAMES
        .into_iter()
        .fold(supervisor, |supervisor, child| supervisor.child(leaf(&format!("{name}.{child}"), dir)))
}

/// A worker whose supervisor is one of those.
struct Host {
    _tree: Tree,
}

#[hatchery::actor]
impl Host {
    async fn start(dir: PathBuf, cx: &Context) -> hatchery::Result<Self> {
        Ok(Host { _tree: impatient(Strategy::OneForOne, "host", &dir).start_in(cx).await? })
    }

    fn is_there(&self) {}
}

/// All processes of this run, and of the workers below.
fn processes() -> Vec<u32> {
    let mut all: Vec<_> = hatchery::active_children().iter().map(hatchery::ActiveChild::pid).collect();
    let lower: Vec<_> = all.iter().flat_map(|pid| children(*pid)).collect();
    all.extend(lower);
    all
}

/// What is asked of a supervisor may be refused, or meet its end: but it is answered.
async fn call(tree: Tree, name: &'static str, what: u64) {
    match what {
        0 => drop(ends("children", tree.children()).await),
        1 => drop(ends("snapshot", tree.snapshot()).await),
        2 => drop(ends("restart", tree.restart_child(name)).await),
        3 => drop(ends("delete", tree.delete_child("nobody")).await),
        _ => {
            let _ = ends("terminate", tree.terminate_child(name)).await;
            let _ = ends("restart", tree.restart_child(name)).await;
        }
    }
}

/// The same of one that is in a worker.
async fn call_below(below: SupervisorHandle, name: &'static str, what: u64) {
    match what {
        0 => drop(ends("children", below.children()).await),
        1 => drop(ends("snapshot", below.snapshot()).await),
        2 => drop(ends("restart", below.restart_child(name)).await),
        3 => drop(ends("delete", below.delete_child("nobody")).await),
        _ => {
            let _ = ends("terminate", below.terminate_child(name)).await;
            let _ = ends("restart", below.restart_child(name)).await;
        }
    }
}

/// Starts those that were left stopped; whether all run.
async fn revived(tree: &Tree) -> bool {
    let mut all = true;
    for child in ends("children", tree.children()).await {
        if matches!(child.state, ChildState::Stopped | ChildState::GivenUp) {
            let _ = ends("restart", tree.restart_child(&child.name)).await;
        }
        all &= child.state == ChildState::Running;
    }
    all
}

async fn revived_below(below: &SupervisorHandle) -> bool {
    let Ok(children) = ends("children", below.children()).await else { return false };
    for child in &children {
        if matches!(child.state, ChildState::Stopped | ChildState::GivenUp) {
            let _ = ends("restart", below.restart_child(&child.name)).await;
        }
    }
    children.len() == NAMES.len() && children.iter().all(|child| child.state == ChildState::Running)
}

#[hatchery::test]
async fn random_kills_and_calls_all_over_a_tree_of_supervisors_end_with_everybody_reached() {
    const CHILDREN: [&str; 5] = ["a", "group", "b", "rest", "host"];
    let seconds = std::env::var("HATCHERY_STORM_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(Strategy::OneForOne)
        .name("chaos")
        .intensity(u32::MAX, Duration::from_secs(60))
        .backoff(Duration::from_millis(5), Duration::from_millis(50))
        .child(leaf("a", dir.path()))
        .child(impatient(Strategy::OneForAll, "group", dir.path()).spec("group"))
        .child(leaf("b", dir.path()))
        .child(impatient(Strategy::RestForOne, "rest", dir.path()).spec("rest"))
        .child(worker::<Host>("host", dir.path().to_owned()));
    let tree = ends("start", supervisor.start()).await.unwrap();
    let [group, rest] = ["group", "rest"].map(|name| tree.get::<Supervisor>(name).unwrap());
    let below = SupervisorHandle::lookup("/chaos/host").unwrap();
    let mut leaves: Vec<_> = ["a", "b"].map(|name| tree.get::<Leaf>(name).unwrap()).into();
    for supervisor in [&group, &rest] {
        leaves.extend(NAMES.map(|name| supervisor.get::<Leaf>(name).unwrap()));
    }
    leaves.extend(NAMES.map(|name| hatchery::lookup::<Leaf>(&format!("/chaos/host/{name}")).unwrap()));
    let host = tree.get::<Host>("host").unwrap();

    let mut dice = Dice::new(41);
    let (mut kills, mut calls) = (0, JoinSet::new());
    let mut ticks = tokio::time::interval(Duration::from_millis(15));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds.unwrap_or(4)) {
        ticks.tick().await;
        let name = NAMES[dice.throw(3) as usize];
        let what = dice.throw(5);
        match dice.throw(8) {
            0 => drop(calls.spawn(call(tree.clone(), CHILDREN[dice.throw(5) as usize], what))),
            1 => drop(calls.spawn(call(group.clone(), name, what))),
            2 => drop(calls.spawn(call(rest.clone(), name, what))),
            3 => drop(calls.spawn(call_below(below.clone(), name, what))),
            // Nobody waits for it: a death in the middle of whatever that was.
            4 => leaves[dice.throw(leaves.len() as u64) as usize].kill(),
            _ => {
                let all = processes();
                if !all.is_empty() {
                    let victim = all[dice.throw(all.len() as u64) as usize];
                    let pid = Pid::from_raw(i32::try_from(victim).unwrap()).unwrap();
                    kills += u32::from(kill_process(pid, Signal::KILL).is_ok());
                }
            }
        }
    }
    let called = calls.len();
    while let Some(called) = ends("its calls", calls.join_next()).await {
        called.unwrap();
    }

    let begun = Instant::now();
    loop {
        let mut all = revived(&tree).await;
        for below in [&group, &rest] {
            all &= revived(below).await;
        }
        if all && revived_below(&below).await {
            break;
        }
        assert!(begun.elapsed() < BOUND, "{}", ends("snapshot", tree.snapshot()).await.unwrap());
        ticks.tick().await;
    }
    for leaf in &leaves {
        while let Err(error) = ends("ask", leaf.is_there()).await {
            // What the last of the kills took along.
            assert!(!error.is_closed() || begun.elapsed() < BOUND, "{}: {error}", leaf.path());
            ticks.tick().await;
        }
    }
    ends("ask", host.is_there()).await.unwrap();
    becomes_true("nobody else is left", || processes().len() == leaves.len() + 1).await;
    let last = processes();
    ends("stop", tree.stop()).await.unwrap();
    becomes_true("all are gone", || last.iter().all(|pid| state(*pid).is_none())).await;
    let mut starts = 0;
    for seat in std::fs::read_dir(dir.path()).unwrap().flatten() {
        let text = std::fs::read_to_string(seat.path()).unwrap();
        starts += text.lines().count();
        // A process whose parent was killed is as good as dead when the next one starts, but it may not be gone.
        if !seat.file_name().to_string_lossy().starts_with("host") {
            assert!(!text.contains("beside"), "{:?}: {text}", seat.file_name());
        }
    }
    println!("{kills} kills from outside, {called} calls, {starts} starts");
}
