//! The fake's walker and TLB, written from the Arm ARM (DDI 0487, D8) without the production code:
//! 4 KiB granule, start at level 1, leaves and table pointers cached until flushed.

use std::collections::{BTreeMap, BTreeSet};

use super::FakeState;

/// Where an access led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Physical address.
    pub pa: u64,
    /// Bytes of the block or page that maps it.
    pub span: u64,
    /// Whether it is Normal write-back memory (else Device-nGnRE).
    pub normal: bool,
    /// Whether writes are allowed.
    pub write: bool,
    /// Whether execution is allowed.
    pub execute: bool,
}

/// A cached leaf: where its block starts, its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Leaf {
    pa: u64,
    raw: u64,
}

/// All translations cached on any CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct FakeTlb {
    /// (VMID, log2 of the span, base) of leaves.
    leaves: BTreeMap<(u16, u32, u64), Leaf>,
    /// (VMID, log2 of the span of the entry, base) of entries that point to a table.
    tables: BTreeMap<(u16, u32, u64), u64>,
}

const SHIFTS: [u32; 3] = [30, 21, 12];
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

impl FakeTlb {
    pub fn flush(&mut self, vmid: u16, start: u64, end: u64) {
        let keep = |(v, shift, base): (u16, u32, u64)| {
            v != vmid || base >= end || base + (1 << shift) <= start
        };
        self.leaves.retain(|key, _| keep(*key));
        self.tables.retain(|key, _| keep(*key));
    }

    /// Who can still use this physical page.
    pub fn knows(&self, page: u64) -> Option<String> {
        let leaf = self
            .leaves
            .iter()
            .find(|((_, shift, _), leaf)| page >= leaf.pa && page < leaf.pa + (1 << shift));
        let table = self.tables.iter().find(|(_, table)| **table == page);
        leaf.map(|l| format!("{l:x?}"))
            .or(table.map(|t| format!("table {t:x?}")))
    }
}

fn decode(leaf: Leaf, shift: u32, ipa: u64) -> Access {
    let attr = leaf.raw >> 2 & 15;
    assert!(attr == 15 || attr == 1, "memory type {attr:#b}");
    assert_eq!(leaf.raw >> 6 & 1, 1, "readable");
    assert_eq!(leaf.raw >> 10 & 1, 1, "access flag");
    assert!(attr == 1 || leaf.raw >> 8 & 3 == 3, "inner shareable");
    assert_eq!(leaf.pa & ((1 << shift) - 1), 0, "aligned output");
    Access {
        pa: leaf.pa + (ipa & ((1 << shift) - 1)),
        span: 1 << shift,
        normal: attr == 15,
        write: leaf.raw >> 7 & 1 == 1,
        execute: leaf.raw >> 53 & 3 == 0,
    }
}

/// VMID, root and input bits of a regime.
fn regime(vttbr: u64, vtcr: u64) -> (u16, u64, u32) {
    assert_eq!(vtcr >> 6 & 3, 1, "SL0: start level 1");
    assert_eq!(vtcr >> 14 & 3, 0, "TG0: 4 KiB");
    let bits = 64 - (vtcr & 63) as u32;
    let root = vttbr & 0x0000_ffff_ffff_fffe;
    let root_bytes = (1u64 << (bits - 30)) * 8;
    assert_eq!(root & (root_bytes.max(64) - 1), 0, "root alignment");
    ((vttbr >> 48) as u16, root, bits)
}

enum Step {
    Table { base: u64, shift: u32, table: u64 },
    Leaf { base: u64, shift: u32, leaf: Leaf },
    Fault { shift: u32 },
}

/// Reads one entry of a table whose entries cover `1 << SHIFTS[level]` bytes.
fn step(state: &FakeState, table: u64, level: usize, ipa: u64) -> Step {
    let shift = SHIFTS[level];
    let index = if level == 0 {
        ipa >> shift
    } else {
        ipa >> shift & 511
    };
    let raw = state.word(table + index / 512 * 4096, (index % 512) as usize);
    let base = ipa & !((1 << shift) - 1);
    match (raw & 3, level) {
        (3, 0 | 1) => Step::Table {
            base,
            shift,
            table: raw & ADDRESS,
        },
        (1, 0 | 1) | (3, 2) => Step::Leaf {
            base,
            shift,
            leaf: Leaf {
                pa: raw & ADDRESS,
                raw,
            },
        },
        _ => Step::Fault { shift },
    }
}

/// Walks the tables alone.
pub(super) fn walk(state: &FakeState, vttbr: u64, vtcr: u64, ipa: u64) -> Option<Access> {
    let (_, mut table, bits) = regime(vttbr, vtcr);
    if ipa >> bits != 0 {
        return None;
    }
    for level in 0..3 {
        match step(state, table, level, ipa) {
            Step::Table { table: next, .. } => table = next,
            Step::Leaf { shift, leaf, .. } => return Some(decode(leaf, shift, ipa)),
            Step::Fault { .. } => return None,
        }
    }
    None
}

