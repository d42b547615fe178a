//! Actors that wait for one another in a circle.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hatchery::prelude::*;
use hatchery::{CallError, Never};
use hatchery_tests::ends;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::tree;

/// Those that a ring is made of, known when all of them have been started.
struct Known {
    members: Vec<MemberHandle>,
    gate: GateHandle,
    told: Arc<Notify>,
    opened: GateHandle,
}

/// What a handler may wait for besides.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum WayOut {
    Told,
    Answered,
    Patience,
}

/// One of several actors, of which each asks the next one.
struct Member {
    ring: Arc<OnceLock<Known>>,
    place: usize,
}

/// Answers when so many have asked.
struct Gate {
    here: Vec<Reply<()>>,
}

#[hatchery::actor]
impl Gate {
    fn start() -> Self {
        Gate { here: Vec::new() }
    }

    fn opens_for(&mut self, number: usize, reply: Reply<()>) {
        self.here.push(reply);
        if self.here.len() == number {
            for reply in self.here.drain(..) {
                // Whoever has left is not held up.
                let _ = reply.send(());
            }
        }
    }
}

/// An error of an ask, as who asked saw it.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    by: usize,
    is_deadlock: bool,
    maybe_executed: bool,
    says: String,
}

impl<E: std::fmt::Debug + std::fmt::Display> From<(usize, &CallError<E>)> for Seen {
    fn from((by, error): (usize, &CallError<E>)) -> Seen {
        let (is_deadlock, maybe_executed) = (error.is_deadlock(), error.maybe_executed());
        Seen { by, is_deadlock, maybe_executed, says: error.to_string() }
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.says)
    }
}

#[hatchery::actor]
impl Member {
    fn start(never: Never) -> Self {
        match never {}
    }

    /// Whoever is so many steps away answers.
    async fn pass(&mut self, steps: u64) -> Result<usize, Seen> {
        if steps == 0 {
            return Ok(self.place);
        }
        self.next().pass(steps - 1).await.map_err(|error| self.saw(error))
    }

    /// The same from a task of the first one, which answers others meanwhile.
    fn passes_in_a_task(&mut self, steps: u64, reply: Reply<Result<usize, Seen>>, cx: &Context) {
        let (next, place) = (self.next(), self.place);
        cx.spawn(async move {
            let passed = next.pass(steps - 1).await;
            let _ = reply.send(passed.map_err(|error| Seen::from((place, &error))));
        });
    }

    /// When all of the ring are in this, each asks the next one: nobody answers before somebody gives up.
    async fn crosses(&mut self, timeout: Duration) -> Result<usize, Seen> {
        let Known { members, gate, .. } = self.known();
        gate.opens_for(members.len()).await.expect("all of them come");
        self.next().pass(0).timeout(timeout).await.map_err(|error| self.saw(error))
    }

    /// The same for one who waits for something else besides; whether it was that by which it went on.
    async fn crosses_with_a_way_out(&mut self, way_out: WayOut) -> Result<bool, Seen> {
        let Known { members, gate, told, opened } = self.known();
        gate.opens_for(members.len()).await.expect("all of them come");
        let next = self.next().pass(0);
        let passed = match way_out {
            WayOut::Told => {
                tokio::select! { passed = next => passed, () = told.notified() => return Ok(true) }
            }
            WayOut::Answered => {
                tokio::select! { passed = next => passed, _ = opened.opens_for(2) => return Ok(true) }
            }
            WayOut::Patience => match tokio::time::timeout(Duration::from_secs(1), next).await {
                Ok(passed) => passed,
                Err(_) => return Ok(true),
            },
        };
        passed.map(|_| false).map_err(|error| self.saw(error))
    }

    /// Has it told on until whoever is so many steps away: nobody waits.
    async fn tells(&mut self, steps: u64) {
        if steps > 0 {
            self.next().tells(steps - 1).tell().await.expect("there is room");
        }
    }
}

impl Member {
    fn next(&self) -> MemberHandle {
        let members = &self.known().members;
        members[(self.place + 1) % members.len()].clone()
    }

    fn known(&self) -> &Known {
        self.ring.get().expect("nobody is asked before all have been started")
    }

    /// What somebody further on saw comes back as it is.
    fn saw(&self, error: CallError<Seen>) -> Seen {
        let seen = Seen::from((self.place, &error));
        error.into_handler_error().unwrap_or(seen)
    }
}

