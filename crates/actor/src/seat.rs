//! The place of a child in the tree, in which incarnations sit one after another.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hatchery_wire::Body;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::address::{Address, ProcessId, Tenure, random};
use crate::busy::{self, is_busy};
use crate::child::{Child, Shutdown};
use crate::exchange::{Command, Exchange};
use crate::exit::{Exit, Status};
use crate::far::Far;
use crate::fault::Fault;
use crate::hold::{self, Hold};
use crate::incarnation::Incarnation;
use crate::monitor::{Monitor, Monitors, Told};
use crate::outlet::{Answer, Begun, Left, Line, Outlet, Taken, TooManyReleases, Until, WINDOW};
use crate::probe::{Awaited, Circle, Probe, Way};
use crate::streams::BadItem;

/// A child's place: its path, who sits there now, and the requests before it.
///
/// The supervisor writes it ([`occupy`](Seat::occupy), [`close`](Seat::close)); whoever started the incarnation
/// reports its end ([`ended`](Seat::ended)); handles read it.
pub struct Seat {
    /// Made up: a seat of the same path, before or after this one, has another.
    id: u64,
    path: String,
    actor: &'static str,
    shutdown: Mutex<Shutdown>,
    outlet: Outlet,
    occupancy: watch::Sender<Occupancy>,
    ends: Mutex<Ends>,
    /// The actor that sits here, if only it itself knows this seat.
    own: Option<busy::Id>,
    /// How who sits here is found, if this only stands for a seat of another process.
    far: Option<Far>,
    /// What one incarnation leaves to the next, in the same process: what it supervises.
    heirloom: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// How many from elsewhere may wait for a change here at the same time; one of a process is usual.
const LOOKERS: usize = 1024;
/// The latest ends are known for some time: whoever lost the connection asks how it ended.
const REMEMBERED: usize = 16;

/// What a seat knows of the ends in it. Who sits there changes under this lock only, so a monitor is about exactly
/// those that sit there, or sit down, after it was made.
#[derive(Default)]
struct Ends {
    sitting: Option<Incarnation>,
    /// Where who sits here lives.
    place: Option<(Option<ProcessId>, Option<u32>)>,
    /// The latest end, perhaps of one that never sat down, or does so only now.
    last: Option<(u64, Arc<Exit>)>,
    /// Oldest first.
    remembered: VecDeque<(u64, Arc<Exit>)>,
    closed: Option<String>,
    /// Who has to be gone before anybody sits down.
    held: Option<Box<Hold>>,
    monitors: Monitors,
    lookers: Vec<(u64, Look)>,
    looked: u64,
}

/// Looks at what has changed; whether that was what it waited for, and it need not look again. It runs under the seat's
/// lock: it only leaves word with somebody else.
pub type Look = Box<dyn FnMut(&View<'_>) -> bool + Send>;

/// What can be seen of a seat from elsewhere.
pub struct View<'a> {
    /// The registered name of its actor.
    pub actor: &'static str,
    /// How many requests of a process may be under way.
    pub window: u32,
    /// How who sits there is stopped.
    pub shutdown: Shutdown,
    /// Who sits there, in which process, if that is another one than this, and that process's id.
    pub sits: Option<(Tenure, Option<&'a ProcessId>, Option<u32>)>,
    /// Why nobody will sit there any more.
    pub closed: Option<&'a str>,
    held: Option<&'a Hold>,
    seat: u64,
    last: u64,
    remembered: &'a VecDeque<(u64, Arc<Exit>)>,
}

impl View<'_> {
    /// How this incarnation ended, unless it sits there yet, or is still to come.
    pub fn verdict(&self, tenure: Tenure) -> Option<Exit> {
        let remembered = self.remembered.iter().filter(|_| tenure.seat == self.seat);
        if let Some((_, exit)) = remembered.rev().find(|(number, _)| *number == tenure.incarnation) {
            return Some((**exit).clone());
        }
        let past = tenure.seat != self.seat || tenure.incarnation <= self.last;
        past.then(|| Exit::new(Status::Unknown).with_reason(Some("it ended some time ago".to_owned())))
    }

    /// Who has to be gone before anybody sits there, unless somebody does, or that is known already by this number.
    pub fn hold(&self, known: u64) -> Option<Hold> {
        let number = self.held.map_or(0, |held| held.number);
        (self.sits.is_none() && number != known).then(|| self.held.cloned().unwrap_or_default())
    }

    /// Who sits there, if he came after this one.
    pub fn after(&self, after: Option<Tenure>) -> Option<(Tenure, Option<&ProcessId>, Option<u32>)> {
        let later = |tenure: Tenure| {
            after.is_none_or(|after| after.seat != tenure.seat || after.incarnation < tenure.incarnation)
        };
        self.sits.filter(|(tenure, ..)| later(*tenure))
    }
}

/// There are as many as there may be.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyLookers;

/// Who sits in a seat.
#[derive(Clone)]
pub enum Occupancy {
    /// Nobody, for now.
    Vacant,
    /// This incarnation.
    Occupied(Occupant),
    /// Nobody, ever again; with the reason.
    Closed(String),
}

/// The incarnation that sits in a seat.
#[derive(Clone)]
pub struct Occupant {
    /// Counts from 1.
    pub incarnation: u64,
    /// What can be stopped.
    pub child: Arc<dyn Child>,
    pub(crate) pin: Incarnation,
}

impl Seat {
    /// A vacant seat for an actor of this registered name.
    pub fn new(path: String, actor: &'static str) -> Arc<Seat> {
        Seat::with(path, actor, WINDOW, Shutdown::default())
    }

