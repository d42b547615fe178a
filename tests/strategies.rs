//! Who is started again after which death, with real processes and real signals. What the policy decides in detail is
//! tested beside its code, and what a supervisor makes of it in virtual time in `crates/supervisor/tests`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use hatchery::prelude::*;
use hatchery::{ChildSpec, ChildState};
use hatchery_tests::{Dice, becomes_true, ends, eventually, send, state};
use rustix::process::Signal;

/// Writes down that it starts, and who of those that did so before is still there.
struct Member;

#[hatchery::actor]
impl Member {
    fn start(name: String, dir: PathBuf) -> hatchery::Result<Self> {
        let file = dir.join("starts");
        let mut line = format!("{name} {}", std::process::id());
        for before in starts(&dir) {
            if state(before.pid).is_some() {
                line += &format!(" beside {}", before.name);
            }
        }
        let mut file = File::options().append(true).create(true).open(file)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        // It may be told to wait or to die right here.
        let told = dir.join(name);
        match std::fs::read_to_string(&told).as_deref() {
            Ok("wait") => eventually("it may go on", || !told.exists()),
            Ok(code) => std::process::exit(code.parse()?),
            Err(_) => {}
        }
        Ok(Member)
    }

    fn is_there(&self) {}

    fn exits(&self, code: i32) {
        std::process::exit(code)
    }
}

struct Begun {
    name: String,
    pid: u32,
    line: String,
}

/// All starts so far.
fn starts(dir: &Path) -> Vec<Begun> {
    let text = std::fs::read_to_string(dir.join("starts")).unwrap_or_default();
    let begun = |line: &str| {
        let mut words = line.split(' ');
        let (name, pid) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some(Begun { name, pid, line: line.to_owned() })
    };
    text.lines().map(|line| begun(line).expect("a name and a number")).collect()
}

fn names(dir: &Path) -> String {
    starts(dir).iter().map(|begun| &*begun.name).collect()
}

fn member(name: &str, dir: &Path) -> ChildSpec<impl hatchery::Start<Handle = MemberHandle> + use<>> {
    worker::<Member>(name, (name.to_owned(), dir.to_owned()))
}

/// A supervisor of a, b and c.
async fn group(strategy: Strategy, dir: &Path) -> (Tree, [MemberHandle; 3]) {
    let supervisor = Supervisor::new(strategy).intensity(1000, Duration::from_secs(60));
    let supervisor = supervisor.backoff(Duration::ZERO, Duration::ZERO);
    let supervisor = supervisor.child(member("a", dir)).child(member("b", dir)).child(member("c", dir));
    let tree = supervisor.start().await.unwrap();
    let members = ["a", "b", "c"].map(|name| tree.get::<Member>(name).unwrap());
    (tree, members)
}

fn incarnations(members: &[MemberHandle]) -> Vec<Option<u64>> {
    members.iter().map(AnyHandle::incarnation).collect()
}

#[hatchery::test]
async fn one_for_all_replaces_every_process_when_one_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, members) = group(Strategy::OneForAll, dir.path()).await;
    let old: Vec<_> = members.iter().map(|member| member.pid().unwrap()).collect();
    send(old[1], Signal::KILL);
    becomes_true("all are new", || incarnations(&members) == [Some(2); 3]).await;
    assert!(old.iter().all(|pid| state(*pid).is_none()));
    assert_eq!(names(dir.path()), "abcabc");
    ends("ask", members[2].is_there()).await.unwrap();
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn rest_for_one_keeps_those_before_the_one_that_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, members) = group(Strategy::RestForOne, dir.path()).await;
    let old: Vec<_> = members.iter().map(|member| member.pid().unwrap()).collect();
    send(old[1], Signal::KILL);
    becomes_true("two are new", || incarnations(&members) == [Some(1), Some(2), Some(2)]).await;
    assert_eq!(old.iter().map(|pid| state(*pid).is_some()).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(names(dir.path()), "abcbc");
    ends("stop", tree.stop()).await.unwrap();
}

