//! Colours: in range, the same each time, and even over the slots of every class.

use sleave_context::stack::{COLOURS, MIN_SLOT, colour};

#[test]
fn shifts_are_cache_lines_below_the_bound() {
    for colours in [1, 2, 8, COLOURS, 64, 1000] {
        for index in (0..1 << 28).step_by(99_991) {
            let shift = colour(index, colours);
            assert!(shift.is_multiple_of(64) && shift < 64 * colours);
            assert_eq!(shift, colour(index, colours));
        }
    }
    assert_eq!((colour(7, 0), colour(7, 1)), (0, 0));
}

#[test]
fn consecutive_slots_of_any_class_use_all_colours_evenly() {
    for size in [MIN_SLOT, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 8 << 20] {
        for colours in [8, 16, 64] {
            let mut counts = vec![0_usize; colours];
            for nth in 0..1024 {
                counts[colour((nth * size / MIN_SLOT) as u32, colours) / 64] += 1;
            }
            let even = 1024 / colours;
            let bounds = even / 2..=even * 2;
            let all_within = counts.iter().all(|count| bounds.contains(count));
            assert!(all_within, "slots of {size} bytes, {colours} colours: {counts:?}");
        }
    }
}
