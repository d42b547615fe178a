//! The loop of an actor: take the next message, handle it, answer.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hatchery_wire::decode;
use tracing::Instrument;

use crate::actor::Actor;
use crate::context::Context;
use crate::exit::Panic;
use crate::fault::Fault;
use crate::mailbox::{Mailbox, Next, Parcel, ReturnPath};
use crate::outlet::Answer;
use crate::panics;
use crate::trace::TraceContext;

/// Runs an actor until it is told to stop.
///
/// # Errors
/// The panic of a handler, or of the drop of the state. The state is gone with it, and requests that were waiting end
/// with the incarnation.
pub async fn run<A: Actor>(mut actor: A, mailbox: &Arc<Mailbox>, cx: Context) -> Result<(), Panic> {
    let served = serve(&mut actor, mailbox, cx).await;
    let dropped = panics::catch_call(|| drop(actor));
    served.and(dropped)
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
                let outcome = panics::catch(one(actor, &parcel, &mut cx)).await;
                mailbox.finished();
                let answer = outcome?;
                turn.handled();
                if parcel.ask {
                    parcel.from.answer(parcel.id, answer);
                } else {
                    owed.add(parcel.from);
                }
            }
            Next::Idle => owed.settle(),
            Next::Stop => break,
        }
    }
    owed.settle();
    mailbox.close();
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

/// Handles one message, unless its caller no longer waits.
async fn one<A: Actor>(actor: &mut A, parcel: &Parcel, cx: &mut Context) -> Answer {
    cx.begin(parcel.deadline, parcel.trace.as_deref());
    if parcel.deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now()) {
        return Answer::Fault(Fault::Timeout { maybe_executed: false });
    }
    match decode::<A::Message>(&parcel.body) {
        Ok(message) => match cx.trace() {
            None => actor.handle(message, parcel.ask, cx).await,
            Some(trace) => traced(trace, cx.path(), actor.handle(message, parcel.ask, cx)).await,
        },
        Err(error) => Answer::Fault(Fault::Undecodable(error.to_string())),
    }
}

/// Handles in a trace: in its scope, and in a span by which a subscriber knows it.
async fn traced<F: Future>(trace: TraceContext, path: &str, handler: F) -> F::Output {
    let span = tracing::info_span!(
        target: SPAN_TARGET,
        "handle",
        path,
        trace_id = %format_args!("{:032x}", trace.trace_id()),
        span_id = %format_args!("{:016x}", trace.span_id()),
    );
    trace.scope(handler.instrument(span)).await
}

/// The target of the spans in which traced requests are handled.
#[doc(hidden)]
pub const SPAN_TARGET: &str = "hatchery::trace";

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
