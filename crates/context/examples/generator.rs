//! Generators: do two trees have the same leaves from left to right, whatever their shapes?
//!
//! Each tree is walked by plain recursion, in a coroutine that yields at every leaf. So both walks go on leaf by leaf,
//! and stop at the first difference.

use sleave_context::{Coroutine, Yielder};

enum Tree {
    Leaf(char),
    Fork(Box<Tree>, Box<Tree>),
}

use Tree::Leaf;

fn fork(left: Tree, right: Tree) -> Tree {
    Tree::Fork(Box::new(left), Box::new(right))
}

fn walk(tree: &Tree, yielder: &Yielder<(), char>) {
    match tree {
        Leaf(name) => yielder.suspend(*name),
        Tree::Fork(left, right) => {
            walk(left, yielder);
            walk(right, yielder);
        }
    }
}

/// The leaves of a tree. What takes nothing and returns nothing is an iterator.
fn leaves(tree: Tree) -> Coroutine<(), char, ()> {
    Coroutine::new(move |yielder, ()| walk(&tree, yielder))
}

/// What there is to say, line by line.
pub fn story() -> Vec<String> {
    let left_deep = || fork(fork(fork(Leaf('a'), Leaf('b')), Leaf('c')), Leaf('d'));
    let right_deep = || fork(Leaf('a'), fork(Leaf('b'), fork(Leaf('c'), Leaf('d'))));
    let other = || fork(fork(Leaf('a'), Leaf('x')), fork(Leaf('c'), Leaf('d')));

    let first = leaves(other()).zip(leaves(right_deep())).position(|(one, another)| one != another);
    vec![
        format!("the leaves of a tree: {}", leaves(left_deep()).collect::<String>()),
        format!("of one of another shape: {}", leaves(right_deep()).collect::<String>()),
        format!("the same? {}", leaves(left_deep()).eq(leaves(right_deep()))),
        format!("a third differs at leaf {}", first.expect("it does")),
    ]
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
