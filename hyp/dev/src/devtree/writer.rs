//! Writes a flattened device tree (Devicetree Specification 0.4, chapter 5) into a buffer, front to back.
//! What is written is decided in [`super::host`].

use thiserror::Error;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const END: u32 = 9;
const HEADER_BYTES: usize = 40;
/// One terminating entry: nothing is reserved this way.
const RESERVATIONS_BYTES: usize = 16;

/// Why a tree could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// It does not fit.
    #[error("the host's device tree does not fit into its buffer")]
    Full,
}

/// A tree being written. The names of properties gather at the end of the buffer and move up at the end.
pub(super) struct Writer<'b> {
    nodes: &'b mut [u8],
    used: usize,
    names: &'b mut [u8],
    names_used: usize,
}

impl<'b> Writer<'b> {
    /// Starts a tree in `buffer`, of which `names` bytes hold property names until the end.
    pub fn new(buffer: &'b mut [u8], names: usize) -> Result<Self, WriteError> {
        let at = buffer.len().checked_sub(names).ok_or(WriteError::Full)?;
        let (nodes, names) = buffer.split_at_mut(at);
        let used = HEADER_BYTES + RESERVATIONS_BYTES;
        nodes.get_mut(..used).ok_or(WriteError::Full)?.fill(0);
        Ok(Self {
            nodes,
            used,
            names,
            names_used: 0,
        })
    }

    /// Opens a node.
    pub fn begin(&mut self, name: &str) -> Result<(), WriteError> {
        self.word(BEGIN_NODE)?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.align()
    }

    /// Closes the node that was opened last.
    pub fn end(&mut self) -> Result<(), WriteError> {
        self.word(END_NODE)
    }

    /// A property of the open node; comes before its children.
    pub fn property(&mut self, name: &str, value: &[u8]) -> Result<(), WriteError> {
        let name = self.name(name)?;
        self.word(PROP)?;
        self.word(u32::try_from(value.len()).map_err(|_| WriteError::Full)?)?;
        self.word(name)?;
        self.bytes(value)?;
        self.align()
    }

    /// A property that is a string.
    pub fn text(&mut self, name: &str, value: &str) -> Result<(), WriteError> {
        let at = self.name(name)?;
        self.word(PROP)?;
        self.word(u32::try_from(value.len() + 1).map_err(|_| WriteError::Full)?)?;
        self.word(at)?;
        self.bytes(value.as_bytes())?;
        self.bytes(&[0])?;
        self.align()
    }

    /// Writes the header; returns the bytes of the tree.
    pub fn finish(mut self, boot_cpu: u32) -> Result<usize, WriteError> {
        self.word(END)?;
        let strings = self.used;
        let (names, count) = (&self.names[..self.names_used], self.names_used);
        let end = strings.checked_add(count).ok_or(WriteError::Full)?;
        self.nodes
            .get_mut(strings..end)
            .ok_or(WriteError::Full)?
            .copy_from_slice(names);
        let structure = HEADER_BYTES + RESERVATIONS_BYTES;
        let header = [
            0xd00d_feed,
            end as u32,
            structure as u32,
            strings as u32,
            HEADER_BYTES as u32,
            17,
            16,
            boot_cpu,
            count as u32,
            (strings - structure) as u32,
        ];
        for (slot, value) in self.nodes.chunks_exact_mut(4).zip(header) {
            slot.copy_from_slice(&value.to_be_bytes());
        }
        Ok(end)
    }

    /// Offset of a property's name among the names, written there if it is new.
    fn name(&mut self, name: &str) -> Result<u32, WriteError> {
        let mut at = 0;
        for known in self.names[..self.names_used].split(|b| *b == 0) {
            if known == name.as_bytes() && at < self.names_used {
                return Ok(at as u32);
            }
            at += known.len() + 1;
        }
        let at = self.names_used;
        let end = at + name.len() + 1;
        let slot = self.names.get_mut(at..end).ok_or(WriteError::Full)?;
        slot[..name.len()].copy_from_slice(name.as_bytes());
        slot[name.len()] = 0;
        self.names_used = end;
        Ok(at as u32)
    }

    fn word(&mut self, value: u32) -> Result<(), WriteError> {
        self.bytes(&value.to_be_bytes())
    }

    fn align(&mut self) -> Result<(), WriteError> {
        let padding = self.used.next_multiple_of(4) - self.used;
        self.bytes(&[0; 3][..padding])
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let end = self.used.checked_add(bytes.len()).ok_or(WriteError::Full)?;
        self.nodes
            .get_mut(self.used..end)
            .ok_or(WriteError::Full)?
            .copy_from_slice(bytes);
        self.used = end;
        Ok(())
    }
}
