//! The handle of a task under a supervisor, and what its incarnations returned.

use std::fmt;
use std::sync::Arc;

use hatchery_wire::{Body, DecodeError};
use tokio::sync::watch;

use crate::child::Supervised;
use crate::exit::{Exit, Panic};
use crate::fault::Fault;
use crate::handle::{ActorRef, AnyHandle};
use crate::predicates;
use crate::root::TASK;

/// What the incarnations of a task returned, for as long as anybody may ask for it.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Results {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the first one that succeeded returned.
    first: Option<Body>,
    /// Before that: what the latest one left, a returned `Err` or the reason for nothing.
    latest: Option<Result<Body, Fault>>,
}

impl Results {
    /// An incarnation has ended, and had returned this. To be said before its seat learns of the end: then whoever
    /// finds the seat closed finds here what the last one left.
    pub fn ended(&self, returned: Option<Result<Body, Fault>>, exit: &Exit) {
        let (first, latest) = judged(returned, exit);
        self.state.send_if_modified(|state| {
            if state.first.is_some() {
                return false;
            }
            state.latest = latest;
            state.first = first;
            state.first.is_some()
        });
    }
}

impl Results {
    /// A start has failed, so nobody could return anything. To be said before its seat is closed, if it is.
    pub fn failed(&self, fault: &Fault) {
        self.state.send_modify(|state| {
            if state.first.is_none() {
                state.latest = Some(Err(fault.clone()));
            }
        });
    }
}

/// Whether what an incarnation returned is its success, or only what it left. One that died after it had returned something
/// has not succeeded: it is started again.
fn judged(returned: Option<Result<Body, Fault>>, exit: &Exit) -> (Option<Body>, Option<Result<Body, Fault>>) {
    match returned {
        Some(Ok(body)) if exit.success() && exit.reason().is_none() => (Some(body), None),
        Some(returned) => (None, Some(returned)),
        None => (None, Some(Err(Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: true }))),
    }
}

/// The handle of a task under a supervisor: [`join`](TaskHandle::join) gives what it returned, and [`AnyHandle`] has the
/// rest. It outlives restarts. It stays in this process: it cannot be sent to another one.
///
/// A task has no mailbox, so it cannot be suspended; one in a process of its own can be paused.
///
/// ```
/// use hatchery::prelude::*;
///
/// #[hatchery::task]
/// fn add(a: u32, b: u32) -> u32 { a + b }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).name("sums").start().await?;
///     let sum: TaskHandle<u32> = tree.start_child(task("first", add, (1, 2))).await?;
///     assert_eq!(sum.path(), "/sums/first");
///     assert_eq!(sum.join().await?, 3);
///     tree.stop().await
/// }
/// ```
pub struct TaskHandle<R> {
    reference: ActorRef,
    results: Arc<Results>,
    decode: fn(Body) -> Result<R, DecodeError>,
}

impl<R> TaskHandle<R> {
    /// The handle of the task that sits there.
    #[doc(hidden)]
    pub fn new(
        reference: ActorRef,
        results: Arc<Results>,
        decode: fn(Body) -> Result<R, DecodeError>,
    ) -> TaskHandle<R> {
        TaskHandle { reference, results, decode }
    }

    /// Waits until an incarnation has succeeded and ended, and gives what its function returned; while the task is
    /// started again, it goes on waiting.
    ///
    /// It has succeeded if it returned anything but an `Err`. An `Err`, a panic or a death is an end like any other: its
    /// supervisor decides whether another incarnation follows. Once none does, a returned `Err` is what this gives.
    ///
    /// May be asked again, by anyone: the answer is the first success. A task that is started again after it, by hand or along
    /// with its group, does not change that: what has been told stays. Whoever wants another result starts another task. Each
    /// time descriptors in it are duplicated; those that came stay open until the last handle and the spec are gone.
    ///
    /// # Errors
    /// The task is stopped, removed or given up, and its last incarnation returned nothing: killed, stopped, panicked,
    /// exited. The error has its exit. Or the last start failed, and the error says why. Or arguments or result could not be encoded or decoded, or the result has more
    /// than 256 MiB. If it is started again later, the next call waits for that.
    ///
    /// # Cancel safety
    /// Cancel safe.
    #[doc(alias = "result")]
    pub async fn join(&self) -> Result<R, TaskError> {
        self.outcome().await.map_err(|fault| TaskError::new(self.path().to_owned(), TaskFault::Fault(fault)))
    }

    async fn outcome(&self) -> Result<R, Fault> {
        let mut results = self.results.state.subscribe();
        let closed = tokio::select! {
            biased;
            // Waiting fails only when the sender is gone, and that lives in `self`.
            Ok(_) = results.wait_for(|state| state.first.is_some()) => None,
            why = self.reference.seat().closed() => Some(why),
        };
        let left = {
            let state = self.results.state.borrow();
            state.first.clone().map(Ok).or_else(|| state.latest.clone())
        };
        let none = || Err(Fault::Closed { why: closed.unwrap_or_default() });
        (self.decode)(left.unwrap_or_else(none)?).map_err(|error| Fault::BadAnswer(error.to_string()))
    }
}

