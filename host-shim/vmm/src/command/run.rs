//! `porthole run`: from the command line to a running guest, and to its end.

use std::fs;
use std::sync::{Arc, mpsc};

use porthole_uapi::System;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{CommandError, print};
use crate::boot::plan::Plan;
use crate::cli::{RunOptions, Sink, config, print as print_config};
use crate::control::{self, Source};
use crate::device::input::{Keyboard, RawTerminal};
use crate::end::End;
use crate::machine::Machine;
use crate::models::Models;
use crate::vcpu::VcpuThreads;
use crate::virtio::transport::VirtioPci;

pub(super) fn run(
    options: &RunOptions,
    open: impl FnOnce() -> Result<System, CommandError>,
) -> Result<u8, CommandError> {
    let file = options.config.as_deref().map(config::read).transpose()?;
    let options = options.clone().before(file.unwrap_or_default());
    let printed = options.print_config.then(|| print_config::text(&options));
    let args = &options.resolve()?;
    if let Some(text) = printed {
        print(&text.ok_or(CommandError::NoText)?)?;
        return Ok(0);
    }
    // The files first: their errors need no hypervisor.
    let plan = Plan::new(&args.kernel, args.initrd.as_deref(), args.mem.0)?;
    let models = Models::open(args)?;
    let system = open()?;
    if let Some(name) = &args.name {
        // What `list` shows; a kernel without it does no harm.
        if let Err(e) = fs::write("/proc/self/comm", name) {
            tracing::warn!("cannot name the process: {e}");
        }
    }
    let (events, ended) = mpsc::channel();
    watch_signals(events.clone())?;
    let machine = Machine::build(&system, args, plan, models)?;
    tracing::info!("VM {:#x} created", machine.handle);
    if args.measurement {
        let digest = machine.vm.measurement()?;
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        print(&format!("measurement {hex}\n"))?;
    }
    let status = control::serve_status(Source {
        vm: machine.vm.clone(),
        handle: machine.handle,
        name: args.name.clone(),
        protected: !args.unprotected,
        pages: machine.vcpus.iter().map(|v| v.page().clone()).collect(),
        functions: machine.functions.iter().map(Arc::downgrade).collect(),
    });
    let status = status
        .inspect_err(|e| tracing::warn!("`porthole status` will not find this VM: {e}"))
        .ok();
    let terminal = RawTerminal::enter();
    let typed_to = args
        .console
        .as_ref()
        .is_some_and(|c| c.sink() == Sink::Stdio);
    Keyboard {
        console: machine.console.clone().filter(|_| typed_to),
        serial: (args.serial == Sink::Stdio).then(|| machine.serial.clone()),
        events: events.clone(),
    }
    .start()?;
    let threads = VcpuThreads::start(machine.vcpus, &machine.bus, &events, &args.cpu_affinity)?;
    let end = ended
        .recv()
        .unwrap_or_else(|_| End::Failed("every vCPU thread is gone".to_owned()));
    threads.stop();
    drop(status);
    drop(terminal);
    report(&end, &machine.functions, machine.bus.unclaimed());
    Ok(end.status())
}

fn report(end: &End, functions: &[Arc<VirtioPci>], unclaimed: usize) {
    for function in functions {
        let status = function.status();
        if status.stats.faults > 0 {
            let (name, faults) = (status.name, status.stats.faults);
            tracing::warn!("{name} needed a reset {faults} times");
        }
    }
    tracing::info!("{unclaimed} addresses were touched where no device is");
    if let Some(message) = end.message() {
        eprintln!("porthole: {message}");
    }
}

/// Turns signals into the end of the run, in a thread of its own.
fn watch_signals(events: mpsc::Sender<End>) -> Result<(), CommandError> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if events.send(End::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}
