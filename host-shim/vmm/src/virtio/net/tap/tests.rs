//! TAP queues whose frames are datagrams of a socket pair, which cuts off what does not fit as silently as the kernel
//! does: frames, who takes part in the traffic, and what a driver that starts again finds. No interface is needed.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MQ,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::virtio::net::{Net, NetOptions, TAP_FEATURES, USO};
use crate::virtio::queue::tests::{Driver, memories, shared};
use crate::virtio::window::tests::BASE;
use crate::virtio::{Handler, VirtioDevice, feature};

const MQ: u64 = feature(VIRTIO_NET_F_CTRL_VQ) | feature(VIRTIO_NET_F_MQ);

/// One queue of an interface, with the other end of its wire.
#[derive(Debug)]
struct Fake {
    ours: UnixDatagram,
    wire: UnixDatagram,
    state: Mutex<FakeState>,
}

#[derive(Debug)]
struct FakeState {
    detached: bool,
    offload: Offload,
    /// Like a kernel since 6.2.
    knows_uso: bool,
    /// What the next calls fail with.
    errors: VecDeque<i32>,
}

impl Fake {
    fn new() -> Arc<Self> {
        let (ours, wire) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        let state = Mutex::new(FakeState {
            detached: false,
            offload: Offload::default(),
            knows_uso: true,
            errors: VecDeque::new(),
        });
        Arc::new(Self { ours, wire, state })
    }

    /// A frame of so many bytes for the guest, header included.
    fn come(&self, length: usize) {
        let frame: Vec<u8> = (0..length).map(|i| i as u8).collect();
        assert_eq!(self.wire.send(&frame).unwrap(), length);
    }

    fn fail_next(&self, errno: i32) {
        lock(&self.state).errors.push_back(errno);
    }

