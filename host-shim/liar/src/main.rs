//! lying-vmm: runs a guest as `porthole run` does, and adds devices that lie to their drivers. For tests only.
//! The guest says which lie it wants to hear (`lie`), so that a run of it goes through all of them, one by one.
//! Honest devices are those of the options; the liars come behind them on the bus.
#![forbid(unsafe_code)]

mod bus;
mod device;
mod lie;
mod models;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use clap::Parser;
use porthole_uapi::{DEVICE, System};
use porthole_vmm::boot::plan::Plan;
use porthole_vmm::cli::{RunArgs, RunOptions, SwiotlbMode};
use porthole_vmm::devices::DeviceSpec;
use porthole_vmm::end::End;
use porthole_vmm::machine::Machine;
use porthole_vmm::models::Models;
use porthole_vmm::vcpu::VcpuThreads;
use porthole_vmm::virtio::transport::common::Swiotlb;

use crate::device::Lying;
use crate::lie::Lie;

/// Runs a guest with devices that lie to it: three disks, then an entropy device, a console with ports, a network and
/// a socket device, in the slots behind those that the options of `porthole run` ask for. Needs --console off.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: RunOptions,
}

/// Disks: one that breaks stays broken.
const DISKS: usize = 3;

fn liars(args: &RunArgs, models: &mut Models) -> Vec<Arc<Lie>> {
    let mut lies = Vec::new();
    let mut add = |name: String, model: Box<dyn models::Model>| {
        let lie = Arc::new(Lie::default());
        lies.push(lie.clone());
        models.specs.push(DeviceSpec {
            name,
            device: Box::new(Lying::new(model, lie)),
            swiotlb: Swiotlb {
                mode: SwiotlbMode::Require,
                bit: args.swiotlb_feature_bit,
                cfg_type: args.swiotlb_cfg_type,
                pool: false,
            },
            window: None,
            group: None,
        });
    };
    for number in 0..DISKS {
        add(format!("liar-disk{number}"), models::disk());
    }
    add("liar-rng".to_owned(), models::rng());
    add("liar-console".to_owned(), models::console());
    add("liar-net".to_owned(), models::net());
    add("liar-vsock".to_owned(), models::vsock());
    lies
}

fn run() -> Result<u8, Box<dyn Error>> {
    let args = Cli::parse().run.resolve()?;
    if args.console.is_some() {
        return Err(
            "give --console off: a console of the product would be one more device in front".into(),
        );
    }
    let plan = Plan::new(&args.kernel, args.initrd.as_deref(), args.mem.0)?;
    let mut models = Models::open(&args)?;
    let first = u8::try_from(1 + models.specs.len())?;
    let lies = liars(&args, &mut models);
    let (events, ended) = mpsc::channel();
    let machine = Machine::build(&System::open(Path::new(DEVICE))?, &args, plan, models)?;
    let bus = Arc::new(bus::lying(machine.bus, first, lies)?);
    let threads = VcpuThreads::start(machine.vcpus, &bus, &events, &args.cpu_affinity)?;
    let end = ended
        .recv()
        .unwrap_or_else(|_| End::Failed("every vCPU thread is gone".to_owned()));
    threads.stop();
    if let Some(message) = end.message() {
        eprintln!("lying-vmm: {message}");
    }
    Ok(end.status())
}

fn main() -> ExitCode {
    run().map(ExitCode::from).unwrap_or_else(|e| {
        eprintln!("lying-vmm: {e}");
        ExitCode::FAILURE
    })
}
