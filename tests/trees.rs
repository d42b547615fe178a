//! Supervisors below supervisors, in this process and in workers, with real processes and real signals; and what can be
//! seen of them: events, snapshots, handles.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hatchery::prelude::*;
use hatchery::{AutoShutdown, ChildInfo, ChildSpec, ChildState, Events, Start, SupervisorHandle, TreeEvent};
use hatchery_tests::{becomes_true, ends, runs, send, state};
use rustix::process::Signal;

/// Does nothing but be there, or die.
struct Part;

#[hatchery::actor]
impl Part {
    fn start() -> Self {
        Part
    }

    fn me(&self) -> u32 {
        std::process::id()
    }

    fn crash(&self) {
        std::process::abort()
    }
}

fn part(name: &str) -> ChildSpec<impl Start<Handle = PartHandle> + use<>> {
    worker::<Part>(name, ())
}

/// One restart is too many.
fn frail(strategy: Strategy) -> Supervisor {
    Supervisor::new(strategy).intensity(0, Duration::from_secs(60))
}

async fn next(events: &mut Events) -> TreeEvent {
    ends("event", events.next()).await.expect("an event")
}

/// The next event that is about this path.
async fn next_about(events: &mut Events, path: &str) -> TreeEvent {
    loop {
        let event = next(events).await;
        if event.path() == Some(path) {
            return event;
        }
    }
}

#[hatchery::test]
async fn a_supervisor_that_gives_up_is_started_again_by_its_own_and_the_same_handles_reach_its_children() {
    let inner = frail(Strategy::OneForOne).child(part("a")).child(part("b"));
    let outer =
        Supervisor::new(Strategy::OneForOne).name("shop").child(inner.spec("back")).child(part("front"));
    let tree = ends("start", outer.start()).await.unwrap();
    let back = tree.get::<Supervisor>("back").unwrap();
    assert_eq!(back.path(), "/shop/back");
    let [a, b] = ["a", "b"].map(|name| back.get::<Part>(name).unwrap());
    let front = tree.get::<Part>("front").unwrap();
    assert_eq!((a.path(), front.path()), ("/shop/back/a", "/shop/front"));
    let pids = (ends("ask", a.me()).await.unwrap(), ends("ask", b.me()).await.unwrap());
    let extra = ends("start", back.start_child(part("extra"))).await.unwrap();

    assert!(ends("crash", a.crash()).await.unwrap_err().is_crash());
    let next = (ends("ask", a.me()).await.unwrap(), ends("ask", b.me()).await.unwrap());
    assert!(pids.0 != next.0 && pids.1 != next.1, "both are new");
    assert!(state(pids.0).is_none() && state(pids.1).is_none());
    assert_eq!((a.incarnation(), b.incarnation(), front.incarnation()), (Some(2), Some(2), Some(1)));
    // Whoever was added later is gone with it.
    assert!(ends("ask", extra.me()).await.unwrap_err().is_closed());
    assert_eq!(back.count().specs, 2);
    assert_eq!((tree.count().supervisors, tree.count().workers), (1, 1));
    assert!(hatchery::lookup::<Part>("/shop/back/a").unwrap().me().await.is_ok());
    ends("stop", tree.stop()).await.unwrap();
    assert!(state(next.0).is_none() && state(next.1).is_none());
    assert!(ends("ask", a.me()).await.unwrap_err().is_closed());
    assert!(ends("children", back.children()).await.is_empty());
    let error = tree.get::<Part>("front").unwrap_err().to_string();
    assert!(error.contains("/shop has ended"), "{error}");
}

#[hatchery::test]
async fn escalation_goes_up_three_levels_and_ends_the_program_s_tree_with_the_reason() {
    let low = frail(Strategy::OneForOne).child(part("a"));
    let middle = frail(Strategy::OneForAll).child(low.spec("low")).child(part("b"));
    let high = frail(Strategy::RestForOne).name("high").child(part("c")).child(middle.spec("middle"));
    let tree = ends("start", high.start()).await.unwrap();
    let mut events = tree.events();
    let low = tree.get::<Supervisor>("middle").unwrap().get::<Supervisor>("low").unwrap();
    let a = low.get::<Part>("a").unwrap();
    assert_eq!(a.path(), "/high/middle/low/a");
    assert!(ends("crash", a.crash()).await.unwrap_err().is_crash());
    let why = ends("the end", tree.ended()).await.unwrap_err().to_string();
    for part in ["/high gave up", "/high/middle/low/a needed more than 0 restarts", "SIGABRT"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let mut told = Vec::new();
    while let Some(event) = ends("event", events.next()).await {
        if let TreeEvent::Ended { path, .. } | TreeEvent::Exited { path, .. } = event {
            told.push(path);
        }
    }
    assert_eq!(
        told,
        [
            "/high/middle/low/a",
            "/high/middle/low",
            "/high/middle/low",
            "/high/middle/b",
            "/high/middle",
            "/high/middle",
            "/high/c",
            "/high"
        ]
    );
    assert!(ends("ask", a.me()).await.unwrap_err().is_closed());
}

#[hatchery::test]
async fn a_supervisor_is_stopped_and_started_by_hand_and_its_children_say_so_meanwhile() {
    let inner = Supervisor::new(Strategy::OneForOne).child(part("a"));
    let outer = Supervisor::new(Strategy::OneForOne).name("shop").child(inner.spec("back"));
    let tree = ends("start", outer.start()).await.unwrap();
    let back = tree.get::<Supervisor>("back").unwrap();
    let a = back.get::<Part>("a").unwrap();
    let pid = ends("ask", a.me()).await.unwrap();
    ends("terminate", tree.terminate_child("back")).await.unwrap();
    assert!(state(pid).is_none());
    let error = ends("ask", a.me()).await.unwrap_err();
    assert!(error.is_closed() && error.to_string().contains("restart_child"), "{error}");
    assert!(ends("start", back.start_child(part("b"))).await.unwrap_err().is_closed());
    ends("restart", tree.restart_child("back")).await.unwrap();
    ends("ask", a.me()).await.unwrap();
    ends("start", back.start_child(part("b"))).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_child_that_does_not_start_fails_its_supervisor_and_nothing_is_left() {
    let pids = Arc::new(Mutex::new(Vec::new()));
    let seen = pids.clone();
    let failing = worker_with::<Part>("b", move |tree| {
        let front = Tree::lookup("/shop")?.get::<Part>("c")?;
        seen.lock().unwrap().extend([front.pid(), tree.get::<Part>("a")?.pid()]);
        Err(hatchery::Error::msg("no arguments today"))
    });
    let inner = Supervisor::new(Strategy::OneForOne).child(part("a")).child(failing);
    let outer = Supervisor::new(Strategy::OneForOne).name("shop").child(part("c")).child(inner.spec("back"));
    let error = ends("start", outer.start()).await.unwrap_err().to_string();
    assert!(error.contains("/shop/back") && error.contains("no arguments today"), "{error}");
    let pids = std::mem::take(&mut *pids.lock().unwrap());
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| state(pid.expect("it was up")).is_none()), "{pids:?}");
    // And what contradicts itself does so before anything starts.
    let wrong = Supervisor::new(Strategy::OneForOne).intensity(1, Duration::ZERO).spec("wrong");
    let error = ends("start", Supervisor::new(Strategy::OneForOne).child(wrong).start()).await.unwrap_err();
    assert!(error.to_string().contains("no time"), "{error}");
    let twins = Supervisor::new(Strategy::OneForOne).child(part("a")).child(part("a")).spec("twins");
    let error = ends("start", Supervisor::new(Strategy::OneForOne).child(twins).start()).await.unwrap_err();
    assert!(error.to_string().contains("is taken"), "{error}");
}

