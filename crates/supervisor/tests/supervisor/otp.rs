//! The scenarios of OTP's `supervisor_SUITE`, with the names they have there. What has no name here is another test
//! already, or has no meaning:
//!
//! | theirs | here |
//! |---|---|
//! | `sup_start_normal` | the same |
//! | `sup_start_ignore_*`, `simple_one_for_one_restart_ignore` | no start is ignored: it becomes ready, or has failed |
//! | `sup_start_error_return`, `sup_start_fail` | no callback says what a supervisor is: a builder does |
//! | `sup_start_child_returns_error` | `a_first_start_that_fails_is_not_tried_again_and_its_name_is_free` |
//! | `sup_start_restart_child_returns_error` | `a_restart_by_hand_that_fails_is_told_and_leaves_the_child_stopped` |
//! | `sup_start_map`, `sup_start_map_simple`, `extra_return` | no specs in maps, and nothing but a handle comes back |
//! | `sup_start_map_faulty_specs`, `child_specs`, `sup_flags` | types; and `what_a_supervisor_is_told_must_not_contradict_itself` |
//! | `child_specs_map` | the same, for combinations that contradict each other |
//! | `sup_stop_infinity`, `sup_stop_timeout`, `sup_stop_brutal_kill` | `a_shutdown_says_how_long_each_rung_may_take` |
//! | `sup_stop_race` | the same |
//! | `child_adm`, `which_children` | the same; and `every_call_has_its_answer_for_running_restarting_stopped_and_unknown_children` |
//! | `permanent_*`, `transient_*`, `temporary_*` but for the next | `permanent`, `transient`, `temporary`: all exits in one test |
//! | `temporary_bystander` | the same |
//! | `external_start_no_progress_log`, `faulty_application_shutdown`, `format_log_*` | applications and reports of OTP's own |
//! | `multiple_restarts` | `restarts_outside_the_window_do_not_count` |
//! | `one_for_one`, `one_for_all`, `rest_for_one`, and each `*_escalation` | the same |
//! | `one_for_all_other_child_fails_restart` | `a_sibling_that_fails_to_start_has_all_tried_again_in_one_for_all` |
//! | `rest_for_one_other_child_fails_restart` | `a_sibling_that_fails_to_start_leaves_those_before_it_up_in_rest_for_one` |
//! | `nonsignificant_*`, `significant_temporary`, `significant_transient`, `significant_simple`, `significant_bystander` | the same |
//! | `tree`, `significant_escalation` | the same |
//! | `simple_global_supervisor` | names are paths; `trees.rs` of `tests/` has supervisors that are killed and started by hand |
//! | `significant_upgrade_*`, `code_change*`, `get_callback_module` | no code is changed while it runs |
//! | `do_not_save_child_specs_for_temporary_children` | the same |
//! | `do_not_save_start_parameters_for_temporary_children` | a spec is kept or it is not |
//! | `hanging_restart_loop`, `hanging_restart_loop_rest_for_one` | the same, and what is told of the sibling deviates |
//! | `order_of_children` | the same |
//! | `already_started_outside_supervisor` | `a_name_is_given_once_among_siblings_and_again_when_it_is_free` |
//! | `child_unlink` | a child cannot keep its end to itself: the system tells of it |
//! | `scale_start_stop_many_children` | timing is for benches |
//! | `*simple*`, `*_dynamic`, `count_children`, `count_restarting_children` | `dynamic.rs` |

use hatchery_supervisor::policy::AutoShutdown;

use super::*;

/// What they call `normal`, `shutdown` and `{shutdown, Term}`.
pub(crate) fn clean() -> [Exit; 3] {
    [Exit::orderly(), Exit::new(Status::Signal(15)), Exit::new(Status::Code(0))]
}

/// What they call `abnormal` and `kill`.
pub(crate) fn abnormal() -> [Exit; 2] {
    [Exit::new(Status::Code(1)), Exit::new(Status::Signal(9))]
}

pub(crate) fn all_exits() -> Vec<Exit> {
    clean().into_iter().chain(abnormal()).collect()
}

/// How its children stand.
pub(crate) async fn states(tree: &Tree) -> Vec<(String, ChildState)> {
    tree.children().await.into_iter().map(|child| (child.name, child.state)).collect()
}

