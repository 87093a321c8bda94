//! Values both ways: a parser that is fed one character at a time.
//!
//! It is written as if it could read: three functions that call each other and ask for the next character wherever
//! they need it, with their state in local variables. But nobody has to wait for input in it: each `ask` suspends
//! the coroutine, and whoever has a character resumes it, for instance when a network packet has come.

use sleave_context::{Coroutine, CoroutineState, Yielder};

/// The parser's look-ahead, and its way to ask for more. It says how many parentheses are open.
struct Parser<'a> {
    yielder: &'a Yielder<char, u32>,
    next: char,
    open: u32,
}

impl Parser<'_> {
    fn ask(&mut self) {
        self.next = self.yielder.suspend(self.open);
    }

    /// sum = product { "+" product }
    fn sum(&mut self) -> u64 {
        let mut sum = self.product();
        while self.next == '+' {
            self.ask();
            sum += self.product();
        }
        sum
    }

    /// product = factor { "*" factor }
    fn product(&mut self) -> u64 {
        let mut product = self.factor();
        while self.next == '*' {
            self.ask();
            product *= self.factor();
        }
        product
    }

    /// factor = "(" sum ")" | digit { digit }
    fn factor(&mut self) -> u64 {
        let mut value = 0;
        if self.next == '(' {
            self.open += 1;
            self.ask();
            value = self.sum();
            self.open -= 1;
            self.ask(); // past the parenthesis
        }
        while let Some(digit) = self.next.to_digit(10) {
            value = 10 * value + u64::from(digit);
            self.ask();
        }
        value
    }
}

/// What there is to say, line by line.
pub fn story() -> Vec<String> {
    let mut parser = Coroutine::new(|yielder, next| Parser { yielder, next, open: 0 }.sum());
    let mut lines = Vec::new();
    for character in "2*(3+(4+1)*10)+7=".chars() {
        lines.push(match parser.resume(character) {
            CoroutineState::Yielded(open) => format!("{character}  open: {open}"),
            CoroutineState::Complete(value) => format!("{character}  {value}"),
        });
    }
    lines
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
