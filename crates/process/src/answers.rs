//! What this process answers itself: about the seats it owns.

use std::sync::Arc;

use hatchery_actor::child::Child;
use hatchery_actor::exchange::{Command, Found};
use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::hold::Hold;
use hatchery_actor::root::wrong_actor;
use hatchery_actor::seat::{Occupancy, Seat, View};
use tokio::runtime::Handle;

use crate::program::Program;
use crate::questions::{Question, Said};

/// Where the answer goes. It is called once at most, from any thread, and never waits.
pub(crate) type Reply = Box<dyn FnOnce(Said) + Send>;

/// Who waits at a seat for his answer.
pub(crate) struct Waiting {
    seat: Arc<Seat>,
    number: u64,
}

impl Waiting {
    /// He does not wait any longer.
    pub(crate) fn forget(self) {
        self.seat.look_away(self.number);
    }
}

/// An answer that is owed; if it is dropped without one, whoever asked is told to ask again later.
struct Owed(Option<Reply>);

impl Owed {
    fn give(&mut self, said: Said) {
        if let Some(reply) = self.0.take() {
            reply(said);
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.give(Said::Busy);
    }
}

/// Answers a question about a seat of this process, now or when it can be answered.
pub(crate) fn answer(program: &Arc<Program>, question: Question, reply: Reply) -> Option<Waiting> {
    let mut owed = Owed(Some(reply));
    let (path, _) = question.destination();
    let Some((seat, exact)) = program.root.directory().nearest(path) else {
        if program.is_starting() {
            // What its `start` begins may still get that name.
            program.when_started(Box::new(move || owed.give(Said::Broken)));
        } else {
            owed.give(Said::Closed(nobody(path)));
        }
        return None;
    };
    if !exact {
        // Below a worker of this process that is not there right now.
        let path = path.to_owned();
        let known = match question {
            Question::Resolve { held, .. } => Some(held),
            _ => None,
        };
        let look = move |view: &View<'_>| {
            if let Some(why) = view.closed {
                owed.give(Said::Closed(format!("a worker above {path} is gone: {why}")));
                return true;
            }
            if let Some(hold) = known.and_then(|known| view.hold(known)) {
                owed.give(Said::Held(told(hold)));
                return true;
            }
            // Ask again: the way leads there now.
            view.sits.is_some() && {
                owed.give(if is_here(view) { Said::Closed(nobody(&path)) } else { Said::Broken });
                true
            }
        };
        return wait(seat, Box::new(look));
    }
    match question {
        Question::Resolve { seat: path, actor, only, after, held } => {
            if seat.actor() != actor {
                owed.give(Said::Closed(wrong_actor(&path, &actor, seat.actor())));
                return None;
            }
            let own = program.root.process().clone();
            let look = move |view: &View<'_>| {
                if let Some(exit) = only.and_then(|only| view.verdict(only)) {
                    owed.give(Said::Over(Box::new(short(exit))));
                    return true;
                }
                let found = view.after(after).filter(|(tenure, ..)| only.is_none_or(|only| only == *tenure));
                if let Some((tenure, process, pid)) = found {
                    let process = process.unwrap_or(&own).clone();
                    owed.give(Said::Sits(Found {
                        tenure,
                        process,
                        pid,
                        window: view.window,
                        shutdown: view.shutdown,
                    }));
                    return true;
                }
                if let Some(why) = view.closed {
                    owed.give(Said::Closed(why.to_owned()));
                    return true;
                }
                view.hold(held).is_some_and(|hold| {
                    owed.give(Said::Held(told(hold)));
                    true
                })
            };
            wait(seat, Box::new(look))
        }
        Question::Verdict { tenure, .. } => {
            let look = move |view: &View<'_>| match view.verdict(tenure) {
                Some(exit) => {
                    owed.give(Said::Over(Box::new(short(exit))));
                    true
                }
                None => false,
            };
            wait(seat, Box::new(look))
        }
        Question::Command { seat: path, actor, tenure, command } => {
            match seat.occupancy() {
                _ if seat.actor() != actor => {
                    owed.give(Said::Refused(Fault::Refused(wrong_actor(&path, &actor, seat.actor()))));
                }
                Occupancy::Occupied(occupant)
                    if tenure.is_none_or(|tenure| seat.tenure(occupant.incarnation) == tenure) =>
                {
                    obey(program, &occupant.child, command, owed);
                }
                _ if tenure.is_none() => owed.give(Said::Done),
                _ => owed.give(Said::Refused(Fault::Refused(
                    "that incarnation has ended: the next one has a handle of its own".to_owned(),
                ))),
            }
            None
        }
        // It never comes here: whoever is above both ends makes the channel.
        Question::Open { .. } => None,
    }
}

fn wait(seat: Arc<Seat>, look: hatchery_actor::seat::Look) -> Option<Waiting> {
    // With too many waiting, this one is told to ask again by its being dropped.
    let number = seat.look_out(look).ok()??;
    Some(Waiting { seat, number })
}

/// Whether who sits there lives in this very process.
fn is_here(view: &View<'_>) -> bool {
    view.sits.is_some_and(|(_, process, _)| process.is_none())
}

fn nobody(path: &str) -> String {
    format!("nobody is called {path}; an actor can be found once it has been given to a supervisor")
}

fn obey(program: &Program, child: &Arc<dyn Child>, command: Command, mut owed: Owed) {
    let done = |result: Result<(), Fault>| result.map_or_else(Said::Refused, |()| Said::Done);
    match command {
        Command::Stop(rung) => {
            child.stop(rung);
            owed.give(Said::Done);
        }
        Command::Pause => owed.give(done(child.pause())),
        Command::Resume => owed.give(done(child.resume())),
        Command::Suspend => {
            let heeded = child.suspend();
            if let Some(runtime) = program.runtime() {
                Handle::spawn(runtime, async move { owed.give(done(heeded.await)) });
            }
        }
    }
}

/// The same with few last lines: it may be told often, and to many.
fn told(hold: Hold) -> Hold {
    Hold { exit: hold.exit.map(|exit| Box::new(shorter(*exit, FEW))), ..hold }
}

/// Bytes of text that an exit may have to fit into a frame of the link, with room for all the rest.
const MOST: usize = 24 * 1024;

/// The same of one that is told along with something else.
const FEW: usize = 2 * 1024;

/// The same exit with so few of its last lines that it fits into a frame of the link.
fn short(exit: Exit) -> Exit {
    shorter(exit, MOST)
}

fn shorter(exit: Exit, most: usize) -> Exit {
    let (mut kept, mut size) = (Vec::new(), 0);
    for line in exit.stderr_tail().iter().rev() {
        size += line.len() + 8;
        if size > most {
            break;
        }
        kept.push(line.clone());
    }
    kept.reverse();
    exit.with_stderr(kept).with_stdout(Vec::new())
}
