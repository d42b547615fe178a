//! Tasks on two workers of a pool: many tiny ones in chunks, many tiny ones alone, one after the other, and large ones.
//!
//! The rulers: a loop written by hand over two worker sockets, with the same chunks, whose worker is a bare thread that
//! squares numbers; and Python's `multiprocessing.Pool`, if `python3` is there.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use hatchery::TaskError;
use hatchery::prelude::*;

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
        for size, times in ((1 << 20, 30), (64 << 20, 3)):
            data = bytes(size)
            timed(lambda: pool.apply(same, (data,)), times)
"#;

fn main() {
    hatchery::program().run(figures)
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
    let python = if whole { python() } else { None };
    if python.is_none() {
        println!("no figures of Python: python3 is not there, or this is a short round");
    }
    let pool = Pool::builder().workers(WORKERS).start().await?;
    let pool = &pool;
    pool.map(square, 0..1_000).await?;

    if let Ok(only) = std::env::var("ONLY") {
        for _ in 0..5 {
            let t = match only.as_str() {
                "map" => timed(100, || async { pool.map(square, 0..many).await }).await?,
                "chunks" => timed(100, || async { pool.map(square, 0..many).chunk_size(4096).await }).await?,
                "ones" => timed(9, || async { pool.map(square, 0..alone).chunk_size(1).await }).await?,
                "mib" => { let mib = vec![7_u8; 1 << 20]; timed(100, || async { pool.submit(same, mib.clone()).await }).await? }
                "large" => { let mib = vec![7_u8; 64 << 20]; timed(5, || async { pool.submit(same, mib.clone()).await }).await? }
                _ => timed(3, || async { pool.map(spin_10_ms, 0..40).await }).await?,
            };
            println!("{only} {t:?}");
        }
        return pool.shutdown().await;
    }
    let map = timed(9, || async { pool.map(square, 0..many).await }).await?;
    let chunks = timed(9, || async { pool.map(square, 0..many).chunk_size(4096).await }).await?;
    let single = timed(9, || async { pool.map(square, 0..alone).chunk_size(1).await }).await?;
    let one = timed(300, || async { pool.submit(square, 7).await }).await?;
    let mib = vec![7_u8; 1 << 20];
    let one_mib = timed(30, || async { pool.submit(same, mib.clone()).await }).await?;
    let large = vec![7_u8; 64 << 20];
    let many_mib = timed(3, || async { pool.submit(same, large.clone()).await }).await?;
    let busy = timed(3, || async { pool.map(spin_10_ms, 0..40).await }).await?;

    let by_hand = by_hand(many, 4096)?;
    let by_hand_alone = by_hand_alone(alone)?;
    let (raw_mib, raw_large) = (raw(1 << 20, 30)?, raw(64 << 20, 3)?);

    let python = |line: usize| python.as_ref().and_then(|lines| lines.get(line).copied());
    println!("\n{:34} {:>12} {:>12} {:>12}", "", "hatchery", "by hand", "Python");
    row("map of many squares", map, Some(by_hand), python(0));
    row("the same, chunks of 4096", chunks, Some(by_hand), python(0));
    row("map with chunks of one", single, Some(by_hand_alone), python(1));
    row("one after the other", one, None, python(2));
    row("1 MiB there and back", one_mib, Some(raw_mib), python(3));
    row("64 MiB there and back", many_mib, Some(raw_large), python(4));
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
    let output = Command::new("python3").arg(&file).output();
    let _ = std::fs::remove_file(&file);
    let lines = String::from_utf8(output.ok()?.stdout).ok()?;
    Some(lines.lines().filter_map(|line| line.parse().ok()).map(Duration::from_secs_f64).collect())
}

/// Two sockets with a thread behind each, which squares what comes: numbers of eight bytes, in chunks.
fn by_hand(count: u64, chunk: usize) -> hatchery::Result<Duration> {
    let mut taken = Vec::new();
    for _ in 0..9 {
        let mut peers = [peer(chunk)?, peer(chunk)?];
        let inputs: Vec<u64> = (0..count).collect();
        let begun = Instant::now();
        let mut results: Vec<u64> = Vec::with_capacity(inputs.len());
        // Each has a chunk, and one more before it has answered.
        let chunks: Vec<&[u64]> = inputs.chunks(chunk).collect();
        for (index, chunk) in chunks.iter().take(4).enumerate() {
            send(&mut peers[index % 2], chunk)?;
        }
        for (index, chunk) in chunks.iter().enumerate() {
            let peer = &mut peers[index % 2];
            receive(peer, chunk.len(), &mut results)?;
            if let Some(next) = chunks.get(index + 4) {
                send(peer, next)?;
            }
        }
        taken.push(begun.elapsed());
    }
    taken.sort_unstable();
    Ok(taken[taken.len() / 2])
}

fn by_hand_alone(count: u64) -> hatchery::Result<Duration> {
    by_hand(count, 1)
}

fn peer(chunk: usize) -> hatchery::Result<UnixStream> {
    let (here, mut there) = UnixStream::pair()?;
    std::thread::spawn(move || {
        let mut room = vec![0; chunk * 8];
        let mut head = [0; 4];
        while there.read_exact(&mut head).is_ok() {
            let bytes = &mut room[..u32::from_le_bytes(head) as usize];
            if there.read_exact(bytes).is_err() {
                return;
            }
            for number in bytes.chunks_exact_mut(8) {
                let x = u64::from_le_bytes(number.try_into().unwrap_or_default());
                number.copy_from_slice(&(x * x).to_le_bytes());
            }
            if there.write_all(bytes).is_err() {
                return;
            }
        }
    });
    Ok(here)
}

fn send(peer: &mut UnixStream, chunk: &[u64]) -> hatchery::Result<()> {
    let mut bytes = Vec::with_capacity(chunk.len() * 8 + 4);
    bytes.extend_from_slice(&(chunk.len() as u32 * 8).to_le_bytes());
    chunk.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
    Ok(peer.write_all(&bytes)?)
}

fn receive(peer: &mut UnixStream, count: usize, into: &mut Vec<u64>) -> hatchery::Result<()> {
    let mut bytes = vec![0; count * 8];
    peer.read_exact(&mut bytes)?;
    into.extend(
        bytes.chunks_exact(8).map(|number| u64::from_le_bytes(number.try_into().unwrap_or_default())),
    );
    Ok(())
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
