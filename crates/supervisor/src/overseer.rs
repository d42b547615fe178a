//! A supervisor seen from any process of the tree: an actor beside each one, and the handle that asks it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use hatchery_actor::actor::{Actor, Place};
use hatchery_actor::ask::Ask;
use hatchery_actor::child::{Child, Order, Presence, Rung, Start, Started};
use hatchery_actor::context::Context;
use hatchery_actor::error::{Error, Result};
use hatchery_actor::handle::{ActorRef, lookup};
use hatchery_actor::local::Local;
use hatchery_actor::outlet::Answer;
use hatchery_actor::reply::Reply;
use hatchery_actor::root::Root;
use hatchery_actor::seat::Seat;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::errors::ChildError;
use crate::office::{Office, Shared};
use crate::snapshot::{self, Snapshot};
use crate::tree::{ChildInfo, Count, Tree};

/// The last segment of its path; no child can be called so.
const SEGMENT: &str = "/~supervisor";

/// The handle of a supervisor, in whatever process: plain data, so it may be given to any worker, and stays good when the
/// supervisor is started again. [`Tree::handle`] and [`lookup`](SupervisorHandle::lookup) make it.
///
/// What it asks are requests as any other: they wait within their deadlines, 30 s unless told otherwise, while nobody is
/// there, and a stop or a restart that takes longer goes on. A worker can ask its own supervisor so, in its `start` too.
/// New children cannot be asked for: what they are made of does not travel.
///
/// ```
/// use hatchery::prelude::*;
///
/// struct Part;
///
/// #[hatchery::actor]
/// impl Part {
///     fn start() -> Self { Part }
/// }
///
/// struct Janitor { shop: SupervisorHandle }
///
/// #[hatchery::actor]
/// impl Janitor {
///     fn start(shop: SupervisorHandle) -> Self { Janitor { shop } }
///
///     async fn renew(&self, name: String) -> hatchery::Result<()> {
///         self.shop.terminate_child(&name).await?;
///         Ok(self.shop.restart_child(&name).await?)
///     }
/// }
///
/// #[hatchery::main]
/// async fn main() -> hatchery::Result<()> {
///     let tree = Supervisor::new(Strategy::OneForOne).name("shop")
///         .child(worker::<Part>("part", ()))
///         .child(worker_with::<Janitor>("janitor", |tree| Ok(tree.handle())))
///         .start().await?;
///     tree.get::<Janitor>("janitor")?.renew("part".to_owned()).await?;
///     assert_eq!(tree.get::<Part>("part")?.incarnation(), Some(2));
///     tree.stop().await
/// }
/// ```
#[derive(Clone, Debug)]
pub struct SupervisorHandle(ActorRef);

#[derive(Serialize, Deserialize)]
#[doc(hidden)]
pub enum Message {
    Children,
    Count,
    Snapshot(Duration),
    Restart(String),
    Terminate(String),
    Delete(String),
    Stop,
}

impl SupervisorHandle {
    /// The handle of the supervisor of this path, e.g. `/shop`, or that of an actor that has one of its own
    /// ([`start_in`](crate::builder::Supervisor::start_in)).
    ///
    /// Nothing is looked for yet: if there is none of that path when it is used, its requests fail at once (`is_closed`).
    ///
    /// # Errors
    /// It is no path, or this thread belongs to no program.
    pub fn lookup(path: &str) -> Result<SupervisorHandle> {
        lookup::<Overseer>(&format!("{path}{SEGMENT}"))
    }

    /// Its place in the tree of the program.
    pub fn path(&self) -> &str {
        let path = self.0.seat().path();
        path.strip_suffix(SEGMENT).unwrap_or(path)
    }

    /// See [`Tree::children`].
    pub fn children(&self) -> Ask<Vec<ChildInfo>> {
        self.0.ask("children", &Message::Children)
    }

    /// See [`Tree::count`].
    pub fn count(&self) -> Ask<Count> {
        self.0.ask("count", &Message::Count)
    }

    /// See [`Tree::snapshot`].
    pub fn snapshot(&self) -> Ask<Snapshot, Error> {
        self.0.ask("snapshot", &Message::Snapshot(snapshot::PATIENCE))
    }

    /// The same within this time, most of which is for those below.
    pub(crate) fn snapshot_within(&self, patience: Duration) -> Ask<Snapshot, Error> {
        self.0.ask("snapshot", &Message::Snapshot(patience * 3 / 4)).timeout(patience)
    }

    /// See [`Tree::restart_child`].
    pub fn restart_child(&self, name: &str) -> Ask<(), ChildError> {
        self.0.ask("restart_child", &Message::Restart(name.to_owned()))
    }

    /// See [`Tree::terminate_child`]. An actor that has itself stopped does so with `.tell()`, or from a task.
    pub fn terminate_child(&self, name: &str) -> Ask<(), ChildError> {
        self.0.ask("terminate_child", &Message::Terminate(name.to_owned()))
    }

