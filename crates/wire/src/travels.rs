//! What can travel to another process, so that the compiler says once and in plain words what cannot.
//!
//! Code written by a macro uses a type in many places, and would have each of them complain. So one place says that the
//! type must travel ([`must_travel`]), and all others encode and decode by methods that every type has: those of
//! [`Encodes`] and [`Decodes`], or, for a type that cannot travel, those of [`CannotEncode`] and [`CannotDecode`], which a
//! method call finds second because it takes one reference more. The latter never run, since such a program is refused.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::body::{Body, DecodeError, EncodeError, decode_owned, decode_slice, encode, encode_onto};

/// A value that can be sent to another process: whatever serde can encode and decode.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel to another process",
    label = "write `#[derive(serde::Serialize, serde::Deserialize)]` on it, and on the types in it",
    note = "for types of other crates check whether the crate has a feature `serde`"
)]
pub trait Travels: Serialize + DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned> Travels for T {}

/// Refuses a type that cannot travel, there where it is written.
pub const fn must_travel<T: Travels>() {}

/// A value about to be encoded.
pub struct Encoding<'a, T>(pub &'a T);

/// Encodes what can be encoded.
pub trait Encodes {
    /// See [`encode`].
    ///
    /// # Errors
    /// When the value's own `Serialize` refuses.
    fn encoded(&self) -> Result<Body, EncodeError>;

    /// See [`encode_onto`].
    ///
    /// # Errors
    /// When the value's own `Serialize` refuses.
    fn encoded_onto(&self, out: &mut Vec<u8>) -> Result<Option<Body>, EncodeError>;
}

impl<T: Serialize> Encodes for Encoding<'_, T> {
    fn encoded(&self) -> Result<Body, EncodeError> {
        encode(self.0)
    }

    #[inline]
    fn encoded_onto(&self, out: &mut Vec<u8>) -> Result<Option<Body>, EncodeError> {
        encode_onto(self.0, out)
    }
}

/// Stands in where a type cannot be encoded.
pub trait CannotEncode {
    /// Never called.
    ///
    /// # Errors
    /// None.
    fn encoded(&self) -> Result<Body, EncodeError>;

    /// Never called.
    ///
    /// # Errors
    /// None.
    fn encoded_onto(&self, out: &mut Vec<u8>) -> Result<Option<Body>, EncodeError>;
}

impl<T> CannotEncode for &Encoding<'_, T> {
    fn encoded(&self) -> Result<Body, EncodeError> {
        unreachable!("a type that cannot travel is refused when the program is compiled")
    }

    fn encoded_onto(&self, _: &mut Vec<u8>) -> Result<Option<Body>, EncodeError> {
        unreachable!("a type that cannot travel is refused when the program is compiled")
    }
}

/// A type about to be decoded.
pub struct Decoding<T>(PhantomData<fn() -> T>);

impl<T> Decoding<T> {
    /// Of that type.
    pub const fn new() -> Decoding<T> {
        Decoding(PhantomData)
    }
}

impl<T> Default for Decoding<T> {
    fn default() -> Decoding<T> {
        Decoding::new()
    }
}

/// Decodes what can be decoded.
pub trait Decodes<T> {
    /// See [`decode_owned`].
    ///
    /// # Errors
    /// When the bytes are no such value.
    fn decoded(&self, body: Body) -> Result<T, DecodeError>;

    /// See [`decode_slice`].
    ///
    /// # Errors
    /// When the bytes are no such value.
    fn decoded_slice(&self, bytes: &[u8]) -> Result<T, DecodeError>;
}

impl<T: DeserializeOwned> Decodes<T> for Decoding<T> {
    fn decoded(&self, body: Body) -> Result<T, DecodeError> {
        decode_owned(body)
    }

    #[inline]
    fn decoded_slice(&self, bytes: &[u8]) -> Result<T, DecodeError> {
        decode_slice(bytes)
    }
}

/// Stands in where a type cannot be decoded.
pub trait CannotDecode<T> {
    /// Never called.
    ///
    /// # Errors
    /// None.
    fn decoded(&self, body: Body) -> Result<T, DecodeError>;

    /// Never called.
    ///
    /// # Errors
    /// None.
    fn decoded_slice(&self, bytes: &[u8]) -> Result<T, DecodeError>;
}

impl<T> CannotDecode<T> for &Decoding<T> {
    fn decoded(&self, _: Body) -> Result<T, DecodeError> {
        unreachable!("a type that cannot travel is refused when the program is compiled")
    }

    fn decoded_slice(&self, _: &[u8]) -> Result<T, DecodeError> {
        unreachable!("a type that cannot travel is refused when the program is compiled")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stays;

    #[test]
    fn what_can_travel_is_encoded_and_decoded_by_serde() {
        let (encoding, decoding) = (&Encoding(&(5_u8, "five")), &Decoding::<(u8, String)>::new());
        let body = encoding.encoded().unwrap();
        assert_eq!(body, encode(&(5_u8, "five")).unwrap());
        assert_eq!(decoding.decoded(body).unwrap(), (5, "five".to_owned()));
    }

    #[test]
    #[should_panic(expected = "is refused when the program is compiled")]
    fn what_cannot_is_left_to_the_stand_in() {
        let encoding = &Encoding(&Stays);
        let _ = encoding.encoded();
    }
}
