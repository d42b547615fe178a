//! Descriptors in messages: everywhere a value travels, and closed wherever one does not arrive.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use hatchery::prelude::*;
use hatchery::{Fd, Stream};
use hatchery_tests::{BOUND, becomes_true, ends, own_channel, runs, send, send_raw, stands_still};
use rustix::fs::MemfdFlags;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::tree;

const MIB: usize = 1024 * 1024;

/// Keeps what it is given, opens what it is asked for.
struct Keeper {
    file: File,
    hoard: Vec<File>,
    held: Vec<Fd<UnixStream>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    words: String,
    enclosed: Vec<Fd<File>>,
    reply: Option<Fd<UnixStream>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    why: String,
    back: Fd<UnixStream>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

#[hatchery::actor]
impl Keeper {
    fn start(file: Fd<File>) -> Self {
        Keeper { file: file.into_inner(), hoard: Vec::new(), held: Vec::new() }
    }

    /// What is in the file that it was started with.
    fn text(&self) -> String {
        text(&self.file)
    }

    /// Says something, and hangs up.
    fn says(&self, mut to: Fd<UnixStream>, word: String) {
        to.write_all(word.as_bytes()).expect("somebody listens");
    }

    fn letter(&self, letter: Letter) -> Letter {
        if let Some(reply) = &letter.reply {
            (&**reply).write_all(letter.words.as_bytes()).expect("somebody listens");
        }
        letter
    }

    fn opens(&self, name: String, content: String) -> Fd<File> {
        file(&name, &content).into()
    }

    fn refuses(&self, socket: Fd<UnixStream>) -> Result<(), Refused> {
        Err(Refused { why: "not this one".to_owned(), back: socket })
    }

    /// Files with the numbers from 0.
    fn numbered(&self, name: String, to: u64) -> impl Stream<Item = Fd<File>> {
        Numbered { name, next: 0, to }
    }

    fn large(&self, bytes: Vec<u8>, file: Fd<File>) -> (String, Fd<File>) {
        (String::from_utf8(bytes).expect("letters"), file)
    }

    /// Keeps a socket as long as it runs.
    async fn hangs(&self, mut begun: Fd<UnixStream>) {
        begun.write_all(b"!").expect("somebody listens");
        std::future::pending().await
    }

    fn keeps(&mut self, socket: Fd<UnixStream>) {
        self.held.push(socket);
    }

    /// How many descriptors of files of this name it has open.
    fn open(&self, name: String) -> usize {
        open(&name)
    }

    /// Takes all descriptors that there are, but so many.
    fn hoards(&mut self, but: usize) {
        while let Ok(file) = File::open("/dev/null") {
            self.hoard.push(file);
        }
        self.hoard.truncate(self.hoard.len() - but);
    }

    /// Gives one away, for which it needs another one.
    fn gives(&mut self) -> Fd<File> {
        self.hoard.pop().expect("it has many").into()
    }

    fn lets_go(&mut self) {
        self.hoard.clear();
    }

    /// Writes to its own channel what comes with a descriptor that nobody expects.
    fn forges(&mut self, forgery: Forgery) {
        let tell =
            |fds: u8, kind: u8| [0, 0, 0, 12, 0x99, kind, 0, fds, 9, 0, 0xc0, 0xc0, 0xc0, 0xc4, 1, 0xc0];
        let null = File::open("/dev/null").expect("it is there");
        let (bytes, fds) = match forgery {
            Forgery::Unannounced => (tell(0, 3), 1),
            Forgery::Missing => (tell(2, 3), 1),
            Forgery::OfNoValue => (tell(1, 9), 1),
            Forgery::TooMany => (tell(16, 3), 200),
        };
        send_raw(own_channel(), &bytes, &vec![null.as_fd(); fds]);
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Forgery {
    Unannounced,
    Missing,
    OfNoValue,
    TooMany,
}

struct Numbered {
    name: String,
    next: u64,
    to: u64,
}

impl Stream for Numbered {
    type Item = Fd<File>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<Option<Fd<File>>> {
        self.next += 1;
        let item = (self.next <= self.to).then(|| file(&self.name, &(self.next - 1).to_string()).into());
        Poll::Ready(item)
    }
}

/// A file of its own, whose name only serves to find its descriptors.
fn file(name: &str, content: &str) -> File {
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).expect("a descriptor"));
    file.write_all_at(content.as_bytes(), 0).expect("room for it");
    file
}

fn text(file: &File) -> String {
    let length = file.metadata().expect("it is open").len();
    let mut bytes = vec![0; usize::try_from(length).expect("a short one")];
    file.read_exact_at(&mut bytes, 0).expect("it can be read");
    String::from_utf8(bytes).expect("text")
}

/// How many descriptors of files of this name this process has open.
fn open(name: &str) -> usize {
    let link = format!("/memfd:{name} (deleted)");
    let entries = std::fs::read_dir("/proc/self/fd").expect("its descriptors").flatten();
    entries.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == &*link)).count()
}

