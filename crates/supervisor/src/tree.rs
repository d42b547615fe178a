//! A supervisor as its users see it: the builder, and the handle of the running one.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use hatchery_actor::actor::AnyActor;
use hatchery_actor::child::{BoxFuture, Start};
use hatchery_actor::error::{Error, Result};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::root::{Resident, Root};
use hatchery_actor::seat::{Occupancy, Seat};
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::policy::{AutoShutdown, CountDeaths, Exhausted, Restart, Strategy};
use crate::policy::{Backoff, Intensity, Refusal, Rules};
use crate::signals::Listener;
use crate::spec::{ChildSpec, ErasedSpec};
use crate::supervisor::{self, Command, Refused};

/// A supervisor to be: it starts its children, and restarts those that end.
///
/// A child that ends is started again in the same seat, unless its [`Restart`] says otherwise: its handles find the new
/// incarnation by themselves. The [`Strategy`] says who is restarted along with it. One that was ready for a second, or
/// had answered a message, starts again at once; one that died earlier, or whose restart failed, waits before the next
/// attempt ([`backoff`](Supervisor::backoff)). When there are too many restarts
/// ([`intensity`](Supervisor::intensity)) the supervisor stops everything and gives up.
#[must_use = "nothing starts before `start`"]
pub struct Supervisor {
    rules: Rules,
    name: Option<String>,
    children: Vec<ErasedSpec>,
}

impl Supervisor {
    /// A supervisor without children.
    pub fn new(strategy: Strategy) -> Supervisor {
        let rules = Rules { strategy, ..Rules::default() };
        Supervisor { rules, name: None, children: Vec::new() }
    }

    /// A supervisor for children that come and go: it begins with none, restarts each alone, and keeps none that does not
    /// run.
    ///
    /// A child that is terminated, that has left cleanly as a [`Restart::Transient`] one, or that is given up, is removed,
    /// and its name is free; so `restart_child` and `delete_child` find those only that they refuse. In the end all are
    /// stopped at the same time, and not one after the other.
    pub fn dynamic() -> Supervisor {
        let rules = Rules { dynamic: true, ..Rules::default() };
        Supervisor { rules, name: None, children: Vec::new() }
    }

    /// A name, unique among the trees and processes of this process; it begins the paths of its children.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many restarts within how much time are still normal; 10 in 60 s unless told otherwise. One more, and it
    /// stops everything and ends, or does what [`exhausted`](Supervisor::exhausted) says.
    ///
    /// A death counts once, however many siblings are restarted with it, and each restart that fails counts once more.
    /// Time in which the supervisor stops, starts or waits for a child is no part of `within`.
    pub fn intensity(mut self, max: u32, within: Duration) -> Self {
        self.rules.intensity = Intensity { max, within };
        self
    }

    /// How long a child that died early waits before it is started again: the first time `first`, each further time
    /// twice as long, at most `cap`; each time 20 % more or less, by chance. 100 ms and 30 s unless told otherwise; with
    /// `Duration::ZERO` for both, nobody ever waits.
    ///
    /// Early is the death of an incarnation that was ready for less than 1 s and had answered no request of this
    /// process, and a restart that fails. A longer life, or an answer, begins the count anew.
    pub fn backoff(mut self, first: Duration, cap: Duration) -> Self {
        self.rules.backoff = Backoff { first, cap };
        self
    }

    /// Which deaths count for the [`intensity`](Supervisor::intensity): all that are followed by a restart, unless told
    /// otherwise.
    pub fn count_deaths(mut self, count: CountDeaths) -> Self {
        self.rules.count_deaths = count;
        self
    }

    /// What follows when a restart is one too many; [`Exhausted::Escalate`] unless told otherwise.
    pub fn exhausted(mut self, exhausted: Exhausted) -> Self {
        self.rules.exhausted = exhausted;
        self
    }

