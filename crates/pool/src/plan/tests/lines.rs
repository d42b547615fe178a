//! Lines of a worker: what runs in which, and how one of several tasks is ended.

use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::actor::Place;
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use hatchery_process::task::{TaskEntry, TaskRun};
use tokio::time::Instant;

use crate::plan::{Due, Found, JobId, Order, Plan, Priority, Rules, Wants, What};
use crate::row::{self, Load, Row};
use crate::terms::{SKIPPED, STOPPED, VALUE};

static SYNC: TaskEntry =
    TaskEntry::new("sync", Place::new("", 0, 0), TaskRun::Sync(|_| unreachable!()), None);
static ASYNC: TaskEntry =
    TaskEntry::new("async", Place::new("", 0, 0), TaskRun::Async(|_| unreachable!()), None);

/// One worker with so many lines, and what it was told last.
struct One {
    plan: Plan,
    now: Instant,
    told: Vec<(u16, u32)>,
}

impl One {
    fn new(lanes: u16) -> One {
        let (now, told) = (Instant::now(), Vec::new());
        let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes }, 1);
        plan.arrived(0, now);
        One { plan, now, told }
    }

    /// A job with one task, which may run for 50 ms.
    fn job(&mut self, entry: &'static TaskEntry) -> JobId {
        self.row(entry, 1)
    }

    /// A job with so many tasks in one chunk.
    fn row(&mut self, entry: &'static TaskEntry, count: u32) -> JobId {
        let (timeout, priority) = (Some(Duration::from_millis(50)), Priority::Normal);
        let wants = Wants { entry, timeout, retries: 0, poison_after: None, priority };
        let job = self.plan.begin(wants).unwrap();
        let mut bytes = Vec::new();
        (0..count).for_each(|_| row::put(&mut bytes, b"it"));
        self.plan.enter(job, 0, Load::Row(Row { bytes: bytes.into(), count }), self.now);
        for order in self.plan.orders(0) {
            if let Order::Run { lane, number, .. } = order {
                self.told.push((lane, number));
            }
        }
        job
    }

    /// What is to be ended after so many milliseconds, if all that it was told runs; and what it is asked to end.
    fn due(&mut self, after: u64) -> (Vec<Due>, Vec<(u16, u32)>) {
        self.now += Duration::from_millis(after);
        let running = |lane| self.told.iter().find(|told| told.0 == lane).map(|told| told.1);
        let due = self.plan.due_to_end(0, running, self.now);
        let asked = self.plan.orders(0).into_iter().filter_map(|order| match order {
            Order::Stop { lane, number } => Some((lane, number)),
            _ => None,
        });
        (due, asked.collect())
    }

    fn says(&mut self, (lane, number): (u16, u32), kind: u8) -> bool {
        let found = Found { number, lane, kind, from: 0, to: 4 };
        let said = self.plan.results(0, lane, &[found], &Bytes::from_static(&[0; 4]), self.now);
        self.told.retain(|told| *told != (lane, number));
        said == Ok(1)
    }

    fn outcome(&mut self, job: JobId) -> Option<What> {
        self.plan.take(job, std::task::Waker::noop().clone()).0.pop_front().map(|mail| mail.what)
    }
}

fn timed_out(what: Option<What>) -> bool {
    matches!(what, Some(What::Failed(TaskFault::Fault(Fault::Timeout { .. }), _)))
}

#[test]
fn one_of_several_that_takes_too_long_is_to_be_ended_by_its_worker_and_costs_nobody_else() {
    let mut one = One::new(3);
    let (late, other) = (one.job(&ASYNC), one.job(&ASYNC));
    let [first, second] = one.told[..] else { panic!("both run: {:?}", one.told) };
    assert!(one.due(0).0.is_empty());
    let wants = Wants { timeout: None, ..one.plan.jobs[&other].wants };
    one.plan.change(other, wants, one.now);
    let (due, asked) = one.due(60);
    assert!(due.iter().all(|due| !due.now) && asked == [first], "{due:?}, {asked:?}");
    assert_eq!(one.due(10).1, [], "it is asked once");
    assert!(one.says(first, STOPPED) && timed_out(one.outcome(late)));
    assert!(one.due(5_000).0.is_empty(), "all is well");
    assert!(one.says(second, VALUE) && matches!(one.outcome(other), Some(What::Row(_))));
}

