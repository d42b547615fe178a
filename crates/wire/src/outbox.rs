//! The messages waiting to be sent: control first, then every target in turn, one frame each.
//!
//! ```text
//!            push                                  fill
//!  control ───────────────────────────────────────► always first
//!  lane 1  ──[ask][ask]──┐
//!  lane 2  ──[64 MiB]────┼── turn: 1, 3, 1, 3 … ──► one frame, then the next lane
//!  lane 3  ──[tell]──────┘
//!                        waiting: 2                 large messages beyond the budget, first come first served
//! ```
//!
//! Inside a lane nothing overtakes, so messages to one target arrive in the order they were pushed, large ones too.
//! A large message holds up its own lane only. The receiver's budget is kept here as well: a large message begins
//! only when it fits beside those begun already, so two honest ends never meet [`WireError::OverBudget`].

use std::collections::{HashMap, VecDeque};

use crate::chunks::Chunks;
use crate::limits::{HEAD, UNFINISHED_FDS};
use crate::{Envelope, Kind, Limits, WireError};

/// Idle lanes kept for their queues' memory; more than this and a lane is dropped when it empties.
const KEPT_LANES: usize = 64;
/// Slots that the queue of an idle lane may keep.
const KEPT_SLOTS: usize = 256;

/// Messages to one target.
#[derive(Debug, Default)]
struct Lane {
    target: u32,
    queue: VecDeque<Envelope>,
    /// Bytes of the first message's body that are written.
    offset: usize,
    /// A frame of the first message is written: it can no longer be taken back.
    begun: bool,
    /// The first message is large and counts in [`Outbox::begun`].
    admitted: bool,
    place: Place,
}

/// Where a lane stands; it is in at most one of the two lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Idle,
    Turn,
    Waiting,
}

/// What unfinished messages take.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    messages: usize,
    bytes: usize,
    fds: usize,
}

impl Load {
    fn fits(&self, message: &Envelope, limits: &Limits) -> bool {
        let (bytes, fds) = (self.bytes.saturating_add(message.size()), self.fds + message.body.descriptors());
        self.messages == 0 || (bytes <= limits.budget && fds <= UNFINISHED_FDS)
    }

    fn add(&mut self, message: &Envelope) {
        self.messages += 1;
        self.bytes += message.size();
        self.fds += message.body.descriptors();
    }

    fn remove(&mut self, message: &Envelope) {
        self.messages -= 1;
        self.bytes -= message.size();
        self.fds -= message.body.descriptors();
    }
}

/// The send queue of one connection. It does no IO: [`Outbox::fill`] writes frames into a buffer.
#[derive(Debug)]
pub struct Outbox {
    limits: Limits,
    control: VecDeque<Envelope>,
    lanes: Vec<Lane>,
    free: Vec<usize>,
    by_target: HashMap<u32, usize>,
    /// The lane pushed to last, which usually is the next one as well.
    recent: Option<(u32, usize)>,
    turn: VecDeque<usize>,
    waiting: VecDeque<usize>,
    /// Large messages that are begun but not finished, which the receiver has to hold.
    begun: Load,
    messages: usize,
    bytes: usize,
}