fn started_with(content: &str) -> Fd<File> {
    file("start", content).into()
}

fn pair() -> (UnixStream, Fd<UnixStream>) {
    let (here, there) = UnixStream::pair().expect("descriptors");
    here.set_read_timeout(Some(BOUND)).expect("a timeout");
    (here, there.into())
}

/// All that comes out of a socket until nobody has the other end any more.
async fn heard(mut socket: UnixStream) -> String {
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("an end in time");
        text
    });
    reading.await.unwrap()
}

/// The first byte that comes out of a socket.
async fn first(socket: &UnixStream) {
    let mut socket = socket.try_clone().unwrap();
    tokio::task::spawn_blocking(move || socket.read_exact(&mut [0]).unwrap()).await.unwrap();
}

/// Polls a future once, which has to wait.
async fn begins<F: Future>(future: Pin<&mut F>) {
    let mut future = Some(future);
    std::future::poll_fn(|cx| {
        if let Some(future) = future.take() {
            assert!(future.poll(cx).is_pending());
        }
        Poll::Ready(())
    })
    .await;
}

#[hatchery::test]
async fn files_and_sockets_travel_to_an_actor_and_back_in_everything_that_does() {
    let tree = tree().await;
    let far = tree.start_child(worker::<Keeper>("far", started_with("far"))).await.unwrap();
    let near = tree.start_child(local::<Keeper>("near", started_with("near"))).await.unwrap();
    for (keeper, name) in [(far, "far"), (near, "near")] {
        assert_eq!(ends("the arguments of its start", keeper.text()).await.unwrap(), name);

        let (here, there) = pair();
        ends("an argument", keeper.says(there, "hello".to_owned())).await.unwrap();
        assert_eq!(heard(here).await, "hello");

        let (here, there) = pair();
        ends("a tell", keeper.says(there, "psst".to_owned()).tell()).await.unwrap();
        assert_eq!(heard(here).await, "psst");

        let made = ends("an answer", keeper.opens("made".to_owned(), "by it".to_owned())).await.unwrap();
        assert_eq!(text(&made), "by it");
        let flags = rustix::io::fcntl_getfd(&made).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));

        let (here, there) = pair();
        let error = ends("an error", keeper.refuses(there)).await.unwrap_err();
        assert_eq!(error.handler_error().unwrap().why, "not this one");
        let mut back = error.into_handler_error().unwrap().back.into_inner();
        back.write_all(b"it came back").unwrap();
        drop(back);
        assert_eq!(heard(here).await, "it came back");

        let mut items = keeper.numbered(format!("numbered {name}"), 200);
        for number in 0..200 {
            let item = ends("an item", items.next()).await.unwrap().unwrap();
            assert_eq!(text(&item), number.to_string());
        }
        assert!(ends("the end", items.next()).await.is_none());

        let (here, there) = pair();
        let enclosed = (0..15).map(|n| file("enclosed", &n.to_string()).into()).collect();
        let letter = Letter { words: "as many as may".to_owned(), enclosed, reply: Some(there) };
        let letter = ends("sixteen there and back", keeper.letter(letter)).await.unwrap();
        let numbers: Vec<_> = letter.enclosed.iter().map(|file| text(file)).collect();
        assert_eq!(numbers, (0..15).map(|n| n.to_string()).collect::<Vec<_>>());
        drop(letter);
        assert_eq!(heard(here).await, "as many as may");
    }
}

