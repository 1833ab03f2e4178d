//! Commands of the host: copied out of its queue one by one, checked against tables, devices and redistributors, and
//! issued through EL2's own queue. What an ITT is, and how long its pages are pinned, is decided here; registers are not
//! seen here.

use porthole_abi::Error;

use super::{Device, Its, Kind, Site, by_address};
use crate::addr::{PhysAddr, PhysPages};
use crate::gic_guard::command::{Command, Words};
use crate::gic_guard::queue::Failure;
use crate::gic_guard::redistributor::unpin;
use crate::gic_guard::{is_told, pages_of};
use crate::hw::Machine;

/// Most pages of an ITT: what one command pins under the lock.
const ITT_PAGES_MAX: u64 = 512;

const COMMAND_BYTES: u64 = 32;
/// Commands that one access of the host has done, at most; the next access goes on.
const BATCH: usize = 128;

impl<M: Machine> Its<M> {
    /// Unmaps every device, by command, so that the ITS forgets what it has cached of their ITTs. It is idle before
    /// and after.
    pub(super) fn forget_devices(&mut self, site: &Site<'_, M>) -> Result<(), Failure> {
        if self.devices.is_empty() {
            return Ok(());
        }
        self.queue.enable(site.machine);
        let forgotten = self.unmap_all(site);
        self.queue.disable(site.machine)?;
        forgotten
    }

    fn unmap_all(&mut self, site: &Site<'_, M>) -> Result<(), Failure> {
        while let Some(device) = self.devices.last().copied() {
            self.unmap_device(site, device.id)?;
        }
        Ok(())
    }

    /// Has the host's next commands done, up to the first that is refused.
    pub(super) fn process(&mut self, site: &Site<'_, M>) {
        let Some(pages) = self.host.pages else {
            return;
        };
        if self.host.writer >= pages.bytes() || !self.queue.is_enabled(site.machine) {
            return;
        }
        for _ in 0..BATCH {
            if self.host.stalled || self.host.reader == self.host.writer {
                return;
            }
            let at = PhysAddr::new(pages.start().raw() + self.host.reader);
            let words = copy(site, at);
            let result = words.and_then(|words| {
                let command = Command::decode(&words).ok_or(Error::InvalidParameter)?;
                self.execute(site, command)
            });
            match result {
                Ok(()) => self.host.reader = (self.host.reader + COMMAND_BYTES) % pages.bytes(),
                Err(failure) => {
                    self.host.stalled = true;
                    if is_told(&mut self.refused) {
                        let words = words.unwrap_or_default();
                        log::warn!(
                            "an ITS command at {at} is refused: {failure}; its words are {words:x?}"
                        );
                    }
                }
            }
        }
    }

    /// Checks a command and has it done, or refuses it with nothing changed; a MAPD that the hardware alone refuses
    /// leaves its device unmapped.
    fn execute(&mut self, site: &Site<'_, M>, command: Command) -> Result<(), Failure> {
        if self.queue.is_dead() {
            return Err(Failure::Dead);
        }
        let by_address = by_address(self.typer);
        let is_sound = match command {
            Command::Mapd { device, itt: None } => {
                return self.unmap_device(site, device);
            }
            Command::Mapd {
                device,
                itt: Some((itt, bits)),
            } => {
                let device = Device {
                    id: device,
                    bits,
                    itt,
                };
                return self.map_device(site, device);
            }
            Command::Event { device, event, .. } => self.has_event(device, event),
            Command::Movi {
                device,
                event,
                collection,
            } => self.has_event(device, event) && self.has_collection(collection),
            Command::Mapti {
                device,
                event,
                intid,
                collection,
            } => {
                self.has_event(device, event)
                    && self.has_collection(collection)
                    && (8192..2 << site.id_bits).contains(&u64::from(intid))
            }
            Command::Mapc { collection, target } => {
                let exists = |target| site.has_target(by_address, target);
                self.has_collection(collection) && target.is_none_or(exists)
            }
            Command::Invall { collection } => self.has_collection(collection),
            Command::Movall { from, to } => [from, to].into_iter().all(|target| {
                let mut all = site.redistributors.iter();
                all.any(|r| r.target(by_address) == target && r.property_table().is_some())
            }),
            Command::Sync { target } => site.has_target(by_address, target),
        };
        if !is_sound {
            return Err(Error::InvalidParameter.into());
        }
        self.queue.issue(site.machine, command)
    }

