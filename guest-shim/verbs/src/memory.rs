//! Memory that this process, the daemon and the HCA share.
//!
//! Unsafe code: mmap, and access through a raw pointer. What it relies on: a [`Chunk`] is one mapping of a memfd
//! that can't shrink, for as long as it lives; a [`Span`] is a range of it that was checked when it was made, and
//! keeps it alive; every access is checked against the span; and no reference into the memory is ever made but
//! to single atomics.
#![expect(unsafe_code, reason = "mmap and access to shared memory")]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use mlx4_queue::RingMemory;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use virtio_rdma::doorbell::Words;

/// Memory in a memfd that can't shrink: zeroed and its own, or a device's.
pub(crate) struct Chunk {
    file: File,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is shared with other processes anyway; spans access it by atomic operations only, and the
// pointer is used otherwise only to unmap it, by whoever drops the last reference.
unsafe impl Send for Chunk {}
// SAFETY: as above; no method of a chunk accesses the memory.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// `len` bytes, not 0.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let file = File::from(memfd_create("paraverbs", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory in use.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { file, base, len })
    }

    /// `len` bytes of a device's memfd, from `offset` on, a multiple of the page size. The device may not be able to
    /// shorten it.
    pub(crate) fn of_device(file: File, offset: u64, len: usize) -> io::Result<Self> {
        let seals = fcntl_get_seals(&file)?;
        let end = offset.checked_add(len as u64).ok_or(io::ErrorKind::InvalidInput)?;
        if !seals.contains(SealFlags::SHRINK) || file.metadata()?.len() < end || len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory in use.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &file, offset) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { file, base, len })
    }

    /// The memfd.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Address of the first byte in this process.
    pub(crate) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: the range is one whole mapping that a constructor made, and every span over it held an Arc of this
        // value, so none is left.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            log::error!("unmap {:#x} bytes of memory: {error}", self.len);
        }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({:p}+{:#x})", self.base, self.len)
    }
}

/// A range of a chunk. A clone is the same range.
#[derive(Clone)]
pub(crate) struct Span {
    base: NonNull<u8>,
    len: usize,
    _chunk: Arc<Chunk>,
}

