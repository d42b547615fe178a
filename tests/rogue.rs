//! Rogues at the link: a worker's code that writes to it what no worker would, and a parent's code that does. Whoever
//! is wrong ends with a named reason, and nothing else is touched.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use hatchery::prelude::*;
use hatchery::{Exit, Status};
use hatchery_tests::{
    another, becomes_true, ends, link_frame, open_descriptors, open_sockets, own_link, runs, send_raw,
};
use serde::{Deserialize, Serialize};

// The kinds of frames, as docs/wire-format.md has them.
const INVITATION: u8 = 0;
const SHUTDOWN: u8 = 1;
const HELLO: u8 = 16;
const READY: u8 = 17;
const START_FAILED: u8 = 18;
const LAST_WORDS: u8 = 19;
const QUESTION: u8 = 32;
const ANSWER: u8 = 33;
const FORGET: u8 = 34;
const CONNECT: u8 = 35;

/// What a rogue writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Misdeed {
    bytes: Vec<u8>,
    /// How many descriptors go with them.
    descriptors: usize,
}

fn misdeed(bytes: Vec<u8>) -> Misdeed {
    Misdeed { bytes, descriptors: 0 }
}

/// As a `LastWords` of the link.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Words {
    code: i32,
    failed: bool,
    orderly: bool,
    panic: Option<hatchery::Panic>,
    reason: Option<String>,
}

fn last_words(words: &Words) -> Vec<u8> {
    let body = hatchery::__private::encode(words).expect("plain data");
    link_frame(LAST_WORDS, 0, &body.to_bytes())
}

/// A channel that is made from below.
fn connect() -> Vec<u8> {
    #[derive(Serialize)]
    struct Process {
        path: String,
        birth: u64,
    }
    let processes = ["/a", "/b"].map(|path| Process { path: path.to_owned(), birth: 7 });
    hatchery::__private::encode(&processes).expect("plain data").to_bytes().to_vec()
}

/// All that is wrong for a worker that has said hello and ready, and what its exit says of it.
fn misdeeds() -> Vec<(Misdeed, &'static str)> {
    let frame = |kind| link_frame(kind, 0, &[]);
    // A string that says it has 4 GiB, inside a frame that has none of them.
    let claims = |kind| link_frame(kind, 0, &[0xdb, 0xff, 0xff, 0xff, 0xff]);
    let body_claims = [&[0, 0, 0, 8, 0x93, READY, 0, 0xc6][..], &[0xff, 0xff, 0xff, 0xff]].concat();
    let with = |bytes, descriptors| Misdeed { bytes, descriptors };
    vec![
        (misdeed(b"GET / HTTP/1.1\r\n\r\n".to_vec()), "over the limit"),
        (misdeed(vec![0; 4096]), "malformed"),
        (misdeed(vec![0xff; 4096]), "over the limit"),
        (misdeed(vec![0, 1, 0, 1]), "over the limit"),
        (misdeed(body_claims), "malformed"),
        (misdeed(frame(99)), "unknown kind of link frame: 99"),
        (misdeed(claims(HELLO)), "malformed link frame"),
        (misdeed(claims(START_FAILED)), "malformed link frame"),
        (misdeed(claims(LAST_WORDS)), "malformed link frame"),
        (misdeed(link_frame(LAST_WORDS, 0, &[0x91; 60_000])), "malformed link frame"),
        (misdeed(claims(INVITATION)), "malformed link frame"),
        (misdeed(frame(SHUTDOWN)), "unexpected Shutdown"),
        (misdeed(hello(7, 0)), "unexpected Hello"),
        (misdeed(frame(READY).repeat(10_000)), "unexpected Ready"),
        (misdeed(last_words(&Words::default()).repeat(10_000)), "unexpected LastWords"),
        (with(link_frame(READY, 3, &[]), 3), "with descriptors nobody expects"),
        (with(frame(READY), 3), "more arrived than the frames announce"),
        (with(link_frame(READY, 16, &[]), 3), "fewer arrived than the frame announces"),
        (with(link_frame(READY, 16, &[]), 250), "more than 16 at once"),
        (with(link_frame(READY, 17, &[]), 16), "a frame announces more than 16"),
        (with(vec![0; 6], 16), "malformed"),
        (misdeed(claims(QUESTION)), "malformed link frame"),
        (misdeed(claims(ANSWER)), "malformed link frame"),
        (misdeed(claims(FORGET)), "malformed link frame"),
        // Both words and a channel, or more than one of them.
        (with(link_frame(QUESTION, 1, &[0]), 1), "with descriptors nobody expects"),
        (with(link_frame(ANSWER, 2, &[0x92, 7, 0xc0]), 2), "more than one descriptor"),
        (with(link_frame(ANSWER, 1, &[0x92, 7, 0xa4, b'D', b'o', b'n', b'e']), 1), "either words or"),
        (with(link_frame(CONNECT, 1, &connect()), 1), "unexpected Connect"),
    ]
}