/// Which incarnations there are, in the order of their addition.
pub(crate) async fn incarnations(tree: &Tree) -> Vec<u64> {
    tree.children().await.iter().map(|child| child.incarnation).collect()
}

pub(crate) fn counts(tree: &Tree) -> (usize, usize) {
    let count = tree.count();
    (count.specs, count.active)
}

/// Whether it has ended: by itself, since nobody asks for that here.
pub(crate) async fn has_ended(tree: &Tree) -> bool {
    settle().await;
    tree.terminate_child("nobody").await.unwrap_err().is_closed()
}

impl World {
    /// One that starts well, and fails at each restart.
    pub(crate) fn no_second_time(&self, name: &str) -> ChildSpec<Fake> {
        ChildSpec::new(self.fake(name).script(&[Begin::Well, Begin::Fails]))
    }

    async fn of(&self, supervisor: Supervisor, names: &[&str]) -> Tree {
        names.iter().fold(supervisor, |all, name| all.child(self.child(name))).start().await.unwrap()
    }
}

const STRATEGIES: [Strategy; 3] = [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne];
const MODES: [AutoShutdown; 3] =
    [AutoShutdown::Never, AutoShutdown::AnySignificant, AutoShutdown::AllSignificant];

// ---------------------------------------------------------------- starting, stopping, calls

#[tokio::test(start_paused = true)]
async fn sup_start_normal() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    assert_eq!((tree.path(), counts(&tree)), ("/tree", (0, 0)));
    tree.stop().await.unwrap();
    assert!(has_ended(&tree).await);
}

#[tokio::test(start_paused = true)]
async fn sup_stop_race() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    let mut names = Vec::new();
    for restart in [Restart::Temporary, Restart::Transient, Restart::Permanent] {
        for exit in all_exits() {
            let name = format!("b{}", names.len());
            tree.start_child(world.child(&name).restart(restart)).await.unwrap();
            names.push((name, exit));
        }
    }
    let slow = ChildSpec::new(world.fake("z").manners(Manners::Slow(secs(1))));
    tree.start_child(slow.restart(Restart::Temporary)).await.unwrap();
    let stop = tokio::spawn({
        let tree = tree.clone();
        async move { tree.stop().await }
    });
    settle().await;
    world.log();
    for (name, exit) in names {
        world.end(&name, exit).await;
    }
    stop.await.unwrap().unwrap();
    let events = world.events();
    assert!(!events.iter().any(|event| event.starts_with("start")), "{events:?}");
    assert_eq!(events[events.len() - 3..], ["end z 1", "Graceful a", "end a 1"]);
}

#[tokio::test(start_paused = true)]
async fn child_adm() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    assert_eq!((states(&tree).await, counts(&tree)), (vec![("a".to_owned(), ChildState::Running)], (1, 1)));
    tree.terminate_child("a").await.unwrap();
    assert_eq!((states(&tree).await, counts(&tree)), (vec![("a".to_owned(), ChildState::Stopped)], (1, 0)));
    tree.terminate_child("a").await.unwrap();
    tree.restart_child("a").await.unwrap();
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![2], (1, 1)));
    tree.terminate_child("a").await.unwrap();
    tree.delete_child("a").await.unwrap();
    assert_eq!((states(&tree).await, counts(&tree)), (vec![], (0, 0)));
    tree.start_child(world.child("a")).await.unwrap();
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![1], (1, 1)), "it is another child");
}

#[tokio::test(start_paused = true)]
async fn which_children() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let two = |a, b| vec![("a".to_owned(), a), ("b".to_owned(), b)];
    assert_eq!(states(&tree).await, []);
    tree.start_child(world.child("a")).await.unwrap();
    tree.start_child(world.child("b")).await.unwrap();
    assert_eq!(states(&tree).await, two(ChildState::Running, ChildState::Running));
    tree.terminate_child("a").await.unwrap();
    assert_eq!(states(&tree).await, two(ChildState::Stopped, ChildState::Running));
    tree.delete_child("a").await.unwrap();
    assert_eq!(states(&tree).await, [("b".to_owned(), ChildState::Running)]);
}

