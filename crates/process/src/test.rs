//! Tests that start workers: `#[hatchery::test]`.
//!
//! The test function is an ordinary `#[test]` whose first act is the door. A worker is the same test binary, told to
//! run exactly this one test; it comes through the harness to the same door and never goes further.

use std::ffi::OsString;
use std::future::Future;
use std::sync::Arc;

use hatchery_actor::panics;
use hatchery_actor::root::Root;

use crate::collector::{Collector, Logs};
use crate::door::{Flavor, Invited, Outcome, be_root, be_worker, runtime};
use crate::os;
use crate::printer::{Mode, Printer};
use crate::program::Program;

/// The options of `#[hatchery::test]`, the same as tokio's.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct TestOptions {
    flavor: Flavor,
    worker_threads: Option<usize>,
}

impl Default for TestOptions {
    fn default() -> TestOptions {
        TestOptions::new()
    }
}

impl TestOptions {
    /// One thread, as in `#[tokio::test]`.
    pub const fn new() -> TestOptions {
        TestOptions { flavor: Flavor::CurrentThread, worker_threads: None }
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
}

/// Runs the body of a test, or the worker that this process turns out to be. `path` is the test's full path in the
/// program, its crate first.
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
    if let Some(invited) = Invited::accept() {
        be_worker(invited, Vec::new(), again, None);
    }
    panics::note_places();
    os::heed_sigchld();
    let program = Arc::new(Program {
        root: Root::new(String::new()),
        depth: 0,
        again,
        capture_stdout: true,
        config: Default::default(),
        env_only: None,
        printer: Printer::new(Mode::Captured),
        logs: Collector::new(Logs::Forward),
        children: Default::default(),
    });
    let runtime = match runtime(options.flavor, options.worker_threads, None, &program) {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime: {error}"),
    };
    match be_root(&program, runtime, body, false) {
        Ok(true) => {}
        Ok(false) => panic!("the test returned an error"),
        // The panic itself was printed when it came; `should_panic` looks for its message.
        Err(panic) => std::panic::resume_unwind(Box::new(panic.message)),
    }
}
