//! Frames over a stream: whole and in pieces, a full socket, an other side that lies or goes, the listener.

use proptest::prelude::*;

use super::*;

fn pair() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Stream::connected(ours).unwrap(), theirs)
}

fn frame(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + seed) as u8).collect()
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// Takes a frame into buffers of these sizes.
fn take(stream: &mut Stream, sizes: &[usize]) -> (Received, Vec<u8>) {
    stream.look().unwrap();
    stream.expect().unwrap();
    let mut room = vec![0xee; sizes.iter().sum()];
    let mut rest = &mut room[..];
    let mut parts = Vec::new();
    for size in sizes {
        let (part, other) = rest.split_at_mut(*size);
        parts.push(Slice::from(part));
        rest = other;
    }
    let received = stream.receive(&parts).unwrap();
    (received, room)
}

fn send(stream: &mut Stream, frame: &[u8]) -> Sent {
    let mut frame = frame.to_vec();
    let middle = frame.len() / 2;
    let (one, two) = frame.split_at_mut(middle);
    stream.send(&[one.into(), two.into()]).unwrap()
}

#[test]
fn frames_come_in_behind_an_empty_header_in_buffers_of_any_size() {
    let (mut stream, mut other) = pair();
    let sent = frame(100, 1);
    for sizes in [
        vec![200],
        vec![5, 7, 1, 99],
        vec![12, 100],
        vec![112],
        vec![11, 1, 100],
    ] {
        other.write_all(&framed(&sent)).unwrap();
        let (received, room) = take(&mut stream, &sizes);
        assert_eq!(received, Received::Frame(112));
        assert_eq!((&room[..12], &room[12..112]), (&[0; 12][..], &sent[..]));
        assert!(
            room[112..].iter().all(|b| *b == 0xee),
            "written beyond the frame"
        );
    }
    assert_eq!(take(&mut stream, &[2000]).0, Received::Nothing);
}

#[test]
fn a_frame_that_does_not_fit_is_lost_and_the_next_one_is_not() {
    let (mut stream, mut other) = pair();
    other.write_all(&framed(&frame(100, 1))).unwrap();
    other.write_all(&framed(&frame(60, 2))).unwrap();
    assert_eq!(take(&mut stream, &[111]).0, Received::Dropped);
    let (received, room) = take(&mut stream, &[111]);
    assert_eq!(received, Received::Frame(72));
    assert_eq!(room[12..72], frame(60, 2));
}

#[test]
fn a_length_that_no_frame_has_ends_the_link() {
    for length in [0, FRAME_MIN - 1, FRAME_MAX + 1, u32::MAX as usize] {
        let (mut stream, mut other) = pair();
        other.write_all(&framed(&frame(FRAME_MIN, 2))).unwrap();
        assert_eq!(take(&mut stream, &[2000]).0, Received::Frame(26));
        assert!(stream.up());
        other.write_all(&(length as u32).to_be_bytes()).unwrap();
        assert_eq!(take(&mut stream, &[2000]).0, Received::Nothing);
        assert!(!stream.up(), "{length}");
        assert_eq!(send(&mut stream, &frame(60, 1)), Sent::Dropped);
    }
}

#[test]
fn frames_go_out_together_and_wait_while_the_socket_is_full() {
    let (mut stream, mut other) = pair();
    let mut count = 0;
    while send(&mut stream, &frame(30000, count)) == Sent::Done {
        count += 1;
    }
    assert!(count > OUTBOX / 30004, "the socket took some, too");
    stream.flush().unwrap();
    assert!(stream.up());
    let mut got: Vec<u8> = Vec::new();
    let mut piece = vec![0; 1 << 20];
    while got.len() < count * 30004 {
        match other.read(&mut piece) {
            Ok(n) => got.extend(&piece[..n]),
            Err(_) => {
                stream.look().unwrap();
                stream.flush().unwrap();
            }
        }
    }
    let expected: Vec<u8> = (0..count).flat_map(|n| framed(&frame(30000, n))).collect();
    assert!(got == expected);
    assert_eq!(send(&mut stream, &frame(60, 1)), Sent::Done);
}

#[test]
fn a_packet_of_the_longest_mtu_goes_both_ways() {
    let (mut stream, mut other) = pair();
    let longest = frame(65520 + 14, 7);
    assert_eq!(send(&mut stream, &longest), Sent::Done);
    other.write_all(&framed(&longest)).unwrap();
    let (received, bytes) = take(&mut stream, &[70000]);
    assert_eq!(received, Received::Frame(12 + 65534));
    assert_eq!(bytes[12..12 + 65534], longest);
}

#[test]
fn frames_that_no_wire_carries_are_lost() {
    let (mut stream, _other) = pair();
    assert_eq!(send(&mut stream, &frame(13, 1)), Sent::Dropped);
    assert_eq!(send(&mut stream, &frame(FRAME_MAX + 1, 1)), Sent::Dropped);
    assert_eq!(send(&mut stream, &frame(FRAME_MAX, 1)), Sent::Done);
}

