//! The error types: opaque, with predicates, able to travel between processes.

use std::any::Any;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::predicates;

/// What a `main`, a task or a handler returns when it does not care for a type of its own: text with its chain of
/// causes, able to travel between processes.
///
/// `?` builds it from any `std::error::Error`; the predicates of the library's own errors survive that. It is no
/// `std::error::Error` itself, since it could not be built from all of them then.
///
/// `Display` is one line with all causes; `Debug`, which a failing `main` prints, has a line for each and the last ten
/// lines that a crashed worker wrote to standard error.
///
/// ```
/// # use hatchery_actor::error as hatchery;
/// fn port(text: &str) -> hatchery::Result<u16> {
///     let port: u16 = text.parse()?;
///     if port == 0 { Err(hatchery::Error::msg("port 0 is none").context("reading the settings")) } else { Ok(port) }
/// }
/// assert_eq!(port("0").unwrap_err().to_string(), "reading the settings: port 0 is none");
/// assert!(!port("http").unwrap_err().is_crash());
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    message: String,
    causes: Vec<String>,
    fault: Option<Fault>,
}

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with this text.
    pub fn msg(message: impl fmt::Display) -> Error {
        Error { message: message.to_string(), causes: Vec::new(), fault: None }
    }

    /// The same, where this is the library's own reason.
    #[doc(hidden)]
    #[must_use]
    pub fn with_fault(mut self, fault: Option<Fault>) -> Error {
        self.fault = fault;
        self
    }

    /// What a function returned that may return any error: the library's own as it is.
    #[doc(hidden)]
    pub fn of<E: fmt::Display + 'static>(error: E) -> Error {
        match (&error as &dyn Any).downcast_ref::<Error>() {
            Some(ours) => ours.clone(),
            None => Error::msg(error),
        }
    }

    /// The same error below a sentence that says what was being done.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Error {
        self.causes.insert(0, std::mem::replace(&mut self.message, doing.to_string()));
        self
    }

    /// The causes, nearest first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }

    /// The library's own reason at the bottom, if there is one.
    #[doc(hidden)]
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Whether the work that failed may have been done, wholly or in part; true where nothing is known.
    pub fn maybe_executed(&self) -> bool {
        self.fault.as_ref().is_none_or(Fault::maybe_executed)
    }

    predicates!();
}

impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Error {
        let message = error.to_string();
        let mut causes = Vec::new();
        let mut fault = None;
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            if fault.is_none() {
                fault = cause.downcast_ref::<Fault>().cloned();
            }
            next = cause.source();
            if let Some(source) = next {
                let text = source.to_string();
                // Many errors print their source themselves; saying it twice helps nobody.
                let said = causes.last().unwrap_or(&message);
                if !said.contains(&text) {
                    causes.push(text);
                }
            }
        }
        Error { message, causes, fault }
    }
}

/// What an [`Error`] is where only a `std::error::Error` will do.
struct Boxed(Error);

impl fmt::Display for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::error::Error for Boxed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.fault.as_ref().map(|fault| fault as &(dyn std::error::Error + 'static))
    }
}

impl From<Error> for Box<dyn std::error::Error + Send + Sync> {
    fn from(error: Error) -> Self {
        Box::new(Boxed(error))
    }
}

impl From<Error> for Box<dyn std::error::Error> {
    fn from(error: Error) -> Self {
        Box::new(Boxed(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    /// What a `main` that returns this error shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {cause}")?;
        }
        self.fault.as_ref().map_or(Ok(()), |fault| fault.show_last_words(f))
    }
}

/// The error type of a method that cannot fail: it has no values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// Why an ask failed: the handler answered `Err(E)`, or there is no answer.
///
/// `E` is [`Never`] for methods that return no `Result`. It is a `std::error::Error` where `E` has `Debug` and
/// `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct CallError<E = Never> {
    whom: String,
    method: &'static str,
    cause: Cause<E>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause<E> {
    Handler(E),
    Fault(Fault),
}

impl<E> CallError<E> {
    pub(crate) fn handler(whom: &str, method: &'static str, error: E) -> Self {
        CallError { whom: whom.to_owned(), method, cause: Cause::Handler(error) }
    }

    pub(crate) fn of_fault(whom: &str, method: &'static str, fault: Fault) -> Self {
        CallError { whom: whom.to_owned(), method, cause: Cause::Fault(fault) }
    }

    /// The library's own reason, unless the handler itself answered with an error.
    #[doc(hidden)]
    pub fn fault(&self) -> Option<&Fault> {
        match &self.cause {
            Cause::Handler(_) => None,
            Cause::Fault(fault) => Some(fault),
        }
    }

    /// Whether the request may have run. An error that the handler answered with says that it has. Where this is false it
    /// has not; where it is true nobody could tell: it may have been sent to a worker that was dead by then.
    pub fn maybe_executed(&self) -> bool {
        self.fault().is_none_or(Fault::maybe_executed)
    }

