//! DMA at boot: ends all of it first, asks every SMMU what it can do, takes those over that can confine the host's devices,
//! and says on the console what stands in the way of the others. Who reaches what is core's business, from `dma_start` on.

use core::fmt::Display;

use arrayvec::ArrayVec;
use porthole_abi::{Features, PAGE_SIZE};
use porthole_arch::stage1::{Access, Map};
use porthole_arch::{cache, host, percpu, time};
use porthole_core::addr::{PhysAddr, PhysPages};
use porthole_core::hw::SysReg;
use porthole_core::stage2::{Geometry, PaRange};
use porthole_dev::devtree::{HIDDEN_MAX, Masters, Root, Tree, Why};
use porthole_dev::pci::{self, Ecam};
use porthole_dev::smmuv3::{self, Abilities, Cpu, Mmio, Needs, SMMUS_MAX, Smmu, Smmus};
use porthole_dev::virtio_mmio;
use porthole_mem::BootMemory;

use crate::SMMUS;

const ID_AA64MMFR0: SysReg = SysReg::new(3, 0, 0, 7, 0);

/// An SMMU that can do what is needed.
struct Fit {
    index: u8,
    bus: Mmio,
    abilities: Abilities,
    needs: Needs,
}

/// What was found; no device does DMA behind an SMMU until core lets it.
pub struct Dma<'a> {
    /// What the device tree says.
    pub masters: Masters<'a>,
    /// Registers that the host does not reach.
    pub hidden: ArrayVec<PhysPages, HIDDEN_MAX>,
    fit: ArrayVec<Fit, SMMUS_MAX>,
    /// Nothing stands in the way of confining all devices, as far as is known.
    isolated: bool,
}

/// Says what keeps DMA from being confined.
fn warn(name: &str, why: impl Display) {
    log::warn!("DMA is not confined: {name}: {why}");
}

impl<'a> Dma<'a> {
    /// Ends DMA behind every SMMU of the tree and looks at all devices.
    pub fn find(map: &mut Map, tree: &Tree<'a>) -> Self {
        let mut fit = ArrayVec::new();
        let mut isolated = true;
        let mut masters = tree.masters(|base| {
            let page = PhysPages::new(base.page(), 1);
            if !page.is_ok_and(|page| map.map(page, Access::Device).is_ok()) {
                return u32::MAX;
            }
            // SAFETY: the tree says so, and its page was just mapped.
            unsafe { virtio_mmio::device_id(base) }
        });
        // All are stopped before any is asked.
        let mut buses = ArrayVec::<_, SMMUS_MAX>::new();
        for (index, node) in (0u8..).zip(&masters.smmus) {
            if !node.enabled {
                continue;
            }
            let Some(bus) = open(map, node.base) else {
                warn(node.name, "EL2 cannot map its registers");
                isolated = false;
                continue;
            };
            let stopped = smmuv3::quiesce(&bus);
            buses.push((index, node.name, bus, stopped));
        }
        for (index, name, bus, stopped) in buses {
            let streams = masters
                .routes
                .iter()
                .filter(|r| r.smmu == index)
                .map(|r| (r.stream, r.count));
            // One that nothing is behind stays as it is: it lets nothing through.
            let Some(last) = streams.clone().map(|(s, n)| s.saturating_add(n - 1)).max() else {
                continue;
            };
            let abilities = stopped
                .map_err(smmuv3::Unfit::from)
                .and_then(|()| Abilities::probe(&bus, last, host_address_bits()));
            match abilities {
                Ok(abilities) => fit.push(Fit {
                    index,
                    bus,
                    needs: abilities.needs(streams),
                    abilities,
                }),
                Err(why) => {
                    warn(name, why);
                    isolated = false;
                    let_through(&bus);
                }
            }
        }
        for root in core::mem::take(&mut masters.roots) {
            match configuration(map, &root) {
                Some(space) => pci::scan(&space, root.buses, |finding| {
                    masters.add_outside(root.name, Why::Function(finding));
                }),
                None => masters.add_outside(root.name, Why::NoEcam),
            }
        }
        let hidden = masters.hidden_pages().unwrap_or_else(|why| {
            warn("registers", why);
            isolated = false;
            ArrayVec::new()
        });
        for (name, why) in &masters.outside {
            warn(name, why);
        }
        let unnamed = masters.outside_count - masters.outside.len();
        if unnamed > 0 {
            warn("other devices", format_args!("{unnamed} more"));
        }
        if masters.smmus.is_empty() {
            warn(
                "this machine",
                "it has no SMMUv3; with QEMU, add iommu=smmuv3 to -machine virt",
            );
        }
        isolated &= masters.outside_count == 0 && !fit.is_empty();
        Self {
            masters,
            hidden,
            fit,
            isolated,
        }
    }

