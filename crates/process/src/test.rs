//! Tests that start workers: `#[hatchery::test]`.
//!
//! The test function is an ordinary `#[test]` whose first act is the door. A worker is the same test binary, told to
//! run exactly this one test; it comes through the harness to the same door and never goes further.
//!
//! A test ends as a `main` does. What is still there afterwards was left behind, and fails the test:
//!
//! - a worker that was asked to end and did not, for as long as the test's patience: one with `Shutdown::infinity()`,
//!   or one that the kernel cannot kill
//! - anything else that did not come to its end in that time
//!
//! Helper programs that a worker started are its own business, as they are at the end of a program, and what dies with
//! its worker (workers of its own) is not waited for.

use std::ffi::OsString;
use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hatchery_actor::panics;
use hatchery_actor::root::Root;

use crate::collector::Collector;
use crate::door::{Door, Flavor, Invited, Outcome, be_worker, each_process, runtime};
use crate::inside::PANICKED;
use crate::os;
use crate::printer::{Mode, Printer};
use crate::program::{Parts, Program};
use crate::resources;

/// How long the end of a test may go on without anything ending. The default ladder of a stop ends a worker in 7 s.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the kernel may take to end what was killed.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// How often the end of a test looks at what is left.
const LOOK: Duration = Duration::from_millis(50);

/// The options of `#[hatchery::test]`.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct TestOptions {
    flavor: Flavor,
    worker_threads: Option<usize>,
    program: Option<fn() -> Door>,
    patience: Duration,
    should_panic: bool,
}

impl Default for TestOptions {
    fn default() -> TestOptions {
        TestOptions::new()
    }
}

impl TestOptions {
    /// One thread, as in `#[tokio::test]`.
    pub const fn new() -> TestOptions {
        TestOptions {
            flavor: Flavor::CurrentThread,
            worker_threads: None,
            program: None,
            patience: PATIENCE,
            should_panic: false,
        }
    }

    /// Which runtime.
    pub const fn flavor(mut self, flavor: Flavor) -> TestOptions {
        self.flavor = flavor;
        self
    }

    /// How many threads a multi-threaded one has.
    pub const fn worker_threads(mut self, threads: usize) -> TestOptions {
        self.worker_threads = Some(threads);
        self
    }

    /// What `each_process`, `worker_config`, `spin` and `hosts` the test and its workers have. The runtime is the test's own.
    pub const fn program(mut self, program: fn() -> Door) -> TestOptions {
        self.program = Some(program);
        self
    }

    /// How long the end of the test may go on without anything ending; 30 s unless told otherwise.
    pub const fn patience(mut self, patience: Duration) -> TestOptions {
        self.patience = patience;
        self
    }

    /// Whether the harness wants it to panic: then not to panic is what fails it.
    pub const fn should_panic(mut self, should_panic: bool) -> TestOptions {
        self.should_panic = should_panic;
        self
    }
}

