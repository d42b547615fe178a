//! Supervisors that are called by their own children, from the start of those.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hatchery::prelude::*;
use hatchery::{CallError, ChildError, ChildState, SupervisorHandle};
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

fn outcome(outcome: Result<(), ChildError>) -> String {
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

/// What the one who was asked said of it.
fn refused(outcome: Result<(), CallError<ChildError>>) -> Result<(), ChildError> {
    outcome.map_err(|error| error.into_handler_error().expect("it was asked"))
}

/// Has itself or others stopped, by itself or by another one.
struct Leaver {
    shop: SupervisorHandle,
    tree: Option<Tree>,
}

#[hatchery::actor]
impl Leaver {
    fn start(shop: SupervisorHandle) -> Self {
        Leaver { tree: Tree::lookup("/shop").ok(), shop }
    }

    fn is_there(&self) {}

    async fn stops(&self, name: String) -> Result<(), ChildError> {
        match &self.tree {
            Some(tree) => tree.terminate_child(&name).await,
            None => refused(self.shop.terminate_child(&name).await),
        }
    }

    async fn asks_to_stop(&self, whom: String, name: String) -> Result<(), ChildError> {
        let other = hatchery::lookup::<Leaver>(&whom).expect("it is a path");
        refused(other.stops(name).await)
    }

    async fn tells(&self, name: String) -> bool {
        self.shop.terminate_child(&name).tell().await.is_ok()
    }

    fn asks_from_a_task(&self, name: String, cx: &Context) {
        let asked = self.shop.terminate_child(&name);
        cx.spawn(async move { drop(asked.await) });
    }
}

/// Who asks for it in a handler would wait for itself; it is told so at once, and goes on. Who does not wait is stopped.
#[hatchery::test]
async fn a_child_that_has_itself_stopped_and_waits_for_that_is_refused_at_once() {
    let leaver =
        |name: &str| worker_with::<Leaver>(name, |tree| Ok(tree.handle())).shutdown(Shutdown::infinity());
    let below = Supervisor::new(Strategy::OneForOne)
        .child(worker_with::<Leaver>("d", |_| SupervisorHandle::lookup("/shop")));
    let tree = Supervisor::new(Strategy::OneForOne).name("shop");
    let tree = tree.child(leaver("a")).child(leaver("b")).child(below.spec("below"));
    let tree = ends("start", tree.start()).await.unwrap();
    let here = local_with("here", {
        let (shop, tree) = (tree.handle(), tree.downgrade());
        move || Leaver { shop: shop.clone(), tree: tree.upgrade() }
    });
    let here = ends("start", tree.start_child(here.shutdown(Shutdown::infinity()))).await.unwrap();
    let [a, b] = ["a", "b"].map(|name| tree.get::<Leaver>(name).unwrap());
    let d = tree.get::<Supervisor>("below").unwrap().get::<Leaver>("d").unwrap();
    for (asked, name) in [
        (a.stops("a".to_owned()), "a"),
        (here.stops("here".to_owned()), "here"),
        (d.stops("below".to_owned()), "below"),
        (a.asks_to_stop("/shop/b".to_owned(), "a".to_owned()), "a"),
        (here.asks_to_stop("/shop/b".to_owned(), "here".to_owned()), "here"),
        (b.asks_to_stop("/shop/here".to_owned(), "b".to_owned()), "b"),
    ] {
        let error = refused(ends("a call", asked).await).unwrap_err();
        assert!(error.is_deadlock(), "{error}");
        assert!(error.to_string().starts_with(&format!("stop of /shop/{name}: /shop/{name}")), "{error}");
    }
    for member in [&a, &b, &here, &d] {
        ends("ask", member.is_there()).await.unwrap();
        assert_eq!(member.incarnation(), Some(1));
    }
    // What it does not wait for is done: another one that waits for nobody, and in the end itself.
    ends("a call", a.stops("below".to_owned())).await.unwrap();
    assert!(ends("tell", a.tells("a".to_owned())).await.unwrap());
    ends("a call", b.asks_from_a_task("b".to_owned())).await.unwrap();
    for gone in [&a, &b] {
        becomes_true("it is stopped", || gone.actor_ref().seat().is_closed()).await;
    }
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
