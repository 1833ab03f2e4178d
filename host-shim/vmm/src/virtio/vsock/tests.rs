//! The device's queues: packets in and out of buffers, and what a guest can do wrong with them.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::packet::{HOST_CID, Op, STREAM};
use super::*;
use crate::virtio::queue::tests::{Driver, device_queue, memories, shared};
use crate::virtio::rings_len;
use crate::virtio::window::tests::BASE;

const CID: u32 = 5;
const PORT: u32 = 77;
const RX_BUFFER: u64 = BASE + 0x2_0000;
const TX_BUFFER: u64 = BASE + 0x4_0000;
const EVENT_BUFFER: u64 = BASE + 0x6_0000;

type Mock<'a> = MockSplitQueue<'a, GuestMemoryMmap>;

struct Guest<'a> {
    driver: &'a GuestMemoryMmap,
    queues: [Mock<'a>; 3],
    port: Box<dyn Handler>,
}

fn buffer(address: u64, length: usize, writable: bool) -> RawDescriptor {
    let flags = if writable {
        VRING_DESC_F_WRITE as u16
    } else {
        0
    };
    RawDescriptor::from(Descriptor::new(address, length as u32, flags, 0))
}

fn header(op: Op, len: usize) -> Header {
    Header {
        src_cid: u64::from(CID).into(),
        dst_cid: HOST_CID.into(),
        src_port: 1000.into(),
        dst_port: PORT.into(),
        len: (len as u32).into(),
        kind: STREAM.into(),
        op: (op as u16).into(),
        buf_alloc: 65536.into(),
        ..Header::default()
    }
}

/// Starts `device` for a guest.
fn with_guest(device: &mut Vsock, test: impl FnOnce(Guest<'_>)) {
    let (driver, memory) = memories();
    let shared = shared();
    let queues =
        [0, 1, 2].map(|n| MockSplitQueue::create(&driver, GuestAddress(BASE + n * 0x4000), 16));
    let device_queues = (0..)
        .zip(&queues)
        .map(|(index, mock)| device_queue(mock, index, memory.clone(), shared.clone()))
        .collect();
    let mut handlers = device.start(0, device_queues, &shared).unwrap();
    let port = handlers.pop().unwrap();
    test(Guest {
        driver: &driver,
        queues,
        port,
    });
}

fn with_device(test: impl FnOnce(&mut Vsock, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.sock");
    test(&mut Vsock::new(CID, &path).unwrap(), &path);
    assert!(!path.exists(), "its socket goes with the device");
}

impl Guest<'_> {
    fn send(&mut self, packet: &[u8], descriptors: &[(u64, usize)]) -> Result<(), Fault> {
        self.driver
            .write_slice(packet, GuestAddress(TX_BUFFER))
            .unwrap();
        let chain: Vec<_> = descriptors
            .iter()
            .map(|(address, length)| buffer(*address, *length, false))
            .collect();
        self.queues[1].build_desc_chain(&chain).unwrap();
        self.port.doorbell(TRANSMIT)
    }

    fn send_packet(&mut self, header: Header, data: &[u8]) -> Result<(), Fault> {
        let packet = [header.as_bytes(), data].concat();
        self.send(&packet, &[(TX_BUFFER, packet.len())])
    }

    /// Posts a receive buffer in two parts and returns what is in it if it is used.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let before = self.queues[0].used().idx().load();
        self.queues[0]
            .build_desc_chain(&[
                buffer(RX_BUFFER, 20, true),
                buffer(RX_BUFFER + 0x1000, 4076, true),
            ])
            .unwrap();
        self.port.event(0).unwrap();
        if self.queues[0].used().idx().load() == before {
            return None;
        }
        let mut all = vec![0; 4096];
        let (one, two) = all.split_at_mut(20);
        self.driver
            .read_slice(one, GuestAddress(RX_BUFFER))
            .unwrap();
        self.driver
            .read_slice(two, GuestAddress(RX_BUFFER + 0x1000))
            .unwrap();
        let header = Header::default();
        let mut header = header;
        header.as_mut_bytes().copy_from_slice(&all[..HEADER_SIZE]);
        let end = HEADER_SIZE + header.len.get() as usize;
        let entry = self.queues[0]
            .used()
            .ring()
            .ref_at(usize::from(before % 16));
        assert_eq!(entry.unwrap().load().len(), end as u32);
        Some((header, all[HEADER_SIZE..end].to_vec()))
    }
}

