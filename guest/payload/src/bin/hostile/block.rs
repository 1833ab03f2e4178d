//! Requests to the disk that cannot be: each must fail with the status that the specification has for it, or make the
//! device ask for a reset where there is no room for a status. Source: VIRTIO 1.2, 5.2.6.

use porthole_payload::fail;

use crate::Bench;
use crate::health::{READ, SECTOR, WRITE_SECTORS, header};
use crate::victim::{
    DATA, Descriptor, INDIRECT, NEXT, SEND, STATUS, TABLE, Victim, WRITE, descriptor,
};

const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// No status was written.
const NONE: u8 = 0xff;

/// Bytes of a header.
const HEADER: u32 = 16;
/// Bytes of a range of DISCARD and WRITE_ZEROES.
const RANGE: u32 = 16;

/// Sector, sectors, flags.
type Range = (u64, u32, u32);

/// All attacks on device `n`.
pub fn all(bench: &mut Bench, n: usize) {
    let config = bench.victims[n].raw.config;
    let sectors = config.map_or(0, |c| u64::from(c.read32(0)) | u64::from(c.read32(4)) << 32);
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 0x100, 0x8000_0000, u32::MAX] {
        asks(bench, n, (kind, 0, SECTOR, 0), UNSUPP, "an unknown type");
    }
    for (what, sector, length) in [
        ("the sector behind the last", sectors, SECTOR),
        ("sectors over the end", sectors - 1, 2 * SECTOR),
        ("sectors that overflow", u64::MAX / 512, 2 * SECTOR),
        (
            "a sector whose offset overflows",
            u64::MAX / 512 + 1,
            SECTOR,
        ),
        ("the last sector there could be", u64::MAX, SECTOR),
        ("half a sector", 0, SECTOR / 2),
        ("a sector and a byte", 0, SECTOR + 1),
        ("nothing", 0, 0),
    ] {
        asks(bench, n, (READ, sector, length, WRITE), IOERR, what);
        asks(bench, n, (WRITE_SECTORS, sector, length, 0), IOERR, what);
    }
    asks(
        bench,
        n,
        (READ, 0, SECTOR, 0),
        IOERR,
        "a read into what the driver writes",
    );
    asks(
        bench,
        n,
        (WRITE_SECTORS, 0, SECTOR, WRITE),
        IOERR,
        "a write of what the device writes",
    );
    asks(
        bench,
        n,
        (FLUSH, u64::MAX, SECTOR, 0),
        OK,
        "a flush with a sector and data",
    );
    asks(
        bench,
        n,
        (GET_ID, u64::MAX, 5, WRITE),
        OK,
        "an id for which there is little room",
    );
    shapes(bench, n);
    ranges(bench, n, sectors);
    crumbs(bench, n);
}

/// Makes a request of these descriptors: its status.
fn status(victim: &mut Victim, chain: &[Descriptor], what: &str) -> u8 {
    victim.window().write(STATUS, NONE);
    victim.submit(0, 0, chain);
    victim.wait_used(0, what);
    victim.window().read(STATUS)
}

fn expect(bench: &mut Bench, n: usize, chain: &[Descriptor], expected: u8, what: &str) {
    let victim = &mut bench.victims[n];
    let status = status(victim, chain, what);
    if status != expected {
        fail!("{}: {what}: status {status}, not {expected}", victim.name);
    }
    bench.harmless(n, what);
}

/// A request of the usual three descriptors.
fn asks(
    bench: &mut Bench,
    n: usize,
    (kind, sector, length, flags): (u32, u64, u32, u16),
    expected: u8,
    what: &str,
) {
    let victim = &bench.victims[n];
    header(victim.window(), kind, sector);
    let chain = [
        descriptor(victim.bus(SEND), HEADER, NEXT, 1),
        descriptor(victim.bus(DATA), length, NEXT | flags, 2),
        descriptor(victim.bus(STATUS), 1, WRITE, 0),
    ];
    expect(bench, n, &chain, expected, what);
}

