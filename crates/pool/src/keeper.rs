//! The task that looks after one worker: brings it what it runs, takes what it has done, and learns how it ends.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::ask::Ask;
use hatchery_actor::child::{BoxFuture, Child, Rung};
use hatchery_actor::exit::Exit;
use hatchery_actor::handle::ActorRef;
use hatchery_actor::seat::Seat;
use hatchery_process::task::TaskEntry;
use hatchery_shm::{Ledger, Wake};
use hatchery_wire::{Body, Connection, Envelope, Kind, Limits, encode};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use crate::memory::{self, Scales, Weighing};
use crate::plan::{Found, Order};
use crate::post::Arrived;
use crate::row::{self, Load};
use crate::shared::Shared;
use crate::terms::{Named, TARGET, id, numbers, outcome};
use crate::worker::Greeting;

#[cfg(test)]
mod tests;

/// How long outcomes of quick tasks may lie in a ledger before they are seen.
const SEEN_WITHIN: Duration = Duration::from_millis(2);
/// Bytes of outcomes that wait for one before them at most. That is there already, on its way out of the socket, so there are
/// never many, unless the worker makes them up.
const MOST_EARLY: usize = 4 << 20;
/// How long a worker has to leave, its finaliser included, before it is killed.
pub(crate) const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// The name of the worker at a place, in the supervisor of its pool.
pub(crate) fn name(index: usize) -> String {
    format!("worker-{index}")
}

/// Looks after the workers that sit in this seat one after another, until nobody will any more.
pub(crate) async fn keep(shared: Arc<Shared>, index: usize, seat: Arc<Seat>) {
    loop {
        if let Some(arrived) = shared.take_arrived(index) {
            attend(&shared, index, arrived).await;
            continue;
        }
        tokio::select! {
            biased;
            () = shared.bell(index).notified() => {}
            why = seat.closed() => {
                let why = shared.no_workers(why);
                shared.with(|plan| plan.gone(index, &why));
                return;
            }
        }
    }
}

/// Looks after one worker to its end.
async fn attend(shared: &Shared, index: usize, arrived: Arrived) {
    let Arrived { socket, ledger, child, start, seat } = arrived;
    let connection = match Connection::new(socket, Limits::default()) {
        Ok(connection) => connection,
        Err(_) => {
            // It cannot be talked to; another one may.
            child.stop(Rung::Kill);
            child.exited().await;
            return;
        }
    };
    let mut keeper = Keeper {
        shared,
        index,
        connection,
        ledger,
        exited: child.exited(),
        pid: child.pid(),
        child,
        seat,
        start,
        known: HashMap::new(),
        greeting: Greeted::No,
        puts_down: None,
        scales: Scales::new(shared.most_memory, Instant::now()),
        waiting: Vec::new(),
        timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        ticks: false,
        quiet: false,
        is_ending: false,
        is_doubted: false,
        leaves_by: None,
        taken: VecDeque::new(),
    };
    shared.with(|plan| plan.arrived(index, Instant::now()));
    let exit = keeper.run().await;
    keeper.last_look();
    if let Some(pid) = keeper.pid {
        shared.no_pid(index, pid);
    }
    let (ledger, is_doubted) = (&keeper.ledger, keeper.is_doubted);
    shared.with(|plan| {
        // Whatever such a ledger says, a task that spoils it is not to be tried for ever.
        let next = |lane| plan.next_of(index, lane);
        let doubted: Vec<_> = (0..ledger.shape().lanes()).map(|lane| next(lane as u16)).collect();
        let running = |lane| {
            if is_doubted { doubted[usize::from(lane)] } else { ledger.cursor(u32::from(lane)).running }
        };
        plan.died(index, running, &exit, Instant::now());
    });
}

struct Keeper<'a> {
    shared: &'a Shared,
    index: usize,
    connection: Connection,
    ledger: Ledger,
    exited: BoxFuture<Arc<Exit>>,
    child: Arc<dyn Child>,
    pid: Option<u32>,
    seat: Arc<Seat>,
    /// Which start of its place it is.
    start: u64,
    /// The numbers of tasks that it was told, by where their entries are.
    known: HashMap<usize, u32>,
    greeting: Greeted,
    /// It is being told to begin nothing more of the chunk that runs.
    puts_down: Option<Box<Ask<()>>>,
    scales: Scales,
    /// What it is told once it has been greeted.
    waiting: Vec<Order>,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer is waited for.
    ticks: bool,
    /// Nothing has come for a while.
    quiet: bool,
    /// It is being killed.
    is_ending: bool,
    /// What its ledger says is not believed any more.
    is_doubted: bool,
    /// When it is killed unless it has left by then: it was told to, or has hung up.
    leaves_by: Option<Instant>,
    /// Outcomes that were taken out of the ledger and wait for others before them, which come over the socket.
    taken: VecDeque<Taken>,
}

