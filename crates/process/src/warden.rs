//! The warden: one plain thread in every process that owns its links, up and down.
//!
//! It runs no user code and waits for nothing but its poll, so it answers whatever the rest of the process does. It
//! alone reads links and writes those down, learns how children ended, reaps them, and drains what they write. When
//! the link up closes, the parent is gone: it kills its own process group at once, whatever else is going on (`exit`
//! could hang in an atexit handler).
//!
//! Up the link, whoever has something to say writes it himself, under a lock that is never held while waiting: a hop
//! to this thread would cost each start of a worker a wake-up. What the socket does not take is left to the warden.
//!
//! The end of a child, in this order, so that nothing it said is lost and its pid is never signalled after reuse:
//!
//! 1. its pidfd becomes readable: it is a zombie, its pid still its own
//! 2. if it did not leave in order, what is left of its process group is killed
//! 3. it is reaped, under the lock that every signal takes
//! 4. link, stderr and captured stdout are read until they would block (a grandchild may hold them)
//! 5. the exit is published

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hatchery_actor::exit::{Exit, Status};
use hatchery_wire::{Filled, LinkSocket};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::time::Timespec;

use crate::crossing::{Crossing, Reply};
use crate::filter;
use crate::frames::{Frame, LastWords};
use crate::program::Program;
use crate::questions::{Question, Said};
use crate::routes::Party;
use crate::ward::Ward;
use crate::watched::{Adoption, Watched};
use crate::wishes::{OnLook, OnWish, Wish, Wishes};

/// How often the link of a child that has ended is read; each read takes about two frames of the largest size.
const LAST_READS: usize = 64;
/// Ended children whose pipes something that they started still holds: with one more, the oldest one's are closed.
const HELD: usize = 128;
/// Commands that may wait for the warden; it takes them all at every wake.
const OUTBOX: usize = 65_536;
/// Answers to the parent that may wait for room in the link, in bytes.
const UNANSWERED: usize = 64 * 1024;

/// The warden of this process, as other threads see it.
pub(crate) struct Warden {
    outbox: Mutex<VecDeque<Command>>,
    poll: OwnedFd,
    bell: OwnedFd,
    next: AtomicU64,
    /// The link to this process's parent, if it is a worker.
    up: Mutex<Option<LinkSocket>>,
    /// What the parent's wishes do here.
    wishes: Mutex<Wishes>,
    /// What the heartbeats of all children are counted from.
    epoch: Instant,
    /// Whether this process has said its last words.
    last: AtomicBool,
}

thread_local! {
    /// Whether this is the warden's own thread.
    static OWN: Cell<bool> = const { Cell::new(false) };
}

pub(crate) enum Command {
    Adopt(Box<Watched>),
    /// Tells a child something.
    Tell(u64, Frame),
    /// A child has closed its channel.
    ChannelClosed(u64),
    /// Tells the children which events their logs shall have.
    FilterChanged,
    /// This process asks something of others.
    Ask(Box<(Arc<Program>, u64, Question, Reply)>),
    /// What this process answers itself has an answer.
    Answered(Party, u64, Said),
    /// It does not wait for this answer any more.
    Forget(u64),
    /// The link up did not take everything at once; the sender learns when it has.
    FlushUp(Option<SyncSender<()>>),
}

impl Warden {
    /// The warden of this process, started on first use.
    pub(crate) fn get() -> io::Result<&'static Warden> {
        static WARDEN: OnceLock<Warden> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        if let Some(warden) = WARDEN.get() {
            return Ok(warden);
        }
        let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(warden) = WARDEN.get() {
            return Ok(warden);
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, &bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        let (go, gone) = std::sync::mpsc::sync_channel::<&'static Warden>(1);
        std::thread::Builder::new().name("hatchery-warden".into()).spawn(move || {
            if let Ok(warden) = gone.recv() {
                let (children, held, acks, crossing) = Default::default();
                let (poll, bell) = (&warden.poll, &warden.bell);
                Rounds { warden, poll, bell, children, held, next: None, up_full: false, acks, crossing }
                    .walk();
            }
        })?;
        let warden = WARDEN.get_or_init(|| Warden {
            outbox: Mutex::default(),
            poll,
            bell,
            next: AtomicU64::new(1),
            up: Mutex::default(),
            wishes: Mutex::default(),
            epoch: Instant::now(),
            last: AtomicBool::new(false),
        });
        // The thread waits for exactly this one message.
        let _ = go.send(warden);
        Ok(warden)
    }