#[tokio::test(start_paused = true)]
async fn child_specs_map() {
    for mode in MODES {
        for restart in [Restart::Permanent, Restart::Transient, Restart::Temporary] {
            for significant in [false, true] {
                let world = World::new();
                let spec = || world.child("b").restart(restart).significant(significant);
                let new = || world.at_once(Strategy::OneForOne).auto_shutdown(mode).child(world.child("a"));
                let why = match (significant, restart, mode) {
                    (true, Restart::Permanent, _) => "as `Restart::Permanent` it is always started again",
                    (true, _, AutoShutdown::Never) => "its supervisor never ends by itself",
                    _ => {
                        new().child(spec()).start().await.unwrap().stop().await.unwrap();
                        continue;
                    }
                };
                let listed = new().child(spec()).start().await.unwrap_err();
                assert_eq!(world.log(), [""; 0], "nothing was started");
                let tree = new().start().await.unwrap();
                let added = tree.start_child(spec()).await.map(drop).unwrap_err();
                for error in [listed, added] {
                    assert!(error.is_contradiction() && error.to_string().contains(why), "{error}");
                    assert!(
                        error.to_string().starts_with("start of /tree/b: ")
                            || error.to_string().starts_with("start of tree/b: "),
                        "{error}"
                    );
                }
                assert_eq!((counts(&tree), world.alive()), ((1, 1), vec!["a".to_owned()]));
                tree.stop().await.unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn order_of_children() {
    let world = World::new();
    let names = ["ch7", "ch3", "ch10", "ch2", "ch5"];
    let tree = world.of(world.at_once(Strategy::RestForOne), &names).await;
    let starts = |from: usize, incarnation: u64| {
        let start = |name| [format!("start {name} {incarnation}"), format!("ready {name} {incarnation}")];
        names[from..].iter().flat_map(start).collect::<Vec<_>>()
    };
    assert_eq!(world.events(), starts(0, 1));
    world.end("ch10", Exit::new(Status::Code(1))).await;
    let stops = ["end ch10 1", "Graceful ch5", "end ch5 1", "Graceful ch2", "end ch2 1"].map(str::to_owned);
    assert_eq!(world.events(), [&stops[..], &starts(2, 2)[..]].concat());
    tree.stop().await.unwrap();
    let stops = world.events().into_iter().filter(|event| event.starts_with("Graceful")).collect::<Vec<_>>();
    assert_eq!(stops, ["ch5", "ch2", "ch10", "ch3", "ch7"].map(|name| format!("Graceful {name}")));
}

// ---------------------------------------------------------------- kinds of children

#[tokio::test(start_paused = true)]
async fn permanent() {
    for (exit, strategy) in all_exits().into_iter().flat_map(|exit| STRATEGIES.map(|it| (exit.clone(), it))) {
        let world = World::new();
        let tree = world.of(world.at_once(strategy), &["a"]).await;
        world.end("a", exit).await;
        assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![2], (1, 1)));
    }
}

#[tokio::test(start_paused = true)]
async fn transient() {
    for strategy in STRATEGIES {
        let world = World::new();
        let tree = world.at_once(strategy).start().await.unwrap();
        tree.start_child(world.child("a").restart(Restart::Transient)).await.unwrap();
        for (before, exit) in (1..).zip(clean()) {
            world.end("a", exit).await;
            assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![before], (1, 0)));
            tree.restart_child("a").await.unwrap();
        }
        for (before, exit) in (4..).zip(abnormal()) {
            assert_eq!(incarnations(&tree).await, [before]);
            world.end("a", exit).await;
            assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![before + 1], (1, 1)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn temporary() {
    for (exit, strategy) in all_exits().into_iter().flat_map(|exit| STRATEGIES.map(|it| (exit.clone(), it))) {
        let world = World::new();
        let tree = world.at_once(strategy).start().await.unwrap();
        tree.start_child(world.child("a").restart(Restart::Temporary)).await.unwrap();
        world.end("a", exit).await;
        assert_eq!((states(&tree).await, counts(&tree)), (vec![], (0, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn temporary_bystander() {
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        let world = World::new();
        let supervisor = world.at_once(strategy).intensity(2, secs(300)).child(world.child("a"));
        let tree =
            supervisor.child(world.no_second_time("b").restart(Restart::Temporary)).start().await.unwrap();
        world.end("a", Exit::orderly()).await;
        sleep(secs(1)).await;
        assert!(!has_ended(&tree).await);
        assert_eq!(states(&tree).await, [("a".to_owned(), ChildState::Running)]);
        assert_eq!(world.alive(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn do_not_save_child_specs_for_temporary_children() {
    for strategy in STRATEGIES {
        let world = World::new();
        let tree = world.at_once(strategy).start().await.unwrap();
        for (restart, exits_that_keep) in [
            (Restart::Permanent, all_exits()),
            (Restart::Transient, all_exits()),
            (Restart::Temporary, vec![]),
        ] {
            let spec = || world.child("a").restart(restart);
            for exit in all_exits() {
                tree.start_child(spec()).await.unwrap();
                world.end("a", exit.clone()).await;
                let again = tree.start_child(spec()).await;
                assert_eq!(again.is_err(), exits_that_keep.contains(&exit), "{restart:?} after {exit}");
                if let Err(error) = again {
                    let stays = restart == Restart::Transient && clean().contains(&exit);
                    assert_eq!((error.is_already_present(), error.is_already_started()), (stays, !stays));
                }
                tree.terminate_child("a").await.unwrap();
                let _ = tree.delete_child("a").await;
            }
            // By call.
            tree.start_child(spec()).await.unwrap();
            tree.terminate_child("a").await.unwrap();
            match tree.start_child(spec()).await {
                Ok(_) => assert_eq!(restart, Restart::Temporary),
                Err(error) => {
                    assert!(error.is_already_present() && restart != Restart::Temporary);
                    tree.restart_child("a").await.unwrap();
                }
            }
            tree.terminate_child("a").await.unwrap();
            let _ = tree.delete_child("a").await;
        }
    }
}

// ---------------------------------------------------------------- strategies

#[tokio::test(start_paused = true)]
async fn one_for_one() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::OneForOne).intensity(2, secs(3600));
    let tree = world.of(supervisor, &["a", "b"]).await;
    world.kill("a").await;
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![2, 1], (2, 2)));
    world.kill("b").await;
    assert_eq!(incarnations(&tree).await, [2, 2]);
    world.kill("b").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err() && world.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_for_one_escalation() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::OneForOne).intensity(4, secs(3600));
    let supervisor = supervisor.child(world.no_second_time("a")).child(world.child("b"));
    let tree = supervisor.start().await.unwrap();
    world.log();
    world.kill("a").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err());
    let tries = ["end a 1", "start a 2", "start a 3", "start a 4", "start a 5", "Graceful b", "end b 1"];
    assert_eq!(world.events(), tries);
}

#[tokio::test(start_paused = true)]
async fn one_for_all() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::OneForAll).intensity(2, secs(3600));
    let tree = world.of(supervisor, &["a", "b"]).await;
    world.kill("a").await;
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![2, 2], (2, 2)));
    world.kill("b").await;
    assert_eq!(incarnations(&tree).await, [3, 3]);
    world.kill("b").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err() && world.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_for_all_escalation() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::OneForAll).intensity(4, secs(3600));
    let supervisor = supervisor.child(world.child("a")).child(world.no_second_time("b"));
    let tree = supervisor.start().await.unwrap();
    world.log();
    world.kill("a").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err() && world.alive().is_empty());
    let tries = world.events().into_iter().filter(|event| event.starts_with("start b")).collect::<Vec<_>>();
    assert_eq!(tries, ["start b 2", "start b 3", "start b 4", "start b 5"]);
}

