//! The launch measurement.

use porthole_abi::{Error, Features, HostFunction, PAGE_SIZE, VmConfig};
use sha2::{Digest, Sha256};

use crate::addr::PhysAddr;
use crate::testing::{Host, VmPlan};

/// What a launch consists of.
struct Launch {
    plan: VmPlan,
    features: Features,
    config: fn(&mut VmConfig),
    /// IPA page and content word of each measured page, in order.
    pages: Vec<(u64, u64)>,
    entry: u64,
    x0: u64,
}

impl Default for Launch {
    fn default() -> Self {
        Self {
            plan: VmPlan::default(),
            features: Features::UNSAFE_DMA,
            config: |_| {},
            pages: vec![(0, 1), (1, 2)],
            entry: 0,
            x0: 0,
        }
    }
}

fn measure(launch: &Launch) -> [u64; 4] {
    let mut host = Host::with_features(launch.features);
    let mut config = host.config(launch.plan);
    (launch.config)(&mut config);
    let vm = host.create(&config).unwrap();
    for index in 0..u64::from(launch.plan.vcpus) {
        host.call(HostFunction::VcpuCreate, &[vm, index]).unwrap();
    }
    for (page, content) in &launch.pages {
        let pa = host.pages(1);
        host.machine().poke(PhysAddr::new(pa), 511, *content);
        let ipa = Host::GUEST_RAM + page * PAGE_SIZE;
        host.call(HostFunction::VmDonate, &[vm, pa, ipa, 1, 1])
            .unwrap();
    }
    let entry = Host::GUEST_RAM + launch.entry;
    host.call(HostFunction::VmFinalize, &[vm, entry, launch.x0])
        .unwrap();
    let x = host.call(HostFunction::VmMeasurement, &[vm]).unwrap();
    [x[1], x[2], x[3], x[4]]
}

#[test]
fn a47_every_bit_of_a_launch_counts() {
    let base = || Launch::default();
    let launches = [
        base(),
        Launch {
            pages: vec![(0, 1), (1, 3)],
            ..base()
        },
        Launch {
            pages: vec![(1, 2), (0, 1)],
            ..base()
        },
        Launch {
            pages: vec![(0, 1), (2, 2)],
            ..base()
        },
        Launch {
            pages: vec![(0, 1)],
            ..base()
        },
        Launch {
            pages: vec![(0, 1), (1, 2), (2, 0)],
            ..base()
        },
        Launch { entry: 4, ..base() },
        Launch { x0: 1, ..base() },
        Launch {
            features: Features::DMA_ISOLATED,
            ..base()
        },
        Launch {
            plan: VmPlan {
                vcpus: 1,
                ..base().plan
            },
            ..base()
        },
        Launch {
            plan: VmPlan {
                spis: 65,
                ..base().plan
            },
            ..base()
        },
        Launch {
            config: |c| c.msi_base = 81,
            ..base()
        },
        Launch {
            config: |c| c.msi_count = 7,
            ..base()
        },
        Launch {
            config: |c| c.regions[0].size += PAGE_SIZE,
            ..base()
        },
        Launch {
            config: |c| c.regions[1].base += PAGE_SIZE,
            ..base()
        },
        Launch {
            config: |c| c.regions.swap(0, 1),
            ..base()
        },
    ];
    let all: Vec<_> = launches.iter().map(measure).collect();
    for (i, one) in all.iter().enumerate() {
        assert_eq!(*one, measure(&launches[i]), "{i} repeats");
        assert!(all[i + 1..].iter().all(|other| other != one), "{i}");
    }
}

#[test]
fn where_pages_come_from_does_not_count() {
    let plan = VmPlan {
        metadata: 40,
        ..VmPlan::default()
    };
    let moved = Launch {
        plan,
        ..Launch::default()
    };
    assert_eq!(measure(&moved), measure(&Launch::default()));
}

#[test]
fn a47_content_after_finalize_is_refused_and_pages_come_zeroed() {
    let mut host = Host::new();
    let vm = host.vm(VmPlan::default());
    let before = host.call(HostFunction::VmMeasurement, &[vm]).unwrap();
    let page = host.pages(1);
    host.machine().poke(PhysAddr::new(page), 0, 0x5ec2);
    let donate = |flags| {
        host.call(
            HostFunction::VmDonate,
            &[vm, page, Host::GUEST_RAM, 1, flags],
        )
    };
    assert_eq!(donate(1).map(|_| ()), Err(Error::BadState));
    donate(0).unwrap();
    assert!(host.machine().is_zero(PhysAddr::new(page)));
    assert_eq!(host.call(HostFunction::VmMeasurement, &[vm]), Ok(before));
}

#[test]
fn a_refused_donation_is_not_measured() {
    let mut host = Host::new();
    let config = host.config(VmPlan::default());
    let run = |host: &mut Host, fail: bool| {
        let vm = host.create(&config).unwrap();
        for index in [0, 1] {
            host.call(HostFunction::VcpuCreate, &[vm, index]).unwrap();
        }
        if fail {
            let bad = [vm, Host::RAM, Host::GUEST_RAM, 1, 1];
            assert_eq!(
                host.call(HostFunction::VmDonate, &bad),
                Err(Error::NotHostOwned)
            );
        }
        host.call(HostFunction::VmFinalize, &[vm, Host::GUEST_RAM, 0])
            .unwrap();
        let x = host.call(HostFunction::VmMeasurement, &[vm]).unwrap();
        host.call(HostFunction::VmTeardown, &[vm]).unwrap();
        host.call(
            HostFunction::VmReclaim,
            &[vm, config.meta_pa, config.meta_pages],
        )
        .unwrap();
        host.call(HostFunction::VmDestroy, &[vm]).unwrap();
        x[1..5].to_vec()
    };
    assert_eq!(run(&mut host, false), run(&mut host, true));
}

/// The encoding of `measure`, written down a second time from its description.
#[test]
fn the_measurement_is_what_the_document_says() {
    let mut host = Host::new();
    let config = host.config(VmPlan::default());
    let mut hash = Sha256::new();
    hash.update(0x5048_0001u32.to_le_bytes());
    hash.update(config.version.to_le_bytes());
    hash.update(0u64.to_le_bytes());
    hash.update(Features::UNSAFE_DMA.bits().to_le_bytes());
    for word in [2u32, 64, Host::MSI_BASE, 8, 5] {
        hash.update(word.to_le_bytes());
    }
    for region in &config.regions[..5] {
        hash.update(region.base.to_le_bytes());
        hash.update(region.size.to_le_bytes());
        hash.update(region.kind.to_le_bytes());
    }
    for (page, content) in [(0u64, 1u64), (1, 2)] {
        hash.update(0x5048_0002u32.to_le_bytes());
        hash.update((Host::GUEST_RAM + page * PAGE_SIZE).to_le_bytes());
        let mut bytes = [0u8; 4096];
        bytes[4088..].copy_from_slice(&content.to_le_bytes());
        hash.update(bytes);
    }
    hash.update(0x5048_0003u32.to_le_bytes());
    hash.update(Host::GUEST_RAM.to_le_bytes());
    hash.update(0u64.to_le_bytes());
    let digest = hash.finalize();
    let words: Vec<u64> = digest
        .chunks(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect();
    assert_eq!(measure(&Launch::default())[..], words);
}
