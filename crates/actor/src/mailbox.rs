//! An actor's queue: requests in order of arrival, with control that overtakes them.
//!
//! It is bounded by what its senders' windows add up to: a channel counts its own places and a peer that takes more
//! is refused by that channel, so nothing here needs to wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hatchery_wire::Body;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fault::Fault;
use crate::outlet::Answer;
use crate::trace::TraceContext;

/// Where the answer to a request goes, and the places in its sender's window.
pub trait ReturnPath: Send + Sync + 'static {
    /// Answers a request; this gives its place back, too.
    fn answer(&self, id: u64, answer: Answer);

    /// Gives back the places of requests that want no answer.
    fn release(&self, places: u32);
}

/// A request that has arrived.
pub struct Parcel {
    /// The sender's number for it.
    pub id: u64,
    /// Whether an answer is wanted.
    pub ask: bool,
    /// When its caller stops waiting, by this process's clock.
    pub deadline: Option<Instant>,
    /// The trace it belongs to, and its caller's span in it.
    pub trace: Option<Box<TraceContext>>,
    /// The encoded message.
    pub body: Body,
    /// Where the answer goes.
    pub from: Arc<dyn ReturnPath>,
}

/// What the actor does next.
pub(crate) enum Next {
    Parcel(Parcel),
    /// The mailbox is empty: a good moment to settle what is owed.
    Idle,
    Stop,
}

/// The queue itself.
#[derive(Default)]
pub struct Mailbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Parcel>,
    running: Option<Running>,
    /// How many have been taken out.
    taken: u64,
    stopping: bool,
    suspended: bool,
    closed: bool,
    waker: Option<Waker>,
}

/// The request that a handler works on right now.
struct Running {
    /// The how manyth it is.
    number: u64,
    id: u64,
    from: Arc<dyn ReturnPath>,
    caller_left: bool,
    /// Cancelled when the caller leaves; made when somebody first wants to know.
    left: Option<CancellationToken>,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> Arc<Mailbox> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request arrives.
    ///
    /// # Errors
    /// The request back if the actor has stopped: [`refuse`](Parcel::refuse) it, or answer it another way.
    pub fn push(&self, parcel: Parcel) -> Result<(), Parcel> {
        let mut state = self.lock();
        if state.closed {
            return Err(parcel);
        }
        state.queue.push_back(parcel);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// A caller has left. If its request has not begun it never will; if it runs, the handler can see it.
    pub fn withdraw(&self, id: u64, from: &Arc<dyn ReturnPath>) {
        let mut state = self.lock();
        if let Some(running) = &mut state.running {
            if running.id == id && Arc::ptr_eq(&running.from, from) {
                running.caller_left = true;
                let left = running.left.clone();
                drop(state);
                if let Some(left) = left {
                    left.cancel();
                }
                return;
            }
        }
        let found = state.queue.iter().position(|p| p.id == id && Arc::ptr_eq(&p.from, from));
        if let Some(parcel) = found.and_then(|index| state.queue.remove(index)) {
            drop(state);
            // The caller is gone, but its place in the window has to come back.
            parcel.from.answer(id, Answer::Fault(Fault::Withdrawn));
        }
        // Not found: it has been answered, and the answer and the withdrawal have crossed.
    }

    /// The actor shall stop after the message it is at.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The actor shall begin nothing new after the message it is at, until [`resume`](Mailbox::resume). A stop still
    /// overtakes.
    pub fn suspend(&self) {
        self.lock().suspended = true;
    }

    /// The actor shall go on.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.suspended = false;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether nothing new begins.
    pub(crate) fn is_suspended(&self) -> bool {
        self.lock().suspended
    }

    /// What to do next; `idle` asks to be told once when there is nothing.
    pub(crate) fn poll_next(&self, idle: bool, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.lock();
        if state.stopping {
            return Poll::Ready(Next::Stop);
        }
        let next = if state.suspended { None } else { state.queue.pop_front() };
        if let Some(parcel) = next {
            state.taken += 1;
            let (number, from) = (state.taken, parcel.from.clone());
            state.running = Some(Running { number, id: parcel.id, from, caller_left: false, left: None });
            return Poll::Ready(Next::Parcel(parcel));
        }
        if idle {
            return Poll::Ready(Next::Idle);
        }
        let old = state.waker.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// The request that was running is over.
    pub(crate) fn finished(&self) {
        let running = self.lock().running.take();
        drop(running);
    }

    /// Is cancelled when the caller of this request, counted from 1, leaves; `None` if it is not the one that runs.
    pub(crate) fn caller_left(&self, number: u64) -> Option<CancellationToken> {
        let mut state = self.lock();
        let running = state.running.as_mut().filter(|running| running.number == number)?;
        let left = running.left.get_or_insert_default().clone();
        let gone = running.caller_left;
        drop(state);
        if gone {
            left.cancel();
        }
        Some(left)
    }

    /// The actor is gone: what is left, and all that still arrives, is answered `Stopping`.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let rest = std::mem::take(&mut state.queue);
        drop(state);
        rest.into_iter().for_each(Parcel::refuse);
    }
}

impl Parcel {
    /// Answers it `Stopping`, and gives its place back.
    pub fn refuse(self) {
        if self.ask {
            self.from.answer(self.id, Answer::Fault(Fault::Stopping));
        } else {
            self.from.release(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use hatchery_wire::encode;

    use super::*;

    /// Writes down what comes back.
    #[derive(Default)]
    struct Back {
        answers: Mutex<Vec<(u64, Answer)>>,
        places: Mutex<u32>,
    }

    impl ReturnPath for Back {
        fn answer(&self, id: u64, answer: Answer) {
            self.answers.lock().unwrap().push((id, answer));
        }

        fn release(&self, places: u32) {
            *self.places.lock().unwrap() += places;
        }
    }

    impl Back {
        fn answers(&self) -> Vec<(u64, Answer)> {
            self.answers.lock().unwrap().clone()
        }
    }

    fn parcel(id: u64, ask: bool, from: &Arc<Back>) -> Parcel {
        Parcel { id, ask, deadline: None, trace: None, body: encode(&id).unwrap(), from: from.clone() }
    }

    fn next(mailbox: &Mailbox) -> Option<Next> {
        match mailbox.poll_next(false, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }

    fn next_id(mailbox: &Mailbox) -> Option<u64> {
        next(mailbox).map(|next| match next {
            Next::Parcel(parcel) => parcel.id,
            Next::Idle | Next::Stop => panic!("a request was expected"),
        })
    }

    #[test]
    fn requests_come_out_in_the_order_of_their_arrival() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        for id in 0..10 {
            assert!(mailbox.push(parcel(id, true, &back)).is_ok());
        }
        for id in 0..10 {
            assert_eq!(next_id(&mailbox), Some(id));
            mailbox.finished();
        }
        assert_eq!(next_id(&mailbox), None);
    }

    #[test]
    fn control_overtakes_the_mailbox() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        mailbox.stop();
        assert!(matches!(next(&mailbox), Some(Next::Stop)));
    }

    #[test]
    fn a_suspended_mailbox_gives_nothing_out_keeps_the_order_and_can_be_stopped() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        for id in 1..=4 {
            assert!(mailbox.push(parcel(id, true, &back)).is_ok());
        }
        assert_eq!(next_id(&mailbox), Some(1));
        mailbox.suspend();
        assert!(mailbox.is_suspended());
        mailbox.finished();
        assert_eq!(next_id(&mailbox), None);
        let from: Arc<dyn ReturnPath> = back.clone();
        mailbox.withdraw(3, &from);
        assert!(matches!(
            mailbox.poll_next(true, &mut Context::from_waker(Waker::noop())),
            Poll::Ready(Next::Idle)
        ));
        mailbox.resume();
        assert_eq!((next_id(&mailbox), next_id(&mailbox), next_id(&mailbox)), (Some(2), Some(4), None));
        mailbox.suspend();
        mailbox.stop();
        assert!(matches!(next(&mailbox), Some(Next::Stop)));
    }

    #[test]
    fn a_request_withdrawn_before_it_begins_never_does_and_its_place_comes_back() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        for id in 1..=3 {
            assert!(mailbox.push(parcel(id, true, &back)).is_ok());
        }
        let from: Arc<dyn ReturnPath> = back.clone();
        mailbox.withdraw(2, &from);
        assert_eq!(back.answers(), [(2, Answer::Fault(Fault::Withdrawn))]);
        assert_eq!((next_id(&mailbox), next_id(&mailbox), next_id(&mailbox)), (Some(1), Some(3), None));
    }

