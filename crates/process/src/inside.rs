//! The inside of a worker: one actor or one task, its channel to the parent, and the way out.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hatchery_actor::actor::AnyActor;
use hatchery_actor::context::Context;
use hatchery_actor::error::Error;
use hatchery_actor::exit::Panic;
use hatchery_actor::fault::Fault;
use hatchery_actor::mailbox::{Mailbox, Parcel, ReturnPath};
use hatchery_actor::outlet::{Answer, WINDOW};
use hatchery_actor::spin::Spin;
use hatchery_actor::trace::TraceContext;
use hatchery_actor::{panics, runner};
use hatchery_wire::{Body, Envelope, Kind, decode, decode_owned, encode};
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::channel::{Channel, Desk, Outgoing};
use crate::frames::{Frame, Invitation, LastWords, What};
use crate::program::Program;
use crate::registry;
use crate::task::{TaskEntry, TaskOutcome, TaskRun};
use crate::warden::Warden;
use crate::wishes::Wish;
use crate::worker::TENANT;

/// Exit code after a panic, as Rust's own.
pub(crate) const PANICKED: i32 = 101;
/// Exit code of a worker that could not do what a worker does (`EX_SOFTWARE`).
pub(crate) const BROKEN: i32 = 70;

/// What the door hands in.
pub struct Inside {
    pub(crate) invitation: Invitation,
    pub(crate) channel: UnixStream,
    pub(crate) warden: &'static Warden,
    pub(crate) program: Arc<Program>,
}

/// How the inside of a worker ended: its last words.
pub struct Ended(pub(crate) LastWords);

impl Ended {
    fn clean() -> Ended {
        Ended(LastWords::default())
    }

    fn orderly() -> Ended {
        Ended(LastWords { orderly: true, ..LastWords::default() })
    }

    pub(crate) fn panicked(panic: Panic) -> Ended {
        Ended(LastWords { code: PANICKED, panic: Some(panic), ..LastWords::default() })
    }

    /// Of a program in which panics abort: what the kernel says of its end counts, where it says it.
    pub(crate) fn aborted(panic: Panic) -> Ended {
        Ended(LastWords { code: 128 + Signal::ABORT.as_raw(), ..Ended::panicked(panic).0 })
    }

    fn failed() -> Ended {
        Ended(LastWords { code: 1, failed: true, ..LastWords::default() })
    }

    fn broken(reason: impl Into<String>) -> Ended {
        Ended(LastWords { code: BROKEN, reason: Some(reason.into()), ..LastWords::default() })
    }
}

/// Hosts what the invitation names.
pub(crate) fn live(inside: Inside) -> Ended {
    // The parent has looked both up in its own registry, which is the same program's.
    match inside.invitation.what.clone() {
        What::Actor { name, place } => match registry::actor(&name, &place) {
            Ok(actor) => actor.live(inside),
            Err(fault) => Ended::broken(fault.to_string()),
        },
        What::Task { name, place } => match registry::task(&name, &place) {
            Ok(entry) => host_task(entry, inside),
            Err(fault) => Ended::broken(fault.to_string()),
        },
    }
}

fn runtime(program: &Arc<Program>) -> std::io::Result<Runtime> {
    let program = program.clone();
    Builder::new_current_thread().enable_all().on_thread_start(move || program.enter()).build()
}

/// Hosts an actor: start, messages, stop.
pub(crate) fn host_actor<A: AnyActor>(inside: Inside) -> Ended {
    let Inside { invitation, channel, warden, program } = inside;
    let mailbox = Mailbox::new();
    let controlled = mailbox.clone();
    warden.on_wish(Box::new(move |wish| match wish {
        Wish::Stop => controlled.stop(),
        Wish::Suspend => controlled.suspend(),
        Wish::Resume => controlled.resume(),
    }));
    let runtime = match runtime(&program) {
        Ok(runtime) => runtime,
        Err(error) => return Ended::broken(format!("no runtime: {error}")),
    };
    let outgoing = Arc::new(Outgoing::default());
    let back = Arc::new(ChannelReturn {
        outgoing: outgoing.clone(),
        taken: AtomicU32::new(0),
        answered: AtomicBool::new(false),
    });
    let (args_in, args) = oneshot::channel();
    let desk =
        MailDesk { mailbox: mailbox.clone(), places: back.clone(), back, args: Some(args_in), now: None };
    let ended = runtime.block_on(async {
        let mut channel = match Channel::new(channel, outgoing.clone(), desk, invitation.spin) {
            Ok(channel) => tokio::spawn(channel),
            Err(error) => return Ended::broken(format!("no channel: {error}")),
        };
        let ended = tokio::select! {
            biased;
            ended = act::<A>(&invitation, &mailbox, args, warden) => ended,
            over = &mut channel => return lost(over),
        };
        let Ended(words) = ended;
        if words.panic.is_none() {
            program.root.close().await;
        }
        // After a panic the callers come first; workers of this one end with it.
        let flushed = flush(&outgoing, channel).await;
        Ended(LastWords { orderly: words.orderly && flushed, ..words })
    });
    runtime.shutdown_background();
    ended
}

