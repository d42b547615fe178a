//! The table at the end: one column a run, then the failures.

use std::{fmt::Write, time::Duration};

use crate::picture::Failure;

/// The numbers of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub(crate) workers: usize,
    pub(crate) files: usize,
    pub(crate) thumbnails: usize,
    /// By the name of the picture.
    pub(crate) failures: Vec<(String, Failure)>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) restarts: u64,
    /// What chaos did; `None` where there was none.
    pub(crate) kills: Option<Kills>,
    pub(crate) wall: Duration,
}

/// How many workers chaos killed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kills {
    pub(crate) all: u64,
    /// Those that had a picture at hand.
    pub(crate) amid: u64,
}

/// The table of one or more runs; with more, each is compared with the last.
pub(crate) fn table(runs: &[Run]) -> String {
    let row = |label: &str, cell: &dyn Fn(&Run) -> String| {
        let mut line = format!("{label:<18}");
        for run in runs {
            write!(line, "{:>14}", cell(run)).expect("a string takes everything");
        }
        line + "\n"
    };
    let mut table = row("", &|run| count(run.workers, "worker"));
    table += &row("files", &|run| run.files.to_string());
    table += &row("thumbnails made", &|run| run.thumbnails.to_string());
    table += &row("failures", &|run| run.failures.len().to_string());
    table += &row("bytes in", &|run| bytes(run.bytes_in));
    table += &row("bytes out", &|run| bytes(run.bytes_out));
    table += &row("restarts", &|run| run.restarts.to_string());
    if runs.iter().any(|run| run.kills.is_some()) {
        let kills = |run: &Run, which: fn(Kills) -> u64| {
            run.kills.map_or("-".into(), |kills| which(kills).to_string())
        };
        table += &row("kills", &|run| kills(run, |kills| kills.all));
        table += &row("  amid a picture", &|run| kills(run, |kills| kills.amid));
    }
    table += &row("wall time", &|run| format!("{:.2} s", run.wall.as_secs_f64()));
    if let [_, .., last] = runs {
        table += &row("speedup", &|run| speedup(last.wall, run.wall));
    }
    table + &failures(runs)
}

/// Every failure once, and if not all runs saw it, which did.
fn failures(runs: &[Run]) -> String {
    let mut all: Vec<_> = runs.iter().flat_map(|run| &run.failures).collect();
    all.sort();
    all.dedup();
    let mut list = String::new();
    for failure in all {
        let saw: Vec<_> = runs.iter().filter(|run| run.failures.contains(failure)).collect();
        let only = if saw.len() == runs.len() {
            String::new()
        } else {
            let saw: Vec<_> = saw.iter().map(|run| count(run.workers, "worker")).collect();
            format!(" (only with {})", saw.join(", "))
        };
        let (name, failure) = failure;
        writeln!(list, "failed: {}: {}{only}", printable(name), printable(&failure.to_string()))
            .expect("a string takes everything");
    }
    if list.is_empty() { list } else { format!("\n{list}") }
}

/// A file's name may hold line breaks and terminal codes.
fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn bytes(number: u64) -> String {
    match number {
        0..1_000 => format!("{number} B"),
        1_000..1_000_000 => format!("{:.1} kB", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", number as f64 / 1e6),
        _ => format!("{:.1} GB", number as f64 / 1e9),
    }
}

fn speedup(base: Duration, wall: Duration) -> String {
    if wall.is_zero() { "-".into() } else { format!("{:.2} ×", base.as_secs_f64() / wall.as_secs_f64()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(workers: usize, seconds: f64) -> Run {
        Run {
            workers,
            files: 49,
            thumbnails: 48,
            failures: vec![("a/b.jpg".into(), Failure::Broken("broken jpeg".into()))],
            bytes_in: 31_250_000,
            bytes_out: 812_345,
            wall: Duration::from_secs_f64(seconds),
            ..Run::default()
        }
    }

    #[test]
    fn one_run() {
        let expected = "
                       2 workers
files                         49
thumbnails made               48
failures                       1
bytes in                 31.2 MB
bytes out               812.3 kB
restarts                       0
wall time                 1.50 s

failed: a/b.jpg: broken jpeg
";
        assert_eq!(format!("\n{}", table(&[run(2, 1.5)])), expected);
    }

    #[test]
    fn two_runs_and_chaos() {
        let chaos =
            Run { restarts: 7, kills: Some(Kills { all: 7, amid: 6 }), failures: vec![], ..run(2, 1.5) };
        let expected = "
                       2 workers      1 worker
files                         49            49
thumbnails made               48            48
failures                       0             1
bytes in                 31.2 MB       31.2 MB
bytes out               812.3 kB      812.3 kB
restarts                       7             0
kills                          7             -
  amid a picture               6             -
wall time                 1.50 s        3.00 s
speedup                   2.00 ×        1.00 ×

failed: a/b.jpg: broken jpeg (only with 1 worker)
";
        assert_eq!(format!("\n{}", table(&[chaos, run(1, 3.0)])), expected);
    }

    #[test]
    fn no_failure_no_list() {
        assert!(table(&[Run { failures: vec![], ..run(1, 1.0) }]).ends_with("1.00 s\n"));
    }

    #[test]
    fn a_name_cannot_break_the_table() {
        let odd =
            Run { failures: vec![("a\n\u{1b}[2J.jpg".into(), Failure::Undone("é".into()))], ..run(1, 1.0) };
        assert!(table(&[odd]).ends_with("failed: a\\n\\u{1b}[2J.jpg: é\n"));
    }
}
