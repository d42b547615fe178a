//! Actors of other processes that one did not start: an ask between two siblings, the first ask to a stranger, how often
//! a root can say where somebody sits, and what an idle channel takes of memory.
//!
//! ```text
//! cargo bench -p hatchery-benches --bench anywhere -- ask     # or first, resolve, memory
//! ```
//!
//! The rulers: a bare socket between two processes, as for an ask; a bare process that listens, connected to by hand; a
//! parent and as many bare processes, each with one message under way; a bare socket and the task that waits at it.

#![forbid(unsafe_code)]

use std::process::id;
use std::time::Instant;

use bytes::Bytes as Payload;
use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::cpu::spent;
use hatchery_benches::footprint::Footprint;
use hatchery_benches::placement::{cpus, pin};
use hatchery_benches::ruler::{Job, Peer, Socket, connect};
use hatchery_benches::table::{Bytes, Effort, Row, Target, print};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const RULER: &str = env!("CARGO_BIN_EXE_ruler-child");
const PAYLOAD: usize = 64;
/// Calls before each round that do not count.
const WARM_UP: usize = 100;
/// How many there are to be asked for the first time.
const STRANGERS: usize = 16;
/// How deep workers are nested when strangers are asked.
const LEVELS: usize = 3;
/// How many workers one root has to find for each other.
const MANY: usize = 200;
/// How many of them each one asks.
const NEIGHBOURS: usize = 4;
/// Channels that are open before those that are looked at, so that what a process needs only once is there.
const KIN: usize = 8;
/// Channels that are looked at.
const MORE: usize = 64;

/// A worker that does what it is asked to with the handles it is given.
struct Node {
    tree: Option<Tree>,
    known: Vec<NodeHandle>,
}

#[hatchery::actor]
impl Node {
    fn start() -> Self {
        Node { tree: None, known: Vec::new() }
    }

    async fn echo(&mut self, payload: Vec<u8>) -> Vec<u8> {
        payload
    }

    /// Starts another one in a worker of its own.
    async fn nest(&mut self, name: String) -> hatchery::Result<NodeHandle> {
        if self.tree.is_none() {
            self.tree = Some(often_restarted().start().await?);
        }
        let tree = self.tree.as_ref().ok_or(hatchery::Error::msg("no tree"))?;
        Ok(tree.start_child(worker::<Node>(name, ())).await?)
    }

    /// So many asks, one after the other: how long each took.
    async fn asks(&self, other: NodeHandle, samples: usize) -> hatchery::Result<Vec<Duration>> {
        measure(&other, samples).await
    }

    /// The same from a task beside the actor.
    fn asks_beside(
        &self,
        other: NodeHandle,
        samples: usize,
        reply: Reply<hatchery::Result<Vec<Duration>>>,
        cx: &Context,
    ) {
        cx.spawn(async move {
            let _ = reply.send(measure(&other, samples).await);
        });
    }

    /// The first ask to each of these, and the second one.
    async fn first_asks(&self, others: Vec<NodeHandle>) -> hatchery::Result<Vec<[Duration; 2]>> {
        let mut took = Vec::with_capacity(others.len());
        for other in &others {
            took.push([ask(other).await?, ask(other).await?]);
        }
        Ok(took)
    }

    /// Has those looked up who are no such actors: so many answers of whoever knows them, and nothing else.
    async fn resolve(&self, paths: Vec<String>, times: usize) -> hatchery::Result<()> {
        for path in paths.iter().cycle().take(times) {
            let taken_for_another = hatchery::lookup::<Nobody>(path)?.nothing().await;
            assert!(taken_for_another.is_err_and(|error| error.is_closed()));
        }
        Ok(())
    }

    /// Looks these up anew for each ask. Beside the actor: those it asks are at the same, and would wait for each other.
    fn look_up_and_ask(
        &self,
        paths: Vec<String>,
        times: usize,
        reply: Reply<hatchery::Result<()>>,
        cx: &Context,
    ) {
        let ask_all = async move {
            for path in paths.iter().cycle().take(times) {
                ask(&hatchery::lookup::<Node>(path)?).await?;
            }
            Ok(())
        };
        cx.spawn(async move {
            let _ = reply.send(ask_all.await);
        });
    }

