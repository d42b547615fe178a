//! The task that starts workers and removes them, as the plan says, and has somebody look after each.

use std::sync::Arc;

use hatchery_actor::fault::Fault;
use hatchery_actor::handle::AnyHandle;
use hatchery_actor::seat::Seat;
use hatchery_actor::task_handle::TaskFault;
use hatchery_supervisor::errors::StartError;
use hatchery_supervisor::tree::WeakTree;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::keeper;
use crate::plan::Staffing;
use crate::post::Postings;
use crate::shared::Shared;

/// Who starts and removes the workers of one run of a pool.
pub(crate) struct Staff {
    pub(crate) shared: Arc<Shared>,
    /// The supervisor of the workers, which this does not keep alive.
    pub(crate) tree: WeakTree,
    pub(crate) postings: Arc<Postings>,
}

/// What has ended.
enum Done {
    /// Somebody who looked after a worker: the place is given up.
    Kept,
    Started(usize, Result<Arc<Seat>, StartError>),
    Removed,
}

impl Staff {
    /// Works until the supervisor of the workers has ended, and everything that they said is known. These workers are there
    /// already.
    pub(crate) async fn run(self, seats: Vec<(usize, Arc<Seat>)>) {
        let mut tasks = JoinSet::new();
        for (index, seat) in seats {
            self.keep(&mut tasks, index, seat);
        }
        let ended = self.tree.ended();
        tokio::pin!(ended);
        let ended = loop {
            let (todo, look) = self.shared.with(|plan| plan.staffing(Instant::now()));
            for what in todo {
                self.carry_out(&mut tasks, what);
            }
            let look = async {
                match look {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ended = &mut ended => break ended,
                Some(done) = tasks.join_next() => self.done(&mut tasks, done.unwrap_or(Done::Removed)).await,
                () = self.shared.staff().notified() => {}
                () = look => {}
            }
        };
        while let Some(done) = tasks.join_next().await {
            if let Ok(Done::Started(index, Ok(seat))) = done {
                self.keep(&mut tasks, index, seat);
            }
        }
        // There may have been no worker whose end would have told.
        let why = ended.err().map_or("it was stopped".to_owned(), |why| why.to_string());
        let why = self.shared.no_workers(why);
        self.shared.with(|plan| plan.end(&why));
    }

    fn keep(&self, tasks: &mut JoinSet<Done>, index: usize, seat: Arc<Seat>) {
        let kept = keeper::keep(self.shared.clone(), index, seat);
        tasks.spawn(async move {
            kept.await;
            Done::Kept
        });
    }

    fn carry_out(&self, tasks: &mut JoinSet<Done>, what: Staffing) {
        // Without it, all is about to end.
        let Some(tree) = self.tree.upgrade() else { return };
        match what {
            Staffing::Start(index) => {
                let (postings, shared) = (self.postings.clone(), self.shared.clone());
                tasks.spawn(async move {
                    let started = tree.start_child(postings.spec(index, &shared)).await;
                    Done::Started(index, started.map(|worker| worker.actor_ref().seat().clone()))
                });
            }
            Staffing::Remove(index) => {
                let shared = self.shared.clone();
                tasks.spawn(async move {
                    // Its keeper learns of its end, also if this fails because that has come before.
                    let _ = tree.terminate_child(&keeper::name(index)).await;
                    shared.forget_failure(index);
                    Done::Removed
                });
            }
        }
    }

    async fn done(&self, tasks: &mut JoinSet<Done>, done: Done) {
        let Done::Started(index, started) = done else { return };
        match started {
            Ok(seat) => {
                self.keep(tasks, index, seat);
                self.shared.with(|plan| plan.started(index));
            }
            Err(error) => {
                self.shared.forget_failure(index);
                // It may have been stopped at the last moment.
                drop(self.shared.take_arrived(index));
                if let Some(pid) = self.shared.pid(index) {
                    self.shared.no_pid(index, pid);
                }
                let is_taken =
                    error.is_unkillable() || error.is_already_present() || error.is_already_started();
                let is_over = self.shared.with(|plan| {
                    plan.start_failed(index, is_taken, &error, Instant::now());
                    plan.over().is_some()
                });
                if let Some(tree) = self.tree.upgrade().filter(|_| is_over) {
                    let _ = tree.stop().await;
                }
            }
        }
    }
}

/// Why no worker runs anything any more, for whoever asked for more of them.
pub(crate) fn ended(path: &str, why: TaskFault) -> StartError {
    let fault = match why {
        TaskFault::Fault(fault) => fault,
        TaskFault::InitFailed(why) => Fault::StartFailed(why),
        _ => Fault::Closed { why: "its pool has ended".to_owned() },
    };
    StartError::refused(path.to_owned(), fault)
}
