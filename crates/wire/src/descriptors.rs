//! Descriptors of encoded values: how they get in and out, and what has arrived of them.
//!
//! Serde gives a value no context, so whoever encodes says to this thread that it does ([`collect`]), and whoever
//! decodes does ([`give_out`]). Between the two a value has an index in place of each of its descriptors.
//!
//! ```text
//!  encode ─▶ collect ◀── put(fd) ── Fd::serialize          [bytes with index 0, 1 …] + [fd 0, fd 1 …]
//!  decode ─▶ give_out ── take(0) ─▶ Fd::deserialize        each of them exactly once
//! ```

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::WireError;
use crate::limits::MAX_FDS;

const NOWHERE_ELSE: &str = "a descriptor can only travel in a hatchery message";

/// The descriptors of one encoded value. Clones share them; they are closed with the last one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Descriptors(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    fds: Vec<OwnedFd>,
    /// There were more, for which this process had no room when they arrived.
    lost: bool,
}

impl Descriptors {
    fn new(fds: Vec<OwnedFd>, lost: bool) -> Descriptors {
        Descriptors((lost || !fds.is_empty()).then(|| Arc::new(Held { fds, lost })))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.fds.len())
    }

    /// Whether there are none, and were none.
    pub(crate) fn are_none(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn borrowed(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().flat_map(|held| held.fds.iter().map(AsFd::as_fd))
    }

    /// Whether both are the very same.
    pub(crate) fn are(&self, other: &Descriptors) -> bool {
        matches!((&self.0, &other.0), (Some(one), Some(other)) if Arc::ptr_eq(one, other))
    }
}

/// What this thread is at. The descriptors themselves are elsewhere, so that values without any need not look there.
#[derive(Clone, Copy)]
struct At {
    doing: Doing,
    /// How many descriptors the value that is being encoded has got.
    put: u8,
    /// Where in [`PUT`] they begin.
    from: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Doing {
    Nothing,
    Encoding,
    /// A value without descriptors.
    Decoding,
    /// A value whose descriptors are [`GIVEN`].
    GivingOut,
}

thread_local! {
    static AT: Cell<At> = const { Cell::new(At { doing: Doing::Nothing, put: 0, from: 0 }) };
    /// What has been put into the value that is being encoded, after that of values around it.
    static PUT: RefCell<Vec<OwnedFd>> = const { RefCell::new(Vec::new()) };
    static GIVEN: RefCell<Option<Given>> = const { RefCell::new(None) };
}

/// As long as it lives, this thread is at something. What it was at before goes on afterwards, also after a panic in
/// somebody's `Serialize`.
struct Scope {
    before: At,
}

impl Scope {
    #[inline]
    fn new(doing: Doing) -> Scope {
        let before = AT.get();
        AT.set(At { doing, put: 0, from: before.from + u32::from(before.put) });
        Scope { before }
    }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        let at = AT.replace(self.before);
        if at.put > 0 {
            // Nobody took them: encoding has failed.
            drop(put_since(at.from));
        }
    }
}

#[cold]
fn put_since(from: u32) -> Vec<OwnedFd> {
    PUT.with_borrow_mut(|put| put.split_off(from as usize))
}

/// Encodes a value, and collects the descriptors that it puts in.
#[inline]
pub(crate) fn collect<T>(encode: impl FnOnce() -> T) -> (T, Descriptors) {
    let _scope = Scope::new(Doing::Encoding);
    let encoded = encode();
    (encoded, if AT.get().put == 0 { Descriptors::default() } else { take_put() })
}

/// What has been put into the value.
#[cold]
fn take_put() -> Descriptors {
    let at = AT.get();
    AT.set(At { put: 0, ..at });
    Descriptors::new(put_since(at.from), false)
}

/// Adds a duplicate of a descriptor to the value that is being encoded; gives its index.
///
/// # Errors
/// None is being encoded, it has too many, or there is no descriptor left for the duplicate.
pub(crate) fn put(fd: BorrowedFd<'_>) -> Result<usize, String> {
    let at = AT.get();
    if at.doing != Doing::Encoding {
        return Err(NOWHERE_ELSE.to_owned());
    }
    let index = usize::from(at.put);
    if index >= MAX_FDS {
        return Err(format!(
            "a message carries at most {MAX_FDS} descriptors: send them in several messages"
        ));
    }
    let duplicate = fd.try_clone_to_owned().map_err(no_duplicate)?;
    PUT.with_borrow_mut(|put| put.push(duplicate));
    AT.set(At { put: at.put + 1, ..at });
    Ok(index)
}

