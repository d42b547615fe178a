//! Requests are counted where they run, while the worker is killed again and again: none runs twice, and what their
//! callers are told agrees with what ran.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use hatchery::prelude::*;
use hatchery_tests::{BOUND, Dice, ends};
use rustix::process::{Pid, Signal};

use crate::polled;

/// Writes down what it runs, where its successors go on writing.
struct Tally {
    file: File,
}

#[hatchery::actor]
impl Tally {
    fn start(path: String) -> hatchery::Result<Self> {
        Ok(Tally { file: File::options().append(true).create(true).open(path)? })
    }

    fn run(&mut self, number: u64) -> u64 {
        self.note(number)
    }

    /// Some of these take several frames, and the handler a while.
    async fn run_large(&mut self, number: u64, bytes: Vec<u8>) -> u64 {
        for _ in 0..bytes.len() % 4 {
            tokio::task::yield_now().await;
        }
        self.note(number)
    }

    fn run_and_answer_later(&mut self, number: u64, reply: Reply<u64>, cx: &Context) {
        self.note(number);
        cx.spawn(async move {
            tokio::task::yield_now().await;
            let _ = reply.send(number);
        });
    }

    #[message(cancel)]
    async fn run_unless_cut(&mut self, number: u64) -> u64 {
        tokio::task::yield_now().await;
        self.note(number)
    }
}

impl Tally {
    /// As many bytes for each, so that no note lies on two pages of the file: a kill leaves the whole of it or nothing.
    fn note(&mut self, number: u64) -> u64 {
        self.file.write_all(&number.to_le_bytes()).expect("room for it");
        number
    }
}

/// What a caller knows when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    Answered,
    /// An error that says that it did not run.
    NotExecuted,
    /// An error that says that it may have run; a tell that was taken; a caller who left.
    Perhaps,
}

fn told(number: u64, outcome: Result<u64, hatchery::CallError>) -> Told {
    match outcome {
        Ok(answer) => {
            assert_eq!(answer, number);
            Told::Answered
        }
        Err(error) if error.maybe_executed() => Told::Perhaps,
        Err(_) => Told::NotExecuted,
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

async fn calls(actor: TallyHandle, seed: u64) -> Vec<(u64, Told)> {
    let mut dice = Dice::new(seed);
    let mut all = Vec::new();
    for _ in 0..400 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let some_time = Duration::from_micros(dice.throw(3_000));
        let end = match dice.throw(8) {
            0 | 1 => told(number, actor.run(number).timeout(BOUND).await),
            2 => {
                let size = if dice.throw(10) == 0 { 600_000 } else { dice.throw(300) as usize };
                told(number, actor.run_large(number, vec![0; size]).timeout(BOUND).await)
            }
            3 => told(number, actor.run_and_answer_later(number).timeout(BOUND).await),
            4 => told(number, actor.run_unless_cut(number).timeout(some_time).await),
            5 => match actor.run(number).timeout(BOUND).tell().await {
                Ok(()) => Told::Perhaps,
                Err(_) => Told::NotExecuted,
            },
            6 => {
                let ask = actor.run_large(number, vec![0; dice.throw(300) as usize]);
                polled(dice.throw(4), ask).await.map_or(Told::Perhaps, |outcome| told(number, outcome))
            }
            // At an incarnation that may have ended meanwhile.
            _ => match actor.pinned() {
                Some(pinned) => {
                    for _ in 0..dice.throw(300) {
                        tokio::task::yield_now().await;
                    }
                    told(number, pinned.run(number).timeout(BOUND).await)
                }
                None => told(number, actor.run(number).timeout(some_time).await),
            },
        };
        all.push((number, end));
    }
    all
}

/// Promises "ask" and "tell": at most once, and the error says whether it may have run.
#[hatchery::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_runs_twice_and_errors_are_right_about_that_under_random_kills() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ran");
    let tree = Supervisor::new(Strategy::OneForOne)
        .intensity(10_000, Duration::from_secs(60))
        .start()
        .await
        .unwrap();
    let spec = worker::<Tally>("tally", file.display().to_string());
    let actor = tree.start_child(spec).await.unwrap();
    let callers: Vec<_> = (1..=8).map(|seed| tokio::spawn(calls(actor.clone(), seed))).collect();
    let killer = tokio::spawn({
        let (actor, file) = (actor.clone(), file.clone());
        async move {
            let mut dice = Dice::new(99);
            let mut ticks = tokio::time::interval(Duration::from_millis(1));
            let mut next = 0;
            loop {
                ticks.tick().await;
                // By what has run, so that a slow machine has no more kills than a fast one.
                let ran = std::fs::metadata(&file).map_or(0, |file| file.len() / 8);
                let pid = actor.pid().filter(|_| ran >= next);
                if let Some(pid) = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                    next = ran + dice.throw(60);
                }
            }
        }
    });
    let mut all = Vec::new();
    for caller in callers {
        all.extend(ends("the callers", caller).await.unwrap());
    }
    killer.abort();
    let _ = killer.await;
    ends("stop", tree.stop()).await.unwrap();

    let ran = std::fs::read(file).unwrap();
    assert_eq!(ran.len() % 8, 0, "half a note");
    let mut often = HashMap::<u64, u32>::new();
    for number in ran.chunks(8) {
        *often.entry(u64::from_le_bytes(number.try_into().unwrap())).or_default() += 1;
    }
    let mut sums = HashMap::<(Told, u32), u32>::new();
    for (number, told) in &all {
        *sums.entry((*told, often.remove(number).unwrap_or(0))).or_default() += 1;
    }
    println!("{sums:?}");
    assert!(often.is_empty(), "nobody asked for these: {often:?}");
    let sum = |told, times| sums.get(&(told, times)).copied().unwrap_or(0);
    for ((told, times), sum) in &sums {
        let right = match told {
            Told::Answered => *times == 1,
            Told::NotExecuted => *times == 0,
            Told::Perhaps => *times <= 1,
        };
        assert!(right, "{sum} of these ran {times} times: {told:?}");
    }
    // Each of them was there to be wrong about.
    assert!(sum(Told::Answered, 1) > 500 && sum(Told::NotExecuted, 0) > 20, "{sums:?}");
    assert!(sum(Told::Perhaps, 0) > 20 && sum(Told::Perhaps, 1) > 20, "{sums:?}");
}