/// A ring, and what its members may wait for besides.
struct Ring {
    members: Vec<MemberHandle>,
    told: Arc<Notify>,
    opened: GateHandle,
}

/// A ring of local actors.
async fn ring(tree: &Tree, name: &str, length: usize) -> Ring {
    let ring = Arc::new(OnceLock::new());
    let mut members = Vec::new();
    for place in 0..length {
        let known = ring.clone();
        let make = move || Member { ring: known.clone(), place };
        members.push(tree.start_child(local_with(format!("{name}-{place}"), make)).await.unwrap());
    }
    let gate = tree.start_child(local::<Gate>(format!("gate-{name}"), ())).await.unwrap();
    let opened = tree.start_child(local::<Gate>(format!("opened-{name}"), ())).await.unwrap();
    let told = Arc::new(Notify::new());
    let known = Known { members: members.clone(), gate, told: told.clone(), opened: opened.clone() };
    assert!(ring.set(known).is_ok(), "it is set once");
    Ring { members, told, opened }
}

/// Whom the words of a circle name, one after another, and again the first one.
fn circle(says: &str) -> Vec<&str> {
    let (waits, instead) = says.rsplit_once(", so no answer would ever come: ").expect(says);
    assert!(instead.contains(".tell()") && instead.contains("cx.spawn"), "{says}");
    let (_, waits) = waits.split_once(": ").expect(says);
    waits.split(" is waiting for ").map(|path| path.trim_end_matches(", which")).collect()
}

async fn all_answer(members: &[MemberHandle]) {
    for (place, member) in members.iter().enumerate() {
        assert_eq!(ends("ask", member.pass(0)).await.unwrap(), place);
        assert_eq!(member.incarnation(), Some(1));
    }
}

#[hatchery::test]
async fn whoever_asks_back_is_told_at_once_who_would_wait() {
    let tree = tree().await;
    for length in 1..=8 {
        let Ring { members, .. } = ring(&tree, &format!("back-{length}"), length).await;
        let begun = Instant::now();
        // The second to last step is as far as it goes.
        let far = ends("ask", members[0].pass(length as u64 - 1)).await.unwrap();
        assert_eq!(far, length - 1);
        let error = ends("ask", members[0].pass(length as u64)).await.unwrap_err();
        let seen = error.handler_error().unwrap();
        assert_eq!((seen.by, seen.is_deadlock, seen.maybe_executed), (length - 1, true, false), "{seen}");
        let mut paths: Vec<&str> = members.iter().map(AnyHandle::path).collect();
        paths.push(if length == 1 { "itself" } else { paths[0] });
        assert_eq!(circle(&seen.says), paths);
        assert!(begun.elapsed() < Duration::from_secs(5), "at once: {:?}", begun.elapsed());
        // A circle that some of them only lead to is told without those.
        let error = ends("ask", members[length / 2].pass(2 * length as u64)).await.unwrap_err();
        assert_eq!(circle(&error.handler_error().unwrap().says).len(), length + 1);
        all_answer(&members).await;
    }
}

#[hatchery::test]
async fn whoever_does_not_wait_in_a_handler_may_be_asked_back() {
    let tree = tree().await;
    for length in 1..=4 {
        let Ring { members, .. } = ring(&tree, &format!("free-{length}"), length).await;
        let round = length as u64;
        let back = ends("ask", members[0].passes_in_a_task(round)).await.unwrap();
        assert_eq!(back, 0);
        ends("ask", members[0].tells(3 * round)).await.unwrap();
        all_answer(&members).await;
    }
}

/// All of a ring ask the next one at the same time; what each of them got.
async fn all_cross(members: &[MemberHandle], timeout: Duration) -> Vec<Result<usize, CallError<Seen>>> {
    let mut asks = JoinSet::new();
    for (place, member) in members.iter().cloned().enumerate() {
        asks.spawn(async move { (place, member.crosses(timeout).timeout(2 * timeout).await) });
    }
    let mut got: Vec<_> = ends("asks", asks.join_all()).await;
    got.sort_by_key(|(place, _)| *place);
    got.into_iter().map(|(_, got)| got).collect()
}

