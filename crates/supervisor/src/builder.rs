//! A supervisor to be: what it is told before it starts, and how it starts.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hatchery_actor::child::Start;
use hatchery_actor::context::Context;
use hatchery_actor::fault::Fault;
use hatchery_actor::root::Root;
use tokio::runtime::Handle;

use crate::errors::{Refused, StartError};
use crate::nested::{Nested, beside};
use crate::office::{Ending, Office, Orderly, Run, Runner, Shared};
use crate::policy::{AutoShutdown, Backoff, CountDeaths, Exhausted, Intensity, Refusal, Rules, Strategy};
use crate::spec::{ChildSpec, ErasedSpec};
use crate::supervisor::{self, Command};
use crate::tree::{Tree, TreeResident};

/// A supervisor to be: it starts its children, and restarts those that end.
///
/// A child that ends is started again in the same seat, unless its [`Restart`](crate::policy::Restart) says otherwise: its handles find the new
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
    /// A child that is terminated, that has left cleanly as a [`Restart::Transient`](crate::policy::Restart::Transient) one, or that is given up, is removed,
    /// and its name is free; so `restart_child` and `delete_child` find those only that they refuse. In the end all are
    /// stopped at the same time, and not one after the other.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::task]
    /// fn square(n: u64) -> u64 { n * n }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::dynamic().max_children(4).start().await?;
    ///     let two = tree.start_child(task("two", square, 2)).await?;
    ///     let three = tree.start_child(task("three", square, 3)).await?;
    ///     assert_eq!((two.join().await?, three.join().await?), (4, 9));
    ///     tree.stop().await
    /// }
    /// ```
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
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// #[hatchery::task]
    /// fn resize(_part: u32) {}
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let supervisor = Supervisor::new(Strategy::OneForOne).auto_shutdown(AutoShutdown::AllSignificant);
    ///     let job = |part| task(format!("resize-{part}"), resize, part).significant(true);
    ///     let tree = (0..3).fold(supervisor, |all, part| all.child(job(part))).start().await?;
    ///     tree.ended().await                       // when all parts are done, however often one was tried
    /// }
    /// ```
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

    /// Makes it a child of another supervisor, in the same process, under this name; the child's handle is its [`Tree`].
    ///
    /// It starts when its children have started, stops when they have stopped, and ends with an error when it gives up:
    /// then its parent starts it again, children and all, or gives up in turn. Handles of its listed children reach their
    /// successors; children that were added later are gone with it.
    ///
    /// Its [`shutdown`](ChildSpec::shutdown) is [`Shutdown::infinity`](hatchery_actor::child::Shutdown::infinity) and its
    /// [`start_timeout`](ChildSpec::start_timeout) is without end unless told otherwise: each of its children has its own.
    ///
    /// A supervisor in a worker of its own is an actor that starts one in its `start`: see
    /// [`start_in`](Supervisor::start_in).
    #[doc(alias = "nested")]
    pub fn spec(self, name: impl Into<String>) -> ChildSpec<Nested> {
        Nested::spec(name.into(), self)
    }

    /// Starts it and its children.
    ///
    /// # Errors
    /// What it was told contradicts itself, and nothing has been started: a rule and another one, or a child's
    /// ([`is_contradiction`](StartError::is_contradiction)), two children have one name, or a child's spec is wrong. The
    /// program did not come through the door, or the name is taken. Or a child does not start: that is not tried again, and
    /// those that had started are stopped, in reverse.
    ///
    /// # Cancel safety
    /// Dropped early, it stops what it has started, in the background.
    pub async fn start(self) -> Result<Tree, StartError> {
        let refused = |fault| StartError::new(self.shown(), Refused::from(fault));
        let root = Root::current().map_err(refused)?;
        let place = |root: &Root| match &self.name {
            Some(name) => root.take_name(name),
            None => Ok(root.unnamed()),
        };
        let office = |path: &str| Office::new(path.to_owned(), false, None);
        self.start_at(root, place, office, Run::new(), (), true).await
    }

    /// Starts it as a part of an actor: this is how a supervisor lives in a worker of its own. Its path is the actor's; an
    /// actor has one at most, and others may be children of that ([`spec`](Supervisor::spec)).
    ///
    /// The actor keeps it, also when nobody holds the [`Tree`]. When it gives up, the actor crashes, and when it ends by
    /// itself ([`auto_shutdown`](Supervisor::auto_shutdown)) the actor stops in order, so that whoever supervises the actor
    /// decides what comes next. When the actor ends, in whatever way, it is stopped with all its children; a worker that is
    /// killed takes them along at once.
    /// Give the worker a [`shutdown`](ChildSpec::shutdown) that is long enough for its children's.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// struct Shelf;
    ///
    /// #[hatchery::actor]
    /// impl Shelf {
    ///     fn start() -> Self { Shelf }
    ///     fn works(&self) {}
    /// }
    ///
    /// struct Store { tree: Tree }
    ///
    /// #[hatchery::actor]
    /// impl Store {
    ///     async fn start(shelves: usize, cx: &Context) -> hatchery::Result<Self> {
    ///         let mut supervisor = Supervisor::new(Strategy::OneForOne);
    ///         for number in 0..shelves {
    ///             supervisor = supervisor.child(worker::<Shelf>(format!("shelf-{number}"), ()));
    ///         }
    ///         Ok(Store { tree: supervisor.start_in(cx).await? })
    ///     }
    ///
    ///     fn shelves(&self) -> usize { self.tree.count().active }
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::new(Strategy::OneForOne).name("shop").start().await?;
    ///     let store = tree.start_child(worker::<Store>("store", 2).shutdown(Shutdown::infinity())).await?;
    ///     assert_eq!(store.shelves().await?, 2);
    ///     hatchery::lookup::<Shelf>("/shop/store/shelf-0")?.works().await?; // a worker of a worker
    ///     tree.stop().await
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`start`](Supervisor::start). It has a name, or the actor has such a part already.
    pub async fn start_in(self, cx: &Context) -> Result<Tree, StartError> {
        let refused = |fault| StartError::new(self.shown(), Refused::from(fault));
        let root = Root::current().map_err(refused)?;
        if self.name.is_some() {
            return Err(refused(Fault::Refused(
                "a supervisor that is a part of an actor goes by the path of the actor: leave the name out"
                    .to_owned(),
            )));
        }
        // In a process of its own its end is waited for; in another one the actor's end is.
        let is_process = cx.path() == root.process().path;
        let (run, runner) = Run::new();
        let killed = run.clone();
        let kept = cx.hold(move || killed.kill());
        let seat = root.directory().seat(cx.path());
        // Its children keep their seats: incarnations of a local actor follow one another in this process, and whoever asks a
        // child of a worker that is about to end, and to come back, is not told that there is none.
        let office = |path: &str| {
            let make = || {
                // Below a worker's own path there may be other supervisors and processes.
                let names = is_process.then(|| root.clone());
                let office = Office::new(path.to_owned(), true, names);
                let above = path.rsplit_once('/').and_then(|(above, _)| Tree::lookup(above).ok());
                if let Some(above) = above {
                    office.news.rise_to(above.office().news.clone());
                }
                office
            };
            let kept = match &seat {
                Some(seat) => seat.heirloom(|| make()),
                None => root.heirloom(|| make()),
            };
            kept.downcast().unwrap_or_else(|_| make())
        };
        let place = |root: &Root| root.take_path(cx.path());
        let tree = self.start_at(root.clone(), place, office, (run, runner), kept, is_process).await?;
        let (stops, kept) = (StopOnDrop(Some(tree.run())), tree.clone());
        let actor = cx.clone();
        cx.spawn(async move {
            let _stops = stops;
            match kept.run().ended().await {
                Err(gave_up) => actor.crash(gave_up.to_string()),
                Ok(Orderly::ByItself) => actor.stop(),
                // Somebody wanted that, and the actor goes on without.
                Ok(Orderly::Wanted) => kept.office().close("it was stopped"),
            }
        });
        Ok(tree)
    }

    /// Starts it where it gets its place; what it keeps is dropped when it has ended.
    async fn start_at<K: Send + 'static>(
        &self,
        root: Arc<Root>,
        place: impl FnOnce(&Root) -> Result<String, Fault>,
        office: impl FnOnce(&str) -> Arc<Office>,
        (run, runner): (Run, Runner),
        keeps: K,
        is_resident: bool,
    ) -> Result<Tree, StartError> {
        let refused = |fault| StartError::new(self.shown(), Refused::from(fault));
        self.check().map_err(|(name, why)| match name {
            Some(name) => StartError::new(format!("{}/{name}", self.shown()), why),
            None => StartError::new(self.shown(), why),
        })?;
        let path = place(&root).map_err(refused)?;
        let resident = Arc::new(TreeResident::new(&run));
        let moved_in = is_resident.then(|| root.move_in(resident)).transpose();
        let residence = moved_in.map_err(|fault| {
            root.free_name(&path);
            refused(fault)
        })?;
        let office = office(&path);
        if let Some(left) = office.left_behind() {
            root.free_name(&path);
            return Err(refused(Fault::Refused(beside(&left))));
        }
        office.reopen();
        let shared = Shared::new(office, run);
        shared.enter(&root);
        let at_end = move |_: &Ending| root.free_name(&path);
        supervisor::spawn(self.rules, &shared, runner, (residence, keeps), at_end);
        let tree = Tree::new(shared);
        self.begin(&tree).await?;
        Ok(tree)
    }

    /// Starts the children that it begins with, or stops all of them again.
    pub(crate) async fn begin(&self, tree: &Tree) -> Result<(), StartError> {
        let mut unless_all = StopOnDrop(Some(tree.run()));
        if let Err(error) = self.begin_children(tree).await {
            let _ = tree.stop().await;
            return Err(error);
        }
        unless_all.0 = None;
        // Fails only if it is ending already.
        let _ = tree.run().commands.send(Command::AllStarted).await;
        Ok(())
    }

    /// Ends with the first that does not start.
    async fn begin_children(&self, tree: &Tree) -> Result<(), StartError> {
        let starts = self.children.iter().map(|spec| tree.start_erased(spec.clone(), true));
        if !self.rules.start_concurrently {
            for start in starts {
                start.await?;
            }
            return Ok(());
        }
        let mut starts: Vec<_> = starts.map(Box::pin).collect();
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
        .await
    }

    fn shown(&self) -> String {
        self.name.clone().unwrap_or_else(|| "a supervisor".to_owned())
    }

    pub(crate) fn has_name(&self) -> bool {
        self.name.is_some()
    }

    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    /// Finds contradictions before anything starts: in which child, if it is one, and what.
    pub(crate) fn check(&self) -> Result<(), (Option<&str>, Refused)> {
        let contradicts = |why| Refused::by_rule(Refusal::Contradiction(why), "");
        self.rules.check(self.children.len()).map_err(|why| (None, contradicts(why)))?;
        for (index, spec) in self.children.iter().enumerate() {
            let name = spec.start.name();
            spec.check().map_err(|fault| (Some(name), fault.into()))?;
            self.rules.check_child(spec.kind).map_err(|why| (Some(name), contradicts(why)))?;
            if self.children.iter().take(index).any(|other| other.start.name() == name) {
                return Err((Some(name), Refused::by_rule(Refusal::AlreadyStarted, name)));
            }
        }
        Ok(())
    }
}

/// Stops a run when it is dropped.
struct StopOnDrop(Option<Run>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // Without a runtime it has ended with that.
        if let (Some(run), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move { run.stop().await });
        }
    }
}
