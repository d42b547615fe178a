//! A task in a process of its own under a supervisor, seen from its parent.

use std::sync::{Arc, PoisonError};

use hatchery_actor::address::ProcessId;
use hatchery_actor::ask::deadline;
use hatchery_actor::child::{BoxFuture, Child, NoLine, Order, Rung, Start, Started};
use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::outlet::measure;
use hatchery_actor::root::{TASK, TASK_TAKES_NONE};
use hatchery_actor::settings::Settings;
use hatchery_actor::task_handle::{Results, TaskHandle};
use hatchery_wire::{Body, DecodeError, EncodeError, Envelope, Kind};

use crate::channel::Outgoing;
use crate::frames::What;
use crate::launch::{self, Launch, launch, live};
use crate::process::{ResultDesk, Returned};
use crate::program::Program;
use crate::registry;
use crate::task::{Runs, TaskEntry};
use crate::worker::{TENANT, WorkerChild};

/// What [`Start`]s a task in a process of its own.
pub struct TaskChild<R> {
    name: String,
    entry: &'static TaskEntry,
    args: Result<Body, EncodeError>,
    decode: fn(Body) -> Result<R, DecodeError>,
    results: Arc<Results>,
}

impl<R> TaskChild<R> {
    /// A task of this name; its arguments are kept encoded, for restarts.
    pub fn new<T, A>(name: impl Into<String>, task: &T, args: &A) -> TaskChild<R>
    where
        T: Runs<Args = A, Output = R>,
    {
        TaskChild {
            name: name.into(),
            entry: task.entry(),
            args: task.encode_args(args),
            decode: task.decoder(),
            results: Arc::default(),
        }
    }
}

impl<R: 'static> Start for TaskChild<R> {
    type Handle = TaskHandle<R>;

    fn name(&self) -> &str {
        &self.name
    }

    fn actor(&self) -> &'static str {
        TASK
    }

    fn check(&self) -> Result<(), Fault> {
        registry::task(self.entry.name, &self.entry.place.to_string())?;
        measure(self.args.as_ref().map_err(|error| Fault::NotSent(error.to_string()))?)
    }

    fn check_settings(&self, settings: &Settings) -> Result<(), Fault> {
        settings.check(launch::INVITED_BY)
    }

    fn start_failed(&self, fault: &Fault) {
        self.results.failed(fault);
    }

    fn has_mailbox(&self) -> bool {
        false
    }

    fn handle(&self, reference: ActorRef) -> TaskHandle<R> {
        TaskHandle::new(reference, self.results.clone(), self.decode)
    }

    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        let args = order.args.clone().map_or_else(|| self.args.clone(), Ok);
        let (name, entry, results) = (self.name.clone(), self.entry, self.results.clone());
        Box::pin(async move {
            let args = args.map_err(|error| Fault::NotSent(error.to_string()))?;
            measure(&args)?;
            let program = Program::current()?;
            let deadline = deadline(order.timeout);
            let what = What::Task { name: entry.name.to_owned(), place: entry.place.to_string() };
            let launch_order = Launch::seated(&order, name, what);
            let process = ProcessId { path: launch_order.path.clone(), birth: launch_order.birth };
            let launched = launch(&program, launch_order).await?;
            let ward = launched.ward.clone();
            let outgoing = Arc::new(Outgoing::default());
            outgoing.send(Envelope::new(Kind::Start, TENANT, 0, args));
            let returned = Returned::default();
            let desk = ResultDesk { result: returned.clone() };
            let Order { seat, incarnation, timeout, .. } = order;
            let ended = live(launched, outgoing, desk, move |exit| {
                let returned = returned.lock().unwrap_or_else(PoisonError::into_inner).take();
                results.ended(returned, exit);
                seat.ended(incarnation, exit);
            })?;
            launch::ready(&ward, ended.clone(), deadline, timeout).await?;
            let child = Arc::new(TaskProcess(WorkerChild { ward, process, ended, line: None }));
            Ok(Started { child, line: Arc::new(NoLine(TASK_TAKES_NONE)) })
        })
    }
}

/// A worker process without a mailbox: what it is told, it is told by signals.
struct TaskProcess(WorkerChild);

impl Child for TaskProcess {
    fn stop(&self, rung: Rung) {
        // The first rung and the second are the same: SIGTERM is how it is asked in order.
        self.0.stop(if rung == Rung::Kill { Rung::Kill } else { Rung::Term });
    }

    fn pid(&self) -> Option<u32> {
        self.0.pid()
    }

    fn process(&self) -> Option<ProcessId> {
        self.0.process()
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        self.0.exited()
    }

    fn suspend(&self) -> BoxFuture<Result<(), Fault>> {
        Box::pin(std::future::ready(Err(Fault::Refused(
            "a task has no mailbox that could be suspended: `pause` has its process stand still".to_owned(),
        ))))
    }

    fn pause(&self) -> Result<(), Fault> {
        self.0.pause()
    }

    fn resume(&self) -> Result<(), Fault> {
        self.0.resume()
    }

    fn is_paused(&self) -> bool {
        self.0.is_paused()
    }
}
