//! How many workers there are: when one more starts, who leaves, and what a new size takes.
//!
//! ```text
//!            Start              started            retire             Remove          gone
//!   Empty ──────────▶ Starting ─────────▶ Held ───────────▶ Leaving ─────────▶ Removing ──▶ Empty
//!     ▲                  │ start_failed    │ gone, and nobody wanted it
//!     └──────────────────┘                 ▼
//!                                         Lost
//! ```
//!
//! One that is `Leaving` is given nothing more, and what it has not begun goes to others. Once it has nothing left it is
//! removed, which stops it in order.

use std::time::Duration;

use hatchery_actor::task_handle::TaskFault;
use hatchery_supervisor::errors::StartError;
use tokio::time::Instant;

use super::lines::Up;
use super::{Order, Place, Plan};

/// How long the next start waits after one that failed; each further one twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How many workers there are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// So many at any time …
    pub(crate) min: usize,
    /// … and so many if there is enough to do.
    pub(crate) max: usize,
    /// How long those above the least have nothing to do before they leave.
    pub(crate) idle: Duration,
    /// How many starts in a row may fail while there is no worker.
    pub(crate) failures: u32,
}

impl Size {
    /// Always so many.
    pub(crate) fn fixed(workers: usize) -> Size {
        Size { min: workers, max: workers, idle: Duration::MAX, failures: 0 }
    }

    fn is_elastic(&self) -> bool {
        self.min < self.max
    }
}

/// How a worker's place is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stand {
    /// By nobody.
    Empty,
    /// By one who is on the way.
    Starting,
    /// By one who is there, or whom the supervisor starts again.
    #[default]
    Held,
    /// By one who is not wanted any more, and has something left to do.
    Leaving,
    /// By one who is being stopped.
    Removing,
    /// By nobody, and that is not for want of trying: its supervisor has given it up.
    Lost,
}

/// What is to be done about workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Staffing {
    /// Start one at this place.
    Start(usize),
    /// Stop the one at this place, who has nothing to do, and do not start it again.
    Remove(usize),
}

/// A new size that was asked for and is not there yet.
#[derive(Debug)]
pub(super) struct Wanted {
    before: Size,
    /// Why it will not come to that.
    failed: Option<StartError>,
    /// Set once that is settled.
    outcome: Option<Result<(), StartError>>,
}

impl Place {
    fn new(stand: Stand) -> Place {
        Place { stand, ..Place::default() }
    }

    /// Whether somebody is there, or on the way, or on the way out.
    pub(super) fn is_taken(&self) -> bool {
        !matches!(self.stand, Stand::Empty | Stand::Lost)
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.stand, Stand::Leaving | Stand::Removing)
    }

    /// Whether it counts among those that there are to be.
    fn counts(&self) -> bool {
        matches!(self.stand, Stand::Starting | Stand::Held | Stand::Lost)
    }
}

impl Plan {
    /// How many workers there are to be, and are while it begins: the least.
    pub(crate) fn set_size(&mut self, size: Size) {
        self.first_size = size;
        self.begin_staffing();
    }

    /// The first workers are about to be there.
    pub(super) fn begin_staffing(&mut self) {
        self.size = self.first_size;
        if self.places.len() < self.size.min {
            self.places.resize_with(self.size.min, Place::default);
        }
        for (index, place) in self.places.iter_mut().enumerate() {
            place.stand = if index < self.size.min { Stand::Held } else { Stand::Empty };
        }
        (self.wanted, self.failed_starts, self.next_start, self.looks_at) = (None, 0, None, None);
        self.starved = None;
    }

    fn count(&self, what: impl Fn(&Place) -> bool) -> usize {
        self.places.iter().filter(|place| what(place)).count()
    }

    /// How many workers there may be.
    pub(super) fn most(&self) -> usize {
        self.size.max.saturating_sub(self.count(|place| place.stand == Stand::Lost))
    }

    /// Whether there may be one more than there are.
    pub(super) fn may_start(&self) -> bool {
        self.size.is_elastic() && self.over.is_none() && self.count(Place::counts) < self.size.max
    }

    /// A worker has nothing to do: somebody has to look whether that stays so.
    pub(super) fn may_be_idle(&mut self, index: usize) {
        if self.size.is_elastic() && self.looks_at.is_none() && self.count(Place::counts) > self.size.min {
            let up = self.places[index].up.as_ref();
            self.staff_called |= up.is_some_and(|up| up.busy() == 0);
        }
    }

