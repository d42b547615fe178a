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

    /// This neighbour has ended. Whose questions stay without an answer, and who need not answer his.
    pub(crate) fn ended(&mut self, who: Party) -> (Vec<(Party, u64)>, Vec<(Party, u64)>) {
        let concerns = |passed: &Passed| passed.to == who || passed.from.0 == who;
        let mut numbers: Vec<u64> =
            self.on.iter().filter(|(_, passed)| concerns(passed)).map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        let (mut unanswered, mut unasked) = (Vec::new(), Vec::new());
        for number in numbers {
            match self.take(number) {
                Some(passed) if passed.from.0 != who => unanswered.push(passed.from),
                Some(passed) if passed.to != who => unasked.push((passed.to, number)),
                _ => {}
            }
        }
        self.open.remove(&who);
        (unanswered, unasked)
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
/// that of a seat, which the process above it owns. `children` are those of the same run.
pub(crate) fn way<'a>(
    own: &str,
    path: &str,
    of_process: bool,
    children: impl IntoIterator<Item = (u64, &'a str)>,
) -> Party {
    if !is_below(path, own) && !(of_process && path == own) {
        return Party::Up;
    }
    let leads = |child: &str| is_below(path, child) || (of_process && path == child);
    let child = children.into_iter().find(|(_, child)| leads(child));
    child.map_or(Party::Own, |(id, _)| Party::Child(id))
}
