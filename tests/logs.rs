//! What workers log, and the traces it belongs to: it reaches the subscriber of the root, whatever happens to either.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context as Task, Poll};

use hatchery::prelude::*;
use hatchery::{Output, Reply, Stream, TraceContext, logs};
use hatchery_tests::{BOUND, becomes_true, ends};
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

/// An event as a subscriber sees it.
#[derive(Clone, Debug)]
struct Seen {
    level: Level,
    target: String,
    name: String,
    place: (Option<String>, Option<u32>),
    fields: BTreeMap<String, String>,
}

impl Seen {
    fn says(&self, message: &str) -> bool {
        self.get("message") == message
    }

    fn get(&self, field: &str) -> &str {
        self.fields.get(field).map_or("", String::as_str)
    }
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

/// Writes down the events of workers, after doing something with each.
#[derive(Clone)]
struct Notes {
    seen: Arc<Mutex<Vec<Seen>>>,
    first: Arc<dyn Fn(&Seen) + Send + Sync>,
}

impl<S: Subscriber> Layer<S> for Notes {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let metadata = event.metadata();
        let mut seen = Seen {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            name: metadata.name().to_owned(),
            place: (metadata.file().map(str::to_owned), metadata.line()),
            fields: BTreeMap::new(),
        };
        event.record(&mut seen);
        if seen.fields.contains_key("worker.path") {
            (self.first)(&seen);
            self.seen.lock().unwrap().push(seen);
        }
    }
}

impl Notes {
    /// The subscriber of this test.
    fn take() -> (Notes, DefaultGuard) {
        Notes::take_after(|_| ())
    }

    fn take_after(first: impl Fn(&Seen) + Send + Sync + 'static) -> (Notes, DefaultGuard) {
        let notes = Notes { seen: Arc::default(), first: Arc::new(first) };
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(notes.clone()));
        (notes, guard)
    }

    fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn find(&self, message: &str) -> Option<Seen> {
        self.seen.lock().unwrap().iter().find(|seen| seen.says(message)).cloned()
    }

    async fn waits_for(&self, message: &str) -> Seen {
        becomes_true(message, || self.find(message).is_some()).await;
        self.find(message).unwrap()
    }
}

/// The header of a trace, and the span above.
type Trace = Option<(String, Option<u64>)>;

type Later = (Reply<Vec<Trace>>, BTreeMap<String, Trace>);

/// Logs what it is told.
#[derive(Default)]
struct Chatty {
    /// Whom to tell of the traces of messages that it sends itself, and what they were.
    later: Option<Later>,
    ticks: Option<hatchery::Timer>,
}

/// The trace at two steps of a stream, and then the trace of a handler that the stream asks.
struct Traces {
    steps: u32,
    ask: Option<Pin<Box<hatchery::Ask<Trace>>>>,
}

impl Stream for Traces {
    type Item = Trace;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Trace>> {
        self.steps += 1;
        if self.steps <= 2 {
            let current = TraceContext::current();
            return Poll::Ready(Some(current.map(|trace| (trace.to_string(), trace.parent_id()))));
        }
        let Some(ask) = &mut self.ask else { return Poll::Ready(None) };
        let asked = std::task::ready!(ask.as_mut().poll(cx));
        self.ask = None;
        Poll::Ready(Some(asked.unwrap()))
    }
}

#[derive(Debug)]
struct Shown {
    #[expect(dead_code, reason = "only its Debug is looked at")]
    inside: u8,
}

/// Cannot be shown.
struct Bad;

impl Debug for Bad {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("not to be shown")
    }
}

#[hatchery::actor]
impl Chatty {
    fn start() -> Self {
        Chatty::default()
    }

    fn says(&self, what: String) {
        tracing::info!("{what}");
    }

    fn says_at_all_levels(&self, what: String) {
        tracing::error!("{what} error");
        tracing::warn!("{what} warn");
        tracing::info!("{what} info");
        tracing::debug!("{what} debug");
        tracing::trace!(target: "other", "{what} other trace");
    }

