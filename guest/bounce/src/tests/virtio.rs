//! Drivers of virtio-drivers over the Hal, against a split-queue device that can reach the window
//! and nothing else: an address outside it is counted and sets DEVICE_NEEDS_RESET.

use core::ptr::NonNull;
use std::boxed::Box;
use std::string::String;
use std::sync::{Arc, Mutex};
use std::vec;
use std::vec::Vec;

use virtio_drivers::Error as VirtioError;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{BUS, pool};
use crate::raw::fake::{HostView, aperture_at};
use crate::{
    Binding, BounceHal, BouncePool, BusAddr, Direction, Error, Operation, PoolProvider, SetupError,
    UNMAPPED, bounce_pool,
};

const VERSION_1: u64 = 1 << 32;
const INDIRECT: u64 = 1 << 28;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const TABLE: u16 = 4;

/// What a device does with a request: the bytes it reads, and how many it may write.
type Handler = Box<dyn FnMut(u16, &[u8], usize) -> Option<Vec<u8>> + Send>;

#[derive(Clone, Copy, Default)]
struct Queue {
    size: u32,
    desc: u64,
    avail: u64,
    used: u64,
    next: u16,
    written: u16,
}

struct Device {
    host: HostView,
    queues: [Queue; 2],
    status: DeviceStatus,
    outside: usize,
    indirect: usize,
    config: Vec<u8>,
    handler: Handler,
}

impl Device {
    fn get<const N: usize>(&self, addr: u64) -> [u8; N] {
        self.host.read(addr, N).try_into().unwrap()
    }

    fn get16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.get(addr))
    }

    /// The buffers of a chain, readable and writable, or `None` if one is outside the window.
    fn chain(&mut self, table: u64, head: u16) -> Option<Vec<(u64, usize, bool)>> {
        let (mut parts, mut next) = (Vec::new(), Some(head));
        while let Some(index) = next {
            let desc: [u8; 16] = self.get(table + u64::from(index) * 16);
            let addr = u64::from_le_bytes(desc[..8].try_into().unwrap());
            let len = u32::from_le_bytes(desc[8..12].try_into().unwrap()) as usize;
            let flags = u16::from_le_bytes([desc[12], desc[13]]);
            if !self.host.contains(addr, len) {
                self.outside += 1;
                self.status |= DeviceStatus::DEVICE_NEEDS_RESET;
                return None;
            }
            if flags & TABLE != 0 {
                self.indirect += 1;
                return self.chain(addr, 0);
            }
            parts.push((addr, len, flags & WRITE != 0));
            next = (flags & NEXT != 0).then(|| u16::from_le_bytes([desc[14], desc[15]]));
        }
        Some(parts)
    }

    fn serve(&mut self, index: usize) {
        loop {
            let mut queue = self.queues[index];
            if queue.size == 0 || queue.next == self.get16(queue.avail + 2) {
                return;
            }
            let slot = u64::from(queue.next) % u64::from(queue.size);
            let head = self.get16(queue.avail + 4 + slot * 2);
            let Some(parts) = self.chain(queue.desc, head) else {
                return;
            };
            let input: Vec<u8> = parts
                .iter()
                .filter(|part| !part.2)
                .flat_map(|part| self.host.read(part.0, part.1))
                .collect();
            let room = parts.iter().filter(|part| part.2).map(|part| part.1).sum();
            let Some(output) = (self.handler)(index as u16, &input, room) else {
                return;
            };
            let mut rest = output.as_slice();
            for (addr, len, _) in parts.into_iter().filter(|part| part.2) {
                let (now, later) = rest.split_at(len.min(rest.len()));
                self.host.write(addr, now);
                rest = later;
            }
            let slot = u64::from(queue.written) % u64::from(queue.size);
            let mut element = u32::from(head).to_le_bytes().to_vec();
            element.extend((output.len() as u32).to_le_bytes());
            self.host.write(queue.used + 4 + slot * 8, &element);
            queue.next = queue.next.wrapping_add(1);
            queue.written = queue.written.wrapping_add(1);
            self.host
                .write(queue.used + 2, &queue.written.to_le_bytes());
            self.queues[index] = queue;
        }
    }
}

#[derive(Clone)]
struct Bus(DeviceType, Arc<Mutex<Device>>);

impl Bus {
    fn new(kind: DeviceType, host: HostView, config: &[u8], handler: Handler) -> Self {
        let device = Device {
            host,
            queues: [Queue::default(); 2],
            status: DeviceStatus::empty(),
            outside: 0,
            indirect: 0,
            config: config.to_vec(),
            handler,
        };
        Self(kind, Arc::new(Mutex::new(device)))
    }

    fn device(&self) -> std::sync::MutexGuard<'_, Device> {
        self.1.lock().unwrap()
    }
}

