//! What stands behind a seat of another process: one task that finds out who sits there, opens the way to him when
//! somebody has something to say, and learns how he ended.
//!
//! ```text
//!            somebody sits there              somebody is in line
//!  asking ────────────────────▶ following ◀───────────────────────▶ connected
//!    ▲                              │           nothing under way       │
//!    └────────── the verdict ───────┴───────────────────────────────────┘
//! ```
//!
//! It runs from the first use of the seat on, for as long as anybody holds it.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::address::{Address, ProcessId, Tenure};
use crate::child::{BoxFuture, Child, Ended, Rung, ended};
use crate::exchange::{Command, Exchange, Found, Lost, Opened, Over};
use crate::exit::{Exit, Status};
use crate::fault::Fault;
use crate::outlet::WINDOW;
use crate::seat::Seat;

/// What another process says is no reason to run out of numbers.
const FARTHEST: u64 = 1 << 60;
/// Between the end of a channel and the verdict, and the other way round: each follows the other at once, unless one of
/// both is not about an end at all.
const BOTH: Duration = Duration::from_secs(2);
/// Pauses between questions that nobody could answer.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How a seat of another process is followed.
pub(crate) struct Far {
    address: Address,
    seat: Weak<Seat>,
    exchange: Weak<dyn Exchange>,
    follows: AtomicBool,
    /// The incarnation it is at, as it is counted here; 0 before the first.
    number: AtomicU64,
    task: Mutex<Option<AbortHandle>>,
}