/// Decodes a value that comes without descriptors.
#[inline]
pub(crate) fn without<T>(decode: impl FnOnce() -> T) -> T {
    let _scope = Scope::new(Doing::Decoding);
    decode()
}

/// Decodes a value, which must take each of the descriptors out exactly once.
pub(crate) fn give_out<T, E>(
    descriptors: Descriptors,
    decode: impl FnOnce() -> Result<T, E>,
    refuse: impl FnOnce(&str) -> E,
) -> Result<T, E> {
    /// Puts back what was given out before, and closes what is left.
    struct Before(Option<Given>);
    impl Drop for Before {
        fn drop(&mut self) {
            drop(GIVEN.replace(self.0.take()));
        }
    }
    let all: u32 = (1 << descriptors.len()) - 1;
    let lost = descriptors.0.as_ref().is_some_and(|held| held.lost);
    let source = match descriptors.0.map(Arc::try_unwrap) {
        None => Source::Own(Vec::new()),
        Some(Ok(held)) => Source::Own(held.fds.into_iter().map(Some).collect()),
        Some(Err(shared)) => Source::Shared(shared),
    };
    let _before = Before(GIVEN.replace(Some(Given { source, named: 0, lost })));
    let _scope = Scope::new(Doing::GivingOut);
    let value = decode()?;
    let named = GIVEN.with_borrow(|given| given.as_ref().map_or(0, |given| given.named));
    match named == all {
        _ if lost => Err(refuse(LOST)),
        true => Ok(value),
        false => Err(refuse("the message has a descriptor that it does not name")),
    }
}

/// The descriptor of this index out of the value that is being decoded.
///
/// # Errors
/// None is being decoded, there is no such descriptor or it was named before, or none left for a duplicate.
pub(crate) fn take(index: usize) -> Result<OwnedFd, String> {
    match AT.get().doing {
        Doing::Decoding => Err(NOT_THERE.to_owned()),
        Doing::GivingOut => GIVEN.with_borrow_mut(|given| match given {
            Some(given) => given.take(index),
            None => Err(NOT_THERE.to_owned()),
        }),
        Doing::Nothing | Doing::Encoding => Err(NOWHERE_ELSE.to_owned()),
    }
}

/// Descriptors to be given out.
struct Given {
    source: Source,
    /// A bit for each that has been named.
    named: u32,
    lost: bool,
}

enum Source {
    /// Nobody else has them: they are moved.
    Own(Vec<Option<OwnedFd>>),
    /// They are duplicated.
    Shared(Arc<Held>),
}

impl Given {
    fn take(&mut self, index: usize) -> Result<OwnedFd, String> {
        let there = match &self.source {
            Source::Own(fds) => fds.len(),
            Source::Shared(held) => held.fds.len(),
        };
        if index >= there {
            return Err(if self.lost { LOST } else { NOT_THERE }.to_owned());
        }
        let twice = || "the message names a descriptor twice".to_owned();
        if self.named & 1 << index != 0 {
            return Err(twice());
        }
        self.named |= 1 << index;
        match &mut self.source {
            Source::Own(fds) => fds[index].take().ok_or_else(twice),
            Source::Shared(held) => held.fds[index].try_clone().map_err(no_duplicate),
        }
    }
}

const NOT_THERE: &str = "the message names a descriptor that it does not have";

const LOST: &str = "descriptors of the message were lost, since this process had no free ones left when it arrived: \
                    close some, or raise its limit of open files";

fn no_duplicate(error: std::io::Error) -> String {
    format!(
        "a descriptor of the message could not be duplicated: {error}: close some, or raise this process's limit of \
         open files"
    )
}

/// Descriptors that have been received and that no frame has taken yet.
///
/// A stream glues bytes of several sends together, so where descriptors arrive does not say whose they are. But those of
/// one send arrive together and in order, and a frame that announces some begins a send of its own.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(VecDeque<Arrival>);

