//! Streamed answers at the producer's side: one task a stream, beside the actor, that ends with it.
//!
//! ```text
//!        caller left                actor stops in order
//!   Go ──────▶ Withdrawn ──▶ End  ──────▶ Stopped ──▶ Fault
//!    └──▶ the stream's own end ──▶ End
//! ```
//!
//! Only the task itself sends, so nothing of a stream can come after its end. Whoever wants it to end says so in its
//! order, and the task drops the user's stream before it sends the last word. If the actor crashes or is cut off, its
//! tasks are dropped with it, and its seat tells the caller.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Task, Poll, Waker};
use std::time::{Duration, Instant};

use futures_core::Stream;
use hatchery_wire::{Body, EncodeError};

use crate::context::Context;
use crate::exit::Exit;
use crate::fault::Fault;
use crate::mailbox::{Mailbox, Name, ReturnPath, name};
use crate::outlet::{Answer, measure};
use crate::streams::{self, Ahead, TooMuchCredit};

/// How many streams of one actor may be open. Each is a task; its caller holds on to it by a living value.
pub const OPEN: usize = 1024;

/// The streams of one actor.
#[derive(Default)]
pub(crate) struct Flows {
    open: HashMap<Name, Arc<Flow>>,
    /// Woken when the last of them has ended.
    waker: Option<Waker>,
}

/// One stream, as its task and those who give it orders share it.
pub(crate) struct Flow {
    id: u64,
    from: Arc<dyn ReturnPath>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ahead: Ahead,
    order: Order,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    Go,
    /// Its caller has left.
    Withdrawn,
    /// The actor stops in order.
    Stopped,
}

impl Flows {
    /// One more stream.
    pub(crate) fn open(&mut self, id: u64, from: Arc<dyn ReturnPath>) -> Option<Arc<Flow>> {
        if self.open.len() >= OPEN {
            return None;
        }
        let flow = Arc::new(Flow { id, from, state: Mutex::default() });
        self.open.insert(flow.name(), flow.clone());
        Some(flow)
    }

    pub(crate) fn find(&self, id: u64, from: &Arc<dyn ReturnPath>) -> Option<Arc<Flow>> {
        self.open.get(&name(id, from)).cloned()
    }

    /// This stream has ended. Gives whom to wake.
    pub(crate) fn ended(&mut self, flow: &Flow) -> Option<Waker> {
        self.open.remove(&flow.name());
        if self.open.is_empty() { self.waker.take() } else { None }
    }

