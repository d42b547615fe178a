//! A child process as every thread of its parent knows it: how far it has come, and how to signal it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use hatchery_actor::child::ended;
use hatchery_actor::error::Error;
use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::watchdog::MailboxInfo;
use rustix::process::{Pid, Signal, kill_process_group, pidfd_send_signal};
use rustix::time::Timespec;
use tokio::sync::watch;

use crate::outputs::Kept;

/// What other threads know of a child, and do to it.
pub(crate) struct Ward {
    pub(crate) id: u64,
    pub(crate) pid: Pid,
    pub(crate) pidfd: Option<OwnedFd>,
    /// Whether its pid may belong to another process by now. Held while signalling and while reaping.
    reaped: Mutex<bool>,
    /// Why this side ended it, if it did.
    condemned: Mutex<Option<String>>,
    /// Whether it has been asked to end, in order or by a signal.
    stopping: AtomicBool,
    /// Whether it stands still by SIGSTOP because this side wants it to. Held while signalling, so that the word and
    /// the signal always agree.
    paused: Mutex<bool>,
    suspension: Mutex<Suspension>,
    // How far it has come; each is set once, and apart from the others, so that nobody wakes up for nothing.
    hello: watch::Sender<bool>,
    start: watch::Sender<Option<Result<(), Error>>>,
    exit: watch::Sender<Option<Arc<Exit>>>,
    /// Its standard output, where that is captured.
    stdout: Mutex<Kept>,
    /// What it said at last of its actor's mailbox.
    mailbox: Mutex<Option<MailboxInfo>>,
    /// The last suspension that it said it heeds.
    suspended: watch::Sender<u64>,
}

/// Whether its mailbox shall begin nothing new. Held while telling it, so that the word and the frames always agree.
#[derive(Default)]
struct Suspension {
    asked: u64,
    on: bool,
}

impl Ward {
    pub(crate) fn new(id: u64, pid: Pid, pidfd: Option<OwnedFd>) -> Arc<Ward> {
        Arc::new(Ward {
            id,
            pid,
            pidfd,
            reaped: Mutex::new(false),
            condemned: Mutex::new(None),
            stopping: AtomicBool::new(false),
            paused: Mutex::new(false),
            suspension: Mutex::default(),
            hello: watch::Sender::new(false),
            start: watch::Sender::new(None),
            exit: watch::Sender::new(None),
            stdout: Mutex::default(),
            mailbox: Mutex::default(),
            suspended: watch::Sender::new(0),
        })
    }

    /// Its process id, as the standard library writes it.
    pub(crate) fn pid_number(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Resolves when it has said hello (true) or has ended without (false).
    pub(crate) async fn greeted(&self) -> bool {
        let mut hello = self.hello.subscribe();
        tokio::select! {
            biased;
            // Waiting fails only when the sender is gone, and that lives in `self`.
            Ok(_) = hello.wait_for(|hello| *hello) => true,
            _ = self.exited() => false,
        }
    }

    /// Resolves when it is ready, has said why its start failed, or has ended without either (`None`).
    pub(crate) async fn started(&self) -> Option<Result<(), Error>> {
        let mut start = self.start.subscribe();
        tokio::select! {
            biased;
            Ok(start) = start.wait_for(Option::is_some) => start.clone(),
            _ = self.exited() => None,
        }
    }

    /// Resolves when it has ended and been reaped.
    pub(crate) async fn exited(&self) -> Arc<Exit> {
        ended(self.exit.subscribe()).await
    }

    pub(crate) fn set_greeted(&self) {
        self.hello.send_replace(true);
    }

    pub(crate) fn set_exited(&self, exit: Exit) {
        self.exit.send_replace(Some(Arc::new(exit)));
    }

    /// Keeps a line of its standard output.
    pub(crate) fn keep(&self, line: &[u8]) {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// The last lines of its standard output that were kept, so many at most.
    pub(crate) fn kept(&self, lines: usize) -> Vec<String> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner).last(lines)
    }