#[tokio::test(start_paused = true)]
async fn rest_for_one() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::RestForOne).intensity(2, secs(3600));
    let tree = world.of(supervisor, &["a", "b", "c"]).await;
    assert_eq!(counts(&tree), (3, 3));
    world.kill("b").await;
    assert_eq!((incarnations(&tree).await, counts(&tree)), (vec![1, 2, 2], (3, 3)));
    world.kill("c").await;
    assert_eq!(incarnations(&tree).await, [1, 2, 3]);
    world.kill("b").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err() && world.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn rest_for_one_escalation() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::RestForOne).intensity(4, secs(3600));
    let supervisor = supervisor.child(world.child("a")).child(world.no_second_time("b"));
    let tree = supervisor.start().await.unwrap();
    world.kill("a").await;
    assert!(has_ended(&tree).await && tree.stop().await.is_err() && world.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn hanging_restart_loop() {
    let world = World::new();
    let tree =
        Supervisor::new(Strategy::OneForOne).name("tree").intensity(8, secs(10)).start().await.unwrap();
    let script = [Begin::Well, Begin::Fails, Begin::Fails, Begin::Well, Begin::Fails];
    tree.start_child(ChildSpec::new(world.fake("a").script(&script))).await.unwrap();
    world.kill("a").await;
    // Its first wait, and the first attempt.
    sleep(Duration::from_millis(130)).await;
    assert!(tree.start_child(world.child("a")).await.unwrap_err().is_already_present());
    assert!(tree.restart_child("a").await.unwrap_err().is_restarting());
    assert!(tree.delete_child("a").await.unwrap_err().is_restarting());
    assert_eq!(
        (states(&tree).await, counts(&tree)),
        (vec![("a".to_owned(), ChildState::Restarting)], (1, 0))
    );
    tree.terminate_child("a").await.unwrap();
    assert_eq!(states(&tree).await, [("a".to_owned(), ChildState::Stopped)]);
    assert!(tree.restart_child("a").await.is_err(), "that is the second failure");
    tree.restart_child("a").await.unwrap();
    world.kill("a").await;
    let begun = Instant::now();
    tree.stop().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn hanging_restart_loop_rest_for_one() {
    let world = World::new();
    let supervisor = Supervisor::new(Strategy::RestForOne).name("tree").intensity(8, secs(10));
    let supervisor = supervisor.child(world.child("a")).child(world.no_second_time("b"));
    let tree = supervisor.child(world.child("c")).start().await.unwrap();
    world.kill("b").await;
    assert!(tree.start_child(world.child("b")).await.unwrap_err().is_already_present());
    assert!(tree.restart_child("b").await.unwrap_err().is_restarting());
    assert!(tree.delete_child("b").await.unwrap_err().is_restarting());
    // Theirs says of c that nobody is there; here it waits for its turn, and is said to be restarting.
    let all = [ChildState::Running, ChildState::Restarting, ChildState::Restarting];
    assert_eq!(tree.children().await.iter().map(|child| child.state).collect::<Vec<_>>(), all);
    assert_eq!(counts(&tree), (3, 1));
    // Theirs leaves c down now; here it goes on without b.
    tree.terminate_child("b").await.unwrap();
    settle().await;
    let all = [ChildState::Running, ChildState::Stopped, ChildState::Running];
    assert_eq!(tree.children().await.iter().map(|child| child.state).collect::<Vec<_>>(), all);
    world.kill("a").await;
    let begun = Instant::now();
    tree.stop().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

// ---------------------------------------------------------------- significant children

impl World {
    /// Its children a and b are significant, c is not.
    async fn significant(&self, strategy: Strategy, mode: AutoShutdown, restart: Restart) -> Tree {
        let supervisor = self.at_once(strategy).auto_shutdown(mode);
        let child = |name| self.child(name).restart(restart);
        let supervisor = supervisor.child(child("a").significant(true)).child(child("b").significant(true));
        let tree = supervisor.child(child("c")).start().await.unwrap();
        self.log();
        tree
    }
}

#[tokio::test(start_paused = true)]
async fn nonsignificant_temporary() {
    for mode in MODES {
        let world = World::new();
        let tree = world.at_once(Strategy::OneForOne).auto_shutdown(mode).start().await.unwrap();
        let spec = || world.child("a").restart(Restart::Temporary);
        tree.start_child(spec()).await.unwrap();
        tree.terminate_child("a").await.unwrap();
        assert!(!has_ended(&tree).await);
        for exit in all_exits() {
            tree.start_child(spec()).await.unwrap();
            world.end("a", exit).await;
            assert!(!has_ended(&tree).await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nonsignificant_transient() {
    for mode in MODES {
        let world = World::new();
        let tree = world.at_once(Strategy::OneForOne).auto_shutdown(mode).start().await.unwrap();
        tree.start_child(world.child("a").restart(Restart::Transient)).await.unwrap();
        tree.terminate_child("a").await.unwrap();
        for exit in all_exits() {
            let _ = tree.restart_child("a").await;
            world.end("a", exit).await;
            assert!(!has_ended(&tree).await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn significant_temporary() {
    for exit in all_exits() {
        let world = World::new();
        let tree =
            world.significant(Strategy::OneForOne, AutoShutdown::AnySignificant, Restart::Temporary).await;
        let c = tree.get::<Echo>("c").unwrap();
        // Not by call.
        tree.terminate_child("a").await.unwrap();
        assert!(!has_ended(&tree).await);
        assert_eq!(world.alive(), ["b", "c"]);
        world.log();
        world.end("b", exit).await;
        assert!(has_ended(&tree).await);
        assert_eq!(world.events(), ["end b 1", "Graceful c", "end c 1"]);
        let error = c.who().await.unwrap_err();
        assert!(error.is_closed() && error.to_string().contains("ended by itself"), "{error}");
        tree.stop().await.unwrap();
        tree.run_until_signal().await.unwrap();
    }
    let world = World::new();
    let tree = world.significant(Strategy::OneForOne, AutoShutdown::AllSignificant, Restart::Temporary).await;
    world.end("a", Exit::orderly()).await;
    assert!(!has_ended(&tree).await);
    assert_eq!(world.alive(), ["b", "c"]);
    world.end("b", Exit::orderly()).await;
    assert!(has_ended(&tree).await && world.alive().is_empty());
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn significant_transient() {
    let world = World::new();
    let tree = world.significant(Strategy::OneForOne, AutoShutdown::AnySignificant, Restart::Transient).await;
    tree.terminate_child("a").await.unwrap();
    assert!(!has_ended(&tree).await);
    tree.restart_child("a").await.unwrap();
    for exit in abnormal() {
        world.end("a", exit).await;
        assert!(!has_ended(&tree).await);
    }
    assert_eq!(incarnations(&tree).await, [4, 1, 1]);
    world.log();
    world.end("a", Exit::orderly()).await;
    assert!(has_ended(&tree).await);
    assert_eq!(world.events(), ["end a 4", "Graceful c", "end c 1", "Graceful b", "end b 1"]);
    tree.stop().await.unwrap();

    let world = World::new();
    let tree = world.significant(Strategy::OneForOne, AutoShutdown::AllSignificant, Restart::Transient).await;
    world.end("a", Exit::orderly()).await;
    assert!(!has_ended(&tree).await);
    assert_eq!(world.alive(), ["b", "c"]);
    world.end("b", Exit::orderly()).await;
    assert!(has_ended(&tree).await && world.alive().is_empty());
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn significant_simple() {
    let world = World::new();
    for mode in [AutoShutdown::AnySignificant, AutoShutdown::AllSignificant] {
        let error = Supervisor::dynamic().name("tree").auto_shutdown(mode).start().await.unwrap_err();
        assert!(error.is_contradiction() && error.to_string().contains("a dynamic supervisor"), "{error}");
    }
    let tree = Supervisor::dynamic().name("tree").auto_shutdown(AutoShutdown::Never).start().await.unwrap();
    let one = world.child("a").restart(Restart::Transient).significant(true);
    assert!(tree.start_child(one).await.unwrap_err().is_contradiction());
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn significant_bystander() {
    for (strategy, restarted) in STRATEGIES.into_iter().zip([[1, 2, 1], [2, 2, 2], [1, 2, 2]]) {
        for mode in [AutoShutdown::AnySignificant, AutoShutdown::AllSignificant] {
            let world = World::new();
            let child = |name| world.child(name).restart(Restart::Transient);
            let supervisor = world.at_once(strategy).auto_shutdown(mode);
            let supervisor = supervisor.child(child("a").significant(true)).child(child("b"));
            let tree = supervisor.child(child("c").significant(true)).start().await.unwrap();
            world.kill("b").await;
            assert!(!has_ended(&tree).await);
            assert_eq!(incarnations(&tree).await, restarted);
            tree.stop().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn significant_escalation() {
    for significant in [true, false] {
        let world = World::new();
        let new = |it: Supervisor| it.auto_shutdown(AutoShutdown::AnySignificant);
        let top = new(world.at_once(Strategy::OneForOne)).start().await.unwrap();
        let below = new(Supervisor::new(Strategy::OneForOne)).spec("below");
        let below = below.restart(Restart::Transient).significant(significant);
        let below = top.start_child(below).await.unwrap();
        let child = world.child("a").restart(Restart::Transient).significant(true);
        below.start_child(child).await.unwrap();
        world.end("a", Exit::orderly()).await;
        assert!(has_ended(&below).await);
        assert_eq!(has_ended(&top).await, significant);
        top.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn tree() {
    let world = World::new();
    let top = world.at_once(Strategy::OneForAll).intensity(4, secs(3600)).start().await.unwrap();
    let new = || {
        let supervisor = Supervisor::new(Strategy::OneForOne).intensity(4, secs(3600));
        supervisor.backoff(Duration::ZERO, Duration::ZERO)
    };
    let listed = new().child(world.child("a")).child(world.child("b"));
    let one = top.start_child(listed.spec("one")).await.unwrap();
    let two = top.start_child(new().spec("two")).await.unwrap();
    let three = top.start_child(new().spec("three").restart(Restart::Transient)).await.unwrap();
    top.terminate_child("three").await.unwrap();
    assert_eq!([counts(&top), counts(&one), counts(&two)], [(3, 2), (2, 2), (0, 0)]);
    two.start_child(world.no_second_time("c")).await.unwrap();
    two.start_child(world.child("d")).await.unwrap();
    // One that dies is started again, and nobody else is.
    world.kill("d").await;
    assert_eq!((incarnations(&one).await, incarnations(&two).await), (vec![1, 1], vec![1, 2]));
    // All supervisors are started again, and not what was added to them.
    world.kill("c").await;
    settle().await;
    assert_eq!([counts(&top), counts(&one), counts(&two), counts(&three)], [(3, 3), (2, 2), (0, 0), (0, 0)]);
    assert_eq!((incarnations(&top).await, incarnations(&one).await), (vec![2, 2, 2], vec![2, 2]));
    assert_eq!(world.alive(), ["a", "b"]);
    top.stop().await.unwrap();
}

// ---------------------------------------------------------------- the same, where theirs ends

#[tokio::test(start_paused = true)]
async fn a_significant_child_that_is_given_up_has_ended_too() {
    for restart in [Restart::Transient, Restart::Temporary] {
        let world = World::new();
        let tree = world.significant(Strategy::OneForOne, AutoShutdown::AnySignificant, restart).await;
        world.end("a", Exit::new(Status::Code(125))).await;
        assert!(has_ended(&tree).await && world.alive().is_empty());
        tree.stop().await.unwrap();
    }
    let world = World::new();
    let supervisor = world.at_once(Strategy::OneForOne).intensity(0, secs(60));
    let supervisor = supervisor.exhausted(Exhausted::GiveUpChild).auto_shutdown(AutoShutdown::AllSignificant);
    let child = |name| world.child(name).restart(Restart::Transient).significant(true);
    let tree = supervisor.child(child("a")).child(child("b")).start().await.unwrap();
    world.kill("b").await;
    assert!(!has_ended(&tree).await);
    assert_eq!(tree.children().await[1].state, ChildState::GivenUp);
    world.kill("a").await;
    assert!(has_ended(&tree).await);
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_significant_child_that_waits_for_its_restart_is_active_and_one_that_is_being_stopped_is_not() {
    let world = World::new();
    let supervisor =
        Supervisor::new(Strategy::OneForOne).name("tree").auto_shutdown(AutoShutdown::AllSignificant);
    let child = |fake: Fake| ChildSpec::new(fake).restart(Restart::Transient).significant(true);
    let slow = world.fake("b").manners(Manners::Slow(secs(3)));
    let tree = supervisor.child(child(world.fake("a"))).child(child(slow)).start().await.unwrap();
    world.kill("b").await;
    world.end("a", Exit::orderly()).await;
    assert!(!has_ended(&tree).await, "b comes again");
    sleep(secs(1)).await;
    assert_eq!(world.alive(), ["b"]);
    tree.restart_child("a").await.unwrap();
    let stopping = tokio::spawn({
        let tree = tree.clone();
        async move { tree.terminate_child("b").await }
    });
    settle().await;
    assert_eq!(world.alive(), ["a", "b"]);
    world.end("a", Exit::orderly()).await;
    // It winds up, and waits for b.
    assert!(tree.start_child(world.child("c")).await.unwrap_err().is_closed());
    assert_eq!(world.alive(), ["b"]);
    stopping.await.unwrap().unwrap();
    assert!(has_ended(&tree).await && world.alive().is_empty());
    tree.stop().await.unwrap();
}
