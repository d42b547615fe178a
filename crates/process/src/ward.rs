//! A child process as every thread of its parent knows it: how far it has come, and how to signal it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hatchery_actor::child::ended;
use hatchery_actor::error::Error;
use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
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
    // How far it has come; each is set once, and apart from the others, so that nobody wakes up for nothing.
    hello: watch::Sender<bool>,
    start: watch::Sender<Option<Result<(), Error>>>,
    exit: watch::Sender<Option<Arc<Exit>>>,
    /// Its standard output, where that is captured.
    stdout: Mutex<Kept>,
}

impl Ward {
    pub(crate) fn new(id: u64, pid: Pid, pidfd: Option<OwnedFd>) -> Arc<Ward> {
        Arc::new(Ward {
            id,
            pid,
            pidfd,
            reaped: Mutex::new(false),
            condemned: Mutex::new(None),
            hello: watch::Sender::new(false),
            start: watch::Sender::new(None),
            exit: watch::Sender::new(None),
            stdout: Mutex::default(),
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

    /// Sends a signal to its process group, as long as that group is certainly its own.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let reaped = self.reaped();
        // Without a pidfd somebody else has reaped it, and its number may be anybody's.
        if !*reaped && self.pidfd.is_some() && self.is_alive() {
            // It can end here and stay a zombie: the pid is its own until `reaped` is set.
            let _ = kill_process_group(self.pid, signal);
        }
        drop(reaped);
    }

    /// Sends SIGTERM to its process group, and SIGCONT so that a paused one hears it.
    pub(crate) fn terminate_group(&self) {
        self.signal_group(Signal::TERM);
        self.signal_group(Signal::CONT);
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
