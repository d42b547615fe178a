//! `Vec<u8>` as MessagePack byte strings, which serde by itself would encode number by number.

use hatchery_wire::{Body, ByteString, DecodeError, decode_owned};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Borrowed bytes to be encoded.
pub struct ByteSlice<'a>(pub &'a [u8]);

impl Serialize for ByteSlice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Bytes that were decoded.
pub struct ByteVec(pub Vec<u8>);

impl<'de> Deserialize<'de> for ByteVec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteVec, D::Error> {
        serde_bytes::deserialize(deserializer).map(ByteVec)
    }
}

/// Decodes a body that is one byte string, which large ones are not copied out of.
///
/// # Errors
/// It is something else.
pub fn take_bytes(body: Body) -> Result<Vec<u8>, DecodeError> {
    decode_owned::<ByteString>(body).map(ByteString::into_vec)
}
