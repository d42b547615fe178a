//! Named functions that another process can run.

use std::any::{Any, TypeId};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;

use hatchery_actor::actor::Place;
use hatchery_actor::child::BoxFuture;
use hatchery_actor::exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::panics;
use hatchery_wire::{Body, DecodeError, EncodeError};

/// What a registered task is to the process that runs it.
#[derive(Debug)]
pub struct TaskEntry {
    /// Its path in the program.
    pub name: &'static str,
    /// Where in the source it stands, which tells twins of one name apart.
    pub place: Place,
    /// How to run it on encoded arguments.
    pub run: TaskRun,
    /// How to run it where many follow one another, if it is synchronous.
    pub packed: Option<PackedRun>,
}

impl TaskEntry {
    /// All of it at once, for a `static`.
    pub const fn new(name: &'static str, place: Place, run: TaskRun, packed: Option<PackedRun>) -> TaskEntry {
        TaskEntry { name, place, run, packed }
    }

    /// The type that it borrows, if it is one that borrows the state of its worker.
    pub fn borrows(&self) -> Option<StateType> {
        match self.run {
            TaskRun::Sync(_) | TaskRun::Async(_) => None,
            TaskRun::OnState(OnState { state, .. }) => Some(state),
        }
    }

    /// Whether it can run where this is the state.
    ///
    /// # Errors
    /// It borrows another type.
    pub fn suits(&self, state: Option<StateType>) -> Result<(), Fault> {
        let Some(wanted) = self.borrows() else { return Ok(()) };
        let has = match state {
            Some(state) if state == wanted => return Ok(()),
            Some(state) => format!("a `{state}`"),
            None => "no state".to_owned(),
        };
        Err(Fault::Refused(format!(
            "it borrows a `{wanted}`, and the workers of its pool have {has}: give it to a pool with `.state(..)` of a \
             `#[hatchery::state]` function that returns what it borrows"
        )))
    }
}

/// Runs a synchronous task on arguments that lie in a row with others, and encodes its result behind what is there
/// already: nothing is allocated for it.
pub type PackedRun = fn(&[u8], &mut Vec<u8>) -> PackedOutcome;

/// What became of a task that was run in a row with others.
#[derive(Debug)]
pub enum PackedOutcome {
    /// Its result lies behind what was there.
    Packed,
    /// It does not, and why. In a box, so that the many which do return a word.
    Apart(Box<Apart>),
}

/// What a task has that was run in a row with others, in place of a result that lies behind theirs.
#[derive(Debug)]
pub enum Apart {
    /// Its result is a body of its own, since it has descriptors or large byte strings.
    Alone(Body),
    /// It has none: the arguments cannot be decoded, or the result cannot be encoded.
    Fault(Fault),
}

impl PackedOutcome {
    /// The outcome of a task that was lent another type than it borrows, which does not happen: see [`StateType`].
    #[cold]
    pub fn refused() -> PackedOutcome {
        PackedOutcome::fault(lent_wrongly())
    }

    /// The outcome of a task whose arguments cannot be decoded.
    #[cold]
    pub fn undecodable(error: &DecodeError) -> PackedOutcome {
        PackedOutcome::fault(Fault::Undecodable(error.to_string()))
    }

    /// The outcome of a task whose result was encoded like this.
    #[inline]
    pub fn value(encoded: Result<Option<Body>, EncodeError>) -> PackedOutcome {
        match encoded {
            Ok(None) => PackedOutcome::Packed,
            Ok(Some(body)) => PackedOutcome::Apart(Box::new(Apart::Alone(body))),
            Err(error) => PackedOutcome::fault(Fault::BadAnswer(error.to_string())),
        }
    }

    #[cold]
    fn fault(fault: Fault) -> PackedOutcome {
        PackedOutcome::Apart(Box::new(Apart::Fault(fault)))
    }
}

/// How to run a task on encoded arguments.
#[derive(Clone, Copy, Debug)]
pub enum TaskRun {
    /// On the thread it is called on.
    Sync(fn(Body) -> TaskOutcome),
    /// As a future.
    Async(fn(Body) -> BoxFuture<TaskOutcome>),
    /// On the state of its worker, which a process of its own has not.
    OnState(OnState),
}

