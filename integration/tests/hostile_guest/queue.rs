//! A split virtqueue as raw bytes: everything can be written to it, right or wrong.

use anyhow::Result;

use super::memory::Memory;

/// `VIRTQ_DESC_F_NEXT`.
pub(crate) const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub(crate) const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub(crate) const INDIRECT: u16 = 4;

/// Descriptors of each queue.
pub(crate) const SIZE: u16 = 64;
/// Where the available ring is, from the start of the rings.
pub(crate) const AVAILABLE: u64 = 16 * SIZE as u64;
/// Where the used ring is, from the start of the rings.
pub(crate) const USED: u64 = AVAILABLE + 0x400;
/// Bytes between the rings of two queues.
pub(crate) const RINGS: u64 = 0x1000;

/// A descriptor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    pub(crate) fn new(address: u64, length: u32, flags: u16, next: u16) -> Self {
        Self { address, length, flags, next }
    }

    pub(crate) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A queue whose rings are at an offset of the memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) offset: u64,
    /// Chains offered, modulo 2^16.
    pub(crate) offered: u16,
    /// Chains seen as used, modulo 2^16.
    pub(crate) taken: u16,
}

impl Queue {
    pub(crate) fn new(offset: u64) -> Self {
        Self { offset, offered: 0, taken: 0 }
    }

    /// Writes a descriptor.
    pub(crate) fn describe(&self, memory: &Memory, index: u16, descriptor: Descriptor) -> Result<()> {
        memory.write(self.offset + 16 * u64::from(index), &descriptor.bytes())
    }

    /// Makes a head available.
    pub(crate) fn offer(&mut self, memory: &Memory, head: u16) -> Result<()> {
        let slot = u64::from(self.offered % SIZE);
        memory.put16(self.offset + AVAILABLE + 4 + 2 * slot, head)?;
        self.offered = self.offered.wrapping_add(1);
        memory.put16(self.offset + AVAILABLE + 2, self.offered)
    }

    /// The next used chain: its head and its length.
    pub(crate) fn take(&mut self, memory: &Memory) -> Result<Option<(u32, u32)>> {
        if memory.get16(self.offset + USED + 2)? == self.taken {
            return Ok(None);
        }
        let slot = u64::from(self.taken % SIZE);
        let element = memory.read(self.offset + USED + 4 + 8 * slot, 8)?;
        self.taken = self.taken.wrapping_add(1);
        let (head, length) = element.split_at(4);
        Ok(Some((u32::from_le_bytes(head.try_into()?), u32::from_le_bytes(length.try_into()?))))
    }
}
