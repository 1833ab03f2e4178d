//! Stage 2.

/// What makes a translation regime the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Regime {
    /// VTTBR_EL2: VMID and root.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
}
