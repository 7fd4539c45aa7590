//! What memory itself can do, to compare with: copies between two memfds that are mapped apart, and a cache line
//! that goes to another thread and back.
//!
//! Unsafe code: two mappings that nobody else knows.
#![expect(unsafe_code, reason = "mmap")]

use std::fs::File;
use std::hint;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::bench::plan::MOST_BYTES;

/// A memfd of [`MOST_BYTES`], mapped whole.
struct Mapped {
    base: NonNull<u8>,
    len: usize,
}

impl Mapped {
    fn new(value: u8) -> Result<Self> {
        let len = MOST_BYTES as usize;
        let file = File::from(memfd_create("bench", MemfdFlags::CLOEXEC).context("make a memfd")?);
        file.set_len(len as u64).context("size a memfd")?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0) }.context("map")?;
        let base = NonNull::new(base.cast()).context("a mapping at 0")?;
        let mut mapped = Self { base, len };
        mapped.bytes_mut().fill(value);
        Ok(mapped)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is whole and stays until `self` is dropped, the file can't shrink since its only
        // descriptor is closed, and nobody else has the mapping.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the range is one whole mapping that `new` made; every slice borrowed `self`.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            log::error!("unmap {:#x} bytes: {error}", self.len);
        }
    }
}

/// Two memfds.
pub(super) struct Copier {
    from: Mapped,
    to: Mapped,
}

impl Copier {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { from: Mapped::new(1)?, to: Mapped::new(2)? })
    }

    /// Copies so many bytes so many times, by the C library's memcpy; nanoseconds for one copy.
    pub(super) fn copy(&mut self, bytes: u32, times: u32) -> Result<f64> {
        let bytes = bytes as usize;
        let from = self.from.bytes().get(..bytes).context("a copy beyond the memory")?;
        let to = self.to.bytes_mut().get_mut(..bytes).context("a copy beyond the memory")?;
        let start = Instant::now();
        for _ in 0..times {
            to.copy_from_slice(hint::black_box(from));
            hint::black_box(&mut *to);
        }
        Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(times.max(1)))
    }
}

/// A word with a cache line, and the next one, of its own.
#[repr(align(128))]
struct Line(AtomicU32);

/// Two threads hand a number back and forth, each in a cache line; nanoseconds for one round trip.
pub(super) fn cache_line(rounds: u32) -> Result<f64> {
    let (there, back) = (Line(AtomicU32::new(0)), Line(AtomicU32::new(0)));
    let await_number = |line: &Line, number: u32| {
        let mut looks = 0u32;
        while line.0.load(Ordering::Acquire) != number {
            looks += 1;
            if looks.is_multiple_of(1 << 14) { thread::yield_now() } else { hint::spin_loop() }
        }
    };
    thread::scope(|scope| {
        let echo = thread::Builder::new().name("bench-line".into()).spawn_scoped(scope, || {
            for number in 1..=rounds {
                await_number(&there, number);
                back.0.store(number, Ordering::Release);
            }
        })?;
        let start = Instant::now();
        for number in 1..=rounds {
            there.0.store(number, Ordering::Release);
            await_number(&back, number);
        }
        let taken = start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds.max(1));
        ensure!(echo.join().is_ok(), "the other thread has panicked");
        Ok(taken)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_copies_that_many_bytes() {
        let mut copier = Copier::new().unwrap();
        copier.copy(1000, 3).unwrap();
        assert_eq!((copier.to.bytes()[999], copier.to.bytes()[1000]), (1, 2));
        assert!(copier.copy(MOST_BYTES + 1, 1).is_err());
    }

    #[test]
    fn cache_line_comes_back() {
        assert!(cache_line(100).unwrap() > 0.0);
    }
}
