//! One log event as bytes that a pipe takes whole or not at all.
//!
//! ```text
//! u32 length | [ lost, pid, incarnation, path, level, target, name, file, line, spans, trace, message, fields ]
//! ```
//!
//! A write of up to [`LOG_RECORD`] bytes to a pipe is never cut and never mixed with another's: so threads need no lock
//! to share one, and a writer that dies leaves no half of a record. What would be longer is cut, and says so.

use bytes::{BufMut, BytesMut};

use crate::WireError;
use crate::limits::LOG_RECORD;
use crate::pack::{self, NIL, Reader};

/// Most bytes of the texts in a head; together with the numbers they leave a good third of the record to message and
/// fields.
const PATH: usize = 1024;
const NAME: usize = 256;
const SPANS: usize = 768;
/// Least room for the message of an event with many fields.
const MESSAGE: usize = 512;
/// Most bytes of one value.
const VALUE: usize = 2048;
/// Where a text has been cut.
const CUT: &str = " […]";

/// An event without its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogHead<'a> {
    /// How many events before it were dropped, since there was no room for them.
    pub lost: u64,
    /// The process it happened in.
    pub pid: u32,
    /// Which incarnation of its seat that is.
    pub incarnation: u64,
    /// Its place in the tree.
    pub path: &'a str,
    /// 1 for an error, to 5 for a trace.
    pub level: u8,
    /// The event's target.
    pub target: &'a str,
    /// The event's name, if it has one of its own.
    pub name: Option<&'a str>,
    /// The source file, if known.
    pub file: Option<&'a str>,
    /// The line in it, if known.
    pub line: Option<u32>,
    /// The spans it happened in, outermost first, as one text.
    pub spans: Option<&'a str>,
    /// Trace context; opaque here, empty for none.
    pub trace: &'a [u8],
    /// What it says.
    pub message: Option<&'a str>,
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogValue<'a> {
    /// A truth value.
    Bool(bool),
    /// A signed integer.
    I64(i64),
    /// An unsigned integer.
    U64(u64),
    /// A floating point number.
    F64(f64),
    /// A string.
    Str(&'a str),
    /// Anything else, as it shows itself.
    Shown(&'a str),
}

/// A field of an event: its name, and its value.
pub type LogField<'a> = (&'a str, LogValue<'a>);

/// The fields of an event, encoded one by one. What goes beyond a record's size is left out.
#[derive(Debug, Default)]
pub struct LogFields {
    bytes: BytesMut,
}

impl LogFields {
    /// One more field. A long text is cut.
    pub fn push(&mut self, name: &str, value: LogValue<'_>) {
        if self.bytes.len() > LOG_RECORD {
            return;
        }
        put_text(&mut self.bytes, name, NAME);
        let out = &mut self.bytes;
        match value {
            LogValue::Bool(value) => out.put_u8(if value { 0xc3 } else { 0xc2 }),
            LogValue::I64(value) => {
                out.put_u8(0xd3);
                out.put_i64(value);
            }
            LogValue::U64(value) => {
                out.put_u8(0xcf);
                out.put_u64(value);
            }
            LogValue::F64(value) => {
                out.put_u8(0xcb);
                out.put_f64(value);
            }
            LogValue::Str(value) => {
                let (value, rest) = cut(value, VALUE);
                out.put_u8(0xda);
                // At most VALUE and the mark.
                out.put_u16((value.len() + rest.len()) as u16);
                out.put_slice(value.as_bytes());
                out.put_slice(rest.as_bytes());
            }
            LogValue::Shown(value) => put_text(out, value, VALUE),
        }
    }
}

/// Appends one record, at most [`LOG_RECORD`] bytes of it.
pub fn put_log_record(out: &mut BytesMut, head: &LogHead<'_>, fields: &LogFields) {
    let start = out.len();
    out.reserve(256 + head.message.map_or(0, str::len).min(LOG_RECORD) + fields.bytes.len());
    out.put_slice(&[0, 0, 0, 0, pack::array::<13>()]);
    pack::put_uint(out, head.lost);
    pack::put_uint(out, u64::from(head.pid));
    pack::put_uint(out, head.incarnation);
    put_text(out, head.path, PATH);
    pack::put_uint(out, u64::from(head.level));
    put_text(out, head.target, NAME);
    put_text_or_nil(out, head.name, NAME);
    put_text_or_nil(out, head.file, NAME);
    match head.line {
        Some(line) => pack::put_uint(out, u64::from(line)),
        None => out.put_u8(NIL),
    }
    put_text_or_nil(out, head.spans, SPANS);
    // A trace context that is longer is none that any reader of ours would understand.
    let trace = if head.trace.len() <= 64 { head.trace } else { &[] };
    pack::put_bin_head(out, trace.len());
    out.put_slice(trace);

    // Heads of the message and of the fields, and the mark of a message that is cut.
    let room = LOG_RECORD - (out.len() - start) - 16;
    put_text_or_nil(out, head.message, room.saturating_sub(fields.bytes.len()).max(MESSAGE.min(room)));
    let room = LOG_RECORD - (out.len() - start) - 4;
    let fields = &fields.bytes[..whole_fields(&fields.bytes, room)];
    pack::put_bin_head(out, fields.len());
    out.put_slice(fields);
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// The length of the first record in `bytes` with its prefix, or `None` if it is not all there.
///
/// # Errors
///
/// [`WireError::Oversized`] when the prefix claims more than a record may have.
pub fn whole_log_record(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(prefix) = bytes.first_chunk::<4>() else { return Ok(None) };
    let claimed = u32::from_be_bytes(*prefix) as usize;
    if claimed > LOG_RECORD - 4 {
        return Err(WireError::Oversized { claimed, limit: LOG_RECORD - 4 });
    }
    Ok(Some(claimed + 4).filter(|whole| *whole <= bytes.len()))
}

/// Reads one whole record, its prefix included. Nothing of it is copied.
///
/// # Errors
///
/// [`WireError::Malformed`] when it is not what this file says.
pub fn read_log_record(record: &[u8]) -> Result<(LogHead<'_>, Vec<LogField<'_>>), WireError> {
    let mut reader = Reader::new(record);
    reader.take(4)?;
    if reader.byte()? != pack::array::<13>() {
        return Err(WireError::Malformed("an array of thirteen elements is expected"));
    }
    let head = LogHead {
        lost: reader.uint()?,
        pid: small(reader.uint()?)?,
        incarnation: reader.uint()?,
        path: text(reader.bin()?)?,
        level: match reader.uint()? {
            level @ 1..=5 => level as u8,
            _ => return Err(WireError::Malformed("a level is 1 to 5")),
        },
        target: text(reader.bin()?)?,
        name: text_or_nil(reader.bin_or_nil()?)?,
        file: text_or_nil(reader.bin_or_nil()?)?,
        line: reader.uint_or_nil()?.map(small).transpose()?,
        spans: text_or_nil(reader.bin_or_nil()?)?,
        trace: reader.bin()?,
        message: text_or_nil(reader.bin_or_nil()?)?,
    };
    let mut fields_reader = Reader::new(reader.bin()?);
    reader.end()?;
    let mut fields = Vec::new();
    while !fields_reader.is_empty() {
        fields.push(field(&mut fields_reader)?);
    }
    Ok((head, fields))
}

fn field<'a>(reader: &mut Reader<'a>) -> Result<LogField<'a>, WireError> {
    let name = text(reader.bin()?)?;
    let value = match reader.byte()? {
        0xc2 => LogValue::Bool(false),
        0xc3 => LogValue::Bool(true),
        0xd3 => LogValue::I64(reader.number::<8>()? as i64),
        0xcf => LogValue::U64(reader.number::<8>()?),
        0xcb => LogValue::F64(f64::from_bits(reader.number::<8>()?)),
        0xda => {
            let length = reader.number::<2>()? as usize;
            LogValue::Str(text(reader.take(length)?)?)
        }
        0xc4 => {
            let length = reader.number::<1>()? as usize;
            LogValue::Shown(text(reader.take(length)?)?)
        }
        0xc5 => {
            let length = reader.number::<2>()? as usize;
            LogValue::Shown(text(reader.take(length)?)?)
        }
        _ => return Err(WireError::Malformed("a value of a field is expected")),
    };
    Ok((name, value))
}

