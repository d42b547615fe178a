//! What a process can rely on that asks an actor of another: each test is about one way to get it wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use hatchery::prelude::*;
use hatchery_tests::{becomes_true, ends, eventually, runs};

use super::{says, tree};

/// Who is asked.
struct Asked {
    notes: u64,
    held: Vec<std::fs::File>,
}

#[hatchery::actor]
impl Asked {
    fn start() -> Self {
        Asked { notes: 0, held: Vec::new() }
    }

    fn notes(&self) -> u64 {
        self.notes
    }

    fn note(&mut self) {
        self.notes += 1;
    }

    /// Is at it until the file is there.
    async fn wait_for(&self, file: String) {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        while !Path::new(&file).exists() {
            ticks.tick().await;
        }
    }

    fn fill(&mut self) {
        self.held.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()));
    }

    fn free(&mut self) {
        self.held.clear();
    }

    fn pinned_self(&self, cx: &Context) -> Option<AskedHandle> {
        cx.me::<AskedHandle>().pinned()
    }

    /// More than any socket takes at once.
    fn much(&self, file: String) -> Vec<u8> {
        std::fs::write(file, "it ran").expect("a file");
        vec![7; 32 << 20]
    }
}

/// Who asks.
struct Asking {
    downs: Arc<Mutex<Vec<String>>>,
    kept: Option<AskedHandle>,
}

#[hatchery::actor]
impl Asking {
    fn start() -> Self {
        Asking { downs: Arc::default(), kept: None }
    }

    fn watch(&self, asked: AskedHandle, cx: &Context) {
        let (monitor, downs) = (asked.monitor(), self.downs.clone());
        drop(asked);
        cx.spawn(async move {
            let down = monitor.await;
            downs.lock().unwrap().push(down.to_string());
        });
    }

    fn downs(&self) -> Vec<String> {
        self.downs.lock().unwrap().clone()
    }

    async fn stop_by_path(&self, path: String) -> Result<(), String> {
        let asked = hatchery::lookup::<Asked>(&path).map_err(|error| error.to_string())?;
        asked.stop().await.map_err(|error| error.to_string())
    }

    fn kill_by_path(&self, path: String) -> Result<(), String> {
        hatchery::lookup::<Asked>(&path).map_err(|error| error.to_string())?.kill();
        Ok(())
    }

    async fn stop_once_it_is_known(&self, asked: AskedHandle) -> Result<(), String> {
        asked.notes().await.map_err(|error| error.to_string())?;
        asked.stop().await.map_err(|error| error.to_string())
    }

    /// Whether it timed out, and what it said otherwise.
    async fn notes_of(&self, asked: AskedHandle, millis: u64) -> Result<u64, (bool, String)> {
        let notes = asked.notes().timeout(Duration::from_millis(millis)).await;
        notes.map_err(|error| (error.is_timeout(), error.to_string()))
    }

    /// Its answer does not arrive before that one has ended: this runtime, of one thread, does nothing meanwhile.
    async fn much_of_one_that_ends(&self, asked: AskedHandle, pid: u32, file: String) -> (bool, bool) {
        let begun = file.clone();
        let asks = tokio::spawn(async move { asked.much(file).await.map(drop) });
        while !Path::new(&begun).exists() {
            tokio::task::yield_now().await;
        }
        eventually("the one who was asked has ended", || !runs(pid));
        match asks.await {
            Ok(Err(error)) => (error.is_stopping(), error.maybe_executed()),
            _ => (false, true),
        }
    }

    /// By another handle each time, for as long as they are taken.
    async fn tell_by_many_handles(&self, path: String, times: u64) -> Result<u64, String> {
        for n in 0..times {
            let asked = hatchery::lookup::<Asked>(&path).map_err(|error| error.to_string())?;
            if asked.note().timeout(Duration::from_millis(500)).tell().await.is_err() {
                return Ok(n);
            }
        }
        Ok(times)
    }

