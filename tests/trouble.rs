//! Programs that meet trouble, for the tests in `faults.rs` and `orphans.rs`: floods, helpers that stay, limits that
//! are reached, files that are replaced, process ids that come back.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use hatchery::Status;
use hatchery::prelude::*;
use hatchery_tests::{becomes_true, children, ends, eventually, own_memory, runs, send, state};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, Signal, WaitOptions, getrlimit, setrlimit, waitpid};

use crate::foreign::{held_warden, waits_for_anybody};
use crate::{holdings, leaked, returns, say, stays};

/// Fills this process's own stderr for as long as nobody reads it, on a thread that then holds it.
pub(crate) async fn fill_stderr() {
    std::thread::spawn(|| while std::io::stderr().write_all(&[b'x'; 4096]).is_ok() {});
    becomes_true("stderr is full", || {
        let stderr = std::io::stderr();
        let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)) == Ok(0)
    })
    .await;
}

/// Does what it is told, and goes on.
struct Sturdy {
    hoard: Vec<File>,
    flood: Option<std::thread::JoinHandle<()>>,
}

/// Lines of the flood on stderr, of a thousand bytes: 100 MB.
const ERR_LINES: usize = 100_000;
/// Lines of the flood on stdout, as long as a line can be before it is cut: 100 MB.
const OUT_LINES: usize = 12_500;
/// Bytes of those, their ends included.
const OUT_LINE: usize = 8_000;

#[hatchery::actor]
impl Sturdy {
    fn start() -> Self {
        Sturdy { hoard: Vec::new(), flood: None }
    }

    fn echo(&self, number: u64) -> u64 {
        number
    }

    fn aborts(&self) {
        std::process::abort()
    }

    fn exits(&self, code: i32) {
        eprintln!("last words");
        std::process::exit(code)
    }

    fn panics(&self) {
        panic!("enough")
    }

    /// Begins to write a lot, on both streams and on threads of its own.
    fn floods(&mut self) {
        self.flood = Some(std::thread::spawn(|| {
            let out = std::thread::spawn(|| {
                let line = [&[b'x'; OUT_LINE - 1][..], b"\n"].concat();
                let mut out = std::io::stdout().lock();
                (0..OUT_LINES).for_each(|_| out.write_all(&line).expect("it is read"));
                out.flush().expect("it is read");
            });
            let mut err = std::io::BufWriter::new(std::io::stderr().lock());
            (0..ERR_LINES).for_each(|n| writeln!(err, "{n:0999}").expect("it is read"));
            err.flush().expect("it is read");
            out.join().expect("no panic");
        }));
    }

    fn has_flooded(&self) -> bool {
        self.flood.as_ref().is_some_and(|flood| flood.is_finished())
    }

    /// Opens all the descriptors it can; why it could not open more.
    fn hoards(&mut self) -> String {
        hoard(&mut self.hoard).to_string()
    }

    fn lets_go(&mut self) {
        self.hoard.clear();
    }

    /// Whether this process may start any more processes or threads.
    fn may_start(&self, may: bool) {
        match getrlimit(Resource::Nproc).maximum {
            None if may => {
                setrlimit(Resource::Nproc, Rlimit { current: None, maximum: None }).expect("no limit")
            }
            most => limit(Resource::Nproc, if may { most.unwrap_or_default() } else { 1 }),
        }
    }

    /// Starts a worker of its own; why it could not.
    async fn starts_one(&self) -> Result<(), String> {
        let process = Process::spawn(returns, ()).await.map_err(|error| error.to_string())?;
        process.join().await.map_err(|error| error.to_string())
    }

    fn answers(&self, bytes: usize) -> Vec<u8> {
        // Written down from outside of the process, since its answers do not get far.
        say("answered");
        vec![7; bytes]
    }

    fn takes(&self, bytes: Vec<u8>) -> usize {
        bytes.len()
    }

    /// Blocks the only thread of its runtime until the file is there; says in another one that it has begun.
    fn blocks_until(&self, file: String) {
        std::fs::write(format!("{file}.begun"), "").expect("a file");
        eventually("the file is there", || Path::new(&file).exists());
    }

    /// The file that this process executes, whatever its path leads to by now.
    fn image(&self) -> u64 {
        image()
    }
}

