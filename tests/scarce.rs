//! Programs whose supervisor has nothing left to restart a child with, for the tests in `faults.rs`.

use std::time::{Duration, Instant};

use hatchery::prelude::*;
use hatchery::{ChildState, TreeEvent};
use hatchery_tests::{becomes_true, children, ends};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::say;

struct Frail;

#[hatchery::actor]
impl Frail {
    fn start() -> Self {
        Frail
    }

    fn is_there(&self) {}

    fn aborts(&self) {
        std::process::abort()
    }
}

/// A child dies while there is too little of something to start another: its restart fails, says why, waits longer each
/// time and is counted each time; everything else goes on; and when there is enough again, it comes back by itself.
pub(crate) async fn restarts_without(what: Resource, named: [&str; 2]) -> hatchery::Result<()> {
    let says_so = |text: &str| named.iter().all(|word| text.contains(word));
    let before = getrlimit(what);
    // Less than there is in use: nothing more is to be had.
    let none = Rlimit { current: Some(1), maximum: before.maximum };

    let tree = Supervisor::new(Strategy::OneForOne)
        .intensity(1000, Duration::from_secs(600))
        .backoff(Duration::from_millis(20), Duration::from_millis(100))
        .child(worker::<Frail>("frail", ()))
        .child(worker::<Frail>("bystander", ()))
        .start()
        .await?;
    let [frail, bystander] = [tree.get::<Frail>("frail")?, tree.get::<Frail>("bystander")?];
    frail.is_there().await?;
    setrlimit(what, none)?;
    let died = Instant::now();
    assert!(frail.aborts().await.is_err_and(|error| error.is_crash()));
    let ask = tokio::spawn(frail.is_there());
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let tried = loop {
        ticks.tick().await;
        let info = ends("children", tree.children()).await.swap_remove(0);
        if info.incarnation >= 5 {
            break info;
        }
    };
    // The first is tried at once, then after 20, 40 and 80 ms, each 20 % less at most.
    assert!(died.elapsed() >= Duration::from_millis(112), "{:?}", died.elapsed());
    assert_eq!(tried.state, ChildState::Restarting);
    assert!(tried.last.as_deref().is_some_and(says_so), "{tried:?}");
    let late = ends("ask", frail.is_there().timeout(Duration::from_millis(10))).await;
    assert!(late.is_err_and(|error| error.is_timeout()));
    ends("ask", bystander.is_there()).await?;
    let another = ends("start", tree.start_child(worker::<Frail>("another", ()))).await;
    let error = another.map(drop).unwrap_err().to_string();
    assert!(says_so(&error), "{error}");
    setrlimit(what, before)?;
    ends("what waited for it", ask).await??;
    assert_eq!(bystander.incarnation(), Some(1));
    let tries = frail.incarnation().unwrap_or_default();
    becomes_true("nothing is left of the rest", || children(std::process::id()).len() == 2).await;

    // Each of those is one unit, as the death was: with two allowed, the second that fails is one too many.
    let counting = Supervisor::new(Strategy::OneForOne)
        .intensity(2, Duration::from_secs(600))
        .backoff(Duration::ZERO, Duration::ZERO)
        .child(worker::<Frail>("frail", ()))
        .start()
        .await?;
    let frail = counting.get::<Frail>("frail")?;
    frail.is_there().await?;
    setrlimit(what, none)?;
    assert!(frail.aborts().await.is_err_and(|error| error.is_crash()));
    becomes_true("it gives up", || frail.actor_ref().seat().is_closed()).await;
    let error = ends("stop", counting.stop()).await.unwrap_err().to_string();
    assert!(error.contains("more than 2 restarts") && says_so(&error), "{error}");
    setrlimit(what, before)?;
    say(&format!("back at attempt {tries}"));
    tree.stop().await
}

#[hatchery::task]
fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::task]
fn aborts() {
    std::process::abort()
}

/// A worker of a pool dies while there is no descriptor for another one: the other one does the work, and when there are
/// descriptors again, there are two again.
pub(crate) async fn pool_without_descriptors() -> hatchery::Result<()> {
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(1), maximum: before.maximum };
    let pool = Pool::builder().workers(2).intensity(1000, Duration::from_secs(600)).start().await?;
    let mut events = pool.tree().events();
    // Both have been at work.
    ends("map", pool.map(square, 0..100).chunk_size(1).into_future()).await?;
    setrlimit(Resource::Nofile, none)?;
    let error = ends("the death", pool.submit(aborts, ())).await.unwrap_err();
    assert!(error.is_worker_died(), "{error}");
    let mut failures = 0;
    while failures < 3 {
        if let Some(TreeEvent::StartFailed { why, .. }) = ends("event", events.next()).await {
            assert!(why.contains("no descriptor left"), "{why}");
            failures += 1;
        }
        let squares = ends("map", pool.map(square, 0..100).into_future()).await?;
        assert_eq!(squares.len(), 100);
    }
    setrlimit(Resource::Nofile, before)?;
    becomes_true("both are up", || pool.stats().workers.iter().all(|worker| worker.is_up)).await;
    pool.shutdown().await
}
