//! How actors of other processes are found and reached: by questions along the links, and channels that come back.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hatchery_actor::address::{Address, ProcessId, Tenure};
use hatchery_actor::child::BoxFuture;
use hatchery_actor::directory::Guest;
use hatchery_actor::exchange::{Command, Exchange, Found, Lost, Opened, Over};
use hatchery_actor::exit::Exit;
use hatchery_actor::fault::Fault;
use hatchery_actor::near;
use hatchery_actor::seat::Seat;
use hatchery_actor::spin::Spin;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::calls_in::{Binding, CallsIn};
use crate::calls_out::{AnswersIn, Bound};
use crate::channel::{Channel, Outgoing};
use crate::program::Program;
use crate::questions::{Answer, Question, Said};
use crate::warden::Warden;

/// The exchange of one run.
pub(crate) struct Links {
    program: Weak<Program>,
}

impl Links {
    pub(crate) fn new(program: Weak<Program>) -> Links {
        Links { program }
    }

    /// Asks here and now; the answer comes by and by.
    fn ask(&self, question: Question) -> impl Future<Output = Answer> + Send + use<> {
        let asked = self.program.upgrade().zip(Warden::get().ok()).and_then(|(program, warden)| {
            let number = warden.number();
            let (answer, answered) = oneshot::channel();
            // Nobody waits for it any more if it cannot be sent.
            let reply = Box::new(move |said| drop(answer.send(said)));
            let waits = Waits { warden, number };
            warden.ask(program, number, question, reply).then_some((waits, answered))
        });
        async move {
            let Some((waits, answered)) = asked else { return Answer::Said(Said::Busy) };
            let answer = answered.await;
            if answer.is_ok() {
                std::mem::forget(waits);
            }
            answer.unwrap_or(Answer::Said(Said::Busy))
        }
    }
}

/// Takes a question back when nobody waits for its answer any more.
struct Waits {
    warden: &'static Warden,
    number: u64,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.warden.forget(self.number);
    }
}

impl Exchange for Links {
    fn runtime(&self) -> Option<Handle> {
        self.program.upgrade()?.runtime().cloned()
    }

    fn resolve(&self, address: &Address, after: Option<Tenure>, held: u64) -> BoxFuture<Result<Found, Lost>> {
        let Address { path, actor, only, .. } = address.clone();
        let asked = self.ask(Question::Resolve { seat: path, actor, only, after, held });
        Box::pin(async move {
            match asked.await {
                Answer::Said(Said::Sits(found)) => Ok(found),
                Answer::Said(said) => Err(lost(said)),
                Answer::Channel(_) => Err(Lost::Broken),
            }
        })
    }

    fn open(&self, seat: &Arc<Seat>, number: u64, found: &Found) -> BoxFuture<Result<Opened, Lost>> {
        let (program, seat, found) = (self.program.upgrade(), seat.clone(), found.clone());
        let links = Links { program: self.program.clone() };
        Box::pin(async move {
            let Some(program) = program else { return Err(Lost::Broken) };
            if found.process == *program.root.process() {
                return near(&program, seat, number, found.tenure);
            }
            let channel = program.calls_out.to(found.process.birth, async |channel| {
                let (to, from) = (found.process.clone(), program.root.process().clone());
                let end = match links.ask(Question::Open { to, from }).await {
                    Answer::Channel(end) => UnixStream::from(end),
                    Answer::Said(said) => return Err(lost(said)),
                };
                let desk = AnswersIn(channel.clone());
                let outgoing = channel.outgoing.clone();
                let spin = program.spin_elsewhere();
                let channel = Channel::new(end, outgoing, desk, spin).map_err(|_| Lost::Busy)?;
                tokio::spawn(async move {
                    // What is wrong with a peer shows in the ends of those who are asked there.
                    if let Err(reason) = channel.await {
                        tracing::warn!(%reason, "a channel to another process broke");
                    }
                });
                Ok(())
            });
            let channel = channel.await?;
            let binding = Binding {
                path: seat.path().to_owned(),
                actor: seat.actor().to_owned(),
                tenure: found.tenure,
            };
            // Over since: its process has ended, or it was idle until now.
            let Bound { line, over, confirmed } = channel.bind(&seat, number, &binding).ok_or(Lost::Busy)?;
            // Until the other side has said so, nothing is sent: what was not sent survives.
            confirmed.await.map_err(|_| Lost::Busy)?;
            Ok(Opened { line, over: Box::pin(async move { over.await.unwrap_or(Over::Idle) }) })
        })
    }

