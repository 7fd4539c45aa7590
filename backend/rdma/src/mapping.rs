//! One mapping of guest memory: watched, and reached only by copies and atomic words.
//!
//! Does not: map anything itself; the transport did.
#![expect(unsafe_code, reason = "the watch over a mapping")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use paraverbs_guard::{FileKey, State, Watch};
use vm_memory::{MmapRegion, VolatileMemory};

/// A mapping of a guest's file. When the guest takes its memory away the mapping becomes zero pages.
#[derive(Debug)]
pub(crate) struct Mapping {
    // First, so that it is dropped before the mapping may be undone.
    watch: Watch,
    region: Arc<MmapRegion>,
    file: FileKey,
}

impl Mapping {
    /// Watches the mapping of a file that the transport made.
    pub(crate) fn new(region: Arc<MmapRegion>, file: &File) -> io::Result<Self> {
        let base = NonNull::new(region.as_ptr()).ok_or(io::ErrorKind::InvalidInput)?;
        if !region.owned() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let key = FileKey::of(file.as_fd())?;
        // SAFETY: an owned region is one whole mapping, undone when the last Arc of it is dropped, which is after
        // the watch; a region's memory is reached through volatile slices and atomic references only.
        let watch = unsafe { Watch::new(base, region.size(), key) }?;
        Ok(Self { watch, region, file: key })
    }

    /// Which file it is of.
    pub(crate) fn file(&self) -> FileKey {
        self.file
    }

    /// Whether it is the watch over this region.
    pub(crate) fn is_of(&self, region: &Arc<MmapRegion>) -> bool {
        Arc::ptr_eq(&self.region, region)
    }

    /// Whether its memory is still what it was.
    pub(crate) fn state(&self) -> State {
        self.watch.state()
    }

    /// Where this process has it mapped.
    pub(crate) fn address(&self) -> usize {
        self.region.as_ptr().addr()
    }

    /// Copies from `offset`; false if the range isn't inside, or the memory is gone.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let Ok(slice) = self.region.get_slice(start, to.len()) else { return false };
        slice.copy_to(to);
        !self.state().lost()
    }

    /// Copies to `offset`; false if the range isn't inside, or the memory is gone.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let Ok(slice) = self.region.get_slice(start, from.len()) else { return false };
        slice.copy_from(from);
        !self.state().lost()
    }

    /// The 64-bit word at `offset`; none if it isn't inside, or not aligned.
    pub(crate) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        self.region.get_atomic_ref(offset).ok()
    }
}
