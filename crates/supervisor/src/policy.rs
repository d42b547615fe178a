//! What a supervisor decides, as a pure function: `step(state, event, now, random) -> (state, actions)`.
//!
//! A child is in one of these phases:
//!
//! ```text
//!   add ──▶ Starting ──ready──▶ Running ──death──▶ Waiting ──its turn──▶ Starting (the next incarnation)
//!              │ first start fails: removed   │  ▲ a sibling takes it along: Doomed, Stopping, then Waiting
//!              ▼                              ▼  │
//!            gone ◀──delete── Stopped ◀── clean, given up, terminated
//!                                 ▲
//!                                 └── gone after all ── Unkillable ◀── it is to be gone, and is not
//! ```
//!
//! | death of a running child | Permanent | Transient | Temporary |
//! |---|---|---|---|
//! | clean | restart | stopped, spec kept | removed |
//! | abnormal | restart | restart | removed |
//! | "do not try again" | given up: stopped, spec kept | given up | given up |
//! | while we stop it | no unit; given up if it says so | no unit | no unit |
//! | none: it cannot be killed | given up: unkillable | unkillable | unkillable |
//!
//! | call | running | restarting | stopped | unkillable | unknown |
//! |---|---|---|---|---|---|
//! | add | already started | already present | already present | unkillable | starts |
//! | restart | running | restarting | starts | unkillable | not found |
//! | terminate | stops it | cancels the retry | nothing to do | unkillable | not found |
//! | delete | running | restarting | removed | unkillable | not found |
//!
//! What cannot be killed sits where nobody may sit beside it: until it is gone after all, its child is neither started, by
//! a call or with its group, nor removed. Then it is an ordinary one that was given up, and one that was to be removed is.
//!
//! A restart takes nobody along (one for one), all others (one for all), or those that were added later (rest for one):
//! they are stopped, newest first; then all start, oldest first, each when the one before it is ready. Those that were
//! stopped before are revived, temporary ones are dropped. The one that died waits before its turn comes if it had
//! hardly lived, each time longer.
//!
//! With auto-shutdown, a significant child that ends by itself and is not started again ends the supervisor: each that does,
//! or the last one that was active. That is put off until all children have started that the supervisor begins with. An
//! end that the supervisor or a call has wanted is none of these.
//!
//! A dynamic supervisor keeps nothing that does not run: what the tables leave stopped is removed. At its end all its
//! children are stopped at the same time.
//!
//! A death is one unit of the intensity, whoever is taken along, and each restart that fails is one more. The window in
//! which units are counted does not age while somebody is being restarted: stopped for it, waiting, or starting. Starts and
//! stops that were asked for are no such time. A child that is given up takes its own units along.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::rules::{
    AutoShutdown, Backoff, Contradiction, CountDeaths, Exhausted, Intensity, Kind, Restart, Rules, Strategy,
};

/// Whether a test has `step` make this mistake, to see that it would be noticed.
#[cfg(test)]
macro_rules! slips {
    ($mistake:ident) => {
        crate::model::made(crate::model::Mistake::$mistake)
    };
}
/// It makes none.
#[cfg(not(test))]
macro_rules! slips {
    ($mistake:ident) => {
        false
    };
}

/// Names a child of one supervisor; never used twice.
pub type Id = u64;

/// How long an incarnation has to have been ready so that its death is no early one.
const HEALTHY: Duration = Duration::from_secs(1);

/// A death, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// In order, or with exit code 0, or by a signal that asks for the end.
    Clean,
    /// In any other way.
    Abnormal,
    /// With the exit code that says not to try again.
    GiveUp,
    /// In none: it, or something of it, cannot be killed. [`Event::Gone`] follows if it ends after all.
    Unkillable,
}

impl Death {
    /// Whether the child is given up, whatever its kind.
    fn gives_up(self) -> bool {
        matches!(self, Death::GiveUp | Death::Unkillable)
    }
}

