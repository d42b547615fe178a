//! Promise "parent dies in any way": killed at a hundred random moments, it leaves no worker behind.
//!
//! The harness is a child subreaper: whatever the killed program leaves becomes its child, so waiting for all
//! children sees every process there is. It is alone in its binary because it waits for all.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hatchery_tests::{BOUND, send};
use rustix::process::{Signal, WaitOptions, getpid, set_child_subreaper, wait};

/// The last word of a program, or of its worker, tells where the worker was when the program was killed.
const BEFORE_HELLO: &str = "start";
const BEFORE_READY: &str = "hello";
const AFTER_READY: &str = "ready";

#[test]
fn a_parent_killed_at_random_moments_of_spawning_leaves_no_worker() {
    set_child_subreaper(Some(getpid())).unwrap();
    let mut dice = Dice(0x5eed);
    let mut hits = [0_u32; 3];
    let mut rounds = 0;
    while rounds < 100 || hits.iter().any(|hits| *hits < 10) {
        rounds += 1;
        assert!(rounds <= 1000, "after {rounds} rounds: before hello, before ready, after: {hits:?}");
        let Left { last, workers } = one_round(Duration::from_micros(2_000 + dice.throw() % 14_000));
        // Killed before there was a worker, or between two: nobody could have been left.
        if workers == 0 {
            continue;
        }
        match last.as_deref() {
            Some(BEFORE_HELLO) => hits[0] += 1,
            Some(BEFORE_READY) => hits[1] += 1,
            Some(AFTER_READY) => hits[2] += 1,
            _ => {}
        }
    }
    println!("{rounds} rounds: before hello, before ready, after: {hits:?}");
}

/// What a killed program left.
struct Left {
    /// The last word, if it was the same before the kill as when all were gone.
    last: Option<String>,
    /// How many processes other than the program itself were reaped here: those that it had not reaped itself.
    workers: u32,
}

/// Starts a program, kills it after a while, waits for all that it left.
#[expect(clippy::zombie_processes, reason = "it is waited for together with all that it leaves")]
fn one_round(after: Duration) -> Left {
    let mut program = Command::new(env!("CARGO_BIN_EXE_programs"))
        .envs([("PROGRAM", "spawns for ever")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(program.stdout.take().unwrap());
    let last = Arc::new(Mutex::new(String::new()));
    let heard = last.clone();
    let listener = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            *heard.lock().unwrap() = line;
        }
    });
    std::thread::park_timeout(after);
    let said = last.lock().unwrap().clone();
    send(program.id(), Signal::KILL);
    let begun = Instant::now();
    let mut reaped = Vec::new();
    loop {
        match wait(WaitOptions::NOHANG) {
            // Nobody is left.
            Err(rustix::io::Errno::CHILD) => break,
            Ok(Some((pid, _))) => reaped.push(pid.as_raw_nonzero().get().unsigned_abs()),
            Ok(None) => {
                assert!(begun.elapsed() < BOUND, "a process is left");
                std::thread::park_timeout(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    listener.join().unwrap();
    assert!(reaped.contains(&program.id()));
    let last = last.lock().unwrap().clone();
    Left { last: (last == said).then_some(last), workers: reaped.len() as u32 - 1 }
}

/// A sequence that is the same in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
