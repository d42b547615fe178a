//! The warden's part in questions between processes: it takes them from its links, answers those about this process's
//! own seats, passes on the others, and gives both ends of a channel to those who shall have them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hatchery_actor::address::ProcessId;
use hatchery_wire::LinkSocket;

use crate::answers::{self, Waiting};
use crate::exchange;
use crate::frames::Frame;
use crate::program::Program;
use crate::questions::{Answer, Question, Said};
use crate::routes::{Left, Party, Routes, way};
use crate::warden::{Command, Rounds};
use crate::watched::Watched;

/// Bytes that may wait for a child that does not read what it is told: thousands of questions and answers.
const UNREAD: usize = 1024 * 1024;

/// What gets the answer to a question of this process.
pub(crate) type Reply = Box<dyn FnOnce(Answer) + Send>;

/// The questions that this process is concerned with.
#[derive(Default)]
pub(crate) struct Crossing {
    routes: Routes,
    /// Its own, by their numbers.
    own: HashMap<u64, Reply>,
    /// Those it answers itself, when it can.
    waiting: HashMap<(Party, u64), Waiting>,
    /// The children of each run, known by where it is in memory, by their paths.
    children: HashMap<(usize, String), u64>,
}

/// What a run is known by for as long as any of its children is here.
fn run(program: &Arc<Program>) -> usize {
    Arc::as_ptr(program).addr()
}

impl Rounds {
    /// This process asks.
    pub(crate) fn ask(&mut self, program: &Arc<Program>, number: u64, question: Question, reply: Reply) {
        self.crossing.own.insert(number, reply);
        self.question(Party::Own, number, program, question);
    }

    /// A neighbour has said something about questions.
    pub(crate) fn cross(&mut self, from: Party, frame: Frame) {
        match frame {
            Frame::Question(number, question) => match self.program_of(from) {
                Some(program) => self.question(from, number, &program, question),
                None => self.answer(from, number, Answer::Said(Said::Busy)),
            },
            Frame::Answer(number, answer) => {
                // One that is not waited for any more closes what came with it.
                if let Some((to, number)) = self.crossing.routes.answered(from, number) {
                    self.answer(to, number, answer);
                }
            }
            Frame::Forget(number) => self.forget(from, number),
            _ => {}
        }
    }

    /// What this process answers itself has an answer.
    pub(crate) fn answered(&mut self, to: Party, number: u64, said: Said) {
        self.crossing.waiting.remove(&(to, number));
        self.answer(to, number, Answer::Said(said));
    }

    /// Nobody waits for this answer any more.
    pub(crate) fn forget(&mut self, from: Party, number: u64) {
        if from == Party::Own {
            self.crossing.own.remove(&number);
        }
        if let Some(waiting) = self.crossing.waiting.remove(&(from, number)) {
            waiting.forget();
        }
        if let Some((to, number)) = self.crossing.routes.forgotten(from, number) {
            self.say(to, Frame::Forget(number));
        }
    }

    /// There is a new child.
    pub(crate) fn joined(&mut self, id: u64) {
        if let Some(child) = self.children.get(&id) {
            self.crossing.children.insert((run(&child.program), child.process.path.clone()), id);
        }
    }

    /// A child has ended: what it was asked has no answer, and what it asked needs none.
    pub(crate) fn parted(&mut self, id: u64) {
        if let Some(child) = self.children.get(&id) {
            let key = (run(&child.program), child.process.path.clone());
            if self.crossing.children.get(&key) == Some(&id) {
                self.crossing.children.remove(&key);
            }
        }
        let Left { unanswered, unasked } = self.crossing.routes.ended(Party::Child(id));
        for (to, number) in unanswered {
            self.answer(to, number, Answer::Said(Said::Broken));
        }
        for (to, number) in unasked {
            self.say(to, Frame::Forget(number));
        }
        let theirs: Vec<_> =
            self.crossing.waiting.keys().filter(|(from, _)| *from == Party::Child(id)).copied().collect();
        for key in theirs {
            self.crossing.waiting.remove(&key).into_iter().for_each(Waiting::forget);
        }
    }

