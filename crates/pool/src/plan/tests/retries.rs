//! Whom a death is charged to, and how often and when a task is tried again.

use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::exit::{Exit, Panic, Status};
use hatchery_actor::task_handle::TaskFault;
use hatchery_wire::encode;
use tokio::time::Instant;

use super::model::{Step, World};
use super::{all_given, nothing, two_given, wants};
use crate::plan::back::LONG;
use crate::plan::{Found, Order, Plan, Rules, Wants, What};
use crate::row::{self, Load, Row};
use crate::terms::{PANIC, VALUE};

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