/// What came with one send.
#[derive(Debug)]
struct Arrival {
    fds: Vec<OwnedFd>,
    /// The system has dropped others.
    cut: bool,
}

impl Arrivals {
    /// These have come with one send, from which the system may have dropped some.
    pub(crate) fn came(&mut self, fds: Vec<OwnedFd>, cut: bool) {
        self.0.push_back(Arrival { fds, cut });
    }

    /// Of how many sends there are some left.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those of the next frame, which announces so many.
    ///
    /// # Errors
    /// The frame and what came with it do not match; then they are closed.
    pub(crate) fn take(&mut self, announced: usize) -> Result<Descriptors, WireError> {
        let fewer = WireError::Descriptors("fewer arrived than the frame announces");
        let Arrival { fds, cut } = self.0.pop_front().ok_or_else(|| fewer.clone())?;
        if fds.len() > announced || (cut && fds.len() == announced) {
            return Err(MORE_CAME);
        }
        // There was room for as many as a frame may announce. So it is this process that had no place for them.
        if fds.len() < announced && !cut {
            return Err(fewer);
        }
        Ok(Descriptors::new(fds, cut))
    }
}

/// What a peer does that sends descriptors nobody expects.
pub(crate) const MORE_CAME: WireError = WireError::Descriptors("more arrived than the frames announce");

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn some(n: usize) -> Vec<OwnedFd> {
        (0..n).map(|_| null()).collect()
    }

    #[test]
    fn arrivals_go_to_the_frames_that_announce_them() {
        let mut arrivals = Arrivals::default();
        arrivals.came(some(2), false);
        arrivals.came(some(16), false);
        assert_eq!(arrivals.take(2).unwrap().len(), 2);
        assert_eq!(arrivals.take(16).unwrap().len(), 16);
        assert_eq!(arrivals.len(), 0);
    }

    #[test]
    fn what_does_not_match_is_the_peers_fault_and_what_was_cut_is_not() {
        let take = |came: usize, cut: bool, announced: usize| {
            let mut arrivals = Arrivals::default();
            arrivals.came(some(came), cut);
            arrivals.take(announced).map(|descriptors| descriptors.0.is_some_and(|held| held.lost))
        };
        let fewer = Err(WireError::Descriptors("fewer arrived than the frame announces"));
        assert_eq!(Arrivals::default().take(1).map(drop), fewer.clone().map(drop));
        assert_eq!(take(2, false, 2), Ok(false));
        assert_eq!(take(1, false, 2), fewer);
        assert_eq!(take(3, false, 2), Err(MORE_CAME));
        assert_eq!(take(16, true, 16), Err(MORE_CAME));
        assert_eq!(take(0, true, 16), Ok(true));
        assert_eq!(take(1, true, 2), Ok(true));
    }

    #[test]
    fn scopes_do_not_see_each_other() {
        let (put_in, outer) = collect(|| {
            assert_eq!(put(null().as_fd())?, 0);
            let (index, inner) = collect(|| put(null().as_fd()));
            assert_eq!((index?, inner.len()), (0, 1));
            assert_eq!(without(|| take(0)).unwrap_err(), NOT_THERE);
            assert_eq!(take(0).unwrap_err(), NOWHERE_ELSE);
            put(null().as_fd())
        });
        assert_eq!((put_in.unwrap(), outer.len()), (1, 2));
        assert_eq!(PUT.with_borrow(Vec::len), 0);
        assert_eq!(put(null().as_fd()).unwrap_err(), NOWHERE_ELSE);
        assert_eq!(take(0).unwrap_err(), NOWHERE_ELSE);
    }

    #[test]
    fn a_panic_leaves_no_scope_behind() {
        let panicked = std::panic::catch_unwind(|| {
            collect(|| {
                put(null().as_fd()).unwrap();
                panic!("in a `Serialize`")
            })
        });
        assert!(panicked.is_err());
        assert_eq!(PUT.with_borrow(Vec::len), 0);
        assert_eq!(put(null().as_fd()).unwrap_err(), NOWHERE_ELSE);
    }
}
