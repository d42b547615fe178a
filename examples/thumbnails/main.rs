//! Thumbnails of a directory tree, made by a pool of worker processes that may be killed at any moment.
//!
//! ```text
//! cargo run --release --example thumbnails                      # renders samples first
//! cargo run --release --example thumbnails -- DIR --out SMALL
//! cargo run --release --example thumbnails -- --chaos --compare
//! ```

mod args;
mod interrupt;
mod scan;
mod part_file;
mod picture;
mod samples;
mod totals;
mod chaos;
mod report;
mod verify;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hatchery::prelude::*;
use hatchery::{Exit, TaskError};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::args::Args;
use crate::chaos::chaos;
use crate::interrupt::Interrupt;
use crate::picture::{Failure, Thumbnail};
use crate::report::{Kills, Run};
use crate::scan::Picture;
use crate::totals::Totals;

/// How many sample pictures are rendered.
const SAMPLES: usize = 48;
/// How often a picture is tried whose worker died.
const ATTEMPTS: u32 = 20;
/// Under chaos the pictures are done again until so many kills have hit a worker amid one, or …
const ENOUGH_HITS: u64 = 5;
/// … this many times.
const ROUNDS: u32 = 50;
/// How long one picture may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes one thumbnail, in a worker: a decoder that crashes takes no other picture with it.
#[hatchery::task]
fn resize(source: PathBuf, target: PathBuf) -> Result<Thumbnail, Failure> {
    picture::make_thumbnail(&source, &target)
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(args) if args.help => {
            print!("{}", args::USAGE);
            return Ok(());
        }
        Ok(args) => args,
        Err(wrong) => {
            eprintln!("{wrong}");
            std::process::exit(2);
        }
    };
    let interrupt = Interrupt::listen()?;
    let scratch = tempfile::Builder::new().prefix("thumbnails-").tempdir()?;
    // Whatever comes of it: nobody writes there any more, and dropping it removes it.
    job(&args, scratch.path(), &interrupt).await
}

/// Everything from the pictures to the table.
async fn job(args: &Args, scratch: &Path, interrupt: &Interrupt) -> hatchery::Result<()> {
    let out = match (&args.out, &args.dir) {
        (Some(out), _) => out.clone(),
        (None, Some(dir)) => beside(dir)?,
        (None, None) => scratch.join("out"),
    };
    scan::claim_output(&out).map_err(hatchery::Error::msg)?;
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => rendered(scratch.join("samples"), interrupt.clone()).await?,
    };
    let pictures = scan::pictures(&dir, &out).map_err(hatchery::Error::msg)?;
    println!("{} pictures, {} workers", pictures.len(), args.workers);

    let mut runs = vec![run(&pictures, &out, args.workers, args.chaos, interrupt).await?];
    let mut complaints = Vec::new();
    if let Some(kills) = runs[0].kills {
        let (failures, go_on) = (runs[0].failures.clone(), interrupt.clone());
        let out = out.clone();
        complaints =
            blocking(move || verify::complaints(&pictures, &failures, &out, || go_on.check())).await?;
        if kills.amid < ENOUGH_HITS {
            complaints
                .push(format!("fewer than {ENOUGH_HITS} kills hit a worker in the middle of a picture"));
        }
    }
    if args.compare {
        let alone = scratch.join("alone");
        scan::claim_output(&alone).map_err(hatchery::Error::msg)?;
        let pictures = scan::pictures(&dir, &alone).map_err(hatchery::Error::msg)?;
        runs.push(run(&pictures, &alone, 1, false, interrupt).await?);
    }
    if let [one, other] = &runs[..] {
        let sums = |run: &Run| (run.thumbnails, run.bytes_in, run.bytes_out);
        // However many workers there were, and however often a picture was made.
        if one.failures == other.failures && sums(one) != sums(other) {
            complaints.push("the sums of the two runs differ".into());
        }
    }
    // The samples are sound: none of them may fail.
    let sound = args.dir.is_none();
    complaints.extend(runs.iter().flat_map(|run| verify::unexpected(&run.failures, sound)));

    print!("\n{}", report::table(&runs));
    if !out.starts_with(scratch) {
        println!("\nthe thumbnails are in {}", out.display());
    }
    if !complaints.is_empty() {
        return Err(hatchery::Error::msg(format!("not all went well:\n  {}", complaints.join("\n  "))));
    }
    if args.chaos {
        let which = if runs[0].failures.is_empty() { "every" } else { "every other" };
        println!("\n{which} thumbnail is there, whole and of the right size");
    }
    Ok(())
}

/// `pictures-thumbnails` for `pictures`.
fn beside(dir: &Path) -> hatchery::Result<PathBuf> {
    let name =
        dir.file_name().ok_or_else(|| hatchery::Error::msg("say where the thumbnails go: --out DIR"))?;
    let mut name = name.to_owned();
    name.push("-thumbnails");
    Ok(dir.with_file_name(name))
}

