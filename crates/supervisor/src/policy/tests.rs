//! What is decided, one rule a test; `model.rs` has all of them at once.

use super::*;

const NOW: Duration = Duration::from_secs(1000);
/// With it a wait is neither longer nor shorter than planned.
const EVEN: u64 = 200_000;

use super::Restart::{Permanent, Temporary, Transient};

fn add(id: Id) -> Event {
    Event::Add(id, Permanent.into())
}

/// A healthy one dies.
fn dies(id: Id) -> Event {
    Event::Exited { id, death: Death::Abnormal, answered: true }
}

fn dies_early(id: Id) -> Event {
    Event::Exited { id, death: Death::Abnormal, answered: false }
}

fn leaves(id: Id) -> Event {
    Event::Exited { id, death: Death::Clean, answered: true }
}

fn fails(id: Id) -> Event {
    Event::StartFailed(id, Death::Abnormal)
}

fn after(state: State, events: &[Event]) -> (State, Vec<Action>) {
    events.iter().fold((state, Vec::new()), |(state, _), event| step(state, *event, NOW, EVEN))
}

fn rules(strategy: Strategy, max: u32) -> Rules {
    let intensity = Intensity { max, within: Duration::from_secs(60) };
    Rules { strategy, intensity, ..Rules::default() }
}

fn running_by(rules: Rules, children: &[(Id, Restart)]) -> State {
    let mut state = State::new(rules);
    for (id, restart) in children {
        (state, _) = after(state, &[Event::Add(*id, (*restart).into()), Event::Ready(*id)]);
    }
    state
}

fn running(ids: &[Id], max: u32) -> State {
    let children: Vec<_> = ids.iter().map(|id| (*id, Permanent)).collect();
    running_by(rules(Strategy::OneForOne, max), &children)
}

fn group(strategy: Strategy) -> State {
    running_by(rules(strategy, 10), &[(1, Permanent), (2, Permanent), (3, Permanent)])
}

/// Whom those that are down wait for, and those.
fn held(state: &State) -> (Vec<Id>, Vec<Id>) {
    let down = (1..=3).filter(|id| state.is_down(*id)).collect();
    (state.in_the_way().collect(), down)
}

#[test]
fn in_a_group_those_that_are_down_wait_for_the_one_that_is_being_stopped() {
    let (state, _) = after(group(Strategy::OneForAll), &[dies(2)]);
    assert_eq!(held(&state), (vec![3], vec![2]));
    let (state, _) = after(state, &[leaves(3)]);
    assert_eq!(held(&state), (vec![1], vec![2, 3]));
    let (state, _) = after(state, &[leaves(1)]);
    assert_eq!(held(&state), (vec![], vec![2, 3]), "the first of them starts");
    let (state, _) = after(group(Strategy::RestForOne), &[dies(2)]);
    assert_eq!(held(&state), (vec![3], vec![2]));
    let (state, _) = after(state, &[leaves(3)]);
    assert_eq!(held(&state), (vec![], vec![3]));
}

#[test]
fn who_is_started_alone_waits_for_no_sibling_until_all_end() {
    let (state, _) = after(running(&[1, 2, 3], 10), &[Event::Terminate(3), dies_early(2)]);
    assert_eq!(held(&state), (vec![], vec![2]));
    // In a group it does wait, also for one that somebody has stopped by hand.
    let (state, _) = after(group(Strategy::OneForAll), &[dies_early(2), leaves(3), Event::Terminate(1)]);
    assert_eq!(held(&state), (vec![1], vec![2, 3]));
    let (state, _) = after(running(&[1, 2, 3], 10), &[dies_early(2), Event::Stop]);
    assert_eq!(held(&state), (vec![3], vec![2]));
    let (state, _) = after(state, &[leaves(3)]);
    assert_eq!(held(&state), (vec![1], vec![2, 3]), "they are gone");
}

#[test]
fn a_child_that_exits_is_started_again_at_once() {
    let (_, actions) = after(running(&[1, 2], 10), &[dies(1)]);
    assert_eq!(actions, [Action::Start(1, 2)]);
    // One that had been ready for a second, as well.
    let (_, actions) = step(running(&[1], 10), dies_early(1), NOW + HEALTHY, EVEN);
    assert_eq!(actions, [Action::Start(1, 2)]);
}

#[test]
fn a_first_start_that_fails_is_not_tried_again() {
    let state = State::new(Rules::default());
    let (state, actions) = after(state, &[add(1), fails(1)]);
    assert_eq!(actions, [Action::Remove(1)]);
    assert!(state.is_open());
}