    /// RAM that the SMMUs need, in this order.
    pub fn needs(&self) -> impl Iterator<Item = Needs> + '_ {
        self.fit.iter().map(|f| f.needs)
    }

    /// Takes the SMMUs over, each with its run of `memory`.
    #[inline(never)]
    pub fn take(
        self,
        memory: &[PhysPages],
        boot: BootMemory,
        features: &mut Features,
    ) -> &'static Smmus<Mmio> {
        let Self {
            masters,
            fit,
            mut isolated,
            ..
        } = self;
        let mut smmus = ArrayVec::new();
        for (fit, pages) in fit.into_iter().zip(memory) {
            // SAFETY: the layout set these pages aside for this SMMU.
            unsafe { boot.zeroed::<u64>(*pages, 0) };
            let name = masters.smmus[usize::from(fit.index)].name;
            match Smmu::new(fit.bus, fit.abilities, *pages) {
                Ok(smmu) => {
                    log::info!(
                        "{name}: {} bits of streams, {:?} table, {} KiB, BBML {}{}",
                        fit.abilities.bits,
                        fit.abilities.format,
                        pages.bytes() >> 10,
                        fit.abilities.bbml,
                        if fit.abilities.range {
                            ", range invalidation"
                        } else {
                            ""
                        },
                    );
                    smmus.push((fit.index, smmu));
                }
                Err(why) => {
                    warn(name, why);
                    isolated = false;
                }
            }
        }
        features.set(Features::DMA_ISOLATED, isolated);
        if isolated {
            features.remove(Features::UNSAFE_DMA);
        } else if features.contains(Features::UNSAFE_DMA) {
            log::warn!("protected VMs are allowed all the same, by porthole.allow_unsafe_dma");
        } else {
            log::warn!(
                "protected VMs are refused; porthole.allow_unsafe_dma on the hypervisor's command line allows them"
            );
        }
        SMMUS.call_once(|| Smmus::new(smmus, masters.routes))
    }
}

/// The SMMU whose registers are at `base`.
fn open(map: &mut Map, base: PhysAddr) -> Option<Mmio> {
    let frame = PhysPages::new(base, smmuv3::FRAME_BYTES / PAGE_SIZE).ok()?;
    map.map(frame, Access::Device).ok()?;
    let cpu = Cpu {
        barrier: cache::barrier,
        now: time::counter,
        second: time::frequency(),
        relax: percpu::relax,
    };
    // SAFETY: the firmware's tree says so, the frame is mapped for good, and so is all RAM.
    unsafe { Mmio::new(base, cpu) }
}

/// The configuration space of a PCI root.
fn configuration(map: &mut Map, root: &Root<'_>) -> Option<Ecam> {
    map.map(root.pages, Access::Device).ok()?;
    // SAFETY: the tree says so, it is mapped for good, and the host does not run yet.
    unsafe { Ecam::new(root.pages.start(), root.buses.clone()) }
}

/// The host's devices work without the SMMU that cannot confine them.
fn let_through(bus: &Mmio) {
    // One that does not answer was reported already.
    let _ = smmuv3::bypass(bus);
}

/// Size of the host's map.
fn host_address_bits() -> u32 {
    let range = PaRange::new((host::id_register(ID_AA64MMFR0) & 15) as u8);
    Geometry::new(Geometry::BITS_MAX, range)
        .end()
        .trailing_zeros()
}