impl Transport for Bus {
    fn device_type(&self) -> DeviceType {
        self.0
    }
    fn read_device_features(&mut self) -> u64 {
        VERSION_1 | INDIRECT
    }
    fn write_driver_features(&mut self, features: u64) {
        assert_eq!(features, VERSION_1 | INDIRECT);
    }
    fn max_queue_size(&mut self, _: u16) -> u32 {
        64
    }
    fn notify(&mut self, queue: u16) {
        let mut device = self.device();
        device.serve(queue.into());
        device.serve(0);
    }
    fn get_status(&self) -> DeviceStatus {
        self.device().status
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.device().status = status;
    }
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, desc: u64, avail: u64, used: u64) {
        let mut device = self.device();
        for (addr, len) in [(desc, 16), (avail, 2), (used, 8)] {
            assert!(device.host.contains(addr, len * size as usize));
        }
        device.queues[usize::from(queue)] = Queue {
            size,
            desc,
            avail,
            used,
            ..Queue::default()
        };
    }
    fn queue_unset(&mut self, queue: u16) {
        self.device().queues[usize::from(queue)] = Queue::default();
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.device().queues[usize::from(queue)].size != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::QUEUE_INTERRUPT
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, VirtioError> {
        T::read_from_prefix(&self.device().config[offset..])
            .map(|(value, _)| value)
            .map_err(|_| VirtioError::ConfigSpaceTooSmall)
    }
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> Result<(), VirtioError> {
        Err(VirtioError::Unsupported)
    }
}

bounce_pool! { Console }
bounce_pool! { Disk }
bounce_pool! { Inside }
bounce_pool! { Outside }
bounce_pool! { Overlap }

/// A device whose pool was never installed.
struct Absent;

impl PoolProvider for Absent {
    fn binding() -> Option<&'static Binding> {
        None
    }
}

type Install = fn(Binding) -> Result<&'static Binding, SetupError>;

/// Installs a pool of `pages` pages with one aperture, 0x4000_0000 to 0x4000_1000.
fn installed(install: Install, pages: usize) -> (HostView, &'static BouncePool<'static>) {
    let (host, pool) = pool(pages);
    (host, &install(bind(pool)).unwrap().pool)
}

fn bind(pool: BouncePool<'static>) -> Binding {
    let virt = NonNull::new(0x9000_0000 as *mut u8).unwrap();
    let apertures = vec![aperture_at(0x4000_0000, virt, 0x1000)].leak();
    Binding { pool, apertures }
}

#[test]
fn a_console_echoes_through_the_window_only() {
    let (host, pool) = installed(Console::install, 16);
    let mut pending = Vec::new();
    let bus = Bus::new(
        DeviceType::Console,
        host,
        &[],
        Box::new(move |queue, input, room| {
            if queue == 1 {
                pending.extend_from_slice(input);
                return Some(Vec::new());
            }
            let now = pending.len().min(room);
            (now > 0).then(|| pending.drain(..now).collect())
        }),
    );
    let mut console = VirtIOConsole::<BounceHal<Console>, _>::new(bus.clone()).unwrap();
    for round in 0..200u32 {
        let line: Vec<u8> = (0..97).map(|i| (i * 7 + round) as u8).collect();
        console.send_bytes(&line).unwrap();
        let mut echo = Vec::new();
        while echo.len() < line.len() {
            echo.extend(console.recv(true).unwrap());
        }
        assert_eq!(echo, line);
    }
    assert_eq!(bus.device().outside, 0);
    let stats = pool.stats();
    assert_eq!(
        (stats.full, stats.invalid, stats.coherent_allocs),
        (0, 0, 4)
    );
    assert!(stats.bytes_to_device >= 200 * 97 && pool.check());
    drop(console);
    assert_eq!(pool.stats().coherent_frees, 4);
}

#[test]
fn block_requests_use_indirect_tables_in_the_window() {
    let (host, pool) = installed(Disk::install, 16);
    let mut disk = vec![0u8; 64 * 512];
    let mut config = 64u64.to_le_bytes().to_vec();
    config.resize(64, 0);
    let bus = Bus::new(
        DeviceType::Block,
        host,
        &config,
        Box::new(move |_, input, room| {
            let at = u64::from_le_bytes(input[8..16].try_into().unwrap()) as usize * 512;
            let mut output = Vec::new();
            match input[0] {
                0 => output.extend_from_slice(&disk[at..at + room - 1]),
                _ => disk[at..at + input.len() - 16].copy_from_slice(&input[16..]),
            }
            output.push(0);
            Some(output)
        }),
    );
    let mut blk = VirtIOBlk::<BounceHal<Disk>, _>::new(bus.clone()).unwrap();
    for block in (0..56).step_by(8) {
        let data: Vec<u8> = (0..4096).map(|i| (i / 16 + block) as u8).collect();
        let mut back = vec![0xee; 4096];
        blk.write_blocks(block, &data).unwrap();
        blk.read_blocks(block, &mut back).unwrap();
        assert_eq!(back, data);
    }
    assert_eq!(bus.device().outside, 0);
    assert_eq!(bus.device().indirect, 14);
    let rings = pool.stats().slots_used;
    let high_water = pool.stats().slots_high_water;
    assert_eq!(
        high_water - rings,
        5,
        "header, status, table, 4 KiB of data"
    );
    drop(blk);
    assert!(pool.check());
    let stats = pool.stats();
    assert_eq!((stats.slots_used, stats.invalid), (0, 0));
}

