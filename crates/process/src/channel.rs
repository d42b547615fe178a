//! A channel between two processes: one task that reads, writes and delivers.

use std::future::Future;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::BytesMut;
use hatchery_actor::fault::Fault;
use hatchery_actor::outlet::WINDOW;
use hatchery_actor::spin::Spin;
use hatchery_wire::{Body, Connection, Envelope, Kind, Limits, WireError, encode};
use tokio::sync::watch;
use tokio::task::yield_now;

use crate::spin::Spinner;

/// What arrives on a channel is laid here.
pub(crate) trait Desk: Send + 'static {
    /// What is taken from here on has just arrived.
    fn arriving(&mut self) {}

    /// Takes one message; never waits.
    ///
    /// # Errors
    /// Why this peer does not keep to the protocol; the channel ends then.
    fn deliver(&mut self, envelope: Envelope) -> Result<(), String>;

    /// Whether a message is likely to come at once.
    fn is_due(&self) -> bool {
        self.waiting() > 0
    }

    /// How many are about to send once they hear from the other side.
    fn waiting(&self) -> usize {
        0
    }
}

/// The sending side of a channel, for any thread.
#[derive(Default)]
pub(crate) struct Outgoing {
    state: Mutex<State>,
    over: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// Small messages, encoded where they were sent: it saves each of them several moves.
    encoded: BytesMut,
    /// What cannot go that way: large messages, and all that must not overtake them.
    queue: Vec<Envelope>,
    /// Messages that the connection has not encoded yet: those sent now queue behind them.
    crowded: bool,
    /// How many messages there are.
    count: usize,
    orders: Orders,
    waker: Option<Waker>,
}

/// What the channel's task is told besides messages.
#[derive(Clone, Copy, Default)]
struct Orders {
    /// Write what is queued, then end.
    finish: bool,
    /// The peer's process is gone: deliver what has arrived, then end.
    drain: bool,
}

impl Outgoing {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Queues a message. How many there can be is bounded by the windows of both sides.
    pub(crate) fn send(&self, envelope: Envelope) {
        self.with(|state| {
            state.count += 1;
            let short = envelope.is_small() && state.queue.is_empty() && !state.crowded;
            if !short || envelope.encode_into(&mut state.encoded).is_err() {
                state.queue.push(envelope);
            }
        });
    }

    pub(crate) fn finish(&self) {
        self.with(|state| state.orders.finish = true);
    }

    /// Resolves when the channel is over: with [`finish`](Outgoing::finish), when all that was queued is written.
    pub(crate) async fn over(&self) {
        // The sender is here, so there is no error.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    pub(crate) fn drain(&self) {
        self.with(|state| state.orders.drain = true);
    }
}

/// The task of a channel. It ends with `Ok` when either side has finished, else with the reason.
pub(crate) struct Channel<D> {
    connection: Connection,
    outgoing: Arc<Outgoing>,
    desk: D,
    taken: Vec<Envelope>,
    /// A write failed: the peer reads no more, but what it said before may still be there.
    deaf: bool,
    /// Many send at the same time: see [`CROWD`].
    crowd: bool,
    /// The others have been let before this time.
    gave_way: bool,
    /// Whether to look again before it sleeps, if it ever does.
    spinner: Option<Spinner>,
}

/// If the last write took at least so many messages along, or as many callers wait, one of fewer than [`ENOUGH`] is held
/// back until the other tasks that are ready have had their turn: they are about to send as well. What has just arrived
/// has woken them, and on a runtime of several threads whoever is woken runs next: this task, after the first of them,
/// which would have its message written alone, and so on with each of them. A lone message never waits.
const CROWD: usize = 4;
/// So many are worth a write of their own, while the others go on: as many as give their places back together.
const ENOUGH: usize = WINDOW as usize / 4;

impl<D: Desk> Channel<D> {
    /// From a socket, on the current runtime.
    pub(crate) fn new(
        stream: std::os::unix::net::UnixStream,
        outgoing: Arc<Outgoing>,
        desk: D,
        spin: Spin,
    ) -> std::io::Result<Channel<D>> {
        let connection = Connection::new(stream, Limits::default())?;
        Ok(Channel {
            connection,
            outgoing,
            desk,
            taken: Vec::new(),
            deaf: false,
            crowd: false,
            gave_way: false,
            spinner: (spin == Spin::Adaptive && has_several_cpus()).then(Spinner::new),
        })
    }

