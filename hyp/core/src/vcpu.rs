//! One vCPU: its registers and what is left to do before it runs again; and the part that other CPUs touch
//! while it runs. How it runs is in `run`.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::lock::Mutex;

use crate::context::VcpuContext;
use crate::hw::CpuId;
use crate::stage2::Regime;
use crate::syndrome::Access;
use crate::vgic::{VcpuMask, hcr};

/// PSTATE at reset: EL1h, D, A, I and F masked.
const PSTATE_RESET: u64 = 0x3c5;
/// SCTLR_EL1 at reset: its RES1 bits; MMU, caches and alignment checks off.
const SCTLR_RESET: u64 = 0x30d0_0800;
/// MPIDR_EL1: RES1.
const MPIDR_RES1: u64 = 1 << 31;

/// Where a vCPU starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    /// First instruction, an IPA (the MMU is off).
    pub(crate) entry: u64,
    /// x0.
    pub(crate) x0: u64,
}

/// A vCPU, in a page of its VM's metadata. Whoever holds its lock runs it.
pub(crate) struct Vcpu {
    pub(crate) context: VcpuContext,
    /// The MMIO read that the host is to answer.
    pub(crate) read: Option<Access>,
    /// The physical timer interrupt of the CPU it is loaded on is active on its behalf.
    pub(crate) timer_physical: bool,
    /// vCPUs to wake that the last exit had no room to tell.
    pub(crate) wake: VcpuMask,
}

impl Vcpu {
    pub(crate) fn new(index: usize, regime: Regime, cntvoff: u64) -> Self {
        let mut context = VcpuContext {
            vttbr: regime.vttbr,
            vtcr: regime.vtcr,
            vmpidr: MPIDR_RES1 | index as u64,
            ..VcpuContext::default()
        };
        context.timer.cntvoff = cntvoff;
        context.gic.hcr = hcr::EN;
        let mut vcpu = Self {
            context,
            read: None,
            timer_physical: false,
            wake: 0,
        };
        vcpu.reset(Start::default());
        vcpu
    }

    /// Registers as PSCI CPU_ON leaves them (PSCI, 6.4): everything but identity, counter offset and the
    /// timer, which goes on through a power-down.
    pub(crate) fn reset(&mut self, start: Start) {
        let old = &self.context;
        let mut context = VcpuContext {
            vttbr: old.vttbr,
            vtcr: old.vtcr,
            vmpidr: old.vmpidr,
            hcr_extra: old.hcr_extra,
            timer: old.timer,
            pc: start.entry,
            pstate: PSTATE_RESET,
            ..VcpuContext::default()
        };
        context.x[0] = start.x0;
        context.el1.sctlr = SCTLR_RESET;
        context.gic.hcr = hcr::EN;
        self.context = context;
        self.read = None;
    }
}

/// Power of a vCPU, as PSCI of the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    Off,
    /// CPU_ON was accepted; its next run starts here.
    Starting(Start),
    On,
}

/// Where a vCPU is, as a number: out of the guest and expected back, ...
const OUT: u32 = 0;
/// ... waiting in the host for an interrupt, ...
const IDLE: u32 = u32::MAX;
/// ... or on physical CPU `n`, as `n` plus this.
const RUNNING: u32 = 1;

/// What must be done so that a vCPU looks at its interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poke {
    /// Nothing: it looks before it enters the guest.
    Nothing,
    /// It is in the guest there, or about to be.
    Kick(CpuId),
    /// The host must run it.
    Wake,
}

/// The part of a vCPU that others touch without its lock.
///
/// `attention` and `place` are a Dekker pair: one side sets `attention`, then reads `place`; the other sets
/// `place`, then reads `attention`. Whoever comes second sees the first, so that no interrupt is slept over.
pub(crate) struct Link {
    attention: AtomicBool,
    place: AtomicU32,
    /// A leaf lock.
    pub(crate) power: Mutex<Power>,
}

impl Link {
    pub(crate) const fn new() -> Self {
        Self {
            attention: AtomicBool::new(false),
            place: AtomicU32::new(OUT),
            power: Mutex::new(Power::Off),
        }
    }

    /// Whether the interrupts must be looked at; cheap, for every entry.
    #[inline]
    pub(crate) fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    pub(crate) fn set_attention(&self) {
        self.attention.store(true, Ordering::SeqCst);
    }

