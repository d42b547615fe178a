//! The loop of an actor: take the next message, handle it, answer.

use std::future::poll_fn;
use std::sync::Arc;

use hatchery_wire::decode;
use tokio::time::Instant;

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
    loop {
        // A mailbox that never runs empty must not keep this thread from its other tasks.
        tokio::task::consume_budget().await;
        match poll_fn(|task| mailbox.poll_next(owed.any(), task)).await {
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

/// Handles one message, unless its caller no longer waits.
async fn one<A: Actor>(actor: &mut A, parcel: &Parcel, cx: &mut Context) -> Answer {
    cx.begin(parcel.deadline);
    if parcel.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
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
