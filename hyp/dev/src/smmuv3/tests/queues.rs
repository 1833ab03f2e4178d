//! Commands and events: full queues, rounds, errors, overflow.

use porthole_core::addr::Ipa;

use crate::smmuv3::command::Command;
use crate::smmuv3::{Event, Fault};

use super::fake::{Fake, GERROR, IDR1};
use super::{PCI, started, taken};

const SYNC: [u64; 2] = [0x46, 0];
const CFGI_ALL: [u64; 2] = [0x04, 31];
const TLBI_ALL: [u64; 2] = [0x30, 0];

fn commands(fake: &Fake) -> Vec<[u64; 2]> {
    core::mem::take(&mut fake.inner().commands)
}

#[test]
fn commands_have_the_bits_of_the_specification() {
    let range = |scale, num| Command::TlbiS2Ipa {
        vmid: 0x1234,
        ipa: Ipa::new(0x12_3456_7000),
        scale,
        num,
    };
    for (command, words) in [
        (Command::CfgiSte(0xabcd_1234), [0xabcd_1234_0000_0003, 0]),
        (Command::CfgiAll, CFGI_ALL),
        (Command::TlbiEl2All, [0x20, 0]),
        (Command::TlbiS12Vmall(0x1234), [0x1234_0000_0028, 0]),
        (range(0, 0), [0x1234_0000_002a, 0x12_3456_7000]),
        (range(9, 0), [0x1234_0090_002a, 0x12_3456_7400]),
        (range(3, 31), [0x1234_0031_f02a, 0x12_3456_7400]),
        (Command::TlbiNsnhAll, TLBI_ALL),
        (Command::Sync, SYNC),
    ] {
        assert_eq!(command.encode(), words, "{command:?}");
    }
}

#[test]
fn a_flush_forgets_what_it_covers_and_waits_for_it() {
    for (range, slow) in [(true, 0), (false, 0), (true, 3), (false, 2)] {
        let fake = Fake::qemu();
        let idr3 = u32::from(range) << 10;
        fake.inner().registers.insert(super::fake::IDR3, idr3);
        let smmu = started(&fake, PCI);
        fake.inner().slow = slow;
        let mut random = 12345u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..200 {
            let (page, pages) = (next(4000), 1 + next(1500));
            fake.inner().tlb = (0..6000).flat_map(|p| [(7, p), (8, p)]).collect();
            smmu.flush(7, Ipa::new(page * 4096), pages).unwrap();
            let inner = fake.inner();
            assert!((page..page + pages).all(|p| !inner.tlb.contains(&(7, p))));
            assert!(
                (0..6000).all(|p| inner.tlb.contains(&(8, p))),
                "another VMID"
            );
            if range || pages <= 64 {
                let kept = inner.tlb.iter().filter(|(v, _)| *v == 7).count() as u64;
                assert_eq!(kept, 6000 - pages.min(6000 - page), "more than asked");
            }
        }
    }
}

#[test]
fn a_block_of_two_mebibytes_is_one_command() {
    let fake = Fake::qemu();
    let smmu = started(&fake, PCI);
    commands(&fake);
    smmu.flush(0, Ipa::new(0x4020_0000), 512).unwrap();
    assert_eq!(commands(&fake), [[0x0090_002a, 0x4020_0400], SYNC]);
    smmu.flush(0, Ipa::new(0), 1 << 19).unwrap();
    assert_eq!(commands(&fake), [[0x28, 0], SYNC]);
}

#[test]
fn a_full_queue_is_waited_for_and_nothing_is_lost_in_many_rounds() {
    for log2 in [1, 2, 5] {
        let fake = Fake::with(IDR1, 16 | log2 << 16 | log2 << 21);
        let smmu = started(&fake, PCI);
        fake.inner().registers.insert(super::fake::IDR3, 0);
        fake.inner().slow = 5;
        commands(&fake);
        for round in 0..40u64 {
            smmu.flush(3, Ipa::new(round << 20), 41).unwrap();
        }
        let commands = commands(&fake);
        assert!(commands.iter().filter(|c| **c == SYNC).count() == 40);
        // As planned: 41 pages are ranges of 1 and 5 << 3, in this order.
        assert_eq!(commands.len(), 40 * 3);
        assert_eq!(commands[3][1] & !0xfff, 1 << 20);
    }
}

#[test]
fn a_refused_invalidation_is_made_good_by_a_larger_one() {
    let fake = Fake::qemu();
    let smmu = started(&fake, PCI);
    fake.inner().tlb.insert((5, 77));
    fake.inner().refuse = vec![(0x2a, 1, 1)];
    commands(&fake);
    smmu.flush(5, Ipa::new(77 << 12), 1).unwrap();
    assert!(fake.inner().tlb.is_empty());
    assert_eq!(commands(&fake), [SYNC, SYNC, CFGI_ALL, TLBI_ALL, SYNC]);
    assert_eq!(smmu.command_errors(), 1);
    // The error is acknowledged, and the queue works.
    smmu.flush(5, Ipa::new(0), 1).unwrap();
    assert_eq!(commands(&fake).len(), 2);
}

