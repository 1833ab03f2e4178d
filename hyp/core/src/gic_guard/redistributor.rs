//! RD_base of a redistributor (Arm IHI 0069, 12.11): GICR_PROPBASER and GICR_PENDBASER name the LPI tables, which the
//! redistributor uses while GICR_CTLR.EnableLPIs is set. So long their pages are pinned and the registers fixed.
//! Everything else of the frame is passed on or, where it is GICv4's, hidden.

use porthole_abi::Error;

use super::{Context, is_told, pages_of};
use crate::addr::{PhysAddr, PhysPages};
use crate::hw::Machine;
use crate::memory::HostMemory;

const CTLR: u64 = 0x00;
const IIDR: u64 = 0x04;
const TYPER: u64 = 0x08;
const WAKER: u64 = 0x14;
const SETLPIR: u64 = 0x40;
const CLRLPIR: u64 = 0x48;
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;
const INVLPIR: u64 = 0xa0;
const INVALLR: u64 = 0xb0;
const SYNCR: u64 = 0xc0;
/// First of the identification registers.
const ID: u64 = 0xffd0;

/// GICR_CTLR.EnableLPIs.
const ENABLE_LPIS: u64 = 1;
/// GICR_CTLR.RWP and UWP: effects of earlier writes are still to come.
const WRITE_PENDING: u64 = 1 << 3 | 1 << 31;
/// GICR_CTLR.DPG0, DPG1NS and DPG1S.
const DPG: u64 = 7 << 24;
/// GICR_TYPER without RVPEID, VSGI, Dirty and MPAM. VLPIS stays: it tells how many frames there are.
const TYPER_SHOWN: u64 = !(1 << 7 | 1 << 26 | 1 << 2 | 1 << 6);
const TYPER_VLPIS: u64 = 1 << 1;
/// PROPBASER.Physical_Address.
const PROPERTY_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// PENDBASER.Physical_Address.
const PENDING_ADDRESS: u64 = 0x000f_ffff_ffff_0000;
/// First INTID of an LPI, and the least IDbits with which there are any.
const FIRST_LPI: u64 = 8192;
const ID_BITS_MIN: u8 = 13;

/// Whether a redistributor has the two further frames of GICv4.
pub(super) fn has_virtual_frames<M: Machine>(machine: &M, base: PhysAddr) -> bool {
    machine.read64(PhysAddr::new(base.raw() + TYPER)) & TYPER_VLPIS != 0
}

/// Whether the register at this offset has 64 bits.
pub(super) fn is_wide(offset: u64) -> bool {
    matches!(
        offset & !7,
        TYPER | SETLPIR | CLRLPIR | PROPBASER | PENDBASER | INVLPIR | INVALLR
    )
}

/// Property table and IDbits: the same for all redistributors that use LPIs, so that none takes an INTID that
/// another's pending table has no room for (a command may move LPIs between them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PropertyTable {
    pages: PhysPages,
    id_bits: u8,
}

impl PropertyTable {
    /// What this value of GICR_PROPBASER names.
    ///
    /// # Errors
    /// `InvalidParameter` without room for an LPI; those of an impossible range.
    fn of<M: Machine>(context: &Context<'_, M>, value: u64) -> Result<Self, Error> {
        let id_bits = ((value & 0x1f) as u8).min(context.id_bits);
        if id_bits < ID_BITS_MIN {
            return Err(Error::InvalidParameter);
        }
        // One byte an LPI.
        let bytes = (2u64 << id_bits) - FIRST_LPI;
        Ok(Self {
            pages: pages_of(value & PROPERTY_ADDRESS, bytes)?,
            id_bits,
        })
    }

    /// INTIDs below it have a bit in the pending tables.
    fn intids(&self) -> u64 {
        2 << self.id_bits
    }
}

/// The tables of a redistributor that uses LPIs: pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tables {
    property: PropertyTable,
    pending: PhysPages,
}

/// A redistributor.
#[derive(Debug)]
pub(super) struct Redistributor {
    base: PhysAddr,
    /// GICR_TYPER.Processor_Number.
    number: u64,
    /// GICR_PROPBASER and GICR_PENDBASER as they were last written.
    asked: [u64; 2],
    tables: Option<Tables>,
    refused: u64,
}

impl Redistributor {
    /// Takes a redistributor over. LPIs that firmware left on are switched off; where that cannot be done, its
    /// tables are pinned where they are.
    pub fn adopt<M: Machine>(context: &Context<'_, M>, base: PhysAddr) -> Result<Self, Error> {
        let at = |offset| PhysAddr::new(base.raw() + offset);
        let mut new = Self {
            base,
            number: context.machine.read64(at(TYPER)) >> 8 & 0xffff,
            asked: [PROPBASER, PENDBASER].map(|offset| context.machine.read64(at(offset))),
            tables: None,
            refused: 0,
        };
        if new.control(context) & ENABLE_LPIS != 0 {
            context.machine.write32(at(CTLR), 0);
            if new.control(context) & (ENABLE_LPIS | WRITE_PENDING) != 0 {
                new.pin(context, None)?;
            }
        }
        Ok(new)
    }

