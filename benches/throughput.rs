//! How much goes through: 256 asks of 64 bytes in flight over one handle, tells, and large messages there and back.
//!
//! The rulers: a client by hand that many tasks share and that writes all that is ready at once, and a raw socket that
//! reads into a fresh buffer. Of each, the time and what both processes spent of their CPUs. The roots of one thread
//! and of several are measured against the same ruler, that of one thread, which is the faster one.

#![forbid(unsafe_code)]

use std::time::Instant;

use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::cpu::Meter;
use hatchery_benches::multiplex::{Client, bulk};
use hatchery_benches::ruler::{Job, start};
use hatchery_benches::table::{Effort, Row, Target, print};
use tokio::net::UnixStream;

const PAYLOAD: usize = 64;
const IN_FLIGHT: usize = 256;
const SENDERS: usize = 4;
const RULER: &str = env!("CARGO_BIN_EXE_ruler-child");
const MIB: usize = 1024 * 1024;

struct Echo {
    told: u64,
}

#[hatchery::actor]
impl Echo {
    fn start() -> Self {
        Echo { told: 0 }
    }

    async fn echo(&mut self, payload: Vec<u8>) -> Vec<u8> {
        payload
    }

    async fn note(&mut self, n: u64) {
        self.told += n;
    }

    async fn told(&mut self) -> u64 {
        self.told
    }
}

fn main() {
    hatchery::program().flavor(Flavor::CurrentThread).run(async || {
        let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
        let wanted = |what: &str| only.is_empty() || only.iter().any(|only| what.starts_with(only));
        if wanted("asks") {
            asks(Effort::of_args(60_000)).await?;
        }
        if wanted("tells") {
            tells(Effort::of_args(200_000)).await?;
        }
        if wanted("large") {
            large(Effort::of_args(50)).await?;
        }
        Ok::<_, hatchery::Error>(())
    })
}

/// A root of several threads beside the one of this program.
fn threads() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

async fn asks(effort: Effort) -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let echo = tree.start_child(worker::<Echo>("echo", ())).await?;
    let threads = threads()?;
    let many = threads.spawn(async {
        let tree = Supervisor::new(Strategy::OneForOne).start().await?;
        let echo = tree.start_child(worker::<Echo>("echo", ())).await?;
        Ok::<_, hatchery::Error>((tree, echo))
    });
    let (many_tree, many_echo) = many.await??;

    let (mut process, stream) = start(RULER, Job::Multiplex)?;
    let client = Client::new(stream)?;
    let ruler_pid = process.id().unwrap_or_default();

    let mut rows = [
        Row::new("one thread", Target::Times(1.0 / 0.7)),
        Row::new("one thread, CPU", Target::None),
        Row::new("two threads", Target::Times(1.0 / 0.7)),
        Row::new("two threads, CPU", Target::None),
    ];
    for round in 0..=effort.rounds {
        let meter = Meter::begin(ruler_pid)?;
        let begun = Instant::now();
        let tasks = (0..IN_FLIGHT).map(|_| tokio::spawn(by_hand(client.clone(), effort.samples / IN_FLIGHT)));
        for task in tasks.collect::<Vec<_>>() {
            task.await??;
        }
        let (took, cpu) = (begun.elapsed(), meter.end(effort.samples)?);
        let ruler = [took / effort.samples as u32, cpu];

        let meter = Meter::begin(echo.pid().unwrap_or_default())?;
        let took = in_flight(echo.clone(), effort.samples).await?;
        let one = [took / effort.samples as u32, meter.end(effort.samples)?];

        let meter = Meter::begin(many_echo.pid().unwrap_or_default())?;
        let many = threads.spawn(in_flight(many_echo.clone(), effort.samples));
        let took = many.await??;
        let many = [took / effort.samples as u32, meter.end(effort.samples)?];

        // The first round warms up.
        if round > 0 {
            for (row, (ruler, subject)) in
                rows.iter_mut().zip(ruler.iter().cycle().zip(one.iter().chain(&many)))
            {
                row.ruler.round(vec![*ruler]);
                row.subject.round(vec![*subject]);
            }
        }
    }
    print("asks of 64 bytes, 256 in flight over one handle: time for each", effort, &rows);
    process.kill().await?;
    threads.spawn(async move { many_tree.stop().await }).await??;
    threads.shutdown_background();
    tree.stop().await
}

