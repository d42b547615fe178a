//! A worker that runs several asynchronous tasks at the same time: one in each lane of its ledger, all on one thread.
//!
//! ```text
//!   socket ──▶ a queue for each lane ──▶ a future for each lane, polled when it is woken
//!                        │                        │ ready, or stopped
//!                        └─▶ synchronous tasks,   ▼
//!                            between two polls ─▶ ledger, or socket
//! ```
//!
//! Futures are polled in the context of the actor's runtime, so their timers, sockets and tasks are there, and go on while
//! a synchronous task has this thread. They are not polled inside of the runtime that waits for the socket: that one would
//! keep what yields for its own next turn, which may never come.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hatchery_actor::error::Error;
use hatchery_actor::exit::Panic;
use hatchery_actor::fault::Fault;
use hatchery_actor::panics;
use hatchery_process::task::{TaskEntry, TaskOutcome, TaskRun};
use hatchery_shm::Lane;
use hatchery_wire::{Body, Envelope, Kind};

use super::awake::{self, Awake};
use super::{Desk, entry_of};
use crate::row;
use crate::terms::{FAULT, PANIC, SKIPPED, STOPPED, numbers};

/// How long synchronous tasks that are over quickly have the thread for, before the others have their turn.
const TURN: Duration = Duration::from_millis(1);

/// All lanes of a worker.
pub(super) struct Lanes<'a> {
    /// Where results are written; its lane is the first one, or that about which it writes.
    desk: Desk<'a>,
    /// The lanes behind the first one.
    others: Vec<Lane>,
    lines: Vec<Line>,
    awake: Arc<Awake>,
    tasks: HashMap<u32, Result<&'static TaskEntry, Fault>>,
    /// Nothing more begins.
    leaves: bool,
    /// There will be nothing more on the socket.
    ended: bool,
}

/// What is done one after the other.
struct Line {
    /// No more than the pool has sent, which bounds it.
    queue: VecDeque<Row>,
    running: Option<Running>,
    lane: Arc<awake::Lane>,
    waker: Waker,
}

/// Tasks that came together.
struct Row {
    entry: Result<&'static TaskEntry, Fault>,
    first: u32,
    /// The next one that has not been begun.
    next: u32,
    load: Load,
    /// The lane says that one of them runs, or has run.
    begun: bool,
    /// Nobody wants it any more.
    skipped: bool,
}

enum Load {
    Row(Bytes),
    One(Option<Body>),
}

impl Load {
    fn is_empty(&self) -> bool {
        match self {
            Load::Row(bytes) => bytes.is_empty(),
            Load::One(body) => body.is_none(),
        }
    }

    /// The arguments of the next task.
    fn next(&mut self) -> Option<Body> {
        match self {
            Load::One(body) => body.take(),
            Load::Row(bytes) => {
                let mut rest = &bytes[..];
                let args = row::next(&mut rest).map(|args| bytes.slice_ref(args));
                *bytes = bytes.slice_ref(rest);
                if args.is_none() {
                    bytes.clear();
                }
                args.map(Body::from_bytes)
            }
        }
    }
}

struct Running {
    number: u32,
    future: Pin<Box<dyn Future<Output = Result<TaskOutcome, Panic>> + Send>>,
}

