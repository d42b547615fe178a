//! A child process as its parent's warden knows it: its link, its pipes, and what its exit is made of.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hatchery_actor::address::ProcessId;
use hatchery_actor::child::Presence;
use hatchery_actor::exit::{Exit, Limit, Status};
use hatchery_actor::heartbeat::Heartbeat;
use hatchery_actor::settings::Resources;
use hatchery_actor::watchdog::MailboxInfo;
use hatchery_wire::{Filled, LinkSocket, WireError};
use rustix::process::{Resource, Signal, getrlimit};

use crate::filter::Wanted;
use crate::frames::{Frame, Hello, Identity, LastWords, PROTOCOL};
use crate::heartbeat::{Beat, Grace, Pulse, is_examined};
use crate::outputs::Outputs;
use crate::pipe::Pipe;
use crate::printer::{Printer, Stream};
use crate::program::Program;
use crate::ward::Ward;

/// How many lines of stderr an exit carries.
const TAIL: usize = 100;
/// How long a child may live on without its link or its channel, which otherwise end with it.
const SEVERED: Duration = Duration::from_secs(1);

/// What there is of a child that has just been spawned.
pub(crate) struct Adoption {
    pub(crate) ward: Arc<Ward>,
    pub(crate) program: Arc<Program>,
    pub(crate) process: ProcessId,
    pub(crate) link: LinkSocket,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) printer: Arc<Printer>,
    pub(crate) presence: Option<Presence>,
    /// Which events its log shall have, and which version of that it knows.
    pub(crate) logs: Option<(Arc<Wanted>, u64)>,
    pub(crate) resources: Resources,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) watchdog: Option<Duration>,
    pub(crate) outputs: Outputs,
}

