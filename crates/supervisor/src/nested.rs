//! A supervisor as a child of another one, in the same process.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hatchery_actor::child::{BoxFuture, Child, NoLine, Order, Rung, Shutdown, Start, Started};
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::root::Root;

use crate::builder::Supervisor;
use crate::office::{Ending, Office, Run, Shared};
use crate::spec::ChildSpec;
use crate::supervisor::{self, Command, DO_NOT_TRY_AGAIN};
use crate::tree::Tree;

/// The name that seats of supervisors have in place of an actor's.
pub(crate) const SUPERVISOR: &str = "hatchery::Supervisor";

/// What is told to those who ask something of one as of an actor.
const TAKES_NONE: &str = "a supervisor takes no messages: use its `Tree`";

/// What [`Start`]s a supervisor as a child. See [`Supervisor::spec`].
pub struct Nested {
    name: String,
    blueprint: Arc<Supervisor>,
    /// Its place, which outlives its runs.
    shared: OnceLock<Arc<Shared>>,
}

impl Nested {
    pub(crate) fn spec(name: String, blueprint: Supervisor) -> ChildSpec<Nested> {
        ChildSpec::new(Nested::new(name, blueprint))
            .shutdown(Shutdown::infinity())
            .start_timeout(Duration::MAX)
    }

    /// The same for what stands on a supervisor.
    #[doc(hidden)]
    pub fn new(name: String, blueprint: Supervisor) -> Nested {
        Nested { name, blueprint: Arc::new(blueprint), shared: OnceLock::new() }
    }

    fn shared(&self, path: &str) -> Arc<Shared> {
        let shared = self.shared.get_or_init(|| {
            // Whatever is asked before the first run finds that there is none.
            let (run, _) = Run::new();
            Shared::new(Office::new(path.to_owned(), true, None), run)
        });
        shared.clone()
    }
}

impl Start for Nested {
    type Handle = Tree;

    fn name(&self) -> &str {
        &self.name
    }

    fn actor(&self) -> &'static str {
        SUPERVISOR
    }

    fn check(&self) -> Result<(), Fault> {
        if self.blueprint.has_name() {
            return Err(Fault::Refused(
                "a supervisor that is a child goes by the name that `spec` gives it: leave `name` out"
                    .to_owned(),
            ));
        }
        self.blueprint.check().map_err(|(name, why)| match name {
            Some(name) => Fault::Refused(format!("its child {name:?}: {}", why.fault)),
            None => why.fault,
        })
    }

    fn gone_within(&self) -> Option<Duration> {
        None
    }

    fn has_mailbox(&self) -> bool {
        false
    }

    fn is_process(&self) -> bool {
        false
    }

    fn handle(&self, reference: ActorRef) -> Tree {
        Tree::new(self.shared(reference.seat().path()))
    }

    fn start(&self, order: Order) -> BoxFuture<Result<Started, Fault>> {
        let shared = self.shared(order.seat.path());
        let blueprint = self.blueprint.clone();
        Box::pin(async move {
            if let Some(path) = shared.office.left_behind() {
                return Err(Fault::Ended { exit: Box::new(not_again(&path)), maybe_executed: false });
            }
            let (run, runner) = Run::new();
            shared.runs(run.clone());
            shared.office.reopen();
            if let Ok(root) = Root::current() {
                shared.enter(&root);
            }
            let (seat, incarnation) = (order.seat.clone(), order.incarnation);
            let office = shared.office.clone();
            let at_end = move |ending: &Ending| seat.ended(incarnation, &exit_of(ending, &office));
            supervisor::spawn(blueprint.rules(), &shared, runner, order.presence, at_end);
            let tree = Tree::new(shared);
            match tokio::time::timeout(order.timeout, blueprint.begin(&tree)).await {
                Ok(Ok(())) => Ok(Started { child: child(&tree), line: Arc::new(NoLine(TAKES_NONE)) }),
                Ok(Err(error)) => Err(Fault::StartFailed(error.to_string())),
                Err(_) => {
                    // What had begun is being stopped, and takes the time that its children have for that.
                    let exit = Box::new((*child(&tree).exited().await).clone());
                    Err(Fault::Late { what: format!("not ready within {:?}", order.timeout), exit })
                }
            }
        })
    }
}

/// How a run ended, as its own supervisor sees it.
fn exit_of(ending: &Ending, office: &Office) -> Exit {
    match (office.left_behind(), ending) {
        (Some(path), _) => not_again(&path),
        (None, Ok(_)) => Exit::orderly(),
        (None, Err(gave_up)) => {
            Exit::new(Status::Code(1)).with_failed(true).with_reason(Some(gave_up.to_string()))
        }
    }
}

/// The end of one that may not be started again.
fn not_again(left: &str) -> Exit {
    Exit::new(Status::Code(DO_NOT_TRY_AGAIN)).with_reason(Some(beside(left)))
}

/// Why it may not.
pub(crate) fn beside(left: &str) -> String {
    format!("{left} cannot be killed, and nobody may be started beside it")
}

/// The present run of a supervisor, as a child.
pub(crate) fn child(tree: &Tree) -> Arc<dyn Child> {
    Arc::new(NestedChild { run: tree.run(), office: tree.office().clone() })
}

struct NestedChild {
    run: Run,
    office: Arc<Office>,
}

impl Child for NestedChild {
    fn stop(&self, rung: Rung) {
        self.run.tell(|| match rung {
            Rung::Drain | Rung::Graceful | Rung::Term => Command::Stop,
            Rung::Kill => Command::Kill,
        });
    }

    fn pid(&self) -> Option<u32> {
        Some(std::process::id())
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        let (run, office) = (self.run.clone(), self.office.clone());
        Box::pin(async move { Arc::new(exit_of(&run.ended().await, &office)) })
    }
}
