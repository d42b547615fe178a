//! The state of workers: built, borrowed, dropped, and built anew.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::ThreadId;

use hatchery::prelude::*;
use hatchery::{Events, Exit, Job, PoolBuilder, Runs, RunsInPool, TreeEvent};
use hatchery_tests::{becomes_true, ends, runs, send};
use rustix::process::Signal;

use crate::pool_results::{over, own_pid, square};

/// Neither `Send` nor encodable; what becomes of it is in a file.
struct Book {
    dir: PathBuf,
    /// How often it was written in.
    entries: Rc<Cell<u64>>,
    thread: ThreadId,
}

impl Drop for Book {
    fn drop(&mut self) {
        let same = self.thread == std::thread::current().id();
        note(&self.dir, if same { "dropped" } else { "dropped elsewhere" });
        assert!(!self.dir.join("heavy").exists(), "too heavy to be put down");
    }
}

/// One line more.
fn note(dir: &Path, what: &str) {
    let file = fs::File::options().append(true).create(true).open(dir.join("notes"));
    file.unwrap().write_all(format!("{what}\n").as_bytes()).unwrap();
}

fn notes(dir: &tempfile::TempDir) -> Vec<String> {
    let notes = fs::read_to_string(dir.path().join("notes")).unwrap_or_default();
    notes.lines().map(str::to_owned).collect()
}

fn count(dir: &tempfile::TempDir, what: &str) -> usize {
    notes(dir).iter().filter(|note| *note == what).count()
}

/// As the file `how` says: a word for each time, the last one for all further times.
#[hatchery::state]
fn opens(dir: PathBuf) -> hatchery::Result<Book> {
    note(&dir, "built");
    let times = fs::read_to_string(dir.join("notes"))?.lines().filter(|note| *note == "built").count();
    let how = fs::read_to_string(dir.join("how")).unwrap_or_default();
    let how: Vec<&str> = how.split_whitespace().collect();
    match how.get(times - 1).or(how.last()).copied() {
        None | Some("ok") => {}
        Some("panic") => panic!("torn"),
        Some("exit") => std::process::exit(3),
        Some("hang") => loop {
            std::thread::park();
        },
        Some(other) => return Err(hatchery::Error::msg(other).context("the shelf")),
    }
    Ok(Book { dir, entries: Rc::default(), thread: std::thread::current().id() })
}

/// How the state is to be built, each time.
fn how(words: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("how"), words).unwrap();
    dir
}

/// One more entry; which one it is.
#[hatchery::task]
fn writes(book: &mut Book) -> (u32, u64) {
    book.entries.set(book.entries.get() + 1);
    (std::process::id(), book.entries.get())
}

#[hatchery::task]
fn reads(book: &Book) -> u64 {
    book.entries.get()
}

/// The same as `writes`, unless it panics half-way.
#[hatchery::task]
fn may_spill(book: &mut Book, spills: bool) -> (u32, u64) {
    book.entries.set(book.entries.get() + 1);
    assert!(!spills, "spilt");
    (std::process::id(), book.entries.get())
}

/// The same once more, with awaits and something that is not `Send` across them.
#[hatchery::task]
async fn later(book: &mut Book, spills: bool) -> (u32, u64) {
    let entries = book.entries.clone();
    tokio::time::sleep(Duration::from_millis(1)).await;
    book.entries.set(entries.get() + 1);
    tokio::task::yield_now().await;
    assert!(!spills, "spilt");
    (std::process::id(), book.entries.get())
}

#[hatchery::task]
fn bound(book: &mut Book, pages: Vec<u8>, cover: String) -> Vec<u8> {
    book.entries.set(book.entries.get() + pages.len() as u64);
    [cover.into_bytes(), pages].concat()
}

#[hatchery::task]
fn hangs(book: &mut Book) {
    note(&book.dir, "hangs");
    loop {
        std::thread::park();
    }
}

#[hatchery::task]
fn closes(book: &mut Book) {
    note(&book.dir, &format!("closed at {}", book.entries.get()));
}

fn with_book(workers: usize, dir: &tempfile::TempDir) -> PoolBuilder {
    Pool::builder().workers(workers).state(opens, dir.path().to_owned())
}

async fn started(builder: PoolBuilder) -> Pool {
    ends("start", builder.start()).await.unwrap()
}

