//! The supervisor at work: it carries out what the policy decides and never waits for a child. Starts, stops and ends
//! are awaited by tasks of their own and come back as events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::child::{self, Child, Order, Presence, Started};
use hatchery_actor::error::Error;
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::panics;
use hatchery_actor::root::Root;
use hatchery_actor::seat::Seat;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::policy::{self, Action, Ending, Event, Id, Intensity, State};
use crate::spec::ErasedSpec;
use crate::tree::Seats;

/// How long what a start left may take to be gone: it has been killed by then.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// What handles ask for.
pub(crate) enum Command {
    StartChild(ErasedSpec, oneshot::Sender<Result<Arc<Seat>, Fault>>),
    Stop,
}

/// What tasks report.
enum Report {
    Start(Id, u64, Result<Started, Fault>),
    Exited(Id, u64, Arc<Exit>),
}

/// A child as the supervisor knows it; what the policy knows of it is in [`State`].
struct Entry {
    spec: ErasedSpec,
    seat: Arc<Seat>,
    incarnation: u64,
    /// Gives up the start that is under way, when dropped. The start reports back exactly once all the same.
    starting: Option<oneshot::Sender<()>>,
    child: Option<Arc<dyn Child>>,
    /// Whether it was told to stop, also if it was not up yet then.
    stopping: bool,
    /// Who waits for its first start.
    reply: Option<oneshot::Sender<Result<Arc<Seat>, Fault>>>,
    /// How its latest incarnation, or its latest start, ended.
    last: Option<Fault>,
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
    intensity: Intensity,
    path: String,
    seats: Arc<Seats>,
    mut commands: mpsc::Receiver<Command>,
) -> Result<(), Error> {
    let (reports, mut reported) = mpsc::channel(256);
    let mut supervisor = Supervisor {
        path,
        state: Some(State::new(intensity)),
        begun: Instant::now(),
        next: 0,
        entries: BTreeMap::new(),
        seats,
        reports,
        intensity,
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
                Some(Command::StartChild(spec, reply)) => supervisor.add(spec, reply),
                Some(Command::Stop) => supervisor.step(Event::Stop),
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
    fn add(&mut self, spec: ErasedSpec, reply: oneshot::Sender<Result<Arc<Seat>, Fault>>) {
        let name = spec.start.name().to_owned();
        if let Err(fault) = spec.check() {
            let _ = reply.send(Err(fault));
            return;
        }
        let path = format!("{}/{name}", self.path);
        let seat = Seat::with(path, spec.start.actor(), spec.window, spec.shutdown);
        let taken = self.seats.with(|seats| match seats.entry(name.clone()) {
            std::collections::btree_map::Entry::Occupied(_) => true,
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(seat.clone());
                false
            }
        });
        if taken {
            let fault = Fault::Refused(format!(
                "the name {name:?} is taken: names are unique among siblings, choose another"
            ));
            let _ = reply.send(Err(fault));
            return;
        }
        if let Ok(root) = Root::current() {
            root.directory().enter(&seat);
        }
        let id = self.next;
        self.next += 1;
        let entry = Entry {
            spec,
            seat,
            incarnation: 0,
            starting: None,
            child: None,
            stopping: false,
            reply: Some(reply),
            last: None,
        };
        self.entries.insert(id, entry);
        self.step(Event::Add(id));
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Start(id, incarnation, result) => {
                let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.incarnation == incarnation)
                else {
                    return;
                };
                entry.starting = None;
                match result {
                    Ok(started) => self.ready(id, incarnation, started),
                    Err(fault) => {
                        tracing::warn!(child = entry.seat.path(), incarnation, %fault, "start failed");
                        entry.last = Some(fault);
                        self.step(Event::StartFailed(id));
                    }
                }
            }
            Report::Exited(id, incarnation, exit) => {
                let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.incarnation == incarnation)
                else {
                    return;
                };
                tracing::info!(child = entry.seat.path(), incarnation, %exit, "child ended");
                entry.child = None;
                entry.last = Some(Fault::Ended { exit: Box::new((*exit).clone()), maybe_executed: false });
                self.step(Event::Exited(id));
            }
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
        // The state is back before anything else happens.
        let Some(state) = self.state.take() else { return };
        let (state, actions) = policy::step(state, event, self.begun.elapsed());
        self.state = Some(state);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(id, incarnation) => self.start(id, incarnation),
            Action::Stop(id) => self.stop(id),
            Action::Remove(id) => self.remove(id),
            Action::Finish(ending) => self.finished = Some(ending),
        }
    }

    fn start(&mut self, id: Id, incarnation: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.incarnation = incarnation;
        let (presence, mut absence) = Presence::new();
        let order = Order {
            seat: entry.seat.clone(),
            incarnation,
            timeout: entry.spec.start_timeout,
            presence,
            settings: entry.spec.settings.clone(),
            heartbeat: entry.spec.heartbeat,
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
        entry.starting = Some(give_up);
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
                    let exit = Arc::new(exit);
                    let _ = reports.send(Report::Exited(id, incarnation, exit)).await;
                }
            });
        }
        // If it is still starting, it ends as a start that failed, or becomes ready all the same and is stopped then.
        entry.starting = None;
    }

    fn remove(&mut self, id: Id) {
        let Some(entry) = self.entries.remove(&id) else { return };
        let last = match &entry.last {
            Some(Fault::Ended { exit, .. }) => exit.to_string(),
            Some(fault) => fault.to_string(),
            None => String::new(),
        };
        if self.state.as_ref().is_some_and(|state| state.ended_by(id)) {
            let (path, Intensity { max, within }) = (entry.seat.path(), self.intensity);
            self.gave_up =
                Some(format!("{path} needed more than {max} restarts in {within:?}; at last: {last}"));
        }
        let open = self.state.as_ref().is_some_and(State::is_open);
        let why = match &self.gave_up {
            Some(why) => format!("its supervisor gave up: {why}"),
            // Only a first start that failed leaves a supervisor that goes on.
            None if open => format!("it did not start: {last}"),
            None => "it was stopped".to_owned(),
        };
        self.seats.with(|seats| seats.retain(|_, seat| !Arc::ptr_eq(seat, &entry.seat)));
        entry.seat.close(&why);
        if let Some(reply) = entry.reply {
            let stopping = || Fault::Closed { why: "its supervisor is stopping".to_owned() };
            let _ = reply.send(Err(entry.last.unwrap_or_else(stopping)));
        }
    }
}
