//! State that workers of pools have: the functions that build it, and the tasks that borrow it.

use std::any::Any;
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::ops::Deref;

use hatchery_actor::actor::Place;
use hatchery_actor::error::Error;
use hatchery_wire::{Body, DecodeError, EncodeError};

use crate::task::{
    LocalFuture, OnState, Packing, RunOnState, Runs, StateType, TaskEntry, TaskOutcome, TaskRun,
};

/// What a registered function that builds state is to the worker that calls it.
#[derive(Debug)]
pub struct StateEntry {
    /// Its path in the program.
    pub name: &'static str,
    /// Where in the source it stands, which tells twins of one name apart.
    pub place: Place,
    /// What it builds.
    pub state: StateType,
    /// How to call it on encoded arguments.
    pub build: Build,
}

impl StateEntry {
    /// All of it at once, for a `static`.
    pub const fn new(name: &'static str, place: Place, state: StateType, build: Build) -> StateEntry {
        StateEntry { name, place, state, build }
    }
}

/// How to build state from encoded arguments.
#[derive(Clone, Copy, Debug)]
pub enum Build {
    /// On the thread it is called on.
    Sync(fn(Body) -> Built),
    /// As a future that stays on its thread.
    Async(fn(Body) -> LocalFuture<'static, Built>),
}

/// State of any type, or why there is none.
pub type Built = Result<Box<dyn Any>, Error>;

/// What the function returned.
#[doc(hidden)]
pub fn built<S: 'static, E: Display + 'static>(returned: Result<S, E>) -> Built {
    match returned {
        Ok(state) => Ok(Box::new(state)),
        Err(error) => Err(Error::of(error)),
    }
}

/// Its arguments were not those of the function.
#[doc(hidden)]
pub fn not_built(error: DecodeError) -> Built {
    Err(Error::from(error).context("the arguments could not be decoded"))
}

/// A function that builds the state of a pool's workers: what `#[state]` makes of a function. It derefs to the function, so
/// calling it is a plain call.
///
/// A worker calls it once, on the thread that runs its tasks, and there the state stays: it is neither sent nor encoded, so it
/// may be anything that is `'static`. See `PoolBuilder::state`.
pub struct State<S, A, F> {
    entry: &'static StateEntry,
    call: F,
    encode: fn(&A) -> Result<Body, EncodeError>,
    types: PhantomData<fn(A) -> S>,
}

impl<S, A, F> State<S, A, F> {
    /// Written by `#[state]`.
    #[doc(hidden)]
    pub const fn new(
        entry: &'static StateEntry,
        call: F,
        encode: fn(&A) -> Result<Body, EncodeError>,
    ) -> State<S, A, F> {
        State { entry, call, encode, types: PhantomData }
    }

    /// Stands where `#[state]` refused a function, so that its callers are not refused as well; never runs.
    #[doc(hidden)]
    pub const fn refused(call: F) -> State<S, A, F> {
        static ENTRY: StateEntry =
            StateEntry::new("", Place::new("", 0, 0), StateType::of::<()>(), Build::Sync(|_| unreachable!()));
        State::new(&ENTRY, call, |_| unreachable!())
    }
}

impl<S, A, F> Deref for State<S, A, F> {
    type Target = F;
    fn deref(&self) -> &F {
        &self.call
    }
}

impl<S, A, F: Copy> Clone for State<S, A, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S, A, F: Copy> Copy for State<S, A, F> {}

impl<S, A, F> fmt::Debug for State<S, A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({})", self.entry.name)
    }
}

/// What builds the state of a pool's workers: a [`State`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot build the state of workers",
    label = "write `#[hatchery::state]` on a named function, and give that",
    note = "a closure or a plain function has no name that another process could find it by"
)]
pub trait BuildsState {
    /// What it takes: nothing, its one parameter, or the tuple of them.
    type Args;
    /// What it builds.
    type State: 'static;

    #[doc(hidden)]
    fn entry(&self) -> &'static StateEntry;
    #[doc(hidden)]
    fn encode_args(&self, args: &Self::Args) -> Result<Body, EncodeError>;
}

impl<S: 'static, A, F> BuildsState for State<S, A, F> {
    type Args = A;
    type State = S;

    fn entry(&self) -> &'static StateEntry {
        self.entry
    }
    fn encode_args(&self, args: &A) -> Result<Body, EncodeError> {
        (self.encode)(args)
    }
}

