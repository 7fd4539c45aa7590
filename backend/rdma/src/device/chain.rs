//! Descriptor chains: their form is checked once, then they are a list of places in guest memory.

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::Memory;

/// A part of guest memory.
#[derive(Clone, Copy, Debug)]
struct Span {
    address: GuestAddress,
    bytes: usize,
}

/// A chain whose descriptors all lie in the guest's memory.
#[derive(Debug)]
pub(crate) struct Chain {
    head: u16,
    readable: Vec<Span>,
    writable: Vec<Span>,
}

/// The chain, if its form is right: it has an end, readable buffers come before writable ones, all of it lies in
/// memory, and it has no more descriptors than the queue (an indirect table could have 65,535).
pub(crate) fn collect(chain: DescriptorChain<&Memory>, memory: &Memory, longest: usize) -> Option<Chain> {
    let mut found = Chain { head: chain.head_index(), readable: Vec::new(), writable: Vec::new() };
    let mut last: Option<Descriptor> = None;
    for (descriptor, before) in chain.zip(0..) {
        if before == longest {
            return None;
        }
        found.add(&descriptor, memory)?;
        last = Some(descriptor);
    }
    // The iterator ends where it can't go on, too: then the last descriptor promised another one.
    last.filter(|last| !last.has_next()).map(|_| found)
}

impl Chain {
    fn add(&mut self, descriptor: &Descriptor, memory: &Memory) -> Option<()> {
        let span = Span { address: descriptor.addr(), bytes: usize::try_from(descriptor.len()).ok()? };
        if !memory.check_range(span.address, span.bytes) {
            return None;
        }
        if descriptor.is_write_only() {
            self.writable.push(span);
        } else if self.writable.is_empty() {
            self.readable.push(span);
        } else {
            return None;
        }
        Some(())
    }

    /// The index of its first descriptor, by which it is given back.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that can be written to it.
    pub(crate) fn room(&self) -> usize {
        self.writable.iter().map(|span| span.bytes).sum()
    }

    /// A copy of its readable part, up to `most` bytes; none if the memory has gone meanwhile.
    pub(crate) fn read(&self, memory: &Memory, most: usize) -> Option<Vec<u8>> {
        let length = self.readable.iter().map(|span| span.bytes).sum::<usize>().min(most);
        let mut bytes = vec![0; length];
        let mut rest = bytes.as_mut_slice();
        for span in &self.readable {
            let (to, later) = rest.split_at_mut(span.bytes.min(rest.len()));
            memory.read_slice(to, span.address).ok()?;
            rest = later;
        }
        Some(bytes)
    }

    /// Writes to the start of its writable part and answers how many bytes; none, and nothing is written, if
    /// there is not room for all of them.
    pub(crate) fn write_all(&self, memory: &Memory, bytes: &[u8]) -> Option<u32> {
        if self.room() < bytes.len() {
            return None;
        }
        let mut rest = bytes;
        for span in &self.writable {
            let (from, later) = rest.split_at(span.bytes.min(rest.len()));
            memory.write_slice(from, span.address).ok()?;
            rest = later;
        }
        u32::try_from(bytes.len()).ok()
    }
}
