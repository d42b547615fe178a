//! Who asks a sibling that is down, and would hold up its next start by that: he is told at once, and all others wait.

use std::path::{Path, PathBuf};

use hatchery::prelude::*;
use hatchery::{CallError, ChildSpec, ChildState};
use hatchery_tests::{becomes_true, ends, send};
use rustix::process::Signal;

/// Asks others, by their paths.
struct Member {
    dir: PathBuf,
    last: Option<String>,
}

#[hatchery::actor]
impl Member {
    fn start(name: String, dir: PathBuf) -> hatchery::Result<Self> {
        if dir.join(format!("{name} fails")).exists() {
            return Err(hatchery::Error::msg("not today"));
        }
        Ok(Member { dir, last: None })
    }

    fn is_there(&self) {}

    fn crash(&self) {
        panic!("enough")
    }

    /// Asks the last one of these through all before it.
    async fn passes(&self, mut way: Vec<String>) -> String {
        let next = hatchery::lookup::<Member>(&way.remove(0)).expect("it is a path");
        if way.is_empty() {
            return outcome(next.is_there().await);
        }
        next.passes(way).await.unwrap_or_else(|error| error.to_string())
    }

    /// The same when that one has crashed.
    async fn crashes_and_asks(&self, way: Vec<String>) -> String {
        let last = hatchery::lookup::<Member>(way.last().expect("somebody")).expect("it is a path");
        assert!(last.crash().await.unwrap_err().is_crash());
        self.passes(way).await
    }

    /// Has that one crash, and asks it until it has answered, as long as nothing has been executed.
    async fn crashes_and_insists(&self, path: String) {
        let last = hatchery::lookup::<Member>(&path).expect("it is a path");
        assert!(last.crash().await.unwrap_err().is_crash());
        while last.is_there().await.is_err_and(|error| error.is_crash() && !error.maybe_executed()) {}
    }