/// How to run a task that borrows the state of its worker.
#[derive(Clone, Copy, Debug)]
pub struct OnState {
    /// What it borrows.
    pub state: StateType,
    /// How to run it.
    pub run: RunOnState,
    /// How to run it where many follow one another, if it is synchronous.
    pub packed: Option<PackedRunOnState>,
}

/// How to run a task on encoded arguments and borrowed state.
#[derive(Clone, Copy, Debug)]
pub enum RunOnState {
    /// On the thread it is called on.
    Sync(fn(Body, &mut dyn Any) -> TaskOutcome),
    /// As a future that stays on its thread, as the state does.
    Async(fn(Body, &mut dyn Any) -> LocalFuture<'_, TaskOutcome>),
}

/// As [`PackedRun`], on borrowed state.
pub type PackedRunOnState = fn(&[u8], &mut Vec<u8>, &mut dyn Any) -> PackedOutcome;

/// A future that stays on its thread, and may borrow.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The type of the state that a worker has, or that a task borrows.
#[derive(Clone, Copy)]
pub struct StateType {
    id: fn() -> TypeId,
    name: fn() -> &'static str,
}

impl StateType {
    /// The one of this type.
    pub const fn of<S: 'static>() -> StateType {
        StateType { id: TypeId::of::<S>, name: std::any::type_name::<S> }
    }
}

impl PartialEq for StateType {
    fn eq(&self, other: &StateType) -> bool {
        (self.id)() == (other.id)()
    }
}

impl Eq for StateType {}

impl fmt::Display for StateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str((self.name)())
    }
}

impl fmt::Debug for StateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What became of a task.
#[derive(Debug)]
pub struct TaskOutcome {
    pub(crate) result: Result<Body, Fault>,
    pub(crate) failed: bool,
    /// What the `Err` says that it returned, if it says anything.
    pub(crate) why: Option<String>,
}

impl TaskOutcome {
    /// Whether it returned an `Err`, or nothing.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// What it returned, or why there is nothing.
    pub fn into_result(self) -> Result<Body, Fault> {
        self.result
    }

    /// The outcome of a task that was lent another type than it borrows, which does not happen: see [`StateType`].
    pub fn refused() -> TaskOutcome {
        TaskOutcome { result: Err(lent_wrongly()), failed: true, why: None }
    }

    /// The outcome of a task whose arguments cannot be decoded.
    pub fn undecodable(error: &DecodeError) -> TaskOutcome {
        TaskOutcome { result: Err(Fault::Undecodable(error.to_string())), failed: true, why: None }
    }

    /// The outcome of a task that returned this, encoded; `failed` says that it was an `Err`.
    pub fn value(encoded: Result<Body, EncodeError>, failed: bool) -> TaskOutcome {
        match encoded {
            Ok(body) => TaskOutcome { result: Ok(body), failed, why: None },
            Err(error) => {
                TaskOutcome { result: Err(Fault::BadAnswer(error.to_string())), failed: true, why: None }
            }
        }
    }

    /// The outcome of a task that returned an `Err`, encoded with all around it, and what that says.
    pub fn error(encoded: Result<Body, EncodeError>, why: Option<String>) -> TaskOutcome {
        TaskOutcome { why, ..TaskOutcome::value(encoded, true) }
    }
}

/// An error about to say what it is, by its `Display`, or else by its `Debug`, if it has one of them. The macro finds out
/// which, by how often it has to be dereferenced.
pub struct InWords<'a, E>(pub &'a E);

/// Says it by `Display`.
pub trait InWordsByDisplay {
    /// What it says, or the beginning of that.
    fn in_words(&self) -> Option<String>;
}

impl<E: fmt::Display> InWordsByDisplay for &&InWords<'_, E> {
    fn in_words(&self) -> Option<String> {
        // Whatever its `Display` does, what it is has been encoded.
        panics::catch_call(|| exit::in_short(self.0)).ok()
    }
}

/// Says it by `Debug`.
pub trait InWordsByDebug {
    /// What it says, or the beginning of that.
    fn in_words(&self) -> Option<String>;
}

impl<E: fmt::Debug> InWordsByDebug for &InWords<'_, E> {
    fn in_words(&self) -> Option<String> {
        panics::catch_call(|| exit::in_short(format_args!("{:?}", self.0))).ok()
    }
}

