//! Thumbnails of a directory tree, made by supervised worker processes that may be killed at any moment.
//!
//! ```text
//! cargo run --release --example thumbnails                      # renders samples first
//! cargo run --release --example thumbnails -- DIR --out SMALL
//! cargo run --release --example thumbnails -- --chaos --compare
//! ```

mod args;
mod part_file;
mod picture;
mod report;
mod samples;
mod scan;
mod verify;

mod chaos;
mod totals;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hatchery::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};

use crate::chaos::Chaos;
use crate::picture::Thumbnail;
use crate::report::{Kills, Run};
use crate::scan::Picture;
use crate::totals::{Totals, TotalsHandle};

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
struct Resizer;

#[hatchery::actor]
impl Resizer {
    fn start() -> Self {
        Resizer
    }

    fn resize(&mut self, source: PathBuf, target: PathBuf) -> Result<Thumbnail, String> {
        picture::make_thumbnail(&source, &target)
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
    let scratch = tempfile::Builder::new().prefix("thumbnails-").tempdir()?;
    let out = match (&args.out, &args.dir) {
        (Some(out), _) => out.clone(),
        (None, Some(dir)) => beside(dir)?,
        (None, None) => scratch.path().join("out"),
    };
    scan::claim_output(&out).map_err(hatchery::Error::msg)?;
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => rendered(&scratch.path().join("samples"))?,
    };
    let pictures = scan::pictures(&dir, &out).map_err(hatchery::Error::msg)?;
    println!("{} pictures, {} workers", pictures.len(), args.workers);

