//! The porthole command.
fn main() {}
