//! The plan against workers that are but a queue each, over random sequences of what can happen.

use std::collections::{HashMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::actor::Place;
use hatchery_actor::exit::{Exit, Panic, Status};
use hatchery_actor::task_handle::TaskFault;
use hatchery_process::task::{TaskEntry, TaskRun};
use hatchery_wire::encode;
use proptest::prelude::*;
use tokio::time::Instant;

use super::choice::QUEUE;
use super::{Found, JobId, Nonsense, Order, Plan, Priority, Rules, Wants, What};
use crate::row::{self, Load, Row};
use crate::terms::{PANIC, SKIPPED, STOPPED, VALUE};

static ENTRY: TaskEntry =
    TaskEntry::new("task", Place::new("", 0, 0), TaskRun::Sync(|_| unreachable!()), None);

static ASYNC: TaskEntry =
    TaskEntry::new("asynchronous", Place::new("", 0, 0), TaskRun::Async(|_| unreachable!()), None);

fn wants(retries: u32) -> Wants {
    Wants { entry: &ENTRY, timeout: None, retries, poison_after: None, priority: Priority::Normal }
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A job begins, or has more tasks: so many, in one chunk.
    Enter {
        job: usize,
        tasks: u8,
    },
    Arrive(usize),
    /// A worker finishes so many tasks of a line, and begins the next one if it has one.
    Work(usize, u8, u8),
    Panic(usize, u8),
    /// A task will not be ended by its worker.
    Stick(usize, u8),
    Die(usize),
    /// All tasks of a job may run for so long from now on, or for as long as they like.
    Limit(usize, Option<u8>),
    Cancel(usize),
    /// So many milliseconds pass.
    Wait(u64),
}

const WORKERS: usize = 3;
/// The first one is of a synchronous task, the others of asynchronous ones.
const JOBS: usize = 4;
const MOST: u16 = 4;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..JOBS, 1..9_u8).prop_map(|(job, tasks)| Step::Enter { job, tasks }),
        3 => (0..WORKERS).prop_map(Step::Arrive),
        12 => (0..WORKERS, 0..MOST as u8, 1..6_u8)
            .prop_map(|(worker, line, tasks)| Step::Work(worker, line, tasks)),
        3 => (0..WORKERS, 0..MOST as u8).prop_map(|(worker, line)| Step::Panic(worker, line)),
        1 => (0..WORKERS, 0..MOST as u8).prop_map(|(worker, line)| Step::Stick(worker, line)),
        2 => (0..WORKERS).prop_map(Step::Die),
        1 => (0..JOBS, prop::option::of(1..3_u8)).prop_map(|(job, limit)| Step::Limit(job, limit)),
        1 => (0..JOBS).prop_map(Step::Cancel),
        2 => Just(Step::Wait(10_000)),
        3 => (1..150_u64).prop_map(Step::Wait),
    ]
}

/// A worker that does what it is told.
struct Worker {
    lines: Vec<Line>,
}

#[derive(Default)]
struct Line {
    queue: VecDeque<Told>,
    /// The task that runs: its number, and what it is given.
    running: Option<(u32, u64)>,
    /// It does not let itself be ended.
    stuck: bool,
}

/// Tasks that a worker was told to run.
struct Told {
    first: u32,
    next: u32,
    tasks: VecDeque<u64>,
    skipped: bool,
}

struct World {
    plan: Plan,
    now: Instant,
    workers: Vec<Option<Worker>>,
    jobs: Vec<(JobId, u64, bool)>,
    retries: u32,
    lanes: u16,
    /// How often each task ran, and failed.
    ran: HashMap<u64, u32>,
    struck: HashMap<u64, u32>,
    outcomes: HashMap<u64, bool>,
}

/// What a job of the model wants.
fn wants_of(job: usize, retries: u32, limit: Option<u8>) -> Wants {
    let entry = if job == 0 { &ENTRY } else { &ASYNC };
    let timeout = limit.map(|limit| Duration::from_millis(100 * u64::from(limit)));
    Wants { entry, timeout, ..wants(retries) }
}

impl World {
    fn new(retries: u32, max_tasks: Option<u64>) -> World {
        World::with_lanes(1, retries, max_tasks)
    }

