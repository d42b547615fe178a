//! The ledger in a model of memory: every order of the two sides' steps, every value that a read may give, and a death
//! of the worker at every step.
//!
//! ```text
//! RUSTFLAGS="--cfg model" cargo test -p hatchery-shm --lib --target-dir target/model model::
//! ```
//!
//! The code is the one that runs elsewhere; only the memory is `loom`'s. Beside what holds stand mistakes, each of which
//! the model has to notice, or it would show nothing. One it cannot: `loom` never reads what is written later, so
//! whether the pool says in the right order that it has read something is tried by saying it before it reads at all.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::Notify;
use loom::sync::atomic::AtomicU64;

use crate::cursor::{CLOSE, HOLD, Packed, WAKE_EACH, WAKE_IDLE};
use crate::lane::{Bell, NotKept, Writer};
use crate::ledger::{Reader, Wake};
use crate::shape::{Place, Shape};
use crate::words::Words;

/// What one side does otherwise than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The worker moves the cursor without publishing what is below it.
    PublishesRelaxed,
    /// The worker moves the cursor before it writes what is below it.
    CursorFirst,
    /// The worker moves the cursor whatever the pool has made of it.
    MovesBlindly,
    /// The worker moves the cursor before it sends what does not fit.
    SendsLast,
    /// The pool reads how far the results reach, and nothing else with it.
    AcquiresNothing,
    /// The pool says that it has read results, and then reads them.
    FreesFirst,
    /// The pool closes a lane whatever has become of it since it looked.
    ClosesBlindly,
    /// The pool ends a task although the lane could not be closed.
    KillsAnyway,
    /// The pool says that it sleeps without regard to what has come since it looked.
    SleepsBlindly,
    /// The pool holds a lane whatever has become of it since it looked.
    HoldsBlindly,
    /// The worker begins the next task of a lane that is held.
    BeginsAnyway,
}

/// The memory as one side sees it.
#[derive(Clone)]
struct Side {
    words: Arc<Vec<AtomicU64>>,
    place: Place,
    mistake: Mistake,
    /// Steps that it takes before it dies.
    steps: Rc<Cell<usize>>,
    /// Writes that are put off, if that is its mistake.
    late: Rc<Cell<Vec<(usize, u64)>>>,
}

/// What a step gives that is not taken any more.
struct Died;

impl Side {
    fn new(words: &Arc<Vec<AtomicU64>>, place: Place, mistake: Mistake, steps: usize) -> Side {
        Side { words: words.clone(), place, mistake, steps: Rc::new(Cell::new(steps)), late: Rc::default() }
    }

    fn step(&self) {
        match self.steps.get() {
            0 => resume_unwind(Box::new(Died)),
            left => self.steps.set(left - 1),
        }
    }
}

impl Words for Side {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.step();
        let cursor = at == self.place.cursor;
        let order = if self.mistake == Mistake::AcquiresNothing { Ordering::Relaxed } else { order };
        let value = self.words[at].load(order);
        if cursor && self.mistake == Mistake::FreesFirst {
            self.words[self.place.tail].store(u64::from(Packed(value).head()), Ordering::Release);
        }
        value
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.step();
        if self.mistake == Mistake::CursorFirst {
            let mut late = self.late.take();
            late.push((at, value));
            self.late.set(late);
        } else {
            self.words[at].store(value, order);
        }
    }

    fn compare_exchange(&self, at: usize, current: u64, new: u64, success: Ordering) -> Result<(), u64> {
        self.step();
        let word = &self.words[at];
        let result = match self.mistake {
            Mistake::MovesBlindly => {
                word.swap(new, success);
                Ok(())
            }
            Mistake::ClosesBlindly if new & CLOSE != 0 => {
                word.fetch_or(CLOSE, success);
                Ok(())
            }
            Mistake::SleepsBlindly if new & (WAKE_EACH | WAKE_IDLE) != 0 => {
                word.fetch_or(new & (WAKE_EACH | WAKE_IDLE), success);
                Ok(())
            }
            Mistake::HoldsBlindly if new & HOLD != 0 => {
                word.fetch_or(HOLD, success);
                Ok(())
            }
            Mistake::PublishesRelaxed => {
                word.compare_exchange(current, new, Ordering::Relaxed, Ordering::Relaxed).map(drop)
            }
            _ => word.compare_exchange(current, new, success, Ordering::Relaxed).map(drop),
        };
        for (at, value) in self.late.take() {
            self.step();
            self.words[at].store(value, Ordering::Relaxed);
        }
        result
    }
}

