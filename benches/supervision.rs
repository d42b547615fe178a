//! What supervision takes: the time from SIGKILL of a child to the next one's answer, restarts one after the other for as long as
//! one likes, the stop of many, an idle child, and calls while everything restarts.
//!
//! The rulers: a first start up to its answer; and the same by hand with bare processes and plain tasks.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::cpu::spent;
use hatchery_benches::footprint::Footprint;
use hatchery_benches::ruler::{Job, Peer};
use hatchery_benches::table::{Effort, Row, Target, print, print_p99};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How many are stopped at once, and are idle at once.
const MANY: usize = 50;
/// How many restart at once.
const AT_ONCE: usize = 20;
/// A few bytes for a bare process to send back.
const FEW: bytes::Bytes = bytes::Bytes::from_static(&[7; 8]);

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
    hatchery::program().flavor(Flavor::CurrentThread).run(supervision)
}

async fn supervision() -> hatchery::Result<()> {
    back().await?;
    sustained().await?;
    stop().await?;
    idle().await?;
    calls().await
}

/// A supervisor that never has enough.
async fn patient() -> hatchery::Result<Tree> {
    let supervisor = Supervisor::new(Strategy::OneForOne).intensity(u32::MAX, Duration::from_secs(60));
    Ok(supervisor.start().await?)
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("a process of ours can be killed");
}

/// Kills a child that has answered, and waits for the answer of the next one.
async fn killed(child: &TrivialHandle) {
    kill(child.pid().expect("it has answered"));
    // What goes to the one that was killed, before that is known, ends with it.
    while let Err(error) = child.answer(7).await {
        assert!(error.is_crash(), "{error}");
    }
}

async fn bare() -> std::io::Result<Peer> {
    let mut peer = Peer::spawn(env!("CARGO_BIN_EXE_ruler-child"))?;
    peer.ask(FEW).await?;
    Ok(peer)
}

/// The same by hand.
async fn bare_killed(mut peer: Peer) -> std::io::Result<Peer> {
    kill(peer.pid().expect("it has answered"));
    // To its end.
    while peer.socket.recv().await?.is_some() {}
    peer.end().await?;
    bare().await
}

