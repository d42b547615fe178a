//! Starting one worker process, and caring for it until its end.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use hatchery_actor::address::{ProcessId, random};
use hatchery_actor::child::{Ended, Order, Presence, ended as wait};
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::heartbeat::Heartbeat;
use hatchery_actor::output::Output;
use hatchery_actor::panics;
use hatchery_actor::settings::Settings;
use hatchery_actor::spin::Spin;
use hatchery_wire::LinkSocket;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::channel::{Channel, Desk, Outgoing};
use crate::collector::{self, Sink};
use crate::frames::{Frame, Invitation, PROTOCOL, What};
use crate::outputs::Outputs;
use crate::program::{ActiveChild, DEEPEST, Program};
use crate::spawner;
use crate::ward::Ward;
use crate::warden::Warden;
use crate::watched::Adoption;

/// The environment variable that invites a process to be a worker of the process with this pid.
pub(crate) const INVITED_BY: &str = "HATCHERY_PARENT";

/// How long a start may take unless told otherwise.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What to start, and how.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    /// The number of the seat it is for; 0 for a task without a supervisor, which has none.
    pub(crate) seat: u64,
    /// The process that is started.
    pub(crate) birth: u64,
    pub(crate) what: What,
    pub(crate) settings: Arc<Settings>,
    /// Held until the process has been reaped.
    pub(crate) presence: Option<Presence>,
    pub(crate) heartbeat: Heartbeat,
    /// How long one of its handlers may take, if that is watched.
    pub(crate) watchdog: Option<Duration>,
}

impl Launch {
    /// What is to sit in a supervisor's seat.
    pub(crate) fn seated(order: &Order, name: String, what: What) -> Launch {
        Launch {
            path: order.seat.path().to_owned(),
            name,
            incarnation: order.incarnation,
            seat: order.seat.id(),
            birth: random(),
            what,
            settings: order.settings.clone(),
            presence: Some(order.presence.clone()),
            heartbeat: order.heartbeat,
            watchdog: order.watchdog,
        }
    }
}

/// A worker process that has been started.
pub(crate) struct Launched {
    pub(crate) ward: Arc<Ward>,
    pub(crate) channel: UnixStream,
    spin: Spin,
    active: ActiveChild,
    program: Arc<Program>,
}

/// Starts a worker process and waits for nothing it says: what is sent to it meanwhile waits in its sockets.
/// Dropping the future kills what it started.
pub(crate) async fn launch(program: &Arc<Program>, launch: Launch) -> Result<Launched, Fault> {
    if program.depth >= DEEPEST {
        return Err(Fault::Refused(format!(
            "workers of workers are nested {DEEPEST} deep: refused, since this looks like a program that starts \
             itself without end"
        )));
    }
    program.printer.start();
    let sink = program.logs.sink();
    let warden =
        Warden::get().map_err(|error| cannot("start the thread that watches over workers", &error))?;
    let (program_there, launch_there) = (program.clone(), launch.clone());
    let spin = spin(program, &launch);
    let spawned = spawner::run(move || {
        // A caller who leaves while it is spawned gets nothing to end it with; this does.
        spawn(&program_there, warden, &launch_there, sink, spin)
            .map(|(ward, channel)| (KillOnDrop(Some(ward.clone())), ward, channel))
    });
    let (unless_left, ward, channel) =
        spawned.await.and_then(|spawned| spawned).map_err(|error| match &launch.settings.current_dir {
            // The system's words do not say which file or directory it misses.
            Some(dir) => cannot(&format!("start the worker {} in {}", launch.path, dir.display()), &error),
            None => cannot(&format!("start the worker {}", launch.path), &error),
        })?;
    unless_left.forget();
    let active = ActiveChild { name: launch.name, path: launch.path, pid: ward.pid_number() };
    Ok(Launched { ward, channel, spin, active, program: program.clone() })
}

/// Whether both ends of a channel spin. On a runtime of several threads answers go from thread to thread in any case,
/// and another end to look out only takes CPUs from them.
fn spin(program: &Program, launch: &Launch) -> Spin {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => launch.settings.spin.unwrap_or(program.spin),
        _ => Spin::Off,
    }
}

/// Waits for the hello of a worker, its end or the deadline, whichever is first. Dropping the future kills it.
pub(crate) async fn greeted(
    ward: &Arc<Ward>,
    ended: Ended,
    deadline: Instant,
    timeout: Duration,
) -> Result<(), Fault> {
    let unless_hello = KillOnDrop(Some(ward.clone()));
    match tokio::time::timeout_at(deadline, ward.greeted()).await {
        Ok(true) => {
            unless_hello.forget();
            Ok(())
        }
        Ok(false) => {
            let exit = wait(ended).await;
            Err(ward.start_failure().unwrap_or_else(|| self::ended(&exit)))
        }
        Err(_) => Err(late(ward, ended, format!("no hello within {timeout:?}")).await),
    }
}

