//! A task over many inputs: all results together, or one after the other as they come.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use hatchery_actor::fault::Fault;
use hatchery_actor::outlet::measure;
use hatchery_actor::task_handle::{TaskError, TaskFault};
use hatchery_process::task::{Packing, RunsInPool};
use hatchery_wire::{ALONE_FROM, Body, DecodeError, EncodeError};
use tokio::time::Instant;

use crate::plan::{Delivery, JobId, Priority, Wants, What};
use crate::pool::Pool;
use crate::row::{self, Load, Row};

/// Where inputs come from: an iterator, or a stream.
pub trait Inputs {
    /// What the task takes.
    type Item;

    /// The next one; `None` at the end. Pending if there is none yet.
    #[doc(hidden)]
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::Item>>;

    /// How many there will be at least, and at most if that is known.
    #[doc(hidden)]
    fn left(&self) -> (usize, Option<usize>);
}

impl<I: Iterator> Inputs for I {
    type Item = I::Item;

    #[inline]
    fn poll_input(&mut self, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.next())
    }

    fn left(&self) -> (usize, Option<usize>) {
        self.size_hint()
    }
}

/// Inputs that come out of a stream. See [`Pool::map_stream`](crate::pool::Pool::map_stream).
pub struct Streamed<S>(Pin<Box<S>>);

impl<S> Streamed<S> {
    pub(crate) fn new(stream: S) -> Streamed<S> {
        Streamed(Box::pin(stream))
    }
}

impl<S: Stream> Inputs for Streamed<S> {
    type Item = S::Item;

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.0.as_mut().poll_next(cx)
    }

    fn left(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<S> fmt::Debug for Streamed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed").finish_non_exhaustive()
    }
}

/// Bytes of arguments from which on a chunk takes no more.
const CHUNK_BYTES: usize = 64 * 1024;
/// Tasks that a chunk has at most, whatever was asked for.
const CHUNK_TASKS: u32 = 65_536;

/// A task over many inputs, before it begins. See [`Pool::map`](crate::pool::Pool::map) and
/// [`Pool::map_stream`](crate::pool::Pool::map_stream).
///
/// Awaited, it gives all results in the order of their inputs, or the first error. [`each`](Map::each) gives all outcomes,
/// [`stream`](Map::stream) and [`unordered`](Map::unordered) one after the other.
#[must_use = "it does nothing until it is awaited"]
pub struct Map<I: Inputs, R> {
    pool: Pool,
    inputs: I,
    wants: Wants,
    chunk: Option<u32>,
    cancel_on_error: bool,
    packing: Packing<I::Item, R>,
    decode: fn(Body) -> Result<R, DecodeError>,
}

impl<I: Inputs, R> Map<I, R> {
    pub(crate) fn new<T>(pool: &Pool, task: &T, inputs: I, wants: Wants) -> Map<I, R>
    where
        T: RunsInPool<Args = I::Item, Output = R>,
    {
        Map {
            pool: pool.clone(),
            inputs,
            wants,
            chunk: None,
            cancel_on_error: false,
            packing: task.packing(),
            decode: task.decoder(),
        }
    }

    /// How many tasks go to a worker together. Unless told otherwise, as many as take about a millisecond, judged by those
    /// before; and where it is known how many inputs there are, no more than leave something for each worker.
    ///
    /// A chunk has 65,536 tasks at most, and takes no more once their arguments have 64 KiB. Where a worker takes long over
    /// one while another one has nothing to do, that gets what has not begun.
    #[doc(alias = "chunksize")]
    pub fn chunk_size(mut self, tasks: u32) -> Self {
        self.chunk = Some(tasks.clamp(1, CHUNK_TASKS));
        self
    }

