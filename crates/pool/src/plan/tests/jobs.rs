//! Jobs of a single task, which wait outside of a line that is full.

use hatchery_actor::task_handle::TaskFault;
use tokio::time::Instant;

use super::{found, nothing, wants};
use crate::plan::choice::QUEUE;
use crate::plan::{Order, Plan, Priority, Rules, Wants};
use crate::row::{self, Load, Row};
use crate::terms::VALUE;

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