/// Waits until a worker is ready, or its start has failed: then it is gone before anybody hears of that. Dropping the
/// future kills it.
pub(crate) async fn ready(
    ward: &Arc<Ward>,
    ended: Ended,
    deadline: Instant,
    timeout: Duration,
) -> Result<(), Fault> {
    let unless_ready = KillOnDrop(Some(ward.clone()));
    let outcome = match tokio::time::timeout_at(deadline, ward.started()).await {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(failed) => {
            // One live process a seat.
            if tokio::time::timeout(START_TIMEOUT, wait(ended.clone())).await.is_err() {
                ward.condemn("it lived on after its start failed");
            }
            let exit = wait(ended).await;
            Err(match failed {
                Some(Err(error)) => Fault::StartFailed(error.to_string()),
                _ => self::ended(&exit),
            })
        }
        Err(_) => {
            let missed = if ward.has_said_hello() { "not ready" } else { "no hello" };
            Err(late(ward, ended, format!("{missed} within {timeout:?}")).await)
        }
    };
    unless_ready.forget();
    outcome
}

/// Ends a worker that is late, and gives the fault of its start.
pub(crate) async fn late(ward: &Ward, ended: Ended, what: String) -> Fault {
    ward.condemn(what.clone());
    Fault::Late { what, exit: Box::new((*wait(ended).await).clone()) }
}

fn cannot(what: &str, error: &io::Error) -> Fault {
    let hint = error.raw_os_error().map(Errno::from_raw_os_error).map_or("", which_limit);
    Fault::StartFailed(format!("cannot {what}: {error}{hint}"))
}

/// The system's words name neither the limit nor where it is set.
fn which_limit(error: Errno) -> &'static str {
    match error {
        Errno::MFILE => "; this process has as many open files as its limit allows (`ulimit -n`)",
        Errno::NFILE => "; the whole system has as many open files as it allows (`fs.file-max`)",
        Errno::AGAIN => {
            "; there are as many processes and threads as the limit of this user (`ulimit -u`), of a cgroup \
             (`pids.max`) or of the system allows"
        }
        _ => "",
    }
}

/// The fault of a start that ended early.
pub(crate) fn ended(exit: &Exit) -> Fault {
    Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: false }
}

/// On the spawner thread: everything is queued in the sockets before the child runs.
fn spawn(
    program: &Arc<Program>,
    warden: &'static Warden,
    launch: &Launch,
    sink: Option<Sink>,
    spin: Spin,
) -> io::Result<(Arc<Ward>, UnixStream)> {
    let (ours, theirs) = LinkSocket::pair()?;
    let (channel, their_channel) = UnixStream::pair()?;
    let mut link = LinkSocket::new(ours);
    let mut fds = vec![OwnedFd::from(their_channel)];
    let mut stdout = None;
    let piped = match launch.settings.stdout {
        Output::Inherit => program.capture_stdout,
        output => output != Output::Null,
    };
    if piped {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        stdout = Some(read);
        fds.push(write);
    }
    let filter = program.logs.wanted.latest();
    let mut log = None;
    if let Some(sink) = sink {
        let (read, write) = collector::pipe()?;
        log = Some((read, sink));
        fds.push(write);
    }
    let invitation = Invitation {
        protocol: PROTOCOL,
        features: 0,
        path: launch.path.clone(),
        name: launch.name.clone(),
        incarnation: launch.incarnation,
        tree: program.root.tree(),
        birth: launch.birth,
        seat: launch.seat,
        depth: program.depth + 1,
        what: launch.what.clone(),
        stdout: stdout.is_some(),
        logs: log.is_some().then(|| filter.directives().to_string()),
        config: program.config.to_bytes().to_vec(),
        spin,
        spin_below: program.spin,
        settings: Box::new(launch.settings.resources.clone()),
    };
    let frame = Frame::Invitation(invitation, fds).pack().map_err(io::Error::other)?;
    link.queue(frame).map_err(io::Error::other)?;
    link.flush_blocking(Some(Duration::from_secs(1))).map_err(io::Error::other)?;

    let mut command = Command::new("/proc/self/exe");
    dress(&mut command, &launch.settings, program.env_only.as_ref());
    command
        .arg0(argv0(&launch.path))
        .args(&program.again)
        .env(INVITED_BY, std::process::id().to_string())
        .stdin(Stdio::from(theirs))
        .stderr(Stdio::piped())
        .process_group(0);
    // With a pipe, it takes that at its door: a harness may print before.
    if program.capture_stdout || launch.settings.stdout != Output::Inherit {
        command.stdout(Stdio::null());
    }
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the system gave an impossible pid"))?;
    // None only if it has ended and been reaped already, by a foreign wait or because SIGCHLD is ignored.
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        Err(rustix::io::Errno::SRCH) => None,
        Err(error) => {
            // Without its pidfd it cannot be watched. The child is ours and not yet reaped: kill and reap it here.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error.into());
        }
    };
    let ward = Ward::new(warden.number(), pid, pidfd);
    let stderr = child.stderr.take().map(OwnedFd::from);
    let printer = program.printer.clone();
    let presence = launch.presence.clone();
    let logs = log.is_some().then(|| (program.logs.wanted.clone(), filter.number));
    if let Some((read, sink)) = log {
        program.logs.adopt(read, &launch.path, sink);
    }
    let resources = launch.settings.resources.clone();
    let (heartbeat, watchdog) = (launch.heartbeat, launch.watchdog);
    let outputs = Outputs::new(&launch.settings, &launch.path);
    warden.adopt(Adoption {
        ward: ward.clone(),
        program: program.clone(),
        process: ProcessId { path: launch.path.clone(), birth: launch.birth },
        link,
        stderr,
        stdout,
        printer,
        presence,
        resources,
        heartbeat,
        watchdog,
        outputs,
        logs,
    });
    Ok((ward, channel))
}

