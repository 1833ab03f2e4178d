//! Random registers, random commands: the model never knows a page that is not kept for it, and nothing stays behind.

use proptest::prelude::*;

use super::its::Its;
use super::*;

/// Which page an address names.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0u64..64,
        1 => Just(1 << 20),
        1 => any::<u64>(),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    /// GICR_PROPBASER, GICR_PENDBASER, GICR_CTLR of a redistributor.
    Lpis(u64, u64, u64, bool),
    /// A register of the ITS, by its offset.
    Table(u64, u64, u64),
    Switch(bool),
    Command([u64; 4]),
    Map(u64, u64, u64),
    Unmap(u64),
    Any(u64, u64, u64),
    /// Guest memory comes and goes.
    Donate(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..4, place(), place(), any::<bool>())
            .prop_map(|(c, a, b, on)| Step::Lpis(c, a, b, on)),
        (
            prop_oneof![Just(0x80), Just(0x100), Just(0x108), Just(0x110)],
            place(),
            0u64..0x800
        )
            .prop_map(|(r, p, low)| Step::Table(r, p, low)),
        any::<bool>().prop_map(Step::Switch),
        any::<[u64; 4]>().prop_map(|[a, b, c, d]| Step::Command([a & !0xf0, b, c, d])),
        (0u64..6, place(), 0u64..18).prop_map(|(d, p, b)| Step::Map(d, p, b)),
        (0u64..6).prop_map(Step::Unmap),
        (0u64..0xa_0000, 0u64..4, any::<u64>()).prop_map(|(a, w, v)| Step::Any(a, w, v)),
        (0u64..64).prop_map(Step::Donate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a62_no_sequence_of_accesses_shows_the_gic_a_page_that_is_not_kept(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut its = Its::new(GicPlan::default());
        let vm = its.host.vm(VmPlan { metadata: 64, ..VmPlan::default() });
        let first = aligned(&mut its.host, 64);
        let address = |place: u64| if place < 64 { first + place * 4096 } else { place };
        let mut ipa = Host::GUEST_RAM;
        let mut donated = 0;
        for step in steps {
            let host = &its.host;
            match step {
                Step::Lpis(cpu, property, pending, on) => {
                    let at = GICR + cpu * 0x2_0000;
                    write(host, at + 0x70, address(property) | 13);
                    write(host, at + 0x78, address(pending));
                    write32(host, at, on.into());
                }
                Step::Table(register, place, low) => {
                    write(host, GITS + register, VALID | address(place) | low);
                }
                Step::Switch(on) => write32(host, GITS, on.into()),
                Step::Command(words) => { try_command(&its, words); }
                Step::Map(device, place, bits) => {
                    try_command(&its, super::its::mapd(device, address(place), bits));
                }
                Step::Unmap(device) => try_command(&its, super::its::unmapd(device)),
                Step::Any(offset, log2, value) => {
                    let at = GITS + offset;
                    if host.hyp.gic.find(PhysAddr::new(at)).is_some() {
                        let _ = host.access(at, 1 << log2, Some(value));
                        let _ = host.access(at, 1 << log2, None);
                    }
                }
                Step::Donate(place) => {
                    let donate = [vm, address(place), ipa, 1, 0];
                    if host.call(HostFunction::VmDonate, &donate).is_ok() {
                        ipa += 4096;
                        donated += 1;
                    }
                }
            }
            its.host.machine().assert_sound();
        }
        // All switched off, nothing is kept.
        let host = &its.host;
        write32(host, GITS, 0);
        for register in [0x80, 0x100, 0x108] {
            write(host, GITS + register, 0);
        }
        for cpu in 0..4 {
            write32(host, GICR + cpu * 0x2_0000, 0);
        }
        prop_assert_eq!(kept(host), [0, 0]);
        prop_assert_eq!(host.hyp.memory.pages_by_owner(PageOwner::VmMemory), donated);
        prop_assert_eq!(host.audit(), (0, 0, None));
        prop_assert!(host.machine().its_devices().is_empty());
        host.machine().assert_sound();
    }
}

/// Puts a command where the ITS reads next and lets it.
fn try_command(its: &Its, words: [u64; 4]) {
    let base = read(&its.host, GITS + 0x80);
    let reader = read(&its.host, GITS + 0x90) & !1;
    let page = (base & 0xf_ffff_ffff_f000) + (reader & !0xfff);
    if base & VALID == 0 || !matches!(state(&its.host, page), PageState::Pinned(_)) {
        return;
    }
    let first = (reader & 0xfff) as usize / 8;
    for (index, word) in (first..).zip(words) {
        its.host.machine().poke(PhysAddr::new(page), index, word);
    }
    let bytes = ((base & 0xff) + 1) * 4096;
    let writer = (reader + 32) % bytes;
    write(&its.host, GITS + 0x88, writer | 1);
}
