//! An actor's queue: requests in order of arrival, with control that overtakes them.
//!
//! It is bounded by what its senders' windows add up to: a channel counts its own places and a peer that takes more
//! is refused by that channel, so nothing here needs to wait.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hatchery_wire::Body;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::busy;
use crate::chain::{self, Chain, Life};
use crate::fault::Fault;
use crate::flow::{self, Flow, Flows, Order};
use crate::outlet::Answer;
use crate::probe::{self, Awaited, Probe, Station};
use crate::streams::TooMuchCredit;
use crate::trace::TraceContext;
use crate::watchdog::MailboxInfo;

/// How many answers an actor may have put off at once: more than wait for any lock, and some megabytes at most. Their
/// places have been given back, so it is not the window that bounds them.
const PUT_OFF: usize = 65_536;

/// Where the answer to a request goes, and the places in its sender's window.
pub trait ReturnPath: Send + Sync + 'static {
    /// Answers a request; this gives its place back, too.
    fn answer(&self, id: u64, answer: Answer);

    /// Answers a request whose place was given back when its handler returned.
    fn reply(&self, id: u64, answer: Answer);

    /// The next item of a request that is answered with a stream. [`Answer::End`] as its reply, or a fault, ends it.
    fn item(&self, id: u64, item: Body);

    /// Gives back the places of requests that want no answer.
    fn release(&self, places: u32);
}

/// A request that has arrived.
pub struct Parcel {
    /// The sender's number for it.
    pub id: u64,
    /// Whether an answer is wanted.
    pub ask: bool,
    /// When its caller stops waiting, by this process's clock.
    pub deadline: Option<Instant>,
    /// The trace it belongs to, and its caller's span in it.
    pub trace: Option<Box<TraceContext>>,
    /// Whose running requests wait for it.
    pub chain: Option<Chain>,
    /// The encoded message.
    pub body: Body,
    /// Where the answer goes.
    pub from: Arc<dyn ReturnPath>,
}

/// A request as its handler needs it; where its answer goes is kept in the mailbox while it runs.
pub(crate) struct Work {
    pub(crate) id: u64,
    pub(crate) ask: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) trace: Option<Box<TraceContext>>,
    pub(crate) chain: Option<Chain>,
    pub(crate) body: Body,
}

/// What the actor does next.
pub(crate) enum Next {
    Work(Work),
    /// The mailbox is empty: a good moment to settle what is owed.
    Idle,
    Stop,
}

/// The queue itself.
pub struct Mailbox {
    life: Life,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Parcel>,
    running: Option<Running>,
    /// Once a handler has waited for long.
    station: Option<Box<Station<Awaited>>>,
    /// Requests whose answers have been put off, and that nobody has answered yet.
    put_off: HashMap<Name, PutOff>,
    /// Those of them whose right to answer was lost in a panic that may yet turn out to be the actor's own.
    lost: Vec<Ticket>,
    flows: Flows,
    /// How many threads are about to hand over an answer that was put off.
    speaking: usize,
    /// How many have been taken out.
    taken: u64,
    stopping: bool,
    /// It stops when nothing is left, and nothing more gets in.
    draining: bool,
    suspended: bool,
    closed: bool,
    waker: Option<Waker>,
}

/// The request that a handler works on right now.
struct Running {
    /// The how manyth it is.
    number: u64,
    id: u64,
    from: Arc<dyn ReturnPath>,
    caller_left: bool,
    /// Cancelled when the caller leaves; made when somebody first wants to know.
    left: Option<CancellationToken>,
    is_put_off: bool,
}

/// What a request is called: by whom, and its sender's number for it. The sender is known by its address, which nobody
/// else gets while the request holds on to it.
pub(crate) type Name = (usize, u64);

/// A request whose answer has been put off.
struct PutOff {
    /// The how manyth it is.
    number: u64,
    from: Arc<dyn ReturnPath>,
    left: CancellationToken,
}