impl Outbox {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Outbox {
            limits: limits.settled(),
            control: VecDeque::new(),
            lanes: Vec::new(),
            free: Vec::new(),
            by_target: HashMap::new(),
            recent: None,
            turn: VecDeque::new(),
            waiting: VecDeque::new(),
            begun: Load::default(),
            messages: 0,
            bytes: 0,
        }
    }

    /// Queues a message.
    ///
    /// A [`Kind::Withdraw`] normally overtakes, but never the request it names: if that one is still here, the
    /// withdrawal goes right behind it.
    ///
    /// # Errors
    ///
    /// [`WireError::MessageTooLarge`] for a body over the limit, or for control that does not fit one frame;
    /// [`WireError::Malformed`] for a chain or trace over its limit. Nothing is queued then.
    pub fn push(&mut self, envelope: Envelope) -> Result<(), WireError> {
        envelope.check()?;
        let control = envelope.kind.is_control();
        let limit = if control {
            self.limits.message.min(self.limits.frame - HEAD - envelope.context())
        } else {
            self.limits.message
        };
        if envelope.body.len() > limit {
            return Err(WireError::MessageTooLarge { size: envelope.body.len(), limit });
        }
        self.messages += 1;
        self.bytes += envelope.size();
        if control {
            let request = if envelope.kind == Kind::Withdraw {
                self.position(envelope.target, |queued| queued.kind.is_request() && queued.id == envelope.id)
            } else {
                None
            };
            match request {
                Some((slot, index)) => self.lanes[slot].queue.insert(index + 1, envelope),
                None => self.control.push_back(envelope),
            }
            return Ok(());
        }
        let slot = self.lane(envelope.target);
        let lane = &mut self.lanes[slot];
        lane.queue.push_back(envelope);
        if lane.place == Place::Idle {
            lane.place = Place::Turn;
            self.turn.push_back(slot);
        }
        Ok(())
    }

    /// Encodes frames to the end of `out` until it has at least `up_to` bytes or nothing is left.
    ///
    /// `out` ends with less than `up_to` bytes and one frame.
    pub fn fill(&mut self, out: &mut Chunks, up_to: usize) {
        let frame = self.limits.frame;
        while out.len() < up_to {
            if let Some(envelope) = self.control.pop_front() {
                self.messages -= 1;
                self.bytes -= envelope.size();
                envelope.put_frame(out, 0, frame);
                continue;
            }
            let Some(slot) = self.turn.pop_front() else { return };
            let lane = &mut self.lanes[slot];
            let Some(head) = lane.queue.front() else {
                // Its messages were withdrawn.
                self.rest(slot);
                continue;
            };
            if !lane.admitted && head.is_large(frame) {
                if !self.waiting.is_empty() || !self.begun.fits(head, &self.limits) {
                    lane.place = Place::Waiting;
                    self.waiting.push_back(slot);
                    continue;
                }
                lane.admitted = true;
                self.begun.add(head);
            }
            let written = head.put_frame(out, lane.offset, frame);
            if written < head.body.len() {
                self.bytes -= written - lane.offset;
                lane.offset = written;
                lane.begun = true;
                self.turn.push_back(slot);
                continue;
            }
            self.bytes -= head.size() - lane.offset;
            self.messages -= 1;
            lane.offset = 0;
            lane.begun = false;
            let admitted = std::mem::take(&mut lane.admitted);
            if admitted {
                self.begun.remove(head);
            }
            lane.queue.pop_front();
            if lane.queue.is_empty() {
                self.rest(slot);
            } else {
                self.turn.push_back(slot);
            }
            if admitted {
                self.admit();
            }
        }
    }

    /// Body, chain and trace bytes that are not encoded yet.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that are not encoded completely.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether everything is encoded.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    fn position(&self, target: u32, wanted: impl Fn(&Envelope) -> bool) -> Option<(usize, usize)> {
        let slot = *self.by_target.get(&target)?;
        let index = self.lanes[slot].queue.iter().position(wanted)?;
        Some((slot, index))
    }

    fn lane(&mut self, target: u32) -> usize {
        if let Some((recent, slot)) = self.recent {
            if recent == target {
                return slot;
            }
        }
        let slot = *self.by_target.entry(target).or_insert_with(|| {
            let lane = Lane { target, ..Lane::default() };
            match self.free.pop() {
                Some(slot) => {
                    self.lanes[slot] = lane;
                    slot
                }
                None => {
                    self.lanes.push(lane);
                    self.lanes.len() - 1
                }
            }
        });
        self.recent = Some((target, slot));
        slot
    }

    /// An emptied lane leaves the turn, its memory perhaps with it.
    fn rest(&mut self, slot: usize) {
        let lane = &mut self.lanes[slot];
        lane.place = Place::Idle;
        if lane.queue.capacity() > KEPT_SLOTS {
            lane.queue = VecDeque::new();
        }
        if self.by_target.len() > KEPT_LANES {
            self.by_target.remove(&lane.target);
            if self.recent.is_some_and(|(_, recent)| recent == slot) {
                self.recent = None;
            }
            *lane = Lane::default();
            self.free.push(slot);
        }
    }

    /// Lets large messages begin that fit by now, in the order they came.
    fn admit(&mut self) {
        while let Some(&slot) = self.waiting.front() {
            let lane = &mut self.lanes[slot];
            let Some(head) = lane.queue.front() else { return };
            if !self.begun.fits(head, &self.limits) {
                return;
            }
            self.waiting.pop_front();
            self.begun.add(head);
            lane.admitted = true;
            lane.place = Place::Turn;
            self.turn.push_back(slot);
        }
    }
}
