//! The hub against a guest made of packets and a host made of sockets: connections from both sides, their ends,
//! everything that is malformed, and a property test of data and credit over random orders of events.

use std::io::Write;
use std::net::Shutdown;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::credit::BUFFER_SIZE;
use super::super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;

const CID: u64 = 7;
const GUEST_PORT: u32 = 1024;
const HOST_PORT: u32 = 5000;
/// Bytes of data in the guest's receive buffers.
const ROOM: usize = 4052;

struct World {
    hub: Hub,
    folder: TempDir,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.sock");
    let listener = Arc::new(crate::unix::listen(&path).unwrap());
    let hub = Hub::new(CID, path, listener, Arc::default()).unwrap();
    World { hub, folder }
}

fn packet(op: Op, buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID.into(),
        src_port: GUEST_PORT.into(),
        dst_port: HOST_PORT.into(),
        kind: STREAM.into(),
        op: (op as u16).into(),
        buf_alloc: buf_alloc.into(),
        fwd_cnt: fwd_cnt.into(),
        ..Header::default()
    }
}

impl World {
    fn server(&self) -> UnixListener {
        let path = self.folder.path().join(format!("vm.sock_{HOST_PORT}"));
        UnixListener::bind(path).unwrap()
    }

    fn guest(&mut self, header: Header) {
        self.hub.receive(&header, &[]);
    }

    fn guest_data(&mut self, header: Header, data: &[u8]) {
        let mut data = data.to_vec();
        let mut header = header;
        header.len = (data.len() as u32).into();
        let middle = data.len() / 3;
        let (one, two) = data.split_at_mut(middle);
        self.hub.receive(&header, &[one.into(), two.into()]);
    }

    /// The next packet for the guest, after what the sockets have to say.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        // A caller is taken in by the first look, and heard by the second.
        self.hub.poll().unwrap();
        self.hub.poll().unwrap();
        let mut room = vec![0; ROOM];
        let (one, two) = room.split_at_mut(10);
        let header = self.hub.send(&[one.into(), two.into()])?;
        room.truncate(header.len.get() as usize);
        Some((header, room))
    }

    fn ops(&mut self) -> Vec<Op> {
        std::iter::from_fn(|| self.next())
            .map(|(header, _)| Op::new(header.op.get()).unwrap())
            .collect()
    }

    /// A connection that the guest asked for, with this buffer.
    fn connected(&mut self, buffer: u32) -> UnixStream {
        let server = self.server();
        self.guest(packet(Op::Request, buffer, 0));
        let (stream, _) = server.accept().unwrap();
        assert_eq!(self.ops(), [Op::Response]);
        stream
    }

    fn caller(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.path().join("vm.sock")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }
}

fn read_some(mut stream: &UnixStream) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let mut piece = [0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        all.extend(&piece[..count]);
    }
    all
}

