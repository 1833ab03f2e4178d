//! Guests that do anything: no exit of theirs may panic, leak or shake the ownership of a page.

use porthole_abi::{ExitKind, HostFunction};
use proptest::prelude::*;

use super::*;
use crate::hw::IrqSource;

/// Addresses that mean something, and any.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u64..0x1_0000).prop_map(|o| Host::GICD + o),
        (0u64..0x5_0000).prop_map(|o| Host::GICR + o),
        (0u64..0x1000).prop_map(|o| Host::V2M + o),
        (0u64..64 << 20).prop_map(|o| Host::GUEST_RAM + o),
        (0u64..64 << 20).prop_map(|o| Host::APERTURE + o),
        any::<u64>(),
    ]
}

fn exit() -> impl Strategy<Value = GuestExit> {
    let classes = prop_oneof![
        4 => Just(0x24u64),
        2 => Just(0x16),
        2 => Just(0x18),
        1 => Just(0x20),
        1 => Just(0x17),
        1 => Just(0x01),
        1 => 0u64..64,
    ];
    let iss = prop_oneof![
        any::<u64>(),
        any::<u64>().prop_map(|i| i & !0x1_ffc0_013f | 1 << 24 | 0x06 | i & 0xc0_0040),
        (0u64..0x20_0000).prop_map(|i| 3 << 20 | i),
        Just(0),
    ];
    prop_oneof![
        8 => (classes, iss, address(), any::<bool>()).prop_map(|(class, iss, at, same)| {
            GuestExit::Sync {
                esr: class << 26 | iss & 0x1ff_ffff,
                far: if same { at } else { at ^ 0xffff_0000_0000_0000 },
                hpfar: at >> 12 << 4,
            }
        }),
        1 => Just(GuestExit::Irq),
    ]
}

/// Function ids that mean something, and any.
fn function() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u64..0x20).prop_map(|n| 0x8400_0000 | n),
        (0u64..0x20).prop_map(|n| 0xc400_0000 | n),
        (0u64..8).prop_map(|n| 0xc600_0200 | n),
        (0x50u64..0x54).prop_map(|n| 0x8400_0000 | n),
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a46_no_exit_of_a_guest_shakes_the_hypervisor(
        exits in proptest::collection::vec((exit(), function(), address(), address()), 1..80),
        irqs in proptest::collection::vec(0u8..5, 0..40),
        values in proptest::collection::vec(any::<u64>(), 90),
        lists in any::<u64>(),
    ) {
        let (host, vm) = ready();
        let before = host.state();
        {
            let mut script = host.machine().cpu.script();
            script.random = Some(3);
            script.irqs = irqs.iter().map(|n| match n {
                0 => IrqSource::Kick,
                1 => IrqSource::VirtualTimer,
                2 => IrqSource::Maintenance,
                3 => IrqSource::Spurious,
                _ => IrqSource::Host,
            }).collect();
        }
        let mut left = exits.into_iter();
        let mut seed = lists;
        host.machine().cpu.script().guest = Some(Guest(Box::new(move |context| {
            let (exit, function, a, b) = left.next()?;
            seed = seed.rotate_left(7) ^ a;
            context.x = [seed; 31];
            context.x[..3].copy_from_slice(&[function, a, b]);
            // Hardware moves list registers as it likes, within their format.
            for lr in context.gic.lr.iter_mut().take(context.gic.used as usize) {
                if seed & 1 != 0 {
                    *lr = *lr & !(3 << 62) | (seed >> 3 & 3) << 62;
                }
                seed = seed.rotate_right(3);
            }
            if context.gic.hcr & 4 != 0 {
                context.gic.hcr |= (seed & 31) << 27;
            }
            Some(exit)
        })));
        for value in values {
            for vcpu in [0, 1] {
                let Ok((kind, payload)) = host.run(vm, vcpu, value) else {
                    continue;
                };
                match kind {
                    ExitKind::MmioRead => prop_assert!(payload[0] % payload[1] == 0 && payload[2] == 0),
                    ExitKind::MmioWrite => prop_assert!(
                        payload[1] == 8 || payload[2] >> (8 * payload[1]) == 0
                    ),
                    ExitKind::RamFault => prop_assert!(
                        payload[0] % 4096 == 0 && payload[0] >= Host::GUEST_RAM
                    ),
                    ExitKind::HostInterrupt | ExitKind::CpuOff => prop_assert_eq!(payload, [0; 3]),
                    _ => {}
                }
            }
        }
        let mut after = host.state();
        // The guest may have ended itself: that is all that it can change.
        after[10] = before[10];
        prop_assert_eq!(after, before);
        prop_assert_eq!(host.audit(), (0, 0, None));
        host.machine().assert_sound();
        host.machine().cpu.script().guest = None;
        host.call(HostFunction::VmTeardown, &[vm]).unwrap();
    }
}
