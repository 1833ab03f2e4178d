//! A property of one connection: data and credit under any order of events.

use proptest::prelude::*;

use super::*;

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
