//! The tree of addresses against a model: a map of queues.

use std::collections::{BTreeMap, VecDeque};
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;

/// Addresses that meet in one bucket, as the words of many locks would.
fn addresses() -> &'static [usize] {
    static FOUND: OnceLock<Vec<usize>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let same = |address: &usize| std::ptr::eq(bucket(*address), bucket(0x7000_0000));
        (0x7000_0000usize..).step_by(4).filter(same).take(64).collect()
    })
}

fn waiter(address: usize) -> Box<Waiter> {
    let null = null_mut();
    Box::new(Waiter {
        // The tree never looks at it.
        control: NonNull::dangling(),
        address,
        mask: u32::MAX,
        linked: AtomicBool::new(true),
        links: UnsafeCell::new(Links {
            left: null,
            right: null,
            previous: null,
            next: null,
            last: null,
        }),
        _pinned: PhantomPinned,
    })
}

/// Checks the subtree at `head`; adds its queues in the order of addresses. Returns its depth.
///
/// # Safety
/// The tree's waiters are alive and nobody else's.
unsafe fn walk(head: *mut Waiter, queues: &mut Vec<(usize, Vec<*mut Waiter>)>) -> usize {
    if head.is_null() {
        return 0;
    }
    // SAFETY: by contract.
    unsafe {
        let (left, right) = (links(head).left, links(head).right);
        for child in [left, right] {
            assert!(
                child.is_null() || priority((*child).address) <= priority((*head).address),
                "a child of higher priority"
            );
        }
        let depth = walk(left, queues);
        let mut queue = Vec::new();
        let (mut previous, mut waiter) = (null_mut(), head);
        while !waiter.is_null() {
            assert_eq!(links(waiter).previous, previous);
            assert_eq!((*waiter).address, (*head).address);
            queue.push(waiter);
            previous = waiter;
            waiter = links(waiter).next;
        }
        assert_eq!(links(head).last, previous);
        queues.push(((*head).address, queue));
        1 + depth.max(walk(right, queues))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(prop::sample::Index),
    /// Removes any: a head with or without heirs, the middle, the end of a queue.
    Remove(prop::sample::Index),
    /// Removes the first of an address, as a waker does.
    Wake(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => any::<prop::sample::Index>().prop_map(Step::Push),
        3 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => any::<prop::sample::Index>().prop_map(Step::Wake),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_keeps_a_queue_for_each_address(steps in steps(), different in 1usize..=64) {
        let addresses = &addresses()[..different];
        let mut tree = Tree(null_mut());
        let mut model: BTreeMap<usize, VecDeque<*mut Waiter>> = BTreeMap::new();
        let mut alive: Vec<*mut Waiter> = Vec::new();
        for step in steps {
            match step {
                Step::Push(index) => {
                    let waiter = Box::into_raw(waiter(*index.get(addresses)));
                    alive.push(waiter);
                    // SAFETY: nobody else has the tree; a new waiter, removed before it is freed.
                    unsafe {
                        model.entry((*waiter).address).or_default().push_back(waiter);
                        tree.push(waiter);
                    }
                }
                Step::Remove(index) if !alive.is_empty() => {
                    let waiter = alive.swap_remove(index.index(alive.len()));
                    // SAFETY: alive means in the tree; freed when it has left it.
                    unsafe {
                        let queue = model.get_mut(&(*waiter).address).unwrap();
                        queue.retain(|&other| other != waiter);
                        tree.remove(waiter);
                        drop(Box::from_raw(waiter));
                    }
                }
                Step::Wake(index) => {
                    let address = *index.get(addresses);
                    // SAFETY: as above.
                    unsafe {
                        let first = *tree.find(address);
                        let expected = model.get_mut(&address).and_then(VecDeque::pop_front);
                        prop_assert_eq!(NonNull::new(first), expected.and_then(NonNull::new));
                        if !first.is_null() {
                            tree.remove(first);
                            alive.retain(|&other| other != first);
                            drop(Box::from_raw(first));
                        }
                    }
                }
                Step::Remove(_) => {}
            }
            model.retain(|_, queue| !queue.is_empty());
            let mut queues = Vec::new();
            // SAFETY: nobody else has the tree.
            unsafe { walk(tree.0, &mut queues) };
            let expected: Vec<_> =
                model.iter().map(|(&address, queue)| (address, Vec::from(queue.clone()))).collect();
            prop_assert_eq!(queues, expected);
        }
        for waiter in alive {
            // SAFETY: as above.
            unsafe {
                tree.remove(waiter);
                drop(Box::from_raw(waiter));
            }
        }
        prop_assert!(tree.0.is_null());
    }
}

#[test]
fn addresses_in_a_row_do_not_make_a_deep_tree() {
    const COUNT: usize = 1 << 14;
    // The words of an array of locks, of structures, of pages; upwards and downwards.
    for stride in [4, 64, 4096] {
        for upwards in [true, false] {
            let mut tree = Tree(null_mut());
            let all: Vec<*mut Waiter> = (0..COUNT)
                .map(|i| if upwards { i } else { COUNT - i })
                .map(|i| Box::into_raw(waiter(0x5555_0000_0000 + i * stride)))
                .collect();
            // SAFETY: nobody else has the tree; removed before they are freed.
            let depth = unsafe {
                all.iter().for_each(|&waiter| tree.push(waiter));
                walk(tree.0, &mut Vec::new())
            };
            // A random tree of 2^14 nodes is 35 deep on average (4.3 ln n), hardly ever 50.
            assert!(depth < 60, "{depth} deep with strides of {stride}");
            for waiter in all {
                // SAFETY: as above.
                unsafe {
                    tree.remove(waiter);
                    drop(Box::from_raw(waiter));
                }
            }
            assert!(tree.0.is_null());
        }
    }
}
