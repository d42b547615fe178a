//! An actor in a process of its own.

use std::marker::PhantomData;
use std::sync::Arc;

use hatchery_actor::actor::AnyActor;
use hatchery_actor::ask::deadline;
use hatchery_actor::child::{BoxFuture, Child, Ended, Order, Rung, Start, Started, ended as wait};
use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::outlet::{Answer, Line, Request, measure};
use hatchery_actor::seat::Seat;
use hatchery_actor::settings::Settings;
use hatchery_wire::{Body, EncodeError, Envelope, Kind, Origin, encode};
use rustix::process::Signal;

use crate::channel::{Desk, Outgoing, fault_of};
use crate::frames::{Frame, What};
use crate::launch::{self, KillOnDrop, Launch, launch, live};
use crate::program::Program;
use crate::registry;
use crate::ward::Ward;
use crate::warden::Warden;

/// The actor or task that a worker was started for is target 0 of its first channel.
pub(crate) const TENANT: u32 = 0;

/// What [`Start`]s an actor in a process of its own.
pub struct Worker<A> {
    name: String,
    args: Result<Body, EncodeError>,
    actor: PhantomData<fn() -> A>,
}

impl<A: AnyActor> Worker<A> {
    /// An actor of this name; its arguments are kept encoded, for restarts.
    pub fn new(name: impl Into<String>, args: &A::Args) -> Worker<A> {
        Worker { name: name.into(), args: encode(args), actor: PhantomData }
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
        measure(self.args.as_ref().map_err(|error| Fault::NotSent(error.to_string()))?)
    }

    fn check_settings(&self, settings: &Settings) -> Result<(), Fault> {
        settings.check(launch::INVITED_BY)
    }

    fn handle(&self, reference: ActorRef) -> A::Handle {
        reference.into()
    }

    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        let args = self.args.clone();
        let name = self.name.clone();
        Box::pin(async move {
            let args = args.map_err(|error| Fault::NotSent(error.to_string()))?;
            let program = Program::current()?;
            let deadline = deadline(order.timeout);
            let launch_order = Launch {
                path: order.seat.path().to_owned(),
                name,
                incarnation: order.incarnation,
                what: What::Actor { name: A::name().to_owned(), place: A::place().to_string() },
                settings: order.settings,
                presence: Some(order.presence),
                heartbeat: order.heartbeat,
            };
            let launched = launch(&program, launch_order).await?;
            let ward = launched.ward.clone();
            let unless_ready = KillOnDrop(Some(ward.clone()));
            let outgoing = Arc::new(Outgoing::default());
            outgoing.send(Envelope::new(Kind::Start, TENANT, 0, args));
            let (seat, incarnation) = (order.seat.clone(), order.incarnation);
            let desk = SeatDesk { seat: seat.clone(), incarnation };
            let ended = live(launched, outgoing.clone(), desk, move |exit| seat.ended(incarnation, exit))?;

            match tokio::time::timeout_at(deadline, ward.started()).await {
                Ok(Some(Ok(()))) => {}
                Ok(failed) => {
                    // One live process a seat: it is gone before anybody hears that it failed.
                    if tokio::time::timeout(launch::START_TIMEOUT, wait(ended.clone())).await.is_err() {
                        ward.condemn("it lived on after its start failed");
                    }
                    let exit = wait(ended).await;
                    unless_ready.forget();
                    return Err(match failed {
                        Some(Err(error)) => Fault::StartFailed(error.to_string()),
                        _ => launch::ended(&exit),
                    });
                }
                Err(_) => {
                    let missed = if ward.has_said_hello() { "not ready" } else { "no hello" };
                    let fault =
                        launch::late(&ward, ended, format!("{missed} within {:?}", order.timeout)).await;
                    unless_ready.forget();
                    return Err(fault);
                }
            }
            unless_ready.forget();
            let child = Arc::new(WorkerChild { ward, ended });
            let line = Arc::new(ChannelLine { outgoing });
            Ok(Started { child, line })
        })
    }
}

struct WorkerChild {
    ward: Arc<Ward>,
    ended: Ended,
}

impl Child for WorkerChild {
    fn stop(&self, rung: Rung) {
        self.ward.note_stop();
        match (rung, Warden::get()) {
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
            "it has ended, or its parent has lost track of it: it cannot be paused".to_owned(),
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
}

fn overloaded() -> Fault {
    Fault::Refused("this process's warden is overloaded: try again".to_owned())
}

/// The way of requests to the worker.
struct ChannelLine {
    outgoing: Arc<Outgoing>,
}

impl Line for ChannelLine {
    fn send(&self, request: Request) -> Result<(), Fault> {
        let Request { id, ask, left, trace, body, .. } = request;
        let kind = if ask { Kind::Ask } else { Kind::Tell };
        let mut envelope = Envelope::new(kind, TENANT, id, body);
        // Time left rather than a point in time: the two processes compare no clocks.
        envelope.deadline = left;
        if let Some(trace) = trace {
            envelope.origin = Some(Box::new(Origin { trace: trace.to_wire(), ..Origin::default() }));
        }
        self.outgoing.send(envelope);
        Ok(())
    }

    fn withdraw(&self, id: u64) {
        self.outgoing.send(Envelope::new(Kind::Withdraw, TENANT, id, Body::default()));
    }

    fn credit(&self, id: u64, items: usize) {
        // A number can be encoded.
        self.outgoing.send(Envelope::new(Kind::Credit, TENANT, id, encode(&items).unwrap_or_default()));
    }
}

/// Takes a worker's answers to the seat.
struct SeatDesk {
    seat: Arc<Seat>,
    incarnation: u64,
}

impl Desk for SeatDesk {
    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        let Envelope { kind, release, id, target, body, .. } = envelope;
        if target != TENANT {
            return Err(format!("an answer from target {target}, which does not exist"));
        }
        let answer = match kind {
            Kind::Reply => Answer::Value(body),
            Kind::Error => Answer::Error(body),
            Kind::Fault => Answer::Fault(fault_of(&body)?),
            Kind::Item => {
                return self.seat.item(self.incarnation, id, body).map_err(|error| error.to_string());
            }
            Kind::End => Answer::End,
            Kind::Release => {
                let places = u32::try_from(id).unwrap_or(u32::MAX);
                return self.seat.released(self.incarnation, places).map_err(|_| too_many());
            }
            other => return Err(format!("a message of kind {other:?}, which a worker does not send")),
        };
        self.seat.answered(self.incarnation, id, answer, release).map_err(|_| too_many())
    }

    fn is_due(&self) -> bool {
        self.seat.owed() > 0
    }

    fn waiting(&self) -> usize {
        self.seat.owed()
    }
}

fn too_many() -> String {
    "it gave back more places in its window than there are".to_owned()
}
