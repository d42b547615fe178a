//! Which way questions go, and their answers back: what is decided, for one process.
//!
//! A question goes up until it comes to a process above the path it is about, and down from there to whoever owns it.
//! Each process on the way gives it a number of its own and remembers whose it was, so that an answer finds its way
//! back, and so that those who asked are told when a process on the way ends.

use std::collections::HashMap;

use crate::questions::is_below;

/// Whom a process is linked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Party {
    /// This process itself.
    Own,
    Up,
    Child(u64),
}

/// Questions of one neighbour that may be open at the same time.
pub(crate) const OPEN: usize = 65_536;

/// The questions that have gone on from here and are not answered.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    asked: u64,
    /// By the number they have from here on.
    on: HashMap<u64, Passed>,
    /// By who asked, and his number for it.
    from: HashMap<(Party, u64), u64>,
    open: HashMap<Party, usize>,
}

#[derive(Clone, Copy, Debug)]
struct Passed {
    from: (Party, u64),
    to: Party,
}

/// What the end of a neighbour leaves behind: numbers, with those they are for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Questions that stay without an answer.
    pub(crate) unanswered: Vec<(Party, u64)>,
    /// Questions of his, which need no answer any more.
    pub(crate) unasked: Vec<(Party, u64)>,
}

/// There are too many, or this number was used before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused;

impl Routes {
    /// A question is passed on; gives the number it has from here on.
    ///
    /// # Errors
    /// It is not: there are too many of this neighbour's, or it uses a number twice.
    pub(crate) fn pass(&mut self, from: Party, number: u64, to: Party) -> Result<u64, Refused> {
        let open = self.open.entry(from).or_default();
        if *open >= OPEN || self.from.contains_key(&(from, number)) {
            return Err(Refused);
        }
        *open += 1;
        self.asked += 1;
        self.on.insert(self.asked, Passed { from: (from, number), to });
        self.from.insert((from, number), self.asked);
        Ok(self.asked)
    }

    /// An answer came from there: whose it is. `None` if nobody waits for it any more, or it was not asked there.
    pub(crate) fn answered(&mut self, by: Party, number: u64) -> Option<(Party, u64)> {
        self.on.get(&number).filter(|passed| passed.to == by)?;
        Some(self.take(number)?.from)
    }

    /// Whoever asked this does not wait any longer: who is to know that, and under which number.
    pub(crate) fn forgotten(&mut self, from: Party, number: u64) -> Option<(Party, u64)> {
        let on = *self.from.get(&(from, number))?;
        let passed = self.take(on)?;
        Some((passed.to, on))
    }

    /// This neighbour has ended.
    pub(crate) fn ended(&mut self, who: Party) -> Left {
        let concerns = |passed: &Passed| passed.to == who || passed.from.0 == who;
        let mut numbers: Vec<u64> =
            self.on.iter().filter(|(_, passed)| concerns(passed)).map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        let mut left = Left::default();
        for number in numbers {
            match self.take(number) {
                Some(passed) if passed.from.0 != who => left.unanswered.push(passed.from),
                Some(passed) if passed.to != who => left.unasked.push((passed.to, number)),
                _ => {}
            }
        }
        self.open.remove(&who);
        left
    }

    fn take(&mut self, number: u64) -> Option<Passed> {
        let passed = self.on.remove(&number)?;
        self.from.remove(&passed.from);
        if let Some(open) = self.open.get_mut(&passed.from.0) {
            *open -= 1;
        }
        Some(passed)
    }

    /// How many are open.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.on.len()
    }
}

/// Where something goes that is about this path: to a child, up, or no further (`Own`). The path is a process's own, or
/// that of a seat, which the process above it owns. `child_at` tells the child of the same run that has a path.
pub(crate) fn way(own: &str, path: &str, of_process: bool, child_at: impl Fn(&str) -> Option<u64>) -> Party {
    let is_own = of_process && path == own;
    if !is_own && !is_below(path, own) {
        return Party::Up;
    }
    let mut at = path;
    if !of_process {
        at = above(at);
    }
    while at.len() > own.len() {
        if let Some(id) = child_at(at) {
            return Party::Child(id);
        }
        at = above(at);
    }
    Party::Own
}

