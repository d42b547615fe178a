//! Keepers of workers that are a thread of this process, and say what no worker would.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hatchery_actor::actor::Place;
use hatchery_actor::child::{BoxFuture, Child, Rung, Shutdown};
use hatchery_actor::exit::{Exit, Status};
use hatchery_actor::seat::Seat;
use hatchery_process::task::{TaskEntry, TaskRun};
use hatchery_shm::{Lane, Ledger, NotKept, Shape};
use tokio::sync::watch;

use super::{MOST_EARLY, attend};
use crate::plan::{JobId, Priority, Rules, Size, Wants};
use crate::post::Arrived;
use crate::row::{Load, Row};
use crate::shared::Shared;
use crate::terms::VALUE;

static ENTRY: TaskEntry =
    TaskEntry::new("task", Place::new("", 0, 0), TaskRun::Sync(|_| unreachable!()), None);

/// A worker that ends when it is killed, and not before; and the process that it claims to be.
struct Thread(watch::Sender<bool>, Option<u32>);

impl Child for Thread {
    fn stop(&self, rung: Rung) {
        if rung == Rung::Kill {
            self.0.send_replace(true);
        }
    }

    fn pid(&self) -> Option<u32> {
        self.1
    }

    fn exited(&self) -> BoxFuture<Arc<Exit>> {
        let mut killed = self.0.subscribe();
        Box::pin(async move {
            let _ = killed.wait_for(|killed| *killed).await;
            Arc::new(Exit::new(Status::Signal(9)))
        })
    }
}

/// Has a keeper attend to a worker that has been given so many tasks and does as `worker` says; and gives what was its
/// job. It ends when the worker has been killed.
async fn kept(tasks: u32, worker: impl FnOnce(UnixStream, Lane) + Send + 'static) -> (Arc<Shared>, JobId) {
    let (shared, job, arrived, there, lane) = made(tasks);
    let thread = std::thread::spawn(move || worker(there, lane));
    attended(&shared, arrived).await;
    thread.join().unwrap();
    (shared, job)
}

async fn attended(shared: &Shared, arrived: Arrived) {
    let keeper = attend(shared, 0, arrived);
    tokio::time::timeout(Duration::from_secs(30), keeper).await.expect("it is not killed");
}

/// What the two sides of a worker have that has been given so many tasks.
fn made(tasks: u32) -> (Arc<Shared>, JobId, Arrived, UnixStream, Lane) {
    made_as(tasks, None, None)
}

/// The same, where a worker may have so much memory, and is this process.
fn made_as(
    tasks: u32,
    most: Option<u64>,
    pid: Option<u32>,
) -> (Arc<Shared>, JobId, Arrived, UnixStream, Lane) {
    let shared = Shared::new(Rules { prefetch: 1, max_tasks: None, lanes: 1 }, Size::fixed(1), most);
    let wants =
        Wants { entry: &ENTRY, timeout: None, retries: 0, poison_after: None, priority: Priority::Normal };
    let row = Row { bytes: Bytes::from(vec![0; 4 * tasks as usize]), count: tasks };
    let job = shared.with(|plan| {
        let job = plan.begin(wants).unwrap();
        plan.enter(job, 0, Load::Row(row), tokio::time::Instant::now());
        job
    });
    let ledger = Ledger::create(Shape::new(1, 128 * 1024).unwrap()).unwrap();
    let lane = Lane::open(ledger.share().unwrap(), ledger.shape()).unwrap().pop().unwrap();
    let (socket, there) = UnixStream::pair().unwrap();
    let (child, seat) = (
        Thread(watch::Sender::new(false), pid),
        Seat::with("/pool/worker-0".into(), "worker", 1, Shutdown::kill()),
    );
    let arrived = Arrived { start: 0, socket, ledger, child: Arc::new(child), seat };
    (shared, job, arrived, there, lane)
}

#[tokio::test]
async fn a_worker_whose_outcomes_all_come_before_their_turn_is_killed_before_they_fill_the_memory() {
    // More than is kept of them, by far.
    let many = 16 * (MOST_EARLY / 8192) as u32;
    let (shared, job) = kept(many + 1, move |mut socket, mut lane| {
        socket.set_nonblocking(true).unwrap();
        lane.begin(1).unwrap();
        for number in 1..many {
            loop {
                match lane.finish(VALUE, &[0; 8192], Some(number + 1)) {
                    // Whether or not it is wanted: a byte that begins no frame.
                    Ok(_) => break,
                    Err(NotKept::Closed(_)) => return,
                    Err(NotKept::Full) => {}
                }
                // The keeper is gone, and so is its end of the socket.
                match socket.read(&mut [0; 64]) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
                    Ok(count) if count > 0 => {}
                    _ => return,
                }
            }
        }
        panic!("all of it was taken");
    })
    .await;
    // It claims to run one of them, and is believed as far as that goes.
    assert!(shared.with(|plan| plan.has_mail(job) && plan.waiting() == u64::from(many)));
}

#[tokio::test]
async fn a_worker_that_writes_what_is_no_message_is_killed_and_its_tasks_go_to_others() {
    let (shared, job) = kept(3, |mut socket, mut lane| {
        lane.begin(0).unwrap();
        assert!(lane.finish(VALUE, b"", None).is_ok());
        socket.write_all(&[0xff; 64]).unwrap();
    })
    .await;
    // What it has done before counts.
    assert!(shared.with(|plan| plan.has_mail(job) && plan.waiting() == 2));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_hangs_up_and_does_not_leave_is_killed() {
    let (shared, _, arrived, there, _lane) = made(1);
    drop(there);
    attended(&shared, arrived).await;
    assert_eq!(shared.with(|plan| plan.waiting()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_memory_cannot_be_read_is_not_replaced_for_it() {
    let no_process = u32::MAX;
    for (pid, replaced) in [(Some(std::process::id()), true), (Some(no_process), false), (None, false)] {
        let (shared, _, arrived, _there, mut lane) = made_as(1, Some(1), pid);
        lane.begin(0).unwrap();
        let child = arrived.child.clone();
        let looks = async {
            // It is looked at every 250 ms.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let leaves = shared.with(|plan| plan.workers(tokio::time::Instant::now())[0].is_leaving);
            assert_eq!(leaves, replaced, "{pid:?}");
            child.stop(Rung::Kill);
        };
        tokio::join!(attended(&shared, arrived), looks);
    }
}
