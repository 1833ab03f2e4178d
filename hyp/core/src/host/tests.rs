//! The host's side of the hypervisor on the fake machine, called through registers as the binary calls it.

mod calls;
mod create;
mod dma;
mod document;
mod faults;
mod measure;
mod psci;
mod random;
mod unprotected;

use porthole_abi::{Error, HostFunction};

use crate::testing::Host;

/// The call must fail with this error and change nothing.
#[track_caller]
fn refused(host: &Host, function: HostFunction, args: &[u64], error: Error) {
    let before = host.state();
    assert_eq!(host.call(function, args).map(|x| x[1]), Err(error));
    assert_eq!(host.state(), before);
}
