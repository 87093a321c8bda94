//! Who reads what: results go to standard output, remarks and progress to standard error.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// A remark for the person who watches.
pub fn say(line: &str) {
    // A closed standard error is no reason to stop.
    let _ = writeln!(io::stderr(), "{line}");
}

/// A line of the results, at once: a program may be reading it through a pipe.
pub fn print(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

/// A bar on standard error; where that is no terminal it draws nothing, and the label stands as a line.
pub fn bar(length: u64, label: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}").expect("a valid template"),
    );
    bar.set_message(label.to_owned());
    if bar.is_hidden() {
        say(label);
    }
    bar
}
