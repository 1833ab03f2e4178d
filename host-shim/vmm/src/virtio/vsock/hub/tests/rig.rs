//! A guest made of packets and a host made of sockets.

use std::io::Write;

use tempfile::TempDir;

use super::*;

pub(super) const CID: u64 = 7;
pub(super) const GUEST_PORT: u32 = 1024;
pub(super) const HOST_PORT: u32 = 5000;
/// Bytes of data in the guest's receive buffers.
pub(super) const ROOM: usize = 4052;

pub(super) struct World {
    pub(super) hub: Hub,
    folder: TempDir,
}

pub(super) fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.sock");
    let listener = Arc::new(crate::unix::listen(&path).unwrap());
    let hub = Hub::new(CID, path, listener, Arc::default()).unwrap();
    World { hub, folder }
}

pub(super) fn packet(op: Op, buf_alloc: u32, fwd_cnt: u32) -> Header {
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
    pub(super) fn server(&self) -> UnixListener {
        self.server_at(HOST_PORT)
    }

    pub(super) fn server_at(&self, port: u32) -> UnixListener {
        let path = self.folder.path().join(format!("vm.sock_{port}"));
        UnixListener::bind(path).unwrap()
    }

    pub(super) fn guest(&mut self, header: Header) {
        self.hub.receive(&header, &[]);
    }

    pub(super) fn guest_data(&mut self, header: Header, data: &[u8]) {
        let mut data = data.to_vec();
        let mut header = header;
        header.len = (data.len() as u32).into();
        let middle = data.len() / 3;
        let (one, two) = data.split_at_mut(middle);
        self.hub.receive(&header, &[one.into(), two.into()]);
    }

    /// The next packet for the guest, after what the sockets have to say.
    pub(super) fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        // A caller is taken in by the first look, and heard by the second.
        self.hub.poll().unwrap();
        self.hub.poll().unwrap();
        let mut room = vec![0; ROOM];
        let (one, two) = room.split_at_mut(10);
        let header = self.hub.send(&[one.into(), two.into()])?;
        room.truncate(header.len.get() as usize);
        Some((header, room))
    }

    pub(super) fn ops(&mut self) -> Vec<Op> {
        std::iter::from_fn(|| self.next())
            .map(|(header, _)| Op::new(header.op.get()).unwrap())
            .collect()
    }

    /// A connection that the guest asked for, with this buffer.
    pub(super) fn connected(&mut self, buffer: u32) -> UnixStream {
        let server = self.server();
        self.guest(packet(Op::Request, buffer, 0));
        let (stream, _) = server.accept().unwrap();
        assert_eq!(self.ops(), [Op::Response]);
        stream
    }

    pub(super) fn caller(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.path().join("vm.sock")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }
}

pub(super) fn read_some(mut stream: &UnixStream) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let mut piece = [0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        all.extend(&piece[..count]);
    }
    all
}

pub(super) fn at_end(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    // Closed with something unread counts as well.
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}