#[test]
fn aborted_fetches_and_ats_errors_are_tried_again() {
    for code in [2, 3] {
        let fake = Fake::qemu();
        let smmu = started(&fake, PCI);
        fake.inner().refuse = vec![(0x2a, code, 2), (0x46, code, 1)];
        commands(&fake);
        smmu.flush(5, Ipa::new(0), 1).unwrap();
        assert_eq!(commands(&fake), [[5 << 32 | 0x2a, 0], SYNC]);
        assert_eq!(smmu.command_errors(), 3);
    }
}

#[test]
fn one_that_refuses_everything_is_reported() {
    for opcode in [0x2a, 0x46] {
        let fake = Fake::qemu();
        let smmu = started(&fake, PCI);
        fake.inner().refuse = vec![(opcode, 2, u32::MAX)];
        let result = smmu.flush(5, Ipa::new(0), 1);
        assert_eq!(result, Err(Fault::Refuses(2)));
    }
    let fake = Fake::qemu();
    let smmu = started(&fake, PCI);
    fake.inner().refuse = vec![(0x2a, 1, 1), (0x30, 1, 1)];
    assert!(matches!(
        smmu.flush(5, Ipa::new(0), 1),
        Err(Fault::Refuses(_))
    ));
    let fake = Fake::qemu();
    let smmu = started(&fake, PCI);
    fake.inner().dead = true;
    assert_eq!(
        smmu.flush(5, Ipa::new(0), 1),
        Err(Fault::Silent("CMDQ_CONS"))
    );
}

#[test]
fn a_cpu_that_stood_still_looks_once_more_before_it_gives_the_smmu_up() {
    let fake = Fake::qemu();
    let smmu = started(&fake, PCI);
    let mut inner = fake.inner();
    (inner.slow, inner.pause) = (2, 5000);
    drop(inner);
    assert_eq!(smmu.flush(5, Ipa::new(0), 1), Ok(()));
}

#[test]
fn cpus_that_flush_at_once_do_not_disturb_each_other() {
    let fake = Fake::with(IDR1, 16 | 3 << 16 | 3 << 21);
    let smmu = started(&fake, PCI);
    fake.inner().slow = 2;
    commands(&fake);
    std::thread::scope(|scope| {
        for vmid in 0..4 {
            let smmu = &smmu;
            scope.spawn(move || {
                for page in 0..50 {
                    smmu.flush(vmid, Ipa::new(page << 12), 1).unwrap();
                }
            });
        }
    });
    let commands = commands(&fake);
    for vmid in 0..4u64 {
        let own: Vec<u64> = commands
            .iter()
            .filter(|c| c[0] == vmid << 32 | 0x2a)
            .map(|c| c[1] >> 12)
            .collect();
        assert_eq!(own, (0..50).collect::<Vec<_>>());
    }
}

/// A record as the SMMU writes it: type, stream, direction, address.
fn record(kind: u64, stream: u64, write: bool, address: u64) -> [u64; 4] {
    [kind | stream << 32, u64::from(!write) << 35, address, 0]
}

#[test]
fn events_are_read_in_order_over_many_rounds() {
    let fake = Fake::with(IDR1, 16 | 2 << 16 | 8 << 21);
    let smmu = started(&fake, PCI);
    assert_eq!(smmu.event(), None);
    for n in 0..50u64 {
        fake.event(record(0x10, n, n % 2 == 0, n << 12));
        fake.event(record(0x02, 0xffff_ff00 | n, false, 0));
        let event = Event {
            kind: 0x10,
            stream: n as u32,
            address: Some(n << 12),
            write: n % 2 == 0,
        };
        assert_eq!(smmu.event(), Some(event));
        let event = Event {
            kind: 0x02,
            stream: 0xffff_ff00 | n as u32,
            address: None,
            write: false,
        };
        assert_eq!(smmu.event(), Some(event));
        assert_eq!(smmu.event(), None);
    }
}

#[test]
fn an_overflow_is_told_once_and_the_queue_goes_on() {
    let fake = Fake::with(IDR1, 16 | 2 << 16 | 8 << 21);
    let smmu = started(&fake, PCI);
    for round in 0..3u64 {
        for n in 0..7 {
            fake.event(record(0x10, n, true, round << 12));
        }
        assert_eq!(smmu.event(), Some(Event::LOST));
        for n in 0..4 {
            let event = smmu.event().unwrap();
            assert_eq!((event.stream, event.address), (n, Some(round << 12)));
        }
        assert_eq!(smmu.event(), None);
    }
    // The other way to say it.
    let gerror = fake.register(GERROR) ^ 1 << 2;
    fake.inner().registers.insert(GERROR, gerror);
    assert_eq!(smmu.event(), Some(Event::LOST));
    assert_eq!(smmu.event(), None);
}

#[test]
fn errors_of_a_former_owner_are_not_ours() {
    let fake = Fake::with(GERROR, 1 | 1 << 2);
    let smmu = taken(&fake, PCI);
    assert_eq!((smmu.event(), smmu.command_errors()), (None, 0));
}
