//! How a program that fails says so before it leaves, without being held up by a stderr that nobody reads.
//!
//! An error is printed by a thread of its own, which is waited for as long as is bearable. A panic is printed by a hook,
//! on the thread that panicked: there another thread watches, and leaves should the hook get stuck.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::process::exit;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::program::Program;

/// How long stderr may take nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// A line that is being printed; nothing comes, but it is closed when that is done.
pub(crate) struct Saying(Receiver<()>);

/// Prints a line on stderr, and waits for that as long as is bearable.
pub(crate) fn say(line: &str) -> Saying {
    let (done, is_done) = sync_channel(1);
    let there = line.to_owned();
    let print = move || {
        eprintln!("{there}");
        drop::<SyncSender<()>>(done);
    };
    if std::thread::Builder::new().name("hatchery-last".into()).spawn(print).is_err() {
        // Where there are no threads left, to be understood is worth the wait.
        eprintln!("{line}");
    }
    let saying = Saying(is_done);
    saying.wait();
    saying
}

impl Saying {
    /// Waits once more, for a reader who comes late.
    pub(crate) fn wait(&self) {
        let _ = self.0.recv_timeout(PATIENCE);
    }
}

thread_local! {
    /// Whether this thread is in the program's main.
    static IN_MAIN: Cell<bool> = const { Cell::new(false) };
}

struct InMain;

impl Drop for InMain {
    fn drop(&mut self) {
        IN_MAIN.set(false);
    }
}

/// Runs the program's main so that its panics are known as such.
pub(crate) async fn as_main<F: Future>(main: F) -> F::Output {
    let mut main = pin!(main);
    std::future::poll_fn(|cx| {
        IN_MAIN.set(true);
        let _until_then = InMain;
        main.as_mut().poll(cx)
    })
    .await
}

/// Sees to it that a panic of main ends the program also if its hook cannot print it. A hook that user code sets later
/// takes the place of this.
pub(crate) fn watch_main(program: &Arc<Program>, runtime: &Handle) {
    let (program, runtime) = (program.clone(), runtime.clone());
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let printed = IN_MAIN.get().then(|| watch(program.clone(), runtime.clone()));
        before(info);
        drop(printed);
    }));
}

/// Watches until what this gives is dropped. Without a thread for that nobody does.
fn watch(program: Arc<Program>, runtime: Handle) -> SyncSender<()> {
    let (printed, is_printed) = sync_channel(1);
    let watch = move || {
        // A hook that takes its time for something else is not stuck.
        while is_printed.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            if !stderr_is_full() {
                continue;
            }
            // Where main's thread is the only one, nothing goes on any more: the workers end with this process.
            if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
                runtime.block_on(program.root.close());
                program.logs.flush();
                program.printer.flush();
            }
            exit(1);
        }
    };
    let _ = std::thread::Builder::new().name("hatchery-last".into()).spawn(watch);
    printed
}

/// Whether stderr has no room, and gets none for as long as is bearable.
fn stderr_is_full() -> bool {
    let stderr = std::io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let limit = Timespec::try_from(PATIENCE).ok();
    poll(&mut fds, limit.as_ref()) == Ok(0)
}
