//! The supervisor at work: it carries out what the policy decides and never waits for a child. Starts, stops and ends
//! are awaited by tasks of their own and come back as events.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hatchery_actor::address::random;
use hatchery_actor::child::{self, Child, Order, Presence, Shutdown, Started};
use hatchery_actor::error::Error;
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::panics;
use hatchery_actor::root::Root;
use hatchery_actor::seat::Seat;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::errors::{Refused, stopping};
use crate::events::TreeEvent;
use crate::holds::Holds;
use crate::nested;
use crate::office::{self, Member, Office, Orderly, Runner, Shared};
use crate::overseer;
use crate::policy::{self, Action, Death, Ending, Event, Id, Intensity, Refusal, Rules, Standing, State};
use crate::spec::ErasedSpec;
use crate::tree::{ChildInfo, ChildState, Tree};

/// A worker that ends with it shall not be started again, whatever its spec says.
pub(crate) const DO_NOT_TRY_AGAIN: i32 = 125;

/// What handles ask for.
pub(crate) enum Command {
    /// Whether it is one of those that the supervisor began with.
    StartChild(ErasedSpec, bool, Answer<Arc<Seat>>),
    RestartChild(String, Answer<Arc<Seat>>),
    TerminateChild(String, Answer<()>),
    DeleteChild(String, Answer<()>),
    Children(oneshot::Sender<Vec<ChildInfo>>),
    Look(oneshot::Sender<Look>),
    /// All children that it begins with have started.
    AllStarted,
    Stop,
    /// The same, and no child is given any time for it.
    Kill,
}

/// What a supervisor says of itself for a snapshot.
pub(crate) struct Look {
    pub(crate) rules: Rules,
    pub(crate) since: Instant,
    pub(crate) restarts: u64,
    pub(crate) units: u32,
    pub(crate) children: Vec<LookAt>,
}

/// The same of one child.
pub(crate) struct LookAt {
    pub(crate) info: ChildInfo,
    pub(crate) actor: &'static str,
    pub(crate) ready: Option<Instant>,
    pub(crate) child: Option<Arc<dyn Child>>,
    pub(crate) tree: Option<Tree>,
}

type Answer<T> = oneshot::Sender<Result<T, Refused>>;

fn stopped_while_it_started() -> Fault {
    Fault::Closed { why: "it was stopped while it started".to_owned() }
}

/// What tasks report.
enum Report {
    /// Whether something is left of a start that failed, which cannot be killed.
    Start(Id, u64, Result<Started, Fault>, bool),
    Exited(Id, u64, Arc<Exit>),
    /// What stands for the exit of one that does not end.
    Unkillable(Id, u64, Arc<Exit>),
    /// Of what was called unkillable, nothing is left.
    Gone(Id, u64),
    Elapsed(Id, u64),
}

/// A child as the supervisor knows it; what the policy knows of it is in [`State`].
struct Entry {
    spec: ErasedSpec,
    member: Member,
    /// Whether the supervisor began with it.
    listed: bool,
    /// Counted on over the runs of this supervisor, while the policy begins with 1 in each.
    incarnation: u64,
    /// Whether a start is under way, which reports back exactly once.
    starting: bool,
    /// Gives up that start, when dropped.
    give_up: Option<oneshot::Sender<()>>,
    child: Option<Arc<dyn Child>>,
    /// Whether it was told to stop, also if it was not up yet then.
    stopping: bool,
    /// Who waits for its start, if somebody asked for it.
    reply: Option<Answer<Arc<Seat>>>,
    /// Who waits until it is gone.
    terminating: Vec<Answer<()>>,
    /// What runs until its next start may begin.
    wait: Option<Wait>,
    /// Whether its next start was asked for by hand.
    by_hand: bool,
    /// Whether its next start has been told of.
    scheduled: bool,
    /// When its present incarnation became ready.
    ready: Option<Instant>,
    given_up: bool,
    /// How its latest incarnation, or its latest start, ended.
    last: Option<Fault>,
}

