//! Encoded values: opaque bytes, and descriptors, from the caller's encoder to the owner's decoder.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use rmp_serde::decode::Error as PackError;
use serde::de::{Deserialize, DeserializeOwned};
use serde::ser::Serialize;

use crate::descriptors::{self, Descriptors};
use crate::limits::DEPTH;
use crate::{byte_string, depth, sink};

/// An encoded value. Cloning it is cheap, it never looks inside.
///
/// It may lie in several pieces, since byte strings that are large stay where they were. The descriptors of each
/// [`Fd`](crate::Fd) in the value are part of it: they are closed with its last clone, unless they were sent or decoded.
///
/// ```
/// let body = hatchery_wire::encode(&(1u8, "two"))?;
/// let (one, two): (u8, String) = hatchery_wire::decode(&body)?;
/// assert_eq!((one, two.as_str()), (1, "two"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Body {
    first: Bytes,
    /// Behind one thin pointer, since most have none of it, and a body is moved often.
    more: Option<Arc<More>>,
}

/// What most bodies do without.
#[derive(Clone, Default)]
struct More {
    /// None of them empty.
    pieces: Vec<Bytes>,
    descriptors: Descriptors,
}

impl Body {
    /// A body of bytes that are encoded already.
    #[inline]
    pub fn from_bytes(bytes: Bytes) -> Self {
        Body { first: bytes, more: None }
    }

    /// A body of several pieces.
    pub(crate) fn from_pieces(mut pieces: Vec<Bytes>) -> Self {
        if pieces.len() < 2 {
            return Body::from_bytes(pieces.pop().unwrap_or_default());
        }
        let first = pieces.remove(0);
        Body { first, more: Some(Arc::new(More { pieces, ..More::default() })) }
    }

    /// Its pieces, if it has two, no descriptors and no clones; else it is given back.
    pub(crate) fn into_two(mut self) -> Result<[Bytes; 2], Body> {
        let more = self.more.as_mut().and_then(Arc::get_mut);
        match more.filter(|more| more.descriptors.are_none()).map(|more| &mut more.pieces[..]) {
            Some([second]) => {
                let second = std::mem::take(second);
                Ok([self.first, second])
            }
            _ => Err(self),
        }
    }

    /// Puts these descriptors in the place of its own.
    pub(crate) fn attach(&mut self, descriptors: Descriptors) {
        Arc::make_mut(self.more.get_or_insert_default()).descriptors = descriptors;
    }

    /// The encoded bytes in one piece, without descriptors; copies them if they lie in several.
    pub fn to_bytes(&self) -> Bytes {
        match &self.more {
            Some(more) if !more.pieces.is_empty() => {
                let mut flat = Vec::with_capacity(self.len());
                self.pieces().for_each(|piece| flat.extend_from_slice(piece));
                flat.into()
            }
            _ => self.first.clone(),
        }
    }

    /// The pieces it lies in, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(self.more.iter().flat_map(|more| more.pieces.iter()))
    }

    /// The number of encoded bytes.
    #[inline]
    pub fn len(&self) -> usize {
        let more = self.more.iter().flat_map(|more| more.pieces.iter());
        self.first.len() + more.map(Bytes::len).sum::<usize>()
    }

    /// Whether there are no bytes at all. No value encodes to nothing; frames without a value have an empty body.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of descriptors, at most [`MAX_FDS`](crate::MAX_FDS).
    pub fn descriptors(&self) -> usize {
        self.descriptors_of().map_or(0, Descriptors::len)
    }

    /// The descriptors themselves, if there are or were any.
    pub(crate) fn descriptors_of(&self) -> Option<&Descriptors> {
        self.more.as_ref().map(|more| &more.descriptors).filter(|descriptors| !descriptors.are_none())
    }
}

