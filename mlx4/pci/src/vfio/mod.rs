//! A card behind the kernel's VFIO: [`VfioPci`].
//!
//! `vfio-ioctls` opens container, group and device; where it lacks a call or hides an error, the call is made
//! here, on its descriptor. Registers and doorbells are reached by mmap.
//!
//! - `address`, `host`, `error`: which card, what sysfs says of it, and what to do if it can't be used
//! - `holder`: who else has the card
//! - `card`, `bar`: the opened device, its configuration space and BARs
//! - `info`, `iommu`: addresses for DMA
//! - `reset`: ways of resetting
//! - `ioctl`, `mmio`: unsafe code
//!
//! Does not: bind a device to vfio-pci, use iommufd, or restore what a reset through the card's own register
//! wipes beyond VFIO's reach.

mod address;
mod bar;
mod card;
mod error;
mod holder;
mod host;
mod info;
mod ioctl;
mod iommu;
mod mmio;
mod reset;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

pub use address::PciAddress;
use bar::Bar;
use card::Card;
pub use error::OpenError;
pub use holder::{Holder, holders};
use host::Host;

use crate::{
    DmaSpace, Doorbell, DoorbellKind, Identity, InterruptError, PciDevice, RegisterError, ResetError,
    ResetKind, Vectors,
};

/// A card that is bound to vfio-pci. Dropping it ends its DMA; the kernel resets it when the last of its
/// doorbells and [buffers](crate::DmaBuffer) is gone too.
pub struct VfioPci {
    card: Arc<Card>,
    identity: Identity,
    bar0: Bar,
    bar2: Arc<Bar>,
    dma: DmaSpace,
    vectors: Vectors,
    /// How many vectors are connected.
    enabled: Mutex<u16>,
}

impl VfioPci {
    /// Opens the card at a path, e.g. `vfio:0000:01:00.0`.
    ///
    /// # Errors
    /// The card isn't there, isn't bound to vfio-pci, or can't be used; the error says what to do.
    pub fn open(path: &str) -> Result<Self, OpenError> {
        Self::open_under(Path::new("/"), path)
    }

    /// Opens a card of a host whose `sys` and `dev` are in a certain folder.
    fn open_under(root: &Path, path: &str) -> Result<Self, OpenError> {
        let address: PciAddress = path.parse()?;
        if !cfg!(target_arch = "x86_64") {
            return Err(OpenError::Processor);
        }
        let card = Arc::new(Card::open(address, Host::new(root, address))?);
        let identity = identity(&card)?;
        let bar0 = card.map_bar(0, "BAR0")?;
        let bar2 = Arc::new(card.map_bar(2, "BAR2")?);
        let dma =
            iommu::space(&card).map_err(|source| card.failed("find out what its IOMMU can do", source))?;
        let vectors = Vectors::new(identity.vectors);
        Ok(Self { card, identity, bar0, bar2, dma, vectors, enabled: Mutex::new(0) })
    }

    fn enabled(&self) -> MutexGuard<'_, u16> {
        // The count is stored last, so a panic elsewhere leaves nothing half done.
        self.enabled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects the first vectors, or none.
    fn connect(&self, vectors: u16) -> Result<(), InterruptError> {
        let fds = self.vectors.first(vectors)?;
        let fds = fds.into_iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>();
        ioctl::set_msix(self.card.fd(), &fds).map_err(|source| InterruptError::Connect { vectors, source })
    }
}

impl PciDevice for VfioPci {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError> {
        self.card.config_read(offset, data)
    }

    fn register(&self, offset: u64) -> Result<u32, RegisterError> {
        self.bar0.read32(offset)
    }

    fn set_register(&self, offset: u64, value: u32) -> Result<(), RegisterError> {
        self.bar0.write32(offset, value)
    }

    fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    fn interrupt(&self, vector: u16) -> Result<EventFd, InterruptError> {
        self.vectors.duplicate(vector)
    }

    fn enable_interrupts(&self, vectors: u16) -> Result<(), InterruptError> {
        let mut enabled = self.enabled();
        // Kernels before 6.5 can't enlarge a set that is connected.
        if *enabled > 0 {
            self.connect(0)?;
            *enabled = 0;
        }
        if vectors > 0 {
            self.connect(vectors)?;
        }
        *enabled = vectors;
        Ok(())
    }

    fn disable_interrupts(&self) -> Result<(), InterruptError> {
        self.enable_interrupts(0)
    }

    fn doorbell(&self, uar: u32, kind: DoorbellKind) -> Result<Arc<dyn Doorbell>, RegisterError> {
        let place = kind.place(uar, self.bar2.size())?;
        Ok(Arc::new(self.bar2.doorbell(place)?))
    }

    fn reset(&self) -> Result<ResetKind, ResetError> {
        let name = || self.identity.name.clone();
        let mut enabled = self.enabled();
        let vectors = *enabled;
        if vectors > 0 {
            self.connect(0)?;
            *enabled = 0;
        }
        let result = reset::reset(&self.card, &self.bar0);
        if result.is_ok() {
            let command = self.card.set_command(true);
            command.map_err(|error| ResetError::Restore { name: name(), source: io::Error::other(error) })?;
        }
        if vectors > 0 {
            self.connect(vectors)?;
            *enabled = vectors;
        }
        let kind = result.map_err(|tried| ResetError::Failed { name: name(), tried })?;
        self.dma.was_reset()?;
        Ok(kind)
    }
}

impl Drop for VfioPci {
    fn drop(&mut self) {
        if let Err(error) = self.card.set_command(false) {
            log::warn!("{}: bus mastering stays on: {error}", self.identity.name);
        }
    }
}

impl fmt::Debug for VfioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioPci").field("identity", &self.identity).finish_non_exhaustive()
    }
}

fn identity(card: &Card) -> Result<Identity, OpenError> {
    let mut header = [0; 0x30];
    card.config_read(0, &mut header)
        .map_err(|error| card.failed("read its configuration space", io::Error::other(error)))?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    Ok(Identity {
        name: format!("vfio:{}", card.address),
        vendor: word(0x00),
        device: word(0x02),
        subsystem_vendor: word(0x2c),
        subsystem: word(0x2e),
        revision: header[0x08],
        bar_bytes: card.bar_bytes()?,
        vectors: card.vectors()?,
        numa_node: card.host.numa_node(),
    })
}