    fn with_lanes(lanes: u16, retries: u32, max_tasks: Option<u64>) -> World {
        let mut plan = Plan::new(Rules { prefetch: 1, max_tasks, lanes }, WORKERS);
        let begin = |job| (plan.begin(wants_of(job, retries, None)).unwrap(), 0, false);
        let jobs = (0..JOBS).map(begin).collect();
        let workers = (0..WORKERS).map(|_| None).collect();
        let (ran, struck, outcomes) = Default::default();
        World { plan, now: Instant::now(), workers, jobs, retries, lanes, ran, struck, outcomes }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Enter { job, tasks } => {
                let (id, next, cancelled) = &mut self.jobs[job];
                if *cancelled {
                    return;
                }
                let (mut bytes, first) = (Vec::new(), *next);
                for number in first..first + u64::from(tasks) {
                    row::put(&mut bytes, &((job as u64) << 32 | number).to_le_bytes());
                }
                *next += u64::from(tasks);
                let row = Row { bytes: bytes.into(), count: u32::from(tasks) };
                self.plan.enter(*id, first, Load::Row(row), self.now);
            }
            Step::Arrive(index) if self.workers[index].is_none() => {
                let lines = (0..self.lanes).map(|_| Line::default()).collect();
                self.workers[index] = Some(Worker { lines });
                self.plan.arrived(index, self.now);
            }
            Step::Arrive(_) => {}
            Step::Work(index, line, tasks) => {
                for _ in 0..tasks {
                    self.work(index, u16::from(line) % self.lanes, VALUE);
                }
            }
            Step::Panic(index, line) => self.work(index, u16::from(line) % self.lanes, PANIC),
            Step::Stick(index, line) => {
                let lane = usize::from(u16::from(line) % self.lanes);
                if let Some(worker) = &mut self.workers[index] {
                    let line = &mut worker.lines[lane];
                    line.stuck = line.running.is_some();
                }
            }
            Step::Die(index) => self.die(index),
            Step::Limit(job, limit) => {
                let wants = wants_of(job, self.retries, limit);
                self.plan.change(self.jobs[job].0, wants);
            }
            Step::Cancel(job) => {
                self.jobs[job].2 = true;
                self.plan.cancel(self.jobs[job].0);
            }
            Step::Wait(time) => {
                self.now += Duration::from_millis(time);
                self.plan.hand_out(self.now);
            }
        }
        self.carry();
        for index in 0..WORKERS {
            self.look(index);
        }
    }

    /// Looks whether tasks of a worker are to be ended, as its keeper does.
    fn look(&mut self, index: usize) {
        let Some(worker) = &self.workers[index] else { return };
        let running: Vec<_> =
            worker.lines.iter().map(|line| line.running.map(|(number, _)| number)).collect();
        let due = self.plan.due_to_end(index, |lane| running[usize::from(lane)], self.now);
        if self.lanes == 1 {
            assert!(due.iter().all(|due| due.now), "who runs alone is not asked: {due:?}");
        }
        if due.first().is_some_and(|due| due.now) {
            due.iter().for_each(|due| self.plan.was_ended(index, due));
            self.die(index);
        }
        self.carry();
    }

    /// Brings orders to workers, and outcomes to jobs.
    fn carry(&mut self) {
        for index in 0..WORKERS {
            let orders = self.plan.orders(index);
            let Some(worker) = &mut self.workers[index] else { continue };
            let (mut leaves, mut stops) = (false, Vec::new());
            for order in orders {
                match order {
                    Order::Run { lane, number, load: Load::Row(row), .. } => {
                        let mut rest = &row.bytes[..];
                        let tasks = std::iter::from_fn(|| row::next(&mut rest));
                        let tasks: VecDeque<_> =
                            tasks.map(|task| u64::from_le_bytes(task.try_into().unwrap())).collect();
                        assert!(lane == 0 || tasks[0] >> 32 > 0, "a synchronous task in line {lane}");
                        let told = Told { first: number, next: number, tasks, skipped: false };
                        worker.lines[usize::from(lane)].queue.push_back(told);
                    }
                    Order::Run { .. } => unreachable!("all are in rows"),
                    Order::Skip { lane, number } => {
                        let line = &mut worker.lines[usize::from(lane)];
                        let mut told = line.queue.iter_mut().filter(|told| told.first == number);
                        told.by_ref().for_each(|told| told.skipped = true);
                        drop(told);
                        let first = line.queue.front();
                        if let Some(first) = first.filter(|told| told.first == number) {
                            stops.extend(line.running.filter(|_| first.skipped).map(|it| (lane, it)));
                        }
                    }
                    Order::Stop { lane, number } => {
                        let line = &worker.lines[usize::from(lane)];
                        stops.extend(line.running.filter(|it| it.0 == number).map(|it| (lane, it)));
                    }
                    Order::Leave => leaves = true,
                }
            }
            if leaves {
                let done = |line: &Line| line.queue.is_empty() && line.running.is_none();
                assert!(worker.lines.iter().all(done), "it has work left");
                self.workers[index] = None;
                self.plan.died(index, |_| None, &Exit::orderly(), self.now);
            }
            for (lane, (number, task)) in stops {
                // One that runs alone hears nothing meanwhile.
                let line = &mut self.workers[index].as_mut().unwrap().lines[usize::from(lane)];
                if line.stuck || self.lanes == 1 || task >> 32 == 0 {
                    continue;
                }
                line.end(number);
                *self.struck.entry(task).or_default() += 1;
                let said = self.plan.results(index, lane, &[found(number, STOPPED)], &nothing(), self.now);
                assert_eq!(said, Ok(1));
            }
        }
        for job in 0..JOBS {
            for delivery in self.plan.take(self.jobs[job].0, Waker::noop()) {
                let tasks = (job as u64) << 32 | delivery.first;
                match delivery.what {
                    What::Row(row) => {
                        let mut rest = &row.bytes[..];
                        for at in 0..u64::from(row.count) {
                            let task = u64::from_le_bytes(row::next(&mut rest).unwrap().try_into().unwrap());
                            assert_eq!(task, tasks + at, "another task's result");
                            assert_eq!(self.outcomes.insert(task, true), None, "a second outcome");
                        }
                    }
                    What::Alone(_) => unreachable!("all are in rows"),
                    What::Failed(why, _) => {
                        assert_eq!(self.outcomes.insert(tasks, false), None, "a second outcome");
                        assert_eq!(self.struck[&tasks], self.retries + 1, "given up early or late: {why:?}");
                    }
                }
            }
        }
    }

    /// A worker begins the next task of a line, if none runs there.
    fn begin(&mut self, index: usize, lane: u16) {
        let Some(worker) = &mut self.workers[index] else { return };
        let line = &mut worker.lines[usize::from(lane)];
        let Some(told) = line.queue.front_mut().filter(|_| line.running.is_none()) else { return };
        if told.skipped {
            let numbers = told.next..told.next + told.tasks.len() as u32;
            let found: Vec<_> = numbers.map(|number| found(number, SKIPPED)).collect();
            line.queue.pop_front();
            let said = self.plan.results(index, lane, &found, &nothing(), self.now);
            assert_eq!(said, Ok(found.len()));
            return self.carry();
        }
        let task = told.tasks.pop_front().expect("a row that is done is gone");
        *self.ran.entry(task).or_default() += 1;
        line.running = Some((told.next, task));
        told.next += 1;
        let all = worker.lines.iter().filter(|line| line.running.is_some_and(|(_, task)| task >> 32 == 0));
        assert!(all.count() <= 1, "two synchronous tasks at the same time");
    }

    fn work(&mut self, index: usize, lane: u16, kind: u8) {
        self.begin(index, lane);
        let line = self.workers[index].as_mut().map(|worker| &mut worker.lines[usize::from(lane)]);
        let Some((line, (number, task))) = line.and_then(|line| line.running.map(|it| (line, it))) else {
            return;
        };
        line.end(number);
        let mut bytes = Vec::new();
        if kind == VALUE {
            row::put(&mut bytes, &task.to_le_bytes());
        } else {
            *self.struck.entry(task).or_default() += 1;
            let panic = Panic { message: "no luck".into(), place: None };
            row::put(&mut bytes, &encode(&panic).unwrap().to_bytes());
        }
        let found = Found { number, lane, kind, from: 0, to: bytes.len() };
        assert_eq!(self.plan.results(index, lane, &[found], &bytes.into(), self.now), Ok(1));
        self.carry();
        self.begin(index, lane);
    }

    /// A worker dies: each line loses the one that ran.
    fn die(&mut self, index: usize) {
        let Some(worker) = self.workers[index].take() else { return };
        for (_, task) in worker.lines.iter().filter_map(|line| line.running) {
            *self.struck.entry(task).or_default() += 1;
        }
        let running = |lane| worker.lines[usize::from(lane)].running.map(|(number, _)| number);
        self.plan.died(index, running, &Exit::new(Status::Signal(9)), self.now);
    }

    /// All workers come back, and do what is left.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            for index in 0..WORKERS {
                self.step(Step::Arrive(index));
                for line in 0..self.lanes as u8 {
                    self.step(Step::Work(index, line, 5));
                }
            }
            self.step(Step::Wait(10_000));
            if self.plan.waiting() == 0 && (0..WORKERS).all(|index| !self.plan.is_busy(index)) {
                break;
            }
        }
        for (job, (_, count, cancelled)) in self.jobs.iter().enumerate() {
            for number in 0..*count {
                let task = (job as u64) << 32 | number;
                let struck = self.struck.get(&task).copied().unwrap_or(0);
                let ran = self.ran.get(&task).copied().unwrap_or(0);
                assert!(struck <= self.retries + 1 && ran <= self.retries + 1, "{task} ran {ran} times");
                if *cancelled {
                    continue;
                }
                match self.outcomes.get(&task) {
                    Some(true) => assert_eq!(ran, struck + 1, "runs of {task}"),
                    Some(false) => assert_eq!(ran, struck, "runs of {task}"),
                    None => panic!("{task} has no outcome"),
                }
            }
        }
    }
}

