//! What reads of a disk cost, one at a time, the guest asleep while the device works. As in the bench guest, ticks
//! become nanoseconds, which under QEMU's `-icount shift=0` are instructions: of guest, hypervisor, host and VMM.

use alloc::vec;

use porthole_bounce::PoolProvider;
use porthole_payload::fail;
use porthole_runtime::{println, reg, timer};
use virtio_drivers::device::blk::SECTOR_SIZE;

use crate::disk::Disk;

/// Largest request: what a bounce buffer maps at once, with Linux's limit (128 slots of 2 KiB).
const LONGEST: usize = 256 << 10;

/// 4 KiB reads at places all over the disk, and 1 MiB from its start in the longest requests.
pub fn all<P: PoolProvider>(disk: &mut Disk<P>, reps: u64) {
    let pages = disk.capacity() * SECTOR_SIZE / 4096;
    if pages < 256 {
        fail!("disk: the benchmark needs 1 MiB");
    }
    let mut page = vec![0; 4096];
    let mut place = 0x1234_5678_9abc_u64;
    let random = |disk: &mut Disk<P>| {
        // Knuth's generator (MMIX): its upper bits will do.
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = (place >> 33) as usize % pages;
        disk.read(at * 4096 / SECTOR_SIZE, &mut page)
    };
    measure(disk, "blk_read_4k", reps, random);
    let mut long = vec![0; LONGEST];
    measure(disk, "blk_read_1m", reps.div_ceil(16), |disk| {
        (0..4).try_for_each(|i| disk.read(i * LONGEST / SECTOR_SIZE, &mut long))
    });
}

fn measure<P: PoolProvider>(
    disk: &mut Disk<P>,
    name: &str,
    reps: u64,
    mut read: impl FnMut(&mut Disk<P>) -> Result<(), virtio_drivers::Error>,
) {
    let mut run = |reps: u64| {
        for _ in 0..reps {
            if let Err(e) = read(disk) {
                fail!("{name}: {e}");
            }
        }
    };
    // Page cache, window and caches of the VMM are warm then.
    run(reps.div_ceil(4));
    let start = reg::counter();
    run(reps);
    let ticks = reg::counter() - start;
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(timer::frequency());
    let tenths = nanoseconds * 10 / u128::from(reps);
    println!(
        "bench {name} reps={reps} instructions={}.{}",
        tenths / 10,
        tenths % 10
    );
}
