//! The loop of an actor: take the next message, handle it, answer.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hatchery_wire::decode;

use crate::actor::Actor;
use crate::context::Context;
use crate::exit::Panic;
use crate::fault::Fault;
use crate::mailbox::{Mailbox, Next, Parcel, ReturnPath};
use crate::outlet::Answer;
use crate::panics;

/// Runs an actor until it is told to stop.
///
/// # Errors
/// The panic of a handler. The state is gone with it, and requests that were waiting end with the incarnation.
pub async fn run<A: Actor>(mut actor: A, mailbox: &Arc<Mailbox>, mut cx: Context) -> Result<(), Panic> {
    let mut owed = Owed::default();
    // A mailbox that never runs empty, or a handler that takes long, must not keep this thread from its other tasks,
    // of which one sends the answers.
    let mut turn = Instant::now();
    loop {
        if turn.elapsed() >= TURN {
            tokio::task::yield_now().await;
            turn = Instant::now();
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
            turn = Instant::now();
        }
        match next {
            Next::Parcel(parcel) => {
                let outcome = panics::catch(one(&mut actor, &parcel, &mut cx)).await;
                mailbox.finished();
                let answer = outcome?;
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

/// How long messages are handled in one go. Their answers leave together, in one write, at the end of the turn: long
/// enough for many small messages to share that write, too short for anybody to miss an answer that is ready.
const TURN: Duration = Duration::from_micros(100);

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
