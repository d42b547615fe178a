//! Bytes on their way out: small ones copied together, large ones left where they are; and the descriptors that go with
//! some of them.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::descriptors::Descriptors;

/// Bodies from here on are written from where they lie; copying smaller ones costs less than another slice.
pub(crate) const SHARED_FROM: usize = 4 * 1024;
/// Slices that one write takes along.
const SLICES: usize = 16;
/// A tail that grew beyond this is given back when it is empty.
const KEPT: usize = 128 * 1024;

/// A queue of bytes to be written, oldest first.
#[derive(Debug, Default)]
pub struct Chunks {
    /// Complete pieces, none of them empty.
    ready: VecDeque<Bytes>,
    /// What small pieces are appended to; it comes after all that is ready.
    pub(crate) tail: BytesMut,
    /// Bytes in `ready`.
    held: usize,
    /// Descriptors, and after how many bytes of all there ever were the one comes that they go with.
    attached: VecDeque<(u64, Descriptors)>,
    /// How many bytes have been written.
    written: u64,
}

impl Chunks {
    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.held + self.tail.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends these bytes: by reference if there are many.
    pub(crate) fn put(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARED_FROM {
            self.tail.extend_from_slice(bytes);
            return;
        }
        self.close_tail();
        self.held += bytes.len();
        self.ready.push_back(bytes.clone());
    }

    /// Appends what was encoded elsewhere, and leaves that empty, with memory to go on.
    pub(crate) fn append(&mut self, encoded: &mut BytesMut) {
        if self.tail.is_empty() {
            std::mem::swap(&mut self.tail, encoded);
        } else {
            self.tail.extend_from_slice(encoded);
            encoded.clear();
        }
    }

    /// These descriptors go with the next byte that is appended.
    pub(crate) fn attach(&mut self, descriptors: &Descriptors) {
        self.attached.push_back((self.written + self.len() as u64, descriptors.clone()));
    }

    /// What goes with the first byte.
    pub(crate) fn descriptors(&self) -> Option<&Descriptors> {
        self.attached.front().filter(|(at, _)| *at == self.written).map(|(_, descriptors)| descriptors)
    }

    /// How many bytes one write may take: those before others that go with descriptors, which begin a write of their own.
    fn until_next(&self) -> usize {
        let next = self.attached.iter().map(|(at, _)| (*at - self.written) as usize);
        next.take(2).find(|distance| *distance > 0).unwrap_or(usize::MAX)
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.held += self.tail.len();
            self.ready.push_back(self.tail.split().freeze());
        }
    }

    /// The first bytes, as one write takes them; how many slices of the room are used.
    pub(crate) fn slices<'a>(&'a self, room: &mut [IoSlice<'a>; SLICES]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let all = self.ready.iter().map(|bytes| &bytes[..]).chain(tail);
        let (mut used, mut left) = (0, self.until_next());
        for (slot, bytes) in room.iter_mut().zip(all) {
            *slot = IoSlice::new(&bytes[..bytes.len().min(left)]);
            used += 1;
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                break;
            }
        }
        used
    }

    /// Room for [`slices`](Chunks::slices).
    pub(crate) fn room<'a>() -> [IoSlice<'a>; SLICES] {
        [IoSlice::new(&[]); SLICES]
    }

    /// These many bytes are written, and with the first of them its descriptors: the system has taken its own, so they
    /// must not go again with what a partial write has left over.
    pub(crate) fn advance(&mut self, mut n: usize) {
        if n > 0 && self.descriptors().is_some() {
            self.attached.pop_front();
        }
        self.written += n as u64;
        while let Some(first) = self.ready.front_mut() {
            if n < first.len() {
                first.advance(n);
                self.held -= n;
                return;
            }
            n -= first.len();
            self.held -= first.len();
            self.ready.pop_front();
        }
        if n == self.tail.len() {
            // All is written: the memory is used again from its beginning.
            self.tail.clear();
            if self.tail.capacity() > KEPT {
                self.tail = BytesMut::new();
            }
        } else {
            self.tail.advance(n);
        }
    }

    /// All of it in one piece.
    #[cfg(test)]
    pub(crate) fn flat(&self) -> BytesMut {
        let mut flat = BytesMut::new();
        self.ready.iter().for_each(|bytes| flat.extend_from_slice(bytes));
        flat.extend_from_slice(&self.tail);
        flat
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order_whatever_a_write_takes() {
        let pieces: Vec<Bytes> = [10, SHARED_FROM, 0, 5, SHARED_FROM * 2, SHARED_FROM, 7]
            .map(|len| vec![len as u8; len].into())
            .into();
        for step in [1, 3, 4096, SHARED_FROM, usize::MAX] {
            let mut chunks = Chunks::default();
            pieces.iter().for_each(|piece| chunks.put(piece));
            let expected: Vec<u8> = pieces.concat();
            assert_eq!(chunks.len(), expected.len());
            let mut got = Vec::new();
            while !chunks.is_empty() {
                let taken = next_write(&chunks, step);
                chunks.advance(taken.len());
                got.extend(taken);
            }
            assert!(got == expected, "in steps of {step}");
        }
    }

    /// What goes out next where a write takes no more than so much.
    fn next_write(chunks: &Chunks, most: usize) -> Vec<u8> {
        let mut room = Chunks::room();
        let used = chunks.slices(&mut room);
        room[..used].iter().flat_map(|slice| slice.iter().copied()).take(most).collect()
    }

    #[test]
    fn descriptors_go_once_with_the_first_byte_of_a_write_that_ends_before_the_next() {
        let one = || std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let some = |n: usize| {
            let puts = || (0..n).try_for_each(|_| crate::descriptors::put(one().as_fd()).map(drop));
            let (put, descriptors) = crate::descriptors::collect(puts);
            put.unwrap();
            descriptors
        };
        for step in [1, 3, 4096, usize::MAX] {
            let mut chunks = Chunks::default();
            // Before all else, between two, at the end of a large one, and two with a byte between them.
            for (n, len) in [(1, 10), (2, SHARED_FROM), (3, 1), (4, 20)] {
                chunks.attach(&some(n));
                chunks.put(&vec![n as u8; len].into());
                chunks.put(&vec![0; 5].into());
            }
            let mut seen = Vec::new();
            while !chunks.is_empty() {
                let taken = next_write(&chunks, step);
                let inside = &taken[1..];
                if let Some(descriptors) = chunks.descriptors() {
                    assert_eq!(usize::from(taken[0]), descriptors.len());
                    seen.push(descriptors.len());
                }
                assert!(!inside.windows(2).any(|pair| pair[0] == 0 && pair[1] != 0), "in steps of {step}");
                chunks.advance(taken.len());
            }
            assert_eq!(seen, [1, 2, 3, 4], "in steps of {step}");
        }
    }

    #[test]
    fn large_pieces_are_not_copied() {
        let large = Bytes::from(vec![1; SHARED_FROM]);
        let mut chunks = Chunks::default();
        chunks.put(&large);
        let mut room = Chunks::room();
        assert_eq!(chunks.slices(&mut room), 1);
        assert_eq!(room[0].as_ptr(), large.as_ptr());
    }
}
