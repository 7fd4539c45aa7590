//! A guest's memory: its regions, what of it is mapped for the HCA, and at which bus addresses.
//!
//! Does not: touch the memory itself. [`GuestMemory`] does, for the few things that the tenant reads and writes
//! there (lists of segments, headers of doorbell areas).

mod pins;
mod table;
mod window;

pub(crate) use pins::{ChunkKey, Pins, Stuck, unmap};
pub(crate) use table::{Entry, Range, RegionId, RegionTable};
pub(crate) use window::{Window, Windows};

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use virtio_rdma::memory::PAGE_BYTES;

use crate::hca::HcaError;

/// Which file a region is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// A region of guest memory, as the transport got and mapped it.
pub struct GuestRegion {
    /// The guest's address of its first byte.
    pub guest_address: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The file.
    pub fd: OwnedFd,
    /// Which file it is.
    pub file: FileId,
    /// Where in the file it starts.
    pub offset: u64,
    /// Where this process has it mapped.
    pub host_address: usize,
    /// Whether it may be written.
    pub writable: bool,
    /// What keeps the mapping alive.
    pub keep: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for GuestRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestRegion")
            .field("guest_address", &format_args!("{:#x}", self.guest_address))
            .field("length", &format_args!("{:#x}", self.length))
            .field("file", &self.file)
            .field("offset", &self.offset)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl GuestRegion {
    /// The guest's address behind its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.guest_address + self.length
    }

    /// Whether it is the same memory at the same place, however this process mapped it.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.guest_address == other.guest_address
            && self.length == other.length
            && self.file == other.file
            && self.offset == other.offset
            && self.writable == other.writable
    }

    /// A piece that starts `start` bytes into the region; both numbers have been checked.
    pub(crate) fn piece(&self, start: u64, length: u64) -> Option<GuestPiece<'_>> {
        let host_start = usize::try_from(start).ok()?;
        Some(GuestPiece {
            fd: self.fd.as_fd(),
            offset: self.offset.checked_add(start)?,
            length,
            host_address: self.host_address.checked_add(host_start)?,
            writable: self.writable,
            keep: &self.keep,
        })
    }
}

/// A piece of guest memory to map for the HCA: whole pages of one region.
#[derive(Clone, Copy)]
pub struct GuestPiece<'a> {
    /// The file.
    pub fd: BorrowedFd<'a>,
    /// Where in the file it starts.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Where this process has it mapped.
    pub host_address: usize,
    /// Whether it may be written.
    pub writable: bool,
    /// What keeps the mapping alive.
    pub keep: &'a Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for GuestPiece<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestPiece")
            .field("offset", &self.offset)
            .field("length", &self.length)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

/// The memory of a region could not be reached: the guest has truncated its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest memory is not there")]
pub struct GuestFault;

/// Copies to and from guest memory, which may change at any time.
pub trait GuestMemory: Send + Sync + std::fmt::Debug {
    /// Copies from `offset` bytes into the region. The range is inside the region.
    ///
    /// # Errors
    /// The memory is not there.
    fn read(&self, region: &GuestRegion, offset: u64, to: &mut [u8]) -> Result<(), GuestFault>;

    /// Copies to `offset` bytes into the region. The range is inside the region.
    ///
    /// # Errors
    /// The memory is not there.
    fn write(&self, region: &GuestRegion, offset: u64, from: &[u8]) -> Result<(), GuestFault>;
}

/// How much of a region is mapped at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkSize {
    /// Aligned chunks of `2^n` bytes; at least pages.
    Log2Bytes(u8),
    /// All of it: for small guests.
    WholeRegion,
}

/// Why memory can't be a guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// A region is empty, wraps, or is not made of pages.
    #[error("memory region at {guest_address:#x} of {length:#x} bytes is empty, wraps or is not aligned")]
    Region {
        /// Where it starts.
        guest_address: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// Two regions overlap.
    #[error("memory regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Where one starts.
        first: u64,
        /// Where the other starts.
        second: u64,
    },
    /// A region ends beyond the guest's window.
    #[error("memory region ends at {end:#x}, beyond the {window:#x} bytes of the guest's window")]
    BeyondWindow {
        /// Where the region ends.
        end: u64,
        /// Size of the window in bytes.
        window: u64,
    },
    /// There are too many regions.
    #[error("{count} memory regions are more than the {max} that a guest may have")]
    TooMany {
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// There is no room for the guest's window in the bus's address space.
    #[error("no room for a window of {bytes:#x} bytes among the HCA's bus addresses")]
    NoWindow {
        /// Size of the window in bytes.
        bytes: u64,
    },
    /// The HCA doesn't take the guest.
    #[error("HCA doesn't take the guest")]
    Attach(#[source] HcaError),
}

/// Whether a region's numbers are whole pages that don't wrap.
fn check_region(region: &GuestRegion) -> Result<(), MemoryError> {
    let aligned = [region.guest_address, region.length, region.offset]
        .iter()
        .all(|number| number.is_multiple_of(PAGE_BYTES));
    let whole = region.guest_address.checked_add(region.length).is_some()
        && region.offset.checked_add(region.length).is_some();
    if aligned && whole && region.length != 0 {
        return Ok(());
    }
    Err(MemoryError::Region { guest_address: region.guest_address, length: region.length })
}
