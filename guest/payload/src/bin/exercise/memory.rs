//! All of RAM: each page arrives zeroed and keeps what is written, whichever vCPU touches it first.

use porthole_payload::machine::{Machine, PAGE};

use crate::check;

/// Bytes looked at in one piece.
const WORD: u64 = 8;

/// Pages of free RAM that are `cpu`'s to touch.
fn pages(machine: &Machine, cpu: usize) -> impl Iterator<Item = u64> {
    let free = machine.free();
    let cpus = machine.cpus.len();
    free.into_iter()
        .flat_map(|range| range.step_by(PAGE as usize))
        .enumerate()
        .filter(move |(n, _)| n % cpus == cpu)
        .map(|(_, page)| page)
}

fn read(at: u64) -> u64 {
    // SAFETY: a word of free RAM, which is mapped and belongs to nobody else.
    unsafe { (at as *const u64).read_volatile() }
}

fn write(at: u64, value: u64) {
    // SAFETY: as in `read`.
    unsafe { (at as *mut u64).write_volatile(value) };
}

/// Whether every word of a page is zero.
fn is_zero(page: u64) -> bool {
    (page..page + PAGE)
        .step_by(WORD as usize)
        .all(|at| read(at) == 0)
}

/// Words of a page that are written: its first and its last.
fn marks(page: u64) -> [(u64, u64); 2] {
    let last = page + PAGE - WORD;
    [(page, page ^ 0x5a5a), (last, !page)]
}

/// First touch: zero under Porthole (a bare machine's loader leaves things behind), then marked.
pub fn fill(machine: &Machine, cpu: usize) {
    let (mut count, mut dirty) = (0u64, 0u64);
    for page in pages(machine, cpu) {
        if machine.protected && !is_zero(page) {
            dirty += 1;
        }
        for (at, value) in marks(page) {
            write(at, value);
        }
        count += 1;
    }
    check!(count > 0, "cpu {cpu}: no free RAM");
    check!(
        dirty == 0,
        "cpu {cpu}: {dirty} of {count} pages did not arrive zeroed"
    );
}

/// The marks of another vCPU's pages, when all have been written.
pub fn verify(machine: &Machine, cpu: usize) {
    let other = (cpu + 1) % machine.cpus.len();
    let wrong = pages(machine, other)
        .find(|page| marks(*page).iter().any(|(at, value)| read(*at) != *value));
    check!(
        wrong.is_none(),
        "cpu {cpu}: page {:#x} lost what was written",
        wrong.unwrap_or(0)
    );
}
