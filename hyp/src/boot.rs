//! The boot CPU's way from the entry code to the host's first instruction, and every other CPU's.
//! What cannot work ends in one line on the console that says what is wrong and how to mend it.

use core::fmt::Display;

use arrayvec::ArrayVec;
use porthole_abi::{Features, PAGE_SIZE};
use porthole_arch::boot::Image;
use porthole_arch::firmware::{self, Conduit};
use porthole_arch::host::StageTwo;
use porthole_arch::percpu::{self, CPUS_MAX};
use porthole_arch::stage1::{Access, Map};
use porthole_arch::{boot, cache, host};
use porthole_core::addr::{PhysAddr, PhysPages};
use porthole_core::hw::{Cpu, CpuId, Memory};
use porthole_core::hypervisor::{BootConfig, Hypervisor};
use porthole_core::tracker::PageEntry;
use porthole_dev::devtree::{HIDDEN_MAX, HostTree, Module, Tree, TreeError, write_host_tree};
use porthole_dev::options::Options;
use porthole_dev::pl011;
use porthole_dev::smmuv3::{Mmio, Smmus};
use porthole_mem::{BootMemory, Ram};

use crate::console;
use crate::dma::Dma;
use crate::fault::stop;
use crate::gic;
use crate::layout::{self, Layout};
use crate::machine::{Caches, Hardware};
use crate::{HYPERVISOR, SLOTS};

/// Offset of the magic in an arm64 Image, and the magic (Linux, Documentation/arch/arm64/booting.rst).
const IMAGE_MAGIC: (usize, [u8; 4]) = (56, *b"ARM\x64");
/// Bytes of the header.
const IMAGE_HEADER: usize = 64;
/// A kernel is loaded `text_offset` behind a multiple of this.
const KERNEL_ALIGN: u64 = 2 << 20;

/// Unwraps a result of the boot, or stops the machine with its error.
trait OrStop<T> {
    fn or_stop(self) -> T;
}

impl<T, E: Display> OrStop<T> for Result<T, E> {
    fn or_stop(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => stop(format_args!("cannot start: {error}")),
        }
    }
}

/// Entered at another level than EL2, with the MMU off: all that can be done is to say so.
#[unsafe(no_mangle)]
extern "C" fn porthole_wrong_level(tree: u64) -> ! {
    // SAFETY: with the MMU off all memory can be read, and nobody else runs.
    let tree = unsafe { open_tree(tree, BootMemory::new()) };
    let mut conduit = Conduit::Smc;
    if let Ok(tree) = tree {
        if tree.firmware_is_hvc() {
            conduit = Conduit::Hvc;
        }
        if let Some(base) = tree.console() {
            // SAFETY: the tree says that it is a PL011; the MMU is off.
            unsafe {
                console::bare_line(
                    base,
                    format_args!(
                        "cannot start: the CPU is not at EL2; with QEMU, add virtualization=on to -machine virt"
                    ),
                );
            }
        }
    }
    firmware::system_off(conduit)
}

/// The tree at an address that the boot loader gave.
///
/// # Safety
/// The 2 MiB block that `at` lies in and the next one can be read, and do not change.
unsafe fn open_tree<'a>(at: u64, memory: BootMemory) -> Result<Tree<'a>, TreeError> {
    if at == 0 || !at.is_multiple_of(8) {
        return Err(TreeError::NoTree);
    }
    let at = PhysAddr::new(at);
    // SAFETY: the caller's promise; a header is shorter than a block, and a tree at most 2 MiB.
    unsafe {
        let header = memory
            .bytes(at, 40)
            .first_chunk()
            .ok_or(TreeError::NoTree)?;
        Tree::new(memory.bytes(at, Tree::claimed_bytes(header)?))
    }
}

