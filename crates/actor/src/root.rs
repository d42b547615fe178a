//! What one run of a program owns: its place in the tree, the names taken, and what must end before it does.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use crate::address::{Address, ProcessId, random};
use crate::child::BoxFuture;
use crate::directory::Directory;
use crate::exchange::Exchange;
use crate::fault::Fault;
use crate::seat::Seat;

thread_local! {
    /// The run that this thread belongs to: set by the door on every thread of the run's runtime. It is kept per
    /// runtime, not per process, because several tests of one binary are several runs.
    static CURRENT: RefCell<Option<Arc<Root>>> = const { RefCell::new(None) };
}

/// The run of this whole process, where it is one: see [`Root::settle`].
static SETTLED: OnceLock<Arc<Root>> = OnceLock::new();

/// One run: of a root process, of a test, of a worker.
pub struct Root {
    process: ProcessId,
    /// Made up in the process that the user started, and the same in all its workers.
    tree: u64,
    directory: Arc<Directory>,
    exchange: OnceLock<Arc<dyn Exchange>>,
    /// What the actor that this process is there for supervises: kept to the end of the process.
    heirloom: OnceLock<Arc<dyn Any + Send + Sync>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names below this process, and whole paths that were taken otherwise.
    names: HashSet<String>,
    /// The supervisors of this process, by their paths.
    trees: HashMap<String, Weak<dyn Any + Send + Sync>>,
    residents: Vec<(u64, Arc<dyn Resident>)>,
    next: u64,
    unnamed: u64,
    leaving: bool,
}

/// Something that has to end before the run does: a process, a tree.
pub trait Resident: Send + Sync + 'static {
    /// What a `main` that returned `Ok` waits for before anything is stopped; `None` if it need not be waited for.
    fn linger(&self) -> Option<BoxFuture<()>>;

    /// Stops it; resolves when it is gone.
    fn close(&self) -> BoxFuture<()>;

    /// Whether nothing else stands on it, so that its neighbours may be stopped at the same time.
    fn stands_alone(&self) -> bool;
}

/// Takes its resident off the list when dropped.
#[derive(Debug)]
pub struct Residence {
    root: Arc<Root>,
    id: u64,
}

impl Root {
    /// The run of a root process.
    pub fn new() -> Arc<Root> {
        Root::of(ProcessId { path: String::new(), birth: random() }, random())
    }

    /// The run of a worker, which has its place in a tree that is there already.
    pub fn of(process: ProcessId, tree: u64) -> Arc<Root> {
        Arc::new(Root {
            process,
            tree,
            directory: Arc::default(),
            exchange: OnceLock::new(),
            heirloom: OnceLock::new(),
            state: Mutex::default(),
        })
    }

    /// This process, as its tree knows it.
    pub fn process(&self) -> &ProcessId {
        &self.process
    }

    /// The number of the tree.
    pub fn tree(&self) -> u64 {
        self.tree
    }

    /// What this process knows of seats.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Says how seats of other processes are reached; only the first word counts.
    pub fn reach_others_by(&self, exchange: Arc<dyn Exchange>) {
        let _ = self.exchange.set(exchange);
    }

    /// The seat of this address, or one that stands for it.
    pub(crate) fn find(&self, address: &Address, actor: &'static str) -> Arc<Seat> {
        let closed = |why: String| {
            let seat = Seat::new(address.path.clone(), actor);
            seat.close(&why);
            seat
        };
        if address.tree != self.tree {
            return closed(
                "the reference comes from another run of the program, and leads nowhere in this one"
                    .to_owned(),
            );
        }
        if address.path.len() > LONGEST {
            return closed(format!(
                "its path has {} bytes, and no path has more than {LONGEST}",
                address.path.len()
            ));
        }
        if let Some(seat) = self.directory.seat(&address.path) {
            if seat.actor() != actor {
                return closed(wrong_actor(&address.path, actor, seat.actor()));
            }
            if address.only.is_none_or(|only| only.seat == seat.id()) {
                return seat;
            }
        }
        match self.exchange.get() {
            Some(exchange) => self.directory.far(address.clone(), actor, exchange),
            None => closed("nothing of that name is in this process".to_owned()),
        }
    }

    /// The run that this thread belongs to.
    ///
    /// # Errors
    /// None: the program did not come through the door.
    pub fn current() -> Result<Arc<Root>, Fault> {
        let current = CURRENT.with_borrow(Clone::clone).or_else(|| SETTLED.get().cloned());
        current.ok_or_else(|| {
            Fault::Refused(
                "workers can only be started from a program that came through the door: write \
                 `#[hatchery::main]` on its main (or `hatchery::program().run(..)` in it), or `#[hatchery::test]` \
                 on the test, and start them from a thread of its runtime"
                    .to_owned(),
            )
        })
    }

    /// Makes this run the one of every thread of the process that has no other.
    pub fn settle(self: Arc<Root>) {
        let _ = SETTLED.set(self);
    }

    /// Makes this run the current one of this thread.
    pub fn enter(self: Arc<Root>) {
        CURRENT.with_borrow_mut(|current| *current = Some(self));
    }

