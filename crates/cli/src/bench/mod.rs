//! Measurements of parts of the library, each a file of its own; here is how candidates are compared.
//!
//! They take turns: every round runs each once, in the same order. So what disturbs the machine for a while
//! disturbs all, and a ratio is that of two neighbours in time. Shown are medians over the rounds, with
//! the least and the most beside them, since a median alone does not say how far to trust it.

pub mod args;
mod pool;

use std::io;

/// Measures what was chosen.
pub fn run(arguments: &args::Bench) -> io::Result<()> {
    match arguments {
        args::Bench::Pool(arguments) => pool::run(arguments),
    }
}

/// What one candidate took, a figure for each round.
#[derive(Clone, Debug, Default)]
struct Samples(Vec<f64>);

impl Samples {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The middle one; of an even number the mean of the two in the middle.
    fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            length if length.is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        }
    }

    fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// The median of the ratios within a round.
    fn ratio_to(&self, other: &Samples) -> f64 {
        Samples(self.0.iter().zip(&other.0).map(|(own, other)| own / other).collect()).median()
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn the_median_is_in_the_middle() {
        for (samples, median) in [
            (&[5.0][..], 5.0),
            (&[9.0, 1.0], 5.0),
            (&[1.0, 100.0, 3.0], 3.0),
            (&[4.0, 1.0, 3.0, 1000.0], 3.5),
        ] {
            assert_eq!(Samples(samples.to_vec()).median(), median);
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // A machine that is ten times slower in one round is so for both.
        let (slow, quick) = (Samples(vec![20.0, 200.0, 22.0]), Samples(vec![10.0, 100.0, 11.0]));
        assert_eq!(slow.ratio_to(&quick), 2.0);
        assert_eq!((slow.least(), slow.most()), (20.0, 200.0));
    }
}
