//! What a supervisor has: its place in the tree, the seats of its children, and those who hear what happens there. It
//! outlives the runs of a supervisor that is itself a child.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hatchery_actor::error::Error;
use hatchery_actor::root::Root;
use hatchery_actor::seat::{Occupancy, Seat};
use tokio::runtime::Handle;
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
    /// The paths of what could not be killed and is still there.
    left_behind: watch::Sender<Vec<String>>,
    /// Whether it is a child itself: its listed children keep their seats then, from one run to the next.
    pub(crate) nested: bool,
    /// Where the names of its children are taken as well, if they are those of other things in this process, too.
    pub(crate) names: Option<Arc<Root>>,
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
    /// Whether it was removed, and is kept only because the next run of the supervisor begins with it again.
    pub(crate) removed: bool,
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
        if let Some(office) = self.office() {
            office.close(why);
        }
    }

    /// What is below it in this process: it is a supervisor, or an actor that has one.
    pub(crate) fn office(&self) -> Option<Arc<Office>> {
        let of_actor = || self.seat.handed_on().and_then(|kept| kept.clone().downcast::<Office>().ok());
        self.tree().map(|tree| tree.office().clone()).or_else(of_actor)
    }
}

impl Office {
    pub(crate) fn new(path: String, nested: bool, names: Option<Arc<Root>>) -> Arc<Office> {
        let overseer = overseer::seat(&path);
        let (news, runs, members) = (Arc::default(), AtomicU64::new(0), Mutex::default());
        Arc::new(Office {
            path,
            news,
            overseer,
            runs,
            nested,
            names,
            members,
            left_behind: watch::Sender::default(),
        })
    }

    /// What cannot be killed has this path, and nobody may be started beside it until what this gives is dropped.
    pub(crate) fn leave_behind(self: &Arc<Office>, path: String) -> LeftBehind {
        self.left_behind.send_modify(|left| left.push(path.clone()));
        LeftBehind { office: self.clone(), path }
    }

    /// What could not be killed and is still there: the first, if there is more.
    pub(crate) fn left_behind(&self) -> Option<String> {
        self.left_behind.borrow().first().cloned()
    }

    /// Resolves when there is no such thing. Cancel safe.
    pub(crate) async fn nothing_left(&self) {
        let mut left = self.left_behind.subscribe();
        // Fails only when the sender is gone, and that lives in `self`.
        let _ = left.wait_for(Vec::is_empty).await;
    }

    /// Somebody will sit here again: from now on requests wait for him.
    pub(crate) fn reopen(&self) {
        let seats: Vec<_> = self.members().values().map(|member| member.seat.clone()).collect();
        seats.iter().for_each(|seat| seat.reopen());
    }

    /// It will never run again: nothing more is told of it, nor of those below.
    pub(crate) fn end(&self) {
        let below: Vec<_> = self.members().values().filter_map(Member::office).collect();
        below.iter().for_each(|office| office.end());
        self.news.end();
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

    /// Those children that have not been removed.
    pub(crate) fn present(&self) -> Vec<(String, Member)> {
        let members = self.members();
        let present = members.iter().filter(|(_, member)| !member.removed);
        present.map(|(name, member)| (name.clone(), member.clone())).collect()
    }

    pub(crate) fn close(&self, why: &str) {
        let members: Vec<_> = self.members().values().cloned().collect();
        members.iter().for_each(|member| member.close(why));
        self.overseer.close(why);
    }
}

/// Says that something is still there that could not be killed. Whoever waits for its end holds this, not the run in which it
/// was started: that may be over before.
pub(crate) struct LeftBehind {
    office: Arc<Office>,
    path: String,
}

impl Drop for LeftBehind {
    fn drop(&mut self) {
        self.office.left_behind.send_modify(|left| {
            if let Some(place) = left.iter().position(|path| *path == self.path) {
                left.remove(place);
            }
        });
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
    /// The runtime it runs on: what it is told may come from a thread without any.
    runtime: Option<Handle>,
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
        (
            Run { runtime: Handle::try_current().ok(), commands, over: is_over },
            Runner { commands: orders, over },
        )
    }

    /// Has it stop without any time for its children; does not wait.
    pub(crate) fn kill(&self) {
        self.tell(|| Command::Kill);
    }

    /// Tells it something, without waiting.
    pub(crate) fn tell(&self, command: impl Fn() -> Command) {
        // It may be busy, or have ended.
        if let (Err(_), Some(runtime)) = (self.commands.try_send(command()), &self.runtime) {
            let (commands, command) = (self.commands.clone(), command());
            runtime.spawn(async move { drop(commands.send(command).await) });
        }
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
