//! Handles that travel: any process of a tree reaches any actor of it, and knows how it ended.

use hatchery::CallError;
use hatchery::prelude::*;
use std::time::Duration;

use hatchery_tests::{ends, send};
use rustix::process::Signal;

/// An actor that does what it is asked to with the handles it is given.
struct Peer {
    name: String,
    known: Vec<PeerHandle>,
    tree: Option<Tree>,
    told: u64,
}

#[hatchery::actor]
impl Peer {
    fn start(name: String) -> Self {
        Peer { name, known: Vec::new(), tree: None, told: 0 }
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn note(&mut self, n: u64) {
        self.told += n;
    }

    fn told(&self) -> u64 {
        self.told
    }

    fn abort(&self) {
        std::process::abort()
    }

    fn know(&mut self, other: PeerHandle) {
        self.known.push(other);
    }

    /// Asks that one for its name.
    async fn name_of(&self, other: PeerHandle) -> Result<String, String> {
        other.name().await.map_err(|error| format!("{error:?}"))
    }

    /// Asks the one it knows.
    async fn known_name(&self) -> Result<String, String> {
        self.known[0].name().await.map_err(|error| error.to_string())
    }

    async fn kill_by_request(&self, other: PeerHandle) -> Result<Option<i32>, String> {
        let error: CallError = other.abort().await.err().ok_or("it lives")?;
        error.exit().map(|exit| exit.exitcode()).ok_or(error.to_string())
    }

    async fn tell(&self, other: PeerHandle, times: u64) -> Result<(), String> {
        for _ in 0..times {
            other.note(1).tell().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn look_up(&self, path: String) -> Result<String, String> {
        let other = hatchery::lookup::<Peer>(&path).map_err(|error| error.to_string())?;
        other.name().await.map_err(|error| error.to_string())
    }

    /// Starts another one in a worker of its own.
    async fn nest(&mut self, name: String) -> Result<PeerHandle, String> {
        let said = |error: hatchery::Error| error.to_string();
        if self.tree.is_none() {
            let tree = Supervisor::new(Strategy::OneForOne).name("inner").start().await;
            self.tree = Some(tree.map_err(|error| said(error.into()))?);
        }
        let tree = self.tree.as_ref().ok_or("no tree")?;
        let child = tree.start_child(worker::<Peer>(name.clone(), name)).await;
        child.map_err(|error| said(error.into()))
    }

    fn me(&self, cx: &Context) -> PeerHandle {
        cx.me()
    }
}

async fn tree(name: &str) -> Tree {
    Supervisor::new(Strategy::OneForOne).name(name).start().await.unwrap()
}

async fn peer(tree: &Tree, name: &str) -> PeerHandle {
    tree.start_child(worker::<Peer>(name, name.to_owned())).await.unwrap()
}

/// Asks until the answer is this one.
async fn says<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, mut ask: impl AsyncFnMut() -> T) {
    ends(what, async {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        while ask().await != expected {
            ticks.tick().await;
        }
    })
    .await;
}

#[hatchery::test]
async fn siblings_reach_each_other_by_handles_they_are_given() {
    let tree = tree("siblings").await;
    let (a, b) = (peer(&tree, "a").await, peer(&tree, "b").await);
    assert_eq!(a.name_of(b.clone()).await.unwrap(), "b");
    assert_eq!(b.name_of(a.clone()).await.unwrap(), "a");
    a.tell(b.clone(), 1000).await.unwrap();
    says("the tells", 1000, async || b.told().await.unwrap()).await;
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_handle_works_wherever_its_actor_is() {
    let tree = tree("wherever").await;
    let a = peer(&tree, "a").await;
    let here = tree.start_child(local::<Peer>("here", "here".to_owned())).await.unwrap();
    // In the parent of the one who asks, and back.
    assert_eq!(a.name_of(here.clone()).await.unwrap(), "here");
    assert_eq!(here.name_of(a.clone()).await.unwrap(), "a");
    // A child of it, one of that, and any two of them.
    let b = a.nest("b".to_owned()).await.unwrap();
    let c = b.nest("c".to_owned()).await.unwrap();
    let all = [&here, &a, &b, &c];
    for asked in all {
        for whom in all.iter().filter(|whom| whom.path() != asked.path()) {
            let name = whom.path().rsplit('/').next().unwrap();
            assert_eq!(asked.name_of((*whom).clone()).await.unwrap(), name, "{asked:?} asks {whom:?}");
            assert_eq!(asked.look_up(whom.path().to_owned()).await.unwrap(), name);
        }
    }
    // The reference that an actor has to itself is one to its seat when it travels.
    assert_eq!(a.name_of(c.me().await.unwrap()).await.unwrap(), "c");
    assert_eq!(c.path(), "/wherever/a/inner/b/inner/c");
    assert_ne!(c.pid().await.unwrap(), b.pid().await.unwrap());
    assert_eq!(c.incarnation(), Some(1));
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn what_is_not_there_is_told_at_once() {
    let tree = tree("absent").await;
    let a = peer(&tree, "a").await;
    tree.start_child(worker::<Other>("other", ())).await.unwrap();
    for (path, why) in [
        ("/absent/nobody", "nobody is called /absent/nobody"),
        ("/elsewhere/a", "nobody is called /elsewhere/a"),
        ("/absent/a/inner/nobody", "nobody is called /absent/a/inner/nobody"),
        ("/absent/other", "was taken for a"),
        ("absent/a", "is no path of an actor"),
        ("/absent//a", "is no path of an actor"),
    ] {
        let from_there = a.look_up(path.to_owned()).await.unwrap_err().to_string();
        for asked in [from_there, looked_up(path).await.unwrap_err()] {
            assert!(asked.contains(why), "{path}: {asked}");
        }
    }
    tree.stop().await.unwrap();
}

async fn looked_up(path: &str) -> Result<String, String> {
    let other = hatchery::lookup::<Peer>(path).map_err(|error| error.to_string())?;
    other.name().await.map_err(|error| error.to_string())
}

/// Of another kind than the others.
struct Other;

#[hatchery::actor]
impl Other {
    fn start() -> Self {
        Other
    }
}

#[hatchery::test]
async fn who_asked_from_elsewhere_learns_how_it_ended_and_finds_the_next_one() {
    let tree = tree("ends").await;
    let (a, b) = (peer(&tree, "a").await, peer(&tree, "b").await);
    assert_eq!(a.kill_by_request(b.clone()).await.unwrap(), Some(-6));
    assert_eq!(a.name_of(b.clone()).await.unwrap(), "b");
    a.know(b.clone()).await.unwrap();
    for _ in 0..5 {
        let pid = AnyHandle::pid(&b).unwrap();
        send(pid, Signal::KILL);
        // Perhaps before its end is known: then that is what it is told.
        says("the next one", Some("b".to_owned()), async || a.known_name().await.ok()).await;
        assert_ne!(b.pid().await.unwrap(), pid);
    }
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn the_end_of_a_worker_in_between_ends_what_is_below_and_a_named_seat_is_found_again() {
    let tree = tree("middle").await;
    let far = peer(&tree, "far").await;
    let middle = tree.start_child(worker::<Middle>("middle", ())).await.unwrap();
    let below = middle.below().await.unwrap();
    assert_eq!(far.name_of(below.clone()).await.unwrap(), "below");
    far.know(below.clone()).await.unwrap();
    let pids = (below.pid().await.unwrap(), middle.pid().unwrap());
    send(pids.1, Signal::KILL);
    hatchery_tests::becomes_true("the subtree is gone", || !hatchery_tests::runs(pids.0)).await;
    says("the next one below", Some("below".to_owned()), async || far.known_name().await.ok()).await;
    says("the next one from here", true, async || below.pid().await.is_ok_and(|pid| pid != pids.0)).await;
    tree.stop().await.unwrap();
}

/// Has a worker of its own from the start.
struct Middle {
    below: PeerHandle,
    _tree: Tree,
}

#[hatchery::actor]
impl Middle {
    async fn start() -> hatchery::Result<Self> {
        let tree = Supervisor::new(Strategy::OneForOne).name("inner").start().await?;
        let below = tree.start_child(worker::<Peer>("below", "below".to_owned())).await?;
        Ok(Middle { below, _tree: tree })
    }

    fn below(&self) -> PeerHandle {
        self.below.clone()
    }
}
