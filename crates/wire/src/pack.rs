//! The few MessagePack forms that frames are made of: unsigned integers, nil, byte strings, one fixed array.

use bytes::BytesMut;

use crate::WireError;

pub(crate) const NIL: u8 = 0xc0;

/// The head of an array of `N` elements; `N` is at most 15.
pub(crate) const fn array<const N: u8>() -> u8 {
    assert!(N <= 15);
    0x90 | N
}

/// Where forms are written to.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);
}

impl Put for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Up to `N` bytes that are put together before they go anywhere, which spares each of them a look for room there.
pub(crate) struct Short<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Short<N> {
    pub(crate) fn new() -> Self {
        Short { bytes: [0; N], len: 0 }
    }

    /// Moves them there.
    #[inline]
    pub(crate) fn move_to(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.bytes[..self.len]);
        self.len = 0;
    }
}

impl<const N: usize> Put for Short<N> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }
}

#[inline]
pub(crate) fn put_uint(out: &mut impl Put, n: u64) {
    if n < 0x80 {
        out.put(&[n as u8]);
    } else if n <= u64::from(u8::MAX) {
        out.put(&[0xcc, n as u8]);
    } else if n <= u64::from(u16::MAX) {
        let [a, b] = (n as u16).to_be_bytes();
        out.put(&[0xcd, a, b]);
    } else if n <= u64::from(u32::MAX) {
        let [a, b, c, d] = (n as u32).to_be_bytes();
        out.put(&[0xce, a, b, c, d]);
    } else {
        let [a, b, c, d, e, f, g, h] = n.to_be_bytes();
        out.put(&[0xcf, a, b, c, d, e, f, g, h]);
    }
}

/// Writes the head of a byte string; `len` never exceeds a frame, whose length is a `u32`.
#[inline]
pub(crate) fn put_bin_head(out: &mut impl Put, len: usize) {
    if len <= usize::from(u8::MAX) {
        out.put(&[0xc4, len as u8]);
    } else if len <= usize::from(u16::MAX) {
        let [a, b] = (len as u16).to_be_bytes();
        out.put(&[0xc5, a, b]);
    } else {
        let [a, b, c, d] = (len as u32).to_be_bytes();
        out.put(&[0xc6, a, b, c, d]);
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

    #[inline]
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, WireError> {
        let (&first, rest) = self.rest.split_first().ok_or(SHORT)?;
        self.rest = rest;
        Ok(first)
    }

    /// A number of this many bytes, without a head.
    #[inline]
    pub(crate) fn number<const N: usize>(&mut self) -> Result<u64, WireError> {
        Ok(self.take(N)?.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    #[inline]
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

    #[inline]
    pub(crate) fn uint_or_nil(&mut self) -> Result<Option<u64>, WireError> {
        if self.skip_nil() { Ok(None) } else { self.uint().map(Some) }
    }

    pub(crate) fn bin(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.bin_head()?;
        self.take(len)
    }

    /// How many bytes the byte string has that follows.
    #[inline]
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
    #[inline]
    pub(crate) fn bin_or_nil(&mut self) -> Result<&'a [u8], WireError> {
        if self.skip_nil() { Ok(&[]) } else { self.bin() }
    }

    #[inline]
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
