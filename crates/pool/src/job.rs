//! One task and its result.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hatchery_actor::fault::Fault;
use hatchery_actor::outlet::measure;
use hatchery_actor::task_handle::{TaskError, TaskFault};
use hatchery_process::state::RunsInPool;
use hatchery_process::task::Packing;
use hatchery_wire::{Body, DecodeError};
use tokio::time::Instant;

use crate::plan::{JobId, Priority, Wants, What};
use crate::pool::Pool;
use crate::row::{self, Load, Row};

/// A task that was given to a pool, and its result to come: a future. See [`Pool::submit`](crate::pool::Pool::submit).
///
/// It waits for a worker, and runs, whether or not it is polled. However many are submitted, all get in line by themselves:
/// whoever has more than fit into memory has [`Pool::map`](crate::pool::Pool::map) take them as workers ask for them.
///
/// # Errors
/// [`TaskError`]: the worker died (`is_worker_died`), the task panicked (`is_panic`) or took longer than its
/// [`timeout`](Job::timeout) (`is_timeout`), its [`retries`](Job::retries) were used up by two deaths or more (`is_poisoned`), it
/// was cancelled (`is_cancelled`), its arguments or its result cannot be encoded or decoded, it borrows state that the pool has
/// not, the workers do not start any more (`is_init_failed`), or the pool has ended (`is_closed`). An `Err` that the function
/// returns is its result.
///
/// # Cancel safety
/// Dropping it cancels the task: one that waits never runs, and one that runs is ended, with its worker, in whose place another
/// one is started; or by itself where others run beside it ([`concurrency`](crate::builder::PoolBuilder::concurrency)).
/// [`detach`](Job::detach) lets it run.
#[must_use = "dropping a job cancels its task: await it, or `detach` it"]
pub struct Job<R> {
    pool: Pool,
    wants: Wants,
    state: State,
    packing: fn(&[u8]) -> Result<R, DecodeError>,
    decode: fn(Body) -> Result<R, DecodeError>,
}

enum State {
    /// It never gets in line.
    Refused(TaskFault),
    Inside(JobId),
    Cancelled(JobId),
    Over,
}

impl<R> Job<R> {
    pub(crate) fn new<T: RunsInPool<Output = R>>(
        pool: &Pool,
        task: &T,
        args: T::Args,
        wants: Wants,
    ) -> Job<R> {
        let Packing { encode, decode } = task.packing();
        let state = match load(encode, args) {
            Err(fault) => State::Refused(TaskFault::Fault(fault)),
            Ok(load) => pool
                .shared()
                .with(|plan| plan.submit(wants, load, Instant::now()))
                .map_or_else(State::Refused, State::Inside),
        };
        Job { pool: pool.clone(), wants, state, packing: decode, decode: task.decoder() }
    }

    fn id(&self) -> Option<JobId> {
        match self.state {
            State::Inside(id) | State::Cancelled(id) => Some(id),
            State::Refused(_) | State::Over => None,
        }
    }

    fn want(mut self, change: impl FnOnce(&mut Wants)) -> Self {
        change(&mut self.wants);
        if let Some(id) = self.id() {
            self.pool.shared().with(|plan| plan.change(id, self.wants, Instant::now()));
        }
        self
    }

