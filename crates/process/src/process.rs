//! One task in a process of its own.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hatchery_actor::address::random;
use hatchery_actor::ask::deadline;
use hatchery_actor::child::{BoxFuture, Ended, ended as wait};
use hatchery_actor::exit::{Exit, Panic};
use hatchery_actor::fault::Fault;
use hatchery_actor::heartbeat::Heartbeat;
use hatchery_actor::outlet::measure;
use hatchery_actor::predicates;
use hatchery_actor::root::{Residence, Resident, check_segment};
use hatchery_actor::settings;
use hatchery_actor::settings::Settings;
use hatchery_actor::trace::TraceContext;
use hatchery_wire::{Body, DecodeError, EncodeError, Envelope, Kind, Origin};
use rustix::process::Signal;

use crate::channel::{Desk, Outgoing, fault_of};
use crate::frames::What;
use crate::launch::{self, Launch, START_TIMEOUT, launch, live};
use crate::program::Program;
use crate::registry;
use crate::task::{Runs, TaskEntry};
use crate::ward::Ward;
use crate::worker::TENANT;

/// A function that runs in a process of its own. See [`Process::spawn`].
///
/// Dropping it detaches the process: it goes on, and a `main` that returns `Ok` still waits for it, unless it is a
/// [`daemon`](Builder::daemon). With [`kill_on_drop`](Builder::kill_on_drop) it ends there and then.
#[doc(alias = "multiprocessing")]
pub struct Process<R> {
    shared: Arc<Shared>,
    decode: fn(Body) -> Result<R, DecodeError>,
    kill_on_drop: bool,
}

/// What the handle, the channel and the end of the program have in common.
struct Shared {
    name: String,
    path: String,
    ward: Arc<Ward>,
    ended: Ended,
    result: Returned,
    daemon: bool,
}

/// How a process is to be started.
#[must_use = "nothing starts before `spawn`"]
pub struct Builder<R> {
    entry: &'static TaskEntry,
    args: Result<Body, EncodeError>,
    decode: fn(Body) -> Result<R, DecodeError>,
    name: Option<String>,
    daemon: bool,
    kill_on_drop: bool,
    start_timeout: Duration,
    settings: Settings,
    heartbeat: Heartbeat,
}

impl Process<()> {
    /// Starts a task in a new process and resolves when that process has said hello. The task runs in the
    /// [trace](TraceContext) that this is first polled in, in a span of its own.
    ///
    /// # Errors
    /// The program did not come through the door, is ending, or does not host the task; workers are nested 16 deep
    /// already; the arguments cannot be encoded or have more than 256 MiB; the process cannot be started. If it
    /// ended before it said hello, or was killed because it did not say it within 30 s, the error has its exit.
    ///
    /// # Cancel safety
    /// Dropping the future ends what it started.
    // The compiler says of a closure or a plain function that it is no task: once, and not again for every type that
    // hangs on it. That takes parameters of their own for these types, and a future whose type has no bounds.
    pub fn spawn<T, A, R>(task: T, args: A) -> BoxFuture<Result<Process<R>, ProcessError>>
    where
        T: Runs<Args = A, Output = R>,
        R: 'static,
    {
        Box::pin(Self::builder(task, args).spawn())
    }

    /// Says more about the process before it starts.
    pub fn builder<T, A, R>(task: T, args: A) -> Builder<R>
    where
        T: Runs<Args = A, Output = R>,
    {
        Builder {
            entry: task.entry(),
            args: task.encode_args(&args),
            decode: task.decoder(),
            name: None,
            daemon: false,
            kill_on_drop: false,
            start_timeout: START_TIMEOUT,
            settings: Settings::default(),
            heartbeat: Heartbeat::default(),
        }
    }
}

impl<R> Builder<R> {
    /// A name, unique among the processes and trees that this process starts; else it is made of the task's.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether the end of the program ends this process instead of waiting for it: SIGTERM, two seconds later SIGKILL.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// Whether dropping the handle kills the process, with SIGKILL; it is reaped in the background.
    pub fn kill_on_drop(mut self, kill: bool) -> Self {
        self.kill_on_drop = kill;
        self
    }

    /// How long it may take to say hello, instead of 30 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    settings!();

    /// How a process that stands still as a whole is noticed; see [`Heartbeat`].
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Starts it; see [`Process::spawn`].
    ///
    /// # Errors
    /// As [`Process::spawn`]; also a name that is taken, a heartbeat that contradicts itself, and a setting that is
    /// impossible or that the new process could not set for itself.
    pub async fn spawn(self) -> Result<Process<R>, ProcessError> {
        let short = self.entry.name.rsplit("::").next().unwrap_or(self.entry.name).to_owned();
        let shown = self.name.clone().unwrap_or_else(|| short.clone());
        self.try_spawn(short).await.map_err(|fault| ProcessError { name: shown, fault })
    }