    fn says_much(&self) -> u32 {
        let outer = tracing::info_span!("request", id = 7, who = tracing::field::Empty);
        let _outer = outer.enter();
        outer.record("who", "me");
        let inner = tracing::debug_span!("decode", frame = 3_u8);
        let _inner = inner.enter();
        tracing::warn!(
            target: "stock",
            left = -2_i64,
            of = 10_u64,
            part = 0.5,
            sold = true,
            name = "pears",
            shown = ?Shown { inside: 1 },
            "running low"
        );
        line!() - 1
    }

    fn logs_and_aborts(&self, times: u64) {
        for number in 0..times {
            tracing::info!(number, "before the end");
        }
        std::process::abort()
    }

    fn prints_and_aborts(&self, what: String) {
        println!("{what}");
        std::process::abort()
    }

    /// In a thread of its own, so that this actor goes on answering.
    fn floods(&self, times: u64) {
        std::thread::spawn(move || {
            for number in 0..times {
                tracing::info!(number, "flood");
            }
        });
    }

    fn logs_for_ever(&self) {
        std::thread::spawn(|| {
            for number in 0_u64.. {
                tracing::info!(number, "for ever");
            }
        });
    }

    fn shows_what_can_not_be_shown(&self) {
        tracing::info!(bad = ?Bad, "this does not arrive");
    }

    fn survives_what_can_not_be_shown(&self) -> bool {
        let caught = std::panic::catch_unwind(|| tracing::info!(bad = ?Bad, "this does not arrive"));
        let span = std::panic::catch_unwind(|| tracing::info_span!("bad", bad = ?Bad));
        caught.is_err() && span.is_err()
    }

    /// Writes into its own log whatever it is given.
    fn misuses_its_log(&self, bytes: Vec<u8>) -> usize {
        let pipes = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
            let path = entry.ok()?.path();
            let number: i32 = path.file_name()?.to_str()?.parse().ok()?;
            let is_pipe = std::fs::read_link(&path).ok()?.to_str()?.starts_with("pipe:");
            // What the launcher of the tests left open is inherited, so it is not close-on-exec.
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
            let is_own = u32::from_str_radix(flags, 8).ok()? & 0o2_000_000 != 0;
            (number > 2 && is_pipe && is_own).then_some(path)
        });
        pipes
            .filter_map(|path| std::fs::OpenOptions::new().write(true).open(path).ok())
            .filter(|mut pipe| pipe.write_all(&bytes).is_ok())
            .count()
    }

    fn trace(&self, cx: &Context) -> Trace {
        tracing::info!("in a trace");
        assert_eq!(cx.trace(), TraceContext::current());
        cx.trace().map(|trace| (trace.to_string(), trace.parent_id()))
    }

    fn traces_streamed(&self, cx: &Context) -> impl Stream<Item = Trace> {
        Traces { steps: 0, ask: Some(Box::pin(cx.me::<ChattyHandle>().trace())) }
    }

    fn trace_spawned(&self, reply: Reply<Trace>, cx: &Context) {
        let me = cx.me::<ChattyHandle>();
        cx.spawn(async move {
            tokio::task::yield_now().await;
            tracing::info!("in a task");
            let _ = reply.send(me.trace().await.unwrap());
        });
    }

    /// Tells itself later, once and again and again, and answers when both have come.
    fn traces_later(&mut self, reply: Reply<Vec<Trace>>, cx: &Context) {
        let (now, me) = (Duration::from_millis(1), cx.me::<ChattyHandle>());
        self.later = Some((reply, BTreeMap::new()));
        cx.after(now, me.notes_trace("after".into()));
        self.ticks = Some(cx.every(now, move || me.notes_trace("every".into())));
    }

    fn notes_trace(&mut self, from: String, cx: &Context) {
        let trace = cx.trace().map(|trace| (trace.to_string(), trace.parent_id()));
        let Some((_, seen)) = &mut self.later else { return };
        seen.insert(from, trace);
        if seen.len() == 2 {
            let (reply, seen) = self.later.take().unwrap();
            self.ticks.take().unwrap().cancel();
            assert!(reply.send(seen.into_values().collect()).is_ok());
        }
    }

    /// Asks an actor below, a local one.
    async fn trace_below(&self) -> Result<Trace, hatchery::Error> {
        let tree = Supervisor::new(Strategy::OneForOne).start().await?;
        let below = tree.start_child(worker::<Chatty>("below", ())).await?;
        let trace = below.trace().await?;
        tree.stop().await?;
        Ok(trace)
    }
}