#[test]
fn early_deaths_and_restarts_that_fail_wait_twice_as_long_each_time_and_a_healthy_life_resets_that() {
    let wait = |number, millis| Action::Wait(1, number, Duration::from_millis(millis));
    let (mut state, actions) = after(running(&[1], 100), &[dies_early(1)]);
    assert_eq!(actions, [wait(0, 100)]);
    for (number, millis) in [(1, 200), (2, 400), (3, 800), (4, 1600), (5, 3200), (6, 6400), (7, 12800)]
        .into_iter()
        .chain([(8, 25600), (9, 30000), (10, 30000)])
    {
        let (next, actions) = after(state, &[Event::Elapsed(1, number - 1), fails(1)]);
        assert_eq!(actions, [wait(number, millis)]);
        state = next;
    }
    let (state, actions) = after(state, &[Event::Elapsed(1, 10), Event::Ready(1), dies(1)]);
    assert_eq!(actions, [Action::Start(1, 13)]);
    let (_, actions) = after(state, &[Event::Ready(1), dies_early(1)]);
    assert_eq!(actions, [wait(11, 100)]);
}

#[test]
fn chance_makes_a_wait_up_to_a_fifth_longer_or_shorter() {
    let backoff = Backoff::default();
    let delays: Vec<_> = (0..=400_000).step_by(1000).map(|random| backoff.delay(0, random)).collect();
    assert_eq!(delays.first(), Some(&Duration::from_millis(80)));
    assert_eq!(delays.last(), Some(&Duration::from_millis(120)));
    assert_eq!(backoff.delay(u32::MAX, EVEN), backoff.cap);
    assert_eq!(Backoff { first: Duration::MAX, ..backoff }.delay(31, 0), backoff.cap * 4 / 5);
}

#[test]
fn one_restart_too_many_stops_the_others_newest_first() {
    let (state, actions) = after(running(&[1, 2, 3], 0), &[dies(2)]);
    assert_eq!(actions, [Action::Remove(2), Action::Stop(3)]);
    let (state, actions) = after(state, &[dies(3)]);
    assert_eq!(actions, [Action::Remove(3), Action::Stop(1)]);
    let (_, actions) = after(state, &[dies(1)]);
    assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Exhausted(2))]);
}

#[test]
fn units_outside_the_window_do_not_count() {
    let mut state = running(&[1], 1);
    let mut now = NOW;
    for round in 0..20 {
        let (next, actions) = step(state, dies(1), now, EVEN);
        assert_eq!(actions, [Action::Start(1, 2 + round)]);
        (state, _) = step(next, Event::Ready(1), now, EVEN);
        now += Duration::from_secs(60);
    }
    let (_, actions) = step(state, dies(1), now - Duration::from_secs(1), EVEN);
    assert!(actions.contains(&Action::Finish(Ending::Exhausted(1))));
}

#[test]
fn time_that_the_supervisor_spends_at_work_does_not_age_the_window() {
    let (state, _) = after(running(&[1], 1), &[dies(1)]);
    // The start takes an hour, and then it lives for almost a minute.
    let ready = NOW + Duration::from_secs(3600);
    let (state, _) = step(state, Event::Ready(1), ready, EVEN);
    let (_, actions) = step(state.clone(), dies(1), ready + Duration::from_secs(59), EVEN);
    assert!(actions.contains(&Action::Finish(Ending::Exhausted(1))));
    let (_, actions) = step(state, dies(1), ready + Duration::from_secs(60), EVEN);
    assert_eq!(actions, [Action::Start(1, 3)]);
}

#[test]
fn in_rest_for_one_nobody_waits_for_those_that_come_later() {
    let (state, actions) = after(group(Strategy::RestForOne), &[dies_early(2), leaves(3)]);
    assert_eq!(actions, []);
    let (state, actions) = after(state, &[dies(1)]);
    assert_eq!(actions, [Action::Start(1, 2)], "the second one's wait is not its own");
    let (state, actions) = after(state, &[Event::Ready(1)]);
    assert_eq!(actions, [], "the second and the third one wait on");
    let (_, actions) = after(state, &[Event::Elapsed(2, 0)]);
    assert_eq!(actions, [Action::Start(2, 2)]);
}

#[test]
fn what_is_too_many_may_give_up_the_child_or_go_on() {
    let given_up = Rules { exhausted: Exhausted::GiveUpChild, ..rules(Strategy::OneForAll, 0) };
    let (_, actions) = after(running_by(given_up, &[(1, Permanent), (2, Permanent)]), &[dies(1)]);
    assert_eq!(actions, [Action::GiveUp(1)]);
    let trying = Rules { exhausted: Exhausted::KeepTrying, ..rules(Strategy::OneForOne, 0) };
    let (_, actions) = after(running_by(trying, &[(1, Permanent)]), &[dies(1)]);
    assert_eq!(actions, [Action::Wait(1, 0, Duration::from_millis(100))]);
}

