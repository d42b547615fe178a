//! Supervisors below supervisors, in virtual time.

use hatchery_supervisor::events::{Events, TreeEvent};

use super::*;

/// One of b and c.
fn inner(world: &World) -> Supervisor {
    Supervisor::new(Strategy::OneForOne).child(world.child("b")).child(world.child("c"))
}

/// What there is to hear by now, in short.
async fn heard(events: &mut Events) -> Vec<String> {
    let mut heard = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, events.next()).await {
        let name = event.path().unwrap_or("?").trim_start_matches("/tree").to_owned();
        heard.push(match event {
            TreeEvent::Started { incarnation, .. } => format!("{name} started {incarnation}"),
            TreeEvent::StartFailed { .. } => format!("{name} failed"),
            TreeEvent::Exited { .. } => format!("{name} exited"),
            TreeEvent::RestartScheduled { delay, .. } => format!("{name} scheduled {}", delay.is_zero()),
            TreeEvent::Stopped { .. } => format!("{name} stopped"),
            TreeEvent::GivenUp { .. } => format!("{name} given up"),
            TreeEvent::Ended { gave_up, .. } => format!("{name} ended {}", gave_up.is_none()),
            other => other.to_string(),
        });
    }
    heard
}

#[tokio::test(start_paused = true)]
async fn all_levels_start_in_order_and_stop_in_reverse() {
    let world = World::new();
    let outer = world.at_once(Strategy::OneForOne).child(world.child("a"));
    let tree = outer.child(inner(&world).spec("in")).child(world.child("d")).start().await.unwrap();
    assert_eq!(
        world.events(),
        [
            "start a 1",
            "ready a 1",
            "start b 1",
            "ready b 1",
            "start c 1",
            "ready c 1",
            "start d 1",
            "ready d 1"
        ]
    );
    tree.stop().await.unwrap();
    let stopped =
        ["Graceful d", "end d 1", "Graceful c", "end c 1", "Graceful b", "end b 1", "Graceful a", "end a 1"];
    assert_eq!(world.events(), stopped);
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_has_all_the_time_its_children_need_unless_it_is_told_otherwise() {
    for (shutdown, took) in [
        (None, Duration::from_secs(7)),
        (Some(Shutdown::graceful(Duration::from_secs(1))), Duration::from_secs(3)),
        (Some(Shutdown::kill()), Duration::ZERO),
    ] {
        let world = World::new();
        let stubborn = ChildSpec::new(world.fake("b").manners(Manners::Stubborn));
        let mut spec = Supervisor::new(Strategy::OneForOne).child(stubborn).spec("in");
        if let Some(shutdown) = shutdown {
            spec = spec.shutdown(shutdown);
        }
        let tree = world.at_once(Strategy::OneForOne).child(spec).start().await.unwrap();
        let begun = Instant::now();
        tree.stop().await.unwrap();
        assert_eq!(begun.elapsed(), took, "{shutdown:?}");
        assert!(world.alive().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_is_restarted_along_with_its_group_and_its_children_keep_their_seats() {
    let world = World::new();
    let outer = world.at_once(Strategy::RestForOne).child(world.child("a"));
    let tree = outer.child(inner(&world).spec("in")).child(world.child("d")).start().await.unwrap();
    let below = tree.get::<Supervisor>("in").unwrap();
    let c = below.get::<Echo>("c").unwrap();
    world.log();
    world.kill("a").await;
    assert_eq!(
        world.events(),
        [
            "end a 1",
            "Graceful d",
            "end d 1",
            "Graceful c",
            "end c 1",
            "Graceful b",
            "end b 1",
            "start a 2",
            "ready a 2",
            "start b 2",
            "ready b 2",
            "start c 2",
            "ready c 2",
            "start d 2",
            "ready d 2"
        ]
    );
    assert_eq!(c.who().await.unwrap(), 2);
    assert_eq!(below.count().active, 2);
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_takes_too_long_to_start_has_failed_and_nothing_is_left_of_it() {
    let world = World::new();
    let hanging = ChildSpec::new(world.fake("c").script(&[Begin::Hangs]));
    let inner = Supervisor::new(Strategy::OneForOne).child(world.child("b")).child(hanging);
    let spec = inner.spec("in").start_timeout(Duration::from_secs(2));
    let error = world.at_once(Strategy::OneForOne).child(spec).start().await.unwrap_err();
    assert!(error.is_timeout() && error.to_string().contains("not ready within 2s"), "{error}");
    assert!(world.alive().is_empty());
    assert_eq!(world.events(), ["start b 1", "ready b 1", "start c 1", "Graceful b", "end b 1"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_gives_up_costs_its_own_supervisor_one_unit_and_what_it_began_is_told() {
    let world = World::new();
    let frail = inner(&world).intensity(0, Duration::from_secs(60));
    let outer = world.at_once(Strategy::OneForOne).intensity(1, Duration::from_secs(60));
    let tree = outer.child(frail.spec("in")).start().await.unwrap();
    let mut events = tree.events();
    let mut low = tree.get::<Supervisor>("in").unwrap().events();
    world.kill("b").await;
    let below = ["/in/b exited", "/in/c exited", "/in ended false"];
    let restarted =
        ["/in exited", "/in scheduled true", "/in/b started 2", "/in/c started 2", "/in started 2"];
    assert_eq!(heard(&mut events).await, [&below[..], &restarted[..]].concat());
    assert_eq!(heard(&mut low).await, [&below[..], &restarted[2..4]].concat());
    assert_eq!(tree.snapshot().await.unwrap().budget, 0);
    world.kill("c").await;
    assert_eq!(
        heard(&mut events).await,
        ["/in/c exited", "/in/b exited", "/in ended false", "/in exited", " ended false"]
    );
    let why = tree.ended().await.unwrap_err().to_string();
    assert!(why.contains("/tree/in needed more than 1 restarts") && why.contains("/tree/in/c"), "{why}");
    assert!(world.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_does_not_start_again_is_tried_again_and_asks_to_its_children_wait() {
    let world = World::new();
    // Its second start fails, the third one does not.
    let b = ChildSpec::new(world.fake("b").script(&[Begin::Well, Begin::Fails, Begin::Well]));
    let frail = Supervisor::new(Strategy::OneForOne).intensity(0, Duration::from_secs(60)).child(b);
    let outer = Supervisor::new(Strategy::OneForOne).name("tree").child(frail.spec("in"));
    let tree = outer.start().await.unwrap();
    let below = tree.get::<Supervisor>("in").unwrap();
    let b = below.get::<Echo>("b").unwrap();
    sleep(Duration::from_secs(2)).await;
    world.kill("b").await;
    let (answer, error) = tokio::join!(b.who(), below.restart_child("b"));
    assert_eq!(answer.unwrap(), 3);
    assert!(error.unwrap_err().is_closed(), "it was not up");
    assert_eq!(b.actor_ref().seat().path(), "/tree/in/b");
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_that_is_terminated_while_it_is_restarted_stays_so_until_it_is_asked_for() {
    let world = World::new();
    let b = ChildSpec::new(world.fake("b").script(&[Begin::Well, Begin::Fails]));
    let frail = Supervisor::new(Strategy::OneForOne).intensity(0, Duration::from_secs(60)).child(b);
    let outer = Supervisor::new(Strategy::OneForOne).name("tree").child(frail.spec("in"));
    let tree = outer.start().await.unwrap();
    let b = tree.get::<Supervisor>("in").unwrap().get::<Echo>("b").unwrap();
    world.kill("b").await;
    assert_eq!(tree.children().await[0].state, ChildState::Restarting);
    tree.terminate_child("in").await.unwrap();
    assert_eq!(tree.children().await[0].state, ChildState::Stopped);
    assert!(b.who().await.unwrap_err().is_closed());
    sleep(Duration::from_secs(3600)).await;
    assert!(world.alive().is_empty());
    tree.delete_child("in").await.unwrap();
    assert!(b.who().await.unwrap_err().is_closed());
    assert_eq!(tree.count().specs, 0);
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_does_not_keep_up_costs_nobody_anything() {
    let world = World::new();
    let outer = world.at_once(Strategy::OneForOne).intensity(10_000, Duration::from_secs(60));
    let tree = outer.child(world.child("a")).start().await.unwrap();
    let mut events = tree.events();
    for _ in 0..1000 {
        world.kill("a").await;
    }
    assert_eq!(world.alive(), ["a"]);
    // Three events a death; the latest 512 are there.
    assert_eq!(events.next().await, Some(TreeEvent::EventsLost(3000 - 512)));
    assert_eq!(heard(&mut events).await.len(), 512);
    tree.stop().await.unwrap();
    assert_eq!(heard(&mut events).await, ["/a exited", " ended true"]);
    assert_eq!(events.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn one_below_which_somebody_cannot_be_killed_is_given_up_and_nobody_is_started_beside_that() {
    let world = World::new();
    let immortal = ChildSpec::new(world.fake("b").manners(Manners::Immortal));
    let inner = Supervisor::new(Strategy::OneForOne).child(world.child("a")).child(immortal);
    let outer = world.at_once(Strategy::RestForOne).child(world.child("d")).child(inner.spec("in"));
    let tree = outer.start().await.unwrap();
    let b = tree.get::<Supervisor>("in").unwrap().get::<Echo>("b").unwrap();
    let mut events = tree.events();
    world.log();
    world.kill("d").await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.alive(), ["b", "d"]);
    assert!(!world.events().iter().any(|event| event.starts_with("start b")));
    let told = heard(&mut events).await;
    assert!(told.contains(&"/tree/in/b cannot be killed".to_owned()), "{told:?}");
    assert!(told.contains(&"/in given up".to_owned()), "{told:?}");
    let error = b.who().await.unwrap_err();
    assert!(error.is_closed() && error.to_string().contains("/tree/in/b cannot be killed"), "{error}");
    assert!(tree.restart_child("in").await.is_err());
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_start_of_which_something_stays_is_given_up() {
    let world = World::new();
    let haunted = ChildSpec::new(world.fake("a").script(&[Begin::Well, Begin::Haunts, Begin::Well]));
    let tree = world.at_once(Strategy::OneForOne).child(haunted).start().await.unwrap();
    let mut events = tree.events();
    world.kill("a").await;
    let error = tree.terminate_child("a").await.unwrap_err();
    assert!(error.to_string().contains("still there 10 s after it was killed"), "{error}");
    assert_eq!(tree.children().await[0].state, ChildState::GivenUp);
    assert!(heard(&mut events).await.contains(&"/tree/a cannot be killed".to_owned()));
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stopped_while_it_starts_has_the_time_its_children_need_or_is_killed() {
    for (shutdown, took) in [
        (Shutdown::infinity(), secs(60)),
        (Shutdown::graceful(secs(10)), secs(12)),
        (Shutdown::kill(), Duration::ZERO),
    ] {
        let world = World::new();
        let tree = world.at_once(Strategy::OneForOne).start().await.unwrap();
        let slow = ChildSpec::new(world.fake("a").manners(Manners::Stubborn));
        let slow = slow.shutdown(Shutdown::graceful(secs(58)));
        let hanging = ChildSpec::new(world.fake("b").script(&[Begin::Hangs]));
        let inner = Supervisor::new(Strategy::OneForOne).child(slow).child(hanging);
        let spec = inner.spec("in").shutdown(shutdown);
        let (starting, below) = (tree.clone(), world.clone());
        let started = tokio::spawn(async move { starting.start_child(spec).await.map(drop) });
        settle().await;
        assert_eq!(below.alive(), ["a"]);
        let begun = Instant::now();
        tree.terminate_child("in").await.unwrap();
        assert_eq!(begun.elapsed(), took, "{shutdown:?}");
        assert!(world.alive().is_empty() && started.await.unwrap().is_err());
        tree.stop().await.unwrap();
    }
}
