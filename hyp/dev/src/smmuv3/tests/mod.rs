//! The driver against a fake SMMU that caches what it may and forgets what it is told.

mod fake;
mod life;
mod probe;
mod queues;
mod streams;

use fake::{Fake, Outcome};
use porthole_core::addr::{PhysAddr, PhysPages};

use super::{Abilities, Smmu, StageTwo};

/// Where the SMMU's memory begins in these tests.
const MEMORY: u64 = 0x4800_0000;

const HOST: StageTwo = StageTwo {
    root: PhysAddr::new(0x4000_2000),
    vmid: 0,
    vtcr: 0x8004_3558,
};

const OWN: StageTwo = StageTwo {
    root: PhysAddr::new(0x4123_4000),
    vmid: 9,
    vtcr: 0x8004_3558,
};

/// Words 1 to 3 of an entry behind [`HOST`] and [`OWN`], by the fields of Arm IHI 0070, 5.2: SHCFG incoming; S2R, S2AFFD,
/// S2AA64, S2PS 44 bits, 4 KiB, inner shareable, write-back, level 1, T0SZ 24; VMID; root.
const BEHIND_HOST: Outcome =
    Outcome::Stage2([0x0000_1000_0000_0000, 0x042c_3558_0000_0000, 0x4000_2000]);
const BEHIND_OWN: Outcome =
    Outcome::Stage2([0x0000_1000_0000_0000, 0x042c_3558_0000_0009, 0x4123_4000]);

/// An SMMU that was taken over, with the host's map for these streams.
fn started(fake: &Fake, streams: &[(u32, u32)]) -> Smmu<Fake> {
    let smmu = taken(fake, streams);
    smmu.start(&HOST, streams.iter().copied()).unwrap();
    smmu
}

/// An SMMU that was taken over.
fn taken(fake: &Fake, streams: &[(u32, u32)]) -> Smmu<Fake> {
    let last = streams.iter().map(|(s, n)| s + (n - 1)).max().unwrap();
    super::quiesce(fake).unwrap();
    let abilities = Abilities::probe(fake, last, 40).unwrap();
    let needs = abilities.needs(streams.iter().copied());
    assert!(MEMORY.is_multiple_of(needs.align));
    let memory = PhysPages::new(PhysAddr::new(MEMORY), needs.pages).unwrap();
    Smmu::new(fake.clone(), abilities, memory).unwrap()
}

/// All requester ids of a PCI root.
const PCI: &[(u32, u32)] = &[(0, 0x1_0000)];
