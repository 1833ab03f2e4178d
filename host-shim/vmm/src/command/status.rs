//! `porthole status VM`: vCPUs with their exits, devices with their windows; once, or again and again.
//! The numbers come from the control socket of the VM's own `porthole run`; what devices of the host were refused,
//! from the hypervisor.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use porthole_abi::PAGE_SIZE;
use porthole_uapi::{System, VmEntry};
use serde_json::Value;

use super::dma;
use super::list::process_name;
use super::{CommandError, bytes, print};
use crate::cli::StatusArgs;
use crate::control;

/// Home, and everything below it erased (ECMA-48 CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// What is met where a VM's socket was.
const GONE: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];

/// The VM that a word names: its handle, the name of its process, or its pid.
fn find<'a>(
    vms: &'a [VmEntry],
    word: &str,
    name: impl Fn(i32) -> Option<String>,
) -> Result<&'a VmEntry, CommandError> {
    let number = match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    };
    let is_it = |vm: &&VmEntry| {
        number == Some(vm.handle)
            || (vm.pid > 0 && number == u64::try_from(vm.pid).ok())
            || (vm.pid > 0 && name(vm.pid).is_some_and(|n| n == word))
    };
    let mut found = vms.iter().filter(is_it);
    match (found.next(), found.next()) {
        (Some(vm), None) => Ok(vm),
        (None, _) => Err(CommandError::NoVm(word.to_owned())),
        (Some(_), Some(_)) => Err(CommandError::ManyVms(word.to_owned())),
    }
}

fn ask(handle: u64) -> io::Result<Value> {
    control::ask(&control::path(Path::new(control::FOLDER), handle))
}

fn number(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or(0)
}

fn word<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or("-")
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Kinds of exits that any vCPU had, in the order of the first that had them.
fn kinds(vcpus: &Value) -> Vec<&str> {
    let mut all: Vec<&str> = Vec::new();
    for exits in each(vcpus).filter_map(|v| v["exits"].as_object()) {
        for kind in exits.keys() {
            if !all.contains(&kind.as_str()) {
                all.push(kind);
            }
        }
    }
    all
}

fn text(status: &Value) -> String {
    let mut text = String::new();
    let protected = match status["protected"].as_bool() {
        Some(false) => "UNPROTECTED",
        _ => "protected",
    };
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "VM {} {}, pid {}: {}, {protected}",
        word(status, "handle"),
        word(status, "name"),
        number(status, "pid"),
        word(status, "state"),
    );
    let _ = writeln!(
        text,
        "memory {} ({} blocks of 2 MiB, {} faults), metadata {} ({} free), {} windows",
        bytes(number(status, "memory_pages") * PAGE_SIZE),
        number(status, "blocks_2m"),
        number(status, "ram_faults"),
        bytes(number(status, "metadata_pages") * PAGE_SIZE),
        bytes(number(status, "metadata_free") * PAGE_SIZE),
        number(status, "windows"),
    );
    let kinds = kinds(&status["vcpus"]);
    let _ = write!(text, "\nVCPU");
    for kind in &kinds {
        let _ = write!(text, " {kind:>13}");
    }
    for vcpu in each(&status["vcpus"]) {
        let _ = write!(text, "\n{:>4}", number(vcpu, "index"));
        for kind in &kinds {
            let _ = write!(text, " {:>13}", number(&vcpu["exits"], kind));
        }
    }
    let _ = writeln!(
        text,
        "\n\n{:<10} {:<8} {:<11} {:>11} {:>9} {:>6} {:>6} {:>10} {:>10} {:>10} {:>6}",
        "DEVICE",
        "STATE",
        "WINDOW",
        "IPA",
        "SIZE",
        "SLOTS",
        "HIGH",
        "BOUNCES",
        "TO DEVICE",
        "FROM DEV",
        "FAULTS"
    );
    for device in each(&status["devices"]) {
        let state = match (&device["needs_reset"], &device["running"]) {
            (Value::Bool(true), _) => "broken",
            (_, Value::Bool(true)) => "running",
            _ => "idle",
        };
        // One that several devices use is the pool or the RAM, or in the BAR of another function.
        let of = device["window_of_function"].as_u64();
        let window = match (device["window_bar"].as_u64(), of) {
            (Some(bar), None) => format!("BAR {bar}"),
            (Some(bar), Some(function)) => format!("BAR {bar} of .{function}"),
            (None, _) => "shared".to_owned(),
        };
        let ipa = device["window_ipa"].as_u64();
        let _ = writeln!(
            text,
            "{:<10} {state:<8} {window:<11} {:>11} {:>9} {:>6} {:>6} {:>10} {:>10} {:>10} {:>6}",
            word(device, "name"),
            ipa.map_or("nowhere".to_owned(), |a| format!("{a:#x}")),
            bytes(number(device, "window_size")),
            number(device, "slots_in_flight"),
            number(device, "slots_high_water"),
            number(device, "buffers"),
            bytes(number(device, "bytes_to_device")),
            bytes(number(device, "bytes_from_device")),
            number(device, "faults"),
        );
    }
    for device in each(&status["dma_refused"]) {
        let _ = writeln!(
            text,
            "\nhost device {}: {} accesses refused{}",
            word(device, "function"),
            number(device, "refused"),
            device["last"]
                .as_str()
                .map_or(String::new(), |last| format!(", the last a {last}")),
        );
    }
    text
}

