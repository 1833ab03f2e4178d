//! Each target over its corpus, and over many scripts made from a fixed seed: the same in every run, and bounded.

use std::fs;
use std::path::Path;

use porthole_fuzz::{Op, TARGETS, encode};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Scripts for each target and each way of making them.
const CASES: u32 = 1000;

fn runner() -> TestRunner {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn every_file_of_a_corpus_is_survived() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let mut files = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            target(&fs::read(&path).unwrap());
            files += 1;
        }
        assert!(files > 0, "{} is empty", folder.display());
    }
}

#[test]
fn any_bytes_are_survived() {
    for (name, target) in TARGETS {
        let bytes = prop::collection::vec(any::<u8>(), 0..512);
        let result = runner().run(&bytes, |data| {
            target(&data);
            Ok(())
        });
        result.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// A buffer that is likely to be good, with a length that sectors and headers have.
fn descriptor() -> impl Strategy<Value = Op> {
    let table = prop_oneof![4 => Just(0u8), 1 => Just(1), 2 => Just(0x80)];
    let place = prop_oneof![8 => 0u8..0x80, 1 => any::<u8>()];
    // A header, a sector, a status, anything.
    let length = prop_oneof![2 => Just(3u8), 4 => Just(4 << 3), 2 => Just(1), 1 => any::<u8>()];
    (table, 0u8..8, place, length, 0u8..8, 0u8..9).prop_map(
        |(table, index, place, length, flags, next)| Op::Descriptor {
            table,
            index,
            place,
            length,
            flags,
            next,
        },
    )
}

/// A request as a good driver makes it, and what it says.
fn request() -> impl Strategy<Value = Vec<Op>> {
    let kind = prop_oneof![
        Just(0u8),
        Just(1),
        Just(4),
        Just(8),
        Just(11),
        Just(13),
        any::<u8>()
    ];
    (0u8..2, kind, any::<u8>(), 0u8..0x60, 1u8..8, any::<bool>()).prop_map(
        |(queue, kind, sector, place, sectors, indirect)| {
            let entry = |index, place, length, flags| Op::Descriptor {
                table: if indirect { 0x80 } else { queue },
                index,
                place,
                length,
                flags,
                next: index + 1,
            };
            let to_device = matches!(kind, 1 | 11 | 13);
            let mut all = vec![
                Op::Header {
                    place,
                    kind,
                    sector,
                },
                entry(0, place, 3, 1),
                entry(1, place + 1, sectors << 5, if to_device { 1 } else { 3 }),
                entry(2, 0x7f, 1, 2),
            ];
            if indirect {
                all.push(Op::Descriptor {
                    table: queue,
                    index: 0,
                    place: 0x80 + 16,
                    length: 6,
                    flags: 4,
                    next: 0,
                });
            }
            all.extend([Op::Post { queue, head: 0 }, Op::Ring { queue }]);
            all
        },
    )
}

fn other() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => descriptor(),
        2 => (0u8..2, 0u8..17).prop_map(|(queue, head)| Op::Post { queue, head }),
        2 => (0u8..2).prop_map(|queue| Op::Ring { queue }),
        1 => (0u8..2, any::<u8>()).prop_map(|(queue, more)| Op::Index { queue, more }),
        1 => (any::<u16>(), any::<u32>()).prop_map(|(offset, value)| Op::Poke { offset, value }),
        1 => (any::<u8>(), 0u16..0x100, any::<u32>())
            .prop_map(|(how, at, value)| Op::Config { how, at, value }),
        1 => (any::<u8>(), prop_oneof![0u16..0x40, 0x2000u16..0x2040, 0x3000u16..0x3010, any::<u16>()],
              prop_oneof![0u32..16, any::<u32>()])
            .prop_map(|(how, at, value)| Op::Register { how, at, value }),
    ]
}

#[test]
fn drivers_that_are_nearly_right_are_survived() {
    let step = prop_oneof![
        2 => request(),
        1 => prop::collection::vec(other(), 1..12),
    ];
    let script = prop::collection::vec(step, 1..12);
    for (name, target) in TARGETS {
        let result = runner().run(&script, |steps| {
            // The `pci` target starts the device for an odd first byte, which the others take as part of a script.
            let mut data = encode(&steps.concat());
            if *name == "pci" {
                data.insert(0, 1);
            }
            target(&data);
            Ok(())
        });
        result.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
