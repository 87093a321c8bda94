//! What the integration tests cannot reach: a glibc that we do not know, and a malloc whose words
//! were not found. (A fiber's life is tested in `tests/identity*.rs`.)

use std::alloc::{Layout, alloc_zeroed, dealloc};

use super::glibc::Glibc;
use super::malloc::{Unknown, Words};
use super::template::{SAMPLES, Sample, Template};
use super::{Kit, Unavailable, Word, kit, sample, thread_pointer};

/// Learns from real threads after `change` has had a hand in what they saw.
fn learn(change: impl Fn(&mut [Sample; SAMPLES])) -> Result<Template, Unavailable> {
    let glibc = Glibc::find().unwrap();
    let mut samples = sample::take(&glibc).unwrap().samples;
    change(&mut samples);
    Template::learn(&glibc, &samples, kit().unwrap().floor_offset)
}

/// A word of `struct pthread` that is zero in new threads.
fn free_word() -> usize {
    let used = &kit().unwrap().template.kinds;
    (0..).step_by(8).find(|at| used.iter().all(|(offset, _)| offset != at)).unwrap()
}

fn kind(template: &Template, offset: usize) -> Option<Word> {
    template.kinds.iter().find(|(at, _)| *at == offset).map(|(_, kind)| *kind)
}

#[test]
fn a_word_that_fits_no_kind_is_refused_by_its_offset() {
    let at = free_word();
    let error = learn(|samples| samples[1].pthread[at / 8] = 0x1234).err().unwrap().to_string();
    assert!(error.contains(&format!("offset {at} ")) && error.contains("0x1234"), "{error}");
}

#[test]
fn a_tid_that_is_not_the_kernels_is_refused() {
    let at = Glibc::find().unwrap().tid.offset / 8;
    let error = learn(|samples| samples[2].pthread[at] ^= 1).err().unwrap().to_string();
    assert!(error.contains(&format!("offset {} ", at * 8)), "{error}");
}

#[test]
fn robust_lists_at_different_places_are_refused() {
    let error = learn(|samples| samples[0].robust += 8).err().unwrap().to_string();
    assert!(error.contains("robust"), "{error}");
}

#[test]
fn an_unknown_glibc_with_words_of_the_known_kinds_is_served() {
    let at = free_word();
    for (expected, value) in [
        (Word::Constant(77), (|_| 77) as fn(&Sample) -> u64),
        (Word::Relative(-16), |sample| sample.tp as u64 - 16),
        (Word::Frame, |sample| sample.stack.start as u64 + 64),
        (Word::Start, |sample| sample.argument as u64),
    ] {
        let template = learn(|samples| {
            for sample in samples {
                sample.pthread[at / 8] = value(sample);
            }
        });
        assert_eq!(kind(&template.unwrap(), at), Some(expected));
    }
}

#[test]
fn a_second_word_like_the_stacks_base_is_refused() {
    let at = free_word();
    let error = learn(|samples| {
        for sample in samples {
            sample.pthread[at / 8] = sample.stack.start as u64;
        }
    });
    assert!(error.err().unwrap().to_string().contains("struct pthread"));
}

/// An identity in the heap, for a kit; nothing runs on it but what the test runs.
fn with_identity(kit: &Kit, test: impl FnOnce(usize)) {
    let layout = Layout::from_size_align(kit.size(), 64).unwrap();
    // SAFETY: the size is not zero; the identity fills the block, and is destroyed before it goes.
    unsafe {
        let block = alloc_zeroed(layout);
        let tp = kit.thread_pointer_below(block as usize + layout.size());
        assert!(kit.floor(tp) >= block as usize);
        kit.create(tp, 4096..8192, 1 << 23).unwrap();
        assert_eq!(kit.template.stack(tp), 4096..8192);
        test(tp);
        kit.destroy(tp);
        dealloc(block, layout);
    }
}

/// Mallocs and frees with the identity in force, on the calling stack; sets its errno.
#[inline(never)]
fn use_identity(kit: &Kit, tp: usize) {
    let own = thread_pointer();
    // SAFETY: nobody else has `tp` in force; in between, thread-locals are used by libc only,
    // behind calls that the compiler cannot see into.
    unsafe {
        kit.enter(tp);
        (kit.glibc.free)((kit.glibc.malloc)(24));
        *(kit.glibc.errno_location)() = libc::EINVAL;
        kit.enter(own);
    }
}

fn word(tp: usize, offset: isize) -> usize {
    // SAFETY: a word of libc's block of an identity.
    unsafe { (tp.wrapping_add_signed(offset) as *const usize).read_volatile() }
}

#[test]
fn without_mallocs_words_an_identity_keeps_a_cache_of_its_own() {
    let Words { cache, arena } = kit().unwrap().malloc.found.unwrap();
    let mut kit = Kit::probe().unwrap();
    kit.malloc.follow = false;
    kit.malloc.found = Err(Unknown::Cache);
    assert!(kit.report().to_string().contains("a cache per fiber"));
    with_identity(&kit, |tp| {
        assert_eq!((word(tp, cache), word(tp, arena)), (0, 0));
        use_identity(&kit, tp);
        let words = (word(tp, cache), word(tp, arena));
        let own = thread_pointer();
        assert!(words.0 != 0 && words.0 != word(own, cache), "a cache of its own");
        let locale = kit.images.current().word(kit.glibc.libc_tls.0);
        // SAFETY: nothing runs on the identity.
        unsafe {
            assert_eq!(*kit.errno(tp), libc::EINVAL);
            kit.recycle(tp, (1 << 23) + 1);
            assert_eq!(*kit.errno(tp), 0);
        }
        assert_eq!((word(tp, cache), word(tp, arena)), words, "still there for the next fiber");
        assert_eq!(word(tp, kit.glibc.libc_tls.0) as u64, locale);
        use_identity(&kit, tp);
        assert_eq!((word(tp, cache), word(tp, arena)), words);
    });
}

#[test]
fn with_mallocs_words_an_identity_never_gets_a_cache() {
    let kit = kit().unwrap();
    let Words { cache, arena } = kit.malloc.found.unwrap();
    kit.adopt_thread();
    with_identity(kit, |tp| {
        let own = thread_pointer();
        let words = (word(own, cache), word(own, arena));
        use_identity(kit, tp);
        assert_eq!((word(tp, cache), word(tp, arena)), words);
        assert_eq!((word(own, cache), word(own, arena)), words);
    });
}

#[test]
fn an_identity_may_be_recycled_while_it_is_in_force() {
    let kit = kit().unwrap();
    let Words { cache, arena } = kit.malloc.found.unwrap();
    kit.adopt_thread();
    with_identity(kit, |tp| {
        let own = thread_pointer();
        let words = (word(own, cache), word(own, arena));
        // SAFETY: only libc uses thread-locals in between.
        unsafe {
            kit.enter(tp);
            kit.recycle(tp, (1 << 23) + 2);
            (kit.glibc.free)((kit.glibc.malloc)(24));
            kit.enter(own);
        }
        assert_eq!((word(own, cache), word(own, arena)), words);
    });
}
