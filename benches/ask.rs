//! One ask and its answer, 64 bytes each way, one in flight, between a single-threaded root and a worker, and the CPU
//! time that both ends spend on it.
//!
//! The ruler: two processes of a single thread, a tokio `UnixStream` and the same codec. Across two CPUs the wake-up
//! alone costs more than all else, so both placements are measured, and what the scheduler makes of it by itself, on a
//! machine that is idle and on one that is not; each with ends that sleep at once and with ends that spin.

#![forbid(unsafe_code)]

use std::process::id;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hatchery::prelude::*;
use hatchery::{Flavor, Spin};
use hatchery_benches::cpu::Meter;
use hatchery_benches::placement::{cpus, pin};
use hatchery_benches::ruler::{Job, Peer, start};
use hatchery_benches::table::{Effort, Row, Target, print};

const PAYLOAD: usize = 64;
/// Calls before each round that do not count.
const WARM_UP: usize = 100;
/// Processes that only compute, a CPU.
const BUSY: usize = 2;

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

/// Where both ends run, and what is measured of it.
struct Case {
    cpus: [Vec<usize>; 2],
    busy: usize,
    /// Between two asks.
    pause: Duration,
    /// Those who sleep, those who spin.
    took: [Row; 2],
    mean: [Row; 2],
    spent: [Row; 2],
}

impl Case {
    fn new(names: [&'static str; 2], cpus: [&[usize]; 2], busy: usize, target: Target) -> Case {
        let rows = |target| names.map(|name| Row::new(name, target));
        Case {
            cpus: cpus.map(<[usize]>::to_vec),
            busy,
            pause: Duration::ZERO,
            took: rows(target),
            mean: rows(Target::None),
            spent: rows(Target::None),
        }
    }
}

async fn ask() -> hatchery::Result<()> {
    let effort = Effort::of_args(3000);
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let asleep = tree.start_child(worker::<Echo>("asleep", ()).spin(Spin::Off)).await?;
    let awake = tree.start_child(worker::<Echo>("awake", ()).spin(Spin::Adaptive)).await?;
    let mut peer = Peer::spawn(env!("CARGO_BIN_EXE_ruler-child"))?;
    let peer_pid = peer.pid().unwrap_or_default();
    // The first answer says that all threads are there to be pinned.
    peer.ask(Bytes::from_static(&[7; PAYLOAD])).await?;
    asleep.echo(vec![7; PAYLOAD]).await?;
    awake.echo(vec![7; PAYLOAD]).await?;

    let all = cpus()?;
    let (first, last) = (&all[..1], &all[all.len() - 1..]);
    let within = Target::Times(1.3);
    let mut cases = vec![Case::new(["both on one CPU", "  spinning"], [first, first], 0, within)];
    if first != last {
        let busy = BUSY * all.len();
        cases.push(Case::new(["an end on each CPU", "  spinning"], [first, last], 0, Target::None));
        cases.push(Case::new(["anywhere", "  spinning"], [&all, &all], 0, Target::None));
        cases.push(Case::new(["each CPU, others busy", "  spinning"], [first, last], busy, Target::None));
        cases.push(Case::new(["anywhere, others busy", "  spinning"], [&all, &all], busy, Target::None));
    }
    let seldom = Case::new(["anywhere, one a ms", "  spinning"], [&all, &all], 0, Target::None);
    cases.push(Case { pause: Duration::from_millis(1), ..seldom });
    for _ in 0..effort.rounds {
        for Case { cpus: [here, there], busy, pause, took, mean, spent } in &mut cases {
            pin(id(), here)?;
            for pid in [asleep.pid(), awake.pid(), Some(peer_pid)].into_iter().flatten() {
                pin(pid, there)?;
            }
            let mut others = Vec::new();
            for _ in 0..*busy {
                let other = start(env!("CARGO_BIN_EXE_ruler-child"), Job::Busy)?;
                pin(other.0.id().unwrap_or_default(), &all)?;
                others.push(other);
            }
            // Fewer: they take long.
            let samples =
                if *busy > 0 || !pause.is_zero() { effort.samples.div_ceil(6) } else { effort.samples };

            let (ruler, ruler_spent) = measure(peer_pid, samples, *pause, async || {
                Ok(peer.ask(Bytes::from(vec![7; PAYLOAD])).await?.len())
            })
            .await?;
            for (n, echo) in [&asleep, &awake].into_iter().enumerate() {
                let pid = echo.pid().unwrap_or_default();
                let (subject, subject_spent) =
                    measure(pid, samples, *pause, async || Ok(echo.echo(vec![7; PAYLOAD]).await?.len()))
                        .await?;
                mean[n].ruler.round(vec![mean_of(&ruler)]);
                mean[n].subject.round(vec![mean_of(&subject)]);
                took[n].ruler.round(ruler.clone());
                took[n].subject.round(subject);
                spent[n].ruler.round(vec![ruler_spent]);
                spent[n].subject.round(vec![subject_spent]);
            }
            for (mut other, _) in others {
                other.kill().await?;
            }
        }
    }
    pin(id(), &all)?;
    let title = "ask round trip, 64 bytes each way, one in flight, single-threaded root";
    let (mut took, mut mean, mut spent) = (Vec::new(), Vec::new(), Vec::new());
    for case in cases {
        took.extend(case.took);
        mean.extend(case.mean);
        spent.extend(case.spent);
    }
    print(title, effort, &took);
    print("the same, mean of a round: with what the scheduler makes some asks wait for", effort, &mean);
    print("CPU time of both ends an ask, mean of a round", effort, &spent);
    peer.end().await?;
    tree.stop().await
}

fn mean_of(samples: &[Duration]) -> Duration {
    samples.iter().sum::<Duration>() / u32::try_from(samples.len()).unwrap_or(u32::MAX)
}

/// So many calls one after the other: how long each took, and the CPU time of both ends a call.
async fn measure(
    other: u32,
    samples: usize,
    pause: Duration,
    mut call: impl AsyncFnMut() -> hatchery::Result<usize>,
) -> hatchery::Result<(Vec<Duration>, Duration)> {
    for _ in 0..WARM_UP {
        call().await?;
    }
    let mut took = Vec::with_capacity(samples);
    let meter = Meter::begin(other)?;
    for _ in 0..samples {
        let begun = Instant::now();
        let bytes = call().await?;
        took.push(begun.elapsed());
        assert_eq!(bytes, PAYLOAD);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    Ok((took, meter.end(samples)?))
}
