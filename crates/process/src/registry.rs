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
    let entries: Vec<_> = inventory::iter::<HostedTask>().map(|task| task.0).collect();
    let found = entries.iter().filter(|entry| entry.name == name && entry.place.to_string() == place);
    one(
        "task",
        name,
        found.copied().collect(),
        |entry| entry.place,
        || entries.iter().map(|entry| entry.name.to_owned()).collect(),
    )
}

/// Finds a function that builds state by name and place.
///
/// # Errors
/// There is none, or more than one.
pub fn state(name: &str, place: &str) -> Result<&'static StateEntry, Fault> {
    let entries: Vec<_> = inventory::iter::<HostedState>().map(|state| state.0).collect();
    let found = entries.iter().filter(|entry| entry.name == name && entry.place.to_string() == place);
    one(
        "state",
        name,
        found.copied().collect(),
        |entry| entry.place,
        || entries.iter().map(|entry| entry.name.to_owned()).collect(),
    )
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
    let found = entries.iter().filter(|entry| (entry.name)() == name && (entry.place)().to_string() == place);
    one(
        "actor",
        name,
        found.copied().collect(),
        |entry| (entry.place)(),
        || entries.iter().map(|entry| (entry.name)().to_owned()).collect(),
    )
}

/// Exactly one, or an error that names all there are.
fn one<T>(
    kind: &str,
    name: &str,
    mut found: Vec<T>,
    place: impl Fn(&T) -> Place,
    all: impl Fn() -> Vec<String>,
) -> Result<T, Fault> {
    if found.len() > 1 {
        let places: Vec<_> = found.iter().map(|entry| place(entry).to_string()).collect();
        return Err(Fault::Refused(format!(
            "the {kind} {name} is registered twice: at {}; register it once",
            places.join(" and at ")
        )));
    }
    found.pop().ok_or_else(|| {
        let mut names = all();
        names.sort();
        names.dedup();
        let hosted = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Fault::Refused(format!(
            "the {kind} {name} is not hosted by this program. Hosted are: {hosted}. A generic actor is registered \
             by hand, with `hatchery::hosts!({name});` beside any function; an item of a crate that the program does \
             not otherwise use is linked by `use that_crate as _;`"
        ))
    })
}