/// A child as the warden knows it.
pub(crate) struct Watched {
    pub(crate) ward: Arc<Ward>,
    /// The run it belongs to.
    pub(crate) program: Arc<Program>,
    pub(crate) process: ProcessId,
    /// What it said about questions, and nobody has looked at yet.
    pub(crate) questions: Vec<Frame>,
    pub(crate) link: Option<LinkSocket>,
    pub(crate) err: Option<Pipe>,
    pub(crate) out: Option<Pipe>,
    tail: VecDeque<String>,
    words: Option<LastWords>,
    hello: bool,
    printer: Arc<Printer>,
    /// It has closed its link or its channel, and lives on: for how long yet, and what is said of it then.
    severed: Option<(Grace, &'static str)>,
    /// Its link takes no more for now: the poll tells when it does.
    pub(crate) link_full: bool,
    presence: Option<Presence>,
    logs: Option<(Arc<Wanted>, u64)>,
    resources: Resources,
    outputs: Outputs,
    heartbeat: Heartbeat,
    watchdog: Option<Duration>,
    /// What the periods of all children are counted from.
    epoch: Instant,
    /// There from its hello on, unless it shall have no heartbeat.
    pulse: Option<Pulse>,
}

impl Watched {
    pub(crate) fn new(adoption: Adoption, epoch: Instant) -> Watched {
        let Adoption {
            ward,
            program,
            process,
            link,
            stderr,
            stdout,
            printer,
            presence,
            resources,
            outputs,
            logs,
            heartbeat,
            watchdog,
        } = adoption;
        Watched {
            ward,
            program,
            process,
            questions: Vec::new(),
            link: Some(link),
            err: stderr.map(|fd| Pipe::new(fd, Stream::Err)),
            out: stdout.map(|fd| Pipe::new(fd, Stream::Out)),
            tail: VecDeque::new(),
            words: None,
            hello: false,
            printer,
            severed: None,
            presence,
            resources,
            outputs,
            link_full: false,
            heartbeat,
            watchdog,
            epoch,
            pulse: None,
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
        let wrong = self.hear_all().err();
        let open = match filled {
            Ok(Filled::Open) => true,
            Ok(Filled::Ended) => false,
            // It was told by the first frame that could not be read.
            Err(_) => false,
        };
        if let Some(wrong) = wrong {
            self.ward.condemn(format!("it broke the protocol of the link: {wrong}"));
            return false;
        }
        open
    }

    /// Hears every whole frame that has arrived.
    fn hear_all(&mut self) -> Result<(), String> {
        while let Some(link) = &mut self.link {
            match link.next_frame() {
                Ok(Some(frame)) => self.hear(Frame::unpack(frame)?)?,
                // Cut off inside a frame is how a killed process ends, too.
                Ok(None) | Err(WireError::Truncated) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Hears one frame: each kind once, and nothing but a failure before hello.
    fn hear(&mut self, frame: Frame) -> Result<(), String> {
        let name = frame.name();
        let expected = match frame {
            Frame::Hello(hello) if !self.hello => {
                self.hello = true;
                check(&hello)?;
                self.pulse = Pulse::new(self.heartbeat, self.watchdog, self.epoch, Instant::now());
                self.ward.set_greeted();
                true
            }
            Frame::Ready => self.hello && self.ward.set_started(Ok(())),
            // Also in place of a hello: it could not set for itself what it was told to.
            Frame::StartFailed(error) => self.ward.set_started(Err(error)),
            Frame::LastWords(words) if self.words.is_none() => {
                self.words = Some(words);
                true
            }
            Frame::Pong(number, info) if self.pulse.is_some() => {
                self.answered(number, info)?;
                true
            }
            Frame::Suspended(number) => {
                self.ward.set_suspended(number)?;
                true
            }
            Frame::Question(..) | Frame::Answer(..) | Frame::Forget(_) if self.hello => {
                self.questions.push(frame);
                true
            }
            _ => false,
        };
        // By name only: what it holds is the peer's, and may be long.
        if expected { Ok(()) } else { Err(format!("unexpected {name}")) }
    }

    /// It answered this ping, and said what its actor is at.
    fn answered(&mut self, number: u64, info: MailboxInfo) -> Result<(), String> {
        let Watched { ward, pulse, .. } = self;
        let Some(pulse) = pulse else { return Ok(()) };
        let spared = || ward.may_be_paused() || ward.may_be_suspended() || is_examined(ward.pid);
        let hung = pulse.pong(number, info.running, Instant::now(), spared)?;
        ward.set_mailbox(info);
        // One that has ended has reasons of its own.
        if let Some(why) = hung.filter(|_| ward.is_alive()) {
            ward.condemn(why);
        }
        Ok(())
    }

    /// Whether it has not answered a ping.
    pub(crate) fn owes_a_pong(&self) -> bool {
        self.link.is_some() && self.pulse.as_ref().is_some_and(Pulse::is_waiting)
    }

    /// It has closed its link or its channel, so it should be about to end.
    pub(crate) fn sever(&mut self, otherwise: &'static str) {
        self.severed.get_or_insert_with(|| (Grace::new(SEVERED, SEVERED, Instant::now()), otherwise));
    }

    /// When it wants to be looked at.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        // Without a link it can answer nothing, and has been given a deadline of another kind.
        let beat = self.link.as_ref().and(self.pulse.as_ref()).and_then(Pulse::next);
        beat.into_iter().chain(self.severed.as_ref().and_then(|(grace, _)| grace.next())).min()
    }

    /// Does what its heartbeat asks for now, and ends it if it should have ended by itself.
    pub(crate) fn look(&mut self, now: Instant) {
        if let Some((grace, otherwise)) = &mut self.severed {
            if grace.is_over(now, || self.ward.may_be_paused() || is_examined(self.ward.pid)) {
                // One that has ended has reasons of its own.
                if self.ward.is_alive() {
                    self.ward.condemn(*otherwise);
                }
                self.severed = None;
            }
        }
        let (Some(pulse), true) = (&mut self.pulse, self.link.is_some()) else { return };
        match pulse.poll(now, self.ward.may_be_paused(), || is_examined(self.ward.pid)) {
            Beat::Nothing => {}
            Beat::Ping(number) => self.send(Frame::Ping(number)),
            // As above.
            Beat::Hung if self.ward.is_alive() => {
                let patience = pulse.patience();
                self.ward.condemn(format!("no heartbeat for {patience:?}"));
            }
            Beat::Hung => {}
        }
    }

    pub(crate) fn read_stderr(&mut self, rounds: usize) {
        let Watched { err, tail, printer, outputs, .. } = self;
        let Some(pipe) = err else { return };
        let open = pipe.drain(rounds, |stream, line| {
            keep(tail, line);
            outputs.line(printer, stream, line);
        });
        if !open {
            *err = None;
        }
    }

    pub(crate) fn read_stdout(&mut self, rounds: usize) {
        let Watched { ward, out, printer, outputs, .. } = self;
        let Some(pipe) = out else { return };
        let open = pipe.drain(rounds, |stream, line| {
            if outputs.keeps() {
                ward.keep(line);
            }
            outputs.line(printer, stream, line);
        });
        if !open {
            *out = None;
        }
    }

    pub(crate) fn exit(&mut self, status: Status) {
        // A line without an end is complete now, unless a grandchild goes on with it.
        let Watched { ward, err, out, tail, printer, outputs, .. } = self;
        if let Some(pipe) = err {
            pipe.rest(|stream, line| {
                keep(tail, line);
                outputs.line(printer, stream, line);
            });
        }
        if let Some(pipe) = out {
            pipe.rest(|stream, line| {
                if outputs.keeps() {
                    ward.keep(line);
                }
                outputs.line(printer, stream, line);
            });
        }
        self.severed = None;
        let words = self.words.take();
        let status = match (status, &words) {
            // Nobody could tell, but it did.
            (Status::Unknown, Some(words)) => Status::Code(words.code & 0xff),
            (status, _) => status,
        };
        let mut words = words.unwrap_or_default();
        if status == Status::Code(0) {
            // Whatever it claims: nothing of the kind leaves so.
            words.panic = None;
            words.failed = false;
        }
        let limit = self.limit(status);
        let condemned = self.ward.reason();
        let exit = Exit::new(status)
            .with_panic(words.panic)
            .with_limit(limit)
            .with_failed(words.failed && matches!(status, Status::Code(_)))
            .with_orderly(words.orderly && condemned.is_none() && status == Status::Code(0))
            .with_reason(condemned.or(words.reason))
            .with_stderr(self.tail.drain(..).collect())
            .with_stdout(self.ward.kept(TAIL));
        self.publish(exit);
        self.presence = None;
    }

    /// The limit that ended it, its own or one that it inherited from this process.
    fn limit(&self, status: Status) -> Option<Limit> {
        let Status::Signal(signal) = status else { return None };
        let limit = |own: Option<u64>, inherited| own.or_else(|| getrlimit(inherited).current);
        let Resources { memory, cpu, file_size, .. } = self.resources;
        if signal == Signal::XCPU.as_raw() {
            limit(cpu, Resource::Cpu).map(|seconds| Limit::Cpu(Duration::from_secs(seconds)))
        } else if signal == Signal::XFSZ.as_raw() {
            limit(file_size, Resource::Fsize).map(Limit::FileSize)
        } else if signal == Signal::ABORT.as_raw() && self.tail.iter().any(|line| is_out_of_memory(line)) {
            limit(memory, Resource::As).map(Limit::Memory)
        } else {
            None
        }
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

/// What Rust says when it aborts because an allocation failed.
fn is_out_of_memory(line: &str) -> bool {
    line.starts_with("memory allocation of ") && line.contains(" bytes failed")
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