    let mut runs = vec![run(&pictures, args.workers, args.chaos).await?];
    let mut complaints = Vec::new();
    if args.chaos {
        let failures = runs[0].failures.iter().cloned().collect();
        complaints = verify::complaints(&pictures, &failures, &out);
        if runs[0].kills.unwrap_or_default().amid < ENOUGH_HITS {
            complaints
                .push(format!("fewer than {ENOUGH_HITS} kills hit a worker in the middle of a picture"));
        }
    }
    if args.compare {
        let alone = scratch.path().join("alone");
        scan::claim_output(&alone).map_err(hatchery::Error::msg)?;
        runs.push(run(&scan::pictures(&dir, &alone).map_err(hatchery::Error::msg)?, 1, false).await?);
    }
    print!("\n{}", report::table(&runs));
    if !out.starts_with(scratch.path()) {
        println!("\nthe thumbnails are in {}", out.display());
    }
    if args.chaos && complaints.is_empty() {
        println!("\nevery thumbnail is there, whole and of the right size");
    }
    if !complaints.is_empty() {
        return Err(hatchery::Error::msg(format!("chaos won:\n  {}", complaints.join("\n  "))));
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
fn rendered(dir: &Path) -> hatchery::Result<PathBuf> {
    println!("rendering {SAMPLES} sample pictures …");
    samples::render(dir, SAMPLES).map_err(hatchery::Error::msg)?;
    Ok(dir.to_owned())
}

/// One run over all pictures: a tree of its own, so that its restarts and its end are its own.
async fn run(pictures: &[Picture], workers: usize, chaos: bool) -> hatchery::Result<Run> {
    let mut supervisor = Supervisor::new(Strategy::OneForOne);
    if chaos {
        supervisor = supervisor.intensity(10_000, Duration::from_secs(60));
    }
    let tree = supervisor.start().await?;
    let totals = tree.start_child(local::<Totals>("totals", ())).await?;
    let mut resizers = Vec::new();
    for n in 1..=workers {
        resizers.push(tree.start_child(worker::<Resizer>(format!("resizer-{n}"), ())).await?);
    }

    let begun = Instant::now();
    let chaos = chaos.then(|| Chaos::begin(resizers.clone()));
    let bar = ProgressBar::new(pictures.len() as u64).with_style(style());
    // Ctrl-C: the workers finish the picture they are at and leave.
    let mut until_signal = tokio::spawn({
        let tree = tree.clone();
        async move { tree.run_until_signal().await }
    });
    let mut pids = BTreeSet::new();
    let mut hits = 0;
    for _ in 0..ROUNDS {
        let round = Round::new(pictures, totals.clone(), bar.clone());
        let over = tokio::select! {
            over = round.done_by(&resizers) => over,
            ended = &mut until_signal => Err(stopped(&bar, ended?)),
        };
        let over = match over {
            // Its tree was stopping while it asked: why, the tree knows.
            Err(error) if error.is_closed() || error.is_stopping() => {
                Err(stopped(&bar, (&mut until_signal).await?))
            }
            over => over,
        }?;
        hits += over.hits;
        pids.extend(over.pids);
        if chaos.is_none() || hits >= ENOUGH_HITS {
            break;
        }
        bar.reset();
    }
    bar.finish_and_clear();
    let kills = chaos.map(|chaos| Kills { all: chaos.end(), amid: hits });
    let restarts = resizers.iter().filter_map(AnyHandle::incarnation).map(|n| n - 1).sum();
    let summary = totals.summary().await?;
    tree.stop().await?;
    let wall = begun.elapsed();

    if kills.is_some() {
        let out = pictures.first().and_then(output_root);
        for pid in pids {
            part_file::remove_leftovers(&out.clone().unwrap_or_default(), pid)
                .map_err(hatchery::Error::msg)?;
        }
    }
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

/// The run is over before its time: stopped, or given up.
fn stopped(bar: &ProgressBar, ended: hatchery::Result<()>) -> hatchery::Error {
    bar.abandon();
    ended.err().unwrap_or_else(|| hatchery::Error::msg("stopped before all pictures were done"))
}

/// The directory that all thumbnails are below.
fn output_root(picture: &Picture) -> Option<PathBuf> {
    let depth = Path::new(&picture.name).components().count();
    picture.target.ancestors().nth(depth).map(Path::to_owned)
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_bar} {pos}/{len}  {elapsed}").expect("the template is well-formed")
}

/// Every picture once.
struct Round {
    queue: Arc<Mutex<VecDeque<Errand>>>,
    totals: TotalsHandle,
    bar: ProgressBar,
}

/// What a round saw.
#[derive(Default)]
struct Seen {
    /// Pictures whose worker died at them.
    hits: u64,
    /// The workers that were sent something.
    pids: BTreeSet<u32>,
}

impl Round {
    fn new(pictures: &[Picture], totals: TotalsHandle, bar: ProgressBar) -> Round {
        let errands = pictures.iter().map(|picture| Errand { picture: picture.clone(), attempt: 1 });
        Round { queue: Arc::new(Mutex::new(errands.collect())), totals, bar }
    }

    /// Keeps every resizer busy until nothing is left.
    async fn done_by(&self, resizers: &[ResizerHandle]) -> hatchery::Result<Seen> {
        let mut hands = tokio::task::JoinSet::new();
        for resizer in resizers {
            let (queue, totals, bar) = (self.queue.clone(), self.totals.clone(), self.bar.clone());
            hands.spawn(feed(resizer.clone(), queue, totals, bar));
        }
        let mut all = Seen::default();
        while let Some(seen) = hands.join_next().await {
            let seen = seen??;
            all.hits += seen.hits;
            all.pids.extend(seen.pids);
        }
        Ok(all)
    }
}

/// Sends one picture after the other to one resizer. A picture whose worker died goes back into the queue.
async fn feed(
    resizer: ResizerHandle,
    queue: Arc<Mutex<VecDeque<Errand>>>,
    totals: TotalsHandle,
    bar: ProgressBar,
) -> hatchery::Result<Seen> {
    let next = || queue.lock().expect("nobody panics with it").pop_front();
    let mut seen = Seen::default();
    while let Some(mut errand) = next() {
        seen.pids.extend(resizer.pid());
        let Picture { name, source, target } = errand.picture.clone();
        let begun = Instant::now();
        let outcome = match resizer.resize(source, target).timeout(PATIENCE).await {
            Ok(thumbnail) => Ok(thumbnail),
            Err(error) if error.is_crash() => {
                seen.hits += 1;
                if errand.attempt < ATTEMPTS {
                    errand.attempt += 1;
                    queue.lock().expect("nobody panics with it").push_back(errand);
                    continue;
                }
                Err(format!("sent {ATTEMPTS} times: {error}"))
            }
            Err(error) => Err(match error.into_handler_error() {
                Ok(reason) => reason,
                Err(error) => error.to_string(),
            }),
        };
        totals.done(name, outcome, begun.elapsed()).tell().await?;
        bar.inc(1);
    }
    Ok(seen)
}
