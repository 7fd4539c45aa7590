//! The memory of a queue (EQ, CQ, send, receive and shared receive queue) as its context names it: an MTT
//! range and a page size. The addresses are resolved once, when the queue goes to hardware; an entry of
//! the MTT that wasn't present then stays absent, and the access that needs it fails.

use super::burst::Burst;
use super::tpt;
use crate::mem::DmaFault;

/// Marks a page whose MTT entry wasn't present.
const ABSENT: u64 = u64::MAX;

/// A queue's memory.
#[derive(Debug)]
pub(crate) struct RingMemory {
    page_shift: u8,
    bytes: u64,
    pages: Box<[u64]>,
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
    pub(crate) fn resolve(burst: &Burst, mtt_offset: u64, page_shift: u8, bytes: u64) -> Self {
        let bytes = bytes.min(1 << 28);
        let count = bytes.div_ceil(1 << page_shift);
        let pages = (0..count)
            .map(|i| tpt::mtt(burst, mtt_offset.wrapping_add(8 * i), page_shift).unwrap_or(ABSENT))
            .collect();
        Self { page_shift, bytes, pages }
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
        Ok(burst.dma.load_u32(bus, std::sync::atomic::Ordering::Acquire)?.to_ne_bytes())
    }

    /// Writes an entry of 32 bytes, its last word (which holds the owner bit) after all others.
    pub(crate) fn write_entry(&self, burst: &Burst, offset: u64, entry: &[u8; 32]) -> Result<(), RingFault> {
        let (bus, _) = self.translate(offset)?;
        let (body, owner) = entry.split_at(28);
        burst.dma.write(bus, body)?;
        let word = u32::from_ne_bytes([owner[0], owner[1], owner[2], owner[3]]);
        burst.dma.store_u32(bus + 28, word, std::sync::atomic::Ordering::Release)?;
        Ok(())
    }

    /// Fills the whole ring with a byte; pages that aren't there are passed over.
    pub(crate) fn fill(&self, burst: &Burst, byte: u8) {
        let chunk = [byte; 512];
        let mut offset = 0;
        while offset < self.bytes {
            let left = usize::try_from(self.bytes - offset).unwrap_or(usize::MAX);
            let n = chunk.len().min(left);
            if let Ok((bus, run)) = self.translate(offset) {
                let _unreachable_page = burst.dma.write(bus, &chunk[..n.min(run)]);
            }
            offset += n as u64;
        }
    }
}
