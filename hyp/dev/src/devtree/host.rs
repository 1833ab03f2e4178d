//! The host's device tree: the firmware's, without what EL2 keeps and with what the host's kernel needs.
//! Removed: boot modules, the second UART, the GIC's maintenance interrupt, all timers but EL1's physical one, SMMUs and what
//! leads to them, fw_cfg, virtio-mmio transports without a device.

use fdt::node::{FdtNode, NodeProperty};
use porthole_core::addr::PhysPages;

use super::masters::Masters;
use super::read::{Module, Tree, cells, is_compatible, is_module, number};
use super::writer::{WriteError, Writer};

/// Bytes set aside for property names; QEMU's trees have some 1500.
const NAMES_BYTES: usize = 8192;
/// Place of the non-secure EL1 physical timer among a timer's interrupts, where they have no names
/// (Linux, Documentation/devicetree/bindings/timer/arm,arch_timer.yaml).
const PHYS_INDEX: usize = 1;

/// What the host's tree says that the firmware's did not.
#[derive(Clone, Copy, Debug)]
pub struct HostTree<'a> {
    /// The kernel module, for its command line.
    pub kernel: Module<'a>,
    /// The initrd, if there is one.
    pub initrd: Option<Module<'a>>,
    /// RAM that the host must leave alone.
    pub reserved: PhysPages,
    /// What is hidden for DMA's sake.
    pub masters: &'a Masters<'a>,
}

/// Writes the host's tree into `buffer`; returns its bytes.
///
/// # Errors
/// [`WriteError::Full`].
pub fn write_host_tree(
    tree: &Tree<'_>,
    host: &HostTree<'_>,
    buffer: &mut [u8],
) -> Result<usize, WriteError> {
    let mut copy = Copy {
        out: Writer::new(buffer, NAMES_BYTES)?,
        host,
        dropped: None,
        interrupt_cells: 3,
    };
    if let Some(root) = tree.root() {
        copy.dropped = tree.log_uart_node(root).map(|n| n.name);
        if let Some(gic) = root.children().find(|n| is_compatible(*n, "arm,gic-v3")) {
            copy.interrupt_cells = cells(gic, "#interrupt-cells", 3).max(1);
        }
        copy.root(root)?;
    }
    copy.out.finish(0)
}

struct Copy<'a, 'b> {
    out: Writer<'b>,
    host: &'a HostTree<'a>,
    /// Name of the child of the root that is the hypervisor's UART.
    dropped: Option<&'a str>,
    interrupt_cells: usize,
}

impl Copy<'_, '_> {
    fn root(&mut self, root: FdtNode<'_, '_>) -> Result<(), WriteError> {
        self.out.begin("")?;
        self.properties(root, |_| true)?;
        let mut has_reserved = false;
        for child in root.children() {
            match child.name {
                name if Some(name) == self.dropped => {}
                _ if self.host.masters.is_hidden(root, child) => {}
                "chosen" => self.chosen(child)?,
                "aliases" => self.aliases(child)?,
                "reserved-memory" => {
                    has_reserved = true;
                    self.out.begin(child.name)?;
                    self.properties(child, |_| true)?;
                    self.reservation(child)?;
                    self.children(child)?;
                    self.out.end()?;
                }
                _ if is_compatible(child, "arm,gic-v3") => {
                    self.out.begin(child.name)?;
                    self.properties(child, |name| name != "interrupts")?;
                    self.children(child)?;
                    self.out.end()?;
                }
                _ if is_compatible(child, "arm,armv8-timer") => self.timer(child)?,
                _ => self.node(child)?,
            }
        }
        if !has_reserved {
            self.out.begin("reserved-memory")?;
            for name in ["#address-cells", "#size-cells"] {
                if let Some(property) = root.property(name) {
                    self.out.property(name, property.value)?;
                }
            }
            self.out.property("ranges", &[])?;
            self.reservation(root)?;
            self.out.end()?;
        }
        self.out.begin("hypervisor")?;
        self.out.text("compatible", "porthole,hypervisor")?;
        self.out.end()?;
        self.out.end()
    }

