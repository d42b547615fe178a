//! What a supervisor is told about a child: what to start, and how to stop it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::child::{BoxFuture, Order, Shutdown, Start, Started, Stop};
use hatchery_actor::error::Error;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::heartbeat::Heartbeat;
use hatchery_actor::outlet::WINDOW;
use hatchery_actor::root::check_segment;
use hatchery_actor::settings;
use hatchery_actor::settings::Settings;
use hatchery_actor::spin::Spin;

use hatchery_wire::Body;

use crate::policy::{Kind, Restart};
use crate::tree::Tree;

/// Makes the arguments of a child anew at each start.
pub(crate) type ArgsFrom = Arc<dyn Fn(&Tree) -> Result<Body, Error> + Send + Sync>;

/// A child to be: something that can be started, and what its supervisor needs to know of it.
#[must_use = "a spec starts nothing: give it to a supervisor"]
pub struct ChildSpec<S> {
    start: Arc<S>,
    kind: Kind,
    shutdown: Shutdown,
    stop: Stop,
    start_timeout: Duration,
    window: u32,
    settings: Settings,
    heartbeat: Heartbeat,
    watchdog: Option<Duration>,
    args: Option<ArgsFrom>,
}

impl<S: Start> ChildSpec<S> {
    /// A child with the usual settings.
    pub fn new(start: S) -> ChildSpec<S> {
        ChildSpec {
            start: Arc::new(start),
            kind: Kind::default(),
            shutdown: Shutdown::default(),
            stop: Stop::default(),
            start_timeout: Duration::from_secs(30),
            window: WINDOW,
            settings: Settings::default(),
            heartbeat: Heartbeat::default(),
            watchdog: None,
            args: None,
        }
    }

    /// After which deaths it is started again; after all ([`Restart::Permanent`]) unless told otherwise, and a task until it
    /// has succeeded ([`Restart::Transient`]).
    ///
    /// | it ended | `Permanent` | `Transient` | `Temporary` |
    /// |---|---|---|---|
    /// | in order, with exit code 0, by SIGTERM or SIGINT from outside | restart | stopped, spec kept | removed |
    /// | by an error, a panic, another exit code or signal, a missed heartbeat | restart | restart | removed |
    /// | with exit code 125, "do not try again" | given up | given up | given up |
    ///
    /// One that is stopped, or given up, keeps its spec and its seat; requests to it fail at once (`is_closed`) until
    /// [`restart_child`](crate::tree::Tree::restart_child), or a restart of its group, starts it again.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.kind.restart = restart;
        self
    }

    /// Whether its end may be that of its supervisor: once it has ended by itself and is not started again,
    /// [`auto_shutdown`](crate::builder::Supervisor::auto_shutdown) says what follows. That is where it is
    /// [`Restart::Transient`] and has left cleanly, where it is [`Restart::Temporary`], and where it is given up. It is not
    /// where `terminate_child` stopped it, where a sibling took it along, or where it did not start.
    ///
    /// A child that is [`Restart::Permanent`] cannot be significant, nor can one of a supervisor that never ends by itself:
    /// then the start fails before anything was started
    /// ([`is_contradiction`](crate::errors::StartError::is_contradiction)).
    pub fn significant(mut self, significant: bool) -> Self {
        self.kind.significant = significant;
        self
    }

    /// How long it may take when it is stopped; [`Shutdown::graceful`] with 5 s unless told otherwise.
    pub fn shutdown(mut self, shutdown: Shutdown) -> Self {
        self.shutdown = shutdown;
        self
    }

    /// How it leaves when it is asked to: by its supervisor, by the end of the program, or by `handle.stop()`. It
    /// finishes its message and refuses the rest ([`Stop::Refuse`]) unless told otherwise. What has no mailbox, as a task,
    /// has nothing to drain.
    pub fn on_stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// How long a start may take until the actor is ready, or the task begins, instead of 30 s. One that takes longer is
    /// ended, and has failed.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// How many requests of this process may be under way to it at once: 1 to 256, and 256 unless told otherwise.
    ///
    /// When a worker dies, whatever was under way to it fails; what waits in line goes to the next incarnation. With
    /// a window of 1, a request that kills its worker fails alone.
    pub fn window(mut self, requests: u32) -> Self {
        self.window = requests;
        self
    }

    /// Whether its channel's ends look out for answers and requests before they sleep, instead of what
    /// `program().spin(..)` says. See [`Spin`].
    pub fn spin(mut self, spin: Spin) -> Self {
        self.settings.spin = Some(spin);
        self
    }

    settings!();

    /// All of these at once.
    #[doc(hidden)]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// How it is noticed that it stands still as a whole; every second, with 3 misses, unless told otherwise. See
    /// [`Heartbeat`].
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// How long one of its handlers may run, or wait, before the actor is taken for hung and killed; nobody looks unless
    /// this is said.
    ///
    /// Its exit says "no progress for 10s: one handler has run since", its callers get `is_crash()`, and its supervisor goes
    /// on as after any crash. It is told with the heartbeat, so it may take two periods longer, and a watchdog has to be at
    /// least as long. An actor that is idle, or that finishes handlers, is well, however long its mailbox is.
    /// What is not looked at: its `start` and `stopped`, which have their own patience, its tasks, streams, and answers
    /// that were put off. Spared is one that is suspended, paused, or traced; and time in which this process or the
    /// worker was away is not counted, but for less than a period that falls between two answers.
    ///
    /// A handler that waits for another actor waits with it: watch over the one that may hang, or give the one who asks
    /// more time. For callers alone, a deadline is better: it costs no incarnation.
    ///
    /// A local actor is cut off where it next awaits. One that blocks its thread cannot be: after 10 s more its callers get
    /// `is_crash()`, and it is given up, since nobody may be started beside it. Then only its process can be ended. On a
    /// runtime of one thread it is not even noticed.
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.watchdog = Some(limit);
        self
    }

    /// Has its arguments made anew at each start, in place of those that it was given.
    #[doc(hidden)]
    pub fn args_from(mut self, args: impl Fn(&Tree) -> Result<Body, Error> + Send + Sync + 'static) -> Self {
        self.args = Some(Arc::new(args));
        self
    }

    pub(crate) fn handle(&self, reference: ActorRef) -> S::Handle {
        self.start.handle(reference)
    }

    pub(crate) fn erase(&self) -> ErasedSpec {
        ErasedSpec {
            start: self.start.clone(),
            kind: self.kind,
            shutdown: self.shutdown.by(self.stop),
            start_timeout: self.start_timeout,
            window: self.window,
            settings: Arc::new(self.settings.clone()),
            heartbeat: self.heartbeat,
            watchdog: self.watchdog,
            args: self.args.clone(),
        }
    }
}

