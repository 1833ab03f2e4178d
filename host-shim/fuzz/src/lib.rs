//! Targets for fuzzing: each takes bytes, plays the guest that they describe against a device of the VMM, and panics
//! if something is left that may not be. What the bytes mean stands in `script`; nothing is fuzzed here by itself.
//! `tests/` runs each target over the files in `corpus/` and over many inputs made from a fixed seed.
#![forbid(unsafe_code)]

mod disk;
mod function;
mod queues;
mod script;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use porthole_vmm::virtio::block::{Block, BlockSettings};
use porthole_vmm::virtio::console::{Console, Input, Output};
use porthole_vmm::virtio::net::{Net, NetOptions};
use porthole_vmm::virtio::rng::Rng;
use porthole_vmm::virtio::vsock::Vsock;

pub use self::script::{Op, encode};

/// A target: name, which is its folder in `corpus/`, and entry.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("block", block),
    ("console", console),
    ("rng", rng),
    ("net", net),
    ("vsock", vsock),
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

/// Both ways of a network whose other side has sent frames of several lengths.
pub fn net(data: &[u8]) {
    let Ok((ours, mut theirs)) = UnixStream::pair() else {
        return;
    };
    for length in [14u32, 60, 300, 1514, 9000] {
        let frame = [&length.to_be_bytes()[..], &vec![1; length as usize]].concat();
        let _ = theirs.write_all(&frame);
    }
    if let Ok(mut net) = Net::connected(ours, NetOptions::default()) {
        queues::drive(&mut net, data);
    }
}

/// Packets of a guest with context id 5, and a caller that waits for it.
pub fn vsock(data: &[u8]) {
    static RUN: AtomicU64 = AtomicU64::new(0);
    let run = RUN.fetch_add(1, Ordering::Relaxed);
    let name = format!("porthole-fuzz-{}-{run}", std::process::id());
    let path = std::env::temp_dir().join(name);
    if let Ok(mut vsock) = Vsock::new(5, &path) {
        let caller = UnixStream::connect(&path);
        let _ = caller.map(|mut caller| caller.write_all(b"CONNECT 1\n"));
        queues::drive(&mut vsock, data);
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
