//! What an idle worker takes of memory, itself and in its parent.
//!
//! The ruler: a bare process with a tokio runtime of one thread that waits on a socket, and a parent with nothing but
//! such sockets and the children's exits to wait for. Workers and bare processes are looked at one kind after the
//! other, each among as many of its own kind, since kin shares its pages.

#![forbid(unsafe_code)]

use std::ops::Range;

use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::footprint::Footprint;
use hatchery_benches::ruler::{Job, start};
use hatchery_benches::table::{Bytes, Effort, Row, Target, print};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;

/// How many of a kind there are while one of them is looked at.
const KIN: usize = 8;
/// How many more a parent starts between two looks at itself. The first [`KIN`] have paid for what it needs only once.
const MORE: usize = 64;

struct Idler;

#[hatchery::actor]
impl Idler {
    fn start() -> Self {
        Idler
    }

    async fn answer(&mut self, n: u8) -> u8 {
        n
    }
}

/// A parent that is young each time it is looked at: memory that was used once is not given back.
struct Parent;

#[hatchery::actor]
impl Parent {
    fn start() -> Self {
        Parent
    }

    async fn of_bare_processes(&mut self) -> hatchery::Result<u64> {
        let _kin = bare(KIN).await?;
        let before = own()?;
        let _more = bare(MORE).await?;
        Ok(own()?.saturating_sub(before) / MORE as u64)
    }

    async fn of_workers(&mut self) -> hatchery::Result<u64> {
        let tree = Supervisor::new(Strategy::OneForOne).start().await?;
        let _kin = workers(&tree, 0..KIN).await?;
        let before = own()?;
        let _more = workers(&tree, KIN..KIN + MORE).await?;
        let grown = own()?.saturating_sub(before);
        tree.stop().await?;
        Ok(grown / MORE as u64)
    }
}

fn main() {
    hatchery::program().flavor(Flavor::CurrentThread).run(memory)
}

async fn memory() -> hatchery::Result<()> {
    let effort = Effort::of_args(KIN);
    let mut whole = Row::new("idle worker, PSS", Target::Times(2.0));
    let mut private = Row::new("of it private, written", Target::None);
    let mut parent = Row::new("its parent, private", Target::None);
    for _ in 0..effort.rounds {
        let bare = bare(KIN).await?;
        let feet: Vec<_> = bare.iter().filter_map(|(process, _)| process.id()).map(Footprint::of).collect();
        let feet: Vec<_> = feet.into_iter().collect::<Result<_, _>>()?;
        assert_eq!(feet.len(), KIN);
        whole.ruler.round(feet.iter().map(|foot| foot.proportional).collect());
        private.ruler.round(feet.iter().map(|foot| foot.private).collect());
        for (mut process, stream) in bare {
            drop(stream);
            process.wait().await?;
        }

        let tree = Supervisor::new(Strategy::OneForOne).start().await?;
        let idlers = workers(&tree, 0..KIN).await?;
        let feet: Vec<_> = idlers.iter().filter_map(|idler| idler.pid()).map(Footprint::of).collect();
        let feet: Vec<_> = feet.into_iter().collect::<Result<_, _>>()?;
        assert_eq!(feet.len(), KIN);
        whole.subject.round(feet.iter().map(|foot| foot.proportional).collect());
        private.subject.round(feet.iter().map(|foot| foot.private).collect());
        tree.stop().await?;

        let tree = Supervisor::new(Strategy::OneForOne).start().await?;
        let young = tree.start_child(worker::<Parent>("bare", ())).await?;
        parent.ruler.round(vec![Bytes(young.of_bare_processes().await?)]);
        let young = tree.start_child(worker::<Parent>("workers", ())).await?;
        parent.subject.round(vec![Bytes(young.of_workers().await?)]);
        tree.stop().await?;
    }
    print(&format!("memory of an idle worker among {KIN}"), effort, &[whole, private, parent]);
    Ok(())
}

/// Starts so many bare processes; each has answered once.
async fn bare(count: usize) -> std::io::Result<Vec<(Child, UnixStream)>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let (process, stream) = start(env!("CARGO_BIN_EXE_ruler-child"), Job::Idle)?;
        stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(stream)?;
        stream.write_u8(7).await?;
        assert_eq!(stream.read_u8().await?, 7);
        all.push((process, stream));
    }
    Ok(all)
}

/// Starts workers of these numbers; each has answered once.
async fn workers(tree: &Tree, numbers: Range<usize>) -> hatchery::Result<Vec<IdlerHandle>> {
    let mut all = Vec::with_capacity(numbers.len());
    for number in numbers {
        let idler = tree.start_child(worker::<Idler>(format!("idler-{number}"), ())).await?;
        assert_eq!(idler.answer(7).await?, 7);
        all.push(idler);
    }
    Ok(all)
}

/// What this process has to itself.
fn own() -> std::io::Result<u64> {
    Footprint::of(std::process::id()).map(|foot| foot.private.0)
}
