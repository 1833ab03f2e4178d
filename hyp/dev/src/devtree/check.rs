//! Whether a blob is a device tree from its first token to its last (Devicetree Specification 0.4, 5.4): the `fdt` crate,
//! which panics on broken ones, sees none. What the nodes mean is read elsewhere.

/// Deepest nesting that is read.
const DEPTH_MAX: usize = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// What is left of the structure block.
struct Tokens<'a>(&'a [u8]);

impl<'a> Tokens<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(bytes)?;
        self.0 = tail;
        Some(head)
    }

    fn word(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Skips `bytes` and what fills up their last word.
    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.take(bytes.checked_next_multiple_of(4)?).map(|_| ())
    }
}

/// Bytes of the string at the start of `bytes`, without its NUL, if it has one and is text.
fn string(bytes: &[u8]) -> Option<usize> {
    let end = bytes.iter().position(|b| *b == 0)?;
    core::str::from_utf8(bytes.get(..end)?).ok()?;
    Some(end)
}

/// Whether `structure` is one node with all its children, properties first, and names from `strings`.
pub(super) fn is_sound(structure: &[u8], strings: &[u8]) -> bool {
    nodes(&mut Tokens(structure), strings).is_some()
}

fn nodes(tokens: &mut Tokens<'_>, strings: &[u8]) -> Option<()> {
    let mut depth = 0;
    // Whether the open node may still have properties.
    let mut properties = false;
    loop {
        match tokens.word()? {
            BEGIN_NODE if depth < DEPTH_MAX => {
                let name = string(tokens.0)?;
                tokens.skip(name + 1)?;
                depth += 1;
                properties = true;
            }
            PROP if properties => {
                let length = tokens.word()? as usize;
                let name = tokens.word()? as usize;
                string(strings.get(name..)?)?;
                tokens.skip(length)?;
            }
            // What a boot loader blots out (QEMU with -dtb: the memory nodes). Deeper ones the crate stumbles over.
            NOP if depth == 1 => properties = false,
            END_NODE if depth > 0 => {
                depth -= 1;
                properties = false;
                if depth == 0 {
                    return (tokens.word()? == END).then_some(());
                }
            }
            _ => return None,
        }
    }
}
