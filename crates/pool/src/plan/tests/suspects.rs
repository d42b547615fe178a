//! Tasks that ran in a worker when that ended: they run alone from then on, and neither they nor others wait for ever.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::task_handle::TaskFault;
use tokio::time::Instant;

use super::{ASYNC, ENTRY, found, nothing, wants};
use crate::plan::{JobId, Order, Plan, Priority, Rules, Size, Staffing, Wants, What};
use crate::row::{self, Load, Row};
use crate::terms::VALUE;

/// A pool of workers of three lines each, and which task runs where: each is a job of its own, and known by a number.
struct Lab {
    plan: Plan,
    now: Instant,
    jobs: BTreeMap<u64, JobId>,
    /// By worker, line, and the number by which the worker knows it.
    running: BTreeMap<(usize, u16, u32), u64>,
}

fn asynchronous() -> Wants {
    Wants { entry: &ASYNC, ..wants(1) }
}

impl Lab {
    fn new(workers: usize) -> Lab {
        let now = Instant::now();
        let mut plan = Plan::new(Rules { prefetch: 0, max_tasks: None, lanes: 3 }, workers);
        (0..workers).for_each(|index| plan.arrived(index, now));
        Lab { plan, now, jobs: BTreeMap::new(), running: BTreeMap::new() }
    }

    fn submit(&mut self, tasks: impl IntoIterator<Item = u64>, wants: Wants) {
        for task in tasks {
            let mut bytes = Vec::new();
            row::put(&mut bytes, &task.to_le_bytes());
            let load = Load::Row(Row { bytes: bytes.into(), count: 1 });
            self.jobs.insert(task, self.plan.submit(wants, load, self.now).unwrap());
        }
        self.listen();
    }

    fn listen(&mut self) {
        for index in 0..self.plan.places.len() {
            for order in self.plan.orders(index) {
                let Order::Run { lane, number, load: Load::Row(row), .. } = order else { continue };
                let task = row::next(&mut &row.bytes[..]).unwrap();
                self.running.insert((index, lane, number), u64::from_le_bytes(task.try_into().unwrap()));
            }
        }
    }

    /// What a worker runs.
    fn runs(&self, worker: usize) -> Vec<u64> {
        let all = self.running.iter().filter(|((index, ..), _)| *index == worker);
        let mut all: Vec<_> = all.map(|(_, task)| *task).collect();
        all.sort_unstable();
        all
    }

    fn wait(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
        self.plan.hand_out(self.now);
        self.listen();
    }

    /// They end well, wherever they run.
    fn finish(&mut self, tasks: impl IntoIterator<Item = u64>) {
        for task in tasks {
            let at = self.running.iter().find(|(_, running)| **running == task);
            let (index, lane, number) = *at.unwrap_or_else(|| panic!("{task} does not run")).0;
            self.running.remove(&(index, lane, number));
            let found = crate::plan::Found { lane, ..found(number, VALUE) };
            assert_eq!(self.plan.results(index, lane, &[found], &nothing(), self.now), Ok(1));
        }
        self.listen();
    }

    /// A worker dies in all that it runs, and another one takes its place.
    fn die(&mut self, worker: usize) {
        let lost = self.running.extract(|(index, ..)| *index == worker);
        let running = |lane| lost.iter().find(|(at, _)| at.1 == lane).map(|(at, _)| at.2);
        self.plan.died(worker, running, &Exit::new(Status::Signal(6)), self.now);
        self.plan.arrived(worker, self.now);
        self.listen();
    }

    fn outcome(&mut self, task: u64) -> Option<What> {
        self.plan.take(self.jobs[&task], Waker::noop().clone()).0.pop_front().map(|mail| mail.what)
    }
}

/// Takes out what has such a key.
trait Extract<K, V> {
    fn extract(&mut self, is: impl Fn(&K) -> bool) -> Vec<(K, V)>;
}

impl<K: Ord + Copy, V> Extract<K, V> for BTreeMap<K, V> {
    fn extract(&mut self, is: impl Fn(&K) -> bool) -> Vec<(K, V)> {
        let keys: Vec<K> = self.keys().copied().filter(is).collect();
        keys.into_iter().filter_map(|key| self.remove_entry(&key)).collect()
    }
}

