//! Messages that an actor sends itself later, once or again and again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval_at, sleep_until};

use crate::ask::{Tell, deadline};
use crate::fault::Fault;
use crate::tasks::Tasks;

/// A message that is sent later: by [`Context::after`](crate::context::Context::after) once, by
/// [`Context::every`](crate::context::Context::every) again and again.
///
/// Dropping it changes nothing. It ends with its actor.
#[doc(alias = "cancel_timer")]
#[derive(Clone)]
pub struct Timer {
    tasks: Arc<Tasks>,
    id: u64,
}

impl Timer {
    /// What has not been sent will not be. A message that is in the mailbox already still arrives.
    pub fn cancel(&self) {
        self.tasks.abort(self.id);
    }

    /// Sends one message after so long.
    pub(crate) fn once(tasks: &Arc<Tasks>, delay: Duration, message: Tell) -> Timer {
        // From now on, not from whenever the task comes to run.
        let at = deadline(delay);
        let id = tasks.spawn_in_trace(async move {
            sleep_until(at).await;
            send(message).await;
        });
        Timer { tasks: tasks.clone(), id }
    }

    /// Sends a message each time such a period is over.
    pub(crate) fn repeated(
        tasks: &Arc<Tasks>,
        period: Duration,
        mut message: impl FnMut() -> Tell + Send + 'static,
    ) -> Timer {
        let first = deadline(period);
        let id = tasks.spawn(async move {
            let mut ticks = interval_at(first, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                send(message()).await;
            }
        });
        Timer { tasks: tasks.clone(), id }
    }
}

/// Waits for room in the window, which is what keeps a timer from running ahead of its actor.
///
/// # Panics
/// The message cannot travel: it never will, and the actor ends with this as its reason.
pub(crate) async fn send(message: Tell) {
    if let Err(error) = message.without_deadline().await {
        // An actor that is stopping, or gone, needs no message any more.
        assert!(!matches!(error.fault(), Some(Fault::NotSent(_))), "a message of a timer: {error}");
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}