    /// First from a runtime that nobody drives afterwards, then from this one, then from this one without the other.
    async fn on_two_runtimes(&self, asked: AskedHandle) -> Result<(), String> {
        let first = asked.clone();
        let other = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { first.notes().await.expect("an answer") });
            runtime
        });
        while !other.is_finished() {
            tokio::task::yield_now().await;
        }
        let other = other.join().map_err(|_| "it panicked".to_owned())?;
        asked.notes().await.map_err(|error| error.to_string())?;
        other.shutdown_background();
        asked.notes().await.map_err(|error| error.to_string())?;
        match asked.incarnation() {
            Some(1) => Ok(()),
            other => Err(format!("it has become {other:?}")),
        }
    }

    /// By one handle, kept from its first use on.
    async fn ask_kept(&mut self, path: String) -> Result<u64, String> {
        if self.kept.is_none() {
            self.kept = hatchery::lookup::<Asked>(&path).ok();
        }
        let kept = self.kept.as_ref().ok_or("no handle")?;
        kept.notes().await.map_err(|error| error.to_string())
    }
}

async fn two(name: &str) -> (Tree, AskedHandle, AskingHandle) {
    let tree = tree(name).await;
    let asked = tree.start_child(worker::<Asked>("asked", ())).await.unwrap();
    let asking = tree.start_child(worker::<Asking>("asking", ())).await.unwrap();
    (tree, asked, asking)
}