impl Far {
    pub(crate) fn new(address: Address, seat: Weak<Seat>, exchange: Weak<dyn Exchange>) -> Far {
        Far {
            address,
            seat,
            exchange,
            follows: AtomicBool::new(false),
            number: AtomicU64::new(0),
            task: Mutex::default(),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn exchange(&self) -> Option<Arc<dyn Exchange>> {
        self.exchange.upgrade()
    }

    /// Has this done to whoever sits there.
    pub(crate) fn command(&self, command: Command) {
        if let Some(exchange) = self.exchange.upgrade() {
            let Address { path, actor, only, .. } = &self.address;
            drop(exchange.command(path, actor, *only, command));
        }
    }

    /// The next incarnation, as it is counted here: as its parent counts, unless that one has begun anew.
    pub(crate) fn next(&self, incarnation: u64) -> u64 {
        let next = incarnation.min(FARTHEST).max(self.number.load(Ordering::Relaxed) + 1);
        self.number.store(next, Ordering::Relaxed);
        next
    }

    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    pub(crate) fn forsaken(&self) {
        self.follows.store(false, Ordering::Relaxed);
    }

    /// Begins to follow, if nobody does: on the runtime of the run, whoever asks for it.
    pub(crate) fn follow(&self) {
        if self.follows.load(Ordering::Relaxed) {
            return;
        }
        let Some(exchange) = self.exchange.upgrade() else { return };
        let Some(runtime) = exchange.runtime().or_else(|| Handle::try_current().ok()) else { return };
        if self.follows.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(seat) = self.seat.upgrade() {
            seat.reopen();
        }
        let follower = Follower { seat: self.seat.clone(), number: self.number(), over: false };
        let (address, exchange) = (self.address.clone(), self.exchange.clone());
        let task = runtime.spawn(async move { follower.run(address, exchange).await });
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// The task.
struct Follower {
    seat: Weak<Seat>,
    /// The incarnation it is at.
    number: u64,
    /// Nobody will sit there any more.
    over: bool,
}

impl Follower {
    async fn run(mut self, address: Address, exchange: Weak<dyn Exchange>) {
        let (mut after, mut pause) = (None, FIRST_PAUSE);
        loop {
            let Some(exchange) = exchange.upgrade() else { return };
            let Some(held) = self.seat.upgrade().map(|seat| seat.held()) else { return };
            match exchange.resolve(&address, after, held).await {
                Ok(found) => {
                    pause = FIRST_PAUSE;
                    after = self.sits(&*exchange, &address, found).await;
                }
                Err(Lost::Closed(why)) => {
                    self.close(Fault::Closed { why: why.clone() }, &why);
                    // Whoever uses it next may find somebody who came meanwhile.
                    if let Some(seat) = self.seat.upgrade() {
                        seat.forsaken();
                    }
                    return;
                }
                Err(Lost::Held(hold)) => {
                    if let Some(seat) = self.seat.upgrade() {
                        seat.hold_as(hold);
                    }
                }
                Err(Lost::Over(exit)) => {
                    return self.close(Fault::Ended { exit, maybe_executed: false }, ENDED);
                }
                Err(Lost::Broken | Lost::Busy) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            if self.over || self.seat.strong_count() == 0 {
                return;
            }
        }
    }

    fn close(&mut self, fault: Fault, why: &str) {
        self.over = true;
        if let Some(seat) = self.seat.upgrade() {
            seat.close_with(fault, why);
        }
    }

    /// From the moment in which somebody was found to his end. Gives who it was; `None` if the seat is gone.
    async fn sits(&mut self, exchange: &dyn Exchange, address: &Address, found: Found) -> Option<Tenure> {
        let only = address.only.is_some();
        let (exits, exited) = watch::channel(None);
        {
            let seat = self.seat.upgrade()?;
            self.number = seat.next_far(found.tenure.incarnation);
            let child = FarChild {
                found: found.clone(),
                path: address.path.clone(),
                seat: self.seat.clone(),
                number: self.number,
                exited,
            };
            seat.set_window(found.window.clamp(1, WINDOW));
            seat.set_shutdown(found.shutdown);
            if !seat.sit(self.number, found.tenure, Arc::new(child)) {
                self.over = true;
                return None;
            }
        }
        let mut verdict = pin!(verdict(exchange, &address.path, found.tenure));
        let mut over: Option<BoxFuture<Over>> = None;
        let mut said_all = false;
        let mut pause = FIRST_PAUSE;
        let known = loop {
            let connected = over.is_some();
            tokio::select! {
                biased;
                known = &mut verdict => break known,
                why = finished(&mut over), if connected => {
                    over = None;
                    if why != Over::Idle {
                        said_all = why == Over::Said;
                        self.seat.upgrade()?.shut(self.number);
                        match timeout(BOTH, &mut verdict).await {
                            Ok(known) => break known,
                            // It lives on, as far as its parent knows.
                            Err(_) => self.seat.upgrade()?.broke(self.number, &unknown(BROKE)),
                        }
                    }
                }
                () = needs_way(&self.seat), if !connected => {
                    let opening = self.open(exchange, &found);
                    tokio::select! {
                        biased;
                        opened = opening => match opened {
                            Ok(opened) => {
                                pause = FIRST_PAUSE;
                                over = opened;
                            }
                            Err(_) => {
                                if let Ok(known) = timeout(pause, &mut verdict).await {
                                    break known;
                                }
                                pause = (pause * 2).min(LONGEST_PAUSE);
                            }
                        },
                        known = &mut verdict => break known,
                    }
                }
            }
        };
        if let Some(over) = &mut over {
            // What it said before its end comes first.
            said_all = timeout(BOTH, over).await == Ok(Over::Said);
        }
        let exit = match known {
            Ok(exit) => exit,
            Err(Lost::Over(exit)) => *exit,
            Err(Lost::Closed(why)) => unknown(&why),
            Err(Lost::Broken | Lost::Busy | Lost::Held(_)) => unknown(OWNER_ENDED),
        };
        let seat = self.seat.upgrade()?;
        // In order or not: of those who have no answer nobody knows unless it could say all that it had to say.
        let orderly = exit.is_orderly() && said_all;
        seat.ended(self.number, &exit.clone().with_orderly(orderly));
        if only {
            self.close(Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: false }, ENDED);
        }
        exits.send_replace(Some(Arc::new(exit)));
        Some(found.tenure)
    }

    /// Opens the way, unless the seat is gone.
    fn open(
        &self,
        exchange: &dyn Exchange,
        found: &Found,
    ) -> impl Future<Output = Result<Option<BoxFuture<Over>>, Lost>> + use<> {
        let (seat, number) = (self.seat.clone(), self.number);
        let opening = seat.upgrade().map(|seat| exchange.open(&seat, number, found));
        async move {
            let Some(opening) = opening else { return Ok(None) };
            let Opened { line, over } = opening.await?;
            if let Some(seat) = seat.upgrade() {
                seat.connect(number, line);
            }
            Ok(Some(over))
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // Its runtime has ended, or nobody holds the seat any more.
        if let Some(seat) = self.seat.upgrade() {
            seat.ended(self.number, &unknown("the runtime on which it was reached has ended"));
            seat.forsaken();
        }
    }
}

/// How this one ended, asked again for as long as nobody can say.
async fn verdict(exchange: &dyn Exchange, path: &str, tenure: Tenure) -> Result<Exit, Lost> {
    let mut pause = FIRST_PAUSE;
    loop {
        match exchange.verdict(path, tenure).await {
            Err(Lost::Busy) => sleep(pause).await,
            known => return known,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What a reference to one incarnation says after its end.
const ENDED: &str = "that incarnation has ended";
const OWNER_ENDED: &str = "the process that had started it ended, and it with that";
const BROKE: &str = "the connection to it broke";

fn unknown(reason: &str) -> Exit {
    Exit::new(Status::Unknown).with_reason(Some(reason.to_owned()))
}

/// Resolves when the way is over.
async fn finished(over: &mut Option<BoxFuture<Over>>) -> Over {
    match over {
        Some(over) => over.await,
        None => pending().await,
    }
}

/// Resolves when somebody is in line at this seat and there is no way.
async fn needs_way(seat: &Weak<Seat>) {
    poll_fn(|cx| match seat.upgrade() {
        Some(seat) => seat.poll_needs_way(cx),
        None => Poll::Pending,
    })
    .await;
}

/// An incarnation in another process, or one that another process started.
struct FarChild {
    found: Found,
    path: String,
    seat: Weak<Seat>,
    /// The incarnation as it is counted here.
    number: u64,
    exited: Ended,
}

impl FarChild {
    fn command(&self, command: Command) -> Option<BoxFuture<Result<(), Fault>>> {
        let seat = self.seat.upgrade()?;
        Some(seat.exchange()?.command(&self.path, seat.actor(), Some(self.found.tenure), command))
    }
}

impl Child for FarChild {
    fn stop(&self, rung: Rung) {
        let drains = rung == Rung::Drain && self.seat.upgrade().is_some_and(|seat| seat.drain(self.number));
        // Asked here and now; nobody waits for the word that it was. Who has been told behind all that was sent to him has
        // still to be woken up for it, which is up to his parent.
        drop(self.command(if drains { Command::Resume } else { Command::Stop(rung) }));
    }

    fn pid(&self) -> Option<u32> {
        self.found.pid.filter(|_| self.exited.borrow().is_none())
    }

    fn process(&self) -> Option<ProcessId> {
        Some(self.found.process.clone())
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        Box::pin(ended(self.exited.clone()))
    }

    fn suspend(&self) -> BoxFuture<Result<(), Fault>> {
        let asked = self.command(Command::Suspend);
        Box::pin(async move {
            match asked {
                Some(asked) => asked.await,
                None => Err(Fault::Refused("this program is ending".to_owned())),
            }
        })
    }

    fn pause(&self) -> Result<(), Fault> {
        drop(self.command(Command::Pause));
        Ok(())
    }

    fn resume(&self) -> Result<(), Fault> {
        drop(self.command(Command::Resume));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use hatchery_wire::{Body, encode};
    use proptest::prelude::*;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::ask::Ask;
    use crate::error::{CallError, Never};
    use crate::handle::ActorRef;
    use crate::hold::Hold;
    use crate::outlet::{Answer, Line, Request};

    /// The process that owns the seat, those that live in it one after another, and what lies in between.
    struct World {
        state: Mutex<State>,
        /// Goes on with every change.
        changes: watch::Sender<u64>,
    }

    #[derive(Default)]
    struct State {
        /// Another one for each life of the owner.
        owner: u64,
        incarnation: u64,
        /// Whether the present incarnation sits there.
        sits: bool,
        closed: bool,
        /// Who has to be gone before anybody sits there.
        held: Hold,
        exits: HashMap<Tenure, Exit>,
        /// How many of the next questions a process on the way does not survive.
        broken: u64,
        /// How many of the next channels cannot be opened.
        unopened: u64,
        /// The channel, by its number: to whom it leads, and whether and why it is over.
        channels: Vec<(Tenure, watch::Sender<Option<Over>>)>,
        /// What has arrived and is not answered: the request and its seat's number for the incarnation.
        requests: Vec<(Tenure, u64, Arc<Seat>, u64)>,
        /// What each incarnation was given, in its order.
        seen: Vec<(Tenure, u64)>,
        /// The latest seat that a way was opened for, to disconnect it.
        reached: Option<(Arc<Seat>, u64)>,
    }

    impl World {
        fn new() -> Arc<World> {
            let state = State { owner: 1, ..State::default() };
            Arc::new(World { state: Mutex::new(state), changes: watch::Sender::new(0) })
        }

        fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
            let changed = change(&mut self.state.lock().unwrap());
            self.changes.send_modify(|version| *version += 1);
            changed
        }

        async fn until<T>(self: Arc<World>, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
            let mut changes = self.changes.subscribe();
            loop {
                changes.mark_unchanged();
                if let Some(found) = look(&mut self.state.lock().unwrap()) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        }
    }

    impl State {
        fn tenure(&self) -> Tenure {
            Tenure { seat: self.owner, incarnation: self.incarnation }
        }

        fn fill(&mut self) {
            if !self.sits && !self.closed {
                self.incarnation += 1;
                self.sits = true;
            }
        }

        fn end(&mut self, exit: Exit) {
            if std::mem::take(&mut self.sits) {
                let tenure = self.tenure();
                self.exits.insert(tenure, exit);
                self.requests.retain(|(to, ..)| *to != tenure);
                self.cut(Over::Ended);
            }
        }

        /// All channels are over.
        fn cut(&mut self, why: Over) {
            for (_, over) in self.channels.drain(..) {
                over.send_replace(Some(why));
            }
        }
    }

    /// The exchange of a process elsewhere.
    struct Fake(Arc<World>);

    impl Exchange for Fake {
        fn runtime(&self) -> Option<Handle> {
            Handle::try_current().ok()
        }

        fn resolve(&self, _: &Address, after: Option<Tenure>, held: u64) -> BoxFuture<Result<Found, Lost>> {
            Box::pin(self.0.clone().until(move |state| {
                if state.broken > 0 {
                    state.broken -= 1;
                    return Some(Err(Lost::Broken));
                }
                if state.closed {
                    return Some(Err(Lost::Closed("it was stopped".to_owned())));
                }
                let tenure = state.tenure();
                let process = ProcessId { path: "/there".to_owned(), birth: 7 };
                let found = Found { tenure, process, pid: Some(7), window: 4, shutdown: Default::default() };
                if state.sits && after != Some(tenure) {
                    return Some(Ok(found));
                }
                (state.held.number != held).then(|| Err(Lost::Held(state.held.clone())))
            }))
        }

        fn open(&self, seat: &Arc<Seat>, number: u64, found: &Found) -> BoxFuture<Result<Opened, Lost>> {
            let (world, seat, tenure) = (self.0.clone(), seat.clone(), found.tenure);
            Box::pin(async move {
                tokio::task::yield_now().await;
                world.change(|state| {
                    if state.unopened > 0 {
                        state.unopened -= 1;
                        return Err(Lost::Busy);
                    }
                    if !state.sits || state.tenure() != tenure {
                        return Err(Lost::Broken);
                    }
                    let (over, mut is_over) = watch::channel(None);
                    state.channels.push((tenure, over));
                    state.reached = Some((seat.clone(), number));
                    let line = Arc::new(Wire {
                        world: world.clone(),
                        tenure,
                        seat: Arc::downgrade(&seat),
                        number,
                        ended: is_over.clone(),
                    });
                    let over = async move { is_over.wait_for(Option::is_some).await.unwrap().unwrap() };
                    Ok(Opened { line, over: Box::pin(over) })
                })
            })
        }

        fn verdict(&self, _: &str, tenure: Tenure) -> BoxFuture<Result<Exit, Lost>> {
            Box::pin(self.0.clone().until(move |state| {
                if state.owner != tenure.seat {
                    return Some(Err(Lost::Broken));
                }
                state.exits.get(&tenure).cloned().map(Ok)
            }))
        }

        fn command(&self, _: &str, _: &str, _: Option<Tenure>, _: Command) -> BoxFuture<Result<(), Fault>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    struct Wire {
        world: Arc<World>,
        tenure: Tenure,
        seat: Weak<Seat>,
        number: u64,
        ended: watch::Receiver<Option<Over>>,
    }

    impl Line for Wire {
        fn send(&self, request: Request) -> Result<(), Fault> {
            let Some(seat) = self.seat.upgrade() else { return Ok(()) };
            self.world.change(|state| {
                let n = hatchery_wire::decode(&request.body).unwrap();
                state.seen.push((self.tenure, n));
                // Who is not there any more, or cannot be reached, answers nothing.
                if self.ended.borrow().is_none() && state.sits && state.tenure() == self.tenure {
                    state.requests.push((self.tenure, self.number, seat, request.id));
                }
            });
            Ok(())
        }

        fn withdraw(&self, _: u64) {}

        fn probe(&self, _: u64, _: crate::probe::Probe) {}

        fn credit(&self, _: u64, _: usize) {}
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask,
        Answer,
        Fill,
        End,
        OwnerEnds,
        Break(u64),
        CannotOpen(u64),
        /// The channel breaks, though who it leads to lives on.
        Cut,
        /// The channel is closed if nothing is under way on it.
        Rest,
        /// Somebody has to be gone before the next one comes, or nobody: whoever asks from outside waits all the same.
        Hold(u64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => Just(Step::Ask),
            8 => Just(Step::Answer),
            4 => Just(Step::Fill),
            3 => Just(Step::End),
            1 => Just(Step::OwnerEnds),
            1 => (1..3_u64).prop_map(Step::Break),
            1 => (1..3_u64).prop_map(Step::CannotOpen),
            1 => Just(Step::Cut),
            2 => Just(Step::Rest),
            2 => (0..3_u64).prop_map(Step::Hold),
            8 => (0..20_u64).prop_map(Step::Wait),
            1 => (1000..3000_u64).prop_map(Step::Wait),
        ]
    }

    type Asked = JoinHandle<Result<u64, CallError<Never>>>;

    fn ask(actor: &ActorRef, n: u64) -> Asked {
        let ask: Ask<u64, Never> = actor.ask("double", &n);
        tokio::spawn(ask.timeout(Duration::from_secs(3600)))
    }

    fn answer(state: &mut State) -> Option<(Arc<Seat>, u64, u64)> {
        let (_, number, seat, id) = (!state.requests.is_empty()).then(|| state.requests.remove(0))?;
        Some((seat, number, id))
    }

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// Gives all that has arrived its answer.
    async fn serve(world: &World) {
        settle().await;
        loop {
            let next = answer(&mut world.state.lock().unwrap());
            let Some((seat, number, id)) = next else { break };
            let value: Body = encode(&0_u64).unwrap();
            seat.answered(number, id, Answer::Value(value), true).unwrap();
            settle().await;
        }
    }

    fn run(steps: Vec<Step>, is_closed_at_last: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let world = World::new();
            let exchange: Arc<dyn Exchange> = Arc::new(Fake(world.clone()));
            let path = "/there/it".to_owned();
            let address = Address { tree: 1, path, actor: "It".to_owned(), only: None };
            let seat = Seat::far(address, "It", Arc::downgrade(&exchange));
            let actor = ActorRef::new(seat.clone());
            let mut asked: Vec<Asked> = Vec::new();
            for step in steps {
                match step {
                    Step::Ask => {
                        asked.push(ask(&actor, asked.len() as u64));
                    }
                    Step::Answer => {
                        let next = answer(&mut world.state.lock().unwrap());
                        if let Some((seat, number, id)) = next {
                            let value = encode(&0_u64).unwrap();
                            seat.answered(number, id, Answer::Value(value), true).unwrap();
                        }
                    }
                    Step::Fill => world.change(State::fill),
                    Step::End => world.change(|state| state.end(Exit::new(Status::Signal(9)))),
                    Step::OwnerEnds => world.change(|state| {
                        state.end(Exit::new(Status::Signal(9)));
                        (state.owner, state.incarnation) = (state.owner + 1, 0);
                    }),
                    Step::Break(n) => world.change(|state| state.broken += n),
                    Step::CannotOpen(n) => world.change(|state| state.unopened += n),
                    Step::Cut => world.change(|state| {
                        // What was on its way is lost with it.
                        state.requests.clear();
                        state.cut(Over::Ended);
                    }),
                    Step::Rest => {
                        let reached = world.state.lock().unwrap().reached.clone();
                        if reached.is_some_and(|(seat, number)| seat.disconnect(number)) {
                            world.change(|state| state.cut(Over::Idle));
                        }
                    }
                    Step::Hold(number) => world.change(|state| {
                        let by = if number > 0 { vec!["/somebody".to_owned()] } else { Vec::new() };
                        state.held = Hold { number, by, exit: None };
                    }),
                    Step::Wait(millis) => sleep(Duration::from_millis(millis)).await,
                }
                settle().await;
            }
            seat.follow();
            // In the end somebody sits there for good, or nobody ever will.
            if is_closed_at_last {
                world.change(|state| {
                    state.end(Exit::new(Status::Signal(9)));
                    state.closed = true;
                });
            } else {
                world.change(State::fill);
            }
            for _ in 0..100 {
                sleep(Duration::from_secs(1)).await;
                serve(&world).await;
            }
            let (mut crashed, mut sent_twice) = (0, Vec::new());
            for (n, asked) in asked.into_iter().enumerate() {
                assert!(asked.is_finished(), "{n} waits for ever");
                let times =
                    world.state.lock().unwrap().seen.iter().filter(|(_, seen)| *seen == n as u64).count();
                if times > 1 {
                    sent_twice.push(n);
                }
                match asked.await.unwrap() {
                    Ok(_) => assert_eq!(times, 1),
                    Err(error) if error.is_crash() => {
                        assert_eq!(times, 1, "it was sent to the one that ended: {error}");
                        crashed += 1;
                    }
                    Err(error) => {
                        assert!(
                            error.is_closed() && is_closed_at_last && times == 0,
                            "{error} after {times}"
                        );
                    }
                }
            }
            assert_eq!(sent_twice, Vec::<usize>::new());
            let sits = match seat.occupancy() {
                crate::seat::Occupancy::Occupied(occupant) => Some(occupant.incarnation),
                _ => None,
            };
            let (owner, incarnation) = world.change(|state| (state.owner, state.incarnation));
            assert_eq!(sits.is_some(), !is_closed_at_last, "{crashed} crashed");
            if let (Some(sits), 1) = (sits, owner) {
                assert_eq!(sits, incarnation, "counted as its parent counts, broken channels or not");
            }
            // With the last who holds it, the task that follows is gone, and with it its hold on the exchange.
            world.change(|state| (state.reached, state.requests) = (None, Vec::new()));
            drop((actor, seat));
            settle().await;
            assert_eq!(Arc::strong_count(&exchange), 1);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn whatever_happens_in_between_every_ask_ends_once_and_who_sits_there_is_found(
            steps in prop::collection::vec(step(), 1..60),
            is_closed_at_last: bool,
        ) {
            run(steps, is_closed_at_last);
        }
    }
}
