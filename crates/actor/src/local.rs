//! An actor in this process: a task of its own, behind the same seat and the same window as one in a worker.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hatchery_wire::{Body, EncodeError, decode_owned, encode};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior};

use crate::actor::Actor;
use crate::child::{AFTER_KILL, BoxFuture, Child, Ended, Order, Presence, Rung, Start, Started, ended};
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
use crate::tasks::Tasks;
use crate::watchdog::{self, MailboxInfo, Progress};

/// Why the end of one that was killed is not known.
const BLOCKS: &str = "its start blocks the thread it runs on, and cannot be ended there";

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

    fn is_process(&self) -> bool {
        false
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
                told: None,
                _presence: order.presence,
            };
            panics::note_places();
            let cx = Context::new::<A>(order.seat.path(), order.incarnation, mailbox.clone())
                .in_seat(order.seat.id());
            let tasks = cx.tasks().clone();
            let task = tokio::spawn(live::<A>(origin, mailbox.clone(), cx, ready));
            let abort = task.abort_handle();
            let watching = mailbox.clone();
            let below = tasks.clone();
            let (stuck, is_stuck) = watch::channel(None);
            tokio::spawn(async move {
                let (how, why) = watched(task, &watching, &stuck, order.watchdog).await;
                (end.how, end.why) = (how.flatten(), why);
                end.tell_seat();
                // A kill waits for nothing, but it is over only when nothing of the incarnation runs any more.
                below.released().await;
                drop(end);
            });
            let child = Arc::new(LocalChild {
                mailbox: mailbox.clone(),
                task: abort.clone(),
                tasks,
                exited,
                is_stuck,
            });
            let unless_ready = KillOnDrop(Some(child.clone()));
            let failed = match tokio::time::timeout(order.timeout, is_ready).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(fault))) => Some(fault),
                Ok(Err(_)) => {
                    let exit = child.exited().await;
                    Some(Fault::Ended { exit: Box::new((*exit).clone()), maybe_executed: false })
                }
                Err(_) => {
                    child.stop(Rung::Kill);
                    // If it blocks its thread, it is for the supervisor to say what follows from that.
                    let exited = tokio::time::timeout(AFTER_KILL, child.exited()).await;
                    let blocks = || Exit::new(Status::Unknown).with_reason(Some(BLOCKS.to_owned()));
                    let exit = Box::new(exited.map_or_else(|_| blocks(), |exit| (*exit).clone()));
                    if exit.reason() == Some(BLOCKS) {
                        let what = format!("not ready within {:?}", order.timeout);
                        return Err(Fault::Late { what, exit });
                    }
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
    stuck: &watch::Sender<Option<Arc<Exit>>>,
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
            let ended = match tokio::time::timeout(AFTER_KILL, &mut task).await {
                Ok(ended) => ended,
                Err(_) => {
                    let why = format!("{why}; and it blocks its thread, so only its process can be ended");
                    let exit = Exit::new(Status::Unknown).with_reason(Some(why));
                    stuck.send_replace(Some(Arc::new(exit)));
                    task.await
                }
            };
            return (ended.ok(), Some(why));
        }
    }
}

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
    /// What its seat was told.
    told: Option<Arc<Exit>>,
    _presence: Presence,
}

impl End {
    /// It answers nobody any more; what it supervises may still be on its way out.
    fn tell_seat(&mut self) -> Arc<Exit> {
        if let Some(exit) = &self.told {
            return exit.clone();
        }
        let why = self.why.take().unwrap_or_else(|| runner::ABORTED.to_owned());
        let aborted = || Exit::new(Status::Unknown).with_reason(Some(why));
        let exit = Arc::new(self.how.take().unwrap_or_else(aborted));
        self.seat.ended(self.incarnation, &exit);
        self.lodging = None;
        self.told = Some(exit.clone());
        exit
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let exit = self.tell_seat();
        self.exit.send_replace(Some(exit));
    }
}

struct LocalChild {
    mailbox: Arc<Mailbox>,
    task: AbortHandle,
    tasks: Arc<Tasks>,
    exited: Ended,
    /// What stands for its exit once it has been cut off in vain.
    is_stuck: Ended,
}

impl Child for LocalChild {
    fn stop(&self, rung: Rung) {
        match rung {
            Rung::Drain => {
                self.mailbox.resume();
                self.mailbox.drain();
            }
            Rung::Graceful | Rung::Term => self.mailbox.stop(),
            Rung::Kill => {
                self.task.abort();
                self.tasks.kill();
            }
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

    fn unkillable(&self) -> BoxFuture<Arc<Exit>> {
        let mut is_stuck = self.is_stuck.clone();
        Box::pin(async move {
            let exit = is_stuck.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
            match exit {
                Some(exit) => exit,
                // It has ended.
                None => std::future::pending().await,
            }
        })
    }

    fn mailbox(&self) -> Option<MailboxInfo> {
        Some(self.mailbox.info())
    }
}

/// Ends a start whose future is dropped half-way.
struct KillOnDrop(Option<Arc<LocalChild>>);

impl KillOnDrop {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            child.stop(Rung::Kill);
        }
    }
}
