//! What a process knows of seats: its own by their paths, the actors it hosts, and those that stand for seats of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::address::{Address, Tenure};
use crate::exchange::Exchange;
use crate::mailbox::Mailbox;
use crate::seat::Seat;

/// The three tables.
#[derive(Default)]
pub struct Directory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    own: HashMap<String, Weak<Seat>>,
    hosts: HashMap<String, Arc<Host>>,
    far: HashMap<Address, Weak<Seat>>,
    /// Beyond this many, entries whose seats are gone are taken out.
    most: usize,
}

/// Tables smaller than this are not worth a look.
const FEW: usize = 256;

impl Directory {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a seat of this process. Whoever had its path before is not found any more.
    pub fn enter(&self, seat: &Arc<Seat>) {
        let mut state = self.lock();
        state.own.insert(seat.path().to_owned(), Arc::downgrade(seat));
        state.tidy();
    }

    /// The seat of this process that has this path.
    pub fn seat(&self, path: &str) -> Option<Arc<Seat>> {
        self.lock().own.get(path)?.upgrade()
    }

    /// The seat of this process nearest above this path, and whether there is one with the path itself.
    pub fn nearest(&self, path: &str) -> Option<(Arc<Seat>, bool)> {
        let state = self.lock();
        let mut at = path;
        loop {
            if let Some(seat) = state.own.get(at).and_then(Weak::upgrade) {
                return Some((seat, at.len() == path.len()));
            }
            at = &at[..at.rfind('/')?];
        }
    }

    /// The one that stands for the seat of another process with this address.
    pub(crate) fn far(
        &self,
        address: Address,
        actor: &'static str,
        exchange: &Arc<dyn Exchange>,
    ) -> Arc<Seat> {
        let mut state = self.lock();
        // A closed one may have been asked for too early, or stand for a predecessor.
        let known = state.far.get(&address).and_then(Weak::upgrade).filter(|seat| !seat.is_closed());
        if let Some(seat) = known {
            return seat;
        }
        let seat = Seat::far(address.clone(), actor, Arc::downgrade(exchange));
        state.far.insert(address, Arc::downgrade(&seat));
        state.tidy();
        seat
    }

    /// An actor lives in this process from now on, until the lodging is dropped.
    pub fn lodge(
        self: &Arc<Directory>,
        path: &str,
        tenure: Tenure,
        actor: &'static str,
        mailbox: Arc<Mailbox>,
    ) -> Lodging {
        let host = Arc::new(Host { tenure, actor, mailbox, guests: Mutex::new(Some(Vec::new())) });
        self.lock().hosts.insert(path.to_owned(), host.clone());
        Lodging { directory: self.clone(), path: path.to_owned(), host }
    }

    /// The actor of this path that lives in this process.
    pub fn host(&self, path: &str) -> Option<Arc<Host>> {
        self.lock().hosts.get(path).cloned()
    }
}

impl State {
    fn tidy(&mut self) {
        if self.own.len() + self.far.len() > self.most.max(FEW) {
            self.own.retain(|_, seat| seat.strong_count() > 0);
            self.far.retain(|_, seat| seat.strong_count() > 0);
            self.most = 2 * (self.own.len() + self.far.len());
        }
    }
}

/// An actor that lives in this process.
pub struct Host {
    /// Which incarnation of which seat it is.
    pub tenure: Tenure,
    /// Its registered name.
    pub actor: &'static str,
    /// Where its requests are laid.
    pub mailbox: Arc<Mailbox>,
    /// `None` when it has gone.
    guests: Mutex<Option<Vec<Weak<dyn Guest>>>>,
}

/// Whoever brings requests to an actor from elsewhere.
pub trait Guest: Send + Sync + 'static {
    /// The actor has ended, and said everything it had to say.
    fn host_left(&self);
}

impl Host {
    fn guests(&self) -> MutexGuard<'_, Option<Vec<Weak<dyn Guest>>>> {
        // No foreign code runs under this lock.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells this guest when the actor has gone; whether it has not gone already.
    pub fn welcome(&self, guest: Weak<dyn Guest>) -> bool {
        let mut guests = self.guests();
        let Some(guests) = &mut *guests else { return false };
        if guests.len() == guests.capacity() {
            guests.retain(|guest| guest.strong_count() > 0);
        }
        guests.push(guest);
        true
    }
}

/// Ends an actor's being found in this process when dropped.
pub struct Lodging {
    directory: Arc<Directory>,
    path: String,
    host: Arc<Host>,
}

impl Drop for Lodging {
    fn drop(&mut self) {
        {
            let mut state = self.directory.lock();
            // A successor may have come already.
            if state.hosts.get(&self.path).is_some_and(|host| Arc::ptr_eq(host, &self.host)) {
                state.hosts.remove(&self.path);
            }
        }
        let guests = self.host.guests().take();
        for guest in guests.into_iter().flatten().filter_map(|guest| guest.upgrade()) {
            guest.host_left();
        }
    }
}
