//! The frames of the link, as values: what a worker and its parent tell each other.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use hatchery_actor::address::ProcessId;
use hatchery_actor::error::Error;
use hatchery_actor::exit::Panic;
use hatchery_actor::settings::Resources;
use hatchery_actor::spin::Spin;
use hatchery_actor::watchdog::MailboxInfo;
use hatchery_wire::{Body, LINK_FRAME, LinkFrame, decode, encode};
use serde::{Deserialize, Serialize};

use crate::questions::{Answer, Question, Said};

/// Both sides must speak the same version.
pub(crate) const PROTOCOL: u16 = 1;

/// Down: what the parent writes before the child runs. The first channel travels with it, then stdout and the pipe for
/// logs, where there are any.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Invitation {
    pub(crate) protocol: u16,
    /// Bits for what a side can do beyond the version; none yet.
    pub(crate) features: u64,
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    /// The number of its tree.
    pub(crate) tree: u64,
    /// Its own number, which no other process of the tree has.
    pub(crate) birth: u64,
    /// The number of the seat it is started for, if that is one.
    pub(crate) seat: u64,
    pub(crate) depth: u8,
    pub(crate) what: What,
    /// Whether its stdout travels with it.
    pub(crate) stdout: bool,
    /// Which events its log shall have, as directives; `None` if nobody wants a log.
    pub(crate) logs: Option<String>,
    /// The program's `worker_config`, encoded.
    #[serde(with = "serde_bytes")]
    pub(crate) config: Vec<u8>,
    /// Whether its end of the channel spins.
    pub(crate) spin: Spin,
    /// The same for the channels to workers of its own.
    pub(crate) spin_below: Spin,
    /// What it sets for itself before it says hello.
    pub(crate) settings: Box<Resources>,
}

/// What a worker hosts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum What {
    Task { name: String, place: String },
    Actor { name: String, place: String },
}

/// Up, at the door.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) protocol: u16,
    pub(crate) features: u64,
    pub(crate) program: Identity,
}

/// Which executable a process runs: a file that was replaced on disk is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    dev: u64,
    ino: u64,
    size: i64,
    mtime: (i64, i64),
}

impl Identity {
    /// Of this process. It never changes, so the second look is for free.
    pub(crate) fn own() -> std::io::Result<&'static Identity> {
        static OWN: OnceLock<Identity> = OnceLock::new();
        match OWN.get() {
            Some(own) => Ok(own),
            None => Identity::look().map(|own| OWN.get_or_init(|| own)),
        }
    }

    fn look() -> std::io::Result<Identity> {
        use std::os::unix::fs::MetadataExt;
        // Through the link, which leads to the image even when the file has been deleted or replaced.
        let stat = std::fs::metadata("/proc/self/exe")?;
        Ok(Identity {
            dev: stat.dev(),
            ino: stat.ino(),
            size: i64::try_from(stat.size()).unwrap_or(i64::MAX),
            mtime: (stat.mtime(), stat.mtime_nsec()),
        })
    }
}

/// Up, before a worker leaves by itself: what the operating system cannot tell.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LastWords {
    pub(crate) code: i32,
    pub(crate) failed: bool,
    /// An actor that answered everything it had begun, and whose answers have all left.
    pub(crate) orderly: bool,
    pub(crate) panic: Option<Panic>,
    pub(crate) reason: Option<String>,
}

/// A frame of the link.
#[derive(Debug)]
pub(crate) enum Frame {
    Invitation(Invitation, Vec<OwnedFd>),
    Shutdown,
    /// Down: asks for a sign of life.
    Ping(u64),
    /// Down: nothing new shall begin.
    Suspend(u64),
    /// Down: go on.
    Resume,
    /// Down: which events are wanted from now on, as directives.
    LogFilter(Arc<str>),
    Hello(Hello),
    Ready,
    StartFailed(Error),
    LastWords(LastWords),
    /// Up: the answer to the ping of this number, and what the actor is at. Of a task always the same.
    Pong(u64, MailboxInfo),
    /// Up: since the suspension of this number nothing has begun.
    Suspended(u64),
    /// Either way: a question, by its number.
    Question(u64, Question),
    /// Either way: the answer to the question of this number.
    Answer(u64, Answer),
    /// Either way: the answer to the question of this number is not waited for any more.
    Forget(u64),
    /// Down: an end of a channel, for the first of these processes, opened by the second. None if it found no room here.
    Connect(ProcessId, ProcessId, Option<OwnedFd>),
}

