//! One ask and its answer, 64 bytes each way, one in flight, between a single-threaded root and a worker.
//!
//! The ruler: two processes of a single thread, a tokio `UnixStream` and the same codec. Across two CPUs the wake-up
//! alone costs more than all else, so both placements are measured.

#![forbid(unsafe_code)]

use std::process::id;
use std::time::Instant;

use bytes::Bytes;
use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::placement::{cpus, pin};
use hatchery_benches::ruler::Peer;
use hatchery_benches::table::{Effort, Row, Target, print};

const PAYLOAD: usize = 64;
/// Calls before each round that do not count.
const WARM_UP: usize = 100;

struct Echo;

#[hatchery::actor]
impl Echo {
    fn start() -> Self {
        Echo
    }

    async fn echo(&mut self, payload: Vec<u8>) -> Vec<u8> {
        payload
    }
}

fn main() {
    hatchery::program().flavor(Flavor::CurrentThread).run(ask)
}

async fn ask() -> hatchery::Result<()> {
    let effort = Effort::of_args(3000);
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let echo = tree.start_child(worker::<Echo>("echo", ())).await?;
    let mut peer = Peer::spawn(env!("CARGO_BIN_EXE_ruler-child"))?;
    let (worker_pid, peer_pid) = (echo.pid().unwrap_or_default(), peer.pid().unwrap_or_default());
    // The first answer says that all threads are there to be pinned.
    peer.ask(Bytes::from_static(&[7; PAYLOAD])).await?;
    echo.echo(vec![7; PAYLOAD]).await?;

    let all = cpus()?;
    let (first, last) = (all[0], all[all.len() - 1]);
    let mut rows = vec![(Row::new("both ends on one CPU", Target::Times(1.3)), [first, first])];
    if first != last {
        rows.push((Row::new("an end on each CPU", Target::None), [first, last]));
    }
    for _ in 0..effort.rounds {
        for (row, [here, there]) in &mut rows {
            pin(id(), &[*here])?;
            pin(worker_pid, &[*there])?;
            pin(peer_pid, &[*there])?;

            let mut samples = Vec::with_capacity(effort.samples);
            for call in 0..WARM_UP + effort.samples {
                let payload = Bytes::from(vec![7; PAYLOAD]);
                let begun = Instant::now();
                let answer = peer.ask(payload).await?;
                let took = begun.elapsed();
                assert_eq!(answer.len(), PAYLOAD);
                if call >= WARM_UP {
                    samples.push(took);
                }
            }
            row.ruler.round(samples);

            let mut samples = Vec::with_capacity(effort.samples);
            for call in 0..WARM_UP + effort.samples {
                let payload = vec![7; PAYLOAD];
                let begun = Instant::now();
                let answer = echo.echo(payload).await?;
                let took = begun.elapsed();
                assert_eq!(answer.len(), PAYLOAD);
                if call >= WARM_UP {
                    samples.push(took);
                }
            }
            row.subject.round(samples);
        }
    }
    pin(id(), &all)?;
    let rows: Vec<Row> = rows.into_iter().map(|(row, _)| row).collect();
    print("ask round trip, 64 bytes each way, one in flight, single-threaded root", effort, &rows);
    peer.end().await?;
    tree.stop().await
}
