//! HVC and SMC of a guest: SMCCC discovery, TRNG and the guest's own functions; PSCI is in `psci`.
//! A call answers in x0 and, where it says so, in the registers after it; all others keep the guest's values.

use porthole_abi::{
    ABI_VERSION, Error, Features, GuestFunction, HVC_IMMEDIATE, RANGE_FAST64, RANGE_MASK, VmFlags,
};

use super::{Flow, RESUME, Run};
use crate::host::discovery;
use crate::hw::Machine;
use crate::smccc::{
    Call, SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2,
    SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION, VERSION_1_2, result, trng,
};

/// Number of calls that `CALL_COUNT` tells: the guest's plus the three discovery calls.
const GUEST_CALL_COUNT: u64 = GuestFunction::ALL.len() as u64 + 3;
/// TRNG_VERSION: 1.0.
const TRNG_1_0: u64 = 0x1_0000;
/// TRNG_GET_UUID: that of this back end, 3c1f1b52-6a0e-4d05-9b0f-524e44522121, as four words.
const TRNG_UUID: [u64; 4] = [0x521b_1f3c, 0x054d_0e6a, 0x4e52_0f9b, 0x2121_5244];

impl<M: Machine> Run<'_, M> {
    /// An HVC or SMC; the program counter is behind it already.
    #[inline]
    pub(super) fn call(&mut self, immediate: u16) -> Flow {
        let call = Call::new(&self.vcpu.context.x);
        if immediate != HVC_IMMEDIATE {
            self.answer(result::NOT_SUPPORTED);
            return RESUME;
        }
        if call.function & RANGE_MASK == RANGE_FAST64 {
            let status = match GuestFunction::from_id(call.function) {
                Some(function) => self.own_function(function),
                None => Err(Error::NotSupported),
            };
            self.answer(status.map_or_else(|error| error.code() as u64, |()| result::SUCCESS));
            return RESUME;
        }
        if let Some(flow) = self.power_call(call) {
            return flow;
        }
        let x = &mut self.vcpu.context.x;
        if discovery(call.function, GUEST_CALL_COUNT, x).is_some() {
            return RESUME;
        }
        let [a1, a2, a3] = [1, 2, 3].map(|n| call.argument(&self.vcpu.context.x, n));
        let status = match call.function {
            SMCCC_VERSION => VERSION_1_2,
            SMCCC_ARCH_FEATURES => self.arch_features(a1 as u32),
            SMCCC_ARCH_WORKAROUND_1 | SMCCC_ARCH_WORKAROUND_2 | SMCCC_ARCH_WORKAROUND_3
                if self.hyp.arch_calls.has(call.function) =>
            {
                self.machine.call(call.function, [a1, a2, a3])[0]
            }
            trng::VERSION..=trng::RND32 | trng::RND64 if self.machine.has_random() => {
                self.random_call(call.function, a1)
            }
            _ => result::NOT_SUPPORTED,
        };
        self.answer(status);
        RESUME
    }

    /// Sets x0.
    pub(super) fn answer(&mut self, value: u64) {
        self.vcpu.context.x[0] = value;
    }

    /// Sets x1 and those after it.
    fn return_values(&mut self, values: &[u64]) {
        for (register, value) in self.vcpu.context.x.iter_mut().skip(1).zip(values) {
            *register = *value;
        }
    }

    fn arch_features(&self, function: u32) -> u64 {
        match function {
            SMCCC_VERSION | SMCCC_ARCH_FEATURES => result::SUCCESS,
            SMCCC_ARCH_WORKAROUND_1 | SMCCC_ARCH_WORKAROUND_2 | SMCCC_ARCH_WORKAROUND_3
                if self.hyp.arch_calls.has(function) =>
            {
                self.machine
                    .call(SMCCC_ARCH_FEATURES, [u64::from(function), 0, 0])[0]
            }
            _ => result::NOT_SUPPORTED,
        }
    }

    /// TRNG firmware interface (Arm DEN 0098); the CPU has RNDR.
    fn random_call(&mut self, function: u32, argument: u64) -> u64 {
        match function {
            trng::VERSION => TRNG_1_0,
            trng::FEATURES => match argument as u32 {
                trng::VERSION | trng::FEATURES | trng::GET_UUID | trng::RND32 | trng::RND64 => {
                    result::SUCCESS
                }
                _ => result::NOT_SUPPORTED,
            },
            trng::GET_UUID => {
                let [first, rest @ ..] = TRNG_UUID;
                self.return_values(&rest);
                first
            }
            trng::RND32 => self.random(argument, 32),
            _ => self.random(argument, 64),
        }
    }

    /// `bits` random bits in x3, x2 and x1, the lowest in x3, `width` in each; unused bits are zero.
    fn random(&mut self, bits: u64, width: u64) -> u64 {
        if bits == 0 || bits > 3 * width {
            return result::INVALID_PARAMETERS;
        }
        let mut values = [0u64; 3];
        let mut left = bits;
        for value in values.iter_mut().rev() {
            let Some(random) = self.machine.random() else {
                return result::NO_ENTROPY;
            };
            let taken = left.min(width);
            *value = random & u64::MAX >> (64 - taken);
            left -= taken;
            if left == 0 {
                break;
            }
        }
        self.return_values(&values);
        result::SUCCESS
    }

    fn own_function(&mut self, function: GuestFunction) -> Result<(), Error> {
        match function {
            GuestFunction::GuestFeatures => {
                let mut features = self.hyp.features;
                let open = self.vm.map.flags().contains(VmFlags::UNPROTECTED);
                features.set(Features::UNPROTECTED, open);
                self.return_values(&[u64::from(ABI_VERSION), features.bits()]);
            }
            GuestFunction::WindowEnum => {
                let start = usize::try_from(self.vcpu.context.x[1]).map_err(|_| Error::NoWindow)?;
                let values = {
                    let memory = self.vm.memory.lock();
                    let (slot, window) = memory
                        .windows()
                        .iter_from(start)
                        .next()
                        .ok_or(Error::NoWindow)?;
                    [
                        slot.index() as u64,
                        window.pages.start().raw(),
                        window.pages.bytes(),
                        u64::from(window.function().0),
                        u64::from(window.bar.bar),
                        window.bar.offset,
                        u64::from(window.functions()),
                    ]
                };
                self.return_values(&values);
            }
            GuestFunction::Measurement => {
                let measurement = self.vm.launch.lock().registers()?;
                self.return_values(&measurement);
            }
            GuestFunction::MemShare | GuestFunction::MemUnshare => return Err(Error::Denied),
        }
        Ok(())
    }
}
