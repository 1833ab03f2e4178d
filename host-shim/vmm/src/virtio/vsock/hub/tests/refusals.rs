//! What the hub refuses: callers and packets that are malformed, belong to nothing, or are too many.

use super::*;

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
fn callers_that_say_nothing_keep_nobody_out() {
    let mut w = world();
    let mut callers: Vec<_> = (0..CALLERS_MAX).map(|_| w.caller("CONN")).collect();
    assert!(w.next().is_none());
    let _late = w.caller("CONNECT 1024\n");
    assert_eq!(w.ops(), [Op::Request]);
    assert!(at_end(&callers[0]), "the first had to go");
    assert!(!at_end(&callers[1]));
    // The second is heard although others came and went.
    callers[1].write_all(b"ECT 1025\n").unwrap();
    assert_eq!(w.ops(), [Op::Request]);
    assert_eq!(w.hub.callers.len(), CALLERS_MAX - 2);
}

#[test]
fn callers_that_come_at_once_and_have_said_their_line_are_all_heard() {
    let mut w = world();
    let silent = w.caller("CONN");
    let all = 2 * CALLERS_MAX;
    let callers: Vec<_> = (0..all).map(|_| w.caller("CONNECT 1024\n")).collect();
    assert_eq!(w.ops(), vec![Op::Request; all]);
    assert_eq!(w.hub.connections.len(), all);
    assert!(callers.iter().all(|caller| !at_end(caller)));
    assert!(at_end(&silent), "and who has not has to go");
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
fn a25_only_a_request_for_a_stream_to_the_host_reaches_a_server() {
    let odd = |change: fn(&mut Header)| {
        let mut header = packet(Op::Request, 4096, 0);
        change(&mut header);
        header
    };
    for header in [
        packet(Op::Response, 4096, 0),
        packet(Op::Data, 4096, 0),
        packet(Op::CreditUpdate, 4096, 0),
        odd(|h| h.op = 0.into()),
        odd(|h| h.kind = 2.into()),
        odd(|h| h.dst_cid = 3.into()),
        odd(|h| h.dst_port = PORT_ANY.into()),
    ] {
        let mut w = world();
        let servers = [w.server(), w.server_at(PORT_ANY)];
        w.guest(header);
        assert_eq!(w.ops(), [Op::Reset], "{header:?}");
        for server in servers {
            server.set_nonblocking(true).unwrap();
            let called = server.accept();
            assert_eq!(called.unwrap_err().kind(), ErrorKind::WouldBlock);
        }
    }
}

#[test]
fn a_guest_that_answers_before_it_was_asked_is_reset() {
    let mut w = world();
    let caller = w.caller("CONNECT 1024\n");
    w.hub.poll().unwrap();
    w.hub.poll().unwrap();
    let mut early = packet(Op::Response, 4096, 0);
    early.dst_port = FIRST_HOST_PORT.into();
    w.guest(early);
    assert_eq!(w.ops(), [Op::Reset]);
    assert!(at_end(&caller), "and heard no OK");
}

#[test]
fn a_port_of_the_host_that_the_guest_took_is_not_given_out() {
    let mut w = world();
    let server = w.server_at(FIRST_HOST_PORT);
    let mut request = packet(Op::Request, 4096, 0);
    request.dst_port = FIRST_HOST_PORT.into();
    w.guest(request);
    assert_eq!(w.ops(), [Op::Response]);
    let _stream = server.accept().unwrap();
    let _caller = w.caller(&format!("CONNECT {GUEST_PORT}\n"));
    let (header, _) = w.next().unwrap();
    assert_eq!(header.op.get(), Op::Request as u16);
    assert_eq!(header.src_port.get(), FIRST_HOST_PORT + 1);
    assert_eq!(w.hub.connections.len(), 2);
}

#[test]
fn what_a_guest_has_shut_down_stays_so() {
    let mut w = world();
    let host = w.connected(4096);
    let mut shut = packet(Op::Shutdown, 4096, 0);
    shut.flags = SHUTDOWN_SEND.into();
    w.guest(shut);
    w.guest_data(packet(Op::Data, 4096, 0), b"after the end");
    assert_eq!(w.ops(), [Op::Reset]);
    assert_eq!(read_some(&host), b"");
    let mut w = world();
    let mut host = w.connected(4096);
    shut.flags = SHUTDOWN_RECEIVE.into();
    host.write_all(b"nobody reads this").unwrap();
    w.guest(shut);
    assert!(!w.ops().contains(&Op::Data));
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
