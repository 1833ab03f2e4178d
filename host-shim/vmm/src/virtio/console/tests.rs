use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::virtio::queue::tests::{Driver, device_queue, memories, shared};
use crate::virtio::window::tests::BASE;

const RX_RINGS: u64 = BASE;
const TX_RINGS: u64 = BASE + 0x4000;
const RX_BUFFER: u64 = BASE + 0x1_0000;
const TX_BUFFER: u64 = BASE + 0x2_0000;

struct Sent(Arc<Mutex<Vec<u8>>>);

impl Write for Sent {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn buffer(address: u64, length: u32, writable: bool) -> RawDescriptor {
    let flags = if writable {
        VRING_DESC_F_WRITE as u16
    } else {
        0
    };
    RawDescriptor::from(Descriptor::new(address, length, flags, 0))
}

fn with_port(
    output: Output,
    input: Arc<Input>,
    test: impl FnOnce(
        &GuestMemoryMmap,
        &MockSplitQueue<GuestMemoryMmap>,
        &MockSplitQueue<GuestMemoryMmap>,
        &mut dyn Handler,
    ),
) {
    let (driver, memory) = memories();
    let rx = MockSplitQueue::create(&driver, GuestAddress(RX_RINGS), 8);
    let tx = MockSplitQueue::create(&driver, GuestAddress(TX_RINGS), 8);
    let shared = shared();
    let queues = vec![
        device_queue(&rx, RECEIVE, memory.clone(), shared.clone()),
        device_queue(&tx, TRANSMIT, memory, shared.clone()),
    ];
    let mut console = Console::new(input, output);
    let mut handlers = console.start(0, queues, &shared).unwrap();
    assert_eq!(handlers.len(), 1);
    test(&driver, &rx, &tx, &mut *handlers[0]);
}

#[test]
fn a_driver_that_never_stops_sending_keeps_no_thread() {
    let (memory, window) = memories();
    let driver = Driver::new(&memory, BASE, 16);
    let queue = driver.device(TRANSMIT, window, shared());
    let output = Output::Stream(Box::new(io::sink()));
    let mut console = Console::new(Arc::new(Input::new().unwrap()), output);
    let mut ports = console.start(0, vec![queue], &shared()).unwrap();
    // One that says nothing takes a turn, too.
    driver.post(&[(TX_BUFFER, 0, 0)]);
    driver.flood(TURN, || ports[0].doorbell(TRANSMIT).unwrap());
}

#[test]
fn a_buffer_longer_than_a_turn_is_sent_whole_and_in_order() {
    let (memory, window) = memories();
    let driver = Driver::new(&memory, BASE, 16);
    let queue = driver.device(TRANSMIT, window, shared());
    let sent = Arc::new(Mutex::new(Vec::new()));
    let output = Output::Stream(Box::new(Sent(sent.clone())));
    let mut console = Console::new(Arc::new(Input::new().unwrap()), output);
    let mut ports = console.start(0, vec![queue], &shared()).unwrap();
    driver.post(&[(TX_BUFFER, 512 << 10, 0); 3]);
    driver
        .memory
        .write_obj(7u8, GuestAddress(TX_BUFFER))
        .unwrap();
    ports[0].doorbell(TRANSMIT).unwrap();
    assert_eq!(driver.used(), 0, "somebody else's turn");
    ports[0].doorbell(TRANSMIT).unwrap();
    assert_eq!(driver.used(), 1);
    let sent = lock(&sent);
    assert_eq!(sent.len(), 3 * (512 << 10));
    assert!(sent.iter().step_by(512 << 10).all(|b| *b == 7));
}

#[test]
fn a_driver_that_takes_input_in_buffers_without_room_keeps_no_thread() {
    let (memory, window) = memories();
    let driver = Driver::new(&memory, BASE, 16);
    let queue = driver.device(RECEIVE, window, shared());
    let input = Arc::new(Input::new().unwrap());
    assert_eq!(input.push(b"typed"), 5);
    let mut console = Console::new(input, Output::Stream(Box::new(io::sink())));
    let mut ports = console.start(0, vec![queue], &shared()).unwrap();
    driver.post(&[(RX_BUFFER, 0, VRING_DESC_F_WRITE as u16)]);
    driver.flood(TURN, || ports[0].doorbell(RECEIVE).unwrap());
}

#[test]
fn what_the_guest_sends_comes_out() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let output = Output::Stream(Box::new(Sent(sent.clone())));
    with_port(
        output,
        Arc::new(Input::new().unwrap()),
        |driver, _, tx, port| {
            let text = vec![b'x'; 3 * PIECE + 17];
            driver.write_slice(&text, GuestAddress(TX_BUFFER)).unwrap();
            tx.build_desc_chain(&[buffer(TX_BUFFER, text.len() as u32, false)])
                .unwrap();
            port.doorbell(TRANSMIT).unwrap();
            assert_eq!(*lock(&sent), text);
            assert_eq!(tx.used().idx().load(), 1);
        },
    );
}

#[test]
fn input_waits_for_a_buffer_and_fills_it() {
    let input = Arc::new(Input::new().unwrap());
    let output = Output::Stream(Box::new(io::sink()));
    with_port(output, input.clone(), |driver, rx, _, port| {
        assert_eq!(input.push(b"typed"), 5);
        port.event(0).unwrap();
        assert_eq!(rx.used().idx().load(), 0);
        rx.build_desc_chain(&[buffer(RX_BUFFER, 4, true)]).unwrap();
        port.doorbell(RECEIVE).unwrap();
        let mut data = [0; 4];
        driver
            .read_slice(&mut data, GuestAddress(RX_BUFFER))
            .unwrap();
        assert_eq!(&data, b"type");
        assert!(!input.is_empty(), "one byte is left");
    });
}

#[test]
fn an_echo_larger_than_the_buffer_is_held_up_and_goes_on() {
    let input = Arc::new(Input::new().unwrap());
    with_port(
        Output::Echo(input.clone()),
        input.clone(),
        |_, rx, tx, port| {
            let length = INPUT_MAX as u32 + 100;
            tx.build_desc_chain(&[buffer(TX_BUFFER, length, false)])
                .unwrap();
            port.doorbell(TRANSMIT).unwrap();
            assert_eq!(tx.used().idx().load(), 0, "not taken whole");
            rx.build_desc_chain(&[buffer(RX_BUFFER, 4096, true)])
                .unwrap();
            port.doorbell(RECEIVE).unwrap();
            assert_eq!(rx.used().idx().load(), 1);
            assert_eq!(tx.used().idx().load(), 1);
        },
    );
}

#[test]
fn input_beyond_its_room_is_not_taken() {
    let input = Input::new().unwrap();
    assert_eq!(input.push(&vec![0; INPUT_MAX + 5]), INPUT_MAX);
    assert_eq!(input.push(b"more"), 0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| input.push_all(b"more"));
        input.consume(4);
        waiting.join().unwrap();
    });
    assert_eq!(input.push(b"x"), 0);
}

#[test]
fn a25_a_buffer_outside_the_window_is_a_fault() {
    let input = Arc::new(Input::new().unwrap());
    let output = Output::Stream(Box::new(io::sink()));
    with_port(output, input.clone(), |_, rx, tx, port| {
        tx.build_desc_chain(&[buffer(0x8000_0000, 64, false)])
            .unwrap();
        assert!(port.doorbell(TRANSMIT).is_err());
        input.push(b"x");
        rx.build_desc_chain(&[buffer(0x8000_0000, 64, true)])
            .unwrap();
        assert!(port.doorbell(RECEIVE).is_err());
    });
}