/// A run of a worker with some tasks, and of its pool.
#[derive(Clone, Copy)]
struct Run {
    mistake: Mistake,
    /// Tasks, counted from 1.
    tasks: u32,
    /// Bytes of the ring: a result of these takes 16.
    ring: u32,
    /// Steps that the worker takes at most.
    steps: usize,
}

/// More steps than any worker here takes.
const ALIVE: usize = 1000;

/// What a worker has done, as an observer sees it who is no part of the memory.
#[derive(Default)]
struct Seen {
    /// Tasks whose work has begun.
    begun: Cell<u32>,
    /// A bit for each task whose result went another way than through the ring.
    sent: Cell<u64>,
    /// Whether it was told that the lane is closed.
    refused: Cell<bool>,
}

fn result(task: u32) -> [u8; 8] {
    [task as u8; 8]
}

impl Run {
    fn new(mistake: Mistake) -> Run {
        Run { mistake, tasks: 2, ring: 32, steps: ALIVE }
    }

    /// The worker: runs all tasks one after the other, as fast as it can.
    fn work(self, mut lane: Writer<Side>, seen: &Seen, ring: impl Fn()) {
        let bell = |bell| {
            if bell == Bell::Ring {
                ring();
            }
        };
        if self.tasks == 0 || lane.begin(1).is_err() {
            return seen.refused.set(true);
        }
        for task in 1..=self.tasks {
            seen.begun.set(task);
            let next = (task < self.tasks).then_some(task + 1);
            let send = || seen.sent.set(seen.sent.get() | 1 << task);
            let done = match lane.finish(3, &result(task), next) {
                Err(NotKept::Full) if self.mistake == Mistake::SendsLast => {
                    let done = lane.finish_elsewhere(next);
                    lane_step(&lane);
                    send();
                    done
                }
                Err(NotKept::Full) => {
                    lane_step(&lane);
                    send();
                    lane.finish_elsewhere(next)
                }
                Err(NotKept::Closed(closed)) => Err(closed),
                Ok(bell) => Ok(bell),
            };
            match done {
                Ok(now) => bell(now),
                Err(_) => return seen.refused.set(true),
            }
            // It would be told what to do next, and is not.
            if lane.held {
                match next {
                    Some(next) if self.mistake == Mistake::BeginsAnyway => drop(lane.begin(next)),
                    _ => return,
                }
            }
        }
    }

    /// Tries all orders of a worker's steps and the pool's. `pool` is given the ledger, and what waits for the worker's
    /// end; it gives what it has ended.
    fn check(self, pool: impl Fn(&mut Pool) + Send + Sync + 'static) {
        // In the order of these mistakes: whose they are.
        let pools = [
            Mistake::AcquiresNothing,
            Mistake::FreesFirst,
            Mistake::ClosesBlindly,
            Mistake::KillsAnyway,
            Mistake::SleepsBlindly,
            Mistake::HoldsBlindly,
        ];
        let mine = |pools_side: bool| {
            if pools.contains(&self.mistake) == pools_side { self.mistake } else { Mistake::None }
        };
        let (worker, pools) = (mine(false), mine(true));
        loom::model(move || {
            let shape = Shape::new(1, self.ring).unwrap();
            let words: Arc<Vec<AtomicU64>> =
                Arc::new((0..shape.words()).map(|_| AtomicU64::new(0)).collect());
            let place = shape.place(0);
            let (seen, bell) = (Rc::new(Seen::default()), Arc::new(Notify::new()));
            let thread = {
                let side = Side::new(&words, place, worker, ALIVE);
                let steps = side.steps.clone();
                // Opened here, because `loom` takes two reads of a word by two sides for one, and then leaves out orders
                // of the write that follows. No other word is read by both.
                let lane = Writer::new(side, place);
                steps.set(self.steps);
                let (seen, bell) = (seen.clone(), bell.clone());
                loom::thread::spawn(move || {
                    let lived = catch_unwind(AssertUnwindSafe(|| self.work(lane, &seen, || bell.notify())));
                    if let Err(payload) = lived {
                        if !payload.is::<Died>() {
                            resume_unwind(payload);
                        }
                    }
                })
            };
            let side = Side::new(&words, place, pools, ALIVE);
            let mut it = Pool {
                reader: Reader::new(side, place, 0),
                bell,
                worker: Some(thread),
                finished: Vec::new(),
                ended: None,
                held: None,
                run: self,
            };
            pool(&mut it);
            it.bury(&seen);
        });
    }
}