/// The path without its last segment.
fn above(path: &str) -> &str {
    &path[..path.rfind('/').unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet, VecDeque};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_question_goes_up_until_it_is_above_its_path_and_then_down() {
        let children = [(1, "/a/b"), (2, "/a/bc")];
        let child_at = |path: &str| children.iter().find(|(_, child)| *child == path).map(|(id, _)| *id);
        let to = |path, of_process| way("/a", path, of_process, child_at);
        assert_eq!(to("/a/b", false), Party::Own, "its parent owns the seat");
        assert_eq!(to("/a/b", true), Party::Child(1));
        assert_eq!(to("/a/b/x", false), Party::Child(1));
        assert_eq!(to("/a/bc/x/y", false), Party::Child(2));
        assert_eq!(to("/a/gone/x", false), Party::Own);
        assert_eq!(to("/a", true), Party::Own);
        assert_eq!(to("/a", false), Party::Up);
        assert_eq!(to("/ab/x", false), Party::Up);
        assert_eq!(to("", true), Party::Up);
        assert_eq!(way("", "", true, child_at), Party::Own);
        assert_eq!(way("", "/x/y", false, child_at), Party::Own);
        assert_eq!(way("", "no path", false, child_at), Party::Up);
    }

    /// What goes over the links of a tree of processes, in order on each.
    #[derive(Clone, Copy, Debug)]
    enum Said {
        Question(u64, &'static str),
        Answer(u64, bool),
        Forget(u64),
    }

    const PATHS: [&str; 7] = ["", "/a", "/b", "/a/c", "/a/d", "/b/e", "/a/c/f"];

    fn parent(process: usize) -> Option<usize> {
        let path = PATHS[process];
        let above = &path[..path.rfind('/')?];
        PATHS.iter().position(|path| *path == above)
    }

    /// A tree of processes that all decide by the code above.
    #[derive(Default)]
    struct World {
        processes: BTreeMap<usize, Process>,
        links: BTreeMap<(usize, usize), VecDeque<Said>>,
        asked: u64,
    }

    #[derive(Default)]
    struct Process {
        routes: Routes,
        /// Its own questions that wait for an answer, and the answers of those that have one.
        waits: HashSet<u64>,
        got: BTreeMap<u64, bool>,
        /// What it has been asked and answers later.
        owes: Vec<(Party, u64)>,
    }

    impl World {
        fn new() -> World {
            let processes = (0..PATHS.len()).map(|process| (process, Process::default())).collect();
            World { processes, ..World::default() }
        }

        fn party(at: usize, from: usize) -> Party {
            if parent(at) == Some(from) { Party::Up } else { Party::Child(from as u64) }
        }

        fn say(&mut self, at: usize, to: Party, said: Said) {
            let to = match to {
                Party::Own => return,
                Party::Up => parent(at).unwrap(),
                Party::Child(child) => child as usize,
            };
            // Words to the dead are lost.
            if self.processes.contains_key(&to) {
                self.links.entry((at, to)).or_default().push_back(said);
            }
        }

        fn question(&mut self, at: usize, from: Party, number: u64, path: &'static str) {
            let child_at = |path: &str| {
                let child = PATHS.iter().position(|other| *other == path)?;
                let is_there = parent(child) == Some(at) && self.processes.contains_key(&child);
                is_there.then_some(child as u64)
            };
            match way(PATHS[at], path, false, child_at) {
                Party::Own => self.processes.get_mut(&at).unwrap().owes.push((from, number)),
                Party::Up if at == 0 => self.answer(at, from, number, false),
                to => {
                    let process = self.processes.get_mut(&at).unwrap();
                    let number = process.routes.pass(from, number, to).unwrap();
                    self.say(at, to, Said::Question(number, path));
                }
            }
        }

        fn answer(&mut self, at: usize, to: Party, number: u64, good: bool) {
            if to == Party::Own {
                let process = self.processes.get_mut(&at).unwrap();
                if process.waits.remove(&number) {
                    assert!(process.got.insert(number, good).is_none(), "answered twice");
                }
            }
            self.say(at, to, Said::Answer(number, good));
        }

        fn forget(&mut self, at: usize, from: Party, number: u64) {
            let process = self.processes.get_mut(&at).unwrap();
            process.owes.retain(|owed| *owed != (from, number));
            if let Some((to, number)) = process.routes.forgotten(from, number) {
                self.say(at, to, Said::Forget(number));
            }
        }

        /// Delivers the next word on one of the links.
        fn deliver(&mut self, link: usize) -> bool {
            let busy: Vec<_> =
                self.links.iter().filter(|(_, link)| !link.is_empty()).map(|(at, _)| *at).collect();
            if busy.is_empty() {
                return false;
            }
            let (from, at) = busy[link % busy.len()];
            let said = self.links.get_mut(&(from, at)).unwrap().pop_front().unwrap();
            let party = World::party(at, from);
            match said {
                Said::Question(number, path) => self.question(at, party, number, path),
                Said::Forget(number) => self.forget(at, party, number),
                Said::Answer(number, good) => {
                    let process = self.processes.get_mut(&at).unwrap();
                    if let Some((to, number)) = process.routes.answered(party, number) {
                        self.answer(at, to, number, good);
                    }
                }
            }
            true
        }

        /// A process ends, and with it all below; its parent learns it after all that it said.
        fn kill(&mut self, process: usize) {
            let below: Vec<_> = (0..PATHS.len())
                .filter(|other| *other == process || is_below(PATHS[*other], PATHS[process]))
                .collect();
            for other in &below {
                self.processes.remove(other);
                self.links.retain(|(from, to), _| from != other && to != other);
            }
            let Some(at) = parent(process).filter(|at| self.processes.contains_key(at)) else { return };
            let routes = &mut self.processes.get_mut(&at).unwrap().routes;
            let Left { unanswered, unasked } = routes.ended(Party::Child(process as u64));
            let owes = &mut self.processes.get_mut(&at).unwrap().owes;
            owes.retain(|(from, _)| *from != Party::Child(process as u64));
            unanswered.into_iter().for_each(|(to, number)| self.answer(at, to, number, false));
            unasked.into_iter().for_each(|(to, number)| self.say(at, to, Said::Forget(number)));
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(usize, usize),
        Leave(usize, usize),
        Deliver(usize),
        Answer(usize, usize),
        Kill(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let process = 0..PATHS.len();
        prop_oneof![
            6 => (process.clone(), process.clone()).prop_map(|(at, path)| Step::Ask(at, path)),
            2 => (process.clone(), any::<usize>()).prop_map(|(at, which)| Step::Leave(at, which)),
            20 => any::<usize>().prop_map(Step::Deliver),
            6 => (process.clone(), any::<usize>()).prop_map(|(at, which)| Step::Answer(at, which)),
            1 => (1..PATHS.len()).prop_map(Step::Kill),
        ]
    }

    proptest! {
        #[test]
        fn every_question_that_is_waited_for_is_answered_once_and_none_stays_behind(
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let mut world = World::new();
            for step in steps {
                match step {
                    Step::Ask(at, path) if world.processes.contains_key(&at) => {
                        world.asked += 1;
                        let number = world.asked;
                        world.processes.get_mut(&at).unwrap().waits.insert(number);
                        world.question(at, Party::Own, number, PATHS[path]);
                    }
                    Step::Leave(at, which) => {
                        let Some(process) = world.processes.get_mut(&at) else { continue };
                        let mut waits: Vec<_> = process.waits.iter().copied().collect();
                        waits.sort_unstable();
                        if let Some(number) = waits.get(which % waits.len().max(1)).copied() {
                            process.waits.remove(&number);
                            world.forget(at, Party::Own, number);
                        }
                    }
                    Step::Deliver(link) => drop(world.deliver(link)),
                    Step::Answer(at, which) => {
                        let Some(process) = world.processes.get_mut(&at) else { continue };
                        if !process.owes.is_empty() {
                            let which = which % process.owes.len();
                            let (to, number) = process.owes.remove(which);
                            world.answer(at, to, number, true);
                        }
                    }
                    Step::Kill(process) if world.processes.contains_key(&process) => world.kill(process),
                    _ => {}
                }
            }
            // Whatever is still owed is given, and everything arrives.
            loop {
                let owing = world.processes.iter().find(|(_, process)| !process.owes.is_empty());
                let Some(at) = owing.map(|(at, _)| *at) else {
                    if world.deliver(0) { continue } else { break }
                };
                let (to, number) = world.processes.get_mut(&at).unwrap().owes.remove(0);
                world.answer(at, to, number, true);
            }
            for (at, process) in &world.processes {
                prop_assert!(process.waits.is_empty(), "{} waits for ever", PATHS[*at]);
                prop_assert_eq!(process.routes.len(), 0, "{} remembers something", PATHS[*at]);
                prop_assert!(process.routes.open.values().all(|open| *open == 0));
            }
        }
    }
}