#[test]
fn one_that_was_asked_to_end_and_finishes_has_its_result() {
    let mut one = One::new(2);
    let job = one.job(&ASYNC);
    one.due(0);
    assert_eq!(one.due(60).1.len(), 1);
    assert!(one.says(one.told[0], VALUE) && matches!(one.outcome(job), Some(What::Row(_))));
    assert!(one.due(5_000).0.is_empty());
}

#[test]
fn who_was_not_asked_to_end_anything_does_not_say_that_it_did() {
    for kind in [STOPPED, SKIPPED] {
        let mut one = One::new(2);
        one.job(&ASYNC);
        assert!(!one.says(one.told[0], kind));
    }
}

#[test]
fn a_worker_that_does_not_end_one_dies_and_with_it_end_those_that_are_over_as_well() {
    let mut one = One::new(3);
    let jobs = [&ASYNC, &ASYNC, &ASYNC].map(|entry| one.job(entry));
    let [first, second, third] = one.told[..] else { panic!("all run: {:?}", one.told) };
    one.due(0);
    one.plan.change(jobs[2], Wants { timeout: None, ..one.plan.jobs[&jobs[2]].wants }, one.now);
    one.due(60);
    one.due(900);
    one.plan.cancel(jobs[1]);
    let (due, _) = one.due(150);
    let now: Vec<_> = due.iter().map(|due| ((due.lane, due.number), due.now)).collect();
    assert_eq!(now, [(second, true), (first, true)], "not the third one: {third:?}");
    due.iter().for_each(|due| one.plan.was_ended(0, due));
    assert!(one.due(60).0.is_empty(), "it is being killed");
    let told = one.told.clone();
    let running = |lane| told.iter().find(|told| told.0 == lane).map(|told| told.1);
    one.plan.died(0, running, &Exit::new(Status::Signal(9)), one.now);
    assert!(timed_out(one.outcome(jobs[0])) && one.outcome(jobs[1]).is_none());
    let died = one.outcome(jobs[2]);
    assert!(matches!(died, Some(What::Failed(TaskFault::Fault(Fault::Ended { .. }), _))));
}

#[test]
fn nobody_is_blamed_for_what_it_cannot_do_while_a_synchronous_one_runs() {
    let mut one = One::new(2);
    let (sync, late) = (one.job(&SYNC), one.job(&ASYNC));
    one.plan.change(sync, Wants { timeout: None, ..one.plan.jobs[&sync].wants }, one.now);
    assert_eq!(one.told.iter().map(|told| told.0).collect::<Vec<_>>(), [0, 1]);
    let [first, second] = one.told[..] else { panic!("both run: {:?}", one.told) };
    one.due(0);
    assert_eq!(one.due(60).1, [second]);
    for _ in 0..10 {
        assert!(one.due(900).0.iter().all(|due| !due.now));
    }
    assert!(one.says(first, VALUE));
    assert!(one.due(900).0.iter().all(|due| !due.now), "from now on it can");
    assert!(one.due(200).0.iter().all(|due| due.now));
    assert!(one.says(second, STOPPED) && timed_out(one.outcome(late)));
}

#[test]
fn a_synchronous_one_is_ended_at_once_if_nothing_runs_beside_it_and_else_has_some_time_left() {
    let mut one = One::new(2);
    one.job(&SYNC);
    one.due(0);
    assert!(one.due(60).0[0].now);
    let other = one.job(&ASYNC);
    one.plan.change(other, Wants { timeout: None, ..one.plan.jobs[&other].wants }, one.now);
    let (due, asked) = one.due(0);
    assert!(due.len() == 1 && !due[0].now && asked.is_empty(), "it would not hear it: {due:?}");
    assert!(one.due(1_100).0[0].now);
}

#[test]
fn while_state_is_built_anew_nobody_is_blamed_for_what_it_does_not_hear() {
    use hatchery_process::task::{OnState, RunOnState, StateType};
    static BORROWS: TaskEntry = TaskEntry::new(
        "borrows",
        Place::new("", 0, 0),
        TaskRun::OnState(OnState {
            state: StateType::of::<u8>(),
            run: RunOnState::Sync(|_, _| unreachable!()),
            packed: None,
        }),
        None,
    );
    let mut one = One::new(2);
    one.plan.state = Some(StateType::of::<u8>());
    let late = one.job(&ASYNC);
    one.job(&BORROWS);
    // The ledger does not say yet that it runs.
    one.told.retain(|told| told.0 > 0);
    one.due(0);
    assert!(!one.due(60).0[0].now);
    assert!(!one.due(5_000).0[0].now, "it may be building");
    assert!(!one.due(20_000).0[0].now && one.due(6_000).0[0].now, "but not for ever");
    assert!(one.outcome(late).is_none());
}

