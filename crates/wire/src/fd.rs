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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use rustix::fs::MemfdFlags;

    use super::*;
    use crate::{Body, MAX_FDS, decode, decode_owned, encode};

    fn file(name: &str) -> File {
        rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).unwrap().into()
    }

    /// How many descriptors of files of this name are open.
    fn open(name: &str) -> usize {
        let link = format!("/memfd:{name} (deleted)");
        let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        entries
            .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == &*link))
            .count()
    }

    #[test]
    fn a_descriptor_goes_into_a_body_and_out_of_it() {
        let sent = file("body");
        sent.write_all_at(b"here", 0).unwrap();
        let body = encode(&(1_u8, Some(Fd::new(sent)))).unwrap();
        assert_eq!(
            (body.descriptors(), open("body")),
            (1, 1),
            "what was given is closed, and the body has its own"
        );
        assert_eq!(format!("{body:?}"), r#"Body(b"\x92\x01\0", 1 descriptors)"#);
        let (_, got) = decode_owned::<(u8, Option<Fd<File>>)>(body).unwrap();
        assert_eq!(open("body"), 1, "it was moved");
        let mut text = [0; 4];
        got.unwrap().read_exact_at(&mut text, 0).unwrap();
        assert_eq!((&text, open("body")), (b"here", 0));
    }

    #[test]
    fn a_body_that_others_have_too_gives_duplicates() {
        let body = encode(&Fd::new(file("shared"))).unwrap();
        let (one, two): (Fd<File>, Fd<OwnedFd>) =
            (decode(&body).unwrap(), decode_owned(body.clone()).unwrap());
        assert_ne!(one.as_raw_fd(), two.as_fd().as_raw_fd());
        assert_eq!(open("shared"), 3);
        assert_eq!(body.clone(), body);
        assert_ne!(encode(&one).unwrap(), body, "another descriptor");
        drop((one, two));
        assert_eq!(open("shared"), 1);
        drop(body);
        assert_eq!(open("shared"), 0);
    }

    #[test]
    fn a_body_with_more_descriptors_than_it_names_or_fewer_is_refused_and_closed() {
        let two = || encode(&[Fd::new(file("more or fewer")), Fd::new(file("more or fewer"))]).unwrap();
        let error = |body: Body| decode_owned::<Vec<Fd<File>>>(body).unwrap_err().to_string();
        /// The same descriptors under other bytes.
        fn naming(mut body: Body, indices: &[u8]) -> Body {
            let descriptors = body.descriptors_of().cloned().unwrap_or_default();
            body = encode(indices).unwrap();
            body.attach(descriptors);
            body
        }
        let twice = "the message names a descriptor twice";
        for (indices, expected) in [
            (&[0][..], "the message has a descriptor that it does not name"),
            (&[][..], "the message has a descriptor that it does not name"),
            (&[0, 1, 2][..], "the message names a descriptor that it does not have"),
            (&[200][..], "the message names a descriptor that it does not have"),
            (&[0, 0][..], twice),
            (&[1, 0, 1][..], twice),
        ] {
            let body = naming(two(), indices);
            let kept = body.clone();
            assert_eq!(error(body), expected);
            assert_eq!(open("more or fewer"), 2, "those that were kept");
            assert_eq!(error(kept), expected);
            assert_eq!(open("more or fewer"), 0);
        }
        assert_eq!(decode_owned::<Vec<Fd<File>>>(naming(two(), &[1, 0])).unwrap().len(), 2, "in any order");
        assert_eq!(error(encode(&[0_u8]).unwrap()), "the message names a descriptor that it does not have");
        let unexpected = decode_owned::<Vec<u8>>(two()).unwrap_err();
        assert_eq!(unexpected.to_string(), "the message has a descriptor that it does not name");
        assert_eq!(open("more or fewer"), 0);
    }

    #[test]
    fn sixteen_go_into_a_message_and_not_one_more() {
        let some = |n: usize| (0..n).map(|_| Fd::new(file("sixteen"))).collect::<Vec<_>>();
        assert_eq!(encode(&some(MAX_FDS)).unwrap().descriptors(), MAX_FDS);
        let error = encode(&some(MAX_FDS + 1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a message carries at most 16 descriptors: send them in several messages"
        );
        assert_eq!(open("sixteen"), 0);
    }

    #[test]
    fn in_any_other_format_it_is_an_error_that_says_so() {
        let error = rmp_serde::to_vec(&Fd::new(file("elsewhere"))).unwrap_err();
        assert_eq!(error.to_string(), "a descriptor can only travel in a hatchery message");
        let error = rmp_serde::from_slice::<Fd<File>>(&[0]).unwrap_err();
        assert_eq!(error.to_string(), "a descriptor can only travel in a hatchery message");
        assert_eq!(open("elsewhere"), 0);
    }
}