    #[test]
    fn a_withdrawal_that_crosses_its_answer_changes_nothing() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        let from: Arc<dyn ReturnPath> = back.clone();
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        assert_eq!(next_id(&mailbox), Some(1));
        mailbox.finished();
        mailbox.withdraw(1, &from);
        assert_eq!((back.answers(), next_id(&mailbox)), (vec![], None));
    }

    #[test]
    fn a_withdrawal_touches_its_own_senders_request_only() {
        let (mailbox, one, two) = (Mailbox::new(), Arc::new(Back::default()), Arc::new(Back::default()));
        for back in [&one, &one, &two] {
            assert!(mailbox.push(parcel(7, true, back)).is_ok());
        }
        let from: Arc<dyn ReturnPath> = two.clone();
        // The first one's 7 runs, and is not the one that is meant.
        assert_eq!(next_id(&mailbox), Some(7));
        let left = mailbox.caller_left(1).unwrap();
        mailbox.withdraw(7, &from);
        assert!(!left.is_cancelled());
        assert_eq!((one.answers().len(), two.answers().len()), (0, 1));
        let Some(Next::Parcel(rest)) = next(&mailbox) else { panic!("one is left") };
        rest.refuse();
        assert_eq!((one.answers().len(), next_id(&mailbox)), (1, None));
    }

    #[test]
    fn whoever_asks_about_the_caller_of_a_running_request_is_told_before_or_after() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        let from: Arc<dyn ReturnPath> = back.clone();
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        assert_eq!(next_id(&mailbox), Some(1));
        let before = mailbox.caller_left(1).unwrap();
        assert!(!before.is_cancelled());
        mailbox.withdraw(1, &from);
        assert!(before.is_cancelled() && mailbox.caller_left(1).unwrap().is_cancelled());
        mailbox.finished();
        assert!(mailbox.caller_left(1).is_none());
        assert!(mailbox.push(parcel(2, true, &back)).is_ok());
        assert_eq!(next_id(&mailbox), Some(2));
        assert!(mailbox.caller_left(1).is_none(), "that one is over");
        assert!(!mailbox.caller_left(2).unwrap().is_cancelled());
    }

    #[test]
    fn a_closed_mailbox_answers_what_is_left_and_hands_back_what_arrives() {
        let (mailbox, back) = (Mailbox::new(), Arc::new(Back::default()));
        assert!(mailbox.push(parcel(1, true, &back)).is_ok());
        assert!(mailbox.push(parcel(2, false, &back)).is_ok());
        mailbox.close();
        assert_eq!(back.answers(), [(1, Answer::Fault(Fault::Stopping))]);
        assert_eq!(*back.places.lock().unwrap(), 1);
        let Err(returned) = mailbox.push(parcel(3, true, &back)) else { panic!("it is closed") };
        returned.refuse();
        assert_eq!(back.answers().len(), 2);
    }
}
