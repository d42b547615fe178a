//! How an incarnation ended, as exactly as its parent could find out.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a worker process (or a local actor) ended.
///
/// `Display` is one line fit for a log; [`stderr_tail`](Exit::stderr_tail) has the last lines the process wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    status: Status,
    panic: Option<Panic>,
    limit: Option<Limit>,
    failed: bool,
    orderly: bool,
    reason: Option<String>,
    stderr: Vec<String>,
    #[serde(default)]
    stdout: Vec<String>,
}

/// What the operating system said about the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Status {
    /// It left by itself with this exit code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Nobody could tell, for example because another part of the program had already waited for it.
    Unknown,
}

/// A resource limit that ended a worker, with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Limit {
    /// An allocation failed under this limit of bytes of address space, and Rust aborted.
    Memory(u64),
    /// It used this much CPU time.
    Cpu(Duration),
    /// It wrote beyond this many bytes into a file.
    FileSize(u64),
}

/// A panic: what it said and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panic {
    /// The panic message.
    pub message: String,
    /// `file:line:column`, where known.
    pub place: Option<String>,
}

/// Most bytes of what an error says that end up in an exit.
const LONGEST: usize = 1024;

/// What an error says of itself, cut after 1,024 bytes.
#[doc(hidden)]
pub fn in_short(error: impl fmt::Display) -> String {
    struct Short(String);

    impl fmt::Write for Short {
        fn write_str(&mut self, said: &str) -> fmt::Result {
            let room = LONGEST - self.0.len();
            if said.len() <= room {
                self.0.push_str(said);
                return Ok(());
            }
            let end = (0..=room).rev().find(|&end| said.is_char_boundary(end)).unwrap_or(0);
            self.0.push_str(&said[..end]);
            // It need not say the rest.
            Err(fmt::Error)
        }
    }

    let mut short = Short(String::new());
    if fmt::write(&mut short, format_args!("{error}")).is_err() {
        short.0.push_str(" […]");
    }
    short.0
}

impl Exit {
    /// An exit with this status and nothing else known.
    #[doc(hidden)]
    pub fn new(status: Status) -> Exit {
        Exit {
            status,
            panic: None,
            limit: None,
            failed: false,
            orderly: false,
            reason: None,
            stderr: Vec::new(),
            stdout: Vec::new(),
        }
    }

    /// The exit of an actor that stopped in order: it answered everything it had begun, and began nothing else.
    #[doc(hidden)]
    pub fn orderly() -> Exit {
        Exit { orderly: true, ..Exit::new(Status::Code(0)) }
    }

    /// The same exit, if it was in order.
    #[must_use]
    #[doc(hidden)]
    pub fn with_orderly(mut self, orderly: bool) -> Exit {
        self.orderly = orderly;
        self
    }

    /// The same exit, caused by a panic.
    #[must_use]
    #[doc(hidden)]
    pub fn with_panic(mut self, panic: Option<Panic>) -> Exit {
        self.panic = panic;
        self
    }

    /// The same exit, caused by a resource limit.
    #[must_use]
    #[doc(hidden)]
    pub fn with_limit(mut self, limit: Option<Limit>) -> Exit {
        self.limit = limit;
        self
    }

    /// The same exit of a task whose function returned an `Err`.
    #[must_use]
    #[doc(hidden)]
    pub fn with_failed(mut self, failed: bool) -> Exit {
        self.failed = failed;
        self
    }

    /// The same exit with what the parent knows about its cause, such as a protocol error.
    #[must_use]
    #[doc(hidden)]
    pub fn with_reason(mut self, reason: Option<String>) -> Exit {
        self.reason = reason;
        self
    }

    /// The same exit with the last lines of standard error.
    #[must_use]
    #[doc(hidden)]
    pub fn with_stderr(mut self, lines: Vec<String>) -> Exit {
        self.stderr = lines;
        self
    }

    /// The same exit with the last lines of a standard output that was captured.
    #[must_use]
    #[doc(hidden)]
    pub fn with_stdout(mut self, lines: Vec<String>) -> Exit {
        self.stdout = lines;
        self
    }

    /// What the operating system said.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Python's `exitcode`: the code, or minus the signal's number, or `None` if nobody could tell.
    pub fn exitcode(&self) -> Option<i32> {
        match self.status {
            Status::Code(code) => Some(code),
            Status::Signal(signal) => Some(-signal),
            Status::Unknown => None,
        }
    }

    /// The exit code, if it left by itself.
    pub fn code(&self) -> Option<i32> {
        match self.status {
            Status::Code(code) => Some(code),
            _ => None,
        }
    }

