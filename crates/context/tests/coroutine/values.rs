//! What passes between a coroutine and its resumer.

use crate::support::backends::Tested;
use crate::{Log, Token, caught, co, on_every_backend, throw};
use sleave_context::CoroutineState::{Complete, Yielded};
use std::fmt::Debug;
use std::hint::black_box;

on_every_backend! {
    values_of_every_size_and_alignment_pass_both_ways,
    each_way_has_a_type_of_its_own,
    the_first_input_is_an_argument_and_later_ones_are_results,
    a_value_in_one_word_is_dropped_once,
    a_value_behind_an_address_is_dropped_once,
    an_input_is_not_lost_when_the_resumed_body_panics,
    what_was_yielded_outlives_the_coroutine,
}

/// Through the coroutine and back, twice yielded and once returned; each side sees it at an aligned address.
fn echoes<B: Tested, T: Clone + PartialEq + Debug + 'static>(values: [T; 3]) {
    fn is_aligned<T>(value: &T) -> bool {
        black_box(core::ptr::from_ref(value) as usize).is_multiple_of(align_of::<T>())
    }
    let mut echo = co::<B, T, T, T, _>(|yielder, mut value| {
        for _ in 0..2 {
            assert!(is_aligned(&value));
            value = yielder.suspend(value);
        }
        value
    });
    let expected = values.clone();
    let [first, second, third] = values;
    for (value, expected) in [first, second].into_iter().zip(&expected) {
        let state = echo.resume(value);
        assert!(is_aligned(&state));
        assert_eq!(state, Yielded(expected.clone()));
    }
    assert_eq!(echo.resume(third), Complete(expected[2].clone()));
}

#[derive(Clone, PartialEq, Debug)]
#[repr(align(64))]
struct Aligned<T>(T);

fn values_of_every_size_and_alignment_pass_both_ways<B: Tested>() {
    echoes::<B, _>([(), (), ()]);
    echoes::<B, _>([Aligned(()), Aligned(()), Aligned(())]);
    echoes::<B, _>([0_u8, 0x7f, 0xff]);
    echoes::<B, _>([true, false, true]);
    echoes::<B, _>([(1_u8, 2_u16), (3, 4), (255, 65535)]); // with padding, in a word
    echoes::<B, _>([(1_u8, 2_u64), (3, 4), (255, u64::MAX)]); // with padding, in more
    echoes::<B, _>([[1_u8; 7], [2; 7], [3; 7]]);
    echoes::<B, _>([0_u64, 1 << 63, u64::MAX]);
    echoes::<B, _>([0.0_f64, -1.5, f64::MIN_POSITIVE]);
    echoes::<B, _>([None, Some(Box::new(5_u32)), Some(Box::new(6))]);
    echoes::<B, _>([0_u128, 1 << 127, u128::MAX]);
    echoes::<B, _>(["one", "", "three"]);
    echoes::<B, _>([vec![String::from("a")], vec![], vec![String::from("b"), String::new()]]);
    echoes::<B, _>([Aligned(1_u8), Aligned(2), Aligned(3)]);
    echoes::<B, _>([[1_u64; 128], [2; 128], std::array::from_fn(|i| i as u64)]); // 1 KiB
    echoes::<B, _>([Aligned([1_u8; 1000]), Aligned([2; 1000]), Aligned([3; 1000])]);
}

fn each_way_has_a_type_of_its_own<B: Tested>() {
    let mut long = co::<B, [u64; 128], (), Aligned<u8>, _>(|yielder, first| {
        let second = yielder.suspend(());
        Aligned((first[127] + second[0]) as u8)
    });
    assert_eq!(long.resume([3; 128]), Yielded(()));
    assert_eq!(long.resume([4; 128]), Complete(Aligned(7)));

    let mut text = co::<B, (), String, Option<Box<u8>>, _>(|yielder, ()| {
        yielder.suspend(String::from("yielded"));
        Some(Box::new(1))
    });
    assert_eq!(text.resume(()).yielded().as_deref(), Some("yielded"));
    assert_eq!(text.resume(()).complete(), Some(Some(Box::new(1))));
}

