//! A tree at one moment: as data, and drawn.

use std::fmt;
use std::time::Duration;

use hatchery_actor::child::BoxFuture;
use hatchery_actor::error::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::overseer::SupervisorHandle;
use crate::policy::{Restart, Strategy};
use crate::supervisor::{self, Look, LookAt};
use crate::tree::{ChildState, Tree};
use crate::usage::{self, Usage};

/// A supervisor and its children at one moment. See [`Tree::snapshot`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its place, e.g. `/shop`.
    pub path: String,
    /// Who is restarted along with whom.
    pub strategy: Strategy,
    /// Since when it has been up.
    pub uptime: Duration,
    /// How often it has started a child again.
    pub restarts: u64,
    /// How many restarts more are normal before one is too many, as of now.
    pub budget: u32,
    /// How many are normal …
    pub max_restarts: u32,
    /// … within this time.
    pub within: Duration,
    /// Its children, in the order of their addition.
    pub children: Vec<ChildSnapshot>,
}

/// A child at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChildSnapshot {
    /// Its name among its siblings.
    pub name: String,
    /// Its place, e.g. `/shop/web`.
    pub path: String,
    /// The registered name of the actor, or what else it is.
    pub kind: String,
    /// After which deaths it is started again.
    pub restart: Restart,
    /// How it stands.
    pub state: ChildState,
    /// The process it lives in, if that is one of its own.
    pub pid: Option<u32>,
    /// Its latest incarnation, or the one that is being started; from 1.
    pub incarnation: u64,
    /// Since when it has been ready.
    pub uptime: Option<Duration>,
    /// How many requests wait in its mailbox, or are being handled. Of a worker: when its latest heartbeat was answered.
    pub mailbox: Option<usize>,
    /// Bytes of memory of its process that are present, shared ones included (RSS).
    pub memory: Option<u64>,
    /// Processor time that its process has used.
    pub cpu: Option<Duration>,
    /// How its latest incarnation, or its latest start, ended, in words.
    pub last: Option<String>,
    /// What is below it, if it is a supervisor, or an actor that has one
    /// ([`start_in`](crate::builder::Supervisor::start_in)) and whose process answers within a second.
    pub tree: Option<Snapshot>,
}

type Taking = BoxFuture<Result<Snapshot>>;

/// How long those below in other processes have to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// Looks at a supervisor, and at those below it; those in other processes have so long to answer.
pub(crate) fn take(tree: Tree, patience: Duration) -> Taking {
    Box::pin(async move {
        let gone = || Error::msg(format!("{} has ended: there is nothing to see", tree.path()));
        let Look { rules, since, restarts, units, children } = tree.look().await.ok_or_else(gone)?;
        let pids: Vec<_> = children.iter().map(own_process).collect();
        // Where a process is just growing or going, the kernel may take its time.
        let used = tokio::task::spawn_blocking(move || {
            pids.into_iter().map(|pid| pid.and_then(usage::of)).collect::<Vec<_>>()
        });
        let used = used.await.unwrap_or_else(|_| Vec::new());
        // All at once, since each may take its time.
        let below: Vec<_> = children.iter().map(|at| below(at, patience).map(tokio::spawn)).collect();
        let mut snapshots = Vec::with_capacity(children.len());
        for (index, (at, below)) in children.into_iter().zip(below).enumerate() {
            let used = used.get(index).copied().flatten();
            let below = match below {
                Some(below) => below.await.ok().flatten(),
                None => None,
            };
            snapshots.push(child(at, used, below));
        }
        Ok(Snapshot {
            path: tree.path().to_owned(),
            strategy: rules.strategy,
            uptime: since.elapsed(),
            restarts,
            budget: rules.intensity.max.saturating_sub(units),
            max_restarts: rules.intensity.max,
            within: rules.intensity.within,
            children: snapshots,
        })
    })
}

/// The process that a child has for itself.
fn own_process(at: &LookAt) -> Option<u32> {
    supervisor::own_process(&**at.child.as_ref()?)
}

