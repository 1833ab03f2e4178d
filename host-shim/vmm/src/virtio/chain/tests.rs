//! a25: what a hostile guest may write into a descriptor table.

use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;
use crate::virtio::window::tests::{BASE, SIZE, memory};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const QUEUE: u16 = 8;

fn put(m: &WindowMemory, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
    let at = GuestAddress(table + u64::from(index) * 16);
    m.write_obj(Descriptor::new(addr, len, flags, next), at)
        .unwrap();
}

fn walk(m: &WindowMemory, head: u16) -> Result<Chain, ChainError> {
    walk_with(m, head, true)
}

fn walk_with(m: &WindowMemory, head: u16, indirect: bool) -> Result<Chain, ChainError> {
    // One that was used before: nothing of it may be left.
    let mut chain = Chain {
        head: 77,
        readable: vec![
            Buffer {
                address: GuestAddress(0),
                length: 9
            };
            3
        ],
        writable: vec![Buffer {
            address: GuestAddress(0),
            length: 9,
        }],
        readable_len: 5,
        writable_len: 6,
        slots: 7,
    };
    chain.refill(m, (BASE, QUEUE), head, indirect)?;
    Ok(chain)
}

fn outside(what: &'static str, address: u64, length: u64) -> Result<Chain, ChainError> {
    Err(ChainError::OutsideWindow {
        what,
        address,
        length,
    })
}

#[test]
fn a_plain_chain_is_read_and_written_in_order() {
    let m = memory();
    m.write_slice(b"hello world", GuestAddress(BASE + 0x1000))
        .unwrap();
    put(&m, BASE, 2, BASE + 0x1000, 6, NEXT, 5);
    put(&m, BASE, 5, BASE + 0x1006, 5, NEXT, 1);
    put(&m, BASE, 1, BASE + 0x2000, 4, WRITE | NEXT, 0);
    put(&m, BASE, 0, BASE + 0x3000, 100, WRITE, 0);
    let chain = walk(&m, 2).unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (11, 104));
    let mut data = [0; 32];
    assert_eq!(chain.read(&m, 0, &mut data), Ok(11));
    assert_eq!(&data[..11], b"hello world");
    assert_eq!(chain.read(&m, 4, &mut data[..4]), Ok(4));
    assert_eq!(&data[..4], b"o wo");
    assert_eq!(chain.write(&m, 2, b"abcdef"), Ok(6));
    m.read_slice(&mut data[..2], GuestAddress(BASE + 0x2002))
        .unwrap();
    m.read_slice(&mut data[2..6], GuestAddress(BASE + 0x3000))
        .unwrap();
    assert_eq!(&data[..6], b"abcdef");
    let lengths: Vec<_> = chain
        .writable_slices(&m, 1, 50)
        .map(|s| s.unwrap().len())
        .collect();
    assert_eq!(lengths, [3, 47]);
    let readable: Vec<_> = chain.readable_slices(&m, 6, 100).collect();
    assert_eq!(readable.len(), 1, "buffers that touch are one");
    let mut last = [0; 5];
    let slice = readable[0].as_ref().unwrap();
    slice.copy_to(&mut last[..]);
    assert_eq!((slice.len(), &last), (5, b"world"));
}

#[test]
fn slots_are_counted_for_each_buffer() {
    let m = memory();
    put(&m, BASE, 0, BASE + 0x1000, 16, NEXT, 1);
    put(&m, BASE, 1, BASE + 0x2000, 4097, WRITE | NEXT, 2);
    put(&m, BASE, 2, BASE + 0x2000, 0, WRITE, 0);
    assert_eq!(walk(&m, 0).unwrap().slots(), 1 + 3);
}

#[test]
fn a25_buffers_outside_the_window_are_faults() {
    let m = memory();
    for (address, length) in [
        (BASE - 1, 1),
        (BASE + SIZE, 1),
        (BASE + SIZE - 4, 5),
        (0x8000_0000, 64),
        (0, 1),
        (u64::MAX, 1),
        (u64::MAX - 3, 4),
        (BASE, u32::MAX),
        (0x8000_0000, 0),
    ] {
        put(&m, BASE, 0, address, length, 0, 0);
        assert_eq!(walk(&m, 0), outside("buffer", address, length.into()));
    }
}

#[test]
fn a25_an_indirect_table_outside_the_window_is_a_fault() {
    let m = memory();
    for address in [BASE + SIZE - 16, BASE - 16, 0x8000_0000, u64::MAX - 15] {
        put(&m, BASE, 0, address, 32, INDIRECT, 0);
        assert_eq!(walk(&m, 0), outside("indirect table", address, 32));
    }
}

#[test]
fn a25_loops_end_in_a_fault() {
    let m = memory();
    put(&m, BASE, 0, BASE, 1, NEXT, 0);
    assert_eq!(walk(&m, 0), Err(ChainError::Loop { head: 0 }));
    for i in 0..QUEUE {
        put(&m, BASE, i, BASE, 1, NEXT, (i + 1) % QUEUE);
    }
    assert_eq!(walk(&m, 3), Err(ChainError::Loop { head: 3 }));
    let table = BASE + 0x1000;
    put(&m, BASE, 0, table, 32, INDIRECT, 0);
    put(&m, table, 0, BASE, 1, NEXT, 1);
    put(&m, table, 1, BASE, 1, NEXT, 0);
    assert_eq!(walk(&m, 0), Err(ChainError::Loop { head: 0 }));
}

