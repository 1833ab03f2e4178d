//! The entropy device: bytes come, and they differ.

use alloc::vec;

use porthole_bounce::BounceHal;
use porthole_payload::fail;
use porthole_payload::transport::WindowTransport;
use virtio_drivers::device::rng::VirtIORng;

use crate::Entropy;

/// Asks for bytes in several sizes.
pub fn check(transport: WindowTransport) {
    let rng = VirtIORng::<BounceHal<Entropy>, _>::new(transport);
    let mut rng = rng.unwrap_or_else(|e| fail!("rng: cannot be driven: {e}"));
    let mut last = vec![];
    for size in [16, 64, 4096, 4096] {
        let mut bytes = vec![0; size];
        let got = rng.request_entropy(&mut bytes);
        let got = got.unwrap_or_else(|e| fail!("rng: {size} bytes: {e}"));
        if got != size {
            fail!("rng: {got} of {size} bytes came");
        }
        let mut seen = [false; 256];
        bytes.iter().for_each(|b| seen[usize::from(*b)] = true);
        let different = seen.iter().filter(|s| **s).count();
        // Of 16 random bytes fewer than 8 differ once in 10^9 times.
        if different < 8 || bytes == last {
            fail!("rng: {size} bytes with {different} different values");
        }
        last = bytes;
    }
}
