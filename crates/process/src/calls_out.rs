//! Requests of this process to actors of others: the channels it has opened, and the seats it reaches over them.
//!
//! There is one to each process, however many of its actors are asked. It is closed when none of them is any more, and
//! when there are too many: then those go first that nobody has used for the longest time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hatchery_actor::exchange::Over;
use hatchery_actor::fault::Fault;
use hatchery_actor::outlet::{Answer, Line, Request};
use hatchery_actor::probe::Probe;
use hatchery_actor::seat::Seat;
use hatchery_wire::{Body, Envelope, Kind, Origin, encode};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, oneshot};

use crate::calls_in::Binding;
use crate::channel::{Desk, Outgoing, fault_of};

/// How long a channel stays open when nobody is asked over it any more: handles come and go with messages.
const LINGER: Duration = Duration::from_secs(1);

/// The channels of one run, by the process at their other end.
pub(crate) struct CallsOut {
    channels: Mutex<HashMap<u64, Arc<OnceCell<Arc<Called>>>>>,
    most: usize,
    /// Goes on with every channel that is opened.
    clock: Arc<AtomicU64>,
}

impl CallsOut {
    /// With so many channels, idle ones are closed before another is opened.
    pub(crate) fn new(most: usize) -> Arc<CallsOut> {
        Arc::new(CallsOut { channels: Mutex::default(), most, clock: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<OnceCell<Arc<Called>>>>> {
        // No foreign code runs under this lock.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel to this process; if there is none, `open` opens one. Those who want it at the same time share it.
    pub(crate) async fn to<E>(
        self: &Arc<CallsOut>,
        birth: u64,
        open: impl AsyncFnOnce(Arc<Called>) -> Result<(), E>,
    ) -> Result<Arc<Called>, E> {
        let cell = self.lock().entry(birth).or_default().clone();
        // Whether it fails or is given up: an empty cell that nobody else waits for is taken off.
        let _tidy = Tidy { calls: self, birth };
        let opened = cell
            .get_or_try_init(async || {
                self.make_room();
                let clock = self.clock.clone();
                clock.fetch_add(1, Ordering::Relaxed);
                let channel = Arc::new(Called {
                    birth,
                    calls: Arc::downgrade(self),
                    outgoing: Arc::default(),
                    seats: Mutex::default(),
                    used: AtomicU64::new(clock.load(Ordering::Relaxed)),
                    clock,
                    runtime: Handle::current(),
                });
                open(channel.clone()).await.map(|()| channel)
            })
            .await;
        opened.cloned()
    }

    fn forget(&self, birth: u64, is_it: impl FnOnce(&Arc<OnceCell<Arc<Called>>>) -> bool) {
        let mut channels = self.lock();
        if channels.get(&birth).is_some_and(is_it) {
            channels.remove(&birth);
        }
    }

    fn open(&self) -> Vec<Arc<Called>> {
        self.lock().values().filter_map(|cell| cell.get().cloned()).collect()
    }

    /// Closes idle channels, if there are too many.
    fn make_room(&self) {
        let mut open = self.open();
        if open.len() < self.most {
            return;
        }
        let too_many = open.len() + 1 - self.most;
        open.sort_by_key(|channel| channel.used.load(Ordering::Relaxed));
        open.iter().filter(|channel| channel.rest()).take(too_many).for_each(drop);
    }

    /// Those that are open.
    pub(crate) fn outgoing(&self) -> Vec<Arc<Outgoing>> {
        self.open().iter().map(|channel| channel.outgoing.clone()).collect()
    }
}

/// Takes off what has come to nothing, when it is dropped after the hold of its future on it.
struct Tidy<'a> {
    calls: &'a CallsOut,
    birth: u64,
}

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        // The table's own hold on it, and that of the future that is about to end.
        self.calls.forget(self.birth, |cell| cell.get().is_none() && Arc::strong_count(cell) <= 2);
    }
}

/// A channel that this process has opened.
pub(crate) struct Called {
    birth: u64,
    calls: Weak<CallsOut>,
    pub(crate) outgoing: Arc<Outgoing>,
    seats: Mutex<Seats>,
    /// What the clock said when it was last used.
    used: AtomicU64,
    clock: Arc<AtomicU64>,
    runtime: Handle,
}

#[derive(Default)]
struct Seats {
    last: u32,
    reached: HashMap<u32, Reached>,
    /// Nothing goes over it any more.
    over: bool,
}

/// A seat whose actor is reached over a channel.
struct Reached {
    seat: Weak<Seat>,
    /// Its incarnation, as it is counted here.
    number: u64,
    over: oneshot::Sender<Over>,
    /// Until the other side has said that the actor is there.
    confirm: Option<oneshot::Sender<()>>,
}

/// A way to an actor that has been asked for.
pub(crate) struct Bound {
    pub(crate) line: Arc<dyn Line>,
    /// Why nothing more comes from there; dropped if nobody goes that way any more.
    pub(crate) over: oneshot::Receiver<Over>,
    /// The other side has said that the actor is there; dropped if it is not.
    pub(crate) confirmed: oneshot::Receiver<()>,
}

impl Called {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        // No foreign code runs under this lock.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A way to an actor at the other end. `None` if the channel is over.
    pub(crate) fn bind(
        self: &Arc<Called>,
        seat: &Arc<Seat>,
        number: u64,
        binding: &Binding,
    ) -> Option<Bound> {
        let body = encode(binding).ok()?;
        let (over, is_over) = oneshot::channel();
        let (confirm, confirmed) = oneshot::channel();
        let mut seats = self.seats();
        if seats.over {
            return None;
        }
        seats.last = seats.last.checked_add(1)?;
        let target = seats.last;
        seats
            .reached
            .insert(target, Reached { seat: Arc::downgrade(seat), number, over, confirm: Some(confirm) });
        // Under the lock, so that nothing can be said about it before.
        self.outgoing.send(Envelope::new(Kind::Bind, target, 0, body));
        drop(seats);
        let line = TargetLine { outgoing: self.outgoing.clone(), target };
        let line = Arc::new(CallLine { channel: self.clone(), line });
        Some(Bound { line, over: is_over, confirmed })
    }