/// Runs one of them, if there is one of this name.
pub(crate) async fn program(word: &str, file: String) -> hatchery::Result<()> {
    match word {
        "flooded" => flooded(&file).await,
        "helpers that stay" => helpers_that_stay(file).await,
        "out of descriptors" => out_of_descriptors().await,
        "hoarding worker" => hoarding_worker().await,
        "out of processes" => out_of_processes().await,
        "worker out of processes" => worker_out_of_processes().await,
        "replaced" => replaced(&file).await,
        "first process" => first_process().await,
        "recycled pids" => recycled_pids().await,
        "digs for ever" => digs_for_ever().await,
        "does not read" => does_not_read(&file).await,
        "is not read" => is_not_read(&file).await,
        other => Err(hatchery::Error::msg(format!("there is no program {other:?}"))),
    }
}

async fn sturdy(tree: &Tree) -> hatchery::Result<SturdyHandle> {
    Ok(tree.start_child(worker::<Sturdy>("sturdy", ())).await?)
}

async fn tree() -> hatchery::Result<Tree> {
    Ok(Supervisor::new(Strategy::OneForOne).intensity(1000, Duration::from_secs(60)).start().await?)
}

/// Tells the launcher something, all at once.
fn report(file: &str, what: &str) -> hatchery::Result<()> {
    std::fs::write(format!("{file}.unfinished"), what)?;
    std::fs::rename(format!("{file}.unfinished"), format!("{file}.report"))?;
    Ok(())
}

/// Both streams of a worker are flooded, and nobody reads what the printer prints.
///
/// The door of a test: that one captures stdout as well.
async fn flooded(file: &str) -> hatchery::Result<()> {
    let tree = tree().await?;
    let bystander = tree.start_child(worker::<Sturdy>("bystander", ())).await?;
    let worker = sturdy(&tree).await?;
    let before = own_memory(std::process::id());
    worker.floods().await?;
    let mut asked = 0;
    while !worker.has_flooded().await? {
        asked += 1;
        assert_eq!(bystander.echo(asked).await?, asked);
    }
    let crash = worker.exits(5).await.unwrap_err();
    let more = own_memory(std::process::id()).saturating_sub(before);
    let exit = crash.exit().ok_or_else(|| hatchery::Error::msg("no crash"))?;
    let mut tail: Vec<_> = (ERR_LINES - 99..ERR_LINES).map(|n| format!("{n:0999}")).collect();
    tail.push("last words".to_owned());
    assert_eq!((exit.exitcode(), exit.stderr_tail()), (Some(5), &tail[..]));
    // What waits to be printed: 4096 lines of 8 KiB; with as much again for what lies between allocations.
    assert!(more < 2 * 4096 * 8, "{more} KiB more than before");
    report(file, &format!("{asked} asks meanwhile, {more} KiB more memory"))?;
    becomes_true("all has been read", || Path::new(&format!("{file}.enough")).exists()).await;
    tree.stop().await
}

/// Leaves a helper behind that holds both pipes until somebody closes the other end of the fifo.
#[hatchery::task]
fn leaves_a_helper(fifo: String, aborts: bool) {
    use std::os::unix::process::CommandExt;
    let mut helper = std::process::Command::new("sh");
    helper.args(["-c", "read line; echo bye >&2"]).stdin(File::open(fifo).expect("a fifo"));
    // In a group of its own, so that it outlives the group of its worker.
    helper.process_group(0);
    let helper = helper.spawn().expect("a shell");
    eprintln!("left {}", helper.id());
    // Nobody waits for it: it is there to stay.
    std::mem::forget(helper);
    if aborts {
        std::process::abort()
    }
}

/// As many as a warden keeps the pipes of.
const HELD: usize = 128;

/// Workers die, what they started does not, and holds their stdout and stderr.
async fn helpers_that_stay(fifo: String) -> hatchery::Result<()> {
    ends("one", Process::spawn(returns, ()).await?.join()).await?;
    // Of that one, some descriptors may still be there; none of those that follow may stay.
    let before = holdings();
    for round in 0..HELD + 20 {
        let process = Process::spawn(leaves_a_helper, (fifo.clone(), round % 2 == 1)).await?;
        let exit = ends("a worker whose helper holds its pipes", process.wait()).await;
        assert_eq!(exit.exitcode(), Some(if round % 2 == 1 { -6 } else { 0 }));
        assert!(exit.stderr_tail()[0].starts_with("left "), "{exit:?}");
    }
    let during = holdings();
    // Two pipes and a pidfd each, and whatever the last worker still holds at this moment.
    assert!(during.0 <= before.0 + 3 * HELD + 8 && during.1 == before.1, "{before:?} {during:?}");
    std::fs::write(format!("{fifo}.held"), "")?;
    becomes_true("all descriptors have come back", || !leaked(before)).await;
    report(&fifo, &format!("{before:?}, meanwhile {during:?}"))
}

