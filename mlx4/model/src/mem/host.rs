//! Host memory: mapping a file, and ranges of memory that outlive whoever accesses them.
//!
//! With the seam's the only unsafe code of the crate. What it relies on: a [`HostRegion`] holds whatever keeps
//! its memory mapped, and no reference is ever made to that memory, only [`VolatileSlice`]s that borrow the
//! region.
#![expect(unsafe_code, reason = "mmap and access to shared memory")]

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Weak};

use paraverbs_guard::{FileKey, State, Watch};
use vm_memory::VolatileSlice;

/// A range of host memory, and what keeps it mapped. Cloning it shares both.
#[derive(Clone)]
pub struct HostRegion {
    base: NonNull<u8>,
    len: usize,
    state: State,
    keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory is shared with other processes anyway; it is accessed through volatile and atomic
// operations only, which any thread may do, and `keep` is Send and Sync itself.
unsafe impl Send for HostRegion {}
// SAFETY: as above; no method hands out more than volatile access.
unsafe impl Sync for HostRegion {}

impl HostRegion {
    /// Memory that this process has mapped, for [`DmaSpace::map_host`](super::DmaSpace::map_host).
    ///
    /// # Safety
    ///
    /// The `len` bytes at `base` must stay mapped, readable and writable (readable only, if mapped
    /// read-only) as long as `keep` lives, and everybody else must access them by volatile or atomic
    /// operations, or not hold references into them. If they are a file's, the file must not be cut short.
    pub unsafe fn new(base: NonNull<u8>, len: usize, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self { base, len, state: State::unwatched(), keep }
    }

    /// Maps the first `len` bytes of a file, shared.
    pub(super) fn map_file(fd: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Self> {
        let prot = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory in use.
        let addr = unsafe { libc::mmap(ptr::null_mut(), len, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(addr.cast::<u8>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        // From here on dropped, and so unmapped, on error.
        let mut mapped = Mapped { base, len, watch: None };
        let file = FileKey::of(fd)?;
        // SAFETY: the mapping was just made, it is undone by `Mapped` after the watch, and all access to it is by
        // volatile slices.
        let watch = mapped.watch.insert(unsafe { Watch::new(base, len, file) }?);
        let state = watch.state();
        Ok(Self { base, len, state, keep: Arc::new(mapped) })
    }

    /// Bytes in the region.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte in this process.
    pub(super) fn address(&self) -> u64 {
        self.base.addr().get() as u64
    }

    /// Whether the memory is still what it was mapped as.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// A handle that doesn't keep the memory mapped.
    pub(super) fn downgrade(&self) -> WeakRegion {
        WeakRegion { base: self.base, len: self.len, state: self.state, keep: Arc::downgrade(&self.keep) }
    }

    /// A part of the region, as a region; None if it isn't all inside.
    pub(super) fn part(&self, offset: usize, len: usize) -> Option<Self> {
        let inside = offset.checked_add(len)? <= self.len;
        // SAFETY: only used if the sum is inside the region, so the pointer stays inside it.
        inside.then(|| Self { base: unsafe { self.base.add(offset) }, len, ..self.clone() })
    }

    /// Volatile access to what the region has of `len` bytes from an offset on.
    #[inline]
    pub(super) fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        let offset = offset.min(self.len);
        let len = len.min(self.len - offset);
        // SAFETY: both were limited to the region's length, so the range stays inside it; the memory stays
        // mapped as long as `keep` lives, which the slice's lifetime can't exceed; all other users comply
        // with `new`.
        unsafe { VolatileSlice::new(self.base.as_ptr().add(offset), len) }
    }
}

/// Has the processor fetch the cache line of a slice's first byte, without waiting for it.
pub(super) fn prefetch(slice: &VolatileSlice<'_>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let guard = slice.ptr_guard();
        // SAFETY: a hint, which accesses nothing as a program sees it, whatever the address is.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(guard.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _no_hint = slice;
}

impl fmt::Debug for HostRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostRegion({:p}+{:#x})", self.base, self.len)
    }
}

/// A region that may have been unmapped meanwhile.
#[derive(Debug)]
pub(super) struct WeakRegion {
    base: NonNull<u8>,
    len: usize,
    state: State,
    keep: Weak<dyn Any + Send + Sync>,
}

// SAFETY: nothing is accessed through it; `upgrade` gives a region only while its memory is kept mapped.
unsafe impl Send for WeakRegion {}
// SAFETY: as above.
unsafe impl Sync for WeakRegion {}

impl WeakRegion {
    /// The region, if somebody still keeps its memory mapped.
    pub(super) fn upgrade(&self) -> Option<HostRegion> {
        let keep = self.keep.upgrade()?;
        Some(HostRegion { base: self.base, len: self.len, state: self.state, keep })
    }
}

/// A mapping of this module's own making.
struct Mapped {
    base: NonNull<u8>,
    len: usize,
    watch: Option<Watch>,
}

// SAFETY: the pointer is used once more only, to unmap, by whoever drops the last reference.
unsafe impl Send for Mapped {}
// SAFETY: no method takes `&self`.
unsafe impl Sync for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // The range may be somebody else's as soon as it is unmapped.
        self.watch = None;
        // SAFETY: the range is one whole mapping made by `map_file`, and every region over it held an Arc
        // of this value, so none is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
