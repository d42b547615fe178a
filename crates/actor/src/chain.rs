//! The chain of a request: whose running requests wait for it, so that none of them is made to wait for itself.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use hatchery_wire::CHAIN;

use crate::trace::random;

/// Tells an incarnation of an actor apart from all others, in whatever process: 64 random bits.
pub type Life = u64;

/// The life of another incarnation.
pub(crate) fn life() -> Life {
    random()
}

/// A request that an actor runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) life: Life,
    /// The how manyth of that actor.
    pub(crate) number: u64,
    /// Where the actor sits; empty where there was no room for words.
    pub(crate) path: Arc<str>,
}

/// The requests whose handlers wait, each for the next one, and the last one for the request that carries this.
///
/// A handler makes it when it asks for the first time; what it asks afterwards carries the same one.
#[derive(Clone, Debug)]
pub struct Chain(Arc<Links>);

#[derive(Debug)]
struct Links {
    /// Oldest first; not empty.
    links: Box<[Link]>,
    wire: OnceLock<Bytes>,
}

/// Most requests that a chain remembers. Without words they have room in an envelope.
const MOST: usize = 128;

/// On the wire, before the path: life, number, length of the path.
const HEAD: usize = 8 + 8 + 2;

const _: () = assert!(MOST * HEAD <= CHAIN);

/// Bytes that are no chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a malformed chain of requests")]
pub struct NoChain;

impl Chain {
    /// What a handler asks carries: the chain of its own request, and that request.
    pub(crate) fn behind(before: Option<&Chain>, link: Link) -> Chain {
        let before = before.map_or(&[][..], |chain| &chain.0.links);
        // Of one so long the oldest are forgotten: a deadline answers then.
        let known = &before[before.len().saturating_sub(MOST - 1)..];
        Chain::of(known.iter().cloned().chain([link]).collect())
    }

    fn of(links: Box<[Link]>) -> Chain {
        Chain(Arc::new(Links { links, wire: OnceLock::new() }))
    }

    /// Who waits for whom if that request waits for the one that carries this: the paths from it on, if it is in here.
    pub(crate) fn circle(&self, life: Life, number: u64) -> Option<Vec<String>> {
        let links = &self.0.links;
        let from = links.iter().rposition(|link| link.life == life && link.number == number)?;
        Some(links[from..].iter().map(|link| link.path.to_string()).collect())
    }

    /// Where those sit who wait, each for the next one.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.links.iter().map(|link| &*link.path)
    }

    /// Whether one of those who wait sits at one of these paths, or below one.
    pub(crate) fn passes(&self, paths: &[String]) -> bool {
        self.paths().any(|waiting| paths.iter().any(|path| is_at_or_below(waiting, path)))
    }

    /// As an envelope carries it. One that would be too long goes without words.
    #[doc(hidden)]
    pub fn to_wire(&self) -> Bytes {
        self.0.wire.get_or_init(|| put(&self.0.links)).clone()
    }

    /// From an envelope; nothing is no chain.
    ///
    /// # Errors
    /// It is none that a chain is written as.
    #[doc(hidden)]
    pub fn of_wire(bytes: &[u8]) -> Result<Option<Chain>, NoChain> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let links: Box<[Link]> = read(bytes)?.into();
        if links.len() > MOST { Err(NoChain) } else { Ok(Some(Chain::of(links))) }
    }
}