#[hatchery::task]
fn reversed(from: Fd<File>, to: Fd<OwnedFd>) -> Fd<File> {
    let text: String = text(&from).chars().rev().collect();
    let mut to = File::from(to.into_inner());
    to.write_all(text.as_bytes()).expect("room for it");
    to.into()
}

#[hatchery::test]
async fn files_travel_to_a_task_and_back() {
    let (from, to) = (file("from", "abc"), OwnedFd::from(file("to", "")));
    let process = Process::spawn(reversed, (from.into(), to.into())).await.unwrap();
    for _ in 0..2 {
        let result = ends("join", process.join()).await.unwrap();
        assert_eq!(text(&result), "cba", "as often as it is asked");
    }
    assert_eq!(open("to"), 1, "the process's, of which each result is a duplicate");
    drop(process);
    becomes_true("it is closed", || open("from") + open("to") == 0).await;
}

#[hatchery::test]
async fn more_than_a_message_carries_are_refused_before_anything_is_sent() {
    let tree = tree().await;
    let keeper = tree.start_child(worker::<Keeper>("keeper", started_with(""))).await.unwrap();
    let enclosed = (0..17).map(|_| file("seventeen", "").into()).collect();
    let letter = Letter { words: String::new(), enclosed, reply: None };
    let error = ends("the ask", keeper.letter(letter)).await.unwrap_err();
    assert!(!error.maybe_executed());
    let text = error.to_string();
    assert!(text.contains("at most 16 descriptors: send them in several messages"), "{text}");
    assert_eq!(open("seventeen"), 0);
}

/// Promise "descriptors": a spec keeps those of its arguments, for restarts, until it is gone.
#[hatchery::test]
async fn every_incarnation_gets_the_descriptors_of_its_arguments() {
    let tree = tree().await;
    let kept = || file("kept for restarts", "still here").into();
    let far = tree.start_child(worker::<Keeper>("far", kept())).await.unwrap();
    let near = tree.start_child(local::<Keeper>("near", kept())).await.unwrap();
    for incarnation in 1..4 {
        for keeper in [&far, &near] {
            becomes_true("it sits", || keeper.incarnation() == Some(incarnation)).await;
            assert_eq!(ends("ask", keeper.text()).await.unwrap(), "still here");
            keeper.kill();
        }
    }
    assert!(open("kept for restarts") >= 2);
    ends("stop", tree.stop()).await.unwrap();
    drop(tree);
    becomes_true("they are closed", || open("kept for restarts") == 0).await;
}

/// Promise "descriptors": of a request that does not reach a handler they are closed, wherever it is.
#[hatchery::test]
async fn requests_that_are_withdrawn_or_refused_close_their_descriptors() {
    let tree = tree().await;
    let far = worker::<Keeper>("far", started_with("")).window(2).shutdown(Shutdown::kill());
    let near = local::<Keeper>("near", started_with("")).window(2).shutdown(Shutdown::kill());
    let far = tree.start_child(far).await.unwrap();
    let near = tree.start_child(near).await.unwrap();
    for keeper in [&far, &near] {
        let (busy, begun) = pair();
        let mut running = Box::pin(keeper.hangs(begun));
        begins(running.as_mut()).await;
        first(&busy).await;

        // One waits in the mailbox, one in line.
        let (in_mailbox, there) = pair();
        let (in_line, also_there) = pair();
        {
            let mut mailed = pin!(keeper.keeps(there));
            let mut lined = pin!(keeper.keeps(also_there));
            begins(mailed.as_mut()).await;
            begins(lined.as_mut()).await;
        }
        assert_eq!(heard(in_line).await, "");
        assert_eq!(heard(in_mailbox).await, "");

        // One that nobody polled, and one whose deadline passes.
        let (unpolled, there) = pair();
        drop(keeper.keeps(there));
        assert_eq!(heard(unpolled).await, "");
        let (late, there) = pair();
        let error = ends("ask", keeper.keeps(there).timeout(Duration::from_millis(1))).await.unwrap_err();
        assert!(error.is_timeout());
        assert_eq!(heard(late).await, "");

        // The one that runs, with its actor.
        let (in_mailbox, there) = pair();
        let mut mailed = Box::pin(keeper.keeps(there));
        begins(mailed.as_mut()).await;
        ends("stop", keeper.stop()).await.unwrap();
        assert!(ends("ask", running).await.unwrap_err().is_crash());
        assert!(ends("ask", mailed).await.unwrap_err().is_crash());
        assert_eq!((heard(busy).await, heard(in_mailbox).await), (String::new(), String::new()));
    }
    ends("stop", tree.stop()).await.unwrap();
    for keeper in [far, near] {
        let (closed, there) = pair();
        assert!(ends("ask", keeper.keeps(there)).await.unwrap_err().is_closed());
        assert_eq!(heard(closed).await, "");
    }
}