/// Whenever the first of a generation starts, nobody of an earlier one is there; and a storm ends with all of them up.
#[hatchery::test]
async fn generations_of_one_for_all_never_meet_under_random_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, members) = group(Strategy::OneForAll, dir.path()).await;
    let mut dice = Dice::new(5);
    for round in 0..40 {
        let before = starts(dir.path()).len();
        let victim = &members[dice.throw(3) as usize];
        becomes_true("it is there", || victim.pid().is_some()).await;
        victim.kill();
        // Sometimes in the middle of what that begins.
        if round % 2 == 0 {
            becomes_true("another start", || starts(dir.path()).len() > before).await;
        }
    }
    for member in &members {
        // What the last kill takes along may get an ask yet.
        while let Err(error) = ends("ask", member.is_there()).await {
            assert!(error.is_crash() || error.is_stopping(), "{error}");
        }
    }
    ends("stop", tree.stop()).await.unwrap();
    let all = starts(dir.path());
    let met: Vec<_> = all.iter().filter(|begun| begun.name == "a" && begun.line.contains("beside")).collect();
    assert!(met.is_empty(), "{:?}", met.iter().map(|begun| &begun.line).collect::<Vec<_>>());
    assert!(all.iter().all(|begun| state(begun.pid).is_none()), "one is left");
}

/// While the last of a group still starts, one that was back already dies: the group is restarted once more, and those two
/// deaths are two units.
#[hatchery::test]
async fn a_sibling_that_dies_while_its_group_is_restarted_has_that_begun_again() {
    let all = [
        (Strategy::OneForAll, "abcabcabc", [Some(3); 3]),
        (Strategy::RestForOne, "abcbcbc", [Some(1), Some(3), Some(3)]),
    ];
    for (strategy, order, reached) in all {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(strategy).intensity(2, Duration::from_secs(600));
        let supervisor = supervisor.backoff(Duration::ZERO, Duration::ZERO);
        let supervisor = ["a", "b", "c"]
            .into_iter()
            .fold(supervisor, |supervisor, name| supervisor.child(member(name, dir.path())));
        let tree = ends("start", supervisor.start()).await.unwrap();
        let members = ["a", "b", "c"].map(|name| tree.get::<Member>(name).unwrap());
        let started = |name: &str| -> Vec<u32> {
            let starts = starts(dir.path()).into_iter().filter(|begun| begun.name == name);
            starts.map(|begun| begun.pid).collect()
        };
        std::fs::write(dir.path().join("c"), "wait").unwrap();
        send(members[1].pid().unwrap(), Signal::KILL);
        becomes_true("the last one starts", || started("c").len() == 2).await;
        send(started("b")[1], Signal::KILL);
        becomes_true("it starts once more", || started("c").len() == 3).await;
        std::fs::remove_file(dir.path().join("c")).unwrap();
        becomes_true("all are up", || incarnations(&members) == reached).await;
        for member in &members {
            ends("ask", member.is_there()).await.unwrap();
        }
        assert_eq!(names(dir.path()), order);
        // No generation met another: who starts finds only those before it in the group.
        for begun in starts(dir.path()) {
            let beside = begun.line.split(" beside ").skip(1).map(|name| name.trim()).collect::<String>();
            let expected = match &*begun.name {
                "a" => "",
                "b" => "a",
                _ => "ab",
            };
            // The first a of all generations is there for all of them, where it stays.
            assert_eq!(beside, expected, "{strategy:?}: {}", begun.line);
        }
        members[2].kill();
        becomes_true("that was one too many", || members[0].actor_ref().seat().is_closed()).await;
        assert!(ends("stop", tree.stop()).await.unwrap_err().to_string().contains("more than 2 restarts"));
    }
}

