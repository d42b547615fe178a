//! What a child writes, gathered into lines.

use std::os::fd::OwnedFd;

use crate::printer::Stream;

/// A line longer than this is cut.
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
                    let mut left = &buffer[..n];
                    while !left.is_empty() {
                        // No more than the line has room for: what waits to be printed is bounded by its lines.
                        let room = left.len().min(LONGEST_LINE - self.partial.len());
                        let end = left[..room].iter().position(|byte| *byte == b'\n');
                        let (piece, rest) = left.split_at(end.map_or(room, |end| end + 1));
                        self.partial.extend_from_slice(piece);
                        if end.is_some() || self.partial.len() == LONGEST_LINE {
                            line(self.stream, &self.partial);
                            self.partial.clear();
                        }
                        left = rest;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_long_ones_in_pieces_of_8_kib() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut pipe = Pipe::new(read, Stream::Err);
        let writer = std::thread::spawn(move || {
            let mut text = b"one\n\ntwo\n".to_vec();
            text.extend([b'x'; 3 * LONGEST_LINE - 1]);
            text.extend(b"\n");
            text.extend([b'y'; LONGEST_LINE + 1]);
            let mut left = &text[..];
            while !left.is_empty() {
                let n = rustix::io::write(&write, left).unwrap();
                left = &left[n..];
            }
        });
        let mut lines = Vec::new();
        while pipe.drain(1, |_, line| lines.push(line.to_vec())) {
            let mut fds = [rustix::event::PollFd::new(&pipe.fd, rustix::event::PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, None);
        }
        writer.join().unwrap();
        let lengths: Vec<_> = lines.iter().map(Vec::len).collect();
        let whole = LONGEST_LINE;
        assert_eq!(lengths, [4, 1, 4, whole, whole, whole, whole, 2]);
        assert!(lines[5].ends_with(b"x\n") && lines[6].iter().all(|byte| *byte == b'y'));
        assert_eq!(lines[7], b"y\n");
    }
}
