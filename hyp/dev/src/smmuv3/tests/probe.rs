//! What an SMMU says it can do.

use crate::smmuv3::{Abilities, Fault, Format, Unfit};

use super::fake::{AIDR, Fake, GBPA, IDR0, IDR1, IDR5, Outcome};

fn probe(fake: &Fake) -> Result<Abilities, Unfit> {
    Abilities::probe(fake, 0xffff, 40)
}

#[test]
fn qemus_smmu_is_fit() {
    let abilities = probe(&Fake::qemu()).unwrap();
    assert_eq!(
        (abilities.format, abilities.bits, abilities.bbml),
        (Format::TwoLevel, 16, 2)
    );
    assert!(abilities.range);
    let needs = abilities.needs([(0, 0x1_0000)].into_iter());
    assert_eq!((needs.pages, needs.align), (5, 8192));
}

#[test]
fn each_missing_ability_has_a_name() {
    let fake = Fake::qemu();
    let good = |register| fake.register(register);
    for (register, value, error) in [
        (AIDR, 0x10, Unfit::Version(1, 0)),
        (IDR0, good(IDR0) & !1, Unfit::NoStageTwo),
        (IDR0, good(IDR0) & !(3 << 2) | 1 << 2, Unfit::Tables(1)),
        (IDR0, good(IDR0) | 3 << 21, Unfit::BigEndian(3)),
        (IDR0, good(IDR0) & !(1 << 4), Unfit::NotCoherent),
        (IDR0, good(IDR0) & !(3 << 24) | 2 << 24, Unfit::Stalls(2)),
        (
            IDR1,
            good(IDR1) | 1 << 30,
            Unfit::Preset(good(IDR1) | 1 << 30),
        ),
        (
            IDR1,
            good(IDR1) | 1 << 29,
            Unfit::Preset(good(IDR1) | 1 << 29),
        ),
        (IDR5, 4, Unfit::Granule),
        (IDR5, 1 << 4 | 1, Unfit::OutputSize { has: 36, needs: 40 }),
        (IDR5, 1 << 4 | 7, Unfit::OutputSize { has: 32, needs: 40 }),
        (
            IDR1,
            good(IDR1) & !63 | 15,
            Unfit::StreamBits { has: 15, needs: 16 },
        ),
    ] {
        assert_eq!(probe(&Fake::with(register, value)), Err(error));
        assert!(error.to_string().len() > 20, "{error}");
    }
}

#[test]
fn later_minor_revisions_and_larger_outputs_are_fit() {
    for minor in 0..=15 {
        assert!(probe(&Fake::with(AIDR, minor)).is_ok());
    }
    for oas in 2..=6 {
        assert!(probe(&Fake::with(IDR5, 1 << 4 | oas)).is_ok());
    }
}

#[test]
fn one_to_thirty_two_bits_of_streams() {
    for bits in 1..=32u32 {
        let fake = Fake::qemu();
        let idr1 = fake.register(IDR1) & !63 | 32;
        fake.inner().registers.insert(IDR1, idr1);
        let last = u32::MAX >> (32 - bits);
        let two_level = Abilities::probe(&fake, last, 40);
        let idr0 = fake.register(IDR0) & !(3 << 27);
        fake.inner().registers.insert(IDR0, idr0);
        let linear = Abilities::probe(&fake, last, 40);
        let too_large = |limit| Err(Unfit::TableSize { needs: bits, limit });
        let shape = |a: Result<Abilities, Unfit>| a.map(|a| (a.format, a.bits));
        match bits {
            1..=6 => assert_eq!(shape(two_level), Ok((Format::Linear, bits))),
            7..=20 => assert_eq!(shape(two_level), Ok((Format::TwoLevel, bits))),
            _ => assert_eq!(shape(two_level), too_large(20)),
        }
        match bits {
            1..=16 => assert_eq!(shape(linear), Ok((Format::Linear, bits))),
            _ => assert_eq!(shape(linear), too_large(16)),
        }
    }
}

#[test]
fn a_running_smmu_is_stopped_without_letting_anything_through() {
    let fake = Fake::qemu();
    fake.inner().registers.insert(super::fake::CR0, 0x1d);
    crate::smmuv3::quiesce(&fake).unwrap();
    let writes: Vec<u32> = fake.inner().writes.iter().map(|w| w.0).collect();
    let (abort, off) = (
        writes.iter().position(|w| *w == GBPA),
        writes.iter().position(|w| *w == super::fake::CR0),
    );
    assert!(abort < off && off.is_some());
    assert_eq!(fake.access(0), Outcome::Abort);
    // Attributes of bypassed transactions are not ours.
    assert_eq!(fake.register(GBPA), 1 << 12 | 1 << 20);
    crate::smmuv3::bypass(&fake).unwrap();
    assert_eq!(fake.access(0), Outcome::Bypass);
}

#[test]
fn one_that_does_not_answer_is_given_up_after_a_second() {
    let fake = Fake::qemu();
    fake.inner().dead = true;
    fake.inner().registers.insert(super::fake::CR0, 1);
    let stuck = Fake::with(GBPA, 1 << 31);
    assert_eq!(crate::smmuv3::quiesce(&fake), Ok(()));
    assert_eq!(crate::smmuv3::quiesce(&stuck), Err(Fault::Silent("GBPA")));
}
