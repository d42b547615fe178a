//! The inside of a worker against a pool that says what no pool says.

use hatchery_actor::mailbox::Mailbox;
use hatchery_process::registry::HostedTask;
use hatchery_process::task::StateType;
use hatchery_shm::{Ledger, Shape};

use super::*;
use crate::terms::id;

static PLAIN: TaskEntry = TaskEntry::new("plain", Place::new("here", 1, 1), TaskRun::Sync(seven), None);
static BORROWS: TaskEntry = TaskEntry::new("borrows", Place::new("here", 2, 1), ON_STATE, None);
const ON_STATE: TaskRun = TaskRun::OnState(OnState {
    state: StateType::of::<String>(),
    run: RunOnState::Sync(|_, _| panic!("it was lent what is not there")),
    packed: Some(|_, _, _| panic!("it was lent what is not there")),
});

inventory::submit! { HostedTask(&PLAIN) }
inventory::submit! { HostedTask(&BORROWS) }

fn seven(_: Body) -> TaskOutcome {
    TaskOutcome::value(encode(&7), false)
}

fn bind(number: u32, task: &TaskEntry) -> Envelope {
    let named = Named { name: task.name.to_owned(), place: task.place.to_string() };
    Envelope::new(Kind::Bind, TARGET, id(number, 0, 0), encode(&named).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_task_that_borrows_what_is_not_there_fails_alone_whoever_sends_it() {
    let shape = Shape::new(1, 4096).unwrap();
    let mut ledger = Ledger::create(shape).unwrap();
    let lane = Lane::open(ledger.share().unwrap(), shape).unwrap().pop().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let actor = Context::new::<PoolWorker>("/pool/worker-0", 1, Mailbox::new());
    let thread = Thread { actors: Handle::current(), actor, stopping: Arc::default() };
    let served = tokio::task::spawn_blocking(move || {
        let mut kept = Kept::new(None, &thread).unwrap();
        thread.serve(there, lane, Vec::new(), &mut kept)
    });

    let mut row = Vec::new();
    row::put(&mut row, b"");
    row::put(&mut row, b"");
    let mut pool = Connection::new(here, Limits::default()).unwrap();
    for envelope in [
        bind(0, &BORROWS),
        Envelope::new(Kind::Tell, TARGET, id(0, 0, 0), Body::from_bytes(row.into())),
        Envelope::new(Kind::Ask, TARGET, id(0, 0, 2), Body::default()),
        bind(1, &PLAIN),
        Envelope::new(Kind::Ask, TARGET, id(1, 0, 3), Body::default()),
        Envelope::new(Kind::End, TARGET, 0, Body::default()),
    ] {
        pool.send(envelope).await.unwrap();
    }
    tokio::time::timeout(std::time::Duration::from_secs(30), served).await.unwrap().unwrap().unwrap();
    let mut outcomes = Vec::new();
    ledger.drain(|record| outcomes.push((record.task, record.kind, record.bytes.to_vec()))).unwrap();
    assert_eq!(
        outcomes.iter().map(|(task, kind, _)| (*task, *kind)).collect::<Vec<_>>(),
        [(0, FAULT), (1, FAULT), (2, FAULT), (3, VALUE)]
    );
    for (_, _, bytes) in &outcomes[..3] {
        let fault: Fault = hatchery_wire::decode_slice(bytes).unwrap();
        assert!(fault.to_string().contains("borrows a `alloc::string::String`"), "{fault}");
    }
}