#[test]
fn healthy_deaths_cost_nothing_if_early_ones_count_alone() {
    let early = Rules { count_deaths: CountDeaths::Early, ..rules(Strategy::OneForOne, 0) };
    let (state, actions) = after(running_by(early, &[(1, Permanent)]), &[dies(1)]);
    assert_eq!(actions, [Action::Start(1, 2)]);
    let (_, actions) = after(state, &[Event::Ready(1), dies_early(1)]);
    assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Exhausted(1))]);
}

#[test]
fn early_deaths_wait_and_cost_nothing_if_failed_starts_count_alone() {
    let failed = Rules { count_deaths: CountDeaths::FailedStarts, ..rules(Strategy::OneForOne, 1) };
    let mut state = running_by(failed, &[(1, Permanent)]);
    for number in 0..20 {
        let (died, actions) = after(state, &[dies_early(1)]);
        assert!(matches!(actions[..], [Action::Wait(1, wait, _)] if wait == number), "{actions:?}");
        let (again, actions) = after(died, &[Event::Elapsed(1, number)]);
        assert!(matches!(actions[..], [Action::Start(1, _)]), "{actions:?}");
        (state, _) = after(again, &[Event::Ready(1)]);
    }
    let (state, actions) = after(state, &[dies(1)]);
    assert!(matches!(actions[..], [Action::Start(1, _)]), "{actions:?}");
    let (state, actions) = after(state, &[fails(1)]);
    assert!(matches!(actions[..], [Action::Wait(1, ..)]), "{actions:?}");
    let (_, actions) = after(state, &[Event::Elapsed(1, 20), fails(1)]);
    assert_eq!(actions.last(), Some(&Action::Finish(Ending::Exhausted(1))));
}

#[test]
fn one_for_all_stops_the_others_newest_first_and_starts_all_in_order() {
    let (state, actions) = after(group(Strategy::OneForAll), &[dies(2)]);
    assert_eq!(actions, [Action::Stop(3)]);
    let (state, actions) = after(state, &[leaves(3)]);
    assert_eq!(actions, [Action::Stop(1)]);
    let (mut state, mut actions) = after(state, &[leaves(1)]);
    for id in 1..=3 {
        assert_eq!(actions, [Action::Start(id, 2)]);
        (state, actions) = after(state, &[Event::Ready(id)]);
    }
    assert_eq!(actions, []);
    assert_eq!(state.units.len(), 1);
}

#[test]
fn rest_for_one_leaves_those_before_it_up() {
    let (state, actions) = after(group(Strategy::RestForOne), &[dies(2)]);
    assert_eq!(actions, [Action::Stop(3)]);
    let (state, actions) = after(state, &[leaves(3)]);
    assert_eq!(actions, [Action::Start(2, 2)]);
    let (_, actions) = after(state, &[Event::Ready(2)]);
    assert_eq!(actions, [Action::Start(3, 2)]);
}

#[test]
fn a_sibling_that_fails_to_start_stops_the_fresh_ones_of_one_for_all_and_all_are_tried_again() {
    let (state, _) = after(group(Strategy::OneForAll), &[dies(2), leaves(3), leaves(1), Event::Ready(1)]);
    let (state, actions) = after(state, &[fails(2)]);
    assert_eq!(actions, [Action::Wait(2, 0, Duration::from_millis(100)), Action::Stop(1)]);
    assert_eq!(state.units.len(), 2);
    let (state, actions) = after(state, &[leaves(1)]);
    assert_eq!(actions, []);
    let (_, actions) = after(state, &[Event::Elapsed(2, 0)]);
    assert_eq!(actions, [Action::Start(1, 3)]);
}

#[test]
fn a_sibling_that_fails_to_start_leaves_those_before_it_up_in_rest_for_one() {
    let (state, _) = after(group(Strategy::RestForOne), &[dies(1), leaves(3), leaves(2), Event::Ready(1)]);
    let (state, actions) = after(state, &[fails(2)]);
    assert_eq!(actions, [Action::Wait(2, 0, Duration::from_millis(100))]);
    let (_, actions) = after(state, &[Event::Elapsed(2, 0)]);
    assert_eq!(actions, [Action::Start(2, 3)]);
}

