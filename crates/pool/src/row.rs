//! Arguments or results of many tasks in a row: each with its length before it, in one piece of memory.

use bytes::Bytes;
use hatchery_wire::{ALONE_FROM, Body};

/// Bytes of a length.
const LENGTH: usize = 4;

/// What lies in a row, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) bytes: Bytes,
    pub(crate) count: u32,
}

/// What one task is given, or many.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// Many tasks, or one, whose arguments are small.
    Row(Row),
    /// One, whose arguments are large or have descriptors.
    Alone(Body),
}

impl Load {
    pub(crate) fn count(&self) -> u32 {
        match self {
            Load::Row(row) => row.count,
            Load::Alone(_) => 1,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Load::Row(row) => row.bytes.len(),
            Load::Alone(body) => body.len(),
        }
    }

    /// Takes the first so many out of it, all of them at most.
    pub(crate) fn split_to(&mut self, count: u32) -> Load {
        match self {
            Load::Row(row) => Load::Row(row.split_to(count)),
            Load::Alone(_) if count > 0 => std::mem::replace(self, Load::Row(Row::default())),
            Load::Alone(_) => Load::Row(Row::default()),
        }
    }
}

impl Row {
    /// Takes the first so many out of it.
    pub(crate) fn split_to(&mut self, count: u32) -> Row {
        let count = count.min(self.count);
        let mut rest = &self.bytes[..];
        for _ in 0..count {
            let _ = next(&mut rest);
        }
        let bytes = self.bytes.split_to(self.bytes.len() - rest.len());
        self.count -= count;
        Row { bytes, count }
    }
}

/// The next one of a row, if there is one that is whole.
#[inline]
pub(crate) fn next<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk::<LENGTH>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let one = behind.get(..length)?;
    *rest = &behind[length..];
    Some(one)
}

/// Puts one behind the others.
#[inline]
pub(crate) fn put(row: &mut Vec<u8>, one: &[u8]) {
    // What is put has passed limits far below that.
    row.extend_from_slice(&(one.len() as u32).to_le_bytes());
    row.extend_from_slice(one);
}

/// Has one written behind the others, with its length before it. Whoever writes gives something back instead, or fails:
/// then the row is as it was.
#[inline]
pub(crate) fn put_with<T, E>(
    row: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let begins = row.len();
    row.extend_from_slice(&[0; LENGTH]);
    // Nothing large is moved where nothing is given back.
    match write(row) {
        Ok(None) => {
            let length = (row.len() - begins - LENGTH) as u32;
            row[begins..begins + LENGTH].copy_from_slice(&length.to_le_bytes());
            Ok(None)
        }
        other => {
            row.truncate(begins);
            other
        }
    }
}

/// What was put behind so many bytes, if it is large: taken out of the row, to travel by itself.
pub(crate) fn take_large(row: &mut Vec<u8>, begins: usize) -> Option<Body> {
    if row.len() - begins <= ALONE_FROM {
        return None;
    }
    let one = if begins == 0 { std::mem::take(row) } else { row.split_off(begins) };
    Some(Body::from_bytes(Bytes::from(one).slice(LENGTH..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(all: &[&[u8]]) -> Row {
        let mut bytes = Vec::new();
        all.iter().for_each(|one| put(&mut bytes, one));
        Row { bytes: bytes.into(), count: all.len() as u32 }
    }

    #[test]
    fn a_row_is_split_where_one_ends() {
        let mut rest = row(&[b"a", b"", b"ccc"]);
        assert_eq!(rest.split_to(2), row(&[b"a", b""]));
        assert_eq!(rest, row(&[b"ccc"]));
        assert_eq!(rest.split_to(9), row(&[b"ccc"]));
        assert_eq!(rest, row(&[]));
        let mut alone = Load::Alone(Body::from_bytes(Bytes::from_static(b"x")));
        assert_eq!(alone.split_to(0).count(), 0);
        assert!(matches!(alone.split_to(1), Load::Alone(body) if body.len() == 1));
        assert_eq!(alone.count(), 0, "it is given away once");
    }

    #[test]
    fn what_is_not_written_leaves_no_trace() {
        let mut bytes = Vec::new();
        put(&mut bytes, b"a");
        assert_eq!(
            put_with::<u8, ()>(&mut bytes, |out| {
                out.push(1);
                Err(())
            }),
            Err(())
        );
        assert_eq!(
            put_with::<u8, ()>(&mut bytes, |out| {
                out.push(1);
                Ok(Some(7))
            }),
            Ok(Some(7))
        );
        assert_eq!(
            put_with::<u8, ()>(&mut bytes, |out| {
                out.push(b'b');
                Ok(None)
            }),
            Ok(None)
        );
        assert_eq!(Bytes::from(bytes), row(&[b"a", b"b"]).bytes);
    }

    #[test]
    fn a_row_of_a_peer_that_lies_is_at_its_end() {
        for bytes in [&b""[..], b"\x01\0\0", b"\x02\0\0\0a", b"\xff\xff\xff\xff"] {
            let mut rest = bytes;
            assert_eq!(next(&mut rest), None);
            assert_eq!(rest, bytes);
        }
    }
}