/// A hello of this protocol, by a program with this number.
fn hello(ino: u64, protocol: u16) -> Vec<u8> {
    #[derive(Serialize)]
    struct Identity {
        dev: u64,
        ino: u64,
        size: i64,
        mtime: (i64, i64),
    }
    #[derive(Serialize)]
    struct Hello {
        protocol: u16,
        features: u64,
        program: Identity,
    }
    let program = Identity { dev: 0, ino, size: 0, mtime: (0, 0) };
    let body = hatchery::__private::encode(&Hello { protocol, features: 0, program }).expect("plain data");
    link_frame(HELLO, 0, &body.to_bytes())
}

/// Writes it to a socket.
fn commit(socket: impl AsFd, misdeed: &Misdeed) {
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let fds: Vec<_> = (0..misdeed.descriptors).map(|_| null.as_fd()).collect();
    send_raw(socket, &misdeed.bytes, &fds);
}

#[hatchery::task]
fn rogue(misdeed: Misdeed) {
    commit(own_link(), &misdeed);
    stays()
}

/// The same, and leaves a file behind when it has.
#[hatchery::task]
fn rogue_that_says_so(misdeed: Misdeed, file: String) {
    commit(own_link(), &misdeed);
    std::fs::write(file, "").expect("a file");
    stays()
}

#[hatchery::task]
fn stays() {
    loop {
        std::thread::park()
    }
}

/// What it says is not what it does.
#[hatchery::task]
fn lies(words: Words, truth: Option<i32>) {
    send_raw(own_link(), &last_words(&words), &[]);
    match truth {
        Some(code) => std::process::exit(code),
        None => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

#[hatchery::task]
fn leaves_after_half_a_frame() -> u32 {
    send_raw(own_link(), &link_frame(READY, 0, &[0; 20])[..10], &[]);
    42
}

struct Bystander(u32);

#[hatchery::actor]
impl Bystander {
    fn start() -> Self {
        Bystander(0)
    }
    fn counts(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }
}

/// A parent of rogues, in a process of its own so that what it holds can be counted.
#[hatchery::task]
async fn has_rogue_children() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let bystander = tree.start_child(worker::<Bystander>("bystander", ())).await?;
    bystander.counts().await?;
    let before = open_descriptors();
    let mut asked = 1;
    for (misdeed, named) in misdeeds() {
        let start = &misdeed.bytes[..misdeed.bytes.len().min(24)];
        let shown = format!("{start:?} … with {} descriptors", misdeed.descriptors);
        let exit = match Process::spawn(rogue, misdeed).await {
            Ok(process) => (*ends(&shown, process.wait()).await).clone(),
            // Its hello was still unread, and what is wrong with descriptors is found before any frame is taken.
            Err(error) => error.exit().expect("an exit").clone(),
        };
        let reason = exit.reason().unwrap_or_default();
        assert!(reason.contains("it broke the protocol of the link: "), "{shown}: {exit}");
        assert!(reason.contains(named), "{shown}: {exit}");
        assert_eq!(exit.signal(), Some(9), "{shown}: {exit}");
        asked += 1;
        assert_eq!(ends("the bystander", bystander.counts()).await?, asked);
    }
    assert_eq!(bystander.incarnation(), Some(1));
    becomes_true("every descriptor is closed", || open_descriptors() <= before).await;
    tree.stop().await
}

/// Promise "malformed, oversized or too deep input", on the link. What a claim would allocate is far more than the
/// parent may have.
#[hatchery::test]
async fn a_worker_that_breaks_the_protocol_of_the_link_ends_with_a_reason_and_nothing_else_is_touched() {
    let parent = Process::builder(has_rogue_children, ()).memory_limit(1 << 30).spawn().await.unwrap();
    ends("join", parent.join()).await.unwrap().unwrap();
}

#[hatchery::test]
async fn half_a_frame_and_then_silence_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    for cut in [1, 3, 4, 7, 20] {
        let file = dir.path().join(cut.to_string());
        let half = link_frame(READY, 0, &[0; 100])[..cut].to_vec();
        let args = (misdeed(half), file.display().to_string());
        let process = Process::spawn(rogue_that_says_so, args).await.unwrap();
        becomes_true("half of it is written", || file.exists()).await;
        process.kill().unwrap();
        let exit = ends("wait", process.wait()).await;
        // Cut off inside a frame is how a killed process may end, and nothing to blame it for.
        assert_eq!((exit.signal(), exit.reason()), (Some(9), None));
    }
    // Its own words that follow are the rest of that frame.
    let process = Process::spawn(leaves_after_half_a_frame, ()).await.unwrap();
    let exit = ends("wait", process.wait()).await;
    assert!(exit.reason().unwrap().contains("it broke the protocol of the link"), "{exit}");
}