    pub(crate) fn clear_attention(&self) {
        self.attention.store(false, Ordering::SeqCst);
    }

    /// It goes onto this CPU.
    pub(crate) fn enter(&self, cpu: CpuId) {
        self.place
            .store(u32::from(cpu.0) + RUNNING, Ordering::SeqCst);
    }

    /// It goes back to the host, which runs it again.
    pub(crate) fn leave(&self) {
        self.place.store(OUT, Ordering::SeqCst);
    }

    /// It goes back to the host to wait. False if something came up meanwhile.
    pub(crate) fn idle(&self) -> bool {
        self.place.store(IDLE, Ordering::SeqCst);
        !self.wants_attention()
    }

    /// Makes it look at its interrupts.
    pub(crate) fn poke(&self) -> Poke {
        self.set_attention();
        match self.place.load(Ordering::SeqCst) {
            OUT => Poke::Nothing,
            IDLE => {
                // One waker is enough. If it left by itself, it looks by itself.
                let woken = self
                    .place
                    .compare_exchange(IDLE, OUT, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok();
                if woken { Poke::Wake } else { Poke::Nothing }
            }
            place => {
                u8::try_from(place - RUNNING).map_or(Poke::Nothing, |cpu| Poke::Kick(CpuId(cpu)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_fits_in_its_page() {
        assert!(size_of::<Vcpu>() <= porthole_abi::PAGE_SIZE as usize);
        assert!(align_of::<Vcpu>() <= porthole_abi::PAGE_SIZE as usize);
    }

    #[test]
    fn a_poke_kicks_wakes_once_or_leaves_alone() {
        let link = Link::new();
        assert_eq!(link.poke(), Poke::Nothing);
        link.clear_attention();
        link.enter(CpuId(3));
        assert_eq!(link.poke(), Poke::Kick(CpuId(3)));
        assert!(!link.idle(), "attention was set");
        link.clear_attention();
        assert!(link.idle());
        assert_eq!(link.poke(), Poke::Wake);
        assert_eq!(link.poke(), Poke::Nothing, "one waker is enough");
    }

    /// A waiter and a waker on two threads: no interrupt is slept over, whatever the order.
    #[test]
    fn no_poke_is_lost_on_a_vcpu_that_goes_to_wait() {
        use std::sync::atomic::AtomicU64;
        const ROUNDS: u64 = 20_000;
        let link = Link::new();
        let (sent, seen, woken) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let at_end = |counter: &AtomicU64| counter.load(Ordering::SeqCst) == ROUNDS;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    sent.store(round, Ordering::SeqCst);
                    if link.poke() == Poke::Wake {
                        woken.fetch_add(1, Ordering::SeqCst);
                    }
                    // One at a time: the next only when the vCPU has looked.
                    while seen.load(Ordering::SeqCst) < round {
                        std::thread::yield_now();
                    }
                }
            });
            let mut wakes = 0;
            while !at_end(&seen) {
                link.enter(CpuId(0));
                link.clear_attention();
                seen.store(sent.load(Ordering::SeqCst), Ordering::SeqCst);
                if link.idle() && !at_end(&seen) {
                    // The host sleeps until it is told; a lost poke hangs here.
                    while woken.load(Ordering::SeqCst) == wakes {
                        std::thread::yield_now();
                    }
                    wakes += 1;
                }
            }
        });
    }

    #[test]
    fn a_reset_keeps_identity_and_timer_only() {
        let regime = Regime { vttbr: 5, vtcr: 6 };
        let mut vcpu = Vcpu::new(2, regime, 77);
        vcpu.context.x = [9; 31];
        vcpu.context.el1.ttbr0 = 1;
        vcpu.context.pauth.0 = [3; 10];
        vcpu.context.timer.cntv_cval = 11;
        vcpu.reset(Start {
            entry: 0x8000_0000,
            x0: 4,
        });
        let context = &vcpu.context;
        assert_eq!((context.vttbr, context.vtcr), (5, 6));
        assert_eq!(context.vmpidr, 0x8000_0002);
        assert_eq!((context.timer.cntvoff, context.timer.cntv_cval), (77, 11));
        assert_eq!(
            (context.pc, context.x[0], context.x[1]),
            (0x8000_0000, 4, 0)
        );
        assert_eq!((context.el1.ttbr0, context.el1.sctlr), (0, 0x30d0_0800));
        assert!(context.pauth.0 == [0; 10]);
    }
}