    fn poll_once(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        loop {
            // Reading first: what arrived may be answered in the same write.
            self.desk.arriving();
            loop {
                match self.connection.poll_recv(cx) {
                    Poll::Ready(Ok(Some(envelope))) => {
                        if let Some(spinner) = &mut self.spinner {
                            spinner.arrived(Instant::now());
                        }
                        self.desk.deliver(envelope)?;
                    }
                    // Cut off in the middle of a message is how a killed process ends, too.
                    Poll::Ready(Ok(None) | Err(WireError::Truncated)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(said(&error))),
                    Poll::Pending => break,
                }
            }
            let Some(orders) = self.take(cx) else { return Poll::Pending };
            if orders.drain {
                return Poll::Ready(self.drain());
            }
            if !self.deaf && self.connection.has_queued() {
                match self.connection.poll_flush(cx) {
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    Poll::Ready(Err(error)) if is_gone(&error) => self.deaf = true,
                    // It reads on, but what this side has to say does not get out.
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(format!("its channel failed: {error}")));
                    }
                }
            }
            let written = self.deaf || !self.connection.has_queued();
            if orders.finish && written && self.nothing_new() {
                return Poll::Ready(Ok(()));
            }
            if self.nothing_new() {
                return Poll::Pending;
            }
        }
    }

    /// Nothing is to do: sleeps until something is, unless it is better to look again, when the others have had their
    /// turn and the runtime has asked the system what there is to read.
    fn rest(&mut self, cx: &mut Context<'_>) {
        let Some(spinner) = &mut self.spinner else { return };
        if spinner.looks_again(self.desk.is_due(), Instant::now()) {
            // That is when tokio wakes who yields.
            let _ = pin!(yield_now()).poll(cx);
        }
    }

    /// Takes over what others queued, and leaves the waker for what they queue later. `None` to come back when the
    /// other tasks have had their turn.
    fn take(&mut self, cx: &Context<'_>) -> Option<Orders> {
        // Asked first: requests are sent under the lock that this takes.
        let crowd = self.crowd || (!self.gave_way && self.desk.waiting() >= CROWD);
        let mut state = self.outgoing.lock();
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        if state.count > 0 {
            if crowd && state.count < ENOUGH && !self.gave_way {
                self.gave_way = true;
                // Behind all that are ready now.
                cx.waker().wake_by_ref();
                return None;
            }
            self.gave_way = false;
            self.crowd = state.count >= CROWD;
            state.count = 0;
        }
        // On a connection that can no longer write, nothing is queued: its end follows.
        let _ = self.connection.queue_encoded(&mut state.encoded);
        if state.queue.is_empty() {
            state.crowded = self.connection.is_crowded();
            return Some(state.orders);
        }
        std::mem::swap(&mut state.queue, &mut self.taken);
        state.crowded = true;
        let orders = state.orders;
        drop(state);
        for envelope in self.taken.drain(..) {
            queue(&mut self.connection, envelope);
        }
        Some(orders)
    }

    fn nothing_new(&self) -> bool {
        // A waker that is gone was woken: somebody queued something or gave an order since `take`.
        self.outgoing.lock().waker.is_some()
    }

    fn drain(&mut self) -> Result<(), String> {
        while let Some(envelope) = self.connection.drain().map_err(|error| said(&error))? {
            self.desk.deliver(envelope)?;
        }
        Ok(())
    }
}

impl<D> Drop for Channel<D> {
    fn drop(&mut self) {
        self.outgoing.over.send_replace(true);
    }
}

impl<D: Desk + Unpin> Future for Channel<D> {
    type Output = Result<(), String>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let channel = self.get_mut();
        let polled = channel.poll_once(cx);
        if polled.is_pending() {
            channel.rest(cx);
        }
        polled
    }
}

/// On a single CPU, or a share of one, whoever spins keeps away the one it waits for.
fn has_several_cpus() -> bool {
    std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1)
}

/// Queues for the connection. An answer over a limit is replaced by the reason, which its caller gets instead; requests
/// are measured before they come here.
fn queue(connection: &mut Connection, envelope: Envelope) {
    let (kind, target, id, release) = (envelope.kind, envelope.target, envelope.id, envelope.release);
    let Err(error @ (WireError::MessageTooLarge { .. } | WireError::Malformed(_))) =
        connection.queue(envelope)
    else {
        return;
    };
    if matches!(kind, Kind::Reply | Kind::Error) {
        let fault = Fault::BadAnswer(error.to_string());
        let mut instead = Envelope::new(Kind::Fault, target, id, encode(&fault).unwrap_or_default());
        instead.release = release;
        let _ = connection.queue(instead);
    }
}

