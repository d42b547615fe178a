//! The plan by itself, with time as an argument, and what its tests have in common.

mod chunks;
mod jobs;
mod lines;
mod model;
mod retries;
mod staffing;
mod suspects;

use bytes::Bytes;
use hatchery_actor::actor::Place;
use hatchery_process::task::{TaskEntry, TaskRun};
use tokio::time::Instant;

use super::{Found, JobId, Order, Plan, Priority, Rules, Wants};
use crate::row::{self, Load, Row};

static ENTRY: TaskEntry =
    TaskEntry::new("task", Place::new("", 0, 0), TaskRun::Sync(|_| unreachable!()), None);

static ASYNC: TaskEntry =
    TaskEntry::new("asynchronous", Place::new("", 0, 0), TaskRun::Async(|_| unreachable!()), None);

fn wants(retries: u32) -> Wants {
    Wants { entry: &ENTRY, timeout: None, retries, poison_after: None, priority: Priority::Normal }
}

fn found(number: u32, kind: u8) -> Found {
    Found { number, lane: 0, kind, from: 0, to: 4 }
}

/// The row of an outcome with nothing in it.
fn nothing() -> Bytes {
    Bytes::from_static(&[0; 4])
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
