//! The device: what it offers by carrier, its configuration, whom it starts, and how it says no.

use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_CSUM;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;

use super::backend::Received;
use super::*;
use crate::virtio::queue::tests::{device_queue, memories, shared};
use crate::virtio::rings_len;
use crate::virtio::window::tests::BASE;

fn over_socket(options: NetOptions) -> (Net, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Net::connected(ours, options).unwrap(), theirs)
}

#[test]
fn a_stream_offers_no_offloads() {
    let (net, _other) = over_socket(NetOptions::default());
    let offered =
        feature(VIRTIO_NET_F_MAC) | feature(VIRTIO_NET_F_STATUS) | feature(VIRTIO_NET_F_MRG_RXBUF);
    assert_eq!(net.features(), offered);
    assert_eq!(net.queue_sizes(), [256, 256]);
}

#[test]
fn the_configuration_tells_address_link_and_mtu() {
    let options = NetOptions {
        mac: Some([2, 1, 2, 3, 4, 5]),
        mtu: Some(9000),
        queue_size: Some(64),
        ..NetOptions::default()
    };
    let (net, _other) = over_socket(options);
    assert_ne!(net.features() & feature(VIRTIO_NET_F_MTU), 0);
    assert_eq!(net.queue_sizes(), [64, 64]);
    let mut config = [0; 12];
    net.read_config(0, &mut config);
    assert_eq!(config, [2, 1, 2, 3, 4, 5, 1, 0, 1, 0, 0x28, 0x23]);
    let mut beyond = [0xaa; 4];
    net.read_config(12, &mut beyond);
    assert_eq!(beyond, [0xaa; 4]);
}

#[test]
fn addresses_made_up_are_of_one_local_device_and_differ() {
    let addresses: Vec<_> = (0..8).map(|_| random_mac().unwrap()).collect();
    assert!(addresses.iter().all(|mac| mac[0] & 3 == 2));
    assert!(addresses.iter().any(|mac| mac != &addresses[0]));
}

#[test]
fn a_listener_without_another_side_has_no_link_until_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let mut net = Net::socket(&path, true, NetOptions::default()).unwrap();
    let status = |net: &Net| {
        let mut status = [0; 2];
        net.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!(status(&net), 0);
    let (driver, memory) = memories();
    let shared = shared();
    let queues = [0, 1].map(|n| {
        let place = GuestAddress(BASE + n * 0x4000);
        MockSplitQueue::create(&driver, place, 16)
    });
    let mine = (0..)
        .zip(&queues)
        .map(|(index, mock)| device_queue(mock, index, memory.clone(), shared.clone()))
        .collect();
    let mut handlers = net.start(0, mine, &shared).unwrap();
    let _other = UnixStream::connect(&path).unwrap();
    handlers[0].event(0).unwrap();
    assert_eq!(status(&net), 1);
    assert_eq!((shared.generation(), shared.take_isr()), (1, 2));
}

#[test]
fn a_frame_that_a_reset_cuts_does_not_upset_the_next_run() {
    use std::io::Write;
    let (mut net, mut other) = over_socket(NetOptions::default());
    let shared = shared();
    let run = |net: &mut Net, test: &mut dyn FnMut(&mut dyn Handler)| {
        let (driver, memory) = memories();
        let rx = MockSplitQueue::create(&driver, GuestAddress(BASE), 16);
        let queue = device_queue(&rx, 0, memory, shared.clone());
        let mut handlers = net.start(0, vec![queue], &shared).unwrap();
        test(&mut *handlers[0]);
    };
    let frame = |byte: u8| [&60u32.to_be_bytes()[..], &[byte; 60]].concat();
    other
        .write_all(&[frame(1), frame(2)].concat()[..100])
        .unwrap();
    run(&mut net, &mut |handler| handler.doorbell(0).unwrap());
    other
        .write_all(&[frame(1), frame(2)].concat()[100..])
        .unwrap();
    run(&mut net, &mut |handler| handler.event(0).unwrap());
    let Carrier::Stream(stream) = &net.carrier else {
        panic!("a stream");
    };
    let mut stream = lock(stream);
    let mut room = [0; 128];
    for byte in [1, 2] {
        stream.expect().unwrap();
        let received = stream.receive(&[(&mut room[..]).into()]).unwrap();
        assert_eq!(received, Received::Frame(72));
        assert_eq!(room[12..72], [byte; 60]);
    }
}

#[test]
fn the_window_holds_all_receive_buffers_and_long_packets_on_their_way_out() {
    let (net, _other) = over_socket(NetOptions::default());
    let need = net.buffers();
    assert!(need.least >= 256 * 4096 + 65536);
    let window = rings_len(net.queue_sizes()) + need.usual;
    assert_eq!(window.next_power_of_two(), 2 << 20);
    let short = NetOptions {
        queue_size: Some(64),
        ..NetOptions::default()
    };
    let (net, _other) = over_socket(short);
    let window = rings_len(net.queue_sizes()) + net.buffers().least;
    assert_eq!(window.next_power_of_two(), 512 << 10);
}

#[test]
fn several_queues_need_a_tap_interface() {
    let options = NetOptions {
        queues: Some(2),
        ..NetOptions::default()
    };
    for error in [
        Net::user(options, &[], &[]).err().unwrap(),
        Net::socket(Path::new("/x"), true, options).err().unwrap(),
    ] {
        assert_eq!(
            error.to_string(),
            "queues=2 needs tap=NAME: other networks have one stream of frames; leave it out"
        );
    }
}

#[test]
fn interfaces_that_cannot_serve_are_refused_by_name() {
    let error = |name: &str, queues| {
        let options = NetOptions {
            queues,
            ..NetOptions::default()
        };
        Net::tap(name, false, options).err().unwrap().to_string()
    };
    let missing = error("no-such-tap", None);
    assert!(
        missing.contains("no TAP interface no-such-tap"),
        "{missing}"
    );
    assert!(
        missing.contains("ip tuntap add no-such-tap mode tap`"),
        "{missing}"
    );
    assert!(error("no-such-tap", Some(2)).contains("mode tap multi_queue`"));
    assert!(error("lo", None).contains("lo is no TAP interface"));
}

#[test]
fn refusals_of_the_kernel_say_what_to_do() {
    use crate::virtio::net::tap::explain;
    use porthole_uapi::tap::{OpenError, TUN_DEVICE};
    let said = |step, errno| {
        let source = io::Error::from_raw_os_error(errno);
        explain("tap0", 2, OpenError { step, source }).to_string()
    };
    assert!(said(TUN_DEVICE, libc::ENOENT).contains("load the tun module"));
    assert!(said(TUN_DEVICE, libc::EACCES).contains("check the permissions"));
    assert!(said("TUNSETIFF", libc::EPERM).contains("CAP_NET_ADMIN"));
    assert!(said("TUNSETIFF", libc::EBUSY).contains("in use"));
    assert!(said("TUNSETIFF", libc::EINVAL).contains("without multi_queue"));
    assert!(said("TUNSETIFF", libc::ENOMEM).contains("TUNSETIFF"));
}

#[test]
fn what_a_tap_interface_offers_can_be_granted() {
    // Each guest offload is one that the control queue and the kernel know.
    let guest = (TAP_FEATURES | USO) & GUEST_OFFLOADS;
    assert_eq!(guest, GUEST_OFFLOADS);
    assert_ne!(TAP_FEATURES & feature(VIRTIO_NET_F_GUEST_CSUM), 0);
    assert_eq!(TAP_FEATURES & USO, 0);
}