fn workers() -> Vec<u32> {
    hatchery::active_children().iter().map(|child| child.pid()).collect()
}

#[hatchery::test]
async fn state_is_built_once_in_each_worker_and_kept_from_task_to_task() {
    let dir = how("");
    let pool = started(with_book(2, &dir)).await;
    assert_eq!(notes(&dir), ["built", "built"], "before it is ready");
    let inputs = || std::iter::repeat_n((), 100);
    let written = ends("map", pool.map(writes, inputs()).chunk_size(7).into_future()).await.unwrap();
    let mut of_each = std::collections::BTreeMap::<u32, Vec<u64>>::new();
    written.into_iter().for_each(|(worker, entry)| of_each.entry(worker).or_default().push(entry));
    for entries in of_each.values_mut() {
        entries.sort_unstable();
        assert_eq!(*entries, (1..=entries.len() as u64).collect::<Vec<_>>());
    }
    assert_eq!(of_each.values().map(Vec::len).sum::<usize>(), 100);
    // Those that borrow nothing run as ever.
    assert_eq!(ends("plain", pool.map(square, 0..3).into_future()).await.unwrap(), [0, 1, 4]);
    over(pool).await;
    assert_eq!(notes(&dir), ["built", "built", "dropped", "dropped"]);
}

#[hatchery::test]
async fn one_borrows_exclusively_or_only_to_look_and_several_parameters_travel() {
    let dir = how("");
    let pool = started(with_book(1, &dir)).await;
    for entry in 1..=3 {
        assert_eq!(ends("writes", pool.submit(writes, ())).await.unwrap().1, entry);
        assert_eq!(ends("reads", pool.submit(reads, ())).await.unwrap(), entry);
    }
    // In the ledger, over the socket, and alone in both directions.
    for size in [10, 30_000, 300_000] {
        let result = ends("bound", pool.submit(bound, (vec![7; size], "ab".to_owned()))).await.unwrap();
        assert!(result.len() == size + 2 && result.starts_with(b"ab") && result.ends_with(&[7]), "{size}");
    }
    assert_eq!(ends("reads", pool.submit(reads, ())).await.unwrap(), 3 + 10 + 30_000 + 300_000);
    // Functions over any task may say which ones they mean.
    fn of_any<T: RunsInPool>(pool: &Pool, task: T, args: T::Args) -> Job<T::Output> {
        pool.submit(task, args)
    }
    fn of_one_that_may_be_alone<T: Runs>(pool: &Pool, task: T, args: T::Args) -> Job<T::Output> {
        of_any(pool, task, args)
    }
    assert_eq!(ends("any", of_any(&pool, reads, ())).await.unwrap(), 3 + 10 + 30_000 + 300_000);
    assert_eq!(ends("alone", of_one_that_may_be_alone(&pool, square, 3)).await.unwrap(), 9);
    // It still is a plain function.
    let mut book = opens(dir.path().to_owned()).unwrap();
    assert_eq!(writes(&mut book).1, 1);
    assert_eq!(ends("later", later(&mut book, false)).await.1, 2);
    assert_eq!(reads(&book), 2);
    drop(book);
    over(pool).await;
}

#[hatchery::test]
async fn after_a_panic_state_is_dropped_and_built_anew_in_the_same_worker() {
    let dir = how("");
    let pool = started(with_book(1, &dir)).await;
    let (worker, _) = ends("first", pool.submit(writes, ())).await.unwrap();
    for chunk in [1, 10] {
        let inputs = (0..10).map(|x| x == 4);
        let all = ends("each", pool.map(may_spill, inputs).chunk_size(chunk).each()).await;
        assert!(all[4].as_ref().unwrap_err().is_panic());
        let entries: Vec<_> = all.into_iter().flatten().collect();
        assert!(entries.iter().all(|(pid, _)| *pid == worker));
        let entries: Vec<_> = entries.into_iter().map(|(_, entry)| entry).collect();
        assert_eq!(entries[..4], [0, 1, 2, 3].map(|more| entries[0] + more));
        assert_eq!(entries[4..], [1, 2, 3, 4, 5]);
    }
    assert_eq!((count(&dir, "built"), count(&dir, "dropped")), (3, 2));
    // As its last word; nobody borrows it any more, and nobody builds it for that.
    assert!(ends("last", pool.submit(may_spill, true)).await.unwrap_err().is_panic());
    assert_eq!(ends("pid", pool.submit(own_pid, ())).await.unwrap(), worker);
    over(pool).await;
    assert_eq!((count(&dir, "built"), count(&dir, "dropped")), (3, 3));
}

