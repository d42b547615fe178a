//! What an actor is: the traits that `#[actor]` implements, and how its answers are encoded.

use std::fmt::Display;
use std::future::Future;

use hatchery_wire::{Body, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::error::Error;
use crate::fault::Fault;
use crate::handle::ActorRef;
use crate::outlet::Answer;

/// `Send`, under a name by which the compiler's notes tell what can be done where something is not.
#[doc(hidden)]
pub trait SendUnlessItSaysNotSend: Send {}

impl<T: Send> SendUnlessItSaysNotSend for T {}

/// State owned by one task, reached by messages. `#[actor]` writes this implementation.
///
/// Its futures are `Send`, so it may live in a worker and in this process alike.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no actor, or one that stays on its thread",
    label = "write `#[hatchery::actor]` on an impl block of it that has a `start`; if that says `not_send`, write \
             `worker` instead of `local`"
)]
pub trait Actor: Sized + SendUnlessItSaysNotSend + 'static {
    /// What `start` takes.
    type Args: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// One variant a method.
    type Message: Serialize + DeserializeOwned + Send + 'static;
    /// The typed reference with the same methods.
    type Handle: From<ActorRef> + Clone + Send + Sync + 'static;

    /// The name it is registered under: its path in the program.
    fn name() -> &'static str;

    /// Where in the source it stands, which tells twins of one name apart.
    fn place() -> Place;

    /// Makes the state. It is ready when this has finished.
    fn start(args: Self::Args, cx: &Context) -> impl Future<Output = Result<Self, Error>> + Send;

    /// Handles one message.
    fn handle(
        &mut self,
        message: Self::Message,
        asked: bool,
        cx: &Context,
    ) -> impl Future<Output = Answer> + Send;

    /// Runs at the end of an orderly stop.
    fn stopped(&mut self, cx: &Context) -> impl Future<Output = ()> + Send {
        let _ = cx;
        async {}
    }
}

/// Any actor, whether its futures are [`Send`] or not: what a worker can host. Every [`Actor`] is one; apart from those,
/// `#[actor(not_send)]` implements it, for state that must stay on its thread.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no actor",
    label = "write `#[hatchery::actor]` on an impl block of it that has a `start`"
)]
pub trait AnyActor: Sized + 'static {
    /// What `start` takes.
    type Args: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// One variant a method.
    type Message: Serialize + DeserializeOwned + 'static;
    /// The typed reference with the same methods.
    type Handle: From<ActorRef> + Clone + Send + Sync + 'static;

    /// The name it is registered under: its path in the program.
    fn name() -> &'static str;

    /// Where in the source it stands, which tells twins of one name apart.
    fn place() -> Place;

    /// Makes the state. It is ready when this has finished.
    fn start(args: Self::Args, cx: &Context) -> impl Future<Output = Result<Self, Error>>;

    /// Handles one message.
    fn handle(&mut self, message: Self::Message, asked: bool, cx: &Context) -> impl Future<Output = Answer>;

    /// Runs at the end of an orderly stop.
    fn stopped(&mut self, cx: &Context) -> impl Future<Output = ()> {
        let _ = cx;
        async {}
    }
}

#[diagnostic::do_not_recommend]
impl<A: Actor> AnyActor for A {
    type Args = A::Args;
    type Message = A::Message;
    type Handle = A::Handle;

    fn name() -> &'static str {
        A::name()
    }

    fn place() -> Place {
        A::place()
    }

    fn start(args: A::Args, cx: &Context) -> impl Future<Output = Result<A, Error>> {
        <A as Actor>::start(args, cx)
    }

    fn handle(&mut self, message: A::Message, asked: bool, cx: &Context) -> impl Future<Output = Answer> {
        Actor::handle(self, message, asked, cx)
    }

    fn stopped(&mut self, cx: &Context) -> impl Future<Output = ()> {
        Actor::stopped(self, cx)
    }
}

/// A place in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file, as the compiler names it.
    pub file: &'static str,
    /// Counts from 1.
    pub line: u32,
    /// Counts from 1.
    pub column: u32,
}

impl Place {
    /// From `file!()`, `line!()` and `column!()`.
    pub const fn new(file: &'static str, line: u32, column: u32) -> Place {
        Place { file, line, column }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What a `start` may return: the actor, or a `Result` of it.
pub trait IntoStarted<A> {
    /// As the runner wants it.
    ///
    /// # Errors
    /// The error that `start` returned.
    fn into_started(self) -> Result<A, Error>;
}

impl<A: AnyActor> IntoStarted<A> for A {
    fn into_started(self) -> Result<A, Error> {
        Ok(self)
    }
}

impl<A: AnyActor, E: Display + 'static> IntoStarted<A> for Result<A, E> {
    fn into_started(self) -> Result<A, Error> {
        self.map_err(Error::of)
    }
}

/// The two halves of a `Result` behind whatever alias it was written.
pub trait ResultParts {
    /// The value.
    type Ok;
    /// The error.
    type Err;
}

impl<T, E> ResultParts for Result<T, E> {
    type Ok = T;
    type Err = E;
}

impl Answer {
    /// The answer of a method that cannot fail.
    pub fn value<T: Serialize>(asked: bool, value: &T) -> Answer {
        if asked { encoded(value, Answer::Value) } else { Answer::None }
    }

    /// The answer of a method that returns a `Result`: its `Err` is a reply, no crash.
    pub fn result<T: Serialize, E: Serialize>(asked: bool, result: &Result<T, E>) -> Answer {
        match result {
            _ if !asked => Answer::None,
            Ok(value) => encoded(value, Answer::Value),
            Err(error) => encoded(error, Answer::Error),
        }
    }
}

fn encoded<T: Serialize>(value: &T, answer: fn(Body) -> Answer) -> Answer {
    match encode(value) {
        Ok(body) => answer(body),
        Err(error) => Answer::Fault(Fault::BadAnswer(error.to_string())),
    }
}