    /// See [`Tree::delete_child`].
    pub fn delete_child(&self, name: &str) -> Ask<(), ChildError> {
        self.0.ask("delete_child", &Message::Delete(name.to_owned()))
    }

    /// Has it stop all its children, newest first, and then itself. It answers when it has been told, not when it has
    /// ended: whoever asks may be one of those children.
    pub fn stop(&self) -> Ask<()> {
        self.0.ask("stop", &Message::Stop)
    }
}

impl From<ActorRef> for SupervisorHandle {
    fn from(reference: ActorRef) -> SupervisorHandle {
        SupervisorHandle(reference)
    }
}

impl Serialize for SupervisorHandle {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SupervisorHandle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<SupervisorHandle, D::Error> {
        ActorRef::deserialize(deserializer, <Overseer as Actor>::name()).map(SupervisorHandle)
    }
}

/// Answers for one supervisor, in its process. It waits for nothing, so that a long stop holds up no question.
#[doc(hidden)]
pub struct Overseer {
    shared: Weak<Shared>,
}

impl Actor for Overseer {
    type Args = ();
    type Message = Message;
    type Handle = SupervisorHandle;

    fn name() -> &'static str {
        "hatchery::Overseer"
    }

    fn place() -> Place {
        Place::new(file!(), line!(), column!())
    }

    async fn start((): (), _: &Context) -> Result<Overseer> {
        Err(Error::msg("it is made by its supervisor"))
    }

    async fn handle(&mut self, message: Message, asked: bool, cx: &Context) -> Answer {
        let Some(shared) = self.shared.upgrade() else {
            return Answer::Fault(crate::errors::stopping());
        };
        let tree = Tree::new(shared);
        match message {
            Message::Children => later(cx, asked, Answer::value, async move { tree.children().await }),
            Message::Count => Answer::value(asked, &tree.count()),
            Message::Snapshot(patience) => {
                // What a peer says is no reason to wait for ever.
                later(cx, asked, Answer::result, snapshot::take(tree, patience.min(snapshot::PATIENCE)))
            }
            Message::Restart(name) => {
                later(cx, asked, Answer::result, async move { tree.restart_child(&name).await })
            }
            Message::Terminate(name) => {
                // Here it is known who waits for the answer; the task below waits for nobody's handler.
                if let Err(refused) = tree.may_be_stopped(&name) {
                    return Answer::result(asked, &Err::<(), _>(refused));
                }
                later(cx, asked, Answer::result, async move { tree.terminate_child(&name).await })
            }
            Message::Delete(name) => {
                later(cx, asked, Answer::result, async move { tree.delete_child(&name).await })
            }
            Message::Stop => {
                // Beside the actor, which ends with its supervisor.
                tokio::spawn(async move { tree.stop().await });
                Answer::value(asked, &())
            }
        }
    }
}

/// Answers when the future has its value.
fn later<T: Send + 'static>(
    cx: &Context,
    asked: bool,
    encode: fn(bool, &T) -> Answer,
    value: impl Future<Output = T> + Send + 'static,
) -> Answer {
    match Reply::new(cx, asked, encode) {
        Err(answer) => answer,
        Ok(reply) => {
            cx.spawn(async move {
                // Whoever has left wants to know nothing.
                let _ = reply.send(value.await);
            });
            Answer::None
        }
    }
}

/// Where the overseer of a supervisor sits.
pub(crate) fn seat(path: &str) -> Arc<Seat> {
    Seat::new(format!("{path}{SEGMENT}"), <Overseer as Actor>::name())
}

/// The handle that reaches it.
pub(crate) fn handle(office: &Office) -> SupervisorHandle {
    SupervisorHandle(ActorRef::new(office.overseer.clone()))
}

/// Takes its seat, for the time of one run; gives who leaves it. Without a program around it there is nobody to ask.
pub(crate) async fn sit(office: &Office, shared: Weak<Shared>, incarnation: u64) -> Option<Arc<dyn Child>> {
    let root = Root::current().ok()?;
    let seat = office.overseer.clone();
    seat.reopen();
    root.directory().enter(&seat);
    let (presence, _) = Presence::new();
    let order = Order {
        seat: seat.clone(),
        incarnation,
        timeout: Duration::MAX,
        presence,
        settings: Arc::default(),
        heartbeat: hatchery_actor::heartbeat::Heartbeat::off(),
        watchdog: None,
        args: None,
    };
    let overseer = Local::with("overseer", move || Overseer { shared: shared.clone() });
    let Started { child, line } = overseer.start(order).await.ok()?;
    seat.occupy(incarnation, child.clone(), line);
    Some(child)
}

/// Leaves its seat.
pub(crate) async fn leave(overseer: Option<Arc<dyn Child>>) {
    if let Some(overseer) = overseer {
        overseer.stop(Rung::Kill);
        overseer.exited().await;
    }
}