    /// How long each task may run, from when it begins; as long as it takes unless told otherwise. One that takes longer is
    /// ended, with its worker, and the others of its chunk go to another one; where others run beside it, it is ended by itself
    /// ([`concurrency`](crate::builder::PoolBuilder::concurrency)). It may get a sixteenth more.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.wants.timeout = Some(timeout);
        self
    }

    /// How often each task is tried again if its worker dies of it, if it panics or takes too long; never unless told
    /// otherwise. Tries are 20 ms apart at first, and twice as long each time, up to 5 s.
    pub fn retries(mut self, retries: u32) -> Self {
        self.wants.retries = retries;
        self
    }

    /// After how many deaths of workers a task is given up, although there are retries left; 0 is taken for 1.
    pub fn poison_after(mut self, deaths: u32) -> Self {
        self.wants.poison_after = Some(deaths);
        self
    }

    /// What goes first where many wait.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.wants.priority = priority;
        self
    }

    /// Whether the first error ends a stream, or [`each`](Map::each), and cancels the other tasks.
    pub fn cancel_on_error(mut self, cancel: bool) -> Self {
        self.cancel_on_error = cancel;
        self
    }

    /// All outcomes, in the order of their inputs. If the pool ends, the last one is an error, and the rest is missing.
    ///
    /// # Cancel safety
    /// Dropping the future cancels what has not finished.
    pub async fn each(self) -> Vec<Result<R, TaskError>> {
        let mut results = self.stream();
        let mut all = Vec::with_capacity(results.flow.expected());
        while let Some(result) = results.next().await {
            all.push(result);
        }
        all
    }

    /// The outcomes in the order of their inputs, one after the other.
    #[doc(alias = "imap")]
    pub fn stream(self) -> Results<I, R> {
        Results { flow: Flow::new(self, true) }
    }

    /// The outcomes as they come, in any order.
    #[doc(alias = "imap_unordered")]
    pub fn unordered(self) -> Results<I, R> {
        Results { flow: Flow::new(self, false) }
    }
}

impl<I: Inputs, R> IntoFuture for Map<I, R> {
    type Output = Result<Vec<R>, TaskError>;
    type IntoFuture = All<I, R>;

    fn into_future(self) -> All<I, R> {
        let flow = Flow::new(self, true);
        All { all: Vec::with_capacity(flow.expected()), flow }
    }
}

/// All results of a task over many inputs, in their order: a future.
///
/// # Cancel safety
/// Dropping it cancels what has not finished.
#[must_use = "it does nothing until it is awaited"]
pub struct All<I: Inputs, R> {
    flow: Flow<I, R>,
    all: Vec<R>,
}

impl<I: Inputs, R> Future for All<I, R> {
    type Output = Result<Vec<R>, TaskError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let All { flow, all } = self.get_mut();
        loop {
            flow.take_row(all);
            match std::task::ready!(flow.poll_next(cx)) {
                Some(Ok(result)) => all.push(result),
                Some(Err(error)) => {
                    flow.leave();
                    return Poll::Ready(Err(error));
                }
                None => return Poll::Ready(Ok(std::mem::take(all))),
            }
        }
    }
}

// Nothing in it is ever pinned: inputs are taken by plain calls, and streams are in boxes.
impl<I: Inputs, R> Unpin for All<I, R> {}
impl<I: Inputs, R> Unpin for Results<I, R> {}

impl<I: Inputs, R> fmt::Debug for All<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("All").field("task", &self.flow.map.wants.entry.name).finish_non_exhaustive()
    }
}

impl<I: Inputs, R> fmt::Debug for Map<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("task", &self.wants.entry.name).finish_non_exhaustive()
    }
}

