//! Runs the handlers of an actor, and looks at what one of them waits for when that takes long.
//!
//! A handler may wait for several things at once, and a circle is one only if none of them but the ask in it can wake the
//! handler. So a handler that has waited for a while is polled with a waker of which the copies are counted. Whatever may
//! wake it has to keep a copy: if one is left afterwards, and an ask has kept it, the handler waits for that and for
//! nothing else. A timer, a channel, a task, a second ask would have kept another.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::busy::{Here, Inside};
use crate::chain::Chain;
use crate::mailbox::Mailbox;
use crate::probe;

/// How long a handler waits before it is looked at, at least; twice that at most.
const FIRST: Duration = Duration::from_millis(100);
/// It is looked at again after twice as long each time, up to this: the circle may close later.
const LONGEST: Duration = Duration::from_millis(1600);

/// The handlers of one actor, one after another.
pub(crate) struct Handlers {
    mailbox: Arc<Mailbox>,
    /// With the thread while it polls one.
    here: Option<Box<Here>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The handler for which the timer is set; none if it is not.
    set_for: Option<u64>,
    /// The time between two looks, if the present handler is being looked at.
    looking: Option<Duration>,
}

impl Handlers {
    /// Of the actor of this mailbox, which sits there.
    pub(crate) fn new(mailbox: Arc<Mailbox>, path: &str) -> Handlers {
        let here = Here::new(mailbox.id(), mailbox.life(), path);
        Handlers { mailbox, here: Some(Box::new(here)), timer: None, set_for: None, looking: None }
    }

    /// The actor works on another request, behind this chain.
    pub(crate) fn begin(&mut self, before: Option<Chain>) {
        if let Some(here) = &mut self.here {
            here.begin(before);
        }
        self.goes_on();
    }

    /// The actor does the last thing it does, for nobody.
    pub(crate) fn leave(&mut self) {
        if let Some(here) = &mut self.here {
            here.leave();
        }
        self.goes_on();
    }

    /// It is not looked at any more.
    fn goes_on(&mut self) {
        if self.looking.take().is_some() {
            self.set_for = None;
            self.mailbox.handler_goes_on();
        }
    }

    /// Runs the handler of the present request. What it spawns is not in it.
    pub(crate) async fn run<F: Future>(&mut self, handler: F) -> F::Output {
        let mut handler = pin!(handler);
        poll_fn(|cx| self.poll(handler.as_mut(), cx)).await
    }

    /// Polls the handler of the present request. What it spawns is not in it.
    pub(crate) fn poll<F: Future>(
        &mut self,
        mut handler: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        if self.looking.is_some() && !self.rings() {
            // Something has happened to it.
            self.goes_on();
        }
        if self.looking.is_none() {
            let polled = {
                let _inside = Inside::enter(&mut self.here);
                handler.as_mut().poll(cx)
            };
            if polled.is_ready() || !self.has_waited_long(cx) {
                return polled;
            }
            self.looking = Some(FIRST);
        }
        let polled = self.look(handler, cx);
        if let (Poll::Pending, Some(pause)) = (&polled, self.looking) {
            if let Some((awaited, probe)) = self.mailbox.sends_probe() {
                probe::follow(probe::Verdict::Goes(awaited, probe));
            }
            self.set(pause, cx);
            self.looking = Some(LONGEST.min(2 * pause));
        }
        polled
    }

    /// Whether the present handler asks, and has waited since the timer was set for it. If it is not set yet, it is now.
    fn has_waited_long(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(number) = self.here.as_ref().filter(|here| here.has_asked()).map(|here| here.number())
        else {
            return false;
        };
        // One timer for many handlers: almost all of them are over long before it rings.
        let is_set = self.set_for.is_some();
        if is_set && !self.rings() {
            return false;
        }
        if self.set_for == Some(number) {
            return true;
        }
        self.set(FIRST, cx);
        false
    }

    fn rings(&self) -> bool {
        self.timer.as_ref().is_some_and(|timer| timer.is_elapsed())
    }

    fn set(&mut self, pause: Duration, cx: &mut Context<'_>) {
        let at = Instant::now() + pause;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        timer.as_mut().reset(at);
        // Whatever else this task has done: a timer that is not looked at never rings.
        if pin!(tokio::task::unconstrained(timer.as_mut())).poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.set_for = self.here.as_ref().map(|here| here.number());
    }

    /// Polls the handler, and notes what it waits for.
    fn look<F: Future>(&mut self, handler: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.mailbox.handler_stirs();
        let bell = Arc::new(Bell { task: cx.waker().clone(), rung: AtomicBool::new(false) });
        let waker = Waker::from(bell.clone());
        if let Some(here) = &mut self.here {
            here.look(waker.clone());
        }
        let polled = {
            let _inside = Inside::enter(&mut self.here);
            handler.poll(&mut Context::from_waker(&waker))
        };
        drop(waker);
        let Some(here) = &mut self.here else { return polled };
        let mut asks = here.seen();
        let others = Arc::strong_count(&bell) - 1;
        if let (Poll::Pending, Some(ask), true, 1, false) =
            (&polled, asks.pop(), asks.is_empty(), others, bell.rung.load(Ordering::Relaxed))
        {
            self.mailbox.handler_waits(here.number(), here.path(), ask);
        }
        polled
    }
}

/// A waker of which the copies are counted.
struct Bell {
    task: Waker,
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}