/// Whether a write failed because nobody reads any more.
fn is_gone(error: &WireError) -> bool {
    matches!(error, WireError::Io { kind: ErrorKind::BrokenPipe | ErrorKind::ConnectionReset, .. })
}

fn said(error: &WireError) -> String {
    format!("it broke the protocol of the channel: {error}")
}

/// The library's reason for a request without an answer, from its frame.
///
/// # Errors
/// The frame is malformed.
pub(crate) fn fault_of(body: &Body) -> Result<Fault, String> {
    hatchery_wire::decode(body).map_err(|error| format!("a malformed fault: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// Sends back what it gets, so many times, and then expects nothing more.
    struct Player {
        outgoing: Arc<Outgoing>,
        left: usize,
        over: Arc<AtomicBool>,
    }

    impl Desk for Player {
        fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
            if self.left == 0 {
                self.over.store(true, Ordering::Relaxed);
                return Ok(());
            }
            self.left -= 1;
            self.outgoing.send(envelope);
            Ok(())
        }

        fn is_due(&self) -> bool {
            !self.over.load(Ordering::Relaxed)
        }
    }

    /// A channel, and how often it is polled.
    struct Counted(Channel<Player>, Arc<AtomicUsize>);

    impl Future for Counted {
        type Output = Result<(), String>;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll(cx)
        }
    }

    /// How often two channels are polled for 500 messages each way, and how often in some time after.
    async fn polls(spin: Spin) -> (usize, usize) {
        let (here, there) = UnixStream::pair().unwrap();
        let (over, polled) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let serve = Arc::<Outgoing>::default();
        for (stream, outgoing) in [(here, serve.clone()), (there, Arc::default())] {
            let desk = Player { outgoing: outgoing.clone(), left: 500, over: over.clone() };
            let channel = Channel::new(stream, outgoing, desk, spin).unwrap();
            tokio::spawn(Counted(channel, polled.clone()));
        }
        serve.send(Envelope::new(Kind::Ask, 0, 0, encode(&7).unwrap()));
        while !over.load(Ordering::Relaxed) {
            yield_now().await;
        }
        // Both may have to learn of it.
        for _ in 0..10 {
            yield_now().await;
        }
        let during = polled.load(Ordering::Relaxed);
        for _ in 0..10_000 {
            yield_now().await;
        }
        (during, polled.load(Ordering::Relaxed) - during)
    }

    #[tokio::test]
    async fn channels_on_which_nothing_is_due_are_not_polled_whether_they_spin_or_not() {
        for spin in [Spin::Off, Spin::Adaptive] {
            let (during, after) = polls(spin).await;
            assert!(during >= 1000, "{spin:?}: {during}");
            assert_eq!(after, 0, "{spin:?}");
        }
    }

    /// Hears nothing; so many wait.
    struct Crowd(usize);

    impl Desk for Crowd {
        fn deliver(&mut self, _: Envelope) -> Result<(), String> {
            Ok(())
        }

        fn waiting(&self) -> usize {
            self.0
        }
    }

    #[tokio::test]
    async fn a_message_is_held_back_for_those_of_other_callers_and_a_lone_one_is_not() {
        for (waiting, first, second) in [(CROWD - 1, 1, 1), (CROWD, 0, 2)] {
            let (here, mut there) = UnixStream::pair().unwrap();
            there.set_nonblocking(true).unwrap();
            let outgoing = Arc::<Outgoing>::default();
            let mut channel = Channel::new(here, outgoing.clone(), Crowd(waiting), Spin::Off).unwrap();
            let message = Envelope::new(Kind::Tell, 0, 0, encode(&7).unwrap());
            let mut one = BytesMut::new();
            message.encode_into(&mut one).unwrap();
            for expected in [first, second] {
                outgoing.send(message.clone());
                let cx = &mut Context::from_waker(Waker::noop());
                assert!(Pin::new(&mut channel).poll(cx).is_pending());
                let mut written = [0; 256];
                let written = there.read(&mut written).unwrap_or(0);
                assert_eq!(written, expected * one.len(), "{waiting} wait");
            }
        }
    }

    #[tokio::test]
    async fn channels_with_spinning_switched_off_have_nothing_that_spins() {
        let (here, _there) = UnixStream::pair().unwrap();
        let desk = Player { outgoing: Arc::default(), left: 0, over: Arc::default() };
        assert!(Channel::new(here, Arc::default(), desk, Spin::Off).unwrap().spinner.is_none());
    }
}
