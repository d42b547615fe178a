//! Everything that `#[actor]` writes can be written by hand, and what a user may rely on then: the conversations of
//! one actor in this process with its callers, in virtual time.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context as Task, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use hatchery_actor::actor::{self, Actor, Place};
use hatchery_actor::ask::Ask;
use hatchery_actor::child::{Child, Order, Presence, Rung, Shutdown, Start, Started, Stop};
use hatchery_actor::context::Context;
use hatchery_actor::error::{CallError, Error};
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::flow;
use hatchery_actor::handle::{ActorRef, AnyHandle};
use hatchery_actor::heartbeat::Heartbeat;
use hatchery_actor::items::Items;
use hatchery_actor::local::Local;
use hatchery_actor::mailbox::{Mailbox, Parcel, ReturnPath};
use hatchery_actor::outlet::{Answer, WINDOW};
use hatchery_actor::reply::Reply;
use hatchery_actor::runner;
use hatchery_actor::seat::{Occupancy, Seat};
use hatchery_actor::timer::Timer;
use hatchery_actor::watchdog::MailboxInfo;
use hatchery_wire::{DecodeError, encode};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, Sleep, sleep};

// ---------------------------------------------------------------- what `#[actor] impl Probe { .. }` would write

/// An actor that writes down what it does.
struct Probe {
    log: Log,
    total: u64,
    replies: Vec<Reply<u64>>,
}

#[derive(Serialize, Deserialize)]
enum Message {
    Add(u64),
    Divide(u64, u64),
    Nap(String, u64),
    Watch(String),
    WatchInTheBackground(String),
    Boom(String),
    Where,
    Unspeakable,
    Leave,
    Again,
    /// To so many, one each so many milliseconds, and then nothing, not even an end.
    Count(u64, u64, bool),
    Later(Vec<u8>),
    LaterChecked(bool),
    LaterUnspeakable,
    LaterBoom,
    GiveAway,
    AnswerNext(u64),
    DropNext,
    Cut(String, u64),
    TellItself(u64),
    AskItself,
    AskItselfFromTask,
    MistakeItself,
    Spawn(String),
    SpawnBoom,
    After(u64),
    Every(u64),
    Cancel,
    Block,
}

#[derive(Clone)]
struct ProbeHandle {
    actor: ActorRef,
}

impl From<ActorRef> for ProbeHandle {
    fn from(actor: ActorRef) -> ProbeHandle {
        ProbeHandle { actor }
    }
}

impl AnyHandle for ProbeHandle {
    fn actor_ref(&self) -> &ActorRef {
        &self.actor
    }
}

impl ProbeHandle {
    fn add(&self, n: u64) -> Ask<u64> {
        self.actor.ask("add", &Message::Add(n))
    }

    fn divide(&self, a: u64, b: u64) -> Ask<u64, String> {
        self.actor.ask("divide", &Message::Divide(a, b))
    }

    /// Works for so long.
    fn nap(&self, name: impl Into<String>, millis: u64) -> Ask<()> {
        self.actor.ask("nap", &Message::Nap(name.into(), millis))
    }

    /// Works until its caller leaves.
    fn watch(&self, name: &str) -> Ask<()> {
        self.actor.ask("watch", &Message::Watch(name.to_owned()))
    }

    /// Returns at once, but a task of it goes on and waits for its caller to leave.
    fn watch_in_the_background(&self, name: &str) -> Ask<()> {
        self.actor.ask("watch_in_the_background", &Message::WatchInTheBackground(name.to_owned()))
    }

    fn boom(&self, why: &str) -> Ask<()> {
        self.actor.ask("boom", &Message::Boom(why.to_owned()))
    }

    fn r#where(&self) -> Ask<(String, u64)> {
        self.actor.ask("where", &Message::Where)
    }

    /// Its answer cannot be encoded.
    fn unspeakable(&self) -> Ask<()> {
        self.actor.ask("unspeakable", &Message::Unspeakable)
    }

    /// Stops the actor from within.
    fn leave(&self) -> Ask<()> {
        self.actor.ask("leave", &Message::Leave)
    }

    /// Its answer is put off: see `answer_next`, `drop_next`.
    fn later(&self) -> Ask<u64> {
        self.actor.ask("later", &Message::Later(Vec::new())).without_deadline()
    }

    fn later_checked(&self, well: bool) -> Ask<u64, String> {
        self.actor.ask("later_checked", &Message::LaterChecked(well)).without_deadline()
    }

    fn later_unspeakable(&self) -> Ask<()> {
        self.actor.ask("later_unspeakable", &Message::LaterUnspeakable).without_deadline()
    }

    fn later_boom(&self) -> Ask<()> {
        self.actor.ask("later_boom", &Message::LaterBoom).without_deadline()
    }

    /// What it owes is for others to answer from now on.
    fn give_away(&self) -> Ask<()> {
        self.actor.ask("give_away", &Message::GiveAway)
    }

    /// Whether its caller was still there.
    fn answer_next(&self, n: u64) -> Ask<bool> {
        self.actor.ask("answer_next", &Message::AnswerNext(n))
    }

    fn drop_next(&self) -> Ask<()> {
        self.actor.ask("drop_next", &Message::DropNext)
    }

    /// Works for so long, unless its caller leaves.
    fn cut(&self, name: &str, millis: u64) -> Ask<()> {
        self.actor.ask("cut", &Message::Cut(name.to_owned(), millis))
    }

    /// How many messages it could send itself, and why not more.
    fn tell_itself(&self, n: u64) -> Ask<(u64, Option<String>)> {
        self.actor.ask("tell_itself", &Message::TellItself(n))
    }

    fn ask_itself(&self) -> Ask<(), Error> {
        self.actor.ask("ask_itself", &Message::AskItself)
    }

    fn ask_itself_from_a_task(&self) -> Ask<()> {
        self.actor.ask("ask_itself_from_a_task", &Message::AskItselfFromTask)
    }

    fn mistake_itself(&self) -> Ask<()> {
        self.actor.ask("mistake_itself", &Message::MistakeItself)
    }

    fn spawn(&self, name: &str) -> Ask<()> {
        self.actor.ask("spawn", &Message::Spawn(name.to_owned()))
    }

    fn spawn_boom(&self) -> Ask<()> {
        self.actor.ask("spawn_boom", &Message::SpawnBoom)
    }

    /// Adds 1 after so long.
    fn after(&self, millis: u64) -> Ask<()> {
        self.actor.ask("after", &Message::After(millis))
    }

    /// Naps for 35 ms again and again.
    fn every(&self, millis: u64) -> Ask<()> {
        self.actor.ask("every", &Message::Every(millis))
    }

    /// Cancels all timers.
    fn cancel(&self) -> Ask<()> {
        self.actor.ask("cancel", &Message::Cancel)
    }

    /// Blocks its thread until it is told otherwise.
    fn block(&self) -> Ask<()> {
        self.actor.ask("block", &Message::Block)
    }

    fn count(&self, to: u64, millis: u64, stalls: bool) -> Items<u64> {
        self.actor.items("count", &Message::Count(to, millis, stalls), hatchery_wire::decode_owned)
    }

    /// A message that the actor does not know.
    fn gibberish(&self) -> Ask<()> {
        self.actor.ask("gibberish", &"gibberish")
    }
}

impl Actor for Probe {
    type Args = Setup;
    type Message = Message;
    type Handle = ProbeHandle;