/// The right to answer a request later, once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    name: Name,
    number: u64,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> Arc<Mailbox> {
        Arc::new(Mailbox { life: chain::life(), state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request arrives.
    ///
    /// # Errors
    /// The request back if the actor has stopped, or takes no more: [`refuse`](Parcel::refuse) it, or answer it another
    /// way.
    pub fn push(&self, parcel: Parcel) -> Result<(), Parcel> {
        let mut state = self.lock();
        if state.closed || state.draining {
            return Err(parcel);
        }
        state.queue.push_back(parcel);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Whether a request may join the queue: not if the one that runs waits for it, since that would be for ever. One
    /// that has no chain may always.
    ///
    /// # Errors
    /// The answer to it. The request that runs may be over when it is pushed, but none of its chain can begin meanwhile.
    pub fn admit(&self, chain: Option<&Chain>) -> Result<(), Fault> {
        let Some(chain) = chain else { return Ok(()) };
        let running = self.lock().running.as_ref().map(|running| running.number);
        match running.and_then(|number| chain.circle(self.life, number)) {
            Some(circle) => Err(Fault::Deadlock { circle, maybe_executed: false }),
            None => Ok(()),
        }
    }

    /// A probe has come along a request of this sender.
    pub fn probe(&self, id: u64, from: &Arc<dyn ReturnPath>, probe: Probe) {
        let mut state = self.lock();
        let State { queue, running, station, .. } = &mut *state;
        let Some(station) = station else { return };
        // One whose answer has been put off may get it from anybody.
        let running = running.as_ref().filter(|running| !running.is_put_off);
        let runs = running.is_some_and(|running| running.id == id && Arc::ptr_eq(&running.from, from));
        if !runs && !queue.iter().any(|parcel| parcel.id == id && Arc::ptr_eq(&parcel.from, from)) {
            return;
        }
        let verdict = station.arrives(probe, runs);
        drop(state);
        probe::follow(verdict);
    }

    /// The handler, which is being looked at, is about to take a step.
    pub(crate) fn handler_stirs(&self) {
        let mut state = self.lock();
        state.station.get_or_insert_with(|| Box::new(Station::new(self.life))).stirs();
    }

    /// The handler waits for the answer to this one ask, and can go on by nothing else.
    pub(crate) fn handler_waits(&self, number: u64, path: &Arc<str>, ask: Awaited) {
        if let Some(station) = &mut self.lock().station {
            station.waits(number, path, ask);
        }
    }

    /// The handler is not looked at any more.
    pub(crate) fn handler_goes_on(&self) {
        if let Some(station) = &mut self.lock().station {
            station.over();
        }
    }

    /// A probe to be sent along what the handler waits for.
    pub(crate) fn sends_probe(&self) -> Option<(Awaited, Probe)> {
        self.lock().station.as_mut()?.begins()
    }

    /// Tells this incarnation apart from all others.
    pub(crate) fn life(&self) -> Life {
        self.life
    }

    /// Tells this actor apart from others of this process.
    pub(crate) fn id(&self) -> busy::Id {
        std::ptr::from_ref(self).addr()
    }

    /// A caller has left. If its request has not begun it never will; if it runs, the handler can see it; if its answer
    /// has been put off, whoever is to give it can.
    pub fn withdraw(&self, id: u64, from: &Arc<dyn ReturnPath>) {
        let mut state = self.lock();
        if let Some(flow) = state.flows.find(id, from) {
            drop(state);
            flow.give(Order::Withdrawn);
            return;
        }
        let put_off = state.put_off.remove(&name(id, from));
        if let Some(PutOff { left, .. }) = &put_off {
            let left = left.clone();
            drop(state);
            left.cancel();
            state = self.lock();
        }
        if let Some(running) = &mut state.running {
            if running.id == id && Arc::ptr_eq(&running.from, from) {
                running.caller_left = true;
                let left = running.left.clone();
                drop(state);
                if let Some(left) = left {
                    left.cancel();
                }
                return;
            }
        }
        let found = state.queue.iter().position(|p| p.id == id && Arc::ptr_eq(&p.from, from));
        if let Some(parcel) = found.and_then(|index| state.queue.remove(index)) {
            let waker = state.waker_if_drained();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
            // The caller is gone, but its place in the window has to come back.
            parcel.from.answer(id, Answer::Fault(Fault::Withdrawn));
        }
        // Not found: it has been answered, and the answer and the withdrawal have crossed.
    }

    /// All callers of this sender have left, its process has ended perhaps. Its tells were sent, and count. Gives how
    /// many of its requests will never begin; their places are free.
    pub fn callers_left(&self, from: &Arc<dyn ReturnPath>) -> u32 {
        let mut state = self.lock();
        let is_theirs = |other: &Arc<dyn ReturnPath>| Arc::ptr_eq(other, from);
        let flows = state.flows.of(from);
        let mut left = Vec::new();
        state.put_off.retain(|_, put_off| {
            let theirs = is_theirs(&put_off.from);
            if theirs {
                left.push(put_off.left.clone());
            }
            !theirs
        });
        if let Some(running) = state.running.as_mut().filter(|running| is_theirs(&running.from)) {
            running.caller_left = true;
            left.extend(running.left.clone());
        }
        let mut gone = Vec::new();
        for parcel in std::mem::take(&mut state.queue) {
            if parcel.ask && is_theirs(&parcel.from) {
                gone.push(parcel);
            } else {
                state.queue.push_back(parcel);
            }
        }
        let waker = state.waker_if_drained();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        let unheard = u32::try_from(gone.len()).unwrap_or(u32::MAX);
        drop(gone);
        left.into_iter().for_each(|left| left.cancel());
        flows.iter().for_each(|flow| flow.give(Order::Withdrawn));
        unheard
    }

    /// The actor shall stop after the message it is at.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The actor shall handle what waits here by now, and then stop. What comes later is refused. A
    /// [`stop`](Mailbox::stop) still overtakes; while it is suspended, it does not get on.
    pub fn drain(&self) {
        let mut state = self.lock();
        state.draining = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The actor shall begin nothing new after the message it is at, until [`resume`](Mailbox::resume). A stop still
    /// overtakes.
    pub fn suspend(&self) {
        self.lock().suspended = true;
    }

    /// The actor shall go on.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.suspended = false;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What can be told of it now.
    pub fn info(&self) -> MailboxInfo {
        let state = self.lock();
        MailboxInfo::new(state.queue.len(), state.running.as_ref().map(|running| running.number))
    }

    /// Whether nothing new begins.
    pub(crate) fn is_suspended(&self) -> bool {
        self.lock().suspended
    }

    /// What to do next; `idle` asks to be told once when there is nothing.
    pub(crate) fn poll_next(&self, idle: bool, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.lock();
        while !state.lost.is_empty() {
            // The actor is alive, so the panics were others'.
            let lost = std::mem::take(&mut state.lost);
            drop(state);
            lost.into_iter().for_each(|ticket| self.unanswered(ticket));
            state = self.lock();
        }
        if state.stops() {
            return Poll::Ready(Next::Stop);
        }
        let next = if state.suspended { None } else { state.queue.pop_front() };
        if let Some(Parcel { id, ask, deadline, trace, chain, body, from }) = next {
            state.taken += 1;
            let (number, left) = (state.taken, None);
            state.running = Some(Running { number, id, from, caller_left: false, left, is_put_off: false });
            return Poll::Ready(Next::Work(Work { id, ask, deadline, trace, chain, body }));
        }
        if idle {
            return Poll::Ready(Next::Idle);
        }
        let old = state.waker.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Whether there is something to do next.
    pub(crate) fn has_next(&self) -> bool {
        let state = self.lock();
        state.stops() || (!state.suspended && !state.queue.is_empty())
    }

    /// The handler of the running request has returned; where its answer goes, and whether it has been put off. `None`
    /// if none runs.
    pub(crate) fn finished(&self) -> Option<(Arc<dyn ReturnPath>, bool)> {
        let mut state = self.lock();
        let running = state.running.take();
        if let Some(station) = &mut state.station {
            station.over();
        }
        drop(state);
        running.map(|running| (running.from, running.is_put_off))
    }

    /// The request that runs, counted from 1, is going to be answered with a stream.
    ///
    /// # Errors
    /// It must not begin: nobody waits for it, or there are too many.
    pub(crate) fn open_stream(&self, number: u64) -> Result<Arc<Flow>, Fault> {
        let mut state = self.lock();
        let State { running, flows, .. } = &mut *state;
        let running = running.as_mut().filter(|running| running.number == number);
        // Looked at and opened under one lock: a withdrawal finds the one or the other.
        let Some(running) = running.filter(|running| !running.caller_left) else {
            return Err(Fault::Withdrawn);
        };
        let Some(flow) = flows.open(running.id, running.from.clone()) else {
            let open = flow::OPEN;
            return Err(Fault::Refused(format!(
                "the actor has {open} streams open, as many as it may: read some to their end, or drop them, and try again"
            )));
        };
        running.is_put_off = true;
        Ok(flow)
    }

    /// The consumer of a stream has taken so many items.
    ///
    /// # Errors
    /// They are more than it was sent.
    pub fn credit(&self, id: u64, from: &Arc<dyn ReturnPath>, items: usize) -> Result<(), TooMuchCredit> {
        let flow = self.lock().flows.find(id, from);
        // Not found: its end and this have crossed.
        flow.map_or(Ok(()), |flow| flow.credit(items))
    }

    pub(crate) fn stream_ended(&self, flow: &Flow) {
        let waker = self.lock().flows.ended(flow);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The actor stops in order: its streams end, each with a last word.
    pub(crate) fn stop_streams(&self) {
        let flows = self.lock().flows.all();
        flows.iter().for_each(|flow| flow.give(Order::Stopped));
    }

    /// Resolves when no stream is left.
    pub(crate) fn poll_no_streams(&self, cx: &Context<'_>) -> Poll<()> {
        let (none, old) = self.lock().flows.poll_none(cx);
        drop(old);
        none
    }

    /// Puts off the answer to the running request, counted from 1. With the right to answer comes a token that is
    /// cancelled when the caller leaves, or when the actor is gone.
    ///
    /// # Errors
    /// There are too many; or the sender uses a number twice; or the request is over.
    pub(crate) fn put_off(&self, number: u64) -> Result<(Ticket, CancellationToken), Fault> {
        let mut state = self.lock();
        let State { running, put_off, .. } = &mut *state;
        let refused = |why: String| Err(Fault::Refused(why));
        let Some(running) = running.as_mut().filter(|running| running.number == number) else {
            return refused("an answer can only be put off by the handler of its request".to_owned());
        };
        if put_off.len() >= PUT_OFF {
            return refused(format!(
                "{PUT_OFF} answers of this actor are still to come, and it takes on no more before it has given some"
            ));
        }
        let name = name(running.id, &running.from);
        if running.is_put_off || put_off.contains_key(&name) {
            return refused("a request has one answer".to_owned());
        }
        running.is_put_off = true;
        let left = running.left.get_or_insert_default().clone();
        let gone = running.caller_left;
        if !gone {
            put_off.insert(name, PutOff { number, from: running.from.clone(), left: left.clone() });
        }
        drop(state);
        if gone {
            left.cancel();
        }
        Ok((Ticket { name, number }, left))
    }

    /// Answers a request whose answer was put off; whether it still could be, for then its caller has not left as far
    /// as this process knows.
    pub(crate) fn reply(&self, ticket: Ticket, answer: Answer) -> bool {
        let mut state = self.lock();
        let Some(put_off) = state.redeem(ticket) else { return false };
        state.speaking += 1;
        drop(state);
        put_off.from.reply(ticket.name.1, answer);
        let mut state = self.lock();
        state.speaking -= 1;
        let waker = if state.speaking == 0 { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Nobody will give the answer that was put off.
    pub(crate) fn unanswered(&self, ticket: Ticket) {
        let why = if self.lock().closed { STOPPED } else { DROPPED };
        self.reply(ticket, unanswered(why));
    }

    /// The same, amid a panic. If it is the actor's own, its end is the answer.
    pub(crate) fn lost(&self, ticket: Ticket) {
        let mut state = self.lock();
        state.lost.push(ticket);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The actor has stopped in order: answers that are still to come never will. Resolves when everything has been
    /// said, by whatever thread: an orderly exit stands for that.
    pub(crate) async fn abandon(&self) {
        for (name, put_off) in self.forget() {
            put_off.from.reply(name.1, unanswered(STOPPED));
            put_off.left.cancel();
        }
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.speaking == 0 {
                return Poll::Ready(());
            }
            let old = state.waker.replace(cx.waker().clone());
            drop(state);
            drop(old);
            Poll::Pending
        })
        .await;
    }

    /// The actor has crashed, or was cut off: what it still owes ends with its incarnation, in whatever way the rest of
    /// it is dropped.
    pub(crate) fn crashed(&self) {
        self.forget().into_values().for_each(|put_off| put_off.left.cancel());
    }

    fn forget(&self) -> HashMap<Name, PutOff> {
        let mut state = self.lock();
        // A handler that is cut off waits for nothing.
        state.station = None;
        std::mem::take(&mut state.put_off)
    }

    /// Is cancelled when the caller of this request, counted from 1, leaves; `None` if it is not the one that runs.
    pub(crate) fn caller_left(&self, number: u64) -> Option<CancellationToken> {
        let mut state = self.lock();
        let running = state.running.as_mut().filter(|running| running.number == number)?;
        let left = running.left.get_or_insert_default().clone();
        let gone = running.caller_left;
        drop(state);
        if gone {
            left.cancel();
        }
        Some(left)
    }

    /// The actor is gone: what is left, and all that still arrives, is answered `Stopping`.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let rest = std::mem::take(&mut state.queue);
        drop(state);
        rest.into_iter().for_each(Parcel::refuse);
    }
}

impl State {
    /// Whether nothing more is to be handled.
    fn stops(&self) -> bool {
        self.stopping || (self.draining && self.queue.is_empty())
    }

    /// Something was taken out that will not be handled: whoever waits to handle it may have to stop instead.
    fn waker_if_drained(&mut self) -> Option<Waker> {
        if self.draining && self.queue.is_empty() { self.waker.take() } else { None }
    }

    /// The request that this ticket is for, once; none if its caller has left.
    fn redeem(&mut self, ticket: Ticket) -> Option<PutOff> {
        // A sender that uses a number again has a new request of that name.
        self.put_off.get(&ticket.name).filter(|put_off| put_off.number == ticket.number)?;
        self.put_off.remove(&ticket.name)
    }
}

pub(crate) fn name(id: u64, from: &Arc<dyn ReturnPath>) -> Name {
    (Arc::as_ptr(from).cast::<()>().addr(), id)
}

const DROPPED: &str = "its `Reply` was dropped unanswered";
const STOPPED: &str = "the actor stopped while its `Reply` was open";

fn unanswered(why: &str) -> Answer {
    Answer::Fault(Fault::BadAnswer(why.to_owned()))
}

impl Parcel {
    /// Answers it `Stopping`, and gives its place back.
    pub fn refuse(self) {
        if self.ask {
            self.from.answer(self.id, Answer::Fault(Fault::Stopping));
        } else {
            self.from.release(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::Weak;

    use hatchery_wire::encode;

    use super::*;
    use crate::chain::Link;
    use crate::probe::{Circle, Way};

    /// Writes down what comes back.
    #[derive(Default)]
    struct Back {
        answers: Mutex<Vec<(u64, Answer)>>,
        late: Mutex<Vec<(u64, Answer)>>,
        places: Mutex<u32>,
    }

    impl ReturnPath for Back {
        fn answer(&self, id: u64, answer: Answer) {
            self.answers.lock().unwrap().push((id, answer));
        }

        fn reply(&self, id: u64, answer: Answer) {
            self.late.lock().unwrap().push((id, answer));
        }

        fn item(&self, id: u64, _: Body) {
            panic!("{id} is no stream");
        }

        fn release(&self, places: u32) {
            *self.places.lock().unwrap() += places;
        }
    }

    impl Back {
        fn answers(&self) -> Vec<(u64, Answer)> {
            self.answers.lock().unwrap().clone()
        }
    }

    fn parcel(id: u64, ask: bool, from: &Arc<Back>) -> Parcel {
        Parcel {
            id,
            ask,
            deadline: None,
            trace: None,
            chain: None,
            body: encode(&id).unwrap(),
            from: from.clone(),
        }
    }

    fn next(mailbox: &Mailbox) -> Option<Next> {
        match mailbox.poll_next(false, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }

    fn next_id(mailbox: &Mailbox) -> Option<u64> {
        next(mailbox).map(|next| match next {
            Next::Work(work) => work.id,
            Next::Idle | Next::Stop => panic!("a request was expected"),
        })
    }

    #[test]
    fn requests_come_out_in_the_order_of_their_arrival() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        for id in 0..10 {
            assert!(mailbox.push(parcel(id, true, &back)).is_ok());
        }
        for id in 0..10 {
            assert_eq!(next_id(&mailbox), Some(id));
            mailbox.finished();
        }
        assert_eq!(next_id(&mailbox), None);
    }

    #[test]
    fn control_overtakes_the_mailbox() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        mailbox.stop();
        assert!(matches!(next(&mailbox), Some(Next::Stop)));
    }

    #[test]
    fn what_the_running_request_waits_for_is_not_admitted() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        let of = |life, number| Chain::behind(None, Link { life, number, path: "/a".into() });
        let chain = of(mailbox.life(), 1);
        assert_eq!(mailbox.admit(Some(&chain)), Ok(()), "nothing runs");
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        assert_eq!(next_id(&mailbox), Some(1));
        let fault = Fault::Deadlock { circle: vec!["/a".to_owned()], maybe_executed: false };
        assert_eq!(mailbox.admit(Some(&chain)), Err(fault.clone()));
        let longer = Link { life: 1, number: 1, path: "/b".into() };
        let circle = vec!["/a".to_owned(), "/b".to_owned()];
        let longer = mailbox.admit(Some(&Chain::behind(Some(&chain), longer)));
        assert_eq!(longer, Err(Fault::Deadlock { circle, maybe_executed: false }));
        // Others' requests, other requests of this one, and those that nobody waits for.
        assert_eq!(mailbox.admit(Some(&of(mailbox.life(), 2))), Ok(()));
        assert_eq!(mailbox.admit(Some(&of(mailbox.life() ^ 1, 1))), Ok(()));
        assert_eq!(mailbox.admit(None), Ok(()));
        // An answer that is put off leaves the actor as busy as it is, until the handler returns.
        let (_ticket, _left) = mailbox.put_off(1).unwrap();
        assert_eq!(mailbox.admit(Some(&chain)), Err(fault));
        assert!(mailbox.finished().unwrap().1);
        assert_eq!(mailbox.admit(Some(&chain)), Ok(()));
    }

    /// What a probe found on its way.
    #[derive(Default)]
    struct Found(Mutex<Vec<u64>>);

    impl Way for Found {
        fn go_on(&self, id: u64, _: Probe) {
            self.0.lock().unwrap().push(id);
        }

        fn give_up(&self, id: u64, _: Circle) {
            panic!("{id} is in no circle");
        }
    }

    #[test]
    fn a_probe_goes_on_from_a_request_that_waits_or_runs_to_what_the_handler_waits_for() {
        let (mailbox, back, found) = (Mailbox::new(), Arc::new(Back::default()), Arc::new(Found::default()));
        let from: Arc<dyn ReturnPath> = back.clone();
        for id in 1..=2 {
            assert!(mailbox.push(parcel(id, true, &back)).is_ok());
        }
        assert_eq!(next_id(&mailbox), Some(1));
        let mut other = Station::new(0);
        other.waits(1, &"/other".into(), ());
        let mut probed = |id| {
            mailbox.probe(id, &from, other.begins().unwrap().1);
            std::mem::take(&mut *found.0.lock().unwrap())
        };
        assert_eq!(probed(1), [], "the handler has not been looked at");
        let way: Weak<Found> = Arc::downgrade(&found);
        mailbox.handler_stirs();
        mailbox.handler_waits(1, &"/a".into(), Awaited { way, id: 77 });
        assert_eq!((probed(1), probed(2), probed(3)), (vec![77], vec![77], vec![]));
        // Its answer may come from anybody from now on; that of the other one may not.
        let _ticket = mailbox.put_off(1).unwrap();
        assert_eq!((probed(1), probed(2)), (vec![], vec![77]));
        mailbox.handler_stirs();
        assert_eq!(probed(2), []);
        assert!(mailbox.finished().unwrap().1);
        assert_eq!(probed(2), []);
    }

    #[test]
    fn a_suspended_mailbox_gives_nothing_out_keeps_the_order_and_can_be_stopped() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        for id in 1..=4 {
            assert!(mailbox.push(parcel(id, true, &back)).is_ok());
        }
        assert_eq!(next_id(&mailbox), Some(1));
        mailbox.suspend();
        assert!(mailbox.is_suspended());
        mailbox.finished();
        assert_eq!(next_id(&mailbox), None);
        let from: Arc<dyn ReturnPath> = back.clone();
        mailbox.withdraw(3, &from);
        assert!(matches!(
            mailbox.poll_next(true, &mut Context::from_waker(Waker::noop())),
            Poll::Ready(Next::Idle)
        ));
        mailbox.resume();
        assert_eq!((next_id(&mailbox), next_id(&mailbox), next_id(&mailbox)), (Some(2), Some(4), None));
        mailbox.suspend();
        mailbox.stop();
        assert!(matches!(next(&mailbox), Some(Next::Stop)));
    }

    #[test]
    fn a_draining_mailbox_gives_out_what_it_has_takes_nothing_more_and_stops() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        for id in 1..=3 {
            assert!(mailbox.push(parcel(id, id != 2, &back)).is_ok());
        }
        assert_eq!(next_id(&mailbox), Some(1));
        mailbox.drain();
        assert_eq!(mailbox.info(), MailboxInfo::new(2, Some(1)));
        for (id, ask) in [(4, true), (5, false)] {
            mailbox.push(parcel(id, ask, &back)).unwrap_err().refuse();
        }
        assert_eq!(back.answers(), [(4, Answer::Fault(Fault::Stopping))]);
        assert_eq!(*back.places.lock().unwrap(), 1, "of the tell");
        mailbox.finished();
        assert_eq!((next_id(&mailbox), next_id(&mailbox)), (Some(2), Some(3)));
        assert!(mailbox.finished().is_some() && mailbox.has_next());
        assert!(matches!(next(&mailbox), Some(Next::Stop)));
        assert_eq!(mailbox.info(), MailboxInfo::default());
    }

    #[test]
    fn a_stop_overtakes_a_drain_and_a_drain_changes_nothing_after_it() {
        for stop_first in [true, false] {
            let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
            assert!(mailbox.push(parcel(1, true, &back)).is_ok());
            if stop_first {
                mailbox.stop();
                mailbox.drain();
            } else {
                mailbox.drain();
                mailbox.stop();
            }
            assert!(matches!(next(&mailbox), Some(Next::Stop)));
        }
    }

    #[test]
    fn who_waits_at_a_mailbox_that_drains_is_woken_when_the_last_request_leaves() {
        let back = Arc::new(Back::default());
        let from: Arc<dyn ReturnPath> = back.clone();
        for with_all_others in [false, true] {
            let mailbox = Mailbox::new();
            assert!(mailbox.push(parcel(1, true, &back)).is_ok());
            mailbox.drain();
            mailbox.suspend();
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(woken.clone());
            assert!(mailbox.poll_next(false, &mut Context::from_waker(&waker)).is_pending());
            if with_all_others {
                assert_eq!(mailbox.callers_left(&from), 1);
            } else {
                mailbox.withdraw(1, &from);
            }
            assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
            assert!(matches!(next(&mailbox), Some(Next::Stop)));
        }
        let empty = Mailbox::new();
        empty.drain();
        assert!(matches!(next(&empty), Some(Next::Stop)));
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn a_request_withdrawn_before_it_begins_never_does_and_its_place_comes_back() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        for id in 1..=3 {
            assert!(mailbox.push(parcel(id, true, &back)).is_ok());
        }
        let from: Arc<dyn ReturnPath> = back.clone();
        mailbox.withdraw(2, &from);
        assert_eq!(back.answers(), [(2, Answer::Fault(Fault::Withdrawn))]);
        assert_eq!((next_id(&mailbox), next_id(&mailbox), next_id(&mailbox)), (Some(1), Some(3), None));
    }

    #[test]
    fn a_withdrawal_that_crosses_its_answer_changes_nothing() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        let from: Arc<dyn ReturnPath> = back.clone();
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        assert_eq!(next_id(&mailbox), Some(1));
        mailbox.finished();
        mailbox.withdraw(1, &from);
        assert_eq!((back.answers(), next_id(&mailbox)), (vec![], None));
    }

    #[test]
    fn a_withdrawal_touches_its_own_senders_request_only() {
        let (mailbox, one, two) = (Mailbox::new(), Arc::new(Back::default()), Arc::new(Back::default()));
        for back in [&one, &one, &two] {
            assert!(mailbox.push(parcel(7, true, back)).is_ok());
        }
        let from: Arc<dyn ReturnPath> = two.clone();
        // The first one's 7 runs, and is not the one that is meant.
        assert_eq!(next_id(&mailbox), Some(7));
        let left = mailbox.caller_left(1).unwrap();
        mailbox.withdraw(7, &from);
        assert!(!left.is_cancelled());
        assert_eq!((one.answers().len(), two.answers().len()), (0, 1));
        // Left is the first one's second.
        assert_eq!(next_id(&mailbox), Some(7));
        let (whose, _) = mailbox.finished().unwrap();
        whose.answer(7, Answer::None);
        assert_eq!((one.answers().len(), next_id(&mailbox)), (1, None));
    }

    #[test]
    fn whoever_asks_about_the_caller_of_a_running_request_is_told_before_or_after() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        let from: Arc<dyn ReturnPath> = back.clone();
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        assert_eq!(next_id(&mailbox), Some(1));
        let before = mailbox.caller_left(1).unwrap();
        assert!(!before.is_cancelled());
        mailbox.withdraw(1, &from);
        assert!(before.is_cancelled() && mailbox.caller_left(1).unwrap().is_cancelled());
        mailbox.finished();
        assert!(mailbox.caller_left(1).is_none());
        assert!(mailbox.push(parcel(2, true, &back)).is_ok());
        assert_eq!(next_id(&mailbox), Some(2));
        assert!(mailbox.caller_left(1).is_none(), "that one is over");
        assert!(!mailbox.caller_left(2).unwrap().is_cancelled());
    }

    fn deferred(mailbox: &Mailbox, id: u64, back: &Arc<Back>) -> Result<(Ticket, CancellationToken), Fault> {
        assert!(mailbox.push(parcel(id, true, back)).is_ok());
        assert_eq!(next_id(mailbox), Some(id));
        let number = mailbox.lock().taken;
        let deferred = mailbox.put_off(number);
        assert_eq!(mailbox.finished().unwrap().1, deferred.is_ok());
        deferred
    }

    #[test]
    fn a_put_off_answer_is_given_once_and_only_while_its_caller_waits() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        let from: Arc<dyn ReturnPath> = back.clone();
        let (first, _) = deferred(&mailbox, 1, &back).unwrap();
        let (second, left) = deferred(&mailbox, 2, &back).unwrap();
        assert!(mailbox.reply(first, Answer::None) && !mailbox.reply(first, Answer::None));
        mailbox.withdraw(2, &from);
        assert!(left.is_cancelled() && !mailbox.reply(second, Answer::None));
        mailbox.unanswered(second);
        assert_eq!(*back.late.lock().unwrap(), [(1, Answer::None)]);
        assert!(mailbox.lock().put_off.is_empty());
    }

    #[test]
    fn a_withdrawal_while_the_handler_runs_reaches_the_answer_that_it_put_off() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        let from: Arc<dyn ReturnPath> = back.clone();
        for withdrawn_first in [false, true] {
            assert!(mailbox.push(parcel(1, true, &back)).is_ok());
            assert_eq!(next_id(&mailbox), Some(1));
            let number = mailbox.lock().taken;
            if withdrawn_first {
                mailbox.withdraw(1, &from);
            }
            let (ticket, left) = mailbox.put_off(number).unwrap();
            assert!(mailbox.put_off(number).is_err(), "a request has one answer");
            mailbox.withdraw(1, &from);
            assert!(left.is_cancelled() && mailbox.caller_left(number).unwrap().is_cancelled());
            assert!(mailbox.finished().unwrap().1 && !mailbox.reply(ticket, Answer::None));
        }
    }

    #[test]
    fn a_sender_that_uses_a_number_twice_is_refused_and_the_first_stays() {
        let (mailbox, one, two) = (Mailbox::new(), Arc::new(Back::default()), Arc::new(Back::default()));
        let (first, _) = deferred(&mailbox, 7, &one).unwrap();
        assert!(deferred(&mailbox, 7, &one).is_err());
        let (others, _) = deferred(&mailbox, 7, &two).unwrap();
        assert!(mailbox.reply(others, Answer::None) && mailbox.reply(first, Answer::None));
        // A ticket is for its own request, not for a later one of that number.
        assert!(deferred(&mailbox, 7, &one).is_ok() && !mailbox.reply(first, Answer::None));
    }

    #[test]
    fn an_actor_can_not_owe_without_end() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        let first = deferred(&mailbox, 0, &back).unwrap().0;
        for id in 1..PUT_OFF as u64 {
            deferred(&mailbox, id, &back).unwrap();
        }
        let refused = deferred(&mailbox, u64::MAX, &back).unwrap_err();
        assert!(refused.to_string().contains("65536 answers") && !refused.maybe_executed(), "{refused}");
        mailbox.unanswered(first);
        deferred(&mailbox, u64::MAX, &back).unwrap();
        let abandoned = std::pin::pin!(mailbox.abandon()).poll(&mut Context::from_waker(Waker::noop()));
        assert!(abandoned.is_ready());
        assert_eq!(back.late.lock().unwrap().len(), PUT_OFF + 1);
        assert!(mailbox.lock().put_off.is_empty());
    }

    /// Looks, while it is handed an answer, whether the actor believes that everything has been said.
    struct Looking {
        mailbox: Arc<Mailbox>,
        looked: Mutex<Vec<bool>>,
    }

    impl Looking {
        fn all_is_said(&self) -> bool {
            std::pin::pin!(self.mailbox.abandon()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        }
    }

    impl ReturnPath for Looking {
        fn answer(&self, _: u64, _: Answer) {}

        fn reply(&self, _: u64, _: Answer) {
            let said = self.all_is_said();
            self.looked.lock().unwrap().push(said);
        }

        fn item(&self, id: u64, _: Body) {
            panic!("{id} is no stream");
        }

        fn release(&self, _: u32) {}
    }

    #[test]
    fn an_actor_leaves_only_when_what_is_being_said_has_been_said() {
        let mailbox = Mailbox::new();
        let back = Arc::new(Looking { mailbox: mailbox.clone(), looked: Mutex::default() });
        let (id, ask, deadline) = (1, true, None);
        let one = Parcel {
            id,
            ask,
            deadline,
            trace: None,
            chain: None,
            body: encode(&id).unwrap(),
            from: back.clone(),
        };
        assert!(mailbox.push(one).is_ok());
        assert_eq!(next_id(&mailbox), Some(1));
        let (ticket, _) = mailbox.put_off(1).unwrap();
        assert!(mailbox.finished().unwrap().1 && mailbox.reply(ticket, Answer::None));
        assert_eq!(*back.looked.lock().unwrap(), [false]);
        assert!(back.all_is_said());
    }

    #[test]
    fn a_closed_mailbox_answers_what_is_left_and_hands_back_what_arrives() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        assert!(mailbox.push(parcel(2, false, &back)).is_ok());
        mailbox.close();
        assert_eq!(back.answers(), [(1, Answer::Fault(Fault::Stopping))]);
        assert_eq!(*back.places.lock().unwrap(), 1);
        let Err(returned) = mailbox.push(parcel(3, true, &back)) else { panic!("it is closed") };
        returned.refuse();
        assert_eq!(back.answers().len(), 2);
    }
}