impl PartialEq for Body {
    /// The same bytes, and the very same descriptors.
    fn eq(&self, other: &Body) -> bool {
        let same = match (self.descriptors_of(), other.descriptors_of()) {
            (None, None) => true,
            (Some(one), Some(other)) => one.are(other),
            _ => false,
        };
        same && self.len() == other.len() && self.to_bytes() == other.to_bytes()
    }
}

impl Eq for Body {}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_tuple("Body");
        shown.field(&self.to_bytes());
        if self.descriptors() > 0 {
            shown.field(&format_args!("{} descriptors", self.descriptors()));
        }
        shown.finish()
    }
}

/// Encodes a value as MessagePack, structs with their field names.
///
/// Names, because compact arrays shift silently under `skip_serializing_if`. The size is not looked at here; it is
/// checked where the message is queued. The descriptor of each [`Fd`](crate::Fd) is duplicated, since a value is only
/// borrowed here.
///
/// # Errors
///
/// When the value's own `Serialize` refuses; when it has more than [`MAX_FDS`](crate::MAX_FDS) descriptors, or this
/// process has none left for a duplicate.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Body, EncodeError> {
    sink::encode(|sink| {
        let mut serializer = rmp_serde::Serializer::new(sink).with_struct_map();
        value.serialize(&mut serializer).map_err(|error| EncodeError { text: error.to_string().into() })
    })
}

/// Encodes a value as [`encode`] does, behind what is in `out` already; `None` if it is there then. A value with
/// descriptors, or with byte strings of 64 KiB or more, which are not copied, is given back as a body of its own, and `out` is as it
/// was.
///
/// # Errors
///
/// As [`encode`]; `out` is as it was.
pub fn encode_onto<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<Option<Body>, EncodeError> {
    sink::encode_onto(out, |sink| {
        let mut serializer = rmp_serde::Serializer::new(sink).with_struct_map();
        value.serialize(&mut serializer).map_err(|error| EncodeError { text: error.to_string().into() })
    })
}

/// Decodes a value as [`decode`] does, out of bytes that lie in somebody else's memory: whatever the value keeps is copied.
///
/// # Errors
///
/// As [`decode`].
pub fn decode_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    descriptors::without(|| {
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
        let value = depth::limited(PhantomData::<T>, &mut deserializer, DEPTH, bytes.len())?;
        match <()>::deserialize(&mut deserializer) {
            Err(PackError::InvalidMarkerRead(_)) => Ok(value),
            _ => Err(DecodeError { text: "bytes follow the value".into() }),
        }
    })
}

/// Decodes a value, which must use up the whole body and nest at most [`DEPTH`] levels deep.
///
/// Every array, map, `Some`, newtype and enum is a level, also in fields that `T` does not know, so a hostile body
/// cannot exhaust the stack of a thread with 1 MiB. Types that serde buffers first (`untagged`, `flatten`) are
/// buffered under the same limit.
///
/// The body stays as it is, so its descriptors are duplicated; [`decode_owned`] moves them.
///
/// # Errors
///
/// When the bytes are no `T`, end early, nest too deeply, or go on after the value; when the value does not name each
/// descriptor of the body once, names another one, or one cannot be duplicated.
pub fn decode<T: DeserializeOwned>(body: &Body) -> Result<T, DecodeError> {
    match &body.more {
        // Not even cloned: a first clone costs an allocation.
        None => descriptors::without(|| decode_bytes(&body.first)),
        Some(_) => decode_with_more(body.clone()),
    }
}

/// Decodes a value as [`decode`] does, out of a body that nobody needs any more: unless there are clones of it, its
/// descriptors and large byte strings are moved. Those that do not get into a value are closed.
///
/// # Errors
///
/// As [`decode`].
pub fn decode_owned<T: DeserializeOwned>(body: Body) -> Result<T, DecodeError> {
    match &body.more {
        None => descriptors::without(|| decode_bytes(&body.first)),
        Some(_) => decode_with_more(body),
    }
}