/// Promise "descriptors": an answer that nobody waits for any more closes its own.
#[hatchery::test]
async fn answers_that_come_too_late_close_their_descriptors() {
    let tree = tree().await;
    let keeper = tree.start_child(worker::<Keeper>("keeper", started_with(""))).await.unwrap();
    for _ in 0..100 {
        let mut asked = Box::pin(keeper.opens("too late".to_owned(), String::new()));
        begins(asked.as_mut()).await;
        drop(asked);
        let mut items = keeper.numbered("too late".to_owned(), 1000);
        drop(ends("an item", items.next()).await);
    }
    assert_eq!(ends("ask", keeper.text()).await.unwrap(), "");
    becomes_true("they are closed", || open("too late") == 0).await;
    let name = || "too late".to_owned();
    while ends("ask", keeper.open(name())).await.unwrap() > 0 {
        // A stream that nobody reads ends when its withdrawal has arrived.
        tokio::task::yield_now().await;
    }
}

/// Fault: killed with a descriptor on its way.
#[hatchery::test]
async fn a_worker_killed_with_descriptors_in_flight_leaves_none_open() {
    let tree = tree().await;
    let keeper = tree.start_child(worker::<Keeper>("keeper", started_with("again"))).await.unwrap();
    for _ in 0..10 {
        let pid = keeper.pid().unwrap();
        send(pid, Signal::STOP);
        becomes_true("it stands still", || stands_still(pid)).await;
        let (here, there) = pair();
        let mut asked = Box::pin(keeper.keeps(there));
        begins(asked.as_mut()).await;
        let large =
            Letter { words: "x".repeat(MIB), enclosed: vec![file("in flight", "").into()], reply: None };
        let mut large = Box::pin(keeper.letter(large));
        begins(large.as_mut()).await;
        send(pid, Signal::KILL);
        assert!(ends("ask", asked).await.unwrap_err().is_crash());
        assert!(ends("ask", large).await.unwrap_err().is_crash());
        assert_eq!(heard(here).await, "");
        becomes_true("it is closed", || open("in flight") == 0).await;
        assert_eq!(ends("ask", keeper.text()).await.unwrap(), "again");
        assert!(!runs(pid));
    }
}

/// Promise "descriptors": each arrives once, and none is left.
#[hatchery::test]
async fn a_thousand_messages_with_descriptors_leave_none_open_on_either_side() {
    let tree = tree().await;
    let far = tree.start_child(worker::<Keeper>("far", started_with(""))).await.unwrap();
    let near = tree.start_child(local::<Keeper>("near", started_with(""))).await.unwrap();
    for (keeper, name) in [(far, "thousand far"), (near, "thousand near")] {
        let before = ends("ask", keeper.open(name.to_owned())).await.unwrap();
        for round in 0..100 {
            let letters: Vec<_> = (0..10)
                .map(|n: usize| {
                    let enclosed = (0..n).map(|n| file(name, &format!("{round} {n}")).into()).collect();
                    let words = "w".repeat(if n == 3 { 10_000 } else { n });
                    tokio::spawn(keeper.letter(Letter { words, enclosed, reply: None }))
                })
                .collect();
            for (n, letter) in letters.into_iter().enumerate() {
                let letter = ends("a letter", letter).await.unwrap().unwrap();
                let texts: Vec<_> = letter.enclosed.iter().map(|file| text(file)).collect();
                assert_eq!(texts, (0..n).map(|n| format!("{round} {n}")).collect::<Vec<_>>());
            }
        }
        becomes_true("none is left here", || open(name) == 0).await;
        assert_eq!(ends("ask", keeper.open(name.to_owned())).await.unwrap(), before);
    }
}

