//! Who wants to know of ends, or wants one incarnation and no other; and actors that a closure makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hatchery::prelude::*;
use hatchery::{Exit, Never, Watch};
use hatchery_tests::{becomes_true, ends, runs, send};
use rustix::process::Signal;

use crate::{Worker, plain, tree};

/// Nobody looks while they happen, and all of them are there.
#[hatchery::test]
async fn fifty_kills_give_fifty_downs_in_order() {
    let tree = tree().await;
    let actor = tree.start_child(plain("mortal")).await.unwrap();
    let mut downs = actor.monitor().downs();
    for n in 1..=50 {
        becomes_true("the next one sits", || actor.incarnation() == Some(n)).await;
        actor.kill();
        becomes_true("it is gone", || actor.incarnation() != Some(n)).await;
    }
    becomes_true("the last one sits", || actor.incarnation() == Some(51)).await;
    ends("stop", tree.stop()).await.unwrap();
    for n in 1..=50 {
        let down = ends("down", downs.next()).await.unwrap();
        assert_eq!((down.path(), down.incarnation(), down.missed()), (actor.path(), Some(n), 0));
        assert_eq!(down.exit().and_then(Exit::signal), Some(9), "{down}");
    }
    let last = ends("down", downs.next()).await.unwrap();
    assert_eq!(last.incarnation(), Some(51));
    assert!(last.exit().unwrap().is_orderly());
    assert!(ends("the end", downs.next()).await.is_none());
    assert!(ends("down", actor.monitor()).await.is_closed());
}

#[hatchery::test]
async fn a_monitor_tells_of_the_incarnation_that_sits_there_once() {
    let tree = tree().await;
    for actor in [
        tree.start_child(plain("far")).await.unwrap(),
        tree.start_child(local::<Worker>("near", None)).await.unwrap(),
    ] {
        let mut monitor = actor.monitor();
        assert!(ends("ask", actor.panics("rain".to_owned())).await.unwrap_err().is_crash());
        let down = ends("down", &mut monitor).await;
        assert_eq!(down.incarnation(), Some(1));
        assert_eq!(down.exit().unwrap().panic().unwrap().message, "because of rain");
        // Whoever looks only now is told of the next one.
        becomes_true("the next one sits", || actor.incarnation() == Some(2)).await;
        let mut later = actor.monitor();
        actor.kill();
        for monitor in [&mut monitor, &mut later] {
            assert_eq!(ends("down", monitor).await.incarnation(), Some(2));
        }
    }
}

#[hatchery::test]
async fn a_pinned_handle_reaches_one_incarnation_and_no_later_one() {
    let tree = tree().await;
    for actor in [
        tree.start_child(plain("far")).await.unwrap(),
        tree.start_child(local::<Worker>("near", None)).await.unwrap(),
    ] {
        let pinned = actor.pinned().unwrap();
        assert_eq!(ends("ask", pinned.note(1)).await.unwrap(), 1);
        assert_eq!((pinned.incarnation(), pinned.pid()), (Some(1), actor.pid()));
        let monitor = pinned.monitor();
        actor.kill();
        becomes_true("the next one sits", || actor.incarnation() == Some(2)).await;

        let error = ends("ask", pinned.note(2)).await.unwrap_err();
        assert!(error.is_crash() && !error.maybe_executed(), "{error}");
        assert!(ends("tell", pinned.note(2).tell()).await.unwrap_err().is_crash());
        assert_eq!((pinned.incarnation(), pinned.pid(), pinned.is_alive()), (None, None, false));
        assert!(pinned.pinned().is_none());
        assert_eq!(ends("down", monitor).await.incarnation(), Some(1));
        let mut downs = pinned.monitor().downs();
        let down = ends("down", downs.next()).await.unwrap();
        assert_eq!((down.incarnation(), down.exit()), (Some(1), error.exit()));
        assert!(ends("the end", downs.next()).await.is_none());

        // It has no power over the next one.
        pinned.kill();
        ends("stop", pinned.stop()).await.unwrap();
        assert_eq!(ends("ask", actor.seen()).await.unwrap(), []);
        assert_eq!(actor.incarnation(), Some(2));
    }
}

/// What waits in line for one incarnation ends with it; what waits for whoever comes goes on.
#[hatchery::test]
async fn what_a_pinned_handle_has_in_line_ends_with_the_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let begun = dir.path().join("begun");
    let tree = tree().await;
    let actor = tree.start_child(plain("narrow").window(1)).await.unwrap();
    let pinned = actor.pinned().unwrap();
    let running = tokio::spawn(pinned.hangs(begun.display().to_string()));
    becomes_true("the handler runs", || begun.exists()).await;
    let (in_line, free) = (tokio::spawn(pinned.note(1)), tokio::spawn(actor.note(2)));
    tokio::task::yield_now().await;
    let pid = actor.pid().unwrap();
    send(pid, Signal::KILL);
    let error = ends("ask", running).await.unwrap().unwrap_err();
    assert!(error.is_crash() && error.maybe_executed());
    let error = ends("ask", in_line).await.unwrap().unwrap_err();
    assert!(error.is_crash() && !error.maybe_executed());
    assert_eq!(error.exit().unwrap().signal(), Some(9));
    assert_eq!(ends("ask", free).await.unwrap().unwrap(), 1);
    assert!(!runs(pid));
    // An orderly end is an end, too.
    let pinned = actor.pinned().unwrap();
    ends("stop", actor.stop()).await.unwrap();
    let error = ends("ask", pinned.note(1)).await.unwrap_err();
    assert!(error.exit().unwrap().is_orderly() && !error.maybe_executed());
}

