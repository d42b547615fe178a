//! One live process a seat: each incarnation looks at its door whether any before it is still there.

use std::fs::File;
use std::io::Write;

use hatchery::prelude::*;
use hatchery_tests::{Dice, becomes_true, ends, own_channel, send};
use rustix::process::Signal;

/// The variable of a worker that names the file in which the incarnations of its seat write down who they are.
const VISITORS: &str = "VISITORS";

/// Each worker writes a line when it has come through its door: its number and when it was started, so that nobody who
/// gets that number later is taken for it; then who of those before it still exists, be it as a zombie.
fn looks_around() -> hatchery::Door {
    hatchery::program().each_process(|| {
        let Some(file) = std::env::var_os(VISITORS).filter(|_| hatchery::current().is_worker()) else {
            return;
        };
        let own = std::process::id();
        let mut line = format!("{own} {}", started(own).expect("it exists"));
        for before in visitors(&file) {
            if started(before.pid) == Some(before.started) {
                line += &format!(" beside {} ({:?})", before.pid, hatchery_tests::state(before.pid));
            }
        }
        let mut file = File::options().append(true).create(true).open(file).expect("a file");
        file.write_all(format!("{line}\n").as_bytes()).expect("room for it");
    })
}

struct Visitor {
    pid: u32,
    started: u64,
    line: String,
}

fn visitors(file: impl AsRef<std::path::Path>) -> Vec<Visitor> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let visitor = |line: &str| {
        let mut words = line.split(' ');
        let pid = words.next()?.parse().ok()?;
        Some(Visitor { pid, started: words.next()?.parse().ok()?, line: line.to_owned() })
    };
    text.lines().map(|line| visitor(line).expect("two numbers")).collect()
}

/// When a process was started, in ticks since the machine was; `None` if there is no such process.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything; what follows it is the third of the fields, the time the 22nd.
    stat.rsplit_once(") ")?.1.split(' ').nth(22 - 3)?.parse().ok()
}

/// Leaves in all the ways there are.
struct Guest {
    memory: Vec<u8>,
}

#[hatchery::actor]
impl Guest {
    /// With so much memory that it takes the kernel some time to end it.
    async fn start() -> Self {
        let memory = vec![1; 20_000_000];
        tokio::task::yield_now().await;
        Guest { memory }
    }

    fn aborts(&self) {
        std::process::abort()
    }

    fn exits(&self) {
        std::process::exit(i32::from(self.memory[0] - 1))
    }

    /// What its parent sees first of most deaths, and of this one for a whole second.
    fn closes_its_channel(&self) {
        rustix::net::shutdown(own_channel(), rustix::net::Shutdown::Write).expect("it is open");
        loop {
            std::thread::park()
        }
    }
}

/// Promise "restart": at most one live process a seat; the old one is reaped before the new one starts.
#[hatchery::test(program = looks_around)]
async fn the_old_one_is_reaped_before_the_new_one_starts() {
    const ROUNDS: usize = 80;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("visitors");
    let tree =
        Supervisor::new(Strategy::OneForOne).intensity(1000, Duration::from_secs(600)).start().await.unwrap();
    let spec = worker::<Guest>("guest", ()).env(VISITORS, file.display().to_string());
    let guest = tree.start_child(spec).await.unwrap();
    let mut dice = Dice::new(17);
    for round in 0..ROUNDS {
        becomes_true("the next one is at the door", || visitors(&file).len() > round).await;
        let pid = visitors(&file)[round].pid;
        let way = dice.throw(6);
        if way <= 1 && round > 0 {
            // Before it is ready, and soon after.
            for _ in 0..dice.throw(200) {
                tokio::task::yield_now().await;
            }
            send(pid, Signal::KILL);
            continue;
        }
        becomes_true("it sits", || guest.pid() == Some(pid)).await;
        match way {
            2 => assert!(ends("ask", guest.aborts()).await.unwrap_err().is_crash()),
            3 => assert!(ends("ask", guest.exits()).await.unwrap_err().is_crash()),
            4 => guest.kill(),
            5 if round < 20 => assert!(ends("ask", guest.closes_its_channel()).await.unwrap_err().is_crash()),
            5 => ends("stop", guest.stop()).await.unwrap(),
            _ => send(pid, Signal::KILL),
        }
    }
    becomes_true("the last one is at the door", || visitors(&file).len() > ROUNDS).await;
    ends("stop", tree.stop()).await.unwrap();
    let all = visitors(&file);
    assert_eq!(all.len(), ROUNDS + 1);
    let beside: Vec<_> = all.iter().filter(|visitor| visitor.line.contains("beside")).collect();
    assert!(beside.is_empty(), "{:?}", beside.iter().map(|visitor| &visitor.line).collect::<Vec<_>>());
    assert!(all.iter().all(|visitor| started(visitor.pid) != Some(visitor.started)), "one is left");
}