    /// Asks all of these once, and goes on knowing them. What this process has to itself afterwards.
    async fn know(&mut self, others: Vec<NodeHandle>) -> hatchery::Result<u64> {
        for other in &others {
            ask(other).await?;
        }
        self.known.extend(others);
        own()
    }

    /// What this process has to itself.
    async fn own(&self) -> hatchery::Result<u64> {
        own()
    }

    /// What an end of a bare socket takes, with the task that waits at it.
    async fn of_bare_sockets(&self) -> hatchery::Result<u64> {
        let _kin = bare(KIN).await?;
        let before = own()?;
        let _more = bare(MORE).await?;
        Ok(own()?.saturating_sub(before) / (2 * MORE) as u64)
    }
}

/// Not there: to be looked for.
struct Nobody;

#[hatchery::actor]
impl Nobody {
    fn start() -> Self {
        Nobody
    }

    fn nothing(&self) {}
}

fn main() {
    hatchery::program().flavor(Flavor::CurrentThread).run(async || {
        let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
        let wanted = |what: &str| only.is_empty() || only.iter().any(|only| what.starts_with(only));
        if wanted("ask") {
            siblings(Effort::of_args(3000)).await?;
        }
        if wanted("first") {
            strangers(Effort::of_args(STRANGERS)).await?;
        }
        if wanted("resolve") {
            resolves(Effort::of_args(100 * MANY)).await?;
        }
        if wanted("memory") {
            memory(Effort::of_args(MORE)).await?;
        }
        Ok::<_, hatchery::Error>(())
    })
}

/// Workers end here on purpose.
fn often_restarted() -> Supervisor {
    Supervisor::new(Strategy::OneForOne).intensity(10_000, Duration::from_secs(60))
}

async fn ask(other: &NodeHandle) -> hatchery::Result<Duration> {
    let begun = Instant::now();
    let bytes = other.echo(vec![7; PAYLOAD]).await?;
    let took = begun.elapsed();
    assert_eq!(bytes.len(), PAYLOAD);
    Ok(took)
}

async fn measure(other: &NodeHandle, samples: usize) -> hatchery::Result<Vec<Duration>> {
    for _ in 0..WARM_UP {
        ask(other).await?;
    }
    let mut took = Vec::with_capacity(samples);
    for _ in 0..samples {
        took.push(ask(other).await?);
    }
    Ok(took)
}

async fn by_hand(peer: &mut Peer, samples: usize) -> hatchery::Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(samples);
    for n in 0..WARM_UP + samples {
        let begun = Instant::now();
        let bytes = peer.ask(Payload::from(vec![7; PAYLOAD])).await?;
        if n >= WARM_UP {
            took.push(begun.elapsed());
        }
        assert_eq!(bytes.len(), PAYLOAD);
    }
    Ok(took)
}

/// Where both ends run, and what is measured of it.
struct Case {
    cpus: [Vec<usize>; 2],
    beside_bare: Vec<Row>,
    beside_root: Vec<Row>,
    spent: Vec<Row>,
}

