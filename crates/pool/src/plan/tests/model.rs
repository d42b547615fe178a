//! The plan against workers that are but a queue each, over random sequences of what can happen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::exit::{Exit, Panic, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use hatchery_supervisor::errors::StartError;
use hatchery_wire::encode;
use proptest::prelude::*;
use tokio::time::Instant;

use super::{ASYNC, ENTRY, found, nothing, wants};
use crate::plan::{Found, JobId, Nonsense, Order, Plan, Rules, Size, Staffing, Wants, What};
use crate::row::{self, Load, Row};
use crate::terms::{PANIC, SKIPPED, STOPPED, VALUE};

/// Something that happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
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

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) now: Instant,
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
    /// How often its worker died of nobody knows what, in company and at all; and which have run in one of several lines when
    /// that ended.
    beside: HashMap<u64, u32>,
    deaths: HashMap<u64, u32>,
    suspects: HashSet<u64>,
    outcomes: HashMap<u64, bool>,
}

/// What a job of the model wants.
fn wants_of(job: usize, retries: u32, limit: Option<u8>) -> Wants {
    let entry = if job == 0 { &ENTRY } else { &ASYNC };
    let timeout = limit.map(|limit| Duration::from_millis(100 * u64::from(limit)));
    Wants { entry, timeout, ..wants(retries) }
}

impl World {
    pub(super) fn new(retries: u32, max_tasks: Option<u64>) -> World {
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
        let (beside, deaths, suspects) = Default::default();
        let now = Instant::now();
        World {
            plan,
            now,
            workers,
            filled,
            starting,
            jobs,
            retries,
            lanes,
            ran,
            struck,
            beside,
            deaths,
            suspects,
            outcomes,
        }
    }

    pub(super) fn step(&mut self, step: Step) {
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
            Step::Die(index) => self.die(index, false),
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
            self.die(index, true);
        }
        self.carry();
    }

    /// Brings orders to workers, and outcomes to jobs.
    pub(super) fn carry(&mut self) {
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
                        let has = worker.lines.iter().flat_map(Line::has).collect::<Vec<_>>();
                        let is_suspect = |task: &u64| self.suspects.contains(task);
                        let alone = has.is_empty() || !has.iter().chain(&told.tasks).any(is_suspect);
                        assert!(alone, "a suspect has company: {has:?}, {:?}", told.tasks);
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
                        let deaths = self.deaths.get(&tasks).copied().unwrap_or(0);
                        match why {
                            TaskFault::Poisoned { deaths: told, .. } => assert_eq!(told, deaths),
                            TaskFault::Fault(Fault::Ended { .. }) => assert!(deaths < 2, "{deaths} deaths"),
                            _ => {}
                        }
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

    /// A worker dies, or is killed for what runs: each line loses the one that ran.
    fn die(&mut self, index: usize, killed: bool) {
        let Some(worker) = self.workers[index].take() else { return };
        let ran: Vec<_> = worker.lines.iter().filter_map(|line| Some(line.running?.1)).collect();
        for task in &ran {
            *self.struck.entry(*task).or_default() += 1;
            *self.deaths.entry(*task).or_default() += u32::from(!killed);
            let beside = self.beside.entry(*task).or_default();
            *beside += u32::from(ran.len() > 1);
            assert!(*beside <= 1, "{task} has died of others twice");
        }
        self.suspects.extend(ran.into_iter().filter(|_| self.lanes > 1));
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
    /// All tasks that it has.
    fn has(&self) -> impl Iterator<Item = u64> {
        let waiting = self.queue.iter().flat_map(|told| &told.tasks).copied();
        self.running.map(|(_, task)| task).into_iter().chain(waiting)
    }

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