    /// Nobody here speaks to this actor any more.
    fn leave(self: &Arc<Called>, target: u32) {
        let mut seats = self.seats();
        let known = seats.reached.remove(&target);
        if !seats.over {
            self.outgoing.send(Envelope::new(Kind::Unbind, target, 0, Body::default()));
        }
        let last = !seats.over && seats.reached.is_empty();
        drop(seats);
        drop(known);
        if last {
            let channel = self.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep(LINGER).await;
                channel.close_if_unused();
            });
        }
    }

    /// Takes the way from all actors that nothing is under way to, and closes it if those are all.
    fn rest(self: &Arc<Called>) -> bool {
        let reached: Vec<_> = {
            let seats = self.seats();
            seats.reached.values().map(|at| (at.seat.clone(), at.number)).collect()
        };
        for (seat, number) in reached {
            // With its way it leaves the channel.
            seat.upgrade().map(|seat| seat.disconnect(number));
        }
        self.close_if_unused()
    }

    /// Closes it if no actor is reached over it; whether it is over.
    fn close_if_unused(self: &Arc<Called>) -> bool {
        let mut seats = self.seats();
        if seats.over || !seats.reached.is_empty() {
            return seats.over;
        }
        seats.over = true;
        drop(seats);
        self.take_off();
        self.outgoing.finish();
        true
    }

    /// Nothing more will come over it.
    pub(crate) fn ended(&self) {
        let reached = {
            let mut seats = self.seats();
            seats.over = true;
            std::mem::take(&mut seats.reached)
        };
        self.take_off();
        for at in reached.into_values() {
            let _ = at.over.send(Over::Ended);
        }
    }

    fn take_off(&self) {
        if let Some(calls) = self.calls.upgrade() {
            calls.forget(self.birth, |cell| {
                cell.get().is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), self))
            });
        }
    }

    /// The other side says that the actor is there.
    fn confirmed(&self, target: u32) {
        let confirm = self.seats().reached.get_mut(&target).and_then(|at| at.confirm.take());
        if let Some(confirm) = confirm {
            let _ = confirm.send(());
        }
    }

    /// The actor has ended, and everything it said has arrived.
    fn left(&self, target: u32) {
        let known = self.seats().reached.remove(&target);
        if let Some(at) = known {
            let _ = at.over.send(Over::Said);
        }
    }
}

/// The way of requests to one actor at the other end of a channel.
pub(crate) struct TargetLine {
    pub(crate) outgoing: Arc<Outgoing>,
    pub(crate) target: u32,
}

impl Line for TargetLine {
    fn send(&self, request: Request) -> Result<(), Fault> {
        let Request { id, ask, left, trace, chain, body, .. } = request;
        let kind = if ask { Kind::Ask } else { Kind::Tell };
        let mut envelope = Envelope::new(kind, self.target, id, body);
        // Time left rather than a point in time: the two processes compare no clocks.
        envelope.deadline = left;
        if trace.is_some() || chain.is_some() {
            let trace = trace.map(|trace| trace.to_wire()).unwrap_or_default();
            let chain = chain.map(|chain| chain.to_wire()).unwrap_or_default();
            envelope.origin = Some(Box::new(Origin { trace, chain }));
        }
        self.outgoing.send(envelope);
        Ok(())
    }