#[hatchery::test]
async fn async_tasks_borrow_state_across_their_awaits() {
    let dir = how("");
    let pool = started(with_book(1, &dir)).await;
    let inputs = (0..10).map(|x| x == 4);
    let all = ends("each", pool.map(later, inputs).chunk_size(10).each()).await;
    assert!(all[4].as_ref().unwrap_err().is_panic());
    let entries: Vec<_> = all.into_iter().flatten().map(|(_, entry)| entry).collect();
    assert_eq!(entries, [1, 2, 3, 4, 1, 2, 3, 4, 5]);
    assert_eq!(count(&dir, "built"), 2);
    over(pool).await;
}

#[hatchery::test]
async fn a_retry_of_a_task_that_panicked_finds_new_state() {
    let dir = how("");
    let pool = started(with_book(1, &dir)).await;
    let error = ends("it", pool.submit(may_spill, true).retries(2)).await.unwrap_err();
    assert!(error.is_panic(), "{error}");
    assert_eq!(ends("next", pool.submit(writes, ())).await.unwrap().1, 1);
    assert_eq!((count(&dir, "built"), count(&dir, "dropped")), (4, 3));
    over(pool).await;
}

/// How the next worker ends.
async fn exit(events: &mut Events) -> Exit {
    loop {
        if let TreeEvent::Exited { exit, .. } = ends("event", events.next()).await.unwrap() {
            return exit;
        }
    }
}

/// Of the inputs one panics, and then the state is not to be had. Its worker ends, says why, and nothing but that task fails.
async fn rebuilt_elsewhere(words: &str, why: &str) {
    let dir = how(words);
    let pool = started(with_book(1, &dir).start_timeout(Duration::from_secs(2))).await;
    let mut events = pool.tree().events();
    let (before, _) = ends("first", pool.submit(writes, ())).await.unwrap();
    let inputs = (0..10).map(|x| x == 4);
    let all = ends("each", pool.map(may_spill, inputs).chunk_size(10).each()).await;
    for (x, result) in all.iter().enumerate() {
        match (x, result) {
            (4, Err(error)) => assert!(error.is_panic(), "{words}: {error}"),
            (_, result) => assert_eq!(result.as_ref().unwrap().0 == before, x < 4, "{words}"),
        }
    }
    let exit = exit(&mut events).await;
    assert!(exit.to_string().contains(why), "{words}: {exit}");
    let stats = pool.stats();
    assert_eq!((stats.failed, stats.workers[0].restarts), (1, 1), "{words}");
    over(pool).await;
}

#[hatchery::test]
async fn where_state_cannot_be_built_anew_its_worker_ends_and_no_task_is_charged_with_that() {
    rebuilt_elsewhere("ok mouldy ok", "could not be built anew after a panic: the shelf: mouldy").await;
    rebuilt_elsewhere("ok panic ok", "could not be built anew after a panic: panicked at ").await;
    rebuilt_elsewhere("ok hang ok", "was not built anew within 2s").await;
    assert!(workers().is_empty());
}

#[hatchery::test]
async fn state_that_cannot_be_built_fails_the_start_and_says_so() {
    for (words, said) in [
        ("mouldy", "its state could not be built: the shelf: mouldy"),
        ("panic", "its state could not be built: panicked at "),
        ("exit", "code 3"),
        ("hang", "not ready"),
    ] {
        let dir = how(words);
        let builder = with_book(2, &dir).start_timeout(Duration::from_secs(2));
        let error = ends("start", builder.start()).await.unwrap_err();
        assert!(error.to_string().contains(said), "{words}: {error}");
        assert!(count(&dir, "built") <= 2, "nothing is tried again");
        assert_eq!(count(&dir, "dropped"), 0);
    }
    becomes_true("no worker is left", || workers().is_empty()).await;
}