    fn name() -> &'static str {
        "by_hand::Probe"
    }

    fn place() -> Place {
        Place::new(file!(), 1, 1)
    }

    async fn start(args: Setup, cx: &Context) -> Result<Probe, Error> {
        let log = Log::find(args.log);
        log.say(format!("start {}", cx.incarnation()));
        match args.start.as_str() {
            "well" => Ok(Probe { log, total: 0, replies: Vec::new() }),
            "asking itself" => {
                let me: ProbeHandle = cx.me();
                me.add(1).tell().await?;
                me.add(1).await?;
                unreachable!("it would have waited for its own start")
            }
            "telling itself" => {
                cx.me::<ProbeHandle>().add(1).tell().await?;
                Ok(Probe { log, total: 0, replies: Vec::new() })
            }
            "spawning, badly" => {
                cx.spawn(background(log, "early".to_owned()));
                Err(Error::msg("no model"))
            }
            "spawning a panic" => {
                cx.spawn(async { panic!("no such luck") });
                std::future::pending().await
            }
            "slowly" => {
                sleep(Duration::from_secs(3600)).await;
                Ok(Probe { log, total: 0, replies: Vec::new() })
            }
            "badly" => Err(Error::msg("no model")),
            other => panic!("{other}"),
        }
    }

    async fn handle(&mut self, message: Message, asked: bool, cx: &Context) -> Answer {
        match message {
            Message::Add(n) => {
                self.total += n;
                Answer::value(asked, &self.total)
            }
            Message::Divide(a, b) => {
                let result = a.checked_div(b).ok_or_else(|| "division by zero".to_owned());
                Answer::result(asked, &result)
            }
            Message::Nap(name, millis) => {
                self.log.say(name.clone());
                sleep(Duration::from_millis(millis)).await;
                self.log.handled.fetch_add(1, Ordering::SeqCst);
                Answer::value(asked, &())
            }
            Message::Watch(name) => {
                // Two that watch at once, as in a handler with tasks of its own.
                let (other, log) = (cx.clone(), self.log.clone());
                let second = tokio::spawn(async move {
                    other.cancelled().await;
                    log.say("the task saw it");
                });
                cx.cancelled().await;
                second.await.unwrap();
                self.log.say(format!("{name} saw its caller leave"));
                sleep(Duration::from_millis(1)).await;
                self.log.say(format!("{name} ran to its end"));
                Answer::value(asked, &())
            }
            Message::WatchInTheBackground(name) => {
                let (cx, log) = (cx.clone(), self.log.clone());
                tokio::spawn(async move {
                    cx.cancelled().await;
                    log.say(format!("{name} saw a caller leave"));
                });
                Answer::value(asked, &())
            }
            Message::Boom(why) => panic!("{why}"),
            Message::Where => Answer::value(asked, &(cx.path(), cx.incarnation())),
            Message::Count(to, millis, stalls) => {
                let (pause, log) = (Duration::from_millis(millis), self.log.clone());
                let numbers = Numbers { next: 0, to, stalls, pause, timer: Box::pin(sleep(pause)), log };
                flow::begin(cx, asked, numbers, |number| match number {
                    13 => encode(&Unspeakable),
                    number => encode(number),
                })
            }
            Message::Unspeakable => {
                self.log.say("unspeakable");
                Answer::value(asked, &Unspeakable)
            }
            Message::Leave => {
                cx.stop();
                self.log.say("leave");
                Answer::value(asked, &())
            }
            Message::Again => {
                let mailbox = self.log.mailbox.lock().unwrap().clone().unwrap();
                let again = Parcel {
                    id: 0,
                    ask: false,
                    deadline: None,
                    trace: None,
                    chain: None,
                    body: encode(&Message::Again).unwrap(),
                    from: Returns::new(),
                };
                assert!(mailbox.push(again).is_ok());
                Answer::None
            }
            Message::Later(_) => match Reply::new(cx, asked, Answer::value) {
                Ok(reply) => {
                    self.replies.push(reply);
                    Answer::None
                }
                Err(refused) => refused,
            },
            Message::LaterChecked(well) => match Reply::<Result<u64, String>>::new(cx, asked, Answer::result)
            {
                Ok(reply) => {
                    cx.spawn(async move {
                        sleep(millis(5)).await;
                        assert_eq!(reply.send(if well { Ok(7) } else { Err("unwell".to_owned()) }), Ok(()));
                    });
                    Answer::None
                }
                Err(refused) => refused,
            },
            Message::LaterUnspeakable => match Reply::new(cx, asked, Answer::value) {
                Ok(reply) => {
                    assert!(reply.send(Unspeakable).is_ok(), "its caller is told something else instead");
                    Answer::None
                }
                Err(refused) => refused,
            },
            Message::LaterBoom => match Reply::<()>::new(cx, asked, Answer::value) {
                Ok(_held) => {
                    sleep(millis(1)).await;
                    panic!("no such luck")
                }
                Err(refused) => refused,
            },
            Message::GiveAway => {
                self.log.given.lock().unwrap().append(&mut self.replies);
                Answer::value(asked, &())
            }
            Message::AnswerNext(n) => Answer::value(asked, &self.replies.remove(0).send(n).is_ok()),
            Message::DropNext => {
                drop(self.replies.remove(0));
                Answer::value(asked, &())
            }
            Message::Cut(name, n) => {
                let log = self.log.clone();
                let working = async {
                    let _dropped = Says { log: log.clone(), line: format!("{name} is dropped") };
                    self.log.say(format!("{name} begins"));
                    sleep(millis(n)).await;
                    self.log.say(format!("{name} ends"));
                };
                match cx.while_awaited(working).await {
                    Ok(()) => Answer::value(asked, &()),
                    Err(left) => left,
                }
            }
            Message::TellItself(n) => {
                let me: ProbeHandle = cx.me();
                let mut told = (0, None);
                while told.0 < n && told.1.is_none() {
                    match me.add(1).tell().await {
                        Ok(()) => told.0 += 1,
                        Err(error) => told.1 = Some(error.to_string()),
                    }
                }
                Answer::value(asked, &told)
            }
            Message::AskItself => {
                let asked_itself = cx.me::<ProbeHandle>().add(1).await;
                Answer::result::<(), Error>(asked, &asked_itself.map(drop).map_err(Error::from))
            }
            Message::AskItselfFromTask => {
                let (me, log) = (cx.me::<ProbeHandle>(), self.log.clone());
                cx.spawn(async move {
                    let total = me.add(1).await;
                    log.say(format!("the task got {total:?}"));
                });
                Answer::value(asked, &())
            }
            Message::MistakeItself => {
                let _: Box<Mistaken> = cx.me();
                Answer::None
            }
            Message::Spawn(name) => {
                cx.spawn(background(self.log.clone(), name));
                Answer::value(asked, &())
            }
            Message::SpawnBoom => {
                cx.spawn(async { panic!("no such luck") });
                Answer::value(asked, &())
            }
            Message::After(n) => {
                let timer = cx.after(millis(n), cx.me::<ProbeHandle>().add(1));
                self.log.timers.lock().unwrap().push(timer);
                Answer::value(asked, &())
            }
            Message::Every(n) => {
                let me: ProbeHandle = cx.me();
                let timer = cx.every(millis(n), move || me.nap("tick", 35));
                self.log.timers.lock().unwrap().push(timer);
                Answer::value(asked, &())
            }
            Message::Block => {
                let (until, begun) = self.log.blocks.lock().unwrap().take().unwrap();
                begun.send(()).unwrap();
                until.recv().unwrap();
                std::future::pending().await
            }
            Message::Cancel => {
                self.log.timers.lock().unwrap().iter().for_each(Timer::cancel);
                Answer::value(asked, &())
            }
        }
    }

    async fn stopped(&mut self, cx: &Context) {
        assert_eq!(cx.deadline(), None);
        self.log.say("stopped");
    }
}

/// What a task of the actor does until it is ended.
async fn background(log: Log, name: String) {
    let _dropped = Says { log: log.clone(), line: format!("{name} is dropped") };
    log.say(format!("{name} begins"));
    std::future::pending().await
}

/// Says something when it is dropped.
struct Says {
    log: Log,
    line: String,
}

impl Drop for Says {
    fn drop(&mut self) {
        self.log.say(self.line.clone());
    }
}

/// The handle of some other actor.
struct Mistaken;

impl From<ActorRef> for Box<Mistaken> {
    fn from(_: ActorRef) -> Self {
        Box::new(Mistaken)
    }
}

// ---------------------------------------------------------------- what `#[actor(not_send)]` would write

/// An actor that stays on its thread.
struct Stay {
    total: Rc<Cell<u64>>,
}

impl actor::AnyActor for Stay {
    type Args = u64;
    type Message = u64;
    type Handle = ProbeHandle;

    fn name() -> &'static str {
        "by_hand::Stay"
    }

    fn place() -> Place {
        Place::new(file!(), 2, 1)
    }

    async fn start(total: u64, _: &Context) -> Result<Stay, Error> {
        Ok(Stay { total: Rc::new(Cell::new(total)) })
    }

    async fn handle(&mut self, n: u64, asked: bool, cx: &Context) -> Answer {
        let total = self.total.clone();
        sleep(millis(1)).await;
        total.set(total.get() + n);
        cx.stop();
        Answer::value(asked, &total.get())
    }
}

// ---------------------------------------------------------------- the stage

#[derive(Serialize, Deserialize)]
struct Setup {
    log: u64,
    start: String,
}

/// A stream that says when it is dropped.
struct Numbers {
    next: u64,
    to: u64,
    stalls: bool,
    pause: Duration,
    timer: Pin<Box<Sleep>>,
    log: Log,
}

impl Stream for Numbers {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<u64>> {
        if self.next == self.to {
            return if self.stalls { Poll::Pending } else { Poll::Ready(None) };
        }
        if !self.pause.is_zero() {
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let next = Instant::now() + self.pause;
            self.timer.as_mut().reset(next);
        }
        self.next += 1;
        Poll::Ready(Some(self.next - 1))
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.log.say(format!("dropped at {}", self.next));
    }
}

struct Unspeakable;

impl Serialize for Unspeakable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("words fail me"))
    }
}

/// What a probe wrote down. Arguments travel encoded, so it is found by number.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    sent: Arc<AtomicU64>,
    handled: Arc<AtomicU64>,
    mailbox: Arc<Mutex<Option<Arc<Mailbox>>>>,
    given: Arc<Mutex<Vec<Reply<u64>>>>,
    timers: Arc<Mutex<Vec<Timer>>>,
    blocks: Arc<Mutex<Option<Blocks>>>,
}

/// Until when somebody blocks his thread, and to be told that he does.
type Blocks = (std::sync::mpsc::Receiver<()>, tokio::sync::oneshot::Sender<()>);

static LOGS: LazyLock<Mutex<HashMap<u64, Log>>> = LazyLock::new(Mutex::default);

impl Log {
    fn new() -> (u64, Log) {
        let (mut logs, log) = (LOGS.lock().unwrap(), Log::default());
        let number = logs.len() as u64;
        logs.insert(number, log.clone());
        (number, log)
    }

    fn find(number: u64) -> Log {
        LOGS.lock().unwrap()[&number].clone()
    }

