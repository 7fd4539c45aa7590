//! Registers that are mapped into this process.
//!
//! Unsafe code: mmap, and volatile access. What it relies on: an area stays mapped as long as its value
//! lives, and every access is checked against its bounds.
#![expect(unsafe_code, reason = "mmap and access to registers")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

/// A part of a BAR, mapped uncached.
#[derive(Debug)]
pub(super) struct Area {
    base: NonNull<u8>,
    /// Where in the BAR it begins, in bytes.
    start: u64,
    len: usize,
}

// SAFETY: registers may be accessed from any thread; every access is one volatile instruction.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Maps `len` bytes of a BAR from `start` on. The BAR begins at `region` in the device's file.
    pub(super) fn map(device: BorrowedFd<'_>, region: u64, start: u64, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let offset = region.checked_add(start).and_then(|offset| libc::off_t::try_from(offset).ok());
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory in use.
        let addr =
            unsafe { libc::mmap(ptr::null_mut(), len, prot, libc::MAP_SHARED, device.as_raw_fd(), offset) };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(addr.cast::<u8>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, start, len })
    }

    /// Whether an aligned word of `len` bytes lies in this area.
    pub(super) fn covers(&self, offset: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.locate(offset, len).is_some())
    }

    /// Reads a big-endian word of 4 bytes; None if it isn't an aligned one of this area.
    pub(super) fn read32(&self, offset: u64) -> Option<u32> {
        let at = self.locate(offset, 4)?;
        // SAFETY: `locate` gives an aligned address of 4 bytes inside the mapping.
        Some(u32::from_be(unsafe { ptr::read_volatile(at.cast::<u32>().as_ptr()) }))
    }

    /// Writes a big-endian word of 4 bytes; None if it isn't an aligned one of this area.
    pub(super) fn write32(&self, offset: u64, value: u32) -> Option<()> {
        let at = self.locate(offset, 4)?;
        // SAFETY: as for `read32`.
        unsafe { ptr::write_volatile(at.cast::<u32>().as_ptr(), value.to_be()) };
        Some(())
    }

    /// Writes a big-endian word of 8 bytes; None if it isn't an aligned one of this area.
    pub(super) fn write64(&self, offset: u64, value: u64) -> Option<()> {
        let at = self.locate(offset, 8)?;
        // SAFETY: as for `read32`, with 8 bytes.
        unsafe { ptr::write_volatile(at.cast::<u64>().as_ptr(), value.to_be()) };
        Some(())
    }

    /// The address of an aligned word at an offset in the BAR.
    fn locate(&self, offset: u64, size: usize) -> Option<NonNull<u8>> {
        let at = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        if !at.is_multiple_of(size) || at.checked_add(size)? > self.len {
            return None;
        }
        // SAFETY: the offset was checked against the length of the mapping.
        Some(unsafe { self.base.add(at) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the range is one whole mapping made by `map`, and nothing borrows from it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// A file stands for a BAR that begins at 0x1000 in it; its second page is mapped.
    fn area() -> (std::fs::File, Area) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let area = Area::map(file.as_fd(), 0x1000, 0x1000, 0x1000).unwrap();
        (file, area)
    }

    #[test]
    fn registers_are_big_endian_at_their_offsets() {
        let (file, area) = area();
        area.write32(0x1010, 0x0102_0304).unwrap();
        area.write64(0x1018, 0x1112_1314_1516_1718).unwrap();
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, 0x2010).unwrap();
        assert_eq!(bytes[..8], [1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(bytes[8..], [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
        assert_eq!(area.read32(0x101c), Some(0x1516_1718));
    }

    #[test]
    fn nothing_outside_the_area_can_be_reached() {
        let (_file, area) = area();
        assert!(area.read32(0x1ffc).is_some() && area.write64(0x1ff8, 0).is_some());
        for offset in [0, 0xffc, 0x1002, 0x1ffd, 0x2000, u64::MAX - 3] {
            assert_eq!(area.read32(offset), None, "{offset:#x}");
            assert_eq!(area.write32(offset, 0), None, "{offset:#x}");
        }
        assert_eq!(area.write64(0x1ffc, 0), None);
    }
}
