//! Images: raw ones with and without O_DIRECT, qcow2 ones, and what is none.

use std::fs::File;

use super::*;
use crate::virtio::block::disk::ImageError;
use crate::virtio::block::qcow2::Qcow2Disk;
use crate::virtio::block::raw::{QCOW2_MAGIC, WRITE_AT_ONCE, first, fit_for_direct};
use crate::virtio::chain::Slice;

#[test]
fn direct_access_works_with_any_buffer() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = directory.path().join("image");
    fs::copy(image().path(), &path).unwrap();
    let options = RawOptions {
        direct: true,
        ..RawOptions::default()
    };
    let disk = match RawDisk::open(&path, options) {
        Ok(disk) => disk,
        // A file system without O_DIRECT has nothing to test.
        Err(ImageError::Open { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let block = disk.shape().logical;
    with_rig(Arc::new(disk), &settings(), 0, |mut rig| {
        for at in [DATA, DATA + 1, DATA + 512] {
            let buffers = [(at, block, WRITE), (at + 0x2000, 7 * block, WRITE)];
            assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &buffers), 0);
            let (first, last) = (rig.data(at, 512), rig.data(at + 0x2000, 512));
            assert_eq!(first, [0; 512]);
            assert_eq!(last, [(block / 512) as u8; 512]);
        }
        rig.memory
            .write_slice(&vec![0x5a; block as usize], GuestAddress(DATA + 3))
            .unwrap();
        let written = [(DATA + 3, block, READ)];
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &written), 0);
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), 0);
    });
    let after = fs::read(&path).unwrap();
    assert_eq!(after[..block as usize], vec![0x5a; block as usize]);
    assert_eq!(after[block as usize], (block / 512) as u8);
}

#[test]
fn direct_access_takes_buffers_of_whole_blocks_only() {
    let mut memory = vec![0; 64 << 10];
    let skip = memory.as_ptr().align_offset(4096);
    // Where each buffer begins in a page, and its bytes; whether a disk of blocks of 512, and of 4096, takes them.
    for (buffers, of_512, of_4096) in [
        (&[(0, 4096), (0, 8192)][..], true, true),
        (&[(0, 3584), (0, 4096), (0, 512)][..], true, false),
        (&[(512, 4096)][..], true, true),
        (&[(4, 4096)][..], true, true),
        (&[(2, 4096)][..], false, false),
        (&[(0, 4096), (4, 516), (0, 3580)][..], false, false),
    ] {
        let mut rest = &mut memory[skip..];
        let mut slices = Vec::new();
        for (at, length) in buffers {
            let (page, more) = std::mem::take(&mut rest).split_at_mut(3 * 4096);
            slices.push(Slice::from(&mut page[*at..at + length]));
            rest = more;
        }
        assert_eq!(fit_for_direct(&slices, 4, 512), of_512, "{buffers:?}");
        assert_eq!(fit_for_direct(&slices, 4, 4096), of_4096, "{buffers:?}");
    }
}

#[test]
fn more_buffers_than_a_call_takes_are_read_and_written() {
    let file = image();
    let disk = raw(file.path());
    let mut memory = vec![0; 3000];
    let slices: Vec<_> = memory.chunks_mut(1).map(Slice::from).collect();
    disk.read(&slices, 512).unwrap();
    disk.write(&slices, 64 * 512).unwrap();
    let now = fs::read(file.path()).unwrap();
    assert!(now[64 * 512..][..3000] == now[512..][..3000]);
    assert_eq!(now[64 * 512..][1024..1026], [3; 2]);
}

#[test]
fn long_writes_to_the_page_cache_go_in_pieces() {
    let mut memory = vec![0; 3 * WRITE_AT_ONCE];
    let mut rest = memory.as_mut_slice();
    let lengths = [512, WRITE_AT_ONCE - 512, WRITE_AT_ONCE + 1, 512];
    let slices = lengths.map(|length| {
        let (slice, more) = std::mem::take(&mut rest).split_at_mut(length);
        rest = more;
        Slice::from(slice)
    });
    let taken = |slices: &[Slice<'_>]| {
        first(slices, WRITE_AT_ONCE, |s| {
            assert_eq!(s[0].ptr_guard().as_ptr(), slices[0].ptr_guard().as_ptr());
            Ok(s.iter().map(Slice::len).collect::<Vec<_>>())
        })
        .unwrap()
    };
    // As many as fit exactly, the beginning of one that is too long, all of what is short.
    assert_eq!(taken(&slices), lengths[..2]);
    assert_eq!(taken(&slices[2..]), [WRITE_AT_ONCE]);
    assert_eq!(taken(&slices[3..]), [512]);

    // And they arrive whole, in order.
    let file = image();
    file.as_file().set_len(1 << 20).unwrap();
    let disk = raw(file.path());
    let mut sent: Vec<u8> = (0..600 << 10).map(|i: u32| (i / 1000) as u8).collect();
    let (a, b) = sent.split_at_mut(333_312);
    disk.write(&[Slice::from(a), Slice::from(b)], 4096).unwrap();
    assert_eq!(fs::read(file.path()).unwrap()[4096..][..sent.len()], sent);
}

