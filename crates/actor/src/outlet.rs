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
//! A tell is done as soon as it has its place. Queued requests outlive an incarnation; sent ones end with it.
//! Each entry is owned by a living future, so the queue is bounded by what callers themselves hold.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hatchery_wire::Body;
use tokio::time::Instant;

use crate::exit::Exit;
use crate::fault::Fault;

/// How many requests one channel may have waiting at one actor.
pub const WINDOW: u32 = 64;

/// The way from an outlet to one incarnation: a channel to its process, or its mailbox in this one.
pub trait Line: Send + Sync + 'static {
    /// Takes one request along; never waits, since the window bounds what is under way.
    ///
    /// # Errors
    /// A fault if this request can not travel (it is over the message limit). Nothing was sent then.
    fn send(&self, request: Request) -> Result<(), Fault>;

    /// The caller of this request has left.
    fn withdraw(&self, id: u64);
}

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    /// Never used twice by one outlet.
    pub id: u64,
    /// Whether an answer is wanted.
    pub ask: bool,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// The encoded message.
    pub body: Body,
}

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
}

/// See the picture on top of this file.
#[derive(Default)]
pub(crate) struct Outlet {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    way: Way,
    last_ended: u64,
    next_id: u64,
    queue: VecDeque<u64>,
    requests: HashMap<u64, Slot, BuildHasherDefault<OwnIds>>,
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
}

enum Phase {
    Queued { ask: bool, deadline: Option<Instant>, body: Body },
    Sent { incarnation: u64 },
    Done(Answer),
}

/// The peer gave back more places than it was given.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyReleases;

impl Outlet {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock runs foreign code but `Line`, which does not panic; were it to, the state is
        // consistent at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request in line and gives its id.
    pub(crate) fn submit(&self, ask: bool, deadline: Option<Instant>, body: Body) -> u64 {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        let phase = match &state.way {
            Way::Closed(fault) => Phase::Done(Answer::Fault(fault.clone())),
            _ => {
                state.queue.push_back(id);
                Phase::Queued { ask, deadline, body }
            }
        };
        state.requests.insert(id, Slot { phase, waker: None });
        let wakers = state.pump();
        drop(state);
        wake(wakers);
        id
    }

    /// The outcome of a request, once. Afterwards its id is forgotten.
    pub(crate) fn poll(&self, id: u64, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.lock();
        let Some(slot) = state.requests.get_mut(&id) else {
            // Only a future that is polled after it was ready gets here.
            return Poll::Ready(Answer::Fault(Fault::Withdrawn));
        };
        if !matches!(slot.phase, Phase::Done(_)) {
            match &mut slot.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                empty => *empty = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match state.requests.remove(&id).map(|slot| slot.phase) {
            Some(Phase::Done(answer)) => Poll::Ready(answer),
            _ => unreachable!("the phase was looked at under the same lock"),
        }
    }

    /// The caller leaves. Says whether the request may have run.
    pub(crate) fn cancel(&self, id: u64) -> bool {
        let mut state = self.lock();
        match state.requests.remove(&id).map(|slot| slot.phase) {
            Some(Phase::Sent { incarnation }) => {
                if let Way::Open { incarnation: now, line, .. } = &state.way {
                    if *now == incarnation {
                        let line = line.clone();
                        drop(state);
                        line.withdraw(id);
                    }
                }
                true
            }
            Some(Phase::Queued { .. }) => {
                state.tidy();
                false
            }
            Some(Phase::Done(Answer::Fault(fault))) => fault.maybe_executed(),
            Some(Phase::Done(_)) => true,
            None => false,
        }
    }

    /// A new incarnation can be reached. Ignored if it has ended already.
    pub(crate) fn open(&self, incarnation: u64, line: Arc<dyn Line>) -> bool {
        let mut state = self.lock();
        if incarnation <= state.last_ended || matches!(state.way, Way::Closed(_)) {
            return false;
        }
        let old = std::mem::replace(&mut state.way, Way::Open { incarnation, places: WINDOW, line });
        let wakers = state.pump();
        drop(state);
        drop(old);
        wake(wakers);
        true
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
            state.give_back(incarnation, 1)?;
        }
        let mut first = None;
        if let Some(slot) = state.requests.get_mut(&id) {
            // An answer to a request that this incarnation never got is ignored, as is one to a caller who left.
            if matches!(slot.phase, Phase::Sent { incarnation: to } if to == incarnation) {
                slot.phase = Phase::Done(answer);
                first = slot.waker.take();
            }
        }
        let wakers = state.pump();
        drop(state);
        if let Some(waker) = first {
            waker.wake();
        }
        wake(wakers);
        Ok(())
    }

    /// Places in the window came back.
    pub(crate) fn released(&self, incarnation: u64, places: u32) -> Result<(), TooManyReleases> {
        let mut state = self.lock();
        state.give_back(incarnation, places)?;
        let wakers = state.pump();
        drop(state);
        wake(wakers);
        Ok(())
    }

    /// This incarnation has ended and all that it said has been delivered: what it still owed ends with its exit.
    pub(crate) fn ended(&self, incarnation: u64, exit: &Exit) {
        let mut state = self.lock();
        state.last_ended = state.last_ended.max(incarnation);
        let old = match &state.way {
            Way::Open { incarnation: now, .. } if *now == incarnation => Some(std::mem::take(&mut state.way)),
            _ => None,
        };
        let mut wakers = Vec::new();
        for slot in state.requests.values_mut() {
            if matches!(slot.phase, Phase::Sent { incarnation: to } if to == incarnation) {
                let fault = Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: true };
                slot.phase = Phase::Done(Answer::Fault(fault));
                wakers.extend(slot.waker.take());
            }
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
        for slot in state.requests.values_mut() {
            if matches!(slot.phase, Phase::Queued { .. }) {
                slot.phase = Phase::Done(Answer::Fault(fault.clone()));
                wakers.extend(slot.waker.take());
            }
        }
        let old = std::mem::replace(&mut state.way, Way::Closed(fault));
        drop(state);
        drop(old);
        wake(wakers);
    }
}

impl State {
    /// Moves what is in line into the window, oldest first. Gives the wakers of those that are done by it.
    fn pump(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let Way::Open { incarnation, places, line } = &mut self.way else { return wakers };
        while *places > 0 {
            let Some(id) = self.queue.pop_front() else { break };
            // Gone from the table: its caller left while it was in line.
            let Some(slot) = self.requests.get_mut(&id) else { continue };
            let sent = Phase::Sent { incarnation: *incarnation };
            let Phase::Queued { ask, deadline, body } = std::mem::replace(&mut slot.phase, sent) else {
                unreachable!("only queued requests are in line")
            };
            match line.send(Request { id, ask, deadline, body }) {
                Ok(()) => {
                    *places -= 1;
                    if !ask {
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

    fn give_back(&mut self, incarnation: u64, n: u32) -> Result<(), TooManyReleases> {
        match &mut self.way {
            Way::Open { incarnation: now, places, .. } if *now == incarnation => {
                if n > WINDOW - *places {
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
            queue.retain(|id| requests.contains_key(id));
        }
    }
}

fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

/// Request ids count up and are chosen by this side alone, so they are their own hash, spread over the high bits.
#[derive(Default)]
struct OwnIds(u64);

impl Hasher for OwnIds {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
