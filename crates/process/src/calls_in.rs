//! Requests from other processes to actors of this one, and the answers back: for one channel that they came over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hatchery_actor::address::Tenure;
use hatchery_actor::chain::Chain;
use hatchery_actor::directory::{Directory, Guest};
use hatchery_actor::fault::Fault;
use hatchery_actor::mailbox::{Mailbox, Parcel, ReturnPath};
use hatchery_actor::outlet::{Answer, WINDOW};
use hatchery_actor::probe::Probe;
use hatchery_actor::trace::TraceContext;
use hatchery_wire::{Body, Envelope, Kind, decode, encode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::channel::{Desk, Outgoing};

/// What `target` stands for from here on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    pub(crate) path: String,
    pub(crate) actor: String,
    pub(crate) tenure: Tenure,
}

/// Actors that one peer may have bound at the same time.
const BOUND: usize = 65_536;

/// The requests of one peer to one actor.
pub(crate) struct Caller {
    mailbox: Arc<Mailbox>,
    back: Arc<dyn ReturnPath>,
    places: Arc<ChannelReturn>,
}

impl Caller {
    pub(crate) fn new(mailbox: Arc<Mailbox>, outgoing: Arc<Outgoing>, target: u32) -> Caller {
        let places = Arc::new(ChannelReturn {
            outgoing,
            target,
            taken: AtomicU32::new(0),
            answered: AtomicBool::new(false),
            next: Mutex::default(),
        });
        Caller { mailbox, back: places.clone(), places }
    }

    /// What tells its mailbox apart from others.
    fn mailbox_address(&self) -> usize {
        Arc::as_ptr(&self.mailbox).addr()
    }

    /// Lays a message into the mailbox. `now` is when it arrived: one look at the clock for all of one read.
    pub(crate) fn deliver(&self, envelope: Envelope, now: &mut Option<Instant>) -> Result<(), String> {
        let Envelope { kind, id, deadline, origin, body, .. } = envelope;
        self.places.answered.store(false, Ordering::Relaxed);
        let ask = match kind {
            Kind::Withdraw => {
                self.mailbox.withdraw(id, &self.back);
                return Ok(());
            }
            Kind::Probe => {
                let chain = origin.map(|origin| origin.chain).unwrap_or_default();
                let probe = Probe::of_wire(&chain).map_err(|error| error.to_string())?;
                self.mailbox.probe(id, &self.back, probe);
                return Ok(());
            }
            Kind::Credit => {
                let items = decode(&body).map_err(|error| format!("a malformed credit: {error}"))?;
                let credit = self.mailbox.credit(id, &self.back, items);
                return credit.map_err(|_| "it took more items of a stream than it was sent".to_owned());
            }
            Kind::Drain => {
                self.mailbox.drain();
                return Ok(());
            }
            Kind::Ask => true,
            Kind::Tell => false,
            other => return Err(format!("a message of kind {other:?}, which a caller does not send")),
        };
        if self.places.taken.fetch_add(1, Ordering::Relaxed) >= WINDOW {
            return Err(format!("more than {WINDOW} messages at once"));
        }
        let (mut trace, mut chain) = (None, None);
        if let Some(origin) = origin {
            chain = Chain::of_wire(&origin.chain).map_err(|error| error.to_string())?;
            trace = TraceContext::of_wire(&origin.trace).map(Box::new);
        }
        if let Err(fault) = self.mailbox.admit(chain.as_ref().filter(|_| ask)) {
            self.back.answer(id, Answer::Fault(fault));
            return Ok(());
        }
        // A deadline too far for the clock is none.
        let deadline = deadline.and_then(|left| now.get_or_insert_with(Instant::now).checked_add(left));
        let parcel = Parcel { id, ask, deadline, trace, chain, body, from: self.back.clone() };
        self.mailbox.push(parcel).unwrap_or_else(Parcel::refuse);
        Ok(())
    }

    /// Whether a message is likely to come at once: whoever got an answer is likely to ask again.
    pub(crate) fn is_due(&self) -> bool {
        self.places.answered.load(Ordering::Relaxed)
    }
}

