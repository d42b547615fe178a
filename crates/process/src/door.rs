//! The door: the first thing a program does, where it turns out whether this process is a worker or the root.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::actor::AnyActor;
use hatchery_actor::address::ProcessId;
use hatchery_actor::error::Error;
use hatchery_actor::exit::Panic;
use hatchery_actor::panics;
use hatchery_actor::root::Root;
use hatchery_actor::spin::Spin;
use hatchery_wire::{Body, EncodeError, LinkSocket, encode};
use rustix::process::Signal;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};

use crate::collector::{Collector, Logs};
use crate::failing;
use crate::forward;
use crate::frames::{Frame, Hello, Identity, Invitation, LastWords, PROTOCOL};
use crate::inside::{self, BROKEN, Ended, Inside};
use crate::launch::INVITED_BY;
use crate::os;
use crate::printer::{Mode, Printer};
use crate::program::{Current, Parts, Program, WORKER};
use crate::registry::{self, HostedActor};
use crate::resources;
use crate::warden::Warden;

/// Which runtime the root's `main` runs on; workers always have one of a single thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavor {
    /// One thread.
    CurrentThread,
    /// A thread a core, or as many as `worker_threads` says.
    #[default]
    MultiThread,
}

/// A program about to go through the door: what `#[hatchery::main]` writes, for those who write it by hand.
///
/// ```text
/// fn main() {
///     hatchery::program()
///         .each_process(|| println!("in the root, and in every worker before its actor or task"))
///         .run(async || println!("in the root only"))
/// }
/// ```
#[must_use = "nothing runs before `run`"]
#[derive(Default)]
pub struct Door {
    flavor: Flavor,
    worker_threads: Option<usize>,
    thread_keep_alive: Option<Duration>,
    pub(crate) each: Vec<Box<dyn FnOnce()>>,
    config: Option<Result<Body, EncodeError>>,
    orderly_signals: bool,
    pub(crate) logs: Logs,
    pub(crate) spin: Spin,
    pub(crate) worker_env_only: Option<BTreeSet<OsString>>,
}

/// A program about to go through the door.
pub fn program() -> Door {
    Door::default()
}

/// The `worker_config` travels on the link, whose frames are small.
const LARGEST_CONFIG: usize = 32 * 1024;

impl Door {
    /// Which runtime `main` runs on; multi-threaded unless told otherwise.
    pub fn flavor(mut self, flavor: Flavor) -> Self {
        self.flavor = flavor;
        self
    }

    /// How many threads a multi-threaded runtime has; one a core unless told otherwise.
    ///
    /// # Panics
    /// Zero.
    pub fn worker_threads(mut self, threads: usize) -> Self {
        assert!(threads > 0, "worker_threads must be at least 1");
        self.worker_threads = Some(threads);
        self
    }

    /// How long an idle thread for blocking work lives on; tokio's 10 s unless told otherwise.
    pub fn thread_keep_alive(mut self, time: Duration) -> Self {
        self.thread_keep_alive = Some(time);
        self
    }

    /// Runs in the root and in every worker, before anything else of theirs: for loggers and statics.
    pub fn each_process(mut self, f: impl FnOnce() + 'static) -> Self {
        self.each.push(Box::new(f));
        self
    }

    /// Hosts an actor by hand, as generic ones need: `hosts::<Cache<u32>>()`. Others are hosted already.
    pub fn hosts<A: AnyActor>(self) -> Self {
        registry::host(HostedActor::of::<A>());
        self
    }

    /// A value that every worker can read by `hatchery::config()`; 32 KiB at most, encoded. The root can, too. With
    /// one that is larger, has descriptors, or cannot be encoded, `run` says so and exits with 1.
    pub fn worker_config<T: Serialize>(mut self, value: &T) -> Self {
        self.config = Some(encode(value));
        self
    }

    /// On Ctrl-C or SIGTERM, stop everything in order and exit with 128 + the signal's number; a second one ends the
    /// program at once. Without this, the first one does, and all workers with it.
    pub fn orderly_signals(mut self) -> Self {
        self.orderly_signals = true;
        self
    }

    /// Whether `tracing` events of workers reach the root's subscriber, see [`logs`](crate::logs). They do unless this
    /// says otherwise.
    pub fn logs(mut self, logs: Logs) -> Self {
        self.logs = logs;
        self
    }

    /// Whether the ends of the channels to workers, at all levels, look out for answers and requests before they sleep;
    /// they do not unless told otherwise, here or in a worker's spec. See [`Spin`].
    pub fn spin(mut self, spin: Spin) -> Self {
        self.spin = spin;
        self
    }