impl Line {
    /// What ran has ended, and its row with it if it was the last one.
    fn end(&mut self, number: u32) {
        assert_eq!(self.running.take().map(|(running, _)| running), Some(number));
        self.stuck = false;
        if self.queue.front().is_some_and(|told| told.tasks.is_empty()) {
            self.queue.pop_front();
        }
    }
}

fn found(number: u32, kind: u8) -> Found {
    Found { number, lane: 0, kind, from: 0, to: 4 }
}

/// The row of an outcome with nothing in it.
fn nothing() -> Bytes {
    Bytes::from_static(&[0; 4])
}

proptest! {
    #[test]
    fn every_task_has_one_outcome_and_no_death_costs_more_than_the_one_that_ran(
        steps in prop::collection::vec(step(), 1..120),
        retries in 0..3_u32,
        max_tasks in prop::option::of(1..6_u64),
        lanes in 1..=MOST,
    ) {
        let mut world = World::with_lanes(lanes, retries, max_tasks);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }

    #[test]
    fn whatever_a_worker_says_is_its_own_end_at_worst(
        said in prop::collection::vec((any::<u32>(), 0..6_u8, 0..3_u16), 1..20),
        near in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 40),
    ) {
        let mut world = World::with_lanes(2, 1, None);
        world.step(Step::Enter { job: 0, tasks: 8 });
        world.step(Step::Enter { job: 1, tasks: 8 });
        world.step(Step::Arrive(0));
        let said = said.into_iter().map(|(number, kind, lane)| {
            let number = if near { number % 20 } else { number };
            Found { number, lane, kind, from: 0, to: 40 }
        });
        let said: Vec<_> = said.collect();
        let bytes = Bytes::from(bytes);
        for one in &said {
            let _: Result<usize, Nonsense> =
                world.plan.results(0, one.lane, std::slice::from_ref(one), &bytes, world.now);
        }
        let running = |_| said.first().map(|one| one.number);
        world.plan.died(0, running, &Exit::new(Status::Signal(9)), world.now);
    }
}

