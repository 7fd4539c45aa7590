//! Memory that the firmware gets for itself: its own area (MAP_FA) and the auxiliary ICM.

use mlx4_pci::{DmaBuffer, DmaSpace};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::fw::{ICM_PAGE_BYTES, MAP_ENTRIES_MAX, MapEntry};
use zerocopy::IntoBytes;

use crate::cmd::{Command, Commands, Input};
use crate::error::{Error, Result};

/// log2 of the largest range that one map entry gives, in pages: 256 KiB.
pub(crate) const LOG2_CHUNK_PAGES: u8 = 6;
/// Size of such a range in bytes.
pub(crate) const CHUNK_BYTES: u64 = ICM_PAGE_BYTES << LOG2_CHUNK_PAGES;

/// Memory that was given to the firmware.
#[derive(Debug)]
pub(crate) struct FirmwareMemory {
    buffer: DmaBuffer,
    unmap: Opcode,
}

impl FirmwareMemory {
    /// Gives the firmware `pages` pages by `map`; `unmap` takes them back.
    ///
    /// # Errors
    /// No memory, or the device refuses it.
    pub(crate) fn give(
        commands: &Commands,
        dma: &DmaSpace,
        pages: u64,
        (map, unmap): (Opcode, Opcode),
    ) -> Result<Self> {
        let bytes = usize::try_from(pages * ICM_PAGE_BYTES)
            .map_err(|_| Error::argument("pages for the firmware", pages))?;
        let buffer = dma.allocate(bytes, CHUNK_BYTES)?;
        let entries = entries(buffer.iova(), pages);
        for batch in entries.chunks(MAP_ENTRIES_MAX) {
            let input = Input::Mailbox(batch.as_bytes());
            // At most MAP_ENTRIES_MAX.
            let count = u32::try_from(batch.len()).unwrap_or(0);
            commands.run(&Command { input, ..Command::new(map, count) })?;
        }
        Ok(Self { buffer, unmap })
    }

    /// Takes the memory back.
    ///
    /// # Errors
    /// The device doesn't give it; it stays mapped until the next reset.
    pub(crate) fn take_back(self, commands: &Commands) -> Result<()> {
        commands.simple(self.unmap, 0)?;
        Ok(self.buffer.release()?)
    }
}

/// Cuts pages from `iova` on into ranges that are powers of two and aligned to themselves.
fn entries(mut iova: u64, mut pages: u64) -> Vec<MapEntry> {
    let mut entries = Vec::new();
    while pages != 0 {
        let aligned = (iova / ICM_PAGE_BYTES).trailing_zeros();
        let log2 = aligned.min(pages.ilog2()).min(LOG2_CHUNK_PAGES.into());
        // At most LOG2_CHUNK_PAGES.
        let Some(entry) = MapEntry::new(0, iova, u8::try_from(log2).unwrap_or(0)) else { break };
        entries.push(entry);
        iova += ICM_PAGE_BYTES << log2;
        pages -= 1 << log2;
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut_into_aligned_powers_of_two() {
        let cut: Vec<_> = entries(0x4_0000, 0x49c).iter().map(|e| (e.pa(), e.log2_pages())).collect();
        assert_eq!(cut.len(), 21);
        let mut next = 0x4_0000;
        for (pa, log2) in cut {
            assert_eq!(pa, next);
            assert_eq!(pa % (4096 << log2), 0);
            next += 4096 << log2;
        }
        assert_eq!(next, 0x4_0000 + 0x49c * 4096);
    }

    #[test]
    fn pages_that_are_not_aligned_start_with_small_ranges() {
        let cut: Vec<_> = entries(0x3000, 6).iter().map(|e| (e.pa(), e.log2_pages())).collect();
        assert_eq!(cut, [(0x3000, 0), (0x4000, 2), (0x8000, 0)]);
    }
}
