//! Actors that wait for one another in a circle.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hatchery::prelude::*;
use hatchery::{CallError, Never};
use hatchery_tests::ends;
use serde::{Deserialize, Serialize};

use crate::tree;

/// The members of a ring, which are known when all of them have been started.
type Ring = Arc<OnceLock<Vec<MemberHandle>>>;

/// One of several actors, of which each asks the next one.
struct Member {
    ring: Ring,
    place: usize,
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

    /// Has it told on until whoever is so many steps away: nobody waits.
    async fn tells(&mut self, steps: u64) {
        if steps > 0 {
            self.next().tells(steps - 1).tell().await.expect("there is room");
        }
    }
}

impl Member {
    fn next(&self) -> MemberHandle {
        let ring = self.ring.get().expect("nobody is asked before all have been started");
        ring[(self.place + 1) % ring.len()].clone()
    }

    /// What somebody further on saw comes back as it is.
    fn saw(&self, error: CallError<Seen>) -> Seen {
        let seen = Seen::from((self.place, &error));
        error.into_handler_error().unwrap_or(seen)
    }
}

/// A ring of local actors.
async fn ring(tree: &Tree, length: usize) -> Vec<MemberHandle> {
    let ring = Ring::default();
    let mut members = Vec::new();
    for place in 0..length {
        let known = ring.clone();
        let make = move || Member { ring: known.clone(), place };
        let name = format!("ring-{length}-{place}");
        members.push(tree.start_child(local_with(name, make)).await.unwrap());
    }
    ring.set(members.clone()).expect("it is set once");
    members
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
        let members = ring(&tree, length).await;
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
        let members = ring(&tree, length).await;
        let round = length as u64;
        let back = ends("ask", members[0].passes_in_a_task(round)).await.unwrap();
        assert_eq!(back, 0);
        ends("ask", members[0].tells(3 * round)).await.unwrap();
        all_answer(&members).await;
    }
}