/// An access with all that the TLB remembers, which remembers more after it.
pub(super) fn access(
    state: &FakeState,
    tlb: &mut FakeTlb,
    vttbr: u64,
    vtcr: u64,
    ipa: u64,
) -> Option<Access> {
    let (vmid, root, bits) = regime(vttbr, vtcr);
    if ipa >> bits != 0 {
        return None;
    }
    let base = |shift: u32| ipa & !((1u64 << shift) - 1);
    for shift in SHIFTS.into_iter().rev() {
        if let Some(leaf) = tlb.leaves.get(&(vmid, shift, base(shift))) {
            return Some(decode(*leaf, shift, ipa));
        }
    }
    let cached = [1usize, 0].into_iter().find_map(|level| {
        let shift = SHIFTS[level];
        let table = tlb.tables.get(&(vmid, shift, base(shift)))?;
        Some((level + 1, *table))
    });
    let (first, mut table) = cached.unwrap_or((0, root));
    for level in first..3 {
        match step(state, table, level, ipa) {
            Step::Table {
                base,
                shift,
                table: next,
            } => {
                tlb.tables.insert((vmid, shift, base), next);
                table = next;
            }
            Step::Leaf { base, shift, leaf } => {
                tlb.leaves.insert((vmid, shift, base), leaf);
                return Some(decode(leaf, shift, ipa));
            }
            Step::Fault { .. } => return None,
        }
    }
    None
}

/// Touches every address that the tables map.
pub(super) fn warm(state: &FakeState, tlb: &mut FakeTlb, vttbr: u64, vtcr: u64) {
    let (_, root, bits) = regime(vttbr, vtcr);
    let mut at = 0u64;
    while at >> bits == 0 {
        let mut table = root;
        let mut span = 0;
        for level in 0..3 {
            match step(state, table, level, at) {
                Step::Table { table: next, .. } => table = next,
                Step::Leaf { shift, .. } => {
                    access(state, tlb, vttbr, vtcr, at);
                    span = 1 << shift;
                    break;
                }
                Step::Fault { shift } => {
                    span = 1 << shift;
                    break;
                }
            }
        }
        at = (at & !(span - 1)) + span;
    }
}

/// Where the entries of a page at level 1 or 2 point to, if it is a table of such.
fn links(state: &FakeState, page: u64, entries: u64) -> impl Iterator<Item = u64> {
    let words = state
        .pages
        .get(&page)
        .map(|words| &words[..entries.min(512) as usize]);
    let tables = words.into_iter().flatten().filter(|raw| **raw & 3 == 3);
    tables.map(|raw| raw & ADDRESS)
}

/// All table pages of a regime.
pub(super) fn tables(state: &FakeState, vttbr: u64, vtcr: u64) -> BTreeSet<u64> {
    let (_, root, bits) = regime(vttbr, vtcr);
    let root_entries = 1u64 << (bits - 30);
    let roots = (0..root_entries.div_ceil(512)).map(|i| root + i * 4096);
    let mut found = BTreeSet::from_iter(roots.clone());
    for table in roots.flat_map(|page| links(state, page, root_entries)) {
        assert!(found.insert(table), "table {table:#x} linked twice");
        for table in links(state, table, 512) {
            assert!(found.insert(table), "table {table:#x} linked twice");
        }
    }
    found
}

/// Cached translations that the tables no longer give.
pub(super) fn stale(
    state: &FakeState,
    tlb: &FakeTlb,
    regimes: &BTreeMap<u16, (u64, u64)>,
) -> Vec<(u16, u64, u64)> {
    let mut stale = Vec::new();
    for ((vmid, shift, base), leaf) in &tlb.leaves {
        let now = regimes
            .get(vmid)
            .and_then(|(vttbr, vtcr)| walk(state, *vttbr, *vtcr, *base));
        let cached = decode(*leaf, *shift, *base);
        if now != Some(cached) {
            stale.push((*vmid, *base, leaf.pa));
        }
    }
    for ((vmid, shift, base), table) in &tlb.tables {
        let linked = regimes.get(vmid).is_some_and(|(vttbr, vtcr)| {
            let (_, root, _) = regime(*vttbr, *vtcr);
            let mut at = root;
            (0..3).any(|level| match step(state, at, level, *base) {
                Step::Table {
                    shift: s, table, ..
                } => {
                    at = table;
                    s == *shift
                }
                _ => false,
            }) && at == *table
        });
        if !linked {
            stale.push((*vmid, *base, *table));
        }
    }
    stale
}
