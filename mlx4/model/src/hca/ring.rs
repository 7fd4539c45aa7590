//! The memory of a queue (EQ, CQ, send, receive and shared receive queue) as its context names it: an MTT
//! range and a page size. The addresses are resolved once, when the queue goes to hardware; an entry of
//! the MTT that wasn't present then stays absent, and the access that needs it fails.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mlx4_wire::cmd::Status;
use vm_memory::Bytes;

use super::burst::Burst;
use super::tpt;
use crate::mem::{Access, DmaFault};

/// Marks a page whose MTT entry wasn't present.
const ABSENT: u64 = u64::MAX;

/// Pages of all queues of an HCA together: their addresses take 128 MiB of this process's memory.
const MAX_PAGES: u64 = 1 << 24;

/// What the queues of an HCA may still take of the process's memory. A driver can create queues of any size
/// on a single page of its own.
#[derive(Debug, Default)]
pub(crate) struct RingBudget(Arc<AtomicU64>);

impl RingBudget {
    fn take(&self, pages: u64) -> Option<Share> {
        let add = |used: u64| used.checked_add(pages).filter(|used| *used <= MAX_PAGES);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Share { used: self.0.clone(), pages })
    }
}

/// A queue's part of the budget, given back when it is dropped.
#[derive(Debug)]
struct Share {
    used: Arc<AtomicU64>,
    pages: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.used.fetch_sub(self.pages, Ordering::Relaxed);
    }
}

/// How the entries of an EQ or a CQ, of 32 bytes, lie in its ring: one after the other, or each in the upper
/// half of 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryFormat {
    Bytes32,
    Bytes64,
}

impl EntryFormat {
    /// The format that a bit of INIT_HCA chooses.
    pub(crate) fn new(large: bool) -> Self {
        if large { Self::Bytes64 } else { Self::Bytes32 }
    }

    /// Size of a ring in bytes.
    pub(crate) fn ring_bytes(self, log2_entries: u8) -> u64 {
        self.stride() << log2_entries
    }

    /// Offset of a slot.
    pub(crate) fn slot(self, slot: u32) -> u64 {
        u64::from(slot) * self.stride()
    }

    /// Offset of the 32 bytes of a slot.
    fn offset(self, slot: u32) -> u64 {
        self.slot(slot) + self.stride() - 32
    }

    fn stride(self) -> u64 {
        match self {
            Self::Bytes32 => 32,
            Self::Bytes64 => 64,
        }
    }
}

/// A queue's memory.
#[derive(Debug)]
pub(crate) struct RingMemory {
    page_shift: u8,
    bytes: u64,
    pages: Box<[u64]>,
    _share: Share,
}

/// An access to a queue's memory that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingFault {
    #[error("ring offset {0:#x} has no present MTT entry")]
    NotPresent(u64),
    #[error(transparent)]
    Dma(#[from] DmaFault),
}

impl RingMemory {
    /// Resolves the pages of a ring of `bytes` bytes at an MTT byte offset; pages are `1 << page_shift`
    /// bytes. A ring has at most 2^28 bytes.
    ///
    /// # Errors
    /// EXCEED_LIM if the HCA's queues have too many pages already.
    pub(crate) fn resolve(
        burst: &Burst,
        budget: &RingBudget,
        mtt_offset: u64,
        page_shift: u8,
        bytes: u64,
    ) -> Result<Self, Status> {
        let bytes = bytes.min(1 << 28);
        let count = bytes.div_ceil(1 << page_shift);
        let share = budget.take(count).ok_or(Status::EXCEED_LIM)?;
        let pages = (0..count)
            .map(|i| tpt::mtt(burst, mtt_offset.wrapping_add(8 * i), page_shift).unwrap_or(ABSENT))
            .collect();
        Ok(Self { page_shift, bytes, pages, _share: share })
    }

