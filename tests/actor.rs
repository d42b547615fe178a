//! Actors in worker processes and in this one: calls, deaths, restarts, and peers that break the protocol.

mod circles;
mod descriptors;
mod ends;
mod once;
mod seats;
mod streams;

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use hatchery::prelude::*;
use hatchery::{CallError, ChildSpec, Spin};
use hatchery_tests::{BOUND, Dice, becomes_true, ends, own_channel, runs, send, stands_still, state};
use rustix::process::Signal;

struct Worker {
    seen: Vec<u64>,
    stop_file: Option<String>,
}

#[hatchery::actor]
impl Worker {
    async fn start(stop_file: Option<String>) -> Self {
        Worker { seen: Vec::new(), stop_file }
    }

    async fn note(&mut self, n: u64) -> usize {
        self.seen.push(n);
        self.seen.len()
    }

    fn note_later(&mut self, n: u64, reply: Reply<usize>, cx: &Context) {
        self.seen.push(n);
        let seen = self.seen.len();
        cx.spawn(async move {
            tokio::task::yield_now().await;
            let _ = reply.send(seen);
        });
    }

    /// The same, by a message of several frames.
    fn note_large(&mut self, n: u64, _: Vec<u8>) -> usize {
        self.seen.push(n);
        self.seen.len()
    }

    fn seen(&self) -> Vec<u64> {
        self.seen.clone()
    }

    fn checked(&mut self, n: i64) -> Result<u64, String> {
        u64::try_from(n).map_err(|_| format!("{n} is negative"))
    }

    fn echo(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }

    /// A number and a body, some of which take several writes; the handler may take a while, too.
    async fn repeats(&self, number: u64, bytes: Vec<u8>, yields: u32) -> (u64, Vec<u8>) {
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        (number, bytes)
    }

    fn panics(&mut self, why: String) {
        panic!("because of {why}")
    }

    fn aborts(&mut self) {
        std::process::abort()
    }

    fn exits(&mut self, code: i32) {
        eprintln!("last words");
        std::process::exit(code)
    }

    /// Blocks the only thread of the runtime, and with it the whole actor.
    fn blocks(&mut self) {
        loop {
            std::thread::park()
        }
    }

    fn blocks_and_says_so(&mut self, begun: String) {
        std::fs::write(begun, "").expect("a file");
        self.blocks()
    }

    async fn hangs(&mut self, begun: String) {
        std::fs::write(begun, "").expect("a file");
        std::future::pending().await
    }

    /// Blocks until a file is there.
    fn waits_for(&mut self, begun: String, file: String) {
        std::fs::write(begun, "").expect("a file");
        hatchery_tests::eventually("it may go on", || std::path::Path::new(&file).exists());
    }

    /// Leaves nothing of its processor to anybody else in this process.
    fn spins(&mut self, milliseconds: u64) {
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(milliseconds) {
            std::hint::spin_loop();
        }
    }

    /// Runs until its caller leaves; says so in a file.
    async fn watches_its_caller(&mut self, begun: String, left: String, cx: &Context) {
        std::fs::write(begun, "").expect("a file");
        cx.cancelled().await;
        std::fs::write(left, "").expect("a file");
    }

    fn ignores_sigterm_and_blocks(&mut self, begun: String) {
        ignore_sigterm();
        std::fs::write(begun, "").expect("a file");
        loop {
            std::thread::park()
        }
    }

    /// Answers, and is killed as soon as the answer has been written.
    fn answers_and_dies(&mut self) -> u64 {
        let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        std::thread::spawn(move || {
            // The actor's thread is awake now. It writes the answer when this handler has returned, and goes to sleep
            // in its poll only after that.
            while !asleep_in_poll(own) {
                std::hint::spin_loop();
            }
            send(std::process::id(), Signal::KILL);
        });
        42
    }

    fn stops(&mut self, cx: &Context) {
        cx.stop();
    }

    /// Writes something to its own channel, between its messages.
    fn says_nonsense(&mut self, nonsense: Nonsense) {
        let bytes: Vec<u8> = match nonsense {
            Nonsense::Garbage => vec![0, 0, 0, 3, 0xc1, 0xc1, 0xc1],
            Nonsense::Oversized => vec![0xff; 64],
            Nonsense::HalfFrame | Nonsense::HalfFrameAndDeath => vec![0, 0, 1, 0, 0x99, 3],
        };
        rustix::net::send(own_channel(), &bytes, rustix::net::SendFlags::empty()).expect("room for it");
        match nonsense {
            Nonsense::HalfFrameAndDeath => send(std::process::id(), Signal::KILL),
            Nonsense::HalfFrame => {
                rustix::net::shutdown(own_channel(), rustix::net::Shutdown::Write).expect("it is open");
            }
            _ => {}
        }
    }

    async fn stopped(&mut self) {
        if let Some(file) = &self.stop_file {
            std::fs::write(file, "in order").expect("a file");
        }
    }
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Nonsense {
    Garbage,
    Oversized,
    HalfFrame,
    HalfFrameAndDeath,
}

/// A shell with `trap ''` cannot change its parent, so this asks the runtime: a signal that tokio listens to no
/// longer ends the process, and nobody reads what it heard.
fn ignore_sigterm() {
    let runtime = tokio::runtime::Handle::current();
    let _inside = runtime.enter();
    let kind = tokio::signal::unix::SignalKind::terminate();
    std::mem::forget(tokio::signal::unix::signal(kind).expect("signals can be heard"));
}

/// Whether a thread of this process waits in `epoll_wait`.
fn asleep_in_poll(thread: u32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap_or_default();
    // 232 and 281 are epoll_wait and epoll_pwait on x86_64, 22 is epoll_pwait on aarch64.
    ["232 ", "281 ", "22 "].iter().any(|number| call.starts_with(number))
}

async fn tree() -> Tree {
    Supervisor::new(Strategy::OneForOne)
        .intensity(100, Duration::from_secs(60))
        .backoff(Duration::ZERO, Duration::ZERO)
        .start()
        .await
        .unwrap()
}

fn plain(name: &str) -> ChildSpec<impl hatchery::Start<Handle = WorkerHandle> + use<>> {
    worker::<Worker>(name, None)
}

#[hatchery::test]
async fn asks_tells_and_errors_of_an_actor_in_a_worker_and_in_this_process() {
    let tree = tree().await;
    let far = tree.start_child(plain("far")).await.unwrap();
    let near = tree.start_child(local::<Worker>("near", None)).await.unwrap();
    assert_ne!(far.pid(), Some(std::process::id()));
    assert_eq!(near.pid(), Some(std::process::id()));
    for actor in [far, near] {
        assert_eq!(ends("ask", actor.note(7)).await.unwrap(), 1);
        actor.note(8).tell().await.unwrap();
        assert_eq!(ends("ask", actor.seen()).await.unwrap(), [7, 8]);
        assert_eq!(ends("ask", actor.checked(3)).await.unwrap(), 3);
        let error = ends("ask", actor.checked(-3)).await.unwrap_err();
        assert_eq!(error.handler_error().unwrap(), "-3 is negative");
        assert!(!error.is_crash() && error.maybe_executed());
        assert_eq!(actor.incarnation(), Some(1));
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| n as u8).collect();
        assert_eq!(ends("ask", actor.echo(bytes.clone())).await.unwrap(), bytes);
    }
}

