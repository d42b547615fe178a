//! Which worker gets a chunk and when, and what is taken back of it.

use std::time::Duration;

use super::model::{Step, World};
use super::{all_given, found, nothing, told, wants};
use crate::plan::back::{LONG, STUCK};
use crate::plan::{Nonsense, Order, Plan};
use crate::row::{self, Load, Row};
use crate::terms::{SKIPPED, VALUE};

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
fn that_a_task_was_not_begun_may_come_by_the_socket() {
    let (mut plan, job, now) = all_given(3, None);
    plan.alone(0, 0, 0, VALUE, hatchery_wire::Body::default(), now).unwrap();
    assert_eq!(plan.alone(0, 0, 1, SKIPPED, hatchery_wire::Body::default(), now), Err(Nonsense));
    plan.cancel(job);
    // Nor has what comes behind it in its row.
    assert_eq!(plan.alone(0, 0, 1, SKIPPED, hatchery_wire::Body::default(), now), Ok(()));
    assert!(!plan.is_busy(0));
}