#[hatchery::test]
async fn where_later_workers_cannot_build_their_state_the_jobs_that_wait_learn_why() {
    let dir = how("ok mouldy");
    let pool = started(with_book(1, &dir).intensity(2, Duration::from_secs(60))).await;
    let killed = pool.submit(hangs, ());
    becomes_true("it runs", || count(&dir, "hangs") == 1).await;
    let waits = pool.submit(square, 3);
    send(workers()[0], Signal::KILL);
    assert!(ends("killed", killed).await.unwrap_err().is_worker_died());
    let error = ends("waits", waits).await.unwrap_err();
    assert!(error.is_init_failed(), "{error}");
    assert!(error.to_string().contains("its state could not be built: the shelf: mouldy"), "{error}");
    assert!(count(&dir, "built") <= 4, "{} starts", count(&dir, "built"));
    assert!(ends("join", pool.join()).await.is_err());
}

#[hatchery::test]
async fn a_worker_that_takes_the_place_of_another_builds_its_own_state() {
    let dir = how("");
    let pool = started(with_book(1, &dir)).await;
    let (before, _) = ends("first", pool.submit(writes, ())).await.unwrap();
    send(before, Signal::KILL);
    let (after, entry) = ends("next", pool.submit(writes, ()).retries(1)).await.unwrap();
    assert_eq!((entry, count(&dir, "built"), count(&dir, "dropped")), (1, 2, 0));
    assert_ne!(before, after);
    // One whose time is over takes it along, too.
    let late = pool.submit(hangs, ()).timeout(Duration::from_millis(50));
    assert!(ends("late", late).await.unwrap_err().is_timeout());
    assert_eq!(ends("next", pool.submit(writes, ())).await.unwrap().1, 1);
    assert_eq!((count(&dir, "built"), count(&dir, "dropped")), (3, 0));
    assert!(!runs(before) && !runs(after));
    over(pool).await;

    let dir = how("");
    let pool = started(with_book(1, &dir).max_tasks_per_worker(2)).await;
    let inputs = std::iter::repeat_n((), 5);
    let written = ends("map", pool.map(writes, inputs).chunk_size(5).into_future()).await.unwrap();
    assert_eq!(written.iter().map(|(_, entry)| *entry).collect::<Vec<_>>(), [1, 2, 1, 2, 1]);
    over(pool).await;
    assert_eq!(count(&dir, "built"), count(&dir, "dropped"));
    assert!(count(&dir, "built") >= 3);
}

#[hatchery::test]
async fn the_finaliser_may_borrow_the_state_which_is_dropped_after_it_where_it_was_built() {
    let dir = how("");
    let pool = started(with_book(1, &dir).finaliser(closes, ())).await;
    for _ in 0..3 {
        ends("writes", pool.submit(writes, ())).await.unwrap();
    }
    over(pool).await;
    assert_eq!(notes(&dir), ["built", "closed at 3", "dropped"]);

    // After a panic it gets one that is whole, as everybody does.
    let dir = how("");
    let pool = started(with_book(1, &dir).finaliser(closes, ())).await;
    assert!(ends("spills", pool.submit(may_spill, true)).await.unwrap_err().is_panic());
    over(pool).await;
    assert_eq!(notes(&dir), ["built", "dropped", "built", "closed at 0", "dropped"]);

    // If it cannot be had, the worker leaves without.
    let dir = how("ok mouldy");
    let pool = started(with_book(1, &dir).finaliser(closes, ())).await;
    let mut events = pool.tree().events();
    assert!(ends("spills", pool.submit(may_spill, true)).await.unwrap_err().is_panic());
    over(pool).await;
    assert_eq!(notes(&dir), ["built", "dropped", "built"]);
    let exit = exit(&mut events).await;
    assert!(exit.to_string().contains("could not be built anew after a panic: the shelf: mouldy"), "{exit}");
}

#[hatchery::test]
async fn state_whose_drop_panics_costs_nothing_but_itself() {
    let dir = how("");
    let pool = started(with_book(1, &dir)).await;
    let (worker, _) = ends("first", pool.submit(writes, ())).await.unwrap();
    fs::write(dir.path().join("heavy"), "").unwrap();
    assert!(ends("spills", pool.submit(may_spill, true)).await.unwrap_err().is_panic());
    assert_eq!(ends("next", pool.submit(writes, ())).await.unwrap(), (worker, 1));
    let mut events = pool.tree().events();
    over(pool).await;
    let exit = exit(&mut events).await;
    assert_eq!(exit.exitcode(), Some(0), "{exit}");
    assert_eq!(count(&dir, "dropped"), 2);
}

