//! Every way of leaving: what the program prints, its exit code, and that no worker outlives it.

mod runner;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hatchery_tests::{BOUND, eventually, ignores, runs, send, state};
use rustix::process::Signal;

use crate::runner::Program;

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

/// What runs a command in a network of its own, if anything does here.
fn with_a_network_of_its_own() -> Option<Command> {
    [&["--net"][..], &["--user", "--map-root-user", "--net"]].into_iter().find_map(|options| {
        let mut trial = Command::new("unshare");
        trial.args(options).arg("true").output().ok().filter(|output| output.status.success())?;
        let mut command = Command::new("unshare");
        command.args(options).arg(env!("CARGO_BIN_EXE_programs"));
        Some(command)
    })
}

#[test]
fn a_thousand_restarts_and_processes_leave_no_descriptor_thread_zombie_or_memory() {
    // All sockets it sees there are its own, those included that nobody has a descriptor of.
    let end = match with_a_network_of_its_own() {
        Some(mut command) => Program::launch(&mut command, "leaks", "alone").end(),
        None => Program::start("leaks").end(),
    };
    assert!(end.says("nothing leaked"), "{:?} {}", end.said, end.stderr);
    println!("{:?}", end.said);
}

/// Promise "SIGCHLD ignored by the launcher": no effect.
#[test]
fn a_launcher_that_ignores_sigchld_does_not_hide_how_workers_ended() {
    let script = format!("trap '' CHLD; exec {}", env!("CARGO_BIN_EXE_programs"));
    let mut shell = Command::new("sh");
    let end = Program::launch(shell.args(["-c", &script]), "tells how workers ended", "").end();
    let mut said = vec!["exitcode Some(-9)", "exitcode Some(0)"];
    said.extend(["exitcode Some(-6)"; 5]);
    said.extend(["incarnation Some(6)", "stopped in order", "zombies 0"]);
    assert_eq!(end.said, said, "{}", end.stderr);
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

/// Time passes.
fn pass(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Promise "worker hangs", the other way round: what a parent misses while it is away is not its workers' fault.
#[test]
fn a_root_that_blocks_or_is_stopped_for_ten_seconds_loses_no_worker() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("go");
    // At the same time, since the ten seconds are the fault itself.
    let blocked = Program::start("stands still");
    let stopped = Program::start_with("stands still", file.to_str().unwrap()).until("stop me", 1);
    // As a machine that is suspended: first the workers, so that they owe answers, and they come back last.
    let frozen = Program::start_with("freezes", file.to_str().unwrap()).until("stop me", 1);
    let workers = frozen.workers.clone();
    workers.iter().for_each(|worker| send(*worker, Signal::STOP));
    stopped.signal(Signal::STOP);
    pass(Duration::from_millis(1500));
    frozen.signal(Signal::STOP);
    pass(Duration::from_secs(10));
    std::fs::write(file, "").unwrap();
    stopped.signal(Signal::CONT);
    frozen.signal(Signal::CONT);
    pass(Duration::from_millis(200));
    workers.iter().for_each(|worker| send(*worker, Signal::CONT));
    for program in [blocked, stopped, frozen] {
        let end = program.end();
        assert!(end.says("23 of 23 live, nested: true"), "{:?} {}", end.said, end.stderr);
    }
}

/// The same for one that is on its way out: it has closed link and channel, and is frozen together with its parent.
#[test]
fn a_worker_that_is_frozen_with_its_root_on_its_way_out_is_not_blamed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("go");
    let program = Program::start_with("freezes on the way out", file.to_str().unwrap()).until("started", 1);
    // Not sooner: its worker stops it.
    std::fs::write(file, "").unwrap();
    let (root, worker) = (program.child.id(), program.workers[0]);
    let frozen = |pid| state(pid) == Some('T');
    eventually("both stand still", || frozen(root) && frozen(worker));
    pass(Duration::from_millis(1500));
    send(root, Signal::CONT);
    send(worker, Signal::CONT);
    let end = program.end();
    assert_eq!(end.said.last().unwrap(), "exitcode Some(0), reason None", "{}", end.stderr);
}

#[test]
fn a_worker_that_closes_link_and_channel_and_lives_on_is_ended() {
    let program = Program::start_with("closes everything", "/").until("started", 1);
    let end = program.end();
    let said = end.said.last().unwrap();
    assert!(said.starts_with("exitcode Some(-9), reason Some(\"it closed its "), "{said} {}", end.stderr);
    assert!(said.ends_with(" but lived on\")"), "{said}");
}

#[test]
fn a_worker_that_floods_its_output_misses_no_heartbeat() {
    let end = Program::start("noisy").end();
    assert_eq!(end.said, ["incarnation Some(1)", "stopped in order"], "{} bytes", end.stderr.len());
}

#[test]
fn a_worker_that_takes_long_to_exit_keeps_its_exit_code() {
    let end = Program::start("slow at exit").end();
    assert_eq!(end.said, ["result 5", "exitcode Some(0)"], "{}", end.stderr);
}

/// Promise "a foreign waitpid(-1)": deaths are still noticed, the one that somebody else certainly saw first too, and
/// nobody else is signalled.
#[test]
fn deaths_are_noticed_beside_code_that_waits_for_all_children() {
    let end = Program::start("a foreign wait").end();
    assert!(end.says("known to be unknown"), "{:?} {}", end.said, end.stderr);
    assert!(end.says("every death was noticed"), "{:?} {}", end.said, end.stderr);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
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

#[test]
fn a_panic_hook_of_each_process_leaves_places_known_in_root_and_workers() {
    let end = Program::start("sets a hook").end();
    assert_eq!(end.status.code(), Some(0), "{:?} {}", end.said, end.stderr);
    for line in ["local, its place known: true", "worker, its place known: true"] {
        assert!(end.says(line), "{:?} {}", end.said, end.stderr);
    }
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