/// The same without the type of its handle.
#[derive(Clone)]
pub(crate) struct ErasedSpec {
    pub(crate) start: Arc<dyn Startable>,
    pub(crate) kind: Kind,
    pub(crate) shutdown: Shutdown,
    pub(crate) start_timeout: Duration,
    pub(crate) window: u32,
    pub(crate) settings: Arc<Settings>,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) watchdog: Option<Duration>,
    pub(crate) args: Option<ArgsFrom>,
}

impl ErasedSpec {
    /// Finds contradictions before anything starts.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if !(1..=WINDOW).contains(&self.window) {
            let window = self.window;
            return Err(Fault::Refused(format!("a window of {window} requests: it has to be 1 to {WINDOW}")));
        }
        if !self.start.has_mailbox() && (self.window != WINDOW || self.shutdown.drains()) {
            return Err(Fault::Refused(
                "a window, or `Stop::Drain`, of something that takes no requests: leave `window` and `on_stop` out"
                    .to_owned(),
            ));
        }
        let no_heartbeat = [Heartbeat::default(), Heartbeat::off()].contains(&self.heartbeat);
        if !self.start.is_process() && !no_heartbeat {
            return Err(Fault::Refused(
                "a heartbeat of something that is no process of its own: leave `heartbeat` out".to_owned(),
            ));
        }
        self.heartbeat.check()?;
        self.shutdown.check()?;
        if let Some(limit) = self.watchdog {
            self.start.check_watchdog(limit, self.heartbeat)?;
        }
        check_segment(self.start.name())?;
        self.start.check_settings(&self.settings)?;
        self.start.check()
    }
}

/// [`Start`] without the type of its handle.
pub(crate) trait Startable: Send + Sync {
    fn name(&self) -> &str;
    fn actor(&self) -> &'static str;
    fn check(&self) -> Result<(), Fault>;
    fn check_settings(&self, settings: &Settings) -> Result<(), Fault>;
    fn check_watchdog(&self, limit: Duration, heartbeat: Heartbeat) -> Result<(), Fault>;
    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>>;
    fn has_mailbox(&self) -> bool;
    fn is_process(&self) -> bool;
    fn start_failed(&self, fault: &Fault);
    fn gone_within(&self) -> Option<Duration>;
    /// [`Start::handle`], for whoever asks for it by its type.
    fn any_handle(&self, reference: ActorRef) -> Arc<dyn Any + Send + Sync>;
}

impl<S: Start> Startable for S {
    fn name(&self) -> &str {
        Start::name(self)
    }
    fn actor(&self) -> &'static str {
        Start::actor(self)
    }
    fn check(&self) -> Result<(), Fault> {
        Start::check(self)
    }
    fn check_settings(&self, settings: &Settings) -> Result<(), Fault> {
        Start::check_settings(self, settings)
    }
    fn check_watchdog(&self, limit: Duration, heartbeat: Heartbeat) -> Result<(), Fault> {
        Start::check_watchdog(self, limit, heartbeat)
    }
    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        Start::start(self, order)
    }
    fn has_mailbox(&self) -> bool {
        Start::has_mailbox(self)
    }
    fn is_process(&self) -> bool {
        Start::is_process(self)
    }
    fn start_failed(&self, fault: &Fault) {
        Start::start_failed(self, fault);
    }
    fn gone_within(&self) -> Option<Duration> {
        Start::gone_within(self)
    }
    fn any_handle(&self, reference: ActorRef) -> Arc<dyn Any + Send + Sync> {
        Arc::new(Start::handle(self, reference))
    }
}
