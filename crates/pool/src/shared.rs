//! What the handles of a pool, its jobs and the keepers of its workers share.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::{TaskError, TaskFault};
use hatchery_process::task::TaskEntry;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::plan::{Plan, Rules, Size};
use crate::post::Arrived;

/// What a pool and its keepers share.
pub(crate) struct Shared {
    plan: Mutex<Plan>,
    desks: Desks,
    /// Bytes of memory from which on a worker is replaced.
    pub(crate) most_memory: Option<u64>,
    /// Told when there is no job left.
    idle: Notify,
    /// Told when there may be workers to be started or removed.
    staff: Notify,
    /// Told whenever something may have changed, while there is somebody who wants to know.
    changed: Notify,
    watchers: AtomicUsize,
    /// Held by whoever changes the size, so that others come after it.
    pub(crate) resizing: tokio::sync::Mutex<()>,
    /// Whether its workers are to be killed.
    killed: AtomicBool,
    /// Where it is in the tree.
    path: OnceLock<String>,
}

/// What lies ready for the keeper of one worker.
#[derive(Default)]
struct Desk {
    arrived: Mutex<Option<Arrived>>,
    /// Why the latest start failed, if no worker has arrived since.
    failure: Mutex<Option<Fault>>,
    bell: Notify,
    /// The worker's process, or 0.
    pid: AtomicU32,
}

/// The desks of as many workers as there will ever be at a time: in pieces, each twice as large as the one before, so that none
/// ever moves.
struct Desks([OnceLock<Box<[Desk]>>; usize::BITS as usize]);

impl Desks {
    fn get(&self, index: usize) -> &Desk {
        let piece = (index + 1).ilog2();
        let size = 1_usize << piece;
        let desks = self.0[piece as usize].get_or_init(|| (0..size).map(|_| Desk::default()).collect());
        &desks[index + 1 - size]
    }

    /// All that were ever asked for, and perhaps some more.
    fn iter(&self) -> impl Iterator<Item = &Desk> {
        self.0.iter().filter_map(OnceLock::get).flatten()
    }
}

/// Somebody who wants to know when something has changed.
pub(crate) struct Watcher<'a>(&'a Shared);