#[hatchery::test]
async fn last_words_that_contradict_the_kernel_are_not_believed() {
    async fn exit_of(words: Words, truth: Option<i32>) -> Exit {
        let process = Process::spawn(lies, (words, truth)).await.unwrap();
        (*ends("wait", process.wait()).await).clone()
    }
    let orderly = Words { orderly: true, ..Words::default() };
    let exit = exit_of(orderly.clone(), None).await;
    assert_eq!((exit.status(), exit.is_orderly(), exit.success()), (Status::Signal(9), false, false));
    let exit = exit_of(orderly, Some(3)).await;
    assert_eq!((exit.status(), exit.is_orderly()), (Status::Code(3), false));
    let failed = Words { code: 1, failed: true, ..Words::default() };
    let exit = exit_of(failed.clone(), None).await;
    assert_eq!((exit.status(), exit.failed()), (Status::Signal(9), false));
    let exit = exit_of(failed, Some(0)).await;
    assert_eq!((exit.status(), exit.failed()), (Status::Code(0), false));
    let panic = Some(hatchery::Panic { message: "never".to_owned(), place: None });
    let exit = exit_of(Words { code: 101, panic, ..Words::default() }, Some(0)).await;
    assert_eq!((exit.status(), exit.panic()), (Status::Code(0), None));
}

/// A parent that is a rogue to its own worker; gives how that ended.
#[hatchery::task]
async fn is_a_rogue_parent(misdeed: Misdeed) -> hatchery::Result<Exit> {
    let before = open_sockets();
    let process = Process::spawn(stays, ()).await?;
    let opened = open_sockets().into_iter().find(|number| !before.contains(number));
    // The link is made first, so its number is the lower one.
    let link = opened.and_then(another).ok_or(hatchery::Error::msg("no link"))?;
    commit(link, &misdeed);
    Ok((*ends("the worker", process.wait()).await).clone())
}

#[hatchery::test]
async fn a_worker_whose_parent_breaks_the_protocol_of_the_link_ends_itself() {
    let with = |bytes, descriptors| Misdeed { bytes, descriptors };
    for misdeed in [
        misdeed(vec![0xff; 4096]),
        misdeed(vec![0; 4096]),
        misdeed(link_frame(99, 0, &[])),
        misdeed(link_frame(READY, 0, &[])),
        misdeed(link_frame(INVITATION, 0, &[0xc0])),
        misdeed(last_words(&Words::default())),
        with(link_frame(SHUTDOWN, 1, &[]), 1),
        with(link_frame(SHUTDOWN, 0, &[]), 1),
    ] {
        let shown = format!("{misdeed:?}");
        let parent = Process::spawn(is_a_rogue_parent, misdeed).await.unwrap();
        let exit = ends(&shown, parent.join()).await.unwrap().unwrap();
        // By its own hand: its parent has no reason to name.
        assert_eq!((exit.signal(), exit.reason()), (Some(9), None), "{shown}");
    }
}

/// Runs a program whose workers write this to the link before they come through the door; gives what it says.
fn at_the_door(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("misdeed");
    std::fs::write(&file, bytes).unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_programs"))
        .envs([("PROGRAM", "rogue at the door"), ("PROGRAM_FILE", file.to_str().unwrap())])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&program.stdout).into_owned();
    let pid = said.lines().find_map(|line| line.strip_prefix("worker ")?.parse().ok());
    assert!(pid.is_some_and(|pid| !runs(pid)), "{said}{}", String::from_utf8_lossy(&program.stderr));
    said
}

#[test]
fn a_worker_that_is_a_rogue_before_its_hello_is_an_error_of_the_start() {
    for (bytes, named) in [
        (hello(7, 1), "it is another executable than this program"),
        (hello(7, 2), "it speaks version 2 of the protocol, this program 1"),
        (link_frame(READY, 0, &[]), "unexpected Ready"),
        (link_frame(INVITATION, 0, &[0xc0]), "malformed link frame"),
        (vec![0xff; 100], "over the limit"),
        (last_words(&Words::default()).repeat(2), "unexpected LastWords"),
    ] {
        let said = at_the_door(&bytes);
        let error = said.lines().find_map(|line| line.strip_prefix("error "));
        let error = error.unwrap_or_else(|| panic!("{named}: {said}"));
        assert!(error.contains("it broke the protocol of the link: ") && error.contains(named), "{error}");
    }
    // Half of a hello, and then nothing: the deadline of the start ends it.
    let said = at_the_door(&hello(7, 1)[..20]);
    assert!(said.contains("no hello within"), "{said}");
}
