//! The firmware's tree is made with vm-fdt after QEMU's virt machine; the host's is read back with the fdt crate.

use fdt::Fdt;
use porthole_core::addr::{PhysAddr, PhysPages};
use vm_fdt::FdtWriter;

use super::*;

mod gic;
mod masters;
mod pci;

const CONSOLE: u64 = 0x900_0000;
const LOG_UART: u64 = 0x904_0000;

struct Machine {
    second_uart: bool,
    modules: bool,
    gic: bool,
    cpus: u32,
    memory: &'static [(u64, u64)],
}

const QEMU: Machine = Machine {
    second_uart: true,
    modules: true,
    gic: true,
    cpus: 2,
    memory: &[(0x4000_0000, 0x8000_0000)],
};

fn uart(fdt: &mut FdtWriter, base: u64) {
    let node = fdt.begin_node(&format!("pl011@{base:x}")).unwrap();
    fdt.property_string_list(
        "compatible",
        vec!["arm,pl011".into(), "arm,primecell".into()],
    )
    .unwrap();
    fdt.property_array_u64("reg", &[base, 0x1000]).unwrap();
    fdt.end_node(node).unwrap();
}

fn module(fdt: &mut FdtWriter, address: u64, bytes: u64, kind: &str, arguments: Option<&str>) {
    let node = fdt.begin_node(&format!("module@0x{address:08x}")).unwrap();
    fdt.property_array_u64("reg", &[address, bytes]).unwrap();
    fdt.property_string_list("compatible", vec!["multiboot,module".into(), kind.into()])
        .unwrap();
    if let Some(arguments) = arguments {
        fdt.property_string("bootargs", arguments).unwrap();
    }
    fdt.end_node(node).unwrap();
}

fn blob(machine: &Machine) -> Vec<u8> {
    blob_with(machine, |_| {})
}

/// A machine with further children of the root.
fn blob_with(machine: &Machine, more: impl FnOnce(&mut FdtWriter)) -> Vec<u8> {
    let mut fdt = FdtWriter::new().unwrap();
    let root = fdt.begin_node("").unwrap();
    fdt.property_u32("#address-cells", 2).unwrap();
    fdt.property_u32("#size-cells", 2).unwrap();
    fdt.property_string("compatible", "linux,dummy-virt")
        .unwrap();
    for (base, size) in machine.memory {
        let node = fdt.begin_node(&format!("memory@{base:x}")).unwrap();
        fdt.property_string("device_type", "memory").unwrap();
        fdt.property_array_u64("reg", &[*base, *size]).unwrap();
        fdt.end_node(node).unwrap();
    }
    let cpus = fdt.begin_node("cpus").unwrap();
    fdt.property_u32("#address-cells", 1).unwrap();
    fdt.property_u32("#size-cells", 0).unwrap();
    for n in 0..machine.cpus {
        let node = fdt.begin_node(&format!("cpu@{n}")).unwrap();
        fdt.property_string("device_type", "cpu").unwrap();
        fdt.property_u32("reg", n).unwrap();
        fdt.end_node(node).unwrap();
    }
    fdt.end_node(cpus).unwrap();
    if machine.gic {
        let gic = fdt.begin_node("intc@8000000").unwrap();
        fdt.property_u32("#address-cells", 2).unwrap();
        fdt.property_u32("#size-cells", 2).unwrap();
        fdt.property_null("ranges").unwrap();
        fdt.property_string("compatible", "arm,gic-v3").unwrap();
        fdt.property_u32("#interrupt-cells", 3).unwrap();
        fdt.property_array_u32("interrupts", &[1, 9, 4]).unwrap();
        fdt.property_array_u64("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000])
            .unwrap();
        fdt.property_u32("redistributor-stride", 0x2_0000).unwrap();
        // One is switched off.
        for (base, status) in [(0x808_0000, "okay"), (0x80c_0000, "disabled")] {
            let its = fdt.begin_node(&format!("its@{base:x}")).unwrap();
            fdt.property_string("compatible", "arm,gic-v3-its").unwrap();
            fdt.property_string("status", status).unwrap();
            fdt.property_array_u64("reg", &[base, 0x2_0000]).unwrap();
            fdt.end_node(its).unwrap();
        }
        fdt.end_node(gic).unwrap();
    }
    let timer = fdt.begin_node("timer").unwrap();
    fdt.property_string("compatible", "arm,armv8-timer")
        .unwrap();
    fdt.property_null("always-on").unwrap();
    fdt.property_array_u32("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4])
        .unwrap();
    fdt.end_node(timer).unwrap();
    uart(&mut fdt, CONSOLE);
    if machine.second_uart {
        uart(&mut fdt, LOG_UART);
    }
    let aliases = fdt.begin_node("aliases").unwrap();
    fdt.property_string("serial0", "/pl011@9000000").unwrap();
    fdt.property_string("serial1", "/pl011@9040000").unwrap();
    fdt.end_node(aliases).unwrap();
    let psci = fdt.begin_node("psci").unwrap();
    fdt.property_string("method", "smc").unwrap();
    fdt.end_node(psci).unwrap();
    let chosen = fdt.begin_node("chosen").unwrap();
    fdt.property_string("stdout-path", "/pl011@9000000")
        .unwrap();
    fdt.property_array_u32("kaslr-seed", &[1, 2]).unwrap();
    fdt.property_string("bootargs", "porthole.log=debug")
        .unwrap();
    if machine.modules {
        module(
            &mut fdt,
            0x4c00_0000,
            0x200_0000,
            "multiboot,kernel",
            Some("console=ttyAMA0"),
        );
        module(&mut fdt, 0x5a00_0000, 0x123, "multiboot,ramdisk", None);
    }
    fdt.end_node(chosen).unwrap();
    more(&mut fdt);
    fdt.end_node(root).unwrap();
    fdt.finish().unwrap()
}

/// Writes the host's tree of a machine and hands both trees to `check`.
fn edited(machine: &Machine, check: impl FnOnce(&Tree<'_>, &Fdt<'_>)) {
    let blob = blob(machine);
    let tree = Tree::new(&blob).unwrap();
    let masters = tree.masters(|_| 0);
    let host = HostTree {
        masters: &masters,
        kernel: tree.kernel().unwrap(),
        initrd: tree.initrd(),
        reserved: PhysPages::new(PhysAddr::new(0x4020_0000), 0x538).unwrap(),
    };
    let mut buffer = vec![0xa5; 64 * 1024];
    let bytes = write_host_tree(&tree, &host, &mut buffer).unwrap();
    check(&tree, &Fdt::new(&buffer[..bytes]).unwrap());
}

fn value<'a>(fdt: &Fdt<'a>, path: &str, property: &str) -> Option<&'a [u8]> {
    Some(fdt.find_node(path)?.property(property)?.value)
}

