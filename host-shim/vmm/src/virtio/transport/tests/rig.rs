//! A function with a console behind it, and the driver's hands on its registers.

use std::time::{Duration, Instant};

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, mmap::MmapRegion};

use super::super::*;
use crate::cli::SwiotlbMode;
use crate::virtio::console::{Console, Input, Output};
use crate::virtio::window::Window;
use crate::virtio::window::tests::{BASE, FakePort, SIZE};

pub const REGISTERS: u64 = 0x2f00_0000;
pub const COMMAND: usize = 4;
pub const NEEDS_RESET: u8 = 0x40;
pub const SWIOTLB: u64 = 1 << 27;
pub const VERSION_1: u64 = 1 << 32;

#[derive(Clone, Default)]
pub struct FakeNotify(pub Arc<Mutex<Vec<(u64, bool)>>>);

impl NotifyPort for FakeNotify {
    fn set(&self, ipa: u64, _: &EventFd, assign: bool) -> io::Result<()> {
        lock(&self.0).push((ipa, assign));
        Ok(())
    }
}

pub struct Rig {
    pub function: VirtioPci,
    pub guest: GuestMemoryMmap,
    pub moves: FakePort,
    pub notify: FakeNotify,
}

pub fn rig(mode: SwiotlbMode) -> Rig {
    rig_with_bit(mode, 27).unwrap()
}

/// A function whose VIRTIO_F_SWIOTLB has this number.
pub fn rig_with_bit(mode: SwiotlbMode, bit: u32) -> Result<Rig, BuildError> {
    let pages = MmapRegion::new(SIZE as usize).unwrap();
    let moves = FakePort::default();
    let window = Window::new("console", pages, Box::new(moves.clone()), Some(BASE));
    build(mode, bit, WindowUse::own(window), moves, REGISTERS)
}

/// Two functions of one device that share a window: it is in the BAR of the first.
pub fn pair() -> [Rig; 2] {
    let pages = MmapRegion::new(SIZE as usize).unwrap();
    let moves = FakePort::default();
    let window = Window::new("console", pages, Box::new(moves.clone()), Some(BASE));
    let own = WindowUse::own(window);
    let shared = WindowUse {
        in_function: Some(0),
        ..own.clone()
    };
    [
        function(SwiotlbMode::Require, own, moves.clone(), REGISTERS),
        function(SwiotlbMode::Require, shared, moves, REGISTERS),
    ]
}

pub fn function(mode: SwiotlbMode, window: WindowUse, moves: FakePort, registers: u64) -> Rig {
    build(mode, 27, window, moves, registers).unwrap()
}

fn build(
    mode: SwiotlbMode,
    bit: u32,
    window: WindowUse,
    moves: FakePort,
    registers: u64,
) -> Result<Rig, BuildError> {
    let notify = FakeNotify::default();
    let pages = window_pages(&lock(&window.window));
    let region = GuestRegionMmap::with_arc(pages, GuestAddress(BASE)).unwrap();
    let input = Arc::new(Input::new().unwrap());
    let multi_function = window.in_function.is_some() || Arc::strong_count(&window.window) > 1;
    let function = VirtioPci::new(Parts {
        name: "console".into(),
        device: Box::new(Console::new(input.clone(), Output::Echo(input))),
        window,
        multi_function,
        registers,
        swiotlb: Swiotlb {
            mode,
            bit,
            cfg_type: 10,
            pool: false,
        },
        lines: Arc::new(MsiLines::new(64, Vec::new())),
        notify: Box::new(notify.clone()),
    })?;
    Ok(Rig {
        function,
        guest: GuestMemoryMmap::from_regions(vec![region]).unwrap(),
        moves,
        notify,
    })
}

pub fn window_pages(window: &Window) -> Arc<MmapRegion> {
    let memory = window.memory().unwrap();
    use vm_memory::GuestMemoryBackend;
    memory.iter().next().unwrap().get_mmap()
}

impl Rig {
    pub fn config(&self, at: usize) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn config8(&self, at: usize) -> u8 {
        let mut data = [0; 1];
        self.function.config_read(at, &mut data);
        data[0]
    }

    pub fn set_config(&self, at: usize, value: u32) {
        self.function.config_write(at, &value.to_le_bytes());
    }

    pub fn set_command(&self, value: u16) {
        self.function.config_write(COMMAND, &value.to_le_bytes());
    }

    pub fn write(&self, offset: usize, data: &[u8]) {
        assert!(self.function.memory_write(REGISTERS + offset as u64, data));
    }

    pub fn faults(&self) -> u64 {
        self.function.status().stats.faults
    }

    pub fn status(&self) -> u8 {
        let mut data = [0];
        assert!(self.function.memory_read(REGISTERS + 0x14, &mut data));
        data[0]
    }

    pub fn wait_for_status(&self, bit: u8) {
        let start = Instant::now();
        while self.status() & bit == 0 {
            assert!(
                start.elapsed() < Duration::from_secs(300),
                "no status {bit:#x}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Offset, BAR, offset in it and length of the capability of this cfg_type.
    pub fn capability(&self, cfg_type: u8) -> Option<(usize, u8, u32, u32)> {
        let mut at = usize::from(self.config8(0x34));
        while at != 0 {
            if self.config8(at) == 9 && self.config8(at + 3) == cfg_type {
                return Some((
                    at,
                    self.config8(at + 4),
                    self.config(at + 8),
                    self.config(at + 12),
                ));
            }
            at = usize::from(self.config8(at + 1));
        }
        None
    }

    pub fn negotiate(&self, features: u64) -> bool {
        self.write(0x14, &[0]);
        self.write(0x14, &[3]);
        for select in 0..2u32 {
            self.write(8, &select.to_le_bytes());
            let half = (features >> (32 * select)) as u32;
            self.write(0xc, &half.to_le_bytes());
        }
        self.write(0x14, &[0xb]);
        self.status() & 8 != 0
    }

    pub fn enable_queue(&self, index: u16, rings: [u64; 3]) {
        self.write(0x16, &index.to_le_bytes());
        self.write(0x18, &8u16.to_le_bytes());
        for (at, ring) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            self.write(at, &ring.to_le_bytes());
        }
        self.write(0x1c, &1u16.to_le_bytes());
    }

    /// Negotiates and starts both queues; returns the rings as the driver's mocks.
    pub fn start(&self) -> [MockSplitQueue<'_, GuestMemoryMmap>; 2] {
        assert!(self.negotiate(VERSION_1 | SWIOTLB));
        let rings = [BASE, BASE + 0x4000]
            .map(|at| MockSplitQueue::create(&self.guest, GuestAddress(at), 8));
        for (index, mock) in (0u16..).zip(&rings) {
            self.enable_queue(
                index,
                [
                    mock.desc_table_addr().0,
                    mock.avail_addr().0,
                    mock.used_addr().0,
                ],
            );
        }
        self.write(0x14, &[0xf]);
        rings
    }

    pub fn ring(&self, queue: usize) {
        self.write(
            NOTIFY + queue * NOTIFY_STRIDE,
            &(queue as u16).to_le_bytes(),
        );
    }
}

pub fn descriptor(address: u64, length: u32, flags: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, length, flags, 0))
}