#[test]
fn a_group_restart_revives_stopped_siblings_and_drops_temporary_ones() {
    let children = [(1, Permanent), (2, Transient), (3, Temporary)];
    let state = running_by(rules(Strategy::OneForAll, 10), &children);
    let (state, actions) = after(state, &[leaves(2)]);
    assert_eq!(actions, [Action::Rest(2)]);
    let (state, actions) = after(state, &[dies(1)]);
    assert_eq!(actions, [Action::Stop(3)]);
    let (state, actions) = after(state, &[leaves(3)]);
    assert_eq!(actions, [Action::Remove(3), Action::Start(1, 2)]);
    let (_, actions) = after(state, &[Event::Ready(1)]);
    assert_eq!(actions, [Action::Start(2, 2)]);
}

#[test]
fn the_one_that_says_not_to_try_again_is_given_up_without_a_unit() {
    for restart in [Permanent, Transient, Temporary] {
        let state = running_by(rules(Strategy::OneForAll, 0), &[(1, restart), (2, Permanent)]);
        let no_more = Event::Exited { id: 1, death: Death::GiveUp, answered: false };
        let (state, actions) = after(state, &[no_more]);
        assert_eq!(actions, [Action::GiveUp(1)]);
        assert_eq!(state.standing(1), Some(Standing::Stopped));
    }
}

#[test]
fn a_sibling_that_dies_while_it_is_to_be_stopped_costs_nothing_and_is_started_with_the_others() {
    let (state, _) = after(group(Strategy::OneForAll), &[dies(2), dies(1), dies(3)]);
    assert_eq!(state.units.len(), 1);
    assert_eq!(state.standing(3), Some(Standing::Restarting));
}

#[test]
fn a_child_that_becomes_ready_while_it_is_being_stopped_stays_stopping() {
    let (state, _) = after(State::new(Rules::default()), &[add(1), Event::Stop]);
    let (state, actions) = after(state, &[Event::Ready(1)]);
    assert_eq!(actions, []);
    let (_, actions) = after(state, &[dies(1)]);
    assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Stopped)]);
}

#[test]
fn siblings_that_die_while_the_newest_is_being_stopped_are_not_started_again() {
    let (state, actions) = after(running(&[1, 2], 10), &[Event::Stop]);
    assert_eq!(actions, [Action::Stop(2)]);
    let (state, actions) = after(state, &[dies(1)]);
    assert_eq!(actions, [Action::Remove(1)]);
    let (_, actions) = after(state, &[dies(2)]);
    assert_eq!(actions, [Action::Remove(2), Action::Finish(Ending::Stopped)]);
}

#[test]
fn nothing_is_added_to_one_that_stops() {
    let (_, actions) = after(running(&[1], 10), &[Event::Stop, add(2)]);
    assert_eq!(actions, [Action::Remove(2)]);
}

#[test]
fn every_call_has_its_answer_in_every_standing() {
    use Refusal::{AlreadyPresent, AlreadyStarted, NotFound, Restarting, Running};
    let (restarting, _) = after(running(&[1], 10), &[dies_early(1)]);
    let (stopped, actions) = after(restarting.clone(), &[Event::Terminate(1)]);
    assert_eq!(actions, [Action::Rest(1)], "the retry is cancelled");
    let refuse = |refusal| vec![Action::Refuse(1, refusal)];
    let rows = [
        (
            add(1),
            [refuse(AlreadyStarted), refuse(AlreadyPresent), refuse(AlreadyPresent)],
            vec![Action::Start(1, 1)],
        ),
        (
            Event::Restart(1),
            [refuse(Running), refuse(Restarting), vec![Action::Start(1, 2)]],
            refuse(NotFound),
        ),
        (Event::Terminate(1), [vec![Action::Stop(1)], vec![Action::Rest(1)], vec![]], refuse(NotFound)),
        (Event::Delete(1), [refuse(Running), refuse(Restarting), vec![Action::Remove(1)]], refuse(NotFound)),
    ];
    for (call, known, unknown) in rows {
        for (state, expected) in
            [running(&[1], 10), restarting.clone(), stopped.clone()].into_iter().zip(known)
        {
            assert_eq!(after(state, &[call]).1, expected, "{call:?}");
        }
        assert_eq!(after(running(&[], 10), &[call]).1, unknown, "{call:?}");
    }
}

// ---------------------------------------------------------------- significant children

/// With these children, of which those are significant that are not permanent; all have started.
fn significant(auto_shutdown: AutoShutdown, strategy: Strategy, children: &[(Id, Restart)]) -> State {
    let mut state = State::new(Rules { auto_shutdown, ..rules(strategy, 10) });
    for (id, restart) in children {
        let kind = Kind { restart: *restart, significant: *restart != Permanent };
        (state, _) = after(state, &[Event::Add(*id, kind), Event::Ready(*id)]);
    }
    after(state, &[Event::AllStarted]).0
}

