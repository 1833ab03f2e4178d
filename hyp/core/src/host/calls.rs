//! The host's hypercalls: arguments out of registers, the call, results back into registers.
//! All checks that need no state are made on the values read here, once; `docs/abi.md` explains each call.

use core::sync::atomic::Ordering;

use porthole_abi::{
    ABI_VERSION, Error, HostFunction, LOG_CHUNK, NO_ADDRESS, PageOwner, StatKind, VmConfig,
    VmState, WindowConfig,
};
use sha2::Sha256;
use zerocopy::{FromZeros, IntoBytes};

use crate::addr::{Ipa, PhysAddr, PhysPages};
use crate::hw::{CpuId, Machine};
use crate::hypervisor::Hypervisor;
use crate::measure::Launch;
use crate::memory::Content;
use crate::tracker::{VmSlot, WindowSlot};
use crate::vm::donation;

/// `VM_DONATE`, flag: keep and measure the content.
const DONATE_MEASURED: u64 = 1 << 0;

/// States in which a VM's memory and windows can grow.
const GROWING: &[VmState] = &[VmState::Created, VmState::Final];
/// States before the teardown.
const LIVING: &[VmState] = &[VmState::Created, VmState::Final, VmState::Stopped];

/// Sets x1 and those after it.
fn return_values(x: &mut [u64; 31], values: &[u64]) {
    for (register, value) in x.iter_mut().skip(1).zip(values) {
        *register = *value;
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Serves one call; `x` holds arguments from x1 on and takes results from x1 on.
    ///
    /// # Errors
    /// What `docs/abi.md` says of the call; `Busy` for all of them once the machine goes down.
    pub(super) fn host_call(&self, function: HostFunction, x: &mut [u64; 31]) -> Result<(), Error> {
        if self.halting.load(Ordering::SeqCst) {
            return Err(Error::Busy);
        }
        let [_, a1, a2, a3, a4, a5, ..] = *x;
        match function {
            HostFunction::Features => self.call_features(x),
            HostFunction::VmCreate => {
                let mut config = VmConfig::new_zeroed();
                self.copy_block(a1, config.as_mut_bytes())?;
                return_values(x, &[self.create_vm(&config)?.0]);
            }
            HostFunction::VmDonateMeta => self.call_donate_meta(a1, donation(a2, a3)?)?,
            HostFunction::VmDonate => {
                self.call_donate(a1, donation(a2, a4)?, Ipa::new(a3), a5)?;
            }
            HostFunction::VmFinalize => self.slots.with(a1, |vm| vm.finalize(a2, a3))?,
            HostFunction::VmTeardown => return_values(x, &[self.teardown_vm(a1)?]),
            HostFunction::VmReclaim => self.call_reclaim(a1, donation(a2, a3)?)?,
            HostFunction::VmDestroy => self.destroy_vm(a1)?,
            HostFunction::VmInfo => return_values(x, &self.call_vm_info(a1)?),
            HostFunction::VmMeasurement => {
                let measurement = self.slots.with(a1, |vm| vm.launch.lock().registers())?;
                return_values(x, &measurement);
            }
            HostFunction::VcpuCreate => self.create_vcpu(a1, a2)?,
            HostFunction::VcpuRun => {
                let exit = self.run_vcpu(a1, a2, a3)?;
                let [p0, p1, p2] = exit.payload;
                return_values(x, &[exit.kind as u64, p0, p1, p2]);
            }
            HostFunction::WindowRegister => return_values(x, &[self.call_window_register(a1)?]),
            HostFunction::WindowUnregister => self.slots.with(a1, |vm| {
                vm.in_state(LIVING)?;
                let mut memory = vm.memory.lock();
                self.memory
                    .unregister_window(&self.machine, &mut memory, a2, a3)
            })?,
            HostFunction::WindowInfo => return_values(x, &self.call_window_info(a1, a2)?),
            HostFunction::SpiSet => return_values(x, &[self.call_spi_set(a1, a2, a3)?]),
            HostFunction::ShareAudit => return_values(x, &self.call_audit(a1)?),
            HostFunction::Stats => return_values(x, &[self.call_stats(a1, a2)?]),
            HostFunction::LogRead => self.call_log_read(a1, x),
            HostFunction::DmaConfine => self.call_dma_confine(a1, a2, a3)?,
            HostFunction::DmaRelease => self.call_dma_release(a1)?,
            HostFunction::DmaInfo => return_values(x, &self.call_dma_info(a1)?),
            HostFunction::PageInfo => return_values(x, &self.call_page_info(a1)),
        }
        Ok(())
    }

    /// Copies a parameter block, once. What is checked afterwards is the copy.
    fn copy_block(&self, pa: u64, to: &mut [u8]) -> Result<(), Error> {
        self.memory
            .copy_from_host(&self.machine, PhysAddr::new(pa), to)
    }

    fn call_features(&self, x: &mut [u64; 31]) {
        let ram: u64 = self.ram.iter().map(PhysPages::bytes).sum();
        return_values(
            x,
            &[
                u64::from(ABI_VERSION),
                self.features.bits(),
                self.hyp.bytes(),
                self.cpus.len() as u64,
                self.machine.free_pages() as u64,
                ram,
            ],
        );
    }

    fn call_donate_meta(&self, handle: u64, pages: PhysPages) -> Result<(), Error> {
        self.slots.with(handle, |vm| {
            vm.in_state(LIVING)?;
            let mut memory = vm.memory.lock();
            self.memory
                .donate_metadata(&self.machine, &mut memory, pages)
        })
    }

    fn call_donate(
        &self,
        handle: u64,
        pages: PhysPages,
        ipa: Ipa,
        flags: u64,
    ) -> Result<(), Error> {
        if flags & !DONATE_MEASURED != 0 {
            return Err(Error::ReservedNonZero);
        }
        self.slots.with(handle, |vm| {
            let mut memory = vm.memory.lock();
            if flags & DONATE_MEASURED == 0 {
                vm.in_state(GROWING)?;
                return self
                    .memory
                    .donate(&self.machine, &mut memory, pages, ipa, Content::Zeroed);
            }
            vm.in_state(&[VmState::Created])?;
            let mut launch = vm.launch.lock();
            let mut hash: Sha256 = launch.open()?;
            let mut show = |ipa: Ipa, bytes: &[u8]| Launch::page(&mut hash, ipa, bytes);
            self.memory.donate(
                &self.machine,
                &mut memory,
                pages,
                ipa,
                Content::Keep(&mut show),
            )?;
            launch.commit(hash);
            Ok(())
        })
    }

    fn call_reclaim(&self, handle: u64, pages: PhysPages) -> Result<(), Error> {
        self.slots.with(handle, |vm| {
            vm.in_state(&[VmState::Dying])?;
            let mut memory = vm.memory.lock();
            self.memory.reclaim(&self.machine, &mut memory, pages)
        })
    }

    fn call_vm_info(&self, slot: u64) -> Result<[u64; 8], Error> {
        let index = usize::try_from(slot)
            .ok()
            .filter(|index| VmSlot::new(*index).is_some())
            .ok_or(Error::InvalidParameter)?;
        let info = self.slots.with_slot(index, |vm| {
            let memory = vm.memory.lock();
            [
                vm.handle.0,
                vm.state() as u64,
                memory.memory_pages(),
                memory.metadata_pages(),
                memory.windows().len() as u64,
                vm.vcpu_count as u64,
                memory.metadata_free(),
                vm.map.flags().bits(),
            ]
        });
        Ok(info.unwrap_or([0; 8]))
    }

    fn call_window_register(&self, pa: u64) -> Result<u64, Error> {
        let mut config = WindowConfig::new_zeroed();
        self.copy_block(pa, config.as_mut_bytes())?;
        self.slots.with(config.vm, |vm| {
            let mut memory = vm.memory.lock();
            vm.in_state(GROWING)?;
            self.memory
                .register_window(&self.machine, &mut memory, &config)
                .map(|slot| slot.index() as u64)
        })
    }

    fn call_window_info(&self, handle: u64, window: u64) -> Result<[u64; 6], Error> {
        let slot = usize::try_from(window)
            .ok()
            .and_then(WindowSlot::new)
            .ok_or(Error::NoWindow);
        self.slots.with(handle, |vm| {
            let memory = vm.memory.lock();
            let window = memory.windows().get(slot?).ok_or(Error::NoWindow)?;
            Ok([
                window.pages.start().raw(),
                window.pages.bytes(),
                u64::from(window.function().0),
                u64::from(window.bar.bar),
                window.bar.offset,
                u64::from(window.functions()),
            ])
        })
    }

    fn call_spi_set(&self, handle: u64, intid: u64, level: u64) -> Result<u64, Error> {
        let level = match level {
            0 => false,
            1 => true,
            _ => return Err(Error::InvalidParameter),
        };
        self.slots.with(handle, |vm| {
            vm.in_state(LIVING)?;
            let mask = vm
                .gic
                .lock()
                .as_mut()
                .ok_or(Error::BadState)?
                .set_line(intid, level)?;
            Ok(u64::from(self.poke_all(vm, mask)))
        })
    }

    fn call_audit(&self, cursor: u64) -> Result<[u64; 5], Error> {
        let step = self
            .memory
            .audit(&self.machine, cursor, &mut |slot, look| {
                self.slots
                    .with_slot(slot.index(), |vm| look(&vm.memory.lock()));
            })?;
        Ok([
            step.next,
            step.shared,
            step.windows,
            step.offender.map_or(NO_ADDRESS, PhysAddr::raw),
            step.epoch,
        ])
    }

    fn call_stats(&self, kind: u64, index: u64) -> Result<u64, Error> {
        let kind = StatKind::from_number(kind).ok_or(Error::InvalidParameter)?;
        let cpu = || {
            u8::try_from(index)
                .ok()
                .filter(|cpu| usize::from(*cpu) < self.cpus.len())
                .and_then(|cpu| self.stats.cpu(CpuId(cpu)))
                .ok_or(Error::BadCpu)
        };
        let whole = |value: u64| {
            if index == 0 {
                Ok(value)
            } else {
                Err(Error::InvalidParameter)
            }
        };
        match kind {
            StatKind::HostCalls => Ok(cpu()?.host_calls.load(Ordering::Relaxed)),
            StatKind::GuestExitsInside => Ok(cpu()?.exits_inside.load(Ordering::Relaxed)),
            StatKind::GuestExitsToHost => Ok(cpu()?.exits_to_host.load(Ordering::Relaxed)),
            StatKind::HostAborts => whole(self.stats.host_aborts.load(Ordering::Relaxed)),
            StatKind::LastAbortAddress => whole(self.stats.last_abort.load(Ordering::Relaxed)),
            StatKind::SmcsRefused => whole(self.stats.smcs_refused.load(Ordering::Relaxed)),
            StatKind::PagesByOwner => PageOwner::from_number(index)
                .map(|owner| self.memory.pages_by_owner(owner))
                .ok_or(Error::InvalidParameter),
            StatKind::Epoch => whole(self.memory.epoch()),
            StatKind::PagesDonated => whole(self.memory.pages_donated()),
            StatKind::PagesReclaimed => whole(self.memory.pages_reclaimed()),
            StatKind::HostTables => whole(self.memory.host_tables()),
            StatKind::DmaFaults => whole(self.dma_faults()),
        }
    }

    fn call_log_read(&self, position: u64, x: &mut [u64; 31]) {
        self.poll_dma();
        let mut chunk = [0u8; LOG_CHUNK];
        let (first, bytes) = self.log.read(position, &mut chunk);
        return_values(x, &[first, bytes as u64]);
        for (register, bytes) in x.iter_mut().skip(3).zip(chunk.as_chunks::<8>().0) {
            *register = u64::from_le_bytes(*bytes);
        }
    }

    fn call_page_info(&self, pa: u64) -> [u64; 3] {
        let (state, run) = self.memory.page_run(PhysAddr::new(pa));
        let Some(state) = state else {
            return [PageOwner::None as u64, 0, run];
        };
        // The slot's VM may be gone a moment later: this is a report, not a promise.
        let handle = state
            .vm()
            .and_then(|slot| self.slots.with_slot(slot.index(), |vm| vm.handle.0));
        [state.owner() as u64, handle.unwrap_or(0), run]
    }
}
