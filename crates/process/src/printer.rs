//! Prints what workers write, on a thread of its own, so that a full terminal or pipe never holds up a warden.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lines that may wait to be printed, 8 KiB each at most; what comes beyond is dropped and counted.
const BACKLOG: usize = 4096;

/// Where a line came from, and so where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

enum Job {
    Line(Stream, Vec<u8>),
    Flush(SyncSender<()>),
}

/// How lines are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Straight to this process's stdout and stderr.
    Plain,
    /// By `print!` and `eprint!`, which libtest captures; it does so for a thread that the test started.
    Captured,
}

/// The printer of one run.
pub(crate) struct Printer {
    mode: Mode,
    jobs: Mutex<Option<SyncSender<Job>>>,
    dropped: Arc<AtomicU64>,
}

impl Printer {
    pub(crate) fn new(mode: Mode) -> Arc<Printer> {
        Arc::new(Printer { mode, jobs: Mutex::new(None), dropped: Arc::default() })
    }

    /// Starts the thread, on first use; to be called from a thread of the run, whose capture it inherits.
    pub(crate) fn start(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_none() {
            let (sender, receiver) = sync_channel(BACKLOG);
            let (mode, dropped) = (self.mode, self.dropped.clone());
            let thread = std::thread::Builder::new().name("hatchery-print".into());
            // Without the thread, lines count as dropped: the program goes on.
            if thread.spawn(move || print(mode, &receiver, &dropped)).is_ok() {
                *jobs = Some(sender);
            }
        }
    }

    /// Takes one line, its end included; never waits.
    pub(crate) fn line(&self, stream: Stream, line: &[u8]) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.as_ref().is_some_and(|jobs| jobs.try_send(Job::Line(stream, line.to_vec())).is_ok());
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything taken so far is printed, for a second at most.
    pub(crate) fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        {
            let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(jobs) = jobs.as_ref() else { return };
            if jobs.try_send(Job::Flush(done)).is_err() {
                return;
            }
        }
        let _ = is_done.recv_timeout(Duration::from_secs(1));
    }
}

fn print(mode: Mode, jobs: &Receiver<Job>, dropped: &AtomicU64) {
    while let Ok(job) = jobs.recv() {
        let mut done = None;
        match job {
            // Nobody can be told that stdout or stderr is gone.
            Job::Line(stream, line) => drop(write(mode, stream, &line)),
            Job::Flush(flushed) => done = Some(flushed),
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let note =
                format!("[hatchery: {lost} lines of workers' output dropped, the reader is too slow]\n");
            drop(write(mode, Stream::Err, note.as_bytes()));
        }
        // Only now: whoever waits for this may end the program, and the loss has to be said before.
        if let Some(done) = done {
            let _ = done.try_send(());
        }
    }
}

fn write(mode: Mode, stream: Stream, line: &[u8]) -> std::io::Result<()> {
    match (mode, stream) {
        (Mode::Plain, Stream::Out) => std::io::stdout().write_all(line),
        (Mode::Plain, Stream::Err) => std::io::stderr().write_all(line),
        (Mode::Captured, Stream::Out) => {
            print!("{}", String::from_utf8_lossy(line));
            Ok(())
        }
        (Mode::Captured, Stream::Err) => {
            eprint!("{}", String::from_utf8_lossy(line));
            Ok(())
        }
    }
}