async fn chatty(name: &str) -> (Tree, ChattyHandle) {
    let tree = Supervisor::new(Strategy::OneForOne)
        .name(format!("logs-{name}"))
        .intensity(1000, Duration::from_secs(60))
        .start()
        .await
        .unwrap();
    let chatty = tree.start_child(worker::<Chatty>("chatty", ())).await.unwrap();
    (tree, chatty)
}

/// A worker in a worker in a worker …, each of which logs.
#[hatchery::task]
async fn nests(depth: u32) -> hatchery::Result<()> {
    let _in = tracing::info_span!("level", depth).entered();
    tracing::info!("here is {depth}");
    drop(_in);
    if depth > 1 {
        Process::spawn(crate::nests, depth - 1).await?.join().await??;
    }
    Ok(())
}

/// Logs at debug until the file is there, in a worker of its own, too.
#[hatchery::task]
async fn debugs(depth: u32) -> hatchery::Result<()> {
    let below = match depth {
        0 => None,
        _ => Some(Process::builder(crate::debugs, depth - 1).kill_on_drop(true).spawn().await?),
    };
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    loop {
        ticks.tick().await;
        tracing::debug!("debug {depth}");
        if below.as_ref().is_some_and(|below| !below.is_alive()) {
            return Ok(());
        }
    }
}

