//! Tasks on two workers of a pool: many tiny ones in chunks, many tiny ones alone, one after the other, and large ones.
//!
//! The rulers: a loop written by hand over two worker sockets, with the same chunks, whose worker is a bare thread that
//! squares numbers, with nothing but their eight bytes on the wire or with MessagePack in both directions; and Python's
//! `multiprocessing.Pool`, if `python3` is there.
//!
//! Some lines are measured once more in a program whose root has one thread (`flavor = "current_thread"`), which is what it
//! takes to hand a task to a worker without waking another thread first.
//!
//! With `--only NAME` one line is measured over and over, for a profiler to look at.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use hatchery::prelude::*;
use hatchery::{Flavor, TaskError};

#[hatchery::task]
fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::task]
fn same(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[hatchery::task]
fn spin_10_ms(_: u64) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(10) {
        std::hint::spin_loop();
    }
}

const WORKERS: usize = 2;

/// The same in Python; prints seconds, in the order of the lines below.
const PYTHON: &str = r#"
import multiprocessing, time
def square(x): return x * x
def same(b): return b
def timed(what, times):
    taken = []
    for _ in range(times):
        begun = time.perf_counter(); what(); taken.append(time.perf_counter() - begun)
    print(sorted(taken)[len(taken) // 2])
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        pool.map(square, range(1000))
        timed(lambda: pool.map(square, range(100000)), 9)
        timed(lambda: pool.map(square, range(10000), chunksize=1), 9)
        timed(lambda: pool.apply(square, (7,)), 300)
        timed(lambda: [job.get() for job in [pool.apply_async(square, (7,)) for _ in range(10000)]], 9)
        for size, times in ((1 << 20, 30), (64 << 20, 3)):
            data = bytes(size)
            timed(lambda: pool.apply(same, (data,)), times)
    def process():
        here, there = multiprocessing.Pipe()
        started = multiprocessing.Process(target=there.send, args=(1,))
        started.start(); here.recv(); started.join()
    timed(process, 30)
"#;

fn main() {
    let flavor = if is_one_thread() { Flavor::CurrentThread } else { Flavor::MultiThread };
    hatchery::program().flavor(flavor).run(figures)
}

/// Has a few lines measured on a root of one thread, and printed as seconds.
const ONE_THREAD: &str = "--one-thread";

fn is_one_thread() -> bool {
    std::env::args().any(|arg| arg == ONE_THREAD)
}

/// The median of so many.
async fn timed<T, F: Future<Output = Result<T, TaskError>>>(
    times: usize,
    mut what: impl FnMut() -> F,
) -> Result<Duration, TaskError> {
    let mut taken = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        what().await?;
        taken.push(begun.elapsed());
    }
    taken.sort_unstable();
    Ok(taken[times / 2])
}

async fn figures() -> hatchery::Result<()> {
    let whole = std::env::args().any(|arg| arg == "--bench") && !std::env::args().any(|arg| arg == "--test");
    let scale = if whole { 1 } else { 10 };
    let (many, alone) = (100_000 / scale, 10_000 / scale);
    let one_thread = is_one_thread();
    let (python, beside) = if whole && !one_thread { (python(), on_one_thread()) } else { (None, None) };
    if python.is_none() && !one_thread {
        println!("no figures of Python: python3 is not there, or this is a short round");
    }
    let pool = Pool::builder().workers(WORKERS).start().await?;
    let pool = &pool;
    pool.map(square, 0..1_000).await?;

    let only = std::env::args().skip_while(|arg| arg != "--only").nth(1);
    if let Some(only) = only {
        return again_and_again(pool, &only).await;
    }
    let map = timed(9, || async { pool.map(square, 0..many).await }).await?;
    let single = timed(9, || async { pool.map(square, 0..alone).chunk_size(1).await }).await?;
    let one = timed(300, || async { pool.submit(square, 7).await }).await?;
    if one_thread {
        [map, single, one].iter().for_each(|took| println!("{}", took.as_secs_f64()));
        return pool.shutdown().await;
    }
    let chunks = timed(9, || async { pool.map(square, 0..many).chunk_size(4096).await }).await?;
    let at_once = timed(9, || at_once(pool, alone)).await?;
    let one_mib = there_and_back(pool, 1 << 20, 30).await?;
    let many_mib = there_and_back(pool, 64 << 20, 3).await?;
    let busy = timed(3, || async { pool.map(spin_10_ms, 0..40).await }).await?;
    let replaced = replaced(30 / scale as usize).await?;

    let (packed, bare) = (by_hand::<Packed>(many, 4096)?, by_hand::<Bare>(many, 4096)?);
    let (packed_alone, bare_alone) = (by_hand::<Packed>(alone, 1)?, by_hand::<Bare>(alone, 1)?);
    let (raw_mib, raw_large) = (raw(1 << 20, 30)?, raw(64 << 20, 3)?);

    let python = |line: usize| python.as_ref().and_then(|lines| lines.get(line).copied());
    println!("\n{:34} {:>12} {:>12} {:>12}", "", "hatchery", "by hand", "Python");
    row("map of many squares", map, Some(packed), python(0));
    row("the same, chunks of 4096", chunks, Some(packed), python(0));
    row("the same, beside bare bytes", chunks, Some(bare), None);
    row("map with chunks of one", single, Some(packed_alone), python(1));
    row("the same, beside bare bytes", single, Some(bare_alone), None);
    row("one after the other", one, None, python(2));
    let beside = |line: usize| beside.as_ref().and_then(|lines| lines.get(line).copied());
    for (what, line, ruler) in [
        ("map of many squares", 0, Some(packed)),
        ("with chunks of one", 1, Some(packed_alone)),
        ("one after the other", 2, None),
    ] {
        if let Some(took) = beside(line) {
            row(&format!("one thread: {what}"), took, ruler, python(line));
        }
    }
    row("submitted one by one, all at once", at_once, None, python(3));
    row("1 MiB there and back", one_mib, Some(raw_mib), python(4));
    row("64 MiB there and back", many_mib, Some(raw_large), python(5));
    row("worker killed, next one answers", replaced, None, python(6));
    println!(
        "(Python's figure of the last line is that of a process: its pool looks for dead workers every 100 ms.)"
    );
    println!("40 tasks of 10 ms on {WORKERS} workers: {:.2} × ideal", 0.2 / busy.as_secs_f64());
    pool.shutdown().await
}

fn row(what: &str, own: Duration, ruler: Option<Duration>, python: Option<Duration>) {
    let shown = |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{time:.1?}"));
    let times = |other: Option<Duration>| {
        other.map_or("-".to_owned(), |other| format!("{:.2}", own.as_secs_f64() / other.as_secs_f64()))
    };
    println!(
        "{what:34} {:>12} {:>12} {:>12}   {} × by hand, {} × Python",
        shown(Some(own)),
        shown(ruler),
        shown(python),
        times(ruler),
        times(python)
    );
}

/// What Python takes, if it is there.
fn python() -> Option<Vec<Duration>> {
    // Its workers find the functions in a file.
    let file = std::env::temp_dir().join(format!("hatchery-pool-{}.py", std::process::id()));
    std::fs::write(&file, PYTHON).ok()?;
    let taken = seconds(Command::new("python3").arg(&file));
    let _ = std::fs::remove_file(&file);
    taken
}

/// What a root of one thread takes.
fn on_one_thread() -> Option<Vec<Duration>> {
    seconds(Command::new(std::env::current_exe().ok()?).args(["--bench", ONE_THREAD]))
}

/// What a program has measured.
fn seconds(program: &mut Command) -> Option<Vec<Duration>> {
    let lines = String::from_utf8(program.output().ok()?.stdout).ok()?;
    Some(lines.lines().filter_map(|line| line.parse().ok()).map(Duration::from_secs_f64).collect())
}

/// One line of the table, again and again.
async fn again_and_again(pool: &Pool, only: &str) -> hatchery::Result<()> {
    for _ in 0..5 {
        let took = match only {
            "map" => timed(100, || async { pool.map(square, 0..100_000).await }).await?,
            "chunks" => timed(100, || async { pool.map(square, 0..100_000).chunk_size(4096).await }).await?,
            "ones" => timed(9, || async { pool.map(square, 0..10_000).chunk_size(1).await }).await?,
            "one" => timed(1_000, || async { pool.submit(square, 7).await }).await?,
            "mib" => there_and_back(pool, 1 << 20, 100).await?,
            "large" => there_and_back(pool, 64 << 20, 5).await?,
            "busy" => timed(3, || async { pool.map(spin_10_ms, 0..40).await }).await?,
            other => return Err(hatchery::Error::msg(format!("there is no line {other}"))),
        };
        println!("{only}: {took:.1?}");
    }
    Ok(())
}

/// So many tasks, each submitted by itself, and none waited for before all are.
async fn at_once(pool: &Pool, count: u64) -> Result<(), TaskError> {
    let jobs: Vec<_> = (0..count).map(|x| pool.submit(square, x)).collect();
    for job in jobs {
        job.await?;
    }
    Ok(())
}

/// So many bytes to a worker and back. To have them is not part of it.
async fn there_and_back(pool: &Pool, size: usize, times: usize) -> Result<Duration, TaskError> {
    let mut taken = Vec::new();
    for _ in 0..times {
        let bytes = vec![7_u8; size];
        let begun = Instant::now();
        let back = pool.submit(same, bytes).await?;
        taken.push(begun.elapsed());
        assert_eq!(back.len(), size);
    }
    taken.sort_unstable();
    Ok(taken[times / 2])
}

#[hatchery::task]
fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_pid()
}