/// A wait that ends when it is dropped.
struct Wait(AbortHandle);

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Entry {
    fn seat(&self) -> &Arc<Seat> {
        &self.member.seat
    }

    fn path(&self) -> String {
        self.member.seat.path().to_owned()
    }

    /// Whether somebody is there, or on the way, or on the way out.
    fn is_live(&self) -> bool {
        self.child.is_some() || self.starting
    }

    /// Whether this incarnation is there, as far as is known.
    fn is_up(&self, incarnation: u64) -> bool {
        self.incarnation == incarnation && self.child.is_some()
    }

    /// Why nobody sits there once it was given up; if it is kept, how it stands.
    fn why_given_up(&self, standing: Option<Standing>) -> String {
        let last = self.last();
        let and = match standing {
            None => "",
            Some(Standing::Unkillable) => ", and it cannot be killed, so nobody is started beside it",
            Some(_) => ", and `restart_child` starts it again",
        };
        format!("its supervisor gave it up{and}; at last: {}", last.as_deref().unwrap_or("it never ran"))
    }

    /// How it ended last, unless it failed to start for another reason.
    fn exit(&self) -> Option<Exit> {
        match self.last.as_ref()? {
            Fault::Ended { exit, .. } | Fault::Late { exit, .. } => Some((**exit).clone()),
            _ => None,
        }
    }

    /// How it ended last, in words.
    fn last(&self) -> Option<String> {
        self.last.as_ref().map(|last| match last {
            Fault::Ended { exit, .. } => exit.to_string(),
            fault => fault.to_string(),
        })
    }
}

struct Supervisor {
    office: Arc<Office>,
    /// What handles share: to be given to those who ask their supervisor for something as they start.
    shared: Weak<Shared>,
    rules: Rules,
    state: Option<State>,
    begun: Instant,
    next: Id,
    entries: BTreeMap<Id, Entry>,
    reports: mpsc::Sender<Report>,
    /// Whom those that are down wait for, as far as it has been told.
    holds: Holds,
    /// When they are told next, if somebody is in the way of a start.
    holds_at: Option<Instant>,
    /// How many restarts there have been.
    restarts: u64,
    /// Whether everybody is killed rather than asked to leave.
    kill: bool,
    /// Why it gave up, in words.
    gave_up: Option<String>,
    /// How the child ended last for which it gave up, if anybody was there who could end.
    last_straw: Option<Exit>,
    finished: Option<Ending>,
}

/// Runs a supervisor as a task of its own. When everything has stopped, `at_end` is called before anybody hears of it;
/// what it keeps is dropped at last.
pub(crate) fn spawn<K: Send + 'static>(
    rules: Rules,
    shared: &Arc<Shared>,
    runner: Runner,
    keeps: K,
    at_end: impl FnOnce(&office::Ending) + Send + 'static,
) {
    let (office, shared) = (shared.office.clone(), Arc::downgrade(shared));
    let Runner { commands, over } = runner;
    tokio::spawn(async move {
        let overseer = overseer::sit(&office, shared.clone(), office.next_run()).await;
        let ending = run(rules, office.clone(), shared, commands).await;
        overseer::leave(overseer).await;
        let path = office.path.clone();
        let gave_up = ending.as_ref().err().map(ToString::to_string);
        // Before those above tell what follows from it.
        office.news.tell(|| TreeEvent::Ended { path, gave_up });
        at_end(&ending);
        if !office.nested {
            office.news.end();
            let gave_up = ending.as_ref().err().map(|why| format!("its supervisor gave up: {why}"));
            office.close(gave_up.as_deref().unwrap_or("it was stopped"));
        }
        over.send_replace(Some(ending));
        drop(keeps);
    });
}

/// How many reports are taken before a command has its turn.
const REPORTS: u32 = 8;

/// How long somebody is in the way of a start before the places that wait for that are told. Most stops are over long before, and
/// to tell all places of each of them would take a time that grows with the square of their number.
const HELD_AFTER: Duration = Duration::from_millis(50);

/// Runs until everything has stopped.
async fn run(
    rules: Rules,
    office: Arc<Office>,
    shared: Weak<Shared>,
    mut commands: mpsc::Receiver<Command>,
) -> office::Ending {
    let (reports, mut reported) = mpsc::channel(256);
    let mut supervisor = Supervisor {
        office,
        shared,
        rules,
        state: Some(State::new(rules)),
        begun: Instant::now(),
        next: 0,
        entries: BTreeMap::new(),
        reports,
        holds: Holds::default(),
        holds_at: None,
        restarts: 0,
        kill: false,
        gave_up: None,
        last_straw: None,
        finished: None,
    };
    let mut handles = true;
    let mut reports_in_a_row = 0;
    while supervisor.finished.is_none() {
        // However many reports there are, whoever asks for something gets an answer, and a stop its stop.
        if reports_in_a_row >= REPORTS {
            reports_in_a_row = 0;
            if let Ok(command) = commands.try_recv() {
                supervisor.command(command);
                continue;
            }
        }
        tokio::select! {
            biased;
            // This side holds a sender itself, so there is always another report to wait for.
            Some(report) = reported.recv() => {
                reports_in_a_row += 1;
                supervisor.report(report);
            }
            command = commands.recv(), if handles => match command {
                Some(command) => supervisor.command(command),
                None => {
                    // The last handle is gone.
                    handles = false;
                    supervisor.step(Event::Stop);
                }
            },
            () = tokio::time::sleep_until(supervisor.holds_at.unwrap_or(supervisor.begun)), if supervisor.holds_at.is_some() => {
                supervisor.hold();
            }
        }
    }
    // What came too late is told so by its reply being dropped.
    match (supervisor.gave_up, supervisor.finished) {
        (Some(why), _) => {
            let gave_up = Error::msg(format!("{} gave up: {why}", supervisor.office.path));
            let last = supervisor.last_straw;
            Err(gave_up
                .with_fault(last.map(|exit| Fault::Ended { exit: Box::new(exit), maybe_executed: true })))
        }
        (None, Some(Ending::AutoShutdown(_))) => Ok(Orderly::ByItself),
        (None, _) => Ok(Orderly::Wanted),
    }
}

