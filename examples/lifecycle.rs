//! The life of a process under the hands of its parent: pause, resume, terminate, and how it ended.
//!
//! ```text
//! cargo run --release --example lifecycle
//! ```

use hatchery::prelude::*;

#[hatchery::task]
fn sleepy(secs: u64) -> u64 {
    std::thread::sleep(Duration::from_secs(secs));
    secs
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let process = Process::builder(sleepy, 5_u64).name("sleeper").daemon(true).spawn().await?;
    assert!(process.is_alive());
    assert_eq!(hatchery::active_children()[0].name(), "sleeper");

    process.pause()?;
    assert!(process.is_alive()); // a paused process is alive
    process.resume()?;

    process.terminate()?; // SIGTERM; kill() is SIGKILL
    let exit = process.wait().await; // may be called again, by anyone
    assert_eq!(exit.exitcode(), Some(-15)); // signed as in Python; None if nobody could tell
    assert!(!process.is_alive());
    println!("{}: {exit}", process.name());

    let error = process.join().await.unwrap_err(); // it left no result
    assert!(error.is_crash());
    println!("{error}");
    Ok(())
}
