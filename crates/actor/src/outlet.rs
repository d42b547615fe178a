//! The caller's side of a seat: requests in the order of their first poll, the window, and who is owed an answer.
//!
//! Every request is in exactly one of these places, and each arrow is taken under one lock:
//!
//! ```text
//!            place in the window          answer, or the incarnation ended
//!   Queued ─────────────────────▶ Sent ───────────────────────────────────▶ Done ──▶ (its caller)
//!     │                            │ caller leaves: withdraw, forget the id
//!     └──────────▶ gone ◀──────────┘
//! ```
//!
//! A tell is done as soon as it has its place. Queued requests outlive an incarnation, unless they were meant for that
//! one alone; sent ones end with it. A request for a stream stays sent while its items arrive.
//! Each entry is owned by a living future, so the queue is bounded by what callers themselves hold.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hatchery_wire::{Body, Limits};
use tokio::time::Instant;

use crate::busy;
use crate::chain::Chain;
use crate::exit::Exit;
use crate::fault::Fault;
use crate::hold::Hold;
use crate::incarnation::{self, Incarnation};
use crate::probe::{Circle, Probe};
use crate::slots::Slots;
use crate::streams::{self, BadItem, Intake};
use crate::trace::TraceContext;

/// How many requests one channel may have waiting at one actor, unless its spec says fewer.
pub const WINDOW: u32 = 256;

/// The way from an outlet to one incarnation: a channel to its process, or its mailbox in this one.
pub trait Line: Send + Sync + 'static {
    /// Takes one request along; never waits, since the window bounds what is under way.
    ///
    /// # Errors
    /// A fault if this request cannot travel (it is over the message limit). Nothing was sent then.
    fn send(&self, request: Request) -> Result<(), Fault>;

    /// The caller of this request has left.
    fn withdraw(&self, id: u64);

    /// Takes a probe along this request, which it overtakes at most: then it ends.
    fn probe(&self, id: u64, probe: Probe);

    /// So many items of a streamed answer have been taken.
    fn credit(&self, id: u64, items: usize);

    /// Has the actor stop once it has handled what went this way, and others', before; whether it could be told so.
    fn drain(&self) -> bool {
        false
    }
}

/// Whether a message of this size can travel.
///
/// # Errors
/// It cannot.
pub fn measure(body: &Body) -> Result<(), Fault> {
    let limit = Limits::default().message;
    if body.len() > limit {
        return Err(Fault::NotSent(format!(
            "the message has {} bytes, over the limit of {limit}",
            body.len()
        )));
    }
    Ok(())
}

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    /// Not used again by this outlet while anybody may remember it; [`NO_ANSWER`] for one that wants none and need not
    /// wait in line.
    pub id: u64,
    /// Whether an answer is wanted.
    pub ask: bool,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// How long that is from now.
    pub left: Option<Duration>,
    /// The trace it belongs to. In a box, since most have none.
    pub trace: Option<Box<TraceContext>>,
    /// Whose running requests wait for it.
    pub chain: Option<Chain>,
    /// The encoded message.
    pub body: Body,
}

/// The number of requests that nobody speaks of again.
pub const NO_ANSWER: u64 = u64::MAX;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The handler's value, encoded.
    Value(Body),
    /// The handler's own error, encoded.
    Error(Body),
    /// The library's reason why there is no answer.
    Fault(Fault),
    /// No answer was wanted: the tell has been handed over, or handled.
    None,
    /// The stream has ended.
    End,
}

/// See the picture on top of this file.
pub(crate) struct Outlet {
    window: AtomicU32,
    state: Mutex<State>,
}

impl Default for Outlet {
    fn default() -> Outlet {
        Outlet::new(WINDOW)
    }
}

#[derive(Default)]
struct State {
    way: Way,
    last_ended: u64,
    /// The latest incarnation that has answered a request of this process.
    last_answered: u64,
    /// Who has to be gone before there is a way again, where that is known.
    held: Option<Box<Hold>>,
    queue: VecDeque<u64>,
    requests: Slots<Slot>,
    /// How many of them are sent, and not done.
    owed: usize,
    /// Streams of the present incarnation whose callers have left and that have not ended yet.
    left: HashMap<u64, Box<Intake>>,
    /// When the watcher of deadlines looks next, never later than the first of them; `None` if there is no watcher.
    look: Option<Instant>,
    watcher: Option<Waker>,
    /// Woken when somebody gets in line and there is no way.
    opener: Option<Waker>,
}

#[derive(Default)]
enum Way {
    #[default]
    Vacant,
    Open {
        incarnation: u64,
        places: u32,
        line: Arc<dyn Line>,
    },
    Closed(Fault),
}

struct Slot {
    phase: Phase,
    waker: Option<Waker>,
    /// When its caller stops waiting, if the watcher of deadlines is to say so.
    until: Option<Instant>,
    /// What has arrived, if the answer is a stream.
    intake: Option<Box<Intake>>,
    /// It has been withdrawn, and this is its outcome if it turns out not to have begun.
    instead: Option<Box<Fault>>,
}

enum Phase {
    Queued {
        ask: bool,
        deadline: Option<Instant>,
        trace: Option<Box<TraceContext>>,
        chain: Option<Chain>,
        body: Body,
        only: Option<u64>,
    },
    Sent {
        incarnation: u64,
    },
    Done(Answer),
}

/// What becomes of a request whose caller leaves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It was in line: it never will be sent.
    Unsent,
    /// It was on its way: it may run, or have run.
    Sent,
    /// It was over already, with this outcome.
    Over(Answer),
}

/// What becomes of a request at its first poll.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is over: a tell that has its place, or a request that cannot be sent.
    Done(Answer),
    /// It is under way, or in line.
    Waits {
        id: u64,
        /// Nobody watches over deadlines: a watcher is needed.
        unwatched: bool,
    },
}

/// What comes next of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Item(Body),
    /// Nothing: it is over with this.
    Over(Answer),
}

/// The peer gave back more places than it was given.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyReleases;

impl Outlet {
    /// At most so many requests are under way at once.
    pub(crate) fn new(window: u32) -> Outlet {
        Outlet { window: window.into(), state: Mutex::default() }
    }

    /// How many requests may be under way at once.
    pub(crate) fn window(&self) -> u32 {
        self.window.load(Ordering::Relaxed)
    }

