//! Where values are encoded to: memory that is used again, and large byte strings left where they are.

use std::cell::{Cell, RefCell};
use std::io;

use bytes::Bytes;

use crate::chunks::SHARED_FROM;
use crate::{Body, descriptors};

/// An encoded value of at most this size is copied to memory of just its size, and what it was encoded to is used again;
/// a larger one keeps that memory.
const KEPT: usize = 8 * 1024;

/// A byte string that is encoded behind other values is copied if it is smaller than this: to send it by itself takes longer.
pub const ALONE_FROM: usize = 64 * 1024;

thread_local! {
    static FREE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// A large byte string that is just about to be written, so that the sink knows it again.
    static LARGE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
    /// Whether there is one: values without any need not look there.
    static OFFERED: Cell<bool> = const { Cell::new(false) };
}

/// Says that the next thing written is this byte string, which need not be copied.
pub(crate) fn offer(bytes: &Bytes) {
    if bytes.len() >= SHARED_FROM {
        LARGE.with_borrow_mut(|large| *large = Some(bytes.clone()));
        OFFERED.set(true);
    }
}

/// What was offered, and has not been taken.
#[inline]
fn take_offered() -> Option<Bytes> {
    if OFFERED.replace(false) { LARGE.with_borrow_mut(Option::take) } else { None }
}

/// What a serializer writes to.
pub(crate) struct Sink<'a> {
    pieces: Vec<Bytes>,
    /// Byte strings from so many bytes on become a piece, if they can.
    shared_from: usize,
    /// What comes after them. Borrowed: it costs more to move it than to write a number to it.
    tail: &'a mut Vec<u8>,
}

/// Encodes one value.
pub(crate) fn encode<E>(value: impl FnOnce(&mut Sink<'_>) -> Result<(), E>) -> Result<Body, E> {
    // A value whose own `Serialize` encodes another one finds nothing here, and begins with memory of its own.
    let mut tail = FREE.take();
    let mut sink = Sink { pieces: Vec::new(), shared_from: SHARED_FROM, tail: &mut tail };
    let (encoded, descriptors) = descriptors::collect(|| value(&mut sink));
    take_offered();
    if encoded.is_err() {
        // However much was written before: nobody takes that memory, and it is not kept for values that are small.
        *sink.tail = Vec::new();
    }
    let last = sink.cut();
    let mut pieces = sink.pieces;
    FREE.set(tail);
    encoded?;
    let mut body = if pieces.is_empty() {
        Body::from_bytes(last)
    } else {
        if !last.is_empty() {
            pieces.push(last);
        }
        Body::from_pieces(pieces)
    };
    if !descriptors.are_none() {
        body.attach(descriptors);
    }
    Ok(body)
}

/// Encodes one value behind what is in `out`; `None` if it is there. One that has descriptors, or large byte strings that are
/// shared, becomes a body of its own, and `out` is as it was.
#[inline]
pub(crate) fn encode_onto<E>(
    out: &mut Vec<u8>,
    value: impl FnOnce(&mut Sink<'_>) -> Result<(), E>,
) -> Result<Option<Body>, E> {
    let begins = out.len();
    let mut sink = Sink { pieces: Vec::new(), shared_from: ALONE_FROM, tail: out };
    let (encoded, descriptors) = descriptors::collect(|| value(&mut sink));
    take_offered();
    if encoded.is_ok() && sink.pieces.is_empty() && descriptors.are_none() {
        return Ok(None);
    }
    let pieces = sink.pieces;
    by_itself(encoded, pieces, descriptors, begins, out)
}

/// The rest of [`encode_onto`], for what does not lie behind the others.
#[cold]
fn by_itself<E>(
    encoded: Result<(), E>,
    mut pieces: Vec<Bytes>,
    descriptors: descriptors::Descriptors,
    begins: usize,
    out: &mut Vec<u8>,
) -> Result<Option<Body>, E> {
    let mut tail = std::mem::take(out);
    // The first piece begins with what was there before.
    let before = match pieces.first_mut() {
        Some(first) => {
            let before = first[..begins].to_vec();
            *first = first.slice(begins..);
            before
        }
        None => {
            let rest = tail.split_off(begins);
            std::mem::replace(&mut tail, rest)
        }
    };
    *out = before;
    encoded?;
    pieces.push(tail.into());
    pieces.retain(|piece| !piece.is_empty());
    let mut body = Body::from_pieces(pieces);
    if !descriptors.are_none() {
        body.attach(descriptors);
    }
    Ok(Some(body))
}

impl Sink<'_> {
    /// What has been written since the last piece, as one.
    fn cut(&mut self) -> Bytes {
        if self.tail.len() > KEPT {
            return std::mem::take(self.tail).into();
        }
        let cut = Bytes::copy_from_slice(self.tail);
        self.tail.clear();
        cut
    }

    #[cold]
    fn write_many(&mut self, bytes: &[u8]) {
        let offered = take_offered();
        let is_shared = |large: &Bytes| large.len() >= self.shared_from && std::ptr::eq(&large[..], bytes);
        if let Some(large) = offered.filter(is_shared) {
            if !self.tail.is_empty() {
                let before = self.cut();
                self.pieces.push(before);
            }
            self.pieces.push(large);
        } else {
            let before = self.tail.capacity();
            self.tail.reserve(bytes.len());
            // Said once of each memory, not with each byte string that gets in.
            if self.tail.capacity() != before {
                hatchery_shm::will_fill(self.tail);
            }
            self.tail.extend_from_slice(bytes);
        }
    }
}

impl io::Write for Sink<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    // A serializer mostly writes single bytes, which is a store if this is part of it.
    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < SHARED_FROM {
            self.tail.extend_from_slice(bytes);
        } else {
            self.write_many(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::{Serialize, Serializer, ser};

    use super::*;

    #[test]
    fn what_fails_leaves_no_large_memory_behind() {
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(ser::Error::custom("never"))
            }
        }
        for _ in 0..2 {
            crate::encode(&(vec!["x".repeat(1000); 1000], Refuses)).unwrap_err();
            crate::encode(&1).unwrap();
        }
        let kept = FREE.take();
        assert!(kept.capacity() <= 2 * KEPT, "{} bytes are kept", kept.capacity());
    }
}
