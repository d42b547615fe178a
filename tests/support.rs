//! What the tests share: waiting for things to become true, and looking at processes from outside.

#![forbid(unsafe_code)]

use std::fs;
use std::future::Future;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, getpid, pidfd_getfd, pidfd_open};

/// How long anything may take that is promised to end.
pub const BOUND: Duration = Duration::from_secs(30);

/// Waits for something that has to end.
///
/// # Panics
/// It did not.
pub async fn ends<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(BOUND, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not end within {BOUND:?}"),
    }
}

/// Waits until a condition holds that can only be looked at.
///
/// # Panics
/// It never did.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < BOUND, "never happened within {BOUND:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// The same in a task.
///
/// # Panics
/// It never did.
pub async fn becomes_true(what: &str, mut condition: impl FnMut() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < BOUND, "never happened within {BOUND:?}: {what}");
        ticks.tick().await;
    }
}

/// The letter that the kernel gives a process's state, `None` when there is no such process.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in brackets and may hold anything.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether all threads of a process have been stopped. A signal that stops it takes hold in each of them by itself.
pub fn stands_still(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let stopped = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    threads.flatten().all(stopped)
}

/// Whether a process exists and is no zombie.
pub fn runs(pid: u32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// Whether this process was started with a signal ignored, as shells do to what they start in the background with
/// Ctrl-C. Whatever it starts ignores that signal as well.
pub fn ignores(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}

/// Sends a signal from outside, as anybody could.
///
/// # Panics
/// There is no such process.
pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not 0");
    rustix::process::kill_process(pid, signal).expect("the process exists");
}

/// In a worker: another descriptor of its channel to its parent, to misuse. The link is older, so it has the lower
/// number of the two sockets that the parent made.
///
/// # Panics
/// There is none.
pub fn own_channel() -> OwnedFd {
    let number = sockets_of_the_parent().pop().expect("a channel");
    another(number).expect("it is open")
}

/// In a worker: another descriptor of its link to its parent, to misuse.
///
/// # Panics
/// There is none.
pub fn own_link() -> OwnedFd {
    let number = *sockets_of_the_parent().first().expect("a link");
    another(number).expect("it is open")
}

/// The numbers of the sockets that the parent of this worker made, oldest first.
fn sockets_of_the_parent() -> Vec<i32> {
    let parent = i32::try_from(hatchery::parent().expect("in a worker")).expect("a pid");
    let made_by_it = |fd: OwnedFd| {
        rustix::net::sockopt::socket_peercred(fd.as_fd())
            .is_ok_and(|peer| peer.pid.as_raw_nonzero().get() == parent)
    };
    let mut numbers = open_sockets();
    numbers.retain(|number| another(*number).is_some_and(made_by_it));
    numbers
}

/// The numbers of all sockets that this process has open, ascending.
///
/// # Panics
/// `/proc` cannot be read.
pub fn open_sockets() -> Vec<i32> {
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    let mut numbers: Vec<i32> = fs::read_dir("/proc/self/fd")
        .expect("its descriptors")
        .flatten()
        .filter(is_socket)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Another descriptor of the open file behind a number of this process, which safe code has no other way to.
///
/// # Panics
/// This process cannot look at itself.
pub fn another(number: i32) -> Option<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).expect("a pidfd of its own");
    pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).ok()
}

/// A frame of the link as bytes, whatever it announces and holds.
pub fn link_frame(kind: u8, descriptors: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a small body").to_be_bytes();
    let content = [&[0x93, kind, descriptors, 0xc5, length[0], length[1]], body].concat();
    let length = u32::try_from(content.len()).expect("a small frame").to_be_bytes();
    [&length, &content[..]].concat()
}

/// Writes bytes to a socket, with descriptors at the first of them. A peer that is gone by then is no error.
///
/// # Panics
/// There are too many descriptors for one message.
pub fn send_raw(socket: impl AsFd, mut bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    while !bytes.is_empty() {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        control.clear();
    }
}

/// How many descriptors this process has open.
///
/// # Panics
/// `/proc` cannot be read.
pub fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("its descriptors").count()
}

/// How much memory a process has written to that is no file's, in KiB. (Its private pages would include those of its
/// executable, which count as private or shared depending on who else runs it at that moment.)
///
/// # Panics
/// There is no such process.
pub fn own_memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("there is that line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The children of a process, zombies included.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// A sequence that is the same in every run, for random moments (xorshift).
pub struct Dice(u64);

impl Dice {
    /// Another sequence for each seed.
    ///
    /// # Panics
    /// The seed is 0.
    pub fn new(seed: u64) -> Dice {
        assert_ne!(seed, 0, "a sequence of zeros");
        Dice(seed)
    }

    /// The next number, from 0 to one below `below`.
    pub fn throw(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}