/// From an actor's arguments to its end.
async fn act<A: AnyActor>(
    invitation: &Invitation,
    mailbox: &Arc<Mailbox>,
    args: oneshot::Receiver<Body>,
    warden: &Warden,
) -> Ended {
    let Ok(args) = args.await else { return std::future::pending().await };
    let cx = Context::new::<A::Handle>(&invitation.path, invitation.incarnation, mailbox.clone());
    let args = match decode_owned::<A::Args>(args) {
        Ok(args) => args,
        Err(error) => {
            let error = Error::from(error).context("the arguments could not be decoded");
            warden.up(Frame::StartFailed(error));
            return Ended::failed();
        }
    };
    let actor = match runner::start::<A>(args, &cx).await {
        Ok(Ok(actor)) => actor,
        Ok(Err(error)) => {
            warden.up(Frame::StartFailed(error));
            return Ended::failed();
        }
        Err(panic) => return Ended::panicked(panic),
    };
    warden.up(Frame::Ready);
    match runner::run(actor, mailbox, cx).await {
        Ok(()) => Ended::orderly(),
        Err(panic) => Ended::panicked(panic),
    }
}

/// Runs a task. A synchronous one runs on this thread outside of the runtime, so that it may drive a runtime itself.
fn host_task(entry: &'static TaskEntry, inside: Inside) -> Ended {
    // A task has no mailbox to stop in order; whoever wants its end sends SIGTERM.
    let Inside { channel, warden, program, .. } = inside;
    let runtime = match runtime(&program) {
        Ok(runtime) => runtime,
        Err(error) => return Ended::broken(format!("no runtime: {error}")),
    };
    let outgoing = Arc::new(Outgoing::default());
    let (args_in, args) = oneshot::channel();
    let desk = TaskDesk { args: Some(args_in) };
    let begun = runtime.block_on(async {
        let mut channel = match Channel::new(channel, outgoing.clone(), desk, Spin::Off) {
            Ok(channel) => tokio::spawn(channel),
            Err(error) => return Err(Ended::broken(format!("no channel: {error}"))),
        };
        tokio::select! {
            biased;
            Ok(args) = args => Ok((args, channel)),
            over = &mut channel => Err(lost(over)),
        }
    });
    let (args, mut channel) = match begun {
        Ok(begun) => begun,
        Err(ended) => return ended,
    };
    warden.up(Frame::Ready);
    let outcome = match entry.run {
        TaskRun::Sync(run) => panics::catch_call(|| run(args)),
        TaskRun::Async(run) => {
            let ran = runtime.block_on(async {
                tokio::select! {
                    biased;
                    outcome = panics::catch(run(args)) => Ok(outcome),
                    over = &mut channel => Err(lost(over)),
                }
            });
            match ran {
                Ok(outcome) => outcome,
                Err(ended) => return ended,
            }
        }
    };
    let ended = runtime.block_on(async {
        let ended = match outcome {
            Ok(TaskOutcome { result, failed }) => {
                let (kind, body) = match result {
                    Ok(body) => (Kind::Reply, body),
                    Err(fault) => (Kind::Fault, encode(&fault).unwrap_or_default()),
                };
                outgoing.send(Envelope::new(kind, TENANT, 0, body));
                if failed {
                    Ended::failed()
                } else {
                    program.root.linger().await;
                    Ended::clean()
                }
            }
            Err(panic) => Ended::panicked(panic),
        };
        if ended.0.panic.is_none() {
            program.root.close().await;
        }
        flush(&outgoing, channel).await;
        ended
    });
    runtime.shutdown_background();
    ended
}

type Over = Result<Result<(), String>, tokio::task::JoinError>;

/// The channel ended before the worker did.
fn lost(over: Over) -> Ended {
    match over {
        Ok(Ok(())) => Ended::broken("its channel closed"),
        Ok(Err(reason)) => Ended::broken(reason),
        Err(error) => Ended::broken(format!("its channel failed: {error}")),
    }
}

