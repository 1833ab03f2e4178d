//! The register block of an SMMUv3 (Arm IHI 0070, 6.3) as typed views over a [`Bus`].
//! Only what the driver uses is named. What the values mean for us is decided in the other files.

use core::marker::PhantomData;

use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::{RegisterLongName, register_bitfields};

use super::bus::Bus;

register_bitfields![u32,
    pub(super) Idr0 [
        /// Two-level stream tables.
        ST_LEVEL OFFSET(27) NUMBITS(2) [Linear = 0, TwoLevel = 1],
        /// What becomes of faulting transactions.
        STALL_MODEL OFFSET(24) NUMBITS(2) [Both = 0, Terminate = 1, Forced = 2],
        /// Endianness of tables.
        TTENDIAN OFFSET(21) NUMBITS(2) [Mixed = 0, Little = 2, Big = 3],
        /// It has contexts of EL2.
        HYP OFFSET(9) NUMBITS(1) [],
        /// Table walks and queues are coherent.
        COHACC OFFSET(4) NUMBITS(1) [],
        /// Formats of tables; bit 1 is AArch64.
        TTF OFFSET(2) NUMBITS(2) [],
        /// Stage 2.
        S2P OFFSET(0) NUMBITS(1) [],
    ],
    pub(super) Idr1 [
        TABLES_PRESET OFFSET(30) NUMBITS(1) [],
        QUEUES_PRESET OFFSET(29) NUMBITS(1) [],
        /// log2 of the most entries.
        CMDQS OFFSET(21) NUMBITS(5) [],
        EVENTQS OFFSET(16) NUMBITS(5) [],
        /// Bits of a stream number.
        SIDSIZE OFFSET(0) NUMBITS(6) [],
    ],
    pub(super) Idr3 [
        /// What a change of block size may look like, 0 to 2.
        BBML OFFSET(11) NUMBITS(2) [],
        /// Invalidation by range.
        RIL OFFSET(10) NUMBITS(1) [],
    ],
    pub(super) Idr5 [
        GRAN4K OFFSET(4) NUMBITS(1) [],
        /// Bits of an output address, encoded as PARange is.
        OAS OFFSET(0) NUMBITS(3) [],
    ],
    pub(super) Aidr [
        MAJOR OFFSET(4) NUMBITS(4) [],
        MINOR OFFSET(0) NUMBITS(4) [],
    ],
    pub(super) Cr0 [
        ATSCHK OFFSET(4) NUMBITS(1) [],
        CMDQEN OFFSET(3) NUMBITS(1) [],
        EVENTQEN OFFSET(2) NUMBITS(1) [],
        SMMUEN OFFSET(0) NUMBITS(1) [],
    ],
    pub(super) Cr1 [
        TABLE_SH OFFSET(10) NUMBITS(2) [Inner = 3],
        TABLE_OC OFFSET(8) NUMBITS(2) [WriteBack = 1],
        TABLE_IC OFFSET(6) NUMBITS(2) [WriteBack = 1],
        QUEUE_SH OFFSET(4) NUMBITS(2) [Inner = 3],
        QUEUE_OC OFFSET(2) NUMBITS(2) [WriteBack = 1],
        QUEUE_IC OFFSET(0) NUMBITS(2) [WriteBack = 1],
    ],
    pub(super) Cr2 [
        /// Leave the CPUs' TLB maintenance alone.
        PTM OFFSET(2) NUMBITS(1) [],
        /// Record streams outside the table.
        RECINVSID OFFSET(1) NUMBITS(1) [],
    ],
    pub(super) Gbpa [
        UPDATE OFFSET(31) NUMBITS(1) [],
        ABORT OFFSET(20) NUMBITS(1) [],
    ],
    pub(super) Gerror [
        EVENTQ_ABT OFFSET(2) NUMBITS(1) [],
        CMDQ OFFSET(0) NUMBITS(1) [],
    ],
    pub(super) StrtabBaseCfg [
        FMT OFFSET(16) NUMBITS(2) [Linear = 0, TwoLevel = 1],
        SPLIT OFFSET(6) NUMBITS(5) [],
        LOG2SIZE OFFSET(0) NUMBITS(6) [],
    ],
    pub(super) CmdqCons [
        ERR OFFSET(24) NUMBITS(7) [None = 0, Illegal = 1, Abort = 2, AtcSync = 3],
        RD OFFSET(0) NUMBITS(20) [],
    ],
    /// Indices with a wrap bit above them; whole values are compared.
    pub(super) Index [
        POSITION OFFSET(0) NUMBITS(32) [],
    ]
];

/// A 32-bit register as tock-registers sees it.
pub(super) struct Register<'b, B, R> {
    bus: &'b B,
    offset: u32,
    fields: PhantomData<R>,
}

impl<B: Bus, R: RegisterLongName> Readable for Register<'_, B, R> {
    type T = u32;
    type R = R;

    fn get(&self) -> u32 {
        self.bus.read(self.offset)
    }
}

impl<B: Bus, R: RegisterLongName> Writeable for Register<'_, B, R> {
    type T = u32;
    type R = R;

    fn set(&self, value: u32) {
        self.bus.write(self.offset, value);
    }
}

/// 64-bit registers: the base addresses.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Base {
    StreamTable = 0x80,
    Commands = 0x90,
    Events = 0xa0,
}

/// All registers of one SMMU.
pub(super) struct Registers<'b, B>(pub(super) &'b B);

macro_rules! registers {
    ($($name:ident: $fields:ident @ $offset:literal,)*) => {
        impl<'b, B: Bus> Registers<'b, B> {
            $(pub(super) fn $name(&self) -> Register<'b, B, $fields::Register> {
                Register { bus: self.0, offset: $offset, fields: PhantomData }
            })*
        }
    };
}

registers! {
    idr0: Idr0 @ 0x0,
    idr1: Idr1 @ 0x4,
    idr3: Idr3 @ 0xc,
    idr5: Idr5 @ 0x14,
    aidr: Aidr @ 0x1c,
    cr0: Cr0 @ 0x20,
    cr0ack: Cr0 @ 0x24,
    cr1: Cr1 @ 0x28,
    cr2: Cr2 @ 0x2c,
    gbpa: Gbpa @ 0x44,
    irq_ctrl: Index @ 0x50,
    gerror: Gerror @ 0x60,
    gerrorn: Gerror @ 0x64,
    strtab_base_cfg: StrtabBaseCfg @ 0x88,
    cmdq_prod: Index @ 0x98,
    cmdq_cons: CmdqCons @ 0x9c,
    eventq_prod: Index @ 0x100a8,
    eventq_cons: Index @ 0x100ac,
}

impl<B: Bus> Registers<'_, B> {
    pub(super) fn set_base(&self, base: Base, value: u64) {
        self.0.write_long(base as u32, value);
    }
}
