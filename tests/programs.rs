//! Programs that end in all the ways there are, for the tests in `leaving.rs` and `orphans.rs` to run and look at.
//!
//! Each prints what it does, line by line: `worker PID`, `ready`, and what its workers say. Those that meet trouble
//! are in `trouble.rs` and `scarce.rs`.

mod foreign;
mod scarce;
mod trouble;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use hatchery::prelude::*;
use hatchery_tests::{children, own_memory};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

mod aborting;

#[hatchery::task]
fn stays() {
    loop {
        std::thread::park()
    }
}

/// Ends when the file is there.
#[hatchery::task]
async fn waits_for(file: String) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    while !std::path::Path::new(&file).exists() {
        ticks.tick().await;
    }
    say("the process is done");
}

/// A worker with a worker of its own.
#[hatchery::task]
async fn parent_of_one() -> hatchery::Result<()> {
    let inner = Process::spawn(stays, ()).await?;
    say(&format!("worker {}", inner.pid()));
    say("ready");
    inner.join().await?;
    Ok(())
}

struct Polite;

#[hatchery::actor]
impl Polite {
    fn start() -> Self {
        Polite
    }
    fn lives(&self) {}
    async fn waits_for(&self, file: String) {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        while !std::path::Path::new(&file).exists() {
            ticks.tick().await;
        }
    }
    fn aborts(&self) {
        std::process::abort()
    }
    fn panics(&self) {
        panic!("not again")
    }
    /// Writes to standard error without end, as far as anybody takes it.
    fn floods(&self, milliseconds: u64) {
        let begun = std::time::Instant::now();
        let line = [b'x'; 1023].into_iter().chain([b'\n']).collect::<Vec<u8>>();
        while begun.elapsed() < Duration::from_millis(milliseconds) {
            let _ = std::io::stderr().write_all(&line);
        }
    }
    fn blocks(&self) {
        say("blocked");
        loop {
            std::thread::park()
        }
    }
    fn stopped(&mut self) {
        say("stopped in order");
    }
}

/// Takes its time, and says where it is.
struct Slow;

#[hatchery::actor]
impl Slow {
    async fn start() -> Self {
        say("hello");
        pause(3).await;
        Slow
    }
}

/// Time passes.
async fn pause(milliseconds: u64) {
    let mut ticks = tokio::time::interval(Duration::from_millis(milliseconds));
    ticks.tick().await;
    ticks.tick().await;
}