/// What is below a child, if there can be anything.
fn below(at: &LookAt, patience: Duration) -> Option<BoxFuture<Option<Snapshot>>> {
    let child = at.child.as_ref()?;
    if let Some(tree) = at.tree.clone() {
        return Some(Box::pin(async move { take(tree, patience).await.ok() }));
    }
    // A supervisor of that very actor, wherever it lives.
    child.pid()?;
    let handle = SupervisorHandle::lookup(&at.info.path).ok()?;
    Some(Box::pin(async move { handle.snapshot_within(patience).await.ok() }))
}

fn child(at: LookAt, used: Option<Usage>, tree: Option<Snapshot>) -> ChildSnapshot {
    let pid = own_process(&at);
    // If it has ended since, what was read may be of nobody, or of another one.
    let used = used.filter(|_| pid.is_some());
    let mailbox = at.child.as_ref().and_then(|child| child.mailbox());
    ChildSnapshot {
        name: at.info.name,
        path: at.info.path,
        kind: at.actor.to_owned(),
        restart: at.info.restart,
        state: at.info.state,
        pid,
        incarnation: at.info.incarnation,
        uptime: at.ready.map(|ready| ready.elapsed()),
        mailbox: mailbox.map(|mailbox| mailbox.depth + usize::from(mailbox.running.is_some())),
        memory: used.map(|used| used.memory),
        cpu: used.map(|used| used.cpu),
        last: at.info.last,
        tree,
    }
}

impl fmt::Display for Snapshot {
    /// Draws it: one line for each, those below a supervisor beneath it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", self.path, Own(self))?;
        self.draw(f, "")
    }
}

impl Snapshot {
    fn draw(&self, f: &mut fmt::Formatter<'_>, margin: &str) -> fmt::Result {
        let width = self.children.iter().map(|child| child.name.chars().count()).max().unwrap_or(0);
        for (index, child) in self.children.iter().enumerate() {
            let is_last = index + 1 == self.children.len();
            let (branch, below) = if is_last { ("└─", "   ") } else { ("├─", "│  ") };
            write!(f, "\n{margin}{branch} {:width$}  {child}", child.name)?;
            if let Some(tree) = &child.tree {
                tree.draw(f, &format!("{margin}{below}"))?;
            }
        }
        Ok(())
    }
}

/// What there is to say of a supervisor itself.
struct Own<'a>(&'a Snapshot);

impl fmt::Display for Own<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Snapshot { strategy, uptime, restarts, budget, max_restarts, within, .. } = self.0;
        let strategy = match strategy {
            Strategy::OneForOne => "one for one",
            Strategy::OneForAll => "one for all",
            Strategy::RestForOne => "rest for one",
        };
        write!(f, "{strategy}, up {}, {restarts} restarts, ", Time(*uptime))?;
        write!(f, "{budget} of {max_restarts} left in {}", Time(*within))
    }
}

impl fmt::Display for ChildSnapshot {
    /// Draws its line, without its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            ChildState::Starting => "starting",
            ChildState::Running => "running",
            ChildState::Restarting => "restarting",
            ChildState::Stopped => "stopped",
            ChildState::GivenUp => "given up",
        };
        match &self.tree {
            Some(tree) => write!(f, "{state}, {}", Own(tree))?,
            None => f.write_str(state)?,
        }
        if let Some(pid) = self.pid {
            write!(f, ", process {pid}")?;
        }
        write!(f, ", incarnation {}", self.incarnation)?;
        if let (Some(uptime), None) = (self.uptime, &self.tree) {
            write!(f, ", up {}", Time(uptime))?;
        }
        if let Some(mailbox) = self.mailbox {
            write!(f, ", mailbox {mailbox}")?;
        }
        if let Some(memory) = self.memory {
            write!(f, ", {}.{} MiB", memory >> 20, ((memory % (1 << 20)) * 10) >> 20)?;
        }
        if let Some(cpu) = self.cpu {
            write!(f, ", {:.2} s CPU", cpu.as_secs_f64())?;
        }
        match &self.last {
            Some(last) => write!(f, "; last: {last}"),
            None => Ok(()),
        }
    }
}

/// A time as people say it.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 if self.0.subsec_nanos() > 0 => write!(f, "{} ms", self.0.as_millis()),
            0..120 => write!(f, "{seconds} s"),
            120..7200 => write!(f, "{} min", seconds / 60),
            7200..172_800 => write!(f, "{} h", seconds / 3600),
            _ => write!(f, "{} days", seconds / 86_400),
        }
    }
}
