//! What a supervisor needs to know of the things it can start and stop.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hatchery_wire::Body;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::actor::AnyActor;
use crate::address::ProcessId;
use crate::error::Error;
use crate::exit::{Exit, Status};
use crate::fault::Fault;
use crate::handle::ActorRef;
use crate::heartbeat::Heartbeat;
use crate::outlet::{Line, Request};
use crate::probe::Probe;
use crate::seat::Seat;
use crate::settings::Settings;
use crate::watchdog::MailboxInfo;

/// A boxed future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Something that can be started again and again: what a child spec holds.
pub trait Start: Send + Sync + 'static {
    /// What the user gets to talk to it.
    type Handle: Clone + Send + Sync + 'static;

    /// The name it wants among its siblings.
    fn name(&self) -> &str;

    /// The registered name of the actor; [`TASK`](crate::root::TASK) if it is none.
    fn actor(&self) -> &'static str;

    /// Finds contradictions before anything starts.
    ///
    /// # Errors
    /// What is wrong, and what to do instead.
    fn check(&self) -> Result<(), Fault>;

    /// Finds settings that this cannot have. Unless told otherwise it has no process of its own to have any.
    ///
    /// # Errors
    /// What is wrong, and what to do instead.
    fn check_settings(&self, settings: &Settings) -> Result<(), Fault> {
        no_settings(settings, "this actor", "`worker` in place of `local`")
    }

    /// Finds a watchdog that this cannot have. Unless told otherwise it has no handlers that could be watched.
    ///
    /// # Errors
    /// What is wrong, and what to do instead.
    fn check_watchdog(&self, _limit: Duration, _heartbeat: Heartbeat) -> Result<(), Fault> {
        Err(Fault::Refused(
            "a child of this kind has no handlers to watch over: leave out its watchdog".to_owned(),
        ))
    }

    /// Whether it takes requests: else it can have nothing that is about them.
    fn has_mailbox(&self) -> bool {
        true
    }

    /// Whether it is a process of its own: else it can have no heartbeat.
    fn is_process(&self) -> bool {
        true
    }

    /// A start has failed, for this reason, before there was anybody who could say so.
    fn start_failed(&self, fault: &Fault) {
        let _ = fault;
    }

    /// How long what is left of a start that was given up may take until it is gone, before it is called unkillable: it
    /// has been killed by then. `None` for what is asked to leave, and bounds itself.
    fn gone_within(&self) -> Option<Duration> {
        Some(AFTER_KILL)
    }

    /// The typed handle around an untyped reference.
    fn handle(&self, reference: ActorRef) -> Self::Handle;

    /// Starts one incarnation and resolves when it is ready. Dropping the future ends what it began.
    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>>;
}

/// What a tree can be asked for by name: an actor, a supervisor, or the handle of a task.
pub trait Supervised: 'static {
    /// What it gives.
    type Handle: Clone + Send + Sync + 'static;

    /// What the seat of such a child says in place of an actor's name.
    #[doc(hidden)]
    fn kind() -> &'static str;
}

impl<A: AnyActor> Supervised for A {
    type Handle = A::Handle;

    fn kind() -> &'static str {
        A::name()
    }
}

/// Refuses settings of a process for something that has none of its own; what to use instead.
pub(crate) fn no_settings(settings: &Settings, what: &str, instead: &str) -> Result<(), Fault> {
    if *settings == Settings::default() {
        return Ok(());
    }
    Err(Fault::Refused(format!(
        "an environment, a directory and limits belong to a process, and {what} shares the one of its supervisor: use \
         {instead}, or leave them out"
    )))
}

/// What is to be started.
#[derive(Clone, Debug)]
pub struct Order {
    /// Where it will sit.
    pub seat: Arc<Seat>,
    /// Which incarnation it is, from 1.
    pub incarnation: u64,
    /// How long it may take until it is ready.
    pub timeout: Duration,
    /// To be held by whatever is left of the incarnation, for as long as it is there.
    pub presence: Presence,
    /// What a process gets before it begins.
    pub settings: Arc<Settings>,
    /// How it is noticed that it stands still as a whole, if it is a process.
    pub heartbeat: Heartbeat,
    /// How long one of its handlers may run before it is taken for hung, if that is watched.
    pub watchdog: Option<Duration>,
    /// Encoded arguments that were made for this start, in place of those that it was given once.
    pub args: Option<Body>,
}

/// Says that something of an incarnation is still there. A start that was given up, or failed, is over only when the
/// last clone of it is gone: so no two incarnations are ever there at once.
#[derive(Clone, Debug)]
pub struct Presence {
    _held: mpsc::Sender<()>,
}

/// The other side of [`Presence`].
#[derive(Debug)]
pub struct Absence {
    held: mpsc::Receiver<()>,
}

impl Presence {
    /// A presence, and how to wait for its end.
    pub fn new() -> (Presence, Absence) {
        let (sender, held) = mpsc::channel(1);
        (Presence { _held: sender }, Absence { held })
    }
}