/// Says nothing.
pub trait WithoutWords {
    /// Nothing.
    fn in_words(&self) -> Option<String>;
}

impl<E> WithoutWords for InWords<'_, E> {
    fn in_words(&self) -> Option<String> {
        None
    }
}

fn lent_wrongly() -> Fault {
    Fault::Refused("its worker has state of another type than it borrows".to_owned())
}

/// A function that another process can run: what `#[task]` makes of a function. It derefs to the function, so
/// calling it is a plain call.
pub struct Task<A, R, F> {
    entry: &'static TaskEntry,
    call: F,
    encode: fn(&A) -> Result<Body, EncodeError>,
    decode: fn(Body) -> Result<R, DecodeError>,
    packing: Packing<A, R>,
    types: PhantomData<fn(A) -> R>,
}

/// The caller's half of many tasks in a row.
#[doc(hidden)]
pub struct Packing<A, R> {
    /// Encodes arguments behind what is there; those that have to lie alone are given back.
    pub encode: fn(A, &mut Vec<u8>) -> Result<Option<Body>, EncodeError>,
    /// Decodes a result out of what lies in somebody else's memory.
    pub decode: fn(&[u8]) -> Result<R, DecodeError>,
}

impl<A, R> Clone for Packing<A, R> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A, R> Copy for Packing<A, R> {}

impl<A, R, F> Task<A, R, F> {
    /// Written by `#[task]`.
    #[doc(hidden)]
    pub const fn new(
        entry: &'static TaskEntry,
        call: F,
        encode: fn(&A) -> Result<Body, EncodeError>,
        decode: fn(Body) -> Result<R, DecodeError>,
        encode_packed: fn(A, &mut Vec<u8>) -> Result<Option<Body>, EncodeError>,
        decode_packed: fn(&[u8]) -> Result<R, DecodeError>,
    ) -> Task<A, R, F> {
        let packing = Packing { encode: encode_packed, decode: decode_packed };
        Task { entry, call, encode, decode, packing, types: PhantomData }
    }

    /// Stands where `#[task]` refused a function, so that its callers are not refused as well; never runs.
    #[doc(hidden)]
    pub const fn refused(call: F) -> Task<A, R, F> {
        static ENTRY: TaskEntry =
            TaskEntry::new("", Place::new("", 0, 0), TaskRun::Sync(|_| unreachable!()), None);
        Task::new(
            &ENTRY,
            call,
            |_| unreachable!(),
            |_| unreachable!(),
            |_, _| unreachable!(),
            |_| unreachable!(),
        )
    }
}

impl<A, R, F> Deref for Task<A, R, F> {
    type Target = F;
    fn deref(&self) -> &F {
        &self.call
    }
}

impl<A, R, F: Copy> Clone for Task<A, R, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A, R, F: Copy> Copy for Task<A, R, F> {}

impl<A, R, F> fmt::Debug for Task<A, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task({})", self.entry.name)
    }
}

/// What a process can run: a [`Task`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run in another process",
    label = "write `#[hatchery::task]` on a named function, and give that",
    note = "a closure or a plain function has no name that another process could find it by"
)]
pub trait Runs {
    /// What it takes: nothing, its one parameter, or the tuple of them.
    type Args;
    /// What it returns, literally.
    type Output;

    #[doc(hidden)]
    fn entry(&self) -> &'static TaskEntry;
    #[doc(hidden)]
    fn encode_args(&self, args: &Self::Args) -> Result<Body, EncodeError>;
    #[doc(hidden)]
    fn decoder(&self) -> fn(Body) -> Result<Self::Output, DecodeError>;
    #[doc(hidden)]
    fn packing(&self) -> Packing<Self::Args, Self::Output>;
}

impl<A, R, F> Runs for Task<A, R, F> {
    type Args = A;
    type Output = R;

    fn entry(&self) -> &'static TaskEntry {
        self.entry
    }
    fn encode_args(&self, args: &A) -> Result<Body, EncodeError> {
        (self.encode)(args)
    }
    fn decoder(&self) -> fn(Body) -> Result<R, DecodeError> {
        self.decode
    }
    fn packing(&self) -> Packing<A, R> {
        self.packing
    }
}
