//! Logs of workers: their `tracing` events reach the subscriber of the root.
//!
//! A root that has a subscriber when it starts a worker gets the worker's events, and those of all workers below it:
//! with their level, target, file, line, message and fields, and with these fields besides:
//!
//! | field | is |
//! |---|---|
//! | `worker.path` | the worker's place in the tree, e.g. `/shop/web` |
//! | `worker.pid` | its process id |
//! | `worker.incarnation` | which incarnation of its seat it is |
//! | `spans` | the spans that it was in there, e.g. `request{id=7}:decode{frame=3}` |
//! | `trace_id`, `span_id` | the [`TraceContext`](hatchery_actor::trace::TraceContext) of the request, if it has one |
//!
//! The worker never waits for it: what the root does not read in time is dropped and counted, and a warning of the
//! target `hatchery::logs` says how many. What was written before a worker's death is still read. An event travels in
//! 4 KiB; what is longer is cut and ends with `[…]`, and fields that do not fit are left out.
//!
//! Workers send what passes the filter of the root: the most verbose level that its subscriber takes when the worker is
//! started, or what [`set_filter`] says.
//!
//! ```no_run
//! # mod tracing_subscriber { pub fn fmt() -> Fmt { Fmt } pub struct Fmt; impl Fmt { pub fn init(self) {} } }
//! # async fn work() -> hatchery_actor::error::Result<()> { Ok(()) }
//! async fn root() -> hatchery_actor::error::Result<()> {
//!     tracing_subscriber::fmt().init();                   // in the root only: workers' events come here
//!     hatchery_process::logs::set_filter("info,my_crate=debug")?;
//!     work().await
//! }
//! ```

use hatchery_actor::error::{Error, Result};
use tracing::Subscriber;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::program::{Program, WORKER};
use crate::warden::Warden;
use crate::{filter, forward};

pub use crate::collector::Logs;

/// Says which events workers shall send, from now on: all that live and all that will, at any depth. Levels and targets
/// as in `info,my_crate=debug,other=off`; `off` for none.
///
/// It is about what travels. The root's own subscriber still sees of it only what it takes itself.
///
/// # Errors
/// The directives cannot be read, or are longer than 4 KiB; this is a worker, whose filter is its root's; the program
/// did not come through the door.
pub fn set_filter(directives: &str) -> Result<()> {
    if WORKER.get().is_some() {
        return Err(Error::msg(
            "the log filter is set in the root, for all workers, and this is one: call `set_filter` there",
        ));
    }
    filter::parse(directives)?;
    let program = Program::current()?;
    program.logs.wanted.set(directives);
    let warden =
        Warden::get().map_err(|error| Error::from(error).context("no thread to tell the workers"))?;
    warden.filter_changed();
    Ok(())
}

/// The layer that sends a worker's events to its root, for a subscriber that the worker makes itself.
///
/// A worker without a subscriber gets one of its own with this layer, after what `each_process` runs. If that installs
/// a subscriber, it has to have this layer for the root to see anything. In the root, and where no logs are wanted, the
/// layer does nothing.
///
/// ```no_run
/// # fn stderr<S: tracing::Subscriber>() -> tracing_subscriber::layer::Identity { tracing_subscriber::layer::Identity::new() }
/// use tracing_subscriber::layer::SubscriberExt;
///
/// # fn each_process() {
/// let subscriber = tracing_subscriber::registry().with(hatchery_process::logs::layer());
/// // … with whatever other layers the workers shall have.
/// let _ = tracing::subscriber::set_global_default(subscriber);
/// # }
/// ```
pub fn layer<S>() -> impl Layer<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    forward::layer()
}
