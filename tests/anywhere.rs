//! Handles that travel: any process of a tree reaches any actor of it, and knows how it ended.

mod elsewhere;

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use hatchery::CallError;
use hatchery::prelude::*;
use hatchery_tests::{ends, send};
use rustix::process::Signal;

/// An actor that does what it is asked to with the handles it is given.
struct Peer {
    name: String,
    known: Vec<PeerHandle>,
    tree: Option<Tree>,
    told: u64,
}

#[hatchery::actor]
impl Peer {
    fn start(name: String) -> Self {
        Peer { name, known: Vec::new(), tree: None, told: 0 }
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn note(&mut self, n: u64) {
        self.told += n;
    }

    /// Its name is that of a file.
    fn note_in_its_file(&self) {
        let file = std::fs::File::options().append(true).create(true).open(&self.name);
        std::io::Write::write_all(&mut file.expect("a file"), b"x").expect("room for it");
    }

    fn told(&self) -> u64 {
        self.told
    }

    fn abort(&self) {
        std::process::abort()
    }

    fn know(&mut self, other: PeerHandle) {
        self.known.push(other);
    }

    /// Asks that one for its name.
    async fn name_of(&self, other: PeerHandle) -> Result<String, String> {
        other.name().await.map_err(|error| format!("{error:?}"))
    }

    /// Asks the one it knows.
    async fn known_name(&self) -> Result<String, String> {
        self.known[0].name().await.map_err(|error| error.to_string())
    }

    async fn kill_by_request(&self, other: PeerHandle) -> Result<Option<i32>, String> {
        let error: CallError = other.abort().await.err().ok_or("it lives")?;
        error.exit().map(|exit| exit.exitcode()).ok_or(error.to_string())
    }

    async fn tell(&self, other: PeerHandle, times: u64) -> Result<(), String> {
        for _ in 0..times {
            other.note(1).tell().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn look_up(&self, path: String) -> Result<String, String> {
        let other = hatchery::lookup::<Peer>(&path).map_err(|error| error.to_string())?;
        other.name().await.map_err(|error| error.to_string())
    }

    /// Writes to the latest channel of this worker what no worker would.
    fn misbehave(&self, bytes: Vec<u8>) {
        hatchery_tests::send_raw(hatchery_tests::own_channel(), &bytes, &[]);
    }

    async fn write_name_of(&self, path: String, file: String) {
        let name = looked_up(&path).await;
        std::fs::write(file, name.unwrap_or_else(|error| error)).expect("a file");
    }

    /// Starts another one in a worker of its own.
    async fn nest(&mut self, name: String) -> Result<PeerHandle, String> {
        let said = |error: hatchery::Error| error.to_string();
        if self.tree.is_none() {
            let tree = Supervisor::new(Strategy::OneForOne).name("inner").start().await;
            self.tree = Some(tree.map_err(|error| said(error.into()))?);
        }
        let tree = self.tree.as_ref().ok_or("no tree")?;
        let child = tree.start_child(worker::<Peer>(name.clone(), name)).await;
        child.map_err(|error| said(error.into()))
    }

    fn me(&self, cx: &Context) -> PeerHandle {
        cx.me()
    }
}

async fn tree(name: &str) -> Tree {
    Supervisor::new(Strategy::OneForOne).name(name).start().await.unwrap()
}

async fn peer(tree: &Tree, name: &str) -> PeerHandle {
    tree.start_child(worker::<Peer>(name, name.to_owned())).await.unwrap()
}

/// Asks until the answer is this one.
async fn says<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, mut ask: impl AsyncFnMut() -> T) {
    ends(what, async {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        while ask().await != expected {
            ticks.tick().await;
        }
    })
    .await;
}

#[hatchery::test]
async fn siblings_reach_each_other_by_handles_they_are_given() {
    let tree = tree("siblings").await;
    let (a, b) = (peer(&tree, "a").await, peer(&tree, "b").await);
    assert_eq!(a.name_of(b.clone()).await.unwrap(), "b");
    assert_eq!(b.name_of(a.clone()).await.unwrap(), "a");
    a.tell(b.clone(), 1000).await.unwrap();
    says("the tells", 1000, async || b.told().await.unwrap()).await;
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_handle_works_wherever_its_actor_is() {
    let tree = tree("wherever").await;
    let a = peer(&tree, "a").await;
    let here = tree.start_child(local::<Peer>("here", "here".to_owned())).await.unwrap();
    // In the parent of the one who asks, and back.
    assert_eq!(a.name_of(here.clone()).await.unwrap(), "here");
    assert_eq!(here.name_of(a.clone()).await.unwrap(), "a");
    // A child of it, one of that, and any two of them.
    let b = a.nest("b".to_owned()).await.unwrap();
    let c = b.nest("c".to_owned()).await.unwrap();
    let all = [&here, &a, &b, &c];
    for asked in all {
        for whom in all.iter().filter(|whom| whom.path() != asked.path()) {
            let name = whom.path().rsplit('/').next().unwrap();
            assert_eq!(asked.name_of((*whom).clone()).await.unwrap(), name, "{asked:?} asks {whom:?}");
            assert_eq!(asked.look_up(whom.path().to_owned()).await.unwrap(), name);
        }
    }
    // Cousins: below two workers that are beside each other.
    let beside = peer(&tree, "beside").await;
    let cousin = beside.nest("cousin".to_owned()).await.unwrap();
    assert_eq!(b.name_of(cousin.clone()).await.unwrap(), "cousin");
    assert_eq!(cousin.name_of(c.clone()).await.unwrap(), "c");
    // The reference that an actor has to itself is one to its seat when it travels.
    assert_eq!(a.name_of(c.me().await.unwrap()).await.unwrap(), "c");
    assert_eq!(c.path(), "/wherever/a/inner/b/inner/c");
    assert_ne!(c.pid().await.unwrap(), b.pid().await.unwrap());
    assert_eq!(c.incarnation(), Some(1));
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn what_is_not_there_is_told_at_once() {
    let tree = tree("absent").await;
    let a = peer(&tree, "a").await;
    tree.start_child(worker::<Other>("other", ())).await.unwrap();
    for (path, why) in [
        ("/absent/nobody", "nobody is called /absent/nobody"),
        ("/elsewhere/a", "nobody is called /elsewhere/a"),
        ("/absent/a/inner/nobody", "nobody is called /absent/a/inner/nobody"),
        ("/absent/other", "was taken for a"),
        ("absent/a", "is no path of an actor"),
        ("/absent//a", "is no path of an actor"),
    ] {
        let from_there = a.look_up(path.to_owned()).await.unwrap_err().to_string();
        for asked in [from_there, looked_up(path).await.unwrap_err()] {
            assert!(asked.contains(why), "{path}: {asked}");
        }
    }
    tree.stop().await.unwrap();
}

async fn looked_up(path: &str) -> Result<String, String> {
    let other = hatchery::lookup::<Peer>(path).map_err(|error| error.to_string())?;
    other.name().await.map_err(|error| error.to_string())
}

/// Of another kind than the others.
struct Other;

#[hatchery::actor]
impl Other {
    fn start() -> Self {
        Other
    }
}

#[hatchery::test]
async fn who_asked_from_elsewhere_learns_how_it_ended_and_finds_the_next_one() {
    let tree = tree("ends").await;
    let (a, b) = (peer(&tree, "a").await, peer(&tree, "b").await);
    assert_eq!(a.kill_by_request(b.clone()).await.unwrap(), Some(-6));
    assert_eq!(a.name_of(b.clone()).await.unwrap(), "b");
    a.know(b.clone()).await.unwrap();
    for _ in 0..5 {
        let pid = AnyHandle::pid(&b).unwrap();
        send(pid, Signal::KILL);
        // Perhaps before its end is known: then that is what it is told.
        says("the next one", Some("b".to_owned()), async || a.known_name().await.ok()).await;
        assert_ne!(b.pid().await.unwrap(), pid);
    }
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn the_end_of_a_worker_in_between_ends_what_is_below_and_a_named_seat_is_found_again() {
    let tree = tree("middle").await;
    let far = peer(&tree, "far").await;
    let middle = tree.start_child(worker::<Middle>("middle", ())).await.unwrap();
    let below = middle.below().await.unwrap();
    assert_eq!(far.name_of(below.clone()).await.unwrap(), "below");
    far.know(below.clone()).await.unwrap();
    let pids = (below.pid().await.unwrap(), middle.pid().unwrap());
    send(pids.1, Signal::KILL);
    hatchery_tests::becomes_true("the subtree is gone", || !hatchery_tests::runs(pids.0)).await;
    says("the next one below", Some("below".to_owned()), async || far.known_name().await.ok()).await;
    says("the next one from here", true, async || below.pid().await.is_ok_and(|pid| pid != pids.0)).await;
    tree.stop().await.unwrap();
}

/// Has a worker of its own from the start.
struct Middle {
    below: PeerHandle,
    _tree: Tree,
}

#[hatchery::actor]
impl Middle {
    async fn start() -> hatchery::Result<Self> {
        let tree = Supervisor::new(Strategy::OneForOne).name("inner").start().await?;
        let below = tree.start_child(worker::<Peer>("below", "below".to_owned())).await?;
        Ok(Middle { below, _tree: tree })
    }

    fn below(&self) -> PeerHandle {
        self.below.clone()
    }
}

/// Asks many others.
struct Crowd {
    others: Vec<PeerHandle>,
}

#[hatchery::actor]
impl Crowd {
    fn start(others: Vec<PeerHandle>) -> Self {
        Crowd { others }
    }

    /// Each of them once, and how many sockets this process had open at most.
    async fn ask_all(&self) -> Result<(usize, usize), String> {
        let (mut named, mut most) = (0, 0);
        for other in &self.others {
            other.name().await.map_err(|error| error.to_string())?;
            named += 1;
            most = most.max(hatchery_tests::open_sockets().len());
        }
        Ok((named, most))
    }

    fn forget_all(&mut self) {
        self.others.clear();
    }

    fn sockets(&self) -> usize {
        hatchery_tests::open_sockets().len()
    }
}

#[hatchery::test]
async fn idle_channels_are_closed_when_there_are_many_and_opened_again() {
    let tree = tree("idle").await;
    let mut others = Vec::new();
    for n in 0..30 {
        others.push(peer(&tree, &format!("peer-{n}")).await);
    }
    // An eighth of these may be channels.
    let crowd = worker::<Crowd>("crowd", others.clone()).open_files_limit(100);
    let crowd = tree.start_child(crowd).await.unwrap();
    let alone = crowd.sockets().await.unwrap();
    for _ in 0..3 {
        let (named, most) = crowd.ask_all().await.unwrap();
        assert_eq!(named, 30);
        // One may be on its way out while the next one opens.
        assert!(most <= alone + 12 + 2, "{alone} of its own, {most} at most");
    }
    // Those of nobody are closed by themselves.
    crowd.forget_all().await.unwrap();
    says("all closed", alone, async || crowd.sockets().await.unwrap()).await;
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_worker_without_descriptors_is_reached_when_it_has_some_again() {
    let tree = tree("full").await;
    let full = tree.start_child(worker::<Full>("full", ()).open_files_limit(60)).await.unwrap();
    let a = peer(&tree, "a").await;
    let asks = tree.start_child(worker::<Asks>("asks", (full.clone(), a.clone()))).await.unwrap();
    full.fill().await.unwrap();
    // No channel reaches it: what asks it waits, within its deadline, and nobody is harmed.
    assert!(asks.held().timeout(Duration::from_millis(300)).await.unwrap_err().is_timeout());
    // It can reach nobody either, and answers all the same.
    assert!(full.ask(a.clone()).timeout(Duration::from_millis(300)).await.is_err());
    full.free().await.unwrap();
    assert_eq!(asks.held().await.unwrap(), 0);
    assert_eq!(full.ask(a.clone()).await.unwrap(), "a");
    assert_eq!((full.incarnation(), asks.incarnation()), (Some(1), Some(1)));
    tree.stop().await.unwrap();
}

/// Uses up its descriptors.
struct Full {
    held: Vec<std::fs::File>,
}

#[hatchery::actor]
impl Full {
    fn start() -> Self {
        Full { held: Vec::new() }
    }

    fn fill(&mut self) {
        self.held.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()));
    }

    fn free(&mut self) {
        self.held.clear();
    }

    fn held(&self) -> usize {
        self.held.len()
    }

    async fn ask(&self, other: PeerHandle) -> Result<String, String> {
        let name = other.name().timeout(Duration::from_millis(200)).await;
        name.map_err(|error| error.to_string())
    }
}

struct Asks(FullHandle, PeerHandle);

#[hatchery::actor]
impl Asks {
    fn start(full: FullHandle, other: PeerHandle) -> Self {
        Asks(full, other)
    }

    async fn held(&self) -> Result<usize, String> {
        self.1.name().await.map_err(|error| error.to_string())?;
        self.0.held().await.map_err(|error| error.to_string())
    }
}

/// Two tests of one binary are two runs of one process, side by side unless there is but one thread for them: each
/// has a seat of the same path.
async fn one_of_two(own: &str, others: &str) {
    let tree = tree("twins").await;
    let a = peer(&tree, own).await;
    for _ in 0..100 {
        assert_eq!(looked_up(&format!("/twins/{own}")).await.unwrap(), own);
        let path = format!("/twins/{others}");
        assert!(looked_up(&path).await.unwrap_err().contains("nobody is called"));
        assert!(a.look_up(path).await.unwrap_err().to_string().contains("nobody is called"));
    }
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn two_runs_of_one_process_do_not_see_each_other() {
    one_of_two("a", "b").await;
}

#[hatchery::test]
async fn nor_does_the_other() {
    one_of_two("b", "a").await;
}

#[hatchery::test]
async fn a_handle_is_plain_data_and_means_nothing_in_another_run() {
    let tree = tree("stored").await;
    let a = peer(&tree, "a").await;
    let stored = serde_json::to_value(&a).unwrap();
    let known: PeerHandle = serde_json::from_value(stored.clone()).unwrap();
    assert_eq!(known.name().await.unwrap(), "a");
    let mistaken = serde_json::from_value::<CrowdHandle>(stored.clone()).unwrap_err();
    assert!(mistaken.to_string().contains("was taken for a anywhere::Crowd"), "{mistaken}");

    let mut foreign = stored.clone();
    foreign["tree"] = 7.into();
    let foreign: PeerHandle = serde_json::from_value(foreign).unwrap();
    let error = foreign.name().await.unwrap_err();
    assert!(error.is_closed() && error.to_string().contains("another run"), "{error}");

    // Of one incarnation, also where it is read again.
    let pinned = serde_json::to_value(a.pinned().unwrap()).unwrap();
    let b = peer(&tree, "b").await;
    let read: PeerHandle = serde_json::from_value(pinned.clone()).unwrap();
    assert_eq!(read.name().await.unwrap(), "a");
    assert_eq!(b.name_of(read.clone()).await.unwrap(), "a");
    a.kill();
    hatchery_tests::becomes_true("the next one", || a.incarnation() == Some(2)).await;
    for late in [read, serde_json::from_value(pinned).unwrap()] {
        let error = late.name().await.unwrap_err();
        assert!(error.is_crash() && !error.maybe_executed(), "{error}");
        assert!(b.name_of(late).await.unwrap_err().to_string().contains("SIGKILL"), "{error}");
    }
    assert_eq!(a.name().await.unwrap(), "a");
    tree.stop().await.unwrap();
}

/// One of many that ask each other.
struct Member {
    ring: Vec<MemberHandle>,
    storm: Arc<Storm>,
}

#[derive(Default)]
struct Storm {
    calm: AtomicBool,
    begun: AtomicU64,
    ended: AtomicU64,
    /// Errors that nobody should get.
    wrong: Mutex<Vec<String>>,
}

#[hatchery::actor]
impl Member {
    fn start(size: u64) -> hatchery::Result<Self> {
        // By name, and looked for only when they are asked.
        let ring = (0..size).map(|n| hatchery::lookup::<Member>(&format!("/mesh/{n}")));
        Ok(Member { ring: ring.collect::<Result<_, _>>()?, storm: Default::default() })
    }

    fn echo(&self, n: u64) -> (u64, u32) {
        (n, std::process::id())
    }

    fn forget_all(&mut self) {
        self.ring.clear();
    }

    fn number_of_sockets(&self) -> usize {
        hatchery_tests::open_sockets().len()
    }

    /// Each of the others once. Answered from a task: whoever is asked meanwhile asks back.
    fn ask_all(&self, reply: Reply<Result<BTreeSet<u32>, String>>, cx: &Context) {
        let ring = self.ring.clone();
        cx.spawn(async move {
            let mut pids = BTreeSet::new();
            for (n, other) in ring.iter().enumerate() {
                match other.echo(n as u64).await {
                    Ok((same, pid)) if same == n as u64 => drop(pids.insert(pid)),
                    other => return drop(reply.send(Err(format!("{other:?}")))),
                }
            }
            let _ = reply.send(Ok(pids));
        });
    }

    /// Asks all of them again and again, each one question at a time.
    fn storm(&self, cx: &Context) {
        for other in self.ring.clone() {
            let storm = self.storm.clone();
            cx.spawn(async move {
                while !storm.calm.load(Ordering::Relaxed) {
                    let n = storm.begun.fetch_add(1, Ordering::Relaxed);
                    let answer = other.echo(n).await;
                    storm.ended.fetch_add(1, Ordering::Relaxed);
                    match answer {
                        Ok((same, _)) if same == n => {}
                        Err(error) if error.is_crash() => {}
                        wrong => storm.wrong.lock().unwrap().push(format!("{wrong:?}")),
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
    }

    fn calm(&self) -> (u64, u64, Vec<String>) {
        let Storm { calm, begun, ended, wrong } = &*self.storm;
        calm.store(true, Ordering::Relaxed);
        let ended = ended.load(Ordering::Relaxed);
        (begun.load(Ordering::Relaxed), ended, wrong.lock().unwrap().clone())
    }
}

async fn mesh(size: u64) -> (Tree, Vec<MemberHandle>) {
    let tree = Supervisor::new(Strategy::OneForOne)
        .name("mesh")
        .intensity(1_000_000, Duration::from_secs(1))
        .backoff(Duration::ZERO, Duration::ZERO);
    let tree = tree.start().await.unwrap();
    let starts = (0..size).map(|n| tree.start_child(worker::<Member>(n.to_string(), size)));
    let members = futures(starts).await.into_iter().map(Result::unwrap).collect();
    (tree, members)
}

/// All of them at the same time.
async fn futures<T>(all: impl Iterator<Item: Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    poll_fn(|cx| {
        for (one, done) in all.iter_mut().filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(value) = one.as_mut().poll(cx) {
                *done = Some(value);
            }
        }
        if all.iter().all(|(_, done)| done.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|(_, done)| done).collect()
}

/// Everybody reaches everybody, each in a process of his own.
async fn all_reach_all(members: &[MemberHandle]) {
    let asked = futures(members.iter().map(|member| async { member.ask_all().await })).await;
    for pids in asked {
        assert_eq!(pids.unwrap().len(), members.len());
    }
}

#[hatchery::test]
async fn fifty_workers_each_ask_all_the_others() {
    let (tree, members) = mesh(50).await;
    let sockets = async || {
        let sockets = members.iter().map(|member| async { member.number_of_sockets().await.unwrap() });
        futures(sockets).await
    };
    let before = sockets().await;
    ends("all reach all", all_reach_all(&members)).await;
    let with_all = sockets().await;
    for (before, with_all) in before.iter().zip(&with_all) {
        // One to each of the others, and one from each of them.
        assert_eq!(with_all - before, 2 * 49);
    }
    // Without handles the channels are nobody's, and are closed.
    ends(
        "all forget all",
        futures(members.iter().map(|member| async { member.forget_all().await.unwrap() })),
    )
    .await;
    says("all are closed again", before, sockets).await;
    tree.stop().await.unwrap();
}

/// For how long, in seconds: 5 unless told otherwise.
const STORM: &str = "HATCHERY_STORM_SECONDS";

#[hatchery::test]
async fn under_random_kills_every_ask_ends_once_and_whoever_is_back_is_reached() {
    let seconds = std::env::var(STORM).ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(5);
    let (tree, members) = mesh(20).await;
    let mut dice = hatchery_tests::Dice::new(11);
    for member in &members {
        member.storm().await.unwrap();
    }
    let begun = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let mut kills = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        ticks.tick().await;
        let member = &members[dice.throw(members.len() as u64) as usize];
        if member.is_alive() {
            // By its parent, who knows whether its number is still its own.
            member.kill();
            kills += 1;
            // Whoever comes next joins in.
            let member = member.clone();
            tokio::spawn(async move {
                while member.storm().await.is_err() {
                    tokio::task::yield_now().await;
                }
            });
        }
    }
    println!("{kills} kills");
    for member in &members {
        says("all its asks have ended", true, async || {
            let Ok((begun, ended, wrong)) = member.calm().await else { return false };
            assert!(wrong.is_empty(), "{wrong:?}");
            begun == ended
        })
        .await;
    }
    ends("all reach all", all_reach_all(&members)).await;
    tree.stop().await.unwrap();
}

/// What one process can do with the actor of another that it did not start.
struct Governor {
    subject: PeerHandle,
    downs: Arc<Mutex<Vec<String>>>,
}

#[hatchery::actor]
impl Governor {
    fn start(subject: PeerHandle, cx: &Context) -> Self {
        let downs = Arc::<Mutex<Vec<String>>>::default();
        let (mut monitor, noted) = (subject.monitor().downs(), downs.clone());
        cx.spawn(async move {
            while let Some(down) = monitor.next().await {
                noted.lock().unwrap().push(down.to_string());
            }
            noted.lock().unwrap().push("no more".to_owned());
        });
        Governor { subject, downs }
    }

    async fn known(&self) -> (Option<u64>, Option<u32>) {
        // An answer means that he has been found.
        let _ = self.subject.name().await;
        (self.subject.incarnation(), AnyHandle::pid(&self.subject))
    }

    fn kill(&self) {
        self.subject.kill();
    }

    async fn stop_it(&self) -> Result<(), String> {
        self.subject.stop().await.map_err(|error| error.to_string())
    }

    /// What was told from here by then is handled first, also if it is suspended.
    async fn tell_and_drain(&self, times: u64) -> Result<(), String> {
        self.subject.suspend().await.map_err(|error| error.to_string())?;
        for _ in 0..times {
            self.subject.note_in_its_file().tell().await.map_err(|error| error.to_string())?;
        }
        self.subject.stop_with(hatchery::Stop::Drain).await.map_err(|error| error.to_string())
    }

    async fn suspend_and_ask(&self) -> Result<bool, String> {
        self.subject.suspend().await.map_err(|error| error.to_string())?;
        let late = self.subject.name().timeout(Duration::from_millis(100)).await;
        self.subject.resume().map_err(|error| error.to_string())?;
        self.subject.name().await.map_err(|error| error.to_string())?;
        Ok(late.is_err_and(|error| error.is_timeout()))
    }

    async fn pause_and_ask(&self) -> Result<bool, String> {
        self.subject.pause().map_err(|error| error.to_string())?;
        let late = loop {
            // The signal takes hold a moment later.
            if let Err(error) = self.subject.name().timeout(Duration::from_millis(100)).await {
                break error;
            }
        };
        self.subject.resume().map_err(|error| error.to_string())?;
        self.subject.name().await.map_err(|error| error.to_string())?;
        Ok(late.is_timeout())
    }

    fn downs(&self) -> Vec<String> {
        self.downs.lock().unwrap().clone()
    }
}

#[hatchery::test]
async fn an_actor_elsewhere_that_drains_handles_what_it_was_sent_from_there() {
    let tree = tree("drained").await;
    let dir = tempfile::tempdir().unwrap();
    for (n, window) in (0..10).zip([256, 256, 100].into_iter().cycle()) {
        let file = dir.path().join(n.to_string()).display().to_string();
        let subject = worker::<Peer>(format!("subject-{n}"), file.clone()).restart(Restart::Temporary);
        let subject = tree.start_child(subject.window(window)).await.unwrap();
        let governor = worker::<Governor>(format!("governor-{n}"), subject.clone());
        let governor = tree.start_child(governor).await.unwrap();
        assert_eq!(governor.known().await.unwrap().0, Some(1));
        ends("drained", governor.tell_and_drain(100)).await.unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap().len(), 100);
    }
    // Whoever has no channel to it has its parent tell it, behind what that one has sent.
    let file = dir.path().join("by its parent").display().to_string();
    let subject = worker::<Peer>("subject", file.clone()).on_stop(hatchery::Stop::Drain);
    let subject = tree.start_child(subject.restart(Restart::Temporary)).await.unwrap();
    let governor = tree.start_child(worker::<Governor>("governor", subject.clone())).await.unwrap();
    for _ in 0..100 {
        subject.note_in_its_file().tell().await.unwrap();
    }
    ends("drained", governor.stop_it()).await.unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap().len(), 100);
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn an_actor_elsewhere_is_stopped_killed_suspended_paused_and_monitored() {
    let tree = tree("governed").await;
    let subject = peer(&tree, "subject").await;
    let governor = tree.start_child(worker::<Governor>("governor", subject.clone())).await.unwrap();
    assert_eq!(governor.known().await.unwrap(), (Some(1), AnyHandle::pid(&subject)));
    assert!(governor.suspend_and_ask().await.unwrap());
    assert!(governor.pause_and_ask().await.unwrap());
    governor.kill().await.unwrap();
    says("it knows the second", Some(2), async || governor.known().await.unwrap().0).await;
    governor.stop_it().await.unwrap();
    says("it knows the third", Some(3), async || governor.known().await.unwrap().0).await;
    let downs = governor.downs().await.unwrap();
    assert_eq!(downs.len(), 2, "{downs:?}");
    assert!(downs[0].contains("(incarnation 1): killed by SIGKILL"), "{downs:?}");
    assert!(downs[1].contains("(incarnation 2): exited with code 0"), "{downs:?}");
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_stream_comes_from_anywhere_and_ends_with_who_made_it() {
    let tree = tree("streams").await;
    let source = tree.start_child(worker::<Source>("source", ())).await.unwrap();
    let drain = tree.start_child(worker::<Drain>("drain", source.clone())).await.unwrap();
    assert_eq!(drain.sum(10_000).await.unwrap(), (0..10_000).sum::<u64>());
    let (taken, error) = drain.until_it_is_killed().await.unwrap();
    assert!(taken >= 10 && error.contains("SIGKILL"), "{taken}: {error}");
    assert_eq!(drain.sum(10).await.unwrap(), 45);
    tree.stop().await.unwrap();
}

struct Source;

#[hatchery::actor]
impl Source {
    fn start() -> Self {
        Source
    }

    fn numbers(&self, up_to: u64) -> impl hatchery::Stream<Item = u64> + use<> {
        Numbers(0..up_to)
    }
}

struct Numbers(std::ops::Range<u64>);

impl hatchery::Stream for Numbers {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Option<u64>> {
        Poll::Ready(self.0.next())
    }
}

struct Drain(SourceHandle);

#[hatchery::actor]
impl Drain {
    fn start(source: SourceHandle) -> Self {
        Drain(source)
    }

    async fn sum(&self, up_to: u64) -> Result<u64, String> {
        let (mut items, mut sum) = (self.0.numbers(up_to), 0);
        while let Some(item) = items.next().await {
            sum += item.map_err(|error| error.to_string())?;
        }
        Ok(sum)
    }

    async fn until_it_is_killed(&self) -> (u64, String) {
        let (mut items, mut taken) = (self.0.numbers(u64::MAX), 0);
        loop {
            match items.next().await {
                Some(Ok(_)) => taken += 1,
                Some(Err(error)) => return (taken, error.to_string()),
                None => return (taken, "it ended".to_owned()),
            }
            if taken == 10 {
                self.0.kill();
            }
        }
    }
}

#[hatchery::test]
async fn siblings_find_each_other_while_their_parent_is_busy_elsewhere() {
    let tree = tree("busy").await;
    let (a, b) = (peer(&tree, "a").await, peer(&tree, "b").await);
    let (dir, path) = (tempfile::tempdir().unwrap(), b.path().to_owned());
    let file = dir.path().join("said").to_str().unwrap().to_owned();
    a.write_name_of(path, file.clone()).tell().await.unwrap();
    // It has left; from here on this thread, which is all this run has, does nothing for them.
    tokio::task::yield_now().await;
    hatchery_tests::eventually("the name is written", || {
        std::fs::read_to_string(&file).is_ok_and(|said| said == "b")
    });
    tree.stop().await.unwrap();
}

/// A frame of a channel as bytes.
fn frame(kind: u8, target: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).expect("a small body");
    let content = [&[0x99, kind, 0, 0, 0, target, 0xc0, 0xc0, 0xc0, 0xc4, length], body].concat();
    [&u32::try_from(content.len()).expect("a small frame").to_be_bytes(), &content[..]].concat()
}

#[hatchery::test]
async fn what_breaks_the_protocol_of_a_channel_between_siblings_ends_that_channel_alone() {
    const ASK: u8 = 1;
    const BIND: u8 = 11;
    const UNBIND: u8 = 12;
    #[derive(serde::Serialize)]
    struct Binding {
        path: String,
        actor: String,
        tenure: Tenure,
    }
    #[derive(serde::Serialize)]
    struct Tenure {
        seat: u64,
        incarnation: u64,
    }
    let tree = tree("rogues").await;
    let victim = peer(&tree, "victim").await;
    let other = peer(&tree, "other").await;
    assert_eq!(other.name_of(victim.clone()).await.unwrap(), "victim");
    let rogue = peer(&tree, "rogue").await;
    let encode = |path: &str, actor: &str| {
        let tenure = Tenure { seat: 7, incarnation: 1 };
        let binding = Binding { path: path.to_owned(), actor: actor.to_owned(), tenure };
        hatchery::__private::encode(&binding).unwrap().to_bytes().to_vec()
    };
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        frame(99, 1, &[]),
        frame(ASK, 77, &[]),
        frame(BIND, 77, &[0xdb, 0xff, 0xff, 0xff, 0xff]),
        frame(UNBIND, 77, &[]),
        frame(0, 1, &[]),
        // Somebody who is not there, who is somewhere else, who is another, who has a forged number.
        frame(BIND, 78, &encode("/rogues/nobody", "anywhere::Peer")),
        frame(BIND, 79, &encode("/rogues/other", "anywhere::Peer")),
        frame(BIND, 80, &encode("/rogues/victim", "anywhere::Crowd")),
        frame(BIND, 81, &encode("/rogues/victim", "anywhere::Peer")),
        frame(BIND, 82, &encode("../../etc/passwd", "")),
    ] {
        // A channel of its own each time.
        assert_eq!(rogue.name_of(victim.clone()).await.unwrap(), "victim");
        rogue.misbehave(bytes.clone()).await.unwrap();
        says("reached again", Some("victim".to_owned()), async || rogue.name_of(victim.clone()).await.ok())
            .await;
        assert_eq!(other.name_of(victim.clone()).await.unwrap(), "victim", "{bytes:?}");
        assert_eq!(
            (victim.incarnation(), other.incarnation(), rogue.incarnation()),
            (Some(1), Some(1), Some(1))
        );
    }
    tree.stop().await.unwrap();
}

/// One of a ring of workers.
struct Link {
    next: LinkHandle,
    gate: GateHandle,
}

#[hatchery::actor]
impl Link {
    fn start(next: String, gate: GateHandle) -> hatchery::Result<Self> {
        Ok(Link { next: hatchery::lookup::<Link>(&next)?, gate })
    }

    /// Asks on for so many hops, and waits for what comes back. An error says whether it was a circle.
    async fn around(&self, hops: u64) -> Result<u64, (bool, bool, String)> {
        match hops {
            0 => Ok(0),
            _ => match self.next.around(hops - 1).await {
                Ok(hops) => Ok(hops + 1),
                Err(error) => Err(match error.handler_error() {
                    Some(below) => below.clone(),
                    None => (error.is_deadlock(), error.maybe_executed(), format!("{error:?}")),
                }),
            },
        }
    }

    /// Asks the next one when all are at it.
    async fn cross(&self) -> Result<u64, (bool, String)> {
        self.gate.pass().await.map_err(|error| (false, error.to_string()))?;
        self.next.around(0).await.map_err(|error| (error.is_deadlock(), format!("{error:?}")))
    }
}

/// Lets them pass when there are enough.
struct Gate {
    enough: usize,
    waiting: Vec<Reply<()>>,
}

#[hatchery::actor]
impl Gate {
    fn start(enough: usize) -> Self {
        Gate { enough, waiting: Vec::new() }
    }

    fn pass(&mut self, reply: Reply<()>) {
        self.waiting.push(reply);
        if self.waiting.len() == self.enough {
            self.waiting.drain(..).for_each(|reply| {
                let _ = reply.send(());
            });
        }
    }
}

async fn ring(size: usize) -> (Tree, Vec<LinkHandle>) {
    let tree = tree(&format!("ring-of-{size}")).await;
    let gate = tree.start_child(local::<Gate>("gate", size)).await.unwrap();
    let starts = (0..size).map(|n| {
        let next = format!("/ring-of-{size}/{}", (n + 1) % size);
        tree.start_child(worker::<Link>(n.to_string(), (next, gate.clone())))
    });
    let links = futures(starts).await.into_iter().map(Result::unwrap).collect();
    (tree, links)
}

#[hatchery::test]
async fn who_asks_back_around_a_ring_of_workers_is_told_at_once_who_would_wait() {
    for size in 2..=8 {
        let (tree, links) = ring(size).await;
        let size = size as u64;
        assert_eq!(links[0].around(size - 1).await.unwrap(), size - 1);
        let error = links[0].around(size).await.unwrap_err();
        let (is_deadlock, maybe_executed, words) = error.handler_error().unwrap();
        assert!(*is_deadlock && !maybe_executed, "{words}");
        for n in 0..size {
            assert!(words.contains(&format!("/ring-of-{size}/{n}")), "{words}");
        }
        assert_eq!(links[0].around(size - 1).await.unwrap(), size - 1, "nobody is harmed");
        tree.stop().await.unwrap();
    }
}

#[hatchery::test]
async fn of_a_ring_of_workers_that_wait_for_one_another_one_is_told_and_the_others_are_answered() {
    for size in 2..=8 {
        let (tree, links) = ring(size).await;
        let crossed =
            ends("the crossing", futures(links.iter().map(|link| async { link.cross().await }))).await;
        let errors: Vec<_> = crossed.iter().filter_map(|crossed| crossed.as_ref().err()).collect();
        assert_eq!(errors.len(), 1, "{crossed:?}");
        let (is_deadlock, words) = errors[0].handler_error().unwrap();
        assert!(*is_deadlock, "{words}");
        for n in 0..size {
            assert!(words.contains(&format!("/ring-of-{size}/{n}")), "{words}");
        }
        assert_eq!(links[0].around(size as u64 - 1).await.unwrap(), size as u64 - 1);
        tree.stop().await.unwrap();
    }
}