/// One of them has been told, with all of them in the order of their waiting; all the others have got their answers.
fn one_gives_up(members: &[MemberHandle], got: Vec<Result<usize, CallError<Seen>>>) {
    let mut told = Vec::new();
    for (place, got) in got.into_iter().enumerate() {
        match got {
            Ok(from) => assert_eq!(from, (place + 1) % members.len()),
            Err(error) => told.push(error.into_handler_error().unwrap()),
        }
    }
    let [Seen { by, is_deadlock: true, maybe_executed: false, says }] = &told[..] else { panic!("{told:?}") };
    let paths: Vec<&str> = members.iter().map(AnyHandle::path).collect();
    let round = (0..=members.len()).map(|step| paths[(by + step) % paths.len()]);
    assert_eq!(circle(says), round.collect::<Vec<_>>());
}

#[hatchery::test]
async fn of_those_who_cross_one_is_told_and_the_others_are_answered() {
    let tree = tree().await;
    for length in 2..=8 {
        let Ring { members, .. } = ring(&tree, &format!("cross-{length}"), length).await;
        // Long before a deadline could have helped.
        let timeout = Duration::from_secs(60);
        one_gives_up(&members, all_cross(&members, timeout).await);
        all_answer(&members).await;
        one_gives_up(&members, all_cross(&members, timeout).await);
    }
}

#[hatchery::test]
async fn whoever_may_go_on_by_something_else_is_left_alone() {
    let tree = tree().await;
    for way_out in [WayOut::Told, WayOut::Answered, WayOut::Patience] {
        let Ring { members, told, opened } = ring(&tree, &format!("{way_out:?}"), 3).await;
        let with_a_way_out = tokio::spawn(members[0].crosses_with_a_way_out(way_out));
        let others: Vec<_> =
            members[1..].iter().map(|member| tokio::spawn(member.crosses(Duration::from_secs(60)))).collect();
        // A ring that waits in the same way but for that, and later, is found meanwhile.
        let Ring { members: witnesses, .. } = ring(&tree, &format!("beside-{way_out:?}"), 3).await;
        one_gives_up(&witnesses, all_cross(&witnesses, Duration::from_secs(60)).await);
        told.notify_one();
        if matches!(way_out, WayOut::Answered) {
            ends("ask", opened.opens_for(2)).await.unwrap();
        }
        assert!(ends("ask", with_a_way_out).await.unwrap().unwrap(), "{way_out:?}");
        for (place, other) in others.into_iter().enumerate() {
            assert_eq!(ends("ask", other).await.unwrap().unwrap(), (place + 2) % 3);
        }
        all_answer(&members).await;
    }
}

/// In a process of its own, with somebody beside it whom it asks.
struct Host {
    guest: GuestHandle,
    _tree: Tree,
}

#[hatchery::actor]
impl Host {
    async fn start(cx: &Context) -> hatchery::Result<Self> {
        let tree = Supervisor::new(Strategy::OneForOne).start().await?;
        let host = cx.me::<HostHandle>();
        let guest = tree.start_child(local_with("guest", move || Guest { host: host.clone() })).await?;
        Ok(Host { guest, _tree: tree })
    }

    async fn visits(&self) -> Result<(), Seen> {
        let asked = self.guest.asks_back().await;
        asked.map_err(|error| error.into_handler_error().expect("the guest answers"))
    }

    fn answers(&self) {}
}

/// Asks the host.
struct Guest {
    host: HostHandle,
}

#[hatchery::actor]
impl Guest {
    fn start(never: Never) -> Self {
        match never {}
    }

    async fn asks_back(&self) -> Result<(), Seen> {
        self.host.answers().await.map_err(|error| Seen::from((0, &error)))
    }
}

/// Asks a host in another process.
struct Front {
    host: HostHandle,
}

#[hatchery::actor]
impl Front {
    fn start(never: Never) -> Self {
        match never {}
    }

    async fn visits(&self) -> Result<(), Seen> {
        let asked = self.host.visits().await;
        asked.map_err(|error| error.into_handler_error().expect("the host answers"))
    }
}

/// What waits is told of across processes.
#[hatchery::test]
async fn a_chain_goes_on_in_another_process() {
    let tree = tree().await;
    let host = tree.start_child(worker::<Host>("host", ())).await.unwrap();
    let asked = host.clone();
    let front = tree.start_child(local_with("front", move || Front { host: asked.clone() })).await.unwrap();
    let error = ends("ask", front.visits()).await.unwrap_err();
    let seen = error.handler_error().unwrap();
    assert!(seen.is_deadlock && !seen.maybe_executed, "{seen}");
    let told = circle(&seen.says);
    assert_eq!((told.len(), told[0], told[2]), (3, host.path(), host.path()));
    assert!(told[1].ends_with("/guest"), "{seen}");
    ends("ask", host.answers()).await.unwrap();
}