/// All that a supervisor remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    rules: Rules,
    /// When the latest units were, by `age`, and whose, oldest first; never more than `max`.
    units: VecDeque<(Duration, Id)>,
    /// The clock of the window: it stands still while somebody is being restarted.
    age: Duration,
    /// When the last event was.
    last: Duration,
    /// Numbers the waits, so that one that was cancelled is not mistaken for a later one.
    waits: u64,
    /// In order of their addition.
    children: Vec<Child>,
    /// Whether there are children that it begins with and that have not started yet.
    beginning: bool,
    /// The latest significant child whose end might have been that of all by then.
    ended_early: Option<Id>,
    ending: Option<Ending>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Child {
    id: Id,
    kind: Kind,
    incarnation: u64,
    phase: Phase,
    /// When its latest incarnation became ready.
    ready: Option<Duration>,
    /// How many early deaths it has had in a row.
    early: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting(Begin),
    Running,
    /// It is up, or starting, and will be stopped when its turn has come.
    Doomed(Then),
    Stopping(Then),
    /// Nobody is there, and it will be started when its turn has come; after this wait, if there is one.
    Waiting(Option<u64>),
    Stopped,
    /// It was given up and is still there; what follows when it is gone, which is never a start.
    Unkillable(Then),
}

/// How short the life was that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Short {
    /// It was up for long enough.
    Not,
    /// It was up, but not for long.
    Life,
    /// It never was up: its start failed.
    Start,
}

impl Short {
    fn of(healthy: bool) -> Short {
        if healthy { Short::Not } else { Short::Life }
    }
}

/// Which start this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// Its first.
    First,
    /// Somebody asked for it. Like the first, it is not tried again, and no sibling's death takes it along.
    ByHand,
    /// A restart.
    Again,
}

/// What follows when it has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Again,
    Stay,
    Remove,
}

/// How a child stands, for whoever asks something of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is up, starting for the first time, or being stopped for good.
    Running,
    /// It is between two incarnations, or about to be.
    Restarting,
    /// Nobody is there, and nobody will be unless asked for, or revived with the group.
    Stopped,
    /// It was given up and is still there, so nobody else will be.
    Unkillable,
}

/// Why a supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// This child was the last straw.
    Exhausted(Id),
    /// This significant child has ended; an end in order.
    AutoShutdown(Id),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new child is wanted.
    Add(Id, Kind),
    /// All children that it begins with have started.
    AllStarted,
    /// A stopped child shall run again.
    Restart(Id),
    /// A child shall be stopped, and stay so.
    Terminate(Id),
    /// A stopped child shall be forgotten.
    Delete(Id),
    /// A start has succeeded.
    Ready(Id),
    /// A start has failed; nothing of it is left, unless that cannot be killed.
    StartFailed(Id, Death),
    /// A child that was ready has ended.
    Exited {
        /// Which.
        id: Id,
        /// How.
        death: Death,
        /// Whether that incarnation had answered a message.
        answered: bool,
    },
    /// What could not be killed has ended after all.
    Gone(Id),
    /// A wait is over.
    Elapsed(Id, u64),
    /// Everything shall stop.
    Stop,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start this incarnation of it.
    Start(Id, u64),
    /// Stop it, or give up its start. Its end is told by `Exited` or `StartFailed` as any other.
    Stop(Id),
    /// Tell of `Elapsed`, with this number, when so much time has passed.
    Wait(Id, u64, Duration),
    /// Nobody sits in its seat for now; its spec is kept.
    Rest(Id),
    /// The same, and it was given up.
    GiveUp(Id),
    /// Forget it; nobody will sit in its seat again.
    Remove(Id),
    /// What was asked of it cannot be.
    Refuse(Id, Refusal),
    /// Everything has stopped.
    Finish(Ending),
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// To add: it is there, and running.
    AlreadyStarted,
    /// To add: it is there, and does not run right now.
    AlreadyPresent,
    /// To restart or delete: it runs.
    Running,
    /// To restart or delete: it is being restarted.
    Restarting,
    /// To anything: it cannot be killed, and is still there.
    Unkillable,
    /// There is no such child.
    NotFound,
    /// To add: there are as many as there may be.
    MaxChildren,
    /// To add: it and its supervisor contradict each other.
    Contradiction(Contradiction),
    /// Everything is being stopped.
    Ending,
}

impl State {
    /// A supervisor without children, which is about to begin.
    pub fn new(rules: Rules) -> State {
        State {
            rules,
            units: VecDeque::new(),
            age: Duration::ZERO,
            last: Duration::ZERO,
            waits: 0,
            children: Vec::new(),
            beginning: true,
            ended_early: None,
            ending: None,
        }
    }

    /// Whether it still takes new children.
    pub fn is_open(&self) -> bool {
        self.ending.is_none()
    }

    /// Whether it gave up, and this child was the last straw.
    pub fn ended_by(&self, id: Id) -> bool {
        self.ending == Some(Ending::Exhausted(id))
    }

