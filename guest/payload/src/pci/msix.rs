//! MSI-X: pointing the first vector of a function at a doorbell (PCIe 5.0, 7.7.2). Other vectors stay masked.

use super::{Bars, Function, PciError, Structure};
use crate::interrupt::Message;
use crate::machine::PciHost;

/// Id of the capability.
const ID: u8 = 0x11;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Bytes of a vector's entry in the table.
const ENTRY: u32 = 16;

/// Sends vector 0 of `function` as `message`. False if the function has no MSI-X.
///
/// # Errors
/// Those of [`Structure::registers`].
pub fn enable(
    function: &Function,
    bars: &Bars,
    host: &PciHost,
    message: Message,
) -> Result<bool, PciError> {
    let capabilities = function.capabilities()?;
    let Some((_, at)) = capabilities.iter().find(|(id, _)| *id == ID) else {
        return Ok(false);
    };
    let config = function.config();
    let place = config.read32(at + 4);
    let entry = Structure {
        bar: (place & 7) as u8,
        offset: place & !7,
        length: ENTRY,
    }
    .registers(bars, host)?;
    let control = config.read16(at + 2) & !CONTROL_MASK_ALL;
    config.write16(at + 2, control | CONTROL_ENABLE);
    entry.write32(0, message.address as u32);
    entry.write32(4, (message.address >> 32) as u32);
    entry.write32(8, message.intid);
    entry.write32(12, 0);
    Ok(true)
}
