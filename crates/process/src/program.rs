//! What this process knows of itself: who it is in the tree, and how it starts others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use hatchery_actor::error::{Error, Result};
use hatchery_actor::fault::Fault;
use hatchery_actor::root::Root;
use hatchery_actor::spin::Spin;
use hatchery_wire::{Body, decode};
use rustix::process::{Resource, getrlimit};
use serde::de::DeserializeOwned;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::calls_in::Accepted;
use crate::calls_out::CallsOut;
use crate::channel::Outgoing;
use crate::collector::Collector;
use crate::exchange::Links;
use crate::printer::Printer;
use crate::ward::Ward;

/// Workers of workers of workers …: a program that gets this deep has run away.
pub(crate) const DEEPEST: u8 = 16;

/// Channels to other processes beyond which idle ones are closed: an eighth of the descriptors there may be.
fn most_channels() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 8).unwrap_or(usize::MAX).clamp(8, 1024)
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Program>>> = const { RefCell::new(None) };
}

/// The run of this whole process, where it is one: see [`Program::settle`].
static SETTLED: OnceLock<Arc<Program>> = OnceLock::new();

/// One run of the program, seen from this process; beside the [`Root`] of the same run.
pub(crate) struct Program {
    parts: Parts,
    pub(crate) children: Mutex<BTreeMap<u64, (ActiveChild, Arc<Ward>)>>,
    /// The channels to actors of other processes.
    pub(crate) calls_out: Arc<CallsOut>,
    /// The channels over which others reach actors of this one.
    pub(crate) accepted: Accepted,
    runtime: OnceLock<Handle>,
    /// What waits until the actor of this worker has started; `None` once it has, and in a root.
    starting: Mutex<Option<Vec<Then>>>,
}

/// Something to be done later.
pub(crate) type Then = Box<dyn FnOnce() + Send>;

/// What a run is made of.
pub(crate) struct Parts {
    pub(crate) root: Arc<Root>,
    pub(crate) depth: u8,
    /// The arguments that make the executable come to this door again: none, or a test's own name.
    pub(crate) again: Vec<OsString>,
    /// Whether workers' stdout goes through the printer (in a test) or straight to ours.
    pub(crate) capture_stdout: bool,
    pub(crate) config: Body,
    /// Which variables of this process its workers inherit; all if `None`.
    pub(crate) env_only: Option<BTreeSet<OsString>>,
    /// Whether the ends of channels to workers spin, unless a worker's spec says otherwise.
    pub(crate) spin: Spin,
    pub(crate) printer: Arc<Printer>,
    pub(crate) logs: Collector,
}

impl Deref for Program {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Program {
    pub(crate) fn new(parts: Parts) -> Arc<Program> {
        Arc::new_cyclic(|program: &Weak<Program>| {
            parts.root.reach_others_by(Arc::new(Links::new(program.clone())));
            Program {
                children: Mutex::default(),
                calls_out: CallsOut::new(most_channels()),
                accepted: Accepted::default(),
                runtime: OnceLock::new(),
                starting: Mutex::new((parts.depth > 0).then(Vec::new)),
                parts,
            }
        })
    }

    /// Actors of this run are reached on this runtime.
    pub(crate) fn runs_on(&self, runtime: &Handle) {
        let _ = self.runtime.set(runtime.clone());
    }

    pub(crate) fn runtime(&self) -> Option<&Handle> {
        self.runtime.get()
    }

    /// Whether channels to actors of other processes spin.
    pub(crate) fn spin_elsewhere(&self) -> Spin {
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread => self.spin,
            _ => Spin::Off,
        }
    }

    fn starting(&self) -> MutexGuard<'_, Option<Vec<Then>>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the actor of this worker has not started yet.
    pub(crate) fn is_starting(&self) -> bool {
        self.starting().is_some()
    }

    /// Done once it has.
    pub(crate) fn when_started(&self, then: Then) {
        if let Some(waiting) = &mut *self.starting() {
            waiting.push(then);
            return;
        }
        then();
    }

    /// The actor of this worker has started.
    pub(crate) fn has_started(&self) {
        let waiting = self.starting().take();
        waiting.into_iter().flatten().for_each(|then| then());
    }

