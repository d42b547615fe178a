//! A function runs in a process of its own; its result comes back.
//!
//! ```text
//! cargo run --release --example process
//! ```

use hatchery::prelude::*;

#[hatchery::task]
fn do_some_work(val: String) -> usize {
    println!("echo: {val} from {}", hatchery::current().name());
    val.len()
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let process = Process::spawn(do_some_work, "text".to_string()).await?;
    println!("{} has process id {}, its parent {}", process.name(), process.pid(), std::process::id());
    assert_eq!(process.join().await?, 4); // the function's result
    assert_eq!(process.join().await?, 4); // join may be asked again
    assert_eq!(do_some_work("here".to_string()), 4); // and it still is a plain function
    Ok(())
}
