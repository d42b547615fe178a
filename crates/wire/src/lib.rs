//! Frames, bodies and connections: length-prefixed MessagePack over Unix sockets, and nothing about what it means.
//!
//! Two processes exchange [`Envelope`]s over a [`Connection`]; a worker and its parent exchange small
//! [`LinkFrame`]s over a [`LinkSocket`]. Both may carry descriptors. What an envelope's [`Body`] holds is known
//! only to the process that owns the type: it is opaque bytes, and descriptors, until [`decode`].
//!
//! Everything read from a peer is untrusted. A malformed frame is a [`WireError`] with a name, never a panic, and
//! no allocation follows a claim: buffers grow as bytes arrive. `docs/wire-format.md` draws every frame.

#![forbid(unsafe_code)]

// How much a peer may send.
mod limits;

// Why a connection or a link failed.
mod error;

// The few MessagePack forms that frames are made of.
mod pack;

// Nesting counted at every kind of visit.
mod depth;

// Bytes on their way out.
mod chunks;

// Where values are encoded to.
mod sink;

// Bytes as one value, which are not copied when they are many.
mod byte_string;

// Descriptors of encoded values.
mod descriptors;

// Encoded values.
mod body;

// A descriptor as a value that travels.
mod fd;

// What can travel, in words of the compiler's.
mod travels;

// One message as a value, and its frames as bytes.
mod envelope;

// Messages to frames: control first, then every target in turn.
mod outbox;

// Frames to messages, within the limits.
mod assembler;

// Envelopes over a socket, driven by tokio.
mod connection;

// Small frames with descriptors over a socket, without any runtime.
mod link;

// One log event as bytes that a pipe takes whole or not at all.
mod log;

pub use crate::assembler::Assembler;
pub use crate::body::{
    Body, DecodeError, EncodeError, decode, decode_owned, decode_slice, encode, encode_onto,
};
pub use crate::byte_string::{ByteString, decode_byte_string};
pub use crate::chunks::Chunks;
pub use crate::connection::Connection;
pub use crate::envelope::{Envelope, Kind, Origin};
pub use crate::error::WireError;
pub use crate::fd::Fd;
pub use crate::limits::{
    CHAIN, DEPTH, LINK_FRAME, LOG_RECORD, Limits, MAX_FDS, MIN_FRAME, MIN_PART, TRACE, UNFINISHED_FDS,
};
pub use crate::link::{Filled, LinkFrame, LinkSocket};
pub use crate::log::{
    LogField, LogFields, LogHead, LogValue, put_log_record, read_log_record, whole_log_record,
};
pub use crate::outbox::Outbox;
pub use crate::sink::ALONE_FROM;
pub use crate::travels::{
    CannotDecode, CannotEncode, Decodes, Decoding, Encodes, Encoding, Travels, must_travel,
};
