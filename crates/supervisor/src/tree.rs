//! A supervisor as its users see it: the builder, and the handle of the running one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hatchery_actor::actor::AnyActor;
use hatchery_actor::child::{BoxFuture, Start};
use hatchery_actor::error::{Error, Result};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::root::{Resident, Root};
use hatchery_actor::seat::{Occupancy, Seat};
use tokio::sync::{mpsc, oneshot, watch};

use crate::policy::Intensity;
use crate::signals::Listener;
use crate::spec::{ChildSpec, ErasedSpec};
use crate::supervisor::{self, Command};

/// Who else is restarted when a child ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// Nobody.
    OneForOne,
}

/// A supervisor to be: it starts its children, and restarts those that end.
///
/// A child that ends, in whatever way, is started again at once, in the same seat: its handles find the new
/// incarnation by themselves. When that happens too often ([`intensity`](Supervisor::intensity)) the supervisor
/// stops everything and gives up.
#[must_use = "nothing starts before `start`"]
pub struct Supervisor {
    strategy: Strategy,
    name: Option<String>,
    intensity: Intensity,
    children: Vec<ErasedSpec>,
}

impl Supervisor {
    /// A supervisor without children.
    pub fn new(strategy: Strategy) -> Supervisor {
        Supervisor { strategy, name: None, intensity: Intensity::default(), children: Vec::new() }
    }

    /// A name, unique among the trees and processes of this process; it begins the paths of its children.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many restarts within how much time are still normal; 10 in 60 s unless told otherwise. One more, and it
    /// stops everything and ends.
    pub fn intensity(mut self, max: u32, within: Duration) -> Self {
        self.intensity = Intensity { max, within };
        self
    }

    /// A child that it starts with. They start in the order given and stop in reverse.
    pub fn child<S: Start>(mut self, spec: ChildSpec<S>) -> Self {
        self.children.push(spec.erase());
        self
    }

    /// Starts it and its children.
    ///
    /// # Errors
    /// The program did not come through the door, the name is taken, or a child does not start: then those that had
    /// started are stopped again, in reverse.
    pub async fn start(self) -> Result<Tree, StartError> {
        let shown = self.name.clone().unwrap_or_else(|| "a supervisor".to_owned());
        let refused = |fault| StartError { what: shown.clone(), fault };
        let root = Root::current().map_err(&refused)?;
        let path = match &self.name {
            Some(name) => root.take_name(name).map_err(&refused)?,
            None => root.unnamed(),
        };
        let Strategy::OneForOne = self.strategy;
        let (commands, orders) = mpsc::channel(256);
        let (over, is_over) = watch::channel(None);
        let seats = Arc::<Seats>::default();
        let resident = Arc::new(TreeResident { commands: commands.downgrade(), over: is_over.clone() });
        let residence = root.move_in(resident).map_err(|fault| {
            root.free_name(&path);
            refused(fault)
        })?;
        let freed = path.clone();
        let task = supervisor::run(self.intensity, path.clone(), seats.clone(), orders);
        tokio::spawn(async move {
            let ending = task.await;
            root.free_name(&freed);
            over.send_replace(Some(ending));
            drop(residence);
        });
        let tree = Tree { shared: Arc::new(Shared { path, seats, commands, over: is_over }) };
        for spec in self.children {
            if let Err(error) = tree.start_erased(spec).await {
                let _ = tree.stop().await;
                return Err(error);
            }
        }
        Ok(tree)
    }
}

/// The seats of a supervisor's children, by name.
#[derive(Default)]
pub(crate) struct Seats {
    by_name: Mutex<BTreeMap<String, Arc<Seat>>>,
}

impl Seats {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<String, Arc<Seat>>) -> T) -> T {
        // No foreign code runs under this lock.
        look(&mut self.by_name.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The handle of a running supervisor. Cloneable; dropping the last one stops it in order, in the background. Handles
/// of its children do not keep it.
#[derive(Clone)]
pub struct Tree {
    shared: Arc<Shared>,
}

struct Shared {
    path: String,
    seats: Arc<Seats>,
    commands: mpsc::Sender<Command>,
    over: watch::Receiver<Option<Ending>>,
}

/// How a supervisor ended: in order, or why not.
pub(crate) type Ending = Result<(), Error>;

/// How many children there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Count {
    /// All, those between two incarnations included.
    pub specs: usize,
    /// Those that are up right now.
    pub active: usize,
}

impl Tree {
    /// Its place in the tree of the program.
    pub fn path(&self) -> &str {
        &self.shared.path
    }

