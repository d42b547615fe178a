//! What a supervisor does, told by children that are no processes: they start, end and ignore signals as the test
//! says, in virtual time.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use hatchery_actor::actor::{Actor, Place};
use hatchery_actor::ask::Ask;
use hatchery_actor::child::{BoxFuture, Child, Order, Rung, Shutdown, Start, Started};
use hatchery_actor::context::Context;
use hatchery_actor::error::Error;
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::{ActorRef, AnyHandle};
use hatchery_actor::local::Local;
use hatchery_actor::outlet::{Answer, Line, Request};
use hatchery_actor::probe::Probe;
use hatchery_actor::root::Root;
use hatchery_actor::seat::Seat;
use hatchery_supervisor::builder::Supervisor;
use hatchery_supervisor::errors::StartError;
use hatchery_supervisor::policy::{CountDeaths, Exhausted, Restart, Strategy};
use hatchery_supervisor::spec::ChildSpec;
use hatchery_supervisor::tree::{ChildState, Tree};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

#[path = "supervisor/beginning.rs"]
mod beginning;
#[path = "supervisor/dynamic.rs"]
mod dynamic;
#[path = "supervisor/nested.rs"]
mod nested;
#[path = "supervisor/otp.rs"]
mod otp;

// ---------------------------------------------------------------- children that do as they are told

/// How a start goes.
#[derive(Clone, Copy)]
enum Begin {
    Well,
    After(Duration),
    Fails,
    Panics,
    Hangs,
    /// The same, and something of it stays for ever.
    Haunts,
    /// It completes when the world gives the cue.
    OnCue,
}

/// What it takes to end a child.
#[derive(Clone, Copy, PartialEq)]
enum Manners {
    Polite,
    /// It takes its time to leave.
    Slow(Duration),
    /// Only SIGTERM helps.
    Busy,
    /// Only SIGKILL helps.
    Stubborn,
    /// Nothing helps.
    Immortal,
}

/// Where all fakes of a test live.
#[derive(Clone)]
struct World {
    root: Arc<Root>,
    begun: Instant,
    log: Arc<Mutex<Vec<String>>>,
    live: Arc<Mutex<BTreeMap<String, Arc<FakeChild>>>>,
    cue: Arc<Notify>,
}

/// What can be started: every start goes as the script says, the last entry again and again.
struct Fake {
    name: String,
    world: World,
    script: Mutex<Vec<Begin>>,
    manners: Manners,
    check: Option<Fault>,
}

struct FakeChild {
    name: String,
    world: World,
    seat: Arc<Seat>,
    incarnation: u64,
    manners: Manners,
    exit: watch::Sender<Option<Arc<Exit>>>,
}

impl World {
    fn new() -> World {
        let root = Root::new();
        root.clone().enter();
        World { root, begun: Instant::now(), log: Arc::default(), live: Arc::default(), cue: Arc::default() }
    }

    fn fake(&self, name: &str) -> Fake {
        let (name, world) = (name.to_owned(), self.clone());
        Fake { name, world, script: Mutex::new(vec![Begin::Well]), manners: Manners::Polite, check: None }
    }

    /// The usual child.
    fn child(&self, name: &str) -> ChildSpec<Fake> {
        ChildSpec::new(self.fake(name))
    }

    /// One in which even the early deaths of these tests are followed by restarts at once.
    fn at_once(&self, strategy: Strategy) -> Supervisor {
        Supervisor::new(strategy).name("tree").backoff(Duration::ZERO, Duration::ZERO)
    }

    async fn tree(&self, names: &[&str]) -> Tree {
        let mut supervisor = Supervisor::new(Strategy::OneForOne).name("tree");
        for name in names {
            supervisor = supervisor.child(self.child(name));
        }
        supervisor.start().await.unwrap()
    }

    fn say(&self, what: String) {
        self.log.lock().unwrap().push(format!("{:?} {what}", self.begun.elapsed()));
    }

    /// What happened since it was last asked, each with its time.
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// The same without the time.
    fn events(&self) -> Vec<String> {
        self.log().iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    fn find(&self, name: &str) -> Arc<FakeChild> {
        self.live.lock().unwrap().get(name).unwrap_or_else(|| panic!("no {name}")).clone()
    }

    /// Ends a child by a signal, from outside.
    async fn kill(&self, name: &str) {
        self.find(name).end(Exit::new(Status::Signal(9)));
        settle().await;
    }

    /// Has a child end in this way.
    async fn end(&self, name: &str, exit: Exit) {
        self.find(name).end(exit);
        settle().await;
    }

    /// A tree of a, b and c.
    async fn group(&self, strategy: Strategy) -> Tree {
        let names = ["a", "b", "c"];
        let all = names.iter().fold(self.at_once(strategy), |all, name| all.child(self.child(name)));
        let tree = all.start().await.unwrap();
        self.log();
        tree
    }

    fn alive(&self) -> Vec<String> {
        self.live.lock().unwrap().keys().cloned().collect()
    }
}

impl Fake {
    fn script(mut self, script: &[Begin]) -> Fake {
        *self.script.get_mut().unwrap() = script.to_vec();
        self
    }

    fn manners(mut self, manners: Manners) -> Fake {
        self.manners = manners;
        self
    }
}

impl Start for Fake {
    type Handle = EchoHandle;

    fn name(&self) -> &str {
        &self.name
    }

    fn actor(&self) -> &'static str {
        Echo::name()
    }

    fn check(&self) -> Result<(), Fault> {
        self.check.clone().map_or(Ok(()), Err)
    }

    fn handle(&self, reference: ActorRef) -> EchoHandle {
        reference.into()
    }

    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        let begin = {
            let mut script = self.script.lock().unwrap();
            if script.len() > 1 { script.remove(0) } else { script[0] }
        };
        let (world, name, manners) = (self.world.clone(), self.name.clone(), self.manners);
        Box::pin(async move {
            let Order { seat, incarnation, timeout, presence, .. } = order;
            world.say(format!("start {name} {incarnation}"));
            match begin {
                Begin::Well => {}
                Begin::After(time) if time > timeout => {
                    sleep(timeout).await;
                    return Err(Fault::StartFailed(format!("not ready within {timeout:?}")));
                }
                Begin::After(time) => sleep(time).await,
                Begin::Fails => return Err(Fault::StartFailed("no luck".to_owned())),
                Begin::Panics => panic!("no luck at all"),
                Begin::Hangs => std::future::pending().await,
                Begin::Haunts => {
                    std::mem::forget(presence);
                    std::future::pending().await
                }
                Begin::OnCue => world.cue.notified().await,
            }
            let exit = watch::Sender::new(None);
            let child =
                FakeChild { name: name.clone(), world: world.clone(), seat, incarnation, manners, exit };
            let child = Arc::new(child);
            let before = world.live.lock().unwrap().insert(name.clone(), child.clone());
            assert!(before.is_none(), "two of {name} at once");
            world.say(format!("ready {name} {incarnation}"));
            Ok(Started { line: child.clone(), child })
        })
    }
}