/// One more step of a worker, outside of the memory, before which it can die.
fn lane_step(lane: &Writer<Side>) {
    lane.words().step();
}

/// The pool, and what it has learnt.
struct Pool {
    reader: Reader<Side>,
    bell: Arc<Notify>,
    worker: Option<loom::thread::JoinHandle<()>>,
    finished: Vec<u32>,
    ended: Option<u32>,
    /// The task behind which it has held the lane.
    held: Option<u32>,
    run: Run,
}

impl Pool {
    fn drain(&mut self) {
        let finished = &mut self.finished;
        let drained = self.reader.drain(&mut Vec::new(), |record| {
            assert_eq!((record.kind, record.bytes), (3, &result(record.task)[..]), "torn");
            finished.push(record.task);
        });
        drained.expect("an honest worker is believed");
    }

    /// Ends a task, or learns that it cannot.
    fn end(&mut self, task: u32) {
        let closed = self.reader.close_running(task).expect("an honest worker is believed");
        if closed || self.run.mistake == Mistake::KillsAnyway {
            self.ended = Some(task);
        }
    }

    /// Waits for the worker's end, settles what has become of each task, and looks whether that is so.
    fn bury(mut self, seen: &Seen) {
        if let Some(worker) = self.worker.take() {
            worker.join().expect("the worker has no mistakes of its own");
        }
        self.drain();
        let cursor = self.reader.cursor();
        let sent = |task: u32| seen.sent.get() & 1 << task != 0;
        if let Some(held) = self.held {
            assert!(seen.begun.get() <= held, "a task has begun that was given away");
            assert!(cursor.running.is_none_or(|running| running <= held), "one that was given away runs");
        }
        let mut lost = 0;
        for task in 1..=self.run.tasks {
            let results = self.finished.iter().filter(|finished| **finished == task).count();
            assert!(results + usize::from(sent(task)) <= 1, "task {task} has several results");
            let ended = self.ended == Some(task);
            assert!(!(ended && results > 0), "task {task} was ended and has finished");
            let finished = results > 0 || sent(task);
            let was_lost = cursor.running == Some(task) && !finished && !ended;
            lost += usize::from(was_lost);
            let settled = finished || was_lost || ended;
            assert_eq!(settled, task <= seen.begun.get() || was_lost || ended, "task {task} has vanished");
        }
        assert!(lost <= 1, "a death costs one task");
        if self.run.steps == ALIVE && !seen.refused.get() {
            assert_eq!((lost, self.ended, cursor.running), (0, None, None), "nobody died");
        }
    }
}

/// The pool looks twice while the worker works.
fn looks(pool: &mut Pool) {
    pool.drain();
    pool.drain();
}

/// The pool ends the second task at whatever moment.
fn ends(pool: &mut Pool) {
    pool.end(2);
    pool.drain();
}

/// The pool holds the lane behind the first task, at whatever moment, and gives away what follows.
fn holds(pool: &mut Pool) {
    if pool.reader.hold(1).expect("an honest worker is believed") {
        pool.held = Some(1);
    }
    pool.drain();
}

/// The pool sleeps until it has all results, or something that was sent otherwise has woken it.
fn sleeps(wake: Wake) -> impl Fn(&mut Pool) {
    move |pool| {
        while pool.finished.len() < pool.run.tasks as usize {
            pool.drain();
            if pool.finished.len() < pool.run.tasks as usize && pool.reader.arm(wake) {
                pool.bell.wait();
            }
        }
    }
}