/// Promise "order": first in, first out from one handle to one incarnation, large messages included, asks and tells.
#[hatchery::test]
async fn messages_of_one_handle_arrive_in_the_order_of_their_first_poll() {
    let tree = tree().await;
    let actor = tree.start_child(plain("order")).await.unwrap();
    let mut asks = Vec::new();
    for n in 0..5_000 {
        let ask = match n % 100 {
            50 | 51 => actor.note_large(n, vec![1; 1_000_000]),
            _ => actor.note(n),
        };
        if n % 3 == 0 {
            ask.tell().await.unwrap();
            continue;
        }
        // Not awaited in turn: it only takes its place.
        let mut ask = Box::pin(ask);
        let once = std::future::poll_fn(|cx| Poll::Ready(ask.as_mut().poll(cx))).await;
        assert!(once.is_pending());
        asks.push((n, ask));
    }
    for (n, ask) in asks {
        assert_eq!(ends("ask", ask).await.unwrap() as u64, n + 1);
    }
    let seen = ends("ask", actor.seen()).await.unwrap();
    assert!(seen.iter().copied().eq(0..5_000), "{} of 5000 in order", seen.len());
}

/// Promise "worker killed in mid-request", and the answer to "what if the other side dies right here".
#[hatchery::test]
async fn a_worker_killed_in_mid_request_is_a_crash_with_its_signal_and_the_handle_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let begun = dir.path().join("begun");
    let tree = tree().await;
    let actor = tree.start_child(plain("victim")).await.unwrap();
    let pid = actor.pid().unwrap();
    let asking = tokio::spawn(actor.hangs(begun.display().to_string()));
    becomes_true("the handler runs", || begun.exists()).await;
    send(pid, Signal::KILL);
    let error: CallError = ends("the ask", asking).await.unwrap().unwrap_err();
    assert!(error.is_crash() && error.maybe_executed());
    assert_eq!(error.exit().unwrap().signal(), Some(9));
    assert_eq!(ends("ask", actor.note(1)).await.unwrap(), 1);
    assert_eq!(actor.incarnation(), Some(2));
    assert!(!runs(pid));
}

#[hatchery::test]
async fn asks_made_while_nobody_sits_there_reach_the_next_incarnation() {
    let tree = tree().await;
    let actor = tree.start_child(plain("seat")).await.unwrap();
    for round in 2..12 {
        assert!(ends("ask", actor.aborts()).await.unwrap_err().is_crash());
        let waiting: Vec<_> = (0..300).map(|n| tokio::spawn(actor.note(n))).collect();
        for waiting in waiting {
            ends("ask", waiting).await.unwrap().unwrap();
        }
        assert_eq!(actor.incarnation(), Some(round));
    }
}

#[hatchery::test]
async fn a_panic_in_a_handler_ends_the_worker_and_its_callers_learn_message_and_place() {
    let tree = tree().await;
    for actor in [
        tree.start_child(plain("far")).await.unwrap(),
        tree.start_child(local::<Worker>("near", None)).await.unwrap(),
    ] {
        let error = ends("ask", actor.panics("rain".to_owned())).await.unwrap_err();
        assert!(error.is_crash());
        let panic = error.exit().unwrap().panic().unwrap();
        assert_eq!(panic.message, "because of rain");
        assert!(panic.place.as_ref().unwrap().contains("actor.rs:"));
        assert_eq!(error.exit().unwrap().exitcode(), Some(101));
        assert_eq!(ends("ask", actor.note(1)).await.unwrap(), 1);
    }
}

#[hatchery::test]
async fn exit_inside_a_handler_is_a_crash_whatever_its_code() {
    let tree = tree().await;
    let actor = tree.start_child(plain("leaver")).await.unwrap();
    for code in [0, 7] {
        let error = ends("ask", actor.exits(code)).await.unwrap_err();
        assert!(error.is_crash());
        let exit = error.exit().unwrap();
        assert_eq!((exit.exitcode(), exit.stderr_tail()), (Some(code), &["last words".to_owned()][..]));
    }
}

/// Fault: killed right after its reply. The reply counts.
#[hatchery::test]
async fn an_answer_written_before_the_death_arrives() {
    let tree = tree().await;
    let actor = tree.start_child(plain("brave")).await.unwrap();
    for round in 1..=20 {
        assert_eq!(ends("ask", actor.answers_and_dies()).await.unwrap(), 42);
        becomes_true("the next one sits", || actor.incarnation() == Some(round + 1)).await;
    }
}

#[hatchery::test]
async fn a_deadline_answers_the_caller_of_a_worker_that_stands_still() {
    let tree = tree().await;
    let actor = tree.start_child(plain("still")).await.unwrap();
    let pid = actor.pid().unwrap();
    send(pid, Signal::STOP);
    becomes_true("it is stopped", || state(pid) == Some('T')).await;
    let error = ends("ask", actor.note(1).timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(error.is_timeout() && error.maybe_executed());
    // By the time this one has its answer, the withdrawal of the first has left.
    assert!(ends("ask", actor.seen().timeout(Duration::from_millis(50))).await.unwrap_err().is_timeout());
    send(pid, Signal::CONT);
    // Withdrawn before it started, so it never does.
    assert_eq!(ends("ask", actor.seen()).await.unwrap(), []);
}

/// Promise "stop": bounded, whatever the child does.
#[hatchery::test]
async fn a_stop_ends_what_stands_still_what_blocks_and_what_ignores_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let (begun, blocks) = (dir.path().join("begun"), dir.path().join("blocks"));
    let tree = tree().await;
    let quick = Shutdown::graceful(Duration::from_millis(50));
    let still = tree.start_child(plain("still").shutdown(quick)).await.unwrap();
    let blocked = tree.start_child(plain("blocked").shutdown(quick)).await.unwrap();
    let deaf = tree.start_child(plain("deaf").shutdown(quick)).await.unwrap();
    let pids = [still.pid().unwrap(), blocked.pid().unwrap(), deaf.pid().unwrap()];
    send(pids[0], Signal::STOP);
    let blocked = tokio::spawn(blocked.blocks_and_says_so(blocks.display().to_string()));
    let deaf = tokio::spawn(deaf.ignores_sigterm_and_blocks(begun.display().to_string()));
    becomes_true("both have begun", || begun.exists() && blocks.exists()).await;
    ends("stop", tree.stop()).await.unwrap();
    assert!(pids.iter().all(|pid| !runs(*pid)));
    assert_eq!(ends("ask", blocked).await.unwrap().unwrap_err().exit().unwrap().signal(), Some(15));
    assert_eq!(ends("ask", deaf).await.unwrap().unwrap_err().exit().unwrap().signal(), Some(9));
    assert!(ends("ask", still.note(1)).await.unwrap_err().is_closed());
}

#[hatchery::test]
async fn an_orderly_stop_runs_stopped_and_answers_the_rest_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stopped");
    let tree = tree().await;
    let spec = worker::<Worker>("orderly", Some(file.display().to_string()));
    let actor = tree.start_child(spec).await.unwrap();
    let (stops, late) = tokio::join!(actor.stops(), actor.note(1));
    stops.unwrap();
    // It may also have been the next incarnation's, if it left only then.
    if let Err(late) = late {
        assert!(late.is_stopping() && !late.maybe_executed(), "{late}");
    }
    becomes_true("`stopped` ran", || file.exists()).await;
    // Permanent: a clean end is followed by the next incarnation, too. An ask that is on its way when the old one
    // leaves ends with it.
    becomes_true("the next one sits", || actor.incarnation() == Some(2)).await;
    assert_eq!(ends("ask", actor.seen()).await.unwrap().len(), 0);
    std::fs::remove_file(&file).unwrap();
    ends("stop", actor.stop()).await.unwrap();
    assert!(file.exists());
    ends("stop", tree.stop()).await.unwrap();
    assert!(!actor.is_alive());
}