/// Runs the body of a test, or the worker that this process turns out to be. `path` is the test's full path in the
/// program, its crate first.
///
/// # Panics
/// As the body does; also if it returned an error, or left something behind.
pub fn test<F, Fut>(path: &str, options: TestOptions, body: F)
where
    F: FnOnce() -> Fut,
    Fut: Future,
    Fut::Output: Outcome,
{
    // libtest names tests from below the crate.
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    let again: Vec<OsString> =
        [name, "--exact", "--nocapture", "--quiet", "--test-threads=1", "--include-ignored"]
            .into_iter()
            .map(OsString::from)
            .collect();
    let program = || options.program.map(|program| program()).unwrap_or_default();
    if let Some(invited) = Invited::accept() {
        // A worker never falls back into the harness. Its panic has been printed, and the parent shows that.
        let door = panics::catch_call(program).unwrap_or_else(|_| std::process::exit(PANICKED));
        be_worker(invited, door.each, again, door.worker_env_only);
    }
    panics::note_places();
    os::heed_sigchld();
    resources::raise_open_files();
    let mut door = program();
    let config = door.take_config().unwrap_or_else(|why| panic!("{why}"));
    if let Some(program) = options.program {
        once(program, std::mem::take(&mut door.each));
    }
    let program = Program::new(Parts {
        root: Root::new(),
        depth: 0,
        again,
        capture_stdout: true,
        config,
        env_only: door.worker_env_only.take(),
        spin: door.spin,
        printer: Printer::new(Mode::Captured),
        logs: Collector::new(door.logs),
    });
    let runtime = match runtime(options.flavor, options.worker_threads, None, &program) {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime: {error}"),
    };
    program.enter();
    program.runs_on(runtime.handle());
    let (outcome, left) = runtime.block_on(async {
        let outcome = panics::catch(async { body().await }).await;
        let outcome =
            outcome.map(|outcome| outcome.failure().map(|failure| eprintln!("{failure}")).is_none());
        if let Ok(true) = outcome {
            linger(&program, name, options.patience).await;
        }
        (outcome, close(&program, options.patience).await)
    });
    program.logs.flush();
    program.printer.flush();
    runtime.shutdown_background();
    Program::leave();

    let failure = match outcome {
        Ok(true) => None,
        // It has been printed.
        Ok(false) => Some("the test returned an error".to_owned()),
        // The panic itself was printed when it came; `should_panic` looks for its message.
        Err(panic) => Some(panic.message),
    };
    if let Some(left) = &left {
        eprintln!("{left}");
        if options.should_panic {
            return;
        }
    }
    if let Some(failure) = failure.or(left) {
        // Everything has been said, so no panic hook is to say more.
        std::panic::resume_unwind(Box::new(failure));
    }
}

/// Does what `each_process` asks for, once in this process however many tests name the program.
fn once(program: fn() -> Door, each: Vec<Box<dyn FnOnce()>>) {
    static DONE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    // Tests of the same program wait for the first. Should it panic there, the next one tries again.
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = program as usize;
    if !done.contains(&program) {
        each_process(each);
        done.push(program);
    }
}

/// Waits for processes that are no daemons, as the end of a program does; says so if that takes long.
async fn linger(program: &Program, name: &str, patience: Duration) {
    let mut lingering = pin!(program.root.linger());
    if within(patience, &mut lingering).await.is_none() {
        let waits: Vec<_> = program.living().into_iter().map(|(child, _)| child.to_string()).collect();
        let note = format!(
            "hatchery: the test {name} has returned, and waits for its processes: {}. \
             End them, or build them with `daemon(true)`\n",
            waits.join(", ")
        );
        // Past the harness's capture: whoever looks at a test that hangs is told here and now.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), note.as_bytes());
        lingering.await;
    }
}

/// Stops everything in order, as the end of a program does. Gives what did not end by that, and kills it.
async fn close(program: &Program, patience: Duration) -> Option<String> {
    let mut closing = pin!(program.root.close());
    let mut remains = Remains::new(patience, program.living().len(), Instant::now());
    let closed = loop {
        if within(LOOK, &mut closing).await.is_some() {
            break true;
        }
        let still = program.living();
        let shown: Vec<_> =
            still.iter().map(|(child, ward)| (child.to_string(), ward.is_stopping())).collect();
        match remains.look(&shown, Instant::now()) {
            Next::Wait => {}
            Next::Kill(those) => {
                those.into_iter().for_each(|at| still[at].1.condemn("its test left it behind"));
            }
            Next::GiveUp => break false,
        }
    };
    let mut left = remains.named;
    // A start that was under way is given up, which is no fault of the test's.
    for (child, ward) in program.living() {
        ward.condemn("the test is over");
        let shown = child.to_string();
        if within(AFTER_KILL, ward.exited()).await.is_none() && !left.contains(&shown) {
            left.push(shown);
        }
    }
    if !left.is_empty() {
        return Some(format!(
            "left behind by the test, and killed: {}. A worker ends when it is asked to, or is made to by its \
             `Shutdown`; one that needs longer wants more `patience`",
            left.join(", ")
        ));
    }
    (!closed).then(|| {
        format!(
            "left behind by the test: something that did not stop within {patience:?} although it has no process, \
             such as a local actor with `Shutdown::infinity()`"
        )
    })
}

