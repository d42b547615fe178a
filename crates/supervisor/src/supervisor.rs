//! The supervisor at work: it carries out what the policy decides and never waits for a child. Starts, stops and ends
//! are awaited by tasks of their own and come back as events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::address::random;
use hatchery_actor::child::{self, Child, Order, Presence, Started};
use hatchery_actor::error::Error;
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::panics;
use hatchery_actor::root::Root;
use hatchery_actor::seat::Seat;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::policy::{self, Action, Death, Ending, Event, Id, Intensity, Refusal, Rules, Standing, State};
use crate::spec::ErasedSpec;
use crate::tree::{ChildInfo, ChildState, Seats};

/// How long what a start left may take to be gone: it has been killed by then.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// A worker that ends with it shall not be started again, whatever its spec says.
const DO_NOT_TRY_AGAIN: i32 = 125;

/// What handles ask for.
pub(crate) enum Command {
    StartChild(ErasedSpec, Answer<Arc<Seat>>),
    RestartChild(String, Answer<Arc<Seat>>),
    TerminateChild(String, Answer<()>),
    DeleteChild(String, Answer<()>),
    Children(oneshot::Sender<Vec<ChildInfo>>),
    Stop,
}

type Answer<T> = oneshot::Sender<Result<T, Refused>>;

/// Why something that was asked for was not done.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Which rule says so, if one does.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) fault: Fault,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Refused {
        Refused { refusal: None, fault }
    }
}

impl Refused {
    pub(crate) fn by_rule(refusal: Refusal, name: &str) -> Refused {
        let why = match refusal {
            Refusal::AlreadyStarted => {
                format!("the name {name:?} is taken: names are unique among siblings, choose another")
            }
            Refusal::AlreadyPresent => format!(
                "the name {name:?} is taken by a child that does not run right now: `restart_child` starts one that is \
                 stopped, `delete_child` frees its name"
            ),
            Refusal::Running => "it runs: `terminate_child` stops it".to_owned(),
            Refusal::Restarting => {
                "it is being restarted: wait for it, or stop that with `terminate_child`".to_owned()
            }
            Refusal::NotFound => format!("there is no child {name:?}: `children` lists those there are"),
            Refusal::Ending => return Refused::from(stopping()),
        };
        Refused { refusal: Some(refusal), fault: Fault::Refused(why) }
    }
}

fn stopping() -> Fault {
    Fault::Closed { why: "its supervisor is stopping".to_owned() }
}

/// What tasks report.
enum Report {
    Start(Id, u64, Result<Started, Fault>),
    Exited(Id, u64, Arc<Exit>),
    /// What stands for the exit of one that does not end.
    Unkillable(Id, u64, Arc<Exit>),
    Elapsed(Id, u64),
}

