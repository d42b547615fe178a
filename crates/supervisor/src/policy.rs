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
//! Where significant children are there to end with, one that ends by itself and is not started again is the end of all
//! of them: every time, or when none of its kind is active any more. That is put off until all children have started
//! that the supervisor begins with. Nobody's end is one of those that the supervisor, or somebody by a call, has wanted.
//!
//! A dynamic supervisor keeps nothing that does not run: what the tables leave stopped is removed. At its end all its
//! children are stopped at the same time.
//!
//! A death is one unit of the intensity, whoever is taken along, and each restart that fails is one more. The window in
//! which units are counted does not age while the supervisor stops, starts or waits for somebody.

use std::collections::VecDeque;
use std::time::Duration;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    /// With it a wait is neither longer nor shorter than planned.
    const EVEN: u64 = 200_000;

    use super::Restart::{Permanent, Temporary, Transient};

    fn add(id: Id) -> Event {
        Event::Add(id, Permanent.into())
    }

    /// A healthy one dies.
    fn dies(id: Id) -> Event {
        Event::Exited { id, death: Death::Abnormal, answered: true }
    }

    fn dies_early(id: Id) -> Event {
        Event::Exited { id, death: Death::Abnormal, answered: false }
    }

    fn leaves(id: Id) -> Event {
        Event::Exited { id, death: Death::Clean, answered: true }
    }

    fn fails(id: Id) -> Event {
        Event::StartFailed(id, Death::Abnormal)
    }

    fn after(state: State, events: &[Event]) -> (State, Vec<Action>) {
        events.iter().fold((state, Vec::new()), |(state, _), event| step(state, *event, NOW, EVEN))
    }

    fn rules(strategy: Strategy, max: u32) -> Rules {
        let intensity = Intensity { max, within: Duration::from_secs(60) };
        Rules { strategy, intensity, ..Rules::default() }
    }

    fn running_by(rules: Rules, children: &[(Id, Restart)]) -> State {
        let mut state = State::new(rules);
        for (id, restart) in children {
            (state, _) = after(state, &[Event::Add(*id, (*restart).into()), Event::Ready(*id)]);
        }
        state
    }

    fn running(ids: &[Id], max: u32) -> State {
        let children: Vec<_> = ids.iter().map(|id| (*id, Permanent)).collect();
        running_by(rules(Strategy::OneForOne, max), &children)
    }

    fn group(strategy: Strategy) -> State {
        running_by(rules(strategy, 10), &[(1, Permanent), (2, Permanent), (3, Permanent)])
    }

    #[test]
    fn a_child_that_exits_is_started_again_at_once() {
        let (_, actions) = after(running(&[1, 2], 10), &[dies(1)]);
        assert_eq!(actions, [Action::Start(1, 2)]);
        // One that had been ready for a second, as well.
        let (_, actions) = step(running(&[1], 10), dies_early(1), NOW + HEALTHY, EVEN);
        assert_eq!(actions, [Action::Start(1, 2)]);
    }

    #[test]
    fn a_first_start_that_fails_is_not_tried_again() {
        let state = State::new(Rules::default());
        let (state, actions) = after(state, &[add(1), fails(1)]);
        assert_eq!(actions, [Action::Remove(1)]);
        assert!(state.is_open());
    }

    #[test]
    fn early_deaths_and_restarts_that_fail_wait_twice_as_long_each_time_and_a_healthy_life_resets_that() {
        let wait = |number, millis| Action::Wait(1, number, Duration::from_millis(millis));
        let (mut state, actions) = after(running(&[1], 100), &[dies_early(1)]);
        assert_eq!(actions, [wait(0, 100)]);
        for (number, millis) in [(1, 200), (2, 400), (3, 800), (4, 1600), (5, 3200), (6, 6400), (7, 12800)]
            .into_iter()
            .chain([(8, 25600), (9, 30000), (10, 30000)])
        {
            let (next, actions) = after(state, &[Event::Elapsed(1, number - 1), fails(1)]);
            assert_eq!(actions, [wait(number, millis)]);
            state = next;
        }
        let (state, actions) = after(state, &[Event::Elapsed(1, 10), Event::Ready(1), dies(1)]);
        assert_eq!(actions, [Action::Start(1, 13)]);
        let (_, actions) = after(state, &[Event::Ready(1), dies_early(1)]);
        assert_eq!(actions, [wait(11, 100)]);
    }

    #[test]
    fn chance_makes_a_wait_up_to_a_fifth_longer_or_shorter() {
        let backoff = Backoff::default();
        let delays: Vec<_> = (0..=400_000).step_by(1000).map(|random| backoff.delay(0, random)).collect();
        assert_eq!(delays.first(), Some(&Duration::from_millis(80)));
        assert_eq!(delays.last(), Some(&Duration::from_millis(120)));
        assert_eq!(backoff.delay(u32::MAX, EVEN), backoff.cap);
        assert_eq!(Backoff { first: Duration::MAX, ..backoff }.delay(31, 0), backoff.cap * 4 / 5);
    }

    #[test]
    fn one_restart_too_many_stops_the_others_newest_first() {
        let (state, actions) = after(running(&[1, 2, 3], 0), &[dies(2)]);
        assert_eq!(actions, [Action::Remove(2), Action::Stop(3)]);
        let (state, actions) = after(state, &[dies(3)]);
        assert_eq!(actions, [Action::Remove(3), Action::Stop(1)]);
        let (_, actions) = after(state, &[dies(1)]);
        assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Exhausted(2))]);
    }

    #[test]
    fn units_outside_the_window_do_not_count() {
        let mut state = running(&[1], 1);
        let mut now = NOW;
        for round in 0..20 {
            let (next, actions) = step(state, dies(1), now, EVEN);
            assert_eq!(actions, [Action::Start(1, 2 + round)]);
            (state, _) = step(next, Event::Ready(1), now, EVEN);
            now += Duration::from_secs(60);
        }
        let (_, actions) = step(state, dies(1), now - Duration::from_secs(1), EVEN);
        assert!(actions.contains(&Action::Finish(Ending::Exhausted(1))));
    }

    #[test]
    fn time_that_the_supervisor_spends_at_work_does_not_age_the_window() {
        let (state, _) = after(running(&[1], 1), &[dies(1)]);
        // The start takes an hour, and then it lives for almost a minute.
        let ready = NOW + Duration::from_secs(3600);
        let (state, _) = step(state, Event::Ready(1), ready, EVEN);
        let (_, actions) = step(state.clone(), dies(1), ready + Duration::from_secs(59), EVEN);
        assert!(actions.contains(&Action::Finish(Ending::Exhausted(1))));
        let (_, actions) = step(state, dies(1), ready + Duration::from_secs(60), EVEN);
        assert_eq!(actions, [Action::Start(1, 3)]);
    }

    #[test]
    fn what_is_too_many_may_give_up_the_child_or_go_on() {
        let given_up = Rules { exhausted: Exhausted::GiveUpChild, ..rules(Strategy::OneForAll, 0) };
        let (_, actions) = after(running_by(given_up, &[(1, Permanent), (2, Permanent)]), &[dies(1)]);
        assert_eq!(actions, [Action::GiveUp(1)]);
        let trying = Rules { exhausted: Exhausted::KeepTrying, ..rules(Strategy::OneForOne, 0) };
        let (_, actions) = after(running_by(trying, &[(1, Permanent)]), &[dies(1)]);
        assert_eq!(actions, [Action::Wait(1, 0, Duration::from_millis(100))]);
    }

    #[test]
    fn healthy_deaths_cost_nothing_if_early_ones_count_alone() {
        let early = Rules { count_deaths: CountDeaths::Early, ..rules(Strategy::OneForOne, 0) };
        let (state, actions) = after(running_by(early, &[(1, Permanent)]), &[dies(1)]);
        assert_eq!(actions, [Action::Start(1, 2)]);
        let (_, actions) = after(state, &[Event::Ready(1), dies_early(1)]);
        assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Exhausted(1))]);
    }

    #[test]
    fn one_for_all_stops_the_others_newest_first_and_starts_all_in_order() {
        let (state, actions) = after(group(Strategy::OneForAll), &[dies(2)]);
        assert_eq!(actions, [Action::Stop(3)]);
        let (state, actions) = after(state, &[leaves(3)]);
        assert_eq!(actions, [Action::Stop(1)]);
        let (mut state, mut actions) = after(state, &[leaves(1)]);
        for id in 1..=3 {
            assert_eq!(actions, [Action::Start(id, 2)]);
            (state, actions) = after(state, &[Event::Ready(id)]);
        }
        assert_eq!(actions, []);
        assert_eq!(state.units.len(), 1);
    }

    #[test]
    fn rest_for_one_leaves_those_before_it_up() {
        let (state, actions) = after(group(Strategy::RestForOne), &[dies(2)]);
        assert_eq!(actions, [Action::Stop(3)]);
        let (state, actions) = after(state, &[leaves(3)]);
        assert_eq!(actions, [Action::Start(2, 2)]);
        let (_, actions) = after(state, &[Event::Ready(2)]);
        assert_eq!(actions, [Action::Start(3, 2)]);
    }

    #[test]
    fn a_sibling_that_fails_to_start_stops_the_fresh_ones_of_one_for_all_and_all_are_tried_again() {
        let (state, _) = after(group(Strategy::OneForAll), &[dies(2), leaves(3), leaves(1), Event::Ready(1)]);
        let (state, actions) = after(state, &[fails(2)]);
        assert_eq!(actions, [Action::Wait(2, 0, Duration::from_millis(100)), Action::Stop(1)]);
        assert_eq!(state.units.len(), 2);
        let (state, actions) = after(state, &[leaves(1)]);
        assert_eq!(actions, []);
        let (_, actions) = after(state, &[Event::Elapsed(2, 0)]);
        assert_eq!(actions, [Action::Start(1, 3)]);
    }

    #[test]
    fn a_sibling_that_fails_to_start_leaves_those_before_it_up_in_rest_for_one() {
        let (state, _) =
            after(group(Strategy::RestForOne), &[dies(1), leaves(3), leaves(2), Event::Ready(1)]);
        let (state, actions) = after(state, &[fails(2)]);
        assert_eq!(actions, [Action::Wait(2, 0, Duration::from_millis(100))]);
        let (_, actions) = after(state, &[Event::Elapsed(2, 0)]);
        assert_eq!(actions, [Action::Start(2, 3)]);
    }

    #[test]
    fn a_group_restart_revives_stopped_siblings_and_drops_temporary_ones() {
        let children = [(1, Permanent), (2, Transient), (3, Temporary)];
        let state = running_by(rules(Strategy::OneForAll, 10), &children);
        let (state, actions) = after(state, &[leaves(2)]);
        assert_eq!(actions, [Action::Rest(2)]);
        let (state, actions) = after(state, &[dies(1)]);
        assert_eq!(actions, [Action::Stop(3)]);
        let (state, actions) = after(state, &[leaves(3)]);
        assert_eq!(actions, [Action::Remove(3), Action::Start(1, 2)]);
        let (_, actions) = after(state, &[Event::Ready(1)]);
        assert_eq!(actions, [Action::Start(2, 2)]);
    }

    #[test]
    fn the_one_that_says_not_to_try_again_is_given_up_without_a_unit() {
        for restart in [Permanent, Transient, Temporary] {
            let state = running_by(rules(Strategy::OneForAll, 0), &[(1, restart), (2, Permanent)]);
            let no_more = Event::Exited { id: 1, death: Death::GiveUp, answered: false };
            let (state, actions) = after(state, &[no_more]);
            assert_eq!(actions, [Action::GiveUp(1)]);
            assert_eq!(state.standing(1), Some(Standing::Stopped));
        }
    }

    #[test]
    fn a_sibling_that_dies_while_it_is_to_be_stopped_costs_nothing_and_is_started_with_the_others() {
        let (state, _) = after(group(Strategy::OneForAll), &[dies(2), dies(1), dies(3)]);
        assert_eq!(state.units.len(), 1);
        assert_eq!(state.standing(3), Some(Standing::Restarting));
    }

    #[test]
    fn a_child_that_becomes_ready_while_it_is_being_stopped_stays_stopping() {
        let (state, _) = after(State::new(Rules::default()), &[add(1), Event::Stop]);
        let (state, actions) = after(state, &[Event::Ready(1)]);
        assert_eq!(actions, []);
        let (_, actions) = after(state, &[dies(1)]);
        assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Stopped)]);
    }

    #[test]
    fn siblings_that_die_while_the_newest_is_being_stopped_are_not_started_again() {
        let (state, actions) = after(running(&[1, 2], 10), &[Event::Stop]);
        assert_eq!(actions, [Action::Stop(2)]);
        let (state, actions) = after(state, &[dies(1)]);
        assert_eq!(actions, [Action::Remove(1)]);
        let (_, actions) = after(state, &[dies(2)]);
        assert_eq!(actions, [Action::Remove(2), Action::Finish(Ending::Stopped)]);
    }

    #[test]
    fn nothing_is_added_to_one_that_stops() {
        let (_, actions) = after(running(&[1], 10), &[Event::Stop, add(2)]);
        assert_eq!(actions, [Action::Remove(2)]);
    }

    #[test]
    fn every_call_has_its_answer_in_every_standing() {
        use Refusal::{AlreadyPresent, AlreadyStarted, NotFound, Restarting, Running};
        let (restarting, _) = after(running(&[1], 10), &[dies_early(1)]);
        let (stopped, actions) = after(restarting.clone(), &[Event::Terminate(1)]);
        assert_eq!(actions, [Action::Rest(1)], "the retry is cancelled");
        let refuse = |refusal| vec![Action::Refuse(1, refusal)];
        let rows = [
            (
                add(1),
                [refuse(AlreadyStarted), refuse(AlreadyPresent), refuse(AlreadyPresent)],
                vec![Action::Start(1, 1)],
            ),
            (
                Event::Restart(1),
                [refuse(Running), refuse(Restarting), vec![Action::Start(1, 2)]],
                refuse(NotFound),
            ),
            (Event::Terminate(1), [vec![Action::Stop(1)], vec![Action::Rest(1)], vec![]], refuse(NotFound)),
            (
                Event::Delete(1),
                [refuse(Running), refuse(Restarting), vec![Action::Remove(1)]],
                refuse(NotFound),
            ),
        ];
        for (call, known, unknown) in rows {
            for (state, expected) in
                [running(&[1], 10), restarting.clone(), stopped.clone()].into_iter().zip(known)
            {
                assert_eq!(after(state, &[call]).1, expected, "{call:?}");
            }
            assert_eq!(after(running(&[], 10), &[call]).1, unknown, "{call:?}");
        }
    }

    mod any_order {
        use std::collections::BTreeSet;

        use proptest::prelude::*;
        use proptest::strategy::Strategy as Generator;

        use super::{Strategy, *};

        fn event() -> impl Generator<Value = Event> {
            let id = || 0_u64..6;
            let death = prop_oneof![Just(Death::Clean), Just(Death::Abnormal), Just(Death::GiveUp)];
            let restart = prop_oneof![Just(Permanent), Just(Transient), Just(Temporary)];
            prop_oneof![
                4 => (id(), restart, any::<bool>())
                    .prop_map(|(id, restart, significant)| Event::Add(id, Kind { restart, significant })),
                1 => Just(Event::AllStarted),
                1 => id().prop_map(Event::Restart),
                1 => id().prop_map(Event::Terminate),
                1 => id().prop_map(Event::Delete),
                6 => id().prop_map(Event::Ready),
                2 => (id(), death.clone()).prop_map(|(id, death)| Event::StartFailed(id, death)),
                4 => (id(), death, any::<bool>())
                    .prop_map(|(id, death, answered)| Event::Exited { id, death, answered }),
                4 => (id(), 0_u64..8).prop_map(|(id, wait)| Event::Elapsed(id, wait)),
                1 => Just(Event::Stop),
            ]
        }

        fn strategy() -> impl Generator<Value = Strategy> {
            prop_oneof![Just(Strategy::OneForOne), Just(Strategy::OneForAll), Just(Strategy::RestForOne)]
        }

        fn auto_shutdown() -> impl Generator<Value = AutoShutdown> {
            prop_oneof![
                Just(AutoShutdown::Never),
                Just(AutoShutdown::AnySignificant),
                Just(AutoShutdown::AllSignificant),
            ]
        }

        proptest! {
            #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

            /// Whatever happens in whatever order, possible or not: incarnations only grow, no seat is filled twice,
            /// nothing starts once it ends, and it finishes exactly when the last child is gone.
            #[test]
            fn keeps_its_invariants(
                events in prop::collection::vec((event(), 0_u64..40, any::<u64>()), 0..60),
                strategy in strategy(),
                max in 0_u32..4,
                auto_shutdown in auto_shutdown(),
                max_children in prop_oneof![Just(None), (0_usize..6).prop_map(Some)],
                dynamic in any::<bool>(),
            ) {
                let told = Rules { auto_shutdown, max_children, dynamic, ..rules(strategy, max) };
                let mut state = State::new(told);
                let mut now = NOW;
                let mut present = std::collections::BTreeMap::new();
                let mut stopping = BTreeSet::new();
                let mut finished = false;
                for (event, pause, random) in events {
                    now += Duration::from_secs(pause);
                    let was_open = state.is_open();
                    let was_there = |id| state.standing(id).is_some();
                    if let (Event::Add(id, _), true) = (event, was_open) {
                        if !was_there(id) { present.insert(id, 0); }
                    }
                    if let Event::Exited { id, .. } | Event::StartFailed(id, _) = event { stopping.remove(&id); }
                    let (next, actions) = step(state, event, now, random);
                    state = next;
                    for action in actions {
                        match action {
                            Action::Start(id, incarnation) => {
                                prop_assert!(was_open);
                                prop_assert_eq!(present.insert(id, incarnation), Some(incarnation - 1));
                            }
                            Action::Stop(id) => prop_assert!(present.contains_key(&id) && stopping.insert(id)),
                            Action::Wait(id, ..) | Action::Rest(id) | Action::GiveUp(id) => {
                                prop_assert!(present.contains_key(&id) && was_open);
                            }
                            Action::Remove(id) => drop(present.remove(&id)),
                            Action::Refuse(id, Refusal::MaxChildren | Refusal::Contradiction(_)) => {
                                prop_assert_eq!(present.remove(&id), Some(0));
                            }
                            Action::Refuse(..) => {}
                            Action::Finish(_) => {
                                prop_assert!(!finished && present.is_empty());
                                finished = true;
                            }
                        }
                    }
                    prop_assert!(present.keys().all(|id| state.standing(*id).is_some()));
                    prop_assert!(present.len() <= max_children.unwrap_or(usize::MAX));
                    prop_assert!(!dynamic || present.keys().all(|id| state.standing(*id) != Some(Standing::Stopped)));
                    prop_assert_eq!(finished, !state.is_open() && present.is_empty());
                }
            }
        }
    }
}
