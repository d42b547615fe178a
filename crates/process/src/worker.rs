//! An actor in a process of its own.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::actor::AnyActor;
use hatchery_actor::address::ProcessId;
use hatchery_actor::ask::deadline;
use hatchery_actor::child::{BoxFuture, Child, Ended, Order, Rung, Start, Started, ended as wait};
use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::heartbeat::Heartbeat;
use hatchery_actor::outlet::{Line, measure};
use hatchery_actor::seat::Seat;
use hatchery_actor::settings::Settings;
use hatchery_actor::watchdog::{self, MailboxInfo};
use hatchery_wire::{Body, EncodeError, Envelope, Kind, encode};
use rustix::process::Signal;

use crate::calls_out::{self, TargetLine};
use crate::channel::{Desk, Outgoing};
use crate::frames::{Frame, What};
use crate::launch::{self, Launch, launch, live};
use crate::program::Program;
use crate::registry;
use crate::ward::Ward;
use crate::warden::Warden;

/// The actor or task that a worker was started for is target 0 of its first channel.
pub(crate) const TENANT: u32 = 0;

/// What [`Start`]s an actor in a process of its own.
pub struct Worker<A> {
    name: String,
    /// None if each start is given its own.
    args: Result<Option<Body>, EncodeError>,
    actor: PhantomData<fn() -> A>,
}

impl<A: AnyActor> Worker<A> {
    /// An actor of this name; its arguments are kept encoded, for restarts.
    pub fn new(name: impl Into<String>, args: &A::Args) -> Worker<A> {
        Worker { name: name.into(), args: encode(args).map(Some), actor: PhantomData }
    }

    /// The same, which is given its arguments at each start.
    pub fn to_be_given(name: impl Into<String>) -> Worker<A> {
        Worker { name: name.into(), args: Ok(None), actor: PhantomData }
    }
}

impl<A: AnyActor> Start for Worker<A> {
    type Handle = A::Handle;

    fn name(&self) -> &str {
        &self.name
    }

    fn actor(&self) -> &'static str {
        A::name()
    }

    fn check(&self) -> Result<(), Fault> {
        registry::actor(A::name(), &A::place().to_string())?;
        match &self.args {
            Ok(Some(args)) => measure(args),
            Ok(None) => Ok(()),
            Err(error) => Err(Fault::NotSent(error.to_string())),
        }
    }

    fn check_settings(&self, settings: &Settings) -> Result<(), Fault> {
        settings.check(launch::INVITED_BY)
    }

    fn check_watchdog(&self, limit: Duration, heartbeat: Heartbeat) -> Result<(), Fault> {
        watchdog::check_with(limit, heartbeat)
    }

    fn handle(&self, reference: ActorRef) -> A::Handle {
        reference.into()
    }

    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        let args = order.args.clone().map_or_else(|| self.args.clone(), |args| Ok(Some(args)));
        let name = self.name.clone();
        Box::pin(async move {
            let args = args.map_err(|error| Fault::NotSent(error.to_string()))?;
            let args = args.ok_or_else(|| Fault::StartFailed("nothing makes its arguments".to_owned()))?;
            measure(&args)?;
            let program = Program::current()?;
            let deadline = deadline(order.timeout);
            let what = What::Actor { name: A::name().to_owned(), place: A::place().to_string() };
            let launch_order = Launch::seated(&order, name, what);
            let process = ProcessId { path: launch_order.path.clone(), birth: launch_order.birth };
            let launched = launch(&program, launch_order).await?;
            let ward = launched.ward.clone();
            let outgoing = Arc::new(Outgoing::default());
            outgoing.send(Envelope::new(Kind::Start, TENANT, 0, args));
            let Order { seat, incarnation, timeout, .. } = order;
            let desk = SeatDesk { seat: seat.clone(), incarnation };
            let ended = live(launched, outgoing.clone(), desk, move |exit| seat.ended(incarnation, exit))?;
            launch::ready(&ward, ended.clone(), deadline, timeout).await?;
            let line = Arc::new(TargetLine { outgoing, target: TENANT });
            let child = Arc::new(WorkerChild { ward, process, ended, line: Some(line.clone()) });
            Ok(Started { child, line })
        })
    }
}

/// A worker process that a supervisor stops in the end.
pub(crate) struct WorkerChild {
    pub(crate) ward: Arc<Ward>,
    pub(crate) process: ProcessId,
    pub(crate) ended: Ended,
    /// The way of requests to its actor, if it hosts one.
    pub(crate) line: Option<Arc<TargetLine>>,
}

impl Child for WorkerChild {
    fn stop(&self, rung: Rung) {
        self.ward.note_stop();
        match (rung, Warden::get()) {
            (Rung::Drain, _) => {
                if let Some(line) = &self.line {
                    line.drain();
                }
                // Should that not be possible, it is asked harder in the end.
                let _ = self.resume();
            }
            (Rung::Graceful, Ok(warden)) => {
                warden.tell(&self.ward, Frame::Shutdown);
                if self.ward.is_paused() {
                    self.ward.go_on_group();
                }
            }
            (Rung::Kill, _) => {
                self.ward.signal_group(Signal::KILL);
            }
            _ => self.ward.terminate_group(),
        }
    }

    fn pid(&self) -> Option<u32> {
        self.ended.borrow().is_none().then(|| self.ward.pid_number())
    }

    fn process(&self) -> Option<ProcessId> {
        Some(self.process.clone())
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        Box::pin(wait(self.ended.clone()))
    }

    fn suspend(&self) -> BoxFuture<Result<(), Fault>> {
        let asked = Warden::get()
            .ok()
            .and_then(|warden| self.ward.suspend(|number| warden.tell(&self.ward, Frame::Suspend(number))));
        let (ward, ended) = (self.ward.clone(), self.ended.clone());
        Box::pin(async move {
            let Some(number) = asked else { return Err(overloaded()) };
            if ward.heeds(number).await { Ok(()) } else { Err(launch::ended(&*wait(ended).await)) }
        })
    }

    fn pause(&self) -> Result<(), Fault> {
        if self.ward.pause_group() {
            return Ok(());
        }
        Err(Fault::Refused(
            "it has ended, or somebody else has waited for it, and cannot be paused: try again when the next \
             incarnation sits there".to_owned(),
        ))
    }

    fn resume(&self) -> Result<(), Fault> {
        let told =
            Warden::get().is_ok_and(|warden| self.ward.unsuspend(|| warden.tell(&self.ward, Frame::Resume)));
        if self.ward.is_paused() {
            self.ward.go_on_group();
        }
        if told { Ok(()) } else { Err(overloaded()) }
    }

    fn is_paused(&self) -> bool {
        self.ward.is_paused() || self.ward.is_suspended()
    }

    fn mailbox(&self) -> Option<MailboxInfo> {
        self.ward.mailbox()
    }
}

fn overloaded() -> Fault {
    Fault::Refused("this process's warden is overloaded: try again".to_owned())
}

/// Takes a worker's answers to the seat.
struct SeatDesk {
    seat: Arc<Seat>,
    incarnation: u64,
}

impl Desk for SeatDesk {
    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        let target = envelope.target;
        if target != TENANT {
            return Err(format!("an answer from target {target}, which does not exist"));
        }
        calls_out::answered(&self.seat, self.incarnation, envelope)
    }

    fn waiting(&self) -> usize {
        self.seat.owed()
    }
}