#[test]
fn a_chunk_is_given_before_its_turn_only_if_it_is_over_soon() {
    let mut world = World::new(0, None);
    world.step(Step::Arrive(0));
    for _ in 0..3 {
        world.step(Step::Enter { job: 0, tasks: 1 });
    }
    assert_eq!(world.plan.waiting(), 2, "nobody knows how long they take");
    world.step(Step::Work(0, 0, 1));
    // That took no time at all.
    assert_eq!(world.plan.waiting(), 0);
    world.now += Duration::from_secs(60);
    world.step(Step::Work(0, 0, 2));
    for _ in 0..3 {
        world.step(Step::Enter { job: 0, tasks: 1 });
    }
    assert_eq!(world.plan.waiting(), 2, "they take long");
}

#[test]
fn tasks_wait_longer_before_each_further_try() {
    let mut world = World::new(2, None);
    world.step(Step::Arrive(0));
    world.step(Step::Enter { job: 0, tasks: 1 });
    for pause in [20, 40] {
        world.step(Step::Panic(0, 0));
        world.now += Duration::from_millis(pause - 1);
        world.plan.hand_out(world.now);
        assert!(!world.plan.is_busy(0), "before {pause} ms");
        world.now += Duration::from_millis(1);
        world.plan.hand_out(world.now);
        world.carry();
        assert!(world.plan.is_busy(0), "after {pause} ms");
    }
}