    /// A number for a new child.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Leaves a command for the thread; false if there is no room for it.
    fn post(&self, command: Command) -> bool {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer that is lost would be waited for for ever; there are no more of them than questions.
        let is_bounded = matches!(command, Command::Answered(..) | Command::Forget(_));
        if outbox.len() >= OUTBOX && !is_bounded {
            return false;
        }
        outbox.push_back(command);
        drop(outbox);
        // Fails only when the counter is full, which wakes the warden just as well.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        true
    }

    /// Hands a new child over.
    pub(crate) fn adopt(&self, adoption: Adoption) {
        let child = Watched::new(adoption, self.epoch);
        let ward = child.ward.clone();
        if !self.post(Command::Adopt(Box::new(child))) {
            ward.condemn("its parent's warden is overloaded");
            ward.set_exited(Exit::new(Status::Unknown));
        }
    }

    /// Tells a child something; false if there is no room for it.
    pub(crate) fn tell(&self, ward: &Ward, frame: Frame) -> bool {
        self.post(Command::Tell(ward.id, frame))
    }

    /// A child has closed its channel: it should be about to end, and otherwise is made to.
    pub(crate) fn channel_closed(&self, ward: &Ward) {
        if !self.post(Command::ChannelClosed(ward.id)) {
            ward.condemn("its parent's warden is overloaded");
        }
    }

    /// Asks something of the other processes of a tree; false if there is no room for it.
    pub(crate) fn ask(&self, program: Arc<Program>, number: u64, question: Question, reply: Reply) -> bool {
        self.post(Command::ask(program, number, question, reply))
    }

    /// Something that this process answers itself has an answer.
    pub(crate) fn answered(&self, to: Party, number: u64, said: Said) {
        self.post(Command::Answered(to, number, said));
    }

    /// An answer is not waited for any more.
    pub(crate) fn forget(&self, number: u64) {
        self.post(Command::Forget(number));
    }

    /// Which events are wanted has changed: tells those children that do not know the latest.
    pub(crate) fn filter_changed(&self) {
        self.post(Command::FilterChanged);
    }

    /// Takes over the link to the parent, with whatever is queued in it. It is watched from here on, without waking the
    /// thread, which may only just have begun to wait.
    pub(crate) fn link_up(&self, link: LinkSocket) {
        let up = &mut *self.up_link();
        let link = up.insert(link);
        let data = epoll::EventData::new_u64(LINK_UP);
        if epoll::add(&self.poll, link, data, epoll::EventFlags::IN).is_err() {
            die();
        }
        // A parent that has ended by now is seen by the next poll, and main's death signal was armed before: so there is
        // no moment in which its end could be missed.
    }

    /// What to do when the parent wants something, done at once for what it wants already; and what to look at when it
    /// asks how the actor gets on.
    pub(crate) fn on_wish(&self, act: OnWish, look: OnLook) {
        self.wishes().heed(act, look);
    }