    /// What RDbase of an ITS command names it by: its address if GITS_TYPER.PTA is set, else its number; in 51:16.
    pub fn target(&self, by_address: bool) -> u64 {
        if by_address {
            self.base.raw()
        } else {
            self.number << 16
        }
    }

    /// Its property table, while it uses LPIs.
    pub fn property_table(&self) -> Option<PropertyTable> {
        Some(self.tables?.property)
    }

    const fn at(&self, offset: u64) -> PhysAddr {
        PhysAddr::new(self.base.raw() + offset)
    }

    fn control<M: Machine>(&self, context: &Context<'_, M>) -> u64 {
        context.machine.read32(self.at(CTLR)).into()
    }

    pub fn read<M: Machine>(&mut self, context: &Context<'_, M>, register: u64) -> u64 {
        let machine = context.machine;
        match register {
            CTLR => {
                self.settle(context);
                self.control(context)
            }
            IIDR | WAKER | SYNCR | ID.. => machine.read32(self.at(register)).into(),
            TYPER => machine.read64(self.at(TYPER)) & TYPER_SHOWN,
            PROPBASER | PENDBASER => machine.read64(self.at(register)),
            _ => 0,
        }
    }

    /// A 64-bit register as the host last wrote it: what it is when one half of it is written.
    pub fn asked(&self, register: u64) -> u64 {
        match register {
            PROPBASER => self.asked[0],
            PENDBASER => self.asked[1],
            _ => 0,
        }
    }

    /// `shared` is the property table in use, if any redistributor uses LPIs.
    pub fn write<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        shared: Option<PropertyTable>,
        register: u64,
        value: u64,
    ) {
        let machine = context.machine;
        match register {
            CTLR => self.set_control(context, shared, value),
            WAKER => machine.write32(self.at(WAKER), value as u32),
            PROPBASER | PENDBASER => {
                self.settle(context);
                // Redistributors may have one GICR_PROPBASER in common (GICR_TYPER.CommonLPIAff): one that is off does
                // not change it under one that is on.
                let is_kept = register == PROPBASER
                    && shared.is_some_and(|shared| PropertyTable::of(context, value) != Ok(shared));
                if self.tables.is_none() {
                    self.asked[usize::from(register == PENDBASER)] = value;
                    if !is_kept {
                        machine.write64(self.at(register), value);
                    }
                }
            }
            SETLPIR | CLRLPIR | INVLPIR => {
                let intid = value & 0xffff_ffff;
                let last = self.tables.map_or(0, |t| 2 << t.property.id_bits);
                if (FIRST_LPI..last).contains(&intid) {
                    machine.write64(self.at(register), intid);
                }
            }
            INVALLR if self.tables.is_some() => machine.write64(self.at(INVALLR), 0),
            _ => {}
        }
    }

    fn set_control<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        shared: Option<PropertyTable>,
        value: u64,
    ) {
        let mut new = value & DPG;
        if value & ENABLE_LPIS != 0 {
            if self.tables.is_none()
                && let Err(error) = self.pin(context, shared)
                && is_told(&mut self.refused)
            {
                log::warn!("LPIs of redistributor {} stay off: {error}", self.base);
            }
            if self.tables.is_some() {
                new |= ENABLE_LPIS;
            }
        }
        context.machine.write32(self.at(CTLR), new as u32);
        self.settle(context);
    }

    /// Pins the tables that the registers name.
    fn pin<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        shared: Option<PropertyTable>,
    ) -> Result<(), Error> {
        let register = |offset| context.machine.read64(self.at(offset));
        let (property, pending) = (register(PROPBASER), register(PENDBASER));
        let property = PropertyTable::of(context, property)?;
        if shared.is_some_and(|shared| shared != property) {
            return Err(Error::InvalidParameter);
        }
        let pending = pages_of(pending & PENDING_ADDRESS, property.intids() / 8)?;
        context.memory.pin(&property.pages)?;
        if let Err(error) = context.memory.pin(&pending) {
            unpin(context.memory, &property.pages);
            return Err(error);
        }
        self.tables = Some(Tables { property, pending });
        Ok(())
    }

    /// Lets go of the tables once the hardware does not use them any more.
    fn settle<M: Machine>(&mut self, context: &Context<'_, M>) {
        if let Some(tables) = self.tables
            && self.control(context) & (ENABLE_LPIS | WRITE_PENDING) == 0
        {
            unpin(context.memory, &tables.property.pages);
            unpin(context.memory, &tables.pending);
            self.tables = None;
        }
    }
}

/// Ends a pin of ours.
pub(super) fn unpin(memory: &HostMemory<'static>, pages: &PhysPages) {
    let done = memory.unpin(pages);
    debug_assert!(done.is_ok(), "only what was pinned is unpinned");
}
