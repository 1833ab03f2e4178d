//! Hosts that call anything with anything: nothing panics, and pages stay where the windows say.

use porthole_abi::{Error, HostFunction};
use proptest::prelude::*;

use crate::testing::{Host, VmPlan};

/// Arguments that a check might get wrong.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..9,
        2 => (0u64..0x4100).prop_map(|n| Host::RAM + n * 4096),
        2 => (0u64..0x40).prop_map(|n| Host::GUEST_RAM + n * 4096),
        2 => (0u64..4, 0u64..4).prop_map(|(slot, generation)| generation << 8 | slot),
        1 => (0u64..0x40).prop_map(|n| Host::APERTURE + n * 4096),
        1 => (0u32..64).prop_map(|n| 1 << n),
        1 => (0u64..8192).prop_map(|n| u64::MAX - n),
        1 => any::<u64>(),
    ]
}

fn function() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => proptest::sample::select(HostFunction::ALL).prop_map(|f| u64::from(f.id())),
        2 => (0u64..0x20).prop_map(|n| 0xc400_0000 | n).prop_filter("ends the machine", |f| {
            ![0xc400_0008, 0xc400_0009, 0xc400_0012].contains(f)
        }),
        1 => any::<u64>().prop_filter("ends the machine", |f| {
            ![0x8400_0008, 0x8400_0009, 0x8400_0012, 0xc400_0012].contains(&(*f as u32))
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a42_random_calls_shake_nothing(
        calls in proptest::collection::vec(
            (function(), proptest::array::uniform6(argument()), any::<u8>()),
            1..150,
        ),
    ) {
        let mut host = Host::new();
        let vm = host.vm(VmPlan::default());
        let config = host.config(VmPlan::default());
        let other = host.create(&config).unwrap();
        let window_pages = host.pages(2);
        let window = host.window(vm, window_pages, 2);
        let blocks = [
            host.block(zerocopy::IntoBytes::as_bytes(&config)),
            host.block(zerocopy::IntoBytes::as_bytes(&window)),
        ];
        for (function, mut args, choice) in calls {
            // Often a handle or a block that holds, so that calls get further.
            match choice % 6 {
                0 => args[0] = vm,
                1 => args[0] = other,
                2 => args[0] = blocks[usize::from(choice >> 3 & 1)],
                _ => {}
            }
            let x = host.hvc(function, &args);
            let status = x[0].cast_signed();
            if HostFunction::from_id(function as u32).is_some() {
                prop_assert!(status == 0 || Error::from_code(status).is_some(), "{}", status);
                if status != 0 {
                    prop_assert_eq!(&x[1..7], &args);
                }
            }
        }
        let (shared, windows, offender) = host.audit();
        prop_assert_eq!(shared, windows);
        prop_assert_eq!(offender, None);
        host.machine().assert_sound();
    }
}
