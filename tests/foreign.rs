//! A program with code of its own that waits for all children of the process, for the tests in `leaving.rs` and
//! `faults.rs`.

use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use hatchery::Status;
use hatchery::prelude::*;
use hatchery_tests::{BOUND, becomes_true, children, ends, eventually, runs, send, stands_still, state};
use rustix::process::{Signal, WaitOptions, wait};

use crate::{Polite, returns, say, stays};

/// A waker that returns only when it may: whoever wakes with it stands still meanwhile.
struct Holds {
    held: Sender<()>,
    let_go: Mutex<Receiver<()>>,
}

impl Wake for Holds {
    fn wake(self: Arc<Self>) {
        let _ = self.held.send(());
        let _ = self.let_go.lock().expect("nobody panics with it").recv();
    }
}

/// Has the warden of this process stand still until what this gives is dropped, so that there is no doubt who is first
/// to see what happens meanwhile. It wakes those who wait for an actor to heed their `suspend`.
pub(crate) async fn held_warden(actor: &impl AnyHandle) -> Sender<()> {
    let pid = actor.pid().expect("it sits");
    // So that it cannot be faster than the poll.
    send(pid, Signal::STOP);
    becomes_true("it stands still", || stands_still(pid)).await;
    let (held, is_held) = channel();
    let (go, let_go) = channel();
    let waker = Waker::from(Arc::new(Holds { held, let_go: Mutex::new(let_go) }));
    let mut suspended = Box::pin(actor.suspend());
    assert!(suspended.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    send(pid, Signal::CONT);
    is_held.recv_timeout(BOUND).expect("the warden wakes who waits");
    go
}

/// As such code does: gives the number of whoever has ended.
pub(crate) fn waits_for_anybody() -> u32 {
    let (pid, _) = wait(WaitOptions::empty()).expect("there are children").expect("it waits");
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Has a helper in its group, which has its number.
#[hatchery::task]
fn has_a_helper() {
    let mut helper = std::process::Command::new("sleep");
    helper.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let helper = helper.spawn().expect("sleep");
    // Nobody here waits for it.
    std::mem::forget(helper);
    stays()
}

/// Whether nobody has sent it a signal that would end it or stop it, as far as that can be told by one more, which
/// takes hold after those before it.
fn is_unharmed(pid: u32) -> bool {
    if !runs(pid) || state(pid) == Some('T') {
        return false;
    }
    send(pid, Signal::STOP);
    eventually("it has heard that", || state(pid) == Some('T') || !runs(pid));
    runs(pid)
}

/// What the library makes of deaths when it certainly comes second.
async fn comes_second() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let holder = tree.start_child(worker::<Polite>("holder", ())).await?;
    let polite = tree.start_child(worker::<Polite>("polite", ())).await?;

    let killed = Process::spawn(has_a_helper, ()).await?;
    becomes_true("it has a helper", || children(killed.pid()).len() == 1).await;
    let helper = children(killed.pid())[0];
    let go = held_warden(&holder).await;
    killed.kill()?;
    assert_eq!(waits_for_anybody(), killed.pid());
    for act in [Process::terminate, Process::interrupt, Process::pause, Process::kill] {
        act(&killed)?;
    }
    drop(go);
    let exit = ends("killed", killed.wait()).await;
    // The number of its group may be anybody's by now, so nobody in it is touched.
    let is_unharmed = is_unharmed(helper);
    if runs(helper) {
        send(helper, Signal::KILL);
    }
    assert!(is_unharmed, "the bystander was signalled");
    assert_eq!((exit.status(), exit.exitcode()), (Status::Unknown, None), "{exit}");

    let go = held_warden(&holder).await;
    let (pid, aborts) = (polite.pid(), tokio::spawn(polite.aborts()));
    assert_eq!(tokio::task::spawn_blocking(waits_for_anybody).await.ok(), pid);
    drop(go);
    let crash = ends("aborts", aborts).await?.unwrap_err();
    assert!(crash.is_crash() && crash.exit().is_some_and(|exit| exit.status() == Status::Unknown), "{crash}");
    ends("the next one", polite.lives()).await?;
    assert_eq!((polite.incarnation(), holder.incarnation()), (Some(2), Some(1)));

    tree.stop().await
}

/// Deaths beside a thread that waits for all children as fast as it can.
async fn comes_first_or_second() -> hatchery::Result<()> {
    std::thread::spawn(|| {
        loop {
            if wait(WaitOptions::empty()).is_err() {
                std::thread::park_timeout(Duration::from_micros(50));
            }
        }
    });
    let tree = Supervisor::new(Strategy::OneForOne).intensity(1000, Duration::from_secs(60)).start().await?;
    let polite = tree.start_child(worker::<Polite>("polite", ())).await?;
    let mut unknown = 0;
    for round in 1..=50 {
        let crash = polite.aborts().await.unwrap_err();
        // Nobody could tell, unless its warden was faster.
        let exit = crash.exit().ok_or_else(|| hatchery::Error::msg("no crash"))?.exitcode();
        assert!(crash.is_crash() && [None, Some(-6)].contains(&exit), "{crash:?}");
        unknown += u32::from(exit.is_none());
        polite.lives().await?;
        assert_eq!(polite.incarnation(), Some(round + 1));
        // It has last words, so its code is known in any case.
        let returned = Process::spawn(returns, ()).await?;
        returned.join().await?;
        assert_eq!(returned.exitcode(), Some(0));
        let killed = Process::spawn(stays, ()).await?;
        killed.kill()?;
        let exit = killed.wait().await.exitcode();
        assert!([None, Some(-9)].contains(&exit));
        unknown += u32::from(exit.is_none());
    }
    say(&format!("{unknown} of 100 in an unknown way"));
    tree.stop().await
}

pub(crate) async fn program() -> hatchery::Result<()> {
    comes_second().await?;
    say("known to be unknown");
    comes_first_or_second().await?;
    assert_eq!(children(std::process::id()), []);
    say("every death was noticed");
    Ok(())
}