#[hatchery::test]
async fn a_transient_child_that_exits_cleanly_stays_stopped_until_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    let spec = member("a", dir.path()).restart(Restart::Transient);
    let a = ends("start", tree.start_child(spec)).await.unwrap();
    let stopped = async || {
        let children = ends("children", tree.children()).await;
        assert_eq!(children[0].state, ChildState::Stopped);
        let error = ends("ask", a.is_there()).await.unwrap_err();
        assert!(error.is_closed(), "{error}");
        ends("restart", tree.restart_child("a")).await.unwrap();
        ends("ask", a.is_there()).await.unwrap();
    };
    assert!(ends("ask", a.exits(0)).await.unwrap_err().is_crash());
    becomes_true("its seat says so", || a.actor_ref().seat().is_closed()).await;
    stopped().await;
    send(a.pid().unwrap(), Signal::TERM);
    becomes_true("its seat says so", || a.actor_ref().seat().is_closed()).await;
    stopped().await;
    // What is no wish of anybody's is followed by a restart, at once after an answer.
    assert!(ends("ask", a.exits(1)).await.unwrap_err().is_crash());
    ends("ask", a.is_there()).await.unwrap();
    assert_eq!(a.incarnation(), Some(4));
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_temporary_child_is_removed_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    for _ in 0..2 {
        let spec = member("a", dir.path()).restart(Restart::Temporary);
        let a = ends("start", tree.start_child(spec)).await.unwrap();
        a.kill();
        becomes_true("it is removed", || tree.count().specs == 0).await;
        assert!(ends("ask", a.is_there()).await.unwrap_err().is_closed());
    }
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn exit_code_125_says_not_to_try_again_after_the_start_and_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(Strategy::OneForAll).intensity(1, Duration::from_secs(60));
    let supervisor = supervisor.child(member("a", dir.path())).child(member("b", dir.path()));
    let tree = ends("start", supervisor.start()).await.unwrap();
    let [a, b] = ["a", "b"].map(|name| tree.get::<Member>(name).unwrap());
    let given_up = async || {
        becomes_true("its seat says so", || a.actor_ref().seat().is_closed()).await;
        let error = ends("ask", a.is_there()).await.unwrap_err();
        assert!(error.is_closed() && error.to_string().contains("code 125"), "{error}");
        assert_eq!(ends("children", tree.children()).await[0].state, ChildState::GivenUp);
        ends("ask", b.is_there()).await.unwrap();
    };
    assert!(ends("ask", a.exits(125)).await.unwrap_err().is_crash());
    given_up().await;
    assert_eq!(b.incarnation(), Some(1));
    // It costs no unit: this restart is the one that is allowed.
    ends("restart", tree.restart_child("a")).await.unwrap();
    ends("ask", a.is_there()).await.unwrap();
    std::fs::write(dir.path().join("a"), "125").unwrap();
    b.kill();
    given_up().await;
    assert_eq!(b.incarnation(), Some(2));
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_child_that_dies_at_its_starts_waits_longer_each_time_and_what_is_asked_waits_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    let a = ends("start", tree.start_child(member("a", dir.path()))).await.unwrap();
    std::fs::write(dir.path().join("a"), "1").unwrap();
    let died = std::time::Instant::now();
    a.kill();
    let asked = a.is_there();
    becomes_true("three more have died", || starts(dir.path()).len() == 4).await;
    // 100, 200 and 400 ms, each 20 % less at most.
    assert!(died.elapsed() >= Duration::from_millis(560), "{:?}", died.elapsed());
    let error = ends("ask", a.is_there().timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    std::fs::remove_file(dir.path().join("a")).unwrap();
    ends("ask", asked).await.unwrap();
    // Whoever has answered is started again at once.
    let last = a.incarnation();
    let died = std::time::Instant::now();
    a.kill();
    becomes_true("it is back", || a.incarnation() > last).await;
    println!("back after {:?}", died.elapsed());
    ends("stop", tree.stop()).await.unwrap();
}

#[hatchery::test]
async fn a_child_that_is_terminated_has_no_process_and_comes_back_behind_its_handle() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    let a = ends("start", tree.start_child(member("a", dir.path()))).await.unwrap();
    let pid = a.pid().unwrap();
    ends("terminate", tree.terminate_child("a")).await.unwrap();
    assert_eq!(state(pid), None);
    assert!(ends("ask", a.is_there()).await.unwrap_err().is_closed());
    ends("restart", tree.restart_child("a")).await.unwrap();
    ends("ask", a.is_there()).await.unwrap();
    ends("terminate", tree.terminate_child("a")).await.unwrap();
    ends("delete", tree.delete_child("a")).await.unwrap();
    assert_eq!(tree.count().specs, 0);
    ends("stop", tree.stop()).await.unwrap();
}
