//! What a kernel file is: an arm64 Image with its 64-byte header, or a flat binary.
//! Pure parsing and placement of one image in RAM; reading files and donating pages is `boot::plan`'s.
//! Source: Linux, Documentation/arch/arm64/booting.rst, "Call the kernel image".

use crate::layout::{RAM_BASE, Range};

/// Bytes of the Image header.
pub const HEADER_SIZE: usize = 64;
const MAGIC: [u8; 4] = *b"ARM\x64";
/// Where an Image that names no size was loaded before Linux 3.17.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// RAM's start is a multiple of it; an Image's offset is below it.
const BLOCK: u64 = 2 << 20;

/// Why a file cannot be a guest's kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Nothing in it.
    #[error("the file is empty; give an arm64 Image or a flat binary")]
    Empty,
    /// A compressed kernel.
    #[error(
        "it is {0}-compressed; unpack it first (the guest's boot protocol has no decompressor)"
    )]
    Compressed(&'static str),
    /// An EFI zboot kernel.
    #[error("it is a compressed EFI kernel (zboot); give the plain Image inside it")]
    Zboot,
    /// An ELF file.
    #[error("it is an ELF file; make a flat binary of it (objcopy -O binary)")]
    Elf,
    /// Built for big-endian.
    #[error("it is a big-endian Image; only little-endian guests run here")]
    BigEndian,
    /// An offset the boot protocol does not allow.
    #[error("its header has text_offset {0:#x}, which must be below 2 MiB and a multiple of 4")]
    TextOffset(u64),
    /// image_size smaller than the file's own header, or absurd.
    #[error("its header has image_size {image_size:#x}, but the file has {file_size:#x} bytes")]
    ImageSize {
        /// From the header.
        image_size: u64,
        /// Of the file.
        file_size: u64,
    },
    /// It does not fit.
    #[error("it needs {needs:#x} bytes of RAM and --mem gives {ram:#x}; raise --mem")]
    TooBig {
        /// Bytes from the start of RAM that the image takes.
        needs: u64,
        /// Bytes of RAM.
        ram: u64,
    },
}

/// Where an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First byte of the file, and the entry point.
    pub entry: u64,
    /// What the image takes when it runs, its zeroed part included.
    pub span: Range,
    /// The file's bytes at `entry`.
    pub file_size: u64,
    /// Whether it has the Image header (and so says how much memory it takes).
    pub has_header: bool,
}

