//! Thumbnails of a directory tree, made by supervised worker processes that may be killed at any moment.
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

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hatchery::prelude::*;
use hatchery::{CallError, Exit};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::Signal;

use crate::args::Args;
use crate::chaos::chaos;
use crate::interrupt::Interrupt;
use crate::picture::Failure;
use crate::report::{Kills, Run};
use crate::scan::Picture;
use crate::totals::{Summary, Totals, TotalsHandle};

/// How many sample pictures are rendered.
const SAMPLES: usize = 48;
/// How often a picture is sent whose worker died.
const ATTEMPTS: u32 = 20;
/// Under chaos the pictures are done again until so many kills have hit a worker amid one, or …
const ENOUGH_HITS: u64 = 5;
/// … this many times.
const ROUNDS: u32 = 50;
/// How long one picture may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes one thumbnail at a time, in a process of its own: a decoder that crashes takes nothing else with it.
struct Resizer {
    /// Another worker, which it speaks to itself: what becomes of a picture does not go through the root.
    totals: TotalsHandle,
}

#[hatchery::actor]
impl Resizer {
    fn start(totals: TotalsHandle) -> Self {
        Resizer { totals }
    }

    /// Makes a thumbnail, or finds that it cannot, and has that counted; then it answers.
    async fn resize(&mut self, name: String, source: PathBuf, target: PathBuf) -> hatchery::Result<()> {
        let outcome = picture::make_thumbnail(&source, &target);
        Ok(self.totals.done(name, outcome).await?)
    }

    /// How many it had before it in its seat.
    fn predecessors(&self) -> u64 {
        hatchery::current().incarnation() - 1
    }
}

