//! Bytes as one value: large ones are neither copied when they are encoded nor when they are decoded.

use std::cell::RefCell;
use std::fmt;

use bytes::Bytes;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::chunks::SHARED_FROM;
use crate::{Body, DecodeError, decode_owned, sink};

thread_local! {
    /// What is being decoded, if it is large.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Decodes with a way back from the bytes that a visitor sees to the memory they lie in.
pub(crate) fn with_source<T>(source: &Bytes, decode: impl FnOnce() -> T) -> T {
    /// Puts back what was there, also after a panic in somebody's `Deserialize`.
    struct Before(Option<Bytes>);
    impl Drop for Before {
        fn drop(&mut self) {
            SOURCE.with_borrow_mut(|now| *now = self.0.take());
        }
    }
    if source.len() < SHARED_FROM {
        return decode();
    }
    let _before = Before(SOURCE.with_borrow_mut(|now| now.replace(source.clone())));
    decode()
}

/// Bytes of what comes before a byte string that has more than 65,535.
pub(crate) const HEAD: usize = 5;

/// How MessagePack says that a byte string follows, of so many bytes.
const BIN_32: u8 = 0xc6;

/// The head of a large byte string, if a body begins with one.
pub(crate) fn head(body: &[u8]) -> Option<[u8; HEAD]> {
    body.first_chunk().filter(|head| head[0] == BIN_32).copied()
}

/// Decodes a body that is one byte string, and moves its bytes: a large one that came over a connection lies in memory of its
/// own, which becomes the vector's.
///
/// # Errors
///
/// It is something else.
pub fn decode_byte_string(body: Body) -> Result<Vec<u8>, DecodeError> {
    match body.into_two() {
        Ok([head, bytes]) if is_head(&head, bytes.len()) => Ok(bytes.into()),
        Ok(two) => decode_owned(Body::from_pieces(two.into())).map(ByteString::into_vec),
        Err(body) => decode_owned(body).map(ByteString::into_vec),
    }
}

/// Whether this says that so many bytes follow, and says no more.
fn is_head(head: &[u8], length: usize) -> bool {
    let [BIN_32, said @ ..] = head else { return false };
    <[u8; 4]>::try_from(said).is_ok_and(|said| usize::try_from(u32::from_be_bytes(said)) == Ok(length))
}

/// A byte string that travels as such, number by number in no format that knows better.
///
/// ```
/// use hatchery_wire::{ByteString, decode, encode};
///
/// let sent = ByteString::from(vec![7; 100]);
/// let body = encode(&sent)?;
/// assert_eq!(body.len(), 102);
/// assert_eq!(decode::<ByteString>(&body)?.into_vec(), [7; 100]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ByteString(Inner);

#[derive(Clone)]
enum Inner {
    /// Few enough to be copied.
    Few(Vec<u8>),
    Many(Bytes),
}

impl ByteString {
    /// The bytes. They are moved, not copied, unless what they were decoded from is still in use.
    #[inline]
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Inner::Few(bytes) => bytes,
            Inner::Many(bytes) => bytes.into(),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Inner::Few(bytes) => bytes,
            Inner::Many(bytes) => bytes,
        }
    }
}

impl ByteString {
    /// The same for one that is encoded behind others, where only large ones are not copied.
    #[inline]
    pub fn in_row(bytes: Vec<u8>) -> ByteString {
        ByteString(if bytes.len() < sink::ALONE_FROM { Inner::Few(bytes) } else { Inner::Many(bytes.into()) })
    }
}

impl From<Vec<u8>> for ByteString {
    #[inline]
    fn from(bytes: Vec<u8>) -> Self {
        let few = bytes.len() < SHARED_FROM;
        ByteString(if few { Inner::Few(bytes) } else { Inner::Many(bytes.into()) })
    }
}

impl Default for ByteString {
    fn default() -> Self {
        ByteString(Inner::Few(Vec::new()))
    }
}

impl PartialEq for ByteString {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for ByteString {}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByteString").field(&self.as_slice()).finish()
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Inner::Many(bytes) = &self.0 {
            sink::offer(bytes);
        }
        serializer.serialize_bytes(self.as_slice())
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(Visit)
    }
}

struct Visit;

impl<'de> Visitor<'de> for Visit {
    type Value = ByteString;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<ByteString, E> {
        if bytes.len() < SHARED_FROM {
            return Ok(ByteString(Inner::Few(bytes.to_vec())));
        }
        let many = SOURCE.with_borrow(|source| match source {
            Some(source) if source.as_ptr_range().contains(&bytes.as_ptr()) => {
                Inner::Many(source.slice_ref(bytes))
            }
            _ => Inner::Few(bytes.to_vec()),
        });
        Ok(ByteString(many))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<ByteString, E> {
        Ok(bytes.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<ByteString, A::Error> {
        // No more than is there is allocated, whatever a peer says about the length.
        let mut bytes = Vec::with_capacity(sequence.size_hint().unwrap_or(0).min(SHARED_FROM));
        while let Some(byte) = sequence.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, decode, encode};

    #[test]
    fn byte_strings_of_every_size_round_trip_among_others() {
        for len in [0, 1, SHARED_FROM - 1, SHARED_FROM, 5 * SHARED_FROM] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let value = (1_u8, ByteString::from(bytes.clone()), "and", Some(ByteString::from(bytes.clone())));
            let body = encode(&value).unwrap();
            assert_eq!(body.len(), body.to_bytes().len());
            let back: (u8, ByteString, String, Option<ByteString>) = decode(&body).unwrap();
            assert_eq!((back.0, &*back.2), (1, "and"));
            assert!(back.1.into_vec() == bytes && back.3.unwrap().into_vec() == bytes);
            let by_hand =
                (1_u8, serde_bytes::Bytes::new(&bytes), "and", Some(serde_bytes::Bytes::new(&bytes)));
            assert_eq!(encode(&by_hand).unwrap(), body, "the same bytes as anybody writes them");
        }
    }

    #[test]
    fn large_ones_are_not_copied_on_either_side() {
        let bytes = vec![7; SHARED_FROM];
        let at = bytes.as_ptr();
        let body = encode(&ByteString::from(bytes)).unwrap();
        assert_eq!(body.pieces().last().unwrap().as_ptr(), at);
        let received = Body::from_bytes(body.to_bytes());
        let inside = received.to_bytes().as_ptr_range();
        let back: ByteString = decode(&received).unwrap();
        assert!(inside.contains(&back.as_slice().as_ptr()));
        drop(received);
        assert!(inside.contains(&back.into_vec().as_ptr()), "the same memory, now a vector's");
    }

    #[test]
    fn a_byte_string_may_also_be_written_number_by_number() {
        let body = encode(&vec![1_u16, 2, 255]).unwrap();
        assert_eq!(decode::<ByteString>(&body).unwrap().into_vec(), [1, 2, 255]);
        assert!(decode::<ByteString>(&encode(&vec![256_u16]).unwrap()).is_err());
    }

    #[test]
    fn what_was_offered_and_not_written_is_not_mistaken_for_something_else() {
        /// Offers one and writes another.
        struct Odd(Bytes);
        impl Serialize for Odd {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                sink::offer(&self.0);
                serializer.serialize_bytes(&vec![8; SHARED_FROM])
            }
        }
        let body = encode(&Odd(vec![7; SHARED_FROM].into())).unwrap();
        assert!(decode::<ByteString>(&body).unwrap().into_vec() == vec![8; SHARED_FROM]);
    }
}