/// Opens files until the system refuses; its words.
fn hoard(hoard: &mut Vec<File>) -> std::io::Error {
    loop {
        match File::open("/dev/null") {
            Ok(file) => hoard.push(file),
            Err(error) => return error,
        }
    }
}

fn limit(what: Resource, to: u64) {
    setrlimit(what, Rlimit { current: Some(to), maximum: getrlimit(what).maximum }).expect("a lower limit");
}

async fn out_of_descriptors() -> hatchery::Result<()> {
    limit(Resource::Nofile, 100);
    let tree = tree().await?;
    let worker = sturdy(&tree).await?;
    let process = Process::builder(stays, ()).daemon(true).spawn().await?;
    let mut files = Vec::new();
    assert_eq!(hoard(&mut files).raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()));
    let most = files.len();
    // With ever more room, so that each of the descriptors that a start needs is the one that is missing once.
    let (mut refused, mut started) = (0, 0);
    for room in 0..16 {
        files.truncate(most - room);
        match Process::spawn(returns, ()).await {
            Ok(process) => {
                started += 1;
                ends("a process", process.join()).await?;
            }
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.contains("Too many open files") && text.contains("ulimit -n"), "{text}");
                let text = tree.start_child(worker_named("another")).await.map(drop).unwrap_err().to_string();
                assert!(text.contains("Too many open files") && text.contains("ulimit -n"), "{text}");
            }
        }
        assert_eq!(worker.echo(room as u64).await?, room as u64);
        // What was begun is gone: as many can be opened as before.
        becomes_true("nothing is left of it", || {
            hoard(&mut files);
            files.len() >= most
        })
        .await;
        assert_eq!((files.len(), tree.count().specs), (most, 1));
    }
    assert!(refused > 3 && started > 3, "{refused} refused, {started} started");
    drop(files);
    assert!(process.is_alive() && worker.incarnation() == Some(1));
    ends("a start", tree.start_child(worker_named("another"))).await?;
    process.kill()?;
    say(&format!("{refused} refused, {started} started"));
    tree.stop().await
}

fn worker_named(name: &str) -> hatchery::ChildSpec<impl hatchery::Start<Handle = SturdyHandle> + use<>> {
    worker::<Sturdy>(name, ())
}

/// The worker has no descriptors left.
async fn hoarding_worker() -> hatchery::Result<()> {
    limit(Resource::Nofile, 100);
    let tree = tree().await?;
    let worker = sturdy(&tree).await?;
    assert!(worker.hoards().await?.contains("Too many open files"));
    assert_eq!(worker.takes(vec![1; 3_000_000]).await?, 3_000_000);
    let error = worker.starts_one().await.unwrap_err();
    assert!(error.to_string().contains("Too many open files"), "{error}");
    worker.lets_go().await?;
    worker.starts_one().await?;
    assert_eq!(worker.incarnation(), Some(1));
    // Its end is told, too.
    worker.hoards().await?;
    let exit = worker.exits(7).await.unwrap_err();
    let exit = exit.exit().expect("a crash");
    assert_eq!((exit.exitcode(), exit.stderr_tail()), (Some(7), &["last words".to_owned()][..]));
    worker.hoards().await?;
    let exit = worker.panics().await.unwrap_err();
    assert_eq!(exit.exit().and_then(|exit| exit.panic()).expect("a panic").message, "enough");
    worker.hoards().await?;
    tree.stop().await?;
    say("a worker without descriptors is a worker");
    Ok(())
}

