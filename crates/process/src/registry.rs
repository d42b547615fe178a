//! The names under which tasks and actors of this program can be found by its processes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hatchery_actor::actor::{AnyActor, Place};
use hatchery_actor::fault::Fault;

use crate::inside::{self, Ended, Inside};
use crate::state::StateEntry;
use crate::task::TaskEntry;

/// A task that `#[task]` registered.
pub struct HostedTask(pub &'static TaskEntry);

inventory::collect!(HostedTask);

/// A function that `#[state]` registered.
pub struct HostedState(pub &'static StateEntry);

inventory::collect!(HostedState);

/// An actor that can be hosted: registered by `#[actor]`, or by hand with `program().hosts::<A>()`.
#[derive(Clone, Copy)]
pub struct HostedActor {
    name: fn() -> &'static str,
    place: fn() -> Place,
    live: fn(Inside) -> Ended,
}

inventory::collect!(HostedActor);

impl HostedActor {
    /// The entry of this actor.
    pub const fn of<A: AnyActor>() -> HostedActor {
        HostedActor { name: A::name, place: A::place, live: inside::host_actor::<A> }
    }

    /// Whether both name the same actor: twins of one name stand at different places.
    fn is(&self, other: &HostedActor) -> bool {
        (self.name)() == (other.name)() && (self.place)() == (other.place)()
    }

    pub(crate) fn live(&self, inside: Inside) -> Ended {
        (self.live)(inside)
    }
}

/// Actors registered by hand, in this process.
static BY_HAND: Mutex<Vec<HostedActor>> = Mutex::new(Vec::new());

fn by_hand() -> MutexGuard<'static, Vec<HostedActor>> {
    BY_HAND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers an actor by hand; once is enough, twice does no harm.
pub(crate) fn host(actor: HostedActor) {
    let mut list = by_hand();
    if !list.iter().any(|known| known.is(&actor)) {
        list.push(actor);
    }
}

/// Finds a task by name and place.
///
/// # Errors
/// There is none, or more than one.
pub fn task(name: &str, place: &str) -> Result<&'static TaskEntry, Fault> {
    let all = inventory::iter::<HostedTask>().map(|task| task.0).collect();
    one("task", name, place, all, |entry| (entry.name, entry.place))
}

/// Finds a function that builds state by name and place.
///
/// # Errors
/// There is none, or more than one.
pub fn state(name: &str, place: &str) -> Result<&'static StateEntry, Fault> {
    let all = inventory::iter::<HostedState>().map(|state| state.0).collect();
    one("state", name, place, all, |entry| (entry.name, entry.place))
}

/// Finds an actor by name and place.
pub(crate) fn actor(name: &str, place: &str) -> Result<HostedActor, Fault> {
    let mut entries: Vec<HostedActor> = inventory::iter::<HostedActor>().copied().collect();
    for actor in by_hand().iter() {
        // One that `#[actor]` registered may be hosted by hand as well.
        if !entries.iter().any(|known| known.is(actor)) {
            entries.push(*actor);
        }
    }
    one("actor", name, place, entries, |entry| ((entry.name)(), (entry.place)()))
}

/// The one of them all that is called so, or an error that names all there are.
fn one<T: Copy>(
    kind: &str,
    name: &str,
    place: &str,
    all: Vec<T>,
    called: impl Fn(T) -> (&'static str, Place),
) -> Result<T, Fault> {
    let names = all.iter().map(|entry| (*entry, called(*entry)));
    let found: Vec<_> = names.filter(|(_, of)| of.0 == name && of.1.to_string() == place).collect();
    match found[..] {
        [(entry, _)] => Ok(entry),
        [] => {
            let mut names: Vec<_> = all.into_iter().map(|entry| called(entry).0).collect();
            names.sort_unstable();
            names.dedup();
            let hosted = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(Fault::Refused(format!(
                "the {kind} {name} is not hosted by this program. Hosted are: {hosted}. A generic actor is registered \
                 by hand, with `hatchery::hosts!({name});` beside any function; an item of a crate that the program \
                 does not otherwise use is linked by `use that_crate as _;`"
            )))
        }
        _ => {
            let places: Vec<_> = found.iter().map(|(_, (_, place))| place.to_string()).collect();
            Err(Fault::Refused(format!(
                "the {kind} {name} is registered twice: at {}; register it once",
                places.join(" and at ")
            )))
        }
    }
}