impl Supervisor {
    fn command(&mut self, command: Command) {
        match command {
            Command::StartChild(spec, listed, reply) => self.add(spec, listed, reply),
            Command::RestartChild(name, reply) => self.restart(&name, reply),
            Command::TerminateChild(name, reply) => self.terminate(&name, reply),
            Command::DeleteChild(name, reply) => {
                let outcome = self.known(&name).and_then(|id| self.call(Event::Delete(id), &name));
                let _ = reply.send(outcome);
            }
            Command::Children(reply) => drop(reply.send(self.children())),
            Command::Look(reply) => drop(reply.send(self.look())),
            Command::AllStarted => self.step(Event::AllStarted),
            Command::Stop => self.step(Event::Stop),
            Command::Kill => {
                self.kill = true;
                let stopping: Vec<_> =
                    self.entries.iter().filter(|(_, entry)| entry.stopping).map(|(id, _)| *id).collect();
                stopping.into_iter().for_each(|id| self.stop(id));
                self.step(Event::Stop);
            }
        }
    }

    /// The child of this name. Names are unique among those that are there.
    fn known(&self, name: &str) -> Result<Id, Refused> {
        let mut entries = self.entries.iter();
        let found = entries.find(|(_, entry)| entry.spec.start.name() == name).map(|(id, _)| *id);
        found.ok_or_else(|| Refused::by_rule(Refusal::NotFound, name))
    }

    /// What is asked of a child, unless the policy refuses it.
    fn call(&mut self, call: Event, name: &str) -> Result<(), Refused> {
        let actions = self.decide(call);
        let refused = refused(&actions, name);
        self.carry_out(actions);
        refused
    }

    fn add(&mut self, spec: ErasedSpec, listed: bool, reply: Answer<Arc<Seat>>) {
        let name = spec.start.name().to_owned();
        if let Err(fault) = spec.check() {
            let _ = reply.send(Err(fault.into()));
            return;
        }
        let kind = spec.kind;
        if let Ok(id) = self.known(&name) {
            // The policy says what is in the way of it.
            let refused = self.call(Event::Add(id, kind), &name).err();
            let _ = reply.send(Err(refused.unwrap_or_else(|| stopping().into())));
            return;
        }
        let taken = self.office.names.as_ref().map(|root| root.take_name(&name)).transpose();
        let taken = match taken {
            Ok(taken) => taken,
            Err(fault) => return drop(reply.send(Err(fault.into()))),
        };
        let id = self.next;
        self.next += 1;
        let actions = self.decide(Event::Add(id, kind));
        if let Err(refused) = refused(&actions, &name) {
            if let (Some(root), Some(path)) = (&self.office.names, taken) {
                root.free_name(&path);
            }
            let _ = reply.send(Err(refused));
            return;
        }
        let member = self.member(&name, &spec);
        let entry = Entry {
            spec,
            listed,
            incarnation: member.before,
            member,
            starting: false,
            give_up: None,
            child: None,
            stopping: false,
            reply: Some(reply),
            terminating: Vec::new(),
            wait: None,
            by_hand: false,
            scheduled: false,
            ready: None,
            given_up: false,
            last: None,
        };
        self.entries.insert(id, entry);
        self.carry_out(actions);
    }

    /// The place of a child of this name: the one that an earlier run of this supervisor has left, or a new one.
    fn member(&self, name: &str, spec: &ErasedSpec) -> Member {
        let left = self.office.member(name).filter(|member| member.seat.actor() == spec.start.actor());
        if let Some(member) = left {
            if let Some(kept) = self.office.members().get_mut(name) {
                kept.removed = false;
            }
            return member;
        }
        let path = format!("{}/{name}", self.office.path);
        let seat = Seat::with(path, spec.start.actor(), spec.window, spec.shutdown);
        let member = Member {
            handle: spec.start.any_handle(ActorRef::new(seat.clone())),
            seat,
            before: 0,
            removed: false,
        };
        if let Some(tree) = member.tree() {
            tree.office().news.rise_to(self.office.news.clone());
        }
        let replaced = self.office.members().insert(name.to_owned(), member.clone());
        if let Some(replaced) = replaced {
            replaced.close("another child has its name now");
        }
        if let Ok(root) = Root::current() {
            root.directory().enter(&member.seat);
        }
        member
    }