/// Time passes, and the thread does nothing else.
fn block(time: Duration) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < time {
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// One line at once, whole even beside others'.
fn say(line: &str) {
    let mut out = std::io::stdout();
    // The reader may be gone: then nobody listens.
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

/// These come through the door of a test: that one captures the stdout of workers, too.
const CAPTURED: [&str; 2] = ["flooded", "helpers that stay"];

fn main() {
    let word = std::env::var("PROGRAM").unwrap_or_default();
    let file = std::env::var("PROGRAM_FILE").unwrap_or_default();
    if word == "rogue at the door" && std::env::var_os("HATCHERY_PARENT").is_some() {
        rogue_at_the_door(&file);
    }
    if CAPTURED.contains(&word.as_str()) {
        let main = async || trouble::program(&word, file.clone()).await;
        hatchery::__private::test("programs", hatchery::__private::TestOptions::new(), main);
        return;
    }
    let mut door = hatchery::program().flavor(hatchery::Flavor::CurrentThread);
    match word.as_str() {
        "orderly signals" | "orderly signals, deaf" => door = door.orderly_signals(),
        "keep alive" => {
            door = door.thread_keep_alive(Duration::from_millis(100)).flavor(hatchery::Flavor::MultiThread);
        }
        "fails unread, threads" | "panics unread, threads" => {
            door = door.flavor(hatchery::Flavor::MultiThread);
        }
        "panics that abort" | "sets a hook" => door = door.each_process(aborting::sets_a_hook),
        "logs off" => door = door.logs(hatchery::logs::Logs::Off),
        "logs beside" => {
            door = door.each_process(|| {
                if hatchery::current().is_worker() {
                    let own = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
                    tracing_subscriber::registry().with(own).with(hatchery::logs::layer()).init();
                }
            });
        }
        "each process" => door = door.each_process(|| say("each")).worker_config(&7_u32),
        "lets one variable through" => door = door.worker_env_only(["PROGRAM"]),
        "panics in each process" => {
            door = door.each_process(|| assert!(!hatchery::current().is_worker(), "not here"));
        }
        _ => {}
    }
    door.run(async move || program(&word, file).await)
}

/// A worker that writes something to its link before it has come through the door, having said who it is, and stays.
fn rogue_at_the_door(file: &str) {
    say(&format!("worker {}", std::process::id()));
    hatchery_tests::send_raw(std::io::stdin(), &std::fs::read(file).unwrap_or_default(), &[]);
    stays()
}

async fn program(word: &str, file: String) -> hatchery::Result<()> {
    match word {
        "returns" => {
            // Dropped at once: waited for all the same.
            let process = Process::spawn(waits_for, file).await?;
            say(&format!("worker {}", process.pid()));
            let daemon = Process::builder(stays, ()).daemon(true).spawn().await?;
            say(&format!("worker {}", daemon.pid()));
            let tree = polite().await?;
            say("main is done");
            std::mem::forget(tree);
            Ok(())
        }
        "fails" => {
            let process = Process::spawn(stays, ()).await?;
            say(&format!("worker {}", process.pid()));
            let _tree = polite().await?;
            Err(hatchery::Error::msg("a bad day").context("living"))
        }
        "panics" => {
            let process = Process::spawn(stays, ()).await?;
            say(&format!("worker {}", process.pid()));
            let _tree = polite().await?;
            panic!("a worse day")
        }
        "fails unread" | "fails unread, threads" | "panics unread" | "panics unread, threads" => {
            let _tree = polite().await?;
            trouble::fill_stderr().await;
            assert!(!word.starts_with("panics"), "a day that nobody reads of");
            Err(hatchery::Error::msg("a day that nobody reads of"))
        }
        "exits" => {
            let process = Process::spawn(stays, ()).await?;
            say(&format!("worker {}", process.pid()));
            let _tree = polite().await?;
            std::process::exit(5)
        }
        "stays" => {
            let process = Process::spawn(stays, ()).await?;
            say(&format!("worker {}", process.pid()));
            let nested = Process::spawn(parent_of_one, ()).await?;
            say(&format!("worker {}", nested.pid()));
            let stopped = Process::spawn(stays, ()).await?;
            stopped.pause()?;
            say(&format!("worker {}", stopped.pid()));
            let _tree = polite().await?;
            nested.join().await??;
            Ok(())
        }
        "runs until a signal" => until_signal(polite().await?).await,
        "runs until a signal, deaf" => {
            let tree = Supervisor::new(Strategy::OneForOne).start().await?;
            let spec = worker::<Polite>("polite", ()).shutdown(Shutdown::infinity());
            let polite = tree.start_child(spec).await?;
            polite.blocks().tell().await?;
            say(&format!("worker {}", polite.pid().unwrap_or_default()));
            until_signal(tree).await
        }
        "ran until a signal" => {
            // It listened for a while, and no longer does.
            let tree = polite().await?;
            let mut run = Box::pin(tree.run_until_signal());
            tokio::select! {
                biased;
                over = &mut run => return over,
                () = async {} => drop(run),
            }
            say("listens");
            std::future::pending().await
        }
        "orderly signals" => {
            let _tree = polite().await?;
            std::future::pending().await
        }
        "orderly signals, deaf" => {
            let tree = Supervisor::new(Strategy::OneForOne).start().await?;
            let spec = worker::<Polite>("polite", ()).shutdown(Shutdown::infinity());
            let polite = tree.start_child(spec).await?;
            polite.blocks().tell().await?;
            say(&format!("worker {}", polite.pid().unwrap_or_default()));
            say("ready");
            std::future::pending().await
        }
        "keep alive" => keep_alive().await,
        "each process" => {
            let process = Process::spawn(reads_config, ()).await?;
            say(&format!("config {}", process.join().await??));
            Ok(())
        }
        "tells how workers ended" => {
            let process = Process::spawn(stays, ()).await?;
            process.kill()?;
            say(&format!("exitcode {:?}", process.wait().await.exitcode()));
            let returned = Process::spawn(returns, ()).await?;
            returned.join().await?;
            say(&format!("exitcode {:?}", returned.exitcode()));
            let tree = Supervisor::new(Strategy::OneForOne).start().await?;
            let polite = tree.start_child(worker::<Polite>("polite", ())).await?;
            for _ in 0..5 {
                let crash = polite.aborts().await.unwrap_err();
                say(&format!("exitcode {:?}", crash.exit().and_then(|exit| exit.exitcode())));
            }
            polite.lives().await?;
            say(&format!("incarnation {:?}", polite.incarnation()));
            tree.stop().await?;
            say(&format!("zombies {}", children(std::process::id()).len()));
            Ok(())
        }
        "starts from a thread of its own" => {
            let runtime = tokio::runtime::Handle::current();
            let started = std::thread::spawn(move || runtime.block_on(Process::spawn(returns, ())));
            let mut ticks = tokio::time::interval(Duration::from_millis(1));
            while !started.is_finished() {
                ticks.tick().await;
            }
            let process = started.join().map_err(|_| hatchery::Error::msg("it panicked"))??;
            process.join().await?;
            say("it ran");
            Ok(())
        }
        "lets one variable through" => {
            let outer = Process::builder(names_variables, 1).env("ADDED", "").spawn().await?;
            say(&outer.join().await??);
            let other = Process::builder(names_variables, 0).env_only(["PROGRAM_FILE"]).spawn().await?;
            say(&other.join().await??);
            Ok(())
        }
        "rogue at the door" => {
            let start = Process::builder(stays, ()).start_timeout(Duration::from_millis(500)).spawn().await;
            say(&format!("error {}", start.map(drop).unwrap_err()));
            Ok(())
        }
        "panics in each process" => {
            let error = Process::spawn(returns, ()).await?.join().await.map(drop).unwrap_err();
            say(&format!("panic: {}", error.panic().is_some_and(|panic| panic.message == "not here")));
            Ok(())
        }
        "busy elsewhere" => {
            let process = Process::spawn(large, 5_000_000).await?;
            // The only thread of this runtime, and with it the channel, does something else for a while.
            block(Duration::from_secs(6));
            say(&format!("result of {} bytes", process.join().await?.len()));
            say(&format!("exitcode {:?}", process.exitcode()));
            Ok(())
        }
        "slow at exit" => {
            let process = Process::spawn(slow_at_exit, ()).await?;
            say(&format!("result {}", process.join().await?));
            say(&format!("exitcode {:?}", process.exitcode()));
            Ok(())
        }
        "a foreign wait" => foreign::program().await,
        "panics that abort" => aborting::program().await,
        "stands still" => {
            let quick = Heartbeat::every(Duration::from_millis(500)).misses(4);
            stands_still(file, [Heartbeat::default(), quick]).await
        }
        "freezes" => stands_still(file, [Heartbeat::default().misses(6); 2]).await,
        "freezes on the way out" => becomes("kill -STOP $PPID; kill -STOP $$; exit 0", file).await,
        "closes everything" => becomes("exec sleep 1000", file).await,
        "sets a hook" => sets_a_hook().await,
        "noisy" => noisy().await,
        "leaks" => leaks().await,
        "logs" | "logs off" | "logs beside" => logs_something().await,
        "logs leave nothing" => logs_leave_nothing().await,
        "spawns for ever" => loop {
            say("start");
            let tree = Supervisor::new(Strategy::OneForOne).start().await?;
            tree.start_child(worker::<Slow>("slow", ())).await?;
            say("ready");
            pause(3).await;
            tree.stop().await?;
        },
        "restarts out of descriptors" => {
            let named = ["Too many open files", "ulimit -n"];
            scarce::restarts_without(rustix::process::Resource::Nofile, named).await
        }
        "pool out of descriptors" => scarce::pool_without_descriptors().await,
        "restarts out of processes" => {
            let named = ["Resource temporarily unavailable", "ulimit -u"];
            scarce::restarts_without(rustix::process::Resource::Nproc, named).await
        }
        other => trouble::program(other, file).await,
    }
}

/// Says that it is ready when it hears signals.
async fn until_signal(tree: Tree) -> hatchery::Result<()> {
    let mut run = std::pin::pin!(tree.run_until_signal());
    tokio::select! {
        biased;
        over = &mut run => return over,
        () = async {} => say("listens"),
    }
    run.await
}

#[hatchery::task]
fn reads_config() -> hatchery::Result<u32> {
    hatchery::config::<u32>()
}

/// The names of the variables it has, or that a worker of its own has, so many levels down.
#[hatchery::task]
async fn names_variables(levels: u32) -> hatchery::Result<String> {
    if levels > 0 {
        return Process::spawn(self::names_variables, levels - 1).await?.join().await?;
    }
    let mut names: Vec<_> = std::env::vars().map(|(name, _)| name).collect();
    names.sort();
    Ok(names.join(" "))
}

async fn polite() -> hatchery::Result<Tree> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let polite = tree.start_child(worker::<Polite>("polite", ())).await?;
    say(&format!("worker {}", polite.pid().unwrap_or_default()));
    say("ready");
    Ok(tree)
}

/// Everything that does not have to miss a heartbeat while this process stands still, either because its only thread
/// blocks or, if there is a file to wait for, because somebody stops it.
async fn stands_still(file: String, heartbeats: [Heartbeat; 2]) -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let mut all = Vec::new();
    for (n, heartbeat) in (0..20).zip(heartbeats.into_iter().cycle()) {
        let spec = worker::<Polite>(format!("polite-{n}"), ()).heartbeat(heartbeat);
        let polite = tree.start_child(spec).await?;
        say(&format!("worker {}", polite.pid().unwrap_or_default()));
        all.push(polite);
    }
    let waits = worker::<Polite>("waits", ()).watchdog(Duration::from_secs(5));
    let waits = tree.start_child(waits).await?;
    say(&format!("worker {}", waits.pid().unwrap_or_default()));
    if !file.is_empty() {
        // Its handler goes on only when this process does.
        tokio::spawn(waits.waits_for(file.clone()).without_deadline());
    }
    all.push(waits);
    let unwatched = tree.start_child(worker::<Polite>("unwatched", ()).heartbeat(Heartbeat::off())).await?;
    let paused = tree.start_child(worker::<Polite>("paused", ())).await?;
    let nested = Process::builder(parent_of_one, ()).kill_on_drop(true).spawn().await?;
    hatchery_tests::send(unwatched.pid().unwrap_or_default(), rustix::process::Signal::STOP);
    paused.pause()?;
    nested.pause()?;
    if file.is_empty() {
        block(Duration::from_secs(10));
    } else {
        say("stop me");
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        while !std::path::Path::new(&file).exists() {
            ticks.tick().await;
        }
    }
    hatchery_tests::send(unwatched.pid().unwrap_or_default(), rustix::process::Signal::CONT);
    paused.resume()?;
    nested.resume()?;
    all.extend([unwatched, paused]);
    // Whoever is blamed, is blamed at the first looks after that.
    for _ in 0..2 {
        for polite in &all {
            polite.lives().await?;
        }
        pause(1000).await;
    }
    let first = all.iter().filter(|polite| polite.incarnation() == Some(1)).count();
    say(&format!("{first} of {} live, nested: {}", all.len(), nested.is_alive()));
    tree.stop().await
}