fn field(head: &[u8], at: usize) -> u64 {
    head.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Decides where an image goes from its first bytes (up to [`HEADER_SIZE`]), its size and the bytes of RAM.
pub fn place(head: &[u8], file_size: u64, ram_size: u64) -> Result<Placement, ImageError> {
    if file_size == 0 || head.is_empty() {
        return Err(ImageError::Empty);
    }
    let (offset, size, has_header) = if head.len() >= HEADER_SIZE && head[56..60] == MAGIC {
        let (offset, size) = header(head, file_size)?;
        (offset, size, true)
    } else {
        refuse_known_formats(head)?;
        (0, file_size, false)
    };
    let needs = offset
        .checked_add(size)
        .and_then(|n| n.checked_next_multiple_of(porthole_abi::PAGE_SIZE))
        .unwrap_or(u64::MAX);
    if needs > ram_size {
        return Err(ImageError::TooBig {
            needs,
            ram: ram_size,
        });
    }
    Ok(Placement {
        entry: RAM_BASE + offset,
        span: Range::new(RAM_BASE + offset, needs - offset),
        file_size,
        has_header,
    })
}

/// Offset in RAM and size in memory of an image with a header.
fn header(head: &[u8], file_size: u64) -> Result<(u64, u64), ImageError> {
    let (text_offset, image_size, flags) = (field(head, 8), field(head, 16), field(head, 24));
    if image_size == 0 {
        // The header of kernels before 3.17: no size, no flags, and a fixed offset.
        return Ok((OLD_TEXT_OFFSET, file_size));
    }
    if flags & 1 != 0 {
        return Err(ImageError::BigEndian);
    }
    if text_offset >= BLOCK || text_offset % 4 != 0 {
        return Err(ImageError::TextOffset(text_offset));
    }
    if image_size < file_size {
        // Tools may append a signature that is not loaded; anything else is a damaged header.
        let signature_max = 1 << 20;
        if image_size < HEADER_SIZE as u64 || file_size - image_size > signature_max {
            return Err(ImageError::ImageSize {
                image_size,
                file_size,
            });
        }
        return Ok((text_offset, file_size));
    }
    Ok((text_offset, image_size))
}

fn refuse_known_formats(head: &[u8]) -> Result<(), ImageError> {
    if head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg") {
        return Err(ImageError::Zboot);
    }
    if head.starts_with(b"\x7fELF") {
        return Err(ImageError::Elf);
    }
    for (magic, name) in [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"BZh", "bzip2"),
    ] {
        if head.starts_with(magic) {
            return Err(ImageError::Compressed(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 64 << 20;

    fn image(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
        let mut head = vec![0; HEADER_SIZE];
        head[8..16].copy_from_slice(&text_offset.to_le_bytes());
        head[16..24].copy_from_slice(&image_size.to_le_bytes());
        head[24..32].copy_from_slice(&flags.to_le_bytes());
        head[56..60].copy_from_slice(&MAGIC);
        head
    }

    #[test]
    fn an_image_is_placed_at_its_text_offset_with_room_for_its_bss() {
        let p = place(&image(0x1_0000, 0x20_0123, 0b1010), 0x1000, RAM).unwrap();
        assert_eq!(p.entry, RAM_BASE + 0x1_0000);
        assert_eq!(p.span, Range::new(RAM_BASE + 0x1_0000, 0x20_1000));
        assert!(p.has_header);
    }

    #[test]
    fn an_old_image_without_a_size_goes_to_512_kib() {
        let p = place(&image(0, 0, 0), 0x2345, RAM).unwrap();
        assert_eq!(p.entry, RAM_BASE + 0x8_0000);
        assert_eq!(p.span.size, 0x3000);
    }

    #[test]
    fn a_flat_binary_without_header_goes_to_the_start_of_ram() {
        let p = place(&[0x1f, 0x20, 0x03, 0xd5], 4, RAM).unwrap();
        assert_eq!((p.entry, p.span.size), (RAM_BASE, 4096));
        assert!(!p.has_header);
    }

    #[test]
    fn files_of_other_formats_are_named() {
        assert_eq!(
            place(b"\x1f\x8b\x08", 99, RAM),
            Err(ImageError::Compressed("gzip"))
        );
        assert_eq!(place(b"\x7fELF\x02", 99, RAM), Err(ImageError::Elf));
        assert_eq!(
            place(b"MZ\0\0zimg\0\0\0\0", 99, RAM),
            Err(ImageError::Zboot)
        );
        assert_eq!(place(b"", 0, RAM), Err(ImageError::Empty));
    }

    #[test]
    fn damaged_headers_are_refused() {
        assert_eq!(
            place(&image(BLOCK, 0x1000, 0), 0x1000, RAM),
            Err(ImageError::TextOffset(BLOCK))
        );
        assert_eq!(
            place(&image(0, 0x1000, 1), 0x1000, RAM),
            Err(ImageError::BigEndian)
        );
        assert_eq!(
            place(&image(0, 63, 0), 0x1000, RAM),
            Err(ImageError::ImageSize {
                image_size: 63,
                file_size: 0x1000
            })
        );
    }

    #[test]
    fn an_image_beyond_ram_is_refused_even_if_its_size_overflows() {
        for size in [RAM + 1, u64::MAX, u64::MAX - 4095] {
            let got = place(&image(0x1_0000, size, 0), 0x1000, RAM);
            assert!(matches!(got, Err(ImageError::TooBig { ram: RAM, .. })));
        }
        assert!(place(&image(0, RAM, 0), 0x1000, RAM).is_ok());
    }
}