/// What an orderly stop leaves undone it says so: no caller has to wonder whether its request ran.
#[hatchery::test]
async fn an_orderly_stop_leaves_no_caller_in_doubt() {
    let tree = tree().await;
    let actor = tree.start_child(plain("orderly")).await.unwrap();
    for _ in 0..10 {
        let asking: Vec<_> = (0..300).map(|n| tokio::spawn(actor.note(n))).collect();
        tokio::task::yield_now().await;
        ends("stop", actor.stop()).await.unwrap();
        for ask in asking {
            if let Err(error) = ends("ask", ask).await.unwrap() {
                assert!(error.is_stopping() && !error.maybe_executed(), "{error}");
            }
        }
    }
}

/// Promise "worker hangs": as a whole, so that not even its warden answers.
#[hatchery::test]
async fn a_worker_stopped_from_outside_misses_its_heartbeat_and_is_started_again() {
    let tree = tree().await;
    let actor = tree.start_child(plain("silent").heartbeat(IMPATIENT)).await.unwrap();
    let pid = actor.pid().unwrap();
    send(pid, Signal::STOP);
    becomes_true("it is stopped", || state(pid) == Some('T')).await;
    let error = ends("ask", actor.note(1)).await.unwrap_err();
    assert!(error.is_crash(), "{error}");
    let exit = error.exit().unwrap();
    assert_eq!((exit.reason(), exit.signal()), (Some("no heartbeat for 1s"), Some(9)));
    assert_eq!(ends("ask", actor.note(2)).await.unwrap(), 1);
    assert_eq!((actor.incarnation(), runs(pid)), (Some(2), false));
}

/// Its actor answers nobody, but its warden does.
#[hatchery::test]
async fn a_handler_that_spins_or_blocks_misses_no_heartbeat() {
    let tree = tree().await;
    let spins = tree.start_child(plain("spins").heartbeat(IMPATIENT)).await.unwrap();
    let blocks = tree.start_child(plain("blocks").heartbeat(IMPATIENT)).await.unwrap();
    let blocked = tokio::spawn(blocks.blocks());
    ends("ask", spins.spins(3000)).await.unwrap();
    assert_eq!((spins.incarnation(), blocks.incarnation()), (Some(1), Some(1)));
    assert!(!blocked.is_finished());
    blocks.kill();
    assert!(ends("ask", blocked).await.unwrap().unwrap_err().is_crash());
}

fn suspends(actor: &WorkerHandle) -> tokio::task::JoinHandle<hatchery::Result<()>> {
    let actor = actor.clone();
    tokio::spawn(async move { actor.suspend().await })
}

/// Quick to lose patience, but not so quick that a busy machine makes it do so.
const IMPATIENT: Heartbeat = Heartbeat::every(Duration::from_millis(100)).misses(10);

#[hatchery::test]
async fn a_suspended_actor_finishes_its_message_and_begins_nothing_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    let far = tree.start_child(plain("far")).await.unwrap();
    // Its handler blocks, so it cannot do with the thread of this test.
    let near = tree.start_child(local::<Worker>("near", None)).await.unwrap();
    for (name, actor) in [("far", far), ("near", near)] {
        let path = |what: &str| dir.path().join(format!("{name}-{what}")).display().to_string();
        let (begun, go) = (path("begun"), path("go"));
        let running = (name == "far").then(|| tokio::spawn(actor.waits_for(begun.clone(), go.clone())));
        if running.is_some() {
            becomes_true("the handler runs", || std::path::Path::new(&begun).exists()).await;
        }
        assert!(!actor.is_paused());
        ends("suspend", actor.suspend()).await.unwrap();
        assert!(actor.is_paused());
        // One withdraws while nothing begins; the others wait, beyond the window, too.
        let error = ends("ask", actor.note(1000).timeout(Duration::from_millis(50))).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        let notes: Vec<_> = (0..300).map(|n| tokio::spawn(actor.note(n))).collect();
        std::fs::write(go, "").unwrap();
        if let Some(running) = running {
            ends("the message that ran", running).await.unwrap().unwrap();
        }
        let error = ends("ask", actor.seen().timeout(Duration::from_millis(100))).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert!(notes.iter().all(|note| !note.is_finished()));
        actor.resume().unwrap();
        assert!(!actor.is_paused());
        for note in notes {
            ends("ask", note).await.unwrap().unwrap();
        }
        assert!(ends("ask", actor.seen()).await.unwrap().into_iter().eq(0..300));
        assert_eq!(actor.incarnation(), Some(1));
    }
}

/// One after the other, and all at once: what holds is what was said last.
#[hatchery::test]
async fn suspending_and_resuming_again_and_again_leaves_nobody_waiting() {
    let tree = tree().await;
    let actor = tree.start_child(plain("dizzy")).await.unwrap();
    for n in 0..100 {
        let suspended = suspends(&actor);
        let note = tokio::spawn(actor.note(n));
        tokio::task::yield_now().await;
        actor.resume().unwrap();
        ends("suspend", suspended).await.unwrap().unwrap();
        ends("ask", note).await.unwrap().unwrap();
    }
    assert!(ends("ask", actor.seen()).await.unwrap().into_iter().eq(0..100));
}

#[hatchery::test]
async fn a_paused_worker_stands_still_for_longer_than_its_heartbeat_and_goes_on() {
    let tree = tree().await;
    let actor = tree.start_child(plain("paused").heartbeat(IMPATIENT)).await.unwrap();
    let pid = actor.pid().unwrap();
    actor.pause().unwrap();
    assert!(actor.is_paused());
    becomes_true("it is stopped", || state(pid) == Some('T')).await;
    let error = ends("ask", actor.note(1).timeout(Duration::from_secs(2))).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    // Asked for while it cannot hear, and heeded when it can.
    let suspended = suspends(&actor);
    tokio::task::yield_now().await;
    actor.resume().unwrap();
    assert!(!actor.is_paused());
    ends("suspend", suspended).await.unwrap().unwrap();
    assert_eq!(ends("ask", actor.note(2)).await.unwrap(), 1);
    assert_eq!((actor.pid(), actor.incarnation()), (Some(pid), Some(1)));
}

/// Promise "stop": the whole ladder works on what stands still because we want it to.
#[hatchery::test]
async fn what_is_paused_or_suspended_is_stopped_in_order_and_its_successor_is_neither() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    let file = |name: &str| Some(dir.path().join(name).display().to_string());
    let still = tree.start_child(worker::<Worker>("still", file("still"))).await.unwrap();
    let far = tree.start_child(worker::<Worker>("far", file("far"))).await.unwrap();
    let near = tree.start_child(local::<Worker>("near", file("near"))).await.unwrap();
    still.pause().unwrap();
    ends("suspend", far.suspend()).await.unwrap();
    ends("suspend", near.suspend()).await.unwrap();
    for (name, actor) in [("still", still), ("far", far), ("near", near)] {
        assert!(actor.is_paused(), "{name}");
        let waits = tokio::spawn(actor.note(1));
        tokio::task::yield_now().await;
        ends("stop", actor.stop()).await.unwrap();
        assert!(dir.path().join(name).exists(), "{name} stopped in order");
        if let Err(error) = ends("ask", waits).await.unwrap() {
            assert!(error.is_stopping() && !error.maybe_executed(), "{name}: {error}");
        }
        becomes_true("the next one sits", || actor.incarnation() == Some(2)).await;
        ends("ask", actor.note(2)).await.unwrap();
        assert!(!actor.is_paused(), "{name}");
    }
}

