//! The plan against workers that are but a queue each, over random sequences of what can happen.

use std::collections::{HashMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::actor::Place;
use hatchery_actor::exit::{Exit, Panic, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use hatchery_process::task::{TaskEntry, TaskRun};
use hatchery_supervisor::errors::StartError;
use hatchery_wire::encode;
use proptest::prelude::*;
use tokio::time::Instant;

use super::back::{LONG, STUCK};
use super::choice::QUEUE;
use super::{Found, JobId, Nonsense, Order, Plan, Priority, Rules, Size, Staffing, Wants, What};
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
    /// What a worker has not begun is taken back.
    TakeBack(usize),
    /// So many milliseconds pass.
    Wait(u64),
    Resize(usize),
    /// A worker that was to be started does, or does not.
    Start(bool),
    /// A worker is found to have too much memory.
    Heavy(usize),
}

/// Places that there are at most; those that the pool begins with, if it has a fixed size.
const MOST: usize = 8;
const WORKERS: usize = 3;
/// The first one is of a synchronous task, the others of asynchronous ones.
const JOBS: usize = 4;
const MOST_LINES: u16 = 4;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..JOBS, 1..9_u8).prop_map(|(job, tasks)| Step::Enter { job, tasks }),
        3 => (0..MOST).prop_map(Step::Arrive),
        12 => (0..MOST, 0..MOST_LINES as u8, 1..6_u8)
            .prop_map(|(worker, line, tasks)| Step::Work(worker, line, tasks)),
        3 => (0..MOST, 0..MOST_LINES as u8).prop_map(|(worker, line)| Step::Panic(worker, line)),
        1 => (0..MOST, 0..MOST_LINES as u8).prop_map(|(worker, line)| Step::Stick(worker, line)),
        2 => (0..MOST).prop_map(Step::Die),
        1 => (0..JOBS, prop::option::of(1..3_u8)).prop_map(|(job, limit)| Step::Limit(job, limit)),
        1 => (1..=4_usize).prop_map(Step::Resize),
        3 => prop::bool::weighted(0.8).prop_map(Step::Start),
        1 => (0..MOST).prop_map(Step::Heavy),
        1 => (0..JOBS).prop_map(Step::Cancel),
        2 => (0..WORKERS).prop_map(Step::TakeBack),
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
    /// Nothing more of the row that has begun is to be.
    puts_down: bool,
    /// Whether its lane is held behind what runs.
    held: bool,
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
    /// Where the supervisor has a child, and where one is on the way.
    filled: Vec<bool>,
    starting: VecDeque<usize>,
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
        World::sized(lanes, retries, max_tasks, Size::fixed(WORKERS))
    }

    fn sized(lanes: u16, retries: u32, max_tasks: Option<u64>, size: Size) -> World {
        let mut plan = Plan::new(Rules { prefetch: 1, max_tasks, lanes }, size.min);
        plan.set_size(size);
        let begin = |job| (plan.begin(wants_of(job, retries, None)).unwrap(), 0, false);
        let jobs = (0..JOBS).map(begin).collect();
        let workers = (0..MOST).map(|_| None).collect();
        let filled = (0..MOST).map(|index| index < size.min).collect();
        let (starting, ran, struck, outcomes) = Default::default();
        let now = Instant::now();
        World { plan, now, workers, filled, starting, jobs, retries, lanes, ran, struck, outcomes }
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
            Step::Arrive(index) if self.filled[index] && self.workers[index].is_none() => {
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
                self.plan.change(self.jobs[job].0, wants, self.now);
            }
            Step::Cancel(job) => {
                self.jobs[job].2 = true;
                self.plan.cancel(self.jobs[job].0);
            }
            Step::TakeBack(index) if self.lanes == 1 => {
                let line = self.workers[index].as_mut().map(|worker| &mut worker.lines[0]);
                let line = line.filter(|line| !line.held);
                if let Some((line, (number, _))) = line.and_then(|it| it.running.map(|now| (it, now))) {
                    line.held = true;
                    self.plan.take_back(index, number, self.now);
                }
            }
            Step::TakeBack(_) => {}
            Step::Wait(time) => {
                self.now += Duration::from_millis(time);
                self.plan.hand_out(self.now);
            }
            Step::Resize(workers) => self.plan.resize(workers).unwrap(),
            Step::Start(succeeds) => {
                let Some(index) = self.starting.pop_front() else { return };
                self.filled[index] = succeeds;
                if succeeds {
                    self.plan.started(index);
                } else {
                    let fault = Fault::StartFailed("no luck".to_owned());
                    let error = StartError::refused("worker".to_owned(), fault);
                    self.plan.start_failed(index, false, &error, self.now);
                }
            }
            Step::Heavy(index) => {
                if self.workers[index].is_some() {
                    self.plan.replace(index);
                }
            }
        }
        self.carry();
        self.staff();
        for index in 0..self.plan.places.len() {
            self.look(index);
        }
    }

    /// Starts and removes workers.
    fn staff(&mut self) {
        for what in self.plan.staffing(self.now).0 {
            match what {
                Staffing::Start(index) => {
                    assert!(!self.filled[index] && !self.starting.contains(&index), "a place is taken");
                    self.starting.push_back(index);
                }
                Staffing::Remove(index) => {
                    assert!(std::mem::take(&mut self.filled[index]), "nobody is there");
                    if let Some(worker) = self.workers[index].take() {
                        assert!(worker.lines.iter().all(Line::is_done), "it has work left");
                        self.plan.died(index, |_| None, &Exit::orderly(), self.now);
                    }
                    self.plan.gone(index, &TaskFault::Cancelled);
                    self.carry();
                }
            }
        }
        let there = self.filled.iter().filter(|filled| **filled).count() + self.starting.len();
        assert!(there <= MOST);
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
        for index in 0..self.plan.places.len() {
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
                    Order::PutDown => worker.lines[0].puts_down = true,
                    Order::Back => {
                        // What runs goes on.
                        let line = &mut worker.lines[0];
                        line.queue.truncate(usize::from(line.running.is_some()));
                        line.queue.iter_mut().for_each(|told| told.tasks.clear());
                    }
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
                assert!(worker.lines.iter().all(Line::is_done), "it has work left");
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
            for delivery in self.plan.take(self.jobs[job].0, Waker::noop().clone()).0 {
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
        if told.skipped || (line.puts_down && told.next != told.first) {
            // Neither this one nor what is behind it.
            let found = Found { lane, ..found(told.next, SKIPPED) };
            line.queue.pop_front();
            assert_eq!(self.plan.results(index, lane, &[found], &nothing(), self.now), Ok(1));
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
            for index in 0..MOST {
                self.step(Step::Start(true));
                self.step(Step::Arrive(index));
                for line in 0..self.lanes as u8 {
                    self.step(Step::Work(index, line, 5));
                }
            }
            self.step(Step::Wait(10_000));
            let busy = (0..self.plan.places.len()).any(|index| self.plan.is_busy(index));
            if self.plan.waiting() == 0 && !busy && self.starting.is_empty() {
                break;
            }
        }
        for _ in 0..2 {
            (0..MOST).for_each(|index| self.step(Step::Arrive(index)));
        }
        let up = self.plan.up();
        let Size { min, max, .. } = self.plan.size;
        assert!((min..=max).contains(&up), "{up} workers, and not {min} to {max}");
        assert_eq!(self.filled.iter().filter(|filled| **filled).count(), up);
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
    fn is_done(&self) -> bool {
        self.queue.is_empty() && self.running.is_none()
    }

    /// What ran has ended, and its row with it if it was the last one.
    fn end(&mut self, number: u32) {
        assert_eq!(self.running.take().map(|(running, _)| running), Some(number));
        (self.stuck, self.held) = (false, false);
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
        lanes in 1..=MOST_LINES,
    ) {
        let mut world = World::with_lanes(lanes, retries, max_tasks);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }

    #[test]
    fn whatever_becomes_of_its_size_every_task_has_one_outcome_and_the_workers_are_as_many_as_they_should(
        steps in prop::collection::vec(step(), 1..160),
        least in 0..3_usize,
        resize in prop::option::of(1..5_usize),
        lanes in 1..=MOST_LINES,
    ) {
        let size = Size { min: least, max: 3, idle: Duration::from_secs(15), failures: u32::MAX };
        let mut world = World::sized(lanes, 1, None, size);
        steps.into_iter().for_each(|step| world.step(step));
        if let Some(workers) = resize {
            world.step(Step::Resize(workers));
        }
        world.finish();
        if let Some(workers) = resize {
            assert_eq!(world.plan.size.max, workers);
            assert_eq!(world.plan.resized(), Some(Ok(())));
        }
        (0..20).for_each(|_| world.step(Step::Wait(10_000)));
        assert_eq!(world.plan.up(), world.plan.size.min, "those above have nothing to do");
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

/// A plan with two workers, and a job with so many tasks in one chunk, all of which the first worker has.
fn all_given(tasks: u32, max_tasks: Option<u64>) -> (Plan, JobId, Instant) {
    let now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 1, max_tasks, lanes: 1 }, 2);
    let job = plan.begin(wants(0)).unwrap();
    plan.arrived(0, now);
    let mut bytes = Vec::new();
    (0..tasks).for_each(|task| row::put(&mut bytes, &task.to_le_bytes()));
    plan.enter(job, 0, Load::Row(Row { bytes: bytes.into(), count: tasks }), now);
    plan.orders(0);
    (plan, job, now)
}

/// The tasks that a worker is told to run, and with which number the first one.
fn told(plan: &mut Plan, index: usize) -> Vec<(u32, Vec<u32>)> {
    let orders = plan.orders(index).into_iter().filter_map(|order| match order {
        Order::Run { number, load: Load::Row(row), .. } => {
            let mut rest = &row.bytes[..];
            let tasks = std::iter::from_fn(|| row::next(&mut rest));
            Some((number, tasks.map(|task| u32::from_le_bytes(task.try_into().unwrap())).collect()))
        }
        _ => None,
    });
    orders.collect()
}

#[test]
fn what_is_behind_a_task_that_takes_long_goes_to_a_worker_that_has_nothing_to_do() {
    let (mut plan, _, mut now) = all_given(6, None);
    assert_eq!(plan.results(0, 0, &[found(0, VALUE)], &nothing(), now), Ok(1));
    assert_eq!(plan.due_to_hold(0, Some(1), now + LONG), None, "there is nobody else");
    plan.arrived(1, now);
    assert_eq!(plan.next_look(0, now), Some(LONG));
    now += LONG - Duration::from_millis(1);
    assert_eq!(plan.due_to_hold(0, Some(1), now), None, "it may be over soon");
    now += Duration::from_millis(1);
    assert_eq!(plan.due_to_hold(0, Some(0), now), None, "that has finished");
    assert_eq!(plan.due_to_hold(0, Some(5), now), None, "there is nothing behind it");
    assert_eq!(plan.due_to_hold(0, Some(6), now), None, "it has no such task");
    assert_eq!(plan.due_to_hold(0, Some(1), now), Some(1));
    plan.take_back(0, 1, now);
    assert_eq!(told(&mut plan, 1), [(0, vec![2, 3])], "half of it");
    assert_eq!(plan.waiting(), 2, "the other half is whose turn it is first");
    assert_eq!(plan.due_to_hold(0, Some(1), now), None, "it is held already");
    assert!(matches!(plan.orders(0)[..], [Order::Back]));
    // It is done after all.
    assert_eq!(plan.results(0, 0, &[found(1, VALUE)], &nothing(), now), Ok(1));
    assert_eq!(told(&mut plan, 0), [(6, vec![4, 5])]);
}

#[test]
fn what_is_behind_a_task_that_takes_very_long_is_for_whoever_comes_to_it_first() {
    let (mut plan, _, mut now) = all_given(6, None);
    plan.arrived(1, now);
    let other = plan.begin(wants(0)).unwrap();
    let chunk = |plan: &mut Plan, first, now| {
        let mut bytes = Vec::new();
        row::put(&mut bytes, &100_u32.to_le_bytes());
        plan.enter(other, first, Load::Row(Row { bytes: bytes.into(), count: 1 }), now);
    };
    chunk(&mut plan, 0, now);
    chunk(&mut plan, 1, now);
    assert_eq!(told(&mut plan, 1), [(0, vec![100])]);
    plan.due_to_end(0, |_| Some(0), now);
    now += STUCK - Duration::from_millis(1);
    assert_eq!(plan.due_to_hold(0, Some(0), now), None, "everybody has something to do");
    now += Duration::from_millis(1);
    assert_eq!(plan.due_to_hold(0, Some(1), now), None, "that one has just begun");
    assert_eq!(plan.due_to_hold(0, Some(0), now), Some(0));
    plan.take_back(0, 0, now);
    assert_eq!(plan.waiting(), 6);
    assert_eq!(plan.results(1, 0, &[found(0, VALUE)], &nothing(), now), Ok(1));
    assert_eq!(told(&mut plan, 1)[0], (1, vec![1, 2, 3, 4, 5]), "before what came after it");
}

#[test]
fn nothing_is_given_to_a_worker_that_takes_much_longer_than_was_thought() {
    let (mut plan, job, mut now) = all_given(1, None);
    now += Duration::from_micros(1);
    assert_eq!(plan.results(0, 0, &[found(0, VALUE)], &nothing(), now), Ok(1));
    let enter = |plan: &mut Plan, first, now| {
        let mut bytes = Vec::new();
        row::put(&mut bytes, &7_u32.to_le_bytes());
        plan.enter(job, first, Load::Row(Row { bytes: bytes.into(), count: 1 }), now);
        told(plan, 0).len()
    };
    assert_eq!(enter(&mut plan, 1, now), 1);
    assert_eq!(enter(&mut plan, 2, now), 1, "it will soon come to it");
    assert_eq!(enter(&mut plan, 3, now + LONG), 0, "it may never come to it");
}

#[test]
fn a_death_behind_what_was_taken_back_charges_nobody() {
    let (mut plan, job, now) = all_given(4, None);
    plan.arrived(1, now);
    plan.take_back(0, 0, now + LONG);
    // Its result came by the socket, and it was given something else, before it could say that it runs no more.
    plan.alone(0, 0, 0, VALUE, hatchery_wire::Body::default(), now).unwrap();
    assert!(plan.is_busy(0));
    plan.died(0, |_| Some(0), &Exit::new(Status::Unknown), now);
    let mail = plan.take(job, Waker::noop().clone()).0;
    assert!(mail.iter().all(|mail| !matches!(mail.what, What::Failed(..))), "{mail:?}");
}

#[test]
fn what_was_taken_back_does_not_count_for_what_a_worker_may_run() {
    let (mut plan, _, now) = all_given(4, Some(4));
    plan.arrived(1, now);
    plan.take_back(0, 0, now + LONG);
    plan.orders(0);
    assert_eq!(plan.results(0, 0, &[found(0, VALUE)], &nothing(), now), Ok(1));
    assert!(!plan.orders(0).iter().any(|order| matches!(order, Order::Leave)), "it has run one of four");
    assert!(plan.is_busy(0));
}

#[test]
fn retries_count_for_what_has_failed_before_they_were_said() {
    let now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, 1);
    plan.arrived(0, now);
    let load = || Load::Row(Row { bytes: nothing(), count: 1 });
    let dies = |plan: &mut Plan, number| {
        plan.orders(0);
        plan.died(0, |_| Some(number), &Exit::new(Status::Signal(9)), now);
        plan.arrived(0, now);
    };
    let job = plan.submit(wants(0), load(), now).unwrap();
    dies(&mut plan, 0);
    assert!(plan.has_mail(job) && plan.is_idle() && plan.failed == 1);
    plan.change(job, Wants { poison_after: Some(1), ..wants(1) }, now);
    assert!(plan.has_mail(job), "it has had all the deaths that it may");
    plan.staff_called = false;
    plan.change(job, wants(1), now);
    assert!(!plan.has_mail(job) && !plan.is_idle() && plan.failed == 0);
    assert!(plan.staff_called, "there may be no worker left who could run it");
    plan.hand_out(now + Duration::from_secs(1));
    dies(&mut plan, 0);
    let mail = plan.take(job, Waker::noop().clone()).0.pop_front().unwrap();
    assert!(matches!(mail.what, What::Failed(TaskFault::Poisoned { deaths: 2, .. }, _)), "{mail:?}");

    let job = plan.submit(wants(0), load(), now).unwrap();
    dies(&mut plan, 0);
    plan.close();
    plan.change(job, wants(1), now);
    assert!(plan.has_mail(job) && plan.is_idle(), "nobody may wait for it any more");
    plan.cancel(job);
    plan.change(job, wants(9), now);
    assert!(plan.is_idle(), "nobody wants it");
}

#[test]
fn to_give_up_after_no_death_is_to_give_up_after_one() {
    let now = Instant::now();
    for (poison_after, dies) in [(0, true), (1, true), (0, false)] {
        let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, 1);
        plan.arrived(0, now);
        let wants = Wants { poison_after: Some(poison_after), ..wants(3) };
        let job = plan.submit(wants, Load::Row(Row { bytes: nothing(), count: 1 }), now).unwrap();
        if dies {
            plan.died(0, |_| Some(0), &Exit::new(Status::Signal(9)), now);
            let mail = plan.take(job, Waker::noop().clone()).0.pop_front().unwrap();
            assert!(matches!(mail.what, What::Failed(TaskFault::Poisoned { deaths: 1, .. }, _)), "{mail:?}");
        } else {
            let mut bytes = Vec::new();
            let panic = Panic { message: "no luck".into(), place: None };
            row::put(&mut bytes, &encode(&panic).unwrap().to_bytes());
            let found = Found { number: 0, lane: 0, kind: PANIC, from: 0, to: bytes.len() };
            assert_eq!(plan.results(0, 0, &[found], &bytes.into(), now), Ok(1));
            assert!(!plan.has_mail(job), "a panic is no death");
        }
    }
}