    /// Why it ends, once it does.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// How a child stands, if there is such a one.
    pub fn standing(&self, id: Id) -> Option<Standing> {
        self.children.iter().find(|child| child.id == id).map(Child::standing)
    }

    /// How many units there are in the window.
    pub fn units(&self, now: Duration) -> u32 {
        let idle = if self.is_restarting() { Duration::ZERO } else { now.saturating_sub(self.last) };
        let (age, within) = (self.age + idle, self.rules.intensity.within);
        let counted = self.units.iter().filter(|(at, _)| age - *at < within).count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    /// Whom those that are down wait for: who is being stopped, if that has to be over before anybody is started.
    pub fn in_the_way(&self) -> impl Iterator<Item = Id> {
        let alone = self.rules.strategy == Strategy::OneForOne && self.is_open();
        let children = if alone { &[] } else { &*self.children };
        children.iter().filter(|child| matches!(child.phase, Phase::Stopping(_))).map(|child| child.id)
    }

    /// Whether nobody is there, and somebody will be when his turn has come, or, at the end of all, may be in a next run.
    pub fn is_down(&self, id: Id) -> bool {
        let phase = self.children.iter().find(|child| child.id == id).map(|child| child.phase);
        match phase {
            Some(Phase::Waiting(_)) => true,
            Some(Phase::Stopped) | None => !self.is_open(),
            Some(_) => false,
        }
    }

    fn find(&mut self, id: Id) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.id == id)
    }

    /// Whether it stops somebody so that he can start again, waits for that, or starts him.
    fn is_restarting(&self) -> bool {
        let is_at_rest =
            |child: &Child| matches!(child.phase, Phase::Running | Phase::Stopped | Phase::Unkillable(_));
        self.children.iter().any(|child| match child.standing() {
            Standing::Restarting => true,
            _ => slips!(AllWorkHoldsTheWindow) && !is_at_rest(child),
        })
    }
}

impl Child {
    fn standing(&self) -> Standing {
        match self.phase {
            Phase::Running
            | Phase::Starting(Begin::First | Begin::ByHand)
            | Phase::Doomed(Then::Stay | Then::Remove)
            | Phase::Stopping(Then::Stay | Then::Remove) => Standing::Running,
            Phase::Starting(Begin::Again)
            | Phase::Doomed(Then::Again)
            | Phase::Stopping(Then::Again)
            | Phase::Waiting(_) => Standing::Restarting,
            Phase::Stopped => Standing::Stopped,
            Phase::Unkillable(_) => Standing::Unkillable,
        }
    }
}

/// The decision. `now` is any clock that does not go back, `random` any number. Events about children that are not there
/// are ignored.
pub fn step(mut state: State, event: Event, now: Duration, random: u64) -> (State, Vec<Action>) {
    if !state.is_restarting() || slips!(WorkAgesTheWindow) {
        state.age += now.saturating_sub(state.last);
    }
    state.last = now;
    let mut turn = Turn { state, now, random, actions: Vec::new() };
    match event {
        Event::Add(id, kind) => turn.add(id, kind),
        Event::AllStarted => turn.all_started(),
        Event::Restart(id) => turn.restart(id),
        Event::Terminate(id) => turn.terminate(id),
        Event::Delete(id) => turn.delete(id),
        Event::Ready(id) => turn.ready(id),
        Event::StartFailed(id, death) => turn.start_failed(id, death),
        Event::Exited { id, death, answered } => turn.exited(id, death, answered),
        Event::Gone(id) => turn.gone_after_all(id),
        Event::Elapsed(id, wait) => turn.elapsed(id, wait),
        Event::Stop => turn.stop(),
    }
    if turn.state.is_open() {
        turn.go_on();
    }
    (turn.state, turn.actions)
}

/// One step on its way.
struct Turn {
    state: State,
    now: Duration,
    random: u64,
    actions: Vec<Action>,
}

impl Turn {
    // ------------------------------------------------------------ calls

