//! Faults: what programs that meet trouble look like from outside. The programs are in `trouble.rs`
//! and `scarce.rs`.

mod runner;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hatchery_tests::{children, eventually, send};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::runner::Program;

/// A directory, and a path in it that is no file.
fn scratch() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file").display().to_string();
    (dir, file)
}

/// A program whose stdout and stderr nobody reads until we do.
struct Unread(Child);

impl Unread {
    fn start(word: &str, file: &str) -> Unread {
        let program = Command::new(env!("CARGO_BIN_EXE_programs"))
            .envs([("PROGRAM", word), ("PROGRAM_FILE", file), ("RUST_BACKTRACE", "0")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Unread(program.unwrap())
    }

    /// Waits until a file is there; gives what it says.
    fn until(&mut self, file: &str) -> String {
        eventually(file, || {
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none() || Path::new(file).exists(), "{ended:?}: {}", self.rest());
            Path::new(file).exists()
        });
        std::fs::read_to_string(file).unwrap()
    }

    fn rest(&mut self) -> String {
        let mut rest = String::new();
        if let Some(mut err) = self.0.stderr.take() {
            let _ = err.read_to_string(&mut rest);
        }
        rest
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fault: stdout and stderr flooded with nobody reading. The worker goes on, asks are answered meanwhile, the memory of
/// the root is bounded, the tail of the exit is whole (all that is checked in the program), and the loss is counted.
#[test]
fn a_flood_that_nobody_reads_is_dropped_and_counted() {
    let (_dir, file) = scratch();
    let mut program = Unread::start("flooded", &file);
    let report = program.until(&format!("{file}.report"));
    // What is read and what is said to be lost are all there was.
    let (sender, lines) = std::sync::mpsc::channel();
    let out = program.0.stdout.take().unwrap();
    let err = program.0.stderr.take().unwrap();
    let streams: [Box<dyn Read + Send>; 2] = [Box::new(out), Box::new(err)];
    for stream in streams {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let lost = line.strip_prefix("[hatchery: ").map(|rest| rest.split(' ').next().unwrap());
                let lost = lost.map(|lost| lost.parse::<usize>().unwrap());
                let _ = sender.send((lost.is_none(), lost.unwrap_or(1)));
            }
        });
    }
    let all = 100_000 + 12_500 + 1;
    let (mut read, mut lost) = (0, 0);
    while read + lost < all {
        let (was_read, lines) = lines.recv_timeout(hatchery_tests::BOUND).unwrap();
        *(if was_read { &mut read } else { &mut lost }) += lines;
    }
    assert_eq!(read + lost, all);
    assert!(lost > 0);
    println!("{report}; {read} lines read, {lost} lost");
    std::fs::write(format!("{file}.enough"), "").unwrap();
    assert_eq!(program.0.wait().unwrap().code(), Some(0));
}