#[test]
fn that_a_task_was_not_begun_may_come_by_the_socket() {
    let (mut plan, job, now) = all_given(3, None);
    plan.alone(0, 0, 0, VALUE, hatchery_wire::Body::default(), now).unwrap();
    assert_eq!(plan.alone(0, 0, 1, SKIPPED, hatchery_wire::Body::default(), now), Err(Nonsense));
    plan.cancel(job);
    // Nor has what comes behind it in its row.
    assert_eq!(plan.alone(0, 0, 1, SKIPPED, hatchery_wire::Body::default(), now), Ok(()));
    assert!(!plan.is_busy(0));
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
    let mail = plan.take(job, Waker::noop().clone()).0;
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
        let failed = plan.take(job, Waker::noop().clone()).0.len();
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
fn a_single_task_gets_its_turn_while_maps_keep_the_line_full() {
    let now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 0, max_tasks: None, lanes: 1 }, 1);
    let job = plan.begin(wants(0)).unwrap();
    let enter = |plan: &mut Plan, first| {
        let row = Row { bytes: nothing(), count: 1 };
        plan.enter(job, first, Load::Row(row), now);
    };
    (0..2 * QUEUE as u64).for_each(|first| enter(&mut plan, first));
    let high = Wants { priority: Priority::High, ..wants(0) };
    let urgent = plan.submit(high, Load::Row(Row { bytes: nothing(), count: 1 }), now).unwrap();
    plan.arrived(0, now);
    for number in 0..3 {
        plan.orders(0);
        enter(&mut plan, 2 * QUEUE as u64 + u64::from(number));
        plan.results(0, 0, &[found(number, VALUE)], &nothing(), now).unwrap();
    }
    assert!(plan.has_mail(urgent), "it goes before all others, as soon as one of them was given away");
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
    plan.change(jobs[QUEUE + 2], Wants { priority: Priority::High, ..wants(0) }, now);
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