#[hatchery::test]
async fn a_suspended_or_paused_worker_that_is_killed_is_started_again_and_goes_on() {
    let tree = tree().await;
    let actor = tree.start_child(plain("victim")).await.unwrap();
    for (round, pause) in [(1, true), (2, false)] {
        if pause {
            pauses(&actor).await
        } else {
            ends("suspend", actor.suspend()).await.unwrap()
        }
        assert_eq!((actor.incarnation(), actor.is_paused()), (Some(round), true));
        let waits = tokio::spawn(actor.note(1));
        tokio::task::yield_now().await;
        actor.kill();
        assert!(ends("ask", waits).await.unwrap().unwrap_err().is_crash());
        assert_eq!(ends("ask", actor.note(2)).await.unwrap(), 1);
        assert!(!actor.is_paused());
    }
    // Who is asked to suspend and dies instead says so.
    pauses(&actor).await;
    let suspended = suspends(&actor);
    tokio::task::yield_now().await;
    actor.kill();
    assert!(ends("suspend", suspended).await.unwrap().unwrap_err().is_crash());
}

/// Pauses it, and waits until that has taken hold.
async fn pauses(actor: &WorkerHandle) {
    actor.pause().unwrap();
    let pid = actor.pid().unwrap();
    becomes_true("it stands still", || stands_still(pid)).await;
}

#[hatchery::test]
async fn what_can_not_be_paused_says_what_to_do_instead() {
    let tree = tree().await;
    let near = tree.start_child(local::<Worker>("near", None)).await.unwrap();
    let error = near.pause().unwrap_err();
    assert!(error.to_string().contains("use suspend() instead"), "{error}");
    near.resume().unwrap();
    assert!(!near.is_paused());
    ends("stop", tree.stop()).await.unwrap();
    assert!(near.pause().unwrap_err().is_closed());
    assert!(ends("suspend", near.suspend()).await.unwrap_err().is_closed());
    near.resume().unwrap();
}

/// Promise "caller gone".
#[hatchery::test]
async fn a_withdrawn_request_never_starts_and_a_running_one_is_told_but_not_torn() {
    let dir = tempfile::tempdir().unwrap();
    let (begun, left) = (dir.path().join("begun"), dir.path().join("left"));
    let tree = tree().await;
    let actor = tree.start_child(plain("watcher")).await.unwrap();
    let running =
        tokio::spawn(actor.watches_its_caller(begun.display().to_string(), left.display().to_string()));
    becomes_true("the handler runs", || begun.exists()).await;
    let waiting = tokio::spawn(actor.note(1));
    tokio::task::yield_now().await;
    waiting.abort();
    let _ = waiting.await;
    assert!(!left.exists());
    running.abort();
    becomes_true("the handler is told", || left.exists()).await;
    assert_eq!(ends("ask", actor.seen()).await.unwrap(), []);
}

/// Promise "malformed, oversized or too deep input": that peer ends with a named reason, nothing else is touched.
#[hatchery::test]
async fn a_worker_that_breaks_the_protocol_is_ended_with_a_reason() {
    let tree = tree().await;
    let rogue = tree.start_child(plain("rogue")).await.unwrap();
    let bystander = tree.start_child(plain("bystander")).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [begun, go] = ["begun", "go"].map(|name| dir.path().join(name));
    assert_eq!(ends("ask", bystander.note(0)).await.unwrap(), 1);
    // One is under way to it, and others wait behind that.
    let running = tokio::spawn(bystander.waits_for(begun.display().to_string(), go.display().to_string()));
    becomes_true("the handler runs", || begun.exists()).await;
    let waiting: Vec<_> = (1..10).map(|n| tokio::spawn(bystander.note(n))).collect();
    for (nonsense, reason) in [
        (Nonsense::Garbage, "broke the protocol of the channel"),
        (Nonsense::Oversized, "over the limit"),
        (Nonsense::HalfFrame, "closed its channel"),
    ] {
        let error = match ends("ask", rogue.says_nonsense(nonsense)).await {
            Err(error) => error,
            // Its answer was faster than its nonsense; the next ask meets the end.
            Ok(()) => ends("ask", rogue.blocks()).await.unwrap_err(),
        };
        let exit = error.exit().unwrap();
        assert!(exit.reason().unwrap().contains(reason), "{nonsense:?}: {exit}");
        assert_eq!(exit.signal(), Some(9));
    }
    let error = ends("ask", rogue.says_nonsense(Nonsense::HalfFrameAndDeath)).await.unwrap_err();
    assert_eq!(error.exit().unwrap().to_string(), "killed by SIGKILL (signal 9)");
    std::fs::write(go, "").unwrap();
    ends("what ran", running).await.unwrap().unwrap();
    for (n, waiting) in (2..).zip(waiting) {
        assert_eq!(ends("what waited", waiting).await.unwrap().unwrap(), n);
    }
    assert!(ends("ask", bystander.seen()).await.unwrap().into_iter().eq(0..10));
    assert_eq!(bystander.incarnation(), Some(1));
    assert_eq!(ends("ask", rogue.note(1)).await.unwrap(), 1);
}

struct SlowStart;

#[hatchery::actor]
impl SlowStart {
    async fn start(how: String) -> hatchery::Result<Self> {
        match how.as_str() {
            "fails" => Err(hatchery::Error::msg("no such luck")),
            "panics" => panic!("no luck at all"),
            "exits" => std::process::exit(9),
            "hangs" => std::future::pending().await,
            _ => Ok(SlowStart),
        }
    }
}

#[hatchery::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let tree = tree().await;
    let error = ends("start", tree.start_child(worker::<SlowStart>("a", "fails".into()))).await.unwrap_err();
    assert!(error.to_string().contains("no such luck"), "{error}");
    let error = ends("start", tree.start_child(worker::<SlowStart>("a", "panics".into()))).await.unwrap_err();
    assert!(error.to_string().contains("no luck at all"), "{error}");
    let error = ends("start", tree.start_child(worker::<SlowStart>("a", "exits".into()))).await.unwrap_err();
    assert_eq!(error.exit().unwrap().exitcode(), Some(9));
    let slow = worker::<SlowStart>("a", "hangs".into()).start_timeout(Duration::from_millis(100));
    let error = ends("start", tree.start_child(slow)).await.unwrap_err();
    assert!(error.to_string().contains("not ready within 100ms"), "{error}");
    assert!(error.is_timeout() && !error.is_crash());
    assert_eq!(tree.count().specs, 0);
    assert!(hatchery::active_children().is_empty());
    tree.start_child(worker::<SlowStart>("a", "works".into())).await.unwrap();
}

/// Fault: killed between hello and ready.
#[hatchery::test]
async fn a_worker_killed_between_hello_and_ready_is_an_error_of_the_start() {
    let tree = tree().await;
    let starting = tokio::spawn({
        let tree = tree.clone();
        async move { tree.start_child(worker::<SlowStart>("slow", "hangs".into())).await.map(drop) }
    });
    // It is listed from its hello on.
    becomes_true("it said hello", || !hatchery::active_children().is_empty()).await;
    send(hatchery::active_children()[0].pid(), Signal::KILL);
    let error = ends("start", starting).await.unwrap().unwrap_err();
    assert_eq!(error.exit().unwrap().signal(), Some(9));
}

#[hatchery::test]
async fn a_stop_during_a_slow_start_ends_that_start() {
    let tree = tree().await;
    let starting = tokio::spawn({
        let tree = tree.clone();
        async move { tree.start_child(worker::<SlowStart>("slow", "hangs".into())).await.map(drop) }
    });
    becomes_true("it said hello", || !hatchery::active_children().is_empty()).await;
    let pid = hatchery::active_children()[0].pid();
    ends("stop", tree.stop()).await.unwrap();
    // Not just killed: gone, and reaped.
    assert_eq!(state(pid), None);
    assert!(ends("start", starting).await.unwrap().is_err());
}