// SAFETY: all access is by atomic operations, and the chunk keeps the memory mapped.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    /// The `len` bytes at `offset` in a chunk, a multiple of 8; `None` if they aren't in it.
    pub(crate) fn new(chunk: &Arc<Chunk>, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if end > chunk.len || !offset.is_multiple_of(8) {
            return None;
        }
        // SAFETY: the offset is inside the mapping.
        let base = unsafe { chunk.base.add(offset) };
        Some(Self { base, len, _chunk: Arc::clone(chunk) })
    }

    /// Address of the first byte in this process.
    pub(crate) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether a range is inside.
    pub(crate) fn contains(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Copies in, in any order of stores. Panics if it isn't inside.
    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        assert!(self.contains(offset, from.len()), "write beyond the memory");
        let mut at = 0;
        while at < from.len() {
            at += match (offset + at) % 8 {
                0 if from.len() - at >= 8 => self.store_words(offset + at, &from[at..]),
                0 | 4 if from.len() - at >= 4 => {
                    let word = [from[at], from[at + 1], from[at + 2], from[at + 3]];
                    self.raw_u32(offset + at).store(u32::from_ne_bytes(word), Ordering::Relaxed);
                    4
                }
                _ => {
                    self.raw_u8(offset + at).store(from[at], Ordering::Relaxed);
                    1
                }
            };
        }
    }

    /// Copies whole words of 8 bytes in; answers how many bytes.
    fn store_words(&self, offset: usize, from: &[u8]) -> usize {
        let (words, _) = from.as_chunks();
        for (at, word) in (offset..).step_by(8).zip(words) {
            self.raw_u64(at).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
        8 * words.len()
    }

    /// Copies out, in any order of loads. Panics if it isn't inside.
    pub(crate) fn copy_out(&self, offset: usize, to: &mut [u8]) {
        assert!(self.contains(offset, to.len()), "read beyond the memory");
        let mut at = 0;
        while at < to.len() {
            at += match (offset + at) % 8 {
                0 if to.len() - at >= 8 => self.load_words(offset + at, &mut to[at..]),
                0 | 4 if to.len() - at >= 4 => {
                    let word = self.raw_u32(offset + at).load(Ordering::Relaxed);
                    to[at..at + 4].copy_from_slice(&word.to_ne_bytes());
                    4
                }
                _ => {
                    to[at] = self.raw_u8(offset + at).load(Ordering::Relaxed);
                    1
                }
            };
        }
    }

    /// Copies whole words of 8 bytes out; answers how many bytes.
    fn load_words(&self, offset: usize, to: &mut [u8]) -> usize {
        let (words, _) = to.as_chunks_mut();
        for (at, word) in (offset..).step_by(8).zip(words.iter_mut()) {
            *word = self.raw_u64(at).load(Ordering::Relaxed).to_ne_bytes();
        }
        8 * words.len()
    }

    /// Sets every byte of a range. Panics if it isn't inside.
    pub(crate) fn fill(&self, offset: usize, len: usize, value: u8) {
        assert!(self.contains(offset, len), "write beyond the memory");
        let chunk = [value; 256];
        for at in (0..len).step_by(chunk.len()) {
            self.copy_in(offset + at, &chunk[..chunk.len().min(len - at)]);
        }
    }

    /// The byte at an offset. Panics if it isn't inside.
    pub(crate) fn u8_at(&self, offset: usize) -> &AtomicU8 {
        self.check_word(offset, 1);
        self.raw_u8(offset)
    }

    /// The word of 2 bytes at an offset. Panics if it isn't inside, or not aligned.
    pub(crate) fn u16_at(&self, offset: usize) -> &AtomicU16 {
        self.check_word(offset, 2);
        // SAFETY: the word is inside memory that stays mapped as long as `self`, and everybody else accesses it
        // by volatile or atomic operations; `base` is aligned to 8, and the offset to 2.
        unsafe { AtomicU16::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The word of 4 bytes at an offset. Panics if it isn't inside, or not aligned.
    pub(crate) fn u32_at(&self, offset: usize) -> &AtomicU32 {
        self.check_word(offset, 4);
        self.raw_u32(offset)
    }

    /// The word of 8 bytes at an offset. Panics if it isn't inside, or not aligned.
    pub(crate) fn u64_at(&self, offset: usize) -> &AtomicU64 {
        self.check_word(offset, 8);
        self.raw_u64(offset)
    }

    /// The byte at an offset that the caller has checked.
    fn raw_u8(&self, offset: usize) -> &AtomicU8 {
        debug_assert!(offset < self.len);
        // SAFETY: as for `u16_at`; every caller has checked that the byte is inside.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset)) }
    }

    /// The word of 4 bytes at an offset that the caller has checked.
    fn raw_u32(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(self.contains(offset, 4) && offset.is_multiple_of(4));
        // SAFETY: as for `u16_at`; every caller has checked that the word is inside, and aligned to 4.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The word of 8 bytes at an offset that the caller has checked.
    fn raw_u64(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(self.contains(offset, 8) && offset.is_multiple_of(8));
        // SAFETY: as for `u16_at`; every caller has checked that the word is inside, and aligned to 8.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn check_word(&self, offset: usize, bytes: usize) {
        assert!(self.contains(offset, bytes) && offset.is_multiple_of(bytes), "no word of the memory");
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({:p}+{:#x})", self.base, self.len)
    }
}

impl RingMemory for Span {
    fn bytes(&self) -> usize {
        self.len
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.copy_in(offset, from);
    }

    fn read(&self, offset: usize, to: &mut [u8]) {
        self.copy_out(offset, to);
    }

    fn publish(&self, offset: usize, word: [u8; 4]) {
        self.u32_at(offset).store(u32::from_ne_bytes(word), Ordering::Release);
    }

    fn observe(&self, offset: usize) -> [u8; 4] {
        self.u32_at(offset).load(Ordering::Acquire).to_ne_bytes()
    }
}

impl Words for Span {
    fn word(&self, index: usize) -> &AtomicU64 {
        self.u64_at(8 * index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(offset: usize, len: usize) -> Option<Span> {
        Span::new(&Arc::new(Chunk::new(4096).unwrap()), offset, len)
    }

    #[test]
    fn copies_at_every_alignment_touch_their_bytes_only() {
        for offset in 0..9 {
            for len in 0..40 {
                let memory = span(64, 128).unwrap();
                memory.fill(0, 128, 0xee);
                let data: Vec<u8> = (1..).take(len).collect();
                memory.copy_in(offset, &data);
                let mut all = [0; 128];
                memory.copy_out(0, &mut all);
                assert_eq!(all[offset..offset + len], data);
                assert!(all[..offset].iter().chain(&all[offset + len..]).all(|byte| *byte == 0xee));
                let mut back = vec![0; len];
                memory.copy_out(offset, &mut back);
                assert_eq!(back, data);
            }
        }
    }

    #[test]
    fn span_is_inside_its_chunk() {
        assert!(span(0, 4096).is_some());
        assert!(span(8, 4096).is_none());
        assert!(span(4, 8).is_none());
        assert!(span(8, usize::MAX).is_none());
    }

    #[test]
    fn memory_can_not_shrink() {
        let chunk = Chunk::new(4096).unwrap();
        assert!(chunk.file.set_len(0).is_err());
        assert!(chunk.file.set_len(8192).is_err());
    }

    #[test]
    fn memory_of_a_device_must_be_sealed_and_long_enough() {
        let own = Chunk::new(8192).unwrap();
        let copy = || own.file.try_clone().unwrap();
        let theirs = Arc::new(Chunk::of_device(copy(), 4096, 4096).unwrap());
        Span::new(&Arc::new(own_copy(&own)), 4096, 8).unwrap().copy_in(0, &[7; 8]);
        let mut seen = [0; 8];
        Span::new(&theirs, 0, 8).unwrap().copy_out(0, &mut seen);
        assert_eq!(seen, [7; 8]);
        for (offset, len) in [(4096, 8192), (u64::MAX - 4095, 4096), (0, 0), (8, 4096)] {
            assert!(Chunk::of_device(copy(), offset, len).is_err(), "{offset:#x}+{len:#x}");
        }
        let file = File::from(memfd_create("unsealed", MemfdFlags::ALLOW_SEALING).unwrap());
        file.set_len(4096).unwrap();
        assert!(Chunk::of_device(file, 0, 4096).is_err());
    }

    /// The same memory, mapped a second time.
    fn own_copy(chunk: &Chunk) -> Chunk {
        Chunk::of_device(chunk.file.try_clone().unwrap(), 0, chunk.len).unwrap()
    }

    #[test]
    #[should_panic(expected = "beyond the memory")]
    fn copy_beyond_the_end_panics() {
        span(0, 64).unwrap().copy_in(60, &[0; 8]);
    }
}
