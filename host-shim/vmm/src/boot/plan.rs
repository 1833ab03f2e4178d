//! Where kernel, initrd and device tree go in the guest's RAM, and the donation of their bytes.
//! What an image is lives in `boot::image`, the tree's content in `boot::fdt`.
//! Everything loaded here is part of the guest's launch measurement.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use porthole_abi::PAGE_SIZE;

use super::image::{self, HEADER_SIZE, ImageError, Placement};
use crate::layout::{RAM_BASE, Range};

/// Bytes kept for the device tree at the top of RAM: a multiple of the 8 bytes that Linux wants, and never
/// across a 2 MiB boundary (Documentation/arch/arm64/booting.rst).
pub const DTB_MAX: u64 = 64 << 10;
/// Bytes read from a file and given to the driver at once; a multiple of the page size.
const CHUNK: usize = 2 << 20;

/// Takes content into the guest before it is final.
pub trait Loader {
    /// Puts `data` at the page-aligned `ipa`; the rest of its last page is zero.
    fn load(&self, ipa: u64, data: &[u8]) -> io::Result<()>;
}

/// Why a guest cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A file that cannot be read.
    #[error("cannot read {what} {}: {source}; check the path and its permissions", path.display())]
    File {
        /// "kernel" or "initrd".
        what: &'static str,
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Not a kernel.
    #[error("kernel {}: {source}", path.display())]
    Image {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// Not enough memory.
    #[error(
        "kernel, initrd and device tree need {needs:#x} bytes and --mem gives {ram:#x}; raise --mem"
    )]
    NoRoom {
        /// Bytes needed in all.
        needs: u64,
        /// Bytes of RAM.
        ram: u64,
    },
    /// The driver refused the pages.
    #[error("cannot give the guest its {what} at {ipa:#x}: {source}")]
    Load {
        /// "kernel", "initrd" or "device tree".
        what: &'static str,
        /// Where.
        ipa: u64,
        /// The driver's reason.
        source: io::Error,
    },
}

/// A file with its size.
struct Source {
    what: &'static str,
    path: PathBuf,
    file: File,
    size: u64,
}

impl Source {
    fn open(what: &'static str, path: &Path) -> Result<Self, PlanError> {
        let fail = |source| PlanError::File {
            what,
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if !meta.is_file() {
            return Err(fail(io::Error::other("not a regular file")));
        }
        Ok(Self {
            what,
            path: path.to_owned(),
            file,
            size: meta.len(),
        })
    }

    fn fail(&self, source: io::Error) -> PlanError {
        PlanError::File {
            what: self.what,
            path: self.path.clone(),
            source,
        }
    }

    fn head(&mut self) -> Result<Vec<u8>, PlanError> {
        let mut head = Vec::with_capacity(HEADER_SIZE);
        let read = (&self.file).take(HEADER_SIZE as u64).read_to_end(&mut head);
        read.map_err(|e| self.fail(e))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(|e| self.fail(e))?;
        Ok(head)
    }

    /// Loads the whole file at `ipa`, page by page if `ipa` is not aligned for the first one.
    fn load(&mut self, loader: &dyn Loader, ipa: u64) -> Result<(), PlanError> {
        // text_offset may be any multiple of 4: the first page then starts with zeros.
        let lead = (ipa % PAGE_SIZE) as usize;
        let mut at = ipa - lead as u64;
        let mut buffer = vec![0; lead];
        let mut left = self.size;
        while left > 0 {
            let room = (CHUNK - buffer.len()) as u64;
            let got = (&self.file)
                .take(room.min(left))
                .read_to_end(&mut buffer)
                .map_err(|e| self.fail(e))? as u64;
            if got == 0 {
                let short = io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter");
                return Err(self.fail(short));
            }
            left -= got;
            if left > 0 && buffer.len() < CHUNK {
                continue;
            }
            loader.load(at, &buffer).map_err(|source| PlanError::Load {
                what: self.what,
                ipa: at,
                source,
            })?;
            at += buffer.len() as u64;
            buffer.clear();
        }
        Ok(())
    }
}

/// Opened files and where they go.
pub struct Plan {
    kernel: Source,
    initrd: Option<Source>,
    /// The kernel's place.
    pub placement: Placement,
    /// The initrd's bytes in RAM.
    pub initrd_range: Option<Range>,
    /// Where the device tree goes.
    pub dtb_ipa: u64,
}

impl Plan {
    /// Opens the files and places them: kernel at the bottom of RAM, device tree at the top, initrd below it.
    pub fn new(kernel: &Path, initrd: Option<&Path>, ram_size: u64) -> Result<Self, PlanError> {
        let mut kernel = Source::open("kernel", kernel)?;
        let initrd = initrd.map(|p| Source::open("initrd", p)).transpose()?;
        let head = kernel.head()?;
        let placement =
            image::place(&head, kernel.size, ram_size).map_err(|source| PlanError::Image {
                path: kernel.path.clone(),
                source,
            })?;
        let initrd_size = initrd.as_ref().map_or(0, |i| i.size);
        let top = (RAM_BASE + ram_size) & !(DTB_MAX - 1);
        let initrd_bytes = initrd_size.checked_next_multiple_of(PAGE_SIZE);
        let needs = initrd_bytes
            .and_then(|n| n.checked_add(DTB_MAX))
            .and_then(|n| n.checked_add(placement.span.end() - RAM_BASE));
        let (Some(initrd_bytes), Some(needs)) = (initrd_bytes, needs) else {
            return Err(PlanError::NoRoom {
                needs: u64::MAX,
                ram: ram_size,
            });
        };
        if needs > top - RAM_BASE {
            return Err(PlanError::NoRoom {
                needs,
                ram: ram_size,
            });
        }
        let dtb_ipa = top - DTB_MAX;
        Ok(Self {
            kernel,
            initrd_range: (initrd_size > 0)
                .then(|| Range::new(dtb_ipa - initrd_bytes, initrd_size)),
            initrd,
            placement,
            dtb_ipa,
        })
    }