/// A provider that remembers what it was told.
struct Told;
static TOLD: Mutex<Vec<(Operation, Option<Error>, usize)>> = Mutex::new(Vec::new());
static CELL: crate::BindingCell = crate::BindingCell::new();

impl PoolProvider for Told {
    fn binding() -> Option<&'static Binding> {
        CELL.get()
    }
    fn failed(operation: Operation, error: Option<Error>, bytes: usize) {
        TOLD.lock().unwrap().push((operation, error, bytes));
    }
}

#[test]
fn what_the_trait_cannot_say_is_told_to_the_provider() {
    type Hal = BounceHal<Told>;
    assert_eq!(Hal::map(&[1; 8], Direction::ToDevice), UNMAPPED.get());
    let (host, pool) = pool(1);
    let pool = &CELL.install(bind(pool)).unwrap().pool;
    let first = Hal::map(&[1; 2048], Direction::ToDevice);
    assert_eq!(first, BUS);
    assert_eq!(Hal::alloc(1).0, 0);
    let mut buffer = [2; 3000];
    let addr = Hal::map(&buffer, Direction::FromDevice);
    assert_eq!(addr, UNMAPPED.get());
    assert!(!host.contains(addr, 1));
    Hal::unmap(BusAddr::new(addr), &mut buffer, Direction::FromDevice);
    assert_eq!(buffer, [2; 3000]);
    Hal::release(BusAddr::new(first), 2048, Direction::ToDevice);
    Hal::release(BusAddr::new(first), 2048, Direction::ToDevice);
    assert_eq!(Hal::free(BusAddr::new(BUS), 1), -1);
    let told = core::mem::take(&mut *TOLD.lock().unwrap());
    let expected = [
        (Operation::Share, None, 8),
        (Operation::Alloc, Some(Error::Full), 4096),
        (Operation::Share, Some(Error::Full), 3000),
        (Operation::Unshare, Some(Error::NotMapped), 2048),
        (Operation::Free, Some(Error::NotMapped), 4096),
    ];
    assert_eq!(told, expected);
    assert_eq!(pool.stats().full, 2);
}

#[test]
fn rings_without_a_pool_are_a_dma_error() {
    let (host, _) = pool(1);
    let mut bus = Bus::new(DeviceType::Console, host, &[], Box::new(|_, _, _| None));
    let queue = VirtQueue::<BounceHal<Absent>, 4>::new(&mut bus, 0, false, false);
    assert_eq!(queue.err(), Some(VirtioError::DmaError));
}

#[test]
fn a_binding_is_set_once() {
    let cell = crate::BindingCell::new();
    assert!(cell.install(bind(pool(1).1)).is_ok());
    let second = cell.install(bind(pool(1).1));
    assert_eq!(second.err(), Some(SetupError::AlreadyInstalled));
}

#[test]
fn registers_in_the_aperture_are_translated() {
    installed(Inside::install, 1);
    let at = BounceHal::<Inside>::mmio(0x4000_0800, 0x800);
    assert_eq!(at.as_ptr().addr(), 0x9000_0800);
}

/// What `translate` says when it panics. The trait has no way to refuse an address (its methods return pointers that the
/// driver uses at once), so the only safe answer to a lie is to stop the guest; that it does is what is tested.
fn refusal(translate: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(translate)).unwrap_err();
    *panic.downcast::<String>().unwrap()
}

#[test]
fn a_register_bar_over_private_memory_stops_the_guest() {
    installed(Outside::install, 1);
    let why = refusal(|| _ = BounceHal::<Outside>::mmio(0x8000_0000, 0x100));
    assert!(why.contains("outside every aperture"), "{why}");
}

#[test]
fn a_register_bar_over_the_window_stops_the_guest() {
    let virt = NonNull::new(0x9000_0000 as *mut u8).unwrap();
    let apertures = vec![aperture_at(BUS - 0x1000, virt, 0x10000)].leak();
    let (_, pool) = pool(1);
    Overlap::install(Binding { pool, apertures }).unwrap();
    let before = BounceHal::<Overlap>::mmio(BUS - 0x1000, 0x100);
    assert_eq!(before, virt, "the aperture itself is good");
    let why = refusal(|| _ = BounceHal::<Overlap>::mmio(BUS, 0x100));
    assert!(why.contains("outside every aperture"), "{why}");
}
