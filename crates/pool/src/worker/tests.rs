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
    let thread =
        Thread { actors: Handle::current(), actor, stopping: Arc::default(), put_down: Arc::default() };
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

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_io().build().unwrap()
}

fn connection(runtime: &Runtime, socket: UnixStream) -> Connection {
    let _guard = runtime.enter();
    Connection::new(socket, Limits::default()).unwrap()
}

/// A row of so many tasks without arguments.
fn tasks(count: usize) -> Body {
    let mut bytes = Vec::new();
    (0..count).for_each(|_| row::put(&mut bytes, b""));
    Body::from_bytes(bytes.into())
}

/// Runs a desk, whose ledger has room for two words, and gives what its pool has of it then.
fn at_the_desk(
    does: impl FnOnce(&mut Desk<'_>, &mut Connection, &Runtime, &mut Ledger),
) -> (Ledger, Vec<(Kind, u64)>) {
    let (actors, own, pools) = (runtime(), runtime(), runtime());
    let actor = Context::new::<PoolWorker>("/pool/worker-0", 1, Mailbox::new());
    let (stopping, put_down) = Default::default();
    let thread = Thread { actors: actors.handle().clone(), actor, stopping, put_down };
    let kept = &mut Kept::new(None, &thread).unwrap();
    let mut ledger = Ledger::create(Shape::new(1, 16).unwrap()).unwrap();
    let lane = Lane::open(ledger.share().unwrap(), ledger.shape()).unwrap().pop().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let mut pool = connection(&pools, here);
    let connection = connection(&own, there);
    let out = Vec::new();
    let (waiting, unseen, has_put_down) = Default::default();
    let mut desk = Desk {
        thread: &thread,
        kept,
        runtime: own,
        connection,
        lane,
        at: 0,
        out,
        waiting,
        unseen,
        has_put_down,
    };
    does(&mut desk, &mut pool, &pools, &mut ledger);
    drop(desk);
    let mut said = Vec::new();
    while let Some(envelope) = pools.block_on(pool.recv()).unwrap() {
        said.push((envelope.kind, envelope.id));
    }
    (ledger, said)
}

fn drained(ledger: &mut Ledger) -> Vec<(u32, u8)> {
    let mut all = Vec::new();
    ledger.drain(|record| all.push((record.task, record.kind))).unwrap();
    all
}

#[test]
fn that_tasks_were_not_begun_is_said_by_the_socket_where_the_ledger_is_full() {
    let (mut ledger, said) = at_the_desk(|desk, _, _, _| {
        for number in 7..10 {
            desk.skip(number).unwrap();
        }
    });
    assert_eq!(drained(&mut ledger), [(7, SKIPPED), (8, SKIPPED)]);
    assert_eq!(said, [(Kind::Unbind, 9)]);
}

#[test]
fn what_was_taken_back_is_dropped_and_what_comes_behind_that_is_done() {
    let (mut ledger, said) = at_the_desk(|desk, pool, runtime, ledger| {
        // Told by its pool: two rows of a task that it does not know, of which the second one is given away, and another one.
        let mut send = |kind, number, body| {
            runtime.block_on(pool.send(Envelope::new(kind, TARGET, id(1, 0, number), body))).unwrap();
        };
        send(Kind::Tell, 1, tasks(1));
        send(Kind::Drain, 0, Body::from_bytes(Bytes::new()));
        send(Kind::Tell, 2, tasks(1));
        send(Kind::End, 0, Body::default());
        // It is at the last one of a row when its lane is held.
        desk.lane.begin(0).unwrap();
        assert!(ledger.hold(0, 0).unwrap());
        desk.finish(0, SKIPPED, &[], Some(1)).unwrap();
        assert!(desk.lane.take_held());
        let mut came = VecDeque::new();
        assert!(desk.give_back(&mut came).unwrap());
        assert!(came.is_empty(), "it was read so far and no further");
        assert_eq!(drained(ledger), [(0, SKIPPED)]);
        desk.serve().unwrap();
    });
    // It has no such task, and says so, which is too long for the ledger.
    assert_eq!(said, [(Kind::Fault, 2)]);
    assert_eq!(drained(&mut ledger), []);
}