    /// Donates everything in order of address; `dtb` is at most [`DTB_MAX`] bytes.
    pub fn load(&mut self, loader: &dyn Loader, dtb: &[u8]) -> Result<(), PlanError> {
        self.kernel.load(loader, self.placement.entry)?;
        if let (Some(initrd), Some(range)) = (&mut self.initrd, self.initrd_range) {
            initrd.load(loader, range.base)?;
        }
        loader
            .load(self.dtb_ipa, dtb)
            .map_err(|source| PlanError::Load {
                what: "device tree",
                ipa: self.dtb_ipa,
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Write;

    use super::*;

    #[derive(Default)]
    struct Memory(RefCell<Vec<(u64, Vec<u8>)>>);

    impl Loader for Memory {
        fn load(&self, ipa: u64, data: &[u8]) -> io::Result<()> {
            assert_eq!(ipa % PAGE_SIZE, 0);
            self.0.borrow_mut().push((ipa, data.to_vec()));
            Ok(())
        }
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(bytes).unwrap();
        f
    }

    #[test]
    fn kernel_initrd_and_tree_arrive_at_their_places() {
        let kernel: Vec<u8> = (0..CHUNK + 5000).map(|i| (i % 251) as u8).collect();
        let (k, i) = (file(&kernel), file(&[7; 5000]));
        let ram = 16 << 20;
        let mut plan = Plan::new(k.path(), Some(i.path()), ram).unwrap();
        let memory = Memory::default();
        plan.load(&memory, b"tree").unwrap();
        let got = memory.0.into_inner();
        assert_eq!(got[0], (RAM_BASE, kernel[..CHUNK].to_vec()));
        assert_eq!(got[1], (RAM_BASE + CHUNK as u64, kernel[CHUNK..].to_vec()));
        let dtb = RAM_BASE + ram - DTB_MAX;
        assert_eq!(plan.initrd_range, Some(Range::new(dtb - 8192, 5000)));
        assert_eq!(got[2], (dtb - 8192, vec![7; 5000]));
        assert_eq!(got[3], (dtb, b"tree".to_vec()));
    }

    #[test]
    fn an_image_at_an_odd_offset_is_led_by_zeros_in_its_first_page() {
        let mut bytes = vec![0x5a; 10_000];
        bytes[8..16].copy_from_slice(&0x1_0010_u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&20_000_u64.to_le_bytes());
        bytes[24..32].fill(0);
        bytes[56..60].copy_from_slice(b"ARM\x64");
        let k = file(&bytes);
        let mut plan = Plan::new(k.path(), None, 4 << 20).unwrap();
        assert_eq!(plan.placement.entry, RAM_BASE + 0x1_0010);
        let memory = Memory::default();
        plan.load(&memory, b"tree").unwrap();
        let (ipa, data) = memory.0.borrow()[0].clone();
        assert_eq!(ipa, RAM_BASE + 0x1_0000);
        assert_eq!(&data[..16], &[0; 16]);
        assert_eq!(&data[16..], &bytes[..]);
    }

    #[test]
    fn too_little_memory_names_what_is_needed() {
        let (k, i) = (file(&[1; 4096]), file(&[7; 3 << 20]));
        let got = Plan::new(k.path(), Some(i.path()), 2 << 20);
        let message = got.err().unwrap().to_string();
        assert!(message.contains("raise --mem"), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = Plan::new(Path::new("/nonexistent/Image"), None, 16 << 20)
            .err()
            .unwrap()
            .to_string();
        assert!(message.starts_with("cannot read kernel /nonexistent/Image"));
        let message = Plan::new(Path::new("/"), None, 16 << 20).err().unwrap();
        assert!(message.to_string().contains("not a regular file"));
    }
}