/// What is to be done now.
fn todo(plan: &mut Plan, now: Instant) -> Vec<Staffing> {
    plan.staffing(now).0
}

/// A job of single tasks, of which nobody knows how long they take.
fn enter(plan: &mut Plan, job: JobId, tasks: std::ops::Range<u64>, now: Instant) {
    for task in tasks {
        let mut bytes = Vec::new();
        row::put(&mut bytes, &task.to_le_bytes());
        plan.enter(job, task, Load::Row(Row { bytes: bytes.into(), count: 1 }), now);
    }
}

fn elastic(min: usize, max: usize) -> (Plan, JobId, Instant) {
    let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, min);
    plan.set_size(Size { min, max, idle: Duration::from_secs(10), failures: 2 });
    let job = plan.begin(wants(0)).unwrap();
    (plan, job, Instant::now())
}

fn no_luck() -> StartError {
    StartError::refused("worker".to_owned(), Fault::StartFailed("no luck".to_owned()))
}

#[test]
fn one_more_starts_for_each_task_that_waits_and_one_that_is_on_the_way_counts() {
    let (mut plan, job, now) = elastic(1, 4);
    plan.arrived(0, now);
    assert_eq!(todo(&mut plan, now), []);
    plan.staff_called = false;
    enter(&mut plan, job, 0..1, now);
    assert!(!plan.staff_called, "nothing waits");
    enter(&mut plan, job, 1..3, now);
    assert!(plan.staff_called);
    assert_eq!(todo(&mut plan, now), [Staffing::Start(1), Staffing::Start(2)]);
    assert_eq!(todo(&mut plan, now), []);
    // It is there, and its process is about to be.
    plan.started(1);
    assert_eq!(todo(&mut plan, now), []);
    plan.arrived(1, now);
    assert_eq!(todo(&mut plan, now), []);
    enter(&mut plan, job, 3..9, now);
    assert_eq!(todo(&mut plan, now), [Staffing::Start(3)], "there are no more than there may be");
}

