//! From SIGKILL of a worker to `is_crash()` at a caller who waits for its answer.
//!
//! The ruler: a killed bare process, up to the end-of-file that tokio gives.

#![forbid(unsafe_code)]

use std::time::Instant;

use bytes::Bytes;
use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::ruler::Peer;
use hatchery_benches::table::{Effort, Row, Target, print};
use rustix::process::{Pid, Signal, kill_process};

/// How long the request has to arrive and the worker to fall asleep over it.
const SETTLE: Duration = Duration::from_millis(2);

struct Sleeper;

#[hatchery::actor]
impl Sleeper {
    fn start() -> Self {
        Sleeper
    }

    async fn sleep(&mut self) {
        std::future::pending().await
    }

    async fn pid(&mut self) -> u32 {
        std::process::id()
    }
}

fn main() {
    hatchery::program().flavor(Flavor::CurrentThread).run(crash)
}

async fn crash() -> hatchery::Result<()> {
    let effort = Effort::of_args(50);
    let tree =
        Supervisor::new(Strategy::OneForOne).intensity(10_000, Duration::from_secs(60)).start().await?;
    let sleeper = tree.start_child(worker::<Sleeper>("sleeper", ())).await?;
    let mut row = Row::new("kill to its news", Target::Below(Duration::from_millis(1)));
    for _ in 0..effort.rounds {
        let mut samples = Vec::with_capacity(effort.samples);
        for _ in 0..effort.samples {
            let mut peer = Peer::spawn(env!("CARGO_BIN_EXE_ruler-child"))?;
            peer.ask(Bytes::from_static(&[7; 8])).await?;
            let pid = peer.pid().unwrap_or_default();
            let mut end = Box::pin(peer.socket.recv());
            tokio::select! {
                biased;
                early = &mut end => panic!("it ended by itself: {early:?}"),
                () = tokio::time::sleep(SETTLE) => {}
            }
            let begun = kill(pid);
            let last = end.await?;
            samples.push(begun.elapsed());
            assert_eq!(last, None);
            peer.end().await?;
        }
        row.ruler.round(samples);

        let mut samples = Vec::with_capacity(effort.samples);
        for _ in 0..effort.samples {
            // Waits at the vacant seat, too.
            let pid = sleeper.pid().await?;
            let mut sleep = Box::pin(sleeper.sleep());
            tokio::select! {
                biased;
                early = &mut sleep => panic!("it answered: {early:?}"),
                () = tokio::time::sleep(SETTLE) => {}
            }
            let begun = kill(pid);
            let news = sleep.await;
            samples.push(begun.elapsed());
            assert!(news.is_err_and(|error| error.is_crash()));
        }
        row.subject.round(samples);
    }
    let kills = effort.rounds * effort.samples;
    print(&format!("SIGKILL of a worker to is_crash() at a waiting caller, {kills} kills"), effort, &[row]);
    tree.stop().await
}

/// Kills a process; gives the moment before.
fn kill(pid: u32) -> Instant {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the pid of a live process");
    let begun = Instant::now();
    kill_process(pid, Signal::KILL).expect("a process of ours can be killed");
    begun
}
