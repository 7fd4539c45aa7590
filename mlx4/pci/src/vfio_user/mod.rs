//! A card behind a socket: [`VfioUserPci`] is a client of a vfio-user server, for instance of the model in a
//! process of its own.
//!
//! Registers and doorbells are messages, which the server carries out in order: a write isn't waited for, as on
//! a bus; a read is. Memory is handed over as files, interrupts as eventfds.
//!
//! - `message`: the protocol's structures
//! - `link`: the connection, and how it ends
//! - `server`: what there is to be found at its other end
//! - `iommu`: addresses for DMA
//! - `error`: why it can't be used
//!
//! When the server leaves, stops answering or answers nonsense, the card is gone for good: registers read as all
//! ones, and nothing can be mapped.
//!
//! Does not: map parts of BARs that a server would let it map, serve a server's own reads and writes of memory
//! (all memory goes with a file), connect again.

mod error;
mod iommu;
mod link;
mod message;
mod server;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes;

pub use error::ConnectError;
use message::{Command, SetIrqs, argsz};
use server::Server;

use crate::{
    DmaSpace, Doorbell, DoorbellKind, DoorbellPlace, Identity, InterruptError, PciDevice, RegisterError,
    ResetError, ResetKind, Vectors, barrier,
};

/// How long a server may take for an answer, or to make room for a message. Only one that is stuck takes so
/// long, or a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(30);

/// A card at a socket, whose server has the descriptors of all memory that is mapped for it: it must be trusted as
/// a card without an IOMMU is. Dropping it ends its DMA; its server resets it when the last of its doorbells and
/// [buffers](crate::DmaBuffer) is gone too.
pub struct VfioUserPci {
    server: Arc<Server>,
    identity: Identity,
    dma: DmaSpace,
    vectors: Vectors,
    /// How many vectors are connected.
    enabled: Mutex<u16>,
}

impl VfioUserPci {
    /// Connects to the server at a Unix socket.
    ///
    /// # Errors
    /// Nobody serves an mlx4 card there; the error says what to do.
    pub fn open(path: &Path) -> Result<Self, ConnectError> {
        Self::open_within(path, PATIENCE)
    }

    /// Connects to a server that may take so long for each answer.
    fn open_within(path: &Path, patience: Duration) -> Result<Self, ConnectError> {
        let server = Arc::new(Server::connect(path, patience)?);
        let identity = identity(&server, path)?;
        let dma = iommu::space(&server);
        let vectors = Vectors::new(identity.vectors);
        Ok(Self { server, identity, dma, vectors, enabled: Mutex::new(0) })
    }

    fn bar(&self, bar: usize) -> u64 {
        self.identity.bar_bytes.get(bar).copied().unwrap_or(0)
    }

    /// Checks that a register is inside BAR0, and aligned.
    fn check_register(&self, offset: u64) -> Result<(), RegisterError> {
        let size = self.bar(0);
        if !offset.is_multiple_of(4) {
            return Err(RegisterError::Unaligned { offset, align: 4 });
        }
        if offset.checked_add(4).is_none_or(|end| end > size) {
            return Err(RegisterError::Outside { what: "BAR0", offset, len: 4, size });
        }
        Ok(())
    }

    fn enabled(&self) -> MutexGuard<'_, u16> {
        // The count is stored last, so a panic elsewhere leaves nothing half done.
        self.enabled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects the vectors from 0 to before `vectors`, as many with each message as the server takes.
    fn connect(&self, vectors: u16) -> Result<(), InterruptError> {
        let failed = |source| InterruptError::Connect { vectors, source };
        let fds = self.vectors.first(vectors)?;
        let mut start = 0;
        for fds in fds.chunks(self.server.abilities.fds) {
            let fds = fds.iter().map(|fd| fd.as_raw_fd()).collect::<Vec<_>>();
            self.set_irqs(VFIO_IRQ_SET_DATA_EVENTFD, start, &fds).map_err(failed)?;
            start += u32::try_from(fds.len()).unwrap_or(0);
        }
        Ok(())
    }

    fn disconnect(&self) -> Result<(), InterruptError> {
        let none = self.set_irqs(VFIO_IRQ_SET_DATA_NONE, 0, &[]);
        none.map_err(|source| InterruptError::Connect { vectors: 0, source })
    }

    fn set_irqs(&self, data: u32, start: u32, fds: &[RawFd]) -> io::Result<()> {
        let set = SetIrqs {
            argsz: argsz::<SetIrqs>(),
            flags: data | VFIO_IRQ_SET_ACTION_TRIGGER,
            index: VFIO_PCI_MSIX_IRQ_INDEX,
            start,
            count: u32::try_from(fds.len()).map_err(io::Error::other)?,
        };
        self.server.link.call(Command::SetIrqs, &[set.as_bytes()], fds, &mut []).map(drop)
    }
}

