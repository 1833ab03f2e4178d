//! The hub against a guest made of packets and a host made of sockets: connections from both sides, and their ends.
//! What is refused stands in `refusals`, the property test in `order`, both sides in `rig`.

mod order;
mod refusals;
mod rig;

use std::io::Write;
use std::net::Shutdown;

use self::rig::*;
use super::super::credit::BUFFER_SIZE;
use super::super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;

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
