//! The loop of an actor: take the next message, handle it, answer.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hatchery_wire::decode_owned;
use tokio::time::Instant;
use tracing::Instrument;

use crate::actor::AnyActor;
use crate::context::Context;
use crate::error::Error;
use crate::exit::{Exit, Panic, Status};
use crate::fault::Fault;
use crate::handlers::Handlers;
use crate::mailbox::{Mailbox, Next, ReturnPath, Work};
use crate::outlet::Answer;
use crate::panics;
use crate::trace::TraceContext;

/// Makes the actor.
///
/// # Errors
/// The panic of its `start`, or of a task that was spawned there. Then, and after an error, nothing of it is left.
pub async fn start<A: AnyActor>(args: A::Args, cx: &Context) -> Result<Result<A, Error>, Panic> {
    starting(A::start(args, cx), cx).await
}

/// The same in another way than by its `start`.
pub(crate) async fn starting<A>(
    start: impl Future<Output = Result<A, Error>>,
    cx: &Context,
) -> Result<Result<A, Error>, Panic> {
    let mut handlers = Handlers::new(cx.mailbox().clone(), cx.path());
    let starting = panics::catch(handlers.run(start));
    let started = unless_crashed(cx, starting).await;
    if !matches!(started, Ok(Ok(_))) {
        cx.end(&Exit::new(Status::Code(1)).with_failed(true));
        cx.tasks().gone().await;
    }
    started
}

/// Runs an actor until it is told to stop.
///
/// # Errors
/// The panic of a handler, of a task of the actor, or of the drop of the state. The state is gone with it, and requests
/// that were waiting end with the incarnation.
pub async fn run<A: AnyActor>(mut actor: A, mailbox: &Arc<Mailbox>, cx: Context) -> Result<(), Panic> {
    // Dropped before the state is, as the one in `unless_crashed` is before the handler.
    let mut cut = Cut(Some(cx.clone()));
    let served = unless_crashed(&cx, serve(&mut actor, mailbox, cx.clone())).await;
    cx.tasks().end();
    cx.tasks().gone().await;
    let ended = served.and(panics::catch_call(|| drop(actor)));
    match &ended {
        Ok(()) => {
            mailbox.abandon().await;
            cx.end(&Exit::orderly());
        }
        Err(panic) => {
            mailbox.crashed();
            cx.end(&Exit::new(Status::Code(101)).with_panic(Some(panic.clone())));
        }
    }
    cut.0 = None;
    ended
}

/// A part of an actor's life, cut short by the panic of one of its tasks.
async fn unless_crashed<T>(cx: &Context, part: impl Future<Output = Result<T, Panic>>) -> Result<T, Panic> {
    let mut crash = cx.tasks().watch();
    // In this order: should the actor be cut off here, what the part drops must not be taken for decisions of its own.
    let mut part = Part { cut: Cut(Some(cx.clone())), part: Box::pin(part) };
    let outcome = poll_fn(|task| {
        if let Poll::Ready(Ok(panic)) = Pin::new(&mut crash).poll(task) {
            return Poll::Ready(Err(panic));
        }
        part.part.as_mut().poll(task)
    })
    .await;
    if outcome.is_err() {
        // Before anything is dropped, and with it whatever answers it still owed.
        cx.mailbox().crashed();
    }
    part.cut.0 = None;
    let dropped = panics::catch_call(|| drop(part));
    outcome.and_then(|value| dropped.map(|()| value))
}

struct Part<F> {
    cut: Cut,
    part: Pin<Box<F>>,
}

/// Ends what belongs to an actor that is dropped in the middle.
struct Cut(Option<Context>);

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(cx) = self.0.take() {
            cut_off(&cx);
        }
    }
}

/// The actor ends, and is asked no more.
pub(crate) fn cut_off(cx: &Context) {
    cx.mailbox().crashed();
    cx.end(&Exit::new(Status::Unknown).with_reason(Some(ABORTED.to_owned())));
}

/// The reason of an exit of a local actor that was killed.
pub(crate) const ABORTED: &str = "its task was aborted";