    /// The hypervisor's memory as a reservation; `parent` has the number of cells.
    fn reservation(&mut self, parent: FdtNode<'_, '_>) -> Result<(), WriteError> {
        let reserved = self.host.reserved;
        let mut reg = [0; 16];
        let mut used = 0;
        for (cells, value) in [
            (cells(parent, "#address-cells", 2), reserved.start().raw()),
            (cells(parent, "#size-cells", 1), reserved.bytes()),
        ] {
            let bytes = if cells == 1 { 4 } else { 8 };
            reg[used..used + bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
            used += bytes;
        }
        self.out.begin("porthole")?;
        self.out.property("reg", &reg[..used])?;
        self.out.property("no-map", &[])?;
        self.out.end()
    }

    fn chosen(&mut self, node: FdtNode<'_, '_>) -> Result<(), WriteError> {
        const OURS: [&str; 3] = ["bootargs", "linux,initrd-start", "linux,initrd-end"];
        self.out.begin(node.name)?;
        self.properties(node, |name| !OURS.contains(&name))?;
        if !self.host.kernel.arguments.is_empty() {
            self.out.text("bootargs", self.host.kernel.arguments)?;
        }
        if let Some(initrd) = self.host.initrd {
            let start = initrd.start.raw();
            self.out
                .property("linux,initrd-start", &start.to_be_bytes())?;
            let end = start.saturating_add(initrd.bytes);
            self.out.property("linux,initrd-end", &end.to_be_bytes())?;
        }
        for child in node.children().filter(|n| !is_module(*n)) {
            self.node(child)?;
        }
        self.out.end()
    }

    fn aliases(&mut self, node: FdtNode<'_, '_>) -> Result<(), WriteError> {
        self.out.begin(node.name)?;
        for property in node.properties() {
            let target = property
                .value
                .strip_prefix(b"/")
                .and_then(|v| v.strip_suffix(&[0]));
            if self.dropped.is_none() || target != self.dropped.map(str::as_bytes) {
                self.out.property(property.name, property.value)?;
            }
        }
        self.out.end()
    }

    /// The architected timer with the non-secure EL1 physical timer alone: the virtual one is the guests'.
    fn timer(&mut self, node: FdtNode<'_, '_>) -> Result<(), WriteError> {
        let index = node
            .property("interrupt-names")
            .and_then(|p| p.value.split(|b| *b == 0).position(|name| name == b"phys"))
            .unwrap_or(PHYS_INDEX);
        let bytes = 4 * self.interrupt_cells;
        self.out.begin(node.name)?;
        for property in node.properties() {
            match property.name {
                "interrupt-names" => {}
                "interrupts" => {
                    let start = index * bytes;
                    if let Some(phys) = property.value.get(start..start + bytes) {
                        self.out.property("interrupts", phys)?;
                        self.out.text("interrupt-names", "phys")?;
                    }
                }
                _ => self.out.property(property.name, property.value)?,
            }
        }
        self.out.end()
    }

    fn node(&mut self, node: FdtNode<'_, '_>) -> Result<(), WriteError> {
        self.out.begin(node.name)?;
        self.properties(node, |_| true)?;
        self.children(node)?;
        self.out.end()
    }

    fn children(&mut self, node: FdtNode<'_, '_>) -> Result<(), WriteError> {
        for child in node.children() {
            if !self.host.masters.is_hidden(node, child) {
                self.node(child)?;
            }
        }
        Ok(())
    }

    /// Whether a property names an SMMU, as `iommus` and `iommu-map` do.
    fn leads_to_smmu(&self, property: &NodeProperty<'_>) -> bool {
        let (row, phandle) = match property.name {
            "iommus" => (8, 0),
            "iommu-map" => (16, 4),
            _ => return false,
        };
        let mut rows = property.value.chunks(row);
        rows.any(|row| {
            let phandle = row.get(phandle..phandle + 4).and_then(number);
            phandle.is_some_and(|p| self.host.masters.is_smmu(p))
        })
    }

    fn properties(
        &mut self,
        node: FdtNode<'_, '_>,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), WriteError> {
        for property in node.properties() {
            if !keep(property.name) || self.leads_to_smmu(&property) {
                continue;
            }
            self.out.property(property.name, property.value)?;
        }
        Ok(())
    }
}
