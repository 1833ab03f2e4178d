//! Placeholder head: see Cargo.toml's description.
#![no_std]