#[test]
fn one_that_has_to_wait_for_the_first_line_lets_others_pass() {
    let mut one = One::new(2);
    one.job(&ASYNC);
    one.job(&ASYNC);
    let [in_a_line, _] = one.told[..] else { panic!("both run: {:?}", one.told) };
    assert!(in_a_line.0 > 0);
    one.job(&SYNC);
    assert!(one.says(in_a_line, VALUE));
    let told = one.told.len();
    one.job(&ASYNC);
    assert_eq!(one.told[told..].iter().map(|told| told.0).collect::<Vec<_>>(), [in_a_line.0]);
    assert_eq!(one.plan.waiting(), 1);
}

#[test]
fn what_is_withdrawn_is_not_run_to_its_end_or_not_begun() {
    let mut one = One::new(2);
    let job = one.row(&ASYNC, 3);
    let (lane, number) = one.told[0];
    one.plan.cancel(job);
    let orders = one.plan.orders(0);
    assert!(matches!(orders[..], [Order::Skip { number: told, .. }] if told == number), "{orders:?}");
    assert!(one.says((lane, number), VALUE), "it need not have heard of it");
    assert!(one.says((lane, number + 1), STOPPED) && one.plan.is_busy(0));
    assert!(one.says((lane, number + 2), SKIPPED));
    assert!(!one.plan.is_busy(0) && one.outcome(job).is_none());
}

#[test]
fn a_line_at_the_one_before_whose_result_came_by_the_socket_has_lost_nothing() {
    let mut one = One::new(2);
    let first = one.job(&ASYNC);
    one.job(&ASYNC);
    assert_eq!(one.told, [(1, 0), (0, 1)]);
    one.plan.alone(0, 1, 0, VALUE, Default::default(), one.now).unwrap();
    assert!(matches!(one.outcome(first), Some(What::Alone(_))));
    let next = one.job(&ASYNC);
    assert_eq!(one.told[2], (1, 2), "numbers go to all lines");
    // The ledger names it still.
    one.plan.died(0, |lane| (lane == 1).then_some(0), &Exit::new(Status::Signal(9)), one.now);
    assert!(one.outcome(next).is_none(), "it waits for the next worker");
    assert_eq!(one.plan.waiting(), 2);
}

#[test]
fn nothing_stands_behind_an_asynchronous_task_while_there_are_several_lines() {
    let mut one = One::new(2);
    for entry in [&SYNC, &ASYNC] {
        one.job(entry);
        let told = one.told[0];
        assert!(one.says(told, VALUE), "it is known to be quick");
    }
    let given: Vec<_> = [&ASYNC, &SYNC, &SYNC, &ASYNC].map(|entry| one.job(entry)).to_vec();
    assert_eq!(given.len(), 4);
    assert_eq!(one.told.iter().map(|told| told.0).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(one.plan.waiting(), 1, "the last one");
}

fn load() -> Load {
    let mut bytes = Vec::new();
    row::put(&mut bytes, b"it");
    Load::Row(Row { bytes: bytes.into(), count: 1 })
}

#[test]
fn asynchronous_tasks_spread_over_workers_first_and_leave_the_first_line_to_synchronous_ones() {
    let now = Instant::now();
    let mut plan = Plan::new(Rules { prefetch: 1, max_tasks: None, lanes: 3 }, 2);
    plan.arrived(0, now);
    plan.arrived(1, now);
    let wants =
        |entry| Wants { entry, timeout: None, retries: 0, poison_after: None, priority: Priority::Normal };
    let given = |plan: &mut Plan, entry| {
        plan.submit(wants(entry), load(), now).unwrap();
        let orders = [0, 1].map(|index| (index, plan.orders(index)));
        let mut all =
            orders.iter().flat_map(|(index, orders)| orders.iter().map(move |order| (*index, order)));
        all.find_map(|(index, order)| match order {
            Order::Run { lane, .. } => Some((index, *lane)),
            _ => None,
        })
    };
    let spread: Vec<_> = (0..4).filter_map(|_| given(&mut plan, &ASYNC)).collect();
    assert_eq!(spread.iter().map(|given| given.0).collect::<Vec<_>>(), [0, 1, 0, 1]);
    assert!(spread.iter().all(|given| given.1 > 0));
    assert_eq!(given(&mut plan, &SYNC), Some((0, 0)));
    assert_eq!(given(&mut plan, &ASYNC), Some((1, 0)), "the last line that is free");
    assert_eq!(given(&mut plan, &SYNC), None, "both first lines have something to do");
}
