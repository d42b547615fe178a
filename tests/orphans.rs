//! Promise "parent dies in any way": killed at hundreds of random moments, it leaves no worker behind.
//!
//! The harness is a child subreaper: whatever the killed program leaves becomes its child, so waiting for all
//! children sees every process there is. It is alone in its binary because it waits for all.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hatchery_tests::{BOUND, Dice, eventually, send};
use rustix::process::{Signal, WaitOptions, getpid, set_child_subreaper, wait};

/// The last word of a program, or of its worker, tells where the worker was when the program was killed.
const BEFORE_HELLO: &str = "start";
const BEFORE_READY: &str = "hello";
const AFTER_READY: &str = "ready";
/// One more of its workers, or of theirs, is stopped.
const STOPPED: &str = "stopped";

/// Promise "parent dies in any way": while it spawns its workers.
#[test]
fn a_parent_killed_at_random_moments_of_spawning_leaves_no_worker() {
    let _alone = alone();
    let mut dice = Dice::new(0x5eed);
    let mut hits = [0_u32; 3];
    let mut rounds = 0;
    while rounds < 100 || hits.iter().any(|hits| *hits < 10) {
        rounds += 1;
        assert!(rounds <= 1000, "after {rounds} rounds: before hello, before ready, after: {hits:?}");
        let left = one_round("spawns for ever", dice.throw(4), dice.throw(5_000));
        // Killed before there was a worker, or between two: nobody could have been left.
        if left.workers == 0 {
            continue;
        }
        match left.last() {
            Some(BEFORE_HELLO) => hits[0] += 1,
            Some(BEFORE_READY) => hits[1] += 1,
            Some(AFTER_READY) => hits[2] += 1,
            _ => {}
        }
    }
    println!("{rounds} rounds: before hello, before ready, after: {hits:?}");
}

/// The same for workers three levels deep, some of them stopped.
#[test]
fn a_parent_killed_at_300_random_moments_leaves_no_worker_at_three_levels_stopped_ones_included() {
    let _alone = alone();
    let mut dice = Dice::new(0xdee9);
    let mut rounds = 0;
    // How often there were so many workers left at once, and how often so many of them were certainly stopped.
    let (mut left_alone, mut stopped) = ([0_u32; 6], [0_u32; 3]);
    while rounds < 300 || left_alone[5] < 10 || stopped[2] < 10 {
        rounds += 1;
        assert!(rounds <= 2000, "after {rounds} rounds: {left_alone:?} left, {stopped:?} stopped");
        let left = one_round("digs for ever", dice.throw(6), dice.throw(10_000));
        left_alone[(left.workers as usize).min(5)] += 1;
        if left.certain {
            let said = left.said.iter().rev().take_while(|line| *line != BEFORE_HELLO);
            stopped[said.filter(|line| *line == STOPPED).count().min(2)] += 1;
        }
    }
    println!("{rounds} rounds: {left_alone:?} left, {stopped:?} stopped");
}

/// Both tests wait for all children of this process, so only one of them can be at work.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    set_child_subreaper(Some(getpid())).unwrap();
    one
}

/// What a killed program left.
struct Left {
    /// What it had said in all.
    said: Vec<String>,
    /// It said nothing between the last look before the kill and its end.
    certain: bool,
    /// How many processes other than the program itself were reaped here: those that it had not reaped itself.
    workers: u32,
}

impl Left {
    /// The last word, if it was the same before the kill as when all were gone.
    fn last(&self) -> Option<&str> {
        self.said.last().filter(|_| self.certain).map(String::as_str)
    }
}

/// Starts a program, kills it some microseconds after it has said so many lines, waits for all that it left. (How long
/// it takes to say them is the machine's affair, so that the moments are spread alike on a slow one.)
#[expect(clippy::zombie_processes, reason = "it is waited for together with all that it leaves")]
fn one_round(word: &str, lines: u64, micros: u64) -> Left {
    let mut program = Command::new(env!("CARGO_BIN_EXE_programs"))
        .envs([("PROGRAM", word)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(program.stdout.take().unwrap());
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = said.clone();
    let listener = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            heard.lock().unwrap().push(line);
        }
    });
    eventually("it says that", || said.lock().unwrap().len() as u64 >= lines);
    std::thread::park_timeout(Duration::from_micros(micros));
    let before = said.lock().unwrap().len();
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
    let said = std::mem::take(&mut *said.lock().unwrap());
    Left { certain: said.len() == before, said, workers: reaped.len() as u32 - 1 }
}