    /// The same without an answer.
    async fn crashes_and_tells(&self, path: String) -> String {
        let last = hatchery::lookup::<Member>(&path).expect("it is a path");
        assert!(last.crash().await.unwrap_err().is_crash());
        match last.is_there().tell().await {
            Ok(()) => "told".to_owned(),
            Err(error) if error.is_crash() => "ended before".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Asks this one when it is stopped.
    fn asks_at_last(&mut self, path: String) {
        self.last = Some(path);
    }

    async fn stopped(&mut self) {
        if let Some(path) = self.last.take() {
            let said = self.passes(vec![path]).await;
            std::fs::write(self.dir.join("last"), said).expect("there is a directory");
        }
    }
}

fn outcome(outcome: Result<(), CallError>) -> String {
    match outcome {
        Ok(()) => "answered".to_owned(),
        Err(error) if error.is_crash() && !error.maybe_executed() => "ended before".to_owned(),
        Err(error) if error.is_stopping() => "stopping".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// One that has all the time it wants to leave.
fn member(name: &str, dir: &Path) -> ChildSpec<impl hatchery::Start<Handle = MemberHandle> + use<>> {
    worker::<Member>(name, (name.to_owned(), dir.to_owned())).shutdown(Shutdown::infinity())
}

fn here(name: &str, dir: &Path) -> ChildSpec<impl hatchery::Start<Handle = MemberHandle> + use<>> {
    local::<Member>(name, (name.to_owned(), dir.to_owned())).shutdown(Shutdown::infinity())
}

fn shop(strategy: Strategy) -> Supervisor {
    Supervisor::new(strategy).name("shop").backoff(Duration::ZERO, Duration::ZERO)
}

fn way(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

/// All of a group have been started so often.
async fn are_back(members: &[&MemberHandle], incarnation: u64) {
    let are = || members.iter().all(|member| member.incarnation() == Some(incarnation));
    becomes_true("all are back", are).await;
}

/// Whoever is in nobody's way waits at a vacant seat as ever, in a handler or not.
#[hatchery::test]
async fn a_sibling_that_asks_who_has_crashed_is_told_at_once_while_others_wait_for_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        for in_workers in [true, false] {
            let supervisor = shop(strategy);
            let tree = if in_workers {
                supervisor.child(member("b", dir.path())).child(member("c", dir.path()))
            } else {
                supervisor.child(here("b", dir.path())).child(here("c", dir.path()))
            };
            let tree = ends("start", tree.start()).await.unwrap();
            let outside = Supervisor::new(Strategy::OneForOne).name("outside").child(member("x", dir.path()));
            let outside = ends("start", outside.start()).await.unwrap();
            let (b, c) = (tree.get::<Member>("b").unwrap(), tree.get::<Member>("c").unwrap());
            let x = outside.get::<Member>("x").unwrap();
            for incarnation in 2..5 {
                let waits = async {
                    b.monitor().await;
                    tokio::join!(b.is_there(), x.passes(way(&["/shop/b"])))
                };
                let (said, (answered, asked)) =
                    ends("asks", async { tokio::join!(c.crashes_and_asks(way(&["/shop/b"])), waits) }).await;
                assert_eq!(said.unwrap(), "ended before", "{strategy:?}");
                answered.unwrap();
                assert_eq!(asked.unwrap(), "answered");
                are_back(&[&b, &c], incarnation).await;
            }
            ends("stop", tree.stop()).await.unwrap();
            ends("stop", outside.stop()).await.unwrap();
        }
    }
}

#[hatchery::test]
async fn so_is_one_that_waits_through_others_or_below_a_sibling_and_one_that_only_tells() {
    let dir = tempfile::tempdir().unwrap();
    let outside = Supervisor::new(Strategy::OneForOne).name("outside").child(member("x", dir.path()));
    let outside = ends("start", outside.start()).await.unwrap();
    let front = Supervisor::new(Strategy::OneForOne).child(member("d", dir.path()));
    let tree = shop(Strategy::OneForAll)
        .child(member("a", dir.path()))
        .child(member("b", dir.path()))
        .child(member("c", dir.path()))
        .child(front.spec("front"));
    let tree = ends("start", tree.start()).await.unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| tree.get::<Member>(name).unwrap());
    let d = tree.get::<Supervisor>("front").unwrap().get::<Member>("d").unwrap();
    let mut incarnation = 1;
    let mut again = async || {
        incarnation += 1;
        are_back(&[&a, &b, &c, &d], incarnation).await;
    };
    for through in ["/outside/x", "/shop/a"] {
        let said = ends("ask", c.crashes_and_asks(way(&[through, "/shop/b"]))).await.unwrap();
        assert_eq!(said, "ended before", "through {through}");
        again().await;
        let said = ends("ask", d.crashes_and_asks(way(&[through, "/shop/b"]))).await.unwrap();
        assert_eq!(said, "ended before", "from below, through {through}");
        again().await;
    }
    assert_eq!(ends("tell", c.crashes_and_tells("/shop/b".to_owned())).await.unwrap(), "ended before");
    again().await;
    // One that is stopped later asks one that was stopped before, and which waits for it.
    ends("tell", a.asks_at_last("/shop/c".to_owned())).await.unwrap();
    send(b.pid().unwrap(), Signal::KILL);
    again().await;
    assert_eq!(std::fs::read_to_string(dir.path().join("last")).unwrap(), "stopping");
    ends("stop", tree.stop()).await.unwrap();
    ends("stop", outside.stop()).await.unwrap();
}

/// Each of its asks ends at once, and still it awaits them.
#[hatchery::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sibling_that_asks_again_and_again_is_cut_off_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let patience = Shutdown::graceful(Duration::from_millis(100));
    let tree = shop(Strategy::OneForAll).child(here("b", dir.path()));
    let tree = ends("start", tree.child(here("c", dir.path()).shutdown(patience)).start()).await.unwrap();
    let (b, c) = (tree.get::<Member>("b").unwrap(), tree.get::<Member>("c").unwrap());
    let error = ends("ask", c.crashes_and_insists("/shop/b".to_owned())).await.unwrap_err();
    assert!(error.is_crash(), "{error}");
    are_back(&[&b, &c], 2).await;
    ends("stop", tree.stop()).await.unwrap();
}

/// A worker that has others, the end of each of which is its own.
struct Store {
    _tree: Tree,
}

#[hatchery::actor]
impl Store {
    async fn start(dir: PathBuf, cx: &Context) -> hatchery::Result<Self> {
        let below = Supervisor::new(Strategy::OneForOne).intensity(0, Duration::from_secs(60));
        Ok(Store { _tree: below.child(member("b", &dir)).start_in(cx).await? })
    }
}

/// Whoever is down is so with its supervisor, in this process or in a worker.
#[hatchery::test]
async fn so_is_one_that_asks_below_a_supervisor_that_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let back = Supervisor::new(Strategy::OneForOne).intensity(0, Duration::from_secs(60));
    let back = back.child(member("b", dir.path()));
    let tree = shop(Strategy::OneForAll)
        .child(back.spec("back"))
        .child(worker::<Store>("store", dir.path().to_owned()).shutdown(Shutdown::infinity()))
        .child(member("c", dir.path()));
    let tree = ends("start", tree.start()).await.unwrap();
    let c = tree.get::<Member>("c").unwrap();
    for (incarnation, path) in [(2, "/shop/back/b"), (3, "/shop/store/b")] {
        let said = ends("ask", c.crashes_and_asks(way(&[path]))).await.unwrap();
        assert_eq!(said, "ended before", "{path}");
        are_back(&[&c], incarnation).await;
        assert_eq!(ends("ask", c.passes(way(&[path]))).await.unwrap(), "answered", "{path}");
    }
    ends("stop", tree.stop()).await.unwrap();
}

/// Nobody is started any more at the end of all.
#[hatchery::test]
async fn at_the_end_of_all_nobody_waits_for_one_that_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Supervisor::new(Strategy::OneForOne).name("shop");
    let tree = tree.backoff(Duration::from_secs(3600), Duration::from_secs(3600));
    let tree = tree.child(member("b", dir.path())).child(member("c", dir.path()));
    let tree = ends("start", tree.start()).await.unwrap();
    let (b, c) = (tree.get::<Member>("b").unwrap(), tree.get::<Member>("c").unwrap());
    std::fs::write(dir.path().join("b fails"), "").unwrap();
    let mut events = tree.events();
    let asks = tokio::spawn(c.crashes_and_asks(way(&["/shop/b"])));
    loop {
        let event = ends("event", events.next()).await.unwrap();
        if matches!(&event, hatchery::TreeEvent::RestartScheduled { delay, .. } if delay.as_secs() > 60) {
            break;
        }
    }
    // It is no group: who is there goes on, and its ask waits.
    let children = ends("children", tree.children()).await;
    assert_eq!(children[0].state, ChildState::Restarting);
    let error = ends("ask", b.is_there().timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(error.is_timeout() && !asks.is_finished(), "{error}");
    ends("stop", tree.stop()).await.unwrap();
    assert_eq!(asks.await.unwrap().unwrap(), "ended before");
}
