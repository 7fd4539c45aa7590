//! Memory that is shared with a device or another process.
//!
//! Unsafe code: mmap, and access through a raw pointer. What it relies on: a [`HostMemory`] holds whatever
//! keeps its memory mapped, every access is checked against its length, and no reference to the memory is
//! ever made, except to single atomics for the time of one operation.
#![expect(unsafe_code, reason = "mmap and access to shared memory")]

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// An access that isn't inside the memory, or not aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The range isn't all inside.
    #[error("{offset:#x}+{len:#x} is outside memory of {size:#x} bytes")]
    Outside {
        /// Offset in bytes.
        offset: usize,
        /// Bytes from there.
        len: usize,
        /// Bytes that there are.
        size: usize,
    },
    /// The offset of a word isn't a multiple of its size.
    #[error("offset {offset:#x} of a word is not a multiple of {align}")]
    Unaligned {
        /// Offset in bytes.
        offset: usize,
        /// Size of the word in bytes.
        align: usize,
    },
}

/// A range of memory in this process, the file behind it, and what keeps it mapped. A clone shares all.
#[derive(Clone)]
pub struct HostMemory {
    file: Arc<File>,
    offset: u64,
    base: NonNull<u8>,
    len: usize,
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory is shared with a device or another process anyway; it is accessed by atomic operations
// only, which any thread may do, and `keep` is Send and Sync itself.
unsafe impl Send for HostMemory {}
// SAFETY: as above; no method gives more than atomic access.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Memory that this process has mapped: the `len` bytes at `base` are those at `offset` in `file`.
    ///
    /// # Safety
    ///
    /// The range must stay mapped, readable and writable as long as `keep` lives, `base` must be aligned to
    /// 8 bytes, and everybody else in this process must access the range by volatile or atomic operations
    /// only, without references into it.
    pub unsafe fn new(
        file: Arc<File>,
        offset: u64,
        base: NonNull<u8>,
        len: usize,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { file, offset, base, len, _keep: keep }
    }