    /// The same, with how many requests may be under way to it and how it is stopped.
    pub fn with(path: String, actor: &'static str, window: u32, shutdown: Shutdown) -> Arc<Seat> {
        Arc::new(Seat::of(path, actor, window, shutdown, None, None))
    }

    /// Stands for the seat of another process that has this address.
    pub(crate) fn far(address: Address, actor: &'static str, exchange: Weak<dyn Exchange>) -> Arc<Seat> {
        Arc::new_cyclic(|seat| {
            let path = address.path.clone();
            let far = Far::new(address, seat.clone(), exchange);
            Seat::of(path, actor, WINDOW, Shutdown::default(), None, Some(far))
        })
    }

    /// A vacant seat that only one incarnation itself knows, with a window of its own.
    /// It goes by the number of the seat that all others know.
    pub(crate) fn own(path: String, number: u64, actor: &'static str, id: busy::Id) -> Arc<Seat> {
        let seat = Seat::of(path, actor, WINDOW, Shutdown::default(), Some(id), None);
        Arc::new(Seat { id: number, ..seat })
    }

    fn of(
        path: String,
        actor: &'static str,
        window: u32,
        shutdown: Shutdown,
        own: Option<busy::Id>,
        far: Option<Far>,
    ) -> Seat {
        Seat {
            id: random(),
            path,
            actor,
            shutdown: Mutex::new(shutdown),
            outlet: Outlet::new(window),
            occupancy: watch::Sender::new(Occupancy::Vacant),
            ends: Mutex::default(),
            own,
            far,
            heirloom: OnceLock::new(),
        }
    }

    /// What its incarnations hand on; made by the first of them that has any.
    pub fn heirloom(&self, make: impl FnOnce() -> Arc<dyn Any + Send + Sync>) -> Arc<dyn Any + Send + Sync> {
        self.heirloom.get_or_init(make).clone()
    }

    /// The same, if there is any.
    pub fn handed_on(&self) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.heirloom.get()
    }

    /// Its own number, which no other seat has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The incarnation of this number, as it is known everywhere.
    pub fn tenure(&self, incarnation: u64) -> Tenure {
        Tenure { seat: self.id, incarnation }
    }

    /// The address of the seat it stands for, if that is in another process.
    pub(crate) fn far_address(&self) -> Option<&Address> {
        self.far.as_ref().map(Far::address)
    }

    /// The way to seats of other processes, if this stands for one.
    pub(crate) fn exchange(&self) -> Option<Arc<dyn Exchange>> {
        self.far.as_ref().and_then(Far::exchange)
    }

    /// The number that the next incarnation of another process has here.
    pub(crate) fn next_far(&self, incarnation: u64) -> u64 {
        self.far.as_ref().map_or(incarnation, |far| far.next(incarnation))
    }

    /// Whether it stands for the seat of another process, and nobody has been found there yet.
    pub(crate) fn is_unheard_of(&self) -> bool {
        self.far.as_ref().is_some_and(|far| far.number() == 0) && !self.is_closed()
    }

