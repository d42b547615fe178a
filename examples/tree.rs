//! A small shop as a tree: its state, a crew of workers below a supervisor of their own, and a web server that is handed
//! both. Two of them crash on purpose; every event of the tree is printed, then the tree itself.
//!
//! ```text
//! cargo run --release --example tree               # ends by itself
//! cargo run --release --example tree -- --serve    # goes on until Ctrl-C
//! ```

use hatchery::Events;
use hatchery::prelude::*;
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

/// What is in store. Where it crashes, it begins with what it was given at first.
struct Stock {
    items: u32,
}

#[hatchery::actor]
impl Stock {
    fn start(items: u32) -> Self {
        Stock { items }
    }

    fn take(&mut self, n: u32) -> Option<u32> {
        self.items = self.items.checked_sub(n)?;
        Some(self.items)
    }

    fn crash(&self) {
        std::process::abort()
    }
}

/// One of the crew.
struct Packer;

#[hatchery::actor]
impl Packer {
    fn start() -> Self {
        Packer
    }

    fn pack(&self, order: u32, cx: &Context) -> String {
        format!("order {order}, packed by {}", cx.path())
    }
}

/// What the server has to know. It travels to its process.
#[derive(Clone, Serialize, Deserialize)]
struct Config {
    greeting: String,
}

struct Server {
    config: Config,
    stock: StockHandle,
    crew: Vec<PackerHandle>,
    orders: u32,
}

#[hatchery::actor]
impl Server {
    fn start(config: Config, stock: StockHandle, crew: Vec<PackerHandle>) -> Self {
        Server { config, stock, crew, orders: 0 }
    }

    /// Asks its siblings, each in a process of its own.
    async fn order(&mut self, items: u32) -> hatchery::Result<String> {
        if items == 13 {
            std::process::abort() // a real crash of a real process
        }
        self.orders += 1;
        let Some(left) = self.stock.take(items).await? else { return Ok("sold out".to_owned()) };
        let packer = &self.crew[self.orders as usize % self.crew.len()];
        let packed = packer.pack(self.orders).await?;
        Ok(format!("{}: {packed}, {left} items left", self.config.greeting))
    }
}

/// Prints the events as they come, up to the one that says that this incarnation is ready.
async fn until_started(events: &mut Events, who: &str, which: u64) -> hatchery::Result<()> {
    let started = async {
        while let Some(event) = events.next().await {
            println!("    {event}");
            if matches!(&event, TreeEvent::Started { path, incarnation, .. } if path == who && *incarnation == which)
            {
                return Ok(());
            }
        }
        Err(hatchery::Error::msg("the tree has ended"))
    };
    tokio::time::timeout(Duration::from_secs(30), started).await?
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let config = Config { greeting: "thank you".to_owned() };
    let crew = Supervisor::new(Strategy::OneForOne)
        .child(worker::<Packer>("ann", ()))
        .child(worker::<Packer>("bob", ()));
    let tree = Supervisor::new(Strategy::RestForOne) // whoever comes later depends on those before
        .name("shop")
        .intensity(10, Duration::from_secs(60))
        .child(worker::<Stock>("state", 100))
        .child(crew.spec("crew"))
        .child(
            worker_with::<Server>("web", move |tree| {
                let crew = tree.get::<Supervisor>("crew")?; // arguments anew at each start
                let packers = vec![crew.get::<Packer>("ann")?, crew.get::<Packer>("bob")?];
                Ok((config.clone(), tree.get::<Stock>("state")?, packers))
            })
            .restart(Restart::Transient)
            .shutdown(Shutdown::graceful(Duration::from_secs(20))),
        )
        .start()
        .await?;
    let mut events = tree.events(); // from here on

    let web = tree.get::<Server>("web")?;
    println!("{}", web.order(3).await?);

    println!("the server crashes, and is started again alone:");
    assert!(web.order(13).await.unwrap_err().is_crash());
    until_started(&mut events, "/shop/web", 2).await?;
    println!("{}", web.order(3).await?); // the same handle, a new process

    println!("the state crashes, and those after it are started again along with it:");
    let state = hatchery::lookup::<Stock>("/shop/state")?; // by its path, as in any process of the tree
    assert!(state.crash().await.unwrap_err().is_crash()); // it had hardly lived, so it waits a moment
    until_started(&mut events, "/shop/web", 3).await?;
    println!("{}", web.order(3).await?);

    println!("{}", tree.snapshot().await?);
    let serves = std::env::args().any(|arg| arg == "--serve");
    println!("{}:", if serves { "until Ctrl-C" } else { "a signal, and one orderly stop" });
    let printer = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            println!("    {event}");
        }
    });
    let signal = async move { if serves { Ok(()) } else { kill_process(getpid(), Signal::TERM) } };
    // The signal is polled for the first time after the one who waits for it.
    let (stopped, sent) = tokio::join!(tree.run_until_signal(), signal);
    sent?;
    stopped?;
    Ok(printer.await?)
}
