//! An actor in this process: a task of its own, behind the same seat and the same window as one in a worker.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hatchery_wire::{Body, EncodeError, decode_owned, encode};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior};

use crate::actor::Actor;
use crate::child::{BoxFuture, Child, Ended, Order, Presence, Rung, Start, Started, ended};
use crate::context::Context;
use crate::directory::Lodging;
use crate::error::Error;
use crate::exit::{Exit, Status};
use crate::fault::Fault;
use crate::handle::ActorRef;
use crate::heartbeat::Heartbeat;
use crate::mailbox::Mailbox;
use crate::near::NearLine;
use crate::panics;
use crate::root::Root;
use crate::runner;
use crate::seat::Seat;
use crate::watchdog::{self, MailboxInfo, Progress};

/// What [`Start`]s an actor in this process.
pub struct Local<A> {
    name: String,
    origin: Origin<A>,
}

/// What each incarnation begins from.
enum Origin<A> {
    /// The arguments of its `start`.
    Args(Result<Body, EncodeError>),
    /// A closure that makes it. One incarnation starts after another, so nobody waits for the lock.
    Closure(Arc<Mutex<dyn FnMut() -> A + Send>>),
}

impl<A> Clone for Origin<A> {
    fn clone(&self) -> Self {
        match self {
            Origin::Args(args) => Origin::Args(args.clone()),
            Origin::Closure(make) => Origin::Closure(make.clone()),
        }
    }
}

impl<A: Actor> Local<A> {
    /// An actor of this name; its arguments are kept encoded, for restarts.
    pub fn new(name: impl Into<String>, args: &A::Args) -> Local<A> {
        Local { name: name.into(), origin: Origin::Args(encode(args)) }
    }

    /// An actor of this name that a closure makes, anew for each incarnation.
    pub fn with(name: impl Into<String>, make: impl FnMut() -> A + Send + 'static) -> Local<A> {
        Local { name: name.into(), origin: Origin::Closure(Arc::new(Mutex::new(make))) }
    }
}

impl<A: Actor> Origin<A> {
    async fn actor(self, cx: &Context) -> Result<A, Error> {
        let args = match self {
            Origin::Args(args) => args?,
            Origin::Closure(make) => {
                // One that panicked before is called again: what it left behind is its own.
                let mut make = make.lock().unwrap_or_else(PoisonError::into_inner);
                return Ok(make());
            }
        };
        let undecodable = |error| Error::from(error).context("the arguments could not be decoded");
        A::start(decode_owned::<A::Args>(args).map_err(undecodable)?, cx).await
    }
}

impl<A: Actor> Start for Local<A> {
    type Handle = A::Handle;

    fn name(&self) -> &str {
        &self.name
    }

    fn actor(&self) -> &'static str {
        A::name()
    }

    fn check(&self) -> Result<(), Fault> {
        match &self.origin {
            Origin::Args(Err(error)) => Err(Fault::NotSent(error.to_string())),
            _ => Ok(()),
        }
    }

    fn check_watchdog(&self, limit: Duration, _: Heartbeat) -> Result<(), Fault> {
        watchdog::check(limit)
    }

    fn gone_within(&self) -> Option<Duration> {
        None
    }

    fn handle(&self, reference: ActorRef) -> A::Handle {
        reference.into()
    }

    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        let origin = self.origin.clone();
        Box::pin(async move {
            let mailbox = Mailbox::new();
            let (exit, exited) = watch::channel(None);
            let (ready, is_ready) = oneshot::channel();
            let mut end = End {
                seat: order.seat.clone(),
                incarnation: order.incarnation,
                exit,
                how: None,
                why: None,
                lodging: lodge::<A>(&order, &mailbox),
                _presence: order.presence,
            };
            panics::note_places();
            let cx = Context::new::<A>(order.seat.path(), order.incarnation, mailbox.clone())
                .in_seat(order.seat.id());
            let tasks = cx.tasks().clone();
            let task = tokio::spawn(live::<A>(origin, mailbox.clone(), cx, ready));
            let abort = task.abort_handle();
            let watching = mailbox.clone();
            tokio::spawn(async move {
                let (how, why) = watched(task, &watching, end.seat.path(), order.watchdog).await;
                (end.how, end.why) = (how.flatten(), why);
                // A kill waits for nothing, but it is over only when nothing of the incarnation runs any more.
                tasks.gone().await;
                drop(end);
            });
            let child = Arc::new(LocalChild { mailbox: mailbox.clone(), task: abort.clone(), exited });
            let unless_ready = AbortOnDrop(Some(abort.clone()));
            let failed = match tokio::time::timeout(order.timeout, is_ready).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(fault))) => Some(fault),
                Ok(Err(_)) => {
                    let exit = child.exited().await;
                    Some(Fault::Ended { exit: Box::new((*exit).clone()), maybe_executed: false })
                }
                Err(_) => {
                    abort.abort();
                    let exit = Box::new((*child.exited().await).clone());
                    Some(Fault::Late { what: format!("not ready within {:?}", order.timeout), exit })
                }
            };
            if let Some(fault) = failed {
                // One incarnation a seat: it is gone before anybody hears that it failed.
                child.exited().await;
                return Err(fault);
            }
            unless_ready.forget();
            let line = Arc::new(NearLine::new(mailbox, order.seat, order.incarnation));
            Ok(Started { child, line })
        })
    }
}

