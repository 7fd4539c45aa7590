//! Gives an HCA to a driver in the same process: [`ModelDevice`] is `mlx4-pci`'s device on the model.
//!
//! Addresses for DMA are neither those of this process nor those that guests have, and lie in several ranges
//! with holes between them and between mappings: an address of any other kind, or one just past a mapping,
//! faults in the model and is counted.

mod iommu;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use mlx4_pci::{
    DmaSpace, Doorbell, DoorbellKind, DoorbellPlace, EventFd, Identity, InterruptError, PciDevice,
    RegisterError, ResetError, ResetKind, Vectors, barrier,
};
use mlx4_wire::regs::MSIX_VECTORS;

use crate::device::{Interrupts, PciFunction};
use crate::fabric::Fabric;
use crate::hca::{Hca, HcaConfig, HcaError};
use crate::mem;

/// Bytes of configuration space.
const CONFIG_BYTES: u64 = 4096;
/// Offset of the command register, and its bits for memory decoding and bus mastering.
const COMMAND: u64 = 4;
const COMMAND_ON: u16 = 1 << 1 | 1 << 2;

/// A card of the model, for a driver in this process. Dropping it resets the card, as closing a device does.
pub struct ModelDevice {
    hca: Arc<Hca>,
    memory: Arc<mem::DmaSpace>,
    dma: DmaSpace,
    interrupts: Arc<Messages>,
    identity: Identity,
}

impl ModelDevice {
    /// Makes a card and plugs it into a fabric.
    ///
    /// # Errors
    /// As for [`Hca::new`].
    pub fn new(config: HcaConfig, fabric: &Arc<Fabric>) -> Result<Self, HcaError> {
        let memory = Arc::new(mem::DmaSpace::new());
        let interrupts = Arc::new(Messages::new(MSIX_VECTORS));
        let raise: Arc<dyn Interrupts> = Arc::<Messages>::clone(&interrupts);
        let hca = Hca::new(config, Arc::clone(&memory), raise, fabric)?;
        let dma = iommu::space(&memory);
        let identity = identity(&hca, interrupts.vectors.count());
        Ok(Self { hca, memory, dma, interrupts, identity })
    }

    /// The card itself.
    pub fn hca(&self) -> &Arc<Hca> {
        &self.hca
    }

    /// Accesses to memory that the card tried and was refused since it was made, for whatever cause.
    pub fn refused(&self) -> u64 {
        self.memory.refused() + self.memory.held_back()
    }

    /// Checks that a register is inside BAR0, and aligned.
    fn check_register(&self, offset: u64) -> Result<(), RegisterError> {
        let size = self.hca.bar_size(0);
        if !offset.is_multiple_of(4) {
            return Err(RegisterError::Unaligned { offset, align: 4 });
        }
        if offset.checked_add(4).is_none_or(|end| end > size) {
            return Err(RegisterError::Outside { what: "BAR0", offset, len: 4, size });
        }
        Ok(())
    }
}

impl PciDevice for ModelDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError> {
        let len = data.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > CONFIG_BYTES) {
            let what = "configuration space";
            return Err(RegisterError::Outside { what, offset, len, size: CONFIG_BYTES });
        }
        self.hca.config_read(offset, data);
        Ok(())
    }

    fn register(&self, offset: u64) -> Result<u32, RegisterError> {
        self.check_register(offset)?;
        let mut word = [0; 4];
        self.hca.bar_read(0, offset, &mut word);
        Ok(u32::from_be_bytes(word))
    }

    fn set_register(&self, offset: u64, value: u32) -> Result<(), RegisterError> {
        self.check_register(offset)?;
        barrier::mmio_order();
        self.hca.bar_write(0, offset, &value.to_be_bytes());
        Ok(())
    }

    fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    fn interrupt(&self, vector: u16) -> Result<EventFd, InterruptError> {
        self.interrupts.vectors.duplicate(vector)
    }

    fn enable_interrupts(&self, vectors: u16) -> Result<(), InterruptError> {
        self.interrupts.vectors.first(vectors)?;
        self.interrupts.enabled.store(vectors, Ordering::SeqCst);
        Ok(())
    }

    fn disable_interrupts(&self) -> Result<(), InterruptError> {
        self.interrupts.enabled.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn doorbell(&self, uar: u32, kind: DoorbellKind) -> Result<Arc<dyn Doorbell>, RegisterError> {
        let place = kind.place(uar, self.hca.bar_size(2))?;
        Ok(Arc::new(ModelDoorbell { hca: Arc::clone(&self.hca), place }))
    }

    fn reset(&self) -> Result<ResetKind, ResetError> {
        self.hca.reset();
        self.hca.config_write(COMMAND, &COMMAND_ON.to_le_bytes());
        self.dma.was_reset()?;
        Ok(ResetKind::Function)
    }
}

impl Drop for ModelDevice {
    fn drop(&mut self) {
        self.hca.reset();
    }
}

impl fmt::Debug for ModelDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelDevice").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The card's messages, as eventfds.
struct Messages {
    vectors: Vectors,
    /// Vectors from 0 that are connected.
    enabled: AtomicU16,
}

impl Messages {
    fn new(count: u16) -> Self {
        Self { vectors: Vectors::new(count), enabled: AtomicU16::new(0) }
    }
}

impl Interrupts for Messages {
    fn signal(&self, vector: u16) {
        if vector < self.enabled.load(Ordering::SeqCst)
            && let Err(error) = self.vectors.signal(vector)
        {
            log::trace!("interrupt {vector} lost: {error}");
        }
    }
}

/// A doorbell that is rung by a call.
struct ModelDoorbell {
    hca: Arc<Hca>,
    place: DoorbellPlace,
}

impl Doorbell for ModelDoorbell {
    fn ring(&self, value: u64) {
        barrier::mmio_order();
        let bytes = value.to_be_bytes();
        let (_, low) = bytes.split_at(4);
        let content = if self.place.wide { &bytes[..] } else { low };
        self.hca.bar_write(2, self.place.offset, content);
    }
}

impl fmt::Debug for ModelDoorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelDoorbell({:#x})", self.place.offset)
    }
}

fn identity(hca: &Hca, vectors: u16) -> Identity {
    let word = |offset| {
        let mut bytes = [0; 2];
        hca.config_read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    let [revision, _] = word(0x08).to_le_bytes();
    Identity {
        name: format!("model:{:016x}", hca.node_guid()),
        vendor: word(0x00),
        device: word(0x02),
        subsystem_vendor: word(0x2c),
        subsystem: word(0x2e),
        revision,
        bar_bytes: [0, 1, 2, 3, 4, 5].map(|bar| hca.bar_size(bar)),
        vectors,
        numa_node: None,
    }
}
