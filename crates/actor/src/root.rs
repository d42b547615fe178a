//! What one run of a program owns: its place in the tree, the names taken, and what must end before it does.

use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::child::BoxFuture;
use crate::fault::Fault;

thread_local! {
    /// The run that this thread belongs to: set by the door on every thread of the run's runtime. It is kept per
    /// runtime, not per process, because several tests of one binary are several runs.
    static CURRENT: RefCell<Option<Arc<Root>>> = const { RefCell::new(None) };
}

/// The run of this whole process, where it is one: see [`Root::settle`].
static SETTLED: OnceLock<Arc<Root>> = OnceLock::new();

/// One run: of a root process, of a test, of a worker.
pub struct Root {
    path: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: HashSet<String>,
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
    /// The run of a process that sits at this path; the path of a root process is empty.
    pub fn new(path: String) -> Arc<Root> {
        Arc::new(Root { path, state: Mutex::default() })
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
        Ok(format!("{}/{name}", self.path))
    }

    /// A path below this process that nobody else has, ever.
    pub fn unnamed(&self) -> String {
        format!("{}/~{}", self.path, random_segment())
    }

    /// Counts the children without a name of their own, as Python's `Process-1`.
    pub fn count_unnamed(&self) -> u64 {
        let mut state = self.lock();
        state.unnamed += 1;
        state.unnamed
    }

    /// Gives a name back.
    pub fn free_name(&self, path: &str) {
        if let Some(name) = path.strip_prefix(&self.path).and_then(|rest| rest.strip_prefix('/')) {
            self.lock().names.remove(name);
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

/// 64 random bits: `RandomState` is seeded by the system once a thread and differs at every call.
fn random_segment() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").field("path", &self.path).finish_non_exhaustive()
    }
}
