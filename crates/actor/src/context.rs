//! What a handler can ask about the request it works on and the actor it belongs to, and what it can have that actor do.

use std::any::{TypeId, type_name};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::actor::AnyActor;
use crate::ask::Ask;
use crate::exit::{Exit, Panic};
use crate::fault::Fault;
use crate::handle::{ActorRef, AnyHandle};
use crate::mailbox::{Mailbox, Ticket};
use crate::me::Me;
use crate::monitor::Down;
use crate::outlet::Answer;
use crate::tasks::{Hold, Tasks};
use crate::timer::Timer;
use crate::trace::TraceContext;
use crate::watch::Watch;

/// Given to every handler that has a parameter `&Context`.
#[derive(Clone)]
pub struct Context {
    own: Arc<Own>,
    /// Which of the mailbox's requests this is about, counted from 1.
    request: u64,
    deadline: Option<Instant>,
    trace: Option<Box<TraceContext>>,
}

/// What all contexts of one incarnation share.
struct Own {
    path: String,
    incarnation: u64,
    mailbox: Arc<Mailbox>,
    tasks: Arc<Tasks>,
    me: Me,
    /// The type of the actor's handle, and its name.
    handle: (TypeId, &'static str),
    /// Its registered name.
    actor: &'static str,
    /// The number of the seat it sits in.
    seat: AtomicU64,
}

impl Context {
    /// The context of one incarnation of an actor. What it spawns runs on the present runtime.
    #[doc(hidden)]
    pub fn new<A: AnyActor>(path: &str, incarnation: u64, mailbox: Arc<Mailbox>) -> Context {
        let own = Own {
            path: path.to_owned(),
            incarnation,
            mailbox,
            tasks: Tasks::new(),
            me: Me::default(),
            handle: (TypeId::of::<A::Handle>(), type_name::<A::Handle>()),
            actor: A::name(),
            seat: AtomicU64::new(0),
        };
        Context { own: Arc::new(own), request: 0, deadline: None, trace: None }
    }

    /// The same, of an actor that sits in the seat of this number.
    #[doc(hidden)]
    #[must_use]
    pub fn in_seat(self, number: u64) -> Context {
        self.own.seat.store(number, Ordering::Relaxed);
        self
    }

    /// Where the actor sits, e.g. `/shop/web`.
    pub fn path(&self) -> &str {
        &self.own.path
    }

    /// Which incarnation of its seat this is, counted from 1.
    pub fn incarnation(&self) -> u64 {
        self.own.incarnation
    }

    /// When the caller of this request stops waiting, by this process's clock; `None` for a tell, for a request without
    /// a deadline, and outside of a request.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The trace that this request belongs to, with a span of the handler's own whose parent is the caller's; `None` if
    /// it belongs to none, and outside of a request. What the handler asks goes on from there by itself.
    #[doc(alias = "traceparent")]
    pub fn trace(&self) -> Option<TraceContext> {
        self.trace.as_deref().copied()
    }

    /// Resolves when the caller of this request has left (its future was dropped, or its deadline passed). The
    /// handler is not torn down by that: it may use this to stop early. Never resolves outside of a request: in
    /// `start`, in `stopped`, or in a clone that has outlived the request.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn cancelled(&self) {
        match self.own.mailbox.caller_left(self.request) {
            Some(left) => caller_left(&left, self.deadline).await,
            None => std::future::pending().await,
        }
    }

    /// Stops this actor in order after the current message: what waits behind it is answered `is_stopping()`, and
    /// `stopped` runs. Its supervisor decides what comes then.
    pub fn stop(&self) {
        self.own.mailbox.stop();
    }