fn gives_up(id: Id) -> Event {
    Event::Exited { id, death: Death::GiveUp, answered: false }
}

use super::AutoShutdown::{AllSignificant, AnySignificant};

#[test]
fn a_significant_child_that_ends_and_is_not_started_again_ends_all() {
    for (restart, end, first) in [
        (Transient, leaves(2), vec![]),
        (Temporary, leaves(2), vec![]),
        (Temporary, dies(2), vec![]),
        (Transient, gives_up(2), vec![Action::GiveUp(2)]),
        (Temporary, gives_up(2), vec![Action::GiveUp(2)]),
    ] {
        let state =
            significant(AnySignificant, Strategy::OneForAll, &[(1, Permanent), (2, restart), (3, Transient)]);
        let (state, actions) = after(state, &[end]);
        assert_eq!(actions, [first, vec![Action::Remove(2), Action::Stop(3)]].concat());
        let (_, actions) = after(state, &[leaves(3), leaves(1)]);
        assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::AutoShutdown(2))]);
    }
    let state = significant(AnySignificant, Strategy::OneForOne, &[(1, Transient)]);
    assert_eq!(after(state, &[dies(1)]).1, [Action::Start(1, 2)], "it is started again");
}

#[test]
fn all_significant_children_have_ended_when_none_of_them_is_active() {
    let children = [(1, Transient), (2, Transient), (3, Temporary), (4, Permanent)];
    let state = significant(AllSignificant, Strategy::OneForOne, &children);
    let (state, actions) = after(state, &[leaves(1)]);
    assert_eq!(actions, [Action::Rest(1)]);
    // The second is between two incarnations, and the third is being stopped.
    let (state, actions) = after(state, &[dies_early(2), Event::Terminate(3)]);
    assert_eq!((state.is_open(), actions), (true, vec![Action::Stop(3)]));
    let (state, _) = after(state, &[Event::Elapsed(2, 0), Event::Ready(2)]);
    let (_, actions) = after(state, &[leaves(2)]);
    assert_eq!(actions, [Action::Remove(2), Action::Stop(4)], "the third is as good as gone");
}

#[test]
fn an_end_that_was_wanted_or_no_end_of_a_life_ends_nobody_else() {
    let running = || {
        significant(AnySignificant, Strategy::OneForAll, &[(1, Permanent), (2, Transient), (3, Temporary)])
    };
    let kind = Kind { restart: Transient, significant: true };
    for events in [
        // By call.
        vec![Event::Terminate(2), leaves(2)],
        vec![Event::Terminate(3), dies(3)],
        vec![Event::Terminate(2), gives_up(2)],
        // With a sibling.
        vec![dies(1), leaves(3), leaves(2)],
        vec![dies(1), leaves(2), dies(3)],
        // It never ran.
        vec![Event::Add(4, kind), fails(4)],
        vec![Event::Add(4, kind), Event::StartFailed(4, Death::GiveUp)],
        vec![Event::Add(4, kind), Event::Terminate(4), fails(4)],
        vec![Event::Terminate(2), leaves(2), Event::Restart(2), Event::StartFailed(2, Death::GiveUp)],
    ] {
        assert!(after(running(), &events).0.is_open(), "{events:?}");
    }
    // A restart that is not tried again is the end of one that ran.
    let alone = significant(AnySignificant, Strategy::OneForOne, &[(1, Transient)]);
    let (_, actions) = after(alone, &[dies(1), Event::StartFailed(1, Death::GiveUp)]);
    assert_eq!(actions, [Action::GiveUp(1), Action::Remove(1), Action::Finish(Ending::AutoShutdown(1))]);
}

#[test]
fn no_end_of_a_child_ends_all_before_all_have_started() {
    let kind = Kind { restart: Transient, significant: true };
    for (auto_shutdown, ends) in [(AnySignificant, true), (AllSignificant, false)] {
        let state = State::new(Rules { auto_shutdown, ..rules(Strategy::OneForOne, 10) });
        let (state, actions) = after(state, &[Event::Add(1, kind), Event::Ready(1), leaves(1)]);
        assert_eq!(actions, [Action::Rest(1)]);
        let (state, _) = after(state, &[Event::Add(2, kind), Event::Ready(2)]);
        let (state, actions) = after(state, &[Event::AllStarted]);
        assert_eq!(!state.is_open(), ends);
        assert_eq!(actions, if ends { vec![Action::Stop(2)] } else { vec![] });
        let (_, actions) = after(state, &[leaves(2)]);
        let by = if ends { 1 } else { 2 };
        assert_eq!(actions, [Action::Remove(2), Action::Remove(1), Action::Finish(Ending::AutoShutdown(by))]);
    }
}

