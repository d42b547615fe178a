//! How a supervisor begins: all children at once where it was told so, and ends in the middle of it.

use hatchery_supervisor::policy::AutoShutdown;

use super::otp::has_ended;
use super::*;

impl World {
    /// Its children start all at once, and take as many seconds as is said.
    fn at_the_same_time(&self, children: &[(&str, Begin)]) -> Supervisor {
        let supervisor = self.at_once(Strategy::OneForOne).start_concurrently(true);
        let child =
            |(name, begin): &(&str, Begin)| ChildSpec::new(self.fake(name).script(&[*begin, Begin::Well]));
        children.iter().fold(supervisor, |all, it| all.child(child(it)))
    }
}

#[tokio::test(start_paused = true)]
async fn children_that_start_at_once_take_as_long_as_the_slowest_and_stop_in_reverse_of_the_list() {
    let world = World::new();
    let children = [("a", Begin::After(secs(3))), ("b", Begin::After(secs(1))), ("c", Begin::After(secs(2)))];
    let tree = world.at_the_same_time(&children).start().await.unwrap();
    assert_eq!(
        world.log(),
        ["0ns start a 1", "0ns start b 1", "0ns start c 1", "1s ready b 1", "2s ready c 1", "3s ready a 1"]
    );
    tree.stop().await.unwrap();
    assert_eq!(world.events(), ["Graceful c", "end c 1", "Graceful b", "end b 1", "Graceful a", "end a 1"]);
}

#[tokio::test(start_paused = true)]
async fn the_first_that_does_not_start_has_the_others_stopped_in_reverse_and_is_the_error() {
    let world = World::new();
    let children = [
        ("a", Begin::Well),
        ("b", Begin::Hangs),
        ("c", Begin::Fails),
        ("d", Begin::Fails),
        ("e", Begin::Well),
    ];
    let error = world.at_the_same_time(&children).start().await.unwrap_err();
    assert_eq!(error.to_string(), "start of /tree/c: the start failed: no luck");
    assert_eq!(world.begun.elapsed(), Duration::ZERO);
    let stops = world.events().into_iter().filter(|event| event.starts_with("Graceful")).collect::<Vec<_>>();
    assert_eq!((stops, world.alive()), (vec!["Graceful e".to_owned(), "Graceful a".to_owned()], vec![]));
    world.tree(&["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_child_that_dies_while_others_still_start_is_started_again() {
    let world = World::new();
    let starting = world.at_the_same_time(&[("a", Begin::Well), ("b", Begin::After(secs(5)))]).start();
    let starting = tokio::spawn(starting);
    settle().await;
    world.kill("a").await;
    assert_eq!(world.alive(), ["a"]);
    let tree = starting.await.unwrap().unwrap();
    assert_eq!(tree.get::<Echo>("a").unwrap().incarnation(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_of_a_concurrent_start_stops_what_had_started() {
    let world = World::new();
    let supervisor = world.at_the_same_time(&[("a", Begin::Well), ("b", Begin::Hangs), ("c", Begin::Well)]);
    assert!(tokio::time::timeout(secs(1), supervisor.start()).await.is_err());
    settle().await;
    assert_eq!(world.alive(), [""; 0]);
    world.tree(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn more_children_start_at_once_than_calls_are_held() {
    let world = World::new();
    let names: Vec<_> = (0..1000).map(|number| format!("a{number}")).collect();
    let children: Vec<_> = names.iter().map(|name| (name.as_str(), Begin::After(secs(1)))).collect();
    let tree = world.at_the_same_time(&children).start().await.unwrap();
    assert_eq!((world.begun.elapsed(), tree.count().active), (secs(1), 1000));
    let order: Vec<_> = tree.children().await.into_iter().map(|child| child.name).collect();
    assert_eq!(order, names);
}

#[tokio::test(start_paused = true)]
async fn a_significant_child_that_ends_while_others_of_the_list_still_start_ends_all_when_they_have() {
    for mode in [AutoShutdown::AnySignificant, AutoShutdown::AllSignificant] {
        let world = World::new();
        let child = |fake: Fake| ChildSpec::new(fake).restart(Restart::Transient).significant(true);
        let slow = world.fake("b").script(&[Begin::After(secs(2))]);
        let supervisor = world.at_once(Strategy::OneForOne).auto_shutdown(mode);
        let starting = supervisor.child(child(world.fake("a"))).child(child(slow)).start();
        let starting = tokio::spawn(starting);
        settle().await;
        world.end("a", Exit::orderly()).await;
        let tree = starting.await.unwrap().unwrap();
        assert_eq!(world.begun.elapsed(), secs(2));
        assert_eq!(has_ended(&tree).await, mode == AutoShutdown::AnySignificant);
        if mode == AutoShutdown::AllSignificant {
            world.end("b", Exit::orderly()).await;
            assert!(has_ended(&tree).await);
        }
        tree.stop().await.unwrap();
    }
}