    /// Of a process's environment, its workers inherit these variables only; what a spec or a builder sets by `env`
    /// comes on top, and its `env_only` takes the place of this list. It holds for workers of workers as well.
    ///
    /// Nothing is added for comfort: a worker that needs `PATH`, `LD_LIBRARY_PATH`, `HOME` or `RUST_BACKTRACE` gets
    /// them if they are named. Only rustdoc's own `RUSTDOC_DOCTEST_*` stay, by which a doc test knows itself.
    pub fn worker_env_only<N: Into<OsString>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.worker_env_only = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// What was given to `worker_config`, or why it cannot be given to workers.
    pub(crate) fn take_config(&mut self) -> Result<Body, String> {
        let config = self.config.take().transpose();
        let config = config.map_err(|error| format!("the worker_config cannot be encoded: {error}"))?;
        let config = config.unwrap_or_default();
        if config.descriptors() > 0 {
            return Err("the worker_config has descriptors: give them to workers as arguments".to_owned());
        }
        if config.len() > LARGEST_CONFIG {
            let bytes = config.len();
            return Err(format!("the worker_config has {bytes} bytes, over the limit of {LARGEST_CONFIG}"));
        }
        Ok(config)
    }

    /// Goes through the door. In a worker this does what the worker is for and exits. In the root it runs `main` and
    /// then leaves: after `Ok` it waits for processes that are no daemons, stops everything else, newest first, and
    /// exits with 0; after `Err` or a panic it prints that, stops everything, waits for nobody and exits with 1.
    pub fn run<F, Fut>(self, main: F) -> !
    where
        F: FnOnce() -> Fut,
        Fut: Future,
        Fut::Output: Outcome,
    {
        let mut door = self;
        if let Some(invited) = Invited::accept() {
            be_worker(invited, std::mem::take(&mut door.each), Vec::new(), door.worker_env_only.take());
        }
        panics::note_places();
        os::heed_sigchld();
        resources::raise_open_files();
        let config = door.take_config().unwrap_or_else(|why| refuse(&why));
        each_process(std::mem::take(&mut door.each));
        let program = Program::new(Parts {
            root: Root::new(),
            depth: 0,
            again: Vec::new(),
            capture_stdout: false,
            config,
            env_only: door.worker_env_only.take(),
            spin: door.spin,
            printer: Printer::new(Mode::Plain),
            logs: Collector::new(door.logs),
        });
        program.settle();
        let runtime = match runtime(door.flavor, door.worker_threads, door.thread_keep_alive, &program) {
            Ok(runtime) => runtime,
            Err(error) => refuse(&format!("no runtime: {error}")),
        };
        let orderly = door.orderly_signals;
        let outcome = be_root(&program, runtime, main, orderly);
        exit(i32::from(!matches!(outcome, Ok(true))))
    }
}

/// Does what is to be done in every process.
pub(crate) fn each_process(each: Vec<Box<dyn FnOnce()>>) {
    if !each.is_empty() {
        for f in each {
            f();
        }
        // One of them may have set a panic hook of its own.
        panics::note_places_again();
    }
}

fn refuse(why: &str) -> ! {
    failing::say(&format!("hatchery: {why}"));
    exit(1)
}

/// What a `main` may return: nothing, or a `Result` of nothing whose error can be shown.
#[diagnostic::on_unimplemented(
    message = "a main or a test of hatchery cannot return `{Self}`",
    label = "write `-> hatchery::Result<()>`, or no result at all"
)]
pub trait Outcome {
    /// What is to be said of it, if it is a failure.
    fn failure(&self) -> Option<String>;
}

impl Outcome for () {
    fn failure(&self) -> Option<String> {
        None
    }
}

impl<E: std::fmt::Debug> Outcome for Result<(), E> {
    fn failure(&self) -> Option<String> {
        self.as_ref().err().map(|error| format!("Error: {error:?}"))
    }
}

pub(crate) fn runtime(
    flavor: Flavor,
    worker_threads: Option<usize>,
    thread_keep_alive: Option<Duration>,
    program: &Arc<Program>,
) -> std::io::Result<Runtime> {
    let mut builder = match flavor {
        Flavor::CurrentThread => Builder::new_current_thread(),
        Flavor::MultiThread => Builder::new_multi_thread(),
    };
    if let Some(threads) = worker_threads {
        builder.worker_threads(threads);
    }
    if let Some(time) = thread_keep_alive {
        builder.thread_keep_alive(time);
    }
    let program = program.clone();
    builder.enable_all().on_thread_start(move || program.enter()).build()
}