// ---------------------------------------------------------------- how many, and which

#[test]
fn no_more_children_are_added_than_there_may_be_and_all_that_are_there_count() {
    let told = Rules { max_children: Some(2), ..rules(Strategy::OneForOne, 10) };
    let state = running_by(told, &[(1, Permanent), (2, Permanent)]);
    let full = vec![Action::Refuse(3, Refusal::MaxChildren)];
    for events in
        [vec![], vec![dies_early(1)], vec![Event::Terminate(1)], vec![Event::Terminate(1), leaves(1)]]
    {
        let (state, _) = after(state.clone(), &events);
        assert_eq!(after(state, &[add(3)]).1, full, "{events:?}");
    }
    let (state, _) = after(state, &[Event::Terminate(1), leaves(1), Event::Delete(1)]);
    assert_eq!(after(state, &[add(3)]).1, [Action::Start(3, 1)]);
}

#[test]
fn a_significant_child_is_refused_where_its_end_could_mean_nothing() {
    for (auto_shutdown, restart, contradiction) in [
        (AutoShutdown::Never, Transient, Some(Contradiction::NeverSignificant)),
        (AutoShutdown::Never, Permanent, Some(Contradiction::PermanentSignificant)),
        (AllSignificant, Permanent, Some(Contradiction::PermanentSignificant)),
        (AllSignificant, Temporary, None),
    ] {
        let state = State::new(Rules { auto_shutdown, ..Rules::default() });
        let (_, actions) = after(state, &[Event::Add(1, Kind { restart, significant: true })]);
        let refused = |why| Action::Refuse(1, Refusal::Contradiction(why));
        assert_eq!(actions, [contradiction.map_or(Action::Start(1, 1), refused)]);
    }
}

#[test]
fn a_dynamic_supervisor_keeps_nothing_that_does_not_run() {
    let told = Rules { dynamic: true, ..rules(Strategy::OneForOne, 10) };
    let state = running_by(told, &[(1, Permanent), (2, Transient)]);
    let gone = vec![Action::Remove(1)];
    for (events, actions) in [
        (vec![Event::Terminate(1), leaves(1)], gone.clone()),
        (vec![dies_early(1), Event::Terminate(1)], gone.clone()),
        (vec![gives_up(1)], vec![Action::GiveUp(1), Action::Remove(1)]),
        (vec![dies(1), Event::StartFailed(1, Death::GiveUp)], vec![Action::GiveUp(1), Action::Remove(1)]),
        (vec![leaves(2)], vec![Action::Remove(2)]),
        (vec![dies(2)], vec![Action::Start(2, 2)]),
    ] {
        assert_eq!(after(state.clone(), &events).1, actions, "{events:?}");
    }
}

#[test]
fn a_dynamic_supervisor_stops_all_its_children_at_the_same_time() {
    let told = Rules { dynamic: true, ..rules(Strategy::OneForOne, 10) };
    let state = running_by(told, &[(1, Permanent), (2, Permanent), (3, Permanent)]);
    let (state, actions) = after(state, &[dies_early(2), Event::Stop]);
    assert_eq!(actions, [Action::Stop(3), Action::Remove(2), Action::Stop(1)]);
    let (state, actions) = after(state, &[leaves(1)]);
    assert_eq!(actions, [Action::Remove(1)]);
    let (_, actions) = after(state, &[leaves(3)]);
    assert_eq!(actions, [Action::Remove(3), Action::Finish(Ending::Stopped)]);
}

// ---------------------------------------------------------------- what counts

#[test]
fn starts_and_stops_that_were_asked_for_age_the_window() {
    let minute_after = |events: &[Event]| {
        let (state, _) = after(running(&[1, 2], 1), &[dies(1), Event::Ready(1)]);
        let (state, _) = after(state, events);
        step(state, dies(1), NOW + Duration::from_secs(60), EVEN).1
    };
    for events in [
        vec![add(3)],
        vec![Event::Terminate(2)],
        vec![Event::Terminate(2), leaves(2), Event::Restart(2)],
        vec![Event::Add(3, Temporary.into()), Event::Ready(3), Event::Terminate(3)],
    ] {
        assert_eq!(minute_after(&events), [Action::Start(1, 3)], "{events:?}");
    }
}

