//! The inside of a worker: an actor that answers for it, and beside it one thread that runs tasks, with a socket of its own.
//!
//! A task may block as long as it likes: it keeps nobody but those behind it. Each result is in the ledger, or with the
//! kernel, before the ledger says that its task has finished. A worker whose ledger has several lanes runs as many
//! asynchronous tasks at the same time (`lanes.rs`).

mod awake;
mod lanes;

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::mem::ManuallyDrop;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hatchery_actor::actor::{AnyActor, Place};
use hatchery_actor::context::Context;
use hatchery_actor::error::Error;
use hatchery_actor::exit::Panic;
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::{ActorRef, AnyHandle};
use hatchery_actor::outlet::Answer;
use hatchery_actor::panics;
use hatchery_process::registry::{self, HostedActor};
use hatchery_process::task::{
    Apart, OnState, PackedOutcome, PackedRun, PackedRunOnState, RunOnState, TaskEntry, TaskOutcome, TaskRun,
};
use hatchery_shm::{Bell, Lane, NotKept, Then as Next};
use hatchery_wire::{Body, Connection, Envelope, Kind, Limits, decode, encode};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use self::lanes::Lanes;
use crate::row;
use crate::state::Kept;
use crate::terms::{
    FAULT, Named, Once, PANIC, Recipe, SKIPPED, TARGET, VALUE, WorkerArgs, id, kind_of, numbers,
};
use crate::thread::{Thread, complain, is_ended};

/// What sits in a worker of a pool.
pub(crate) struct PoolWorker {
    /// Another descriptor of the tasks' socket: shutting it down ends the thread that reads from it.
    socket: UnixStream,
    stopping: Arc<AtomicBool>,
    put_down: Arc<AtomicBool>,
    /// Which start of this place it is.
    start: u64,
    /// Resolves when the thread that runs tasks has ended.
    ended: Option<oneshot::Receiver<()>>,
}

/// All that the actor itself is asked: whether it is there.
#[derive(Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// And, if it is this start of its place, to begin nothing more of the chunk that runs.
    pub(crate) put_down: Option<u64>,
}

/// The worker's seat, as its pool knows it.
#[derive(Clone, Debug)]
pub(crate) struct WorkerRef(ActorRef);

impl From<ActorRef> for WorkerRef {
    fn from(reference: ActorRef) -> WorkerRef {
        WorkerRef(reference)
    }
}

impl AnyHandle for WorkerRef {
    fn actor_ref(&self) -> &ActorRef {
        &self.0
    }
}

inventory::submit! { HostedActor::of::<PoolWorker>() }

impl AnyActor for PoolWorker {
    type Args = WorkerArgs;
    type Message = Greeting;
    type Handle = WorkerRef;

    fn name() -> &'static str {
        "hatchery::PoolWorker"
    }

    fn place() -> Place {
        Place::new(file!(), line!(), column!())
    }

    async fn start(args: WorkerArgs, cx: &Context) -> Result<PoolWorker, Error> {
        let WorkerArgs { start, socket, memory, shape, initializer, state, finaliser } = args;
        let mut lanes = Lane::open(memory.into_inner(), shape)?.into_iter();
        let lane = lanes.next().ok_or_else(|| Error::msg("the ledger has no lane"))?;
        let others = lanes.collect();
        let tasks: UnixStream = socket.into_inner().into();
        let socket = tasks.try_clone()?;
        let (stopping, put_down) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let (ready, started) = oneshot::channel();
        let (ends, ended) = oneshot::channel::<()>();
        let thread = Thread {
            actors: Handle::current(),
            actor: cx.clone(),
            stopping: stopping.clone(),
            put_down: put_down.clone(),
        };
        std::thread::Builder::new().name("tasks".to_owned()).spawn(move || {
            let _unless = UnlessInOrder;
            let _ends = ends;
            let mut kept = match thread.prepare(initializer, state) {
                Ok(kept) => kept,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            if let Err(error) = thread.serve(tasks, lane, others, &mut kept) {
                complain(&error);
                // Its pool does not know, and ends it neither if its finaliser hangs nor if the drop of its state does.
                let _kept = ManuallyDrop::new(kept);
                thread.actor.stop();
                return;
            }
            if let Some(Err(error)) = finaliser.map(|once| thread.once(once, Some(&mut kept))) {
                complain(&error.context("the finaliser of a pool's worker failed"));
            }
            kept.leave();
            thread.actor.stop();
        })?;
        started.await.map_err(|_| Error::msg("the thread that runs its tasks has ended"))??;
        Ok(PoolWorker { socket, stopping, put_down, start, ended: Some(ended) })
    }

    async fn handle(&mut self, greeting: Greeting, asked: bool, _: &Context) -> Answer {
        // What was meant for the one before may come late.
        if greeting.put_down == Some(self.start) {
            self.put_down.store(true, Ordering::Relaxed);
        }
        Answer::value(asked, &())
    }

    async fn stopped(&mut self, _: &Context) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = self.socket.shutdown(std::net::Shutdown::Read);
        if let Some(ended) = self.ended.take() {
            // The sender is dropped at the end, and says nothing.
            let _ = ended.await;
        }
    }
}

