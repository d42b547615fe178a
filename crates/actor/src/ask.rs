//! The future that a handle's method returns.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hatchery_wire::{Body, DecodeError, EncodeError, decode_owned};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::deadlines;
use crate::error::{CallError, Never, SendError};
use crate::fault::Fault;
use crate::handle::ActorRef;
use crate::outlet::{Answer, Begun, Left, Until, measure};
use crate::seat::Seat;

/// How long an ask waits for its answer unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A request that has not been sent yet. `.await` sends it and waits for the answer; [`tell`](Ask::tell) wants none.
///
/// It takes its place in line at its first poll and waits 30 s for the answer unless [`timeout`](Ask::timeout) says
/// otherwise; time spent in line, or before a vacant seat, counts. It runs at most once. A method that puts its answer
/// off with a [`Reply`](crate::reply::Reply) is waited for as long as it takes, unless `timeout` says otherwise.
///
/// # Errors
/// [`CallError`]: the handler answered with an `Err`, the worker ended (`is_crash`), the deadline passed
/// (`is_timeout`), the actor was stopping (`is_stopping`) or is gone for good (`is_closed`), or request or answer could
/// not travel. `maybe_executed` says whether it may have run. Before a vacant seat it ends like the latest incarnation if
/// whoever asks is being stopped, and has to be gone before the next one starts: in the restart of their group, and when
/// their supervisor ends.
///
/// An actor whose handler waits for an ask answers nobody meanwhile. Whoever asks back while it waits, directly or through
/// others, is refused at once (`is_deadlock`), and the error names all who would wait. Asks that have crossed, so that
/// handlers wait for one another in a circle, are found after some 0.1 to 0.5 s, and one of them fails like that; unless a
/// handler of the circle may go on by something else, such as a timer of its own, or its caller's leave with
/// `#[message(cancel)]`: it is left to that. To do without the answer ([`tell`](Ask::tell)), or to ask from a task
/// ([`Context::spawn`](crate::context::Context::spawn)), leaves an actor free.
///
/// # Panics
/// Awaited outside of a tokio runtime with timers, such as the one of `#[hatchery::main]`.
///
/// # Cancel safety
/// Dropping it withdraws the request: if it has not begun when the withdrawal reaches the worker it never will; if
/// it has, it runs to its end and its answer is dropped.
#[must_use = "a request does nothing until it is awaited"]
pub struct Ask<T, E = Never> {
    order: Outgoing,
    decode: fn(Body) -> Result<T, DecodeError>,
    error: PhantomData<fn() -> E>,
}

/// A message without an answer. `.await` waits only until there is room in the actor's window: 256 requests under way
/// from this process, all handles together.
///
/// # Errors
/// [`SendError`]: no room within the timeout (30 s, counted from the first poll), the actor is gone for good, or the
/// message cannot travel. Nothing was executed then.
///
/// # Cancel safety
/// Dropped while it waits in line, the message is not sent. It leaves as soon as there is room, though, which may be
/// before the future is polled again: who drops it cannot know.
#[must_use = "a message is not sent until it is awaited"]
pub struct Tell {
    order: Outgoing,
}

/// What both have in common: one request, from its first poll to its one outcome.
struct Outgoing {
    actor: ActorRef,
    method: &'static str,
    /// As long as it takes, if there is none.
    timeout: Option<Duration>,
    state: State,
}

enum State {
    New(Result<Body, EncodeError>),
    Waiting { id: u64 },
    Over,
}

impl<T, E> Ask<T, E> {
    pub(crate) fn new(
        actor: ActorRef,
        method: &'static str,
        body: Result<Body, EncodeError>,
        decode: fn(Body) -> Result<T, DecodeError>,
    ) -> Self {
        let order = Outgoing { actor, method, timeout: Some(DEFAULT_TIMEOUT), state: State::New(body) };
        Ask { order, decode, error: PhantomData }
    }

    /// How long to wait, from the first poll, instead of 30 s (or for ever). The worker learns it too and does not begin a
    /// request whose caller no longer waits.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.order.timeout = Some(timeout);
        self
    }

    /// Waits as long as it takes, unless `timeout` says otherwise: for methods that put their answer off.
    #[doc(hidden)]
    pub fn without_deadline(mut self) -> Self {
        self.order.timeout = None;
        self
    }

    /// Sends the message and wants no answer.
    ///
    /// At most once: it is lost if the worker dies before it comes to it. It waits for room only; the timeout
    /// applies to that.
    pub fn tell(mut self) -> Tell {
        self.order.timeout.get_or_insert(DEFAULT_TIMEOUT);
        Tell { order: self.order }
    }
}

impl Tell {
    /// Waits for room as long as it takes.
    pub(crate) fn without_deadline(mut self) -> Self {
        self.order.timeout = None;
        self
    }
}

