//! A channel between two processes: one task that reads, writes and delivers.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use hatchery_actor::fault::Fault;
use hatchery_wire::{Body, Connection, Envelope, Kind, Limits, WireError, encode};
use tokio::net::UnixStream;

/// What arrives on a channel is laid here.
pub(crate) trait Desk: Send + 'static {
    /// Takes one message; never waits.
    ///
    /// # Errors
    /// Why this peer does not keep to the protocol; the channel ends then.
    fn deliver(&mut self, envelope: Envelope) -> Result<(), String>;
}

/// The sending side of a channel, for any thread.
#[derive(Default)]
pub(crate) struct Outgoing {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: Vec<Envelope>,
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
    fn with(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Queues a message. How many there can be is bounded by the windows of both sides.
    pub(crate) fn send(&self, envelope: Envelope) {
        self.with(|state| state.queue.push(envelope));
    }

    pub(crate) fn finish(&self) {
        self.with(|state| state.orders.finish = true);
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
}

impl<D: Desk> Channel<D> {
    /// From a socket, on the current runtime.
    pub(crate) fn new(
        stream: std::os::unix::net::UnixStream,
        outgoing: Arc<Outgoing>,
        desk: D,
    ) -> std::io::Result<Channel<D>> {
        stream.set_nonblocking(true)?;
        let connection = Connection::new(UnixStream::from_std(stream)?, Limits::default());
        Ok(Channel { connection, outgoing, desk, taken: Vec::new(), deaf: false })
    }

    fn poll_once(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        loop {
            let orders = self.take(cx);
            if orders.drain {
                return Poll::Ready(self.drain());
            }
            // Reading first: what arrived may be answered in the same write.
            loop {
                match self.connection.poll_recv(cx) {
                    Poll::Ready(Ok(Some(envelope))) => self.desk.deliver(envelope)?,
                    // Cut off in the middle of a message is how a killed process ends, too.
                    Poll::Ready(Ok(None) | Err(WireError::Truncated)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(said(&error))),
                    Poll::Pending => break,
                }
            }
            if !self.deaf && self.connection.has_queued() {
                match self.connection.poll_flush(cx) {
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    Poll::Ready(Err(_)) => self.deaf = true,
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

    /// Takes over what others queued, and leaves the waker for what they queue later.
    fn take(&mut self, cx: &Context<'_>) -> Orders {
        let mut state = self.outgoing.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        std::mem::swap(&mut state.queue, &mut self.taken);
        let orders = state.orders;
        drop(state);
        for envelope in self.taken.drain(..) {
            queue(&mut self.connection, envelope);
        }
        orders
    }

    fn nothing_new(&self) -> bool {
        let state = self.outgoing.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A waker that is gone was woken: somebody queued something or gave an order since `take`.
        state.queue.is_empty() && state.waker.is_some()
    }

    fn drain(&mut self) -> Result<(), String> {
        while let Some(envelope) = self.connection.drain().map_err(|error| said(&error))? {
            self.desk.deliver(envelope)?;
        }
        Ok(())
    }
}

impl<D: Desk + Unpin> Future for Channel<D> {
    type Output = Result<(), String>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_once(cx)
    }
}

/// Queues for the connection. An answer over a limit is replaced by the reason, which its caller gets instead; requests
/// are measured before they come here. On a connection that can no longer write, nothing is queued: its end follows.
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
