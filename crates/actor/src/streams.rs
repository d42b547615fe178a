//! How far the producer of a streamed answer may be ahead of its consumer, counted alike on both sides.
//!
//! ```text
//!  producer                                             consumer
//!  [next item] ── Item, if there is room ─────────────▶ [arrived][arrived] ──▶ next()
//!       ▲                                                                        │
//!       └───────── Credit: so many have been taken ◀── gathered, a quarter ◀─────┘
//! ```
//!
//! Room is what has been sent and not been given back: fewer than [`ITEMS`] items and fewer than [`BYTES`] bytes, where a
//! descriptor counts for many. The
//! consumer gives back before it says so, so an honest producer never appears to be too far ahead. It gives back a
//! quarter at a time, of either measure, so what it holds back never stops the producer.

use std::collections::VecDeque;

use hatchery_wire::Body;

/// How many items the producer may be ahead: enough to keep both sides busy while a credit is on its way.
pub const ITEMS: usize = 64;
/// How many bytes of items it may be ahead, plus one item of any size.
pub const BYTES: usize = 1024 * 1024;
/// How many bytes a descriptor counts for: 64 of them are as much as the room for bytes.
const DESCRIPTOR: usize = BYTES / 64;

/// What an item counts for, the same on both sides.
pub(crate) fn size(item: &Body) -> usize {
    item.len() + item.descriptors() * DESCRIPTOR
}

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
        self.arrives_for_nobody(size(&item))?;
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
        self.owed_bytes += size(&item);
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
    fn items_with_descriptors_stop_it_at_64_of_them() {
        let body = hatchery_wire::encode(
            &["/dev/null"; 16].map(|path| hatchery_wire::Fd::new(std::fs::File::open(path).unwrap())),
        );
        let item = body.unwrap();
        let mut intake = Intake::default();
        for _ in 0..4 {
            intake.arrives(item.clone()).unwrap();
        }
        assert_eq!(intake.arrives(item.clone()), Err(BadItem::BeyondCredit));
        assert_eq!(intake.take().unwrap().1, 1, "a quarter");
        intake.arrives(item).unwrap();
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

    /// Streams of an outlet, against a model that keeps everything in plain lists.
    mod in_an_outlet {
        use std::sync::{Arc, Mutex};
        use std::task::{Context, Poll, Waker};

        use super::*;
        use crate::exit::{Exit, Status};
        use crate::fault::Fault;
        use crate::outlet::{Answer, Left, Line, Outlet, Request, Taken};
        use crate::probe::Probe;

        /// A producer that keeps count of the credit it gets, and of who has left.
        #[derive(Default)]
        struct Producer {
            credit: Mutex<Vec<(u64, usize)>>,
            withdrawn: Mutex<Vec<u64>>,
        }

        impl Line for Producer {
            fn send(&self, _: Request) -> Result<(), Fault> {
                Ok(())
            }

            fn withdraw(&self, id: u64) {
                self.withdrawn.lock().unwrap().push(id);
            }

            fn probe(&self, _: u64, _: Probe) {}

            fn credit(&self, id: u64, items: usize) {
                self.credit.lock().unwrap().push((id, items));
            }
        }

        fn numbered(n: u64) -> Body {
            hatchery_wire::encode(&n).unwrap()
        }

        fn now(outlet: &Outlet, id: u64) -> Option<Taken> {
            match outlet.poll_item(id, &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(taken) => Some(taken),
                Poll::Pending => None,
            }
        }

        fn sit(outlet: &Outlet, incarnation: u64) -> Arc<Producer> {
            let line = Arc::new(Producer::default());
            assert!(outlet.open(incarnation, line.clone()));
            line
        }

        fn stream(outlet: &Outlet) -> u64 {
            outlet.submit_stream(None, numbered(0), None)
        }

        fn exit(orderly: bool) -> Exit {
            if orderly { Exit::orderly() } else { Exit::new(Status::Signal(9)) }
        }

        #[test]
        fn an_item_of_no_stream_is_refused_unless_it_is_late() {
            let outlet = Outlet::default();
            let _line = sit(&outlet, 1);
            let (ask, ended) = (outlet.submit(true, None, numbered(0), None), stream(&outlet));
            outlet.answered(1, ended, Answer::End, false).unwrap();
            for id in [ask, ended, 99] {
                assert_eq!(outlet.item(1, id, numbered(0)), Err(BadItem::NoStream));
            }
            outlet.ended(1, &exit(false));
            outlet.item(1, 99, numbered(0)).unwrap();
            let _line = sit(&outlet, 2);
            outlet.item(1, 99, numbered(0)).unwrap();
            assert_eq!(outlet.item(2, 99, numbered(0)), Err(BadItem::NoStream));
        }

        #[test]
        fn what_nobody_waits_for_any_more_is_ignored_within_its_credit_until_it_ends() {
            let outlet = Outlet::default();
            let line = sit(&outlet, 1);
            let id = stream(&outlet);
            outlet.item(1, id, numbered(0)).unwrap();
            assert_eq!(outlet.cancel(id), Left::Sent);
            assert_eq!(*line.withdrawn.lock().unwrap(), [id]);
            for n in 1..ITEMS {
                outlet.item(1, id, numbered(n as u64)).unwrap();
            }
            assert_eq!(outlet.item(1, id, numbered(0)), Err(BadItem::BeyondCredit));
            outlet.answered(1, id, Answer::End, false).unwrap();
            assert_eq!(outlet.item(1, id, numbered(0)), Err(BadItem::NoStream));
            assert!(line.credit.lock().unwrap().is_empty());
        }

        #[test]
        fn a_stream_in_line_or_answered_with_a_fault_leaves_nothing_behind() {
            let outlet = Outlet::default();
            let id = stream(&outlet);
            assert_eq!(outlet.cancel(id), Left::Unsent);
            let _line = sit(&outlet, 1);
            let id = stream(&outlet);
            assert_eq!(outlet.cancel(id), Left::Sent);
            outlet.answered(1, id, Answer::Fault(Fault::Withdrawn), true).unwrap();
            assert_eq!(outlet.item(1, id, numbered(0)), Err(BadItem::NoStream));
        }

        #[test]
        fn an_orderly_end_is_no_excuse_for_a_stream_that_had_begun() {
            let outlet = Outlet::default();
            let _line = sit(&outlet, 1);
            let (begun, not_begun) = (stream(&outlet), stream(&outlet));
            outlet.item(1, begun, numbered(7)).unwrap();
            outlet.ended(1, &exit(true));
            assert_eq!(now(&outlet, not_begun), Some(Taken::Over(Answer::Fault(Fault::Stopping))));
            assert_eq!(now(&outlet, begun), Some(Taken::Item(numbered(7))));
            let cut = Fault::Ended { exit: Box::new(exit(true)), maybe_executed: true };
            assert_eq!(now(&outlet, begun), Some(Taken::Over(Answer::Fault(cut))));
        }

        #[derive(Clone, Debug)]
        enum Op {
            Open,
            /// As many as there is room for at the producer, up to so many.
            Produce(prop::sample::Index, usize),
            ProduceTooMany(prop::sample::Index),
            Take(prop::sample::Index, usize),
            Leave(prop::sample::Index),
            End(prop::sample::Index, bool),
            Restart,
        }

        fn op() -> impl Strategy<Value = Op> {
            let index = any::<prop::sample::Index>;
            prop_oneof![
                3 => Just(Op::Open),
                8 => (index(), 1_usize..100).prop_map(|(stream, n)| Op::Produce(stream, n)),
                1 => index().prop_map(Op::ProduceTooMany),
                8 => (index(), 1_usize..100).prop_map(|(stream, n)| Op::Take(stream, n)),
                2 => index().prop_map(Op::Leave),
                2 => (index(), any::<bool>()).prop_map(|(stream, well)| Op::End(stream, well)),
                1 => Just(Op::Restart),
            ]
        }

        #[derive(Default)]
        struct Known {
            id: u64,
            produced: u64,
            taken: u64,
            /// What the producer may still send, as far as it knows.
            room: usize,
            /// What its caller gets behind the items; the producer is done.
            over: Option<Answer>,
            /// Its caller has left, or has the end.
            gone: bool,
        }

        fn run(ops: Vec<Op>) {
            let outlet = Outlet::default();
            let (mut incarnation, mut line) = (1, sit(&outlet, 1));
            let mut all: Vec<Known> = Vec::new();
            for op in ops {
                let of = |index: &prop::sample::Index| index.index(all.len().max(1));
                match op {
                    Op::Open => {
                        let id = stream(&outlet);
                        // The place comes back when it begins.
                        outlet.released(incarnation, 1).unwrap();
                        all.push(Known { id, room: ITEMS, ..Known::default() });
                    }
                    _ if all.is_empty() => {}
                    Op::Produce(index, n) => {
                        let at = of(&index);
                        let known = &mut all[at];
                        if known.over.is_some() {
                            continue;
                        }
                        for _ in 0..n.min(known.room) {
                            outlet.item(incarnation, known.id, numbered(known.produced)).unwrap();
                            known.produced += 1;
                            known.room -= 1;
                        }
                    }
                    Op::ProduceTooMany(index) => {
                        let known = &all[of(&index)];
                        let expected = match &known.over {
                            Some(_) => Err(BadItem::NoStream),
                            None if known.room == 0 => Err(BadItem::BeyondCredit),
                            None => continue,
                        };
                        assert_eq!(outlet.item(incarnation, known.id, numbered(0)), expected);
                    }
                    Op::Take(index, n) => {
                        let at = of(&index);
                        let known = &mut all[at];
                        for _ in 0..n {
                            if known.gone {
                                break;
                            }
                            let expected = if known.taken < known.produced {
                                known.taken += 1;
                                Some(Taken::Item(numbered(known.taken - 1)))
                            } else if let Some(over) = &known.over {
                                known.gone = true;
                                Some(Taken::Over(over.clone()))
                            } else {
                                None
                            };
                            assert_eq!(now(&outlet, known.id), expected);
                        }
                    }
                    Op::Leave(index) => {
                        let at = of(&index);
                        let known = &mut all[at];
                        if known.gone {
                            continue;
                        }
                        let left = outlet.cancel(known.id);
                        let expected = known.over.clone().map_or(Left::Sent, Left::Over);
                        assert_eq!(left, expected);
                        known.gone = true;
                    }
                    Op::End(index, well) => {
                        let at = of(&index);
                        let known = &mut all[at];
                        if known.over.is_none() {
                            let fault = Answer::Fault(Fault::BadAnswer("it broke".to_owned()));
                            let over = if well { Answer::End } else { fault };
                            outlet.answered(incarnation, known.id, over.clone(), false).unwrap();
                            known.over = Some(over);
                        }
                    }
                    Op::Restart => {
                        outlet.ended(incarnation, &exit(false));
                        let fault = Fault::Ended { exit: Box::new(exit(false)), maybe_executed: true };
                        for known in all.iter_mut().filter(|known| known.over.is_none()) {
                            known.over = Some(Answer::Fault(fault.clone()));
                        }
                        incarnation += 1;
                        line = sit(&outlet, incarnation);
                    }
                }
                for (id, items) in std::mem::take(&mut *line.credit.lock().unwrap()) {
                    let known = all.iter_mut().find(|known| known.id == id).unwrap();
                    assert!(!known.gone && known.over.is_none(), "credit for nobody");
                    known.room += items;
                    let under_way = (known.produced - known.taken) as usize;
                    assert!(known.room + under_way <= ITEMS, "the producer may be too far ahead");
                }
                for known in all.iter().filter(|known| !known.gone && known.over.is_none()) {
                    let under_way = (known.produced - known.taken) as usize;
                    assert!(known.room > 0 || under_way > 0, "both wait for ever");
                }
            }
        }

        proptest! {
            #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

            #[test]
            fn items_come_in_order_within_the_credit_and_end_exactly_once(
                ops in prop::collection::vec(op(), 0..80),
            ) {
                run(ops);
            }
        }
    }
}