#[hatchery::test]
async fn a_large_message_has_its_descriptors_with_it() {
    let tree = tree().await;
    let far = tree.start_child(worker::<Keeper>("far", started_with(""))).await.unwrap();
    let near = tree.start_child(local::<Keeper>("near", started_with(""))).await.unwrap();
    for keeper in [far, near] {
        let asked: Vec<_> = (0..8)
            .map(|n| {
                let bytes = vec![b'a' + n; MIB];
                tokio::spawn(keeper.large(bytes, file("large", &n.to_string()).into()))
            })
            .collect();
        for (n, asked) in (0..8).zip(asked) {
            let (letters, file) = ends("the ask", asked).await.unwrap().unwrap();
            assert!(letters.len() == MIB && letters.bytes().all(|letter| letter == b'a' + n));
            assert_eq!(text(&file), n.to_string());
        }
    }
    becomes_true("none is left", || open("large") == 0).await;
}

/// Fault: descriptors exhausted in the receiver. The messages that they came with are lost, and nothing else.
#[hatchery::test]
async fn a_worker_without_free_descriptors_loses_the_message_and_goes_on() {
    let tree = tree().await;
    let spec = worker::<Keeper>("full", started_with("of itself")).open_files_limit(100);
    let keeper = tree.start_child(spec).await.unwrap();
    for but in [0, 1, 2] {
        ends("ask", keeper.hoards(but)).await.unwrap();
        let enclosed = (0..3).map(|_| file("too many", "").into()).collect();
        let letter = Letter { words: String::new(), enclosed, reply: None };
        let error = ends("ask", keeper.letter(letter)).await.unwrap_err();
        let said = error.to_string();
        assert!(said.contains("had no free ones left") && said.contains("raise its limit"), "{said}");
        assert!(!error.maybe_executed() && !error.is_crash());
        if but == 0 {
            let error = ends("ask", keeper.gives()).await.err();
            // The one it gives is still its own, so there is none for the duplicate.
            let said = error.expect("an error").to_string();
            assert!(said.contains("could not be duplicated: Too many open files"), "{said}");
        }
        assert_eq!(ends("ask", keeper.text()).await.unwrap(), "of itself");
        ends("ask", keeper.lets_go()).await.unwrap();
        assert_eq!(ends("ask", keeper.open("too many".to_owned())).await.unwrap(), 0);
        let made = ends("ask", keeper.opens("room again".to_owned(), "yes".to_owned())).await.unwrap();
        assert_eq!(text(&made), "yes");
    }
    assert_eq!(keeper.incarnation(), Some(1));
    becomes_true("none is left here", || open("too many") == 0).await;
}

/// Promise "malformed input": a peer that sends descriptors nobody expects ends, with a reason.
#[hatchery::test]
async fn a_worker_that_forges_descriptors_is_ended_with_a_reason() {
    let tree = tree().await;
    let keeper = tree.start_child(worker::<Keeper>("forger", started_with(""))).await.unwrap();
    for (forgery, reason) in [
        (Forgery::Unannounced, "more arrived than the frames announce"),
        (Forgery::Missing, "fewer arrived than the frame announces"),
        (Forgery::OfNoValue, "a frame announces some whose kind has none"),
        (Forgery::TooMany, "more arrived than the frames announce"),
    ] {
        let end = keeper.monitor();
        let _ = ends("ask", keeper.forges(forgery)).await;
        let exit = ends("its end", end).await;
        assert!(exit.to_string().contains(reason), "{forgery:?}: {exit}");
    }
}
