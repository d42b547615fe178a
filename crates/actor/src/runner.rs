//! The loop of an actor: take the next message, handle it, answer.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hatchery_wire::decode;

use crate::actor::Actor;
use crate::context::Context;
use crate::exit::Panic;
use crate::fault::Fault;
use crate::flow::Order;
use crate::mailbox::{Mailbox, Next, Parcel, ReturnPath};
use crate::outlet::Answer;
use crate::panics;

/// Runs an actor until it is told to stop.
///
/// # Errors
/// The panic of a handler, of a stream that one returned, or of the drop of the state. The state is gone with it, and requests that were waiting end
/// with the incarnation.
pub async fn run<A: Actor>(mut actor: A, mailbox: &Arc<Mailbox>, cx: Context) -> Result<(), Panic> {
    let _streams = EndStreams(mailbox);
    let served = serve(&mut actor, mailbox, cx).await;
    let dropped = panics::catch_call(|| drop(actor));
    served.and(dropped)
}

/// However the actor ends, its streams end with it.
struct EndStreams<'a>(&'a Mailbox);

impl Drop for EndStreams<'_> {
    fn drop(&mut self) {
        self.0.end_streams(Order::Dropped);
    }
}

async fn serve<A: Actor>(actor: &mut A, mailbox: &Arc<Mailbox>, mut cx: Context) -> Result<(), Panic> {
    let mut owed = Owed::default();
    let mut turn = Turn::new();
    loop {
        if turn.is_over() {
            owed.settle();
            // The task that sends the answers runs now, and sends them.
            tokio::task::yield_now().await;
            turn.begin();
        }
        let mut waited = false;
        let next = poll_fn(|task| {
            let next = mailbox.poll_next(owed.any(), task);
            waited |= next.is_pending();
            next
        })
        .await;
        if waited {
            // The others have had their turn meanwhile.
            turn.begin();
        }
        match next {
            Next::Parcel(parcel) => {
                turn.handling();
                let outcome = unless_crashed(mailbox, panics::catch(one(actor, &parcel, &mut cx))).await;
                mailbox.finished();
                let answer = outcome?;
                turn.handled();
                if parcel.ask && answer != Answer::Streams {
                    parcel.from.answer(parcel.id, answer);
                } else {
                    owed.add(parcel.from);
                }
            }
            Next::Idle => owed.settle(),
            Next::Stop => break,
            Next::Crash(panic) => return Err(panic),
        }
    }
    owed.settle();
    mailbox.close();
    mailbox.end_streams(Order::Stopped);
    if let Some(panic) = poll_fn(|task| mailbox.poll_no_streams(task)).await {
        return Err(panic);
    }
    cx.rest();
    panics::catch(actor.stopped(&cx)).await
}

/// When the actor lets the other tasks of its thread run, of which one sends its answers.
///
/// An answer should have left before the next handler begins: that one may block, or take the process with it. But a
/// write for each of many small messages costs several times what handling them does. So an actor has to earn the
/// right to answer several messages in one write: by handling [`EARNED`] of them in a row within [`QUICK`] each. It
/// loses the right with the first that takes longer, and uses it for a [`LONGEST`] turn at most.
struct Turn {
    begun: Instant,
    handling: Instant,
    quick: u32,
    handled: u32,
}

const EARNED: u32 = 64;
const QUICK: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_micros(100);

impl Turn {
    fn new() -> Turn {
        let now = Instant::now();
        Turn { begun: now, handling: now, quick: 0, handled: 0 }
    }

    fn begin(&mut self) {
        self.begun = Instant::now();
        self.handled = 0;
    }

    fn handling(&mut self) {
        self.handling = Instant::now();
    }

    fn handled(&mut self) {
        self.handled += 1;
        self.quick = if self.handling.elapsed() <= QUICK { self.quick.saturating_add(1) } else { 0 };
    }

    fn is_over(&self) -> bool {
        self.handled > 0 && (self.quick < EARNED || self.begun.elapsed() >= LONGEST)
    }
}

/// What a handler comes to, unless a stream of its actor panics first.
async fn unless_crashed<T>(
    mailbox: &Mailbox,
    handling: impl Future<Output = Result<T, Panic>>,
) -> Result<T, Panic> {
    let mut handling = pin!(handling);
    poll_fn(|task| match handling.as_mut().poll(task) {
        Poll::Pending => mailbox.poll_crash(task).map(Err),
        ready => ready,
    })
    .await
}

/// Handles one message, unless its caller no longer waits.
async fn one<A: Actor>(actor: &mut A, parcel: &Parcel, cx: &mut Context) -> Answer {
    cx.begin(parcel.deadline);
    if parcel.deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now()) {
        return Answer::Fault(Fault::Timeout { maybe_executed: false });
    }
    match decode::<A::Message>(&parcel.body) {
        Ok(message) => actor.handle(message, parcel.ask, cx).await,
        Err(error) => Answer::Fault(Fault::Undecodable(error.to_string())),
    }
}

/// Places in senders' windows that handled tells give back, gathered so that not each costs a frame.
#[derive(Default)]
struct Owed {
    to: Option<Arc<dyn ReturnPath>>,
    places: u32,
}

/// A quarter of the window: a sender never runs dry while this side is busy.
const GATHER: u32 = crate::outlet::WINDOW / 4;

impl Owed {
    fn any(&self) -> bool {
        self.places > 0
    }

    fn add(&mut self, to: Arc<dyn ReturnPath>) {
        if !self.to.as_ref().is_some_and(|now| Arc::ptr_eq(now, &to)) {
            self.settle();
            self.to = Some(to);
        }
        self.places += 1;
        if self.places >= GATHER {
            self.settle();
        }
    }

    fn settle(&mut self) {
        if let Some(to) = self.to.as_ref().filter(|_| self.places > 0) {
            to.release(self.places);
        }
        self.places = 0;
    }
}
