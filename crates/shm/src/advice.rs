//! Memory of large messages: asked for in huge pages, so that its pages are there after few faults instead of one every
//! 4 KiB, which take longer than to move the bytes.

#![expect(unsafe_code, reason = "advice about memory is a system call with an address")]

use std::ffi::c_void;

use rustix::mm::Advice;

/// Memory from here on is asked for in huge pages.
const HUGE_FROM: usize = 4 << 20;

/// What is asked for begins and ends at a multiple of this: of every size that a page has, and of that of most huge ones.
const HUGE: usize = 2 << 20;

/// Says that what is behind these bytes, if it is large, will be used soon and all of it. A kernel that has no huge pages,
/// or has been told not to give any, does nothing.
pub fn will_fill(bytes: &mut Vec<u8>) {
    let spare = bytes.spare_capacity_mut();
    if spare.len() < HUGE_FROM {
        return;
    }
    let skipped = spare.as_ptr().addr().next_multiple_of(HUGE) - spare.as_ptr().addr();
    let whole = spare.get_mut(skipped..).map_or(0, |rest| rest.len() / HUGE * HUGE);
    if whole == 0 {
        return;
    }
    let start: *mut c_void = spare[skipped..].as_mut_ptr().cast();
    // SAFETY: these bytes are this vector's, and the advice changes nothing about what is in them.
    let _ = unsafe { rustix::mm::madvise(start, whole, Advice::LinuxHugepage) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_and_nothing_small_is_asked_for() {
        for capacity in [0, 1, HUGE_FROM - 1, HUGE_FROM, HUGE_FROM + 1, 5 * HUGE_FROM + 4095] {
            let mut bytes = Vec::with_capacity(capacity);
            bytes.resize(capacity.min(5), 7);
            will_fill(&mut bytes);
            assert_eq!(bytes, vec![7; capacity.min(5)]);
            bytes.resize(capacity, 8);
            assert!(bytes[capacity.min(5)..].iter().all(|byte| *byte == 8));
        }
    }
}