    fn restart(&mut self, name: &str, reply: Answer<Arc<Seat>>) {
        let known = self.known(name);
        if let Some(entry) = known.as_ref().ok().and_then(|id| self.entries.get_mut(id)) {
            entry.by_hand = true;
        }
        let outcome = known.and_then(|id| {
            self.call(Event::Restart(id), name).map(|()| id).inspect_err(|_| {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.by_hand = false;
                }
            })
        });
        match outcome.map(|id| self.entries.get_mut(&id)) {
            Ok(Some(entry)) => entry.reply = Some(reply),
            Ok(None) => drop(reply.send(Err(stopping().into()))),
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    fn terminate(&mut self, name: &str, reply: Answer<()>) {
        let outcome = self.known(name).and_then(|id| self.call(Event::Terminate(id), name).map(|()| id));
        match outcome.map(|id| self.entries.get_mut(&id).filter(|entry| entry.is_live())) {
            Ok(Some(entry)) => entry.terminating.push(reply),
            Ok(None) => drop(reply.send(Ok(()))),
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    fn children(&self) -> Vec<ChildInfo> {
        let standing = |id: &Id| self.state.as_ref().and_then(|state| state.standing(*id));
        let info = |(id, entry): (&Id, &Entry)| ChildInfo {
            name: entry.spec.start.name().to_owned(),
            path: entry.path(),
            restart: entry.spec.kind.restart,
            state: match standing(id) {
                Some(Standing::Running) if entry.starting => ChildState::Starting,
                Some(Standing::Running) => ChildState::Running,
                Some(Standing::Restarting) => ChildState::Restarting,
                Some(Standing::Unkillable) => ChildState::GivenUp,
                Some(Standing::Stopped) | None if entry.given_up => ChildState::GivenUp,
                Some(Standing::Stopped) | None => ChildState::Stopped,
            },
            incarnation: entry.incarnation,
            pid: entry.child.as_ref().and_then(|child| own_process(&**child)),
            last: entry.last(),
        };
        self.entries.iter().map(info).collect()
    }

    fn look(&self) -> Look {
        let look_at = |(info, entry): (ChildInfo, &Entry)| LookAt {
            info,
            actor: entry.spec.start.actor(),
            ready: entry.ready,
            child: entry.child.clone(),
            tree: entry.member.tree().cloned(),
        };
        Look {
            rules: self.rules,
            since: self.begun,
            restarts: self.restarts,
            units: self.state.as_ref().map_or(0, |state| state.units(self.begun.elapsed())),
            children: self.children().into_iter().zip(self.entries.values()).map(look_at).collect(),
        }
    }

    fn tell(&self, event: impl FnOnce() -> TreeEvent) {
        self.office.news.tell(event);
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Start(id, incarnation, result, unkillable) => {
                let entry = self.entries.get_mut(&id).filter(|entry| entry.incarnation == incarnation);
                let Some(entry) = entry else { return };
                entry.starting = false;
                entry.give_up = None;
                match result {
                    Ok(started) => self.ready(id, incarnation, started),
                    Err(fault) => {
                        tracing::warn!(child = entry.seat().path(), incarnation, %fault, "start failed");
                        let (path, why) = (entry.path(), fault.to_string());
                        self.office.news.tell(|| TreeEvent::StartFailed { path, incarnation, why });
                        let (mut death, mut outcome) = (death_of_start(&fault), Ok(()));
                        entry.spec.start.start_failed(&fault);
                        entry.last = Some(fault);
                        if unkillable {
                            death = Death::Unkillable;
                            outcome = Err(Fault::Refused(LEFT.to_owned()));
                            self.unkillable(id, incarnation);
                        } else if let Some(below) = self.left_below(id, incarnation) {
                            (death, outcome) = (Death::Unkillable, Err(below));
                        }
                        self.gone(id, Event::StartFailed(id, death), outcome);
                    }
                }
            }
            Report::Exited(id, incarnation, exit) => self.exited(id, incarnation, &exit),
            Report::Unkillable(id, incarnation, exit) => {
                // Its end may have come at that very moment.
                let is_up = self.entries.get(&id).is_some_and(|entry| entry.is_up(incarnation));
                if is_up && !self.is_unkillable(id) {
                    let why = Fault::Refused(exit.reason().unwrap_or_default().to_owned());
                    self.unkillable(id, incarnation);
                    self.ended(id, incarnation, &exit, Death::Unkillable, Err(why));
                }
            }
            Report::Gone(id, incarnation) => self.let_go(id, incarnation, None),
            Report::Elapsed(id, wait) => self.step(Event::Elapsed(id, wait)),
        }
    }

    fn exited(&mut self, id: Id, incarnation: u64, exit: &Exit) {
        let Some(entry) = self.entries.get(&id).filter(|entry| entry.is_up(incarnation)) else { return };
        tracing::info!(child = entry.seat().path(), incarnation, %exit, "child ended");
        let (path, told) = (entry.path(), exit.clone());
        self.tell(|| TreeEvent::Exited { path, incarnation, exit: told });
        match (self.left_below(id, incarnation), self.is_unkillable(id)) {
            (None, false) => self.ended(id, incarnation, exit, death(exit), Ok(())),
            (None, true) => self.let_go(id, incarnation, Some(exit)),
            (Some(why), false) => self.ended(id, incarnation, exit, Death::Unkillable, Err(why)),
            (Some(_), true) => {}
        }
    }

    fn ended(&mut self, id: Id, incarnation: u64, exit: &Exit, death: Death, outcome: Result<(), Fault>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if death != Death::Unkillable {
            entry.child = None;
        }
        entry.ready = None;
        entry.stopping = false;
        entry.last = Some(match outcome {
            // Somebody still waits for its start.
            Ok(()) if entry.reply.is_some() => stopped_while_it_started(),
            _ => Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: false },
        });
        let answered = entry.seat().has_answered(incarnation);
        self.gone(id, Event::Exited { id, death, answered }, outcome);
    }

    /// One lives on, whatever was done to end it.
    fn unkillable(&self, id: Id, incarnation: u64) {
        let Some(entry) = self.entries.get(&id) else { return };
        let pid = entry.child.as_ref().and_then(|child| own_process(&**child));
        tracing::error!(child = entry.seat().path(), incarnation, "unkillable");
        self.tell(|| TreeEvent::Unkillable { path: entry.path(), incarnation, pid });
    }

    fn is_unkillable(&self, id: Id) -> bool {
        self.state.as_ref().and_then(|state| state.standing(id)) == Some(Standing::Unkillable)
    }

    /// Why a supervisor that has ended is not gone all the same: something below it cannot be killed. When that is gone, it is
    /// reported.
    fn left_below(&self, id: Id, incarnation: u64) -> Option<Fault> {
        let below = self.entries.get(&id)?.member.tree()?.office().clone();
        let path = below.left_behind()?;
        let why = nested::beside(&path);
        let (left, reports) = (self.office.leave_behind(path), self.reports.clone());
        tokio::spawn(async move {
            below.nothing_left().await;
            drop(left);
            let _ = reports.send(Report::Gone(id, incarnation)).await;
        });
        Some(Fault::Refused(why))
    }

    /// What could not be killed is gone after all: its child is one that was given up as any other.
    fn let_go(&mut self, id: Id, incarnation: u64, exit: Option<&Exit>) {
        let is_unkillable = self.is_unkillable(id);
        let entry =
            self.entries.get_mut(&id).filter(|entry| is_unkillable && entry.incarnation == incarnation);
        let Some(entry) = entry else { return };
        tracing::info!(child = entry.seat().path(), incarnation, "gone after all");
        entry.child = None;
        if let Some(exit) = exit {
            entry.last = Some(Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: false });
        }
        self.step(Event::Gone(id));
        if let Some(entry) = self.entries.get(&id) {
            // Who asks it for something is told the new way to an answer.
            entry.member.close(&entry.why_given_up(Some(Standing::Stopped)));
        }
    }

