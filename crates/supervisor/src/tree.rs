//! A running supervisor as its users see it: its handle, and what that tells of the children.

use std::future::Future;
use std::sync::{Arc, Weak};

use hatchery_actor::busy;
use hatchery_actor::child::{BoxFuture, Start, Supervised};
use hatchery_actor::error::{Error, Result};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::root::{Resident, Root};
use hatchery_actor::seat::Seat;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::builder::Supervisor;
use crate::errors::{ChildError, Refused, StartError};
use crate::events::Events;
use crate::nested::SUPERVISOR;
use crate::office::{Ending, Office, Run, Shared, ended};
use crate::overseer::{self, SupervisorHandle};
use crate::policy::Restart;
use crate::signals::Listener;
use crate::snapshot::{self, Snapshot};
use crate::spec::{ChildSpec, ErasedSpec};
use crate::supervisor::{Command, Look};

/// The handle of a running supervisor. Cloneable; dropping the last one stops it in order, in the background. Handles
/// of its children do not keep it, and one that is a child itself is kept by its parent.
///
/// The handle of a supervisor that is a child reaches its successors. While none is up, what is asked of it fails at once
/// (`is_closed`).
#[derive(Clone)]
pub struct Tree {
    shared: Arc<Shared>,
}

/// How many children there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Count {
    /// All, those that are stopped or between two incarnations included.
    pub specs: usize,
    /// Those that are up right now.
    pub active: usize,
    /// Of all, those that are supervisors of this process.
    pub supervisors: usize,
    /// Of all, the others.
    pub workers: usize,
}

/// A child as its supervisor knows it. See [`Tree::children`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The process it lives in, if it is up, or cannot be killed, and has one of its own.
    pub pid: Option<u32>,
    /// How its latest incarnation, or its latest start, ended, in words.
    pub last: Option<String>,
}

/// How a child stands. See [`Tree::children`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// ([`Exhausted::GiveUpChild`](crate::policy::Exhausted::GiveUpChild)). Its spec is kept. One that cannot be killed
    /// keeps its place and its name until it is gone, so calls about it are refused
    /// ([`is_unkillable`](ChildError::is_unkillable)).
    GivenUp,
}

impl Tree {
    /// Its place in the tree of the program.
    pub fn path(&self) -> &str {
        &self.shared.office.path
    }

    /// Starts a child and resolves when it is ready, giving the handle of its seat.
    ///
    /// # Errors
    /// The name is taken or no name; the program does not host the actor; the arguments cannot be encoded; the
    /// process cannot be started, its `start` failed, it ended or took longer than its `start_timeout` (30 s unless
    /// told otherwise); the supervisor is stopping. A first start is not tried again. Where the name is that of a child,
    /// [`is_already_started`](StartError::is_already_started),
    /// [`is_already_present`](StartError::is_already_present) and [`is_unkillable`](StartError::is_unkillable) tell how it
    /// stands.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the child.
    pub async fn start_child<S: Start>(&self, spec: ChildSpec<S>) -> Result<S::Handle, StartError> {
        let seat = self.start_erased(spec.erase(), false).await?;
        Ok(spec.handle(ActorRef::new(seat)))
    }

    pub(crate) async fn start_erased(&self, spec: ErasedSpec, listed: bool) -> Result<Arc<Seat>, StartError> {
        let what = self.path_of(spec.start.name());
        let outcome = self.call(|reply| Command::StartChild(spec, listed, reply)).await;
        outcome.map_err(|refused| StartError::new(what, refused))
    }

    /// Starts a child that is stopped, and resolves when it is ready. Its handles reach the new incarnation.
    ///
    /// # Errors
    /// There is none of that name; it runs ([`is_running`](ChildError::is_running)) or is being restarted
    /// ([`is_restarting`](ChildError::is_restarting)), or cannot be killed and is still there
    /// ([`is_unkillable`](ChildError::is_unkillable)); it does not start: then it stays stopped, and that is not tried
    /// again. The supervisor is stopping.
    ///
    /// A task that has succeeded runs once more, and its handle keeps its first result: to have another one, forget the child
    /// ([`delete_child`](Tree::delete_child)) and start it anew.
    ///
    /// Whoever waits for this in a handler keeps those waiting that ask him meanwhile: if the child does so in its `start`, that
    /// fails when the child's [`start_timeout`](ChildSpec::start_timeout) is over.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the child.
    pub async fn restart_child(&self, name: &str) -> Result<(), ChildError> {
        let outcome = self.call(|reply| Command::RestartChild(name.to_owned(), reply)).await;
        outcome.map(drop).map_err(|refused| self.child_error("restart", name, refused))
    }

