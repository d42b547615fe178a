//! How much memory a process has, as the kernel tells it, and when to ask.

use std::time::Duration;

use hatchery_actor::fault::Fault;
use tokio::time::Instant;

/// How often a worker is looked at that finishes tasks …
const OFTEN: Duration = Duration::from_millis(10);
/// … and one that is at a long one.
pub(crate) const SELDOM: Duration = Duration::from_millis(250);

/// Whether it is time to look how much memory a worker has. Pure: time is an argument.
#[derive(Debug)]
pub(crate) struct Scales {
    /// More than this is too much; nobody looks any more where there is none.
    pub(crate) limit: Option<u64>,
    last: Instant,
    /// Tasks have ended since it was looked at.
    stale: bool,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weighing {
    /// Look whether it has more than this.
    Now(u64),
    /// Ask again when this is over.
    In(Duration),
    /// Nothing changes by itself.
    No,
}

impl Scales {
    pub(crate) fn new(limit: Option<u64>, now: Instant) -> Scales {
        Scales { limit, last: now, stale: false }
    }

    /// `news`: tasks have ended; `busy`: one runs.
    pub(crate) fn ask(&mut self, news: bool, busy: bool, now: Instant) -> Weighing {
        let Some(limit) = self.limit else { return Weighing::No };
        self.stale |= news;
        let every = match (self.stale, busy) {
            (true, _) => OFTEN,
            (false, true) => SELDOM,
            // It has done nothing since.
            (false, false) => return Weighing::No,
        };
        let wait = (self.last + every).saturating_duration_since(now);
        if !wait.is_zero() {
            return Weighing::In(wait);
        }
        (self.last, self.stale) = (now, false);
        Weighing::Now(limit)
    }
}

/// Bytes of memory of a process that are present, shared ones included (RSS); `None` if it is not there, or `/proc` is not.
///
/// Cheap enough to be asked on a runtime's thread: the kernel reads a few counters, and takes no lock of that process.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    parse(&statm, rustix::param::page_size() as u64)
}

/// Whether a limit can be kept, by how much memory this process is found to have.
///
/// # Errors
/// That cannot be read here, and so not of workers either.
pub(crate) fn can_be_weighed(limit: Option<u64>, own: Option<u64>) -> Result<(), Fault> {
    if limit.is_some() && own.is_none() {
        return Err(Fault::Refused(
            "max_rss: how much memory a process has cannot be read from /proc/PID/statm here: mount /proc for the PID \
             namespace of this process, or do without the limit"
                .to_owned(),
        ));
    }
    Ok(())
}

/// From `/proc/PID/statm`, see proc_pid_statm(5): the second number counts pages that are present.
fn parse(statm: &str, page: u64) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_counts_pages() {
        assert_eq!(parse("8000 25 3 1 0 900 0\n", 4096), Some(25 * 4096));
        assert_eq!(parse("8000", 4096), None);
        assert_eq!(parse("", 4096), None);
    }

    #[test]
    fn it_is_looked_at_after_tasks_and_seldom_while_one_runs_and_never_where_nothing_happens() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let wait = |millis| Weighing::In(Duration::from_millis(millis));
        let mut scales = Scales::new(Some(7), begin);
        assert_eq!(scales.ask(false, false, at(1_000)), Weighing::No);
        assert_eq!(scales.ask(true, true, at(1_000)), Weighing::Now(7));
        assert_eq!(scales.ask(true, true, at(1_004)), wait(6));
        assert_eq!(scales.ask(false, false, at(1_010)), Weighing::Now(7));
        assert_eq!(scales.ask(false, false, at(9_000)), Weighing::No);
        assert_eq!(scales.ask(false, true, at(9_000)), Weighing::Now(7));
        assert_eq!(scales.ask(false, true, at(9_100)), wait(150));
        assert_eq!(scales.ask(false, true, at(9_250)), Weighing::Now(7));
        scales.limit = None;
        assert_eq!(scales.ask(true, true, at(10_000)), Weighing::No);
    }

    #[test]
    fn a_limit_is_refused_where_nobody_could_know_whether_it_is_kept() {
        let refused = can_be_weighed(Some(1), None).unwrap_err();
        assert!(matches!(&refused, Fault::Refused(why) if why.starts_with("max_rss: ")), "{refused}");
        assert_eq!(can_be_weighed(Some(1), resident(std::process::id())), Ok(()));
        assert_eq!(can_be_weighed(None, None), Ok(()));
    }

    #[test]
    fn this_process_has_some() {
        assert!(resident(std::process::id()).unwrap() > 100_000);
        assert_eq!(resident(u32::MAX), None);
    }
}
