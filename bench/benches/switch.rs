//! `cargo bench [-- rounds]`: what a switch and a coroutine cost on every backend, beside other crates and a
//! pair of threads.

fn main() {
    let rounds = sleave_bench::rounds(301);
    sleave_bench::backends::compare(rounds);
    sleave_bench::coroutines::compare(rounds);
}