fn the_first_input_is_an_argument_and_later_ones_are_results<B: Tested>() {
    let mut sums = co::<B, u64, u64, [u64; 2], _>(|yielder, first| {
        let mut sum = first;
        for _ in 0..1000 {
            sum += yielder.suspend(sum);
        }
        [first, sum]
    });
    assert!(!sums.is_started());
    for n in 0..1000 {
        assert_eq!(sums.resume(n), Yielded(n * (n + 1) / 2));
        assert!(sums.is_started() && !sums.is_done());
    }
    assert_eq!(sums.resume(1000), Complete([0, 1000 * 1001 / 2]));
    assert!(sums.is_done());
}

/// Tokens in and out of a coroutine, wrapped in something of another size.
fn dropped_once<B: Tested, W: AsRef<Token> + 'static>(wrap: fn(Token) -> W) {
    let log = Log::new();
    let make = |name| wrap(log.token(name));
    let (inner, outer) = (log.clone(), log.clone());
    let mut coroutine = co::<B, W, W, W, _>(move |yielder, first: W| {
        let own = inner.token(100);
        drop(yielder.suspend(first)); // 1 goes back, 2 is dropped here
        inner.note(101);
        let kept = yielder.suspend(wrap(own)); // 100 goes out, 3 stays
        let last = yielder.suspend(wrap(inner.token(102)));
        drop(kept);
        last
    });
    assert_eq!(coroutine.resume(make(1)).yielded().unwrap().as_ref().name, 1);
    assert_eq!(outer.take(), [1]);
    drop(coroutine.resume(make(2)));
    assert_eq!(outer.take(), [2, 101, 100]);
    let yielded = coroutine.resume(make(3)).yielded().unwrap();
    assert_eq!(outer.take(), [], "the input is the coroutine's, the yielded one ours");
    let last = coroutine.resume(make(4)).complete().unwrap();
    assert_eq!(outer.take(), [3]);
    drop(coroutine);
    assert_eq!(outer.take(), []);
    drop((yielded, last));
    assert_eq!(outer.take(), [102, 4]);
}

struct Large(Token, #[allow(dead_code, reason = "makes it large")] [u64; 20]);

impl AsRef<Token> for Large {
    fn as_ref(&self) -> &Token {
        &self.0
    }
}

fn a_value_in_one_word_is_dropped_once<B: Tested>() {
    dropped_once::<B, Box<Token>>(Box::new);
}

fn a_value_behind_an_address_is_dropped_once<B: Tested>() {
    dropped_once::<B, Large>(|token| Large(token, [7; 20]));
}

fn an_input_is_not_lost_when_the_resumed_body_panics<B: Tested>() {
    let log = Log::new();
    let mut first = co::<B, Token, (), (), _>(|_, _input| throw("at once"));
    caught(|| first.resume(log.token(1)));
    assert_eq!(log.take(), [1]);

    let mut later = co::<B, Token, (), (), _>(|yielder, input| {
        let _second = yielder.suspend(());
        drop(input);
        throw("later")
    });
    later.resume(log.token(1));
    assert_eq!(log.take(), []);
    caught(|| later.resume(log.token(2)));
    assert_eq!(log.take(), [1, 2]);
}

fn what_was_yielded_outlives_the_coroutine<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let mut coroutine = co::<B, (), Box<Token>, (), _>(move |yielder, ()| {
        let _kept = names.token(1);
        yielder.suspend(Box::new(names.token(2)));
    });
    let yielded = coroutine.resume(()).yielded();
    drop(coroutine);
    assert_eq!(log.take(), [1]);
    drop(yielded);
    assert_eq!(log.take(), [2]);
}