impl FakeChild {
    fn end(&self, exit: Exit) {
        if self.world.live.lock().unwrap().remove(&self.name).is_none() {
            return;
        }
        self.world.say(format!("end {} {}", self.name, self.incarnation));
        self.seat.ended(self.incarnation, &exit);
        self.exit.send_replace(Some(Arc::new(exit)));
    }
}

impl Child for FakeChild {
    fn stop(&self, rung: Rung) {
        self.world.say(format!("{rung:?} {}", self.name));
        match (self.manners, rung) {
            (Manners::Polite, _) => self.end(Exit::orderly()),
            (Manners::Slow(time), _) => {
                let this = self.world.find(&self.name);
                tokio::spawn(async move {
                    sleep(time).await;
                    this.end(Exit::orderly());
                });
            }
            (Manners::Busy, Rung::Term | Rung::Kill) => self.end(Exit::new(Status::Signal(15))),
            (Manners::Stubborn, Rung::Kill) => self.end(Exit::new(Status::Signal(9))),
            _ => {}
        }
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        let mut exit = self.exit.subscribe();
        Box::pin(async move { exit.wait_for(Option::is_some).await.unwrap().clone().unwrap() })
    }
}

impl Line for FakeChild {
    fn send(&self, request: Request) -> Result<(), Fault> {
        if self.manners == Manners::Immortal {
            return Ok(());
        }
        // Not here: the outlet is locked.
        let (seat, incarnation) = (self.seat.clone(), self.incarnation);
        tokio::spawn(async move {
            sleep(Duration::from_millis(100)).await;
            seat.answered(incarnation, request.id, Answer::value(true, &incarnation), true).unwrap();
        });
        Ok(())
    }

    fn withdraw(&self, _: u64) {}

    fn probe(&self, _: u64, _: Probe) {}

    fn credit(&self, _: u64, _: usize) {}
}

/// The actor that the fakes pretend to be; a real one for those tests that want one.
struct Echo;

#[derive(Clone, Debug)]
struct EchoHandle(ActorRef);

impl From<ActorRef> for EchoHandle {
    fn from(actor: ActorRef) -> EchoHandle {
        EchoHandle(actor)
    }
}

impl AnyHandle for EchoHandle {
    fn actor_ref(&self) -> &ActorRef {
        &self.0
    }
}

impl EchoHandle {
    /// Which incarnation answers.
    fn who(&self) -> Ask<u64> {
        self.0.ask("who", &true)
    }

    fn boom(&self) -> Ask<u64> {
        self.0.ask("boom", &false)
    }
}

impl Actor for Echo {
    type Args = ();
    type Message = bool;
    type Handle = EchoHandle;

    fn name() -> &'static str {
        "supervisor::Echo"
    }

    fn place() -> Place {
        Place::new(file!(), 1, 1)
    }

    async fn start((): (), _: &Context) -> Result<Echo, Error> {
        Ok(Echo)
    }

    async fn handle(&mut self, well: bool, asked: bool, cx: &Context) -> Answer {
        assert!(well, "no such luck");
        Answer::value(asked, &cx.incarnation())
    }
}

/// Another actor.
struct Other;

impl Actor for Other {
    type Args = ();
    type Message = ();
    type Handle = EchoHandle;

    fn name() -> &'static str {
        "supervisor::Other"
    }

    fn place() -> Place {
        Place::new(file!(), 2, 1)
    }

    async fn start((): (), _: &Context) -> Result<Other, Error> {
        Ok(Other)
    }

    async fn handle(&mut self, (): (), _: bool, _: &Context) -> Answer {
        Answer::None
    }
}

/// Lets everything happen that needs no time.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

// ---------------------------------------------------------------- restarts

#[tokio::test(start_paused = true)]
async fn a_child_that_ends_is_started_again_at_once_in_the_same_seat() {
    let world = World::new();
    let tree = world.tree(&["a", "b"]).await;
    let a = tree.get::<Echo>("a").unwrap();
    // Whoever has answered was no early death.
    assert_eq!(a.who().await.unwrap(), 1);
    assert_eq!(tree.get::<Echo>("b").unwrap().who().await.unwrap(), 1);
    world.log();
    let at = world.begun.elapsed();
    world.kill("a").await;
    assert_eq!(world.events(), ["end a 1", "start a 2", "ready a 2"]);
    assert_eq!(world.begun.elapsed(), at);
    assert_eq!(a.incarnation(), Some(2));
    assert_eq!(a.who().await.unwrap(), 2);
    assert_eq!((a.path(), tree.path()), ("/tree/a", "/tree"));
    // One that left in order is started again as well.
    world.find("b").end(Exit::orderly());
    settle().await;
    assert_eq!(world.events(), ["end b 1", "start b 2", "ready b 2"]);
}

