//! Which lanes of a worker want to be polled.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// The lanes whose tasks have been woken, and who is told of it.
#[derive(Default)]
pub(super) struct Awake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each once, so no more than there are lanes.
    woken: Vec<u16>,
    sleeper: Option<Waker>,
}

/// What wakes one lane.
pub(super) struct Lane {
    number: u16,
    /// Whether it is among the woken ones.
    listed: AtomicBool,
    awake: Arc<Awake>,
}

impl Awake {
    /// What wakes the lane of this number.
    pub(super) fn lane(self: &Arc<Awake>, number: u16) -> Arc<Lane> {
        Arc::new(Lane { number, listed: AtomicBool::new(false), awake: self.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lanes that were woken, in their order, into `woken`.
    pub(super) fn take(&self, woken: &mut Vec<u16>) {
        woken.clear();
        std::mem::swap(&mut self.state().woken, woken);
    }

    /// Whether none was woken; then the next one wakes `sleeper`.
    pub(super) fn sleeps(&self, sleeper: &Waker) -> bool {
        let sleeper = sleeper.clone();
        let mut state = self.state();
        let before = state.sleeper.replace(sleeper);
        let sleeps = state.woken.is_empty();
        drop(state);
        drop(before);
        sleeps
    }
}

impl Lane {
    /// From here on it can be woken again. To be called before it is polled.
    pub(super) fn is_polled(&self) {
        self.listed.store(false, Ordering::Release);
    }
}

impl Wake for Lane {
    fn wake(self: Arc<Lane>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Lane>) {
        if self.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let sleeper = {
            let mut state = self.awake.state();
            state.woken.push(self.number);
            state.sleeper.take()
        };
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_listed_once_until_it_is_polled() {
        let awake = Arc::new(Awake::default());
        let lanes = [0, 1].map(|number| awake.lane(number));
        let mut woken = vec![7];
        let mut taken = || {
            awake.take(&mut woken);
            woken.clone()
        };
        assert_eq!(taken(), []);
        lanes[1].wake_by_ref();
        lanes[0].wake_by_ref();
        lanes[1].wake_by_ref();
        assert_eq!(taken(), [1, 0]);
        lanes[1].wake_by_ref();
        assert_eq!(taken(), [], "it has not been polled yet");
        lanes[1].is_polled();
        lanes[1].wake_by_ref();
        assert_eq!(taken(), [1]);
    }

    #[test]
    fn the_sleeper_is_woken_once_by_the_first_lane() {
        struct Counts(std::sync::atomic::AtomicU32);
        impl Wake for Counts {
            fn wake(self: Arc<Counts>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let counts = Arc::new(Counts(Default::default()));
        let awake = Arc::new(Awake::default());
        let lanes = [0, 1].map(|number| awake.lane(number));
        assert!(awake.sleeps(&counts.clone().into()));
        lanes.iter().for_each(Wake::wake_by_ref);
        assert_eq!(counts.0.load(Ordering::Relaxed), 1);
        assert!(!awake.sleeps(Waker::noop()), "two are to be polled");
    }
}
