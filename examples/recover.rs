//! An actor crashes, really, and its handle goes on with the next process.
//!
//! ```text
//! cargo run --release --example recover
//! ```

use hatchery::prelude::*;

struct Counter {
    total: u64,
}

#[hatchery::actor]
impl Counter {
    fn start(total: u64) -> Self {
        Counter { total }
    }

    /// Add to the total; answers with the new total.
    async fn add(&mut self, n: u64) -> u64 {
        if n == 13 {
            std::process::abort() // a real crash of a real process
        }
        self.total += n;
        self.total
    }
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let counter = tree.start_child(worker::<Counter>("counter", 0)).await?; // CounterHandle

    assert_eq!(counter.add(2).await?, 2);
    let crash = counter.add(13).await.unwrap_err();
    assert!(crash.is_crash());
    println!("{crash}");
    assert_eq!(counter.add(5).await?, 5); // same handle, new process
    counter.add(1).tell().await?; // no answer wanted
    let total = counter.add(1).timeout(Duration::from_secs(1)).await?;
    assert_eq!(total, 7);
    println!("{total} counted by incarnation {:?}, process {:?}", counter.incarnation(), counter.pid());
    tree.stop().await
}
