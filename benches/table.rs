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

/// What was measured of one thing: samples, round by round.
#[derive(Debug, Default)]
pub struct Samples(Vec<Vec<Duration>>);

impl Samples {
    /// One more round.
    pub fn round(&mut self, samples: Vec<Duration>) {
        self.0.push(samples);
    }

    /// The median of all samples.
    pub fn median(&self) -> Duration {
        median(self.0.concat())
    }

    /// The median of each round.
    fn medians(&self) -> Vec<Duration> {
        self.0.iter().cloned().map(median).collect()
    }

    /// The lowest and the highest median of a round.
    pub fn spread(&self) -> (Duration, Duration) {
        let medians = self.medians();
        (medians.iter().min().copied().unwrap_or_default(), medians.into_iter().max().unwrap_or_default())
    }

    /// How many times `ruler` this takes: the median over the rounds, so that what else the machine did in one of
    /// them is on both sides of its fraction.
    pub fn times(&self, ruler: &Samples) -> f64 {
        let pairs = self.medians().into_iter().zip(ruler.medians());
        let mut times: Vec<f64> = pairs.map(|(own, ruler)| own.as_secs_f64() / ruler.as_secs_f64()).collect();
        times.sort_unstable_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At most so many times the ruler.
    Times(f64),
    /// Less than this.
    Below(Duration),
    /// Nothing is promised.
    None,
}

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    name: &'static str,
    target: Target,
    /// Measured on the ruler.
    pub ruler: Samples,
    /// Measured on hatchery.
    pub subject: Samples,
}

impl Row {
    /// A line without samples yet.
    pub fn new(name: &'static str, target: Target) -> Row {
        Row { name, target, ruler: Samples::default(), subject: Samples::default() }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.subject.times(&self.ruler);
        let (target, met) = match self.target {
            Target::Times(most) => (format!("≤ {most:.2} ×"), Some(times <= most)),
            Target::Below(most) => (format!("< {}", Short(most)), Some(self.subject.median() < most)),
            Target::None => (String::new(), None),
        };
        let met = met.map_or("", |met| if met { "met" } else { "MISSED" });
        let (ruler, subject) = (show(&self.ruler), show(&self.subject));
        write!(f, "  {:<24}{ruler:<30}{subject:<30}{times:>5.2} ×  {target:>9}  {met}", self.name)
    }
}

fn show(samples: &Samples) -> String {
    let (low, high) = samples.spread();
    format!("{} ({} – {})", Short(samples.median()), Short(low), Short(high))
}

/// A duration in three digits or so.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_secs_f64() * 1e6;
        if micros < 1000.0 { write!(f, "{micros:.1} µs") } else { write!(f, "{:.2} ms", micros / 1e3) }
    }
}

/// Prints a table: its title, how much was measured, and its lines.
pub fn print(title: &str, effort: Effort, rows: &[Row]) {
    let Effort { rounds, samples } = effort;
    println!("\n{title}");
    println!(
        "medians of {rounds} rounds of {samples} (lowest – highest median of a round), times: of a round's medians\n"
    );
    println!("  {:<24}{:<30}{:<30}{:>7}", "", "ruler", "hatchery", "times");
    rows.iter().for_each(|row| println!("{row}"));
    println!();
}