/// Outcomes of one lane, and what they lie in.
struct Taken {
    lane: u16,
    found: Vec<Found>,
    used: usize,
    bytes: Bytes,
}

impl Taken {
    /// The memory it needs.
    fn size(&self) -> usize {
        self.bytes.len() + self.found.len() * size_of::<Found>()
    }
}

/// Whether the worker has answered a request: before it has, its supervisor takes its death for one of a worker that
/// cannot be started, and from then on for that of the task that it runs.
enum Greeted {
    No,
    Asked(Box<Ask<()>>),
    Yes,
}

impl Keeper<'_> {
    async fn run(&mut self) -> Arc<Exit> {
        let shared = self.shared;
        let bell: &Notify = shared.bell(self.index);
        loop {
            let mut told = std::pin::pin!(bell.notified());
            let outcome = std::future::poll_fn(|cx| {
                if told.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                self.poll(cx).map(Some)
            })
            .await;
            if let Some(exit) = outcome {
                return exit;
            }
        }
    }

    /// Does all there is to do; ready when the worker has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Arc<Exit>> {
        let mut rounds = 0;
        loop {
            if let Poll::Ready(exit) = self.exited.as_mut().poll(cx) {
                return Poll::Ready(exit);
            }
            if self.ticks && self.timer.as_mut().poll(cx).is_ready() {
                self.ticks = false;
                self.on_tick();
            }
            if self.shared.is_killed() {
                self.end();
            }
            let mut news = self.receive(cx);
            news |= self.look();
            self.tell(cx);
            if self.end_what_is_to_end() || self.take_back() {
                continue;
            }
            if news {
                self.quiet = false;
            }
            let (busy, quick, look) = self.shared.with(|plan| {
                let now = Instant::now();
                (plan.is_busy(self.index), plan.is_quick(self.index), plan.next_look(self.index, now))
            });
            let mut look = [look, self.weigh(news, busy)].into_iter().flatten().min();
            if let Some(by) = self.leaves_by.filter(|_| !self.is_ending) {
                let left = by.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    self.end();
                } else {
                    look = Some(look.map_or(left, |look| look.min(left)));
                }
            }
            let mut armed = true;
            if busy && !self.is_ending {
                let wake = if quick && !self.quiet {
                    look = Some(look.map_or(SEEN_WITHIN, |look| look.min(SEEN_WITHIN)));
                    Wake::Idle
                } else {
                    Wake::Each
                };
                armed = self.ledger.arm(wake);
            }
            rounds += 1;
            if !armed && rounds < 8 {
                continue;
            }
            if !armed {
                // Others have their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let Some(look) = look else {
                self.ticks = false;
                return Poll::Pending;
            };
            let at = Instant::now() + look;
            if self.ticks && self.timer.deadline() <= at {
                return Poll::Pending;
            }
            self.ticks = true;
            self.timer.as_mut().reset(at);
            // Polled once more, so that it wakes this task.
        }
    }

    /// The time for a look has come.
    fn on_tick(&mut self) {
        self.quiet = true;
        self.shared.with(|plan| plan.hand_out(Instant::now()));
    }

    /// Has the worker replaced if it has too much memory; says how soon to look again.
    fn weigh(&mut self, news: bool, busy: bool) -> Option<Duration> {
        let now = Instant::now();
        let limit = match self.scales.ask(news, busy, now) {
            Weighing::Now(limit) => limit,
            Weighing::In(wait) => return Some(wait),
            Weighing::No => return None,
        };
        if memory::resident(self.pid?).is_some_and(|bytes| bytes > limit) {
            self.scales.limit = None;
            self.shared.with(|plan| plan.replace(self.index));
            return None;
        }
        busy.then_some(memory::SELDOM)
    }

    /// Takes what has come over the socket.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        loop {
            match self.connection.poll_recv(cx) {
                Poll::Ready(Ok(Some(envelope))) => {
                    any = true;
                    self.came(envelope);
                }
                Poll::Ready(Ok(None)) => {
                    // It has ended, or is about to: that is waited for, if it does not take too long.
                    self.leaves_by.get_or_insert_with(|| Instant::now() + LEAVES_WITHIN);
                    return any;
                }
                Poll::Pending => return any,
                Poll::Ready(Err(_)) => {
                    self.end();
                    return any;
                }
            }
        }
    }

    fn came(&mut self, envelope: Envelope) {
        if envelope.kind == Kind::Release {
            return;
        }
        // What lies in the ledger has finished before.
        self.look();
        let (_, lane, number) = numbers(envelope.id);
        let told = outcome(envelope.kind).map(|kind| {
            let now = Instant::now();
            self.shared.with(|plan| plan.alone(self.index, lane, number, kind, envelope.body, now))
        });
        if told != Some(Ok(())) {
            self.end();
        }
        self.hand_in();
    }

    /// Takes what lies in the ledger; whether there was anything.
    fn look(&mut self) -> bool {
        let (mut found, mut bytes) = (Vec::new(), Vec::new());
        let drained = self.ledger.drain(|record| {
            let from = bytes.len();
            row::put(&mut bytes, record.bytes);
            // There are no more lanes than that.
            let lane = record.lane as u16;
            found.push(Found { number: record.task, lane, kind: record.kind, from, to: bytes.len() });
        });
        let any = !found.is_empty();
        let bytes = Bytes::from(bytes);
        // They come lane by lane.
        match found.first().zip(found.last()) {
            Some((first, last)) if first.lane == last.lane => {
                self.taken.push_back(Taken { lane: first.lane, found, used: 0, bytes });
            }
            _ => self.taken.extend(found.chunk_by(|one, next| one.lane == next.lane).map(|found| Taken {
                lane: found[0].lane,
                found: found.to_vec(),
                used: 0,
                bytes: bytes.clone(),
            })),
        }
        self.hand_in();
        if drained.is_err() || self.taken.iter().map(Taken::size).sum::<usize>() > MOST_EARLY {
            self.doubt();
        }
        any
    }

    /// Hands in the outcomes whose turn it is.
    fn hand_in(&mut self) {
        let mut at = 0;
        // Lanes of which one waits: what comes behind it does, too.
        let mut waits: Vec<u16> = Vec::new();
        while let Some(Taken { lane, found, used, bytes }) = self.taken.get_mut(at) {
            if waits.contains(lane) {
                at += 1;
                continue;
            }
            let now = Instant::now();
            match self.shared.with(|plan| plan.results(self.index, *lane, &found[*used..], bytes, now)) {
                Ok(count) if *used + count == found.len() => drop(self.taken.remove(at)),
                Ok(count) => {
                    *used += count;
                    waits.push(*lane);
                    at += 1;
                }
                Err(_) => return self.doubt(),
            }
        }
    }

    /// Tells the worker what it is to be told.
    fn tell(&mut self, cx: &mut Context<'_>) {
        let orders = self.shared.with(|plan| plan.orders(self.index));
        self.waiting.extend(orders);
        if let Greeted::Asked(asked) = &mut self.greeting {
            if Pin::new(&mut **asked).poll(cx).is_ready() {
                self.greeting = Greeted::Yes;
            }
        }
        if !self.waiting.is_empty() {
            match &mut self.greeting {
                Greeted::Yes => {
                    for order in std::mem::take(&mut self.waiting) {
                        self.order(order);
                    }
                }
                Greeted::No => {
                    let seat = ActorRef::new(self.seat.clone());
                    let mut asked = Box::new(seat.ask::<_, (), _>("greeting", &Greeting { put_down: None }));
                    self.greeting = match Pin::new(&mut *asked).poll(cx) {
                        Poll::Pending => Greeted::Asked(asked),
                        Poll::Ready(_) => Greeted::Yes,
                    };
                    if matches!(self.greeting, Greeted::Yes) {
                        return self.tell(cx);
                    }
                }
                Greeted::Asked(_) => {}
            }
        }
        if let Some(asked) = &mut self.puts_down {
            if Pin::new(&mut **asked).poll(cx).is_ready() {
                self.puts_down = None;
            }
        }
        // What does not get out is of no use to a worker that is gone, whose end is waited for.
        let _ = self.connection.poll_flush(cx);
    }

    fn order(&mut self, order: Order) {
        let envelope = match order {
            Order::Run { entry, lane, number, load } => {
                let task = self.number_of(entry);
                match load {
                    Load::Row(row) => {
                        Envelope::new(Kind::Tell, TARGET, id(task, lane, number), Body::from_bytes(row.bytes))
                    }
                    Load::Alone(body) => Envelope::new(Kind::Ask, TARGET, id(task, lane, number), body),
                }
            }
            Order::Skip { lane, number } => {
                Envelope::new(Kind::Unbind, TARGET, id(0, lane, number), Body::default())
            }
            Order::Stop { lane, number } => {
                Envelope::new(Kind::Withdraw, TARGET, id(0, lane, number), Body::default())
            }
            Order::PutDown => {
                // The thread that runs tasks reads nothing before it is through with a chunk.
                let asks = Greeting { put_down: Some(self.start) };
                let seat = ActorRef::new(self.seat.clone());
                self.puts_down = Some(Box::new(seat.ask::<_, (), _>("put_down", &asks)));
                return;
            }
            Order::Back => Envelope::new(Kind::Drain, TARGET, 0, Body::default()),
            Order::Leave => {
                self.leaves_by = Some(Instant::now() + LEAVES_WITHIN);
                Envelope::new(Kind::End, TARGET, 0, Body::default())
            }
        };
        if self.connection.queue(envelope).is_err() {
            self.end();
        }
    }

    /// The number by which the worker knows a task, which it is told the first time.
    fn number_of(&mut self, entry: &'static TaskEntry) -> u32 {
        let next = self.known.len() as u32;
        let number = *self.known.entry(std::ptr::from_ref(entry).addr()).or_insert(next);
        if number == next {
            let named = Named { name: entry.name.to_owned(), place: entry.place.to_string() };
            let body = encode(&named).unwrap_or_default();
            let _ = self.connection.queue(Envelope::new(Kind::Bind, TARGET, id(number, 0, 0), body));
        }
        number
    }

    /// Ends tasks whose time is over, or that nobody wants any more; whether one was too quick for that.
    fn end_what_is_to_end(&mut self) -> bool {
        if self.is_ending {
            return false;
        }
        let running = |lane| self.ledger.cursor(u32::from(lane)).running;
        let all = self.shared.with(|plan| plan.due_to_end(self.index, running, Instant::now()));
        let (mut dies, mut quick) = (false, false);
        for due in &all {
            // Those that are not due yet come last, and end only if it dies anyway.
            if !due.now && !dies {
                break;
            }
            match self.ledger.close_running(u32::from(due.lane), due.number) {
                Ok(true) => {
                    self.shared.with(|plan| plan.was_ended(self.index, due));
                    dies = true;
                }
                Ok(false) => quick = true,
                Err(_) => {
                    self.doubt();
                    return false;
                }
            }
        }
        if dies {
            self.end();
        }
        quick && !dies
    }

    /// Takes back what the worker has not begun, if it takes long and another one has nothing to do; whether it did.
    fn take_back(&mut self) -> bool {
        // Quick ones may go by while it is being said.
        for _ in 0..8 {
            if self.is_ending {
                return false;
            }
            let running = self.ledger.cursor(0).running;
            let to_hold = self.shared.with(|plan| plan.due_to_hold(self.index, running, Instant::now()));
            let Some(number) = to_hold else { return false };
            match self.ledger.hold(0, number) {
                Ok(true) => {
                    self.shared.with(|plan| plan.take_back(self.index, number, Instant::now()));
                    return true;
                }
                Ok(false) => {}
                Err(_) => self.doubt(),
            }
        }
        false
    }

    /// Its ledger says what no worker in its right mind says.
    fn doubt(&mut self) {
        self.is_doubted = true;
        self.taken.clear();
        self.end();
    }

    fn end(&mut self) {
        if !self.is_ending {
            self.is_ending = true;
            self.child.stop(Rung::Kill);
        }
    }

    /// Whatever the worker had said before it ended.
    fn last_look(&mut self) {
        self.is_ending = true;
        while let Ok(Some(envelope)) = self.connection.drain() {
            self.came(envelope);
        }
        self.look();
    }
}