/// The way of answers over a channel.
struct ChannelReturn {
    outgoing: Arc<Outgoing>,
    target: u32,
    /// Places of the caller's window that are taken.
    taken: AtomicU32,
    /// Since the last message came.
    answered: AtomicBool,
    /// The binding that is confirmed once all places of this one have come back.
    next: Mutex<Option<u32>>,
}

impl ChannelReturn {
    /// So many places have come back.
    fn give_back(&self, places: u32) {
        if self.taken.fetch_sub(places, Ordering::AcqRel) == places {
            let next = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
            next.into_iter().for_each(|target| confirm(&self.outgoing, target));
        }
    }

    fn are_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire) > 0
    }

    /// Has this binding confirmed when all places have come back, in place of any other.
    fn then_confirm(&self, next: u32) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
        // They may have come back just before.
        self.give_back(0);
    }

    fn send(&self, id: u64, answer: Answer, release: bool) {
        let (kind, body) = match answer {
            Answer::Value(body) => (Kind::Reply, body),
            Answer::Error(body) => (Kind::Error, body),
            Answer::Fault(fault) => (Kind::Fault, encode(&fault).unwrap_or_default()),
            Answer::End => (Kind::End, Body::default()),
            Answer::None => {
                let fault = Fault::BadAnswer("the handler gave none".to_owned());
                (Kind::Fault, encode(&fault).unwrap_or_default())
            }
        };
        let mut envelope = Envelope::new(kind, self.target, id, body);
        envelope.release = release;
        self.outgoing.send(envelope);
    }
}

impl ReturnPath for ChannelReturn {
    fn answer(&self, id: u64, answer: Answer) {
        self.give_back(1);
        self.answered.store(true, Ordering::Relaxed);
        self.send(id, answer, true);
    }

    fn reply(&self, id: u64, answer: Answer) {
        self.send(id, answer, false);
    }

    fn item(&self, id: u64, item: Body) {
        self.outgoing.send(Envelope::new(Kind::Item, self.target, id, item));
    }

    fn release(&self, places: u32) {
        self.give_back(places);
        self.outgoing.send(Envelope::new(Kind::Release, self.target, u64::from(places), Body::default()));
    }
}

/// Tells the other side that the actor is there, and may be asked.
fn confirm(outgoing: &Outgoing, target: u32) {
    outgoing.send(Envelope::new(Kind::Bind, target, 0, Body::default()));
}

impl Guest for ChannelReturn {
    fn host_left(&self) {
        // Behind all its answers.
        self.outgoing.send(Envelope::new(Kind::Unbind, self.target, 0, Body::default()));
    }
}

/// What arrives over a channel for actors that its peer has bound.
pub(crate) struct CallsIn {
    directory: Arc<Directory>,
    outgoing: Arc<Outgoing>,
    /// `None` for those of whom the peer has been told that they are not there.
    bound: HashMap<u32, Option<Caller>>,
    /// Of each mailbox the bindings that have been given up while places of theirs were taken. Who binds the same actor
    /// again waits for those: handles come and go with messages, and the window is for all of them.
    leaving: HashMap<usize, Vec<Weak<ChannelReturn>>>,
    now: Option<Instant>,
}

impl CallsIn {
    pub(crate) fn new(directory: Arc<Directory>, outgoing: Arc<Outgoing>) -> CallsIn {
        CallsIn { directory, outgoing, bound: HashMap::new(), leaving: HashMap::new(), now: None }
    }

    fn bind(&mut self, target: u32, body: &Body) -> Result<(), String> {
        let binding: Binding = decode(body).map_err(|error| format!("a malformed binding: {error}"))?;
        if self.bound.len() >= BOUND || self.bound.contains_key(&target) {
            return Err(format!("it bound target {target} twice, or more than {BOUND} of them"));
        }
        let host = self.directory.host(&binding.path);
        let host = host.filter(|host| host.tenure == binding.tenure && host.actor == binding.actor);
        let caller = host.and_then(|host| {
            let caller = Caller::new(host.mailbox.clone(), self.outgoing.clone(), target);
            let guest: Arc<dyn Guest> = caller.places.clone();
            host.welcome(Arc::downgrade(&guest)).then_some(caller)
        });
        match &caller {
            None => self.outgoing.send(Envelope::new(Kind::Unbind, target, 0, Body::default())),
            Some(caller) => {
                self.forget_who_left();
                let before = self.leaving.get(&caller.mailbox_address()).and_then(|places| places.first());
                match before.and_then(Weak::upgrade) {
                    Some(before) => before.then_confirm(target),
                    None => confirm(&self.outgoing, target),
                }
            }
        }
        self.bound.insert(target, caller);
        Ok(())
    }

