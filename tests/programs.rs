//! Programs that end in all the ways there are, for the tests in `leaving.rs` and `orphans.rs` to run and look at.
//!
//! Each prints what it does, line by line: `worker PID`, `ready`, and what its workers say.

use std::io::Write;
use std::time::Duration;

use hatchery::prelude::*;
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
    fn aborts(&self) {
        std::process::abort()
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

/// One line at once, whole even beside others'.
fn say(line: &str) {
    let mut out = std::io::stdout();
    // The reader may be gone: then nobody listens.
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

fn main() {
    let word = std::env::var("PROGRAM").unwrap_or_default();
    let file = std::env::var("PROGRAM_FILE").unwrap_or_default();
    if word == "rogue at the door" && std::env::var_os("HATCHERY_PARENT").is_some() {
        rogue_at_the_door(&file);
    }
    let mut door = hatchery::program().flavor(hatchery::Flavor::CurrentThread);
    match word.as_str() {
        "orderly signals" | "orderly signals, deaf" => door = door.orderly_signals(),
        "keep alive" => {
            door = door.thread_keep_alive(Duration::from_millis(100)).flavor(hatchery::Flavor::MultiThread);
        }
        "panics that abort" => door = door.each_process(aborting::sets_a_hook),
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
        "tells how a worker ended" => {
            let process = Process::spawn(stays, ()).await?;
            process.kill()?;
            say(&format!("exitcode {:?}", process.wait().await.exitcode()));
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
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_secs(6) {
                std::thread::park_timeout(Duration::from_millis(100));
            }
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
        "a foreign wait" => {
            std::thread::spawn(|| {
                loop {
                    if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
                        std::thread::park_timeout(Duration::from_micros(50));
                    }
                }
            });
            let tree =
                Supervisor::new(Strategy::OneForOne).intensity(1000, Duration::from_secs(60)).start().await?;
            let polite = tree.start_child(worker::<Polite>("polite", ())).await?;
            for _ in 0..50 {
                let crash = polite.aborts().await;
                assert!(crash.is_err_and(|error| error.is_crash()));
                polite.lives().await?;
                Process::spawn(returns, ()).await?.join().await?;
            }
            say("every death was noticed");
            tree.stop().await
        }
        "panics that abort" => aborting::program().await,
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
        other => Err(hatchery::Error::msg(format!("there is no program {other:?}"))),
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

/// Promise "leaks", in small: what restarts and processes leave behind in their parent.
async fn leaks() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).intensity(1000, Duration::from_secs(60)).start().await?;
    let polite = tree.start_child(worker::<Polite>("polite", ())).await?;
    let mut before = None;
    for round in 0..220_u64 {
        let crash = polite.aborts().await;
        assert!(crash.is_err_and(|error| error.is_crash()));
        polite.lives().await?;
        Process::spawn(returns, ()).await?.join().await?;
        if round == 20 {
            // Until the process that has just ended is gone altogether, more may be seen than is kept.
            pause(50).await;
            before = Some(holdings());
        }
    }
    nothing_leaked(before.unwrap_or_default()).await;
    tree.stop().await
}

/// Says whether there is more than before.
async fn nothing_leaked(before: (usize, usize, usize)) {
    // What ended last may still be on its way out.
    let begun = std::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while leaked(before) && begun.elapsed() < hatchery_tests::BOUND {
        ticks.tick().await;
    }
    say(&format!("before {before:?}, after {:?}", holdings()));
    say(if leaked(before) { "something leaked" } else { "nothing leaked" });
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
    let mut before = None;
    for round in 0..110 {
        Process::spawn(logs, ()).await?.join().await?;
        if round == 10 {
            pause(50).await;
            before = Some(holdings());
        }
    }
    nothing_leaked(before.unwrap_or_default()).await;
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

fn leaked(before: (usize, usize, usize)) -> bool {
    let now = holdings();
    now.0 > before.0 || now.1 > before.1 || now.2 > before.2
}

/// Descriptors, threads, and children, zombies included.
fn holdings() -> (usize, usize, usize) {
    let list = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks
        .map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default())
        .map(|list| list.split_whitespace().count())
        .sum();
    (list("/proc/self/fd"), list("/proc/self/task"), children)
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