    /// Stops a child, and resolves when it is gone. Its spec is kept, unless it is [`Restart::Temporary`], was being
    /// started for the first time, or has a [dynamic](Supervisor::dynamic) supervisor. Fine for one that is stopped already; one that is being restarted is not started
    /// again.
    ///
    /// # Errors
    /// There is none of that name. The supervisor is stopping. It is still there 10 s after it was killed: then it is given
    /// up, and further calls are refused until it is gone ([`is_unkillable`](ChildError::is_unkillable)).
    ///
    /// A handler of that child, or of one below it, waits for this, directly or through others
    /// ([`is_deadlock`](ChildError::is_deadlock)): nothing is stopped then. Whoever has given up such an ask, or has ended since,
    /// counts as waiting as long as its handler runs. To have itself, or such a one, stopped, an actor asks from a task
    /// ([`Context::spawn`](hatchery_actor::context::Context::spawn)), or by
    /// [`SupervisorHandle`] with `.tell()`. What cannot be seen, such as a handler that waits for such a task, takes as long
    /// as the child's [`shutdown`](ChildSpec::shutdown) allows: then the handler is cut off.
    ///
    /// # Cancel safety
    /// Dropped early, the stop goes on.
    pub async fn terminate_child(&self, name: &str) -> Result<(), ChildError> {
        self.may_be_stopped(name)?;
        let outcome = self.call(|reply| Command::TerminateChild(name.to_owned(), reply)).await;
        outcome.map_err(|refused| self.child_error("stop", name, refused))
    }

    /// Refuses to stop a child if whoever asks for it here would have to wait for himself.
    pub(crate) fn may_be_stopped(&self, name: &str) -> Result<(), ChildError> {
        let refused = busy::waits_for_no_end_of(&self.path_of(name));
        refused.map_err(|fault| self.child_error("stop", name, fault.into()))
    }

    /// Forgets a child that is stopped: its seat is closed for good, and its name is free.
    ///
    /// # Errors
    /// There is none of that name; it runs ([`is_running`](ChildError::is_running)) or is being restarted
    /// ([`is_restarting`](ChildError::is_restarting)), or cannot be killed and is still there
    /// ([`is_unkillable`](ChildError::is_unkillable)). The supervisor is stopping.
    pub async fn delete_child(&self, name: &str) -> Result<(), ChildError> {
        let outcome = self.call(|reply| Command::DeleteChild(name.to_owned(), reply)).await;
        outcome.map_err(|refused| self.child_error("removal", name, refused))
    }

    /// The children, in the order of their addition; none once it has ended.
    ///
    /// Whoever has just learned of a crash may be faster than the supervisor: what this says is what that has come to.
    pub async fn children(&self) -> Vec<ChildInfo> {
        self.ask(Command::Children).await.unwrap_or_default()
    }

    /// What this supervisor says of itself; `None` once it has ended.
    pub(crate) async fn look(&self) -> Option<Look> {
        self.ask(Command::Look).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        // Either fails only when it has ended.
        let _ = self.run().commands.send(command(reply)).await;
        answer.await.ok()
    }

    fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.shared.office.path)
    }

    fn child_error(&self, what: &str, name: &str, refused: Refused) -> ChildError {
        ChildError::new(format!("{what} of {}", self.path_of(name)), refused)
    }

    async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Command,
    ) -> Result<T, Refused> {
        let answer = self.ask(command).await;
        answer.unwrap_or_else(|| Err(Fault::Closed { why: "its supervisor has ended".to_owned() }.into()))
    }

    /// The handle of a child, by its name: of an actor, of a [`Supervisor`] that is a child in this process, or of a task
    /// (`tree.get::<TaskHandle<u64>>("sum")`).
    ///
    /// # Errors
    /// There is none of that name, or it is something else.
    pub fn get<K: Supervised>(&self, name: &str) -> Result<K::Handle> {
        let Some(member) = self.office().member(name).filter(|member| !member.removed) else {
            let names =
                self.office().present().into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
            let path = self.path();
            return Err(Error::msg(match &*self.run().over.borrow() {
                Some(Err(gave_up)) => format!("no child {name:?} any more: {gave_up}"),
                Some(Ok(_)) => format!("{path} has ended, and with it its children"),
                None => format!("{path} has no child {name:?}; its children are: {names}"),
            }));
        };
        let handle = member.handle.downcast_ref::<K::Handle>().filter(|_| member.seat.actor() == K::kind());
        handle.cloned().ok_or_else(|| {
            let (path, is, asked) = (member.seat.path(), member.seat.actor(), K::kind());
            Error::msg(if is == asked {
                format!("{path} is a {is}, and its handle is another type than that")
            } else {
                format!("{path} is a {is}, not a {asked}")
            })
        })
    }

    /// The supervisor of this process that has this path, e.g. that of the actor whose `start` asks for it.
    ///
    /// # Errors
    /// There is none, or it is in another process.
    pub fn lookup(path: &str) -> Result<Tree> {
        let shared = Root::current().ok().and_then(|root| root.tree_at(path));
        let shared = shared.and_then(|shared| shared.downcast::<Shared>().ok());
        shared.map(Tree::new).ok_or_else(|| Error::msg(format!("this process has no supervisor {path:?}")))
    }

    /// The same as plain data: a handle that may be given to any worker.
    pub fn handle(&self) -> SupervisorHandle {
        overseer::handle(self.office())
    }

    /// What happens to its children from now on, in order, and to those below them as far as they are supervised in this
    /// process.
    ///
    /// ```
    /// use hatchery::prelude::*;
    ///
    /// struct Job;
    ///
    /// #[hatchery::actor]
    /// impl Job {
    ///     fn start() -> Self { Job }
    ///     fn crash(&self) { std::process::abort() }
    /// }
    ///
    /// #[hatchery::main]
    /// async fn main() -> hatchery::Result<()> {
    ///     let tree = Supervisor::new(Strategy::OneForOne).name("shop").start().await?;
    ///     let mut events = tree.events();
    ///     let job = tree.start_child(worker::<Job>("job", ())).await?;
    ///     assert!(job.crash().await.is_err());
    ///     assert!(matches!(events.next().await, Some(TreeEvent::Started { incarnation: 1, .. })));
    ///     assert!(matches!(events.next().await, Some(TreeEvent::Exited { exit, .. }) if exit.signal() == Some(6)));
    ///     assert!(matches!(events.next().await, Some(TreeEvent::RestartScheduled { .. })));
    ///     assert!(matches!(events.next().await, Some(TreeEvent::Started { incarnation: 2, .. })));
    ///     tree.stop().await
    /// }
    /// ```
    pub fn events(&self) -> Events {
        self.office().news.listen()
    }

    /// What there is now: each child with its state, process, incarnation, uptime, restarts, mailbox, memory, processor
    /// time and last end, and what is below it: supervisors of this process, and those that are parts of actors, in other
    /// processes too ([`start_in`](Supervisor::start_in)), if they answer within a second. Printed, it is drawn as a tree.
    ///
    /// # Errors
    /// It has ended.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        snapshot::take(self.clone(), snapshot::PATIENCE).await
    }

    /// How many children there are.
    pub fn count(&self) -> Count {
        let present = self.office().present();
        let specs = present.len();
        let active = present.iter().filter(|(_, member)| member.is_active()).count();
        let supervisors = present.iter().filter(|(_, member)| member.tree().is_some()).count();
        Count { specs, active, supervisors, workers: specs - supervisors }
    }

    /// Stops all children, newest first, or all at the same time if it is [dynamic](Supervisor::dynamic), and then itself; resolves when all are gone. May be asked again.
    ///
    /// Awaited in a handler of one of its children it takes as long as that one's [`shutdown`](ChildSpec::shutdown) allows,
    /// and the handler is cut off: [`SupervisorHandle::stop`] does not wait.
    ///
    /// # Errors
    /// It had given up before: a child ended more often than the intensity allows.
    ///
    /// # Cancel safety
    /// Dropped early, the stop goes on.
    pub async fn stop(&self) -> Result<()> {
        self.run().stop().await.map(drop)
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

    /// Waits for the end, whoever brings it about; of one that is a child itself, for the end of its present run.
    ///
    /// # Errors
    /// It gave up: a child ended more often than the intensity allows. [`exit`](Error::exit) says how that one ended at last, unless
    /// its last start failed without any.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) -> Result<()> {
        self.run().ended().await.map(drop)
    }

    /// The same without keeping it alive.
    #[doc(hidden)]
    pub fn downgrade(&self) -> WeakTree {
        WeakTree { shared: Arc::downgrade(&self.shared), over: self.run().over }
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Tree {
        Tree { shared }
    }

    pub(crate) fn office(&self) -> &Arc<Office> {
        &self.shared.office
    }

    pub(crate) fn run(&self) -> Run {
        self.shared.run()
    }
}

/// A tree that this does not keep alive.
#[doc(hidden)]
#[derive(Clone)]
pub struct WeakTree {
    shared: Weak<Shared>,
    over: watch::Receiver<Option<Ending>>,
}

impl WeakTree {
    /// The tree, unless its last handle is gone.
    pub fn upgrade(&self) -> Option<Tree> {
        self.shared.upgrade().map(Tree::new)
    }

    /// Waits for the end of the run that there was when this was made.
    ///
    /// # Errors
    /// It gave up: a child ended more often than the intensity allows.
    pub fn ended(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let over = self.over.clone();
        async move { ended(over).await.map(drop) }
    }
}

impl std::fmt::Debug for WeakTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeakTree").finish_non_exhaustive()
    }
}

impl Supervised for Supervisor {
    type Handle = Tree;

    fn kind() -> &'static str {
        SUPERVISOR
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("path", &self.path()).field("count", &self.count()).finish()
    }
}

/// What the end of the program does with a tree.
pub(crate) struct TreeResident {
    commands: mpsc::WeakSender<Command>,
    over: watch::Receiver<Option<Ending>>,
}

impl TreeResident {
    pub(crate) fn new(run: &Run) -> TreeResident {
        TreeResident { commands: run.commands.downgrade(), over: run.over.clone() }
    }
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