    fn unbind(&mut self, target: u32) -> Result<(), String> {
        let Some(caller) = self.bound.remove(&target) else {
            return Err(format!("it unbound target {target}, which it had not bound"));
        };
        if let Some(caller) = caller {
            let unheard = caller.mailbox.callers_left(&caller.back);
            caller.places.give_back(unheard);
            let leaving = self.leaving.entry(caller.mailbox_address()).or_default();
            leaving.push(Arc::downgrade(&caller.places));
            self.forget_who_left();
        }
        Ok(())
    }

    /// Of those who are leaving, keeps those of whom places are still taken.
    fn forget_who_left(&mut self) {
        self.leaving.retain(|_, leaving| {
            leaving.retain(|places| places.upgrade().is_some_and(|places| places.are_taken()));
            !leaving.is_empty()
        });
    }
}

impl Desk for CallsIn {
    fn arriving(&mut self) {
        self.now = None;
    }

    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        let target = envelope.target;
        match envelope.kind {
            Kind::Bind => return self.bind(target, &envelope.body),
            Kind::Unbind => return self.unbind(target),
            _ => {}
        }
        match self.bound.get(&target) {
            Some(Some(caller)) => caller.deliver(envelope, &mut self.now),
            // It has been told, and knows how these end.
            Some(None) => Ok(()),
            None => Err(format!("a message to target {target}, which does not exist")),
        }
    }

    fn is_due(&self) -> bool {
        self.bound.values().flatten().any(Caller::is_due)
    }
}

impl Drop for CallsIn {
    fn drop(&mut self) {
        // The channel is over, so nobody of that process waits any longer.
        for caller in self.bound.values().flatten() {
            let _ = caller.mailbox.callers_left(&caller.back);
        }
    }
}

/// The channels that others have opened to this process, and that are open.
#[derive(Default)]
pub(crate) struct Accepted {
    channels: Mutex<Vec<Weak<Outgoing>>>,
}

impl Accepted {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Outgoing>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, outgoing: &Arc<Outgoing>) {
        let mut channels = self.lock();
        if channels.len() == channels.capacity() {
            channels.retain(|channel| channel.strong_count() > 0);
        }
        channels.push(Arc::downgrade(outgoing));
    }

    /// Those that are open.
    pub(crate) fn open(&self) -> Vec<Arc<Outgoing>> {
        self.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hatchery_wire::Origin;

    use super::*;

    #[test]
    fn a_peer_that_sends_a_malformed_chain_or_probe_ends_with_a_named_reason() {
        let caller = Caller::new(Mailbox::new(), Arc::default(), 0);
        let deliver = |kind, chain: &'static [u8]| {
            let mut envelope = Envelope::new(kind, 0, 1, Body::default());
            envelope.origin =
                Some(Box::new(Origin { chain: Bytes::from_static(chain), ..Origin::default() }));
            caller.deliver(envelope, &mut None)
        };
        // Life, number and a path of no bytes, for a chain; a number before them and a wait and a flag for a probe.
        let (chain, probe) = (&[0; 18], &[0; 35]);
        assert_eq!(deliver(Kind::Ask, chain), Ok(()));
        assert_eq!(deliver(Kind::Probe, probe), Ok(()));
        for kind in [Kind::Ask, Kind::Tell] {
            assert_eq!(deliver(kind, &chain[1..]), Err("a malformed chain of requests".to_owned()));
        }
        for malformed in [&probe[1..], &[], chain] {
            assert_eq!(deliver(Kind::Probe, malformed), Err("a malformed probe".to_owned()));
        }
    }
}
