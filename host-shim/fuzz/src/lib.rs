//! Targets for fuzzing: each takes bytes, plays the guest that they describe against a device of the VMM, and panics
//! if something is left that may not be. What the bytes mean stands in `script`; nothing is fuzzed here by itself.
//! `tests/` runs each target over the files in `corpus/` and over many inputs made from a fixed seed.
#![forbid(unsafe_code)]

mod disk;
mod function;
mod queues;
mod script;

use std::io;
use std::path::Path;
use std::sync::Arc;

use porthole_vmm::virtio::block::{Block, BlockSettings};
use porthole_vmm::virtio::console::{Console, Input, Output};
use porthole_vmm::virtio::rng::Rng;

pub use self::script::{Op, encode};

/// A target: name, which is its folder in `corpus/`, and entry.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("block", block),
    ("console", console),
    ("rng", rng),
    ("pci", pci),
];

fn settings() -> BlockSettings {
    BlockSettings {
        id: "fuzz".to_owned(),
        readonly: false,
        queues: 2,
        queue_size: 16,
    }
}

/// Requests to a disk, which must stay inside it.
pub fn block(data: &[u8]) {
    let disk = Arc::new(disk::Checked::default());
    queues::drive(&mut Block::new(disk, &settings()), data);
}

/// Both ways of a console that sends back what it gets.
pub fn console(data: &[u8]) {
    if let Ok(input) = Input::new() {
        let input = Arc::new(input);
        input.push(b"typed");
        queues::drive(&mut Console::new(input.clone(), Output::Echo(input)), data);
    }
}

/// Buffers for random bytes.
pub fn rng(data: &[u8]) {
    if let Ok(mut rng) = Rng::open(Path::new("/dev/zero")) {
        queues::drive(&mut rng, data);
    }
}

/// Configuration space, registers and BARs of a function with a disk behind it, its worker threads running.
pub fn pci(data: &[u8]) {
    let disk = Arc::new(disk::Checked::default());
    function::drive(Box::new(Block::new(disk, &settings())), data);
}

/// What the fakes fail with.
fn refused() -> io::Error {
    io::Error::other("refused")
}
