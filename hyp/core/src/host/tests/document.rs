//! `docs/abi.md` against the definitions.

use porthole_abi::{Error, ExitKind, GuestFunction, HostFunction};

#[test]
fn abi_document_names_every_call_exit_and_error() {
    let text = include_str!("../../../../../docs/abi.md");
    let host = HostFunction::ALL.iter().map(|f| (f.name(), f.id()));
    let guest = GuestFunction::ALL.iter().map(|f| (f.name(), f.id()));
    for (name, id) in host.chain(guest) {
        let heading = format!("### {name} ({id:#010x})");
        assert!(text.contains(&heading), "docs/abi.md lacks '{heading}'");
    }
    for error in Error::ALL {
        let row = format!("| {} | {} |", error.name(), error.code());
        assert!(text.contains(&row), "docs/abi.md lacks '{row}'");
    }
    for kind in ExitKind::ALL {
        let row = format!("| {} | {kind:?} |", *kind as u64);
        assert!(text.contains(&row), "docs/abi.md lacks '{row}'");
    }
}
