//! virtio-rng (VIRTIO 1.2, 5.4): fills the driver's buffers with random bytes of the host.
//! How much in one buffer and how much in a second is limited: entropy costs the host time, which a guest may not
//! take without end. Where the bytes come from is a file, /dev/urandom as a rule.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::queue::{DeviceQueue, Fault};
use super::shared::Shared;
use super::{BufferNeed, Handler, Source, VirtioDevice};
use crate::bus::lock;
use crate::seccomp::Right;

const ID: u16 = 4;
const QUEUE_SIZES: [u16; 1] = [16];
/// Most bytes put into one buffer; a longer one is given back with so many.
const REQUEST_MAX: u32 = 64 << 10;
/// Buffers filled before whoever wants the thread to end gets its turn.
const TURN: usize = 64;
/// Bytes copied at once.
const PIECE: usize = 4096;
/// Bytes a second, in the long run.
const RATE: u64 = 4 << 20;
/// Bytes at once after a pause.
const BURST: u64 = 1 << 20;
/// Until a source that had nothing is asked again.
const PAUSE: Duration = Duration::from_millis(10);

const RIGHTS: &[Right] = &[
    Right::call(libc::SYS_timerfd_settime),
    Right::call(libc::SYS_timerfd_gettime),
];

/// Bytes that may be given out now: they come with time.
#[derive(Debug)]
struct Bucket {
    level: u64,
    at: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self {
            level: BURST,
            at: now,
        }
    }

    /// Takes `wanted` bytes; or says how long it takes until they are there.
    fn take(&mut self, wanted: u64, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        let come = passed.saturating_mul(u128::from(RATE)) / 1_000_000_000;
        if come > 0 {
            self.level = BURST.min(self.level.saturating_add(come.min(BURST.into()) as u64));
            self.at = now;
        }
        match wanted.checked_sub(self.level) {
            None | Some(0) => {
                self.level -= wanted;
                Ok(())
            }
            Some(missing) => Err(Duration::from_nanos(
                (missing.saturating_mul(1_000_000_000) / RATE).max(1_000_000),
            )),
        }
    }

    /// Takes bytes back that the source did not have.
    fn give_back(&mut self, bytes: u64) {
        self.level = BURST.min(self.level.saturating_add(bytes));
    }
}

/// Where the bytes come from, and how many may: it outlives resets, so that they give a driver no more.
struct Spring {
    file: File,
    /// Nothing to read is nothing yet, and no end: a FIFO without a writer may get one.
    endless: bool,
    bucket: Bucket,
}

/// The device.
pub struct Rng {
    source: Arc<Mutex<Spring>>,
}

impl Rng {
    /// A device that takes its bytes from a file. One that may have nothing to give (a FIFO, a slow device) never holds
    /// up the thread that asks.
    pub fn open(source: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(source)?;
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        Ok(Self {
            source: Arc::new(Mutex::new(Spring {
                file,
                endless: kind.is_fifo(),
                bucket: Bucket::full(Instant::now()),
            })),
        })
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        // Encryption controller, other.
        [0x10, 0x80, 0x00]
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn buffers(&self) -> BufferNeed {
        BufferNeed {
            least: porthole_abi::PAGE_SIZE,
            usual: u64::from(QUEUE_SIZES[0]) * porthole_abi::PAGE_SIZE,
        }
    }

    fn rights(&self) -> &'static [Right] {
        RIGHTS
    }

    fn start(
        &mut self,
        _: u64,
        queues: Vec<DeviceQueue>,
        _: &Arc<Shared>,
    ) -> io::Result<Vec<Box<dyn Handler>>> {
        Ok(vec![Box::new(Well {
            queues,
            source: self.source.clone(),
            timer: TimerFd::new().map_err(io::Error::from)?,
        })])
    }
}

/// The device at work.
struct Well {
    queues: Vec<DeviceQueue>,
    source: Arc<Mutex<Spring>>,
    /// Rings when there are bytes for a buffer that had to wait.
    timer: TimerFd,
}