    fn add(&mut self, id: Id, kind: Kind) {
        let State { rules, children, .. } = &self.state;
        let room = rules.max_children.unwrap_or(usize::MAX).saturating_add(usize::from(slips!(OneMoreChild)));
        let counts =
            |child: &&Child| !(slips!(WhoWaitsTakesNoRoom) && matches!(child.phase, Phase::Waiting(_)));
        let is_full = children.iter().filter(counts).count() >= room;
        let refusal = match (self.state.standing(id), rules.check_child(kind)) {
            (None, _) if !self.state.is_open() => return self.actions.push(Action::Remove(id)),
            (Some(_), _) if !self.state.is_open() => Refusal::Ending,
            (Some(Standing::Running), _) => Refusal::AlreadyStarted,
            (Some(Standing::Restarting | Standing::Stopped), _) => Refusal::AlreadyPresent,
            (Some(Standing::Unkillable), _) => Refusal::Unkillable,
            (None, Err(contradiction)) if !slips!(AnyKindIsTaken) => Refusal::Contradiction(contradiction),
            (None, _) if is_full => Refusal::MaxChildren,
            (None, _) => {
                let phase = Phase::Starting(Begin::First);
                let child = Child { id, kind, incarnation: 1, phase, ready: None, early: 0 };
                self.state.children.push(child);
                return self.actions.push(Action::Start(id, 1));
            }
        };
        self.actions.push(Action::Refuse(id, refusal));
    }

    /// Ends that were put off count now.
    fn all_started(&mut self) {
        self.state.beginning = false;
        if let Some(id) = self.state.ended_early.take().filter(|_| self.state.is_open()) {
            if self.ends_all(None) {
                self.end(Ending::AutoShutdown(id));
            }
        }
    }

    fn restart(&mut self, id: Id) {
        if self.is_stopped(id) {
            self.start(id, Begin::ByHand);
        }
    }

    fn delete(&mut self, id: Id) {
        if self.is_stopped(id) {
            self.remove(id);
        }
    }

    /// What can be done to stopped children only is refused for all others.
    fn is_stopped(&mut self, id: Id) -> bool {
        let refusal = match self.state.standing(id) {
            _ if !self.state.is_open() => Refusal::Ending,
            Some(Standing::Stopped) => return true,
            Some(Standing::Running) => Refusal::Running,
            Some(Standing::Restarting) => Refusal::Restarting,
            Some(Standing::Unkillable) => Refusal::Unkillable,
            None => Refusal::NotFound,
        };
        self.actions.push(Action::Refuse(id, refusal));
        false
    }

    fn terminate(&mut self, id: Id) {
        let (is_open, dynamic) = (self.state.is_open(), self.state.rules.dynamic);
        let Some(child) = self.state.find(id).filter(|_| is_open) else {
            let refusal = if is_open { Refusal::NotFound } else { Refusal::Ending };
            return self.actions.push(Action::Refuse(id, refusal));
        };
        // A start that is given up has failed.
        let first = child.phase == Phase::Starting(Begin::First);
        let is_kept =
            child.kind.restart != Restart::Temporary && !first && (!dynamic || slips!(DynamicKeeps));
        let then = if is_kept { Then::Stay } else { Then::Remove };
        match child.phase {
            Phase::Starting(_) | Phase::Running | Phase::Doomed(_) => {
                child.phase = Phase::Stopping(then);
                self.actions.push(Action::Stop(id));
            }
            Phase::Stopping(Then::Again) => child.phase = Phase::Stopping(then),
            Phase::Waiting(_) if slips!(TerminateLeavesTheRetry) => {}
            Phase::Waiting(_) => self.rest(id, Death::Clean),
            Phase::Unkillable(_) => self.actions.push(Action::Refuse(id, Refusal::Unkillable)),
            Phase::Stopping(Then::Stay | Then::Remove) | Phase::Stopped => {}
        }
    }

    fn stop(&mut self) {
        if self.state.is_open() {
            self.end(Ending::Stopped);
        }
    }

    // ------------------------------------------------------------ what children do

    fn ready(&mut self, id: Id) {
        let now = self.now;
        let Some(child) = self.state.find(id) else { return };
        child.ready = Some(now);
        if let Phase::Starting(_) = child.phase {
            child.phase = Phase::Running;
        }
    }

    fn start_failed(&mut self, id: Id, death: Death) {
        let Some(child) = self.state.find(id) else { return };
        match child.phase {
            Phase::Starting(Begin::First) if death == Death::Unkillable => self.stay(id, Then::Remove),
            Phase::Starting(Begin::First) => self.remove(id),
            Phase::Starting(Begin::ByHand) => self.rest(id, death),
            Phase::Starting(Begin::Again) if death.gives_up() => self.leave(id, death),
            Phase::Starting(Begin::Again) => self.again(id, Short::Start),
            Phase::Doomed(then) | Phase::Stopping(then) => self.stopped(id, then, death),
            Phase::Running | Phase::Waiting(_) | Phase::Stopped | Phase::Unkillable(_) => {}
        }
    }

