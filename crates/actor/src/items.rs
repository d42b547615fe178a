//! The stream that a handle's method returns when the actor's method returns one.

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use hatchery_wire::{Body, DecodeError, EncodeError, decode_owned};
use serde::de::DeserializeOwned;
use tokio::time::Sleep;

use crate::ask::{DEFAULT_TIMEOUT, deadline};
use crate::error::{CallError, Never};
use crate::fault::Fault;
use crate::handle::ActorRef;
use crate::outlet::{Answer, Left, Taken, measure};

/// The items of a streamed answer, in order, as the actor makes them. [`next`](Items::next) gives one after the other;
/// it is a [`Stream`] as well.
///
/// ```
/// use std::pin::Pin;
/// use std::task::{Context as Task, Poll};
///
/// use hatchery::Stream;
/// use hatchery::prelude::*;
///
/// struct Countdown(u64);
///
/// // Or whatever makes streams: `futures`, `async-stream`, `tokio-stream`.
/// impl Stream for Countdown {
///     type Item = u64;
///     fn poll_next(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<u64>> {
///         self.0 = self.0.wrapping_sub(1);
///         Poll::Ready((self.0 != u64::MAX).then_some(self.0))
///     }
/// }
///
/// struct Launchpad;
///
/// #[hatchery::actor]
/// impl Launchpad {
///     fn start() -> Self { Launchpad }
///
///     /// It owns what it needs, and goes on while the actor handles other messages.
///     fn countdown(&self, from: u64) -> impl Stream<Item = u64> { Countdown(from) }
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
///     let launchpad = tree.start_child(worker::<Launchpad>("launchpad", ())).await?;
///     let mut left = launchpad.countdown(3);
///     while let Some(seconds) = left.next().await {
///         println!("{}", seconds?);
///     }
///     tree.stop().await
/// }
/// ```
///
/// Nothing is sent before the first poll. The actor's method runs then, and its stream in a task of its own, beside
/// the actor, which goes on with other messages. The producer is at most 64 items and 1 MiB (and one item) ahead of
/// what has been taken here; it waits until there is room again. When all has been taken it ends with `None`.
///
/// Each wait for the next item may take 30 s, unless [`timeout`](Items::timeout) says otherwise; the first one includes
/// the time in line, or before a vacant seat.
///
/// # Errors
/// One [`CallError`] at most, behind the items that arrived, and then `None`: the method answered with an `Err`, the
/// worker ended or the stream panicked (`is_crash`), the next item took too long (`is_timeout`), or the reasons for
/// which an [`Ask`](crate::ask::Ask) fails.
///
/// # Panics
/// Polled first outside of a tokio runtime with timers, such as the one of `#[hatchery::main]`.
///
/// # Cancel safety
/// [`next`](Items::next) may be dropped and called again; no item is lost. Dropping the `Items` withdraws: a method
/// that has not begun never does, and a stream that has begun is dropped where it is made.
#[doc(alias = "imap")]
#[must_use = "a stream does nothing until it is polled"]
pub struct Items<T, E = Never> {
    actor: ActorRef,
    method: &'static str,
    timeout: Duration,
    state: State,
    decode: fn(Body) -> Result<T, DecodeError>,
    error: PhantomData<fn() -> E>,
}

enum State {
    New(Result<Body, EncodeError>),
    /// The timer runs while somebody waits.
    Open {
        id: u64,
        timer: Pin<Box<Sleep>>,
        waiting: bool,
    },
    Over,
}

impl<T, E> Items<T, E> {
    pub(crate) fn new(
        actor: ActorRef,
        method: &'static str,
        body: Result<Body, EncodeError>,
        decode: fn(Body) -> Result<T, DecodeError>,
    ) -> Self {
        Items { actor, method, timeout: DEFAULT_TIMEOUT, state: State::New(body), decode, error: PhantomData }
    }

    /// How long each wait for the next item may take, instead of 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The next item; `None` when there are no more, or after an error.
    ///
    /// # Errors
    /// See [`Items`].
    ///
    /// # Cancel safety
    /// Cancel safe: no item is lost.
    pub async fn next(&mut self) -> Option<Result<T, CallError<E>>>
    where
        E: DeserializeOwned,
    {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, CallError<E>>>>
    where
        E: DeserializeOwned,
    {
        let taken = match self.poll_taken(cx) {
            Poll::Ready(Ok(taken)) => taken,
            Poll::Ready(Err(fault)) => Taken::Over(Answer::Fault(fault)),
            Poll::Pending => return Poll::Pending,
        };
        let fault = match taken {
            Taken::Item(body) => match (self.decode)(body) {
                Ok(item) => return Poll::Ready(Some(Ok(item))),
                Err(error) => Fault::BadAnswer(error.to_string()),
            },
            Taken::Over(Answer::End) => {
                self.state = State::Over;
                return Poll::Ready(None);
            }
            Taken::Over(Answer::Error(body)) => match decode_owned(body) {
                Ok(error) => {
                    self.state = State::Over;
                    let error = CallError::handler(self.actor.seat().path(), self.method, error);
                    return Poll::Ready(Some(Err(error)));
                }
                Err(error) => Fault::BadAnswer(error.to_string()),
            },
            Taken::Over(Answer::Fault(fault)) => fault,
            Taken::Over(Answer::Value(_) | Answer::None) => {
                Fault::BadAnswer("the worker sent no stream".to_owned())
            }
        };
        self.leave();
        Poll::Ready(Some(Err(CallError::of_fault(self.actor.seat().path(), self.method, fault))))
    }

    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<Result<Taken, Fault>> {
        if let State::New(body) = &mut self.state {
            if self.actor.seat().would_wait_for_itself() {
                return Poll::Ready(Err(self.actor.seat().waits_for_itself()));
            }
            let body = std::mem::replace(body, Ok(Body::default()));
            let body = body.map_err(|error| Fault::NotSent(error.to_string()));
            let body = match body.and_then(|body| measure(&body).map(|()| body)) {
                Ok(body) => body,
                Err(fault) => return Poll::Ready(Err(fault)),
            };
            let deadline = deadline(self.timeout);
            // The timer first: without a runtime it panics, and then nothing must be in line.
            let timer = Box::pin(tokio::time::sleep_until(deadline));
            let id = self.actor.seat().submit_stream(Some(deadline), body, self.actor.pin());
            self.state = State::Open { id, timer, waiting: true };
        }
        let State::Open { id, timer, waiting } = &mut self.state else {
            return Poll::Ready(Ok(Taken::Over(Answer::End)));
        };
        // The item first: one that is there when the deadline passes counts.
        if let Poll::Ready(taken) = self.actor.seat().poll_item(*id, cx) {
            *waiting = false;
            return Poll::Ready(Ok(taken));
        }
        if !std::mem::replace(waiting, true) {
            timer.as_mut().reset(deadline(self.timeout));
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        // Whatever came between the two looks goes with the rest: what is told is that it took too long.
        let maybe_executed = self.leave() != Some(Left::Unsent);
        Poll::Ready(Err(Fault::Timeout { maybe_executed }))
    }

    /// Takes part no longer.
    fn leave(&mut self) -> Option<Left> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Open { id, .. } => Some(self.actor.seat().cancel(id)),
            State::New(_) | State::Over => None,
        }
    }
}

impl<T, E: DeserializeOwned> Stream for Items<T, E> {
    type Item = Result<T, CallError<E>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(cx)
    }
}

impl<T, E> Drop for Items<T, E> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<T, E> std::fmt::Debug for Items<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Items({} of {})", self.method, self.actor.seat().path())
    }
}