impl<R: 'static> Supervised for TaskHandle<R> {
    type Handle = TaskHandle<R>;

    fn kind() -> &'static str {
        TASK
    }
}

impl<R> AnyHandle for TaskHandle<R> {
    fn actor_ref(&self) -> &ActorRef {
        &self.reference
    }
}

impl<R> Clone for TaskHandle<R> {
    fn clone(&self) -> Self {
        TaskHandle { reference: self.reference.clone(), results: self.results.clone(), decode: self.decode }
    }
}

impl<R> fmt::Debug for TaskHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// Why there is no result of a task: of one under a supervisor, or of one in a pool.
///
/// What the function itself returned is never this, also if it is an `Err`.
#[derive(Clone, PartialEq, Eq)]
pub struct TaskError(Box<Parts>);

/// In a box, since a result is mostly none of these.
#[derive(Clone, PartialEq, Eq)]
struct Parts {
    whose: String,
    why: TaskFault,
    /// How the last of several workers ended, if that is why.
    last: Option<Fault>,
    /// Which of many inputs it had.
    input: Option<u64>,
}

/// What ended a task, or kept it from beginning.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskFault {
    /// The library's own reason.
    Fault(Fault),
    /// It panicked, and its worker goes on.
    Panicked(Panic),
    /// Nobody wanted it any more.
    Cancelled,
    /// It was tried again until its tries were used up, and killed this many workers.
    Poisoned {
        /// How many.
        deaths: u32,
        /// How the last one ended.
        last: Arc<Exit>,
    },
    /// The workers that should have run it do not start.
    InitFailed(String),
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}", self.0.whose)?;
        match self.0.input {
            Some(input) => write!(f, ", input {input}: ")?,
            None => f.write_str(": ")?,
        }
        match &self.0.why {
            TaskFault::Fault(Fault::Timeout { maybe_executed: true }) if self.0.whose.contains(" in ") => {
                f.write_str("it took longer than it may, and was ended")
            }
            TaskFault::Fault(Fault::Closed { why }) if self.0.whose.contains(" in ") => {
                write!(f, "nobody runs it: {why}")
            }
            TaskFault::Fault(Fault::Ended { exit, .. }) if self.0.whose.contains(" in ") => {
                write!(f, "its worker died: {exit}")
            }
            TaskFault::Fault(fault) => fault.fmt(f),
            TaskFault::Panicked(panic) => panic.fmt(f),
            TaskFault::Cancelled => f.write_str("it was cancelled"),
            TaskFault::Poisoned { deaths, last } => {
                let (workers, which) =
                    if *deaths == 1 { ("worker", "it") } else { ("workers", "the last one") };
                write!(f, "{deaths} {workers} died of it, and it is not tried again: {which} {last}")
            }
            TaskFault::InitFailed(why) => write!(f, "the workers of its pool do not start: {why}"),
        }
    }
}

impl fmt::Debug for TaskError {
    /// For people, as `unwrap` shows it: the text, and the worker's last words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        self.fault().map_or(Ok(()), |fault| fault.show_last_words(f))
    }
}

impl std::error::Error for TaskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.fault().map(|fault| fault as &(dyn std::error::Error + 'static))
    }
}

impl TaskError {
    /// Of this task, by its path, or its name and its worker's.
    #[doc(hidden)]
    pub fn new(whose: String, why: TaskFault) -> TaskError {
        let last = match &why {
            TaskFault::Poisoned { last, .. } => {
                Some(Fault::Ended { exit: Box::new((**last).clone()), maybe_executed: true })
            }
            _ => None,
        };
        TaskError(Box::new(Parts { whose, why, last, input: None }))
    }

    /// The same of the task with this input of many.
    #[doc(hidden)]
    #[must_use]
    pub fn of_input(mut self, input: u64) -> TaskError {
        self.0.input = Some(input);
        self
    }

    /// Which input its task had, if it was one of many: the first one is 0. So that those know that take outcomes as they
    /// come.
    pub fn input(&self) -> Option<u64> {
        self.0.input
    }

    /// The library's own reason.
    #[doc(hidden)]
    pub fn fault(&self) -> Option<&Fault> {
        match &self.0.why {
            TaskFault::Fault(fault) => Some(fault),
            _ => self.0.last.as_ref(),
        }
    }

    predicates!();

    /// Whether the function may have run.
    pub fn maybe_executed(&self) -> bool {
        match &self.0.why {
            TaskFault::Fault(fault) => fault.maybe_executed(),
            TaskFault::InitFailed(_) => false,
            TaskFault::Panicked(_) | TaskFault::Cancelled | TaskFault::Poisoned { .. } => true,
        }
    }