/// From SIGKILL to the only worker of a pool to what the next one answers.
async fn replaced(times: usize) -> hatchery::Result<Duration> {
    let pool = Pool::builder().workers(1).intensity(1_000, Duration::from_secs(60)).start().await?;
    let mut taken = Vec::new();
    for _ in 0..times.max(1) {
        let pid = pool.submit(own_pid, ()).await?;
        let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| hatchery::Error::msg("no pid"))?;
        let begun = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        // One that is given to the worker before its death is known fails.
        while pool.submit(own_pid, ()).await.is_err() {}
        taken.push(begun.elapsed());
    }
    taken.sort_unstable();
    pool.shutdown().await?;
    Ok(taken[taken.len() / 2])
}

/// How numbers lie on the wire.
trait Wire {
    fn encode(numbers: &[u64]) -> hatchery::Result<Vec<u8>>;
    fn decode(bytes: &[u8]) -> hatchery::Result<Vec<u64>>;
}

/// As their eight bytes each.
struct Bare;

impl Wire for Bare {
    fn encode(numbers: &[u64]) -> hatchery::Result<Vec<u8>> {
        Ok(numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    fn decode(bytes: &[u8]) -> hatchery::Result<Vec<u64>> {
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        Ok(bytes.chunks_exact(8).map(number).collect())
    }
}

/// As an array in MessagePack.
struct Packed;

impl Wire for Packed {
    fn encode(numbers: &[u64]) -> hatchery::Result<Vec<u8>> {
        Ok(rmp_serde::to_vec(numbers)?)
    }

    fn decode(bytes: &[u8]) -> hatchery::Result<Vec<u64>> {
        Ok(rmp_serde::from_slice(bytes)?)
    }
}

/// Two sockets with a thread behind each, which squares what comes, in chunks.
fn by_hand<W: Wire>(count: u64, chunk: usize) -> hatchery::Result<Duration> {
    let mut taken = Vec::new();
    for _ in 0..9 {
        let mut peers = [peer::<W>()?, peer::<W>()?];
        let inputs: Vec<u64> = (0..count).collect();
        let begun = Instant::now();
        let mut results: Vec<u64> = Vec::with_capacity(inputs.len());
        // Each has a chunk, and one more before it has answered.
        let chunks: Vec<&[u64]> = inputs.chunks(chunk).collect();
        for (index, chunk) in chunks.iter().take(4).enumerate() {
            send::<W>(&mut peers[index % 2], chunk)?;
        }
        for (index, chunk) in chunks.iter().enumerate() {
            let peer = &mut peers[index % 2];
            results.extend(receive::<W>(peer)?.unwrap_or_default());
            if let Some(next) = chunks.get(index + 4) {
                send::<W>(peer, next)?;
            }
            assert!(results.len() >= chunk.len());
        }
        taken.push(begun.elapsed());
    }
    taken.sort_unstable();
    Ok(taken[taken.len() / 2])
}

fn peer<W: Wire>() -> hatchery::Result<UnixStream> {
    let (here, mut there) = UnixStream::pair()?;
    std::thread::spawn(move || {
        while let Ok(Some(mut numbers)) = receive::<W>(&mut there) {
            numbers.iter_mut().for_each(|x| *x *= *x);
            if send::<W>(&mut there, &numbers).is_err() {
                return;
            }
        }
    });
    Ok(here)
}

fn send<W: Wire>(peer: &mut UnixStream, chunk: &[u64]) -> hatchery::Result<()> {
    let numbers = W::encode(chunk)?;
    let mut bytes = Vec::with_capacity(numbers.len() + 4);
    bytes.extend_from_slice(&(numbers.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&numbers);
    Ok(peer.write_all(&bytes)?)
}

/// The next chunk; none if there will be no more.
fn receive<W: Wire>(peer: &mut UnixStream) -> hatchery::Result<Option<Vec<u64>>> {
    let mut head = [0; 4];
    if peer.read_exact(&mut head).is_err() {
        return Ok(None);
    }
    let mut bytes = vec![0; u32::from_le_bytes(head) as usize];
    peer.read_exact(&mut bytes)?;
    W::decode(&bytes).map(Some)
}

/// So many bytes through a socket and back, by a thread that reads all of them first.
fn raw(size: usize, times: usize) -> hatchery::Result<Duration> {
    let (mut here, mut there) = UnixStream::pair()?;
    std::thread::spawn(move || {
        let mut room = vec![0; size];
        while there.read_exact(&mut room).is_ok() && there.write_all(&room).is_ok() {}
    });
    let (data, mut room) = (vec![7; size], vec![0; size]);
    let mut taken = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        here.write_all(&data)?;
        here.read_exact(&mut room)?;
        taken.push(begun.elapsed());
    }
    taken.sort_unstable();
    Ok(taken[times / 2])
}
