//! Handlers that do not get on, in real processes. What is decided in detail is tested beside its code, in virtual time.

use std::path::{Path, PathBuf};

use hatchery::ChildSpec;
use hatchery::prelude::*;
use hatchery_tests::{becomes_true, ends, send, state};
use rustix::process::Signal;

/// Works, or does not get on.
struct Slow {
    later: Vec<Reply<()>>,
}

#[hatchery::actor]
impl Slow {
    fn start() -> Self {
        Slow { later: Vec::new() }
    }

    async fn waits(&self, begun: PathBuf) {
        std::fs::write(begun, "").expect("a file");
        std::future::pending().await
    }

    fn blocks(&self, begun: PathBuf) {
        std::fs::write(begun, "").expect("a file");
        loop {
            std::thread::park();
        }
    }

    /// Waits until a file is there.
    async fn waits_for(&self, begun: PathBuf, file: PathBuf) {
        std::fs::write(begun, "").expect("a file");
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        while !file.exists() {
            ticks.tick().await;
        }
    }

    fn later(&mut self, reply: Reply<()>) {
        self.later.push(reply);
    }

    async fn nap(&self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn spawns(&self, cx: &Context) {
        cx.spawn(std::future::pending());
    }

    fn is_there(&self) {}

    fn items(&self) -> impl hatchery::Stream<Item = u64> + use<> {
        Never
    }
}

struct Never;

impl hatchery::Stream for Never {
    type Item = u64;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<u64>> {
        std::task::Poll::Pending
    }
}

/// A second on a machine of which the test may not have all.
const LIMIT: Duration = Duration::from_secs(1);
const HEARTBEAT: Heartbeat = Heartbeat::every(Duration::from_millis(100)).misses(100);
const REASON: &str = "no progress for 1s: one handler has run since";

fn watched(name: &str) -> ChildSpec<impl hatchery::Start<Handle = SlowHandle> + use<>> {
    worker::<Slow>(name, ()).heartbeat(HEARTBEAT).watchdog(LIMIT)
}

async fn tree() -> Tree {
    let supervisor = Supervisor::new(Strategy::OneForOne).intensity(100, Duration::from_secs(60));
    supervisor.backoff(Duration::ZERO, Duration::ZERO).start().await.unwrap()
}

async fn appears(file: &Path) {
    becomes_true("it has begun", || file.exists()).await;
}

#[hatchery::test]
async fn a_handler_that_waits_or_blocks_for_longer_than_its_watchdog_says_ends_its_worker() {
    let dir = tempfile::tempdir().unwrap();
    let (waits, blocks) = (dir.path().join("waits"), dir.path().join("blocks"));
    let tree = tree().await;
    let waiting = tree.start_child(watched("waiting")).await.unwrap();
    let blocking = tree.start_child(watched("blocking")).await.unwrap();
    // Without one nobody looks.
    let unwatched = worker::<Slow>("unwatched", ()).heartbeat(HEARTBEAT);
    let unwatched = tree.start_child(unwatched).await.unwrap();
    let hangs = dir.path().join("hangs");
    let hanging = tokio::spawn(unwatched.waits(hangs.clone()).without_deadline());
    appears(&hangs).await;
    let stuck = [
        tokio::spawn(waiting.waits(waits.clone()).without_deadline()),
        tokio::spawn(blocking.blocks(blocks.clone()).without_deadline()),
    ];
    appears(&waits).await;
    appears(&blocks).await;
    // Who waits behind it goes with it.
    let behind = tokio::spawn(waiting.is_there());
    tokio::task::yield_now().await;
    let [waits, blocks] = stuck;
    for stuck in [waits, blocks, behind] {
        let error = ends("the stuck handler", stuck).await.unwrap().unwrap_err();
        assert!(error.is_crash() && error.maybe_executed(), "{error}");
        let exit = error.exit().unwrap();
        assert_eq!((exit.reason(), exit.signal()), (Some(REASON), Some(9)));
    }
    for actor in [waiting, blocking] {
        ends("the next one", actor.is_there()).await.unwrap();
        assert_eq!(actor.incarnation(), Some(2));
    }
    assert!(!hanging.is_finished() && unwatched.incarnation() == Some(1));
    unwatched.kill();
    assert!(ends("its end", hanging).await.unwrap().unwrap_err().is_crash());
}

#[hatchery::test]
async fn a_watched_worker_that_is_idle_or_busy_with_many_or_with_what_is_no_handler_lives() {
    let tree = tree().await;
    let (busy, idle) =
        (tree.start_child(watched("busy")).await.unwrap(), tree.start_child(watched("idle")).await.unwrap());
    let later = tokio::spawn(idle.later().without_deadline());
    let mut items = idle.items();
    let stream = tokio::spawn(async move { items.next().await.is_some() });
    idle.spawns().await.unwrap();
    // For three times as long as one of them might take, and with more than a window of them in line.
    let naps: Vec<_> = (0..300).map(|_| tokio::spawn(busy.nap(10).without_deadline())).collect();
    for nap in naps {
        ends("a nap", nap).await.unwrap().unwrap();
    }
    ends("an answer", idle.is_there()).await.unwrap();
    assert_eq!((busy.incarnation(), idle.incarnation()), (Some(1), Some(1)));
    assert!(!later.is_finished() && !stream.is_finished());
}

/// Waits until this worker's supervisor has taken it for stuck, whoever else does what meanwhile.
async fn is_stuck(asked: tokio::task::JoinHandle<Result<(), hatchery::CallError>>) {
    let error = ends("the stuck handler", asked).await.unwrap().unwrap_err();
    assert_eq!(error.exit().and_then(hatchery::Exit::reason), Some(REASON), "{error}");
}

#[hatchery::test]
async fn a_watched_worker_that_is_paused_or_suspended_or_stopped_from_outside_is_spared() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    // Another one measures: as long as that takes to be stuck from the beginning, all these are spared.
    let ruler = tree.start_child(watched("ruler")).await.unwrap();
    let mut spared = Vec::new();
    for name in ["paused", "suspended", "stopped"] {
        let (begun, go) = (dir.path().join(name), dir.path().join(format!("{name} may go on")));
        let actor = tree.start_child(watched(name)).await.unwrap();
        let asked = tokio::spawn(actor.waits_for(begun.clone(), go.clone()).without_deadline());
        appears(&begun).await;
        spared.push((actor, asked, go));
    }
    spared[0].0.pause().unwrap();
    ends("suspend", spared[1].0.suspend()).await.unwrap();
    let stopped = spared[2].0.pid().unwrap();
    send(stopped, Signal::STOP);
    becomes_true("it is stopped", || state(stopped) == Some('T')).await;
    for round in 0..2 {
        let begun = dir.path().join(format!("ruler {round}"));
        let asked = tokio::spawn(ruler.waits(begun).without_deadline());
        is_stuck(asked).await;
    }
    spared.iter().for_each(|(.., go)| std::fs::write(go, "").unwrap());
    send(stopped, Signal::CONT);
    for (n, (actor, asked, _)) in spared.into_iter().enumerate() {
        actor.resume().unwrap();
        ends("who was spared", asked).await.unwrap().unwrap_or_else(|error| panic!("{n}: {error}"));
        assert_eq!(actor.incarnation(), Some(1));
    }
}

#[hatchery::test]
async fn what_a_watchdog_contradicts_is_told_before_anything_starts() {
    let tree = tree().await;
    let wrong = async |spec: ChildSpec<_>| tree.start_child(spec).await.map(drop).unwrap_err().to_string();
    let plain = || worker::<Slow>("wrong", ());
    let error = wrong(plain().watchdog(LIMIT).heartbeat(Heartbeat::off())).await;
    assert!(error.contains("a watchdog of 1s without a heartbeat"), "{error}");
    let error = wrong(plain().watchdog(LIMIT)).await;
    assert!(error.contains("at least two periods long"), "{error}");
    let error = wrong(plain().watchdog(Duration::ZERO)).await;
    assert!(error.contains("at least 20ms"), "{error}");
    // A local actor has no heartbeat that could be off.
    let near = local::<Slow>("near", ()).heartbeat(Heartbeat::off()).watchdog(LIMIT);
    let near = tree.start_child(near).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    is_stuck(tokio::spawn(near.waits(dir.path().join("near")).without_deadline())).await;
    ends("the next one", near.is_there()).await.unwrap();
    assert_eq!(near.incarnation(), Some(2));
}