/// A worker that has workers of its own.
struct Store {
    tree: Tree,
}

#[hatchery::actor]
impl Store {
    async fn start(shelves: u32, cx: &Context) -> hatchery::Result<Self> {
        let mut supervisor = frail(Strategy::OneForOne);
        for number in 0..shelves {
            supervisor = supervisor.child(part(&format!("shelf-{number}")));
        }
        Ok(Store { tree: supervisor.start_in(cx).await? })
    }

    async fn pids(&self) -> hatchery::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for child in self.tree.children().await {
            pids.push(self.tree.get::<Part>(&child.name)?.me().await?);
        }
        Ok(pids)
    }

    async fn close(&self) -> hatchery::Result<()> {
        self.tree.stop().await
    }

    async fn add(&self, name: String) -> hatchery::Result<PartHandle> {
        Ok(self.tree.start_child(part(&name)).await?)
    }

    fn panic(&self) {
        panic!("no more room")
    }
}

#[hatchery::test]
async fn the_end_of_a_worker_with_a_supervisor_ends_and_restarts_what_is_below_it() {
    let supervisor = Supervisor::new(Strategy::OneForOne).name("shop");
    let store = worker::<Store>("store", 2).shutdown(Shutdown::infinity());
    let tree = ends("start", supervisor.child(store).start()).await.unwrap();
    let store = tree.get::<Store>("store").unwrap();
    let shelf = hatchery::lookup::<Part>("/shop/store/shelf-1").unwrap();
    let mut pids = ends("ask", store.pids()).await.unwrap();
    assert_eq!(pids[1], ends("ask", shelf.me()).await.unwrap());
    for how in ["killed", "panicked", "gave up", "stopped"] {
        match how {
            "killed" => send(store.pid().unwrap(), Signal::KILL),
            "panicked" => assert!(ends("panic", store.panic()).await.unwrap_err().is_crash()),
            "gave up" => assert!(ends("crash", shelf.crash()).await.unwrap_err().is_crash()),
            _ => ends("stop", store.stop()).await.unwrap(),
        }
        becomes_true("all of them have ended", || pids.iter().all(|pid| !runs(*pid))).await;
        let next = loop {
            match ends("ask", store.pids()).await {
                Ok(next) => break next,
                // The one that is about to end still answers, or is caught by its end.
                Err(error) => println!("{how}: {error}"),
            }
        };
        assert!(next.len() == 2 && next.iter().all(|pid| !pids.contains(pid)), "{how}: {pids:?} {next:?}");
        assert_eq!(ends("ask", shelf.me()).await.unwrap(), next[1], "{how}");
        pids = next;
    }
    let added = ends("add", store.add("extra".to_owned())).await.unwrap();
    assert_eq!(added.path(), "/shop/store/extra");
    ends("ask", added.me()).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
    assert!(pids.iter().all(|pid| state(*pid).is_none()));
}

/// The same in this process.
#[hatchery::test]
async fn a_local_actor_with_a_supervisor_never_meets_the_children_of_its_predecessor() {
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").start().await.unwrap();
    let store = ends("start", tree.start_child(local::<Store>("store", 2))).await.unwrap();
    for _ in 0..5 {
        let pids = ends("ask", store.pids()).await.unwrap();
        assert!(ends("panic", store.panic()).await.unwrap_err().is_crash());
        let next = ends("ask", store.pids()).await.unwrap();
        // By then, not soon afterwards.
        assert!(pids.iter().all(|pid| state(*pid).is_none()), "{pids:?} beside {next:?}");
    }
    let pids = ends("ask", store.pids()).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
    assert!(pids.iter().all(|pid| state(*pid).is_none()));
}

/// Ignores all signals that can be ignored, and every wish.
struct Stubborn;

#[hatchery::actor]
impl Stubborn {
    fn start() -> Self {
        Stubborn
    }