/// The whole life of a local actor, and how it ended unless it was cut off.
async fn live<A: Actor>(
    origin: Origin<A>,
    mailbox: Arc<Mailbox>,
    cx: Context,
    ready: oneshot::Sender<Result<(), Fault>>,
) -> Option<Exit> {
    let actor = match runner::starting(origin.actor(&cx), &cx).await {
        Ok(Ok(actor)) => actor,
        Ok(Err(error)) => {
            let _ = ready.send(Err(Fault::StartFailed(error.to_string())));
            return Some(Exit::new(Status::Code(1)).with_failed(true));
        }
        Err(panic) => return Some(Exit::new(Status::Code(101)).with_panic(Some(panic))),
    };
    if ready.send(Ok(())).is_err() {
        runner::cut_off(&cx);
        return None;
    }
    Some(match runner::run(actor, &mailbox, cx).await {
        Ok(()) => Exit::orderly(),
        Err(panic) => Exit::new(Status::Code(101)).with_panic(Some(panic)),
    })
}

/// Follows an actor to its end: what it gave, and why it was cut off if that was because it did not get on.
async fn watched<T>(
    mut task: JoinHandle<T>,
    mailbox: &Mailbox,
    path: &str,
    limit: Option<Duration>,
) -> (Option<T>, Option<String>) {
    let Some(limit) = limit else { return (task.await.ok(), None) };
    let period = watchdog::period(limit);
    let mut progress = Progress::new(limit, period);
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            ended = &mut task => return (ended.ok(), None),
            _ = ticks.tick() => {}
        }
        let running = mailbox.info().running.filter(|_| !mailbox.is_suspended());
        if progress.look(running, Instant::now().into_std(), || false) {
            let why = progress.reason();
            task.abort();
            let ended = match tokio::time::timeout(CUT_OFF, &mut task).await {
                Ok(ended) => ended,
                Err(_) => {
                    tracing::error!(
                        child = path,
                        why,
                        "cut off, but it blocks its thread: only its process can be ended"
                    );
                    task.await
                }
            };
            return (ended.ok(), Some(why));
        }
    }
}

/// How long what has been cut off may take to its next await before that is said.
const CUT_OFF: Duration = Duration::from_secs(10);

/// Has the actor found by requests from other processes.
fn lodge<A: Actor>(order: &Order, mailbox: &Arc<Mailbox>) -> Option<Lodging> {
    // Without a run there are no other processes.
    let root = Root::current().ok()?;
    let seat = &order.seat;
    let tenure = seat.tenure(order.incarnation);
    Some(root.directory().lodge(seat.path(), tenure, A::name(), mailbox.clone()))
}

/// Reports the end of a local actor, first to its seat, then to whoever waits for it.
struct End {
    seat: Arc<Seat>,
    incarnation: u64,
    exit: watch::Sender<Option<Arc<Exit>>>,
    how: Option<Exit>,
    /// Why it was cut off, if it was for a reason.
    why: Option<String>,
    lodging: Option<Lodging>,
    _presence: Presence,
}

impl Drop for End {
    fn drop(&mut self) {
        let why = self.why.take().unwrap_or_else(|| runner::ABORTED.to_owned());
        let aborted = || Exit::new(Status::Unknown).with_reason(Some(why));
        let exit = self.how.take().unwrap_or_else(aborted);
        self.seat.ended(self.incarnation, &exit);
        self.lodging = None;
        self.exit.send_replace(Some(Arc::new(exit)));
    }
}

struct LocalChild {
    mailbox: Arc<Mailbox>,
    task: AbortHandle,
    exited: Ended,
}

impl Child for LocalChild {
    fn stop(&self, rung: Rung) {
        match rung {
            Rung::Drain => {
                self.mailbox.resume();
                self.mailbox.drain();
            }
            Rung::Graceful | Rung::Term => self.mailbox.stop(),
            Rung::Kill => self.task.abort(),
        }
    }

    fn pid(&self) -> Option<u32> {
        Some(std::process::id())
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        Box::pin(ended(self.exited.clone()))
    }

    fn suspend(&self) -> BoxFuture<Result<(), Fault>> {
        self.mailbox.suspend();
        Box::pin(std::future::ready(Ok(())))
    }

    fn pause(&self) -> Result<(), Fault> {
        Err(Fault::Refused(
            "a local actor has no process of its own that could stand still: use suspend() instead"
                .to_owned(),
        ))
    }

    fn resume(&self) -> Result<(), Fault> {
        self.mailbox.resume();
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.mailbox.is_suspended()
    }

    fn mailbox(&self) -> Option<MailboxInfo> {
        Some(self.mailbox.info())
    }
}

/// Ends a start whose future is dropped half-way.
struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
