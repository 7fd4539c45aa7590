//! Memory of a guest written by hand: a memfd that is never mapped here, so that the guest itself survives
//! whatever it does to it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use zerocopy::IntoBytes;

/// What keeps the guest from shortening its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seals {
    /// It can't.
    Shrink,
    /// It can.
    None,
}

/// A memfd.
#[derive(Debug)]
pub(crate) struct Memory {
    file: File,
    bytes: u64,
}

impl Memory {
    /// Zeroed memory.
    pub(crate) fn new(bytes: u64, seals: Seals) -> Result<Self> {
        let file = File::from(memfd_create("hostile", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(bytes)?;
        if seals == Seals::Shrink {
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
        }
        Ok(Self { file, bytes })
    }

    /// Its file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes, as it was made.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Another descriptor of it, for a thread of its own.
    pub(crate) fn share(&self) -> Result<Self> {
        Ok(Self { file: self.file.try_clone()?, bytes: self.bytes })
    }

    /// Copies to an offset.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).context("write to the guest's memory")
    }

    /// Copies from an offset.
    pub(crate) fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut to = vec![0; bytes];
        self.file.read_exact_at(&mut to, offset).context("read the guest's memory")?;
        Ok(to)
    }

    /// Writes a little-endian number.
    pub(crate) fn put16(&self, offset: u64, value: u16) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    /// Reads a little-endian number.
    pub(crate) fn get16(&self, offset: u64) -> Result<u16> {
        let mut value = 0u16;
        self.file.read_exact_at(value.as_mut_bytes(), offset).context("read the guest's memory")?;
        Ok(u16::from_le(value))
    }

    /// Zeroes a range.
    pub(crate) fn zero(&self, offset: u64, bytes: usize) -> Result<()> {
        self.write(offset, &vec![0; bytes])
    }
}
