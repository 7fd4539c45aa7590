//! The bus-address space that the HCA reaches by DMA.
//!
//! A [`DmaSpace`] maps bus addresses (IOVAs: neither virtual nor guest-physical, with holes) to host
//! memory: pieces of a memfd that a VMM passed ([`DmaSpace::map_fd`]), or memory that this process has
//! mapped already ([`DmaSpace::map_host`]). The device accesses it through a [`DmaView`], a snapshot of
//! the table:
//!
//! - taking a view and accessing memory through it never blocks, takes no lock and allocates nothing;
//! - [`DmaSpace::unmap`] publishes a table without the mapping and then waits for the views of older
//!   tables, so nothing is accessed after it returned. Maps wait likewise, so that whatever is told of the
//!   memory after that finds it. Hold a view for a burst of work, never for good, and hold none while calling
//!   what maps or unmaps, or `set_enabled`: the call would wait for itself.
//!
//! An access that the table doesn't allow (unmapped, read-only, bus mastering off) is refused with a
//! [`DmaFault`] and counted. Memory is shared with a hostile guest: it is only ever copied, or read and
//! written atomically, never borrowed as `&[u8]` or `&T`.
//!
//! Memory that a guest cuts short while it is mapped is lost to the device, and does no other harm.
//!
//! - `host`: mapping files and raw access; `paraverbs-guard` catches accesses to memory that was taken away
//! - `table`: the persistent map from addresses to regions; `hints`: what it tries before it searches
//! - `space`: who may change it, and how views are waited for
//! - `view`: the device's side

mod hints;
mod host;
mod space;
mod table;
#[cfg(test)]
mod tests;
mod view;

use std::io;

pub(crate) use hints::Hints;
pub use host::HostRegion;
pub use space::DmaSpace;
pub use view::DmaView;
pub use vm_memory::VolatileSlice;

/// Granularity of mappings in bytes: addresses, lengths and file offsets are multiples of it.
pub const PAGE_SIZE: u64 = 4096;

/// Most mappings that a space takes: what VFIO allows a container by default.
pub const MAX_MAPPINGS: usize = 65_535;

/// Most bytes of files that a space maps into this process, each whole: so that one client leaves others their part of
/// the 128 TiB of addresses, however large its sparse files are.
pub const MAX_FILE_BYTES: u64 = 4 << 40;

/// The direction of an access, as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads memory.
    Read,
    /// The device writes memory, or reads and writes it atomically.
    Write,
}

/// Why a change of the table was refused. The table stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// The range has no bytes.
    #[error("mapping at {iova:#x} has no length")]
    Empty {
        /// Bus address asked for.
        iova: u64,
    },
    /// Address, length or offset is not a multiple of [`PAGE_SIZE`].
    #[error("address {iova:#x}, length {len:#x} or offset {offset:#x} is not a multiple of 4096")]
    Unaligned {
        /// Bus address asked for.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// Offset in the file, or host address.
        offset: u64,
    },
    /// The range passes the end of the address space.
    #[error("range {iova:#x}+{len:#x} wraps around")]
    Wraps {
        /// Bus address asked for.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Part of the range is mapped already.
    #[error("range {iova:#x}+{len:#x} overlaps the mapping {other_iova:#x}+{other_len:#x}")]
    Overlaps {
        /// Bus address asked for.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// Where the mapping in the way begins.
        other_iova: u64,
        /// Length of the mapping in the way.
        other_len: u64,
    },
    /// The range would take a piece out of a mapping.
    #[error("range {iova:#x}+{len:#x} covers a part only of the mapping {other_iova:#x}+{other_len:#x}")]
    Splits {
        /// Bus address asked for.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// Where the mapping begins.
        other_iova: u64,
        /// Length of the mapping.
        other_len: u64,
    },
    /// The file or host region ends before the range does.
    #[error("{offset:#x}+{len:#x} is outside memory of {size:#x} bytes")]
    OutsideMemory {
        /// Offset in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Length of the file or host region.
        size: u64,
    },
    /// The descriptor is a directory, a socket, a device: nothing that guest memory is made of.
    #[error("descriptor is not a regular file")]
    NotAFile,
    /// There are [`MAX_MAPPINGS`] already.
    #[error("space has {MAX_MAPPINGS} mappings already")]
    TooMany,
    /// The space would map more than [`MAX_FILE_BYTES`].
    #[error("a file of {size:#x} bytes beside {mapped:#x} is more than {MAX_FILE_BYTES:#x}")]
    TooLarge {
        /// Length of the file.
        size: u64,
        /// Bytes that are mapped already.
        mapped: u64,
    },
    /// The file's size and inode can't be read.
    #[error("can't examine the descriptor")]
    Examine(#[source] io::Error),
    /// The kernel doesn't map the file.
    #[error("can't map a file of {size:#x} bytes")]
    Mmap {
        /// Length of the file.
        size: u64,
        /// What mmap said.
        #[source]
        source: io::Error,
    },
}

/// Why an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultCause {
    /// Nothing is mapped there, or the range wraps around.
    Unmapped,
    /// The mapping may only be read.
    ReadOnly,
    /// Bus mastering is off.
    Disabled,
    /// The memory was taken away: its file was cut short, or has no pages left to give.
    Lost,
    /// The range continues in another mapping, but must not. Not counted: nothing was accessed wrongly.
    NotContiguous,
    /// The address of an atomic access is not a multiple of its size.
    Misaligned,
}

/// A refused access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dma {access:?} of {len} bytes at {iova:#x} refused: {cause:?}")]
pub struct DmaFault {
    /// First address that was refused.
    pub iova: u64,
    /// Bytes from there on that were asked for.
    pub len: u64,
    /// Direction.
    pub access: Access,
    /// Reason.
    pub cause: FaultCause,
}