    fn verdict(&self, path: &str, tenure: Tenure) -> BoxFuture<Result<Exit, Lost>> {
        let asked = self.ask(Question::Verdict { seat: path.to_owned(), tenure });
        Box::pin(async move {
            match asked.await {
                Answer::Said(Said::Over(exit)) => Ok(*exit),
                Answer::Said(said) => Err(lost(said)),
                Answer::Channel(_) => Err(Lost::Broken),
            }
        })
    }

    fn command(
        &self,
        path: &str,
        actor: &str,
        tenure: Option<Tenure>,
        command: Command,
    ) -> BoxFuture<Result<(), Fault>> {
        let (seat, actor) = (path.to_owned(), actor.to_owned());
        let asked = self.ask(Question::Command { seat, actor, tenure, command });
        // Nobody need wait for it: it is done all the same.
        let (told, answered) = oneshot::channel();
        if let Some(runtime) = self.program.upgrade().as_ref().and_then(|program| program.runtime()) {
            runtime.spawn(async move {
                let _ = told.send(asked.await);
            });
        }
        Box::pin(async move {
            match answered.await {
                Ok(Answer::Said(Said::Done)) => Ok(()),
                Ok(Answer::Said(Said::Refused(fault))) => Err(fault),
                Ok(Answer::Said(Said::Closed(why))) => Err(Fault::Closed { why }),
                _ => Err(Fault::Refused("it could not be told; its parent may have ended".to_owned())),
            }
        })
    }
}

fn lost(said: Said) -> Lost {
    match said {
        Said::Closed(why) => Lost::Closed(why),
        Said::Over(exit) => Lost::Over(exit),
        Said::Held(hold) => Lost::Held(hold),
        Said::Busy => Lost::Busy,
        Said::Broken | Said::Done | Said::Refused(_) | Said::Sits(_) => Lost::Broken,
    }
}

/// The way to an actor of this very process.
fn near(program: &Program, seat: Arc<Seat>, number: u64, tenure: Tenure) -> Result<Opened, Lost> {
    let host = program.root.directory().host(seat.path()).filter(|host| host.tenure == tenure);
    let (over, is_over) = oneshot::channel();
    let guest = Arc::new(Neighbour { over: Mutex::new(Some(over)) });
    let host = host.ok_or(Lost::Busy)?;
    let known: Arc<dyn Guest> = guest.clone();
    if !host.welcome(Arc::downgrade(&known)) {
        return Err(Lost::Busy);
    }
    let line = near::line(host.mailbox.clone(), seat, number);
    let over = Box::pin(async move {
        let over = is_over.await;
        drop(guest);
        over.unwrap_or(Over::Said)
    });
    Ok(Opened { line, over })
}

/// Whoever reaches an actor of his own process as one of another.
struct Neighbour {
    over: Mutex<Option<oneshot::Sender<Over>>>,
}

impl Guest for Neighbour {
    fn host_left(&self) {
        if let Some(over) = self.over.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = over.send(Over::Said);
        }
    }
}

/// Serves a channel that another process of the tree has opened.
pub(crate) fn accept(program: &Arc<Program>, end: std::os::fd::OwnedFd, from: ProcessId) {
    // Without a runtime there is nobody here to be asked: the other side sees the channel end.
    let Some(runtime) = program.runtime() else { return };
    let (program, outgoing) = (program.clone(), Arc::new(Outgoing::default()));
    program.accepted.add(&outgoing);
    runtime.clone().spawn(async move {
        let desk = CallsIn::new(program.root.directory().clone(), outgoing.clone());
        let channel = Channel::new(UnixStream::from(end), outgoing, desk, Spin::Off);
        drop(program);
        let over = match channel {
            Ok(channel) => channel.await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = over {
            tracing::warn!(from = from.path, %reason, "a channel from another process ended");
        }
    });
}
