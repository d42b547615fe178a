//! The inside of a worker: one actor or one task, its channel to the parent, and the way out.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use hatchery_actor::actor::AnyActor;
use hatchery_actor::address::Tenure;
use hatchery_actor::context::Context;
use hatchery_actor::error::Error;
use hatchery_actor::exit::Panic;
use hatchery_actor::mailbox::Mailbox;
use hatchery_actor::spin::Spin;
use hatchery_actor::trace::TraceContext;
use hatchery_actor::{panics, runner};
use hatchery_wire::{Body, Envelope, Kind, decode_owned, encode};
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::calls_in::Caller;
use crate::channel::{Channel, Desk, Outgoing};
use crate::frames::{Frame, Invitation, LastWords, What};
use crate::program::Program;
use crate::registry;
use crate::task::{OnState, TaskEntry, TaskOutcome, TaskRun};
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
    let obey = Box::new(move |wish| match wish {
        Wish::Stop => controlled.stop(),
        Wish::Suspend => controlled.suspend(),
        Wish::Resume => controlled.resume(),
    });
    let watched = mailbox.clone();
    warden.on_wish(obey, Box::new(move || watched.info()));
    let runtime = match runtime(&program) {
        Ok(runtime) => runtime,
        Err(error) => return Ended::broken(format!("no runtime: {error}")),
    };
    program.runs_on(runtime.handle());
    let tenure = Tenure { seat: invitation.seat, incarnation: invitation.incarnation };
    let lodging = program.root.directory().lodge(&invitation.path, tenure, A::name(), mailbox.clone());
    let outgoing = Arc::new(Outgoing::default());
    let (args_in, args) = oneshot::channel();
    let parent = Caller::new(mailbox.clone(), outgoing.clone(), TENANT);
    let desk = MailDesk { parent, args: Some(args_in), now: None };
    let ended = runtime.block_on(async {
        let mut channel = match Channel::new(channel, outgoing.clone(), desk, invitation.spin) {
            Ok(channel) => tokio::spawn(channel),
            Err(error) => return Ended::broken(format!("no channel: {error}")),
        };
        let ended = tokio::select! {
            biased;
            ended = act::<A>(&invitation, &mailbox, args, warden, &program) => ended,
            over = &mut channel => return lost(over),
        };
        let Ended(words) = ended;
        if words.panic.is_none() {
            program.root.close().await;
        }
        // After a panic the callers come first; workers of this one end with it.
        drop(lodging);
        let (flushed, ()) = tokio::join!(flush(&outgoing, channel), flush_others(&program));
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
    program: &Program,
) -> Ended {
    let Ok(args) = args.await else { return std::future::pending().await };
    let cx =
        Context::new::<A>(&invitation.path, invitation.incarnation, mailbox.clone()).in_seat(invitation.seat);
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
    program.has_started();
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
    program.runs_on(runtime.handle());
    let outgoing = Arc::new(Outgoing::default());
    let (begin, begun) = oneshot::channel();
    let desk = TaskDesk { begin: Some(begin) };
    let begun = runtime.block_on(async {
        let mut channel = match Channel::new(channel, outgoing.clone(), desk, Spin::Off) {
            Ok(channel) => tokio::spawn(channel),
            Err(error) => return Err(Ended::broken(format!("no channel: {error}"))),
        };
        tokio::select! {
            biased;
            Ok(begun) = begun => Ok((begun, channel)),
            over = &mut channel => Err(lost(over)),
        }
    });
    let ((args, trace), mut channel) = match begun {
        Ok(begun) => begun,
        Err(ended) => return ended,
    };
    warden.up(Frame::Ready);
    program.has_started();
    let outcome = match entry.run {
        TaskRun::Sync(run) => panics::catch_call(|| match trace {
            Some(trace) => trace.sync_scope(|| run(args)),
            None => run(args),
        }),
        TaskRun::Async(run) => {
            let task = async {
                match trace {
                    Some(trace) => trace.scope(run(args)).await,
                    None => run(args).await,
                }
            };
            let ran = runtime.block_on(async {
                tokio::select! {
                    biased;
                    outcome = panics::catch(task) => Ok(outcome),
                    over = &mut channel => Err(lost(over)),
                }
            });
            match ran {
                Ok(outcome) => outcome,
                Err(ended) => return ended,
            }
        }
        // No program of this library asks for that: such a task does not compile where it would be alone.
        TaskRun::OnState(OnState { state, .. }) => {
            return Ended::broken(format!(
                "the task {} borrows `{state}`, which workers of pools have",
                entry.name
            ));
        }
    };
    let ended = runtime.block_on(async {
        let ended = match outcome {
            Ok(TaskOutcome { result, failed, why }) => {
                let (kind, body) = match result {
                    Ok(body) => (Kind::Reply, body),
                    Err(fault) => (Kind::Fault, encode(&fault).unwrap_or_default()),
                };
                outgoing.send(Envelope::new(kind, TENANT, 0, body));
                if failed {
                    let Ended(words) = Ended::failed();
                    Ended(LastWords { reason: why, ..words })
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
        tokio::join!(flush(&outgoing, channel), flush_others(&program));
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

/// Lets the last answers to other processes leave, and what was sent to them. They are owed less than the parent, which
/// may wait for this end: a second for all of them.
async fn flush_others(program: &Program) {
    let channels = program.channels();
    channels.iter().for_each(|channel| channel.finish());
    let written = async {
        for channel in channels {
            channel.over().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), written).await;
}

/// Lets the last answers leave; whether all have. It takes as long as the parent takes to read them: should the parent
/// end, the warden ends this process, and should it lose patience, its signals do.
async fn flush(outgoing: &Outgoing, channel: JoinHandle<Result<(), String>>) -> bool {
    outgoing.finish();
    matches!(channel.await, Ok(Ok(())))
}

/// Takes the arguments, and lays the parent's requests into the mailbox.
struct MailDesk {
    parent: Caller,
    args: Option<oneshot::Sender<Body>>,
    /// When what is being delivered arrived: one look at the clock for all of it.
    now: Option<Instant>,
}

impl Desk for MailDesk {
    fn arriving(&mut self) {
        self.now = None;
    }

    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        if envelope.target != TENANT {
            return Err(format!("a message to target {}, which does not exist", envelope.target));
        }
        match envelope.kind {
            Kind::Start => begin(&mut self.args, envelope.body),
            _ => self.parent.deliver(envelope, &mut self.now),
        }
    }

    fn is_due(&self) -> bool {
        self.parent.is_due()
    }
}

/// Takes a task's arguments, and the trace that it belongs to.
struct TaskDesk {
    begin: Option<oneshot::Sender<(Body, Option<TraceContext>)>>,
}

impl Desk for TaskDesk {
    fn deliver(&mut self, envelope: Envelope) -> Result<(), String> {
        match envelope.kind {
            Kind::Start => {
                // A span of its own, below that of whoever started it.
                let trace = envelope.origin.and_then(|origin| TraceContext::of_wire(&origin.trace));
                let trace = trace.map(|trace| trace.child());
                begin(&mut self.begin, (envelope.body, trace))
            }
            other => Err(format!("a message of kind {other:?}, which a task does not take")),
        }
    }
}

fn begin<T>(args: &mut Option<oneshot::Sender<T>>, with: T) -> Result<(), String> {
    // Nobody waits for the arguments any more only when the worker is about to leave.
    args.take().map(|args| drop(args.send(with))).ok_or_else(|| "it was started twice".to_owned())
}