impl Case {
    fn new([root, siblings]: [&'static str; 2], cpus: [&[usize]; 2], target: Target) -> Case {
        const OTHERS: [&str; 3] = ["  the same from a task", "  a worker its own", "  a worker the root's"];
        let rows = |names: &[&'static str], target| names.iter().map(|name| Row::new(name, target)).collect();
        Case {
            cpus: cpus.map(<[usize]>::to_vec),
            beside_bare: rows(&[&[root, siblings], &OTHERS[..]].concat(), Target::None),
            beside_root: rows(&[&[siblings], &OTHERS[..]].concat(), target),
            spent: rows(&[root, siblings], Target::None),
        }
    }
}

/// An ask between two siblings, beside one from the root to a worker.
async fn siblings(effort: Effort) -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let a = tree.start_child(worker::<Node>("a", ())).await?;
    let b = tree.start_child(worker::<Node>("b", ())).await?;
    let here = tree.start_child(local::<Node>("here", ())).await?;
    let below = a.nest("below".to_owned()).await?;
    let mut peer = Peer::spawn(RULER)?;
    // The first answer says that all threads are there to be pinned.
    peer.ask(Payload::from_static(&[7; PAYLOAD])).await?;
    for other in [&b, &below, &here] {
        a.asks(other.clone(), 1).await?;
    }
    ask(&b).await?;
    let pid = |node: &NodeHandle| node.pid().ok_or(hatchery::Error::msg("a worker has ended"));
    // This process learns of the one below by asking it.
    ask(&below).await?;
    let (pid_a, pid_b, pid_below) = (pid(&a)?, pid(&b)?, pid(&below)?);
    let pid_peer = peer.pid().unwrap_or_default();

    let all = cpus()?;
    let (first, last) = (&all[..1], &all[all.len() - 1..]);
    let same = Target::Times(1.1);
    let mut cases = vec![Case::new(["one CPU: root a worker", "one CPU: siblings"], [first, first], same)];
    if first != last {
        cases.push(Case::new(["two CPUs: root a worker", "two CPUs: siblings"], [first, last], same));
        // On one of them or on both, as the scheduler likes: that is most of what one sees there.
        let names = ["anywhere: root a worker", "anywhere: siblings"];
        cases.push(Case::new(names, [&all, &all], Target::None));
    }
    for _ in 0..effort.rounds {
        for Case { cpus: [from, to], beside_bare, beside_root, spent: cpu } in &mut cases {
            for (pid, cpus) in [(id(), &*from), (pid_a, from), (pid_peer, to), (pid_b, to), (pid_below, to)] {
                pin(pid, cpus)?;
            }
            let both = |pids: [u32; 2]| std::io::Result::Ok(spent(pids[0])? + spent(pids[1])?);
            let over = (effort.samples + WARM_UP) as u32;

            let pids = [id(), pid_peer];
            let begun = both(pids)?;
            let ruler = by_hand(&mut peer, effort.samples).await?;
            let ruler_spent = (both(pids)? - begun) / over;

            let pids = [id(), pid_b];
            let begun = both(pids)?;
            let root = measure(&b, effort.samples).await?;
            cpu[0].subject.round(vec![(both(pids)? - begun) / over]);

            let pids = [pid_a, pid_b];
            let begun = both(pids)?;
            let sibling = a.asks(b.clone(), effort.samples).await?;
            cpu[1].subject.round(vec![(both(pids)? - begun) / over]);

            let beside = a.asks_beside(b.clone(), effort.samples).await?;
            let child = a.asks(below.clone(), effort.samples).await?;
            pin(id(), to)?;
            let rooted = a.asks(here.clone(), effort.samples).await?;

            cpu.iter_mut().for_each(|row| row.ruler.round(vec![ruler_spent]));
            for (row, took) in beside_bare.iter_mut().zip([&root, &sibling, &beside, &child, &rooted]) {
                row.ruler.round(ruler.clone());
                row.subject.round(took.clone());
            }
            for (row, took) in beside_root.iter_mut().zip([sibling, beside, child, rooted]) {
                row.ruler.round(root.clone());
                row.subject.round(took);
            }
        }
    }
    pin(id(), &all)?;
    let (mut beside_bare, mut beside_root, mut spent) = (Vec::new(), Vec::new(), Vec::new());
    for case in cases {
        beside_bare.extend(case.beside_bare);
        beside_root.extend(case.beside_root);
        spent.extend(case.spent);
    }
    print("who asks whom: round trip, 64 bytes each way, one in flight", effort, &beside_bare);
    print("the same (the ruler: what the root takes to ask a worker)", effort, &beside_root);
    print("CPU time of both ends an ask, mean of a round", effort, &spent);
    peer.end().await?;
    tree.stop().await
}

/// Where workers are started: in the root, or at the end of a branch of workers.
struct Branch<'a> {
    tree: &'a Tree,
    last: Option<NodeHandle>,
}

impl Branch<'_> {
    /// One on which workers are so many levels below the root.
    async fn new<'a>(tree: &'a Tree, name: &str, level: usize) -> hatchery::Result<Branch<'a>> {
        let mut branch = Branch { tree, last: None };
        for above in 1..level {
            branch.last = Some(branch.start(format!("{name}-{level}-{above}")).await?);
        }
        Ok(branch)
    }

    async fn start(&self, name: String) -> hatchery::Result<NodeHandle> {
        match &self.last {
            Some(last) => Ok(last.nest(name).await?),
            None => Ok(self.tree.start_child(worker::<Node>(name, ())).await?),
        }
    }
}