/// Ends the process if the thread that runs tasks unwinds: a worker without it would answer, and never run anything again,
/// and of a death the pool learns.
struct UnlessInOrder;

impl Drop for UnlessInOrder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// What comes after a task.
enum Then {
    Next,
    Leave,
}

impl Thread {
    /// What comes before the first task.
    fn prepare(&self, initializer: Option<Once>, state: Option<Recipe>) -> Result<Kept, Error> {
        if let Some(once) = initializer {
            self.once(once, None).map_err(|error| error.context("its initializer failed"))?;
        }
        Kept::new(state, self).map_err(|error| error.context("its state could not be built"))
    }

    /// Runs a task that nobody waits for.
    fn once(&self, once: Once, kept: Option<&mut Kept>) -> Result<(), Error> {
        let entry = registry::task(&once.task.name, &once.task.place)?;
        let args = Body::from_bytes(Bytes::from(once.args));
        let outcome = match kept {
            Some(kept) => {
                kept.suits(entry)?;
                kept.renew(self);
                self.run(entry, args, kept.lend())
            }
            None => self.run(entry, args, None),
        };
        let outcome = outcome.map_err(Error::msg)?;
        if !outcome.failed() {
            return Ok(());
        }
        let body = outcome.into_result()?;
        // Errors of other types than these say nothing to who does not know them.
        Err(match (decode::<Result<(), Error>>(&body), decode::<Result<(), String>>(&body)) {
            (Ok(Err(error)), _) => error,
            (_, Ok(Err(text))) => Error::msg(text),
            _ => Error::msg("it returned an error"),
        })
    }

    /// Runs a task with these arguments, and the state that it may borrow.
    fn run(
        &self,
        entry: &'static TaskEntry,
        args: Body,
        state: Option<&mut dyn Any>,
    ) -> Result<TaskOutcome, Panic> {
        match (entry.run, state) {
            (TaskRun::Sync(run), _) => panics::catch_call(|| run(args)),
            (TaskRun::Async(run), _) => self.actors.block_on(panics::catch(async move { run(args).await })),
            (TaskRun::OnState(OnState { run, .. }), Some(state)) => match run {
                RunOnState::Sync(run) => panics::catch_call(|| run(args, state)),
                RunOnState::Async(run) => {
                    self.actors.block_on(panics::catch(async move { run(args, state).await }))
                }
            },
            (TaskRun::OnState(_), None) => Ok(TaskOutcome::refused()),
        }
    }

    /// Runs what comes, until there is no more.
    fn serve(&self, socket: UnixStream, lane: Lane, others: Vec<Lane>, kept: &mut Kept) -> Result<(), Error> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let guard = runtime.enter();
        let connection = Connection::new(socket, Limits::default())?;
        drop(guard);
        let (at, out, waiting, unseen, has_put_down) = (0, Vec::new(), 0, 0, false);
        let mut desk =
            Desk { thread: self, kept, runtime, connection, lane, at, out, waiting, unseen, has_put_down };
        if others.is_empty() { desk.serve() } else { Lanes::new(desk, others).serve() }
    }
}

/// The task of this number.
fn entry_of(
    tasks: &HashMap<u32, Result<&'static TaskEntry, Fault>>,
    task: u32,
) -> Result<&'static TaskEntry, Fault> {
    let unknown = || Err(Fault::Refused(format!("no task has the number {task}")));
    tasks.get(&task).cloned().unwrap_or_else(unknown)
}

/// How to run a synchronous task where many follow one another.
#[derive(Clone, Copy)]
enum Quick {
    Plain(PackedRun),
    OnState(PackedRunOnState),
}