#[tokio::test(start_paused = true)]
async fn asks_before_a_vacant_seat_wait_for_the_next_incarnation_and_sent_ones_learn_of_the_crash() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let slow = world.fake("a").script(&[Begin::Well, Begin::After(secs(3))]);
    let a = tree.start_child(ChildSpec::new(slow)).await.unwrap();
    assert_eq!(a.who().await.unwrap(), 1);
    let sent = tokio::spawn(a.who());
    settle().await;
    world.kill("a").await;
    let error = sent.await.unwrap().unwrap_err();
    assert!(error.is_crash() && error.maybe_executed());
    assert_eq!(error.exit().and_then(Exit::signal), Some(9));
    assert_eq!((a.is_alive(), a.incarnation()), (false, None));
    assert_eq!((tree.count().specs, tree.count().active), (1, 0));
    let begun = Instant::now();
    assert_eq!(a.who().await.unwrap(), 2);
    assert_eq!(begun.elapsed(), secs(3) + Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_fails_is_tried_again_and_counts() {
    let world = World::new();
    let tree = world.at_once(Strategy::OneForOne).intensity(3, secs(60)).start().await.unwrap();
    let flaky = world.fake("a").script(&[Begin::Well, Begin::Fails, Begin::Panics, Begin::Well]);
    let a = tree.start_child(ChildSpec::new(flaky)).await.unwrap();
    world.kill("a").await;
    assert_eq!(a.incarnation(), Some(4));
    world.kill("a").await;
    assert!(tree.stop().await.is_err(), "that was the fourth restart");
}

#[tokio::test(start_paused = true)]
async fn restarts_outside_the_window_do_not_count() {
    let world = World::new();
    let tree = world.at_once(Strategy::OneForOne).intensity(1, secs(60)).start().await.unwrap();
    let a = tree.start_child(world.child("a")).await.unwrap();
    for incarnation in 2..10 {
        world.kill("a").await;
        assert_eq!(a.incarnation(), Some(incarnation));
        sleep(secs(60)).await;
    }
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_restart_too_many_stops_everything_newest_first_and_says_why() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::OneForOne).intensity(2, secs(60));
    let tree = supervisor.start().await.unwrap();
    let a = tree.start_child(world.child("a")).await.unwrap();
    let b = tree.start_child(world.child("b")).await.unwrap();
    tree.start_child(world.child("c")).await.unwrap();
    let hangs = world.fake("d").script(&[Begin::Well, Begin::Hangs]);
    let d = tree.start_child(ChildSpec::new(hangs)).await.unwrap();
    world.kill("d").await;
    let in_line = tokio::spawn(d.who());
    world.kill("b").await;
    world.log();
    world.kill("b").await;
    assert_eq!(world.events(), ["end b 2", "Graceful c", "end c 1", "Graceful a", "end a 1"]);
    let reason = "/tree/b needed more than 2 restarts in 60s; at last: killed by SIGKILL (signal 9)";
    for _ in 0..2 {
        let error = tree.stop().await.unwrap_err();
        assert_eq!(error.to_string(), format!("/tree gave up: {reason}"));
    }
    let errors = [a.who().await, b.who().await, d.who().await, in_line.await.unwrap()];
    for error in errors.map(Result::unwrap_err) {
        assert!(error.is_closed() && !error.maybe_executed(), "{error}");
        assert!(error.to_string().ends_with(&format!("its supervisor gave up: {reason}")), "{error}");
    }
    assert_eq!((tree.count().specs, world.alive()), (0, vec![]));
    let error = tree.start_child(world.child("e")).await.unwrap_err();
    assert_eq!(error.to_string(), "start of /tree/e: the actor is gone: its supervisor has ended");
}

#[tokio::test(start_paused = true)]
async fn a_local_actor_that_panics_is_started_again_behind_its_handle() {
    let _world = World::new();
    let tree = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    let echo = tree.start_child(ChildSpec::new(Local::<Echo>::new("echo", &()))).await.unwrap();
    for incarnation in 1..5 {
        assert_eq!(echo.who().await.unwrap(), incarnation);
        let error = echo.boom().await.unwrap_err();
        assert_eq!(error.exit().and_then(Exit::panic).map(|panic| &*panic.message), Some("no such luck"));
    }
    // Who asks for the end of an incarnation gets the next one.
    echo.stop().await.unwrap();
    assert_eq!(echo.who().await.unwrap(), 6);
    tree.stop().await.unwrap();
    assert!(echo.who().await.unwrap_err().is_closed());
}

// ---------------------------------------------------------------- stopping

#[tokio::test(start_paused = true)]
async fn children_stop_in_reverse_one_after_another() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    for name in ["a", "b", "c"] {
        let slow = world.fake(name).manners(Manners::Slow(secs(1)));
        tree.start_child(ChildSpec::new(slow)).await.unwrap();
    }
    world.log();
    tree.stop().await.unwrap();
    tree.stop().await.unwrap();
    assert_eq!(
        world.log(),
        ["0ns Graceful c", "1s end c 1", "1s Graceful b", "2s end b 1", "2s Graceful a", "3s end a 1"]
    );
}

