//! Placeholder head: see Cargo.toml's description.