impl Well {
    fn fill(&mut self) -> Result<(), Fault> {
        let Some(queue) = self.queues.first_mut() else {
            return Ok(());
        };
        queue.serve(TURN, |queue, chain| {
            let wanted = chain.writable_len().min(REQUEST_MAX);
            if wanted == 0 {
                return Err(Fault::Setup("an entropy buffer has no room"));
            }
            let mut source = lock(&self.source);
            if let Err(pause) = source.bucket.take(wanted.into(), Instant::now()) {
                self.timer.reset(pause, None).map_err(io::Error::from)?;
                return Ok(None);
            }
            let mut piece = [0; PIECE];
            let mut done = 0;
            while done < wanted {
                let most = PIECE.min((wanted - done) as usize);
                let Some(count) = source.draw(&mut piece[..most])? else {
                    break;
                };
                chain
                    .write(queue.memory(), done, &piece[..count])
                    .map_err(|error| queue.broken(error))?;
                done += count as u32;
            }
            source.bucket.give_back((wanted - done).into());
            if done == 0 {
                self.timer.reset(PAUSE, None).map_err(io::Error::from)?;
                return Ok(None);
            }
            Ok(Some(done))
        })
    }
}

impl Spring {
    /// Bytes of the source: how many, or none if it has none yet. That it has ended is an error.
    fn draw(&mut self, to: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.file.read(to) {
                Ok(0) if self.endless => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => return Ok(Some(count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Handler for Well {
    fn sources(&self) -> Vec<Source> {
        vec![Source::readable(self.timer.as_raw_fd())]
    }

    fn doorbell(&mut self, _: u16) -> Result<(), Fault> {
        self.fill()
    }

    fn event(&mut self, _: usize) -> Result<(), Fault> {
        self.timer.wait().map_err(io::Error::from)?;
        self.fill()
    }

    fn queues(&self) -> &[DeviceQueue] {
        &self.queues
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mkfifoat};
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::queue::tests::{Driver, memories, shared};
    use crate::virtio::window::tests::{BASE, SIZE};

    const BUFFER: u64 = BASE + 0x1_0000;

    const WRITE: u16 = VRING_DESC_F_WRITE as u16;

    fn with_well(source: &str, test: impl FnOnce(&Driver<'_>, &mut dyn Handler)) {
        with_start(&mut Rng::open(Path::new(source)).unwrap(), test);
    }

    /// A driver that starts the device, for the first time or after a reset.
    fn with_start(rng: &mut Rng, test: impl FnOnce(&Driver<'_>, &mut dyn Handler)) {
        let (memory, window) = memories();
        let driver = Driver::new(&memory, BASE, 16);
        let shared = shared();
        let queues = vec![driver.device(0, window, shared.clone())];
        let mut handlers = rng.start(0, queues, &shared).unwrap();
        test(&driver, &mut *handlers[0]);
    }

    #[test]
    fn a_buffer_comes_back_full_of_bytes_that_differ() {
        with_well("/dev/urandom", |driver, well| {
            driver.post(&[(BUFFER, 4096 + 8, WRITE)]);
            well.doorbell(0).unwrap();
            let mut bytes = vec![0; 4096 + 16];
            driver
                .memory
                .read_slice(&mut bytes, GuestAddress(BUFFER))
                .unwrap();
            let different = |b: &[u8]| b.iter().collect::<std::collections::BTreeSet<_>>().len();
            assert!(different(&bytes[..4096]) > 200);
            assert!(different(&bytes[4096..4104]) > 2);
            assert_eq!(bytes[4104..], [0; 8], "nothing beyond the buffer");
            assert_eq!((driver.used(), driver.used_len()), (1, 4096 + 8));
        });
    }

    #[test]
    fn a_long_buffer_gets_no_more_than_the_most() {
        with_well("/dev/urandom", |driver, well| {
            driver.post(&[(BUFFER, 512 << 10, WRITE)]);
            well.doorbell(0).unwrap();
            assert_eq!(driver.used_len(), REQUEST_MAX);
            let after: u64 = driver
                .memory
                .read_obj(GuestAddress(BUFFER + u64::from(REQUEST_MAX)))
                .unwrap();
            assert_eq!(after, 0);
        });
    }

    #[test]
    fn bytes_come_at_the_rate_and_no_buffer_is_lost() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        assert_eq!(bucket.take(BURST, start), Ok(()));
        let pause = bucket.take(RATE / 8, start).unwrap_err();
        assert_eq!(pause, Duration::from_millis(125));
        assert!(bucket.take(RATE / 8, start + pause / 2).is_err());
        assert_eq!(bucket.take(RATE / 8, start + pause), Ok(()));
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.take(BURST, later), Ok(()), "full again");
        assert!(bucket.take(1, later).is_err(), "and not fuller");
    }

    #[test]
    fn a_buffer_that_has_to_wait_is_filled_when_the_timer_rings() {
        with_well("/dev/urandom", |driver, well| {
            for _ in 0..BURST / u64::from(REQUEST_MAX) {
                driver.post(&[(BUFFER, REQUEST_MAX, WRITE)]);
                well.doorbell(0).unwrap();
            }
            let before = driver.used();
            driver.post(&[(BUFFER, REQUEST_MAX, WRITE)]);
            well.doorbell(0).unwrap();
            while driver.used() == before {
                well.event(0).unwrap();
            }
            assert_eq!(driver.used(), before + 1);
        });
    }

    #[test]
    fn a_driver_that_resets_the_device_gets_no_more_than_one_that_does_not() {
        let mut rng = Rng::open(Path::new("/dev/zero")).unwrap();
        let start = Instant::now();
        let mut given = 0;
        for _ in 0..8 {
            with_start(&mut rng, |driver, well| {
                for _ in 0..BURST / u64::from(REQUEST_MAX) {
                    let before = driver.used();
                    driver.post(&[(BUFFER, REQUEST_MAX, WRITE)]);
                    well.doorbell(0).unwrap();
                    if driver.used() == before {
                        break;
                    }
                    given += u64::from(REQUEST_MAX);
                }
            });
        }
        let come = start.elapsed().as_micros() * u128::from(RATE) / 1_000_000;
        assert!(
            u128::from(given) <= u128::from(BURST) + come,
            "{given} bytes"
        );
        assert!(given >= BURST, "{given} bytes");
    }

    #[test]
    fn a_driver_that_never_stops_asking_keeps_no_thread() {
        with_well("/dev/zero", |driver, well| {
            driver.post(&[(BUFFER, 1, WRITE)]);
            driver.flood(TURN as u16, || well.doorbell(0).unwrap());
        });
    }

    #[test]
    fn a25_buffers_without_room_or_outside_the_window_are_faults() {
        with_well("/dev/urandom", |driver, well| {
            driver.post(&[(BUFFER, 64, 0)]);
            assert!(well.doorbell(0).is_err());
        });
        with_well("/dev/urandom", |driver, well| {
            driver.post(&[(BASE + SIZE, 64, WRITE)]);
            assert!(well.doorbell(0).is_err());
        });
    }

    #[test]
    fn a_source_that_has_nothing_yet_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        // Opened both ways, so that it neither blocks nor has ended.
        let mut writer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        with_well(path.to_str().unwrap(), |driver, well| {
            driver.post(&[(BUFFER, 64, WRITE)]);
            well.doorbell(0).unwrap();
            assert_eq!(driver.used(), 0, "nothing there yet");
            io::Write::write_all(&mut writer, &[7; 16]).unwrap();
            well.event(0).unwrap();
            assert_eq!((driver.used(), driver.used_len()), (1, 16), "what there is");
            driver.post(&[(BUFFER, 64, WRITE)]);
            well.doorbell(0).unwrap();
            assert_eq!(driver.used(), 1, "and nothing made up");
        });
    }

    #[test]
    fn a_fifo_without_a_writer_has_nothing_yet_and_may_get_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        with_well(path.to_str().unwrap(), |driver, well| {
            driver.post(&[(BUFFER, 64, WRITE)]);
            well.doorbell(0).unwrap();
            assert_eq!(driver.used(), 0);
            for served in 1..3 {
                let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
                io::Write::write_all(&mut writer, &[7; 16]).unwrap();
                drop(writer);
                well.event(0).unwrap();
                assert_eq!((driver.used(), driver.used_len()), (served, 16));
                driver.post(&[(BUFFER, 64, WRITE)]);
                well.doorbell(0).unwrap();
                assert_eq!(driver.used(), served, "its writer is gone, and no fault");
            }
        });
    }

    #[test]
    fn a_folder_is_no_source() {
        let folder = tempfile::tempdir().unwrap();
        let error = Rng::open(folder.path()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
    }

    #[test]
    fn a_source_that_ends_stops_the_device_instead_of_giving_zeros() {
        with_well("/dev/null", |driver, well| {
            driver.post(&[(BUFFER, 64, WRITE)]);
            assert!(matches!(well.doorbell(0), Err(Fault::Host(_))));
            assert_eq!(driver.used(), 0);
        });
    }
}
