//! The control queue: how many pairs of queues the driver uses, and which offloads it still takes.
//! Nothing else is offered, so that anything else is an error. Source: VIRTIO 1.2, 5.1.6.5.

use std::sync::Arc;

use porthole_uapi::tap::Offload;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};

use super::tap::Steering;
use crate::virtio::chain::Chain;
use crate::virtio::feature;
use crate::virtio::queue::{DeviceQueue, Fault};

/// Bytes of the longest command: class, command, 64-bit offloads.
const COMMAND_MAX: usize = 2 + 8;
/// Features that say what the driver takes.
pub const GUEST_OFFLOADS: u64 = feature(VIRTIO_NET_F_GUEST_CSUM)
    | feature(VIRTIO_NET_F_GUEST_TSO4)
    | feature(VIRTIO_NET_F_GUEST_TSO6)
    | feature(VIRTIO_NET_F_GUEST_ECN)
    | feature(VIRTIO_NET_F_GUEST_USO4)
    | feature(VIRTIO_NET_F_GUEST_USO6);

/// What the kernel may put into frames for a driver with these features. Kinds that build on others go with them.
pub fn offload(features: u64) -> Offload {
    let checksum = features & feature(VIRTIO_NET_F_GUEST_CSUM) != 0;
    let has = |bit| checksum && features & feature(bit) != 0;
    let (tso4, tso6) = (has(VIRTIO_NET_F_GUEST_TSO4), has(VIRTIO_NET_F_GUEST_TSO6));
    Offload {
        checksum,
        tso4,
        tso6,
        ecn: (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN),
        // The kernel knows both together only.
        uso: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    }
}

/// Serves the control queue.
pub struct Control {
    steering: Arc<Steering>,
    features: u64,
    pairs: u16,
}

impl Control {
    /// For a device with `pairs` pairs whose driver has `features`.
    pub fn new(steering: Arc<Steering>, features: u64, pairs: u16) -> Self {
        Self {
            steering,
            features,
            pairs,
        }
    }

    /// Answers the commands there are.
    pub fn serve(&mut self, queue: &mut DeviceQueue) -> Result<(), Fault> {
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop()? else {
                return queue.notify();
            };
            let done = self.command(queue, &chain)?;
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let written = chain
                .write(queue.memory(), 0, &[answer as u8])
                .map_err(|error| queue.broken(error))?;
            queue.complete(chain, written as u32)?;
        }
        // More may have come; who wants the thread to end comes first.
        queue.again();
        queue.notify()
    }

    fn command(&self, queue: &DeviceQueue, chain: &Chain) -> Result<bool, Fault> {
        let mut command = [0; COMMAND_MAX];
        let length = chain
            .read(queue.memory(), 0, &mut command)
            .map_err(|error| queue.broken(error))?;
        let has = |bit| self.features & feature(bit) != 0;
        Ok(match (command, length) {
            ([class, set, low, high, ..], 4)
                if u32::from(class) == VIRTIO_NET_CTRL_MQ
                    && u32::from(set) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
                    && has(VIRTIO_NET_F_MQ) =>
            {
                let pairs = u16::from_le_bytes([low, high]);
                (1..=self.pairs).contains(&pairs)
                    && well("use its queues", self.steering.set_active(pairs.into()))
            }
            ([class, set, offloads @ ..], COMMAND_MAX)
                if u32::from(class) == VIRTIO_NET_CTRL_GUEST_OFFLOADS
                    && u32::from(set) == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
                    && has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
            {
                let wanted = u64::from_le_bytes(offloads);
                wanted & !(self.features & GUEST_OFFLOADS) == 0
                    && well("set offloads", self.steering.set_offload(offload(wanted)))
            }
            _ => false,
        })
    }
}