#[test]
fn a25_indexes_beyond_a_table_are_faults() {
    let m = memory();
    assert_eq!(
        walk(&m, QUEUE),
        Err(ChainError::Index { index: 8, size: 8 })
    );
    put(&m, BASE, 0, BASE, 1, NEXT, u16::MAX);
    let index = u16::MAX;
    assert_eq!(walk(&m, 0), Err(ChainError::Index { index, size: 8 }));
    let table = BASE + 0x1000;
    put(&m, BASE, 0, table, 16, INDIRECT, 0);
    put(&m, table, 0, BASE, 1, NEXT, 1);
    assert_eq!(walk(&m, 0), Err(ChainError::Index { index: 1, size: 1 }));
}

#[test]
fn a25_indirect_descriptors_follow_the_rules() {
    let m = memory();
    let table = BASE + 0x1000;
    let why = |r: Result<Chain, ChainError>| match r {
        Err(ChainError::Indirect { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    put(&m, BASE, 0, table, 16, INDIRECT, 0);
    put(&m, table, 0, table, 16, INDIRECT, 0);
    assert_eq!(why(walk(&m, 0)), "it is inside an indirect table");
    assert_eq!(
        why(walk_with(&m, 0, false)),
        "the feature was not negotiated"
    );
    put(&m, BASE, 0, table, 16, INDIRECT | NEXT, 1);
    assert_eq!(why(walk(&m, 0)), "it has a next descriptor");
    for length in [0, 8, 17] {
        put(&m, BASE, 0, table, length, INDIRECT, 0);
        assert_eq!(why(walk(&m, 0)), "its length is no multiple of 16");
    }
    put(&m, BASE, 0, table, 16 * (INDIRECT_MAX + 1), INDIRECT, 0);
    assert_eq!(why(walk(&m, 0)), "its table is too long");
}

#[test]
fn a25_lengths_that_add_up_beyond_32_bits_are_a_fault() {
    // The buffers may overlap, so every address is good: only the sum is wrong.
    const LARGEST: u32 = 16 << 20;
    let m = WindowMemory::from_ranges(&[(GuestAddress(BASE), LARGEST as usize)]).unwrap();
    let table = BASE + 0x1000;
    for (entries, fits) in [(255u16, true), (256, false), (1024, false)] {
        put(&m, BASE, 0, table, u32::from(entries) * 16, INDIRECT, 0);
        for i in 0..entries {
            let next = if i + 1 == entries { 0 } else { NEXT };
            put(&m, table, i, BASE, LARGEST, next, i + 1);
        }
        let got = walk(&m, 0);
        if fits {
            assert_eq!(got.unwrap().readable_len(), u32::from(entries) * LARGEST);
        } else {
            assert_eq!(got, Err(ChainError::TooLong { head: 0 }));
        }
    }
}

#[test]
fn a25_a_readable_buffer_after_a_writable_one_is_a_fault() {
    let m = memory();
    put(&m, BASE, 0, BASE, 1, WRITE | NEXT, 1);
    put(&m, BASE, 1, BASE, 1, 0, 0);
    assert_eq!(walk(&m, 0), Err(ChainError::Order { head: 0 }));
}

#[test]
fn a25_a_descriptor_changed_after_the_walk_changes_nothing() {
    let m = memory();
    put(&m, BASE, 0, BASE + 0x1000, 4, 0, 0);
    let chain = walk(&m, 0).unwrap();
    put(&m, BASE, 0, 0x8000_0000, u32::MAX, 0, 0);
    let mut data = [0; 16];
    assert_eq!(chain.read(&m, 0, &mut data), Ok(4));
}

proptest! {
    /// Whatever the table holds, a walk ends, and what it accepts lies in the window.
    #[test]
    fn any_table_ends_in_a_checked_chain_or_a_fault(
        entries in prop::collection::vec(
            (prop_oneof![Just(BASE), BASE..BASE + SIZE, any::<u64>()],
             prop_oneof![0u32..64, any::<u32>()], 0u16..8, 0u16..12), QUEUE as usize),
        head in 0u16..10,
    ) {
        let m = memory();
        for (i, (addr, len, flags, next)) in entries.iter().enumerate() {
            put(&m, BASE, i as u16, *addr, *len, *flags, *next);
        }
        if let Ok(chain) = walk(&m, head) {
            for b in chain.readable.iter().chain(&chain.writable) {
                prop_assert!(b.address.0 >= BASE);
                prop_assert!(b.address.0 + u64::from(b.length) <= BASE + SIZE);
            }
            let mut data = [0; 4096];
            let n = chain.read(&m, 0, &mut data).unwrap();
            prop_assert_eq!(n, data.len().min(chain.readable_len() as usize));
        }
    }
}
