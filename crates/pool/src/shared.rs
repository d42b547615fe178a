//! What the handles of a pool, its jobs and the keepers of its workers share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::{TaskError, TaskFault};
use hatchery_process::task::TaskEntry;
use tokio::sync::Notify;

use crate::plan::{Plan, Rules};
use crate::post::Arrived;

/// What a pool and its keepers share.
pub(crate) struct Shared {
    plan: Mutex<Plan>,
    desks: Vec<Desk>,
    /// Told when there is no job left.
    idle: Notify,
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
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No foreign code runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(rules: Rules, workers: usize) -> Arc<Shared> {
        Arc::new(Shared {
            plan: Mutex::new(Plan::new(rules, workers)),
            desks: (0..workers).map(|_| Desk::default()).collect(),
            idle: Notify::new(),
            killed: AtomicBool::new(false),
            path: OnceLock::new(),
        })
    }

    /// Does something with the plan, and then wakes whom it concerns.
    pub(crate) fn with<T>(&self, what: impl FnOnce(&mut Plan) -> T) -> T {
        let (outcome, wakes, calls, idle) = {
            let mut plan = locked(&self.plan);
            let outcome = what(&mut plan);
            (outcome, std::mem::take(&mut plan.wakes), std::mem::take(&mut plan.calls), plan.is_idle())
        };
        wakes.into_iter().for_each(std::task::Waker::wake);
        for index in calls {
            self.desks[index].bell.notify_one();
        }
        if idle {
            self.idle.notify_waiters();
        }
        outcome
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
        let desk = &self.desks[index];
        *locked(&desk.failure) = None;
        let before = locked(&desk.arrived).replace(arrived);
        drop(before);
        desk.bell.notify_one();
    }

    pub(crate) fn take_arrived(&self, index: usize) -> Option<Arrived> {
        locked(&self.desks[index].arrived).take()
    }

    /// Resolves when something has changed for this worker.
    pub(crate) fn bell(&self, index: usize) -> &Notify {
        &self.desks[index].bell
    }

    pub(crate) fn start_failed(&self, index: usize, fault: &Fault) {
        *locked(&self.desks[index].failure) = Some(fault.clone());
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
        for desk in &self.desks {
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
        let shared = Shared::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, 2);
        let why = || shared.no_workers("it was stopped".to_owned());
        assert!(matches!(why(), TaskFault::Fault(Fault::Closed { .. })));
        shared.start_failed(1, &Fault::StartFailed("no disk".to_owned()));
        assert!(matches!(why(), TaskFault::InitFailed(said) if said.contains("no disk")));
        shared.begin_again();
        assert!(matches!(why(), TaskFault::Fault(Fault::Closed { .. })));
    }
}