#[test]
fn reads_what_qemu_says() {
    let blob = blob(&QEMU);
    let tree = Tree::new(&blob).unwrap();
    let ram = tree.ram().unwrap();
    assert_eq!(
        (ram.len(), ram[0].start().raw(), ram[0].bytes()),
        (1, 0x4000_0000, 0x8000_0000)
    );
    assert_eq!(
        tree.cpus()
            .unwrap()
            .iter()
            .map(|c| c.mpidr)
            .collect::<Vec<_>>(),
        [0, 1]
    );
    let gic = tree.gic().unwrap();
    assert_eq!(gic.distributor, PhysAddr::new(0x800_0000));
    assert_eq!(
        gic.redistributors[..],
        [(PhysAddr::new(0x80a_0000), 0xf6_0000)]
    );
    assert_eq!(gic.stride, Some(0x2_0000));
    assert_eq!(gic.its[..], [0x808_0000, 0x80c_0000].map(PhysAddr::new));
    assert_eq!(tree.console(), Some(PhysAddr::new(CONSOLE)));
    assert_eq!(tree.log_uart(), Some(PhysAddr::new(LOG_UART)));
    assert_eq!(tree.arguments(), "porthole.log=debug");
    let kernel = tree.kernel().unwrap();
    assert_eq!(
        (kernel.start.raw(), kernel.bytes, kernel.arguments),
        (0x4c00_0000, 0x200_0000, "console=ttyAMA0")
    );
    assert_eq!(tree.initrd().unwrap().bytes, 0x123);
    assert!(!tree.firmware_is_hvc());
}

#[test]
fn memory_is_sorted_trimmed_to_pages_and_joined() {
    let blob = blob(&Machine {
        memory: &[
            (0x8000_0000, 0x1000_0800),
            (0x4000_0800, 0x4000_0000 - 0x800),
            (0x1_0000_0000, 0x800),
        ],
        ..QEMU
    });
    let ram = Tree::new(&blob).unwrap().ram().unwrap();
    assert_eq!(ram.len(), 1);
    assert_eq!(
        (ram[0].start().raw(), ram[0].end().raw()),
        (0x4000_1000, 0x9000_0000)
    );
}