    /// There are to be so many from now on, or up to so many if that depends on what there is to do.
    ///
    /// # Errors
    /// There will not be any, any more.
    pub(crate) fn resize(&mut self, workers: usize) -> Result<(), TaskFault> {
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        let fixed = !self.first_size.is_elastic();
        let min = if fixed { workers } else { self.first_size.min.min(workers) };
        let unsettled =
            self.wanted.take().filter(|wanted| wanted.outcome.is_none() && wanted.failed.is_none());
        let before = unsettled.map_or(self.size, |wanted| wanted.before);
        self.size = Size { min, max: workers, ..self.size };
        self.wanted = Some(Wanted { before, failed: None, outcome: None });
        for place in self.places.iter_mut().filter(|place| place.stand == Stand::Lost) {
            *place = Place::new(Stand::Empty);
        }
        (self.failed_starts, self.next_start) = (0, None);
        self.staff_called = true;
        Ok(())
    }

    /// What has become of the size that was asked for last, once that is settled.
    pub(crate) fn resized(&mut self) -> Option<Result<(), StartError>> {
        self.wanted.as_mut()?.outcome.take()
    }

    /// What is to be done now, and when to look again if nothing happens before.
    pub(crate) fn staffing(&mut self, now: Instant) -> (Vec<Staffing>, Option<Instant>) {
        let mut todo = Vec::new();
        self.looks_at = None;
        if self.over.is_some() {
            return (todo, None);
        }
        // Where there is a worker, its keeper looks at the clock for what is to be tried again.
        let alone = self.size.is_elastic() && self.up() == 0;
        if alone {
            self.hand_out(now);
        }
        // Those that are on the way are the first to go, when they have arrived.
        let arriving = self.count(|place| place.stand == Stand::Starting);
        let excess = self.count(Place::counts).saturating_sub(self.size.max).saturating_sub(arriving);
        for _ in 0..excess {
            let Some(index) = self.least_busy() else { break };
            self.retire(index);
        }
        let idle = self.retire_idle(now);
        for (index, place) in self.places.iter_mut().enumerate() {
            let has_nothing = place.up.as_ref().is_none_or(|up| up.busy() == 0);
            if place.stand == Stand::Leaving && has_nothing {
                place.stand = Stand::Removing;
                todo.push(Staffing::Remove(index));
            }
        }
        let missing = self.missing();
        let start = self.next_start.filter(|at| *at > now && missing > 0);
        if start.is_none() {
            for _ in 0..missing {
                let free = self.places.iter().position(|place| place.stand == Stand::Empty);
                let index = free.unwrap_or(self.places.len());
                if free.is_none() {
                    self.places.push(Place::default());
                }
                self.places[index] = Place::new(Stand::Starting);
                todo.push(Staffing::Start(index));
            }
        }
        self.settle();
        let again = self.later.first_key_value().map(|((at, _), _)| *at).filter(|_| alone);
        self.looks_at = [idle, start, again].into_iter().flatten().min();
        // All of it has just been looked at.
        self.staff_called = false;
        (todo, self.looks_at)
    }

    /// How many more are to start.
    fn missing(&self) -> usize {
        let there = self.count(Place::counts);
        let least = self.size.min.saturating_sub(there);
        if !self.size.is_elastic() {
            return least;
        }
        let ready = self.ready.iter().map(std::collections::VecDeque::len);
        // Of the suspects those alone that would get one: for the others he would have nothing to do.
        let waits = ready.sum::<usize>() + self.outside.len() + self.next_suspects();
        // Whoever comes takes one at least.
        let coming = self.count(|place| {
            place.stand == Stand::Starting || (place.stand == Stand::Held && place.up.is_none())
        });
        let more = waits.saturating_sub(coming).min(self.size.max.saturating_sub(there));
        least.max(more)
    }

    /// Who has least to do; of several, the one that came last.
    fn least_busy(&self) -> Option<usize> {
        let held = self.places.iter().enumerate().filter(|(_, place)| place.stand == Stand::Held);
        let load = |place: &Place| place.up.as_ref().map_or(0, Up::open);
        held.rev().min_by_key(|(_, place)| load(place)).map(|(index, _)| index)
    }

    /// Has those leave that have had nothing to do for too long, and says when the next one will have.
    fn retire_idle(&mut self, now: Instant) -> Option<Instant> {
        if !self.size.is_elastic() {
            return None;
        }
        let mut spare = self.count(Place::counts).saturating_sub(self.size.min);
        let mut next = None;
        for index in (0..self.places.len()).rev() {
            if spare == 0 {
                return None;
            }
            let place = &self.places[index];
            let idle = place.up.as_ref().filter(|up| place.stand == Stand::Held && up.busy() == 0);
            let Some(until) = idle.and_then(|up| up.counted.checked_add(self.size.idle)) else { continue };
            if until <= now {
                self.retire(index);
                spare -= 1;
            } else {
                next = Some(next.map_or(until, |next: Instant| next.min(until)));
            }
        }
        next.filter(|_| spare > 0)
    }

