//! How many lanes a ledger has and how large their rings are; what lies where.

use serde::{Deserialize, Serialize};

use crate::error::ShapeError;

/// Words from one lane's cursor to the next one's: two lines of the processor's cache for the worker's word, which are
/// fetched together, and two for the pool's, so that neither disturbs the other, nor the neighbour.
const LANE: usize = 32;

/// Where in its lane the pool notes how far it has read.
const TAIL: usize = 16;

/// The shape of a ledger, which both sides have to know.
///
/// It travels beside the descriptor.
///
/// ```
/// # use hatchery_shm::Shape;
/// let shape = Shape::new(1, 64 * 1024)?;
/// assert_eq!((shape.lanes(), shape.ring()), (1, 64 * 1024));
/// # Ok::<_, hatchery_shm::ShapeError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct Shape {
    lanes: u32,
    ring: u32,
}

impl Shape {
    /// Lanes that a ledger can have.
    pub const MAX_LANES: u32 = 1024;
    /// Bytes that the ring of a lane can have: 1 MiB. What is larger is no slower in a socket.
    pub const MAX_RING: u32 = 1 << 20;

    /// That many lanes, one for each task that can run at the same time, and that many bytes for the results of each
    /// lane, rounded up to a power of two.
    ///
    /// # Errors
    ///
    /// No lanes, or more lanes or bytes than there can be.
    pub fn new(lanes: u32, ring: u32) -> Result<Shape, ShapeError> {
        if lanes == 0 || lanes > Shape::MAX_LANES {
            return Err(ShapeError::Lanes { asked: lanes, limit: Shape::MAX_LANES });
        }
        if ring > Shape::MAX_RING {
            return Err(ShapeError::Ring { asked: ring, limit: Shape::MAX_RING });
        }
        Ok(Shape { lanes, ring: ring.next_power_of_two().max(16) })
    }

    /// How many lanes it has.
    pub fn lanes(self) -> u32 {
        self.lanes
    }

    /// Bytes of each lane's ring. A result that has more than these but 8 is never kept in the ledger.
    pub fn ring(self) -> u32 {
        self.ring
    }

    /// Bytes of memory that it takes.
    pub fn size(self) -> usize {
        self.words() * 8
    }

    /// The same in words.
    pub(crate) fn words(self) -> usize {
        self.lanes as usize * (LANE + self.ring_words() as usize)
    }

    /// Words of each ring: a power of two.
    pub(crate) fn ring_words(self) -> u32 {
        self.ring / 8
    }

    /// Where a lane is, from 0.
    pub(crate) fn place(self, lane: u32) -> Place {
        let (lanes, lane) = (self.lanes as usize, lane as usize);
        let cursor = lane * LANE;
        let ring = lanes * LANE + lane * self.ring_words() as usize;
        Place { cursor, tail: cursor + TAIL, ring, mask: self.ring_words() - 1 }
    }
}

impl TryFrom<(u32, u32)> for Shape {
    type Error = ShapeError;

    fn try_from((lanes, ring): (u32, u32)) -> Result<Shape, ShapeError> {
        Shape::new(lanes, ring)
    }
}

impl From<Shape> for (u32, u32) {
    fn from(shape: Shape) -> (u32, u32) {
        (shape.lanes, shape.ring)
    }
}

/// Where the words of a lane are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The word that says how far the lane is. Both sides change it.
    pub(crate) cursor: usize,
    /// How far its results have been read. The pool writes it.
    pub(crate) tail: usize,
    /// Where its ring begins. The worker writes it.
    ring: usize,
    /// Words of the ring but one.
    mask: u32,
}

impl Place {
    /// The word of the ring at a position, which counts on and on.
    #[inline]
    pub(crate) fn at(self, position: u32) -> usize {
        self.ring + (position & self.mask) as usize
    }

    /// Words of the ring.
    #[inline]
    pub(crate) fn ring_words(self) -> u32 {
        self.mask + 1
    }
}