async fn out_of_processes() -> hatchery::Result<()> {
    let most = getrlimit(Resource::Nproc);
    limit(Resource::Nproc, 1);
    let named = |text: &str| text.contains("Resource temporarily unavailable");
    // The first start is the one that needs threads.
    let error = Process::spawn(returns, ()).await.map(drop).unwrap_err().to_string();
    assert!(named(&error) && error.contains("ulimit -u"), "{error}");
    setrlimit(Resource::Nproc, most).expect("its old limit");
    let tree = tree().await?;
    let worker = sturdy(&tree).await?;
    let process = Process::builder(stays, ()).daemon(true).spawn().await?;
    let (mut refused, mut started) = (0, 0);
    for room in 1..20 {
        // Where this user has no other processes, there is ever more room, and in the end the worker lacks a thread.
        limit(Resource::Nproc, room);
        match Process::spawn(returns, ()).await {
            Ok(process) => match ends("a process", process.join()).await {
                Ok(()) => started += 1,
                Err(error) => assert!(named(&format!("{error:?}")), "{error:?}"),
            },
            Err(error) => {
                refused += 1;
                assert!(named(&format!("{error:?}")), "{error:?}");
                let error = tree.start_child(worker_named("another")).await.map(drop).unwrap_err();
                assert!(named(&format!("{error:?}")), "{error:?}");
            }
        }
        assert_eq!(worker.echo(room).await?, room);
    }
    setrlimit(Resource::Nproc, most).expect("its old limit");
    assert!(process.is_alive() && worker.incarnation() == Some(1));
    ends("a start", tree.start_child(worker_named("another"))).await?;
    ends("a process", Process::spawn(returns, ()).await?.join()).await?;
    process.kill()?;
    becomes_true("nothing is left of the rest", || children(std::process::id()).len() == 2).await;
    assert!(refused > 0);
    say(&format!("{refused} refused, {started} started"));
    tree.stop().await
}

/// The same in a worker: first its threads are what cannot be started, then its processes.
async fn worker_out_of_processes() -> hatchery::Result<()> {
    let tree = tree().await?;
    let worker = sturdy(&tree).await?;
    for round in 0..2 {
        worker.may_start(false).await?;
        let error = worker.starts_one().await.unwrap_err().to_string();
        assert!(error.contains("Resource temporarily unavailable") && error.contains("ulimit -u"), "{error}");
        assert_eq!(worker.echo(round).await?, round);
        worker.may_start(true).await?;
        worker.starts_one().await?;
        assert_eq!(worker.incarnation(), Some(1));
    }
    // Its end is told, too.
    worker.may_start(false).await?;
    let exit = worker.exits(7).await.unwrap_err();
    let exit = exit.exit().expect("a crash");
    assert_eq!((exit.exitcode(), exit.stderr_tail()), (Some(7), &["last words".to_owned()][..]));
    worker.starts_one().await?;
    say("a worker without processes is a worker");
    tree.stop().await
}

/// The file that this process executes.
fn image() -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/exe").expect("an image").ino()
}

#[hatchery::task]
fn image_of_a_task() -> u64 {
    image()
}

/// Its file is deleted, and later another one lies there.
async fn replaced(file: &str) -> hatchery::Result<()> {
    let tree = tree().await?;
    let worker = sturdy(&tree).await?;
    for what in ["running", "deleted", "replaced"] {
        say(what);
        becomes_true(what, || Path::new(&format!("{file}.{what}")).exists()).await;
        assert!(worker.aborts().await.is_err_and(|error| error.is_crash()));
        assert_eq!(worker.image().await?, image());
        assert_eq!(Process::spawn(image_of_a_task, ()).await?.join().await?, image());
        let another = tree.start_child(worker_named(what)).await?;
        assert_eq!(another.image().await?, image());
    }
    say("all of them are the same image");
    tree.stop().await
}

/// A worker with a worker of its own, which it survives.
#[hatchery::task]
async fn outlives_its_worker() -> hatchery::Result<()> {
    let inner = Process::spawn(stays, ()).await?;
    inner.kill()?;
    inner.wait().await;
    Process::spawn(returns, ()).await?.join().await?;
    Ok(())
}

/// Process 1 of a namespace, as in a container: no signal ends it by default, and all orphans become its children.
async fn first_process() -> hatchery::Result<()> {
    assert_eq!(std::process::id(), 1);
    let tree = tree().await?;
    let worker = sturdy(&tree).await?;
    for round in 0..20 {
        assert!(worker.aborts().await.is_err_and(|error| error.is_crash()));
        assert_eq!(worker.echo(round).await?, round);
        let process = Process::spawn(stays, ()).await?;
        process.kill()?;
        assert_eq!(ends("killed", process.wait()).await.exitcode(), Some(-9));
        ends("nested", Process::spawn(outlives_its_worker, ()).await?.join()).await??;
    }
    let only = worker.pid().expect("it lives");
    becomes_true("all but one are reaped", || children(1) == [only]).await;
    Process::builder(stays, ()).daemon(true).spawn().await?;
    say("ready");
    Ok(())
}

