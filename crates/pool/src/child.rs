//! A pool as a child of a supervisor.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hatchery_actor::ask::deadline;
use hatchery_actor::child::{BoxFuture, Order, Rung, Start, Started, Supervised};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::settings::Settings;
use hatchery_supervisor::nested::Nested;
use tokio::task::JoinHandle;

use crate::builder::PoolBuilder;
use crate::pool::Pool;
use crate::shared::Shared;

/// What starts a pool as a child of a supervisor. See [`PoolBuilder::spec`].
pub struct PoolChild {
    name: String,
    builder: Arc<PoolBuilder>,
    nested: Nested,
    shared: Arc<Shared>,
    /// Those who look after the workers of the latest incarnation.
    keepers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What seats of pools say in place of an actor's name.
const POOL: &str = "hatchery::Pool";

impl PoolChild {
    pub(crate) fn new(name: String, builder: PoolBuilder) -> PoolChild {
        let (nested, shared) = (Nested::new(name.clone(), builder.supervisor()), builder.shared());
        PoolChild { name, builder: Arc::new(builder), nested, shared, keepers: Arc::default() }
    }
}

impl Supervised for Pool {
    type Handle = Pool;

    fn kind() -> &'static str {
        POOL
    }
}

impl Start for PoolChild {
    type Handle = Pool;

    fn name(&self) -> &str {
        &self.name
    }

    fn actor(&self) -> &'static str {
        POOL
    }

    fn check(&self) -> std::result::Result<(), Fault> {
        if self.builder.name.is_some() {
            return Err(Fault::Refused(
                "a pool that is a child has the name of its spec: leave out `PoolBuilder::name`".to_owned(),
            ));
        }
        self.builder.life()?;
        self.nested.check()
    }

    fn check_settings(&self, settings: &Settings) -> std::result::Result<(), Fault> {
        if *settings == Settings::default() {
            return Ok(());
        }
        Err(Fault::Refused(
            "an environment, a directory and limits belong to the workers of a pool: write them on its builder, before \
             `spec`"
                .to_owned(),
        ))
    }

    fn gone_within(&self) -> Option<Duration> {
        self.nested.gone_within()
    }

    fn has_mailbox(&self) -> bool {
        false
    }

    fn is_process(&self) -> bool {
        false
    }

    fn handle(&self, reference: ActorRef) -> Pool {
        let tree = self.nested.handle(reference);
        Pool::new(self.shared.clone(), tree)
    }

    fn start(&self, order: Order) -> BoxFuture<std::result::Result<Started, Fault>> {
        let tree = self.nested.handle(ActorRef::new(order.seat.clone()));
        let (timeout, deadline) = (order.timeout, deadline(order.timeout));
        let starts = self.nested.start(order);
        let (builder, shared, keepers) = (self.builder.clone(), self.shared.clone(), self.keepers.clone());
        Box::pin(async move {
            shared.set_path(tree.path());
            // Those of the incarnation before have ended, or are about to: their seats are closed.
            let before = std::mem::take(&mut *keepers.lock().unwrap_or_else(PoisonError::into_inner));
            for keeper in before {
                let _ = keeper.await;
            }
            shared.begin_again();
            let mut started = Unless(Some(starts.await?));
            let begun = tokio::time::timeout_at(deadline, builder.begin(&tree, &shared)).await;
            let Some(Started { child, line }) = started.0.take() else { return Err(Fault::Stopping) };
            if let Ok(Ok(now)) = begun {
                *keepers.lock().unwrap_or_else(PoisonError::into_inner) = now;
                return Ok(Started { child, line });
            }
            child.stop(Rung::Kill);
            let exit = child.exited().await;
            Err(match begun {
                Ok(Err(error)) => Fault::StartFailed(error.to_string()),
                _ => {
                    let what = format!("its workers were not ready within {timeout:?}");
                    Fault::Late { what, exit: Box::new((*exit).clone()) }
                }
            })
        })
    }
}

/// Ends what has been started, if its start is given up.
struct Unless(Option<Started>);

impl Drop for Unless {
    fn drop(&mut self) {
        if let Some(started) = &self.0 {
            started.child.stop(Rung::Kill);
        }
    }
}
