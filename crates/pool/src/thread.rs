//! What the thread that runs tasks knows of the rest of its process.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hatchery_actor::context::Context;
use hatchery_actor::error::Error;
use tokio::runtime::Handle;

/// What the thread that runs tasks knows of the rest of its process.
#[derive(Clone)]
pub(crate) struct Thread {
    /// Where asynchronous tasks run, and what they ask.
    pub(crate) actors: Handle,
    /// The actor that stands for this process, which ends with it.
    pub(crate) actor: Context,
    pub(crate) stopping: Arc<AtomicBool>,
}

impl Thread {
    /// Ends the process, whose exit then says why.
    pub(crate) fn end(&self, why: &Error) {
        complain(why);
        self.actor.crash(why.to_string());
    }
}

/// To standard error, which the pool's process prints.
pub(crate) fn complain(error: &Error) {
    eprintln!("{}: {error}", hatchery_process::program::current().path());
}

/// This process has been told to end, and is about to be gone.
pub(crate) fn is_ended() -> ! {
    loop {
        std::thread::park();
    }
}