/// Where one task after the other is run.
struct Desk<'a> {
    thread: &'a Thread,
    /// What tasks borrow.
    kept: &'a mut Kept,
    /// For the socket alone: whoever waits for it wakes nobody else.
    runtime: Runtime,
    connection: Connection,
    lane: Lane,
    /// The number of the lane.
    at: u16,
    /// Results are encoded to here.
    out: Vec<u8>,
    /// Chunks that have come and wait.
    waiting: usize,
    /// Chunks that have finished since the pool could have been woken for one.
    unseen: usize,
    /// What is left of the chunk is not to be begun.
    has_put_down: bool,
}

impl Desk<'_> {
    fn serve(&mut self) -> Result<(), Error> {
        let mut tasks: HashMap<u32, Result<&'static TaskEntry, Fault>> = HashMap::new();
        // No more than the pool has sent, which bounds it.
        let mut came = VecDeque::new();
        loop {
            let envelope = match came.pop_front() {
                Some(envelope) => envelope,
                None => match self.receive()? {
                    Some(envelope) => envelope,
                    None => return Ok(()),
                },
            };
            // What has come meanwhile may say that this is not wanted any more.
            while let Some(envelope) = self.connection.drain()? {
                came.push_back(envelope);
            }
            self.waiting = came.iter().filter(|other| matches!(other.kind, Kind::Tell | Kind::Ask)).count();
            let (task, _, first) = numbers(envelope.id);
            let skipped = |came: &VecDeque<Envelope>| {
                came.iter().any(|other| other.kind == Kind::Unbind && numbers(other.id).2 == first)
            };
            let then = match envelope.kind {
                Kind::Bind => {
                    tasks.insert(task, self.named(&envelope.body)?);
                    Then::Next
                }
                Kind::Unbind => Then::Next,
                Kind::End => return Ok(()),
                Kind::Tell | Kind::Ask => {
                    let entry = entry_of(&tasks, task);
                    let alone = envelope.kind == Kind::Ask;
                    if skipped(&came) {
                        self.skip(first)?
                    } else if alone {
                        self.one(entry, first, envelope.body)?
                    } else {
                        self.row(entry, first, &envelope.body.to_bytes())?
                    }
                }
                other => return Err(Error::msg(format!("a message of kind {other:?} from the pool"))),
            };
            if matches!(then, Then::Leave) || self.thread.stopping.load(Ordering::Relaxed) {
                return Ok(());
            }
            if self.lane.take_held() && !self.give_back(&mut came)? {
                return Ok(());
            }
        }
    }

    /// What a number stands for from now on.
    fn named(&self, body: &Body) -> Result<Result<&'static TaskEntry, Fault>, Error> {
        let Named { name, place } = decode(body)?;
        let suits = |entry: &'static TaskEntry| self.kept.suits(entry).map(|()| entry);
        Ok(registry::task(&name, &place).and_then(suits))
    }

    /// Drops what the pool has taken back, once it has said so; whether there is more to come.
    fn give_back(&mut self, came: &mut VecDeque<Envelope>) -> Result<bool, Error> {
        loop {
            if let Some(at) = came.iter().position(|envelope| envelope.kind == Kind::Drain) {
                let behind = came.split_off(at);
                came.retain(|envelope| !matches!(envelope.kind, Kind::Tell | Kind::Ask));
                came.extend(behind.into_iter().skip(1));
                return Ok(true);
            }
            match self.receive()? {
                Some(envelope) => came.push_back(envelope),
                None => return Ok(false),
            }
        }
    }

    /// What comes next; nothing if this process is stopping.
    fn receive(&mut self) -> Result<Option<Envelope>, Error> {
        let received = self.runtime.block_on(self.connection.recv())?;
        if received.is_none() && !self.thread.stopping.load(Ordering::Relaxed) {
            return Err(Error::msg("the pool has hung up"));
        }
        Ok(received)
    }

    /// Says that neither this one nor those behind it in its chunk were begun.
    fn skip(&mut self, number: u32) -> Result<Then, Error> {
        self.begin(number);
        self.finish(number, SKIPPED, &[], None)?;
        Ok(Then::Next)
    }

    /// Runs tasks in a row.
    fn row(
        &mut self,
        entry: Result<&'static TaskEntry, Fault>,
        first: u32,
        bytes: &[u8],
    ) -> Result<Then, Error> {
        let (mut rest, mut number, mut begun) = (bytes, first, false);
        let borrows = entry.as_ref().is_ok_and(|entry| entry.borrows().is_some());
        while let Some(args) = row::next(&mut rest) {
            if !begun {
                self.begin_on_state(borrows, number);
            }
            let leaves = self.thread.stopping.load(Ordering::Relaxed);
            let next = (!leaves && !rest.is_empty()).then(|| number.wrapping_add(1));
            self.one_of_row(&entry, number, args, next)?;
            if leaves {
                return Ok(Then::Leave);
            }
            if self.lane.is_held() {
                break;
            }
            // After a panic the next one has to wait for its state.
            begun = !(borrows && self.kept.is_missing());
            number = number.wrapping_add(1);
            let put_down = self.has_put_down || (!begun && self.thread.put_down.load(Ordering::Relaxed));
            if put_down && !rest.is_empty() {
                return self.skip(number);
            }
        }
        Ok(Then::Next)
    }

    /// Runs one task of a row.
    #[inline]
    fn one_of_row(
        &mut self,
        entry: &Result<&'static TaskEntry, Fault>,
        number: u32,
        args: &[u8],
        next: Option<u32>,
    ) -> Result<(), Error> {
        match entry {
            Ok(TaskEntry { packed: Some(packed), .. }) => {
                self.packed(Quick::Plain(*packed), number, args, next)
            }
            Ok(TaskEntry { run: TaskRun::OnState(OnState { packed: Some(packed), .. }), .. }) => {
                self.packed(Quick::OnState(*packed), number, args, next)
            }
            entry => self.whole(entry, number, Body::from_bytes(Bytes::copy_from_slice(args)), next),
        }
    }

    /// Runs one task whose arguments are a message of their own.
    fn one(
        &mut self,
        entry: Result<&'static TaskEntry, Fault>,
        number: u32,
        args: Body,
    ) -> Result<Then, Error> {
        self.begin_on_state(entry.as_ref().is_ok_and(|entry| entry.borrows().is_some()), number);
        self.whole(&entry, number, args, None)?;
        Ok(Then::Next)
    }

    /// Runs one task whose arguments may be large.
    fn whole(
        &mut self,
        entry: &Result<&'static TaskEntry, Fault>,
        number: u32,
        args: Body,
        next: Option<u32>,
    ) -> Result<(), Error> {
        match entry {
            Ok(entry) => self.run(entry, number, args, next),
            Err(fault) => self.encoded(number, FAULT, fault, next),
        }
    }

    /// Begins a task. If the state that it borrows is missing, that is built anew before, so that no task is charged with what
    /// comes of it.
    fn begin_on_state(&mut self, borrows: bool, number: u32) {
        if borrows && self.kept.is_missing() {
            self.kept.renew(self.thread);
        }
        self.begin(number);
    }

    /// Runs a task that has begun.
    fn run(
        &mut self,
        entry: &'static TaskEntry,
        number: u32,
        args: Body,
        next: Option<u32>,
    ) -> Result<(), Error> {
        match self.thread.run(entry, args, self.kept.lend()).map(TaskOutcome::into_result) {
            Ok(Ok(body)) => self.body(number, body, next),
            Ok(Err(fault)) => self.encoded(number, FAULT, &fault, next),
            Err(panic) => self.panicked(entry.borrows().is_some(), number, &panic, next),
        }
    }

    /// A task has panicked. While the state that it had borrowed is dropped, no other one runs.
    #[cold]
    fn panicked(
        &mut self,
        borrows: bool,
        number: u32,
        panic: &Panic,
        next: Option<u32>,
    ) -> Result<(), Error> {
        self.encoded(number, PANIC, panic, next.filter(|_| !borrows))?;
        if borrows {
            self.kept.discard(self.thread);
        }
        Ok(())
    }

    #[inline]
    fn packed(&mut self, run: Quick, number: u32, args: &[u8], next: Option<u32>) -> Result<(), Error> {
        let Desk { out, kept, .. } = self;
        out.clear();
        let ran = panics::catch_call(|| match run {
            Quick::Plain(run) => run(args, out),
            Quick::OnState(run) => {
                kept.lend().map_or_else(PackedOutcome::refused, |state| run(args, out, state))
            }
        });
        match ran {
            Ok(PackedOutcome::Packed) if self.out.len() <= SMALL => {
                let next = self.after(next);
                let finished = self.lane.finish(VALUE, &self.out, next);
                // Looked at here, so that what is the rule returns at once.
                if finished == Ok(Bell::Quiet) { Ok(()) } else { self.kept_or_sent(number, finished, next) }
            }
            // Neither copied nor kept.
            Ok(PackedOutcome::Packed) => {
                let body = Body::from_bytes(std::mem::take(&mut self.out).into());
                self.send(number, VALUE, body, next)
            }
            Ok(PackedOutcome::Apart(apart)) => match *apart {
                Apart::Alone(body) => self.body(number, body, next),
                Apart::Fault(fault) => self.encoded(number, FAULT, &fault, next),
            },
            Err(panic) => self.panicked(matches!(run, Quick::OnState(_)), number, &panic, next),
        }
    }

    /// What came of keeping the result that lies in `out`.
    #[cold]
    fn kept_or_sent(&mut self, number: u32, kept: Result<Bell, NotKept>, next: Next) -> Result<(), Error> {
        match kept {
            Ok(Bell::Quiet) => Ok(()),
            Ok(Bell::Ring) => self.ring(),
            Err(NotKept::Closed(_)) => is_ended(),
            Err(NotKept::Full) => {
                let body = Body::from_bytes(Bytes::copy_from_slice(&self.out));
                self.send_then(number, VALUE, body, next)
            }
        }
    }

    /// A result in the ledger if it fits there, else by itself.
    fn body(&mut self, number: u32, body: Body, next: Option<u32>) -> Result<(), Error> {
        if body.descriptors() == 0 && body.len() <= SMALL {
            return self.finish(number, VALUE, &body.to_bytes(), next);
        }
        self.send(number, VALUE, body, next)
    }

    fn encoded<T: Serialize>(
        &mut self,
        number: u32,
        kind: u8,
        what: &T,
        next: Option<u32>,
    ) -> Result<(), Error> {
        let bytes = encode(what)?.to_bytes();
        self.finish(number, kind, &bytes, next)
    }

    fn begin(&mut self, number: u32) {
        if self.lane.begin(number).is_err() {
            is_ended();
        }
    }

    /// The task has finished, with a result that may have room in the ledger.
    #[inline]
    fn finish(&mut self, number: u32, kind: u8, result: &[u8], next: Option<u32>) -> Result<(), Error> {
        let next = self.after(next);
        match self.lane.finish(kind, result, next) {
            Ok(Bell::Quiet) => Ok(()),
            Ok(Bell::Ring) => self.ring(),
            Err(NotKept::Closed(_)) => is_ended(),
            Err(NotKept::Full) => {
                self.send_then(number, kind, Body::from_bytes(Bytes::copy_from_slice(result)), next)
            }
        }
    }

    /// What the ledger is told to come after the last task of a chunk. Where many small chunks wait, the pool is woken when as
    /// many of them have finished as are left: then it can bring more before there is nothing to do.
    #[inline]
    fn after(&mut self, next: Option<u32>) -> Next {
        if let Some(next) = next {
            if !self.thread.put_down.load(Ordering::Relaxed) {
                return Next::Runs(next);
            }
            // That it has put it down comes next, and wakes whom it has to.
            self.has_put_down = true;
            return Next::Soon;
        }
        self.unseen += 1;
        if self.unseen < self.waiting {
            return Next::Soon;
        }
        self.unseen = 0;
        Next::Idle
    }

    /// The result is with the kernel before the ledger says that there is one.
    fn send(&mut self, number: u32, kind: u8, body: Body, next: Option<u32>) -> Result<(), Error> {
        let next = self.after(next);
        self.send_then(number, kind, body, next)
    }

    fn send_then(&mut self, number: u32, kind: u8, body: Body, next: Next) -> Result<(), Error> {
        let id = id(0, self.at, number);
        let envelope = Envelope::new(kind_of(kind), TARGET, id, body);
        if let Err(error) = self.connection.queue(envelope) {
            let fault = encode(&Fault::BadAnswer(error.to_string()))?;
            self.connection.queue(Envelope::new(Kind::Fault, TARGET, id, fault))?;
        }
        self.runtime.block_on(self.connection.flush())?;
        match self.lane.finish_elsewhere(next) {
            Ok(Bell::Quiet) => Ok(()),
            // The pool may have taken the result already, and sleep over the next task.
            Ok(Bell::Ring) => self.ring(),
            Err(_) => is_ended(),
        }
    }

    /// Wakes the pool.
    #[cold]
    fn ring(&mut self) -> Result<(), Error> {
        let bell = Envelope::new(Kind::Release, TARGET, 0, Body::default());
        Ok(self.runtime.block_on(self.connection.send(bell))?)
    }
}

/// Results up to this size are copied into the ledger; larger ones are not worth the copy.
const SMALL: usize = 16 * 1024;

#[cfg(test)]
mod tests;