const INVITATION: u8 = 0;
const SHUTDOWN: u8 = 1;
const PING: u8 = 2;
const SUSPEND: u8 = 3;
const RESUME: u8 = 4;
const LOG_FILTER: u8 = 5;
const HELLO: u8 = 16;
const READY: u8 = 17;
const START_FAILED: u8 = 18;
const LAST_WORDS: u8 = 19;
const PONG: u8 = 20;
const SUSPENDED: u8 = 21;
const QUESTION: u8 = 32;
const ANSWER: u8 = 33;
const FORGET: u8 = 34;
const CONNECT: u8 = 35;

/// Long texts are cut so that a frame of the link stays below its limit.
const LONGEST_TEXT: usize = 16 * 1024;

/// What fits into a frame, beside its head.
const LARGEST: usize = LINK_FRAME - 64;

impl Frame {
    pub(crate) fn pack(self) -> Result<LinkFrame, String> {
        fn body<T: Serialize + ?Sized>(value: &T) -> Result<Body, String> {
            encode(value).map_err(|error| error.to_string())
        }
        let (kind, body, fds) = match self {
            Frame::Invitation(invitation, fds) => (INVITATION, body(&invitation)?, fds),
            Frame::Shutdown => (SHUTDOWN, Body::default(), Vec::new()),
            Frame::Ping(number) => (PING, body(&number)?, Vec::new()),
            Frame::Suspend(number) => (SUSPEND, body(&number)?, Vec::new()),
            Frame::Resume => (RESUME, Body::default(), Vec::new()),
            Frame::LogFilter(directives) => (LOG_FILTER, body(&*directives)?, Vec::new()),
            Frame::Hello(hello) => (HELLO, body(&hello)?, Vec::new()),
            Frame::Ready => (READY, Body::default(), Vec::new()),
            Frame::StartFailed(error) => {
                let mut packed = body(&error)?;
                if packed.len() > LONGEST_TEXT {
                    packed = body(&Error::msg(cut(error.to_string())))?;
                }
                (START_FAILED, packed, Vec::new())
            }
            Frame::LastWords(mut words) => {
                if let Some(panic) = &mut words.panic {
                    panic.message = cut(std::mem::take(&mut panic.message));
                }
                words.reason = words.reason.map(cut);
                (LAST_WORDS, body(&words)?, Vec::new())
            }
            Frame::Pong(number, MailboxInfo { running, depth, .. }) => {
                (PONG, body(&(number, running, depth))?, Vec::new())
            }
            Frame::Suspended(number) => (SUSPENDED, body(&number)?, Vec::new()),
            Frame::Question(number, question) => (QUESTION, body(&(number, question))?, Vec::new()),
            Frame::Answer(number, Answer::Said(said)) => {
                let mut packed = body(&(number, Some(said)))?;
                if packed.len() > LARGEST {
                    // Whoever waits for it shall not wait for ever.
                    packed =
                        body(&(number, Some(Said::Closed("the answer is too long to travel".to_owned()))))?;
                }
                (ANSWER, packed, Vec::new())
            }
            Frame::Answer(number, Answer::Channel(end)) => {
                (ANSWER, body(&(number, None::<Said>))?, vec![end])
            }
            Frame::Forget(number) => (FORGET, body(&number)?, Vec::new()),
            Frame::Connect(to, from, end) => (CONNECT, body(&(to, from))?, Vec::from_iter(end)),
        };
        Ok(LinkFrame { kind, body: body.to_bytes(), fds })
    }