fn server(path: &Path) -> UnixListener {
    UnixListener::bind(format!("{}_{PORT}", path.display())).unwrap()
}

#[test]
fn packets_go_through_queues_both_ways() {
    with_device(|device, path| {
        let server = server(path);
        with_guest(device, |mut guest| {
            guest.send_packet(header(Op::Request, 0), &[]).unwrap();
            let (mut host, _) = server.accept().unwrap();
            let (response, _) = guest.receive().unwrap();
            assert_eq!(response.op.get(), Op::Response as u16);
            // A header in two parts, data in two more.
            let packet = [header(Op::Data, 10).as_bytes(), b"0123456789"].concat();
            let parts = [(0, 7), (7, 37), (44, 3), (47, 7)];
            let parts = parts.map(|(at, length)| (TX_BUFFER + at, length));
            guest.send(&packet, &parts).unwrap();
            let mut got = [0; 10];
            host.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"0123456789");
            host.write_all(b"answer").unwrap();
            let (data, bytes) = guest.receive().unwrap();
            assert_eq!(
                (data.op.get(), &bytes[..]),
                (Op::Data as u16, &b"answer"[..])
            );
            assert!(guest.receive().is_none());
        });
    });
}

#[test]
fn packets_wait_for_buffers() {
    with_device(|device, path| {
        with_guest(device, |mut guest| {
            let mut caller = UnixStream::connect(path).unwrap();
            caller.write_all(b"CONNECT 1\n").unwrap();
            guest.port.event(0).unwrap();
            assert_eq!(guest.queues[0].used().idx().load(), 0);
            let (request, _) = guest.receive().unwrap();
            assert_eq!(request.op.get(), Op::Request as u16);
        });
    });
}

#[test]
fn data_behind_the_packet_is_not_the_packets() {
    with_device(|device, path| {
        let server = server(path);
        with_guest(device, |mut guest| {
            guest.send_packet(header(Op::Request, 0), &[]).unwrap();
            let (mut host, _) = server.accept().unwrap();
            guest.send_packet(header(Op::Data, 3), b"abcdef").unwrap();
            guest.send_packet(header(Op::Data, 1), b"g").unwrap();
            let mut got = [0; 4];
            host.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"abcg");
        });
    });
}

#[test]
fn a25_malformed_buffers_are_faults() {
    let short = HEADER_SIZE - 1;
    for parts in [
        vec![(TX_BUFFER, short)],
        vec![(TX_BUFFER, 4), (TX_BUFFER, 4)],
        vec![(0x8000_0000, 64)],
        vec![(TX_BUFFER, HEADER_SIZE), (0x8000_0000, 64)],
        vec![(u64::MAX, 64)],
    ] {
        with_device(|device, _| {
            with_guest(device, |mut guest| {
                let packet = [header(Op::Data, 64).as_bytes(), &[0; 64]].concat();
                guest.send(&packet, &parts).unwrap_err();
            });
        });
    }
    // A receive buffer that takes no header, and one outside the window, once there is something to receive.
    for parts in [
        [(RX_BUFFER, short), (RX_BUFFER, 0)],
        [(0x8000_0000, 4096), (RX_BUFFER, 64)],
    ] {
        with_device(|device, _| {
            with_guest(device, |mut guest| {
                let parts = parts.map(|(address, length)| buffer(address, length, true));
                guest.queues[0].build_desc_chain(&parts).unwrap();
                guest.port.doorbell(RECEIVE).unwrap();
                guest.send_packet(header(Op::Request, 0), &[]).unwrap_err();
            });
        });
    }
}

#[test]
fn a_driver_that_starts_again_hears_that_its_connections_are_gone() {
    with_device(|device, _| {
        for (run, told) in [(0, 0), (1, 1), (2, 1)] {
            with_guest(device, |mut guest| {
                let filled = [0xff; 4];
                guest
                    .driver
                    .write_slice(&filled, GuestAddress(EVENT_BUFFER))
                    .unwrap();
                guest.queues[2]
                    .build_desc_chain(&[buffer(EVENT_BUFFER, 4, true)])
                    .unwrap();
                guest.port.doorbell(EVENT).unwrap();
                guest.port.doorbell(EVENT).unwrap();
                assert_eq!(guest.queues[2].used().idx().load(), told, "run {run}");
                let mut event = [0; 4];
                guest
                    .driver
                    .read_slice(&mut event, GuestAddress(EVENT_BUFFER))
                    .unwrap();
                assert_eq!(event, if told == 1 { [0; 4] } else { filled });
            });
        }
    });
}