/// The boot CPU, with the image and the tree's surroundings mapped.
#[unsafe(no_mangle)]
extern "C" fn porthole_boot(tree_address: u64) -> ! {
    porthole_core::lock::set_hint(percpu::relax);
    // SAFETY: this CPU runs alone until the host starts another one.
    let memory = unsafe { BootMemory::new() };
    // SAFETY: `porthole_early_map` mapped these blocks; nobody writes them.
    let tree = unsafe { open_tree(tree_address, memory) }.or_stop();
    let map = boot::take_map();
    open_consoles(map, &tree);
    let mut refused = ArrayVec::<&str, 4>::new();
    let options = Options::parse(tree.arguments(), |word| {
        let _ = refused.try_push(word);
    });
    console::init(options.log);
    for word in refused {
        log::warn!("unknown option '{word}' on the hypervisor's command line");
    }
    if let Some(feature) = host::missing_feature() {
        stop(format_args!("cannot start: the CPU lacks {feature}"));
    }
    let start = start(map, &tree, tree_address, options, memory);
    enter_host(start.kernel, start.tree)
}

/// Where the host starts.
struct Start {
    kernel: PhysAddr,
    tree: PhysAddr,
}

/// What is decided before core runs.
struct Plan {
    layout: Layout,
    host: Start,
    smmus: &'static Smmus<Mmio>,
    /// Registers that the host does not reach.
    hidden: ArrayVec<PhysPages, { HIDDEN_MAX + 1 }>,
    features: Features,
}

fn start(
    map: &mut Map,
    tree: &Tree<'_>,
    tree_address: u64,
    options: Options,
    memory: BootMemory,
) -> Start {
    let ram = tree.ram().or_stop();
    let cpus = tree.cpus().or_stop();
    let Some(boot_cpu) = cpus.iter().position(|c| c.mpidr == percpu::affinity()) else {
        stop(format_args!(
            "cannot start: the device tree does not name the CPU that boots, {:#x}; mend its /cpus",
            percpu::affinity()
        ));
    };
    percpu::set_id(CpuId(boot_cpu as u8));
    let Plan {
        layout,
        host,
        smmus,
        hidden,
        mut features,
    } = plan(map, tree, tree_address, &ram, options, memory);
    // SAFETY: the layout put all ranges behind the image, apart from each other and from all modules; the map has
    // all RAM writable.
    let (mut machine, tracker) = unsafe {
        memory.zeroed::<u64>(layout.host_root, 1024);
        if let Some(root) = layout.dma_root {
            memory.zeroed::<u64>(root, 1024);
        }
        (
            Hardware::new(
                Ram::new(layout.pool, Caches),
                cpus.clone(),
                CpuId(boot_cpu as u8),
                smmus,
            ),
            memory.zeroed::<PageEntry>(layout.tracker, layout.tracker_entries),
        )
    };
    log::debug!("boot: tracker, root and pool cleared");
    let gic = machine.find_gic(&tree.gic().or_stop());
    machine.start_cpu();
    features.set(Features::LOG_UART, tree.log_uart().is_some());
    features.set(Features::DEBUG_BUILD, cfg!(debug_assertions));
    features.set(Features::TRNG, machine.has_random());
    let config = BootConfig {
        ram: &ram,
        hyp: layout.all,
        hidden: &hidden,
        cpus: &cpus,
        tracker,
        host_root: layout.host_root.start(),
        dma_root: layout.dma_root.map(|root| root.start()),
        doorbells: &tree.doorbells(),
        gic: gic.config(),
        features,
        slots: &SLOTS,
        log: &console::RING,
    };
    log::debug!("boot: CPU ready");
    let tables = install(machine, config);
    banner(&ram, cpus.len(), &layout, tables, features);
    host
}