    /// Has a worker leave, as soon as what it is at is done.
    fn retire(&mut self, index: usize) {
        self.places[index].stand = Stand::Leaving;
        if let Some(up) = &mut self.places[index].up {
            up.leaving = true;
            self.give_back(index);
        }
    }

    /// A worker is to make room for another one at its place, as soon as what it is at is done.
    pub(crate) fn replace(&mut self, index: usize) {
        let up = self.places[index].up.as_mut().filter(|up| !up.leaving && !up.ending);
        let Some(up) = up else { return };
        (up.leaving, up.replaced) = (true, true);
        if up.busy() == 0 {
            up.replaced = false;
            up.orders.push(Order::Leave);
        }
        self.give_back(index);
    }

    /// Has what a worker has not begun go to others.
    fn give_back(&mut self, index: usize) {
        // Suspects have half of those that stay, which are fewer now.
        self.calls.extend(self.cleared_in_vain());
        let Some(up) = &mut self.places[index].up else { return };
        let Up { lines, orders, .. } = up;
        // Of several, one that has begun would be ended by this.
        let begun = usize::from(lines.len() > 1);
        for (lane, line) in (0..).zip(&mut *lines) {
            let open = line.given.iter_mut().skip(begun).filter(|given| !given.withdrawn && !given.returned);
            for given in open {
                given.returned = true;
                orders.push(Order::Skip { lane, number: given.number });
            }
        }
        let [line] = &lines[..] else { return self.calls.push(index) };
        if line.given.front().is_some_and(|given| given.chunk.load.count() - given.done > 1) {
            orders.push(Order::PutDown);
        }
        self.calls.push(index);
    }

    /// A start has succeeded.
    pub(crate) fn started(&mut self, index: usize) {
        let place = &mut self.places[index];
        if place.stand == Stand::Starting {
            place.stand = Stand::Held;
        }
        (self.failed_starts, self.next_start) = (0, None);
        self.staff_called = true;
    }

    /// A start has failed. `is_taken`: somebody who cannot be got rid of is at this place.
    pub(crate) fn start_failed(&mut self, index: usize, is_taken: bool, why: &StartError, now: Instant) {
        self.places[index] = Place::new(if is_taken { Stand::Lost } else { Stand::Empty });
        self.staff_called = true;
        if let Some(wanted) = self.wanted.as_mut().filter(|wanted| wanted.outcome.is_none()) {
            if wanted.failed.is_none() {
                wanted.failed = Some(why.clone());
                self.size = wanted.before;
            }
            return;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failed_starts.min(16)).min(LONGEST_PAUSE);
        self.failed_starts += 1;
        self.next_start = Some(now + pause);
        if self.failed_starts > self.size.failures && self.count(Place::is_taken) == 0 {
            let why = why.fault().map_or_else(|| why.to_string(), ToString::to_string);
            self.starved = Some(why.clone());
            self.end(&TaskFault::InitFailed(why));
        }
    }

    /// Why it has given up, for want of workers.
    pub(crate) fn starved(&self) -> Option<String> {
        self.starved.clone()
    }

    /// No worker will be at this place any more.
    pub(crate) fn gone(&mut self, index: usize, why: &TaskFault) {
        let leaves = self.places[index].is_leaving();
        if leaves {
            self.places[index] = Place::new(Stand::Empty);
        } else {
            self.places[index].stand = Stand::Lost;
        }
        self.staff_called = true;
        if self.count(Place::is_taken) == 0 && self.most() == 0 {
            self.end(why);
        }
    }

    /// Whether what was asked for has come about, or will not.
    fn settle(&mut self) {
        let moving = |place: &Place| place.stand == Stand::Starting || place.is_leaving();
        let there = self.count(Place::counts);
        let is_settled = self.count(moving) == 0 && there >= self.size.min && there <= self.size.max;
        if let Some(wanted) = self.wanted.as_mut().filter(|wanted| is_settled && wanted.outcome.is_none()) {
            wanted.outcome = Some(wanted.failed.take().map_or(Ok(()), Err));
        }
    }

    /// How often it has begun.
    pub(crate) fn runs(&self) -> u64 {
        self.runs
    }
}
