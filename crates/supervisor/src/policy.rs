//! What a supervisor decides, as a pure function: `step(state, event, now, random) -> (state, actions)`.
//!
//! A child is in one of these phases:
//!
//! ```text
//!   add ──▶ Starting ──ready──▶ Running ──death──▶ Waiting ──its turn──▶ Starting (the next incarnation)
//!              │ first start fails: removed   │  ▲ a sibling takes it along: Doomed, Stopping, then Waiting
//!              ▼                              ▼  │
//!            gone ◀──delete── Stopped ◀── clean, given up, terminated
//! ```
//!
//! | death of a running child | Permanent | Transient | Temporary |
//! |---|---|---|---|
//! | clean | restart | stopped, spec kept | removed |
//! | abnormal | restart | restart | removed |
//! | "do not try again" | given up: stopped, spec kept | given up | given up |
//! | while we stop it | no unit; given up if it says so | no unit | no unit |
//!
//! | call | running | restarting | stopped | unknown |
//! |---|---|---|---|---|
//! | add | already started | already present | already present | starts |
//! | restart | running | restarting | starts | not found |
//! | terminate | stops it | cancels the retry | nothing to do | not found |
//! | delete | running | restarting | removed | not found |
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
//! which units are counted does not age while the supervisor stops, starts or waits for somebody.

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
    /// With the exit code that says not to try again; or it cannot be killed, so that nobody may take its place.
    GiveUp,
}

/// All that a supervisor remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    rules: Rules,
    /// When the latest units were, by `age`, oldest first; never more than `max`.
    units: VecDeque<Duration>,
    /// The clock of the window: it stands still while the supervisor is at work.
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
    /// A start has failed; nothing of it is left.
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
        let child = self.children.iter().find(|child| child.id == id)?;
        Some(match child.phase {
            Phase::Running
            | Phase::Starting(Begin::First | Begin::ByHand)
            | Phase::Doomed(Then::Stay | Then::Remove)
            | Phase::Stopping(Then::Stay | Then::Remove) => Standing::Running,
            Phase::Starting(Begin::Again)
            | Phase::Doomed(Then::Again)
            | Phase::Stopping(Then::Again)
            | Phase::Waiting(_) => Standing::Restarting,
            Phase::Stopped => Standing::Stopped,
        })
    }

    /// How many units there are in the window.
    pub fn units(&self, now: Duration) -> u32 {
        let idle = if self.is_at_work() { Duration::ZERO } else { now.saturating_sub(self.last) };
        let (age, within) = (self.age + idle, self.rules.intensity.within);
        let counted = self.units.iter().filter(|at| age - **at < within).count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    fn find(&mut self, id: Id) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.id == id)
    }

    /// Whether it stops, starts or waits for somebody.
    fn is_at_work(&self) -> bool {
        !self.children.iter().all(|child| matches!(child.phase, Phase::Running | Phase::Stopped))
    }
}

/// The decision. `now` is any clock that does not go back, `random` any number. Events about children that are not there
/// are ignored.
pub fn step(mut state: State, event: Event, now: Duration, random: u64) -> (State, Vec<Action>) {
    if !state.is_at_work() || slips!(WorkAgesTheWindow) {
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
            Phase::Waiting(_) => self.rest(id, false),
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
            Phase::Starting(Begin::First) => self.remove(id),
            Phase::Starting(Begin::ByHand) => self.rest(id, death == Death::GiveUp),
            Phase::Starting(Begin::Again) if death == Death::GiveUp => self.leave(id, true),
            Phase::Starting(Begin::Again) => self.again(id, true),
            Phase::Doomed(then) | Phase::Stopping(then) => self.stopped(id, then, death),
            Phase::Running | Phase::Waiting(_) | Phase::Stopped => {}
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
            (Phase::Running, Death::GiveUp, _) if !slips!(GivenUpIsRestarted) => self.leave(id, true),
            (Phase::Running, _, Restart::Temporary) => self.leave(id, false),
            (Phase::Running, Death::Clean, Restart::Transient) if !slips!(CleanIsAbnormal) => {
                self.leave(id, false);
            }
            (Phase::Running, ..) => self.again(id, !healthy),
            (Phase::Doomed(_), ..) if slips!(TakenAlongCosts) => self.again(id, !healthy),
            (Phase::Doomed(then) | Phase::Stopping(then), ..) => self.stopped(id, then, death),
            (Phase::Starting(_), ..) => self.start_failed(id, death),
            (Phase::Waiting(_) | Phase::Stopped, ..) => {}
        }
    }

    fn elapsed(&mut self, id: Id, wait: u64) {
        if let Some(child) = self.state.find(id).filter(|child| child.phase == Phase::Waiting(Some(wait))) {
            child.phase = Phase::Waiting(None);
        }
    }

    // ------------------------------------------------------------ what follows

    /// It has died, or a restart of it has failed: it is started again, unless that is one too many.
    fn again(&mut self, id: Id, mut early: bool) {
        let Rules { count_deaths, exhausted, backoff, .. } = self.state.rules;
        let counts = early || count_deaths == CountDeaths::All;
        if counts && !self.count() {
            match exhausted {
                Exhausted::Escalate => {
                    self.remove(id);
                    return self.end(Ending::Exhausted(id));
                }
                Exhausted::GiveUpChild => return self.leave(id, true),
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

    /// Counts one unit; false if that is one too many.
    fn count(&mut self) -> bool {
        let State { rules: Rules { intensity: Intensity { max, within }, .. }, units, age, .. } =
            &mut self.state;
        while units.front().is_some_and(|at| *age - *at >= *within) {
            units.pop_front();
        }
        let max = usize::try_from(*max).unwrap_or(usize::MAX);
        let full = units.len() >= max && !(slips!(OneMoreIsAllowed) && units.len() == max);
        if !full {
            units.push_back(*age);
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
                Phase::Starting(Begin::First | Begin::ByHand)
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
        let blocked = is(|phase| matches!(phase, Phase::Waiting(Some(_)) | Phase::Starting(Begin::Again)));
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
    fn leave(&mut self, id: Id, given_up: bool) {
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
            self.rest(id, given_up);
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
            Phase::Stopped => false,
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
            Then::Again | Then::Stay if death == Death::GiveUp => self.rest(id, true),
            Then::Stay if slips!(TerminatedEndsAll) => self.leave(id, false),
            Then::Stay => self.rest(id, false),
            Then::Remove if slips!(TakenAlongEndsAll) && self.state.is_open() => self.leave(id, false),
            Then::Remove => self.remove(id),
            Then::Again => {
                if let Some(child) = self.state.find(id) {
                    child.phase = Phase::Waiting(None);
                }
            }
        }
    }

    /// Nobody is there, and nobody will be unless asked for, or revived with the group.
    fn rest(&mut self, id: Id, given_up: bool) {
        let is_kept = !self.state.rules.dynamic || slips!(DynamicKeeps);
        let Some(child) = self.state.find(id) else { return };
        child.phase = Phase::Stopped;
        if given_up {
            self.actions.push(Action::GiveUp(id));
        } else if is_kept {
            self.actions.push(Action::Rest(id));
        }
        if !is_kept {
            self.remove(id);
        }
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
                Phase::Waiting(_) | Phase::Stopped => Phase::Stopped,
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