    /// Starts a child and resolves when it is ready, giving the handle of its seat.
    ///
    /// # Errors
    /// The name is taken or no name; the program does not host the actor; the arguments cannot be encoded; the
    /// process cannot be started, its `start` failed, it ended or took longer than its `start_timeout` (30 s unless
    /// told otherwise); the supervisor is stopping. A first start is not tried again.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the child.
    pub async fn start_child<S: Start>(&self, spec: ChildSpec<S>) -> Result<S::Handle, StartError> {
        let seat = self.start_erased(spec.erase()).await?;
        Ok(spec.handle(ActorRef::new(seat)))
    }

    async fn start_erased(&self, spec: ErasedSpec) -> Result<Arc<Seat>, StartError> {
        let what = format!("{}/{}", self.shared.path, spec.start.name());
        let (reply, answer) = oneshot::channel();
        let closed = || Fault::Closed { why: "its supervisor has ended".to_owned() };
        let outcome = match self.shared.commands.send(Command::StartChild(spec, reply)).await {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(closed())),
            Err(_) => Err(closed()),
        };
        outcome.map_err(|fault| StartError { what, fault })
    }

    /// The handle of a child, by its name.
    ///
    /// # Errors
    /// There is none of that name, or it is another actor.
    pub fn get<A: AnyActor>(&self, name: &str) -> Result<A::Handle> {
        let seat = self.shared.seats.with(|seats| seats.get(name).cloned());
        let seat = seat.ok_or_else(|| {
            let names = self.shared.seats.with(|seats| seats.keys().cloned().collect::<Vec<_>>().join(", "));
            Error::msg(format!("{} has no child {name:?}; its children are: {names}", self.path()))
        })?;
        if seat.actor() != A::name() {
            let (is, asked) = (seat.actor(), A::name());
            return Err(Error::msg(format!("{} is a {is}, not a {asked}", seat.path())));
        }
        Ok(ActorRef::new(seat).into())
    }

    /// How many children there are.
    pub fn count(&self) -> Count {
        self.shared.seats.with(|seats| {
            let active = seats.values().filter(|seat| matches!(seat.occupancy(), Occupancy::Occupied(_)));
            Count { specs: seats.len(), active: active.count() }
        })
    }

    /// Stops all children, newest first, and then itself; resolves when all are gone. May be asked again.
    ///
    /// # Errors
    /// It had given up before: a child ended more often than the intensity allows.
    ///
    /// # Cancel safety
    /// Dropped early, the stop goes on.
    pub async fn stop(&self) -> Result<()> {
        // Fails only when it has ended already.
        let _ = self.shared.commands.send(Command::Stop).await;
        self.ended().await
    }

    /// Runs until Ctrl-C or SIGTERM, then stops in order; a second signal ends the program at once. Also resolves
    /// when the supervisor ends by itself.
    ///
    /// # Errors
    /// It gave up: a child ended more often than the intensity allows. Or signals cannot be heard.
    pub async fn run_until_signal(&self) -> Result<()> {
        let mut listener = Listener::new()?;
        tokio::select! {
            _ = listener.hear() => {}
            ended = self.ended() => return ended,
        }
        tokio::select! {
            number = listener.hear() => std::process::exit(128 + number),
            stopped = self.stop() => stopped,
        }
    }

    async fn ended(&self) -> Result<()> {
        ended(self.shared.over.clone()).await
    }
}

async fn ended(mut over: watch::Receiver<Option<Ending>>) -> Result<()> {
    match over.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(ending)) => ending.clone(),
        _ => Err(Error::msg("the runtime of the supervisor has ended")),
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("path", &self.path()).field("count", &self.count()).finish()
    }
}

/// What the end of the program does with a tree.
struct TreeResident {
    commands: mpsc::WeakSender<Command>,
    over: watch::Receiver<Option<Ending>>,
}

impl Resident for TreeResident {
    fn linger(&self) -> Option<BoxFuture<()>> {
        None
    }

    fn stands_alone(&self) -> bool {
        false
    }

    fn close(&self) -> BoxFuture<()> {
        let (commands, over) = (self.commands.upgrade(), self.over.clone());
        Box::pin(async move {
            if let Some(commands) = commands {
                let _ = commands.send(Command::Stop).await;
            }
            // Without a sender the last handle is gone, and it is stopping already.
            let _ = ended(over).await;
        })
    }
}

/// Why a supervisor or a child did not start. A worker that takes too long to start is killed: that is a
/// timeout, and the error has its exit.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("start of {what}: {fault}")]
pub struct StartError {
    what: String,
    #[source]
    fault: Fault,
}

impl std::fmt::Debug for StartError {
    /// For people, as `unwrap` shows it: the text, and the worker's last words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")?;
        self.fault.show_last_words(f)
    }
}

impl StartError {
    /// The library's own reason.
    #[doc(hidden)]
    pub fn fault(&self) -> Option<&Fault> {
        Some(&self.fault)
    }

    hatchery_actor::predicates!();
}