    /// Resolves when somebody has been found, or nobody will be, or after this time.
    pub(crate) async fn heard_of(&self, within: Duration) {
        self.follow();
        let mut occupancy = self.occupancy.subscribe();
        let known = occupancy.wait_for(|now| !matches!(now, Occupancy::Vacant));
        let _ = tokio::time::timeout(within, known).await;
    }

    /// Resolves when nobody will sit here any more, with why. Cancel safe.
    pub async fn closed(&self) -> String {
        let mut occupancy = self.occupancy.subscribe();
        match occupancy.wait_for(|now| matches!(now, Occupancy::Closed(_))).await.as_deref() {
            Ok(Occupancy::Closed(why)) => why.clone(),
            // Waiting fails only when the sender is gone, and that lives in `self`.
            _ => String::new(),
        }
    }

    /// Has this done to whoever sits there, if nobody has been found yet.
    pub(crate) fn command_unheard_of(&self, command: Command) {
        if let (Some(far), true) = (&self.far, self.is_unheard_of()) {
            far.command(command);
        }
    }

    /// Nobody follows who sits here any more; the next one who uses it begins again.
    pub(crate) fn forsaken(&self) {
        if let Some(far) = &self.far {
            far.forsaken();
        }
    }

    /// Whoever sits here elsewhere is looked for, from now on.
    pub(crate) fn follow(&self) {
        if let Some(far) = &self.far {
            far.follow();
        }
    }

    /// Whether this thread is in a handler of the very actor that sits here.
    pub(crate) fn would_wait_for_itself(&self) -> bool {
        self.own.is_some_and(is_busy)
    }

    /// What is told to an actor that asks itself and waits in its own handler.
    pub(crate) fn waits_for_itself(&self) -> Fault {
        Fault::Deadlock { circle: vec![self.path.clone()], maybe_executed: false }
    }

    /// Where it is in the tree, e.g. `/shop/web`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How an incarnation that sits here is stopped.
    pub fn shutdown(&self) -> Shutdown {
        *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How whoever sits elsewhere is stopped.
    pub(crate) fn set_shutdown(&self, shutdown: Shutdown) {
        *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner) = shutdown;
    }

