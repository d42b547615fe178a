//! Tasks whose time is over, and workers that have ended.

use std::time::Duration;

use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::task_handle::TaskFault;
use tokio::time::Instant;

use super::lines::{Given, Up};
use super::{Chunk, Due, End, Order, Plan, Stand, one_of};

/// For how long a worker is not blamed that it ends no task, because it may be building its state anew.
const RENEWAL: Duration = Duration::from_secs(30);
/// How often a worker is looked at whose task is to end.
const OFTEN: Duration = Duration::from_millis(1);
/// How long a worker has to end a task by itself where others run beside it, for which its death would be the end: long for
/// futures that yield, also if one of them computes for a while or prints a panic, and short for whoever waits.
const PATIENCE: Duration = Duration::from_secs(1);

impl Plan {
    /// Which running tasks of a worker are to be ended, and why; those first for which it is to be killed. `running` says
    /// what a lane is at.
    ///
    /// One that runs all by itself is ended with its worker. Where others run beside it, the worker is asked to end it, and
    /// is killed only if it does not within its [`PATIENCE`]; those for which it has some left are ended along with it then.
    pub(crate) fn due_to_end(
        &mut self,
        index: usize,
        running: impl Fn(u16) -> Option<u32>,
        now: Instant,
    ) -> Vec<Due> {
        let mut all = Vec::new();
        let Some(up) = self.places[index].up.as_mut().filter(|up| !up.ending) else { return all };
        let busy = up.busy();
        let is_one = up.lines.len() == 1;
        // While this one runs, its worker cannot end any other; nor while the state that it borrows is built anew before it, of
        // which the ledger says nothing.
        let jobs = &self.jobs;
        let borrows =
            |given: &Given| jobs.get(&given.chunk.job).is_some_and(|job| job.wants.entry.borrows().is_some());
        let first = &up.lines[0];
        let builds = now.saturating_duration_since(first.began) < RENEWAL;
        let stands = !is_one
            && first.given.front().is_some_and(|given| {
                given.alone && running(0).map_or(builds && borrows(given), |it| given.has(it))
            });
        let Up { lines, orders, .. } = up;
        let told = orders.len();
        for (lane, line) in (0..).zip(lines) {
            let Some(given) = line.given.front() else { continue };
            let timeout = self.jobs.get(&given.chunk.job).and_then(|job| job.wants.timeout);
            let Some(number) = running(lane).filter(|number| given.has(*number)) else { continue };
            let why = if given.withdrawn { End::Cancelled } else { End::TimedOut };
            if why == End::TimedOut {
                let since = match line.seen {
                    Some((seen, since)) if seen == number => since,
                    _ => line.seen.insert((number, now)).1,
                };
                if timeout.is_none_or(|timeout| now.saturating_duration_since(since) < timeout) {
                    continue;
                }
            }
            if is_one || given.alone && busy == 1 {
                all.push(Due { lane, number, why, now: true });
                continue;
            }
            let asked = match &mut line.asked {
                Some((asked, since)) if *asked == number => since,
                asked => {
                    // What is withdrawn was told so.
                    if why == End::TimedOut && !given.alone {
                        orders.push(Order::Stop { lane, number });
                    }
                    &mut asked.insert((number, now)).1
                }
            };
            if stands && !given.alone {
                *asked = now;
            }
            let over = now.saturating_duration_since(*asked) >= PATIENCE;
            all.push(Due { lane, number, why, now: over });
        }
        if orders.len() > told {
            self.calls.push(index);
        }
        all.sort_by_key(|due| !due.now);
        all
    }

    /// It was ended: no outcome of it comes any more, and its worker is being killed.
    pub(crate) fn was_ended(&mut self, index: usize, due: &Due) {
        let Some(up) = &mut self.places[index].up else { return };
        up.ending = true;
        if let Some(line) = up.lines.get_mut(usize::from(due.lane)) {
            line.ended = Some((due.number, due.why));
        }
    }

