//! A storm of SIGKILLs over the children of one supervisor, and what is to be had of it meanwhile and afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hatchery::ChildState;
use hatchery::prelude::*;
use hatchery_tests::{Dice, becomes_true, ends};
use rustix::process::{Pid, Signal, kill_process};

/// Writes down the number of each request before it answers.
struct Clerk {
    book: File,
}

#[hatchery::actor]
impl Clerk {
    fn start(book: PathBuf) -> hatchery::Result<Self> {
        Ok(Clerk { book: File::options().append(true).open(book)? })
    }

    fn enter(&mut self, number: u64) -> u64 {
        // At once, so that no line is written by halves.
        self.book.write_all(format!("{number}\n").as_bytes()).expect("room for it");
        number
    }
}

/// What became of the asks of a test.
#[derive(Default)]
struct Asks {
    begun: AtomicU64,
    enough: AtomicBool,
    /// Of each that failed, whether it may have been executed.
    failed: Mutex<BTreeMap<u64, bool>>,
    answered: Mutex<BTreeSet<u64>>,
}

/// Asks one clerk after the other, each time with another number, until it is enough.
async fn asks(clerk: ClerkHandle, asks: Arc<Asks>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(4));
    while !asks.enough.load(Ordering::Relaxed) {
        ticks.tick().await;
        let number = asks.begun.fetch_add(1, Ordering::Relaxed);
        match ends("ask", clerk.enter(number)).await {
            Ok(answer) => {
                assert_eq!(answer, number);
                assert!(asks.answered.lock().unwrap().insert(number));
            }
            Err(error) => {
                assert!(error.is_crash(), "{error}");
                assert_eq!(asks.failed.lock().unwrap().insert(number, error.maybe_executed()), None);
            }
        }
    }
}

/// What can be asked of a supervisor at any time; how often all of it was.
async fn calls(tree: Tree, enough: Arc<Asks>) -> u64 {
    let mut rounds = 0;
    while !enough.enough.load(Ordering::Relaxed) {
        let name = format!("clerk-{}", rounds % CLERKS);
        assert_eq!(ends("children", tree.children()).await.len() as u64, CLERKS);
        assert_eq!(tree.count().specs as u64, CLERKS);
        let again = tree.start_child(worker::<Clerk>(&name, PathBuf::new()));
        let error = ends("start", again).await.map(drop).unwrap_err();
        assert!(error.is_already_started() || error.is_already_present(), "{error}");
        let error = ends("restart", tree.restart_child(&name)).await.unwrap_err();
        assert!(error.is_running() || error.is_restarting(), "{error}");
        let error = ends("delete", tree.delete_child(&name)).await.unwrap_err();
        assert!(error.is_running() || error.is_restarting(), "{error}");
        assert!(ends("terminate", tree.terminate_child("nobody")).await.unwrap_err().is_not_found());
        // A child that comes and goes.
        let visitor = ends("start", tree.start_child(local_with("visitor", || Visitor))).await.unwrap();
        ends("ask", visitor.is_there()).await.unwrap();
        ends("terminate", tree.terminate_child("visitor")).await.unwrap();
        ends("delete", tree.delete_child("visitor")).await.unwrap();
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rounds
}

struct Visitor;

#[hatchery::actor]
impl Visitor {
    fn start() -> Self {
        Visitor
    }

    fn is_there(&self) {}
}

const CLERKS: u64 = 20;
/// For how long, in seconds: 4 unless told otherwise.
const STORM: &str = "HATCHERY_STORM_SECONDS";

/// Ten SIGKILLs in a second, from outside, whether their victim sits or is about to. (200 in 20 s in `.ci/run`.)
#[hatchery::test]
async fn a_storm_of_kills_ends_with_all_ready_every_ask_ended_once_and_every_call_answered() {
    let seconds = std::env::var(STORM).ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(4);
    let dir = tempfile::tempdir().unwrap();
    let book = dir.path().join("book");
    File::create_new(&book).unwrap();
    let mut supervisor = Supervisor::new(Strategy::OneForOne).intensity(u32::MAX, Duration::from_secs(60));
    for number in 0..CLERKS {
        supervisor = supervisor.child(worker::<Clerk>(format!("clerk-{number}"), book.clone()));
    }
    let tree = ends("start", supervisor.start()).await.unwrap();
    let clerks: Vec<_> =
        (0..CLERKS).map(|number| tree.get::<Clerk>(&format!("clerk-{number}")).unwrap()).collect();

    let all = Arc::<Asks>::default();
    let asking: Vec<_> = clerks.iter().map(|clerk| tokio::spawn(asks(clerk.clone(), all.clone()))).collect();
    let calling = tokio::spawn(calls(tree.clone(), all.clone()));
    let mut dice = Dice::new(23);
    let mut killed = BTreeSet::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let kills = seconds * 10;
    while killed.len() < kills {
        ticks.tick().await;
        // Those from their hello on.
        let living = hatchery::active_children();
        if living.is_empty() {
            continue;
        }
        let victim = living[dice.throw(living.len() as u64) as usize].pid();
        let pid = Pid::from_raw(i32::try_from(victim).unwrap()).unwrap();
        // One that was killed before may still be listed, or be gone by now.
        if !killed.contains(&victim) && kill_process(pid, Signal::KILL).is_ok() {
            killed.insert(victim);
        }
    }
    all.enough.store(true, Ordering::Relaxed);
    for asks in asking {
        ends("its asks", asks).await.unwrap();
    }
    let rounds = ends("its calls", calling).await.unwrap();
    for clerk in &clerks {
        let number = all.begun.fetch_add(1, Ordering::Relaxed);
        // It may meet the last of the killed.
        while let Err(error) = ends("ask", clerk.enter(u64::MAX - number)).await {
            assert!(error.is_crash(), "{error}");
        }
    }

    let children = ends("children", tree.children()).await;
    assert!(children.iter().all(|child| child.state == ChildState::Running), "{children:#?}");
    assert_eq!(tree.count().active as u64, CLERKS);
    becomes_true("nobody else is left", || hatchery::active_children().len() as u64 == CLERKS).await;
    // Nobody died who was not killed, and each of those was replaced once.
    let deaths: u64 = children.iter().map(|child| child.incarnation - 1).sum();
    assert_eq!(deaths, killed.len() as u64);
    ends("stop", tree.stop()).await.unwrap();

    let answered = all.answered.lock().unwrap();
    let failed = all.failed.lock().unwrap();
    let begun = all.begun.load(Ordering::Relaxed) - CLERKS;
    assert_eq!((answered.len() + failed.len()) as u64, begun, "every ask has ended");
    assert!(answered.iter().all(|number| !failed.contains_key(number)));
    let text = std::fs::read_to_string(&book).unwrap();
    let mut executed = BTreeSet::new();
    for number in text.lines().map(|line| line.parse::<u64>().unwrap()).filter(|number| *number < begun) {
        assert!(executed.insert(number), "{number} was executed twice");
        let may = answered.contains(&number) || failed.get(&number) == Some(&true);
        assert!(may, "{number} was executed, and its caller was told that it was not");
    }
    assert!(answered.is_subset(&executed));
    assert!(rounds > 0 && !answered.is_empty());
    println!("{begun} asks, {} of them failed; {rounds} rounds of calls", failed.len());
}
