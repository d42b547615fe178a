//! An actor in this process: a task of its own, behind the same seat and the same window as one in a worker.

use std::marker::PhantomData;
use std::sync::Arc;

use hatchery_wire::{Body, EncodeError, decode, encode};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use crate::actor::Actor;
use crate::child::{BoxFuture, Child, Ended, Order, Presence, Rung, Start, Started, ended};
use crate::context::Context;
use crate::exit::{Exit, Status};
use crate::fault::Fault;
use crate::handle::ActorRef;
use crate::mailbox::{Mailbox, Parcel, ReturnPath};
use crate::outlet::{Answer, Line, Request};
use crate::panics;
use crate::runner;
use crate::seat::Seat;

/// What [`Start`]s an actor in this process.
pub struct Local<A> {
    name: String,
    args: Result<Body, EncodeError>,
    actor: PhantomData<fn() -> A>,
}

impl<A: Actor> Local<A> {
    /// An actor of this name; its arguments are kept encoded, for restarts.
    pub fn new(name: impl Into<String>, args: &A::Args) -> Local<A> {
        Local { name: name.into(), args: encode(args), actor: PhantomData }
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
        self.args.as_ref().map(drop).map_err(|error| Fault::NotSent(error.to_string()))
    }

    fn handle(&self, reference: ActorRef) -> A::Handle {
        reference.into()
    }

    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        let args = self.args.clone();
        Box::pin(async move {
            let args = args.map_err(|error| Fault::NotSent(error.to_string()))?;
            let args = decode::<A::Args>(&args).map_err(|error| Fault::Undecodable(error.to_string()))?;
            let mailbox = Mailbox::new();
            let (exit, exited) = watch::channel(None);
            let (ready, is_ready) = oneshot::channel();
            let end = End {
                seat: order.seat.clone(),
                incarnation: order.incarnation,
                exit,
                how: None,
                _presence: order.presence,
            };
            let task = tokio::spawn(live::<A>(args, mailbox.clone(), ready, end));
            let child = Arc::new(LocalChild { mailbox: mailbox.clone(), task: task.abort_handle(), exited });
            let unless_ready = AbortOnDrop(Some(task.abort_handle()));
            let failed = match tokio::time::timeout(order.timeout, is_ready).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(fault))) => Some(fault),
                Ok(Err(_)) => {
                    let exit = child.exited().await;
                    Some(Fault::Ended { exit: Box::new((*exit).clone()), maybe_executed: false })
                }
                Err(_) => {
                    task.abort();
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
            let line = Arc::new(LocalLine::new(mailbox, order.seat, order.incarnation));
            Ok(Started { child, line })
        })
    }
}

/// The whole life of a local actor, `end` being dropped last on every way out, an abort included.
async fn live<A: Actor>(
    args: A::Args,
    mailbox: Arc<Mailbox>,
    ready: oneshot::Sender<Result<(), Fault>>,
    mut end: End,
) {
    panics::note_places();
    let cx = Context::new(end.seat.path(), end.incarnation, mailbox.clone());
    let actor = match panics::catch(A::start(args, &cx)).await {
        Ok(Ok(actor)) => actor,
        Ok(Err(error)) => {
            end.how = Some(Exit::new(Status::Code(1)).with_failed(true));
            let _ = ready.send(Err(Fault::StartFailed(error.to_string())));
            return;
        }
        Err(panic) => {
            end.how = Some(Exit::new(Status::Code(101)).with_panic(Some(panic)));
            return;
        }
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    end.how = Some(match runner::run(actor, &mailbox, cx).await {
        Ok(()) => Exit::orderly(),
        Err(panic) => Exit::new(Status::Code(101)).with_panic(Some(panic)),
    });
}

/// Reports the end of a local actor, first to its seat, then to whoever waits for it.
struct End {
    seat: Arc<Seat>,
    incarnation: u64,
    exit: watch::Sender<Option<Arc<Exit>>>,
    how: Option<Exit>,
    _presence: Presence,
}

impl Drop for End {
    fn drop(&mut self) {
        let aborted = || Exit::new(Status::Unknown).with_reason(Some("its task was aborted".to_owned()));
        let exit = self.how.take().unwrap_or_else(aborted);
        self.seat.ended(self.incarnation, &exit);
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
}

/// The way of requests into a mailbox of this process.
struct LocalLine {
    mailbox: Arc<Mailbox>,
    back: Arc<dyn ReturnPath>,
}

impl LocalLine {
    fn new(mailbox: Arc<Mailbox>, seat: Arc<Seat>, incarnation: u64) -> LocalLine {
        LocalLine { mailbox, back: Arc::new(LocalReturn { seat, incarnation }) }
    }
}

impl Line for LocalLine {
    fn send(&self, request: Request) -> Result<(), Fault> {
        let Request { id, ask, deadline, trace, body } = request;
        // No `refuse` here: this runs under the outlet's lock, which an answer would take again.
        let parcel = Parcel { id, ask, deadline, trace, body, from: self.back.clone() };
        self.mailbox.push(parcel).map_err(|_| Fault::Stopping)
    }

    fn withdraw(&self, id: u64) {
        self.mailbox.withdraw(id, &self.back);
    }
}

/// The way of the answers back to the seat.
struct LocalReturn {
    seat: Arc<Seat>,
    incarnation: u64,
}

impl ReturnPath for LocalReturn {
    fn answer(&self, id: u64, answer: Answer) {
        let kept = self.seat.answered(self.incarnation, id, answer, true);
        debug_assert!(kept.is_ok(), "a local actor answers each request once");
    }

    fn release(&self, places: u32) {
        let kept = self.seat.released(self.incarnation, places);
        debug_assert!(kept.is_ok(), "a local actor releases each place once");
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