    /// The bus address of a ring offset, and the bytes from there to the end of its page.
    fn translate(&self, offset: u64) -> Result<(u64, usize), RingFault> {
        let page = usize::try_from(offset >> self.page_shift).unwrap_or(usize::MAX);
        let inside = offset & ((1 << self.page_shift) - 1);
        match self.pages.get(page) {
            Some(&bus) if bus != ABSENT => {
                Ok((bus + inside, usize::try_from((1 << self.page_shift) - inside).unwrap_or(0)))
            }
            _ => Err(RingFault::NotPresent(offset)),
        }
    }

    /// Reads ring memory; the range may cross pages.
    pub(crate) fn read(&self, burst: &Burst, offset: u64, to: &mut [u8]) -> Result<(), RingFault> {
        let mut done = 0;
        while done < to.len() {
            let (bus, run) = self.translate(offset + done as u64)?;
            let n = run.min(to.len() - done);
            burst.dma.read(bus, &mut to[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// Reads an aligned 32-bit word as it lies in memory, with acquire ordering: what is read afterwards is
    /// at least as new.
    pub(crate) fn load_acquire(&self, burst: &Burst, offset: u64) -> Result<[u8; 4], RingFault> {
        let (bus, _) = self.translate(offset)?;
        Ok(burst.dma.load_u32(bus, Ordering::Acquire)?.to_ne_bytes())
    }

    /// Says that a place in the ring will be read soon.
    pub(crate) fn prefetch(&self, burst: &Burst, offset: u64) {
        if let Ok((bus, _)) = self.translate(offset) {
            burst.dma.prefetch(bus);
        }
    }

    /// Reads ring memory if its first aligned word is wanted; all else is read after that word. Says whether it was.
    pub(crate) fn read_acquire(
        &self,
        burst: &Burst,
        offset: u64,
        to: &mut [u8],
        wanted: impl FnOnce([u8; 4]) -> bool,
    ) -> Result<bool, RingFault> {
        let (bus, run) = self.translate(offset)?;
        let piece = burst.dma.prefix(bus, run.min(to.len()) as u64, Access::Read)?;
        let first = match piece.load(0, Ordering::Acquire) {
            Ok(word) => u32::to_ne_bytes(word),
            Err(_) => self.load_acquire(burst, offset)?,
        };
        if !wanted(first) {
            return Ok(false);
        }
        let done = piece.copy_to(to);
        if done < to.len() {
            self.read(burst, offset + done as u64, &mut to[done..])?;
        }
        let head = to.len().min(first.len());
        to[..head].copy_from_slice(&first[..head]);
        Ok(true)
    }

    /// Writes the entry of a slot, its last word (which holds the owner bit) after all others.
    pub(crate) fn write_entry(
        &self,
        burst: &Burst,
        format: EntryFormat,
        slot: u32,
        entry: &[u8; 32],
    ) -> Result<(), RingFault> {
        let (bus, _) = self.translate(format.offset(slot))?;
        let (body, owner) = entry.split_at(28);
        burst.dma.write(bus, body)?;
        let word = u32::from_ne_bytes([owner[0], owner[1], owner[2], owner[3]]);
        burst.dma.store_u32(bus + 28, word, Ordering::Release)?;
        Ok(())
    }

    /// Fills a part of the ring with a byte; pages that aren't there are passed over.
    pub(crate) fn fill(&self, burst: &Burst, part: Range<u64>, byte: u8) {
        let chunk = [byte; 512];
        let mut offset = part.start;
        let end = part.end.min(self.bytes);
        while offset < end {
            let page = 1u64 << self.page_shift;
            let left = (end - offset).min(page - (offset & (page - 1)));
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            if let Ok((bus, _)) = self.translate(offset) {
                let _unreachable_page = burst.dma.write(bus, &chunk[..n]);
            }
            offset += n as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_all_queues_are_bounded_and_come_back() {
        let budget = RingBudget::default();
        let half = budget.take(MAX_PAGES / 2).unwrap();
        assert!(budget.take(MAX_PAGES / 2 + 1).is_none());
        assert!(budget.take(u64::MAX).is_none());
        drop(half);
        assert!(budget.take(MAX_PAGES).is_some());
    }
}