    /// At most so many requests are under way at once, to incarnations from here on.
    pub(crate) fn set_window(&self, window: u32) {
        self.window.store(window, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock runs foreign code but `Line`, which does not panic; were it to, the state is
        // consistent at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, or puts it in line behind others, until then at the latest; its caller is woken when it is over.
    pub(crate) fn begin(
        &self,
        ask: bool,
        until: impl Fn() -> Option<Until>,
        body: Body,
        pin: Option<&Incarnation>,
        cx: &Context<'_>,
    ) -> Begun {
        // A tell that has its place at once needs none, and no look at the clock.
        let answered = if ask { until() } else { None };
        let mut state = self.lock();
        match (&state.way, pin) {
            (_, Some(pin)) if pin.number <= state.last_ended => {
                return Begun::Done(Answer::Fault(pin.over()));
            }
            (Way::Closed(fault), _) => return Begun::Done(Answer::Fault(fault.clone())),
            _ => {}
        }
        // The trace that the caller is in.
        let trace = TraceContext::current().map(Box::new);
        // Nobody waits for what is told.
        let chain = if ask { busy::chain() } else { None };
        let slot = |phase, until: Option<Until>| Slot {
            phase,
            waker: Some(cx.waker().clone()),
            until: until.map(|until| until.at),
            intake: None,
            instead: None,
        };
        let deadline = answered.map(|until| until.at);
        let State { way, held, queue, requests, owed, .. } = &mut *state;
        let (id, until) = match way {
            // The short way: nobody is in line, and there is a place.
            Way::Open { incarnation, places, line }
                if *places > 0 && queue.is_empty() && pin.is_none_or(|pin| pin.number == *incarnation) =>
            {
                let id = if ask {
                    requests.insert(slot(Phase::Sent { incarnation: *incarnation }, answered))
                } else {
                    NO_ANSWER
                };
                let left = answered.map(|until| until.left);
                match line.send(Request { id, ask, deadline, left, trace, chain, body }) {
                    Ok(()) => *places -= 1,
                    Err(fault) => {
                        let slot = requests.remove(id);
                        drop(state);
                        drop(slot);
                        return Begun::Done(Answer::Fault(fault));
                    }
                }
                if !ask {
                    return Begun::Done(Answer::None);
                }
                *owed += 1;
                (id, answered)
            }
            _ => {
                // Here a tell is waited for, too.
                let chain = if ask { chain } else { busy::chain() };
                if let Some(fault) = held_up(way, held.as_deref(), chain.as_ref()) {
                    let phase = Phase::Done(Answer::Fault(fault));
                    let id = requests.insert(Slot { waker: None, ..slot(phase, None) });
                    drop(state);
                    // Told in the next poll: whoever asks again and again until there is an answer lets others run in
                    // between, and can be cut off.
                    cx.waker().wake_by_ref();
                    return Begun::Waits { id, unwatched: false };
                }
                let until = if ask { answered } else { until() };
                let only = pin.map(|pin| pin.number);
                let id =
                    requests.insert(slot(Phase::Queued { ask, deadline, trace, chain, body, only }, until));
                queue.push_back(id);
                (id, until)
            }
        };
        // There may be a place all the same: those in line may have left.
        let mut wakers = state.pump();
        let unwatched = until.is_some_and(|until| state.watch(until.at, &mut wakers));
        drop(state);
        wake(wakers);
        Begun::Waits { id, unwatched }
    }

    /// Ends what has waited too long; says when to look again. `None` if nothing has a deadline: then nobody watches
    /// any more.
    pub(crate) fn look(&self, now: Instant, cx: &Context<'_>) -> Option<Instant> {
        let mut state = self.lock();
        if state.look.is_some_and(|look| look <= now) {
            let (mut wakers, mut late, mut next) = (Vec::new(), Vec::new(), None::<Instant>);
            let State { requests, owed, .. } = &mut *state;
            for (id, slot) in requests.iter_mut() {
                let (Some(until), false) = (slot.until, matches!(slot.phase, Phase::Done(_))) else {
                    continue;
                };
                if until > now {
                    next = Some(next.map_or(until, |next| next.min(until)));
                    continue;
                }
                let maybe_executed = matches!(slot.phase, Phase::Sent { .. });
                if maybe_executed {
                    late.push(id);
                    *owed -= 1;
                }
                slot.phase = Phase::Done(Answer::Fault(Fault::Timeout { maybe_executed }));
                wakers.extend(slot.waker.take());
            }
            state.look = next;
            let line = match &state.way {
                // Of an earlier incarnation nothing is under way any more.
                Way::Open { line, .. } => Some(line.clone()),
                _ => None,
            };
            state.watcher = Some(cx.waker().clone());
            if next.is_none() {
                state.watcher = None;
            }
            drop(state);
            if let Some(line) = line {
                // They were sent under the lock, so this cannot overtake them.
                late.into_iter().for_each(|id| line.withdraw(id));
            }
            wake(wakers);
            return next;
        }
        state.watcher = Some(cx.waker().clone());
        state.look
    }

    /// The watcher is gone, perhaps with its runtime: those who wait see to it that there is another one.
    pub(crate) fn unwatched(&self) {
        let mut state = self.lock();
        state.look = None;
        let watcher = state.watcher.take();
        let waiting = state.requests.iter_mut().filter(|(_, slot)| slot.until.is_some());
        let wakers = waiting.filter_map(|(_, slot)| slot.waker.take()).collect();
        drop(state);
        drop(watcher);
        wake(wakers);
    }

    /// Whether this request, which has not ended, has a deadline that nobody watches over. From now on somebody does.
    pub(crate) fn needs_watching(&self, id: u64) -> bool {
        let mut state = self.lock();
        if state.look.is_some() {
            return false;
        }
        let slot = state.requests.get_mut(id).filter(|slot| !matches!(slot.phase, Phase::Done(_)));
        state.look = slot.and_then(|slot| slot.until);
        state.look.is_some()
    }

    /// Puts a request in line and gives its id.
    #[cfg(test)]
    pub(crate) fn submit(
        &self,
        ask: bool,
        deadline: Option<Instant>,
        body: Body,
        pin: Option<&Incarnation>,
    ) -> u64 {
        self.submit_slot(ask, deadline, body, pin, None)
    }

    /// The same for a request that is answered with a stream.
    pub(crate) fn submit_stream(
        &self,
        deadline: Option<Instant>,
        body: Body,
        pin: Option<&Incarnation>,
    ) -> u64 {
        self.submit_slot(true, deadline, body, pin, Some(Box::default()))
    }

    fn submit_slot(
        &self,
        ask: bool,
        deadline: Option<Instant>,
        body: Body,
        pin: Option<&Incarnation>,
        intake: Option<Box<Intake>>,
    ) -> u64 {
        let mut state = self.lock();
        let phase = match (&state.way, pin) {
            (_, Some(pin)) if pin.number <= state.last_ended => Phase::Done(Answer::Fault(pin.over())),
            (Way::Closed(fault), _) => Phase::Done(Answer::Fault(fault.clone())),
            _ => {
                let trace = TraceContext::current().map(Box::new);
                let chain = busy::chain();
                match held_up(&state.way, state.held.as_deref(), chain.as_ref()) {
                    Some(fault) => Phase::Done(Answer::Fault(fault)),
                    None => {
                        let only = pin.map(|pin| pin.number);
                        Phase::Queued { ask, deadline, trace, chain, body, only }
                    }
                }
            }
        };
        let queued = matches!(phase, Phase::Queued { .. });
        let id = state.requests.insert(Slot { phase, waker: None, until: None, intake, instead: None });
        if queued {
            state.queue.push_back(id);
        }
        let wakers = state.pump();
        drop(state);
        wake(wakers);
        id
    }

    /// The outcome of a request, once. Afterwards its id is forgotten.
    pub(crate) fn poll(&self, id: u64, cx: &mut Context<'_>) -> Poll<Answer> {
        State::poll(self.lock(), id, cx)
    }

    /// The next item of a stream, oldest first, and its end after the last one. Then its id is forgotten.
    pub(crate) fn poll_item(&self, id: u64, cx: &mut Context<'_>) -> Poll<Taken> {
        let mut state = self.lock();
        let slot = state.requests.get_mut(id);
        let Some((item, back)) = slot.and_then(|slot| slot.intake.as_mut()).and_then(|intake| intake.take())
        else {
            return State::poll(state, id, cx).map(Taken::Over);
        };
        let line = (back > 0).then(|| state.line_of(id)).flatten();
        drop(state);
        if let Some(line) = line {
            line.credit(id, back);
        }
        Poll::Ready(Taken::Item(item))
    }

    /// The caller leaves.
    pub(crate) fn cancel(&self, id: u64) -> Left {
        let mut state = self.lock();
        let line = state.line_of(id);
        let Some(Slot { phase, waker, intake, .. }) = state.requests.remove(id) else {
            // Its outcome was taken before; nobody asks twice.
            return Left::Over(Answer::Fault(Fault::Withdrawn));
        };
        if let (Some(intake), true) = (intake, line.is_some()) {
            // Items may be under way. The producer says when it has ended.
            state.left.insert(id, intake.forgotten());
        }
        if matches!(phase, Phase::Sent { .. }) {
            state.owed -= 1;
        }
        state.tidy();
        drop(state);
        // Only now, as in `poll`.
        drop(waker);
        if let Some(line) = line {
            // It was sent under the lock, so this cannot overtake it.
            line.withdraw(id);
        }
        match phase {
            Phase::Queued { .. } => Left::Unsent,
            Phase::Sent { .. } => Left::Sent,
            Phase::Done(answer) => Left::Over(answer),
        }
    }

    /// Takes a probe along a request that was sent and waits for its answer.
    pub(crate) fn probe(&self, id: u64, probe: Probe) {
        let mut state = self.lock();
        let waits = state.requests.get_mut(id).is_some_and(|slot| slot.instead.is_none());
        let line = if waits { state.line_of(id) } else { None };
        drop(state);
        if let Some(line) = line {
            line.probe(id, probe);
        }
    }

    /// A request that was sent waits in a circle: it fails. One that has not begun is withdrawn first, since only
    /// whoever has it can say that it never will.
    pub(crate) fn give_up(&self, id: u64, circle: Circle) {
        let mut state = self.lock();
        let Some(line) = state.line_of(id) else { return };
        let State { requests, owed, .. } = &mut *state;
        let Some(slot) = requests.get_mut(id).filter(|slot| slot.instead.is_none()) else { return };
        let Circle { paths, runs } = circle;
        let fault = Fault::Deadlock { circle: paths, maybe_executed: runs };
        let mut waker = None;
        if runs {
            slot.phase = Phase::Done(Answer::Fault(fault));
            waker = slot.waker.take();
            *owed -= 1;
        } else {
            slot.instead = Some(Box::new(fault));
        }
        drop(state);
        line.withdraw(id);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A new incarnation can be reached. Ignored if it has ended already.
    pub(crate) fn open(&self, incarnation: u64, line: Arc<dyn Line>) -> bool {
        let mut state = self.lock();
        if incarnation <= state.last_ended || matches!(state.way, Way::Closed(_)) {
            return false;
        }
        let old = std::mem::replace(&mut state.way, Way::Open { incarnation, places: self.window(), line });
        state.held = None;
        state.left.clear();
        let wakers = state.pump();
        drop(state);
        drop(old);
        wake(wakers);
        true
    }

    /// Resolves when somebody is in line and there is no way.
    pub(crate) fn poll_needs_way(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if matches!(state.way, Way::Vacant) && !state.queue.is_empty() {
            return Poll::Ready(());
        }
        let old = state.opener.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Takes the way to this incarnation away if nothing is under way on it; whether that was so.
    pub(crate) fn disconnect(&self, incarnation: u64) -> bool {
        let mut state = self.lock();
        match &state.way {
            Way::Open { incarnation: now, places, .. }
                if *now == incarnation
                    && *places == self.window()
                    && state.owed == 0
                    && state.left.is_empty() => {}
            _ => return false,
        }
        let old = std::mem::take(&mut state.way);
        drop(state);
        drop(old);
        true
    }

    /// See [`Line::drain`]; false if there is no way to this incarnation.
    pub(crate) fn drain(&self, incarnation: u64) -> bool {
        let state = self.lock();
        let line = match &state.way {
            Way::Open { incarnation: now, line, .. } if *now == incarnation => Some(line.clone()),
            _ => None,
        };
        drop(state);
        // All that was sent was sent under the lock, so this overtakes nothing.
        line.is_some_and(|line| line.drain())
    }

    /// How many callers wait for the answer to a request that was sent.
    pub(crate) fn owed(&self) -> usize {
        self.lock().owed
    }

    /// An answer arrived. With `release`, it also gives back a place in the window.
    pub(crate) fn answered(
        &self,
        incarnation: u64,
        id: u64,
        answer: Answer,
        release: bool,
    ) -> Result<(), TooManyReleases> {
        let mut state = self.lock();
        if release {
            state.give_back(incarnation, 1, self.window())?;
        }
        let mut first = None;
        if let Some(slot) = state.requests.get_mut(id) {
            // An answer to a request that this incarnation never got is ignored, as is one to a caller who left.
            if matches!(slot.phase, Phase::Sent { incarnation: to } if to == incarnation) {
                let is_answer = !matches!(answer, Answer::Fault(_));
                slot.phase = Phase::Done(match (slot.instead.take(), answer) {
                    (Some(fault), Answer::Fault(Fault::Withdrawn)) => Answer::Fault(*fault),
                    (_, answer) => answer,
                });
                first = slot.waker.take();
                state.owed -= 1;
                if is_answer {
                    state.last_answered = incarnation;
                }
            }
        } else if !state.left.is_empty() {
            state.left.remove(&id);
        }
        let wakers = state.pump();
        drop(state);
        if let Some(waker) = first {
            waker.wake();
        }
        wake(wakers);
        Ok(())
    }

    /// An item of a stream arrived.
    pub(crate) fn item(&self, incarnation: u64, id: u64, item: Body) -> Result<(), BadItem> {
        let mut state = self.lock();
        let State { requests, left, way, .. } = &mut *state;
        let sent_to =
            |slot: &&mut Slot| matches!(slot.phase, Phase::Sent { incarnation: to } if to == incarnation);
        let waker = match (requests.get_mut(id).filter(sent_to), left.get_mut(&id)) {
            (Some(Slot { intake: Some(intake), waker, .. }), _) => {
                intake.arrives(item)?;
                waker.take()
            }
            (None, Some(intake)) => {
                intake.arrives_for_nobody(streams::size(&item))?;
                None
            }
            _ if matches!(way, Way::Open { incarnation: now, .. } if *now == incarnation) => {
                return Err(BadItem::NoStream);
            }
            // Late words of an earlier incarnation change nothing.
            _ => None,
        };
        drop(state);
        wake(waker.into_iter().collect());
        Ok(())
    }

    /// Places in the window came back.
    pub(crate) fn released(&self, incarnation: u64, places: u32) -> Result<(), TooManyReleases> {
        let mut state = self.lock();
        state.give_back(incarnation, places, self.window())?;
        let wakers = state.pump();
        drop(state);
        wake(wakers);
        Ok(())
    }

    /// This incarnation has ended and all that it said has been delivered: what it still owed ends with its exit.
    pub(crate) fn ended(&self, incarnation: u64, exit: &Exit) {
        let mut state = self.lock();
        state.last_ended = state.last_ended.max(incarnation);
        self.cut_off(state, incarnation, exit);
    }

    /// Nobody comes before those are gone that this names: what waits in line, and is waited for by one of them, ends. `None`
    /// if there are none any more.
    pub(crate) fn hold(&self, held: Option<Box<Hold>>) {
        let mut state = self.lock();
        let mut wakers = Vec::new();
        let State { way, requests, .. } = &mut *state;
        for (_, slot) in requests.iter_mut().filter(|_| held.is_some()) {
            let Phase::Queued { chain, .. } = &slot.phase else { continue };
            if let Some(fault) = held_up(way, held.as_deref(), chain.as_ref()) {
                slot.phase = Phase::Done(Answer::Fault(fault));
                wakers.extend(slot.waker.take());
            }
        }
        let old = std::mem::replace(&mut state.held, held);
        drop(state);
        drop(old);
        wake(wakers);
    }

    /// Somebody may come after all.
    pub(crate) fn reopen(&self) {
        let mut state = self.lock();
        if matches!(state.way, Way::Closed(_)) {
            state.way = Way::Vacant;
        }
    }

    /// Nothing more goes the way to this incarnation, and nothing comes: why will be said by
    /// [`ended`](Outlet::ended) or [`broke`](Outlet::broke).
    pub(crate) fn shut(&self, incarnation: u64) {
        let mut state = self.lock();
        if !matches!(&state.way, Way::Open { incarnation: now, .. } if *now == incarnation) {
            return;
        }
        let old = std::mem::take(&mut state.way);
        state.left.clear();
        drop(state);
        drop(old);
    }

    /// The way to this incarnation broke: what it still owed is lost. It lives on, and there may be another way.
    pub(crate) fn broke(&self, incarnation: u64, exit: &Exit) {
        self.cut_off(self.lock(), incarnation, exit);
    }

    fn cut_off(&self, mut state: MutexGuard<'_, State>, incarnation: u64, exit: &Exit) {
        let has_ended = incarnation <= state.last_ended;
        let old = match &state.way {
            Way::Open { incarnation: now, .. } if *now == incarnation => Some(std::mem::take(&mut state.way)),
            _ => None,
        };
        if old.is_some() {
            state.left.clear();
        }
        let mut wakers = Vec::new();
        let State { requests, owed, .. } = &mut *state;
        for (_, slot) in requests.iter_mut() {
            let has_begun = slot.intake.as_ref().is_some_and(|intake| intake.has_begun());
            let fault = match slot.phase {
                Phase::Queued { only: Some(only), .. } if only == incarnation && has_ended => {
                    incarnation::over(exit)
                }
                // It came too late to be taken up, and all that was taken up has been answered.
                Phase::Sent { incarnation: to } if to == incarnation && exit.is_orderly() && !has_begun => {
                    Fault::Stopping
                }
                Phase::Sent { incarnation: to } if to == incarnation => {
                    Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: true }
                }
                _ => continue,
            };
            if matches!(slot.phase, Phase::Sent { .. }) {
                *owed -= 1;
            }
            slot.phase = Phase::Done(Answer::Fault(fault));
            wakers.extend(slot.waker.take());
        }
        drop(state);
        drop(old);
        wake(wakers);
    }

    /// Nobody will come any more: what waits in line is told so; what was sent still ends with its incarnation.
    pub(crate) fn close(&self, fault: Fault) {
        let mut state = self.lock();
        let mut wakers = Vec::new();
        state.queue.clear();
        for (_, slot) in state.requests.iter_mut() {
            if matches!(slot.phase, Phase::Queued { .. }) {
                slot.phase = Phase::Done(Answer::Fault(fault.clone()));
                wakers.extend(slot.waker.take());
            }
        }
        let old = std::mem::replace(&mut state.way, Way::Closed(fault));
        state.held = None;
        drop(state);
        drop(old);
        wake(wakers);
    }

    /// Whether this incarnation has answered a request of this process.
    pub(crate) fn has_answered(&self, incarnation: u64) -> bool {
        self.lock().last_answered == incarnation
    }
}

impl State {
    /// See [`Outlet::poll`]. The lock is given back here, since a waker that is dropped may take it again.
    fn poll(mut state: MutexGuard<'_, State>, id: u64, cx: &mut Context<'_>) -> Poll<Answer> {
        // Whoever has its outcome has been woken, so no waker is dropped with it.
        let done = state.requests.finish(id, |slot| match &mut slot.phase {
            Phase::Done(answer) => Some(std::mem::replace(answer, Answer::None)),
            _ => None,
        });
        if let Some(answer) = done {
            return Poll::Ready(answer);
        }
        let Some(slot) = state.requests.get_mut(id) else {
            // Only a future that is polled after it was ready gets here.
            return Poll::Ready(Answer::Fault(Fault::Withdrawn));
        };
        let old = match &slot.waker {
            Some(waker) if waker.will_wake(cx.waker()) => None,
            _ => slot.waker.replace(cx.waker().clone()),
        };
        drop(state);
        // Only now: the last waker of a task may drop the task, and with it requests of this very outlet.
        drop(old);
        Poll::Pending
    }

    /// The way to where this request was sent, while that incarnation can be reached.
    fn line_of(&self, id: u64) -> Option<Arc<dyn Line>> {
        match (&self.requests.get(id)?.phase, &self.way) {
            (Phase::Sent { incarnation }, Way::Open { incarnation: now, line, .. }) if now == incarnation => {
                Some(line.clone())
            }
            _ => None,
        }
    }

    /// Moves what is in line into the window, oldest first. Gives the wakers of those that are done by it.
    #[inline]
    fn pump(&mut self) -> Vec<Waker> {
        if self.queue.is_empty() { Vec::new() } else { self.pump_line() }
    }

    fn pump_line(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let Way::Open { incarnation, places, line } = &mut self.way else {
            if !self.queue.is_empty() {
                wakers.extend(self.opener.take());
            }
            return wakers;
        };
        while *places > 0 {
            let Some(id) = self.queue.pop_front() else { break };
            // Gone from the table: its caller left while it was in line.
            let Some(slot) = self.requests.get_mut(id) else { continue };
            match slot.phase {
                Phase::Queued { only, .. } if only.is_none_or(|only| only == *incarnation) => {}
                // Meant for another incarnation alone: it is told when that one ends, or has been told already.
                _ => continue,
            }
            let sent = Phase::Sent { incarnation: *incarnation };
            let Phase::Queued { ask, deadline, trace, chain, body, .. } =
                std::mem::replace(&mut slot.phase, sent)
            else {
                unreachable!("only queued requests are in line")
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // Nobody waits for what is told, now that it has its place.
            let chain = chain.filter(|_| ask);
            match line.send(Request { id, ask, deadline, left, trace, chain, body }) {
                Ok(()) => {
                    *places -= 1;
                    if ask {
                        self.owed += 1;
                    } else {
                        slot.phase = Phase::Done(Answer::None);
                        wakers.extend(slot.waker.take());
                    }
                }
                Err(fault) => {
                    slot.phase = Phase::Done(Answer::Fault(fault));
                    wakers.extend(slot.waker.take());
                }
            }
        }
        wakers
    }

    /// Somebody waits until then. Whether a watcher is needed; if one is there and looks too late, it is woken.
    fn watch(&mut self, until: Instant, wakers: &mut Vec<Waker>) -> bool {
        match self.look {
            Some(look) if look <= until => return false,
            Some(_) => wakers.extend(self.watcher.take()),
            None => {}
        }
        self.look.replace(until).is_none()
    }

    fn give_back(&mut self, incarnation: u64, n: u32, window: u32) -> Result<(), TooManyReleases> {
        match &mut self.way {
            Way::Open { incarnation: now, places, .. } if *now == incarnation => {
                if n > window - *places {
                    return Err(TooManyReleases);
                }
                *places += n;
                Ok(())
            }
            // Late words of an earlier incarnation change nothing.
            _ => Ok(()),
        }
    }

    /// Callers who left while in line leave their id behind; sweep when most ids are such.
    fn tidy(&mut self) {
        if self.queue.len() > 64 + 2 * self.requests.len() {
            let State { queue, requests, .. } = self;
            queue.retain(|id| requests.contains(*id));
        }
    }
}

/// Why a request with this chain is not worth waiting in line, if it is not.
fn held_up(way: &Way, held: Option<&Hold>, chain: Option<&Chain>) -> Option<Fault> {
    let held = held.filter(|held| matches!(way, Way::Vacant) && held.concerns(chain));
    held.map(Hold::fault)
}

fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

/// When a caller stops waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    pub(crate) at: Instant,
    /// How long that is from now.
    pub(crate) left: Duration,
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use hatchery_wire::encode;

    use super::*;
    use crate::address::Tenure;
    use crate::busy::{Here, Inside};
    use crate::exit::Status;
    use crate::probe::Station;

    const W: usize = WINDOW as usize;

    /// A line that writes down what it is given, and refuses what says so.
    #[derive(Default)]
    pub(super) struct Notes {
        pub(super) sent: Mutex<Vec<u64>>,
        pub(super) withdrawn: Mutex<Vec<u64>>,
        pub(super) probed: Mutex<Vec<u64>>,
        pub(super) credit: Mutex<Vec<(u64, usize)>>,
    }

    impl Line for Notes {
        fn send(&self, request: Request) -> Result<(), Fault> {
            if request.body == body(true) {
                return Err(too_large());
            }
            self.sent.lock().unwrap().push(request.id);
            Ok(())
        }

        fn withdraw(&self, id: u64) {
            self.withdrawn.lock().unwrap().push(id);
        }

        fn probe(&self, id: u64, _: Probe) {
            self.probed.lock().unwrap().push(id);
        }

        fn credit(&self, id: u64, items: usize) {
            self.credit.lock().unwrap().push((id, items));
        }
    }

    impl Notes {
        fn sent(&self) -> Vec<u64> {
            self.sent.lock().unwrap().clone()
        }

        fn withdrawn(&self) -> Vec<u64> {
            self.withdrawn.lock().unwrap().clone()
        }
    }

    pub(super) fn body(refused: bool) -> Body {
        encode(&refused).unwrap()
    }

    pub(super) fn too_large() -> Fault {
        Fault::NotSent("over the limit".to_owned())
    }

    pub(super) fn exit() -> Exit {
        Exit::new(Status::Signal(9))
    }

    pub(super) fn ended() -> Answer {
        Answer::Fault(Fault::Ended { exit: Box::new(exit()), maybe_executed: true })
    }

    impl Outlet {
        fn ask(&self) -> u64 {
            self.submit(true, None, body(false), None)
        }

        fn tell(&self) -> u64 {
            self.submit(false, None, body(false), None)
        }

        pub(super) fn now(&self, id: u64) -> Option<Answer> {
            match self.poll(id, &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            }
        }

        fn sit(&self, incarnation: u64) -> Arc<Notes> {
            let notes = Arc::new(Notes::default());
            assert!(self.open(incarnation, notes.clone()));
            notes
        }
    }

    fn value(n: u64) -> Answer {
        Answer::Value(encode(&n).unwrap())
    }

    fn circle(runs: bool) -> Circle {
        Circle { paths: vec!["/a".to_owned(), "/b".to_owned()], runs }
    }

    fn deadlock(maybe_executed: bool) -> Option<Answer> {
        let circle = vec!["/a".to_owned(), "/b".to_owned()];
        Some(Answer::Fault(Fault::Deadlock { circle, maybe_executed }))
    }

    #[test]
    fn an_ask_in_a_circle_is_given_up_when_it_is_known_not_to_have_begun() {
        let outlet = Outlet::default();
        let line = outlet.sit(1);
        let (ask, begun, runs, answered) = (outlet.ask(), outlet.ask(), outlet.ask(), outlet.ask());
        outlet.answered(1, answered, value(0), true).unwrap();
        for id in [ask, begun, answered, ask, u64::MAX] {
            outlet.give_up(id, circle(false));
        }
        outlet.give_up(runs, circle(true));
        assert_eq!(line.withdrawn(), [ask, begun, runs], "each once");
        assert_eq!((outlet.now(ask), outlet.now(begun)), (None, None));
        outlet.answered(1, ask, Answer::Fault(Fault::Withdrawn), true).unwrap();
        outlet.answered(1, begun, value(7), true).unwrap();
        assert_eq!(outlet.now(ask), deadlock(false));
        assert_eq!(outlet.now(begun), Some(value(7)), "it came to that after all");
        assert_eq!((outlet.now(runs), outlet.now(answered)), (deadlock(true), Some(value(0))));
        assert_eq!(outlet.owed(), 0);
    }

    #[test]
    fn a_probe_goes_along_what_was_sent_and_waits() {
        let outlet = Outlet::default();
        let mut station = Station::new(1);
        station.waits(1, &"/a".into(), ());
        let mut probe = |id| outlet.probe(id, station.begins().unwrap().1);
        let early = outlet.ask();
        probe(early);
        let line = outlet.sit(1);
        let (waits, answered, given_up) = (outlet.ask(), outlet.ask(), outlet.ask());
        outlet.answered(1, answered, value(0), true).unwrap();
        outlet.give_up(given_up, circle(false));
        [early, waits, answered, given_up, u64::MAX].into_iter().for_each(&mut probe);
        assert_eq!(*line.probed.lock().unwrap(), [early, waits]);
        outlet.ended(1, &exit());
        probe(waits);
        assert_eq!(line.probed.lock().unwrap().len(), 2);
    }

    #[test]
    fn requests_keep_their_order_across_vacancies_and_incarnations() {
        let outlet = Outlet::default();
        let before: Vec<u64> =
            (0..W + 36).map(|n| if n % 3 == 0 { outlet.tell() } else { outlet.ask() }).collect();
        let first = outlet.sit(1);
        assert_eq!(first.sent(), before[..W]);
        outlet.ended(1, &exit());
        let later: Vec<u64> = (0..10).map(|_| outlet.ask()).collect();
        let second = outlet.sit(2);
        assert_eq!(second.sent(), [&before[W..], &later[..]].concat());
    }

    #[test]
    fn unsent_requests_outlive_an_incarnation_and_sent_ones_end_with_it_exactly_once() {
        let outlet = Outlet::default();
        let first = outlet.sit(1);
        let ids: Vec<u64> = (0..=W).map(|_| outlet.ask()).collect();
        outlet.ended(1, &exit());
        outlet.ended(1, &exit());
        for id in &ids[..W] {
            assert_eq!(outlet.now(*id), Some(ended()));
        }
        assert_eq!(outlet.now(ids[W]), None);
        let second = outlet.sit(2);
        assert_eq!((first.sent().len(), second.sent()), (W, vec![ids[W]]));
        outlet.answered(2, ids[W], value(7), true).unwrap();
        assert_eq!(outlet.now(ids[W]), Some(value(7)));
        assert!(outlet.lock().requests.is_empty());
    }

    #[test]
    fn what_an_orderly_end_left_unanswered_has_not_run() {
        let outlet = Outlet::default();
        let _line = outlet.sit(1);
        let (answered, too_late) = (outlet.ask(), outlet.ask());
        outlet.answered(1, answered, value(1), true).unwrap();
        outlet.ended(1, &Exit::orderly());
        assert_eq!(outlet.now(answered), Some(value(1)));
        assert_eq!(outlet.now(too_late), Some(Answer::Fault(Fault::Stopping)));
    }

    #[test]
    fn no_more_than_the_window_is_under_way() {
        let outlet = Outlet::default();
        let line = outlet.sit(1);
        let ids: Vec<u64> = (0..3 * W).map(|_| outlet.tell()).collect();
        assert_eq!(line.sent(), ids[..W]);
        assert_eq!(outlet.now(ids[W - 1]), Some(Answer::None));
        assert_eq!(outlet.now(ids[W]), None);
        outlet.released(1, 3).unwrap();
        assert_eq!(line.sent(), ids[..W + 3]);
        assert_eq!(outlet.now(ids[W + 2]), Some(Answer::None));
        assert_eq!(outlet.now(ids[W + 3]), None);
    }

    #[test]
    fn a_place_given_back_too_often_is_an_error_and_changes_nothing() {
        let outlet = Outlet::default();
        let line = outlet.sit(1);
        assert_eq!(outlet.released(1, 1), Err(TooManyReleases));
        let id = outlet.ask();
        assert_eq!(outlet.released(1, 2), Err(TooManyReleases));
        assert_eq!(outlet.released(1, u32::MAX), Err(TooManyReleases));
        outlet.released(1, 1).unwrap();
        assert_eq!(outlet.answered(1, id, value(1), true), Err(TooManyReleases));
        assert_eq!(outlet.now(id), None, "a peer that breaks the protocol is not listened to");
        for _ in 0..2 * W {
            outlet.tell();
        }
        assert_eq!(line.sent().len(), 1 + W);
    }

    #[test]
    fn a_request_withdrawn_in_line_is_never_sent() {
        let outlet = Outlet::default();
        let (first, second) = (outlet.ask(), outlet.tell());
        assert_eq!(outlet.cancel(first), Left::Unsent);
        let line = outlet.sit(1);
        assert_eq!((line.sent(), line.withdrawn()), (vec![second], vec![]));
    }

    #[test]
    fn a_request_withdrawn_on_its_way_is_taken_back_from_its_line_and_keeps_its_place_until_it_is_answered() {
        let outlet = Outlet::default();
        let line = outlet.sit(1);
        let ids: Vec<u64> = (0..=W).map(|_| outlet.ask()).collect();
        assert_eq!(outlet.cancel(ids[5]), Left::Sent);
        assert_eq!(line.withdrawn(), [ids[5]]);
        assert_eq!(line.sent().len(), W);
        outlet.answered(1, ids[5], Answer::Fault(Fault::Withdrawn), true).unwrap();
        assert_eq!(line.sent().len(), W + 1);
    }

    #[test]
    fn the_withdrawal_of_a_request_to_an_earlier_incarnation_does_not_reach_the_present_one() {
        let outlet = Outlet::default();
        let first = outlet.sit(1);
        let id = outlet.ask();
        // The next one opens before the end of the first is known.
        let second = outlet.sit(2);
        assert_eq!(outlet.cancel(id), Left::Sent);
        assert_eq!((first.withdrawn(), second.withdrawn()), (vec![], vec![]));
    }

    #[test]
    fn an_answer_is_owed_from_the_sending_of_an_ask_to_its_one_outcome() {
        let outlet = Outlet::default();
        let queued = outlet.ask();
        assert!(outlet.owed() == 0, "nobody sits there");
        let _line = outlet.sit(1);
        assert_eq!(outlet.owed(), 1);
        outlet.answered(1, queued, value(1), true).unwrap();
        assert!(outlet.owed() == 0);
        // Again, by a peer that does not keep count.
        outlet.answered(1, queued, value(1), false).unwrap();
        let tell = outlet.tell();
        assert!(outlet.owed() == 0, "a tell is done when it is sent");
        assert_eq!(outlet.now(tell), Some(Answer::None));
        let left = outlet.ask();
        assert_eq!(outlet.cancel(left), Left::Sent);
        outlet.answered(1, left, value(1), true).unwrap();
        assert!(outlet.owed() == 0, "its caller has left");
        let refused = outlet.submit(true, None, body(true), None);
        assert!(outlet.owed() == 0, "it could not travel");
        assert_eq!(outlet.now(refused), Some(Answer::Fault(too_large())));
        let ends = outlet.ask();
        assert_eq!(outlet.owed(), 1);
        outlet.ended(1, &exit());
        assert!(outlet.owed() == 0);
        assert_eq!(outlet.cancel(ends), Left::Over(ended()));
        assert!(outlet.owed() == 0);
    }

    #[test]
    fn who_leaves_after_the_outcome_gets_the_outcome() {
        let outlet = Outlet::default();
        let _line = outlet.sit(1);
        let (ask, tell) = (outlet.ask(), outlet.tell());
        outlet.answered(1, ask, value(3), true).unwrap();
        assert_eq!(outlet.cancel(ask), Left::Over(value(3)));
        assert_eq!(outlet.cancel(tell), Left::Over(Answer::None));
    }

    #[test]
    fn answers_to_departed_callers_and_of_earlier_incarnations_are_ignored() {
        let outlet = Outlet::default();
        let _first = outlet.sit(1);
        let gone = outlet.ask();
        outlet.cancel(gone);
        outlet.answered(1, gone, value(1), true).unwrap();
        outlet.ended(1, &exit());
        let _second = outlet.sit(2);
        let id = outlet.ask();
        outlet.answered(1, id, value(1), true).unwrap();
        outlet.released(1, 1).unwrap();
        assert_eq!(outlet.now(id), None);
        assert_eq!(outlet.released(2, 2), Err(TooManyReleases), "the window is the second one's own");
        outlet.answered(2, 999, value(1), false).unwrap();
        outlet.answered(2, id, value(2), true).unwrap();
        outlet.answered(2, id, value(3), false).unwrap();
        assert_eq!(outlet.now(id), Some(value(2)));
    }

    #[test]
    fn close_tells_those_in_line_and_all_later_ones_why_and_leaves_the_sent_ones_to_their_incarnation() {
        let outlet = Outlet::default();
        let line = outlet.sit(1);
        let ids: Vec<u64> = (0..=W).map(|_| outlet.ask()).collect();
        let closed = Fault::Closed { why: "it was stopped".to_owned() };
        outlet.close(closed.clone());
        assert_eq!(outlet.now(ids[W]), Some(Answer::Fault(closed.clone())));
        assert_eq!(outlet.now(ids[0]), None);
        let late = outlet.tell();
        assert_eq!(outlet.now(late), Some(Answer::Fault(closed)));
        assert!(!outlet.open(2, line));
        outlet.answered(1, ids[1], value(1), true).unwrap();
        assert_eq!(outlet.now(ids[1]), Some(value(1)));
        outlet.ended(1, &exit());
        assert_eq!(outlet.now(ids[0]), Some(ended()));
    }

    #[test]
    fn reopened_it_takes_requests_for_the_next_incarnation_again() {
        let outlet = Outlet::default();
        outlet.sit(1);
        outlet.ended(1, &exit());
        let closed = Fault::Closed { why: "it was stopped".to_owned() };
        outlet.close(closed.clone());
        let refused = outlet.ask();
        outlet.reopen();
        assert_eq!(outlet.now(refused), Some(Answer::Fault(closed)));
        let waits = outlet.ask();
        assert_eq!(outlet.now(waits), None);
        let line = outlet.sit(2);
        assert_eq!(line.sent(), [waits]);
        assert!(!outlet.has_answered(2));
        outlet.answered(2, waits, value(1), true).unwrap();
        assert!(outlet.has_answered(2) && !outlet.has_answered(1));
    }

    #[test]
    fn a_request_that_its_line_refuses_is_told_why_and_takes_no_place() {
        let outlet = Outlet::default();
        let (first, refused) = (outlet.ask(), outlet.submit(true, None, body(true), None));
        let rest: Vec<u64> = (0..W).map(|_| outlet.ask()).collect();
        let line = outlet.sit(1);
        assert_eq!(outlet.now(refused), Some(Answer::Fault(too_large())));
        assert_eq!(line.sent(), [&[first], &rest[..W - 1]].concat());
    }

    #[test]
    fn an_incarnation_that_ended_before_it_was_opened_gets_nothing() {
        let outlet = Outlet::default();
        let id = outlet.ask();
        outlet.ended(1, &exit());
        let line = Arc::new(Notes::default());
        assert!(!outlet.open(1, line.clone()));
        assert_eq!((line.sent(), outlet.now(id)), (vec![], None));
        assert_eq!(outlet.sit(2).sent(), [id]);
    }

    #[test]
    fn requests_that_come_and_go_before_a_vacant_seat_leave_nothing_behind() {
        let outlet = Outlet::default();
        let stays = outlet.ask();
        for _ in 0..10_000 {
            let id = outlet.ask();
            outlet.cancel(id);
            assert!(outlet.lock().queue.len() < 100);
        }
        assert_eq!(outlet.lock().requests.len(), 1);
        assert_eq!(outlet.sit(1).sent(), [stays]);
    }

    #[test]
    fn before_a_seat_that_is_held_only_those_end_that_wait_for_who_holds_it() {
        let in_handler = |path: &str, ask: bool, outlet: &Outlet| {
            let mut here = Here::new(1, 7, path);
            here.begin(None);
            let mut here = Some(Box::new(here));
            let _inside = Inside::enter(&mut here);
            let cx = Context::from_waker(Waker::noop());
            match outlet.begin(ask, || None, body(false), None, &cx) {
                Begun::Waits { id, .. } => outlet.now(id).map_or(Ok(id), Err),
                Begun::Done(answer) => Err(answer),
            }
        };
        let held_by = |path: &str, exit: Exit| {
            Some(Box::new(Hold { number: 1, by: vec![path.to_owned()], exit: Some(Box::new(exit)) }))
        };
        let outlet = Outlet::default();
        let ids = ["/t/a", "/t/b/x"].map(|path| {
            [in_handler(path, true, &outlet).unwrap(), in_handler(path, false, &outlet).unwrap()]
        });
        let outside = outlet.ask();
        outlet.hold(held_by("/t/b", exit()));
        let over = Answer::Fault(Fault::Ended { exit: Box::new(exit()), maybe_executed: false });
        for id in ids[1] {
            assert_eq!(outlet.now(id), Some(over.clone()), "ask or tell");
        }
        assert_eq!(in_handler("/t/b", false, &outlet).unwrap_err(), over);
        outlet.hold(held_by("/t/b", Exit::orderly()));
        assert_eq!(in_handler("/t/b", true, &outlet).unwrap_err(), Answer::Fault(Fault::Stopping));
        let late = in_handler("/t/a", true, &outlet).unwrap();
        let line = outlet.sit(1);
        assert_eq!(line.sent(), [ids[0][0], ids[0][1], outside, late]);
        // Who sits there is not held, whatever was said before.
        assert_eq!(in_handler("/t/b", false, &outlet), Err(Answer::None));
        outlet.hold(None);
        outlet.ended(1, &exit());
        in_handler("/t/b", true, &outlet).unwrap();
    }

    #[test]
    fn a_request_for_one_incarnation_ends_with_it_wherever_it_is() {
        let outlet = Outlet::default();
        let first = Incarnation::new(1, Tenure { seat: 0, incarnation: 1 });
        let early = outlet.submit(true, None, body(false), Some(&first));
        let line = outlet.sit(1);
        assert_eq!(line.sent(), [early]);
        for _ in 1..WINDOW {
            outlet.ask();
        }
        let (in_line, free) = (outlet.submit(true, None, body(false), Some(&first)), outlet.ask());
        first.exit.set(exit()).unwrap();
        outlet.ended(1, &exit());
        let over = Answer::Fault(Fault::Ended { exit: Box::new(exit()), maybe_executed: false });
        assert_eq!(outlet.now(early), Some(ended()));
        assert_eq!(outlet.now(in_line), Some(over.clone()));
        let line = outlet.sit(2);
        assert_eq!(line.sent(), [free]);
        let late = outlet.submit(true, None, body(false), Some(&first));
        assert_eq!((outlet.now(late), line.sent()), (Some(over), vec![free]));
    }

    #[test]
    fn a_request_for_one_incarnation_is_never_sent_to_another_whose_end_is_late() {
        let outlet = Outlet::default();
        let first = Incarnation::new(1, Tenure { seat: 0, incarnation: 1 });
        let id = outlet.submit(true, None, body(false), Some(&first));
        let line = outlet.sit(2);
        assert_eq!((outlet.now(id), line.sent()), (None, vec![]));
        outlet.ended(1, &exit());
        assert!(matches!(outlet.now(id), Some(Answer::Fault(Fault::Ended { .. }))));
        assert!(outlet.lock().requests.is_empty());
    }

    struct Count(Mutex<u32>);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    #[test]
    fn every_outcome_wakes_its_caller_once() {
        type Event = fn(&Outlet, u64);
        let events: [Event; 4] = [
            |outlet, id| outlet.answered(1, id, value(1), true).unwrap(),
            |outlet, _| outlet.ended(1, &exit()),
            |outlet, _| {
                outlet.close(Fault::Stopping);
                outlet.ended(1, &exit());
            },
            |outlet, id| drop(outlet.answered(1, id, Answer::Fault(Fault::Stopping), true)),
        ];
        for event in events {
            let outlet = Outlet::default();
            let _line = outlet.sit(1);
            let (id, count) = (outlet.ask(), Arc::new(Count(Mutex::new(0))));
            let waker = Waker::from(count.clone());
            for _ in 0..2 {
                assert!(outlet.poll(id, &mut Context::from_waker(&waker)).is_pending());
            }
            event(&outlet, id);
            assert_eq!(*count.0.lock().unwrap(), 1);
            assert!(outlet.now(id).is_some());
        }
    }

    /// A waker that is the last owner of a task, which owns a request.
    struct LastOwner {
        outlet: Arc<Outlet>,
        id: u64,
    }

    impl Wake for LastOwner {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for LastOwner {
        fn drop(&mut self) {
            self.outlet.cancel(self.id);
        }
    }

    #[test]
    fn a_waker_whose_drop_drops_another_request_does_no_harm() {
        let outlet = Arc::new(Outlet::default());
        let mut polled = Vec::new();
        for _ in 0..2 {
            let (id, other) = (outlet.ask(), outlet.ask());
            let waker = Waker::from(Arc::new(LastOwner { outlet: outlet.clone(), id: other }));
            assert!(outlet.poll(id, &mut Context::from_waker(&waker)).is_pending());
            polled.push(id);
        }
        assert_eq!(outlet.now(polled[0]), None);
        assert_eq!(outlet.cancel(polled[1]), Left::Unsent);
        assert_eq!(outlet.sit(1).sent(), [polled[0]]);
    }

    /// Random operations on an outlet, against a model that keeps everything in plain lists.
    mod against_a_model {
        use proptest::prelude::*;

        use super::*;

        #[derive(Clone, Debug)]
        enum Op {
            Submit { ask: bool, refused: bool, times: usize },
            Leave(prop::sample::Index),
            Look(prop::sample::Index),
            Open,
            Answer(prop::sample::Index),
            Release(u32),
            ReleaseTooMany(u32),
            LateAnswer(prop::sample::Index),
            Ended,
            EndedBeforeItOpened,
            Close,
        }

        fn op() -> impl Strategy<Value = Op> {
            let index = any::<prop::sample::Index>;
            prop_oneof![
                6 => (any::<bool>(), prop::bool::weighted(0.1), 1_usize..40)
                    .prop_map(|(ask, refused, times)| Op::Submit { ask, refused, times }),
                4 => index().prop_map(Op::Leave),
                4 => index().prop_map(Op::Look),
                3 => Just(Op::Open),
                8 => index().prop_map(Op::Answer),
                4 => (1_u32..40).prop_map(Op::Release),
                1 => (1_u32..1000).prop_map(Op::ReleaseTooMany),
                2 => index().prop_map(Op::LateAnswer),
                2 => Just(Op::Ended),
                1 => Just(Op::EndedBeforeItOpened),
                1 => Just(Op::Close),
            ]
        }

        #[derive(Clone, Debug, PartialEq)]
        enum Fate {
            InLine,
            Sent,
            Over(Answer),
            /// The caller left, or took the outcome.
            Gone,
        }

        struct Known {
            id: u64,
            ask: bool,
            refused: bool,
            fate: Fate,
        }

        /// What the outlet should know, and what the incarnation holds.
        #[derive(Default)]
        struct Model {
            all: Vec<Known>,
            incarnation: u64,
            open: bool,
            closed: bool,
            /// Under way at the present incarnation: what was sent and has not given its place back.
            held: Vec<u64>,
            /// All that was ever sent to the present incarnation.
            sent: Vec<u64>,
            withdrawn: Vec<u64>,
        }

        fn closed() -> Fault {
            Fault::Closed { why: "over".to_owned() }
        }

        impl Model {
            fn known(&mut self, id: u64) -> &mut Known {
                self.all.iter_mut().find(|known| known.id == id).unwrap()
            }

            fn is_ask(&self, id: u64) -> bool {
                self.all.iter().any(|known| known.id == id && known.ask)
            }

            /// The oldest in line go first, as long as there is room.
            fn settle(&mut self) {
                for known in &mut self.all {
                    if !self.open || self.held.len() == WINDOW as usize {
                        return;
                    }
                    if known.fate == Fate::InLine {
                        if known.refused {
                            known.fate = Fate::Over(Answer::Fault(too_large()));
                            continue;
                        }
                        known.fate = if known.ask { Fate::Sent } else { Fate::Over(Answer::None) };
                        self.held.push(known.id);
                        self.sent.push(known.id);
                    }
                }
            }

            fn end(&mut self) {
                self.open = false;
                self.held.clear();
                for known in self.all.iter_mut().filter(|known| known.fate == Fate::Sent) {
                    known.fate = Fate::Over(ended());
                }
            }

            fn waiting(&self) -> Vec<u64> {
                self.all.iter().filter(|known| known.fate != Fate::Gone).map(|known| known.id).collect()
            }
        }

        fn look(outlet: &Outlet, model: &mut Model, id: u64) {
            let known = model.known(id);
            match &known.fate {
                Fate::Over(answer) => {
                    assert_eq!(outlet.now(id).as_ref(), Some(answer));
                    known.fate = Fate::Gone;
                }
                _ => assert_eq!(outlet.now(id), None),
            }
        }

        fn run(ops: Vec<Op>) {
            let (outlet, mut model) = (Outlet::default(), Model::default());
            let mut line = Arc::new(Notes::default());
            for op in ops {
                match op {
                    Op::Submit { ask, refused, times } => {
                        for _ in 0..times {
                            let id = outlet.submit(ask, None, body(refused), None);
                            let fate =
                                if model.closed { Fate::Over(Answer::Fault(closed())) } else { Fate::InLine };
                            model.all.push(Known { id, ask, refused, fate });
                            model.settle();
                        }
                    }
                    Op::Leave(index) => {
                        let waiting = model.waiting();
                        if waiting.is_empty() {
                            continue;
                        }
                        let id = *index.get(&waiting);
                        let open = model.open;
                        let known = model.known(id);
                        let left = match std::mem::replace(&mut known.fate, Fate::Gone) {
                            Fate::InLine => Left::Unsent,
                            Fate::Sent => Left::Sent,
                            Fate::Over(answer) => Left::Over(answer),
                            Fate::Gone => unreachable!(),
                        };
                        assert_eq!(outlet.cancel(id), left);
                        if left == Left::Sent && open {
                            model.withdrawn.push(id);
                        }
                    }
                    Op::Look(index) => {
                        let waiting = model.waiting();
                        if !waiting.is_empty() {
                            look(&outlet, &mut model, *index.get(&waiting));
                        }
                    }
                    Op::Open if model.open => {}
                    Op::Open => {
                        model.incarnation += 1;
                        (model.sent, model.withdrawn) = (Vec::new(), Vec::new());
                        line = Arc::new(Notes::default());
                        assert_eq!(outlet.open(model.incarnation, line.clone()), !model.closed);
                        model.open = !model.closed;
                        model.settle();
                    }
                    Op::Answer(index) => {
                        let asks: Vec<u64> =
                            model.held.iter().copied().filter(|id| model.is_ask(*id)).collect();
                        if asks.is_empty() {
                            continue;
                        }
                        let id = *index.get(&asks);
                        outlet.answered(model.incarnation, id, value(id), true).unwrap();
                        model.held.retain(|held| *held != id);
                        if model.known(id).fate == Fate::Sent {
                            model.known(id).fate = Fate::Over(value(id));
                        }
                        model.settle();
                    }
                    Op::Release(n) => {
                        let tells = model.held.iter().copied().filter(|id| !model.is_ask(*id));
                        let back: Vec<u64> = tells.take(n as usize).collect();
                        outlet.released(model.incarnation, back.len() as u32).unwrap();
                        model.held.retain(|held| !back.contains(held));
                        model.settle();
                    }
                    Op::ReleaseTooMany(n) if model.open => {
                        let n = model.held.len() as u32 + n;
                        assert_eq!(outlet.released(model.incarnation, n), Err(TooManyReleases));
                    }
                    Op::ReleaseTooMany(n) => outlet.released(model.incarnation, n).unwrap(),
                    Op::LateAnswer(index) => {
                        // Of the incarnation before, about any request at all.
                        if let (Some(earlier), false) =
                            (model.incarnation.checked_sub(1), model.all.is_empty())
                        {
                            let id = index.get(&model.all).id;
                            outlet.answered(earlier, id, value(u64::MAX), true).unwrap();
                        }
                    }
                    Op::Ended => {
                        outlet.ended(model.incarnation, &exit());
                        model.end();
                    }
                    Op::EndedBeforeItOpened if model.open => {}
                    Op::EndedBeforeItOpened => {
                        model.incarnation += 1;
                        outlet.ended(model.incarnation, &exit());
                        line = Arc::new(Notes::default());
                        assert!(!outlet.open(model.incarnation, line.clone()));
                        (model.sent, model.withdrawn) = (Vec::new(), Vec::new());
                    }
                    Op::Close => {
                        outlet.close(closed());
                        model.closed = true;
                        // What was sent goes on until its incarnation ends, which is at once here.
                        outlet.ended(model.incarnation, &exit());
                        model.end();
                        for known in model.all.iter_mut().filter(|known| known.fate == Fate::InLine) {
                            known.fate = Fate::Over(Answer::Fault(closed()));
                        }
                    }
                }
                assert_eq!(line.sent(), model.sent, "sent in this order");
                assert_eq!(line.withdrawn(), model.withdrawn);
                assert!(model.held.len() <= WINDOW as usize);
                if let Way::Open { places, .. } = &outlet.lock().way {
                    assert_eq!((WINDOW - places) as usize, model.held.len(), "under way");
                }
            }
            // In the end every request that still has a caller gets its one outcome, and nothing stays.
            outlet.close(closed());
            outlet.ended(model.incarnation, &exit());
            model.end();
            for id in model.waiting() {
                if model.known(id).fate == Fate::InLine {
                    model.known(id).fate = Fate::Over(Answer::Fault(closed()));
                }
                look(&outlet, &mut model, id);
                assert_eq!(model.known(id).fate, Fate::Gone);
            }
            assert!(outlet.lock().requests.is_empty() && outlet.lock().queue.is_empty());
        }

        proptest! {
            #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

            #[test]
            fn every_request_ends_exactly_once_in_order_and_within_the_window(
                ops in prop::collection::vec(op(), 0..60),
            ) {
                run(ops);
            }
        }
    }
}

/// The way that asks and tells take, with deadlines.
#[cfg(test)]
mod begun {
    use std::collections::BTreeMap;

    use hatchery_wire::{decode, encode};
    use proptest::prelude::*;

    use super::*;
    use crate::exit::Status;

    /// Writes down what it is given: number, id, and whether an answer is wanted.
    #[derive(Default)]
    struct Notes {
        sent: Mutex<Vec<(u64, u64, bool)>>,
        withdrawn: Mutex<Vec<u64>>,
    }

    impl Line for Notes {
        fn send(&self, request: Request) -> Result<(), Fault> {
            assert_eq!(request.deadline.is_some(), request.left.is_some());
            self.sent.lock().unwrap().push((decode(&request.body).unwrap(), request.id, request.ask));
            Ok(())
        }
        fn withdraw(&self, id: u64) {
            self.withdrawn.lock().unwrap().push(id);
        }
        fn probe(&self, _: u64, _: Probe) {}
        fn credit(&self, _: u64, _: usize) {}
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin { ask: bool, seconds: u64 },
        Answer,
        Release,
        Leave(usize),
        Pass(u64),
        End,
        Open,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            10 => (any::<bool>(), 1_u64..40).prop_map(|(ask, seconds)| Step::Begin { ask, seconds }),
            4 => Just(Step::Answer),
            3 => Just(Step::Release),
            2 => (0_usize..30).prop_map(Step::Leave),
            3 => (0_u64..15).prop_map(Step::Pass),
            1 => Just(Step::End),
            2 => Just(Step::Open),
        ]
    }

    /// What the model knows of a request that has not ended.
    struct Known {
        id: u64,
        ask: bool,
        until: Instant,
        sent: bool,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// In order, within the window, each over exactly once and for the right reason, none later than its deadline.
        #[test]
        fn requests_with_deadlines_keep_to_the_rules(steps in prop::collection::vec(step(), 1..80)) {
            const PLACES: u32 = 3;
            let outlet = Outlet::new(PLACES);
            let cx = &mut Context::from_waker(Waker::noop());
            let (mut now, mut next, mut incarnation) = (Instant::now(), 0_u64, 0_u64);
            let mut line: Option<Arc<Notes>> = None;
            let mut known: BTreeMap<u64, Known> = BTreeMap::new();
            // Sent ones whose place has not come back: asks by number, and tells.
            let (mut asked, mut told) = (Vec::new(), 0_u32);
            let mut seen = 0;
            for step in steps {
                match step {
                    Step::Begin { ask, seconds } => {
                        let left = Duration::from_secs(seconds);
                        let until = Until { at: now + left, left };
                        let number = next;
                        next += 1;
                        match outlet.begin(ask, || Some(until), encode(&number).unwrap(), None, cx) {
                            Begun::Done(answer) => {
                                prop_assert!(!ask && answer == Answer::None && line.is_some());
                            }
                            Begun::Waits { id, unwatched } => {
                                prop_assert!(!unwatched || outlet.look(now, cx).is_some());
                                known.insert(number, Known { id, ask, until: until.at, sent: false });
                            }
                        }
                    }
                    Step::Answer if !asked.is_empty() => {
                        let number: u64 = asked.remove(0);
                        let value = Answer::Value(encode(&number).unwrap());
                        // Answered even if its caller has left: its place comes back.
                        let (_, id, _) = *line.as_ref().unwrap().sent.lock().unwrap()
                            .iter().find(|(sent, ..)| *sent == number).unwrap();
                        outlet.answered(incarnation, id, value.clone(), true).unwrap();
                        if known.remove(&number).is_some() {
                            prop_assert_eq!(outlet.poll(id, cx), Poll::Ready(value));
                        }
                    }
                    Step::Release if told > 0 => {
                        told -= 1;
                        outlet.released(incarnation, 1).unwrap();
                    }
                    Step::Leave(which) if which < known.len() => {
                        let number = *known.keys().nth(which).unwrap();
                        let Known { id, sent, .. } = known.remove(&number).unwrap();
                        prop_assert_eq!(outlet.cancel(id), if sent { Left::Sent } else { Left::Unsent });
                    }
                    Step::Pass(seconds) => {
                        now += Duration::from_secs(seconds);
                        while outlet.lock().look.is_some_and(|look| look <= now) {
                            outlet.look(now, cx);
                        }
                    }
                    Step::End if line.take().is_some() => {
                        outlet.ended(incarnation, &Exit::new(Status::Signal(9)));
                        for (_, gone) in known.extract_if_sent() {
                            let Poll::Ready(Answer::Fault(fault)) = outlet.poll(gone.id, cx) else {
                                return Err(TestCaseError::fail("it was sent to the one that ended"));
                            };
                            let ended = matches!(fault, Fault::Ended { .. });
                            prop_assert!(ended);
                        }
                        (asked, told, seen) = (Vec::new(), 0, 0);
                    }
                    Step::Open if line.is_none() => {
                        incarnation += 1;
                        let notes = Arc::new(Notes::default());
                        prop_assert!(outlet.open(incarnation, notes.clone()));
                        line = Some(notes);
                    }
                    _ => {}
                }
                // What was sent by this step: in order, no later one before an earlier one that still waits.
                if let Some(notes) = &line {
                    let sent = notes.sent.lock().unwrap().clone();
                    for (number, id, ask) in &sent[seen..] {
                        let passed_over = known.range(..number).any(|(_, earlier)| !earlier.sent);
                        prop_assert!(!passed_over);
                        if *ask {
                            asked.push(*number);
                            let known = known.get_mut(number).unwrap();
                            prop_assert_eq!(known.id, *id);
                            known.sent = true;
                        } else {
                            told += 1;
                            if let Some(tell) = known.remove(number) {
                                prop_assert_eq!(outlet.poll(tell.id, cx), Poll::Ready(Answer::None));
                            }
                        }
                    }
                    seen = sent.len();
                    let under_way = asked.len() as u32 + told;
                    prop_assert!(under_way <= PLACES);
                    let waits = known.values().any(|known| !known.sent);
                    prop_assert!(under_way == PLACES || !waits, "a place is free and somebody waits");
                }
                // Whoever is late has been told, and nobody else.
                let late: Vec<u64> =
                    known.iter().filter(|(_, known)| known.until <= now).map(|(number, _)| *number).collect();
                for number in late {
                    let Known { id, ask, sent, .. } = known.remove(&number).unwrap();
                    prop_assert!(ask || !sent);
                    let timeout = Answer::Fault(Fault::Timeout { maybe_executed: sent });
                    prop_assert_eq!(outlet.poll(id, cx), Poll::Ready(timeout));
                    if sent {
                        prop_assert!(line.as_ref().unwrap().withdrawn.lock().unwrap().contains(&id));
                    }
                }
                for known in known.values() {
                    prop_assert_eq!(outlet.poll(known.id, cx), Poll::Pending);
                }
                let (look, owed) = {
                    let state = outlet.lock();
                    (state.look, state.owed)
                };
                prop_assert!(known.is_empty() || look.is_some(), "nobody watches");
                prop_assert_eq!(owed, known.values().filter(|known| known.sent).count());
            }
            prop_assert_eq!(outlet.lock().requests.len(), known.len());
        }
    }

    trait Sent {
        fn extract_if_sent(&mut self) -> Vec<(u64, Known)>;
    }

    impl Sent for BTreeMap<u64, Known> {
        /// Takes out those that were sent.
        fn extract_if_sent(&mut self) -> Vec<(u64, Known)> {
            let (sent, rest) = std::mem::take(self).into_iter().partition(|(_, known)| known.sent);
            *self = rest;
            let sent: BTreeMap<u64, Known> = sent;
            sent.into_iter().collect()
        }
    }

    #[test]
    fn a_watcher_that_is_gone_is_missed_by_those_who_wait() {
        let outlet = Outlet::new(1);
        let cx = &mut Context::from_waker(Waker::noop());
        let until = Until { at: Instant::now() + Duration::from_secs(1), left: Duration::from_secs(1) };
        let begun = outlet.begin(true, || Some(until), encode(&1).unwrap(), None, cx);
        let Begun::Waits { id, unwatched: true } = begun else { panic!("{begun:?}") };
        assert!(!outlet.needs_watching(id));
        outlet.unwatched();
        assert!(outlet.needs_watching(id) && !outlet.needs_watching(id));
    }

    #[test]
    fn an_earlier_deadline_wakes_the_watcher() {
        struct Woken(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken(Default::default()));
        let waker = Waker::from(woken.clone());
        let is_woken = || woken.0.swap(false, std::sync::atomic::Ordering::Relaxed);
        let (outlet, now) = (Outlet::new(1), Instant::now());
        let begin = |seconds| {
            let left = Duration::from_secs(seconds);
            let cx = &mut Context::from_waker(Waker::noop());
            let until = || Some(Until { at: now + left, left });
            outlet.begin(true, until, encode(&1).unwrap(), None, cx);
        };
        begin(30);
        assert_eq!(outlet.look(now, &Context::from_waker(&waker)), Some(now + Duration::from_secs(30)));
        begin(31);
        assert!(!is_woken());
        begin(10);
        assert!(is_woken());
        assert_eq!(outlet.look(now, &Context::from_waker(&waker)), Some(now + Duration::from_secs(10)));
    }
}