/// Renders the samples, on all cores.
async fn rendered(dir: PathBuf, interrupt: Interrupt) -> hatchery::Result<PathBuf> {
    println!("rendering {SAMPLES} sample pictures …");
    blocking(move || samples::render(&dir, SAMPLES, || interrupt.check()).map(|()| dir)).await
}

/// Work that would keep a task from hearing anything else.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> hatchery::Result<T> {
    tokio::task::spawn_blocking(work).await?.map_err(hatchery::Error::msg)
}

/// One run over all pictures: a pool of its own, so that its restarts and its end are its own.
async fn run(
    pictures: &[Picture],
    out: &Path,
    workers: usize,
    with_chaos: bool,
    interrupt: &Interrupt,
) -> hatchery::Result<Run> {
    let begun = Instant::now();
    // Pictures may kill as many workers as they like; but chaos kills some before they are ready, too.
    let pool = Pool::builder().workers(workers).intensity(10_000, Duration::from_secs(60)).start().await?;
    let bar = ProgressBar::new(pictures.len() as u64).with_style(style());
    let (mut totals, mut killed, mut amid) = (Totals::default(), BTreeSet::new(), 0);
    let done = async {
        if !with_chaos {
            return round(&pool, workers, pictures, &mut totals, &mut amid, &bar).await;
        }
        // Again and again, until enough workers were hit amid a picture.
        for _ in 0..ROUNDS {
            bar.reset();
            round(&pool, workers, pictures, &mut totals, &mut amid, &bar).await?;
            if amid >= ENOUGH_HITS {
                break;
            }
        }
        Ok(())
    };
    let done = tokio::select! {
        done = done => done,
        never = chaos(&mut killed), if with_chaos => match never {},
        interrupted = interrupt.heard() => Err(interrupted),
    };
    if done.is_ok() {
        bar.finish_and_clear()
    } else {
        bar.abandon()
    }
    let restarts = pool.stats().workers.iter().map(|worker| worker.restarts).sum();
    // If it has given up, this is where it says why.
    let stopped = pool.shutdown().await;
    let wall = begun.elapsed();
    // What those that were killed left behind; every worker is gone now.
    part_file::remove_leftovers(out).map_err(hatchery::Error::msg)?;
    stopped?;
    done?;
    let summary = totals.summary();
    assert_eq!(summary.thumbnails + summary.failures.len(), pictures.len(), "each counts once");
    Ok(Run {
        workers,
        files: pictures.len(),
        thumbnails: summary.thumbnails,
        failures: summary.failures,
        bytes_in: summary.bytes_in,
        bytes_out: summary.bytes_out,
        restarts,
        kills: with_chaos.then_some(Kills { all: killed.len() as u64, amid }),
        wall,
    })
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_bar} {pos}/{len}  {elapsed}").expect("the template is well-formed")
}

/// Every picture once. Adds up what became of them, and how many workers were killed amid one.
///
/// Dropped early, it ends those that are under way.
async fn round(
    pool: &Pool,
    workers: usize,
    pictures: &[Picture],
    totals: &mut Totals,
    amid: &mut u64,
    bar: &ProgressBar,
) -> hatchery::Result<()> {
    let (mut left, mut under_way) = (pictures.iter(), JoinSet::new());
    loop {
        // One for each worker, and one that waits for it; however many pictures there are.
        while under_way.len() < 2 * workers {
            let Some(picture) = left.next() else { break };
            under_way.spawn(one(pool.clone(), picture.clone()));
        }
        let Some(done) = under_way.join_next().await else { return Ok(()) };
        let Done { name, outcome, hits } = done??;
        totals.done(name, outcome);
        *amid += hits;
        bar.inc(1);
    }
}

/// What became of a picture.
struct Done {
    name: String,
    outcome: Result<Thumbnail, Failure>,
    /// How many workers were killed that had it at hand.
    hits: u64,
}

/// One picture, which is tried again if its worker dies. Not so if it takes too long, or panics: it would do so again.
async fn one(pool: Pool, picture: Picture) -> Result<Done, TaskError> {
    let Picture { name, source, target } = picture;
    let (mut hits, mut attempt) = (0, 1);
    let outcome = loop {
        match pool.submit(resize, (source.clone(), target.clone())).timeout(PATIENCE).await {
            Ok(outcome) => break outcome,
            // The pool has given up: no picture will be done any more.
            Err(error) if error.is_closed() || error.is_init_failed() => return Err(error),
            Err(error) if error.is_worker_died() => {
                hits += u64::from(error.exit().and_then(Exit::signal) == Some(Signal::KILL.as_raw()));
                if attempt == ATTEMPTS {
                    break Err(Failure::Undone(format!("tried {ATTEMPTS} times: {error}")));
                }
                attempt += 1;
            }
            Err(error) => break Err(Failure::Undone(error.to_string())),
        }
    };
    Ok(Done { name, outcome, hits })
}