impl Watcher<'_> {
    /// Resolves at the first change after this call, also if it is polled later.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.0.changed.notified()
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No foreign code runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(rules: Rules, size: Size, most_memory: Option<u64>) -> Arc<Shared> {
        let mut plan = Plan::new(rules, size.min);
        plan.set_size(size);
        Arc::new(Shared {
            plan: Mutex::new(plan),
            desks: Desks(std::array::from_fn(|_| OnceLock::new())),
            most_memory,
            idle: Notify::new(),
            staff: Notify::new(),
            changed: Notify::new(),
            watchers: AtomicUsize::new(0),
            resizing: tokio::sync::Mutex::new(()),
            killed: AtomicBool::new(false),
            path: OnceLock::new(),
        })
    }

    /// Does something with the plan, and then wakes whom it concerns.
    pub(crate) fn with<T>(&self, what: impl FnOnce(&mut Plan) -> T) -> T {
        let (outcome, wakes, calls, idle, staff) = {
            let mut plan = locked(&self.plan);
            let outcome = what(&mut plan);
            let (wakes, calls) = (std::mem::take(&mut plan.wakes), std::mem::take(&mut plan.calls));
            (outcome, wakes, calls, plan.is_idle(), std::mem::take(&mut plan.staff_called))
        };
        wakes.into_iter().for_each(std::task::Waker::wake);
        for index in calls {
            self.desks.get(index).bell.notify_one();
        }
        if idle {
            self.idle.notify_waiters();
        }
        if staff {
            self.staff.notify_one();
        }
        if self.watchers.load(Ordering::Relaxed) > 0 {
            self.changed.notify_waiters();
        }
        outcome
    }

    /// Looks at the plan, and changes nothing that concerns anybody: nobody is told.
    pub(crate) fn look<T>(&self, what: impl FnOnce(&mut Plan) -> T) -> T {
        what(&mut locked(&self.plan))
    }

    /// Somebody who wants to know of changes from now on.
    pub(crate) fn watch(&self) -> Watcher<'_> {
        self.watchers.fetch_add(1, Ordering::SeqCst);
        Watcher(self)
    }

    /// Told when there may be workers to be started or removed.
    pub(crate) fn staff(&self) -> &Notify {
        &self.staff
    }

    pub(crate) fn set_path(&self, path: &str) {
        let _ = self.path.set(path.to_owned());
    }

    /// An error of a task of this pool.
    pub(crate) fn error(&self, entry: &TaskEntry, worker: Option<usize>, why: TaskFault) -> TaskError {
        let path = self.path.get().map_or("", |path| path);
        let whose = match worker {
            Some(worker) => format!("{} in {path}/worker-{worker}", entry.name),
            None => format!("{} in {path}", entry.name),
        };
        TaskError::new(whose, why)
    }

    /// A worker is there.
    pub(crate) fn arrive(&self, index: usize, arrived: Arrived) {
        let desk = self.desks.get(index);
        *locked(&desk.failure) = None;
        desk.pid.store(arrived.child.pid().unwrap_or(0), Ordering::Relaxed);
        let before = locked(&desk.arrived).replace(arrived);
        drop(before);
        desk.bell.notify_one();
    }

    pub(crate) fn take_arrived(&self, index: usize) -> Option<Arrived> {
        locked(&self.desks.get(index).arrived).take()
    }

    /// Resolves when something has changed for this worker.
    pub(crate) fn bell(&self, index: usize) -> &Notify {
        &self.desks.get(index).bell
    }

    pub(crate) fn start_failed(&self, index: usize, fault: &Fault) {
        *locked(&self.desks.get(index).failure) = Some(fault.clone());
    }

    /// The process of the worker there, unless it has ended.
    pub(crate) fn pid(&self, index: usize) -> Option<u32> {
        Some(self.desks.get(index).pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// The worker there that had this process has ended; another one may have come already.
    pub(crate) fn no_pid(&self, index: usize, pid: u32) {
        let _ = self.desks.get(index).pid.compare_exchange(pid, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Why it failed is told by others, and is no reason for an end of the pool.
    pub(crate) fn forget_failure(&self, index: usize) {
        *locked(&self.desks.get(index).failure) = None;
    }

    /// What is told to those whose tasks nobody will run, since there are no workers any more.
    pub(crate) fn no_workers(&self, why: String) -> TaskFault {
        let mut failures = self.desks.iter().filter_map(|desk| locked(&desk.failure).clone());
        match failures.find(|fault| !matches!(fault, Fault::Closed { .. })) {
            Some(fault) => TaskFault::InitFailed(fault.to_string()),
            None => TaskFault::Fault(Fault::Closed { why }),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        locked(&self.plan).over().is_some()
    }

    /// Has all workers killed.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        self.desks.iter().for_each(|desk| desk.bell.notify_one());
    }

    /// It begins anew, after its end.
    pub(crate) fn begin_again(&self) {
        self.killed.store(false, Ordering::Relaxed);
        for desk in self.desks.iter() {
            *locked(&desk.failure) = None;
        }
        self.with(Plan::begin_again);
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    /// Resolves when there is no job left. Cancel safe.
    pub(crate) async fn idle(&self) {
        loop {
            let told = self.idle.notified();
            if locked(&self.plan).is_idle() {
                return;
            }
            told.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_start_failed_is_forgotten_when_the_pool_begins_again() {
        let rules = Rules { prefetch: 1, max_tasks: None, lanes: 1 };
        let shared = Shared::new(rules, Size::fixed(2), None);
        let why = || shared.no_workers("it was stopped".to_owned());
        assert!(matches!(why(), TaskFault::Fault(Fault::Closed { .. })));
        shared.start_failed(1, &Fault::StartFailed("no disk".to_owned()));
        assert!(matches!(why(), TaskFault::InitFailed(said) if said.contains("no disk")));
        shared.begin_again();
        assert!(matches!(why(), TaskFault::Fault(Fault::Closed { .. })));
    }
}