#[test]
fn the_window_holds_all_that_linux_posts_before_it_sends() {
    with_device(|device, _| {
        let (rings, need) = (rings_len(device.queue_sizes()), device.buffers());
        let posted = 128 * 4096 + 8 * 2048;
        assert!(need.least >= posted + 65536);
        let packets = u64::from(device.queue_sizes()[usize::from(TRANSMIT)]);
        assert!(need.usual >= posted + packets * (65536 + 2 * 2048));
        assert_eq!((rings + need.least).next_power_of_two(), 1 << 20);
        assert_eq!((rings + need.usual).next_power_of_two(), 2 << 20);
    });
}

#[test]
fn the_guest_reads_its_context_id() {
    with_device(|device, _| {
        let mut config = [0; 12];
        device.read_config(0, &mut config);
        assert_eq!(config, [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(device.config_len(), 8);
    });
}

#[test]
fn paths_that_cannot_serve_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.sock");
    let message = |path: &Path| Vsock::new(CID, path).err().unwrap().to_string();
    let _first = Vsock::new(CID, &path).unwrap();
    assert!(message(&path).contains("in use"), "{}", message(&path));
    let long = folder.path().join("x".repeat(PATH_MAX));
    assert!(message(&long).contains("at most 96"), "{}", message(&long));
    let nowhere = folder.path().join("no/folder");
    assert!(message(&nowhere).contains("cannot make the vsock socket"));
}

#[test]
fn a_driver_that_never_stops_sending_keeps_no_thread() {
    let folder = tempfile::tempdir().unwrap();
    let mut device = Vsock::new(CID, &folder.path().join("vm.sock")).unwrap();
    let (memory, window) = memories();
    let (driver, shared) = (Driver::new(&memory, BASE, 16), shared());
    let queues = vec![driver.device(TRANSMIT, window, shared.clone())];
    let mut port = device.start(0, queues, &shared).unwrap().remove(0);
    // Of somebody else: nothing comes of it.
    let mut packet = header(Op::Request, 0);
    packet.src_cid = 99.into();
    memory
        .write_slice(packet.as_bytes(), GuestAddress(TX_BUFFER))
        .unwrap();
    driver.post(&[(TX_BUFFER, HEADER_SIZE as u32, 0)]);
    driver.flood(TURN as u16, || port.doorbell(TRANSMIT).unwrap());
}

#[test]
fn after_many_packets_for_the_guest_the_thread_looks_for_its_end() {
    with_device(|device, path| {
        let server = server(path);
        let (memory, window) = memories();
        let shared = shared();
        let receive = Driver::new(&memory, BASE, 2 * TURN as u16);
        let transmit = Driver::new(&memory, BASE + 0x1_0000, 16);
        let queues = [(RECEIVE, &receive), (TRANSMIT, &transmit)]
            .map(|(index, driver)| driver.device(index, window.clone(), shared.clone()));
        let mut port = device.start(0, queues.into(), &shared).unwrap().remove(0);
        memory
            .write_slice(header(Op::Request, 0).as_bytes(), GuestAddress(TX_BUFFER))
            .unwrap();
        transmit.post(&[(TX_BUFFER, HEADER_SIZE as u32, 0)]);
        port.doorbell(TRANSMIT).unwrap();
        let (mut host, _) = server.accept().unwrap();
        // The response, and a packet for each byte.
        let packets = TURN + 5;
        host.write_all(&vec![0; packets - 1]).unwrap();
        let writable = VRING_DESC_F_WRITE as u16;
        receive.post(&[(RX_BUFFER, HEADER_SIZE as u32 + 1, writable)]);
        (1..packets).for_each(|_| receive.post_head(0));
        port.event(0).unwrap();
        assert_eq!(usize::from(receive.used()), TURN);
        let doorbell = port.queues()[0].doorbell();
        assert_eq!(doorbell.read().unwrap(), 1, "it comes back by itself");
        port.doorbell(RECEIVE).unwrap();
        assert_eq!(usize::from(receive.used()), packets);
    });
}