    /// How long the task may run, from when it begins; as long as it takes unless told otherwise. One that takes longer is
    /// ended, with its worker, or by itself where others run beside it
    /// ([`concurrency`](crate::builder::PoolBuilder::concurrency)); it may get a sixteenth more. Where this is said of a task
    /// that runs already, it counts from then.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.want(|wants| wants.timeout = Some(timeout))
    }

    /// How often it is tried again if its worker dies of it, if it panics or takes too long; never unless told otherwise. Tries
    /// are 20 ms apart at first, and twice as long each time, up to 5 s.
    ///
    /// Also said of a job whose task has failed already, it has that tried again, as long as the job has not been awaited and
    /// the pool is not closed; [`is_finished`](Job::is_finished) then says no again.
    pub fn retries(self, retries: u32) -> Self {
        self.want(|wants| wants.retries = retries)
    }

    /// After how many deaths of workers it is given up, although there are retries left; 0 is taken for 1. Those before this
    /// was said count.
    pub fn poison_after(self, deaths: u32) -> Self {
        self.want(|wants| wants.poison_after = Some(deaths))
    }

    /// What goes first where many wait. Of a task that runs it concerns further tries alone.
    pub fn priority(self, priority: Priority) -> Self {
        self.want(|wants| wants.priority = priority)
    }

    /// Ends the task: it never runs, or it is ended where it is, with its worker, or by itself where others run beside it. The job resolves with `is_cancelled`, unless
    /// its result is there already.
    pub fn cancel(&mut self) {
        if let (Some(id), false) = (self.id(), self.is_finished()) {
            self.pool.shared().with(|plan| plan.cancel(id));
            self.state = State::Cancelled(id);
        }
    }

    /// Whether its outcome is there, so that awaiting it does not wait.
    pub fn is_finished(&self) -> bool {
        match self.state {
            State::Inside(id) => self.pool.shared().with(|plan| plan.has_mail(id)),
            State::Refused(_) | State::Cancelled(_) | State::Over => true,
        }
    }

    /// Lets it run, and does without its result. It runs as long as its pool is there: who leaves `main` and wants it to be done
    /// has the pool [`shutdown`](Pool::shutdown) before.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn detach(self)
    where
        R: Send + 'static,
    {
        tokio::spawn(async move { drop(self.await) });
    }

    fn decoded(&self, what: What) -> Result<R, TaskError> {
        let bad = |error: DecodeError| {
            let fault = Fault::BadAnswer(error.to_string());
            self.pool.shared().error(self.wants.entry, None, TaskFault::Fault(fault))
        };
        match what {
            What::Row(Row { bytes, .. }) => {
                let result = row::next(&mut &bytes[..]).unwrap_or_default();
                (self.packing)(result).map_err(bad)
            }
            What::Alone(body) => (self.decode)(body).map_err(bad),
            What::Failed(why, worker) => Err(self.pool.shared().error(self.wants.entry, worker, why)),
        }
    }
}

/// Encodes the arguments of one task.
pub(crate) fn load<A>(
    encode: fn(A, &mut Vec<u8>) -> Result<Option<Body>, hatchery_wire::EncodeError>,
    args: A,
) -> Result<Load, Fault> {
    let mut bytes = Vec::new();
    let alone = row::put_with(&mut bytes, |out| encode(args, out));
    let alone = alone.map_err(|error| Fault::NotSent(error.to_string()))?;
    match alone.or_else(|| row::take_large(&mut bytes, 0)) {
        Some(body) => measure(&body).map(|()| Load::Alone(body)),
        None => Ok(Load::Row(Row { bytes: bytes.into(), count: 1 })),
    }
}

impl<R> Future for Job<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let why = match std::mem::replace(&mut this.state, State::Over) {
            State::Over => panic!("polled after it was ready"),
            State::Refused(why) => why,
            State::Cancelled(id) => {
                this.pool.shared().with(|plan| plan.leave(id));
                TaskFault::Cancelled
            }
            State::Inside(id) => {
                let waker = cx.waker().clone();
                let (mail, _) = this.pool.shared().with(|plan| {
                    let (mut mail, old) = plan.take(id, waker);
                    let mail = mail.pop_front();
                    if mail.is_some() {
                        plan.leave(id);
                    }
                    (mail, old)
                });
                let Some(delivery) = mail else {
                    this.state = State::Inside(id);
                    return Poll::Pending;
                };
                return Poll::Ready(this.decoded(delivery.what));
            }
        };
        Poll::Ready(Err(this.pool.shared().error(this.wants.entry, None, why)))
    }
}

impl<R> Drop for Job<R> {
    fn drop(&mut self) {
        if let Some(id) = self.id() {
            self.pool.shared().with(|plan| plan.leave(id));
        }
    }
}

impl<R> fmt::Debug for Job<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("task", &self.wants.entry.name).finish_non_exhaustive()
    }
}