#[hatchery::test]
async fn too_many_restarts_end_the_tree_with_the_last_exit_in_words() {
    let tree = Supervisor::new(Strategy::OneForOne)
        .name("frail")
        .intensity(2, Duration::from_secs(60))
        .child(plain("bystander"))
        .child(plain("culprit"))
        .start()
        .await
        .unwrap();
    let culprit = tree.get::<Worker>("culprit").unwrap();
    let bystander = tree.get::<Worker>("bystander").unwrap();
    assert_eq!(culprit.path(), "/frail/culprit");
    for _ in 0..3 {
        assert!(ends("ask", culprit.aborts()).await.unwrap_err().is_crash());
    }
    let error = ends("ask", culprit.note(1)).await.unwrap_err();
    assert!(error.is_closed(), "{error}");
    let error = ends("stop", tree.stop()).await.unwrap_err();
    assert!(error.to_string().contains("more than 2 restarts"), "{error}");
    assert!(error.to_string().contains("SIGABRT"), "{error}");
    // Not in words alone.
    assert!(error.is_crash() && error.exit().unwrap().signal() == Some(6), "{error}");
    let error: Box<dyn std::error::Error> = error.into();
    assert!(error.source().unwrap().to_string().contains("SIGABRT"));
    assert!(!bystander.is_alive());
    assert!(ends("ask", bystander.note(1)).await.unwrap_err().is_closed());
}

#[hatchery::test]
async fn children_are_found_by_name_and_type() {
    let tree = tree().await;
    tree.start_child(plain("a")).await.unwrap();
    assert_eq!(ends("ask", tree.get::<Worker>("a").unwrap().note(1)).await.unwrap(), 1);
    let error = tree.get::<Worker>("b").unwrap_err();
    assert!(error.to_string().contains("its children are: a"), "{error}");
    assert!(tree.get::<SlowStart>("a").unwrap_err().to_string().contains("is a actor::Worker"));
    let error = tree.start_child(plain("a")).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("taken"), "{error}");
    assert_eq!((tree.count().specs, tree.count().active), (1, 1));
}

struct Cache<T>(Vec<T>);

#[hatchery::actor]
impl<T: serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static> Cache<T> {
    fn start(first: T) -> Self {
        Cache(vec![first])
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

#[hatchery::test]
async fn a_name_that_is_not_hosted_is_refused_before_anything_is_spawned() {
    let tree = tree().await;
    let error = tree.start_child(worker::<Cache<u32>>("cache", 1)).await.map(drop).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("is not hosted")
            && text.contains("Hosted are: actor::")
            && text.contains("actor::Cache<alloc::string::String>, ")
            && text.contains("actor::SlowStart, "),
        "{text}"
    );
    assert!(text.contains("hatchery::hosts!("), "{text}");
    let here = tree.start_child(local::<Cache<u32>>("cache", 1)).await.unwrap();
    assert_eq!(ends("ask", here.len()).await.unwrap(), 1);
}

hatchery::hosts!(Cache<String>);

#[hatchery::test]
async fn a_generic_actor_is_hosted_by_hand() {
    let tree = tree().await;
    let cache = tree.start_child(worker::<Cache<String>>("cache", "first".to_owned())).await.unwrap();
    assert_eq!(ends("ask", cache.len()).await.unwrap(), 1);
    assert_ne!(cache.pid(), Some(std::process::id()));
}

/// An answer has left before the next handler begins: that one may take the process with it, or all the time there is.
#[hatchery::test]
async fn an_answer_does_not_wait_for_the_next_handler() {
    let tree = tree().await;
    let actor = tree.start_child(plain("first")).await.unwrap();
    for round in 1..=20 {
        let (quick, crash, after) = tokio::join!(actor.note(1), actor.aborts(), actor.note(2));
        assert_eq!(ends("ask", async { quick }).await.unwrap(), 1);
        assert!(crash.unwrap_err().is_crash());
        assert!(after.unwrap_err().is_crash());
        becomes_true("the next one sits", || actor.incarnation() == Some(round + 1)).await;
    }
    let quick = tokio::spawn(actor.note(1));
    let blocked = tokio::spawn(actor.blocks());
    assert_eq!(ends("ask", quick).await.unwrap().unwrap(), 1);
    actor.kill();
    assert!(ends("ask", blocked).await.unwrap().unwrap_err().is_crash());
}

/// With a window of one, what kills the worker fails alone, and what waited in line goes on.
#[hatchery::test]
async fn a_window_of_one_makes_a_crash_cost_one_request() {
    let tree = tree().await;
    let actor = tree.start_child(plain("careful").window(1)).await.unwrap();
    let asking: Vec<_> = (0..50).map(|n| tokio::spawn(actor.note(n))).collect();
    let crash = tokio::spawn(actor.aborts());
    let later: Vec<_> = (0..50).map(|n| tokio::spawn(actor.note(n))).collect();
    for ask in asking.into_iter().chain(later) {
        ends("ask", ask).await.unwrap().unwrap();
    }
    assert!(ends("ask", crash).await.unwrap().unwrap_err().is_crash());
    for bad in [0, 257] {
        let error = tree.start_child(plain("bad").window(bad)).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("1 to 256"), "{error}");
    }
}

/// Promise "tell": backpressure, never an unbounded buffer.
#[hatchery::test]
async fn tells_to_a_busy_actor_wait_at_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let begun = dir.path().join("begun");
    let tree = tree().await;
    let actor = tree.start_child(plain("busy")).await.unwrap();
    let hanging = tokio::spawn(actor.hangs(begun.display().to_string()));
    becomes_true("the handler runs", || begun.exists()).await;
    let mut sent = 0;
    while let Ok(()) = actor.note(1).timeout(Duration::from_millis(100)).tell().await {
        sent += 1;
        assert!(sent < 256);
    }
    // The ask that runs has its place until it is answered.
    assert_eq!(sent, 255);
    hanging.abort();
}

/// A lock as one would write it by hand.
#[derive(Default)]
struct Lock {
    held: bool,
    waiting: VecDeque<Reply<u64>>,
    given: u64,
    given_back: u64,
}

#[hatchery::actor]
impl Lock {
    fn start() -> Self {
        Lock::default()
    }

    /// Answers with how many had the lock before.
    fn acquire(&mut self, reply: Reply<u64>) {
        self.waiting.push_back(reply);
        self.give();
    }

    fn release(&mut self) -> Result<(), String> {
        if !self.held {
            return Err("nobody holds it".to_owned());
        }
        self.held = false;
        self.give();
        Ok(())
    }

    /// How many still wait, and how often somebody had left who was to get it.
    fn waiting(&self) -> (usize, u64) {
        (self.waiting.iter().filter(|reply| !reply.is_closed()).count(), self.given_back)
    }

    /// Answers when the one who has waited longest leaves.
    async fn first_leaves(&mut self) {
        if let Some(first) = self.waiting.front() {
            first.closed().await;
        }
    }

    fn forgets_all(&mut self) {
        self.waiting.clear();
    }

    fn panics(&mut self, reply: Reply<Result<u64, String>>) {
        panic!("with {reply:?}")
    }

    /// Answers from a task of the actor.
    async fn checked(&mut self, n: i64, reply: Reply<Result<u64, String>>, cx: &Context) {
        cx.spawn(async move {
            tokio::task::yield_now().await;
            let _ = reply.send(u64::try_from(n).map_err(|_| format!("{n} is negative")));
        });
    }

