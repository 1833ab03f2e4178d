//! From the first instruction to Rust with caches on: the entry code, the image's layout and its first map.
//! What the boot does after that is `porthole-hyp`'s: it defines `porthole_boot` and `porthole_secondary`.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
use porthole_abi::PAGE_SIZE;
use porthole_core::addr::{PhysAddr, PhysPages};

use crate::percpu::CPUS_MAX;
use crate::stage1::{self, Access, Map};

/// Bytes of one stack. `linker/hyp.ld` reserves [`CPUS_MAX`] slots of a stack and its guard page.
pub const STACK_BYTES: u64 = 32 * 1024;
const STACK_SLOT: u64 = STACK_BYTES + PAGE_SIZE;
/// Most that a device tree may have (Linux, Documentation/arch/arm64/booting.rst).
const TREE_MAX: u64 = 2 << 20;

global_asm!(
    include_str!("boot.S"),
    STACK_SLOT = const STACK_SLOT,
    TRANSLATION = sym TRANSLATION,
);

/// What `enable_mmu` loads, read with caches off: TTBR0_EL2, TCR_EL2, MAIR_EL2, SCTLR_EL2.
static TRANSLATION: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

struct MapCell(UnsafeCell<Map>);

// SAFETY: only the boot CPU reaches the cell, first from `porthole_early_map`, then through `take_map`, once.
unsafe impl Sync for MapCell {}

static MAP: MapCell = MapCell(UnsafeCell::new(Map::new()));
static MAP_TAKEN: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static _start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __stacks_start: u8;
    static __image_end: u8;
    static porthole_secondary_entry: u8;
}

/// The image in memory; every bound is page-aligned.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Start, with the code up to `text_end`.
    pub start: PhysAddr,
    /// End of the code and start of constants.
    pub text_end: PhysAddr,
    /// End of constants and start of data.
    pub rodata_end: PhysAddr,
    /// End of data and start of the stacks' slots.
    pub stacks_start: PhysAddr,
    /// End of all.
    pub end: PhysAddr,
}

/// Where the image is.
pub fn image() -> Image {
    let at = |symbol: *const u8| PhysAddr::new(symbol as u64);
    Image {
        start: at(&raw const _start),
        text_end: at(&raw const __text_end),
        rodata_end: at(&raw const __rodata_end),
        stacks_start: at(&raw const __stacks_start),
        end: at(&raw const __image_end),
    }
}

/// Entry address of CPUs that PSCI starts.
pub fn secondary_entry() -> PhysAddr {
    PhysAddr::new((&raw const porthole_secondary_entry) as u64)
}

/// Hands out the map, once, to the boot CPU.
///
/// # Panics
/// When called a second time: our own bug.
pub fn take_map() -> &'static mut Map {
    assert!(
        !MAP_TAKEN.swap(true, Ordering::AcqRel),
        "stage-1 map taken twice"
    );
    // SAFETY: the flag lets one caller through, and `porthole_early_map` is over when Rust runs with caches on.
    unsafe { &mut *MAP.0.get() }
}

/// Pages that a device tree at `tree` may reach: two 2 MiB blocks.
fn tree_pages(tree: PhysAddr) -> Option<PhysPages> {
    let start = tree.raw() & !(TREE_MAX - 1);
    start.checked_add(2 * TREE_MAX)?;
    PhysPages::new(PhysAddr::new(start), 2 * TREE_MAX / PAGE_SIZE).ok()
}

fn between(start: PhysAddr, end: PhysAddr) -> Option<PhysPages> {
    PhysPages::new(start, end.raw().checked_sub(start.raw())? / PAGE_SIZE).ok()
}

impl Image {
    /// The parts of `pages` in front of and behind the image.
    pub fn around(&self, pages: PhysPages) -> [Option<PhysPages>; 2] {
        [
            between(pages.start(), pages.end().min(self.start)),
            between(pages.start().max(self.end), pages.end()),
        ]
    }
}

/// Maps the image, each part with its own rights, and the device tree's surroundings.
///
/// Runs on the boot CPU with the MMU off: no atomic read-modify-write may be used here.
#[unsafe(no_mangle)]
extern "C" fn porthole_early_map(tree: u64) {
    let image = image();
    // SAFETY: the boot CPU runs alone and `take_map` comes later.
    let map = unsafe { &mut *MAP.0.get() };
    let mut map_part = |pages: Option<PhysPages>, access| {
        // The image is below 512 GiB and needs few tables; should that fail, the MMU would fault at once, which
        // the vectors turn into the park loop.
        if let Some(pages) = pages {
            let _ = map.map(pages, access);
        }
    };
    map_part(between(image.start, image.text_end), Access::Code);
    map_part(between(image.text_end, image.rodata_end), Access::Constant);
    map_part(between(image.rodata_end, image.stacks_start), Access::Data);
    for slot in 0..CPUS_MAX as u64 {
        let guard = image.stacks_start.raw() + slot * STACK_SLOT;
        let stack = PhysAddr::new(guard + PAGE_SIZE);
        map_part(
            PhysPages::new(stack, STACK_BYTES / PAGE_SIZE).ok(),
            Access::Data,
        );
    }
    for part in tree_pages(PhysAddr::new(tree)).map_or([None; 2], |t| image.around(t)) {
        map_part(part, Access::Data);
    }

    // PARange and TCR_EL2.PS have the same encoding; more than 48 bits (6 and up) need no table format of ours.
    let range = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(5);
    let values = [
        map.root(),
        stage1::TCR | range << 16,
        stage1::MAIR,
        stage1::SCTLR,
    ];
    for (slot, value) in TRANSLATION.iter().zip(values) {
        slot.store(value, Ordering::Relaxed);
    }
}

/// End of the stack in which `sp` lies.
pub(crate) fn stack_top(sp: u64) -> u64 {
    let start = image().stacks_start.raw();
    start + (sp.saturating_sub(start) / STACK_SLOT + 1) * STACK_SLOT
}