#[test]
fn no_result_is_torn_twice_or_missing() {
    Run { tasks: 3, ..Run::new(Mistake::None) }.check(looks);
    // Each result has to wait until the one before it has been read, or goes another way.
    Run { ring: 16, tasks: 3, ..Run::new(Mistake::None) }.check(looks);
}

#[test]
fn a_death_at_any_step_loses_one_task_at_most() {
    for steps in 0..12 {
        Run { steps, tasks: 3, ..Run::new(Mistake::None) }.check(looks);
        Run { steps, tasks: 3, ring: 16, ..Run::new(Mistake::None) }.check(looks);
    }
}

#[test]
fn a_task_that_was_ended_has_no_result_and_one_that_has_finished_is_not_ended() {
    Run { tasks: 3, ..Run::new(Mistake::None) }.check(ends);
    for steps in 0..10 {
        Run { steps, ..Run::new(Mistake::None) }.check(ends);
    }
}

#[test]
fn nothing_begins_behind_a_task_at_which_a_lane_is_held() {
    Run { tasks: 3, ..Run::new(Mistake::None) }.check(holds);
    Run { tasks: 3, ring: 16, ..Run::new(Mistake::None) }.check(holds);
    for steps in 0..10 {
        Run { steps, ..Run::new(Mistake::None) }.check(holds);
    }
}

#[test]
fn a_lane_that_is_held_can_still_be_closed() {
    Run { tasks: 3, ..Run::new(Mistake::None) }.check(|pool| {
        holds(pool);
        pool.end(1);
        pool.drain();
    });
}

#[test]
fn whoever_sleeps_is_woken() {
    Run::new(Mistake::None).check(sleeps(Wake::Each));
    Run::new(Mistake::None).check(sleeps(Wake::Idle));
}

#[test]
#[should_panic(expected = "torn")]
fn noticed_a_cursor_that_publishes_nothing() {
    Run::new(Mistake::PublishesRelaxed).check(looks);
}

#[test]
#[should_panic(expected = "torn")]
fn noticed_a_cursor_that_is_moved_first() {
    Run::new(Mistake::CursorFirst).check(looks);
}

#[test]
#[should_panic(expected = "was ended and has finished")]
fn noticed_a_worker_that_moves_a_closed_cursor() {
    Run::new(Mistake::MovesBlindly).check(ends);
}

#[test]
#[should_panic(expected = "has vanished")]
fn noticed_a_result_that_is_sent_after_the_cursor_has_moved() {
    for steps in 0..10 {
        Run { steps, ring: 16, ..Run::new(Mistake::SendsLast) }.check(|_| ());
    }
}

#[test]
#[should_panic(expected = "torn")]
fn noticed_a_pool_that_reads_the_cursor_alone() {
    Run::new(Mistake::AcquiresNothing).check(looks);
}

#[test]
#[should_panic(expected = "torn")]
fn noticed_a_pool_that_frees_before_it_reads() {
    Run { ring: 16, tasks: 3, ..Run::new(Mistake::FreesFirst) }.check(looks);
}

#[test]
#[should_panic(expected = "was ended and has finished")]
fn noticed_a_pool_that_closes_blindly() {
    Run::new(Mistake::ClosesBlindly).check(ends);
}

#[test]
#[should_panic(expected = "was ended and has finished")]
fn noticed_a_kill_after_a_lane_could_not_be_closed() {
    Run::new(Mistake::KillsAnyway).check(ends);
}

#[test]
#[should_panic(expected = "that was given away")]
fn noticed_a_pool_that_holds_blindly() {
    Run::new(Mistake::HoldsBlindly).check(holds);
}

#[test]
#[should_panic(expected = "that was given away")]
fn noticed_a_worker_that_begins_what_was_given_away() {
    Run::new(Mistake::BeginsAnyway).check(holds);
}

#[test]
#[should_panic(expected = "deadlock")]
fn noticed_a_pool_that_sleeps_without_looking() {
    Run::new(Mistake::SleepsBlindly).check(sleeps(Wake::Each));
}
