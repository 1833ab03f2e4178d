//! `porthole list`: living VMs, and on request a physical page of each, for those who want to try and read it.

use std::fmt::Write as _;
use std::fs;

use porthole_abi::{FunctionId, PAGE_SIZE, PageOwner, VmFlags, VmState, WINDOWS_MAX};
use porthole_uapi::{System, VmEntry, VmWindow};
use serde::Serialize;

use super::{CommandError, bytes, show};
use crate::cli::ListArgs;

#[derive(Serialize)]
struct Entry {
    handle: String,
    name: Option<String>,
    pid: Option<i32>,
    state: &'static str,
    vcpus: u32,
    memory_pages: u64,
    metadata_pages: u64,
    metadata_free: u64,
    windows: u32,
    protected: bool,
    window_list: Vec<WindowEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_page: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_page: Option<String>,
}

/// A window as the hypervisor has it.
#[derive(Serialize)]
struct WindowEntry {
    id: u64,
    function: String,
    function_mask: u32,
    bar: u32,
    bar_offset: u64,
    ipa: u64,
    bytes: u64,
}

impl From<VmWindow> for WindowEntry {
    fn from(window: VmWindow) -> Self {
        Self {
            id: window.id,
            function: FunctionId(window.function).to_string(),
            function_mask: window.function_mask,
            bar: window.bar,
            bar_offset: window.bar_offset,
            ipa: window.ipa,
            bytes: window.length,
        }
    }
}

/// All windows of a VM; none if it is gone meanwhile.
fn windows(system: &System, vm: u64) -> Vec<WindowEntry> {
    let ids = 0..WINDOWS_MAX as u64;
    let found = ids.filter_map(|id| system.vm_window(vm, id).ok().flatten());
    found.map(WindowEntry::from).collect()
}

impl From<&VmEntry> for Entry {
    fn from(vm: &VmEntry) -> Self {
        let pid = (vm.pid > 0).then_some(vm.pid);
        Self {
            handle: format!("{:#x}", vm.handle),
            name: pid.and_then(process_name),
            pid,
            state: VmState::from_number(vm.state.into()).map_or("Unknown", VmState::name),
            vcpus: vm.vcpus,
            memory_pages: vm.memory_pages,
            metadata_pages: vm.metadata_pages,
            metadata_free: vm.metadata_free,
            windows: vm.windows,
            protected: vm.flags & VmFlags::UNPROTECTED.bits() == 0,
            window_list: Vec::new(),
            memory_page: None,
            window_page: None,
        }
    }
}

/// What `run --name` gave its process.
pub(super) fn process_name(pid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(printable(name.trim_end()))
}

/// A process chooses its name, and another user's terminal is not to obey it.
fn printable(name: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    name.chars().map(shown).collect()
}

/// Ranges of RAM as the kernel knows it.
fn ram(iomem: &str) -> Vec<(u64, u64)> {
    let range = |line: &str| {
        let (range, what) = line.split_once(" : ")?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?.checked_add(1)?);
        (what == "System RAM" && end > PAGE_SIZE)
            .then_some((start & !(PAGE_SIZE - 1), end & !(PAGE_SIZE - 1)))
    };
    iomem.lines().filter_map(range).collect()
}

fn find(
    system: &System,
    ram: &[(u64, u64)],
    owner: PageOwner,
    vm: u64,
) -> Result<Option<String>, CommandError> {
    for (start, end) in ram {
        if let Some(page) = system.page_find(owner, vm, *start, *end)? {
            return Ok(Some(format!("{page:#x}")));
        }
    }
    Ok(None)
}

fn table(entries: &Vec<Entry>) -> String {
    if entries.is_empty() {
        return "no VMs\n".to_owned();
    }
    let mut text = format!(
        "{:<12} {:<15} {:>7} {:<8} {:>5} {:>10} {:>9} {:>7} PROTECTED\n",
        "HANDLE", "NAME", "PID", "STATE", "VCPUS", "MEMORY", "METADATA", "WINDOWS"
    );
    for e in entries {
        let pid = e.pid.map_or("-".to_owned(), |p| p.to_string());
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<12} {:<15} {pid:>7} {:<8} {:>5} {:>10} {:>9} {:>7} {}",
            e.handle,
            e.name.as_deref().unwrap_or("-"),
            e.state,
            e.vcpus,
            bytes(e.memory_pages * PAGE_SIZE),
            bytes(e.metadata_pages * PAGE_SIZE),
            e.windows,
            if e.protected { "yes" } else { "NO" }
        );
        for w in &e.window_list {
            let _ = writeln!(
                text,
                "  window {:<2} {} BAR {} {:#x} {}{}",
                w.id,
                w.function,
                w.bar,
                w.ipa,
                bytes(w.bytes),
                if w.function_mask.count_ones() > 1 {
                    format!(", shared by functions {:#010b}", w.function_mask)
                } else {
                    String::new()
                }
            );
        }
        for (what, page) in [("memory", &e.memory_page), ("window", &e.window_page)] {
            if let Some(page) = page {
                let _ = writeln!(text, "  a page of its {what}: {page}");
            }
        }
    }
    text
}

pub(super) fn list(system: &System, args: &ListArgs) -> Result<u8, CommandError> {
    let vms = system.list()?;
    let mut entries: Vec<_> = vms.iter().map(Entry::from).collect();
    for (entry, vm) in entries.iter_mut().zip(&vms) {
        entry.window_list = windows(system, vm.handle);
    }
    if args.pages {
        let ram = ram(&fs::read_to_string("/proc/iomem")?);
        for (entry, vm) in entries.iter_mut().zip(&vms) {
            entry.memory_page = find(system, &ram, PageOwner::VmMemory, vm.handle)?;
            entry.window_page = find(system, &ram, PageOwner::Window, vm.handle)?;
        }
    }
    show(&entries, args.json, table)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_reach_the_terminal_as_orders() {
        assert_eq!(printable("web\x1b[2J\u{9b}"), "web?[2J?");
        assert_eq!(printable("web server"), "web server");
    }

    #[test]
    fn ram_is_read_from_the_kernels_list() {
        let text = "09000000-09000fff : pl011@9000000\n\
                    40000000-bfffffff : System RAM\n\
                    \x20 40210000-41ffffff : Kernel code\n\
                    100000000-13fffffff : System RAM\n\
                    nonsense\n";
        assert_eq!(
            ram(text),
            [(0x4000_0000, 0xc000_0000), (1 << 32, 0x1_4000_0000)]
        );
        assert!(ram("00000000-00000000 : System RAM\n").is_empty());
    }

    #[test]
    fn the_table_has_a_line_for_each_vm() {
        let vm = VmEntry {
            handle: 0x101,
            memory_pages: 4096,
            metadata_pages: 64,
            state: 2,
            vcpus: 2,
            windows: 1,
            pid: std::process::id() as i32,
            ..VmEntry::default()
        };
        let mut entry = Entry::from(&vm);
        entry.window_page = Some("0x5000".to_owned());
        entry.window_list.push(WindowEntry::from(VmWindow {
            id: 3,
            function: 8,
            function_mask: 3,
            bar: 4,
            ipa: 0x1000_0000,
            length: 1 << 20,
            ..VmWindow::default()
        }));
        let text = table(&vec![entry]);
        for part in [
            "0x101",
            "Final",
            "16.0 MiB",
            "256 KiB",
            "window: 0x5000",
            " yes\n",
            "window 3  0000:00:01.0 BAR 4 0x10000000 1.0 MiB, shared by functions 0b00000011",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(table(&Vec::new()), "no VMs\n");
    }
}