    fn fulfil(&self, wish: Wish) {
        self.wishes().fulfil(wish);
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        // What runs under this lock only leaves a word with a mailbox.
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame to the parent.
    pub(crate) fn up(&self, frame: Frame) {
        if !self.write_up(frame) {
            self.post(Command::FlushUp(None));
        }
    }

    /// Says this process's last words and waits until they are written, for a second at most; the first ones count.
    pub(crate) fn last_words(&self, words: LastWords) {
        if self.last.swap(true, Ordering::Relaxed) {
            return;
        }
        // What this process has answered, or been answered, by now goes first.
        let owes = !self.outbox.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if owes && !OWN.get() {
            self.flush_up_and_wait();
        }
        if self.write_up(Frame::LastWords(words)) {
            return;
        }
        if OWN.get() {
            // It panicked itself, where panics abort: nobody else would write the rest.
            return;
        }
        self.flush_up_and_wait();
    }

    /// Waits until all that was left for the thread is done and written, for a second at most.
    fn flush_up_and_wait(&self) {
        let (done, is_done) = std::sync::mpsc::sync_channel(1);
        if self.post(Command::FlushUp(Some(done))) {
            let _ = is_done.recv_timeout(Duration::from_secs(1));
        }
    }

    /// Whether everything up to this frame is with the kernel, or never will be.
    fn write_up(&self, frame: Frame) -> bool {
        let mut up = self.up_link();
        let (Some(link), Ok(frame)) = (&mut *up, frame.pack()) else { return true };
        // A write that fails is followed by the link's end, which is acted upon there.
        link.queue(frame).is_err() || link.flush().unwrap_or(true)
    }

    fn up_link(&self) -> MutexGuard<'_, Option<LinkSocket>> {
        // No foreign code runs under this lock, and nothing under it waits.
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The warden's thread.
pub(crate) struct Rounds {
    pub(crate) warden: &'static Warden,
    poll: &'static OwnedFd,
    bell: &'static OwnedFd,
    pub(crate) children: BTreeMap<u64, Watched>,
    /// Those that have ended but whose pipes are still open, oldest first.
    held: VecDeque<u64>,
    /// When the children have to be looked at, at the latest: never later than the first of them wants it. So a wake-up
    /// for something else need not ask them all.
    next: Option<Instant>,
    /// The link up takes no more for now: the poll tells when it does.
    up_full: bool,
    /// Who waits until everything to the parent is written.
    acks: Vec<SyncSender<()>>,
    /// Questions between processes.
    pub(crate) crossing: Crossing,
}

// What an event is about: a child's number and which of its descriptors, or one of our own.
const PIDFD: u64 = 0;
const LINK: u64 = 1;
const STDERR: u64 = 2;
const STDOUT: u64 = 3;
const BELL: u64 = u64::MAX;
const LINK_UP: u64 = u64::MAX - 1;

impl Rounds {
    fn walk(mut self) {
        OWN.set(true);
        // The death signal belongs to the thread that arms it, too: main armed its own at the door.
        if crate::program::WORKER.get().is_some() {
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        }
        // On the stack: a thread's first allocation costs it an arena of its own, in every worker that starts.
        let mut room = [const { MaybeUninit::uninit() }; 64];
        loop {
            let timeout = self.timeout();
            let events = match epoll::wait(self.poll, &mut room, timeout.as_ref()) {
                Ok((events, _)) => events,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    // Never seen; without a poll this process cannot keep its promises.
                    eprintln!("hatchery: the warden cannot wait for events: {error}");
                    std::process::abort();
                }
            };
            for event in events {
                match event.data.u64() {
                    BELL => {
                        let mut count = [0_u8; 8];
                        let _ = rustix::io::read(self.bell, &mut count);
                        self.commands();
                    }
                    LINK_UP => self.link_up(),
                    data => self.child_event(data / 4, data % 4),
                }
            }
            self.overdue();
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let left = self.next?.saturating_duration_since(Instant::now());
        Timespec::try_from(left.saturating_add(Duration::from_millis(1))).ok()
    }

    fn look_no_later_than(&mut self, at: Option<Instant>) {
        self.next = self.next.into_iter().chain(at).min();
    }

    /// Looks at all children, if that is due.
    fn overdue(&mut self) {
        if self.next.is_none_or(|next| Instant::now() < next) {
            return;
        }
        // Whatever has arrived by now was in time, however late this thread comes to read it.
        let owing: Vec<u64> =
            self.children.iter().filter(|(_, child)| child.owes_a_pong()).map(|(id, _)| *id).collect();
        for id in owing {
            self.link_event(id);
            self.tidy(id);
        }
        let now = Instant::now();
        self.next = None;
        for (id, child) in &mut self.children {
            child.look(now);
            write_link(self.poll, *id, child);
            self.next = self.next.into_iter().chain(child.next_look()).min();
        }
    }

    fn commands(&mut self) {
        let commands =
            std::mem::take(&mut *self.warden.outbox.lock().unwrap_or_else(PoisonError::into_inner));
        for command in commands {
            match command {
                Command::Adopt(child) => self.adopt(*child),
                Command::Tell(id, frame) => {
                    if let Some(child) = self.children.get_mut(&id) {
                        child.send(frame);
                    }
                    self.watch_link(id);
                }
                Command::ChannelClosed(id) => self.sever(id, "it closed its channel but lived on"),
                Command::FilterChanged => self.send_filters(),
                Command::Ask(asked) => {
                    let (program, number, question, reply) = *asked;
                    self.ask(&program, number, question, reply);
                }
                Command::Answered(to, number, said) => self.answered(to, number, said),
                Command::Forget(number) => self.forget(Party::Own, number),
                Command::FlushUp(ack) => {
                    self.acks.extend(ack);
                    self.flush_up();
                }
            }
        }
    }

    fn adopt(&mut self, child: Watched) {
        let id = child.ward.id;
        let add = |fd: BorrowedFd<'_>, which: u64| {
            epoll::add(self.poll, fd, epoll::EventData::new_u64(id * 4 + which), epoll::EventFlags::IN)
        };
        let fds = [
            (PIDFD, child.ward.pidfd.as_ref().map(AsFd::as_fd)),
            (LINK, child.link.as_ref().map(AsFd::as_fd)),
            (STDERR, child.err.as_ref().map(|pipe| pipe.fd.as_fd())),
            (STDOUT, child.out.as_ref().map(|pipe| pipe.fd.as_fd())),
        ];
        let watched =
            fds.into_iter().filter_map(|(which, fd)| Some(add(fd?, which))).all(|added| added.is_ok());
        if !watched {
            // Out of memory or over the limit of watches: it cannot be cared for, so it cannot live.
            child.ward.condemn("its parent has no room to watch over it");
            let _ = waitid(WaitId::Pid(child.ward.pid), WaitIdOptions::EXITED);
            *child.ward.reaped() = true;
            child.publish(Exit::new(Status::Unknown));
            return;
        }
        self.children.insert(id, child);
        self.joined(id);
        // It may have changed since the invitation was written.
        self.send_filter(id);
    }

    fn send_filters(&mut self) {
        let ids: Vec<u64> = self.children.keys().copied().collect();
        for id in ids {
            self.send_filter(id);
        }
    }

    fn send_filter(&mut self, id: u64) {
        if let Some(child) = self.children.get_mut(&id) {
            child.send_filter();
        }
        self.watch_link(id);
    }

    /// Writes what waits for a child's link, and asks to be told when the link takes the rest.
    pub(crate) fn watch_link(&mut self, id: u64) {
        if let Some(child) = self.children.get_mut(&id) {
            write_link(self.poll, id, child);
        }
    }

    fn child_event(&mut self, id: u64, which: u64) {
        let Some(child) = self.children.get_mut(&id) else { return };
        match which {
            PIDFD => self.end(id),
            LINK => self.link_event(id),
            STDERR => child.read_stderr(4),
            _ => child.read_stdout(4),
        }
        self.tidy(id);
    }

    /// Reads a child's link, and writes what waits for it.
    fn link_event(&mut self, id: u64) {
        let Some(child) = self.children.get_mut(&id) else { return };
        let open = child.read_link();
        let questions = std::mem::take(&mut child.questions);
        for frame in questions {
            self.cross(Party::Child(id), frame);
        }
        let Some(child) = self.children.get_mut(&id) else { return };
        if open {
            // With its hello, its heartbeat begins.
            let look = child.next_look();
            self.look_no_later_than(look);
            self.watch_link(id);
            return;
        }
        if let Some(link) = child.link.take() {
            let _ = epoll::delete(self.poll, &link);
        }
        if child.ward.exit().is_none() {
            if child.ward.pidfd.is_some() {
                self.sever(id, "it closed its link but lived on");
            } else {
                // Somebody reaped it before we could look: the link is all there was.
                self.end(id);
            }
        }
    }

    /// A child that lives has closed what should end with it.
    fn sever(&mut self, id: u64, otherwise: &'static str) {
        let Some(child) = self.children.get_mut(&id).filter(|child| child.ward.exit().is_none()) else {
            return;
        };
        child.sever(otherwise);
        let look = child.next_look();
        self.look_no_later_than(look);
    }

    /// The five steps on top of this file.
    fn end(&mut self, id: u64) {
        let Some(child) = self.children.get_mut(&id) else { return };
        let ward = child.ward.clone();
        let mut reaped = ward.reaped();
        if *reaped {
            return;
        }
        let status = match &ward.pidfd {
            Some(pidfd) => {
                let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
                match waitid(WaitId::PidFd(pidfd.as_fd()), look) {
                    Ok(Some(status)) => {
                        // Still a zombie, so the group's number is still its own.
                        if status.exit_status() != Some(0) {
                            let _ = kill_process_group(ward.pid, Signal::KILL);
                        }
                        let reap = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), reap);
                        match (status.exit_status(), status.terminating_signal()) {
                            (Some(code), _) => Status::Code(code),
                            (_, Some(signal)) => Status::Signal(signal),
                            _ => Status::Unknown,
                        }
                    }
                    // Not yet.
                    Ok(None) => return,
                    // Somebody else has waited for it, or SIGCHLD is ignored.
                    Err(_) => Status::Unknown,
                }
            }
            None => Status::Unknown,
        };
        *reaped = true;
        drop(reaped);
        if let Some(pidfd) = &ward.pidfd {
            let _ = epoll::delete(self.poll, pidfd);
        }
        // Bounded, since what it forked without executing anything may hold the link open.
        for _ in 0..LAST_READS {
            if !child.read_link() {
                break;
            }
        }
        if let Some(link) = child.link.take() {
            let _ = epoll::delete(self.poll, &link);
        }
        child.read_stderr(1024);
        child.read_stdout(1024);
        child.exit(status);
        // What it asked at last needs no answer; what it answered counts.
        let said = std::mem::take(&mut child.questions);
        for frame in said.into_iter().filter(|frame| matches!(frame, Frame::Answer(..))) {
            self.cross(Party::Child(id), frame);
        }
        self.parted(id);
    }

    /// Forgets a child of which nothing more can come, or too many of which something might.
    fn tidy(&mut self, id: u64) {
        let Some(child) = self.children.get(&id) else { return };
        if child.ward.exit().is_none() {
            return;
        }
        if child.err.is_none() && child.out.is_none() {
            self.children.remove(&id);
            self.held.retain(|held| *held != id);
        } else if !self.held.contains(&id) {
            // A helper that it started goes on writing there, perhaps for ever.
            self.held.push_back(id);
            if self.held.len() > HELD {
                let oldest = self.held.pop_front();
                oldest.and_then(|oldest| self.children.remove(&oldest));
            }
        }
    }

    fn link_up(&mut self) {
        let mut wishes = Vec::new();
        let mut crossing = Vec::new();
        let mut filter = None;
        // Looked at here, since no lock is taken under the one of the link.
        let at = self.warden.wishes().look();
        if let Some(link) = &mut *self.warden.up_link() {
            match link.fill() {
                Ok(Filled::Open) => {}
                Ok(Filled::Ended) | Err(_) => die(),
            }
            loop {
                match link.next_frame() {
                    Ok(None) => break,
                    Ok(Some(frame)) => match Frame::unpack(frame) {
                        Ok(Frame::Shutdown) => wishes.push((Wish::Stop, None)),
                        Ok(Frame::Suspend(number)) => wishes.push((Wish::Suspend, Some(number))),
                        Ok(Frame::Resume) => wishes.push((Wish::Resume, None)),
                        Ok(Frame::Ping(number)) => answer(link, Frame::Pong(number, at)),
                        Ok(Frame::LogFilter(directives)) => filter = Some(directives),
                        Ok(
                            frame @ (Frame::Question(..)
                            | Frame::Answer(..)
                            | Frame::Forget(_)
                            | Frame::Connect(..)),
                        ) => crossing.push(frame),
                        // A parent of this very program says nothing else; this one cannot be trusted.
                        Ok(_) | Err(_) => die(),
                    },
                    Err(_) => die(),
                }
            }
        }
        if let Some(directives) = filter {
            self.pass_filter(directives);
        }
        for frame in crossing {
            match (frame, Program::settled()) {
                (Frame::Connect(to, from, end), Some(program)) => {
                    // If it is for nobody here, or found no room, its other end shows that.
                    end.map(|end| self.connect(program, to, from, end));
                }
                (frame, _) => self.cross(Party::Up, frame),
            }
        }
        for (wish, number) in wishes {
            self.warden.fulfil(wish);
            if let (Some(number), Some(link)) = (number, &mut *self.warden.up_link()) {
                answer(link, Frame::Suspended(number));
            }
        }
        self.flush_up();
    }

    /// The root wants other events: of this process, and of those below.
    fn pass_filter(&mut self, directives: Arc<str>) {
        if let Some(program) = Program::settled() {
            program.logs.wanted.set(&directives);
        }
        filter::change(directives);
        self.send_filters();
    }

    fn flush_up(&mut self) {
        let mut up = self.warden.up_link();
        let Some(link) = &mut *up else { return };
        // A write that fails is followed by the link's end, which is acted upon there.
        let written = link.flush().unwrap_or(false);
        watch_room(self.poll, link, LINK_UP, &mut self.up_full);
        drop(up);
        if written {
            for ack in self.acks.drain(..) {
                let _ = ack.try_send(());
            }
        }
    }
}

