//! Breaks each strategy on purpose, and each kind of child, and prints who was restarted.
//!
//! ```text
//! cargo run --release --example strategies
//! ```

use hatchery::prelude::*;

/// A part of a shop. All it can do is to be there, or to die.
struct Part;

#[hatchery::actor]
impl Part {
    fn start() -> Self {
        Part
    }

    fn works(&self) {}

    fn exits(&self, code: i32) {
        std::process::exit(code)
    }

    fn aborts(&self) {
        std::process::abort()
    }
}

/// Names and incarnations of all children, and how those stand that do not run: `store 2  cart 1 (Stopped)`.
async fn shown(tree: &Tree) -> String {
    let children = tree.children().await;
    let shown = children.iter().map(|child| match child.state {
        ChildState::Running => format!("{} {}", child.name, child.incarnation),
        state => format!("{} {} ({state:?})", child.name, child.incarnation),
    });
    shown.collect::<Vec<_>>().join("  ")
}

/// Waits until the children stand like this, and prints it.
async fn becomes(tree: &Tree, expected: &str) -> hatchery::Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    let stand = async {
        while shown(tree).await != expected {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), stand).await?;
    println!("    {}", if expected.is_empty() { "no child is left" } else { expected });
    Ok(())
}

/// Has the middle one of three crash.
async fn crash_in_the_middle(strategy: Strategy, afterwards: &str) -> hatchery::Result<()> {
    let tree = Supervisor::new(strategy)
        .child(worker::<Part>("store", ()))
        .child(worker::<Part>("cart", ()))
        .child(worker::<Part>("page", ()))
        .start()
        .await?;
    let cart = tree.get::<Part>("cart")?;
    cart.works().await?; // whoever has answered is restarted at once, not after a backoff
    println!("{strategy:?}, and the cart crashes:");
    let crash = cart.aborts().await.unwrap_err();
    assert!(crash.is_crash());
    cart.works().await?; // the same handle, the next process
    becomes(&tree, afterwards).await?;
    tree.stop().await
}

/// Has a child leave in this way.
async fn leave(restart: Restart, code: i32, afterwards: &str) -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let job = tree.start_child(worker::<Part>("job", ()).restart(restart)).await?;
    job.works().await?;
    let end = job.monitor();
    assert!(job.exits(code).await.is_err());
    println!("{restart:?}: {}", end.await);
    becomes(&tree, afterwards).await?;
    tree.stop().await
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    crash_in_the_middle(Strategy::OneForOne, "store 1  cart 2  page 1").await?;
    crash_in_the_middle(Strategy::OneForAll, "store 2  cart 2  page 2").await?;
    crash_in_the_middle(Strategy::RestForOne, "store 1  cart 2  page 2").await?;

    leave(Restart::Permanent, 0, "job 2").await?;
    leave(Restart::Transient, 1, "job 2").await?;
    leave(Restart::Transient, 0, "job 1 (Stopped)").await?;
    leave(Restart::Temporary, 1, "").await?;
    leave(Restart::Permanent, 125, "job 1 (GivenUp)").await?; // "do not try again"

    // Stopped and started again by hand: the handle stays the same.
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let job = tree.start_child(worker::<Part>("job", ())).await?;
    tree.terminate_child("job").await?;
    let error = job.works().await.unwrap_err();
    assert!(error.is_closed());
    println!("terminated, and asked all the same:\n    {error}");
    assert!(tree.start_child(worker::<Part>("job", ())).await.is_err_and(|error| error.is_already_present()));
    tree.restart_child("job").await?;
    job.works().await?;
    println!("    and then: {}", shown(&tree).await);
    tree.stop().await?;

    // Too many crashes: the supervisor stops everything, or gives up that one.
    for exhausted in [Exhausted::Escalate, Exhausted::GiveUpChild] {
        let supervisor = Supervisor::new(Strategy::OneForOne).name("frail").exhausted(exhausted);
        let supervisor = supervisor.intensity(1, Duration::from_secs(60));
        let tree = supervisor.child(worker::<Part>("job", ())).start().await?;
        let job = tree.get::<Part>("job")?;
        for _ in 0..2 {
            job.works().await?;
            assert!(job.aborts().await.unwrap_err().is_crash());
        }
        let error = job.works().await.unwrap_err();
        assert!(error.is_closed());
        println!("one restart too many, {exhausted:?}:\n    {error}");
        assert_eq!(tree.stop().await.is_err(), exhausted == Exhausted::Escalate);
    }
    Ok(())
}