    fn echo(&mut self, bytes: Vec<u8>, reply: Reply<Vec<u8>>) {
        let _ = reply.send(bytes);
    }
}

impl Lock {
    fn give(&mut self) {
        while !self.held {
            let Some(reply) = self.waiting.pop_front() else { return };
            match reply.send(self.given) {
                Ok(()) => (self.held, self.given) = (true, self.given + 1),
                Err(_) => self.given_back += 1,
            }
        }
    }
}

/// The same lock in a worker and in this process.
async fn locks(tree: &Tree) -> [LockHandle; 2] {
    let far = tree.start_child(worker::<Lock>("far lock", ())).await.unwrap();
    let near = tree.start_child(local::<Lock>("near lock", ())).await.unwrap();
    [far, near]
}

async fn waiters(lock: &LockHandle, count: usize) {
    let wait = async { while lock.waiting().await.unwrap().0 != count {} };
    ends("the others begin to wait, or leave", wait).await;
}

#[hatchery::test]
async fn a_deferred_answer_arrives_and_its_err_is_a_reply() {
    let tree = tree().await;
    for lock in locks(&tree).await {
        assert_eq!(ends("ask", lock.acquire()).await.unwrap(), 0);
        assert_eq!(ends("ask", lock.checked(3)).await.unwrap(), 3);
        let error = ends("ask", lock.checked(-3)).await.unwrap_err();
        assert_eq!(error.handler_error().unwrap(), "-3 is negative");
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| n as u8).collect();
        assert_eq!(ends("ask", lock.echo(bytes.clone())).await.unwrap(), bytes);
        assert_eq!(lock.incarnation(), Some(1));
    }
}

/// A request gives its place in the window back when its handler returns: else 256 waiters would keep the release out.
#[hatchery::test]
async fn three_hundred_may_wait_for_a_lock() {
    let tree = tree().await;
    for lock in locks(&tree).await {
        assert_eq!(ends("ask", lock.acquire()).await.unwrap(), 0);
        let waiting: Vec<_> = (0..300)
            .map(|_| {
                let lock = lock.clone();
                tokio::spawn(async move {
                    let turn = lock.acquire().await.unwrap();
                    lock.release().await.unwrap();
                    turn
                })
            })
            .collect();
        waiters(&lock, 300).await;
        ends("ask", lock.release()).await.unwrap();
        let mut turns = Vec::new();
        for one in waiting {
            turns.push(ends("a turn", one).await.unwrap());
        }
        assert_eq!(turns, (1..=300).collect::<Vec<_>>());
        assert!(ends("ask", lock.release()).await.unwrap_err().handler_error().is_some());
    }
}

#[hatchery::test]
async fn a_lock_does_not_go_to_a_waiter_who_left_but_to_the_next() {
    let tree = tree().await;
    for lock in locks(&tree).await {
        ends("ask", lock.acquire()).await.unwrap();
        let leaves = tokio::spawn(lock.acquire());
        waiters(&lock, 1).await;
        let impatient = ends("ask", lock.acquire().timeout(Duration::from_millis(20))).await.unwrap_err();
        assert!(impatient.is_timeout() && impatient.maybe_executed(), "{impatient}");
        let stays = tokio::spawn(lock.acquire());
        waiters(&lock, 2).await;
        let noticed = tokio::spawn(lock.first_leaves());
        tokio::task::yield_now().await;
        leaves.abort();
        ends("the lock notices", noticed).await.unwrap().unwrap();
        waiters(&lock, 1).await;
        ends("ask", lock.release()).await.unwrap();
        assert_eq!(ends("the next one", stays).await.unwrap().unwrap(), 1);
        let (waiting, given_back) = ends("ask", lock.waiting()).await.unwrap();
        // The impatient one may have left before it began.
        assert!(waiting == 0 && (1..=2).contains(&given_back), "{waiting}, {given_back}");
        // Nobody waits for the answer to a tell.
        lock.acquire().tell().await.unwrap();
        ends("ask", lock.release()).await.unwrap();
        assert_eq!(ends("ask", lock.acquire()).await.unwrap(), 2);
    }
}

#[hatchery::test]
async fn a_reply_without_an_answer_is_an_error_that_says_why() {
    let tree = tree().await;
    for lock in locks(&tree).await {
        ends("ask", lock.acquire()).await.unwrap();
        for (how, why) in
            [("forgets", "was dropped unanswered"), ("stops", "the actor stopped while its `Reply` was open")]
        {
            let waiting: Vec<_> = (0..270).map(|_| tokio::spawn(lock.acquire())).collect();
            waiters(&lock, 270).await;
            match how {
                "forgets" => ends("ask", lock.forgets_all()).await.unwrap(),
                _ => ends("stop", lock.stop()).await.unwrap(),
            }
            for one in waiting {
                let error = ends("ask", one).await.unwrap().unwrap_err();
                assert!(error.to_string().contains(why), "{error}");
                assert!(error.maybe_executed() && !error.is_crash() && !error.is_stopping());
            }
        }
        becomes_true("the next one sits", || lock.incarnation() == Some(2)).await;
        assert_eq!(ends("ask", lock.acquire()).await.unwrap(), 0);
    }
}

/// An incarnation that dies with open replies: its callers get the crash, whoever held the replies.
#[hatchery::test]
async fn a_death_with_open_replies_is_a_crash_for_their_callers() {
    let tree = tree().await;
    for lock in locks(&tree).await {
        for how in ["killed", "panicked"] {
            ends("ask", lock.acquire()).await.unwrap();
            let waiting: Vec<_> = (0..270).map(|_| tokio::spawn(lock.acquire())).collect();
            waiters(&lock, 270).await;
            let before = lock.incarnation().unwrap();
            if how == "killed" {
                lock.kill();
            } else {
                let error = ends("ask", lock.panics()).await.unwrap_err();
                assert!(error.exit().unwrap().panic().unwrap().message.contains("with Reply"), "{error}");
            }
            for one in waiting {
                let error = ends("ask", one).await.unwrap().unwrap_err();
                assert!(error.is_crash() && error.maybe_executed(), "{how}: {error}");
            }
            becomes_true("the next one sits", || lock.incarnation().is_some_and(|now| now > before)).await;
        }
    }
}

/// Says in files when its handlers begin and when they are dropped.
struct Careless;

struct Note(String);

impl Drop for Note {
    fn drop(&mut self) {
        std::fs::write(&self.0, "").expect("a file");
    }
}

#[hatchery::actor]
impl Careless {
    fn start() -> Self {
        Careless
    }

    #[message(cancel)]
    async fn waits(&mut self, begun: String, dropped: String) -> u64 {
        let _note = Note(dropped);
        std::fs::write(begun, "").expect("a file");
        std::future::pending().await
    }

    #[message(cancel)]
    async fn adds(&mut self, a: u64, b: u64) -> Result<u64, String> {
        tokio::task::yield_now().await;
        a.checked_add(b).ok_or_else(|| "too much".to_owned())
    }
}