impl<T, E: DeserializeOwned> Future for Ask<T, E> {
    type Output = Result<T, CallError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ask { order, decode: decode_value, .. } = self.get_mut();
        let Poll::Ready(answer) = order.poll(true, cx) else { return Poll::Pending };
        let whom = order.actor.seat().path();
        let fault = match answer {
            Answer::Value(body) => match decode_value(body) {
                Ok(value) => return Poll::Ready(Ok(value)),
                Err(error) => Fault::BadAnswer(error.to_string()),
            },
            Answer::Error(body) => match decode_owned(body) {
                Ok(error) => return Poll::Ready(Err(CallError::handler(whom, order.method, error))),
                Err(error) => Fault::BadAnswer(error.to_string()),
            },
            Answer::Fault(fault) => fault,
            Answer::None | Answer::End => Fault::BadAnswer("the worker sent none".to_owned()),
        };
        Poll::Ready(Err(CallError::of_fault(whom, order.method, fault)))
    }
}

impl Future for Tell {
    type Output = Result<(), SendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let order = &mut self.get_mut().order;
        order.poll(false, cx).map(|answer| match answer {
            Answer::Fault(fault) => Err(SendError::new(order.actor.seat().path(), order.method, fault)),
            _ => Ok(()),
        })
    }
}

impl Outgoing {
    fn poll(&mut self, ask: bool, cx: &mut Context<'_>) -> Poll<Answer> {
        if let State::New(body) = &mut self.state {
            if ask && self.actor.seat().would_wait_for_itself() {
                self.state = State::Over;
                return Poll::Ready(Answer::Fault(self.actor.seat().waits_for_itself()));
            }
            let encoded = std::mem::replace(body, Ok(Body::default()));
            let encoded = encoded.map_err(|error| Fault::NotSent(error.to_string()));
            let body = match encoded.and_then(|body| measure(&body).map(|()| body)) {
                Ok(body) => body,
                Err(fault) => {
                    self.state = State::Over;
                    return Poll::Ready(Answer::Fault(fault));
                }
            };
            // In a task there is a runtime; elsewhere to ask costs more.
            if tokio::task::try_id().is_none() && Handle::try_current().is_err() {
                panic!("a request was awaited outside of a tokio runtime");
            }
            // The deadline of a tell is for its place in line; once it is sent nobody waits for it.
            let timeout = self.timeout;
            let until = || timeout.map(|left| Until { at: deadline(left), left });
            let seat = self.actor.seat();
            let (id, unwatched) = match seat.begin(ask, until, body, self.actor.pin(), cx) {
                Begun::Done(answer) => {
                    self.state = State::Over;
                    return Poll::Ready(answer);
                }
                Begun::Waits { id, unwatched } => (id, unwatched),
            };
            // Before what may panic: dropping this withdraws the request then.
            self.state = State::Waiting { id };
            if unwatched {
                Unwatched(Some(seat)).watch();
            }
            return if ask { self.still_waits(id, cx) } else { self.poll_stuck(id) };
        }
        let State::Waiting { id } = self.state else {
            panic!("polled after it was ready");
        };
        let seat = self.actor.seat();
        if let Poll::Ready(answer) = seat.poll(id, cx) {
            self.state = State::Over;
            return Poll::Ready(answer);
        }
        if self.timeout.is_some() && seat.needs_watching(id) {
            Unwatched(Some(seat)).watch();
        }
        if ask { self.still_waits(id, cx) } else { self.poll_stuck(id) }
    }

    fn still_waits(&self, id: u64, cx: &Context<'_>) -> Poll<Answer> {
        self.actor.seat().still_waits(id, cx.waker());
        Poll::Pending
    }

    /// A tell in line: does it wait for the very handler that sends it?
    fn poll_stuck(&mut self, id: u64) -> Poll<Answer> {
        let seat = self.actor.seat();
        if !seat.would_wait_for_itself() {
            return Poll::Pending;
        }
        let answer = match seat.cancel(id) {
            // It came between the two looks, and counts: a tell that was sent must not be called unsent.
            Left::Over(answer) => answer,
            _ => Answer::Fault(Fault::Refused(TELLS_ITSELF_TOO_MUCH.to_owned())),
        };
        self.state = State::Over;
        Poll::Ready(answer)
    }
}

/// A seat that has no watcher yet, although it says so; it says the contrary again if there is none in the end.
struct Unwatched<'a>(Option<&'a Arc<Seat>>);

impl Unwatched<'_> {
    fn watch(mut self) {
        if let Some(seat) = self.0 {
            deadlines::watch(seat);
        }
        self.0 = None;
    }
}

impl Drop for Unwatched<'_> {
    fn drop(&mut self) {
        if let Some(seat) = self.0 {
            seat.unwatched();
        }
    }
}

const TELLS_ITSELF_TOO_MUCH: &str = "256 messages of the actor to itself are under way, and none of them begins before \
                                     this handler returns: keep what is to be done in the actor's state, or tell it \
                                     from a task (`cx.spawn(..)`)";

/// The end of a time that begins now. One beyond what the clock can hold is as good as for ever.
pub fn deadline(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + FAR)
}

/// Ten years.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let State::Waiting { id } = &self.state {
            self.actor.seat().cancel(*id);
        }
    }
}

impl<T, E> std::fmt::Debug for Ask<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ask({} of {})", self.order.method, self.order.actor.seat().path())
    }
}

impl std::fmt::Debug for Tell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tell({} of {})", self.order.method, self.order.actor.seat().path())
    }
}
