//! What a supervisor decides, as a pure function: `step(state, event, now) -> (state, actions)`.
//!
//! A child is in one of these phases:
//!
//! ```text
//!   add ──▶ Starting ──ready──▶ Running ──exit──▶ Starting (the next incarnation)
//!              │ first start fails: removed           │ more restarts than the intensity allows:
//!              ▼                                       ▼ everything stops, newest first
//!            gone ◀────────── exit ────────────── Stopping ◀── stop
//! ```
//!
//! | event | while running | while stopping |
//! |---|---|---|
//! | the child becomes ready | it is running | stop it |
//! | its first start fails | remove it, tell who asked | removed |
//! | a later start fails | one restart more, start it again | removed |
//! | it exits | one restart more, start it again | removed |
//! | the (max + 1)th restart within the window | stop everything, newest first | |
//!
//! This is one-for-one with permanent children; what other strategies and kinds of children do will be further rows.

use std::collections::VecDeque;
use std::time::Duration;

/// Names a child of one supervisor; never used twice.
pub type Id = u64;

/// How many restarts within how much time are still normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    /// Restarts that are allowed …
    pub max: u32,
    /// … within this time.
    pub within: Duration,
}

impl Default for Intensity {
    /// Ten in a minute.
    fn default() -> Intensity {
        Intensity { max: 10, within: Duration::from_secs(60) }
    }
}

/// All that a supervisor remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    intensity: Intensity,
    /// When the latest restarts were, oldest first; never more than `max`.
    restarts: VecDeque<Duration>,
    /// In order of their addition.
    children: Vec<Child>,
    ending: Option<Ending>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Child {
    id: Id,
    incarnation: u64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Stopping,
}

/// Why a supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// This child was the last straw.
    Exhausted(Id),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new child is wanted.
    Add(Id),
    /// A start has succeeded.
    Ready(Id),
    /// A start has failed; nothing of it is left.
    StartFailed(Id),
    /// A child that was ready has ended.
    Exited(Id),
    /// Everything shall stop.
    Stop,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start this incarnation of it.
    Start(Id, u64),
    /// Stop it, or give up its start. Its end is told by `Exited` or `StartFailed` as any other.
    Stop(Id),
    /// Forget it; nobody will sit in its seat again.
    Remove(Id),
    /// Everything has stopped.
    Finish(Ending),
}

impl State {
    /// A supervisor without children.
    pub fn new(intensity: Intensity) -> State {
        State { intensity, restarts: VecDeque::new(), children: Vec::new(), ending: None }
    }

    /// Whether it still takes new children.
    pub fn is_open(&self) -> bool {
        self.ending.is_none()
    }

    /// Whether it gave up, and this child was the last straw.
    pub fn ended_by(&self, id: Id) -> bool {
        self.ending == Some(Ending::Exhausted(id))
    }
}

/// The decision. `now` is any clock that does not go back. Events about children that are not there are ignored.
pub fn step(mut state: State, event: Event, now: Duration) -> (State, Vec<Action>) {
    let mut actions = Vec::new();
    match event {
        Event::Add(id) => {
            if state.is_open() && state.find(id).is_none() {
                state.children.push(Child { id, incarnation: 1, phase: Phase::Starting });
                actions.push(Action::Start(id, 1));
            } else {
                actions.push(Action::Remove(id));
            }
        }
        Event::Ready(id) => {
            if let Some(child) = state.find(id) {
                if child.phase == Phase::Starting {
                    child.phase = Phase::Running;
                }
            }
        }
        Event::StartFailed(id) | Event::Exited(id) => {
            let Some(child) = state.find(id) else { return (state, actions) };
            let first_start = child.phase == Phase::Starting && child.incarnation == 1;
            if state.ending.is_some() || first_start {
                state.children.retain(|child| child.id != id);
                actions.push(Action::Remove(id));
                if state.ending.is_some() {
                    stop_newest(&mut state, &mut actions);
                }
            } else if count_restart(&mut state, now) {
                if let Some(child) = state.find(id) {
                    child.incarnation += 1;
                    child.phase = Phase::Starting;
                    actions.push(Action::Start(id, child.incarnation));
                }
            } else {
                state.children.retain(|child| child.id != id);
                state.ending = Some(Ending::Exhausted(id));
                actions.push(Action::Remove(id));
                stop_newest(&mut state, &mut actions);
            }
        }
        Event::Stop => {
            if state.ending.is_none() {
                state.ending = Some(Ending::Stopped);
                stop_newest(&mut state, &mut actions);
            }
        }
    }
    (state, actions)
}