    fn sleep(&self) {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

#[hatchery::test]
async fn a_supervisor_that_is_killed_kills_its_children() {
    let long = Shutdown::graceful(Duration::from_secs(3600));
    let inner = Supervisor::new(Strategy::OneForOne)
        .child(worker::<Stubborn>("deaf", ()).shutdown(long))
        .child(part("a"));
    let inner = inner.spec("inner").shutdown(Shutdown::kill());
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").child(inner).start().await.unwrap();
    let deaf = tree.get::<Supervisor>("inner").unwrap().get::<Stubborn>("deaf").unwrap();
    ends("tell", deaf.sleep().tell()).await.unwrap();
    let pid = deaf.pid().unwrap();
    // It would take an hour else; a first, polite attempt is not taken back.
    let polite = tree.get::<Supervisor>("inner").unwrap();
    let stopping = tokio::spawn(async move { polite.stop().await });
    ends("stop", tree.stop()).await.unwrap();
    assert!(state(pid).is_none());
    let _ = ends("the polite one", stopping).await;
}

#[hatchery::test]
async fn arguments_are_made_anew_at_each_start_from_the_tree_as_it_is_then() {
    struct Reader {
        store: PartHandle,
        number: u64,
    }

    #[hatchery::actor]
    impl Reader {
        fn start(store: PartHandle, number: u64) -> Self {
            Reader { store, number }
        }

        async fn read(&self) -> hatchery::Result<(u32, u64)> {
            Ok((self.store.me().await?, self.number))
        }

        fn crash(&self) {
            std::process::abort()
        }
    }

    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let reader = worker_with::<Reader>("reader", move |tree| {
        match counted.fetch_add(1, Ordering::SeqCst) {
            1 => return Err(hatchery::Error::msg("not this time")),
            2 => panic!("nor this"),
            _ => {}
        }
        Ok((tree.get::<Part>("store")?, counted.load(Ordering::SeqCst)))
    });
    let supervisor = Supervisor::new(Strategy::RestForOne).name("shop").child(part("store")).child(reader);
    let tree = ends("start", supervisor.start()).await.unwrap();
    let mut events = tree.events();
    let (store, reader) = (tree.get::<Part>("store").unwrap(), tree.get::<Reader>("reader").unwrap());
    assert_eq!(ends("read", reader.read()).await.unwrap(), (ends("ask", store.me()).await.unwrap(), 1));
    assert!(ends("crash", reader.crash()).await.unwrap_err().is_crash());
    // Two failed starts in between.
    assert_eq!(ends("read", reader.read()).await.unwrap(), (ends("ask", store.me()).await.unwrap(), 4));
    let mut told = Vec::new();
    while told.len() < 7 {
        told.push(match next_about(&mut events, "/shop/reader").await {
            TreeEvent::Exited { .. } => "exited".to_owned(),
            TreeEvent::RestartScheduled { delay, .. } => format!("scheduled {}", !delay.is_zero()),
            TreeEvent::StartFailed { why, .. } => why,
            TreeEvent::Started { incarnation, .. } => format!("started {incarnation}"),
            other => other.to_string(),
        });
    }
    assert_eq!(told[..3], ["exited", "scheduled false", "the start failed: not this time"], "{told:?}");
    assert!(told[3] == "scheduled true" && told[4].contains("nor this"), "{told:?}");
    assert_eq!(told[5..], ["scheduled true", "started 4"]);
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn events_come_in_order_from_all_levels_and_end_with_the_tree() {
    let inner = Supervisor::new(Strategy::OneForOne).spec("inner");
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").child(inner).start().await.unwrap();
    let inner = tree.get::<Supervisor>("inner").unwrap();
    let (mut all, mut below) = (tree.events(), inner.events());
    let a = ends("start", inner.start_child(part("a").restart(Restart::Transient))).await.unwrap();
    ends("ask", a.me()).await.unwrap();
    let first = a.pid().unwrap();
    send(first, Signal::KILL);
    becomes_true("it is back", || a.incarnation() == Some(2)).await;
    ends("stop", a.stop()).await.unwrap();
    becomes_true("it is stopped", || a.actor_ref().seat().is_closed()).await;
    ends("delete", inner.delete_child("a")).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
    for events in [&mut all, &mut below] {
        match next(events).await {
            TreeEvent::Started { path, incarnation: 1, pid, .. } => {
                assert_eq!((&*path, pid), ("/shop/inner/a", Some(first)));
            }
            other => panic!("{other}"),
        }
        match next(events).await {
            TreeEvent::Exited { incarnation: 1, exit, .. } => assert_eq!(exit.signal(), Some(9)),
            other => panic!("{other}"),
        }
        assert!(matches!(next(events).await, TreeEvent::RestartScheduled { incarnation: 2, .. }));
        assert!(matches!(next(events).await, TreeEvent::Started { incarnation: 2, .. }));
        assert!(matches!(next(events).await, TreeEvent::Exited { incarnation: 2, .. }));
        assert!(matches!(next(events).await, TreeEvent::Stopped { .. }));
        assert!(matches!(next(events).await, TreeEvent::Removed { .. }));
        assert!(
            matches!(next(events).await, TreeEvent::Ended { path, gave_up: None, .. } if path == "/shop/inner")
        );
    }
    assert!(matches!(next(&mut all).await, TreeEvent::Exited { path, .. } if path == "/shop/inner"));
    assert!(matches!(next(&mut all).await, TreeEvent::Ended { path, .. } if path == "/shop"));
    assert_eq!(ends("no more", all.next()).await, None);
    assert_eq!(ends("no more", tree.events().next()).await, None);
}

#[hatchery::test]
async fn a_snapshot_shows_the_tree_as_it_is_and_travels() {
    let inner = Supervisor::new(Strategy::OneForAll).child(part("a")).child(local::<Part>("b", ()));
    let outer = Supervisor::new(Strategy::OneForOne).name("shop").intensity(5, Duration::from_secs(60));
    let tree = outer.child(inner.spec("back")).child(part("front")).start().await.unwrap();
    let front = tree.get::<Part>("front").unwrap();
    assert!(ends("crash", front.crash()).await.unwrap_err().is_crash());
    becomes_true("it is back", || front.incarnation() == Some(2)).await;
    ends("terminate", tree.terminate_child("front")).await.unwrap();
    let taken = ends("snapshot", tree.snapshot()).await.unwrap();
    assert_eq!((&*taken.path, taken.restarts, taken.budget, taken.max_restarts), ("/shop", 1, 4, 5));
    let [back, front] = &taken.children[..] else { panic!("{taken}") };
    assert_eq!((front.state, front.pid, front.memory), (ChildState::Stopped, None, None));
    assert_eq!((back.state, back.incarnation), (ChildState::Running, 1));
    let below = back.tree.as_ref().unwrap();
    assert_eq!(below.strategy, Strategy::OneForAll);
    let [a, b] = &below.children[..] else { panic!("{taken}") };
    assert!(a.pid.is_some_and(runs) && a.memory > Some(100_000) && a.cpu.is_some() && a.uptime.is_some());
    assert!(b.pid.is_none() && b.memory.is_none() && b.uptime.is_some());
    assert!(a.kind.ends_with("Part"), "{}", a.kind);
    let drawn = taken.to_string();
    println!("{drawn}");
    let lines: Vec<_> = drawn.lines().collect();
    for (line, begins) in
        lines.iter().zip(["/shop  one for one", "├─ back", "│  ├─ a", "│  └─ b", "└─ front"])
    {
        assert!(line.starts_with(begins), "{drawn}");
    }
    assert!(lines.len() == 5 && lines[0].contains("4 of 5 left in 60 s") && lines[4].contains("stopped"));
    let text = serde_json::to_string(&taken).unwrap();
    assert_eq!(serde_json::from_str::<hatchery::Snapshot>(&text).unwrap(), taken);
    ends("stop", tree.stop()).await.unwrap();
    let error = ends("snapshot", tree.snapshot()).await.unwrap_err();
    assert!(error.to_string().contains("/shop has ended"), "{error}");
}

#[hatchery::test]
async fn a_child_is_got_by_what_it_is() {
    let inner = Supervisor::new(Strategy::OneForOne).spec("inner");
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").child(inner).child(part("a"));
    let tree = ends("start", tree.start()).await.unwrap();
    assert!(
        tree.get::<Part>("inner").err().unwrap().to_string().contains("is a hatchery::Supervisor, not a")
    );
    assert!(tree.get::<Supervisor>("a").err().unwrap().to_string().contains("not a hatchery::Supervisor"));
    assert!(tree.get::<Part>("b").err().unwrap().to_string().contains("its children are: a, inner"));
    assert_eq!(Tree::lookup("/shop/inner").unwrap().path(), "/shop/inner");
    assert!(Tree::lookup("/shop/nobody").is_err());
    let lookup = hatchery::lookup::<Part>("/shop/inner").unwrap();
    assert!(ends("ask", lookup.me()).await.unwrap_err().is_closed());
    ends("stop", tree.stop()).await.unwrap();
    assert!(Tree::lookup("/shop").unwrap().children().await.is_empty());
    drop(tree);
    assert!(Tree::lookup("/shop").is_err());
}

/// Asks its own supervisor for things while it starts.
struct Asker;

#[hatchery::actor]
impl Asker {
    async fn start(cx: &Context) -> hatchery::Result<Self> {
        let tree = Tree::lookup("/shop")?;
        let name = format!("helper-{}", cx.incarnation());
        tree.start_child(part(&name)).await?;
        tree.terminate_child(&name).await?;
        assert!(tree.children().await.iter().any(|child| child.name == "asker"));
        tree.restart_child(&name).await?;
        assert!(tree.delete_child(&name).await.is_err_and(|error| error.is_running()));
        tree.get::<Part>(&name)?.me().await?;
        tree.snapshot().await?;
        Ok(Asker)
    }

    fn crash(&self) {
        panic!("as asked")
    }

    fn works(&self) {}
}

#[hatchery::test]
async fn a_start_may_ask_its_own_supervisor_for_anything_at_the_first_time_and_at_each_restart() {
    for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne] {
        let supervisor = Supervisor::new(strategy).name("shop").child(part("first"));
        let tree = ends("start", supervisor.child(local::<Asker>("asker", ())).start()).await.unwrap();
        let asker = tree.get::<Asker>("asker").unwrap();
        for _ in 0..3 {
            ends("ask", asker.works()).await.unwrap();
            assert!(ends("crash", asker.crash()).await.unwrap_err().is_crash());
        }
        ends("ask", asker.works()).await.unwrap();
        ends("stop", tree.stop()).await.unwrap();
    }
}

/// Never gets ready, after it has written down which process it is.
struct Slow;

#[hatchery::actor]
impl Slow {
    async fn start(file: PathBuf) -> hatchery::Result<Self> {
        std::fs::write(&file, std::process::id().to_string())?;
        std::fs::rename(&file, file.with_extension("done"))?;
        std::future::pending().await
    }
}

#[hatchery::test]
async fn a_start_that_is_dropped_stops_what_it_began_at_all_levels() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("slow");
    let ready = Arc::new(AtomicU32::new(0));
    let (seen, path) = (ready.clone(), file.clone());
    let slow = worker_with::<Slow>("slow", move |tree| {
        seen.store(tree.get::<Part>("a")?.pid().unwrap_or(0), Ordering::SeqCst);
        Ok(path.clone())
    });
    let inner = Supervisor::new(Strategy::OneForOne).child(part("a")).child(slow);
    let outer = Supervisor::new(Strategy::OneForOne).name("shop").child(inner.spec("inner"));
    let starting = tokio::spawn(outer.start());
    let done = file.with_extension("done");
    becomes_true("the second child", || done.exists()).await;
    let slow = std::fs::read_to_string(done).unwrap().parse::<u32>().unwrap();
    starting.abort();
    let pids = [slow, ready.load(Ordering::SeqCst)];
    assert!(pids.iter().all(|pid| *pid != 0));
    becomes_true("nothing is left", || pids.iter().all(|pid| state(*pid).is_none())).await;
    // The name is free again, soon.
    let mut again = Supervisor::new(Strategy::OneForOne).name("shop").start().await;
    while again.is_err() {
        tokio::task::yield_now().await;
        again = Supervisor::new(Strategy::OneForOne).name("shop").start().await;
    }
    ends("stop", again.unwrap().stop()).await.unwrap();
}

/// Blocks its process.
struct Block;

#[hatchery::actor]
impl Block {
    async fn start(cx: &Context) -> hatchery::Result<Self> {
        Supervisor::new(Strategy::OneForOne).child(local::<Part>("inside", ())).start_in(cx).await?;
        Ok(Block)
    }