    fn exited(&mut self, id: Id, death: Death, answered: bool) {
        let now = self.now;
        let Some(child) = self.state.find(id) else { return };
        let healthy =
            answered || child.ready.take().is_some_and(|ready| now.saturating_sub(ready) >= HEALTHY);
        if healthy && !slips!(HealthForgivesNothing) {
            child.early = 0;
        }
        match (child.phase, death, child.kind.restart) {
            (Phase::Running, ..) if death.gives_up() && !slips!(GivenUpIsRestarted) => self.leave(id, death),
            (Phase::Running, _, Restart::Temporary) => self.leave(id, death),
            (Phase::Running, Death::Clean, Restart::Transient) if !slips!(CleanIsAbnormal) => {
                self.leave(id, death);
            }
            (Phase::Running, ..) => self.again(id, Short::of(healthy)),
            (Phase::Doomed(_), ..) if slips!(TakenAlongCosts) => self.again(id, Short::of(healthy)),
            (Phase::Doomed(then) | Phase::Stopping(then), ..) => self.stopped(id, then, death),
            (Phase::Starting(_), ..) => self.start_failed(id, death),
            (Phase::Waiting(_) | Phase::Stopped | Phase::Unkillable(_), ..) => {}
        }
    }

    fn gone_after_all(&mut self, id: Id) {
        let Some(child) = self.state.find(id) else { return };
        match child.phase {
            Phase::Unkillable(Then::Remove) => self.remove(id),
            Phase::Unkillable(_) if slips!(LateEndsAreRestarts) => child.phase = Phase::Waiting(None),
            Phase::Unkillable(_) => child.phase = Phase::Stopped,
            _ => {}
        }
    }

    fn elapsed(&mut self, id: Id, wait: u64) {
        if let Some(child) = self.state.find(id).filter(|child| child.phase == Phase::Waiting(Some(wait))) {
            child.phase = Phase::Waiting(None);
        }
    }

    // ------------------------------------------------------------ what follows

    /// It has died, or a restart of it has failed: it is started again, unless that is one too many.
    fn again(&mut self, id: Id, short: Short) {
        let Rules { count_deaths, exhausted, backoff, .. } = self.state.rules;
        let counts = match count_deaths {
            CountDeaths::All => true,
            CountDeaths::Early => short != Short::Not,
            CountDeaths::FailedStarts => short == Short::Start,
        };
        let mut early = short != Short::Not;
        if counts && !self.count(id) {
            match exhausted {
                Exhausted::Escalate => {
                    self.remove(id);
                    return self.end(Ending::Exhausted(id));
                }
                Exhausted::GiveUpChild => return self.leave(id, Death::GiveUp),
                Exhausted::KeepTrying => early = true,
            }
        }
        let (random, number) = (self.random, self.state.waits);
        let Some(child) = self.state.find(id) else { return };
        child.phase = Phase::Waiting(None);
        if early {
            let delay = backoff.delay(child.early, random);
            child.early = child.early.saturating_add(1);
            if delay > Duration::ZERO {
                child.phase = Phase::Waiting(Some(number));
                self.actions.push(Action::Wait(id, number, delay));
                self.state.waits += 1;
            }
        }
        self.take_along(id);
    }

    /// Counts one unit of this child's; false if that is one too many.
    fn count(&mut self, id: Id) -> bool {
        let State { rules: Rules { intensity: Intensity { max, within }, .. }, units, age, .. } =
            &mut self.state;
        while units.front().is_some_and(|(at, _)| *age - *at >= *within) {
            units.pop_front();
        }
        let max = usize::try_from(*max).unwrap_or(usize::MAX);
        let full = units.len() >= max && !(slips!(OneMoreIsAllowed) && units.len() == max);
        if !full {
            units.push_back((*age, id));
        }
        !full
    }