async fn serve<A: AnyActor>(actor: &mut A, mailbox: &Arc<Mailbox>, mut cx: Context) -> Result<(), Panic> {
    let mut owed = Owed::default();
    let mut turn = Turn::new();
    let mut handlers = Handlers::new(mailbox.clone(), cx.path());
    loop {
        // With an empty mailbox the others have their turn anyway.
        if turn.is_over() && mailbox.has_next() {
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
            Next::Work(mut work) => {
                let (id, ask) = (work.id, work.ask);
                handlers.begin(work.chain.take());
                let outcome = {
                    // Polled where it is made: passed on to other futures it would be copied into each of them.
                    let mut handling = pin!(one(actor, work, turn.now, &mut cx));
                    poll_fn(|task| panics::catch_poll(|| handlers.poll(handling.as_mut(), task))).await
                };
                let finished = mailbox.finished();
                let answer = outcome?;
                turn.handled();
                match finished {
                    Some((from, false)) if ask => from.answer(id, answer),
                    Some((from, _)) => owed.add(from),
                    None => {}
                }
            }
            Next::Idle => owed.settle(),
            Next::Stop => break,
        }
    }
    owed.settle();
    mailbox.close();
    // They have a last word to say, which the other tasks have not.
    mailbox.stop_streams();
    poll_fn(|task| mailbox.poll_no_streams(task)).await;
    cx.tasks().end();
    // What it supervises leaves before it does.
    cx.tasks().released().await;
    cx.rest();
    handlers.leave();
    panics::catch(handlers.run(actor.stopped(&cx))).await
}

/// When the actor lets the other tasks of its thread run, of which one sends its answers.
///
/// An answer should have left before the next handler begins: that one may block, or take the process with it. But a
/// write for each of many small messages costs several times what handling them does. So an actor has to earn the
/// right to answer several messages in one write: by handling [`EARNED`] of them in a row within [`QUICK`] each. It
/// loses the right with the first that takes longer, and uses it for a [`LONGEST`] turn at most.
struct Turn {
    /// When it is a long one.
    until: Instant,
    /// The last look at the clock: at the end of the last message, or when this one was waited for.
    now: Instant,
    quick: u32,
    handled: u32,
}

const EARNED: u32 = 16;
const QUICK: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_micros(100);
/// Half a window: while the sender of the first half takes up its answers, the second half is handled.
const MOST: u32 = crate::outlet::WINDOW / 2;

impl Turn {
    fn new() -> Turn {
        let now = Instant::now();
        Turn { until: now + LONGEST, now, quick: 0, handled: 0 }
    }

    fn begin(&mut self) {
        self.now = Instant::now();
        self.until = self.now + LONGEST;
        self.handled = 0;
    }

    fn handled(&mut self) {
        let before = std::mem::replace(&mut self.now, Instant::now());
        self.handled += 1;
        self.quick = if self.now - before <= QUICK { self.quick.saturating_add(1) } else { 0 };
    }

    fn is_over(&self) -> bool {
        let is_long = self.handled >= MOST || self.now >= self.until;
        self.handled > 0 && (self.quick < EARNED || is_long)
    }
}

/// Handles one message, unless its caller no longer waits.
async fn one<A: AnyActor>(actor: &mut A, work: Work, now: Instant, cx: &mut Context) -> Answer {
    let Work { ask, deadline, trace, body, .. } = work;
    cx.begin(deadline, trace.as_deref());
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Answer::Fault(Fault::Timeout { maybe_executed: false });
    }
    // Given up: large byte strings and descriptors in it become the message's own, without a copy.
    let message = decode_owned::<A::Message>(body);
    match message {
        Ok(message) => match cx.trace() {
            None => actor.handle(message, ask, cx).await,
            Some(trace) => traced(trace, cx.path(), actor.handle(message, ask, cx)).await,
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

/// Places in senders' windows that handled tells, and asks whose answers were put off, give back, gathered so that not
/// each costs a frame.
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
