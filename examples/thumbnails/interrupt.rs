//! Hears Ctrl-C and SIGTERM from the program's start to its end.
//!
//! `tree.run_until_signal()` does that for as long as a tree runs. Here there is something to tidy up before and after
//! as well, and a pool to be ended, so the program listens itself.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const STOPPED: &str = "stopped before all was done";

/// Whether the user wants the program to end.
#[derive(Clone)]
pub(crate) struct Interrupt {
    heard: watch::Receiver<bool>,
}

impl Interrupt {
    /// Listens from now on. A second signal changes nothing: the way out is short, a picture or so.
    pub(crate) fn listen() -> io::Result<Interrupt> {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (sender, heard) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            sender.send_replace(true);
        });
        Ok(Interrupt { heard })
    }

    /// An error once a signal has come: for work that blocks to look at now and then.
    pub(crate) fn check(&self) -> Result<(), String> {
        if *self.heard.borrow() { Err(STOPPED.into()) } else { Ok(()) }
    }

    /// Resolves when a signal comes, with the error that says so.
    pub(crate) async fn heard(&self) -> hatchery::Error {
        if self.heard.clone().wait_for(|heard| *heard).await.is_err() {
            // The listener ends unheard with the runtime alone.
            std::future::pending::<()>().await;
        }
        hatchery::Error::msg(STOPPED)
    }
}
