//! The device models that the command line asks for, with the files behind them opened: what is wrong with those
//! shows before there is a VM. Where the devices go is for `devices`, what they do for `virtio`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::{Backend, DeviceArgs, DiskArgs, DiskFormat, NetArgs, RunArgs, Sink};
use crate::devices::DeviceSpec;
use crate::virtio::VirtioDevice;
use crate::virtio::block::disk::{Disk, ImageError};
use crate::virtio::block::qcow2::Qcow2Disk;
use crate::virtio::block::raw::{RawDisk, RawOptions};
use crate::virtio::block::{self, Block, BlockSettings};
use crate::virtio::console::{Console, Input, Output};
use crate::virtio::net::{Net, NetError, NetOptions};
use crate::virtio::rng::Rng;
use crate::virtio::transport::common::Swiotlb;
use crate::virtio::vsock::{Vsock, VsockError};

/// What a device needs cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file for a console.
    #[error("cannot open {} for {what}: {source}; check the path and its permissions", path.display())]
    Sink {
        /// Which console.
        what: &'static str,
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A disk's image.
    #[error("{name}: {source}")]
    Image {
        /// The disk.
        name: String,
        /// What is wrong with it.
        source: ImageError,
    },
    /// Where random bytes come from.
    #[error("{name}: cannot open {}: {source}; name another file with src=", path.display())]
    Random {
        /// The device.
        name: String,
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A network device's interface, program or socket.
    #[error("{name}: {source}")]
    Net {
        /// The device.
        name: String,
        /// Why.
        source: NetError,
    },
    /// The socket device's socket.
    #[error("{name}: {source}")]
    Vsock {
        /// The device.
        name: String,
        /// Why.
        source: VsockError,
    },
    /// Descriptors.
    #[error("cannot set up a device: {0}")]
    System(#[from] io::Error),
}

/// All devices of a machine.
pub struct Models {
    /// In the order of their places on the bus.
    pub specs: Vec<DeviceSpec>,
    /// The console's input; the console is the first of the devices then.
    pub input: Option<Arc<Input>>,
}

impl Models {
    /// Makes the models of what `args` asks for.
    pub fn open(args: &RunArgs) -> Result<Self, ModelError> {
        let mut models = Self {
            specs: Vec::new(),
            input: None,
        };
        if let Some(asked) = &args.console {
            let (input, device) = console(&asked.sink())?;
            models.add(args, &asked.device, device);
            models.input = Some(input);
        }
        for asked in &args.disks {
            models.add(args, &asked.device, disk(asked)?);
        }
        for asked in &args.nets {
            let device = net(asked).map_err(|source| ModelError::Net {
                name: asked.device.id.clone(),
                source,
            })?;
            models.add(args, &asked.device, device);
        }
        if let Some(asked) = &args.vsock {
            let device =
                Vsock::new(asked.cid, &asked.path).map_err(|source| ModelError::Vsock {
                    name: asked.device.id.clone(),
                    source,
                })?;
            models.add(args, &asked.device, device);
        }
        if let Some(asked) = &args.rng {
            let device = Rng::open(&asked.source).map_err(|source| ModelError::Random {
                name: asked.device.id.clone(),
                path: asked.source.clone(),
                source,
            })?;
            models.add(args, &asked.device, device);
        }
        Ok(models)
    }

    fn add(&mut self, args: &RunArgs, asked: &DeviceArgs, device: impl VirtioDevice + 'static) {
        self.specs.push(DeviceSpec {
            name: asked.id.clone(),
            device: Box::new(device),
            swiotlb: Swiotlb {
                mode: asked.mode(),
                bit: args.swiotlb_feature_bit,
                cfg_type: args.swiotlb_cfg_type,
                pool: args.dt_pool > 0,
            },
            window: asked.window.map(|size| size.0),
            group: asked.group.clone(),
        });
    }
}

/// A disk over its image.
fn disk(asked: &DiskArgs) -> Result<Block, ModelError> {
    let name = &asked.device.id;
    let raw = |any_content| RawOptions {
        readonly: asked.readonly,
        direct: asked.direct,
        any_content,
    };
    let opened = match asked.format {
        None => RawDisk::open(&asked.path, raw(false)).map(|d| Arc::new(d) as Arc<dyn Disk>),
        Some(DiskFormat::Raw) => {
            RawDisk::open(&asked.path, raw(true)).map(|d| Arc::new(d) as Arc<dyn Disk>)
        }
        Some(DiskFormat::Qcow2) => Qcow2Disk::open(&asked.path, asked.readonly, asked.direct)
            .map(|d| Arc::new(d) as Arc<dyn Disk>),
    };
    let image = opened.map_err(|source| ModelError::Image {
        name: name.clone(),
        source,
    })?;
    let settings = BlockSettings {
        id: name.clone(),
        readonly: asked.readonly,
        queues: asked.queues.unwrap_or(1),
        queue_size: asked.queue_size.unwrap_or(block::QUEUE_SIZE),
    };
    Ok(Block::new(image, &settings))
}

/// A network device over its carrier.
fn net(asked: &NetArgs) -> Result<Net, NetError> {
    let options = NetOptions {
        mac: asked.mac,
        queues: asked.queues,
        queue_size: asked.queue_size,
        mtu: asked.mtu,
    };
    match &asked.backend {
        Some(Backend::Tap(name)) => Net::tap(name, asked.create, options),
        Some(Backend::Socket(path)) => Net::socket(path, asked.listen, options),
        // The options let no device through that has none.
        Some(Backend::User) | None => Net::user(options, &asked.tcp, &asked.udp),
    }
}

/// Where a console writes; `None` if nowhere or back to the guest.
pub fn stream(what: &'static str, sink: &Sink) -> Result<Option<File>, ModelError> {
    match sink {
        Sink::Off | Sink::Echo => Ok(None),
        // Unbuffered, and not behind the lock of `Stdout`.
        Sink::Stdio => Ok(Some(File::from(io::stdout().as_fd().try_clone_to_owned()?))),
        Sink::File(path) => create(path).map(Some).map_err(|source| ModelError::Sink {
            what,
            path: path.clone(),
            source,
        }),
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).open(path)
}

/// The virtio console and its input.
fn console(sink: &Sink) -> Result<(Arc<Input>, Console), ModelError> {
    let input = Arc::new(Input::new()?);
    let output = match stream("the virtio console", sink)? {
        Some(stream) => Output::Stream(Box::new(stream)),
        None => Output::Echo(input.clone()),
    };
    Ok((input.clone(), Console::new(input, output)))
}