#[cold]
fn decode_with_more<T: DeserializeOwned>(body: Body) -> Result<T, DecodeError> {
    let bytes = body.to_bytes();
    // Nobody else's if this body is.
    let more = body.more.map(Arc::unwrap_or_clone).unwrap_or_default();
    descriptors::give_out(more.descriptors, || decode_bytes(&bytes), |why| DecodeError { text: why.into() })
}

fn decode_bytes<T: DeserializeOwned>(source: &Bytes) -> Result<T, DecodeError> {
    let bytes: &[u8] = source;
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    let value = byte_string::with_source(source, || {
        depth::limited(PhantomData::<T>, &mut deserializer, DEPTH, bytes.len())
    })?;
    // The deserializer does not say where it stands, but one that finds no further marker stands at the end.
    match <()>::deserialize(&mut deserializer) {
        Err(PackError::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(DecodeError { text: "bytes follow the value".into() }),
    }
}

/// Why a value could not be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeError {
    text: Box<str>,
}

/// Why bytes could not be decoded to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    text: Box<str>,
}

impl From<PackError> for DecodeError {
    fn from(error: PackError) -> Self {
        let text = match error {
            PackError::InvalidMarkerRead(_) | PackError::InvalidDataRead(_) => "the bytes end early".into(),
            PackError::TypeMismatch(marker) => format!("found {marker:?} instead of what the type needs"),
            PackError::OutOfRange => "a number is out of range".into(),
            PackError::LengthMismatch(expected) => format!("an array's length differs from {expected}"),
            PackError::Utf8Error(_) => "a string is not UTF-8".into(),
            PackError::DepthLimitExceeded => "the value nests deeper than allowed".into(),
            PackError::Uncategorized(text) | PackError::Syntax(text) => text,
        };
        DecodeError { text: text.into() }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for EncodeError {}
impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Unit;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Meters(f64);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Empty,
        Circle(Meters),
        Rect(u32, i64),
        Named { name: String, inside: Option<Box<Shape>> },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        unit: Unit,
        shapes: Vec<Shape>,
        wide: (i128, u128),
        map: BTreeMap<i32, char>,
        #[serde(with = "serde_bytes")]
        raw: Vec<u8>,
        numbers: [u8; 3],
        #[serde(skip_serializing_if = "Option::is_none", default)]
        absent: Option<bool>,
        last: (),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Words(Vec<String>),
    }

    fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
        let body = encode(&value).unwrap();
        assert_eq!(decode::<T>(&body).unwrap(), value);
        let longer = [&body.to_bytes()[..], &[0xc0][..]].concat();
        let error = decode::<T>(&Body::from_bytes(longer.into())).unwrap_err();
        assert_eq!(error.to_string(), "bytes follow the value");
        for cut in 0..body.len() {
            decode::<T>(&Body::from_bytes(body.to_bytes().slice(..cut))).unwrap_err();
        }
    }

    #[test]
    fn values_of_every_shape_round_trip() {
        round_trip(());
        round_trip(Unit);
        round_trip(Some(Meters(1.5)));
        round_trip(Either::Number(7));
        round_trip(Either::Words(vec!["a".into()]));
        round_trip(Sample {
            unit: Unit,
            shapes: vec![
                Shape::Empty,
                Shape::Circle(Meters(0.25)),
                Shape::Rect(1, -1),
                Shape::Named { name: "x".into(), inside: Some(Box::new(Shape::Empty)) },
                Shape::Named { name: "y".into(), inside: None },
            ],
            wide: (i128::MIN, u128::MAX),
            map: BTreeMap::from([(-1, 'ä'), (70_000, 'b')]),
            raw: vec![0, 255],
            numbers: [1, 2, 200],
            absent: None,
            last: (),
        });
    }

    #[test]
    fn structs_carry_field_names_so_a_skipped_field_shifts_nothing() {
        #[derive(Serialize)]
        struct Old {
            #[serde(skip_serializing_if = "Option::is_none")]
            first: Option<u8>,
            second: u8,
        }
        #[derive(Debug, PartialEq, Deserialize)]
        struct New {
            #[serde(default)]
            first: Option<u8>,
            second: u8,
        }
        let body = encode(&Old { first: None, second: 2 }).unwrap();
        assert_eq!(decode::<New>(&body).unwrap(), New { first: None, second: 2 });
    }

    #[test]
    fn values_encoded_one_after_the_other_are_decoded_where_they_lie() {
        let mut out = b"before".to_vec();
        assert_eq!(encode_onto(&(7_u8, "x"), &mut out), Ok(None));
        let end = out.len();
        assert_eq!(decode_slice::<(u8, String)>(&out[6..]).unwrap(), (7, "x".to_owned()));
        assert_eq!(decode_slice::<u8>(&[7, 7]).unwrap_err().to_string(), "bytes follow the value");
        // What is shared stays out of it, whatever stands before and after it.
        let large = crate::ByteString::from(vec![1; 1 << 20]);
        let body = encode_onto(&("a", &large, "b"), &mut out).unwrap().expect("a body of its own");
        assert_eq!((out.len(), &out[..6]), (end, &b"before"[..]));
        let (a, bytes, b): (String, crate::ByteString, String) = decode(&body).unwrap();
        assert_eq!((&*a, bytes.into_vec().len(), &*b), ("a", 1 << 20, "b"));
        // What refuses half-way leaves nothing.
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("never"))
            }
        }
        assert_eq!(encode_onto(&("a", Refuses), &mut out).unwrap_err().to_string(), "never");
        assert_eq!(encode_onto(&("a", &large, Refuses), &mut out).unwrap_err().to_string(), "never");
        assert_eq!((out.len(), &out[..6]), (end, &b"before"[..]));
    }

    #[test]
    fn byte_strings_are_one_byte_a_byte() {
        assert_eq!(encode(serde_bytes::Bytes::new(&[200; 100])).unwrap().len(), 102);
    }

    #[test]
    fn depth_counts_every_kind_of_nesting_alike() {
        fn nested(levels: usize) -> Body {
            let mut bytes = vec![0x91; levels];
            bytes.push(0x90);
            Body::from_bytes(bytes.into())
        }
        #[derive(Debug, Deserialize)]
        struct Tree(#[expect(dead_code, reason = "only its depth matters")] Vec<Tree>);

        // A tree is a newtype and an array, two levels a node.
        decode::<Tree>(&nested(DEPTH / 2 - 1)).unwrap();
        let error = decode::<Tree>(&nested(DEPTH / 2)).unwrap_err();
        assert_eq!(error.to_string(), "the value nests deeper than allowed");
        decode::<serde::de::IgnoredAny>(&nested(DEPTH - 1)).unwrap();
        decode::<serde::de::IgnoredAny>(&nested(DEPTH)).unwrap_err();
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let text = |body: &Body| decode::<Vec<u8>>(body).unwrap_err().to_string();
        assert_eq!(text(&Body::default()), "the bytes end early");
        assert_eq!(text(&encode(&[300]).unwrap()), "invalid value: integer `300`, expected u8");
        let error = decode::<Unit>(&encode("text").unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "invalid type: string \"text\", expected unit struct Unit");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn arbitrary_bytes_decode_or_fail_but_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let body = Body::from_bytes(bytes.into());
            let _ = decode::<Sample>(&body);
            let _ = decode::<Shape>(&body);
            let _ = decode::<Either>(&body);
            let _ = decode::<BTreeMap<String, Vec<Option<Meters>>>>(&body);
        }

        #[test]
        fn collections_round_trip(value in prop::collection::btree_map(".{0,8}", prop::collection::vec(any::<Option<i64>>(), 0..20), 0..20)) {
            let body = encode(&value).unwrap();
            prop_assert_eq!(decode::<BTreeMap<String, Vec<Option<i64>>>>(&body).unwrap(), value);
        }
    }
}