    /// Makes no run the current one of this thread.
    pub fn exit() {
        CURRENT.with_borrow_mut(Option::take);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name below this process; gives the full path.
    ///
    /// # Errors
    /// It is taken, or no valid path segment.
    pub fn take_name(&self, name: &str) -> Result<String, Fault> {
        check_segment(name)?;
        if !self.lock().names.insert(name.to_owned()) {
            return Err(Fault::Refused(format!(
                "the name {name:?} is taken: names are unique among siblings, choose another"
            )));
        }
        Ok(format!("{}/{name}", self.process.path))
    }

    /// Takes the path of an actor of this process for something that is a part of it.
    ///
    /// # Errors
    /// It is taken.
    pub fn take_path(&self, path: &str) -> Result<String, Fault> {
        if !self.lock().names.insert(path.to_owned()) {
            return Err(Fault::Refused(format!(
                "{path} has a supervisor already: a second one can be a child of that (`spec`)"
            )));
        }
        Ok(path.to_owned())
    }

    /// What the actor that this process is there for supervises; made when it begins to.
    pub fn heirloom(&self, make: impl FnOnce() -> Arc<dyn Any + Send + Sync>) -> Arc<dyn Any + Send + Sync> {
        self.heirloom.get_or_init(make).clone()
    }

    /// A supervisor has this path from now on, for as long as it is there.
    pub fn enter_tree(&self, path: &str, tree: Weak<dyn Any + Send + Sync>) {
        let mut state = self.lock();
        if state.trees.len() == state.trees.capacity() {
            state.trees.retain(|_, tree| tree.strong_count() > 0);
        }
        state.trees.insert(path.to_owned(), tree);
    }

    /// The supervisor of this process that has this path.
    pub fn tree_at(&self, path: &str) -> Option<Arc<dyn Any + Send + Sync>> {
        self.lock().trees.get(path)?.upgrade()
    }

    /// A path below this process that nobody else has, ever.
    pub fn unnamed(&self) -> String {
        format!("{}/~{:016x}", self.process.path, random())
    }

    /// Counts the children without a name of their own, as Python's `Process-1`.
    pub fn count_unnamed(&self) -> u64 {
        let mut state = self.lock();
        state.unnamed += 1;
        state.unnamed
    }

    /// Gives a name back.
    pub fn free_name(&self, path: &str) {
        let mut state = self.lock();
        if state.names.remove(path) {
            return;
        }
        if let Some(name) = path.strip_prefix(&self.process.path).and_then(|rest| rest.strip_prefix('/')) {
            state.names.remove(name);
        }
    }

    /// Puts a resident on the list of what has to end before the run does.
    ///
    /// # Errors
    /// The run is over: nothing new may start.
    pub fn move_in(self: &Arc<Root>, resident: Arc<dyn Resident>) -> Result<Residence, Fault> {
        let mut state = self.lock();
        if state.leaving {
            return Err(Fault::Refused("the program is ending: nothing new can be started".to_owned()));
        }
        let id = state.next;
        state.next += 1;
        state.residents.push((id, resident));
        Ok(Residence { root: self.clone(), id })
    }

    /// Waits for what a `main` that returned `Ok` waits for, those that start meanwhile included.
    pub async fn linger(&self) {
        loop {
            let waits: Vec<_> =
                self.lock().residents.iter().filter_map(|(_, resident)| resident.linger()).collect();
            if waits.is_empty() {
                return;
            }
            for wait in waits {
                wait.await;
            }
        }
    }

    /// Stops everything, newest first, those side by side that stand alone; afterwards nothing new can start.
    pub async fn close(&self) {
        loop {
            let newest = {
                let mut state = self.lock();
                state.leaving = true;
                let alone = state.residents.iter().rev().take_while(|(_, resident)| resident.stands_alone());
                let together = alone.count().max(1).min(state.residents.len());
                let first = state.residents.len() - together;
                state.residents.split_off(first)
            };
            if newest.is_empty() {
                return;
            }
            let closing: Vec<_> =
                newest.iter().rev().map(|(_, resident)| tokio::spawn(resident.close())).collect();
            for closed in closing {
                // A panic in it has been printed; the others are stopped all the same.
                let _ = closed.await;
            }
        }
    }
}

impl Drop for Residence {
    fn drop(&mut self) {
        let gone = {
            let mut state = self.root.lock();
            let index = state.residents.iter().position(|(id, _)| *id == self.id);
            index.map(|index| state.residents.remove(index))
        };
        drop(gone);
    }
}

/// Bytes of a path: 16 levels of two segments each, and more.
const LONGEST: usize = 4096;

/// Whether this can be a segment of a path.
///
/// # Errors
/// What is wrong with it.
pub fn check_segment(name: &str) -> Result<(), Fault> {
    let wrong = if name.is_empty() {
        "is empty"
    } else if name.len() > 100 {
        "has more than 100 bytes"
    } else if name.starts_with('~') {
        "begins with ~, which is kept for names that are made up"
    } else if name.chars().any(|c| c == '/' || c.is_control()) {
        "has a slash or a control character in it"
    } else {
        return Ok(());
    };
    Err(Fault::Refused(format!("the name {name:?} {wrong}")))
}

/// What stands at a seat in place of an actor's name if a task sits there. No actor is called so: in their names is the
/// module that they stand in.
pub const TASK: &str = "task";

/// What is told to those who ask something of a task all the same.
pub const TASK_TAKES_NONE: &str = "a task takes no requests: ask an actor";

/// What is told to those who take one actor for another.
pub fn wrong_actor(path: &str, wanted: &str, found: &str) -> String {
    if found == TASK {
        return format!(
            "{path} is a task, and was taken for a {wanted}: a task takes no requests, and its handle comes from \
             `start_child`"
        );
    }
    format!("{path} is a {found}, and was taken for a {wanted}: look it up by its own type")
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").field("path", &self.process.path).finish_non_exhaustive()
    }
}
