use super::*;
use crate::virtio::queue::tests::shared;

const BIT: u32 = 27;
const VERSION_1: u64 = 1 << 32;

fn common(mode: SwiotlbMode) -> Common {
    let swiotlb = Swiotlb {
        mode,
        bit: BIT,
        cfg_type: 10,
        pool: false,
    };
    Common::new(0, &[64, 32], swiotlb)
}

fn offered(c: &mut Common) -> u64 {
    let s = shared();
    let mut halves = [0u64; 2];
    for (select, half) in (0u32..).zip(&mut halves) {
        c.write(&s, 0, &select.to_le_bytes());
        let mut data = [0; 4];
        c.read(&s, 4, &mut data);
        *half = u32::from_le_bytes(data).into();
    }
    halves[1] << 32 | halves[0]
}

fn negotiate(c: &mut Common, features: u64) -> bool {
    let s = shared();
    c.write(&s, 0x14, &[1]);
    c.write(&s, 0x14, &[3]);
    for (select, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
        c.write(&s, 8, &select.to_le_bytes());
        c.write(&s, 0xc, &half.to_le_bytes());
    }
    c.write(&s, 0x14, &[3 | FEATURES_OK]);
    let mut status = [0];
    c.read(&s, 0x14, &mut status);
    status[0] & FEATURES_OK != 0
}

#[test]
fn require_refuses_a_driver_without_the_feature() {
    let mut c = common(SwiotlbMode::Require);
    assert_ne!(offered(&mut c) & 1 << BIT, 0);
    assert!(!negotiate(&mut c, VERSION_1));
    assert!(negotiate(&mut c, VERSION_1 | 1 << BIT));
}

#[test]
fn offer_lets_the_driver_choose() {
    let mut c = common(SwiotlbMode::Offer);
    assert_ne!(offered(&mut c) & 1 << BIT, 0);
    assert!(negotiate(&mut c, VERSION_1));
    c.reset();
    assert!(negotiate(&mut c, VERSION_1 | 1 << BIT));
}

#[test]
fn hint_offers_no_feature_and_takes_none() {
    let mut c = common(SwiotlbMode::Hint);
    assert_eq!(offered(&mut c) & 1 << BIT, 0);
    assert!(!negotiate(&mut c, VERSION_1 | 1 << BIT));
    c.reset();
    assert!(negotiate(&mut c, VERSION_1));
}

#[test]
fn a_device_of_the_pool_demands_the_platforms_dma() {
    let mut swiotlb = Swiotlb {
        mode: SwiotlbMode::Off,
        bit: BIT,
        cfg_type: 10,
        pool: true,
    };
    let mut c = Common::new(0, &[64], swiotlb);
    assert!(!negotiate(&mut c, VERSION_1), "it would go past the pool");
    c.reset();
    assert!(negotiate(&mut c, VERSION_1 | 1 << 33));
    swiotlb.pool = false;
    let mut c = Common::new(0, &[64], swiotlb);
    assert_eq!(offered(&mut c) & (1 << BIT | 1 << 33), 0);
    assert!(negotiate(&mut c, VERSION_1));
}

#[test]
fn legacy_drivers_and_unknown_bits_are_refused() {
    let mut c = common(SwiotlbMode::Require);
    assert!(!negotiate(&mut c, 1 << BIT));
    assert!(!negotiate(&mut c, VERSION_1 | 1 << BIT | 1 << 60));
}

#[test]
fn features_are_fixed_once_agreed() {
    let mut c = common(SwiotlbMode::Offer);
    assert!(negotiate(&mut c, VERSION_1));
    c.write(&shared(), 8, &0u32.to_le_bytes());
    c.write(&shared(), 0xc, &u32::MAX.to_le_bytes());
    assert_eq!(c.features(), VERSION_1);
}

