//! Supervisors that are called by their own children, from the start of those.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hatchery::ChildState;
use hatchery::prelude::*;
use hatchery_tests::{becomes_true, ends};

/// The supervisors of the tests of this process, by the names of the tests.
static TREES: Mutex<BTreeMap<String, Tree>> = Mutex::new(BTreeMap::new());

/// A tree that its children find in their starts, until this is dropped.
struct Shown(String);

fn shown(test: &str, tree: &Tree) -> Shown {
    TREES.lock().unwrap_or_else(PoisonError::into_inner).insert(test.to_owned(), tree.clone());
    Shown(test.to_owned())
}

fn tree_of(test: &str) -> Tree {
    TREES.lock().unwrap_or_else(PoisonError::into_inner).get(test).expect("it was shown").clone()
}

impl Drop for Shown {
    fn drop(&mut self) {
        TREES.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

struct Plain;

#[hatchery::actor]
impl Plain {
    fn start() -> Self {
        Plain
    }

    fn is_there(&self) {}
}

/// Its start has its own supervisor do something, and keeps what came of it.
struct Caller {
    heard: Vec<String>,
}

#[hatchery::actor]
impl Caller {
    async fn start(test: String, calls: Vec<String>) -> hatchery::Result<Self> {
        let tree = tree_of(&test);
        let mut heard = Vec::new();
        for call in calls {
            let said = match call.split_once(' ') {
                Some(("start", name)) => match tree.start_child(local::<Plain>(name, ())).await {
                    Ok(plain) => {
                        plain.is_there().await.map_or_else(|error| error.to_string(), |()| "up".into())
                    }
                    Err(error) if error.is_already_started() => "already started".into(),
                    Err(error) if error.is_already_present() => "already present".into(),
                    Err(error) => error.to_string(),
                },
                Some(("terminate", name)) => outcome(tree.terminate_child(name).await),
                Some(("restart", name)) => outcome(tree.restart_child(name).await),
                Some(("delete", name)) => outcome(tree.delete_child(name).await),
                Some(("stop", _)) => {
                    tree.stop().await.map_or_else(|error| error.to_string(), |()| "over".into())
                }
                _ => states(&tree).await,
            };
            heard.push(format!("{call}: {said}"));
        }
        Ok(Caller { heard })
    }

    fn heard(&self) -> Vec<String> {
        self.heard.clone()
    }

    fn panics(&self) {
        panic!("enough")
    }
}

fn outcome(outcome: Result<(), hatchery::ChildError>) -> String {
    match outcome {
        Ok(()) => "done".to_owned(),
        Err(error) if error.is_running() => "running".to_owned(),
        Err(error) if error.is_restarting() => "restarting".to_owned(),
        Err(error) if error.is_not_found() => "not found".to_owned(),
        Err(error) => error.to_string(),
    }
}

async fn states(tree: &Tree) -> String {
    let children = tree.children().await;
    children.iter().map(|child| format!("{} {:?}", child.name, child.state)).collect::<Vec<_>>().join(", ")
}

fn caller(test: &str, calls: &[&str]) -> (String, Vec<String>) {
    (test.to_owned(), calls.iter().map(|call| (*call).to_owned()).collect())
}

const CALLS: [&str; 9] = [
    "children",
    "start child",
    "start caller",
    "restart caller",
    "delete caller",
    "terminate other",
    "delete other",
    "terminate child",
    "restart child",
];

/// In its first start, and when it is started again.
#[hatchery::test]
async fn a_childs_start_may_call_its_own_supervisor() {
    const TEST: &str = "calls";
    let tree = ends("start", Supervisor::new(Strategy::OneForOne).start()).await.unwrap();
    let _shown = shown(TEST, &tree);
    ends("start", tree.start_child(worker::<Plain>("other", ()))).await.unwrap();
    let caller = tree.start_child(local::<Caller>("caller", caller(TEST, &CALLS)));
    let caller = ends("a start that calls", caller).await.unwrap();
    let first = [
        "children: other Running, caller Starting",
        "start child: up",
        "start caller: already started",
        "restart caller: running",
        "delete caller: running",
        "terminate other: done",
        "delete other: done",
        "terminate child: done",
        "restart child: done",
    ];
    assert_eq!(ends("ask", caller.heard()).await.unwrap(), first);
    assert!(ends("ask", caller.panics()).await.unwrap_err().is_crash());
    let again = [
        "children: caller Restarting, child Running",
        "start child: already started",
        "start caller: already present",
        "restart caller: restarting",
        "delete caller: restarting",
        "terminate other: not found",
        "delete other: not found",
        "terminate child: done",
        "restart child: done",
    ];
    assert_eq!(ends("ask", caller.heard()).await.unwrap(), again);
    assert_eq!(caller.incarnation(), Some(2));
    ends("stop", tree.stop()).await.unwrap();
}

/// In the middle of the restart of its group: siblings of it wait for it, and are taken out of that, one after the other.
#[hatchery::test]
async fn a_start_in_a_group_restart_may_call_its_own_supervisor() {
    const TEST: &str = "calls in a group";
    let tree = ends("start", Supervisor::new(Strategy::OneForAll).start()).await.unwrap();
    let _shown = shown(TEST, &tree);
    let calls = ["children", "terminate late", "start another", "children"];
    let caller =
        ends("start", tree.start_child(local::<Caller>("caller", caller(TEST, &calls)))).await.unwrap();
    let [late, later] = ["late", "later"].map(|name| tree.start_child(worker::<Plain>(name, ())));
    let (late, later) = (ends("start", late).await.unwrap(), ends("start", later).await.unwrap());
    ends("ask", later.is_there()).await.unwrap();
    later.kill();
    becomes_true("the group is up again", || later.incarnation() == Some(2)).await;
    let heard = [
        "children: caller Restarting, another Restarting, late Restarting, later Restarting",
        "terminate late: done",
        "start another: already present",
        "children: caller Restarting, another Restarting, late Stopped, later Restarting",
    ];
    assert_eq!(ends("ask", caller.heard()).await.unwrap(), heard);
    assert!(ends("ask", late.is_there()).await.unwrap_err().is_closed());
    ends("ask", later.is_there()).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
}

/// What would have to wait for itself ends instead: the start is given up by what it asks for.
#[hatchery::test]
async fn a_start_that_has_itself_or_its_supervisor_stopped_is_given_up() {
    const TEST: &str = "calls against itself";
    let tree = ends("start", Supervisor::new(Strategy::OneForOne).start()).await.unwrap();
    let _shown = shown(TEST, &tree);
    let spec = local::<Caller>("caller", caller(TEST, &["terminate caller"]));
    let error = ends("start", tree.start_child(spec)).await.map(drop).unwrap_err();
    assert!(error.is_closed(), "{error}");
    assert_eq!(tree.count().specs, 0);

    let spec = local::<Caller>("caller", caller(TEST, &["stop all"]));
    let plain = ends("start", tree.start_child(worker::<Plain>("plain", ()))).await.unwrap();
    assert_eq!(ends("children", tree.children()).await[0].state, ChildState::Running);
    let error = ends("start", tree.start_child(spec)).await.map(drop).unwrap_err();
    assert!(error.is_closed(), "{error}");
    ends("stop", tree.stop()).await.unwrap();
    assert!(!plain.is_alive());
}