impl Absence {
    /// Resolves when nothing of the incarnation is left. Cancel safe.
    pub async fn wait(&mut self) {
        // Nothing is ever sent: this ends when the last sender is gone.
        while self.held.recv().await.is_some() {}
    }
}

/// Something that has been started and is ready.
pub struct Started {
    /// What can be stopped.
    pub child: Arc<dyn Child>,
    /// The way of requests to it.
    pub line: Arc<dyn Line>,
}

/// The way of requests to a child that takes none: each is refused, for this reason.
#[doc(hidden)]
#[derive(Debug)]
pub struct NoLine(pub &'static str);

impl Line for NoLine {
    fn send(&self, _: Request) -> Result<(), Fault> {
        Err(Fault::Refused(self.0.to_owned()))
    }

    fn withdraw(&self, _: u64) {}

    fn probe(&self, _: u64, _: Probe) {}

    fn credit(&self, _: u64, _: usize) {}
}

/// A started child: a worker process, a local actor, a fake in a test.
///
/// Whoever implements it reports the end to the seat ([`Seat::ended`]) *before* [`exited`](Child::exited) resolves.
pub trait Child: Send + Sync + 'static {
    /// Begins to stop it; never waits. A rung it does not know is the one below.
    fn stop(&self, rung: Rung);

    /// The process it lives in, while it lives.
    fn pid(&self) -> Option<u32>;

    /// The process that requests to it go to, if that is another one than this.
    fn process(&self) -> Option<ProcessId> {
        None
    }

    /// Resolves when it has ended and everything it said has been delivered; at once if that was long ago.
    fn exited(&self) -> BoxFuture<Arc<Exit>>;

    /// Suspends its mailbox: what runs runs on, nothing new begins, and control still overtakes. Asks at once, and
    /// resolves when that holds.
    ///
    /// # Errors
    /// It ended first, or knows no such thing.
    fn suspend(&self) -> BoxFuture<Result<(), Fault>> {
        Box::pin(std::future::ready(Err(Fault::Refused(
            "a child of this kind cannot be suspended: stop it instead".to_owned(),
        ))))
    }

    /// Has its process stand still, wherever it is.
    ///
    /// # Errors
    /// It has ended, or has no process of its own.
    fn pause(&self) -> Result<(), Fault> {
        Err(Fault::Refused("a child of this kind cannot be paused: suspend or stop it instead".to_owned()))
    }

    /// Undoes [`suspend`](Child::suspend) and [`pause`](Child::pause).
    ///
    /// # Errors
    /// It could not be told.
    fn resume(&self) -> Result<(), Fault> {
        Ok(())
    }

    /// Whether it is suspended or paused.
    fn is_paused(&self) -> bool {
        false
    }

    /// Resolves when it has been killed without anybody asking for that, as by its watchdog, and is still there all the
    /// same: with what stands for its exit. Of most kinds never.
    fn unkillable(&self) -> BoxFuture<Arc<Exit>> {
        Box::pin(std::future::pending())
    }

    /// What was heard of its mailbox at last: of a worker with its latest sign of life, so about a period of its
    /// heartbeat ago, and nothing if it has none; of a local actor here and now. `None` if nothing is known.
    fn mailbox(&self) -> Option<MailboxInfo> {
        None
    }
}

/// Follows the end of a child: empty until it has ended.
pub type Ended = watch::Receiver<Option<Arc<Exit>>>;

/// Waits for the end of a child. Cancel safe.
pub async fn ended(mut ended: Ended) -> Arc<Exit> {
    match ended.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(exit)) => exit.clone(),
        // Every sender of these sends from its own drop, or lives as long as whoever waits.
        _ => Arc::new(Exit::new(Status::Unknown)),
    }
}

/// How hard to ask for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rung {
    /// Handle what has arrived by now, answer what comes later `Stopping`, leave. Whatever this process has sent before
    /// has arrived first. If its mailbox is suspended, or it is paused, it goes on.
    Drain,
    /// Finish the current message, answer the rest `Stopping`, leave.
    Graceful,
    /// SIGTERM to its process group, with SIGCONT so that a paused one hears it.
    Term,
    /// SIGKILL to its process group.
    Kill,
}

