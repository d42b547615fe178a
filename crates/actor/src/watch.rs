//! Ends in a seat as messages to an actor.

use std::fmt;
use std::sync::Arc;

use crate::ask::Tell;
use crate::monitor::{Down, Monitor};
use crate::tasks::Tasks;
use crate::timer::send;

/// What [`Context::monitor`](crate::context::Context::monitor) began. Dropping it changes nothing; it ends with its
/// actor.
#[derive(Clone)]
pub struct Watch {
    tasks: Arc<Tasks>,
    id: u64,
}

impl Watch {
    /// What has not been sent will not be. A message that is in the mailbox already still arrives.
    #[doc(alias = "demonitor")]
    pub fn cancel(&self) {
        self.tasks.abort(self.id);
    }

    pub(crate) fn begin(
        tasks: &Arc<Tasks>,
        mut monitor: Monitor,
        mut message: impl FnMut(Down) -> Tell + Send + 'static,
    ) -> Watch {
        let id = tasks.spawn(async move {
            loop {
                let down = (&mut monitor).await;
                let is_last = down.is_closed();
                send(message(down)).await;
                if is_last {
                    return;
                }
            }
        });
        Watch { tasks: tasks.clone(), id }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