#[tokio::test(start_paused = true)]
async fn children_that_end_while_others_are_being_stopped_are_not_started_again() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    let slow = world.fake("b").manners(Manners::Slow(secs(1)));
    tree.start_child(ChildSpec::new(slow)).await.unwrap();
    world.log();
    let stop = tokio::spawn({
        let tree = tree.clone();
        async move { tree.stop().await }
    });
    settle().await;
    world.kill("a").await;
    stop.await.unwrap().unwrap();
    assert_eq!(world.log(), ["0ns Graceful b", "0ns end a 1", "1s end b 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_ignores_requests_is_terminated_and_one_that_ignores_that_is_killed() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    for (name, manners) in [("stubborn", Manners::Stubborn), ("busy", Manners::Busy)] {
        tree.start_child(ChildSpec::new(world.fake(name).manners(manners))).await.unwrap();
    }
    world.log();
    tree.stop().await.unwrap();
    assert_eq!(
        world.log(),
        [
            "0ns Graceful busy",
            "5s Term busy",
            "5s end busy 1",
            "5s Graceful stubborn",
            "10s Term stubborn",
            "12s Kill stubborn",
            "12s end stubborn 1",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_says_how_long_each_rung_may_take() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    for (name, manners, shutdown) in [
        ("quick", Manners::Stubborn, Shutdown::kill()),
        ("patient", Manners::Stubborn, Shutdown::graceful(secs(20))),
        ("endless", Manners::Slow(secs(100_000)), Shutdown::infinity()),
    ] {
        let spec = ChildSpec::new(world.fake(name).manners(manners)).shutdown(shutdown);
        tree.start_child(spec).await.unwrap();
    }
    world.log();
    tree.stop().await.unwrap();
    assert_eq!(
        world.log(),
        [
            "0ns Graceful endless",
            "100000s end endless 1",
            "100000s Graceful patient",
            "100020s Term patient",
            "100022s Kill patient",
            "100022s end patient 1",
            "100022s Kill quick",
            "100022s end quick 1",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_child_that_can_not_be_killed_does_not_hang_the_stop_nor_its_callers() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    let immortal = world.fake("b").manners(Manners::Immortal);
    let b = tree.start_child(ChildSpec::new(immortal)).await.unwrap();
    let asked = tokio::spawn(b.who().timeout(secs(3600)));
    settle().await;
    tree.stop().await.unwrap();
    assert_eq!(world.begun.elapsed(), secs(5 + 2 + 10));
    let error = asked.await.unwrap().unwrap_err();
    assert!(error.is_crash() && error.maybe_executed(), "{error}");
    assert!(error.to_string().contains("still there 10 s after it was killed"), "{error}");
    assert_eq!(world.alive(), ["b"]);
    // Its end, long after, disturbs nobody.
    world.kill("b").await;
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_a_slow_start_gives_the_start_up() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    let hangs = world.fake("b").script(&[Begin::Hangs]);
    let starting = tokio::spawn({
        let (tree, spec) = (tree.clone(), ChildSpec::new(hangs));
        async move { tree.start_child(spec).await }
    });
    settle().await;
    world.log();
    tree.stop().await.unwrap();
    assert_eq!(world.log(), ["0ns Graceful a", "0ns end a 1"]);
    let error = starting.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("stopped while it started"), "{error}");
    assert_eq!(world.alive(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_at_the_moment_a_start_completes_leaves_nobody_behind() {
    // The task that stops runs some turns before or after the start completes; every interleaving ends well.
    for turns in 0..12 {
        let world = World::new();
        let tree = world.tree(&["a"]).await;
        let b = world.fake("b").script(&[Begin::After(secs(1))]);
        let starting = tokio::spawn({
            let (tree, spec) = (tree.clone(), ChildSpec::new(b));
            async move { tree.start_child(spec).await }
        });
        sleep(secs(1)).await;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        tree.stop().await.unwrap();
        assert_eq!(world.begun.elapsed(), secs(1));
        assert_eq!((world.alive(), tree.count().specs), (vec![], 0));
        if let Ok(b) = starting.await.unwrap() {
            assert!(b.who().await.unwrap_err().is_closed());
        }
        let events = world.events();
        assert_eq!(events.last().map(String::as_str), Some("end a 1"), "in reverse, {turns}: {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_completes_when_it_has_just_been_given_up_is_stopped_all_the_same() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    let starting = tokio::spawn({
        let (tree, spec) = (tree.clone(), ChildSpec::new(world.fake("b").script(&[Begin::OnCue])));
        async move { tree.start_child(spec).await }
    });
    settle().await;
    world.log();
    // First the supervisor gets the order, then the start its cue, and then both of them run.
    let mut stop = std::pin::pin!(tree.stop());
    assert!(std::future::poll_fn(|task| Poll::Ready(stop.as_mut().poll(task).is_pending())).await);
    world.cue.notify_one();
    stop.await.unwrap();
    assert_eq!(world.events(), ["ready b 1", "Graceful b", "end b 1", "Graceful a", "end a 1"]);
    assert!(starting.await.unwrap().unwrap().who().await.unwrap_err().is_closed());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_stops_it_in_order_in_the_background() {
    let world = World::new();
    let tree = world.tree(&["a", "b"]).await;
    let (other, a) = (tree.clone(), tree.get::<Echo>("a").unwrap());
    world.log();
    drop(tree);
    settle().await;
    assert_eq!(world.log(), [""; 0]);
    drop(other);
    settle().await;
    assert_eq!(world.events(), ["Graceful b", "end b 1", "Graceful a", "end a 1"]);
    assert!(a.who().await.unwrap_err().is_closed());
    world.tree(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_program_stops_trees_newest_first_and_nothing_new_starts() {
    let world = World::new();
    let first = Supervisor::new(Strategy::OneForOne).name("first").child(world.child("a")).start().await;
    let second = Supervisor::new(Strategy::OneForOne).name("second").child(world.child("b")).start().await;
    world.log();
    world.root.close().await;
    assert_eq!(world.events(), ["Graceful b", "end b 1", "Graceful a", "end a 1"]);
    first.unwrap().stop().await.unwrap();
    second.unwrap().stop().await.unwrap();
    for _ in 0..2 {
        let late = Supervisor::new(Strategy::OneForOne).name("late").start().await.unwrap_err();
        assert!(late.to_string().contains("the program is ending"), "{late}");
    }
}

// ---------------------------------------------------------------- starting

#[tokio::test(start_paused = true)]
async fn children_start_in_the_order_given() {
    let world = World::new();
    let tree = world.tree(&["a", "b"]).await;
    assert_eq!(world.events(), ["start a 1", "ready a 1", "start b 1", "ready b 1"]);
    assert_eq!((tree.count().specs, tree.count().active), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_whose_second_child_fails_stops_the_first_and_returns_the_error() {
    let world = World::new();
    let fails = ChildSpec::new(world.fake("b").script(&[Begin::Fails]));
    let supervisor = Supervisor::new(Strategy::OneForOne).name("tree");
    let supervisor = supervisor.child(world.child("a")).child(fails).child(world.child("c"));
    let error = supervisor.start().await.unwrap_err();
    assert_eq!(error.to_string(), "start of /tree/b: the start failed: no luck");
    assert_eq!(world.events(), ["start a 1", "ready a 1", "start b 1", "Graceful a", "end a 1"]);
    world.tree(&["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_first_start_that_fails_is_not_tried_again_and_its_name_is_free() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    world.log();
    for (begin, why) in [
        (Begin::Fails, "the start failed: no luck"),
        (Begin::After(secs(100)), "the start failed: not ready within 30s"),
        (Begin::Panics, "no luck at all"),
    ] {
        let error = tree.start_child(ChildSpec::new(world.fake("b").script(&[begin]))).await.unwrap_err();
        assert!(error.to_string().starts_with("start of /tree/b: the start failed: "), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        settle().await;
        assert_eq!(world.events(), ["start b 1"]);
        assert_eq!(tree.count().specs, 1);
    }
    tree.start_child(world.child("b")).await.unwrap();
    assert_eq!(tree.get::<Echo>("a").unwrap().incarnation(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn who_asks_a_child_whose_first_start_fails_is_told() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let spec = ChildSpec::new(world.fake("a").script(&[Begin::After(secs(9))])).start_timeout(secs(2));
    let starting = tokio::spawn({
        let tree = tree.clone();
        async move { tree.start_child(spec).await }
    });
    settle().await;
    let error = tree.get::<Echo>("a").unwrap().who().await.unwrap_err();
    assert!(error.is_closed() && error.to_string().contains("not ready within 2s"), "{error}");
    assert_eq!(world.begun.elapsed(), secs(2));
    assert!(starting.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn contradictions_are_errors_before_anything_starts() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let mut wrong = world.fake("a");
    wrong.check = Some(Fault::Refused("nobody hosts it".to_owned()));
    let error = tree.start_child(ChildSpec::new(wrong)).await.unwrap_err();
    assert_eq!(error.to_string(), "start of /tree/a: nobody hosts it");
    assert_eq!((world.log(), tree.count().specs), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_of_a_start_does_not_stop_the_child() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let slow = ChildSpec::new(world.fake("a").script(&[Begin::After(secs(2))]));
    assert!(tokio::time::timeout(secs(1), tree.start_child(slow)).await.is_err());
    assert_eq!(tree.get::<Echo>("a").unwrap().who().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_of_a_supervisors_start_stops_what_had_started() {
    let world = World::new();
    let hangs = ChildSpec::new(world.fake("b").script(&[Begin::Hangs]));
    let supervisor = Supervisor::new(Strategy::OneForOne).child(world.child("a")).child(hangs);
    assert!(tokio::time::timeout(secs(1), supervisor.start()).await.is_err());
    settle().await;
    assert_eq!(world.events(), ["start a 1", "ready a 1", "start b 1", "Graceful a", "end a 1"]);
}

#[tokio::test(start_paused = true)]
async fn admin_calls_answer_while_a_start_hangs() {
    let world = World::new();
    let tree = world.at_once(Strategy::OneForOne).child(world.child("a")).start().await.unwrap();
    let spec = ChildSpec::new(world.fake("b").script(&[Begin::Hangs]));
    let starting = tokio::spawn({
        let tree = tree.clone();
        async move { tree.start_child(spec).await }
    });
    settle().await;
    assert_eq!((tree.count().specs, tree.count().active), (2, 1));
    assert!(!tree.get::<Echo>("b").unwrap().is_alive());
    tree.start_child(world.child("c")).await.unwrap();
    world.kill("a").await;
    assert_eq!(tree.get::<Echo>("a").unwrap().incarnation(), Some(2));
    assert_eq!(world.begun.elapsed(), Duration::ZERO);
    tree.stop().await.unwrap();
    assert_eq!(world.begun.elapsed(), Duration::ZERO);
    assert!(starting.await.unwrap().is_err());
}

// ---------------------------------------------------------------- names

#[tokio::test(start_paused = true)]
async fn a_name_is_given_once_among_siblings_and_again_when_it_is_free() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    let error = tree.start_child(world.child("a")).await.unwrap_err();
    assert!(error.to_string().contains("the name \"a\" is taken"), "{error}");
    assert_eq!((tree.count().specs, world.alive()), (1, vec!["a".to_owned()]));
    let error = Supervisor::new(Strategy::OneForOne).name("tree").start().await.unwrap_err();
    assert!(error.to_string().contains("the name \"tree\" is taken"), "{error}");
    tree.stop().await.unwrap();
    world.tree(&["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn names_that_are_no_path_segments_are_refused() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    for name in ["", "a/b", "~a", "a\nb", &"a".repeat(101)] {
        assert!(tree.start_child(world.child(name)).await.is_err(), "{name:?}");
        assert!(Supervisor::new(Strategy::OneForOne).name(name).start().await.is_err(), "{name:?}");
    }
    assert_eq!((world.log(), tree.count().specs), (vec![], 0));
    tree.start_child(world.child(&"ä".repeat(50))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn supervisors_without_a_name_have_paths_of_their_own() {
    let _world = World::new();
    let one = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    let two = Supervisor::new(Strategy::OneForOne).start().await.unwrap();
    assert!(one.path().starts_with("/~") && two.path().starts_with("/~"));
    assert_ne!(one.path(), two.path());
}

#[tokio::test(start_paused = true)]
async fn a_child_is_found_by_name_and_actor() {
    let world = World::new();
    let tree = world.tree(&["a", "b"]).await;
    assert_eq!(tree.get::<Echo>("b").unwrap().path(), "/tree/b");
    let error = tree.get::<Other>("a").map(drop).unwrap_err();
    assert_eq!(error.to_string(), "/tree/a is a supervisor::Echo, not a supervisor::Other");
    let error = tree.get::<Echo>("c").map(drop).unwrap_err();
    assert_eq!(error.to_string(), "/tree has no child \"c\"; its children are: a, b");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_did_not_come_through_the_door_starts_no_supervisor() {
    Root::exit();
    let error = Supervisor::new(Strategy::OneForOne).start().await.unwrap_err();
    assert!(error.to_string().contains("#[hatchery::main]"), "{error}");
}

// ---------------------------------------------------------------- strategies

#[tokio::test(start_paused = true)]
async fn one_for_all_stops_all_newest_first_and_starts_all_in_order() {
    let world = World::new();
    let tree = world.group(Strategy::OneForAll).await;
    let a = tree.get::<Echo>("a").unwrap();
    world.kill("b").await;
    let stops = ["end b 1", "Graceful c", "end c 1", "Graceful a", "end a 1"];
    let starts = ["start a 2", "ready a 2", "start b 2", "ready b 2", "start c 2", "ready c 2"];
    assert_eq!(world.events(), [&stops[..], &starts[..]].concat());
    assert_eq!(a.who().await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn rest_for_one_restarts_those_that_came_later() {
    let world = World::new();
    let tree = world.group(Strategy::RestForOne).await;
    world.kill("b").await;
    let events = ["end b 1", "Graceful c", "end c 1", "start b 2", "ready b 2", "start c 2", "ready c 2"];
    assert_eq!(world.events(), events);
    assert_eq!(tree.get::<Echo>("a").unwrap().incarnation(), Some(1));
    world.kill("c").await;
    assert_eq!(world.events(), ["end c 2", "start c 3", "ready c 3"]);
}

#[tokio::test(start_paused = true)]
async fn no_fresh_one_starts_before_the_last_old_one_is_gone_and_calls_answer_meanwhile() {
    let world = World::new();
    let slow = ChildSpec::new(world.fake("b").manners(Manners::Slow(secs(3))));
    let supervisor = world.at_once(Strategy::OneForAll).child(world.child("a")).child(slow);
    let tree = supervisor.start().await.unwrap();
    let a = tree.get::<Echo>("a").unwrap();
    world.log();
    let asked = tokio::spawn(a.who());
    settle().await;
    world.kill("a").await;
    assert!(asked.await.unwrap().unwrap_err().is_crash());
    // Nothing of this waits for b.
    let states: Vec<_> = tree.children().await.iter().map(|child| child.state).collect();
    assert_eq!(states, [ChildState::Restarting, ChildState::Restarting]);
    assert!(tree.delete_child("a").await.unwrap_err().is_restarting());
    assert!(tree.restart_child("b").await.unwrap_err().is_restarting());
    tree.start_child(world.child("c")).await.unwrap();
    assert_eq!(world.begun.elapsed(), Duration::ZERO);
    assert!(a.who().timeout(secs(1)).await.unwrap_err().is_timeout(), "it waits within its deadline");
    assert_eq!(a.who().await.unwrap(), 2);
    assert_eq!(
        world.log(),
        [
            "0ns end a 1",
            "0ns Graceful b",
            "0ns start c 1",
            "0ns ready c 1",
            "3s end b 1",
            "3s start a 2",
            "3s ready a 2",
            "3s start b 2",
            "3s ready b 2"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_sibling_that_fails_to_start_has_all_tried_again_in_one_for_all() {
    let world = World::new();
    let flaky = world.fake("b").script(&[Begin::Well, Begin::Fails, Begin::Well]);
    let supervisor = world.at_once(Strategy::OneForAll).child(world.child("a")).child(ChildSpec::new(flaky));
    let tree = supervisor.start().await.unwrap();
    world.log();
    world.kill("a").await;
    let first = ["end a 1", "Graceful b", "end b 1", "start a 2", "ready a 2", "start b 2"];
    let second = ["Graceful a", "end a 2", "start a 3", "ready a 3", "start b 3", "ready b 3"];
    assert_eq!(world.events(), [first, second].concat());
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sibling_that_fails_to_start_leaves_those_before_it_up_in_rest_for_one() {
    let world = World::new();
    let flaky = world.fake("b").script(&[Begin::Well, Begin::Fails, Begin::Well]);
    let supervisor = world.at_once(Strategy::RestForOne).child(world.child("a")).child(ChildSpec::new(flaky));
    let tree = supervisor.start().await.unwrap();
    world.log();
    world.kill("a").await;
    let first = ["end a 1", "Graceful b", "end b 1", "start a 2", "ready a 2", "start b 2"];
    assert_eq!(world.events(), [&first[..], &["start b 3", "ready b 3"]].concat());
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_death_is_one_unit_however_many_siblings_it_takes_along() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::OneForAll).intensity(2, secs(60));
    let all = ["a", "b", "c"].iter().fold(supervisor, |all, name| all.child(world.child(name)));
    let tree = all.start().await.unwrap();
    for incarnation in 2..4 {
        world.kill("b").await;
        assert_eq!(tree.get::<Echo>("c").unwrap().incarnation(), Some(incarnation));
    }
    world.kill("c").await;
    assert!(tree.stop().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_group_restart_revives_stopped_siblings_and_drops_temporary_ones() {
    let world = World::new();
    let supervisor = world.at_once(Strategy::OneForAll).child(world.child("a")).child(world.child("b"));
    let tree = supervisor.child(world.child("c").restart(Restart::Temporary)).start().await.unwrap();
    let (b, c) = (tree.get::<Echo>("b").unwrap(), tree.get::<Echo>("c").unwrap());
    tree.terminate_child("b").await.unwrap();
    assert!(b.who().await.unwrap_err().is_closed());
    world.kill("a").await;
    assert_eq!(b.who().await.unwrap(), 2);
    assert!(c.who().await.unwrap_err().is_closed());
    assert_eq!(world.alive(), ["a", "b"]);
    assert_eq!(tree.count().specs, 2);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_can_not_be_killed_is_given_up_and_nobody_is_started_beside_it() {
    let world = World::new();
    let immortal = ChildSpec::new(world.fake("b").manners(Manners::Immortal));
    let supervisor = world.at_once(Strategy::OneForAll).child(world.child("a")).child(immortal);
    let tree = supervisor.start().await.unwrap();
    world.kill("a").await;
    sleep(secs(5 + 2 + 10)).await;
    settle().await;
    assert_eq!(tree.get::<Echo>("a").unwrap().incarnation(), Some(2));
    assert_eq!(tree.children().await[1].state, ChildState::GivenUp);
    assert!(tree.get::<Echo>("b").unwrap().who().await.unwrap_err().is_closed());
    // Its end, long after, is no news.
    world.kill("b").await;
    assert_eq!(tree.children().await[1].state, ChildState::GivenUp);
    tree.restart_child("b").await.unwrap();
    let error = tree.terminate_child("b").await.unwrap_err();
    assert!(error.to_string().starts_with("stop of /tree/b: it is still there 10 s after"), "{error}");
    assert_eq!(tree.children().await[1].state, ChildState::GivenUp);
    tree.stop().await.unwrap();
}

// ---------------------------------------------------------------- kinds of children

#[tokio::test(start_paused = true)]
async fn a_transient_child_that_leaves_in_order_stays_stopped_until_it_is_asked_for() {
    let world = World::new();
    let tree = world.at_once(Strategy::OneForOne).start().await.unwrap();
    let a = tree.start_child(world.child("a").restart(Restart::Transient)).await.unwrap();
    for clean in [Exit::orderly(), Exit::new(Status::Code(0)), Exit::new(Status::Signal(15))] {
        world.end("a", clean).await;
        let error = a.who().await.unwrap_err();
        assert!(error.is_closed() && error.to_string().contains("restart_child"), "{error}");
        assert_eq!((tree.count().specs, tree.count().active), (1, 0));
        assert_eq!(tree.children().await[0].state, ChildState::Stopped);
        let before = a.seat_incarnation(&tree).await;
        tree.restart_child("a").await.unwrap();
        assert_eq!(a.who().await.unwrap(), before + 1);
    }
    world.end("a", Exit::new(Status::Code(1))).await;
    assert_eq!(a.incarnation(), Some(5));
}

impl EchoHandle {
    /// The latest incarnation that its supervisor knows of.
    async fn seat_incarnation(&self, tree: &Tree) -> u64 {
        let children = tree.children().await;
        children.iter().find(|child| child.path == self.path()).unwrap().incarnation
    }
}

#[tokio::test(start_paused = true)]
async fn a_temporary_child_is_removed_however_it_ends() {
    let world = World::new();
    let tree = world.at_once(Strategy::OneForOne).start().await.unwrap();
    for exit in [Exit::orderly(), Exit::new(Status::Signal(9))] {
        let a = tree.start_child(world.child("a").restart(Restart::Temporary)).await.unwrap();
        world.end("a", exit).await;
        assert!(a.who().await.unwrap_err().is_closed());
        assert_eq!((tree.count().specs, tree.children().await), (0, vec![]));
    }
    tree.start_child(world.child("a").restart(Restart::Temporary)).await.unwrap();
    tree.terminate_child("a").await.unwrap();
    assert!(tree.restart_child("a").await.unwrap_err().is_not_found());
}

#[tokio::test(start_paused = true)]
async fn exit_code_125_is_not_tried_again_costs_nothing_and_keeps_the_spec() {
    for restart in [Restart::Permanent, Restart::Transient, Restart::Temporary] {
        let world = World::new();
        let supervisor = world.at_once(Strategy::OneForAll).intensity(0, secs(60));
        let supervisor = supervisor.child(world.child("a").restart(restart)).child(world.child("b"));
        let tree = supervisor.start().await.unwrap();
        let a = tree.get::<Echo>("a").unwrap();
        world.end("a", Exit::new(Status::Code(125))).await;
        let error = a.who().await.unwrap_err();
        assert!(error.is_closed() && error.to_string().contains("gave it up"), "{error}");
        assert!(error.to_string().contains("exited with code 125"), "{error}");
        assert_eq!(tree.children().await[0].state, ChildState::GivenUp);
        assert_eq!(tree.get::<Echo>("b").unwrap().who().await.unwrap(), 1);
        tree.restart_child("a").await.unwrap();
        assert_eq!(a.who().await.unwrap(), 2);
        tree.stop().await.unwrap();
    }
}

// ---------------------------------------------------------------- early deaths

#[tokio::test(start_paused = true)]
async fn early_deaths_wait_longer_each_time_and_asks_wait_for_them_within_their_deadlines() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    let a = tree.get::<Echo>("a").unwrap();
    for (incarnation, planned) in [(2, 100), (3, 200), (4, 400), (5, 800)] {
        let died = Instant::now();
        world.kill("a").await;
        assert_eq!(tree.children().await[0].state, ChildState::Restarting);
        assert!(a.who().timeout(Duration::from_millis(planned / 2)).await.unwrap_err().is_timeout());
        while a.incarnation() != Some(incarnation) {
            sleep(Duration::from_millis(1)).await;
        }
        let (waited, planned) = (died.elapsed(), Duration::from_millis(planned));
        assert!(
            waited >= planned * 4 / 5 && waited <= planned * 6 / 5 + Duration::from_millis(2),
            "{waited:?}"
        );
    }
    // A second is a long life.
    sleep(secs(1)).await;
    world.kill("a").await;
    assert_eq!(a.incarnation(), Some(6));
}

#[tokio::test(start_paused = true)]
async fn a_wait_can_be_cut_short_by_a_stop_of_the_child_or_of_everything() {
    let world = World::new();
    let tree = world.tree(&["a", "b"]).await;
    let a = tree.get::<Echo>("a").unwrap();
    world.kill("a").await;
    let asked = tokio::spawn(a.who());
    settle().await;
    tree.terminate_child("a").await.unwrap();
    assert!(asked.await.unwrap().unwrap_err().is_closed());
    sleep(secs(1)).await;
    assert_eq!(tree.children().await[0].state, ChildState::Stopped);
    tree.restart_child("a").await.unwrap();
    world.kill("b").await;
    let begun = Instant::now();
    tree.stop().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(world.alive(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn time_that_restarts_take_does_not_age_the_window() {
    let world = World::new();
    let tree = world.at_once(Strategy::OneForOne).intensity(1, secs(60)).start().await.unwrap();
    let slow = world.fake("a").script(&[Begin::Well, Begin::After(secs(29)), Begin::After(secs(29))]);
    let a = tree.start_child(ChildSpec::new(slow)).await.unwrap();
    world.kill("a").await;
    sleep(secs(29 + 59)).await;
    assert_eq!(a.incarnation(), Some(2));
    world.kill("a").await;
    assert!(tree.stop().await.is_err(), "it was up for 59 s only");
}

#[tokio::test(start_paused = true)]
async fn one_restart_too_many_may_give_up_that_child_alone_or_go_on() {
    let world = World::new();
    let one = world.at_once(Strategy::OneForAll).intensity(1, secs(60)).exhausted(Exhausted::GiveUpChild);
    let tree = one.child(world.child("a")).child(world.child("b")).start().await.unwrap();
    world.kill("a").await;
    world.kill("a").await;
    assert_eq!(tree.children().await[0].state, ChildState::GivenUp);
    assert_eq!(tree.get::<Echo>("b").unwrap().incarnation(), Some(2));
    tree.stop().await.unwrap();

    let world = World::new();
    let one = Supervisor::new(Strategy::OneForOne).intensity(0, secs(60)).exhausted(Exhausted::KeepTrying);
    let tree = one.child(world.child("a")).start().await.unwrap();
    let a = tree.get::<Echo>("a").unwrap();
    for incarnation in 1..20 {
        assert_eq!(a.who().await.unwrap(), incarnation);
        world.kill("a").await;
    }
    tree.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn healthy_deaths_cost_nothing_if_early_ones_count_alone() {
    let world = World::new();
    let early = world.at_once(Strategy::OneForOne).intensity(1, secs(60)).count_deaths(CountDeaths::Early);
    let tree = early.child(world.child("a")).start().await.unwrap();
    let a = tree.get::<Echo>("a").unwrap();
    for incarnation in 1..20 {
        assert_eq!(a.who().await.unwrap(), incarnation);
        world.kill("a").await;
    }
    world.kill("a").await;
    world.kill("a").await;
    assert!(tree.stop().await.is_err());
}

// ---------------------------------------------------------------- calls

#[tokio::test(start_paused = true)]
async fn every_call_has_its_answer_for_running_restarting_stopped_and_unknown_children() {
    let world = World::new();
    let tree = world.tree(&["a"]).await;
    let add = async || tree.start_child(world.child("a")).await.map(drop).unwrap_err();
    // Running.
    assert!(add().await.is_already_started());
    assert!(tree.restart_child("a").await.unwrap_err().is_running());
    assert!(tree.delete_child("a").await.unwrap_err().is_running());
    // Restarting.
    world.kill("a").await;
    assert!(add().await.is_already_present());
    assert!(tree.restart_child("a").await.unwrap_err().is_restarting());
    assert!(tree.delete_child("a").await.unwrap_err().is_restarting());
    tree.terminate_child("a").await.unwrap();
    // Stopped.
    assert!(add().await.is_already_present());
    tree.terminate_child("a").await.unwrap();
    tree.restart_child("a").await.unwrap();
    tree.terminate_child("a").await.unwrap();
    let a = tree.get::<Echo>("a").unwrap();
    tree.delete_child("a").await.unwrap();
    assert!(a.who().await.unwrap_err().is_closed());
    // Unknown.
    for error in [
        tree.restart_child("a").await.unwrap_err(),
        tree.terminate_child("a").await.unwrap_err(),
        tree.delete_child("a").await.unwrap_err(),
    ] {
        assert!(error.is_not_found() && error.to_string().contains("there is no child \"a\""), "{error}");
    }
    tree.start_child(world.child("a")).await.unwrap();
    // Ended.
    tree.stop().await.unwrap();
    assert!(tree.restart_child("a").await.unwrap_err().is_closed());
    assert!(tree.terminate_child("a").await.unwrap_err().is_closed());
    assert_eq!(tree.children().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_stopped_is_gone_when_that_is_answered_and_starts_again_behind_its_handle() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let slow = ChildSpec::new(world.fake("a").manners(Manners::Slow(secs(2))));
    let a = tree.start_child(slow).await.unwrap();
    // Two may want it.
    let (one, two) = (tree.clone(), tree.clone());
    let one = tokio::spawn(async move { one.terminate_child("a").await });
    two.terminate_child("a").await.unwrap();
    one.await.unwrap().unwrap();
    assert_eq!((world.begun.elapsed(), world.alive()), (secs(2), vec![]));
    tree.restart_child("a").await.unwrap();
    assert_eq!(a.who().await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_restart_by_hand_that_fails_is_told_and_leaves_the_child_stopped() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let flaky = world.fake("a").script(&[Begin::Well, Begin::Fails, Begin::Well]);
    let a = tree.start_child(ChildSpec::new(flaky)).await.unwrap();
    tree.terminate_child("a").await.unwrap();
    let error = tree.restart_child("a").await.unwrap_err();
    assert_eq!(error.to_string(), "restart of /tree/a: the start failed: no luck");
    assert!(a.who().await.unwrap_err().is_closed());
    assert_eq!(tree.children().await[0].state, ChildState::Stopped);
    tree.restart_child("a").await.unwrap();
    assert_eq!(a.who().await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_first_start_that_is_terminated_has_failed_and_its_name_is_free() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let hangs = world.fake("a").script(&[Begin::Hangs]);
    let starting = tokio::spawn({
        let (tree, spec) = (tree.clone(), ChildSpec::new(hangs));
        async move { tree.start_child(spec).await }
    });
    settle().await;
    assert_eq!(tree.children().await[0].state, ChildState::Starting);
    tree.terminate_child("a").await.unwrap();
    let error: StartError = starting.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("stopped while it started"), "{error}");
    assert_eq!(tree.children().await, []);
    tree.start_child(world.child("a")).await.unwrap();
}

/// The start completes when the call has come already, but nobody has heard of either: the call was first.
#[tokio::test(start_paused = true)]
async fn a_start_that_is_terminated_has_failed_also_if_it_completes_all_the_same() {
    let world = World::new();
    let tree = world.tree(&[]).await;
    let start = tree.start_child(ChildSpec::new(world.fake("a").script(&[Begin::OnCue, Begin::Well])));
    let mut start = std::pin::pin!(start);
    assert!(std::future::poll_fn(|task| Poll::Ready(start.as_mut().poll(task).is_pending())).await);
    settle().await;
    // First the supervisor gets the order, then the start its cue, and then both of them run.
    let mut terminate = std::pin::pin!(tree.terminate_child("a"));
    assert!(std::future::poll_fn(|task| Poll::Ready(terminate.as_mut().poll(task).is_pending())).await);
    world.cue.notify_one();
    terminate.await.unwrap();
    let error = start.await.unwrap_err();
    assert!(error.to_string().contains("stopped while it started"), "{error}");
    assert_eq!(world.events(), ["start a 1", "ready a 1", "Graceful a", "end a 1"]);
    assert_eq!(tree.children().await, []);

    // The same of one that is started by hand: that is told so, too, but its spec is kept.
    let script = [Begin::Well, Begin::OnCue, Begin::Well];
    let a = tree.start_child(ChildSpec::new(world.fake("a").script(&script))).await.unwrap();
    tree.terminate_child("a").await.unwrap();
    let mut restart = std::pin::pin!(tree.restart_child("a"));
    assert!(std::future::poll_fn(|task| Poll::Ready(restart.as_mut().poll(task).is_pending())).await);
    settle().await;
    let mut terminate = std::pin::pin!(tree.terminate_child("a"));
    assert!(std::future::poll_fn(|task| Poll::Ready(terminate.as_mut().poll(task).is_pending())).await);
    world.cue.notify_one();
    terminate.await.unwrap();
    let error = restart.await.unwrap_err();
    assert!(error.to_string().contains("stopped while it started"), "{error}");
    tree.restart_child("a").await.unwrap();
    assert_eq!(a.who().await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_a_supervisor_is_told_must_not_contradict_itself() {
    let world = World::new();
    let new = || Supervisor::new(Strategy::OneForOne).name("tree").child(world.child("a"));
    for (wrong, why) in [
        (new().intensity(3, Duration::ZERO), "within no time"),
        (new().backoff(secs(2), secs(1)), "begins with 2s"),
        (new().child(world.child("a")), "the name \"a\" is taken"),
        (new().child(world.child("b").window(0)), "a window of 0"),
        (new().max_children(0), "`max_children` allows 0"),
        (Supervisor::dynamic().child(world.child("a")), "begins without children"),
        (Supervisor::new(Strategy::OneForAll).start_concurrently(true), "cannot start all at once"),
        (Supervisor::new(Strategy::RestForOne).start_concurrently(true), "cannot start all at once"),
    ] {
        let error = wrong.start().await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(world.log(), [""; 0], "nothing was started");
    new().start().await.unwrap();
}
