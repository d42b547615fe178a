//! From the order to start a worker to its first answer, from a small parent and from one with 1 GiB of touched heap.
//!
//! The ruler: tokio's `Command::spawn` of a bare tokio program that answers one message on its stdin.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::ruler::Peer;
use hatchery_benches::table::{Effort, Row, Samples, Target, print};

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
    hatchery::program().flavor(Flavor::CurrentThread).run(spawn)
}

async fn spawn() -> hatchery::Result<()> {
    let effort = Effort::of_args(20);
    let mut small = Row::new("small parent", Target::Times(1.3));
    let mut big = Row::new("parent with 1 GiB", Target::Times(1.3));
    let uncounted = 2;
    measure_ruler(uncounted, &mut Samples::default()).await?;
    measure_subject(uncounted, &mut Samples::default()).await?;
    for _ in 0..effort.rounds {
        measure_ruler(effort.samples, &mut small.ruler).await?;
        measure_subject(effort.samples, &mut small.subject).await?;
        let heap = black_box(touched_heap());
        measure_ruler(effort.samples, &mut big.ruler).await?;
        measure_subject(effort.samples, &mut big.subject).await?;
        drop(heap);
    }
    let growth = big.subject.times(&small.subject);
    print("spawn to first answer of a trivial worker", effort, &[small, big]);
    println!("  hatchery from the big parent takes {growth:.2} × as long as from the small one\n");
    Ok(())
}

async fn measure_ruler(samples: usize, into: &mut Samples) -> hatchery::Result<()> {
    let mut round = Vec::with_capacity(samples);
    for _ in 0..samples {
        let begun = Instant::now();
        let mut peer = Peer::spawn(env!("CARGO_BIN_EXE_ruler-child"))?;
        peer.ask(Bytes::from_static(&[7; 8])).await?;
        round.push(begun.elapsed());
        peer.end().await?;
    }
    into.round(round);
    Ok(())
}

async fn measure_subject(samples: usize, into: &mut Samples) -> hatchery::Result<()> {
    let mut round = Vec::with_capacity(samples);
    for _ in 0..samples {
        let tree = Supervisor::new(Strategy::OneForOne).start().await?;
        let begun = Instant::now();
        let trivial = tree.start_child(worker::<Trivial>("trivial", ())).await?;
        trivial.answer(7).await?;
        round.push(begun.elapsed());
        tree.stop().await?;
    }
    into.round(round);
    Ok(())
}

/// 1 GiB, every page of it written.
fn touched_heap() -> Vec<u8> {
    let mut heap = vec![0_u8; 1 << 30];
    heap.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    heap
}