/// Headers that are short or not readable, and no place for a status.
fn shapes(bench: &mut Bench, n: usize) {
    let victim = &bench.victims[n];
    let (send, data, last) = (victim.bus(SEND), victim.bus(DATA), victim.bus(STATUS));
    header(victim.window(), READ, 0);
    let end = descriptor(last, 1, WRITE, 0);
    let short = [descriptor(send, 8, NEXT, 1), descriptor(last, 1, WRITE, 0)];
    expect(bench, n, &short, IOERR, "half a header");
    expect(bench, n, &[end], IOERR, "no header");
    let writable = [descriptor(send, HEADER, NEXT | WRITE, 1), end];
    expect(
        bench,
        n,
        &writable,
        IOERR,
        "a header that the device writes",
    );
    let header_only = [descriptor(send, HEADER, 0, 0)];
    let readable = [
        descriptor(send, HEADER, NEXT, 1),
        descriptor(data, SECTOR, 0, 0),
    ];
    let empty = [
        descriptor(send, HEADER, NEXT, 1),
        descriptor(last, 0, WRITE, 0),
    ];
    for chain in [&header_only[..], &readable, &empty] {
        let victim = &mut bench.victims[n];
        header(victim.window(), READ, 0);
        victim.submit(0, 0, chain);
        bench.needs_reset(n, "no place for a status");
    }
}

/// Ranges of DISCARD and WRITE_ZEROES that cannot be.
fn ranges(bench: &mut Bench, n: usize, sectors: u64) {
    let all: [(&str, &[Range], u8); 7] = [
        ("a range behind the end", &[(sectors, 8, 0)], IOERR),
        ("a range over the end", &[(sectors - 1, 2, 0)], IOERR),
        (
            "a range that overflows",
            &[(u64::MAX / 512, u32::MAX, 0)],
            IOERR,
        ),
        ("a range of 32 bits", &[(0, u32::MAX, 0)], IOERR),
        ("a range of nothing", &[(0, 0, 0)], IOERR),
        (
            "flags of a range that do not exist",
            &[(0, 8, 0xffff_fffe)],
            UNSUPP,
        ),
        (
            "a good range before a bad one",
            &[(16, 8, 0), (sectors, 8, 0)],
            IOERR,
        ),
    ];
    for kind in [DISCARD, WRITE_ZEROES] {
        for (what, ranges, expected) in all {
            let window = bench.victims[n].window();
            for (at, (sector, count, flags)) in (DATA..).step_by(16).zip(ranges) {
                window.write(at, *sector);
                window.write(at + 8, *count);
                window.write(at + 12, *flags);
            }
            let length = RANGE * ranges.len() as u32;
            asks(bench, n, (kind, 0, length, 0), expected, what);
        }
        asks(
            bench,
            n,
            (kind, 0, RANGE - 1, 0),
            IOERR,
            "a range that is cut off",
        );
        asks(bench, n, (kind, 0, 33 * RANGE, 0), IOERR, "too many ranges");
        asks(bench, n, (kind, 0, 0, 0), IOERR, "no range");
    }
}

/// A sector in buffers of a byte: nothing wrong with that.
fn crumbs(bench: &mut Bench, n: usize) {
    let victim = &mut bench.victims[n];
    header(victim.window(), READ, 0);
    victim.describe_at(TABLE, descriptor(victim.bus(SEND), HEADER, NEXT, 1));
    for byte in 0..SECTOR {
        let next = byte as u16 + 2;
        let d = descriptor(
            victim.bus(DATA) + u64::from(SECTOR - 1 - byte),
            1,
            NEXT | WRITE,
            next,
        );
        victim.describe_at(TABLE + 16 * (u64::from(byte) + 1), d);
    }
    let last = u64::from(SECTOR) + 1;
    victim.describe_at(
        TABLE + 16 * last,
        descriptor(victim.bus(STATUS), 1, WRITE, 0),
    );
    let outer = descriptor(victim.bus(TABLE), 16 * (last as u32 + 1), INDIRECT, 0);
    expect(bench, n, &[outer], OK, "a sector byte by byte");
}
