//! The guest's parameters: `key=value` words of the command line in `/chosen`.
//! A value that cannot be read ends the guest: a run with a mistyped parameter would test something else.

use crate::fail;

/// A command line.
#[derive(Clone, Copy, Debug)]
pub struct Args(pub &'static str);

impl Args {
    /// The value of `key`, the last one if it stands there more than once.
    pub fn get(&self, key: &str) -> Option<&'static str> {
        self.0
            .split_ascii_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The decimal number after `key=`, or `default` if there is none.
    pub fn number(&self, key: &str, default: u64) -> u64 {
        match self.get(key) {
            None => default,
            Some(text) => text
                .parse()
                .unwrap_or_else(|_| fail!("parameter {key}={text} is not a number")),
        }
    }
}