/// Lays memory out, writes the host's tree, and takes the SMMUs over: no device does DMA until core lets it. A function
/// of its own, since what the tree says about devices is large and would stay on the stack below core.
#[inline(never)]
fn plan(
    map: &mut Map,
    tree: &Tree<'_>,
    tree_address: u64,
    ram: &[PhysPages],
    options: Options,
    memory: BootMemory,
) -> Plan {
    let image = boot::image();
    let dma = Dma::find(map, tree);
    map_machine(map, ram, &image, tree);
    log::debug!("boot: RAM mapped");
    let layout = layout::plan(ram, &image, dma.needs()).or_stop();
    let Some(kernel) = tree.kernel() else {
        stop(format_args!(
            "cannot start: no kernel for the host; with QEMU, add \
             -device guest-loader,addr=0x4c000000,kernel=Image,bootargs=..."
        ));
    };
    let initrd = tree.initrd();
    let mut taken = ArrayVec::<PhysPages, 4>::new();
    taken.push(layout.all);
    let kernel_pages = check_kernel(&kernel, ram, &layout, memory);
    taken.push(kernel_pages);
    if let Some(initrd) = initrd {
        let pages = layout::module_pages("initrd", &initrd, initrd.bytes.max(1), ram, &layout.all)
            .or_stop();
        if pages.overlaps(&kernel_pages) {
            stop(format_args!(
                "cannot start: {}",
                layout::LayoutError::ModulesOverlap(initrd.start)
            ));
        }
        taken.push(pages);
    }
    // The tree is read while its copy is written.
    let old = PhysAddr::new(tree_address).page();
    taken.extend(PhysPages::new(old, layout::TREE_BYTES / PAGE_SIZE).ok());
    let place = layout::tree_place(ram, &taken).or_stop();
    let host = HostTree {
        kernel,
        initrd,
        reserved: layout.all,
        masters: &dma.masters,
    };
    write_tree(tree, place, &host, memory);
    log::info!(
        "host: kernel at {}, {} bytes; initrd {}; device tree at {place}",
        kernel.start,
        kernel.bytes,
        initrd.map_or(0, |i| i.bytes)
    );
    let mut features = Features::empty();
    features.set(Features::UNSAFE_DMA, options.unsafe_dma);
    let log_uart = tree.log_uart().and_then(uart_pages);
    Plan {
        hidden: log_uart
            .into_iter()
            .chain(dma.hidden.iter().copied())
            .collect(),
        smmus: dma.take(&layout.smmus, memory, &mut features),
        layout,
        host: Start {
            kernel: kernel.start,
            tree: place,
        },
        features,
    }
}

/// Starts core, in the static where it stays; returns how many pages of the pool the host's tables took. A function of
/// its own, since the value is large and passes over the stack.
#[inline(never)]
fn install(machine: Hardware, config: BootConfig<'_, Hardware>) -> usize {
    let free = machine.free_pages();
    match HYPERVISOR.try_call_once(|| Hypervisor::new(machine, config)) {
        Ok(hypervisor) => free.saturating_sub(hypervisor.machine().free_pages()),
        Err(error) => stop(format_args!("cannot start: {error}")),
    }
}

/// One screen: what runs, where, and what it keeps.
fn banner(ram: &[PhysPages], cpus: usize, layout: &Layout, tables: usize, features: Features) {
    let mib: u64 = ram.iter().map(PhysPages::bytes).sum::<u64>() >> 20;
    log::info!("Porthole {} at EL2", env!("CARGO_PKG_VERSION"));
    log::info!("machine: {cpus} CPUs, {mib} MiB of RAM");
    let image = boot::image();
    log::info!(
        "kept from the host: {} KiB at {} (image {}, tracker {}, pool {}, of which {} in tables)",
        layout.all.bytes() >> 10,
        layout.all.start(),
        (image.end.raw() - image.start.raw()) >> 10,
        layout.tracker.bytes() >> 10,
        layout.pool.bytes() >> 10,
        tables << 2,
    );
    log::info!("features: {features:?}");
}

/// Maps the UARTs and opens them.
fn open_consoles(map: &mut Map, tree: &Tree<'_>) {
    if let Some(base) = tree.console()
        && uart_pages(base).is_some_and(|pages| map.map(pages, Access::Device).is_ok())
    {
        // SAFETY: the firmware's tree says that it is a PL011, and it is mapped now.
        unsafe { console::set_console(base) };
    }
    if let Some(base) = tree.log_uart()
        && uart_pages(base).is_some_and(|pages| map.map(pages, Access::Device).is_ok())
    {
        // SAFETY: as above.
        unsafe { console::set_log_uart(base) };
    }
}

fn uart_pages(base: PhysAddr) -> Option<PhysPages> {
    PhysPages::new(base.page(), pl011::FRAME_BYTES / PAGE_SIZE).ok()
}