#[test]
fn who_has_nothing_to_do_for_long_leaves_until_there_are_as_few_as_there_may_be() {
    let (mut plan, job, mut now) = elastic(1, 3);
    plan.resize(3).unwrap();
    enter(&mut plan, job, 0..3, now);
    plan.arrived(0, now);
    for index in [1, 2] {
        assert!(todo(&mut plan, now).contains(&Staffing::Start(index)) || index == 2);
        plan.started(index);
        plan.arrived(index, now);
    }
    assert!((0..3).all(|index| plan.is_busy(index)));
    assert_eq!(plan.staffing(now), (vec![], None), "all are busy");
    now += Duration::from_secs(60);
    for index in 0..2 {
        plan.staff_called = false;
        plan.results(index, 0, &[found(0, VALUE)], &nothing(), now).unwrap();
        assert!(plan.staff_called, "somebody has to look at the clock");
    }
    let at = now + Duration::from_secs(10);
    assert_eq!(plan.staffing(now), (vec![], Some(at)));
    // One has something to do again before that.
    enter(&mut plan, job, 3..4, now);
    plan.results(0, 0, &[found(1, VALUE)], &nothing(), at - Duration::from_secs(1)).unwrap();
    assert_eq!(plan.staffing(at).0, [Staffing::Remove(1)]);
    plan.died(1, |_| None, &Exit::orderly(), at);
    plan.gone(1, &TaskFault::Cancelled);
    assert_eq!(plan.staffing(at).0, []);
    let later = at + Duration::from_secs(10);
    plan.results(2, 0, &[found(0, VALUE)], &nothing(), later).unwrap();
    assert_eq!(plan.staffing(later).0, [Staffing::Remove(0)]);
    assert_eq!(plan.staffing(later + Duration::from_secs(99)), (vec![], None), "one stays");
}