    /// Those siblings that are restarted with it.
    fn take_along(&mut self, id: Id) {
        let strategy = self.state.rules.strategy;
        let Some(place) = self.state.children.iter().position(|child| child.id == id) else { return };
        let from = match strategy {
            Strategy::OneForOne => return,
            Strategy::OneForAll => 0,
            Strategy::RestForOne if slips!(RestBeginsWithTheOneBefore) => place.saturating_sub(1),
            Strategy::RestForOne => place + 1,
        };
        let mut dropped = Vec::new();
        for child in self.state.children.iter_mut().skip(from).filter(|child| child.id != id) {
            let is_temporary = child.kind.restart == Restart::Temporary && !slips!(TemporaryIsTakenAlong);
            let then = if is_temporary { Then::Remove } else { Then::Again };
            match child.phase {
                Phase::Running | Phase::Starting(Begin::Again) => child.phase = Phase::Doomed(then),
                Phase::Stopping(Then::Stay) => child.phase = Phase::Stopping(then),
                Phase::Stopped if is_temporary => dropped.push(child.id),
                Phase::Stopped if slips!(StoppedStaysSo) => {}
                Phase::Stopped => child.phase = Phase::Waiting(None),
                Phase::Unkillable(Then::Stay) if slips!(UnkillableIsRevived) => {
                    child.phase = Phase::Waiting(None);
                }
                Phase::Starting(Begin::First | Begin::ByHand)
                | Phase::Unkillable(_)
                | Phase::Doomed(_)
                | Phase::Stopping(Then::Again | Then::Remove)
                | Phase::Waiting(_) => {}
            }
        }
        for id in dropped {
            self.remove(id);
        }
    }

    /// Whose turn it is now: siblings start alone, groups are stopped newest first and then started oldest first.
    fn go_on(&mut self) {
        let alone = self.state.rules.strategy == Strategy::OneForOne;
        let waiting = |child: &&mut Child| child.phase == Phase::Waiting(None);
        if alone {
            while let Some(id) = self.state.children.iter_mut().find(waiting).map(|child| child.id) {
                self.start(id, Begin::Again);
            }
            return;
        }
        let children = &mut self.state.children;
        let is = |phase: fn(&Phase) -> bool| children.iter().any(|child| phase(&child.phase));
        if is(|phase| matches!(phase, Phase::Stopping(_))) && !slips!(NobodyWaitsForStops) {
            return;
        }
        let is_starting = is(|phase| matches!(phase, Phase::Starting(Begin::Again)));
        // Where those before do not depend on those after them, they do not wait for them either.
        let ordered = self.state.rules.strategy == Strategy::RestForOne && !slips!(EldersWaitForLaterOnes);
        let waits = children.iter().position(|child| matches!(child.phase, Phase::Waiting(Some(_))));
        let due = children.iter().position(|child| child.phase == Phase::Waiting(None));
        let is_held_up = waits.is_some_and(|waits| !ordered || due.is_none_or(|due| waits < due));
        let blocked = is_starting || is_held_up;
        let doomed = |child: &&mut Child| matches!(child.phase, Phase::Doomed(_));
        if let Some(child) = children.iter_mut().rev().find(doomed) {
            if let Phase::Doomed(then) = child.phase {
                child.phase = Phase::Stopping(then);
                self.actions.push(Action::Stop(child.id));
            }
        } else if let Some(id) = children.iter_mut().find(waiting).map(|child| child.id).filter(|_| !blocked)
        {
            self.start(id, Begin::Again);
        }
    }

    fn start(&mut self, id: Id, begin: Begin) {
        let Some(child) = self.state.find(id) else { return };
        child.incarnation += 1;
        child.ready = None;
        child.phase = Phase::Starting(begin);
        self.actions.push(Action::Start(id, child.incarnation));
    }

    /// It has ended by itself, and is not started again.
    fn leave(&mut self, id: Id, death: Death) {
        let given_up = death.gives_up();
        let Some(Child { kind, .. }) = self.state.find(id) else { return };
        let Kind { restart, significant } = *kind;
        let ends_all = significant && self.ends_all(Some(id)) && !(given_up && slips!(GivenUpIsNoEnd));
        let is_put_off = self.state.beginning && !slips!(BeginningIsCutShort);
        if ends_all && !is_put_off {
            if given_up {
                self.actions.push(Action::GiveUp(id));
            }
            self.remove(id);
            return self.end(Ending::AutoShutdown(id));
        }
        if ends_all {
            self.state.ended_early = Some(id);
        }
        if given_up || restart != Restart::Temporary {
            self.rest(id, death);
        } else {
            self.remove(id);
        }
    }