/// The first ask to somebody: where he sits is asked for, a channel is opened, and he answers.
async fn strangers(effort: Effort) -> hatchery::Result<()> {
    let tree = often_restarted().start().await?;
    // On each level somebody who asks, and those he asks, on two branches: nothing but the root is above both.
    let mut levels = Vec::new();
    for level in 1..=LEVELS {
        let asks = Branch::new(&tree, "asks", level).await?.start(format!("asker-{level}")).await?;
        let asked = Branch::new(&tree, "asked", level).await?;
        let mut strangers = Vec::new();
        for n in 0..STRANGERS {
            let stranger = asked.start(format!("stranger-{level}-{n}")).await?;
            ask(&stranger).await?;
            strangers.push(stranger);
        }
        levels.push((asks, strangers));
    }
    let mut peer = Peer::start(RULER, Job::Listen)?;
    peer.ask(Payload::from_static(&[7; PAYLOAD])).await?;
    let pid = peer.pid().unwrap_or_default();

    let names = ["one level down", "two levels", "three levels"];
    let mut first = names.map(|name| Row::new(name, Target::None));
    let mut second = names.map(|name| Row::new(name, Target::None));
    for _ in 0..effort.rounds {
        let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
        for _ in 0..STRANGERS {
            let begun = Instant::now();
            let mut socket = connect(pid)?;
            round_trip(&mut socket).await?;
            firsts.push(begun.elapsed());
            let begun = Instant::now();
            round_trip(&mut socket).await?;
            seconds.push(begun.elapsed());
        }
        for ((asker, strangers), (first, second)) in levels.iter().zip(first.iter_mut().zip(&mut second)) {
            let took = asker.first_asks(strangers.clone()).await?;
            first.ruler.round(firsts.clone());
            second.ruler.round(seconds.clone());
            first.subject.round(took.iter().map(|[first, _]| *first).collect());
            second.subject.round(took.iter().map(|[_, second]| *second).collect());
            // The next one knows nobody.
            asker.stop().await?;
        }
    }
    print("the first ask to a stranger (the ruler: to one that listens)", effort, &first);
    print("the second one", effort, &second);
    peer.end().await?;
    tree.stop().await
}

async fn round_trip(socket: &mut Socket) -> std::io::Result<()> {
    socket.send(Payload::from(vec![7; PAYLOAD])).await?;
    assert_eq!(socket.recv().await?.map(|bytes| bytes.len()), Some(PAYLOAD));
    Ok(())
}