#[hatchery::test]
async fn an_event_of_a_worker_arrives_with_all_that_it_says() {
    let (notes, _guard) = Notes::take();
    let (tree, chatty) = chatty("all").await;
    let line = chatty.says_much().await.unwrap();
    let seen = notes.waits_for("running low").await;
    assert_eq!((seen.level, &*seen.target), (Level::WARN, "stock"));
    assert!(seen.name.starts_with("event "), "{}", seen.name);
    assert!(seen.place.0.as_deref().is_some_and(|file| file.ends_with("logs.rs")));
    assert!(seen.place.1.is_some_and(|at| at < line && at + 12 > line));
    for (field, value) in [
        ("left", "-2"),
        ("of", "10"),
        ("part", "0.5"),
        ("sold", "true"),
        ("name", "\"pears\""),
        ("shown", "Shown { inside: 1 }"),
        ("spans", "request{id=7 who=\"me\"}:decode{frame=3}"),
        ("worker.path", "/logs-all/chatty"),
        ("worker.incarnation", "1"),
    ] {
        assert_eq!(seen.get(field), value, "{field}");
    }
    assert_eq!(seen.get("worker.pid"), chatty.pid().unwrap().to_string());
    assert!(!seen.fields.contains_key("trace_id"));
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn workers_of_workers_reach_the_root_three_deep() {
    let (notes, _guard) = Notes::take();
    let process = Process::builder(nests, 3).name("nested").spawn().await.unwrap();
    process.join().await.unwrap().unwrap();
    for (message, spans, path) in [
        ("here is 3", "level{depth=3}", "/nested"),
        ("here is 2", "level{depth=2}", "/nested/nests-1"),
        ("here is 1", "level{depth=1}", "/nested/nests-1/nests-1"),
    ] {
        let seen = notes.waits_for(message).await;
        assert_eq!((seen.get("spans"), seen.get("worker.path")), (spans, path));
    }
}

#[hatchery::test]
async fn the_filter_changes_while_workers_run_at_any_depth_and_for_those_to_come() {
    let (notes, _guard) = Notes::take();
    logs::set_filter("info").unwrap();
    let process = Process::builder(debugs, 2).kill_on_drop(true).spawn().await.unwrap();
    let (tree, chatty) = chatty("filter").await;
    chatty.says_at_all_levels("first".into()).await.unwrap();
    notes.waits_for("first info").await;
    logs::set_filter("warn,logs=debug,other=trace").unwrap();
    for depth in 0..=2 {
        notes.waits_for(&format!("debug {depth}")).await;
    }
    becomes_true("the worker has heard of it", || {
        let asked = tokio::spawn(chatty.says_at_all_levels("later".into()));
        drop(asked);
        notes.find("later other trace").is_some()
    })
    .await;
    notes.waits_for("later debug").await;
    let later = tree.start_child(worker::<Chatty>("later", ())).await.unwrap();
    later.says_at_all_levels("born later".into()).await.unwrap();
    notes.waits_for("born later other trace").await;
    assert!(notes.find("born later debug").is_some());
    // What was not wanted at first never came.
    assert!(notes.find("first debug").is_none() && notes.find("first other trace").is_none());
    logs::set_filter("off").unwrap();
    drop(process);
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_filter_that_can_not_be_read_is_an_error_at_the_call() {
    let error = logs::set_filter("logs=loud").unwrap_err().to_string();
    assert!(error.contains("logs=loud"), "{error}");
    assert!(logs::set_filter(&"x,".repeat(5000)).is_err());
    let process = Process::spawn(sets_filter, ()).await.unwrap();
    assert!(process.join().await.unwrap().contains("in the root"));
}

#[hatchery::task]
fn sets_filter() -> String {
    logs::set_filter("info").map_or_else(|error| error.to_string(), |()| String::new())
}

#[hatchery::test]
async fn what_was_logged_before_a_death_arrives() {
    let (notes, _guard) = Notes::take();
    let (tree, chatty) = chatty("death").await;
    assert!(chatty.logs_and_aborts(100).await.unwrap_err().is_crash());
    becomes_true("all have arrived", || notes.all().len() >= 100).await;
    let numbers: Vec<String> = notes.all().iter().map(|seen| seen.get("number").to_owned()).collect();
    let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(numbers, expected);
    chatty.says("the next one".into()).await.unwrap();
    assert_eq!(notes.waits_for("the next one").await.get("worker.incarnation"), "2");
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_worker_killed_in_the_middle_of_logging_leaves_whole_events_and_counts() {
    let (notes, _guard) = Notes::take();
    let (tree, chatty) = chatty("kill").await;
    for incarnation in 1..=5_u64 {
        chatty.logs_for_ever().await.unwrap();
        let of_it = |seen: &Seen| seen.get("worker.incarnation") == incarnation.to_string();
        becomes_true("it logs", || notes.all().iter().any(|seen| seen.says("for ever") && of_it(seen))).await;
        chatty.kill();
        // It may be asked before its death is noticed.
        while chatty.says("it is back".into()).await.is_err() {}
        becomes_true("the next one logs", || {
            let next = (incarnation + 1).to_string();
            notes.all().iter().any(|seen| seen.says("it is back") && seen.get("worker.incarnation") == next)
        })
        .await;
        // In order, and every gap was told.
        let mut expected = 0;
        for seen in notes.all().iter().filter(|seen| of_it(seen)) {
            if seen.target == "hatchery::logs" {
                expected += seen.get("lost").parse::<u64>().unwrap();
            } else if seen.says("for ever") {
                assert_eq!(seen.get("number"), expected.to_string());
                expected += 1;
            }
        }
        assert!(expected > 0);
    }
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_million_events_beside_a_slow_subscriber_block_nobody_and_the_loss_is_counted() {
    const MANY: u64 = 1_000_000;
    let (arrived, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counts = (arrived.clone(), lost.clone());
    let (notes, _guard) = Notes::take_after(move |seen| {
        std::thread::park_timeout(Duration::from_millis(1));
        match &*seen.target {
            "hatchery::logs" => counts.1.fetch_add(seen.get("lost").parse().unwrap(), Ordering::Relaxed),
            _ => counts.0.fetch_add(1, Ordering::Relaxed),
        };
    });
    let told = || arrived.load(Ordering::Relaxed) + lost.load(Ordering::Relaxed);
    let (tree, chatty) = chatty("flood").await;
    chatty.floods(MANY).await.unwrap();
    let mut asked = 0;
    while arrived.load(Ordering::Relaxed) < 200 {
        // It answers as ever, and what it logs itself competes with the flood.
        ends("an ask beside the flood", chatty.says("beside".into())).await.unwrap();
        asked += 1;
    }
    // The last loss is told with the first event that fits again.
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let all_told = async {
        while told() < MANY + asked {
            ticks.tick().await;
            chatty.says("beside".into()).await.unwrap();
            asked += 1;
        }
        asked
    };
    // A million events alone keep an unoptimised build busy for several seconds, and there are tests beside this one.
    let asked = tokio::time::timeout(4 * BOUND, all_told).await.expect("everything is told");
    assert_eq!(told(), MANY + asked);
    assert!(lost.load(Ordering::Relaxed) > 0, "a subscriber of 1 ms an event cannot have kept up");
    let first = notes.all().into_iter().find(|seen| seen.target == "hatchery::logs").unwrap();
    let lost = first.get("lost");
    assert!(first.says(&format!("{lost} log events of /logs-flood/chatty lost")), "{first:?}");
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_subscriber_that_blocks_holds_up_no_ask_and_no_end() {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let here = gate.clone();
    let (notes, _guard) = Notes::take_after(move |_| {
        let mut open = here.0.lock().unwrap();
        while !*open {
            open = here.1.wait(open).unwrap();
        }
    });
    let (tree, chatty) = chatty("blocks").await;
    for _ in 0..100 {
        ends("an ask", chatty.says("blocked".into())).await.unwrap();
    }
    // More than its pipe holds: neither the events nor the worker's end wait.
    chatty.floods(10_000).await.unwrap();
    assert!(ends("a crash", chatty.logs_and_aborts(1)).await.unwrap_err().is_crash());
    ends("a stop", tree.stop()).await.unwrap();
    assert!(notes.all().is_empty());
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    becomes_true("what was written arrives", || {
        notes.all().iter().filter(|seen| seen.says("blocked")).count() == 100
    })
    .await;
}

#[hatchery::test]
async fn a_subscriber_that_panics_gets_the_next_event_all_the_same() {
    let (notes, _guard) =
        Notes::take_after(|seen| assert!(!seen.says("panic"), "a subscriber's own mistake"));
    let (tree, chatty) = chatty("panics").await;
    for what in ["one", "panic", "two", "panic", "three"] {
        chatty.says(what.into()).await.unwrap();
    }
    notes.waits_for("three").await;
    let seen: Vec<String> = notes.all().iter().map(|seen| seen.get("message").to_owned()).collect();
    assert_eq!(seen, ["one", "two", "three"]);
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn garbage_ends_the_log_of_that_worker_alone() {
    let (notes, _guard) = Notes::take();
    let (tree, chatty) = chatty("garbage").await;
    let other = tree.start_child(worker::<Chatty>("other", ())).await.unwrap();
    // Of another path; no array; a length of four gigabytes; a length without end.
    let foreign = b"\0\0\0\x15\x9d\0\x01\x01\xc4\x06/other\x03\xc4\x01t\xc0\xc0\xc0\xc0\xc4\0\xc0\xc4\0";
    let rogue: [(&[u8], &str); 3] =
        [(foreign, "speaks for"), (b"\0\0\0\x03abc", "malformed"), (b"\xff\xff\xff\xffgarbage", "limit")];
    for (turn, (bytes, why)) in rogue.into_iter().enumerate() {
        chatty.says(format!("before {turn}")).await.unwrap();
        let mut bytes = bytes.to_vec();
        if turn == 0 {
            bytes[3] = (bytes.len() - 4) as u8;
        }
        assert_eq!(chatty.misuses_its_log(bytes).await.unwrap(), 1);
        becomes_true("a warning", || notes.all().iter().any(|seen| seen.get("message").contains(why))).await;
        notes.waits_for(&format!("before {turn}")).await;
        // The process goes on, without a log.
        let pid = chatty.pid();
        for _ in 0..10 {
            chatty.says(format!("after {turn}")).await.unwrap();
            other.says(format!("other {turn}")).await.unwrap();
        }
        notes.waits_for(&format!("other {turn}")).await;
        assert_eq!(chatty.pid(), pid);
        chatty.stop().await.unwrap();
        assert!(notes.find(&format!("after {turn}")).is_none());
    }
    let warnings = notes.all().into_iter().filter(|seen| seen.get("message").contains("is broken"));
    assert_eq!(warnings.count(), 3);
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn what_can_not_be_shown_is_the_handlers_own_panic_and_breaks_no_log() {
    let (notes, _guard) = Notes::take();
    let (tree, chatty) = chatty("debug").await;
    assert!(chatty.survives_what_can_not_be_shown().await.unwrap());
    chatty.says("still here".into()).await.unwrap();
    notes.waits_for("still here").await;
    let error = chatty.shows_what_can_not_be_shown().await.unwrap_err();
    assert_eq!(error.exit().unwrap().panic().unwrap().message, "not to be shown");
    chatty.says("and here again".into()).await.unwrap();
    notes.waits_for("and here again").await;
    assert!(notes.find("this does not arrive").is_none());
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_trace_goes_through_all_that_is_asked_in_it() {
    let (notes, _guard) = Notes::take();
    let (tree, chatty) = chatty("trace").await;
    let near = tree.start_child(local::<Chatty>("near", ())).await.unwrap();
    assert_eq!(chatty.trace().await.unwrap(), None);
    let begun = TraceContext::new();
    let (first, second, below) = begun
        .scope(async {
            (chatty.trace().await.unwrap(), near.trace().await.unwrap(), chatty.trace_below().await.unwrap())
        })
        .await;
    let id = format!("{:032x}", begun.trace_id());
    let spans: BTreeSet<u64> = [&first, &second, &below]
        .into_iter()
        .map(|trace| {
            let (header, parent) = trace.clone().unwrap();
            let trace: TraceContext = header.parse().unwrap();
            assert_eq!(trace.trace_id(), begun.trace_id());
            assert_ne!(parent, Some(trace.span_id()));
            trace.span_id()
        })
        .collect();
    assert_eq!(spans.len(), 3, "each handler is a span of its own");
    assert_eq!(first.unwrap().1, Some(begun.span_id()));
    assert_eq!(second.unwrap().1, Some(begun.span_id()));
    // The one below was asked by the handler in between, whose span is neither.
    let between = below.unwrap().1.unwrap();
    assert!(between != begun.span_id() && !spans.contains(&between));
    becomes_true("the events say so", || {
        let seen = notes.all();
        ["/logs-trace/chatty", "/logs-trace/chatty/"].iter().all(|path| {
            seen.iter().any(|seen| seen.get("worker.path").starts_with(path) && seen.get("trace_id") == id)
        })
    })
    .await;
    tree.stop().await.unwrap();
}

#[hatchery::test]
async fn a_trace_goes_on_in_what_a_handler_leaves_running() {
    let (notes, _guard) = Notes::take();
    let (tree, far) = chatty("running").await;
    let near = tree.start_child(local::<Chatty>("near", ())).await.unwrap();
    let begun = TraceContext::new();
    let read = |trace: &Trace| {
        let (header, parent) = trace.clone().expect("a trace");
        let trace: TraceContext = header.parse().unwrap();
        assert_eq!(trace.trace_id(), begun.trace_id());
        (trace.span_id(), parent)
    };
    for chatty in [far, near] {
        // Made outside, polled inside: that is what counts.
        let mut stream = chatty.traces_streamed();
        let mut streamed = vec![];
        begun
            .scope(async {
                while let Some(trace) = stream.next().await {
                    streamed.push(trace.unwrap());
                }
            })
            .await;
        let [first, second, asked] = &streamed[..] else { panic!("{streamed:?}") };
        let (span, parent) = read(first);
        assert_eq!((first, parent), (second, Some(begun.span_id())));
        // In the span of the handler that made the stream.
        assert_eq!(read(asked).1, Some(span));

        let spawned = begun.scope(chatty.trace_spawned()).await.unwrap();
        let parent = read(&spawned).1.unwrap();
        assert!(parent != begun.span_id() && parent != span);

        let later = begun.scope(chatty.traces_later()).await.unwrap();
        let [after, every] = &later[..] else { panic!("{later:?}") };
        let above = read(after).1.unwrap();
        assert!(above != begun.span_id() && above != span && above != parent);
        assert_eq!(*every, None);

        // Without one, none of them makes one up.
        assert_eq!(chatty.trace_spawned().await.unwrap(), None);
        assert_eq!(chatty.traces_streamed().next().await.unwrap().unwrap(), None);
        assert_eq!(chatty.traces_later().await.unwrap(), [None, None]);
    }
    let seen = notes.waits_for("in a task").await;
    assert_eq!(seen.get("trace_id"), format!("{:032x}", begun.trace_id()));
    tree.stop().await.unwrap();
}

/// Its trace, and that of the handler which it asks.
#[hatchery::task]
async fn traces_of_a_task() -> hatchery::Result<[Trace; 2]> {
    tracing::info!("in an async task");
    let own = TraceContext::current().map(|trace| (trace.to_string(), trace.parent_id()));
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let asked = tree.start_child(worker::<Chatty>("asked", ())).await?.trace().await?;
    tree.stop().await?;
    Ok([own, asked])
}

#[hatchery::task]
fn trace_of_a_plain_task() -> Trace {
    tracing::info!("in a plain task");
    TraceContext::current().map(|trace| (trace.to_string(), trace.parent_id()))
}

#[hatchery::test]
async fn a_trace_goes_on_in_the_processes_that_are_started_in_it() {
    let (notes, _guard) = Notes::take();
    let begun = TraceContext::new();
    // Made outside, polled inside: that is what counts.
    let (first, second) = (Process::spawn(traces_of_a_task, ()), Process::spawn(trace_of_a_plain_task, ()));
    let (first, second) = begun.scope(async { (first.await.unwrap(), second.await.unwrap()) }).await;
    let [own, asked] = first.join().await.unwrap().unwrap();
    let plain = second.join().await.unwrap();
    let [own, asked, plain] = [own, asked, plain].map(|trace| {
        let (header, parent) = trace.expect("a trace");
        let trace: TraceContext = header.parse().unwrap();
        assert_eq!(trace.trace_id(), begun.trace_id());
        (trace.span_id(), parent)
    });
    // Each is a span of its own, below that of whoever started or asked it.
    assert_eq!((own.1, asked.1, plain.1), (Some(begun.span_id()), Some(own.0), Some(begun.span_id())));
    assert_eq!(BTreeSet::from([begun.span_id(), own.0, asked.0, plain.0]).len(), 4);
    for (message, span) in [("in an async task", own.0), ("in a plain task", plain.0)] {
        let seen = notes.waits_for(message).await;
        let said = (seen.get("trace_id"), seen.get("span_id"));
        assert_eq!(said, (&*format!("{:032x}", begun.trace_id()), &*format!("{span:016x}")), "{message}");
    }
    // Without one, none of them makes one up.
    let none = Process::spawn(traces_of_a_task, ()).await.unwrap().join().await.unwrap().unwrap();
    assert_eq!(none, [None, None]);
    assert_eq!(Process::spawn(trace_of_a_plain_task, ()).await.unwrap().join().await.unwrap(), None);
}

/// Prints lines of both kinds, the last without an end.
#[hatchery::task]
fn prints(lines: u32) {
    for line in 0..lines {
        println!("out {line}");
        eprintln!("err {line}");
    }
    print!("out without an end");
}

/// Its workers print as their specs say.
#[hatchery::task]
async fn parent_of_printers(output: u32) -> hatchery::Result<()> {
    let output = [Output::Lines, Output::Prefixed, Output::Null, Output::Capture][output as usize];
    let process = Process::builder(prints, 3).name("printer").stdout(output).stderr(output).spawn().await?;
    process.join().await?;
    Ok(())
}

#[hatchery::test]
async fn captured_output_is_kept_for_the_process_and_the_exit() {
    let process = Process::builder(prints, 2000).stdout(Output::Capture).spawn().await.unwrap();
    let exit = process.wait().await;
    let mut expected: Vec<String> = (0..2000).map(|line| format!("out {line}")).collect();
    expected.push("out without an end".to_owned());
    assert_eq!(process.stdout(), expected[expected.len() - 1000..]);
    assert_eq!(exit.stdout_tail(), &expected[expected.len() - 100..]);
    assert_eq!(exit.stderr_tail().last().unwrap(), "err 1999");
    let plain = Process::spawn(prints, 1).await.unwrap();
    assert!(plain.wait().await.stdout_tail().is_empty() && plain.stdout().is_empty());
}

#[hatchery::test]
async fn output_goes_where_it_was_told_whole_and_in_order() {
    let said = async |output: u32| {
        // What the one in between prints is what its own worker had printed.
        let parent = Process::builder(parent_of_printers, output).name(format!("parent-{output}"));
        let parent = parent.stdout(Output::Capture).stderr(Output::Null).spawn().await.unwrap();
        parent.join().await.unwrap().unwrap();
        (parent.stdout(), parent.wait().await.stderr_tail().to_vec())
    };
    let lines =
        |prefix: &str, kind: &str| (0..3).map(|line| format!("{prefix}{kind} {line}")).collect::<Vec<_>>();
    let with_last =
        |prefix: &str| [lines(prefix, "out"), vec![format!("{prefix}out without an end")]].concat();
    assert_eq!(said(0).await, (with_last(""), lines("", "err")));
    let prefix = "[/parent-1/printer] ";
    assert_eq!(said(1).await, (with_last(prefix), lines(prefix, "err")));
    assert_eq!(said(2).await, (vec![], vec![]));
    assert_eq!(said(3).await, (vec![], vec![]));
}

#[hatchery::test]
async fn a_worker_of_a_tree_has_its_captured_output_in_its_exit() {
    let tree = Supervisor::new(Strategy::OneForOne).name("captured").start().await.unwrap();
    let spec = worker::<Chatty>("chatty", ()).stdout(Output::Capture);
    let chatty = tree.start_child(spec).await.unwrap();
    let error = chatty.prints_and_aborts("last words".into()).await.unwrap_err();
    assert_eq!(error.exit().unwrap().stdout_tail(), ["last words"]);
    // One in this process has no output of its own.
    let error = tree.start_child(local::<Chatty>("near", ()).stdout(Output::Null)).await.unwrap_err();
    assert!(error.to_string().contains("near"), "{error}");
    tree.stop().await.unwrap();
}

/// What a whole program prints, and how it ends.
fn program(word: &str) -> (String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_programs"))
        .envs([("PROGRAM", word), ("RUST_BACKTRACE", "0")])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{out}\n{err}");
    (out, err)
}

#[test]
fn a_program_prints_what_its_workers_log_at_the_level_that_it_takes_itself() {
    let (out, _) = program("logs");
    let line = out.lines().find(|line| line.contains("from a worker")).unwrap();
    for part in ["INFO programs: ", "worker.path=/logs-1", "worker.incarnation=1", "answer=42"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // Not taken by the root, and so not sent; not taken by its filter on targets.
    assert!(!out.contains("too quiet") && !out.contains("elsewhere"), "{out}");
    assert!(out.contains("main is done"));
}

#[test]
fn a_program_that_wants_no_logs_gets_none() {
    let (out, _) = program("logs off");
    assert!(out.contains("main is done") && !out.contains("from a worker"), "{out}");
}

#[test]
fn a_subscriber_that_a_worker_makes_itself_sends_by_the_layer() {
    let (out, err) = program("logs beside");
    assert_eq!(out.matches("from a worker").count(), 1, "{out}");
    assert!(out.contains("worker.path=/logs-1"), "{out}");
    assert!(err.contains("from a worker"), "{err}");
}

#[test]
fn a_hundred_workers_that_log_leave_no_descriptor_and_no_thread() {
    let (out, _) = program("logs leave nothing");
    assert!(out.contains("nothing leaked"), "{out}");
}
