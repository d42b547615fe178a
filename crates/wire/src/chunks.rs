//! Bytes on their way out: small ones copied together, large ones left where they are.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

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
        let mut used = 0;
        for (slot, bytes) in room.iter_mut().zip(all) {
            *slot = IoSlice::new(bytes);
            used += 1;
        }
        used
    }

    /// Room for [`slices`](Chunks::slices).
    pub(crate) fn room<'a>() -> [IoSlice<'a>; SLICES] {
        [IoSlice::new(&[]); SLICES]
    }

    /// These many bytes are written.
    pub(crate) fn advance(&mut self, mut n: usize) {
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
                let mut room = Chunks::room();
                let used = chunks.slices(&mut room);
                let mut taken: Vec<u8> =
                    room[..used].iter().flat_map(|slice| slice.iter().copied()).collect();
                taken.truncate(step);
                chunks.advance(taken.len());
                got.extend(taken);
            }
            assert!(got == expected, "in steps of {step}");
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