fn well(what: &str, result: std::io::Result<()>) -> bool {
    if let Err(e) = &result {
        tracing::warn!("net: the TAP interface does not {what}: {e}");
    }
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::queue::tests::{Driver, memories, shared};
    use crate::virtio::window::tests::BASE;

    #[test]
    fn a_driver_that_never_stops_asking_keeps_no_thread() {
        let (memory, window) = memories();
        let driver = Driver::new(&memory, BASE, 16);
        let mut queue = driver.device(0, window, shared());
        let mut control = Control::new(Arc::new(Steering::new(Vec::new())), 0, 1);
        driver.post(&[(BASE + 0x4000, 2, 0), (BASE + 0x5000, 1, 2)]);
        driver.flood(16, || control.serve(&mut queue).unwrap());
    }

    #[test]
    fn a25_commands_need_what_was_negotiated_and_numbers_that_there_are() {
        let (command, answer) = (BASE + 0x4000, BASE + 0x5000);
        let ask = |features: u64, bytes: &[u8]| {
            let (memory, window) = memories();
            let driver = Driver::new(&memory, BASE, 16);
            let mut queue = driver.device(0, window, shared());
            // Without an interface: to ask it for anything is a panic.
            let steering = Arc::new(Steering::new(Vec::new()));
            let mut control = Control::new(steering, features, 2);
            memory.write_slice(bytes, GuestAddress(command)).unwrap();
            memory.write_obj(0xeeu8, GuestAddress(answer)).unwrap();
            driver.post(&[(command, bytes.len() as u32, 0), (answer, 1, 2)]);
            control.serve(&mut queue).unwrap();
            memory.read_obj::<u8>(GuestAddress(answer)).unwrap()
        };
        let mq = feature(VIRTIO_NET_F_MQ);
        assert_eq!(ask(mq, &[4, 0, 1, 0]), 0);
        assert_eq!(ask(mq, &[4, 0, 2, 0]), 0);
        assert_eq!(ask(0, &[4, 0, 2, 0]), 1, "not negotiated");
        for bytes in [
            &[4, 0, 0, 0][..],
            &[4, 0, 3, 0],
            &[4, 0, 1, 1],
            &[4, 1, 1, 0],
        ] {
            assert_eq!(ask(mq, bytes), 1, "{bytes:?}");
        }
        for bytes in [&[][..], &[4], &[4, 0, 1], &[4, 0, 1, 0, 0], &[3, 0, 1, 0]] {
            assert_eq!(ask(mq, bytes), 1, "{bytes:?}");
        }
        let set = |offloads: u64| [&[5, 0][..], &offloads.to_le_bytes()].concat();
        let features = feature(VIRTIO_NET_F_GUEST_CSUM) | feature(VIRTIO_NET_F_GUEST_TSO4);
        let may = feature(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
        assert_eq!(ask(features, &set(features)), 1, "not negotiated");
        let more = features | feature(VIRTIO_NET_F_GUEST_TSO6);
        assert_eq!(ask(features | may, &set(more)), 1);
        assert_eq!(ask(features | may, &set(1 << 63)), 1);
        assert_eq!(ask(features | may, &set(0)[..9]), 1);
    }

    #[test]
    fn offloads_need_what_they_build_on() {
        let f = |bits: &[u32]| offload(bits.iter().map(|b| feature(*b)).sum());
        assert_eq!(f(&[VIRTIO_NET_F_GUEST_TSO4]), Offload::default());
        let csum = Offload {
            checksum: true,
            ..Offload::default()
        };
        let c = VIRTIO_NET_F_GUEST_CSUM;
        assert_eq!(f(&[c]), csum);
        assert_eq!(f(&[c, VIRTIO_NET_F_GUEST_ECN]), csum);
        assert_eq!(f(&[c, VIRTIO_NET_F_GUEST_USO4]), csum);
        assert_eq!(
            offload(GUEST_OFFLOADS),
            Offload {
                checksum: true,
                tso4: true,
                tso6: true,
                ecn: true,
                uso: true,
            }
        );
    }
}
