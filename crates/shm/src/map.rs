//! Memory of several processes: made, checked, mapped.
//!
//! The memory is a file without a name (`memfd`), sealed against becoming smaller, because to touch mapped memory of
//! which the file has been cut off is a fatal signal; and against further seals, so that no peer can forbid what the
//! others do. It is freed with the last descriptor and the last mapping, wherever these are.

#![expect(unsafe_code, reason = "a mapping is memory by the kernel's word alone")]

use std::ffi::c_void;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::error::MemoryError;

/// Seals that all memory here has.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Seals under which memory cannot be written.
const READ_ONLY: SealFlags = SealFlags::WRITE.union(SealFlags::FUTURE_WRITE);

/// What `statfs` says of memory to share. Huge pages say something else: touching them can fail.
const TMPFS: u64 = 0x0102_1994;

/// Makes memory of that many bytes, all of them zero, sealed, and there: what the machine has not got is said now, and
/// not by a fatal signal later.
pub(crate) fn create(size: usize) -> Result<OwnedFd, MemoryError> {
    let size = size as u64;
    let error = |errno| says(errno, size);
    // The kernel does not only refuse what is over this limit, it sends a signal that kills.
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Fsize).current {
        if limit < size {
            return Err(MemoryError::FileLimit { size, limit });
        }
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Where a system forbids memory from which programs could be run, it has to be said that this is none; before
    // Linux 6.3 that could not be said.
    let fd = match rustix::fs::memfd_create("hatchery", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("hatchery", flags),
        made => made,
    }
    .map_err(error)?;
    rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&fd, size)).map_err(error)?;
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size))
        .map_err(error)?;
    rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(error)?;
    Ok(fd)
}

/// What a refusal of the kernel's means here.
fn says(errno: Errno, size: u64) -> MemoryError {
    match errno {
        Errno::NOMEM | Errno::NOSPC | Errno::FBIG => MemoryError::NoMemory { size },
        Errno::MFILE | Errno::NFILE => MemoryError::NoDescriptor,
        errno => {
            let error = std::io::Error::from(errno);
            MemoryError::Io { kind: error.kind(), text: error.to_string() }
        }
    }
}

/// Whether a descriptor, wherever it came from, is one of memory that can be mapped without fear.
fn check(fd: &OwnedFd, size: u64) -> Result<(), MemoryError> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| says(errno, size))?;
    // Files of a mounted tmpfs answer as well; they lack the seals.
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| MemoryError::NotMemory)?;
    let system = rustix::fs::fstatfs(fd).map_err(|errno| says(errno, size))?;
    if u64::try_from(system.f_type).ok() != Some(TMPFS) {
        return Err(MemoryError::NotMemory);
    }
    if !seals.contains(SEALS) || seals.intersects(READ_ONLY) {
        return Err(MemoryError::Unsealed);
    }
    // What is sealed keeps its size, so this holds from now on.
    match u64::try_from(stat.st_size).unwrap_or(0) {
        is if is == size => Ok(()),
        is => Err(MemoryError::Size { said: size, is }),
    }
}

/// Memory of this process and others, until it is dropped.
pub(crate) struct Map {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: it is the only owner of a mapping that stays where it is, and is unmapped from any thread.
unsafe impl Send for Map {}
// SAFETY: all that it gives are shared references to atomics.
unsafe impl Sync for Map {}

impl Map {
    /// Maps what has been checked first: memory of that many words, sealed as it has to be.
    pub(crate) fn new(fd: &OwnedFd, words: usize) -> Result<Map, MemoryError> {
        let size = words * size_of::<AtomicU64>();
        check(fd, size as u64)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses the place, so nothing of ours is there; no descriptor is kept.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), size, protection, flags, fd.as_fd(), 0)
                .map_err(|errno| says(errno, size as u64))?
        };
        let start = NonNull::new(start.cast()).ok_or(MemoryError::NoMemory { size: size as u64 })?;
        Ok(Map { start, words })
    }

    /// The memory. Other processes may change it at any time.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped there, readable and writable, aligned to a page, until `self` is dropped; the
        // file behind them is sealed against becoming smaller; any bits are a valid `u64`; and every access, of
        // this process through this slice and of others by their own mappings, is to an atomic.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let size = self.words * size_of::<AtomicU64>();
        // SAFETY: it was mapped with that size by `new`, and every reference into it borrowed from `self`. It fails
        // only for a range that is none, and then there would be nothing to do about it.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast::<c_void>(), size) };
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("words", &self.words).finish_non_exhaustive()
    }
}

/// One more descriptor of the same memory.
pub(crate) fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, MemoryError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(|errno| says(errno, 0))
}
