//! Why a request has no answer: the reasons that are the library's, not the user's.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// The library's reason for an unanswered request, a failed start or a failed end.
///
/// It travels between processes and sits at the bottom of every error of the library, so that predicates such as
/// `is_crash` survive `?`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The incarnation ended before it answered.
    Ended {
        /// How it ended.
        exit: Box<Exit>,
        /// Whether the request may have run.
        maybe_executed: bool,
    },
    /// The deadline passed.
    Timeout {
        /// Whether the request may have run.
        maybe_executed: bool,
    },
    /// The actor is stopping and did not begin the request.
    Stopping,
    /// Nobody will sit in this seat again.
    Closed {
        /// Why, with the last exit where there is one.
        why: String,
    },
    /// Whoever answers would have to wait for whoever asks.
    Deadlock {
        /// The paths of those who wait, each for the next one and the last one for the first.
        circle: Vec<String>,
        /// Whether the request may have run.
        maybe_executed: bool,
    },
    /// The caller had left before the request began.
    Withdrawn,
    /// The request could not be encoded, or is over a limit; it was not sent.
    NotSent(String),
    /// The worker could not decode the request; it did not begin.
    Undecodable(String),
    /// The handler ran, but its answer could not be encoded, sent or decoded.
    BadAnswer(String),
    /// The program, or this process of it, cannot do this here.
    Refused(String),
    /// Starting it failed.
    StartFailed(String),
    /// It was not ready in time, and has been ended.
    Late {
        /// What it did not do, within how long.
        what: String,
        /// How it ended then.
        exit: Box<Exit>,
    },
}

impl Fault {
    /// Whether the work may have been done, wholly or in part.
    pub fn maybe_executed(&self) -> bool {
        match self {
            Fault::Ended { maybe_executed, .. }
            | Fault::Timeout { maybe_executed }
            | Fault::Deadlock { maybe_executed, .. } => *maybe_executed,
            Fault::BadAnswer(_) => true,
            Fault::Stopping
            | Fault::Closed { .. }
            | Fault::Withdrawn
            | Fault::NotSent(_)
            | Fault::Undecodable(_)
            | Fault::Refused(_)
            | Fault::StartFailed(_)
            | Fault::Late { .. } => false,
        }
    }
}

impl Fault {
    /// What the worker wrote last to standard error, for the `Debug` of errors. After a panic, whose message they show
    /// already, that would be its backtrace.
    #[doc(hidden)]
    pub fn show_last_words(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Fault::Ended { exit, .. } | Fault::Late { exit, .. }) = self else { return Ok(()) };
        let lines = exit.stderr_tail();
        if exit.panic().is_some() || lines.is_empty() {
            return Ok(());
        }
        f.write_str("\n  its last words on standard error:")?;
        for line in lines.iter().skip(lines.len().saturating_sub(10)) {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Ended { exit, .. } => write!(f, "the worker ended before answering: {exit}"),
            Fault::Timeout { maybe_executed: true } => {
                f.write_str("no answer within the deadline (the request may have run)")
            }
            Fault::Timeout { maybe_executed: false } => {
                f.write_str("no answer within the deadline (the request did not run)")
            }
            Fault::Stopping => f.write_str("the actor is stopping"),
            Fault::Closed { why } => write!(f, "the actor is gone: {why}"),
            Fault::Deadlock { circle, .. } => show_circle(circle, f),
            Fault::Withdrawn => f.write_str("the caller withdrew the request"),
            Fault::NotSent(why) => write!(f, "the request was not sent: {why}"),
            Fault::Undecodable(why) => write!(f, "the worker could not decode the request: {why}"),
            Fault::BadAnswer(why) => write!(f, "the answer did not arrive: {why}"),
            Fault::Refused(why) => f.write_str(why),
            Fault::StartFailed(why) => write!(f, "the start failed: {why}"),
            Fault::Late { what, .. } => f.write_str(what),
        }
    }
}

/// Who waits for whom, and what to write instead.
fn show_circle(circle: &[String], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Without words where those found no room on the way.
    let said = |path: &'_ str| if path.is_empty() { "another actor".to_owned() } else { path.to_owned() };
    let first = circle.first().map_or_else(String::new, |path| said(path));
    write!(f, "{first} is waiting for ")?;
    for path in circle.iter().skip(1) {
        write!(f, "{}, which is waiting for ", said(path))?;
    }
    let closes = if circle.len() < 2 { "itself" } else { &first };
    write!(
        f,
        "{closes}, so no answer would ever come: send one of these requests with `.tell()`, or ask from a task \
         (`cx.spawn(..)`)"
    )
}

impl std::error::Error for Fault {}

/// The predicates that every error of the library has, told from the [`Fault`] at its bottom by a method `fault`.
#[doc(hidden)]
#[macro_export]
macro_rules! predicates {
    () => {
        /// Whether the worker ended (killed, aborted, panicked, exited, the process gone) before it answered.
        pub fn is_crash(&self) -> bool {
            matches!(self.fault(), Some($crate::fault::Fault::Ended { .. }))
        }

        /// Whether a deadline passed.
        pub fn is_timeout(&self) -> bool {
            use $crate::fault::Fault::{Late, Timeout};
            matches!(self.fault(), Some(Timeout { .. } | Late { .. }))
        }

        /// Whether the actor was stopping and did not begin the request.
        pub fn is_stopping(&self) -> bool {
            matches!(self.fault(), Some($crate::fault::Fault::Stopping))
        }

        /// Whether nobody will ever answer here again: stopped for good, or given up by its supervisor.
        pub fn is_closed(&self) -> bool {
            matches!(self.fault(), Some($crate::fault::Fault::Closed { .. }))
        }

        /// Whether the answer would have been waited for by those who are to give it: an actor asks in a handler, and
        /// whoever answers asks back, directly or through others, while that handler waits.
        pub fn is_deadlock(&self) -> bool {
            matches!(self.fault(), Some($crate::fault::Fault::Deadlock { .. }))
        }

        /// How the worker ended, where that is the reason.
        pub fn exit(&self) -> Option<&$crate::exit::Exit> {
            match self.fault() {
                Some($crate::fault::Fault::Ended { exit, .. } | $crate::fault::Fault::Late { exit, .. }) => {
                    Some(exit)
                }
                _ => None,
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_told_in_words() {
        let said = |circle: &[&str]| {
            let circle = circle.iter().map(|path| (*path).to_owned()).collect();
            Fault::Deadlock { circle, maybe_executed: false }.to_string()
        };
        let instead = ", so no answer would ever come: send one of these requests with `.tell()`, or ask from a task \
                       (`cx.spawn(..)`)";
        assert_eq!(said(&["/a"]), format!("/a is waiting for itself{instead}"));
        let circle = said(&["/a", "/b", ""]);
        let waits = "/a is waiting for /b, which is waiting for another actor, which is waiting for /a";
        assert_eq!(circle, format!("{waits}{instead}"));
    }
}
