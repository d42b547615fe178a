//! From SIGKILL of a worker to `is_crash()` at a caller who waits for its answer; and from SIGKILL of a root to the end of
//! the last of its workers.
//!
//! The rulers: a killed bare process, up to the end-of-file that tokio gives; and as many bare processes that end when
//! the other end of their socket is gone.

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Instant;

use bytes::Bytes;
use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::ruler::Peer;
use hatchery_benches::table::{Effort, Row, Target, print, print_p99};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::io::{AsyncBufReadExt, BufReader};

/// How long the request has to arrive and the worker to fall asleep over it.
const SETTLE: Duration = Duration::from_millis(2);
/// How many end with their root.
const WORKERS: usize = 8;
/// Says in a process of this program that it is there to be killed, and what its children are.
const VICTIM: &str = "VICTIM";

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
    match std::env::var(VICTIM).as_deref() {
        Ok("bare") => return parent_of_bare_ones().await,
        Ok(_) => return root().await,
        Err(_) => {}
    }
    let effort = Effort::of_args(50);
    let row = worker_killed(effort).await?;
    let kills = effort.rounds * effort.samples;
    let title = format!("SIGKILL of a worker to is_crash() at a waiting caller, {kills} kills");
    print(&title, effort, std::slice::from_ref(&row));
    print_p99(&row, Duration::from_millis(5));

    let effort = Effort { samples: effort.samples.div_ceil(5), ..effort };
    let mut row = Row::new("kill to the last end", Target::Below(Duration::from_secs(1)));
    for _ in 0..effort.rounds {
        for (victim, into) in [("bare", &mut row.ruler), ("hatchery", &mut row.subject)] {
            let mut samples = Vec::with_capacity(effort.samples);
            for _ in 0..effort.samples {
                samples.push(parent_killed(victim).await?);
            }
            into.round(samples);
        }
    }
    print(
        &format!("SIGKILL of a root to the end of its {WORKERS} workers"),
        effort,
        std::slice::from_ref(&row),
    );
    print_p99(&row, Duration::from_secs(1));
    Ok(())
}

async fn worker_killed(effort: Effort) -> hatchery::Result<Row> {
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
    tree.stop().await?;
    Ok(row)
}

/// Kills a parent; how long the last of its children lived on.
async fn parent_killed(victim: &str) -> hatchery::Result<Duration> {
    let mut parent = tokio::process::Command::new(std::env::current_exe()?)
        .env(VICTIM, victim)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = parent.stdout.take().ok_or(hatchery::Error::msg("no stdout"))?;
    let mut lines = BufReader::new(out).lines();
    let line = lines.next_line().await?.ok_or(hatchery::Error::msg("it ended by itself"))?;
    let children = line.split_whitespace().map(pidfd).collect::<hatchery::Result<Vec<_>>>()?;
    assert_eq!(children.len(), WORKERS);
    let begun = kill(parent.id().unwrap_or_default());
    let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
    for child in &children {
        // One after the other: it is over when the last of them is.
        let ended = poll(&mut [PollFd::new(child, PollFlags::IN)], Some(&patience))?;
        assert_eq!(ended, 1, "one lives on");
    }
    let took = begun.elapsed();
    parent.wait().await?;
    Ok(took)
}

fn pidfd(pid: &str) -> hatchery::Result<OwnedFd> {
    let pid = pid.parse().ok().and_then(Pid::from_raw).ok_or(hatchery::Error::msg("no pid"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// A root with workers, which waits to be killed.
async fn root() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let mut pids = Vec::with_capacity(WORKERS);
    for number in 0..WORKERS {
        let sleeper = tree.start_child(worker::<Sleeper>(format!("sleeper-{number}"), ())).await?;
        pids.push(sleeper.pid().await?);
    }
    waits_to_be_killed(&pids).await
}

/// The same by hand.
async fn parent_of_bare_ones() -> hatchery::Result<()> {
    let (mut peers, mut pids) = (Vec::with_capacity(WORKERS), Vec::with_capacity(WORKERS));
    for _ in 0..WORKERS {
        let mut peer = Peer::spawn(env!("CARGO_BIN_EXE_ruler-child"))?;
        peer.ask(Bytes::from_static(&[7; 8])).await?;
        pids.push(peer.pid().unwrap_or_default());
        peers.push(peer);
    }
    waits_to_be_killed(&pids).await
}

async fn waits_to_be_killed(pids: &[u32]) -> hatchery::Result<()> {
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    let mut out = std::io::stdout();
    writeln!(out, "{}", pids.join(" "))?;
    out.flush()?;
    std::future::pending().await
}

/// Kills a process; gives the moment before.
fn kill(pid: u32) -> Instant {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the pid of a live process");
    let begun = Instant::now();
    kill_process(pid, Signal::KILL).expect("a process of ours can be killed");
    begun
}