#[test]
fn images_that_cannot_be_disks_are_named_with_what_to_do() {
    let error = |path: &Path, options| RawDisk::open(path, options).err().unwrap().to_string();
    let plain = RawOptions::default();
    let missing = error(Path::new("/nonexistent/disk"), plain);
    assert!(missing.contains("/nonexistent/disk"), "{missing}");
    assert!(error(Path::new("/dev/null"), plain).contains("neither a file nor"));
    let file = NamedTempFile::new().unwrap();
    let small = error(file.path(), plain);
    assert!(
        small.contains("0 bytes") && small.contains("truncate"),
        "{small}"
    );
    file.as_file().set_len(4096).unwrap();
    file.as_file().write_all(QCOW2_MAGIC).unwrap();
    let qcow2 = error(file.path(), plain);
    assert!(qcow2.contains("format=qcow2") && qcow2.contains("qemu-img convert"));
    let any = RawOptions {
        any_content: true,
        ..plain
    };
    let first = RawDisk::open(file.path(), any).unwrap();
    let used = error(file.path(), any);
    assert!(used.contains("in use by another process"), "{used}");
    drop(first);
    let readonly = RawOptions {
        readonly: true,
        ..any
    };
    let _one = RawDisk::open(file.path(), readonly).unwrap();
    let _two = RawDisk::open(file.path(), readonly).unwrap();
    assert!(RawDisk::open(file.path(), any).is_err());
}

#[test]
fn bytes_beyond_the_last_whole_sector_are_not_the_guests() {
    let file = image();
    file.as_file().set_len(SECTORS * 512 + 100).unwrap();
    assert_eq!(raw(file.path()).shape().size, SECTORS * 512);
}

pub(super) fn qcow2_image(size: u64) -> NamedTempFile {
    use imago::qcow2::{Qcow2, Qcow2CreateBuilder};
    use imago::{FormatCreateBuilder, file};
    let temporary = NamedTempFile::new().unwrap();
    let options = File::options().read(true).write(true).clone();
    let storage = file::File::try_from(options.open(temporary.path()).unwrap()).unwrap();
    let builder: Qcow2CreateBuilder<file::File> = Qcow2::create_builder(storage);
    builder.size(size).create().unwrap();
    temporary
}

#[test]
fn a_qcow2_image_is_a_disk() {
    let file = qcow2_image(1 << 30);
    let disk = Arc::new(Qcow2Disk::open(file.path(), false, false).unwrap());
    assert_eq!(disk.shape().size, 1 << 30);
    with_rig(disk, &settings(), 0, |mut rig| {
        let far = (1 << 21) - 2;
        rig.memory
            .write_slice(&[0x61; 1024], GuestAddress(DATA))
            .unwrap();
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, far, &[(DATA, 1024, READ)]), 0);
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), 0);
        let zero = [(far, 1, 0)];
        assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &zero), 0);
        assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 1 << 10, 0)]), 0);
        let buffers = [(DATA + 0x1000, 700, WRITE), (DATA + 0x2000, 324, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, far, &buffers), 0);
        let (head, tail) = (rig.data(DATA + 0x1000, 700), rig.data(DATA + 0x2000, 324));
        assert_eq!(head[..512], [0; 512]);
        assert_eq!(head[512..], [0x61; 188]);
        assert_eq!(tail, [0x61; 324]);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, far + 2, &buffers), 1);
    });
    // What was flushed is there when the image is opened again.
    let disk = Arc::new(Qcow2Disk::open(file.path(), true, false).unwrap());
    assert!(file.as_file().metadata().unwrap().len() < 8 << 20, "sparse");
    with_rig(disk, &settings(), 0, |mut rig| {
        let buffer = [(DATA, 512, WRITE)];
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, (1 << 21) - 1, &buffer), 0);
        assert_eq!(rig.data(DATA, 512), [0x61; 512]);
    });
}

#[test]
fn ranges_of_a_qcow2_image_of_version_2_are_zeroed_too() {
    let file = qcow2_image(1 << 20);
    // The version stands at 4; what version 3 added to the header is zero, which ends that of version 2.
    let mut bytes = fs::read(file.path()).unwrap();
    bytes[4..8].copy_from_slice(&2u32.to_be_bytes());
    fs::write(file.path(), bytes).unwrap();
    let disk = Arc::new(Qcow2Disk::open(file.path(), false, false).unwrap());
    with_rig(disk, &settings(), 0, |mut rig| {
        for flags in [0, 1] {
            let data = vec![0x61; 160 << 10];
            rig.memory.write_slice(&data, GuestAddress(DATA)).unwrap();
            let written = [(DATA, data.len() as u32, READ)];
            assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &written), 0);
            let zero = [(1, 318, flags)];
            assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &zero), 0);
            let buffer = [(DATA, data.len() as u32, WRITE)];
            assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &buffer), 0);
            let mut expected = data;
            expected[512..319 * 512].fill(0);
            assert!(rig.data(DATA, expected.len()) == expected, "{flags}");
        }
        assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 256, 0)]), 0);
    });
}

#[test]
fn qcow2_images_that_name_other_files_or_are_none_are_refused() {
    let error = |path: &Path| {
        let opened = Qcow2Disk::open(path, false, false);
        opened.err().unwrap().to_string()
    };
    assert!(error(image().path()).contains("cannot be used as qcow2"));
    let file = qcow2_image(1 << 20);
    let _held = Qcow2Disk::open(file.path(), false, false).unwrap();
    assert!(error(file.path()).contains("in use by another process"));
    drop(_held);
    // A backing file's name at 0x1000, said in the header (offset and length at 8 and 16).
    let mut bytes = fs::read(file.path()).unwrap();
    bytes[8..16].copy_from_slice(&0x400u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&11u32.to_be_bytes());
    bytes[0x400..0x40b].copy_from_slice(b"/etc/shadow");
    fs::write(file.path(), bytes).unwrap();
    let refused = error(file.path());
    assert!(refused.contains("backing file /etc/shadow"), "{refused}");
}