    fn has_event(&self, device: u32, event: u32) -> bool {
        let mut devices = self.devices.iter();
        devices.any(|d| d.id == device && u64::from(event) < 2 << d.bits)
    }

    fn has_collection(&self, collection: u16) -> bool {
        let in_memory = self.live_table(Kind::Collections).map_or(0, |t| t.entries);
        let in_hardware = self.typer >> 24 & 0xff;
        // GITS_TYPER.CCT: the two add up. Else memory alone counts, where there is a table.
        let count = match (self.typer >> 2 & 1, in_memory) {
            (1, _) => in_memory + in_hardware,
            (_, 0) => in_hardware,
            _ => in_memory,
        };
        // GITS_TYPER.CIL: CIDbits counts.
        let bits = if self.typer >> 36 & 1 != 0 {
            (self.typer >> 32 & 0xf) + 1
        } else {
            16
        };
        u64::from(collection) < count.min(1 << bits)
    }

    fn itt_pages(&self, device: &Device) -> Result<PhysPages, Error> {
        let entry = (self.typer >> 4 & 0xf) + 1;
        let pages = pages_of(device.itt.raw(), entry << (device.bits + 1))?;
        if pages.count() > ITT_PAGES_MAX {
            return Err(Error::TooLarge);
        }
        Ok(pages)
    }

    /// MAPD with Valid: the ITT's pages are pinned as long as the device is mapped to it. A device that is mapped
    /// already is unmapped first, so that its old ITT goes as it always does, or stays known where that is refused.
    fn map_device(&mut self, site: &Site<'_, M>, device: Device) -> Result<(), Failure> {
        let ids = 2u64 << (self.typer >> 13 & 0x1f);
        let entries = self.live_table(Kind::Devices).map_or(0, |t| t.entries);
        if u64::from(device.id) >= ids.min(entries) || device.bits > (self.typer >> 8 & 0x1f) as u8
        {
            return Err(Error::InvalidParameter.into());
        }
        if self.devices.is_full() && self.devices.iter().all(|d| d.id != device.id) {
            return Err(Error::NoSlot.into());
        }
        let pages = self.itt_pages(&device)?;
        site.memory.pin(&pages)?;
        let command = Command::Mapd {
            device: device.id,
            itt: Some((device.itt, device.bits)),
        };
        let mapped = self
            .unmap_device(site, device.id)
            .and_then(|()| self.queue.issue(site.machine, command));
        match mapped {
            Ok(()) => self.devices.push(device),
            Err(Failure::Refused(_)) => unpin(site.memory, &pages),
            // It may carry the command out yet.
            Err(Failure::Dead) => {}
        }
        mapped
    }

    /// MAPD without Valid. A device that is not mapped stays so.
    fn unmap_device(&mut self, site: &Site<'_, M>, device: u32) -> Result<(), Failure> {
        let Some(slot) = self.devices.iter().position(|d| d.id == device) else {
            return Ok(());
        };
        let pages = self.itt_pages(&self.devices[slot])?;
        let command = Command::Mapd { device, itt: None };
        self.queue.issue(site.machine, command)?;
        self.sync(site)?;
        unpin(site.memory, &pages);
        self.devices.swap_remove(slot);
        Ok(())
    }

    /// Waits until every redistributor has seen the effects of what was issued: no earlier ITT is used any more.
    fn sync(&mut self, site: &Site<'_, M>) -> Result<(), Failure> {
        let by_address = by_address(self.typer);
        for redistributor in site.redistributors {
            let target = redistributor.target(by_address);
            self.queue.issue(site.machine, Command::Sync { target })?;
        }
        Ok(())
    }
}

impl<M: Machine> Site<'_, M> {
    /// Whether RDbase names a redistributor.
    fn has_target(&self, by_address: bool, target: u64) -> bool {
        let mut all = self.redistributors.iter();
        all.any(|r| r.target(by_address) == target)
    }
}

/// Copies a command out of the host's queue, once.
fn copy<M: Machine>(site: &Site<'_, M>, at: PhysAddr) -> Result<Words, Failure> {
    let mut bytes = [0; COMMAND_BYTES as usize];
    site.memory.copy_from_host(site.machine, at, &mut bytes)?;
    let mut words = Words::default();
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(words)
}
