//! A lane as the worker knows it, which runs the tasks.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::cursor::{Packed, advanced, distance, header};
use crate::error::MemoryError;
use crate::map::Map;
use crate::shape::{Place, Shape};
use crate::words::Words;

/// One lane of a ledger, in the worker: tasks begin and finish there one after the other, while the pool looks on.
///
/// No call here waits or asks the system. A lane is used by one thread at a time; several lanes are independent of each
/// other.
///
/// ```
/// use hatchery_shm::{Lane, Ledger, Shape};
///
/// let mut ledger = Ledger::create(Shape::new(1, 4096)?)?;
/// let mut lanes = Lane::open(ledger.share()?, ledger.shape())?;
///
/// lanes[0].begin(7)?;
/// assert_eq!(ledger.cursor(0).running, Some(7));
/// lanes[0].finish(0, b"forty-nine", Some(8))?;        // 7 has finished, and 8 runs
///
/// ledger.drain(|result| assert_eq!((result.task, result.bytes), (7, &b"forty-nine"[..])))?;
/// assert_eq!(ledger.cursor(0).running, Some(8));      // should the worker die now, 8 is lost
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Lane(Writer<Arc<Map>>);

impl Lane {
    /// The lanes of a ledger, in the worker that it is for. Once only: who opens it again would write over what the
    /// lanes of the first time write.
    ///
    /// The descriptor is closed; the memory is there until the last lane is dropped.
    ///
    /// # Errors
    ///
    /// The descriptor is none of memory to share, the memory is not sealed or has not that shape's size; or there is no
    /// room for it in this process.
    pub fn open(memory: OwnedFd, shape: Shape) -> Result<Vec<Lane>, MemoryError> {
        let map = Arc::new(Map::new(&memory, shape.words())?);
        Ok((0..shape.lanes()).map(|lane| Lane(Writer::new(map.clone(), shape.place(lane)))).collect())
    }

    /// Notes that a task runs from now on. To be called before anything of it can have an effect.
    ///
    /// The pool has to find its task by this number alone, so no two tasks that are under way in this ledger may have
    /// the same one.
    ///
    /// # Errors
    ///
    /// The pool has closed the lane. The task must not begin: the pool gives it to another worker.
    ///
    /// # Panics
    ///
    /// If a task runs in this lane: `finish` is what changes tasks.
    #[inline]
    pub fn begin(&mut self, task: u32) -> Result<(), Closed> {
        self.0.begin(task)
    }

    /// Notes that the task has finished with a result, and that the next one runs, if there is one. Both happens at
    /// once: at no time does the ledger say less, or more.
    ///
    /// If the pool holds the lane, the next one does not run: look at [`is_held`](Lane::is_held) before it begins. What the
    /// kind of a result means is between the worker and its pool.
    ///
    /// # Errors
    ///
    /// [`NotKept::Full`]: the result is too large, or those before it have not been read yet. The task still counts as
    /// running: its result has to be sent otherwise, and then [`finish_elsewhere`](Lane::finish_elsewhere) is called.
    /// [`NotKept::Closed`]: the pool has ended the task; the result is of no use, and nothing more may begin.
    ///
    /// # Panics
    ///
    /// If no task runs in this lane.
    #[inline]
    pub fn finish(&mut self, kind: u8, result: &[u8], then: impl Into<Then>) -> Result<Bell, NotKept> {
        self.0.finish(kind, result, then)
    }

    /// The same for a result that the pool gets otherwise, or for a task that has none.
    ///
    /// The result has to be on its way before, as far as this process can bring it: written into a socket, say. In a
    /// buffer of this process it would be lost if the process died, and the ledger would say that it had finished.
    ///
    /// # Errors
    ///
    /// The pool has closed the lane: it has ended the task, and nothing more may begin.
    ///
    /// # Panics
    ///
    /// If no task runs in this lane.
    #[inline]
    pub fn finish_elsewhere(&mut self, then: impl Into<Then>) -> Result<Bell, Closed> {
        self.0.finish_elsewhere(then)
    }

    /// Whether a task has finished behind which the pool had [held](crate::Ledger::hold) the lane: then the `next` one that
    /// `finish` was given does not run, and nothing may begin before the pool has said what it has given away.
    #[inline]
    pub fn is_held(&self) -> bool {
        self.0.held
    }

    /// The same, and from now on no longer.
    pub fn take_held(&mut self) -> bool {
        std::mem::take(&mut self.0.held)
    }

    /// The number of the task that runs here.
    #[inline]
    pub fn running(&self) -> Option<u32> {
        self.0.known.running()
    }
}

/// What comes in a lane after the task that finishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// This one runs from now on.
    Runs(u32),
    /// Nothing yet, but another one is about to [`begin`](Lane::begin), and its worker will wake the pool in time: one that
    /// wants to be woken when the lane is idle sleeps on.
    Soon,
    /// Nothing.
    Idle,
}

impl From<Option<u32>> for Then {
    #[inline]
    fn from(next: Option<u32>) -> Then {
        next.map_or(Then::Idle, Then::Runs)
    }
}

impl Then {
    #[inline]
    fn runs(self) -> Option<u32> {
        match self {
            Then::Runs(task) => Some(task),
            Then::Soon | Then::Idle => None,
        }
    }
}

/// Whether the pool has to be woken, by whatever means the two have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a pool that sleeps sees a result when it is woken"]
pub enum Bell {
    /// It is awake, or does not want to be woken yet.
    Quiet,
    /// It sleeps. It says so once: who is told to wake it has to.
    Ring,
}