    /// Whether, now that a significant child has ended, all shall; this one is not there any more.
    fn ends_all(&self, gone: Option<Id>) -> bool {
        let is_active = |child: &Child| match child.phase {
            Phase::Starting(_) | Phase::Running => true,
            Phase::Doomed(then) | Phase::Stopping(then) => then == Then::Again || slips!(StoppingIsActive),
            Phase::Waiting(_) => !slips!(WhoWaitsIsGone),
            Phase::Stopped | Phase::Unkillable(_) => false,
        };
        let is_other = |child: &&Child| child.kind.significant && Some(child.id) != gone;
        let mut others = self.state.children.iter().filter(is_other);
        match self.state.rules.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AllSignificant if !slips!(OneEndsAll) => !others.any(is_active),
            AutoShutdown::AnySignificant | AutoShutdown::AllSignificant => true,
        }
    }

    /// One that we stopped is gone.
    fn stopped(&mut self, id: Id, then: Then, death: Death) {
        match then {
            Then::Again | Then::Stay if death.gives_up() => self.rest(id, death),
            Then::Stay if slips!(TerminatedEndsAll) => self.leave(id, Death::Clean),
            Then::Stay => self.rest(id, Death::Clean),
            Then::Remove if death == Death::Unkillable && self.state.is_open() => self.stay(id, then),
            Then::Remove if slips!(TakenAlongEndsAll) && self.state.is_open() => self.leave(id, Death::Clean),
            Then::Remove => self.remove(id),
            Then::Again => {
                if let Some(child) = self.state.find(id) {
                    child.phase = Phase::Waiting(None);
                }
            }
        }
    }

    /// Nobody is there, and nobody will be unless asked for, or revived with the group; or it was given up, and is there.
    fn rest(&mut self, id: Id, death: Death) {
        let is_kept = !self.state.rules.dynamic || slips!(DynamicKeeps);
        if death == Death::Unkillable && !slips!(UnkillableIsStopped) {
            return self.stay(id, if is_kept { Then::Stay } else { Then::Remove });
        }
        let Some(child) = self.state.find(id) else { return };
        child.phase = Phase::Stopped;
        if death.gives_up() {
            self.give_up(id);
        } else if is_kept {
            self.actions.push(Action::Rest(id));
        }
        if !is_kept {
            self.remove(id);
        }
    }

    /// It cannot be killed, so its place is taken until it is gone.
    fn stay(&mut self, id: Id, then: Then) {
        let Some(child) = self.state.find(id) else { return };
        child.phase = Phase::Unkillable(then);
        self.give_up(id);
    }

    fn give_up(&mut self, id: Id) {
        if !slips!(GivenUpLeavesItsUnits) {
            self.state.units.retain(|(_, whose)| *whose != id);
        }
        self.actions.push(Action::GiveUp(id));
    }

    fn remove(&mut self, id: Id) {
        self.state.children.retain(|child| child.id != id);
        self.actions.push(Action::Remove(id));
        self.wind_up();
    }

    fn end(&mut self, ending: Ending) {
        self.state.ending = Some(ending);
        for child in &mut self.state.children {
            child.phase = match child.phase {
                Phase::Starting(_) | Phase::Running | Phase::Doomed(_) => Phase::Doomed(Then::Remove),
                Phase::Stopping(_) => Phase::Stopping(Then::Remove),
                Phase::Unkillable(then) if slips!(UnkillableHoldsUpTheEnd) => Phase::Unkillable(then),
                Phase::Waiting(_) | Phase::Stopped | Phase::Unkillable(_) => Phase::Stopped,
            };
        }
        self.wind_up();
    }

    /// Once everything ends: stops the newest child that is left, each next one when its elder neighbour's turn has
    /// come, or all of a dynamic supervisor. At last, finishes.
    fn wind_up(&mut self) {
        let Some(ending) = self.state.ending else { return };
        let in_turn = !self.state.rules.dynamic || slips!(DynamicStopsInTurn);
        let children = &mut self.state.children;
        for place in (0..children.len()).rev() {
            let Child { id, phase, .. } = &mut children[place];
            let id = *id;
            match *phase {
                Phase::Stopped => {
                    children.remove(place);
                    self.actions.push(Action::Remove(id));
                    continue;
                }
                Phase::Doomed(then) => {
                    *phase = Phase::Stopping(then);
                    self.actions.push(Action::Stop(id));
                }
                _ => {}
            }
            if in_turn {
                break;
            }
        }
        if children.is_empty() {
            self.actions.push(Action::Finish(ending));
        }
    }
}

#[cfg(test)]
mod tests;