    /// Those of this sender.
    pub(crate) fn of(&self, from: &Arc<dyn ReturnPath>) -> Vec<Arc<Flow>> {
        let sender = name(0, from).0;
        let open = self.open.iter().filter(|((from, _), _)| *from == sender);
        open.map(|(_, flow)| flow.clone()).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Flow>> {
        self.open.values().cloned().collect()
    }

    /// Pending as long as there are any. Gives back the waker it replaced, to be dropped without a lock.
    pub(crate) fn poll_none(&mut self, cx: &Task<'_>) -> (Poll<()>, Option<Waker>) {
        if self.open.is_empty() {
            return (Poll::Ready(()), self.waker.take());
        }
        (Poll::Pending, self.waker.replace(cx.waker().clone()))
    }
}

impl Flow {
    /// As requests are called; nobody else gets the address while this holds on to the sender.
    fn name(&self) -> Name {
        name(self.id, &self.from)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first order stands.
    pub(crate) fn give(&self, order: Order) {
        let mut state = self.lock();
        if state.order == Order::Go {
            state.order = order;
        }
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// The consumer has taken so many items.
    pub(crate) fn credit(&self, items: usize) -> Result<(), TooMuchCredit> {
        let mut state = self.lock();
        state.ahead.give_back(items)?;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        Ok(())
    }

    /// Whether there is an order to end, and whether there is room for an item. Wakes this task when that changes.
    fn look(&self, cx: &Task<'_>) -> (Order, bool) {
        let mut state = self.lock();
        let old = match &state.waker {
            Some(waker) if waker.will_wake(cx.waker()) => None,
            _ => state.waker.replace(cx.waker().clone()),
        };
        let seen = (state.order, state.ahead.has_room());
        drop(state);
        drop(old);
        seen
    }

    fn send(&self, item: Body) {
        self.lock().ahead.add(streams::size(&item));
        self.from.item(self.id, item);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The answer of a method that returns a stream: its items are sent from a task of their own.
#[doc(hidden)]
pub fn begin<S>(
    cx: &Context,
    asked: bool,
    stream: S,
    encode: fn(&S::Item) -> Result<Body, EncodeError>,
) -> Answer
where
    S: Stream + Send + 'static,
{
    if !asked {
        return Answer::None;
    }
    let mailbox = cx.mailbox().clone();
    match mailbox.open_stream(cx.request()) {
        Ok(flow) => {
            let ending = Ending { flow, mailbox };
            cx.spawn(pour(stream, encode, ending));
            // Nobody looks at this one: the request's answer is put off.
            Answer::None
        }
        Err(fault) => Answer::Fault(fault),
    }
}

/// Takes the flow off the list however its task ends.
struct Ending {
    flow: Arc<Flow>,
    mailbox: Arc<Mailbox>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.mailbox.stream_ended(&self.flow);
    }
}

/// What becomes of the next poll.
enum Next {
    Item(Result<Body, EncodeError>),
    Over,
    Ordered(Order),
}

/// Sends items as long as there is room, and then the last word.
async fn pour<S: Stream>(stream: S, encode: fn(&S::Item) -> Result<Body, EncodeError>, ending: Ending) {
    let flow = &ending.flow;
    let last = {
        let mut stream = pin!(stream);
        let mut pace = Pace::new();
        loop {
            let next = poll_fn(|cx| match flow.look(cx) {
                (Order::Go, true) => stream.as_mut().poll_next(cx).map(|item| match item {
                    Some(item) => Next::Item(encode(&item)),
                    None => Next::Over,
                }),
                (Order::Go, false) => Poll::Pending,
                (order, _) => Poll::Ready(Next::Ordered(order)),
            });
            match next.await {
                Next::Item(item) => {
                    let item = item.map_err(|error| Fault::BadAnswer(error.to_string()));
                    match item.and_then(|item| measure(&item).map_err(bad).map(|()| item)) {
                        Ok(item) => flow.send(item),
                        Err(fault) => break Answer::Fault(fault),
                    }
                }
                Next::Ordered(Order::Stopped) => {
                    let exit = Box::new(Exit::orderly());
                    break Answer::Fault(Fault::Ended { exit, maybe_executed: true });
                }
                Next::Over | Next::Ordered(_) => break Answer::End,
            }
            pace.keep().await;
        }
    };
    // The user's stream is gone by now.
    flow.from.reply(flow.id, last);
}

/// An item that is over the limit was made, and nobody gets it.
fn bad(fault: Fault) -> Fault {
    match fault {
        Fault::NotSent(why) => Fault::BadAnswer(why),
        other => other,
    }
}

/// Lets the other tasks of this thread run, of which one writes the items: after every item, unless they come so
/// quickly that a write for each would cost more than they do.
struct Pace {
    begun: Instant,
    last: Instant,
    items: u32,
}

/// What comes within this time of the one before is sent together with it.
const QUICK: Duration = Duration::from_micros(20);
/// How many at most, and for how long.
const TOGETHER: u32 = 16;
const LONGEST: Duration = Duration::from_micros(100);

impl Pace {
    fn new() -> Pace {
        let now = Instant::now();
        Pace { begun: now, last: now, items: 0 }
    }

    async fn keep(&mut self) {
        let now = Instant::now();
        let quick = now.duration_since(self.last) <= QUICK;
        self.last = now;
        self.items += 1;
        if !quick || self.items >= TOGETHER || now.duration_since(self.begun) >= LONGEST {
            tokio::task::yield_now().await;
            *self = Pace::new();
        }
    }
}
