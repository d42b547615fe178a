//! The lanes as the pool knows them, which takes the results and learns what was lost.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::cursor::{CLOSE, Cursor, HOLD, Packed, WAKE_EACH, WAKE_IDLE, advanced, distance, read_header};
use crate::error::{LedgerError, MemoryError};
use crate::map::{self, Map};
use crate::shape::{Place, Shape};
use crate::words::Words;

/// What a worker has done and does, in memory that outlives it: the pool's side.
///
/// One worker process has one ledger, and its replacement another one. What is read here was written by that worker and
/// is to be doubted: a number may be that of no task that it was given, a result may come twice. Nothing in the
/// memory makes these calls panic, read outside of it, or take more memory than a ring has.
///
/// **To end task `i` from outside** (it takes too long, nobody wants it): [`close_running`](Ledger::close_running)
/// first. If it says that `i` does not run, `i` has finished, or has not begun, and nobody is killed. If it says that
/// `i` did, no result of `i` gets into the ledger any more, `i` is ended, and the worker can be killed.
///
/// **After the worker's death**, when it has been reaped: read the socket to its end, if results are sent there,
/// [`drain`](Ledger::drain), then look at the [`cursor`](Ledger::cursor) of each lane. The task that it names, unless
/// its result has come by the socket or it had been ended, was lost; all others that were not finished never began.
///
/// **To sleep until there is something:** drain, then [`arm`](Ledger::arm); if that says no, something has come
/// meanwhile. See [`Wake`].
///
/// ```
/// # use hatchery_shm::{Cursor, Lane, Ledger, Shape};
/// # let mut ledger = Ledger::create(Shape::new(1, 4096)?)?;
/// # let mut lanes = Lane::open(ledger.share()?, ledger.shape())?;
/// lanes[0].begin(1)?;
/// lanes[0].finish(0, b"done", Some(2))?;
///
/// assert!(!ledger.close_running(0, 1)?);              // too late: it has finished
/// assert!(ledger.close_running(0, 2)?);               // 2 will have no result, so the worker can be killed
/// assert!(lanes[0].finish(0, b"late", None).is_err());
///
/// let mut finished = Vec::new();
/// ledger.drain(|result| finished.push(result.task))?;
/// assert_eq!(finished, [1]);
/// assert_eq!(ledger.cursor(0), Cursor { running: Some(2), closed: true });
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Ledger {
    memory: OwnedFd,
    shape: Shape,
    lanes: Vec<Reader<Arc<Map>>>,
    bytes: Vec<u8>,
}

/// A result that a worker has left in its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The lane in which it lay.
    pub lane: u32,
    /// The number of its task, as the worker says.
    pub task: u32,
    /// What kind of result it is: between the worker and its pool.
    pub kind: u8,
    /// The result. A copy: the worker does not change it any more.
    pub bytes: &'a [u8],
}

/// When a pool that sleeps wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// By the next task that finishes.
    Each,
    /// When a lane has nothing more to do, or its ring is half full. For chunks of small tasks, each of which costs less
    /// than to be woken; a pool that sleeps so looks into the ledger by itself now and then, since the next task may
    /// be a long one.
    Idle,
}

impl Ledger {
    /// A new ledger, with all its lanes idle and empty.
    ///
    /// # Errors
    ///
    /// There is not that much memory, or no descriptor left. See [`MemoryError`].
    pub fn create(shape: Shape) -> Result<Ledger, MemoryError> {
        let memory = map::create(shape.size())?;
        let map = Arc::new(Map::new(&memory, shape.words())?);
        let lanes =
            (0..shape.lanes()).map(|lane| Reader::new(map.clone(), shape.place(lane), lane)).collect();
        Ok(Ledger { memory, shape, lanes, bytes: Vec::new() })
    }

