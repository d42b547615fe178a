//! Memory as numbered words, so that a model of memory can stand in its place.
//!
//! All that is shared is read and written as atomic words, contents included. So whatever the other process does at the
//! same time is, to the compiler, one more thread that uses atomics: a value can be wrong, but nothing is undefined.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::map::Map;

/// Words that several parties use at once. Numbers are below the length; a wrong one is a mistake of this crate.
pub(crate) trait Words {
    fn load(&self, at: usize, order: Ordering) -> u64;
    fn store(&self, at: usize, value: u64, order: Ordering);
    /// The value there if it was another one, which is then left as it is.
    fn compare_exchange(&self, at: usize, current: u64, new: u64, success: Ordering) -> Result<(), u64>;
}

impl Words for Arc<Map> {
    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.words()[at].load(order)
    }

    #[inline]
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.words()[at].store(value, order);
    }

    #[inline]
    fn compare_exchange(&self, at: usize, current: u64, new: u64, success: Ordering) -> Result<(), u64> {
        AtomicU64::compare_exchange(&self.words()[at], current, new, success, Ordering::Relaxed).map(drop)
    }
}