    fn say(&self, line: impl Into<String>) {
        self.lines.lock().unwrap().push(line.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

/// A seat, whoever sits there, and a supervisor that does what the test says.
struct Stage {
    seat: Arc<Seat>,
    probe: ProbeHandle,
    log: Log,
    start: Local<Probe>,
    incarnation: u64,
    watchdog: Option<Duration>,
}

impl Stage {
    fn vacant(start: &str) -> Stage {
        let (number, log) = Log::new();
        let start = Local::<Probe>::new("probe", &Setup { log: number, start: start.to_owned() });
        let seat = Seat::new("/test/probe".to_owned(), Start::actor(&start));
        let probe = start.handle(ActorRef::new(seat.clone()));
        Stage { seat, probe, log, start, incarnation: 0, watchdog: None }
    }

    async fn occupied() -> Stage {
        let mut stage = Stage::vacant("well");
        stage.next().await;
        stage
    }

    /// One of its handlers may take so long.
    async fn watched(limit: Duration) -> Stage {
        let mut stage = Stage::vacant("well");
        stage.watchdog = Some(limit);
        stage.next().await;
        stage
    }

    fn order(&mut self) -> Order {
        self.incarnation += 1;
        let timeout = Duration::from_secs(10);
        Order {
            seat: self.seat.clone(),
            incarnation: self.incarnation,
            timeout,
            presence: Presence::new().0,
            settings: Default::default(),
            heartbeat: Heartbeat::default(),
            watchdog: self.watchdog,
            args: None,
        }
    }

    /// The next incarnation sits down.
    async fn next(&mut self) -> Arc<dyn Child> {
        let order = self.order();
        let Started { child, line } = self.start.start(order).await.unwrap_or_else(|fault| panic!("{fault}"));
        self.seat.occupy(self.incarnation, child.clone(), line);
        assert_eq!(self.log.take(), [format!("start {}", self.incarnation)]);
        child
    }

    async fn fails(&mut self) -> Fault {
        let order = self.order();
        match self.start.start(order).await {
            Ok(_) => panic!("it was to fail"),
            Err(fault) => fault,
        }
    }

    fn child(&self) -> Arc<dyn Child> {
        match self.seat.occupancy() {
            Occupancy::Occupied(occupant) => occupant.child,
            _ => panic!("nobody sits there"),
        }
    }
}

/// Polls once: the request takes its place in line.
fn in_line<F: Future>(future: F) -> std::pin::Pin<Box<F>> {
    let mut future = Box::pin(future);
    assert!(future.as_mut().poll(&mut Task::from_waker(Waker::noop())).is_pending());
    future
}

/// Lets everything happen that needs no time.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What comes back from a mailbox without a seat.
#[derive(Default)]
struct Returns {
    answers: Mutex<Vec<(u64, Answer)>>,
    late: Mutex<Vec<(u64, Answer)>>,
    places: AtomicU64,
}

impl Returns {
    fn new() -> Arc<Returns> {
        Arc::default()
    }
}

impl ReturnPath for Returns {
    fn answer(&self, id: u64, answer: Answer) {
        self.answers.lock().unwrap().push((id, answer));
    }

    fn reply(&self, id: u64, answer: Answer) {
        self.late.lock().unwrap().push((id, answer));
    }

    fn release(&self, places: u32) {
        self.places.fetch_add(u64::from(places), Ordering::SeqCst);
    }

    fn item(&self, id: u64, _: hatchery_wire::Body) {
        panic!("{id} is no stream");
    }
}

// ---------------------------------------------------------------- answers

#[tokio::test(start_paused = true)]
async fn an_actor_written_by_hand_answers() {
    let stage = Stage::occupied().await;
    assert_eq!(stage.probe.add(2).await.unwrap(), 2);
    stage.probe.add(3).tell().await.unwrap();
    assert_eq!(stage.probe.add(0).await.unwrap(), 5);
    assert_eq!(stage.probe.r#where().await.unwrap(), ("/test/probe".to_owned(), 1));
    assert!(stage.probe.is_alive());
    assert_eq!(stage.probe.incarnation(), Some(1));
    assert_eq!(stage.probe.pid(), Some(std::process::id()));
}

#[tokio::test(start_paused = true)]
async fn an_err_of_a_handler_is_a_reply_and_no_crash() {
    let stage = Stage::occupied().await;
    assert_eq!(stage.probe.divide(6, 3).await.unwrap(), 2);
    let error = stage.probe.divide(1, 0).await.unwrap_err();
    assert_eq!(error.handler_error().map(String::as_str), Some("division by zero"));
    assert!(!error.is_crash() && error.maybe_executed());
    assert_eq!(stage.probe.incarnation(), Some(1));
    assert_eq!(stage.probe.divide(4, 2).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_of_one_handle_are_handled_in_the_order_of_their_first_poll() {
    let stage = Stage::occupied().await;
    // Made in one order, polled in another, asks and tells mixed, and more than the window.
    let made: Vec<_> = (0..300).map(|n| (n, stage.probe.nap(n.to_string(), 1))).collect();
    let mut asks = Vec::new();
    for (n, ask) in made.into_iter().rev() {
        if n % 2 == 0 {
            asks.push(tokio::spawn(ask));
        } else {
            let tell = ask.tell();
            asks.push(tokio::spawn(async move { tell.await.map_err(|error| panic!("{error}")) }));
        }
        tokio::task::yield_now().await;
    }
    for ask in asks {
        ask.await.unwrap().unwrap();
    }
    stage.probe.add(0).await.unwrap();
    assert_eq!(stage.log.take(), (0..300).rev().map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_can_not_be_decoded_is_answered_without_execution() {
    let stage = Stage::occupied().await;
    let error = stage.probe.gibberish().await.unwrap_err();
    assert!(matches!(error.fault(), Some(Fault::Undecodable(_))), "{error}");
    assert!(!error.maybe_executed() && !error.is_crash());
    stage.probe.gibberish().tell().await.unwrap();
    assert_eq!(stage.probe.add(1).await.unwrap(), 1);
    assert_eq!(stage.probe.incarnation(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_can_not_be_encoded_is_an_error_that_says_it_ran() {
    let stage = Stage::occupied().await;
    let error = stage.probe.unspeakable().await.unwrap_err();
    assert!(error.maybe_executed() && error.to_string().contains("words fail me"), "{error}");
    assert_eq!(stage.probe.add(1).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_can_not_be_decoded_is_an_error_that_says_it_ran() {
    let stage = Stage::occupied().await;
    let never =
        |_: hatchery_wire::Body| -> Result<u8, DecodeError> { hatchery_wire::decode(&encode("x").unwrap()) };
    let ask: Ask<u8> = stage.probe.actor.ask_with("add", &Message::Add(1), never);
    let error = ask.await.unwrap_err();
    assert!(matches!(error.fault(), Some(Fault::BadAnswer(_))), "{error}");
    assert!(error.maybe_executed());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_not_be_encoded_is_not_sent() {
    let stage = Stage::occupied().await;
    let ask: Ask<()> = stage.probe.actor.ask("unspeakable", &Unspeakable);
    let error = ask.await.unwrap_err();
    assert!(matches!(error.fault(), Some(Fault::NotSent(_))) && !error.maybe_executed(), "{error}");
}

// ---------------------------------------------------------------- crashes

fn assert_boom<E>(error: &CallError<E>) {
    let panic = error.exit().and_then(Exit::panic).expect("the exit has the panic");
    assert_eq!(panic.message, "no such luck");
    assert!(panic.place.as_deref().unwrap().contains("by_hand.rs:"), "{panic}");
    assert!(error.is_crash() && error.maybe_executed());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_handler_ends_the_actor_and_its_callers_learn_message_and_place() {
    let stage = Stage::occupied().await;
    let child = stage.child();
    let (running, waiting) = tokio::join!(stage.probe.boom("no such luck"), stage.probe.add(1));
    assert_boom(&running.unwrap_err());
    assert_boom(&waiting.unwrap_err());
    assert_eq!(child.exited().await.code(), Some(101));
    assert!(!stage.probe.is_alive());
    assert_eq!(stage.log.take(), [""; 0], "`stopped` is for orderly stops");
}

#[tokio::test(start_paused = true)]
async fn requests_in_line_outlive_a_crash_and_those_in_the_mailbox_end_with_it() {
    let mut stage = Stage::occupied().await;
    let boom = tokio::spawn(stage.probe.boom("no such luck"));
    let adds: Vec<_> = (0..300).map(|_| tokio::spawn(stage.probe.add(1))).collect();
    assert_boom(&boom.await.unwrap().unwrap_err());
    settle().await;
    stage.next().await;
    let mut outcomes = Vec::new();
    for add in adds {
        outcomes.push(add.await.unwrap());
    }
    outcomes[..255].iter().for_each(|outcome| assert_boom(outcome.as_ref().unwrap_err()));
    let answers: Vec<u64> = outcomes.drain(255..).map(Result::unwrap).collect();
    assert_eq!(answers, (1..=45).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn asks_before_a_vacant_seat_wait_for_the_next_incarnation() {
    let mut stage = Stage::vacant("well");
    let ask = tokio::spawn(stage.probe.add(1));
    settle().await;
    stage.next().await;
    assert_eq!(ask.await.unwrap().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_killed_actor_ends_in_mid_request_and_its_callers_know() {
    let stage = Stage::occupied().await;
    let child = stage.child();
    let nap = tokio::spawn(stage.probe.nap("nap", 1000));
    settle().await;
    child.stop(Rung::Kill);
    let error = nap.await.unwrap().unwrap_err();
    assert!(error.is_crash() && error.maybe_executed(), "{error}");
    assert_eq!(child.exited().await.status(), Status::Unknown);
    assert!(!stage.probe.is_alive());
}

// ---------------------------------------------------------------- deadlines and callers who leave

#[tokio::test(start_paused = true)]
async fn a_timeout_before_a_vacant_seat_says_that_the_request_did_not_run() {
    let mut stage = Stage::vacant("well");
    let begun = Instant::now();
    let error = stage.probe.add(1).timeout(millis(50)).await.unwrap_err();
    assert!(error.is_timeout() && !error.maybe_executed());
    assert_eq!(begun.elapsed(), millis(50));
    let error = stage.probe.add(1).timeout(millis(50)).tell().await.unwrap_err();
    assert!(error.is_timeout());
    stage.next().await;
    assert_eq!(stage.probe.add(0).await.unwrap(), 0, "neither has run");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_a_request_that_was_sent_says_that_it_may_have_run() {
    let stage = Stage::occupied().await;
    let error = stage.probe.nap("nap", 1000).timeout(millis(50)).await.unwrap_err();
    assert!(error.is_timeout() && error.maybe_executed());
    assert_eq!(stage.log.take(), ["nap"]);
}

#[tokio::test(start_paused = true)]
async fn an_ask_waits_30_seconds_unless_told_otherwise() {
    let stage = Stage::vacant("well");
    let begun = Instant::now();
    assert!(stage.probe.add(1).await.unwrap_err().is_timeout());
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
    assert!(stage.probe.add(1).tell().await.unwrap_err().is_timeout());
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_beyond_the_clock_waits_as_long_as_it_takes() {
    let mut stage = Stage::vacant("well");
    let ask = tokio::spawn(stage.probe.add(1).timeout(Duration::MAX));
    sleep(Duration::from_secs(24 * 3600)).await;
    stage.next().await;
    assert_eq!(ask.await.unwrap().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_deadline_passes_by_the_workers_clock_never_starts() {
    let (number, log) = Log::new();
    let (mailbox, returns) = (Mailbox::new(), Returns::new());
    let cx = Context::new::<Probe>("/test/probe", 1, mailbox.clone());
    let probe = Probe::start(Setup { log: number, start: "well".to_owned() }, &cx).await.unwrap();
    for (id, after, name) in [(1, 100, "first"), (2, 49, "second"), (3, 51, "third")] {
        let body = encode(&Message::Nap(name.to_owned(), 50)).unwrap();
        let deadline = Some(Instant::now() + millis(after));
        assert!(
            mailbox
                .push(Parcel {
                    id,
                    ask: true,
                    deadline,
                    trace: None,
                    chain: None,
                    body,
                    from: returns.clone()
                })
                .is_ok()
        );
    }
    let running = tokio::spawn(async move { runner::run(probe, &mailbox, cx).await });
    sleep(millis(200)).await;
    assert_eq!(log.take(), ["start 1", "first", "third"]);
    let answers = returns.answers.lock().unwrap().clone();
    assert_eq!(answers[1], (2, Answer::Fault(Fault::Timeout { maybe_executed: false })));
    assert_eq!(answers.len(), 3, "each gave back its place");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_tell_that_was_sent_has_no_deadline_any_more() {
    let stage = Stage::occupied().await;
    let nap = tokio::spawn(stage.probe.nap("nap", 100));
    settle().await;
    stage.probe.add(1).timeout(millis(10)).tell().await.unwrap();
    nap.await.unwrap().unwrap();
    assert_eq!(stage.probe.add(0).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_withdrawn_before_it_begins_never_starts() {
    let stage = Stage::occupied().await;
    let running = tokio::spawn(stage.probe.nap("running", 100));
    settle().await;
    let dropped = in_line(stage.probe.nap("dropped", 1));
    let overdue = in_line(stage.probe.nap("overdue", 1).timeout(millis(10)));
    let kept = tokio::spawn(stage.probe.nap("kept", 1));
    drop(dropped);
    assert!(overdue.await.unwrap_err().is_timeout());
    running.await.unwrap().unwrap();
    kept.await.unwrap().unwrap();
    assert_eq!(stage.log.take(), ["running", "kept"]);
    // Their places have come back.
    let asks: Vec<_> = (0..200).map(|_| tokio::spawn(stage.probe.add(1))).collect();
    for ask in asks {
        ask.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_tell_dropped_in_line_is_not_sent() {
    let mut stage = Stage::vacant("well");
    drop(in_line(stage.probe.nap("dropped", 1).tell()));
    stage.next().await;
    stage.probe.add(0).await.unwrap();
    assert_eq!(stage.log.take(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_running_request_sees_that_its_caller_left_and_runs_to_its_end() {
    let stage = Stage::occupied().await;
    let watch = tokio::spawn(stage.probe.watch("dropped"));
    settle().await;
    watch.abort();
    assert_eq!(stage.probe.add(1).await.unwrap(), 1);
    assert_eq!(
        stage.log.take(),
        ["the task saw it", "dropped saw its caller leave", "dropped ran to its end"]
    );
    // The same for one whose caller has no patience.
    let error = stage.probe.watch("overdue").timeout(millis(10)).await.unwrap_err();
    assert!(error.is_timeout() && error.maybe_executed());
    assert_eq!(stage.probe.add(1).await.unwrap(), 2);
    assert_eq!(stage.log.take().last().map(String::as_str), Some("overdue ran to its end"));
}

#[tokio::test(start_paused = true)]
async fn what_outlives_its_request_does_not_take_another_caller_for_its_own() {
    let stage = Stage::occupied().await;
    stage.probe.watch_in_the_background("first").await.unwrap();
    let watch = tokio::spawn(stage.probe.watch("second"));
    settle().await;
    watch.abort();
    stage.probe.add(1).await.unwrap();
    let log = stage.log.take();
    assert!(log.iter().any(|line| line == "second saw its caller leave"));
    assert!(!log.iter().any(|line| line.starts_with("first")), "{log:?}");
}

#[test]
fn a_request_polled_without_a_runtime_panics_and_is_not_in_line() {
    let mut stage = Stage::vacant("well");
    let mut add = Box::pin(stage.probe.add(1));
    let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        add.as_mut().poll(&mut Task::from_waker(Waker::noop())).is_ready()
    }));
    assert!(polled.is_err());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        stage.next().await;
        assert_eq!(stage.probe.add(0).await.unwrap(), 0);
    });
}

// ---------------------------------------------------------------- the window

#[tokio::test(start_paused = true)]
async fn ten_thousand_tells_to_a_slow_handler_never_have_more_than_a_window_in_its_mailbox() {
    let stage = Stage::occupied().await;
    let (probe, log) = (stage.probe.clone(), stage.log.clone());
    let teller = tokio::spawn(async move {
        for _ in 0..10_000 {
            // It waits for room for as long as the mailbox is full.
            probe.nap("", 1).timeout(Duration::from_secs(3600)).tell().await.unwrap();
            let sent = log.sent.fetch_add(1, Ordering::SeqCst) + 1;
            let handled = log.handled.load(Ordering::SeqCst);
            assert!(sent - handled <= u64::from(WINDOW), "{} in the mailbox", sent - handled);
        }
    });
    teller.await.unwrap();
    stage.probe.nap("", 0).await.unwrap();
    assert_eq!(stage.log.handled.load(Ordering::SeqCst), 10_001);
}

#[tokio::test(start_paused = true)]
async fn handled_tells_give_back_their_places_also_when_there_are_only_a_few() {
    let (number, _log) = Log::new();
    let (mailbox, returns) = (Mailbox::new(), Returns::new());
    let cx = Context::new::<Probe>("/test/probe", 1, mailbox.clone());
    let probe = Probe::start(Setup { log: number, start: "well".to_owned() }, &cx).await.unwrap();
    let running = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { runner::run(probe, &mailbox, cx).await }
    });
    for round in 1..=3 {
        for id in 0..5 {
            let body = encode(&Message::Add(1)).unwrap();
            let parcel = Parcel {
                id,
                ask: false,
                deadline: None,
                trace: None,
                chain: None,
                body,
                from: returns.clone(),
            };
            assert!(mailbox.push(parcel).is_ok());
        }
        settle().await;
        assert_eq!(returns.places.load(Ordering::SeqCst), 5 * round);
    }
    assert_eq!(*returns.answers.lock().unwrap(), []);
    mailbox.stop();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_that_never_runs_empty_does_not_keep_others_from_running() {
    let (number, log) = Log::new();
    let mailbox = Mailbox::new();
    *log.mailbox.lock().unwrap() = Some(mailbox.clone());
    let cx = Context::new::<Probe>("/test/probe", 1, mailbox.clone());
    let probe = Probe::start(Setup { log: number, start: "well".to_owned() }, &cx).await.unwrap();
    let body = encode(&Message::Again).unwrap();
    let first =
        Parcel { id: 0, ask: false, deadline: None, trace: None, chain: None, body, from: Returns::new() };
    assert!(mailbox.push(first).is_ok());
    let running = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { runner::run(probe, &mailbox, cx).await }
    });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    mailbox.stop();
    running.await.unwrap().unwrap();
}

// ---------------------------------------------------------------- answers that are put off

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_put_off_arrives_whenever_it_is_given() {
    let stage = Stage::occupied().await;
    let later = tokio::spawn(stage.probe.later());
    sleep(Duration::from_secs(24 * 3600)).await;
    assert!(!later.is_finished(), "it waits without a deadline");
    assert!(stage.probe.answer_next(7).await.unwrap());
    assert_eq!(later.await.unwrap().unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_put_off_result_is_split_and_a_put_off_answer_that_can_not_be_encoded_is_an_error() {
    let stage = Stage::occupied().await;
    assert_eq!(stage.probe.later_checked(true).await.unwrap(), 7);
    let error = stage.probe.later_checked(false).await.unwrap_err();
    assert_eq!(error.handler_error().map(String::as_str), Some("unwell"));
    let error = stage.probe.later_unspeakable().await.unwrap_err();
    assert!(error.maybe_executed() && error.to_string().contains("words fail me"), "{error}");
    assert_eq!(stage.probe.incarnation(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_put_off_request_comes_back_when_its_handler_returns() {
    let stage = Stage::occupied().await;
    let waiting: Vec<_> = (0..1000).map(|_| tokio::spawn(stage.probe.later())).collect();
    settle().await;
    for n in 0..1000 {
        assert!(stage.probe.answer_next(n).await.unwrap());
    }
    for (n, waiting) in waiting.into_iter().enumerate() {
        assert_eq!(waiting.await.unwrap().unwrap(), n as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_knows_that_its_caller_has_left_and_gives_the_value_back() {
    let stage = Stage::occupied().await;
    let dropped = tokio::spawn(stage.probe.later());
    let kept = tokio::spawn(stage.probe.later());
    settle().await;
    stage.probe.give_away().await.unwrap();
    let [first, second]: [Reply<u64>; 2] =
        std::mem::take(&mut *stage.log.given.lock().unwrap()).try_into().unwrap();
    assert!(!first.is_closed() && !second.is_closed());
    {
        // Dropped half-way, it does no harm.
        let _closed = in_line(first.closed());
    }
    dropped.abort();
    first.closed().await;
    assert!(first.is_closed() && !second.is_closed());
    assert_eq!(first.send(1), Err(1));
    assert_eq!(second.send(2), Ok(()));
    assert_eq!(kept.await.unwrap().unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_closed_when_the_deadline_passes_by_the_workers_clock() {
    let (number, log) = Log::new();
    let (mailbox, returns) = (Mailbox::new(), Returns::new());
    let cx = Context::new::<Probe>("/test/probe", 1, mailbox.clone());
    let probe = Probe::start(Setup { log: number, start: "well".to_owned() }, &cx).await.unwrap();
    let running = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { runner::run(probe, &mailbox, cx).await }
    });
    let begun = Instant::now();
    for id in 0..2 {
        let body = encode(&Message::Later(Vec::new())).unwrap();
        let deadline = Some(begun + millis(50));
        assert!(
            mailbox
                .push(Parcel {
                    id,
                    ask: true,
                    deadline,
                    trace: None,
                    chain: None,
                    body,
                    from: returns.clone()
                })
                .is_ok()
        );
    }
    let body = encode(&Message::GiveAway).unwrap();
    let give_away =
        Parcel { id: 2, ask: false, deadline: None, trace: None, chain: None, body, from: returns.clone() };
    assert!(mailbox.push(give_away).is_ok());
    settle().await;
    assert_eq!(returns.places.load(Ordering::SeqCst), 3);
    let [one, other]: [Reply<u64>; 2] = std::mem::take(&mut *log.given.lock().unwrap()).try_into().unwrap();
    one.closed().await;
    assert_eq!(begun.elapsed(), millis(50));
    assert_eq!(one.send(1), Err(1));
    drop(other);
    // Whoever still waits hears of the deadline, not of what became of the reply.
    let late = Answer::Fault(Fault::Timeout { maybe_executed: true });
    assert_eq!(*returns.late.lock().unwrap(), [(0, late.clone()), (1, late)]);
    mailbox.stop();
    running.await.unwrap().unwrap();
    assert_eq!(returns.late.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_the_put_off_answer_of_a_tell() {
    let stage = Stage::occupied().await;
    stage.probe.later().tell().await.unwrap();
    stage.probe.give_away().await.unwrap();
    let reply = stage.log.given.lock().unwrap().pop().unwrap();
    assert!(!reply.is_closed());
    assert!(tokio::time::timeout(millis(100), reply.closed()).await.is_err());
    assert_eq!(reply.send(1), Err(1));
    // It waits for room like any other, 30 s.
    let vacant = Stage::vacant("well");
    assert!(vacant.probe.later().tell().await.unwrap_err().is_timeout());
}

#[tokio::test(start_paused = true)]
async fn a_reply_dropped_unanswered_is_an_error_that_says_so() {
    let stage = Stage::occupied().await;
    let later = tokio::spawn(stage.probe.later());
    settle().await;
    stage.probe.drop_next().await.unwrap();
    let error = later.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("its `Reply` was dropped unanswered"), "{error}");
    assert!(error.maybe_executed() && !error.is_crash() && !error.is_stopping());
    assert_eq!(stage.probe.incarnation(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_reply_lost_in_a_panic_that_is_not_the_actors_is_an_error_that_says_so() {
    let stage = Stage::occupied().await;
    let later = tokio::spawn(stage.probe.later());
    settle().await;
    stage.probe.give_away().await.unwrap();
    let reply = stage.log.given.lock().unwrap().pop().unwrap();
    let elsewhere = tokio::spawn(async move {
        let _held = reply;
        panic!("not the actor's")
    });
    assert!(elsewhere.await.map(|never: ()| never).unwrap_err().is_panic());
    let error = later.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("its `Reply` was dropped unanswered"), "{error}");
    assert_eq!(stage.probe.incarnation(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn replies_still_open_when_the_actor_stops_are_errors_that_say_so() {
    let stage = Stage::occupied().await;
    let given = tokio::spawn(stage.probe.later());
    settle().await;
    stage.probe.give_away().await.unwrap();
    let kept = tokio::spawn(stage.probe.later());
    settle().await;
    stage.probe.stop().await.unwrap();
    for asked in [given, kept] {
        let error = asked.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("the actor stopped while its `Reply` was open"), "{error}");
        assert!(error.maybe_executed() && !error.is_crash() && !error.is_stopping());
    }
    let reply = stage.log.given.lock().unwrap().pop().unwrap();
    reply.closed().await;
    assert_eq!(reply.send(1), Err(1));
}

#[tokio::test(start_paused = true)]
async fn the_callers_of_an_actor_that_dies_with_open_replies_get_the_crash() {
    for how in ["a panic", "the handler that has the reply", "a kill", "a task"] {
        let stage = Stage::occupied().await;
        let given = tokio::spawn(stage.probe.later());
        settle().await;
        stage.probe.give_away().await.unwrap();
        let kept = tokio::spawn(stage.probe.later());
        settle().await;
        match how {
            "a panic" => assert_boom(&stage.probe.boom("no such luck").await.unwrap_err()),
            "a kill" => stage.probe.kill(),
            "a task" => stage.probe.spawn_boom().await.unwrap(),
            _ => assert_boom(&stage.probe.later_boom().await.unwrap_err()),
        }
        for asked in [given, kept] {
            let error = asked.await.unwrap().unwrap_err();
            assert!(error.is_crash() && error.maybe_executed(), "{how}: {error}");
        }
        let reply = stage.log.given.lock().unwrap().pop().unwrap();
        reply.closed().await;
        assert_eq!(reply.send(1), Err(1));
    }
}

// ---------------------------------------------------------------- handlers that end with their caller

#[tokio::test(start_paused = true)]
async fn a_cut_handler_is_dropped_when_its_caller_leaves() {
    let stage = Stage::occupied().await;
    stage.probe.cut("patient", 50).await.unwrap();
    assert_eq!(stage.log.take(), ["patient begins", "patient ends", "patient is dropped"]);

    let dropped = tokio::spawn(stage.probe.cut("dropped", 1000));
    sleep(millis(500)).await;
    assert_eq!(stage.log.take(), ["dropped begins"]);
    dropped.abort();
    assert_eq!(stage.probe.add(1).await.unwrap(), 1);
    assert_eq!(stage.log.take(), ["dropped is dropped"]);

    let begun = Instant::now();
    let late = stage.probe.cut("late", 1000).timeout(millis(10)).await.unwrap_err();
    assert!(late.is_timeout() && late.maybe_executed(), "{late}");
    assert_eq!(stage.probe.add(1).await.unwrap(), 2);
    assert_eq!((begun.elapsed(), stage.log.take().len()), (millis(10), 2));

    // A tell has nobody who could leave.
    stage.probe.cut("told", 50).timeout(millis(10)).tell().await.unwrap();
    assert_eq!(stage.probe.add(1).await.unwrap(), 3);
    assert_eq!(stage.log.take(), ["told begins", "told ends", "told is dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_cut_handler_is_dropped_when_the_deadline_passes_by_the_workers_clock() {
    let (number, log) = Log::new();
    let (mailbox, returns) = (Mailbox::new(), Returns::new());
    let cx = Context::new::<Probe>("/test/probe", 1, mailbox.clone());
    let probe = Probe::start(Setup { log: number, start: "well".to_owned() }, &cx).await.unwrap();
    let body = encode(&Message::Cut("late".to_owned(), 1000)).unwrap();
    let deadline = Some(Instant::now() + millis(50));
    assert!(
        mailbox
            .push(Parcel {
                id: 1,
                ask: true,
                deadline,
                trace: None,
                chain: None,
                body,
                from: returns.clone()
            })
            .is_ok()
    );
    let running = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { runner::run(probe, &mailbox, cx).await }
    });
    sleep(millis(60)).await;
    assert_eq!(log.take(), ["start 1", "late begins", "late is dropped"]);
    let late = Answer::Fault(Fault::Timeout { maybe_executed: true });
    assert_eq!(*returns.answers.lock().unwrap(), [(1, late)], "it gives back its place");
    mailbox.stop();
    running.await.unwrap().unwrap();
}

// ---------------------------------------------------------------- actors that stay on their thread

#[tokio::test(start_paused = true)]
async fn an_actor_whose_futures_are_not_send_runs_on_its_thread() {
    let (mailbox, returns) = (Mailbox::new(), Returns::new());
    let cx = Context::new::<Probe>("/test/stay", 1, mailbox.clone());
    let stay = runner::start::<Stay>(40, &cx).await.unwrap().unwrap();
    let body = encode(&2_u64).unwrap();
    assert!(
        mailbox
            .push(Parcel {
                id: 1,
                ask: true,
                deadline: None,
                trace: None,
                chain: None,
                body,
                from: returns.clone()
            })
            .is_ok()
    );
    runner::run(stay, &mailbox, cx).await.unwrap();
    assert_eq!(*returns.answers.lock().unwrap(), [(1, Answer::Value(encode(&42_u64).unwrap()))]);
}

// ---------------------------------------------------------------- an actor and itself

#[tokio::test(start_paused = true)]
async fn an_actor_can_tell_itself_as_much_as_its_window_holds() {
    let stage = Stage::occupied().await;
    assert_eq!(stage.probe.tell_itself(256).await.unwrap(), (256, None));
    assert_eq!(stage.probe.add(0).await.unwrap(), 256);
    // One more would have to wait for the handler that sends it.
    let begun = Instant::now();
    let (told, refused) = stage.probe.tell_itself(300).await.unwrap();
    assert!(
        told == 256 && refused.as_ref().unwrap().contains("256 messages of the actor to itself"),
        "{refused:?}"
    );
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(stage.probe.add(0).await.unwrap(), 512);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_would_wait_for_itself_is_told_so_at_once() {
    let stage = Stage::occupied().await;
    let begun = Instant::now();
    let error = stage.probe.ask_itself().await.unwrap_err();
    let error = error.handler_error().unwrap();
    assert!(
        error.is_deadlock() && error.to_string().contains("is waiting for itself") && !error.maybe_executed(),
        "{error}"
    );
    let mut starting = Stage::vacant("asking itself");
    let fault = starting.fails().await;
    assert!(matches!(&fault, Fault::StartFailed(why) if why.contains("is waiting for itself")), "{fault}");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // A task of it may wait.
    stage.probe.ask_itself_from_a_task().await.unwrap();
    settle().await;
    assert_eq!(stage.log.take(), ["the task got Ok(1)"]);
}

#[tokio::test(start_paused = true)]
async fn what_an_actor_tells_itself_in_its_start_comes_first() {
    let mut stage = Stage::vacant("telling itself");
    stage.next().await;
    assert_eq!(stage.probe.add(0).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_mistakes_its_handle_crashes_and_learns_which_it_is() {
    let stage = Stage::occupied().await;
    let error = stage.probe.mistake_itself().await.unwrap_err();
    let panic = error.exit().and_then(Exit::panic).unwrap();
    assert!(panic.message.contains("is a by_hand::ProbeHandle, not a "), "{panic}");
    assert!(panic.place.as_ref().unwrap().contains("by_hand.rs"), "{panic}");
}

#[tokio::test(start_paused = true)]
async fn a_handle_to_oneself_is_to_one_incarnation_only() {
    let mut stage = Stage::vacant("well");
    let own = |log: &Log| Arc::ptr_eq(&log.lines, &stage.log.lines);
    let number = LOGS.lock().unwrap().iter().find(|(_, log)| own(log)).map(|(number, _)| *number).unwrap();
    let start = "well".to_owned();
    let mailbox = Mailbox::new();
    let cx = Context::new::<Probe>("/test/probe", 1, mailbox.clone());
    let me: ProbeHandle = cx.me();
    let probe = runner::start::<Probe>(Setup { log: number, start }, &cx).await.unwrap().unwrap();
    let kept = cx.clone();
    let running = tokio::spawn(async move { runner::run(probe, &mailbox, cx).await });
    assert_eq!(me.add(1).await.unwrap(), 1);
    assert_eq!((me.incarnation(), me.pid(), me.path()), (Some(1), Some(std::process::id()), "/test/probe"));
    let open = tokio::spawn(me.later());
    settle().await;
    me.kill();
    assert!(open.await.unwrap().unwrap_err().is_crash());
    assert_eq!(running.await.unwrap().unwrap_err().message, "killed through its own handle");
    for me in [me, kept.me()] {
        assert!(me.add(1).await.unwrap_err().is_closed() && !me.is_alive());
    }
    // What is spawned after the end is dropped.
    kept.spawn(background(stage.log.clone(), "late".to_owned()));
    settle().await;
    assert_eq!(stage.log.take(), ["start 1"]);
    stage.next().await;
}

// ---------------------------------------------------------------- tasks of an actor

#[tokio::test(start_paused = true)]
async fn a_task_ends_with_its_actor_and_before_stopped_runs() {
    let stage = Stage::occupied().await;
    stage.probe.spawn("task").await.unwrap();
    settle().await;
    stage.probe.stop().await.unwrap();
    assert_eq!(stage.log.take(), ["task begins", "task is dropped", "stopped"]);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_gone_when_a_crash_or_a_kill_of_its_actor_is_known() {
    for how in ["a panic", "a kill"] {
        let stage = Stage::occupied().await;
        let child = stage.child();
        stage.probe.spawn("task").await.unwrap();
        settle().await;
        match how {
            "a kill" => stage.probe.kill(),
            _ => assert_boom(&stage.probe.boom("no such luck").await.unwrap_err()),
        }
        child.exited().await;
        assert_eq!(stage.log.take(), ["task begins", "task is dropped"], "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_task_is_a_crash_of_its_actor_even_in_the_middle_of_a_handler() {
    let stage = Stage::occupied().await;
    let child = stage.child();
    let (spawned, running) = tokio::join!(stage.probe.spawn_boom(), stage.probe.nap("nap", 1000));
    spawned.unwrap();
    assert_boom(&running.unwrap_err());
    let exit = child.exited().await;
    assert_eq!((exit.code(), exit.panic().unwrap().message.as_str()), (Some(101), "no such luck"));
    assert!(!stage.probe.is_alive());
}

#[tokio::test(start_paused = true)]
async fn the_tasks_of_a_start_that_fails_end_with_it() {
    let mut stage = Stage::vacant("spawning, badly");
    assert_eq!(stage.fails().await, Fault::StartFailed("no model".to_owned()));
    assert!(!stage.log.take().iter().any(|line| line.contains("begins")), "it was ended before it began");
    let mut stage = Stage::vacant("spawning a panic");
    let Fault::Ended { exit, .. } = stage.fails().await else { panic!("it ended") };
    assert_eq!(exit.panic().map(|panic| panic.message.as_str()), Some("no such luck"));
}

// ---------------------------------------------------------------- timers

#[tokio::test(start_paused = true)]
async fn a_message_sent_after_a_delay_arrives_then_unless_it_is_cancelled() {
    let stage = Stage::occupied().await;
    stage.probe.after(50).await.unwrap();
    sleep(millis(49)).await;
    assert_eq!(stage.probe.add(0).await.unwrap(), 0);
    sleep(millis(2)).await;
    assert_eq!(stage.probe.add(0).await.unwrap(), 1);
    stage.probe.after(50).await.unwrap();
    sleep(millis(49)).await;
    stage.probe.cancel().await.unwrap();
    sleep(millis(100)).await;
    assert_eq!(stage.probe.add(0).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_sent_again_and_again_never_runs_ahead_of_its_actor() {
    let stage = Stage::occupied().await;
    stage.probe.every(10).await.unwrap();
    sleep(millis(9)).await;
    assert_eq!(stage.log.take(), [""; 0], "the first comes after a period");
    // Each takes longer than the period: more and more wait, up to the window, and then no more are sent.
    sleep(Duration::from_secs(20)).await;
    let begun = stage.log.take().len();
    assert!((20_000 / 35 - 1..=20_000 / 35 + 1).contains(&begun), "{begun}");
    stage.probe.cancel().await.unwrap();
    // What had been sent by then still arrives.
    sleep(Duration::from_secs(10)).await;
    let behind = stage.log.take().len();
    let window = WINDOW as usize;
    assert!((window..=2 * window + 1).contains(&behind), "{behind}");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.log.take(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn timers_end_with_their_actor() {
    let mut stage = Stage::occupied().await;
    stage.probe.every(10).await.unwrap();
    stage.probe.after(10).await.unwrap();
    stage.probe.stop().await.unwrap();
    assert_eq!(stage.log.take(), ["stopped"]);
    stage.next().await;
    sleep(millis(100)).await;
    assert_eq!(stage.probe.add(0).await.unwrap(), 0);
    assert_eq!(stage.log.take(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_period_of_zero_is_a_panic_that_says_so() {
    let stage = Stage::occupied().await;
    let error = stage.probe.every(0).await.unwrap_err();
    let panic = error.exit().and_then(Exit::panic).unwrap();
    assert!(panic.message.contains("the period of `every` is zero"), "{panic}");
    assert!(panic.place.as_ref().unwrap().contains("by_hand.rs"), "{panic}");
}

// ---------------------------------------------------------------- starting and stopping

#[tokio::test(start_paused = true)]
async fn stop_finishes_the_message_at_hand_and_answers_the_rest_stopping() {
    let stage = Stage::occupied().await;
    let child = stage.child();
    let running = tokio::spawn(stage.probe.nap("running", 100));
    let asked = tokio::spawn(stage.probe.nap("asked", 100));
    let told = tokio::spawn(stage.probe.nap("told", 100).tell());
    settle().await;
    assert!(stage.probe.is_alive());
    stage.probe.stop().await.unwrap();
    running.await.unwrap().unwrap();
    let error = asked.await.unwrap().unwrap_err();
    assert!(error.is_stopping() && !error.maybe_executed() && !error.is_crash(), "{error}");
    told.await.unwrap().unwrap();
    assert_eq!(stage.log.take(), ["running", "stopped"]);
    assert!(child.exited().await.success());
    assert!(!stage.probe.is_alive());
}

#[tokio::test(start_paused = true)]
async fn an_actor_can_stop_itself_after_the_message_at_hand() {
    let stage = Stage::occupied().await;
    let child = stage.child();
    let (left, after) = tokio::join!(stage.probe.leave(), stage.probe.add(1));
    left.unwrap();
    assert!(after.unwrap_err().is_stopping());
    assert!(child.exited().await.success());
    assert_eq!(stage.log.take(), ["leave", "stopped"]);
}

#[tokio::test(start_paused = true)]
async fn requests_in_line_before_a_closed_seat_are_told_why() {
    let stage = Stage::vacant("well");
    let ask = tokio::spawn(stage.probe.add(1));
    settle().await;
    stage.seat.close("it was given up");
    for error in [ask.await.unwrap().unwrap_err(), stage.probe.add(1).await.unwrap_err()] {
        assert!(error.is_closed() && !error.maybe_executed(), "{error}");
        assert!(error.to_string().contains("it was given up"), "{error}");
    }
    assert!(stage.probe.add(1).tell().await.unwrap_err().is_closed());
    stage.probe.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_start_that_returns_an_error_fails_with_it() {
    let mut stage = Stage::vacant("badly");
    assert_eq!(stage.fails().await, Fault::StartFailed("no model".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_panics_fails_with_message_and_place() {
    let mut stage = Stage::vacant("with a bang");
    let Fault::Ended { exit, maybe_executed } = stage.fails().await else { panic!("it ended") };
    assert_eq!(exit.panic().map(|panic| panic.message.as_str()), Some("with a bang"));
    assert!(!maybe_executed);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_takes_too_long_fails_and_nothing_of_it_is_left() {
    let mut stage = Stage::vacant("slowly");
    let (begun, log) = (Instant::now(), stage.log.clone());
    let fault = stage.fails().await;
    assert!(matches!(fault, Fault::Late { .. }) && fault.to_string() == "not ready within 10s", "{fault}");
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    // One stands for the list of all logs, one for the stage, one for this test.
    assert_eq!(Arc::strong_count(&log.lines), 3, "the task is gone already");
}

#[tokio::test(start_paused = true)]
async fn dropping_a_start_ends_what_it_began() {
    let mut stage = Stage::vacant("slowly");
    let order = stage.order();
    let start = tokio::spawn(stage.start.start(order));
    settle().await;
    assert_eq!(stage.log.take(), ["start 1"]);
    assert_eq!(Arc::strong_count(&stage.log.lines), 3);
    start.abort();
    settle().await;
    assert_eq!(Arc::strong_count(&stage.log.lines), 2);
}

// ---------------------------------------------------------------- working off what is left

#[tokio::test(start_paused = true)]
async fn a_drained_actor_handles_what_it_was_sent_and_nothing_that_comes_later() {
    let stage = Stage::occupied().await;
    let window = u64::from(WINDOW);
    let naps: Vec<_> = (0..window + 44).map(|n| in_line(stage.probe.nap(n.to_string(), 1))).collect();
    settle().await;
    let child = stage.child();
    child.stop(Rung::Drain);
    let late = stage.probe.add(1).await.unwrap_err();
    assert!(late.is_stopping() && !late.maybe_executed(), "{late}");
    for (n, nap) in (0..).zip(naps) {
        match nap.await {
            Ok(()) => assert!(n < window, "{n} was in line"),
            Err(error) => {
                assert!(n >= window && error.is_stopping() && !error.maybe_executed(), "{n}: {error}")
            }
        }
    }
    assert!(child.exited().await.is_orderly());
    let mut handled: Vec<_> = (0..window).map(|n| n.to_string()).collect();
    handled.push("stopped".to_owned());
    assert_eq!(stage.log.take(), handled);
    assert_eq!(child.mailbox(), Some(MailboxInfo::default()));
}

#[tokio::test(start_paused = true)]
async fn an_idle_actor_that_is_drained_stops_at_once_and_one_that_is_suspended_goes_on_for_that() {
    for suspended in [false, true] {
        let stage = Stage::occupied().await;
        let child = stage.child();
        let mut waits = None;
        if suspended {
            stage.probe.suspend().await.unwrap();
            waits = Some(in_line(stage.probe.add(7)));
            settle().await;
        }
        let begun = Instant::now();
        stage.probe.stop_with(Stop::Drain).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(child.exited().await.is_orderly() && !child.is_paused());
        if let Some(waits) = waits {
            assert_eq!(waits.await.unwrap(), 7);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_is_suspended_while_it_drains_stops_when_the_last_request_is_withdrawn() {
    let stage = Stage::occupied().await;
    let (nap, withdrawn) = (in_line(stage.probe.nap("nap", 10)), in_line(stage.probe.add(1)));
    settle().await;
    let child = stage.child();
    child.stop(Rung::Drain);
    stage.probe.suspend().await.unwrap();
    nap.await.unwrap();
    settle().await;
    assert!(stage.probe.is_alive(), "one is left, and nothing new begins");
    drop(withdrawn);
    assert!(child.exited().await.is_orderly());
    assert_eq!(stage.log.take(), ["nap", "stopped"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_an_actor_drains_refuses_the_rest() {
    for rung in [Rung::Graceful, Rung::Term] {
        let stage = Stage::occupied().await;
        let naps: Vec<_> = (0..10).map(|n| in_line(stage.probe.nap(n.to_string(), 10))).collect();
        let child = stage.child();
        child.stop(Rung::Drain);
        sleep(millis(25)).await;
        child.stop(rung);
        // It cannot be made milder again.
        child.stop(Rung::Drain);
        for (n, nap) in naps.into_iter().enumerate() {
            match nap.await {
                Ok(()) => assert!(n < 3, "{n} was not begun"),
                Err(error) => {
                    assert!(n >= 3 && error.is_stopping() && !error.maybe_executed(), "{n}: {error}")
                }
            }
        }
        assert!(child.exited().await.is_orderly());
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_an_actor_drains_ends_the_rest_with_it() {
    let stage = Stage::occupied().await;
    let first = in_line(stage.probe.nap("first", 10));
    let boom = in_line(stage.probe.boom("no such luck"));
    let rest = in_line(stage.probe.add(1));
    stage.child().stop(Rung::Drain);
    let late = stage.probe.add(1).await.unwrap_err();
    assert!(late.is_stopping() && !late.maybe_executed(), "{late}");
    first.await.unwrap();
    for crashed in [boom.await.unwrap_err(), rest.await.unwrap_err()] {
        assert!(crashed.is_crash() && crashed.maybe_executed(), "{crashed}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_sends_to_itself_while_it_drains_is_refused_and_still_stops() {
    let stage = Stage::occupied().await;
    let first = in_line(stage.probe.nap("first", 10));
    let (told, asked) = (in_line(stage.probe.tell_itself(5)), in_line(stage.probe.ask_itself()));
    let from_a_task = in_line(stage.probe.ask_itself_from_a_task());
    settle().await;
    let child = stage.child();
    child.stop(Rung::Drain);
    first.await.unwrap();
    let (times, why) = told.await.unwrap();
    assert!(times == 0 && why.as_ref().is_some_and(|why| why.contains("stopping")), "{times} {why:?}");
    let asked = asked.await.unwrap_err();
    assert!(asked.handler_error().is_some_and(Error::is_deadlock), "{asked}");
    from_a_task.await.unwrap();
    assert!(child.exited().await.is_orderly());
}

#[tokio::test(start_paused = true)]
async fn answers_put_off_and_streams_are_not_waited_for_when_an_actor_drains() {
    let stage = Stage::occupied().await;
    let later = in_line(stage.probe.later());
    let mut items = stage.probe.count(2, 10, true);
    assert_eq!(items.next().await.unwrap().unwrap(), 0);
    let child = stage.child();
    child.stop(Rung::Drain);
    assert!(child.exited().await.is_orderly());
    let error = later.await.unwrap_err();
    assert!(!error.is_crash() && error.to_string().contains("the actor stopped"), "{error}");
    while let Some(item) = items.next().await {
        if let Err(error) = item {
            assert!(error.exit().is_some_and(Exit::is_orderly), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_may_drain_for_as_long_as_its_shutdown_says() {
    let stage = Stage::occupied().await;
    let naps: Vec<_> = (0..10).map(|n| in_line(stage.probe.nap(n.to_string(), 1000))).collect();
    let begun = Instant::now();
    stage.probe.stop_with(Stop::Drain).await.unwrap();
    // After 5 s it is asked harder: it finishes the one it is at, which began with the last tick before that.
    assert!((millis(5000)..millis(6001)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let mut handled = 0;
    for nap in naps {
        match nap.await {
            Ok(()) => handled += 1,
            Err(error) => assert!(error.is_stopping() && !error.maybe_executed(), "{error}"),
        }
    }
    assert!((5..=6).contains(&handled), "{handled}");
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_has_no_time_to_drain_is_not_told_to() {
    let seat = Seat::with("/test/probe".to_owned(), "by_hand::Probe", WINDOW, Shutdown::kill());
    let mut stage = Stage::vacant("well");
    stage.probe = ProbeHandle { actor: ActorRef::new(seat.clone()) };
    stage.seat = seat;
    stage.next().await;
    let error = stage.probe.stop_with(Stop::Drain).await.unwrap_err();
    assert!(error.to_string().contains("leaves no time for that"), "{error}");
    assert_eq!(stage.probe.add(1).await.unwrap(), 1, "nothing has happened to it");
    let nap = in_line(stage.probe.nap("nap", 1000));
    stage.probe.stop_with(Stop::Refuse).await.unwrap();
    let error = nap.await.unwrap_err();
    assert!(error.is_crash(), "its shutdown has no time for that either: {error}");
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_is_stopped_by_a_kill_is_cut_off_at_once() {
    let stage = Stage::occupied().await;
    let (nap, waits) = (in_line(stage.probe.nap("nap", 10)), in_line(stage.probe.add(1)));
    settle().await;
    let before = Instant::now();
    stage.probe.stop_with(Stop::Kill).await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
    for crashed in [nap.await.unwrap_err().to_string(), waits.await.unwrap_err().to_string()] {
        assert!(crashed.contains("aborted"), "{crashed}");
    }
    assert_eq!(stage.log.take(), ["nap"], "not in order");
}

// ---------------------------------------------------------------- handlers that do not get on

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_longer_than_the_watchdog_says_ends_its_actor() {
    let stage = Stage::watched(Duration::from_secs(10)).await;
    let child = stage.child();
    let before = Instant::now();
    let (hangs, waits) = (in_line(stage.probe.nap("hangs", 3_600_000)), in_line(stage.probe.add(1)));
    for error in [hangs.await.unwrap_err().exit().cloned(), waits.await.unwrap_err().exit().cloned()] {
        assert_eq!(error.unwrap().reason(), Some("no progress for 10s: one handler has run since"));
    }
    let took = before.elapsed();
    assert!((Duration::from_secs(10)..=Duration::from_secs(12)).contains(&took), "{took:?}");
    let exit = child.exited().await;
    assert!(!exit.is_orderly() && exit.status() == Status::Unknown, "{exit}");
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_is_idle_or_busy_with_many_is_well() {
    let stage = Stage::watched(Duration::from_secs(10)).await;
    let naps: Vec<_> =
        (0..100).map(|n| in_line(stage.probe.nap(n.to_string(), 9_900).without_deadline())).collect();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.child().mailbox(), Some(MailboxInfo::new(99, Some(1))));
    for nap in naps {
        nap.await.unwrap();
    }
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(stage.child().mailbox(), Some(MailboxInfo::new(0, None)));
    // What is no handler may take as long as it likes.
    let _later = in_line(stage.probe.later());
    stage.probe.spawn("task").await.unwrap();
    let mut items = stage.probe.count(u64::MAX, 1000, false);
    items.next().await.unwrap().unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!((stage.probe.add(1).await.unwrap(), stage.probe.incarnation()), (1, Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_watched_actor_that_is_suspended_is_spared_until_it_is_resumed() {
    let stage = Stage::watched(Duration::from_secs(10)).await;
    let nap = in_line(stage.probe.nap("nap", 3_600_000).without_deadline());
    sleep(Duration::from_secs(5)).await;
    stage.probe.suspend().await.unwrap();
    sleep(Duration::from_secs(1000)).await;
    assert!(stage.probe.is_alive());
    let resumed = Instant::now();
    stage.probe.resume().unwrap();
    assert!(nap.await.unwrap_err().is_crash());
    let took = resumed.elapsed();
    assert!((Duration::from_secs(10)..=Duration::from_secs(12)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_start_and_a_stop_have_patience_of_their_own() {
    let mut stage = Stage::vacant("slowly");
    stage.watchdog = Some(Duration::from_secs(1));
    let before = Instant::now();
    let fault = stage.fails().await;
    assert_eq!(before.elapsed(), Duration::from_secs(10), "{fault}");
    assert!(fault.to_string().contains("not ready within 10s"), "{fault}");
}

#[tokio::test]
async fn a_watched_actor_that_blocks_its_thread_is_cut_off_where_it_next_awaits() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (mailbox_said, blocked) = tokio::sync::oneshot::channel();
    let ended = runtime.spawn(async move {
        let stage = Stage::watched(millis(20)).await;
        *stage.log.blocks.lock().unwrap() = Some((gone, mailbox_said));
        stage.probe.block().without_deadline().await.unwrap_err().exit().cloned().unwrap()
    });
    blocked.await.unwrap();
    // As long as it may run, and longer: it cannot be ended before it awaits.
    std::thread::sleep(millis(200));
    assert!(!ended.is_finished());
    go.send(()).unwrap();
    assert_eq!(ended.await.unwrap().reason(), Some("no progress for 20ms: one handler has run since"));
    runtime.shutdown_background();
}

// ---------------------------------------------------------------- streamed answers

#[tokio::test(start_paused = true)]
async fn a_stream_written_by_hand_gives_its_items_in_order_and_ends_once() {
    let stage = Stage::occupied().await;
    let mut items = stage.probe.count(13, 0, false);
    for n in 0..13 {
        assert_eq!(items.next().await.unwrap().unwrap(), n);
    }
    for _ in 0..3 {
        assert!(items.next().await.is_none());
    }
    assert_eq!(stage.log.take(), ["dropped at 13"]);
}

#[tokio::test(start_paused = true)]
async fn each_wait_for_an_item_has_the_whole_deadline() {
    let stage = Stage::occupied().await;
    let begun = Instant::now();
    let mut items = stage.probe.count(5, 20_000, true);
    for n in 0..5 {
        assert_eq!(items.next().await.unwrap().unwrap(), n);
    }
    assert_eq!(begun.elapsed().as_secs(), 100);
    // Time that the consumer spends elsewhere is no wait.
    sleep(Duration::from_secs(3600)).await;
    let begun = Instant::now();
    let error = items.next().await.unwrap().unwrap_err();
    assert!(error.is_timeout() && error.maybe_executed(), "{error}");
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert!(items.next().await.is_none());
    settle().await;
    assert_eq!(stage.log.take(), ["dropped at 5"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_while_a_handler_runs_and_next_may_be_given_up() {
    let stage = Stage::occupied().await;
    let mut items = stage.probe.count(10, 100, false);
    drop(in_line(items.next()));
    let napping = in_line(stage.probe.nap("nap", 3_600_000));
    let mut all = Vec::new();
    loop {
        // Most of these are dropped while they wait, and lose nothing.
        match tokio::time::timeout(millis(30), items.next()).await {
            Ok(Some(item)) => all.push(item.unwrap()),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    assert_eq!(all, (0..10).collect::<Vec<_>>());
    drop(napping);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_withdrawn_before_it_begins_never_does() {
    let stage = Stage::occupied().await;
    let napping = in_line(stage.probe.nap("nap", 100));
    let mut items = stage.probe.count(10, 0, false);
    drop(in_line(items.next()));
    drop(items);
    napping.await.unwrap();
    assert_eq!(stage.probe.add(1).await.unwrap(), 1);
    assert_eq!(stage.log.take(), ["nap"]);
}

#[tokio::test(start_paused = true)]
async fn items_that_can_not_be_encoded_or_decoded_end_the_stream_with_an_error() {
    let stage = Stage::occupied().await;
    let mut items = stage.probe.count(20, 0, false);
    for n in 0..13 {
        assert_eq!(items.next().await.unwrap().unwrap(), n);
    }
    let error = items.next().await.unwrap().unwrap_err();
    assert!(error.maybe_executed() && error.to_string().contains("words fail me"), "{error}");
    assert!(items.next().await.is_none());

    let mut items: Items<String> =
        stage.probe.actor.items("count", &Message::Count(5, 0, true), hatchery_wire::decode_owned);
    let error = items.next().await.unwrap().unwrap_err();
    assert!(matches!(error.fault(), Some(Fault::BadAnswer(_))), "{error}");
    assert!(items.next().await.is_none());
    settle().await;
    assert_eq!(stage.log.take(), ["dropped at 14", "dropped at 5"]);
    let mut items: Items<u64> = stage.probe.actor.items("count", &Unspeakable, hatchery_wire::decode_owned);
    assert!(!items.next().await.unwrap().unwrap_err().maybe_executed());
    assert!(items.next().await.is_none());
    let mut items: Items<u64> = stage.probe.actor.items("add", &Message::Add(1), hatchery_wire::decode_owned);
    let error = items.next().await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no stream"), "{error}");
    assert_eq!(stage.probe.incarnation(), Some(1));
}
