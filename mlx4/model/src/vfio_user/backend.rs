//! One client's requests, checked and handed on.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};

use super::EventFdInterrupts;
use crate::device::PciFunction;
use crate::mem::DmaSpace;

/// Bytes of PCI Express configuration space.
const CONFIG_SIZE: u64 = 4096;
/// Offset of the command register in configuration space, and its bus-master bit.
const COMMAND: u64 = 4;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Offset of the interrupt pin in configuration space; 0 if there is none.
const INTERRUPT_PIN: u64 = 0x3d;

/// Bytes of the region information without capabilities.
const REGION_INFO_SIZE: u32 = 32;
const _: () = assert!(size_of::<vfio_region_info>() == 32);

/// A function, and what the protocol's crate calls on behalf of a client.
pub(super) struct Backend {
    function: Arc<dyn PciFunction>,
    dma: Arc<DmaSpace>,
    irqs: Arc<EventFdInterrupts>,
    stopping: Arc<AtomicBool>,
}

/// A place that a client's access may go to.
enum Region {
    Bar(u8),
    Config,
}

impl Backend {
    pub(super) fn new(
        function: Arc<dyn PciFunction>,
        dma: Arc<DmaSpace>,
        irqs: Arc<EventFdInterrupts>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self { function, dma, irqs, stopping }
    }

    /// Whether the server is being stopped.
    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// What the client is told of the regions: BARs and configuration space, nothing else, no mmap.
    pub(super) fn regions(&self) -> Vec<ServerRegion> {
        (0..VFIO_PCI_NUM_REGIONS)
            .map(|index| {
                let size = region(index).map_or(0, |region| self.size(&region));
                let flags =
                    if size > 0 { VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE } else { 0 };
                let region_info = vfio_region_info {
                    argsz: REGION_INFO_SIZE,
                    flags,
                    index,
                    cap_offset: 0,
                    size,
                    offset: 0,
                };
                ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
            })
            .collect()
    }

    /// What the client is told of the interrupts: MSI-X vectors, which may be connected one by one, and
    /// INTx if the function has a pin.
    pub(super) fn irq_infos(&self) -> Vec<IrqInfo> {
        let mut pin = [0];
        self.function.config_read(INTERRUPT_PIN, &mut pin);
        (0..VFIO_PCI_NUM_IRQS)
            .map(|index| {
                let (flags, count) = match index {
                    VFIO_PCI_INTX_IRQ_INDEX if pin != [0] => {
                        (VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED, 1)
                    }
                    VFIO_PCI_MSIX_IRQ_INDEX => (VFIO_IRQ_INFO_EVENTFD, self.irqs.count()),
                    _ => (0, 0),
                };
                IrqInfo { index, flags, count }
            })
            .collect()
    }

    /// Brings everything back to where it was before the client came.
    pub(super) fn disconnected(&self) {
        self.reset_function();
        self.dma.unmap_all();
        self.irqs.disconnect();
    }

    fn reset_function(&self) {
        self.function.reset();
        self.follow_bus_master();
    }

    /// Opens or closes memory to the function as its bus-master bit says.
    fn follow_bus_master(&self) {
        let mut command = [0; 2];
        self.function.config_read(COMMAND, &mut command);
        self.dma.set_enabled(u16::from_le_bytes(command) & COMMAND_BUS_MASTER != 0);
    }

    fn size(&self, region: &Region) -> u64 {
        match region {
            Region::Bar(bar) => self.function.bar_size(*bar),
            Region::Config => CONFIG_SIZE,
        }
    }

    /// The region that an access lies in, all of it.
    fn target(&self, index: u32, offset: u64, len: usize) -> io::Result<Region> {
        if self.stopping() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        region(index)
            .filter(|region| offset.checked_add(len as u64).is_some_and(|end| end <= self.size(region)))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

fn region(index: u32) -> Option<Region> {
    match index {
        VFIO_PCI_BAR0_REGION_INDEX..=VFIO_PCI_BAR5_REGION_INDEX => u8::try_from(index).ok().map(Region::Bar),
        VFIO_PCI_CONFIG_REGION_INDEX => Some(Region::Config),
        _ => None,
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match self.target(index, offset, data.len())? {
            Region::Bar(bar) => self.function.bar_read(bar, offset, data),
            Region::Config => self.function.config_read(offset, data),
        }
        Ok(())
    }

    /// Never fails: an error is answered even where the client expects no answer, and takes its next
    /// request's answer for it. A write to nowhere is dropped, as on a bus.
    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.target(index, offset, data.len()) {
            Ok(Region::Bar(bar)) => self.function.bar_write(bar, offset, data),
            Ok(Region::Config) => {
                self.function.config_write(offset, data);
                self.follow_bus_master();
            }
            Err(_) => log::debug!("write of {} bytes to region {index} at {offset:#x} dropped", data.len()),
        }
        Ok(())
    }

    /// Memory without a descriptor (a ROM, the function's own BAR) can't be reached: it is accepted, and
    /// an access to it faults.
    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let Some(fd) = fd else {
            log::debug!("map of {size:#x} bytes at {address:#x} without a descriptor skipped");
            return Ok(());
        };
        self.dma.map_fd(address, size, &fd, offset, flags.contains(DmaMapFlags::WRITE)).map_err(|error| {
            log::warn!("map refused: {error}");
            io::Error::new(io::ErrorKind::InvalidInput, error)
        })
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            self.dma.unmap_all();
            return Ok(());
        }
        self.dma.unmap(address, size).map(|_| ()).map_err(|error| {
            log::warn!("unmap refused: {error}");
            io::Error::new(io::ErrorKind::InvalidInput, error)
        })
    }

    fn reset(&mut self) -> io::Result<()> {
        self.reset_function();
        Ok(())
    }

    /// Connects, disconnects or tests MSI-X vectors. The pin is never raised, so what is said of it is
    /// accepted without effect, as is masking, which the client does by itself.
    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        if index != VFIO_PCI_MSIX_IRQ_INDEX || flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
            return Ok(());
        }
        if flags & VFIO_IRQ_SET_DATA_EVENTFD != 0 {
            return self.irqs.connect(start, count, fds);
        }
        match (flags & VFIO_IRQ_SET_DATA_NONE, count) {
            (0, _) => Err(io::ErrorKind::InvalidInput.into()),
            (_, 0) => {
                self.irqs.disconnect();
                Ok(())
            }
            _ => self.irqs.raise(start, count),
        }
    }
}
