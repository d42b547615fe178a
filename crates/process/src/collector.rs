//! Reads the logs of workers, on a thread of its own for each run: in the root they become events of its subscriber,
//! which is foreign code and may block or panic; in a worker they go on up as they are.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hatchery_actor::panics;
use hatchery_wire::{LOG_RECORD, LogField, LogHead, read_log_record, whole_log_record};
use rustix::event::{EventfdFlags, epoll, eventfd};
use tracing::dispatcher::{self, WeakDispatch};
use tracing::subscriber::NoSubscriber;

use crate::filter::Wanted;
use crate::{callsites, forward};

/// Room for the events of one worker that nobody has read yet: some 1,500.
const PIPE: usize = 256 * 1024;
/// Bytes read from one worker before others have their turn.
const TURN: usize = 64 * 1024;
/// How long the end of a program waits for what workers have logged.
const PATIENCE: Duration = Duration::from_secs(2);
/// The bell's number; streams are counted from 1.
const BELL: u64 = 0;

/// Whether `tracing` events of workers reach the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Logs {
    /// They do, if the root has a subscriber when the worker is started.
    #[default]
    Forward,
    /// They do not; a worker can have a subscriber of its own.
    Off,
}

/// The logs of one run.
pub(crate) struct Collector {
    logs: Logs,
    /// Which events are wanted of the workers of this run.
    pub(crate) wanted: Arc<Wanted>,
    /// The subscriber that was seen last on a thread of the run.
    dispatch: Mutex<Option<WeakDispatch>>,
    inbox: Mutex<Option<Arc<Inbox>>>,
}

/// What the thread is told.
struct Inbox {
    bell: OwnedFd,
    state: Mutex<Orders>,
}

#[derive(Default)]
struct Orders {
    streams: Vec<Stream>,
    flush: Vec<SyncSender<()>>,
    over: bool,
}

/// Where the events of a worker go.
#[derive(Clone)]
pub(crate) struct Sink(Option<WeakDispatch>);

/// The log of one worker, and of those below it.
struct Stream {
    pipe: OwnedFd,
    path: String,
    sink: Sink,
    /// A record that was not all there yet.
    rest: Vec<u8>,
}

/// The pipe for the log of one worker.
///
/// # Errors
/// No descriptors are left.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Over what the system allows a user altogether, it keeps its usual size.
    let _ = fcntl_setpipe_size(&write, PIPE);
    Ok((read, write))
}

impl Collector {
    pub(crate) fn new(logs: Logs) -> Collector {
        Collector { logs, wanted: Arc::default(), dispatch: Mutex::default(), inbox: Mutex::default() }
    }

    /// Whether, and where, the events of a worker about to be started should go. To be called from a thread of the
    /// run: it looks at its subscriber, and starts the thread, which inherits what captures the output of a test.
    pub(crate) fn sink(&self) -> Option<Sink> {
        let sink = if forward::is_wanted() { Some(Sink(None)) } else { self.own_subscriber() };
        sink.filter(|_| self.start().is_ok())
    }

    fn own_subscriber(&self) -> Option<Sink> {
        if self.logs == Logs::Off || !dispatcher::has_been_set() {
            return None;
        }
        let here = dispatcher::get_default(|dispatch| {
            // Weak: a test may have its subscriber for a part of it.
            (!dispatch.is::<NoSubscriber>()).then(|| dispatch.downgrade())
        });
        let mut latest = self.dispatch.lock().unwrap_or_else(PoisonError::into_inner);
        if here.is_some() {
            latest.clone_from(&here);
        }
        latest.clone().map(|dispatch| Sink(Some(dispatch)))
    }

    /// Starts the thread, once.
    fn start(&self) -> io::Result<()> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.is_some() {
            return Ok(());
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, &bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        let new = Arc::new(Inbox { bell, state: Mutex::default() });
        let reader =
            Reader { inbox: new.clone(), poll, streams: BTreeMap::new(), next: BELL + 1, buffer: Vec::new() };
        std::thread::Builder::new().name("hatchery-logs".into()).spawn(move || reader.read())?;
        *inbox = Some(new);
        Ok(())
    }

    /// Takes over the reading end of a worker that has been started.
    pub(crate) fn adopt(&self, pipe: OwnedFd, path: &str, sink: Sink) {
        let stream = Stream { pipe, path: path.to_owned(), sink, rest: Vec::new() };
        self.with(|orders| orders.streams.push(stream));
    }

    /// Waits until what workers have logged so far has been passed on, for two seconds at most.
    pub(crate) fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.with(|orders| orders.flush.push(done)) {
            let _ = is_done.recv_timeout(PATIENCE);
        }
    }

    /// Leaves orders, if there is a thread to take them.
    fn with(&self, order: impl FnOnce(&mut Orders)) -> bool {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inbox) = &*inbox else { return false };
        order(&mut inbox.orders());
        // Fails only when the counter is full, which wakes the thread just as well.
        let _ = rustix::io::write(&inbox.bell, &1_u64.to_ne_bytes());
        true
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.with(|orders| orders.over = true);
    }
}