/// Whether this path is that one, or below it.
pub(crate) fn is_at_or_below(path: &str, that: &str) -> bool {
    path.strip_prefix(that).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn put(links: &[Link]) -> Bytes {
    let words: usize = links.iter().map(|link| link.path.len()).sum();
    let length = links.len() * HEAD + words;
    let spoken = length <= CHAIN;
    let mut out = BytesMut::with_capacity(length.min(CHAIN));
    for Link { life, number, path } in links {
        out.put_u64(*life);
        out.put_u64(*number);
        let path = if spoken { &**path } else { "" };
        // Shorter than the whole.
        out.put_u16(path.len() as u16);
        out.put_slice(path.as_bytes());
    }
    out.freeze()
}

fn read(mut rest: &[u8]) -> Result<Vec<Link>, NoChain> {
    let mut links = Vec::new();
    while !rest.is_empty() {
        let (life, number) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
        links.push(Link { life, number, path: take_path(&mut rest)? });
    }
    Ok(links)
}

/// Takes a number off the front.
pub(crate) fn take_u64(rest: &mut &[u8]) -> Result<u64, NoChain> {
    let (number, after) = rest.split_first_chunk().ok_or(NoChain)?;
    *rest = after;
    Ok(u64::from_be_bytes(*number))
}

/// Takes a path with its length off the front.
pub(crate) fn take_path(rest: &mut &[u8]) -> Result<Arc<str>, NoChain> {
    let (length, after) = rest.split_first_chunk().ok_or(NoChain)?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (path, after) = after.split_at_checked(length).ok_or(NoChain)?;
    *rest = after;
    Ok(std::str::from_utf8(path).map_err(|_| NoChain)?.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link(life: Life, number: u64, path: &str) -> Link {
        Link { life, number, path: path.into() }
    }

    fn links(chain: &Chain) -> &[Link] {
        &chain.0.links
    }

    #[test]
    fn a_chain_tells_who_waits_for_whom_from_the_running_request_on() {
        let outer = Chain::behind(None, link(1, 7, "/a"));
        let chain = Chain::behind(Some(&outer), link(2, 3, "/b"));
        assert_eq!(chain.circle(1, 7), Some(vec!["/a".to_owned(), "/b".to_owned()]));
        assert_eq!(chain.circle(2, 3), Some(vec!["/b".to_owned()]));
        assert_eq!(outer.circle(2, 3), None);
        // Another request of the same actor, and the same number of another one.
        assert_eq!((chain.circle(1, 8), chain.circle(3, 7)), (None, None));
    }

    #[test]
    fn a_chain_passes_those_in_it_and_those_above_them() {
        let outer = Chain::behind(None, link(1, 7, "/shop/web/cart"));
        let chain = Chain::behind(Some(&outer), link(2, 3, "/shop/store"));
        let passes = |path: &str| chain.passes(&["/nobody".to_owned(), path.to_owned()]);
        assert!(passes("/shop/web") && passes("/shop/web/cart") && passes("/shop/store") && passes("/shop"));
        assert!(!passes("/shop/we") && !passes("/shop/web/cart/item") && !passes("/shop/back"));
        assert!(!chain.passes(&[]));
    }

    #[test]
    fn a_long_chain_goes_without_words_and_a_longer_one_forgets_its_beginning() {
        let path = "/".repeat(200);
        let long = |n: u64| {
            let mut chain = Chain::behind(None, link(1, 0, &path));
            (1..n).for_each(|number| chain = Chain::behind(Some(&chain), link(1, number, &path)));
            chain
        };
        let spoken = Chain::of_wire(&long(18).to_wire()).unwrap().unwrap();
        assert!(spoken.circle(1, 0).unwrap().iter().all(|said| *said == path));
        for n in [19, MOST as u64] {
            let chain = long(n);
            let wire = chain.to_wire();
            assert!(wire.len() <= CHAIN);
            let read = Chain::of_wire(&wire).unwrap().unwrap();
            assert_eq!(read.circle(1, 0).unwrap(), vec![""; n as usize]);
            // What it was told without words it tells on without them.
            assert_eq!(chain.circle(1, 0).unwrap()[0], path);
        }
        let longer = long(MOST as u64 + 1);
        assert_eq!((longer.circle(1, 0), longer.circle(1, 1).unwrap().len()), (None, MOST));
    }

    #[test]
    fn what_is_no_chain_is_refused() {
        let wire = Chain::behind(None, link(1, 2, "/a")).to_wire();
        for cut in 1..wire.len() {
            assert!(matches!(Chain::of_wire(&wire[..cut]), Err(NoChain)));
        }
        let mut no_text = wire.to_vec();
        *no_text.last_mut().unwrap() = 0xff;
        assert!(matches!(Chain::of_wire(&no_text), Err(NoChain)));
        assert!(Chain::of_wire(&[]).unwrap().is_none());
        let many = vec![0; (MOST + 1) * HEAD];
        assert!(matches!(Chain::of_wire(&many), Err(NoChain)));
    }

    proptest! {
        #[test]
        fn chains_survive_the_wire_and_bytes_never_panic(
            all in prop::collection::vec((any::<u64>(), any::<u64>(), "[/a-zä0-9]{0,12}"), 1..40),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let chain = all.iter().fold(None, |before: Option<Chain>, (life, number, path)| {
                Some(Chain::behind(before.as_ref(), link(*life, *number, path)))
            });
            let chain = chain.unwrap();
            let read = Chain::of_wire(&chain.to_wire()).unwrap().unwrap();
            prop_assert_eq!(links(&read), links(&chain));
            let _ = Chain::of_wire(&noise);
        }
    }
}
