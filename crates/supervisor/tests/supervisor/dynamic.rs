//! The scenarios of Elixir's `dynamic_supervisor_test.exs`, what is different from `otp.rs` in its `supervisor_test.exs`,
//! and those of OTP's `simple_one_for_one`. What has no name here is another test already, or has no meaning:
//!
//! | theirs | here |
//! |---|---|
//! | "can be supervised directly", "multiple supervisors can be supervised ...", `use/2`, `init/1`, `start_link/3`, `code_change/3` | no modules, no callbacks, no code change; nested supervisors have tests of their own |
//! | "supports old child spec", "... new child spec", "... as tuple", "... extra arguments", "with invalid child spec", "with (in)valid shutdown" | types |
//! | "with different returns", `sup_start_child_returns_error_simple` | `sup_start_child_returns_error_simple` |
//! | "with throw/error/exit" | `a_first_start_that_fails_is_not_tried_again_and_its_name_is_free` (it panics there) |
//! | "with max_children", "restarting on init ...", "restarting on exit children counted in max_children" | `with_max_children`, `restarting_children_counted_in_max_children` |
//! | "temporary child is not restarted ...", "transient child is restarted unless ...", "permanent child is restarted ..." | `temporary_child_is_not_restarted`, `transient_child_is_restarted_unless_clean`, `permanent_child_is_restarted` |
//! | "child is restarted with different values" | what a start gives is the same each time; the error among them is `child_is_restarted_when_trying_again` |
//! | "restarting a child with extra_arguments ..." | `simple_one_for_one`: all restarts have the arguments of the first start |
//! | "child is restarted when trying again" | the same |
//! | "child triggers maximum restarts", "... maximum intensity when trying again", `simple_one_for_one_escalation` | `child_triggers_maximum_restarts`, `child_triggers_maximum_intensity_when_trying_again` |
//! | "terminates children with brutal kill", "... infinity shutdown", "... integer shutdown", "... abnormal reason", "... expired integer shutdown", "with mixed children", `sup_stop_timeout_dynamic`, `sup_stop_brutal_kill_dynamic`, `simple_one_for_one_shutdown` | `terminates_with_mixed_children` |
//! | "terminates children with permanent restart and normal reason", `sup_stop_non_shutdown_exit_dynamic` | `sup_stop_non_shutdown_exit_dynamic` |
//! | "terminates child with brutal kill", "... integer shutdown" | `terminates_child` |
//! | "terminates restarting child", `hanging_restart_loop_simple` | `terminates_restarting_child` |
//! | "child life cycle" (`supervisor_test.exs`) | `otp::child_adm` |
//! | `child_adm_simple`, `which_children_simple_one_for_one` | `child_adm_simple` |
//! | `simple_one_for_one`, `simple_one_for_one_extra` | `simple_one_for_one` |
//! | `simple_one_for_one_corruption`, `*_scale_many_temporary_children` | how it is kept in their memory; timing is for benches |
//! | `count_children`, `count_children_supervisor`, `count_restarting_children` | `count_children`, `count_restarting_children` |

use super::otp::{abnormal, all_exits, clean, counts, has_ended, incarnations, states};
use super::*;

impl World {
    async fn dynamic(&self) -> Tree {
        self.dynamic_by(|it| it).await
    }

    /// Even early deaths are followed by restarts at once.
    async fn dynamic_by(&self, told: impl FnOnce(Supervisor) -> Supervisor) -> Tree {
        let supervisor = Supervisor::dynamic().name("tree").backoff(Duration::ZERO, Duration::ZERO);
        told(supervisor).start().await.unwrap()
    }
}

// ---------------------------------------------------------------- starting

