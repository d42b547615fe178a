//! What a process uses, as the kernel tells it.

use std::time::Duration;

/// What a process has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes of memory that are its own or shared, and present (RSS).
    pub(crate) memory: u64,
    /// Processor time of all its threads, in user and kernel mode.
    pub(crate) cpu: Duration,
}

/// Of the process of this number, if it is there.
pub(crate) fn of(pid: u32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse(&stat, rustix::param::page_size() as u64, rustix::param::clock_ticks_per_second())
}

/// From a line of `/proc/PID/stat`, see proc_pid_stat(5).
fn parse(stat: &str, page: u64, ticks_per_second: u64) -> Option<Usage> {
    // The name in parentheses may have anything in it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    // What follows the name begins with field 3.
    let mut field = |skip: usize| fields.nth(skip)?.parse::<u64>().ok();
    let (user, kernel) = (field(14 - 3)?, field(0)?);
    let pages = field(24 - 16)?;
    let micros = user.saturating_add(kernel).saturating_mul(1_000_000) / ticks_per_second.max(1);
    Some(Usage { memory: pages.saturating_mul(page), cpu: Duration::from_micros(micros) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_counted_from_the_end_of_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 1000 99999 25 18446744073709551615 0";
        let usage = Usage { memory: 25 * 4096, cpu: Duration::from_secs(2) };
        assert_eq!(parse(stat, 4096, 100), Some(usage));
        assert_eq!(parse("7 (a", 4096, 100), None);
        assert_eq!(parse("7 (a) S 1", 4096, 100), None);
    }

    #[test]
    fn this_process_uses_something() {
        assert!(of(std::process::id()).unwrap().memory > 100_000);
        assert_eq!(of(u32::MAX), None);
    }
}