#[test]
fn those_that_ran_when_their_worker_died_run_alone_and_others_go_elsewhere() {
    let mut lab = Lab::new(2);
    lab.submit(1..7, asynchronous());
    assert_eq!((lab.runs(0), lab.runs(1)), (vec![1, 3, 5], vec![2, 4, 6]));
    lab.die(0);
    lab.wait(20);
    assert_eq!(lab.runs(0), [5]);
    lab.submit([7], asynchronous());
    assert_eq!(lab.runs(0), [5], "nothing beside it");
    lab.finish([2]);
    assert_eq!(lab.runs(1), [4, 6, 7]);
    lab.die(0);
    assert!(matches!(lab.outcome(5), Some(What::Failed(TaskFault::Poisoned { deaths: 2, .. }, Some(0)))));
    assert_eq!(lab.runs(0), [3], "it costs nobody else");
    lab.finish([3]);
    assert_eq!(lab.runs(0), [1]);
    lab.submit(8..11, asynchronous());
    lab.finish([1]);
    assert_eq!(lab.runs(0), [8, 9, 10], "from then on it is as before");
}

#[test]
fn a_suspect_gets_a_worker_where_others_always_have_something_to_do_and_they_have_their_turn() {
    let mut lab = Lab::new(1);
    lab.submit(1..4, asynchronous());
    lab.submit(10..20, asynchronous());
    lab.die(0);
    assert_eq!(lab.runs(0), [10, 11, 12], "the others need not wait before their pause is over");
    lab.wait(20);
    lab.finish([11]);
    assert_eq!(lab.runs(0), [10, 12], "nothing more until it has nothing left");
    for (others, suspect, next) in [
        (vec![10, 12], 3, vec![13, 14, 15]),
        (vec![13, 14, 15], 2, vec![16, 17, 18]),
        (vec![16, 17, 18], 1, vec![19]),
    ] {
        lab.finish(others);
        assert_eq!(lab.runs(0), [suspect]);
        lab.finish([suspect]);
        assert_eq!(lab.runs(0), next, "it is their turn");
    }
    lab.finish([19]);
    assert_eq!((lab.plan.waiting(), lab.plan.done), (0, 13));
}

#[test]
fn where_nobody_else_wants_anything_suspects_follow_one_another() {
    let mut lab = Lab::new(1);
    lab.submit(1..4, asynchronous());
    lab.die(0);
    lab.wait(20);
    for task in [3, 2, 1] {
        assert_eq!(lab.runs(0), [task]);
        lab.finish([task]);
    }
    assert_eq!((lab.plan.waiting(), lab.plan.done), (0, 3));
}

#[test]
fn half_of_the_workers_are_others_however_many_suspects_there_are() {
    let mut lab = Lab::new(4);
    lab.submit(0..12, asynchronous());
    (0..4).for_each(|worker| lab.die(worker));
    lab.wait(20);
    lab.submit(20..30, asynchronous());
    let alone = (0..4).filter(|worker| lab.runs(*worker).len() == 1).count();
    let others = (0..4).filter(|worker| lab.runs(*worker).iter().all(|task| *task >= 20)).count();
    assert_eq!((alone, others), (2, 2));
    assert!((0..4).all(|worker| lab.plan.next_look(worker, lab.now).is_none()), "nothing is cleared in vain");
}

#[test]
fn a_worker_is_not_cleared_any_more_when_nobody_wants_the_suspect() {
    let mut lab = Lab::new(1);
    lab.submit([1], asynchronous());
    lab.die(0);
    lab.submit(10..14, asynchronous());
    lab.wait(20);
    lab.finish([10]);
    assert_eq!(lab.runs(0), [11, 12], "it is being cleared");
    lab.plan.calls.clear();
    lab.plan.leave(lab.jobs[&1]);
    assert!(lab.plan.calls.contains(&0));
    assert_eq!(
        lab.plan.next_look(0, lab.now),
        Some(Duration::ZERO),
        "whoever looks after it hands out at once"
    );
    lab.wait(0);
    assert_eq!(lab.runs(0), [11, 12, 13]);
    assert_eq!(lab.plan.next_look(0, lab.now), None);
}

#[test]
fn nobody_is_cleared_for_a_suspect_while_something_waits_that_goes_before_it() {
    let mut lab = Lab::new(1);
    lab.submit([1], asynchronous());
    lab.die(0);
    lab.submit(10..14, asynchronous());
    lab.submit([20, 21], Wants { priority: Priority::High, ..asynchronous() });
    lab.wait(20);
    lab.finish([10, 11]);
    assert_eq!(lab.runs(0), [12, 20, 21]);
    lab.finish([20]);
    assert_eq!(lab.runs(0), [12, 21], "now somebody is, and 13 waits");
    lab.finish([12, 21]);
    assert_eq!(lab.runs(0), [1]);
}

