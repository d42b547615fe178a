//! How many workers there are, who leaves, and what is told of them.

use std::task::Waker;
use std::time::Duration;

use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use hatchery_supervisor::errors::StartError;
use tokio::time::Instant;

use super::{found, nothing, two_given, wants};
use crate::plan::{JobId, Nonsense, Order, Plan, Rules, Size, Staffing, What};
use crate::row::{self, Load, Row};
use crate::terms::{SKIPPED, VALUE};

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
