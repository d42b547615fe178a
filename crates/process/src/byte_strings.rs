//! Borrowed bytes as MessagePack byte strings, which serde by itself would encode number by number.

use serde::{Serialize, Serializer};

/// Borrowed bytes to be encoded.
pub struct ByteSlice<'a>(pub &'a [u8]);

impl Serialize for ByteSlice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}
