//! The SMC calling convention (Arm DEN 0028, 1.2) and the numbers of the calls that core answers or relays.
//! Who may make which call is decided in `host` and `run::call`.

pub use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_SOC_ID, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2,
    SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};
pub use smccc::psci::{
    PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64,
    PSCI_CPU_SUSPEND_32, PSCI_CPU_SUSPEND_64, PSCI_FEATURES, PSCI_MIGRATE_INFO_TYPE,
    PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, PSCI_SYSTEM_RESET2_32, PSCI_SYSTEM_RESET2_64, PSCI_VERSION,
};

/// The version of the convention that core speaks: 1.2.
pub const VERSION_1_2: u64 = 0x1_0002;

/// TRNG firmware interface (Arm DEN 0098, 1.0).
#[allow(missing_docs)]
pub mod trng {
    pub const VERSION: u32 = 0x8400_0050;
    pub const FEATURES: u32 = 0x8400_0051;
    pub const GET_UUID: u32 = 0x8400_0052;
    pub const RND32: u32 = 0x8400_0053;
    pub const RND64: u32 = 0xC400_0053;
}

/// Results that SMCCC, PSCI and TRNG share, as 64-bit register values.
pub mod result {
    /// All went well.
    pub const SUCCESS: u64 = 0;
    /// No such call.
    pub const NOT_SUPPORTED: u64 = -1i64 as u64;
    /// PSCI INVALID_PARAMETERS, TRNG INVALID_PARAMETERS.
    pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
    /// PSCI DENIED; TRNG NO_ENTROPY; SMCCC INVALID_PARAMETER.
    pub const DENIED: u64 = -3i64 as u64;
    /// PSCI ALREADY_ON.
    pub const ALREADY_ON: u64 = -4i64 as u64;
    /// PSCI ON_PENDING.
    pub const ON_PENDING: u64 = -5i64 as u64;
    /// PSCI INTERNAL_FAILURE.
    pub const INTERNAL_FAILURE: u64 = -6i64 as u64;
    /// PSCI INVALID_ADDRESS.
    pub const INVALID_ADDRESS: u64 = -9i64 as u64;
    /// TRNG NO_ENTROPY.
    pub const NO_ENTROPY: u64 = -3i64 as u64;
}

/// Bit 30 of a function id: arguments and results are 64 bits wide.
const WIDE: u32 = 1 << 30;

/// One call as its caller made it.
///
/// The function id is w0: SMCCC does not give the upper half of x0 a meaning, so it is ignored. Of a call in
/// the 32-bit convention the upper halves of the arguments are ignored likewise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Function id.
    pub function: u32,
    mask: u64,
}

impl Call {
    /// The call in these registers.
    pub const fn new(x: &[u64; 31]) -> Self {
        let function = x[0] as u32;
        let mask = if function & WIDE != 0 {
            u64::MAX
        } else {
            0xffff_ffff
        };
        Self { function, mask }
    }

    /// Argument `n`, 1 to 7.
    pub const fn argument(&self, x: &[u64; 31], n: usize) -> u64 {
        x[n] & self.mask
    }
}
