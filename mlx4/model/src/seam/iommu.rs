//! The addresses that the card uses for memory of this process.
//!
//! Unsafe code: one call that passes memory on from the seam to the model; both keep to the same rules.
#![expect(unsafe_code, reason = "memory passes from one keeper to the other")]

use std::io;
use std::sync::Arc;

use mlx4_pci::{DmaAccess, DmaError, DmaSpace, Geometry, HostMemory, Iommu, Limits};

use crate::mem::{self, HostRegion, MAX_MAPPINGS, PAGE_SIZE};

/// Above what a process or a guest uses for itself: 2^50, and some more with other lowest bits.
const RANGES: [(u64, u64); 3] = [
    (0x0004_0000_0010_0000, 0x0004_000f_ffff_ffff),
    (0x0004_0020_0000_0000, 0x0004_00ff_ffff_efff),
    (0x0006_0000_0000_0000, 0x0007_ffff_ffff_efff),
];

/// The space of a card that reaches memory through `memory`.
pub(super) fn space(memory: &Arc<mem::DmaSpace>) -> DmaSpace {
    let ranges = RANGES.iter().map(|(first, last)| *first..=*last).collect();
    let geometry = Geometry { ranges, granule: PAGE_SIZE };
    DmaSpace::new(geometry, Box::new(ModelIommu { memory: Arc::clone(memory) }))
}

#[derive(Debug)]
struct ModelIommu {
    memory: Arc<mem::DmaSpace>,
}

impl Iommu for ModelIommu {
    fn map(&self, iova: u64, memory: &HostMemory, access: DmaAccess) -> Result<(), DmaError> {
        let (base, len) = (memory.address(), memory.len());
        // SAFETY: the clone keeps the range mapped, readable and writable, and everybody else in this process
        // accesses it by atomic operations only: that's what a `HostMemory` is made under.
        let region = unsafe { HostRegion::new(base, len, Arc::new(memory.clone())) };
        let writable = access == DmaAccess::ReadWrite;
        self.memory.map_host(iova, region, writable).map_err(|error| match error {
            mem::DmaError::TooMany => DmaError::NoMapping { maximum: MAX_MAPPINGS as u64 },
            other => DmaError::Map { iova, len: len as u64, source: io::Error::other(other) },
        })
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), DmaError> {
        let failed = |source| DmaError::Unmap { iova, len, source };
        match self.memory.unmap(iova, len) {
            Ok(bytes) if bytes == len => Ok(()),
            Ok(bytes) => Err(failed(io::Error::other(format!("{bytes:#x} bytes of it were mapped")))),
            Err(error) => Err(failed(io::Error::other(error))),
        }
    }

    fn limits(&self) -> Result<Limits, DmaError> {
        let maximum = MAX_MAPPINGS as u64;
        Ok(Limits { left: maximum.saturating_sub(self.memory.mappings() as u64), maximum })
    }
}