/// A worker that executes a shell script in its own place: with that it has closed its link and its channel.
/// It does so when the file is there.
async fn becomes(script: &str, file: String) -> hatchery::Result<()> {
    let process = Process::spawn(executes, (script.to_owned(), file)).await?;
    say(&format!("worker {}", process.pid()));
    say("started");
    let exit = process.wait().await;
    say(&format!("exitcode {:?}, reason {:?}", exit.exitcode(), exit.reason()));
    Ok(())
}

#[hatchery::task]
fn executes((script, file): (String, String)) -> hatchery::Result<()> {
    hatchery_tests::eventually("it may go on", || std::path::Path::new(&file).exists());
    Err(std::process::Command::new("sh").args(["-c", &script]).exec().into())
}

/// The hook of this program knows nothing of those before it.
async fn sets_a_hook() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let here = tree.start_child(local::<Polite>("here", ())).await?;
    let there = tree.start_child(worker::<Polite>("there", ())).await?;
    for (kind, polite) in [("local", here), ("worker", there)] {
        let error = polite.panics().await.unwrap_err();
        let place = error.exit().and_then(|exit| exit.panic()).and_then(|panic| panic.place.as_deref());
        say(&format!(
            "{kind}, its place known: {}",
            place.is_some_and(|place| place.contains("programs.rs:"))
        ));
    }
    tree.stop().await
}