/// Two small tasks, given to the one worker there is.
fn two_given(retries: u32) -> (Plan, JobId, Instant) {
    let now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, 1);
    let job = plan.begin(wants(retries)).unwrap();
    plan.arrived(0, now);
    let mut bytes = Vec::new();
    row::put(&mut bytes, b"a");
    row::put(&mut bytes, b"b");
    plan.enter(job, 0, Load::Row(Row { bytes: bytes.into(), count: 2 }), now);
    (plan, job, now)
}

#[test]
fn a_death_behind_a_result_that_came_by_the_socket_charges_nobody() {
    let (mut plan, job, now) = two_given(0);
    // The ledger still names it: it was not told any more that the result has left.
    plan.alone(0, 0, 0, VALUE, hatchery_wire::Body::default(), now).unwrap();
    plan.died(0, |_| Some(0), &Exit::new(Status::Unknown), now);
    let mail = plan.take(job, Waker::noop());
    assert!(mail.iter().all(|mail| !matches!(mail.what, What::Failed(..))), "{mail:?}");
    // The second one waits for another worker.
    plan.arrived(0, now);
    assert!(plan.is_busy(0));
}

#[test]
fn a_task_that_travels_alone_and_whose_worker_died_is_tried_again_once_and_as_it_was() {
    let mut now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, 1);
    let job = plan.begin(wants(1)).unwrap();
    plan.arrived(0, now);
    let body = || hatchery_wire::Body::from_bytes(Bytes::from_static(b"large"));
    plan.enter(job, 0, Load::Alone(body()), now);
    for last in [false, true] {
        plan.orders(0);
        plan.died(0, |_| Some(0), &Exit::new(Status::Unknown), now);
        let failed = plan.take(job, Waker::noop()).len();
        assert_eq!(failed, usize::from(last));
        plan.arrived(0, now);
        assert!(!plan.is_busy(0), "there is nothing to do before its pause is over");
        now += Duration::from_secs(60);
        plan.hand_out(now);
        let orders = plan.orders(0);
        let given: Vec<_> = orders
            .iter()
            .filter_map(|order| match order {
                Order::Run { load: Load::Alone(body), .. } => Some(body.len()),
                _ => None,
            })
            .collect();
        assert_eq!(given, if last { vec![] } else { vec![5] });
    }
}

#[test]
fn single_tasks_beyond_the_line_get_in_by_themselves_and_are_over_with_their_outcome() {
    let now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 0, max_tasks: None, lanes: 1 }, 1);
    let many = QUEUE as u64;
    let submit = |plan: &mut Plan, task: u64| {
        let mut bytes = Vec::new();
        row::put(&mut bytes, &task.to_le_bytes());
        plan.submit(wants(0), Load::Row(Row { bytes: bytes.into(), count: 1 }), now).unwrap()
    };
    let jobs: Vec<_> = (0..many + 3).map(|task| submit(&mut plan, task)).collect();
    plan.cancel(jobs[QUEUE + 1]);
    plan.change(jobs[QUEUE + 2], Wants { priority: Priority::High, ..wants(0) });
    assert_eq!(plan.waiting(), many + 2);
    plan.arrived(0, now);
    let mut ran = Vec::new();
    while let Some(order) = plan.orders(0).pop() {
        let Order::Run { number, load: Load::Row(row), .. } = order else { unreachable!("{order:?}") };
        ran.push(u64::from_le_bytes(row::next(&mut &row.bytes[..]).unwrap().try_into().unwrap()));
        assert!(!plan.is_idle());
        assert_eq!(plan.results(0, 0, &[found(number, VALUE)], &nothing(), now), Ok(1));
    }
    // The first was given at once; that made room for what goes before the others.
    let expected: Vec<_> = [0, many + 2].into_iter().chain(1..=many).collect();
    assert_eq!(ran, expected);
    assert!(plan.is_idle(), "nobody has to take what has come");
    assert!(jobs.iter().all(|job| plan.has_mail(*job) == (*job != jobs[QUEUE + 1])));

    let waits: Vec<_> = (0..many + 3).map(|task| submit(&mut plan, task)).collect();
    plan.end(&TaskFault::Cancelled);
    assert!(plan.is_idle() && waits.iter().all(|job| plan.has_mail(*job)));
}
