//! Commands of an ITS (Arm IHI 0069, 5.3): four 64-bit words into Rust types and back. Whatever the host leaves in
//! reserved fields is dropped on the way. What a command may name is checked by the ITS's guard.

use crate::addr::PhysAddr;

/// One command of the host's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// INT, CLEAR, INV or DISCARD of an event.
    Event {
        opcode: u64,
        device: u32,
        event: u32,
    },
    Movi {
        device: u32,
        event: u32,
        collection: u16,
    },
    /// MAPTI, and MAPI where the INTID is the event's number.
    Mapti {
        device: u32,
        event: u32,
        intid: u32,
        collection: u16,
    },
    /// ITT address and number of EventID bits less one; `None` unmaps.
    Mapd {
        device: u32,
        itt: Option<(PhysAddr, u8)>,
    },
    /// RDbase in bits 51:16; `None` unmaps.
    Mapc {
        collection: u16,
        target: Option<u64>,
    },
    Invall {
        collection: u16,
    },
    /// RDbase in bits 51:16, both.
    Movall {
        from: u64,
        to: u64,
    },
    /// RDbase in bits 51:16.
    Sync {
        target: u64,
    },
}

/// The 64-bit words of a command.
pub(super) type Words = [u64; 4];

const MOVI: u64 = 0x01;
const INT: u64 = 0x03;
const CLEAR: u64 = 0x04;
const SYNC: u64 = 0x05;
const MAPD: u64 = 0x08;
const MAPC: u64 = 0x09;
const MAPTI: u64 = 0x0a;
const MAPI: u64 = 0x0b;
const INV: u64 = 0x0c;
const INVALL: u64 = 0x0d;
const MOVALL: u64 = 0x0e;
const DISCARD: u64 = 0x0f;

const VALID: u64 = 1 << 63;
const RDBASE: u64 = 0x000f_ffff_ffff_0000;
const ITT_ADDRESS: u64 = 0x000f_ffff_ffff_ff00;

impl Command {
    /// The command in four words; `None` for one that is not known, GICv4's among them.
    pub fn decode(words: &Words) -> Option<Self> {
        let (device, event) = ((words[0] >> 32) as u32, words[1] as u32);
        let collection = words[2] as u16;
        let is_valid = words[2] & VALID != 0;
        Some(match words[0] & 0xff {
            opcode @ (INT | CLEAR | INV | DISCARD) => Self::Event {
                opcode,
                device,
                event,
            },
            MOVI => Self::Movi {
                device,
                event,
                collection,
            },
            opcode @ (MAPTI | MAPI) => Self::Mapti {
                device,
                event,
                intid: if opcode == MAPI {
                    event
                } else {
                    (words[1] >> 32) as u32
                },
                collection,
            },
            MAPD => Self::Mapd {
                device,
                itt: is_valid.then(|| {
                    let itt = PhysAddr::new(words[2] & ITT_ADDRESS);
                    (itt, (words[1] & 0x1f) as u8)
                }),
            },
            MAPC => Self::Mapc {
                collection,
                target: is_valid.then_some(words[2] & RDBASE),
            },
            INVALL => Self::Invall { collection },
            MOVALL => Self::Movall {
                from: words[2] & RDBASE,
                to: words[3] & RDBASE,
            },
            SYNC => Self::Sync {
                target: words[2] & RDBASE,
            },
            _ => return None,
        })
    }

    /// The command as the hardware takes it.
    pub fn encode(self) -> Words {
        let first = |opcode, device: u32| u64::from(device) << 32 | opcode;
        match self {
            Self::Event {
                opcode,
                device,
                event,
            } => [first(opcode, device), event.into(), 0, 0],
            Self::Movi {
                device,
                event,
                collection,
            } => [first(MOVI, device), event.into(), collection.into(), 0],
            Self::Mapti {
                device,
                event,
                intid,
                collection,
            } => {
                let second = u64::from(intid) << 32 | u64::from(event);
                [first(MAPTI, device), second, collection.into(), 0]
            }
            Self::Mapd { device, itt: None } => [first(MAPD, device), 0, 0, 0],
            Self::Mapd {
                device,
                itt: Some((itt, bits)),
            } => [first(MAPD, device), bits.into(), VALID | itt.raw(), 0],
            Self::Mapc { collection, target } => {
                let valid = target.map_or(0, |target| VALID | target);
                [MAPC, 0, valid | u64::from(collection), 0]
            }
            Self::Invall { collection } => [INVALL, 0, collection.into(), 0],
            Self::Movall { from, to } => [MOVALL, 0, from, to],
            Self::Sync { target } => [SYNC, 0, target, 0],
        }
    }
}