#[test]
fn the_listeners_other_side_may_come_go_and_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let stream = Arc::new(Mutex::new(Stream::listen(&path).unwrap()));
    let links = Arc::new(Mutex::new(Vec::new()));
    let seen = links.clone();
    let on_link = Box::new(move |up| lock(&seen).push(up));
    let mut backend = StreamBackend::new(stream.clone(), on_link);
    assert_eq!(
        backend.send(&Header::default(), &[]).unwrap(),
        Sent::Dropped
    );
    for _ in 0..2 {
        let mut other = UnixStream::connect(&path).unwrap();
        backend.event(0).unwrap();
        other.write_all(&framed(&frame(60, 3))).unwrap();
        backend.event(0).unwrap();
        assert_eq!(backend.expect().unwrap(), Some(72));
        assert_eq!(backend.receive(&[]).unwrap(), Received::Dropped);
        // Half a frame is forgotten with its sender.
        other.write_all(&framed(&frame(60, 4))[..30]).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        backend.event(0).unwrap();
        assert_eq!(second.read(&mut [0]).unwrap(), 0, "only one at a time");
        assert_eq!(backend.expect().unwrap(), None);
        drop(other);
        backend.event(0).unwrap();
        assert_eq!(backend.expect().unwrap(), None);
    }
    assert_eq!(*lock(&links), [true, false, true, false]);
    drop((backend, stream));
    assert!(!path.exists());
}

#[test]
fn a_length_that_came_in_two_pieces_is_not_read_before_it_is_whole() {
    let (mut stream, mut other) = pair();
    // What it would be read from are remains of an earlier frame: a length that ends the link.
    other.write_all(&framed(&[0xff; 300])).unwrap();
    assert_eq!(take(&mut stream, &[2000]).0, Received::Frame(312));
    let next = framed(&frame(60, 1));
    other.write_all(&[&next, &next[..1]].concat()).unwrap();
    assert_eq!(take(&mut stream, &[2000]).0, Received::Frame(72));
    assert_eq!(take(&mut stream, &[2000]).0, Received::Nothing);
    assert!(stream.up());
    other.write_all(&next[1..]).unwrap();
    let (received, room) = take(&mut stream, &[2000]);
    assert_eq!(received, Received::Frame(72));
    assert_eq!(room[12..72], frame(60, 1));
}

#[test]
fn what_one_other_side_did_not_take_is_not_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let mut stream = Stream::listen(&path).unwrap();
    let first = UnixStream::connect(&path).unwrap();
    stream.look().unwrap();
    assert!(stream.up());
    while send(&mut stream, &frame(30000, 1)) == Sent::Done {}
    drop(first);
    stream.look().unwrap();
    stream.flush().unwrap();
    assert!(!stream.up());
    let mut second = UnixStream::connect(&path).unwrap();
    stream.look().unwrap();
    assert_eq!(send(&mut stream, &frame(60, 2)), Sent::Done);
    stream.flush().unwrap();
    let mut got = vec![0; 100];
    let count = second.read(&mut got).unwrap();
    assert_eq!(got[..count], framed(&frame(60, 2)));
}

#[test]
fn nobody_at_the_other_end_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let error = Stream::connect(&path).err().unwrap().to_string();
    assert!(error.contains("net.sock,listen"), "{error}");
    let _first = Stream::listen(&path).unwrap();
    let error = Stream::listen(&path).err().unwrap().to_string();
    assert!(error.contains("choose another path"), "{error}");
    let error = Stream::listen(Path::new("/nonexistent/x")).err().unwrap();
    assert!(error.to_string().contains("check its folder"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However the bytes are cut into reads: the frames come out as they went in.
    #[test]
    fn frames_survive_any_cut(
        lengths in prop::collection::vec(14usize..5000, 1..40),
        cuts in prop::collection::vec(1usize..9000, 1..40),
    ) {
        let (mut stream, mut other) = pair();
        let mut bytes = Vec::new();
        for (seed, length) in lengths.iter().enumerate() {
            bytes.extend(framed(&frame(*length, seed)));
        }
        let mut cuts = cuts.into_iter().cycle();
        let mut written = 0;
        for (seed, length) in lengths.iter().enumerate() {
            let room = loop {
                let (received, room) = take(&mut stream, &[12, 5000]);
                match received {
                    Received::Frame(n) => {
                        prop_assert_eq!(n, 12 + length);
                        break room;
                    }
                    Received::Dropped => prop_assert!(false, "nothing is too long"),
                    Received::Nothing => {}
                }
                let end = bytes.len().min(written + cuts.next().unwrap_or(1));
                other.write_all(&bytes[written..end]).unwrap();
                written = end;
            };
            prop_assert_eq!(&room[12..12 + length], &frame(*length, seed)[..]);
        }
    }

    /// Whatever the other side writes: no panic, and nothing but whole frames of allowed length.
    #[test]
    fn nonsense_of_the_other_side_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let (mut stream, mut other) = pair();
        other.write_all(&bytes).unwrap();
        drop(other);
        for _ in 0..1000 {
            match take(&mut stream, &[12, 70000]).0 {
                Received::Frame(n) => prop_assert!((12 + FRAME_MIN..=12 + FRAME_MAX).contains(&n)),
                Received::Dropped => prop_assert!(false, "everything fits"),
                Received::Nothing => break,
            }
        }
        prop_assert!(!stream.up());
    }
}
