//! Which CPUs the two processes of a measurement run on.

use std::io;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this process may use.
///
/// # Errors
/// The system does not say.
pub fn cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Puts all threads of a process on these CPUs.
///
/// # Errors
/// The process has ended, or a CPU does not exist.
pub fn pin(pid: u32, cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let id = thread?.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        sched_setaffinity(Some(id.ok_or(io::ErrorKind::InvalidData)?), &set)?;
    }
    Ok(())
}
