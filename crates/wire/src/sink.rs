//! Where values are encoded to: memory that is used again, and large byte strings left where they are.

use std::cell::{Cell, RefCell};
use std::io;

use bytes::{Bytes, BytesMut};

use crate::Body;
use crate::chunks::SHARED_FROM;

/// Encoded values are cut off a block of this size, one after the other; the block is used again once all of them are
/// gone. A value that is larger gets memory of its own.
const BLOCK: usize = 8 * 1024;
/// Room that a value begins with: less than this is left of a block, and the next one is begun.
const ROOM: usize = 256;

thread_local! {
    static FREE: Cell<BytesMut> = Cell::new(BytesMut::new());
    /// A large byte string that is just about to be written, so that the sink knows it again.
    static LARGE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Says that the next thing written is this byte string, which need not be copied.
pub(crate) fn offer(bytes: &Bytes) {
    if bytes.len() >= SHARED_FROM {
        LARGE.with_borrow_mut(|large| *large = Some(bytes.clone()));
    }
}

/// What a serializer writes to.
pub(crate) struct Sink {
    pieces: Vec<Bytes>,
    tail: BytesMut,
}

/// Encodes one value.
pub(crate) fn encode<E>(value: impl FnOnce(&mut Sink) -> Result<(), E>) -> Result<Body, E> {
    // A value whose own `Serialize` encodes another one finds nothing here, and begins a block of its own.
    let mut tail = FREE.take();
    if tail.capacity() < ROOM {
        tail.reserve(BLOCK);
    }
    let mut sink = Sink { pieces: Vec::new(), tail };
    let encoded = value(&mut sink);
    LARGE.with_borrow_mut(Option::take);
    let Sink { mut pieces, mut tail } = sink;
    if encoded.is_err() {
        tail.clear();
        FREE.set(tail);
        return encoded.map(|()| Body::default());
    }
    let last = tail.split().freeze();
    FREE.set(tail);
    if pieces.is_empty() {
        return Ok(Body::from_bytes(last));
    }
    if !last.is_empty() {
        pieces.push(last);
    }
    Ok(Body::from_pieces(pieces))
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= SHARED_FROM {
            let offered = LARGE.with_borrow_mut(Option::take);
            if let Some(large) = offered.filter(|large| std::ptr::eq(&large[..], bytes)) {
                if !self.tail.is_empty() {
                    self.pieces.push(self.tail.split().freeze());
                }
                self.pieces.push(large);
                return Ok(());
            }
        }
        self.tail.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