#[test]
fn a_worker_is_cleared_that_has_nothing_which_has_run_for_long() {
    let mut lab = Lab::new(2);
    lab.submit([1], asynchronous());
    lab.wait(60_000);
    lab.submit(2..7, asynchronous());
    assert_eq!((lab.runs(0), lab.runs(1)), (vec![1, 3, 5], vec![2, 4, 6]));
    lab.finish([3, 5]);
    lab.die(1);
    lab.submit(10..16, asynchronous());
    lab.finish([10]);
    lab.wait(20);
    assert_eq!(lab.runs(0).first(), Some(&1));
    let all = lab.runs(1);
    lab.finish(all);
    assert_eq!(
        lab.runs(1).len(),
        1,
        "a suspect, though the other worker has as much to do: {:?}",
        lab.runs(0)
    );
    assert!(lab.runs(1)[0] < 7);
}

#[test]
fn a_synchronous_suspect_has_nothing_beside_it_either() {
    let mut lab = Lab::new(1);
    lab.submit([1], wants(1));
    lab.submit([2, 3], asynchronous());
    lab.die(0);
    lab.wait(20);
    assert_eq!(lab.runs(0), [1]);
    lab.submit([4], asynchronous());
    assert_eq!(lab.runs(0), [1]);
    lab.finish([1]);
    assert_eq!(lab.runs(0), [4], "it is its turn");
    lab.submit([5], Wants { entry: &ENTRY, ..wants(1) });
    lab.finish([4]);
    assert_eq!(lab.runs(0), [3]);
}

#[test]
fn those_beside_one_for_which_their_worker_is_killed_are_not_charged_with_a_death_but_run_alone() {
    let mut lab = Lab::new(1);
    let once = Wants { poison_after: Some(1), ..asynchronous() };
    lab.submit([1], Wants { timeout: Some(Duration::from_millis(50)), ..once });
    lab.submit([2], once);
    let running: Vec<_> = lab.running.keys().copied().collect();
    let at = |lane| running.iter().find(|at| at.1 == lane).map(|at| at.2);
    for pause in [0, 60, 1_100] {
        lab.now += Duration::from_millis(pause);
        for due in lab.plan.due_to_end(0, at, lab.now).iter().filter(|due| due.now) {
            lab.plan.was_ended(0, due);
        }
    }
    lab.die(0);
    assert!(lab.outcome(1).is_none() && lab.outcome(2).is_none(), "both are tried again");
    lab.wait(20);
    assert_eq!(lab.runs(0), [2]);
    lab.finish([2]);
    assert_eq!(lab.runs(0), [1]);
    lab.die(0);
    assert!(matches!(lab.outcome(1), Some(What::Failed(TaskFault::Poisoned { deaths: 1, .. }, _))));
}

#[test]
fn nobody_is_started_for_a_suspect_that_would_not_get_him() {
    for max in 1..6 {
        let mut lab = Lab::new(1);
        lab.plan.set_size(Size { min: 1, max, idle: Duration::from_millis(50), failures: 3 });
        lab.submit(1..4, asynchronous());
        lab.die(0);
        lab.wait(20);
        // They run for ever.
        let mut starts = 0;
        for _ in 0..100 {
            for what in lab.plan.staffing(lab.now).0 {
                match what {
                    Staffing::Start(index) => {
                        starts += 1;
                        lab.plan.started(index);
                        lab.plan.arrived(index, lab.now);
                    }
                    Staffing::Remove(index) => {
                        lab.plan.died(index, |_| None, &Exit::orderly(), lab.now);
                        lab.plan.gone(index, &TaskFault::Cancelled);
                    }
                }
                lab.listen();
            }
            lab.wait(60);
        }
        assert_eq!(starts, 0, "of at most {max}");
        assert_eq!((lab.plan.given(), lab.plan.up()), (1, 1), "and who had nothing to do has left");
    }
}

#[test]
fn others_have_their_turn_too_where_the_other_worker_leaves_and_takes_long_for_it() {
    let mut lab = Lab::new(2);
    lab.submit(1..7, asynchronous());
    lab.submit(10..20, asynchronous());
    lab.die(0);
    lab.plan.replace(1);
    lab.wait(20);
    for (others, suspect, next) in
        [(vec![10, 11, 12], 5, vec![13, 14, 15]), (vec![13, 14, 15], 3, vec![16, 17, 18])]
    {
        assert_eq!(lab.runs(0), others);
        lab.finish(others);
        assert_eq!(lab.runs(0), [suspect]);
        lab.finish([suspect]);
        assert_eq!(lab.runs(0), next, "there is nobody else for them");
    }
    assert_eq!(lab.runs(1), [2, 4, 6]);
}