async fn back() -> hatchery::Result<()> {
    let effort = Effort::of_args(50);
    let mut first = Row::new("beside a first start", Target::Times(2.0));
    let mut by_hand = Row::new("beside one by hand", Target::None);
    let tree = patient().await?;
    let child = tree.start_child(worker::<Trivial>("child", ())).await?;
    child.answer(7).await?;
    let mut peer = bare().await?;
    for round in 0..=effort.rounds {
        let (mut starts, mut bares, mut backs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.samples {
            let begun = Instant::now();
            let fresh = tree.start_child(worker::<Trivial>("fresh", ())).await?;
            fresh.answer(7).await?;
            starts.push(begun.elapsed());
            tree.terminate_child("fresh").await?;
            tree.delete_child("fresh").await?;

            let begun = Instant::now();
            peer = bare_killed(peer).await?;
            bares.push(begun.elapsed());

            let begun = Instant::now();
            killed(&child).await;
            backs.push(begun.elapsed());
        }
        // The first round warms up.
        if round > 0 {
            first.ruler.round(starts);
            first.subject.round(backs.clone());
            by_hand.ruler.round(bares);
            by_hand.subject.round(backs);
        }
    }
    print("SIGKILL of a child to the answer of the next", effort, &[first, by_hand]);
    tree.stop().await
}

/// Children that are killed as soon as they have answered, over and over: how long one restart takes of that time.
async fn sustained() -> hatchery::Result<()> {
    let effort = Effort::of_args(400);
    let mut one = Row::new("one child", Target::None);
    let mut many = Row::new("twenty at once", Target::None);
    for _ in 0..effort.rounds {
        for (row, at_once) in [(&mut one, 1), (&mut many, AT_ONCE)] {
            let each = effort.samples.div_ceil(at_once);
            let restarts = u32::try_from(each * at_once).unwrap_or(u32::MAX);

            let mut peers = JoinSet::new();
            let mut fresh = Vec::with_capacity(at_once);
            for _ in 0..at_once {
                fresh.push(bare().await?);
            }
            let begun = Instant::now();
            for mut peer in fresh {
                peers.spawn(async move {
                    for _ in 0..each {
                        peer = bare_killed(peer).await?;
                    }
                    Ok::<_, std::io::Error>(peer)
                });
            }
            let peers = peers.join_all().await;
            row.ruler.round(vec![begun.elapsed() / restarts]);
            for peer in peers {
                peer?.end().await?;
            }

            let tree = patient().await?;
            let children = children(&tree, at_once).await?;
            let mut storm = JoinSet::new();
            let begun = Instant::now();
            for child in children {
                storm.spawn(async move {
                    for _ in 0..each {
                        killed(&child).await;
                    }
                });
            }
            storm.join_all().await;
            row.subject.round(vec![begun.elapsed() / restarts]);
            tree.stop().await?;
        }
    }
    let rate = |row: &Row| 1.0 / row.subject.median().as_secs_f64();
    let (alone, together) = (rate(&one), rate(&many));
    print("restarts without a pause, time of one", effort, &[one, many]);
    println!("  restarts in a second: {alone:.0} of one child, {together:.0} of {AT_ONCE} at once\n");
    Ok(())
}

/// Starts so many at once; each has answered.
async fn children(tree: &Tree, count: usize) -> hatchery::Result<Vec<TrivialHandle>> {
    let mut asked = JoinSet::new();
    for number in 0..count {
        let tree = tree.clone();
        asked.spawn(async move {
            let child = tree.start_child(worker::<Trivial>(format!("child-{number}"), ())).await?;
            child.answer(7).await?;
            Ok::<_, hatchery::Error>(child)
        });
    }
    asked.join_all().await.into_iter().collect()
}

async fn stop() -> hatchery::Result<()> {
    let effort = Effort::of_args(2);
    let mut row = Row::new("stop of fifty", Target::Below(Duration::from_millis(250)));
    for _ in 0..effort.rounds {
        let (mut ruler, mut subject) = (Vec::new(), Vec::new());
        for _ in 0..effort.samples {
            let mut peers = Vec::with_capacity(MANY);
            for _ in 0..MANY {
                peers.push(bare().await?);
            }
            let begun = Instant::now();
            peers.iter().filter_map(Peer::pid).for_each(kill);
            for peer in peers {
                peer.end().await?;
            }
            ruler.push(begun.elapsed());

            let tree = patient().await?;
            let _children = children(&tree, MANY).await?;
            let begun = Instant::now();
            tree.stop().await?;
            subject.push(begun.elapsed());
        }
        row.ruler.round(ruler);
        row.subject.round(subject);
    }
    let title = format!("stop in order of {MANY} idle children, beside SIGKILL of as many bare ones at once");
    print(&title, effort, &[row]);
    Ok(())
}

/// What one of many idle children costs. More of that is in `idle.rs` and `memory.rs`.
async fn idle() -> hatchery::Result<()> {
    let effort = Effort::of_args(1);
    let mut parent = Row::new("CPU in the parent", Target::None);
    let mut worker = Row::new("CPU in the child", Target::None);
    let mut whole = Row::new("memory of it, PSS", Target::Times(2.0));
    let mut private = Row::new("of it private, written", Target::None);
    for _ in 0..effort.rounds {
        let mut peers = Vec::with_capacity(MANY);
        for _ in 0..MANY {
            let mut peer = Peer::start(env!("CARGO_BIN_EXE_ruler-child"), Job::Frames)?;
            peer.ask(FEW).await?;
            peers.push(peer);
        }
        let pids: Vec<_> = peers.iter().filter_map(Peer::pid).collect();
        let (own, theirs, feet) = second(&pids).await?;
        parent.ruler.round(vec![own]);
        worker.ruler.round(vec![theirs]);
        whole.ruler.round(feet.iter().map(|foot| foot.proportional).collect());
        private.ruler.round(feet.iter().map(|foot| foot.private).collect());
        for peer in peers {
            peer.end().await?;
        }

        let tree = patient().await?;
        let children = children(&tree, MANY).await?;
        let pids: Vec<_> = children.iter().filter_map(|child| child.pid()).collect();
        let (own, theirs, feet) = second(&pids).await?;
        parent.subject.round(vec![own]);
        worker.subject.round(vec![theirs]);
        whole.subject.round(feet.iter().map(|foot| foot.proportional).collect());
        private.subject.round(feet.iter().map(|foot| foot.private).collect());
        tree.stop().await?;
    }
    let title = format!("one of {MANY} idle children, beside a bare process that nobody asks");
    print(&format!("{title}: CPU time of a second"), effort, &[parent, worker]);
    print(&format!("{title}: memory"), effort, &[whole, private]);
    Ok(())
}

/// What this process, and each of its children, spends in a second of nothing; and how much memory those have.
async fn second(pids: &[u32]) -> std::io::Result<(Duration, Duration, Vec<Footprint>)> {
    assert_eq!(pids.len(), MANY);
    let all = || pids.iter().map(|pid| spent(*pid)).sum::<std::io::Result<Duration>>();
    // Its own is looked at closest: to look costs, too.
    let theirs = all()?;
    let own = spent(std::process::id())?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let own = spent(std::process::id())? - own;
    let theirs = all()? - theirs;
    let feet = pids.iter().map(|pid| Footprint::of(*pid)).collect::<std::io::Result<_>>()?;
    Ok((own / MANY as u32, theirs / MANY as u32, feet))
}

/// Calls of a supervisor all of whose children die as soon as they have answered.
async fn calls() -> hatchery::Result<()> {
    let effort = Effort::of_args(300);
    let most = Duration::from_millis(50);
    let mut rows = ["children", "start_child, taken", "terminate_child, none"]
        .map(|name| Row::new(name, Target::Below(most)));
    let tree = patient().await?;
    let children = children(&tree, AT_ONCE).await?;
    let (enough, restarts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut storm = JoinSet::new();
    for child in children {
        let (enough, restarts) = (enough.clone(), restarts.clone());
        storm.spawn(async move {
            while !enough.load(Ordering::Relaxed) {
                killed(&child).await;
                restarts.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // The ruler: a task that answers at once, in the same storm.
    let (questions, mut asked) = mpsc::channel::<oneshot::Sender<()>>(256);
    let plain = tokio::spawn(async move {
        while let Some(reply) = asked.recv().await {
            let _ = reply.send(());
        }
    });
    let begun = Instant::now();
    for _ in 0..effort.rounds {
        for (number, row) in rows.iter_mut().enumerate() {
            let (mut ruler, mut subject) = (Vec::new(), Vec::new());
            for _ in 0..effort.samples {
                // Not in step with the storm.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let begun = Instant::now();
                let (reply, answer) = oneshot::channel();
                let sent = questions.send(reply).await.is_ok() && answer.await.is_ok();
                ruler.push(begun.elapsed());
                assert!(sent, "the task lives");

                tokio::time::sleep(Duration::from_millis(1)).await;
                let begun = Instant::now();
                match number {
                    0 => assert_eq!(tree.children().await.len(), AT_ONCE),
                    1 => assert!(tree.start_child(worker::<Trivial>("child-7", ())).await.is_err()),
                    _ => assert!(tree.terminate_child("nobody").await.is_err()),
                }
                subject.push(begun.elapsed());
            }
            row.ruler.round(ruler);
            row.subject.round(subject);
        }
    }
    let rate = restarts.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    for row in &rows {
        let title = "a call in a storm of restarts, beside a question to a plain task";
        print(title, effort, std::slice::from_ref(row));
        print_p99(row, most);
    }
    println!("  {rate:.0} restarts in a second meanwhile, of {AT_ONCE} children\n");
    enough.store(true, Ordering::Relaxed);
    storm.join_all().await;
    drop(questions);
    plain.await?;
    tree.stop().await
}