/// A child as the supervisor knows it; what the policy knows of it is in [`State`].
struct Entry {
    spec: ErasedSpec,
    seat: Arc<Seat>,
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
    /// Whether somebody is there, or on the way, or on the way out.
    fn is_live(&self) -> bool {
        self.child.is_some() || self.starting
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
    path: String,
    state: Option<State>,
    begun: Instant,
    next: Id,
    entries: BTreeMap<Id, Entry>,
    seats: Arc<Seats>,
    reports: mpsc::Sender<Report>,
    intensity: Intensity,
    /// Why it gave up, in words.
    gave_up: Option<String>,
    finished: Option<Ending>,
}

/// Runs until everything has stopped.
pub(crate) async fn run(
    rules: Rules,
    path: String,
    seats: Arc<Seats>,
    mut commands: mpsc::Receiver<Command>,
) -> Result<(), Error> {
    let (reports, mut reported) = mpsc::channel(256);
    let mut supervisor = Supervisor {
        path,
        state: Some(State::new(rules)),
        begun: Instant::now(),
        next: 0,
        entries: BTreeMap::new(),
        seats,
        reports,
        intensity: rules.intensity,
        gave_up: None,
        finished: None,
    };
    let mut handles = true;
    while supervisor.finished.is_none() {
        tokio::select! {
            biased;
            // This side holds a sender itself, so there is always another report to wait for.
            Some(report) = reported.recv() => supervisor.report(report),
            command = commands.recv(), if handles => match command {
                Some(command) => supervisor.command(command),
                None => {
                    // The last handle is gone.
                    handles = false;
                    supervisor.step(Event::Stop);
                }
            },
        }
    }
    // What came too late is told so by its reply being dropped.
    match supervisor.gave_up {
        Some(why) => Err(Error::msg(format!("{} gave up: {why}", supervisor.path))),
        None => Ok(()),
    }
}

impl Supervisor {
    fn command(&mut self, command: Command) {
        match command {
            Command::StartChild(spec, reply) => self.add(spec, reply),
            Command::RestartChild(name, reply) => self.restart(&name, reply),
            Command::TerminateChild(name, reply) => self.terminate(&name, reply),
            Command::DeleteChild(name, reply) => {
                let outcome = self.known(&name).and_then(|id| self.call(Event::Delete(id), &name));
                let _ = reply.send(outcome);
            }
            Command::Children(reply) => drop(reply.send(self.children())),
            Command::Stop => self.step(Event::Stop),
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
        let refusal = actions.iter().find_map(|action| match action {
            Action::Refuse(_, refusal) => Some(*refusal),
            _ => None,
        });
        self.carry_out(actions);
        refusal.map_or(Ok(()), |refusal| Err(Refused::by_rule(refusal, name)))
    }

    fn add(&mut self, spec: ErasedSpec, reply: Answer<Arc<Seat>>) {
        let name = spec.start.name().to_owned();
        if let Err(fault) = spec.check() {
            let _ = reply.send(Err(fault.into()));
            return;
        }
        let restart = spec.restart;
        if let Ok(id) = self.known(&name) {
            // The policy says what is in the way of it.
            let refused = self.call(Event::Add(id, restart), &name).err();
            let _ = reply.send(Err(refused.unwrap_or_else(|| stopping().into())));
            return;
        }
        let path = format!("{}/{name}", self.path);
        let seat = Seat::with(path, spec.start.actor(), spec.window, spec.shutdown);
        self.seats.with(|seats| seats.insert(name.clone(), seat.clone()));
        if let Ok(root) = Root::current() {
            root.directory().enter(&seat);
        }
        let id = self.next;
        self.next += 1;
        let entry = Entry {
            spec,
            seat,
            incarnation: 0,
            starting: false,
            give_up: None,
            child: None,
            stopping: false,
            reply: Some(reply),
            terminating: Vec::new(),
            wait: None,
            given_up: false,
            last: None,
        };
        self.entries.insert(id, entry);
        self.step(Event::Add(id, restart));
    }

    fn restart(&mut self, name: &str, reply: Answer<Arc<Seat>>) {
        let outcome = self.known(name).and_then(|id| self.call(Event::Restart(id), name).map(|()| id));
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
            path: entry.seat.path().to_owned(),
            restart: entry.spec.restart,
            state: match standing(id) {
                Some(Standing::Running) if entry.starting => ChildState::Starting,
                Some(Standing::Running) => ChildState::Running,
                Some(Standing::Restarting) => ChildState::Restarting,
                Some(Standing::Stopped) | None if entry.given_up => ChildState::GivenUp,
                Some(Standing::Stopped) | None => ChildState::Stopped,
            },
            incarnation: entry.incarnation,
            pid: entry.child.as_ref().and_then(|child| child.pid()),
            last: entry.last(),
        };
        self.entries.iter().map(info).collect()
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Start(id, incarnation, result) => {
                let entry = self.entries.get_mut(&id).filter(|entry| entry.incarnation == incarnation);
                let Some(entry) = entry else { return };
                entry.starting = false;
                entry.give_up = None;
                match result {
                    Ok(started) => self.ready(id, incarnation, started),
                    Err(fault) => {
                        tracing::warn!(child = entry.seat.path(), incarnation, %fault, "start failed");
                        let death = death_of_start(&fault);
                        entry.last = Some(fault);
                        self.gone(id, Event::StartFailed(id, death), Ok(()));
                    }
                }
            }
            Report::Exited(id, incarnation, exit) => {
                let death = death(&exit);
                self.ended(id, incarnation, &exit, death, Ok(()));
            }
            Report::Unkillable(id, incarnation, exit) => {
                let why = Fault::Refused(exit.reason().unwrap_or_default().to_owned());
                // Nobody is started beside it.
                self.ended(id, incarnation, &exit, Death::GiveUp, Err(why));
            }
            Report::Elapsed(id, wait) => self.step(Event::Elapsed(id, wait)),
        }
    }

