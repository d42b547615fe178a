//! A child process as its parent's warden knows it: its link, its pipes, and what its exit is made of.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use hatchery_actor::child::Presence;
use hatchery_actor::exit::{Exit, Status};
use hatchery_wire::{Filled, LinkSocket};

use crate::filter::Wanted;
use crate::frames::{Frame, Hello, Identity, LastWords, PROTOCOL};
use crate::pipe::Pipe;
use crate::printer::{Printer, Stream};
use crate::ward::Ward;

/// How many lines of stderr an exit carries.
const TAIL: usize = 100;

/// What there is of a child that has just been spawned.
pub(crate) struct Adoption {
    pub(crate) ward: Arc<Ward>,
    pub(crate) link: LinkSocket,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) printer: Arc<Printer>,
    pub(crate) presence: Option<Presence>,
    /// Which events its log shall have, and which version of that it knows.
    pub(crate) logs: Option<(Arc<Wanted>, u64)>,
}

/// A child as the warden knows it.
pub(crate) struct Watched {
    pub(crate) ward: Arc<Ward>,
    pub(crate) link: Option<LinkSocket>,
    pub(crate) err: Option<Pipe>,
    pub(crate) out: Option<Pipe>,
    tail: VecDeque<String>,
    words: Option<LastWords>,
    hello: bool,
    printer: Arc<Printer>,
    /// When its link closed although it lives.
    pub(crate) unlinked: Option<Instant>,
    /// Its link takes no more for now: the poll tells when it does.
    pub(crate) link_full: bool,
    presence: Option<Presence>,
    logs: Option<(Arc<Wanted>, u64)>,
}

impl Watched {
    pub(crate) fn new(adoption: Adoption) -> Watched {
        let Adoption { ward, link, stderr, stdout, printer, presence, logs } = adoption;
        Watched {
            ward,
            link: Some(link),
            err: stderr.map(|fd| Pipe::new(fd, Stream::Err)),
            out: stdout.map(|fd| Pipe::new(fd, Stream::Out)),
            tail: VecDeque::new(),
            words: None,
            hello: false,
            printer,
            unlinked: None,
            presence,
            link_full: false,
            logs,
        }
    }

    pub(crate) fn send(&mut self, frame: Frame) {
        if let (Some(link), Ok(frame)) = (&mut self.link, frame.pack()) {
            let _ = link.queue(frame);
        }
    }

    /// Tells it which events its log shall have, if it does not know the latest.
    pub(crate) fn send_filter(&mut self) {
        let Some((wanted, known)) = &mut self.logs else { return };
        let latest = wanted.latest();
        if latest.number > *known {
            *known = latest.number;
            self.send(Frame::LogFilter(latest.directives()));
        }
    }

    /// Reads what the link holds; false when it has ended.
    pub(crate) fn read_link(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        let filled = link.fill();
        let mut wrong = None;
        let mut heard = Vec::new();
        while wrong.is_none() {
            match link.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => match Frame::unpack(frame) {
                    Ok(frame) => heard.push(frame),
                    Err(error) => wrong = Some(error),
                },
                Err(error) => wrong = Some(error.to_string()),
            }
        }
        for frame in heard {
            wrong = wrong.or(self.hear(frame).err());
        }
        let open = match filled {
            Ok(Filled::Open) => true,
            Ok(Filled::Ended) => false,
            Err(error) => {
                wrong = wrong.or(Some(error.to_string()));
                false
            }
        };
        if let Some(wrong) = wrong {
            self.ward.condemn(format!("it broke the protocol of the link: {wrong}"));
            return false;
        }
        open
    }

    fn hear(&mut self, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::Hello(hello) if !self.hello => {
                self.hello = true;
                check(&hello)?;
                self.ward.set_greeted();
            }
            Frame::Ready if self.hello => self.ward.set_started(Ok(())),
            Frame::StartFailed(error) if self.hello => self.ward.set_started(Err(error)),
            Frame::LastWords(words) => self.words = Some(words),
            other => return Err(format!("unexpected {other:?}")),
        }
        Ok(())
    }

    pub(crate) fn read_stderr(&mut self, rounds: usize) {
        let Watched { err, tail, printer, .. } = self;
        let Some(pipe) = err else { return };
        let open = pipe.drain(rounds, |stream, line| {
            keep(tail, line);
            printer.line(stream, line);
        });
        if !open {
            *err = None;
        }
    }

    pub(crate) fn read_stdout(&mut self, rounds: usize) {
        let Watched { out, printer, .. } = self;
        let Some(pipe) = out else { return };
        if !pipe.drain(rounds, |stream, line| printer.line(stream, line)) {
            *out = None;
        }
    }

    pub(crate) fn exit(&mut self, status: Status) {
        // A line without an end is complete now, unless a grandchild goes on with it.
        let Watched { err, tail, printer, .. } = self;
        if let Some(pipe) = err {
            pipe.rest(|stream, line| {
                keep(tail, line);
                printer.line(stream, line);
            });
        }
        let words = self.words.take();
        let status = match (status, &words) {
            // Nobody could tell, but it did.
            (Status::Unknown, Some(words)) => Status::Code(words.code),
            (status, _) => status,
        };
        let words = words.unwrap_or_default();
        let condemned = self.ward.reason();
        let exit = Exit::new(status)
            .with_panic(words.panic)
            .with_failed(words.failed && matches!(status, Status::Code(_)))
            .with_orderly(words.orderly && condemned.is_none() && status == Status::Code(0))
            .with_reason(condemned.or(words.reason))
            .with_stderr(self.tail.drain(..).collect());
        self.publish(exit);
        self.presence = None;
    }

    pub(crate) fn publish(&self, exit: Exit) {
        self.ward.set_exited(exit);
    }
}

/// Keeps a line for the exit, as the last of [`TAIL`].
fn keep(tail: &mut VecDeque<String>, line: &[u8]) {
    if tail.len() == TAIL {
        tail.pop_front();
    }
    tail.push_back(String::from_utf8_lossy(line).trim_end_matches('\n').to_owned());
}

/// Whether this is our own program, speaking our protocol.
fn check(hello: &Hello) -> Result<(), String> {
    if hello.protocol != PROTOCOL {
        return Err(format!("it speaks version {} of the protocol, this program {PROTOCOL}", hello.protocol));
    }
    let own = Identity::own().map_err(|error| format!("this program cannot look at itself: {error}"))?;
    if hello.program != *own {
        return Err("it is another executable than this program".to_owned());
    }
    Ok(())
}
