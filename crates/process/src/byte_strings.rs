//! `Vec<u8>` as MessagePack byte strings, which serde by itself would encode number by number.

use hatchery_wire::{Body, DecodeError, decode_byte_string};
use serde::{Serialize, Serializer};

/// Borrowed bytes to be encoded.
pub struct ByteSlice<'a>(pub &'a [u8]);

impl Serialize for ByteSlice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Decodes a body that is one byte string, which large ones are not copied out of.
///
/// # Errors
/// It is something else.
pub fn take_bytes(body: Body) -> Result<Vec<u8>, DecodeError> {
    decode_byte_string(body)
}