/// A picture on its way, with how often it has been sent.
struct Errand {
    picture: Picture,
    attempt: u32,
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

/// One run over all pictures: a tree of its own, so that its restarts and its end are its own.
async fn run(
    pictures: &[Picture],
    out: &Path,
    workers: usize,
    chaos: bool,
    interrupt: &Interrupt,
) -> hatchery::Result<Run> {
    // Pictures may kill their workers, each of them as often as it is sent, and chaos kills some more.
    let tree =
        Supervisor::new(Strategy::OneForOne).intensity(10_000, Duration::from_secs(60)).start().await?;
    let begun = Instant::now();
    let bar = ProgressBar::new(pictures.len() as u64).with_style(style());
    let done = tokio::select! {
        done = all_done(&tree, pictures, workers, chaos, &bar) => done,
        interrupted = interrupt.heard() => Err(interrupted),
    };
    if done.is_ok() {
        bar.finish_and_clear()
    } else {
        bar.abandon()
    }
    // The workers finish the picture they are at and leave. If the tree has given up, this is where it says why.
    let stopped = tree.stop().await;
    let wall = begun.elapsed();
    // What those that were killed left behind; every worker is gone now.
    part_file::remove_leftovers(out).map_err(hatchery::Error::msg)?;
    stopped?;
    let Done { summary, restarts, kills } = done?;
    Ok(Run {
        workers,
        files: pictures.len(),
        thumbnails: summary.thumbnails,
        failures: summary.failures,
        bytes_in: summary.bytes_in,
        bytes_out: summary.bytes_out,
        restarts,
        kills,
        wall,
    })
}

/// What a tree knows when all pictures are done.
struct Done {
    summary: Summary,
    restarts: u64,
    kills: Option<Kills>,
}

async fn all_done(
    tree: &Tree,
    pictures: &[Picture],
    workers: usize,
    with_chaos: bool,
    bar: &ProgressBar,
) -> hatchery::Result<Done> {
    let totals = tree.start_child(worker::<Totals>("totals", ())).await?;
    // What it has counted dies with it. A pinned handle never reaches a successor that would begin at nothing.
    let totals = totals.pinned().ok_or_else(|| hatchery::Error::msg("the totals ended at once"))?;
    let mut resizers = Vec::new();
    for n in 1..=workers {
        let resizer = worker::<Resizer>(format!("resizer-{n}"), totals.clone());
        resizers.push(tree.start_child(resizer).await?);
    }
    let kills = if with_chaos {
        let mut killed = BTreeSet::new();
        let amid = tokio::select! {
            hits = rounds_amid_chaos(pictures, &totals, &resizers, bar) => hits?,
            never = chaos(&resizers, &mut killed) => match never {},
        };
        Some(Kills { all: killed.len() as u64, amid })
    } else {
        round(pictures, &totals, &resizers, bar).await?;
        None
    };
    let mut restarts = 0;
    for resizer in &resizers {
        restarts += predecessors(resizer).await?;
    }
    let summary = totals.summary().await?;
    assert_eq!(summary.thumbnails + summary.failures.len(), pictures.len(), "each counts once");
    Ok(Done { summary, restarts, kills })
}

/// How many incarnations a seat has had before the present one, or before the next if it is vacant.
async fn predecessors(resizer: &ResizerHandle) -> hatchery::Result<u64> {
    loop {
        match resizer.predecessors().await {
            // It ended just before. How often this can happen, the tree's intensity says.
            Err(error) if error.is_crash() || error.is_stopping() => {}
            answer => return Ok(answer?),
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_bar} {pos}/{len}  {elapsed}").expect("the template is well-formed")
}

/// All pictures again and again, until enough workers were hit amid one; how many that were.
async fn rounds_amid_chaos(
    pictures: &[Picture],
    totals: &TotalsHandle,
    resizers: &[ResizerHandle],
    bar: &ProgressBar,
) -> hatchery::Result<u64> {
    let mut hits = 0;
    for _ in 0..ROUNDS {
        bar.reset();
        hits += round(pictures, totals, resizers, bar).await?;
        if hits >= ENOUGH_HITS {
            break;
        }
    }
    Ok(hits)
}

/// Every picture once: keeps every resizer busy until nothing is left. How many were killed amid a picture.
async fn round(
    pictures: &[Picture],
    totals: &TotalsHandle,
    resizers: &[ResizerHandle],
    bar: &ProgressBar,
) -> hatchery::Result<u64> {
    let errands = pictures.iter().map(|picture| Errand { picture: picture.clone(), attempt: 1 });
    let queue: Queue = Arc::new(Mutex::new(errands.collect()));
    let mut hands = tokio::task::JoinSet::new();
    for resizer in resizers {
        hands.spawn(feed(resizer.clone(), queue.clone(), totals.clone(), bar.clone()));
    }
    let mut hits = 0;
    while let Some(hit) = hands.join_next().await {
        hits += hit??;
    }
    Ok(hits)
}

type Queue = Arc<Mutex<VecDeque<Errand>>>;

/// Sends one picture after the other to one resizer, which has it counted. A picture whose worker died goes back into the
/// queue, and is counted here if it does so too often.
///
/// How often that was a kill. Each was of another incarnation: there is one request at a time, and one that waits for
/// the next incarnation is not the old one's.
async fn feed(
    resizer: ResizerHandle,
    queue: Queue,
    totals: TotalsHandle,
    bar: ProgressBar,
) -> hatchery::Result<u64> {
    let queue = || queue.lock().expect("nobody panics with it");
    let next = || queue().pop_front();
    let mut hits = 0;
    while let Some(mut errand) = next() {
        let Picture { name, source, target } = errand.picture.clone();
        let undone = match resizer.resize(name.clone(), source, target).timeout(PATIENCE).await {
            Ok(()) => None,
            // The tree has given up: no picture will be done any more.
            Err(error) if error.is_closed() => return Err(error.into()),
            // It could not be counted: no sum would be right.
            Err(error) if error.handler_error().is_some() => return Err(error.into()),
            Err(error) if error.is_crash() || error.is_stopping() => {
                hits += u64::from(killed_amid_it(&error));
                if errand.attempt < ATTEMPTS {
                    errand.attempt += 1;
                    queue().push_back(errand);
                    continue;
                }
                Some(format!("sent {ATTEMPTS} times: {error}"))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = undone {
            totals.done(name, Err(Failure::Undone(reason))).await?;
        }
        bar.inc(1);
    }
    Ok(hits)
}

/// Whether the worker was killed when it had this picture: not while it waited for one, or started.
fn killed_amid_it(error: &CallError<hatchery::Error>) -> bool {
    error.maybe_executed() && error.exit().and_then(Exit::signal) == Some(Signal::KILL.as_raw())
}
