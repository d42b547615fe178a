//! Many workers started at once, until all of them have answered.
//!
//! The ruler: as many bare tokio programs, each started by tokio's `Command::spawn` and asked by a task of its own. The
//! roots of one thread and of several are measured against the same ruler, that of one thread.

#![forbid(unsafe_code)]

use std::time::Instant;

use bytes::Bytes;
use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::ruler::Peer;
use hatchery_benches::table::{Effort, Row, Target, print};
use tokio::task::JoinSet;

const AT_ONCE: usize = 64;

struct Trivial;

#[hatchery::actor]
impl Trivial {
    fn start() -> Self {
        Trivial
    }

    async fn answer(&mut self, n: u64) -> u64 {
        n
    }
}

fn main() {
    hatchery::program().flavor(Flavor::CurrentThread).run(starts)
}

async fn starts() -> hatchery::Result<()> {
    let effort = Effort::of_args(3);
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut one = Row::new("root of one thread", Target::Times(1.3));
    let mut two = Row::new("root of two threads", Target::None);
    for round in 0..=effort.rounds {
        let (mut ruler, mut here, mut there) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.samples {
            ruler.push(bare().await?);
            here.push(workers().await?);
            there.push(threads.spawn(workers()).await??);
        }
        // The first round warms up.
        if round > 0 {
            two.ruler.round(ruler.clone());
            one.ruler.round(ruler);
            one.subject.round(here);
            two.subject.round(there);
        }
    }
    print(&format!("{AT_ONCE} workers started at once, until all have answered"), effort, &[one, two]);
    threads.shutdown_background();
    Ok(())
}

async fn bare() -> hatchery::Result<Duration> {
    let mut asked = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..AT_ONCE {
        asked.spawn(async {
            let mut peer = Peer::spawn(env!("CARGO_BIN_EXE_ruler-child"))?;
            peer.ask(Bytes::from_static(&[7; 8])).await?;
            Ok::<_, std::io::Error>(peer)
        });
    }
    let peers = asked.join_all().await;
    let took = begun.elapsed();
    for peer in peers {
        peer?.end().await?;
    }
    Ok(took)
}

async fn workers() -> hatchery::Result<Duration> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let mut asked = JoinSet::new();
    let begun = Instant::now();
    for number in 0..AT_ONCE {
        let tree = tree.clone();
        asked.spawn(async move {
            let trivial = tree.start_child(worker::<Trivial>(format!("trivial-{number}"), ())).await?;
            trivial.answer(7).await?;
            Ok::<_, hatchery::Error>(())
        });
    }
    let answered = asked.join_all().await;
    let took = begun.elapsed();
    answered.into_iter().collect::<hatchery::Result<()>>()?;
    tree.stop().await?;
    Ok(took)
}