/// What the VM's own process says, and which devices of the host the SMMU refused something.
fn gather(system: &System, mut status: Value) -> Result<Value, CommandError> {
    status["dma_refused"] = serde_json::to_value(dma::refused(system)?)?;
    Ok(status)
}

pub(super) fn status(system: &System, args: &StatusArgs) -> Result<u8, CommandError> {
    let vms = system.list()?;
    let handle = find(&vms, &args.vm, process_name)?.handle;
    let failed = |source| CommandError::NoStatus {
        vm: args.vm.clone(),
        source,
    };
    let mut status = gather(system, ask(handle).map_err(failed)?)?;
    let Some(period) = args.watch else {
        let shown = if args.json {
            format!("{}\n", serde_json::to_string_pretty(&status)?)
        } else {
            text(&status)
        };
        print(&shown)?;
        return Ok(0);
    };
    loop {
        print(&if args.json {
            format!("{status}\n")
        } else {
            format!("{CLEAR}{}", text(&status))
        })?;
        std::thread::sleep(Duration::from_secs(period.into()));
        status = match ask(handle) {
            Ok(status) => gather(system, status)?,
            // It ended while one watched: its socket goes first, then the VM.
            Err(e) if GONE.contains(&e.kind()) => return Ok(0),
            Err(e) => return Err(failed(e)),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vm_is_found_by_handle_name_or_pid() {
        let vm = |handle, pid| VmEntry {
            handle,
            pid,
            ..VmEntry::default()
        };
        let vms = [vm(0x101, 50), vm(0x102, 51), vm(0x103, 0), vm(0x104, 52)];
        let name = |pid| Some(if pid == 51 { "db" } else { "web" }.to_owned());
        for (word, handle) in [
            ("0x103", 0x103),
            ("db", 0x102),
            ("51", 0x102),
            ("257", 0x101),
        ] {
            assert_eq!(find(&vms, word, name).unwrap().handle, handle, "{word}");
        }
        assert!(matches!(
            find(&vms, "web", name),
            Err(CommandError::ManyVms(_))
        ));
        for word in ["mail", "0", "0x", "0x999"] {
            assert!(matches!(find(&vms, word, name), Err(CommandError::NoVm(_))));
        }
    }

    #[test]
    fn the_text_names_exits_windows_and_faults() {
        let status = json!({
            "handle": "0x101", "name": "web", "pid": 7, "state": "Final", "protected": true,
            "memory_pages": 512, "windows": 1,
            "vcpus": [
                { "index": 0, "exits": { "MmioRead": 12 } },
                { "index": 1, "exits": { "Wfi": 34 } },
            ],
            "devices": [{
                "name": "disk0", "running": true, "needs_reset": false, "window_bar": 4,
                "window_ipa": 0x1000_0000, "window_size": 1 << 20, "slots_in_flight": 5,
                "slots_high_water": 99, "buffers": 1234, "faults": 2,
            }, {
                "name": "net0", "running": true, "needs_reset": true, "window_bar": null,
                "window_ipa": null,
            }],
            "dma_refused": [{
                "function": "0000:00:06.0", "refused": 63, "last": "write at 0x48000000",
            }],
        });
        let text = text(&status);
        for part in [
            "VM 0x101 web, pid 7: Final, protected",
            "MmioRead",
            "34",
            "disk0      running  BAR 4        0x10000000   1.0 MiB      5     99       1234",
            "net0       broken   shared          nowhere",
            "host device 0000:00:06.0: 63 accesses refused, the last a write at 0x48000000",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("UNPROTECTED"));
    }

    #[test]
    fn an_unprotected_vm_stands_out() {
        assert!(text(&json!({ "protected": false })).contains("UNPROTECTED"));
    }
}