/// A process of nobody's, in a group of its own, with this number.
fn bystander(pid: u32) -> std::process::Child {
    use std::os::unix::process::CommandExt;
    for _ in 0..1000 {
        // The kernel gives the next number; should another process or thread have come between, once more.
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
            .expect("leave to choose numbers");
        let mut child =
            std::process::Command::new("sleep").arg("1000").process_group(0).spawn().expect("sleep");
        if child.id() == pid {
            return child;
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    panic!("the number {pid} did not come back")
}

/// Numbers of ended workers come back as those of others, in groups of their own. Whatever is done to the ended ones
/// must not reach these.
async fn recycled_pids() -> hatchery::Result<()> {
    let tree = tree().await?;
    let unharmed = |mut child: std::process::Child| {
        assert!(runs(child.id()) && state(child.id()) != Some('T'), "{:?}", state(child.id()));
        let _ = child.kill();
        let _ = child.wait();
    };
    let everything = |process: &Process<()>| {
        for act in [Process::terminate, Process::interrupt, Process::pause, Process::kill] {
            act(process).expect("nothing happens");
        }
    };
    // One that was reaped by its warden.
    let ended = Process::builder(stays, ()).kill_on_drop(true).spawn().await?;
    ended.kill()?;
    ends("killed", ended.wait()).await;
    let other = bystander(ended.pid());
    everything(&ended);
    drop(ended);
    unharmed(other);
    // One that somebody else waited for, before its warden has noticed.
    let holder = tree.start_child(worker::<Sturdy>("holder", ())).await?;
    for _ in 0..3 {
        let ended = Process::spawn(stays, ()).await?;
        let go = held_warden(&holder).await;
        send(ended.pid(), Signal::KILL);
        eventually("it is waited for", || waits_for_anybody() == ended.pid());
        let other = bystander(ended.pid());
        everything(&ended);
        drop(go);
        let exit = ends("killed", ended.wait()).await;
        assert_eq!(exit.status(), Status::Unknown, "{exit}");
        everything(&ended);
        unharmed(other);
    }
    // The same, where its warden may have been faster.
    for _ in 0..20 {
        let ended = Process::spawn(stays, ()).await?;
        let pid = rustix::process::Pid::from_raw(ended.pid() as i32).expect("not 0");
        send(ended.pid(), Signal::KILL);
        // Interrupted by nothing.
        let _ = waitpid(Some(pid), WaitOptions::empty());
        let other = bystander(ended.pid());
        everything(&ended);
        ends("killed", ended.wait()).await;
        everything(&ended);
        unharmed(other);
    }
    // A supervised one, whose seat lives on.
    let worker = sturdy(&tree).await?;
    let pid = worker.pid().expect("it lives");
    assert!(worker.aborts().await.is_err_and(|error| error.is_crash()));
    worker.echo(1).await?;
    let other = bystander(pid);
    let stopped = ends("stop", tree.stop()).await;
    worker.kill();
    unharmed(other);
    stopped?;
    // A worker has the number of an ended one.
    let ended = Process::spawn(returns, ()).await?;
    ended.join().await?;
    let mut again = Process::spawn(stays, ()).await?;
    for _ in 0..1000 {
        if again.pid() == ended.pid() {
            break;
        }
        again.kill()?;
        again.wait().await;
        std::fs::write("/proc/sys/kernel/ns_last_pid", (ended.pid() - 1).to_string())?;
        again = Process::spawn(stays, ()).await?;
    }
    assert_eq!(again.pid(), ended.pid());
    everything(&ended);
    assert_ne!(state(again.pid()), Some('T'));
    assert!(again.is_alive() && again.wait_timeout(Duration::from_millis(20)).await.is_none());
    again.kill()?;
    again.wait().await;
    say("nobody else was signalled");
    Ok(())
}

/// Three workers, each below the other, and beside each but the first a stopped one.
#[hatchery::task]
async fn digs(levels: u32) -> hatchery::Result<()> {
    if levels == 0 {
        say("deep");
        return std::future::pending().await;
    }
    let inner = Process::spawn(self::digs, levels - 1).await?;
    let stopped = Process::spawn(stays, ()).await?;
    stopped.pause()?;
    say("stopped");
    inner.join().await?
}

async fn digs_for_ever() -> hatchery::Result<()> {
    loop {
        say("start");
        let deep = Process::spawn(digs, 2).await?;
        deep.wait_timeout(Duration::from_millis(100)).await;
        deep.kill()?;
        deep.wait().await;
    }
}

/// A quarter of a mebibyte, an answer or a request.
const LARGE: usize = 1 << 18;
/// The window, each place taken by a large one, and 16 MiB for buffers and what lies between allocations; in KiB.
const WINDOW_OF_LARGE: u64 = (256 / 4 + 16) * 1024;

/// The runtime of this process reads nothing while its worker answers.
async fn does_not_read(file: &str) -> hatchery::Result<()> {
    let tree = tree().await?;
    let worker = sturdy(&tree).await?;
    let pid = worker.pid().expect("it lives");
    let before = (own_memory(std::process::id()), own_memory(pid));
    let blocked = tokio::spawn(worker.blocks_until(format!("{file}.go")));
    becomes_true("it is blocked", || Path::new(&format!("{file}.go.begun")).exists()).await;
    let asking: Vec<_> = (0..500).map(|_| tokio::spawn(worker.answers(LARGE))).collect();
    for _ in 0..20 {
        // Each lets some sixty other tasks of this runtime be polled.
        tokio::task::yield_now().await;
    }
    // When there is no room for one more, those of the window have left.
    assert!(worker.echo(0).timeout(Duration::from_millis(500)).tell().await.is_err());
    std::fs::write(format!("{file}.go"), "")?;
    // From here this thread, the only one of its runtime, waits for the launcher to have heard of all those answers.
    eventually("all of the window is answered", || Path::new(&format!("{file}.heard")).exists());
    let after = (own_memory(std::process::id()), own_memory(pid));
    let more = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    // The worker has answered all of the window, and holds what the socket does not take.
    assert!(more.1 > WINDOW_OF_LARGE / 2 && more.1 < WINDOW_OF_LARGE, "{more:?} KiB more");
    assert!(more.0 < 16 * 1024, "{more:?} KiB more");
    // Control needs no reader: the signals of pause and kill, and the death.
    send(pid, Signal::STOP);
    eventually("it is stopped", || state(pid) == Some('T'));
    worker.kill();
    eventually("it is reaped", || state(pid).is_none());
    // It was killed before this side read that it was over.
    assert!(ends("the first one", blocked).await?.is_ok());
    // And now it reads what had arrived; what was not is a crash or goes to the next incarnation.
    let (mut answered, mut crashed) = (0, 0);
    for ask in asking {
        match ends("an ask", ask).await? {
            Ok(bytes) => answered += usize::from(bytes.len() == LARGE),
            Err(error) if error.is_crash() => crashed += 1,
            Err(error) => return Err(error.into()),
        }
    }
    assert_eq!(answered + crashed, 500);
    assert!(crashed <= 256, "{crashed}");
    say(&format!("{more:?} KiB more, {answered} answered, {crashed} crashed"));
    tree.stop().await
}

/// The worker reads nothing while this process sends.
async fn is_not_read(file: &str) -> hatchery::Result<()> {
    let tree = tree().await?;
    let spec = worker::<Sturdy>("sturdy", ()).shutdown(Shutdown::graceful(Duration::from_millis(50)));
    let worker = tree.start_child(spec).await?;
    let pid = worker.pid().expect("it lives");
    let own = std::process::id();
    let before = (own_memory(own), own_memory(pid));
    let blocked = tokio::spawn(worker.blocks_until(format!("{file}.go")));
    becomes_true("it is blocked", || Path::new(&format!("{file}.go.begun")).exists()).await;
    let mut sent = 0;
    while let Ok(()) = worker.takes(vec![7; LARGE]).timeout(Duration::from_millis(500)).tell().await {
        sent += 1;
    }
    let after = (own_memory(own), own_memory(pid));
    let more = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    assert_eq!(sent, 255, "the blocked one has the last place");
    assert!(more.0 < WINDOW_OF_LARGE && more.1 < 16 * 1024, "{more:?} KiB more");
    send(pid, Signal::STOP);
    becomes_true("it is stopped", || state(pid) == Some('T')).await;
    send(pid, Signal::CONT);
    std::fs::write(format!("{file}.go"), "")?;
    ends("the handler", blocked).await??;
    // It reads now, and takes all of it.
    assert_eq!(ends("an ask", worker.echo(1)).await?, 1);
    // Once more, and this time it is stopped as it stands there.
    let blocked = tokio::spawn(worker.blocks_until(format!("{file}.never")));
    becomes_true("it is blocked", || Path::new(&format!("{file}.never.begun")).exists()).await;
    while let Ok(()) = worker.takes(vec![7; LARGE]).timeout(Duration::from_millis(100)).tell().await {}
    ends("stop", tree.stop()).await?;
    assert!(ends("the handler", blocked).await?.is_err());
    assert!(!runs(pid));
    say(&format!("{more:?} KiB more"));
    Ok(())
}