/// A worker whose output nobody reads, and whose only thread does nothing but write it.
async fn noisy() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let heartbeat = Heartbeat::every(Duration::from_millis(500)).misses(4);
    let noisy = tree.start_child(worker::<Polite>("noisy", ()).heartbeat(heartbeat)).await?;
    noisy.floods(4000).await?;
    say(&format!("incarnation {:?}", noisy.incarnation()));
    tree.stop().await
}

/// Promise "leaks": what restarts and processes leave behind in their parent.
async fn leaks() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne)
        .intensity(2000, Duration::from_secs(60))
        .backoff(Duration::ZERO, Duration::ZERO)
        .start()
        .await?;
    let polite = tree.start_child(worker::<Polite>("polite", ())).await?;
    let own = std::process::id();
    let mut before = Holdings::default();
    let mut memory = 0;
    for round in 0..1000_u64 {
        let crash = polite.aborts().await;
        assert!(crash.is_err_and(|error| error.is_crash()));
        polite.lives().await?;
        Process::spawn(returns, ()).await?.join().await?;
        if round == 20 {
            // Until the process that has just ended is gone altogether, more may be seen than is kept.
            pause(50).await;
            before = holdings();
        }
        if round == 200 {
            memory = own_memory(own);
        }
    }
    // What ended last may still be on its way out.
    let begun = std::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while leaked(before) && begun.elapsed() < hatchery_tests::BOUND {
        ticks.tick().await;
    }
    let more = own_memory(own).saturating_sub(memory);
    say(&format!("before {before:?}, after {:?}, and {more} KiB more memory", holdings()));
    say(if leaked(before) || more >= 512 { "something leaked" } else { "nothing leaked" });
    tree.stop().await
}

