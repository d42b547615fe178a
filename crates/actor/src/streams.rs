//! How far the producer of a streamed answer may be ahead of its consumer, counted alike on both sides.
//!
//! ```text
//!  producer                                             consumer
//!  [next item] ── Item, if there is room ─────────────▶ [arrived][arrived] ──▶ next()
//!       ▲                                                                        │
//!       └───────── Credit: so many have been taken ◀── gathered, a quarter ◀─────┘
//! ```
//!
//! Room is what has been sent and not been given back: fewer than [`ITEMS`] items and fewer than [`BYTES`] bytes. The
//! consumer gives back before it says so, so an honest producer never appears to be too far ahead. It gives back a
//! quarter at a time, of either measure, so what it holds back never stops the producer.

use std::collections::VecDeque;

use hatchery_wire::Body;

/// How many items the producer may be ahead: enough to keep both sides busy while a credit is on its way.
pub const ITEMS: usize = 64;
/// How many bytes of items it may be ahead, plus one item of any size.
pub const BYTES: usize = 1024 * 1024;

/// What has been sent on a stream and not been given back.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    sizes: VecDeque<usize>,
    bytes: usize,
}

/// The peer gave back more items than it was sent.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMuchCredit;

/// What a producer may not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadItem {
    /// It has not been given room for it.
    #[error("it sent items of a stream beyond its credit")]
    BeyondCredit,
    /// No such stream is open.
    #[error("it sent an item of a stream that is not open")]
    NoStream,
}

impl Ahead {
    pub(crate) fn has_room(&self) -> bool {
        self.sizes.len() < ITEMS && self.bytes < BYTES
    }

    pub(crate) fn add(&mut self, size: usize) {
        self.sizes.push_back(size);
        self.bytes += size;
    }

    /// The oldest so many are no longer ahead.
    pub(crate) fn give_back(&mut self, items: usize) -> Result<(), TooMuchCredit> {
        if items > self.sizes.len() {
            return Err(TooMuchCredit);
        }
        self.bytes -= self.sizes.drain(..items).sum::<usize>();
        Ok(())
    }
}

/// What has arrived of a stream.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    arrived: VecDeque<Body>,
    ahead: Ahead,
    /// Taken, but not given back yet.
    owed: usize,
    owed_bytes: usize,
    begun: bool,
}

impl Intake {
    pub(crate) fn arrives(&mut self, item: Body) -> Result<(), BadItem> {
        self.arrives_for_nobody(item.len())?;
        self.arrived.push_back(item);
        Ok(())
    }

    /// The caller has left, but its items still have to keep within what they were given.
    pub(crate) fn arrives_for_nobody(&mut self, size: usize) -> Result<(), BadItem> {
        if !self.ahead.has_room() {
            return Err(BadItem::BeyondCredit);
        }
        self.ahead.add(size);
        self.begun = true;
        Ok(())
    }

    /// The oldest item, and how many the producer is to be given back now.
    pub(crate) fn take(&mut self) -> Option<(Body, usize)> {
        let item = self.arrived.pop_front()?;
        self.owed += 1;
        self.owed_bytes += item.len();
        if self.owed < ITEMS / 4 && self.owed_bytes < BYTES / 4 {
            return Some((item, 0));
        }
        let back = std::mem::take(&mut self.owed);
        self.owed_bytes = 0;
        let given = self.ahead.give_back(back);
        debug_assert!(given.is_ok(), "what was taken had arrived");
        Some((item, back))
    }

    /// Whether anything of it ever arrived.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// The same for a caller who has left.
    pub(crate) fn forgotten(mut self: Box<Self>) -> Box<Self> {
        self.arrived = VecDeque::new();
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(size: usize) -> Body {
        Body::from_bytes(vec![0; size].into())
    }

    #[test]
    fn the_producer_is_at_most_64_items_ahead_of_what_was_taken() {
        let mut intake = Intake::default();
        for _ in 0..ITEMS {
            intake.arrives(item(1)).unwrap();
        }
        assert_eq!(intake.arrives(item(1)), Err(BadItem::BeyondCredit));
        let given: usize = (0..ITEMS).map(|_| intake.take().unwrap().1).sum();
        assert_eq!(given, ITEMS);
        assert!(intake.take().is_none());
    }

    #[test]
    fn large_items_stop_it_earlier_and_are_given_back_earlier() {
        let mut intake = Intake::default();
        intake.arrives(item(BYTES - 1)).unwrap();
        intake.arrives(item(BYTES)).unwrap();
        assert_eq!(intake.arrives(item(0)), Err(BadItem::BeyondCredit));
        assert_eq!(intake.take().unwrap().1, 1);
        assert_eq!(intake.arrives(item(0)), Err(BadItem::BeyondCredit));
        assert_eq!(intake.take().unwrap().1, 1);
        intake.arrives(item(0)).unwrap();
    }

    #[test]
    fn more_credit_than_items_is_refused() {
        let mut ahead = Ahead::default();
        ahead.add(7);
        assert_eq!(ahead.give_back(2), Err(TooMuchCredit));
        ahead.give_back(1).unwrap();
        assert_eq!(ahead.give_back(1), Err(TooMuchCredit));
    }

    proptest! {
        /// Credit is under way for a while, whatever the sizes: neither is the producer ever beyond what the consumer
        /// allows, nor does either wait for ever.
        #[test]
        fn both_sides_agree_and_everything_passes(
            sizes in prop::collection::vec(prop_oneof![0_usize..100, 0_usize..2 * BYTES], 0..200),
            turns in prop::collection::vec(0_u8..3, 1..50),
        ) {
            let (mut producer, mut consumer) = (Ahead::default(), Intake::default());
            let (mut sent, mut taken) = (0, 0);
            let mut under_way = VecDeque::new();
            let mut stuck = 0;
            for turn in turns.iter().cycle() {
                if taken == sizes.len() {
                    break;
                }
                stuck += 1;
                match turn {
                    0 => while sent < sizes.len() && producer.has_room() {
                        producer.add(sizes[sent]);
                        consumer.arrives(item(sizes[sent])).unwrap();
                        sent += 1;
                        stuck = 0;
                    },
                    1 => if let Some((body, back)) = consumer.take() {
                        prop_assert_eq!(body.len(), sizes[taken]);
                        taken += 1;
                        under_way.push_back(back);
                        stuck = 0;
                    },
                    _ => if let Some(back) = under_way.pop_front() {
                        producer.give_back(back).unwrap();
                        stuck = 0;
                    },
                }
                if stuck > turns.len() {
                    // Whatever is not among these turns happens at last.
                    while let Some(back) = under_way.pop_front() {
                        producer.give_back(back).unwrap();
                    }
                    if let Some((_, back)) = consumer.take() {
                        taken += 1;
                        producer.give_back(back).unwrap();
                    } else if sent < sizes.len() {
                        prop_assert!(producer.has_room(), "everything was taken, and still there is no room");
                        producer.add(sizes[sent]);
                        consumer.arrives(item(sizes[sent])).unwrap();
                        sent += 1;
                    }
                    stuck = 0;
                }
            }
        }
    }
}
