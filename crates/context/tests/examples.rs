//! The examples say what they are meant to say.

#[allow(dead_code, reason = "its main prints")]
#[path = "../examples/generator.rs"]
mod generator;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/parser.rs"]
mod parser;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/print_loop.rs"]
mod print_loop;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/self_freeing.rs"]
mod self_freeing;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/symmetric.rs"]
mod symmetric;

#[test]
fn generators_compare_the_leaves_of_trees() {
    let expected = [
        "the leaves of a tree: abcd",
        "of one of another shape: abcd",
        "the same? true",
        "a third differs at leaf 1",
    ];
    assert_eq!(generator::story(), expected);
}

#[test]
fn a_parser_is_fed_one_character_at_a_time() {
    let story = parser::story();
    let open: String = story.iter().filter_map(|line| line.split("open: ").nth(1)).collect();
    assert_eq!(open, "0011122221111000");
    assert_eq!(story.last().unwrap(), "=  113");
}

#[test]
fn two_contexts_talk_by_turns() {
    let expected = [
        "here: send 1",
        "      there: got 1, send 10",
        "here: got 10",
        "here: send 2",
        "      there: got 2, send 20",
        "here: got 20",
        "here: send 3",
        "      there: got 3, send 30",
        "here: got 30",
    ];
    assert_eq!(print_loop::story(), expected);
}

#[test]
fn three_members_pass_control_in_a_circle() {
    let words: Vec<String> = symmetric::story();
    let names: Vec<&str> = words.iter().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(names[..7], ["Ada", "Bob", "Eve", "Ada", "Bob", "Eve", "Ada"], "{words:?}");
    let last = ["Bob: I leave the circle", "Ada: I leave the circle", "Eve: I leave the circle"];
    assert_eq!(words[7..], last);
}

#[test]
fn each_link_of_a_chain_frees_its_own_stack() {
    let expected = [
        "link 1 runs; stacks: 1 in use, 0 free",
        "      its stack is free; stacks: 1 in use, 1 free",
        "link 2 runs; stacks: 1 in use, 1 free",
        "      its stack is free; stacks: 1 in use, 1 free",
        "link 3 runs; stacks: 1 in use, 1 free",
        "      its stack is free; stacks: 1 in use, 1 free",
        "link 4 runs; stacks: 1 in use, 1 free",
        "      its stack is free; stacks: 1 in use, 1 free",
        "link 5 runs; stacks: 1 in use, 1 free",
        "      its stack is free; stacks: 0 in use, 2 free",
        "main is back, after 5 links; stacks: 0 in use, 2 free",
    ];
    assert_eq!(self_freeing::story(), expected);
}
