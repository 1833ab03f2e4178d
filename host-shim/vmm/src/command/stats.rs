//! `porthole stats`: the hypervisor's counters.

use porthole_abi::{NO_ADDRESS, PageOwner, StatKind};
use porthole_uapi::System;
use serde::Serialize;

use super::{CommandError, show};

#[derive(Serialize)]
struct Counter {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'static str>,
    /// Absent for an address that there is none of yet.
    value: Option<u64>,
}

impl Counter {
    fn text(&self) -> String {
        let of = match (self.cpu, self.owner) {
            (Some(cpu), _) => format!(" (CPU {cpu})"),
            (_, Some(owner)) => format!(" ({owner})"),
            _ => String::new(),
        };
        let value = match self.value {
            None => "none".to_owned(),
            Some(address) if self.name == StatKind::LastAbortAddress.name() => {
                format!("{address:#x}")
            }
            Some(value) => value.to_string(),
        };
        format!("{:<32} {value}\n", format!("{}{of}", self.name))
    }
}

pub(super) fn stats(system: &System, json: bool) -> Result<u8, CommandError> {
    let cpus = system.info()?.cpus;
    let mut counters = Vec::new();
    for kind in StatKind::ALL {
        let indexes = match kind {
            StatKind::HostCalls | StatKind::GuestExitsInside | StatKind::GuestExitsToHost => cpus,
            StatKind::PagesByOwner => PageOwner::ALL.len() as u64,
            _ => 1,
        };
        for index in 0..indexes {
            let owner = PageOwner::from_number(index).filter(|_| *kind == StatKind::PagesByOwner);
            if owner == Some(PageOwner::None) {
                continue;
            }
            let value = system.stat(*kind, index)?;
            counters.push(Counter {
                name: kind.name(),
                cpu: (indexes == cpus && owner.is_none() && indexes > 1).then_some(index),
                owner: owner.map(PageOwner::name),
                value: (value != NO_ADDRESS).then_some(value),
            });
        }
    }
    show(&counters, json, |all| {
        all.iter().map(Counter::text).collect()
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_say_what_they_count() {
        let counter = |name, cpu, owner, value| Counter {
            name,
            cpu,
            owner,
            value,
        };
        let calls = counter("HostCalls", Some(3), None, Some(17)).text();
        assert_eq!(calls.split_whitespace().last(), Some("17"));
        assert!(calls.contains("(CPU 3)"));
        let none = counter("LastAbortAddress", None, None, None).text();
        assert!(none.ends_with("none\n"));
        let pages = counter("PagesByOwner", None, Some("Host"), Some(1)).text();
        assert!(pages.contains("(Host)"));
    }
}