fn scratch(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

#[hatchery::test]
async fn a_request_that_ran_and_whose_answer_was_lost_may_have_run() {
    let (tree, asked, asking) = two("lost").await;
    let dir = tempfile::tempdir().unwrap();
    let (file, pid) = (scratch(&dir, "ran"), asked.pid().unwrap());
    asking.notes_of(asked.clone(), 10_000).await.unwrap();
    let asks = asking.much_of_one_that_ends(asked.clone(), pid, file.clone());
    let asks = tokio::spawn(async move { asks.await.unwrap() });
    becomes_true("it runs", || Path::new(&file).exists()).await;
    asked.stop().await.unwrap();
    assert_eq!(asks.await.unwrap(), (false, true), "not stopping, and it may have run");
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn nothing_is_sent_where_nobody_is_known_to_be() {
    let tree = tree("unsent").await;
    let asked = tree.start_child(worker::<Asked>("asked", ()).open_files_limit(60)).await.unwrap();
    let asking = tree.start_child(worker::<Asking>("asking", ())).await.unwrap();
    asked.fill().await.unwrap();
    let (is_timeout, words) =
        asking.notes_of(asked.clone(), 4_000).await.unwrap_err().handler_error().unwrap().clone();
    assert!(is_timeout && words.contains("did not run"), "{words}");
    asked.free().await.unwrap();
    assert_eq!(asking.notes_of(asked.clone(), 10_000).await.unwrap(), 0);
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_runtime_that_nobody_drives_or_that_ends_is_in_nobodys_way() {
    let (tree, asked, asking) = two("runtimes").await;
    ends("asking from two runtimes", asking.on_two_runtimes(asked.clone())).await.unwrap();
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_monitor_is_told_also_when_its_handle_is_gone() {
    let (tree, asked, asking) = two("monitor").await;
    asking.watch(asked.clone()).await.unwrap();
    // It is found by now: questions of one process are answered in their order.
    asking.notes_of(asked.clone(), 10_000).await.unwrap();
    asked.kill();
    says("it is told", 1, async || asking.downs().await.unwrap().len()).await;
    assert!(asking.downs().await.unwrap()[0].contains("SIGKILL"));
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_stop_from_elsewhere_is_as_patient_as_the_spec_says() {
    let tree = tree("patient").await;
    let spec = worker::<Asked>("asked", ()).shutdown(Shutdown::infinity());
    let asked = tree.start_child(spec).await.unwrap();
    let asking = tree.start_child(worker::<Asking>("asking", ())).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = scratch(&dir, "go on");
    let waits = asked.wait_for(file.clone());
    let waits = tokio::spawn(async move { waits.await.map_err(|error| error.to_string()) });
    let stops = asking.stop_once_it_is_known(asked.clone());
    let stops = tokio::spawn(async move { stops.await.map_err(|error| error.to_string()) });
    // Longer than anybody waits who was not told otherwise.
    assert!(tokio::time::timeout(Duration::from_secs(7), waits).await.is_err(), "it was cut off");
    std::fs::write(&file, "now").unwrap();
    stops.await.unwrap().unwrap();
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn who_was_never_heard_of_is_stopped_and_killed_all_the_same() {
    let (tree, asked, asking) = two("unheard").await;
    asking.stop_by_path("/unheard/asked".to_owned()).await.unwrap();
    becomes_true("the second one", || asked.incarnation() == Some(2)).await;
    asking.kill_by_path("/unheard/asked".to_owned()).await.unwrap();
    becomes_true("the third one", || asked.incarnation() == Some(3)).await;
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_pinned_reference_to_oneself_is_good_elsewhere() {
    let (tree, asked, asking) = two("oneself").await;
    let pinned = asked.pinned_self().await.unwrap().unwrap();
    assert_eq!(pinned.notes().await.unwrap(), 0);
    assert_eq!(asking.notes_of(pinned.clone(), 10_000).await.unwrap(), 0);
    asked.kill();
    becomes_true("the second one", || asked.incarnation() == Some(2)).await;
    assert!(pinned.notes().await.unwrap_err().is_crash());
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn tells_by_many_handles_have_one_window() {
    let (tree, asked, asking) = two("window").await;
    let dir = tempfile::tempdir().unwrap();
    let file = scratch(&dir, "go on");
    let busy = asked.wait_for(file.clone());
    let busy = tokio::spawn(async move { busy.await.map_err(|error| error.to_string()) });
    let told = asking.tell_by_many_handles("/window/asked".to_owned(), 2_000).await.unwrap();
    assert!((1..=256).contains(&told), "{told} were taken by one who is busy");
    std::fs::write(&file, "now").unwrap();
    busy.await.unwrap().unwrap();
    says("all that were taken arrive", told, async || asked.notes().await.unwrap()).await;
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_handle_that_was_asked_too_early_is_not_lost() {
    let tree = tree("early").await;
    let asking = tree.start_child(worker::<Asking>("asking", ())).await.unwrap();
    let early = asking.ask_kept("/early/asked".to_owned()).await.unwrap_err();
    assert!(early.to_string().contains("nobody is called"), "{early}");
    tree.start_child(worker::<Asked>("asked", ())).await.unwrap();
    assert_eq!(asking.ask_kept("/early/asked".to_owned()).await.unwrap(), 0);
    tree.stop().await.unwrap();
}

/// Has a worker of its own, and stops it with itself.
struct Upper {
    below: AskedHandle,
    _tree: Tree,
}

#[hatchery::actor]
impl Upper {
    async fn start() -> hatchery::Result<Self> {
        let tree = Supervisor::new(Strategy::OneForOne).name("inner").start().await?;
        let below = tree.start_child(worker::<Asked>("below", ())).await?;
        Ok(Upper { below, _tree: tree })
    }

    fn below(&self) -> AskedHandle {
        self.below.clone()
    }
}

#[hatchery::test]
async fn an_end_in_order_below_one_that_ends_in_order_is_told_as_such() {
    let tree = Supervisor::new(Strategy::OneForOne).name("orders").intensity(100, Duration::from_secs(1));
    let tree = tree.start().await.unwrap();
    let upper = tree.start_child(worker::<Upper>("upper", ())).await.unwrap();
    let mut told = BTreeSet::new();
    for _ in 0..10 {
        let below = upper.below().await.unwrap();
        below.notes().await.unwrap();
        let monitor = below.monitor();
        upper.stop().await.unwrap();
        let down = ends("the end below", monitor).await;
        told.insert(down.exit().unwrap().to_string());
    }
    assert_eq!(told.into_iter().collect::<Vec<_>>(), ["exited with code 0"]);
    tree.stop().await.unwrap();
}