#[tokio::test(start_paused = true)]
async fn sup_start_child_returns_error_simple() {
    let world = World::new();
    let tree = world.dynamic().await;
    for begin in [Begin::Fails, Begin::Panics] {
        let fails = ChildSpec::new(world.fake("a").script(&[begin]));
        assert!(tree.start_child(fails).await.is_err());
        assert_eq!((states(&tree).await, counts(&tree)), (vec![], (0, 0)));
    }
    tree.start_child(world.child("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_begins_without_children() {
    let world = World::new();
    let error = Supervisor::dynamic().name("tree").child(world.child("a")).start().await.unwrap_err();
    assert!(error.is_contradiction() && error.to_string().contains("begins without children"), "{error}");
    assert_eq!(world.log(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn with_max_children() {
    let world = World::new();
    let tree = world.dynamic_by(|it| it.max_children(0)).await;
    let error = tree.start_child(world.child("a")).await.unwrap_err();
    assert!(error.is_max_children(), "{error}");
    assert_eq!(error.to_string().split_once(": ").unwrap().0, "start of /tree/a");
    assert_eq!((states(&tree).await, world.log()), (vec![], vec![]));
    assert!(tree.get::<Echo>("a").is_err());
    // What there is is told rather than that there is no room for it.
    let world = World::new();
    let tree = world.dynamic_by(|it| it.max_children(1)).await;
    tree.start_child(world.child("a")).await.unwrap();
    assert!(tree.start_child(world.child("a")).await.unwrap_err().is_already_started());
    assert!(tree.start_child(world.child("b")).await.unwrap_err().is_max_children());
    tree.terminate_child("a").await.unwrap();
    tree.start_child(world.child("b")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn restarting_children_counted_in_max_children() {
    let world = World::new();
    let one = Supervisor::dynamic().name("tree").max_children(1);
    let tree = one.start().await.unwrap();
    tree.start_child(world.child("a")).await.unwrap();
    world.kill("a").await;
    assert_eq!(
        (states(&tree).await, counts(&tree)),
        (vec![("a".to_owned(), ChildState::Restarting)], (1, 0))
    );
    assert!(tree.start_child(world.child("b")).await.unwrap_err().is_max_children());
    sleep(secs(1)).await;
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![2], (1, 1)));
    assert!(tree.start_child(world.child("b")).await.unwrap_err().is_max_children());
}

#[tokio::test(start_paused = true)]
async fn where_specs_are_kept_they_are_counted_in_max_children() {
    let world = World::new();
    let new =
        |max| Supervisor::new(Strategy::OneForOne).name("tree").child(world.child("a")).max_children(max);
    let error = new(0).start().await.unwrap_err();
    assert!(error.is_contradiction() && error.to_string().contains("`max_children` allows 0"), "{error}");
    assert_eq!(world.log(), [""; 0]);
    let tree = new(1).start().await.unwrap();
    tree.terminate_child("a").await.unwrap();
    assert!(tree.start_child(world.child("b")).await.unwrap_err().is_max_children());
    tree.restart_child("a").await.unwrap();
    tree.terminate_child("a").await.unwrap();
    tree.delete_child("a").await.unwrap();
    tree.start_child(world.child("b")).await.unwrap();
}

// ---------------------------------------------------------------- restarts

#[tokio::test(start_paused = true)]
async fn temporary_child_is_not_restarted() {
    let world = World::new();
    let tree = world.dynamic().await;
    for exit in all_exits() {
        tree.start_child(world.child("a").restart(Restart::Temporary)).await.unwrap();
        world.end("a", exit).await;
        assert_eq!((states(&tree).await, counts(&tree)), (vec![], (0, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn transient_child_is_restarted_unless_clean() {
    let world = World::new();
    let tree = world.dynamic().await;
    for exit in clean() {
        let a = tree.start_child(world.child("a").restart(Restart::Transient)).await.unwrap();
        world.end("a", exit).await;
        assert_eq!((states(&tree).await, counts(&tree)), (vec![], (0, 0)));
        let error = a.who().await.unwrap_err();
        assert!(error.is_closed() && error.to_string().contains("it was removed"), "{error}");
    }
    tree.start_child(world.child("a").restart(Restart::Transient)).await.unwrap();
    for exit in abnormal() {
        world.end("a", exit).await;
    }
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![3], (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn permanent_child_is_restarted() {
    let world = World::new();
    let tree = world.dynamic().await;
    for (number, exit) in (1..).zip(all_exits()) {
        let name = format!("a{number}");
        tree.start_child(world.child(&name)).await.unwrap();
        world.end(&name, exit).await;
        assert_eq!(counts(&tree), (number, number));
    }
}

#[tokio::test(start_paused = true)]
async fn simple_one_for_one() {
    let world = World::new();
    let tree = world.dynamic_by(|it| it.intensity(2, secs(3600))).await;
    for name in ["a", "b"] {
        tree.start_child(world.child(name)).await.unwrap();
    }
    world.kill("a").await;
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![2, 1], (2, 2)));
    world.kill("b").await;
    world.kill("b").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err() && world.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn child_is_restarted_when_trying_again() {
    let world = World::new();
    let tree = world.dynamic_by(|it| it.intensity(2, secs(5))).await;
    let flaky = world.fake("a").script(&[Begin::Well, Begin::Fails, Begin::Well]);
    tree.start_child(ChildSpec::new(flaky)).await.unwrap();
    world.kill("a").await;
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![3], (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn child_triggers_maximum_restarts() {
    let world = World::new();
    let tree = world.dynamic_by(|it| it.intensity(1, secs(5))).await;
    tree.start_child(world.no_second_time("a")).await.unwrap();
    tree.start_child(world.child("b")).await.unwrap();
    world.kill("a").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err() && world.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn child_triggers_maximum_intensity_when_trying_again() {
    let world = World::new();
    let tree = world.dynamic_by(|it| it.intensity(10, secs(5))).await;
    tree.start_child(world.no_second_time("a")).await.unwrap();
    world.log();
    world.kill("a").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err());
    assert_eq!(world.events().len(), 1 + 10, "its end, and ten attempts");
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_given_up_is_told_as_given_up_and_removed() {
    let world = World::new();
    let tree = world.dynamic().await;
    for restart in [Restart::Permanent, Restart::Transient, Restart::Temporary] {
        let a = tree.start_child(world.child("a").restart(restart)).await.unwrap();
        world.end("a", Exit::new(Status::Code(125))).await;
        let error = a.who().await.unwrap_err();
        assert!(error.is_closed() && error.to_string().contains("gave it up; at last"), "{error}");
        assert_eq!((states(&tree).await, counts(&tree)), (vec![], (0, 0)));
    }
    let world = World::new();
    let giving_up = |it: Supervisor| it.intensity(0, secs(60)).exhausted(Exhausted::GiveUpChild);
    let tree = world.dynamic_by(giving_up).await;
    for name in ["a", "b"] {
        tree.start_child(world.child(name)).await.unwrap();
    }
    world.kill("a").await;
    assert_eq!(states(&tree).await, [("b".to_owned(), ChildState::Running)]);
}

// ---------------------------------------------------------------- calls

#[tokio::test(start_paused = true)]
async fn child_adm_simple() {
    let world = World::new();
    let tree = world.dynamic().await;
    assert_eq!((states(&tree).await, counts(&tree)), (vec![], (0, 0)));
    for name in ["a", "b"] {
        tree.start_child(world.child(name)).await.unwrap();
    }
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![1, 1], (2, 2)));
    assert!(tree.restart_child("a").await.unwrap_err().is_running());
    assert!(tree.delete_child("a").await.unwrap_err().is_running());
    tree.terminate_child("a").await.unwrap();
    assert_eq!((counts(&tree), world.alive()), ((1, 1), vec!["b".to_owned()]));
    for error in [
        tree.terminate_child("a").await.unwrap_err(),
        tree.restart_child("a").await.unwrap_err(),
        tree.delete_child("a").await.unwrap_err(),
    ] {
        assert!(error.is_not_found(), "{error}");
    }
    tree.start_child(world.child("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn terminates_child() {
    for (manners, shutdown, last) in [
        (Manners::Stubborn, Shutdown::kill(), "0ns end a 1"),
        (Manners::Polite, Shutdown::graceful(secs(1)), "0ns end a 1"),
        (Manners::Busy, Shutdown::graceful(secs(1)), "1s end a 1"),
    ] {
        let world = World::new();
        let tree = world.dynamic().await;
        let spec = ChildSpec::new(world.fake("a").manners(manners)).shutdown(shutdown);
        let a = tree.start_child(spec).await.unwrap();
        tree.terminate_child("a").await.unwrap();
        assert_eq!(world.log().last().map(String::as_str), Some(last));
        assert!(a.who().await.unwrap_err().is_closed());
        assert!(tree.terminate_child("a").await.unwrap_err().is_not_found());
        assert_eq!(counts(&tree), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn terminates_restarting_child() {
    let world = World::new();
    let tree = Supervisor::dynamic().name("tree").intensity(100_000, secs(5)).start().await.unwrap();
    let a = tree.start_child(world.no_second_time("a")).await.unwrap();
    world.kill("a").await;
    assert!(tree.restart_child("a").await.unwrap_err().is_restarting());
    assert!(tree.delete_child("a").await.unwrap_err().is_restarting());
    let in_line = tokio::spawn(a.who());
    settle().await;
    tree.terminate_child("a").await.unwrap();
    assert!(in_line.await.unwrap().unwrap_err().is_closed());
    assert!(tree.terminate_child("a").await.unwrap_err().is_not_found());
    assert_eq!((states(&tree).await, counts(&tree)), (vec![], (0, 0)));
    // Nor does it hold up the end of all.
    tree.start_child(world.no_second_time("a")).await.unwrap();
    world.kill("a").await;
    let begun = Instant::now();
    tree.stop().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn count_children() {
    let world = World::new();
    let tree = world.dynamic().await;
    for number in 0..100 {
        let child = world.child(&format!("a{number}")).restart(Restart::Temporary);
        tree.start_child(child).await.unwrap();
    }
    assert_eq!((counts(&tree), tree.children().await.len()), ((100, 100), 100));
    for number in 0..100 {
        world.kill(&format!("a{number}")).await;
    }
    assert_eq!(counts(&tree), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn count_restarting_children() {
    let world = World::new();
    let tree = Supervisor::dynamic().name("tree").intensity(20, secs(10)).start().await.unwrap();
    for name in ["a", "b", "c"] {
        let flaky = world.fake(name).script(&[Begin::Well, Begin::Fails, Begin::Well]);
        tree.start_child(ChildSpec::new(flaky)).await.unwrap();
    }
    world.kill("a").await;
    world.kill("b").await;
    assert_eq!(counts(&tree), (3, 1));
    // After 100 ms they fail, after 200 ms more they are back.
    sleep(Duration::from_millis(130)).await;
    assert_eq!(counts(&tree), (3, 1));
    sleep(secs(1)).await;
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![3, 3, 1], (3, 3)));
    for (name, left) in [("c", 2), ("a", 1), ("b", 0)] {
        tree.terminate_child(name).await.unwrap();
        assert_eq!(counts(&tree), (left, left));
    }
}

// ---------------------------------------------------------------- the end

#[tokio::test(start_paused = true)]
async fn terminates_with_mixed_children() {
    let world = World::new();
    let tree = world.dynamic().await;
    for (name, manners, shutdown) in [
        ("polite", Manners::Polite, Shutdown::graceful(secs(1))),
        ("slow", Manners::Slow(secs(2)), Shutdown::graceful(secs(4))),
        ("endless", Manners::Slow(secs(20)), Shutdown::infinity()),
        ("stubborn", Manners::Stubborn, Shutdown::graceful(secs(1))),
        ("killed", Manners::Stubborn, Shutdown::kill()),
    ] {
        let spec = ChildSpec::new(world.fake(name).manners(manners)).shutdown(shutdown);
        tree.start_child(spec).await.unwrap();
    }
    tree.start_child(ChildSpec::new(world.fake("restarting").script(&[Begin::Well, Begin::Hangs])))
        .await
        .unwrap();
    world.kill("restarting").await;
    let starting = tokio::spawn({
        let (tree, hangs) = (tree.clone(), world.fake("starting").script(&[Begin::Hangs]));
        async move { tree.start_child(ChildSpec::new(hangs)).await }
    });
    settle().await;
    world.log();
    tree.stop().await.unwrap();
    assert!(starting.await.unwrap().is_err());
    let mut log = world.log();
    let at_once = log.split_off(log.iter().position(|line| !line.starts_with("0ns")).unwrap());
    log.sort();
    assert_eq!(
        log,
        [
            "0ns Graceful endless",
            "0ns Graceful polite",
            "0ns Graceful slow",
            "0ns Graceful stubborn",
            "0ns Kill killed",
            "0ns end killed 1",
            "0ns end polite 1",
        ]
    );
    let later =
        ["1s Term stubborn", "2s end slow 1", "3s Kill stubborn", "3s end stubborn 1", "20s end endless 1"];
    assert_eq!(at_once, later);
    assert!(world.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn sup_stop_non_shutdown_exit_dynamic() {
    for restart in [Restart::Temporary, Restart::Transient, Restart::Permanent] {
        let world = World::new();
        let tree = world.dynamic().await;
        let exits = all_exits();
        for number in 0..exits.len() {
            let slow = world.fake(&format!("a{number}")).manners(Manners::Slow(secs(9)));
            let shutdown = Shutdown::infinity();
            tree.start_child(ChildSpec::new(slow).restart(restart).shutdown(shutdown)).await.unwrap();
        }
        let stop = tokio::spawn({
            let tree = tree.clone();
            async move { tree.stop().await }
        });
        settle().await;
        world.log();
        for (number, exit) in exits.into_iter().enumerate() {
            world.end(&format!("a{number}"), exit).await;
        }
        stop.await.unwrap().unwrap();
        assert_eq!(world.begun.elapsed(), Duration::ZERO);
        assert_eq!(world.events(), (0..5).map(|number| format!("end a{number} 1")).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_killed_keeps_its_name_and_is_removed_once_it_is_gone() {
    let world = World::new();
    let tree = world.dynamic().await;
    tree.start_child(ChildSpec::new(world.fake("a").manners(Manners::Immortal))).await.unwrap();
    assert!(tree.terminate_child("a").await.is_err());
    assert_eq!(states(&tree).await, [("a".to_owned(), ChildState::GivenUp)]);
    assert_beside_nobody(&tree, &world, "a").await;
    world.kill("a").await;
    assert_eq!(states(&tree).await, []);
    // The same of what stays of a first start.
    let (starting, spec) = (tree.clone(), ChildSpec::new(world.fake("a").script(&[Begin::Haunts])));
    let starting = tokio::spawn(async move { starting.start_child(spec).await.map(drop) });
    settle().await;
    assert!(tree.terminate_child("a").await.is_err());
    let error = starting.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("stopped while it started"), "{error}");
    assert_beside_nobody(&tree, &world, "a").await;
    world.ghosts.lock().unwrap().clear();
    settle().await;
    tree.start_child(world.child("a")).await.unwrap();
    tree.stop().await.unwrap();
}
