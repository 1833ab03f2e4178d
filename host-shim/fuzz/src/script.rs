//! What a guest does, as bytes: a list of operations of eight bytes each. Any bytes are a script, so that a fuzzer
//! has nothing to learn; what is left of the last operation does not count.

/// Bytes of an operation.
const LENGTH: usize = 8;

/// One thing that a guest does. Places are small numbers that stand for interesting addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a descriptor: into the table of a queue, or into an indirect one.
    Descriptor {
        /// Queue; from 0x80 on: the indirect table.
        table: u8,
        /// Entry.
        index: u8,
        /// Where the buffer is.
        place: u8,
        /// Its length, as a code.
        length: u8,
        /// The flags: the lower three bits.
        flags: u8,
        /// The next entry.
        next: u8,
    },
    /// Writes a request's header at a place.
    Header {
        /// Where.
        place: u8,
        /// Kind of request.
        kind: u8,
        /// Sector.
        sector: u8,
    },
    /// Makes a chain available.
    Post {
        /// Queue.
        queue: u8,
        /// First descriptor.
        head: u8,
    },
    /// Sets the available index: by so much more than chains were posted.
    Index {
        /// Queue.
        queue: u8,
        /// More.
        more: u8,
    },
    /// Rings the doorbell.
    Ring {
        /// Queue.
        queue: u8,
    },
    /// Writes anywhere in the window.
    Poke {
        /// Offset from the window's start, in 16 bytes.
        offset: u16,
        /// What.
        value: u32,
    },
    /// Accesses configuration space (`pci` only; elsewhere nothing).
    Config {
        /// Writes, and how many bytes (1, 2, 4, 8).
        how: u8,
        /// Register.
        at: u16,
        /// Written.
        value: u32,
    },
    /// Accesses the registers in BAR 0 (`pci` only).
    Register {
        /// Writes, and how many bytes.
        how: u8,
        /// Offset.
        at: u16,
        /// Written.
        value: u32,
    },
}

/// The operations that these bytes stand for.
pub fn decode(data: &[u8]) -> impl Iterator<Item = Op> {
    let (operations, _) = data.as_chunks::<LENGTH>();
    operations.iter().map(|&[kind, a, b, c, d, e, f, g]| {
        let at = u16::from_le_bytes([b, c]);
        let value = u32::from_le_bytes([d, e, f, g]);
        match kind % 8 {
            0 => Op::Descriptor {
                table: a,
                index: b,
                place: c,
                length: d,
                flags: e,
                next: f,
            },
            1 => Op::Header {
                place: a,
                kind: b,
                sector: c,
            },
            2 => Op::Post { queue: a, head: b },
            3 => Op::Index { queue: a, more: b },
            4 => Op::Ring { queue: a },
            5 => Op::Poke { offset: at, value },
            6 => Op::Config { how: a, at, value },
            _ => Op::Register { how: a, at, value },
        }
    })
}

/// The bytes for these operations.
pub fn encode(script: &[Op]) -> Vec<u8> {
    let words = |kind: u8, a: u8, at: u16, value: u32| {
        let ([b, c], [d, e, f, g]) = (at.to_le_bytes(), value.to_le_bytes());
        [kind, a, b, c, d, e, f, g]
    };
    let bytes = script.iter().map(|op| match *op {
        Op::Descriptor {
            table,
            index,
            place,
            length,
            flags,
            next,
        } => [0, table, index, place, length, flags, next, 0],
        Op::Header {
            place,
            kind,
            sector,
        } => [1, place, kind, sector, 0, 0, 0, 0],
        Op::Post { queue, head } => [2, queue, head, 0, 0, 0, 0, 0],
        Op::Index { queue, more } => [3, queue, more, 0, 0, 0, 0, 0],
        Op::Ring { queue } => [4, queue, 0, 0, 0, 0, 0, 0],
        Op::Poke { offset, value } => words(5, 0, offset, value),
        Op::Config { how, at, value } => words(6, how, at, value),
        Op::Register { how, at, value } => words(7, how, at, value),
    });
    bytes.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        let script = [
            Op::Descriptor {
                table: 1,
                index: 2,
                place: 3,
                length: 4,
                flags: 5,
                next: 6,
            },
            Op::Poke {
                offset: 0x1234,
                value: 0x5678_9abc,
            },
            Op::Register {
                how: 2,
                at: 0x14,
                value: 0xf,
            },
            Op::Ring { queue: 9 },
        ];
        let mut bytes = encode(&script);
        bytes.extend([0xff; 5]);
        assert_eq!(decode(&bytes).collect::<Vec<_>>(), script);
    }
}