    fn ended(&mut self, id: Id, incarnation: u64, exit: &Exit, death: Death, outcome: Result<(), Fault>) {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.incarnation == incarnation);
        // Once it has been called unkillable, its end is no news.
        let Some(entry) = entry.filter(|entry| entry.child.is_some()) else { return };
        tracing::info!(child = entry.seat.path(), incarnation, %exit, "child ended");
        entry.child = None;
        entry.last = Some(Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: false });
        let answered = entry.seat.has_answered(incarnation);
        self.gone(id, Event::Exited { id, death, answered }, outcome);
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
        entry.seat.occupy(incarnation, child.clone(), line);
        if let Some(reply) = entry.reply.take() {
            // Nobody waits if the asking future was dropped; the child stays.
            let _ = reply.send(Ok(entry.seat.clone()));
        }
        let reports = self.reports.clone();
        tokio::spawn(async move {
            let exit = child.exited().await;
            let _ = reports.send(Report::Exited(id, incarnation, exit)).await;
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
        for action in actions {
            match action {
                Action::Start(id, incarnation) => self.start(id, incarnation),
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

    fn wait(&mut self, id: Id, number: u64, delay: Duration) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let reports = self.reports.clone();
        tracing::info!(child = entry.seat.path(), ?delay, "it died early: waiting before the next start");
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
        let path = entry.seat.path();
        let last = entry.last();
        let last = last.as_deref().unwrap_or("it never ran");
        let why = if given_up {
            tracing::error!(child = path, last, "given up");
            format!("its supervisor gave it up, and `restart_child` starts it again; at last: {last}")
        } else {
            tracing::info!(child = path, last, "stopped");
            format!("it is stopped, and `restart_child` starts it again; at last: {last}")
        };
        entry.seat.close(&why);
        if let Some(reply) = entry.reply.take() {
            let _ = reply.send(Err(entry.last.clone().unwrap_or_else(stopping).into()));
        }
    }

    fn start(&mut self, id: Id, incarnation: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.incarnation = incarnation;
        entry.stopping = false;
        entry.wait = None;
        entry.given_up = false;
        entry.seat.reopen();
        let (presence, mut absence) = Presence::new();
        let order = Order {
            seat: entry.seat.clone(),
            incarnation,
            timeout: entry.spec.start_timeout,
            presence,
            settings: entry.spec.settings.clone(),
            heartbeat: entry.spec.heartbeat,
            watchdog: entry.spec.watchdog,
        };
        let start = entry.spec.start.start(order);
        let reports = self.reports.clone();
        let (give_up, given_up) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let result = tokio::select! {
                biased;
                // A panic in it, of the user's own decoding perhaps, must not leave the child starting for ever.
                result = panics::catch(start) => {
                    result.unwrap_or_else(|panic| Err(Fault::StartFailed(panic.to_string())))
                }
                // Dropping the start ends what it began.
                _ = given_up => Err(Fault::Closed { why: "it was stopped while it started".to_owned() }),
            };
            if result.is_err() && tokio::time::timeout(GIVEN_UP, absence.wait()).await.is_err() {
                tracing::error!(incarnation, "what was started and given up is still there, and unkillable");
            }
            let _ = reports.send(Report::Start(id, incarnation, result)).await;
        });
        entry.starting = true;
        entry.give_up = Some(give_up);
    }

    fn stop(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.stopping = true;
        let (reports, incarnation) = (self.reports.clone(), entry.incarnation);
        if let Some(child) = entry.child.clone() {
            let shutdown = entry.spec.shutdown;
            let seat = entry.seat.clone();
            tokio::spawn(async move {
                // Its end is reported by the task that waits for it, unless it does not end.
                if let Err(error) = child::stop(&*child, shutdown).await {
                    tracing::error!(child = seat.path(), %error, "unkillable");
                    let exit = Exit::new(Status::Unknown).with_reason(Some(error.to_string()));
                    // It will not say so itself: those who wait for its answers wait no longer.
                    seat.ended(incarnation, &exit);
                    let _ = reports.send(Report::Unkillable(id, incarnation, Arc::new(exit))).await;
                }
            });
        }
        // If it is still starting, it ends as a start that failed, or becomes ready all the same and is stopped then.
        entry.give_up = None;
    }

    fn remove(&mut self, id: Id) {
        let Some(entry) = self.entries.remove(&id) else { return };
        let last = entry.last().unwrap_or_default();
        if self.state.as_ref().is_some_and(|state| state.ended_by(id)) {
            let (path, Intensity { max, within }) = (entry.seat.path(), self.intensity);
            self.gave_up =
                Some(format!("{path} needed more than {max} restarts in {within:?}; at last: {last}"));
        }
        let open = self.state.as_ref().is_some_and(State::is_open);
        let why = match &self.gave_up {
            Some(why) => format!("its supervisor gave up: {why}"),
            None if open && entry.reply.is_some() => format!("it did not start: {last}"),
            None if open => format!("it was removed; at last: {last}"),
            None => "it was stopped".to_owned(),
        };
        self.seats.with(|seats| seats.retain(|_, seat| !Arc::ptr_eq(seat, &entry.seat)));
        entry.seat.close(&why);
        if let Some(reply) = entry.reply {
            let _ = reply.send(Err(entry.last.unwrap_or_else(stopping).into()));
        }
        for reply in entry.terminating {
            let _ = reply.send(Ok(()));
        }
    }
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