    /// Every channel of this run between processes that did not start each other.
    pub(crate) fn channels(&self) -> Vec<Arc<Outgoing>> {
        let mut channels = self.accepted.open();
        channels.extend(self.calls_out.outgoing());
        channels
    }

    pub(crate) fn current() -> Result<Arc<Program>, Fault> {
        Root::current()?;
        let current = CURRENT.with_borrow(Clone::clone).or_else(|| SETTLED.get().cloned());
        current.ok_or_else(|| {
            Fault::Refused(
                "not inside a program: start workers from `main`, a test, or a thread of their runtime"
                    .to_owned(),
            )
        })
    }

    /// Makes this run the one of every thread of the process that has no other: a process that came through the door
    /// never has a second run. (A test binary has one a test, and a test that is none of ours must not find another's.)
    pub(crate) fn settle(self: &Arc<Program>) {
        self.root.clone().settle();
        let _ = SETTLED.set(self.clone());
        self.enter();
    }

    /// The run of this whole process, where it is one.
    pub(crate) fn settled() -> Option<&'static Arc<Program>> {
        SETTLED.get()
    }

    /// Makes this run the one of this thread.
    pub(crate) fn enter(self: &Arc<Program>) {
        self.root.clone().enter();
        CURRENT.with_borrow_mut(|current| *current = Some(self.clone()));
    }

    /// The worker processes that this run has started from this process and that have not ended, oldest first.
    pub(crate) fn living(&self) -> Vec<(ActiveChild, Arc<Ward>)> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes no run the one of this thread.
    pub(crate) fn leave() {
        CURRENT.with_borrow_mut(Option::take);
        Root::exit();
    }
}

/// Who this process is, where it is a worker. A process is one worker at most, whatever runs in it.
pub(crate) static WORKER: OnceLock<Current> = OnceLock::new();

/// This process, as its tree knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) incarnation: u64,
    pub(crate) depth: u8,
    pub(crate) parent: Option<u32>,
}

impl Current {
    /// Its name, e.g. `resizer-1`; `root` in the process that the user started.
    #[doc(alias = "current_process")]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its place in the tree, e.g. `/thumbs/resizer-1`; `/` in the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Which incarnation of its seat it is, counted from 1; 0 in the root.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Whether this program started it; false in the process that the user started.
    pub fn is_worker(&self) -> bool {
        self.depth > 0
    }

    /// How many workers are above it: 0 in the root.
    pub fn depth(&self) -> u8 {
        self.depth
    }
}

/// This process.
#[doc(alias = "current_process")]
pub fn current() -> Current {
    WORKER.get().cloned().unwrap_or_else(|| Current {
        name: "root".to_owned(),
        path: "/".to_owned(),
        incarnation: 0,
        depth: 0,
        parent: None,
    })
}

/// The process id of the process that started this one, if this is a worker.
#[doc(alias = "parent_process")]
pub fn parent() -> Option<u32> {
    current().parent
}

/// The value that the program's root gave to `worker_config`.
///
/// # Errors
/// None was given, it is of another type, or this thread belongs to no program.
pub fn config<T: DeserializeOwned>() -> Result<T> {
    let program = Program::current()?;
    if program.config.is_empty() {
        return Err(Error::msg(
            "no `worker_config` was given to this program: in a `main` written by hand, say \
             `hatchery::program().worker_config(&value).run(..)`; in a test, `program = ..` names what says so",
        ));
    }
    decode(&program.config).map_err(|error| {
        let asked = std::any::type_name::<T>();
        Error::from(error)
            .context(format!("the `worker_config` of this program is no {asked}: ask for what it was given"))
    })
}

/// A worker process that this process has started and that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveChild {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) pid: u32,
}

impl ActiveChild {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Its place in the tree.
    pub fn path(&self) -> &str {
        &self.path
    }
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl std::fmt::Display for ActiveChild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.path, self.pid)
    }
}

/// The worker processes that this run has started from this process and that have not ended, oldest first. Outside
/// of a program there are none.
pub fn active_children() -> Vec<ActiveChild> {
    let Ok(program) = Program::current() else { return Vec::new() };
    program.living().into_iter().map(|(child, _)| child).collect()
}