    async fn try_spawn(self, short: String) -> Result<Process<R>, Fault> {
        let trace = TraceContext::current();
        let program = Program::current()?;
        self.heartbeat.check()?;
        registry::task(self.entry.name, &self.entry.place.to_string())?;
        self.settings.check(launch::INVITED_BY)?;
        let args = self.args.map_err(|error| Fault::NotSent(error.to_string()))?;
        measure(&args)?;
        let (name, path) = match self.name {
            Some(name) => {
                let path = program.root.take_name(&name)?;
                (name, path)
            }
            None => loop {
                // The counter makes it unique among those made up; a name that a user gave may still be in the way.
                let name = format!("{short}-{}", program.root.count_unnamed());
                check_segment(&name)?;
                if let Ok(path) = program.root.take_name(&name) {
                    break (name, path);
                }
            },
        };
        let deadline = deadline(self.start_timeout);
        let named = NameGuard { program: program.clone(), path: path.clone() };
        let order = Launch {
            path: path.clone(),
            name: name.clone(),
            incarnation: 1,
            seat: 0,
            birth: random(),
            what: What::Task { name: self.entry.name.to_owned(), place: self.entry.place.to_string() },
            settings: Arc::new(self.settings),
            presence: None,
            heartbeat: self.heartbeat,
            watchdog: None,
        };
        let launched = launch(&program, order).await?;
        let ward = launched.ward.clone();
        let result = Arc::new(Mutex::new(None));
        let outgoing = Arc::new(Outgoing::default());
        let mut start = Envelope::new(Kind::Start, TENANT, 0, args);
        let origin = |trace: TraceContext| Origin { trace: trace.to_wire(), ..Origin::default() };
        start.origin = trace.map(|trace| Box::new(origin(trace)));
        outgoing.send(start);
        let desk = ResultDesk { result: result.clone() };
        let residence: Arc<Mutex<Option<Residence>>> = Arc::default();
        let until_the_end = residence.clone();
        let ended = live(launched, outgoing, desk, move |_| {
            // However it ended: its name is free again and the program need not wait for it any more.
            drop(named);
            let residence = until_the_end.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(residence);
        })?;
        launch::greeted(&ward, ended.clone(), deadline, self.start_timeout).await?;
        let shared = Arc::new(Shared { name, path, ward: ward.clone(), ended, result, daemon: self.daemon });
        let moved_in = program.root.move_in(shared.clone());
        match moved_in {
            Ok(place) => {
                *residence.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
                if shared.ended.borrow().is_some() {
                    // It ended before it was on the list.
                    residence.lock().unwrap_or_else(PoisonError::into_inner).take();
                }
            }
            Err(fault) => {
                ward.condemn("the program is ending");
                return Err(fault);
            }
        }
        Ok(Process { shared, decode: self.decode, kill_on_drop: self.kill_on_drop })
    }
}

/// Gives a name back when its process has ended, or was never started.
struct NameGuard {
    program: Arc<Program>,
    path: String,
}

impl Drop for NameGuard {
    fn drop(&mut self) {
        self.program.root.free_name(&self.path);
    }
}

impl<R> Process<R> {
    /// Waits for the process to end and gives what its function returned. May be asked again: each time descriptors in
    /// it are duplicated, and those that came stay open until this handle is dropped.
    ///
    /// # Errors
    /// It ended without a result: killed, panicked, exited. The error has its exit. Or arguments or result could not
    /// be encoded or decoded, or the result has more than 256 MiB.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn join(&self) -> Result<R, ProcessError> {
        let exit = self.wait().await;
        let result = self.shared.result.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let outcome = match result {
            Some(Ok(body)) => (self.decode)(body).map_err(|error| Fault::BadAnswer(error.to_string())),
            Some(Err(fault)) => Err(fault),
            None => Err(Fault::Ended { exit: Box::new((*exit).clone()), maybe_executed: true }),
        };
        outcome.map_err(|fault| self.error(fault))
    }

    /// Waits for the process to end. May be asked again, by anyone.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait(&self) -> Arc<Exit> {
        wait(self.shared.ended.clone()).await
    }

    /// How it ended, if it has.
    pub fn try_wait(&self) -> Option<Arc<Exit>> {
        self.shared.ended.borrow().clone()
    }

    /// Waits for the process to end, for so long at most; `None` if it has not.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_timeout(&self, timeout: Duration) -> Option<Arc<Exit>> {
        tokio::time::timeout(timeout, self.wait()).await.ok()
    }

    /// Python's `exitcode`: `None` while it runs, and if nobody could tell; else the code, or minus the signal.
    pub fn exitcode(&self) -> Option<i32> {
        self.try_wait().and_then(|exit| exit.exitcode())
    }

    /// Whether it has not ended; a paused one has not.
    pub fn is_alive(&self) -> bool {
        self.shared.ward.is_alive()
    }

    /// Sends SIGTERM, and SIGCONT so that a paused process hears it. Nothing happens if it has ended.
    ///
    /// # Errors
    /// The system refuses.
    pub fn terminate(&self) -> Result<(), ProcessError> {
        self.signal(Signal::TERM)?;
        self.resume()
    }

    /// Sends SIGKILL. Nothing happens if it has ended.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&self) -> Result<(), ProcessError> {
        self.signal(Signal::KILL)
    }

    /// Sends SIGINT, as Ctrl-C does. Nothing happens if it has ended.
    ///
    /// # Errors
    /// The system refuses.
    pub fn interrupt(&self) -> Result<(), ProcessError> {
        self.signal(Signal::INT)
    }

    /// Sends SIGSTOP: it stands still, wherever it is, until [`resume`](Process::resume). Meanwhile no heartbeat is
    /// expected of it. (One that somebody else stops is ended when its [`Heartbeat`] runs out of patience.)
    ///
    /// # Errors
    /// The system refuses.
    pub fn pause(&self) -> Result<(), ProcessError> {
        self.sent(Signal::STOP, self.shared.ward.pause())
    }

    /// Sends SIGCONT: it goes on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn resume(&self) -> Result<(), ProcessError> {
        self.sent(Signal::CONT, self.shared.ward.go_on())
    }

    /// Whether it was paused from here and has not been told to go on.
    pub fn is_paused(&self) -> bool {
        self.is_alive() && self.shared.ward.is_paused()
    }

    /// The last lines that it has written to standard output so far, 1,000 at most and 256 KiB, if that is captured:
    /// [`stdout(Output::Capture)`](Builder::stdout). After [`wait`](Process::wait) they are complete.
    pub fn stdout(&self) -> Vec<String> {
        self.shared.ward.all_kept()
    }

    /// Its process id. It may belong to another process once this one has ended.
    #[doc(alias = "ident")]
    pub fn pid(&self) -> u32 {
        self.shared.ward.pid_number()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its place in the tree, e.g. `/sleeper`.
    pub fn path(&self) -> &str {
        &self.shared.path
    }

    fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        self.sent(signal, self.shared.ward.signal(signal))
    }

    fn sent(&self, signal: Signal, sent: std::io::Result<()>) -> Result<(), ProcessError> {
        sent.map_err(|error| self.error(Fault::Refused(format!("cannot send {signal:?} to it: {error}"))))
    }

    fn error(&self, fault: Fault) -> ProcessError {
        ProcessError { name: self.shared.name.clone(), fault }
    }
}

