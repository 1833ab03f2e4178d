//! Stage 1 of the program: an identity map in 4 KiB, 2 MiB and 1 GiB entries, 39-bit addresses,
//! one root for TTBR0, TTBR1 and all CPUs. Tables come from a fixed array in the Image.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::{read_reg, write_reg};

/// What a range is mapped as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attr {
    /// Normal write-back, readable, writable, executable at EL1.
    Normal,
    /// Normal write-back, readable and writable, never executable: memory that others write.
    Data,
    /// Normal write-back, readable and writable, also from EL0, executable there.
    User,
    /// Device-nGnRE, not executable.
    Device,
}

const TABLES: usize = 96;
const MAIR: u64 = 0x04ff; // attribute 0 Normal write-back, 1 Device-nGnRE
const VALID: u64 = 1;
const TABLE: u64 = 1 << 1;
const AF: u64 = 1 << 10;
const INNER: u64 = 3 << 8;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
// T0SZ and T1SZ 25, 4 KiB granules, write-back inner-shareable walks, IPS 40 bits.
const TCR: u64 =
    25 | 1 << 8 | 1 << 10 | 3 << 12 | 25 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30 | 2 << 32;

/// The same map stands in the upper half too, through TTBR1: address `KERNEL_BASE | va`.
pub const KERNEL_BASE: u64 = 0xffff_ff80_0000_0000;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static POOL: [Table; TABLES] = [const { Table([const { AtomicU64::new(0) }; 512]) }; TABLES];
static USED: AtomicUsize = AtomicUsize::new(1);

fn leaf(attr: Attr, level3: bool) -> u64 {
    let kind = if level3 { TABLE } else { 0 };
    VALID
        | AF
        | kind
        | match attr {
            Attr::Normal => INNER | 1 << 54,
            Attr::Data => INNER | 1 << 53 | 1 << 54,
            Attr::User => INNER | 1 << 6,
            Attr::Device => 1 << 2 | 1 << 53 | 1 << 54,
        }
}

fn new_table() -> &'static Table {
    let n = USED.fetch_add(1, Ordering::Relaxed);
    assert!(n < TABLES, "stage-1 tables used up");
    &POOL[n]
}

fn next(entry: &AtomicU64, shift: u32) -> &'static Table {
    let old = entry.load(Ordering::Relaxed);
    if old & (VALID | TABLE) == VALID | TABLE {
        // SAFETY: table entries of this map only ever point into `POOL`.
        return unsafe { &*((old & ADDRESS) as *const Table) };
    }
    let table = new_table();
    if old & VALID != 0 {
        // Split a block into equal smaller entries.
        let step = 1u64 << (shift - 9);
        let kind = if shift == 21 { TABLE } else { 0 };
        for (i, e) in table.0.iter().enumerate() {
            e.store(old | kind | (i as u64 * step), Ordering::Relaxed);
        }
    }
    entry.store(
        (core::ptr::from_ref(table) as u64) | VALID | TABLE,
        Ordering::Relaxed,
    );
    table
}

/// Maps `size` bytes at virtual address `va` to physical address `pa`, all multiples of 4 KiB, in the
/// largest entries that fit; replaces what was there. Flushes the TLB.
pub fn map(va: u64, pa: u64, size: u64, attr: Attr) {
    let mut done = 0;
    while done < size {
        let (v, p, left) = (va + done, pa + done, size - done);
        let l1 = &POOL[0].0[(v >> 30 & 0x1ff) as usize];
        let fits = |bytes: u64| (v | p) & (bytes - 1) == 0 && left >= bytes;
        if fits(1 << 30) {
            l1.store(p | leaf(attr, false), Ordering::Relaxed);
            done += 1 << 30;
            continue;
        }
        let l2 = &next(l1, 30).0[(v >> 21 & 0x1ff) as usize];
        if fits(1 << 21) {
            l2.store(p | leaf(attr, false), Ordering::Relaxed);
            done += 1 << 21;
            continue;
        }
        let l3 = &next(l2, 21).0[(v >> 12 & 0x1ff) as usize];
        l3.store(p | leaf(attr, true), Ordering::Relaxed);
        done += 1 << 12;
    }
    flush();
}

/// Invalidates all of this EL1's translations on all CPUs.
pub fn flush() {
    // SAFETY: invalidating translations loses nothing.
    unsafe {
        asm!(
            "dsb ishst",
            "tlbi vmalle1is",
            "dsb ish",
            "isb",
            options(nostack)
        )
    };
}

/// Registers that a secondary CPU needs to run on the same map: TTBR0, TCR, MAIR, SCTLR.
pub(crate) fn registers() -> [u64; 4] {
    [
        core::ptr::from_ref(&POOL[0]) as u64,
        TCR,
        MAIR,
        read_reg!("sctlr_el1"),
    ]
}

/// Address of the level-1 table, for programs that attack it.
pub fn root() -> u64 {
    core::ptr::from_ref(&POOL[0]) as u64
}

/// Switches MMU and caches on. The running Image must be mapped as itself.
pub fn enable() {
    let [ttbr, tcr, mair, sctlr] = registers();
    write_reg!("mair_el1", mair);
    write_reg!("tcr_el1", tcr);
    write_reg!("ttbr0_el1", ttbr);
    write_reg!("ttbr1_el1", ttbr);
    flush();
    write_reg!("sctlr_el1", sctlr | 1 | 1 << 2 | 1 << 12);
}