    fn block(&self) {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

#[hatchery::test]
async fn a_snapshot_shows_what_workers_supervise_unless_they_do_not_answer() {
    let tree = Supervisor::new(Strategy::OneForOne)
        .name("shop")
        .child(worker::<Store>("store", 2))
        .child(worker::<Block>("block", ()).shutdown(Shutdown::kill()))
        .child(part("part"));
    let tree = ends("start", tree.start()).await.unwrap();
    let names = |snapshot: &hatchery::Snapshot| {
        let mut names = Vec::new();
        for child in &snapshot.children {
            names.push(child.path.clone());
            names.extend(
                child.tree.iter().flat_map(|tree| tree.children.iter().map(|below| below.path.clone())),
            );
        }
        names
    };
    let all = ends("snapshot", tree.snapshot()).await.unwrap();
    assert_eq!(
        names(&all),
        [
            "/shop/store",
            "/shop/store/shelf-0",
            "/shop/store/shelf-1",
            "/shop/block",
            "/shop/block/inside",
            "/shop/part"
        ],
        "{all}"
    );
    let store = tree.get::<Store>("store").unwrap();
    let pids = ends("ask", store.pids()).await.unwrap();
    let below = all.children[0].tree.as_ref().unwrap();
    assert_eq!(below.children.iter().map(|child| child.pid.unwrap()).collect::<Vec<_>>(), pids);
    let block = tree.get::<Block>("block").unwrap();
    ends("tell", block.block().tell()).await.unwrap();
    // Once it blocks, nobody answers there.
    while names(&ends("snapshot", tree.snapshot()).await.unwrap()).len() == 6 {}
    let rest = ends("snapshot", tree.snapshot()).await.unwrap();
    assert_eq!(names(&rest).len(), 5, "{rest}");
    ends("stop", tree.stop()).await.unwrap();
}

/// A worker that is told of its own supervisor, and asks it for things in its start and later.
struct Asks {
    supervisor: SupervisorHandle,
}

#[hatchery::actor]
impl Asks {
    async fn start(supervisor: SupervisorHandle) -> hatchery::Result<Self> {
        if let Err(error) = supervisor.terminate_child("other").await {
            return Err(error.into());
        }
        supervisor.restart_child("other").await?;
        supervisor.snapshot().await?;
        Ok(Asks { supervisor })
    }

    async fn children(&self) -> hatchery::Result<Vec<ChildInfo>> {
        Ok(self.supervisor.children().await?)
    }

    async fn stops(&self) -> hatchery::Result<()> {
        Ok(self.supervisor.stop().await?)
    }
}

#[hatchery::test]
async fn a_worker_asks_its_own_supervisor_in_its_start_and_later() {
    let asks = || worker_with::<Asks>("asks", |tree| Ok(tree.handle()));
    for strategy in [Strategy::OneForOne, Strategy::OneForAll] {
        let supervisor = Supervisor::new(strategy).name("shop").child(part("other")).child(asks());
        let tree = ends("start", supervisor.start()).await.unwrap();
        let asks = tree.get::<Asks>("asks").unwrap();
        let children = ends("ask", asks.children()).await.unwrap();
        assert_eq!(children, ends("children", tree.children()).await);
        send(asks.pid().unwrap(), Signal::KILL);
        becomes_true("it is back", || asks.incarnation() == Some(2)).await;
        let children = ends("ask", asks.children()).await.unwrap();
        assert_eq!((children.len(), children[1].incarnation), (2, 2));
        // One that was stopped by one of its children.
        let _ = ends("ask", asks.stops()).await;
        ends("the end", tree.ended()).await.unwrap();
    }
}

#[hatchery::test]
async fn a_supervisor_is_asked_from_anywhere_and_says_what_it_refuses() {
    let inner = frail(Strategy::OneForOne).child(part("a"));
    let outer = Supervisor::new(Strategy::OneForOne).name("shop").child(inner.spec("back"));
    let tree = ends("start", outer.child(worker::<Store>("store", 1)).start()).await.unwrap();
    let below = SupervisorHandle::lookup("/shop/store").unwrap();
    assert_eq!(below.path(), "/shop/store");
    assert_eq!(ends("count", below.count()).await.unwrap().active, 1);
    let shelf = hatchery::lookup::<Part>("/shop/store/shelf-0").unwrap();
    let before = ends("ask", shelf.me()).await.unwrap();
    let error = ends("restart", below.restart_child("shelf-0")).await.unwrap_err();
    assert!(error.handler_error().is_some_and(hatchery::ChildError::is_running), "{error}");
    ends("terminate", below.terminate_child("shelf-0")).await.unwrap();
    assert!(state(before).is_none());
    assert!(ends("ask", shelf.me()).await.unwrap_err().is_closed());
    ends("restart", below.restart_child("shelf-0")).await.unwrap();
    assert_ne!(ends("ask", shelf.me()).await.unwrap(), before);
    let error = ends("delete", below.delete_child("nobody")).await.unwrap_err();
    assert!(error.handler_error().is_some_and(hatchery::ChildError::is_not_found), "{error}");

    // The handle stays good over restarts of the supervisor, and its successors count on.
    let back = tree.get::<Supervisor>("back").unwrap();
    let (handle, a) = (back.handle(), back.get::<Part>("a").unwrap());
    assert_eq!(ends("children", handle.children()).await.unwrap()[0].incarnation, 1);
    assert!(ends("crash", a.crash()).await.unwrap_err().is_crash());
    ends("ask", a.me()).await.unwrap();
    assert_eq!(ends("children", handle.children()).await.unwrap()[0].incarnation, 2);
    assert!(SupervisorHandle::lookup("shop").is_err());
    let nobody = SupervisorHandle::lookup("/shop/nobody").unwrap();
    assert!(ends("count", nobody.count()).await.unwrap_err().is_closed());
    ends("stop", tree.stop()).await.unwrap();
    for gone in [handle, below, tree.handle()] {
        let error = ends("count", gone.count()).await.unwrap_err();
        assert!(error.is_closed(), "{error}");
    }
}

/// A worker whose own supervisor ends when all its jobs are done.
struct Batch {
    tree: Tree,
}

#[hatchery::actor]
impl Batch {
    async fn start(jobs: u32, cx: &Context) -> hatchery::Result<Self> {
        let job = |number| part(&format!("job-{number}")).restart(Restart::Transient).significant(true);
        let supervisor = Supervisor::new(Strategy::OneForOne).auto_shutdown(AutoShutdown::AllSignificant);
        let supervisor = (0..jobs).fold(supervisor, |all, number| all.child(job(number)));
        Ok(Batch { tree: supervisor.child(part("log")).start_in(cx).await? })
    }

    fn active(&self) -> usize {
        self.tree.count().active
    }
}

#[hatchery::test]
async fn a_tree_ends_by_itself_in_order_when_the_jobs_of_a_supervisor_in_a_worker_are_done() {
    let batch = worker::<Batch>("batch", 2).restart(Restart::Transient).significant(true);
    let supervisor = Supervisor::new(Strategy::OneForOne).name("shop");
    let supervisor = supervisor.auto_shutdown(AutoShutdown::AnySignificant).child(part("first"));
    let tree = ends("start", supervisor.child(batch).start()).await.unwrap();
    let batch = tree.get::<Batch>("batch").unwrap();
    let mut pids = vec![batch.pid().unwrap(), tree.get::<Part>("first").unwrap().pid().unwrap()];
    for (number, active) in [(0, 2), (1, 0)] {
        let job = hatchery::lookup::<Part>(&format!("/shop/batch/job-{number}")).unwrap();
        let pid = ends("ask", job.me()).await.unwrap();
        pids.push(pid);
        ends("stop", job.stop()).await.unwrap();
        becomes_true("its end", || !runs(pid)).await;
        if active > 0 {
            // Its supervisor learns of that a little later.
            while ends("ask", batch.active()).await.unwrap() != active {
                tokio::task::yield_now().await;
            }
        }
    }
    ends("its own end", tree.ended()).await.unwrap();
    assert!(pids.iter().all(|pid| state(*pid).is_none()), "{pids:?}");
}

/// Takes its time, for ever.
struct Idler;

#[hatchery::actor]
impl Idler {
    fn start() -> Self {
        Idler
    }

    async fn idle(&self) {
        std::future::pending().await
    }
}

#[hatchery::test]
async fn a_snapshot_shows_how_much_waits_in_mailboxes() {
    let beats = Heartbeat::every(Duration::from_millis(10)).misses(1000);
    let tree = Supervisor::new(Strategy::OneForOne)
        .child(local::<Idler>("here", ()).shutdown(Shutdown::kill()))
        .child(worker::<Idler>("there", ()).shutdown(Shutdown::kill()).heartbeat(beats));
    let tree = ends("start", tree.start()).await.unwrap();
    for name in ["here", "there"] {
        for _ in 0..3 {
            ends("tell", tree.get::<Idler>(name).unwrap().idle().tell()).await.unwrap();
        }
    }
    // What is known of a worker's mailbox came with an answer to a heartbeat.
    loop {
        let taken = ends("snapshot", tree.snapshot()).await.unwrap();
        if taken.children.iter().all(|child| child.mailbox == Some(3)) {
            assert!(taken.to_string().contains("mailbox 3"), "{taken}");
            break;
        }
    }
    ends("stop", tree.stop()).await.unwrap();
}

/// Writes down when it is stopped.
struct Diarist {
    name: String,
    file: PathBuf,
    _tree: Option<Tree>,
}

#[hatchery::actor]
impl Diarist {
    async fn start(name: String, file: PathBuf, below: bool, cx: &Context) -> hatchery::Result<Self> {
        let tree = if below {
            let args = ("below".to_owned(), file.clone(), false);
            let supervisor = Supervisor::new(Strategy::OneForOne).child(worker::<Diarist>("below", args));
            Some(supervisor.start_in(cx).await?)
        } else {
            None
        };
        Ok(Diarist { name, file, _tree: tree })
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn stopped(&mut self) {
        let mut file = std::fs::File::options().append(true).create(true).open(&self.file).unwrap();
        file.write_all(format!("{} ", self.name).as_bytes()).unwrap();
    }
}

#[hatchery::test]
async fn what_an_actor_supervises_stops_with_it_in_its_turn_also_when_the_program_ends() {
    let dir = tempfile::tempdir().unwrap();
    for (round, local_one) in [true, false].into_iter().enumerate() {
        let file = dir.path().join(round.to_string());
        let args = |name: &str, below| (name.to_owned(), file.clone(), below);
        let program =
            Process::spawn(diary, (args("first", true), args("second", false), local_one)).await.unwrap();
        ends("the program", program.join()).await.unwrap().unwrap();
        let order = std::fs::read_to_string(&file).unwrap();
        assert_eq!(order, "second below first ", "local: {local_one}");
    }
}

type DiaristArgs = (String, PathBuf, bool);

/// Ends without a stop of its own.
#[hatchery::task]
async fn diary(first: DiaristArgs, second: DiaristArgs, local_one: bool) -> hatchery::Result<()> {
    let supervisor = Supervisor::new(Strategy::OneForOne).name("diary");
    let supervisor = match local_one {
        true => supervisor.child(local::<Diarist>("first", first)),
        false => supervisor.child(worker::<Diarist>("first", first)),
    };
    let tree = supervisor.child(worker::<Diarist>("second", second)).start().await?;
    tree.get::<Diarist>("first")?.actor_ref();
    std::mem::forget(tree);
    Ok(())
}

/// Has workers that do not leave when they are asked to.
struct Holder;

#[hatchery::actor]
impl Holder {
    async fn start(cx: &Context) -> hatchery::Result<Self> {
        let mut supervisor = Supervisor::new(Strategy::OneForOne);
        for number in 0..4 {
            let long = Shutdown::graceful(Duration::from_secs(3600));
            supervisor = supervisor.child(worker::<Stays>(format!("stays-{number}"), ()).shutdown(long));
        }
        supervisor.start_in(cx).await?;
        Ok(Holder)
    }
}

/// Does not come to the end of its stop.
struct Stays;

#[hatchery::actor]
impl Stays {
    fn start() -> Self {
        Stays
    }

    fn me(&self) -> u32 {
        std::process::id()
    }

    async fn stopped(&mut self) {
        std::future::pending().await
    }
}

#[hatchery::test]
async fn a_local_actor_that_is_killed_takes_what_it_supervises_along() {
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").start().await.unwrap();
    let short = Shutdown::graceful(Duration::from_millis(10));
    let holder =
        ends("start", tree.start_child(local::<Holder>("holder", ()).shutdown(short))).await.unwrap();
    let stays = hatchery::lookup::<Stays>("/shop/holder/stays-3").unwrap();
    let old = ends("ask", stays.me()).await.unwrap();
    holder.kill();
    becomes_true("the old ones are gone", || state(old).is_none()).await;
    let new = loop {
        match ends("ask", stays.me()).await {
            Ok(pid) => break pid,
            // Sent to one that has just ended.
            Err(error) => assert!(error.is_crash(), "{error}"),
        }
    };
    assert!(state(old).is_none());
    // And at the end of its patience, which is shorter than theirs by an hour.
    ends("terminate", tree.terminate_child("holder")).await.unwrap();
    assert!(state(new).is_none());
    ends("restart", tree.restart_child("holder")).await.unwrap();
    ends("terminate", tree.terminate_child("holder")).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
}

/// Tries what would give two things one name.
struct Namesakes;

#[hatchery::actor]
impl Namesakes {
    async fn start(cx: &Context) -> hatchery::Result<Self> {
        let named = Supervisor::new(Strategy::OneForOne).name("x").start_in(cx).await.unwrap_err();
        assert!(named.to_string().contains("leave the name out"), "{named}");
        let tree = Supervisor::new(Strategy::OneForOne).child(part("x")).start_in(cx).await?;
        let second = Supervisor::new(Strategy::OneForOne).start_in(cx).await.unwrap_err();
        assert!(second.to_string().contains("has a supervisor already"), "{second}");
        let other = Supervisor::new(Strategy::OneForOne).name("x").start().await.unwrap_err();
        assert!(other.to_string().contains("is taken"), "{other}");
        let _kept = Supervisor::new(Strategy::OneForOne).name("y").start().await?;
        let child = tree.start_child(part("y")).await.unwrap_err();
        assert!(child.to_string().contains("is taken"), "{child}");
        tree.terminate_child("x").await?;
        tree.delete_child("x").await?;
        Supervisor::new(Strategy::OneForOne).name("x").start().await?.stop().await?;
        Ok(Namesakes)
    }

    fn is_there(&self) {}
}

#[hatchery::test]
async fn names_in_a_worker_are_given_once() {
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").start().await.unwrap();
    let namesakes = ends("start", tree.start_child(worker::<Namesakes>("w", ()))).await.unwrap();
    ends("ask", namesakes.is_there()).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn what_a_local_actor_supervises_is_told_above() {
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").start().await.unwrap();
    let mut events = tree.events();
    ends("start", tree.start_child(local::<Store>("store", 1))).await.unwrap();
    assert_eq!(next(&mut events).await.path(), Some("/shop/store/shelf-0"));
    assert_eq!(next(&mut events).await.path(), Some("/shop/store"));
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_crash_is_told_before_what_the_actor_supervises_has_left() {
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").start().await.unwrap();
    let crashes = local_with::<Crashes>("crashes", || Crashes { tree: None });
    let crashes = ends("start", tree.start_child(crashes.shutdown(Shutdown::kill()))).await.unwrap();
    let below = ends("begin", crashes.begin()).await.unwrap();
    assert!(ends("crash", crashes.crash()).await.unwrap_err().is_crash());
    assert!(state(below).is_some(), "it takes an hour to leave");
    ends("terminate", tree.terminate_child("crashes")).await.unwrap();
    assert!(state(below).is_none());
    ends("stop", tree.stop()).await.unwrap();
}

struct Crashes {
    tree: Option<Tree>,
}

#[hatchery::actor]
impl Crashes {
    fn start(never: hatchery::Never) -> Self {
        match never {}
    }

    async fn begin(&mut self, cx: &Context) -> hatchery::Result<u32> {
        let long = Shutdown::graceful(Duration::from_secs(3600));
        let supervisor =
            Supervisor::new(Strategy::OneForOne).child(worker::<Stays>("stays", ()).shutdown(long));
        let tree = supervisor.start_in(cx).await?;
        let pid = tree.get::<Stays>("stays")?.me().await?;
        self.tree = Some(tree);
        Ok(pid)
    }

    fn crash(&self) {
        panic!("as asked")
    }
}

#[hatchery::test]
async fn a_temporary_child_that_is_listed_is_back_with_its_supervisor_behind_the_same_handle() {
    let inner = frail(Strategy::OneForOne).child(part("a")).child(part("b").restart(Restart::Temporary));
    let tree =
        Supervisor::new(Strategy::OneForOne).name("shop").child(inner.spec("in")).start().await.unwrap();
    let inner = tree.get::<Supervisor>("in").unwrap();
    let (a, b) = (inner.get::<Part>("a").unwrap(), inner.get::<Part>("b").unwrap());
    assert!(ends("crash", b.crash()).await.unwrap_err().is_crash());
    becomes_true("it is removed", || inner.count().specs == 1).await;
    assert!(ends("ask", b.me()).await.unwrap_err().is_closed());
    assert!(inner.get::<Part>("b").is_err());
    assert!(ends("crash", a.crash()).await.unwrap_err().is_crash());
    ends("ask", a.me()).await.unwrap();
    ends("ask", b.me()).await.unwrap();
    assert_eq!((a.incarnation(), b.incarnation(), inner.count().specs), (Some(2), Some(2), 2));
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_child_without_a_process_has_no_pid_and_nothing_that_is_about_one() {
    let inner = Supervisor::new(Strategy::OneForOne).spec("in");
    let idle = || local_task("idle", || async { std::future::pending::<()>().await });
    let tree =
        Supervisor::new(Strategy::OneForOne).child(inner).child(local::<Part>("here", ())).child(idle());
    let tree = ends("start", tree.child(part("there")).start()).await.unwrap();
    let pids: Vec<_> =
        ends("children", tree.children()).await.iter().map(|child| child.pid.is_some()).collect();
    assert_eq!(pids, [false, false, false, true]);
    let beats = Heartbeat::every(Duration::from_millis(100));
    let wrong = [
        ends("start", tree.start_child(local::<Part>("a", ()).heartbeat(beats))).await.err().unwrap(),
        ends("start", tree.start_child(idle().window(1))).await.err().unwrap(),
        ends("start", tree.start_child(idle().on_stop(hatchery::Stop::Drain))).await.err().unwrap(),
        ends("start", tree.start_child(Supervisor::new(Strategy::OneForOne).name("x").spec("y")))
            .await
            .err()
            .unwrap(),
    ];
    for (error, what) in wrong.iter().zip(["heartbeat", "window", "Stop::Drain", "leave `name` out"]) {
        assert!(error.to_string().contains(what), "{error}");
    }
    ends("stop", tree.stop()).await.unwrap();
}

/// Takes somebody else for a part, and kills it.
struct Mistaken;

#[hatchery::actor]
impl Mistaken {
    fn start() -> Self {
        Mistaken
    }

    async fn kills(&self, path: String) -> hatchery::Result<usize> {
        hatchery::lookup::<Part>(&path)?.kill();
        // The same way, behind it.
        Ok(SupervisorHandle::lookup(&path)?.count().await?.active)
    }
}

#[hatchery::test]
async fn a_wrong_handle_does_nothing_to_whoever_sits_there() {
    let inner = Supervisor::new(Strategy::OneForOne).child(part("a")).spec("in");
    let tree =
        Supervisor::new(Strategy::OneForOne).name("shop").child(inner).child(worker::<Mistaken>("m", ()));
    let tree = ends("start", tree.start()).await.unwrap();
    let mistaken = tree.get::<Mistaken>("m").unwrap();
    assert_eq!(ends("kills", mistaken.kills("/shop/in".to_owned())).await.unwrap(), 1);
    let a = tree.get::<Supervisor>("in").unwrap().get::<Part>("a").unwrap();
    ends("ask", a.me()).await.unwrap();
    assert_eq!(a.incarnation(), Some(1));
    ends("stop", tree.stop()).await.unwrap();
}

/// Blocks the thread that it starts on until it may go on.
struct Blocks;

static MAY_GO_ON: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
static GOES_ON: std::sync::Condvar = std::sync::Condvar::new();

#[hatchery::actor]
impl Blocks {
    fn start() -> Self {
        let waiting = GOES_ON.wait_while(MAY_GO_ON.lock().unwrap(), |may| !*may);
        drop(waiting);
        Blocks
    }
}

/// It takes some twenty seconds: the patience with what is killed, of the start and of its supervisor.
#[hatchery::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_start_that_blocks_its_thread_is_given_up_in_bounded_time() {
    let tree = Supervisor::new(Strategy::OneForOne).name("shop").start().await.unwrap();
    let mut events = tree.events();
    let starting = tree.clone();
    let spec = local::<Blocks>("blocks", ()).start_timeout(Duration::from_millis(10));
    let late = tokio::spawn(async move { starting.start_child(spec).await.map(drop) });
    assert!(matches!(next_about(&mut events, "/shop/blocks").await, TreeEvent::StartFailed { .. }));
    assert!(ends("the start", late).await.unwrap().unwrap_err().is_timeout());
    ends("stop", tree.stop()).await.unwrap();
    *MAY_GO_ON.lock().unwrap() = true;
    GOES_ON.notify_all();
}

#[hatchery::test]
async fn whoever_asks_a_worker_of_a_worker_waits_while_its_supervisor_gives_up() {
    // Nothing is asked of the worker itself, so each of its ends is an early one.
    let supervisor =
        Supervisor::new(Strategy::OneForOne).name("shop").intensity(100, Duration::from_secs(60));
    let supervisor = supervisor.backoff(Duration::ZERO, Duration::ZERO);
    let store = worker::<Store>("store", 1).shutdown(Shutdown::infinity());
    let tree = ends("start", supervisor.child(store).start()).await.unwrap();
    let shelf = hatchery::lookup::<Part>("/shop/store/shelf-0").unwrap();
    let mut pid = ends("ask", shelf.me()).await.unwrap();
    for _ in 0..10 {
        assert!(ends("crash", shelf.crash()).await.unwrap_err().is_crash());
        // Its supervisor gives up, the worker crashes with it, and both come back.
        let next = loop {
            match ends("ask", shelf.me()).await {
                Ok(next) => break next,
                // Sent to one that has just ended; but never that there is nobody.
                Err(error) => assert!(error.is_crash() && !error.is_closed(), "{error}"),
            }
        };
        assert_ne!(next, pid);
        pid = next;
    }
    // One that its actor stops, while that goes on, is gone.
    let store = tree.get::<Store>("store").unwrap();
    ends("close", store.close()).await.unwrap();
    let error = ends("ask", shelf.me()).await.unwrap_err();
    assert!(error.is_crash() || error.is_closed() || error.is_stopping(), "{error}");
    assert!(ends("ask", shelf.me()).await.unwrap_err().is_closed());
    ends("stop", tree.stop()).await.unwrap();
}