/// Maps all RAM around the image, and the interrupt controller.
fn map_machine(map: &mut Map, ram: &[PhysPages], image: &Image, tree: &Tree<'_>) {
    let mut ranges = ArrayVec::<(PhysPages, Access), 32>::new();
    for run in ram {
        ranges.extend(
            image
                .around(*run)
                .into_iter()
                .flatten()
                .map(|r| (r, Access::Data)),
        );
    }
    let gic = tree.gic().or_stop();
    ranges.extend(gic::pages(&gic).map(|r| (r, Access::Device)));
    for (pages, access) in ranges {
        if let Err(error) = map.map(pages, access) {
            stop(format_args!(
                "cannot start: EL2 cannot map {} to {}: {error}",
                pages.start(),
                pages.end()
            ));
        }
    }
}

/// Checks the kernel's header; returns all the pages that the kernel takes before it knows its memory.
fn check_kernel(
    kernel: &Module<'_>,
    ram: &[PhysPages],
    layout: &Layout,
    memory: BootMemory,
) -> PhysPages {
    let file = layout::module_pages(
        "kernel",
        kernel,
        kernel.bytes.max(IMAGE_HEADER as u64),
        ram,
        &layout.all,
    );
    file.or_stop();
    // SAFETY: RAM, as was just checked, and nobody writes it.
    let header = unsafe { memory.bytes(kernel.start, IMAGE_HEADER) };
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (at, magic) = IMAGE_MAGIC;
    if header[at..at + 4] != magic {
        stop(format_args!(
            "cannot start: the kernel at {} is not an arm64 Image; unpack it if it is compressed",
            kernel.start
        ));
    }
    let (offset, size) = (number(8), number(16));
    if kernel.start.raw().wrapping_sub(offset) % KERNEL_ALIGN != 0 {
        stop(format_args!(
            "cannot start: the kernel at {} is misplaced; load it {offset:#x} bytes behind a multiple of 2 MiB",
            kernel.start
        ));
    }
    layout::module_pages(
        "kernel",
        kernel,
        size.max(kernel.bytes).max(1),
        ram,
        &layout.all,
    )
    .or_stop()
}

fn write_tree(tree: &Tree<'_>, place: PhysAddr, host: &HostTree<'_>, memory: BootMemory) {
    // SAFETY: `tree_place` found these 2 MiB of RAM free, and they are mapped writable.
    let buffer = unsafe { memory.bytes_mut(place, layout::TREE_BYTES as usize) };
    write_host_tree(tree, host, buffer).or_stop();
    cache::clean_invalidate(place, layout::TREE_BYTES);
}

/// Every other CPU, each time the host starts it.
#[unsafe(no_mangle)]
extern "C" fn porthole_secondary() -> ! {
    let Some(hypervisor) = HYPERVISOR.get() else {
        stop(format_args!("fatal: a CPU came up before there was a host"));
    };
    if let Some(feature) = host::missing_feature() {
        stop(format_args!(
            "fatal: CPU {} lacks {feature}",
            percpu::id().0
        ));
    }
    hypervisor.machine().start_cpu();
    match hypervisor.cpu_started(percpu::id()) {
        Some(entry) => enter_host_at(entry.pc, entry.x0),
        None => {
            log::error!("CPU {} came up and nobody asked for it", percpu::id().0);
            firmware::cpu_off()
        }
    }
}

fn enter_host(kernel: PhysAddr, tree: PhysAddr) -> ! {
    console::host_runs();
    enter_host_at(kernel.raw(), tree.raw())
}

fn enter_host_at(pc: u64, x0: u64) -> ! {
    let Some(hypervisor) = HYPERVISOR.get() else {
        stop(format_args!("fatal: no hypervisor to enter a host under"));
    };
    let regime = hypervisor.host_regime();
    log::debug!("CPU {} enters the host at {pc:#x}", percpu::id().0);
    let stage2 = StageTwo {
        vttbr: regime.vttbr,
        vtcr: regime.vtcr,
    };
    // SAFETY: `start_cpu` prepared this CPU; the regime is the one that core made for the host; nothing on this stack
    // is needed any more.
    unsafe { host::enter(stage2, PhysAddr::new(pc), x0) }
}

const _: () = assert!(CPUS_MAX == porthole_dev::devtree::CPUS_MAX);
