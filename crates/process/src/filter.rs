//! Which events of a worker are worth forwarding: what its root said last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use hatchery_actor::error::{Error, Result};
use tracing::metadata::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, callsite};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Filter};

/// The directives travel in one small frame.
const LONGEST: usize = 4 * 1024;

/// Reads directives, such as `info,my_crate=debug`.
///
/// # Errors
/// They are no directives, or longer than 4 KiB.
pub(crate) fn parse(directives: &str) -> Result<Targets> {
    if directives.len() > LONGEST {
        let length = directives.len();
        return Err(Error::msg(format!("the log filter has {length} bytes, over the limit of {LONGEST}")));
    }
    directives.parse().map_err(|error| {
        Error::from(error).context(format!(
            "{directives:?} is no log filter: write levels and targets, such as `info,my_crate=debug`"
        ))
    })
}

/// What the root wants, as it travels down the tree: kept by each process for those that it starts.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    latest: Mutex<Version>,
}

/// One version of the filter; the first, which nobody asked for, has the number 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Version {
    pub(crate) number: u64,
    directives: Option<Arc<str>>,
}

impl Version {
    /// As text. As long as nobody asked for anything, what this process would take itself.
    pub(crate) fn directives(&self) -> Arc<str> {
        match &self.directives {
            Some(directives) => directives.clone(),
            None => LevelFilter::current().to_string().into(),
        }
    }
}

impl Wanted {
    pub(crate) fn set(&self, directives: &str) {
        let mut latest = self.lock();
        *latest = Version { number: latest.number + 1, directives: Some(directives.into()) };
    }

    pub(crate) fn latest(&self) -> Version {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Version> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The filter of this process; nothing passes until its root has said so.
static FILTER: RwLock<Option<Targets>> = RwLock::new(None);

/// What shall become the filter, and whether a thread is about to make it so.
static NEXT: Mutex<Next> = Mutex::new(Next { directives: None, at_work: false, begun: false });

/// Held by whoever tells all callsites, so that the last to do so has seen the latest filter.
static TELLING: Mutex<()> = Mutex::new(());

struct Next {
    /// Whether there is a subscriber by now. Before that, telling the callsites would tell them of none.
    begun: bool,
    directives: Option<Arc<str>>,
    at_work: bool,
}

/// Makes this the filter, before there is any subscriber to tell.
pub(crate) fn begin_with(directives: &str) {
    set(parse(directives).ok());
}

/// Makes this the filter soon. For the warden: a thread of its own tells all callsites, since that runs code of whatever
/// subscriber there is.
pub(crate) fn change(directives: Arc<str>) {
    let mut next = next();
    if !next.begun {
        // Under the lock, so that this is over when there is one.
        begin_with(&directives);
        return;
    }
    next.directives = Some(directives);
    if !next.at_work {
        let thread = std::thread::Builder::new().name("hatchery-filter".into());
        // Without the thread the next change, or none, gets through; the old filter stands.
        next.at_work = thread.spawn(catch_up).is_ok();
    }
}

fn catch_up() {
    loop {
        let directives = {
            let mut next = next();
            match next.directives.take() {
                Some(directives) => directives,
                None => {
                    next.at_work = false;
                    return;
                }
            }
        };
        // The root has parsed it already: this is the same program.
        if let Ok(targets) = parse(&directives) {
            set(Some(targets));
            tell();
        }
    }
}

/// There is a subscriber: changes concern its callsites from now on.
pub(crate) fn begun() {
    next().begun = true;
    // One may have come while it was made.
    tell();
}

fn tell() {
    let _one_at_a_time = TELLING.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = hatchery_actor::panics::catch_call(callsite::rebuild_interest_cache);
}

fn next() -> MutexGuard<'static, Next> {
    NEXT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(targets: Option<Targets>) {
    *FILTER.write().unwrap_or_else(PoisonError::into_inner) = targets;
}

/// The filter of this process, as a layer's filter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current;

fn allows(metadata: &Metadata<'_>) -> bool {
    let filter = FILTER.read().unwrap_or_else(PoisonError::into_inner);
    filter.as_ref().is_some_and(|targets| targets.would_enable(metadata.target(), metadata.level()))
}

impl<S> Filter<S> for Current {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        allows(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        // What is cached here is asked for again after each change.
        if allows(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let filter = FILTER.read().unwrap_or_else(PoisonError::into_inner);
        match &*filter {
            Some(targets) => <Targets as Filter<S>>::max_level_hint(targets),
            None => Some(LevelFilter::OFF),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_that_are_none_are_named() {
        for good in ["info", "off", "info,my_crate=debug", "my_crate::part=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let error = parse("my_crate=loud").unwrap_err().to_string();
        assert!(error.contains("my_crate=loud") && error.contains("info,my_crate=debug"), "{error}");
        let error = parse(&"a,".repeat(4000)).unwrap_err().to_string();
        assert!(error.contains("8000 bytes"), "{error}");
    }

    #[test]
    fn versions_count_up_and_keep_the_latest() {
        let wanted = Wanted::default();
        assert_eq!(wanted.latest().number, 0);
        wanted.set("info");
        wanted.set("debug");
        let latest = wanted.latest();
        assert_eq!((latest.number, &*latest.directives()), (2, "debug"));
    }
}