    /// An incarnation, or its start, has ended; those who wanted that are told.
    fn gone(&mut self, id: Id, event: Event, outcome: Result<(), Fault>) {
        let waiting = self.entries.get_mut(&id).map(|entry| std::mem::take(&mut entry.terminating));
        self.step(event);
        for reply in waiting.into_iter().flatten() {
            let _ = reply.send(outcome.clone().map_err(Refused::from));
        }
    }

    fn ready(&mut self, id: Id, incarnation: u64, started: Started) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Started { child, line } = started;
        entry.child = Some(child.clone());
        entry.ready = Some(Instant::now());
        entry.seat().occupy(incarnation, child.clone(), line);
        let (path, pid) = (entry.path(), own_process(&*child));
        self.office.news.tell(|| TreeEvent::Started { path, incarnation, pid });
        // One that was stopped meanwhile has failed to start, however late that came, and is told so when it is gone. (At the
        // end of everything it makes no difference.)
        let failed = entry.stopping && self.state.as_ref().is_some_and(State::is_open);
        if let Some(reply) = entry.reply.take_if(|_| !failed) {
            // Nobody waits if the asking future was dropped; the child stays.
            let _ = reply.send(Ok(entry.seat().clone()));
        }
        let (reports, seat) = (self.reports.clone(), entry.seat().clone());
        tokio::spawn(async move {
            let report = tokio::select! {
                biased;
                exit = child.exited() => Report::Exited(id, incarnation, exit),
                exit = child.unkillable() => {
                    // As in `stop`.
                    seat.ended(incarnation, &exit);
                    Report::Unkillable(id, incarnation, exit)
                }
            };
            let _ = reports.send(report).await;
        });
        let too_late = entry.stopping;
        self.step(Event::Ready(id));
        if too_late {
            self.stop(id);
        }
    }

    fn step(&mut self, event: Event) {
        let actions = self.decide(event);
        self.carry_out(actions);
    }

    fn decide(&mut self, event: Event) -> Vec<Action> {
        // The state is back before anything else happens.
        let Some(state) = self.state.take() else { return Vec::new() };
        let (state, actions) = policy::step(state, event, self.begun.elapsed(), random());
        self.state = Some(state);
        actions
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        // Before anybody is started, and before those are forgotten whom it is about.
        self.hold_or_let_go();
        for action in actions {
            match action {
                Action::Start(id, incarnation) => self.start(id, incarnation > 1),
                Action::Stop(id) => self.stop(id),
                Action::Wait(id, number, delay) => self.wait(id, number, delay),
                Action::Rest(id) => self.rest(id, false),
                Action::GiveUp(id) => self.rest(id, true),
                Action::Remove(id) => self.remove(id),
                // Whoever called is told by the one who asked the policy.
                Action::Refuse(..) => {}
                Action::Finish(ending) => self.finished = Some(ending),
            }
        }
    }

    /// Lets all places go if nobody is in the way of a start any more; if somebody is, and stays there, they are told so.
    fn hold_or_let_go(&mut self) {
        let is_free = self.state.as_ref().is_none_or(|state| state.in_the_way().next().is_none());
        if is_free {
            self.holds.are(&[], &[]);
            self.holds_at = None;
        } else {
            self.holds_at.get_or_insert_with(|| Instant::now() + HELD_AFTER);
        }
    }

    /// Tells those places that are empty for now whom their next incarnations wait for.
    fn hold(&mut self) {
        self.holds_at = None;
        let Some(state) = &self.state else { return };
        let path = |id| self.entries.get(&id).map(Entry::path);
        let by: Vec<String> = state.in_the_way().filter_map(path).collect();
        let down: Vec<Member> = match (by.is_empty(), state.is_open()) {
            (true, _) => Vec::new(),
            (false, true) => {
                let down = self.entries.iter().filter(|(id, _)| state.is_down(**id));
                down.map(|(_, entry)| entry.member.clone()).collect()
            }
            // Those that have been removed as well, as far as their places are kept for a next run.
            (false, false) => {
                let is_up = |(id, _): &(&Id, &Entry)| !state.is_down(**id);
                let up: HashSet<u64> =
                    self.entries.iter().filter(is_up).map(|(_, entry)| entry.seat().id()).collect();
                let members = self.office.members();
                members.values().filter(|member| !up.contains(&member.seat.id())).cloned().collect()
            }
        };
        self.holds.are(&by, &down);
    }

    /// Gives the place of a child up, or, at the end of a run that may not be the last one, leaves it to the next run.
    fn leave(&self, entry: &Entry, may_come_back: bool, why: &str) {
        let name = entry.spec.start.name();
        if let Some(root) = &self.office.names {
            root.free_name(entry.seat().path());
        }
        let mut members = self.office.members();
        if entry.listed && self.office.nested {
            if let Some(member) = members.get_mut(name) {
                member.before = entry.incarnation;
                member.removed = !may_come_back;
            }
            drop(members);
            if !may_come_back {
                entry.member.close(why);
            }
            return;
        }
        let left = members.remove(name);
        drop(members);
        drop(left);
        entry.member.close(why);
        if let Some(office) = entry.member.office() {
            office.end();
        }
    }

    fn wait(&mut self, id: Id, number: u64, delay: Duration) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let reports = self.reports.clone();
        tracing::info!(child = entry.seat().path(), ?delay, "it died early: waiting before the next start");
        entry.scheduled = true;
        let (path, incarnation) = (entry.path(), entry.incarnation + 1);
        self.office.news.tell(|| TreeEvent::RestartScheduled { path, incarnation, delay });
        let wait = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = reports.send(Report::Elapsed(id, number)).await;
        });
        entry.wait = Some(Wait(wait.abort_handle()));
    }

    /// Nobody sits there for now.
    fn rest(&mut self, id: Id, given_up: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.wait = None;
        entry.given_up = given_up;
        entry.scheduled = false;
        let path = entry.path();
        let last = entry.last();
        let last = last.as_deref().unwrap_or("it never ran");
        let standing = self.state.as_ref().and_then(|state| state.standing(id));
        let why = if given_up {
            tracing::error!(child = path, last, "given up");
            self.office.news.tell(|| TreeEvent::GivenUp { path, why: last.to_owned() });
            entry.why_given_up(standing)
        } else {
            tracing::info!(child = path, last, "stopped");
            self.office.news.tell(|| TreeEvent::Stopped { path });
            format!("it is stopped, and `restart_child` starts it again; at last: {last}")
        };
        entry.member.close(&why);
        if let Some(reply) = entry.reply.take() {
            let _ = reply.send(Err(entry.last.clone().unwrap_or_else(stopping).into()));
        }
    }

    fn start(&mut self, id: Id, again: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.incarnation += 1;
        let (incarnation, by_hand) = (entry.incarnation, entry.by_hand);
        if again && !by_hand {
            self.restarts += 1;
            if !entry.scheduled {
                let (path, delay) = (entry.path(), Duration::ZERO);
                self.office.news.tell(|| TreeEvent::RestartScheduled { path, incarnation, delay });
            }
        }
        entry.by_hand = false;
        entry.scheduled = false;
        entry.stopping = false;
        entry.wait = None;
        entry.given_up = false;
        entry.seat().reopen();
        let (presence, mut absence) = Presence::new();
        let order = Order {
            seat: entry.seat().clone(),
            incarnation,
            timeout: entry.spec.start_timeout,
            presence,
            settings: entry.spec.settings.clone(),
            heartbeat: entry.spec.heartbeat,
            watchdog: entry.spec.watchdog,
            args: None,
        };
        let (start, args) = (entry.spec.start.clone(), entry.spec.args.clone());
        let shared = self.shared.clone();
        let start = async move {
            let args = match args {
                None => None,
                Some(args) => {
                    let shared = shared.upgrade().ok_or_else(stopping)?;
                    Some(args(&Tree::new(shared)).map_err(|why| Fault::StartFailed(why.to_string()))?)
                }
            };
            start.start(Order { args, ..order }).await
        };
        let reports = self.reports.clone();
        let (give_up, given_up) = oneshot::channel::<()>();
        let gone_within = entry.spec.start.gone_within();
        let (office, path) = (self.office.clone(), entry.path());
        tokio::spawn(async move {
            let result = tokio::select! {
                biased;
                // A panic in it, of the user's own decoding perhaps, must not leave the child starting for ever.
                result = panics::catch(start) => {
                    result.unwrap_or_else(|panic| Err(Fault::StartFailed(panic.to_string())))
                }
                // Dropping the start ends what it began.
                _ = given_up => Err(stopped_while_it_started()),
            };
            let mut unkillable = false;
            if result.is_err() {
                match gone_within {
                    None => absence.wait().await,
                    Some(time) => unkillable = tokio::time::timeout(time, absence.wait()).await.is_err(),
                }
            }
            let left = unkillable.then(|| office.leave_behind(path));
            let _ = reports.send(Report::Start(id, incarnation, result, unkillable)).await;
            if left.is_some() {
                absence.wait().await;
                drop(left);
                let _ = reports.send(Report::Gone(id, incarnation)).await;
            }
        });
        entry.starting = true;
        entry.give_up = Some(give_up);
    }

    fn stop(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.stopping = true;
        let (reports, incarnation) = (self.reports.clone(), entry.incarnation);
        let shutdown = if self.kill { Shutdown::kill() } else { entry.spec.shutdown };
        if let Some(child) = entry.child.clone() {
            let (seat, office) = (entry.seat().clone(), self.office.clone());
            tokio::spawn(async move {
                // Its end is reported by the task that waits for it, unless it does not end.
                if let Err(error) = child::stop(&*child, shutdown).await {
                    let left = office.leave_behind(seat.path().to_owned());
                    let exit = Exit::new(Status::Unknown).with_reason(Some(error.to_string()));
                    // It will not say so itself: those who wait for its answers wait no longer.
                    seat.ended(incarnation, &exit);
                    let _ = reports.send(Report::Unkillable(id, incarnation, Arc::new(exit))).await;
                    child.exited().await;
                    drop(left);
                }
            });
        }
        if let Some(tree) = entry.member.tree().filter(|_| entry.starting) {
            // What it has begun is asked to leave, and, if it takes too long, killed.
            let run = nested::child(tree);
            tokio::spawn(async move { drop(child::stop(&*run, shutdown).await) });
        }
        // If it is still starting, it ends as a start that failed, or becomes ready all the same and is stopped then.
        entry.give_up = None;
    }

    fn remove(&mut self, id: Id) {
        let Some(entry) = self.entries.remove(&id) else { return };
        let last = entry.last().unwrap_or_default();
        if self.state.as_ref().is_some_and(|state| state.ended_by(id)) {
            let (path, Intensity { max, within }) = (entry.path(), self.rules.intensity);
            self.gave_up =
                Some(format!("{path} needed more than {max} restarts in {within:?}; at last: {last}"));
            self.last_straw = entry.exit();
        }
        let open = self.state.as_ref().is_some_and(State::is_open);
        let may_come_back = !open || entry.reply.is_some();
        let ending = self.state.as_ref().and_then(State::ending);
        if ending == Some(Ending::AutoShutdown(id)) {
            tracing::info!(
                child = entry.seat().path(),
                "a significant child has ended: so does its supervisor"
            );
        }
        let why = match &self.gave_up {
            Some(why) => format!("its supervisor gave up: {why}"),
            None if open && entry.reply.is_some() => format!("it did not start: {last}"),
            None if open && entry.given_up => format!("its supervisor gave it up; at last: {last}"),
            None if open => format!("it was removed; at last: {last}"),
            None if matches!(ending, Some(Ending::AutoShutdown(_))) => {
                "its supervisor ended by itself, since significant children had".to_owned()
            }
            None => "it was stopped".to_owned(),
        };
        if open {
            self.tell(|| TreeEvent::Removed { path: entry.path() });
        }
        self.leave(&entry, may_come_back, &why);
        if let Some(reply) = entry.reply {
            let _ = reply.send(Err(entry.last.unwrap_or_else(stopping).into()));
        }
        for reply in entry.terminating {
            let _ = reply.send(Ok(()));
        }
    }
}

