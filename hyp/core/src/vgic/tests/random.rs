//! Any order of what guest, host and hardware do.

use proptest::prelude::*;

use super::*;

proptest! {
    /// Whatever guest, host and hardware do, an SPI is on one vCPU at most and nothing panics.
    #[test]
    fn a45_spis_stay_on_one_vcpu(
        steps in proptest::collection::vec((0u8..8, any::<u64>(), any::<u64>()), 1..200),
    ) {
        let mut rig = Rig::new();
        for n in 0..8 {
            rig.spi(32 + n, n % 2 == 0, 0xa0, u64::from(n) % 2);
        }
        for (what, a, b) in steps {
            let vcpu = (b & 1) as usize;
            match what {
                0 => { let _ = rig.gic.set_line(32 + a % 8, b & 1 != 0); }
                1 => { rig.exchange(vcpu); }
                2 => { rig.acknowledge(vcpu); }
                3 => {
                    let ids = rig.ids(vcpu);
                    if let Some(id) = ids.get(a as usize % ids.len().max(1)) {
                        rig.end(vcpu, *id);
                    }
                }
                4 => { rig.gic.write_distributor(a % 0x1_0000, 1 << (a >> 60 & 3), b); }
                5 => { rig.gic.write_redistributor(a % 0x5_0000, 1 << (a >> 60 & 3), b); }
                6 => { rig.gic.write_distributor(IROUTER + 8 * (32 + a % 8), 8, b & 1); }
                _ => {
                    rig.gic.read_distributor(a % 0x1_0000, 1 << (a >> 60 & 3));
                    rig.gic.read_redistributor(a % 0x5_0000, 1 << (a >> 60 & 3));
                }
            }
            for bank in 1..BANKS {
                let on = |v: usize| rig.gic.held[v].active[bank] | rig.gic.held[v].resident[bank];
                prop_assert_eq!(on(0) & on(1), 0);
            }
        }
    }
}
