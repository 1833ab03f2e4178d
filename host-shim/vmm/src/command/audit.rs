//! `porthole audit`: what host and guests share, as the hypervisor finds it in its tables.

use porthole_abi::NO_ADDRESS;
use porthole_uapi::{Audit, System};
use serde::Serialize;

use super::{CommandError, show};

#[derive(Serialize)]
struct Report {
    holds: bool,
    shared_pages: u64,
    window_pages: u64,
    offender: Option<String>,
    epoch: u64,
}

impl From<Audit> for Report {
    fn from(audit: Audit) -> Self {
        let clean = audit.offender == NO_ADDRESS;
        Self {
            holds: clean && audit.shared_pages == audit.window_pages,
            shared_pages: audit.shared_pages,
            window_pages: audit.window_pages,
            offender: (!clean).then(|| format!("{:#x}", audit.offender)),
            epoch: audit.epoch,
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let verdict = match (&self.offender, self.holds) {
            (_, true) => "holds: host and guests share the windows and nothing else".to_owned(),
            (Some(page), _) => format!("BROKEN: the first page that differs is at {page}"),
            (None, _) => "BROKEN: the numbers differ".to_owned(),
        };
        format!(
            "shared pages     {} (reachable by the host and a guest)\n\
             window pages     {} (covered by registered windows)\n\
             {verdict}\n",
            self.shared_pages, self.window_pages
        )
    }
}

pub(super) fn audit(system: &System, json: bool) -> Result<u8, CommandError> {
    let report = Report::from(system.audit()?);
    show(&report, json, Report::text)?;
    Ok(u8::from(!report.holds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(shared_pages: u64, window_pages: u64, offender: u64) -> Report {
        Report::from(Audit {
            shared_pages,
            window_pages,
            offender,
            ..Audit::default()
        })
    }

    #[test]
    fn the_audit_holds_only_if_numbers_agree_and_nobody_offends() {
        assert!(report(256, 256, NO_ADDRESS).holds);
        assert!(report(0, 0, NO_ADDRESS).holds);
        assert!(!report(257, 256, NO_ADDRESS).holds);
        let broken = report(256, 256, 0x4567_8000);
        assert!(!broken.holds);
        assert!(broken.text().contains("BROKEN"));
        assert!(broken.text().contains("0x45678000"));
    }
}