    /// Whether it ends by itself when [significant](ChildSpec::significant) children have ended, and are not started
    /// again; it never does unless told otherwise.
    ///
    /// That is an end in order: all others are stopped, newest first, [`stop`](Tree::stop) and
    /// [`run_until_signal`](Tree::run_until_signal) return `Ok`. It does not come before all children have started that it
    /// begins with.
    pub fn auto_shutdown(mut self, auto_shutdown: AutoShutdown) -> Self {
        self.rules.auto_shutdown = auto_shutdown;
        self
    }

    /// How many children it may have at most, those included that are stopped or being restarted; one more is refused
    /// ([`is_max_children`](StartError::is_max_children)). As many as there is memory for unless told otherwise.
    pub fn max_children(mut self, max: usize) -> Self {
        self.rules.max_children = Some(max);
        self
    }

    /// Whether the children it begins with start all at once, and not one after the other; then they are ready in any
    /// order, and still stop in reverse of the order given. The first that does not start has all others stopped.
    pub fn start_concurrently(mut self, concurrently: bool) -> Self {
        self.rules.start_concurrently = concurrently;
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
    /// What it was told contradicts itself, and nothing has been started: the intensity's time is zero, the backoff
    /// begins above its cap, two children have one name, or a child's spec is wrong. The program did not come through
    /// the door, or the name is taken. Or a child does not start: that is not tried again, and those that had started
    /// are stopped, in reverse.
    pub async fn start(self) -> Result<Tree, StartError> {
        let shown = self.name.clone().unwrap_or_else(|| "a supervisor".to_owned());
        let refused = |fault| StartError::new(shown.clone(), Refused::from(fault));
        let contradicts = |what, contradiction| {
            StartError::new(what, Refused::by_rule(Refusal::Contradiction(contradiction), ""))
        };
        let rules = self.rules;
        rules.check(self.children.len()).map_err(|why| contradicts(shown.clone(), why))?;
        for (index, spec) in self.children.iter().enumerate() {
            let name = spec.start.name();
            let of_child = |refused| StartError::new(format!("{shown}/{name}"), refused);
            spec.check().map_err(|fault| of_child(fault.into()))?;
            rules.check_child(spec.kind).map_err(|why| contradicts(format!("{shown}/{name}"), why))?;
            if self.children.iter().take(index).any(|other| other.start.name() == name) {
                return Err(of_child(Refused::by_rule(Refusal::AlreadyStarted, name)));
            }
        }
        let root = Root::current().map_err(&refused)?;
        let path = match &self.name {
            Some(name) => root.take_name(name).map_err(&refused)?,
            None => root.unnamed(),
        };
        let (commands, orders) = mpsc::channel(256);
        let (over, is_over) = watch::channel(None);
        let seats = Arc::<Seats>::default();
        let resident = Arc::new(TreeResident { commands: commands.downgrade(), over: is_over.clone() });
        let residence = root.move_in(resident).map_err(|fault| {
            root.free_name(&path);
            refused(fault)
        })?;
        let freed = path.clone();
        let task = supervisor::run(self.rules, path.clone(), seats.clone(), orders);
        tokio::spawn(async move {
            let ending = task.await;
            root.free_name(&freed);
            over.send_replace(Some(ending));
            drop(residence);
        });
        let tree = Tree { shared: Arc::new(Shared { path, seats, commands, over: is_over }) };
        if let Err(error) = tree.begin(self.children, rules.start_concurrently).await {
            let _ = tree.stop().await;
            return Err(error);
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
    /// All, those that are stopped or between two incarnations included.
    pub specs: usize,
    /// Those that are up right now.
    pub active: usize,
}

/// A child as its supervisor knows it. See [`Tree::children`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChildInfo {
    /// Its name among its siblings.
    pub name: String,
    /// Its place in the tree.
    pub path: String,
    /// After which deaths it is started again.
    pub restart: Restart,
    /// How it stands.
    pub state: ChildState,
    /// Its latest incarnation, or the one that is being started; from 1.
    pub incarnation: u64,
    /// The process it lives in, if it is up and has one of its own.
    pub pid: Option<u32>,
    /// How its latest incarnation, or its latest start, ended, in words.
    pub last: Option<String>,
}

/// How a child stands. See [`Tree::children`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChildState {
    /// It is being started because somebody asked for it.
    Starting,
    /// It is up, or being stopped for good.
    Running,
    /// It has ended, or is being stopped, and the next incarnation follows: at once, after a backoff, or when it is its
    /// turn in its group.
    Restarting,
    /// It was stopped, or has left in order. Its spec is kept.
    Stopped,
    /// It said not to try again (exit code 125), cannot be killed, or was restarted too often
    /// ([`Exhausted::GiveUpChild`]). Its spec is kept.
    GivenUp,
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
    /// told otherwise); the supervisor is stopping. A first start is not tried again. Where the name is that of a child,
    /// [`is_already_started`](StartError::is_already_started) and
    /// [`is_already_present`](StartError::is_already_present) tell how it stands.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the child.
    pub async fn start_child<S: Start>(&self, spec: ChildSpec<S>) -> Result<S::Handle, StartError> {
        let seat = self.start_erased(spec.erase()).await?;
        Ok(spec.handle(ActorRef::new(seat)))
    }

    /// Starts the children that it begins with; ends with the first that does not start.
    async fn begin(&self, specs: Vec<ErasedSpec>, concurrently: bool) -> Result<(), StartError> {
        if concurrently {
            let mut starts: Vec<_> =
                specs.into_iter().map(|spec| Box::pin(self.start_erased(spec))).collect();
            poll_fn(|task| {
                // Polled in this order for the first time, they are added in it.
                let mut failed = None;
                starts.retain_mut(|start| match start.as_mut().poll(task) {
                    Poll::Ready(Err(error)) => {
                        failed.get_or_insert(error);
                        false
                    }
                    Poll::Ready(Ok(_)) => false,
                    Poll::Pending => true,
                });
                match failed {
                    Some(error) => Poll::Ready(Err(error)),
                    None if starts.is_empty() => Poll::Ready(Ok(())),
                    None => Poll::Pending,
                }
            })
            .await?;
        } else {
            for spec in specs {
                self.start_erased(spec).await?;
            }
        }
        // Fails only if it is ending already.
        let _ = self.shared.commands.send(Command::AllStarted).await;
        Ok(())
    }

    async fn start_erased(&self, spec: ErasedSpec) -> Result<Arc<Seat>, StartError> {
        let what = self.path_of(spec.start.name());
        let outcome = self.call(|reply| Command::StartChild(spec, reply)).await;
        outcome.map_err(|refused| StartError::new(what, refused))
    }

    /// Starts a child that is stopped, and resolves when it is ready. Its handles reach the new incarnation.
    ///
    /// # Errors
    /// There is none of that name; it runs ([`is_running`](ChildError::is_running)) or is being restarted
    /// ([`is_restarting`](ChildError::is_restarting)); it does not start: then it stays stopped, and that is not tried
    /// again. The supervisor is stopping.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the child.
    pub async fn restart_child(&self, name: &str) -> Result<(), ChildError> {
        let outcome = self.call(|reply| Command::RestartChild(name.to_owned(), reply)).await;
        outcome.map(drop).map_err(|refused| self.child_error("restart", name, refused))
    }

    /// Stops a child, and resolves when it is gone. Its spec is kept, unless it is [`Restart::Temporary`] or was being
    /// started for the first time. Fine for one that is stopped already; one that is being restarted is not started
    /// again.
    ///
    /// # Errors
    /// There is none of that name. The supervisor is stopping. It is still there 10 s after it was killed: then it is given
    /// up.
    ///
    /// # Cancel safety
    /// Dropped early, the stop goes on.
    pub async fn terminate_child(&self, name: &str) -> Result<(), ChildError> {
        let outcome = self.call(|reply| Command::TerminateChild(name.to_owned(), reply)).await;
        outcome.map_err(|refused| self.child_error("stop", name, refused))
    }

    /// Forgets a child that is stopped: its seat is closed for good, and its name is free.
    ///
    /// # Errors
    /// There is none of that name; it runs ([`is_running`](ChildError::is_running)) or is being restarted
    /// ([`is_restarting`](ChildError::is_restarting)). The supervisor is stopping.
    pub async fn delete_child(&self, name: &str) -> Result<(), ChildError> {
        let outcome = self.call(|reply| Command::DeleteChild(name.to_owned(), reply)).await;
        outcome.map_err(|refused| self.child_error("removal", name, refused))
    }

    /// The children, in the order of their addition; none once it has ended.
    pub async fn children(&self) -> Vec<ChildInfo> {
        let (reply, answer) = oneshot::channel();
        // Either fails only when it has ended.
        let _ = self.shared.commands.send(Command::Children(reply)).await;
        answer.await.unwrap_or_default()
    }

    fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.shared.path)
    }

    fn child_error(&self, what: &str, name: &str, refused: Refused) -> ChildError {
        ChildError::new(format!("{what} of {}", self.path_of(name)), refused)
    }

    async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Command,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        let closed = || Err(Fault::Closed { why: "its supervisor has ended".to_owned() }.into());
        match self.shared.commands.send(command(reply)).await {
            Ok(()) => answer.await.unwrap_or_else(|_| closed()),
            Err(_) => closed(),
        }
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
    refusal: Option<Refusal>,
}