/// Another type.
struct Shelf;

#[hatchery::state]
fn shelf() -> Shelf {
    Shelf
}

#[hatchery::state]
async fn shelf_later(millis: u64) -> Result<Shelf, String> {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    let made = Rc::new(Shelf);
    tokio::task::yield_now().await;
    if millis == 0 { Err("no wood".to_owned()) } else { Rc::try_unwrap(made).map_err(|_| "taken".to_owned()) }
}

#[hatchery::task]
fn dusts(_: &mut Shelf, times: u64) -> u64 {
    times
}

#[hatchery::test]
async fn state_may_be_built_by_an_async_function_and_the_last_one_that_is_named_counts() {
    let builder = Pool::builder().workers(1).state(shelf_later, 1);
    let pool = started(builder).await;
    assert_eq!(ends("dusts", pool.map(dusts, 0..3).into_future()).await.unwrap(), [0, 1, 2]);
    over(pool).await;
    let error = ends("start", Pool::builder().workers(1).state(shelf_later, 0).start()).await.unwrap_err();
    assert!(error.to_string().contains("its state could not be built: no wood"), "{error}");

    let dir = how("");
    let pool = started(with_book(1, &dir).state(shelf, ())).await;
    assert_eq!(ends("dusts", pool.submit(dusts, 2)).await.unwrap(), 2);
    assert!(notes(&dir).is_empty());
    over(pool).await;
}

#[hatchery::test]
async fn a_task_that_borrows_what_its_pool_has_not_fails_at_once_and_is_not_sent() {
    let dir = how("");
    let without = started(Pool::builder().workers(1)).await;
    let with_another = started(with_book(1, &dir)).await;
    for (pool, has) in [(&without, "have no state"), (&with_another, "pool_state::Book`")] {
        let job = pool.submit(dusts, 1);
        assert!(job.is_finished());
        let error = ends("job", job).await.unwrap_err();
        assert!(!error.maybe_executed(), "{error}");
        for part in [has, "borrows a `", "pool_state::Shelf`", "dusts in /", ".state(..)"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let error = ends("map", pool.map(dusts, 0..).into_future()).await.unwrap_err();
        assert!(error.to_string().contains(has), "{error}");
        assert_eq!(ends("each", pool.map(dusts, 0..).each()).await.len(), 1);
        let stats = pool.stats();
        assert_eq!((stats.done, stats.failed, stats.given, stats.waiting), (0, 0, 0, 0));
        assert_eq!(ends("plain", pool.submit(square, 3)).await.unwrap(), 9);
    }
    over(without).await;
    over(with_another).await;

    let builder = || Pool::builder().workers(1).state(shelf, ()).finaliser(closes, ());
    let error = ends("start", builder().start()).await.unwrap_err();
    assert!(error.to_string().contains("borrows a `"), "{error}");
    let tree = Supervisor::new(Strategy::OneForOne).child(builder().spec("pool"));
    let error = ends("start", tree.start()).await.unwrap_err();
    assert!(error.to_string().contains("borrows a `"), "{error}");
}

#[hatchery::test]
async fn a_pool_in_a_tree_builds_its_state_again_when_it_is_started_again() {
    let dir = how("");
    let tree = Supervisor::new(Strategy::OneForOne).child(with_book(1, &dir).spec("pool")).start();
    let tree = ends("start", tree).await.unwrap();
    let pool = tree.get::<Pool>("pool").unwrap();
    assert_eq!(ends("writes", pool.submit(writes, ())).await.unwrap().1, 1);
    let mut events = tree.events();
    ends("terminate", pool.terminate()).await.unwrap();
    let again = |event: &TreeEvent| matches!(event, TreeEvent::Started { path, incarnation: 2, .. } if path.ends_with("/pool"));
    while !again(&ends("event", events.next()).await.unwrap()) {}
    assert_eq!(ends("writes", pool.submit(writes, ())).await.unwrap().1, 1);
    assert!(ends("refused", pool.submit(dusts, 1)).await.unwrap_err().to_string().contains("Book"));
    ends("stop", tree.stop()).await.unwrap();
    assert_eq!(count(&dir, "built"), 2);
}