#[hatchery::test]
async fn a_handler_that_may_be_cut_is_dropped_when_its_caller_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    for (actor, place) in [
        (tree.start_child(worker::<Careless>("far", ())).await.unwrap(), "far"),
        (tree.start_child(local::<Careless>("near", ())).await.unwrap(), "near"),
    ] {
        let file = |name: &str| dir.path().join(format!("{place} {name}"));
        let (begun, dropped) = (file("begun"), file("dropped"));
        let waits = tokio::spawn(actor.waits(begun.display().to_string(), dropped.display().to_string()));
        becomes_true("the handler runs", || begun.exists()).await;
        assert!(!dropped.exists());
        waits.abort();
        becomes_true("the handler is dropped", || dropped.exists()).await;
        assert_eq!(ends("ask", actor.adds(1, 2)).await.unwrap(), 3);
        assert!(ends("ask", actor.adds(1, u64::MAX)).await.unwrap_err().handler_error().is_some());

        let (begun, dropped) = (file("begun late"), file("dropped late"));
        let waits = actor.waits(begun.display().to_string(), dropped.display().to_string());
        let late = ends("ask", waits.timeout(Duration::from_millis(50))).await.unwrap_err();
        assert!(late.is_timeout(), "{late}");
        assert_eq!(ends("ask", actor.adds(1, 2)).await.unwrap(), 3);
        assert_eq!(begun.exists(), dropped.exists());
        assert_eq!(actor.incarnation(), Some(1));
    }
}

/// State and futures that must not leave their thread.
struct Threadbound {
    total: Rc<Cell<u64>>,
    place: *const u8,
}

#[hatchery::actor(not_send)]
impl Threadbound {
    async fn start(total: u64) -> Self {
        let here = Rc::new(Cell::new(total));
        tokio::task::yield_now().await;
        let place = here.as_ptr().cast_const().cast();
        Threadbound { total: here, place }
    }

    async fn add(&mut self, n: u64) -> u64 {
        let total = self.total.clone();
        tokio::task::yield_now().await;
        assert_eq!(self.place, total.as_ptr().cast_const().cast());
        total.set(total.get() + n);
        total.get()
    }

    async fn later(&mut self, reply: Reply<u64>) {
        let total = self.total.clone();
        tokio::task::yield_now().await;
        let _ = reply.send(total.get());
    }

    fn aborts(&mut self) {
        std::process::abort()
    }

    async fn stopped(&mut self) {
        let total = self.total.clone();
        tokio::task::yield_now().await;
        total.set(0);
    }
}

#[hatchery::test]
async fn an_actor_that_is_not_send_lives_in_a_worker() {
    let tree = tree().await;
    let actor = tree.start_child(worker::<Threadbound>("bound", 40)).await.unwrap();
    assert_eq!(ends("ask", actor.add(2)).await.unwrap(), 42);
    assert_eq!(ends("ask", actor.later()).await.unwrap(), 42);
    assert!(ends("ask", actor.aborts()).await.unwrap_err().is_crash());
    assert_eq!(ends("ask", tree.get::<Threadbound>("bound").unwrap().add(2)).await.unwrap(), 42);
    ends("stop", tree.stop()).await.unwrap();
}

/// An actor that does things of its own accord.
struct Busy {
    ticks: u64,
}

#[hatchery::actor]
impl Busy {
    fn start(cx: &Context) -> Self {
        let me = cx.me::<BusyHandle>();
        cx.every(Duration::from_millis(2), move || me.tick());
        Busy { ticks: 0 }
    }

    fn tick(&mut self) {
        self.ticks += 1;
    }

    fn ticks(&self) -> u64 {
        self.ticks
    }

    fn ticks_later(&mut self, millis: u64, cx: &Context) {
        cx.after(Duration::from_millis(millis), cx.me::<BusyHandle>().tick_a_thousand_times());
        let cancelled = cx.after(Duration::from_millis(millis), cx.me::<BusyHandle>().exits());
        cancelled.cancel();
    }

    fn tick_a_thousand_times(&mut self) {
        self.ticks += 1000;
    }

    fn exits(&mut self) {
        std::process::exit(1)
    }

    async fn asks_itself(&mut self, cx: &Context) -> Result<u64, String> {
        cx.me::<BusyHandle>().ticks().await.map_err(|error| error.to_string())
    }

    async fn asks_itself_in_a_task(&mut self, reply: Reply<u64>, cx: &Context) {
        let me = cx.me::<BusyHandle>();
        cx.spawn(async move {
            let _ = reply.send(me.ticks().await.expect("it answers"));
        });
    }

    fn has_a_task_that_panics(&mut self, cx: &Context) {
        cx.spawn(async {
            tokio::task::yield_now().await;
            panic!("in a task")
        });
    }

    async fn hangs(&mut self) {
        std::future::pending().await
    }

    /// A task that says in a file when it is dropped.
    fn has_a_task(&mut self, begun: String, dropped: String, cx: &Context) {
        cx.spawn(async move {
            let _note = Note(dropped);
            std::fs::write(begun, "").expect("a file");
            std::future::pending().await
        });
    }
}