#[test]
fn a_child_that_is_given_up_takes_its_own_units_along_and_no_others() {
    let given_up = Rules { exhausted: Exhausted::GiveUpChild, ..rules(Strategy::OneForOne, 2) };
    let state = running_by(given_up, &[(1, Permanent), (2, Permanent)]);
    let (state, _) = after(state, &[dies(2), Event::Ready(2), dies(1), Event::Ready(1)]);
    let (state, actions) = after(state, &[dies(1)]);
    assert_eq!((actions, state.units(NOW)), (vec![Action::GiveUp(1)], 1));
    let (state, actions) = after(state, &[dies(2)]);
    assert_eq!((actions, state.units(NOW)), (vec![Action::Start(2, 3)], 2));
    let (state, actions) = after(state, &[Event::Ready(2), dies(2)]);
    assert_eq!((actions, state.units(NOW)), (vec![Action::GiveUp(2)], 0));
}

// ---------------------------------------------------------------- what cannot be killed

fn stays(id: Id) -> Event {
    Event::Exited { id, death: Death::Unkillable, answered: false }
}

#[test]
fn nobody_is_started_beside_what_cannot_be_killed_until_it_is_gone() {
    let state = group(Strategy::OneForAll);
    let (state, actions) = after(state, &[dies(1), leaves(3), stays(2)]);
    assert_eq!(actions, [Action::GiveUp(2), Action::Start(1, 2)]);
    for call in [add(2), Event::Restart(2), Event::Terminate(2), Event::Delete(2)] {
        assert_eq!(after(state.clone(), &[call]).1, [Action::Refuse(2, Refusal::Unkillable)], "{call:?}");
    }
    // Not with its group either.
    let (state, actions) = after(state, &[Event::Ready(1), Event::Ready(3), dies(1), leaves(3)]);
    assert_eq!(actions, [Action::Start(1, 3)]);
    let (state, actions) = after(state, &[Event::Ready(1)]);
    assert_eq!(actions, [Action::Start(3, 3)]);
    let (state, actions) = after(state, &[Event::Ready(3), Event::Gone(2)]);
    assert_eq!((actions, state.standing(2)), (vec![], Some(Standing::Stopped)));
    assert_eq!(state.units.len(), 2);
    assert_eq!(after(state.clone(), &[Event::Restart(2)]).1, [Action::Start(2, 2)]);
    assert_eq!(after(state, &[Event::Delete(2)]).1, [Action::Remove(2)]);
}

#[test]
fn what_is_to_be_removed_and_cannot_be_killed_is_removed_once_it_is_gone() {
    let dynamic = Rules { dynamic: true, ..rules(Strategy::OneForOne, 10) };
    let stays_at_start = Event::StartFailed(2, Death::Unkillable);
    for (told, restart, events) in [
        (dynamic, Permanent, vec![Event::Ready(2), Event::Terminate(2), stays(2)]),
        (dynamic, Permanent, vec![Event::Ready(2), dies(2), stays_at_start]),
        (rules(Strategy::OneForOne, 10), Temporary, vec![Event::Ready(2), Event::Terminate(2), stays(2)]),
        (rules(Strategy::OneForOne, 10), Permanent, vec![stays_at_start]),
        (rules(Strategy::OneForOne, 10), Permanent, vec![Event::Terminate(2), stays_at_start]),
    ] {
        let (state, _) = after(running_by(told, &[(1, Permanent)]), &[Event::Add(2, restart.into())]);
        let (state, actions) = after(state, &events);
        assert_eq!((actions, state.standing(2)), (vec![Action::GiveUp(2)], Some(Standing::Unkillable)));
        assert_eq!(after(state.clone(), &[add(2)]).1, [Action::Refuse(2, Refusal::Unkillable)]);
        assert_eq!(after(state, &[Event::Gone(2)]).1, [Action::Remove(2)], "{events:?}");
    }
}

#[test]
fn what_cannot_be_killed_does_not_hold_up_the_end() {
    let (state, _) = after(running(&[1, 2], 10), &[Event::Terminate(2), stays(2)]);
    let (state, actions) = after(state, &[Event::Stop]);
    assert_eq!(actions, [Action::Remove(2), Action::Stop(1)]);
    let (state, actions) = after(state, &[stays(1)]);
    assert_eq!(actions, [Action::Remove(1), Action::Finish(Ending::Stopped)]);
    assert_eq!(after(state, &[Event::Gone(1)]).1, []);
}

mod any_order {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proptest::strategy::Strategy as Generator;

    use super::{Strategy, *};

