//! The thread of a worker that runs tasks, with its pool's ends of socket and ledger.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::Bytes;
use hatchery_shm::{Lane, Ledger, Shape};
use hatchery_wire::{Body, Connection, Envelope, Kind, Limits};
use tokio::runtime::{Builder, Runtime};

use super::{Desk, Thread};
use crate::row;
use crate::terms::{SKIPPED, TARGET, id};

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
    let thread = Thread { actors: actors.handle().clone(), stopping: Arc::default() };
    let mut ledger = Ledger::create(Shape::new(1, 16).unwrap()).unwrap();
    let lane = Lane::open(ledger.share().unwrap(), ledger.shape()).unwrap().pop().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let mut pool = connection(&pools, here);
    let connection = connection(&own, there);
    let out = Vec::new();
    let mut desk = Desk { thread: &thread, runtime: own, connection, lane, out, waiting: 0, unseen: 0 };
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
        desk.skip(7, false, &tasks(3)).unwrap();
    });
    assert_eq!(drained(&mut ledger), [(7, SKIPPED), (8, SKIPPED)]);
    assert_eq!(said, [(Kind::Unbind, 9)]);
}

#[test]
fn what_was_taken_back_is_dropped_and_what_comes_behind_that_is_done() {
    let (mut ledger, said) = at_the_desk(|desk, pool, runtime, ledger| {
        // Told by its pool: two rows of a task that it does not know, of which the second one is given away, and another one.
        let mut send = |kind, number, body| {
            runtime.block_on(pool.send(Envelope::new(kind, TARGET, id(1, number), body))).unwrap();
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
        let mut came = std::collections::VecDeque::new();
        assert!(desk.give_back(&mut came).unwrap());
        assert!(came.is_empty(), "it was read so far and no further");
        assert_eq!(drained(ledger), [(0, SKIPPED)]);
        desk.serve().unwrap();
    });
    // It has no such task, and says so, which is too long for the ledger.
    assert_eq!(said, [(Kind::Fault, 2)]);
    assert_eq!(drained(&mut ledger), []);
}
