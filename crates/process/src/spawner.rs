//! The one thread that starts processes.
//!
//! The parent death signal of a child comes when the *thread* that started it ends, so that thread must live as long
//! as the process; a pool thread of a runtime does not.

use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

type Job = Box<dyn FnOnce() + Send>;

static THREAD: Mutex<Option<mpsc::Sender<Job>>> = Mutex::new(None);

/// Runs a short job on the spawner thread.
///
/// # Errors
/// The thread could not be started.
pub(crate) async fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let job: Job = Box::new(move || drop(done.send(job())));
    let gone = || io::Error::other("the spawner thread is gone");
    sender()?.send(job).await.map_err(|_| gone())?;
    result.await.map_err(|_| gone())
}

fn sender() -> io::Result<mpsc::Sender<Job>> {
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = &*thread {
        return Ok(sender.clone());
    }
    let (sender, mut jobs) = mpsc::channel::<Job>(64);
    std::thread::Builder::new().name("hatchery-spawn".into()).spawn(move || {
        while let Some(job) = jobs.blocking_recv() {
            job();
        }
    })?;
    // The sender in the static keeps the thread for ever.
    *thread = Some(sender.clone());
    Ok(sender)
}
