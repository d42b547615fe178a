//! Has a pool of worker processes do sums, some of which kill their worker, and shows what that costs.
//!
//! ```text
//! cargo run --release --example pool
//! ```

use hatchery::prelude::*;

#[hatchery::task]
fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::task]
fn multiply(x: u64, y: u64) -> u64 {
    x * y
}

#[hatchery::task]
fn hello() {
    println!("starting {}", hatchery::current().name());
}

/// Aborts at 13 and its multiples, as a bug in a C library would.
#[hatchery::task]
fn unlucky(x: u64) -> u64 {
    if x % 13 == 0 {
        std::process::abort()
    }
    x
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let pool =
        Pool::builder().workers(4).initializer(hello, ()).max_tasks_per_worker(100_000).start().await?;

    let outputs: Vec<u64> = pool.map(square, 0..10).await?; // in order
    println!("squares: {outputs:?}");
    let product = pool.submit(multiply, (7, 7)); // a job: a future
    assert_eq!(product.await?, 49);

    let mut squares =
        pool.map(square, 0..100_000).chunk_size(64).timeout(Duration::from_secs(5)).retries(2).unordered();
    let mut sum = 0;
    while let Some(result) = squares.next().await {
        sum += result?;
    }
    println!("the sum of 100,000 squares: {sum}");

    // Six of these kill their worker. That costs six results, although they travel in chunks.
    let results = pool.map(unlucky, 1..=80).chunk_size(20).each().await;
    let failed: Vec<u64> =
        (1..).zip(&results).filter(|(_, result)| result.is_err()).map(|(x, _)| x).collect();
    println!("failed: {failed:?}");
    assert_eq!(failed, [13, 26, 39, 52, 65, 78]);
    if let Some(Err(error)) = results.get(12) {
        assert!(error.is_worker_died());
        println!("{error}");
    }

    let stats = pool.stats();
    println!("{} tasks done, {} failed", stats.done, stats.failed);
    pool.close(); // no more tasks
    pool.join().await // everything done, workers gone
}
