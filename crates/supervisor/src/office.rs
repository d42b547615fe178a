//! What a supervisor has: its place in the tree, the seats of its children, and those who hear what happens there. It
//! outlives the runs of a supervisor that is itself a child.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use hatchery_actor::error::Error;
use hatchery_actor::root::Root;
use hatchery_actor::seat::{Occupancy, Seat};
use tokio::sync::{mpsc, watch};

use crate::events::News;
use crate::overseer;
use crate::supervisor::Command;
use crate::tree::Tree;

/// How a supervisor ended: in order, or why not.
pub(crate) type Ending = Result<Orderly, Error>;

/// Which end in order it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Orderly {
    /// Somebody wanted it.
    Wanted,
    /// Its significant children had ended.
    ByItself,
}

/// The place of a supervisor, and what is there.
pub(crate) struct Office {
    pub(crate) path: String,
    pub(crate) news: Arc<News>,
    /// Where whoever answers for it to other processes sits.
    pub(crate) overseer: Arc<Seat>,
    /// How many runs there have been.
    runs: AtomicU64,
    left_behind: OnceLock<String>,
    /// Whether it is a child itself: its listed children keep their seats then, from one run to the next.
    pub(crate) nested: bool,
    members: Mutex<BTreeMap<String, Member>>,
}

/// A child's place.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) seat: Arc<Seat>,
    /// What its spec makes of the seat for users.
    pub(crate) handle: Arc<dyn Any + Send + Sync>,
    /// How many incarnations there were in earlier runs of the supervisor.
    pub(crate) before: u64,
}

impl Member {
    /// The supervisor that sits there, if it is one of this process.
    pub(crate) fn tree(&self) -> Option<&Tree> {
        self.handle.downcast_ref()
    }

    pub(crate) fn is_active(&self) -> bool {
        matches!(self.seat.occupancy(), Occupancy::Occupied(_))
    }

    /// Nobody sits there, and below it, for now or ever.
    pub(crate) fn close(&self, why: &str) {
        self.seat.close(why);
        if let Some(tree) = self.tree() {
            tree.office().close(why);
        }
    }
}

impl Office {
    pub(crate) fn new(path: String, nested: bool) -> Arc<Office> {
        let overseer = overseer::seat(&path);
        let (news, runs, members) = (Arc::default(), AtomicU64::new(0), Mutex::default());
        Arc::new(Office { path, news, overseer, runs, nested, members, left_behind: OnceLock::new() })
    }

    /// The child of this path lives on for ever, so that nobody may be started beside it.
    pub(crate) fn leave_behind(&self, path: String) {
        let _ = self.left_behind.set(path);
    }

    /// The child that could not be killed, if there is one.
    pub(crate) fn left_behind(&self) -> Option<&str> {
        self.left_behind.get().map(String::as_str)
    }

    /// The number of the run that begins now, from 1.
    pub(crate) fn next_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The children's places, by name. No foreign code runs under this lock.
    pub(crate) fn members(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn member(&self, name: &str) -> Option<Member> {
        self.members().get(name).cloned()
    }

    pub(crate) fn close(&self, why: &str) {
        let members: Vec<_> = self.members().values().cloned().collect();
        members.iter().for_each(|member| member.close(why));
        self.overseer.close(why);
    }
}

impl Office {
    /// Somebody will sit here again: from now on requests wait for him.
    pub(crate) fn reopen(&self) {
        let seats: Vec<_> = self.members().values().map(|member| member.seat.clone()).collect();
        seats.iter().for_each(|seat| seat.reopen());
    }
}

/// What the handles of a supervisor share.
pub(crate) struct Shared {
    pub(crate) office: Arc<Office>,
    run: Mutex<Run>,
}

/// One run of a supervisor. It ends in order when all senders are gone.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) commands: mpsc::Sender<Command>,
    /// Empty until it has ended.
    pub(crate) over: watch::Receiver<Option<Ending>>,
}

/// How many things may be asked of a supervisor before it comes to them; more wait.
const ASKED: usize = 256;

/// The other side of a [`Run`].
pub(crate) struct Runner {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) over: watch::Sender<Option<Ending>>,
}

impl Run {
    pub(crate) fn new() -> (Run, Runner) {
        let (commands, orders) = mpsc::channel(ASKED);
        let (over, is_over) = watch::channel(None);
        (Run { commands, over: is_over }, Runner { commands: orders, over })
    }

    /// Has it stop, and waits until it has.
    pub(crate) async fn stop(&self) -> Ending {
        // Fails only when it has ended already.
        let _ = self.commands.send(Command::Stop).await;
        self.ended().await
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> Ending {
        ended(self.over.clone()).await
    }
}

/// Waits for the end of a run.
pub(crate) async fn ended(mut over: watch::Receiver<Option<Ending>>) -> Ending {
    match over.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(ending)) => ending.clone(),
        _ => Err(Error::msg("the runtime of the supervisor has ended")),
    }
}

impl Shared {
    pub(crate) fn new(office: Arc<Office>, run: Run) -> Arc<Shared> {
        Arc::new(Shared { office, run: Mutex::new(run) })
    }

    /// Has it found by its path in this run of the program.
    pub(crate) fn enter(self: &Arc<Shared>, root: &Root) {
        let weak: Weak<Shared> = Arc::downgrade(self);
        root.enter_tree(&self.office.path, weak);
    }

    /// The present run, or the latest one.
    pub(crate) fn run(&self) -> Run {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next run has begun.
    pub(crate) fn runs(&self, run: Run) {
        let before = std::mem::replace(&mut *self.run.lock().unwrap_or_else(PoisonError::into_inner), run);
        drop(before);
    }
}
