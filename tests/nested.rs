//! Supervisors that live in workers, with workers of their own: what becomes of those when their supervisor's process is
//! killed, or stands still.

use hatchery::prelude::*;
use hatchery_tests::{becomes_true, ends, runs, send, stands_still, state};
use rustix::process::Signal;

/// How many guests a host has.
const GUESTS: usize = 3;

struct Guest;

#[hatchery::actor]
impl Guest {
    fn start() -> Self {
        Guest
    }

    fn is_there(&self) {}
}

/// Has a supervisor of its own, with guests, and so many levels of hosts below.
struct Host {
    tree: Tree,
    below: Option<HostHandle>,
}

#[hatchery::actor]
impl Host {
    async fn start(levels: u32) -> hatchery::Result<Self> {
        let mut supervisor = Supervisor::new(Strategy::OneForOne);
        for number in 0..GUESTS {
            supervisor = supervisor.child(worker::<Guest>(format!("guest-{number}"), ()));
        }
        if levels > 0 {
            supervisor = supervisor.child(worker::<Host>("host", levels - 1));
        }
        let tree = supervisor.start().await?;
        let below = if levels > 0 { Some(tree.get::<Host>("host")?) } else { None };
        Ok(Host { tree, below })
    }

    /// All processes below, once each of them has answered.
    async fn pids(&self) -> hatchery::Result<Vec<u32>> {
        for number in 0..GUESTS {
            self.tree.get::<Guest>(&format!("guest-{number}"))?.is_there().await?;
        }
        let lower = match &self.below {
            Some(below) => below.pids().await?,
            None => Vec::new(),
        };
        let mut pids: Vec<_> = self.tree.children().await.iter().filter_map(|child| child.pid).collect();
        pids.extend(lower);
        Ok(pids)
    }

    /// Which incarnation of each guest there is.
    async fn incarnations(&self) -> Vec<u64> {
        self.tree.children().await.iter().map(|child| child.incarnation).collect()
    }
}

async fn host(levels: u32) -> (Tree, HostHandle) {
    let tree = ends("start", Supervisor::new(Strategy::OneForOne).start()).await.unwrap();
    let spec = worker::<Host>("host", levels).heartbeat(Heartbeat::off());
    let host = ends("start", tree.start_child(spec)).await.unwrap();
    (tree, host)
}

/// Killed supervisor process, at the top of a subtree of three levels and in the middle of it.
#[hatchery::test]
async fn a_supervisor_process_that_is_killed_takes_its_subtree_along_and_a_new_one_comes() {
    let (tree, host) = host(1).await;
    let old = ends("ask", host.pids()).await.unwrap();
    assert_eq!(old.len(), 2 * GUESTS + 1);
    send(host.pid().unwrap(), Signal::KILL);
    becomes_true("the subtree is gone", || old.iter().all(|pid| !runs(*pid))).await;
    let new = loop {
        match ends("ask", host.pids()).await {
            Ok(pids) => break pids,
            // Sent to the one that was killed, before that was known.
            Err(error) => assert!(error.is_crash(), "{error}"),
        }
    };
    assert_eq!((new.len(), host.incarnation()), (old.len(), Some(2)));
    assert!(new.iter().all(|pid| runs(*pid) && !old.contains(pid)));

    // The one below is the last of the children of the first level.
    let below = new[GUESTS];
    send(below, Signal::KILL);
    becomes_true("those below are gone", || new[GUESTS..].iter().all(|pid| !runs(*pid))).await;
    // What is asked of it meanwhile may meet its end, which is no end of the one above.
    let newest = loop {
        if let Ok(pids) = ends("ask", host.pids()).await {
            break pids;
        }
    };
    assert_eq!(newest[..GUESTS], new[..GUESTS]);
    assert!(newest[GUESTS..].iter().all(|pid| runs(*pid) && !new.contains(pid)));
    assert_eq!((newest.len(), host.incarnation()), (new.len(), Some(2)));
    ends("stop", tree.stop()).await.unwrap();
    assert!(newest.iter().all(|pid| !runs(*pid)));
}

/// SIGSTOPped supervisor for ten seconds, in which one of its children dies: that one is started again, and the others,
/// whose answers it could not hear, are blamed for nothing.
#[hatchery::test]
async fn a_supervisor_process_that_stands_still_for_ten_seconds_blames_nobody() {
    let (tree, host) = host(0).await;
    let old = ends("ask", host.pids()).await.unwrap();
    let pid = host.pid().unwrap();
    send(pid, Signal::STOP);
    becomes_true("it stands still", || stands_still(pid)).await;
    send(old[1], Signal::KILL);
    // The ten seconds are the fault itself: three misses of a heartbeat, three times.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(state(old[1]), Some('Z'));
    send(pid, Signal::CONT);
    // Whoever is blamed, is blamed at the first looks after that.
    for _ in 0..3 {
        let new = ends("ask", host.pids()).await.unwrap();
        assert_eq!((new[0], new[2]), (old[0], old[2]));
        assert_eq!(ends("ask", host.incarnations()).await.unwrap(), [1, 2, 1]);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(host.incarnation(), Some(1));
    ends("stop", tree.stop()).await.unwrap();
}