    /// The run that a neighbour belongs to.
    fn program_of(&self, party: Party) -> Option<Arc<Program>> {
        match party {
            Party::Child(id) => Some(self.children.get(&id)?.program.clone()),
            Party::Own | Party::Up => Program::settled().cloned(),
        }
    }

    fn question(&mut self, from: Party, number: u64, program: &Arc<Program>, question: Question) {
        let (path, of_process) = question.destination();
        let to = self.way(program, path, of_process);
        // Below a root there is nothing above.
        if to == Party::Up && program.depth == 0 {
            let why = format!("there is no {path} in this tree");
            return self.answer(from, number, Answer::Said(Said::Closed(why)));
        }
        match (to, question) {
            (Party::Own | Party::Child(_), Question::Open { to, from: caller }) => {
                let answer = self.open(program, to, caller);
                self.answer(from, number, answer);
            }
            (Party::Own, question) => {
                if self.crossing.waiting.contains_key(&(from, number)) {
                    return self.answer(from, number, Answer::Said(Said::Busy));
                }
                let warden = self.warden;
                let reply = Box::new(move |said| warden.answered(from, number, said));
                if let Some(waiting) = answers::answer(program, question, reply) {
                    self.crossing.waiting.insert((from, number), waiting);
                }
            }
            (to, question) => match self.crossing.routes.pass(from, number, to) {
                Ok(number) => self.say(to, Frame::Question(number, question)),
                Err(_) => self.answer(from, number, Answer::Said(Said::Busy)),
            },
        }
    }

    fn way(&self, program: &Arc<Program>, path: &str, of_process: bool) -> Party {
        way(&program.root.process().path, path, of_process, |path| {
            let id = *self.crossing.children.get(&(run(program), path.to_owned()))?;
            self.children.get(&id)?.link.as_ref().map(|_| id)
        })
    }

    /// Makes a channel and gives the one end to the process it leads to.
    fn open(&mut self, program: &Arc<Program>, to: ProcessId, from: ProcessId) -> Answer {
        let Ok((theirs, ours)) = LinkSocket::pair() else { return Answer::Said(Said::Busy) };
        if self.connect(program, to, from, ours) {
            Answer::Channel(theirs)
        } else {
            Answer::Said(Said::Broken)
        }
    }

    /// Passes an end of a channel on to the process it is for; false if that has ended.
    pub(crate) fn connect(
        &mut self,
        program: &Arc<Program>,
        to: ProcessId,
        from: ProcessId,
        end: OwnedFd,
    ) -> bool {
        match self.way(program, &to.path, true) {
            Party::Own if *program.root.process() == to => {
                exchange::accept(program, end, from);
                true
            }
            Party::Child(id) => {
                let child = self.children.get(&id);
                let known = |child: &Watched| child.process.path != to.path || child.process == to;
                let is_there = child.is_some_and(known);
                if is_there {
                    self.say(Party::Child(id), Frame::Connect(to, from, Some(end)));
                }
                is_there
            }
            Party::Own | Party::Up => false,
        }
    }

    fn answer(&mut self, to: Party, number: u64, answer: Answer) {
        match to {
            Party::Own => {
                if let Some(reply) = self.crossing.own.remove(&number) {
                    reply(answer);
                }
            }
            to => self.say(to, Frame::Answer(number, answer)),
        }
    }

    fn say(&mut self, to: Party, frame: Frame) {
        match to {
            Party::Own => {}
            Party::Up => self.warden.up(frame),
            Party::Child(id) => {
                if let Some(child) = self.children.get_mut(&id) {
                    child.send(frame);
                    if child.link.as_ref().is_some_and(|link| link.queued_bytes() > UNREAD) {
                        child.ward.condemn("it does not read its link");
                    }
                }
                self.watch_link(id);
            }
        }
    }
}

impl Command {
    /// What a process asks, as a command to its own warden.
    pub(crate) fn ask(program: Arc<Program>, number: u64, question: Question, reply: Reply) -> Command {
        Command::Ask(Box::new((program, number, question, reply)))
    }
}