    /// Zeroed memory in a memfd of its own, which can neither shrink nor grow.
    ///
    /// # Errors
    /// What the kernel said, e.g. no descriptor left.
    pub fn allocate(len: usize) -> io::Result<Self> {
        let fd = memfd_create("mlx4-dma", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory in use.
        let addr = unsafe { libc::mmap(ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(addr.cast::<u8>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { file: Arc::new(file), offset: 0, base, len, _keep: Arc::new(Mapped { base, len }) })
    }

    /// A part of the memory; it keeps the whole mapped.
    ///
    /// # Errors
    /// The range isn't inside, or doesn't begin at a multiple of 8 bytes.
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, MemoryError> {
        self.check(offset, len)?;
        if !offset.is_multiple_of(8) {
            return Err(MemoryError::Unaligned { offset, align: 8 });
        }
        // SAFETY: the offset was checked against the length.
        let base = unsafe { self.base.add(offset) };
        Ok(Self { offset: self.offset + offset as u64, base, len, ..self.clone() })
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Offset in the file, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Address of the first byte in this process.
    pub fn address(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out. Whole aligned words of 8 bytes are loaded at once, in ascending order.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), MemoryError> {
        self.check(offset, data.len())?;
        let (head, words) = split(offset, data.len());
        let (first, rest) = data.split_at_mut(head);
        let (middle, last) = rest.split_at_mut(words);
        for (i, byte) in first.iter_mut().enumerate() {
            *byte = self.byte(offset + i).load(Ordering::Relaxed);
        }
        for (i, word) in middle.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.word64(offset + head + 8 * i).load(Ordering::Relaxed).to_ne_bytes());
        }
        for (i, byte) in last.iter_mut().enumerate() {
            *byte = self.byte(offset + head + words + i).load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies bytes in. Whole aligned words of 8 bytes are stored at once, in ascending order.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), MemoryError> {
        self.check(offset, data.len())?;
        let (head, words) = split(offset, data.len());
        let (first, rest) = data.split_at(head);
        let (middle, last) = rest.split_at(words);
        for (i, byte) in first.iter().enumerate() {
            self.byte(offset + i).store(*byte, Ordering::Relaxed);
        }
        for (i, word) in middle.chunks_exact(8).enumerate() {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            self.word64(offset + head + 8 * i).store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        for (i, byte) in last.iter().enumerate() {
            self.byte(offset + head + words + i).store(*byte, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sets every byte of a range.
    ///
    /// # Errors
    /// The range isn't inside.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<(), MemoryError> {
        self.check(offset, len)?;
        let chunk = [value; 256];
        for at in (0..len).step_by(chunk.len()) {
            self.write(offset + at, &chunk[..chunk.len().min(len - at)])?;
        }
        Ok(())
    }

    /// Loads a byte; later accesses come after it (acquire).
    ///
    /// # Errors
    /// The offset isn't inside.
    pub fn load_u8(&self, offset: usize) -> Result<u8, MemoryError> {
        self.check(offset, 1)?;
        Ok(self.byte(offset).load(Ordering::Acquire))
    }

    /// Stores a byte; earlier stores come before it (release).
    ///
    /// # Errors
    /// The offset isn't inside.
    pub fn store_u8(&self, offset: usize, value: u8) -> Result<(), MemoryError> {
        self.check(offset, 1)?;
        self.byte(offset).store(value, Ordering::Release);
        Ok(())
    }

    /// Loads a big-endian word of 4 bytes at once; later accesses come after it (acquire).
    ///
    /// # Errors
    /// The word isn't inside, or not aligned.
    pub fn load_be32(&self, offset: usize) -> Result<u32, MemoryError> {
        self.check_word(offset, 4)?;
        Ok(u32::from_be(self.word32(offset).load(Ordering::Acquire)))
    }

    /// Stores a big-endian word of 4 bytes at once; earlier stores come before it (release).
    ///
    /// # Errors
    /// The word isn't inside, or not aligned.
    pub fn store_be32(&self, offset: usize, value: u32) -> Result<(), MemoryError> {
        self.check_word(offset, 4)?;
        self.word32(offset).store(value.to_be(), Ordering::Release);
        Ok(())
    }

    /// Loads a big-endian word of 8 bytes at once; later accesses come after it (acquire).
    ///
    /// # Errors
    /// The word isn't inside, or not aligned.
    pub fn load_be64(&self, offset: usize) -> Result<u64, MemoryError> {
        self.check_word(offset, 8)?;
        Ok(u64::from_be(self.word64(offset).load(Ordering::Acquire)))
    }

    /// Stores a big-endian word of 8 bytes at once; earlier stores come before it (release).
    ///
    /// # Errors
    /// The word isn't inside, or not aligned.
    pub fn store_be64(&self, offset: usize, value: u64) -> Result<(), MemoryError> {
        self.check_word(offset, 8)?;
        self.word64(offset).store(value.to_be(), Ordering::Release);
        Ok(())
    }

    /// Checks that a range is inside.
    pub(super) fn check(&self, offset: usize, len: usize) -> Result<(), MemoryError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(MemoryError::Outside { offset, len, size: self.len }),
        }
    }

    fn check_word(&self, offset: usize, size: usize) -> Result<(), MemoryError> {
        self.check(offset, size)?;
        if offset.is_multiple_of(size) {
            return Ok(());
        }
        Err(MemoryError::Unaligned { offset, align: size })
    }

    /// Callers have checked that the byte is inside.
    fn byte(&self, offset: usize) -> &AtomicU8 {
        debug_assert!(offset < self.len);
        // SAFETY: the byte is inside memory that stays mapped as long as `self`, and all others access it by
        // volatile or atomic operations (`new`).
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset)) }
    }

    /// Callers have checked that the word is inside and aligned.
    fn word32(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset + 4 <= self.len);
        // SAFETY: as for `byte`; `base` is aligned to 8, and the offset to 4.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Callers have checked that the word is inside and aligned.
    fn word64(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 <= self.len);
        // SAFETY: as for `byte`; `base` and the offset are aligned to 8.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({:p}+{:#x})", self.base, self.len)
    }
}

/// Cuts a range into bytes up to a multiple of 8, whole words of 8 (both in bytes), and the rest.
fn split(offset: usize, len: usize) -> (usize, usize) {
    let head = (offset.wrapping_neg() % 8).min(len);
    (head, (len - head) / 8 * 8)
}

/// A mapping of this module's own making.
struct Mapped {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointer is used once more only, to unmap, by whoever drops the last reference.
unsafe impl Send for Mapped {}
// SAFETY: no method takes `&self`.
unsafe impl Sync for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range is one whole mapping made by `allocate`, and every memory over it held an Arc of
        // this value, so none is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