    /// How soon a worker is to be looked at again, if nothing comes before.
    pub(crate) fn next_look(&self, index: usize, now: Instant) -> Option<Duration> {
        let up = self.places[index].up.as_ref()?;
        let takes = || up.lines.iter().any(|line| line.given.len() <= self.rules.prefetch);
        let due = self.later.first_key_value().filter(|_| takes());
        let due = due.map(|((at, _), _)| at.saturating_duration_since(now).max(OFTEN));
        let watched = up.lines.iter().filter_map(|line| {
            let given = line.given.front()?;
            if given.withdrawn || line.asked.is_some() {
                return Some(OFTEN);
            }
            let timeout = self.jobs.get(&given.chunk.job)?.wants.timeout?;
            Some((timeout / 16).clamp(OFTEN, Duration::from_millis(100)))
        });
        let watched = watched.min();
        let in_vain = self.cleared_in_vain().filter(|cleared| *cleared == index).map(|_| Duration::ZERO);
        [due, watched, up.until_late(now), in_vain].into_iter().flatten().min()
    }

    /// Whether a worker has something to do.
    pub(crate) fn is_busy(&self, index: usize) -> bool {
        self.places[index].up.as_ref().is_some_and(|up| up.busy() > 0)
    }

    /// Whether all that it does is over so quickly that its outcomes had better be taken many at a time.
    pub(crate) fn is_quick(&self, index: usize) -> bool {
        let lines = self.places[index].up.iter().flat_map(|up| &up.lines);
        let mut first = lines.filter_map(|line| line.given.front()).peekable();
        let quick = |given: &Given| {
            let pace = self.jobs.get(&given.chunk.job).and_then(|job| job.pace);
            pace.is_some_and(|pace| pace < Duration::from_micros(100))
        };
        first.peek().is_some() && first.all(quick)
    }

    /// The task of which a worker has to say something next in a line, if it has one.
    pub(crate) fn next_of(&self, index: usize, lane: u16) -> Option<u32> {
        let up = self.places[index].up.as_ref()?;
        Some(up.lines.get(usize::from(lane))?.given.front()?.next())
    }

    /// A worker has ended; `running` is what its ledger says that a lane was at, after all outcomes were taken out of it.
    pub(crate) fn died(
        &mut self,
        index: usize,
        running: impl Fn(u16) -> Option<u32>,
        exit: &Exit,
        now: Instant,
    ) {
        let Some(up) = self.places[index].up.take() else { return };
        let mut lost = Vec::new();
        let is_several = up.lines.len() > 1;
        // It was killed for some of what ran, so it died of nothing else.
        let killed = up.lines.iter().any(|line| line.ended.is_some());
        for (lane, mut line) in (0..).zip(up.lines) {
            if let Some(first) = line.given.front_mut() {
                // It can be at that one alone; or at the one before, whose result had come by the socket already. What
                // else it may say is as good as that.
                if running(lane).is_some_and(|running| Some(running) != line.last) {
                    let why = line.ended.filter(|(ended, _)| *ended == first.next()).map(|(_, why)| why);
                    let mut task = one_of(&first.chunk, first.done);
                    task.suspect = is_several;
                    task.deaths += u32::from(!killed);
                    lost.push((task, why));
                    first.done += 1;
                }
            }
            for given in line.given.into_iter().rev().filter(|given| !given.withdrawn) {
                self.put_back(given.rest());
            }
        }
        for (task, why) in lost {
            let why = match why {
                Some(End::TimedOut) => TaskFault::Fault(Fault::Timeout { maybe_executed: true }),
                Some(End::Cancelled) => TaskFault::Cancelled,
                None => TaskFault::Fault(Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: true }),
            };
            self.try_again(task, why, index, now);
        }
        self.staff_called |= self.places[index].stand == Stand::Leaving || !self.later.is_empty();
        self.hand_out(now);
    }

    /// To the front of what waits; a suspect to those that wait for a worker of their own.
    pub(super) fn put_back(&mut self, chunk: Chunk) {
        let job = self.jobs.get(&chunk.job).filter(|job| !job.cancelled);
        if let Some(job) = job.filter(|_| chunk.load.count() > 0) {
            if chunk.suspect {
                self.suspects.push_back(chunk);
            } else {
                self.ready[job.wants.priority as usize].push_front(chunk);
            }
        }
    }
}