    /// The registered name of the actor that sits here.
    pub fn actor(&self) -> &'static str {
        self.actor
    }

    /// An incarnation is ready: requests in line go to it now. One that has already ended gets up at once.
    pub fn occupy(&self, incarnation: u64, child: Arc<dyn Child>, line: Arc<dyn Line>) {
        if self.sit(incarnation, self.tenure(incarnation), child) {
            self.connect(incarnation, line);
        }
    }

    /// Requests to this incarnation go this way.
    pub(crate) fn connect(&self, incarnation: u64, line: Arc<dyn Line>) {
        self.outlet.open(incarnation, line);
    }

    /// Takes the way away again if nothing is under way on it; whether that was so.
    pub fn disconnect(&self, incarnation: u64) -> bool {
        self.outlet.disconnect(incarnation)
    }

    /// The incarnation of this seat that this is about, whether it sits here, has ended or is unheard of.
    pub(crate) fn pin(&self, tenure: Tenure) -> Incarnation {
        let ends = self.ends();
        if let Some(sitting) = ends.sitting.as_ref().filter(|sitting| sitting.tenure == tenure) {
            return sitting.clone();
        }
        let pin = Incarnation::new(tenure.incarnation, tenure);
        if let Some(exit) = self.view(&ends).verdict(tenure) {
            let _ = pin.exit.set(exit);
        }
        pin
    }

    /// Whether nobody will sit here again.
    pub fn is_closed(&self) -> bool {
        matches!(&*self.occupancy.borrow(), Occupancy::Closed(_))
    }

    /// See [`Outlet::drain`].
    pub(crate) fn drain(&self, incarnation: u64) -> bool {
        self.outlet.drain(incarnation)
    }

    /// See [`Outlet::poll_needs_way`].
    pub(crate) fn poll_needs_way(&self, cx: &Context<'_>) -> Poll<()> {
        self.outlet.poll_needs_way(cx)
    }

    /// See [`Outlet::set_window`].
    pub(crate) fn set_window(&self, window: u32) {
        self.outlet.set_window(window);
    }

    /// An incarnation sits here, whether or not it can be reached yet; whether it has not ended already.
    pub(crate) fn sit(&self, incarnation: u64, tenure: Tenure, child: Arc<dyn Child>) -> bool {
        let mut ends = self.ends();
        if ends.closed.is_some() {
            return false;
        }
        let pin = Incarnation::new(incarnation, tenure);
        let over = ends.last.clone().filter(|(last, _)| *last >= incarnation);
        if let Some((_, exit)) = &over {
            // Before anybody can be pinned to it.
            let _ = pin.exit.set((**exit).clone());
        }
        ends.sitting = Some(pin.clone());
        ends.place = Some((child.process(), child.pid()));
        let was_held = ends.held.take().is_some();
        // First the watch, then the line: `ended` may come in between and must find the watch to clear.
        self.occupancy.send_replace(Occupancy::Occupied(Occupant { incarnation, child, pin }));
        if over.is_none() {
            self.show(&mut ends);
        }
        drop(ends);
        if was_held {
            self.outlet.hold(None);
        }
        over.map(|(_, exit)| self.stand_up(incarnation, &exit)).is_none()
    }

    /// Has a look at this seat now and at every change of it until it is satisfied; gives its number unless it is
    /// already.
    ///
    /// # Errors
    /// Too many look at it.
    pub fn look_out(&self, mut look: Look) -> Result<Option<u64>, TooManyLookers> {
        let mut ends = self.ends();
        if look(&self.view(&ends)) {
            return Ok(None);
        }
        if ends.lookers.len() >= LOOKERS {
            return Err(TooManyLookers);
        }
        ends.looked += 1;
        let number = ends.looked;
        ends.lookers.push((number, look));
        Ok(Some(number))
    }

    /// It need not look any longer.
    pub fn look_away(&self, number: u64) {
        let mut ends = self.ends();
        let found = ends.lookers.iter().position(|(other, _)| *other == number);
        let gone = found.map(|index| ends.lookers.swap_remove(index));
        drop(ends);
        drop(gone);
    }

    fn view<'a>(&self, ends: &'a Ends) -> View<'a> {
        let place = ends.place.as_ref().map(|(process, pid)| (process.as_ref(), *pid));
        let sits = ends.sitting.as_ref().zip(place);
        View {
            actor: self.actor,
            window: self.outlet.window(),
            shutdown: self.shutdown(),
            sits: sits.map(|(sitting, (process, pid))| (sitting.tenure, process, pid)),
            closed: ends.closed.as_deref(),
            held: ends.held.as_deref(),
            seat: self.id,
            last: ends.last.as_ref().map_or(0, |(last, _)| *last),
            remembered: &ends.remembered,
        }
    }

    /// Shows what has changed to those who look.
    fn show(&self, ends: &mut MutexGuard<'_, Ends>) {
        let mut lookers = std::mem::take(&mut ends.lookers);
        if !lookers.is_empty() {
            let view = self.view(ends);
            lookers.retain_mut(|(_, look)| !look(&view));
            ends.lookers = lookers;
        }
    }

    /// An incarnation has ended, and everything it said before has been delivered through this seat.
    pub fn ended(&self, incarnation: u64, exit: &Exit) {
        let shared = Arc::new(exit.clone());
        {
            let mut ends = self.ends();
            if ends.last.as_ref().is_none_or(|(last, _)| *last < incarnation) {
                ends.last = Some((incarnation, shared.clone()));
            }
            if ends.remembered.len() == REMEMBERED {
                ends.remembered.pop_front();
            }
            ends.remembered.push_back((incarnation, shared.clone()));
            if let Some(pin) = ends.sitting.as_ref().filter(|pin| pin.number == incarnation) {
                // Before the outlet tells those who are pinned to it; the first one who says so is believed.
                let _ = pin.exit.set(exit.clone());
            }
        }
        self.outlet.ended(incarnation, exit);
        self.stand_up(incarnation, &shared);
    }

    /// See [`Outlet::shut`].
    pub(crate) fn shut(&self, incarnation: u64) {
        self.outlet.shut(incarnation);
    }

    /// The way to this incarnation broke, and with it what was under way; it lives on.
    pub(crate) fn broke(&self, incarnation: u64, exit: &Exit) {
        self.outlet.broke(incarnation, exit);
    }

    fn stand_up(&self, incarnation: u64, exit: &Arc<Exit>) {
        let mut ends = self.ends();
        if ends.sitting.as_ref().is_none_or(|pin| pin.number != incarnation) {
            return;
        }
        ends.sitting = None;
        ends.place = None;
        self.occupancy.send_if_modified(|now| {
            let sat = matches!(now, Occupancy::Occupied(_));
            if sat {
                *now = Occupancy::Vacant;
            }
            sat
        });
        let mut told = vec![ends.monitors.ended(&self.path, incarnation, exit)];
        if let Some(why) = ends.closed.clone() {
            told.push(ends.monitors.closed(&why));
        }
        self.show(&mut ends);
        drop(ends);
        told.into_iter().for_each(Told::wake);
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        // No foreign code runs under this lock.
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of the ends from here on, or of that one incarnation's.
    pub(crate) fn monitor(&self, pin: Option<&Incarnation>) -> Monitor {
        self.follow();
        let mut ends = self.ends();
        let sits = ends.sitting.as_ref().map(|sitting| sitting.number);
        match pin {
            Some(pin) if sits != Some(pin.number) => Monitor::of_past(&self.path, pin),
            Some(_) => ends.monitors.add(&self.path, true),
            None => match ends.closed.clone().filter(|_| sits.is_none()) {
                Some(why) => Monitor::of_closed(&self.path, &why),
                None => ends.monitors.add(&self.path, false),
            },
        }
    }

    /// Nobody will sit here again. Requests in line, and all later ones, are told why.
    pub fn close(&self, why: &str) {
        self.close_with(Fault::Closed { why: why.to_owned() }, why);
    }

    /// The same, with what requests are told.
    pub(crate) fn close_with(&self, fault: Fault, why: &str) {
        self.outlet.close(fault);
        let mut ends = self.ends();
        ends.closed = Some(why.to_owned());
        ends.held = None;
        self.occupancy.send_replace(Occupancy::Closed(why.to_owned()));
        // While somebody still sits there, his end comes first.
        let told = ends.sitting.is_none().then(|| ends.monitors.closed(why));
        self.show(&mut ends);
        drop(ends);
        told.into_iter().for_each(Told::wake);
    }

    /// Nobody sits down here before those at these paths are gone; with none, nothing is in the way. Until then, requests
    /// that they wait for, or that somebody waits for them with, end as the latest incarnation has ended; all others wait.
    /// To be said while nobody sits here, by whoever has the next one sit down.
    pub fn hold(&self, by: &[String]) {
        let by = hold::few(by);
        let mut ends = self.ends();
        if ends.held.as_ref().map_or(&[][..], |held| &held.by) == by || ends.sitting.is_some() {
            return;
        }
        ends.held = (!by.is_empty()).then(|| {
            let exit = ends.last.as_ref().map(|(_, exit)| Box::new((**exit).clone()));
            Box::new(Hold { number: random().max(1), by: by.to_vec(), exit })
        });
        let held = ends.held.clone();
        self.show(&mut ends);
        drop(ends);
        self.outlet.hold(held);
    }

    /// The same, of a seat elsewhere.
    pub(crate) fn hold_as(&self, hold: Hold) {
        let held = (!hold.by.is_empty()).then(|| Box::new(hold));
        self.ends().held.clone_from(&held);
        self.outlet.hold(held);
    }

    /// The number of what is known of that; 0 if nothing is.
    pub(crate) fn held(&self) -> u64 {
        self.ends().held.as_ref().map_or(0, |held| held.number)
    }

    /// Somebody will sit here again after all: from now on requests wait for him. What was told that nobody would,
    /// stays told.
    pub fn reopen(&self) {
        let mut ends = self.ends();
        if ends.closed.take().is_some() {
            self.occupancy.send_replace(Occupancy::Vacant);
            self.outlet.reopen();
        }
    }

    /// Whether this incarnation has answered a request of this process.
    pub fn has_answered(&self, incarnation: u64) -> bool {
        self.outlet.has_answered(incarnation)
    }

    /// Who sits here now, as far as this process knows.
    pub fn occupancy(&self) -> Occupancy {
        self.follow();
        self.occupancy.borrow().clone()
    }

    /// An answer of this incarnation.
    ///
    /// # Errors
    /// The peer gave back more places than it was given: it does not keep to the protocol.
    pub fn answered(
        &self,
        incarnation: u64,
        id: u64,
        answer: Answer,
        release: bool,
    ) -> Result<(), TooManyReleases> {
        self.outlet.answered(incarnation, id, answer, release)
    }

    /// This incarnation gave back places in its window.
    ///
    /// # Errors
    /// The peer gave back more places than it was given: it does not keep to the protocol.
    pub fn released(&self, incarnation: u64, places: u32) -> Result<(), TooManyReleases> {
        self.outlet.released(incarnation, places)
    }

    /// How many wait for the answer to a request that was sent.
    pub fn owed(&self) -> usize {
        self.outlet.owed()
    }

    /// An item of a streamed answer of this incarnation.
    ///
    /// # Errors
    /// The peer does not keep to the protocol.
    pub fn item(&self, incarnation: u64, id: u64, item: Body) -> Result<(), BadItem> {
        self.outlet.item(incarnation, id, item)
    }

    pub(crate) fn begin(
        &self,
        ask: bool,
        until: impl Fn() -> Option<Until>,
        body: Body,
        pin: Option<&Incarnation>,
        cx: &Context<'_>,
    ) -> Begun {
        self.follow();
        self.outlet.begin(ask, until, body, pin, cx)
    }

    /// See [`Outlet::look`].
    pub(crate) fn look(&self, now: Instant, cx: &Context<'_>) -> Option<Instant> {
        self.outlet.look(now, cx)
    }

    /// See [`Outlet::unwatched`].
    pub(crate) fn unwatched(&self) {
        self.outlet.unwatched();
    }

    /// See [`Outlet::needs_watching`].
    pub(crate) fn needs_watching(&self, id: u64) -> bool {
        self.outlet.needs_watching(id)
    }

    pub(crate) fn submit_stream(
        &self,
        deadline: Option<Instant>,
        body: Body,
        pin: Option<&Incarnation>,
    ) -> u64 {
        self.follow();
        self.outlet.submit_stream(deadline, body, pin)
    }

    pub(crate) fn poll_item(&self, id: u64, cx: &mut Context<'_>) -> Poll<Taken> {
        self.outlet.poll_item(id, cx)
    }

    pub(crate) fn poll(&self, id: u64, cx: &mut Context<'_>) -> Poll<Answer> {
        self.outlet.poll(id, cx)
    }

    pub(crate) fn cancel(&self, id: u64) -> Left {
        self.outlet.cancel(id)
    }

    /// A request has been looked at with this waker, and is still to be answered: if that was in a handler, it waits.
    pub(crate) fn still_waits(self: &Arc<Seat>, id: u64, waker: &Waker) {
        busy::waits(waker, || {
            let way: Weak<Seat> = Arc::downgrade(self);
            Awaited { way, id }
        });
    }
}

