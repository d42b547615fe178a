//! Hearing Ctrl-C and SIGTERM, without making the program deaf to them afterwards.
//!
//! Once anybody has asked tokio for a signal, the signal no longer ends the process, for the rest of its life. So a
//! listener that goes leaves its ears behind: what is heard while nobody listens ends the program, as it would have
//! without us.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

static LISTENERS: AtomicUsize = AtomicUsize::new(0);

/// Somebody who listens to Ctrl-C and SIGTERM.
pub(crate) struct Listener {
    ears: Option<Ears>,
}

struct Ears {
    interrupt: Signal,
    terminate: Signal,
}

impl Listener {
    pub(crate) fn new() -> io::Result<Listener> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        LISTENERS.fetch_add(1, Ordering::SeqCst);
        Ok(Listener { ears: Some(Ears { interrupt, terminate }) })
    }

    /// Resolves at the next signal; gives its number.
    pub(crate) async fn hear(&mut self) -> i32 {
        match &mut self.ears {
            Some(ears) => ears.hear().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        LISTENERS.fetch_sub(1, Ordering::SeqCst);
        // Without a runtime the program is ending anyway.
        if let (Some(mut ears), Ok(runtime)) = (self.ears.take(), Handle::try_current()) {
            runtime.spawn(async move {
                loop {
                    let number = ears.hear().await;
                    if LISTENERS.load(Ordering::SeqCst) == 0 {
                        std::process::exit(128 + number);
                    }
                }
            });
        }
    }
}

impl Ears {
    async fn hear(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
        }
    }
}
