//! The example `files` tells its story.

#[allow(dead_code, reason = "an example has a main of its own")]
#[path = "../../examples/files.rs"]
mod files;

use crate::support::Company;

#[test]
fn files_tells_what_its_page_says() {
    let told = Company::Shared.keep(|| files::story().unwrap());
    let page = include_str!("../../examples/files.rs");
    let shown: Vec<_> = page
        .lines()
        .skip_while(|line| *line != "//! ```text")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| line.trim_start_matches("//! "))
        .collect();
    assert_eq!(told, shown);
}