    /// The error that the handler answered with.
    pub fn handler_error(&self) -> Option<&E> {
        match &self.cause {
            Cause::Handler(error) => Some(error),
            Cause::Fault(_) => None,
        }
    }

    /// The error that the handler answered with, or this error back.
    ///
    /// # Errors
    /// This error itself, if it is not the handler's.
    pub fn into_handler_error(self) -> Result<E, Self> {
        match self.cause {
            Cause::Handler(error) => Ok(error),
            cause @ Cause::Fault(_) => Err(CallError { cause, ..self }),
        }
    }

    predicates!();
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CallError { whom, method, cause } = self;
        match cause {
            Cause::Handler(error) => write!(f, "{method} of {whom} answered with an error: {error}"),
            Cause::Fault(fault) => write!(f, "{method} of {whom}: {fault}"),
        }
    }
}

impl<E: fmt::Debug> fmt::Debug for CallError<E> {
    /// For people, as `unwrap` shows it: the text, and the worker's last words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CallError { whom, method, cause } = self;
        match cause {
            Cause::Handler(error) => write!(f, "{method} of {whom} answered with an error: {error:?}"),
            Cause::Fault(fault) => {
                write!(f, "{method} of {whom}: {fault}")?;
                fault.show_last_words(f)
            }
        }
    }
}

impl<E: fmt::Debug + fmt::Display + 'static> std::error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // What a handler answered with is its own matter: it says nothing about this call, even if it is a crash of
        // somebody further away.
        self.fault().map(|fault| fault as &(dyn std::error::Error + 'static))
    }
}

/// Why a message without an answer could not be handed over. Nothing was executed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{method} of {whom}: {fault}")]
pub struct SendError {
    whom: String,
    method: &'static str,
    #[source]
    fault: Fault,
}

impl fmt::Debug for SendError {
    /// For people, as `unwrap` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        self.fault.show_last_words(f)
    }
}

impl SendError {
    pub(crate) fn new(whom: &str, method: &'static str, fault: Fault) -> Self {
        SendError { whom: whom.to_owned(), method, fault }
    }

    /// The library's own reason.
    #[doc(hidden)]
    pub fn fault(&self) -> Option<&Fault> {
        Some(&self.fault)
    }

    predicates!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Exit, Status};

    fn crash() -> Fault {
        Fault::Ended { exit: Box::new(Exit::new(Status::Signal(9))), maybe_executed: true }
    }

    #[test]
    fn predicates_survive_the_question_mark() {
        fn call() -> std::result::Result<(), CallError> {
            Err(CallError::of_fault("/counter", "add", crash()))
        }
        fn caller() -> Result<()> {
            Ok(call()?)
        }
        let error = caller().unwrap_err();
        assert!(error.is_crash() && error.maybe_executed());
        assert_eq!(error.exit().and_then(Exit::signal), Some(9));
        assert_eq!(
            error.to_string(),
            "add of /counter: the worker ended before answering: killed by SIGKILL (signal 9)"
        );
    }

    #[test]
    fn a_crash_that_a_handler_tells_of_is_not_a_crash_of_this_call() {
        let inner = Error::from(CallError::<Never>::of_fault("/far", "get", crash()));
        let call = CallError::handler("/near", "ask_far", inner);
        assert!(!call.is_crash() && call.handler_error().unwrap().is_crash());
        let outer = Error::from(call);
        assert!(!outer.is_crash());
        assert!(outer.to_string().contains("SIGKILL"), "{outer}");
    }

    #[test]
    fn what_unwrap_shows_is_for_people() {
        let exit = Exit::new(Status::Signal(9)).with_stderr(vec!["so long".into()]);
        let fault = Fault::Ended { exit: Box::new(exit), maybe_executed: true };
        let call = CallError::<Never>::of_fault("/a", "get", fault);
        let shown = "get of /a: the worker ended before answering: killed by SIGKILL (signal 9)\n  its last words on \
                     standard error:\n    so long";
        assert_eq!(format!("{call:?}"), shown);
        assert_eq!(format!("{:?}", Error::from(call)), shown);
    }

    #[test]
    fn an_error_becomes_a_boxed_std_error() {
        fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
            let ours: Result<()> = Err(Error::msg("a bad day"));
            Ok(ours?)
        }
        assert_eq!(main().unwrap_err().to_string(), "a bad day");
    }

    #[test]
    fn causes_are_listed_once() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = Error::from(io).context("reading the model");
        assert_eq!(error.to_string(), "reading the model: no such file");
        assert_eq!(error.causes(), ["no such file"]);
    }

    #[test]
    fn errors_travel() {
        let error = Error::from(CallError::<Never>::of_fault("/far", "get", crash())).context("asking");
        let body = hatchery_wire::encode(&error).unwrap();
        assert_eq!(hatchery_wire::decode::<Error>(&body).unwrap(), error);
    }
}
