//! Typed hypercalls of the host, one function for each, and what a test wants to know of the tracker.
//! Nothing is checked here: a test passes whatever it likes.

use porthole_abi::{Error, ExitKind, HostFunction, PageOwner, StatKind};
use porthole_runtime::call::{Args, hvc_with};

/// Result of a call: x0 to x17, or the error.
pub type Reply = Result<Args, Error>;

/// Makes a call; an unknown error code is a failure of its own, shown as a panic with the code.
pub fn call(function: HostFunction, args: &[u64]) -> Reply {
    reply(hvc_with(function.id(), args))
}

/// Splits a raw answer into result or error.
pub fn reply(r: Args) -> Reply {
    let status = r[0].cast_signed();
    if status == 0 {
        return Ok(r);
    }
    Err(Error::from_code(status)
        .unwrap_or_else(|| panic!("an answer that the ABI does not have: {status}")))
}

/// One exit of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its kind.
    pub kind: ExitKind,
    /// x2 to x4.
    pub p: [u64; 3],
}

/// VCPU_RUN.
pub fn vcpu_run(vm: u64, vcpu: u64, value: u64) -> Result<Exit, Error> {
    let r = call(HostFunction::VcpuRun, &[vm, vcpu, value])?;
    let kind = ExitKind::from_number(r[1])
        .unwrap_or_else(|| panic!("an exit that the ABI does not have: {}", r[1]));
    Ok(Exit {
        kind,
        p: [r[2], r[3], r[4]],
    })
}

/// Owner of the page at `pa`.
pub fn owner(pa: u64) -> PageOwner {
    owner_of_run(pa).0
}

/// Owner of the page at `pa`, and how many pages from it on have the same.
pub fn owner_of_run(pa: u64) -> (PageOwner, u64) {
    let r = call(HostFunction::PageInfo, &[pa]).expect("PAGE_INFO takes any address");
    (PageOwner::from_number(r[1]).expect("a known owner"), r[3])
}

/// A statistic.
pub fn stat(kind: StatKind, index: u64) -> u64 {
    call(HostFunction::Stats, &[kind as u64, index]).expect("a known statistic")[1]
}

/// Pages of each owner, indexed by [`PageOwner`].
pub fn owners() -> [u64; 8] {
    let mut all = [0; 8];
    for (i, n) in all.iter_mut().enumerate() {
        *n = stat(StatKind::PagesByOwner, i as u64);
    }
    all
}

/// Sums of a whole audit pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Pages that host and a guest can both reach.
    pub shared: u64,
    /// Pages covered by windows.
    pub windows: u64,
    /// First offender, `NO_ADDRESS` for none.
    pub offender: u64,
}

/// A whole pass of SHARE_AUDIT; repeated when another CPU changed something meanwhile.
pub fn audit() -> Audit {
    loop {
        let mut sum = Audit {
            offender: porthole_abi::NO_ADDRESS,
            ..Audit::default()
        };
        let (mut cursor, mut epoch) = (0, None);
        let void = loop {
            let r =
                call(HostFunction::ShareAudit, &[cursor]).expect("SHARE_AUDIT with its own cursor");
            sum.shared += r[2];
            sum.windows += r[3];
            if sum.offender == porthole_abi::NO_ADDRESS {
                sum.offender = r[4];
            }
            if *epoch.get_or_insert(r[5]) != r[5] {
                break true;
            }
            cursor = r[1];
            if cursor == 0 {
                break false;
            }
        };
        if !void {
            return sum;
        }
    }
}

/// Tears down every VM that a failed test left and takes all their pages back, and those of confined functions.
pub fn clean_up() {
    for slot in 0..porthole_abi::DMA_CONFINED_MAX as u64 {
        if let Ok(info) = call(HostFunction::DmaInfo, &[slot]) {
            let _ = call(HostFunction::DmaRelease, &[info[2]]);
        }
    }
    for slot in 0..porthole_abi::VMS_MAX as u64 {
        let Ok(info) = call(HostFunction::VmInfo, &[slot]) else {
            continue;
        };
        let vm = info[1];
        if vm == 0 {
            continue;
        }
        for _ in 0..100_000 {
            if matches!(call(HostFunction::VmTeardown, &[vm]), Ok(r) if r[1] == 0) {
                break;
            }
        }
        for pa in (crate::arena::RAM_BASE..crate::arena::ram_end()).step_by(4096) {
            if matches!(owner(pa), PageOwner::VmMemory | PageOwner::VmMetadata) {
                let _ = call(HostFunction::VmReclaim, &[vm, pa, 1]);
            }
        }
        let _ = call(HostFunction::VmDestroy, &[vm]);
    }
}