/// What is told of a start that was given up, and of which something is left.
const LEFT: &str =
    "what it had started is still there 10 s after it was killed: the kernel does not let it go";

/// The process of a child, if that is another one than this.
pub(crate) fn own_process(child: &dyn Child) -> Option<u32> {
    child.pid().filter(|pid| *pid != std::process::id())
}

/// Why a call is refused, if it is.
fn refused(actions: &[Action], name: &str) -> Result<(), Refused> {
    let refusal = actions.iter().find_map(|action| match action {
        Action::Refuse(_, refusal) => Some(*refusal),
        _ => None,
    });
    refusal.map_or(Ok(()), |refusal| Err(Refused::by_rule(refusal, name)))
}

/// What a death means to the policy.
fn death(exit: &Exit) -> Death {
    // What ended a child for a reason of its parent's own, or at a limit, was no wish of anybody's.
    let by_itself = exit.reason().is_none() && exit.limit().is_none() && exit.panic().is_none();
    match exit.status() {
        Status::Code(DO_NOT_TRY_AGAIN) => Death::GiveUp,
        _ if exit.is_orderly() => Death::Clean,
        Status::Code(0) | Status::Signal(SIGINT | SIGTERM) if by_itself => Death::Clean,
        _ => Death::Abnormal,
    }
}

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// The same of a start that failed.
fn death_of_start(fault: &Fault) -> Death {
    match fault {
        Fault::Ended { exit, .. } if exit.code() == Some(DO_NOT_TRY_AGAIN) => Death::GiveUp,
        _ => Death::Abnormal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_clean_only_if_somebody_wanted_it() {
        let status = |status| Exit::new(status);
        let condemned = |exit: Exit| exit.with_reason(Some("no heartbeat for 3s".to_owned()));
        for clean in
            [Exit::orderly(), status(Status::Code(0)), status(Status::Signal(2)), status(Status::Signal(15))]
        {
            assert_eq!(death(&clean), Death::Clean, "{clean}");
        }
        for abnormal in [
            status(Status::Code(1)).with_failed(true),
            status(Status::Code(101)),
            status(Status::Signal(9)),
            status(Status::Signal(1)),
            status(Status::Unknown),
            condemned(status(Status::Code(0))),
            condemned(status(Status::Signal(15))),
        ] {
            assert_eq!(death(&abnormal), Death::Abnormal, "{abnormal}");
        }
        assert_eq!(death(&status(Status::Code(125))), Death::GiveUp);
        let ended = |exit| Fault::Ended { exit: Box::new(exit), maybe_executed: false };
        assert_eq!(death_of_start(&ended(status(Status::Code(125)))), Death::GiveUp);
        assert_eq!(death_of_start(&ended(status(Status::Code(0)))), Death::Abnormal);
    }
}