    fn withdraw(&self, id: u64) {
        self.outgoing.send(Envelope::new(Kind::Withdraw, self.target, id, Body::default()));
    }

    fn probe(&self, id: u64, probe: Probe) {
        let mut envelope = Envelope::new(Kind::Probe, self.target, id, Body::default());
        envelope.origin = Some(Box::new(Origin { chain: probe.to_wire(), ..Origin::default() }));
        self.outgoing.send(envelope);
    }

    fn credit(&self, id: u64, items: usize) {
        // A number can be encoded.
        let items = encode(&items).unwrap_or_default();
        self.outgoing.send(Envelope::new(Kind::Credit, self.target, id, items));
    }

    fn drain(&self) -> bool {
        // Behind all requests, as the last one.
        self.outgoing.send(Envelope::new(Kind::Drain, self.target, 0, Body::default()));
        true
    }
}

/// The same over a channel that this process has opened, which it leaves in the end.
struct CallLine {
    channel: Arc<Called>,
    line: TargetLine,
}

impl Line for CallLine {
    fn send(&self, request: Request) -> Result<(), Fault> {
        let now = self.channel.clock.load(Ordering::Relaxed);
        self.channel.used.store(now, Ordering::Relaxed);
        self.line.send(request)
    }

    fn withdraw(&self, id: u64) {
        self.line.withdraw(id);
    }

    fn probe(&self, id: u64, probe: Probe) {
        self.line.probe(id, probe);
    }

    fn credit(&self, id: u64, items: usize) {
        self.line.credit(id, items);
    }

    fn drain(&self) -> bool {
        self.line.drain()
    }
}

impl Drop for CallLine {
    fn drop(&mut self) {
        self.channel.leave(self.line.target);
    }
}

/// Takes what arrives over a channel to the seats that are reached over it.
pub(crate) struct AnswersIn(pub(crate) Arc<Called>);

impl Desk for AnswersIn {
    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        let (seat, number) = {
            let seats = self.0.seats();
            match seats.reached.get(&envelope.target) {
                Some(at) => (at.seat.upgrade(), at.number),
                // Late words to somebody who has left.
                None if envelope.target <= seats.last => return Ok(()),
                None => {
                    return Err(format!("an answer from target {}, which does not exist", envelope.target));
                }
            }
        };
        match envelope.kind {
            Kind::Unbind => {
                self.0.left(envelope.target);
                return Ok(());
            }
            Kind::Bind => {
                self.0.confirmed(envelope.target);
                return Ok(());
            }
            _ => {}
        }
        match seat {
            Some(seat) => answered(&seat, number, envelope),
            None => Ok(()),
        }
    }

    fn waiting(&self) -> usize {
        // A seat that is let go of here may be the last hold on it, and takes the lock.
        let (first, others) = {
            let seats = self.0.seats();
            let mut seats = seats.reached.values().map(|at| at.seat.clone());
            // A few are enough to tell a crowd.
            (seats.next(), seats.take(8).collect::<Vec<_>>())
        };
        let seats = first.into_iter().chain(others).filter_map(|seat| seat.upgrade());
        seats.map(|seat| seat.owed()).sum()
    }
}

impl Drop for AnswersIn {
    fn drop(&mut self) {
        self.0.ended();
    }
}

/// An answer of this incarnation, for its seat.
pub(crate) fn answered(seat: &Seat, number: u64, envelope: Envelope) -> Result<(), String> {
    let Envelope { kind, release, id, body, .. } = envelope;
    let answer = match kind {
        Kind::Reply => Answer::Value(body),
        Kind::Error => Answer::Error(body),
        Kind::Fault => Answer::Fault(fault_of(&body)?),
        Kind::Item => return seat.item(number, id, body).map_err(|error| error.to_string()),
        Kind::End => Answer::End,
        Kind::Release => {
            let places = u32::try_from(id).unwrap_or(u32::MAX);
            return seat.released(number, places).map_err(|_| too_many());
        }
        other => return Err(format!("a message of kind {other:?}, which a worker does not send")),
    };
    seat.answered(number, id, answer, release).map_err(|_| too_many())
}

fn too_many() -> String {
    "it gave back more places in its window than there are".to_owned()
}
