//! A descriptor as a value that travels.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};

use crate::descriptors;

/// An open file, socket or pipe that travels in any message of hatchery: arguments, answers, errors, items of streams
/// and results of tasks. In other formats it cannot be written or read.
///
/// `T` is what owns the descriptor: [`File`](std::fs::File), [`OwnedFd`], the sockets of `std::net` and
/// `std::os::unix::net`, and whatever else is [`AsFd`] and `From<OwnedFd>`. Sockets of tokio are `into_std` first.
///
/// Encoding a message borrows what is in it, so the descriptor is duplicated then, and the one that was given is closed
/// as any value that was moved into a call. The receiver gets a descriptor of its own, close-on-exec, of the *same open
/// file*: offset, `O_NONBLOCK` and locks are shared by all who have it. To keep one, give a
/// [`try_clone`](std::fs::File::try_clone).
///
/// A message carries at most 16. One that never reaches its receiver closes those in it. What is kept encoded keeps them
/// open: arguments in a spec, for restarts, as long as the spec is there, and the result of a process until its handle
/// is dropped.
///
/// The receiver believes the type: what arrives as a `Fd<UnixStream>` is what its sender put in as one.
pub struct Fd<T>(T);

impl<T> Fd<T> {
    /// A descriptor that can travel.
    pub fn new(owner: T) -> Fd<T> {
        Fd(owner)
    }

    /// What owns the descriptor.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Fd<T> {
    fn from(owner: T) -> Fd<T> {
        Fd(owner)
    }
}

impl<T> Deref for Fd<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Fd<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: AsFd> AsFd for Fd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: fmt::Debug> fmt::Debug for Fd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fd").field(&self.0).finish()
    }
}

impl<T: AsFd> Serialize for Fd<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let index = descriptors::put(self.0.as_fd()).map_err(S::Error::custom)?;
        serializer.serialize_u64(index as u64)
    }
}

impl<'de, T: From<OwnedFd>> Deserialize<'de> for Fd<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fd<T>, D::Error> {
        let index = usize::deserialize(deserializer)?;
        descriptors::take(index).map(|fd| Fd(fd.into())).map_err(D::Error::custom)
    }
}