/// How many bytes the fields take that fit whole.
fn whole_fields(bytes: &[u8], room: usize) -> usize {
    if bytes.len() <= room {
        return bytes.len();
    }
    let mut reader = Reader::new(bytes);
    let mut whole = 0;
    // They are our own, so each of them can be read.
    while field(&mut reader).is_ok() && bytes.len() - reader.left() <= room {
        whole = bytes.len() - reader.left();
    }
    whole
}

fn put_text(out: &mut BytesMut, value: &str, most: usize) {
    let (value, rest) = cut(value, most);
    pack::put_bin_head(out, value.len() + rest.len());
    out.put_slice(value.as_bytes());
    out.put_slice(rest.as_bytes());
}

/// Nothing is nil; so is an empty text.
fn put_text_or_nil(out: &mut BytesMut, value: Option<&str>, most: usize) {
    match value.filter(|value| !value.is_empty()) {
        Some(value) => put_text(out, value, most),
        None => out.put_u8(NIL),
    }
}

/// The text, or as much of it as fits and a mark that it was longer.
fn cut(value: &str, most: usize) -> (&str, &'static str) {
    if value.len() <= most {
        return (value, "");
    }
    let mut end = most.saturating_sub(CUT.len());
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    (&value[..end], CUT)
}

fn text(bytes: &[u8]) -> Result<&str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::Malformed("a text is not UTF-8"))
}