/// Lets the last answers leave; whether all have. It takes as long as the parent takes to read them: should the parent
/// end, the warden ends this process, and should it lose patience, its signals do.
async fn flush(outgoing: &Outgoing, channel: JoinHandle<Result<(), String>>) -> bool {
    outgoing.finish();
    matches!(channel.await, Ok(Ok(())))
}

/// Lays requests into the mailbox.
struct MailDesk {
    mailbox: Arc<Mailbox>,
    back: Arc<dyn ReturnPath>,
    places: Arc<ChannelReturn>,
    args: Option<oneshot::Sender<Body>>,
    /// When what is being delivered arrived: one look at the clock for all of it.
    now: Option<Instant>,
}

impl Desk for MailDesk {
    fn arriving(&mut self) {
        self.now = None;
    }

    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        let Envelope { kind, id, target, deadline, origin, body, .. } = envelope;
        self.places.answered.store(false, Ordering::Relaxed);
        if target != TENANT {
            return Err(format!("a message to target {target}, which does not exist"));
        }
        let ask = match kind {
            Kind::Start => return begin(&mut self.args, body),
            Kind::Withdraw => {
                self.mailbox.withdraw(id, &self.back);
                return Ok(());
            }
            Kind::Credit => {
                let items = decode(&body).map_err(|error| format!("a malformed credit: {error}"))?;
                let credit = self.mailbox.credit(id, &self.back, items);
                return credit.map_err(|_| "it took more items of a stream than it was sent".to_owned());
            }
            Kind::Ask => true,
            Kind::Tell => false,
            other => return Err(format!("a message of kind {other:?}, which a parent does not send")),
        };
        if self.places.taken.fetch_add(1, Ordering::Relaxed) >= WINDOW {
            return Err(format!("more than {WINDOW} messages at once"));
        }
        // A deadline too far for the clock is none.
        let deadline = deadline.and_then(|left| self.now.get_or_insert_with(Instant::now).checked_add(left));
        let trace = origin.and_then(|origin| TraceContext::of_wire(&origin.trace)).map(Box::new);
        let parcel = Parcel { id, ask, deadline, trace, body, from: self.back.clone() };
        self.mailbox.push(parcel).unwrap_or_else(Parcel::refuse);
        Ok(())
    }

    fn is_due(&self) -> bool {
        // Whoever got an answer is likely to ask again.
        self.places.answered.load(Ordering::Relaxed)
    }
}

/// Takes a task's arguments.
struct TaskDesk {
    args: Option<oneshot::Sender<Body>>,
}

impl Desk for TaskDesk {
    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        match envelope.kind {
            Kind::Start => begin(&mut self.args, envelope.body),
            other => Err(format!("a message of kind {other:?}, which a task does not take")),
        }
    }
}

fn begin(args: &mut Option<oneshot::Sender<Body>>, body: Body) -> Result<(), String> {
    // Nobody waits for the arguments any more only when the worker is about to leave.
    args.take().map(|args| drop(args.send(body))).ok_or_else(|| "it was started twice".to_owned())
}

/// The way of answers to the parent.
struct ChannelReturn {
    outgoing: Arc<Outgoing>,
    /// Places of the parent's window that are taken.
    taken: AtomicU32,
    /// Since the last message came.
    answered: AtomicBool,
}

impl ChannelReturn {
    fn send(&self, id: u64, answer: Answer, release: bool) {
        let (kind, body) = match answer {
            Answer::Value(body) => (Kind::Reply, body),
            Answer::Error(body) => (Kind::Error, body),
            Answer::Fault(fault) => (Kind::Fault, encode(&fault).unwrap_or_default()),
            Answer::End => (Kind::End, Body::default()),
            Answer::None => {
                let fault = Fault::BadAnswer("the handler gave none".to_owned());
                (Kind::Fault, encode(&fault).unwrap_or_default())
            }
        };
        let mut envelope = Envelope::new(kind, TENANT, id, body);
        envelope.release = release;
        self.outgoing.send(envelope);
    }
}

impl ReturnPath for ChannelReturn {
    fn answer(&self, id: u64, answer: Answer) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.answered.store(true, Ordering::Relaxed);
        self.send(id, answer, true);
    }

    fn reply(&self, id: u64, answer: Answer) {
        self.send(id, answer, false);
    }

    fn item(&self, id: u64, item: Body) {
        self.outgoing.send(Envelope::new(Kind::Item, TENANT, id, item));
    }

    fn release(&self, places: u32) {
        self.taken.fetch_sub(places, Ordering::Relaxed);
        self.outgoing.send(Envelope::new(Kind::Release, TENANT, u64::from(places), Body::default()));
    }
}