impl<R> Drop for Process<R> {
    fn drop(&mut self) {
        if self.kill_on_drop {
            let _ = self.shared.ward.signal(Signal::KILL);
        }
    }
}

impl<R> std::fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .field("exit", &self.try_wait())
            .finish_non_exhaustive()
    }
}

impl<R> AsFd for Process<R> {
    /// Its pidfd: readable once it has ended.
    ///
    /// # Panics
    /// Another part of this program had waited for the process before the library could look at it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.shared.ward.pidfd {
            Some(pidfd) => pidfd.as_fd(),
            None => panic!(
                "the process had ended, and was waited for elsewhere, before its pidfd could be opened"
            ),
        }
    }
}

impl Resident for Shared {
    fn linger(&self) -> Option<BoxFuture<()>> {
        let ended = self.ended.clone();
        if self.daemon { None } else { Some(Box::pin(async move { drop(wait(ended).await) })) }
    }

    fn stands_alone(&self) -> bool {
        true
    }

    fn close(&self) -> BoxFuture<()> {
        let (ward, ended) = (self.ward.clone(), self.ended.clone());
        Box::pin(async move {
            ward.note_stop();
            ward.terminate_group();
            if tokio::time::timeout(PATIENCE, wait(ended.clone())).await.is_err() {
                ward.signal_group(Signal::KILL);
                let _ = tokio::time::timeout(AFTER_KILL, wait(ended)).await;
            }
        })
    }
}

/// How long a process has after SIGTERM, when the program ends.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one that hangs in the kernel can hold up the end of the program.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// What a task returned, once it has.
pub(crate) type Returned = Arc<Mutex<Option<Result<Body, Fault>>>>;

/// Keeps the one result of a task.
pub(crate) struct ResultDesk {
    pub(crate) result: Returned,
}

impl Desk for ResultDesk {
    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        let result = match envelope.kind {
            Kind::Reply => Ok(envelope.body),
            Kind::Fault => Err(fault_of(&envelope.body)?),
            other => return Err(format!("a message of kind {other:?}, which a task does not send")),
        };
        let mut slot = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Err("a second result".to_owned());
        }
        *slot = Some(result);
        Ok(())
    }
}

/// Why a process could not be started, signalled or joined.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("process {name}: {fault}")]
pub struct ProcessError {
    name: String,
    #[source]
    fault: Fault,
}

impl std::fmt::Debug for ProcessError {
    /// For people, as `unwrap` shows it: the text, and the worker's last words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")?;
        self.fault.show_last_words(f)
    }
}

impl ProcessError {
    /// The library's own reason.
    #[doc(hidden)]
    pub fn fault(&self) -> Option<&Fault> {
        Some(&self.fault)
    }

    predicates!();

    /// Whether the function may have run.
    pub fn maybe_executed(&self) -> bool {
        self.fault.maybe_executed()
    }

    /// Whether a panic ended it.
    pub fn is_panic(&self) -> bool {
        self.panic().is_some()
    }

    /// The panic that ended it.
    pub fn panic(&self) -> Option<&Panic> {
        self.exit().and_then(Exit::panic)
    }
}
