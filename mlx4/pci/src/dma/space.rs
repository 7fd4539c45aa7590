//! Maps, unmaps, and keeps what the device may still use.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::iova::IovaAllocator;
use super::{DmaAccess, DmaBuffer, DmaError, Geometry, HostMemory, Iommu, Limits};

/// The bus addresses of one device, and the memory behind them. A clone is the same space.
///
/// Memory is never taken from under a device that may still use it: a [`DmaBuffer`] that is dropped without
/// [`DmaBuffer::release`] goes into quarantine, mapped, until the next [reset](crate::PciDevice::reset).
#[derive(Clone)]
pub struct DmaSpace {
    inner: Arc<Inner>,
}

struct Inner {
    iommu: Box<dyn Iommu>,
    geometry: Geometry,
    state: Mutex<State>,
    /// Counts resets, from 1.
    epoch: AtomicU64,
}

struct State {
    iovas: IovaAllocator,
    quarantine: Vec<Mapping>,
}

/// A range of bus addresses and the memory behind it.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) iova: u64,
    pub(super) memory: HostMemory,
}

impl Mapping {
    pub(super) fn len(&self) -> u64 {
        self.memory.len() as u64
    }
}

impl DmaSpace {
    /// An empty space, for whoever implements [`PciDevice`](crate::PciDevice).
    pub fn new(geometry: Geometry, iommu: Box<dyn Iommu>) -> Self {
        let iovas = IovaAllocator::new(geometry.clone());
        let state = Mutex::new(State { iovas, quarantine: Vec::new() });
        Self { inner: Arc::new(Inner { iommu, geometry, state, epoch: AtomicU64::new(1) }) }
    }

    /// Which addresses the device can use.
    pub fn geometry(&self) -> &Geometry {
        &self.inner.geometry
    }

    /// How many mappings the space takes.
    ///
    /// # Errors
    /// The host doesn't tell.
    pub fn limits(&self) -> Result<Limits, DmaError> {
        self.inner.iommu.limits()
    }

    /// Zeroed memory, mapped for reading and writing at an address that is a multiple of `align` (a power of
    /// two). The length is rounded up to the granule of the space, both in bytes. At least one granule on
    /// each side of it stays unmapped.
    ///
    /// # Errors
    /// No memory, no address, no mapping left, or the limit on locked memory is passed.
    pub fn allocate(&self, len: usize, align: u64) -> Result<DmaBuffer, DmaError> {
        let granule = self.inner.geometry.granule;
        let wanted = DmaError::Size { len: len as u64, align };
        if len == 0 || !align.is_power_of_two() {
            return Err(wanted);
        }
        let rounded =
            (len as u64).checked_next_multiple_of(granule).and_then(|len| usize::try_from(len).ok());
        let Some(len) = rounded else { return Err(wanted) };
        let memory =
            HostMemory::allocate(len).map_err(|source| DmaError::Allocate { len: len as u64, source })?;
        self.map(memory, align, DmaAccess::ReadWrite)
    }

    /// Maps memory at an address that is a multiple of `align` (a power of two) and that the space chooses.
    ///
    /// # Errors
    /// As for [`DmaSpace::allocate`]; also if the memory isn't aligned to the granule.
    pub fn map(&self, memory: HostMemory, align: u64, access: DmaAccess) -> Result<DmaBuffer, DmaError> {
        let len = memory.len() as u64;
        if !align.is_power_of_two() {
            return Err(DmaError::Size { len, align });
        }
        self.check(0, &memory)?;
        let align = align.max(self.inner.geometry.granule);
        let iova = self.state().iovas.take_any(len, align)?;
        self.map_taken(Mapping { iova, memory }, access)
    }

    /// Maps memory at a certain address.
    ///
    /// # Errors
    /// The range is reserved or in use; else as for [`DmaSpace::map`].
    pub fn map_at(&self, iova: u64, memory: HostMemory, access: DmaAccess) -> Result<DmaBuffer, DmaError> {
        self.check(iova, &memory)?;
        self.state().iovas.take(iova, memory.len() as u64)?;
        self.map_taken(Mapping { iova, memory }, access)
    }

    /// From now on, [`DmaSpace::allocate`] and [`DmaSpace::map`] choose addresses in these ranges only, which are
    /// parts of those of the [geometry](DmaSpace::geometry). The others are for [`DmaSpace::map_at`] alone.
    pub fn choose_within(&self, ranges: Vec<RangeInclusive<u64>>) {
        self.state().iovas.choose_within(ranges);
    }

    /// Bytes that nobody uses but the device may: they stay mapped until the next reset.
    pub fn quarantined(&self) -> u64 {
        self.state().quarantine.iter().map(Mapping::len).sum()
    }

    /// Tells the space that the device was reset and has forgotten every address: unmaps what is in
    /// quarantine. For whoever implements [`PciDevice`](crate::PciDevice).
    ///
    /// # Errors
    /// The first mapping that the host didn't take back; it stays in quarantine, others don't.
    pub fn was_reset(&self) -> Result<(), DmaError> {
        let quarantine = {
            let mut state = self.state();
            self.inner.epoch.fetch_add(1, Ordering::SeqCst);
            std::mem::take(&mut state.quarantine)
        };
        let mut result = Ok(());
        for mapping in quarantine {
            result = result.and(self.unmap(mapping));
        }
        result
    }

    /// How many resets there have been, from 1.
    pub(super) fn epoch(&self) -> u64 {
        self.inner.epoch.load(Ordering::SeqCst)
    }

    /// Unmaps a range and gives its addresses back. What the host doesn't unmap goes into quarantine.
    pub(super) fn unmap(&self, mapping: Mapping) -> Result<(), DmaError> {
        let result = self.inner.iommu.unmap(mapping.iova, mapping.len());
        let mut state = self.state();
        if result.is_ok() {
            state.iovas.give_back(mapping.iova);
        } else {
            state.quarantine.push(mapping);
        }
        result
    }

    /// Takes care of a range whose owner is gone. If the device may know its address since the epoch
    /// `exposed`, it stays mapped until the next reset.
    pub(super) fn abandon(&self, mapping: Mapping, exposed: u64) {
        {
            let mut state = self.state();
            if exposed == self.epoch() {
                log::debug!("{:#x}+{:#x} stays mapped until the next reset", mapping.iova, mapping.len());
                state.quarantine.push(mapping);
                return;
            }
        }
        if let Err(error) = self.unmap(mapping) {
            log::warn!("{error}");
        }
    }

    fn map_taken(&self, mapping: Mapping, access: DmaAccess) -> Result<DmaBuffer, DmaError> {
        if let Err(error) = self.inner.iommu.map(mapping.iova, &mapping.memory, access) {
            self.state().iovas.give_back(mapping.iova);
            return Err(error);
        }
        Ok(DmaBuffer::new(self.clone(), mapping, access))
    }

    /// Checks that everything about a mapping is a multiple of the granule.
    fn check(&self, iova: u64, memory: &HostMemory) -> Result<(), DmaError> {
        let (granule, offset, len) = (self.inner.geometry.granule, memory.offset(), memory.len() as u64);
        let address = memory.address().addr().get() as u64;
        if len == 0 || [iova, offset, len, address].iter().any(|value| !value.is_multiple_of(granule)) {
            return Err(DmaError::Unaligned { iova, len, offset, granule });
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one call on one collection, so a panic elsewhere leaves nothing half done.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace")
            .field("iommu", &self.inner.iommu)
            .field("quarantined", &self.quarantined())
            .finish_non_exhaustive()
    }
}
