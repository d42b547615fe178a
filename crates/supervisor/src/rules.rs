//! What a supervisor is told to go by: whom to restart when and how often, when to end by itself, and which of that
//! contradicts itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Who else is restarted when a child is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Strategy {
    /// Nobody.
    #[default]
    OneForOne,
    /// All others: they are stopped, newest first, and then all start again in order. Those that were stopped before
    /// are revived, and [`Restart::Temporary`] ones are dropped.
    OneForAll,
    /// The same with those that were added after it; those before it stay up.
    RestForOne,
}

/// After which deaths a child is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Restart {
    /// After all, also when it has left in order.
    #[default]
    Permanent,
    /// After abnormal ones. Once it has left in order, or with exit code 0, or by SIGTERM or SIGINT from outside, it
    /// stays stopped, and its spec is kept.
    Transient,
    /// After none: it is removed.
    Temporary,
}

/// How many restarts within how much time are still normal. Time in which somebody is being restarted (stopped for it, waiting,
/// starting) is not counted; that of starts and stops which were asked for is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intensity {
    /// Restarts that are allowed …
    pub max: u32,
    /// … within this time.
    pub within: Duration,
}

impl Default for Intensity {
    /// Ten in a minute.
    fn default() -> Intensity {
        Intensity { max: 10, within: Duration::from_secs(60) }
    }
}

/// How long a child that died early waits: the first time this long, each further time twice as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// After the first early death.
    pub first: Duration,
    /// Never longer than this, but for the 20 % of chance that are added or taken away at last.
    pub cap: Duration,
}

impl Default for Backoff {
    /// 100 ms to 30 s.
    fn default() -> Backoff {
        Backoff { first: Duration::from_millis(100), cap: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// How long to wait after so many early deaths in a row before this one.
    pub(crate) fn delay(self, before: u32, random: u64) -> Duration {
        let doubled = 1_u32.checked_shl(before).and_then(|times| self.first.checked_mul(times));
        let planned = doubled.unwrap_or(self.cap).min(self.cap);
        // 80 % to 120 % of it, in steps small enough.
        let share = 800_000 + u32::try_from(random % 400_001).unwrap_or(0);
        planned.saturating_mul(share) / 1_000_000
    }
}

/// Which deaths cost a unit of the intensity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CountDeaths {
    /// All that are followed by a restart.
    #[default]
    All,
    /// Of those, only the early ones: of incarnations that were ready for less than 1 s and had answered nothing, and
    /// restarts that failed.
    Early,
    /// Of those, only restarts that failed: a child that was ready costs nothing when it ends. If it ends early again and
    /// again, the [`backoff`](crate::builder::Supervisor::backoff) alone bounds how often it is started.
    FailedStarts,
}

/// What follows when a restart is one too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Exhausted {
    /// The supervisor stops everything, newest first, and ends.
    #[default]
    Escalate,
    /// That child is given up: it stays stopped, its spec is kept, and its siblings go on. What it has counted for counts no
    /// longer, so that no sibling has to pay for it.
    GiveUpChild,
    /// It is tried again all the same, after a backoff.
    KeepTrying,
}

/// Whether a supervisor ends by itself when children that are [significant](crate::spec::ChildSpec::significant) have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AutoShutdown {
    /// It does not, and no child may be significant.
    #[default]
    Never,
    /// When one of them has ended and is not started again.
    AnySignificant,
    /// When one of them has, and none of the others is active: up, starting, or about to start again.
    AllSignificant,
}

/// What kind of child it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// After which deaths it is started again.
    pub restart: Restart,
    /// Whether its end may be that of its supervisor.
    pub significant: bool,
}

impl From<Restart> for Kind {
    /// One that is not significant.
    fn from(restart: Restart) -> Kind {
        Kind { restart, significant: false }
    }
}