    /// All that are kept.
    pub(crate) fn all_kept(&self) -> Vec<String> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner).all()
    }

    /// Why this side ended it, if it did.
    pub(crate) fn reason(&self) -> Option<String> {
        self.condemned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is about to be asked to end.
    pub(crate) fn note_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether it has been asked to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Sets how its start went, once; false if that was known.
    pub(crate) fn set_started(&self, start: Result<(), Error>) -> bool {
        self.start.send_if_modified(|now| {
            let first = now.is_none();
            now.get_or_insert(start);
            first
        })
    }

    /// Why its start failed, if it said so.
    pub(crate) fn start_failure(&self) -> Option<Fault> {
        match &*self.start.borrow() {
            Some(Err(error)) => Some(Fault::StartFailed(error.to_string())),
            _ => None,
        }
    }

    pub(crate) fn has_said_hello(&self) -> bool {
        *self.hello.borrow()
    }

    pub(crate) fn exit(&self) -> Option<Arc<Exit>> {
        self.exit.borrow().clone()
    }

    pub(crate) fn reaped(&self) -> MutexGuard<'_, bool> {
        self.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it runs (or is stopped), asked of the kernel here and now.
    pub(crate) fn is_alive(&self) -> bool {
        self.pidfd.as_ref().map_or_else(|| self.exit().is_none(), |pidfd| !readable(pidfd.as_fd()))
    }

    /// Sends a signal to the process alone. To one that has ended, nothing is sent.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.pidfd {
            Some(pidfd) => match pidfd_send_signal(pidfd, signal) {
                Err(rustix::io::Errno::SRCH) => Ok(()),
                other => Ok(other?),
            },
            None => Ok(()),
        }
    }

    /// Sends a signal to its process group, as long as that group is certainly its own; whether it was.
    pub(crate) fn signal_group(&self, signal: Signal) -> bool {
        let reaped = self.reaped();
        // Without a pidfd somebody else has reaped it, and its number may be anybody's.
        let own = !*reaped && self.pidfd.is_some() && self.is_alive();
        if own {
            // It can end here and stay a zombie: the pid is its own until `reaped` is set.
            let _ = kill_process_group(self.pid, signal);
        }
        drop(reaped);
        own
    }

    /// Sends SIGTERM to its process group, and SIGCONT so that a paused one hears it.
    pub(crate) fn terminate_group(&self) {
        self.signal_group(Signal::TERM);
        self.go_on_group();
    }

    fn paused(&self) -> MutexGuard<'_, bool> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it stand still: SIGSTOP to the process alone.
    pub(crate) fn pause(&self) -> io::Result<()> {
        let mut paused = self.paused();
        self.signal(Signal::STOP)?;
        *paused = true;
        Ok(())
    }

    /// The end of [`pause`](Ward::pause).
    pub(crate) fn go_on(&self) -> io::Result<()> {
        let mut paused = self.paused();
        self.signal(Signal::CONT)?;
        *paused = false;
        Ok(())
    }

    /// Has it stand still: SIGSTOP to its group. False if it has ended.
    pub(crate) fn pause_group(&self) -> bool {
        let mut paused = self.paused();
        *paused = self.signal_group(Signal::STOP);
        *paused
    }

    /// The end of [`pause_group`](Ward::pause_group).
    pub(crate) fn go_on_group(&self) {
        let mut paused = self.paused();
        self.signal_group(Signal::CONT);
        *paused = false;
    }

    /// Whether it stands still because this side wants it to.
    pub(crate) fn is_paused(&self) -> bool {
        *self.paused()
    }

    /// The same for the warden, which waits for nobody: while that changes, it counts as paused.
    pub(crate) fn may_be_paused(&self) -> bool {
        match self.paused.try_lock() {
            Ok(paused) => *paused,
            Err(TryLockError::Poisoned(paused)) => *paused.into_inner(),
            Err(TryLockError::WouldBlock) => true,
        }
    }

    fn suspension(&self) -> MutexGuard<'_, Suspension> {
        self.suspension.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a suspension of its mailbox; `tell` passes it on, and says whether it could. Gives the suspension's number.
    pub(crate) fn suspend(&self, tell: impl FnOnce(u64) -> bool) -> Option<u64> {
        let mut suspension = self.suspension();
        suspension.asked += 1;
        let told = tell(suspension.asked);
        suspension.on |= told;
        told.then_some(suspension.asked)
    }

    /// Ends the suspension of its mailbox, if there is one.
    pub(crate) fn unsuspend(&self, tell: impl FnOnce() -> bool) -> bool {
        let mut suspension = self.suspension();
        suspension.on = suspension.on && !tell();
        !suspension.on
    }

    /// Whether its mailbox is suspended, or about to be.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspension().on
    }

    /// The same for the warden, which waits for nobody: while that changes, it counts as suspended.
    pub(crate) fn may_be_suspended(&self) -> bool {
        match self.suspension.try_lock() {
            Ok(suspension) => suspension.on,
            Err(TryLockError::Poisoned(suspension)) => suspension.into_inner().on,
            Err(TryLockError::WouldBlock) => true,
        }
    }

    /// What it said at last of its actor's mailbox.
    pub(crate) fn mailbox(&self) -> Option<MailboxInfo> {
        *self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_mailbox(&self, info: MailboxInfo) {
        *self.mailbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(info);
    }

    /// It said that it heeds this suspension.
    ///
    /// # Errors
    /// There never was such a suspension.
    pub(crate) fn set_suspended(&self, number: u64) -> Result<(), String> {
        let asked = self.suspension().asked;
        if !(1..=asked).contains(&number) {
            return Err(format!("it heeds suspension {number}, of {asked} that were asked for"));
        }
        self.suspended.send_if_modified(|heeded| number > std::mem::replace(heeded, number.max(*heeded)));
        Ok(())
    }

    /// Resolves when it has said that it heeds this suspension (true) or has ended (false).
    pub(crate) async fn heeds(&self, number: u64) -> bool {
        let mut suspended = self.suspended.subscribe();
        tokio::select! {
            biased;
            Ok(_) = suspended.wait_for(|heeded| *heeded >= number) => true,
            _ = self.exited() => false,
        }
    }

    /// Ends it, for a reason that its exit will tell.
    pub(crate) fn condemn(&self, reason: impl Into<String>) {
        self.condemned.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.into());
        let _ = self.signal(Signal::KILL);
        self.signal_group(Signal::KILL);
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}