/// The pool has closed the lane: no task begins or finishes there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool has closed this lane; the worker is about to be ended")]
pub struct Closed;

/// Why a result was not kept in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// There is no room for it, now or ever. The task still counts as running.
    #[error("the ledger has no room for the result; send it, then finish elsewhere")]
    Full,
    /// The pool has closed the lane.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// A lane, over whatever memory it is in.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    words: W,
    place: Place,
    /// The cursor as it was last seen. What this side writes to it is what it wrote last.
    known: Packed,
    /// How far the pool had read when that was last asked. It may have read more since.
    tail: u32,
    /// Whether it was held when the latest task finished.
    pub(crate) held: bool,
}

impl<W: Words> Writer<W> {
    pub(crate) fn new(words: W, place: Place) -> Writer<W> {
        let known = Packed(words.load(place.cursor, Acquire));
        let tail = words.load(place.tail, Acquire) as u32;
        Writer { words, place, known, tail, held: false }
    }

    /// The memory, for the model: a worker can die between two steps that are none of the memory's.
    #[cfg(all(test, model))]
    pub(crate) fn words(&self) -> &W {
        &self.words
    }

    #[inline]
    pub(crate) fn begin(&mut self, task: u32) -> Result<(), Closed> {
        assert!(self.known.running().is_none(), "a task runs in this lane: finish it first");
        // Nothing is there that was not there before, so nobody has to be woken.
        self.advance(self.known.head(), Then::Runs(task), |_, _, _| false).map(drop)
    }

    #[inline]
    pub(crate) fn finish(&mut self, kind: u8, result: &[u8], then: impl Into<Then>) -> Result<Bell, NotKept> {
        let Some(task) = self.known.running() else { panic!("no task runs in this lane: begin one first") };
        let head = self.known.head();
        let words = 1 + result.len().div_ceil(8);
        let Some(words) = u32::try_from(words).ok().filter(|words| self.has_room(head, *words)) else {
            return Err(NotKept::Full);
        };
        // None of this is seen before the cursor has moved over it, so it is no matter in which order it is written.
        self.words.store(self.place.at(head), header(task, result.len(), kind), Relaxed);
        let (mut at, whole) = (advanced(head, 1), result.chunks_exact(8));
        let rest = whole.remainder();
        for word in whole {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            self.words.store(self.place.at(at), word, Relaxed);
            at = advanced(at, 1);
        }
        if !rest.is_empty() {
            let word = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.words.store(self.place.at(at), word, Relaxed);
        }
        Ok(self.advance(advanced(head, words), then.into(), Writer::wakes)?)
    }

    #[inline]
    pub(crate) fn finish_elsewhere(&mut self, then: impl Into<Then>) -> Result<Bell, Closed> {
        assert!(self.known.running().is_some(), "no task runs in this lane: begin one first");
        self.advance(self.known.head(), then.into(), Writer::wakes)
    }

    /// Whether so many words fit behind that position, by what is known of the reader, or by asking it.
    #[inline]
    fn has_room(&mut self, head: u32, words: u32) -> bool {
        let ring = self.place.ring_words();
        // More than all is used: somebody else has written there. Then there is no room, ever.
        let fits = |used| ring.checked_sub(used).is_some_and(|free| words <= free);
        fits(distance(head, self.tail)) || fits(self.look(head))
    }

    /// How many words the reader has not read yet.
    fn look(&mut self, head: u32) -> u32 {
        // Acquire: what is written from now on may not come before the reader has read what it writes over.
        self.tail = self.words.load(self.place.tail, Acquire) as u32;
        distance(head, self.tail)
    }

    /// Whether the reader wants to be woken, now that the results reach that far and that comes next.
    #[inline]
    fn wakes(&mut self, head: u32, then: Then) -> bool {
        let half = self.place.ring_words() / 2;
        self.known.wakes_each()
            || self.known.wakes_idle()
                && (then == Then::Idle || (distance(head, self.tail) > half && self.look(head) > half))
    }

    /// Moves the cursor over what was written, and to what comes next, unless the lane is closed. What the pool changed
    /// meanwhile is taken into account.
    #[inline]
    fn advance(
        &mut self,
        head: u32,
        then: Then,
        wakes: impl Fn(&mut Writer<W>, u32, Then) -> bool,
    ) -> Result<Bell, Closed> {
        loop {
            if self.known.closed() {
                return Err(Closed);
            }
            // It is only ever held behind a task.
            let held = self.known.held() && self.known.running().is_some();
            let then = if held { Then::Idle } else { then };
            let moved = self.known.moved(head, then.runs());
            let (new, bell) =
                if wakes(self, head, then) { (moved.woken(), Bell::Ring) } else { (moved, Bell::Quiet) };
            // Release: the reader that sees this sees all that was written before.
            match self.words.compare_exchange(self.place.cursor, self.known.0, new.0, Release) {
                Ok(()) => {
                    self.known = new;
                    self.held |= held;
                    return Ok(bell);
                }
                // The pool has closed it, holds it or wants to be woken. It does each once before this side does something
                // about it, so this ends. A change of what is not the pool's own means that this memory is not
                // ours any more.
                Err(now) if self.known.differs_by_the_pool_alone(Packed(now)) => self.known = Packed(now),
                Err(_) => return Err(Closed),
            }
        }
    }
}