/// What holds for all children of a supervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Who is restarted along with whom.
    pub strategy: Strategy,
    /// How many restarts are normal.
    pub intensity: Intensity,
    /// How long early deaths wait.
    pub backoff: Backoff,
    /// Which deaths count.
    pub count_deaths: CountDeaths,
    /// What follows when they are too many.
    pub exhausted: Exhausted,
    /// Whose end is the end of all.
    pub auto_shutdown: AutoShutdown,
    /// How many children there may be, those that do not run included.
    pub max_children: Option<usize>,
    /// Whether nothing is kept that does not run, and all are stopped at the same time; one for one then.
    pub dynamic: bool,
    /// Whether the children that it begins with start all at once.
    pub start_concurrently: bool,
}

impl Rules {
    /// What contradicts itself in them, for a supervisor that begins with so many children.
    pub fn check(&self, listed: usize) -> Result<(), Contradiction> {
        let Rules { strategy, intensity, backoff, max_children, .. } = *self;
        let max = max_children.unwrap_or(usize::MAX);
        Err(if intensity.within.is_zero() {
            Contradiction::NoTime
        } else if backoff.first > backoff.cap {
            Contradiction::BackoffAboveCap(backoff)
        } else if self.dynamic && listed > 0 {
            Contradiction::DynamicListed
        } else if self.dynamic && self.auto_shutdown != AutoShutdown::Never {
            Contradiction::DynamicAutoShutdown
        } else if self.start_concurrently && strategy != Strategy::OneForOne {
            Contradiction::ConcurrentGroup(strategy)
        } else if listed > max {
            Contradiction::TooManyListed { listed, max }
        } else {
            return Ok(());
        })
    }

    /// Whether they and a child of this kind contradict each other.
    pub fn check_child(&self, kind: Kind) -> Result<(), Contradiction> {
        match kind {
            Kind { significant: false, .. } => Ok(()),
            Kind { restart: Restart::Permanent, .. } => Err(Contradiction::PermanentSignificant),
            _ if self.auto_shutdown == AutoShutdown::Never => Err(Contradiction::NeverSignificant),
            _ => Ok(()),
        }
    }
}

/// Two things that cannot be had together. Said before anything starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Contradiction {
    /// Restarts are counted over no time.
    #[error(
        "an intensity of so many restarts within no time never counts any: give it some time, or `u32::MAX` restarts if \
         there are never too many"
    )]
    NoTime,
    /// The first wait is longer than the longest.
    #[error("a backoff that begins with {:?} and never gets longer than {:?}: raise the cap", .0.first, .0.cap)]
    BackoffAboveCap(Backoff),
    /// A dynamic supervisor with children to begin with.
    #[error("a dynamic supervisor begins without children: start them with `start_child` once it runs")]
    DynamicListed,
    /// A dynamic supervisor that is to end by itself.
    #[error(
        "a dynamic supervisor does not end by itself, for none of its children is there to stay: leave `auto_shutdown` \
         out, or build it with `Supervisor::new`"
    )]
    DynamicAutoShutdown,
    /// Children that are restarted in order are to start in none.
    #[error(
        "{0:?} says that children depend on those before them, so they cannot start all at once: leave \
         `start_concurrently` out, or take `Strategy::OneForOne`"
    )]
    ConcurrentGroup(Strategy),
    /// It begins with more children than it may have.
    #[error(
        "it begins with {listed} children, and `max_children` allows {max}: allow more, or begin with fewer"
    )]
    TooManyListed {
        /// How many it begins with.
        listed: usize,
        /// How many it may have.
        max: usize,
    },
    /// Nobody waits for the end of what is always started again.
    #[error(
        "it is significant, and as `Restart::Permanent` it is always started again: make it `Transient` or `Temporary`"
    )]
    PermanentSignificant,
    /// It is significant to a supervisor that never ends by itself.
    #[error(
        "it is significant, and its supervisor never ends by itself: tell that one \
         `auto_shutdown(AutoShutdown::AnySignificant)`, or `AllSignificant`"
    )]
    NeverSignificant,
}