impl Way for Seat {
    fn go_on(&self, id: u64, probe: Probe) {
        self.outlet.probe(id, probe);
    }

    fn give_up(&self, id: u64, circle: Circle) {
        self.outlet.give_up(id, circle);
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("path", &self.path).field("actor", &self.actor).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::{BoxFuture, Rung};
    use crate::exit::Status;
    use crate::monitor::Down;
    use crate::outlet::Request;

    struct Fake;

    impl Child for Fake {
        fn stop(&self, _: Rung) {}

        fn pid(&self) -> Option<u32> {
            None
        }

        fn exited(&self) -> BoxFuture<Arc<Exit>> {
            Box::pin(std::future::pending())
        }
    }

    impl Line for Fake {
        fn send(&self, _: Request) -> Result<(), Fault> {
            Ok(())
        }

        fn withdraw(&self, _: u64) {}

        fn probe(&self, _: u64, _: Probe) {}

        fn credit(&self, _: u64, _: usize) {}
    }

    fn sits(seat: &Seat) -> Option<u64> {
        match seat.occupancy() {
            Occupancy::Occupied(occupant) => Some(occupant.incarnation),
            _ => None,
        }
    }

    fn exit() -> Exit {
        Exit::new(Status::Signal(9))
    }

    #[test]
    fn incarnations_sit_one_after_another() {
        let seat = Seat::new("/a".to_owned(), "A");
        for incarnation in 1..4 {
            assert_eq!(sits(&seat), None);
            seat.occupy(incarnation, Arc::new(Fake), Arc::new(Fake));
            assert_eq!(sits(&seat), Some(incarnation));
            seat.ended(incarnation, &exit());
        }
    }

    #[test]
    fn one_that_ended_before_it_could_sit_down_does_not_sit_down() {
        let seat = Seat::new("/a".to_owned(), "A");
        seat.ended(1, &exit());
        seat.occupy(1, Arc::new(Fake), Arc::new(Fake));
        assert_eq!(sits(&seat), None);
        seat.occupy(2, Arc::new(Fake), Arc::new(Fake));
        seat.ended(1, &exit());
        assert_eq!(sits(&seat), Some(2), "the late end of an earlier one changes nothing");
    }

    #[test]
    fn a_closed_seat_stays_closed() {
        let seat = Seat::new("/a".to_owned(), "A");
        seat.close("it was stopped");
        seat.occupy(1, Arc::new(Fake), Arc::new(Fake));
        seat.ended(1, &exit());
        assert!(matches!(seat.occupancy(), Occupancy::Closed(why) if why == "it was stopped"));
    }

    #[test]
    fn a_closed_seat_can_be_reopened_for_later_incarnations() {
        let seat = Seat::new("/a".to_owned(), "A");
        seat.reopen();
        seat.occupy(1, Arc::new(Fake), Arc::new(Fake));
        seat.reopen();
        assert_eq!(sits(&seat), Some(1), "that one is not closed");
        seat.ended(1, &exit());
        seat.close("it was stopped");
        seat.reopen();
        assert!(!seat.is_closed());
        let mut monitor = seat.monitor(None);
        assert!(told(&mut monitor).is_none());
        seat.occupy(2, Arc::new(Fake), Arc::new(Fake));
        assert_eq!(sits(&seat), Some(2));
        seat.ended(2, &exit());
        assert_eq!(told(&mut monitor).unwrap().incarnation(), Some(2));
    }

    fn told(monitor: &mut Monitor) -> Option<Down> {
        match std::future::Future::poll(
            std::pin::Pin::new(monitor),
            &mut Context::from_waker(std::task::Waker::noop()),
        ) {
            Poll::Ready(down) => Some(down),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_monitor_is_about_who_sits_there_or_comes_next() {
        let seat = Seat::new("/a".to_owned(), "A");
        let mut early = seat.monitor(None);
        // One that never sat there is nobody's business.
        seat.ended(1, &exit());
        assert!(told(&mut early).is_none());
        seat.occupy(2, Arc::new(Fake), Arc::new(Fake));
        let mut sitting = seat.monitor(None);
        seat.ended(2, &exit());
        seat.ended(2, &exit());
        let mut later = seat.monitor(None);
        for monitor in [&mut early, &mut sitting] {
            assert_eq!(told(monitor).unwrap().incarnation(), Some(2));
            assert!(told(monitor).is_none());
        }
        assert!(told(&mut later).is_none());
        seat.close("it was stopped");
        for monitor in [&mut early, &mut sitting, &mut later, &mut seat.monitor(None)] {
            let down = told(monitor).unwrap();
            assert!(down.is_closed() && down.to_string() == "/a is gone: it was stopped", "{down}");
        }
    }

    #[test]
    fn one_that_ended_before_it_could_sit_down_is_told_of_as_well() {
        let seat = Seat::new("/a".to_owned(), "A");
        let mut monitor = seat.monitor(None);
        seat.ended(1, &exit());
        seat.occupy(1, Arc::new(Fake), Arc::new(Fake));
        assert_eq!(told(&mut monitor).unwrap().exit(), Some(&exit()));
        assert!(told(&mut monitor).is_none());
    }

    #[test]
    fn the_end_of_who_still_sits_in_a_closed_seat_comes_before_the_closing() {
        let seat = Seat::new("/a".to_owned(), "A");
        seat.occupy(1, Arc::new(Fake), Arc::new(Fake));
        let mut monitor = seat.monitor(None);
        seat.close("it was stopped");
        assert!(told(&mut monitor).is_none());
        seat.ended(1, &exit());
        assert_eq!(told(&mut monitor).unwrap().incarnation(), Some(1));
        assert!(told(&mut monitor).unwrap().is_closed());
    }
}