async fn by_hand(client: Client, calls: usize) -> std::io::Result<()> {
    for _ in 0..calls {
        assert_eq!(client.ask(vec![7; PAYLOAD]).await?.len(), PAYLOAD);
    }
    Ok(())
}

async fn in_flight(echo: EchoHandle, asks: usize) -> hatchery::Result<Duration> {
    let begun = Instant::now();
    let tasks = (0..IN_FLIGHT).map(|_| {
        let echo = echo.clone();
        tokio::spawn(async move {
            for _ in 0..asks / IN_FLIGHT {
                assert_eq!(echo.echo(vec![7; PAYLOAD]).await?.len(), PAYLOAD);
            }
            Ok::<_, hatchery::Error>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(begun.elapsed())
}

/// One after the other from few tasks, until all have been handled.
async fn tells(effort: Effort) -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let echo = tree.start_child(worker::<Echo>("echo", ())).await?;
    let mut row = Row::new("from four tasks", Target::Below(Duration::from_nanos(500)));
    let mut cpu = Row::new("from four tasks, CPU", Target::None);
    let (mut process, stream) = start(RULER, Job::Multiplex)?;
    let client = Client::new(stream)?;
    for round in 0..=effort.rounds {
        let meter = Meter::begin(process.id().unwrap_or_default())?;
        let begun = Instant::now();
        let tasks = (0..IN_FLIGHT).map(|_| tokio::spawn(by_hand(client.clone(), effort.samples / IN_FLIGHT)));
        for task in tasks.collect::<Vec<_>>() {
            task.await??;
        }
        let (ruler, ruler_cpu) = (begun.elapsed(), meter.end(effort.samples)?);

        let before = echo.told().await?;
        let meter = Meter::begin(echo.pid().unwrap_or_default())?;
        let begun = Instant::now();
        let tasks = (0..SENDERS).map(|_| {
            let echo = echo.clone();
            tokio::spawn(async move {
                for _ in 0..effort.samples / SENDERS {
                    echo.note(1).tell().await?;
                }
                Ok::<_, hatchery::Error>(())
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await??;
        }
        let told = echo.told().await? - before;
        let took = begun.elapsed();
        assert_eq!(told as usize, effort.samples / SENDERS * SENDERS);
        if round > 0 {
            row.ruler.round(vec![ruler / effort.samples as u32]);
            row.subject.round(vec![took / effort.samples as u32]);
            cpu.ruler.round(vec![ruler_cpu]);
            cpu.subject.round(vec![meter.end(effort.samples)?]);
        }
    }
    print("tells of a number (the ruler: asks by hand)", effort, &[row, cpu]);
    process.kill().await?;
    tree.stop().await
}

async fn large(effort: Effort) -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let echo = tree.start_child(worker::<Echo>("echo", ())).await?;
    let (mut process, stream) = start(RULER, Job::Bulk)?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let sizes = [("1 MiB", MIB, 1), ("64 MiB", 64 * MIB, 16)];
    let mut rows = Vec::new();
    for (name, size, fewer) in sizes {
        let mut row = Row::new(name, Target::Times(1.3));
        let mut cpu = Row::new(if size == MIB { "1 MiB, CPU" } else { "64 MiB, CPU" }, Target::None);
        let samples = effort.samples.div_ceil(fewer);
        for _ in 0..effort.rounds {
            let (mut times, meter) = (Vec::new(), Meter::begin(process.id().unwrap_or_default())?);
            for _ in 0..samples {
                let message = vec![7; size];
                let begun = Instant::now();
                assert_eq!(bulk(&mut stream, &message).await?.len(), size);
                times.push(begun.elapsed());
            }
            row.ruler.round(times);
            cpu.ruler.round(vec![meter.end(samples)?]);
            let (mut times, meter) = (Vec::new(), Meter::begin(echo.pid().unwrap_or_default())?);
            for _ in 0..samples {
                let message = vec![7; size];
                let begun = Instant::now();
                assert_eq!(echo.echo(message).await?.len(), size);
                times.push(begun.elapsed());
            }
            row.subject.round(times);
            cpu.subject.round(vec![meter.end(samples)?]);
        }
        rows.extend([row, cpu]);
    }
    print("large messages there and back", effort, &rows);
    drop(stream);
    process.wait().await?;
    tree.stop().await
}
