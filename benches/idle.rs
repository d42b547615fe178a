//! What idle workers cost of CPU time: their heartbeat, once a second, on both sides.
//!
//! The ruler: as many bare processes, each asked once a second by hand, all of them in one go.

#![forbid(unsafe_code)]

use bytes::Bytes;
use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::cpu::spent;
use hatchery_benches::ruler::Peer;
use hatchery_benches::table::{Effort, Row, Target, print};
use tokio::time::sleep;

const IDLE: usize = 64;
/// That of the default heartbeat.
const PERIOD: Duration = Duration::from_secs(1);

struct Idler;

#[hatchery::actor]
impl Idler {
    fn start() -> Self {
        Idler
    }

    async fn answer(&mut self, n: u64) -> u64 {
        n
    }
}

fn main() {
    hatchery::program().flavor(Flavor::CurrentThread).run(idle)
}

async fn idle() -> hatchery::Result<()> {
    let effort = Effort::of_args(1);
    let mut parent = Row::new("in their parent", Target::None);
    let mut children = Row::new("in all of them", Target::None);

    let mut peers = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        let mut peer = Peer::spawn(env!("CARGO_BIN_EXE_ruler-child"))?;
        peer.ask(Bytes::from_static(&[7; 8])).await?;
        peers.push(peer);
    }
    let pids: Vec<u32> = peers.iter().filter_map(Peer::pid).collect();
    for _ in 0..effort.rounds {
        let begun = begin(&pids)?;
        // In the middle of it, so that each look is at one beat.
        sleep(PERIOD / 2).await;
        for peer in &mut peers {
            peer.socket.send(Bytes::from_static(&[7; 8])).await?;
        }
        for peer in &mut peers {
            peer.socket.recv().await?;
        }
        sleep(PERIOD / 2).await;
        let [own, theirs] = end(begun, &pids)?;
        parent.ruler.round(vec![own]);
        children.ruler.round(vec![theirs]);
    }
    for peer in peers {
        peer.end().await?;
    }

    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let mut pids = Vec::with_capacity(IDLE);
    for number in 0..IDLE {
        let idler = tree.start_child(worker::<Idler>(format!("idler-{number}"), ())).await?;
        idler.answer(7).await?;
        pids.extend(idler.pid());
    }
    assert_eq!(pids.len(), IDLE);
    for _ in 0..effort.rounds {
        let begun = begin(&pids)?;
        sleep(PERIOD).await;
        let [own, theirs] = end(begun, &pids)?;
        parent.subject.round(vec![own]);
        children.subject.round(vec![theirs]);
    }
    print(&format!("CPU time of a second in which {IDLE} workers are idle"), effort, &[parent, children]);
    tree.stop().await
}

/// The first look at what this process and all its children have spent. Its own is the last: to look costs, too.
fn begin(children: &[u32]) -> std::io::Result<[Duration; 2]> {
    let all = all(children)?;
    Ok([spent(std::process::id())?, all])
}

/// What has been spent since.
fn end(begun: [Duration; 2], children: &[u32]) -> std::io::Result<[Duration; 2]> {
    let own = spent(std::process::id())?;
    Ok([own - begun[0], all(children)? - begun[1]])
}

fn all(children: &[u32]) -> std::io::Result<Duration> {
    children.iter().map(|pid| spent(*pid)).sum()
}
