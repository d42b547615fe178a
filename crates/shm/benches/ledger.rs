//! What the ledger costs a task: noting its result and the next task, and taking the result.
//!
//! The ruler: the same records through a pair of Unix sockets, one write a task, read as many at a time as there are.
//! Here and there one thread does both sides in turn, and what counts is the processor time that it takes.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hatchery_shm::{Lane, Ledger, Shape};
use rustix::time::{ClockId, clock_gettime};

/// Tasks of a round.
const TASKS: u32 = 2_000_000;
/// Tasks between two looks of the pool.
const CHUNK: u32 = 1_000;

fn main() {
    let full = std::env::args().any(|arg| arg == "--bench");
    let (rounds, tasks) = if full { (7, TASKS) } else { (1, TASKS / 100) };
    let mut rows = [(); 4].map(|()| Vec::new());
    for _ in 0..rounds {
        let (noted, taken) = in_turn(tasks);
        let (written, read) = sockets(tasks / 10);
        for (row, figure) in rows.iter_mut().zip([noted, taken, written, read]) {
            row.push(figure);
        }
    }
    println!("a task with a result of 8 bytes, {rounds} rounds of {tasks}:\n");
    println!("{:<52} {:>10}", "", "median ns");
    let names = [
        "its result and the next task are noted",
        "its result is taken",
        "ruler: its result is written to a socket",
        "ruler: its result is read from there",
    ];
    for (name, row) in names.into_iter().zip(&mut rows) {
        row.sort_by(f64::total_cmp);
        println!("{name:<52} {:>10.1}", row[row.len() / 2]);
    }
}

/// Processor time of this thread, so that what else runs on the machine counts for less.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Nanoseconds a task.
fn per(time: Duration, tasks: u32) -> f64 {
    time.as_nanos() as f64 / f64::from(tasks)
}

fn ledger() -> (Ledger, Lane) {
    let shape = Shape::new(1, 64 * 1024).expect("within the limits");
    let ledger = Ledger::create(shape).expect("memory");
    let memory = ledger.share().expect("a descriptor");
    let lane = Lane::open(memory, shape).expect("memory").pop().expect("one lane");
    (ledger, lane)
}

fn in_turn(tasks: u32) -> (f64, f64) {
    let (mut ledger, mut lane) = ledger();
    let (mut noting, mut taking) = (Duration::ZERO, Duration::ZERO);
    lane.begin(0).expect("it is open");
    for chunk in 0..tasks / CHUNK {
        let begun = worked();
        for task in 0..CHUNK {
            let number = chunk * CHUNK + task;
            let result = u64::from(black_box(number)).to_le_bytes();
            let _ = black_box(lane.finish(0, &result, Some(number + 1)).expect("there is room"));
        }
        noting += worked() - begun;
        let begun = worked();
        let taken = ledger
            .drain(|record| {
                black_box(record.bytes.len());
            })
            .expect("an honest worker");
        taking += worked() - begun;
        assert_eq!(taken, CHUNK as usize);
    }
    (per(noting, tasks), per(taking, tasks))
}

fn sockets(tasks: u32) -> (f64, f64) {
    let (mut pool, mut worker) = UnixStream::pair().expect("sockets");
    let (mut writing, mut reading) = (Duration::ZERO, Duration::ZERO);
    let mut records = [0; 64 * 1024];
    // As many small writes as a socket of the usual size takes.
    let chunk = CHUNK / 10;
    for _ in 0..tasks / chunk {
        let begun = worked();
        for task in 0..chunk {
            worker.write_all(&u128::from(black_box(task)).to_le_bytes()).expect("there is room");
        }
        writing += worked() - begun;
        let begun = worked();
        let mut left = chunk as usize * 16;
        while left > 0 {
            left -= pool.read(&mut records).expect("they are there");
        }
        reading += worked() - begun;
    }
    (per(writing, tasks), per(reading, tasks))
}
