//! The few MessagePack forms that frames are made of: unsigned integers, nil, byte strings, one fixed array.

use bytes::{BufMut, BytesMut};

use crate::WireError;

pub(crate) const NIL: u8 = 0xc0;

/// The head of an array of `N` elements; `N` is at most 15.
pub(crate) const fn array<const N: u8>() -> u8 {
    assert!(N <= 15);
    0x90 | N
}

pub(crate) fn put_uint(out: &mut BytesMut, n: u64) {
    if n < 0x80 {
        out.put_u8(n as u8);
    } else if n <= u64::from(u8::MAX) {
        out.put_slice(&[0xcc, n as u8]);
    } else if n <= u64::from(u16::MAX) {
        out.put_u8(0xcd);
        out.put_u16(n as u16);
    } else if n <= u64::from(u32::MAX) {
        out.put_u8(0xce);
        out.put_u32(n as u32);
    } else {
        out.put_u8(0xcf);
        out.put_u64(n);
    }
}

/// Writes the head of a byte string; `len` never exceeds a frame, whose length is a `u32`.
pub(crate) fn put_bin_head(out: &mut BytesMut, len: usize) {
    if len <= usize::from(u8::MAX) {
        out.put_slice(&[0xc4, len as u8]);
    } else if len <= usize::from(u16::MAX) {
        out.put_u8(0xc5);
        out.put_u16(len as u16);
    } else {
        out.put_u8(0xc6);
        out.put_u32(len as u32);
    }
}

/// Reads forms off the front of one frame. Lengths are compared with what is there before anything is done.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

const SHORT: WireError = WireError::Malformed("the frame ends early");

impl<'a> Reader<'a> {
    pub(crate) fn new(frame: &'a [u8]) -> Self {
        Reader { rest: frame }
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, WireError> {
        let (&first, rest) = self.rest.split_first().ok_or(SHORT)?;
        self.rest = rest;
        Ok(first)
    }

    /// A number of this many bytes, without a head.
    pub(crate) fn number<const N: usize>(&mut self) -> Result<u64, WireError> {
        Ok(self.take(N)?.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    pub(crate) fn uint(&mut self) -> Result<u64, WireError> {
        match self.byte()? {
            n @ 0..=0x7f => Ok(u64::from(n)),
            0xcc => self.number::<1>(),
            0xcd => self.number::<2>(),
            0xce => self.number::<4>(),
            0xcf => self.number::<8>(),
            _ => Err(WireError::Malformed("an unsigned integer is expected")),
        }
    }

    pub(crate) fn uint_or_nil(&mut self) -> Result<Option<u64>, WireError> {
        if self.skip_nil() { Ok(None) } else { self.uint().map(Some) }
    }

    pub(crate) fn bin(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.bin_head()?;
        self.take(len)
    }

    /// How many bytes the byte string has that follows.
    pub(crate) fn bin_head(&mut self) -> Result<usize, WireError> {
        let len = match self.byte()? {
            0xc4 => self.number::<1>()?,
            0xc5 => self.number::<2>()?,
            0xc6 => self.number::<4>()?,
            _ => return Err(WireError::Malformed("a byte string is expected")),
        };
        usize::try_from(len).map_err(|_| SHORT)
    }

    /// A byte string, or nothing for nil.
    pub(crate) fn bin_or_nil(&mut self) -> Result<&'a [u8], WireError> {
        if self.skip_nil() { Ok(&[]) } else { self.bin() }
    }

    fn skip_nil(&mut self) -> bool {
        let nil = self.rest.first() == Some(&NIL);
        if nil {
            self.rest = &self.rest[1..];
        }
        nil
    }

    /// Bytes that are not read yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The frame must be used up.
    pub(crate) fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::Malformed("bytes follow the frame's array"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_round_trip_at_every_width() {
        for n in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
            let mut out = BytesMut::new();
            put_uint(&mut out, n);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.uint(), Ok(n));
            assert_eq!(reader.end(), Ok(()));
            for cut in 0..out.len() {
                assert_eq!(Reader::new(&out[..cut]).uint(), Err(SHORT));
            }
        }
    }

    #[test]
    fn a_byte_string_longer_than_the_frame_is_refused() {
        assert_eq!(Reader::new(&[0xc6, 0xff, 0xff, 0xff, 0xff, 1]).bin(), Err(SHORT));
        assert_eq!(Reader::new(&[0xc4, 2, 1]).bin(), Err(SHORT));
        assert_eq!(Reader::new(&[0xc4, 1, 7]).bin(), Ok(&[7][..]));
    }
}