/// A full stderr holds up the printer of a program, and nobody else: it leaves in time.
#[test]
fn a_program_whose_output_nobody_reads_leaves_in_time() {
    let (_dir, file) = scratch();
    let mut program = Unread::start("flooded", &file);
    program.until(&format!("{file}.report"));
    std::fs::write(format!("{file}.enough"), "").unwrap();
    let mut status = None;
    eventually("it leaves", || {
        status = program.0.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
}

/// The same for the program's own words: an error or a panic of its main that nobody reads.
#[test]
fn a_main_that_fails_or_panics_with_a_full_stderr_leaves_in_time() {
    let words = ["fails unread", "fails unread, threads", "panics unread", "panics unread, threads"];
    let (_dir, file) = scratch();
    let programs = words.map(|word| (word, Unread::start(word, &file)));
    for (word, mut program) in programs {
        let mut status = None;
        eventually(word, || {
            status = program.0.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(1), "{word}");
        // Its workers hold its stdout, so this is also the end of those.
        let mut said = String::new();
        program.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        // Where the hook holds up the only thread, nothing can go on.
        assert!(said.contains("stopped in order") || word == "panics unread", "{word}: {said}");
        assert!(program.rest().len() >= 4096, "it was full");
    }
}

/// Fault: a grandchild keeps stderr and stdout open. The exit comes at once; what is held meanwhile is bounded, and comes
/// back.
#[test]
fn helpers_that_hold_the_pipes_of_dead_workers_hold_up_nothing() {
    let (_dir, fifo) = scratch();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &*fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    // The helpers end when nobody holds this end any more, this test as a whole included.
    let other_end = File::options().read(true).write(true).open(&fifo).unwrap();
    let mut program = Unread::start("helpers that stay", &fifo);
    program.until(&format!("{fifo}.held"));
    drop(other_end);
    let report = program.until(&format!("{fifo}.report"));
    let err = program.rest();
    assert_eq!(program.0.wait().unwrap().code(), Some(0), "{err}");
    // What a helper says when its worker is long dead is still passed on, where its pipe was kept.
    assert_eq!(err.lines().filter(|line| *line == "bye").count(), 128, "{err}");
    println!("{report}");
}

/// Fault: descriptors exhausted in the parent.
#[test]
fn a_parent_without_descriptors_says_so_and_recovers() {
    let end = Program::start("out of descriptors").end();
    assert_eq!(end.status.code(), Some(0), "{:?} {}", end.said, end.stderr);
    println!("{:?}", end.said);
}

/// Fault: descriptors exhausted in a worker.
#[test]
fn a_worker_without_descriptors_answers_and_recovers() {
    let end = Program::start("hoarding worker").end();
    assert!(end.says("a worker without descriptors is a worker"), "{:?} {}", end.said, end.stderr);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
}

/// The limit of processes does not bind root, so for root this runs a program as somebody else, if that can be.
fn bound_by_limits(word: &str) -> Option<crate::runner::End> {
    const NOBODY_ELSE: u32 = 54_321;
    let programs = env!("CARGO_BIN_EXE_programs");
    let mut command = Command::new(programs);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY_ELSE).gid(NOBODY_ELSE).current_dir("/");
        let there = Command::new("test").args(["-x", programs]).uid(NOBODY_ELSE).gid(NOBODY_ELSE).status();
        if !there.is_ok_and(|status| status.success()) {
            println!("skipped: root has no such limit, and nobody else may execute {programs}");
            return None;
        }
    }
    let end = Program::launch(&mut command, word, "").end();
    assert_eq!(end.status.code(), Some(0), "{:?} {}", end.said, end.stderr);
    Some(end)
}

/// Fault: fork fails with EAGAIN.
#[test]
fn a_parent_without_processes_says_so_and_recovers() {
    if let Some(end) = bound_by_limits("out of processes") {
        println!("{:?}", end.said);
    }
}

/// The same below: a worker that starts workers of its own.
#[test]
fn a_worker_without_processes_answers_and_recovers() {
    if let Some(end) = bound_by_limits("worker out of processes") {
        assert!(end.says("a worker without processes is a worker"), "{:?} {}", end.said, end.stderr);
    }
}

/// Fault: descriptors exhausted when a child has to be restarted.
#[test]
fn a_restart_without_descriptors_backs_off_is_counted_and_comes_back_by_itself() {
    let end = Program::start("restarts out of descriptors").end();
    assert_eq!(end.status.code(), Some(0), "{:?} {}", end.said, end.stderr);
    println!("{:?}", end.said);
}

/// Fault: descriptors exhausted when a pool has to replace a worker.
#[test]
fn a_pool_without_descriptors_goes_on_with_the_workers_it_has() {
    let end = Program::start("pool out of descriptors").end();
    assert_eq!(end.status.code(), Some(0), "{:?} {}", end.said, end.stderr);
}

/// Fault: fork fails with EAGAIN when a child has to be restarted.
#[test]
fn a_restart_without_processes_backs_off_is_counted_and_comes_back_by_itself() {
    if let Some(end) = bound_by_limits("restarts out of processes") {
        println!("{:?}", end.said);
    }
}

/// Fault: the program's file is deleted, and another one put in its place, while it runs.
#[test]
fn a_program_whose_file_is_replaced_goes_on_starting_the_same_image() {
    let (dir, file) = scratch();
    let programs = Path::new(env!("CARGO_BIN_EXE_programs"));
    let copy = dir.path().join("programs");
    std::fs::copy(programs, &copy).unwrap();
    let mut command = Command::new(&copy);
    let program = Program::launch(&mut command, "replaced", &file).until("running", 1);
    std::fs::write(format!("{file}.running"), "").unwrap();
    let program = program.until("deleted", 1);
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(format!("{file}.deleted"), "").unwrap();
    let program = program.until("replaced", 1);
    // A later build of the same program.
    std::fs::copy(programs, &copy).unwrap();
    std::fs::write(format!("{file}.replaced"), "").unwrap();
    let end = program.end();
    assert!(end.says("all of them are the same image"), "{:?} {}", end.said, end.stderr);
    assert_eq!(end.status.code(), Some(0));
}

/// What runs a command as process 1 of a namespace of its own, or why nothing does.
fn as_first_process() -> Result<Command, String> {
    let mut why = String::new();
    let options = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    for user in [&["--user", "--map-root-user"][..], &[]] {
        let mut command = Command::new("unshare");
        command.args(user).args(options);
        let mut trial = Command::new("unshare");
        match trial.args(user).args(options).arg("true").output() {
            Ok(output) if output.status.success() => return Ok(command),
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    Err(why)
}

/// Fault: the root is process 1 of a namespace.
#[test]
fn a_root_that_is_process_1_works_reaps_and_leaves() {
    let mut command = match as_first_process() {
        Ok(command) => command,
        Err(why) => return println!("skipped: no namespaces here: {why}"),
    };
    let end = Program::launch(command.arg(env!("CARGO_BIN_EXE_programs")), "first process", "").end();
    assert!(end.says("ready"), "{:?} {}", end.said, end.stderr);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
}

#[test]
fn a_root_that_is_process_1_stops_in_order_on_signals_it_listens_to() {
    let mut command = match as_first_process() {
        Ok(command) => command,
        Err(why) => return println!("skipped: no namespaces here: {why}"),
    };
    command.arg(env!("CARGO_BIN_EXE_programs"));
    let mut program = Program::launch(&mut command, "orderly signals", "").until("ready", 1);
    send(children(program.child.id())[0], Signal::TERM);
    // The numbers it knows its workers by are not those they have here.
    program.workers.clear();
    let end = program.end();
    assert!(end.says("stopped in order"), "{:?} {}", end.said, end.stderr);
    assert_eq!(end.status.code(), Some(143), "{}", end.stderr);
}

#[test]
fn a_root_that_is_process_1_takes_its_workers_with_it_when_it_is_killed() {
    let mut command = match as_first_process() {
        Ok(command) => command,
        Err(why) => return println!("skipped: no namespaces here: {why}"),
    };
    command.arg(env!("CARGO_BIN_EXE_programs"));
    let mut program = Program::launch(&mut command, "stays", "").until("ready", 2);
    // With this one, its only child is killed.
    program.signal(Signal::KILL);
    program.workers.clear();
    // Its stdout ends with the last of its workers.
    assert_eq!(program.end().status.signal(), Some(Signal::KILL.as_raw()));
}

/// Promise "PID reuse".
#[test]
fn a_pid_that_comes_back_as_anothers_is_never_signalled() {
    let mut command = match as_first_process() {
        Ok(command) => command,
        Err(why) => return println!("skipped: no namespaces here: {why}"),
    };
    let end = Program::launch(command.arg(env!("CARGO_BIN_EXE_programs")), "recycled pids", "").end();
    assert!(end.says("nobody else was signalled"), "{:?} {}", end.said, end.stderr);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
}

/// Fault: a slow reader, here the parent. The worker holds no more than its window of answers, and control goes on.
#[test]
fn a_parent_that_does_not_read_costs_its_worker_a_window_and_keeps_control() {
    let (_dir, file) = scratch();
    let program = Program::start_with("does not read", &file).until("answered", 255);
    std::fs::write(format!("{file}.heard"), "").unwrap();
    let end = program.end();
    assert_eq!(end.status.code(), Some(0), "{:?} {}", end.said, end.stderr);
    println!("{:?}", end.said.last());
}

/// Fault: a slow reader, here the worker.
#[test]
fn a_worker_that_does_not_read_costs_its_parent_a_window_and_is_stopped_all_the_same() {
    let (_dir, file) = scratch();
    let end = Program::start_with("is not read", &file).end();
    assert_eq!(end.status.code(), Some(0), "{:?} {}", end.said, end.stderr);
    println!("{:?}", end.said.last());
}
