//! Requests from other processes to actors of this one, and the answers back: for one channel that they came over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use hatchery_actor::address::Tenure;
use hatchery_actor::directory::{Directory, Guest};
use hatchery_actor::fault::Fault;
use hatchery_actor::mailbox::{Mailbox, Parcel, ReturnPath};
use hatchery_actor::outlet::{Answer, WINDOW};
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
        });
        Caller { mailbox, back: places.clone(), places }
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
            Kind::Credit => {
                let items = decode(&body).map_err(|error| format!("a malformed credit: {error}"))?;
                let credit = self.mailbox.credit(id, &self.back, items);
                return credit.map_err(|_| "it took more items of a stream than it was sent".to_owned());
            }
            Kind::Ask => true,
            Kind::Tell => false,
            other => return Err(format!("a message of kind {other:?}, which a caller does not send")),
        };
        if self.places.taken.fetch_add(1, Ordering::Relaxed) >= WINDOW {
            return Err(format!("more than {WINDOW} messages at once"));
        }
        // A deadline too far for the clock is none.
        let deadline = deadline.and_then(|left| now.get_or_insert_with(Instant::now).checked_add(left));
        let trace = origin.and_then(|origin| TraceContext::of_wire(&origin.trace)).map(Box::new);
        let parcel = Parcel { id, ask, deadline, trace, body, from: self.back.clone() };
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
}

impl ChannelReturn {
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
        self.taken.fetch_sub(1, Ordering::Relaxed);
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
        self.taken.fetch_sub(places, Ordering::Relaxed);
        self.outgoing.send(Envelope::new(Kind::Release, self.target, u64::from(places), Body::default()));
    }
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
    now: Option<Instant>,
}

impl CallsIn {
    pub(crate) fn new(directory: Arc<Directory>, outgoing: Arc<Outgoing>) -> CallsIn {
        CallsIn { directory, outgoing, bound: HashMap::new(), now: None }
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
        if caller.is_none() {
            self.outgoing.send(Envelope::new(Kind::Unbind, target, 0, Body::default()));
        }
        self.bound.insert(target, caller);
        Ok(())
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
            Kind::Unbind => {
                return match self.bound.remove(&target) {
                    Some(caller) => {
                        caller.into_iter().for_each(|caller| caller.mailbox.callers_left(&caller.back));
                        Ok(())
                    }
                    None => Err(format!("it unbound target {target}, which it had not bound")),
                };
            }
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
            caller.mailbox.callers_left(&caller.back);
        }
    }
}

/// The channels that others have opened to this process, and that are open.
#[derive(Default)]
pub(crate) struct Accepted {
    channels: std::sync::Mutex<Vec<Weak<Outgoing>>>,
}

impl Accepted {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Outgoing>>> {
        self.channels.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
