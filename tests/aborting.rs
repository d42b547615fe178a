//! What a panic is in a program built with `panic = "abort"`: `.ci/run` builds it so and runs it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use hatchery::prelude::*;
use hatchery_tests::{becomes_true, ends, runs};

struct Fragile;

#[hatchery::actor]
impl Fragile {
    fn start() -> Self {
        Fragile
    }

    fn lives(&self) -> u32 {
        42
    }

    async fn panics(&mut self, why: String) {
        tokio::task::yield_now().await;
        panic!("because of {why}")
    }

    /// A panic that would be nobody else's business if it could be caught.
    async fn panics_elsewhere(&mut self) {
        let elsewhere = std::thread::spawn(|| panic!("on a thread of its own"));
        assert!(elsewhere.join().is_err());
    }

    fn aborts(&mut self) {
        std::process::abort()
    }
}

#[hatchery::task]
fn panics() {
    panic!("a task")
}

/// Runs in every process before anything else, and knows nothing of hooks that were there before.
pub(crate) fn sets_a_hook() {
    std::panic::set_hook(Box::new(|_| eprintln!("the user's own hook")));
}

/// The whole program; it panics where something is not as it should be.
pub(crate) async fn program() -> hatchery::Result<()> {
    if !cfg!(panic = "abort") {
        return Err(hatchery::Error::msg("this program is about aborts: build it with `--profile aborts`"));
    }
    a_handlers_panic_reaches_its_caller_and_the_handle_goes_on().await?;
    a_tasks_panic_is_told_by_join().await?;
    mains_own_panic_leaves_no_worker().await
}

async fn a_handlers_panic_reaches_its_caller_and_the_handle_goes_on() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let actor = tree.start_child(worker::<Fragile>("fragile", ())).await?;
    let error = ends("ask", actor.panics("rain".to_owned())).await.unwrap_err();
    told(error.is_crash(), error.exit(), "because of rain");
    assert_eq!((ends("ask", actor.lives()).await?, actor.incarnation()), (42, Some(2)));
    let error = ends("ask", actor.panics_elsewhere()).await.unwrap_err();
    told(error.is_crash(), error.exit(), "on a thread of its own");
    assert_eq!((ends("ask", actor.lives()).await?, actor.incarnation()), (42, Some(3)));
    // An abort is no panic.
    let error = ends("ask", actor.aborts()).await.unwrap_err();
    assert!(error.is_crash() && error.exit().is_some_and(|exit| exit.panic().is_none()), "{error}");
    tree.stop().await
}

async fn a_tasks_panic_is_told_by_join() -> hatchery::Result<()> {
    let error = ends("join", Process::spawn(panics, ()).await?.join()).await.unwrap_err();
    told(error.is_crash() && error.is_panic(), error.exit(), "a task");
    Ok(())
}

/// As the kernel tells it: an abort; as the worker did: the panic.
fn told(is_crash: bool, exit: Option<&hatchery::Exit>, message: &str) {
    let exit = exit.expect("an exit");
    let panic = exit.panic().expect("a panic");
    assert!(is_crash && exit.signal() == Some(6), "{exit:?}");
    assert_eq!(panic.message, message);
    assert!(panic.place.as_ref().is_some_and(|place| place.contains("aborting.rs:")), "{exit:?}");
    assert_eq!(exit.stderr_tail(), ["the user's own hook"]);
}

async fn mains_own_panic_leaves_no_worker() -> hatchery::Result<()> {
    let mut program = Command::new("/proc/self/exe")
        .env("PROGRAM", "panics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let said = tokio::task::spawn_blocking(move || {
        let mut workers = Vec::new();
        // Its workers hold its stdout, so this is also the end of those.
        for line in BufReader::new(program.stdout.take().expect("piped")).lines().map_while(Result::ok) {
            workers.extend(line.strip_prefix("worker ").and_then(|pid| pid.parse::<u32>().ok()));
        }
        let mut stderr = String::new();
        program.stderr.take().expect("piped").read_to_string(&mut stderr)?;
        Ok::<_, std::io::Error>((program.wait()?, workers, stderr))
    });
    let (status, workers, stderr) = ends("the program", said).await??;
    assert_eq!((status.signal(), workers.len()), (Some(6), 2), "{stderr}");
    assert!(stderr.contains("a worse day") && stderr.contains("programs.rs:"), "{stderr}");
    for pid in workers {
        becomes_true("no worker is left", || !runs(pid)).await;
    }
    Ok(())
}