/// Runs a root's main, and leaves in order, as the end of a test does in its way. Gives whether it succeeded; a failure has been printed.
///
/// # Errors
/// The panic of main.
fn be_root<F, Fut>(
    program: &Arc<Program>,
    runtime: Runtime,
    main: F,
    orderly_signals: bool,
) -> Result<bool, Panic>
where
    F: FnOnce() -> Fut,
    Fut: Future,
    Fut::Output: Outcome,
{
    program.enter();
    program.runs_on(runtime.handle());
    failing::watch_main(program, runtime.handle());
    let failed = runtime.block_on(async {
        let root = program.root.clone();
        let whole = async {
            let outcome = panics::catch(failing::as_main(async { main().await })).await;
            let failed = outcome.map(|outcome| outcome.failure().map(|failure| failing::say(&failure)));
            if let Ok(None) = failed {
                root.linger().await;
            }
            failed
        };
        let failed = if orderly_signals {
            tokio::select! {
                biased;
                failed = whole => failed,
                number = a_signal() => {
                    tokio::spawn(async { exit(128 + a_signal().await) });
                    program.root.close().await;
                    program.logs.flush();
                    program.printer.flush();
                    exit(128 + number)
                }
            }
        } else {
            whole.await
        };
        program.root.close().await;
        failed
    });
    program.logs.flush();
    program.printer.flush();
    let succeeded = failed.map(|failed| failed.map(|saying| saying.wait()).is_none());
    runtime.shutdown_background();
    Program::leave();
    succeeded
}

/// Waits for SIGINT or SIGTERM; gives its number.
async fn a_signal() -> i32 {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = kinds else { return std::future::pending().await };
    tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
    }
}

/// An invitation that has been found good.
pub(crate) struct Invited {
    invitation: Invitation,
    link: LinkSocket,
    channel: UnixStream,
    stdout: Option<OwnedFd>,
    log: Option<OwnedFd>,
    parent: u32,
}

impl Invited {
    /// Whether this process is a worker. If so it is set up as one: on return its stdin is empty, signals are as in
    /// a fresh process, and its death follows its parent's.
    pub(crate) fn accept() -> Option<Invited> {
        let by: i32 = std::env::var(INVITED_BY).ok()?.parse().ok()?;
        let stdin = std::io::stdin();
        // A variable is inherited by grandchildren of all kinds; the socket is not.
        let peer = rustix::net::sockopt::socket_peercred(stdin.as_fd()).ok()?;
        if peer.pid.as_raw_nonzero().get() != by {
            return None;
        }
        match Invited::enter(by) {
            Ok(invited) => Some(invited),
            Err(why) => {
                eprintln!("hatchery: this worker cannot begin: {why}");
                exit(BROKEN)
            }
        }
    }

    fn enter(by: i32) -> Result<Invited, String> {
        let link = std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| format!("no link: {e}"))?;
        let null = std::fs::File::open("/dev/null").map_err(|e| format!("no /dev/null: {e}"))?;
        rustix::stdio::dup2_stdin(&null).map_err(|e| format!("stdin: {e}"))?;
        os::reset_signals();
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| format!("prctl: {e}"))?;
        // Armed first, then asked: a parent that dies in between is seen by one or the other.
        if rustix::process::getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != by) {
            exit(BROKEN);
        }
        let mut link = LinkSocket::new(link);
        let frame = match link.recv_blocking(Some(Duration::from_secs(30))) {
            Ok(Some(frame)) => Frame::unpack(frame)?,
            // The parent is gone.
            Ok(None) => exit(BROKEN),
            Err(error) => return Err(error.to_string()),
        };
        let Frame::Invitation(invitation, fds) = frame else {
            return Err(format!("expected an invitation, got {}", frame.name()));
        };
        if invitation.protocol != PROTOCOL {
            let theirs = invitation.protocol;
            return Err(format!(
                "the parent speaks version {theirs} of the protocol, this program {PROTOCOL}"
            ));
        }
        let mut fds = fds.into_iter();
        let channel = fds.next().map(UnixStream::from).ok_or("an invitation without a channel")?;
        let parent = by.unsigned_abs();
        let mut next = |wanted: bool| if wanted { fds.next() } else { None };
        let (stdout, log) = (next(invitation.stdout), next(invitation.logs.is_some()));
        Ok(Invited { invitation, link, channel, stdout, log, parent })
    }
}