/// How often one root can say where somebody sits.
async fn resolves(effort: Effort) -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let (mut nodes, mut peers) = (Vec::new(), Vec::new());
    for n in 0..MANY {
        nodes.push(tree.start_child(worker::<Node>(format!("node-{n}"), ())).await?);
        let mut peer = Peer::spawn(RULER)?;
        peer.ask(Payload::from_static(&[7; PAYLOAD])).await?;
        peers.push(peer);
    }
    let others = |n: usize| -> Vec<String> {
        (1..=NEIGHBOURS).map(|next| nodes[(n + next) % MANY].path().to_owned()).collect()
    };
    let each = effort.samples / MANY;
    let mut rows = ["all: where he sits", "  CPU of the root", "  and an ask to him", "alone: where he sits"]
        .map(|name| Row::new(name, Target::None));
    for round in 0..=effort.rounds {
        let (before, begun) = (spent(id())?, Instant::now());
        peers = all(peers.into_iter().map(|mut peer| async move {
            for _ in 0..each {
                peer.ask(Payload::from(vec![7; PAYLOAD])).await?;
            }
            Ok(peer)
        }))
        .await?;
        let (ruler, ruler_spent) = (begun.elapsed(), spent(id())? - before);

        let (before, begun) = (spent(id())?, Instant::now());
        let asked = nodes.iter().enumerate().map(|(n, node)| (node.clone(), others(n)));
        all(asked.map(|(node, paths)| async move { Ok(node.resolve(paths, each).await?) })).await?;
        let (resolved, resolved_spent) = (begun.elapsed(), spent(id())? - before);

        let begun = Instant::now();
        let asked = nodes.iter().enumerate().map(|(n, node)| (node.clone(), others(n)));
        all(asked.map(|(node, paths)| async move { Ok(node.look_up_and_ask(paths, each).await?) })).await?;
        let answered = begun.elapsed();

        let begun = Instant::now();
        for _ in 0..effort.samples / 10 {
            peers[0].ask(Payload::from(vec![7; PAYLOAD])).await?;
        }
        let ruler_alone = begun.elapsed();
        let begun = Instant::now();
        nodes[0].resolve(others(0), effort.samples / 10).await?;
        let alone = begun.elapsed();
        // The first round warms up.
        if round > 0 {
            let (all, few) = ((each * MANY) as u32, (effort.samples / 10) as u32);
            let took = [
                (ruler, resolved, all),
                (ruler_spent, resolved_spent, all),
                (ruler, answered, all),
                (ruler_alone, alone, few),
            ];
            for (row, (ruler, subject, over)) in rows.iter_mut().zip(took) {
                row.ruler.round(vec![ruler / over]);
                row.subject.round(vec![subject / over]);
            }
        }
    }
    print(&format!("{MANY} workers of one root look each other up: time for each"), effort, &rows);
    for peer in peers {
        peer.end().await?;
    }
    tree.stop().await
}

/// All of them at the same time, and what they give in their order.
async fn all<T: Send + 'static>(
    futures: impl Iterator<Item = impl Future<Output = hatchery::Result<T>> + Send + 'static>,
) -> hatchery::Result<Vec<T>> {
    let tasks: Vec<_> = futures.map(tokio::spawn).collect();
    let mut gave = Vec::with_capacity(tasks.len());
    for task in tasks {
        gave.push(task.await??);
    }
    Ok(gave)
}

/// What an idle channel takes at both its ends.
async fn memory(effort: Effort) -> hatchery::Result<()> {
    let tree = often_restarted().start().await?;
    let hub = tree.start_child(worker::<Node>("hub", ())).await?;
    let mut nodes = Vec::new();
    for n in 0..KIN + MORE {
        nodes.push(tree.start_child(worker::<Node>(format!("node-{n}"), ())).await?);
    }
    let (kin, more) = nodes.split_at(KIN);
    let mut opened = Row::new("in who opened it", Target::None);
    let mut accepted = Row::new("in who was asked", Target::None);
    for _ in 0..effort.rounds {
        // A young one each time: memory that was used once is not given back.
        let bare = Bytes(hub.of_bare_sockets().await?);
        hub.stop().await?;

        let before = hub.know(kin.to_vec()).await?;
        let after = hub.know(more.to_vec()).await?;
        opened.ruler.round(vec![bare]);
        opened.subject.round(vec![Bytes(after.saturating_sub(before) / MORE as u64)]);
        hub.stop().await?;

        for node in kin {
            node.know(vec![hub.clone()]).await?;
        }
        let before = hub.own().await?;
        for node in more {
            node.know(vec![hub.clone()]).await?;
        }
        let after = hub.own().await?;
        accepted.ruler.round(vec![bare]);
        accepted.subject.round(vec![Bytes(after.saturating_sub(before) / MORE as u64)]);
        hub.stop().await?;
    }
    print("private memory of an idle channel between two workers", effort, &[opened, accepted]);
    tree.stop().await
}

/// What this process has to itself.
fn own() -> hatchery::Result<u64> {
    Ok(Footprint::of(id())?.private.0)
}

/// So many bare sockets, with a task at each end that waits; they end with what is given.
async fn bare(count: usize) -> std::io::Result<tokio::task::JoinSet<std::io::Result<()>>> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (mut one, mut other) = UnixStream::pair()?;
        one.write_u8(7).await?;
        assert_eq!(other.read_u8().await?, 7);
        for mut end in [one, other] {
            tasks.spawn(async move { end.read_exact(&mut [0; 64]).await.map(drop) });
        }
    }
    Ok(tasks)
}