/// Queues an answer for the parent. One that asks on and on and takes no answers gets none: what waits is bounded.
fn answer(link: &mut LinkSocket, frame: Frame) {
    if link.queued_bytes() < UNANSWERED {
        if let Ok(frame) = frame.pack() {
            // A write that fails is followed by the link's end, which is acted upon there.
            let _ = link.queue(frame);
        }
    }
}

/// Writes what waits for a child's link, and asks to be told when the link takes the rest.
fn write_link(poll: &OwnedFd, id: u64, child: &mut Watched) {
    let Some(link) = &mut child.link else { return };
    let _ = link.flush();
    watch_room(poll, link, id * 4 + LINK, &mut child.link_full);
}

/// Has the poll tell when a link that is full takes more, and only then.
fn watch_room(poll: &OwnedFd, link: &LinkSocket, data: u64, full: &mut bool) {
    if link.wants_write() != *full {
        *full = link.wants_write();
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, *full);
        let _ = epoll::modify(poll, link, epoll::EventData::new_u64(data), flags);
    }
}

/// The end of a worker whose parent is gone.
fn die() -> ! {
    let own = rustix::process::getpid();
    // The group this process leads, helpers that it started included; then itself, should it lead none.
    let _ = kill_process_group(own, Signal::KILL);
    let _ = rustix::process::kill_process(own, Signal::KILL);
    loop {
        std::thread::park();
    }
}
