//! What starts a worker, with a socket and a ledger of its own each time.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hatchery_actor::child::{BoxFuture, Child, Order, Shutdown, Start, Started};
use hatchery_actor::fault::Fault;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::seat::Seat;
use hatchery_actor::settings::Settings;
use hatchery_process::worker::Worker;
use hatchery_shm::{Ledger, Shape, ShapeError};
use hatchery_supervisor::spec::ChildSpec;
use hatchery_wire::{Fd, encode};

use crate::keeper;
use crate::shared::Shared;
use crate::terms::{Once, Recipe, WorkerArgs};
use crate::worker::{PoolWorker, WorkerRef};

/// Bytes of a ledger's ring: some thousand small results. More of them wait for the pool only while it does something else.
const RING: u32 = 128 * 1024;
/// Bytes of all rings of a ledger that has several, unless that leaves them smaller than [`LEAST_RING`].
const RINGS: u32 = 1 << 20;
const LEAST_RING: u32 = 4 * 1024;

/// The shape of the ledger of a worker that runs so many tasks at the same time.
fn shape(lanes: u16) -> Result<Shape, ShapeError> {
    let lanes = u32::from(lanes);
    Shape::new(lanes, (RINGS / lanes.max(1)).clamp(LEAST_RING, RING))
}

/// A worker that is there, as its pool gets it.
pub(crate) struct Arrived {
    pub(crate) socket: UnixStream,
    pub(crate) ledger: Ledger,
    pub(crate) child: Arc<dyn Child>,
    /// Which start of its place it is.
    pub(crate) start: u64,
    pub(crate) seat: Arc<Seat>,
}

/// What all workers of a pool are started with.
pub(crate) struct Postings {
    /// How many tasks each runs at the same time.
    pub(crate) lanes: u16,
    pub(crate) life: Life,
    pub(crate) settings: Settings,
    pub(crate) start_timeout: Duration,
}

impl Postings {
    /// The worker of this number.
    pub(crate) fn spec(&self, index: usize, shared: &Arc<Shared>) -> ChildSpec<Post> {
        let post = Post::new(index, shared.clone(), self.lanes, self.life.clone());
        let shutdown = Shutdown::graceful(keeper::LEAVES_WITHIN);
        let spec = ChildSpec::new(post).settings(self.settings.clone()).shutdown(shutdown);
        spec.start_timeout(self.start_timeout)
    }
}

/// A worker's place, in the supervisor of its pool.
pub(crate) struct Post {
    worker: Worker<PoolWorker>,
    index: usize,
    /// How often it was started.
    starts: AtomicU64,
    shared: Arc<Shared>,
    lanes: u16,
    life: Life,
}

/// What a worker runs besides tasks.
#[derive(Clone)]
pub(crate) struct Life {
    pub(crate) initializer: Option<Once>,
    pub(crate) state: Option<Recipe>,
    pub(crate) finaliser: Option<Once>,
}

impl Post {
    pub(crate) fn new(index: usize, shared: Arc<Shared>, lanes: u16, life: Life) -> Post {
        let worker = Worker::to_be_given(keeper::name(index));
        Post { worker, index, starts: AtomicU64::new(0), shared, lanes, life }
    }

    /// What is made for one start.
    fn made(&self) -> Result<(UnixStream, Ledger, WorkerArgs), Fault> {
        if self.shared.is_over() {
            return Err(Fault::Closed { why: "its pool is ending".to_owned() });
        }
        let refused = |error: String| Fault::Refused(format!("no ledger or socket for a worker: {error}"));
        let shape = shape(self.lanes).map_err(|error| refused(error.to_string()))?;
        let ledger = Ledger::create(shape).map_err(|error| refused(error.to_string()))?;
        let memory = ledger.share().map_err(|error| refused(error.to_string()))?;
        let (here, there) = UnixStream::pair().map_err(|error| refused(error.to_string()))?;
        let Life { initializer, state, finaliser } = self.life.clone();
        let args = WorkerArgs {
            start: self.starts.fetch_add(1, Ordering::Relaxed),
            socket: Fd::new(OwnedFd::from(there)),
            memory: Fd::new(memory),
            shape,
            initializer,
            state,
            finaliser,
        };
        Ok((here, ledger, args))
    }
}

impl Start for Post {
    type Handle = WorkerRef;

    fn name(&self) -> &str {
        self.worker.name()
    }

    fn actor(&self) -> &'static str {
        self.worker.actor()
    }

    fn check(&self) -> Result<(), Fault> {
        self.worker.check()
    }

    fn check_settings(&self, settings: &Settings) -> Result<(), Fault> {
        self.worker.check_settings(settings)
    }

    fn handle(&self, reference: ActorRef) -> WorkerRef {
        self.worker.handle(reference)
    }

    fn start(&self, mut order: Order) -> BoxFuture<Result<Started, Fault>> {
        let (index, shared, seat) = (self.index, self.shared.clone(), order.seat.clone());
        let made = self.made().and_then(|(here, ledger, args)| {
            let start = args.start;
            let args = encode(&args).map_err(|error| Fault::NotSent(error.to_string()))?;
            order.args = Some(args);
            Ok((here, ledger, start))
        });
        let starts = made.map(|made| (made, self.worker.start(order)));
        Box::pin(async move {
            let outcome = match starts {
                Ok((made, starts)) => starts.await.map(|started| (made, started)),
                Err(fault) => Err(fault),
            };
            match outcome {
                Ok(((socket, ledger, start), started)) => {
                    let child = started.child.clone();
                    shared.arrive(index, Arrived { socket, ledger, child, start, seat });
                    Ok(started)
                }
                Err(fault) => {
                    shared.start_failed(index, &fault);
                    Err(fault)
                }
            }
        })
    }
}