impl Inbox {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread.
struct Reader {
    inbox: Arc<Inbox>,
    poll: OwnedFd,
    streams: BTreeMap<u64, Stream>,
    next: u64,
    /// What is read goes here first.
    buffer: Vec<u8>,
}

impl Reader {
    fn read(mut self) {
        let mut room = [const { MaybeUninit::uninit() }; 64];
        loop {
            let mut ready: Vec<u64> = match epoll::wait(&self.poll, &mut room, None) {
                Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
                Err(rustix::io::Errno::INTR) => continue,
                // Never seen; without a poll there are no logs, which ends nothing else.
                Err(_) => return,
            };
            if ready.contains(&BELL) {
                let mut count = [0_u8; 8];
                let _ = rustix::io::read(&self.inbox.bell, &mut count);
                let Orders { streams, flush, over } = std::mem::take(&mut *self.inbox.orders());
                if over {
                    return;
                }
                streams.into_iter().for_each(|stream| self.add(stream));
                if !flush.is_empty() {
                    self.read_all();
                    for done in flush {
                        let _ = done.try_send(());
                    }
                }
            }
            ready.retain(|id| *id != BELL);
            for id in ready {
                self.turn(id);
            }
        }
    }

    fn add(&mut self, stream: Stream) {
        let id = self.next;
        self.next += 1;
        // Out of memory, or over the limit of watches: this worker goes without.
        if epoll::add(&self.poll, &stream.pipe, epoll::EventData::new_u64(id), epoll::EventFlags::IN).is_ok()
        {
            self.streams.insert(id, stream);
        }
    }

    /// Reads what there is, of each no more than its pipe can hold: one that goes on logging must not hold this up.
    fn read_all(&mut self) {
        let ids: Vec<u64> = self.streams.keys().copied().collect();
        for id in ids {
            for _ in 0..=PIPE / TURN {
                if !self.turn(id) {
                    break;
                }
            }
        }
    }

    /// One worker's turn; whether there may be more.
    fn turn(&mut self, id: u64) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        if let Some(more) = stream.turn(&mut self.buffer) {
            return more;
        }
        if let Some(stream) = self.streams.remove(&id) {
            let _ = epoll::delete(&self.poll, &stream.pipe);
        }
        false
    }
}

impl Stream {
    /// Reads once; whether there may be more, `None` when nothing will come.
    fn turn(&mut self, buffer: &mut Vec<u8>) -> Option<bool> {
        let before = self.rest.len();
        buffer.resize(LOG_RECORD + TURN, 0);
        buffer[..before].copy_from_slice(&self.rest);
        let read = rustix::io::read(&self.pipe, &mut buffer[before..before + TURN]);
        let bytes = &buffer[..before + read.unwrap_or(0)];
        match read {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Some(true),
            Err(rustix::io::Errno::AGAIN) => return Some(false),
            Err(_) => return None,
        }
        let taken = match self.take(bytes) {
            Ok(taken) => taken,
            Err(why) => {
                let path = self.path.clone();
                self.sink.note(move || {
                    tracing::warn!(
                        target: "hatchery::logs",
                        { worker.path = path },
                        "the log of {path} is broken and is read no further: {why}"
                    );
                });
                return None;
            }
        };
        // Less than a record, or it would have been taken or refused.
        self.rest.clear();
        self.rest.extend_from_slice(&bytes[taken..]);
        Some(true)
    }

    /// Passes on all whole records of these bytes; gives how many bytes they had.
    fn take(&self, bytes: &[u8]) -> Result<usize, String> {
        let mut taken = 0;
        let mut passed = 0;
        while let Some(length) = whole_log_record(&bytes[taken..]).map_err(|error| error.to_string())? {
            let record = &bytes[taken..taken + length];
            let (head, fields) = read_log_record(record).map_err(|error| error.to_string())?;
            if !self.speaks_for(head.path) {
                return Err(format!("it speaks for {:?}", head.path));
            }
            match &self.sink.0 {
                Some(dispatch) => deliver(dispatch, &head, &fields),
                // Several at a time, as many as are sure to be taken whole.
                None if taken + length - passed > LOG_RECORD => {
                    pass_on(&bytes[passed..taken])?;
                    passed = taken;
                }
                None => {}
            }
            taken += length;
        }
        if self.sink.0.is_none() && passed < taken {
            pass_on(&bytes[passed..taken])?;
        }
        Ok(taken)
    }

    /// Whether this path is the worker's or one below it. A very long one may have been cut.
    fn speaks_for(&self, path: &str) -> bool {
        let own = self.path.get(..512).unwrap_or(&self.path);
        path.strip_prefix(own)
            .is_some_and(|rest| own.len() < self.path.len() || rest.is_empty() || rest.starts_with('/'))
    }
}

impl Sink {
    /// Runs what logs something about a worker's log.
    fn note(&self, f: impl FnOnce()) {
        let note = || match self.0.as_ref().and_then(WeakDispatch::upgrade) {
            Some(dispatch) => dispatcher::with_default(&dispatch, f),
            None => f(),
        };
        // A subscriber that panics has had its panic printed.
        let _ = panics::catch_call(note);
    }
}

fn pass_on(records: &[u8]) -> Result<(), String> {
    forward::pass_on(records).then_some(()).ok_or_else(|| "nobody above reads it".to_owned())
}

/// Hands a worker's event to the subscriber of this run.
fn deliver(dispatch: &WeakDispatch, head: &LogHead<'_>, fields: &[LogField<'_>]) {
    // It is gone when a test has dropped its own: then nobody wants the rest.
    let Some(dispatch) = dispatch.upgrade() else { return };
    // A subscriber that panics has had its panic printed, and goes on with the next event as it can.
    let _ = panics::catch_call(|| {
        if head.lost > 0 {
            dispatcher::with_default(&dispatch, || {
                tracing::warn!(
                    target: "hatchery::logs",
                    lost = head.lost,
                    worker.path = head.path,
                    worker.pid = head.pid,
                    worker.incarnation = head.incarnation,
                    "{} log events of {} lost",
                    head.lost,
                    head.path,
                );
            });
        }
        // One without a target tells of lost ones only.
        if !head.target.is_empty() {
            callsites::emit(&dispatch, head, fields);
        }
    });
}