/// Writes down the ends of another actor.
struct Guard {
    ward: crate::WorkerHandle,
    heard: Vec<(Option<u64>, Option<i32>)>,
    watch: Option<Watch>,
}

#[hatchery::actor]
impl Guard {
    fn start(never: Never) -> Self {
        match never {}
    }

    fn looks(&mut self, cx: &Context) {
        let me = cx.me::<GuardHandle>();
        self.watch = Some(cx.monitor(&self.ward, move |down| {
            me.hears(down.incarnation(), down.exit().and_then(Exit::signal))
        }));
    }

    fn looks_away(&self) {
        self.watch.as_ref().expect("it looks").cancel();
    }

    fn hears(&mut self, incarnation: Option<u64>, signal: Option<i32>) {
        self.heard.push((incarnation, signal));
    }

    fn heard(&self) -> Vec<(Option<u64>, Option<i32>)> {
        self.heard.clone()
    }
}

#[hatchery::test]
async fn ends_come_to_an_actor_as_messages_in_order_and_the_last_one_when_the_seat_is_closed() {
    let (wards, guards) = (tree().await, tree().await);
    let ward = wards.start_child(plain("ward")).await.unwrap();
    let mut heard_by = Vec::new();
    for name in ["looks", "looks-away"] {
        let of = ward.clone();
        let make = move || Guard { ward: of.clone(), heard: Vec::new(), watch: None };
        let guard: GuardHandle = guards.start_child(local_with(name, make)).await.unwrap();
        ends("ask", guard.looks()).await.unwrap();
        heard_by.push(guard);
    }
    for n in 1..=5 {
        becomes_true("the next one sits", || ward.incarnation() == Some(n)).await;
        ward.kill();
        becomes_true("it is gone", || ward.incarnation() != Some(n)).await;
    }
    let five: Vec<_> = (1..=5).map(|n| (Some(n), Some(9))).collect();
    for guard in &heard_by {
        ends("messages", async { while guard.heard().await.unwrap().len() < 5 {} }).await;
        assert_eq!(ends("ask", guard.heard()).await.unwrap(), five);
    }
    ends("ask", heard_by[1].looks_away()).await.unwrap();
    becomes_true("the next one sits", || ward.incarnation() == Some(6)).await;
    ends("stop", wards.stop()).await.unwrap();
    ends("messages", async { while heard_by[0].heard().await.unwrap().len() < 7 {} }).await;
    let rest = ends("ask", heard_by[0].heard()).await.unwrap().split_off(5);
    assert_eq!(rest, [(Some(6), None), (None, None)]);
    assert_eq!(ends("ask", heard_by[1].heard()).await.unwrap(), five);
}

/// State that cannot be serialised.
struct Gauge {
    shared: Arc<AtomicU64>,
    own: u64,
}

#[hatchery::actor]
impl Gauge {
    fn start(never: Never) -> Self {
        match never {}
    }

    fn raise(&mut self) -> u64 {
        self.own += 1;
        self.shared.fetch_add(1, Ordering::SeqCst);
        self.own
    }

    fn panics(&self) {
        panic!("as asked")
    }
}

#[hatchery::test]
async fn a_closure_makes_a_local_actor_anew_at_each_restart() {
    let tree = tree().await;
    let (shared, mut made) = (Arc::new(AtomicU64::new(0)), 0);
    let seen = shared.clone();
    let make = move || {
        made += 1;
        Gauge { shared: shared.clone(), own: 100 * made }
    };
    let gauge: GaugeHandle = tree.start_child(local_with("gauge", make)).await.unwrap();
    for round in 1..=3 {
        assert_eq!(ends("ask", gauge.raise()).await.unwrap(), 100 * round + 1);
        assert!(ends("ask", gauge.panics()).await.unwrap_err().is_crash());
    }
    assert_eq!(seen.load(Ordering::SeqCst), 3);

    let bad = local_with("bad", || -> Gauge { panic!("no gauge today") });
    let error = ends("start", tree.start_child(bad)).await.map(drop).unwrap_err();
    assert!(error.is_crash() && error.to_string().contains("no gauge today"), "{error}");
    ends("stop", tree.stop()).await.unwrap();
    // Nothing of it is kept when the tree is gone.
    becomes_true("the closure is gone", || Arc::strong_count(&seen) == 1).await;
}