/// A function that borrows the state of its worker: what `#[task]` makes of a function whose first parameter is `&mut S` or
/// `&S`. It derefs to the function, so calling it is a plain call.
///
/// It runs in workers of pools alone, which have such a state: it is no [`Runs`], but a [`RunsInPool`].
pub struct TaskOn<S, A, R, F> {
    entry: &'static TaskEntry,
    call: F,
    encode: fn(&A) -> Result<Body, EncodeError>,
    decode: fn(Body) -> Result<R, DecodeError>,
    packing: Packing<A, R>,
    types: PhantomData<fn(S, A) -> R>,
}

impl<S, A, R, F> TaskOn<S, A, R, F> {
    /// Written by `#[task]`.
    #[doc(hidden)]
    pub const fn new(
        entry: &'static TaskEntry,
        call: F,
        encode: fn(&A) -> Result<Body, EncodeError>,
        decode: fn(Body) -> Result<R, DecodeError>,
        encode_packed: fn(A, &mut Vec<u8>) -> Result<Option<Body>, EncodeError>,
        decode_packed: fn(&[u8]) -> Result<R, DecodeError>,
    ) -> TaskOn<S, A, R, F> {
        let packing = Packing { encode: encode_packed, decode: decode_packed };
        TaskOn { entry, call, encode, decode, packing, types: PhantomData }
    }

    /// Stands where `#[task]` refused a function, so that its callers are not refused as well; never runs.
    #[doc(hidden)]
    pub const fn refused(call: F) -> TaskOn<S, A, R, F> {
        static ENTRY: TaskEntry = TaskEntry::new(
            "",
            Place::new("", 0, 0),
            TaskRun::OnState(OnState {
                state: StateType::of::<()>(),
                run: RunOnState::Sync(|_, _| TaskOutcome::refused()),
                packed: None,
            }),
            None,
        );
        TaskOn::new(
            &ENTRY,
            call,
            |_| unreachable!(),
            |_| unreachable!(),
            |_, _| unreachable!(),
            |_| unreachable!(),
        )
    }
}

impl<S, A, R, F> Deref for TaskOn<S, A, R, F> {
    type Target = F;
    fn deref(&self) -> &F {
        &self.call
    }
}

impl<S, A, R, F: Copy> Clone for TaskOn<S, A, R, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S, A, R, F: Copy> Copy for TaskOn<S, A, R, F> {}

impl<S, A, R, F> fmt::Debug for TaskOn<S, A, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskOn({})", self.entry.name)
    }
}

/// What a worker of a pool can run: a [`Task`](crate::task::Task), or a [`TaskOn`] its state.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run in another process",
    label = "write `#[hatchery::task]` on a named function, and give that",
    note = "a closure or a plain function has no name that another process could find it by"
)]
pub trait RunsInPool {
    /// What it takes besides the state: nothing, its one parameter, or the tuple of them.
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

#[diagnostic::do_not_recommend]
impl<T: Runs> RunsInPool for T {
    type Args = T::Args;
    type Output = T::Output;

    fn entry(&self) -> &'static TaskEntry {
        Runs::entry(self)
    }
    fn encode_args(&self, args: &T::Args) -> Result<Body, EncodeError> {
        Runs::encode_args(self, args)
    }
    fn decoder(&self) -> fn(Body) -> Result<T::Output, DecodeError> {
        Runs::decoder(self)
    }
    fn packing(&self) -> Packing<T::Args, T::Output> {
        Runs::packing(self)
    }
}

impl<S, A, R, F> RunsInPool for TaskOn<S, A, R, F> {
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

/// Stands for a task that borrows this, for [`RunsAlone`].
#[doc(hidden)]
#[derive(Debug)]
pub struct Borrower<S>(PhantomData<fn(S)>);

/// Nothing does: it is what the compiler misses, and tells of in these words, where a task that borrows state would be alone.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a task that borrows the state of its worker cannot run by itself",
    label = "give it to a pool: `Pool::builder().state(..)`, then `pool.submit(..)` or `pool.map(..)`",
    note = "if it is no state that it borrows, write an owned type instead of the reference"
)]
pub trait RunsAlone {}

impl<S, A, R, F> Runs for TaskOn<S, A, R, F>
where
    // Another type than the one above: of two with the same the compiler tells of the other.
    Borrower<S>: RunsAlone,
{
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
