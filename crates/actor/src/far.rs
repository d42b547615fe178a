//! What stands behind a seat of another process: one task that finds out who sits there, opens the way to him when
//! somebody has something to say, and learns how he ended.
//!
//! ```text
//!            somebody sits there              somebody is in line
//!  asking ────────────────────▶ following ◀───────────────────────▶ connected
//!    ▲                              │           nothing under way       │
//!    └────────── the verdict ───────┴───────────────────────────────────┘
//! ```
//!
//! It runs from the first use of the seat on, for as long as anybody holds it.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::address::{Address, ProcessId, Tenure};
use crate::child::{BoxFuture, Child, Ended, Rung, ended};
use crate::exchange::{Command, Exchange, Found, Lost, Opened, Over};
use crate::exit::{Exit, Status};
use crate::fault::Fault;
use crate::seat::Seat;

/// Between the end of a channel and the verdict, and the other way round: each follows the other at once, unless one of
/// both is not about an end at all.
const BOTH: Duration = Duration::from_secs(2);
/// Pauses between questions that nobody could answer.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How a seat of another process is followed.
pub(crate) struct Far {
    address: Address,
    seat: Weak<Seat>,
    exchange: Weak<dyn Exchange>,
    follows: AtomicBool,
    /// The incarnation it is at, as it is counted here; 0 before the first.
    number: AtomicU64,
    task: Mutex<Option<AbortHandle>>,
}

