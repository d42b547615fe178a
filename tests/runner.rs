//! Runs a program of `programs.rs` and looks at it from outside.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};

use hatchery_tests::{BOUND, eventually, runs, send};
use rustix::process::Signal;

/// A program of `programs.rs` under way.
pub(crate) struct Program {
    pub(crate) child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    pub(crate) workers: Vec<u32>,
    pub(crate) said: Vec<String>,
    /// Dropped when the program has ended; before that, only patience ends.
    _patience: Sender<()>,
}

/// How it ended.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) said: Vec<String>,
    pub(crate) stderr: String,
}

impl Program {
    pub(crate) fn start(word: &str) -> Program {
        Program::start_with(word, "")
    }

    pub(crate) fn start_with(word: &str, file: &str) -> Program {
        Program::launch(&mut Command::new(env!("CARGO_BIN_EXE_programs")), word, file)
    }

    pub(crate) fn launch(command: &mut Command, word: &str, file: &str) -> Program {
        let mut child = command
            .envs([("PROGRAM", word), ("PROGRAM_FILE", file), ("RUST_BACKTRACE", "0")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (patience, over) = channel();
        let pid = child.id();
        std::thread::spawn(move || {
            // A program that hangs is ended, so that its test can fail. Not reaped before, its pid is its own.
            if over.recv_timeout(2 * BOUND) == Err(RecvTimeoutError::Timeout) {
                send(pid, Signal::KILL);
            }
        });
        Program { child, lines, workers: Vec::new(), said: Vec::new(), _patience: patience }
    }

    /// Reads until it has said this so many times.
    pub(crate) fn until(mut self, line: &str, times: usize) -> Program {
        while self.said.iter().filter(|said| *said == line).count() < times {
            let next = self.lines.next().expect("it ended before").unwrap();
            self.heard(next);
        }
        self
    }

    fn heard(&mut self, line: String) {
        self.workers.extend(line.strip_prefix("worker ").map(|pid| pid.parse::<u32>().unwrap()));
        self.said.push(line);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Waits for the end, and for the end of all workers that it named.
    pub(crate) fn end(mut self) -> End {
        // Its workers hold its stdout, so this is also the end of those.
        while let Some(line) = self.lines.next() {
            self.heard(line.unwrap());
        }
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        for pid in self.workers {
            eventually("no worker is left", || !runs(pid));
        }
        End { status, said: self.said, stderr }
    }
}

impl End {
    pub(crate) fn says(&self, line: &str) -> bool {
        self.said.iter().any(|said| said == line)
    }
}