fn at_end(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    // Closed with something unread counts as well.
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn the_guest_reaches_a_socket_of_the_host() {
    let mut w = world();
    let mut host = w.connected(1 << 20);
    w.guest_data(packet(Op::Data, 1 << 20, 0), b"from the guest");
    assert_eq!(read_some(&host), b"from the guest");
    host.write_all(b"from the host").unwrap();
    let (header, data) = w.next().unwrap();
    assert_eq!(
        (header.op.get(), &data[..]),
        (Op::Data as u16, &b"from the host"[..])
    );
    assert_eq!(
        (header.src_cid.get(), header.dst_cid.get()),
        (HOST_CID, CID)
    );
    assert_eq!(
        (header.src_port.get(), header.dst_port.get()),
        (HOST_PORT, GUEST_PORT)
    );
    assert_eq!(
        (header.buf_alloc.get(), header.fwd_cnt.get()),
        (BUFFER_SIZE, 14)
    );
    assert!(w.next().is_none());
}

#[test]
fn the_host_reaches_a_port_of_the_guest() {
    let mut w = world();
    let mut caller = w.caller("CONNECT 1024\nearly data");
    let (request, _) = w.next().unwrap();
    assert_eq!(request.op.get(), Op::Request as u16);
    assert_eq!(request.dst_port.get(), GUEST_PORT);
    assert!(w.next().is_none(), "nothing before the answer");
    let host = request.src_port.get();
    let answer = |op, buffer| Header {
        dst_port: host.into(),
        ..packet(op, buffer, 0)
    };
    w.guest(answer(Op::Response, 4096));
    assert_eq!(read_some(&caller), format!("OK {host}\n").as_bytes());
    let (_, data) = w.next().unwrap();
    assert_eq!(data, b"early data");
    caller.set_nonblocking(false).unwrap();
    caller.write_all(b"late").unwrap();
    assert_eq!(w.next().unwrap().1, b"late");
    // The next caller gets another port.
    let _other = w.caller("CONNECT 1024\n");
    assert_ne!(w.next().unwrap().0.src_port.get(), host);
}

#[test]
fn callers_say_connect_and_a_port_or_are_hung_up_on() {
    for line in [
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        "CONNECT 4294967295\n",
        "connect 1\n",
        "GET / HTTP/1.1\r\n",
        "a line that does not end where it should",
        "\n",
        "\u{e4}\n",
    ] {
        let mut w = world();
        let caller = w.caller(line);
        assert!(w.next().is_none(), "{line}");
        assert!(at_end(&caller), "{line}");
    }
    let mut w = world();
    let mut caller = w.caller("CONN");
    assert!(w.next().is_none());
    assert!(!at_end(&caller));
    caller.write_all(b"ECT 1024\r\n").unwrap();
    assert_eq!(w.ops(), [Op::Request]);
}

#[test]
fn callers_that_say_nothing_take_the_places_of_few_and_leave_them() {
    let mut w = world();
    let callers: Vec<_> = (0..CALLERS_MAX).map(|_| w.caller("CONN")).collect();
    assert!(w.next().is_none());
    let late = w.caller("CONNECT 1024\n");
    assert!(w.next().is_none());
    assert!(at_end(&late));
    drop(callers);
    assert!(w.next().is_none());
    let _again = w.caller("CONNECT 1024\n");
    assert_eq!(w.ops(), [Op::Request]);
}

#[test]
fn a_caller_that_does_not_wait_leaves_nothing_behind() {
    let mut w = world();
    let caller = w.caller("CONNECT 1024\n");
    assert_eq!(w.ops(), [Op::Request]);
    drop(caller);
    assert_eq!(w.ops(), [Op::Reset]);
    assert_eq!(w.hub.connections.len(), 0);
}

#[test]
fn a_port_without_a_socket_is_reset() {
    let mut w = world();
    w.guest(packet(Op::Request, 4096, 0));
    let (reset, _) = w.next().unwrap();
    assert_eq!(reset, Header::reset_for(&packet(Op::Request, 4096, 0)));
    assert_eq!(
        (reset.src_port.get(), reset.dst_port.get()),
        (HOST_PORT, GUEST_PORT)
    );
    assert!(w.next().is_none());
}

#[test]
fn packets_that_belong_to_no_connection_are_reset() {
    let mut w = world();
    let odd = |change: fn(&mut Header)| {
        let mut header = packet(Op::Data, 0, 0);
        change(&mut header);
        header
    };
    for header in [
        packet(Op::Response, 0, 0),
        packet(Op::Shutdown, 0, 0),
        packet(Op::Data, 0, 0),
        packet(Op::CreditRequest, 0, 0),
        odd(|h| h.op = 0.into()),
        odd(|h| h.op = 8.into()),
        odd(|h| h.kind = 2.into()),
        odd(|h| h.dst_cid = 3.into()),
        odd(|h| h.len = 1.into()),
        odd(|h| (h.op, h.dst_port) = (1.into(), PORT_ANY.into())),
    ] {
        w.guest(header);
        let (reset, _) = w.next().unwrap();
        assert_eq!(reset, Header::reset_for(&header));
        assert!(w.next().is_none());
    }
    // What nobody would get, or would never end.
    w.guest(odd(|h| h.src_cid = 8.into()));
    w.guest(packet(Op::Reset, 0, 0));
    assert!(w.next().is_none());
    assert_eq!(w.hub.stats.refused.load(Ordering::Relaxed), 12);
}

#[test]
fn resets_that_the_guest_does_not_take_are_bounded() {
    let mut w = world();
    for _ in 0..2 * RESETS_MAX {
        w.guest(packet(Op::Data, 0, 0));
    }
    assert_eq!(w.ops().len(), RESETS_MAX);
}

#[test]
fn wrong_packets_end_their_connection() {
    let wrong: [fn(&mut Header); 5] = [
        |h| h.op = 99.into(),
        |h| h.op = (Op::Request as u16).into(),
        |h| h.op = (Op::Response as u16).into(),
        // Data that is not there.
        |h| h.len = 100.into(),
        |h| (h.op, h.len) = ((Op::CreditUpdate as u16).into(), 1.into()),
    ];
    for change in wrong {
        let mut w = world();
        let host = w.connected(4096);
        let mut header = packet(Op::Data, 4096, 0);
        change(&mut header);
        w.guest(header);
        assert_eq!(w.ops(), [Op::Reset]);
        assert!(at_end(&host));
        assert_eq!(w.hub.connections.len(), 0);
    }
}

#[test]
fn a_guest_that_sends_more_than_it_was_granted_is_reset() {
    let mut w = world();
    let host = w.connected(4096);
    // The socket takes some of it, so this cannot be exceeded at once.
    for _ in 0..64 {
        w.guest_data(packet(Op::Data, 4096, 0), &[1; 65536]);
    }
    assert_eq!(w.ops().last(), Some(&Op::Reset));
    assert_eq!(w.hub.connections.len(), 0);
    assert!(read_some(&host).len() < 64 * 65536);
}

#[test]
fn a_guest_without_room_gets_its_credit_and_is_asked_once_for_more() {
    let mut w = world();
    let mut host = w.connected(5000);
    host.write_all(&[5; 9000]).unwrap();
    let (first, _) = w.next().unwrap();
    let (second, _) = w.next().unwrap();
    assert_eq!(
        (first.len.get(), second.len.get()),
        (ROOM as u32, 5000 - ROOM as u32)
    );
    assert_eq!(w.ops(), [Op::CreditRequest]);
    w.guest(packet(Op::CreditUpdate, 5000, 0));
    assert_eq!(
        w.ops(),
        [],
        "an answer without credit is no reason to ask again"
    );
    w.guest(packet(Op::CreditUpdate, 5000, 3000));
    let (third, _) = w.next().unwrap();
    assert_eq!(third.len.get(), 3000);
    assert_eq!(w.ops(), [Op::CreditRequest]);
}

#[test]
fn the_guest_learns_its_credit_when_it_asks() {
    let mut w = world();
    let _host = w.connected(4096);
    w.guest_data(packet(Op::Data, 4096, 0), &[1; 100]);
    w.guest(packet(Op::CreditRequest, 4096, 0));
    let (update, _) = w.next().unwrap();
    assert_eq!(update.op.get(), Op::CreditUpdate as u16);
    assert_eq!(
        (update.buf_alloc.get(), update.fwd_cnt.get()),
        (BUFFER_SIZE, 100)
    );
    assert!(w.next().is_none());
}

#[test]
fn the_guest_may_end_one_direction_and_then_the_other() {
    let mut w = world();
    let mut host = w.connected(4096);
    w.guest_data(packet(Op::Data, 4096, 0), b"last words");
    let shutdown = |flags: u32| Header {
        flags: flags.into(),
        ..packet(Op::Shutdown, 4096, 0)
    };
    w.guest(shutdown(SHUTDOWN_SEND));
    assert_eq!(read_some(&host), b"last words");
    assert!(at_end(&host));
    host.set_nonblocking(false).unwrap();
    host.write_all(b"an answer").unwrap();
    assert_eq!(w.next().unwrap().1, b"an answer");
    w.guest(shutdown(SHUTDOWN_RECEIVE));
    assert_eq!(w.ops(), [Op::Reset]);
    assert_eq!(w.hub.connections.len(), 0);
}

#[test]
fn data_before_a_shutdown_reaches_a_slow_host() {
    let mut w = world();
    let host = w.connected(4096);
    let mut sent = 0;
    // Until the socket is full and the rest stays with us.
    while w.hub.connections.values().all(Connection::backlog_is_empty) {
        w.guest_data(packet(Op::Data, 4096, 0), &[3; 30000]);
        sent += 30000;
    }
    let both = Header {
        flags: (SHUTDOWN_SEND | SHUTDOWN_RECEIVE).into(),
        ..packet(Op::Shutdown, 4096, 0)
    };
    w.guest(both);
    assert!(!w.ops().contains(&Op::Reset), "not before the host has all");
    let mut got = 0;
    let mut ops = Vec::new();
    while got < sent {
        got += read_some(&host).len();
        ops.extend(w.ops());
    }
    assert_eq!((got, ops.last()), (sent, Some(&Op::Reset)));
    assert!(at_end(&host));
}

#[test]
fn the_host_may_end_one_direction_or_both() {
    let mut w = world();
    let mut host = w.connected(4096);
    host.write_all(b"end").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(w.next().unwrap().1, b"end");
    let (shutdown, _) = w.next().unwrap();
    assert_eq!(
        (shutdown.op.get(), shutdown.flags.get()),
        (Op::Shutdown as u16, SHUTDOWN_SEND)
    );
    w.guest_data(packet(Op::Data, 4096, 3), b"still heard");
    assert_eq!(read_some(&host), b"still heard");
    drop(host);
    let (shutdown, _) = w.next().unwrap();
    assert_eq!(shutdown.flags.get(), SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    // Data that was on its way meanwhile is taken, and lost.
    w.guest_data(packet(Op::Data, 4096, 3), b"unheard");
    w.guest(packet(Op::Reset, 4096, 3));
    assert_eq!(w.ops(), []);
    assert_eq!(w.hub.connections.len(), 0);
}

#[test]
fn connections_are_bounded() {
    let mut w = world();
    let server = w.server();
    let mut accepted = Vec::new();
    for port in 0..CONNECTIONS_MAX as u32 {
        w.guest(Header {
            src_port: port.into(),
            ..packet(Op::Request, 4096, 0)
        });
        accepted.push(server.accept().unwrap());
    }
    assert_eq!(w.ops(), vec![Op::Response; CONNECTIONS_MAX]);
    w.guest(Header {
        src_port: 9999.into(),
        ..packet(Op::Request, 4096, 0)
    });
    assert_eq!(w.ops(), [Op::Reset]);
    let caller = w.caller("CONNECT 1\n");
    assert_eq!(w.ops(), []);
    assert!(at_end(&caller));
    assert_eq!(
        w.hub.stats.open.load(Ordering::Relaxed),
        CONNECTIONS_MAX as u64
    );
}

#[test]
fn all_connections_get_their_turn() {
    let mut w = world();
    let server = w.server();
    let mut hosts = Vec::new();
    for port in 0..3u32 {
        w.guest(Header {
            src_port: port.into(),
            ..packet(Op::Request, 1 << 20, 0)
        });
        hosts.push(server.accept().unwrap().0);
    }
    assert_eq!(w.ops().len(), 3);
    for host in &mut hosts {
        host.write_all(&[1; 4 * ROOM]).unwrap();
    }
    let order: Vec<u32> = std::iter::from_fn(|| w.next())
        .map(|(header, _)| header.dst_port.get())
        .collect();
    assert_eq!(order.len(), 12);
    for turn in order.chunks(3) {
        let mut turn = turn.to_vec();
        turn.sort_unstable();
        assert_eq!(turn, [0, 1, 2]);
    }
}

/// What happens next in the property test.
#[derive(Clone, Debug)]
enum Event {
    GuestSends(usize),
    GuestTakes,
    GuestGrants(u32),
    GuestShutsDown(u32),
    GuestSpeaks(u16, u32, u32),
    HostWrites(usize),
    HostReads,
    HostStopsWriting,
    HostLeaves,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0usize..70000).prop_map(Event::GuestSends),
        8 => Just(Event::GuestTakes),
        4 => (0u32..20000).prop_map(Event::GuestGrants),
        1 => (0u32..4).prop_map(Event::GuestShutsDown),
        1 => (0u16..10, any::<u32>(), any::<u32>()).prop_map(|(o, b, f)| Event::GuestSpeaks(o, b, f)),
        6 => (0usize..9000).prop_map(Event::HostWrites),
        4 => Just(Event::HostReads),
        1 => Just(Event::HostStopsWriting),
        1 => Just(Event::HostLeaves),
    ]
}

fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// One connection under any order of events: what arrives is what was sent, in order and without gaps; the guest
    /// never gets more than it granted; and whoever obeys the rules is not reset before somebody ended it.
    #[test]
    fn data_keeps_its_order_and_flow_control_holds(events in prop::collection::vec(event(), 1..80)) {
        let mut w = world();
        let mut host = Some(w.connected(10000));
        if let Some(host) = &host {
            host.set_nonblocking(true).unwrap();
        }
        // The guest's view.
        let (mut buffer, mut taken, mut granted_away) = (10000u32, 0usize, 0u32);
        let (mut sent, mut host_buffer, mut host_forwarded) = (0usize, BUFFER_SIZE, 0u32);
        // The host's.
        let (mut written, mut read) = (0usize, 0usize);
        let (mut ended, mut reset, mut guest_stopped) = (false, false, false);
        for event in events {
            match event {
                Event::GuestSends(wish) if !reset && !guest_stopped => {
                    let in_flight = (sent as u32).wrapping_sub(host_forwarded);
                    let count = wish.min(host_buffer.saturating_sub(in_flight) as usize);
                    let data: Vec<u8> = (sent..sent + count).map(byte).collect();
                    w.guest_data(packet(Op::Data, buffer, granted_away), &data);
                    sent += count;
                }
                Event::GuestTakes => {
                    while let Some((header, data)) = w.next() {
                        match Op::new(header.op.get()).unwrap() {
                            Op::Reset => reset = true,
                            Op::Data => {
                                for got in data {
                                    prop_assert_eq!(got, byte(taken));
                                    taken += 1;
                                }
                                prop_assert!(taken as u64 - u64::from(granted_away) <= buffer.into());
                            }
                            _ => {}
                        }
                        if !reset {
                            host_buffer = header.buf_alloc.get();
                            host_forwarded = header.fwd_cnt.get();
                            prop_assert!(host_forwarded as usize <= sent);
                        }
                    }
                }
                Event::GuestGrants(size) if !reset => {
                    granted_away = taken as u32;
                    buffer = size;
                    w.guest(packet(Op::CreditUpdate, buffer, granted_away));
                }
                Event::GuestShutsDown(flags) if !reset => {
                    guest_stopped |= flags & SHUTDOWN_SEND != 0;
                    ended |= flags != 0;
                    let mut header = packet(Op::Shutdown, buffer, granted_away);
                    header.flags = flags.into();
                    w.guest(header);
                }
                Event::GuestSpeaks(op, b, f) => {
                    // From another port, so that it is nonsense to all but itself.
                    let mut header = packet(Op::Data, b, f);
                    header.op = op.into();
                    header.src_port = 1.into();
                    header.len = (b % 2).into();
                    w.guest(header);
                    // Not to be taken for an answer to the connection.
                    while w.hub.resets.pop_front().is_some() {}
                }
                Event::HostWrites(count) => {
                    let data: Vec<u8> = (written..written + count).map(byte).collect();
                    if let Some(host) = &mut host {
                        written += host.write(&data).unwrap_or(0);
                    }
                }
                Event::HostReads => {
                    if let Some(host) = &host {
                        for got in read_some(host) {
                            prop_assert_eq!(got, byte(read));
                            read += 1;
                        }
                    }
                    prop_assert!(read <= sent);
                }
                Event::HostStopsWriting => {
                    if let Some(host) = &host {
                        let _ = host.shutdown(Shutdown::Write);
                        ended = true;
                    }
                }
                Event::HostLeaves => {
                    host = None;
                    ended = true;
                }
                _ => {}
            }
            prop_assert!(taken <= written);
            prop_assert!(ended || !reset, "reset for no reason");
        }
    }
}