    fn event() -> impl Generator<Value = Event> {
        let id = || 0_u64..6;
        let death = prop_oneof![2 => Just(Death::Clean), 2 => Just(Death::Abnormal), 2 => Just(Death::GiveUp), 1 => Just(Death::Unkillable)];
        let restart = prop_oneof![Just(Permanent), Just(Transient), Just(Temporary)];
        prop_oneof![
            4 => (id(), restart, any::<bool>())
                .prop_map(|(id, restart, significant)| Event::Add(id, Kind { restart, significant })),
            1 => Just(Event::AllStarted),
            1 => id().prop_map(Event::Restart),
            1 => id().prop_map(Event::Terminate),
            1 => id().prop_map(Event::Delete),
            1 => id().prop_map(Event::Gone),
            6 => id().prop_map(Event::Ready),
            2 => (id(), death.clone()).prop_map(|(id, death)| Event::StartFailed(id, death)),
            4 => (id(), death, any::<bool>())
                .prop_map(|(id, death, answered)| Event::Exited { id, death, answered }),
            4 => (id(), 0_u64..8).prop_map(|(id, wait)| Event::Elapsed(id, wait)),
            1 => Just(Event::Stop),
        ]
    }

    fn strategy() -> impl Generator<Value = Strategy> {
        prop_oneof![Just(Strategy::OneForOne), Just(Strategy::OneForAll), Just(Strategy::RestForOne)]
    }

    fn auto_shutdown() -> impl Generator<Value = AutoShutdown> {
        prop_oneof![
            Just(AutoShutdown::Never),
            Just(AutoShutdown::AnySignificant),
            Just(AutoShutdown::AllSignificant),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Whatever happens in whatever order, possible or not: incarnations only grow, no seat is filled twice,
        /// nothing starts once it ends or beside what cannot be killed, and it finishes exactly when the last child is gone.
        #[test]
        fn keeps_its_invariants(
            events in prop::collection::vec((event(), 0_u64..40, any::<u64>()), 0..60),
            strategy in strategy(),
            max in 0_u32..4,
            auto_shutdown in auto_shutdown(),
            max_children in prop_oneof![Just(None), (0_usize..6).prop_map(Some)],
            dynamic in any::<bool>(),
        ) {
            let told = Rules { auto_shutdown, max_children, dynamic, ..rules(strategy, max) };
            let mut state = State::new(told);
            let mut now = NOW;
            let mut present = std::collections::BTreeMap::new();
            let mut stopping = BTreeSet::new();
            let mut finished = false;
            for (event, pause, random) in events {
                now += Duration::from_secs(pause);
                let was_open = state.is_open();
                let was_there = |id| state.standing(id).is_some();
                if let (Event::Add(id, _), true) = (event, was_open) {
                    if !was_there(id) { present.insert(id, 0); }
                }
                if let Event::Exited { id, .. } | Event::StartFailed(id, _) = event { stopping.remove(&id); }
                let left: Vec<_> = present
                    .keys()
                    .filter(|id| state.standing(**id) == Some(Standing::Unkillable) && event != Event::Gone(**id))
                    .copied()
                    .collect();
                let (next, actions) = step(state, event, now, random);
                state = next;
                let is_there = |id: &Id| state.standing(*id) == Some(Standing::Unkillable);
                prop_assert!(!state.is_open() || left.iter().all(is_there));
                for action in actions {
                    match action {
                        Action::Start(id, incarnation) => {
                            prop_assert!(was_open);
                            prop_assert_eq!(present.insert(id, incarnation), Some(incarnation - 1));
                        }
                        Action::Stop(id) => prop_assert!(present.contains_key(&id) && stopping.insert(id)),
                        Action::Wait(id, ..) | Action::Rest(id) | Action::GiveUp(id) => {
                            prop_assert!(present.contains_key(&id) && was_open);
                        }
                        Action::Remove(id) => drop(present.remove(&id)),
                        Action::Refuse(id, Refusal::MaxChildren | Refusal::Contradiction(_)) => {
                            prop_assert_eq!(present.remove(&id), Some(0));
                        }
                        Action::Refuse(..) => {}
                        Action::Finish(_) => {
                            prop_assert!(!finished && present.is_empty());
                            finished = true;
                        }
                    }
                }
                prop_assert!(present.keys().all(|id| state.standing(*id).is_some()));
                prop_assert!(present.len() <= max_children.unwrap_or(usize::MAX));
                prop_assert!(!dynamic || present.keys().all(|id| state.standing(*id) != Some(Standing::Stopped)));
                prop_assert_eq!(finished, !state.is_open() && present.is_empty());
            }
        }
    }
}