    /// The number of the signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self.status {
            Status::Signal(signal) => Some(signal),
            _ => None,
        }
    }

    /// Whether it left by itself with exit code 0.
    pub fn success(&self) -> bool {
        self.status == Status::Code(0)
    }

    /// Whether it was an actor that stopped in order: what it has not answered, it has not begun.
    pub fn is_orderly(&self) -> bool {
        self.orderly
    }

    /// Whether it was a task whose function returned an `Err` (its exit code is 1 then); [`reason`](Exit::reason) has what
    /// that says.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// The panic that ended it, if one did.
    pub fn panic(&self) -> Option<&Panic> {
        self.panic.as_ref()
    }

    /// The resource limit that ended it, where the system lets one know.
    ///
    /// The kernel's signals tell of CPU time and file sizes. A lack of memory is told by the words that Rust leaves on
    /// standard error before it aborts, and believed only if a limit was set. What cannot be told from other crashes:
    /// C code that goes on with a null pointer, and the kernel's out-of-memory killer, whose counters do not say whom
    /// it killed.
    pub fn limit(&self) -> Option<Limit> {
        self.limit
    }

    /// What is known about the cause beyond the status, for example that it broke the protocol; of a task that returned an
    /// `Err`, what that says by its `Display`, or else its `Debug`, in 1,024 bytes at most.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The last lines (100 at most) that it wrote to standard output, if that was captured
    /// ([`Output::Capture`](crate::output::Output::Capture)).
    pub fn stdout_tail(&self) -> &[String] {
        &self.stdout
    }

    /// The last lines (100 at most) that it wrote to standard error.
    pub fn stderr_tail(&self) -> &[String] {
        &self.stderr
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(limit) = self.limit {
            write!(f, "{limit}: ")?;
        }
        match (&self.panic, self.status) {
            (Some(panic), _) => write!(f, "{panic}")?,
            (None, Status::Code(code)) if self.failed => write!(f, "returned an error (exit code {code})")?,
            (None, Status::Code(code)) => write!(f, "exited with code {code}")?,
            (None, Status::Signal(signal)) => match signal_name(signal) {
                Some(name) => write!(f, "killed by {name} (signal {signal})")?,
                None => write!(f, "killed by signal {signal}")?,
            },
            (None, Status::Unknown) => f.write_str("ended in an unknown way")?,
        }
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Memory(bytes) => write!(f, "out of memory under its limit of {}", Bytes(*bytes)),
            Limit::Cpu(time) => write!(f, "hit its CPU limit of {} s", time.as_secs()),
            Limit::FileSize(bytes) => write!(f, "hit its file size limit of {}", Bytes(*bytes)),
        }
    }
}

/// In the largest unit that shows it exactly.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.into_iter().find(|(size, _)| self.0 > 0 && self.0 % size == 0) {
            Some((size, unit)) => write!(f, "{} {unit}", self.0 / size),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "panicked at {place}: {}", self.message),
            None => write!(f, "panicked: {}", self.message),
        }
    }
}

/// The names of the signals that end processes on Linux, the same on every architecture that Rust supports there
/// for the ones listed.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exitcode_is_signed_as_in_python() {
        assert_eq!(Exit::new(Status::Code(3)).exitcode(), Some(3));
        assert_eq!(Exit::new(Status::Signal(15)).exitcode(), Some(-15));
        assert_eq!(Exit::new(Status::Unknown).exitcode(), None);
    }

    #[test]
    fn what_an_error_says_is_cut_where_it_is_too_long() {
        assert_eq!(in_short("no stock"), "no stock");
        assert_eq!(in_short("x".repeat(LONGEST)), "x".repeat(LONGEST));
        for long in ["é".repeat(LONGEST), format!("x{}", "é".repeat(LONGEST))] {
            let short = in_short(&long);
            let said = short.strip_suffix(" […]").unwrap();
            assert!(
                long.starts_with(said) && (LONGEST - 1..=LONGEST).contains(&said.len()),
                "{}",
                said.len()
            );
        }
    }

    #[test]
    fn an_exit_reads_well() {
        assert_eq!(Exit::new(Status::Signal(9)).to_string(), "killed by SIGKILL (signal 9)");
        assert_eq!(Exit::new(Status::Signal(40)).to_string(), "killed by signal 40");
        let panic = Panic { message: "no such luck".into(), place: Some("src/a.rs:1:2".into()) };
        assert_eq!(
            Exit::new(Status::Code(101)).with_panic(Some(panic)).to_string(),
            "panicked at src/a.rs:1:2: no such luck"
        );
        assert_eq!(
            Exit::new(Status::Signal(9)).with_reason(Some("no hello within 10 s".into())).to_string(),
            "killed by SIGKILL (signal 9) (no hello within 10 s)"
        );
        let limited = |signal, limit| Exit::new(Status::Signal(signal)).with_limit(Some(limit)).to_string();
        assert_eq!(
            limited(24, Limit::Cpu(Duration::from_secs(2))),
            "hit its CPU limit of 2 s: killed by SIGXCPU (signal 24)"
        );
        assert_eq!(
            limited(6, Limit::Memory(64 << 20)),
            "out of memory under its limit of 64 MiB: killed by SIGABRT (signal 6)"
        );
        assert_eq!(
            limited(25, Limit::FileSize(1000)),
            "hit its file size limit of 1000 bytes: killed by SIGXFSZ (signal 25)"
        );
    }
}