/// How an actor leaves when it is asked to. How long it may take for that is said by its [`Shutdown`].
///
/// | | the message it is at | what waits in its mailbox | what comes later |
/// |---|---|---|---|
/// | `Refuse` | is finished | `is_stopping()`, not executed | the same |
/// | `Drain` | is finished | is handled | the same |
/// | `Kill` | is cut off: `is_crash()` | `is_crash()`, it may have run | waits for the next incarnation, or is told that there is none |
///
/// After the first two `stopped` runs, and the exit is one in order. In all of them, answers that were put off and
/// streams that are open are not waited for: what `stopped` does not answer ends with the actor.
///
/// ```
/// # use hatchery::prelude::*;
/// # struct Mailer { sent: u64 }
/// # #[hatchery::actor]
/// # impl Mailer {
/// #     fn start() -> Self { Mailer { sent: 0 } }
/// #     fn send(&mut self, to: String) { self.sent += u64::from(!to.is_empty()) }
/// # }
/// # #[hatchery::main]
/// # async fn main() -> hatchery::Result<()> {
/// let tree = Supervisor::new(Strategy::OneForOne).start().await?;
/// let mailer = worker::<Mailer>("mailer", ()).on_stop(Stop::Drain).shutdown(Shutdown::graceful(Duration::from_secs(30)));
/// let mailer = tree.start_child(mailer).await?;
/// for to in ["ada", "grace", "jean"] {
///     mailer.send(to.to_owned()).tell().await?;
/// }
/// tree.stop().await // all three are sent first, if that takes 30 s at most
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Stop {
    /// Finishes the message it is at, and begins no other.
    #[default]
    Refuse,
    /// Works off what is in its mailbox: all that the process which stops it has sent before, and whatever else has
    /// arrived by then. What still waits in line there, for a place in the window, was not sent, and is refused.
    ///
    /// A suspended or paused actor goes on for that. Should it take longer than its shutdown's patience, it gets SIGTERM.
    Drain,
    /// Is killed at once, as by `handle.kill()`.
    Kill,
}

/// How a child is stopped: how long each rung of the ladder may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    graceful: Option<Duration>,
    term: Duration,
    stop: Stop,
}

impl Shutdown {
    /// Ask; after this long send SIGTERM, two seconds later SIGKILL. The default is 5 s. A local actor is asked
    /// twice, and then cut off at its next await. A task has no mailbox, so it is asked by SIGTERM, too; a local one is
    /// cut off at once.
    pub const fn graceful(patience: Duration) -> Shutdown {
        Shutdown { graceful: Some(patience), term: Duration::from_secs(2), stop: Stop::Refuse }
    }

    /// Ask, and wait as long as it takes: then the stop of its tree, and the end of the program, take as long, too.
    pub const fn infinity() -> Shutdown {
        Shutdown { graceful: None, term: Duration::ZERO, stop: Stop::Refuse }
    }

    /// Do not ask: SIGKILL.
    pub const fn kill() -> Shutdown {
        Shutdown { graceful: Some(Duration::ZERO), term: Duration::ZERO, stop: Stop::Refuse }
    }

    /// The same patience, asked for in this way.
    #[doc(hidden)]
    #[must_use]
    pub const fn by(self, stop: Stop) -> Shutdown {
        Shutdown { stop, ..self }
    }

    /// Whether what waits is worked off.
    #[doc(hidden)]
    pub fn drains(self) -> bool {
        self.stop == Stop::Drain
    }

    /// Finds contradictions before anything is stopped.
    ///
    /// # Errors
    /// It has no time for what it is to do.
    #[doc(hidden)]
    pub fn check(self) -> Result<(), Fault> {
        if self.stop == Stop::Drain && self.graceful == Some(Duration::ZERO) {
            return Err(Fault::Refused(
                "it is to drain its mailbox, and its shutdown leaves no time for that: say \
                 Shutdown::graceful(..) with some patience, or another way to stop"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// How hard it is asked, in which order, and how long each may take.
    fn ladder(self) -> impl Iterator<Item = (Rung, Option<Duration>)> {
        let (asked, term) = match self.stop {
            Stop::Refuse => (Some(Rung::Graceful), Some(Rung::Term)),
            Stop::Drain => (Some(Rung::Drain), Some(Rung::Term)),
            Stop::Kill => (None, None),
        };
        let rungs = [
            asked.map(|rung| (rung, self.graceful)),
            term.map(|rung| (rung, Some(self.term))),
            Some((Rung::Kill, Some(AFTER_KILL))),
        ];
        rungs.into_iter().flatten().filter(|(_, patience)| *patience != Some(Duration::ZERO))
    }
}

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown::graceful(Duration::from_secs(5))
    }
}

/// How long after SIGKILL a process may still be there before it is called unkillable (it hangs in the kernel).
pub(crate) const AFTER_KILL: Duration = Duration::from_secs(10);

/// Stops a child rung by rung and waits for its end; bounded unless the shutdown is [`Shutdown::infinity`].
///
/// # Errors
/// It is still there 10 s after SIGKILL.
pub async fn stop(child: &dyn Child, shutdown: Shutdown) -> Result<Arc<Exit>, Error> {
    let mut exited = child.exited();
    for (rung, patience) in shutdown.ladder() {
        child.stop(rung);
        match patience {
            None => return Ok(exited.await),
            Some(patience) => {
                if let Ok(exit) = tokio::time::timeout(patience, &mut exited).await {
                    return Ok(exit);
                }
            }
        }
    }
    Err(Error::msg(
        "it is still there 10 s after it was killed: the kernel does not let it go, often for a disk or a file system that \
         does not answer (`ps -o pid,stat,wchan` says where it waits)",
    ))
}