impl Far {
    pub(crate) fn new(address: Address, seat: Weak<Seat>, exchange: Weak<dyn Exchange>) -> Far {
        Far {
            address,
            seat,
            exchange,
            follows: AtomicBool::new(false),
            number: AtomicU64::new(0),
            task: Mutex::default(),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn exchange(&self) -> Option<Arc<dyn Exchange>> {
        self.exchange.upgrade()
    }

    /// The next incarnation, as it is counted here: as its parent counts, unless that one has begun anew.
    pub(crate) fn next(&self, incarnation: u64) -> u64 {
        let next = incarnation.max(self.number.load(Ordering::Relaxed) + 1);
        self.number.store(next, Ordering::Relaxed);
        next
    }

    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    pub(crate) fn forsaken(&self) {
        self.follows.store(false, Ordering::Relaxed);
    }

    /// Begins to follow, on the current runtime, if nobody does. Outside of a runtime the next one who uses it does.
    pub(crate) fn follow(&self) {
        if self.follows.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if self.follows.swap(true, Ordering::Relaxed) {
            return;
        }
        let follower = Follower { seat: self.seat.clone(), number: self.number(), over: false };
        let (address, exchange) = (self.address.clone(), self.exchange.clone());
        let task = runtime.spawn(async move { follower.run(address, exchange).await });
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// The task.
struct Follower {
    seat: Weak<Seat>,
    /// The incarnation it is at.
    number: u64,
    /// Nobody will sit there any more.
    over: bool,
}

impl Follower {
    async fn run(mut self, address: Address, exchange: Weak<dyn Exchange>) {
        let (mut after, mut pause) = (None, FIRST_PAUSE);
        loop {
            let Some(exchange) = exchange.upgrade() else { return };
            match exchange.resolve(&address, after).await {
                Ok(found) => {
                    pause = FIRST_PAUSE;
                    let only = address.only.is_some();
                    match self.sits(&*exchange, &address, found, only).await {
                        Some(tenure) => after = Some(tenure),
                        // Found again, that one is as good as another.
                        None => sleep(pause).await,
                    }
                }
                Err(Lost::Closed(why)) => return self.close(Fault::Closed { why: why.clone() }, &why),
                Err(Lost::Over(exit)) => {
                    return self.close(Fault::Ended { exit, maybe_executed: false }, ENDED);
                }
                Err(Lost::Broken | Lost::Busy) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            if self.over || self.seat.strong_count() == 0 {
                return;
            }
        }
    }

    fn close(mut self, fault: Fault, why: &str) {
        self.over = true;
        if let Some(seat) = self.seat.upgrade() {
            seat.close_with(fault, why);
        }
    }

    /// From the moment in which somebody was found to his end. Gives who it was, unless he may still be there.
    async fn sits(
        &mut self,
        exchange: &dyn Exchange,
        address: &Address,
        found: Found,
        only: bool,
    ) -> Option<Tenure> {
        let (exits, exited) = watch::channel(None);
        {
            let seat = self.seat.upgrade()?;
            self.number = seat.next_far(found.tenure.incarnation);
            let child = FarChild {
                found: found.clone(),
                path: address.path.clone(),
                seat: self.seat.clone(),
                exited,
            };
            seat.set_window(found.window);
            if !seat.sit(self.number, found.tenure, Arc::new(child)) {
                self.over = true;
                return None;
            }
        }
        let mut verdict = pin!(verdict(exchange, &address.path, found.tenure));
        let mut over: Option<BoxFuture<Over>> = None;
        let known = loop {
            let connected = over.is_some();
            tokio::select! {
                biased;
                exit = &mut verdict => break Some(exit),
                why = finished(&mut over), if connected => match why {
                    Over::Idle => over = None,
                    Over::Ended => {
                        over = None;
                        break timeout(BOTH, &mut verdict).await.ok();
                    }
                },
                () = needs_way(&self.seat), if !connected => {
                    let opened = self.open(exchange, &found);
                    tokio::select! {
                        biased;
                        opened = opened => match opened {
                            Ok(opened) => over = opened,
                            Err(()) => break timeout(BOTH, &mut verdict).await.ok(),
                        },
                        exit = &mut verdict => break Some(exit),
                    }
                }
            }
        };
        if let Some(over) = &mut over {
            // What it said before its end comes first.
            let _ = timeout(BOTH, over).await;
        }
        let (exit, is_over) = match known {
            Some(Ok(exit)) => (exit, true),
            Some(Err(Lost::Over(exit))) => (*exit, true),
            Some(Err(Lost::Closed(why))) => (unknown(&why), true),
            Some(Err(Lost::Broken | Lost::Busy)) => (unknown(OWNER_ENDED), true),
            None => (unknown(BROKE), false),
        };
        let seat = self.seat.upgrade()?;
        seat.ended(self.number, &exit);
        if only && is_over {
            let fault = Fault::Ended { exit: Box::new(exit.clone()), maybe_executed: false };
            seat.close_with(fault, ENDED);
            self.over = true;
        }
        exits.send_replace(Some(Arc::new(exit)));
        is_over.then_some(found.tenure)
    }

    /// Opens the way, unless the seat is gone.
    fn open(
        &self,
        exchange: &dyn Exchange,
        found: &Found,
    ) -> impl Future<Output = Result<Option<BoxFuture<Over>>, ()>> + use<> {
        let (seat, number) = (self.seat.clone(), self.number);
        let opening = seat.upgrade().map(|seat| exchange.open(&seat, number, found));
        async move {
            let Some(opening) = opening else { return Ok(None) };
            let Opened { line, over } = opening.await.map_err(drop)?;
            if let Some(seat) = seat.upgrade() {
                seat.connect(number, line);
            }
            Ok(Some(over))
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // Its runtime has ended, or nobody holds the seat any more.
        if let Some(seat) = self.seat.upgrade() {
            seat.ended(self.number, &unknown("the runtime on which it was reached has ended"));
            seat.forsaken();
        }
    }
}

/// How this one ended, asked again for as long as nobody can say.
async fn verdict(exchange: &dyn Exchange, path: &str, tenure: Tenure) -> Result<Exit, Lost> {
    let mut pause = FIRST_PAUSE;
    loop {
        match exchange.verdict(path, tenure).await {
            Err(Lost::Busy) => sleep(pause).await,
            known => return known,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What a reference to one incarnation says after its end.
const ENDED: &str = "that incarnation has ended";
const OWNER_ENDED: &str = "the process that had started it ended, and it with that";
const BROKE: &str = "the connection to it broke";

fn unknown(reason: &str) -> Exit {
    Exit::new(Status::Unknown).with_reason(Some(reason.to_owned()))
}

/// Resolves when the way is over.
async fn finished(over: &mut Option<BoxFuture<Over>>) -> Over {
    match over {
        Some(over) => over.await,
        None => pending().await,
    }
}

/// Resolves when somebody is in line at this seat and there is no way.
async fn needs_way(seat: &Weak<Seat>) {
    poll_fn(|cx| match seat.upgrade() {
        Some(seat) => seat.poll_needs_way(cx),
        None => Poll::Pending,
    })
    .await;
}

/// An incarnation in another process, or one that another process started.
struct FarChild {
    found: Found,
    path: String,
    seat: Weak<Seat>,
    exited: Ended,
}

impl FarChild {
    fn command(&self, command: Command) -> Option<BoxFuture<Result<(), Fault>>> {
        let exchange = self.seat.upgrade()?.exchange()?;
        Some(exchange.command(&self.path, self.found.tenure, command))
    }
}

impl Child for FarChild {
    fn stop(&self, rung: Rung) {
        // Asked here and now; nobody waits for the word that it was.
        drop(self.command(Command::Stop(rung)));
    }

    fn pid(&self) -> Option<u32> {
        self.found.pid.filter(|_| self.exited.borrow().is_none())
    }

    fn process(&self) -> Option<ProcessId> {
        Some(self.found.process.clone())
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        Box::pin(ended(self.exited.clone()))
    }

    fn suspend(&self) -> BoxFuture<Result<(), Fault>> {
        let asked = self.command(Command::Suspend);
        Box::pin(async move {
            match asked {
                Some(asked) => asked.await,
                None => Err(Fault::Refused("this program is ending".to_owned())),
            }
        })
    }

    fn pause(&self) -> Result<(), Fault> {
        drop(self.command(Command::Pause));
        Ok(())
    }

    fn resume(&self) -> Result<(), Fault> {
        drop(self.command(Command::Resume));
        Ok(())
    }
}
