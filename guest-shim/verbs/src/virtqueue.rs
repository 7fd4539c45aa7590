//! The driver's side of a split virtqueue (virtio 1.2, section 2.7), whose device is not believed.
//!
//! What is in the rings is written here and read by the device, or the other way round; nothing that the device
//! could have changed is read back. What it returns is checked: a chain that it doesn't have breaks the queue.
//!
//! Which descriptors form which chain is the caller's: most are written once and offered again and again.

use std::sync::atomic::{Ordering, fence};

use crate::memory::Span;

/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: usize = 16;
/// `VIRTQ_DESC_F_NEXT`.
const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
const WRITE: u16 = 2;
/// `VIRTQ_USED_F_NO_NOTIFY`.
const NO_NOTIFY: u16 = 1;

/// Offsets of the rings in their memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Number of descriptors, a power of two.
    pub(crate) size: u16,
}

impl Layout {
    /// Where the available ring is; the descriptors are at 0.
    pub(crate) fn available(self) -> usize {
        DESCRIPTOR_BYTES * usize::from(self.size)
    }

    /// Where the used ring is.
    pub(crate) fn used(self) -> usize {
        (self.available() + 6 + 2 * usize::from(self.size)).next_multiple_of(8)
    }

    /// Bytes of all rings.
    pub(crate) fn bytes(self) -> usize {
        self.used() + 6 + 8 * usize::from(self.size)
    }
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    /// Where the device finds it.
    pub(crate) address: u64,
    /// Its length in bytes.
    pub(crate) length: u32,
    /// Whether the device writes it; else it reads it.
    pub(crate) writable: bool,
    /// The descriptor of the next buffer of the chain.
    pub(crate) next: Option<u16>,
}

/// A chain that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// Its first descriptor.
    pub(crate) head: u16,
    /// Bytes that the device says it wrote.
    pub(crate) length: u32,
}

/// The device has broken the rules of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device returned chains that it did not have")]
pub(crate) struct Broken;

/// The driver's side of a queue.
#[derive(Debug)]
pub(crate) struct Virtqueue {
    memory: Span,
    layout: Layout,
    /// Count of chains offered, modulo 2^16.
    offered: u16,
    /// Count of chains that came back, modulo 2^16.
    taken: u16,
    /// Which descriptors are heads of chains that the device has.
    with_device: Box<[bool]>,
}

impl Virtqueue {
    /// A queue in zeroed memory of [`Layout::bytes`].
    pub(crate) fn new(memory: Span, layout: Layout) -> Self {
        assert!(layout.size.is_power_of_two() && memory.len() >= layout.bytes(), "memory of a virtqueue");
        let with_device = vec![false; usize::from(layout.size)].into_boxed_slice();
        Self { memory, layout, offered: 0, taken: 0, with_device }
    }

    /// Writes a descriptor, of a chain that the device doesn't have.
    pub(crate) fn describe(&self, descriptor: u16, buffer: Buffer) {
        let at = DESCRIPTOR_BYTES * usize::from(descriptor);
        let next = if buffer.next.is_some() { NEXT } else { 0 };
        let write = if buffer.writable { WRITE } else { 0 };
        let mut bytes = [0; DESCRIPTOR_BYTES];
        bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&(next | write).to_le_bytes());
        bytes[14..].copy_from_slice(&buffer.next.unwrap_or(0).to_le_bytes());
        self.memory.copy_in(at, &bytes);
    }

    /// Gives the chain that starts with a descriptor to the device, which doesn't have it.
    pub(crate) fn offer(&mut self, head: u16) {
        debug_assert!(!self.with_device[usize::from(head)]);
        self.with_device[usize::from(head)] = true;
        let slot = usize::from(self.offered & (self.layout.size - 1));
        let ring = self.layout.available();
        self.memory.u16_at(ring + 4 + 2 * slot).store(head.to_le(), Ordering::Relaxed);
        self.offered = self.offered.wrapping_add(1);
        self.memory.u16_at(ring + 2).store(self.offered.to_le(), Ordering::Release);
    }

    /// Whether the device wants to be told of what was offered.
    pub(crate) fn wants_kick(&self) -> bool {
        // The device sets the flag, then looks at the available ring once more; here it is the other way round.
        fence(Ordering::SeqCst);
        let flags = u16::from_le(self.memory.u16_at(self.layout.used()).load(Ordering::Relaxed));
        flags & NO_NOTIFY == 0
    }

    /// The next chain that the device has used.
    pub(crate) fn take(&mut self) -> Result<Option<Used>, Broken> {
        let ring = self.layout.used();
        let index = u16::from_le(self.memory.u16_at(ring + 2).load(Ordering::Acquire));
        if index == self.taken {
            return Ok(None);
        }
        if index.wrapping_sub(self.taken) > self.offered.wrapping_sub(self.taken) {
            return Err(Broken);
        }
        let slot = ring + 4 + 8 * usize::from(self.taken & (self.layout.size - 1));
        let word = |at| u32::from_le(self.memory.u32_at(at).load(Ordering::Relaxed));
        let (head, length) = (word(slot), word(slot + 4));
        let head = u16::try_from(head).map_err(|_| Broken)?;
        let had = self.with_device.get_mut(usize::from(head)).ok_or(Broken)?;
        if !std::mem::replace(had, false) {
            return Err(Broken);
        }
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Used { head, length }))
    }
}

#[cfg(test)]
mod tests;
