//! Tells the seats of children that are down whom their next incarnations wait for: a sibling that is asked to leave, and in
//! whose handler somebody waits for one of them, would hold up the very start that it waits for.

use std::collections::HashSet;
use std::sync::Arc;

use hatchery_actor::seat::Seat;

use crate::office::Member;

/// What has been told.
#[derive(Default)]
pub(crate) struct Holds {
    /// The seats that are held.
    seats: Vec<Arc<Seat>>,
}

impl Holds {
    /// Nobody sits down in the places of these, nor below them, before those at these paths are gone. All other places are
    /// free.
    pub(crate) fn are(&mut self, by: &[String], waiting: &[Member]) {
        let mut seats = Vec::new();
        if !by.is_empty() {
            waiting.iter().for_each(|member| seats_of(member, &mut seats));
        }
        let still: HashSet<u64> = seats.iter().map(|seat| seat.id()).collect();
        self.seats.iter().filter(|seat| !still.contains(&seat.id())).for_each(|seat| seat.hold(&[]));
        seats.iter().for_each(|seat| seat.hold(by));
        self.seats = seats;
    }
}

/// The seat of a child, and those below it in this process.
fn seats_of(member: &Member, seats: &mut Vec<Arc<Seat>>) {
    seats.push(member.seat.clone());
    if let Some(office) = member.office() {
        seats.push(office.overseer.clone());
        let below: Vec<_> = office.members().values().cloned().collect();
        below.iter().for_each(|member| seats_of(member, seats));
    }
}
