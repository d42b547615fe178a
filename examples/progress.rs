//! Shows how a pool gets on while it looks for the longest Collatz sequences: a bar on a terminal, lines elsewhere. Its
//! workers come when there is something to do, and leave afterwards.
//!
//! ```text
//! cargo run --release --example progress
//! cargo run --release --example progress | cat
//! ```

use hatchery::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};

/// Numbers that one task looks at.
const PIECE: u64 = 20_000;
/// Tasks.
const PIECES: u64 = 200;

/// The number of a piece whose Collatz sequence is the longest, and how long that is.
#[hatchery::task]
fn longest(piece: u64) -> (u64, u32) {
    let steps = |mut n: u64| {
        let mut steps = 0;
        while n > 1 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    };
    let numbers = piece * PIECE + 1..=(piece + 1) * PIECE;
    numbers.map(|n| (n, steps(n))).max_by_key(|(_, steps)| *steps).unwrap_or_default()
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let pool =
        Pool::builder().workers(4).min_workers(1).idle_timeout(Duration::from_millis(200)).start().await?;
    let follows = tokio::spawn(follow(pool.progress()));

    let pieces = pool.map(longest, 0..PIECES).chunk_size(1).await?;
    let (number, steps) = pieces.into_iter().max_by_key(|(_, steps)| *steps).unwrap_or_default();

    let stats = pool.stats();
    pool.shutdown().await?; // with the pool, its progress ends
    follows.await.map_err(hatchery::Error::msg)?;
    println!("up to {}, {number} takes longest: {steps} steps\n{stats}", PIECE * PIECES);
    Ok(())
}

/// Shows what it is told until there is no more.
async fn follow(mut progress: hatchery::ProgressStream) {
    let style = "{bar:40} {pos}/{len} {elapsed}  {msg}";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(PIECES).with_style(style);
    let mut told = 0;
    while let Some(now) = progress.next().await {
        bar.set_position(now.finished());
        bar.set_message(format!("{} waiting, {} with {} workers", now.waiting, now.given, now.workers));
        // Without a terminal there is no bar: a line for each tenth.
        let tenths = 10 * now.finished() / PIECES;
        if bar.is_hidden() && tenths > told {
            println!("{tenths}0 %: {} of {PIECES}, {} workers", now.finished(), now.workers);
            told = tenths;
        }
    }
    bar.finish_and_clear();
}
