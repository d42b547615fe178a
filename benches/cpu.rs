//! How much CPU time a process has used.

use std::io;
use std::time::Duration;

/// The time that all living threads of a process have run.
///
/// # Errors
/// There is no such process, or the kernel keeps no such figures.
pub fn spent(pid: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let running = schedstat.split(' ').next().and_then(|running| running.parse::<u64>().ok());
        nanos += running.ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// What two processes spend between two looks.
#[derive(Debug)]
pub struct Meter {
    pids: [u32; 2],
    begun: Duration,
}

impl Meter {
    /// The first look at this process and another one.
    ///
    /// # Errors
    /// As [`spent`].
    pub fn begin(other: u32) -> io::Result<Meter> {
        let pids = [std::process::id(), other];
        Ok(Meter { pids, begun: both(pids)? })
    }

    /// The second look, shared out over this many.
    ///
    /// # Errors
    /// As [`spent`].
    pub fn end(self, over: usize) -> io::Result<Duration> {
        let spent = both(self.pids)? - self.begun;
        Ok(spent / u32::try_from(over).unwrap_or(u32::MAX))
    }
}

fn both(pids: [u32; 2]) -> io::Result<Duration> {
    Ok(spent(pids[0])? + spent(pids[1])?)
}