#[test]
fn the_driver_starts_the_device_only_after_agreement() {
    let mut c = common(SwiotlbMode::Offer);
    let s = shared();
    assert_eq!(c.write(&s, 0x14, &[3 | DRIVER_OK]), Action::None);
    assert!(negotiate(&mut c, VERSION_1));
    let ok = [3 | FEATURES_OK | DRIVER_OK];
    assert_eq!(c.write(&s, 0x14, &ok), Action::Start);
    assert_eq!(c.write(&s, 0x14, &ok), Action::None, "once");
    assert_eq!(c.write(&s, 0x14, &[0]), Action::Reset);
}

#[test]
fn the_driver_can_neither_set_nor_clear_needs_reset() {
    let mut c = common(SwiotlbMode::Offer);
    let s = shared();
    let mut status = [0];
    c.write(&s, 0x14, &[1 | NEEDS_RESET]);
    c.read(&s, 0x14, &mut status);
    assert_eq!(status, [1]);
    s.fault(&Fault::Setup("test"));
    c.write(&s, 0x14, &[3]);
    c.read(&s, 0x14, &mut status);
    assert_eq!(status, [3 | NEEDS_RESET]);
}

#[test]
fn queues_are_set_up_while_disabled_and_fixed_afterwards() {
    let mut c = common(SwiotlbMode::Offer);
    let s = shared();
    c.write(&s, 0x16, &1u16.to_le_bytes());
    assert_eq!(c.write(&s, 0x1c, &[1, 0]), Action::None, "too early");
    assert!(negotiate(&mut c, VERSION_1));
    for size in [33u16, 0, 64, u16::MAX] {
        c.write(&s, 0x18, &size.to_le_bytes());
    }
    c.write(&s, 0x18, &16u16.to_le_bytes());
    c.write(&s, 0x20, &0x1000_0000_u64.to_le_bytes());
    c.write(&s, 0x28, &0x1000_1000_u32.to_le_bytes());
    c.write(&s, 0x2c, &1u32.to_le_bytes());
    c.write(&s, 0x30, &0x1000_2000_u64.to_le_bytes());
    assert_eq!(c.write(&s, 0x1c, &[1, 0]), Action::QueueEnabled(1));
    c.write(&s, 0x18, &8u16.to_le_bytes());
    c.write(&s, 0x20, &[0xff; 8]);
    let q = c.queue(1).unwrap();
    assert_eq!((q.size(), q.desc_table()), (16, 0x1000_0000));
    assert_eq!(q.avail_ring(), 0x1_1000_1000);
    assert_eq!(c.enabled(), [1]);
    c.reset();
    assert!(c.enabled().is_empty());
}

#[test]
fn misaligned_rings_are_faults() {
    let mut c = common(SwiotlbMode::Offer);
    c.write(&shared(), 0x20, &0x1000_0008_u64.to_le_bytes());
    assert!(matches!(c.queue(0), Err(Fault::Ring { queue: 0, .. })));
    assert!(c.queue(7).is_err());
}

#[test]
fn queues_that_do_not_exist_have_no_size() {
    let mut c = common(SwiotlbMode::Offer);
    let s = shared();
    c.write(&s, 0x16, &2u16.to_le_bytes());
    assert!(negotiate(&mut c, VERSION_1));
    for (at, len) in [(0x18, 2), (0x1c, 2), (0x20, 8), (0x1a, 2)] {
        assert_eq!(c.write(&s, at, &[1; 8][..len]), Action::None);
    }
    let mut data = [1; 2];
    c.read(&s, 0x18, &mut data);
    assert_eq!(data, [0; 2]);
}

#[test]
fn accesses_of_wrong_width_or_place_change_nothing() {
    let mut c = common(SwiotlbMode::Offer);
    let s = shared();
    for (at, len) in [(0x14, 2), (0x00, 8), (0x22, 4), (0x3c, 4), (usize::MAX, 4)] {
        assert_eq!(c.write(&s, at, &[0xff; 8][..len]), Action::None);
    }
    let mut data = [0xff; 8];
    c.read(&s, SIZE - 4, &mut data);
    c.read(&s, usize::MAX, &mut data);
    assert_eq!(data, [0; 8]);
    c.read(&s, 0x14, &mut data[..1]);
    assert_eq!(data[0], 0);
}