/// What has not ended yet of a test that is over.
struct Remains {
    patience: Duration,
    /// Those that were given up, as they are shown.
    named: Vec<String>,
    living: usize,
    /// When anything ended last, or was made to.
    since: Instant,
}

/// What is to be done about what remains.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Wait,
    /// Kill those at these places of the list.
    Kill(Vec<usize>),
    /// Nothing can be done any more: what is left is none of our processes, or one that the kernel cannot kill.
    GiveUp,
}

impl Remains {
    fn new(patience: Duration, living: usize, now: Instant) -> Remains {
        Remains { patience, named: Vec::new(), living, since: now }
    }

    /// Looks at the processes that still live, each with whether it has been asked to end.
    fn look(&mut self, still: &[(String, bool)], now: Instant) -> Next {
        if still.len() != self.living {
            (self.living, self.since) = (still.len(), now);
            return Next::Wait;
        }
        if now.saturating_duration_since(self.since) < self.patience {
            return Next::Wait;
        }
        // What has not been asked yet still gets its turn.
        let late = |(shown, asked): &(String, bool)| *asked && !self.named.contains(shown);
        let late: Vec<usize> = (0..still.len()).filter(|at| late(&still[*at])).collect();
        if late.is_empty() {
            return Next::GiveUp;
        }
        self.named.extend(late.iter().map(|at| still[*at].0.clone()));
        self.since = now;
        Next::Kill(late)
    }
}

/// What the future gives, if it does so within that time. The time is the machine's: a test may have paused tokio's.
async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let begun = Instant::now();
    let mut future = pin!(future);
    loop {
        if let Ok(value) = tokio::time::timeout(limit.min(LOOK), &mut future).await {
            return Some(value);
        }
        if begun.elapsed() >= limit {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn living<const N: usize>(all: [(&str, bool); N]) -> [(String, bool); N] {
        all.map(|(shown, asked)| (shown.to_owned(), asked))
    }

    #[test]
    fn as_long_as_something_ends_there_is_patience() {
        let begun = Instant::now();
        let mut remains = Remains::new(PATIENCE, 3, begun);
        let early = PATIENCE - Duration::from_millis(1);
        assert_eq!(remains.look(&living([("a", true), ("b", true), ("c", true)]), begun + early), Next::Wait);
        assert_eq!(remains.look(&living([("a", true), ("b", true)]), begun + PATIENCE), Next::Wait);
        let still = living([("a", true), ("b", true)]);
        assert_eq!(remains.look(&still, begun + PATIENCE + early), Next::Wait);
        assert_eq!(remains.look(&still, begun + 2 * PATIENCE), Next::Kill(vec![0, 1]));
        assert_eq!(remains.named, ["a", "b"]);
    }

    #[test]
    fn what_has_not_been_asked_yet_gets_its_turn() {
        let begun = Instant::now();
        let mut remains = Remains::new(PATIENCE, 2, begun);
        let one = living([("not yet", false), ("deaf", true)]);
        assert_eq!(remains.look(&one, begun + PATIENCE), Next::Kill(vec![1]));
        let other = living([("not yet", true)]);
        assert_eq!(remains.look(&other, begun + PATIENCE), Next::Wait);
        assert_eq!(remains.look(&other, begun + 2 * PATIENCE), Next::Kill(vec![0]));
    }

    #[test]
    fn one_that_cannot_be_killed_is_named_once_and_given_up() {
        let begun = Instant::now();
        let mut remains = Remains::new(PATIENCE, 1, begun);
        let still = living([("undying", true)]);
        assert_eq!(remains.look(&still, begun + PATIENCE), Next::Kill(vec![0]));
        assert_eq!(remains.look(&still, begun + PATIENCE), Next::Wait);
        assert_eq!(remains.look(&still, begun + 2 * PATIENCE), Next::GiveUp);
        assert_eq!(remains.named, ["undying"]);
    }

    #[test]
    fn what_has_no_process_is_given_up() {
        let begun = Instant::now();
        assert_eq!(Remains::new(PATIENCE, 0, begun).look(&[], begun + PATIENCE), Next::GiveUp);
    }
}
