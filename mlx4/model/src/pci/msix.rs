//! The MSI-X table and the pending bits in BAR 0 (PCI Express Base Specification 3.0, chapter 7; PCI 3.0,
//! section 6.8.2).
//!
//! A VMM keeps a table of its own, masks by itself and connects eventfds only for what may arrive, so behind
//! vfio-user this table sees no entries and masks nothing. Where the bus is in the same process it does.

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
    entries: Box<[Entry]>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    words: [u32; 4],
    pending: bool,
}

impl Entry {
    /// Masked, as after a reset.
    const RESET: Self = Self { words: [0, 0, 0, MASKED], pending: false };

    fn masked(&self) -> bool {
        self.words[CONTROL_WORD] & MASKED != 0
    }
}

impl MsixTable {
    /// A table with all vectors masked.
    pub fn new(vectors: u16) -> Self {
        Self { entries: vec![Entry::RESET; usize::from(vectors)].into() }
    }

    /// Masks every vector and forgets what is pending, as a reset does.
    pub fn wipe(&mut self) {
        self.entries.fill(Entry::RESET);
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

    /// Writes aligned 32-bit words at an offset in BAR 0. Pending bits can't be written.
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
                entry.words[field] = u32::from_le_bytes(*word) & writable;
            }
        }
    }

    /// Raises a vector: true if its message is to be sent now. If the vector is masked, or all are
    /// (`all_masked`), it becomes pending.
    pub fn raise(&mut self, vector: u16, all_masked: bool) -> bool {
        let Some(entry) = self.entries.get_mut(usize::from(vector)) else { return false };
        entry.pending = entry.masked() || all_masked;
        !entry.pending
    }

    /// Takes the vectors that are pending and not masked any more, for their messages to be sent.
    pub fn take_unmasked(&mut self) -> impl Iterator<Item = u16> {
        (0..).zip(&mut self.entries).filter_map(|(vector, entry)| {
            let send = entry.pending && !entry.masked();
            entry.pending &= !send;
            send.then_some(vector)
        })
    }

    fn word(&self, offset: u64) -> u32 {
        if let Some((entry, field)) = place(offset) {
            return self.entries.get(entry).map_or(0, |entry| entry.words[field]);
        }
        let first = offset.checked_sub(MSIX_PBA_OFFSET).and_then(|byte| usize::try_from(byte * 8).ok());
        let group = self.entries.iter().skip(first.unwrap_or(usize::MAX)).take(32).zip(0u32..);
        group.fold(0, |bits, (entry, bit)| bits | u32::from(entry.pending) << bit)
    }
}

/// Entry and word of it that an offset in the table's page names.
fn place(offset: u64) -> Option<(usize, usize)> {
    let within = offset.checked_sub(MSIX_TABLE_OFFSET).filter(|within| *within < PAGE_BYTES)?;
    let entry = usize::try_from(within / ENTRY_BYTES).ok()?;
    Some((entry, usize::try_from(within % ENTRY_BYTES / 4).ok()?))
}
