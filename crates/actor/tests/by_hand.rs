//! Everything that `#[actor]` writes can be written by hand, and what a user may rely on then: the conversations of
//! one actor in this process with its callers, in virtual time.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context as Task, Waker};
use std::time::Duration;

use hatchery_actor::actor::{Actor, Place};
use hatchery_actor::ask::Ask;
use hatchery_actor::child::{Child, Order, Presence, Rung, Start, Started};
use hatchery_actor::context::Context;
use hatchery_actor::error::{CallError, Error};
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::{ActorRef, AnyHandle};
use hatchery_actor::heartbeat::Heartbeat;
use hatchery_actor::local::Local;
use hatchery_actor::mailbox::{Mailbox, Parcel, ReturnPath};
use hatchery_actor::outlet::Answer;
use hatchery_actor::runner;
use hatchery_actor::seat::{Occupancy, Seat};
use hatchery_wire::{DecodeError, encode};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

// ---------------------------------------------------------------- what `#[actor] impl Probe { .. }` would write

/// An actor that writes down what it does.
struct Probe {
    log: Log,
    total: u64,
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
            "well" => Ok(Probe { log, total: 0 }),
            "slowly" => {
                sleep(Duration::from_secs(3600)).await;
                Ok(Probe { log, total: 0 })
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
                    body: encode(&Message::Again).unwrap(),
                    from: Returns::new(),
                };
                assert!(mailbox.push(again).is_ok());
                Answer::None
            }
        }
    }

    async fn stopped(&mut self, cx: &Context) {
        assert_eq!(cx.deadline(), None);
        self.log.say("stopped");
    }
}

// ---------------------------------------------------------------- the stage

#[derive(Serialize, Deserialize)]
struct Setup {
    log: u64,
    start: String,
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
}

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
}

impl Stage {
    fn vacant(start: &str) -> Stage {
        let (number, log) = Log::new();
        let start = Local::<Probe>::new("probe", &Setup { log: number, start: start.to_owned() });
        let seat = Seat::new("/test/probe".to_owned(), Start::actor(&start));
        let probe = start.handle(ActorRef::new(seat.clone()));
        Stage { seat, probe, log, start, incarnation: 0 }
    }

    async fn occupied() -> Stage {
        let mut stage = Stage::vacant("well");
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

    fn release(&self, places: u32) {
        self.places.fetch_add(u64::from(places), Ordering::SeqCst);
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
    let made: Vec<_> = (0..100).map(|n| (n, stage.probe.nap(n.to_string(), 1))).collect();
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
    assert_eq!(stage.log.take(), (0..100).rev().map(|n| n.to_string()).collect::<Vec<_>>());
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
        |_: &hatchery_wire::Body| -> Result<u8, DecodeError> { hatchery_wire::decode(&encode("x").unwrap()) };
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
    let adds: Vec<_> = (0..100).map(|_| tokio::spawn(stage.probe.add(1))).collect();
    assert_boom(&boom.await.unwrap().unwrap_err());
    settle().await;
    stage.next().await;
    let mut outcomes = Vec::new();
    for add in adds {
        outcomes.push(add.await.unwrap());
    }
    outcomes[..63].iter().for_each(|outcome| assert_boom(outcome.as_ref().unwrap_err()));
    let answers: Vec<u64> = outcomes.drain(63..).map(Result::unwrap).collect();
    assert_eq!(answers, (1..=37).collect::<Vec<_>>());
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
    let cx = Context::new("/test/probe", 1, mailbox.clone());
    let probe = Probe::start(Setup { log: number, start: "well".to_owned() }, &cx).await.unwrap();
    for (id, after, name) in [(1, 100, "first"), (2, 49, "second"), (3, 51, "third")] {
        let body = encode(&Message::Nap(name.to_owned(), 50)).unwrap();
        let deadline = Some(Instant::now() + millis(after));
        assert!(
            mailbox
                .push(Parcel { id, ask: true, deadline, trace: None, body, from: returns.clone() })
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
async fn ten_thousand_tells_to_a_slow_handler_never_have_more_than_64_in_its_mailbox() {
    let stage = Stage::occupied().await;
    let (probe, log) = (stage.probe.clone(), stage.log.clone());
    let teller = tokio::spawn(async move {
        for _ in 0..10_000 {
            // It waits for room for as long as the mailbox is full.
            probe.nap("", 1).timeout(Duration::from_secs(3600)).tell().await.unwrap();
            let sent = log.sent.fetch_add(1, Ordering::SeqCst) + 1;
            let handled = log.handled.load(Ordering::SeqCst);
            assert!(sent - handled <= 64, "{} in the mailbox", sent - handled);
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
    let cx = Context::new("/test/probe", 1, mailbox.clone());
    let probe = Probe::start(Setup { log: number, start: "well".to_owned() }, &cx).await.unwrap();
    let running = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { runner::run(probe, &mailbox, cx).await }
    });
    for round in 1..=3 {
        for id in 0..5 {
            let body = encode(&Message::Add(1)).unwrap();
            let parcel = Parcel { id, ask: false, deadline: None, trace: None, body, from: returns.clone() };
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
    let cx = Context::new("/test/probe", 1, mailbox.clone());
    let probe = Probe::start(Setup { log: number, start: "well".to_owned() }, &cx).await.unwrap();
    let body = encode(&Message::Again).unwrap();
    let first = Parcel { id: 0, ask: false, deadline: None, trace: None, body, from: Returns::new() };
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
