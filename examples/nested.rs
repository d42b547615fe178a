//! Supervisors below supervisors: one in this process that gives up, and one in a worker that is killed. Whoever is above
//! starts them again, with all that is below them, and the same handles go on.
//!
//! ```text
//! cargo run --release --example nested
//! ```

use hatchery::Events;
use hatchery::prelude::*;

/// A machine, in a process of its own. Nothing but a number of pieces made.
struct Machine {
    made: u32,
}

#[hatchery::actor]
impl Machine {
    fn start() -> Self {
        Machine { made: 0 }
    }

    fn make(&mut self) -> u32 {
        self.made += 1;
        self.made
    }

    fn crash(&self) {
        std::process::abort()
    }
}

/// A building, in a process of its own, with machines that are workers of this worker.
struct Annex {
    machines: Tree,
}

#[hatchery::actor]
impl Annex {
    async fn start(cx: &Context) -> hatchery::Result<Self> {
        let machines = Supervisor::new(Strategy::OneForOne)
            .child(worker::<Machine>("drill", ()))
            .child(worker::<Machine>("saw", ()));
        Ok(Annex { machines: machines.start_in(cx).await? }) // its path is that of this actor
    }

    fn running(&self) -> usize {
        self.machines.count().active
    }
}

/// Prints the events as they come, up to this one.
async fn until(events: &mut Events, last: impl Fn(&TreeEvent) -> bool) -> hatchery::Result<()> {
    let come = async {
        while let Some(event) = events.next().await {
            println!("    {event}");
            if last(&event) {
                return Ok(());
            }
        }
        Err(hatchery::Error::msg("the tree has ended"))
    };
    tokio::time::timeout(Duration::from_secs(30), come).await?
}

/// That this incarnation is ready.
fn started(who: &str, which: u64) -> impl Fn(&TreeEvent) -> bool {
    move |event| matches!(event, TreeEvent::Started { path, incarnation, .. } if path == who && *incarnation == which)
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let line = Supervisor::new(Strategy::OneForAll)
        .intensity(1, Duration::from_secs(60)) // two restarts are one too many
        .child(worker::<Machine>("press", ()))
        .child(worker::<Machine>("oven", ()));
    let plant = Supervisor::new(Strategy::OneForOne)
        .name("plant")
        .child(line.spec("line"))
        .child(worker::<Annex>("annex", ()).shutdown(Shutdown::infinity())) // its machines have their own
        .start()
        .await?;
    let mut events = plant.events();

    println!("a machine crashes, and its supervisor restarts the line:");
    let line = plant.get::<Supervisor>("line")?;
    let (press, oven) = (line.get::<Machine>("press")?, line.get::<Machine>("oven")?);
    assert_eq!((press.make().await?, oven.make().await?), (1, 1));
    assert!(press.crash().await.unwrap_err().is_crash());
    until(&mut events, started("/plant/line/oven", 2)).await?;

    println!("it crashes again: its supervisor gives up, and the one above starts that again:");
    assert_eq!((press.make().await?, oven.make().await?), (1, 1)); // new ones, behind the same handles
    assert!(press.crash().await.unwrap_err().is_crash());
    until(&mut events, |event| matches!(event, TreeEvent::Ended { gave_up: Some(_), .. })).await?;
    until(&mut events, started("/plant/line", 2)).await?;
    assert_eq!((press.make().await?, oven.make().await?), (1, 1));
    assert_eq!((press.incarnation(), oven.incarnation()), (Some(3), Some(3)));

    println!("the process with the other supervisor is killed:");
    let annex = plant.get::<Annex>("annex")?;
    let drill = hatchery::lookup::<Machine>("/plant/annex/drill")?;
    assert_eq!((annex.running().await?, drill.make().await?), (2, 1));
    let (before, ends) = (drill.pid(), drill.monitor());
    annex.kill(); // SIGKILL
    until(&mut events, started("/plant/annex", 2)).await?;
    println!("    {}", ends.await); // the drill has ended with it
    assert_eq!((annex.running().await?, drill.make().await?), (2, 1)); // its machines are new ones, too
    assert_ne!(drill.pid(), before);

    println!("{}", plant.snapshot().await?);
    assert_eq!(plant.count().active, 2);
    plant.stop().await
}
