//! The fake's CPU and firmware: they answer from scripts and write down what was asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::FakeMachine;
use crate::context::VcpuContext;
use crate::hw::{Cpu, CpuId, Firmware, GuestException, GuestExit, IrqSource, SysReg, Vmid};

/// The guest's side of a run: edits its registers as the guest would, and says why it leaves. `None` takes the
/// next scripted exit. It may call the hypervisor, as another CPU would.
pub struct Guest(pub Box<Play>);

/// One stay in the guest.
pub type Play = dyn FnMut(&mut VcpuContext) -> Option<GuestExit> + Send;

impl core::fmt::Debug for Guest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Guest")
    }
}

/// What the firmware does during a call, before it answers.
pub struct Meanwhile(pub Box<dyn FnMut() + Send>);

impl core::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Meanwhile")
    }
}

/// What the CPU of the fake does next, and what it was told to do. Tests read and write it directly.
#[derive(Debug, Default)]
pub struct CpuScript {
    /// Index of the CPU that runs.
    pub id: u8,
    /// CNTPCT_EL0.
    pub counter: u64,
    /// Exits in order; a guest interrupted for the host when there are none left.
    pub exits: VecDeque<GuestExit>,
    /// Pending physical interrupts in order; the host's when there are none left.
    pub irqs: VecDeque<IrqSource>,
    /// ID registers; 0 for those that are not here.
    pub id_registers: BTreeMap<SysReg, u64>,
    /// CNTV_CTL_EL0 and CNTV_CVAL_EL0 of the loaded vCPU.
    pub guest_timer: (u64, u64),
    /// What RNDR gives, if there is one.
    pub random: Option<u64>,
    /// Exceptions injected.
    pub injected: Vec<GuestException>,
    /// CPUs kicked.
    pub kicks: Vec<CpuId>,
    /// CPUs started.
    pub started: Vec<CpuId>,
    /// Calls relayed to firmware.
    pub relayed: Vec<(u32, [u64; 3])>,
    /// Whether the timer's PPI is active.
    pub timer_active: bool,
    /// Whether a vCPU is loaded.
    pub loaded: bool,
    /// Entries into a guest.
    pub entries: usize,
    /// Flushes of a VMID on one CPU alone: the CPU and the VMID.
    pub local_flushes: Vec<(u8, Vmid)>,
    /// The guest, if it is more than a script.
    pub guest: Option<Guest>,
    /// x0 of a relayed call, by function; 0 for those that are not here.
    pub firmware: BTreeMap<u32, u64>,
    /// Result of CPU_ON.
    pub cpu_on_status: i64,
    /// What happens during the next CPU_ON, CPU_OFF or SYSTEM_RESET at the firmware.
    pub meanwhile: Option<Meanwhile>,
}

/// A [`CpuScript`] that the machine shares with its test.
#[derive(Debug, Default)]
pub struct FakeCpu(Mutex<CpuScript>);

impl FakeCpu {
    /// The script.
    pub fn script(&self) -> MutexGuard<'_, CpuScript> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cpu for FakeMachine {
    fn id(&self) -> CpuId {
        CpuId(self.cpu.script().id)
    }

    fn list_registers(&self) -> usize {
        4
    }

    fn counter(&self) -> u64 {
        self.cpu.script().counter
    }

    fn load(&self, _vcpu: &mut VcpuContext) {
        let mut script = self.cpu.script();
        assert!(!script.loaded, "loaded twice");
        script.loaded = true;
    }

    fn enter(&self, vcpu: &mut VcpuContext) -> GuestExit {
        let mut script = self.cpu.script();
        assert!(script.loaded, "entered without load");
        script.entries += 1;
        if let Some(mut guest) = script.guest.take() {
            drop(script);
            let exit = (guest.0)(vcpu);
            script = self.cpu.script();
            script.guest.get_or_insert(guest);
            if let Some(exit) = exit {
                return exit;
            }
        }
        script.exits.pop_front().unwrap_or(GuestExit::Irq)
    }

    fn put(&self, _vcpu: &mut VcpuContext) {
        let mut script = self.cpu.script();
        assert!(script.loaded, "put without load");
        script.loaded = false;
    }

    fn inject(&self, _vcpu: &mut VcpuContext, exception: GuestException) {
        self.cpu.script().injected.push(exception);
    }

    fn guest_timer(&self) -> (u64, u64) {
        self.cpu.script().guest_timer
    }

    fn deactivate_timer(&self) {
        self.cpu.script().timer_active = false;
    }

    fn activate_timer(&self) {
        self.cpu.script().timer_active = true;
    }

    fn take_irq(&self) -> IrqSource {
        let mut script = self.cpu.script();
        script.irqs.pop_front().unwrap_or(IrqSource::Host)
    }

    fn kick(&self, cpu: CpuId) {
        self.cpu.script().kicks.push(cpu);
    }

    fn id_register(&self, encoding: SysReg) -> u64 {
        let script = self.cpu.script();
        script.id_registers.get(&encoding).copied().unwrap_or(0)
    }

    fn random(&self) -> Option<u64> {
        self.cpu.script().random
    }

    fn has_random(&self) -> bool {
        self.cpu.script().random.is_some()
    }
}

impl FakeMachine {
    fn meanwhile(&self) {
        let hook = self.cpu.script().meanwhile.take();
        if let Some(mut hook) = hook {
            (hook.0)();
        }
    }
}

impl Firmware for FakeMachine {
    fn call(&self, function: u32, args: [u64; 3]) -> [u64; 4] {
        self.cpu.script().relayed.push((function, args));
        self.meanwhile();
        let script = self.cpu.script();
        let x0 = script.firmware.get(&function).copied().unwrap_or(0);
        [x0, 0, 0, 0]
    }

    fn cpu_on(&self, cpu: CpuId) -> i64 {
        self.cpu.script().started.push(cpu);
        self.meanwhile();
        self.cpu.script().cpu_on_status
    }
}
