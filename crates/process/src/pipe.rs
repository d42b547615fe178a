//! What a child writes, gathered into lines.

use std::os::fd::OwnedFd;

use crate::printer::Stream;

/// A line longer than this is cut in two.
const LONGEST_LINE: usize = 8 * 1024;

/// One end of what a child writes, gathered into lines.
pub(crate) struct Pipe {
    pub(crate) fd: OwnedFd,
    stream: Stream,
    partial: Vec<u8>,
}

impl Pipe {
    pub(crate) fn new(fd: OwnedFd, stream: Stream) -> Pipe {
        // Set on our end of the pipe only: the other end has a file description of its own.
        let _ = rustix::io::ioctl_fionbio(&fd, true);
        Pipe { fd, stream, partial: Vec::new() }
    }

    /// Reads what is there, a round's worth at most; false at the end.
    pub(crate) fn drain(&mut self, rounds: usize, mut line: impl FnMut(Stream, &[u8])) -> bool {
        let mut buffer = [0_u8; 16 * 1024];
        for _ in 0..rounds {
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(0) => {
                    self.rest(line);
                    return false;
                }
                Ok(n) => {
                    for piece in buffer[..n].split_inclusive(|byte| *byte == b'\n') {
                        self.partial.extend_from_slice(piece);
                        if self.partial.ends_with(b"\n") || self.partial.len() >= LONGEST_LINE {
                            line(self.stream, &self.partial);
                            self.partial.clear();
                        }
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// A last line without an end.
    pub(crate) fn rest(&mut self, mut line: impl FnMut(Stream, &[u8])) {
        if !self.partial.is_empty() {
            self.partial.push(b'\n');
            line(self.stream, &self.partial);
            self.partial.clear();
        }
    }
}