impl State {
    fn find(&mut self, id: Id) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.id == id)
    }
}

/// Counts one restart; false if that is one too many.
fn count_restart(state: &mut State, now: Duration) -> bool {
    let Intensity { max, within } = state.intensity;
    let oldest = now.saturating_sub(within);
    // A restart exactly `within` ago no longer counts, unless the clock has just begun.
    while state.restarts.front().is_some_and(|at| *at < oldest || (*at == oldest && now >= within)) {
        state.restarts.pop_front();
    }
    if state.restarts.len() >= usize::try_from(max).unwrap_or(usize::MAX) {
        return false;
    }
    state.restarts.push_back(now);
    true
}

/// Stops the newest child that is left; each next one when its elder neighbour's turn has come. At the end, finishes.
fn stop_newest(state: &mut State, actions: &mut Vec<Action>) {
    match (state.children.last_mut(), state.ending) {
        (Some(child), _) => {
            if child.phase != Phase::Stopping {
                child.phase = Phase::Stopping;
                actions.push(Action::Stop(child.id));
            }
        }
        (None, Some(ending)) => actions.push(Action::Finish(ending)),
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn after(state: State, events: &[Event]) -> (State, Vec<Action>) {
        events.iter().fold((state, Vec::new()), |(state, _), event| step(state, *event, NOW))
    }

    fn running(ids: &[Id], max: u32) -> State {
        let mut state = State::new(Intensity { max, within: Duration::from_secs(60) });
        for id in ids {
            (state, _) = after(state, &[Event::Add(*id), Event::Ready(*id)]);
        }
        state
    }

    #[test]
    fn a_child_that_exits_is_started_again_at_once() {
        let (_, actions) = after(running(&[1, 2], 10), &[Event::Exited(1)]);
        assert_eq!(actions, [Action::Start(1, 2)]);
    }

    #[test]
    fn a_first_start_that_fails_is_not_tried_again() {
        let state = State::new(Intensity::default());
        let (state, actions) = after(state, &[Event::Add(1), Event::StartFailed(1)]);
        assert_eq!(actions, [Action::Remove(1)]);
        assert!(state.is_open());
    }

    #[test]
    fn a_later_start_that_fails_counts_as_one_restart_more() {
        let (state, actions) = after(running(&[1], 2), &[Event::Exited(1), Event::StartFailed(1)]);
        assert_eq!(actions, [Action::Start(1, 3)]);
        let (_, actions) = after(state, &[Event::StartFailed(1)]);
        assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Exhausted(1))]);
    }

    #[test]
    fn one_restart_too_many_stops_the_others_newest_first() {
        let (state, actions) = after(running(&[1, 2, 3], 0), &[Event::Exited(2)]);
        assert_eq!(actions, [Action::Remove(2), Action::Stop(3)]);
        let (state, actions) = after(state, &[Event::Exited(3)]);
        assert_eq!(actions, [Action::Remove(3), Action::Stop(1)]);
        let (_, actions) = after(state, &[Event::Exited(1)]);
        assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Exhausted(2))]);
    }

    #[test]
    fn restarts_outside_the_window_do_not_count() {
        let mut state = running(&[1], 1);
        for round in 0..20 {
            let now = NOW + Duration::from_secs(60 * round);
            let (next, actions) = step(state, Event::Exited(1), now);
            assert_eq!(actions, [Action::Start(1, 2 + round)]);
            (state, _) = step(next, Event::Ready(1), now);
        }
        let within = NOW + Duration::from_secs(60 * 20 - 1);
        let (_, actions) = step(state, Event::Exited(1), within);
        assert!(actions.contains(&Action::Finish(Ending::Exhausted(1))));
    }

    #[test]
    fn a_child_that_becomes_ready_while_it_is_being_stopped_stays_stopping() {
        let (state, _) = after(State::new(Intensity::default()), &[Event::Add(1), Event::Stop]);
        let (state, actions) = after(state, &[Event::Ready(1)]);
        assert_eq!(actions, []);
        let (_, actions) = after(state, &[Event::Exited(1)]);
        assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Stopped)]);
    }

    #[test]
    fn siblings_that_die_while_the_newest_is_being_stopped_are_not_started_again() {
        let (state, actions) = after(running(&[1, 2], 10), &[Event::Stop]);
        assert_eq!(actions, [Action::Stop(2)]);
        let (state, actions) = after(state, &[Event::Exited(1)]);
        assert_eq!(actions, [Action::Remove(1)]);
        let (_, actions) = after(state, &[Event::Exited(2)]);
        assert_eq!(actions, [Action::Remove(2), Action::Finish(Ending::Stopped)]);
    }

    #[test]
    fn nothing_is_added_to_one_that_stops() {
        let (_, actions) = after(running(&[1], 10), &[Event::Stop, Event::Add(2)]);
        assert_eq!(actions, [Action::Remove(2)]);
    }

    mod any_order {
        use std::collections::BTreeSet;

        use proptest::prelude::*;

        use super::*;

        fn event() -> impl Strategy<Value = Event> {
            prop_oneof![
                4 => (0_u64..6).prop_map(Event::Add),
                6 => (0_u64..6).prop_map(Event::Ready),
                2 => (0_u64..6).prop_map(Event::StartFailed),
                4 => (0_u64..6).prop_map(Event::Exited),
                1 => Just(Event::Stop),
            ]
        }

        proptest! {
            #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

            /// Whatever happens in whatever order: incarnations only grow, no seat is filled twice, the intensity
            /// holds, and once it ends nothing starts and it finishes exactly when the last child is gone.
            #[test]
            fn keeps_its_invariants(events in prop::collection::vec((event(), 0_u64..40), 0..60), max in 0_u32..4) {
                let within = Duration::from_secs(60);
                let mut state = State::new(Intensity { max, within });
                let (mut now, mut starts) = (NOW, Vec::new());
                let mut present = BTreeSet::new();
                let mut finished = false;
                for (event, pause) in events {
                    now += Duration::from_secs(pause);
                    // Ids are never used twice, as in the shell above this function.
                    if let Event::Add(id) = event {
                        if state.children.iter().any(|child| child.id == id) { continue }
                    }
                    let was_open = state.is_open();
                    let (next, actions) = step(state, event, now);
                    state = next;
                    for action in actions {
                        match action {
                            Action::Start(id, incarnation) => {
                                prop_assert!(was_open);
                                if incarnation == 1 { prop_assert!(present.insert(id)); }
                                else {
                                    prop_assert!(present.contains(&id));
                                    starts.push(now);
                                    let recent = starts.iter().filter(|at| now - **at < within).count();
                                    prop_assert!(recent <= max as usize, "{recent} restarts in the window");
                                }
                            }
                            Action::Stop(id) => prop_assert!(present.contains(&id)),
                            Action::Remove(id) => drop(present.remove(&id)),
                            Action::Finish(_) => {
                                prop_assert!(!finished && present.is_empty());
                                finished = true;
                            }
                        }
                    }
                    prop_assert_eq!(finished, !state.is_open() && present.is_empty());
                }
            }
        }
    }
}