#[test]
fn starts_that_fail_are_tried_again_later_and_later_and_without_any_worker_the_pool_ends_at_last() {
    let (mut plan, job, mut now) = elastic(0, 2);
    enter(&mut plan, job, 0..1, now);
    for (pause, more) in [(100, true), (200, true), (0, false)] {
        assert_eq!(todo(&mut plan, now), [Staffing::Start(0)]);
        assert!(!plan.staff_called, "who has just looked need not look again");
        plan.start_failed(0, false, &no_luck(), now);
        assert_eq!(plan.over().is_none(), more);
        let next = now + Duration::from_millis(pause);
        if more {
            assert_eq!(plan.staffing(next - Duration::from_millis(1)), (vec![], Some(next)));
        }
        now = next;
    }
    assert_eq!(todo(&mut plan, now + Duration::from_secs(60)), []);
    let mail = plan.take(job, Waker::noop().clone()).0.pop_front().unwrap();
    assert!(matches!(mail.what, What::Failed(TaskFault::InitFailed(_), None)), "{mail:?}");
}

#[test]
fn what_is_to_be_tried_again_is_not_forgotten_where_no_worker_is_left() {
    let (mut plan, _, now) = elastic(0, 2);
    let job = plan.begin(wants(1)).unwrap();
    enter(&mut plan, job, 0..1, now);
    assert_eq!(todo(&mut plan, now), [Staffing::Start(0)]);
    plan.started(0);
    plan.arrived(0, now);
    plan.died(0, |_| Some(0), &Exit::new(Status::Signal(9)), now);
    plan.gone(0, &TaskFault::Cancelled);
    let due = now + Duration::from_millis(20);
    assert!(plan.staff_called);
    assert_eq!(plan.staffing(now), (vec![], Some(due)));
    assert_eq!(plan.staffing(due).0, [Staffing::Start(1)]);
}