async fn busy(tree: &Tree) -> [(BusyHandle, &'static str); 2] {
    let far = tree.start_child(worker::<Busy>("far", ())).await.unwrap();
    let near = tree.start_child(local::<Busy>("near", ())).await.unwrap();
    [(far, "far"), (near, "near")]
}

#[hatchery::test]
async fn an_actor_is_reminded_by_its_timers() {
    let tree = tree().await;
    for (actor, _) in busy(&tree).await {
        let ticking = async { while actor.ticks().await.unwrap() < 5 {} };
        ends("ticking", ticking).await;
        ends("ask", actor.ticks_later(5)).await.unwrap();
        let later = async { while actor.ticks().await.unwrap() < 1000 {} };
        ends("one of two", later).await;
        // The timers of an incarnation end with it.
        ends("stop", actor.stop()).await.unwrap();
        becomes_true("the next one sits", || actor.incarnation() == Some(2)).await;
        assert!(ends("ask", actor.ticks()).await.unwrap() < 1000);
    }
}

#[hatchery::test]
async fn an_actor_that_asks_itself_is_told_instead_of_waiting_for_ever() {
    let tree = tree().await;
    for (actor, _) in busy(&tree).await {
        let error = ends("ask", actor.asks_itself()).await.unwrap_err();
        assert!(error.handler_error().unwrap().contains("is waiting for itself"), "{error}");
        ends("ask", actor.asks_itself_in_a_task()).await.unwrap();
        assert_eq!(actor.incarnation(), Some(1));
    }
}

#[hatchery::test]
async fn a_panic_in_a_task_of_an_actor_is_a_crash_of_the_actor() {
    let tree = tree().await;
    for (actor, place) in busy(&tree).await {
        let (pid, spec) = (actor.pid(), actor.incarnation());
        let (spawned, hanging) = tokio::join!(actor.has_a_task_that_panics(), ends("ask", actor.hangs()));
        spawned.unwrap();
        let error = hanging.unwrap_err();
        let panic = error.exit().unwrap().panic().unwrap();
        assert_eq!((panic.message.as_str(), error.is_crash()), ("in a task", true));
        assert!(panic.place.as_ref().unwrap().contains("actor.rs:"), "{panic}");
        assert_eq!(error.exit().unwrap().exitcode(), Some(101));
        becomes_true("the next one sits", || actor.incarnation() > spec).await;
        assert!(place == "near" || actor.pid() != pid);
    }
}

#[hatchery::test]
async fn the_tasks_of_an_actor_end_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree().await;
    for (actor, place) in busy(&tree).await {
        let file = |name: &str| dir.path().join(format!("{place} {name}"));
        let (begun, dropped) = (file("begun"), file("dropped"));
        ends("ask", actor.has_a_task(begun.display().to_string(), dropped.display().to_string()))
            .await
            .unwrap();
        becomes_true("the task runs", || begun.exists()).await;
        assert!(!dropped.exists());
        ends("stop", actor.stop()).await.unwrap();
        assert!(dropped.exists());
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Promises "ask: exactly one outcome" and "restart": callers on all sides while the worker is killed again and again.
#[hatchery::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ask_ends_exactly_once_under_random_kills() {
    let tree = Supervisor::new(Strategy::OneForOne)
        .intensity(1000, Duration::from_secs(60))
        .backoff(Duration::ZERO, Duration::ZERO)
        .start()
        .await
        .unwrap();
    let actor = tree.start_child(plain("target")).await.unwrap();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let actor = actor.clone();
            tokio::spawn(async move {
                let (mut answered, mut crashed) = (0, 0);
                for round in 0..500 {
                    let n = NEXT.fetch_add(1, Ordering::Relaxed);
                    // Answers that are put off, too.
                    let noted = if round % 2 == 0 { actor.note(n) } else { actor.note_later(n) };
                    match noted.timeout(BOUND).await {
                        Ok(_) => answered += 1,
                        Err(error) if error.is_crash() => {
                            assert_eq!(error.exit().unwrap().signal(), Some(9), "{error}");
                            crashed += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                (answered, crashed)
            })
        })
        .collect();
    let killer = tokio::spawn({
        let actor = actor.clone();
        async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            loop {
                ticks.tick().await;
                if let Some(pid) = actor.pid() {
                    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        }
    });
    let mut sum = (0, 0);
    for caller in callers {
        let (answered, crashed) = ends("the callers", caller).await.unwrap();
        sum = (sum.0 + answered, sum.1 + crashed);
    }
    killer.abort();
    assert_eq!(sum.0 + sum.1, 4000);
    assert!(sum.1 > 0, "no ask met a kill");
}

/// Promise "ask": every point at which a caller can leave, ten thousand at random, while the worker is killed now and
/// then. Each answer repeats its own question, and in the end nothing is missing from the window.
#[hatchery::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_asks_cancelled_anywhere_give_no_answer_to_the_wrong_caller() {
    const CALLERS: u64 = 16;
    let dir = tempfile::tempdir().unwrap();
    let begun = dir.path().join("begun");
    let tree = Supervisor::new(Strategy::OneForOne)
        .intensity(10_000, Duration::from_secs(60))
        .backoff(Duration::ZERO, Duration::ZERO)
        .start()
        .await
        .unwrap();
    let actor = tree.start_child(plain("target")).await.unwrap();
    let callers: Vec<_> = (1..=CALLERS)
        .map(|caller| {
            let actor = actor.clone();
            tokio::spawn(async move {
                let mut dice = Dice::new(caller);
                // Answered, left after some polls, left after some time, timed out, crashed.
                let mut ends = [0_u32; 5];
                for n in 0..10_000 / CALLERS {
                    let number = caller << 32 | n;
                    // Mostly small; some take several frames.
                    let size = if dice.throw(50) == 0 { 600_000 } else { dice.throw(300) as usize };
                    let ask = actor.repeats(number, vec![caller as u8; size], dice.throw(4) as u32);
                    let check = |answer: Result<(u64, Vec<u8>), CallError>| match answer {
                        Ok((answered, bytes)) => {
                            assert_eq!((answered, bytes.len()), (number, size));
                            assert!(bytes.iter().all(|byte| *byte == caller as u8));
                            0
                        }
                        Err(error) if error.is_timeout() => 3,
                        Err(error) => {
                            assert!(error.is_crash(), "{error}");
                            assert_eq!(error.exit().unwrap().signal(), Some(9), "{error}");
                            4
                        }
                    };
                    let end = match dice.throw(4) {
                        0 => polled(dice.throw(4), ask).await.map_or(1, check),
                        1 => {
                            let patience = Duration::from_micros(dice.throw(3_000));
                            tokio::time::timeout(patience, ask.timeout(BOUND)).await.map_or(2, check)
                        }
                        2 => check(ask.timeout(Duration::from_micros(dice.throw(3_000))).await),
                        _ => check(ask.timeout(BOUND).await),
                    };
                    ends[end] += 1;
                }
                ends
            })
        })
        .collect();
    let killer = tokio::spawn({
        let actor = actor.clone();
        async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            loop {
                ticks.tick().await;
                actor.kill();
            }
        }
    });
    let mut sum = [0; 5];
    for caller in callers {
        let ended = ends("the callers", caller).await.unwrap();
        sum.iter_mut().zip(ended).for_each(|(sum, n)| *sum += n);
    }
    killer.abort();
    let _ = killer.await;
    println!("answered, left after polls, left after a time, timed out, crashed: {sum:?}");
    assert!(sum.iter().all(|n| *n > 50), "{sum:?}");
    assert_eq!(sum.iter().sum::<u32>(), 10_000);
    // The last kill may still be on its way; after it, every place is there.
    ends("the last kill", async { while actor.note(0).await.is_err() {} }).await;
    let asking: Vec<_> = (0..256).map(|n| tokio::spawn(actor.repeats(n, Vec::new(), 0))).collect();
    for (n, ask) in (0..).zip(asking) {
        match ends("an ask", ask).await.unwrap() {
            Ok((answered, _)) => assert_eq!(answered, n),
            Err(error) => assert!(error.is_crash(), "{error}"),
        }
    }
    // One that nobody kills: its window has to be whole by itself, to the last place.
    let actor = tree.start_child(plain("unharmed")).await.unwrap();
    let mut dice = Dice::new(CALLERS + 1);
    for n in 0..2_000 {
        let ask = actor.repeats(n, vec![0; dice.throw(300) as usize], dice.throw(4) as u32);
        let _ = polled(dice.throw(4), ask).await;
    }
    let hanging = tokio::spawn(actor.hangs(begun.display().to_string()));
    becomes_true("the handler runs", || begun.exists()).await;
    // One place is the handler's. What was withdrawn has given its place back by now, or does so while this waits.
    let mut told = 0;
    while let Ok(()) = actor.note(told).timeout(Duration::from_secs(1)).tell().await {
        told += 1;
        assert!(told < 256, "more than the window");
    }
    assert_eq!(told, 255);
    assert_eq!(actor.incarnation(), Some(1));
    hanging.abort();
}

/// Polls a future so many times at most, each time after all that can be done at once, and drops it.
async fn polled<F: Future>(times: u64, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    for _ in 0..times {
        let once = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = once {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

fn with_spinning() -> hatchery::Door {
    hatchery::program().spin(Spin::Adaptive)
}

async fn answers_and_dies(spec: ChildSpec<impl hatchery::Start<Handle = WorkerHandle>>) {
    let tree = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    let worker = tree.start_child(spec).await.unwrap();
    for n in 1..=1000 {
        assert_eq!(worker.note(0).await.unwrap(), n);
    }
    let pid = worker.pid().unwrap();
    // Of this one alone: the kill may come between an answer and the next ask, which would go to its successor.
    let victim = worker.pinned().unwrap();
    let asks = async {
        loop {
            if let Err(error) = victim.note(0).await {
                break error;
            }
        }
    };
    let (error, ()) = tokio::join!(asks, async {
        tokio::task::yield_now().await;
        send(pid, Signal::KILL);
    });
    assert!(error.is_crash(), "{error}");
    // The next incarnation begins anew.
    assert_eq!(worker.note(0).await.unwrap(), 1);
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn workers_answer_and_die_alike_with_and_without_spinning() {
    answers_and_dies(worker::<Worker>("sleeps", None)).await;
    answers_and_dies(worker::<Worker>("spins", None).spin(Spin::Adaptive)).await;
}

#[hatchery::test(program = with_spinning)]
async fn workers_answer_and_die_alike_where_the_program_switches_spinning_on() {
    answers_and_dies(worker::<Worker>("spins", None)).await;
    answers_and_dies(worker::<Worker>("sleeps", None).spin(Spin::Off)).await;
}
