//! Every way of leaving: what the program prints, its exit code, and that no worker outlives it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Instant;

use hatchery_tests::{BOUND, eventually, ignores, runs, send};
use rustix::process::Signal;

/// A program of `programs.rs` under way.
struct Program {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    workers: Vec<u32>,
    said: Vec<String>,
    /// Dropped when the program has ended; before that, only patience ends.
    _patience: Sender<()>,
}

/// How it ended.
struct End {
    status: ExitStatus,
    said: Vec<String>,
    stderr: String,
}

impl Program {
    fn start(word: &str) -> Program {
        Program::start_with(word, "")
    }

    fn start_with(word: &str, file: &str) -> Program {
        Program::launch(&mut Command::new(env!("CARGO_BIN_EXE_programs")), word, file)
    }

    fn launch(command: &mut Command, word: &str, file: &str) -> Program {
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
    fn until(mut self, line: &str, times: usize) -> Program {
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

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Waits for the end, and for the end of all workers that it named.
    fn end(mut self) -> End {
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
    fn says(&self, line: &str) -> bool {
        self.said.iter().any(|said| said == line)
    }
}

#[test]
fn a_main_that_returns_waits_for_processes_that_are_no_daemons_and_stops_the_rest_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("go");
    let program = Program::start_with("returns", file.to_str().unwrap()).until("main is done", 1);
    let alive: Vec<_> = program.workers.iter().map(|pid| runs(*pid)).collect();
    assert_eq!(alive, [true; 3]);
    std::fs::write(file, "").unwrap();
    let end = program.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    let place = |line| end.said.iter().position(|said| said == line).unwrap();
    assert!(place("the process is done") < place("stopped in order"));
}

#[test]
fn a_main_that_fails_prints_the_error_stops_everything_and_waits_for_nobody() {
    let end = Program::start("fails").end();
    assert_eq!(end.status.code(), Some(1));
    assert!(end.stderr.contains("Error: living\n  caused by: a bad day"), "{}", end.stderr);
    assert!(end.says("stopped in order"));
}

#[test]
fn a_main_that_panics_prints_that_stops_everything_and_exits_with_1() {
    let end = Program::start("panics").end();
    assert_eq!(end.status.code(), Some(1));
    assert!(end.stderr.contains("a worse day") && end.stderr.contains("programs.rs:"), "{}", end.stderr);
    assert!(end.says("stopped in order"));
}

#[test]
fn a_program_that_exits_takes_its_workers_with_it() {
    let end = Program::start("exits").end();
    assert_eq!(end.status.code(), Some(5));
}

/// Promise "parent dies in any way": SIGKILL, SIGTERM, Ctrl-C without a handler; stopped workers and workers of workers.
#[test]
fn a_program_that_is_killed_takes_its_workers_with_it_stopped_and_nested_ones_too() {
    use std::os::unix::process::ExitStatusExt;
    for signal in [Signal::KILL, Signal::TERM, Signal::INT, Signal::ABORT] {
        // Our launcher wants it so, and the program does as its launcher wants.
        if ignores(signal) {
            continue;
        }
        let program = Program::start("stays").until("ready", 2);
        assert_eq!(program.workers.len(), 5);
        let begun = Instant::now();
        program.signal(signal);
        let end = program.end();
        assert_eq!(end.status.signal(), Some(signal.as_raw()));
        assert!(begun.elapsed() < BOUND);
    }
}

#[test]
fn run_until_signal_stops_in_order_on_ctrl_c_and_sigterm() {
    for signal in [Signal::INT, Signal::TERM] {
        let program = Program::start("runs until a signal").until("listens", 1);
        program.signal(signal);
        let end = program.end();
        assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
        assert!(end.says("stopped in order"));
    }
}

#[test]
fn a_program_that_no_longer_listens_to_ctrl_c_is_ended_by_it() {
    let program = Program::start("ran until a signal").until("listens", 1);
    program.signal(Signal::INT);
    assert_eq!(program.end().status.code(), Some(130));
}

#[test]
fn orderly_signals_stop_in_order_and_exit_with_the_signals_number() {
    let program = Program::start("orderly signals").until("ready", 1);
    program.signal(Signal::INT);
    let end = program.end();
    assert_eq!(end.status.code(), Some(130));
    assert!(end.says("stopped in order"));
}

#[test]
fn a_second_signal_ends_a_program_whose_orderly_stop_hangs() {
    for (word, listens) in [("runs until a signal, deaf", "listens"), ("orderly signals, deaf", "ready")] {
        // A stop overtakes what waits in the mailbox: only a handler that has begun holds it up.
        let program = Program::start(word).until(listens, 1).until("blocked", 1);
        let pid = program.child.id();
        // Only the second one kills, so the first has to have been heard: until then, they fall together.
        let sender = std::thread::spawn(move || {
            eventually("a second signal ends it", || {
                if runs(pid) {
                    send(pid, Signal::TERM);
                }
                !runs(pid)
            });
        });
        let end = program.end();
        sender.join().unwrap();
        assert_eq!(end.status.code(), Some(143), "{word}");
    }
}

#[test]
fn a_worker_outlives_the_thread_that_asked_for_it() {
    let end = Program::start("keep alive").end();
    assert!(end.says("the thread is gone") && end.says("the worker lives"), "{:?} {}", end.said, end.stderr);
    assert_eq!(end.status.code(), Some(0));
}

#[test]
fn two_hundred_restarts_and_processes_leave_no_descriptor_thread_or_zombie() {
    let end = Program::start("leaks").end();
    assert!(end.says("nothing leaked"), "{:?} {}", end.said, end.stderr);
}

/// Promise "SIGCHLD ignored by the launcher": no effect.
#[test]
fn a_launcher_that_ignores_sigchld_does_not_hide_how_workers_ended() {
    let script = format!("trap '' CHLD; exec {}", env!("CARGO_BIN_EXE_programs"));
    let mut shell = Command::new("sh");
    let end = Program::launch(shell.args(["-c", &script]), "tells how a worker ended", "").end();
    assert_eq!(end.said, ["exitcode Some(-9)"], "{}", end.stderr);
}

#[test]
fn a_process_is_started_from_any_thread_of_a_program() {
    let end = Program::start("starts from a thread of its own").end();
    assert!(end.says("it ran"), "{}", end.stderr);
}

#[test]
fn a_panic_before_the_worker_has_begun_is_told_as_one() {
    let end = Program::start("panics in each process").end();
    assert_eq!(end.said, ["panic: true"], "{}", end.stderr);
}

#[test]
fn a_large_result_waits_for_a_parent_that_is_busy_elsewhere() {
    let end = Program::start("busy elsewhere").end();
    assert_eq!(end.said, ["result of 5000000 bytes", "exitcode Some(0)"], "{}", end.stderr);
}

#[test]
fn a_worker_that_takes_long_to_exit_keeps_its_exit_code() {
    let end = Program::start("slow at exit").end();
    assert_eq!(end.said, ["result 5", "exitcode Some(0)"], "{}", end.stderr);
}

/// Promise "a foreign waitpid(-1)": deaths are still noticed.
#[test]
fn deaths_are_noticed_beside_code_that_waits_for_all_children() {
    let end = Program::start("a foreign wait").end();
    assert!(end.says("every death was noticed"), "{:?} {}", end.said, end.stderr);
}

#[test]
fn each_process_runs_in_root_and_workers_and_the_config_reaches_them() {
    let end = Program::start("each process").end();
    assert_eq!(end.said, ["each", "each", "config 7"]);
}

#[test]
fn a_program_can_name_the_variables_that_its_workers_inherit() {
    let end = Program::start("lets one variable through").end();
    // What was set for one worker is no variable of the list for the next one down.
    let said = ["HATCHERY_PARENT PROGRAM", "HATCHERY_PARENT PROGRAM_FILE"];
    assert_eq!(end.said, said, "{}", end.stderr);
}

/// A variable is inherited by grandchildren of all kinds, an invitation is not.
#[test]
fn an_invitation_that_is_not_meant_for_it_makes_no_worker() {
    let program = Command::new(env!("CARGO_BIN_EXE_programs"))
        .envs([("PROGRAM", "each process"), ("HATCHERY_PARENT", &std::process::id().to_string())])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&program.stdout), "each\neach\nconfig 7\n");
}