/// What has happened.
#[derive(Default)]
struct News {
    came: Vec<Envelope>,
    finished: Vec<(u16, Result<TaskOutcome, Panic>)>,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(desk: Desk<'a>, others: Vec<Lane>) -> Lanes<'a> {
        let awake = Arc::new(Awake::default());
        let line = |number| {
            let lane = awake.lane(number);
            Line { queue: VecDeque::new(), running: None, waker: lane.clone().into(), lane }
        };
        let lines = (0..).take(others.len() + 1).map(line).collect();
        let tasks = HashMap::new();
        Lanes { desk, others, lines, awake, tasks, leaves: false, ended: false }
    }

    /// Runs what comes, until there is no more, and what runs then has ended.
    pub(super) fn serve(&mut self) -> Result<(), Error> {
        let mut woken = Vec::new();
        loop {
            let News { came, finished } = self.news(&mut woken)?;
            if self.ended || self.desk.thread.stopping.load(Ordering::Relaxed) {
                self.leaves = true;
            }
            // First these: what has ended cannot be ended any more.
            for (at, outcome) in finished {
                self.finished(at, outcome)?;
            }
            for envelope in came {
                if envelope.kind == Kind::End {
                    self.leaves = true;
                } else {
                    self.take(envelope)?;
                }
            }
            self.synchronous()?;
            if self.leaves && !self.is_turn() && self.lines.iter().all(|line| line.running.is_none()) {
                return Ok(());
            }
        }
    }

    /// Waits until something has happened, unless there is a synchronous task to be run.
    fn news(&mut self, woken: &mut Vec<u16>) -> Result<News, Error> {
        let mut news = News::default();
        let (turn, ended) = (self.is_turn(), self.ended);
        let Lanes { desk, lines, awake, .. } = self;
        loop {
            // While there is always something to do, nobody else asks the system what has come.
            while let Some(envelope) = desk.connection.drain()? {
                news.came.push(envelope);
            }
            awake.take(woken);
            for at in &*woken {
                let Line { running, lane, waker, .. } = &mut lines[usize::from(*at)];
                lane.is_polled();
                let Some(running) = running else { continue };
                let mut cx = Context::from_waker(waker);
                // Each in a turn of its own, after which it makes room for the others if it uses what tokio has.
                let polled = poll_fn(|_| Poll::Ready(running.future.as_mut().poll(&mut cx)));
                if let Poll::Ready(outcome) = desk.thread.actors.block_on(polled) {
                    news.finished.push((*at, outcome));
                }
            }
            if turn || self.ended != ended || !news.came.is_empty() || !news.finished.is_empty() {
                return Ok(news);
            }
            let connection = &mut desk.connection;
            let happens = poll_fn(|cx| {
                let came = if self.ended { Poll::Pending } else { connection.poll_recv(cx)? };
                match came {
                    Poll::Ready(Some(envelope)) => news.came.push(envelope),
                    Poll::Ready(None) => self.ended = true,
                    Poll::Pending if awake.sleeps(cx.waker()) => return Poll::Pending,
                    Poll::Pending => {}
                }
                Poll::Ready(Ok::<_, Error>(()))
            });
            desk.runtime.block_on(happens)?;
        }
    }

    /// Takes what the pool says.
    fn take(&mut self, envelope: Envelope) -> Result<(), Error> {
        let (task, at, number) = numbers(envelope.id);
        let Some(line) = self.lines.get_mut(usize::from(at)) else {
            return Err(Error::msg(format!("a task for lane {at}, and there are {}", self.lines.len())));
        };
        match envelope.kind {
            Kind::Bind => {
                let entry = self.desk.named(&envelope.body)?;
                self.tasks.insert(task, entry);
            }
            Kind::Tell | Kind::Ask => {
                let load = match envelope.kind {
                    Kind::Tell => Load::Row(envelope.body.to_bytes()),
                    _ => Load::One(Some(envelope.body)),
                };
                let entry = entry_of(&self.tasks, task);
                let (begun, skipped) = (false, false);
                line.queue.push_back(Row { entry, first: number, next: number, load, begun, skipped });
                self.go_on(at)?;
            }
            Kind::Unbind => {
                let Some(row) = line.queue.iter_mut().find(|row| row.first == number) else { return Ok(()) };
                row.skipped = true;
                if line.queue.front().is_some_and(|row| row.skipped) {
                    self.stop(at)?;
                }
                self.go_on(at)?;
            }
            Kind::Withdraw => {
                if line.running.as_ref().is_some_and(|running| running.number == number) {
                    self.stop(at)?;
                }
                self.go_on(at)?;
            }
            other => return Err(Error::msg(format!("a message of kind {other:?} from the pool"))),
        }
        Ok(())
    }

    /// Ends what runs in a lane.
    fn stop(&mut self, at: u16) -> Result<(), Error> {
        let Some(Running { number, future }) = self.lines[usize::from(at)].running.take() else {
            return Ok(());
        };
        self.dropped(future);
        let next = self.next(at);
        self.write(at, |desk| desk.finish(number, STOPPED, &[], next))
    }

    /// Drops a future, which is the user's code, where its locals find the runtime that they were made in.
    fn dropped(&self, future: impl Sized) {
        let _inside = self.desk.thread.actors.enter();
        // It has been printed, and there is nobody to be told.
        let _ = panics::catch_call(|| drop(future));
    }

    /// The task in a lane has ended.
    fn finished(&mut self, at: u16, outcome: Result<TaskOutcome, Panic>) -> Result<(), Error> {
        let Some(Running { number, future }) = self.lines[usize::from(at)].running.take() else {
            return Ok(());
        };
        self.dropped(future);
        let next = self.next(at);
        self.write(at, |desk| match outcome.map(TaskOutcome::into_result) {
            Ok(Ok(body)) => desk.body(number, body, next),
            Ok(Err(fault)) => desk.encoded(number, FAULT, &fault, next),
            Err(panic) => desk.encoded(number, PANIC, &panic, next),
        })?;
        self.go_on(at)
    }

    /// The number of the task that is the next one in a lane, in the same row.
    fn next(&self, at: u16) -> Option<u32> {
        let row = self.lines[usize::from(at)].queue.front();
        row.filter(|row| row.begun && !self.leaves && !row.load.is_empty()).map(|row| row.next)
    }

    /// Begins what is next in a lane, if nothing runs there; but no synchronous task.
    fn go_on(&mut self, at: u16) -> Result<(), Error> {
        while !self.leaves {
            let Line { queue, running, lane, .. } = &mut self.lines[usize::from(at)];
            let Some(row) = queue.front_mut().filter(|_| running.is_none()) else { return Ok(()) };
            if row.skipped {
                // Neither this one nor what comes behind it in its row.
                let (number, begins, is_empty) = (row.next, !row.begun, row.load.is_empty());
                queue.pop_front();
                if !is_empty {
                    self.write(at, |desk| {
                        if begins {
                            desk.begin(number);
                        }
                        desk.finish(number, SKIPPED, &[], None)
                    })?;
                }
                continue;
            }
            let run = match &row.entry {
                Ok(TaskEntry { run: TaskRun::Async(run), .. }) => Some(*run),
                Ok(_) => return Ok(()),
                Err(_) => None,
            };
            let Some(args) = row.load.next() else {
                queue.pop_front();
                continue;
            };
            let (number, begins) = (row.next, !std::mem::replace(&mut row.begun, true));
            row.next = number.wrapping_add(1);
            if let Some(run) = run {
                let future = Box::pin(panics::catch(async move { run(args).await }));
                *running = Some(Running { number, future });
                lane.wake_by_ref();
                if begins {
                    self.write(at, |desk| desk.begin(number));
                }
                return Ok(());
            }
            let Some(fault) = row.entry.as_ref().err().cloned() else { return Ok(()) };
            let next = self.next(at);
            self.write(at, |desk| {
                if begins {
                    desk.begin(number);
                }
                desk.encoded(number, FAULT, &fault, next)
            })?;
        }
        Ok(())
    }

    /// Whether the next one of the first lane, where all of them are, is a synchronous task, or one that borrows state: nothing
    /// else runs while it does.
    fn is_synchronous(&self) -> bool {
        let Line { queue, running, .. } = &self.lines[0];
        let alone = |row: &Row| row.entry.as_ref().is_ok_and(|entry| !matches!(entry.run, TaskRun::Async(_)));
        running.is_none() && queue.front().is_some_and(|row| alone(row) && !row.skipped)
    }

    /// Whether it is to be run: also when nothing more begins, if the lane says already that it has begun.
    fn is_turn(&self) -> bool {
        self.is_synchronous() && (!self.leaves || self.desk.lane.running().is_some())
    }

    /// Runs synchronous tasks, if it is their turn.
    fn synchronous(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        while self.is_turn() {
            self.leaves |= self.desk.thread.stopping.load(Ordering::Relaxed);
            let Some(row) = self.lines[0].queue.front_mut() else { return Ok(()) };
            let alone = matches!(row.load, Load::One(_));
            let Some(args) = row.load.next() else {
                self.lines[0].queue.pop_front();
                // What comes behind it need not be synchronous.
                self.go_on(0)?;
                continue;
            };
            let (number, begins) = (row.next, !std::mem::replace(&mut row.begun, true));
            row.next = number.wrapping_add(1);
            let entry = row.entry.clone();
            let next = self.next(0);
            let borrows = entry.as_ref().is_ok_and(|entry| entry.borrows().is_some());
            if begins {
                self.desk.begin_on_state(borrows, number);
            }
            if alone {
                self.desk.whole(&entry, number, args, next)?;
            } else {
                self.desk.one_of_row(&entry, number, &args.to_bytes(), next)?;
            }
            if borrows && self.desk.kept.is_missing() {
                // After a panic the next one has to wait for its state.
                self.lines[0].queue.front_mut().into_iter().for_each(|row| row.begun = false);
            }
            if begun.elapsed() >= TURN {
                break;
            }
        }
        Ok(())
    }

    /// Has the desk write about this lane.
    fn write<T>(&mut self, at: u16, what: impl FnOnce(&mut Desk<'a>) -> T) -> T {
        let other = usize::from(at).checked_sub(1).and_then(|behind| self.others.get_mut(behind));
        let Some(other) = other else { return what(&mut self.desk) };
        std::mem::swap(&mut self.desk.lane, other);
        self.desk.at = at;
        let outcome = what(&mut self.desk);
        std::mem::swap(&mut self.desk.lane, other);
        self.desk.at = 0;
        outcome
    }
}

impl Drop for Lanes<'_> {
    fn drop(&mut self) {
        // Something went wrong, and tasks still run.
        for at in 0..self.lines.len() {
            if let Some(running) = self.lines[at].running.take() {
                self.dropped(running.future);
            }
        }
    }
}