#[test]
fn a_new_size_that_cannot_be_had_is_taken_back_and_nobody_who_was_there_leaves() {
    let now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, 2);
    (0..2).for_each(|index| plan.arrived(index, now));
    plan.resize(5).unwrap();
    let starts: Vec<_> = (2..5).map(Staffing::Start).collect();
    assert_eq!(todo(&mut plan, now), starts);
    plan.start_failed(3, false, &no_luck(), now);
    assert_eq!(todo(&mut plan, now), []);
    for index in [2, 4] {
        plan.started(index);
        assert_eq!(plan.resized(), None);
        assert_eq!(todo(&mut plan, now), [Staffing::Remove(index)]);
        plan.gone(index, &TaskFault::Cancelled);
        assert_eq!(todo(&mut plan, now), []);
    }
    assert_eq!(plan.resized(), Some(Err(no_luck())));
    assert_eq!(plan.most(), 2);
}

#[test]
fn who_leaves_has_least_to_do_and_what_it_has_not_begun_goes_to_others() {
    let now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, 2);
    let job = plan.begin(wants(0)).unwrap();
    plan.arrived(0, now);
    let chunk = |plan: &mut Plan, first: u64, count: u32| {
        let mut bytes = Vec::new();
        (0..count).for_each(|_| row::put(&mut bytes, b""));
        plan.enter(job, first, Load::Row(Row { bytes: bytes.into(), count }), now);
    };
    chunk(&mut plan, 0, 9);
    plan.arrived(1, now);
    chunk(&mut plan, 9, 5);
    plan.resize(1).unwrap();
    assert_eq!(todo(&mut plan, now), [], "it is at something");
    let orders = plan.orders(1);
    assert!(matches!(orders[1..], [Order::Skip { lane: 0, number: 0 }, Order::PutDown]), "{orders:?}");
    // It has finished one, and begins no other.
    plan.results(1, 0, &[found(0, VALUE), found(1, SKIPPED)], &nothing(), now).unwrap();
    assert_eq!(todo(&mut plan, now), [Staffing::Remove(1)]);
    assert_eq!((plan.waiting(), plan.done), (4, 1));
    assert_eq!(plan.resized(), None);
    plan.died(1, |_| None, &Exit::orderly(), now);
    plan.gone(1, &TaskFault::Cancelled);
    assert_eq!(todo(&mut plan, now), []);
    assert_eq!(plan.resized(), Some(Ok(())));
    // Nobody else may put anything down.
    assert_eq!(plan.results(0, 0, &[found(0, SKIPPED)], &nothing(), now), Err(Nonsense));
}

#[test]
fn how_long_a_task_has_run_is_counted_from_when_it_was_first_seen_and_not_from_its_chunk() {
    let (mut plan, _, begun) = two_given(0);
    let at = |seconds| begun + Duration::from_secs(seconds);
    let age = |plan: &Plan, now| plan.workers(now)[0].running;
    assert_eq!(age(&plan, at(3)), Some(Duration::from_secs(3)));
    plan.results(0, 0, &[found(0, VALUE)], &nothing(), at(4)).unwrap();
    assert_eq!(plan.due_to_end(0, |_| Some(1), at(4)), []);
    assert_eq!(age(&plan, at(5)), Some(Duration::from_secs(1)));
    assert_eq!(plan.workers(at(5))[0].busy, Duration::from_secs(5));
    plan.results(0, 0, &[found(1, VALUE)], &nothing(), at(6)).unwrap();
    assert_eq!(age(&plan, at(7)), None);
    assert_eq!(plan.workers(at(7))[0].busy, Duration::from_secs(6));
}
