//! What one `tracing` event costs the worker that makes it: forwarded to the root, dropped since the root does not read,
//! and switched off by the filter.
//!
//! The ruler, in the same worker: the same event through `tracing-subscriber`'s `fmt` into `/dev/null`, one write an
//! event as well; for the one that is switched off, the same event below the level of that subscriber.

#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hatchery::Flavor;
use hatchery::prelude::*;
use hatchery_benches::table::{Effort, Row, Target, print};
use rustix::time::{ClockId, clock_gettime};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

/// Events in one sample: they all fit into the pipe, so that none is dropped which should not be.
const BATCH: u32 = 500;
/// More than the pipe holds.
const FILL: u32 = 20_000;

/// Events that have reached the root.
static ARRIVED: AtomicU64 = AtomicU64::new(0);
/// Whether the root's subscriber stands still.
static STILL: AtomicBool = AtomicBool::new(false);

/// The root's subscriber: counts.
struct Counts;

impl<S: Subscriber> Layer<S> for Counts {
    fn on_event(&self, _: &Event<'_>, _: LayerContext<'_, S>) {
        ARRIVED.fetch_add(1, Ordering::Relaxed);
        while STILL.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

/// Time and CPU time of one event.
type Cost = (Duration, Duration);

struct Logger {
    plain: tracing::Dispatch,
}

#[hatchery::actor]
impl Logger {
    fn start() -> hatchery::Result<Self> {
        let null = File::create("/dev/null")?;
        let plain = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false);
        Ok(Logger { plain: plain.with_writer(std::sync::Mutex::new(null)).into() })
    }

    fn forwarded(&self, events: u32) -> Cost {
        cost(events, |number| tracing::info!(number, name = "pears", "served a request"))
    }

    fn plain(&self, events: u32) -> Cost {
        tracing::dispatcher::with_default(&self.plain, || {
            cost(events, |number| tracing::info!(number, name = "pears", "served a request"))
        })
    }

    fn off(&self, events: u32) -> Cost {
        cost(events, |number| tracing::trace!(number, name = "pears", "served a request"))
    }

    fn plain_off(&self, events: u32) -> Cost {
        tracing::dispatcher::with_default(&self.plain, || {
            cost(events, |number| tracing::trace!(number, name = "pears", "served a request"))
        })
    }
}

fn cost(events: u32, event: impl Fn(u32)) -> Cost {
    let cpu = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(now).unwrap_or_default()
    };
    let (begun, begun_cpu) = (Instant::now(), cpu());
    for number in 0..events {
        event(std::hint::black_box(number));
    }
    (begun.elapsed() / events, (cpu() - begun_cpu) / events)
}

fn main() {
    hatchery::program().flavor(Flavor::CurrentThread).run(log)
}

async fn log() -> hatchery::Result<()> {
    let effort = Effort::of_args(200);
    if !hatchery::current().is_worker() {
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Counts));
    }
    hatchery::logs::set_filter("info")?;
    let tree = Supervisor::new(Strategy::OneForOne).start().await?;
    let logger = tree.start_child(worker::<Logger>("logger", ())).await?;

    let row = |name| (Row::new(name, Target::None), Row::new("  its CPU time", Target::None));
    let mut forwarded = row("forwarded");
    let mut dropped = row("dropped");
    let mut off = row("switched off");
    for _ in 0..effort.rounds {
        let mut samples = [const { Vec::new() }; 6];
        for _ in 0..effort.samples {
            let before = ARRIVED.load(Ordering::Relaxed);
            samples[0].push(logger.plain(BATCH).await?);
            samples[1].push(logger.forwarded(BATCH).await?);
            // The next batch finds the pipe empty.
            let mut ticks = tokio::time::interval(Duration::from_millis(1));
            while ARRIVED.load(Ordering::Relaxed) < before + u64::from(BATCH) {
                ticks.tick().await;
            }
            samples[2].push(logger.plain_off(BATCH).await?);
            samples[3].push(logger.off(BATCH).await?);
        }
        STILL.store(true, Ordering::Relaxed);
        logger.forwarded(FILL).await?;
        for _ in 0..effort.samples {
            samples[4].push(logger.plain(BATCH).await?);
            samples[5].push(logger.forwarded(BATCH).await?);
        }
        STILL.store(false, Ordering::Relaxed);
        // What the pipe still holds is read before the next round.
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let mut seen = 0;
        while seen != ARRIVED.load(Ordering::Relaxed) {
            seen = ARRIVED.load(Ordering::Relaxed);
            ticks.tick().await;
            ticks.tick().await;
        }
        let [plain, sent, plain_off, sent_off, plain_too, lost] = samples;
        for ((wall, cpu), ruler, subject) in
            [(&mut forwarded, plain, sent), (&mut off, plain_off, sent_off), (&mut dropped, plain_too, lost)]
                .map(|(rows, ruler, subject)| ((&mut rows.0, &mut rows.1), ruler, subject))
        {
            wall.ruler.round(ruler.iter().map(|cost| cost.0).collect());
            wall.subject.round(subject.iter().map(|cost| cost.0).collect());
            cpu.ruler.round(ruler.iter().map(|cost| cost.1).collect());
            cpu.subject.round(subject.iter().map(|cost| cost.1).collect());
        }
    }
    let rows = [forwarded.0, forwarded.1, dropped.0, dropped.1, off.0, off.1];
    print("one event in a worker, beside fmt into /dev/null (switched off: beside its level)", effort, &rows);
    tree.stop().await
}