    /// Whether its worker died while it ran: it was killed, aborted, or exited, perhaps by the task itself; also if that was
    /// more than once. The same as [`is_crash`](TaskError::is_crash); [`exit`](TaskError::exit) says how. In a pool a panic is
    /// no death.
    pub fn is_worker_died(&self) -> bool {
        self.is_crash()
    }

    /// Whether a panic ended it.
    pub fn is_panic(&self) -> bool {
        self.panic().is_some()
    }

    /// The panic that ended it.
    pub fn panic(&self) -> Option<&Panic> {
        match &self.0.why {
            TaskFault::Panicked(panic) => Some(panic),
            _ => self.exit().and_then(Exit::panic),
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.why == TaskFault::Cancelled
    }

    /// Whether it is given up because workers died of it: it has used up its retries and killed two or more, or as many as
    /// `poison_after` allows. [`exit`](TaskError::exit) says how the last one ended.
    pub fn is_poisoned(&self) -> bool {
        self.deaths().is_some()
    }

    /// How many workers it has killed, if it [is poisoned](TaskError::is_poisoned).
    pub fn deaths(&self) -> Option<u32> {
        match self.0.why {
            TaskFault::Poisoned { deaths, .. } => Some(deaths),
            _ => None,
        }
    }

    /// Whether it did not run because the workers of its pool do not start: their initializer fails, or they end before
    /// they have begun.
    pub fn is_init_failed(&self) -> bool {
        matches!(self.0.why, TaskFault::InitFailed(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Status;
    use crate::seat::Seat;
    use hatchery_wire::{decode_owned, encode};

    fn handle() -> (Arc<Seat>, Arc<Results>, TaskHandle<Result<u32, String>>) {
        let seat = Seat::new("/a".to_owned(), "task");
        let results = Arc::<Results>::default();
        let handle = TaskHandle::new(ActorRef::new(seat.clone()), results.clone(), decode_owned);
        (seat, results, handle)
    }

    fn returned(value: Result<u32, &str>) -> Option<Result<Body, Fault>> {
        Some(Ok(encode(&value).unwrap()))
    }

    fn exit(status: Status) -> Exit {
        Exit::new(status)
    }

    #[tokio::test]
    async fn the_first_success_is_the_result_whatever_comes_before_and_after() {
        let (seat, results, handle) = handle();
        let waits = tokio::spawn({
            let handle = handle.clone();
            async move { handle.join().await }
        });
        results.ended(returned(Err("not yet")), &exit(Status::Code(1)).with_failed(true));
        results.ended(None, &exit(Status::Signal(9)));
        results.ended(returned(Ok(7)), &exit(Status::Code(0)));
        assert_eq!(waits.await.unwrap().unwrap(), Ok(7));
        results.ended(returned(Ok(8)), &exit(Status::Code(0)));
        results.ended(None, &exit(Status::Signal(9)));
        seat.close("it was stopped");
        assert_eq!(handle.join().await.unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn once_nobody_runs_any_more_what_the_last_one_left_is_the_result() {
        let (seat, results, handle) = handle();
        results.ended(None, &exit(Status::Signal(9)));
        results.ended(returned(Err("never")), &exit(Status::Code(1)).with_failed(true));
        seat.close("its supervisor gave it up");
        assert_eq!(handle.join().await.unwrap(), Err("never".to_owned()));
        seat.reopen();
        results.ended(None, &exit(Status::Signal(11)));
        seat.close("its supervisor gave it up");
        let error = handle.join().await.unwrap_err();
        assert!(error.is_crash() && error.maybe_executed() && !error.is_panic());
        assert_eq!(error.exit().unwrap().signal(), Some(11));
        assert!(error.to_string().starts_with("task /a: "), "{error}");
    }

    #[tokio::test]
    async fn one_that_never_ran_says_why() {
        let (seat, _results, handle) = handle();
        seat.close("it was stopped");
        let error = handle.join().await.unwrap_err();
        assert!(error.is_closed() && !error.maybe_executed());
        assert!(error.to_string().contains("it was stopped"), "{error}");
    }

    #[test]
    fn one_that_died_after_it_had_returned_has_not_succeeded() {
        let body = || encode(&1).unwrap();
        for died in [
            exit(Status::Signal(9)),
            exit(Status::Code(1)).with_failed(true),
            exit(Status::Code(0)).with_reason(Some("a second result".to_owned())),
        ] {
            let (first, latest) = judged(Some(Ok(body())), &died);
            assert!(first.is_none() && latest == Some(Ok(body())), "{died}");
        }
        let (first, latest) = judged(Some(Ok(body())), &exit(Status::Code(0)));
        assert!(first == Some(body()) && latest.is_none());
    }
}