/// Environment and directory; `all` is what the program lets its workers inherit.
fn dress(command: &mut Command, settings: &Settings, all: Option<&BTreeSet<OsString>>) {
    if let Some(names) = settings.env_only.as_ref().or(all) {
        command.env_clear();
        // A doc test that rustdoc merged with others knows by these variables which one it is.
        command.envs(std::env::vars_os().filter(|(name, _)| is_of_doc_tests(name)));
        command.envs(names.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    }
    for (name, value) in &settings.env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(dir) = &settings.current_dir {
        command.current_dir(dir);
    }
}

fn is_of_doc_tests(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"RUSTDOC_DOCTEST_")
}

/// What `ps` shows: the program and the place of the worker in its tree.
fn argv0(path: &str) -> String {
    // As it was called at the first start, should the file be renamed or replaced later.
    static NAME: OnceLock<String> = OnceLock::new();
    let name = NAME.get_or_init(|| {
        let exe = std::env::current_exe().ok();
        let name = exe.as_deref().and_then(|exe| exe.file_name()).map(|name| name.to_string_lossy());
        name.as_deref().unwrap_or("hatchery").to_owned()
    });
    format!("{name}: {path}")
}

/// Kills a worker whose start was given up.
pub(crate) struct KillOnDrop(pub(crate) Option<Arc<Ward>>);

impl KillOnDrop {
    pub(crate) fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(ward) = &self.0 {
            ward.condemn("its start was given up");
        }
    }
}

/// Runs the channel of a worker as a task of this runtime until the worker has ended, delivers everything it said
/// before, and only then reports the end: first to `at_end`, then to the receiver this gives.
pub(crate) fn live<D: Desk + Unpin>(
    launched: Launched,
    outgoing: Arc<Outgoing>,
    desk: D,
    at_end: impl FnOnce(&Exit) + Send + 'static,
) -> Result<Ended, Fault> {
    let Launched { ward, channel, spin, active, program } = launched;
    let unless_living = KillOnDrop(Some(ward.clone()));
    let mut channel = Channel::new(channel, outgoing.clone(), desk, spin)
        .map_err(|error| cannot("use the channel of the worker", &error))?;
    unless_living.forget();
    let (sender, receiver) = watch::channel(None);
    let child = (active, ward.clone());
    program.children.lock().unwrap_or_else(PoisonError::into_inner).insert(ward.id, child);
    let mut end = End { ward: ward.clone(), program, at_end: Some(at_end), sender, exit: None };
    tokio::spawn(async move {
        tokio::select! {
            biased;
            over = panics::catch(&mut channel) => {
                let over = over.unwrap_or_else(|panic| Err(format!("its channel failed here: {panic}")));
                if let Err(reason) = over {
                    ward.condemn(reason);
                } else if let Ok(warden) = Warden::get() {
                    // It is there, since it watches over this one; and it knows when this process was away.
                    warden.channel_closed(&ward);
                }
            }
            _ = ward.exited() => {
                outgoing.drain();
                // What is wrong with its last bytes no longer matters.
                let _ = panics::catch(channel).await;
            }
        }
        end.exit = Some(ward.exited().await);
        drop(end);
    });
    Ok(receiver)
}

/// Reports the end on every way out of the task, its runtime's shutdown included.
struct End<F: FnOnce(&Exit)> {
    ward: Arc<Ward>,
    program: Arc<Program>,
    at_end: Option<F>,
    sender: watch::Sender<Option<Arc<Exit>>>,
    exit: Option<Arc<Exit>>,
}

impl<F: FnOnce(&Exit)> Drop for End<F> {
    fn drop(&mut self) {
        let exit = self.exit.take().unwrap_or_else(|| {
            self.ward.condemn("the runtime that it was started on has ended");
            Arc::new(Exit::new(Status::Unknown).with_reason(Some("its runtime has ended".to_owned())))
        });
        self.program.children.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ward.id);
        if let Some(at_end) = self.at_end.take() {
            at_end(&exit);
        }
        self.sender.send_replace(Some(exit));
    }
}