/// The root's subscriber: plain lines on stdout.
fn subscribe() {
    let filter = tracing_subscriber::EnvFilter::new("programs=info");
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stdout).init();
}

async fn logs_something() -> hatchery::Result<()> {
    subscribe();
    Process::spawn(logs, ()).await?.join().await?;
    say("main is done");
    Ok(())
}

#[hatchery::task]
fn logs() {
    tracing::info!(answer = 42, "from a worker");
    tracing::debug!("too quiet");
    tracing::info!(target: "elsewhere", "elsewhere");
}

async fn logs_leave_nothing() -> hatchery::Result<()> {
    subscribe();
    let mut before = Holdings::default();
    for round in 0..110 {
        Process::spawn(logs, ()).await?.join().await?;
        if round == 10 {
            pause(50).await;
            before = holdings();
        }
    }
    // What ended last may still be on its way out.
    let begun = std::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while leaked(before) && begun.elapsed() < hatchery_tests::BOUND {
        ticks.tick().await;
    }
    say(if leaked(before) { "something leaked" } else { "nothing leaked" });
    Ok(())
}

#[hatchery::task]
fn returns() {}

#[hatchery::task]
fn large(bytes: usize) -> Vec<u8> {
    vec![7; bytes]
}

/// Its thread-local is dropped when the process exits, and takes longer for that than a channel may be closed.
#[hatchery::task]
fn slow_at_exit() -> u32 {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(1500) {
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }
    thread_local!(static SLOW: Slow = const { Slow });
    SLOW.with(|_| 5)
}

/// Descriptors; threads; children, zombies included; memory shared with others; and where there is nobody else in its
/// network, sockets, so that those count that lie unread in another socket.
type Holdings = (usize, usize, usize, usize, usize);

/// What a program is given as its file that has a network of its own.
const ALONE: &str = "alone";

fn leaked(before: Holdings) -> bool {
    let now = holdings();
    now.0 > before.0 || now.1 > before.1 || now.2 > before.2 || now.3 > before.3 || now.4 > before.4
}

fn holdings() -> Holdings {
    let list = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let is_shared = |line: &&str| line.split(' ').nth(1).is_some_and(|rights| rights.ends_with('s'));
    let shared = text("/proc/self/maps").lines().filter(is_shared).count();
    let is_alone = std::env::var("PROGRAM_FILE").is_ok_and(|file| file == ALONE);
    let sockets = if is_alone { text("/proc/self/net/unix").lines().count() } else { 0 };
    let children = children(std::process::id()).len();
    (list("/proc/self/fd"), list("/proc/self/task"), children, shared, sockets)
}

/// Promise "idle thread pools": a worker does not die because the thread that asked for it went idle and ended.
async fn keep_alive() -> hatchery::Result<()> {
    let (thread, process) = tokio::task::spawn_blocking(|| {
        let thread = rustix::thread::gettid();
        let process = tokio::runtime::Handle::current().block_on(Process::spawn(stays, ()));
        (thread, process)
    })
    .await?;
    let process = process?;
    let task = format!("/proc/self/task/{}", thread.as_raw_nonzero());
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while std::path::Path::new(&task).exists() {
        ticks.tick().await;
    }
    say("the thread is gone");
    // Its death signal, had it been bound to that thread, was sent when the thread ended.
    let survived = process.wait_timeout(Duration::from_millis(100)).await.is_none() && process.is_alive();
    say(if survived { "the worker lives" } else { "the worker died" });
    process.kill()?;
    Ok(())
}
