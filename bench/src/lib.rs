//! Measuring several things fairly: by turns, many times, and reporting the median.
//!
//! A machine drifts (frequency, neighbours, page placement). Measuring one candidate after the other would charge that
//! drift to whoever comes last; measuring all of them once per *round* spreads it, and the median of the
//! rounds ignores the round in which somebody else's build started.

pub mod backends;
pub mod coroutines;
pub mod peer;

use std::hint::black_box;
use std::time::{Duration, Instant};

/// One thing to measure.
pub struct Candidate<'a> {
    name: String,
    /// Does the work `n` times.
    run: Box<dyn FnMut(u64) + 'a>,
    /// Units (switches, calls …) in one of those times.
    units: u64,
}

/// The figures of one candidate, in nanoseconds per unit.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Median over the rounds.
    pub median: f64,
    /// The best round: what the machine can do undisturbed.
    pub best: f64,
    /// Half of the rounds lie within this many nanoseconds (distance of the quartiles).
    pub spread: f64,
    /// All rounds.
    samples: Vec<f64>,
}

/// The rounds of several measurements of the same candidates, taken together.
///
/// For what depends on where memory happens to lie: measure again with everything allocated anew, and the median is
/// that of the places as well as of the rounds.
///
/// # Panics
///
/// If the measurements differ in their candidates.
pub fn pool(measurements: impl IntoIterator<Item = Vec<Figure>>) -> Vec<Figure> {
    let mut pooled: Vec<(String, Vec<f64>)> = Vec::new();
    for figures in measurements {
        if pooled.is_empty() {
            pooled = figures.iter().map(|figure| (figure.name.clone(), Vec::new())).collect();
        }
        assert_eq!(figures.len(), pooled.len(), "the same candidates each time");
        for (figure, (name, samples)) in figures.into_iter().zip(&mut pooled) {
            assert_eq!(figure.name, *name, "the same candidates each time");
            samples.extend(figure.samples);
        }
    }
    pooled.into_iter().map(|(name, samples)| figure(name, samples)).collect()
}

/// A set of candidates, measured by turns.
#[derive(Default)]
pub struct Comparison<'a> {
    candidates: Vec<Candidate<'a>>,
}

impl<'a> Comparison<'a> {
    /// No candidates yet.
    pub fn new() -> Comparison<'a> {
        Comparison::default()
    }

    /// Adds a candidate: `run(n)` does `n` times something that consists of `units` units.
    pub fn add(&mut self, name: impl Into<String>, units: u64, run: impl FnMut(u64) + 'a) {
        self.candidates.push(Candidate { name: name.into(), run: Box::new(run), units });
    }

    /// Measures every candidate `rounds` times by turns, each time for about `slice`.
    pub fn measure(mut self, rounds: usize, slice: Duration) -> Vec<Figure> {
        let counts: Vec<u64> =
            self.candidates.iter_mut().map(|candidate| calibrate(candidate, slice)).collect();
        let mut samples = vec![Vec::with_capacity(rounds); self.candidates.len()];
        for round in 0..rounds {
            // Not always in the same order: each candidate has each predecessor now and then.
            for turn in 0..self.candidates.len() {
                let at = (turn + round) % self.candidates.len();
                let candidate = &mut self.candidates[at];
                let start = Instant::now();
                (candidate.run)(black_box(counts[at]));
                let units = (counts[at] * candidate.units) as f64;
                samples[at].push(start.elapsed().as_nanos() as f64 / units);
            }
        }
        let names = self.candidates.into_iter().map(|candidate| candidate.name);
        names.zip(samples).map(|(name, samples)| figure(name, samples)).collect()
    }
}

/// How often to run so that it takes about `slice`; warms caches and predictors on the way.
fn calibrate(candidate: &mut Candidate<'_>, slice: Duration) -> u64 {
    let mut count = 1;
    loop {
        let start = Instant::now();
        (candidate.run)(black_box(count));
        let took = start.elapsed();
        if took * 4 > slice {
            return ((count as f64 * slice.as_secs_f64() / took.as_secs_f64()) as u64).max(1);
        }
        count *= 2;
    }
}

/// How many rounds the command line asks for; without a word `default`.
///
/// Says how to use the program, and ends it, if the command line makes no sense.
pub fn rounds(default: usize) -> usize {
    // `cargo bench` adds this to what it was told.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    match (words.next().map(|word| word.parse()), words.next()) {
        (None, _) => default,
        (Some(Ok(rounds)), None) if rounds > 0 => rounds,
        _ => {
            eprintln!(
                "the one argument is a whole number of rounds, at least 1 (default: {default})"
            );
            std::process::exit(2);
        }
    }
}

fn figure(name: String, mut samples: Vec<f64>) -> Figure {
    samples.sort_by(f64::total_cmp);
    let at = |part: f64| samples[((samples.len() - 1) as f64 * part).round() as usize];
    let (median, best, spread) = (at(0.5), samples[0], at(0.75) - at(0.25));
    Figure { name, median, best, spread, samples }
}

/// Prints a Markdown table; each median beside that of the row named `reference`.
///
/// # Panics
///
/// If no row has that name.
pub fn print_table(title: &str, unit: &str, figures: &[Figure], reference: &str) {
    let base = figures.iter().find(|figure| figure.name == reference);
    let base = base.expect("the reference is one of the rows").median;
    println!("\n### {title}\n");
    println!("| | {unit}, median | best | quartiles apart | × {reference} |");
    println!("|---|---:|---:|---:|---:|");
    for Figure { name, median, best, spread, .. } in figures {
        println!("| {name} | {median:.2} | {best:.2} | {spread:.2} | {:.2} |", median / base);
    }
}