fn text_or_nil(bytes: &[u8]) -> Result<Option<&str>, WireError> {
    Ok(Some(text(bytes)?).filter(|text| !text.is_empty()))
}

fn small(number: u64) -> Result<u32, WireError> {
    u32::try_from(number).map_err(|_| WireError::Malformed("a number is too large"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head<'a>() -> LogHead<'a> {
        LogHead {
            lost: 3,
            pid: 4711,
            incarnation: 2,
            path: "/shop/web",
            level: 3,
            target: "shop::web",
            name: None,
            file: Some("src/web.rs"),
            line: Some(17),
            spans: Some("request{id=7}"),
            trace: &[],
            message: Some("served"),
        }
    }

    fn record(head: &LogHead<'_>, fields: &LogFields) -> BytesMut {
        let mut out = BytesMut::new();
        put_log_record(&mut out, head, fields);
        assert!(out.len() <= LOG_RECORD, "{} bytes", out.len());
        assert_eq!(whole_log_record(&out), Ok(Some(out.len())));
        out
    }

    #[test]
    fn values_of_every_kind_come_back() {
        let values = [
            ("yes", LogValue::Bool(true)),
            ("no", LogValue::Bool(false)),
            ("below", LogValue::I64(-5)),
            ("above", LogValue::U64(u64::MAX)),
            ("half", LogValue::F64(0.5)),
            ("name", LogValue::Str("ä")),
            ("shown", LogValue::Shown("Some(1)")),
        ];
        let mut fields = LogFields::default();
        values.iter().for_each(|(name, value)| fields.push(name, *value));
        let bytes = record(&head(), &fields);
        let (read, fields) = read_log_record(&bytes).unwrap();
        assert_eq!(read, head());
        assert_eq!(fields, values);
        for cut in 0..bytes.len() {
            assert_eq!(whole_log_record(&bytes[..cut]), Ok(None));
            read_log_record(&bytes[..cut]).unwrap_err();
        }
    }

    #[test]
    fn what_is_too_long_is_cut_and_the_record_stays_whole() {
        let long = "ä".repeat(10_000);
        let mut fields = LogFields::default();
        fields.push("short", LogValue::U64(1));
        for _ in 0..10 {
            fields.push(&long, LogValue::Str(&long));
            fields.push("shown", LogValue::Shown(&long));
        }
        let long = LogHead {
            path: &long,
            target: &long,
            name: Some(&long),
            file: Some(&long),
            spans: Some(&long),
            message: Some(&long),
            ..head()
        };
        let bytes = record(&long, &fields);
        let (read, fields) = read_log_record(&bytes).unwrap();
        assert!(read.message.unwrap().ends_with("ä […]") && read.message.unwrap().len() >= MESSAGE);
        assert!(read.path.len() <= PATH && read.target.ends_with(CUT));
        assert_eq!(fields[0], ("short", LogValue::U64(1)));
        // Without fields the message has all the room.
        let plain = LogHead { message: long.message, ..head() };
        let bytes = record(&plain, &LogFields::default());
        assert!(read_log_record(&bytes).unwrap().0.message.unwrap().len() > 3900);
    }

    #[test]
    fn an_oversized_record_is_refused_by_its_prefix() {
        let error = whole_log_record(&[0xff; 4]).unwrap_err();
        assert_eq!(error, WireError::Oversized { claimed: u32::MAX as usize, limit: LOG_RECORD - 4 });
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused_but_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = whole_log_record(&bytes);
            let _ = read_log_record(&bytes);
        }

        #[test]
        fn a_record_with_one_byte_changed_is_read_or_refused(at in 4_usize..100, byte: u8) {
            let mut fields = LogFields::default();
            fields.push("name", LogValue::Str("value"));
            fields.push("shown", LogValue::Shown("x"));
            let mut bytes = record(&head(), &fields);
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
            let _ = read_log_record(&bytes);
        }
    }
}