/// Does what a worker does, and leaves; never unwinds, never returns.
pub(crate) fn be_worker(
    invited: Invited,
    each: Vec<Box<dyn FnOnce()>>,
    again: Vec<OsString>,
    env_only: Option<BTreeSet<OsString>>,
) -> ! {
    let (inside, kept) = match settle_in(invited, again, env_only) {
        Ok(settled) => settled,
        Err(why) => {
            eprintln!("hatchery: this worker cannot begin: {why}");
            exit(BROKEN)
        }
    };
    let (warden, program) = (inside.warden, inside.program.clone());
    let caught = panics::catch_call(move || {
        each_process(each);
        forward::install();
        inside::live(inside)
    });
    let Ended(words) = caught.unwrap_or_else(Ended::panicked);
    if let Some(reason) = &words.reason {
        eprintln!("hatchery: {reason}");
    }
    // What workers of this one have logged and written goes first.
    program.logs.flush();
    forward::finish();
    program.printer.flush();
    let _ = std::io::Write::flush(&mut std::io::stdout());
    let code = words.code;
    warden.last_words(words);
    // To the parent the channel ends when the process does, however long what runs at exit takes.
    std::mem::forget(kept);
    exit(code)
}

/// Makes this process the worker that it is invited to be, up to its hello. Gives what its inside needs, and another
/// descriptor of the channel to hold until the end.
fn settle_in(
    invited: Invited,
    again: Vec<OsString>,
    env_only: Option<BTreeSet<OsString>>,
) -> Result<(Inside, UnixStream), String> {
    let Invited { invitation, mut link, channel, stdout, log, parent } = invited;
    panics::note_places();
    if let Err(why) = resources::set(&invitation.settings) {
        give_up(link, &why);
    }
    let capture_stdout = stdout.is_some();
    if let Some(stdout) = stdout {
        // What the harness has printed goes where it was sent; from here on it is the worker's own.
        let _ = std::io::Write::flush(&mut std::io::stdout());
        rustix::stdio::dup2_stdout(&stdout).map_err(|error| format!("stdout: {error}"))?;
    }
    // What `top` shows; the kernel keeps the first 15 bytes. A name has no zero byte in it.
    let _ = CString::new(invitation.name.as_str()).map(|name| rustix::thread::set_name(&name));
    let _ = WORKER.set(Current {
        name: invitation.name.clone(),
        path: invitation.path.clone(),
        incarnation: invitation.incarnation,
        depth: invitation.depth,
        parent: Some(parent),
    });
    let program = Program::new(Parts {
        root: Root::of(ProcessId { path: invitation.path.clone(), birth: invitation.birth }, invitation.tree),
        depth: invitation.depth,
        again,
        capture_stdout,
        config: Body::from_bytes(invitation.config.clone().into()),
        env_only,
        spin: invitation.spin_below,
        printer: Printer::new(Mode::Plain),
        logs: Collector::new(Logs::Forward),
    });
    program.settle();
    if let (Some(log), Some(directives)) = (log, &invitation.logs) {
        program.logs.wanted.set(directives);
        forward::begin(log, &invitation.path, invitation.incarnation, directives);
    }
    let own = Identity::own().map_err(|error| format!("/proc/self/exe: {error}"))?;
    let hello = Frame::Hello(Hello { protocol: PROTOCOL, features: 0, program: own.clone() }).pack()?;
    // It leaves here and now: the parent deals with it while this process goes on starting.
    link.queue(hello).and_then(|()| link.flush()).map_err(|error| format!("its hello: {error}"))?;
    let warden = match Warden::get() {
        Ok(warden) => warden,
        Err(error) => give_up(link, &format!("no warden: {error}")),
    };
    warden.link_up(link);
    panics::before_abort(|panic| {
        // It is there: this is called by a worker, which has one.
        if let Ok(warden) = Warden::get() {
            warden.last_words(Ended::aborted(panic).0);
        }
    });
    let kept = channel.try_clone().map_err(|error| format!("its channel: {error}"))?;
    Ok((Inside { invitation, channel, warden, program }, kept))
}

/// Tells the parent why this worker cannot begin, which is then the error of its start, and leaves.
fn give_up(mut link: LinkSocket, why: &str) -> ! {
    eprintln!("hatchery: this worker cannot begin: {why}");
    let words = LastWords { code: BROKEN, reason: Some(why.to_owned()), ..LastWords::default() };
    for frame in [Frame::StartFailed(Error::msg(why)), Frame::LastWords(words)] {
        // A parent that is gone needs no reason.
        let _ = frame.pack().map(|frame| link.queue(frame));
    }
    let _ = link.flush_blocking(Some(Duration::from_secs(1)));
    exit(BROKEN)
}