impl PciDevice for VfioUserPci {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError> {
        self.server.config_read(offset, data)
    }

    fn register(&self, offset: u64) -> Result<u32, RegisterError> {
        self.check_register(offset)?;
        let mut word = [0; 4];
        match self.server.read(VFIO_PCI_BAR0_REGION_INDEX, offset, &mut word) {
            Ok(()) => Ok(u32::from_be_bytes(word)),
            Err(_) if self.server.link.broken().is_some() => Ok(u32::MAX),
            Err(source) => Err(RegisterError::Io { what: "BAR0", offset, len: 4, source }),
        }
    }

    fn set_register(&self, offset: u64, value: u32) -> Result<(), RegisterError> {
        self.check_register(offset)?;
        barrier::mmio_order();
        self.server.post(VFIO_PCI_BAR0_REGION_INDEX, offset, &value.to_be_bytes());
        Ok(())
    }

    fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    fn interrupt(&self, vector: u16) -> Result<EventFd, InterruptError> {
        self.vectors.duplicate(vector)
    }

    fn enable_interrupts(&self, vectors: u16) -> Result<(), InterruptError> {
        let mut enabled = self.enabled();
        if *enabled > vectors {
            self.disconnect()?;
            *enabled = 0;
        }
        if let Err(error) = self.connect(vectors) {
            let undone = self.disconnect();
            *enabled = 0;
            return undone.and(Err(error));
        }
        *enabled = vectors;
        Ok(())
    }

    fn disable_interrupts(&self) -> Result<(), InterruptError> {
        self.enable_interrupts(0)
    }

    fn doorbell(&self, uar: u32, kind: DoorbellKind) -> Result<Arc<dyn Doorbell>, RegisterError> {
        let place = kind.place(uar, self.bar(2))?;
        Ok(Arc::new(TrappedDoorbell { server: Arc::clone(&self.server), place }))
    }

    fn reset(&self) -> Result<ResetKind, ResetError> {
        let name = || self.identity.name.clone();
        if let Some(why) = self.server.link.broken() {
            return Err(ResetError::Gone { name: name(), why: why.to_owned() });
        }
        let enabled = self.enabled();
        self.server.reset().map_err(|error| match self.server.link.broken() {
            Some(why) => ResetError::Gone { name: name(), why: why.to_owned() },
            None => ResetError::Failed { name: name(), tried: format!("the server's reset: {error}") },
        })?;
        self.server.set_command(true).map_err(|source| ResetError::Restore { name: name(), source })?;
        self.connect(*enabled)?;
        self.dma.was_reset()?;
        Ok(ResetKind::Function)
    }
}

impl Drop for VfioUserPci {
    fn drop(&mut self) {
        let Err(error) = self.server.set_command(false) else { return };
        if self.server.link.broken().is_none() {
            log::warn!("{}: bus mastering stays on: {error}", self.identity.name);
        }
    }
}

impl fmt::Debug for VfioUserPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioUserPci").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A doorbell whose ring is a message. It waits only while the server is some hundred messages behind.
struct TrappedDoorbell {
    server: Arc<Server>,
    place: DoorbellPlace,
}

impl Doorbell for TrappedDoorbell {
    fn ring(&self, value: u64) {
        barrier::mmio_order();
        let bytes = value.to_be_bytes();
        let (_, low) = bytes.split_at(4);
        let content = if self.place.wide { &bytes[..] } else { low };
        self.server.post(VFIO_PCI_BAR2_REGION_INDEX, self.place.offset, content);
    }
}

impl fmt::Debug for TrappedDoorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrappedDoorbell({:#x})", self.place.offset)
    }
}

fn identity(server: &Server, path: &Path) -> Result<Identity, ConnectError> {
    let mut bar_bytes = [0; 6];
    for (bar, size) in (VFIO_PCI_BAR0_REGION_INDEX..).zip(&mut bar_bytes) {
        *size = server.region_bytes(path, bar)?;
    }
    for bar in [0, 2] {
        if bar_bytes.get(usize::from(bar)).is_none_or(|size| *size == 0) {
            return Err(ConnectError::NoBar { path: path.to_owned(), bar });
        }
    }
    let mut header = [0; 0x30];
    server
        .config_read(0, &mut header)
        .map_err(|error| ConnectError::Describe { path: path.to_owned(), source: io::Error::other(error) })?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    Ok(Identity {
        name: format!("vfio-user:{}", path.display()),
        vendor: word(0x00),
        device: word(0x02),
        subsystem_vendor: word(0x2c),
        subsystem: word(0x2e),
        revision: header[0x08],
        bar_bytes,
        vectors: server.vectors(path)?,
        numa_node: None,
    })
}