    /// The descriptor that the worker opens, with the [`shape`](Ledger::shape) beside it. Close-on-exec.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn share(&self) -> Result<OwnedFd, MemoryError> {
        map::duplicate(&self.memory)
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Takes the results that are there, lane after lane, each lane's in the order in which its tasks finished. Gives
    /// how many there were.
    ///
    /// It takes what was there when it came to that lane, so it ends, however fast the worker is. What it gives is taken,
    /// also if `visit` panics.
    ///
    /// # Errors
    ///
    /// What is there was written by no worker in its right mind. What came before it was taken, and what the other lanes
    /// have, too.
    pub fn drain(&mut self, mut visit: impl FnMut(Record<'_>)) -> Result<usize, LedgerError> {
        let (mut count, mut wrong) = (0, None);
        for lane in &mut self.lanes {
            match lane.drain(&mut self.bytes, &mut visit) {
                Ok(taken) => count += taken,
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        wrong.map_or(Ok(count), Err)
    }

    /// What a lane says that it does, at this moment.
    ///
    /// # Panics
    ///
    /// If there is no such lane.
    pub fn cursor(&self, lane: u32) -> Cursor {
        self.lanes[lane as usize].cursor()
    }

    /// Closes a lane if that task runs there, and says whether it did: then it will not finish, and nothing else begins
    /// there.
    ///
    /// It gives `true` for one task of a lane at most: a lane that was closed before has no more tasks to end.
    ///
    /// # Errors
    ///
    /// The worker moves the cursor as none does.
    ///
    /// # Panics
    ///
    /// If there is no such lane.
    pub fn close_running(&mut self, lane: u32, task: u32) -> Result<bool, LedgerError> {
        self.lanes[lane as usize].close_running(task)
    }

    /// Holds a lane behind that task if it runs there, and says whether it does: then it finishes as it would have, but nothing
    /// follows it until the worker has been told otherwise. So what the worker was to begin next can be given to another one.
    ///
    /// Once a task: `false` if it is held already.
    ///
    /// ```
    /// # use hatchery_shm::{Lane, Ledger, Shape};
    /// # let mut ledger = Ledger::create(Shape::new(1, 4096)?)?;
    /// # let mut lanes = Lane::open(ledger.share()?, ledger.shape())?;
    /// lanes[0].begin(1)?;
    /// assert!(ledger.hold(0, 1)?);
    /// lanes[0].finish(0, b"done", Some(2))?;
    /// assert!(lanes[0].take_held());                      // 2 does not run
    /// assert_eq!(ledger.cursor(0).running, None);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The worker moves the cursor as none does.
    ///
    /// # Panics
    ///
    /// If there is no such lane.
    pub fn hold(&mut self, lane: u32, task: u32) -> Result<bool, LedgerError> {
        self.lanes[lane as usize].hold(task)
    }

    /// Says that the pool is about to sleep, and wants to be woken; and whether it may: `false` if something has happened
    /// since it drained, or if a lane cannot be believed. Then it drains again, which says which.
    ///
    /// The worker is told by its next [`Bell::Ring`](crate::Bell::Ring) and wakes the pool once for each lane. To be woken
    /// although nothing is there happens, and costs nothing but the time.
    ///
    /// # Cancel safety
    ///
    /// A pool that is armed and does not sleep after all is woken once for nothing.
    pub fn arm(&mut self, wake: Wake) -> bool {
        self.lanes.iter_mut().all(|lane| lane.arm(wake))
    }
}

/// A lane, over whatever memory it is in.
#[derive(Debug)]
pub(crate) struct Reader<W> {
    words: W,
    place: Place,
    lane: u32,
    /// How far the results have been read. The word in memory is for the worker, who may write it, too.
    tail: u32,
    /// Whether this side has closed it, whatever its cursor says by now.
    closed: bool,
    /// What was wrong with it.
    wrong: Option<LedgerError>,
}

impl<W: Words> Reader<W> {
    pub(crate) fn new(words: W, place: Place, lane: u32) -> Reader<W> {
        Reader { words, place, lane, tail: 0, closed: false, wrong: None }
    }

    pub(crate) fn cursor(&self) -> Cursor {
        let seen = Packed(self.words.load(self.place.cursor, Acquire)).cursor();
        Cursor { closed: self.closed, ..seen }
    }

    pub(crate) fn drain(
        &mut self,
        bytes: &mut Vec<u8>,
        mut visit: impl FnMut(Record<'_>),
    ) -> Result<usize, LedgerError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        // Acquire: all that the worker wrote before it moved the cursor there is seen.
        let head = Packed(self.words.load(self.place.cursor, Acquire)).head();
        let mut written = distance(head, self.tail);
        if written > self.place.ring_words() {
            return Err(self.doubt(LedgerError::Claim {
                lane: self.lane,
                claimed: written * 8,
                ring: self.place.ring_words() * 8,
            }));
        }
        let mut count = 0;
        while written > 0 {
            // Each word is read once, so that what was looked at is what is used.
            let (task, length, kind) = read_header(self.words.load(self.place.at(self.tail), Relaxed));
            let words = 1 + length.div_ceil(8);
            if words > written {
                return Err(self.doubt(LedgerError::Result {
                    lane: self.lane,
                    claimed: length,
                    written: (written - 1) * 8,
                }));
            }
            bytes.clear();
            for at in 1..words {
                let word = self.words.load(self.place.at(advanced(self.tail, at)), Relaxed);
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.truncate(length as usize);
            self.tail = advanced(self.tail, words);
            // Release: the worker that sees this may write over what has been read before.
            self.words.store(self.place.tail, u64::from(self.tail), Release);
            written -= words;
            count += 1;
            visit(Record { lane: self.lane, task, kind, bytes });
        }
        Ok(count)
    }

    /// Keeps what was wrong: nothing that this lane says is believed any more.
    fn doubt(&mut self, error: LedgerError) -> LedgerError {
        *self.wrong.get_or_insert(error)
    }

    pub(crate) fn close_running(&mut self, running: u32) -> Result<bool, LedgerError> {
        // Also if the bit is there: then the worker has set it, and is not believed.
        let closes = self.set_while(running, CLOSE, 0)?;
        self.closed |= closes;
        Ok(closes)
    }

    pub(crate) fn hold(&mut self, running: u32) -> Result<bool, LedgerError> {
        // The worker that finishes the task finds the word changed, and this in it.
        self.set_while(running, HOLD, HOLD)
    }

    /// Sets a bit if that task runs and the lane is not closed, unless such bits are there; and says whether it did.
    fn set_while(&mut self, running: u32, bit: u64, unless: u64) -> Result<bool, LedgerError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let seen = Packed(self.words.load(self.place.cursor, Acquire));
        if self.closed || seen.0 & unless != 0 || seen.running() != Some(running) {
            return Ok(false);
        }
        match self.words.compare_exchange(self.place.cursor, seen.0, seen.with(bit).0, AcqRel) {
            Ok(()) => Ok(true),
            Err(now) if Packed(now).running() != Some(running) => Ok(false),
            // No step of a worker leaves the same task running.
            Err(_) => Err(self.doubt(LedgerError::Cursor { lane: self.lane })),
        }
    }

    pub(crate) fn arm(&mut self, wake: Wake) -> bool {
        if self.wrong.is_some() {
            return false;
        }
        let bits = match wake {
            Wake::Each => WAKE_EACH,
            Wake::Idle => WAKE_IDLE,
        };
        let seen = Packed(self.words.load(self.place.cursor, Acquire));
        // One step from "nothing new" to "wants to be woken": whatever comes after it finds the wish.
        seen.head() == self.tail
            && self.words.compare_exchange(self.place.cursor, seen.0, seen.with(bits).0, Relaxed).is_ok()
    }
}