/// The outcomes of a task over many inputs, one after the other: a stream.
///
/// It takes inputs while it is polled, and only as many as there are workers for: an iterator may be without end. Outcomes
/// that nobody takes hold up the workers, once there are enough of them.
///
/// If the pool ends, what is under way fails, and so does the next input; no more are taken, and the stream ends. If taking an
/// input panics, that is the panic of whoever polls; one who polls again gets an error, and then the end.
///
/// # Errors
/// An item is the [`TaskError`] of its task alone, as those of a [`Job`](crate::job::Job#errors).
///
/// # Cancel safety
/// [`next`](Results::next) loses nothing. Dropping the stream cancels what has not finished.
#[must_use = "it does nothing until it is polled"]
pub struct Results<I: Inputs, R> {
    flow: Flow<I, R>,
}

impl<I: Inputs, R> Results<I, R> {
    /// The next outcome; `None` when there are no more.
    ///
    /// # Cancel safety
    /// Cancel safe: no outcome is lost.
    pub async fn next(&mut self) -> Option<Result<R, TaskError>> {
        poll_fn(|cx| self.flow.poll_next(cx)).await
    }
}

impl<I: Inputs, R> Stream for Results<I, R> {
    type Item = Result<R, TaskError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().flow.poll_next(cx)
    }
}

impl<I: Inputs, R> fmt::Debug for Results<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Results").field("task", &self.flow.map.wants.entry.name).finish_non_exhaustive()
    }
}

/// What takes inputs, has them run, and gives the outcomes.
struct Flow<I: Inputs, R> {
    map: Map<I, R>,
    ordered: bool,
    job: Option<JobId>,
    /// Why there is none.
    refused: Option<TaskFault>,
    exhausted: bool,
    /// How many inputs were taken, and how many outcomes given.
    taken: u64,
    given: u64,
    /// The row that is being given.
    current: Row,
    /// The number of the input whose outcome is the next one to be given.
    input: u64,
    arrived: VecDeque<Delivery>,
    /// Outcomes that come before their turn.
    early: BTreeMap<u64, What>,
    /// Chunks that are open: up to which input they reach, and how many bytes they have. And how many all of them have.
    open: VecDeque<(u64, usize)>,
    open_bytes: usize,
    /// Whether inputs are being taken: code of the user's, which may panic.
    is_taking: bool,
}

impl<I: Inputs, R> Flow<I, R> {
    fn new(map: Map<I, R>, ordered: bool) -> Flow<I, R> {
        let (job, refused) = match map.pool.shared().with(|plan| plan.begin(map.wants)) {
            Ok(job) => (Some(job), None),
            Err(why) => (None, Some(why)),
        };
        Flow {
            map,
            ordered,
            job,
            refused,
            exhausted: false,
            taken: 0,
            given: 0,
            current: Row::default(),
            input: 0,
            arrived: VecDeque::new(),
            early: BTreeMap::new(),
            open: VecDeque::new(),
            open_bytes: 0,
            is_taking: false,
        }
    }