    /// A handle to this very actor: Erlang's `self()`. Its messages go through the actor's own mailbox, after what waits
    /// there already, with a window of 256 of their own; they never leave the process. It may be used from `start` on,
    /// and in tasks that [`spawn`](Context::spawn) runs. It is a handle to this incarnation: afterwards, its requests
    /// are errors that say `is_closed()`.
    ///
    /// Send such a message with `.tell()`. To *wait* for oneself in a handler (or in `start`) would take for ever, so
    /// an ask is refused there at once, as is a tell when 256 of them are under way; nothing was executed then. A
    /// task of the actor may do both.
    ///
    /// `stop()` of this handle stops the actor in order, and is not to be waited for in a handler; `kill()` ends it as a
    /// panic does.
    ///
    /// # Panics
    /// `H` is not the handle of this actor.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// struct Crawler { found: u64 }
    ///
    /// #[hatchery::actor]
    /// impl Crawler {
    ///     fn start() -> Self { Crawler { found: 0 } }
    ///
    ///     /// Takes a step, and the next one after whatever others have asked for meanwhile.
    ///     async fn crawl(&mut self, steps: u64, cx: &Context) -> hatchery::Result<()> {
    ///         self.found += 1;
    ///         if steps > 1 {
    ///             cx.me::<CrawlerHandle>().crawl(steps - 1).tell().await?;
    ///         }
    ///         Ok(())
    ///     }
    ///
    ///     fn found(&self) -> u64 { self.found }
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    ///     let crawler = tree.start_child(worker::<Crawler>("crawler", ())).await?;
    ///     crawler.crawl(100).await?;
    ///     while crawler.found().await? < 100 {}
    ///     tree.stop().await
    /// }
    /// ```
    #[doc(alias = "self")]
    #[doc(alias = "myself")]
    #[track_caller]
    pub fn me<H: From<ActorRef> + 'static>(&self) -> H {
        let Own { path, incarnation, mailbox, tasks, me, handle: (id, name), actor, seat } = &*self.own;
        assert!(*id == TypeId::of::<H>(), "the handle of {path} is a {name}, not a {}", type_name::<H>());
        let place = (path.as_str(), seat.load(Ordering::Relaxed));
        ActorRef::new(me.seat(place, actor, *incarnation, mailbox, tasks)).into()
    }

    /// Runs a future beside the actor, on its runtime: in a worker that is the actor's own thread. It is dropped where
    /// it awaits when the actor ends: at a stop before `stopped` runs, at a panic, at a kill. After the actor's end it
    /// is dropped at once.
    ///
    /// A panic in it is a crash of the actor, as one in a handler is, and at once: a handler that runs is cut off where
    /// it awaits. What else may go wrong in it is for the future to handle; [`me`](Context::me) takes results to
    /// the actor.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// struct Prices { latest: Option<u64> }
    ///
    /// #[hatchery::actor]
    /// impl Prices {
    ///     fn start(cx: &Context) -> Self {
    ///         let me = cx.me::<PricesHandle>();
    ///         cx.spawn(async move {
    ///             // Something that takes its time, while the actor answers others.
    ///             let price = async { 42 }.await;
    ///             let _ = me.update(price).tell().await;
    ///         });
    ///         Prices { latest: None }
    ///     }
    ///
    ///     fn update(&mut self, price: u64) { self.latest = Some(price) }
    ///
    ///     fn latest(&self) -> Option<u64> { self.latest }
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    ///     let prices = tree.start_child(worker::<Prices>("prices", ())).await?;
    ///     while prices.latest().await? != Some(42) {}
    ///     tree.stop().await
    /// }
    /// ```
    #[doc(alias = "spawn_link")]
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.own.tasks.spawn_in_trace(future);
    }

    /// Sends a message after a delay, counted from now: one to the actor itself with [`me`](Context::me), or any other.
    /// It is told, so its answer is dropped, and belongs to the trace of the handler that calls this. The timer ends with
    /// the actor; if there is no room in the window, it waits for it.
    ///
    /// A message that cannot be encoded ends the actor as a panic does.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// struct Session { expired: bool, expiry: hatchery::Timer }
    ///
    /// #[hatchery::actor]
    /// impl Session {
    ///     fn start(millis: u64, cx: &Context) -> Self {
    ///         let expiry = cx.after(Duration::from_millis(millis), cx.me::<SessionHandle>().expire());
    ///         Session { expired: false, expiry }
    ///     }
    ///
    ///     fn keep(&self) { self.expiry.cancel() }
    ///
    ///     fn expire(&mut self) { self.expired = true }
    ///
    ///     fn is_expired(&self) -> bool { self.expired }
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    ///     let kept = tree.start_child(worker::<Session>("kept", 60_000)).await?;
    ///     kept.keep().await?;
    ///     let short = tree.start_child(worker::<Session>("short", 1)).await?;
    ///     while !short.is_expired().await? {}
    ///     assert!(!kept.is_expired().await?);
    ///     tree.stop().await
    /// }
    /// ```
    #[doc(alias = "send_after")]
    pub fn after<T, E>(&self, delay: Duration, message: Ask<T, E>) -> Timer {
        Timer::once(&self.own.tasks, delay, message.tell())
    }

    /// Sends a message each time such a period is over, the first one a period from now. The messages are told, so their
    /// answers are dropped, and belong to no trace. The timer ends with the actor.
    ///
    /// An actor that is behind gets fewer of them rather than many at once: after a late one, the next comes a whole
    /// period later, as with tokio's [`MissedTickBehavior::Delay`](tokio::time::MissedTickBehavior::Delay), and none is
    /// sent while there is no room in the window.
    ///
    /// A message that cannot be encoded, or a panic of `message`, ends the actor as a panic does.
    ///
    /// # Panics
    /// The period is zero.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// struct Clock { ticks: u64 }
    ///
    /// #[hatchery::actor]
    /// impl Clock {
    ///     fn start(cx: &Context) -> Self {
    ///         let me = cx.me::<ClockHandle>();
    ///         cx.every(Duration::from_millis(1), move || me.tick());
    ///         Clock { ticks: 0 }
    ///     }
    ///
    ///     fn tick(&mut self) { self.ticks += 1 }
    ///
    ///     fn ticks(&self) -> u64 { self.ticks }
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    ///     let clock = tree.start_child(worker::<Clock>("clock", ())).await?;
    ///     while clock.ticks().await? < 3 {}
    ///     tree.stop().await
    /// }
    /// ```
    #[doc(alias = "send_interval")]
    #[track_caller]
    pub fn every<T: 'static, E: 'static>(
        &self,
        period: Duration,
        mut message: impl FnMut() -> Ask<T, E> + Send + 'static,
    ) -> Timer {
        assert!(!period.is_zero(), "the period of `every` is zero: write a longer one");
        Timer::repeated(&self.own.tasks, period, move || message().tell())
    }

    /// Has the ends in a seat sent to the actor as messages: one for each incarnation that sits there now or later, as
    /// [`monitor`](crate::handle::AnyHandle::monitor) tells them, and a last one when nobody will sit there again
    /// ([`Down::is_closed`]). `message` makes them; they are told, so their answers are dropped. It ends with the actor.
    /// An actor that does not come to them for long may find in [`Down::missed`] that some were left out.
    ///
    /// A message that cannot be encoded, or a panic of `message`, ends the actor as a panic does.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// struct Engine;
    ///
    /// #[hatchery::actor]
    /// impl Engine {
    ///     fn start() -> Self { Engine }
    ///     fn stalls(&self) { panic!("out of fuel") }
    /// }
    ///
    /// struct Logbook { lines: Vec<String> }
    ///
    /// #[hatchery::actor]
    /// impl Logbook {
    ///     fn start() -> Self { Logbook { lines: Vec::new() } }
    ///     fn write(&mut self, line: String) { self.lines.push(line) }
    ///     fn lines(&self) -> Vec<String> { self.lines.clone() }
    /// }
    ///
    /// struct Captain { logbook: LogbookHandle }
    ///
    /// #[hatchery::actor]
    /// impl Captain {
    ///     fn start(engine: EngineHandle, logbook: LogbookHandle, cx: &Context) -> Self {
    ///         let me = cx.me::<CaptainHandle>();
    ///         cx.monitor(&engine, move |down| me.hears(down.to_string()));
    ///         Captain { logbook }
    ///     }
    ///
    ///     async fn hears(&mut self, of: String) {
    ///         let _ = self.logbook.write(of).await;
    ///     }
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    ///     let engine = tree.start_child(worker::<Engine>("engine", ())).await?;
    ///     let logbook = tree.start_child(local::<Logbook>("logbook", ())).await?;
    ///     tree.start_child(local::<Captain>("captain", (engine.clone(), logbook.clone()))).await?;
    ///     assert!(engine.stalls().await.unwrap_err().is_crash());
    ///     while logbook.lines().await?.is_empty() {}
    ///     assert!(logbook.lines().await?[0].contains("out of fuel"));
    ///     tree.stop().await
    /// }
    /// ```
    #[doc(alias = "demonitor")]
    pub fn monitor<T: 'static, E: 'static>(
        &self,
        handle: &impl AnyHandle,
        mut message: impl FnMut(Down) -> Ask<T, E> + Send + 'static,
    ) -> Watch {
        Watch::begin(&self.own.tasks, handle.monitor(), move |down| message(down).tell())
    }

    /// Something of this incarnation lives on its own; where it shares a process with its supervisor, the next incarnation
    /// waits until this is dropped. If the actor is killed there, `on_kill` is called.
    #[doc(hidden)]
    pub fn hold(&self, on_kill: impl Fn() + Send + Sync + 'static) -> Hold {
        self.own.tasks.hold(on_kill)
    }

    /// Ends the actor as a panic of a handler does.
    #[doc(hidden)]
    pub fn crash(&self, why: String) {
        self.own.tasks.crash(Panic { message: why, place: None });
    }

    /// Runs the handler of this request for as long as its caller waits: what `#[message(cancel)]` writes around it.
    ///
    /// # Errors
    /// The caller has left, and the handler has been dropped where it awaited. This is the answer then.
    #[doc(hidden)]
    pub async fn while_awaited<F: Future>(&self, handler: F) -> Result<F::Output, Answer> {
        let (mut handler, mut cancelled) = (pin!(handler), pin!(self.cancelled()));
        poll_fn(|cx| {
            // The caller first: once it is known to have left, the handler takes no further step.
            if cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(self.left()));
            }
            handler.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// The answer for a caller who has left.
    fn left(&self) -> Answer {
        // It may hear this before its own timer.
        Answer::Fault(if is_over(self.deadline) {
            Fault::Timeout { maybe_executed: true }
        } else {
            // Not as withdrawn: it has begun.
            Fault::BadAnswer("its handler was dropped, since the caller had left".to_owned())
        })
    }

    /// Puts off the answer to this request.
    pub(crate) fn put_off(&self) -> Result<(Arc<Mailbox>, Ticket, CancellationToken), Fault> {
        let (ticket, left) = self.own.mailbox.put_off(self.request)?;
        Ok((self.own.mailbox.clone(), ticket, left))
    }

    /// Which of the mailbox's requests this is about.
    pub(crate) fn request(&self) -> u64 {
        self.request
    }

    /// The next request is taken out of the mailbox.
    pub(crate) fn begin(&mut self, deadline: Option<Instant>, trace: Option<&TraceContext>) {
        self.request += 1;
        self.deadline = deadline;
        self.trace = trace.map(|trace| Box::new(trace.child()));
    }

    /// The last request is over.
    pub(crate) fn rest(&mut self) {
        self.deadline = None;
        self.trace = None;
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.own.mailbox
    }

    pub(crate) fn tasks(&self) -> &Arc<Tasks> {
        &self.own.tasks
    }

    /// The incarnation has ended: so do its tasks, each at its next await, and its references to itself.
    pub(crate) fn end(&self, exit: &Exit) {
        self.own.tasks.end();
        self.own.me.end(self.own.incarnation, exit);
    }
}

/// Resolves when a caller has left: when its withdrawal arrives, or its deadline passes by this process's clock.
pub(crate) async fn caller_left(left: &CancellationToken, deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => {
            // It either resolves in time or is too late.
            let _ = tokio::time::timeout_at(deadline, left.cancelled()).await;
        }
        None => left.cancelled().await,
    }
}

/// Whether a deadline has passed by this process's clock.
pub(crate) fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("path", &self.own.path)
            .field("incarnation", &self.own.incarnation)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
