//! Memory for DMA: bus addresses (IOVAs), the memory behind them, and when it may be unmapped.
//!
//! A [`DmaSpace`] belongs to one device. It hands out [`DmaBuffer`]s: memory of its own, or memory that the
//! caller has mapped already ([`HostMemory`]). What differs from device to device is behind [`Iommu`].
//!
//! - `memory`: shared memory, accessed by copies and atomic operations only; unsafe code is there
//! - `iova`: which addresses are free
//! - `space`: maps, unmaps, and keeps what the device may still use
//! - `buffer`: mapped memory

mod buffer;
mod iova;
mod memory;
mod space;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::RangeInclusive;

pub use buffer::{DmaBuffer, DmaSlice};
pub use memory::{HostMemory, MemoryError};
pub use space::DmaSpace;

/// What the device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaAccess {
    /// Read it.
    Read,
    /// Read and write it.
    ReadWrite,
}

/// Which bus addresses a device can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Usable ranges, in ascending order, apart from each other; what is between them is reserved.
    pub ranges: Vec<RangeInclusive<u64>>,
    /// Addresses and lengths of mappings are multiples of this many bytes, a power of two from 4096.
    pub granule: u64,
}

/// How many mappings a space takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Mappings that can still be added.
    pub left: u64,
    /// Mappings that an empty space takes.
    pub maximum: u64,
}

/// What translates a device's addresses. Implemented once for each kind of device; called by [`DmaSpace`]
/// only, which has checked ranges, alignment and overlap.
pub trait Iommu: fmt::Debug + Send + Sync {
    /// Makes `memory` accessible to the device at `iova`.
    ///
    /// # Errors
    /// Whatever the host refuses it for; nothing is mapped then.
    fn map(&self, iova: u64, memory: &HostMemory, access: DmaAccess) -> Result<(), DmaError>;

    /// Takes back exactly one earlier mapping. When it returns, the device can't access the memory.
    ///
    /// # Errors
    /// The mapping may still be there.
    fn unmap(&self, iova: u64, len: u64) -> Result<(), DmaError>;

    /// How many mappings there can be.
    ///
    /// # Errors
    /// The host doesn't tell.
    fn limits(&self) -> Result<Limits, DmaError>;
}

/// Why memory can't be mapped or unmapped.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// No bytes, or an alignment that isn't a power of two.
    #[error("can't allocate {len:#x} bytes aligned to {align:#x}")]
    Size {
        /// Bytes asked for.
        len: u64,
        /// Alignment asked for.
        align: u64,
    },
    /// Address, length, host address or file offset isn't a multiple of the granule.
    #[error(
        "range {iova:#x}+{len:#x} of the device, {offset:#x} of the file or the host address behind is not a multiple of {granule:#x}"
    )]
    Unaligned {
        /// Bus address.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// Offset in the file.
        offset: u64,
        /// Granule of the space.
        granule: u64,
    },
    /// The device can't use these addresses.
    #[error("range {iova:#x}+{len:#x} is not inside the addresses that the device can use")]
    Reserved {
        /// Bus address.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Part of the range is in use.
    #[error("range {iova:#x}+{len:#x} overlaps one in use at {other:#x}")]
    Overlaps {
        /// Bus address.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// Where the range in use begins.
        other: u64,
    },
    /// No free range is large enough.
    #[error("no {len:#x} bytes of bus addresses aligned to {align:#x} are free")]
    NoAddress {
        /// Bytes asked for.
        len: u64,
        /// Alignment asked for.
        align: u64,
    },
    /// The space takes no more mappings.
    #[error(
        "no mapping left of {maximum}; map larger pieces, or raise the limit (of VFIO: dma_entry_limit of module \
         vfio_iommu_type1; of vfio-user: max_dma_maps of the server)"
    )]
    NoMapping {
        /// Mappings that an empty space takes.
        maximum: u64,
    },
    /// The limit on locked memory is too low.
    #[error(
        "the limit on locked memory, {limit} bytes, is too low for {len} more; raise it (LimitMEMLOCK=infinity in \
         a systemd unit, `ulimit -l unlimited` in a shell of root's)"
    )]
    Memlock {
        /// Bytes to map.
        len: u64,
        /// RLIMIT_MEMLOCK in bytes.
        limit: u64,
    },
    /// The host has no memory for it.
    #[error("can't allocate {len:#x} bytes of shared memory")]
    Allocate {
        /// Bytes asked for.
        len: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The host refuses the mapping.
    #[error("can't map {len:#x} bytes at {iova:#x}")]
    Map {
        /// Bus address.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// What was said.
        #[source]
        source: io::Error,
    },
    /// The host doesn't take the mapping back. It stays in quarantine.
    #[error("can't unmap {len:#x} bytes at {iova:#x}")]
    Unmap {
        /// Bus address.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// What was said.
        #[source]
        source: io::Error,
    },
    /// The host doesn't tell how many mappings are left.
    #[error("can't read the limits of DMA mappings")]
    Limits(#[source] io::Error),
}
