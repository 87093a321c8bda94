//! The options of `sleave bench`, and what it says to nonsense.

use clap::{Args, Subcommand};

use crate::args::{whole, workers};

/// What to measure.
#[derive(Subcommand, Clone, Debug)]
pub enum Bench {
    /// Measure a whole life: OS threads, fibers without the pool, fibers with it
    ///
    /// A life is to be created, to run and to be joined; the body does nothing. One at a time, each is joined before the
    /// next is created. At once, all of a batch are alive together, each on a stack of its own: they wait until the
    /// last has begun (on a std Condvar, in the same code for threads and fibers), and then end.
    ///
    /// Without the pool (its limit is 0) a fiber gets new memory and a new identity, and leaves neither behind.
    /// With it both are used again. Threads are std's, and glibc keeps up to 40 MiB of their stacks for reuse.
    #[command(after_help = "\
Examples:
  sleave bench pool
  sleave bench pool --quick
  sleave bench pool --lives 100000 --batch 5000 --rounds 3
  sleave bench pool --json | jq 'select(.mode == \"fibers_with_pool\").median_ns'")]
    Pool(Pool),
}

/// Options of `bench pool`.
#[derive(Args, Clone, Debug)]
pub struct Pool {
    /// Lives in each round, for each candidate [default: 10000, with --quick 2000]
    #[arg(long, value_name = "N", value_parser = lives, allow_negative_numbers = true)]
    pub lives: Option<usize>,
    /// How many are alive at once in the second part
    #[arg(long, value_name = "N", default_value = "1000", value_parser = batch)]
    #[arg(allow_negative_numbers = true)]
    pub batch: usize,
    /// Rounds in which the candidates take turns [default: 9, with --quick 3]
    #[arg(long, value_name = "N", value_parser = rounds, allow_negative_numbers = true)]
    pub rounds: Option<usize>,
    /// Worker threads of the fibers
    #[arg(long, value_name = "W", default_value = "1", value_parser = workers)]
    #[arg(allow_negative_numbers = true)]
    pub workers: usize,
    /// Fewer lives and rounds: a first look in a few seconds
    #[arg(long)]
    pub quick: bool,
    /// Print one JSON object a line on the standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
}

fn lives(text: &str) -> Result<usize, String> {
    whole(text, 1, 10_000_000, "lives")
}

fn batch(text: &str) -> Result<usize, String> {
    whole(text, 1, 10_000, "at once")
}

fn rounds(text: &str) -> Result<usize, String> {
    whole(text, 1, 1_000, "rounds")
}