/// Why a child was not started again, stopped or removed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {fault}")]
pub struct ChildError {
    what: String,
    #[source]
    fault: Fault,
    refusal: Option<Refusal>,
}

macro_rules! shown_for_people {
    ($error:ty) => {
        impl std::fmt::Debug for $error {
            /// For people, as `unwrap` shows it: the text, and the worker's last words.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")?;
                self.fault.show_last_words(f)
            }
        }

        impl $error {
            fn new(what: String, Refused { refusal, fault }: Refused) -> $error {
                Self { what, fault, refusal }
            }

            /// The library's own reason.
            #[doc(hidden)]
            pub fn fault(&self) -> Option<&Fault> {
                Some(&self.fault)
            }

            hatchery_actor::predicates!();
        }
    };
}

shown_for_people!(StartError);
shown_for_people!(ChildError);

impl StartError {
    /// Whether the supervisor has a child of that name, which runs or is being started.
    pub fn is_already_started(&self) -> bool {
        self.refusal == Some(Refusal::AlreadyStarted)
    }

    /// Whether the supervisor has as many children as [`max_children`](Supervisor::max_children) allows.
    pub fn is_max_children(&self) -> bool {
        self.refusal == Some(Refusal::MaxChildren)
    }

    /// Whether things were asked for that cannot be had together: rules of a supervisor, or those and a child's. Nothing
    /// was started.
    pub fn is_contradiction(&self) -> bool {
        matches!(self.refusal, Some(Refusal::Contradiction(_)))
    }

    /// Whether the supervisor has a child of that name, which is stopped or being restarted.
    pub fn is_already_present(&self) -> bool {
        self.refusal == Some(Refusal::AlreadyPresent)
    }
}

impl ChildError {
    /// Whether there is no child of that name.
    pub fn is_not_found(&self) -> bool {
        self.refusal == Some(Refusal::NotFound)
    }

    /// Whether the child runs: it would have to be stopped first.
    pub fn is_running(&self) -> bool {
        self.refusal == Some(Refusal::Running)
    }

    /// Whether the child is being restarted.
    pub fn is_restarting(&self) -> bool {
        self.refusal == Some(Refusal::Restarting)
    }
}