    /// What it is, without what it holds.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Frame::Invitation(..) => "Invitation",
            Frame::Shutdown => "Shutdown",
            Frame::LogFilter(_) => "LogFilter",
            Frame::Hello(_) => "Hello",
            Frame::Ready => "Ready",
            Frame::StartFailed(_) => "StartFailed",
            Frame::LastWords(_) => "LastWords",
            Frame::Ping(_) => "Ping",
            Frame::Suspend(_) => "Suspend",
            Frame::Resume => "Resume",
            Frame::Pong(..) => "Pong",
            Frame::Suspended(_) => "Suspended",
            Frame::Question(..) => "Question",
            Frame::Answer(..) => "Answer",
            Frame::Forget(_) => "Forget",
            Frame::Connect(..) => "Connect",
        }
    }

    pub(crate) fn unpack(frame: LinkFrame) -> Result<Frame, String> {
        fn body<T: serde::de::DeserializeOwned>(body: &Body) -> Result<T, String> {
            decode(body).map_err(|error| format!("malformed link frame: {error}"))
        }
        let LinkFrame { kind, body: bytes, fds } = frame;
        let bytes = Body::from_bytes(bytes);
        if !matches!(kind, INVITATION | ANSWER | CONNECT) && !fds.is_empty() {
            return Err(format!("link frame of kind {kind} with descriptors nobody expects"));
        }
        Ok(match kind {
            INVITATION => Frame::Invitation(body(&bytes)?, fds),
            SHUTDOWN => Frame::Shutdown,
            PING => Frame::Ping(body(&bytes)?),
            SUSPEND => Frame::Suspend(body(&bytes)?),
            RESUME => Frame::Resume,
            LOG_FILTER => Frame::LogFilter(body::<String>(&bytes)?.into()),
            HELLO => Frame::Hello(body(&bytes)?),
            READY => Frame::Ready,
            START_FAILED => Frame::StartFailed(body(&bytes)?),
            LAST_WORDS => Frame::LastWords(body(&bytes)?),
            PONG => {
                let (number, running, depth) = body(&bytes)?;
                Frame::Pong(number, MailboxInfo::new(depth, running))
            }
            SUSPENDED => Frame::Suspended(body(&bytes)?),
            QUESTION => {
                let (number, question) = body(&bytes)?;
                Frame::Question(number, question)
            }
            ANSWER => {
                let (number, said) = body::<(u64, Option<Said>)>(&bytes)?;
                let answer = match (said, one(fds)?) {
                    (Some(said), None) => Answer::Said(said),
                    (None, Some(end)) => Answer::Channel(end),
                    // It found no room here.
                    (None, None) => Answer::Said(Said::Busy),
                    _ => return Err("an answer is either words or the end of a channel".to_owned()),
                };
                Frame::Answer(number, answer)
            }
            FORGET => Frame::Forget(body(&bytes)?),
            CONNECT => {
                let (to, from) = body(&bytes)?;
                Frame::Connect(to, from, one(fds)?)
            }
            other => return Err(format!("unknown kind of link frame: {other}")),
        })
    }
}

/// The one descriptor there may be.
fn one(fds: Vec<OwnedFd>) -> Result<Option<OwnedFd>, String> {
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next()) {
        (fd, None) => Ok(fd),
        _ => Err("link frame with more than one descriptor".to_owned()),
    }
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let mut end = LONGEST_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" […]");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_of_any_length_fit_the_link() {
        let panic = Some(Panic { message: "ä".repeat(1 << 20), place: None });
        let words = LastWords { code: 101, panic, ..LastWords::default() };
        let frame = Frame::LastWords(words).pack().unwrap();
        assert!(frame.body.len() < hatchery_wire::LINK_FRAME);
        let Ok(Frame::LastWords(words)) = Frame::unpack(frame) else { panic!("another frame") };
        assert!(words.panic.unwrap().message.ends_with("ä […]"));
    }

    #[test]
    fn unknown_and_malformed_frames_are_named() {
        let unknown = LinkFrame { kind: 99, body: Default::default(), fds: vec![] };
        assert_eq!(Frame::unpack(unknown).unwrap_err(), "unknown kind of link frame: 99");
        let malformed = LinkFrame { kind: HELLO, body: vec![0xc1].into(), fds: vec![] };
        assert!(Frame::unpack(malformed).unwrap_err().starts_with("malformed link frame"));
    }
}
