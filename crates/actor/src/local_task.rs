//! A future of this process under a supervisor: a task that takes no requests.

use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hatchery_wire::Body;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::child::{
    BoxFuture, Child, Ended, NoLine, Order, Presence, Rung, Start, Started, ended, no_settings,
};
use crate::exit::{self, Exit, Panic, Status};
use crate::fault::Fault;
use crate::handle::ActorRef;
use crate::panics;
use crate::root::{TASK, TASK_TAKES_NONE};
use crate::runner;
use crate::seat::Seat;
use crate::settings::Settings;
use crate::task_handle::{Results, TaskHandle};

/// What [`Start`]s a future of this process.
pub struct LocalTask {
    name: String,
    make: Make,
    results: Arc<Results>,
}

/// Makes the future of the next incarnation, which says what went wrong. One starts after another, so nobody waits for
/// the lock.
type Make = Arc<Mutex<dyn FnMut() -> BoxFuture<Result<(), String>> + Send>>;

/// What the future of a local task may return: nothing, or a `Result` of nothing.
#[diagnostic::on_unimplemented(
    message = "the future of a local task cannot return `{Self}`",
    label = "return `hatchery::Result<()>`, another `Result<(), E>` whose error has `Display`, or nothing"
)]
pub trait LocalOutcome {
    /// What went wrong, in words, if something did; 1,024 bytes of them at most are needed.
    fn failure(&self) -> Option<String>;
}

impl LocalOutcome for () {
    fn failure(&self) -> Option<String> {
        None
    }
}

impl<E: Display> LocalOutcome for Result<(), E> {
    fn failure(&self) -> Option<String> {
        self.as_ref().err().map(exit::in_short)
    }
}

/// The type of what never returns has no name in stable Rust, but for this.
#[doc(hidden)]
pub trait Returned {
    /// What such a function returns.
    type Value;
}

impl<T> Returned for fn() -> T {
    type Value = T;
}

/// A loop without an end.
impl LocalOutcome for <fn() -> ! as Returned>::Value {
    fn failure(&self) -> Option<String> {
        match *self {}
    }
}

impl LocalTask {
    /// A task of this name; the closure makes the future of each incarnation.
    pub fn new<F, Fut>(name: impl Into<String>, mut make: F) -> LocalTask
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: LocalOutcome,
    {
        let make = move || -> BoxFuture<Result<(), String>> {
            let future = make();
            Box::pin(async move { future.await.failure().map_or(Ok(()), Err) })
        };
        LocalTask { name: name.into(), make: Arc::new(Mutex::new(make)), results: Arc::default() }
    }
}

impl Start for LocalTask {
    type Handle = TaskHandle<()>;

    fn name(&self) -> &str {
        &self.name
    }

    fn actor(&self) -> &'static str {
        TASK
    }

    fn check(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn check_settings(&self, settings: &Settings) -> Result<(), Fault> {
        no_settings(settings, "this task", "`task` in place of `local_task`")
    }

    fn start_failed(&self, fault: &Fault) {
        self.results.failed(fault);
    }

    fn has_mailbox(&self) -> bool {
        false
    }

    fn is_process(&self) -> bool {
        false
    }

    fn handle(&self, reference: ActorRef) -> TaskHandle<()> {
        TaskHandle::new(reference, self.results.clone(), |_| Ok(()))
    }

    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        let (make, results) = (self.make.clone(), self.results.clone());
        Box::pin(async move {
            panics::note_places();
            let made = panics::catch_call(|| {
                // One that panicked before is called again: what it left behind is its own.
                let mut make = make.lock().unwrap_or_else(PoisonError::into_inner);
                make()
            });
            let future = made.map_err(|panic| Fault::Ended {
                exit: Box::new(exit_of(Err(panic))),
                maybe_executed: false,
            })?;
            let (exit, exited) = watch::channel(None);
            let stopped = Arc::new(AtomicBool::new(false));
            let mut end = End {
                seat: order.seat,
                incarnation: order.incarnation,
                results,
                exit,
                how: None,
                stopped: stopped.clone(),
                _presence: order.presence,
            };
            let task = tokio::spawn(panics::catch(future));
            let child = LocalTaskChild { task: task.abort_handle(), stopped, exited };
            tokio::spawn(async move {
                end.how = task.await.ok().map(exit_of);
                drop(end);
            });
            Ok(Started { child: Arc::new(child), line: Arc::new(NoLine(TASK_TAKES_NONE)) })
        })
    }
}

/// How a future ended that was not dropped before.
fn exit_of(outcome: Result<Result<(), String>, Panic>) -> Exit {
    match outcome {
        Ok(Ok(())) => Exit::new(Status::Code(0)),
        Ok(Err(why)) => Exit::new(Status::Code(1)).with_failed(true).with_reason(Some(why)),
        Err(panic) => Exit::new(Status::Code(101)).with_panic(Some(panic)),
    }
}

/// Reports the end of a local task, also when its runtime ends.
struct End {
    seat: Arc<Seat>,
    incarnation: u64,
    results: Arc<Results>,
    exit: watch::Sender<Option<Arc<Exit>>>,
    how: Option<Exit>,
    stopped: Arc<AtomicBool>,
    _presence: Presence,
}

impl Drop for End {
    fn drop(&mut self) {
        let returned = self.how.as_ref().filter(|exit| exit.success()).map(|_| Ok(Body::default()));
        let exit = self.how.take().unwrap_or_else(|| match self.stopped.load(Ordering::Relaxed) {
            true => Exit::orderly().with_reason(Some("it was stopped".to_owned())),
            false => Exit::new(Status::Unknown).with_reason(Some(runner::ABORTED.to_owned())),
        });
        self.results.ended(returned, &exit);
        self.seat.ended(self.incarnation, &exit);
        self.exit.send_replace(Some(Arc::new(exit)));
    }
}

struct LocalTaskChild {
    task: AbortHandle,
    /// Whether it was stopped before it was killed, if it was: then that is no crash.
    stopped: Arc<AtomicBool>,
    exited: Ended,
}

impl Child for LocalTaskChild {
    fn stop(&self, rung: Rung) {
        // Nobody could tell a future anything: it is dropped where it waits.
        if rung != Rung::Kill {
            self.stopped.store(true, Ordering::Relaxed);
        }
        self.task.abort();
    }

    fn pid(&self) -> Option<u32> {
        self.exited.borrow().is_none().then(std::process::id)
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        Box::pin(ended(self.exited.clone()))
    }

    fn suspend(&self) -> BoxFuture<Result<(), Fault>> {
        Box::pin(std::future::ready(Err(Fault::Refused(
            "a task has no mailbox that could be suspended: stop it instead".to_owned(),
        ))))
    }

    fn pause(&self) -> Result<(), Fault> {
        Err(Fault::Refused(
            "a local task has no process of its own that could stand still: stop it instead".to_owned(),
        ))
    }
}