#[test]
fn a_machine_that_lacks_something_is_named() {
    let error =
        |machine: &Machine, of: fn(&Tree<'_>) -> TreeError| of(&Tree::new(&blob(machine)).unwrap());
    assert_eq!(
        error(&Machine { gic: false, ..QEMU }, |t| t.gic().unwrap_err()),
        TreeError::NoGic
    );
    assert_eq!(
        error(&Machine { cpus: 0, ..QEMU }, |t| t.cpus().unwrap_err()),
        TreeError::NoCpu
    );
    assert_eq!(
        error(&Machine { cpus: 9, ..QEMU }, |t| t.cpus().unwrap_err()),
        TreeError::TooMany(8, "CPUs")
    );
    assert_eq!(
        error(
            &Machine {
                memory: &[],
                ..QEMU
            },
            |t| t.ram().unwrap_err()
        ),
        TreeError::NoMemory
    );
    let bare = blob(&Machine {
        modules: false,
        second_uart: false,
        ..QEMU
    });
    let bare = Tree::new(&bare).unwrap();
    assert_eq!(
        (bare.kernel(), bare.initrd(), bare.log_uart()),
        (None, None, None)
    );
}

#[test]
fn what_is_no_tree_is_refused() {
    let good = blob(&QEMU);
    assert!(Tree::new(&[]).is_err());
    assert!(Tree::new(&good[..good.len() - 1]).is_err());
    // Magic, size, offsets and sizes of the blocks, oldest compatible version.
    for offset in [0, 4, 8, 12, 16, 24, 32, 36] {
        let mut bad = good.clone();
        bad[offset] = 0x7f;
        assert!(Tree::new(&bad).is_err(), "header byte {offset}");
    }
}

#[test]
fn the_host_gets_its_kernel_line_and_initrd_and_no_modules() {
    edited(&QEMU, |_, host| {
        assert_eq!(
            value(host, "/chosen", "bootargs"),
            Some(&b"console=ttyAMA0\0"[..])
        );
        assert_eq!(
            value(host, "/chosen", "linux,initrd-start"),
            Some(&0x5a00_0000u64.to_be_bytes()[..])
        );
        assert_eq!(
            value(host, "/chosen", "linux,initrd-end"),
            Some(&0x5a00_0123u64.to_be_bytes()[..])
        );
        assert_eq!(value(host, "/chosen", "kaslr-seed").unwrap().len(), 8);
        assert_eq!(
            value(host, "/chosen", "stdout-path"),
            Some(&b"/pl011@9000000\0"[..])
        );
        assert_eq!(host.find_node("/chosen").unwrap().children().count(), 0);
        assert_eq!(
            value(host, "/hypervisor", "compatible"),
            Some(&b"porthole,hypervisor\0"[..])
        );
    });
}

#[test]
fn the_host_gets_no_interrupt_and_no_uart_of_the_hypervisor() {
    edited(&QEMU, |_, host| {
        assert!(value(host, "/intc@8000000", "interrupts").is_none());
        assert!(host.find_node("/intc@8000000/its@8080000").is_some());
        let phys: Vec<u8> = [1u32, 14, 4].iter().flat_map(|w| w.to_be_bytes()).collect();
        assert_eq!(value(host, "/timer", "interrupts"), Some(&phys[..]));
        assert_eq!(
            value(host, "/timer", "interrupt-names"),
            Some(&b"phys\0"[..])
        );
        assert!(value(host, "/timer", "always-on").is_some());
        assert!(host.find_node("/pl011@9000000").is_some());
        assert!(host.find_node("/pl011@9040000").is_none());
        assert!(value(host, "/aliases", "serial0").is_some());
        assert!(value(host, "/aliases", "serial1").is_none());
    });
}

#[test]
fn the_hypervisors_memory_is_reserved() {
    edited(&QEMU, |_, host| {
        let node = host.find_node("/reserved-memory/porthole").unwrap();
        let region = node.reg().unwrap().next().unwrap();
        assert_eq!(
            (region.starting_address as u64, region.size),
            (0x4020_0000, Some(0x53_8000))
        );
        assert!(node.property("no-map").is_some());
        assert!(value(host, "/reserved-memory", "ranges").is_some());
        assert_eq!(
            host.memory().regions().next().unwrap().size,
            Some(0x8000_0000)
        );
    });
}

#[test]
fn a_buffer_too_small_is_refused_at_every_size() {
    let blob = blob(&QEMU);
    let tree = Tree::new(&blob).unwrap();
    let masters = tree.masters(|_| 0);
    let host = HostTree {
        masters: &masters,
        kernel: tree.kernel().unwrap(),
        initrd: None,
        reserved: PhysPages::new(PhysAddr::new(0x4020_0000), 1).unwrap(),
    };
    let mut buffer = vec![0; 64 * 1024];
    let whole = write_host_tree(&tree, &host, &mut buffer).unwrap();
    for size in 0..whole {
        assert_eq!(
            write_host_tree(&tree, &host, &mut buffer[..size]),
            Err(WriteError::Full)
        );
    }
}
