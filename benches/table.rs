//! Samples, their medians and spread, and the table of ruler and subject side by side.

use std::fmt;
use std::time::Duration;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Ruler and subject alternate this often.
    pub rounds: usize,
    /// Samples of each in a round.
    pub samples: usize,
}

impl Effort {
    /// Ten rounds under `cargo bench`, a single short one with `--test` or under `cargo test`.
    pub fn of_args(samples: usize) -> Effort {
        let has = |wanted: &str| std::env::args().skip(1).any(|arg| arg == wanted);
        if has("--bench") && !has("--test") {
            Effort { rounds: 10, samples }
        } else {
            Effort { rounds: 1, samples: samples.div_ceil(50) }
        }
    }
}

/// What is measured: time, unless it is said to be something else.
pub trait Quantity: Copy + Default + Ord {
    /// How much it is, to be divided by another.
    fn amount(self) -> f64;

    /// It in three digits or so.
    fn short(self) -> String;
}

impl Quantity for Duration {
    fn amount(self) -> f64 {
        self.as_secs_f64()
    }

    fn short(self) -> String {
        let micros = self.as_secs_f64() * 1e6;
        if micros < 1000.0 { format!("{micros:.1} µs") } else { format!("{:.2} ms", micros / 1e3) }
    }
}

/// Of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Quantity for Bytes {
    fn amount(self) -> f64 {
        self.0 as f64
    }

    fn short(self) -> String {
        format!("{:.1} KiB", self.amount() / 1024.0)
    }
}

/// What was measured of one thing: samples, round by round.
#[derive(Debug)]
pub struct Samples<Q = Duration>(Vec<Vec<Q>>);

impl<Q> Default for Samples<Q> {
    fn default() -> Self {
        Samples(Vec::new())
    }
}

impl<Q: Quantity> Samples<Q> {
    /// One more round.
    pub fn round(&mut self, samples: Vec<Q>) {
        self.0.push(samples);
    }

    /// The median of all samples.
    pub fn median(&self) -> Q {
        median(self.0.concat())
    }

    /// What 99 of 100 samples do not exceed.
    pub fn p99(&self) -> Q {
        let mut samples = self.0.concat();
        samples.sort_unstable();
        let rank = (samples.len() * 99).div_ceil(100);
        samples.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// The median of each round.
    fn medians(&self) -> Vec<Q> {
        self.0.iter().cloned().map(median).collect()
    }

    /// The lowest and the highest median of a round.
    pub fn spread(&self) -> (Q, Q) {
        let medians = self.medians();
        (medians.iter().min().copied().unwrap_or_default(), medians.into_iter().max().unwrap_or_default())
    }

    /// How many times `ruler` this takes: the median over the rounds, so that what else the machine did in one of
    /// them is on both sides of its fraction.
    pub fn times(&self, ruler: &Samples<Q>) -> f64 {
        let pairs = self.medians().into_iter().zip(ruler.medians());
        let mut times: Vec<f64> = pairs.map(|(own, ruler)| own.amount() / ruler.amount()).collect();
        times.sort_unstable_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

fn median<Q: Quantity>(mut samples: Vec<Q>) -> Q {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub enum Target<Q = Duration> {
    /// At most so many times the ruler.
    Times(f64),
    /// Less than this.
    Below(Q),
    /// Nothing is promised.
    None,
}

/// One line of the table.
#[derive(Debug)]
pub struct Row<Q = Duration> {
    name: &'static str,
    target: Target<Q>,
    /// Measured on the ruler.
    pub ruler: Samples<Q>,
    /// Measured on hatchery.
    pub subject: Samples<Q>,
}

impl<Q> Row<Q> {
    /// A line without samples yet.
    pub fn new(name: &'static str, target: Target<Q>) -> Row<Q> {
        Row { name, target, ruler: Samples::default(), subject: Samples::default() }
    }
}

impl<Q: Quantity> fmt::Display for Row<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.subject.times(&self.ruler);
        let (target, met) = match self.target {
            Target::Times(most) => (format!("≤ {most:.2} ×"), Some(times <= most)),
            Target::Below(most) => (format!("< {}", most.short()), Some(self.subject.median() < most)),
            Target::None => (String::new(), None),
        };
        let met = met.map_or("", |met| if met { "met" } else { "MISSED" });
        let (ruler, subject) = (show(&self.ruler), show(&self.subject));
        write!(f, "  {:<24}{ruler:<35}{subject:<35}{times:>5.2} ×  {target:>9}  {met}", self.name)
    }
}

/// The line of a table whose figure is what 99 of 100 samples do not exceed, of those of another line.
pub fn print_p99<Q: Quantity>(row: &Row<Q>, most: Q) {
    let (ruler, subject) = (row.ruler.p99(), row.subject.p99());
    let times = subject.amount() / ruler.amount();
    let met = if subject < most { "met" } else { "MISSED" };
    let (ruler, subject, target) = (ruler.short(), subject.short(), format!("< {}", most.short()));
    println!("  {:<24}{ruler:<35}{subject:<35}{times:>5.2} ×  {target:>9}  {met}\n", "p99 of all of these");
}

fn show<Q: Quantity>(samples: &Samples<Q>) -> String {
    let (low, high) = samples.spread();
    format!("{} ({} – {})", samples.median().short(), low.short(), high.short())
}

/// Prints a table: its title, how much was measured, and its lines.
pub fn print<Q: Quantity>(title: &str, effort: Effort, rows: &[Row<Q>]) {
    let Effort { rounds, samples } = effort;
    println!("\n{title}");
    println!(
        "medians of {rounds} rounds of {samples} (lowest – highest median of a round), times: of a round's medians\n"
    );
    println!("  {:<24}{:<35}{:<35}{:>7}", "", "ruler", "hatchery", "times");
    rows.iter().for_each(|row| println!("{row}"));
    println!();
}