    fn fails(&self) -> io::Result<()> {
        let errno = lock(&self.state).errors.pop_front();
        errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl TapQueue for Fake {
    fn fd(&self) -> RawFd {
        self.ours.as_raw_fd()
    }

    fn read(&self, room: &[Slice<'_>]) -> io::Result<usize> {
        self.fails()?;
        read_vectored(&self.ours, &mut [], room)
    }

    fn write(&self, header: &Header, frame: &[Slice<'_>]) -> io::Result<usize> {
        self.fails()?;
        write_vectored(&self.ours, &header.0, frame)
    }

    fn attach(&self, attach: bool) -> io::Result<()> {
        self.fails()?;
        let mut state = lock(&self.state);
        // The kernel refuses what is so already.
        if state.detached != attach {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        state.detached = !attach;
        Ok(())
    }

    fn set_offload(&self, offload: Offload) -> io::Result<()> {
        self.fails()?;
        let mut state = lock(&self.state);
        if state.detached {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        if offload.uso && !state.knows_uso {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        state.offload = offload;
        Ok(())
    }
}

fn fakes<const N: usize>() -> ([Arc<Fake>; N], Vec<Arc<dyn TapQueue>>) {
    let fakes: [Arc<Fake>; N] = std::array::from_fn(|_| Fake::new());
    let taps = fakes.iter().map(|fake| fake.clone() as _).collect();
    (fakes, taps)
}

fn steering<const N: usize>() -> ([Arc<Fake>; N], Arc<Steering>) {
    let (fakes, taps) = fakes();
    (fakes, Arc::new(Steering::new(taps)))
}

fn backend(long: bool, mtu: Option<u16>) -> (Arc<Fake>, TapBackend) {
    let ([fake], steering) = steering();
    (fake, TapBackend::new(steering, 0, long, mtu))
}

/// Which queues the kernel spreads frames over.
fn attached(fakes: &[Arc<Fake>]) -> Vec<bool> {
    let attached = |fake: &Arc<Fake>| !lock(&fake.state).detached;
    fakes.iter().map(attached).collect()
}

/// Receives into parts of so many bytes.
fn receive(backend: &mut TapBackend, parts: usize, each: usize) -> io::Result<Received> {
    let mut memory = vec![0xee; parts * each];
    let room: Vec<Slice<'_>> = memory.chunks_mut(each).map(Slice::from).collect();
    let received = backend.receive(&room);
    drop(room);
    if let Ok(Received::Frame(length)) = received {
        assert!((0..length).all(|i| memory[i] == i as u8));
        assert!(memory[length..].iter().all(|byte| *byte == 0xee));
    }
    received
}

#[test]
fn a_frame_that_the_kernel_cut_off_is_lost() {
    let (fake, mut backend) = backend(false, None);
    for (frame, room, what) in [
        (200, 100, Received::Dropped),
        // It may have been cut: nobody can tell.
        (100, 100, Received::Dropped),
        (99, 100, Received::Frame(99)),
        // The longest there is fills its room and is whole.
        (12 + 1518, 12 + 1518, Received::Frame(12 + 1518)),
    ] {
        fake.come(frame);
        assert_eq!(
            receive(&mut backend, 1, room).unwrap(),
            what,
            "{frame} {room}"
        );
    }
    assert_eq!(receive(&mut backend, 1, 100).unwrap(), Received::Nothing);
}

#[test]
fn a_frame_may_be_as_long_as_mtu_and_offloads_make_it() {
    for (long, mtu, longest) in [
        (false, None, 1500 + 18),
        (false, Some(9000), 9000 + 18),
        (true, None, 65535 + 18),
        (true, Some(1280), 65535 + 18),
    ] {
        let (_fake, mut backend) = backend(long, mtu);
        assert_eq!(backend.expect().unwrap(), Some(HEADER_SIZE + longest));
    }
}

#[test]
fn a_frame_without_a_whole_header_is_lost() {
    let (fake, mut backend) = backend(false, None);
    fake.come(HEADER_SIZE - 1);
    assert_eq!(receive(&mut backend, 1, 100).unwrap(), Received::Dropped);
}

#[test]
fn the_kernel_gets_no_more_parts_than_it_takes() {
    let (fake, mut backend) = backend(false, None);
    fake.come(300);
    let received = receive(&mut backend, VECTORS_MAX + 1, 2).unwrap();
    assert_eq!(received, Received::Frame(300));
    // What lies in the parts that it did not get is cut off, too.
    fake.come(VECTORS_MAX + 1);
    let received = receive(&mut backend, VECTORS_MAX + 10, 1).unwrap();
    assert_eq!(received, Received::Dropped);
}

#[test]
fn a_queue_without_frames_or_detached_is_left_alone_until_there_is_an_event() {
    let (fake, mut backend) = backend(false, None);
    for error in [None, Some(libc::EBADFD)] {
        assert!(backend.expect().unwrap().is_some());
        error.into_iter().for_each(|errno| fake.fail_next(errno));
        assert_eq!(receive(&mut backend, 1, 100).unwrap(), Received::Nothing);
        assert_eq!(backend.expect().unwrap(), None, "{error:?}");
        backend.event(0).unwrap();
    }
    // A signal says nothing about frames, and whatever else fails is an error.
    fake.fail_next(libc::EINTR);
    assert_eq!(receive(&mut backend, 1, 100).unwrap(), Received::Nothing);
    assert!(backend.expect().unwrap().is_some());
    fake.fail_next(libc::EIO);
    receive(&mut backend, 1, 100).unwrap_err();
}

#[test]
fn the_worker_waits_for_edges_of_the_queue() {
    let (fake, backend) = backend(false, None);
    let sources = backend.sources();
    assert_eq!(sources.len(), 1);
    assert_eq!(sources[0].fd, fake.fd());
    assert_eq!(sources[0].events, EventSet::IN | EventSet::EDGE_TRIGGERED);
}

#[test]
fn a_frame_goes_out_behind_its_header_and_is_lost_if_the_kernel_refuses_it() {
    let (fake, mut backend) = backend(false, None);
    let (header, mut bytes) = (Header([7; HEADER_SIZE]), [1u8; 60]);
    let frame: Vec<Slice<'_>> = bytes.chunks_mut(25).map(Slice::from).collect();
    assert_eq!(backend.send(&header, &frame).unwrap(), Sent::Done);
    let mut out = [0; 100];
    assert_eq!(fake.wire.recv(&mut out).unwrap(), 72);
    assert_eq!(out[..72], [&[7; 12][..], &[1; 60]].concat());
    for errno in [libc::EINVAL, libc::EIO, libc::ENOMEM, libc::EAGAIN] {
        fake.fail_next(errno);
        assert_eq!(backend.send(&header, &frame).unwrap(), Sent::Dropped);
    }
    fake.wire.recv(&mut out).unwrap_err();
}

#[test]
fn whether_the_kernel_cuts_udp_is_tried_and_nothing_stays_asked_for() {
    for knows in [true, false] {
        let fake = Fake::new();
        let mut state = lock(&fake.state);
        state.knows_uso = knows;
        state.offload.tso4 = true;
        drop(state);
        assert_eq!(cuts_udp(&*fake).unwrap(), knows);
        assert_eq!(lock(&fake.state).offload, Offload::default());
        let (_, taps) = fakes::<1>();
        let opened = TapQueues { taps, uso: knows };
        let net = Net::over_tap(opened, NetOptions::default()).unwrap();
        let offered = net.features() & (TAP_FEATURES | USO);
        assert_eq!(offered, TAP_FEATURES | if knows { USO } else { 0 });
    }
    let fake = Fake::new();
    fake.fail_next(libc::EINVAL);
    fake.fail_next(libc::EPERM);
    let error = cuts_udp(&*fake).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn a_queue_is_attached_until_its_worker_waits_and_then_while_it_is_active() {
    let (fakes, steering) = steering::<3>();
    steering.set_active(1).unwrap();
    assert_eq!(attached(&fakes), [true; 3], "nobody waits yet");
    steering.watched(1).unwrap();
    assert_eq!(attached(&fakes), [true, false, true]);
    steering.watched(0).unwrap();
    steering.watched(2).unwrap();
    assert_eq!(attached(&fakes), [true, false, false]);
    for (active, now) in [
        (2, [true, true, false]),
        (2, [true, true, false]),
        (3, [true; 3]),
        (1, [true, false, false]),
    ] {
        steering.set_active(active).unwrap();
        assert_eq!(attached(&fakes), now);
    }
    // There is no fourth.
    steering.watched(3).unwrap();
}

#[test]
fn what_the_kernel_refused_is_asked_for_again() {
    let (fakes, steering) = steering::<2>();
    fakes[1].fail_next(libc::ENOMEM);
    steering.watched(1).unwrap_err();
    assert_eq!(attached(&fakes), [true, true]);
    steering.set_active(1).unwrap();
    assert_eq!(attached(&fakes), [true, false]);
    fakes[1].fail_next(libc::ENOMEM);
    steering.restart().unwrap_err();
    steering.restart().unwrap();
    assert_eq!(attached(&fakes), [true, true]);
}

#[test]
fn after_a_restart_all_queues_are_attached_one_is_active_and_nobody_waits() {
    let (fakes, steering) = steering::<3>();
    (0..3).for_each(|index| steering.watched(index).unwrap());
    steering.set_active(2).unwrap();
    steering.restart().unwrap();
    assert_eq!(attached(&fakes), [true; 3]);
    steering.watched(0).unwrap();
    assert_eq!(attached(&fakes), [true; 3], "the others' workers are new");
    steering.watched(1).unwrap();
    assert_eq!(attached(&fakes), [true, false, true], "one is active");
    steering.watched(2).unwrap();
    assert_eq!(attached(&fakes), [true, false, false]);
}

/// A device over two queues, with what is behind them.
fn device() -> ([Arc<Fake>; 2], Net) {
    let (fakes, taps) = fakes();
    let options = NetOptions {
        queues: Some(2),
        ..NetOptions::default()
    };
    let net = Net::over_tap(TapQueues { taps, uso: true }, options).unwrap();
    assert_eq!(net.queue_sizes().len(), 5);
    (fakes, net)
}

/// The driver's side of queue `index`.
fn driver(memory: &GuestMemoryMmap, index: u16) -> Driver<'_> {
    Driver::new(memory, BASE + 0x4000 * u64::from(index), 16)
}

/// A driver starts the device with these queues.
fn start(
    net: &mut Net,
    features: u64,
    queues: Range<u16>,
) -> (GuestMemoryMmap, Vec<Box<dyn Handler>>) {
    let (memory, window) = memories();
    let shared = shared();
    let queues = queues
        .map(|n| driver(&memory, n).device(n, window.clone(), shared.clone()))
        .collect();
    let handlers = net.start(features, queues, &shared).unwrap();
    (memory, handlers)
}

/// The driver asks for so many pairs: the answer, if there is one.
fn ask_for_pairs(driver: &Driver<'_>, pairs: u16, mut ring: impl FnMut()) -> Option<u8> {
    let (command, answer) = (BASE + 0x2_0000, BASE + 0x2_1000);
    let bytes = [[4, 0], pairs.to_le_bytes()].concat();
    let memory = driver.memory;
    memory.write_slice(&bytes, GuestAddress(command)).unwrap();
    let before = driver.used();
    driver.post(&[(command, 4, 0), (answer, 1, 2)]);
    ring();
    (driver.used() != before).then(|| memory.read_obj(GuestAddress(answer)).unwrap())
}

#[test]
fn a_driver_finds_no_offloads_of_an_earlier_one() {
    let (fakes, mut net) = device();
    let (csum, tso4) = (
        feature(VIRTIO_NET_F_GUEST_CSUM),
        feature(VIRTIO_NET_F_GUEST_TSO4),
    );
    for (features, checksum, tso4) in [
        (csum | tso4, true, true),
        (csum, true, false),
        (0, false, false),
    ] {
        start(&mut net, features, 0..2);
        let expected = Offload {
            checksum,
            tso4,
            ..Offload::default()
        };
        assert_eq!(lock(&fakes[0].state).offload, expected);
    }
}

#[test]
fn frames_are_as_long_as_the_offloads_that_were_negotiated() {
    let (_, mut net) = device();
    let expected = |net: &mut Net, features| {
        let shared = shared();
        let mut backend = net.backend(0, features, &shared);
        net.start(features, Vec::new(), &shared).unwrap();
        backend.expect().unwrap()
    };
    for bit in [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6] {
        let long = expected(&mut net, feature(bit));
        assert_eq!(long, Some(HEADER_SIZE + LONG_FRAME));
    }
    let short = expected(&mut net, feature(VIRTIO_NET_F_GUEST_CSUM));
    assert_eq!(short, Some(HEADER_SIZE + 1518));
}

#[test]
fn queues_follow_their_workers_and_the_drivers_wish_until_the_next_driver() {
    let (fakes, mut net) = device();
    for _ in 0..2 {
        let (memory, mut handlers) = start(&mut net, MQ, 0..5);
        assert_eq!(handlers.len(), 2);
        assert_eq!(attached(&fakes), [true, true]);
        handlers[0].doorbell(0).unwrap();
        assert_eq!(attached(&fakes), [true, true]);
        handlers[1].doorbell(2).unwrap();
        assert_eq!(attached(&fakes), [true, false], "one pair is in use");
        let control = driver(&memory, 4);
        for (pairs, now) in [(2, [true, true]), (1, [true, false])] {
            let answer = ask_for_pairs(&control, pairs, || handlers[0].doorbell(4).unwrap());
            assert_eq!(answer, Some(0));
            assert_eq!(attached(&fakes), now);
        }
    }
}

#[test]
fn a_driver_of_one_pair_gets_no_frames_in_the_others_and_its_control_queue_behind_it() {
    let (fakes, mut net) = device();
    let control = feature(VIRTIO_NET_F_CTRL_VQ);
    let (memory, mut handlers) = start(&mut net, control, 0..3);
    assert_eq!(handlers.len(), 1);
    assert_eq!(attached(&fakes), [true, false]);
    // It has no pairs to ask for, and is told so.
    let answer = ask_for_pairs(&driver(&memory, 2), 1, || handlers[0].doorbell(2).unwrap());
    assert_eq!(answer, Some(1));
    // Without a control queue there is no answer.
    let (memory, mut handlers) = start(&mut net, 0, 0..3);
    let answer = ask_for_pairs(&driver(&memory, 2), 1, || handlers[0].doorbell(2).unwrap());
    assert_eq!(answer, None);
    // A pair that the driver did not enable has no worker either.
    start(&mut net, MQ, 0..2);
    assert_eq!(attached(&fakes), [true, false]);
}
