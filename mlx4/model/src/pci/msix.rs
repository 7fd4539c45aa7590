//! The MSI-X table and the pending bits in BAR 0 (PCI Express Base Specification 3.0, chapter 7; PCI 3.0,
//! section 6.8.2).
//!
//! The table only keeps what software writes: a VMM has one of its own, masks by itself, and connects eventfds
//! for what may arrive, and a driver in the same process gets eventfds as well. So nothing is ever pending.

use mlx4_wire::regs::{MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET};

/// Bytes of a table entry: address, data, control.
const ENTRY_BYTES: u64 = 16;
/// Word of an entry that has the mask bit, and the bit.
const CONTROL_WORD: usize = 3;
const MASKED: u32 = 1;
/// Bytes in BAR 0 that belong to the table, and to the pending bits.
const PAGE_BYTES: u64 = 4096;

/// The MSI-X vectors of the card, in the two pages of BAR 0 that the capability names.
#[derive(Clone, Debug)]
pub struct MsixTable {
    entries: Box<[[u32; 4]]>,
}

/// An entry after a reset: masked.
const RESET: [u32; 4] = [0, 0, 0, MASKED];

impl MsixTable {
    /// A table with all vectors masked.
    pub fn new(vectors: u16) -> Self {
        Self { entries: vec![RESET; usize::from(vectors)].into() }
    }

    /// Masks every vector and forgets its message, as a reset does.
    pub fn wipe(&mut self) {
        self.entries.fill(RESET);
    }

    /// Whether an offset in BAR 0 lies in the pages of the table and the pending bits.
    pub fn covers(offset: u64) -> bool {
        (MSIX_TABLE_OFFSET..MSIX_TABLE_OFFSET + PAGE_BYTES).contains(&offset)
            || (MSIX_PBA_OFFSET..MSIX_PBA_OFFSET + PAGE_BYTES).contains(&offset)
    }

    /// Reads aligned 32-bit words at an offset in BAR 0. What is no entry reads as zero, and anything but
    /// whole aligned words as all ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let (words, rest) = data.as_chunks_mut::<4>();
        if !offset.is_multiple_of(4) || !rest.is_empty() {
            data.fill(0xff);
            return;
        }
        for (word, at) in words.iter_mut().zip((offset..).step_by(4)) {
            *word = self.word(at).to_le_bytes();
        }
    }

    /// Writes aligned 32-bit words at an offset in BAR 0. What is no entry keeps nothing.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let (words, rest) = data.as_chunks::<4>();
        if !offset.is_multiple_of(4) || !rest.is_empty() {
            return;
        }
        for (word, at) in words.iter().zip((offset..).step_by(4)) {
            if let Some((entry, field)) = place(at)
                && let Some(entry) = self.entries.get_mut(entry)
            {
                let writable = match field {
                    0 => !3,
                    CONTROL_WORD => MASKED,
                    _ => !0,
                };
                entry[field] = u32::from_le_bytes(*word) & writable;
            }
        }
    }

    fn word(&self, offset: u64) -> u32 {
        let Some((entry, field)) = place(offset) else { return 0 };
        self.entries.get(entry).map_or(0, |entry| entry[field])
    }
}

/// Entry and word of it that an offset in the table's page names.
fn place(offset: u64) -> Option<(usize, usize)> {
    let within = offset.checked_sub(MSIX_TABLE_OFFSET).filter(|within| *within < PAGE_BYTES)?;
    let entry = usize::try_from(within / ENTRY_BYTES).ok()?;
    Some((entry, usize::try_from(within % ENTRY_BYTES / 4).ok()?))
}