    /// How many outcomes there will be at least, so far as that is worth believing.
    fn expected(&self) -> usize {
        self.map.inputs.left().0.min(1 << 20)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<R, TaskError>>> {
        loop {
            if self.current.count > 0 {
                let result = self.next_of_row();
                return self.give(result);
            }
            let Some(job) = self.job else {
                let refused = self.refused.take();
                let error = |why| self.map.pool.shared().error(self.map.wants.entry, None, why);
                return Poll::Ready(refused.map(|why| Err(error(why))));
            };
            if std::mem::take(&mut self.is_taking) {
                // That has panicked. What was taken in that chunk is lost, and so are its outcomes.
                self.leave();
                let why = Fault::NotSent("taking its inputs has panicked before".to_owned());
                self.refused = Some(TaskFault::Fault(why));
                continue;
            }
            // In this order: what happens from now on wakes this task, an end of the pool while inputs are waited for as well.
            let waker = cx.waker().clone();
            let (arrived, _) = self.map.pool.shared().with(|plan| plan.take(job, waker));
            self.arrived.extend(arrived);
            self.fill(job, cx);
            let next = if self.ordered {
                let early = self.arrived.drain(..).map(|delivery| (delivery.first, delivery.what));
                self.early.extend(early);
                self.early.remove_entry(&self.given)
            } else {
                self.arrived.pop_front().map(|delivery| (delivery.first, delivery.what))
            };
            if let Some((first, _)) = next {
                self.input = first;
            }
            match next.map(|(_, what)| what) {
                Some(What::Row(row)) => self.current = row,
                Some(What::Alone(body)) => {
                    self.given += 1;
                    let result = (self.map.decode)(body).map_err(|error| self.bad(&error));
                    return self.give(result);
                }
                Some(What::Failed(why, worker)) => {
                    self.given += 1;
                    let error = self.error(worker, why);
                    return self.give(Err(error));
                }
                None if self.exhausted && self.given == self.taken => {
                    self.leave();
                    return Poll::Ready(None);
                }
                None => return Poll::Pending,
            }
        }
    }

    /// Gives an outcome, which is the last one if it is an error that ends all.
    #[inline]
    fn give(&mut self, result: Result<R, TaskError>) -> Poll<Option<Result<R, TaskError>>> {
        if result.is_err() && self.map.cancel_on_error {
            self.leave();
            self.current = Row::default();
        }
        Poll::Ready(Some(result))
    }

    /// All results of the row that is being given, up to the first one that cannot be decoded.
    fn take_row(&mut self, all: &mut Vec<R>) {
        let (mut rest, decode) = (&self.current.bytes[..], self.map.packing.decode);
        let mut used = 0;
        while let Some(Ok(result)) = row::next(&mut rest).map(decode) {
            all.push(result);
            used = self.current.bytes.len() - rest.len();
            self.current.count -= 1;
            self.given += 1;
            self.input += 1;
        }
        bytes::Buf::advance(&mut self.current.bytes, used);
    }

    /// The next result of the row that is being given.
    #[inline]
    fn next_of_row(&mut self) -> Result<R, TaskError> {
        let mut rest = &self.current.bytes[..];
        let result = row::next(&mut rest).map(self.map.packing.decode);
        let used = self.current.bytes.len() - rest.len();
        bytes::Buf::advance(&mut self.current.bytes, used);
        self.current.count -= 1;
        self.given += 1;
        let result = match result {
            Some(Ok(result)) => Ok(result),
            Some(Err(error)) => Err(self.bad(&error)),
            None => Err(self.error(None, TaskFault::Fault(Fault::BadAnswer("it is cut short".to_owned())))),
        };
        self.input += 1;
        result
    }

    #[cold]
    fn bad(&self, error: &DecodeError) -> TaskError {
        self.error(None, TaskFault::Fault(Fault::BadAnswer(error.to_string())))
    }

    #[cold]
    fn error(&self, worker: Option<usize>, why: TaskFault) -> TaskError {
        self.map.pool.shared().error(self.map.wants.entry, worker, why).of_input(self.input)
    }

    /// Takes inputs while there are workers for them, and inputs.
    fn fill(&mut self, job: JobId, cx: &mut Context<'_>) {
        while !self.exhausted {
            let shared = self.map.pool.shared();
            let (adapted, (workers, each), ended) = shared.with(|plan| {
                let adapted = plan.chunk_size(job);
                let size = self.map.chunk.unwrap_or(adapted);
                (adapted, plan.breadth(job, size), plan.ended(job))
            });
            if let Some(why) = ended {
                // One more fails, if there is one or may be: nobody is to take this for the end of the inputs.
                if self.chunk(job, 1, cx).is_pending() {
                    self.arrived.push_back(Delivery { first: self.taken, what: What::Failed(why, None) });
                    self.taken += 1;
                }
                self.exhausted = true;
                return;
            }
            let open = self.taken - self.given;
            let size = self.map.chunk.unwrap_or_else(|| {
                // Of what is left, something for each, more than once.
                let left = self.map.inputs.left();
                let left = left.1.filter(|most| *most == left.0);
                let fair =
                    left.map_or(u32::MAX, |left| u32::try_from(left / (workers * 4)).unwrap_or(u32::MAX));
                adapted.min(fair.max(1))
            });
            // What is under way, and as much again that waits or has come before its turn.
            let most = u64::from(size) * (workers * each * 2) as u64;
            while let Some((_, bytes)) = self.open.front().filter(|(upto, _)| *upto <= self.given) {
                self.open_bytes -= bytes;
                self.open.pop_front();
            }
            let is_much = self.open_bytes >= CHUNK_BYTES * workers * each * 2;
            let least = 2 * workers as u64;
            if open >= most.max(least) || (is_much && open >= least) {
                return;
            }
            if self.chunk(job, size, cx).is_pending() {
                return;
            }
        }
    }

    /// Takes the inputs of one chunk, or as many of them as there are; pending if there will be more later.
    fn chunk(&mut self, job: JobId, size: u32, cx: &mut Context<'_>) -> Poll<()> {
        self.is_taking = true;
        let taken = self.take_chunk(job, size, cx);
        self.is_taking = false;
        taken
    }

    fn take_chunk(&mut self, job: JobId, size: u32, cx: &mut Context<'_>) -> Poll<()> {
        // Most arguments take less; room for more is made as they come.
        let room = (size as usize).saturating_mul(16).min(CHUNK_BYTES + CHUNK_BYTES / 4);
        let (mut bytes, mut count) = (Vec::with_capacity(room), 0);
        let first = self.taken;
        while count < size && bytes.len() < CHUNK_BYTES {
            let input = match self.map.inputs.poll_input(cx) {
                Poll::Ready(Some(input)) => input,
                Poll::Ready(None) => {
                    self.exhausted = true;
                    break;
                }
                // What is here need not wait for what is not.
                Poll::Pending => {
                    self.enter(job, first, Load::Row(Row { bytes: bytes.into(), count }));
                    return Poll::Pending;
                }
            };
            let (encode, begins) = (self.map.packing.encode, bytes.len());
            let alone = row::put_with(&mut bytes, |out| encode(input, out));
            self.taken += 1;
            if matches!(alone, Ok(None)) && bytes.len() - begins <= ALONE_FROM {
                count += 1;
                continue;
            }
            let alone = match alone {
                Ok(None) => Ok(row::take_large(&mut bytes, begins)),
                other => other,
            };
            self.enter(job, first, Load::Row(Row { bytes: bytes.into(), count }));
            self.enter_alone(job, self.taken - 1, alone);
            return Poll::Ready(());
        }
        self.enter(job, first, Load::Row(Row { bytes: bytes.into(), count }));
        Poll::Ready(())
    }

    /// A task whose arguments are too large for a row, or cannot be encoded.
    fn enter_alone(&mut self, job: JobId, number: u64, args: Result<Option<Body>, EncodeError>) {
        let args = args.map_err(|error| Fault::NotSent(error.to_string())).and_then(|body| {
            let body = body.unwrap_or_default();
            measure(&body).map(|()| body)
        });
        match args {
            Ok(body) => self.enter(job, number, Load::Alone(body)),
            Err(fault) => {
                let what = What::Failed(TaskFault::Fault(fault), None);
                self.arrived.push_back(Delivery { first: number, what });
            }
        }
    }

    fn enter(&mut self, job: JobId, first: u64, load: Load) {
        if load.count() > 0 {
            self.open.push_back((first + u64::from(load.count()), load.bytes()));
            self.open_bytes += load.bytes();
            self.map.pool.shared().with(|plan| plan.enter(job, first, load, Instant::now()));
        }
    }

    fn leave(&mut self) {
        if let Some(job) = self.job.take() {
            self.map.pool.shared().with(|plan| plan.leave(job));
        }
    }
}

impl<I: Inputs, R> Drop for Flow<I, R> {
    fn drop(&mut self) {
        self.leave();
    }
}
